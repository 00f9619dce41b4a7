/* SPDX-License-Identifier: Apache-2.0 */
/* Gram matrices of activations that are on the device, in bfloat16 (host/backend_cuda_gram.c): H and D against sums in double of the rounded numbers, for more
 * tokens than one product takes. Whole numbers give the very sums. Of others, whose sums are in fp32 for up to RQ_CUDA_GRAM_TOKENS tokens, every
 * entry is within that many times 2^-23 of the sum of its products' sizes, whatever the order and even where a sum is cut off and not rounded; that is
 * what docs/devices.md says. The same bytes however the tokens are cut into chunks. What it counts is what device_plan.h says.
 * Libraries: quantizer requite. Targets: sm_80 sm_90a. */
#include "comp_case.h"

typedef struct grams {
    int64_t n;
    double *h, *d;
} grams;

static grams grams_new(int64_t n) {
    const size_t bytes = (size_t)(n * n) * sizeof(double);
    return (grams){n, rq_host_alloc(bytes), rq_host_alloc(bytes)};
}

static void grams_free(grams *g) { free(g->h), free(g->d); }

/* On the device, in chunks of `chunk` tokens. b: NULL without D. */
static void run(grams *g, const float *a, const float *b, int64_t n_tok, int64_t chunk) {
    const size_t bytes = (size_t)(n_tok * g->n) * sizeof *a;
    float *there[2] = {NULL, NULL};
    for (int i = 0; i < (b ? 2 : 1); ++i) {
        CHECK_CUDA(cudaMalloc((void **)&there[i], bytes));
        CHECK_CUDA(cudaMemcpy(there[i], i ? b : a, bytes, cudaMemcpyHostToDevice));
    }
    CHECK_RQ(gpu->ops->gram_start(gpu->own, g->h, b ? g->d : NULL, g->n));
    for (int64_t t0 = 0; t0 < n_tok; t0 += chunk)
        CHECK_RQ(cuda_gram_here_bf16(gpu->own, there[0] + t0 * g->n, b ? there[1] + t0 * g->n : NULL,
                                     rq_min_i64(chunk, n_tok - t0), g->n));
    CHECK_RQ(gpu->ops->gram_finish(gpu->own, g->h, b ? g->d : NULL, g->n));
    for (int i = 0; i < (b ? 2 : 1); ++i) CHECK_CUDA(cudaFree(there[i]));
}

/* Sums of products of the rounded numbers, and of their sizes. */
static void by_hand(double *sum, double *size, const float *x, const float *a, int64_t n_tok, int64_t n) {
    for (int64_t i = 0; i < n * n; ++i) sum[i] = size[i] = 0;
    for (int64_t t = 0; t < n_tok; ++t)
        for (int64_t i = 0; i < n; ++i) {
            const double v = (double)rq_bf16_value(rq_bf16_bits(x[t * n + i]));
            for (int64_t j = 0; j < n; ++j) {
                const double p = v * (double)rq_bf16_value(rq_bf16_bits(a[t * n + j]));
                sum[i * n + j] += p;
                size[i * n + j] += fabs(p);
            }
        }
}

static double worst_of(const double *got, const double *sum, const double *size, int64_t n) {
    double worst = 0;
    for (int64_t i = 0; i < n * n; ++i) {
        const double off = fabs(got[i] - sum[i]);
        worst = fmax(worst, off > 0 ? off / size[i] : 0);
        if (isnan(got[i])) worst = INFINITY;
    }
    return worst;
}

