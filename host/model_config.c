/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration of a model from config.json (GGUF metadata: model_config_gguf.c), checked for sense and against the
 * tensors. Defaults are those of the Hugging Face configuration classes; what the forward pass does not compute is
 * refused by name. */
#include <jansson.h>
#include <math.h>
#include <unistd.h>

#include "model_parse.h"
#include "peer.h"

/* ---- fields: absent and null are the same ------------------------------------------------------------------------- */

static const json_t *field(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NULL : v;
}

static rq_status get_i64(const json_t *o, const char *key, int64_t *v, const char *label) {
    const json_t *f = field(o, key);
    if (!json_is_integer(f)) return rq_fail(RQ_ERR_INPUT, "%s: %s is %s", label, key, f ? "not an integer" : "missing");
    *v = json_integer_value(f);
    return RQ_OK;
}

static rq_status get_i64_or(const json_t *o, const char *key, int64_t otherwise, int64_t *v, const char *label) {
    *v = otherwise;
    return field(o, key) ? get_i64(o, key, v, label) : RQ_OK;
}

static rq_status get_f64(const json_t *o, const char *key, double *v, const char *label) {
    const json_t *f = field(o, key);
    if (!json_is_number(f)) return rq_fail(RQ_ERR_INPUT, "%s: %s is %s", label, key, f ? "not a number" : "missing");
    *v = json_number_value(f);
    return RQ_OK;
}

static rq_status get_f64_or(const json_t *o, const char *key, double otherwise, double *v, const char *label) {
    *v = otherwise;
    return field(o, key) ? get_f64(o, key, v, label) : RQ_OK;
}

static rq_status get_bool_or(const json_t *o, const char *key, bool otherwise, bool *v, const char *label) {
    const json_t *f = field(o, key);
    *v = otherwise;
    if (!f) return RQ_OK;
    if (!json_is_boolean(f)) return rq_fail(RQ_ERR_INPUT, "%s: %s is neither true nor false", label, key);
    *v = json_is_true(f);
    return RQ_OK;
}

/* ---- parts of config.json ----------------------------------------------------------------------------------------- */

static const struct {
    const char *model_type, *architecture;
} families[] = {
    {"llama", "LlamaForCausalLM"},
    {"mistral", "MistralForCausalLM"},
    {"qwen2", "Qwen2ForCausalLM"},
};
#define N_FAMILIES ((int)(sizeof families / sizeof *families))

static rq_status read_arch(rq_config *c, const json_t *o, const char *label) {
    const json_t *type = field(o, "model_type"), *list = field(o, "architectures");
    const char *type_name = json_string_value(type), *class_name = NULL;
    int found = -1;
    if (type && !type_name) return rq_fail(RQ_ERR_INPUT, "%s: model_type is not a string", label);
    if (list) {
        class_name = json_string_value(json_array_get(list, 0));
        if (json_array_size(list) != 1 || !class_name) {
            return rq_fail(RQ_ERR_INPUT, "%s: architectures is not a list of one name", label);
        }
    }
    if (!type && !list) return rq_fail(RQ_ERR_INPUT, "%s: names neither model_type nor architectures", label);
    for (int i = 0; i < N_FAMILIES; ++i) {
        if (type_name && strcmp(type_name, families[i].model_type) != 0) continue;
        if (class_name && strcmp(class_name, families[i].architecture) != 0) continue;
        found = i;
    }
    if (found < 0) {
        return rq_fail(RQ_ERR_UNSUPPORTED,
                       "%s: model_type %s with architecture %s is not supported (llama, mistral and "
                       "qwen2 causal language models are)",
                       label, type_name ? RQ_SHOW(type_name) : "(none)", class_name ? RQ_SHOW(class_name) : "(none)");
    }
    snprintf(c->arch, sizeof c->arch, "%s", families[found].model_type);
    return RQ_OK;
}

