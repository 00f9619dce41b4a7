/* SPDX-License-Identifier: Apache-2.0 */
/* The loss that tuning lowers, in fp64 from the definitions over the codes: a model of its own for test_tune's central differences.
 *
 * Inputs of 8 bits are a staircase, which has no differences: here the step from an input to its rounded value is a constant, taken from
 * the tuner's own pass (freeze64). That function has the gradient which the tuner is to give. */
#ifndef TUNE_MODEL64_H
#define TUNE_MODEL64_H

#include "tune_fixture.h"

/* Weights of the model at hand, and parameters in the tuner's order. */
typedef struct model64 {
    const fixture *f;
    const rq_tuner *t;
    double *w[N_MATRICES], *param, *head, *embed, *ref_logits;
    double *step[N_MATRICES]; /* of inputs of 8 bits: [n_tok][n_in], rounded value - value; NULL: none */
} model64;

static double *widen(const rq_linear *l) {
    int64_t n = l->n_out * l->n_in;
    float *w = malloc((size_t)n * sizeof *w);
    double *wide = malloc((size_t)n * sizeof *wide);
    assert_ok(rq_linear_rows(l, 0, l->n_out, w));
    for (int64_t i = 0; i < n; ++i) wide[i] = (double)w[i];
    free(w);
    return wide;
}

static void model64_matrix(model64 *x, int i) {
    const quantized *q = &x->f->q[i];
    if (x->f->base[i]) {
        const rq_tune_matrix *m = &x->t->matrix[i];
        for (int64_t k = 0; k < q->n_out * q->n_in; ++k) {
            int64_t row = k / q->n_in, j = k % q->n_in;
            double v = x->param[x->t->book[m->book[0]].param + x->f->entry[i][0][k]];
            if (x->f->entry[i][1]) v += x->param[x->t->book[m->book[1]].param + x->f->entry[i][1][k]];
            v *= x->param[m->param + row * q->n_group + j / m->group];
            x->w[i][k] = m->kept[j] ? (double)x->f->base[i][k] : x->f->negative[i][k] ? -v : v;
        }
        return;
    }
    if (x->t->matrix[i].w4a8) {
        const rq_w4a8 *w = x->t->matrix[i].w4a8;
        for (int64_t k = 0; k < w->n_out * w->n_in; ++k)
            x->w[i][k] = x->param[x->t->matrix[i].param + k / w->n_in] * rq_w4a8_level(w, k / w->n_in, k % w->n_in);
        return;
    }
    if (!q->code) return;
    int64_t group = x->f->m->block[i / RQ_N_LINEARS].lin[i % RQ_N_LINEARS].packed->u.grid.group;
    for (int64_t k = 0; k < q->n_out * q->n_in; ++k) {
        int64_t row = k / q->n_in, j = k % q->n_in, s = row * q->n_group + (q->g_idx ? q->g_idx[j] : j / group);
        x->w[i][k] = x->param[x->t->matrix[i].param + s] * ((double)q->code[k] - (q->zero ? q->zero[s] : 4));
    }
}

static void model64_new(model64 *x, const fixture *f, const rq_tuner *t, const int32_t *ids, int64_t n_seq,
                        int64_t seq_len) {
    int64_t n = n_seq * seq_len, v = f->ref->cfg.n_vocab;
    *x = (model64){.f = f, .t = t, .head = widen(&f->m->head), .embed = widen(&f->m->embed)};
    x->param = malloc((size_t)t->n_param * sizeof(double));
    for (int64_t i = 0; i < t->n_param; ++i) x->param[i] = (double)t->value[i];
    for (int i = 0; i < N_MATRICES; ++i) {
        x->w[i] = widen(&f->m->block[i / RQ_N_LINEARS].lin[i % RQ_N_LINEARS]);
        model64_matrix(x, i);
    }
    float *h = malloc((size_t)(n * D) * sizeof *h), *logits = malloc((size_t)(n * v) * sizeof *logits);
    assert_ok(rq_forward(f->ref, h, ids, n_seq, seq_len));
    assert_ok(rq_logits(f->ref, logits, h, n));
    x->ref_logits = malloc((size_t)(n * v) * sizeof(double));
    for (int64_t i = 0; i < n * v; ++i) x->ref_logits[i] = (double)logits[i];
    free(h);
    free(logits);
}

static void model64_free(model64 *x) {
    for (int i = 0; i < N_MATRICES; ++i) free(x->w[i]);
    for (int i = 0; i < N_MATRICES; ++i) free(x->step[i]);
    free(x->param);
    free(x->head);
    free(x->embed);
    free(x->ref_logits);
}

static void linear64(double *y, const double *x, const double *w, const float *bias, int64_t n_out, int64_t n_in) {
    for (int64_t i = 0; i < n_out; ++i) {
        double s = bias ? (double)bias[i] : 0.0;
        for (int64_t j = 0; j < n_in; ++j) s += w[i * n_in + j] * x[j];
        y[i] = s;
    }
}

