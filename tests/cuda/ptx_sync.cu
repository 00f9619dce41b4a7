/* SPDX-License-Identifier: Apache-2.0 */
/* Barriers by name with producers that only arrive, barriers that vote, fences, and the instructions that have no effect on
 * results: they must be accepted and change nothing.
 * Targets: sm_90a. */
#include <cuda_runtime.h>

#include "cudatest.h"
#include "ptxw.cuh"

/* ---- two warps fill, two drain, in turn over two slots: bar.sync and bar.arrive by name */
__global__ void __launch_bounds__(128) producers(int *o, int rounds) {
    __shared__ int slot[2][64];
    const int t = threadIdx.x, half = t & 63;
    int sum = 0;
    if (t < 64) {
        for (int r = 0; r < rounds; ++r) {
            const int s = r & 1;
            if (r > 1) asm volatile("bar.sync %0, 128;" ::"r"(3 + s) : "memory"); /* empty again */
            slot[s][half] = 1000 * r + half;
            asm volatile("bar.arrive %0, 128;" ::"r"(1 + s) : "memory"); /* full */
        }
        for (int r = rounds < 2 ? 0 : rounds - 2; r < rounds; ++r)
            asm volatile("bar.sync %0, 128;" ::"r"(3 + (r & 1)) : "memory");
    } else
        for (int r = 0; r < rounds; ++r) {
            const int s = r & 1;
            asm volatile("barrier.sync %0, 128;" ::"r"(1 + s) : "memory");
            sum += slot[s][63 - half];
            asm volatile("bar.arrive %0, 128;" ::"r"(3 + s) : "memory");
        }
    o[t] = sum;
}
static void test_producers() {
    int *o = (int *)rq_device_buffer(128 * 4), got[128];
    const int rounds = 7;
    producers<<<1, 128>>>(o, rounds);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(got, o, sizeof got);
    for (int t = 0; t < 128; ++t)
        EXPECT_EQ_AT(t, got[t], t < 64 ? 0 : 1000 * (rounds * (rounds - 1) / 2) + rounds * (63 - (t - 64)));
    rq_record("producers and consumers", RQ_I32, got, 128, 0);
}

/* ---- bar.red on a named barrier, for half of the block */
__global__ void red(int *o, int pivot) {
    const int t = threadIdx.x;
    int count = -1, all = -1, any = -1;
    if (t < 64) {
        asm volatile("{ .reg .pred p; setp.lt.s32 p, %1, %2; bar.red.popc.u32 %0, 5, 64, p; }"
                     : "=r"(count)
                     : "r"(t), "r"(pivot)
                     : "memory");
        asm volatile(
            "{ .reg .pred p, q; setp.lt.s32 p, %1, %2; barrier.red.and.pred q, 5, 64, p; selp.s32 %0, 1, 0, q; }"
            : "=r"(all)
            : "r"(t), "r"(pivot)
            : "memory");
        asm volatile("{ .reg .pred p, q; setp.eq.s32 p, %1, %2; bar.red.or.pred q, 5, 64, p; selp.s32 %0, 1, 0, q; }"
                     : "=r"(any)
                     : "r"(t), "r"(pivot)
                     : "memory");
    }
    o[t] = count * 100 + all * 10 + any;
}
static void test_red() {
    for (int pivot : {0, 17, 63, 64, 65}) {
        int *o = (int *)rq_device_buffer(96 * 4), got[96];
        red<<<1, 96>>>(o, pivot);
        CHECK_CUDA(cudaGetLastError());
        rq_device_read(got, o, sizeof got);
        const int want = (pivot < 64 ? pivot : 64) * 100 + (pivot >= 64) * 10 + (pivot < 64);
        for (int t = 0; t < 96; ++t) EXPECT_EQ_AT(t, got[t], t < 64 ? want : -111);
    }
}

/* ---- a flag passed from block to block by release and acquire */
__global__ void relay(int *flag, int *value, int *o) {
    const int b = blockIdx.x;
    if (threadIdx.x == 0) {
        int turn;
        do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(turn) : "l"(flag) : "memory");
        while (turn != b);
        const int v = *value;
        o[b] = v;
        *value = 3 * v + 1;
        asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(flag), "r"(b + 1) : "memory");
    }
}
static void test_relay() {
    const int zero = 0, one = 1, blocks = 12;
    int *flag = (int *)rq_device_copy(&zero, 4), *value = (int *)rq_device_copy(&one, 4),
        *o = (int *)rq_device_buffer(blocks * 4), got[blocks];
    relay<<<blocks, 32>>>(flag, value, o);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(got, o, sizeof got);
    int v = 1;
    for (int b = 0; b < blocks; ++b) {
        EXPECT_EQ_AT(b, got[b], v);
        v = 3 * v + 1;
    }
}

/* ---- no effect on results */
__global__ void __launch_bounds__(128, 1) no_effect(const int *in, int *o) {
    __shared__ __align__(16) int s[128];
    const int t = threadIdx.x;
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    asm volatile("prefetch.global.L2 [%0];" ::"l"(in + t));
    asm volatile("prefetch.L1 [%0];" ::"l"(in + t));
    asm volatile("applypriority.global.L2::evict_normal [%0], 128;" ::"l"(in));
    asm volatile("nanosleep.u32 20;");
    asm volatile("pmevent 1;");
    asm volatile("membar.cta;\nmembar.gl;\nmembar.sys;" ::: "memory");
    asm volatile(
        "fence.acq_rel.gpu;\nfence.sc.cta;\nfence.proxy.alias;\nfence.proxy.async;\nfence.proxy.async.global;" ::
            : "memory");
    s[t] = in[t];
    __syncwarp(0xffffffffu);
    unsigned long long policy, there;
    int v;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("ld.global.L1::no_allocate.L2::cache_hint.s32 %0, [%1], %2;" : "=r"(v) : "l"(in + t), "l"(policy));
    asm volatile("{ .reg .u64 g; cvta.shared.u64 g, %1; mapa.u64 %0, g, 0; }"
                 : "=l"(there)
                 : "l"((unsigned long long)ptx_shared(&s[t ^ 1])));
    int w;
    unsigned rank;
    asm volatile("ld.s32 %0, [%1];" : "=r"(w) : "l"(there) : "memory");
    asm volatile("getctarank.u64 %0, %1;" : "=r"(rank) : "l"(there));
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 64;");
    o[t] = v + 3 * w + (int)rank;
}
static void test_no_effect() {
    int in[128], got[128];
    for (int t = 0; t < 128; ++t) in[t] = t * t;
    int *d = (int *)rq_device_copy(in, sizeof in), *o = (int *)rq_device_buffer(sizeof got);
    no_effect<<<1, 128>>>(d, o);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(got, o, sizeof got);
    for (int t = 0; t < 128; ++t) EXPECT_EQ_AT(t, got[t], in[t] + 3 * in[t ^ 1]);
}

int main() {
    rq_need_device(90);
    test_producers();
    test_red();
    test_relay();
    test_no_effect();
    return rq_done(__FILE__);
}
