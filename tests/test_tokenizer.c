/* SPDX-License-Identifier: Apache-2.0 */
/* The tokenizer against ids that the `tokenizers` library gave, and against files it has to refuse. */
#include "tokenizer_golden.h"

static const char *const names[] = {"gpt2", "smollm2", "llama3", "qwen2", "mixed"};
enum { N_NAMES = (int)(sizeof names / sizeof names[0]) };

static void ids_equal_the_reference(void **state) {
    (void)state;
    for (int k = 0; k < N_NAMES; ++k) {
        rq_tokenizer *t = open_golden(names[k]);
        check_all(t, names[k]);
        rq_tokenizer_close(t);
    }
}

/* What we write, read again, is the same tokenizer. RQ_TOKENIZER_OUT=<folder> keeps the files, for
 * make_tokenizer_golden.py --check. */
static void written_tokenizer_is_the_same(void **state) {
    (void)state;
    const char *keep = getenv("RQ_TOKENIZER_OUT");
    for (int k = 0; k < N_NAMES; ++k) {
        rq_tokenizer *t = open_golden(names[k]), *again;
        char *text;
        assert_int_equal(rq_tokenizer_to_json(t, &text), RQ_OK);
        assert_int_equal(rq_tokenizer_open_json(&again, text, (int64_t)strlen(text), "written"), RQ_OK);
        assert_int_equal(rq_tokenizer_n_vocab(again), rq_tokenizer_n_vocab(t));
        check_all(again, names[k]);
        if (keep) {
            char path[1024];
            snprintf(path, sizeof path, "%s/%s.json", keep, names[k]);
            assert_int_equal(rq_write_file(path, text, (int64_t)strlen(text)), RQ_OK);
        }
        free(text);
        rq_tokenizer_close(again);
        rq_tokenizer_close(t);
    }
}

/* ---- refusals ---- */

/* One part of the GPT-2 file replaced: the path is the keys down to it. */
typedef struct change {
    const char *key, *below; /* below: NULL, or a key inside of key */
    const char *value;       /* JSON; NULL deletes */
    rq_status status;
    const char *words; /* must be in the sentence */
} change;

