/* SPDX-License-Identifier: Apache-2.0 */
/* Dense algebra on the host, column-major: OpenBLAS where it is installed, plain loops otherwise. */
#ifndef RQ_GPUSIM_SIM_BLAS_H
#define RQ_GPUSIM_SIM_BLAS_H
#include <stdbool.h>

/* C[m][n] = alpha op(A) op(B) + beta C; op transposes where asked. C is not read when beta is 0. */
void sim_sgemm(bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb,
               float beta, float *c, int ldc);
void sim_dgemm(bool ta, bool tb, int m, int n, int k, double alpha, const double *a, int lda, const double *b, int ldb,
               double beta, double *c, int ldc);

/* A triangular matrix: which part of it is used, and how. */
typedef struct sim_triangle {
    bool left, upper, transposed, unit; /* left: op(A) X, else X op(A) */
} sim_triangle;
/* B[m][n] = alpha op(A)^-1 B, or alpha B op(A)^-1. */
void sim_strsm(sim_triangle t, int m, int n, float alpha, const float *a, int lda, float *b, int ldb);
void sim_dtrsm(sim_triangle t, int m, int n, double alpha, const double *a, int lda, double *b, int ldb);

/* A = U^T U or L L^T in place, the other triangle untouched. 0, or the 1-based column where A is not positive definite. */
int sim_spotrf(bool upper, int n, float *a, int lda);
int sim_dpotrf(bool upper, int n, double *a, int lda);

#endif
