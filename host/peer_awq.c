/* SPDX-License-Identifier: Apache-2.0 */
/* AWQ checkpoints (AutoAWQ, version "gemm"), 4 bits.
 *
 *   NAME.qweight I32 [n_in, n_out / 8]    word c of a row has outputs 8 c .. 8 c + 7; its nibble i, least significant first, is of output
 *                                         8 c + {0, 2, 4, 6, 1, 3, 5, 7}[i]
 *   NAME.qzeros  I32 [groups, n_out / 8]  zero points, likewise
 *   NAME.scales  F16 [groups, n_out]
 *
 * Weight (n, k) is scales[g][n] (code - zero), g = k / group. All matrices of a checkpoint have one size of groups. */
#include <strings.h>

#include "model_parse.h"
#include "pack_common.h"
#include "peer.h"

enum { BITS = 4 };
static const char *const suffixes[] = {".qweight", ".qzeros", ".scales", NULL};
static const char peer_name[] = "AWQ";
static const int column_of[8] = {0, 2, 4, 6, 1, 3, 5, 7}; /* nibble i of a word */

static rq_status describe(json_t *linears, const json_t *config, const rq_store *s) {
    rq_status status = RQ_OK;
    int64_t bits, group;
    char name[RQ_PEER_NAME];
    const char *version = json_string_value(json_object_get(config, "version")),
               *backend = json_string_value(json_object_get(config, "backend"));
    const bool old = json_object_get(config, "w_bit") != NULL; /* names of the tool's own file */
    RQ_TRY(rq_peer_int(config, old ? "w_bit" : "bits", BITS, BITS, INT64_MIN, &bits));
    RQ_TRY(rq_peer_int(config, old ? "q_group_size" : "group_size", -1, INT32_MAX, -1, &group));
    if (version && strcasecmp(version, "gemm") != 0)
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "quantization_config: version %s of AWQ is not read (gemm is)", RQ_SHOW(version));
    if (backend && strcmp(backend, "autoawq") != 0)
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "quantization_config: backend %s of AWQ is not read (autoawq is)",
                RQ_SHOW(backend));
    if (json_is_false(json_object_get(config, "zero_point")))
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "quantization_config: AWQ without zero_point is not read");
    for (int64_t i = 0; i < rq_store_count(s); ++i) {
        if (!rq_peer_module(name, rq_store_at(s, i)->name, suffixes[0])) continue;
        json_t *e = json_pack("{s:s, s:I}", "format", "awq", "group", (json_int_t)group);
        if (!e || json_object_set_new(linears, name, e) != 0) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    }
done:
    return status;
}

static uint32_t word_at(const rq_tensor *t, int64_t i) {
    uint32_t v;
    memcpy(&v, (const unsigned char *)t->data + i * 4, 4);
    return v;
}

static rq_status load(rq_packed *p, const rq_store *s, const char *name, const json_t *entry) {
    rq_status status = RQ_OK;
    const rq_tensor *w, *zeros;
    int64_t group;
    rq_grid_parts part = {.bits = BITS};
    memset(p, 0, sizeof *p);
    RQ_TRY(rq_peer_int(entry, "group", -1, INT32_MAX, -1, &group));
    RQ_TRY(rq_peer_find(&w, s, name, ".qweight", RQ_I32, 2));
    RQ_TRY(rq_peer_find(&zeros, s, name, ".qzeros", RQ_I32, 2));
    const int64_t n_in = w->shape[0], n_words = w->shape[1];
    if (n_in < 1 || n_words < 1 || n_in > INT32_MAX || n_words > INT32_MAX / 8) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: qweight is [%lld, %lld]", name, (long long)n_in, (long long)n_words);
    }
    part.n_in = n_in;
    part.n_out = n_words * 8;
    part.group = group > 0 ? rq_min_i64(group, n_in) : n_in;
    const int64_t n_group = rq_ceil_div(n_in, part.group), row_words = rq_grid_row_words(n_in, BITS);
    if (zeros->shape[0] != n_group || zeros->shape[1] != n_words) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: qzeros is [%lld, %lld], should be [%lld, %lld]", name, (long long)zeros->shape[0],
                (long long)zeros->shape[1], (long long)n_group, (long long)n_words);
    }
    RQ_TRY(rq_peer_load_scales(&part, s, name, ".scales", true));
    RQ_TRY(RQ_NEW_ZERO(part.words, part.n_out * row_words + 1));
    RQ_TRY(RQ_NEW(part.zero, part.n_out * n_group));
    for (int64_t c = 0; c < n_words; ++c) {
        for (int64_t k = 0; k < n_in; ++k) {
            const uint32_t v = word_at(w, k * n_words + c);
            for (int i = 0; i < 8; ++i) {
                uint32_t *row = part.words + (8 * c + column_of[i]) * row_words;
                row[k / 8] |= (v >> 4 * i & 15u) << k % 8 * 4;
            }
        }
        for (int64_t k = 0; k < n_group; ++k) {
            const uint32_t v = word_at(zeros, k * n_words + c);
            for (int i = 0; i < 8; ++i) part.zero[(8 * c + column_of[i]) * n_group + k] = (uint8_t)(v >> 4 * i & 15u);
        }
    }
