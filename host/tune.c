/* SPDX-License-Identifier: Apache-2.0 */
/* Tuning scales, norms and codebooks end to end: working memory, the gradient of a batch through the whole model, and the run
 * over epochs (tune.h, docs/tune.md). */
#include "tune.h"

#include <math.h>

#include "backend.h"
#include "random.h"

enum { VOCAB_TILE = 1024 /* its part of a head and of logits stays in the cache */ };
static const int64_t DEFAULT_ACT_BYTES = (int64_t)3 << 29; /* 1.5 GiB */

void rq_tune_default(rq_tune_opt *o) {
    *o = (rq_tune_opt){.epochs = 2,
                       .lr_scale = -1,
                       .lr_gain = -1,
                       .lr_book = -1,
                       .batch = 2,
                       .warmup_frac = 0.1,
                       .max_act_bytes = DEFAULT_ACT_BYTES};
}

/* Codebook formats leave more to make up for, and took rates of 3e-4 to 0.003 all the better the larger they were
 * (docs/tune.md); a grid's scales are best left nearly where they are. */
void rq_tune_rates(rq_tune_opt *o, const rq_model *m) {
    bool books = false;
    for (int64_t b = 0; b < m->cfg.n_layer; ++b) {
        for (int i = 0; i < RQ_N_LINEARS; ++i) {
            const rq_packed *p = m->block[b].lin[i].packed;
            books |= p && (p->format == RQ_FORMAT_SSVQ || p->format == RQ_FORMAT_VQ);
        }
    }
    if (o->lr_scale < 0) o->lr_scale = books ? 2e-3 : 3e-4;
    if (o->lr_gain < 0) o->lr_gain = books ? 2e-3 : 3e-4;
    if (o->lr_book < 0) o->lr_book = 3e-3;
}

/* ---- memory ---- */

static float *take(float **at, int64_t n) {
    float *p = *at;
    *at += rq_ceil_div(n, 16) * 16; /* every buffer on its own cache line */
    return p;
}

/* Everything but the weights, from one allocation. */
static rq_status working_memory(rq_tuner *t, int64_t max_act_bytes) {
    rq_status status = RQ_OK;
    const rq_config *c = &t->m->cfg;
    int64_t n = t->batch * t->seq_len, d = c->d_model, q = c->n_head * c->head_dim, kv = c->n_kv_head * c->head_dim;
    int64_t ff = c->d_ff, per_tok = 2 * q + 2 * kv + d + 2 * ff, total, kept, width, largest = 0;
    int64_t in8 = 0, out8 = 0; /* widest input and output of matrices for 8-bit inputs */
    enum { PAD = 16, MAX_PARTS = 32 };
    for (int i = 0; i < RQ_N_LINEARS; ++i) {
        largest = rq_max_i64(largest, t->m->block[0].lin[i].n_out * t->m->block[0].lin[i].n_in);
    }
    for (int64_t i = 0; i < c->n_layer * RQ_N_LINEARS; ++i) {
        if (!t->matrix[i].w4a8) continue;
        in8 = rq_max_i64(in8, t->matrix[i].lin->n_in);
        out8 = rq_max_i64(out8, t->matrix[i].lin->n_out);
    }
    const int64_t wide8 = rq_max_i64(in8, out8);
    if (!rq_mul_size(per_tok * 4, c->n_layer, &kept) || !rq_mul_size(kept, n, &kept)) {
        return rq_fail(RQ_ERR_ARG, "batches of %lld windows of %lld tokens are too large", (long long)t->batch,
                       (long long)t->seq_len);
    }
    t->recompute = kept > max_act_bytes;
    int64_t n_tape = t->recompute ? 1 : c->n_layer;
    width = d * c->n_layer + per_tok * n_tape + 4 * d + 3 * ff + 4 * q + 2 * kv + 2 * wide8;
    int64_t partial = rq_ceil_div(n, RQ_TUNE_PIECE) * rq_max_i64(d, wide8), pad = PAD * (8 * c->n_layer + MAX_PARTS);
    if (!rq_mul_size(width, n, &total)) return rq_fail(RQ_ERR_ARG, "%lld tokens at once are too many", (long long)n);
    RQ_TRY(RQ_NEW_ZERO(t->tape, c->n_layer));
    RQ_TRY(RQ_NEW(t->memory, total + 2 * largest + partial + out8 + pad));
    float *at = t->memory;
    for (int64_t i = 0; i < c->n_layer; ++i) {
        rq_tune_tape *a = &t->tape[i];
        if (i > 0 && t->recompute) *a = t->tape[0];
        a->x = take(&at, n * d);
        if (i > 0 && t->recompute) continue;
        a->q = take(&at, n * q);
        a->k = take(&at, n * kv);
        a->v = take(&at, n * kv);
        a->att = take(&at, n * q);
        a->mid = take(&at, n * d);
        a->gate = take(&at, n * ff);
        a->up = take(&at, n * ff);
    }
    float **tokens[] = {&t->x, &t->h, &t->dx, &t->dh};
    for (int i = 0; i < 4; ++i) *tokens[i] = take(&at, n * d);
    float **wide[] = {&t->act, &t->dgate, &t->dup};
    for (int i = 0; i < 3; ++i) *wide[i] = take(&at, n * ff);
    float **heads[] = {&t->datt, &t->dq, &t->dk_head, &t->dv_head};
    for (int i = 0; i < 4; ++i) *heads[i] = take(&at, n * q);
    t->dk = take(&at, n * kv);
    t->dv = take(&at, n * kv);
    t->w = take(&at, largest);
    t->dw = take(&at, largest);
    t->partial = take(&at, partial);
    for (int i = 0; wide8 && i < 2; ++i) t->wide[i] = take(&at, n * wide8);
    if (wide8) t->ones = take(&at, out8);
    for (int64_t i = 0; i < out8; ++i) t->ones[i] = 1.0f;
done:
    return status;
}

