/* SPDX-License-Identifier: Apache-2.0 */
/* Packed formats: pack, write, read back, unpack; sizes against the bytes of the file; what must be refused. */
#include "formats_fixture.h"

typedef struct matrix {
    rq_grid_codes q;
    uint8_t *codes, *zero;
    float *scale;
    int32_t *g_idx;
} matrix;

static void make(matrix *m, int64_t n_out, int64_t n_in, int bits, int64_t group, bool sym, bool half, bool act_order) {
    int64_t n_group = rq_ceil_div(n_in, group);
    memset(m, 0, sizeof *m);
    m->codes = must_alloc(n_out * n_in, 1);
    m->scale = must_alloc(n_out * n_group, sizeof(float));
    for (int64_t i = 0; i < n_out * n_in; ++i) m->codes[i] = (uint8_t)draw(1u << bits);
    for (int64_t i = 0; i < n_out * n_group; ++i) {
        float s = ((float)draw(20000) - 3000.0f) * 0x1.1p-12f;
        m->scale[i] = half ? rq_f32_of_f16(rq_f16_of_f32(s)) : s;
    }
    if (!sym) {
        m->zero = must_alloc(n_out * n_group, 1);
        for (int64_t i = 0; i < n_out * n_group; ++i) m->zero[i] = (uint8_t)draw(1u << bits);
    }
    if (act_order) { /* the group of every column, shuffled */
        m->g_idx = must_alloc(n_in, sizeof(int32_t));
        for (int64_t j = 0; j < n_in; ++j) m->g_idx[j] = (int32_t)(j / group);
        for (int64_t j = n_in - 1; j > 0; --j) {
            int64_t k = draw((uint32_t)(j + 1));
            int32_t t = m->g_idx[j];
            m->g_idx[j] = m->g_idx[k];
            m->g_idx[k] = t;
        }
    }
    m->q = (rq_grid_codes){n_out,    n_in,     group,   n_group, bits, half ? RQ_F16 : RQ_F32,
                           m->codes, m->scale, m->zero, m->g_idx};
}

static void drop(matrix *m) { free(m->codes), free(m->zero), free(m->scale), free(m->g_idx); }

/* A safetensors file laid out here, so that data can start at any byte and end where we want: header padded with spaces
 * until the file's size is `end_mod` modulo 4096. */
static void write_raw(const rq_out_tensor *t, int n, const int *order, int64_t end_mod) {
    char header[8192];
    int len = snprintf(header, sizeof header, "{");
    int64_t at = 0;
    for (int i = 0; i < n; ++i) {
        const rq_out_tensor *x = &t[order[i]];
        int64_t bytes = rq_dtype_block_bytes(x->dtype) * x->shape[0] * (x->rank > 1 ? x->shape[1] : 1);
        len += snprintf(header + len, sizeof header - (size_t)len, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld",
                        i ? "," : "", x->name, rq_dtype_name(x->dtype), (long long)x->shape[0]);
        if (x->rank > 1) len += snprintf(header + len, sizeof header - (size_t)len, ",%lld", (long long)x->shape[1]);
        len += snprintf(header + len, sizeof header - (size_t)len, "],\"data_offsets\":[%lld,%lld]}", (long long)at,
                        (long long)(at + bytes));
        at += bytes;
    }
    header[len++] = '}';
    while ((8 + len + at) % 4096 != end_mod) header[len++] = ' ';
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    uint64_t n_header = (uint64_t)len;
    assert_int_equal(fwrite(&n_header, 8, 1, f), 1);
    assert_int_equal(fwrite(header, (size_t)len, 1, f), 1);
    for (int i = 0; i < n; ++i) {
        const rq_out_tensor *x = &t[order[i]];
        int64_t bytes = rq_dtype_block_bytes(x->dtype) * x->shape[0] * (x->rank > 1 ? x->shape[1] : 1);
        assert_int_equal(fwrite(x->arg, (size_t)bytes, 1, f), 1);
    }
    assert_int_equal(fclose(f), 0);
}

/* Row by row against scale * (code - zero), computed from what went in. */
static void check_values(const rq_packed *p, const matrix *m) {
    const rq_grid_codes *q = &m->q;
    float *row = must_alloc(q->n_in + 1, sizeof *row);
    for (int64_t i = 0; i < q->n_out; ++i) {
        for (int64_t j = 0; j <= q->n_in; ++j) row[j] = 12345.0f;
        rq_unpack_row(p, i, row);
        assert_true(row[q->n_in] == 12345.0f);
        for (int64_t j = 0; j < q->n_in; ++j) {
            int64_t g = i * q->n_group + (q->g_idx ? q->g_idx[j] : j / q->group);
            int zero = q->zero ? q->zero[g] : 1 << (q->bits - 1);
            float want = q->scale[g] * (float)(q->codes[i * q->n_in + j] - zero);
            assert_memory_equal(&row[j], &want, sizeof want);
        }
    }
    free(row);
}