/* whole: numbers whose products and sums are exact. positive: sums that only grow, which fp32 holds worst. */
static void test_values(int64_t n, int64_t n_tok, int64_t chunk, bool whole, bool positive) {
    float *a = rq_host_alloc((size_t)(n_tok * n) * sizeof *a), *b = rq_host_alloc((size_t)(n_tok * n) * sizeof *b);
    grams g = grams_new(n), sum = grams_new(n), size = grams_new(n);
    rq_rng r = {(uint64_t)(n + n_tok)};
    for (int64_t i = 0; i < n_tok * n; ++i) {
        a[i] = whole ? (float)(rq_rand_u32(&r) % 9) - 4 : rq_rand_float(&r);
        b[i] = whole ? (float)(rq_rand_u32(&r) % 5) - 2 : rq_rand_float(&r);
        if (positive) a[i] = fabsf(a[i]), b[i] = fabsf(b[i]);
    }
    run(&g, a, b, n_tok, chunk);
    by_hand(sum.h, size.h, a, a, n_tok, n);
    by_hand(sum.d, size.d, b, a, n_tok, n);
    const double bound = whole ? 0 : (double)rq_min_i64(n_tok, RQ_CUDA_GRAM_TOKENS) * 0x1p-23;
    const double worst[] = {worst_of(g.h, sum.h, size.h, n), worst_of(g.d, sum.d, size.d, n)};
    if (!whole)
        printf("%lld tokens of %lld: off by %.2g (H) and %.2g (D) of the sizes, at most %.2g\n", (long long)n_tok,
               (long long)n, worst[0], worst[1], bound);
    EXPECT(worst[0] <= bound && worst[1] <= bound);
    /* One product after another of whole groups of tokens: another grouping has other bits. */
    if (!whole && n_tok > RQ_CUDA_GRAM_TOKENS) {
        grams again = grams_new(n);
        run(&again, a, b, n_tok, 611);
        EXPECT(memcmp(again.h, g.h, (size_t)(n * n) * sizeof *g.h) == 0);
        EXPECT(memcmp(again.d, g.d, (size_t)(n * n) * sizeof *g.d) == 0);
        grams_free(&again);
    }
    grams_free(&g), grams_free(&sum), grams_free(&size);
    free(a), free(b);
}

/* Two panels: entries at their edges, where a token's numbers are its own and small whole ones. */
static void test_panels(void) {
    enum { N = RQ_CUDA_PANEL_BF16 + 32, TOKENS = 2 };
    float *a = rq_host_alloc(TOKENS * N * sizeof *a);
    grams g = grams_new(N);
    for (int i = 0; i < TOKENS * N; ++i) a[i] = (float)(i % 13) - 6;
    run(&g, a, NULL, TOKENS, TOKENS);
    for (int64_t i = 0; i < N; i += i % 1024 < 2 || i > RQ_CUDA_PANEL_BF16 - 3 ? 1 : 101)
        for (int64_t j = 0; j < N; ++j) EXPECT_EQ_AT(i * N + j, g.h[i * N + j], a[i] * a[j] + a[N + i] * a[N + j]);
    grams_free(&g);
    free(a);
}

/* The plan ends before the other triangle and the way to the host. */
static void test_plan_bf16(int64_t n, int64_t n_tok) {
    float *a = rq_host_alloc((size_t)(n_tok * n) * sizeof *a);
    grams g = grams_new(n);
    rq_work plan, *done = &((cuda_device *)gpu->own)->done;
    for (int64_t i = 0; i < n_tok * n; ++i) a[i] = 1;
    for (int cross = 0; cross < 2; ++cross) {
        *done = (rq_work){0};
        run(&g, a, cross ? a : NULL, n_tok, RQ_CUDA_GRAM_CHUNK);
        rq_device_plan_gram_bf16(&plan, n, n_tok, cross);
        EXPECT_EQ(done->launches, plan.launches + 1);
        EXPECT_NEAR(done->flops, plan.flops, 0);
        EXPECT_NEAR(done->upload, plan.upload, 0);
        EXPECT_EQ(g.h[n * n - 1], n_tok);
    }
    grams_free(&g);
    free(a);
}

int main(void) {
    rq_need_device(80);
    CHECK_RQ(rq_device_open(&gpu, "cuda"));
    test_values(7, 50, 50, true, false);
    test_values(7, 60, 20, false, false);
    if (!rq_small()) {
        test_values(21, RQ_CUDA_GRAM_TOKENS + 1900, RQ_CUDA_GRAM_CHUNK, true, false);
        test_values(21, RQ_CUDA_GRAM_TOKENS + 1900, RQ_CUDA_GRAM_CHUNK, false, false);
        test_values(21, 2 * RQ_CUDA_GRAM_TOKENS, RQ_CUDA_GRAM_CHUNK, false, true);
        test_panels();
        test_plan_bf16(9, RQ_CUDA_GRAM_TOKENS + 2 * RQ_CUDA_GRAM_CHUNK + 5);
    }
    rq_device_close(gpu);
    return rq_done(__FILE__);
}
