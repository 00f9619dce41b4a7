/* SPDX-License-Identifier: Apache-2.0 */
/* GPTQ checkpoints (AutoGPTQ, GPTQModel, transformers), 2, 3, 4 and 8 bits; rq_peer_gptq and rq_peer_gptq_v2.
 *
 *   NAME.qweight I32 [ceil(n_in bits / 32), n_out]    the codes of an output, one bit stream down its column
 *   NAME.qzeros  I32 [groups, ceil(n_out bits / 32)]  the zero points of a group, one bit stream along its row
 *   NAME.scales  F16 [groups, n_out]
 *   NAME.g_idx   I32 [n_in]                           the group of each input feature
 *
 * Weight (n, k) is scales[g][n] (code - zero), g = g_idx[k]. Version 1 stores zero - 1. A zero point of 0 would be 2^bits - 1 there, which
 * readers take for 2^bits or for 0, or carry into the neighbour: such matrices are written as version 2 only, and not read from version 1. */
#include "model_parse.h"
#include "pack_common.h"
#include "peer.h"

static const char *const suffixes[] = {".qweight", ".qzeros", ".scales", ".g_idx", NULL};
static const char peer_name[] = "GPTQ";

/* ---- reading ---- */

/* Whether every zero point of a tensor is stored as v. */
static bool all_stored_as(const rq_tensor *t, int64_t n_out, int bits, uint32_t v) {
    for (int64_t k = 0; k < t->shape[0]; ++k) {
        const unsigned char *row = (const unsigned char *)t->data + k * t->shape[1] * 4;
        for (int64_t i = 0; i < n_out; ++i) {
            if (rq_get_code(row, 1, i, bits) != v) return false;
        }
    }
    return true;
}

/* Files whose label has the wrong version exist. A symmetric one shows it: all its zero points are the middle, in one of the two readings. */
static rq_status right_version(bool *v2, const rq_store *s, const char *name, int64_t bits) {
    rq_status status = RQ_OK;
    const rq_tensor *zeros, *w;
    RQ_TRY(rq_peer_find(&zeros, s, name, ".qzeros", RQ_I32, 2));
    RQ_TRY(rq_peer_find(&w, s, name, ".qweight", RQ_I32, 2));
    const int64_t n_out = w->shape[1], most = INT64_MAX / 64;
    if (n_out > most || zeros->shape[1] != rq_grid_row_words(n_out, (int)bits)) goto done; /* load says so */
    const uint32_t middle = 1u << (bits - 1);
    if (!all_stored_as(zeros, n_out, (int)bits, *v2 ? middle - 1 : middle)) goto done;
    rq_log(
        RQ_LOG_WARN,
        "quantization_config says checkpoint_format %s and symmetric, but the zero points are stored as %s does: the "
        "file is read as %s",
        *v2 ? "gptq_v2" : "gptq", *v2 ? "gptq" : "gptq_v2", *v2 ? "gptq" : "gptq_v2");
    *v2 = !*v2;
done:
    return status == RQ_ERR_INPUT ? RQ_OK : status; /* what is missing is said by load */
}

