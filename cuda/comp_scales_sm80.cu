/* SPDX-License-Identifier: Apache-2.0 */
/* Scales and zero points of groups of columns, with the clip search: host/round_grid.c is the definition, and sums here are its 16 partial sums in
 * its order, so that both choose the same factor where the compiler fuses multiply and add there.
 *
 * A warp has one group of one row. First all lanes find its range; then half a warp tries a factor: lane k sums columns k, k + 16, ... The two halves
 * take even and odd factors, and the first of the best wins. Targets: sm_80 sm_90a. */
#include <cuda_fp16.h>

#include "comp_launch.cuh"

enum { WARPS = 8, HALF = 16 };
constexpr unsigned ALL = 0xffffffffu; /* lanes */

/* |x|^power as round_grid.c has it. */
static __device__ __forceinline__ float pow_abs(float x, float power) {
    const uint32_t u = __float_as_uint(x) & 0x7fffffffu;
    const int e = (int)(u >> 23) - 127;
    const float m = __uint_as_float((u & 0x7fffffu) | 0x3f800000u) - 1.5f;
    const float of_log[9] = {0.5849625007f,  0.9617959854f,  -0.3205984712f, 0.1425259284f,   -0.07126680309f,
                             0.03746649028f, -0.0207900332f, 0.01477057116f, -0.008665699308f};
    const float of_exp[7] = {
        1.0f, 0.6931472067f, 0.2402265092f, 0.05550327227f, 0.009618056679f, 0.001340042818f, 0.000154614447f};
    float l = of_log[8];
#pragma unroll
    for (int i = 7; i >= 0; --i) l = fmaf(m, l, of_log[i]);
    float y = power * ((float)e + l);
    y = y < -126.0f ? -126.0f : y > 126.0f ? 126.0f : y;
    const float whole = rintf(y), f = y - whole;
    float g = of_exp[6];
#pragma unroll
    for (int i = 5; i >= 0; --i) g = fmaf(f, g, of_exp[i]);
    return u < 0x00800000u ? 0.0f : g * __uint_as_float((uint32_t)((int)whole + 127) << 23);
}

static __device__ __forceinline__ void grid_of_range(const rq_cuda_scales &s, float lo, float hi, float *scale,
                                                     float *zero) {
    const float half = (float)(1 << (s.bits - 1));
    if (s.sym) {
        *scale = __fdiv_rn(hi, half - 1.0f);
        *zero = half;
    } else {
        *scale = __fdiv_rn(hi - lo, (float)((1 << s.bits) - 1));
        *zero = rintf(__fdiv_rn(-lo, *scale));
    }
}

struct group_values {
    const float *w, *weight;
    const uint8_t *dead;
    int64_t len;
    __device__ __forceinline__ float at(int64_t j) const { return dead && dead[j] ? 0.0f : w[j]; }
};

static __device__ __forceinline__ float error_of(float x, float weight, float scale, float zero, float inv, float top,
                                                 float power, float sum) {
    float c = rintf(x * inv) + zero;
    c = c < 0.0f ? 0.0f : c;
    c = c > top ? top : c;
    const float e = fmaf(scale, c - zero, -x);
    return fmaf(weight, power == 2.0f ? e * e : pow_abs(e, power), sum);
}

/* sum weight |Q(x) - x|^power, in all lanes of the half warp. */
static __device__ float clip_error(const group_values &v, float scale, float zero, float top, float power, int lane) {
    const float inv = __fdiv_rn(1.0f, scale);
    const int64_t whole = v.len / HALF * HALF;
    float sum = 0, total = 0;
    for (int64_t j = lane % HALF; j < whole; j += HALF)
        sum = error_of(v.at(j), v.weight[j], scale, zero, inv, top, power, sum);
    for (int64_t j = whole; j < v.len; ++j) total = error_of(v.at(j), v.weight[j], scale, zero, inv, top, power, total);
#pragma unroll
    for (int k = 0; k < HALF; ++k) total += __shfl_sync(ALL, sum, k, HALF);
    return total;
}

