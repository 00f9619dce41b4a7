/* SPDX-License-Identifier: Apache-2.0 */
/* VPTQ checkpoints: vectors along outputs; rq_peer_vptq.
 *
 *   NAME.indices              I32 [C, ceil(n_out / v), ceil(size T / 32)]  for each codebook and v outputs a stream over its columns, T bits
 *                                                                          each: the main index in the low bits, the residual one above
 *   NAME.centroids.weight     F16 or BF16 [C, k v]
 *   NAME.res_centroids.weight [C, kr v]    with a residual
 *   NAME.perm                 I16 (the bits of uint16) [n_in]  stored column j is input feature perm[j]; absent: the same order
 *   NAME.weight_scale, NAME.weight_bias  [n_in], both or neither
 *
 * C codebooks are for `size` = n_in / C stored columns each. A weight is (centroid + residual) weight_scale + weight_bias. Outlier columns
 * with a codebook of their own have no place here. Each matrix has its settings in config_for_layers, by its full name. */
#include "model_parse.h"
#include "pack_common.h"
#include "peer.h"

static const char *const suffixes[] = {
    ".indices",     ".centroids.weight", ".res_centroids.weight",     ".perm", ".weight_scale",
    ".weight_bias", ".outlier_indices",  ".outlier_centroids.weight", NULL};
static const char peer_name[] = "VPTQ";

enum { MAX_PERM = 65536 };

/* ---- reading ---- */

/* Element 1 of a list of two: the main part; element 0 is of outliers. */
static rq_status main_of(json_t *entry, const char *to, const json_t *layer, const char *key, const char *name) {
    const json_t *v = json_array_get(json_object_get(layer, key), 1);
    if (!json_is_integer(v)) return rq_fail(RQ_ERR_INPUT, "%s: %s is no list of two integers", RQ_SHOW(name), key);
    json_object_set_new(entry, to, json_integer(json_integer_value(v)));
    return RQ_OK;
}

static rq_status read_layer(json_t *entry, const json_t *layer, const char *name) {
    rq_status status = RQ_OK;
    static const char *const sizes[] = {"in_features", "out_features", "group_num", "group_size"};
    const char *axis = json_string_value(json_object_get(layer, "vector_quant_dim"));
    int64_t v;
    RQ_TRY(main_of(entry, "vec_len", layer, "vector_lens", name));
    RQ_TRY(main_of(entry, "centroids", layer, "num_centroids", name));
    RQ_TRY(main_of(entry, "residuals", layer, "num_res_centroids", name));
    for (int i = 0; i < 4; ++i) {
        RQ_TRY(rq_peer_int(layer, sizes[i], 1, INT32_MAX, INT64_MIN, &v));
        json_object_set_new(entry, sizes[i], json_integer(v));
    }
    RQ_TRY(rq_peer_int(layer, "outlier_size", 0, INT32_MAX, 0, &v));
    if (v > 0)
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: %lld outlier columns with a codebook of their own are not read", RQ_SHOW(name),
                (long long)v);
    if (!json_is_true(json_object_get(layer, "is_indice_packed")) ||
        json_is_true(json_object_get(layer, "indices_as_float")))
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: indices that are not packed to 32-bit words are not read", RQ_SHOW(name));
    if (axis && strcmp(axis, "out") != 0)
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: vector_quant_dim %s is not read (out is)", RQ_SHOW(name), RQ_SHOW(axis));
    json_object_set_new(entry, "perm", json_boolean(json_is_true(json_object_get(layer, "enable_perm"))));
    json_object_set_new(entry, "norm", json_boolean(json_is_true(json_object_get(layer, "enable_norm"))));
done:
    return status;
}

static rq_status describe(json_t *linears, const json_t *config, const rq_store *s) {
    rq_status status = RQ_OK;
    char name[RQ_PEER_NAME];
    const json_t *layers = json_object_get(config, "config_for_layers");
    for (int64_t i = 0; i < rq_store_count(s); ++i) {
        if (!rq_peer_module(name, rq_store_at(s, i)->name, suffixes[0])) continue;
        const json_t *layer = json_object_get(layers, name);
        if (!json_is_object(layer)) RQ_FAIL(RQ_ERR_INPUT, "%s: config_for_layers says nothing of it", RQ_SHOW(name));
        json_t *e = json_pack("{s:s}", "format", "vptq");
        if (!e || json_object_set_new(linears, name, e) != 0) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
        RQ_TRY(read_layer(e, layer, name));
    }
done:
    return status;
}