static const change changes[] = {
    {"normalizer", NULL, "{\"type\":\"Nmt\"}", RQ_ERR_UNSUPPORTED, "normalizer 'Nmt' is not supported"},
    {"normalizer", NULL, "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Lowercase\"}]}",
     RQ_ERR_UNSUPPORTED, "normalizer 'Lowercase'"},
    {"normalizer", NULL, "{\"type\":\"Sequence\"}", RQ_ERR_INPUT, "'normalizers'"},
    {"normalizer", NULL, "{\"type\":\"NFC\"}", RQ_OK, NULL},
    {"pre_tokenizer", NULL, "{\"type\":\"Metaspace\"}", RQ_ERR_UNSUPPORTED, "pre_tokenizer 'Metaspace'"},
    {"pre_tokenizer", NULL, "null", RQ_ERR_UNSUPPORTED, "without pre_tokenizer 'ByteLevel'"},
    {"pre_tokenizer", NULL,
     "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},{\"type\":\"Digits\",\"individual_digits\":"
     "true}]}",
     RQ_ERR_UNSUPPORTED, "anywhere but last"},
    {"decoder", NULL, "{\"type\":\"WordPiece\"}", RQ_ERR_UNSUPPORTED, "decoder 'WordPiece'"},
    {"decoder", NULL, "null", RQ_ERR_UNSUPPORTED, "decoder 'null'"},
    {"decoder", NULL, "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteLevel\"}]}", RQ_OK, NULL},
    {"post_processor", NULL, "{\"type\":\"RobertaProcessing\"}", RQ_ERR_UNSUPPORTED,
     "post_processor 'RobertaProcessing'"},
    {"post_processor", NULL,
     "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}],\"special_tokens\":{}}",
     RQ_ERR_INPUT, "token 'x' without ids"},
    {"post_processor", NULL, "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"B\"}}]}",
     RQ_ERR_UNSUPPORTED, "template sequence 'B'"},
    {"post_processor", NULL, "{\"type\":\"TemplateProcessing\",\"single\":[]}", RQ_ERR_INPUT, "leaves out the text"},
    {"post_processor", NULL,
     "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"x\"}}],"
     "\"special_tokens\":{\"x\":{\"ids\":[100000]}}}",
     RQ_ERR_INPUT, "id 100000"},
    {"model", NULL, "{\"type\":\"Unigram\"}", RQ_ERR_UNSUPPORTED, "model 'Unigram'"},
    {"model", NULL, "[]", RQ_ERR_INPUT, "no model"},
    {"model", "type", NULL, RQ_OK, NULL},
    {"model", "byte_fallback", "true", RQ_ERR_UNSUPPORTED, "byte_fallback"},
    {"model", "dropout", "0.1", RQ_ERR_UNSUPPORTED, "dropout"},
    {"model", "end_of_word_suffix", "\"</w>\"", RQ_ERR_UNSUPPORTED, "end_of_word_suffix"},
    {"model", "continuing_subword_prefix", "\"\"", RQ_OK, NULL},
    {"model", "unk_token", "\"no such\"", RQ_ERR_INPUT, "unk_token 'no such'"},
    {"model", "merges", "[\"a\"]", RQ_ERR_INPUT, "merge 0 ('a')"},
    {"model", "merges", "[\"a b c\"]", RQ_ERR_INPUT, "merge 0"},
    {"model", "merges", "[\"a Q!Q\"]", RQ_ERR_INPUT, "vocabulary lacks"},
    {"model", "merges", "[[\"a\"]]", RQ_ERR_INPUT, "merge 0"},
    {"model", "merges", "null", RQ_ERR_INPUT, "no merges"},
    {"model", "merges", "[]", RQ_OK, NULL},
    {"model", "vocab", "{\"a\":0,\"b\":0}", RQ_ERR_INPUT, "same id 0"},
    {"model", "vocab", "{\"a\":-1}", RQ_ERR_INPUT, "'a' is not a whole number"},
    {"model", "vocab", "{\"a\":2147483647}", RQ_ERR_INPUT, "2147483647"},
    {"model", "vocab", "[]", RQ_ERR_INPUT, "no vocabulary"},
    {"added_tokens", NULL, "[{\"id\":0}]", RQ_ERR_INPUT, "added token 0"},
    {"added_tokens", NULL, "[{\"id\":5,\"content\":\"<|endoftext|>\"}]", RQ_ERR_INPUT, "says id 5"},
    {"added_tokens", NULL, "[{\"id\":699,\"content\":\"new thing\"}]", RQ_ERR_INPUT, "give 700"},
    {"added_tokens", NULL, "[{\"id\":700,\"content\":\"new thing\"},{\"id\":700,\"content\":\"new thing\"}]", RQ_OK,
     NULL},
    {"added_tokens", NULL, "[]", RQ_OK, NULL},
};

static rq_status open_changed(const change *c, rq_tokenizer **t) {
    json_t *root = load_golden("gpt2", ".json");
    json_t *at = c->below ? json_object_get(root, c->key) : root;
    const char *key = c->below ? c->below : c->key;
    if (c->value) {
        json_t *value = json_loads(c->value, JSON_DECODE_ANY, NULL);
        assert_non_null(value);
        json_object_set_new(at, key, value);
    } else {
        json_object_del(at, key);
    }
    char *text = json_dumps(root, 0);
    rq_status status = rq_tokenizer_open_json(t, text, (int64_t)strlen(text), "tokenizer.json");
    free(text);
    json_decref(root);
    return status;
}

/* A vocabulary with a hole: the next free id is not free. */
static void an_id_taken_twice_is_refused(void **state) {
    (void)state;
    static const char json[] =
        "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":"
        "\"BPE\",\"vocab\":{\"a\":0,\"b\":2},\"merges\":[]},\"added_tokens\":[{\"id\":2,\"content\":\"x\"}]}";
    rq_tokenizer *t;
    assert_int_equal(rq_tokenizer_open_json(&t, json, (int64_t)strlen(json), NULL), RQ_ERR_INPUT);
    assert_non_null(strstr(rq_last_error(), "'x' and token 'b' have the same id 2"));
}

