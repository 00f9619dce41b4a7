/* SPDX-License-Identifier: Apache-2.0 */
/* Asynchronous copies: cp.async, mbarrier, bulk copies; the proxy fence before a bulk store; clusters. */
#include "bad.h"
#include "ptxw.cuh"

/* ---- cp.async */
template <bool BAD> __global__ void cp_nowait(const float4 *i, float *o) {
    __shared__ __align__(16) float s[128];
    ptx_cp_async16(ptx_shared(&s[threadIdx.x * 4]), i + threadIdx.x, true);
    ptx_cp_async_commit();
    if (!BAD) ptx_cp_async_wait<0>();
    __syncthreads();
    o[threadIdx.x] = s[threadIdx.x]; // finds cp_nowait: cp.async not waited for
}
/* Two groups under way, the wait covers only the first. */
template <bool BAD> __global__ void cp_group(const float4 *i, float *o) {
    __shared__ __align__(16) float s[256];
    ptx_cp_async16(ptx_shared(&s[threadIdx.x * 4]), i + threadIdx.x, true);
    ptx_cp_async_commit();
    ptx_cp_async16(ptx_shared(&s[128 + threadIdx.x * 4]), i + threadIdx.x, true);
    ptx_cp_async_commit();
    ptx_cp_async_wait<1>();
    __syncthreads();
    o[threadIdx.x] = s[threadIdx.x];
    if (!BAD) ptx_cp_async_wait<0>();
    __syncthreads();
    o[threadIdx.x] += s[128 + threadIdx.x]; // finds cp_group: cp.async not waited for
    ptx_cp_async_wait<0>();
}
/* A wait covers the thread's own copies; those of others need a barrier after their wait. */
template <bool BAD> __global__ void cp_nosync(const float4 *i, float *o) {
    __shared__ __align__(16) float s[256];
    ptx_cp_async16(ptx_shared(&s[threadIdx.x * 4]), i + threadIdx.x, true);
    ptx_cp_async_commit();
    ptx_cp_async_wait<0>();
    if (!BAD) __syncthreads();
    o[threadIdx.x] = s[255 - threadIdx.x]; // finds cp_nosync: shared memory race
}

/* ---- mbarrier */
__device__ __forceinline__ void arrive(uint32_t b) {
    asm volatile("{ .reg .b64 t; mbarrier.arrive.shared::cta.b64 t, [%0]; }" ::"r"(b) : "memory");
}
template <bool BAD> __global__ void mb_nowait(float *o) {
    __shared__ __align__(8) uint64_t bar;
    __shared__ float s[64];
    const uint32_t b = ptx_shared(&bar);
    if (threadIdx.x == 0) ptx_mbarrier_init(b, 64);
    __syncthreads();
    s[threadIdx.x] = threadIdx.x;
    arrive(b);
    if (!BAD) ptx_mbarrier_wait(b, 0);
    o[threadIdx.x] = s[63 - threadIdx.x]; // finds mb_nowait: shared memory race
}
template <bool BAD> __global__ void mb_noinit(float *o) {
    __shared__ __align__(8) uint64_t bar;
    const uint32_t b = ptx_shared(&bar);
    if (!BAD && threadIdx.x == 0) ptx_mbarrier_init(b, 32);
    __syncthreads();
    arrive(b); // finds mb_noinit: mbarrier
    ptx_mbarrier_wait(b, 0);
    o[threadIdx.x] = 1;
}
/* The barrier is used before the thread that initialises it is known to have done so. */
template <bool BAD> __global__ void mb_initrace(float *o) {
    __shared__ __align__(8) uint64_t bar;
    const uint32_t b = ptx_shared(&bar);
    if (threadIdx.x == (BAD ? 0 : 32)) ptx_mbarrier_init(b, 32);
    if (!BAD) __syncthreads();
    if (threadIdx.x >= 32) arrive(b); // finds mb_initrace: shared memory race|mbarrier
    o[threadIdx.x] = 1;
}
template <bool BAD> __global__ void mb_stuck(float *o) {
    __shared__ __align__(8) uint64_t bar;
    const uint32_t b = ptx_shared(&bar);
    if (threadIdx.x == 0) ptx_mbarrier_init(b, BAD ? 33 : 32);
    __syncthreads();
    arrive(b);
    ptx_mbarrier_wait(b, 0); // finds mb_stuck: wait never completes
    o[threadIdx.x] = 1;
}
template <bool BAD> __global__ void mb_toomany(float *o) {
    __shared__ __align__(8) uint64_t bar;
    const uint32_t b = ptx_shared(&bar);
    if (threadIdx.x == 0) {
        ptx_mbarrier_init(b, 32);
        ptx_fence_mbarrier_init();
        ptx_mbarrier_expect(b, 4);
    }
    __syncthreads();
    if (BAD || threadIdx.x) arrive(b); // finds mb_toomany: mbarrier
    o[threadIdx.x] = 1;
}

