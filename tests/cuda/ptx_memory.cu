/* SPDX-License-Identifier: Apache-2.0 */
/* Loads, stores, moves and address spaces, instruction by instruction (inline PTX), against plain C.
 * Targets: sm_90a. */
#include <cuda_runtime.h>

#include <cmath>
#include <vector>

#include "cudatest.h"

static const int N = 64;

/* ---- ld: every width into registers of 32 and 64 bits, extended as the type says; vectors */
__global__ void loads(const unsigned char *in, unsigned long long *o) {
    const unsigned char *p = in + 16 * threadIdx.x;
    unsigned long long *q = o + 32 * threadIdx.x;
    unsigned r;
    unsigned long long d;
#define LOAD32(k, type)                                                                                                \
    asm volatile("ld.global." type " %0, [%1];" : "=r"(r) : "l"(p));                                                   \
    q[k] = r
#define LOAD64(k, type)                                                                                                \
    asm volatile("ld.global." type " %0, [%1];" : "=l"(d) : "l"(p));                                                   \
    q[k] = d
    LOAD32(0, "u8");
    LOAD32(1, "s8");
    LOAD32(2, "u16");
    LOAD32(3, "s16");
    LOAD32(4, "b32");
    LOAD64(5, "u8");
    LOAD64(6, "s8");
    LOAD64(7, "s16");
    LOAD64(8, "u32");
    LOAD64(9, "s32");
    LOAD64(10, "b64");
    unsigned a, b, c, e;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(e) : "l"(p));
    q[11] = a ^ b * 3ull ^ c * 5ull ^ e * 7ull;
    asm volatile("ld.global.v4.s8 {%0, %1, %2, %3}, [%4+4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(e) : "l"(p));
    q[12] = (unsigned long long)(a & 0xffff) | (unsigned long long)(b & 0xffff) << 16 |
            (unsigned long long)(c & 0xffff) << 32 | (unsigned long long)(e & 0xffff) << 48;
    asm volatile("ld.global.v2.u16 {%0, %1}, [%2+8];" : "=r"(a), "=r"(b) : "l"(p));
    q[13] = a | (unsigned long long)b << 32;
    unsigned long long x, y;
    asm volatile("ld.global.v2.b64 {%0, %1}, [%2];" : "=l"(x), "=l"(y) : "l"(p));
    q[14] = x + 3 * y;
    asm volatile("ld.global.v2.u32 {_, %0}, [%1+8];" : "=r"(a) : "l"(p));
    q[15] = a;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1+-16];" : "=r"(a) : "l"(p + 16));
    q[16] = a;
}
static void test_loads() {
    std::vector<unsigned char> in(16 * N);
    std::vector<unsigned long long> got(32 * N);
    rq_rng rng = {3};
    rq_rand_bytes(&rng, in.data(), in.size());
    unsigned char *d = (unsigned char *)rq_device_copy(in.data(), in.size());
    unsigned long long *o = (unsigned long long *)rq_device_buffer(got.size() * 8);
    loads<<<1, N>>>(d, o);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(got.data(), o, got.size() * 8);
    for (int t = 0; t < N; ++t) {
        const unsigned char *p = &in[16 * t];
        unsigned w[4];
        unsigned long long l[2];
        unsigned short h[8];
        memcpy(w, p, 16);
        memcpy(l, p, 16);
        memcpy(h, p, 16);
        const unsigned long long want[17] = {p[0],
                                             (unsigned)(int)(signed char)p[0],
                                             h[0],
                                             (unsigned)(int)(short)h[0],
                                             w[0],
                                             p[0],
                                             (unsigned long long)(signed char)p[0],
                                             (unsigned long long)(short)h[0],
                                             w[0],
                                             (unsigned long long)(int)w[0],
                                             l[0],
                                             w[0] ^ w[1] * 3ull ^ w[2] * 5ull ^ w[3] * 7ull,
                                             (unsigned long long)(unsigned short)(signed char)p[4] |
                                                 (unsigned long long)(unsigned short)(signed char)p[5] << 16 |
                                                 (unsigned long long)(unsigned short)(signed char)p[6] << 32 |
                                                 (unsigned long long)(unsigned short)(signed char)p[7] << 48,
                                             h[4] | (unsigned long long)h[5] << 32,
                                             l[0] + 3 * l[1],
                                             w[3],
                                             w[0]};
        for (int k = 0; k < 17; ++k) EXPECT_EQ_AT(t * 100 + k, got[32 * t + k], want[k]);
    }
}

