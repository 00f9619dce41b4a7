/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernels of decode_*_sm80.cu share: 8 numbers of act as one load, sums over a block, a launch. */
#ifndef RQ_DECODE_CUH
#define RQ_DECODE_CUH
#include "gemv_tile.cuh"
#include "ptx_async.cuh"
#include "rq_cuda_decode.h"

enum { EIGHT = 8 };

template <int ACT> static __device__ __forceinline__ void rq_eight_floats(float (&v)[EIGHT], uint4 bits) {
    const uint32_t pair[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int k = 0; k < 4; ++k)
        if (ACT == RQ_ACT_F16) {
            v[2 * k] = ptx_float_of_f16(pair[k] & 0xffffu), v[2 * k + 1] = ptx_float_of_f16(pair[k] >> 16);
        } else {
            v[2 * k] = __uint_as_float(pair[k] << 16), v[2 * k + 1] = __uint_as_float(pair[k] & 0xffff0000u);
        }
}
template <int ACT> static __device__ __forceinline__ uint32_t rq_pair_bits(float low, float high) {
    if (ACT == RQ_ACT_F16)
        return __half_as_ushort(__float2half_rn(low)) | (uint32_t)__half_as_ushort(__float2half_rn(high)) << 16;
    return __bfloat16_as_ushort(__float2bfloat16_rn(low)) | (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(high))
                                                                << 16;
}
template <int ACT> static __device__ __forceinline__ uint4 rq_eight_bits(const float (&v)[EIGHT]) {
    return make_uint4(rq_pair_bits<ACT>(v[0], v[1]), rq_pair_bits<ACT>(v[2], v[3]), rq_pair_bits<ACT>(v[4], v[5]),
                      rq_pair_bits<ACT>(v[6], v[7]));
}
template <int ACT> static __device__ __forceinline__ void rq_load_eight(float (&v)[EIGHT], const void *row, int64_t i) {
    rq_eight_floats<ACT>(v, *reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(row) + i));
}
template <int ACT>
static __device__ __forceinline__ void rq_store_eight(void *row, int64_t i, const float (&v)[EIGHT]) {
    *reinterpret_cast<uint4 *>(static_cast<uint16_t *>(row) + i) = rq_eight_bits<ACT>(v);
}
static __device__ __forceinline__ void rq_load_eight_floats(float (&v)[EIGHT], const float *p) {
    const float4 low = *reinterpret_cast<const float4 *>(p), high = *reinterpret_cast<const float4 *>(p + 4);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w, v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}

/* ---- what the kernel after reads first, asked for while this one runs: by blocks of their own, which wait for nothing. Memory would be idle
 * otherwise, for a row or two are no work for it. */
struct rq_ahead {
    const uint8_t *at;
    int64_t bytes;
    int first; /* blocks of the kernel proper; the others are here for this */
};
enum { AHEAD_PIECE = 2048 };
/* True in a block that was here for this. `block` of `blocks` along the grid's other axes. */
static __device__ __forceinline__ bool rq_asked_ahead(const rq_ahead &a, int block, int blocks) {
    if ((int)blockIdx.x < a.first) return false;
    const int64_t step = (int64_t)(gridDim.x - a.first) * blocks * blockDim.x * AHEAD_PIECE;
    for (int64_t i = ((int64_t)((blockIdx.x - a.first) * blocks + block) * blockDim.x + threadIdx.x) * AHEAD_PIECE;
         i < a.bytes; i += step) {
        const int64_t left = a.bytes - i;
        ptx_prefetch_piece(a.at + i, (uint32_t)(left < AHEAD_PIECE ? left : AHEAD_PIECE));
    }
    return true;
}
/* first blocks along x and what is added to them: a piece a thread, with so many blocks along the other axes. */
static inline rq_ahead rq_ahead_of(unsigned *grid_x, const void *at, int64_t bytes, int threads, int64_t blocks) {
    const int64_t each = blocks * threads * AHEAD_PIECE;
    rq_ahead a = {static_cast<const uint8_t *>(at), at ? bytes / 16 * 16 : 0, (int)*grid_x};
    *grid_x += (unsigned)((a.bytes + each - 1) / each);
    return a;
}

/* Of all lanes, in all of them. */
static __device__ __forceinline__ float rq_warp_sum(float v) {
#pragma unroll
    for (int by = 16; by; by /= 2) v += __shfl_xor_sync(0xffffffffu, v, by);
    return v;
}
static __device__ __forceinline__ float rq_warp_max(float v) {
#pragma unroll
    for (int by = 16; by; by /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, by));
    return v;
}

/* True in the block that comes last of `blocks`, where what the others stored by __stcg before this call is there for __ldcg. The counter is zero
 * before and after. flag is shared memory of the caller's. */
static __device__ __forceinline__ bool rq_last_of(unsigned *counter, unsigned blocks, int *flag) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        const bool last = atomicAdd(counter, 1u) == blocks - 1u;
        if (last) __stcg(counter, 0u);
        *flag = last;
    }
    __syncthreads();
    const bool last = *flag;
    if (last) __threadfence();
    return last;
}

static inline rq_status rq_decode_launch(const void *kernel, void *job, dim3 grid, int threads, size_t shared_bytes,
                                         int early_launch, rq_cuda_stream stream) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared_bytes;
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

static inline bool rq_sixteen(const void *p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
static inline bool rq_is_act(rq_act act) { return act == RQ_ACT_F16 || act == RQ_ACT_BF16; }
#endif
