/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF: files made by the gguf package against what that package says they hold; hostile files built byte by byte. */
#include "readers_build.h"

/* One honest little file with knobs; each hostile test turns one of them. */
typedef struct knobs {
    const char *magic;
    uint32_t version;
    uint64_t n_tensors, n_kv;
    const char *arch;
    uint64_t alignment;
    uint32_t rank, type;
    int64_t ne[5];
    uint64_t offset, second_offset;
    const char *name, *second_name;
    size_t data, tail;
} knobs;

static const knobs honest = {.magic = "GGUF",
                             .version = 3,
                             .n_tensors = 2,
                             .n_kv = 4,
                             .arch = "llama",
                             .alignment = 32,
                             .rank = 2,
                             .type = 0,
                             .ne = {3, 4, 1, 1, 1}, /* 48 bytes of F32 */
                             .offset = 0,
                             .second_offset = 64,
                             .name = "blk.0.attn_q.weight",
                             .second_name = "token_embd.weight",
                             .data = 64 + 48};

static bytes build(const knobs *k) {
    bytes b = {0};
    put(&b, k->magic, 4);
    put_u32(&b, k->version);
    put_u64(&b, k->n_tensors);
    put_u64(&b, k->n_kv);
    put_str(&b, "general.architecture");
    put_u32(&b, RQ_META_STR);
    put_str(&b, k->arch);
    put_str(&b, "general.alignment");
    put_u32(&b, RQ_META_U64);
    put_u64(&b, k->alignment);
    put_str(&b, "llama.attention.head_count");
    put_u32(&b, RQ_META_U32);
    put_u32(&b, 2);
    put_str(&b, "words");
    put_u32(&b, RQ_META_ARRAY);
    put_u32(&b, RQ_META_STR);
    put_u64(&b, 2);
    put_str(&b, "one");
    put_str(&b, "");
    put_str(&b, k->name);
    put_u32(&b, k->rank);
    for (uint32_t i = 0; i < k->rank && i < 5; ++i) put_u64(&b, (uint64_t)k->ne[i]);
    put_u32(&b, k->type);
    put_u64(&b, k->offset);
    put_str(&b, k->second_name);
    put_u32(&b, 2);
    put_u64(&b, 3);
    put_u64(&b, 4);
    put_u32(&b, 0);
    put_u64(&b, k->second_offset);
    pad32(&b);
    for (size_t i = 0; i < k->data; ++i) put(&b, &(uint8_t){(uint8_t)(i * 5 % 101)}, 1);
    put_zeros(&b, k->tail);
    return b;
}

static void refused(const knobs *k, rq_status status, const char *words) {
    bytes b = build(k);
    expect_refusal(&b, status, words);
    free(b.p);
}

#define REFUSED(status, words, ...)                                                                                    \
    do {                                                                                                               \
        knobs k = honest;                                                                                              \
        __VA_ARGS__;                                                                                                   \
        refused(&k, status, words);                                                                                    \
    } while (0)

static void honest_file(void **state) {
    (void)state;
    for (int version = 2; version <= 3; ++version) {
        knobs k = honest;
        k.version = (uint32_t)version;
        k.tail = version == 3 ? 16 : 0; /* with and without the padding of the last tensor */
        bytes b = build(&k);
        rq_store *s;
        if (open_bytes(&s, b.p, b.n) != RQ_OK) fail_msg("%s", rq_last_error());
        assert_true(rq_store_is_gguf(s));
        const rq_tensor *t = rq_store_find(s, "model.layers.0.self_attn.q_proj.weight");
        assert_non_null(t);
        assert_int_equal(t->shape[0], 4);
        assert_int_equal(t->shape[1], 3);
        assert_int_equal(t->n_interleaved_heads, 2);
        assert_int_equal(rq_store_find(s, "model.embed_tokens.weight")->n_interleaved_heads, 0);
        rq_meta_array a;
        const char *text;
        int64_t n;
        assert_true(rq_meta_array_get(s, "words", &a));
        assert_int_equal(a.n, 2);
        assert_true(rq_meta_array_str(&a, 0, &text, &n));
        assert_int_equal(n, 3);
        assert_memory_equal(text, "one", 3);
        assert_true(rq_meta_array_str(&a, 1, &text, &n));
        assert_int_equal(n, 0);
        assert_false(rq_meta_array_str(&a, 2, &text, &n));
        assert_false(rq_meta_array_str(&a, -1, &text, &n));
        assert_false(rq_meta_array_i64(&a, 0, &n));
        close_bytes(s);
        free(b.p);
    }
}

