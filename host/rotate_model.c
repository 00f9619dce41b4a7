/* SPDX-License-Identifier: Apache-2.0 */
/* Weights in a rotated basis (docs/methods.md, "Rotation"): RMSNorm gains are folded into the matrices that read the residual
 * stream, which is then rotated by R; value heads are rotated by R_h, undone in the inputs of o. Edits are made in fp64. */
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

static const rq_rotation *output_rotation(const rq_quantizer *z, int which) {
    if (which == RQ_V) return z->head_rotation;
    return which == RQ_O || which == RQ_DOWN ? z->rotation : NULL;
}

rq_status rq_rotated_matrix(const rq_quantizer *z, int64_t layer, int which, float *w) {
    rq_status status = RQ_OK;
    const rq_block *b = &z->model->block[layer];
    const rq_linear *l = &b->lin[which];
    int64_t n = l->n_out * l->n_in;
    double *wide = NULL;
    RQ_TRY(rq_linear_rows(l, 0, l->n_out, w));
    if (!z->rotation) goto done;
    RQ_TRY(RQ_NEW(wide, n));
    const float *gain = which <= RQ_V ? b->norm1 : which == RQ_GATE || which == RQ_UP ? b->norm2 : NULL;
    for (int64_t i = 0; i < n; ++i) wide[i] = gain ? (double)w[i] * gain[i % l->n_in] : w[i];
    if (gain) rotate_inputs(z->rotation, wide, l->n_out, l->n_in);
    if (which == RQ_O) rotate_inputs(z->head_rotation, wide, l->n_out, l->n_in);
    const rq_rotation *out = output_rotation(z, which);
    if (out) RQ_TRY(rotate_outputs(out, wide, l->n_out, l->n_in));
    for (int64_t i = 0; i < n; ++i) w[i] = (float)wide[i];
done:
    free(wide);
    return status;
}

rq_status rq_rotated_bias(const rq_quantizer *z, int64_t layer, int which, float *bias) {
    rq_status status = RQ_OK;
    const rq_linear *l = &z->model->block[layer].lin[which];
    double *wide = NULL;
    memcpy(bias, l->bias, (size_t)l->n_out * sizeof *bias);
    const rq_rotation *out = output_rotation(z, which);
    if (!out) return RQ_OK;
    RQ_TRY(RQ_NEW(wide, l->n_out));
    for (int64_t i = 0; i < l->n_out; ++i) wide[i] = bias[i];
    rotate_inputs(out, wide, 1, l->n_out);
    for (int64_t i = 0; i < l->n_out; ++i) bias[i] = (float)wide[i];
done:
    free(wide);
    return status;
}
