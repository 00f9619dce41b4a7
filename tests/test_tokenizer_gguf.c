/* SPDX-License-Identifier: Apache-2.0 */
/* Tokenizers inside GGUF files, built here from the golden tokenizer.json files, must give the same golden ids; and the way
 * from a model's path to its tokenizer. With RQ_SMOLLM2=<model.gguf> the real SmolLM2 vocabulary is checked too. */
#include "readers_build.h"
#include "tokenizer_golden.h"

enum { GGUF_I32 = 5, GGUF_BOOL = 7, GGUF_STR = 8, GGUF_ARRAY = 9 };

/* What a test changes of the metadata; NULL and 0 leave a key as it is, "-" leaves it out. */
typedef struct meta_change {
    const char *model, *pre;
    const char *token, *merge; /* in place of number 300 */
    int n_types;               /* fewer than there are tokens */
    int64_t bos;
    bool no_tokens, no_merges;
} meta_change;

static void put_key(bytes *b, uint64_t *n_keys, const char *key, uint32_t type) {
    put_str(b, key);
    put_u32(b, type);
    ++*n_keys;
}

static void put_array(bytes *b, uint64_t *n_keys, const char *key, uint32_t type, size_t n) {
    put_key(b, n_keys, key, GGUF_ARRAY);
    put_u32(b, type);
    put_u64(b, n);
}

static void put_text_key(bytes *b, uint64_t *n_keys, const char *key, const char *value) {
    if (strcmp(value, "-") == 0) return;
    put_key(b, n_keys, key, GGUF_STR);
    put_str(b, value);
}

static void put_tokens(bytes *b, uint64_t *n_keys, const json_t *root, const meta_change *c) {
    const json_t *model = json_object_get(root, "model"), *added = json_object_get(root, "added_tokens");
    const char *tokens[2000] = {0}, *text;
    int types[2000] = {0};
    size_t n = 0, i;
    json_t *v;
    json_object_foreach(json_object_get(model, "vocab"), text, v) {
        tokens[json_integer_value(v)] = text;
        types[json_integer_value(v)] = 1;
    }
    json_array_foreach(added, i, v) {
        json_int_t id = json_integer_value(json_object_get(v, "id"));
        tokens[id] = json_string_value(json_object_get(v, "content"));
        types[id] = json_is_true(json_object_get(v, "special")) ? 3 : 4;
    }
    while (tokens[n]) ++n;
    if (c->token) tokens[300] = c->token;
    if (!c->no_tokens) {
        put_array(b, n_keys, "tokenizer.ggml.tokens", GGUF_STR, n);
        for (i = 0; i < n; ++i) put_str(b, tokens[i]);
    }
    size_t n_types = c->n_types ? (size_t)c->n_types : n;
    put_array(b, n_keys, "tokenizer.ggml.token_type", GGUF_I32, n_types);
    for (i = 0; i < n_types; ++i) put_u32(b, (uint32_t)types[i]);
}

static void put_merges(bytes *b, uint64_t *n_keys, const json_t *root, const meta_change *c) {
    const json_t *merges = json_object_get(json_object_get(root, "model"), "merges");
    size_t i;
    json_t *v;
    if (c->no_merges) return;
    put_array(b, n_keys, "tokenizer.ggml.merges", GGUF_STR, json_array_size(merges));
    json_array_foreach(merges, i, v) {
        char pair[256];
        snprintf(pair, sizeof pair, "%s %s", json_string_value(json_array_get(v, 0)),
                 json_string_value(json_array_get(v, 1)));
        put_str(b, i == 300 && c->merge ? c->merge : pair);
    }
}

static bytes gguf_of(const char *name, const char *pre, const meta_change *c) {
    json_t *root = load_golden(name, ".json");
    bytes b = {0}, keys = {0};
    uint64_t n_keys = 0;
    int64_t bos = c->bos;
    put_text_key(&keys, &n_keys, "general.architecture", "llama");
    put_text_key(&keys, &n_keys, "tokenizer.ggml.model", c->model ? c->model : "gpt2");
    put_text_key(&keys, &n_keys, "tokenizer.ggml.pre", c->pre ? c->pre : pre);
    put_tokens(&keys, &n_keys, root, c);
    put_merges(&keys, &n_keys, root, c);
    if (strcmp(name, "llama3") == 0 && bos == 0) {
        bos = json_integer_value(json_object_get(json_array_get(json_object_get(root, "added_tokens"), 0), "id"));
    }
    if (bos > 0) {
        put_key(&keys, &n_keys, "tokenizer.ggml.bos_token_id", GGUF_I32);
        put_u32(&keys, (uint32_t)bos);
        put_key(&keys, &n_keys, "tokenizer.ggml.add_bos_token", GGUF_BOOL);
        put(&keys, "\1", 1);
    }
    put(&b, "GGUF", 4);
    put_u32(&b, 3);
    put_u64(&b, 0);
    put_u64(&b, n_keys);
    put(&b, keys.p, keys.n);
    pad32(&b);
    free(keys.p);
    json_decref(root);
    return b;
}

static const struct {
    const char *golden, *pre;
} pairs[] = {{"gpt2", "gpt-2"}, {"smollm2", "smollm"}, {"llama3", "llama-bpe"}, {"qwen2", "qwen2"}};