/* ---- st narrower than the register; mov of packs */
__global__ void stores(const unsigned long long *in, unsigned char *o) {
    unsigned long long v = in[threadIdx.x];
    unsigned char *p = o + 64 * threadIdx.x;
    for (int k = 0; k < 64; ++k) p[k] = 0;
    asm volatile("st.global.u8 [%0], %1;" ::"l"(p), "r"((unsigned)v) : "memory");
    asm volatile("st.global.u16 [%0+2], %1;" ::"l"(p), "r"((unsigned)v) : "memory");
    asm volatile("st.global.u32 [%0+4], %1;" ::"l"(p), "l"(v) : "memory");
    asm volatile("st.global.v2.u8 [%0+8], {%1, %2};" ::"l"(p), "r"((unsigned)v), "r"((unsigned)(v >> 8)) : "memory");
    asm volatile("st.global.v4.u16 [%0+16], {%1, %2, %1, %2};" ::"l"(p), "r"((unsigned)v), "r"((unsigned)(v >> 32))
                 : "memory");
    asm volatile("{ .reg .b32 a, b; mov.b64 {a, b}, %1; st.global.v2.b32 [%0+24], {b, a}; }" ::"l"(p), "l"(v)
                 : "memory");
    asm volatile("{ .reg .b16 a, b, c, d; .reg .b64 e; mov.b64 {a, b, c, d}, %1; mov.b64 e, {d, a, c, b}; "
                 "st.global.b64 [%0+32], e; }" ::"l"(p),
                 "l"(v)
                 : "memory");
    asm volatile("{ .reg .b16 a, b; .reg .b32 e; mov.b32 {a, b}, %1; mov.b32 e, {b, a}; st.release.gpu.global.b32 "
                 "[%0+40], e; }" ::"l"(p),
                 "r"((unsigned)v)
                 : "memory");
    asm volatile("st.global.v2.b64 [%0+48], {%1, %1};" ::"l"(p), "l"(v) : "memory");
}
static void test_stores() {
    std::vector<unsigned long long> in(N);
    std::vector<unsigned char> got(64 * N);
    rq_rng rng = {4};
    for (auto &v : in) v = rq_rand_u64(&rng);
    unsigned long long *d = (unsigned long long *)rq_device_copy(in.data(), N * 8);
    unsigned char *o = (unsigned char *)rq_device_buffer(got.size());
    stores<<<1, N>>>(d, o);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(got.data(), o, got.size());
    for (int t = 0; t < N; ++t) {
        unsigned char want[64] = {0};
        unsigned long long v = in[t];
        unsigned short h[4];
        unsigned w[2];
        memcpy(h, &v, 8);
        memcpy(w, &v, 8);
        want[0] = (unsigned char)v;
        memcpy(want + 2, &h[0], 2);
        memcpy(want + 4, &w[0], 4);
        want[8] = (unsigned char)v;
        want[9] = (unsigned char)(v >> 8);
        const unsigned short four[4] = {h[0], h[2], h[0], h[2]}, mixed[4] = {h[3], h[0], h[2], h[1]},
                             two[2] = {h[1], h[0]};
        memcpy(want + 16, four, 8);
        memcpy(want + 24, &w[1], 4);
        memcpy(want + 28, &w[0], 4);
        memcpy(want + 32, mixed, 8);
        memcpy(want + 40, two, 4);
        memcpy(want + 48, &v, 8);
        memcpy(want + 56, &v, 8);
        for (int k = 0; k < 64; ++k) EXPECT_EQ_AT(t * 100 + k, got[64 * t + k], want[k]);
    }
}