static rq_status read_sizes(rq_config *c, const json_t *o, const char *label) {
    rq_status status = RQ_OK;
    double eps;
    RQ_TRY(get_i64(o, "num_hidden_layers", &c->n_layer, label));
    RQ_TRY(get_i64(o, "hidden_size", &c->d_model, label));
    RQ_TRY(get_i64(o, "intermediate_size", &c->d_ff, label));
    RQ_TRY(get_i64(o, "num_attention_heads", &c->n_head, label));
    RQ_TRY(get_i64(o, "vocab_size", &c->n_vocab, label));
    RQ_TRY(get_i64(o, "max_position_embeddings", &c->max_seq, label));
    RQ_TRY(get_f64_or(o, "rms_norm_eps", 1e-6, &eps, label));
    c->rms_eps = (float)eps;
    if (strcmp(c->arch, "llama") == 0) {
        RQ_TRY(get_i64_or(o, "num_key_value_heads", c->n_head, &c->n_kv_head, label));
    } else { /* their classes have a default that depends on the class version: a checkpoint must say it */
        RQ_TRY(get_i64(o, "num_key_value_heads", &c->n_kv_head, label));
    }
    if (!field(o, "head_dim")) {
        if (c->n_head < 1 || c->d_model < 1 || c->d_model % c->n_head != 0) {
            RQ_FAIL(RQ_ERR_INPUT,
                    "%s: hidden_size %lld is not a multiple of num_attention_heads %lld, and there is no "
                    "head_dim",
                    label, (long long)c->d_model, (long long)c->n_head);
        }
        c->head_dim = c->d_model / c->n_head;
    } else {
        RQ_TRY(get_i64(o, "head_dim", &c->head_dim, label));
    }
done:
    return status;
}

/* rope_theta and rope_scaling, or the newer rope_parameters that holds both. */
static rq_status read_rope(rq_config *c, const json_t *o, const char *label) {
    rq_status status = RQ_OK;
    const json_t *newer = field(o, "rope_parameters"), *rope = newer ? newer : field(o, "rope_scaling");
    double part;
    if (rope && !json_is_object(rope)) {
        return rq_fail(RQ_ERR_INPUT, "%s: %s is not an object", label, newer ? "rope_parameters" : "rope_scaling");
    }
    RQ_TRY(get_f64_or(o, "rope_theta", 10000.0, &c->rope_theta, label));
    if (newer) RQ_TRY(get_f64_or(newer, "rope_theta", c->rope_theta, &c->rope_theta, label));
    RQ_TRY(get_f64_or(o, "partial_rotary_factor", 1.0, &part, label));
    if (newer) RQ_TRY(get_f64_or(newer, "partial_rotary_factor", part, &part, label));
    if (part != 1.0) RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: partial_rotary_factor %g is not supported", label, part);
    c->rope_scaling = RQ_ROPE_PLAIN;
    c->rope_factor = 1.0;
    if (!rope) return RQ_OK;
    const json_t *kind = field(rope, "rope_type") ? field(rope, "rope_type") : field(rope, "type");
    const char *name = json_string_value(kind);
    if (!name) RQ_FAIL(RQ_ERR_INPUT, "%s: the rope settings name no rope_type", label);
    if (strcmp(name, "default") == 0) return RQ_OK;
    if (strcmp(name, "linear") == 0) {
        c->rope_scaling = RQ_ROPE_LINEAR;
        RQ_TRY(get_f64(rope, "factor", &c->rope_factor, label));
    } else if (strcmp(name, "llama3") == 0) {
        c->rope_scaling = RQ_ROPE_LLAMA3;
        RQ_TRY(get_f64(rope, "factor", &c->rope_factor, label));
        RQ_TRY(get_f64(rope, "low_freq_factor", &c->rope_low_freq_factor, label));
        RQ_TRY(get_f64(rope, "high_freq_factor", &c->rope_high_freq_factor, label));
        RQ_TRY(get_i64(rope, "original_max_position_embeddings", &c->rope_original_max_seq, label));
    } else {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: rope type %s is not supported (default, linear and llama3 are)", label,
                RQ_SHOW(name));
    }
