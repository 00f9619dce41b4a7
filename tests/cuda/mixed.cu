/* SPDX-License-Identifier: Apache-2.0 */
/* What the larger kernels are made of, in one: 4-bit pairs unpacked with lop3 and prmt, dp4a, a loop whose length depends on
 * the data, a ballot, float functions, atomics over all blocks, and one f16 mma.
 * Targets: sm_80 sm_90a. In table.json. */
#include "cudatest.h"
#include "ptxw.cuh"

enum { THREADS = 128, MOST_STEPS = 40 };

struct mixed_out {
    int *dot;         /* a thread */
    unsigned *ballot; /* a warp: which lanes took an odd number of steps */
    float *sum;       /* one, of all threads */
    int *most;        /* one: the largest dot product */
    float *product;   /* 16 x 8 */
};

__global__ void __launch_bounds__(THREADS)
    mixed(const uint32_t *__restrict__ w4, const uint32_t *__restrict__ a8, int n, const uint32_t *__restrict__ fa,
          const uint32_t *__restrict__ fb, mixed_out out) {
    const int id = threadIdx.x + blockIdx.x * blockDim.x, lane = threadIdx.x & 31;
    int dot = 0;
    unsigned steps = 0;
    if (id < n) {
        const uint32_t w = w4[id];
        /* (w & m) ^ 8: a nibble plus 8, as an unsigned byte; less 8 it is the signed value */
        const uint32_t low = ptx_lop3<(0xf0 & 0xcc) ^ 0xaa>(w, 0x0f0f0f0fu, 0x08080808u);
        const uint32_t high = ptx_lop3<(0xf0 & 0xcc) ^ 0xaa>(w >> 4, 0x0f0f0f0fu, 0x08080808u);
        dot = __dp4a((int)__vsub4(low, 0x08080808u), (int)a8[2 * id], dot);
        dot = __dp4a((int)__vsub4(high, 0x08080808u), (int)a8[2 * id + 1], dot);
        for (uint32_t v = w; v > 1 && steps < MOST_STEPS; ++steps) v = (v & 1) ? (v >> 1) ^ 0x5a : v >> 1;
        out.dot[id] = dot + (int)__byte_perm(w, a8[2 * id], 0x7531);
    }
    const unsigned odd = __ballot_sync(0xffffffffu, steps & 1);
    if (lane == 0) out.ballot[id >> 5] = odd;
    float f = sqrtf((float)(steps + 1)) + __expf(-(float)steps) + fmaxf((float)dot, 0.5f) / 3.0f;
    for (int step = 16; step; step >>= 1) f += __shfl_down_sync(0xffffffffu, f, step);
    if (lane == 0) atomicAdd(out.sum, f);
    atomicMax(out.most, dot);

    if (id < 32) { /* fa is 16x16, fb 8x16, two halves a word */
        const int group = lane >> 2, in_group = lane & 3;
        const uint32_t a[4] = {fa[group * 8 + in_group], fa[(group + 8) * 8 + in_group], fa[group * 8 + in_group + 4],
                               fa[(group + 8) * 8 + in_group + 4]};
        const uint32_t b[2] = {fb[group * 8 + in_group], fb[group * 8 + in_group + 4]};
        float c[4] = {0, 0, 0, 0};
        ptx_mma_f16(c, a, b);
        for (int i = 0; i < 4; ++i) out.product[(group + i / 2 * 8) * 8 + in_group * 2 + i % 2] = c[i];
    }
}

static int dot_of(uint32_t w, const uint32_t a8[2]) {
    int dot = 0;
    for (int i = 0; i < 8; ++i) {
        int nibble = (int)(w >> (8 * (i % 4) + 4 * (i / 4))) & 15;
        int byte = (int8_t)(a8[i / 4] >> (8 * (i % 4)));
        dot += (nibble < 8 ? nibble : nibble - 16) * byte;
    }
    return dot;
}
static unsigned steps_of(uint32_t v) {
    unsigned steps = 0;
    while (v > 1 && steps < MOST_STEPS) {
        uint32_t half = v / 2;
        v = v % 2 ? half ^ 0x5au : half;
        ++steps;
    }
    return steps;
}
/* Bytes 1 and 3 of each. */
static uint32_t odd_bytes(uint32_t a, uint32_t b) {
    return ((a >> 8) & 255) | ((a >> 24) & 255) << 8 | ((b >> 8) & 255) << 16 | (b >> 24) << 24;
}

