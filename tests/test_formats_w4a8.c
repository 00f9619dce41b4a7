/* SPDX-License-Identifier: Apache-2.0 */
/* The w4a8 format: pack, write, read back, unpack; every step, base and code; sizes against the bytes of the file; what must be
 * refused, and files with changed bytes. */
#include "container.h"
#include "formats_fixture.h"
#include "rotate_hadamard.h"

typedef struct matrix {
    rq_w4a8_codes q;
    uint8_t *codes, *zero, *step;
    int8_t *base;
    float *scale, *in_scale;
} matrix;

static void make(matrix *m, int64_t n_out, int64_t n_in, int64_t group, bool sym, bool in_scale, int hadamard) {
    int64_t n = group ? n_out * ((n_in + group - 1) / group) : 0;
    m->codes = must_alloc(n_out * n_in, 1);
    m->zero = must_alloc(n_out, 1);
    m->scale = must_alloc(n_out, sizeof *m->scale);
    m->step = must_alloc(n, 1);
    m->base = must_alloc(n, 1);
    m->in_scale = must_alloc(n_in, sizeof *m->in_scale);
    for (int64_t i = 0; i < n_out * n_in; ++i) m->codes[i] = (uint8_t)draw(16);
    for (int64_t i = 0; i < n_out; ++i) {
        m->zero[i] = (uint8_t)draw(16);
        m->scale[i] = ((float)draw(20000) - 3000.0f) * 0x1.1p-20f;
    }
    for (int64_t k = 0; k < n; ++k) {
        m->step[k] = (uint8_t)(1 + draw(17));
        m->base[k] = (int8_t)((int)draw(256u - 15u * m->step[k]) - 128);
    }
    for (int64_t j = 0; j < n_in; ++j) m->in_scale[j] = ((float)draw(20000) - 3000.0f) * 0x1.1p-12f;
    m->q = (rq_w4a8_codes){.n_out = n_out,
                           .n_in = n_in,
                           .group = group,
                           .codes = m->codes,
                           .scale = m->scale,
                           .zero = group || sym ? NULL : m->zero,
                           .step = group ? m->step : NULL,
                           .base = group ? m->base : NULL,
                           .in_scale = in_scale ? m->in_scale : NULL,
                           .hadamard = hadamard};
}

static void drop(matrix *m) {
    free(m->codes), free(m->zero), free(m->step), free(m->base), free(m->scale), free(m->in_scale);
}

static int level_of(const rq_w4a8_codes *q, int64_t i, int64_t j) {
    int u = q->codes[i * q->n_in + j];
    if (!q->group) return u - (q->zero ? q->zero[i] : 8);
    int64_t k = i * ((q->n_in + q->group - 1) / q->group) + j / q->group;
    return u * q->step[k] + q->base[k];
}

/* Without a Hadamard matrix bit for bit; with one against the sum over its column: the entry of the core, minus where the bits that both
 * places in a row of the core share are odd in number. */
static void check_values(const rq_packed *p, const rq_w4a8_codes *q) {
    const int core = (int)rq_hadamard_core(q->hadamard), width = core ? q->hadamard / core : 0;
    int8_t *entry = must_alloc(core * core + 1, 1);
    if (core) assert_int_equal(rq_hadamard_fill(entry, core), RQ_OK);
    float *row = must_alloc(q->n_in + 1, sizeof *row);
    for (int64_t i = 0; i < q->n_out; ++i) {
        row[q->n_in] = 12345.0f;
        rq_unpack_row(p, i, row);
        assert_true(row[q->n_in] == 12345.0f);
        for (int64_t j = 0; j < q->n_in; ++j) {
            assert_int_equal(rq_w4a8_level(&p->u.w4a8, i, j), level_of(q, i, j));
            if (!q->hadamard) {
                float want = q->scale[i] * (float)level_of(q, i, j);
                if (q->in_scale) want *= q->in_scale[j];
                assert_memory_equal(&row[j], &want, sizeof want);
                continue;
            }
            double want = 0, size = 0;
            for (int k = 0; k < q->hadamard; ++k) {
                int64_t from = j / q->hadamard * q->hadamard + k;
                double v = (double)q->scale[i] * level_of(q, i, from) * (q->in_scale ? (double)q->in_scale[from] : 1.0);
                const int to = (int)(j % q->hadamard);
                v *= entry[k / width * core + to / width];
                want += __builtin_parity((unsigned)(k % width & to % width)) ? -v : v;
                size += fabs(v);
            }
            assert_true(fabs((double)row[j] - want / sqrt(q->hadamard)) <= 1e-6 * size);
        }
    }
    free(entry);
    free(row);
}