done:
    return status;
}

/* Attention is computed over all earlier positions: a window that would cut some of them off is refused. */
static rq_status check_window(const rq_config *c, const json_t *o, const char *label) {
    rq_status status = RQ_OK;
    bool mistral = strcmp(c->arch, "mistral") == 0, uses = mistral, listed = false;
    int64_t window = INT64_MAX, first_layer = 0;
    const json_t *types = field(o, "layer_types");
    if (strcmp(c->arch, "llama") == 0) return RQ_OK;
    if (!mistral) {
        RQ_TRY(get_bool_or(o, "use_sliding_window", false, &uses, label));
        RQ_TRY(get_i64_or(o, "max_window_layers", 28, &first_layer, label));
    }
    for (size_t i = 0; i < json_array_size(types); ++i) {
        const char *t = json_string_value(json_array_get(types, i));
        if (!t || strcmp(t, "full_attention") != 0) listed = true;
    }
    if (types && !mistral) uses = listed; /* the list decides, layer by layer */
    if (types) first_layer = 0;
    /* Key absent: the classes default to 4096. null: no window. */
    if (!json_object_get(o, "sliding_window")) {
        window = 4096;
    } else if (field(o, "sliding_window")) {
        RQ_TRY(get_i64(o, "sliding_window", &window, label));
    }
    if (uses && first_layer < c->n_layer && window < c->max_seq) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: attention in a sliding window of %lld of %lld positions is not supported",
                label, (long long)window, (long long)c->max_seq);
    }
done:
    return status;
}

static rq_status read_switches(rq_config *c, const json_t *o, const char *label) {
    rq_status status = RQ_OK;
    bool attention, mlp;
    const json_t *act = field(o, "hidden_act"), *quant = field(o, "quantization_config");
    if (act && (!json_string_value(act) || strcmp(json_string_value(act), "silu") != 0)) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: hidden_act %s is not supported (silu is)", label,
                json_string_value(act) ? RQ_SHOW(json_string_value(act)) : "that is no string");
    }
    RQ_TRY(get_bool_or(o, "tie_word_embeddings", false, &c->tied_head, label));
    RQ_TRY(get_bool_or(o, "attention_bias", false, &attention, label));
    RQ_TRY(get_bool_or(o, "mlp_bias", false, &mlp, label));
    if (strcmp(c->arch, "llama") == 0) {
        c->qkv_bias = c->o_bias = attention;
        c->mlp_bias = mlp;
    } else {
        if (mlp || (attention && strcmp(c->arch, "mistral") == 0)) {
            RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: %s has no %s", label, c->arch, mlp ? "mlp_bias" : "attention_bias");
        }
        c->qkv_bias = strcmp(c->arch, "qwen2") == 0;
    }
    if (quant) {
        const char *method = json_string_value(field(quant, "quant_method"));
        if (!method) RQ_FAIL(RQ_ERR_INPUT, "%s: quantization_config names no quant_method", label);
        if (strcmp(method, "requite") != 0 && !rq_peer_reads(method)) {
            RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: weights quantized by %s are not read (docs/peers.md lists what is)", label,
                    RQ_SHOW(method));
        }
    }
done:
    return status;
}

rq_status rq_config_add_eos(rq_config *c, int64_t id, const char *label) {
    if (id < 0 || id >= c->n_vocab) {
        return rq_fail(RQ_ERR_INPUT, "%s: end-of-sequence id %lld is outside the vocabulary of %lld", label,
                       (long long)id, (long long)c->n_vocab);
    }
    for (int64_t i = 0; i < c->n_eos; ++i) {
        if (c->eos_id[i] == id) return RQ_OK;
    }
    if (c->n_eos == (int64_t)(sizeof c->eos_id / sizeof *c->eos_id)) {
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s: more than %lld end-of-sequence ids", label, (long long)c->n_eos);
    }
    c->eos_id[c->n_eos++] = id;
    return RQ_OK;
}

