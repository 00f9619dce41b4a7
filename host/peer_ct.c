/* SPDX-License-Identifier: Apache-2.0 */
/* compressed-tensors checkpoints (vLLM, transformers): integer weights of 2, 3, 4 and 8 bits; rq_peer_compressed_tensors.
 *
 *   pack-quantized   NAME.weight_packed I32 [n_out, ceil(n_in bits / 32)]  code + 2^(bits-1), one bit stream along each row
 *                    NAME.weight_shape I64 [2]                             n_out, n_in
 *                    NAME.weight_zero_point I32 [ceil(n_out bits / 32), groups]  likewise, a stream down each column; asymmetric only
 *                    NAME.weight_g_idx I32 [n_in]                          actorder "group" only
 *   int-quantized    NAME.weight I8 [n_out, n_in], NAME.weight_zero_point I8 like the scales; asymmetric only
 *   both             NAME.weight_scale F16, BF16 or F32 [n_out, groups]    groups is 1 with strategy "channel"
 *
 * Weight = scale (code - zero). Releases before 0.18 put 3-bit codes ten to a word; the shape tells which is meant. Four bits, a scale a
 * row and 8-bit dynamic activations are our w4a8 with one level. What the configuration says is read in peer_ct_config.c. */
#include "peer_ct.h"

#include "pack_common.h"

static const char *const suffixes[] = {
    ".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx", ".weight", NULL};
static const char peer_name[] = "compressed-tensors";

/* ---- reading ---- */

typedef struct entry {
    int64_t bits, group, act_bits;
    bool sym, packed;
} entry;

static rq_status read_entry(entry *e, const json_t *o, const char *name) {
    rq_status status = RQ_OK;
    const json_t *sym = json_object_get(o, "sym");
    const char *packing = json_string_value(json_object_get(o, "packing"));
    RQ_TRY(rq_peer_int(o, "bits", 2, 8, INT64_MIN, &e->bits));
    RQ_TRY(rq_peer_int(o, "group", -1, INT32_MAX, -1, &e->group));
    RQ_TRY(rq_peer_int(o, "act_bits", 0, 8, 0, &e->act_bits));
    e->packed = packing && strcmp(packing, "pack-quantized") == 0;
    e->sym = json_is_true(sym);
    if (!packing || (!e->packed && strcmp(packing, "int-quantized") != 0) || !json_is_boolean(sym) || e->bits == 0 ||
        (e->bits > 4 && e->bits < 8)) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: the description of the matrix is malformed", name);
    }
done:
    return status;
}

/* Codes of `bits` to a word when words are not filled. */
static int per_word(int bits) { return 32 / bits; }

/* Whether n codes lie in n_words as a stream (*dense), or ten to a word. Where both fit, they are the same up to ten codes. */
static rq_status word_layout(bool *dense, const char *what, int64_t n, int bits, int64_t n_words) {
    const bool stream = n_words == rq_grid_row_words(n, bits), padded = n_words == rq_ceil_div(n, per_word(bits));
    *dense = stream;
    if (!stream && !padded) {
        return rq_fail(RQ_ERR_INPUT, "%s: %lld words for %lld codes of %d bits", what, (long long)n_words, (long long)n,
                       bits);
    }
    if (stream && padded && bits == 3 && n > per_word(bits)) {
        return rq_fail(
            RQ_ERR_UNSUPPORTED,
            "%s: %lld words may hold %lld codes of 3 bits in two ways, as releases before 0.18 and later ones "
            "have them",
            what, (long long)n_words, (long long)n);
    }
    return RQ_OK;
}

static uint32_t code_at(const unsigned char *words, int64_t stride, int64_t i, int bits, bool dense) {
    if (dense) return rq_get_code(words, stride, i, bits);
    uint32_t w;
    const int n = per_word(bits);
    memcpy(&w, words + i / n * stride * 4, 4);
    return w >> i % n * bits & ((1u << bits) - 1u);
}