static void round_trip(const matrix *m) {
    rq_packed_file f;
    rq_packed direct, loaded;
    rq_store *s;
    char *entry;
    assert_int_equal(rq_w4a8_pack_file(&f, &entry, "m.q_proj", &m->q), RQ_OK);
    assert_int_equal(rq_safetensors_write(path, f.tensor, f.n_tensors, NULL, 0), RQ_OK);
    assert_int_equal(rq_store_open(&s, path), RQ_OK);
    json_t *json = json_loads(entry, 0, NULL), *shown = json_object();
    assert_string_equal(json_string_value(json_object_get(json, "format")), "w4a8");
    if (rq_format_get(RQ_FORMAT_W4A8)->load(&loaded, s, "m.q_proj", json) != RQ_OK) fail_msg("%s", rq_last_error());
    assert_int_equal(rq_w4a8_pack(&direct, &m->q), RQ_OK);
    check_values(&direct, &m->q);
    check_values(&loaded, &m->q);
    assert_int_equal(rq_packed_size_bits(&direct), tensor_bits(s));
    assert_int_equal(rq_packed_size_bits(&loaded), tensor_bits(s));
    rq_format_get(RQ_FORMAT_W4A8)->inspect(&loaded, shown);
    assert_int_equal(json_integer_value(json_object_get(shown, "group")), m->q.group);
    json_decref(shown);
    json_decref(json);
    free(entry);
    rq_packed_free(&loaded);
    rq_packed_free(&direct);
    rq_store_close(s);
    rq_packed_file_free(&f);
}

static void test_round_trip(void **state) {
    (void)state;
    static const int64_t n_ins[] = {1, 7, 8, 9, 31, 32, 33, 64, 96, 127, 129, 576};
    static const int64_t groups[] = {0, 32, 64, 128};
    for (size_t k = 0; k < sizeof n_ins / sizeof *n_ins; ++k) {
        for (size_t g = 0; g < sizeof groups / sizeof *groups; ++g) {
            for (int flags = 0; flags < 8; ++flags) {
                int64_t n = n_ins[k];
                if (groups[g] > (n + 31) / 32 * 32) continue;
                matrix m;
                make(&m, 1 + flags % 3, n, groups[g], flags & 1, flags & 2, flags & 4 && n % 32 == 0 ? 32 : 0);
                round_trip(&m);
                drop(&m);
            }
        }
    }
}

/* Every kind of order: powers of two, cores alone and doubled, one and several in a row. */
static void test_hadamard(void **state) {
    (void)state;
    static const int size_cols[][2] = {{2, 6},     {12, 12},   {12, 36},   {48, 96},   {1536, 1536}, {28, 28},
                                       {112, 224}, {896, 896}, {576, 576}, {52, 104},  {36, 72},     {60, 60},
                                       {44, 44},   {20, 60},   {40, 40},   {256, 512}, {4, 8}};
    for (size_t i = 0; i < sizeof size_cols / sizeof *size_cols; ++i) {
        for (int in_scale = 0; in_scale < 2; ++in_scale) {
            matrix m;
            make(&m, 2, size_cols[i][1], in_scale ? 0 : 32, false, in_scale, size_cols[i][0]);
            if (m.q.group > (m.q.n_in + 31) / 32 * 32) m.q.group = 0, m.q.step = NULL, m.q.base = NULL;
            round_trip(&m);
            drop(&m);
        }
    }
}

/* Words computed by hand: codes 1 .. 9 of a row. */
static void test_known_bits(void **state) {
    (void)state;
    matrix m;
    rq_packed_file f;
    char *entry;
    make(&m, 1, 9, 32, false, false, 0);
    for (int j = 0; j < 9; ++j) m.codes[j] = (uint8_t)(j + 1);
    assert_int_equal(rq_w4a8_pack_file(&f, &entry, "a", &m.q), RQ_OK);
    assert_int_equal(f.n_tensors, 5);
    assert_string_equal(f.tensor[0].name, "a.weight_packed");
    assert_int_equal(((uint32_t *)f.tensor[0].arg)[0], 0x87654321);
    assert_int_equal(((uint32_t *)f.tensor[0].arg)[1], 9);
    assert_string_equal(entry, "{\"format\":\"w4a8\",\"group\":32,\"sym\":false,\"in_scale\":false,\"hadamard\":0}");
    free(entry);
    rq_packed_file_free(&f);
    drop(&m);
}

