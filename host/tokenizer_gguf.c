/* SPDX-License-Identifier: Apache-2.0 */
/* The tokenizer inside a GGUF file: tokens and merges are listed, the pipeline around them is only named
 * (tokenizer.ggml.pre). The names and what they stand for are those of llama.cpp's converter. */
#include "model_parse.h"
#include "tokenizer_impl.h"

/* Patterns as published with Llama-3 and Qwen2; they differ in the length of digit groups. */
#define WORDS_TO_DIGITS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define AFTER_DIGITS    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

typedef struct pipeline {
    const char *name;
    const char *pattern; /* NULL: GPT-2's, inside ByteLevel */
    bool digits_first, nfc, ignore_merges, add_bos;
} pipeline;

static const pipeline pipelines[] = {
    {.name = "gpt-2"},
    {.name = "smollm", .digits_first = true},
    {.name = "llama-bpe",
     .pattern = WORDS_TO_DIGITS "\\p{N}{1,3}" AFTER_DIGITS,
     .ignore_merges = true,
     .add_bos = true},
    {.name = "qwen2", .pattern = WORDS_TO_DIGITS "\\p{N}" AFTER_DIGITS, .nfc = true},
};

enum { TOKEN_CONTROL = 3, TOKEN_USER = 4 }; /* tokenizer.ggml.token_type */

static bool same(const char *text, int64_t n, const char *name) {
    return n == (int64_t)strlen(name) && memcmp(text, name, (size_t)n) == 0;
}

static rq_status read_pipeline(rq_tokenizer *t, const rq_store *s, bool *add_bos) {
    rq_status status = RQ_OK;
    const char *text;
    const pipeline *p = NULL;
    int64_t n;
    if (!rq_meta_str(s, "tokenizer.ggml.model", &text, &n)) {
        RQ_FAIL(RQ_ERR_INPUT, "%s holds no tokenizer (tokenizer.ggml.model): give token ids instead of text", t->label);
    }
    if (!same(text, n, "gpt2")) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: tokenizer.ggml.model '%s' is not supported", t->label, rq_show(text, n).text);
    }
    if (!rq_meta_str(s, "tokenizer.ggml.pre", &text, &n)) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: tokenizer.ggml.pre is missing, so how text is split is unknown", t->label);
    }
    for (size_t i = 0; i < sizeof pipelines / sizeof pipelines[0]; ++i) {
        if (same(text, n, pipelines[i].name)) p = &pipelines[i];
    }
    if (!p) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: tokenizer.ggml.pre '%s' is not supported", t->label, rq_show(text, n).text);
    }
    *add_bos = p->add_bos;
    t->nfc = p->nfc;
    t->ignore_merges = p->ignore_merges;
    if (p->digits_first) RQ_TRY(rq_tok_pre_add(t, (rq_tok_pre){.kind = RQ_TOK_DIGITS, .individual = true}, NULL, 0));
    if (p->pattern) {
        rq_tok_pre split = {.kind = RQ_TOK_SPLIT, .is_regex = true};
        RQ_TRY(rq_tok_pre_add(t, split, p->pattern, (int64_t)strlen(p->pattern)));
    }
    RQ_TRY(rq_tok_pre_add(t, (rq_tok_pre){.kind = RQ_TOK_BYTE_LEVEL, .use_regex = !p->pattern}, NULL, 0));
done:
    return status;
}

static rq_status string_at(const rq_tokenizer *t, const rq_meta_array *a, int64_t i, const char *what,
                           rq_tok_str *out) {
    /* Byte letters never hold a zero byte, and tokenizer.json could not name such a token. */
    if (!rq_meta_array_str(a, i, &out->text, &out->n) || rq_tok_utf8_bad_offset(out->text, out->n) >= 0 ||
        (out->n > 0 && memchr(out->text, '\0', (size_t)out->n))) {
        return rq_fail(RQ_ERR_INPUT, "%s: %s %lld is not a string of UTF-8 without zero bytes", t->label, what,
                       (long long)i);
    }
    return RQ_OK;
}