static rq_status describe(json_t *linears, const json_t *config, const rq_store *s) {
    rq_status status = RQ_OK;
    int64_t bits, group;
    char name[RQ_PEER_NAME];
    const char *format = json_string_value(json_object_get(config, "checkpoint_format")),
               *dtype = json_string_value(json_object_get(config, "pack_dtype"));
    if (!format) format = json_string_value(json_object_get(config, "format"));
    RQ_TRY(rq_peer_int(config, "bits", 2, 8, INT64_MIN, &bits));
    if (bits > 4 && bits < 8)
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "quantization_config: %lld bits; 2, 3, 4 and 8 are read", (long long)bits);
    RQ_TRY(rq_peer_int(config, "group_size", -1, INT32_MAX, -1, &group));
    bool v2 = format && strcmp(format, "gptq_v2") == 0, checked = false;
    if (format && !v2 && strcmp(format, "gptq") != 0) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "quantization_config: checkpoint_format %s is not read (gptq and gptq_v2 are)",
                RQ_SHOW(format));
    }
    if (dtype && strcmp(dtype, "int32") != 0) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "quantization_config: pack_dtype %s is not read (int32 is)", RQ_SHOW(dtype));
    }
    /* Rules for single matrices may change what is said of all: then the shapes say what a matrix has. */
    const bool rules = json_object_size(json_object_get(config, "dynamic")) > 0;
    for (int64_t i = 0; i < rq_store_count(s); ++i) {
        if (!rq_peer_module(name, rq_store_at(s, i)->name, suffixes[0])) continue;
        if (!checked && json_is_true(json_object_get(config, "sym"))) RQ_TRY(right_version(&v2, s, name, bits));
        checked = true;
        json_t *e = json_pack("{s:s}", "format", v2 ? "gptq_v2" : "gptq");
        if (!rules) {
            json_object_set_new(e, "bits", json_integer(bits));
            json_object_set_new(e, "group", json_integer(group));
        }
        if (!e || json_object_set_new(linears, name, e) != 0) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    }
done:
    return status;
}

typedef struct shape {
    int64_t n_out, n_in, group, n_group;
    int bits;
} shape;

/* From the tensors, which must agree with each other and with the entry where that says something. */
static rq_status find_shape(shape *z, const char *name, const json_t *entry, const rq_tensor *w, const rq_tensor *zeros,
                            const rq_tensor *g_idx) {
    static const int widths[] = {2, 3, 4, 8};
    int64_t bits, group;
    rq_status status = RQ_OK;
    RQ_TRY(rq_peer_int(entry, "bits", 0, 8, 0, &bits));
    RQ_TRY(rq_peer_int(entry, "group", -1, INT32_MAX, 0, &group));
    z->n_out = w->shape[1];
    z->n_group = zeros->shape[0];
    for (int i = 0; i < 4; ++i) {
        const int b = widths[i];
        if (bits ? bits != b : zeros->shape[1] != rq_grid_row_words(z->n_out, b)) continue;
        z->bits = b;
        z->n_in = g_idx ? g_idx->shape[0] : w->shape[0] * 32 / b;
        if (z->n_in > 0 && z->n_in <= INT32_MAX && rq_grid_row_words(z->n_in, b) == w->shape[0]) break;
        z->bits = 0;
    }
    if (!z->bits) {
        RQ_FAIL(
            RQ_ERR_INPUT,
            "%s: qweight [%lld, %lld], qzeros [%lld, %lld] and %lld group numbers fit no width of 2, 3, 4 or 8 bits",
            name, (long long)w->shape[0], (long long)w->shape[1], (long long)zeros->shape[0],
            (long long)zeros->shape[1], g_idx ? (long long)g_idx->shape[0] : 0LL);
    }
    if (zeros->shape[1] != rq_grid_row_words(z->n_out, z->bits) || z->n_group < 1 || z->n_out < 1) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: qzeros [%lld, %lld] do not fit %lld outputs of %d bits", name,
                (long long)zeros->shape[0], (long long)zeros->shape[1], (long long)z->n_out, z->bits);
    }
    z->group = group > 0 ? rq_min_i64(group, z->n_in) : group == 0 ? rq_ceil_div(z->n_in, z->n_group) : z->n_in;
    if (rq_ceil_div(z->n_in, z->group) != z->n_group) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: %lld groups of %lld do not make %lld input features", name, (long long)z->n_group,
                (long long)z->group, (long long)z->n_in);
    }
done:
    return status;
}

/* Our words are theirs, turned: each row of ours is a column of theirs. */
static rq_status turn_words(uint32_t **out, const rq_tensor *w) {
    const int64_t rows = w->shape[0], cols = w->shape[1], tile = 16;
    uint32_t *to;
    rq_status status = RQ_NEW(to, rows * cols + 1);
    if (status != RQ_OK) return status;
    for (int64_t c0 = 0; c0 < cols; c0 += tile) {
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = c0; c < rq_min_i64(cols, c0 + tile); ++c) {
                memcpy(&to[c * rows + r], (const unsigned char *)w->data + (r * cols + c) * 4, 4);
            }
        }
    }
    to[rows * cols] = 0;
    *out = to;
    return RQ_OK;
}

