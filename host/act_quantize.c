/* SPDX-License-Identifier: Apache-2.0 */
/* The plain C definition of activations as int8 (fmt_act.h): rows as they are, after RMSNorm, after SiLU and product. A row is read as
 * often as it is needed and never stored. */
#include "kernels.h"

typedef struct source {
    const float *a, *b; /* x, and the residual or NULL; or gate and up */
    const float *weight;
    float r;
} source;

typedef float (*value_fn)(const source *s, int64_t j);

static float plain(const source *s, int64_t j) { return s->a[j]; }

static float normed(const source *s, int64_t j) {
    const float h = s->a[j] * s->r;
    return s->weight ? h * s->weight[j] : h;
}

static float gated(const source *s, int64_t j) { return rq_act_silu(s->a[j]) * s->b[j]; }

static void quantize_row(int8_t *q, int64_t pitch, float *scale, int32_t *sum, const source *s, value_fn value,
                         int64_t n) {
    float most = 0.0f;
    int32_t total = 0;
    for (int64_t j = 0; j < n; ++j) {
        const float v = fabsf(value(s, j));
        most = v > most ? v : most; /* NaN is not */
    }
    const float by = most / 127.0f;
    for (int64_t j = 0; j < n; ++j) {
        float v = by > 0.0f ? rintf(value(s, j) / by) : 0.0f;
        v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v == v ? v : 0.0f;
        q[j] = (int8_t)v;
        total += q[j];
    }
    memset(q + n, 0, (size_t)(pitch - n));
    *scale = by;
    *sum = total;
}

RQ_OP_quantize(rq_quantize_act_rows_c, rq_act_rows) {
    for (int64_t t = tok0; t < tok0 + n_tok; ++t) {
        const source s = {.a = a->x + t * a->n_in};
        quantize_row(q + t * pitch, pitch, &scale[t], &sum[t], &s, plain, a->n_in);
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
        quantize_row(q + t * pitch, pitch, &scale[t], &sum[t], &s, normed, a->n_in);
    }
}

RQ_OP_quantize(rq_quantize_act_gated_c, rq_act_gated) {
    for (int64_t t = tok0; t < tok0 + n_tok; ++t) {
        const source s = {.a = a->gate + t * a->stride, .b = a->up + t * a->stride};
        quantize_row(q + t * pitch, pitch, &scale[t], &sum[t], &s, gated, a->n_in);
    }
}
