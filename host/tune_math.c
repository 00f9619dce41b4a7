/* SPDX-License-Identifier: Apache-2.0 */
/* Gradients of the elementwise parts of a block.
 *
 *   y = r x g, r = (mean(x^2) + eps)^-1/2:   dx = r (g dy) - x r^3 / n sum(g dy x)      dg = sum over tokens of dy x r
 *   a = silu(g) u, s = 1 / (1 + exp(-g)):    du = g s da       dg = u (s + g s (1 - s)) da
 *
 * Sums over tokens are formed in pieces of a fixed number of tokens, then over pieces in order, so that threads
 * change nothing. Loops run over sixteen lanes at a time, which the compiler turns into vectors. */
#include <math.h>

#include "llama_math.h"
#include "simd.h"
#include "tune.h"

enum { LANES = 16, PIECE = 1 << 13 /* floats of an elementwise task */ };

typedef struct norm_job {
    float *dx, *partial;
    const float *dy, *x, *gain;
    float *dgain;
    const float *unit;
    float *scaled; /* gain_grad: dy, which is multiplied by the gain */
    int64_t n_tok, width, n_piece;
    float eps;
} norm_job;

/* dx += a g dy - b x; sum += dy x a, with g all ones when NULL */
RQ_CLONES static void norm_row(float *restrict dx, float *restrict sum, const float *restrict dy,
                               const float *restrict x, const float *restrict gain, float a, float b, int64_t n) {
    int64_t i = 0;
    for (; gain && i + LANES <= n; i += LANES) {
        for (int k = 0; k < LANES; ++k) {
            sum[i + k] += dy[i + k] * x[i + k] * a;
            dx[i + k] += a * (gain[i + k] * dy[i + k]) - b * x[i + k];
        }
    }
    for (; i < n; ++i) {
        if (gain) sum[i] += dy[i] * x[i] * a;
        dx[i] += a * ((gain ? gain[i] : 1.0f) * dy[i]) - b * x[i];
    }
}

/* The two sums of a row in fp64 lanes: of squares of x, and of g dy x. */
RQ_CLONES static void norm_sums(double *square, double *cross, const float *restrict dy, const float *restrict x,
                                const float *restrict gain, int64_t n) {
    double s[LANES] = {0}, c[LANES] = {0};
    int64_t i = 0;
    for (; gain && i + LANES <= n; i += LANES) {
        for (int k = 0; k < LANES; ++k) s[k] += (double)x[i + k] * (double)x[i + k];
        for (int k = 0; k < LANES; ++k) c[k] += (double)(gain[i + k] * dy[i + k]) * (double)x[i + k];
    }
    for (int k = 1; k < LANES; ++k) {
        s[0] += s[k];
        c[0] += c[k];
    }
    for (; i < n; ++i) {
        s[0] += (double)x[i] * (double)x[i];
        c[0] += (double)((gain ? gain[i] : 1.0f) * dy[i]) * (double)x[i];
    }
    *square = s[0];
    *cross = c[0];
}

static void norm_item(void *arg, int64_t item) {
    const norm_job *j = arg;
    int64_t n = j->width, end = rq_min_i64((item + 1) * RQ_TUNE_PIECE, j->n_tok);
    float *sum = j->partial + item * n;
    memset(sum, 0, (size_t)n * sizeof *sum);
    for (int64_t t = item * RQ_TUNE_PIECE; t < end; ++t) {
        const float *x = j->x + t * n, *dy = j->dy + t * n;
        double square, cross;
        norm_sums(&square, &cross, dy, x, j->gain, n);
        double r = 1.0 / sqrt(square / (double)n + (double)j->eps);
        norm_row(j->dx + t * n, sum, dy, x, j->gain, (float)r, (float)(r * r * r * cross / (double)n), n);
    }
}

static void reduce_partial(const norm_job *j) {
    for (int64_t i = 0; i < j->width; ++i) {
        double s = 0;
        for (int64_t p = 0; p < j->n_piece; ++p) s += (double)j->partial[p * j->width + i];
        j->dgain[i] = (float)(s * (double)j->unit[i]);
    }
}