static rq_status read_zeros(uint8_t **out, const rq_tensor *t, const shape *z, const char *name, bool v2) {
    uint8_t *zero;
    const uint32_t mask = (1u << z->bits) - 1;
    rq_status status = RQ_NEW(zero, z->n_out * z->n_group);
    if (status != RQ_OK) return status;
    *out = zero;
    for (int64_t k = 0; k < z->n_group; ++k) {
        const unsigned char *row = (const unsigned char *)t->data + k * t->shape[1] * 4;
        for (int64_t i = 0; i < z->n_out; ++i) {
            const uint32_t v = rq_get_code(row, 1, i, z->bits);
            if (!v2 && v == mask) {
                return rq_fail(RQ_ERR_UNSUPPORTED,
                               "%s: the zero point of output %lld, group %lld is stored as %u in version 1, which its "
                               "readers take for %u, for 0 or for a carry into the next",
                               name, (long long)i, (long long)k, v, v + 1);
            }
            zero[i * z->n_group + k] = (uint8_t)(v + !v2);
        }
    }
    return RQ_OK;
}

static rq_status read_groups(int32_t **out, const rq_tensor *t, const shape *z, const char *name) {
    int32_t *g;
    bool plain = true;
    *out = NULL;
    rq_status status = RQ_NEW(g, z->n_in);
    if (status != RQ_OK) return status;
    memcpy(g, t->data, (size_t)z->n_in * 4);
    for (int64_t j = 0; j < z->n_in && plain; ++j) plain = g[j] == j / z->group;
    if (plain) {
        free(g);
        return RQ_OK;
    }
    *out = g;
    for (int64_t j = 0; j < z->n_in; ++j) {
        if (g[j] < 0 || g[j] >= z->n_group) {
            return rq_fail(RQ_ERR_INPUT, "%s.g_idx: input feature %lld is in group %d of %lld", name, (long long)j,
                           g[j], (long long)z->n_group);
        }
    }
    return RQ_OK;
}

static rq_status load(rq_packed *p, const rq_store *s, const char *name, const json_t *entry, bool v2) {
    rq_status status = RQ_OK;
    const rq_tensor *w, *zeros, *g_idx = NULL;
    int32_t *groups = NULL;
    rq_grid_parts part = {0};
    shape z = {0};
    memset(p, 0, sizeof *p);
    RQ_TRY(rq_peer_find(&w, s, name, ".qweight", RQ_I32, 2));
    RQ_TRY(rq_peer_find(&zeros, s, name, ".qzeros", RQ_I32, 2));
    if (rq_pack_has(s, name, ".g_idx")) RQ_TRY(rq_peer_find(&g_idx, s, name, ".g_idx", RQ_I32, 1));
    RQ_TRY(find_shape(&z, name, entry, w, zeros, g_idx));
    part = (rq_grid_parts){.n_out = z.n_out, .n_in = z.n_in, .group = z.group, .bits = z.bits};
    RQ_TRY(rq_peer_load_scales(&part, s, name, ".scales", true));
    if (g_idx) RQ_TRY(read_groups(&groups, g_idx, &z, name));
    part.g_idx = groups;
    RQ_TRY(turn_words(&part.words, w));
    RQ_TRY(read_zeros(&part.zero, zeros, &z, name, v2));
done:
    status = rq_grid_take(p, name, &part, status);
    free(groups);
    return status;
}

static rq_status load_v1(rq_packed *p, const rq_store *s, const char *name, const json_t *entry) {
    return load(p, s, name, entry, false);
}
static rq_status load_v2(rq_packed *p, const rq_store *s, const char *name, const json_t *entry) {
    return load(p, s, name, entry, true);
}

/* ---- writing ---- */

