/* SPDX-License-Identifier: Apache-2.0 */
/* Reading tokenizer.json. What is not understood is refused by its name: a tokenizer that is nearly right gives ids that
 * are nearly right, which nobody notices until a model answers badly. */
#include <jansson.h>

#include "model_parse.h"
#include "tokenizer_impl.h"

#define MAX_NESTED 8

static rq_tok_str str_of(const json_t *s) { return (rq_tok_str){json_string_value(s), (int64_t)json_string_length(s)}; }

static bool is_empty(const json_t *v) { return !v || json_is_null(v); }

/* The "type" of a part; "" when there is none. */
static const char *type_of(const json_t *part) {
    const char *type = json_string_value(json_object_get(part, "type"));
    return type ? type : "";
}

static rq_status refuse(const rq_tokenizer *t, const char *part, const char *name) {
    return rq_fail(RQ_ERR_UNSUPPORTED, "%s: %s '%s' is not supported", t->label, part, RQ_SHOW(name));
}

static bool flag(const json_t *part, const char *key, bool otherwise) {
    const json_t *v = json_object_get(part, key);
    return json_is_boolean(v) ? json_is_true(v) : otherwise;
}

/* The list under `key` of a Sequence. */
static rq_status list_of(const rq_tokenizer *t, const json_t *part, const char *key, int depth, const json_t **list) {
    *list = json_object_get(part, key);
    if (!json_is_array(*list)) return rq_fail(RQ_ERR_INPUT, "%s: a Sequence without its list '%s'", t->label, key);
    if (depth == MAX_NESTED) return rq_fail(RQ_ERR_UNSUPPORTED, "%s: Sequences nested %d deep", t->label, depth);
    return RQ_OK;
}

/* ---- model ---- */

static rq_status read_vocab(rq_tokenizer *t, json_t *vocab, const json_t *added) {
    rq_status status = RQ_OK;
    const char *text;
    json_t *id, *a;
    size_t text_len, i;
    json_int_t max_id = -1;
    if (!json_is_object(vocab)) RQ_FAIL(RQ_ERR_INPUT, "%s: the model has no vocabulary", t->label);
    json_object_foreach(vocab, text, id) {
        if (!json_is_integer(id) || json_integer_value(id) < 0) {
            RQ_FAIL(RQ_ERR_INPUT, "%s: the id of token '%s' is not a whole number", t->label, RQ_SHOW(text));
        }
        if (json_integer_value(id) > max_id) max_id = json_integer_value(id);
    }
    json_array_foreach(added, i, a) {
        json_int_t k = json_integer_value(json_object_get(a, "id"));
        if (k > max_id) max_id = k;
    }
    RQ_TRY(rq_tok_vocab_begin(t, (int64_t)json_object_size(vocab), (int64_t)max_id));
    json_object_keylen_foreach(vocab, text, text_len, id) {
        RQ_TRY(rq_tok_vocab_add(t, (int64_t)json_integer_value(id), text, (int64_t)text_len));
    }
done:
    return status;
}

static rq_status read_merges(rq_tokenizer *t, const json_t *merges) {
    rq_status status = RQ_OK;
    size_t i;
    json_t *m;
    if (!json_is_array(merges)) RQ_FAIL(RQ_ERR_INPUT, "%s: the model has no merges", t->label);
    RQ_TRY(rq_tok_merges_begin(t, (int64_t)json_array_size(merges)));
    json_array_foreach(merges, i, m) {
        const json_t *a = json_array_get(m, 0), *b = json_array_get(m, 1);
        if (json_is_string(m)) {
            rq_tok_str pair = str_of(m);
            RQ_TRY(rq_tok_merges_add_pair(t, pair.text, pair.n));
        } else if (json_array_size(m) == 2 && json_is_string(a) && json_is_string(b)) {
            RQ_TRY(rq_tok_merges_add(t, str_of(a), str_of(b)));
        } else {
            RQ_FAIL(RQ_ERR_INPUT, "%s: merge %zu is neither a string nor two of them", t->label, i);
        }
    }
done:
    return status;
}

