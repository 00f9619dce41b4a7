/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a model: every matrix of the blocks is found as a dense tensor or as packed codes, norms and biases are read,
 * rotary frequencies computed. What is packed is said by container.h: {"version": 1, "linears": {NAME: {"format": ..., ...}},
 * "rotation": {"kind", "seed", "size"}} (docs/formats.md). */
#include <jansson.h>
#include <math.h>

#include "container.h"
#include "llama.h"
#include "model_parse.h"

enum { NAME_BYTES = 96 };

/* The model and what it owns that users need not see. */
typedef struct opened_model {
    rq_model pub;
    char (*name)[NAME_BYTES]; /* of every linear: layer * RQ_N_LINEARS + l, then head, then embedding */
    float **bias;             /* of the block linears, same order; NULL where there is none */
    int64_t n_linear;
    json_t *meta; /* what is packed (container.h), or NULL; only while opening */
} opened_model;

/* ---- packed file's description ----------------------------------------------------------------------------------------- */

static rq_status read_rotation(opened_model *o) {
    const json_t *r = o->meta ? json_object_get(o->meta, "rotation") : NULL;
    if (!r || json_is_null(r)) return RQ_OK;
    const char *kind = json_string_value(json_object_get(r, "kind")), *path = rq_store_path(o->pub.store);
    const json_t *seed = json_object_get(r, "seed"), *size = json_object_get(r, "size");
    if (!kind || !json_is_integer(seed) || !json_is_integer(size)) {
        return rq_fail(RQ_ERR_INPUT, "%s: the rotation needs a kind, an integer seed and an integer size", path);
    }
    if (json_integer_value(size) != o->pub.cfg.d_model) {
        return rq_fail(RQ_ERR_INPUT, "%s: a rotation of size %lld cannot turn a residual stream of width %lld", path,
                       (long long)json_integer_value(size), (long long)o->pub.cfg.d_model);
    }
    return rq_rotation_new(&o->pub.rotation, o->pub.cfg.d_model, (uint64_t)json_integer_value(seed), kind);
}

/* ---- tensors ----------------------------------------------------------------------------------------------------------- */

static rq_status read_vector(float **out, const rq_store *s, const char *name, int64_t n) {
    const rq_tensor *t = rq_store_find(s, name);
    *out = NULL;
    if (!t) return rq_fail(RQ_ERR_INPUT, "%s: tensor %s is missing", rq_store_path(s), name);
    if (t->rank != 1 || t->shape[0] != n) {
        return rq_fail(RQ_ERR_INPUT, "%s: %s is not a vector of %lld", rq_store_path(s), name, (long long)n);
    }
    rq_status status = rq_tensor_check_finite(t);
    if (status == RQ_OK) status = RQ_NEW(*out, n);
    if (status == RQ_OK) status = rq_tensor_f32(t, *out);
    return status;
}

/* A dense matrix of the right shape whose type can be read: one row is, so that a bad type fails here. */
static rq_status check_dense(const rq_store *s, const rq_tensor *t, int64_t n_out, int64_t n_in) {
    float *row = NULL;
    if (t->rank != 2 || t->shape[0] != n_out || t->shape[1] != n_in) {
        return rq_fail(RQ_ERR_INPUT, "%s: %s does not have the shape [%lld, %lld] that the configuration asks for",
                       rq_store_path(s), t->name, (long long)n_out, (long long)n_in);
    }
    rq_status status = RQ_NEW(row, n_in);
    if (status == RQ_OK) status = rq_tensor_rows_f32(t, 0, 1, row);
    free(row);
    return status;
}

/* The packed form that the metadata describes, else NAME.weight. */
static rq_status open_linear(opened_model *o, rq_linear *l, const char *name, int64_t n_out, int64_t n_in) {
    rq_model *m = &o->pub;
    char tensor_name[NAME_BYTES + 16];
    *l = (rq_linear){.name = name, .n_out = n_out, .n_in = n_in};
    if (!json_object_get(json_object_get(o->meta, "linears"), name)) {
        snprintf(tensor_name, sizeof tensor_name, "%s.weight", name);
        l->tensor = rq_store_find(m->store, tensor_name);
        if (l->tensor) return check_dense(m->store, l->tensor, n_out, n_in);
        return rq_fail(RQ_ERR_INPUT, "%s: there is neither %s nor packed codes of it", rq_store_path(m->store),
                       tensor_name);
    }
    rq_packed *p = &m->packed[m->n_packed];
    rq_status status = rq_container_load(p, m->store, o->meta, name);
    if (status != RQ_OK) return status;
    ++m->n_packed;
    l->packed = p;
    if (p->n_out != n_out || p->n_in != n_in) {
        return rq_fail(RQ_ERR_INPUT, "%s: packed %s is %lld x %lld, the configuration asks for %lld x %lld",
                       rq_store_path(m->store), name, (long long)p->n_out, (long long)p->n_in, (long long)n_out,
                       (long long)n_in);
    }
    return RQ_OK;
}

