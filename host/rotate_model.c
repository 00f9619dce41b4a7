/* SPDX-License-Identifier: Apache-2.0 */
/* Weights in a rotated basis (docs/methods.md, "Rotation"): RMSNorm gains are folded into the matrices that read the residual
 * stream, which is then rotated by R; value heads are rotated by R_h, undone in the inputs of o. Inputs that are multiplied by a Hadamard
 * matrix H when the model runs have W H^T; where o has one, v's heads get random signs instead of R_h, which H would undo, and where down
 * has one, so do the rows of up: that makes H a randomized transform. Columns are divided by their factors. Edits are made in fp64. */
#include "quantize.h"

/* ---- transposing blocks of rows, so that outputs are rotated as rows are ------------------------------------------------ */

enum { TILE = 16 }; /* columns of a task, and rows of a piece of it: lines of both sides stay near the core */

typedef struct turn_job {
    double *w, *t; /* [size][n_in], and [n_in][size] */
    int64_t size, n_in;
    bool back; /* from t to w */
} turn_job;

static void turn_columns(void *arg, int64_t item) {
    const turn_job *k = arg;
    const int64_t j0 = item * TILE, j1 = rq_min_i64(k->n_in, j0 + TILE);
    for (int64_t i0 = 0; i0 < k->size; i0 += TILE) {
        const int64_t i1 = rq_min_i64(k->size, i0 + TILE);
        for (int64_t j = j0; j < j1; ++j) {
            for (int64_t i = i0; i < i1; ++i) {
                double *here = &k->w[i * k->n_in + j], *there = &k->t[j * k->size + i];
                *(k->back ? here : there) = *(k->back ? there : here);
            }
        }
    }
}

/* W <- R^T W for [n_out][n_in] in blocks of `size` rows: the side that a matrix writes. */
static rq_status rotate_outputs(const rq_rotation *r, double *w, int64_t n_out, int64_t n_in) {
    rq_status status = RQ_OK;
    const int64_t size = rq_rotation_size(r), tasks = rq_ceil_div(n_in, TILE);
    turn_job job = {.size = size, .n_in = n_in};
    RQ_TRY(RQ_NEW(job.t, n_in * size));
    for (int64_t i0 = 0; i0 < n_out; i0 += size) {
        job.w = w + i0 * n_in;
        job.back = false;
        rq_parallel_for(tasks, turn_columns, &job);
        RQ_TRY(rq_rotation_apply_f64(r, job.t, n_in, size, false));
        job.back = true;
        rq_parallel_for(tasks, turn_columns, &job);
    }
done:
    free(job.t);
    return status;
}

/* W <- W R in blocks of `size` columns: the side that a matrix reads. */
static rq_status rotate_inputs(const rq_rotation *r, double *w, int64_t n_out, int64_t n_in, bool inverse) {
    rq_status status = RQ_OK;
    const int64_t size = rq_rotation_size(r);
    for (int64_t j = 0; status == RQ_OK && j < n_in; j += size)
        status = rq_rotation_apply_f64(r, w + j, n_out, n_in, inverse);
    return status;
}

static bool has_hadamard(const rq_quantizer *z, int64_t layer, int which) {
    return z->plan[layer * RQ_N_LINEARS + which].hadamard != 0;
}

static const rq_rotation *output_rotation(const rq_quantizer *z, int64_t layer, int which) {
    if (which == RQ_V) return has_hadamard(z, layer, RQ_O) ? NULL : z->head_rotation;
    return which == RQ_O || which == RQ_DOWN ? z->rotation : NULL;
}

/* ---- one matrix ------------------------------------------------------------------------------------------------------- */

/* What becomes of the rows of a matrix, whichever of it there is: times `times` by columns, then over `over`, then times `sign` of the row. */
typedef struct rows_job {
    const rq_linear *l;
    float *w;
    double *wide;
    const double *times;
    const float *over, *gain;
    const rq_quantizer *z;
    int64_t layer;
    int which;
    _Atomic bool failed;
} rows_job;

static void read_row(void *arg, int64_t i) {
    rows_job *k = arg;
    const int64_t n = k->l->n_in;
    float *w = k->w + i * n;
    if (rq_linear_rows(k->l, i, 1, w) != RQ_OK) k->failed = true;
    for (int64_t j = 0; k->wide && j < n; ++j) k->wide[i * n + j] = k->gain ? (double)w[j] * k->gain[j] : (double)w[j];
}

static void scale_row(void *arg, int64_t i) {
    const rows_job *k = arg;
    double *w = k->wide + i * k->l->n_in;
    for (int64_t j = 0; k->times && j < k->l->n_in; ++j) w[j] *= k->times[j];
    for (int64_t j = 0; k->over && j < k->l->n_in; ++j) w[j] /= k->over[j];
}