static rq_status read_model(rq_tokenizer *t, const json_t *model, const json_t *added) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    rq_status status = RQ_OK;
    if (!json_is_object(model)) RQ_FAIL(RQ_ERR_INPUT, "%s: there is no model", t->label);
    /* Files of the first years name no type; BPE is the one with merges. */
    const char *type = json_object_get(model, "type") ? type_of(model) : json_object_get(model, "merges") ? "BPE" : "";
    if (strcmp(type, "BPE") != 0) return refuse(t, "model", type);
    const json_t *dropout = json_object_get(model, "dropout");
    if (!is_empty(dropout) && json_number_value(dropout) != 0) return refuse(t, "model option", "dropout");
    if (flag(model, "byte_fallback", false)) return refuse(t, "model option", "byte_fallback");
    for (int i = 0; i < 2; ++i) {
        const json_t *v = json_object_get(model, affixes[i]);
        if (!is_empty(v) && !(json_is_string(v) && json_string_length(v) == 0)) {
            return refuse(t, "model option", affixes[i]);
        }
    }
    t->ignore_merges = flag(model, "ignore_merges", false);
    t->fuse_unk = flag(model, "fuse_unk", false);
    RQ_TRY(read_vocab(t, json_object_get(model, "vocab"), added));
    RQ_TRY(read_merges(t, json_object_get(model, "merges")));
    const json_t *unk = json_object_get(model, "unk_token");
    if (json_is_string(unk)) {
        t->unk_id = rq_tok_model_id(t, json_string_value(unk), (int64_t)json_string_length(unk));
        if (t->unk_id < 0) {
            RQ_FAIL(RQ_ERR_INPUT, "%s: unk_token '%s' is not in the vocabulary", t->label,
                    RQ_SHOW(json_string_value(unk)));
        }
    }
done:
    return status;
}

/* ---- normalizer, pre-tokenizer, decoder ---- */

static rq_status read_normalizer(rq_tokenizer *t, const json_t *part, int depth) {
    const json_t *list;
    size_t i;
    json_t *p;
    if (is_empty(part)) return RQ_OK;
    if (strcmp(type_of(part), "NFC") == 0) {
        t->nfc = true;
        return RQ_OK;
    }
    if (strcmp(type_of(part), "Sequence") != 0) return refuse(t, "normalizer", type_of(part));
    rq_status status = list_of(t, part, "normalizers", depth, &list);
    json_array_foreach(list, i, p) {
        if (status == RQ_OK) status = read_normalizer(t, p, depth + 1);
    }
    return status;
}

static rq_status read_split(rq_tokenizer *t, const json_t *part) {
    rq_tok_pre p = {.kind = RQ_TOK_SPLIT, .invert = flag(part, "invert", false)};
    const json_t *pattern = json_object_get(part, "pattern");
    const json_t *text = json_object_get(pattern, "Regex");
    p.is_regex = text != NULL;
    if (!text) text = json_object_get(pattern, "String");
    if (!json_is_string(text)) return rq_fail(RQ_ERR_INPUT, "%s: a Split without a pattern", t->label);
    const char *behavior = json_string_value(json_object_get(part, "behavior"));
    if (!behavior) behavior = "";
    p.is_removed = strcmp(behavior, "Removed") == 0;
    if (!p.is_removed && strcmp(behavior, "Isolated") != 0) return refuse(t, "Split behavior", behavior);
    return rq_tok_pre_add(t, p, json_string_value(text), (int64_t)json_string_length(text));
}

