/* SPDX-License-Identifier: Apache-2.0 */
/* Refinement of a grid's codes after the sweep (docs/methods.md, "Refinement"; host/comp_refine.c is the same on the CPU), with G = (Q - W*) H:
 *
 *   q_c = the nearest code's value to q_c - G_c / H_cc;   G[:, k] += delta_c H[c][k]   for every column k
 *
 * One kernel does this for a block of columns, as comp_block_sm80.cu does the sweep's: 4 rows a warp, 4 columns a lane, H's block in shared memory,
 * what a column has of its own in batches of 8. The changes delta are left for one product that brings all of G up to date. The others are passes
 * over memory, and the normal equations of the least-squares refit of scales. Rows are independent. Targets: sm_80 sm_90a. */
#include "comp_launch.cuh"

enum { BLOCK = RQ_COMP_BLOCK, ROWS = 4, WARPS = 8, LANE_COLS = 4, BATCH = 8 };
constexpr unsigned ALL = 0xffffffffu; /* lanes */

struct batch {
    float scale, zero, step, q;
};

static __device__ __forceinline__ batch load_batch(const rq_cuda_descent &d, int64_t row, int first) {
    batch v = {1.0f, 0.0f, 1.0f, 0.0f};
    const int64_t c = d.col0 + first + (int)(threadIdx.x % 32) / ROWS;
    if (row < d.n_out && c < d.col0 + d.width) {
        const int64_t k = row * d.n_group + c / d.group;
        v.scale = d.scale[k];
        v.zero = d.zero[k];
        if (d.step) v.step = d.step[k];
        v.q = d.q[row * d.n + c];
    }
    return v;
}

/* STEPS: two levels, scale * (code * step - zero). */
template <bool STEPS>
static __global__ void __launch_bounds__(WARPS * 32, 1) rq_descend_block(const rq_cuda_descent d) {
    extern __shared__ __align__(16) float shared[];
    float(*h)[BLOCK] = reinterpret_cast<float(*)[BLOCK]>(shared);
    for (int i = threadIdx.x; i < BLOCK * BLOCK; i += WARPS * 32) {
        const int r = i / BLOCK, c = i % BLOCK;
        h[r][c] = r < d.width && c < d.width ? d.h[(d.col0 + r) * d.n + d.col0 + c] : r == c ? 1.0f : 0.0f;
    }
    __syncthreads();
    const int lane = threadIdx.x % 32;
    const int64_t row0 = ((int64_t)blockIdx.x * WARPS + threadIdx.x / 32) * ROWS, mine = row0 + lane % ROWS;
    if (row0 >= d.n_out) return;
    const float top = (float)((1 << d.bits) - 1);
    float g[ROWS][LANE_COLS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int k = 0; k < LANE_COLS; ++k) {
            const int c = lane * LANE_COLS + k;
            g[r][k] = row0 + r < d.n_out && c < d.width ? d.g[(row0 + r) * d.n + d.col0 + c] : 0.0f;
        }
    batch next = load_batch(d, mine, 0);
    for (int first = 0; first < d.width; first += BATCH) {
        const batch now = next;
        if (first + BATCH < d.width) next = load_batch(d, mine, first + BATCH);
        float code = 0, delta_left = 0, q_left = 0;
#pragma unroll
        for (int j = 0; j < BATCH; ++j) {
            const int c = first + j, owner = c / LANE_COLS, from = j * ROWS + lane % ROWS;
            float v = 0;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const float of_row = __shfl_sync(ALL, g[r][j % LANE_COLS], owner);
                v = lane % ROWS == r ? of_row : v;
            }
            const float scale = __shfl_sync(ALL, now.scale, from), zero = __shfl_sync(ALL, now.zero, from),
                        q = __shfl_sync(ALL, now.q, from), inv = __fdiv_rn(1.0f, h[c][c]);
            const float step = STEPS ? __shfl_sync(ALL, now.step, from) : 1.0f,
                        wanted = __fdiv_rn(fmaf(-v, inv, q), scale);
            float best = STEPS ? rintf((wanted + zero) * __fdiv_rn(1.0f, step)) : rintf(wanted) + zero;
            best = best < 0.0f ? 0.0f : best;
            best = best > top ? top : best;
            const float to = scale * (STEPS ? best * step - zero : best - zero), delta = to - q;
            if (lane / ROWS == j) code = best, delta_left = delta, q_left = to;
            const float4 h4 = *reinterpret_cast<const float4 *>(&h[c][lane * LANE_COLS]);
            const float hk[LANE_COLS] = {h4.x, h4.y, h4.z, h4.w};
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const float change = __shfl_sync(ALL, delta, r);
#pragma unroll
                for (int k = 0; k < LANE_COLS; ++k) g[r][k] = fmaf(change, hk[k], g[r][k]);
            }
        }
        const int c = first + lane / ROWS;
        if (mine < d.n_out && c < d.width) {
            const int64_t at = mine * d.n + d.col0 + c;
            d.delta[mine * BLOCK + c] = delta_left;
            d.q[at] = q_left;
            d.codes[at] = (uint8_t)(int)code;
        }
    }
}