typedef struct shape {
    int64_t n_in, n_out, vec_len, k[2], n_book, size, n_line, n_words;
    int bits[2]; /* of the main index, of the residual one (0: none) */
    bool perm, norm;
} shape;

static int bits_of(int64_t n) {
    int b = 0;
    while ((int64_t)1 << b < n) ++b;
    return b;
}

static rq_status read_entry(shape *z, const json_t *e, const char *name) {
    rq_status status = RQ_OK;
    RQ_TRY(rq_peer_int(e, "in_features", 1, INT32_MAX, INT64_MIN, &z->n_in));
    RQ_TRY(rq_peer_int(e, "out_features", 1, INT32_MAX, INT64_MIN, &z->n_out));
    RQ_TRY(rq_peer_int(e, "vec_len", 2, RQ_VQ_MAX_VEC, INT64_MIN, &z->vec_len));
    RQ_TRY(rq_peer_int(e, "centroids", 16, 65536, INT64_MIN, &z->k[0]));
    RQ_TRY(rq_peer_int(e, "residuals", -1, 65536, -1, &z->k[1]));
    RQ_TRY(rq_peer_int(e, "group_num", 1, RQ_VQ_MAX_BOOKS, INT64_MIN, &z->n_book));
    RQ_TRY(rq_peer_int(e, "group_size", 1, INT32_MAX, INT64_MIN, &z->size));
    z->perm = json_is_true(json_object_get(e, "perm"));
    z->norm = json_is_true(json_object_get(e, "norm"));
    if (z->k[1] > 0 && z->k[1] < 16)
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: %lld residual centroids; 16 to 65536 are read", name, (long long)z->k[1]);
    if (z->n_book * z->size != z->n_in) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: %lld codebooks for %lld columns each do not make %lld", name, (long long)z->n_book,
                (long long)z->size, (long long)z->n_in);
    }
    z->bits[0] = bits_of(z->k[0]);
    z->bits[1] = z->k[1] > 0 ? bits_of(z->k[1]) : 0;
    z->n_line = rq_ceil_div(z->n_out, z->vec_len);
    z->n_words = rq_ceil_div(z->size * (z->bits[0] + z->bits[1]), 32);
done:
    if (status != RQ_OK) rq_fail_context(status, "%s", name);
    return status;
}

/* Element i of a stream of up to 32 bits each. */
static uint32_t wide_code(const unsigned char *words, int64_t i, int bits) {
    const int64_t p = i * bits;
    const unsigned o = (unsigned)(p & 31);
    uint32_t lo, hi = 0;
    memcpy(&lo, words + (p >> 5) * 4, 4);
    if (o + (unsigned)bits > 32) memcpy(&hi, words + ((p >> 5) + 1) * 4, 4);
    return (uint32_t)(((uint64_t)hi << 32 | lo) >> o & ((UINT64_C(1) << bits) - 1));
}

/* feature[j]: the input feature of stored column j. */
static rq_status read_perm(int32_t **feature, const shape *z, const rq_store *s, const char *name) {
    rq_status status = RQ_OK;
    const rq_tensor *t = NULL;
    bool *seen = NULL;
    RQ_TRY(RQ_NEW(*feature, z->n_in));
    for (int64_t j = 0; j < z->n_in; ++j) (*feature)[j] = (int32_t)j;
    if (!z->perm) goto done;
    RQ_TRY(rq_pack_find(&t, s, name, ".perm", RQ_I16, (int64_t[3]){z->n_in}));
    RQ_TRY(RQ_NEW_ZERO(seen, z->n_in));
    for (int64_t j = 0; j < z->n_in; ++j) {
        uint16_t v;
        memcpy(&v, (const unsigned char *)t->data + 2 * j, 2);
        if (v >= z->n_in || seen[v])
            RQ_FAIL(RQ_ERR_INPUT, "%s.perm: is no permutation: %u at %lld", name, v, (long long)j);
        seen[v] = true;
        (*feature)[j] = v;
    }
done:
    free(seen);
    return status;
}

