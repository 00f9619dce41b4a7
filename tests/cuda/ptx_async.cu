/* SPDX-License-Identifier: Apache-2.0 */
/* cp.async and mbarrier, form by form, against plain C. Bulk and tensor copies: ptx_bulk.c.
 * Targets: sm_90a. */
#include <cuda_runtime.h>

#include <vector>

#include "cudatest.h"
#include "ptxw.cuh"

/* ---- cp.async: 4, 8 and 16 bytes, short sources, ignored sources, groups in flight */
__global__ void copies(const unsigned char *in, unsigned char *o) {
    __shared__ __align__(16) unsigned char s[64 * 64];
    const unsigned t = threadIdx.x;
    const unsigned char *from = in + 64 * t;
    uint32_t to = ptx_shared(s + 64 * t);
    for (int k = 0; k < 16; ++k) reinterpret_cast<unsigned *>(s + 64 * t)[k] = 0x11111111u;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
    asm volatile("cp.async.ca.shared.global [%0+8], [%1+8], 8;" ::"r"(to), "l"(from) : "memory");
    ptx_cp_async_commit();
    asm volatile("cp.async.cg.shared.global.L2::128B [%0+16], [%1+16], 16, %2;" ::"r"(to), "l"(from), "r"(t % 17)
                 : "memory");
    asm volatile("{ .reg .pred p; setp.eq.u32 p, %2, 0; cp.async.ca.shared.global [%0+32], [%1+32], 16, p; }" ::"r"(to),
                 "l"(from), "r"(t & 1)
                 : "memory");
    ptx_cp_async_commit();
    asm volatile("cp.async.cg.shared.global [%0+48], [%1+48], 16;" ::"r"(to), "l"(from) : "memory");
    ptx_cp_async_wait<1>(); /* the first two groups' worth; the last copy is in no group */
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    for (int k = 0; k < 64; ++k) o[64 * t + k] = s[64 * (63 - t) + k];
}
static void test_copies() {
    std::vector<unsigned char> in(64 * 64), got(64 * 64), want(64 * 64);
    rq_rng rng = {5};
    rq_rand_bytes(&rng, in.data(), in.size());
    unsigned char *d = (unsigned char *)rq_device_copy(in.data(), in.size()),
                  *o = (unsigned char *)rq_device_buffer(in.size());
    copies<<<1, 64>>>(d, o);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(got.data(), o, got.size());
    for (unsigned t = 0; t < 64; ++t) {
        const unsigned char *p = &in[64 * t];
        unsigned char *w = &want[64 * (63 - t)];
        memset(w, 0x11, 64);
        memcpy(w, p, 4);
        memcpy(w + 8, p + 8, 8);
        memset(w + 16, 0, 16);
        memcpy(w + 16, p + 16, t % 17);
        memset(w + 32, 0, 16);
        if (t & 1) memcpy(w + 32, p + 32, 16);
        memcpy(w + 48, p + 48, 16);
    }
    for (size_t k = 0; k < got.size(); ++k) EXPECT_EQ_AT(k, got[k], want[k]);
    rq_record("cp.async", RQ_U8, got.data(), got.size(), 0);
}

/* ---- mbarrier: phases by state and by parity, counts, drops, bytes */
__global__ void phases(int *o) {
    __shared__ __align__(8) uint64_t bar[3];
    __shared__ int s[64];
    const int t = threadIdx.x;
    const uint32_t a = ptx_shared(&bar[0]), b = ptx_shared(&bar[1]), c = ptx_shared(&bar[2]);
    if (t == 0) {
        ptx_mbarrier_init(a, 64);
        ptx_mbarrier_init(b, 65); /* 64 threads and one arrival with a count */
        ptx_mbarrier_init(c, 3);
    }
    __syncthreads();
    int sum = 0, pending = 0;
    for (int round = 0; round < 4; ++round) { /* by state */
        unsigned long long state;
        unsigned done;
        s[t] = 100 * round + t;
        asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(a) : "memory");
        do
            asm volatile("{ .reg .pred p; mbarrier.test_wait.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                         : "=r"(done)
                         : "r"(a), "l"(state)
                         : "memory");
        while (!done);
        sum += s[63 - t];
        asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1], 1;" : "=l"(state) : "r"(b) : "memory");
        if (t == 7) asm volatile("{ .reg .b64 x; mbarrier.arrive.shared::cta.b64 x, [%0]; }" ::"r"(b) : "memory");
        ptx_mbarrier_wait(b, round & 1); /* by parity */
    }
    /* three arrivals at first, two after one of them is dropped */
    if (t < 3) {
        unsigned long long state;
        unsigned left;
        if (t == 2)
            asm volatile("mbarrier.arrive_drop.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(c) : "memory");
        else
            asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(c) : "memory");
        asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(left) : "l"(state));
        pending = (int)left;
        ptx_mbarrier_wait(c, 0);
        if (t < 2) {
            asm volatile("{ .reg .b64 x; mbarrier.arrive.shared::cta.b64 x, [%0]; }" ::"r"(c) : "memory");
            ptx_mbarrier_wait(c, 1);
            sum += 1000000;
        }
    }
    o[2 * t] = sum;
    o[2 * t + 1] = pending;
}
static void test_phases() {
    int *o = (int *)rq_device_buffer(128 * 4), got[128];
    phases<<<1, 64>>>(o);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(got, o, sizeof got);
    int pending = 0;
    for (int t = 0; t < 64; ++t) {
        EXPECT_EQ_AT(t, got[2 * t], 600 + 4 * (63 - t) + (t < 2 ? 1000000 : 0));
        if (t < 3) pending += got[2 * t + 1];
    }
    EXPECT_EQ(pending, 3 + 2 + 1); /* before each arrival */
}

