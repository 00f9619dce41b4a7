/* SPDX-License-Identifier: Apache-2.0 */
/* One block of the column sweep (docs/methods.md, "One sweep"; host/comp_sweep.c is the same on the CPU):
 *
 *   W[:, k] -= x U[c][k] - y T[c][k]   for every later column k of the block,   x = ((w - q) + a2 (w0 - A)) / U[c][c],  A = w,
 *                                                                                y = a1 A + a2 (w0 - A)
 *
 * and x, y of the trailing update, with A = q or w clamped to the grid. A warp has 4 rows of the block in registers, 4 neighbouring columns a lane;
 * the blocks of U and T lie in shared memory, and a row of either is one conflict-free 16-byte load. A column goes in three steps: its 4 values are
 * passed around, every lane rounds the one of row lane % 4 (so each is rounded 8 times over, at the cost of one), and x and y are passed back. What
 * a column needs of scales and of w0, and what it leaves (code, x, y), goes by batches of 8 columns: lane l has row l % 4 of column l / 4, loaded a
 * batch ahead. Rows are independent, so nothing depends on the order of blocks. Targets: sm_80 sm_90a. */
#include "comp_launch.cuh"

enum { BLOCK = RQ_COMP_BLOCK, ROWS = 4, WARPS = 8, LANE_COLS = 4, BATCH = 8 };
constexpr unsigned ALL = 0xffffffffu; /* lanes */
static_assert(BLOCK == 32 * LANE_COLS && 32 == ROWS * BATCH, "a warp covers a block, and a batch");

/* What a lane holds of a batch: row lane % ROWS of column lane / ROWS. */
struct batch {
    float scale, zero, step, w0;
};

static __device__ __forceinline__ batch load_batch(const rq_cuda_block &b, const int *group_of, int64_t row,
                                                   int first) {
    batch v = {1.0f, 0.0f, 1.0f, 0.0f};
    const int c = first + (int)(threadIdx.x % 32) / ROWS;
    if (row < b.n_out && c < b.width) {
        const int64_t k = row * b.n_group + group_of[c];
        v.scale = b.scale[k];
        v.zero = b.zero[k];
        if (b.step) v.step = b.step[k];
        if (b.w0) v.w0 = b.w0[row * b.n + b.col0 + c];
    }
    return v;
}

struct rounded {
    float code, q, clamped;
};

/* round_grid.c and round_w4a8.c: scale * (code - zero), or scale * (code * step - zero). */
template <bool STEPS>
static __device__ __forceinline__ rounded round_one(float w, float scale, float zero, float step, float top) {
    rounded r;
    float c = STEPS ? rintf(__fdiv_rn(__fadd_rn(__fdiv_rn(w, scale), zero), step)) : rintf(__fdiv_rn(w, scale)) + zero;
    c = c < 0.0f ? 0.0f : c;
    c = c > top ? top : c;
    r.code = c;
    r.q = scale * (STEPS ? c * step - zero : c - zero);
    const float lo = scale * -zero, hi = scale * (STEPS ? top * step - zero : top - zero);
    const float v = w < lo ? lo : w;
    r.clamped = v > hi ? hi : v;
    return r;
}

/* The block of an upper triangular matrix, zeros past its width. */
static __device__ __forceinline__ void load_triangle(float (*to)[BLOCK], const float *from, const rq_cuda_block &b) {
    for (int i = threadIdx.x; i < BLOCK * BLOCK; i += WARPS * 32) {
        const int r = i / BLOCK, c = i % BLOCK;
        to[r][c] = r < b.width && c < b.width ? from[(b.col0 + r) * b.n + b.col0 + c] : 0.0f;
    }
}

