/* SPDX-License-Identifier: Apache-2.0 */
/* The two-level grids of format w4a8 (host/round_w4a8.c is the definition): the search of scales, steps and bases, their refit, and what the clip search by
 * the output (host/comp_clip.c) needs beside products. A group's 16 values are scale * (u * step + base), u = 0..15, base = -zero.
 *
 * Half a warp has one group of one row and tries the steps and bases of round_w4a8.c in its order; errors are summed as there, lane k taking columns
 * k, k + 16, ... of the group, so that both choose the same where the compiler fuses multiply and add there. The
 * two halves of a warp go the same way, one that has nothing to try computing for nothing. A row's scale is the first whose groups lose
 * least together: one launch tries all scales, then their sums are compared, then the groups are searched in full at the best. The refit has a
 * warp a row, sums in fp64. Targets: sm_80 sm_90a. */
#include "comp_launch.cuh"

enum { WARPS = 8, HALF = 16, TOP = 15, PROTECTED = 119, MAX_STEP = 17 /* RQ_W4A8_MAX_STEP */ };
constexpr unsigned ALL = 0xffffffffu; /* lanes */

/* One group of one row in units of its scale, for half a warp. */
struct level_group {
    const float *x, *weight;
    const uint8_t *dead;
    int len, lane; /* of the half warp */
    float inv;
    __device__ __forceinline__ float at(int j) const { return dead && dead[j] ? 0.0f : x[j] * inv; }
};

struct level_grid {
    float step, base, error;
};

static __device__ __forceinline__ float level_term(const level_group &g, int j, float step, float base, float inv,
                                                   float sum) {
    const float v = g.at(j);
    float u = rintf((v - base) * inv);
    u = u < 0.0f ? 0.0f : u > TOP ? (float)TOP : u;
    const float e = fmaf(u, step, base) - v;
    return fmaf(g.weight[j], e * e, sum);
}

static __device__ __forceinline__ float level_error(const level_group &g, float step, float base) {
    const float inv = __fdiv_rn(1.0f, step);
    const int whole = g.len / HALF * HALF;
    float sum = 0, total = 0;
    for (int j = g.lane; j < whole; j += HALF) sum = level_term(g, j, step, base, inv, sum);
    for (int j = whole; j < g.len; ++j) total = level_term(g, j, step, base, inv, total);
#pragma unroll
    for (int k = 0; k < HALF; ++k) total += __shfl_sync(ALL, sum, k, HALF);
    return total;
}

static __device__ __forceinline__ void try_grid(level_grid *best, const level_group &g, bool active, float step,
                                                float base) {
    const bool fits = active && step >= 1.0f && step <= MAX_STEP;
    if (!__any_sync(ALL, fits)) return;
    step = fits ? step : 1.0f;
    const float most = 127.0f - TOP * step;
    base = base < -128.0f ? -128.0f : base > most ? most : base;
    const float error = level_error(g, step, base);
    if (fits && error < best->error) *best = {step, base, error};
}

static __device__ __forceinline__ level_grid find_group(const level_group &g, int reach) {
    float lo = INFINITY, hi = -INFINITY;
    for (int j = g.lane; j < g.len; j += HALF) {
        const float v = g.at(j);
        lo = v < lo ? v : lo;
        hi = v > hi ? v : hi;
    }
#pragma unroll
    for (int d = HALF / 2; d > 0; d /= 2) {
        lo = fminf(lo, __shfl_xor_sync(ALL, lo, d));
        hi = fmaxf(hi, __shfl_xor_sync(ALL, hi, d));
    }
    const float whole = ceilf(__fdiv_rn(hi - lo, TOP));
    const float spans = whole < 1.0f ? 1.0f : whole > MAX_STEP ? (float)MAX_STEP : whole;
    level_grid best = {1.0f, -8.0f, INFINITY};
#pragma unroll 1
    for (int i = 0; i < (reach == 0 ? 1 : 3 * (reach + 1));
         ++i) { /* three bases a step; the middle one alone when there is one step */
        const float step = spans - (float)(i / 3);
        const float low = rintf(lo), high = rintf(hi - TOP * step), middle = rintf(0.5f * (low + high));
        const float end = i % 3 == 1 ? low : high;
        try_grid(&best, g, true, step, i % 3 == 0 ? middle : rintf(0.5f * (end + middle)));
    }
    return best;
}

/* One unit of step or base at a time while that helps. */
static __device__ __forceinline__ void climb(level_grid *best, const level_group &g) {
    bool active = true;
#pragma unroll 1
    for (int i = 0; i < 32; ++i) {
        const level_grid at = *best;
#pragma unroll 1
        for (int k = 0; k < 9; ++k) { /* steps of -1, 0 and 1, and for each the bases */
            const int step = k / 3 - 1, base = k % 3 - 1;
            const float centre = at.base - rintf(0.5f * TOP * (float)step); /* the grid's middle stays */
            if (step || base) try_grid(best, g, active, at.step + (float)step, centre + (float)base);
        }
        active = active && best->error != at.error;
        if (!__any_sync(ALL, active)) break;
    }
}