/* Both heads as fp32; one copy when they are equal, as they are when quantization left them alone. */
static rq_status load_heads(rq_tuner *t) {
    rq_status status = RQ_OK;
    int64_t v = t->m->cfg.n_vocab, d = t->m->cfg.d_model, ref_d = t->ref->cfg.d_model;
    RQ_TRY(RQ_NEW(t->head, v * d));
    RQ_TRY(rq_linear_rows(&t->m->head, 0, v, t->head));
    RQ_TRY(RQ_NEW(t->ref_head, v * ref_d));
    RQ_TRY(rq_linear_rows(&t->ref->head, 0, v, t->ref_head));
    if (d == ref_d && memcmp(t->head, t->ref_head, (size_t)(v * d) * sizeof *t->head) == 0) {
        free(t->ref_head);
        t->ref_head = t->head;
    }
    RQ_TRY(RQ_NEW(t->ref_h, t->n_windows * t->seq_len * ref_d));
    RQ_TRY(RQ_NEW(t->ref_lse, t->n_windows * t->seq_len));
done:
    return status;
}

static rq_status check_model(const rq_model *m, const rq_model *ref, int64_t n_windows, int64_t seq_len,
                             int64_t batch) {
    int64_t n;
    if (n_windows < 1 || seq_len < 1 || batch < 1 || !rq_mul_size(n_windows, seq_len, &n) ||
        !rq_mul_size(n, rq_max_i64(ref->cfg.d_model, 8), &n)) {
        return rq_fail(RQ_ERR_ARG, "cannot tune on %lld windows of %lld tokens in batches of %lld",
                       (long long)n_windows, (long long)seq_len, (long long)batch);
    }
    if (seq_len > m->cfg.max_seq || seq_len > ref->cfg.max_seq) {
        return rq_fail(RQ_ERR_ARG, "windows of %lld tokens are longer than the models' context of %lld",
                       (long long)seq_len, (long long)rq_min_i64(m->cfg.max_seq, ref->cfg.max_seq));
    }
    if (ref->cfg.n_vocab != m->cfg.n_vocab) {
        return rq_fail(RQ_ERR_ARG, "the vocabularies differ: %lld in the model, %lld in the reference",
                       (long long)m->cfg.n_vocab, (long long)ref->cfg.n_vocab);
    }
    return RQ_OK;
}