static rq_status find_sizes(rq_grid_parts *g, const rq_tensor **w, const rq_store *s, const char *name,
                            const entry *e) {
    rq_status status = RQ_OK;
    const rq_tensor *t;
    if (e->packed) {
        int64_t shape[2];
        RQ_TRY(rq_pack_find(&t, s, name, ".weight_shape", RQ_I64, (int64_t[3]){2}));
        memcpy(shape, t->data, sizeof shape);
        g->n_out = shape[0];
        g->n_in = shape[1];
        RQ_TRY(rq_peer_find(w, s, name, ".weight_packed", RQ_I32, 2));
    } else {
        RQ_TRY(rq_peer_find(w, s, name, ".weight", RQ_I8, 2));
        g->n_out = (*w)->shape[0];
        g->n_in = (*w)->shape[1];
    }
    g->bits = (int)e->bits;
    if (g->n_out < 1 || g->n_in < 1 || g->n_out > INT32_MAX || g->n_in > INT32_MAX || (*w)->shape[0] != g->n_out) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: impossible shape [%lld, %lld], or codes of %lld rows", name, (long long)g->n_out,
                (long long)g->n_in, (long long)(*w)->shape[0]);
    }
    g->group = e->group > 0 ? rq_min_i64(e->group, g->n_in) : g->n_in;
done:
    return status;
}

static rq_status load_codes(rq_grid_parts *g, const rq_tensor *w, const char *name, const entry *e) {
    rq_status status = RQ_OK;
    const int64_t row_words = rq_grid_row_words(g->n_in, g->bits);
    const int half = 1 << (g->bits - 1);
    bool dense = true;
    if (e->packed) RQ_TRY(word_layout(&dense, name, g->n_in, g->bits, w->shape[1]));
    RQ_TRY(RQ_NEW_ZERO(g->words, g->n_out * row_words + 1));
    for (int64_t i = 0; i < g->n_out; ++i) {
        uint32_t *row = g->words + i * row_words;
        const unsigned char *from = (const unsigned char *)w->data + i * w->shape[1] * (e->packed ? 4 : 1);
        if (e->packed && dense) {
            memcpy(row, from, (size_t)row_words * 4);
            continue;
        }
        for (int64_t j = 0; j < g->n_in; ++j) {
            const int v = e->packed ? (int)code_at(from, 1, j, g->bits, false) : (signed char)from[j] + half;
            if (v < 0 || v >= 2 * half) {
                RQ_FAIL(RQ_ERR_INPUT, "%s.weight: %d at [%lld, %lld] is no code of %d bits", name, v - half,
                        (long long)i, (long long)j, g->bits);
            }
            rq_put_code(row, 1, j, g->bits, (uint32_t)v);
        }
    }
done:
    return status;
}

static rq_status load_zeros(rq_grid_parts *g, const rq_store *s, const char *name, const entry *e) {
    rq_status status = RQ_OK;
    const rq_tensor *t;
    const int64_t n_group = rq_ceil_div(g->n_in, g->group);
    const int half = 1 << (g->bits - 1);
    bool dense = true;
    RQ_TRY(rq_peer_find(&t, s, name, ".weight_zero_point", e->packed ? RQ_I32 : RQ_I8, 2));
    if (e->packed) RQ_TRY(word_layout(&dense, t->name, g->n_out, g->bits, t->shape[0]));
    if (t->shape[1] != n_group || (!e->packed && t->shape[0] != g->n_out)) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: is [%lld, %lld], the matrix has %lld groups", t->name, (long long)t->shape[0],
                (long long)t->shape[1], (long long)n_group);
    }
    RQ_TRY(RQ_NEW(g->zero, g->n_out * n_group));
    const unsigned char *from = t->data;
    for (int64_t i = 0; i < g->n_out; ++i) {
        for (int64_t k = 0; k < n_group; ++k) {
            const int v = e->packed ? (int)code_at(from + k * 4, n_group, i, g->bits, dense)
                                    : (signed char)from[i * n_group + k] + half;
            if (v < 0 || v >= 2 * half) {
                RQ_FAIL(RQ_ERR_INPUT, "%s: %d of row %lld, group %lld is no zero point of %d bits", t->name, v - half,
                        (long long)i, (long long)k, g->bits);
            }
            g->zero[i * n_group + k] = (uint8_t)v;
        }
    }