/* One id or a list of ids, appended to what is there. */
static rq_status read_eos(rq_config *c, const json_t *o, const char *label) {
    const json_t *f = field(o, "eos_token_id");
    if (!f) return RQ_OK;
    if (json_is_integer(f)) return rq_config_add_eos(c, json_integer_value(f), label);
    if (!json_is_array(f)) return rq_fail(RQ_ERR_INPUT, "%s: eos_token_id is neither an integer nor a list", label);
    for (size_t i = 0; i < json_array_size(f); ++i) {
        const json_t *id = json_array_get(f, i);
        if (!json_is_integer(id)) return rq_fail(RQ_ERR_INPUT, "%s: eos_token_id holds a non-integer", label);
        rq_status status = rq_config_add_eos(c, json_integer_value(id), label);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}

static rq_status parse_object(json_t **root, const char *text, int64_t n_bytes, const char *label) {
    json_error_t err;
    *root = json_loadb(text, (size_t)n_bytes, JSON_REJECT_DUPLICATES, &err);
    if (!*root) return rq_fail(RQ_ERR_INPUT, "%s: line %d: %s", label, err.line, RQ_SHOW(err.text));
    if (!json_is_object(*root)) return rq_fail(RQ_ERR_INPUT, "%s: is not a JSON object", label);
    return RQ_OK;
}

rq_status rq_config_from_json(rq_config *c, const char *text, int64_t n_bytes, const char *generation,
                              int64_t n_generation, const char *label) {
    rq_status status = RQ_OK;
    json_t *root = NULL, *gen = NULL;
    memset(c, 0, sizeof *c);
    RQ_TRY(parse_object(&root, text, n_bytes, label));
    RQ_TRY(read_arch(c, root, label));
    RQ_TRY(read_sizes(c, root, label));
    RQ_TRY(read_rope(c, root, label));
    RQ_TRY(read_switches(c, root, label));
    RQ_TRY(rq_config_check_sizes(c, label));
    RQ_TRY(check_window(c, root, label));
    RQ_TRY(get_i64_or(root, "bos_token_id", -1, &c->bos_id, label));
    if (c->bos_id < -1 || c->bos_id >= c->n_vocab) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: bos_token_id %lld is outside the vocabulary of %lld", label, (long long)c->bos_id,
                (long long)c->n_vocab);
    }
    RQ_TRY(read_eos(c, root, label));
    if (generation) {
        RQ_TRY(parse_object(&gen, generation, n_generation, "generation_config.json"));
        RQ_TRY(read_eos(c, gen, "generation_config.json"));
    }
done:
    json_decref(root);
    json_decref(gen);
    return status;
}

/* ---- sense of the numbers ----------------------------------------------------------------------------------------- */

static rq_status in_range(const char *what, int64_t v, int64_t least, int64_t most, const char *label) {
    if (v >= least && v <= most) return RQ_OK;
    return rq_fail(RQ_ERR_INPUT, "%s: %s is %lld; %lld to %lld is accepted", label, what, (long long)v,
                   (long long)least, (long long)most);
}

static rq_status positive(const char *what, double v, const char *label) {
    if (isfinite(v) && v > 0.0) return RQ_OK;
    return rq_fail(RQ_ERR_INPUT, "%s: %s is %g; it must be positive and finite", label, what, v);
}

