/* SPDX-License-Identifier: Apache-2.0 */
/* quantization_config of compressed-tensors. Reading: `config_groups` name the matrices that a setting is for, by their full names, by regular
 * expressions ("re:" and a pattern that matches from the start) or by the class of their layer ("Linear"); a name goes before a pattern, that
 * before a class. Writing: one group for each setting. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "model_parse.h"
#include "pack_common.h"
#include "peer_ct.h"

enum { MATCH_LIMIT = 20000 }; /* steps: patterns come from files */

/* ---- reading ---- */

static bool matches(const char *pattern, const char *name) {
    int error;
    PCRE2_SIZE at;
    pcre2_code *re =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_ANCHORED, &error, &at, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    pcre2_match_data *m = re && context ? pcre2_match_data_create_from_pattern(re, NULL) : NULL;
    bool found = false;
    if (m) {
        pcre2_set_match_limit(context, MATCH_LIMIT);
        found = pcre2_match(re, (PCRE2_SPTR)name, strlen(name), 0, 0, m, context) >= 0;
    }
    pcre2_match_data_free(m);
    pcre2_match_context_free(context);
    pcre2_code_free(re);
    return found;
}

/* How well a group's targets fit: 3 by name, 2 by pattern, 1 by class, 0 not. */
static int fit(const json_t *group, const char *name) {
    int best = 0;
    size_t i;
    json_t *v;
    json_array_foreach(json_object_get(group, "targets"), i, v) {
        const char *target = json_string_value(v);
        if (!target) continue;
        const int how = strcmp(target, name) == 0        ? 3
                        : strncmp(target, "re:", 3) == 0 ? (matches(target + 3, name) ? 2 : 0)
                        : strcmp(target, "Linear") == 0  ? 1
                                                         : 0;
        best = how > best ? how : best;
    }
    return best;
}

static const json_t *group_of(const json_t *config, const char *name) {
    const json_t *best = NULL;
    const char *key;
    json_t *v;
    int how = 0;
    json_object_foreach(json_object_get(config, "config_groups"), key, v) {
        const int f = fit(v, name);
        if (f > how) best = v;
        how = f > how ? f : how;
    }
    return best;
}

static bool is_text(const json_t *o, const char *key, const char *text) {
    const char *have = json_string_value(json_object_get(o, key));
    return have && strcmp(have, text) == 0;
}

/* Bits of the activations: 0 when they stay as they are. */
static rq_status read_activations(int64_t *bits, const json_t *group, const char *name) {
    rq_status status = RQ_OK;
    const json_t *in = json_object_get(group, "input_activations"), *out = json_object_get(group, "output_activations");
    *bits = 0;
    if (out && !json_is_null(out)) RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: quantized output activations are not read", name);
    if (!in || json_is_null(in)) return RQ_OK;
    RQ_TRY(rq_peer_int(in, "num_bits", 8, 8, INT64_MIN, bits));
    if (!is_text(in, "type", "int") || !json_is_true(json_object_get(in, "dynamic"))) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED,
                "%s: its input activations are not dynamic 8-bit integers, the only kind that is read", name);
    }
done:
    return status;
}

static rq_status read_weights(json_t *entry, const json_t *group, const char *name) {
    rq_status status = RQ_OK;
    const json_t *w = json_object_get(group, "weights"), *symmetric = json_object_get(w, "symmetric");
    int64_t bits, group_size = -1;
    RQ_TRY(rq_peer_int(w, "num_bits", 2, 8, INT64_MIN, &bits));
    if (bits > 4 && bits < 8)
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: weights of %lld bits; 2, 3, 4 and 8 are read", name, (long long)bits);
    if (!is_text(w, "type", "int")) RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: weights that are no integers are not read", name);
    if (is_text(w, "strategy", "group")) {
        RQ_TRY(rq_peer_int(w, "group_size", 1, INT32_MAX, INT64_MIN, &group_size));
    } else if (!is_text(w, "strategy", "channel")) {
        const char *strategy = json_string_value(json_object_get(w, "strategy"));
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: strategy %s is not read (group and channel are)", name,
                strategy ? RQ_SHOW(strategy) : "(none)");
    }
    json_object_set_new(entry, "bits", json_integer(bits));
    json_object_set_new(entry, "group", json_integer(group_size));
    json_object_set_new(entry, "sym", json_boolean(!json_is_false(symmetric)));
done:
    return status;
}

static rq_status check_config(const json_t *config) {
    const json_t *transform = json_object_get(config, "transform_config"),
                 *sparse = json_object_get(config, "sparsity_config");
    if (json_object_size(json_object_get(transform, "config_groups")) > 0)
        return rq_fail(RQ_ERR_UNSUPPORTED, "quantization_config: transforms (transform_config) are not read");
    if (json_object_size(sparse) > 0 && !is_text(sparse, "format", "dense"))
        return rq_fail(RQ_ERR_UNSUPPORTED, "quantization_config: sparse weights (sparsity_config) are not read");
    if (!json_is_object(json_object_get(config, "config_groups")))
        return rq_fail(RQ_ERR_INPUT, "quantization_config: there is no object config_groups");
    return RQ_OK;
}