/* All 2^8 * 2^8 pairs of step and base with all 16 codes: what is let in stays in 8 bits for each code, what is not would leave them. */
static void test_every_step_and_base(void **state) {
    (void)state;
    enum { COLS = 32 };
    uint8_t codes[COLS], step;
    int8_t base;
    const float scale = 0.5f;
    int n_in = 0, n_out = 0;
    for (int j = 0; j < COLS; ++j) codes[j] = (uint8_t)(j % 16);
    for (int a = 0; a < 256; ++a) {
        for (int b = -128; b < 128; ++b) {
            step = (uint8_t)a;
            base = (int8_t)b;
            const rq_w4a8_codes q = {
                .n_out = 1, .n_in = COLS, .group = 32, .codes = codes, .scale = &scale, .step = &step, .base = &base};
            rq_packed p;
            float row[COLS];
            bool fits = a >= 1;
            for (int u = 0; u < 16; ++u) fits = fits && u * a + b >= -128 && u * a + b <= 127;
            assert_true(rq_w4a8_pack(&p, &q) == (fits ? RQ_OK : RQ_ERR_ARG));
            if (!fits) {
                ++n_out;
                continue;
            }
            ++n_in;
            rq_unpack_row(&p, 0, row);
            for (int j = 0; j < COLS; ++j) assert_true(row[j] == 0.5f * (float)(j % 16 * a + b));
            rq_packed_free(&p);
        }
    }
    assert_int_equal(n_in, 2057); /* sum of 256 - 15 s for s = 1 .. 17 */
    assert_int_equal(n_in + n_out, 1 << 16);
}

/* ---- refusals ----------------------------------------------------------------------------------------------------------- */

static void refuse_codes(const rq_w4a8_codes *q) {
    rq_packed_file f;
    rq_packed p;
    char *entry;
    assert_int_equal(rq_w4a8_pack_file(&f, &entry, "m", q), RQ_ERR_ARG);
    assert_null(entry);
    assert_int_equal(rq_w4a8_pack(&p, q), RQ_ERR_ARG);
    assert_int_equal(p.n_owned, 0);
}

static void test_refuses_codes(void **state) {
    (void)state;
    matrix m;
    make(&m, 4, 96, 32, false, true, 32);
    rq_w4a8_codes q = m.q;
    q.n_out = 0, refuse_codes(&q), q = m.q;
    q.n_in = 131073, refuse_codes(&q), q = m.q;
    q.group = 31, refuse_codes(&q), q = m.q;
    q.group = -32, refuse_codes(&q), q = m.q;
    q.group = 128, refuse_codes(&q), q = m.q;
    q.group = 0, refuse_codes(&q), q = m.q;
    q.hadamard = 64, refuse_codes(&q), q = m.q;
    q.hadamard = 3, refuse_codes(&q), q = m.q;
    q.hadamard = -2, refuse_codes(&q), q = m.q;
    q.hadamard = 1, refuse_codes(&q), q = m.q;
    q.hadamard = 24, q.n_in = 60, refuse_codes(&q), q = m.q;     /* does not divide */
    q.hadamard = 92, q.n_in = 92, refuse_codes(&q), q = m.q;     /* no construction is known */
    q.hadamard = 4864, q.n_in = 4864, refuse_codes(&q), q = m.q; /* its core is 76 */
    assert_non_null(strstr(rq_last_error(), "order 4864 on 4864 columns"));
    q.codes = NULL, refuse_codes(&q), q = m.q;
    q.scale = NULL, refuse_codes(&q), q = m.q;
    q.step = NULL, refuse_codes(&q), q = m.q;
    q.base = NULL, refuse_codes(&q), q = m.q;
    q.zero = m.zero, refuse_codes(&q), q = m.q;
    m.codes[5] = 16, refuse_codes(&q), m.codes[5] = 15;
    m.scale[3] = NAN, refuse_codes(&q), m.scale[3] = 1e37f;
    refuse_codes(&q), m.scale[3] = 1.0f;
    m.in_scale[95] = INFINITY, refuse_codes(&q), m.in_scale[95] = 0.0f;
    m.step[11] = 0, refuse_codes(&q), m.step[11] = 18, m.base[11] = -128;
    refuse_codes(&q), m.step[11] = 17, m.base[11] = -127;
    refuse_codes(&q), m.base[11] = -128;
    rq_packed p;
    assert_int_equal(rq_w4a8_pack(&p, &q), RQ_OK);
    rq_packed_free(&p);
    q.group = 0, q.step = NULL, q.base = NULL, q.zero = m.zero;
    m.zero[3] = 16, refuse_codes(&q);
    drop(&m);
}

static void refuse_file(const rq_packed_file *f, int n, const char *entry, rq_status want) {
    load_gives(RQ_FORMAT_W4A8, f, n, entry, want);
}

