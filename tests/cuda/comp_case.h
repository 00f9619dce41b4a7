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

#endif