static void check_same(const rq_packed *a, const rq_packed *b) {
    const rq_grid *g = &a->u.grid, *h = &b->u.grid;
    int64_t n = g->n_out * g->n_group;
    assert_int_equal(a->n_out, b->n_out);
    assert_int_equal(a->n_in, b->n_in);
    assert_int_equal(g->group, h->group);
    assert_int_equal(g->bits, h->bits);
    assert_memory_equal(g->words, h->words, (size_t)(g->n_out * g->row_words) * 4);
    assert_true(!g->scale_f16 == !h->scale_f16 && !g->scale_f32 == !h->scale_f32 && !g->scale_f16 == !!g->scale_f32);
    if (g->scale_f16)
        assert_memory_equal(g->scale_f16, h->scale_f16, (size_t)n * 2);
    else
        assert_memory_equal(g->scale_f32, h->scale_f32, (size_t)n * 4);
    assert_true(!g->zero == !h->zero && !g->perm == !h->perm);
    if (g->zero) assert_memory_equal(g->zero, h->zero, (size_t)n);
    if (g->perm) assert_memory_equal(g->perm, h->perm, (size_t)g->n_in * 4);
    assert_int_equal(rq_packed_size_bits(a), rq_packed_size_bits(b));
}

static void round_trip(const matrix *m, bool sym, int64_t end_mod) {
    rq_packed_file f;
    rq_packed direct, loaded;
    rq_store *s;
    assert_int_equal(rq_grid_pack_file(&f, "m.q_proj", &m->q), RQ_OK);
    if (end_mod >= 0) { /* scales and the rest first, the codes at the very end */
        static const int order[] = {1, 2, 3, 4, 0}, without_zero[] = {1, 2, 3, 0}, least[] = {1, 2, 0};
        write_raw(f.tensor, f.n_tensors, f.n_tensors == 5 ? order : f.n_tensors == 4 ? without_zero : least, end_mod);
    } else {
        assert_int_equal(rq_safetensors_write(path, f.tensor, f.n_tensors, NULL, 0), RQ_OK);
    }
    assert_int_equal(rq_store_open(&s, path), RQ_OK);
    json_t *entry = json_pack("{s:s, s:i, s:I, s:b}", "format", "grid", "bits", m->q.bits, "group",
                              (json_int_t)m->q.group, "sym", sym);
    assert_int_equal(rq_format_get(RQ_FORMAT_GRID)->load(&loaded, s, "m.q_proj", entry), RQ_OK);
    json_decref(entry);
    assert_int_equal(rq_grid_pack(&direct, &m->q), RQ_OK);
    check_same(&direct, &loaded);
    check_values(&direct, m);
    check_values(&loaded, m);
    assert_true((uintptr_t)loaded.u.grid.words % 4 == 0);
    volatile uint32_t past = loaded.u.grid.words[m->q.n_out * loaded.u.grid.row_words]; /* must be readable */
    (void)past;
    int64_t bytes = 0;
    for (int64_t i = 0; i < rq_store_count(s); ++i) bytes += rq_store_at(s, i)->n_bytes;
    assert_int_equal(rq_packed_size_bits(&loaded), bytes * 8);
    rq_packed_free(&loaded);
    rq_packed_free(&direct);
    rq_store_close(s);
    rq_packed_file_free(&f);
}

static void test_round_trip(void **state) {
    (void)state;
    static const int widths[] = {2, 3, 4, 8};
    static const int64_t n_ins[] = {1, 31, 32, 33, 64, 96, 127, 128, 129, 576, 1536};
    static const int64_t groups[] = {1, 32, 64, 100, 128, 0};
    int n = 0;
    for (int b = 0; b < 4; ++b) {
        for (size_t k = 0; k < sizeof n_ins / sizeof *n_ins; ++k) {
            for (size_t g = 0; g < sizeof groups / sizeof *groups; ++g) {
                int64_t group = groups[g] ? groups[g] : n_ins[k];
                if (group > n_ins[k] || (groups[g] == 0 && group == 128)) continue;
                for (int flags = 0; flags < 8; ++flags) {
                    if (group == 1 && n_ins[k] > 200) continue; /* a scale per weight: small ones tell all */
                    matrix m;
                    int64_t n_out = flags == 0 ? 1 : flags == 5 || flags == 6 ? 33 : 3;
                    make(&m, n_out, n_ins[k], widths[b], group, flags & 1, flags & 2, flags & 4);
                    round_trip(&m, flags & 1, n % 5 == 0 ? n % 4 : -1);
                    drop(&m);
                    ++n;
                }
            }
        }
    }
    assert_true(n > 500);
}

