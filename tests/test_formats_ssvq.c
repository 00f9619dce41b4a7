/* SPDX-License-Identifier: Apache-2.0 */
/* The ssvq format: pack, write, read back, unpack; sizes against the bytes of the file; a codebook of several matrices; what
 * must be refused. */
#include "container.h"
#include "formats_fixture.h"

typedef struct matrix {
    rq_ssvq_codes q;
    uint16_t *codes;
    uint8_t *negative, *book_u8;
    rq_f16 *book_f16;
    float *book_scale, *scale, *outlier_scale;
    int32_t *outlier_col;
    int8_t *outlier;
} matrix;

/* book_cols 0: one book. */
static void make(matrix *m, int64_t n_out, int64_t n_in, int vec_len, int code_bits, int64_t n_codes, int64_t book_cols,
                 int64_t group, int n_outlier, bool u8) {
    int64_t n_vec = (n_in + vec_len - 1) / vec_len, n_group = (n_in + group - 1) / group;
    if (!book_cols) book_cols = n_vec * vec_len;
    int64_t n_book = (n_in + book_cols - 1) / book_cols, n = n_book * n_codes * vec_len;
    memset(m, 0, sizeof *m);
    m->codes = must_alloc(n_out * n_vec, sizeof *m->codes);
    m->negative = must_alloc(n_out * n_in, 1);
    m->scale = must_alloc(n_out * n_group, sizeof *m->scale);
    m->book_u8 = must_alloc(n, 1);
    m->book_f16 = must_alloc(n, sizeof *m->book_f16);
    m->book_scale = must_alloc(n_book, sizeof *m->book_scale);
    m->outlier_col = must_alloc(n_outlier, sizeof *m->outlier_col);
    m->outlier = must_alloc(n_out * n_outlier, 1);
    m->outlier_scale = must_alloc(n_outlier, sizeof *m->outlier_scale);
    for (int64_t i = 0; i < n_out * n_vec; ++i) m->codes[i] = (uint16_t)draw((uint32_t)n_codes);
    m->codes[n_out * n_vec - 1] = (uint16_t)(n_codes - 1);
    for (int64_t i = 0; i < n_out * n_in; ++i) m->negative[i] = (uint8_t)draw(2);
    for (int64_t i = 0; i < n_out * n_group; ++i) {
        m->scale[i] = rq_f32_of_f16(rq_f16_of_f32(((float)draw(20000) - 3000.0f) * 0x1.1p-12f));
    }
    for (int64_t i = 0; i < n; ++i) {
        m->book_u8[i] = (uint8_t)draw(256);
        m->book_f16[i] = rq_f16_of_f32((float)draw(1 << 20) * 0x1p-19f);
    }
    for (int64_t i = 0; i < n_book; ++i) m->book_scale[i] = (float)(1 + draw(1 << 20)) * 0x1p-22f;
    for (int o = 0; o < n_outlier; ++o) {
        m->outlier_col[o] = (int32_t)(o * n_in / n_outlier);
        m->outlier_scale[o] = ((float)draw(1 << 20) - 0x1p19f) * 0x1p-24f;
    }
    for (int64_t i = 0; i < n_out * n_outlier; ++i) m->outlier[i] = (int8_t)((int)draw(256) - 128);
    m->q = (rq_ssvq_codes){.n_out = n_out,
                           .n_in = n_in,
                           .vec_len = vec_len,
                           .code_bits = code_bits,
                           .n_codes = n_codes,
                           .book_cols = book_cols,
                           .group = group,
                           .codes = m->codes,
                           .negative = m->negative,
                           .book_f16 = u8 ? NULL : m->book_f16,
                           .book_u8 = u8 ? m->book_u8 : NULL,
                           .book_scale = u8 ? m->book_scale : NULL,
                           .scale = m->scale,
                           .n_outlier = n_outlier,
                           .outlier_col = m->outlier_col,
                           .outlier = m->outlier,
                           .outlier_scale = m->outlier_scale};
}

