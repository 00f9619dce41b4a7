/* SPDX-License-Identifier: Apache-2.0 */
/* Llama-family decoder in fp32: the pieces of a block that calibration drives one at a time, whole windows for
 * evaluation, and a KV cache for generation. Shapes: activations are token-major, float[n_tok][width]. */
#ifndef RQ_LLAMA_H
#define RQ_LLAMA_H

#include "linear.h"
#include "rotate.h"

enum { RQ_Q, RQ_K, RQ_V, RQ_O, RQ_GATE, RQ_UP, RQ_DOWN, RQ_N_LINEARS }; /* the 7 matrices of a block */

/* "self_attn.q_proj" ... "mlp.down_proj" */
extern const char *const rq_linear_suffix[RQ_N_LINEARS];

typedef struct rq_block {
    rq_linear lin[RQ_N_LINEARS];
    float *norm1, *norm2; /* [d_model] */
} rq_block;

struct rq_model {
    rq_config cfg;
    rq_store *store;
    rq_block *block; /* [n_layer] */
    rq_linear head;  /* [n_vocab][d_model]; the embedding itself when tied */
    rq_linear embed;
    float *norm_f;
    rq_rotation *rotation; /* NULL, or the rotation of the residual stream of a rotated model (rotate.h) */
    float *rope_inv_freq;  /* [head_dim / 2], with scaling applied */
    rq_packed *packed;     /* n_packed of them, owned */
    int64_t n_packed;
    double bpw; /* bits per weight of the block matrices, all side data counted */
};

/* The configuration and the shapes of the blocks' matrices alone, from the config.json of a folder or the file itself: no weights. */
rq_status rq_model_shapes(rq_model **out, const char *path);

/* x[n_tok][d_model] = rows of the embedding, rotated when the model is. Ids out of range are RQ_ERR_INPUT. */
rq_status rq_embed(const rq_model *m, float *x, const int32_t *ids, int64_t n_tok);

/* out = x / sqrt(mean(x^2) + eps) * gain, row by row; out may be x. gain NULL is all ones. */
void rq_rmsnorm(float *out, const float *x, const float *gain, int64_t n_tok, int64_t width, float eps);

/* Causal self-attention of n_seq sequences of seq_len tokens each, from positions 0: applies RoPE to q and k in place,
 * out[n_seq*seq_len][n_head*head_dim]. q, k, v as the linears give them (bias included). */
rq_status rq_attention(const rq_model *m, float *out, float *q, float *k, const float *v, int64_t n_seq,
                       int64_t seq_len);

/* out = silu(gate) * up, elementwise; out may be either. */
void rq_swiglu(float *out, const float *gate, const float *up, int64_t n);

/* Hidden states after the last block (before the final norm) of n_seq sequences: x[n_seq*seq_len][d_model]. */
rq_status rq_forward(const rq_model *m, float *x, const int32_t *ids, int64_t n_seq, int64_t seq_len);

/* What the head multiplies: final norm of such hidden states, rotation undone. out may be x. */
rq_status rq_final_norm(const rq_model *m, float *out, const float *x, int64_t n_tok);

/* logits[n_tok][n_vocab] from such hidden states: final norm, rotation undone, head. */
rq_status rq_logits(const rq_model *m, float *logits, const float *x, int64_t n_tok);

/* Generation state: KV cache for up to max_seq tokens. rq_decode feeds n_tok tokens at the current position and gives the
 * logits of the last one [n_vocab]. */
typedef struct rq_decode_state rq_decode_state;
rq_status rq_decode_new(rq_decode_state **out, const rq_model *m, int64_t max_seq);
void rq_decode_free(rq_decode_state *s);
int64_t rq_decode_pos(const rq_decode_state *s); /* tokens in the cache */
void rq_decode_reset(rq_decode_state *s);        /* forget them */
rq_status rq_decode(rq_decode_state *s, const int32_t *ids, int64_t n_tok, float *logits);

#endif
