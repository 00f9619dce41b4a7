/* SPDX-License-Identifier: Apache-2.0 */
/* Activations as int8 with a scale and a sum a row, or as e4m3 with a scale a row and sums of 128 columns, in one kernel with what comes before: nothing (rq_cuda_quantize_rows), RMSNorm with the
 * residual's sum (rq_cuda_rmsnorm_quantize), SiLU and product (rq_cuda_silu_quantize). fmt_act.h is the definition, and its roundings are
 * kept, so that a CPU gets the same bytes.
 *
 * A block has a row. Thread t takes columns 8 t .. 8 t + 7, then those 2048 further, and keeps them in registers from the first reading to the
 * quotients; rows of more than CHUNKS x 2048 columns are read again, from L2. The sum of squares goes the way of fmt_act.h: what a
 * thread adds up are 8 of its partial sums, shared memory brings those that are 256 apart together, then those 32 apart, a shuffle the
 * rest. Targets: sm_80 sm_90a. */
#include "fmt_act.h"
#include "gemv_tile.cuh"

enum { ROW_THREADS = 256, ROW_WARPS = ROW_THREADS / 32, CHUNK = 8, STRIDE = ROW_THREADS * CHUNK };
static_assert((int)STRIDE == (int)RQ_ACT_PARTIALS, "a thread has 8 of the partial sums");
enum source { PLAIN, RMSNORM, SILU };

struct row_job {
    uint8_t *q;
    float *scale;
    int32_t *sum;                           /* or NULL */
    float *block_sum;                       /* of e4m3 */
    const void *x, *second;                 /* second: the residual, or the factors of SiLU */
    const void *weight;                     /* of RMSNorm, or NULL */
    void *stream;                           /* where x + residual goes, or NULL */
    int64_t x_pitch, second_pitch, q_pitch; /* elements from row to row */
    int64_t sum_pitch;                      /* of block_sum, from 128 columns to the next */
    int n_in;
    float eps;
    rq_act act;
    bool fixed, whole; /* whole: all rows are multiples of 16 bytes, and begin at such */
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

template <bool E4M3> static __device__ __forceinline__ uint32_t code_of(float v, float scale) {
    return E4M3 ? rq_act_e4m3(v, scale) : (uint32_t)quotient(v, scale) & 255u;
}
template <bool E4M3> static __device__ __forceinline__ int sum_of(uint32_t code) {
    return E4M3 ? rq_e4m3_units((uint8_t)code) : (int)(int8_t)code;
}

/* The codes of 8 columns, and their sum. */
template <bool E4M3>
static __device__ __forceinline__ int write(const row_job &job, int i, const float (&v)[CHUNK], float scale) {
    uint8_t *q = job.q + blockIdx.x * job.q_pitch + i;
    uint2 to = make_uint2(0, 0);
    int sum = 0;
#pragma unroll
    for (int k = 0; k < CHUNK; ++k) {
        const uint32_t one = code_of<E4M3>(v[k], scale); /* 0 of what is past the end */
        sum += sum_of<E4M3>(one);
        (k < 4 ? to.x : to.y) |= one << 8 * (k % 4);
        if (!job.whole && i + k < job.n_in) q[k] = (uint8_t)one;
    }
    if (job.whole) *reinterpret_cast<uint2 *>(q) = to;
    return sum;
}

/* ---- over the block, the result in all threads */

struct row_shared {
    float partial[STRIDE], again[ROW_THREADS], most[ROW_WARPS];
    int sum[ROW_WARPS];
};
/* rq_act_sum; mine[k] is partial sum 8 t + k. */
static __device__ __forceinline__ float sum_in_order(const float (&mine)[CHUNK], row_shared &s) {
    const int tid = threadIdx.x;
#pragma unroll
    for (int k = 0; k < CHUNK; k += 4)
        ptx_store_shared16(ptx_shared(s.partial + tid * CHUNK + k),
                           make_uint4(__float_as_uint(mine[k]), __float_as_uint(mine[k + 1]),
                                      __float_as_uint(mine[k + 2]), __float_as_uint(mine[k + 3])));
    __syncthreads();
    float v[CHUNK];
#pragma unroll
    for (int k = 0; k < CHUNK; ++k) v[k] = s.partial[tid + k * ROW_THREADS];
#pragma unroll
    for (int half = CHUNK / 2; half; half /= 2)
#pragma unroll
        for (int k = 0; k < half; ++k) v[k] += v[k + half];
    s.again[tid] = v[0];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < ROW_WARPS; ++k) v[k] = s.again[tid % 32 + k * 32];
#pragma unroll
    for (int half = ROW_WARPS / 2; half; half /= 2)
#pragma unroll
        for (int k = 0; k < half; ++k) v[k] += v[k + half];
#pragma unroll
    for (int by = 16; by; by /= 2) v[0] += __shfl_xor_sync(0xffffffffu, v[0], by);
    return v[0];
}
static __device__ __forceinline__ float largest(float mine, row_shared &s) {
#pragma unroll
    for (int by = 16; by; by /= 2) mine = fmaxf(mine, __shfl_xor_sync(0xffffffffu, mine, by));
    if (threadIdx.x % 32 == 0) s.most[threadIdx.x / 32] = mine;
    __syncthreads();
    mine = s.most[threadIdx.x % ROW_WARPS];
#pragma unroll
    for (int by = ROW_WARPS / 2; by; by /= 2) mine = fmaxf(mine, __shfl_xor_sync(0xffffffffu, mine, by));
    return mine;
}
static __device__ __forceinline__ void write_sum(const row_job &job, int mine, row_shared &s) {
    mine = __reduce_add_sync(0xffffffffu, mine);
    if (threadIdx.x % 32 == 0) s.sum[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x != 0) return;
#pragma unroll
    for (int w = 1; w < ROW_WARPS; ++w) mine += s.sum[w];
    job.sum[blockIdx.x] = mine;
}