static rq_status read_tokens(rq_tokenizer *t, const rq_store *s) {
    rq_status status = RQ_OK;
    rq_meta_array tokens, merges, types;
    rq_tok_str text;
    if (!rq_meta_array_get(s, "tokenizer.ggml.tokens", &tokens) || tokens.n == 0) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: tokenizer.ggml.tokens is missing", t->label);
    }
    if (!rq_meta_array_get(s, "tokenizer.ggml.merges", &merges)) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: tokenizer.ggml.merges is missing", t->label);
    }
    bool typed = rq_meta_array_get(s, "tokenizer.ggml.token_type", &types);
    if (typed && types.n != tokens.n) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: %lld token types for %lld tokens", t->label, (long long)types.n,
                (long long)tokens.n);
    }
    RQ_TRY(rq_tok_vocab_begin(t, tokens.n, tokens.n - 1));
    for (int64_t i = 0; i < tokens.n; ++i) {
        RQ_TRY(string_at(t, &tokens, i, "token", &text));
        RQ_TRY(rq_tok_vocab_add(t, i, text.text, text.n));
    }
    RQ_TRY(rq_tok_merges_begin(t, merges.n));
    for (int64_t i = 0; i < merges.n; ++i) {
        RQ_TRY(string_at(t, &merges, i, "merge", &text));
        RQ_TRY(rq_tok_merges_add_pair(t, text.text, text.n));
    }
    RQ_TRY(rq_tok_added_begin(t, typed ? tokens.n : 0));
    for (int64_t i = 0; typed && i < tokens.n; ++i) {
        int64_t type;
        if (!rq_meta_array_i64(&types, i, &type)) {
            RQ_FAIL(RQ_ERR_INPUT, "%s: token type %lld is not a whole number", t->label, (long long)i);
        }
        if (type != TOKEN_CONTROL && type != TOKEN_USER) continue;
        rq_tok_added a = {.text = t->tokens[i], .special = type == TOKEN_CONTROL};
        RQ_TRY(rq_tok_added_add(t, &a, i));
    }
done:
    return status;
}

static rq_status read_edge(rq_tokenizer *t, const rq_store *s, const char *flag_key, bool otherwise, const char *id_key,
                           int32_t **ids, int64_t *n) {
    bool wanted = otherwise;
    int64_t id;
    if (!rq_meta_bool(s, flag_key, &wanted)) wanted = otherwise;
    if (!wanted) return RQ_OK;
    if (!rq_meta_i64(s, id_key, &id) || id < 0 || id >= t->n_ids) {
        return rq_fail(RQ_ERR_INPUT, "%s: %s is wanted but %s names no token", t->label, flag_key, id_key);
    }
    rq_status status = rq_alloc((void **)ids, 1, sizeof **ids);
    if (status != RQ_OK) return status;
    (*ids)[0] = (int32_t)id;
    *n = 1;
    return RQ_OK;
}

rq_status rq_tokenizer_open_gguf(rq_tokenizer **out, const rq_store *s) {
    rq_status status = RQ_OK;
    rq_tokenizer *t = NULL;
    bool add_bos = false;
    *out = NULL;
    RQ_TRY(rq_tok_new(&t, rq_store_path(s)));
    RQ_TRY(read_pipeline(t, s, &add_bos));
    RQ_TRY(read_tokens(t, s));
    RQ_TRY(read_edge(t, s, "tokenizer.ggml.add_bos_token", add_bos, "tokenizer.ggml.bos_token_id", &t->prefix,
                     &t->n_prefix));
    RQ_TRY(read_edge(t, s, "tokenizer.ggml.add_eos_token", false, "tokenizer.ggml.eos_token_id", &t->suffix,
                     &t->n_suffix));
    RQ_TRY(rq_tok_finish(t));
    *out = t;
    t = NULL;
done:
    rq_tokenizer_close(t);
    return status;
}
