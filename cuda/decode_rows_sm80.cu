/* SPDX-License-Identifier: Apache-2.0 */
/* Rows between the products of a decoder: the residual stream in fp32 with RMSNorm (rq_cuda_decode_norm), SiLU and product
 * (rq_cuda_decode_swiglu), a row for each token (rq_cuda_decode_repeat). One to sixteen tokens: a row of the norm has a block, whose threads keep 8 columns
 * in each 4,096 in registers from the first reading on. Sums are fp32: of a thread's columns, of a warp, of the warps, always in that order. Targets: sm_80 sm_90a. */
#include "decode.cuh"

enum { NORM_THREADS = 512, NORM_WARPS = NORM_THREADS / 32, NORM_STRIDE = NORM_THREADS * EIGHT, ROW_THREADS = 256 };
static_assert((int)RQ_DECODE_MAX_WIDTH == 4 * (int)NORM_STRIDE, "at most four pieces a thread");

/* ---- norm */

struct norm_job {
    void *h;
    int8_t *q;
    float *scale;
    int32_t *sum;
    const float *factor, *weight;
    float *stream;
    const void *add, *table;
    const rq_cuda_decode_state *state;
    int64_t n_row;
    int n, last_only;
    float eps;
    rq_ahead ahead;
};

static __device__ __forceinline__ float of_block(float mine, bool largest, float *warps) {
    mine = largest ? rq_warp_max(mine) : rq_warp_sum(mine);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
    __syncthreads();
    mine = threadIdx.x % 32 < NORM_WARPS ? warps[threadIdx.x % 32] : 0.0f;
    return largest ? rq_warp_max(mine) : rq_warp_sum(mine);
}

/* 8 columns of the stream, which is brought up to date. */
template <int ACT>
static __device__ __forceinline__ void stream_of(float (&v)[EIGHT], const norm_job &job, int64_t row, int i) {
    float *stream = job.stream + row * job.n + i;
    if (job.table) {
        const int64_t token = job.state->token[row];
        if (token >= 0 && token < job.n_row) {
            rq_load_eight<ACT>(v, job.table, token * job.n + i);
        } else {
#pragma unroll
            for (int k = 0; k < EIGHT; ++k) v[k] = rq_act_nan();
        }
    } else {
        rq_load_eight_floats(v, stream);
        if (!job.add) return;
        float add[EIGHT];
        rq_load_eight<ACT>(add, job.add, row * job.n + i);
#pragma unroll
        for (int k = 0; k < EIGHT; ++k) v[k] += add[k];
    }
    if (job.last_only) return;
    *reinterpret_cast<float4 *>(stream) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4 *>(stream + 4) = make_float4(v[4], v[5], v[6], v[7]);
}
static __device__ __forceinline__ void times(float (&v)[EIGHT], const float *factor, int i) {
    if (!factor) return;
    float f[EIGHT];
    rq_load_eight_floats(f, factor + i);
#pragma unroll
    for (int k = 0; k < EIGHT; ++k) v[k] = __fmul_rn(v[k], f[k]);
}
static __device__ __forceinline__ int quotient(float v, float scale) {
    const float q = scale > 0.0f ? rintf(__fdiv_rn(v, scale)) : 0.0f;
    return (int)(q == q ? fminf(fmaxf(q, -127.0f), 127.0f) : 0.0f);
}