static void write_row(void *arg, int64_t i) {
    const rows_job *k = arg;
    const bool signs = k->which == RQ_V || k->which == RQ_UP;
    const double sign = signs ? rq_input_sign(k->z, k->layer, k->which, i) : 1;
    for (int64_t j = i * k->l->n_in; j < (i + 1) * k->l->n_in; ++j) k->w[j] = (float)(k->wide[j] * sign);
}

/* The basis of the input at run time, of the factors that its stage has, and of signs. */
static rq_status change_inputs(rows_job *k) {
    rq_status status = RQ_OK;
    const rq_quantizer *z = k->z;
    const rq_matrix_plan *p = &z->plan[k->layer * RQ_N_LINEARS + k->which];
    const int stage = k->which <= RQ_V ? 0 : k->which == RQ_O ? 1 : k->which <= RQ_UP ? 2 : 3;
    const bool down = k->which == RQ_DOWN,
               own = k->which == RQ_O || down; /* factors of its own, that only quantized matrices have */
    const int64_t n_out = k->l->n_out, n_in = k->l->n_in;
    double *sign = NULL;
    if (p->hadamard) {
        RQ_TRY(RQ_NEW(sign, n_in));
        for (int64_t j = 0; j < n_in; ++j) sign[j] = rq_input_sign(z, k->layer, k->which, j);
        k->times = sign;
        rq_parallel_for(n_out, scale_row, k);
        k->times = NULL;
        /* x R of a rotation is R^T times a column x: rows become H w by the inverse */
        RQ_TRY(rotate_inputs(z->online[down], k->wide, n_out, n_in, true));
    }
    k->over = own && !p->in_scale ? NULL : rq_stage_factors(z, k->layer, stage);
    if (k->over) rq_parallel_for(n_out, scale_row, k);
done:
    free(sign);
    return status;
}

rq_status rq_rotated_matrix(const rq_quantizer *z, int64_t layer, int which, float *w) {
    rq_status status = RQ_OK;
    const rq_block *b = &z->model->block[layer];
    const rq_linear *l = &b->lin[which];
    rows_job k = {.l = l, .w = w, .z = z, .layer = layer, .which = which};
    const bool changes = z->rotation || z->factors;
    if (z->rotation) k.gain = which <= RQ_V ? b->norm1 : which == RQ_GATE || which == RQ_UP ? b->norm2 : NULL;
    if (changes) RQ_TRY(RQ_NEW(k.wide, l->n_out * l->n_in));
    RQ_TRY(rq_linear_rows(l, 0, 1, w)); /* rows are alike: what is wrong is said on this thread */
    rq_parallel_for(l->n_out, read_row, &k);
    if (k.failed) RQ_FAIL(RQ_ERR_INPUT, "%s: a row cannot be read", l->name);
    if (!changes) goto done;
    if (k.gain) RQ_TRY(rotate_inputs(z->rotation, k.wide, l->n_out, l->n_in, false));
    if (which == RQ_O && z->rotation && !has_hadamard(z, layer, RQ_O))
        RQ_TRY(rotate_inputs(z->head_rotation, k.wide, l->n_out, l->n_in, false));
    RQ_TRY(change_inputs(&k));
    const rq_rotation *out = output_rotation(z, layer, which);
    if (out) RQ_TRY(rotate_outputs(out, k.wide, l->n_out, l->n_in));
    rq_parallel_for(l->n_out, write_row, &k);
done:
    free(k.wide);
    return status;
}

void rq_block_gains(const rq_quantizer *z, int64_t layer, float *norm1, float *norm2) {
    const rq_block *b = &z->model->block[layer];
    const float *from[2] = {b->norm1, b->norm2};
    for (int i = 0; i < 2; ++i) {
        const float *f = rq_stage_factors(z, layer, 2 * i);
        float *to = i ? norm2 : norm1;
        for (int64_t j = 0; to && j < z->model->cfg.d_model; ++j)
            to[j] = (z->rotation ? 1.0f : from[i][j]) * (f ? f[j] : 1.0f);
    }
}

rq_status rq_rotated_bias(const rq_quantizer *z, int64_t layer, int which, float *bias) {
    rq_status status = RQ_OK;
    const rq_linear *l = &z->model->block[layer].lin[which];
    double *wide = NULL;
    memcpy(bias, l->bias, (size_t)l->n_out * sizeof *bias);
    const rq_rotation *out = output_rotation(z, layer, which);
    for (int64_t i = 0; (which == RQ_V || which == RQ_UP) && i < l->n_out; ++i)
        bias[i] *= (float)rq_input_sign(z, layer, which, i);
    if (!out) return RQ_OK;
    RQ_TRY(RQ_NEW(wide, l->n_out));
    for (int64_t i = 0; i < l->n_out; ++i) wide[i] = bias[i];
    RQ_TRY(rotate_inputs(out, wide, 1, l->n_out, false));
    for (int64_t i = 0; i < l->n_out; ++i) bias[i] = (float)wide[i];
done:
    free(wide);
    return status;
}