/* ---- atom and red of the types that the language gives no call for */
__global__ void atoms(unsigned long long *l, unsigned *h, long long *s, float *v, unsigned long long *old) {
    unsigned t = threadIdx.x;
    unsigned long long r;
    asm volatile("atom.global.add.u64 %0, [%1], %2;" : "=l"(r) : "l"(l), "l"((unsigned long long)t << 33) : "memory");
    asm volatile("red.global.min.s64 [%0], %1;" ::"l"(s), "l"((long long)(20 - (int)t) << 34) : "memory");
    asm volatile("red.global.max.s64 [%0+8], %1;" ::"l"(s), "l"((long long)(20 - (int)t) << 34) : "memory");
    asm volatile("red.global.and.b64 [%0+8], %1;" ::"l"(l), "l"(~(1ull << t)) : "memory");
    asm volatile("red.global.or.b64 [%0+16], %1;" ::"l"(l), "l"(1ull << t) : "memory");
    asm volatile("red.global.xor.b64 [%0+24], %1;" ::"l"(l), "l"(0x9E3779B97F4A7C15ull * t) : "memory");
    asm volatile("red.global.add.noftz.f16x2 [%0], %1;" ::"l"(h), "r"(0x3c003800u) : "memory");    /* 1.0, 0.5 */
    asm volatile("red.global.add.noftz.bf16x2 [%0+4], %1;" ::"l"(h), "r"(0x3f803f00u) : "memory"); /* 1.0, 0.5 */
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(v), "f"(1.0f), "f"((float)(t & 3)) : "memory");
    asm volatile("atom.acq_rel.gpu.global.cas.b64 %0, [%1+32], %2, %3;"
                 : "=l"(r)
                 : "l"(l), "l"((unsigned long long)t), "l"((unsigned long long)t + 1)
                 : "memory");
    old[t] = r;
    asm volatile("atom.global.exch.b64 _, [%0+40], %1;" ::"l"(l), "l"((unsigned long long)t) : "memory");
}
static void test_atoms() {
    unsigned long long l0[6] = {1, ~0ull, 0, 0, 0, 99}, l[6], x = 0;
    unsigned h0[2] = {0, 0}, h[2];
    long long s0[2] = {1, 1}, s[2];
    float v0[2] = {0, 0}, v[2];
    unsigned long long *dl = (unsigned long long *)rq_device_copy(l0, sizeof l0),
                       *old = (unsigned long long *)rq_device_buffer(32 * 8), seen[32];
    unsigned *dh = (unsigned *)rq_device_copy(h0, sizeof h0);
    long long *ds = (long long *)rq_device_copy(s0, sizeof s0);
    float *dv = (float *)rq_device_copy(v0, sizeof v0);
    atoms<<<1, 32>>>(dl, dh, ds, dv, old);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(l, dl, sizeof l);
    rq_device_read(h, dh, sizeof h);
    rq_device_read(s, ds, sizeof s);
    rq_device_read(v, dv, sizeof v);
    rq_device_read(seen, old, sizeof seen);
    for (unsigned t = 0; t < 32; ++t) x ^= 0x9E3779B97F4A7C15ull * t;
    EXPECT_EQ(l[0], 1 + (496ull << 33));
    EXPECT_EQ(l[1], 0xffffffff00000000ull);
    EXPECT_EQ(l[2], 0xffffffffull);
    EXPECT_EQ(l[3], x);
    EXPECT(l[4] >= 1 && l[4] <= 32); /* a chain of exchanges, as long as the order of lanes lets it be */
    EXPECT(l[5] < 32);
    EXPECT_EQ(s[0], (long long)(20 - 31) * (1ll << 34));
    EXPECT_EQ(s[1], (long long)20 * (1ll << 34));
    EXPECT_EQ(h[0], 0x50004c00u); /* 32, 16 as fp16 */
    EXPECT_EQ(h[1], 0x42004180u); /* 32, 16 as bf16 */
    EXPECT_EQ(v[0], 32.0f);
    EXPECT_EQ(v[1], 48.0f);
    for (int t = 0; t < 32; ++t) EXPECT(seen[t] <= 32);
}

/* ---- address spaces: generic addresses reach all of them, isspacep tells them apart */
__constant__ int c_table[4] = {10, 20, 30, 40};
__device__ int g_table[4] = {1, 2, 3, 4};
__device__ __noinline__ int spaces_of(const void *p) {
    int r = 0, b;
#define IS(space, bit)                                                                                                 \
    asm("{ .reg .pred p; isspacep." space " p, %1; selp.s32 %0, 1, 0, p; }" : "=r"(b) : "l"(p));                       \
    r |= b << bit
    IS("global", 0);
    IS("shared", 1);
    IS("local", 2);
    return r;
}
__global__ void spaces(int *o, int pick) {
    __shared__ int s[4];
    int l[4] = {100 + pick, 200, 300 + pick, 400};
    if (threadIdx.x < 4) s[threadIdx.x] = 1000 + (int)threadIdx.x;
    __syncthreads();
    int *g = g_table;
    const int *p = threadIdx.x % 3 == 0 ? g : threadIdx.x % 3 == 1 ? s : l;
    o[3 * threadIdx.x] = p[(pick + threadIdx.x) & 3] + c_table[threadIdx.x & 3]; /* lanes in three spaces at once */
    o[3 * threadIdx.x + 1] = spaces_of(p);
    unsigned a = (unsigned)__cvta_generic_to_shared(s);
    int back;
    asm volatile("{ .reg .u64 w, g; cvt.u64.u32 w, %1; cvta.shared.u64 g, w; ld.s32 %0, [g+8]; }"
                 : "=r"(back)
                 : "r"(a));
    o[3 * threadIdx.x + 2] = back;
}
static void test_spaces() {
    int *o = (int *)rq_device_buffer(96 * 4), got[96];
    spaces<<<1, 32>>>(o, 1);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(got, o, sizeof got);
    for (int t = 0; t < 32; ++t) {
        int k = (1 + t) & 3;
        const int l[4] = {101, 200, 301, 400};
        int want = t % 3 == 0 ? 1 + k : t % 3 == 1 ? 1000 + k : l[k];
        EXPECT_EQ_AT(t, got[3 * t], want + 10 * ((t & 3) + 1));
        EXPECT_EQ_AT(t, got[3 * t + 1], 1 << (t % 3));
        EXPECT_EQ_AT(t, got[3 * t + 2], 1002);
    }
}

