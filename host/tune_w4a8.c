/* SPDX-License-Identifier: Apache-2.0 */
/* Matrices for 8-bit inputs (format w4a8) in training. With D the factors in_scale of the inputs, H their Hadamard matrix, Q the
 * integers that the codes stand for and R the rounding to 8 bits and back, token by token (fmt_w4a8.h):
 *
 *   u = R(D H x)      y_i = s_i (Q u)_i
 *
 * Trained are s and, where a matrix has it, D. Codes, zero points, steps and bases stay. The gradient goes through R as if it were not
 * there; nothing is clipped, since the largest of a token's inputs sets the step. With dy of the output and du = (s dy) Q
 *
 *   dL/ds_i = sum over tokens of dy_i (Q u)_i      dL/dD_j = sum over tokens of du_j (H x)_j      dx = H^T (D du)
 *
 * Q u is the model's own product, of integers; Q is made from the codes a matrix at a time. */
#include <math.h>

#include "act_hadamard.h"
#include "backend.h"
#include "tune.h"

enum { ROWS = 16, TOKENS = 8 /* of a task */, WORD_CODES = 8 };

void rq_tune_w4a8_new(rq_tune_matrix *x, const rq_packed *p) {
    x->w4a8 = &p->u.w4a8;
    x->group = p->n_in;
    x->n_group = 1;
}

void rq_tune_w4a8_values(rq_tuner *t, const rq_tune_matrix *x) {
    const rq_w4a8 *w = x->w4a8;
    for (int64_t i = 0; i < w->n_out; ++i) t->value[x->param + i] = t->unit[x->param + i] = w->scale[i];
    for (int64_t j = 0; w->in_scale && j < w->n_in; ++j)
        t->value[x->in_param + j] = t->unit[x->in_param + j] = w->in_scale[j];
}

/* The matrix with the factors of the moment. */
static rq_w4a8 current(const rq_tuner *t, const rq_tune_matrix *x) {
    rq_w4a8 w = *x->w4a8;
    w.scale = t->value + x->param;
    if (w.in_scale) w.in_scale = t->value + x->in_param;
    return w;
}

rq_status rq_tune_w4a8_apply(const rq_tuner *t, const rq_tune_matrix *x, float *y, const float *in, int64_t n_tok) {
    const rq_w4a8 w = current(t, x);
    return rq_linear_w4a8(&w, x->lin->bias, y, in, n_tok);
}

/* ---- gradient --------------------------------------------------------------------------------------------------------- */

typedef struct job {
    const rq_w4a8 *w;
    const rq_hadamard *h;
    float *to;
    const float *from;
    int64_t n_tok;
} job;

/* to[n_out][n_in] = Q */
static void levels_item(void *arg, int64_t item) {
    const job *j = arg;
    const rq_w4a8 *w = j->w;
    const int64_t end = rq_min_i64((item + 1) * ROWS, w->n_out);
    for (int64_t row = item * ROWS; row < end; ++row) {
        float *to = j->to + row * w->n_in;
        for (int64_t at = 0; at < w->n_in; at += WORD_CODES) { /* a word's codes are of one group */
            const int64_t k = w->group ? row * w->n_group + at / w->group : 0;
            const int step = w->group ? w->step[k] : 1;
            const int base = w->group ? w->base[k] : w->zero ? -w->zero[row] : -8;
            const uint32_t word = w->words[row * w->row_words + at / WORD_CODES];
            const int64_t n = rq_min_i64(WORD_CODES, w->n_in - at);
            for (int64_t e = 0; e < n; ++e) to[at + e] = (float)((int)(word >> 4 * e & 15u) * step + base);
        }
    }
}

/* to = H from, token by token. */
static void hadamard_item(void *arg, int64_t item) {
    const job *j = arg;
    const int64_t first = item * TOKENS, n = rq_min_i64(TOKENS, j->n_tok - first) * j->w->n_in;
    float *to = j->to + first * j->w->n_in;
    if (j->to != j->from) memcpy(to, j->from + first * j->w->n_in, (size_t)n * sizeof *to);
    if (j->h) rq_hadamard_apply(j->h, to, n);
}

