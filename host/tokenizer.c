/* SPDX-License-Identifier: Apache-2.0 */
/* The tokenizer's public functions, and the parts of building that both file formats share. */
#include <sys/stat.h>
#include <unistd.h>

#include "model_parse.h"
#include "tokenizer_impl.h"

#define MAX_FILE_BYTES  ((int64_t)256 << 20)
#define JIT_STACK_BYTES ((size_t)32 << 20)
#define BASE_STEPS      64000000 /* what costly matches of one encode may take, plus STEPS_PER_BYTE for each byte */
#define STEPS_PER_BYTE  64

/* ---- building ---- */

rq_status rq_tok_new(rq_tokenizer **out, const char *label) {
    rq_status status = rq_alloc_zero((void **)out, 1, sizeof **out);
    if (status != RQ_OK) return status;
    (*out)->unk_id = -1;
    (*out)->label = strdup(label);
    if ((*out)->label) return RQ_OK;
    free(*out);
    *out = NULL;
    return rq_fail(RQ_ERR_NOMEM, "out of memory");
}

void rq_tokenizer_close(rq_tokenizer *t) {
    if (!t) return;
    for (int i = 0; i < t->n_pre; ++i) {
        pcre2_code_free(t->pre[i].code);
        free(t->pre[i].pattern);
    }
    rq_tok_free_chunks(t);
    free(t->label);
    free(t->tokens);
    free(t->slots);
    free(t->in_model);
    free(t->merges);
    free(t->merge_slots);
    free(t->added);
    free(t->added_of_id);
    free(t->by_text.nodes);
    free(t->raw.nodes);
    free(t->normal.nodes);
    free(t->prefix);
    free(t->suffix);
    free(t);
}

int64_t rq_tokenizer_n_vocab(const rq_tokenizer *t) { return t->n_ids; }

rq_status rq_tok_added_begin(rq_tokenizer *t, int64_t n) { return RQ_NEW(t->added, n); }

/* The reference gives an added token the id that the vocabulary has for its text, else the next free one, and only warns
 * when the file says otherwise. A file where the two differ is not what its writer meant: refused. */
rq_status rq_tok_added_add(rq_tokenizer *t, const rq_tok_added *a, int64_t declared_id) {
    const char *text = a->text.text;
    int64_t n = a->text.n, id = rq_tok_model_id(t, text, n);
    int32_t index;
    if (n == 0) return RQ_OK; /* matches nothing; the reference leaves it out */
    rq_status status = rq_tok_trie_add(&t->by_text, a->text, (int32_t)t->n_added, &index);
    if (status != RQ_OK) return status;
    if (t->n_added == 0) t->next_added_id = t->n_model;
    if (index < t->n_added) id = t->added[index].id;
    if (id < 0) id = t->next_added_id++;
    if (id != declared_id || id >= t->n_ids) {
        return rq_fail(RQ_ERR_INPUT, "%s: added token '%s' says id %lld, but vocabulary and order give %lld", t->label,
                       rq_show(text, n).text, (long long)declared_id, (long long)id);
    }
    rq_tok_str kept = t->tokens[id];
    if (kept.text && (kept.n != n || memcmp(kept.text, text, (size_t)n) != 0)) {
        return rq_fail(RQ_ERR_INPUT, "%s: added token '%s' and token '%s' have the same id %lld", t->label,
                       rq_show(text, n).text, rq_show(kept.text, kept.n).text, (long long)id);
    }
    if (!kept.text) {
        status = rq_tok_keep(t, &kept, text, n);
        if (status != RQ_OK) return status;
        t->tokens[id] = kept;
    }
    t->added[index] = *a;
    t->added[index].id = (int32_t)id;
    t->added[index].text = t->added[index].matched = kept;
    t->added_of_id[id] = (int32_t)index;
    if (index == t->n_added) ++t->n_added;
    return RQ_OK;
}

static rq_status finish_added(rq_tokenizer *t) {
    rq_status status = RQ_OK;
    rq_tok_buf buf = {0};
    for (int64_t i = 0; i < t->n_added; ++i) {
        rq_tok_added *a = &t->added[i];
        int32_t found;
        if (a->normalized && t->nfc) {
            buf.n = 0;
            RQ_TRY(rq_tok_nfc(&buf, a->text.text, a->text.n));
            RQ_TRY(rq_tok_keep(t, &a->matched, buf.data, buf.n));
        }
        RQ_TRY(rq_tok_trie_add(a->normalized ? &t->normal : &t->raw, a->matched, (int32_t)i, &found));
        if (found != i) {
            RQ_FAIL(RQ_ERR_INPUT, "%s: added token '%s' is the same as an earlier one once normalized", t->label,
                    rq_show(a->text.text, a->text.n).text);
        }
    }
done:
    free(buf.data);
    return status;
}

