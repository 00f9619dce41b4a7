/* SPDX-License-Identifier: Apache-2.0 */
/* Gradients for tuning. A forward pass in fp64 (tune_model64.h) gives losses and central
 * differences; the gradient must agree with them for every class of parameter: with and without a rotation, biases,
 * grouped heads, short groups, groups by g_idx, several tiles of everything. */
#include "comp.h"
#include "tune_model64.h"

enum { KEEP = 1 << 30 };

/* ---- gradients ---- */

enum { N_FIXED = 2 * N_MATRICES + 2 * N_LAYER + 1 };

/* A class of parameters: the scales of a matrix, a norm, the factors of a matrix' inputs, or the numbers of a codebook. */
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
    } else if (i >= N_FIXED - N_MATRICES) {
        const rq_tune_matrix *x = &t->matrix[i - (N_FIXED - N_MATRICES)];
        *at = x->in_param;
        *n = x->w4a8 && x->w4a8->in_scale ? x->lin->n_in : 0;
        snprintf(name, size, "%s factors of inputs", x->lin->name);
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

enum { GRIDS, BOOKS, INPUTS8 }; /* all grids but one; codebooks among them; matrices for 8-bit inputs among them */

static void check_gradient(const char *name, const char *rotation, int64_t n_seq, int64_t seq_len, int64_t act_bytes,
                           int singles, int kind) {
    fixture f;
    model64 y;
    rq_tuner *t;
    int32_t ids[512];
    int64_t window[4] = {0, 1, 2, 3};
    double loss, sum;
    fixture_open(&f, name, rotation);
    static const int sets[][2] = {{0, 2}, {3, 1}, {4, 1}, {6, 1}, {7, 2}, {9, 1}, {10, 1}}; /* q and k share twice */
    for (int i = 0; kind == BOOKS && i < 7; ++i) fixture_codebook(&f, sets[i][0], sets[i][1]);
    if (kind == INPUTS8) fixture_w4a8(&f);
    fill_ids(ids, n_seq * seq_len, 3);
    assert_ok(rq_tuner_new(&t, f.m, f.ref, ids, n_seq, seq_len, n_seq, act_bytes));
    assert_int_equal(t->recompute, act_bytes == 0);
    assert_int_equal(t->n_book, kind == BOOKS ? 9 : 0); /* two of them second stages */
    t->vocab_tile = 96;                                 /* 320 rows: three whole tiles and a short one */
    assert_ok(rq_tuner_reference(t, 0, n_seq));
    /* Away from the start, where all gains of a norm could be equal and scales are exact in fp16. */
    for (int64_t i = 0; i < t->n_param; ++i) {
        t->value[i] += t->unit[i] * 0.1f * (float)(rq_random_unit(13, (uint64_t)i) - 0.5);
    }
    rq_tune_books_clamp(t);
    model64_new(&y, &f, t, ids, n_seq, seq_len);
    assert_ok(rq_tuner_gradient(t, window, n_seq, &loss));
    freeze64(&y, n_seq * seq_len);
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
        check_gradient(names[i], i % 2 ? "orthogonal" : NULL, 2, 12, i % 2 ? 0 : KEEP, 3, GRIDS);
    for (int i = 0; i < 5; ++i) check_gradient(names[i], i % 2 ? NULL : "hadamard", 1, 9, KEEP, 1, GRIDS);
}

/* Scales and codebooks of ssvq and vq codes, shared ones too, beside scales of grids; outlier columns that stay. */
static void test_codebooks(void **state) {
    (void)state;
    check_gradient("qwen2", NULL, 2, 12, KEEP, 3, BOOKS);
    check_gradient("tied", "orthogonal", 2, 12, 0, 3, BOOKS);
}

/* Scales of rows and factors of inputs that are rounded to 8 bits, beside a dense matrix and one grid. */
static void test_inputs8(void **state) {
    (void)state;
    check_gradient("qwen2", NULL, 2, 12, KEEP, 3, INPUTS8);
    check_gradient("tied", "orthogonal", 2, 70, KEEP, 1, INPUTS8);
    check_gradient("mistral", NULL, 3, 5, KEEP, 3, INPUTS8);
}

/* Several blocks of queries and of positions. */
static void test_long_windows(void **state) {
    (void)state;
    check_gradient("qwen2", "orthogonal", 2, 150, KEEP, 0, GRIDS);
}

/* Activations kept or made again, windows in other batches: the same sums, bit for bit or nearly. */
static void check_recompute(bool inputs8) {
    fixture f;
    rq_tuner *a, *b;
    int32_t ids[60];
    int64_t order[3] = {2, 0, 1}, single[3] = {0, 1, 2};
    double loss[2], sum = 0;
    fixture_open(&f, "linear", NULL);
    if (inputs8) fixture_w4a8(&f);
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

static void test_recompute(void **state) {
    (void)state;
    check_recompute(false);
    check_recompute(true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),    cmocka_unit_test(test_codebooks), cmocka_unit_test(test_inputs8),
        cmocka_unit_test(test_long_windows), cmocka_unit_test(test_recompute),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
