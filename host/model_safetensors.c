/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors: u64 header length, JSON header, data. Refuses what the safetensors library refuses and a little more
 * (docs/formats.md has the list). */
#include <jansson.h>

#include "model_parse.h"

/* bits per element; dtype RQ_N_DTYPES: known to the format, but nothing here reads it. */
static const struct dtype_row {
    const char *name;
    int bits;
    rq_dtype dtype;
} dtype_rows[] = {
    {"BOOL", 8, RQ_BOOL},
    {"F4", 4, RQ_N_DTYPES},
    {"F6_E2M3", 6, RQ_N_DTYPES},
    {"F6_E3M2", 6, RQ_N_DTYPES},
    {"U8", 8, RQ_U8},
    {"I8", 8, RQ_I8},
    {"F8_E5M2", 8, RQ_F8_E5M2},
    {"F8_E4M3", 8, RQ_F8_E4M3},
    {"F8_E8M0", 8, RQ_N_DTYPES},
    {"F8_E4M3FNUZ", 8, RQ_N_DTYPES},
    {"F8_E5M2FNUZ", 8, RQ_N_DTYPES},
    {"I16", 16, RQ_I16},
    {"U16", 16, RQ_U16},
    {"F16", 16, RQ_F16},
    {"BF16", 16, RQ_BF16},
    {"I32", 32, RQ_I32},
    {"U32", 32, RQ_U32},
    {"F32", 32, RQ_F32},
    {"C64", 64, RQ_N_DTYPES},
    {"F64", 64, RQ_F64},
    {"I64", 64, RQ_I64},
    {"U64", 64, RQ_U64},
};

static const struct dtype_row *find_dtype(const char *name) {
    for (size_t i = 0; name && i < sizeof dtype_rows / sizeof *dtype_rows; ++i) {
        if (strcmp(dtype_rows[i].name, name) == 0) return &dtype_rows[i];
    }
    return NULL;
}

/* Fills rank and shape. */
static rq_status parse_shape(rq_tensor *t, const json_t *shape, const char *label) {
    if (!json_is_array(shape)) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s has no shape array", label, RQ_SHOW(t->name));
    }
    if (json_array_size(shape) > RQ_MAX_RANK) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s has %zu dimensions, more than %d", label, RQ_SHOW(t->name),
                       json_array_size(shape), RQ_MAX_RANK);
    }
    t->rank = (int)json_array_size(shape);
    for (int i = 0; i < t->rank; ++i) {
        const json_t *d = json_array_get(shape, (size_t)i);
        if (!json_is_integer(d) || json_integer_value(d) < 0) {
            return rq_fail(RQ_ERR_INPUT, "%s: tensor %s: dimension %d is not a non-negative integer", label,
                           RQ_SHOW(t->name), i);
        }
        t->shape[i] = json_integer_value(d);
    }
    return RQ_OK;
}

static rq_status parse_offsets(const char *name, const json_t *offsets, int64_t data_bytes, int64_t *begin,
                               int64_t *end, const char *label) {
    const json_t *b = json_array_get(offsets, 0), *e = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(e)) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s: data_offsets are not two integers", label, RQ_SHOW(name));
    }
    *begin = json_integer_value(b);
    *end = json_integer_value(e);
    if (*begin < 0 || *end < *begin || *end > data_bytes) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s lies at bytes %lld to %lld, but the data section has %lld bytes",
                       label, RQ_SHOW(name), (long long)*begin, (long long)*end, (long long)data_bytes);
    }
    return RQ_OK;
}

static rq_status parse_tensor(rq_store *s, int64_t file, const char *name, const json_t *entry, const uint8_t *data,
                              int64_t data_bytes, const char *label) {
    rq_tensor t = {.name = name};
    int64_t begin = 0, end = 0, numel = 0, bits;
    if (!json_is_object(entry)) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s: its entry is not an object", label, RQ_SHOW(name));
    }
    const char *dtype_name = json_string_value(json_object_get(entry, "dtype"));
    const struct dtype_row *row = find_dtype(dtype_name);
    if (!row) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s has %s as dtype, which safetensors does not know", label,
                       RQ_SHOW(name), dtype_name ? RQ_SHOW(dtype_name) : "nothing");
    }
    rq_status status = parse_shape(&t, json_object_get(entry, "shape"), label);
    if (status != RQ_OK) return status;
    status = parse_offsets(name, json_object_get(entry, "data_offsets"), data_bytes, &begin, &end, label);
    if (status != RQ_OK) return status;
    if (!rq_shape_numel(t.shape, t.rank, &numel)) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s: the product of its dimensions overflows", label, RQ_SHOW(name));
    }
    if (!rq_mul_size(numel, row->bits, &bits) || bits % 8 != 0 || bits / 8 != end - begin) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s has %lld elements of %s, but its offsets span %lld bytes", label,
                       RQ_SHOW(name), (long long)numel, row->name, (long long)(end - begin));
    }
    if (row->dtype == RQ_N_DTYPES) {
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s: tensor %s is %s, which is not read here", label, RQ_SHOW(name),
                       row->name);
    }
    t.dtype = row->dtype;
    t.data = data + begin;
    t.n_bytes = end - begin;
    return rq_store_add(s, &t, file);
}

