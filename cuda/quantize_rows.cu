/* SPDX-License-Identifier: Apache-2.0 */
/* Activations as int8 with a scale and a sum a row, or as e4m3 with a scale a row and sums of 128 columns, in one kernel with what comes before: nothing (rq_cuda_quantize_rows), RMSNorm with the
 * residual's sum (rq_cuda_rmsnorm_quantize), SiLU and product (rq_cuda_silu_quantize). fmt_act.h is the definition, and its roundings are
 * kept, so that a CPU gets the same bytes. With a Hadamard matrix the row goes through shared memory: quantize_rows_hadamard.cu.
 *
 * A block has a row. Thread t takes columns 8 t .. 8 t + 7, then those 2048 further, and keeps them in registers from the first reading to the
 * quotients; rows of more than CHUNKS x 2048 columns are read again, from L2. The sum of squares goes the way of fmt_act.h: what a
 * thread adds up are 8 of its partial sums, shared memory brings those that are 256 apart together, then those 32 apart, a shuffle the
 * rest. Targets: sm_80 sm_90a. */
#include "quantize_rows.cuh"
#include "rq_cuda_hadamard.h"

enum { ROW_WARPS = ROW_THREADS / 32, STRIDE = RQ_ACT_PARTIALS };

struct row_shared {
    row_sums sums;
    row_reduced<ROW_WARPS> reduced;
};

/* ---- codes */

template <bool E4M3> static __device__ __forceinline__ uint32_t code_of(float v, float scale) {
    return E4M3 ? rq_act_e4m3(v, scale) : (uint32_t)quotient(v, scale) & 255u;
}
template <bool E4M3> static __device__ __forceinline__ int sum_of(uint32_t code) {
    return E4M3 ? rq_e4m3_units((uint8_t)code) : (int)(int8_t)code;
}
/* The codes of 8 columns, and their sum. */
template <bool E4M3>
static __device__ __forceinline__ int write(const row_job &job, int i, const float (&v)[CHUNK], float scale) {
    uint8_t *q = reinterpret_cast<uint8_t *>(job.q) + blockIdx.x * job.q_pitch + i;
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
        r = one_over_rms<ROW_THREADS>(job, square, shared.sums);
    }
    float most = 0.0f;
#pragma unroll
    for (int c = 0; c < n_chunk; ++c) {
        const int i = first + c * STRIDE;
        if (i >= job.n_in) continue;
        float(&v)[CHUNK] = kept[CHUNKS ? c : 0];
        if (SOURCE != RMSNORM || !CHUNKS) read<SOURCE, SOURCE == RMSNORM>(v, job, i);
        if (SOURCE == RMSNORM) norm(v, job, i, r);
        multiply(v, job, i);
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) most = fmaxf(most, fabsf(v[k])); /* NaN is not the largest */
    }
    const float scale = scale_of(job, most, shared.reduced, E4M3 ? (float)RQ_E4M3_MOST : 127.0f);
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
                multiply(v, job, i);
            }
            of_chunk = write<E4M3>(job, i, v, scale);
        }
        sum += of_chunk;
        if (E4M3) write_block_sum(job, of_chunk, i);
    }
    if (!E4M3 && job.sum) write_sum(job, sum, shared.reduced);
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
rq_status rq_rows_check(row_job *job, int64_t n_tok) {
    if (!job->q || !job->scale || !job->x) return rq_gemv_fail(RQ_ERR_ARG, "q, scale or x is NULL");
    if (n_tok < 1 || n_tok > 1 << 20) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "n_tok is 1 to 2^20");
    if (job->q_pitch < job->n_in) return rq_gemv_fail(RQ_ERR_ARG, "rows of q are shorter than n_in");
    if (job->sum && job->block_sum)
        return rq_gemv_fail(RQ_ERR_ARG, "int8 has sums of rows, e4m3 of blocks of 128 columns: one of both is NULL");
    if (job->act != RQ_ACT_F16 && job->act != RQ_ACT_BF16)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "activations are fp16 or bf16");
    const rq_act_steps &s = job->steps;
    if (s.scale && (!s.step || s.n_step < 1 || s.rows_per_step < 0))
        return rq_gemv_fail(
            RQ_ERR_ARG, "a table of scales has an index on the device, at least one entry, and 0 or more rows a step");
    if (s.scale && job->fixed) return rq_gemv_fail(RQ_ERR_ARG, "scales are fixed, or from a table");
    job->whole = job->n_in % 8 == 0 && sixteen(job->x, job->x_pitch) && sixteen(job->second, job->second_pitch) &&
                 sixteen(job->weight, 0) && sixteen(job->stream, 0) && sixteen(job->factor, 0) &&
                 (reinterpret_cast<uintptr_t>(job->q) | (uint64_t)job->q_pitch) % 8 == 0;
    return RQ_OK;
}
rq_status rq_rows_launch(const void *kernel, void *job, int64_t n_tok, int threads, int shared_bytes, int early_launch,
                         rq_cuda_stream stream) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)n_tok);
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = (size_t)shared_bytes;
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
static rq_status launch(row_job *job, const void *kernel, int64_t n_tok, int early_launch, rq_cuda_stream stream) {
    const rq_status s = rq_rows_check(job, n_tok);
    return s == RQ_OK ? rq_rows_launch(kernel, job, n_tok, ROW_THREADS, 0, early_launch, stream) : s;
}
/* Where q and its sums go. */
static void set_target(row_job *job, int64_t q_pitch, float *block_sum, int64_t n_tok) {
    job->q_pitch = q_pitch ? q_pitch : job->n_in;
    job->block_sum = block_sum, job->sum_pitch = (n_tok + 3) / 4 * 4;
}
static bool columns_are_there(int64_t n_in) { return n_in >= 1 && n_in <= 1 << 20; }
static const char *const columns_text = "n_in is 1 to 2^20", *const no_arguments = "there are no arguments";

