/* SPDX-License-Identifier: Apache-2.0 */
/* Rotary embedding (Su et al., arXiv:2104.09864) and causal attention with grouped key/value heads in fp32, in one pass over the keys with a running
 * maximum (Milakov and Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135):
 *
 *   out_i = sum over p <= first_pos + i of softmax_p(q_i . k_p / sqrt(head_dim)) v_p
 *
 * A block has ROWS queries of one head and goes through the keys ROWS at a time: scores, softmax, product with the values. Its 16 x 16 threads
 * have SIDE x SIDE scores each (thread (y, x): rows y SIDE + i, keys x + 16 j) and SIDE x DIM / 16 outputs. Keys and then values use the same
 * shared memory, so that a block of the widest heads fits into 99 KiB. Rows there are 4 floats longer than they need to be, which takes
 * 16 rows to other banks. Sums are in the order of the keys. Targets: sm_80 sm_90a. */
#include "comp_launch.cuh"
#include "rq_cuda_llama.h"

enum { THREADS = 256, SIDE_THREADS = 16 };

static __global__ void __launch_bounds__(RQ_COMP_ACROSS)
    rq_rope(float *x, const float *table, int64_t n_pos, int64_t n_head, int64_t half) {
    const int64_t e = rq_comp_col(), t = blockIdx.x;
    if (e >= n_head * half) return;
    const int64_t head = e / half, i = e % half;
    const float *row = table + t % n_pos * 2 * half;
    const float c = row[i], s = row[half + i];
    float *a = x + (t * n_head + head) * 2 * half + i, *b = a + half;
    const float p = *a, q = *b;
    *a = __fmul_rn(p, c) - __fmul_rn(q, s); /* three roundings, as on the host */
    *b = __fmul_rn(q, c) + __fmul_rn(p, s);
}

/* Rows r0 .. of a matrix whose row r starts at from + r * pitch, into shared memory; zeros past n_row and past head_dim. */
template <int DIM, int ROWS>
static __device__ __forceinline__ void load_rows(float *to, const float *from, int64_t pitch, int64_t n_row,
                                                 int head_dim) {
    constexpr int PITCH = DIM + 4;
    for (int e = threadIdx.x; e < ROWS * DIM; e += THREADS) {
        const int r = e / DIM, d = e % DIM;
        to[r * PITCH + d] = r < n_row && d < head_dim ? from[r * pitch + d] : 0.0f;
    }
}

static __device__ __forceinline__ void load_vector(float (&v)[4], const float *from) {
    const float4 four = *reinterpret_cast<const float4 *>(from);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}
static __device__ __forceinline__ void load_vector(float (&v)[2], const float *from) {
    const float2 two = *reinterpret_cast<const float2 *>(from);
    v[0] = two.x, v[1] = two.y;
}

/* Over the 16 threads that share rows. */
static __device__ __forceinline__ float row_max(float v) {
#pragma unroll
    for (int by = 8; by; by /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, by));
    return v;
}
static __device__ __forceinline__ float row_sum(float v) {
#pragma unroll
    for (int by = 8; by; by /= 2) v += __shfl_xor_sync(0xffffffffu, v, by);
    return v;
}

/* Thread (y, x): query rows y SIDE + i times key rows x + 16 j. */
template <int DIM, int SIDE>
static __device__ __forceinline__ void tile_scores(float (&s)[SIDE][SIDE], const float *q, const float *kv, int x,
                                                   int y) {
    constexpr int PITCH = DIM + 4;
#pragma unroll
    for (int i = 0; i < SIDE; ++i)
#pragma unroll
        for (int j = 0; j < SIDE; ++j) s[i][j] = 0.0f;
#pragma unroll 4
    for (int d = 0; d < DIM; d += 4) {
        float4 at[SIDE], of[SIDE];
#pragma unroll
        for (int i = 0; i < SIDE; ++i) {
            at[i] = *reinterpret_cast<const float4 *>(q + (y * SIDE + i) * PITCH + d);
            of[i] = *reinterpret_cast<const float4 *>(kv + (x + i * SIDE_THREADS) * PITCH + d);
        }
#pragma unroll
        for (int i = 0; i < SIDE; ++i)
#pragma unroll
            for (int j = 0; j < SIDE; ++j)
                s[i][j] = fmaf(at[i].w, of[j].w,
                               fmaf(at[i].z, of[j].z, fmaf(at[i].y, of[j].y, fmaf(at[i].x, of[j].x, s[i][j]))));
    }
}