static void strange_files_are_refused_by_name(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; ++i) {
        const change *c = &changes[i];
        rq_tokenizer *t;
        rq_status status = open_changed(c, &t);
        if (status != c->status || (status != RQ_OK && !strstr(rq_last_error(), c->words))) {
            fail_msg("change %zu (%s, %s): status %d, '%s'", i, c->key, c->value ? c->value : "deleted", (int)status,
                     status == RQ_OK ? "" : rq_last_error());
        }
        if (status != RQ_OK) assert_null(t);
        rq_tokenizer_close(t);
    }
    rq_tokenizer *t;
    assert_int_equal(rq_tokenizer_open_json(&t, "{", 1, NULL), RQ_ERR_INPUT);
    assert_non_null(strstr(rq_last_error(), "tokenizer.json: line 1"));
    assert_int_equal(rq_tokenizer_open_json(&t, "[]", 2, NULL), RQ_ERR_INPUT);
    assert_int_equal(rq_tokenizer_open_json(&t, NULL, 0, NULL), RQ_ERR_ARG);
}

/* A tokenizer of single bytes, whose Split has this pattern. */
static rq_status open_pattern(const char *pattern, rq_tokenizer **t) {
    json_t *pre = json_pack("{s:s, s:[{s:s, s:{s:s}, s:s, s:b}, {s:s, s:b, s:b}]}", "type", "Sequence", "pretokenizers",
                            "type", "Split", "pattern", "Regex", pattern, "behavior", "Isolated", "invert", 0, "type",
                            "ByteLevel", "add_prefix_space", 0, "use_regex", 0);
    assert_non_null(pre);
    char *value = json_dumps(pre, 0);
    change c = {.key = "pre_tokenizer", .value = value};
    rq_status status = open_changed(&c, t);
    free(value);
    json_decref(pre);
    return status;
}

static void patterns_with_another_meaning_are_refused(void **state) {
    (void)state;
    static const char *const bad[] = {
        "\\h",      "\\w+",    "\\bx",     "\\R",       "\\X",         "\\A",           "\\1(a)",
        "(?m:.)",   "(?i)a",   "(?<n>a)",  "(?#x)",     "(*UTF)",      "[[:alpha:]]",   "[a&&b]",
        "[]a]",     "[a-\\s]", "[\\s-a]",  "a{2}?",     "a{1,2}+",     "a{,3}",         "a**",
        "\\p{Han}", "\\p{^L}", "\\pL",     "[\\P{L}]",  "(?i:\\p{L})", "(?i:\xc3\x9f)", "(?i:ss)",
        "(?i:FI)",  "[z-a]",   "\\p{Cn}",  "\\x{d800}", "(?i:\\S)",    "(?i:[^a])",     "\\x{110000}",
        "\\xff",    "\\u12",   "a{99999}", "\\k<a>",    "\\Qa",        "[\\w]",
    };
    static const char *const broken[] = {"(", "a)", "[a", "\\", "*a", "(?<=a+)b", ""};
    static const char *const good[] = {"a+?b",    "a*+",        "a?+",           "a{2}",  "a{2,}?",
                                       "a{2,3}?", "[^a-c-]",    "[-a]",          "[\\S]", "\\P{Lu}",
                                       "\\D",     "(?<!a|bc)d", "(?>a|b)",       "^a$",   "(?i:'s)",
                                       "\\u00e9", "\\x{1F600}", "[\\x41-\\x5a]", "\\-",   "#"};
    rq_tokenizer *t;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; ++i) {
        rq_status status = open_pattern(bad[i], &t);
        if (status != RQ_ERR_UNSUPPORTED) fail_msg("'%s': status %d", bad[i], (int)status);
    }
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; ++i) {
        rq_status status = open_pattern(broken[i], &t);
        if (status != RQ_ERR_INPUT) fail_msg("'%s': status %d", broken[i], (int)status);
    }
    for (size_t i = 0; i < sizeof good / sizeof good[0]; ++i) {
        if (open_pattern(good[i], &t) != RQ_OK) fail_msg("'%s': %s", good[i], rq_last_error());
        rq_tokenizer_close(t);
    }
}

