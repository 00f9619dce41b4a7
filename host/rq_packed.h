/* SPDX-License-Identifier: Apache-2.0 */
/* Products with packed matrices, on the CPU, for programs that hold the arrays themselves: PyTorch extensions, engines with their own
 * loader. A matrix is one of the structs of fmt_*.h (docs/formats.md says what its tensors in a file are); it stays the caller's, is
 * only read, and is needed for the length of a call.
 *
 * Of a struct the caller sets sizes, parameters and pointers. Counts that follow from them (n_group, row_words, n_book, code_words, ...)
 * are worked out here and need not be set, nor book_scale of an fp16 codebook, nor rq_w4a8.online. Sizes, parameters, missing pointers,
 * perm, book_of and outlier columns are checked (RQ_ERR_ARG); codes, scales and levels are not looked at: codes must be below n_codes,
 * which holds by itself where n_codes is 2^code_bits.
 *
 * Same inputs give the same bytes for any number of threads, and those of `requite eval` and rq_model_logits for the same matrix. All may
 * be called from any thread. y may not overlap x. */
#ifndef RQ_PACKED_H
#define RQ_PACKED_H

#include "fmt_grid.h"
#include "fmt_ssvq.h"
#include "fmt_vq.h"
#include "fmt_w4a8.h"
#include "rq.h"

#ifdef __cplusplus
extern "C" {
#endif

/* y[n_tok][n_out] = x[n_tok][n_in] W^T (+ bias[n_out] unless NULL), for any number of tokens: up to 16 by the format's gemv kernel, more by
 * unpacking tiles for a gemm (OpenBLAS is loaded then). With w4a8 x is multiplied by its Hadamard matrix and in_scale, quantized to
 * int8 and summed in integers. */
RQ_API RQ_MUST_USE rq_status rq_grid_linear(float *y, const rq_grid *w, const float *bias, const float *x,
                                            int64_t n_tok);
RQ_API RQ_MUST_USE rq_status rq_ssvq_linear(float *y, const rq_ssvq *w, const float *bias, const float *x,
                                            int64_t n_tok);
RQ_API RQ_MUST_USE rq_status rq_vq_linear(float *y, const rq_vq *w, const float *bias, const float *x, int64_t n_tok);
RQ_API RQ_MUST_USE rq_status rq_w4a8_linear(float *y, const rq_w4a8 *w, const float *bias, const float *x,
                                            int64_t n_tok);

/* dst[n_rows][n_in] = rows row0 .. of the matrix as a dense one, columns in the order of x: the definition of its format, bit for bit. */
RQ_API RQ_MUST_USE rq_status rq_grid_dense(float *dst, const rq_grid *w, int64_t row0, int64_t n_rows);
RQ_API RQ_MUST_USE rq_status rq_ssvq_dense(float *dst, const rq_ssvq *w, int64_t row0, int64_t n_rows);
RQ_API RQ_MUST_USE rq_status rq_vq_dense(float *dst, const rq_vq *w, int64_t row0, int64_t n_rows);
RQ_API RQ_MUST_USE rq_status rq_w4a8_dense(float *dst, const rq_w4a8 *w, int64_t row0, int64_t n_rows);

/* Rows of activations as int8 with a scale and a sum each: codes[t * pitch + j] for j < n_in, then 0 up to pitch (at least n_in). fmt_act.h
 * defines them to the last bit. */
typedef struct rq_rows8 {
    int8_t *codes; /* [n_tok][pitch] */
    int64_t pitch; /* fastest where it and the address are multiples of 64 */
    float *scale;  /* [n_tok] */
    int32_t *sum;  /* [n_tok] */
} rq_rows8;

/* What is done to rows on their way: the Hadamard matrix of this order (0: none) on consecutive columns, then one factor a column. */
typedef struct rq_rows8_input {
    int hadamard;
    const float *factor; /* [n_in] or NULL */
} rq_rows8_input;

/* Rows x[n_tok][n_in] as they are. `input` may be NULL in all three. */
RQ_API RQ_MUST_USE rq_status rq_quantize_rows(const rq_rows8 *to, const float *x, int64_t n_tok, int64_t n_in,
                                              const rq_rows8_input *input);
/* After RMSNorm with weight[n_in] (NULL: 1). With residual[n_tok][n_in], x + residual is what is normed, and is written to stream. */
RQ_API RQ_MUST_USE rq_status rq_quantize_rmsnorm(const rq_rows8 *to, float *stream, const float *x,
                                                 const float *residual, const float *weight, float eps, int64_t n_tok,
                                                 int64_t n_in, const rq_rows8_input *input);
/* silu(gate) * up; rows of both are `stride` floats apart. */
RQ_API RQ_MUST_USE rq_status rq_quantize_gated(const rq_rows8 *to, const float *gate, const float *up, int64_t stride,
                                               int64_t n_tok, int64_t n_in, const rq_rows8_input *input);

/* y = x W^T (+ bias) of rows that are int8 already. What the matrix wants of its input (in_scale, hadamard) was done when they were made. */
RQ_API RQ_MUST_USE rq_status rq_w4a8_product(float *y, const rq_w4a8 *w, const float *bias, const rq_rows8 *x,
                                             int64_t n_tok);

/* Each `order` of the n_in values of a row times the normalized Hadamard matrix of that order (transposed: or its transpose), in place. The
 * order is k * 2^p and divides n_in, k at most 64. */
RQ_API RQ_MUST_USE rq_status rq_hadamard_rows(float *x, int64_t n_tok, int64_t n_in, int64_t order, bool transposed);

/* h[0] the Hadamard matrix of that order, h[1] its transpose: what rq_w4a8.online and the CUDA kernels (rq_cuda.h) take. */
RQ_API RQ_MUST_USE rq_status rq_hadamard_make(rq_hadamard h[2], int64_t size);

/* Rows of n values times the rotation R of a rotated model's residual stream (inverse: its transpose), in place: kind and seed are those of the
 * file's metadata (docs/formats.md). The embedding's rows are rotated; after the final norm, before its gain, that is undone. An "orthogonal"
 * one is built anew by each call, in about n^3 operations. */
RQ_API RQ_MUST_USE rq_status rq_rotate_rows(float *x, int64_t n_tok, int64_t n, const char *kind, uint64_t seed,
                                            bool inverse);

#ifdef __cplusplus
}
#endif
#endif
