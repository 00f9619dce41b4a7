/* SPDX-License-Identifier: Apache-2.0 */
/* Tables over the steps of a process (act_steps.h): the plain C definition of cuda/step_rows.cu, and how the tables are made. Scales by step and
 * precomputed projections are those of "Efficiency Meets Fidelity", a W4A8 Stable Diffusion. */
#include "act_steps.h"

#include <math.h>

void rq_steps_start(float *most, int64_t n_step) {
    for (int64_t k = 0; k < n_step; ++k) most[k] = -1.0f;
}

rq_status rq_steps_observe(float *most, int64_t n_step, int64_t step, const float *h, int64_t n) {
    if (step < 0 || step >= n_step) {
        return rq_fail(RQ_ERR_ARG, "step %lld of a table of %lld steps", (long long)step, (long long)n_step);
    }
    float largest = n > 0 ? fmaxf(most[step], 0.0f) : most[step];
    for (int64_t i = 0; i < n; ++i) {
        const float v = fabsf(h[i]);
        largest = v > largest ? v : largest; /* NaN is not */
    }
    most[step] = largest;
    return RQ_OK;
}

rq_status rq_steps_scales(float *scale, const float *most, int64_t n_step, float clip) {
    if (!(clip > 0.0f && clip <= 1.0f)) {
        return rq_fail(RQ_ERR_ARG, "activations are clipped at %g of the largest; above 0, at most 1", (double)clip);
    }
    for (int64_t k = 0; k < n_step; ++k) {
        if (!(most[k] >= 0.0f) || isinf(most[k])) {
            return rq_fail(RQ_ERR_ARG, "step %lld of %lld: %s", (long long)k, (long long)n_step,
                           isinf(most[k]) ? "an activation is infinite" : "no activations were seen");
        }
    }
    for (int64_t k = 0; k < n_step; ++k) scale[k] = clip * most[k] / 127.0f;
    return RQ_OK;
}

rq_status rq_steps_project(float *table, const rq_linear *l, const float *emb, int64_t n_step, bool with_silu) {
    rq_status status = RQ_OK;
    float *x = NULL;
    if (with_silu) {
        RQ_TRY(RQ_NEW(x, n_step * l->n_in));
        for (int64_t i = 0; i < n_step * l->n_in; ++i) x[i] = rq_act_silu(emb[i]);
    }
    RQ_TRY(rq_linear_apply(l, table, x ? x : emb, n_step));
done:
    free(x);
    return status;
}

void rq_steps_add(const rq_step_rows *a) {
    for (int64_t t = 0; t < a->n_tok; ++t) {
        const int64_t k = rq_act_step(a->step, a->n_step, a->rows_per_step, t);
        const float *row = k < 0 ? NULL : a->table + k * a->n, *x = a->x ? a->x + t * a->n : NULL;
        float *y = a->y + t * a->n;
        for (int64_t i = 0; i < a->n; ++i) y[i] = !row ? rq_act_nan() : x ? x[i] + row[i] : row[i];
    }
}
