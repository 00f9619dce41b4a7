/* SPDX-License-Identifier: Apache-2.0 */
/* One block of the sweep for vectors along the inputs (docs/methods.md, "The sweep in blocks"; host/comp_block.c is the same on the CPU). With U_bb the
 * block of U at a vector's columns b, w the vector when it is rounded, q what it became, w0 its start:
 *
 *   W[:, k] -= x U[b][k] - y T[b][k]   for every later column k of the block,   x U_bb = (w - q) + a2 (w0 - A),   y = a1 A + a2 (w0 - A)
 *
 * A is q or w. x and y stay for the trailing update. A warp has as many rows as its lanes hold vectors of (comp_book_pick.cuh): lane row * D + r has
 * component r while a vector is searched and its x found by substitution. Then lanes are columns: each has 4 neighbouring ones of all rows, which lie in
 * shared memory as the blocks of U and T do; a row of either is one conflict-free 16-byte load. What a vector has of its own (metric, scale) is loaded
 * while the one before it is searched. Outlier columns are spans of one component, rounded to 8-bit steps. Rows are independent. Targets: sm_80 sm_90a. */
#include "comp_book_warp.cuh"

enum { BLOCK = RQ_COMP_BLOCK };

static __device__ __forceinline__ void load_triangle(float (*to)[BLOCK], const float *from,
                                                     const rq_cuda_book_block &b) {
    for (int i = threadIdx.x; i < BLOCK * BLOCK; i += blockDim.x) {
        const int r = i / BLOCK, c = i % BLOCK;
        to[r][c] = r < b.width && c < b.width ? from[(b.col0 + r) * b.books.n + b.col0 + c] : 0.0f;
    }
}

/* Code and value of one span, kept; t is this lane's target. */
template <int D, bool SIGNS>
static __device__ __forceinline__ float round_span(const rq_cuda_book_block &b, rq_warp_shared<D> &m,
                                                   const rq_cuda_span &s, int64_t row, float t, float scale) {
    const rq_cuda_books &k = b.books;
    const int r = threadIdx.x % D;
    const bool here = row < k.n_out && (s.lanes >> r & 1);
    if (here && b.at) b.at[row * k.n + s.col + r] = t;
    float q;
    if (s.vec < 0) {
        const int o = -1 - s.vec;
        const float step = row < k.n_out ? k.step[k.matrix[row] * k.n_outlier + o] : 1.0f, v = rq_nearest_step(t, step);
        q = step * v;
        if (here) k.outlier[row * k.n_outlier + o] = (int8_t)(int)v;
    } else {
        const rq_picked<D> p = rq_pick<D, SIGNS>(k, m.pick, s.which, b.diagonal, t, scale);
        const unsigned signs = __ballot_sync(RQ_ALL, p.negative) >> (threadIdx.x % 32 - r) & ((1u << D) - 1);
        if (row < k.n_out && r == 0) {
            rq_cuda_vec_code *c = &k.code[row * k.n_vec + s.vec];
            c->code[0] = (uint16_t)p.code[0];
            c->code[1] = (uint16_t)p.code[1];
            c->negative = (uint16_t)signs;
        }
        q = p.q;
    }
    if (here && b.q) b.q[row * k.n + s.col + r] = q;
    return q;
}

/* x and y of the span whose first column is `at` of the block; this lane's component is column c of it. */
template <int D>
static __device__ __forceinline__ void coefficients(const rq_cuda_book_block &b, rq_warp_shared<D> &m,
                                                    const float (*u)[BLOCK], const rq_cuda_span &s, int at, int c,
                                                    float w, float q, float w0) {
    const int lane = threadIdx.x % 32, r = lane % D;
    const bool has = s.lanes >> r & 1;
    const float kept = b.allw ? w : q, cae = b.w0 ? b.a2 * (w0 - kept) : 0.0f;
    float v = (w - q) + cae, x = 0;
    int column = at;
#pragma unroll
    for (int k = 0; k < D; ++k) {
        if (!(s.lanes >> k & 1)) continue;
        const float xk = __fdiv_rn(__shfl_sync(RQ_ALL, v, k, D), u[column][column]);
        if (r == k) x = xk;
        if (has && r > k) v = fmaf(-xk, u[column][c], v);
        ++column;
    }
    m.x[lane] = has ? x : 0.0f;
    m.y[lane] = has ? b.a1 * kept + cae : 0.0f;
}