static void costly_patterns_end(void **state) {
    (void)state;
    rq_tokenizer *t;
    char text[4001];
    int32_t *ids;
    int64_t n;
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = 'b';
    /* The first backtracks without end; the second never backtracks, but looks at all the rest from every start. */
    assert_int_equal(open_pattern("(?:a|a)*$", &t), RQ_OK);
    assert_int_equal(rq_tokenizer_encode(t, text, sizeof text, false, &ids, &n), RQ_ERR_INPUT);
    assert_non_null(strstr(rq_last_error(), "too costly"));
    assert_null(ids);
    rq_tokenizer_close(t);
    int64_t big = 1 << 20;
    char *long_text = malloc((size_t)big);
    assert_non_null(long_text);
    memset(long_text, 'a', (size_t)big);
    assert_int_equal(open_pattern("(?:[^\\x01]*+(?:\\x01|\\x02))", &t), RQ_OK);
    assert_int_equal(rq_tokenizer_encode(t, long_text, big, false, &ids, &n), RQ_ERR_INPUT);
    assert_non_null(strstr(rq_last_error(), "too costly"));
    rq_tokenizer_close(t);
    /* Long looks that are needed once are within the bounds. */
    assert_int_equal(open_pattern("\\s*[\\r\\n]+|\\s+(?!\\S)|[^\\s]+", &t), RQ_OK);
    memset(long_text, ' ', (size_t)big - 1);
    assert_int_equal(rq_tokenizer_encode(t, long_text, big, false, &ids, &n), RQ_OK);
    free(ids);
    free(long_text);
    rq_tokenizer_close(t);
}

/* ---- long words, errors of callers ---- */

/* The definition of BPE, as slow as it is plain: apply each merge in rank order, again and again from the lowest rank.
 * For a word of one letter the result depends on merges of that letter's runs only. */
static void long_words_follow_the_definition(void **state) {
    (void)state;
    static const char json[] =
        "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false},\"decoder\":{"
        "\"type\":"
        "\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"aa\":2,\"ab\":3,\"aab\":4,\"aaaa\":5,"
        "\"ba\":6,"
        "\"aba\":7},\"merges\":[\"a b\",\"a a\",\"aa ab\",\"aa aa\",\"b a\",\"ab a\",\"aa b\"]}}";
    static const int merges[][3] = {{0, 1, 3}, {0, 0, 2}, {2, 3, 99}, {2, 2, 5}, {1, 0, 6}, {3, 0, 7}, {2, 1, 4}};
    char fixed[sizeof json];
    memcpy(fixed, json, sizeof json);
    /* "aa ab" would make "aaab", which the vocabulary lacks: refused as such, then taken out. */
    rq_tokenizer *t;
    assert_int_equal(rq_tokenizer_open_json(&t, fixed, (int64_t)strlen(fixed), NULL), RQ_ERR_INPUT);
    char *hole = strstr(fixed, "\"aa ab\",");
    memset(hole, ' ', strlen("\"aa ab\","));
    assert_int_equal(rq_tokenizer_open_json(&t, fixed, (int64_t)strlen(fixed), NULL), RQ_OK);
    uint32_t seed = 1;
    for (int n = 1; n < 400; n += 1 + n / 9) {
        char text[400];
        int want[400], m = n;
        for (int i = 0; i < n; ++i) {
            seed = seed * 1664525u + 1013904223u;
            want[i] = (seed >> 24) % 5 == 0;
            text[i] = want[i] ? 'b' : 'a';
        }
        for (bool again = true; again;) {
            again = false;
            for (size_t k = 0; k < sizeof merges / sizeof merges[0] && !again; ++k) {
                for (int i = 0; i + 1 < m && !again; ++i) {
                    if (merges[k][2] == 99 || want[i] != merges[k][0] || want[i + 1] != merges[k][1]) continue;
                    want[i] = merges[k][2];
                    memmove(&want[i + 1], &want[i + 2], (size_t)(m - i - 2) * sizeof want[0]);
                    --m;
                    again = true;
                }
            }
        }
        int32_t *ids;
        int64_t n_ids;
        assert_int_equal(rq_tokenizer_encode(t, text, n, false, &ids, &n_ids), RQ_OK);
        assert_int_equal(n_ids, m);
        for (int i = 0; i < m; ++i) assert_int_equal(ids[i], want[i]);
        free(ids);
    }
    /* A megabyte in one word must come back whole; with quadratic work this test would not end. */
    int64_t big = 1 << 20, n_ids, n_bytes;
    char *text = malloc((size_t)big), *back;
    assert_non_null(text);
    memset(text, 'a', (size_t)big);
    int32_t *ids;
    assert_int_equal(rq_tokenizer_encode(t, text, big, false, &ids, &n_ids), RQ_OK);
    assert_int_equal(n_ids, big / 4);
    assert_int_equal(rq_tokenizer_decode(t, ids, n_ids, false, &back, &n_bytes), RQ_OK);
    assert_int_equal(n_bytes, big);
    assert_memory_equal(text, back, (size_t)big);
    free(ids);
    free(back);
    free(text);
    rq_tokenizer_close(t);
}

