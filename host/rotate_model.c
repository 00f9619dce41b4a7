/* SPDX-License-Identifier: Apache-2.0 */
/* Weights in a rotated basis (docs/methods.md, "Rotation"): RMSNorm gains are folded into the matrices that read the residual
 * stream, which is then rotated by R; value heads are rotated by R_h, undone in the inputs of o. Inputs that are multiplied by a Hadamard
 * matrix H when the model runs have W H^T; where o has one, v's heads get random signs instead of R_h, which H would undo, and where down
 * has one, so do the rows of up: that makes H a randomized transform. Columns are divided by their factors. Edits are made in fp64. */
#include "quantize.h"

/* W <- R^T W for [n_out][n_in] in blocks of `size` rows: the side that a matrix writes. */
static rq_status rotate_outputs(const rq_rotation *r, double *w, int64_t n_out, int64_t n_in) {
    rq_status status = RQ_OK;
    double *t = NULL;
    int64_t size = rq_rotation_size(r);
    RQ_TRY(RQ_NEW(t, n_in * size));
    for (int64_t i0 = 0; i0 < n_out; i0 += size) {
        for (int64_t i = 0; i < size; ++i) {
            for (int64_t j = 0; j < n_in; ++j) t[j * size + i] = w[(i0 + i) * n_in + j];
        }
        rq_rotation_apply_f64(r, t, n_in, size, false);
        for (int64_t i = 0; i < size; ++i) {
            for (int64_t j = 0; j < n_in; ++j) w[(i0 + i) * n_in + j] = t[j * size + i];
        }
    }
done:
    free(t);
    return status;
}

/* W <- W R in blocks of `size` columns: the side that a matrix reads. */
static void rotate_inputs(const rq_rotation *r, double *w, int64_t n_out, int64_t n_in) {
    int64_t size = rq_rotation_size(r);
    for (int64_t j = 0; j < n_in; j += size) rq_rotation_apply_f64(r, w + j, n_out, n_in, false);
}

static bool has_hadamard(const rq_quantizer *z, int64_t layer, int which) {
    return z->plan[layer * RQ_N_LINEARS + which].hadamard != 0;
}

static const rq_rotation *output_rotation(const rq_quantizer *z, int64_t layer, int which) {
    if (which == RQ_V) return has_hadamard(z, layer, RQ_O) ? NULL : z->head_rotation;
    return which == RQ_O || which == RQ_DOWN ? z->rotation : NULL;
}

/* The basis of the input at run time, of the factors that its stage has, and of signs. */
static void change_inputs(const rq_quantizer *z, int64_t layer, int which, double *w, int64_t n_out, int64_t n_in) {
    const float *f = rq_stage_factors(z, layer, which <= RQ_V ? 0 : which == RQ_O ? 1 : which <= RQ_UP ? 2 : 3);
    const rq_matrix_plan *p = &z->plan[layer * RQ_N_LINEARS + which];
    const bool down = which == RQ_DOWN,
               own = which == RQ_O || down; /* factors of its own, that only quantized matrices have */
    if (p->hadamard) {
        for (int64_t i = 0; i < n_out * n_in; ++i) w[i] *= rq_input_sign(z, layer, which, i % n_in);
        /* x R of a rotation is R^T times a column x: rows become H w by the inverse */
        for (int64_t j = 0; j < n_in; j += p->hadamard)
            rq_rotation_apply_f64(z->online[down], w + j, n_out, n_in, true);
    }
    for (int64_t i = 0; f && (!own || p->in_scale) && i < n_out * n_in; ++i) w[i] /= f[i % n_in];
}

rq_status rq_rotated_matrix(const rq_quantizer *z, int64_t layer, int which, float *w) {
    rq_status status = RQ_OK;
    const rq_block *b = &z->model->block[layer];
    const rq_linear *l = &b->lin[which];
    int64_t n = l->n_out * l->n_in;
    double *wide = NULL;
    RQ_TRY(rq_linear_rows(l, 0, l->n_out, w));
    if (!z->rotation && !z->factors) goto done;
    RQ_TRY(RQ_NEW(wide, n));
    const float *gain = which <= RQ_V ? b->norm1 : which == RQ_GATE || which == RQ_UP ? b->norm2 : NULL;
    if (!z->rotation) gain = NULL;
    for (int64_t i = 0; i < n; ++i) wide[i] = gain ? (double)w[i] * gain[i % l->n_in] : w[i];
    if (gain) rotate_inputs(z->rotation, wide, l->n_out, l->n_in);
    if (which == RQ_O && z->rotation && !has_hadamard(z, layer, RQ_O))
        rotate_inputs(z->head_rotation, wide, l->n_out, l->n_in);
    change_inputs(z, layer, which, wide, l->n_out, l->n_in);
    const rq_rotation *out = output_rotation(z, layer, which);
    if (out) RQ_TRY(rotate_outputs(out, wide, l->n_out, l->n_in));
    for (int64_t i = 0; (which == RQ_V || which == RQ_UP) && i < n; ++i)
        wide[i] *= rq_input_sign(z, layer, which, i / l->n_in);
    for (int64_t i = 0; i < n; ++i) w[i] = (float)wide[i];
done:
    free(wide);
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
    rotate_inputs(out, wide, 1, l->n_out);
    for (int64_t i = 0; i < l->n_out; ++i) bias[i] = (float)wide[i];
done:
    free(wide);
    return status;
}