/* NAME.bias where the configuration says so; one that it does not know of is an error, not something to leave out, unless it is all zeros
 * (some quantizers write such). */
static rq_status open_bias(opened_model *o, rq_linear *l, float **bias, bool expected) {
    char tensor_name[NAME_BYTES + 16];
    snprintf(tensor_name, sizeof tensor_name, "%s.bias", l->name);
    if (!expected) {
        const rq_tensor *t = rq_store_find(o->pub.store, tensor_name);
        if (!t || rq_tensor_is_zero(t)) return RQ_OK;
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s: there is a tensor %s, but the configuration says nothing of biases",
                       rq_store_path(o->pub.store), tensor_name);
    }
    rq_status status = read_vector(bias, o->pub.store, tensor_name, l->n_out);
    l->bias = *bias;
    return status;
}

typedef struct linear_shape {
    int64_t n_out, n_in;
    bool bias;
} linear_shape;

static linear_shape shape_of(const rq_config *c, int linear) {
    int64_t d = c->d_model, q = c->n_head * c->head_dim, kv = c->n_kv_head * c->head_dim;
    const linear_shape shape[RQ_N_LINEARS] = {
        {q, d, c->qkv_bias},       {kv, d, c->qkv_bias},      {kv, d, c->qkv_bias},     {d, q, c->o_bias},
        {c->d_ff, d, c->mlp_bias}, {c->d_ff, d, c->mlp_bias}, {d, c->d_ff, c->mlp_bias}};
    return shape[linear];
}

static rq_status open_block(opened_model *o, int64_t layer) {
    rq_status status = RQ_OK;
    rq_block *b = &o->pub.block[layer];
    int64_t d = o->pub.cfg.d_model;
    for (int i = 0; i < RQ_N_LINEARS; ++i) {
        int64_t at = layer * RQ_N_LINEARS + i;
        const linear_shape shape = shape_of(&o->pub.cfg, i);
        snprintf(o->name[at], NAME_BYTES, "model.layers.%lld.%s", (long long)layer, rq_linear_suffix[i]);
        RQ_TRY(open_linear(o, &b->lin[i], o->name[at], shape.n_out, shape.n_in));
        RQ_TRY(open_bias(o, &b->lin[i], &o->bias[at], shape.bias));
    }
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "model.layers.%lld.input_layernorm.weight", (long long)layer);
    RQ_TRY(read_vector(&b->norm1, o->pub.store, name, d));
    snprintf(name, sizeof name, "model.layers.%lld.post_attention_layernorm.weight", (long long)layer);
    RQ_TRY(read_vector(&b->norm2, o->pub.store, name, d));
done:
    return status;
}

/* ---- the rest ---------------------------------------------------------------------------------------------------------- */

/* theta^(-2i / head_dim), then what the configuration (or the divisors that a GGUF file stores) makes of it. "llama3"
 * divides long wavelengths by the factor, keeps short ones, and blends linearly in frequency between the two bounds. */
static rq_status rope_frequencies(rq_model *m) {
    const rq_config *c = &m->cfg;
    rq_status status = RQ_OK;
    int64_t half = c->head_dim / 2;
    float *divisor = NULL;
    RQ_TRY(RQ_NEW(m->rope_inv_freq, half));
    if (rq_store_find(m->store, "rope_freqs.weight")) {
        RQ_TRY(read_vector(&divisor, m->store, "rope_freqs.weight", half));
    }
    for (int64_t i = 0; i < half; ++i) {
        double f = pow(c->rope_theta, -2.0 * (double)i / (double)c->head_dim);
        if (divisor) {
            if (!(divisor[i] > 0.0f)) {
                RQ_FAIL(RQ_ERR_INPUT, "%s: rope_freqs.weight[%lld] is %g", rq_store_path(m->store), (long long)i,
                        (double)divisor[i]);
            }
            f /= (double)divisor[i];
        }
        if (c->rope_scaling == RQ_ROPE_LINEAR) {
            f /= c->rope_factor;
        } else if (c->rope_scaling == RQ_ROPE_LLAMA3 && !divisor) {
            double turns = (double)c->rope_original_max_seq * f / (2.0 * 3.14159265358979323846);
            double keep = (turns - c->rope_low_freq_factor) / (c->rope_high_freq_factor - c->rope_low_freq_factor);
            keep = keep < 0.0 ? 0.0 : keep > 1.0 ? 1.0 : keep;
            f = keep * f + (1.0 - keep) * f / c->rope_factor;
        }
        m->rope_inv_freq[i] = (float)f;
    }
done:
    free(divisor);
    return status;
}