/* ---- bulk copies */
__device__ __forceinline__ void bulk_load(uint32_t to, const void *from, int bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void bulk_store(void *to, uint32_t from, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\ncp.async.bulk.commit_group;" ::"l"(to),
                 "r"(from), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void bulk_read_done() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ void bulk_done() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
__device__ __forceinline__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <bool BAD> __global__ void bulk_nowait(const float *i, float *o) {
    __shared__ __align__(128) float s[64];
    __shared__ __align__(8) uint64_t bar;
    const uint32_t b = ptx_shared(&bar);
    if (threadIdx.x == 0) {
        ptx_mbarrier_init(b, 1);
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx_mbarrier_expect(b, 256);
        bulk_load(ptx_shared(s), i, 256, b);
    }
    __syncthreads();
    if (!BAD) ptx_mbarrier_wait(b, 0);
    o[threadIdx.x] = s[threadIdx.x]; // finds bulk_nowait: bulk copy not waited for
    ptx_mbarrier_wait(b, 0);
}
/* A ring of one stage: the next load may start only when every reader of the last is done. */
template <bool BAD> __global__ void bulk_refill(const float *i, float *o) {
    __shared__ __align__(128) float s[64];
    __shared__ __align__(8) uint64_t bar;
    const uint32_t b = ptx_shared(&bar);
    float sum = 0;
    if (threadIdx.x == 0) {
        ptx_mbarrier_init(b, 1);
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    for (int k = 0; k < 3; ++k) {
        if (threadIdx.x == 0) {
            ptx_mbarrier_expect(b, 256);
            bulk_load(ptx_shared(s), i + 64 * k, 256, b); // finds bulk_refill: shared memory race
        }
        ptx_mbarrier_wait(b, k & 1);
        if (BAD) __syncthreads(); // too early: before the read
        sum += s[threadIdx.x];
        if (!BAD) __syncthreads();
    }
    o[threadIdx.x] = sum;
}
template <bool BAD> __global__ void bulk_nofence(float *o) {
    __shared__ __align__(128) float s[64];
    s[threadIdx.x] = threadIdx.x;
    if (!BAD) proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
        bulk_store(o, ptx_shared(s), 256); // finds bulk_nofence: missing proxy fence
        bulk_done();
    }
}
template <bool BAD> __global__ void bulk_reuse(float *o) {
    __shared__ __align__(128) float s[64];
    s[threadIdx.x] = threadIdx.x;
    proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
        bulk_store(o, ptx_shared(s), 256);
        if (!BAD) bulk_read_done();
    }
    __syncthreads();
    s[threadIdx.x] = 0; // finds bulk_reuse: bulk copy not waited for
    if (threadIdx.x == 0) bulk_done();
}
template <bool BAD> __global__ void bulk_unaligned(const float *i, float *o) {
    __shared__ __align__(128) float s[64];
    __shared__ __align__(8) uint64_t bar;
    const uint32_t b = ptx_shared(&bar);
    if (threadIdx.x == 0) {
        ptx_mbarrier_init(b, 1);
        ptx_fence_mbarrier_init();
        ptx_mbarrier_expect(b, 128);
        bulk_load(ptx_shared(s), i + (BAD ? 1 : 4), 128, b); // finds bulk_unaligned: misaligned bulk copy
    }
    __syncthreads();
    if (!BAD) ptx_mbarrier_wait(b, 0);
    if (!BAD && threadIdx.x < 32) o[threadIdx.x] = s[threadIdx.x];
}

/* ---- clusters */
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
__device__ __forceinline__ float cluster_load(const float *p, int rank) {
    float v;
    asm volatile("{ .reg .b32 a; mapa.shared::cluster.u32 a, %1, %2; ld.shared::cluster.f32 %0, [a]; }"
                 : "=f"(v)
                 : "r"(ptx_shared(p)), "r"(rank)
                 : "memory");
    return v;
}
template <bool BAD> __global__ void __cluster_dims__(2, 1, 1) cluster_race(float *o) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x + 64 * blockIdx.x;
    if (BAD)
        __syncthreads();
    else
        cluster_sync();
    o[threadIdx.x + 64 * blockIdx.x] =
        cluster_load(&s[threadIdx.x], 1 - blockIdx.x); // finds cluster_race: shared memory race
    cluster_sync();
}
/* A block must not leave while others read its shared memory. */
template <bool BAD> __global__ void __cluster_dims__(2, 1, 1) cluster_exit(float *o) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x;
    cluster_sync();
    if (blockIdx.x == 0)
        for (int k = 0; k < 20000; ++k)
            o[threadIdx.x] += cluster_load(&s[threadIdx.x], 1); // finds cluster_exit: distributed shared memory
    if (!BAD) cluster_sync();
}