/* Words computed by hand: codes 1,2,...: element j at bit 3 j. */
static void test_known_bits(void **state) {
    (void)state;
    uint8_t codes[22], zero[2] = {5, 3};
    float scale[2] = {1.0f, 1.0f};
    for (int i = 0; i < 22; ++i) codes[i] = (uint8_t)(i % 8);
    rq_grid_codes q = {2, 11, 11, 1, 3, RQ_F16, codes, scale, zero, NULL};
    rq_packed_file f;
    assert_int_equal(rq_grid_pack_file(&f, "a", &q), RQ_OK);
    const uint32_t *w = f.tensor[0].arg, *z = f.tensor[3].arg;
    /* 0 1 2 3 4 5 6 7 0 1 2: the octal digits 2 1 0 7 6 5 4 3 2 1 0 read as one number, 33 bits. */
    uint64_t first = 021076543210u, second = 054321076543u;
    assert_int_equal(w[0], (uint32_t)first);
    assert_int_equal(w[1], first >> 32);
    assert_int_equal(w[2], (uint32_t)second);
    assert_int_equal(w[3], second >> 32);
    assert_int_equal(z[0], 5 | 3 << 3);
    assert_string_equal(f.tensor[0].name, "a.weight_packed");
    assert_string_equal(f.tensor[3].name, "a.weight_zero_point");
    assert_int_equal(f.tensor[0].shape[1], 2);
    rq_packed_file_free(&f);
}

static void refuse_codes(const rq_grid_codes *q, rq_status want) {
    rq_packed_file f;
    rq_packed p;
    assert_int_equal(rq_grid_pack_file(&f, "m", q), want);
    assert_int_equal(rq_grid_pack(&p, q), want);
}

static void test_refuses_codes(void **state) {
    (void)state;
    matrix m;
    make(&m, 4, 96, 3, 32, false, true, true);
    rq_grid_codes q = m.q;
    q.bits = 5, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.group = 0, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.group = 97, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.n_group = 4, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.n_out = 0, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    q.scale_dtype = RQ_BF16, refuse_codes(&q, RQ_ERR_ARG), q = m.q;
    m.codes[200] = 8, refuse_codes(&q, RQ_ERR_ARG), m.codes[200] = 7;
    m.zero[11] = 8, refuse_codes(&q, RQ_ERR_ARG), m.zero[11] = 0;
    m.scale[5] = NAN, refuse_codes(&q, RQ_ERR_NUMERIC);
    m.scale[5] = 1e6f, refuse_codes(&q, RQ_ERR_NUMERIC); /* infinite as float16 */
    m.scale[5] = 1.0f + 0x1p-20f, refuse_codes(&q, RQ_ERR_NUMERIC), m.scale[5] = 1.0f;
    int32_t keep = m.g_idx[17];
    m.g_idx[17] = 3, refuse_codes(&q, RQ_ERR_ARG);
    m.g_idx[17] = -1, refuse_codes(&q, RQ_ERR_ARG);
    m.g_idx[17] = (keep + 1) % 3, refuse_codes(&q, RQ_ERR_UNSUPPORTED); /* 31 columns in one, 33 in another */
    drop(&m);
}

/* Write the tensors as they stand now, and load them. */
static void refuse_file(const rq_packed_file *f, int n, int bits, int64_t group, bool sym, rq_status want) {
    rq_store *s;
    rq_packed p;
    assert_int_equal(rq_safetensors_write(path, f->tensor, n, NULL, 0), RQ_OK);
    assert_int_equal(rq_store_open(&s, path), RQ_OK);
    assert_int_equal(rq_grid_load(&p, s, "m", bits, group, sym), want);
    if (want == RQ_OK)
        rq_packed_free(&p);
    else
        assert_true(p.n_owned == 0 && strlen(rq_last_error()) > 10);
    rq_store_close(s);
}