static rq_status find_floats(rq_peer_floats *f, const shape *z, const rq_store *s, const char *name) {
    static const char *const suffix[2] = {".centroids.weight", ".res_centroids.weight"};
    rq_status status = RQ_OK;
    f->n_book = z->bits[1] ? 2 : 1;
    for (int i = 0; i < f->n_book && i < 2; ++i) {
        const int64_t want[2] = {z->n_book, z->k[i] * z->vec_len};
        RQ_TRY(rq_peer_find_float(&f->book[i], s, name, suffix[i], 2, want));
    }
    if (z->norm) RQ_TRY(rq_peer_find_float(&f->factor, s, name, ".weight_scale", 1, &z->n_in));
done:
    return status;
}

/* weight_bias in fp16, which it must be exact in. */
static rq_status read_bias(rq_f16 **out, const shape *z, const rq_store *s, const char *name) {
    rq_peer_floats f = {.n_book = 1};
    rq_status status = rq_peer_find_float(&f.book[0], s, name, ".weight_bias", 1, &z->n_in);
    if (status == RQ_OK) status = rq_peer_halves(&f, name);
    *out = f.book_f16[0];
    return status;
}

static rq_status read_codes(uint16_t *codes[2], const shape *z, const rq_tensor *t, const int32_t *feature) {
    rq_status status = RQ_OK;
    const int total = z->bits[0] + z->bits[1];
    for (int i = 0; i < (z->bits[1] ? 2 : 1); ++i) RQ_TRY(RQ_NEW(codes[i], z->n_line * z->n_in));
    for (int64_t b = 0; b < z->n_book; ++b) {
        for (int64_t i = 0; i < z->n_line; ++i) {
            const unsigned char *from = (const unsigned char *)t->data + (b * z->n_line + i) * z->n_words * 4;
            for (int64_t j = 0; j < z->size; ++j) {
                const uint32_t v = wide_code(from, j, total);
                const int64_t at = i * z->n_in + feature[b * z->size + j];
                codes[0][at] = (uint16_t)(v & ((1u << z->bits[0]) - 1));
                if (z->bits[1]) codes[1][at] = (uint16_t)(v >> z->bits[0]);
            }
        }
    }
done:
    return status;
}

static rq_status load(rq_packed *p, const rq_store *s, const char *name, const json_t *entry) {
    rq_status status = RQ_OK;
    shape z = {0};
    const rq_tensor *t;
    int32_t *feature = NULL;
    uint16_t *codes[2] = {NULL, NULL};
    uint8_t *book_of = NULL;
    rq_f16 *bias = NULL;
    rq_peer_floats f = {0};
    memset(p, 0, sizeof *p);
    RQ_TRY(read_entry(&z, entry, name));
    RQ_TRY(rq_pack_find(&t, s, name, ".indices", RQ_I32, (int64_t[3]){z.n_book, z.n_line, z.n_words}));
    RQ_TRY(read_perm(&feature, &z, s, name));
    RQ_TRY(find_floats(&f, &z, s, name));
    RQ_TRY(rq_peer_halves(&f, name));
    if (z.norm) RQ_TRY(read_bias(&bias, &z, s, name));
    RQ_TRY(read_codes(codes, &z, t, feature));
    if (z.perm && z.n_book > 1) { /* neighbours have different codebooks */
        RQ_TRY(RQ_NEW(book_of, z.n_in));
        for (int64_t j = 0; j < z.n_in; ++j) book_of[feature[j]] = (uint8_t)(j / z.size);
    }
    const rq_vq_codes c = {.n_out = z.n_out,
                           .n_in = z.n_in,
                           .vec_len = (int)z.vec_len,
                           .n_stage = f.n_book,
                           .vec_out = true,
                           .code_bits = {z.bits[0], z.bits[1]},
                           .n_codes = {z.k[0], z.k[1]},
                           .book_cols = z.size,
                           .group = z.n_in,
                           .codes = {codes[0], codes[1]},
                           .book = {f.book_f16[0], f.book_f16[1]},
                           .book_of = book_of,
                           .col_scale = f.factor_f16,
                           .col_bias = bias};
    status = rq_vq_pack(p, &c);
    if (status == RQ_ERR_ARG) status = rq_fail_context(RQ_ERR_INPUT, "%s", name);
done:
    free(feature);
    free(codes[0]);
    free(codes[1]);
    free(book_of);
    free(bias);
    free(f.book_f16[0]);
    free(f.book_f16[1]);
    free(f.factor_f16);
    return status;
}

