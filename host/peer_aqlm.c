/* SPDX-License-Identifier: Apache-2.0 */
/* AQLM checkpoints with one or two codebooks and vectors along inputs; rq_peer_aqlm.
 *
 *   NAME.codes      I8 or I16 [n_out, n_in / v, M]   M codes a vector; those from 2^(bits-1) on less 2^bits
 *   NAME.codebooks  F16 [M, 2^bits, 1, v]
 *   NAME.scales     F16 [n_out, 1, 1, 1]
 *
 * A weight is scales[n] (codebooks[0] + codebooks[1]). All matrices have the same settings. */
#include "pack_common.h"
#include "peer.h"

static const char *const suffixes[] = {".codes", ".codebooks", ".scales", NULL};
static const char peer_name[] = "AQLM";

/* ---- reading ---- */

static rq_status describe(json_t *linears, const json_t *config, const rq_store *s) {
    rq_status status = RQ_OK;
    char name[RQ_PEER_NAME];
    int64_t bits, books, vec_len, rows;
    RQ_TRY(rq_peer_int(config, "nbits_per_codebook", 4, 16, INT64_MIN, &bits));
    RQ_TRY(rq_peer_int(config, "num_codebooks", 1, 2, INT64_MIN, &books));
    RQ_TRY(rq_peer_int(config, "in_group_size", 2, RQ_VQ_MAX_VEC, INT64_MIN, &vec_len));
    RQ_TRY(rq_peer_int(config, "out_group_size", 1, 1, INT64_MIN, &rows));
    for (int64_t i = 0; i < rq_store_count(s); ++i) {
        if (!rq_peer_module(name, rq_store_at(s, i)->name, suffixes[0])) continue;
        json_t *e = json_pack("{s:s, s:I, s:I, s:I}", "format", "aqlm", "bits", (json_int_t)bits, "books",
                              (json_int_t)books, "vec_len", (json_int_t)vec_len);
        if (!e || json_object_set_new(linears, name, e) != 0) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    }
done:
    return status;
}

static rq_status read_codes(uint16_t *codes[2], const rq_tensor *t, int64_t bits) {
    rq_status status = RQ_OK;
    const int64_t n = t->shape[0] * t->shape[1], books = t->shape[2];
    const unsigned mask = (1u << bits) - 1;
    for (int64_t m = 0; m < books; ++m) {
        RQ_TRY(RQ_NEW(codes[m], n));
        for (int64_t i = 0; i < n; ++i) {
            uint16_t v;
            const unsigned char *from = t->data;
            if (t->dtype == RQ_I8) {
                v = from[i * books + m];
            } else {
                memcpy(&v, from + (i * books + m) * 2, 2);
            }
            codes[m][i] = (uint16_t)(v & mask); /* two's complement: the low bits are the code */
        }
    }
done:
    return status;
}

static rq_status load(rq_packed *p, const rq_store *s, const char *name, const json_t *entry) {
    rq_status status = RQ_OK;
    int64_t bits, books, vec_len, n_out, n_code;
    const rq_tensor *codes, *book, *scales;
    uint16_t *code[2] = {NULL, NULL};
    float *scale = NULL;
    rq_peer_floats f = {0};
    memset(p, 0, sizeof *p);
    RQ_TRY(rq_peer_int(entry, "bits", 4, 16, INT64_MIN, &bits));
    RQ_TRY(rq_peer_int(entry, "books", 1, 2, INT64_MIN, &books));
    RQ_TRY(rq_peer_int(entry, "vec_len", 2, RQ_VQ_MAX_VEC, INT64_MIN, &vec_len));
    RQ_TRY(rq_peer_find(&codes, s, name, ".codes", bits > 8 ? RQ_I16 : RQ_I8, 3));
    n_out = codes->shape[0];
    n_code = codes->shape[1];
    if (n_out < 1 || n_code < 1 || n_out > INT32_MAX || n_code > INT32_MAX / vec_len || codes->shape[2] != books) {
        RQ_FAIL(RQ_ERR_INPUT, "%s.codes: is [%lld, %lld, %lld] with %lld codebooks", name, (long long)n_out,
                (long long)n_code, (long long)codes->shape[2], (long long)books);
    }
    const int64_t book_shape[4] = {books, (int64_t)1 << bits, 1, vec_len}, scale_shape[4] = {n_out, 1, 1, 1};
    RQ_TRY(rq_peer_find_float(&book, s, name, ".codebooks", 4, book_shape));
    RQ_TRY(rq_peer_find_float(&scales, s, name, ".scales", 4, scale_shape));
    f = (rq_peer_floats){.n_book = 1, .book = {book}, .factor = scales};
    RQ_TRY(rq_peer_halves(&f, name));
    RQ_TRY(read_codes(code, codes, bits));
    RQ_TRY(RQ_NEW(scale, n_out));
    for (int64_t i = 0; i < n_out; ++i) scale[i] = rq_f32_of_f16(f.factor_f16[i]);
    const rq_vq_codes c = {.n_out = n_out,
                           .n_in = n_code * vec_len,
                           .vec_len = (int)vec_len,
                           .n_stage = (int)books,
                           .code_bits = {(int)bits, books > 1 ? (int)bits : 0},
                           .n_codes = {(int64_t)1 << bits, books > 1 ? (int64_t)1 << bits : 0},
                           .book_cols = n_code * vec_len,
                           .group = n_code * vec_len,
                           .codes = {code[0], code[1]},
                           .book = {f.book_f16[0], f.book_f16[0] + (vec_len << bits)},
                           .scale = scale};
    status = rq_vq_pack(p, &c);
    if (status == RQ_ERR_ARG) status = rq_fail_context(RQ_ERR_INPUT, "%s", name);
done:
    free(code[0]);
    free(code[1]);
    free(scale);
    free(f.book_f16[0]);
    free(f.factor_f16);
    return status;
}

