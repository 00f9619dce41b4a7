/* SPDX-License-Identifier: Apache-2.0 */
/* The vq format: pack, write, read back, unpack; sizes against the bytes of the file; what must be refused. */
#include "container.h"
#include "formats_fixture.h"

static float half(void) { return rq_f32_of_f16(rq_f16_of_f32(((float)draw(1 << 20) - 0x1p19f) * 0x1p-18f)); }

typedef struct matrix {
    rq_vq_codes q;
    uint16_t *codes[2];
    rq_f16 *book[2], *col_scale, *col_bias;
    float *scale, outlier_scale[RQ_VQ_MAX_OUTLIERS];
    int32_t outlier_col[RQ_VQ_MAX_OUTLIERS];
    int8_t *outlier;
    uint8_t *book_of;
} matrix;

enum { OUT = 1, TWO = 2, SCALES = 4, COLUMNS = 8, PICK = 16 /* columns pick their codebooks */ };

static void make(matrix *m, int64_t n_out, int64_t n_in, int vec_len, int bits, int64_t book_cols, int64_t group,
                 int n_outlier, int flags) {
    int64_t n_line = flags & OUT ? (n_out + vec_len - 1) / vec_len : n_out;
    int64_t n_code = flags & OUT ? n_in : (n_in + vec_len - 1) / vec_len;
    if (!book_cols) book_cols = flags & OUT ? n_in : n_code * vec_len;
    int64_t n_book = (n_in + book_cols - 1) / book_cols, n_group = (n_in + group - 1) / group;
    memset(m, 0, sizeof *m);
    m->q = (rq_vq_codes){.n_out = n_out,
                         .n_in = n_in,
                         .vec_len = vec_len,
                         .n_stage = flags & TWO ? 2 : 1,
                         .vec_out = (flags & OUT) != 0,
                         .book_cols = book_cols,
                         .group = group,
                         .n_outlier = n_outlier};
    for (int s = 0; s < m->q.n_stage; ++s) {
        int64_t n_codes = (1 << bits) - (s ? 0 : (1 << bits) / 4);
        m->q.code_bits[s] = s ? 8 : bits;
        m->q.n_codes[s] = n_codes = s ? 256 : n_codes;
        m->codes[s] = must_alloc(n_line * n_code, sizeof *m->codes[s]);
        m->book[s] = must_alloc(n_book * n_codes * vec_len, sizeof *m->book[s]);
        for (int64_t i = 0; i < n_line * n_code; ++i) m->codes[s][i] = (uint16_t)draw((uint32_t)n_codes);
        m->codes[s][n_line * n_code - 1] = (uint16_t)(n_codes - 1);
        for (int64_t i = 0; i < n_book * n_codes * vec_len; ++i) m->book[s][i] = rq_f16_of_f32(half());
        m->q.codes[s] = m->codes[s];
        m->q.book[s] = m->book[s];
    }
    m->scale = must_alloc(n_out * n_group, sizeof *m->scale);
    for (int64_t i = 0; i < n_out * n_group; ++i) m->scale[i] = half();
    m->col_scale = must_alloc(n_in, sizeof *m->col_scale);
    m->col_bias = must_alloc(n_in, sizeof *m->col_bias);
    for (int64_t j = 0; j < n_in; ++j) m->col_scale[j] = rq_f16_of_f32(half()), m->col_bias[j] = rq_f16_of_f32(half());
    m->outlier = must_alloc(n_out * n_outlier, 1);
    for (int64_t i = 0; i < n_out * n_outlier; ++i) m->outlier[i] = (int8_t)((int)draw(256) - 128);
    for (int o = 0; o < n_outlier; ++o) {
        m->outlier_col[o] = (int32_t)(o * n_in / n_outlier);
        m->outlier_scale[o] = half();
    }
    m->q.scale = flags & SCALES ? m->scale : NULL;
    m->q.col_scale = flags & COLUMNS ? m->col_scale : NULL;
    m->q.col_bias = flags & COLUMNS ? m->col_bias : NULL;
    m->book_of = must_alloc(n_in, 1);
    for (int64_t j = 0; j < n_in; ++j) m->book_of[j] = (uint8_t)draw((uint32_t)n_book);
    m->book_of[n_in / 2] = (uint8_t)(n_book - 1);
    m->q.book_of = flags & PICK ? m->book_of : NULL;
    m->q.outlier = m->outlier;
    m->q.outlier_col = m->outlier_col;
    m->q.outlier_scale = m->outlier_scale;
}

