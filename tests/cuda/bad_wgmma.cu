/* SPDX-License-Identifier: Apache-2.0 */
/* wgmma: results used too early, tiles overwritten too early, fences left out. Two tiles of 64 rows of 128 bytes. */
#include "bad.h"
#include "ptxw.cuh"

enum { TILE = 64 * 128 };

__device__ __forceinline__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void fill(int *tiles, int value) {
    for (int k = threadIdx.x; k < 2 * TILE / 4; k += 128) tiles[k] = value; // finds wg_overwrite: wgmma not waited for
}
__device__ __forceinline__ void multiply(int32_t (&d)[32], uint32_t tiles) {
    for (int k = 0; k < 128; k += 32)
        ptx_wgmma_s8_n64(d, ptx_wgmma_tile128(tiles + k), ptx_wgmma_tile128(tiles + TILE + k));
    ptx_wgmma_commit();
}
#define ZERO(d) _Pragma("unroll") for (int k = 0; k < 32; ++k) d[k] = 0

template <bool BAD> __global__ void __launch_bounds__(128) wg_nowait(int *o) {
    extern __shared__ __align__(1024) int tiles[];
    int32_t d[32];
    ZERO(d);
    fill(tiles, 0x01010101);
    proxy_fence();
    __syncthreads();
    ptx_wgmma_fence();
    multiply(d, ptx_shared(tiles));
    if (!BAD) ptx_wgmma_wait<0>();
    o[threadIdx.x] = d[5]; // finds wg_nowait: wgmma not waited for
    if (BAD) ptx_wgmma_wait<0>();
}
/* Two groups under way: the wait leaves one of them, whose accumulators are used. */
template <bool BAD> __global__ void __launch_bounds__(128) wg_group(int *o) {
    extern __shared__ __align__(1024) int tiles[];
    int32_t d[32], e[32];
    ZERO(d);
    ZERO(e);
    fill(tiles, 0x01010101);
    proxy_fence();
    __syncthreads();
    ptx_wgmma_fence();
    multiply(d, ptx_shared(tiles));
    multiply(e, ptx_shared(tiles));
    ptx_wgmma_wait<1>();
    o[threadIdx.x] = d[5];
    if (!BAD) ptx_wgmma_wait<0>();
    o[threadIdx.x] += e[5]; // finds wg_group: wgmma not waited for
    ptx_wgmma_wait<0>();
}
template <bool BAD> __global__ void __launch_bounds__(128) wg_overwrite(int *o) {
    extern __shared__ __align__(1024) int tiles[];
    int32_t d[32];
    ZERO(d);
    fill(tiles, 0x01010101);
    proxy_fence();
    __syncthreads();
    ptx_wgmma_fence();
    multiply(d, ptx_shared(tiles));
    if (!BAD) {
        ptx_wgmma_wait<0>();
        __syncthreads();
    }
    fill(tiles, 0); // the line of the store is the helper's
    if (BAD) ptx_wgmma_wait<0>();
    o[threadIdx.x] = d[5];
}
template <bool BAD> __global__ void __launch_bounds__(128) wg_noproxy(int *o) {
    extern __shared__ __align__(1024) int tiles[];
    int32_t d[32];
    ZERO(d);
    fill(tiles, 0x01010101);
    if (!BAD) proxy_fence();
    __syncthreads();
    ptx_wgmma_fence();
    multiply(d, ptx_shared(tiles)); // finds wg_noproxy: missing proxy fence
    ptx_wgmma_wait<0>();
    o[threadIdx.x] = d[5];
}
template <bool BAD> __global__ void __launch_bounds__(128) wg_nofence(int *o, int scale) {
    extern __shared__ __align__(1024) int tiles[];
    int32_t d[32];
    ZERO(d);
    fill(tiles, 0x01010101);
    proxy_fence();
    __syncthreads();
    ptx_wgmma_fence();
    multiply(d, ptx_shared(tiles));
    ptx_wgmma_wait<0>();
#pragma unroll
    for (int k = 0; k < 32; ++k) d[k] *= scale; // ordinary writes to accumulators
    if (!BAD) ptx_wgmma_fence();
    multiply(d, ptx_shared(tiles)); // finds wg_nofence: missing wgmma.fence
    ptx_wgmma_wait<0>();
    o[threadIdx.x] = d[5];
}
template <bool BAD> __global__ void __launch_bounds__(128) wg_nosync(int *o) {
    extern __shared__ __align__(1024) int tiles[];
    int32_t d[32];
    ZERO(d);
    fill(tiles, 0x01010101);
    proxy_fence();
    if (!BAD) __syncthreads();
    ptx_wgmma_fence();
    multiply(d, ptx_shared(tiles)); // finds wg_nosync: shared memory race|uninitialised shared memory
    ptx_wgmma_wait<0>();
    o[threadIdx.x] = d[5];
}

static void run_wg_nowait(bool bad) {
    device_array<int> o(128);
    BAD_LAUNCH(wg_nowait, 1, 128, 2 * TILE, o.p);
}
static void run_wg_group(bool bad) {
    device_array<int> o(128);
    BAD_LAUNCH(wg_group, 1, 128, 2 * TILE, o.p);
}
static void run_wg_overwrite(bool bad) {
    device_array<int> o(128);
    BAD_LAUNCH(wg_overwrite, 1, 128, 2 * TILE, o.p);
}
static void run_wg_noproxy(bool bad) {
    device_array<int> o(128);
    BAD_LAUNCH(wg_noproxy, 1, 128, 2 * TILE, o.p);
}
static void run_wg_nofence(bool bad) {
    device_array<int> o(128);
    BAD_LAUNCH(wg_nofence, 1, 128, 2 * TILE, o.p, 3);
}
static void run_wg_nosync(bool bad) {
    device_array<int> o(128);
    BAD_LAUNCH(wg_nosync, 1, 128, 2 * TILE, o.p);
}

int main(int argc, char **argv) {
    static const bad_case cases[] = {{"wg_nowait", run_wg_nowait},       {"wg_group", run_wg_group},
                                     {"wg_overwrite", run_wg_overwrite}, {"wg_noproxy", run_wg_noproxy},
                                     {"wg_nofence", run_wg_nofence},     {"wg_nosync", run_wg_nosync}};
    return bad_main(cases, sizeof cases / sizeof *cases, argc, argv);
}