/* ---- writing ---- */

static rq_status check(const char *name, const rq_packed *p) {
    rq_status status = RQ_OK;
    const rq_vq *q = &p->u.vq;
    if (p->format != RQ_FORMAT_VQ || !q->vec_out) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED,
                "%s: is packed as %s; %s has codebooks of vectors along outputs (quantize with --preset vptq)", name,
                p->format == RQ_FORMAT_VQ ? "vq along inputs" : rq_format_get(p->format)->name, peer_name);
    }
    if (q->scale || q->n_outlier) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: has %s, which %s has no place for (quantize with --preset vptq)", name,
                q->scale ? "scales of rows" : "outlier columns", peer_name);
    }
    if (q->n_in % q->book_cols) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: codebooks for %lld columns do not divide %lld, as %s wants", name,
                (long long)q->book_cols, (long long)q->n_in, peer_name);
    }
    if (q->n_stage > 1 && q->code_bits[1] > q->code_bits[0]) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED,
                "%s: a residual index of %d bits is wider than the main one of %d; %s does not decode that", name,
                q->code_bits[1], q->code_bits[0], peer_name);
    }
    if (q->book_of && q->n_in > MAX_PERM) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: a permutation of %lld columns; %s has 16 bits for it", name,
                (long long)q->n_in, peer_name);
    }
done:
    return status;
}

/* feature[j] of stored column j: columns in the order of their codebooks, of which each has as many. */
static rq_status sort_columns(int32_t *feature, const rq_vq *q, const char *name) {
    int64_t next[RQ_VQ_MAX_BOOKS] = {0};
    for (int64_t j = 0; j < q->n_in; ++j) {
        if (!q->book_of) {
            feature[j] = (int32_t)j;
            continue;
        }
        const int b = q->book_of[j];
        if (next[b] == q->book_cols) {
            return rq_fail(RQ_ERR_UNSUPPORTED,
                           "%s: codebook %d is for more than %lld columns; %s wants as many for each", name, b,
                           (long long)q->book_cols, peer_name);
        }
        feature[b * q->book_cols + next[b]++] = (int32_t)j;
    }
    return RQ_OK;
}

static void write_indices(uint32_t *words, const rq_vq *q, const int32_t *feature) {
    const int total = q->code_bits[0] + (q->n_stage > 1 ? q->code_bits[1] : 0);
    const int64_t n_words = rq_ceil_div(q->book_cols * total, 32);
    for (int64_t b = 0; b < q->n_book; ++b) {
        for (int64_t i = 0; i < q->n_line; ++i) {
            uint32_t *to = words + (b * q->n_line + i) * n_words;
            for (int64_t j = 0; j < q->book_cols; ++j) {
                const int64_t column = feature[b * q->book_cols + j];
                uint32_t v = rq_vq_code(q, 0, i, column);
                if (q->n_stage > 1) v |= rq_vq_code(q, 1, i, column) << q->code_bits[0];
                rq_put_code(to, 1, j, total, v);
            }
        }
    }
}

/* Entries up to a power of two: what no index names is zero. */
static rq_status write_book(rq_packed_file *f, const char *name, const char *suffix, const rq_vq *q, int stage) {
    rq_f16 *book;
    const int64_t row = (int64_t)q->vec_len << q->code_bits[stage], have = q->n_codes[stage] * q->vec_len;
    rq_status status = RQ_NEW_ZERO(book, q->n_book * row);
    if (status != RQ_OK) return status;
    for (int64_t b = 0; b < q->n_book; ++b) {
        memcpy(book + b * row, q->book[stage] + b * have, (size_t)have * sizeof *book);
    }
    return rq_pack_give(f, name, suffix, RQ_F16, (int64_t[3]){q->n_book, row}, book);
}

