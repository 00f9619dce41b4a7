/* SPDX-License-Identifier: Apache-2.0 */
/* Refinement of codebook codes after the sweep (docs/methods.md, "Refinement of codes, scales and codebooks"; host/comp_refine_book.c and host/comp_refit_book.c
 * are the same on the CPU), on J = tr((Q - goal) H (Q - goal)^T) with G = (Q - goal) H:
 *
 *   codes      one kernel a block of columns. The best values of a vector given all else are q_b - G_b H_bb^-1, a code costs (q - t) H_bb (q - t)^T: the search
 *              of comp_book_pick.cuh. Taken where J falls, which fp64 says. The block of H is in shared memory, G moves as W does in the sweep.
 *   scales     a warp a row: slope and curvature in fp64.
 *   codebooks  what conjugate gradients need: S v looked up, a thread a weight; S^T h added up, a warp a run of lines, a lane a component of a stage, one
 *              vector after the other into sums of its own, and those in order. No atomics.
 *
 * Codes and scales are of vectors along the inputs (comp_lines_sm80.cu has those of the other axis), codebooks of either.
 * Targets: sm_80 sm_90a. */
#include <cuda_fp16.h>

#include "comp_book_warp.cuh"

enum { BLOCK = RQ_COMP_BLOCK, THREADS = 256, SHARED_SUMS = 64 << 10 };

/* ---- codes */

template <int D> struct descent_shared {
    rq_warp_shared<D> warp; /* w is G */
    float inverse[D][D];
};

/* Whether the change delta lowers J, in all lanes of the row: delta (2 G + delta H_bb) is less than what rounding may leave. */
template <int D>
static __device__ __forceinline__ bool lowers(const float (*h)[BLOCK], int at, int width, float delta, float g) {
    const int r = threadIdx.x % D;
    double hd = 0;
#pragma unroll
    for (int k = 0; k < D; ++k) {
        const float other = __shfl_sync(RQ_ALL, delta, k, D);
        if (at + k < width && at + r < width) hd += (double)h[at + r][at + k] * (double)other;
    }
    double change = (double)delta * (2 * (double)g + hd), size = fabs((double)delta * (2 * (double)g));
#pragma unroll
    for (int k = D / 2; k > 0; k /= 2) {
        change += __shfl_xor_sync(RQ_ALL, change, k);
        size += __shfl_xor_sync(RQ_ALL, size, k);
    }
    return change < -1e-6 * size;
}

/* The change of this lane's component of one vector. */
template <int D, bool SIGNS>
static __device__ __forceinline__ float descend_vector(const rq_cuda_book_descent &d, descent_shared<D> &m,
                                                       const float (*h)[BLOCK], const rq_cuda_span &s, int at,
                                                       int64_t row, float q, float g, float scale) {
    const int r = threadIdx.x % D;
    const bool has = s.lanes >> r & 1;
    float step = 0;
#pragma unroll
    for (int k = 0; k < D; ++k) step = fmaf(__shfl_sync(RQ_ALL, g, k, D), m.inverse[k][r], step);
    const rq_picked<D> p = rq_pick<D, SIGNS>(d.books, m.warp.pick, s.which, false, has ? q - step : 0.0f, scale);
    const unsigned signs = __ballot_sync(RQ_ALL, p.negative) >> (threadIdx.x % 32 - r) & ((1u << D) - 1);
    const float delta = has ? p.q - q : 0.0f;
    if (!lowers<D>(h, at, d.width, delta, g)) return 0;
    if (row < d.books.n_out && r == 0) {
        rq_cuda_vec_code *c = &d.books.code[row * d.books.n_vec + s.vec];
        c->code[0] = (uint16_t)p.code[0];
        c->code[1] = (uint16_t)p.code[1];
        c->negative = (uint16_t)signs;
    }
    return delta;
}

