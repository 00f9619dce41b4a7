/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernels of quantize_rows.cu (a row in registers) and quantize_rows_hadamard.cu (a row in shared memory) share: a job, 8 columns
 * of a row before they are quantized, reductions over a block of WARPS warps, codes. fmt_act.h is the definition. */
#ifndef RQ_QUANTIZE_ROWS_CUH
#define RQ_QUANTIZE_ROWS_CUH
#include "fmt_act.h"
#include "gemv_tile.cuh"

enum { CHUNK = 8, ROW_THREADS = 256 };
enum source { PLAIN, RMSNORM, SILU };

struct row_job {
    int8_t *q;
    float *scale;
    int32_t *sum;                  /* or NULL */
    const void *x, *second;        /* second: the residual, or the factors of SiLU */
    const void *weight;            /* of RMSNorm, or NULL */
    void *stream;                  /* where x + residual goes, or NULL */
    int64_t x_pitch, second_pitch; /* elements from row to row */
    int n_in;
    float eps;
    rq_act act;
    bool fixed, whole; /* whole: all rows are multiples of 16 bytes, and begin at such */
    const float *factor;
    rq_act_steps steps;
    int64_t q_pitch;  /* these in quantize_rows.cu alone */
    float *block_sum; /* q is e4m3: [128 columns][sum_pitch] */
    int64_t sum_pitch;
};

/* ---- 8 columns */

static __device__ __forceinline__ float value_of(rq_act act, uint32_t bits) {
    return act == RQ_ACT_F16 ? ptx_float_of_f16(bits) : __uint_as_float(bits << 16);
}
static __device__ __forceinline__ uint16_t bits_of(rq_act act, float v) {
    return act == RQ_ACT_F16 ? __half_as_ushort(__float2half_rn(v)) : __bfloat16_as_ushort(__float2bfloat16_rn(v));
}
/* Zeros past the end. */
static __device__ __forceinline__ void load(float (&v)[CHUNK], const row_job &job, const void *row_, int i) {
    const uint16_t *row = static_cast<const uint16_t *>(row_);
    if (job.whole) {
        const uint4 four = *reinterpret_cast<const uint4 *>(row + i);
        const uint32_t pair[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) v[k] = value_of(job.act, k % 2 ? pair[k / 2] >> 16 : pair[k / 2] & 0xffffu);
    } else {
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) v[k] = i + k < job.n_in ? value_of(job.act, row[i + k]) : 0.0f;
    }
}
static __device__ __forceinline__ void store(const row_job &job, void *row_, int i, const float (&v)[CHUNK]) {
    uint16_t *row = static_cast<uint16_t *>(row_);
    uint32_t pair[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) pair[k] = bits_of(job.act, v[2 * k]) | (uint32_t)bits_of(job.act, v[2 * k + 1]) << 16;
    if (job.whole)
        *reinterpret_cast<uint4 *>(row + i) = make_uint4(pair[0], pair[1], pair[2], pair[3]);
    else
#pragma unroll
        for (int k = 0; k < CHUNK; ++k)
            if (i + k < job.n_in) row[i + k] = (uint16_t)(pair[k / 2] >> 16 * (k % 2));
}
static __device__ __forceinline__ const void *row_of(const void *p, int64_t pitch) {
    return static_cast<const uint16_t *>(p) + blockIdx.x * pitch;
}

/* The columns as they are before RMSNorm's factors. AGAIN: for the second time, when the sum with the residual is there already. */
template <int SOURCE, bool AGAIN>
static __device__ __forceinline__ void read(float (&v)[CHUNK], const row_job &job, int i) {
    if (SOURCE == RMSNORM && AGAIN && job.stream) return load(v, job, row_of(job.stream, job.n_in), i);
    load(v, job, row_of(job.x, job.x_pitch), i);
    if (SOURCE == PLAIN || (SOURCE == RMSNORM && !job.second)) return;
    float u[CHUNK];
    load(u, job, row_of(job.second, job.second_pitch), i);
#pragma unroll
    for (int k = 0; k < CHUNK; ++k)
        v[k] = SOURCE == SILU ? __fmul_rn(rq_act_silu(v[k]), u[k]) : value_of(job.act, bits_of(job.act, v[k] + u[k]));
    if (SOURCE == RMSNORM && job.stream) store(job, const_cast<void *>(row_of(job.stream, job.n_in)), i, v);
}
static __device__ __forceinline__ void norm(float (&v)[CHUNK], const row_job &job, int i, float r) {
    float w[CHUNK];
    if (job.weight) load(w, job, job.weight, i);
#pragma unroll
    for (int k = 0; k < CHUNK; ++k) {
        v[k] = __fmul_rn(v[k], r);
        if (job.weight) v[k] = __fmul_rn(v[k], w[k]);
    }
}
static __device__ __forceinline__ int quotient(float v, float scale) {
    const float q = scale > 0.0f ? rintf(__fdiv_rn(v, scale)) : 0.0f;
    return (int)(q == q ? fminf(fmaxf(q, -127.0f), 127.0f) : 0.0f);
}