static __device__ __forceinline__ float scale_of(double factor, float most) {
    return (float)(__ddiv_rn(factor * (double)most, PROTECTED));
}

static __global__ void __launch_bounds__(WARPS * 32) rq_find_levels(const rq_cuda_level_search s) {
    const int64_t mine = ((int64_t)blockIdx.x * WARPS * 32 + threadIdx.x) / HALF, last = s.n_out * s.n_group - 1,
                  item = mine < last ? mine : last, row = item / s.n_group, k = item % s.n_group, c0 = k * s.group;
    const int64_t left = s.n - c0;
    const float scale = s.row_scale ? s.row_scale[row] : scale_of(s.factor[blockIdx.y], s.largest[row]);
    const level_group g = {s.w + row * s.n + c0,        s.weight + c0,
                           s.dead ? s.dead + c0 : NULL, (int)(s.group < left ? s.group : left),
                           (int)(threadIdx.x % HALF),   __fdiv_rn(1.0f, scale)};
    level_grid best = find_group(g, s.reach);
    if (s.climbs) climb(&best, g);
    if (g.lane || mine > last) return;
    if (s.error) {
        s.error[(row * gridDim.y + blockIdx.y) * s.n_group + k] = (double)best.error * (double)scale * (double)scale;
        return;
    }
    s.scale[item] = scale;
    s.step[item] = best.step;
    s.zero[item] = -best.base;
}

rq_status rq_cuda_find_levels(const rq_cuda_level_search *s, int n_factor, rq_cuda_stream stream) {
    const int64_t threads = s->n_out * s->n_group * HALF;
    const dim3 grid((unsigned)((threads + WARPS * 32 - 1) / (WARPS * 32)), s->row_scale ? 1u : (unsigned)n_factor);
    rq_find_levels<<<grid, WARPS * 32, 0, stream>>>(*s);
    return rq_comp_launched("rq_find_levels");
}

/* largest[i] = the largest |w| of row i without dead columns, 1 for a row of zeros. */
static __global__ void __launch_bounds__(WARPS * 32)
    rq_row_largest(float *largest, const float *w, const uint8_t *dead, int64_t n_out, int64_t n) {
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= n_out) return;
    float most = 0;
    for (int64_t j = threadIdx.x % 32; j < n; j += 32) {
        const float v = dead && dead[j] ? 0.0f : fabsf(w[row * n + j]);
        most = v > most ? v : most;
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, d));
    if (threadIdx.x % 32 == 0) largest[row] = most >= 1e-30f ? most : 1.0f;
}

rq_status rq_cuda_row_largest(float *largest, const float *w, const uint8_t *dead, int64_t n_out, int64_t n,
                              rq_cuda_stream stream) {
    rq_row_largest<<<(unsigned)((n_out + WARPS - 1) / WARPS), WARPS * 32, 0, stream>>>(largest, w, dead, n_out, n);
    return rq_comp_launched("rq_row_largest");
}

static __global__ void __launch_bounds__(WARPS * 32)
    rq_best_scale(const rq_cuda_level_search s, float *row_scale, int n_factor) {
    const int64_t row = (int64_t)blockIdx.x * WARPS * 32 + threadIdx.x;
    if (row >= s.n_out) return;
    double best = INFINITY;
    float scale = 1.0f;
    for (int p = 0; p < n_factor; ++p) {
        double sum = 0;
        for (int64_t g = 0; g < s.n_group; ++g) sum += s.error[(row * n_factor + p) * s.n_group + g];
        if (sum < best) best = sum, scale = scale_of(s.factor[p], s.largest[row]);
    }
    row_scale[row] = scale;
}

rq_status rq_cuda_best_scale(float *row_scale, const rq_cuda_level_search *s, int n_factor, rq_cuda_stream stream) {
    rq_best_scale<<<(unsigned)((s->n_out + WARPS * 32 - 1) / (WARPS * 32)), WARPS * 32, 0, stream>>>(*s, row_scale,
                                                                                                     n_factor);
    return rq_comp_launched("rq_best_scale");
}

/* ---- the clip search by the output */

static __global__ void __launch_bounds__(RQ_COMP_ACROSS)
    rq_round_error(float *e, const float *w, const uint8_t *dead, const float *scale, const float *zero,
                   const float *step, int64_t n, int64_t group, int64_t n_group, float top) {
    const int64_t j = rq_comp_col(), row = blockIdx.x;
    if (j >= n) return;
    const int64_t k = row * n_group + j / group;
    const float v = dead[j] ? 0.0f : w[row * n + j], s = scale[k], z = zero[k];
    float c = step ? rintf(__fdiv_rn(__fadd_rn(__fdiv_rn(v, s), z), step[k])) : rintf(__fdiv_rn(v, s)) + z;
    c = c < 0.0f ? 0.0f : c > top ? top : c;
    e[row * n + j] = v - s * (step ? c * step[k] - z : c - z);
}