template <int DIM, int ROWS>
static __global__ void __launch_bounds__(THREADS) rq_attend(const rq_cuda_attention a, float scale) {
    constexpr int PITCH = DIM + 4, SIDE = ROWS / SIDE_THREADS, P_PITCH = ROWS + 4;
    constexpr int VEC = DIM >= 64 ? 4 : 2, CHUNKS = DIM / (SIDE_THREADS * VEC);
    extern __shared__ __align__(16) float shared[];
    float *const q = shared, *const kv = q + ROWS * PITCH, *const p = kv + ROWS * PITCH;
    const int x = threadIdx.x % SIDE_THREADS, y = threadIdx.x / SIDE_THREADS, head_dim = (int)a.head_dim;
    /* The last queries see the most keys: their blocks go first. */
    const int64_t i0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y, seq = blockIdx.z;
    const int64_t width = a.n_head * a.head_dim, n_q = a.n_q - i0 < ROWS ? a.n_q - i0 : (int64_t)ROWS;
    const int64_t q_at = (seq * a.n_q + i0) * width + head * a.head_dim;
    const int64_t kv_at = seq * a.kv_seq + head / (a.n_head / a.n_kv_head) * a.kv_head;
    const int64_t n_key = a.first_pos + i0 + n_q; /* of the block's last query */
    load_rows<DIM, ROWS>(q, a.q + q_at, width, n_q, head_dim);
    float most[SIDE], sum[SIDE], out[SIDE][CHUNKS * VEC] = {};
#pragma unroll
    for (int i = 0; i < SIDE; ++i) most[i] = -INFINITY, sum[i] = 0.0f;

    for (int64_t k0 = 0; k0 < n_key; k0 += ROWS) {
        __syncthreads();
        load_rows<DIM, ROWS>(kv, a.k + kv_at + k0 * a.kv_pos, a.kv_pos, n_key - k0, head_dim);
        __syncthreads();
        float s[SIDE][SIDE];
        tile_scores<DIM, SIDE>(s, q, kv, x, y);
#pragma unroll
        for (int i = 0; i < SIDE; ++i) {
            const int64_t sees = a.first_pos + i0 + y * SIDE + i - k0; /* the last key of these that the query sees */
            float top = most[i];
#pragma unroll
            for (int j = 0; j < SIDE; ++j) {
                s[i][j] = x + j * SIDE_THREADS <= sees ? s[i][j] * scale : -INFINITY;
                top = fmaxf(top, s[i][j]);
            }
            top = row_max(top); /* finite: all queries see key 0, which is among the first */
            const float before = exp2f(most[i] - top);
            float of_keys = 0.0f;
#pragma unroll
            for (int j = 0; j < SIDE; ++j) {
                const float e = exp2f(s[i][j] - top);
                of_keys += e;
                p[(y * SIDE + i) * P_PITCH + x + j * SIDE_THREADS] = e;
            }
            sum[i] = sum[i] * before + row_sum(of_keys);
            most[i] = top;
#pragma unroll
            for (int c = 0; c < CHUNKS * VEC; ++c) out[i][c] *= before;
        }
        __syncthreads();
        load_rows<DIM, ROWS>(kv, a.v + kv_at + k0 * a.kv_pos, a.kv_pos, n_key - k0, head_dim);
        __syncthreads();
        for (int key = 0; key < ROWS; key += 4) {
            float4 share[SIDE];
#pragma unroll
            for (int i = 0; i < SIDE; ++i)
                share[i] = *reinterpret_cast<const float4 *>(p + (y * SIDE + i) * P_PITCH + key);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
#pragma unroll
                for (int c = 0; c < CHUNKS; ++c) {
                    float v[VEC];
                    load_vector(v, kv + (key + k) * PITCH + (c * SIDE_THREADS + x) * VEC);
#pragma unroll
                    for (int i = 0; i < SIDE; ++i) {
                        const float by = k == 0 ? share[i].x : k == 1 ? share[i].y : k == 2 ? share[i].z : share[i].w;
#pragma unroll
                        for (int e = 0; e < VEC; ++e) out[i][c * VEC + e] = fmaf(by, v[e], out[i][c * VEC + e]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
        const int r = y * SIDE + i;
        if (r >= n_q) continue;
        const float inv = 1.0f / sum[i];
#pragma unroll
        for (int c = 0; c < CHUNKS * VEC; ++c) {
            const int d = (c / VEC * SIDE_THREADS + x) * VEC + c % VEC;
            if (d < head_dim) a.out[q_at + r * width + d] = out[i][c] * inv;
        }
        if (a.lse && x == 0) a.lse[(seq * a.n_q + i0 + r) * a.n_head + head] = (most[i] + log2f(sum[i])) * 0.693147181f;
    }
}

/* by_head[seq][head][key] = sum over queries of softmax, from a.lse. A block has ROWS keys of one head and goes through the queries that see them. */
template <int DIM, int ROWS>
static __global__ void __launch_bounds__(THREADS) rq_received(double *by_head, const rq_cuda_attention a, float scale) {
    constexpr int PITCH = DIM + 4, SIDE = ROWS / SIDE_THREADS;
    extern __shared__ __align__(16) float shared[];
    __shared__ double part[SIDE_THREADS][ROWS];
    float *const q = shared, *const kv = q + ROWS * PITCH;
    const int x = threadIdx.x % SIDE_THREADS, y = threadIdx.x / SIDE_THREADS, head_dim = (int)a.head_dim;
    const int64_t k0 = (int64_t)blockIdx.x * ROWS, head = blockIdx.y, seq = blockIdx.z, width = a.n_head * a.head_dim;
    const int64_t kv_at = seq * a.kv_seq + head / (a.n_head / a.n_kv_head) * a.kv_head + k0 * a.kv_pos;
    load_rows<DIM, ROWS>(kv, a.k + kv_at, a.kv_pos, a.n_q - k0, head_dim);
    double sum[SIDE] = {};
    for (int64_t i0 = k0; i0 < a.n_q; i0 += ROWS) {
        __syncthreads();
        load_rows<DIM, ROWS>(q, a.q + (seq * a.n_q + i0) * width + head * a.head_dim, width, a.n_q - i0, head_dim);
        __syncthreads();
        float s[SIDE][SIDE], of_tile[SIDE] = {};
        tile_scores<DIM, SIDE>(s, q, kv, x, y);
#pragma unroll
        for (int i = 0; i < SIDE; ++i) {
            const int64_t query = i0 + y * SIDE + i;
            const float lse = query < a.n_q ? a.lse[(seq * a.n_q + query) * a.n_head + head] * 1.44269504f : 0.0f;
#pragma unroll
            for (int j = 0; j < SIDE; ++j) {
                const bool sees = query < a.n_q && k0 + x + j * SIDE_THREADS <= query;
                of_tile[j] += sees ? exp2f(s[i][j] * scale - lse) : 0.0f;
            }
        }
#pragma unroll
        for (int j = 0; j < SIDE; ++j) sum[j] += (double)of_tile[j];
    }
#pragma unroll
    for (int j = 0; j < SIDE; ++j) part[y][x + j * SIDE_THREADS] = sum[j];
    __syncthreads();
    if (threadIdx.x >= ROWS || k0 + threadIdx.x >= a.n_q) return;
    double all = 0;
#pragma unroll
    for (int k = 0; k < SIDE_THREADS; ++k) all += part[k][threadIdx.x];
    by_head[(seq * a.n_head + head) * a.n_q + k0 + threadIdx.x] = all;
}

static __global__ void __launch_bounds__(RQ_COMP_ACROSS)
    rq_sum_heads(float *received, const double *by_head, int64_t n_head, int64_t n_q) {
    const int64_t key = rq_comp_col(), seq = blockIdx.x;
    if (key >= n_q) return;
    double sum = 0;
    for (int64_t h = 0; h < n_head; ++h) sum += by_head[(seq * n_head + h) * n_q + key];
    received[seq * n_q + key] = (float)sum;
}

static dim3 grid_of(const rq_cuda_attention *a, int rows) {
    return dim3((unsigned)((a->n_q + rows - 1) / rows), (unsigned)a->n_head, (unsigned)a->n_seq);
}
/* Scores are in powers of two. */
static float scale_of(const rq_cuda_attention *a) { return (float)(1.4426950408889634 / sqrt((double)a->head_dim)); }

template <int DIM, int ROWS>
static rq_status launch(const rq_cuda_attention *a, double *by_head, rq_cuda_stream stream) {
    const int tiles = 2 * ROWS * (DIM + 4), shared = (tiles + (by_head ? 0 : ROWS * (ROWS + 4))) * (int)sizeof(float);
    const void *kernel = by_head ? (const void *)rq_received<DIM, ROWS> : (const void *)rq_attend<DIM, ROWS>;
    const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (e != cudaSuccess) return rq_gemv_fail_cuda("cudaFuncSetAttribute", e);
    if (by_head)
        rq_received<DIM, ROWS><<<grid_of(a, ROWS), THREADS, shared, stream>>>(by_head, *a, scale_of(a));
    else
        rq_attend<DIM, ROWS><<<grid_of(a, ROWS), THREADS, shared, stream>>>(*a, scale_of(a));
    return rq_comp_launched(by_head ? "rq_received" : "rq_attend");
}

rq_status rq_cuda_rope(float *x, const float *table, int64_t n_tok, int64_t n_pos, int64_t n_head, int64_t head_dim,
                       rq_cuda_stream stream) {
    rq_rope<<<rq_comp_rows(n_head * (head_dim / 2), n_tok), RQ_COMP_ACROSS, 0, stream>>>(x, table, n_pos, n_head,
                                                                                         head_dim / 2);
    return rq_comp_launched("rq_rope");
}

/* by_head NULL: attention itself. */
static rq_status run(const rq_cuda_attention *a, double *by_head, rq_cuda_stream stream) {
    if (a->n_kv_head < 1 || a->n_head % a->n_kv_head)
        return rq_gemv_fail(RQ_ERR_ARG, "the heads of keys do not divide the heads of queries");
    if (a->head_dim < 1 || a->head_dim > RQ_LLAMA_MAX_HEAD)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "attention has heads of 1 to 256");
    if (a->n_seq < 1 || a->n_q < 1) return RQ_OK;
    if (a->n_seq > 65535 || a->n_head > 65535)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "attention has up to 65,535 heads, and as many sequences");
    if (a->head_dim <= 32) return launch<32, 64>(a, by_head, stream);
    if (a->head_dim <= 64) return launch<64, 64>(a, by_head, stream);
    if (a->head_dim <= 128) return launch<128, 64>(a, by_head, stream);
    return launch<256, 32>(a, by_head, stream);
}

rq_status rq_cuda_attend(const rq_cuda_attention *a, rq_cuda_stream stream) { return run(a, NULL, stream); }

rq_status rq_cuda_attend_received(float *received, double *by_head, const rq_cuda_attention *a, rq_cuda_stream stream) {
    if (!a->lse || a->first_pos)
        return rq_gemv_fail(RQ_ERR_ARG, "what tokens receive is summed from lse, over whole sequences");
    const rq_status s = run(a, by_head, stream);
    if (s != RQ_OK || a->n_seq < 1 || a->n_q < 1) return s;
    rq_sum_heads<<<rq_comp_rows(a->n_q, a->n_seq), RQ_COMP_ACROSS, 0, stream>>>(received, by_head, a->n_head, a->n_q);
    return rq_comp_launched("rq_sum_heads");
}