static rq_status read_pre(rq_tokenizer *t, const json_t *part, int depth) {
    const json_t *list;
    size_t i;
    json_t *p;
    const char *type = type_of(part);
    if (is_empty(part)) return RQ_OK; /* rq_tok_finish says what is missing */
    if (strcmp(type, "ByteLevel") == 0) {
        rq_tok_pre b = {.kind = RQ_TOK_BYTE_LEVEL,
                        .add_prefix_space = flag(part, "add_prefix_space", true),
                        .use_regex = flag(part, "use_regex", true)};
        return rq_tok_pre_add(t, b, NULL, 0);
    }
    if (strcmp(type, "Digits") == 0) {
        rq_tok_pre d = {.kind = RQ_TOK_DIGITS, .individual = flag(part, "individual_digits", false)};
        return rq_tok_pre_add(t, d, NULL, 0);
    }
    if (strcmp(type, "Split") == 0) return read_split(t, part);
    if (strcmp(type, "Sequence") != 0) return refuse(t, "pre_tokenizer", type);
    rq_status status = list_of(t, part, "pretokenizers", depth, &list);
    json_array_foreach(list, i, p) {
        if (status == RQ_OK) status = read_pre(t, p, depth + 1);
    }
    return status;
}

static rq_status read_decoder(const rq_tokenizer *t, const json_t *part, int depth) {
    const json_t *list;
    size_t i;
    json_t *p;
    if (is_empty(part)) return refuse(t, "decoder", "null");
    if (strcmp(type_of(part), "ByteLevel") == 0) return RQ_OK;
    if (strcmp(type_of(part), "Sequence") != 0) return refuse(t, "decoder", type_of(part));
    rq_status status = list_of(t, part, "decoders", depth, &list);
    if (status == RQ_OK && json_array_size(list) != 1) return refuse(t, "decoder", "Sequence of several");
    json_array_foreach(list, i, p) {
        if (status == RQ_OK) status = read_decoder(t, p, depth + 1);
    }
    return status;
}

/* ---- post-processor ---- */

static rq_status put_ids(rq_tokenizer *t, const json_t *ids, int32_t **to, int64_t *n) {
    size_t i;
    json_t *v;
    json_array_foreach(ids, i, v) {
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || id > RQ_TOK_MAX_ID) {
            return rq_fail(RQ_ERR_INPUT, "%s: the template has an id that is none", t->label);
        }
        int32_t *more = realloc(*to, (size_t)(*n + 1) * sizeof **to);
        if (!more) return rq_fail(RQ_ERR_NOMEM, "%s: out of memory", t->label);
        *to = more;
        more[(*n)++] = (int32_t)id;
    }
    return RQ_OK;
}

/* The template for one text: special tokens around "$A". Templates for pairs are of no use here and not looked at. */
static rq_status read_template(rq_tokenizer *t, const json_t *part) {
    const json_t *single = json_object_get(part, "single"), *specials = json_object_get(part, "special_tokens");
    size_t i;
    json_t *p;
    bool seen_text = false;
    if (!json_is_array(single)) return rq_fail(RQ_ERR_INPUT, "%s: a TemplateProcessing without 'single'", t->label);
    if (t->n_prefix || t->n_suffix) return refuse(t, "post_processor", "TemplateProcessing, twice");
    json_array_foreach(single, i, p) {
        const json_t *text = json_object_get(p, "Sequence");
        if (text) {
            const char *which = json_string_value(json_object_get(text, "id"));
            if (seen_text || !which || strcmp(which, "A") != 0)
                return refuse(t, "template sequence", which ? which : "");
            seen_text = true;
            continue;
        }
        const char *name = json_string_value(json_object_get(json_object_get(p, "SpecialToken"), "id"));
        const json_t *ids = name ? json_object_get(json_object_get(specials, name), "ids") : NULL;
        if (!json_is_array(ids)) {
            return rq_fail(RQ_ERR_INPUT, "%s: the template uses token '%s' without ids", t->label,
                           RQ_SHOW(name ? name : ""));
        }
        rq_status status =
            seen_text ? put_ids(t, ids, &t->suffix, &t->n_suffix) : put_ids(t, ids, &t->prefix, &t->n_prefix);
        if (status != RQ_OK) return status;
    }
    if (!seen_text) return rq_fail(RQ_ERR_INPUT, "%s: the template leaves out the text", t->label);
    return RQ_OK;
}

