/* SPDX-License-Identifier: Apache-2.0 */
/* Products of any number format: the factors become floats (doubles for integers, whose sums are then exact, and for
 * doubles), the product is one of sim_blas.c, and one rounding at the end makes the result. */
#include "sim_gemm.h"

#include <math.h>
#include <stdlib.h>

#include "sim_blas.h"

double sim_scalar_value(const sim_scalar *s) { return s->device ? sim_load(s->type, s->device, 0) : s->value; }

static size_t at(const sim_matrix *x, int64_t row, int64_t col) {
    return (size_t)(x->row_major ? row * x->ld + col : col * x->ld + row);
}

static size_t bytes_of(const sim_matrix *x, int64_t rows, int64_t cols, int batch) {
    if (rows <= 0 || cols <= 0 || batch <= 0) return 0;
    size_t element = sim_type_bytes(x->type);
    size_t one =
        x->row_major ? sim_matrix_bytes(cols, rows, x->ld, element) : sim_matrix_bytes(rows, cols, x->ld, element);
    return one + (size_t)(batch - 1) * (size_t)x->stride * element;
}

size_t sim_gemm_spans(const sim_gemm *g, sim_span *span) {
    size_t n = 0;
    if (g->k > 0) {
        span[n++] = (sim_span){"A", g->a.p, bytes_of(&g->a, g->ta ? g->k : g->m, g->ta ? g->m : g->k, g->batch)};
        span[n++] = (sim_span){"B", g->b.p, bytes_of(&g->b, g->tb ? g->n : g->k, g->tb ? g->k : g->n, g->batch)};
    }
    span[n++] = (sim_span){"C", g->c.p, bytes_of(&g->c, g->m, g->n, g->batch)};
    if (g->d.p != g->c.p) span[n++] = (sim_span){"D", g->d.p, bytes_of(&g->d, g->m, g->n, g->batch)};
    if (g->bias.p) span[n++] = (sim_span){"the bias", g->bias.p, (size_t)g->m * sim_type_bytes(g->bias.type)};
    if (g->alpha.device) span[n++] = (sim_span){"alpha", g->alpha.device, sim_type_bytes(g->alpha.type)};
    if (g->beta.device) span[n++] = (sim_span){"beta", g->beta.device, sim_type_bytes(g->beta.type)};
    for (int i = 0; i < 4; ++i) {
        if (g->scale[i]) span[n++] = (sim_span){"a scale", g->scale[i], sizeof(float)};
    }
    if (g->amax) span[n++] = (sim_span){"amax", g->amax, sizeof(float)};
    return n;
}

/* Do the types and layouts allow one call on the matrices where they are? */
static bool is_direct(const sim_gemm *g, cudaDataType type) {
    const sim_matrix *x[3] = {&g->a, &g->b, &g->c};
    for (int i = 0; i < 3; ++i) {
        if (x[i]->type != type || x[i]->row_major || x[i]->ld > INT32_MAX) return false;
    }
    if (g->m > INT32_MAX || g->n > INT32_MAX || g->k > INT32_MAX) return false;
    return g->c.p == g->d.p && !g->bias.p && !g->relu && !g->gelu && !g->amax && !g->scale[0] && !g->scale[1] &&
           !g->scale[2] && !g->scale[3];
}

static const void *of_batch(const sim_matrix *x, int batch) {
    return (const char *)x->p + (size_t)batch * (size_t)x->stride * sim_type_bytes(x->type);
}

static void run_direct(const sim_gemm *g, int batch, double alpha, double beta) {
    const void *a = of_batch(&g->a, batch), *b = of_batch(&g->b, batch);
    void *d = (char *)(uintptr_t)of_batch(&g->d, batch);
    int m = (int)g->m, n = (int)g->n, k = (int)g->k, lda = (int)g->a.ld, ldb = (int)g->b.ld, ldd = (int)g->d.ld;
    if (g->a.type == CUDA_R_64F) {
        sim_dgemm(g->ta, g->tb, m, n, k, alpha, a, lda, b, ldb, beta, d, ldd);
    } else {
        sim_sgemm(g->ta, g->tb, m, n, k, (float)alpha, a, lda, b, ldb, (float)beta, d, ldd);
    }
}