rq_status rq_config_check_sizes(const rq_config *c, const char *label) {
    rq_status status = RQ_OK;
    RQ_TRY(in_range("the number of layers", c->n_layer, 1, 10000, label));
    RQ_TRY(in_range("the model width", c->d_model, 1, 1 << 20, label));
    RQ_TRY(in_range("the MLP width", c->d_ff, 1, 1 << 22, label));
    RQ_TRY(in_range("the number of attention heads", c->n_head, 1, 1 << 16, label));
    RQ_TRY(in_range("the number of key-value heads", c->n_kv_head, 1, c->n_head, label));
    RQ_TRY(in_range("the head dimension", c->head_dim, 2, 1 << 16, label));
    RQ_TRY(in_range("the width of all heads", c->n_head * c->head_dim, 2, 1 << 22, label));
    RQ_TRY(in_range("the vocabulary", c->n_vocab, 1, 1 << 24, label));
    RQ_TRY(in_range("the number of positions", c->max_seq, 1, 1 << 30, label));
    if (c->n_head % c->n_kv_head != 0) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: %lld attention heads cannot share %lld key-value heads evenly", label,
                (long long)c->n_head, (long long)c->n_kv_head);
    }
    if (c->head_dim % 2 != 0) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: head dimension %lld is odd; rotary positions need pairs", label,
                (long long)c->head_dim);
    }
    RQ_TRY(positive("rms_norm_eps", (double)c->rms_eps, label));
    RQ_TRY(positive("rope_theta", c->rope_theta, label));
    if (c->rope_scaling != RQ_ROPE_PLAIN) RQ_TRY(positive("the rope factor", c->rope_factor, label));
    if (c->rope_scaling == RQ_ROPE_LLAMA3) {
        RQ_TRY(positive("low_freq_factor", c->rope_low_freq_factor, label));
        RQ_TRY(positive("high_freq_factor", c->rope_high_freq_factor, label));
        RQ_TRY(in_range("original_max_position_embeddings", c->rope_original_max_seq, 1, 1 << 30, label));
        if (c->rope_high_freq_factor <= c->rope_low_freq_factor) {
            RQ_FAIL(RQ_ERR_INPUT, "%s: high_freq_factor %g is not above low_freq_factor %g", label,
                    c->rope_high_freq_factor, c->rope_low_freq_factor);
        }
    }
done:
    return status;
}

/* ---- tensors that must be there ----------------------------------------------------------------------------------- */

static rq_status expect(const rq_store *s, const char *name, int rank, int64_t rows, int64_t cols) {
    const rq_tensor *t = rq_store_find(s, name);
    if (!t) return rq_fail(RQ_ERR_INPUT, "%s: tensor %s is missing", s->path, name);
    if (!rq_dtype_is_real(t->dtype)) {
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s: tensor %s is %s, not a floating-point or GGUF block type", s->path,
                       name, rq_dtype_name(t->dtype));
    }
    if (t->rank != rank || t->shape[0] != rows || (rank == 2 && t->shape[1] != cols)) {
        return rq_fail(RQ_ERR_INPUT,
                       "%s: tensor %s has rank %d and begins [%lld, %lld]; the configuration says rank %d, "
                       "[%lld, %lld]",
                       s->path, name, t->rank, (long long)t->shape[0], (long long)t->shape[1], rank, (long long)rows,
                       (long long)cols);
    }
    return RQ_OK;
}

/* A matrix is dense (NAME.weight) or packed: one of these tensors, which the container code checks. */
static rq_status expect_matrix(const rq_store *s, const char *name, int64_t rows, int64_t cols) {
    static const char *const packed[] = {"weight_packed", "weight_codes", "qweight", "indices", "codes"};
    char full[160];
    for (size_t i = 0; i < sizeof packed / sizeof *packed; ++i) {
        snprintf(full, sizeof full, "%s.%s", name, packed[i]);
        if (rq_store_find(s, full)) return RQ_OK;
    }
    snprintf(full, sizeof full, "%s.weight_scale", name);
    const bool scaled = rq_store_find(s, full) != NULL;
    snprintf(full, sizeof full, "%s.weight", name);
    const rq_tensor *t = rq_store_find(s, full);
    if (t && t->dtype == RQ_I8 && scaled) return RQ_OK; /* codes in whole bytes */
    return expect(s, full, 2, rows, cols);
}

