/* SPDX-License-Identifier: Apache-2.0 */
/* Metadata of a store: lookup by key, scalars and arrays with the types of GGUF. Nothing is assumed aligned. */
#include "model_parse.h"

const rq_meta *rq_store_meta(const rq_store *s, const char *key) {
    int64_t lo = 0, hi = s->n_meta;
    while (lo < hi) {
        int64_t mid = lo + (hi - lo) / 2;
        int order = strcmp(s->meta[mid].key, key);
        if (order == 0) return &s->meta[mid];
        if (order < 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return NULL;
}

static int by_key(const void *a, const void *b) {
    const rq_meta *x = a, *y = b;
    int order = strcmp(x->key, y->key);
    return order ? order : (x->order > y->order) - (x->order < y->order);
}

void rq_store_sort_meta(rq_store *s) {
    if (s->n_meta > 0) qsort(s->meta, (size_t)s->n_meta, sizeof *s->meta, by_key);
}

static bool load_i64(rq_meta_type type, const uint8_t *p, int64_t *v) {
    switch (type) {
    case RQ_META_U8: *v = *p; return true;
    case RQ_META_I8: *v = (int8_t)*p; return true;
    case RQ_META_U16: {
        uint16_t x;
        memcpy(&x, p, sizeof x);
        *v = x;
        return true;
    }
    case RQ_META_I16: {
        int16_t x;
        memcpy(&x, p, sizeof x);
        *v = x;
        return true;
    }
    case RQ_META_U32: {
        uint32_t x;
        memcpy(&x, p, sizeof x);
        *v = x;
        return true;
    }
    case RQ_META_I32: {
        int32_t x;
        memcpy(&x, p, sizeof x);
        *v = x;
        return true;
    }
    case RQ_META_U64: {
        uint64_t x;
        memcpy(&x, p, sizeof x);
        *v = (int64_t)x;
        return x <= INT64_MAX;
    }
    case RQ_META_I64: memcpy(v, p, sizeof *v); return true;
    default: return false;
    }
}

static bool load_f64(rq_meta_type type, const uint8_t *p, double *v) {
    if (type == RQ_META_F32) {
        float x;
        memcpy(&x, p, sizeof x);
        *v = (double)x;
        return true;
    }
    if (type == RQ_META_F64) {
        memcpy(v, p, sizeof *v);
        return true;
    }
    int64_t i;
    if (!load_i64(type, p, &i)) return false;
    *v = (double)i;
    return true;
}

bool rq_meta_i64(const rq_store *s, const char *key, int64_t *v) {
    const rq_meta *m = rq_store_meta(s, key);
    return m && load_i64(m->type, m->value, v);
}

bool rq_meta_f64(const rq_store *s, const char *key, double *v) {
    const rq_meta *m = rq_store_meta(s, key);
    return m && load_f64(m->type, m->value, v);
}

bool rq_meta_bool(const rq_store *s, const char *key, bool *v) {
    const rq_meta *m = rq_store_meta(s, key);
    if (!m || m->type != RQ_META_BOOL) return false;
    *v = *m->value != 0;
    return true;
}

bool rq_meta_str(const rq_store *s, const char *key, const char **text, int64_t *n_bytes) {
    const rq_meta *m = rq_store_meta(s, key);
    if (!m || m->type != RQ_META_STR) return false;
    *text = (const char *)m->value;
    *n_bytes = m->n_bytes;
    return true;
}

bool rq_meta_array_get(const rq_store *s, const char *key, rq_meta_array *a) {
    const rq_meta *m = rq_store_meta(s, key);
    if (!m || m->type != RQ_META_ARRAY) return false;
    *a = m->array;
    return true;
}

bool rq_meta_array_str(const rq_meta_array *a, int64_t i, const char **text, int64_t *n_bytes) {
    if (a->type != RQ_META_STR || i < 0 || i >= a->n) return false;
    const uint8_t *p = (const uint8_t *)a->base + a->string_offset[i];
    uint64_t len;
    memcpy(&len, p, sizeof len); /* the parser has checked it against the end of the file */
    *text = (const char *)p + sizeof len;
    *n_bytes = (int64_t)len;
    return true;
}

static const uint8_t *element(const rq_meta_array *a, int64_t i) {
    static const int8_t size[RQ_N_META_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (i < 0 || i >= a->n || a->type < 0 || a->type >= RQ_N_META_TYPES || size[a->type] == 0) return NULL;
    return (const uint8_t *)a->first + i * size[a->type];
}

bool rq_meta_array_i64(const rq_meta_array *a, int64_t i, int64_t *v) {
    const uint8_t *p = element(a, i);
    return p && load_i64((rq_meta_type)a->type, p, v);
}

bool rq_meta_array_f64(const rq_meta_array *a, int64_t i, double *v) {
    const uint8_t *p = element(a, i);
    return p && load_f64((rq_meta_type)a->type, p, v);
}