rq_status rq_tuner_new(rq_tuner **out, rq_model *m, const rq_model *ref, const int32_t *ids, int64_t n_windows,
                       int64_t seq_len, int64_t batch, int64_t max_act_bytes) {
    rq_status status = RQ_OK;
    rq_tuner *t = NULL;
    *out = NULL;
    RQ_TRY(check_model(m, ref, n_windows, seq_len, batch));
    RQ_TRY(rq_backend_init());
    RQ_TRY(RQ_NEW_ZERO(t, 1));
    *t = (rq_tuner){.m = m, .ref = ref, .ids = ids, .n_windows = n_windows, .seq_len = seq_len, .train_books = true};
    t->batch = rq_min_i64(batch, n_windows);
    t->vocab_tile = VOCAB_TILE;
    RQ_TRY(rq_tune_params_new(t));
    RQ_TRY(working_memory(t, max_act_bytes));
    RQ_TRY(load_heads(t));
    *out = t;
    t = NULL;
done:
    rq_tuner_free(t);
    return status;
}

void rq_tuner_free(rq_tuner *t) {
    if (!t) return;
    for (int64_t i = 0; t->matrix && i < t->m->cfg.n_layer * RQ_N_LINEARS; ++i) {
        free(t->matrix[i].code);
        free(t->matrix[i].group_of);
        free(t->matrix[i].kept);
    }
    rq_tune_books_free(t);
    if (t->ref_head != t->head) free(t->ref_head);
    free(t->matrix);
    free(t->value);
    free(t->unit);
    free(t->grad);
    free(t->start);
    free(t->head);
    free(t->ref_h);
    free(t->ref_lse);
    free(t->tape);
    free(t->memory);
    free(t);
}

/* ---- passes ---- */

rq_status rq_tuner_reference(rq_tuner *t, int64_t w0, int64_t n) {
    rq_status status = RQ_OK;
    int64_t n_tok = n * t->seq_len, first = w0 * t->seq_len;
    float *h = t->ref_h + first * t->ref->cfg.d_model;
    RQ_TRY(rq_forward(t->ref, h, t->ids + first, n, t->seq_len));
    RQ_TRY(rq_final_norm(t->ref, h, h, n_tok));
    RQ_TRY(rq_tune_ref_lse(t, h, n_tok, t->ref_lse + first));
done:
    return status;
}

rq_status rq_tuner_measure(rq_tuner *t, int64_t w0, int64_t n, double *loss_sum) {
    rq_status status = RQ_OK;
    int64_t n_tok = n * t->seq_len, first = w0 * t->seq_len;
    RQ_TRY(rq_forward(t->m, t->x, t->ids + first, n, t->seq_len));
    RQ_TRY(rq_final_norm(t->m, t->x, t->x, n_tok));
    RQ_TRY(
        rq_tune_loss(t, t->x, t->ref_h + first * t->ref->cfg.d_model, t->ref_lse + first, n_tok, 0.0f, NULL, loss_sum));
done:
    return status;
}

/* Final norm of t->x with the current gains into t->h; t->dx keeps what the gain multiplies in a rotated model. */
static rq_status final_forward(rq_tuner *t, int64_t n_tok) {
    const rq_config *c = &t->m->cfg;
    const float *gain = t->value + rq_tune_gain(t, c->n_layer, 0);
    int64_t d = c->d_model;
    rq_rmsnorm(t->h, t->x, t->m->rotation ? NULL : gain, n_tok, d, c->rms_eps);
    if (!t->m->rotation) return RQ_OK;
    rq_status status = rq_rotation_apply(t->m->rotation, t->h, n_tok, d, true);
    if (status != RQ_OK) return status;
    for (int64_t i = 0; i < n_tok; ++i) {
        for (int64_t j = 0; j < d; ++j) {
            t->dx[i * d + j] = t->h[i * d + j];
            t->h[i * d + j] *= gain[j];
        }
    }
    return RQ_OK;
}

/* t->dh, gradient by what the head multiplies, to t->dx, that by the residual stream. */
static rq_status final_backward(rq_tuner *t, int64_t n_tok) {
    rq_status status = RQ_OK;
    const rq_config *c = &t->m->cfg;
    int64_t d = c->d_model, at = rq_tune_gain(t, c->n_layer, 0);
    const float *gain = t->value + at, *unit = t->unit + at;
    if (t->m->rotation) {
        rq_tune_gain_grad(t->grad + at, t->dh, t->dx, gain, unit, n_tok, d, t->partial);
        RQ_TRY(rq_rotation_apply(t->m->rotation, t->dh, n_tok, d, false));
        gain = NULL;
    }
    memset(t->dx, 0, (size_t)(n_tok * d) * sizeof *t->dx);
    rq_tune_rmsnorm_grad(t->dx, t->grad + at, t->dh, t->x, gain, unit, n_tok, d, c->rms_eps, t->partial);
done:
    return status;
}