static rq_status write_columns(rq_packed_file *f, const char *name, const char *suffix, const rq_f16 *from, int64_t n) {
    rq_f16 *to;
    rq_status status = RQ_NEW(to, n);
    if (status != RQ_OK) return status;
    memcpy(to, from, (size_t)n * sizeof *to);
    return rq_pack_give(f, name, suffix, RQ_F16, (int64_t[3]){n}, to);
}

static rq_status write_tensors(rq_packed_file *f, const char *name, const rq_vq *q, int32_t *feature) {
    rq_status status = RQ_OK;
    const int total = q->code_bits[0] + (q->n_stage > 1 ? q->code_bits[1] : 0);
    const int64_t n_words = rq_ceil_div(q->book_cols * total, 32);
    uint32_t *words;
    uint16_t *perm;
    RQ_TRY(sort_columns(feature, q, name));
    RQ_TRY(RQ_NEW_ZERO(words, q->n_book * q->n_line * n_words));
    RQ_TRY(rq_pack_give(f, name, ".indices", RQ_I32, (int64_t[3]){q->n_book, q->n_line, n_words}, words));
    write_indices(words, q, feature);
    RQ_TRY(write_book(f, name, ".centroids.weight", q, 0));
    if (q->n_stage > 1) RQ_TRY(write_book(f, name, ".res_centroids.weight", q, 1));
    if (q->book_of) {
        RQ_TRY(RQ_NEW(perm, q->n_in));
        RQ_TRY(rq_pack_give(f, name, ".perm", RQ_I16, (int64_t[3]){q->n_in}, perm));
        for (int64_t j = 0; j < q->n_in; ++j) perm[j] = (uint16_t)feature[j];
    }
    if (q->col_scale) {
        RQ_TRY(write_columns(f, name, ".weight_scale", q->col_scale, q->n_in));
        RQ_TRY(write_columns(f, name, ".weight_bias", q->col_bias, q->n_in));
    }
done:
    return status;
}

static rq_status pack(rq_packed_file *f, json_t **settings, const char *name, const rq_packed *p) {
    rq_status status = RQ_OK;
    const rq_vq *q = &p->u.vq;
    int32_t *feature = NULL;
    *settings = NULL;
    memset(f, 0, sizeof *f);
    RQ_TRY(check(name, p));
    RQ_TRY(RQ_NEW(feature, q->n_in));
    RQ_TRY(write_tensors(f, name, q, feature));
    *settings = json_pack("{s:I, s:I, s:[i,i], s:[i,I], s:[i,I], s:I, s:I, s:i, s:b, s:b, s:b, s:b, s:b}",
                          "in_features", (json_int_t)q->n_in, "out_features", (json_int_t)q->n_out, "vector_lens", -1,
                          q->vec_len, "num_centroids", -1, (json_int_t)1 << q->code_bits[0], "num_res_centroids", -1,
                          q->n_stage > 1 ? (json_int_t)1 << q->code_bits[1] : (json_int_t)-1, "group_num",
                          (json_int_t)q->n_book, "group_size", (json_int_t)q->book_cols, "outlier_size", 0,
                          "indices_as_float", 0, "enable_norm", q->col_scale != NULL, "enable_perm", q->book_of != NULL,
                          "is_indice_packed", 1, "bias", 0);
    if (!*settings) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
done:
    free(feature);
    if (status != RQ_OK) rq_packed_file_free(f);
    return status;
}

static rq_status config(json_t **to, const json_t *settings, const json_t *dense) {
    (void)dense; /* what config_for_layers does not name is dense */
    *to = json_pack("{s:s, s:O, s:{}}", "quant_method", "vptq", "config_for_layers", settings, "shared_layer_config");
    return *to ? RQ_OK : rq_fail(RQ_ERR_NOMEM, "out of memory");
}

const rq_peer_ops rq_peer_vptq = {"vptq", "vptq", NULL, suffixes, describe, load, pack, config};