done:
    return rq_grid_take(p, name, &part, status);
}

static rq_status check(const char *name, const rq_packed *p) {
    rq_status status = RQ_OK;
    RQ_TRY(rq_peer_check_grid(name, p, peer_name));
    const rq_grid *g = &p->u.grid;
    if (g->bits != BITS) RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: has %d bits; %s has 4", name, g->bits, peer_name);
    if (g->n_out % 8) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: has %lld outputs; %s wants a multiple of 8", name, (long long)g->n_out,
                peer_name);
    }
    if (g->n_in % g->group) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: groups of %lld do not divide its %lld input features, as %s wants", name,
                (long long)g->group, (long long)g->n_in, peer_name);
    }
    if (g->perm) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED,
                "%s: its groups follow an act-order, which %s has no place for (quantize with --static-groups)", name,
                peer_name);
    }
    RQ_TRY(rq_peer_check_f16(name, g, peer_name));
done:
    return status;
}

static rq_status pack(rq_packed_file *f, json_t **settings, const char *name, const rq_packed *p) {
    rq_status status = RQ_OK;
    const rq_grid *g = &p->u.grid;
    uint32_t *words, *zeros;
    rq_f16 *scales;
    *settings = NULL;
    memset(f, 0, sizeof *f);
    RQ_TRY(check(name, p));
    const int64_t n_words = g->n_out / 8;
    RQ_TRY(RQ_NEW_ZERO(words, g->n_in * n_words));
    RQ_TRY(rq_pack_give(f, name, ".qweight", RQ_I32, (int64_t[3]){g->n_in, n_words}, words));
    RQ_TRY(RQ_NEW_ZERO(zeros, g->n_group * n_words));
    RQ_TRY(rq_pack_give(f, name, ".qzeros", RQ_I32, (int64_t[3]){g->n_group, n_words}, zeros));
    RQ_TRY(RQ_NEW(scales, g->n_group * g->n_out));
    RQ_TRY(rq_pack_give(f, name, ".scales", RQ_F16, (int64_t[3]){g->n_group, g->n_out}, scales));
    for (int64_t c = 0; c < n_words; ++c) {
        for (int i = 0; i < 8; ++i) {
            const int64_t row = 8 * c + column_of[i];
            for (int64_t k = 0; k < g->n_in; ++k) words[k * n_words + c] |= rq_grid_code(g, row, k) << 4 * i;
            for (int64_t k = 0; k < g->n_group; ++k) {
                zeros[k * n_words + c] |= (uint32_t)rq_grid_zero(g, row, k) << 4 * i;
                scales[k * g->n_out + row] = rq_f16_of_f32(rq_grid_scale(g, row, k));
            }
        }
    }
    *settings = rq_peer_grid_settings(g);
    if (!*settings) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
done:
    if (status != RQ_OK) rq_packed_file_free(f);
    return status;
}

static rq_status config(json_t **to, const json_t *settings, const json_t *dense) {
    const int64_t group = rq_peer_common_group(settings);
    const char *name;
    json_t *v;
    *to = NULL;
    json_object_foreach((json_t *)(uintptr_t)settings, name, v) {
        if (rq_peer_group(v, group) == group) continue;
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s: has groups of %lld, others of %lld; %s has one size for all", name,
                       (long long)json_integer_value(json_object_get(v, "group")), (long long)group, peer_name);
    }
    *to = json_pack("{s:s, s:i, s:I, s:b, s:s, s:O}", "quant_method", "awq", "bits", BITS, "group_size",
                    (json_int_t)group, "zero_point", 1, "version", "gemm", "modules_to_not_convert", dense);
    return *to ? RQ_OK : rq_fail(RQ_ERR_NOMEM, "out of memory");
}

const rq_peer_ops rq_peer_awq = {"awq", "awq", NULL, suffixes, describe, load, pack, config};
