/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors down the outputs (docs/methods.md, "Vectors down the outputs"; host/comp_lines.c, and host/comp_columns.c for the sums at the end): one
 * block of columns of the sweep, and of the descent over codes after it. Columns are rounded one by one,
 *
 *   W[:, k] -= x U[c][k] - y T[c][k]   for every later column k of the block,   x = ((w - q) + a2 (w0 - A)) / U[c][c],   y = a1 A + a2 (w0 - A)
 *
 * with w the column when it is rounded, q what it became, w0 its start and A q or w; x and y stay for the trailing update. In the descent the best value of
 * column c given all else is q - G_c / H_cc, G = (Q - goal) H, and a code is taken where J = tr((Q - goal) G^T) falls, which fp64 says. A thread block has the
 * lines of one tile (comp_lines.cuh), and the blocks of U and T, or of H, in shared memory. What a column has of its own is loaded while the one before it
 * is searched. Outlier columns are rounded to 8-bit steps. Lines are independent. Targets: sm_80 sm_90a. */
#include "comp_book_pick.cuh"
#include "comp_lines.cuh"

enum { BLOCK = RQ_COMP_BLOCK, WARPS = RQ_LINES_WARPS, SUM_COLS = 32, SUM_ROWS = 8 };

/* What the column of a span needs of global memory: its span, its scale and bias, and one number a lane. */
struct upcoming {
    rq_cuda_span span;
    float scale, bias, own;
    __device__ __forceinline__ void load(const rq_cuda_books &k, const rq_cuda_line_tile &tile,
                                         const rq_cuda_span *spans, int i, int n_span) {
        if (i >= n_span) return;
        span = spans[i];
        const int64_t at = (int64_t)tile.matrix * k.n + span.col;
        scale = span.vec < 0 ? k.step[tile.matrix * k.n_outlier - 1 - span.vec] : k.scale[at];
        bias = span.vec < 0 ? 0.0f : k.bias[at];
    }
};

/* What a lane's row of one column became, and its code: of a vector, or of an outlier column. */
struct rounded {
    float q;
    rq_line_picked code;
    int outlier;
};

template <int D>
static __device__ __forceinline__ rounded round_column(const rq_cuda_books &k, rq_lines_shared<D> &m, int *turn,
                                                       const rq_cuda_line_tile &tile, const upcoming &c, bool real,
                                                       float w) {
    rounded r = {0, {0, {0, 0}}, 0};
    if (c.span.vec < 0) {
        const float v = rq_nearest_step(w, c.scale);
        r.outlier = (int)v;
        r.q = c.scale * v;
        return r;
    }
    /* A column without a scale has nothing to be near to: code 0, and the bias. */
    const int count = c.scale > 0 ? tile.tall : 0, lane = threadIdx.x % 32;
    const float t = real && count ? __fdiv_rn(w - c.bias, c.scale) : 0.0f;
    r.code = rq_pick_lines<D>(k, m, turn, c.span.which, count, lane / D >= tile.n_lines, t);
    r.q = __fadd_rn(__fmul_rn(c.scale, r.code.v), c.bias); /* not fused: the CPU's bytes */
    return r;
}

/* Codes of this lane's line, or its row's outlier. */
template <int D>
static __device__ __forceinline__ void keep_code(const rq_cuda_books &k, const rq_cuda_line_tile &tile,
                                                 const upcoming &c, const rounded &r, int64_t row) {
    const int lane = threadIdx.x % 32;
    if (row < 0) return;
    if (c.span.vec < 0) {
        k.outlier[row * k.n_outlier - 1 - c.span.vec] = (int8_t)r.outlier;
    } else if (lane % D == 0) {
        rq_cuda_vec_code *to = &k.code[(int64_t)(tile.line0 + lane / D) * k.n_vec + c.span.vec];
        to->code[0] = (uint16_t)r.code.code[0];
        to->code[1] = (uint16_t)r.code.code[1];
        to->negative = 0;
    }
}