static void drop(matrix *m) {
    for (int s = 0; s < 2; ++s) free(m->codes[s]), free(m->book[s]);
    free(m->scale), free(m->col_scale), free(m->col_bias), free(m->outlier), free(m->book_of);
}

/* Row by row against what went in. */
static void check_values(const rq_packed *p, const rq_vq_codes *q) {
    int64_t V = q->vec_len, n_group = (q->n_in + q->group - 1) / q->group;
    float *row = must_alloc(q->n_in + 1, sizeof *row);
    for (int64_t i = 0; i < q->n_out; ++i) {
        for (int64_t j = 0; j <= q->n_in; ++j) row[j] = 12345.0f;
        rq_unpack_row(p, i, row);
        assert_true(row[q->n_in] == 12345.0f);
        for (int64_t j = 0; j < q->n_in; ++j) {
            float want = 0;
            for (int s = 0; s < q->n_stage; ++s) {
                int64_t code =
                    q->vec_out ? q->codes[s][i / V * q->n_in + j] : q->codes[s][i * ((q->n_in + V - 1) / V) + j / V];
                int64_t book = q->book_of ? q->book_of[j] : j / q->book_cols;
                int64_t at = (book * q->n_codes[s] + code) * V + (q->vec_out ? i : j) % V;
                want += rq_f32_of_f16(q->book[s][at]);
            }
            if (q->scale) want *= q->scale[i * n_group + j / q->group];
            if (q->col_scale) {
                want *= rq_f32_of_f16(q->col_scale[j]);
                want += rq_f32_of_f16(q->col_bias[j]);
            }
            for (int o = 0; o < q->n_outlier; ++o) {
                if (q->outlier_col[o] == j) want = q->outlier_scale[o] * (float)q->outlier[i * q->n_outlier + o];
            }
            assert_memory_equal(&row[j], &want, sizeof want);
        }
    }
    free(row);
}

static void round_trip(const matrix *m) {
    rq_packed_file f;
    rq_packed direct, loaded;
    rq_store *s;
    char *entry;
    assert_int_equal(rq_vq_pack_file(&f, &entry, "m.q_proj", &m->q), RQ_OK);
    assert_int_equal(rq_safetensors_write(path, f.tensor, f.n_tensors, NULL, 0), RQ_OK);
    assert_int_equal(rq_store_open(&s, path), RQ_OK);
    json_t *json = json_loads(entry, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(json, "format")), "vq");
    assert_int_equal(rq_format_get(RQ_FORMAT_VQ)->load(&loaded, s, "m.q_proj", json), RQ_OK);
    assert_int_equal(rq_vq_pack(&direct, &m->q), RQ_OK);
    check_values(&direct, &m->q);
    check_values(&loaded, &m->q);
    assert_int_equal(rq_packed_size_bits(&direct), tensor_bits(s));
    assert_int_equal(rq_packed_size_bits(&loaded), tensor_bits(s));
    json_decref(json);
    free(entry);
    rq_packed_free(&loaded);
    rq_packed_free(&direct);
    rq_store_close(s);
    rq_packed_file_free(&f);
}

static void test_round_trip(void **state) {
    (void)state;
    static const int64_t n_ins[] = {1, 8, 31, 33, 96, 129};
    static const int bits[] = {5, 8, 12, 16}, lens[] = {2, 4, 6, 8, 16};
    int n = 0;
    for (size_t k = 0; k < sizeof n_ins / sizeof *n_ins; ++k) {
        for (size_t b = 0; b < sizeof bits / sizeof *bits; ++b) {
            for (int flags = 0; flags < 32; ++flags, ++n) {
                if (flags & PICK && !(flags & OUT)) continue;
                int64_t n_in = n_ins[k], V = lens[n % 5];
                int64_t group = flags & SCALES && n % 3 && n_in > 48 ? 48 : n_in, book = n % 4 || b == 3 ? 0 : 48;
                int n_outlier = n % 5 ? 0 : (int)rq_min_i64(n_in, RQ_VQ_MAX_OUTLIERS);
                matrix m;
                make(&m, 1 + n % 9, n_in, (int)V, bits[b], book, group, n_outlier, flags);
                round_trip(&m);
                drop(&m);
            }
        }
    }
}

