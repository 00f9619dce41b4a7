/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration of a GGUF model from its metadata, and config.json for such a model. */
#include <jansson.h>
#include <math.h>

#include "model_parse.h"

/* "<arch>.<key>" in a small buffer that lives until the end of the full expression. */
static rq_shown with_arch(const rq_config *c, const char *key) {
    rq_shown full;
    snprintf(full.text, sizeof full.text, "%s.%s", c->arch, key);
    return full;
}
#define KEY(key) (with_arch(c, (key)).text)

static rq_status want_i64(const rq_config *c, const rq_store *s, const char *key, int64_t *v) {
    if (rq_meta_i64(s, KEY(key), v)) return RQ_OK;
    return rq_fail(RQ_ERR_INPUT, "%s: key %s is %s", s->path, KEY(key),
                   rq_store_meta(s, KEY(key)) ? "not one integer" : "missing");
}

static rq_status i64_or(const rq_config *c, const rq_store *s, const char *key, int64_t otherwise, int64_t *v) {
    *v = otherwise;
    return rq_store_meta(s, KEY(key)) ? want_i64(c, s, key, v) : RQ_OK;
}

static rq_status f64_or(const rq_config *c, const rq_store *s, const char *key, double otherwise, double *v) {
    *v = otherwise;
    if (!rq_store_meta(s, KEY(key)) || rq_meta_f64(s, KEY(key), v)) return RQ_OK;
    return rq_fail(RQ_ERR_INPUT, "%s: key %s is not a number", s->path, KEY(key));
}

static rq_status read_arch(rq_config *c, const rq_store *s) {
    const char *arch;
    int64_t n;
    if (!rq_meta_str(s, "general.architecture", &arch, &n)) {
        return rq_fail(RQ_ERR_INPUT, "%s: has no general.architecture", s->path);
    }
    if (n != 5 || (memcmp(arch, "llama", 5) != 0 && memcmp(arch, "qwen2", 5) != 0)) {
        return rq_fail(RQ_ERR_UNSUPPORTED,
                       "%s: architecture %s is not supported (llama and qwen2 are; Mistral files are "
                       "called llama)",
                       s->path, rq_show(arch, n).text);
    }
    memcpy(c->arch, arch, 5);
    return RQ_OK;
}

static rq_status read_sizes(rq_config *c, const rq_store *s) {
    rq_status status = RQ_OK;
    int64_t n_expert, value_dim;
    double eps;
    const rq_tensor *embed = rq_store_find(s, "model.embed_tokens.weight");
    RQ_TRY(want_i64(c, s, "block_count", &c->n_layer));
    RQ_TRY(want_i64(c, s, "embedding_length", &c->d_model));
    RQ_TRY(want_i64(c, s, "feed_forward_length", &c->d_ff));
    RQ_TRY(want_i64(c, s, "attention.head_count", &c->n_head));
    RQ_TRY(want_i64(c, s, "context_length", &c->max_seq));
    RQ_TRY(i64_or(c, s, "attention.head_count_kv", c->n_head, &c->n_kv_head));
    RQ_TRY(i64_or(c, s, "expert_count", 0, &n_expert));
    if (n_expert != 0) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: a mixture of %lld experts is not supported", s->path, (long long)n_expert);
    }
    if (!rq_store_meta(s, KEY("attention.layer_norm_rms_epsilon"))) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: key %s is missing", s->path, KEY("attention.layer_norm_rms_epsilon"));
    }
    RQ_TRY(f64_or(c, s, "attention.layer_norm_rms_epsilon", 0.0, &eps));
    c->rms_eps = (float)eps;
    if (rq_store_meta(s, KEY("attention.key_length"))) {
        RQ_TRY(want_i64(c, s, "attention.key_length", &c->head_dim));
    } else if (c->n_head < 1 || c->d_model < 1 || c->d_model % c->n_head != 0) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: width %lld is not a multiple of %lld attention heads", s->path,
                (long long)c->d_model, (long long)c->n_head);
    } else {
        c->head_dim = c->d_model / c->n_head;
    }
    RQ_TRY(i64_or(c, s, "attention.value_length", c->head_dim, &value_dim));
    if (value_dim != c->head_dim) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: keys of %lld and values of %lld dimensions are not supported", s->path,
                (long long)c->head_dim, (long long)value_dim);
    }
    if (!embed || embed->rank != 2) RQ_FAIL(RQ_ERR_INPUT, "%s: has no token_embd.weight matrix", s->path);
    c->n_vocab = embed->shape[0];
done:
    return status;
}

/* What llama3 scaling divides frequency i by, with the bounds 1 and 4 that every published model uses. */
static double llama3_divisor(const rq_config *c, int64_t i, double factor, int64_t original) {
    double turns = (double)original * pow(c->rope_theta, -2.0 * (double)i / (double)c->head_dim) / (2.0 * M_PI);
    double keep = (turns - 1.0) / (4.0 - 1.0);
    keep = keep < 0.0 ? 0.0 : keep > 1.0 ? 1.0 : keep;
    return 1.0 / (keep + (1.0 - keep) / factor);
}