static void test_refuses_files(void **state) {
    (void)state;
    matrix m;
    rq_packed_file f;
    make(&m, 4, 96, 3, 32, false, false, true);
    assert_int_equal(rq_grid_pack_file(&f, "m", &m.q), RQ_OK);
    refuse_file(&f, 5, 3, 32, false, RQ_OK);
    refuse_file(&f, 4, 3, 32, false, RQ_OK); /* without g_idx it is a plain matrix */
    refuse_file(&f, 5, 3, 32, true, RQ_ERR_INPUT);
    refuse_file(&f, 3, 3, 32, false, RQ_ERR_INPUT);
    refuse_file(&f, 2, 3, 32, false, RQ_ERR_INPUT);
    refuse_file(&f, 5, 4, 32, false, RQ_ERR_INPUT);
    refuse_file(&f, 5, 7, 32, false, RQ_ERR_INPUT);
    refuse_file(&f, 5, 3, 64, false, RQ_ERR_INPUT);
    refuse_file(&f, 5, 3, 16, false, RQ_ERR_UNSUPPORTED);
    refuse_file(&f, 4, 3, 16, false, RQ_ERR_INPUT);
    refuse_file(&f, 5, 3, 0, false, RQ_ERR_INPUT);
    refuse_file(&f, 5, 3, 97, false, RQ_ERR_INPUT);
    float *scale = f.tensor[1].arg, scale7 = scale[7];
    scale[7] = INFINITY;
    refuse_file(&f, 5, 3, 32, false, RQ_ERR_INPUT);
    scale[7] = scale7;
    int64_t *shape = f.tensor[2].arg;
    shape[0] = 5;
    refuse_file(&f, 5, 3, 32, false, RQ_ERR_INPUT);
    shape[0] = INT64_MAX / 2;
    refuse_file(&f, 5, 3, 32, false, RQ_ERR_INPUT);
    shape[0] = -4;
    refuse_file(&f, 5, 3, 32, false, RQ_ERR_INPUT);
    shape[0] = 4;
    int32_t *g_idx = f.tensor[4].arg, keep = g_idx[90];
    g_idx[90] = 3;
    refuse_file(&f, 5, 3, 32, false, RQ_ERR_INPUT);
    g_idx[90] = INT32_MIN;
    refuse_file(&f, 5, 3, 32, false, RQ_ERR_INPUT);
    g_idx[90] = (keep + 1) % 3;
    refuse_file(&f, 5, 3, 32, false, RQ_ERR_UNSUPPORTED);
    g_idx[90] = keep;
    f.tensor[1].dtype = RQ_I32; /* same bytes under another type */
    refuse_file(&f, 5, 3, 32, false, RQ_ERR_INPUT);
    f.tensor[1].dtype = RQ_F32;
    f.tensor[0].shape[0] = 12, f.tensor[0].shape[1] = 3; /* same bytes in another shape */
    refuse_file(&f, 5, 3, 32, false, RQ_ERR_INPUT);
    rq_packed_file_free(&f);
    drop(&m);
}

static void test_malformed_metadata(void **state) {
    (void)state;
    static const char *const bad[] = {"{}", "[]", "{\"bits\":\"3\",\"group\":32,\"sym\":false}",
                                      "{\"bits\":3,\"group\":32}"};
    matrix m;
    rq_packed_file f;
    rq_store *s;
    rq_packed p;
    make(&m, 4, 96, 3, 32, false, false, false);
    assert_int_equal(rq_grid_pack_file(&f, "m", &m.q), RQ_OK);
    assert_int_equal(rq_safetensors_write(path, f.tensor, f.n_tensors, NULL, 0), RQ_OK);
    assert_int_equal(rq_store_open(&s, path), RQ_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) {
        json_t *entry = json_loads(bad[i], 0, NULL);
        assert_int_equal(rq_format_get(RQ_FORMAT_GRID)->load(&p, s, "m", entry), RQ_ERR_INPUT);
        json_decref(entry);
    }
    rq_store_close(s);
    rq_packed_file_free(&f);
    drop(&m);
}

static void test_names(void **state) {
    (void)state;
    rq_format f;
    for (int i = 0; i < RQ_N_FORMATS; ++i) {
        assert_true(rq_format_by_name(rq_format_get((rq_format)i)->name, &f));
        assert_int_equal(f, i);
    }
    assert_false(rq_format_by_name("no such format", &f));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),         cmocka_unit_test(test_known_bits),
        cmocka_unit_test(test_refuses_codes),      cmocka_unit_test(test_refuses_files),
        cmocka_unit_test(test_malformed_metadata), cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