static void run_cp_nowait(bool bad) {
    device_array<float4> i(32);
    device_array<float> o(32);
    BAD_LAUNCH(cp_nowait, 1, 32, 0, i.p, o.p);
}
static void run_cp_group(bool bad) {
    device_array<float4> i(32);
    device_array<float> o(32);
    BAD_LAUNCH(cp_group, 1, 32, 0, i.p, o.p);
}
static void run_cp_nosync(bool bad) {
    device_array<float4> i(64);
    device_array<float> o(64);
    BAD_LAUNCH(cp_nosync, 1, 64, 0, i.p, o.p);
}
static void run_mb_nowait(bool bad) {
    device_array<float> o(64);
    BAD_LAUNCH(mb_nowait, 1, 64, 0, o.p);
}
static void run_mb_noinit(bool bad) {
    device_array<float> o(32);
    BAD_LAUNCH(mb_noinit, 1, 32, 0, o.p);
}
static void run_mb_initrace(bool bad) {
    device_array<float> o(64);
    BAD_LAUNCH(mb_initrace, 1, 64, 0, o.p);
}
static void run_mb_stuck(bool bad) {
    device_array<float> o(32);
    BAD_LAUNCH(mb_stuck, 1, 32, 0, o.p);
}
static void run_mb_toomany(bool bad) {
    device_array<float> o(32);
    BAD_LAUNCH(mb_toomany, 1, 32, 0, o.p);
}
static void run_bulk_nowait(bool bad) {
    device_array<float> i(64), o(64);
    BAD_LAUNCH(bulk_nowait, 1, 64, 0, i.p, o.p);
}
static void run_bulk_refill(bool bad) {
    device_array<float> i(256), o(64);
    BAD_LAUNCH(bulk_refill, 1, 64, 0, i.p, o.p);
}
static void run_bulk_nofence(bool bad) {
    device_array<float> o(64);
    BAD_LAUNCH(bulk_nofence, 1, 64, 0, o.p);
}
static void run_bulk_reuse(bool bad) {
    device_array<float> o(64);
    BAD_LAUNCH(bulk_reuse, 1, 64, 0, o.p);
}
static void run_bulk_unaligned(bool bad) {
    device_array<float> i(64), o(64);
    BAD_LAUNCH(bulk_unaligned, 1, 64, 0, i.p, o.p);
}
static void run_cluster_race(bool bad) {
    device_array<float> o(128);
    BAD_LAUNCH(cluster_race, 2, 64, 0, o.p);
}
static void run_cluster_exit(bool bad) {
    device_array<float> o(64);
    BAD_LAUNCH(cluster_exit, 2, 64, 0, o.p);
}

int main(int argc, char **argv) {
    static const bad_case cases[] = {{"cp_nowait", run_cp_nowait},
                                     {"cp_group", run_cp_group},
                                     {"cp_nosync", run_cp_nosync},
                                     {"mb_nowait", run_mb_nowait},
                                     {"mb_noinit", run_mb_noinit},
                                     {"mb_initrace", run_mb_initrace},
                                     {"mb_stuck", run_mb_stuck},
                                     {"mb_toomany", run_mb_toomany},
                                     {"bulk_nowait", run_bulk_nowait},
                                     {"bulk_refill", run_bulk_refill},
                                     {"bulk_nofence", run_bulk_nofence},
                                     {"bulk_reuse", run_bulk_reuse},
                                     {"bulk_unaligned", run_bulk_unaligned},
                                     {"cluster_race", run_cluster_race},
                                     {"cluster_exit", run_cluster_exit}};
    return bad_main(cases, sizeof cases / sizeof *cases, argc, argv);
}