template <int ACT, bool Q8, int PIECES>
__global__ void __launch_bounds__(NORM_THREADS) rq_decode_norm(const norm_job job) {
    __shared__ float warps[2][NORM_WARPS];
    __shared__ int sums[NORM_WARPS];
    float kept[PIECES][EIGHT];
    const int first = threadIdx.x * EIGHT;
    if (rq_asked_ahead(job.ahead, 0, 1)) return;
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    const int64_t to = blockIdx.x, row = job.last_only ? min(max(job.state->n, 1), (int)RQ_DECODE_MAX_TOK) - 1 : to;
    float square = 0.0f;
#pragma unroll
    for (int p = 0; p < PIECES; ++p) {
        const int i = first + p * NORM_STRIDE;
        if (i >= job.n) continue;
        stream_of<ACT>(kept[p], job, row, i);
#pragma unroll
        for (int k = 0; k < EIGHT; ++k) square = fmaf(kept[p][k], kept[p][k], square);
    }
    const float mean = __fdiv_rn(of_block(square, false, warps[0]), (float)job.n);
    const float r = __fdiv_rn(1.0f, __fsqrt_rn(mean + job.eps));
    float most = 0.0f;
#pragma unroll
    for (int p = 0; p < PIECES; ++p) {
        const int i = first + p * NORM_STRIDE;
        if (i >= job.n) continue;
#pragma unroll
        for (int k = 0; k < EIGHT; ++k) kept[p][k] = __fmul_rn(kept[p][k], r);
        times(kept[p], job.weight, i);
        if (Q8) {
            times(kept[p], job.factor, i);
#pragma unroll
            for (int k = 0; k < EIGHT; ++k) most = fmaxf(most, fabsf(kept[p][k]));
        } else {
            rq_store_eight<ACT>(job.h, to * job.n + i, kept[p]);
        }
    }
    if (!Q8) return;
    const float scale = __fdiv_rn(of_block(most, true, warps[1]), 127.0f);
    int sum = 0;
#pragma unroll
    for (int p = 0; p < PIECES; ++p) {
        const int i = first + p * NORM_STRIDE;
        if (i >= job.n) continue;
        uint2 codes = make_uint2(0, 0);
#pragma unroll
        for (int k = 0; k < EIGHT; ++k) {
            const int q = quotient(kept[p][k], scale);
            sum += q;
            (k < 4 ? codes.x : codes.y) |= ((uint32_t)q & 255u) << 8 * (k % 4);
        }
        *reinterpret_cast<uint2 *>(job.q + to * job.n + i) = codes;
    }
    sum = __reduce_add_sync(0xffffffffu, sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < NORM_WARPS; ++w) sum += sums[w];
    job.scale[to] = scale;
    if (job.sum) job.sum[to] = sum;
}

template <int ACT, bool Q8> static const void *norm_of(int64_t n) {
    if (n <= NORM_STRIDE) return (const void *)rq_decode_norm<ACT, Q8, 1>;
    return n <= 2 * NORM_STRIDE ? (const void *)rq_decode_norm<ACT, Q8, 2> : (const void *)rq_decode_norm<ACT, Q8, 4>;
}

rq_status rq_cuda_decode_norm(const rq_cuda_decode_norm_args *a, rq_cuda_stream stream) {
    if (!a || !a->stream || (a->h != NULL) == (a->q != NULL) || (a->q && !a->scale))
        return rq_gemv_fail(RQ_ERR_ARG, "a norm has a stream, and either h or q with scale");
    if ((a->add && a->table) || ((a->table || a->last_only) && !a->state))
        return rq_gemv_fail(RQ_ERR_ARG, "a norm adds or takes a table's rows, of which the state says which");
    if (!rq_is_act(a->act)) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "activations are fp16 or bf16");
    if (a->n < EIGHT || a->n > RQ_DECODE_MAX_WIDTH || a->n % EIGHT || a->n_tok < 1 || a->n_tok > RQ_DECODE_MAX_TOK)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "rows are multiples of 8 up to 16,384 columns, for 1 to 16 tokens");
    if (!rq_sixteen(a->h) || !rq_sixteen(a->q) || !rq_sixteen(a->stream) || !rq_sixteen(a->add) ||
        !rq_sixteen(a->table) || !rq_sixteen(a->weight) || !rq_sixteen(a->factor))
        return rq_gemv_fail(RQ_ERR_ARG, "rows begin at multiples of 16 bytes");
    norm_job job = {};
    job.h = a->h, job.q = a->q, job.scale = a->scale, job.sum = a->sum, job.factor = a->factor, job.weight = a->weight;
    job.stream = a->stream, job.add = a->add, job.table = a->table, job.state = a->state, job.n_row = a->n_row;
    job.n = (int)a->n, job.last_only = a->last_only, job.eps = a->eps;
    const void *kernel = a->act == RQ_ACT_F16
                             ? (a->q ? norm_of<RQ_ACT_F16, true>(a->n) : norm_of<RQ_ACT_F16, false>(a->n))
                         : a->q ? norm_of<RQ_ACT_BF16, true>(a->n)
                                : norm_of<RQ_ACT_BF16, false>(a->n);
    unsigned blocks = a->last_only ? 1u : (unsigned)a->n_tok;
    job.ahead = rq_ahead_of(&blocks, a->ahead, a->ahead_bytes, NORM_THREADS, 1);
    return rq_decode_launch(kernel, &job, dim3(blocks), NORM_THREADS, 0, a->early_launch, stream);
}