static void test_size(int n) {
    const int blocks = (n + THREADS - 1) / THREADS, warps = blocks * (THREADS / 32);
    rq_rng rng = {(uint64_t)n};
    uint32_t *w4 = (uint32_t *)rq_host_alloc(n * 4), *a8 = (uint32_t *)rq_host_alloc(n * 8);
    rq_rand_bytes(&rng, w4, n * 4);
    rq_rand_bytes(&rng, a8, n * 8);
    for (int i = 0; i < n; i += 3) w4[i] >>= 8 * (i % 4); /* other numbers of steps */
    uint16_t fa[16 * 16], fb[8 * 16];
    for (uint16_t &h : fa) h = rq_half_bits(rq_rand_float(&rng));
    for (uint16_t &h : fb) h = rq_half_bits(rq_rand_float(&rng));
    int *dot = (int *)rq_host_alloc(n * 4), most = -2147483647, zero = 0;
    unsigned *ballot = (unsigned *)rq_host_alloc(warps * 4);
    float sum = 0, product[16 * 8];

    mixed_out out;
    const uint32_t *d_w4 = (const uint32_t *)rq_device_copy(w4, n * 4);
    const uint32_t *d_a8 = (const uint32_t *)rq_device_copy(a8, n * 8);
    const uint32_t *d_fa = (const uint32_t *)rq_device_copy(fa, sizeof fa);
    const uint32_t *d_fb = (const uint32_t *)rq_device_copy(fb, sizeof fb);
    out.dot = (int *)rq_device_buffer(n * 4);
    out.ballot = (unsigned *)rq_device_buffer(warps * 4);
    out.sum = (float *)rq_device_copy(&zero, 4);
    out.most = (int *)rq_device_copy(&most, 4);
    out.product = (float *)rq_device_buffer(sizeof product);
    mixed<<<blocks, THREADS>>>(d_w4, d_a8, n, d_fa, d_fb, out);
    CHECK_CUDA(cudaGetLastError());
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(dot, out.dot, n * 4);
    rq_device_read(ballot, out.ballot, warps * 4);
    rq_device_read(&sum, out.sum, 4);
    rq_device_read(&most, out.most, 4);
    rq_device_read(product, out.product, sizeof product);

    double want_sum = 0, size = 0;
    int want_most = -2147483647;
    for (int i = 0; i < blocks * THREADS; ++i) {
        int d = i < n ? dot_of(w4[i], a8 + 2 * i) : 0; /* threads past the end have 0 */
        unsigned steps = i < n ? steps_of(w4[i]) : 0;
        if (i < n) EXPECT_EQ_AT(i, (uint32_t)dot[i], (uint32_t)d + odd_bytes(w4[i], a8[2 * i]));
        EXPECT_EQ_AT(i, (ballot[i / 32] >> (i % 32)) & 1, steps & 1);
        double term = sqrt(steps + 1.0) + exp(-(double)steps) + fmax(d, 0.5) / 3;
        want_sum += term;
        size += fabs(term);
        want_most = d > want_most ? d : want_most;
    }
    EXPECT_NEAR(sum, want_sum, size * 1e-5);
    EXPECT_EQ(most, want_most);
    for (int m = 0; m < 16; ++m)
        for (int c = 0; c < 8; ++c) {
            double want = 0;
            for (int k = 0; k < 16; ++k) want += (double)rq_half_value(fa[m * 16 + k]) * rq_half_value(fb[c * 16 + k]);
            EXPECT_NEAR_AT(m * 8 + c, product[m * 8 + c], want, 1e-5);
        }
    rq_record("dot", RQ_I32, dot, n, 0);
    rq_record("ballot", RQ_U32, ballot, warps, 0);
    rq_record("most", RQ_I32, &most, 1, 0);
    rq_record("sum", RQ_F32, &sum, 1, size * 1e-5);   /* the order of the atomics, and __expf */
    rq_record("product", RQ_F32, product, 128, 1e-5); /* the tensor core's own rounding */
    rq_device_free_all();
    free(w4), free(a8), free(dot), free(ballot);
}

int main(void) {
    rq_need_device(80);
    test_size(256);
    test_size(1000);
    return rq_done(__FILE__);
}