template <int D, bool SIGNS>
static __global__ void __launch_bounds__(rq_shape<D>::WARPS * 32, 1) rq_descend_books(const rq_cuda_book_descent d) {
    enum { ROWS = rq_shape<D>::ROWS, WARPS = rq_shape<D>::WARPS };
    extern __shared__ __align__(16) float shared[];
    float(*h)[BLOCK] = reinterpret_cast<float(*)[BLOCK]>(shared);
    descent_shared<D> &m = reinterpret_cast<descent_shared<D> *>(h + BLOCK)[threadIdx.x / 32];
    const rq_cuda_books &k = d.books;
    for (int i = threadIdx.x; i < BLOCK * BLOCK; i += WARPS * 32) {
        const int r = i / BLOCK, c = i % BLOCK;
        h[r][c] = r < d.width && c < d.width ? d.h[(d.col0 + r) * k.n + d.col0 + c] : 0.0f;
    }
    __syncthreads();
    const int lane = threadIdx.x % 32, r = lane % D;
    const int64_t row0 = ((int64_t)blockIdx.x * WARPS + threadIdx.x / 32) * ROWS, row = row0 + lane / D;
    if (row0 >= k.n_out) return;
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
        for (int c = lane; c < BLOCK; c += 32)
            m.warp.w[i][c] = row0 + i < k.n_out && c < d.width ? d.g[(row0 + i) * k.n + d.col0 + c] : 0.0f;
    for (int i = 0; i < d.n_span; ++i) {
        const rq_cuda_span s = d.span[i];
        const int at = s.col - (int)d.col0, c = at + r;
        const bool has = s.lanes >> r & 1, real = has && row < k.n_out;
        const float q = real ? d.q[row * k.n + s.col + r] : 0.0f;
        float delta;
        if (s.vec >= 0) {
            rq_metric_part<D> metric, inverse;
            const float scale = row < k.n_out ? k.scale[row * k.n_group + (int64_t)s.vec * k.d / k.group] : 0.0f;
            metric.load(d.metric + (int64_t)s.vec * k.d * k.d, k.d, false);
            inverse.load(d.inverse + (int64_t)s.vec * k.d * k.d, k.d, false);
            metric.store(m.warp.pick);
            inverse.copy(m.inverse);
            __syncwarp();
            const float g = has ? m.warp.w[lane / D][c] : 0.0f;
            delta = descend_vector<D, SIGNS>(d, m, h, s, at, row, q, g, scale);
        } else { /* the exact minimum along this coordinate, always taken */
            __syncwarp();
            const int o = -1 - s.vec;
            const float step = row < k.n_out ? k.step[k.matrix[row] * k.n_outlier + o] : 1.0f;
            const float v = rq_nearest_step(q - (has ? __fdiv_rn(m.warp.w[lane / D][c], h[at][at]) : 0.0f), step);
            delta = real ? step * v - q : 0.0f;
            if (real) k.outlier[row * k.n_outlier + o] = (int8_t)(int)v;
        }
        if (real) d.delta[row * BLOCK + c] = delta;
        m.warp.x[lane] = -delta;
        __syncwarp();
        rq_propagate<D, false>(m.warp, h, NULL, s.lanes, at);
    }
}