static void hostile_headers(void **state) {
    (void)state;
    REFUSED(RQ_ERR_UNSUPPORTED, "version 1", k.version = 1);
    REFUSED(RQ_ERR_UNSUPPORTED, "version 4", k.version = 4);
    REFUSED(RQ_ERR_UNSUPPORTED, "big-endian", k.version = 3u << 24);
    REFUSED(RQ_ERR_INPUT, "keys in", k.n_tensors = UINT64_MAX);
    REFUSED(RQ_ERR_INPUT, "keys in", k.n_tensors = (uint64_t)1 << 40);
    REFUSED(RQ_ERR_INPUT, "keys in", k.n_kv = UINT64_MAX);
    REFUSED(RQ_ERR_INPUT, "keys in", k.n_kv = (uint64_t)1 << 62);
    REFUSED(RQ_ERR_INPUT, "memory", k.n_kv = 5);      /* tensor infos read as keys */
    REFUSED(RQ_ERR_INPUT, "memory", k.n_tensors = 3); /* data read as an info */
    REFUSED(RQ_ERR_INPUT, "alignment", k.alignment = 0);
    REFUSED(RQ_ERR_INPUT, "alignment", k.alignment = 48);
    REFUSED(RQ_ERR_INPUT, "alignment", k.alignment = (uint64_t)1 << 63);
    REFUSED(RQ_ERR_INPUT, "safetensors", k.magic = "GGML"); /* no GGUF: read as safetensors, and refused as such */
}

static void hostile_tensors(void **state) {
    (void)state;
    REFUSED(RQ_ERR_INPUT, "dimensions", k.rank = 0);
    REFUSED(RQ_ERR_INPUT, "dimensions", k.rank = 5);
    REFUSED(RQ_ERR_INPUT, "dimensions", k.rank = UINT32_MAX);
    REFUSED(RQ_ERR_INPUT, "negative", k.ne[0] = -3);
    REFUSED(RQ_ERR_INPUT, "too large", k.ne[0] = k.ne[1] = (int64_t)1 << 40);
    REFUSED(RQ_ERR_INPUT, "too large", k.rank = 3, k.ne[0] = 0, k.ne[1] = k.ne[2] = (int64_t)1 << 40);
    REFUSED(RQ_ERR_INPUT, "beyond", k.ne[0] = k.ne[1] = (int64_t)1 << 31);
    REFUSED(RQ_ERR_INPUT, "needs", k.ne[0] = 1000);
    REFUSED(RQ_ERR_INPUT, "makes it", k.ne[0] = 12, k.data = 256); /* grows into the second */
    REFUSED(RQ_ERR_INPUT, "makes it", k.offset = 32);
    REFUSED(RQ_ERR_INPUT, "beyond", k.offset = UINT64_MAX);
    REFUSED(RQ_ERR_INPUT, "makes it", k.second_offset = 0);
    REFUSED(RQ_ERR_INPUT, "makes it", k.second_offset = 96);
    REFUSED(RQ_ERR_INPUT, "makes it", k.second_offset = 48);
    REFUSED(RQ_ERR_INPUT, "needs", k.data -= 1);
    REFUSED(RQ_ERR_INPUT, "follow", k.tail = 17);
    REFUSED(RQ_ERR_INPUT, "type id 5", k.type = 5);
    REFUSED(RQ_ERR_INPUT, "type id 4294967295", k.type = UINT32_MAX);
    REFUSED(RQ_ERR_UNSUPPORTED, "Q5_K", k.type = 13);
    REFUSED(RQ_ERR_INPUT, "whole Q4_0 blocks", k.type = 2);
    REFUSED(RQ_ERR_INPUT, "twice", k.second_name = "blk.0.attn_q.weight");
    REFUSED(RQ_ERR_INPUT, "twice", k.second_name = "model.layers.0.self_attn.q_proj.weight"); /* once mapped */
    REFUSED(RQ_ERR_INPUT, "UTF-8", k.second_name = "\xff");
    REFUSED(RQ_ERR_INPUT, "per head", k.ne[1] = 5);
    REFUSED(RQ_ERR_INPUT, "per head", k.ne[1] = 2); /* one row per head */
}