rq_status rq_cuda_round_error(float *e, const float *w, const uint8_t *dead, const float *scale, const float *zero,
                              const float *step, int64_t n_out, int64_t n, int64_t group, int bits,
                              rq_cuda_stream stream) {
    rq_round_error<<<rq_comp_rows(n, n_out), RQ_COMP_ACROSS, 0, stream>>>(
        e, w, dead, scale, zero, step, n, group, (n + group - 1) / group, (float)((1 << bits) - 1));
    return rq_comp_launched("rq_round_error");
}

static __global__ void __launch_bounds__(WARPS * 32)
    rq_keep_better(const rq_cuda_grids best, const rq_cuda_grids now, double *least, const double *loss, int first,
                   int64_t n_out, int64_t n_group) {
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= n_out) return;
    const double mine = loss[row];
    const bool better = first || mine < least[row];
    __syncwarp();
    if (!better) return;
    if (threadIdx.x % 32 == 0) least[row] = isnan(mine) ? INFINITY : mine;
    for (int64_t k = row * n_group + threadIdx.x % 32; k < (row + 1) * n_group; k += 32) {
        best.scale[k] = now.scale[k];
        best.zero[k] = now.zero[k];
        if (best.step) best.step[k] = now.step[k];
    }
}

rq_status rq_cuda_keep_better(const rq_cuda_grids *best, const rq_cuda_grids *now, double *least, const double *loss,
                              int first, int64_t n_out, int64_t n_group, rq_cuda_stream stream) {
    rq_keep_better<<<(unsigned)((n_out + WARPS - 1) / WARPS), WARPS * 32, 0, stream>>>(*best, *now, least, loss, first,
                                                                                       n_out, n_group);
    return rq_comp_launched("rq_keep_better");
}

/* ---- refit of steps and bases (host/comp_refine.c, refit_levels) */

/* The best of a few whole numbers for one group, by sums that all lanes have: what J changes by when the step grows by d and the base by e. */
struct level_loss {
    double scale, g1, gu, uu, u1, h11;
};

static __device__ __forceinline__ bool best_move(const level_loss &l, float step, float base, float *d_best,
                                                 float *e_best) {
    double best = 0;
    if (!(l.h11 > 0)) return false;
    for (int i = -2; i <= 2; ++i) {
        const float d = (float)i;
        if (step + d < 1 || step + d > MAX_STEP) continue;
        const float most = 127 - TOP * (step + d);
        float to = base + (float)rint(-(l.g1 / l.scale + (double)d * l.u1) / l.h11);
        to = to < -128 ? -128 : to > most ? most : to;
        const double e = (double)to - (double)base, dd = (double)d;
        const double change = 2 * l.scale * (dd * l.gu + e * l.g1) +
                              l.scale * l.scale * (dd * dd * l.uu + 2 * dd * e * l.u1 + e * e * l.h11);
        if (change < best) best = change, *d_best = d, *e_best = (float)e;
    }
    return best < 0;
}

static __global__ void __launch_bounds__(WARPS * 32) rq_refit_levels(const rq_cuda_level_refit r) {
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, at = row * r.n + r.col0,
                  k = row * r.n_group + r.col0 / r.group;
    if (row >= r.n_out) return;
    const int lane = threadIdx.x % 32;
    double g1 = 0, gu = 0, uu = 0, u1 = 0;
    for (int j = lane; j < r.len; j += 32) {
        const double g = (double)r.g[at + j], u = (double)r.u[at + j], hu = (double)r.hu[row * r.len + j];
        g1 += g;
        gu += g * u;
        uu += u * hu;
        u1 += hu;
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        g1 += __shfl_xor_sync(ALL, g1, d);
        gu += __shfl_xor_sync(ALL, gu, d);
        uu += __shfl_xor_sync(ALL, uu, d);
        u1 += __shfl_xor_sync(ALL, u1, d);
    }
    const float scale = r.grids.scale[k], was = r.grids.step[k], zero = r.grids.zero[k];
    const level_loss l = {(double)scale, g1, gu, uu, u1, r.h11[r.col0 / r.group]};
    float d = 0, e = 0;
    const bool moves = best_move(l, was, -zero, &d, &e);
    __syncwarp();
    if (lane == 0) r.grids.step[k] = was + d, r.grids.zero[k] = zero - e;
    for (int j = lane; j < r.len; j += 32) {
        const float q = r.q[at + j], now = moves ? scale * (r.u[at + j] * (was + d) - (zero - e)) : q;
        r.change[row * r.len + j] = now - q;
        r.q[at + j] = now;
    }
}

rq_status rq_cuda_refit_levels(const rq_cuda_level_refit *r, rq_cuda_stream stream) {
    rq_refit_levels<<<(unsigned)((r->n_out + WARPS - 1) / WARPS), WARPS * 32, 0, stream>>>(*r);
    return rq_comp_launched("rq_refit_levels");
}
