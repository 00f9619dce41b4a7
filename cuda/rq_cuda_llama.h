/* SPDX-License-Identifier: Apache-2.0 */
/* The forward pass of a Llama beside its products of matrices, for host/backend_cuda_forward.c: activations are float[n_tok][width], token-major, as
 * in host/llama.h. All pointers are device pointers unless they are said to be the host's; calls only queue. The same bytes in every run. */
#ifndef RQ_CUDA_LLAMA_H
#define RQ_CUDA_LLAMA_H

#include "rq_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- llama_rows_sm80.cu */

/* out = x / sqrt(mean(x^2) + eps) * gain, row by row, squares summed in fp64; out may be x, gain NULL is all ones. */
rq_status rq_cuda_rmsnorm(float *out, const float *x, const float *gain, int64_t n_tok, int64_t width, float eps,
                          rq_cuda_stream stream);
/* out = gate / (1 + e^-gate) * up; out may be either. */
rq_status rq_cuda_swiglu(float *out, const float *gate, const float *up, int64_t n, rq_cuda_stream stream);
/* y = bias, or y += bias when adds is not 0, for each row. */
rq_status rq_cuda_bias(float *y, const float *bias, int64_t n_tok, int64_t width, int adds, rq_cuda_stream stream);
/* Row t times by[t]; divides: divided by it where it is above 0. */
rq_status rq_cuda_scale_rows(float *rows, const float *by, int64_t n_tok, int64_t width, int divides,
                             rq_cuda_stream stream);
/* norm[t] = sqrt(sum of x[t][.]^2), summed in fp64. */
rq_status rq_cuda_row_norms(float *norm, const float *x, int64_t n_tok, int64_t width, rq_cuda_stream stream);
/* most[j] = max(most[j], |rows[.][j]|), most at least 0. NaN is the largest. */
rq_status rq_cuda_column_max(float *most, const float *rows, int64_t n_rows, int64_t width, rq_cuda_stream stream);
/* to = from rounded to bfloat16 (ties to even). */
rq_status rq_cuda_to_bf16(uint16_t *to, const float *from, int64_t n, rq_cuda_stream stream);

/* ---- llama_inputs_sm80.cu: what inputs go through before a matrix of w4a8, to the last bit as host/fmt_act.h defines it */

/* Each h->size columns of a row times that matrix (h is the host's: it is copied into the launch), then each column times its factor, either NULL for
 * none; out may be x. The order goes up to what shared memory of the device holds as fp32. */
rq_status rq_cuda_input_rows(float *out, const float *x, const rq_hadamard *h, const float *factor, int64_t n_tok,
                             int64_t width, rq_cuda_stream stream);
/* Each row becomes what its int8 codes stand for; out may be x. */
rq_status rq_cuda_act8_rows(float *out, const float *x, int64_t n_tok, int64_t width, rq_cuda_stream stream);

/* ---- llama_attention_sm80.cu */

/* Rotary embedding of x[n_tok][n_head][head_dim] in place, halves of a head being pairs; token t has row t % n_pos of
 * table[n_pos][2][head_dim / 2], cosines and then sines (host/llama_block.h). */
rq_status rq_cuda_rope(float *x, const float *table, int64_t n_tok, int64_t n_pos, int64_t n_head, int64_t head_dim,
                       rq_cuda_stream stream);

enum { RQ_LLAMA_MAX_HEAD = 256 };

/* Causal attention of n_seq sequences; query i of a sequence sees keys 0 .. first_pos + i. Queries and output are [n_seq * n_q][n_head * head_dim]; key
 * p of key/value head h of sequence s starts at k + s * kv_seq + h * kv_head + p * kv_pos. fp32 throughout. */
typedef struct rq_cuda_attention {
    const float *q, *k, *v;
    float *out;
    int64_t kv_seq, kv_head, kv_pos;
    int64_t n_seq, n_q, first_pos;
    int64_t n_head, n_kv_head, head_dim; /* head_dim up to RQ_LLAMA_MAX_HEAD; n_kv_head divides n_head */
    float *lse; /* [n_seq * n_q][n_head]: log of the sum of e^score of what a query sees; or NULL */
} rq_cuda_attention;
rq_status rq_cuda_attend(const rq_cuda_attention *a, rq_cuda_stream stream);
/* received[seq][key] = the sum over heads and queries of what of their attention the key receives, with the lse that rq_cuda_attend left; v and out are not
 * looked at, first_pos is 0. by_head[n_seq][n_head][n_q] is scratch. */
rq_status rq_cuda_attend_received(float *received, double *by_head, const rq_cuda_attention *a, rq_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