static void count_bits(rq_model *m) {
    double bits = 0, weights = 0;
    for (int64_t i = 0; i < m->cfg.n_layer; ++i) {
        for (int j = 0; j < RQ_N_LINEARS; ++j) {
            const rq_linear *l = &m->block[i].lin[j];
            bits += l->packed ? (double)rq_packed_size_bits(l->packed) : 8.0 * (double)l->tensor->n_bytes;
            weights += (double)l->n_out * (double)l->n_in;
        }
    }
    m->bpw = bits / weights;
}

static rq_status open_parts(opened_model *o, const char *path) {
    rq_status status = RQ_OK;
    rq_model *m = &o->pub;
    RQ_TRY(rq_store_open(&m->store, path));
    RQ_TRY(rq_config_load(&m->cfg, m->store));
    const rq_config *c = &m->cfg;
    RQ_TRY(rq_container_metadata(m->store, &o->meta));
    RQ_TRY(read_rotation(o));

    o->n_linear = c->n_layer * RQ_N_LINEARS + 2;
    RQ_TRY(RQ_NEW_ZERO(m->block, c->n_layer));
    RQ_TRY(RQ_NEW_ZERO(m->packed, o->n_linear));
    RQ_TRY(RQ_NEW_ZERO(o->name, o->n_linear));
    RQ_TRY(RQ_NEW_ZERO(o->bias, o->n_linear));
    for (int64_t i = 0; i < c->n_layer; ++i) RQ_TRY(open_block(o, i));
    count_bits(m);

    char *embed = o->name[o->n_linear - 1], *head = o->name[o->n_linear - 2];
    snprintf(embed, NAME_BYTES, "model.embed_tokens");
    snprintf(head, NAME_BYTES, "lm_head");
    RQ_TRY(open_linear(o, &m->embed, embed, c->n_vocab, c->d_model));
    if (c->tied_head) {
        m->head = m->embed;
    } else {
        RQ_TRY(open_linear(o, &m->head, head, c->n_vocab, c->d_model));
        RQ_TRY(open_bias(o, &m->head, &o->bias[o->n_linear - 2], false));
    }
    RQ_TRY(read_vector(&m->norm_f, m->store, "model.norm.weight", c->d_model));
    RQ_TRY(rope_frequencies(m));
done:
    json_decref(o->meta);
    o->meta = NULL;
    return status;
}

rq_status rq_model_shapes(rq_model **out, const char *path) {
    rq_status status = RQ_OK;
    opened_model *o = NULL;
    char *config = NULL, *text = NULL;
    int64_t n = 0;
    const size_t length = strlen(path);
    *out = NULL;
    if (length > 5 && strcmp(path + length - 5, ".json") == 0)
        config = strdup(path);
    else
        config = rq_path_join(path, "config.json");
    if (!config) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(RQ_NEW_ZERO(o, 1));
    RQ_TRY(rq_read_file(config, RQ_MAX_JSON_BYTES, &text, &n));
    RQ_TRY(rq_config_from_json(&o->pub.cfg, text, n, NULL, 0, config));
    RQ_TRY(RQ_NEW_ZERO(o->pub.block, o->pub.cfg.n_layer));
    for (int64_t layer = 0; layer < o->pub.cfg.n_layer; ++layer) {
        for (int i = 0; i < RQ_N_LINEARS; ++i) {
            const linear_shape shape = shape_of(&o->pub.cfg, i);
            o->pub.block[layer].lin[i] = (rq_linear){.n_out = shape.n_out, .n_in = shape.n_in};
        }
    }
    *out = &o->pub;
done:
    if (status != RQ_OK && o) rq_model_close(&o->pub);
    free(config);
    free(text);
    return status;
}

rq_status rq_model_open(rq_model **out, const char *path) {
    opened_model *o;
    *out = NULL;
    rq_status status = RQ_NEW_ZERO(o, 1);
    if (status != RQ_OK) return status;
    status = open_parts(o, path);
    if (status != RQ_OK) {
        rq_model_close(&o->pub);
        return status;
    }
    *out = &o->pub;
    return RQ_OK;
}

void rq_model_close(rq_model *m) {
    if (!m) return;
    opened_model *o = (opened_model *)m; /* pub is the first member */
    for (int64_t i = 0; m->block && i < m->cfg.n_layer; ++i) {
        free(m->block[i].norm1);
        free(m->block[i].norm2);
    }
    for (int64_t i = 0; o->bias && i < o->n_linear; ++i) free(o->bias[i]);
    for (int64_t i = 0; i < m->n_packed; ++i) rq_packed_free(&m->packed[i]);
    free(o->bias);
    free(o->name);
    free(m->packed);
    free(m->block);
    free(m->norm_f);
    free(m->rope_inv_freq);
    rq_rotation_free(m->rotation);
    rq_store_close(m->store);
    free(o);
}
