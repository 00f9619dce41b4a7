/* SPDX-License-Identifier: Apache-2.0 */
/* What the SIMD twins of act_quantize.c share; included by them alone, with vectors V of W floats and operations v_... on them. fmt_act.h is
 * what they compute, each operation in its order and rounding, so the bytes are those of the plain definition. */

#include "act_hadamard_body.h"

typedef struct source {
    const float *a, *b; /* x; or gate and up */
    const float *weight, *factor;
    float r;
} source;

enum kind { ROWS_AS_THEY_ARE, NORMED, GATED };

/* rq_act_silu. */
INLINE V v_silu(V x) {
    const V e = v_max(v_min(v_sub(v_set(-0.0f), x), v_set(87.0f)), v_set(-87.0f)); /* of NaN 87, as there */
    const V n = v_rint(v_mul(e, v_set(1.44269504f)));
    const V r = v_fma(n, v_set(2.12194440e-4f), v_fma(n, v_set(-0.693359375f), e));
    V p = v_set(1.98412698e-4f);
    p = v_fma(p, r, v_set(1.38888889e-3f));
    p = v_fma(p, r, v_set(8.33333333e-3f));
    p = v_fma(p, r, v_set(4.16666667e-2f));
    p = v_fma(p, r, v_set(1.66666667e-1f));
    p = v_fma(p, r, v_set(0.5f));
    p = v_fma(p, r, v_set(1.0f));
    p = v_fma(p, r, v_set(1.0f));
    return v_div(x, v_add(v_set(1.0f), v_mul(p, v_two_to(n))));
}

/* Columns j .. of a row, the first n of W; the other lanes are 0. */
INLINE V values(enum kind kind, const source *s, int64_t j, int64_t n) {
    V v = v_load(s->a + j, n);
    if (kind == GATED) v = v_mul(v_silu(v), v_load(s->b + j, n));
    if (kind == NORMED) {
        v = v_mul(v, v_set(s->r));
        if (s->weight) v = v_mul(v, v_load(s->weight + j, n));
    }
    return s->factor ? v_mul(v, v_load(s->factor + j, n)) : v;
}

/* Row t: its scale, codes and sum. */
INLINE void quantize_values(enum kind kind, int8_t *q, int64_t pitch, float *scale, int32_t *sum, const source *s,
                            const rq_act_steps *steps, int64_t n, int64_t t) {
    V most = v_set(0.0f);
    q += t * pitch;
    for (int64_t j = 0; !steps->scale && j < n; j += W)
        most = v_max(v_abs(values(kind, s, j, n - j)), most); /* NaN is not the largest */
    const float by = steps->scale ? rq_act_step_scale(steps, t) : v_largest(most) / 127.0f;
    scale[t] = by;
    sum[t] = 0;
    if (!(by > 0.0f)) {
        memset(q, 0, (size_t)pitch);
        return;
    }
    VI total = vi_zero();
    const V divisor = v_set(by);
    for (int64_t j = 0; j < n; j += W) {
        const V v = v_rint(v_div(values(kind, s, j, n - j), divisor));
        const VI codes = v_to_int(v_max(v_min(v_not_nan(v), v_set(127.0f)), v_set(-127.0f)));
        total = vi_add(total, codes);
        vi_store_bytes(q + j, codes, n - j);
    }
    memset(q + n, 0, (size_t)(pitch - n));
    sum[t] = vi_across(total);
}

/* With a Hadamard matrix the row goes to the scratch, and norm and factors are those of RMSNorm: one product, then the other. */
INLINE void quantize_row(enum kind kind, int8_t *q, int64_t pitch, float *scale, int32_t *sum, const source *s,
                         const rq_act_after *after, const core_signs *signs, int64_t n, int64_t t) {
    if (!after->hadamard) {
        source with = *s;
        with.factor = after->factor;
        quantize_values(kind, q, pitch, scale, sum, &with, &after->steps, n, t);
        return;
    }
    const source turned = {.a = after->scratch, .weight = after->factor, .r = after->hadamard->norm};
    for (int64_t j = 0; j < n; j += W) v_store(after->scratch + j, values(kind, s, j, n - j), n - j);
    hadamard_row(after->scratch, n, after->hadamard, signs);
    quantize_values(NORMED, q, pitch, scale, sum, &turned, &after->steps, n, t);
}

/* x, or x + residual, which goes to the stream; and the sum of its squares in the order of rq_act_sum. */
INLINE float sum_of_squares(const rq_act_rmsnorm *a, const float *x, const float *residual, float *stream) {
    float partial[RQ_ACT_PARTIALS] = {0};
    for (int64_t j = 0; j < a->n_in; j += W) {
        float *to = partial + j % RQ_ACT_PARTIALS;
        V v = v_load(x + j, a->n_in - j);
        if (residual) {
            v = v_add(v, v_load(residual + j, a->n_in - j));
            v_store(stream + j, v, a->n_in - j);
        }
        v_store(to, v_fma(v, v, v_load(to, W)), W); /* + 0 changes nothing */
    }
    for (int half = RQ_ACT_PARTIALS / 2; half >= W; half /= 2) {
        for (int p = 0; p < half; p += W)
            v_store(partial + p, v_add(v_load(partial + p, W), v_load(partial + p + half, W)), W);
    }
    for (int half = W / 2; half; half /= 2) {
        for (int p = 0; p < half; ++p) partial[p] += partial[p + half];
    }
    return partial[0];
}

INLINE void quantize_rows(int8_t *q, int64_t pitch, float *scale, int32_t *sum, const rq_act_rows *a, int64_t tok0,
                          int64_t n_tok) {
    core_signs signs;
    fill_signs(&signs, a->after.hadamard);
    for (int64_t t = tok0; t < tok0 + n_tok; ++t) {
        const source s = {.a = a->x + t * a->n_in};
        quantize_row(ROWS_AS_THEY_ARE, q, pitch, scale, sum, &s, &a->after, &signs, a->n_in, t);
    }
}

INLINE void quantize_rmsnorm(int8_t *q, int64_t pitch, float *scale, int32_t *sum, const rq_act_rmsnorm *a,
                             int64_t tok0, int64_t n_tok) {
    core_signs signs;
    fill_signs(&signs, a->after.hadamard);
    for (int64_t t = tok0; t < tok0 + n_tok; ++t) {
        const int64_t at = t * a->n_in;
        float *stream = a->residual ? a->stream + at : NULL;
        const float squares = sum_of_squares(a, a->x + at, a->residual ? a->residual + at : NULL, stream);
        const source s = {.a = stream ? stream : a->x + at,
                          .weight = a->weight,
                          .r = 1.0f / sqrtf(squares / (float)a->n_in + a->eps)};
        quantize_row(NORMED, q, pitch, scale, sum, &s, &a->after, &signs, a->n_in, t);
    }
}

INLINE void quantize_gated(int8_t *q, int64_t pitch, float *scale, int32_t *sum, const rq_act_gated *a, int64_t tok0,
                           int64_t n_tok) {
    core_signs signs;
    fill_signs(&signs, a->after.hadamard);
    for (int64_t t = tok0; t < tok0 + n_tok; ++t) {
        const source s = {.a = a->gate + t * a->stride, .b = a->up + t * a->stride};
        quantize_row(GATED, q, pitch, scale, sum, &s, &a->after, &signs, a->n_in, t);
    }
}