/* ---- refusals ----------------------------------------------------------------------------------------------------------- */

static void refuse_codes(const rq_vq_codes *q, rq_status want) {
    rq_packed_file f;
    rq_packed p;
    char *entry;
    assert_int_equal(rq_vq_pack_file(&f, &entry, "m", q), want);
    assert_null(entry);
    assert_int_equal(rq_vq_pack(&p, q), want);
    assert_int_equal(p.n_owned, 0);
}

static void test_refuses_codes(void **state) {
    (void)state;
    matrix m;
    make(&m, 4, 96, 8, 9, 48, 32, 3, TWO | SCALES | COLUMNS);
    rq_vq_codes q = m.q;
    q.vec_len = 1, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.vec_len = 17, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.n_stage = 3, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.n_out = 0, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.n_in = (int64_t)1 << 40, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.code_bits[1] = 17, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.n_codes[0] = 513, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.n_codes[1] = 8, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.book_cols = 44, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.group = 12, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.group = 104, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.n_outlier = 17, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.book[1] = NULL, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.scale = NULL, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.col_bias = NULL, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.book_users = -1, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    m.codes[0][5] = 500, refuse_codes(&q, RQ_ERR_ARG), m.codes[0][5] = 0;
    m.scale[5] = NAN, refuse_codes(&q, RQ_ERR_NUMERIC), m.scale[5] = 1e6f;
    refuse_codes(&q, RQ_ERR_NUMERIC), m.scale[5] = 1.0f;
    m.book[1][9].bits = 0x7c00, refuse_codes(&q, RQ_ERR_ARG), m.book[1][9].bits = 0;
    m.col_bias[9].bits = 0xfe00, refuse_codes(&q, RQ_ERR_ARG), m.col_bias[9].bits = 0;
    m.outlier_col[1] = m.outlier_col[0], refuse_codes(&q, RQ_ERR_ARG), m.outlier_col[1] = 50;
    m.outlier_scale[2] = NAN, refuse_codes(&q, RQ_ERR_ARG), m.outlier_scale[2] = 1.0f;
    rq_packed p;
    assert_int_equal(rq_vq_pack(&p, &q), RQ_OK);
    rq_packed_free(&p);
    drop(&m);
}

static void refuse_file(const rq_packed_file *f, int n, const char *entry, rq_status want) {
    load_gives(RQ_FORMAT_VQ, f, n, entry, want);
}

/* The entry with one value changed. */
static void refuse_entry(const rq_packed_file *f, const char *entry, const char *from, const char *to) {
    char text[512];
    const char *at = strstr(entry, from);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - entry), entry, to, at + strlen(from));
    refuse_file(f, f->n_tensors, text, RQ_ERR_INPUT);
}

