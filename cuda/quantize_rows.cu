/* SPDX-License-Identifier: Apache-2.0 */
/* rq_cuda_quantize_rows: rows of activations as int8 with a scale a row, for the GEMVs that multiply int8. A block has a row: its largest
 * size by a shuffle and shared memory, then the quotients, IEEE divisions, so that a CPU gets the same bytes. The second reading of the row
 * comes from L2. Targets: sm_80 sm_90a. */
#include "gemv_tile.cuh"

enum { ROW_THREADS = 512, PAIRS = 4 }; /* 16 bytes of x a thread where rows allow it */

struct quantize_job {
    int8_t *q;
    float *scale;
    const void *x;
    int n_in;
    bool fixed, whole; /* whole: rows are multiples of 16 bytes, and begin at such */
};

template <int ACT> static __device__ __forceinline__ float of_bits(uint32_t bits) {
    return ACT == RQ_ACT_F16 ? ptx_float_of_f16(bits) : __uint_as_float(bits << 16);
}
/* Element i of 8 columns. */
template <int ACT> static __device__ __forceinline__ float element(const uint4 &v, int i) {
    const uint32_t pair = i / 2 == 0 ? v.x : i / 2 == 1 ? v.y : i / 2 == 2 ? v.z : v.w;
    return of_bits<ACT>(i % 2 ? pair >> 16 : pair & 0xffffu);
}
/* NaN is not the largest. */
static __device__ __forceinline__ float larger(float a, float v) { return fmaxf(a, fabsf(v)); }

static __device__ __forceinline__ uint32_t quotient(float v, float scale) {
    const float q = scale > 0.0f ? rintf(__fdiv_rn(v, scale)) : 0.0f;
    return (uint32_t)(int)(q == q ? fminf(fmaxf(q, -127.0f), 127.0f) : 0.0f) & 255u;
}

template <int ACT> __global__ void __launch_bounds__(ROW_THREADS) rq_quantize_rows(const quantize_job job) {
    __shared__ float warps[ROW_THREADS / 32];
    const uint16_t *x = static_cast<const uint16_t *>(job.x) + (size_t)blockIdx.x * job.n_in;
    int8_t *q = job.q + (size_t)blockIdx.x * job.n_in;
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    float scale;
    if (job.fixed) {
        scale = job.scale[blockIdx.x];
    } else {
        float most = 0.0f;
        if (job.whole)
            for (int i = threadIdx.x * 8; i < job.n_in; i += ROW_THREADS * 8) {
                const uint4 v = *reinterpret_cast<const uint4 *>(x + i);
#pragma unroll
                for (int k = 0; k < 2 * PAIRS; ++k) most = larger(most, element<ACT>(v, k));
            }
        else
            for (int i = threadIdx.x; i < job.n_in; i += ROW_THREADS) most = larger(most, of_bits<ACT>(x[i]));
#pragma unroll
        for (int by = 16; by; by /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, by));
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = most;
        __syncthreads();
        most = warps[threadIdx.x % (ROW_THREADS / 32)];
#pragma unroll
        for (int by = ROW_THREADS / 64; by; by /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, by));
        scale = __fdiv_rn(most, 127.0f);
        if (threadIdx.x == 0) job.scale[blockIdx.x] = scale;
    }
    if (job.whole)
        for (int i = threadIdx.x * 8; i < job.n_in; i += ROW_THREADS * 8) {
            const uint4 v = *reinterpret_cast<const uint4 *>(x + i);
            uint2 to = make_uint2(0, 0);
#pragma unroll
            for (int k = 0; k < PAIRS; ++k) {
                to.x |= quotient(element<ACT>(v, k), scale) << 8 * k;
                to.y |= quotient(element<ACT>(v, PAIRS + k), scale) << 8 * k;
            }
            *reinterpret_cast<uint2 *>(q + i) = to;
        }
    else
        for (int i = threadIdx.x; i < job.n_in; i += ROW_THREADS) q[i] = (int8_t)quotient(of_bits<ACT>(x[i]), scale);
}

rq_status rq_cuda_quantize_rows(const rq_cuda_quantize_args *a, rq_cuda_stream stream) {
    if (!a || !a->q || !a->scale || !a->x) return rq_gemv_fail(RQ_ERR_ARG, "q, scale or x is NULL");
    if (a->n_tok < 1 || a->n_tok > 1 << 20) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "n_tok is 1 to 2^20");
    if (a->n_in < 1 || a->n_in > 1 << 20) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "n_in is 1 to 2^20");
    if (a->act != RQ_ACT_F16 && a->act != RQ_ACT_BF16)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "activations are fp16 or bf16");
    quantize_job job = {};
    job.q = a->q, job.scale = a->scale, job.x = a->x, job.n_in = (int)a->n_in, job.fixed = a->fixed != 0;
    job.whole =
        a->n_in % 8 == 0 && (reinterpret_cast<uintptr_t>(a->x) % 16 | reinterpret_cast<uintptr_t>(a->q) % 8) == 0;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)a->n_tok);
    config.blockDim = dim3(ROW_THREADS);
    config.stream = stream;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &early;
    config.numAttrs = a->early_launch ? 1 : 0;
    void *params[] = {&job};
    const void *kernel =
        a->act == RQ_ACT_F16 ? (const void *)rq_quantize_rows<RQ_ACT_F16> : (const void *)rq_quantize_rows<RQ_ACT_BF16>;
    if (cudaError_t e = cudaLaunchKernelExC(&config, kernel, params)) return rq_gemv_fail_cuda("launch", e);
    return RQ_OK;
}
