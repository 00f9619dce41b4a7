/* SPDX-License-Identifier: Apache-2.0 */
/* Gradients for tuning. A forward pass in fp64, written here from the definitions over the codes, gives losses and central
 * differences; the gradient must agree with them for every class of parameter: with and without a rotation, biases,
 * grouped heads, short groups, groups by g_idx, several tiles of everything. */
#include "comp.h"
#include "tune_fixture.h"

enum { KEEP = 1 << 30 };

/* ---- the loss in fp64 ---- */

/* Weights of the model at hand, and parameters in the tuner's order. */
typedef struct model64 {
    const fixture *f;
    const rq_tuner *t;
    double *w[N_MATRICES], *param, *head, *embed, *ref_logits;
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

static void apply64(const model64 *x, int layer, int which, double *y, const double *in) {
    const rq_linear *l = &x->f->m->block[layer].lin[which];
    linear64(y, in, x->w[layer * RQ_N_LINEARS + which], l->bias, l->n_out, l->n_in);
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

/* One block over one sequence: x[n][D] in place. */
static void block64(const model64 *y, int layer, double *x, int64_t n) {
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
        apply64(y, layer, RQ_Q, q, h);
        apply64(y, layer, RQ_K, k + t * kw, h);
        apply64(y, layer, RQ_V, v + t * kw, h);
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
        apply64(y, layer, RQ_O, h, att);
        for (int i = 0; i < D; ++i) row[i] += h[i];
        norm64(h, row, y->param + rq_tune_gain(y->t, layer, 1), (double)c->rms_eps);
        apply64(y, layer, RQ_GATE, gate, h);
        apply64(y, layer, RQ_UP, up, h);
        for (int64_t i = 0; i < c->d_ff; ++i) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        apply64(y, layer, RQ_DOWN, h, gate);
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
        for (int i = 0; i < N_LAYER; ++i) block64(y, i, x, seq_len);
        for (int64_t t = 0; t < seq_len; ++t)
            sum += position_loss64(y, x + t * D, y->ref_logits + (s * seq_len + t) * v);
    }
    free(x);
    return sum / (double)(n_seq * seq_len);
}

/* ---- gradients ---- */

enum { N_FIXED = N_MATRICES + 2 * N_LAYER + 1 };

/* A class of parameters: the scales of a matrix, a norm, or the numbers of a codebook. */
static void class_range(const rq_tuner *t, int i, int64_t *at, int64_t *n, char *name, size_t size) {
    if (i < N_MATRICES) {
        const rq_tune_matrix *x = &t->matrix[i];
        *at = x->param;
        *n = x->lin->n_out * x->n_group;
        snprintf(name, size, "%s scales", x->lin->name);
    } else if (i >= N_FIXED) {
        const rq_tune_book *b = &t->book[i - N_FIXED];
        *at = b->param;
        *n = b->n_book * b->n_codes * b->d;
        snprintf(name, size, "codebook %d", i - N_FIXED);
    } else {
        *at = rq_tune_gain(t, (i - N_MATRICES) / 2, (i - N_MATRICES) % 2);
        *n = D;
        snprintf(name, size, "norm %d of layer %d", (i - N_MATRICES) % 2, (i - N_MATRICES) / 2);
    }
}

static double loss_at(model64 *y, int class, const int32_t *ids, int64_t n_seq, int64_t seq_len) {
    if (class < N_MATRICES) model64_matrix(y, class);
    for (int i = 0; class >= N_FIXED && i < N_MATRICES; ++i) model64_matrix(y, i);
    return loss64(y, ids, n_seq, seq_len);
}

/* Central difference along `direction` (in the parameters' units) within one class. */
static double difference(model64 *y, int class, int64_t at, int64_t n, const double *direction, const int32_t *ids,
                         int64_t n_seq, int64_t seq_len) {
    const double eps = 1e-5;
    double loss[2];
    for (int side = 0; side < 2; ++side) {
        for (int64_t i = 0; i < n; ++i) {
            y->param[at + i] =
                (double)y->t->value[at + i] + (side ? eps : -eps) * direction[i] * (double)y->t->unit[at + i];
        }
        loss[side] = loss_at(y, class, ids, n_seq, seq_len);
    }
    for (int64_t i = 0; i < n; ++i) y->param[at + i] = (double)y->t->value[at + i];
    for (int i = 0; i < N_MATRICES; ++i) model64_matrix(y, i);
    return (loss[1] - loss[0]) / (2 * eps);
}

/* Each class: a few single parameters against the largest gradient of the class, and one direction through all of
 * them. */
static void check_classes(model64 *y, const rq_tuner *t, const int32_t *ids, int64_t n_seq, int64_t seq_len,
                          int singles) {
    for (int c = 0; c < N_FIXED + t->n_book; ++c) {
        int64_t at, n;
        char name[128];
        class_range(t, c, &at, &n, name, sizeof name);
        if (n == 0) continue;
        double *direction = calloc((size_t)n, sizeof *direction), largest = 0, along = 0, norm = 0;
        for (int64_t i = 0; i < n; ++i) largest = fmax(largest, fabs((double)t->grad[at + i]));
        assert_true(largest > 1e-6);
        for (int k = 0; k < singles; ++k) {
            int64_t i = (int64_t)(rq_random_u64(77 + (uint64_t)c, (uint64_t)k) % (uint64_t)n);
            direction[i] = 1;
            double d = difference(y, c, at, n, direction, ids, n_seq, seq_len);
            direction[i] = 0;
            if (!(fabs(d - (double)t->grad[at + i]) <= 5e-5 * largest)) {
                fail_msg("%s, element %lld: gradient %.8g, difference %.8g (largest %.3g)", name, (long long)i,
                         (double)t->grad[at + i], d, largest);
            }
        }
        for (int64_t i = 0; i < n; ++i) {
            direction[i] = 2 * rq_random_unit(99, (uint64_t)(at + i)) - 1;
            along += direction[i] * (double)t->grad[at + i];
            norm += (double)t->grad[at + i] * (double)t->grad[at + i];
        }
        double d = difference(y, c, at, n, direction, ids, n_seq, seq_len);
        if (!(fabs(d - along) <= 5e-5 * sqrt(norm))) {
            fail_msg("%s: gradient along a direction %.8g, difference %.8g (norm %.3g)", name, along, d, sqrt(norm));
        }
        free(direction);
    }
}

/* Which number of the codebooks of a stage each weight is. */
static int32_t *entries(const uint16_t *code, int64_t n_out, int64_t n, int64_t d, int64_t book_cols, int64_t k) {
    int32_t *e = malloc((size_t)(n_out * n) * sizeof *e);
    for (int64_t i = 0; i < n_out * n; ++i) {
        int64_t j = i % n;
        e[i] = (int32_t)((j / book_cols * k + code[i / n * rq_ceil_div(n, d) + j / d]) * d + j % d);
    }
    return e;
}

static void keep_codes(fixture *f, int i, const rq_quant_result *r) {
    bool ssvq = r->format == RQ_FORMAT_SSVQ;
    const rq_ssvq_codes *s = &r->ssvq;
    const rq_vq_codes *v = &r->vq;
    int64_t n_out = ssvq ? s->n_out : v->n_out, n = ssvq ? s->n_in : v->n_in, size = n_out * n;
    f->base[i] = malloc((size_t)size * sizeof(float));
    memcpy(f->base[i], r->q, (size_t)size * sizeof(float));
    f->negative[i] = calloc((size_t)size, sizeof(bool));
    for (int64_t k = 0; ssvq && k < size; ++k) f->negative[i][k] = s->negative[k];
    f->entry[i][0] = ssvq ? entries(s->codes, n_out, n, s->vec_len, s->book_cols, s->n_codes)
                          : entries(v->codes[0], n_out, n, v->vec_len, v->book_cols, v->n_codes[0]);
    if (!ssvq && v->n_stage > 1)
        f->entry[i][1] = entries(v->codes[1], n_out, n, v->vec_len, v->book_cols, v->n_codes[1]);
}

/* Matrices i .. i + count - 1 again, from the original weights, with one codebook: ssvq (odd i) or vq codes with two outlier columns;
 * two stages, halves, codebooks of some columns here and there. */
static void fixture_codebook(fixture *f, int i, int count) {
    rq_linear *l = &f->m->block[i / RQ_N_LINEARS].lin[i % RQ_N_LINEARS];
    int64_t n = l->n_in;
    float *w[2];
    double *h = calloc((size_t)(n * n), sizeof *h);
    rq_quant_opt o;
    rq_prep prep;
    rq_quant_result r[2];
    rq_quant_matrix m[2];
    for (int64_t j = 0; j < n; ++j) h[j * n + j] = 1 + (double)(j * 7 % n);
    rq_quant_default_round(&o, RQ_COMP_RTN, i % 2 ? RQ_ROUND_SSVQ : RQ_ROUND_VQ);
    o.codes = 32;
    o.codes2 = i % 2 || i % 4 ? 0 : 16;
    o.book_dtype = i == 9 ? RQ_BOOK_F16 : o.book_dtype;
    o.book_cols = i == 6 || i == 9 ? 32 : 0;
    o.outliers = 2;
    o.outlier_min = 0;
    o.group = i % 3 ? 0 : 24;
    for (int k = 0; k < count; ++k) {
        assert_int_equal(l[k].n_in, n);
        w[k] = malloc((size_t)(l[k].n_out * n) * sizeof *w[k]);
        assert_ok(
            rq_linear_rows(&f->ref->block[(i + k) / RQ_N_LINEARS].lin[(i + k) % RQ_N_LINEARS], 0, l[k].n_out, w[k]));
        m[k] = (rq_quant_matrix){l[k].name, w[k], l[k].n_out};
    }
    assert_ok(rq_prepare(&prep, h, NULL, n, &o, "fixture"));
    assert_ok(rq_quantize_set(r, m, count, &prep, &o));
    for (int k = 0; k < count; ++k) {
        rq_packed *p = &f->m->packed[l[k].packed - f->m->packed];
        keep_codes(f, i + k, &r[k]);
        f->q[i + k].n_group = rq_ceil_div(n, o.group ? o.group : n);
        rq_packed_free(p);
        assert_ok(rq_result_pack(p, &r[k]));
        free(f->q[i + k].code);
        f->q[i + k].code = NULL;
        rq_quant_result_free(&r[k]);
        free(w[k]);
    }
    rq_prep_free(&prep);
    free(h);
}

static void check_gradient(const char *name, const char *rotation, int64_t n_seq, int64_t seq_len, int64_t act_bytes,
                           int singles, bool codebooks) {
    fixture f;
    model64 y;
    rq_tuner *t;
    int32_t ids[512];
    int64_t window[4] = {0, 1, 2, 3};
    double loss, sum;
    fixture_open(&f, name, rotation);
    static const int sets[][2] = {{0, 2}, {3, 1}, {4, 1}, {6, 1}, {7, 2}, {9, 1}, {10, 1}}; /* q and k share twice */
    for (int i = 0; codebooks && i < 7; ++i) fixture_codebook(&f, sets[i][0], sets[i][1]);
    fill_ids(ids, n_seq * seq_len, 3);
    assert_ok(rq_tuner_new(&t, f.m, f.ref, ids, n_seq, seq_len, n_seq, act_bytes));
    assert_int_equal(t->recompute, act_bytes == 0);
    assert_int_equal(t->n_book, codebooks ? 9 : 0); /* two of them second stages */
    t->vocab_tile = 96;                             /* 320 rows: three whole tiles and a short one */
    assert_ok(rq_tuner_reference(t, 0, n_seq));
    /* Away from the start, where all gains of a norm could be equal and scales are exact in fp16. */
    for (int64_t i = 0; i < t->n_param; ++i) {
        t->value[i] += t->unit[i] * 0.1f * (float)(rq_random_unit(13, (uint64_t)i) - 0.5);
    }
    rq_tune_books_clamp(t);
    model64_new(&y, &f, t, ids, n_seq, seq_len);
    assert_ok(rq_tuner_gradient(t, window, n_seq, &loss));
    double expect = loss64(&y, ids, n_seq, seq_len);
    assert_true(expect > 0.01);
    assert_true(fabs(loss - expect) <= 1e-5 * expect);
    check_classes(&y, t, ids, n_seq, seq_len, singles);
    /* Published: the model's own kernels, scales rounded to their stored type. */
    assert_ok(rq_tuner_publish(t));
    assert_ok(rq_tuner_measure(t, 0, n_seq, &sum));
    assert_true(fabs(sum / (double)(n_seq * seq_len) - expect) <= 1e-2 * expect);
    model64_free(&y);
    rq_tuner_free(t);
    fixture_close(&f);
}

static void test_gradients(void **state) {
    static const char *const names[] = {"tied", "llama3", "linear", "qwen2", "mistral"};
    (void)state;
    for (int i = 0; i < 5; ++i)
        check_gradient(names[i], i % 2 ? "orthogonal" : NULL, 2, 12, i % 2 ? 0 : KEEP, 3, false);
    for (int i = 0; i < 5; ++i) check_gradient(names[i], i % 2 ? NULL : "hadamard", 1, 9, KEEP, 1, false);
}

/* Scales and codebooks of ssvq and vq codes, shared ones too, beside scales of grids; outlier columns that stay. */
static void test_codebooks(void **state) {
    (void)state;
    check_gradient("qwen2", NULL, 2, 12, KEEP, 3, true);
    check_gradient("tied", "orthogonal", 2, 12, 0, 3, true);
}

/* Several blocks of queries and of positions. */
static void test_long_windows(void **state) {
    (void)state;
    check_gradient("qwen2", "orthogonal", 2, 150, KEEP, 0, false);
}

/* Activations kept or made again, windows in other batches: the same sums, bit for bit or nearly. */
static void test_recompute(void **state) {
    fixture f;
    rq_tuner *a, *b;
    int32_t ids[60];
    int64_t order[3] = {2, 0, 1}, single[3] = {0, 1, 2};
    double loss[2], sum = 0;
    (void)state;
    fixture_open(&f, "linear", NULL);
    fill_ids(ids, 60, 4);
    assert_ok(rq_tuner_new(&a, f.m, f.ref, ids, 3, 20, 3, KEEP));
    assert_ok(rq_tuner_new(&b, f.m, f.ref, ids, 3, 20, 3, 0));
    assert_ok(rq_tuner_reference(a, 0, 3));
    assert_ok(rq_tuner_reference(b, 0, 3));
    assert_ok(rq_tuner_gradient(a, order, 3, &loss[0]));
    assert_ok(rq_tuner_gradient(b, order, 3, &loss[1]));
    assert_true(loss[0] == loss[1]);
    assert_memory_equal(a->grad, b->grad, (size_t)a->n_param * sizeof(float));
    double *mean = calloc((size_t)a->n_param, sizeof *mean), worst = 0, largest = 0;
    for (int i = 0; i < 3; ++i) {
        assert_ok(rq_tuner_gradient(b, single + i, 1, &loss[1]));
        sum += loss[1] / 3;
        for (int64_t k = 0; k < a->n_param; ++k) mean[k] += (double)b->grad[k] / 3;
    }
    for (int64_t k = 0; k < a->n_param; ++k) {
        worst = fmax(worst, fabs(mean[k] - (double)a->grad[k]));
        largest = fmax(largest, fabs(mean[k]));
    }
    assert_true(fabs(sum - loss[0]) <= 1e-6 * sum);
    if (!(worst <= 1e-4 * largest)) fail_msg("off by %.3g of %.3g", worst, largest);
    free(mean);
    rq_tuner_free(a);
    rq_tuner_free(b);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_codebooks),
        cmocka_unit_test(test_long_windows),
        cmocka_unit_test(test_recompute),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
