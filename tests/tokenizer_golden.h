/* SPDX-License-Identifier: Apache-2.0 */
/* Golden ids of golden/tokenizer (made by make_tokenizer_golden.py with the `tokenizers` library), for the tests. */
#ifndef RQ_TOKENIZER_GOLDEN_H
#define RQ_TOKENIZER_GOLDEN_H

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common.h"
#include "tokenizer.h"

static inline char *read_golden(const char *name, const char *suffix, int64_t *n) {
    char path[1024];
    char *text;
    snprintf(path, sizeof path, RQ_TEST_DIR "/golden/tokenizer/%s%s", name, suffix);
    if (rq_read_file(path, 1 << 24, &text, n) != RQ_OK) fail_msg("%s", rq_last_error());
    return text;
}

static inline json_t *load_golden(const char *name, const char *suffix) {
    int64_t n;
    char *text = read_golden(name, suffix, &n);
    json_t *v = json_loadb(text, (size_t)n, JSON_ALLOW_NUL, NULL);
    assert_non_null(v);
    free(text);
    return v;
}

static inline rq_tokenizer *open_golden(const char *name) {
    rq_tokenizer *t;
    int64_t n;
    char *text = read_golden(name, ".json", &n);
    if (rq_tokenizer_open_json(&t, text, n, "tokenizer.json") != RQ_OK) fail_msg("%s: %s", name, rq_last_error());
    free(text);
    return t;
}

static inline void check_ids(const rq_tokenizer *t, const char *name, size_t which, const json_t *text, bool special,
                             const json_t *expected) {
    int32_t *ids;
    int64_t n;
    rq_status status =
        rq_tokenizer_encode(t, json_string_value(text), (int64_t)json_string_length(text), special, &ids, &n);
    if (status != RQ_OK) fail_msg("%s, text %zu: %s", name, which, rq_last_error());
    for (int64_t i = 0; i < n && i < (int64_t)json_array_size(expected); ++i) {
        int want = (int)json_integer_value(json_array_get(expected, (size_t)i));
        if (ids[i] != want)
            fail_msg("%s, text %zu, id %lld: %d instead of %d", name, which, (long long)i, ids[i], want);
    }
    if (n != (int64_t)json_array_size(expected)) {
        fail_msg("%s, text %zu: %lld ids instead of %zu", name, which, (long long)n, json_array_size(expected));
    }
    free(ids);
}

/* The reference writes U+FFFD for bytes that are no UTF-8, where we keep the bytes: such texts are left out. */
static inline void check_decoded(const rq_tokenizer *t, const char *name, size_t which, const json_t *ids,
                                 const json_t *expected) {
    int32_t *list = NULL;
    char *text;
    int64_t n = (int64_t)json_array_size(ids), n_bytes;
    if (strstr(json_string_value(expected), "\xef\xbf\xbd")) return;
    assert_int_equal(RQ_NEW(list, n), RQ_OK);
    for (int64_t i = 0; i < n; ++i) list[i] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
    assert_int_equal(rq_tokenizer_decode(t, list, n, true, &text, &n_bytes), RQ_OK);
    if (n_bytes != (int64_t)json_string_length(expected) ||
        memcmp(text, json_string_value(expected), (size_t)n_bytes) != 0) {
        fail_msg("%s, text %zu: decoded to '%s'", name, which, text);
    }
    free(text);
    free(list);
}

static inline void check_all(const rq_tokenizer *t, const char *name) {
    json_t *texts = load_golden("texts", ".json"), *golden = load_golden(name, ".ids.json"), *c;
    const json_t *cases = json_object_get(golden, "cases");
    size_t i;
    assert_int_equal(json_array_size(texts), json_array_size(cases));
    assert_true(json_array_size(cases) > 100);
    json_array_foreach(cases, i, c) {
        const json_t *text = json_array_get(texts, i), *ids = json_object_get(c, "ids"),
                     *sp = json_object_get(c, "special");
        check_ids(t, name, i, text, false, ids);
        check_ids(t, name, i, text, true, sp ? sp : ids);
        check_decoded(t, name, i, ids, json_object_get(c, "decoded"));
    }
    json_decref(texts);
    json_decref(golden);
}

#endif