static rq_status expect_bias(const rq_store *s, const char *name, bool wanted, int64_t rows) {
    char full[160];
    snprintf(full, sizeof full, "%s.bias", name);
    if (wanted) return expect(s, full, 1, rows, 0);
    const rq_tensor *t = rq_store_find(s, full);
    if (!t || rq_tensor_is_zero(t)) return RQ_OK; /* some quantizers write biases of zeros */
    return rq_fail(RQ_ERR_INPUT, "%s: tensor %s is there, but the configuration says that there is no such bias",
                   s->path, full);
}

static rq_status check_layer(const rq_config *c, const rq_store *s, int64_t layer) {
    rq_status status = RQ_OK;
    char name[128];
    int64_t d = c->d_model, q = c->n_head * c->head_dim, kv = c->n_kv_head * c->head_dim;
    const struct {
        const char *name;
        int64_t rows, cols;
        bool bias;
    } part[] = {
        {"self_attn.q_proj", q, d, c->qkv_bias},    {"self_attn.k_proj", kv, d, c->qkv_bias},
        {"self_attn.v_proj", kv, d, c->qkv_bias},   {"self_attn.o_proj", d, q, c->o_bias},
        {"mlp.gate_proj", c->d_ff, d, c->mlp_bias}, {"mlp.up_proj", c->d_ff, d, c->mlp_bias},
        {"mlp.down_proj", d, c->d_ff, c->mlp_bias},
    };
    for (size_t i = 0; i < sizeof part / sizeof *part; ++i) {
        snprintf(name, sizeof name, "model.layers.%lld.%s", (long long)layer, part[i].name);
        RQ_TRY(expect_matrix(s, name, part[i].rows, part[i].cols));
        RQ_TRY(expect_bias(s, name, part[i].bias, part[i].rows));
    }
    snprintf(name, sizeof name, "model.layers.%lld.input_layernorm.weight", (long long)layer);
    RQ_TRY(expect(s, name, 1, d, 0));
    snprintf(name, sizeof name, "model.layers.%lld.post_attention_layernorm.weight", (long long)layer);
    RQ_TRY(expect(s, name, 1, d, 0));
done:
    return status;
}

rq_status rq_config_check_tensors(const rq_config *c, const rq_store *s) {
    rq_status status = RQ_OK;
    RQ_TRY(expect_matrix(s, "model.embed_tokens", c->n_vocab, c->d_model));
    RQ_TRY(expect(s, "model.norm.weight", 1, c->d_model, 0));
    for (int64_t i = 0; i < c->n_layer; ++i) RQ_TRY(check_layer(c, s, i));
    if (!c->tied_head) RQ_TRY(expect_matrix(s, "lm_head", c->n_vocab, c->d_model));
done:
    return status;
}

rq_status rq_config_load(rq_config *c, const rq_store *s) {
    rq_status status = RQ_OK;
    char *path = NULL, *gen_path = NULL, *text = NULL, *gen = NULL;
    int64_t n_text = 0, n_gen = 0;
    memset(c, 0, sizeof *c);
    if (s->is_gguf) {
        RQ_TRY(rq_config_from_gguf(c, s));
    } else {
        if (!s->folder) RQ_FAIL(RQ_ERR_ARG, "%s: lies in memory; its config.json is not known", s->path);
        path = rq_path_join(s->folder, "config.json");
        gen_path = rq_path_join(s->folder, "generation_config.json");
        if (!path || !gen_path) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
        RQ_TRY(rq_read_file(path, RQ_MAX_JSON_BYTES, &text, &n_text));
        if (access(gen_path, F_OK) == 0) RQ_TRY(rq_read_file(gen_path, RQ_MAX_JSON_BYTES, &gen, &n_gen));
        RQ_TRY(rq_config_from_json(c, text, n_text, gen, n_gen, path));
    }
    RQ_TRY(rq_config_check_tensors(c, s));
done:
    free(path);
    free(gen_path);
    free(text);
    free(gen);
    return status;
}