static rq_status check(const char *name, const rq_packed *p, bool v2) {
    rq_status status = RQ_OK;
    RQ_TRY(rq_peer_check_grid(name, p, peer_name));
    const rq_grid *g = &p->u.grid;
    const int unit = g->bits == 3 ? 32 : 32 / g->bits;
    if (g->n_in % unit || g->n_out % unit) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: is [%lld, %lld]; %s wants multiples of %d at %d bits", name,
                (long long)g->n_out, (long long)g->n_in, peer_name, unit, g->bits);
    }
    if (g->n_in % g->group) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: groups of %lld do not divide its %lld input features, as %s wants", name,
                (long long)g->group, (long long)g->n_in, peer_name);
    }
    RQ_TRY(rq_peer_check_f16(name, g, peer_name));
    for (int64_t i = 0; !v2 && g->zero && i < g->n_out * g->n_group; ++i) {
        if (g->zero[i] > 0) continue;
        RQ_FAIL(
            RQ_ERR_UNSUPPORTED,
            "%s: the zero point of row %lld, group %lld is 0; version 1 of %s stores zero points less one, which its "
            "readers do not agree on: convert to gptq_v2, or quantize with --sym",
            name, (long long)(i / g->n_group), (long long)(i % g->n_group), peer_name);
    }
done:
    return status;
}

/* Streams down columns of words[rows][n_out]. */
static rq_status write_words(uint32_t *words, const rq_grid *g) {
    uint8_t *codes;
    rq_status status = RQ_NEW(codes, g->n_in);
    for (int64_t i = 0; i < g->n_out && status == RQ_OK; ++i) {
        rq_peer_row_codes(codes, g, i);
        for (int64_t j = 0; j < g->n_in; ++j) rq_put_code(words + i, g->n_out, j, g->bits, codes[j]);
    }
    free(codes);
    return status;
}

static rq_status pack(rq_packed_file *f, json_t **settings, const char *name, const rq_packed *p, bool v2) {
    rq_status status = RQ_OK;
    const rq_grid *g = &p->u.grid;
    uint32_t *words, *zeros;
    rq_f16 *scales;
    int32_t *groups = NULL;
    *settings = NULL;
    memset(f, 0, sizeof *f);
    RQ_TRY(check(name, p, v2));
    const int64_t rows = rq_grid_row_words(g->n_in, g->bits), zero_words = rq_grid_row_words(g->n_out, g->bits);
    RQ_TRY(RQ_NEW_ZERO(words, rows * g->n_out));
    RQ_TRY(rq_pack_give(f, name, ".qweight", RQ_I32, (int64_t[3]){rows, g->n_out}, words));
    RQ_TRY(write_words(words, g));
    RQ_TRY(RQ_NEW_ZERO(zeros, zero_words * g->n_group));
    RQ_TRY(rq_pack_give(f, name, ".qzeros", RQ_I32, (int64_t[3]){g->n_group, zero_words}, zeros));
    RQ_TRY(RQ_NEW(scales, g->n_group * g->n_out));
    RQ_TRY(rq_pack_give(f, name, ".scales", RQ_F16, (int64_t[3]){g->n_group, g->n_out}, scales));
    for (int64_t k = 0; k < g->n_group; ++k) {
        for (int64_t i = 0; i < g->n_out; ++i) {
            rq_put_code(zeros + k * zero_words, 1, i, g->bits, (uint32_t)(rq_grid_zero(g, i, k) - !v2));
            scales[k * g->n_out + i] = rq_f16_of_f32(rq_grid_scale(g, i, k));
        }
    }
    RQ_TRY(rq_peer_groups(&groups, g));
    if (!groups) {
        RQ_TRY(RQ_NEW(groups, g->n_in));
        for (int64_t j = 0; j < g->n_in; ++j) groups[j] = (int32_t)(j / g->group);
    }
    RQ_TRY(rq_pack_give(f, name, ".g_idx", RQ_I32, (int64_t[3]){g->n_in}, groups));
    *settings = rq_peer_grid_settings(g);
    if (!*settings) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
done:
    if (status != RQ_OK) rq_packed_file_free(f);
    return status;
}