template <int D, bool SIGNS> static rq_status descend(const rq_cuda_book_descent &d, rq_cuda_stream stream) {
    enum { ROWS = rq_shape<D>::ROWS, WARPS = rq_shape<D>::WARPS };
    const size_t bytes = (size_t)BLOCK * BLOCK * sizeof(float) + (size_t)WARPS * sizeof(descent_shared<D>);
    cudaError_t e =
        cudaFuncSetAttribute(rq_descend_books<D, SIGNS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return rq_gemv_fail_cuda("rq_descend_books: shared memory", e);
    const int64_t rows = ROWS * WARPS;
    rq_descend_books<D, SIGNS><<<(unsigned)((d.books.n_out + rows - 1) / rows), WARPS * 32, bytes, stream>>>(d);
    return rq_comp_launched("rq_descend_books");
}

rq_status rq_cuda_descend_books(const rq_cuda_book_descent *d, rq_cuda_stream stream) {
    const int len = d->books.d;
    if (d->width < 1 || d->width > BLOCK || len < 2 || len > RQ_CUDA_BOOK_VEC || (d->books.signs && len > 8))
        return rq_gemv_fail(RQ_ERR_ARG,
                            "a block of the descent has 1 to 128 columns, a vector 2 to 16, with signs 2 to 8");
    if (d->books.signs) return len <= 4 ? descend<4, true>(*d, stream) : descend<8, true>(*d, stream);
    if (len <= 4) return descend<4, false>(*d, stream);
    return len <= 8 ? descend<8, false>(*d, stream) : descend<16, false>(*d, stream);
}

/* ---- what codes stand for */

/* What a vector is made of: its code and codebook, and its scale and bias, down the outputs those of its column in the matrix of row `row`. */
struct parts {
    rq_cuda_vec_code code;
    int64_t which;
    float scale, bias;
};

static __device__ __forceinline__ parts parts_of(const rq_cuda_books &b, int64_t vec_per_book, int64_t line,
                                                 int64_t vec, int64_t row) {
    const rq_cuda_vec_code code = b.code[line * b.n_vec + vec];
    if (!b.bias) return {code, vec / vec_per_book, b.scale[row * b.n_group + vec * b.d / b.group], 0.0f};
    const int64_t column = b.matrix[row] * b.n + vec;
    return {code, b.book_of[vec], b.scale[column], b.bias[column]};
}

static __global__ void __launch_bounds__(RQ_COMP_ACROSS)
    rq_expand_books(float *q, const rq_cuda_books b, const int32_t *kept, int64_t vec_per_book, int64_t n_book,
                    rq_cuda_expand what, const double *v) {
    const int64_t j = rq_comp_col(), row = blockIdx.x;
    if (j >= b.n) return;
    const int o = kept[j];
    float *to = q + row * b.n + j;
    if (o >= 0) {
        *to = what == RQ_EXPAND_VALUE
                  ? b.step[b.matrix[row] * b.n_outlier + o] * (float)b.outlier[row * b.n_outlier + o]
                  : 0.0f;
        return;
    }
    const bool out = b.bias != NULL;
    const int64_t line = out ? b.row_line[row] : row, vec = out ? j : j / b.d,
                  e = out ? row - b.line_row[line] : j % b.d;
    const parts p = parts_of(b, vec_per_book, line, vec, row);
    const bool negative = p.code.negative >> e & 1;
    if (what == RQ_EXPAND_DIRECTION) {
        double sum = v[(p.which * b.k[0] + p.code.code[0]) * b.d + e];
        if (b.n_stage > 1) sum += v[(n_book * b.k[0] + p.which * b.k[1] + p.code.code[1]) * b.d + e];
        *to = p.scale * (float)(negative ? -sum : sum);
        return;
    }
    float sum = b.table[0][(p.which * b.d + e) * b.k_pad[0] + p.code.code[0]];
    if (negative) sum = -sum;
    if (b.n_stage > 1) sum += b.table[1][(p.which * b.d + e) * b.k_pad[1] + p.code.code[1]];
    const float scaled = __fmul_rn(p.scale, sum); /* and the bias not fused to it: the CPU's bytes */
    *to = what == RQ_EXPAND_RAW ? sum : out ? __fadd_rn(scaled, p.bias) : scaled;
}

rq_status rq_cuda_expand_books(float *q, const rq_cuda_books *b, const int32_t *kept, int64_t vec_per_book,
                               int64_t n_book, rq_cuda_expand what, const double *v, rq_cuda_stream stream) {
    rq_expand_books<<<rq_comp_rows(b->n, b->n_out), RQ_COMP_ACROSS, 0, stream>>>(q, *b, kept, vec_per_book, n_book,
                                                                                 what, v);
    return rq_comp_launched("rq_expand_books");
}

/* ---- sums over the members of entries */

static __global__ void __launch_bounds__(32)
    rq_sum_books(const rq_cuda_book_sums s, const rq_cuda_books b, int in_shared) {
    extern __shared__ __align__(8) double shared_sums[];
    const int64_t line0 = b.n_line * blockIdx.x / s.n_part, line1 = b.n_line * (blockIdx.x + 1) / s.n_part;
    const int lane = threadIdx.x, stage = lane / b.d, e = lane % b.d;
    const bool out = b.bias != NULL;
    double *part = s.part + (int64_t)blockIdx.x * s.n_entry, *to = in_shared ? shared_sums : part;
    for (int64_t i = lane; i < s.n_entry; i += 32) to[i] = 0;
    __syncwarp();
    const int64_t first = stage == 1 ? s.n_book * b.k[0] : 0;
    const int k = stage == 1 ? b.k[1] : b.k[0];
    for (int64_t line = line0; line < line1; ++line) {
        const int64_t row = out ? b.line_row[line] + e : line;
        if (stage >= b.n_stage || (out && row >= b.line_row[line + 1])) continue;
        for (int64_t vec = 0; vec < b.n_vec; ++vec) {
            const int64_t j = out ? vec : vec * b.d + e;
            if (j >= b.n || s.kept[j] >= 0) continue;
            const parts p = parts_of(b, s.vec_per_book, line, vec, row);
            const double scale = (double)p.scale;
            double v = scale * (double)(s.h ? s.h[row * b.n + j] : 0.0f);
            if (p.code.negative >> e & 1) v = -v;
            if (!s.h) v = scale * scale * (double)s.hd[j * (b.n + 1)];
            const int code = stage == 1 ? p.code.code[1] : p.code.code[0];
            to[(first + p.which * k + code) * b.d + e] += v;
        }
    }
    __syncwarp();
    for (int64_t i = lane; i < s.n_entry && in_shared; i += 32) part[i] = to[i];
}

rq_status rq_cuda_sum_books(const rq_cuda_book_sums *s, const rq_cuda_books *b, rq_cuda_stream stream) {
    const int64_t bytes = s->n_entry * (int64_t)sizeof(double);
    const int in_shared = bytes <= SHARED_SUMS;
    cudaError_t e = cudaFuncSetAttribute(rq_sum_books, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_SUMS);
    if (e != cudaSuccess) return rq_gemv_fail_cuda("rq_sum_books: shared memory", e);
    rq_sum_books<<<(unsigned)s->n_part, 32, in_shared ? (size_t)bytes : 0, stream>>>(*s, *b, in_shared);
    rq_status status = rq_comp_launched("rq_sum_books");
    return status == RQ_OK ? rq_cuda_total(s->sum, s->part, s->n_entry, s->n_part, stream) : status;
}

/* ---- scales */

/* The stored type of a scale. */
static __device__ __forceinline__ float round_scale(float s, float unit) {
    const float v = s * unit;
    return __fdiv_rn(__half2float(__float2half_rn(v > 65504.0f ? 65504.0f : v)), unit);
}

static __global__ void __launch_bounds__(THREADS)
    rq_refit_book_scales(float *scale, float *g, const float *v, const float *vh, const rq_cuda_books b, int64_t which,
                         float unit) {
    const int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32, c0 = which * b.group;
    const int lane = threadIdx.x % 32;
    if (row >= b.n_out) return;
    const int64_t c1 = c0 + b.group < b.n ? c0 + b.group : b.n;
    double slope = 0, curve = 0;
    for (int64_t j = c0 + lane; j < c1; j += 32) {
        slope += (double)v[row * b.n + j] * (double)g[row * b.n + j];
        curve += (double)v[row * b.n + j] * (double)vh[row * b.n + j];
    }
#pragma unroll
    for (int k = 16; k > 0; k /= 2) {
        slope += __shfl_xor_sync(RQ_ALL, slope, k);
        curve += __shfl_xor_sync(RQ_ALL, curve, k);
    }
    const float was = scale[row * b.n_group + which];
    if (!(curve > 0) || !(was > 0)) return;
    double wanted = (double)was - slope / curve;
    wanted = fmin(fmax(wanted, 0.5 * (double)was), 2 * (double)was);
    const float now = round_scale((float)wanted, unit), step = now - was;
    if (!(now > 0) || !((double)step * (2 * slope + (double)step * curve) < 0)) return;
    __syncwarp();
    if (lane == 0) scale[row * b.n_group + which] = now;
    for (int64_t j = lane; j < b.n; j += 32) g[row * b.n + j] += step * vh[row * b.n + j];
}

rq_status rq_cuda_refit_book_scales(float *scale, float *g, const float *v, const float *vh, const rq_cuda_books *b,
                                    int64_t which, float unit, rq_cuda_stream stream) {
    const int64_t rows = THREADS / 32;
    rq_refit_book_scales<<<(unsigned)((b->n_out + rows - 1) / rows), THREADS, 0, stream>>>(scale, g, v, vh, *b, which,
                                                                                           unit);
    return rq_comp_launched("rq_refit_book_scales");
}