/* The entry of one matrix, or none when it is dense. */
static rq_status add_entry(json_t *linears, const json_t *config, const rq_store *s, const char *name, bool *floats) {
    rq_status status = RQ_OK;
    const rq_tensor *w;
    const bool packed = rq_pack_has(s, name, ".weight_packed");
    int64_t act_bits = 0;
    json_t *e = NULL;
    if (!packed) RQ_TRY(rq_peer_find(&w, s, name, ".weight", RQ_I8, 2));
    const json_t *group = group_of(config, name);
    if (!group) RQ_FAIL(RQ_ERR_INPUT, "%s: no group of quantization_config is for it", RQ_SHOW(name));
    e = json_pack("{s:s, s:s}", "format", "compressed-tensors", "packing", packed ? "pack-quantized" : "int-quantized");
    if (!e) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(read_weights(e, group, name));
    RQ_TRY(read_activations(&act_bits, group, name));
    json_object_set_new(e, "act_bits", json_integer(act_bits));
    const json_int_t bits = json_integer_value(json_object_get(e, "bits"));
    *floats = *floats || (act_bits && (bits != 4 || json_integer_value(json_object_get(e, "group")) > 0));
    if (json_object_set(linears, name, e) != 0) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
done:
    json_decref(e);
    return status;
}

rq_status rq_peer_ct_describe(json_t *linears, const json_t *config, const rq_store *s) {
    rq_status status = RQ_OK;
    char name[RQ_PEER_NAME];
    bool floats = false;
    const json_t *cache = json_object_get(config, "kv_cache_scheme");
    RQ_TRY(check_config(config));
    for (int64_t i = 0; i < rq_store_count(s); ++i) {
        if (rq_peer_module(name, rq_store_at(s, i)->name, ".weight_scale"))
            RQ_TRY(add_entry(linears, config, s, name, &floats));
    }
    if (floats) {
        rq_log(RQ_LOG_WARN, "compressed-tensors would quantize inputs to 8 bits; here they stay as they are, but for "
                            "4-bit weights with a scale a row");
    }
    if (cache && !json_is_null(cache))
        rq_log(RQ_LOG_WARN, "the key-value cache is not quantized, as kv_cache_scheme says");
done:
    return status;
}

/* ---- writing ---- */

static json_t *make_group(const json_t *z) {
    const json_int_t group = json_integer_value(json_object_get(z, "group"));
    const bool act = json_integer_value(json_object_get(z, "act_bits")) != 0;
    json_t *weights = json_pack("{s:O, s:s, s:O, s:s, s:o, s:b}", "num_bits", json_object_get(z, "bits"), "type", "int",
                                "symmetric", json_object_get(z, "sym"), "strategy", group > 0 ? "group" : "channel",
                                "group_size", group > 0 ? json_integer(group) : json_null(), "dynamic", 0);
    if (json_is_true(json_object_get(z, "act_order"))) json_object_set_new(weights, "actorder", json_string("group"));
    json_t *in = act ? json_pack("{s:i, s:s, s:b, s:s, s:b}", "num_bits", 8, "type", "int", "symmetric", 1, "strategy",
                                 "token", "dynamic", 1)
                     : json_null();
    return json_pack("{s:[], s:o, s:o, s:n, s:O}", "targets", "weights", weights, "input_activations", in,
                     "output_activations", "format", json_object_get(z, "packing"));
}

/* Releases before 0.18 read 3-bit words in another way. */
static void say_if_new(const json_t *groups) {
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)groups, key, v) {
        if (json_integer_value(json_object_get(json_object_get(v, "weights"), "num_bits")) != 3) continue;
        rq_log(RQ_LOG_WARN, "3-bit weights are packed as compressed-tensors 0.18 and later have them; older releases "
                            "cannot read this file");
        return;
    }
}

rq_status rq_peer_ct_config(json_t **to, const json_t *settings, const json_t *dense) {
    rq_status status = RQ_OK;
    json_t *groups = json_object(), *seen = json_object(), *v;
    const char *name, *format = NULL;
    char id[32];
    *to = NULL;
    json_object_foreach((json_t *)(uintptr_t)settings, name, v) { /* one group for each setting, in the order met */
        char *key = json_dumps(v, JSON_COMPACT | JSON_SORT_KEYS);
        if (!key) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
        json_t *group = json_object_get(seen, key);
        if (!group) {
            group = make_group(v);
            snprintf(id, sizeof id, "group_%zu", json_object_size(groups));
            json_object_set_new(groups, id, group);
            json_object_set(seen, key, group);
        }
        free(key);
        if (!group) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
        json_array_append_new(json_object_get(group, "targets"), json_string(name));
        const char *one = json_string_value(json_object_get(group, "format"));
        format = !format || strcmp(format, one) == 0 ? one : "mixed-precision";
    }
    if (json_object_size(groups) == 1) {
        json_object_set_new(json_object_get(groups, "group_0"), "targets", json_pack("[s]", "Linear"));
    }
    say_if_new(groups);
    *to = json_pack("{s:s, s:s, s:s, s:n, s:n, s:O, s:O}", "quant_method", "compressed-tensors", "format", format,
                    "quantization_status", "compressed", "global_compression_ratio", "kv_cache_scheme", "ignore", dense,
                    "config_groups", groups);
    if (!*to) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
done:
    json_decref(groups);
    json_decref(seen);
    return status;
}