static rq_status read_post(rq_tokenizer *t, const json_t *part, int depth) {
    const json_t *list;
    size_t i;
    json_t *p;
    if (is_empty(part)) return RQ_OK;
    if (strcmp(type_of(part), "ByteLevel") == 0) return RQ_OK; /* moves offsets only, which we do not have */
    if (strcmp(type_of(part), "TemplateProcessing") == 0) return read_template(t, part);
    if (strcmp(type_of(part), "Sequence") != 0) return refuse(t, "post_processor", type_of(part));
    rq_status status = list_of(t, part, "processors", depth, &list);
    json_array_foreach(list, i, p) {
        if (status == RQ_OK) status = read_post(t, p, depth + 1);
    }
    return status;
}

/* ---- the whole ---- */

static rq_status read_added(rq_tokenizer *t, const json_t *list) {
    rq_status status = RQ_OK;
    size_t i;
    json_t *p;
    RQ_TRY(rq_tok_added_begin(t, (int64_t)json_array_size(list)));
    json_array_foreach(list, i, p) {
        const json_t *content = json_object_get(p, "content"), *id = json_object_get(p, "id");
        if (!json_is_string(content) || !json_is_integer(id)) {
            RQ_FAIL(RQ_ERR_INPUT, "%s: added token %zu lacks its id or content", t->label, i);
        }
        rq_tok_added a = {.text = str_of(content),
                          .special = flag(p, "special", false),
                          .lstrip = flag(p, "lstrip", false),
                          .rstrip = flag(p, "rstrip", false),
                          .single_word = flag(p, "single_word", false)};
        a.normalized = flag(p, "normalized", !a.special);
        RQ_TRY(rq_tok_added_add(t, &a, (int64_t)json_integer_value(id)));
    }
done:
    return status;
}

rq_status rq_tokenizer_open_json(rq_tokenizer **out, const char *json_text, int64_t n_bytes, const char *label) {
    rq_status status = RQ_OK;
    json_error_t error;
    json_t *root = NULL;
    rq_tokenizer *t = NULL;
    *out = NULL;
    if (!json_text || n_bytes < 0) RQ_FAIL(RQ_ERR_ARG, "no tokenizer.json text was given");
    RQ_TRY(rq_tok_new(&t, label ? label : "tokenizer.json"));
    root = json_loadb(json_text, (size_t)n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (!root) RQ_FAIL(RQ_ERR_INPUT, "%s: line %d: %s", t->label, error.line, RQ_SHOW(error.text));
    if (!json_is_object(root)) RQ_FAIL(RQ_ERR_INPUT, "%s: not a JSON object", t->label);
    const json_t *added = json_object_get(root, "added_tokens");
    RQ_TRY(read_normalizer(t, json_object_get(root, "normalizer"), 0));
    RQ_TRY(read_pre(t, json_object_get(root, "pre_tokenizer"), 0));
    RQ_TRY(read_model(t, json_object_get(root, "model"), added));
    RQ_TRY(read_post(t, json_object_get(root, "post_processor"), 0));
    RQ_TRY(read_decoder(t, json_object_get(root, "decoder"), 0));
    RQ_TRY(read_added(t, added));
    RQ_TRY(rq_tok_finish(t));
    if (!is_empty(json_object_get(root, "truncation")) || !is_empty(json_object_get(root, "padding"))) {
        rq_log(RQ_LOG_WARN, "%s: truncation and padding are left to the caller; texts are encoded whole", t->label);
    }
    *out = t;
    t = NULL;
done:
    json_decref(root);
    rq_tokenizer_close(t);
    return status;
}