template <bool STEPS> static rq_status descend(const rq_cuda_descent &d, rq_cuda_stream stream) {
    const size_t bytes = (size_t)(BLOCK * BLOCK) * sizeof(float);
    const int64_t rows = ROWS * WARPS;
    cudaError_t e =
        cudaFuncSetAttribute(rq_descend_block<STEPS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return rq_gemv_fail_cuda("rq_descend_block: shared memory", e);
    rq_descend_block<STEPS><<<(unsigned)((d.n_out + rows - 1) / rows), WARPS * 32, bytes, stream>>>(d);
    return rq_comp_launched("rq_descend_block");
}

rq_status rq_cuda_descend_block(const rq_cuda_descent *d, rq_cuda_stream stream) {
    if (d->width < 1 || d->width > (int)BLOCK)
        return rq_gemv_fail(RQ_ERR_ARG, "a block of the descent has 1 to 128 columns");
    return d->step ? descend<true>(*d, stream) : descend<false>(*d, stream);
}

/* ---- passes over memory */

static __global__ void __launch_bounds__(RQ_COMP_ACROSS)
    rq_levels(float *level, float *q, const uint8_t *codes, const float *scale, const float *zero, const float *step,
              int64_t n, int64_t group, int64_t n_group) {
    const int64_t c = rq_comp_col(), i = blockIdx.x;
    if (c >= n) return;
    const int64_t k = i * n_group + c / group;
    const float v = (float)codes[i * n + c] * (step ? step[k] : 1.0f) - (zero ? zero[k] : 0.0f);
    if (level) level[i * n + c] = v;
    if (q) q[i * n + c] = scale[k] * v;
}

rq_status rq_cuda_levels(float *level, float *q, const uint8_t *codes, const float *scale, const float *zero,
                         const float *step, int64_t n_out, int64_t n, int64_t group, rq_cuda_stream stream) {
    rq_levels<<<rq_comp_rows(n, n_out), RQ_COMP_ACROSS, 0, stream>>>(level, q, codes, scale, zero, step, n, group,
                                                                     (n + group - 1) / group);
    return rq_comp_launched("rq_levels");
}

static __global__ void __launch_bounds__(RQ_COMP_ACROSS)
    rq_subtract(float *e, const float *a, const float *b, int64_t n) {
    const int64_t c = rq_comp_col(), i = blockIdx.x;
    if (c < n) e[i * n + c] = a[i * n + c] - b[i * n + c];
}

rq_status rq_cuda_subtract(float *e, const float *a, const float *b, int64_t n_out, int64_t n, rq_cuda_stream stream) {
    rq_subtract<<<rq_comp_rows(n, n_out), RQ_COMP_ACROSS, 0, stream>>>(e, a, b, n);
    return rq_comp_launched("rq_subtract");
}

/* A warp has one part of one row: lanes take every 32nd product, in fp64. */
static __global__ void __launch_bounds__(256)
    rq_row_parts(double *sum, const float *a, const float *b, int64_t n_out, int64_t n, int64_t col0, int64_t cols,
                 int64_t part, int64_t n_part, int64_t row_pitch) {
    const int64_t item = (int64_t)blockIdx.x * 8 + threadIdx.x / 32, i = item / n_part, p = item % n_part;
    if (i >= n_out) return;
    const int64_t c0 = col0 + p * part, end = c0 + part < col0 + cols ? c0 + part : col0 + cols;
    double v = 0;
    for (int64_t c = c0 + threadIdx.x % 32; c < end; c += 32) v += (double)a[i * n + c] * (double)b[i * n + c];
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_down_sync(ALL, v, d);
    if (threadIdx.x % 32 == 0) sum[i * row_pitch + p] = v;
}

rq_status rq_cuda_row_parts(double *sum, const float *a, const float *b, int64_t n_out, int64_t n, int64_t col0,
                            int64_t cols, int64_t part, int64_t row_pitch, rq_cuda_stream stream) {
    const int64_t n_part = (cols + part - 1) / part, items = n_out * n_part;
    rq_row_parts<<<(unsigned)((items + 7) / 8), 256, 0, stream>>>(sum, a, b, n_out, n, col0, cols, part, n_part,
                                                                  row_pitch);
    return rq_comp_launched("rq_row_parts");
}