/* Element of H: that of the core times Sylvester's. */
static double hadamard64(const rq_w4a8 *w, int64_t row, int64_t column) {
    if (!w->hadamard) return 1;
    const rq_hadamard *h = &w->online[0];
    int64_t width = h->size / h->core;
    int negative = (int)(h->row[row / width] >> column / width & 1) +
                   __builtin_popcountll((unsigned long long)(row % width & column % width));
    return (negative % 2 ? -1 : 1) / sqrt((double)h->size);
}

/* u = D H x + step */
static void input64(const model64 *x, int i, double *u, const double *in, int64_t tok) {
    const rq_tune_matrix *m = &x->t->matrix[i];
    const rq_w4a8 *w = m->w4a8;
    for (int64_t j = 0; j < w->n_in; ++j) {
        int64_t size = w->hadamard ? w->hadamard : 1, block = j / size * size;
        u[j] = 0;
        for (int64_t k = 0; k < size; ++k) u[j] += hadamard64(w, j - block, k) * in[block + k];
        if (w->in_scale) u[j] *= x->param[m->in_param + j];
        u[j] += x->step[i][tok * w->n_in + j];
    }
}

/* tok: the token's place among all of the batch */
static void apply64(const model64 *x, int layer, int which, double *y, const double *in, int64_t tok) {
    const rq_linear *l = &x->f->m->block[layer].lin[which];
    int i = layer * RQ_N_LINEARS + which;
    double u[128];
    assert_true(l->n_in <= 128);
    if (x->step[i]) input64(x, i, u, in, tok);
    linear64(y, x->step[i] ? u : in, x->w[i], l->bias, l->n_out, l->n_in);
}

/* The steps to 8 bits of the tuner's last pass, whose activations it kept, by the functions that its kernels are defined by. */
static void freeze64(model64 *x, int64_t n_tok) {
    const rq_tuner *t = x->t;
    const rq_config *c = &x->f->m->cfg;
    for (int i = 0; i < N_MATRICES; ++i) {
        if (!t->matrix[i].w4a8) continue;
        int layer = i / RQ_N_LINEARS, which = i % RQ_N_LINEARS;
        const rq_tune_tape *a = &t->tape[layer];
        rq_w4a8 w = *t->matrix[i].w4a8;
        int64_t n = n_tok * w.n_in;
        float *in = malloc((size_t)n * sizeof *in), *rounded = malloc((size_t)n * sizeof *rounded);
        if (which == RQ_O)
            memcpy(in, a->att, (size_t)n * sizeof *in);
        else if (which == RQ_DOWN)
            rq_swiglu(in, a->gate, a->up, n);
        else if (which == RQ_GATE || which == RQ_UP)
            rq_rmsnorm(in, a->mid, t->value + rq_tune_gain(t, layer, 1), n_tok, D, c->rms_eps);
        else
            rq_rmsnorm(in, a->x, t->value + rq_tune_gain(t, layer, 0), n_tok, D, c->rms_eps);
        if (w.in_scale) w.in_scale = t->value + t->matrix[i].in_param;
        rq_w4a8_input(&w, in, n_tok);
        memcpy(rounded, in, (size_t)n * sizeof *in);
        assert_ok(rq_act8_round_trip(rounded, n_tok, w.n_in));
        x->step[i] = malloc((size_t)n * sizeof(double));
        for (int64_t k = 0; k < n; ++k) x->step[i][k] = (double)rounded[k] - (double)in[k];
        free(in);
        free(rounded);
    }
}

static void norm64(double *y, const double *x, const double *gain, double eps) {
    double s = 0;
    for (int i = 0; i < D; ++i) s += x[i] * x[i];
    for (int i = 0; i < D; ++i) y[i] = x[i] / sqrt(s / D + eps) * (gain ? gain[i] : 1.0);
}

static void rope64(const rq_model *m, double *x, int64_t n_head, int64_t pos) {
    int64_t hd = m->cfg.head_dim, half = hd / 2;
    for (int64_t k = 0; k < n_head * half; ++k) {
        double *a = x + k / half * hd + k % half, *b = a + half,
               angle = (double)pos * (double)m->rope_inv_freq[k % half];
        double p = *a * cos(angle) - *b * sin(angle), r = *b * cos(angle) + *a * sin(angle);
        *a = p;
        *b = r;
    }
}