void rq_tune_rmsnorm_grad(float *dx, float *dgain, const float *dy, const float *x, const float *gain,
                          const float *unit, int64_t n_tok, int64_t width, float eps, float *partial) {
    norm_job j = {.dx = dx, .partial = partial, .dy = dy, .x = x, .gain = gain, .dgain = dgain, .unit = unit};
    j.n_tok = n_tok;
    j.width = width;
    j.n_piece = rq_ceil_div(n_tok, RQ_TUNE_PIECE);
    j.eps = eps;
    rq_parallel_for(j.n_piece, norm_item, &j);
    if (gain) reduce_partial(&j);
}

static void gain_item(void *arg, int64_t item) {
    const norm_job *j = arg;
    int64_t n = j->width, end = rq_min_i64((item + 1) * RQ_TUNE_PIECE, j->n_tok);
    float *sum = j->partial + item * n;
    memset(sum, 0, (size_t)n * sizeof *sum);
    for (int64_t t = item * RQ_TUNE_PIECE; t < end; ++t) {
        float *dy = j->scaled + t * n;
        const float *y = j->x + t * n;
        for (int64_t i = 0; i < n; ++i) {
            sum[i] += dy[i] * y[i];
            dy[i] *= j->gain[i];
        }
    }
}

void rq_tune_gain_grad(float *dgain, float *dy, const float *y, const float *gain, const float *unit, int64_t n_tok,
                       int64_t width, float *partial) {
    norm_job j = {.partial = partial, .scaled = dy, .x = y, .gain = gain, .dgain = dgain, .unit = unit};
    j.n_tok = n_tok;
    j.width = width;
    j.n_piece = rq_ceil_div(n_tok, RQ_TUNE_PIECE);
    rq_parallel_for(j.n_piece, gain_item, &j);
    reduce_partial(&j);
}

/* ---- elementwise ---- */

typedef struct piece_job {
    float *out, *dup;
    const float *a, *b;
    int64_t n;
    const rq_llama_math *math;
} piece_job;

/* e: exp(-gate) */
static inline void swiglu_one(float *dgate, float *dup, float gate, float up, float e) {
    float s = 1.0f / (1.0f + e), silu = gate * s, da = *dgate;
    *dup = silu * da;
    *dgate = up * (s + silu * (1.0f - s)) * da;
}

RQ_CLONES static void swiglu_rows(float *restrict dgate, float *restrict dup, const float *restrict gate,
                                  const float *restrict up, const float *restrict e, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int k = 0; k < LANES; ++k) swiglu_one(dgate + i + k, dup + i + k, gate[i + k], up[i + k], e[i + k]);
    }
    for (; i < n; ++i) swiglu_one(dgate + i, dup + i, gate[i], up[i], e[i]);
}

static void swiglu_item(void *arg, int64_t item) {
    const piece_job *j = arg;
    float e[512];
    int64_t end = rq_min_i64((item + 1) * PIECE, j->n);
    for (int64_t i = item * PIECE; i < end; i += 512) {
        int64_t n = rq_min_i64(512, end - i);
        /* Capped: exp(-gate) above 1e30 would be infinite times zero below; the sigmoid is 0 in fp32 long before. */
        for (int64_t k = 0; k < n; ++k) e[k] = j->a[i + k] < -69.0f ? 69.0f : -j->a[i + k];
        j->math->exp(e, e, n);
        swiglu_rows(j->out + i, j->dup + i, j->a + i, j->b + i, e, n);
    }
}

void rq_tune_swiglu_grad(float *dgate, float *dup, const float *gate, const float *up, int64_t n) {
    piece_job j = {.out = dgate, .dup = dup, .a = gate, .b = up, .n = n, .math = rq_llama_math_get()};
    rq_parallel_for(rq_ceil_div(n, PIECE), swiglu_item, &j);
}

static void add_item(void *arg, int64_t item) {
    const piece_job *j = arg;
    int64_t i = item * PIECE, n = rq_min_i64(PIECE, j->n - i);
    if (j->out != j->a) memcpy(j->out + i, j->a + i, (size_t)n * sizeof *j->out);
    j->math->axpy(j->out + i, 1.0f, j->b + i, n);
}

void rq_tune_add(float *out, const float *a, const float *b, int64_t n) {
    piece_job j = {.out = out, .a = a, .b = b, .n = n, .math = rq_llama_math_get()};
    if (out == b) {
        j.a = b;
        j.b = a;
    }
    rq_parallel_for(rq_ceil_div(n, PIECE), add_item, &j);
}