rq_status rq_tok_finish(rq_tokenizer *t) {
    for (int i = 0; i < t->n_pre; ++i) {
        if ((t->pre[i].kind == RQ_TOK_BYTE_LEVEL) != (i == t->n_pre - 1)) {
            return rq_fail(RQ_ERR_UNSUPPORTED, "%s: pre_tokenizer 'ByteLevel' anywhere but last is not supported",
                           t->label);
        }
    }
    if (t->n_pre == 0) {
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s: a BPE model without pre_tokenizer 'ByteLevel' is not supported",
                       t->label);
    }
    for (unsigned b = 0; b < 256; ++b) {
        char letter[4];
        t->byte_id[b] = rq_tok_model_id(t, letter, rq_tok_char_put(rq_tok_byte_char(b), letter));
    }
    for (int64_t i = 0; i < t->n_prefix + t->n_suffix; ++i) {
        int32_t id = i < t->n_prefix ? t->prefix[i] : t->suffix[i - t->n_prefix];
        if (id < 0 || id >= t->n_ids) {
            return rq_fail(RQ_ERR_INPUT, "%s: the template uses id %d of %lld", t->label, id, (long long)t->n_ids);
        }
    }
    return finish_added(t);
}

/* ---- encode ---- */

static rq_status encode_part(rq_tok_run *r, const char *text, int64_t n) {
    rq_status status = RQ_OK;
    const rq_tokenizer *t = r->t;
    rq_tok_buf normal = {0};
    rq_tok_spans spans = {0};
    if (t->nfc) {
        RQ_TRY(rq_tok_nfc(&normal, text, n));
        text = normal.data;
        n = normal.n;
    }
    RQ_TRY(rq_tok_added_find(&spans, &t->normal, t->added, text, n));
    for (int64_t i = 0; i < spans.n; ++i) {
        const rq_tok_span *s = &spans.items[i];
        if (s->added >= 0) {
            RQ_TRY(rq_tok_run_put(r, t->added[s->added].id));
        } else {
            RQ_TRY(rq_tok_run_text(r, 0, text + s->start, s->end - s->start));
        }
    }
done:
    free(spans.items);
    free(normal.data);
    return status;
}

static rq_status put_all(rq_tok_run *r, const int32_t *ids, int64_t n) {
    rq_status status = RQ_OK;
    for (int64_t i = 0; i < n && status == RQ_OK; ++i) status = rq_tok_run_put(r, ids[i]);
    return status;
}

static rq_status run_begin(rq_tok_run *r, const rq_tokenizer *t, int64_t n_bytes) {
    *r = (rq_tok_run){.t = t, .steps_left = BASE_STEPS + STEPS_PER_BYTE * n_bytes};
    r->match = pcre2_match_data_create(1, NULL); /* only where the whole match lies */
    r->context = pcre2_match_context_create(NULL);
    r->jit_stack =
        pcre2_jit_stack_create((size_t)32 << 10, JIT_STACK_BYTES, NULL); /* NULL: a smaller default is used */
    if (!r->match || !r->context) return rq_fail(RQ_ERR_NOMEM, "%s: out of memory", t->label);
    pcre2_jit_stack_assign(r->context, NULL, r->jit_stack);
    pcre2_set_heap_limit(r->context, (uint32_t)(JIT_STACK_BYTES >> 10)); /* of the interpreter, in KiB */
    return RQ_OK;
}

static void run_end(rq_tok_run *r) {
    pcre2_match_data_free(r->match);
    pcre2_match_context_free(r->context);
    pcre2_jit_stack_free(r->jit_stack);
    free(r->work);
    free(r->ids);
}