/* One block over one sequence: x[n][D] in place; tok0: its first token's place in the batch. */
static void block64(const model64 *y, int layer, double *x, int64_t n, int64_t tok0) {
    const rq_model *m = y->f->m;
    const rq_config *c = &m->cfg;
    int64_t hd = c->head_dim, qw = c->n_head * hd, kw = c->n_kv_head * hd, share = c->n_head / c->n_kv_head;
    double *k = malloc((size_t)(n * kw) * sizeof *k), *v = malloc((size_t)(n * kw) * sizeof *v),
           *p = malloc((size_t)n * sizeof *p);
    double h[D], q[D], att[D], gate[128], up[128];
    assert_true(qw <= D && c->d_ff <= 128);
    for (int64_t t = 0; t < n; ++t) { /* keys of later tokens are not needed yet */
        double *row = x + t * D;
        norm64(h, row, y->param + rq_tune_gain(y->t, layer, 0), (double)c->rms_eps);
        apply64(y, layer, RQ_Q, q, h, tok0 + t);
        apply64(y, layer, RQ_K, k + t * kw, h, tok0 + t);
        apply64(y, layer, RQ_V, v + t * kw, h, tok0 + t);
        rope64(m, q, c->n_head, t);
        rope64(m, k + t * kw, c->n_kv_head, t);
        for (int64_t head = 0; head < c->n_head; ++head) {
            double sum = 0, *out = att + head * hd;
            int64_t at = head / share * hd;
            for (int64_t i = 0; i < hd; ++i) out[i] = 0;
            for (int64_t s = 0; s <= t; ++s) {
                double dot = 0;
                for (int64_t i = 0; i < hd; ++i) dot += q[head * hd + i] * k[s * kw + at + i];
                sum += p[s] = exp(dot / sqrt((double)hd));
            }
            for (int64_t s = 0; s <= t; ++s) {
                for (int64_t i = 0; i < hd; ++i) out[i] += p[s] / sum * v[s * kw + at + i];
            }
        }
        apply64(y, layer, RQ_O, h, att, tok0 + t);
        for (int i = 0; i < D; ++i) row[i] += h[i];
        norm64(h, row, y->param + rq_tune_gain(y->t, layer, 1), (double)c->rms_eps);
        apply64(y, layer, RQ_GATE, gate, h, tok0 + t);
        apply64(y, layer, RQ_UP, up, h, tok0 + t);
        for (int64_t i = 0; i < c->d_ff; ++i) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        apply64(y, layer, RQ_DOWN, h, gate, tok0 + t);
        for (int i = 0; i < D; ++i) row[i] += h[i];
    }
    free(k);
    free(v);
    free(p);
}

/* y = x R, or x R^T */
static void rotate64(double *y, const double *x, const double *r, bool inverse) {
    for (int j = 0; j < D; ++j) {
        y[j] = 0;
        for (int i = 0; i < D; ++i) y[j] += x[i] * r[inverse ? j * D + i : i * D + j];
    }
}

static double position_loss64(const model64 *y, const double *x, const double *ref) {
    const rq_model *m = y->f->m;
    int64_t n_vocab = m->cfg.n_vocab;
    const double *gain = y->param + rq_tune_gain(y->t, N_LAYER, 0);
    double h[D], u[D], logits[320], top = -1e300, sum = 0, ref_sum = 0, kl = 0;
    assert_true(n_vocab <= 320);
    norm64(h, x, m->rotation ? NULL : gain, (double)m->cfg.rms_eps);
    if (m->rotation) {
        rotate64(u, h, y->f->rot, true);
        for (int i = 0; i < D; ++i) h[i] = u[i] * gain[i];
    }
    linear64(logits, h, y->head, NULL, n_vocab, D);
    for (int64_t v = 0; v < n_vocab; ++v) top = fmax(top, fmax(logits[v], ref[v]));
    for (int64_t v = 0; v < n_vocab; ++v) {
        sum += exp(logits[v] - top);
        ref_sum += exp(ref[v] - top);
    }
    for (int64_t v = 0; v < n_vocab; ++v) {
        double log_r = ref[v] - top - log(ref_sum), log_x = logits[v] - top - log(sum);
        kl += exp(log_r) * (log_r - log_x);
    }
    return kl;
}

static double loss64(const model64 *y, const int32_t *ids, int64_t n_seq, int64_t seq_len) {
    double sum = 0, *x = malloc((size_t)(seq_len * D) * sizeof *x);
    int64_t v = y->f->m->cfg.n_vocab;
    for (int64_t s = 0; s < n_seq; ++s) {
        for (int64_t t = 0; t < seq_len; ++t) {
            const double *e = y->embed + (int64_t)ids[s * seq_len + t] * D;
            if (y->f->m->rotation)
                rotate64(x + t * D, e, y->f->rot, false);
            else
                memcpy(x + t * D, e, D * sizeof *x);
        }
        for (int i = 0; i < N_LAYER; ++i) block64(y, i, x, seq_len, s * seq_len);
        for (int64_t t = 0; t < seq_len; ++t)
            sum += position_loss64(y, x + t * D, y->ref_logits + (s * seq_len + t) * v);
    }
    free(x);
    return sum / (double)(n_seq * seq_len);
}

#endif
