/* SPDX-License-Identifier: Apache-2.0 */
/* Codebook quantization on a GPU, for host/backend_cuda_book*.c: the search of codes, the sweep of vectors along the inputs, refinement, and k-means.
 * host/comp_book.h has the words, docs/methods.md ("Codebooks") the formulas. All pointers are device pointers, matrices are row-major; calls only
 * queue. No floating-point atomics: the same bytes in every run. */
#ifndef RQ_CUDA_BOOK_H
#define RQ_CUDA_BOOK_H

#include "rq_cuda_comp.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { RQ_CUDA_BOOK_VEC = 16 }; /* weights of a vector, at most */

/* rq_vec_code of host/comp_book.h. */
typedef struct rq_cuda_vec_code {
    uint16_t code[2], negative;
} rq_cuda_vec_code;

/* Columns that are rounded together: those components of a vector that `lanes` has a bit for, or one outlier column. */
typedef struct rq_cuda_span {
    int32_t pos;   /* sweep column of the first of them; the others follow */
    int32_t col;   /* natural column of component 0 */
    int32_t vec;   /* the vector; or -1 - o: outlier column o */
    int32_t which; /* its codebook */
    uint32_t lanes;
} rq_cuda_span;

/* Codebooks and what the codes of a stack of rows are made of. */
typedef struct rq_cuda_books {
    int d, n_stage, signs;  /* signs: entries are magnitudes (ssvq) */
    int k[2], k_pad[2];     /* k_pad: a multiple of 32 */
    const float *table[2];  /* [n_book][d][k_pad]: entries, component by component, zeros past the last */
    const float *scale;     /* [n_out][n_group] */
    int64_t group, n_group; /* columns of a group */
    const float *step;      /* [n_matrices][n_outlier]: of outlier columns */
    const int32_t *matrix;  /* [n_out] */
    int64_t n_out, n, n_vec;
    int n_outlier;
    rq_cuda_vec_code *code; /* [n_out][n_vec] */
    int8_t *outlier;        /* [n_out][n_outlier] */
} rq_cuda_books;

/* One block of the sweep: spans, at most RQ_COMP_BLOCK columns from col0 on. What the columns after it are owed is - x U + y T with the x and y left
 * here. Without u nothing moves: every span is rounded as it stands. */
typedef struct rq_cuda_book_block {
    rq_cuda_books books;
    const float *w, *w0; /* [n_out][n] sweep order; w0: NULL where a2 is 0 */
    const float *u, *t;  /* [n][n] sweep order, or NULL */
    const rq_cuda_span *span;
    const float *metric; /* [n_vec][d][d], zeros in lanes that do not count */
    float *x, *y;        /* [n_out][RQ_COMP_BLOCK]; NULL where u and t are */
    float *at, *q;       /* [n_out][n] natural order, or NULL: weights when they were rounded, and what they became */
    int64_t col0;
    int width, n_span, diagonal, allw; /* diagonal: so is metric */
    float a1, a2;
} rq_cuda_book_block;
rq_status rq_cuda_sweep_books(const rq_cuda_book_block *b, rq_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