/* GGUF stores llama3 scaling as its divisors, rope_freqs.weight, which stay in the store under that name for the forward
 * pass. config.json needs the numbers behind them: the factor is the largest divisor, the original context a power of
 * two that gives all the others. */
static rq_status read_divisors(rq_config *c, const rq_store *s) {
    const rq_tensor *t = rq_store_find(s, "rope_freqs.weight");
    int64_t n = c->head_dim / 2;
    double factor = 1.0;
    bool plain = true;
    if (!t) return RQ_OK;
    if (t->dtype != RQ_F32 || t->rank != 1 || t->shape[0] != n) {
        return rq_fail(RQ_ERR_INPUT, "%s: rope_freqs.weight is not F32 [%lld]", s->path, (long long)n);
    }
    for (int64_t i = 0; i < n; ++i) {
        float v;
        memcpy(&v, (const uint8_t *)t->data + i * (int64_t)sizeof v, sizeof v);
        if (!isfinite(v) || v <= 0.0f) {
            return rq_fail(RQ_ERR_INPUT, "%s: rope_freqs.weight[%lld] is %g", s->path, (long long)i, (double)v);
        }
        plain = plain && v == 1.0f;
        if ((double)v > factor) factor = (double)v;
    }
    if (plain) return RQ_OK;
    for (int64_t original = 1 << 10; original <= 1 << 20 && c->rope_scaling == RQ_ROPE_PLAIN; original *= 2) {
        int64_t i = 0;
        for (; i < n; ++i) {
            float v;
            memcpy(&v, (const uint8_t *)t->data + i * (int64_t)sizeof v, sizeof v);
            if (fabs(llama3_divisor(c, i, factor, original) - (double)v) > 1e-4 * (double)v) break;
        }
        if (i < n) continue;
        c->rope_scaling = RQ_ROPE_LLAMA3;
        c->rope_factor = factor;
        c->rope_low_freq_factor = 1.0;
        c->rope_high_freq_factor = 4.0;
        c->rope_original_max_seq = original;
        return RQ_OK;
    }
    return rq_fail(RQ_ERR_UNSUPPORTED, "%s: rope_freqs.weight (largest divisor %g) is not llama3 scaling", s->path,
                   factor);
}

static rq_status positive_theta(const rq_config *c, const rq_store *s) {
    if (isfinite(c->rope_theta) && c->rope_theta > 0.0) return RQ_OK;
    return rq_fail(RQ_ERR_INPUT, "%s: rope.freq_base is %g", s->path, c->rope_theta);
}

static rq_status read_rope(rq_config *c, const rq_store *s) {
    rq_status status = RQ_OK;
    const char *kind;
    int64_t n, dims, window;
    RQ_TRY(f64_or(c, s, "rope.freq_base", 10000.0, &c->rope_theta));
    RQ_TRY(i64_or(c, s, "rope.dimension_count", c->head_dim, &dims));
    if (dims != c->head_dim) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: rotating %lld of %lld dimensions is not supported", s->path, (long long)dims,
                (long long)c->head_dim);
    }
    c->rope_scaling = RQ_ROPE_PLAIN;
    c->rope_factor = 1.0;
    if (rq_meta_str(s, KEY("rope.scaling.type"), &kind, &n)) {
        if (n == 6 && memcmp(kind, "linear", 6) == 0) {
            c->rope_scaling = RQ_ROPE_LINEAR;
            RQ_TRY(
                f64_or(c, s, "rope.scaling.factor", 0.0, &c->rope_factor)); /* absent: 0, refused by the size check */
        } else if (n != 4 || memcmp(kind, "none", 4) != 0) {
            RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: rope scaling %s is not supported (none and linear are)", s->path,
                    rq_show(kind, n).text);
        }
    } else if (rq_store_meta(s, KEY("rope.scale_linear"))) { /* the key of older files */
        RQ_TRY(f64_or(c, s, "rope.scale_linear", 1.0, &c->rope_factor));
        if (c->rope_factor != 1.0) c->rope_scaling = RQ_ROPE_LINEAR;
    }
    RQ_TRY(positive_theta(c, s));
    RQ_TRY(read_divisors(c, s));
    RQ_TRY(i64_or(c, s, "attention.sliding_window", 0, &window));
    if (window > 0 && window < c->max_seq) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: attention in a sliding window of %lld of %lld positions is not supported",
                s->path, (long long)window, (long long)c->max_seq);
    }
done:
    return status;
}