static void test_refuses_files(void **state) {
    (void)state;
    static const char *const changes[][2] = {
        {"\"vec_len\":8", "\"vec_len\":4"},
        {"\"vec_axis\":\"in\"", "\"vec_axis\":\"up\""},
        {"\"vec_axis\":\"in\"", "\"vec_axis\":\"out\""},
        {"\"code_bits\":[9,8]", "\"code_bits\":[9]"},
        {"\"code_bits\":[9,8]", "\"code_bits\":[9,8,8]"},
        {"\"code_bits\":[9,8]", "\"code_bits\":[9,\"8\"]"},
        {"\"code_bits\":[9,8]", "\"code_bits\":[10,8]"},
        {"\"code_bits\":[9,8]", "\"code_bits\":9"},
        {"\"n_codes\":[384,256]", "\"n_codes\":[384,-256]"},
        {"\"n_codes\":[384,256]", "\"n_codes\":[512,256]"},
        {"\"book_cols\":48", "\"book_cols\":96"},
        {"\"book_cols\":48", "\"book_cols\":-48"},
        {"\"group\":32", "\"group\":96"},
        {"\"scales\":true", "\"scales\":false"},
        {"\"columns\":true", "\"columns\":false"},
        {"\"n_outlier\":3", "\"n_outlier\":0"},
        {"\"n_outlier\":3", "\"n_outlier\":3,\"book\":\"x\""},
        {"\"n_outlier\":3", "\"n_outlier\":3,\"book_users\":0"},
    };
    matrix m;
    rq_packed_file f;
    char *entry;
    make(&m, 4, 96, 8, 9, 48, 32, 3, TWO | SCALES | COLUMNS);
    assert_int_equal(rq_vq_pack_file(&f, &entry, "m", &m.q), RQ_OK);
    assert_int_equal(f.n_tensors, 11);
    refuse_file(&f, 11, entry, RQ_OK);
    refuse_file(&f, 11, "{}", RQ_ERR_INPUT);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; ++i) {
        refuse_entry(&f, entry, changes[i][0], changes[i][1]);
    }
    for (int n = 1; n < 11; ++n) refuse_file(&f, n, entry, RQ_ERR_INPUT); /* a tensor is missing */
    uint32_t *words = f.tensor[0].arg, keep = words[0];
    words[0] |= 511, refuse_file(&f, 11, entry, RQ_ERR_INPUT), words[0] = keep;
    for (int t = 2; t < 8; ++t) { /* codebooks, scales, columns */
        if (f.tensor[t].dtype != RQ_F16) continue;
        rq_f16 *v = f.tensor[t].arg, was = v[3];
        v[3].bits = 0x7e00, refuse_file(&f, 11, entry, RQ_ERR_INPUT), v[3] = was;
    }
    int64_t *shape = f.tensor[4].arg;
    shape[0] = 5, refuse_file(&f, 11, entry, RQ_ERR_INPUT), shape[0] = INT64_MAX / 2;
    refuse_file(&f, 11, entry, RQ_ERR_INPUT), shape[0] = -4;
    refuse_file(&f, 11, entry, RQ_ERR_INPUT), shape[0] = 4;
    int32_t *cols = f.tensor[9].arg;
    cols[2] = 96, refuse_file(&f, 11, entry, RQ_ERR_INPUT), cols[2] = 95;
    float *outlier_scale = f.tensor[10].arg;
    outlier_scale[0] = 3e38f, refuse_file(&f, 11, entry, RQ_ERR_INPUT), outlier_scale[0] = 1.0f;
    refuse_file(&f, 11, entry, RQ_OK);
    free(entry);
    rq_packed_file_free(&f);
    drop(&m);
}

/* Columns that pick codebooks: only with vectors down the outputs, only codebooks that are there, and no tensor that the entry
 * does not name. */
static void test_refuses_picks(void **state) {
    (void)state;
    matrix m;
    rq_packed_file f;
    char *entry;
    make(&m, 9, 96, 4, 5, 20, 96, 0, OUT | PICK);
    rq_vq_codes q = m.q;
    q.vec_out = false, q.book_cols = 24, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    m.book_of[95] = 5, refuse_codes(&q, RQ_ERR_ARG), m.book_of[95] = 4;
    assert_int_equal(rq_vq_pack_file(&f, &entry, "m", &q), RQ_OK);
    assert_int_equal(f.n_tensors, 4);
    refuse_file(&f, 4, entry, RQ_OK);
    refuse_entry(&f, entry, "\"book_of\":true", "\"book_of\":false");
    refuse_entry(&f, entry, ",\"book_of\":true", "");
    refuse_entry(&f, entry, "\"book_of\":true", "\"book_of\":1");
    refuse_entry(&f, entry, "\"vec_axis\":\"out\"", "\"vec_axis\":\"in\"");
    uint8_t *pick = f.tensor[2].arg;
    assert_int_equal(f.tensor[2].dtype, RQ_U8);
    pick[0] = 200, refuse_file(&f, 4, entry, RQ_ERR_INPUT), pick[0] = 0;
    refuse_file(&f, 4, entry, RQ_OK);
    free(entry);
    rq_packed_file_free(&f);
    drop(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_refuses_codes),
        cmocka_unit_test(test_refuses_files),
        cmocka_unit_test(test_refuses_picks),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