/* MOVES 0: nothing moves (rtn); 1: U; 2: U and T. */
template <int MOVES, bool STEPS>
static __global__ void __launch_bounds__(WARPS * 32, 1) rq_comp_block(const rq_cuda_block b) {
    extern __shared__ __align__(16) float shared[];
    float(*u)[BLOCK] = reinterpret_cast<float(*)[BLOCK]>(shared);
    float(*t)[BLOCK] = u + (MOVES > 0 ? BLOCK : 0);
    float *inverse = &t[MOVES > 1 ? BLOCK : 0][0]; /* of U's diagonal */
    int *group_of = reinterpret_cast<int *>(inverse + BLOCK);
    if (MOVES > 0) load_triangle(u, b.u, b);
    if (MOVES > 1) load_triangle(t, b.t, b);
    for (int c = threadIdx.x; c < BLOCK; c += WARPS * 32) {
        const int64_t at = b.col0 + c;
        inverse[c] = MOVES > 0 && c < b.width ? 1.0f / b.u[at * b.n + at] : 0.0f;
        group_of[c] = c < b.width ? (int)(b.stored[at] / b.group) : 0;
    }
    __syncthreads();
    const int lane = threadIdx.x % 32;
    const int64_t row0 = ((int64_t)blockIdx.x * WARPS + threadIdx.x / 32) * ROWS, mine = row0 + lane % ROWS;
    if (row0 >= b.n_out) return;
    const float top = (float)((1 << b.bits) - 1);
    float w[ROWS][LANE_COLS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int k = 0; k < LANE_COLS; ++k) {
            const int c = lane * LANE_COLS + k;
            w[r][k] = row0 + r < b.n_out && c < b.width ? b.w[(row0 + r) * b.n + b.col0 + c] : 0.0f;
        }
    batch next = load_batch(b, group_of, mine, 0);
    for (int first = 0; first < b.width; first += BATCH) {
        const batch now = next;
        if (first + BATCH < b.width) next = load_batch(b, group_of, mine, first + BATCH);
        float code = 0, x_left = 0, y_left = 0;
#pragma unroll
        for (int j = 0; j < BATCH; ++j) {
            const int c = first + j, owner = c / LANE_COLS, from = j * ROWS + lane % ROWS;
            float v = 0;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const float of_row = __shfl_sync(ALL, w[r][j % LANE_COLS], owner);
                v = lane % ROWS == r ? of_row : v;
            }
            const float scale = __shfl_sync(ALL, now.scale, from), zero = __shfl_sync(ALL, now.zero, from);
            const float step = STEPS ? __shfl_sync(ALL, now.step, from) : 1.0f;
            const float w0 = MOVES > 0 ? __shfl_sync(ALL, now.w0, from) : 0.0f;
            const rounded g = round_one<STEPS>(v, scale, zero, step, top);
            const float a = b.allw ? g.clamped : g.q, inv = inverse[c];
            const float owed = b.w0 ? b.a2 * (w0 - v) : 0.0f, owed_left = b.w0 ? b.a2 * (w0 - a) : 0.0f;
            const float x = ((v - g.q) + owed) * inv, y = b.a1 * v + owed;
            if (lane / ROWS == j) {
                code = g.code;
                x_left = ((v - g.q) + owed_left) * inv;
                y_left = b.a1 * a + owed_left;
            }
            if (MOVES == 0) continue;
            const float4 u4 = *reinterpret_cast<const float4 *>(&u[c][lane * LANE_COLS]);
            const float uk[LANE_COLS] = {u4.x, u4.y, u4.z, u4.w};
            float4 t4 = {};
            if (MOVES > 1) t4 = *reinterpret_cast<const float4 *>(&t[c][lane * LANE_COLS]);
            const float tk[LANE_COLS] = {t4.x, t4.y, t4.z, t4.w};
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const float xr = __shfl_sync(ALL, x, r), yr = MOVES > 1 ? __shfl_sync(ALL, y, r) : 0.0f;
#pragma unroll
                for (int k = 0; k < LANE_COLS; ++k) {
                    w[r][k] = fmaf(-xr, uk[k], w[r][k]);
                    if (MOVES > 1) w[r][k] = fmaf(yr, tk[k], w[r][k]);
                }
            }
        }
        const int c = first + lane / ROWS;
        if (mine < b.n_out && c < b.width) {
            b.codes[mine * b.n + b.stored[b.col0 + c]] = (uint8_t)(int)code;
            if (MOVES > 0) b.x[mine * BLOCK + c] = x_left;
            if (MOVES > 1) b.y[mine * BLOCK + c] = y_left;
        }
    }
}

template <int MOVES, bool STEPS> static rq_status launch(const rq_cuda_block &b, rq_cuda_stream stream) {
    const size_t bytes = (size_t)(MOVES * BLOCK * BLOCK + 2 * BLOCK) * sizeof(float);
    /* Beyond 48 KiB a kernel must be told; it costs nothing to say it again. */
    cudaError_t e =
        cudaFuncSetAttribute(rq_comp_block<MOVES, STEPS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return rq_gemv_fail_cuda("rq_comp_block: shared memory", e);
    const int64_t rows = ROWS * WARPS;
    rq_comp_block<MOVES, STEPS><<<(unsigned)((b.n_out + rows - 1) / rows), WARPS * 32, bytes, stream>>>(b);
    return rq_comp_launched("rq_comp_block");
}

rq_status rq_cuda_sweep_block(const rq_cuda_block *b, rq_cuda_stream stream) {
    if (b->width < 1 || b->width > BLOCK) return rq_gemv_fail(RQ_ERR_ARG, "a block of the sweep has 1 to 128 columns");
    if (b->t) return b->step ? launch<2, true>(*b, stream) : launch<2, false>(*b, stream);
    if (b->u) return b->step ? launch<1, true>(*b, stream) : launch<1, false>(*b, stream);
    return b->step ? launch<0, true>(*b, stream) : launch<0, false>(*b, stream);
}

static __global__ void __launch_bounds__(RQ_COMP_ACROSS)
    rq_to_sweep_order(float *to, const float *from, const int32_t *perm, const uint8_t *dead, int64_t n) {
    const int64_t c = rq_comp_col(), i = blockIdx.x;
    if (c < n) to[i * n + c] = dead[perm[c]] ? 0.0f : from[i * n + perm[c]];
}

rq_status rq_cuda_to_sweep_order(float *to, const float *from, const int32_t *perm, const uint8_t *dead, int64_t n_out,
                                 int64_t n, rq_cuda_stream stream) {
    rq_to_sweep_order<<<rq_comp_rows(n, n_out), RQ_COMP_ACROSS, 0, stream>>>(to, from, perm, dead, n);
    return rq_comp_launched("rq_to_sweep_order");
}