static rq_status parse_metadata(rq_store *s, json_t *pairs, const char *label) {
    const char *key;
    json_t *value;
    if (!json_is_object(pairs)) return rq_fail(RQ_ERR_INPUT, "%s: __metadata__ is not an object", label);
    json_object_foreach(pairs, key, value) {
        rq_meta *m;
        const char *kept;
        if (!json_is_string(value)) {
            return rq_fail(RQ_ERR_INPUT, "%s: __metadata__ entry %s is not a string", label, RQ_SHOW(key));
        }
        rq_status status = rq_store_add_meta(s, key, (int64_t)strlen(key), &m);
        if (status != RQ_OK) return status;
        status = rq_store_keep(s, json_string_value(value), (int64_t)json_string_length(value), &kept);
        if (status != RQ_OK) return status;
        m->type = RQ_META_STR;
        m->value = (const uint8_t *)kept;
        m->n_bytes = (int64_t)json_string_length(value);
    }
    return RQ_OK;
}

static int by_place(const void *a, const void *b) {
    const rq_tensor *x = &((const rq_slot *)a)->t, *y = &((const rq_slot *)b)->t;
    const uint8_t *p = x->data, *q = y->data;
    if (p != q) return p < q ? -1 : 1;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes); /* empty ones first */
}

/* Ranges sorted by where they begin must follow each other without a gap, from the first data byte to the last. */
static rq_status check_layout(rq_slot *slot, int64_t n, const uint8_t *data, int64_t data_bytes, const char *label) {
    int64_t at = 0;
    if (!slot) n = 0; /* a file without tensors has no list */
    if (n > 1) qsort(slot, (size_t)n, sizeof *slot, by_place);
    for (int64_t i = 0; i < n; ++i) {
        int64_t begin = (const uint8_t *)slot[i].t.data - data;
        if (begin != at) {
            return rq_fail(RQ_ERR_INPUT, "%s: tensor %s begins at byte %lld, %s: the one before ends at %lld", label,
                           RQ_SHOW(slot[i].t.name), (long long)begin, begin < at ? "an overlap" : "a hole",
                           (long long)at);
        }
        at = begin + slot[i].t.n_bytes;
    }
    if (at != data_bytes) {
        return rq_fail(RQ_ERR_INPUT, "%s: %lld bytes follow the last tensor", label, (long long)(data_bytes - at));
    }
    return RQ_OK;
}

rq_status rq_parse_safetensors(rq_store *s, int64_t file, const char *label) {
    rq_status status = RQ_OK;
    const rq_file *f = &s->file[file];
    json_t *root = NULL, *value;
    const char *key;
    json_error_t err;
    uint64_t n_header;
    int64_t first = s->n_slot;
    if (f->n_bytes < 8) {
        return rq_fail(RQ_ERR_INPUT, "%s has %lld bytes, too few for a safetensors file", label, (long long)f->n_bytes);
    }
    memcpy(&n_header, f->base, sizeof n_header);
    if (n_header > (uint64_t)RQ_MAX_HEADER_BYTES) {
        return rq_fail(RQ_ERR_INPUT,
                       "%s: claims a safetensors header of %llu bytes, more than %lld: is it such a file?", label,
                       (unsigned long long)n_header, (long long)RQ_MAX_HEADER_BYTES);
    }
    if ((int64_t)n_header > f->n_bytes - 8) {
        return rq_fail(RQ_ERR_INPUT, "%s: claims a header of %llu bytes, but the file has %lld", label,
                       (unsigned long long)n_header, (long long)f->n_bytes);
    }
    if (n_header == 0 || f->base[8] != '{') {
        return rq_fail(RQ_ERR_INPUT, "%s: the safetensors header does not begin with {", label);
    }
    root = json_loadb((const char *)f->base + 8, (size_t)n_header, JSON_REJECT_DUPLICATES, &err);
    if (!root) RQ_FAIL(RQ_ERR_INPUT, "%s: header, byte %d: %s", label, err.position, RQ_SHOW(err.text));
    if ((int64_t)json_object_size(root) > RQ_MAX_TENSORS) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: has %zu header entries, more than %lld", label, json_object_size(root),
                (long long)RQ_MAX_TENSORS);
    }
    const uint8_t *data = f->base + 8 + n_header;
    int64_t data_bytes = f->n_bytes - 8 - (int64_t)n_header;
    json_object_foreach(root, key, value) {
        if (strcmp(key, "__metadata__") == 0) {
            RQ_TRY(parse_metadata(s, value, label));
            continue;
        }
        if ((int64_t)strlen(key) > RQ_MAX_NAME_BYTES) {
            RQ_FAIL(RQ_ERR_INPUT, "%s: a tensor name has %zu bytes, more than %lld", label, strlen(key),
                    (long long)RQ_MAX_NAME_BYTES);
        }
        RQ_TRY(parse_tensor(s, file, key, value, data, data_bytes, label));
    }
    rq_slot *mine = s->slot ? s->slot + first : NULL;
    RQ_TRY(check_layout(mine, s->n_slot - first, data, data_bytes, label));
done:
    json_decref(root);
    return status;
}