/* ---- parameters: structures, large ones, their address taken */
struct big {
    char c;
    short s;
    double d;
    int v[40];
};
__global__ void params(char c, double d, big b, short s, int *o) {
    int sum = 0;
    for (int k = 0; k < 40; ++k)
        sum += b.v[(k + (int)threadIdx.x) % 40] * k; /* an index at run time: through an address */
    o[threadIdx.x] = c + (int)d + b.c + b.s + (int)b.d + s + sum;
}
static void test_params() {
    big b = {5, -300, 7.5, {}};
    for (int k = 0; k < 40; ++k) b.v[k] = k * k;
    int *o = (int *)rq_device_buffer(32 * 4), got[32];
    params<<<1, 32>>>(-3, 1e6, b, 77, o);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(got, o, sizeof got);
    for (int t = 0; t < 32; ++t) {
        int sum = 0;
        for (int k = 0; k < 40; ++k) sum += b.v[(k + t) % 40] * k;
        EXPECT_EQ_AT(t, got[t], -3 + 1000000 + 5 - 300 + 7 + 77 + sum);
    }
}

/* ---- clusters: shared memory of the neighbours */
__global__ void __cluster_dims__(4, 1, 1) neighbours(int *o) {
    __shared__ int s[32];
    __shared__ int sum;
    int t = threadIdx.x;
    unsigned rank, size;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    s[t] = 100 * (int)rank + t;
    if (t == 0) sum = 0;
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
    unsigned there, back;
    int v;
    unsigned a = (unsigned)__cvta_generic_to_shared(&s[31 - t]);
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(a), "r"((rank + 1) % size));
    asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(v) : "r"(there) : "memory");
    asm volatile("getctarank.shared::cluster.u32 %0, %1;" : "=r"(back) : "r"(there));
    unsigned q = (unsigned)__cvta_generic_to_shared(&sum);
    asm volatile(
        "{ .reg .b32 a; mapa.shared::cluster.u32 a, %0, %1; red.relaxed.cluster.shared::cluster.add.s32 [a], %2; }" ::
            "r"(q),
        "r"((rank + 2) % size), "r"(t)
        : "memory");
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
    o[3 * (32 * blockIdx.x + t)] = v;
    o[3 * (32 * blockIdx.x + t) + 1] = (int)back;
    o[3 * (32 * blockIdx.x + t) + 2] = sum;
}
static void test_clusters() {
    const int blocks = 8;
    int *o = (int *)rq_device_buffer(3 * 32 * blocks * 4);
    std::vector<int> got(3 * 32 * blocks);
    neighbours<<<blocks, 32>>>(o);
    CHECK_CUDA(cudaGetLastError());
    rq_device_read(got.data(), o, got.size() * 4);
    for (int b = 0; b < blocks; ++b)
        for (int t = 0; t < 32; ++t) {
            int next = (b % 4 + 1) % 4;
            EXPECT_EQ_AT(b * 100 + t, got[3 * (32 * b + t)], 100 * next + 31 - t);
            EXPECT_EQ_AT(b * 100 + t, got[3 * (32 * b + t) + 1], next);
            EXPECT_EQ_AT(b * 100 + t, got[3 * (32 * b + t) + 2], 496);
        }
    rq_record("neighbours", RQ_I32, got.data(), got.size(), 0);
}

int main() {
    rq_need_device(90);
    test_loads();
    test_stores();
    test_atoms();
    test_spaces();
    test_params();
    test_clusters();
    return rq_done(__FILE__);
}