/* ---- cp.async that arrives at an mbarrier when it has landed */
template <bool NOINC> __global__ void arriving(const int *in, int *o) {
    __shared__ __align__(16) int s[2][128];
    __shared__ __align__(8) uint64_t bar;
    const int t = threadIdx.x;
    const uint32_t b = ptx_shared(&bar);
    if (t == 0) ptx_mbarrier_init(b, 32);
    __syncthreads();
    for (int k = 0; k < 2; ++k) {
        ptx_cp_async16(ptx_shared(&s[k][4 * t]), in + 128 * k + 4 * t, true);
        if (NOINC)
            asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(b) : "memory");
        else {
            asm volatile("cp.async.mbarrier.arrive.shared.b64 [%0];" ::"r"(b) : "memory");
            asm volatile("{ .reg .b64 x; mbarrier.arrive.shared::cta.b64 x, [%0]; }" ::"r"(b) : "memory");
        }
        ptx_mbarrier_wait(b, k);
    }
    for (int q = 0; q < 4; ++q) o[4 * t + q] = s[0][127 - 4 * t - q] + 3 * s[1][(4 * t + q + 64) & 127];
}
static void test_arriving() {
    int in[256], got[128];
    for (int k = 0; k < 256; ++k) in[k] = k * k % 1009;
    int *d = (int *)rq_device_copy(in, sizeof in);
    for (int noinc = 0; noinc < 2; ++noinc) {
        int *o = (int *)rq_device_buffer(sizeof got);
        if (noinc)
            arriving<true><<<1, 32>>>(d, o);
        else
            arriving<false><<<1, 32>>>(d, o);
        CHECK_CUDA(cudaGetLastError());
        rq_device_read(got, o, sizeof got);
        for (int k = 0; k < 128; ++k) EXPECT_EQ_AT(k, got[k], in[127 - k] + 3 * in[128 + ((k + 64) & 127)]);
    }
}

/* ---- st.async, red.async: to the shared memory of the neighbour, whose mbarrier counts the bytes */
__global__ void __cluster_dims__(2, 1, 1) remote(int *o) {
    __shared__ __align__(16) int s[64];
    __shared__ int total;
    __shared__ __align__(8) uint64_t bar;
    const int t = threadIdx.x;
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    const uint32_t b = ptx_shared(&bar);
    if (t == 0) {
        total = 1000;
        ptx_mbarrier_init(b, 1);
        ptx_fence_mbarrier_init();
        ptx_mbarrier_expect(b, 32 * 8 + 32 * 4);
    }
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
    asm volatile(
        "{ .reg .b32 a, m, r;\n"
        "mapa.shared::cluster.u32 a, %0, %3; mapa.shared::cluster.u32 m, %1, %3; mapa.shared::cluster.u32 r, %2, %3;\n"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.s32 [a], {%4, %5}, [m];\n"
        "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [r], %4, [m]; }" ::"r"(
            ptx_shared(&s[2 * t])),
        "r"(b), "r"(ptx_shared(&total)), "r"(1 - rank), "r"(t + 100 * (int)rank), "r"(-t)
        : "memory");
    ptx_mbarrier_wait(b, 0);
    o[66 * rank + 2 * t] = s[2 * t];
    o[66 * rank + 2 * t + 1] = s[2 * t + 1];
    if (t == 0) o[66 * rank + 64] = total;
    if (t == 1) o[66 * rank + 65] = 0;
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
static void test_remote() {
    int *o = (int *)rq_device_buffer(132 * 4), got[132];
    remote<<<2, 32>>>(o);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(got, o, sizeof got);
    for (int r = 0; r < 2; ++r) {
        for (int t = 0; t < 32; ++t) {
            EXPECT_EQ_AT(t, got[66 * r + 2 * t], t + 100 * (1 - r));
            EXPECT_EQ_AT(t, got[66 * r + 2 * t + 1], -t);
        }
        EXPECT_EQ(got[66 * r + 64], 1000 + 496 + 3200 * (1 - r));
    }
}

int main() {
    rq_need_device(90);
    test_copies();
    test_phases();
    test_arriving();
    test_remote();
    return rq_done(__FILE__);
}