done:
    return status;
}

/* The group of each input feature, where there is such a tensor and it says something. */
static rq_status load_groups(int32_t **groups, const rq_grid_parts *g, const rq_store *s, const char *name) {
    rq_status status = RQ_OK;
    const rq_tensor *t;
    bool plain = true, unset = true;
    if (!rq_pack_has(s, name, ".weight_g_idx")) return RQ_OK;
    RQ_TRY(rq_pack_find(&t, s, name, ".weight_g_idx", RQ_I32, (int64_t[3]){g->n_in}));
    RQ_TRY(RQ_NEW(*groups, g->n_in));
    memcpy(*groups, t->data, (size_t)t->n_bytes);
    for (int64_t j = 0; j < g->n_in; ++j) {
        plain = plain && (*groups)[j] == j / g->group;
        unset = unset && (*groups)[j] == -1;
    }
    if (plain || unset) {
        free(*groups);
        *groups = NULL;
    }
done:
    return status;
}

/* The same codes for 8-bit activations. */
static rq_status as_w4a8(rq_packed *p, const char *name) {
    rq_status status = RQ_OK;
    rq_packed grid = *p;
    const rq_grid *g = &grid.u.grid;
    uint8_t *codes = NULL;
    float *scale = NULL;
    memset(p, 0, sizeof *p);
    RQ_TRY(RQ_NEW(codes, g->n_out * g->n_in));
    RQ_TRY(RQ_NEW(scale, g->n_out));
    for (int64_t i = 0; i < g->n_out; ++i) {
        for (int64_t j = 0; j < g->n_in; ++j) codes[i * g->n_in + j] = (uint8_t)rq_grid_code(g, i, j);
        scale[i] = rq_grid_scale(g, i, 0);
    }
    const rq_w4a8_codes q = {.n_out = g->n_out, .n_in = g->n_in, .codes = codes, .scale = scale, .zero = g->zero};
    status = rq_w4a8_pack(p, &q);
    if (status == RQ_ERR_ARG) status = RQ_ERR_UNSUPPORTED;
    if (status != RQ_OK) rq_fail_context(status, "%s", name);
done:
    free(codes);
    free(scale);
    rq_packed_free(&grid);
    return status;
}

static rq_status load(rq_packed *p, const rq_store *s, const char *name, const json_t *o) {
    rq_status status = RQ_OK;
    rq_grid_parts part = {0};
    int32_t *groups = NULL;
    const rq_tensor *w;
    entry e = {0};
    memset(p, 0, sizeof *p);
    RQ_TRY(read_entry(&e, o, name));
    RQ_TRY(find_sizes(&part, &w, s, name, &e));
    RQ_TRY(rq_peer_load_scales(&part, s, name, ".weight_scale", false));
    RQ_TRY(load_groups(&groups, &part, s, name));
    part.g_idx = groups;
    RQ_TRY(load_codes(&part, w, name, &e));
    if (!e.sym) {
        RQ_TRY(load_zeros(&part, s, name, &e));
    } else if (rq_pack_has(s, name, ".weight_zero_point")) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: described as symmetric, but has zero points", name);
    }
done:
    status = rq_grid_take(p, name, &part, status);
    free(groups);
    if (status == RQ_OK && e.bits == 4 && e.act_bits == 8 && p->u.grid.n_group == 1) status = as_w4a8(p, name);
    return status;
}

/* ---- writing ---- */

