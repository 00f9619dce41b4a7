/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels that move memory and do nothing else: random contents, streaming reads. */
#ifndef BENCH_CUDA_STREAMS_H
#define BENCH_CUDA_STREAMS_H
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

enum { STREAM_THREADS = 256, STREAM_UNROLL = 8 };

__host__ __device__ static inline uint32_t hash32(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}
/* Random words; with `halves`, two halves in (-1, 1) each. */
static __global__ void fill(uint32_t *out, size_t n, uint32_t seed, bool halves) {
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        const uint32_t v = hash32((uint32_t)i * 2654435761u + seed + (uint32_t)(i >> 32));
        const __half2 h =
            __floats2half2_rn((float)(int16_t)(v & 0xffff) * 0x1p-15f, (float)(int16_t)(v >> 16) * 0x1p-15f);
        out[i] = halves ? *reinterpret_cast<const uint32_t *>(&h) : v;
    }
}
/* Reads n pieces of 16 bytes once; the xor of all words, so that no load can be left out. ONCE: marked as not wanted again,
 * as weights are; without, what is read takes the place of other data in the L2. */
template <bool ONCE>
static __global__ void __launch_bounds__(STREAM_THREADS) read_all(const uint4 *in, size_t n, uint32_t *out) {
    const size_t step = (size_t)gridDim.x * STREAM_THREADS;
    uint32_t x = 0;
    for (size_t i = (size_t)blockIdx.x * STREAM_THREADS + threadIdx.x; i < n; i += step * STREAM_UNROLL) {
        uint4 v[STREAM_UNROLL];
#pragma unroll
        for (int u = 0; u < STREAM_UNROLL; ++u) {
            const uint4 *at = in + i + u * step;
            v[u] = i + u * step < n ? (ONCE ? __ldcs(at) : __ldcg(at)) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int u = 0; u < STREAM_UNROLL; ++u) x ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
    }
    atomicXor(out, __reduce_xor_sync(0xffffffffu, x) * (threadIdx.x % 32 == 0));
}
#endif
