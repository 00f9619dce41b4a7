/* SPDX-License-Identifier: Apache-2.0 */
/* Dense algebra for the quantizer and the forward pass. On the CPU: OpenBLAS, loaded late so that it picks its AVX-512
 * kernels, called single-threaded on fixed tiles that our own pool shares out; so results do not depend on the
 * number of threads. All matrices are row-major. */
#ifndef RQ_BACKEND_H
#define RQ_BACKEND_H

#include "common.h"

typedef enum rq_trans { RQ_N = 0, RQ_T = 1 } rq_trans;

/* Load OpenBLAS (once; every function below needs it). RQ_ERR_DEVICE with a sentence when it is not installed. */
rq_status rq_backend_init(void);
const char *rq_backend_name(void); /* for logs: "OpenBLAS SkylakeX" */

/* C[m][n] = alpha op(A) op(B) + beta C. Leading dimensions in elements. Tiled over C; safe inside rq_parallel_for. */
void rq_sgemm(rq_trans ta, rq_trans tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
              const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
void rq_dgemm(rq_trans ta, rq_trans tb, int64_t m, int64_t n, int64_t k, double alpha, const double *a, int64_t lda,
              const double *b, int64_t ldb, double beta, double *c, int64_t ldc);
/* One tile of the above on the calling thread, no splitting. */
void rq_sgemm_tile(rq_trans ta, rq_trans tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                   const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/* Products with an upper triangular factor, for the matrices of GPTAQ and ResComp: tiles that are zero are never
 * computed. The triangular inputs hold zeros below their diagonal (those are read within diagonal tiles). No aliasing.
 *   rq_sgemm_du: T[n][n] = strictly upper part of D U^T, the rest zero; U upper, D full.
 *   rq_sgemm_tu: P[n][n] = strictly upper part of T U, the rest zero; T and U upper.
 *   rq_sgemm_wu: Y[m][n] = W T + beta Y; T[n][n] upper, W[m][n] full. */
void rq_sgemm_du(float *t, const float *d, const float *u, int64_t n);
void rq_sgemm_tu(float *p, const float *t, const float *u, int64_t n);
void rq_sgemm_wu(float *y, const float *w, const float *t, int64_t m, int64_t n, float beta);

/* H[n][n] (fp64, both triangles) += A^T A with A fp32 [n_tok][n]: fp32 products of one chunk, added in fp64. */
rq_status rq_gram_add(double *h, const float *a, int64_t n_tok, int64_t n);
/* D[n][n] (fp64) += B^T A: rows of D belong to B's features, columns to A's. */
rq_status rq_cross_add(double *d, const float *b, const float *a, int64_t n_tok, int64_t n);
/* The same for every n_parts-th tile from the part-th on; the rest stays as it is. What several processes make of all parts is, bit
 * for bit, what one makes of the whole. */
rq_status rq_gram_add_part(double *h, const float *a, int64_t n_tok, int64_t n, int part, int n_parts);
rq_status rq_cross_add_part(double *d, const float *b, const float *a, int64_t n_tok, int64_t n, int part, int n_parts);

/* Upper-triangular U with (H)^-1 = U^T U and A = U^-1 (so H = A A^T), by one Cholesky of the index-reversed matrix and one
 * triangular inverse (docs/methods.md). h: fp64 [n][n], already damped, not changed. u, a: fp64 [n][n], zero below the
 * diagonal; a may be NULL. *bad is 0, or the 1-based index where h was found not positive definite (RQ_ERR_NUMERIC). */
rq_status rq_factor_upper(double *u, double *a, const double *h, int64_t n, int64_t *bad);

#endif
