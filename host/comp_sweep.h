/* SPDX-License-Identifier: Apache-2.0 */
/* The one column sweep behind rtn, gptq, gptaq, rescomp and qep (comp_sweep.c). Internal to the compensation stage. */
#ifndef RQ_COMP_SWEEP_H
#define RQ_COMP_SWEEP_H

#include "comp.h"

typedef struct rq_sweep {
    const rq_prep *prep;
    const rq_quant_opt *opt;
    const float *w0; /* [n_out][n] natural order: where the sweep starts, and W0 of ResComp's term */
    int64_t n_out, group, n_group;
    uint8_t *codes;             /* [n_out][n] stored order */
    float *scale, *zero;        /* [n_out][n_group] stored-order groups */
    float *step;                /* the same for a rounder with find_row(), otherwise NULL */
    float *q;                   /* [n_out][n] stored order; only the CPU fills it */
    bool groups_in_sweep_order; /* dynamic groups are cut in sweep order and found as the sweep reaches them */
    bool found;                 /* scale, zero and step are there already */
} rq_sweep;

/* Grids of all rows in natural order, on the starting weights: the range of a row that loses least in e H e^T (rq_prep.h). */
rq_status rq_clip_output(const rq_sweep *s);
/* Range k of opt->clip_steps that it tries, of the whole one. */
float rq_clip_shrink(const rq_quant_opt *o, int k);

rq_status rq_sweep_run(const rq_sweep *s);

/* The first number of narrow or wide (the other is NULL), [n_rows][n], that is NaN or infinite; -1 without one (comp_prepare.c). */
int64_t rq_first_not_finite(const float *narrow, const double *wide, int64_t n_rows, int64_t n);

/* ---- pieces, for sweeps on other devices ---- */

/* End of the block of at most `block` columns that starts at c0. Dynamic groups begin at block starts (and a block never spans two of them),
 * so that a group's scale never rests on columns that miss the updates of the open block. */
int64_t rq_sweep_block_end(const rq_sweep *s, int64_t block, int64_t c0);
/* Whether the trailing update takes A as w clamped to the grid rather than as q. */
bool rq_sweep_allw(const rq_quant_opt *o);
/* Weights of the clip search for n_cols stored columns from col: diag H or ones. */
void rq_sweep_clip_weights(const rq_sweep *s, float *weight, int64_t col, int64_t n_cols, bool sweep_order);
/* Scales and zero points (and steps) of all rows, where groups are found before the sweep. */
rq_status rq_sweep_find_groups(const rq_sweep *s);
/* The refit of scales of rows [row0, row0 + n_rows) from their normal equations, of k scales a row (k = n_group; 1 with r->step): normal[n_rows][k][k],
 * whose two triangles may differ by rounding, and rhs[n_rows][k]. */
rq_status rq_refit_rows(const rq_refine *r, int64_t row0, int64_t n_rows, const double *normal, double *rhs);

#endif
