/* SPDX-License-Identifier: Apache-2.0 */
/* What the language makes of PTX, beside arithmetic: calls of functions, local arrays, jump tables, votes at barriers, atomics,
 * a lock between the lanes of one warp, a barrier of the whole grid, printf.
 * Targets: sm_90a. */
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <vector>

#include "cudatest.h"

namespace cg = cooperative_groups;

/* ---- calls */
struct pair {
    float a;
    int b;
};
__device__ __noinline__ pair twice(float x, const pair &p, int *count) {
    ++*count;
    return {2 * x + p.a, p.b + 1};
}
__device__ __noinline__ float nested(float x, int depth, int *count) {
    pair p = twice(x, {1.0f, depth}, count);
    if (depth > 2) return p.a;
    pair q = twice(p.a, p, count);
    return q.a + q.b;
}
__device__ __noinline__ float through_shared(float x) {
    __shared__ float s[64]; /* one place, however often this is called */
    __syncthreads();
    s[threadIdx.x] = x;
    __syncthreads();
    return s[63 - threadIdx.x];
}
__global__ void calls(float *o, int *counts) {
    int t = threadIdx.x, count = 0;
    float v = nested((float)t, t & 7, &count);
    if (t & 1) v += nested(v, 1, &count); /* only some lanes call */
    v = through_shared(v);
    v += through_shared(v + 1);
    o[t] = v;
    counts[t] = count;
}
static float host_nested(float x, int depth, int *count) {
    ++*count;
    float a = 2 * x + 1;
    int b = depth + 1;
    if (depth > 2) return a;
    ++*count;
    return 2 * a + a + (float)(b + 1);
}
static void test_calls() {
    float *o = (float *)rq_device_buffer(64 * 4), got[64], before[64], first[64];
    int *counts = (int *)rq_device_buffer(64 * 4), n[64], want[64];
    calls<<<1, 64>>>(o, counts);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(got, o, sizeof got);
    rq_device_read(n, counts, sizeof n);
    for (int t = 0; t < 64; ++t) {
        want[t] = 0;
        before[t] = host_nested((float)t, t & 7, &want[t]);
        if (t & 1) before[t] += host_nested(before[t], 1, &want[t]);
    }
    for (int t = 0; t < 64; ++t) first[t] = before[63 - t];
    for (int t = 0; t < 64; ++t) {
        EXPECT_EQ_AT(t, got[t], first[t] + (first[63 - t] + 1));
        EXPECT_EQ_AT(t, n[t], want[t]);
    }
    rq_record("calls", RQ_F32, got, 64, 0);
    rq_record("call counts", RQ_I32, n, 64, 0);
}

/* ---- local memory, jump tables */
__global__ void local_and_switch(const int *in, int *o, int n) {
    int t = threadIdx.x + blockIdx.x * blockDim.x, v[16];
    if (t >= n) return;
    for (int k = 0; k < 16; ++k) v[k] = in[(t + k) % n];
    for (int k = 0; k < 16; ++k) v[(in[t] + k) & 15] += v[k] >> 3; /* an index known only at run time: local memory */
    int r = v[in[t] & 15];
    switch (in[t] % 9) {
    case 0: r += 3; break;
    case 1: r *= 5; break;
    case 2: r ^= 0x55; break;
    case 3: r -= v[1]; break;
    case 4: r = ~r; break;
    case 5: r <<= 2; break;
    case 6: r += v[2] * v[3]; break;
    case 7: r |= 64; break;
    default: r = -r; break;
    }
    o[t] = r;
}
static void test_local() {
    const int n = 300;
    std::vector<int> in(n), got(n);
    rq_rng rng = {7};
    for (int &x : in) x = (int)(rq_rand_u32(&rng) % 100000);
    int *d_in = (int *)rq_device_copy(in.data(), n * 4), *o = (int *)rq_device_buffer(n * 4);
    local_and_switch<<<3, 128>>>(d_in, o, n);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(got.data(), o, n * 4);
    for (int t = 0; t < n; ++t) {
        int v[16];
        for (int k = 0; k < 16; ++k) v[k] = in[(t + k) % n];
        for (int k = 0; k < 16; ++k) v[(in[t] + k) & 15] += v[k] >> 3;
        unsigned r = (unsigned)v[in[t] & 15];
        switch (in[t] % 9) {
        case 0: r += 3; break;
        case 1: r *= 5; break;
        case 2: r ^= 0x55; break;
        case 3: r -= (unsigned)v[1]; break;
        case 4: r = ~r; break;
        case 5: r <<= 2; break;
        case 6: r += (unsigned)v[2] * (unsigned)v[3]; break;
        case 7: r |= 64; break;
        default: r = 0u - r; break;
        }
        EXPECT_EQ_AT(t, got[t], (int)r);
    }
    rq_record("local memory and a switch", RQ_I32, got.data(), n, 0);
}