static void callers_errors(void **state) {
    (void)state;
    rq_tokenizer *t = open_golden("smollm2");
    int32_t *ids;
    int64_t n;
    static const struct {
        const char *text;
        int64_t offset;
    } bad[] = {{"ab\xff", 2},
               {"\xc3", 0},
               {"x\xc0\x80", 1},
               {"\xe0\x80\x80", 0},
               {"ok \xed\xa0\x80", 3},
               {"\xf4\x90\x80\x80", 0},
               {"\xf0\x8f\xbf\xbf", 0},
               {"\xc3\x28", 0},
               {"\x80", 0},
               {"\xf0\x9f\x98", 0}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; ++i) {
        char words[40];
        assert_int_equal(rq_tokenizer_encode(t, bad[i].text, (int64_t)strlen(bad[i].text), false, &ids, &n),
                         RQ_ERR_INPUT);
        snprintf(words, sizeof words, "at offset %lld", (long long)bad[i].offset);
        if (!strstr(rq_last_error(), words)) fail_msg("%zu: %s", i, rq_last_error());
        assert_null(ids);
    }
    assert_int_equal(rq_tokenizer_encode(t, NULL, 3, false, &ids, &n), RQ_ERR_ARG);
    assert_int_equal(rq_tokenizer_encode(t, "a", -1, false, &ids, &n), RQ_ERR_ARG);
    assert_int_equal(rq_tokenizer_encode(t, NULL, 0, false, &ids, &n), RQ_OK);
    assert_int_equal(n, 0);
    assert_non_null(ids);
    free(ids);

    char *text;
    const int32_t some[] = {1, -1};
    assert_int_equal(rq_tokenizer_decode(t, some, 2, false, &text, &n), RQ_ERR_ARG);
    const int32_t with_special[] = {1, 1 << 30, 2}; /* the middle one has no token, like a model's padding rows */
    assert_int_equal(rq_tokenizer_decode(t, with_special, 3, false, &text, &n), RQ_OK);
    assert_string_equal(text, "<|im_start|><|im_end|>");
    free(text);
    assert_int_equal(rq_tokenizer_decode(t, with_special, 3, true, &text, &n), RQ_OK);
    assert_string_equal(text, "");
    free(text);
    rq_tokenizer_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_equal_the_reference),
        cmocka_unit_test(written_tokenizer_is_the_same),
        cmocka_unit_test(strange_files_are_refused_by_name),
        cmocka_unit_test(an_id_taken_twice_is_refused),
        cmocka_unit_test(patterns_with_another_meaning_are_refused),
        cmocka_unit_test(costly_patterns_end),
        cmocka_unit_test(long_words_follow_the_definition),
        cmocka_unit_test(callers_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