rq_status rq_cuda_quantize_rows(const rq_cuda_quantize_args *a, rq_cuda_stream stream) {
    if (!a) return rq_gemv_fail(RQ_ERR_ARG, no_arguments);
    if (!columns_are_there(a->n_in)) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, columns_text);
    row_job job = {};
    job.q = a->q, job.scale = a->scale, job.sum = a->sum, job.x = a->x, job.x_pitch = a->n_in;
    job.n_in = (int)a->n_in, job.act = a->act, job.fixed = a->fixed != 0;
    job.factor = a->factor, job.steps = a->steps;
    set_target(&job, a->q_pitch, a->block_sum, a->n_tok);
    if (a->hadamard) return rq_rows_hadamard(&job, PLAIN, a->hadamard, a->n_tok, a->early_launch, stream);
    return launch(&job, pick<PLAIN>(&job), a->n_tok, a->early_launch, stream);
}

/* h: or NULL. */
static rq_status rmsnorm(const rq_cuda_rmsnorm_args *a, const rq_hadamard *h, rq_cuda_stream stream) {
    if (!a) return rq_gemv_fail(RQ_ERR_ARG, no_arguments);
    if (!columns_are_there(a->n_in)) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, columns_text);
    if (!(a->eps >= 0.0f)) return rq_gemv_fail(RQ_ERR_ARG, "eps is 0 or more");
    if ((a->residual != NULL) != (a->stream != NULL))
        return rq_gemv_fail(RQ_ERR_ARG, "a residual, and the stream that its sum goes to, are given together");
    row_job job = {};
    job.q = a->q, job.scale = a->scale, job.sum = a->sum, job.x = a->x, job.x_pitch = a->n_in;
    job.second = a->residual, job.second_pitch = a->n_in, job.stream = a->stream, job.weight = a->weight;
    job.n_in = (int)a->n_in, job.eps = a->eps, job.act = a->act;
    job.factor = a->factor, job.steps = a->steps;
    set_target(&job, a->q_pitch, a->block_sum, a->n_tok);
    if (h) return rq_rows_hadamard(&job, RMSNORM, h, a->n_tok, a->early_launch, stream);
    return launch(&job, pick<RMSNORM>(&job), a->n_tok, a->early_launch, stream);
}
rq_status rq_cuda_rmsnorm_quantize(const rq_cuda_rmsnorm_args *a, rq_cuda_stream stream) {
    return rmsnorm(a, NULL, stream);
}
rq_status rq_cuda_rmsnorm_hadamard_quantize(const rq_cuda_rmsnorm_args *a, const rq_hadamard *h,
                                            rq_cuda_stream stream) {
    return h ? rmsnorm(a, h, stream) : rq_gemv_fail(RQ_ERR_ARG, "there is no Hadamard matrix");
}

rq_status rq_cuda_silu_quantize(const rq_cuda_silu_args *a, rq_cuda_stream stream) {
    if (!a || !a->up) return rq_gemv_fail(RQ_ERR_ARG, a ? "up is NULL" : no_arguments);
    if (!columns_are_there(a->n_in)) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, columns_text);
    if (a->pitch < a->n_in) return rq_gemv_fail(RQ_ERR_ARG, "rows of gate and up are shorter than n_in");
    row_job job = {};
    job.q = a->q, job.scale = a->scale, job.sum = a->sum, job.x = a->gate, job.second = a->up;
    job.x_pitch = job.second_pitch = a->pitch, job.n_in = (int)a->n_in, job.act = a->act;
    job.factor = a->factor, job.steps = a->steps;
    set_target(&job, a->q_pitch, a->block_sum, a->n_tok);
    if (a->hadamard) return rq_rows_hadamard(&job, SILU, a->hadamard, a->n_tok, a->early_launch, stream);
    return launch(&job, pick<SILU>(&job), a->n_tok, a->early_launch, stream);
}
