/* SPDX-License-Identifier: Apache-2.0 */
/* Generation on a GPU: the small kernels between the GEMVs of a Llama block, and a whole step of a decoder made of both. Everything that changes from
 * step to step lies on the device (rq_cuda_decode_state), so one captured graph serves all steps. As in rq_cuda.h a run only launches, device
 * pointers come from the caller, and results are the same bytes in every run.
 *
 * The residual stream is fp32, what matrices multiply and the keys and values of the cache are of act; sums are fp32. Rows are multiples of 8. */
#ifndef RQ_CUDA_DECODE_H
#define RQ_CUDA_DECODE_H

#include "rq_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { RQ_DECODE_MAX_TOK = 16, RQ_DECODE_MAX_WIDTH = 16384, RQ_DECODE_MAX_HEAD = 256 };

typedef struct rq_cuda_decode_state {
    int32_t token[RQ_DECODE_MAX_TOK]; /* of this step, n of them; the likeliest one to come becomes token[0] */
    int32_t n;                        /* becomes 1 */
    int32_t pos;                      /* tokens in the cache before the step; becomes pos + n */
    int32_t bad;                      /* the first token whose logit is not finite, or -1 */
} rq_cuda_decode_state;

/* ahead, in what follows: ahead_bytes bytes from a multiple of 16 on that the kernel after reads first, asked for (to the L2) while this one runs.
 * NULL: none. */

/* ---- the residual stream and its norm, a token a block:
 *   stream = table[token], or stream + add;   h = stream / sqrt(mean of stream^2 + eps) * weight
 * h is of act, or, with q, int8 with scale and sum as of rq_cuda_quantize_rows, of h times factor. */
typedef struct rq_cuda_decode_norm_args {
    void *h;   /* [n_tok][n] of act, or NULL with q */
    int8_t *q; /* [n_tok][n] */
    float *scale;
    int32_t *sum;
    const float *factor; /* [n] or NULL */
    float *stream;       /* [n_tok][n] */
    const void *add;     /* [n_tok][n] of act, or NULL */
    const void *table;   /* [n_row][n] of act, or NULL; a token that has no row gives NaN */
    int64_t n_row;
    const float *weight; /* [n], or NULL: ones */
    const rq_cuda_decode_state *state;
    int last_only; /* 1: h is of token n - 1 of the state alone, and the stream stays as it is */
    float eps;
    rq_act act;
    int64_t n_tok, n;
    int early_launch;
    const void *ahead;
    int64_t ahead_bytes;
} rq_cuda_decode_norm_args;
rq_status rq_cuda_decode_norm(const rq_cuda_decode_norm_args *a, rq_cuda_stream stream);

/* ---- y = gate / (1 + e^-gate) * up, in fp32 and rounded once */
typedef struct rq_cuda_decode_swiglu_args {
    void *y;               /* [n_tok][n] of act */
    const void *gate, *up; /* rows of n, pitch elements apart */
    int64_t pitch;
    rq_act act;
    int64_t n_tok, n;
    int early_launch;
    const void *ahead;
    int64_t ahead_bytes;
} rq_cuda_decode_swiglu_args;
rq_status rq_cuda_decode_swiglu(const rq_cuda_decode_swiglu_args *a, rq_cuda_stream stream);

/* y[t][i] = row[i], of act. */
rq_status rq_cuda_decode_repeat(void *y, const void *row, int64_t n_tok, int64_t n, int early_launch,
                                rq_cuda_stream stream);

/* ---- attention of n_tok queries over a cache, which their keys and values are put into first. Half-split rotary embedding of q and k by
 * rope[position] = cos and sin of head_dim / 2 angles; scores are q . k / sqrt(head_dim). The keys are cut into parts of equal size, by the
 * number of tokens in the cache; a block has one, and who comes last adds them in their order. What lies beyond max_seq is left out. */
typedef struct rq_cuda_decode_attention_desc {
    int64_t n_head, n_kv_head, head_dim, max_seq, n_tok;
    rq_act act;
    int early_launch;
} rq_cuda_decode_attention_desc;
typedef struct rq_cuda_decode_attention_plan {
    size_t workspace_bytes;
    int parts, heads, blocks, launches; /* parts at most; heads a block has at once */
} rq_cuda_decode_attention_plan;
typedef struct rq_cuda_decode_attention_args {
    void *out;                         /* [n_tok][n_head * head_dim] of act */
    const void *q, *k, *v;             /* of act */
    int64_t q_pitch, k_pitch, v_pitch; /* elements from token to token */
    void *k_cache, *v_cache;           /* [n_kv_head][max_seq][head_dim] of act */
    const float *rope;                 /* [max_seq][2][head_dim / 2] */
    const rq_cuda_decode_state *state;
    void *workspace; /* zero before its first use, left zero where it counts; 256-byte aligned */
    const void *ahead;
    int64_t ahead_bytes;
} rq_cuda_decode_attention_args;
rq_status rq_cuda_decode_attention_make_plan(rq_cuda_decode_attention_plan *plan,
                                             const rq_cuda_decode_attention_desc *d);
