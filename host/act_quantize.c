/* SPDX-License-Identifier: Apache-2.0 */
/* The plain C definition of activations as int8 (fmt_act.h): rows as they are, after RMSNorm, after SiLU and product; then a
 * Hadamard matrix and factors, if there are any. A row is read as often as it is needed, and stored for the Hadamard matrix alone. */
#include "act_hadamard.h"
#include "kernels.h"

typedef struct source {
    const float *a, *b; /* x, and the residual or NULL; or gate and up */
    const float *weight, *factor;
    float r;
} source;

typedef float (*value_fn)(const source *s, int64_t j);

static float plain(const source *s, int64_t j) { return s->a[j]; }

static float normed(const source *s, int64_t j) {
    const float h = s->a[j] * s->r;
    return s->weight ? h * s->weight[j] : h;
}

static float gated(const source *s, int64_t j) { return rq_act_silu(s->a[j]) * s->b[j]; }

static float largest(const source *s, value_fn value, int64_t n) {
    float most = 0.0f;
    for (int64_t j = 0; j < n; ++j) {
        const float v = fabsf(s->factor ? value(s, j) * s->factor[j] : value(s, j));
        most = v > most ? v : most; /* NaN is not */
    }
    return most;
}

/* Row t. */
static void quantize_row(int8_t *q, int64_t pitch, float *scale, int32_t *sum, const source *from, value_fn value,
                         const rq_act_after *after, int64_t n, int64_t t) {
    source s = *from;
    int32_t total = 0;
    if (after->hadamard) {
        for (int64_t j = 0; j < n; ++j) after->scratch[j] = value(&s, j);
        rq_hadamard_apply(after->hadamard, after->scratch, n);
        s.a = after->scratch;
        value = plain;
    }
    s.factor = after->factor;
    const float by = after->steps.scale ? rq_act_step_scale(&after->steps, t) : largest(&s, value, n) / 127.0f;
    for (int64_t j = 0; j < n; ++j) {
        const float h = s.factor ? value(&s, j) * s.factor[j] : value(&s, j);
        float v = by > 0.0f ? rintf(h / by) : 0.0f;
        v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v == v ? v : 0.0f;
        q[t * pitch + j] = (int8_t)v;
        total += q[t * pitch + j];
    }
    memset(q + t * pitch + n, 0, (size_t)(pitch - n));
    scale[t] = by;
    sum[t] = total;
}

RQ_OP_quantize(rq_quantize_act_rows_c, rq_act_rows) {
    for (int64_t t = tok0; t < tok0 + n_tok; ++t) {
        const source s = {.a = a->x + t * a->n_in};
        quantize_row(q, pitch, scale, sum, &s, plain, &a->after, a->n_in, t);
    }
}

RQ_OP_quantize(rq_quantize_act_rmsnorm_c, rq_act_rmsnorm) {
    float partial[RQ_ACT_PARTIALS];
    for (int64_t t = tok0; t < tok0 + n_tok; ++t) {
        source s = {.a = a->x + t * a->n_in, .weight = a->weight};
        if (a->residual) {
            float *stream = a->stream + t * a->n_in;
            for (int64_t j = 0; j < a->n_in; ++j) stream[j] = s.a[j] + a->residual[t * a->n_in + j];
            s.a = stream;
        }
        memset(partial, 0, sizeof partial);
        for (int64_t j = 0; j < a->n_in; ++j) {
            partial[j % RQ_ACT_PARTIALS] = fmaf(s.a[j], s.a[j], partial[j % RQ_ACT_PARTIALS]);
        }
        const float mean = rq_act_sum(partial) / (float)a->n_in;
        s.r = 1.0f / sqrtf(mean + a->eps);
        quantize_row(q, pitch, scale, sum, &s, normed, &a->after, a->n_in, t);
    }
}

RQ_OP_quantize(rq_quantize_act_gated_c, rq_act_gated) {
    for (int64_t t = tok0; t < tok0 + n_tok; ++t) {
        const source s = {.a = a->gate + t * a->stride, .b = a->up + t * a->stride};
        quantize_row(q, pitch, scale, sum, &s, gated, &a->after, a->n_in, t);
    }
}