/* ---- votes at a barrier; barriers by name */
__global__ void votes(int *o, int pivot) {
    int t = threadIdx.x;
    int count = __syncthreads_count(t < pivot);
    int all = __syncthreads_and(t < pivot);
    int any = __syncthreads_or(t == pivot);
    int odd = __syncthreads_count(t & 1);
    o[t] = count | (all != 0) << 12 | (any != 0) << 13 | odd << 16;
}
static void test_votes() {
    for (int pivot : {0, 5, 95, 96, 200}) {
        int *o = (int *)rq_device_buffer(96 * 4), got[96];
        votes<<<1, 96>>>(o, pivot);
        CHECK_CUDA(cudaGetLastError());
        rq_device_read(got, o, sizeof got);
        int want = (pivot < 96 ? pivot : 96) | (pivot >= 96) << 12 | (pivot < 96) << 13 | 48 << 16;
        for (int t = 0; t < 96; ++t) EXPECT_EQ_AT(t, got[t], want);
        rq_record("votes at a barrier", RQ_I32, got, 96, 0);
    }
}

/* ---- atomics */
__global__ void atomics(int *i, unsigned *u, unsigned long long *l, float *f, double *d) {
    __shared__ unsigned s;
    int t = threadIdx.x + blockIdx.x * blockDim.x;
    if (threadIdx.x == 0) s = 0;
    __syncthreads();
    atomicAdd(&s, threadIdx.x);
    atomicAdd(i + 0, t - 50);
    atomicMin(i + 1, 100 - t);
    atomicMax(i + 2, t - 300);
    atomicSub(i + 3, t);
    atomicAnd(u + 0, ~(1u << (t & 15)));
    atomicOr(u + 1, 1u << (t & 31));
    atomicXor(u + 2, (unsigned)t * 2654435761u);
    atomicInc(u + 3, 6);
    atomicDec(u + 4, 6);
    atomicMax(u + 5, 4294967000u + (unsigned)(t & 63));
    atomicAdd(l + 0, (unsigned long long)t << 30);
    atomicMax(l + 1, (unsigned long long)t << 33);
    unsigned seen = u[6], old;
    do { /* compare and swap: count every thread once */
        old = seen;
        seen = atomicCAS(u + 6, old, old + 3);
    } while (seen != old);
    atomicExch(u + 7, 77u);
    atomicAdd(f, (float)(t & 7)); /* exact in any order */
    atomicAdd(d, 0.5 * t);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(u + 8, s);
}
static void test_atomics() {
    int i0[4] = {0, 1000, -1000, 0}, i[4];
    unsigned u0[9] = {0xffffffffu, 0, 0, 0, 0, 0, 0, 0, 0}, u[9];
    unsigned long long l0[2] = {0, 0}, l[2];
    float f0 = 0, f;
    double d0 = 0, d;
    int *di = (int *)rq_device_copy(i0, sizeof i0);
    unsigned *du = (unsigned *)rq_device_copy(u0, sizeof u0);
    unsigned long long *dl = (unsigned long long *)rq_device_copy(l0, sizeof l0);
    float *df = (float *)rq_device_copy(&f0, sizeof f0);
    double *dd = (double *)rq_device_copy(&d0, sizeof d0);
    atomics<<<4, 96>>>(di, du, dl, df, dd);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(i, di, sizeof i);
    rq_device_read(u, du, sizeof u);
    rq_device_read(l, dl, sizeof l);
    rq_device_read(&f, df, sizeof f);
    rq_device_read(&d, dd, sizeof d);
    unsigned x = 0, fs = 0;
    unsigned long long ls = 0;
    const int n = 384;
    for (int t = 0; t < n; ++t) {
        x ^= (unsigned)t * 2654435761u;
        fs += (unsigned)(t & 7);
        ls += (unsigned long long)t << 30;
    }
    EXPECT_EQ(i[0], n * (n - 1) / 2 - 50 * n);
    EXPECT_EQ(i[1], 100 - (n - 1));
    EXPECT_EQ(i[2], n - 1 - 300);
    EXPECT_EQ(i[3], -n * (n - 1) / 2);
    const unsigned want[9] = {0xffff0000u, 0xffffffffu,      x, n % 7, (7 - n % 7) % 7, 4294967000u + 63, 3 * n,
                              77,          4 * (96 * 95 / 2)};
    for (int k = 0; k < 9; ++k) EXPECT_EQ_AT(k, u[k], want[k]);
    EXPECT_EQ(l[0], ls);
    EXPECT_EQ(l[1], (unsigned long long)(n - 1) << 33);
    EXPECT_EQ(f, (float)fs);
    EXPECT_EQ(d, 0.5 * (n * (n - 1) / 2));
    rq_record("atomics", RQ_U32, u, 9, 0);
}