template <int D>
static __global__ void __launch_bounds__(RQ_LINES_THREADS, 2) rq_sweep_lines(const rq_cuda_book_block b) {
    extern __shared__ __align__(16) float shared[];
    const bool moves = b.u != NULL, has_t = b.t != NULL;
    float(*u)[BLOCK] = reinterpret_cast<float(*)[BLOCK]>(shared);
    float(*t)[BLOCK] = u + (moves ? BLOCK : 0);
    rq_lines_shared<D> &m = *reinterpret_cast<rq_lines_shared<D> *>(t + (has_t ? BLOCK : 0));
    const rq_cuda_books &k = b.books;
    const rq_cuda_line_tile tile = k.tile[blockIdx.x];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t row = rq_line_row<D>(tile, k.d, lane);
    const bool real = row >= 0;
    if (moves) rq_lines_square(u, b.u, k.n, b.col0, b.width);
    if (has_t) rq_lines_square(t, b.t, k.n, b.col0, b.width);
    rq_lines_open<D> w;
    w.load(b.w, k, tile, b.col0, b.width);
    upcoming next = {};
    int turn = 0;
    next.load(k, tile, b.span, 0, b.n_span);
    for (int i = 0; i < b.n_span; ++i) {
        const upcoming now = next;
        const int c = now.span.pos - (int)b.col0;
        const float w0 = real && b.w0 ? b.w0[row * k.n + b.col0 + c] : 0.0f;
        next.load(k, tile, b.span, i + 1, b.n_span);
        w.publish(m.column[i % 2], c);
        __syncthreads();
        const float v = m.column[i % 2][lane];
        const rounded r = round_column<D>(k, m, &turn, tile, now, real, v);
        const bool writes = real && warp == i % WARPS;
        if (writes) keep_code<D>(k, tile, now, r, row);
        if (writes && b.at) b.at[row * k.n + now.span.col] = v;
        if (writes && b.q) b.q[row * k.n + now.span.col] = r.q;
        if (!moves) continue;
        const float kept = b.allw ? v : r.q, cae = b.w0 ? b.a2 * (w0 - kept) : 0.0f;
        const float x = real ? __fdiv_rn((v - r.q) + cae, u[c][c]) : 0.0f, y = real ? b.a1 * kept + cae : 0.0f;
        if (writes) b.x[row * BLOCK + c] = x;
        if (writes && has_t) b.y[row * BLOCK + c] = y;
        w.add(-x, u[c]);
        if (has_t) w.add(y, t[c]);
    }
}

template <int D>
static __global__ void __launch_bounds__(RQ_LINES_THREADS, 2) rq_descend_lines(const rq_cuda_book_descent d) {
    extern __shared__ __align__(16) float shared[];
    float(*h)[BLOCK] = reinterpret_cast<float(*)[BLOCK]>(shared);
    rq_lines_shared<D> &m = *reinterpret_cast<rq_lines_shared<D> *>(h + BLOCK);
    const rq_cuda_books &k = d.books;
    const rq_cuda_line_tile tile = k.tile[blockIdx.x];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t row = rq_line_row<D>(tile, k.d, lane);
    const bool real = row >= 0;
    rq_lines_square(h, d.h, k.n, d.col0, d.width);
    rq_lines_open<D> g;
    g.load(d.g, k, tile, d.col0, d.width);
    upcoming next = {};
    int turn = 0;
    next.load(k, tile, d.span, 0, d.n_span);
    for (int i = 0; i < d.n_span; ++i) {
        const upcoming now = next;
        const int c = now.span.pos - (int)d.col0;
        const float q = real ? d.q[row * k.n + now.span.col] : 0.0f;
        next.load(k, tile, d.span, i + 1, d.n_span);
        g.publish(m.column[i % 2], c);
        __syncthreads();
        const float slope = m.column[i % 2][lane], own = h[c][c];
        const rounded r = round_column<D>(k, m, &turn, tile, now, real, q - __fdiv_rn(slope, own));
        float delta = real ? r.q - q : 0.0f;
        const double linear = 2 * (double)slope;
        double change = (double)delta * (linear + (double)delta * (double)own), size = fabs((double)delta * linear);
#pragma unroll
        for (int s = D / 2; s > 0; s /= 2) {
            change += __shfl_xor_sync(RQ_LINES_ALL, change, s);
            size += __shfl_xor_sync(RQ_LINES_ALL, size, s);
        }
        /* An outlier's is the exact minimum, always taken; of a vector, what rounding may leave is not. */
        const bool taken = now.span.vec < 0 || change < -1e-6 * size;
        if (!taken) delta = 0;
        const bool writes = real && warp == i % WARPS;
        if (writes && taken) keep_code<D>(k, tile, now, r, row);
        if (writes) d.delta[row * BLOCK + c] = delta;
        g.add(delta, h[c]);
    }
}