rq_status rq_cuda_decode_attention_run(const rq_cuda_decode_attention_plan *plan,
                                       const rq_cuda_decode_attention_desc *d, const rq_cuda_decode_attention_args *a,
                                       rq_cuda_stream stream);

/* ---- y[i] = sum_j w[i][j] x[j] for one token: plain rows of act, which are read once, past L1. n_in up to RQ_DECODE_MAX_WIDTH. */
typedef struct rq_cuda_decode_dense_args {
    float *y;      /* [n_out] */
    const void *w; /* [n_out][n_in] of act */
    const void *x; /* [n_in] of act */
    int64_t n_out, n_in;
    rq_act act;
    int early_launch;
} rq_cuda_decode_dense_args;
rq_status rq_cuda_decode_dense(const rq_cuda_decode_dense_args *a, rq_cuda_stream stream);

/* ---- the likeliest token, the first of equals; the state goes on to the next step. */
enum { RQ_DECODE_PICK_BYTES = 4096 };
typedef struct rq_cuda_decode_pick_args {
    float *logits;    /* [n] */
    const void *from; /* [n] of act: what logits become first; or NULL */
    rq_act act;
    int64_t n;
    rq_cuda_decode_state *state;
    void *workspace; /* RQ_DECODE_PICK_BYTES, zero before its first use */
    int early_launch;
} rq_cuda_decode_pick_args;
rq_status rq_cuda_decode_pick(const rq_cuda_decode_pick_args *a, rq_cuda_stream stream);

/* ---- a step of a whole decoder */

/* y = W x (+ bias). Dense: weights [n_out][n_in] of act, multiplied by cuBLAS; otherwise tiles, as of gemv. */
typedef struct rq_cuda_decode_matrix {
    int dense;
    rq_cuda_gemv_desc
        gemv; /* n_out and n_in; of tiles also kind, bits, group ...; x_s8 of W4A8 only. The rest is the step's */
    const void *weights;
    int64_t weight_bytes;        /* of tiles, for ahead_bytes; 0: never asked for ahead */
    const void *bias;            /* [n_out] of act, or NULL */
    const int32_t *perm;         /* as of rq_cuda_gemv_args */
    const float *factor;         /* of W4A8's x: on the device, or NULL */
    const rq_hadamard *hadamard; /* likewise, on the host, or NULL */
} rq_cuda_decode_matrix;

typedef struct rq_cuda_decode_layer {
    const float *norm1, *norm2;   /* [d_model], NULL: ones */
    rq_cuda_decode_matrix qkv[3]; /* q, k and v, or the three stacked */
    rq_cuda_decode_matrix o;
    rq_cuda_decode_matrix gate_up[2]; /* gate and up, or both stacked */
    rq_cuda_decode_matrix down;
    int n_qkv, n_gate_up; /* 3 or 1; 2 or 1 */
} rq_cuda_decode_layer;

typedef struct rq_cuda_decode_desc {
    size_t struct_size;
    int64_t n_layer, d_model, d_ff, n_head, n_kv_head, head_dim, n_vocab;
    int64_t max_seq; /* of the cache; a step of n_tok tokens puts all of them into it, whatever the state's n */
    float eps;
    rq_act act;
    const rq_cuda_decode_layer *layer; /* [n_layer], on the host */
    const void *embed;                 /* [n_vocab][d_model] of act */
    const float *norm_f;               /* [d_model], NULL: ones */
    rq_cuda_decode_matrix head;        /* dense: by rq_cuda_decode_dense, or cuBLAS with blas_head */
    const float *rope;                 /* as of attention */
    int early_launch;
    int64_t ahead_bytes; /* of a matrix of tiles, at most, asked for by the kernel before its product; 8 MiB, 0: none */
    int blas_head;
    size_t blas_workspace; /* bytes of scratch for cuBLAS where a matrix is dense, 32 MiB */
} rq_cuda_decode_desc;

typedef struct rq_cuda_decode_plan { /* of steps of n_tok tokens */
    int64_t n_tok;
    size_t workspace_bytes; /* the larger of two plans serves both */
    size_t cache_bytes;     /* [n_layer][k or v] of attention's caches */
    double weight_bytes;    /* read by a step: matrices with side data, the head, rows of the embedding */
    double key_bytes;       /* read by a step for each token in the cache */
    int launches;
} rq_cuda_decode_plan;

typedef struct rq_cuda_decode_args {
    rq_cuda_decode_state *state;
    float *logits;   /* [n_vocab], of token n - 1 */
    void *cache;     /* 256-byte aligned, as the next */
    void *workspace; /* zero before its first use */
} rq_cuda_decode_args;

rq_cuda_decode_desc rq_cuda_decode_desc_default(void);
/* Not while a stream is captured: it may load cuBLAS. */
rq_status rq_cuda_decode_make_plan(rq_cuda_decode_plan *plan, const rq_cuda_decode_desc *d, int64_t n_tok);
/* Only queues: it can be captured, once it has run. */
rq_status rq_cuda_decode_run(const rq_cuda_decode_plan *plan, const rq_cuda_decode_desc *d,
                             const rq_cuda_decode_args *a, rq_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
