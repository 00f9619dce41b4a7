/* SPDX-License-Identifier: Apache-2.0 */
/* One linear layer y = x W^T (+ bias), whatever its weights are stored as. */
#ifndef RQ_LINEAR_H
#define RQ_LINEAR_H

#include "formats.h"
#include "model.h"

typedef struct rq_linear {
    const char *name; /* "model.layers.0.self_attn.q_proj" */
    int64_t n_out, n_in;
    const float *w;          /* fp32 [n_out][n_in] in memory, or NULL */
    const rq_tensor *tensor; /* a dense tensor in a store, dequantized tile by tile, or NULL */
    const rq_packed *packed; /* packed codes, or NULL; exactly one of the three is set */
    const float *bias;       /* [n_out] or NULL */
} rq_linear;

/* y[n_tok][n_out] = x[n_tok][n_in] W^T + bias. fp32 accumulation. Few tokens with packed weights run the format's GEMV;
 * otherwise tiles of rows are unpacked into scratch and multiplied, so dense weights are never held whole. Weights of format w4a8 quantize
 * x and sum integers, for any number of tokens.
 * Same bytes for any thread count. y may not alias x. */
rq_status rq_linear_apply(const rq_linear *l, float *y, const float *x, int64_t n_tok);

/* Rows as fp32, the definition of what the layer multiplies by. */
rq_status rq_linear_rows(const rq_linear *l, int64_t row0, int64_t n_rows, float *dst);

/* The part of it that is w4a8's. */
rq_status rq_linear_w4a8(const rq_w4a8 *w, const float *bias, float *y, const float *x, int64_t n_tok);
/* With scales of the tokens of x from a table. */
rq_status rq_linear_w4a8_steps(const rq_w4a8 *w, const float *bias, float *y, const float *x, int64_t n_tok,
                               const rq_act_steps *steps);
/* With an x that is quantized already. Rows of x->q may lie anyhow: what is not as rq_act8 says is copied. */
rq_status rq_linear_w4a8_act8(const rq_w4a8 *w, const float *bias, float *y, const rq_act8 *x, int64_t n_tok);

/* The same with inputs of e4m3 instead of int8, in plain C: a definition to compare with. And a row of inputs as such. */
rq_status rq_linear_w4a8_e4m3(const rq_w4a8 *w, const float *bias, float *y, const float *x, int64_t n_tok);
void rq_act_e4m3_row(uint8_t *q, float *scale, const float *x, int64_t n);

/* x[n_tok][n_in] becomes what its 8-bit codes stand for (fmt_act.h), token by token. */
rq_status rq_act8_round_trip(float *x, int64_t n_tok, int64_t n_in);

#endif