/* Those of 16 threads, 128 columns, are one, if the first of them has columns. */
static __device__ __forceinline__ void write_block_sum(const row_job &job, int units, int i) {
    static_assert((int)RQ_E4M3_SUM_COLS == 16 * (int)CHUNK, "16 threads");
#pragma unroll
    for (int by = 8; by; by /= 2) units += __shfl_xor_sync(0xffffffffu, units, by);
    if (threadIdx.x % 16 == 0 && i < job.n_in)
        job.block_sum[i / RQ_E4M3_SUM_COLS * job.sum_pitch + blockIdx.x] = (float)units * 0x1p-9f;
}

/* ---- the kernel */

template <int SOURCE, bool E4M3, int CHUNKS>
__global__ void __launch_bounds__(ROW_THREADS) rq_quantize_rows(const row_job job) {
    __shared__ __align__(16) row_shared shared;
    constexpr int KEPT = CHUNKS ? CHUNKS : 1;
    float kept[KEPT][CHUNK];
    const int first = threadIdx.x * CHUNK, n_chunk = CHUNKS ? CHUNKS : (job.n_in + STRIDE - 1) / STRIDE;
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    float r = 0.0f;
    if (SOURCE == RMSNORM) {
        float square[CHUNK] = {};
#pragma unroll
        for (int c = 0; c < n_chunk; ++c) {
            const int i = first + c * STRIDE;
            if (i >= job.n_in) continue;
            float(&v)[CHUNK] = kept[CHUNKS ? c : 0];
            read<SOURCE, false>(v, job, i);
#pragma unroll
            for (int k = 0; k < CHUNK; ++k) square[k] = fmaf(v[k], v[k], square[k]);
        }
        const float mean = __fdiv_rn(sum_in_order(square, shared), (float)job.n_in);
        r = __fdiv_rn(1.0f, __fsqrt_rn(mean + job.eps));
    }
    float most = 0.0f;
#pragma unroll
    for (int c = 0; c < n_chunk; ++c) {
        const int i = first + c * STRIDE;
        if (i >= job.n_in) continue;
        float(&v)[CHUNK] = kept[CHUNKS ? c : 0];
        if (SOURCE != RMSNORM || !CHUNKS) read<SOURCE, SOURCE == RMSNORM>(v, job, i);
        if (SOURCE == RMSNORM) norm(v, job, i, r);
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) most = fmaxf(most, fabsf(v[k])); /* NaN is not the largest */
    }
    const float scale =
        job.fixed ? job.scale[blockIdx.x] : __fdiv_rn(largest(most, shared), E4M3 ? (float)RQ_E4M3_MOST : 127.0f);
    if (!job.fixed && threadIdx.x == 0) job.scale[blockIdx.x] = scale;
    int sum = 0;
#pragma unroll
    for (int c = 0; c < n_chunk; ++c) {
        const int i = first + c * STRIDE;
        int of_chunk = 0;
        if (i < job.n_in) {
            float(&v)[CHUNK] = kept[CHUNKS ? c : 0];
            if (!CHUNKS) {
                read<SOURCE, true>(v, job, i);
                if (SOURCE == RMSNORM) norm(v, job, i, r);
            }
            of_chunk = write<E4M3>(job, i, v, scale);
        }
        sum += of_chunk;
        if (E4M3) write_block_sum(job, of_chunk, i);
    }
    if (!E4M3 && job.sum) write_sum(job, sum, shared);
}

template <int SOURCE, bool E4M3> static const void *of(int n_in) {
    if (n_in <= STRIDE) return (const void *)rq_quantize_rows<SOURCE, E4M3, 1>;
    if (n_in <= 4 * STRIDE) return (const void *)rq_quantize_rows<SOURCE, E4M3, 4>;
    return n_in <= 8 * STRIDE ? (const void *)rq_quantize_rows<SOURCE, E4M3, 8>
                              : (const void *)rq_quantize_rows<SOURCE, E4M3, 0>;
}
template <int SOURCE> static const void *pick(const row_job *job) {
    return job->block_sum ? of<SOURCE, true>(job->n_in) : of<SOURCE, false>(job->n_in);
}