static void drop(matrix *m) {
    free(m->codes), free(m->negative), free(m->book_u8), free(m->book_f16), free(m->book_scale), free(m->scale);
    free(m->outlier_col), free(m->outlier), free(m->outlier_scale);
}

/* Row by row against what went in. */
static void check_values(const rq_packed *p, const rq_ssvq_codes *q) {
    int64_t n_vec = (q->n_in + q->vec_len - 1) / q->vec_len, n_group = (q->n_in + q->group - 1) / q->group;
    float *row = must_alloc(q->n_in + 1, sizeof *row);
    for (int64_t i = 0; i < q->n_out; ++i) {
        for (int64_t j = 0; j <= q->n_in; ++j) row[j] = 12345.0f;
        rq_unpack_row(p, i, row);
        assert_true(row[q->n_in] == 12345.0f);
        for (int64_t j = 0; j < q->n_in; ++j) {
            int64_t at =
                ((j / q->book_cols) * q->n_codes + q->codes[i * n_vec + j / q->vec_len]) * q->vec_len + j % q->vec_len;
            float m =
                q->book_u8 ? q->book_scale[j / q->book_cols] * (float)q->book_u8[at] : rq_f32_of_f16(q->book_f16[at]);
            float want = q->scale[i * n_group + j / q->group] * (q->negative[i * q->n_in + j] ? -1.0f * m : m);
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
    assert_int_equal(rq_ssvq_pack_file(&f, &entry, "m.q_proj", &m->q), RQ_OK);
    assert_int_equal(rq_safetensors_write(path, f.tensor, f.n_tensors, NULL, 0), RQ_OK);
    assert_int_equal(rq_store_open(&s, path), RQ_OK);
    json_t *json = json_loads(entry, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(json, "format")), "ssvq");
    assert_int_equal(rq_format_get(RQ_FORMAT_SSVQ)->load(&loaded, s, "m.q_proj", json), RQ_OK);
    assert_int_equal(rq_ssvq_pack(&direct, &m->q), RQ_OK);
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
    static const int64_t n_ins[] = {1, 7, 8, 31, 32, 33, 96, 127, 129, 576};
    static const int bits[] = {4, 5, 7, 8, 11, 12};
    int n = 0;
    for (size_t k = 0; k < sizeof n_ins / sizeof *n_ins; ++k) {
        for (size_t b = 0; b < sizeof bits / sizeof *bits; ++b) {
            for (int flags = 0; flags < 8; ++flags, ++n) {
                int vec_len = flags & 1 ? 8 : 4;
                int64_t n_in = n_ins[k], group = n % 3 && n_in > 32 ? 32 : n_in, book = n % 4 ? 0 : 40;
                int n_outlier = n % 5 ? 0 : (int)rq_min_i64(n_in, RQ_SSVQ_MAX_OUTLIERS);
                matrix m;
                make(&m, 1 + n % 4, n_in, vec_len, bits[b], flags & 2 ? 1 << bits[b] : 16, book, group, n_outlier,
                     flags & 4);
                round_trip(&m);
                drop(&m);
            }
        }
    }
}

/* Words computed by hand: codes 1, 2, 3 of 5 bits, all weights of the second vector negative. */
static void test_known_bits(void **state) {
    (void)state;
    matrix m;
    rq_packed_file f;
    char *entry;
    make(&m, 1, 12, 4, 5, 20, 0, 12, 0, true);
    for (int i = 0; i < 3; ++i) m.codes[i] = (uint16_t)(i + 1);
    for (int j = 0; j < 12; ++j) m.negative[j] = j / 4 == 1;
    assert_int_equal(rq_ssvq_pack_file(&f, &entry, "a", &m.q), RQ_OK);
    assert_int_equal(f.n_tensors, 6);
    assert_string_equal(f.tensor[0].name, "a.weight_codes");
    assert_int_equal(*(uint32_t *)f.tensor[0].arg, 1 | 2 << 5 | 3 << 10);
    assert_string_equal(f.tensor[1].name, "a.weight_signs");
    assert_int_equal(*(uint32_t *)f.tensor[1].arg, 0xf0);
    assert_string_equal(entry, "{\"format\":\"ssvq\",\"vec_len\":4,\"code_bits\":5,\"n_codes\":20,\"book_cols\":12,"
                               "\"group\":12,\"n_outlier\":0}");
    free(entry);
    rq_packed_file_free(&f);
    drop(&m);
}

/* ---- a codebook of several matrices ------------------------------------------------------------------------------------- */

static void write_shared(const rq_packed_file *f, int n, char *const *entry, const char *text) {
    rq_out_tensor tensor[30];
    char meta[2048];
    int n_tensors = 0;
    for (int i = 0; i < n; ++i) {
        memcpy(tensor + n_tensors, f[i].tensor, (size_t)f[i].n_tensors * sizeof *tensor);
        n_tensors += f[i].n_tensors;
    }
    if (!text) {
        snprintf(meta, sizeof meta, "{\"version\":1,\"linears\":{\"q\":%s,\"k\":%s,\"v\":%s}}", entry[0], entry[1],
                 entry[2]);
        text = meta;
    }
    const char *pairs[] = {"requite", text};
    assert_int_equal(rq_safetensors_write(path, tensor, n_tensors, pairs, 1), RQ_OK);
}

static rq_status check_metadata(void) {
    rq_store *s;
    json_t *meta;
    assert_int_equal(rq_store_open(&s, path), RQ_OK);
    rq_status status = rq_container_metadata(s, &meta);
    assert_true((status == RQ_OK) == (meta != NULL));
    json_decref(meta);
    rq_store_close(s);
    return status;
}

static void test_shared_book(void **state) {
    (void)state;
    static const char *const names[] = {"q", "k", "v"};
    matrix m[3];
    rq_packed_file f[3];
    char *entry[3];
    rq_store *s;
    json_t *meta;
    for (int i = 0; i < 3; ++i) {
        make(&m[i], 4 + i, 64, 8, 8, 256, 0, 64, i, true);
        if (i) m[i].q.book_u8 = m[0].book_u8, m[i].q.book_scale = m[0].book_scale;
        m[i].q.book = "q";
        m[i].q.book_users = 3;
        assert_int_equal(rq_ssvq_pack_file(&f[i], &entry[i], names[i], &m[i].q), RQ_OK);
        assert_int_equal(f[i].n_tensors, (i ? 4 : 6) + (i ? 3 : 0));
    }
    write_shared(f, 3, entry, NULL);
    assert_int_equal(rq_store_open(&s, path), RQ_OK);
    assert_int_equal(rq_container_metadata(s, &meta), RQ_OK);
    int64_t bits = 0;
    for (int i = 0; i < 3; ++i) {
        rq_packed p;
        assert_int_equal(rq_container_load(&p, s, meta, names[i]), RQ_OK);
        check_values(&p, &m[i].q);
        bits += rq_packed_size_bits(&p);
        rq_packed_free(&p);
    }
    assert_int_equal(bits, tensor_bits(s));
    json_decref(meta);
    rq_store_close(s);
    /* Shares that do not add up, and books that nobody has. */
    static const char *const bad[] = {
        "{\"q\":{\"book_users\":2},\"k\":{\"book\":\"q\",\"book_users\":3},\"v\":{\"book\":\"q\",\"book_users\":3}}",
        "{\"q\":{},\"k\":{\"book\":\"q\",\"book_users\":2}}",
        "{\"q\":{\"book_users\":2},\"k\":{\"book\":\"q\",\"book_users\":1000}}",
        "{\"q\":{\"book_users\":2}}",
        "{\"q\":{\"book_users\":\"2\"},\"k\":{\"book\":\"q\",\"book_users\":2}}",
        "{\"k\":{\"book\":\"q\",\"book_users\":1}}",
        "{\"q\":{\"book\":\"v\",\"book_users\":1},\"k\":{\"book\":\"q\",\"book_users\":1},\"v\":{\"book_users\":2}}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) {
        char text[512];
        snprintf(text, sizeof text, "{\"version\":1,\"linears\":%s}", bad[i]);
        write_shared(f, 3, NULL, text);
        assert_int_equal(check_metadata(), RQ_ERR_INPUT);
        assert_non_null(strstr(rq_last_error(), "codebook"));
    }
    for (int i = 0; i < 3; ++i) {
        free(entry[i]);
        rq_packed_file_free(&f[i]);
        drop(&m[i]);
    }
}

/* ---- refusals ----------------------------------------------------------------------------------------------------------- */

static void refuse_codes(const rq_ssvq_codes *q, rq_status want) {
    rq_packed_file f;
    rq_packed p;
    char *entry;
    assert_int_equal(rq_ssvq_pack_file(&f, &entry, "m", q), want);
    assert_null(entry);
    assert_int_equal(rq_ssvq_pack(&p, q), want);
    assert_int_equal(p.n_owned, 0);
}

static void test_refuses_codes(void **state) {
    (void)state;
    matrix m;
    make(&m, 4, 96, 8, 8, 200, 48, 32, 3, true);
    rq_ssvq_codes q = m.q;
    q.vec_len = 6, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.n_out = 0, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.n_in = (int64_t)1 << 40, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.code_bits = 3, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.code_bits = 13, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.n_codes = 15, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.n_codes = 257, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.book_cols = 44, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.book_cols = 0, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.group = 12, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.group = 104, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.n_outlier = 17, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.book_f16 = m.book_f16, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.book_u8 = NULL, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.book_scale = NULL, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.outlier = NULL, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.book_users = -1, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    m.codes[5] = 200, refuse_codes(&q, RQ_ERR_ARG), m.codes[5] = 199;
    m.scale[5] = NAN, refuse_codes(&q, RQ_ERR_NUMERIC);
    m.scale[5] = 1.0f + 0x1p-20f, refuse_codes(&q, RQ_ERR_NUMERIC);
    m.scale[5] = 1.0f;
    m.book_scale[1] = -1.0f, refuse_codes(&q, RQ_ERR_ARG), m.book_scale[1] = 1e35f;
    refuse_codes(&q, RQ_ERR_ARG), m.book_scale[1] = 1.0f;
    m.outlier_col[1] = m.outlier_col[0], refuse_codes(&q, RQ_ERR_ARG), m.outlier_col[1] = 96;
    refuse_codes(&q, RQ_ERR_ARG), m.outlier_col[1] = 50;
    m.outlier_scale[2] = NAN, refuse_codes(&q, RQ_ERR_ARG), m.outlier_scale[2] = 1.0f;
    q.book_f16 = m.book_f16, q.book_u8 = NULL;
    m.book_f16[9].bits = 0xbc00, refuse_codes(&q, RQ_ERR_ARG), m.book_f16[9].bits = 0x7c00;
    refuse_codes(&q, RQ_ERR_ARG), m.book_f16[9].bits = 0;
    rq_packed p;
    assert_int_equal(rq_ssvq_pack(&p, &q), RQ_OK);
    rq_packed_free(&p);
    drop(&m);
}

static void refuse_file(const rq_packed_file *f, int n, const char *entry, rq_status want) {
    load_gives(RQ_FORMAT_SSVQ, f, n, entry, want);
}

static void test_refuses_files(void **state) {
    (void)state;
    static const char *const bad[] = {
        "{}",
        "[]",
        "{\"vec_len\":8,\"code_bits\":8,\"n_codes\":200,\"book_cols\":48,\"group\":32}",
        "{\"vec_len\":4,\"code_bits\":8,\"n_codes\":200,\"book_cols\":48,\"group\":32,\"n_outlier\":3}",
        "{\"vec_len\":8,\"code_bits\":9,\"n_codes\":200,\"book_cols\":48,\"group\":32,\"n_outlier\":3}",
        "{\"vec_len\":8,\"code_bits\":8,\"n_codes\":201,\"book_cols\":48,\"group\":32,\"n_outlier\":3}",
        "{\"vec_len\":8,\"code_bits\":8,\"n_codes\":200,\"book_cols\":96,\"group\":32,\"n_outlier\":3}",
        "{\"vec_len\":8,\"code_bits\":8,\"n_codes\":200,\"book_cols\":-48,\"group\":32,\"n_outlier\":3}",
        "{\"vec_len\":8,\"code_bits\":8,\"n_codes\":200,\"book_cols\":48,\"group\":96,\"n_outlier\":3}",
        "{\"vec_len\":8,\"code_bits\":8,\"n_codes\":200,\"book_cols\":48,\"group\":32,\"n_outlier\":2}",
        "{\"vec_len\":8,\"code_bits\":8,\"n_codes\":200,\"book_cols\":48,\"group\":32,\"n_outlier\":0}",
        "{\"vec_len\":8,\"code_bits\":8,\"n_codes\":200,\"book_cols\":48,\"group\":32,\"n_outlier\":3,\"book\":\"x\"}",
        ("{\"vec_len\":8,\"code_bits\":8,\"n_codes\":200,\"book_cols\":48,\"group\":32,\"n_outlier\":3,"
         "\"book_users\":0}"),
    };
    matrix m;
    rq_packed_file f;
    char *entry;
    make(&m, 4, 96, 8, 8, 200, 48, 32, 3, true);
    assert_int_equal(rq_ssvq_pack_file(&f, &entry, "m", &m.q), RQ_OK);
    refuse_file(&f, 9, entry, RQ_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) refuse_file(&f, 9, bad[i], RQ_ERR_INPUT);
    for (int n = 1; n < 9; ++n) refuse_file(&f, n, entry, RQ_ERR_INPUT); /* a tensor is missing */
    uint8_t *codes = f.tensor[0].arg;
    uint8_t keep = codes[30];
    codes[30] = 200, refuse_file(&f, 9, entry, RQ_ERR_INPUT), codes[30] = keep;
    rq_f16 *scale = f.tensor[2].arg;
    scale[7].bits = 0xfc00, refuse_file(&f, 9, entry, RQ_ERR_INPUT), scale[7].bits = 0x3c00;
    int64_t *shape = f.tensor[3].arg;
    shape[0] = 5, refuse_file(&f, 9, entry, RQ_ERR_INPUT), shape[0] = INT64_MAX / 2;
    refuse_file(&f, 9, entry, RQ_ERR_INPUT), shape[0] = -4;
    refuse_file(&f, 9, entry, RQ_ERR_INPUT), shape[0] = 4;
    float *book_scale = f.tensor[5].arg;
    book_scale[1] = INFINITY, refuse_file(&f, 9, entry, RQ_ERR_INPUT), book_scale[1] = 1.0f;
    int32_t *cols = f.tensor[7].arg;
    cols[0] = -1, refuse_file(&f, 9, entry, RQ_ERR_INPUT), cols[0] = 0;
    cols[2] = 96, refuse_file(&f, 9, entry, RQ_ERR_INPUT), cols[2] = 95;
    float *outlier_scale = f.tensor[8].arg;
    outlier_scale[0] = 3e38f, refuse_file(&f, 9, entry, RQ_ERR_INPUT), outlier_scale[0] = 1.0f;
    refuse_file(&f, 9, entry, RQ_OK);
    f.tensor[4].dtype = RQ_I8; /* same bytes under another type */
    refuse_file(&f, 9, entry, RQ_ERR_INPUT), f.tensor[4].dtype = RQ_U8;
    f.tensor[0].shape[0] = 8, f.tensor[0].shape[1] /= 2; /* same bytes in another shape */
    refuse_file(&f, 9, entry, RQ_ERR_INPUT);
    free(entry);
    rq_packed_file_free(&f);
    drop(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_known_bits),    cmocka_unit_test(test_shared_book),
        cmocka_unit_test(test_refuses_codes), cmocka_unit_test(test_refuses_files),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