static rq_status read_ids(rq_config *c, const rq_store *s) {
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"};
    int64_t id;
    c->bos_id = -1;
    if (rq_meta_i64(s, "tokenizer.ggml.bos_token_id", &id)) {
        if (id < 0 || id >= c->n_vocab) {
            return rq_fail(RQ_ERR_INPUT, "%s: tokenizer.ggml.bos_token_id %lld is outside the vocabulary of %lld",
                           s->path, (long long)id, (long long)c->n_vocab);
        }
        c->bos_id = id;
    }
    for (size_t i = 0; i < sizeof ends / sizeof *ends; ++i) {
        if (!rq_meta_i64(s, ends[i], &id)) continue;
        rq_status status = rq_config_add_eos(c, id, s->path);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}

rq_status rq_config_from_gguf(rq_config *c, const rq_store *s) {
    rq_status status = RQ_OK;
    memset(c, 0, sizeof *c);
    RQ_TRY(read_arch(c, s));
    RQ_TRY(read_sizes(c, s));
    RQ_TRY(read_rope(c, s));
    RQ_TRY(rq_config_check_sizes(c, s->path));
    /* Whether there are biases and a head of its own is told by the tensors alone. */
    c->tied_head = !rq_store_find(s, "lm_head.weight");
    c->qkv_bias = rq_store_find(s, "model.layers.0.self_attn.q_proj.bias") != NULL;
    c->o_bias = rq_store_find(s, "model.layers.0.self_attn.o_proj.bias") != NULL;
    c->mlp_bias = rq_store_find(s, "model.layers.0.mlp.gate_proj.bias") != NULL;
    RQ_TRY(read_ids(c, s));
done:
    return status;
}

/* ---- config.json -------------------------------------------------------------------------------------------------- */

static json_t *rope_json(const rq_config *c) {
    if (c->rope_scaling == RQ_ROPE_LINEAR) {
        return json_pack("{s:s, s:f}", "rope_type", "linear", "factor", c->rope_factor);
    }
    if (c->rope_scaling == RQ_ROPE_LLAMA3) {
        return json_pack("{s:s, s:f, s:f, s:f, s:I}", "rope_type", "llama3", "factor", c->rope_factor,
                         "low_freq_factor", c->rope_low_freq_factor, "high_freq_factor", c->rope_high_freq_factor,
                         "original_max_position_embeddings", (json_int_t)c->rope_original_max_seq);
    }
    return json_null();
}

/* A float that came from a float32 as the shortest decimal that gives the same float32: 1e-05, not 9.99999974e-06. */
static double shortest(float x) {
    char text[32];
    for (int digits = 1; digits <= 9; ++digits) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) break;
    }
    return strtod(text, NULL);
}

rq_status rq_config_to_json(const rq_config *c, char **json_text) {
    rq_status status = RQ_OK;
    bool llama = strcmp(c->arch, "llama") == 0, qwen2 = strcmp(c->arch, "qwen2") == 0;
    json_t *o = NULL, *eos = NULL;
    *json_text = NULL;
    if (!llama && !qwen2 && strcmp(c->arch, "mistral") != 0) {
        return rq_fail(RQ_ERR_ARG, "no config.json for architecture %s", RQ_SHOW(c->arch));
    }
    if (llama ? c->qkv_bias != c->o_bias : c->o_bias || c->mlp_bias || c->qkv_bias != qwen2) {
        return rq_fail(RQ_ERR_UNSUPPORTED,
                       "%s with biases on q, k, v: %d, o: %d, mlp: %d cannot be said in config.json", c->arch,
                       c->qkv_bias, c->o_bias, c->mlp_bias);
    }
    if (c->n_eos == 0) {
        eos = json_null();
    } else if (c->n_eos == 1) {
        eos = json_integer(c->eos_id[0]);
    } else {
        eos = json_array();
        for (int64_t i = 0; i < c->n_eos; ++i) json_array_append_new(eos, json_integer(c->eos_id[i]));
    }
    o = json_pack("{s:[s], s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:o, s:b, s:o, s:o, s:s, s:b}",
                  "architectures",
                  llama   ? "LlamaForCausalLM"
                  : qwen2 ? "Qwen2ForCausalLM"
                          : "MistralForCausalLM",
                  "model_type", c->arch, "hidden_act", "silu", "num_hidden_layers", (json_int_t)c->n_layer,
                  "hidden_size", (json_int_t)c->d_model, "intermediate_size", (json_int_t)c->d_ff,
                  "num_attention_heads", (json_int_t)c->n_head, "num_key_value_heads", (json_int_t)c->n_kv_head,
                  "head_dim", (json_int_t)c->head_dim, "vocab_size", (json_int_t)c->n_vocab, "max_position_embeddings",
                  (json_int_t)c->max_seq, "rms_norm_eps", shortest(c->rms_eps), "rope_theta", c->rope_theta,
                  "rope_scaling", rope_json(c), "tie_word_embeddings", (int)c->tied_head, "bos_token_id",
                  c->bos_id >= 0 ? json_integer(c->bos_id) : json_null(), "eos_token_id", eos, "torch_dtype", "float32",
                  "use_cache", 1);
    int failed = !o;
    if (llama) {
        failed |= json_object_set_new(o, "attention_bias", json_boolean(c->qkv_bias));
        failed |= json_object_set_new(o, "mlp_bias", json_boolean(c->mlp_bias));
    } else {
        failed |= json_object_set_new(o, "sliding_window", json_null());
        if (qwen2) failed |= json_object_set_new(o, "use_sliding_window", json_false());
    }
    if (!failed) *json_text = json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    if (!*json_text) status = rq_fail(RQ_ERR_NOMEM, "out of memory while building config.json");
    json_decref(o);
    return status;
}
