/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors files and folders of them, the writer, small files. Golden files come from the safetensors package
 * (make_reader_data.py); hostile ones are built here. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>

#include "readers_build.h"

#define ENTRY(shape, offsets) "{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void refused_headers(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t n_data;
        const char *words;
    } cases[] = {
        {"", 0, "does not begin with {"},
        {" {}", 0, "does not begin with {"},
        {"[]", 0, "does not begin with {"},
        {"{", 0, "header"},
        {"{}x", 0, "header"},
        {"{} {}", 0, "header"},
        {"{\"a\":1}", 0, "not an object"},
        {"{\"a\":null}", 0, "not an object"},
        {"{\"a\":{}}", 0, "nothing as dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "no shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "f32"},
        {"{\"a\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "F33"},
        {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype"},
        {"{\"a\":" ENTRY("[-1]", "[0,4]") "}", 4, "non-negative"},
        {"{\"a\":" ENTRY("[1.0]", "[0,4]") "}", 4, "non-negative"},
        {"{\"a\":" ENTRY("[\"1\"]", "[0,4]") "}", 4, "non-negative"},
        {"{\"a\":" ENTRY("[18446744073709551616]", "[0,4]") "}", 4, "header"},
        {"{\"a\":" ENTRY("[9223372036854775807,2]", "[0,4]") "}", 4, "overflows"},
        {"{\"a\":" ENTRY("[4611686018427387904,4]", "[0,0]") "}", 0, "overflows"},
        {"{\"a\":" ENTRY("[0,4611686018427387904,4]", "[0,0]") "}", 0, "overflows"},
        {"{\"a\":" ENTRY("[2305843009213693952]", "[0,0]") "}", 0, "span 0 bytes"}, /* times 32 bits overflows */
        {"{\"a\":" ENTRY("[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "9 dimensions"},
        {"{\"a\":" ENTRY("[2]", "[0,4]") "}", 4, "span 4 bytes"},
        {"{\"a\":" ENTRY("[1]", "[0,8]") "}", 4, "lies at"},
        {"{\"a\":" ENTRY("[1]", "[0,8]") "}", 8, "span 8 bytes"},
        {"{\"a\":" ENTRY("[1]", "[4,0]") "}", 4, "lies at"},
        {"{\"a\":" ENTRY("[1]", "[-4,0]") "}", 4, "lies at"},
        {"{\"a\":" ENTRY("[1]", "[0]") "}", 4, "two integers"},
        {"{\"a\":" ENTRY("[1]", "[0,4,8]") "}", 4, "two integers"},
        {"{\"a\":" ENTRY("[1]", "[0.0,4]") "}", 4, "two integers"},
        {"{\"a\":" ENTRY("[1]", "[4,8]") "}", 8, "a hole"},
        {"{\"a\":" ENTRY("[1]", "[0,4]") ",\"b\":" ENTRY("[1]", "[8,12]") "}", 12, "a hole"},
        {"{\"a\":" ENTRY("[1]", "[0,4]") ",\"b\":" ENTRY("[1]", "[2,6]") "}", 6, "an overlap"},
        {"{\"a\":" ENTRY("[1]", "[0,4]") ",\"b\":" ENTRY("[1]", "[0,4]") "}", 4, "an overlap"},
        {"{\"a\":" ENTRY("[1]", "[0,4]") "}", 5, "1 bytes follow"},
        {"{}", 1, "1 bytes follow"},
        {"{\"a\":" ENTRY("[1]", "[0,4]") ",\"a\":" ENTRY("[1]", "[0,4]") "}", 4, "header"},
        {"{\"__metadata__\":{\"k\":1}}", 0, "not a string"},
        {"{\"__metadata__\":[]}", 0, "not an object"},
        {"{\"a\\u0000b\":" ENTRY("[1]", "[0,4]") "}", 4, "header"},
        {"{\"\xff\":" ENTRY("[1]", "[0,4]") "}", 4, "header"},
        {"{\"\xc0\x80\":" ENTRY("[1]", "[0,4]") "}", 4, "header"},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "span 1 bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        bytes b = safetensors_file(cases[i].header, cases[i].n_data);
        expect_refusal(&b, RQ_ERR_INPUT, cases[i].words);
        free(b.p);
    }
    bytes b = safetensors_file("{\"a\":{\"dtype\":\"F4\",\"shape\":[4],\"data_offsets\":[0,2]}}", 2);
    expect_refusal(&b, RQ_ERR_UNSUPPORTED, "F4");
    free(b.p);
}

static void refused_lengths(void **state) {
    (void)state;
    static const uint64_t lengths[] = {100000001, (uint64_t)1 << 63, UINT64_MAX, 1000, 5};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; ++i) {
        bytes b = {0};
        put_u64(&b, lengths[i]);
        put(&b, "{}  ", 4);
        expect_refusal(&b, RQ_ERR_INPUT, "claims a");
        free(b.p);
    }
    /* Nesting: jansson stops at its own depth, no stack is exhausted. */
    bytes deep = {0};
    put_u64(&deep, 200000);
    put(&deep, "{\"a\":", 5);
    for (int i = 5; i < 200000; ++i) put(&deep, "[", 1);
    expect_refusal(&deep, RQ_ERR_INPUT, "header");
    free(deep.p);
    /* A name of 64 KiB is taken, one byte more is not. */
    for (int extra = 0; extra < 2; ++extra) {
        bytes h = {0};
        put(&h, "{\"", 2);
        for (int i = 0; i < 65536 + extra; ++i) put(&h, "n", 1);
        put(&h, "\":" ENTRY("[1]", "[0,4]") "}", strlen("\":" ENTRY("[1]", "[0,4]") "}") + 1);
        bytes b = safetensors_file((const char *)h.p, 4);
        if (extra) {
            expect_refusal(&b, RQ_ERR_INPUT, "65537 bytes");
        } else {
            rq_store *s;
            assert_int_equal(open_bytes(&s, b.p, b.n), RQ_OK);
            close_bytes(s);
        }
        free(b.p);
        free(h.p);
    }
}

static void accepted_headers(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t n_data;
        int64_t n_tensors;
    } cases[] = {
        {"{}", 0, 0},
        {"{}     ", 0, 0},
        {"{\"\":" ENTRY("[1]", "[0,4]") "}", 4, 1},
        {"{\"b\":" ENTRY("[]", "[4,8]") ",\"a\":" ENTRY("[0,5]", "[4,4]") ",\"c\":" ENTRY("[1,1]", "[0,4]") "}", 8, 3},
        {"{\"a\":{\"extra\":[1,{}],\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, 1},
        {"{\"a\":" ENTRY("[0,9223372036854775807]", "[0,0]") "}", 0, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        bytes b = safetensors_file(cases[i].header, cases[i].n_data);
        rq_store *s;
        if (open_bytes(&s, b.p, b.n) != RQ_OK) fail_msg("%s: %s", cases[i].header, rq_last_error());
        assert_int_equal(rq_store_count(s), cases[i].n_tensors);
        for (int64_t k = 1; k < rq_store_count(s); ++k) {
            assert_true(strcmp(rq_store_at(s, k - 1)->name, rq_store_at(s, k)->name) < 0);
        }
        close_bytes(s);
        free(b.p);
    }
}

static void every_prefix_is_refused(void **state) {
    (void)state;
    bytes b = read_data("types.safetensors");
    for (size_t n = 0; n < b.n; n += n < 1100 ? 7 : 1) {
        rq_store *s;
        assert_int_equal(open_bytes(&s, b.p, n), RQ_ERR_INPUT);
        assert_true(strlen(rq_last_error()) > 10);
    }
    bytes t = read_data("tiny.safetensors");
    for (size_t n = 0; n < t.n; n += 97) {
        rq_store *s;
        assert_int_equal(open_bytes(&s, t.p, n), RQ_ERR_INPUT);
    }
    free(t.p);
    free(b.p);
}

static void golden_types(void **state) {
    (void)state;
    rq_store *s;
    const char *text;
    int64_t n;
    static const char *const reals[] = {"float64", "float32", "float16"};
    assert_int_equal(rq_store_open(&s, DATA "types.safetensors"), RQ_OK);
    assert_int_equal(rq_store_count(s), 14);
    assert_false(rq_store_is_gguf(s));
    assert_string_equal(rq_store_path(s), DATA "types.safetensors");
    assert_true(rq_meta_str(s, "answer", &text, &n));
    assert_int_equal(n, 2);
    assert_memory_equal(text, "42", 2);
    assert_false(rq_meta_str(s, "nothing", &text, &n));
    int64_t number;
    assert_false(rq_meta_i64(s, "answer", &number)); /* strings stay strings */
    for (size_t i = 0; i < 3; ++i) {
        float v[6];
        const rq_tensor *t = rq_store_find(s, reals[i]);
        assert_non_null(t);
        assert_int_equal(t->rank, 2);
        assert_int_equal(t->shape[0], 2);
        assert_int_equal(t->shape[1], 3);
        assert_int_equal(rq_tensor_f32(t, v), RQ_OK);
        for (int k = 0; k < 6; ++k) assert_true(v[k] == 1.5f * (float)k);
        assert_int_equal(rq_tensor_rows_f32(t, 1, 1, v), RQ_OK);
        assert_true(v[0] == 4.5f);
    }
    const rq_tensor *t = rq_store_find(s, "int16");
    int16_t i16[6];
    float v[6];
    assert_int_equal(t->dtype, RQ_I16);
    assert_int_equal(t->n_bytes, sizeof i16);
    memcpy(i16, t->data, sizeof i16);
    for (int k = 0; k < 6; ++k) assert_int_equal(i16[k], k);
    assert_int_equal(rq_tensor_f32(t, v), RQ_ERR_UNSUPPORTED);
    assert_int_equal(rq_tensor_check_finite(t), RQ_OK);
    t = rq_store_find(s, "scalar");
    assert_int_equal(t->rank, 0);
    assert_int_equal(rq_tensor_numel(t), 1);
    assert_int_equal(rq_tensor_f32(t, v), RQ_OK);
    assert_true(v[0] == 2.5f);
    t = rq_store_find(s, "empty");
    assert_int_equal(rq_tensor_numel(t), 0);
    assert_int_equal(rq_tensor_check_finite(t), RQ_OK);
    t = rq_store_find(s, "float32");
    assert_int_equal(rq_tensor_rows_f32(t, 1, 2, v), RQ_ERR_ARG);
    assert_int_equal(rq_tensor_rows_f32(t, -1, 1, v), RQ_ERR_ARG);
    assert_null(rq_store_find(s, "float3"));
    assert_null(rq_store_at(s, 14));
    rq_store_close(s);
}

static void open_failures(void **state) {
    (void)state;
    char folder[256], path[512];
    rq_store *s;
    new_folder(folder, sizeof folder);
    assert_int_equal(rq_store_open(&s, "/nonexistent/model"), RQ_ERR_IO);
    assert_int_equal(rq_store_open(&s, ""), RQ_ERR_ARG);
    assert_int_equal(rq_store_open(&s, folder), RQ_ERR_IO);
    assert_non_null(strstr(rq_last_error(), "neither"));
    snprintf(path, sizeof path, "%s/pipe", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(rq_store_open(&s, path), RQ_ERR_IO);
    write_text(folder, "empty", "");
    snprintf(path, sizeof path, "%s/empty", folder);
    assert_int_equal(rq_store_open(&s, path), RQ_ERR_INPUT);
    remove_folder(folder, (const char *const[]){"pipe", "empty"}, 2);
}

/* ---- writer ------------------------------------------------------------------------------------------------------- */

static rq_status fill_count(void *arg, void *dst, int64_t n_bytes) {
    for (int64_t i = 0; i < n_bytes; ++i) ((uint8_t *)dst)[i] = (uint8_t)(i + *(int *)arg);
    return RQ_OK;
}

static rq_status fill_fails(void *arg, void *dst, int64_t n_bytes) {
    (void)arg, (void)dst, (void)n_bytes;
    return rq_fail(RQ_ERR_NUMERIC, "no numbers today");
}

static void writer_layout(void **state) {
    (void)state;
    char folder[256];
    int seven = 7;
    float f[3] = {1, 2, 3};
    int64_t shape64[2] = {11, 13};
    rq_out_tensor out[] = {
        {.name = "z8", .dtype = RQ_U8, .rank = 1, .shape = {5}, .fill = fill_count, .arg = &seven},
        {.name = "b", .dtype = RQ_F32, .rank = 1, .shape = {3}, .fill = rq_fill_from_memory, .arg = f},
        {.name = "\"quote\\", .dtype = RQ_F32, .rank = 0, .fill = rq_fill_from_memory, .arg = f},
        {.name = "shape", .dtype = RQ_I64, .rank = 1, .shape = {2}, .fill = rq_fill_from_memory, .arg = shape64},
        {.name = "none", .dtype = RQ_F16, .rank = 2, .shape = {0, 4}, .fill = fill_count, .arg = &seven},
    };
    const char *pairs[] = {"tool", "tests", "note", "na\xc3\xafve"};
    char *path = rq_path_join(new_folder(folder, sizeof folder), "model.safetensors"), *text;
    int64_t n;
    assert_int_equal(rq_safetensors_write(path, out, 5, pairs, 2), RQ_OK);
    assert_int_equal(rq_read_file(path, 1 << 20, &text, &n), RQ_OK);
    /* Exactly this header: metadata, then F64-aligned tensors before F32 before F16 before bytes, names sorted inside. */
    const char *header = "{\"__metadata__\":{\"tool\":\"tests\",\"note\":\"na\xc3\xafve\",\"format\":\"pt\"},"
                         "\"shape\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[0,16]},"
                         "\"\\\"quote\\\\\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[16,20]},"
                         "\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[20,32]},"
                         "\"none\":{\"dtype\":\"F16\",\"shape\":[0,4],\"data_offsets\":[32,32]},"
                         "\"z8\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[32,37]}}";
    size_t len = strlen(header), padded = (len + 7) / 8 * 8;
    uint64_t stored;
    assert_true(padded > len); /* so that the padding is seen */
    memcpy(&stored, text, 8);
    assert_int_equal(stored, padded);
    assert_memory_equal(text + 8, header, len);
    for (size_t i = len; i < padded; ++i) assert_int_equal(text[8 + i], ' ');
    assert_int_equal(n, 8 + padded + 37);
    assert_int_equal((uint8_t)text[n - 1], 11);
    free(text);
    rq_store *s;
    assert_int_equal(rq_store_open(&s, folder), RQ_OK); /* a folder with model.safetensors */
    assert_int_equal(rq_store_count(s), 5);
    assert_int_equal(rq_store_file_bytes(s), n);
    assert_memory_equal(rq_store_find(s, "shape")->data, shape64, sizeof shape64);
    assert_memory_equal(rq_store_find(s, "b")->data, f, sizeof f);
    rq_store_close(s);
    free(path);
    remove_folder(folder, (const char *const[]){"model.safetensors"}, 1);
}

static void writer_refusals(void **state) {
    (void)state;
    char folder[256];
    char *path = rq_path_join(new_folder(folder, sizeof folder), "out.safetensors");
    float f[4] = {0};
    rq_out_tensor good = {.name = "a", .dtype = RQ_F32, .rank = 1, .shape = {4}, .fill = rq_fill_from_memory, .arg = f};
    rq_out_tensor bad[2] = {good, good};
    assert_int_equal(rq_safetensors_write(path, bad, 2, NULL, 0), RQ_ERR_ARG); /* the same name twice */
    bad[0].dtype = RQ_Q4_0;
    assert_int_equal(rq_safetensors_write(path, bad, 1, NULL, 0), RQ_ERR_ARG);
    bad[0] = good;
    bad[0].shape[0] = -1;
    assert_int_equal(rq_safetensors_write(path, bad, 1, NULL, 0), RQ_ERR_ARG);
    bad[0] = good;
    bad[0].name = "\xff";
    assert_int_equal(rq_safetensors_write(path, bad, 1, NULL, 0), RQ_ERR_ARG);
    bad[0].name = "__metadata__";
    assert_int_equal(rq_safetensors_write(path, bad, 1, NULL, 0), RQ_ERR_ARG);
    const char *twice[] = {"k", "1", "k", "2"};
    assert_int_equal(rq_safetensors_write(path, &good, 1, twice, 2), RQ_ERR_ARG);
    /* An old file survives a fill that fails, and no .tmp is left. */
    assert_int_equal(rq_safetensors_write(path, &good, 1, NULL, 0), RQ_OK);
    bad[0] = good;
    bad[0].fill = fill_fails;
    assert_int_equal(rq_safetensors_write(path, bad, 1, NULL, 0), RQ_ERR_NUMERIC);
    assert_string_equal(rq_last_error(), "no numbers today");
    rq_store *s;
    assert_int_equal(rq_store_open(&s, path), RQ_OK);
    rq_store_close(s);
    free(path);
    remove_folder(folder, (const char *const[]){"out.safetensors"}, 1);
    assert_int_equal(rq_safetensors_write("/nonexistent/x.safetensors", &good, 1, NULL, 0), RQ_ERR_IO);
}

/* A disk that is full, by way of the file size limit: the write fails, the sentence says so, nothing is left. */
static void writer_without_room(void **state) {
    (void)state;
    char folder[256];
    char *path = rq_path_join(new_folder(folder, sizeof folder), "big.safetensors");
    int zero = 0;
    rq_out_tensor out = {
        .name = "a", .dtype = RQ_F32, .rank = 2, .shape = {64, 1024}, .fill = fill_count, .arg = &zero};
    struct rlimit old, small;
    void (*old_handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = 100000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    rq_status tensors = rq_safetensors_write(path, &out, 1, NULL, 0);
    char sentence[512];
    snprintf(sentence, sizeof sentence, "%s", rq_last_error());
    char *blob = calloc(1, 200000);
    rq_status whole = rq_write_file(path, blob, 200000);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, old_handler);
    assert_int_equal(tensors, RQ_ERR_IO);
    assert_int_equal(whole, RQ_ERR_IO);
    assert_non_null(strstr(sentence, "100000 of 2622")); /* 8 + 120 + 262144, give or take the header */
    assert_non_null(strstr(sentence, strerror(EFBIG)));
    free(blob);
    free(path);
    remove_folder(folder, NULL, 0);
}

/* ---- shards ------------------------------------------------------------------------------------------------------- */

static void write_shard(const char *folder, const char *file, const char *const *names, int n, float value) {
    char *path = rq_path_join(folder, file);
    rq_out_tensor out[4];
    for (int i = 0; i < n; ++i) {
        out[i] = (rq_out_tensor){
            .name = names[i], .dtype = RQ_F32, .rank = 1, .shape = {1}, .fill = rq_fill_from_memory, .arg = &value};
    }
    const char *pairs[] = {"first", file};
    assert_int_equal(rq_safetensors_write(path, out, n, pairs, 1), RQ_OK);
    free(path);
}

static void try_index(const char *folder, const char *index, rq_status wanted, const char *words) {
    rq_store *s;
    write_text(folder, "model.safetensors.index.json", index);
    rq_status status = rq_store_open(&s, folder);
    if (status != wanted || (wanted != RQ_OK && !strstr(rq_last_error(), words))) {
        fail_msg("%s: status %d, %s", index, status, rq_last_error());
    }
    if (status == RQ_OK) rq_store_close(s);
}

static void shards(void **state) {
    (void)state;
    char folder[256];
    new_folder(folder, sizeof folder);
    write_shard(folder, "m-1.safetensors", (const char *const[]){"a", "c"}, 2, 1.0f);
    write_shard(folder, "m-2.safetensors", (const char *const[]){"b", "d"}, 2, 2.0f);
    write_shard(folder, "m-3.safetensors", (const char *const[]){"a"}, 1, 3.0f);
    const char *good = "{\"metadata\":{\"total_size\":16},\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-2."
                       "safetensors\",\"c\":\"m-1.safetensors\",\"d\":\"m-2.safetensors\"}}";
    rq_store *s;
    write_text(folder, "model.safetensors.index.json", good);
    assert_int_equal(rq_store_open(&s, folder), RQ_OK);
    assert_int_equal(rq_store_count(s), 4);
    float v;
    const char *text;
    int64_t n;
    assert_int_equal(rq_tensor_f32(rq_store_find(s, "d"), &v), RQ_OK);
    assert_true(v == 2.0f);
    assert_int_equal(rq_tensor_f32(rq_store_find(s, "a"), &v), RQ_OK);
    assert_true(v == 1.0f);
    assert_true(rq_meta_str(s, "first", &text, &n)); /* both shards have the key: the first one's value */
    assert_memory_equal(text, "m-1.safetensors", 15);
    rq_store_close(s);

    try_index(folder, "{\"weight_map\":{\"a\":\"m-1.safetensors\"}}", RQ_OK, "");
    try_index(folder, "{\"weight_map\":{\"a\":\"m-2.safetensors\",\"c\":\"m-1.safetensors\"}}", RQ_ERR_INPUT,
              "but it is in m-1.safetensors");
    try_index(folder, "{\"weight_map\":{\"x\":\"m-1.safetensors\"}}", RQ_ERR_INPUT, "no shard has it");
    try_index(folder, "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-3.safetensors\"}}", RQ_ERR_INPUT, "twice");
    try_index(folder, "{\"weight_map\":{\"a\":\"../m-1.safetensors\"}}", RQ_ERR_INPUT, "plain file name");
    try_index(folder, "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", RQ_ERR_INPUT, "plain file name");
    try_index(folder, "{\"weight_map\":{\"a\":\"..\"}}", RQ_ERR_INPUT, "plain file name");
    try_index(folder, "{\"weight_map\":{\"a\":\"\"}}", RQ_ERR_INPUT, "plain file name");
    try_index(folder, "{\"weight_map\":{\"a\":7}}", RQ_ERR_INPUT, "plain file name");
    try_index(folder, "{\"weight_map\":{}}", RQ_ERR_INPUT, "empty");
    try_index(folder, "{\"weight_map\":[]}", RQ_ERR_INPUT, "no weight_map");
    try_index(folder, "[]", RQ_ERR_INPUT, "no weight_map");
    try_index(folder, "{\"weight_map\":", RQ_ERR_INPUT, "line 1");
    try_index(folder, "{\"weight_map\":{\"a\":\"m-9.safetensors\"}}", RQ_ERR_IO, "m-9");
    remove_folder(
        folder,
        (const char *const[]){"m-1.safetensors", "m-2.safetensors", "m-3.safetensors", "model.safetensors.index.json"},
        4);
}

/* ---- small files -------------------------------------------------------------------------------------------------- */

static void small_files(void **state) {
    (void)state;
    char folder[256], *text;
    int64_t n;
    new_folder(folder, sizeof folder);
    write_text(folder, "a", "four");
    char *path = rq_path_join(folder, "a");
    assert_int_equal(rq_read_file(path, 4, &text, &n), RQ_OK);
    assert_int_equal(n, 4);
    assert_string_equal(text, "four");
    free(text);
    assert_int_equal(rq_read_file(path, 3, &text, &n), RQ_ERR_INPUT);
    assert_null(text);
    free(path);
    assert_int_equal(rq_read_file(folder, 100, &text, &n), RQ_ERR_IO); /* a folder is no file */
    remove_folder(folder, (const char *const[]){"a"}, 1);
    path = rq_path_join("x/", "y");
    assert_string_equal(path, "x/y");
    free(path);
    path = rq_path_join("x", "y");
    assert_string_equal(path, "x/y");
    free(path);
}

static void shown_text(void **state) {
    (void)state;
    char name[300];
    memset(name, 'n', sizeof name);
    assert_string_equal(rq_show("a\x1b[1mb\n", 7).text, "a?[1mb?");
    assert_int_equal(strlen(rq_show(name, sizeof name).text), 159);
    assert_true(rq_utf8_valid("\xe2\x82\xac \xf0\x9f\x98\x80 \x7f", 10));
    assert_false(rq_utf8_valid("\xed\xa0\x80", 3));     /* a surrogate */
    assert_false(rq_utf8_valid("\xe0\x80\xaf", 3));     /* not the shortest form */
    assert_false(rq_utf8_valid("\xf4\x90\x80\x80", 4)); /* past U+10FFFF */
    assert_false(rq_utf8_valid("\xe2\x82", 2));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused_headers),     cmocka_unit_test(refused_lengths),
        cmocka_unit_test(accepted_headers),    cmocka_unit_test(every_prefix_is_refused),
        cmocka_unit_test(golden_types),        cmocka_unit_test(open_failures),
        cmocka_unit_test(writer_layout),       cmocka_unit_test(writer_refusals),
        cmocka_unit_test(writer_without_room), cmocka_unit_test(shards),
        cmocka_unit_test(small_files),         cmocka_unit_test(shown_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