/* ---- SiLU and product */

struct pair_job {
    void *y;
    const void *gate, *up;
    int64_t pitch;
    int n;
    rq_ahead ahead;
};

template <int ACT> __global__ void __launch_bounds__(ROW_THREADS) rq_decode_swiglu(const pair_job job) {
    const int i = ((int)blockIdx.x * ROW_THREADS + (int)threadIdx.x) * EIGHT;
    const int64_t t = blockIdx.y;
    if (rq_asked_ahead(job.ahead, (int)blockIdx.y, (int)gridDim.y)) return;
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    if (i >= job.n) return;
    float gate[EIGHT], up[EIGHT];
    rq_load_eight<ACT>(gate, job.gate, t * job.pitch + i);
    rq_load_eight<ACT>(up, job.up, t * job.pitch + i);
#pragma unroll
    for (int k = 0; k < EIGHT; ++k) gate[k] = __fmul_rn(rq_act_silu(gate[k]), up[k]);
    rq_store_eight<ACT>(job.y, t * job.n + i, gate);
}

rq_status rq_cuda_decode_swiglu(const rq_cuda_decode_swiglu_args *a, rq_cuda_stream stream) {
    if (!a || !a->y || !a->gate || !a->up) return rq_gemv_fail(RQ_ERR_ARG, "y, gate or up is NULL");
    if (!rq_is_act(a->act)) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "activations are fp16 or bf16");
    if (a->n < EIGHT || a->n > 1 << 20 || a->n % EIGHT || a->pitch % EIGHT || a->pitch < a->n || a->n_tok < 1 ||
        a->n_tok > RQ_DECODE_MAX_TOK)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "rows are multiples of 8 up to 2^20 columns, for 1 to 16 tokens");
    if (!rq_sixteen(a->y) || !rq_sixteen(a->gate) || !rq_sixteen(a->up))
        return rq_gemv_fail(RQ_ERR_ARG, "rows begin at multiples of 16 bytes");
    pair_job job = {a->y, a->gate, a->up, a->pitch, (int)a->n, {}};
    dim3 grid((unsigned)((a->n / EIGHT + ROW_THREADS - 1) / ROW_THREADS), (unsigned)a->n_tok);
    job.ahead = rq_ahead_of(&grid.x, a->ahead, a->ahead_bytes, ROW_THREADS, a->n_tok);
    return rq_decode_launch(a->act == RQ_ACT_F16 ? (const void *)rq_decode_swiglu<RQ_ACT_F16>
                                                 : (const void *)rq_decode_swiglu<RQ_ACT_BF16>,
                            &job, grid, ROW_THREADS, 0, a->early_launch, stream);
}

/* ---- a row for each token */

struct repeat_job {
    uint16_t *y;
    const uint16_t *row;
    int n;
};

__global__ void __launch_bounds__(ROW_THREADS) rq_decode_repeat(const repeat_job job) {
    const int i = (int)blockIdx.x * ROW_THREADS + (int)threadIdx.x;
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    if (i < job.n) job.y[(int64_t)blockIdx.y * job.n + i] = job.row[i];
}

rq_status rq_cuda_decode_repeat(void *y, const void *row, int64_t n_tok, int64_t n, int early_launch,
                                rq_cuda_stream stream) {
    if (!y || !row) return rq_gemv_fail(RQ_ERR_ARG, "y or row is NULL");
    if (n < 1 || n > 1 << 24 || n_tok < 1 || n_tok > RQ_DECODE_MAX_TOK)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "rows have 1 to 2^24 columns, for 1 to 16 tokens");
    repeat_job job = {static_cast<uint16_t *>(y), static_cast<const uint16_t *>(row), (int)n};
    return rq_decode_launch((const void *)rq_decode_repeat, &job,
                            dim3((unsigned)((n + ROW_THREADS - 1) / ROW_THREADS), (unsigned)n_tok), ROW_THREADS, 0,
                            early_launch, stream);
}
