/* SPDX-License-Identifier: Apache-2.0 */
/* A network that runs once for each step of a process (the time steps of diffusion): scales of activations and projections of the step's
 * embedding, found before the run and looked up by the step's index (rq_act_steps of fmt_act.h). */
#ifndef RQ_ACT_STEPS_H
#define RQ_ACT_STEPS_H

#include "linear.h"

/* The largest |h| of each step: most[n_step], all of them -1 at first, which says that nothing was seen. */
void rq_steps_start(float *most, int64_t n_step);
/* Takes in n activations of a step, after their Hadamard matrix and factors (h of fmt_act.h). NaN is not the largest; where all are NaN, 0 is.
 * RQ_ERR_ARG for a step outside of the table. */
rq_status rq_steps_observe(float *most, int64_t n_step, int64_t step, const float *h, int64_t n);
/* scale[n_step] = clip * most / 127, clip in (0, 1]: what exceeds clip * most will saturate. RQ_ERR_ARG, with the step, where nothing was seen
 * or something infinite. scale may be most. A step that saw zeros alone has scale 0, and its activations become 0. */
rq_status rq_steps_scales(float *scale, const float *most, int64_t n_step, float clip);

/* table[n_step][l->n_out] = l(silu(emb)) for emb[n_step][l->n_in], silu as rq_act_silu; with_silu 0: l(emb). Once for a model: a step's
 * projection depends on nothing else. */
rq_status rq_steps_project(float *table, const rq_linear *l, const float *emb, int64_t n_step, bool with_silu);

/* Rows of a table added to rows of activations, one fp32 addition each: y[t][i] = x[t][i] + table[k][i] with k the step of row t, or
 * y[t][i] = table[k][i] where x is NULL. y may be x. A step that is not in the table makes the row NaN. */
typedef struct rq_step_rows {
    float *y;
    const float *x;      /* [n_tok][n], or NULL */
    const float *table;  /* [n_step][n] */
    const int32_t *step; /* step[t / rows_per_step]; step[0] when rows_per_step is 0 */
    int64_t n_step, rows_per_step;
    int64_t n_tok, n;
} rq_step_rows;
void rq_steps_add(const rq_step_rows *a);

#endif