static void gguf_gives_the_same_ids(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; ++i) {
        meta_change none = {0};
        bytes b = gguf_of(pairs[i].golden, pairs[i].pre, &none);
        rq_store *s;
        rq_tokenizer *t = NULL, *again;
        char *text;
        if (open_bytes(&s, b.p, b.n) != RQ_OK || rq_tokenizer_open(&t, s) != RQ_OK) fail_msg("%s", rq_last_error());
        check_all(t, pairs[i].golden);
        assert_int_equal(rq_tokenizer_to_json(t, &text), RQ_OK);
        close_bytes(s); /* the tokenizer does not need it any more */
        check_all(t, pairs[i].golden);
        assert_int_equal(rq_tokenizer_open_json(&again, text, (int64_t)strlen(text), "written"), RQ_OK);
        check_all(again, pairs[i].golden);
        rq_tokenizer_close(again);
        rq_tokenizer_close(t);
        free(text);
        free(b.p);
    }
}

static void strange_metadata_is_refused(void **state) {
    (void)state;
    static const struct {
        meta_change c;
        rq_status status;
        const char *words;
    } cases[] = {
        {{.model = "llama"}, RQ_ERR_UNSUPPORTED, "tokenizer.ggml.model 'llama' is not supported"},
        {{.model = "-"}, RQ_ERR_INPUT, "holds no tokenizer"},
        {{.pre = "default"}, RQ_ERR_UNSUPPORTED, "tokenizer.ggml.pre 'default' is not supported"},
        {{.pre = "-"}, RQ_ERR_UNSUPPORTED, "tokenizer.ggml.pre is missing"},
        {{.no_tokens = true}, RQ_ERR_INPUT, "tokenizer.ggml.tokens is missing"},
        {{.no_merges = true}, RQ_ERR_INPUT, "tokenizer.ggml.merges is missing"},
        {{.n_types = 5}, RQ_ERR_INPUT, "5 token types for 700 tokens"},
        {{.token = "a"}, RQ_ERR_INPUT, "token 'a' has two ids"},
        {{.token = "\xff"}, RQ_ERR_INPUT, "token 300 is not a string of UTF-8"},
        {{.merge = "a\xff b"}, RQ_ERR_INPUT, "merge 300 is not a string of UTF-8"},
        {{.merge = "ab"}, RQ_ERR_INPUT, "merge 300 ('ab')"},
        {{.bos = 100000}, RQ_ERR_INPUT, "tokenizer.ggml.bos_token_id names no token"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        bytes b = gguf_of("gpt2", "gpt-2", &cases[i].c);
        rq_store *s;
        rq_tokenizer *t;
        if (open_bytes(&s, b.p, b.n) != RQ_OK) fail_msg("%s", rq_last_error());
        rq_status status = rq_tokenizer_open(&t, s);
        if (status != cases[i].status || !strstr(rq_last_error(), cases[i].words)) {
            fail_msg("case %zu: status %d, '%s'", i, (int)status, rq_last_error());
        }
        assert_null(t);
        close_bytes(s);
        free(b.p);
    }
}

/* tokenizer.json lies in the model's folder, also when the model is one file there. */
static void folder_and_file(void **state) {
    (void)state;
    static const char *const files[] = {"model.safetensors", "tokenizer.json"};
    char folder[256], *path, *json;
    int64_t n;
    new_folder(folder, sizeof folder);
    bytes b = safetensors_file("{\"t\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2);
    path = rq_path_join(folder, files[0]);
    assert_int_equal(rq_write_file(path, b.p, (int64_t)b.n), RQ_OK);
    const char *const paths[] = {path, folder};
    for (int with_json = 0; with_json < 2; ++with_json) {
        if (with_json) {
            json = read_golden("gpt2", ".json", &n);
            write_text(folder, files[1], json);
            free(json);
        }
        for (int k = 0; k < 2; ++k) {
            rq_store *s;
            rq_tokenizer *t;
            if (rq_store_open(&s, paths[k]) != RQ_OK) fail_msg("%s", rq_last_error());
            rq_status status = rq_tokenizer_open(&t, s);
            if (with_json) {
                if (status != RQ_OK) fail_msg("%s", rq_last_error());
                assert_int_equal(rq_tokenizer_n_vocab(t), 700);
            } else {
                assert_int_equal(status, RQ_ERR_INPUT);
                assert_non_null(strstr(rq_last_error(), "give token ids instead of text"));
            }
            rq_tokenizer_close(t);
            rq_store_close(s);
        }
    }
    remove_folder(folder, files, 2);
    free(path);
    free(b.p);
}

static void smollm2(void **state) {
    (void)state;
    const char *path = getenv("RQ_SMOLLM2");
    if (!path) {
        print_message("skips: RQ_SMOLLM2 does not name the SmolLM2 GGUF\n");
        skip();
    }
    rq_store *s;
    rq_tokenizer *t, *again;
    char *text;
    if (rq_store_open(&s, path) != RQ_OK) fail_msg("%s", rq_last_error());
    if (rq_tokenizer_open(&t, s) != RQ_OK) fail_msg("%s", rq_last_error());
    assert_int_equal(rq_tokenizer_n_vocab(t), 49152);
    assert_int_equal(rq_tokenizer_to_json(t, &text), RQ_OK);
    assert_int_equal(rq_tokenizer_open_json(&again, text, (int64_t)strlen(text), "written"), RQ_OK);
    json_t *cases = load_golden("smollm2_texts", ".json"), *c;
    size_t i;
    assert_true(json_array_size(cases) > 5);
    json_array_foreach(cases, i, c) {
        check_ids(t, "SmolLM2", i, json_object_get(c, "text"), true, json_object_get(c, "ids"));
        check_ids(again, "SmolLM2 written", i, json_object_get(c, "text"), true, json_object_get(c, "ids"));
    }
    json_decref(cases);
    free(text);
    rq_tokenizer_close(again);
    rq_tokenizer_close(t);
    rq_store_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gguf_gives_the_same_ids),
        cmocka_unit_test(strange_metadata_is_refused),
        cmocka_unit_test(folder_and_file),
        cmocka_unit_test(smollm2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