/* Settings: {"packing", "bits", "group" (-1: a scale a row), "sym", "act_order", "act_bits"}. */
static rq_status keep_settings(json_t **settings, const char *packing, int bits, int64_t group, bool sym,
                               bool act_order, int act_bits) {
    *settings = json_pack("{s:s, s:i, s:I, s:b, s:b, s:i}", "packing", packing, "bits", bits, "group",
                          (json_int_t)group, "sym", sym, "act_order", act_order, "act_bits", act_bits);
    return *settings ? RQ_OK : rq_fail(RQ_ERR_NOMEM, "out of memory");
}

static rq_status pack_grid(rq_packed_file *f, json_t **settings, const char *name, const rq_packed *p) {
    rq_status status = RQ_OK;
    const rq_grid *g = &p->u.grid;
    char *own = NULL;
    if (g->n_in % g->group) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: groups of %lld do not divide its %lld input features, as %s wants", name,
                (long long)g->group, (long long)g->n_in, peer_name);
    }
    RQ_TRY(rq_packed_file_of(f, &own, name, p)); /* our tensors are theirs */
    RQ_TRY(keep_settings(settings, "pack-quantized", g->bits, g->n_group == 1 ? -1 : g->group, g->zero == NULL,
                         g->perm != NULL, 0));
done:
    free(own);
    return status;
}

static rq_status pack_w4a8(rq_packed_file *f, json_t **settings, const char *name, const rq_w4a8 *w) {
    rq_status status = RQ_OK;
    int8_t *codes, *zeros;
    float *scale;
    if (w->group) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED,
                "%s: has two levels of scales (groups of %lld); %s has one (quantize with --group 0)", name,
                (long long)w->group, peer_name);
    }
    if (w->hadamard) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: wants a Hadamard matrix of order %d on its inputs, which %s has no place for",
                name, w->hadamard, peer_name);
    }
    if (w->in_scale)
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: wants factors on its inputs, which %s has no place for", name, peer_name);
    RQ_TRY(RQ_NEW(codes, w->n_out * w->n_in));
    RQ_TRY(rq_pack_give(f, name, ".weight", RQ_I8, (int64_t[3]){w->n_out, w->n_in}, codes));
    for (int64_t i = 0; i < w->n_out; ++i) {
        for (int64_t j = 0; j < w->n_in; ++j) codes[i * w->n_in + j] = (int8_t)(rq_w4a8_code(w, i, j) - 8);
    }
    RQ_TRY(RQ_NEW(scale, w->n_out));
    RQ_TRY(rq_pack_give(f, name, ".weight_scale", RQ_F32, (int64_t[3]){w->n_out, 1}, scale));
    memcpy(scale, w->scale, (size_t)w->n_out * sizeof *scale);
    if (w->zero) {
        RQ_TRY(RQ_NEW(zeros, w->n_out));
        RQ_TRY(rq_pack_give(f, name, ".weight_zero_point", RQ_I8, (int64_t[3]){w->n_out, 1}, zeros));
        for (int64_t i = 0; i < w->n_out; ++i) zeros[i] = (int8_t)(w->zero[i] - 8);
    }
    RQ_TRY(keep_settings(settings, "int-quantized", 4, -1, w->zero == NULL, false, 8));
done:
    return status;
}

static rq_status pack(rq_packed_file *f, json_t **settings, const char *name, const rq_packed *p) {
    rq_status status;
    *settings = NULL;
    memset(f, 0, sizeof *f);
    if (p->format == RQ_FORMAT_W4A8) {
        status = pack_w4a8(f, settings, name, &p->u.w4a8);
    } else {
        status = rq_peer_check_grid(name, p, peer_name);
        if (status == RQ_OK) status = pack_grid(f, settings, name, p);
    }
    if (status != RQ_OK) rq_packed_file_free(f);
    return status;
}

const rq_peer_ops rq_peer_compressed_tensors = {peer_name,           peer_name, NULL, suffixes,
                                                rq_peer_ct_describe, load,      pack, rq_peer_ct_config};
