/* SPDX-License-Identifier: Apache-2.0 */
/* The functions of OpenBLAS that the CPU's dense algebra calls, with our own declarations, so that building needs no header of
 * theirs. rq_backend_init() fills them in. */
#ifndef RQ_BACKEND_OPENBLAS_H
#define RQ_BACKEND_OPENBLAS_H

#include "backend.h"

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112, LOWER = 122, NON_UNIT = 131, LEFT = 141, RIGHT = 142 };
typedef int blas_int;

typedef struct rq_openblas {
    void (*sgemm)(int order, int ta, int tb, blas_int m, blas_int n, blas_int k, float alpha, const float *a,
                  blas_int lda, const float *b, blas_int ldb, float beta, float *c, blas_int ldc);
    void (*dgemm)(int order, int ta, int tb, blas_int m, blas_int n, blas_int k, double alpha, const double *a,
                  blas_int lda, const double *b, blas_int ldb, double beta, double *c, blas_int ldc);
    void (*ssyrk)(int order, int uplo, int trans, blas_int n, blas_int k, float alpha, const float *a, blas_int lda,
                  float beta, float *c, blas_int ldc);
    void (*dtrsm)(int order, int side, int uplo, int trans, int diag, blas_int m, blas_int n, double alpha,
                  const double *a, blas_int lda, double *b, blas_int ldb);
    void (*dpotrf)(const char *uplo, const blas_int *n, double *a, const blas_int *lda, blas_int *info, size_t len);
    void (*set_num_threads)(int n);
    char *(*get_corename)(void);
} rq_openblas;
extern rq_openblas rq_blas;

#endif