static rq_status pack_v1(rq_packed_file *f, json_t **settings, const char *name, const rq_packed *p) {
    return pack(f, settings, name, p, false);
}
static rq_status pack_v2(rq_packed_file *f, json_t **settings, const char *name, const rq_packed *p) {
    return pack(f, settings, name, p, true);
}

/* The key of a rule of `dynamic`: prefix, then a regular expression that is this name alone. */
static rq_status set_rule(json_t *rules, const char *prefix, const char *name, json_t *value) {
    char key[2 * RQ_PEER_NAME + 8];
    size_t n = (size_t)snprintf(key, sizeof key, "%s^", prefix);
    for (const char *c = name; *c && n + 4 < sizeof key; ++c) {
        if (strchr(".+*?()[]{}|^$\\", *c)) key[n++] = '\\';
        key[n++] = *c;
    }
    memcpy(key + n, "$", 2);
    return json_object_set_new(rules, key, value) == 0 ? RQ_OK : rq_fail(RQ_ERR_NOMEM, "out of memory");
}

/* Bits that most matrices have. */
static int64_t common_bits(const json_t *settings) {
    int64_t count[9] = {0}, best = 2;
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)settings, name,
                        v)++ count[json_integer_value(json_object_get(v, "bits")) % 9];
    for (int b = 2; b < 9; ++b) best = count[b] > count[best] ? b : best;
    return best;
}

static rq_status config(json_t **to, const json_t *settings, const json_t *dense, const char *version) {
    rq_status status = RQ_OK;
    const int64_t bits = common_bits(settings), group = rq_peer_common_group(settings);
    bool sym = true, act_order = false;
    char quantizer[64];
    const char *name;
    json_t *v, *rules = json_object();
    size_t i;
    *to = NULL;
    json_object_foreach((json_t *)(uintptr_t)settings, name, v) {
        const json_int_t b = json_integer_value(json_object_get(v, "bits"));
        const int64_t own = rq_peer_group(v, group);
        sym = sym && json_is_true(json_object_get(v, "sym"));
        act_order = act_order || json_is_true(json_object_get(v, "act_order"));
        if (b == bits && own == group) continue;
        RQ_TRY(set_rule(rules, "+:", name, json_pack("{s:I, s:I}", "bits", b, "group_size", (json_int_t)own)));
    }
    json_array_foreach((json_t *)(uintptr_t)dense, i, v) {
        const char *layer = json_string_value(v);
        if (strcmp(layer, "lm_head") != 0) RQ_TRY(set_rule(rules, "-:", layer, json_object()));
    }
    snprintf(quantizer, sizeof quantizer, "requite:%s", rq_version());
    *to = json_pack("{s:I, s:I, s:b, s:b, s:b, s:s, s:s, s:s, s:s, s:s, s:b, s:{s:[s]}}", "bits", (json_int_t)bits,
                    "group_size", (json_int_t)group, "desc_act", act_order, "sym", sym, "lm_head", 0, "quant_method",
                    "gptq", "method", "gptq", "checkpoint_format", version, "format", version, "pack_dtype", "int32",
                    "true_sequential", 1, "meta", "quantizer", quantizer);
    if (!*to) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (json_object_size(rules) > 0) json_object_set(*to, "dynamic", rules);
done:
    json_decref(rules);
    return status;
}

static rq_status config_v1(json_t **to, const json_t *settings, const json_t *dense) {
    return config(to, settings, dense, "gptq");
}
static rq_status config_v2(json_t **to, const json_t *settings, const json_t *dense) {
    return config(to, settings, dense, "gptq_v2");
}

const rq_peer_ops rq_peer_gptq = {"gptq",  "gptq",   "quantize_config.json", suffixes, describe, load_v1,
                                  pack_v1, config_v1};
const rq_peer_ops rq_peer_gptq_v2 = {"gptq_v2", NULL,     "quantize_config.json", suffixes, NULL, load_v2,
                                     pack_v2,   config_v2};