/* ---- a lock that the lanes of one warp take in turn: each must make progress while others spin */
__global__ void lock(int *word, int *sum) {
    bool done = false;
    while (!done) {
        if (atomicCAS(word, 0, 1) == 0) {
            *sum = *(volatile int *)sum + (int)threadIdx.x;
            __threadfence();
            atomicExch(word, 0);
            done = true;
        }
    }
}
__global__ void lock_waits(int *word, int *sum) /* the holder comes later in the code than those who wait */
{
    while (atomicCAS(word, 0, 1) != 0) {}
    *sum = *(volatile int *)sum + 1;
    __threadfence();
    atomicExch(word, 0);
}
static void test_lock() {
    int zero = 0, got;
    int *word = (int *)rq_device_copy(&zero, 4), *sum = (int *)rq_device_copy(&zero, 4);
    lock<<<2, 64>>>(word, sum);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(&got, sum, 4);
    EXPECT_EQ(got, 2 * (64 * 63 / 2));
    lock_waits<<<2, 48>>>(word, sum);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(&got, sum, 4);
    EXPECT_EQ(got, 2 * (64 * 63 / 2) + 96);
}

/* ---- a barrier of the whole grid */
__global__ void grid_rounds(int *a, int *b, int n, int rounds) {
    cg::grid_group grid = cg::this_grid();
    int t = threadIdx.x + blockIdx.x * blockDim.x;
    for (int r = 0; r < rounds; ++r) {
        if (t < n) b[t] = a[t] + a[(t + 1) % n] % 1000;
        grid.sync();
        int *swap = a;
        a = b;
        b = swap;
    }
}
static void test_grid() {
    int n = 500, rounds = 5;
    std::vector<int> v(n), next(n), got(n);
    for (int k = 0; k < n; ++k) v[k] = k * 37 % 101;
    int *a = (int *)rq_device_copy(v.data(), n * 4), *b = (int *)rq_device_copy(v.data(), n * 4);
    void *args[] = {&a, &b, &n, &rounds};
    CHECK_CUDA(cudaLaunchCooperativeKernel((const void *)grid_rounds, dim3(8), dim3(64), args, 0, nullptr));
    for (int r = 0; r < rounds; ++r) {
        for (int t = 0; t < n; ++t) next[t] = v[t] + v[(t + 1) % n] % 1000;
        v = next;
    }
    rq_device_read(got.data(), b, n * 4); /* an odd number of rounds */
    for (int t = 0; t < n; ++t) EXPECT_EQ_AT(t, got[t], v[t]);
    rq_record("rounds of a grid", RQ_I32, got.data(), n, 0);
}

/* ---- printf */
__global__ void prints(int n, const char *unused) {
    if (threadIdx.x == 1)
        printf("block %u: %d %5.2f %s %c %llx %%%s\n", blockIdx.x, -n, 1.5 * n, "text", 'c', 1ull << 40,
               unused ? "" : "!");
}

int main() {
    rq_need_device(90);
    test_calls();
    test_local();
    test_votes();
    test_atomics();
    test_lock();
    test_grid();
    prints<<<2, 32>>>(3, nullptr);
    CHECK_CUDA(cudaDeviceSynchronize());
    return rq_done(__FILE__);
}
