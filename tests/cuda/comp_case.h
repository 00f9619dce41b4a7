/* SPDX-License-Identifier: Apache-2.0 */
/* Problems for the quantizer's CUDA row, and its headers beside cudatest.h: for comp.c and comp_*.c of this folder. */
#ifndef RQ_TEST_COMP_CASE_H
#define RQ_TEST_COMP_CASE_H

#include "backend.h"
#include "backend_cuda.h"
#include "device.h"
#include "device_plan.h"
#include "hosttest.h"

static rq_device *gpu;

typedef struct problem {
    int64_t n_out, n;
    float *w;
    double *h, *d;
} problem;

/* dead: every 13th feature is zero. */
static inline problem problem_new(int64_t n_out, int64_t n, int tokens, bool dead) {
    problem p = {n_out, n, NULL, NULL, NULL};
    rq_rng r = {(uint64_t)(n_out * 1000 + n)};
    double *x = rq_host_alloc((size_t)n * sizeof *x), *dx = rq_host_alloc((size_t)n * sizeof *dx);
    p.w = rq_host_alloc((size_t)(n_out * n) * sizeof *p.w);
    p.h = rq_host_alloc((size_t)(n * n) * sizeof *p.h);
    p.d = rq_host_alloc((size_t)(n * n) * sizeof *p.d);
    for (int64_t i = 0; i < n * n; ++i) p.h[i] = p.d[i] = 0;
    for (int64_t i = 0; i < n_out * n; ++i) p.w[i] = rq_rand_float(&r) + rq_rand_float(&r);
    for (int t = 0; t < tokens; ++t) {
        double common = (double)rq_rand_float(&r);
        for (int64_t j = 0; j < n; ++j) {
            x[j] = (double)rq_rand_float(&r) * (1 + (double)(j % 7)) + common;
            if (dead && j % 13 == 5) x[j] = 0;
            dx[j] = 0.2 * (double)rq_rand_float(&r) + 0.1 * common + 0.05 * x[j];
        }
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < n; ++j) p.h[i * n + j] += x[i] * x[j], p.d[i * n + j] += dx[i] * x[j];
    }
    free(x), free(dx);
    return p;
}

static inline void problem_free(problem *p) { free(p->w), free(p->h), free(p->d); }

/* A set of one or two matrices quantized by the CPU's row [0] and by CUDA's [1]: the first loses the same. */
typedef struct twin {
    int n;
    rq_prep prep[2];
    rq_quant_result r[2][2];
} twin;

static inline void twin_new(twin *t, const problem *p, const rq_quant_matrix *m, int n, const rq_quant_opt *o,
                            const char *what) {
    double loss[2], whole, unused;
    t->n = n;
    for (int k = 0; k < 2; ++k) {
        CHECK_RQ(rq_prepare_on(&t->prep[k], k ? gpu : NULL, p->h, p->d, p->n, o, what));
        CHECK_RQ(rq_quantize_set(t->r[k], m, n, &t->prep[k], o));
        CHECK_RQ(rq_layer_loss(m[0].w, t->r[k][0].q, m[0].n_out, p->n, p->h, p->d, &unused, &loss[k], &whole));
    }
    EXPECT_NEAR(loss[1], loss[0], 1e-3 * fabs(loss[0]) + 1e-5 * whole);
}

static inline void twin_free(twin *t) {
    for (int k = 0; k < 2; ++k) {
        for (int i = 0; i < t->n; ++i) rq_quant_result_free(&t->r[k][i]);
        rq_prep_free(&t->prep[k]);
    }
}

/* Rows with other codes, which a program has few of: at most `most` in one call, and one in `part` in all. */
static int64_t rows_compared, rows_other;

static inline void rows_seen(const char *what, int64_t other, int64_t rows, int64_t most) {
    rows_compared += rows;
    rows_other += other;
    if (other > most)
        fprintf(stderr, "%s: %lld of %lld rows have other codes\n", what, (long long)other, (long long)rows);
    EXPECT(other <= most);
}

static inline void rows_done(int64_t part) {
    EXPECT(part * rows_other <= rows_compared);
    printf("%lld of %lld rows have other codes than on the CPU\n", (long long)rows_other, (long long)rows_compared);
}

/* The plan (device_plan.h) is what a run counts. settings: as --override has them. */
static inline void test_plan(int64_t n_out, int64_t n, const char *settings) {
    const int64_t tokens = 70;
    problem p = problem_new(n_out, n, 3, false);
    float *a = rq_host_alloc((size_t)(tokens * n) * sizeof *a), *b = rq_host_alloc((size_t)(tokens * n) * sizeof *b);
    rq_quant_opt o;
    rq_prep prep;
    rq_quant_result r;
    rq_device_work w;
    rq_rng g = {5};
    rq_work *done = &((cuda_device *)gpu->own)->done;
    *done = (rq_work){0};
    for (int64_t i = 0; i < tokens * n; ++i) a[i] = rq_rand_float(&g), b[i] = 0.1f * rq_rand_float(&g);
    rq_quant_default(&o, RQ_COMP_GPTQ);
    CHECK_RQ(rq_quant_set_all(&o, settings));
    double *d = rq_quant_wants_cross(&o) ? p.d : NULL;
    if (rq_quant_wants_h(&o)) {
        CHECK_RQ(gpu->ops->gram_start(gpu->own, p.h, d, n));
        CHECK_RQ(gpu->ops->gram_add(gpu->own, p.h, d, a, b, tokens, n));
        CHECK_RQ(gpu->ops->gram_finish(gpu->own, p.h, d, n));
    }
    CHECK_RQ(rq_prepare_on(&prep, gpu, p.h, d, n, &o, settings));
    EXPECT_EQ(prep.n_retries, 0);
    CHECK_RQ(rq_quantize_matrix(&r, p.w, n_out, &prep, &o, settings));
    CHECK_RQ(rq_device_plan(&w, n_out, n, tokens, &o));
    rq_work plan = {0};
    const rq_work *of[] = {&w.gram, &w.factor, &w.terms, &w.sweep, &w.refine};
    for (int i = 0; i < 5; ++i) {
        plan.flops += of[i]->flops;
        plan.upload += of[i]->upload;
        plan.download += of[i]->download;
        plan.launches += of[i]->launches;
    }
    EXPECT_EQ(done->launches, plan.launches);
    EXPECT_NEAR(done->flops, plan.flops, 1e-9 * plan.flops);
    EXPECT_NEAR(done->upload, plan.upload, 0);
    EXPECT_NEAR(done->download, plan.download, 0);
    rq_quant_result_free(&r);
    rq_prep_free(&prep);
    problem_free(&p);
    free(a), free(b);
}

#endif