static void test_refuses_files(void **state) {
    (void)state;
    static const char *const bad[] = {
        "{}",
        "[]",
        "{\"group\":32,\"sym\":false,\"in_scale\":true}",
        "{\"group\":\"32\",\"sym\":false,\"in_scale\":true,\"hadamard\":0}",
        "{\"group\":32,\"sym\":true,\"in_scale\":true,\"hadamard\":0}",
        "{\"group\":32,\"sym\":false,\"in_scale\":false,\"hadamard\":0}",
        "{\"group\":64,\"sym\":false,\"in_scale\":true,\"hadamard\":0}",
        "{\"group\":0,\"sym\":true,\"in_scale\":true,\"hadamard\":0}",
        "{\"group\":0,\"sym\":false,\"in_scale\":true,\"hadamard\":0}",
        "{\"group\":32,\"sym\":false,\"in_scale\":true,\"hadamard\":64}",
        "{\"group\":32,\"sym\":false,\"in_scale\":true,\"hadamard\":36}",
        "{\"group\":4294967296,\"sym\":false,\"in_scale\":true,\"hadamard\":0}",
    };
    matrix m;
    rq_packed_file f;
    char *entry;
    make(&m, 5, 96, 32, false, true, 32);
    assert_int_equal(rq_w4a8_pack_file(&f, &entry, "m", &m.q), RQ_OK);
    refuse_file(&f, f.n_tensors, entry, RQ_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) refuse_file(&f, f.n_tensors, bad[i], RQ_ERR_INPUT);
    for (int n = 0; n < f.n_tensors; ++n) refuse_file(&f, n, entry, RQ_ERR_INPUT); /* tensors that are missing */
    for (int t = 0; t < f.n_tensors; ++t) {
        rq_dtype dtype = f.tensor[t].dtype;
        int64_t rows = f.tensor[t].shape[0];
        if (rows > 1) {
            f.tensor[t].shape[0] = rows - 1;
            refuse_file(&f, f.n_tensors, entry, RQ_ERR_INPUT);
            f.tensor[t].shape[0] = rows;
        }
        f.tensor[t].dtype = dtype == RQ_I32 ? RQ_F32 : dtype == RQ_F32 ? RQ_I32 : dtype == RQ_U8 ? RQ_I8 : RQ_BOOL;
        if (dtype != RQ_I64 && dtype != RQ_I8) refuse_file(&f, f.n_tensors, entry, RQ_ERR_INPUT);
        f.tensor[t].dtype = dtype;
    }
    int64_t *shape = f.tensor[2].arg;
    assert_string_equal(f.tensor[2].name, "m.weight_shape");
    shape[1] = 0, refuse_file(&f, f.n_tensors, entry, RQ_ERR_INPUT);
    shape[1] = 131104, refuse_file(&f, f.n_tensors, entry, RQ_ERR_UNSUPPORTED);
    shape[1] = 96, shape[0] = INT64_MAX, refuse_file(&f, f.n_tensors, entry, RQ_ERR_INPUT);
    free(entry);
    rq_packed_file_free(&f);
    drop(&m);
}

/* Bytes of the data changed one at a time: what is let in can be read. */
static void test_changed_bytes(void **state) {
    (void)state;
    for (int kind = 0; kind < 2; ++kind) {
        matrix m;
        rq_packed_file f;
        char *entry;
        make(&m, 3, 64, kind ? 32 : 0, false, kind == 1, kind ? 64 : 0);
        assert_int_equal(rq_w4a8_pack_file(&f, &entry, "m", &m.q), RQ_OK);
        json_t *json = json_loads(entry, 0, NULL);
        int n_ok = 0;
        for (int t = 0; t < f.n_tensors; ++t) {
            int64_t n_bytes = rq_dtype_block_bytes(f.tensor[t].dtype);
            for (int k = 0; k < f.tensor[t].rank; ++k) n_bytes *= f.tensor[t].shape[k];
            for (int64_t i = 0; i < n_bytes; i += 1 + draw(5)) {
                unsigned char *at = (unsigned char *)f.tensor[t].arg + i, was = *at;
                rq_store *s;
                rq_packed p;
                float row[64];
                *at = (unsigned char)draw(256);
                assert_int_equal(rq_safetensors_write(path, f.tensor, f.n_tensors, NULL, 0), RQ_OK);
                assert_int_equal(rq_store_open(&s, path), RQ_OK);
                if (rq_format_get(RQ_FORMAT_W4A8)->load(&p, s, "m", json) == RQ_OK) {
                    ++n_ok;
                    for (int64_t r = 0; r < p.n_out; ++r) rq_unpack_row(&p, r, row);
                    rq_packed_free(&p);
                }
                rq_store_close(s);
                *at = was;
            }
        }
        assert_true(n_ok > 10);
        json_decref(json);
        free(entry);
        rq_packed_file_free(&f);
        drop(&m);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_known_bits),
        cmocka_unit_test(test_refuses_codes), cmocka_unit_test(test_every_step_and_base),
        cmocka_unit_test(test_refuses_files), cmocka_unit_test(test_changed_bytes),
        cmocka_unit_test(test_hadamard),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