rq_status rq_tuner_gradient(rq_tuner *t, const int64_t *window, int64_t n, double *loss) {
    rq_status status = RQ_OK;
    const rq_config *c = &t->m->cfg;
    int64_t n_tok = n * t->seq_len, d = c->d_model, ref_d = t->ref->cfg.d_model;
    float *ref_h = NULL;
    double *ref_lse = NULL, sum;
    if (n < 1 || n > t->batch)
        RQ_FAIL(RQ_ERR_ARG, "%lld windows in a batch of at most %lld", (long long)n, (long long)t->batch);
    RQ_TRY(RQ_NEW(ref_h, n_tok * ref_d));
    RQ_TRY(RQ_NEW(ref_lse, n_tok));
    for (int64_t i = 0; i < n; ++i) {
        int64_t from = window[i] * t->seq_len, to = i * t->seq_len;
        RQ_TRY(rq_embed(t->m, t->tape[0].x + to * d, t->ids + from, t->seq_len));
        memcpy(ref_h + to * ref_d, t->ref_h + from * ref_d, (size_t)(t->seq_len * ref_d) * sizeof *ref_h);
        memcpy(ref_lse + to, t->ref_lse + from, (size_t)t->seq_len * sizeof *ref_lse);
    }
    for (int64_t i = 0; i < c->n_layer; ++i) {
        RQ_TRY(rq_tune_block_forward(t, i, n, i + 1 < c->n_layer ? t->tape[i + 1].x : t->x));
    }
    RQ_TRY(final_forward(t, n_tok));
    RQ_TRY(rq_tune_loss(t, t->h, ref_h, ref_lse, n_tok, (float)(1.0 / (double)n_tok), t->dh, &sum));
    RQ_TRY(final_backward(t, n_tok));
    memset(t->grad + t->first_entry, 0,
           (size_t)(t->n_param - t->first_entry) * sizeof *t->grad); /* matrices add to it */
    for (int64_t i = c->n_layer - 1; i >= 0; --i) RQ_TRY(rq_tune_block_backward(t, i, n));
    *loss = sum / (double)n_tok;
done:
    free(ref_h);
    free(ref_lse);
    return status;
}

/* ---- the run ---- */

typedef struct tune_run {
    rq_tuner *t;
    const rq_tune_opt *opt;
    rq_tune_result *r;
    rq_adam adam;
    int64_t *order, n_train, n_step;
    float *best;
    double work, total_work; /* floating-point operations per token position */
    double block_flops, head_flops;
} tune_run;

static rq_status progress(tune_run *run, double flops, const char *text, double loss) {
    run->work += flops;
    double done = run->work / run->total_work;
    if (run->opt->progress && run->opt->progress(run->opt->user, done < 1 ? done : 1, text, loss)) {
        return rq_fail(RQ_ERR_CANCELLED, "tuning was stopped; the model is as it was");
    }
    return RQ_OK;
}

static void plan_work(tune_run *run) {
    const rq_tuner *t = run->t;
    const rq_config *c = &t->m->cfg;
    double weights = 0;
    for (int i = 0; i < RQ_N_LINEARS; ++i) {
        weights += (double)t->m->block[0].lin[i].n_out * (double)t->m->block[0].lin[i].n_in;
    }
    run->block_flops = (double)c->n_layer * (2 * weights + 2.0 * (double)(t->seq_len * c->n_head * c->head_dim));
    run->head_flops = 2.0 * (double)c->n_vocab * (double)c->d_model;
    double train = (t->recompute ? 4 : 3) * run->block_flops + 3 * run->head_flops;
    double measure = run->block_flops + 2 * run->head_flops;
    double n_holdout = (double)run->opt->n_holdout, n_train = (double)run->n_train;
    run->total_work = (double)t->n_windows * (run->block_flops + run->head_flops) +
                      (double)run->opt->epochs * (n_train * train + n_holdout * measure) + n_holdout * measure +
                      (run->opt->measure_train ? 2 * n_train * measure : 0.0);
}