/* op(X), rows x cols, column-major without gaps, as floats or doubles. */
static void *unpack(const sim_matrix *x, const void *p, bool transposed, int64_t rows, int64_t cols, bool wide) {
    float *f = wide ? NULL : rt_calloc((size_t)(rows * cols), sizeof(float));
    double *d = wide ? rt_calloc((size_t)(rows * cols), sizeof(double)) : NULL;
    for (int64_t j = 0; j < cols; ++j) {
        for (int64_t i = 0; i < rows; ++i) {
            double v = sim_load(x->type, p, transposed ? at(x, j, i) : at(x, i, j));
            if (wide) {
                d[j * rows + i] = v;
            } else {
                f[j * rows + i] = (float)v;
            }
        }
    }
    return wide ? (void *)d : (void *)f;
}

static double scale_of(const sim_gemm *g, int i) { return g->scale[i] ? sim_load(CUDA_R_32F, g->scale[i], 0) : 1; }

static double gelu(double x) { return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }

/* alpha sum + beta c, bias, activation, and the rounding. */
static void finish(const sim_gemm *g, int batch, const float *f, const double *d, double alpha, double beta) {
    const void *c = of_batch(&g->c, batch);
    void *out = (char *)(uintptr_t)of_batch(&g->d, batch);
    bool floats = !d; /* then in floats, as the device does */
    double amax = 0;
    alpha *= scale_of(g, 0) * scale_of(g, 1);
    beta *= scale_of(g, 2);
    for (int64_t j = 0; j < g->n; ++j) {
        for (int64_t i = 0; i < g->m; ++i) {
            double v = alpha * (floats ? (double)f[j * g->m + i] : d[j * g->m + i]);
            if (floats) v = (double)(float)v;
            if (beta != 0) v += beta * sim_load(g->c.type, c, at(&g->c, i, j));
            if (g->bias.p) v += sim_load(g->bias.type, g->bias.p, (size_t)i);
            if (floats) v = (double)(float)v;
            if (g->relu && v < 0) v = 0;
            if (g->gelu) v = gelu(v);
            if (fabs(v) > amax) amax = fabs(v);
            sim_store(g->d.type, out, at(&g->d, i, j), v * scale_of(g, 3));
        }
    }
    if (g->amax) *g->amax = (float)amax;
}

void sim_gemm_run(void *gemm) {
    const sim_gemm *g = gemm;
    double alpha = sim_scalar_value(&g->alpha), beta = sim_scalar_value(&g->beta);
    bool direct = is_direct(g, CUDA_R_32F) || is_direct(g, CUDA_R_64F);
    bool wide = g->integer || g->a.type == CUDA_R_64F;
    for (int batch = 0; batch < g->batch; ++batch) {
        if (direct) {
            run_direct(g, batch, alpha, beta);
            continue;
        }
        int m = (int)g->m, n = (int)g->n, k = (int)g->k;
        void *a = unpack(&g->a, of_batch(&g->a, batch), g->ta, g->m, g->k, wide);
        void *b = unpack(&g->b, of_batch(&g->b, batch), g->tb, g->k, g->n, wide);
        void *sum = rt_calloc((size_t)(g->m * g->n), wide ? sizeof(double) : sizeof(float));
        int lda = m > 0 ? m : 1, ldb = k > 0 ? k : 1;
        if (wide) {
            sim_dgemm(false, false, m, n, k, 1, a, lda, b, ldb, 0, sum, lda);
        } else {
            sim_sgemm(false, false, m, n, k, 1, a, lda, b, ldb, 0, sum, lda);
        }
        finish(g, batch, wide ? NULL : sum, wide ? sum : NULL, alpha, beta);
        free(a);
        free(b);
        free(sum);
    }
}