/* Factors of 8 columns, as far as there are any. */
static __device__ __forceinline__ void multiply(float (&v)[CHUNK], const row_job &job, int i) {
    if (!job.factor) return;
    float f[CHUNK] = {};
    if (job.whole) {
        const float4 low = *reinterpret_cast<const float4 *>(job.factor + i);
        const float4 high = *reinterpret_cast<const float4 *>(job.factor + i + 4);
        f[0] = low.x, f[1] = low.y, f[2] = low.z, f[3] = low.w, f[4] = high.x, f[5] = high.y, f[6] = high.z,
        f[7] = high.w;
    } else {
#pragma unroll
        for (int k = 0; k < CHUNK; ++k)
            if (i + k < job.n_in) f[k] = job.factor[i + k];
    }
#pragma unroll
    for (int k = 0; k < CHUNK; ++k) v[k] = __fmul_rn(v[k], f[k]);
}

/* ---- over the block, the result in all threads */

template <int WARPS> struct row_reduced {
    float most[WARPS];
    int sum[WARPS];
};
template <int WARPS> static __device__ __forceinline__ float largest(float mine, row_reduced<WARPS> &s) {
#pragma unroll
    for (int by = 16; by; by /= 2) mine = fmaxf(mine, __shfl_xor_sync(0xffffffffu, mine, by));
    if (threadIdx.x % 32 == 0) s.most[threadIdx.x / 32] = mine;
    __syncthreads();
    mine = s.most[threadIdx.x % WARPS];
#pragma unroll
    for (int by = WARPS / 2; by; by /= 2) mine = fmaxf(mine, __shfl_xor_sync(0xffffffffu, mine, by));
    return mine;
}
template <int WARPS>
static __device__ __forceinline__ void write_sum(const row_job &job, int mine, row_reduced<WARPS> &s) {
    mine = __reduce_add_sync(0xffffffffu, mine);
    if (threadIdx.x % 32 == 0) s.sum[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x != 0) return;
#pragma unroll
    for (int w = 1; w < WARPS; ++w) mine += s.sum[w];
    job.sum[blockIdx.x] = mine;
}

static_assert((int)ROW_THREADS * (int)CHUNK == (int)RQ_ACT_PARTIALS, "a thread has 8 of the partial sums");
struct row_sums {
    float partial[RQ_ACT_PARTIALS], again[ROW_THREADS];
};
/* rq_act_sum; mine[k] is partial sum 8 t + k of the first ROW_THREADS threads, what others have does not count. */
template <int THREADS> static __device__ __forceinline__ float sum_in_order(const float (&mine)[CHUNK], row_sums &s) {
    const int tid = threadIdx.x;
    const bool adds = THREADS == ROW_THREADS || tid < ROW_THREADS;
    float v[CHUNK];
    if (adds) {
#pragma unroll
        for (int k = 0; k < CHUNK; k += 4)
            ptx_store_shared16(ptx_shared(s.partial + tid * CHUNK + k),
                               make_uint4(__float_as_uint(mine[k]), __float_as_uint(mine[k + 1]),
                                          __float_as_uint(mine[k + 2]), __float_as_uint(mine[k + 3])));
    }
    __syncthreads();
    if (adds) {
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) v[k] = s.partial[tid + k * ROW_THREADS];
#pragma unroll
        for (int half = CHUNK / 2; half; half /= 2)
#pragma unroll
            for (int k = 0; k < half; ++k) v[k] += v[k + half];
        s.again[tid] = v[0];
    }
    __syncthreads();
    constexpr int warps = ROW_THREADS / 32;
#pragma unroll
    for (int k = 0; k < warps; ++k) v[k] = s.again[tid % 32 + k * 32];
#pragma unroll
    for (int half = warps / 2; half; half /= 2)
#pragma unroll
        for (int k = 0; k < half; ++k) v[k] += v[k + half];
#pragma unroll
    for (int by = 16; by; by /= 2) v[0] += __shfl_xor_sync(0xffffffffu, v[0], by);
    return v[0];
}
/* r of RMSNorm. */
template <int THREADS>
static __device__ __forceinline__ float one_over_rms(const row_job &job, const float (&square)[CHUNK], row_sums &s) {
    const float mean = __fdiv_rn(sum_in_order<THREADS>(square, s), (float)job.n_in);
    return __fdiv_rn(1.0f, __fsqrt_rn(mean + job.eps));
}

/* Of the largest numbers of the threads, which become code_most, or from where it is already. */
template <int WARPS>
static __device__ __forceinline__ float scale_of(const row_job &job, float most, row_reduced<WARPS> &s,
                                                 float code_most = 127.0f) {
    if (job.fixed) return job.scale[blockIdx.x];
    const float scale =
        job.steps.scale ? rq_act_step_scale(&job.steps, blockIdx.x) : __fdiv_rn(largest(most, s), code_most);
    if (threadIdx.x == 0) job.scale[blockIdx.x] = scale;
    return scale;
}

/* ---- host */

/* What is wrong with the arguments that all kernels have, and job->whole. */
rq_status rq_rows_check(row_job *job, int64_t n_tok);
rq_status rq_rows_launch(const void *kernel, void *job, int64_t n_tok, int threads, int shared_bytes, int early_launch,
                         rq_cuda_stream stream);
/* quantize_rows_hadamard.cu */
rq_status rq_rows_hadamard(row_job *job, source from, const rq_hadamard *h, int64_t n_tok, int early_launch,
                           rq_cuda_stream stream);
#endif
