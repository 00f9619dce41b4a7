/* SPDX-License-Identifier: Apache-2.0 */
/* Leaf header: one signature per operation. A row of kernels.def names an implementation of one of them for one operand,
 * a struct rq_<operand>; the prototypes in kernels.h come from that list. */
#ifndef RQ_OPS_H
#define RQ_OPS_H

#include "fmt_act.h"
#include "fmt_grid.h"
#include "fmt_ssvq.h"
#include "fmt_vq.h"
#include "fmt_w4a8.h"

/* Rows of a plain matrix, or of 32-element Q8_0 blocks, as they are in a file: possibly unaligned. */
typedef struct rq_dense {
    int64_t n_out, n_in;
    int64_t row_bytes;
    const unsigned char *data;
} rq_dense;
typedef rq_dense rq_f32_rows;  /* float */
typedef rq_dense rq_f16_rows;  /* rq_f16 */
typedef rq_dense rq_bf16_rows; /* rq_bf16 */
typedef rq_dense rq_q8_0_rows; /* blocks of rq_q8_0 */

typedef struct rq_q8_0 {
    rq_f16 d;
    int8_t q[32]; /* w = d * q */
} rq_q8_0;
RQ_STATIC_ASSERT(sizeof(rq_q8_0) == 34, "Q8_0 blocks are 34 bytes in files");

/* gemv: y[t][row] = sum_j w[row][j] x[t][j] for rows row0 .. row0 + n_rows - 1 and every token t.
 *
 * y     [out] float[n_tok][n_out]; only those rows are written
 * w     [in]  the operand
 * x     [in]  float[n_tok][n_in], in the operand's stored column order (an rq_grid with perm: x[perm[j]] gathered first)
 * n_tok 1 .. RQ_GEMV_MAX_TOK
 *
 * fp32 sums; w has the value that unpacking gives, in one rounding. A row's sum depends on n_in and n_tok alone, so rows
 * may be split over threads in any way. No allocation. */
#define RQ_GEMV_MAX_TOK 16
#define RQ_OP_gemv(name, operand)                                                                                      \
    void name(float *y, const operand *w, const float *x, int64_t n_tok, int64_t row0, int64_t n_rows)
typedef void (*rq_gemv_fn)(float *y, const void *w, const float *x, int64_t n_tok, int64_t row0, int64_t n_rows);

/* unpack: dst[n_rows][n_in] = rows row0 .. of the operand in stored column order, bit for bit what its definition gives. */
#define RQ_OP_unpack(name, operand) void name(float *dst, const operand *w, int64_t row0, int64_t n_rows)
typedef void (*rq_unpack_fn)(float *dst, const void *w, int64_t row0, int64_t n_rows);

/* quantize: rows tok0 .. tok0 + n_tok - 1 of activations as int8. The operand says what the rows h are, fmt_act.h what is done to them.
 *
 * q     [out] q[t * pitch + j] for j < n_in; 0 from there to pitch
 * scale [out] float[tok0 + n_tok]
 * sum   [out] int32_t[tok0 + n_tok]: of the row's q
 *
 * The same bytes from every implementation. No allocation. */
typedef struct rq_act_after {    /* what all operands have; zeros: nothing of it */
    const rq_hadamard *hadamard; /* whose order divides n_in, or NULL */
    float *scratch;      /* [n_in], with a Hadamard matrix: another one for each call that runs at the same time */
    const float *factor; /* [n_in], or NULL */
    rq_act_steps steps;
} rq_act_after;
typedef struct rq_act_rows {
    int64_t n_in;
    const float *x; /* [n_tok][n_in] */
    rq_act_after after;
} rq_act_rows;
typedef struct rq_act_rmsnorm {
    int64_t n_in;
    const float *x, *residual; /* [n_tok][n_in]; residual may be NULL */
    float *stream;             /* x + residual; there when residual is */
    const float *weight;       /* [n_in], or NULL: folded into matrices */
    float eps;
    rq_act_after after;
} rq_act_rmsnorm;
typedef struct rq_act_gated {
    int64_t n_in, stride; /* of the rows of both, in floats */
    const float *gate, *up;
    rq_act_after after;
} rq_act_gated;
#define RQ_OP_quantize(name, operand)                                                                                  \
    void name(int8_t *q, int64_t pitch, float *scale, int32_t *sum, const operand *a, int64_t tok0, int64_t n_tok)
typedef void (*rq_quantize_fn)(int8_t *q, int64_t pitch, float *scale, int32_t *sum, const void *a, int64_t tok0,
                               int64_t n_tok);

/* gemm: y[t][row] for rows row0 .. row0 + n_rows - 1 of w and every token, from activations that quantize made, as fmt_w4a8.h defines:
 * the same bytes from every implementation, whatever the shapes and however they are cut. in_scale and hadamard were applied before.
 * No allocation. */
typedef struct rq_act8 {
    const int8_t *q;    /* [n_tok][pitch], zeros from n_in on */
    int64_t pitch;      /* a multiple of RQ_ACT8_ALIGN, as the address of q */
    const float *scale; /* [n_tok] */
    const int32_t *sum; /* [n_tok] */
} rq_act8;
#define RQ_ACT8_ALIGN 64
#define RQ_OP_gemm(name, operand)                                                                                      \
    void name(float *y, const operand *w, const rq_act8 *x, int64_t tok0, int64_t n_tok, int64_t row0, int64_t n_rows)
typedef void (*rq_gemm_fn)(float *y, const void *w, const rq_act8 *x, int64_t tok0, int64_t n_tok, int64_t row0,
                           int64_t n_rows);

#endif