static void names_that_are_kept(void **state) {
    (void)state;
    static const char *const names[] = {"blk.00.attn_q.weight",
                                        "blk.x.attn_q.weight",
                                        "blk.0.attn_q.weights",
                                        "blk.0.attn_q",
                                        "blk.0.attn_q_norm.weight",
                                        "blk.1234567890.attn_q.weight",
                                        "blk.",
                                        "blk.1",
                                        "rope_freqs.weight",
                                        "output_norm.bias",
                                        ""};
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i) {
        knobs k = honest;
        k.name = names[i];
        bytes b = build(&k);
        rq_store *s;
        if (open_bytes(&s, b.p, b.n) != RQ_OK) fail_msg("%s: %s", names[i], rq_last_error());
        assert_non_null(rq_store_find(s, names[i]));
        assert_int_equal(rq_store_find(s, names[i])->n_interleaved_heads, 0);
        close_bytes(s);
        free(b.p);
    }
    knobs k = honest; /* another architecture: nothing is renamed, nothing interleaved */
    k.arch = "gptneox";
    bytes b = build(&k);
    rq_store *s;
    assert_int_equal(open_bytes(&s, b.p, b.n), RQ_OK);
    assert_int_equal(rq_store_find(s, "blk.0.attn_q.weight")->n_interleaved_heads, 0);
    rq_config c;
    assert_int_equal(rq_config_load(&c, s), RQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(rq_last_error(), "gptneox"));
    close_bytes(s);
    free(b.p);
}

/* A file that is one key-value pair and no tensors. */
static bytes one_key(const char *key, uint32_t type, const bytes *value) {
    bytes b = {0};
    put(&b, "GGUF", 4);
    put_u32(&b, 3);
    put_u64(&b, 0);
    put_u64(&b, 1);
    put_str(&b, key);
    put_u32(&b, type);
    put(&b, value->p, value->n);
    return b;
}

static void hostile_values(void **state) {
    (void)state;
    static const struct {
        uint32_t type;
        uint64_t u[4];
        size_t n_bytes;
        const char *words;
    } cases[] = {
        {13, {0}, 8, "value type 13"},
        {UINT32_MAX, {0}, 8, "value type"},
        {RQ_META_U64, {0}, 7, "ends inside"},
        {RQ_META_STR, {9}, 16, "claims 9 bytes"},
        {RQ_META_STR, {UINT64_MAX}, 16, "claims"},
        {RQ_META_STR, {(uint64_t)1 << 63}, 16, "claims"},
        {RQ_META_ARRAY, {9 | (uint64_t)1 << 32}, 24, "value type 9"},   /* an array of arrays */
        {RQ_META_ARRAY, {13 | (uint64_t)1 << 32}, 24, "value type 13"}, /* low word: element type */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        bytes v = {0};
        put(&v, cases[i].u, cases[i].n_bytes);
        bytes b = one_key("k", cases[i].type, &v);
        expect_refusal(&b, RQ_ERR_INPUT, cases[i].words);
        free(b.p);
        free(v.p);
    }
    static const struct {
        uint32_t type;
        uint64_t n;
    } arrays[] = {{RQ_META_U8, 17},
                  {RQ_META_U64, 3},
                  {RQ_META_U64, UINT64_MAX / 8 + 2},
                  {RQ_META_STR, 3},
                  {RQ_META_STR, UINT64_MAX},
                  {RQ_META_U32, (uint64_t)1 << 62},
                  {RQ_META_U8, (1u << 30) + 1}};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; ++i) {
        bytes v = {0};
        put_u32(&v, arrays[i].type);
        put_u64(&v, arrays[i].n);
        put_zeros(&v, 16);
        bytes b = one_key("k", RQ_META_ARRAY, &v);
        expect_refusal(&b, RQ_ERR_INPUT, "array elements");
        free(b.p);
        free(v.p);
    }
    bytes nul = {0};
    put(&nul, "GGUF\3\0\0\0", 8);
    put_u64(&nul, 0);
    put_u64(&nul, 1);
    put_u64(&nul, 3);
    put(&nul, "a\0b\0\0\0\0\1", 8);
    expect_refusal(&nul, RQ_ERR_INPUT, "zero byte");
    free(nul.p);
    bytes twice = {0};
    put(&twice, "GGUF\3\0\0\0", 8);
    put_u64(&twice, 0);
    put_u64(&twice, 2);
    for (int i = 0; i < 2; ++i) {
        put_str(&twice, "same");
        put_u32(&twice, RQ_META_U8);
        put(&twice, "\1", 1);
    }
    expect_refusal(&twice, RQ_ERR_INPUT, "key same is there twice");
    free(twice.p);
}

