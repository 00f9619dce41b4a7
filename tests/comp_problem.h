/* SPDX-License-Identifier: Apache-2.0 */
/* Small problems for the tests of codebook quantization, and what those need to work things out in fp64: inverses by Gauss-Jordan, solves
 * against what is left of H, nearest entries by trying all. */
#ifndef RQ_COMP_PROBLEM_H
#define RQ_COMP_PROBLEM_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "comp_book.h"

enum { MAX_N = 64 };

typedef struct problem {
    int64_t m, n;
    float *w;
    double *h, *d;
} problem;

static inline double uniform(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(*seed >> 11) / 9007199254740992.0 - 0.5;
}

static inline problem problem_new(int64_t m, int64_t n, int64_t tokens, uint64_t seed) {
    problem p = {m, n, NULL, NULL, NULL};
    p.w = malloc((size_t)(m * n) * sizeof *p.w);
    p.h = calloc((size_t)(n * n), sizeof *p.h);
    p.d = calloc((size_t)(n * n), sizeof *p.d);
    double *x = malloc((size_t)n * sizeof *x), *dx = malloc((size_t)n * sizeof *dx);
    for (int64_t i = 0; i < m * n; ++i) p.w[i] = (float)(uniform(&seed) + uniform(&seed));
    for (int64_t t = 0; t < tokens; ++t) {
        double common = uniform(&seed);
        for (int64_t j = 0; j < n; ++j) {
            x[j] = uniform(&seed) * (1 + (double)(j % 7)) + common;
            dx[j] = 0.2 * uniform(&seed) + 0.1 * common + 0.05 * x[j];
        }
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t j = 0; j < n; ++j) {
                p.h[i * n + j] += x[i] * x[j];
                p.d[i * n + j] += dx[i] * x[j];
            }
        }
    }
    free(x);
    free(dx);
    return p;
}

static inline void problem_free(problem *p) {
    free(p->w);
    free(p->h);
    free(p->d);
}

static inline void inverse(double *inv, const double *a, int64_t n) {
    double *m = malloc((size_t)(n * n) * sizeof *m);
    memcpy(m, a, (size_t)(n * n) * sizeof *m);
    memset(inv, 0, (size_t)(n * n) * sizeof *inv);
    for (int64_t i = 0; i < n; ++i) inv[i * n + i] = 1;
    for (int64_t c = 0; c < n; ++c) {
        double pivot = m[c * n + c];
        for (int64_t j = 0; j < n; ++j) {
            m[c * n + j] /= pivot;
            inv[c * n + j] /= pivot;
        }
        for (int64_t r = 0; r < n; ++r) {
            double f = m[r * n + c];
            for (int64_t j = 0; r != c && j < n; ++j) {
                m[r * n + j] -= f * m[c * n + j];
                inv[r * n + j] -= f * inv[c * n + j];
            }
        }
    }
    free(m);
}

static inline rq_quant_opt options(rq_round round, rq_comp comp, int vec_len, int codes) {
    rq_quant_opt o;
    rq_quant_default_round(&o, comp, round);
    o.vec_len = vec_len;
    o.codes = codes;
    o.outliers = 0;
    o.outlier_min = 0;
    o.shrink = 0;
    o.cd_sweeps = 0;
    o.refit = 0;
    return o;
}

/* H and D as the sweep sees them: sweep order, damped; H without the prepared unit. */
static inline void in_sweep_order(double *h, double *d, const problem *p, const rq_prep *prep) {
    int64_t n = p->n;
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            h[i * n + j] = p->h[prep->perm[i] * n + prep->perm[j]] + (i == j ? prep->damp_used : 0);
            d[i * n + j] = p->d[prep->perm[i] * n + prep->perm[j]];
        }
    }
}

/* out[k][rest] = a[rows r0.., columns c1..] (H_rest)^-1, H_rest what comes after column c1. */
static inline void solve_rest(double *out, const double *a, const double *h, int64_t n, int64_t r0, int64_t k,
                              int64_t c1) {
    int64_t rest = n - c1;
    double *sub = malloc((size_t)(rest * rest + 1) * sizeof *sub),
           *inv = malloc((size_t)(rest * rest + 1) * sizeof *inv);
    for (int64_t i = 0; i < rest; ++i) {
        for (int64_t j = 0; j < rest; ++j) sub[i * rest + j] = h[(c1 + i) * n + c1 + j];
    }
    inverse(inv, sub, rest);
    for (int64_t r = 0; r < k; ++r) {
        for (int64_t j = 0; j < rest; ++j) {
            out[r * rest + j] = 0;
            for (int64_t i = 0; i < rest; ++i) out[r * rest + j] += a[(r0 + r) * n + c1 + i] * inv[i * rest + j];
        }
    }
    free(sub);
    free(inv);
}

typedef struct codebook {
    int64_t k, d;
    double v[64][8]; /* real units */
} codebook;

/* That of a column, where columns pick. */
static inline codebook codebook_of(const rq_quant_result *r, int64_t col) {
    codebook c = {r->vq.n_codes[0], r->vq.vec_len, {{0}}};
    const rq_f16 *book = r->vq.book[0] + (r->vq.book_of ? r->vq.book_of[col] * c.k * c.d : 0);
    for (int64_t i = 0; i < c.k; ++i) {
        for (int64_t e = 0; e < c.d; ++e) c.v[i][e] = (double)rq_f32_of_f16(book[i * c.d + e]);
    }
    return c;
}

/* The nearest of scale * codebook to t[width] by the quadratic form a. */
static inline int64_t nearest(const codebook *c, const double *t, double scale, const double *a, int64_t width,
                              double *margin) {
    double best = INFINITY, second = INFINITY;
    int64_t at = 0;
    for (int64_t i = 0; i < c->k; ++i) {
        double cost = 0;
        for (int64_t x = 0; x < width; ++x) {
            for (int64_t y = 0; y < width; ++y)
                cost += (t[x] - scale * c->v[i][x]) * (t[y] - scale * c->v[i][y]) * a[x * width + y];
        }
        if (cost < best) {
            second = best;
            best = cost;
            at = i;
        } else if (cost < second) {
            second = cost;
        }
    }
    *margin = second - best;
    return at;
}

/* Nearest entry to one column of a line, in the column's units: the values of its n_rows rows. */
static inline bool round_lane(double *q, const double *w, int64_t n_rows, const codebook *c, const rq_quant_result *r,
                              int64_t col) {
    double s = (double)rq_f32_of_f16(r->vq.col_scale[col]), bias = (double)rq_f32_of_f16(r->vq.col_bias[col]);
    double t[8] = {0}, unit[64] = {0}, margin;
    for (int64_t e = 0; e < n_rows; ++e) t[e] = s > 0 ? (w[e] - bias) / s : 0;
    for (int64_t i = 0; i < n_rows * n_rows; ++i) unit[i] = i / n_rows == i % n_rows;
    int64_t code = nearest(c, t, 1, unit, n_rows, &margin);
    for (int64_t e = 0; e < n_rows; ++e) q[e] = s * c->v[code][e] + bias;
    return margin > 1e-4;
}

#endif