static bool sixteen(const void *p, int64_t pitch) { return reinterpret_cast<uintptr_t>(p) % 16 == 0 && pitch % 8 == 0; }
static rq_status launch(row_job *job, const void *kernel, int64_t n_tok, int early_launch, rq_cuda_stream stream) {
    if (!job->q || !job->scale || !job->x) return rq_gemv_fail(RQ_ERR_ARG, "q, scale or x is NULL");
    if (job->q_pitch < job->n_in) return rq_gemv_fail(RQ_ERR_ARG, "rows of q are shorter than n_in");
    if (job->sum && job->block_sum)
        return rq_gemv_fail(RQ_ERR_ARG, "int8 has sums of rows, e4m3 of blocks of 128 columns: one of both is NULL");
    if (n_tok < 1 || n_tok > 1 << 20) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "n_tok is 1 to 2^20");
    if (job->act != RQ_ACT_F16 && job->act != RQ_ACT_BF16)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "activations are fp16 or bf16");
    job->whole = job->n_in % 8 == 0 && sixteen(job->x, job->x_pitch) && sixteen(job->second, job->second_pitch) &&
                 sixteen(job->weight, 0) && sixteen(job->stream, 0) &&
                 (reinterpret_cast<uintptr_t>(job->q) | (uint64_t)job->q_pitch) % 8 == 0;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)n_tok);
    config.blockDim = dim3(ROW_THREADS);
    config.stream = stream;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &early;
    config.numAttrs = early_launch ? 1 : 0;
    void *params[] = {job};
    if (cudaError_t e = cudaLaunchKernelExC(&config, kernel, params)) return rq_gemv_fail_cuda("launch", e);
    return RQ_OK;
}
static bool columns_are_there(int64_t n_in) { return n_in >= 1 && n_in <= 1 << 20; }
static row_job job_of(const rq_cuda_x8 *to, int64_t n_tok, int64_t n_in, rq_act act) {
    row_job job = {};
    job.q = static_cast<uint8_t *>(to->q), job.q_pitch = to->pitch ? to->pitch : n_in;
    job.scale = to->scale, job.sum = to->sum, job.block_sum = to->block_sum, job.sum_pitch = (n_tok + 3) / 4 * 4;
    job.n_in = (int)n_in, job.act = act;
    return job;
}
static const char *const columns_text = "n_in is 1 to 2^20", *const no_arguments = "there are no arguments";

rq_status rq_cuda_quantize_rows(const rq_cuda_quantize_args *a, rq_cuda_stream stream) {
    if (!a) return rq_gemv_fail(RQ_ERR_ARG, no_arguments);
    if (!columns_are_there(a->n_in)) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, columns_text);
    row_job job = job_of(&a->to, a->n_tok, a->n_in, a->act);
    job.x = a->x, job.x_pitch = a->n_in, job.fixed = a->fixed != 0;
    return launch(&job, pick<PLAIN>(&job), a->n_tok, a->early_launch, stream);
}

rq_status rq_cuda_rmsnorm_quantize(const rq_cuda_rmsnorm_args *a, rq_cuda_stream stream) {
    if (!a) return rq_gemv_fail(RQ_ERR_ARG, no_arguments);
    if (!columns_are_there(a->n_in)) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, columns_text);
    if (!(a->eps >= 0.0f)) return rq_gemv_fail(RQ_ERR_ARG, "eps is 0 or more");
    if ((a->residual != NULL) != (a->stream != NULL))
        return rq_gemv_fail(RQ_ERR_ARG, "a residual, and the stream that its sum goes to, are given together");
    row_job job = job_of(&a->to, a->n_tok, a->n_in, a->act);
    job.x = a->x, job.x_pitch = a->n_in;
    job.second = a->residual, job.second_pitch = a->n_in, job.stream = a->stream, job.weight = a->weight,
    job.eps = a->eps;
    return launch(&job, pick<RMSNORM>(&job), a->n_tok, a->early_launch, stream);
}

rq_status rq_cuda_silu_quantize(const rq_cuda_silu_args *a, rq_cuda_stream stream) {
    if (!a || !a->up) return rq_gemv_fail(RQ_ERR_ARG, a ? "up is NULL" : no_arguments);
    if (!columns_are_there(a->n_in)) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, columns_text);
    if (a->pitch < a->n_in) return rq_gemv_fail(RQ_ERR_ARG, "rows of gate and up are shorter than n_in");
    row_job job = job_of(&a->to, a->n_tok, a->n_in, a->act);
    job.x = a->gate, job.second = a->up, job.x_pitch = job.second_pitch = a->pitch;
    return launch(&job, pick<SILU>(&job), a->n_tok, a->early_launch, stream);
}