/* What the search of a span needs of global memory. */
template <int D> struct upcoming {
    rq_metric_part<D> metric;
    float scale;
    __device__ __forceinline__ void load(const rq_cuda_book_block &b, int i, int64_t row) {
        scale = 0;
        if (i >= b.n_span || b.span[i].vec < 0) return;
        const int64_t vec = b.span[i].vec, d = b.books.d;
        metric.load(b.metric + vec * d * d, b.books.d, b.diagonal);
        if (row < b.books.n_out) scale = b.books.scale[row * b.books.n_group + vec * d / b.books.group];
    }
};

template <int D, bool SIGNS>
static __global__ void __launch_bounds__(rq_shape<D>::WARPS * 32, 1) rq_sweep_books(const rq_cuda_book_block b) {
    enum { ROWS = rq_shape<D>::ROWS, WARPS = rq_shape<D>::WARPS };
    extern __shared__ __align__(16) float shared[];
    const bool moves = b.u != NULL, has_t = b.t != NULL;
    float(*u)[BLOCK] = reinterpret_cast<float(*)[BLOCK]>(shared);
    float(*t)[BLOCK] = u + (moves ? BLOCK : 0);
    rq_warp_shared<D> &m = reinterpret_cast<rq_warp_shared<D> *>(t + (has_t ? BLOCK : 0))[threadIdx.x / 32];
    if (moves) load_triangle(u, b.u, b);
    if (has_t) load_triangle(t, b.t, b);
    __syncthreads();
    const int lane = threadIdx.x % 32, r = lane % D;
    const int64_t n = b.books.n, row0 = ((int64_t)blockIdx.x * WARPS + threadIdx.x / 32) * ROWS, row = row0 + lane / D;
    if (row0 >= b.books.n_out) return;
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
        for (int c = lane; c < BLOCK; c += 32)
            m.w[i][c] = row0 + i < b.books.n_out && c < b.width ? b.w[(row0 + i) * n + b.col0 + c] : 0.0f;
    upcoming<D> next;
    next.load(b, 0, row);
    for (int i = 0; i < b.n_span; ++i) {
        const rq_cuda_span s = b.span[i];
        const bool has = s.lanes >> r & 1, real = has && row < b.books.n_out;
        const int at = s.pos - (int)b.col0, c = at + __popc(s.lanes & ((1u << r) - 1));
        if (s.vec >= 0) next.metric.store(m.pick);
        __syncwarp();
        const float w = has ? m.w[lane / D][c] : 0.0f, scale = next.scale;
        const float w0 = real && b.w0 ? b.w0[row * n + b.col0 + c] : 0.0f;
        next.load(b, i + 1, row);
        const float q = round_span<D, SIGNS>(b, m, s, row, w, scale);
        if (!moves) continue;
        coefficients<D>(b, m, u, s, at, c, w, q, w0);
        if (real) b.x[row * BLOCK + c] = m.x[lane];
        if (real && has_t) b.y[row * BLOCK + c] = m.y[lane];
        __syncwarp();
        rq_propagate<D, true>(m, u, has_t ? t : NULL, s.lanes, at);
    }
}

template <int D, bool SIGNS> static rq_status launch(const rq_cuda_book_block &b, rq_cuda_stream stream) {
    enum { ROWS = rq_shape<D>::ROWS, WARPS = rq_shape<D>::WARPS };
    const size_t bytes = (size_t)((b.u != NULL) + (b.t != NULL)) * BLOCK * BLOCK * sizeof(float) +
                         (size_t)WARPS * sizeof(rq_warp_shared<D>);
    cudaError_t e =
        cudaFuncSetAttribute(rq_sweep_books<D, SIGNS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return rq_gemv_fail_cuda("rq_sweep_books: shared memory", e);
    const int64_t rows = ROWS * WARPS;
    rq_sweep_books<D, SIGNS><<<(unsigned)((b.books.n_out + rows - 1) / rows), WARPS * 32, bytes, stream>>>(b);
    return rq_comp_launched("rq_sweep_books");
}

rq_status rq_cuda_sweep_books(const rq_cuda_book_block *b, rq_cuda_stream stream) {
    const int d = b->books.d;
    if (b->width < 1 || b->width > BLOCK || d < 2 || d > RQ_CUDA_BOOK_VEC || (b->books.signs && d > 8))
        return rq_gemv_fail(RQ_ERR_ARG,
                            "a block of the sweep has 1 to 128 columns, a vector 2 to 16, with signs 2 to 8");
    if (b->books.signs) return d <= 4 ? launch<4, true>(*b, stream) : launch<8, true>(*b, stream);
    if (d <= 4) return launch<4, false>(*b, stream);
    return d <= 8 ? launch<8, false>(*b, stream) : launch<16, false>(*b, stream);
}