static __global__ void __launch_bounds__(WARPS * 32, 2) rq_find_scales(const rq_cuda_scales s) {
    const int lane = threadIdx.x % 32;
    const int64_t item = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, row = item / s.n_group, g = item % s.n_group;
    if (row >= s.n_out) return;
    const int64_t c0 = s.col0 + g * s.group, left = s.n - c0;
    const group_values v = {s.w + row * s.n + c0, s.weight + c0, s.dead ? s.dead + c0 : NULL,
                            s.group < left ? s.group : left};
    float lo = 0, hi = 0;
    for (int64_t j = lane; j < v.len; j += 32) {
        const float x = v.at(j);
        lo = x < lo ? x : lo;
        hi = x > hi ? x : hi;
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        lo = fminf(lo, __shfl_xor_sync(ALL, lo, d));
        hi = fmaxf(hi, __shfl_xor_sync(ALL, hi, d));
    }
    if (s.sym) {
        hi = -lo > hi ? -lo : hi;
        hi = hi < 1e-5f ? 1e-5f : hi;
        lo = -hi;
    } else if (lo == 0 && hi == 0) {
        lo = -1;
        hi = 1;
    }
    const float top = (float)((1 << s.bits) - 1);
    float best = INFINITY, scale, zero;
    int best_at = -1;
    grid_of_range(s, lo, hi, &scale, &zero);
    if (s.shrink != 0) {
        float of, at;
        grid_of_range(s, s.shrink * lo, s.shrink * hi, &of, &at);
        if (of > 0 && of < INFINITY) scale = of, zero = at;
    }
    bool valid = true; /* the search ends at the first scale that is not a positive number */
    for (int i0 = 0; i0 < s.steps && s.steps > 1 && valid; i0 += 2) {
        const int i = i0 + lane / HALF;
        const float p = s.factor[i < s.steps ? i : 0];
        float of, at;
        grid_of_range(s, p * lo, p * hi, &of, &at);
        const bool number = of > 0 && of < INFINITY;
        const unsigned numbers = __ballot_sync(ALL, number);
        const bool good = number && i < s.steps && (numbers & 1);
        const float error = clip_error(v, good ? of : 1.0f, at, top, s.power, lane);
        if (good && error < best) best = error, best_at = i, scale = of, zero = at;
        valid = __all_sync(ALL, good || i >= s.steps);
    }
    const float other = __shfl_xor_sync(ALL, best, HALF);
    const int other_at = __shfl_xor_sync(ALL, best_at, HALF);
    const bool first = other_at < 0 || (best_at >= 0 && (best < other || (best == other && best_at < other_at)));
    const int from = (lane < HALF) == first ? 0 : HALF; /* whose choice it is; lane 0 decides */
    const int winner = __shfl_sync(ALL, from, 0);
    scale = __shfl_sync(ALL, scale, winner);
    zero = __shfl_sync(ALL, zero, winner);
    if (lane) return;
    if (s.f16) { /* below half's range its smallest number, above it its largest */
        unsigned short h = __half_as_ushort(__float2half_rn(scale));
        h = h == 0 ? 1 : h >= 0x7c00 ? 0x7bff : h;
        scale = __half2float(__ushort_as_half(h));
    }
    zero = zero < 0.0f ? 0.0f : zero > top ? top : zero;
    s.scale[row * s.out_groups + s.out0 + g] = scale;
    s.zero[row * s.out_groups + s.out0 + g] = zero;
}

rq_status rq_cuda_find_scales(const rq_cuda_scales *s, rq_cuda_stream stream) {
    const int64_t items = s->n_out * s->n_group;
    rq_find_scales<<<(unsigned)((items + WARPS - 1) / WARPS), WARPS * 32, 0, stream>>>(*s);
    return rq_comp_launched("rq_find_scales");
}
