/* SPDX-License-Identifier: Apache-2.0 */
/* Writing tokenizer.json, in the layout that the `tokenizers` library writes itself. */
#include <jansson.h>

#include "tokenizer_impl.h"

static json_t *str(rq_tok_str s) { return json_stringn(s.text, (size_t)s.n); }

static json_t *byte_level(bool add_prefix_space, bool use_regex) {
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", add_prefix_space, "trim_offsets",
                     1, "use_regex", use_regex);
}

static json_t *pre_of(const rq_tok_pre *p) {
    switch (p->kind) {
    case RQ_TOK_BYTE_LEVEL: return byte_level(p->add_prefix_space, p->use_regex);
    case RQ_TOK_DIGITS: return json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", p->individual);
    case RQ_TOK_SPLIT:
        return json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", p->is_regex ? "Regex" : "String",
                         p->pattern, "behavior", p->is_removed ? "Removed" : "Isolated", "invert", p->invert);
    }
    return NULL;
}

static json_t *pre_list(const rq_tokenizer *t) {
    if (t->n_pre == 1) return pre_of(&t->pre[0]);
    json_t *list = json_array();
    for (int i = 0; i < t->n_pre; ++i) json_array_append_new(list, pre_of(&t->pre[i]));
    return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", list);
}

static json_t *added_list(const rq_tokenizer *t) {
    json_t *list = json_array();
    for (int64_t i = 0; i < t->n_added; ++i) {
        const rq_tok_added *a = &t->added[i];
        json_array_append_new(list, json_pack("{s:i, s:o, s:b, s:b, s:b, s:b, s:b}", "id", a->id, "content",
                                              str(a->text), "single_word", a->single_word, "lstrip", a->lstrip,
                                              "rstrip", a->rstrip, "normalized", a->normalized, "special", a->special));
    }
    return list;
}

static void template_side(const rq_tokenizer *t, const int32_t *ids, int64_t n, json_t *single, json_t *pair,
                          json_t *specials) {
    for (int64_t i = 0; i < n; ++i) {
        rq_tok_str text = t->tokens[ids[i]];
        json_t *item = json_pack("{s:{s:o, s:i}}", "SpecialToken", "id", str(text), "type_id", 0);
        json_array_append(single, item);
        json_array_append_new(pair, item);
        json_object_setn_new(specials, text.text, (size_t)text.n,
                             json_pack("{s:o, s:[i], s:[o]}", "id", str(text), "ids", ids[i], "tokens", str(text)));
    }
}

static void template_text(json_t *list, const char *which, int type_id) {
    json_array_append_new(list, json_pack("{s:{s:s, s:i}}", "Sequence", "id", which, "type_id", type_id));
}

static json_t *post_of(const rq_tokenizer *t) {
    const rq_tok_pre *last = &t->pre[t->n_pre - 1];
    json_t *bytes = byte_level(last->add_prefix_space, last->use_regex);
    if (t->n_prefix + t->n_suffix == 0) return bytes;
    json_t *single = json_array(), *pair = json_array(), *specials = json_object();
    template_side(t, t->prefix, t->n_prefix, single, pair, specials);
    template_text(single, "A", 0);
    template_text(pair, "A", 0);
    template_text(pair, "B", 1);
    template_side(t, t->suffix, t->n_suffix, single, pair, specials);
    return json_pack("{s:s, s:[o, {s:s, s:o, s:o, s:o}]}", "type", "Sequence", "processors", bytes, "type",
                     "TemplateProcessing", "single", single, "pair", pair, "special_tokens", specials);
}

static json_t *model_of(const rq_tokenizer *t) {
    json_t *vocab = json_object(), *merges = json_array();
    for (int64_t i = 0; i < t->n_ids; ++i) {
        if (!t->in_model[i]) continue;
        json_object_setn_new(vocab, t->tokens[i].text, (size_t)t->tokens[i].n, json_integer((json_int_t)i));
    }
    for (int64_t i = 0; i < t->n_merges; ++i) {
        json_t *m = json_array();
        json_array_append_new(m, str(t->tokens[t->merges[i].left]));
        json_array_append_new(m, str(t->tokens[t->merges[i].right]));
        json_array_append_new(merges, m);
    }
    return json_pack("{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout", "unk_token",
                     t->unk_id < 0 ? json_null() : str(t->tokens[t->unk_id]), "continuing_subword_prefix",
                     "end_of_word_suffix", "fuse_unk", t->fuse_unk, "byte_fallback", 0, "ignore_merges",
                     t->ignore_merges, "vocab", vocab, "merges", merges);
}

rq_status rq_tokenizer_to_json(const rq_tokenizer *t, char **json_text) {
    /* Each part is NULL when memory ran out; packing NULL fails, so only the end has to be looked at. */
    json_t *root = json_pack("{s:s, s:n, s:n, s:o, s:o, s:o, s:o, s:o, s:o}", "version", "1.0", "truncation", "padding",
                             "added_tokens", added_list(t), "normalizer",
                             t->nfc ? json_pack("{s:s}", "type", "NFC") : json_null(), "pre_tokenizer", pre_list(t),
                             "post_processor", post_of(t), "decoder", byte_level(true, true), "model", model_of(t));
    *json_text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!*json_text) return rq_fail(RQ_ERR_NOMEM, "%s: cannot be written as tokenizer.json: out of memory", t->label);
    return RQ_OK;
}
