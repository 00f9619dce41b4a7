/* SPDX-License-Identifier: Apache-2.0 */
/* One decoder block forward, keeping what its gradient needs, and backward. The forward pass is that of llama.c with
 * the weights of a matrix made from its codes and the scales of the moment just before they are used. For y = x W^T:
 *
 *   dx = dy W      dW = dy^T x */
#include "backend.h"
#include "tune.h"

static rq_status apply(rq_tuner *t, int64_t layer, int which, float *y, const float *x, int64_t n_tok) {
    const rq_tune_matrix *m = &t->matrix[layer * RQ_N_LINEARS + which];
    if (m->n_group == 0) return rq_linear_apply(m->lin, y, x, n_tok);
    if (m->w4a8) return rq_tune_w4a8_apply(t, m, y, x, n_tok);
    rq_status status = rq_tune_weights(t, layer * RQ_N_LINEARS + which, t->w);
    rq_linear l = {.name = m->lin->name, .n_out = m->lin->n_out, .n_in = m->lin->n_in, .w = t->w, .bias = m->lin->bias};
    return status == RQ_OK ? rq_linear_apply(&l, y, x, n_tok) : status;
}

rq_status rq_tune_block_forward(rq_tuner *t, int64_t layer, int64_t n_seq, float *out) {
    rq_status status = RQ_OK;
    const rq_config *c = &t->m->cfg;
    const rq_tune_tape *a = &t->tape[layer];
    int64_t n = n_seq * t->seq_len, d = c->d_model;

    rq_rmsnorm(t->h, a->x, t->value + rq_tune_gain(t, layer, 0), n, d, c->rms_eps);
    RQ_TRY(apply(t, layer, RQ_Q, a->q, t->h, n));
    RQ_TRY(apply(t, layer, RQ_K, a->k, t->h, n));
    RQ_TRY(apply(t, layer, RQ_V, a->v, t->h, n));
    RQ_TRY(rq_attention(t->m, a->att, a->q, a->k, a->v, n_seq, t->seq_len));
    RQ_TRY(apply(t, layer, RQ_O, t->h, a->att, n));
    rq_tune_add(a->mid, a->x, t->h, n * d);

    rq_rmsnorm(t->h, a->mid, t->value + rq_tune_gain(t, layer, 1), n, d, c->rms_eps);
    RQ_TRY(apply(t, layer, RQ_GATE, a->gate, t->h, n));
    RQ_TRY(apply(t, layer, RQ_UP, a->up, t->h, n));
    if (!out) goto done;
    rq_swiglu(t->act, a->gate, a->up, n * c->d_ff);
    RQ_TRY(apply(t, layer, RQ_DOWN, t->h, t->act, n));
    rq_tune_add(out, a->mid, t->h, n * d);
done:
    if (status != RQ_OK) rq_fail_context(status, "block %lld", (long long)layer);
    return status;
}

/* Gradients of one matrix's parameters, and dx = beta dx + dy W. */
static rq_status back(rq_tuner *t, int64_t layer, int which, float *dx, float beta, const float *dy, const float *x,
                      int64_t n_tok) {
    int64_t i = layer * RQ_N_LINEARS + which;
    const rq_linear *l = t->matrix[i].lin;
    if (t->matrix[i].w4a8) return rq_tune_w4a8_back(t, &t->matrix[i], dx, beta, dy, x, n_tok);
    rq_status status = rq_tune_weights(t, i, t->w);
    if (status != RQ_OK) return status;
    if (t->matrix[i].n_group > 0) {
        rq_sgemm(RQ_T, RQ_N, l->n_out, l->n_in, n_tok, 1.0f, dy, l->n_out, x, l->n_in, 0.0f, t->dw, l->n_in);
        rq_tune_matrix_grad(t, i, t->dw);
    }
    rq_sgemm(RQ_N, RQ_N, n_tok, l->n_in, l->n_out, 1.0f, dy, l->n_out, t->w, l->n_in, beta, dx, l->n_in);
    return RQ_OK;
}

static void norm_back(rq_tuner *t, int64_t layer, int which, const float *x, int64_t n_tok) {
    int64_t at = rq_tune_gain(t, layer, which);
    rq_tune_rmsnorm_grad(t->dx, t->grad + at, t->dh, x, t->value + at, t->unit + at, n_tok, t->m->cfg.d_model,
                         t->m->cfg.rms_eps, t->partial);
}

rq_status rq_tune_block_backward(rq_tuner *t, int64_t layer, int64_t n_seq) {
    rq_status status = RQ_OK;
    const rq_config *c = &t->m->cfg;
    const rq_tune_tape *a = &t->tape[layer];
    int64_t n = n_seq * t->seq_len, d = c->d_model;
    if (t->recompute) RQ_TRY(rq_tune_block_forward(t, layer, n_seq, NULL));

    rq_swiglu(t->act, a->gate, a->up, n * c->d_ff);
    RQ_TRY(back(t, layer, RQ_DOWN, t->dgate, 0.0f, t->dx, t->act, n));
    rq_tune_swiglu_grad(t->dgate, t->dup, a->gate, a->up, n * c->d_ff);
    rq_rmsnorm(t->h, a->mid, t->value + rq_tune_gain(t, layer, 1), n, d, c->rms_eps);
    RQ_TRY(back(t, layer, RQ_GATE, t->dh, 0.0f, t->dgate, t->h, n));
    RQ_TRY(back(t, layer, RQ_UP, t->dh, 1.0f, t->dup, t->h, n));
    norm_back(t, layer, 1, a->mid, n);

    RQ_TRY(back(t, layer, RQ_O, t->datt, 0.0f, t->dx, a->att, n));
    RQ_TRY(rq_tune_attention_grad(t, a, n_seq));
    rq_rmsnorm(t->h, a->x, t->value + rq_tune_gain(t, layer, 0), n, d, c->rms_eps);
    RQ_TRY(back(t, layer, RQ_Q, t->dh, 0.0f, t->dq, t->h, n));
    RQ_TRY(back(t, layer, RQ_K, t->dh, 1.0f, t->dk, t->h, n));
    RQ_TRY(back(t, layer, RQ_V, t->dh, 1.0f, t->dv, t->h, n));
    norm_back(t, layer, 0, a->x, n);
done:
    if (status != RQ_OK) rq_fail_context(status, "block %lld, backward", (long long)layer);
    return status;
}