/* which 0: H of w, 1: its transpose */
static void hadamard(const rq_w4a8 *w, int which, float *to, const float *from, int64_t n_tok) {
    job j = {w, w->hadamard ? &w->online[which] : NULL, to, from, n_tok};
    rq_parallel_for(rq_ceil_div(n_tok, TOKENS), hadamard_item, &j);
}

/* dx += H^T (D du), and the gradient of D. du is spent, hx is scratch. */
static void back_input(rq_tuner *t, const rq_tune_matrix *x, const rq_w4a8 *w, float *dx, float beta, float *du,
                       float *hx, const float *in, int64_t n_tok) {
    const int64_t n = n_tok * w->n_in;
    if (w->in_scale) {
        hadamard(w, 0, hx, in, n_tok);
        rq_tune_gain_grad(t->grad + x->in_param, du, hx, w->in_scale, t->unit + x->in_param, n_tok, w->n_in,
                          t->partial);
    }
    hadamard(w, 1, du, du, n_tok);
    if (beta == 0) {
        memcpy(dx, du, (size_t)n * sizeof *dx);
    } else {
        rq_tune_add(dx, dx, du, n);
    }
}

rq_status rq_tune_w4a8_back(rq_tuner *t, const rq_tune_matrix *x, float *dx, float beta, const float *dy,
                            const float *in, int64_t n_tok) {
    const rq_w4a8 w = current(t, x);
    const bool plain = !w.in_scale && !w.hadamard;
    float *product = t->wide[0], *sdy = t->wide[1], *du = plain ? dx : t->wide[0];
    rq_w4a8 unscaled = w;
    unscaled.scale = t->ones;
    rq_status status = rq_linear_w4a8(&unscaled, NULL, product, in, n_tok);
    if (status != RQ_OK) return status;
    memcpy(sdy, dy, (size_t)(n_tok * w.n_out) * sizeof *sdy);
    rq_tune_gain_grad(t->grad + x->param, sdy, product, w.scale, t->unit + x->param, n_tok, w.n_out, t->partial);
    job j = {.w = &w, .to = t->w};
    rq_parallel_for(rq_ceil_div(w.n_out, ROWS), levels_item, &j);
    rq_sgemm(RQ_N, RQ_N, n_tok, w.n_in, w.n_out, 1.0f, sdy, w.n_out, t->w, w.n_in, plain ? beta : 0.0f, du, w.n_in);
    if (!plain) back_input(t, x, &w, dx, beta, du, sdy, in, n_tok);
    return RQ_OK;
}

/* ---- into the model --------------------------------------------------------------------------------------------------- */

static rq_status publish(const float **now, rq_packed *p, const float *value, int64_t n, const rq_linear *l) {
    rq_status status = RQ_OK;
    void *to;
    RQ_TRY(rq_tune_own(&to, p, *now, n, sizeof(float)));
    for (int64_t k = 0; k < n; ++k) {
        if (!isfinite(value[k] * 128.0f)) /* as the loader wants it: times any of Q */
            RQ_FAIL(RQ_ERR_NUMERIC, "%s: a scale became %g", l->name, (double)value[k]);
    }
    memcpy(to, value, (size_t)n * sizeof *value);
    *now = to;
done:
    return status;
}

rq_status rq_tune_w4a8_publish(rq_tuner *t, const rq_tune_matrix *x) {
    rq_status status = RQ_OK;
    rq_packed *p = &t->m->packed[x->lin->packed - t->m->packed];
    rq_w4a8 *w = &p->u.w4a8;
    RQ_TRY(publish(&w->scale, p, t->value + x->param, w->n_out, x->lin));
    if (w->in_scale) RQ_TRY(publish(&w->in_scale, p, t->value + x->in_param, w->n_in, x->lin));
done:
    return status;
}