/* ---- writing ---- */

static rq_status check(const char *name, const rq_packed *p) {
    const rq_vq *q = &p->u.vq;
    const char *why = p->format != RQ_FORMAT_VQ                              ? "is no vq matrix"
                      : q->vec_out                                           ? "has vectors along outputs"
                      : q->n_book > 1                                        ? "has several codebooks by columns"
                      : q->col_scale || q->n_outlier                         ? "has factors or outliers of columns"
                      : !q->scale || q->n_group > 1                          ? "has no scale for each row, or several"
                      : q->n_in % q->vec_len                                 ? "has vectors that reach past its inputs"
                      : q->n_stage > 1 && q->code_bits[0] != q->code_bits[1] ? "has two codebooks of different sizes"
                                                                             : NULL;
    if (!why) return RQ_OK;
    return rq_fail(
        RQ_ERR_UNSUPPORTED,
        "%s: %s; %s has vectors along inputs, one or two codebooks of one size, and a scale a row (quantize with "
        "--round vq)",
        name, why, peer_name);
}

static rq_status pack(rq_packed_file *f, json_t **settings, const char *name, const rq_packed *p) {
    rq_status status = RQ_OK;
    const rq_vq *q = &p->u.vq;
    unsigned char *codes;
    rq_f16 *books, *scales;
    *settings = NULL;
    memset(f, 0, sizeof *f);
    RQ_TRY(check(name, p));
    const int bits = q->code_bits[0], width = bits > 8 ? 2 : 1;
    const int64_t n = q->n_line * q->n_code, row = (int64_t)q->vec_len << bits;
    RQ_TRY(rq_alloc((void **)&codes, n * q->n_stage, (size_t)width));
    RQ_TRY(rq_pack_give(f, name, ".codes", width > 1 ? RQ_I16 : RQ_I8, (int64_t[3]){q->n_line, q->n_code, q->n_stage},
                        codes));
    RQ_TRY(RQ_NEW_ZERO(books, q->n_stage * row));
    RQ_TRY(rq_peer_give4(f, name, ".codebooks", (int64_t[4]){q->n_stage, (int64_t)1 << bits, 1, q->vec_len}, books));
    RQ_TRY(RQ_NEW(scales, q->n_out));
    RQ_TRY(rq_peer_give4(f, name, ".scales", (int64_t[4]){q->n_out, 1, 1, 1}, scales));
    memcpy(scales, q->scale, (size_t)q->n_out * sizeof *scales);
    for (int m = 0; m < q->n_stage && m < 2; ++m) {
        memcpy(books + m * row, q->book[m], (size_t)(q->n_codes[m] * q->vec_len) * sizeof *books);
        for (int64_t i = 0; i < n; ++i) {
            const uint32_t v = rq_vq_code(q, m, i / q->n_code, i % q->n_code);
            const int16_t s = (int16_t)(v >> (bits - 1) ? (int)v - (1 << bits) : (int)v);
            memcpy(codes + (i * q->n_stage + m) * width, &s,
                   (size_t)width); /* little-endian: the low byte comes first */
        }
    }
    *settings = json_pack("{s:i, s:i, s:i}", "bits", bits, "books", q->n_stage, "vec_len", q->vec_len);
    if (!*settings) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
done:
    if (status != RQ_OK) rq_packed_file_free(f);
    return status;
}

static rq_status config(json_t **to, const json_t *settings, const json_t *dense) {
    rq_status status = RQ_OK;
    const char *name, *first = NULL;
    const json_t *one = NULL;
    json_t *v, *left = json_array();
    size_t i;
    *to = NULL;
    json_object_foreach((json_t *)(uintptr_t)settings, name, v) {
        if (!one) {
            one = v;
            first = name;
        }
        if (!json_equal(v, (json_t *)(uintptr_t)one)) {
            RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s and %s: have different codes or vectors; %s has one setting for all", first,
                    name, peer_name);
        }
    }
    json_array_foreach((json_t *)(uintptr_t)dense, i, v) {
        json_array_append_new(left, json_sprintf("%s.weight", json_string_value(v)));
    }
    *to = json_pack("{s:s, s:O, s:O, s:i, s:O, s:O}", "quant_method", "aqlm", "nbits_per_codebook",
                    json_object_get(one, "bits"), "num_codebooks", json_object_get(one, "books"), "out_group_size", 1,
                    "in_group_size", json_object_get(one, "vec_len"), "linear_weights_not_to_quantize", left);
    if (!*to) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
done:
    json_decref(left);
    return status;
}

const rq_peer_ops rq_peer_aqlm = {"aqlm", "aqlm", NULL, suffixes, describe, load, pack, config};