rq_status rq_tokenizer_encode(const rq_tokenizer *t, const char *text, int64_t n_bytes, bool add_special, int32_t **ids,
                              int64_t *n_ids) {
    rq_status status = RQ_OK;
    rq_tok_run r = {0};
    rq_tok_spans spans = {0};
    *ids = NULL;
    *n_ids = 0;
    if (n_bytes < 0 || (n_bytes > 0 && !text) || n_bytes > INT64_MAX / 256) {
        return rq_fail(RQ_ERR_ARG, "a text of %lld bytes cannot be encoded", (long long)n_bytes);
    }
    int64_t bad = rq_tok_utf8_bad_offset(text, n_bytes);
    if (bad >= 0) {
        return rq_fail(RQ_ERR_INPUT, "the text is not UTF-8: byte 0x%02x at offset %lld", (unsigned)(uint8_t)text[bad],
                       (long long)bad);
    }
    RQ_TRY(run_begin(&r, t, n_bytes));
    if (add_special) RQ_TRY(put_all(&r, t->prefix, t->n_prefix));
    RQ_TRY(rq_tok_added_find(&spans, &t->raw, t->added, text, n_bytes));
    for (int64_t i = 0; i < spans.n; ++i) {
        const rq_tok_span *s = &spans.items[i];
        if (s->added >= 0) {
            RQ_TRY(rq_tok_run_put(&r, t->added[s->added].id));
        } else {
            RQ_TRY(encode_part(&r, text + s->start, s->end - s->start));
        }
    }
    if (add_special) RQ_TRY(put_all(&r, t->suffix, t->n_suffix));
    if (r.n_dropped > 0) {
        rq_log(RQ_LOG_WARN, "%s: %lld bytes of the text have no token and were left out", t->label,
               (long long)r.n_dropped);
    }
    if (!r.ids) RQ_TRY(RQ_NEW(r.ids, 0)); /* an empty list is still something to free */
    *ids = r.ids;
    *n_ids = r.n;
    r.ids = NULL;
done:
    free(spans.items);
    run_end(&r);
    return status;
}

/* ---- decode ---- */

static rq_status put_bytes(rq_tok_buf *out, rq_tok_str letters) {
    int64_t before = out->n;
    for (int64_t i = 0; i < letters.n;) {
        int len;
        int byte = rq_tok_char_byte(rq_tok_char_at(letters.text + i, &len));
        if (byte < 0) { /* not in byte letters: the text itself */
            out->n = before;
            return rq_tok_buf_add(out, letters.text, letters.n);
        }
        char c = (char)byte;
        rq_status status = rq_tok_buf_add(out, &c, 1);
        if (status != RQ_OK) return status;
        i += len;
    }
    return RQ_OK;
}

rq_status rq_tokenizer_decode(const rq_tokenizer *t, const int32_t *ids, int64_t n_ids, bool skip_special, char **text,
                              int64_t *n_bytes) {
    rq_status status = RQ_OK;
    rq_tok_buf out = {0};
    *text = NULL;
    *n_bytes = 0;
    for (int64_t i = 0; i < n_ids; ++i) {
        if (ids[i] < 0) RQ_FAIL(RQ_ERR_ARG, "id %d at position %lld is negative", ids[i], (long long)i);
        if (ids[i] >= t->n_ids || !t->tokens[ids[i]].text) continue; /* padding rows of a model have no text */
        int32_t k = t->added_of_id[ids[i]];
        if (skip_special && k >= 0 && t->added[k].special) continue;
        RQ_TRY(put_bytes(&out, k >= 0 ? t->added[k].matched : t->tokens[ids[i]]));
    }
    RQ_TRY(rq_tok_buf_add(&out, "", 1));
    *text = out.data;
    *n_bytes = out.n - 1;
    out.data = NULL;
done:
    free(out.data);
    return status;
}

/* ---- open ---- */

rq_status rq_tokenizer_open(rq_tokenizer **out, const rq_store *s) {
    rq_status status = RQ_OK;
    const char *dir = ".";
    char *folder = NULL, *path = NULL, *text = NULL;
    int64_t n;
    struct stat st;
    *out = NULL;
    if (rq_store_is_gguf(s)) return rq_tokenizer_open_gguf(out, s);
    const char *store_path = rq_store_path(s);
    folder = strdup(store_path);
    if (!folder) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (stat(store_path, &st) == 0 && S_ISDIR(st.st_mode)) {
        dir = store_path;
    } else {
        char *slash = strrchr(folder, '/');
        if (slash) {
            slash[slash == folder ? 1 : 0] = '\0';
            dir = folder;
        }
    }
    path = rq_path_join(dir, "tokenizer.json");
    if (!path) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (access(path, F_OK) != 0) {
        RQ_FAIL(RQ_ERR_INPUT, "there is no %s: put the tokenizer there, or give token ids instead of text", path);
    }
    RQ_TRY(rq_read_file(path, MAX_FILE_BYTES, &text, &n));
    RQ_TRY(rq_tokenizer_open_json(out, text, n, path));
done:
    free(text);
    free(path);
    free(folder);
    return status;
}