static void scalar_values(void **state) {
    (void)state;
    static const struct {
        uint32_t type;
        uint64_t bits;
        size_t n_bytes;
        bool is_int;
        int64_t i;
        double f;
    } cases[] = {
        {RQ_META_U8, 0xff, 1, true, 255, 255},
        {RQ_META_I8, 0xff, 1, true, -1, -1},
        {RQ_META_U16, 0xfffe, 2, true, 65534, 65534},
        {RQ_META_I16, 0xfffe, 2, true, -2, -2},
        {RQ_META_U32, 0xfffffffd, 4, true, 4294967293, 4294967293.0},
        {RQ_META_I32, 0xfffffffd, 4, true, -3, -3},
        {RQ_META_U64, 7, 8, true, 7, 7},
        {RQ_META_I64, UINT64_MAX, 8, true, -1, -1},
        {RQ_META_F32, 0x3fc00000, 4, false, 0, 1.5},
        {RQ_META_F64, 0x3ff8000000000000, 8, false, 0, 1.5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        bytes v = {0};
        put(&v, &cases[i].bits, cases[i].n_bytes);
        bytes b = one_key("k", cases[i].type, &v);
        rq_store *s;
        int64_t n;
        double f;
        bool yes;
        assert_int_equal(open_bytes(&s, b.p, b.n), RQ_OK);
        assert_int_equal(rq_meta_i64(s, "k", &n), cases[i].is_int);
        if (cases[i].is_int) assert_int_equal(n, cases[i].i);
        assert_true(rq_meta_f64(s, "k", &f));
        assert_true(f == cases[i].f);
        assert_false(rq_meta_bool(s, "k", &yes));
        close_bytes(s);
        free(b.p);
        free(v.p);
    }
    bytes v = {0}, b;
    put_u64(&v, UINT64_MAX); /* does not fit */
    b = one_key("k", RQ_META_U64, &v);
    rq_store *s;
    int64_t n;
    assert_int_equal(open_bytes(&s, b.p, b.n), RQ_OK);
    assert_false(rq_meta_i64(s, "k", &n));
    close_bytes(s);
    free(b.p);
    free(v.p);
}

static void every_prefix_is_refused(void **state) {
    (void)state;
    bytes b = build(&honest);
    for (size_t n = 0; n < b.n; ++n) {
        rq_store *s;
        assert_int_equal(open_bytes(&s, b.p, n), RQ_ERR_INPUT);
        assert_true(strlen(rq_last_error()) > 10);
    }
    free(b.p);
    b = read_data("tiny.gguf");
    for (size_t n = 0; n < b.n; n += 97) {
        rq_store *s;
        assert_int_equal(open_bytes(&s, b.p, n), RQ_ERR_INPUT);
    }
    free(b.p);
}

/* Any single byte changed: whatever the answer is, nothing breaks (AddressSanitizer sees to it) and every tensor of an
 * accepted file can be read. */
static void any_byte_changed(void **state) {
    (void)state;
    bytes b = build(&honest);
    size_t head = b.n - honest.data;
    float *f = malloc(1 << 16);
    for (size_t i = 0; i < head; ++i) {
        for (int k = 0; k < 4; ++k) {
            static const uint8_t flip[4] = {0x01, 0x80, 0xff, 0x20};
            b.p[i] ^= flip[k];
            rq_store *s;
            rq_config c;
            rq_status status = open_bytes(&s, b.p, b.n);
            if (status == RQ_OK) {
                for (int64_t t = 0; t < rq_store_count(s); ++t) {
                    if (rq_tensor_numel(rq_store_at(s, t)) <= 1 << 14) (void)rq_tensor_f32(rq_store_at(s, t), f);
                }
                assert_int_not_equal(rq_config_load(&c, s), RQ_OK);
                close_bytes(s);
            } else {
                assert_true(status == RQ_ERR_INPUT || status == RQ_ERR_UNSUPPORTED);
            }
            b.p[i] ^= flip[k];
        }
    }
    free(f);
    free(b.p);
}

/* ---- against the gguf package ------------------------------------------------------------------------------------- */

static void compare_stores(const char *gguf, const char *golden) {
    rq_store *g, *h;
    if (rq_store_open(&g, gguf) != RQ_OK || rq_store_open(&h, golden) != RQ_OK) fail_msg("%s", rq_last_error());
    assert_int_equal(rq_store_count(g), rq_store_count(h));
    for (int64_t i = 0; i < rq_store_count(h); ++i) {
        const rq_tensor *want = rq_store_at(h, i), *got = rq_store_find(g, want->name);
        if (!got) fail_msg("%s is not in %s", want->name, gguf);
        assert_int_equal(got->rank, want->rank);
        for (int k = 0; k < want->rank; ++k) assert_int_equal(got->shape[k], want->shape[k]);
        int64_t n = rq_tensor_numel(want);
        float *a = malloc((size_t)n * sizeof *a), *b = malloc((size_t)n * sizeof *b);
        assert_int_equal(rq_tensor_f32(want, a), RQ_OK);
        assert_int_equal(rq_tensor_f32(got, b), RQ_OK);
        for (int64_t k = 0; k < n; ++k) {
            if (rq_f32_bits(a[k]) != rq_f32_bits(b[k])) {
                fail_msg("%s[%lld]: wanted %.9g, got %.9g", want->name, (long long)k, (double)a[k], (double)b[k]);
            }
        }
        if (got->rank == 2) { /* row by row gives the same as all at once */
            for (int64_t r = 0; r < got->shape[0]; ++r) {
                assert_int_equal(rq_tensor_rows_f32(got, r, 1, b), RQ_OK);
                assert_memory_equal(b, a + r * got->shape[1], (size_t)got->shape[1] * sizeof *a);
            }
        }
        free(a);
        free(b);
    }
    rq_store_close(g);
    rq_store_close(h);
}

static void golden_blocks(void **state) {
    (void)state;
    compare_stores(DATA "blocks.gguf", DATA "blocks.safetensors");
}

static void golden_model(void **state) {
    (void)state;
    compare_stores(DATA "tiny.gguf", DATA "tiny.safetensors");
}

static void golden_metadata(void **state) {
    (void)state;
    rq_store *s;
    rq_meta_array a;
    const char *text;
    int64_t n;
    double f;
    bool yes = false;
    assert_int_equal(rq_store_open(&s, DATA "tiny.gguf"), RQ_OK);
    assert_true(rq_meta_i64(s, "llama.block_count", &n));
    assert_int_equal(n, 2);
    assert_true(rq_meta_f64(s, "llama.rope.freq_base", &f));
    assert_true(f == 50000.0);
    assert_true(rq_meta_bool(s, "test.yes", &yes));
    assert_true(yes);
    assert_true(rq_meta_str(s, "test.text", &text, &n));
    assert_int_equal(n, 6);
    assert_memory_equal(text, "na\xc3\xafve", 6);
    assert_true(rq_meta_array_get(s, "tokenizer.ggml.tokens", &a));
    assert_int_equal(a.n, 24);
    assert_true(rq_meta_array_str(&a, 23, &text, &n));
    assert_memory_equal(text, "tok23", 5);
    assert_true(rq_meta_array_get(s, "test.ints", &a));
    assert_true(rq_meta_array_i64(&a, 2, &n));
    assert_int_equal(n, 70000);
    assert_true(rq_meta_array_i64(&a, 0, &n));
    assert_int_equal(n, -5);
    assert_false(rq_meta_array_i64(&a, 3, &n));
    assert_true(rq_meta_array_get(s, "test.floats", &a));
    assert_true(rq_meta_array_f64(&a, 1, &f));
    assert_true(f == -2.0);
    rq_store_close(s);
}

static void finite_check(void **state) {
    (void)state;
    bytes b = read_data("tiny.gguf");
    rq_store *s;
    assert_int_equal(open_bytes(&s, b.p, b.n), RQ_OK);
    const char *name = "model.layers.1.self_attn.q_proj.weight"; /* F32, interleaved: [32, 32] in 4 heads of 8 */
    const rq_tensor *t = rq_store_find(s, name);
    assert_int_equal(t->dtype, RQ_F32);
    assert_int_equal(rq_tensor_check_finite(t), RQ_OK);
    /* File row 8 + 3 is head 1, pair 1, second member: checkpoint row 8 + 4 + 1. */
    uint32_t nan = 0x7fc00000;
    memcpy((uint8_t *)(uintptr_t)t->data + (11 * 32 + 5) * 4, &nan, 4);
    assert_int_equal(rq_tensor_check_finite(t), RQ_ERR_INPUT);
    assert_non_null(strstr(rq_last_error(), name));
    assert_non_null(strstr(rq_last_error(), "row 13, column 5"));
    close_bytes(s);
    free(b.p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(honest_file),
        cmocka_unit_test(hostile_headers),
        cmocka_unit_test(hostile_tensors),
        cmocka_unit_test(names_that_are_kept),
        cmocka_unit_test(hostile_values),
        cmocka_unit_test(scalar_values),
        cmocka_unit_test(every_prefix_is_refused),
        cmocka_unit_test(any_byte_changed),
        cmocka_unit_test(golden_blocks),
        cmocka_unit_test(golden_model),
        cmocka_unit_test(golden_metadata),
        cmocka_unit_test(finite_check),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