/* ---- what the refit of scales and biases sums over the rows of a matrix */

static __global__ void __launch_bounds__(SUM_COLS *SUM_ROWS)
    rq_column_sums(double *sum, const float *v, const float *g, int64_t n_rows, int64_t n) {
    __shared__ double part[3][SUM_ROWS][SUM_COLS];
    const int lane = threadIdx.x % SUM_COLS, own = threadIdx.x / SUM_COLS;
    const int64_t j = (int64_t)blockIdx.x * SUM_COLS + lane;
    double s[3] = {0, 0, 0};
    for (int64_t r = own; r < n_rows && j < n; r += SUM_ROWS) {
        const double x = v[r * n + j], y = g[r * n + j];
        s[0] += x * y;
        s[1] += y;
        s[2] += x;
    }
#pragma unroll
    for (int i = 0; i < 3; ++i) part[i][own][lane] = s[i];
    __syncthreads();
    if (own > 2 || j >= n) return;
    double total = 0;
#pragma unroll
    for (int i = 0; i < SUM_ROWS; ++i) total += part[own][i][lane];
    sum[own * n + j] = total;
}

rq_status rq_cuda_column_sums(double *sum, const float *v, const float *g, int64_t n_rows, int64_t n,
                              rq_cuda_stream stream) {
    rq_column_sums<<<(unsigned)((n + SUM_COLS - 1) / SUM_COLS), SUM_COLS * SUM_ROWS, 0, stream>>>(sum, v, g, n_rows, n);
    return rq_comp_launched("rq_column_sums");
}

/* ---- launches */

template <int D> static rq_status sweep(const rq_cuda_book_block &b, rq_cuda_stream stream) {
    const size_t bytes =
        (size_t)((b.u != NULL) + (b.t != NULL)) * BLOCK * BLOCK * sizeof(float) + sizeof(rq_lines_shared<D>);
    cudaError_t e = cudaFuncSetAttribute(rq_sweep_lines<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return rq_gemv_fail_cuda("rq_sweep_lines: shared memory", e);
    rq_sweep_lines<D><<<(unsigned)b.books.n_tile, RQ_LINES_THREADS, bytes, stream>>>(b);
    return rq_comp_launched("rq_sweep_lines");
}

template <int D> static rq_status descend(const rq_cuda_book_descent &d, rq_cuda_stream stream) {
    const size_t bytes = (size_t)BLOCK * BLOCK * sizeof(float) + sizeof(rq_lines_shared<D>);
    cudaError_t e = cudaFuncSetAttribute(rq_descend_lines<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return rq_gemv_fail_cuda("rq_descend_lines: shared memory", e);
    rq_descend_lines<D><<<(unsigned)d.books.n_tile, RQ_LINES_THREADS, bytes, stream>>>(d);
    return rq_comp_launched("rq_descend_lines");
}

static bool fits(const rq_cuda_books *k, int width) {
    return width >= 1 && width <= BLOCK && k->d >= 2 && k->d <= RQ_CUDA_BOOK_VEC && !k->signs && k->n_tile > 0;
}

static const char SIZES[] = "vectors down the outputs have 2 to 16 weights and no signs, a block of them has 1 to 128 "
                            "columns";

rq_status rq_cuda_sweep_lines(const rq_cuda_book_block *b, rq_cuda_stream stream) {
    if (!fits(&b->books, b->width)) return rq_gemv_fail(RQ_ERR_ARG, SIZES);
    return b->books.d <= 4 ? sweep<4>(*b, stream) : b->books.d <= 8 ? sweep<8>(*b, stream) : sweep<16>(*b, stream);
}

rq_status rq_cuda_descend_lines(const rq_cuda_book_descent *d, rq_cuda_stream stream) {
    if (!fits(&d->books, d->width)) return rq_gemv_fail(RQ_ERR_ARG, SIZES);
    return d->books.d <= 4   ? descend<4>(*d, stream)
           : d->books.d <= 8 ? descend<8>(*d, stream)
                             : descend<16>(*d, stream);
}
