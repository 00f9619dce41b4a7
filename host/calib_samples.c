/* SPDX-License-Identifier: Apache-2.0 */
/* Calibration and evaluation windows from text, JSON lines or token ids. */
#include <jansson.h>

#include "quantize.h"
#include "tokenizer.h"

enum { MAX_TEXT_BYTES = 1 << 30, DEFAULT_SEQ_LEN = 2048 };

typedef struct id_list {
    int32_t *ids;
    int64_t n, capacity;
} id_list;

static rq_status append(id_list *l, const int32_t *ids, int64_t n) {
    if (l->n + n > l->capacity) {
        int64_t capacity = rq_max_i64(2 * l->capacity, l->n + n);
        int32_t *p = realloc(l->ids, (size_t)capacity * sizeof *p);
        if (!p) return rq_fail(RQ_ERR_NOMEM, "out of memory for %lld token ids", (long long)capacity);
        l->ids = p;
        l->capacity = capacity;
    }
    if (n > 0) memcpy(l->ids + l->n, ids, (size_t)n * sizeof *ids);
    l->n += n;
    return RQ_OK;
}

static rq_status append_text(id_list *l, const rq_tokenizer *t, const char *text, int64_t n_bytes) {
    int32_t *ids = NULL;
    int64_t n = 0;
    rq_status status = rq_tokenizer_encode(t, text, n_bytes, false, &ids, &n);
    if (status == RQ_OK) status = append(l, ids, n);
    free(ids);
    return status;
}

static rq_status append_jsonl(id_list *l, const rq_tokenizer *t, const char *path, const char *text, int64_t n_bytes,
                              const char *field) {
    int64_t line_number = 0;
    for (const char *line = text, *end = text + n_bytes; line < end; ++line_number) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        size_t n = (size_t)((stop ? stop : end) - line);
        json_error_t where;
        bool blank = true;
        for (size_t i = 0; i < n; ++i) blank = blank && (line[i] == ' ' || line[i] == '\t' || line[i] == '\r');
        json_t *j = blank ? NULL : json_loadb(line, n, JSON_REJECT_DUPLICATES, &where);
        json_t *v = json_object_get(j, field);
        rq_status status = RQ_OK;
        if (!blank && !json_is_string(v)) {
            status =
                rq_fail(RQ_ERR_INPUT, "%s line %lld: no string under \"%s\"", path, (long long)line_number + 1, field);
        } else if (!blank) {
            status = append_text(l, t, json_string_value(v), (int64_t)json_string_length(v));
        }
        json_decref(j);
        if (status != RQ_OK) return status;
        line = stop ? stop + 1 : end;
    }
    return RQ_OK;
}

static bool has_suffix(const char *s, const char *suffix) {
    size_t n = strlen(s), k = strlen(suffix);
    return n >= k && strcmp(s + n - k, suffix) == 0;
}

static rq_status append_ids(id_list *l, const char *path, int64_t *file_seq_len) {
    rq_status status = RQ_OK;
    rq_store *s = NULL;
    RQ_TRY(rq_store_open(&s, path));
    if (rq_store_count(s) != 1)
        RQ_FAIL(RQ_ERR_INPUT, "%s: one tensor of token ids is wanted, it holds %lld", path,
                (long long)rq_store_count(s));
    const rq_tensor *t = rq_store_at(s, 0);
    if ((t->dtype != RQ_I32 && t->dtype != RQ_I64) || t->rank != 2) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: tensor '%s' is %s of rank %d; token ids are I32 or I64 [n_samples, seq_len]", path,
                t->name, rq_dtype_name(t->dtype), t->rank);
    }
    *file_seq_len = t->shape[1];
    for (int64_t i = 0; i < rq_tensor_numel(t); ++i) {
        int32_t id = 0;
        if (t->dtype == RQ_I32) {
            memcpy(&id, (const char *)t->data + 4 * i, 4);
        } else {
            int64_t wide;
            memcpy(&wide, (const char *)t->data + 8 * i, 8);
            id = wide < 0 || wide > INT32_MAX ? -1 : (int32_t)wide;
        }
        if (id < 0) RQ_FAIL(RQ_ERR_INPUT, "%s: token id %lld is out of range", path, (long long)i);
        RQ_TRY(append(l, &id, 1));
    }
done:
    rq_store_close(s);
    return status;
}

rq_status rq_samples_load(rq_samples *s, const char *path, const char *field, const rq_store *model, int64_t n_samples,
                          int64_t seq_len, uint64_t seed) {
    rq_status status = RQ_OK;
    id_list all = {0};
    rq_tokenizer *t = NULL;
    char *text = NULL;
    int64_t n_bytes, file_seq_len = 0;
    *s = (rq_samples){0};
    if (has_suffix(path, ".safetensors")) {
        RQ_TRY(append_ids(&all, path, &file_seq_len));
    } else {
        RQ_TRY(rq_read_file(path, MAX_TEXT_BYTES, &text, &n_bytes));
        if (n_bytes == 0) RQ_FAIL(RQ_ERR_INPUT, "%s is empty", path);
        RQ_TRY(rq_tokenizer_open(&t, model));
        if (has_suffix(path, ".jsonl")) {
            RQ_TRY(append_jsonl(&all, t, path, text, n_bytes, field ? field : "text"));
        } else {
            RQ_TRY(append_text(&all, t, text, n_bytes));
        }
    }
    if (seq_len == 0) seq_len = file_seq_len ? file_seq_len : DEFAULT_SEQ_LEN;
    if (all.n == 0 || !all.ids) RQ_FAIL(RQ_ERR_INPUT, "%s holds no token", path);
    if (all.n < seq_len) {
        RQ_FAIL(RQ_ERR_INPUT, "%s holds %lld tokens, less than one window of %lld", path, (long long)all.n,
                (long long)seq_len);
    }
    s->n_found = all.n / seq_len;
    s->seq_len = seq_len;
    s->n_samples = n_samples == 0 || n_samples > s->n_found ? s->n_found : n_samples;
    RQ_TRY(RQ_NEW(s->ids, s->n_samples * seq_len));
    for (int64_t i = 0; i < s->n_samples; ++i) {
        /* Even steps through the windows; the seed turns the ring. */
        int64_t w =
            (int64_t)(((__int128)i * s->n_found / s->n_samples + (int64_t)(seed % (uint64_t)s->n_found)) % s->n_found);
        memcpy(s->ids + i * seq_len, all.ids + w * seq_len, (size_t)seq_len * sizeof(int32_t));
    }
done:
    free(all.ids);
    free(text);
    rq_tokenizer_close(t);
    if (status != RQ_OK) rq_samples_free(s);
    return status;
}

void rq_samples_free(rq_samples *s) {
    free(s->ids);
    *s = (rq_samples){0};
}