/* Mean loss of the published model over windows w0 .. w1 - 1. */
static rq_status measure(tune_run *run, int64_t w0, int64_t w1, const char *what, double *loss) {
    rq_tuner *t = run->t;
    double sum = 0, part;
    char text[96];
    for (int64_t w = w0; w < w1; w += t->batch) {
        int64_t n = rq_min_i64(t->batch, w1 - w);
        rq_status status = rq_tuner_measure(t, w, n, &part);
        if (status != RQ_OK) return status;
        sum += part;
        double mean = sum / (double)((w + n - w0) * t->seq_len);
        snprintf(text, sizeof text, "%s, window %lld of %lld", what, (long long)(w + n - w0), (long long)(w1 - w0));
        status = progress(run, (double)n * (run->block_flops + 2 * run->head_flops), text, mean);
        if (status != RQ_OK) return status;
    }
    *loss = sum / (double)((w1 - w0) * t->seq_len);
    if (!isfinite(*loss)) return rq_fail(RQ_ERR_NUMERIC, "the divergence from the reference is %g", *loss);
    return RQ_OK;
}

static rq_status references(tune_run *run) {
    rq_tuner *t = run->t;
    char text[96];
    for (int64_t w = 0; w < t->n_windows; w += t->batch) {
        int64_t n = rq_min_i64(t->batch, t->n_windows - w);
        rq_status status = rq_tuner_reference(t, w, n);
        if (status != RQ_OK) return status;
        snprintf(text, sizeof text, "reference, window %lld of %lld", (long long)(w + n), (long long)t->n_windows);
        status = progress(run, (double)n * (run->block_flops + run->head_flops), text, NAN);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}

static void shuffle(tune_run *run, int64_t epoch) {
    uint64_t seed = rq_random_u64(run->opt->seed, (uint64_t)epoch);
    for (int64_t i = 0; i < run->n_train; ++i) run->order[i] = i;
    for (int64_t i = run->n_train - 1; i > 0; --i) {
        int64_t k = (int64_t)(rq_random_u64(seed, (uint64_t)i) % (uint64_t)(i + 1)), x = run->order[i];
        run->order[i] = run->order[k];
        run->order[k] = x;
    }
}

static rq_status train_epoch(tune_run *run, int64_t epoch) {
    rq_tuner *t = run->t;
    const rq_tune_opt *o = run->opt;
    double sum = 0, loss, train = (t->recompute ? 4 : 3) * run->block_flops + 3 * run->head_flops;
    char text[96];
    shuffle(run, epoch);
    for (int64_t i = 0; i < run->n_train; i += t->batch) {
        int64_t n = rq_min_i64(t->batch, run->n_train - i);
        rq_status status = rq_tuner_gradient(t, run->order + i, n, &loss);
        if (status != RQ_OK) return status;
        if (!isfinite(loss)) {
            return rq_fail(RQ_ERR_NUMERIC, "epoch %lld, step %lld: the loss became %g; a smaller rate is needed",
                           (long long)epoch + 1, (long long)run->r->n_steps, loss);
        }
        double rate = rq_adam_schedule(run->r->n_steps++, run->n_step, o->warmup_frac);
        const double rates[RQ_TUNE_CLASSES] = {o->lr_scale * rate, o->lr_gain * rate, o->lr_book * rate};
        rq_adam_step(&run->adam, t->value, t->unit, t->grad, rates);
        rq_tune_books_clamp(t);
        sum += loss * (double)n;
        snprintf(text, sizeof text, "epoch %lld of %lld, window %lld of %lld", (long long)epoch + 1,
                 (long long)o->epochs, (long long)(i + n), (long long)run->n_train);
        status = progress(run, (double)n * train, text, sum / (double)(i + n));
        if (status != RQ_OK) return status;
    }
    run->r->epoch[epoch].train = sum / (double)run->n_train;
    return RQ_OK;
}

static rq_status run_epochs(tune_run *run) {
    rq_status status = RQ_OK;
    rq_tuner *t = run->t;
    rq_tune_result *r = run->r;
    const rq_tune_opt *o = run->opt;
    size_t bytes = (size_t)t->n_param * sizeof *t->value;
    RQ_TRY(references(run));
    if (o->measure_train) RQ_TRY(measure(run, 0, run->n_train, "before", &r->train_before));
    if (o->n_holdout > 0) {
        RQ_TRY(measure(run, run->n_train, t->n_windows, "held out, before", &r->holdout_before));
        r->holdout_after = r->holdout_before;
    }
    memcpy(run->best, t->value, bytes);
    for (int64_t e = 0; e < o->epochs; ++e) {
        r->epoch[e].holdout = NAN;
        RQ_TRY(train_epoch(run, e));
        r->n_epochs = e + 1;
        if (o->n_holdout > 0) {
            RQ_TRY(rq_tuner_publish(t));
            RQ_TRY(measure(run, run->n_train, t->n_windows, "held out", &r->epoch[e].holdout));
        }
        if (o->n_holdout > 0 && !(r->epoch[e].holdout < r->holdout_after)) continue;
        r->holdout_after = r->epoch[e].holdout;
        r->best_epoch = e + 1;
        memcpy(run->best, t->value, bytes);
    }
    memcpy(t->value, run->best, bytes);
    RQ_TRY(rq_tuner_publish(t));
    if (o->measure_train) RQ_TRY(measure(run, 0, run->n_train, "after", &r->train_after));
done:
    return status;
}

static rq_status check_options(const rq_tune_opt *o, int64_t n_windows) {
    if (o->epochs < 1 || o->epochs > RQ_TUNE_MAX_EPOCHS) {
        return rq_fail(RQ_ERR_ARG, "%lld epochs: 1 to %d are possible", (long long)o->epochs, RQ_TUNE_MAX_EPOCHS);
    }
    if (!(o->lr_scale >= 0 && o->lr_scale <= 1) || !(o->lr_gain >= 0 && o->lr_gain <= 1) ||
        !(o->lr_book >= 0 && o->lr_book <= 1) || !(o->warmup_frac >= 0 && o->warmup_frac <= 1)) {
        return rq_fail(RQ_ERR_ARG, "rates %g, %g and %g, warm-up %g: each must be in 0 .. 1", o->lr_scale, o->lr_gain,
                       o->lr_book, o->warmup_frac);
    }
    if (o->n_holdout < 0 || o->n_holdout >= n_windows) {
        return rq_fail(RQ_ERR_ARG, "holding out %lld of %lld windows leaves none to train on", (long long)o->n_holdout,
                       (long long)n_windows);
    }
    return RQ_OK;
}

rq_status rq_tune(rq_model *m, const rq_model *ref, const int32_t *ids, int64_t n_windows, int64_t seq_len,
                  const rq_tune_opt *opt, rq_tune_result *r) {
    rq_status status = RQ_OK;
    rq_tune_opt filled = *opt;
    tune_run run = {.opt = opt, .r = r, .n_train = n_windows - opt->n_holdout};
    double started = rq_seconds();
    memset(r, 0, sizeof *r);
    r->train_before = r->train_after = r->holdout_before = r->holdout_after = NAN;
    rq_tune_rates(&filled, m);
    opt = run.opt = &filled;
    RQ_TRY(check_options(opt, n_windows));
    RQ_TRY(rq_tuner_new(&run.t, m, ref, ids, n_windows, seq_len, opt->batch, opt->max_act_bytes));
    run.t->train_books = opt->lr_book > 0;
    RQ_TRY(rq_adam_new(&run.adam, run.t));
    RQ_TRY(RQ_NEW(run.order, run.n_train));
    RQ_TRY(RQ_NEW(run.best, run.t->n_param));
    run.n_step = opt->epochs * rq_ceil_div(run.n_train, run.t->batch);
    r->n_scales = opt->lr_scale > 0 ? run.t->n_scale : 0;
    r->n_gains = opt->lr_gain > 0 ? run.t->first_entry - run.t->n_scale : 0;
    r->n_entries = opt->lr_book > 0 ? run.t->n_param - run.t->first_entry : 0;
    r->n_train = run.n_train;
    r->n_holdout = opt->n_holdout;
    plan_work(&run);
    status = run_epochs(&run);
    if (status != RQ_OK) { /* as it was; all of it is exact in its stored type, so this cannot fail */
        memcpy(run.t->value, run.t->start, (size_t)run.t->n_param * sizeof *run.t->value);
        char sentence[512];
        snprintf(sentence, sizeof sentence, "%.500s", rq_last_error());
        rq_status restored = rq_tuner_publish(run.t);
        rq_fail(status, "%s%s", sentence, restored == RQ_OK ? "" : " (and the model could not be restored)");
    }
    r->seconds = rq_seconds() - started;
done:
    rq_adam_free(&run.adam);
    rq_tuner_free(run.t);
    free(run.order);
    free(run.best);
    return status;
}
