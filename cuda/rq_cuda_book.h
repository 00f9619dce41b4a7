/* SPDX-License-Identifier: Apache-2.0 */
/* Codebook quantization on a GPU, for host/backend_cuda_book*.c: the search of codes, the sweeps of vectors along the inputs and down the outputs, refinement, and k-means.
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
    int32_t col;   /* natural column of component 0, down the outputs of all */
    int32_t vec;   /* the vector; or -1 - o: outlier column o */
    int32_t which; /* its codebook */
    uint32_t lanes;
} rq_cuda_span;

/* Vectors down the outputs: up to rq_cuda_tile_lines(d) lines of one matrix, all of `tall` rows: d, or what is left at its end. */
typedef struct rq_cuda_line_tile {
    int64_t row0;
    int32_t line0, n_lines, tall, matrix;
} rq_cuda_line_tile;
static inline int rq_cuda_tile_lines(int d) { return d <= 4 ? 8 : d <= 8 ? 4 : 2; }

/* Codebooks and what the codes of a stack of rows are made of. A line is a row, or with vectors down the outputs the d rows that a vector covers, or fewer at
 * the end of a matrix; then a vector is a column. */
typedef struct rq_cuda_books {
    int d, n_stage, signs;  /* signs: entries are magnitudes (ssvq) */
    int k[2], k_pad[2];     /* k_pad: a multiple of 32 */
    const float *table[2];  /* [n_book][d][k_pad]: entries, component by component, zeros past the last */
    const float *scale;     /* [n_out][n_group], down the outputs [n_matrices][n] */
    int64_t group, n_group; /* columns of a group */
    const float *step;      /* [n_matrices][n_outlier]: of outlier columns */
    const int32_t *matrix;  /* [n_out] */
    int64_t n_out, n, n_line, n_vec;
    int n_outlier;
    rq_cuda_vec_code *code; /* [n_line][n_vec] */
    int8_t *outlier;        /* [n_out][n_outlier] */
    /* Down the outputs, otherwise NULL: */
    const float *bias;                  /* [n_matrices][n] */
    const int32_t *line_row, *row_line; /* [n_line + 1] the first row of each line, [n_out] the line of each row */
    const int32_t *book_of;             /* [n] codebook of a column */
    const rq_cuda_line_tile *tile;      /* [n_tile] */
    int n_tile;
} rq_cuda_books;

/* One block of the sweep: spans, at most RQ_COMP_BLOCK columns from col0 on. What the columns after it are owed is - x U + y T with the x and y left
 * here. Without u nothing moves: every span is rounded as it stands. */
typedef struct rq_cuda_book_block {
    rq_cuda_books books;
    const float *w, *w0; /* [n_out][n] sweep order; w0: NULL where a2 is 0 */
    const float *u, *t;  /* [n][n] sweep order, or NULL */
    const rq_cuda_span *span;
    const float *metric; /* [n_vec][d][d], zeros in lanes that do not count; not read down the outputs */
    float *x, *y;        /* [n_out][RQ_COMP_BLOCK]; NULL where u and t are */
    float *at, *q;       /* [n_out][n] natural order, or NULL: weights when they were rounded, and what they became */
    int64_t col0;
    int width, n_span, diagonal, allw; /* diagonal: so is metric */
    float a1, a2;
} rq_cuda_book_block;
rq_status rq_cuda_sweep_books(const rq_cuda_book_block *b, rq_cuda_stream stream);
/* comp_lines_sm80.cu: the same of vectors down the outputs; a span is a column. */
rq_status rq_cuda_sweep_lines(const rq_cuda_book_block *b, rq_cuda_stream stream);

/* ---- comp_book_refine_sm80.cu: after the sweep, in natural order */

/* Coordinate descent over one block of columns, G = (Q - goal) H being up to date: of each vector the code that is best given all else, taken where it
 * lowers the loss. What codes change leaves delta, for G += delta H. Spans have pos = col. */
typedef struct rq_cuda_book_descent {
    rq_cuda_books books;
    const float *g, *h, *q; /* [n_out][n], [n][n], [n_out][n] */
    const rq_cuda_span *span;
    const float *metric,
        *inverse; /* [n_vec][d][d]: H_bb over its largest entry, and H_bb^-1; not read down the outputs */
    float *delta; /* [n_out][RQ_COMP_BLOCK] */
    int64_t col0;
    int width, n_span;
} rq_cuda_book_descent;
rq_status rq_cuda_descend_books(const rq_cuda_book_descent *d, rq_cuda_stream stream);
/* comp_lines_sm80.cu: the same of vectors down the outputs. */
rq_status rq_cuda_descend_lines(const rq_cuda_book_descent *d, rq_cuda_stream stream);

/* What codes stand for: VALUE with scales, biases and outlier columns; RAW without scales and biases, 0 in outlier columns; DIRECTION as RAW times the scales, of
 * the entries v instead of the tables: [stage][n_book][k][d], the layout of all entries below. kept[n]: which outlier column it is, or -1. */
typedef enum rq_cuda_expand { RQ_EXPAND_VALUE, RQ_EXPAND_RAW, RQ_EXPAND_DIRECTION } rq_cuda_expand;
rq_status rq_cuda_expand_books(float *q, const rq_cuda_books *b, const int32_t *kept, int64_t vec_per_book,
                               int64_t n_book, rq_cuda_expand what, const double *v, rq_cuda_stream stream);

/* sum[n_entry]: what weights add to their entries, s h with the sign, or with h NULL s^2 H_jj, hd being H. part: [n_part][n_entry] */
typedef struct rq_cuda_book_sums {
    const float *h, *hd;
    const int32_t *kept;
    double *part, *sum;
    int64_t vec_per_book, n_book, n_entry, n_part;
} rq_cuda_book_sums;
rq_status rq_cuda_sum_books(const rq_cuda_book_sums *s, const rq_cuda_books *b, rq_cuda_stream stream);

/* The scales of one group, columns [col0, col0 + cols): v what codes stand for without them, vh = v H of the group's columns. A scale that changes moves
 * g. unit: scales times it are stored as halves. */
rq_status rq_cuda_refit_book_scales(float *scale, float *g, const float *v, const float *vh, const rq_cuda_books *b,
                                    int64_t which, float unit, rq_cuda_stream stream);

/* Down the outputs: sum[3][n], for each column the sums of v g, g and v over n_rows rows of [n_rows][n]. */
rq_status rq_cuda_column_sums(double *sum, const float *v, const float *g, int64_t n_rows, int64_t n,
                              rq_cuda_stream stream);

/* A pass of k-means: best, and in two launches sum. Sizes and layouts are those of host/kmeans_impl.h. */
typedef struct rq_cuda_kmeans {
    const float *x, *weight; /* [n][d]; weight: as `weights` says */
    const float *u, *table;  /* points and centroids as the kernel wants them */
    uint16_t *best;          /* [n_group * 16] */
    double *part, *sum;      /* [n_chunk][k][n_col], [k][n_col] */
    int64_t n, n_group, n_block, chunk, n_chunk, k;
    int d, n_feat, n_col, weights; /* weights: 0 none, 1 one a point, 2 one a component */
} rq_cuda_kmeans;
rq_status rq_cuda_kmeans_nearest(const rq_cuda_kmeans *k, rq_cuda_stream stream);
rq_status rq_cuda_kmeans_sums(const rq_cuda_kmeans *k, rq_cuda_stream stream);
/* sum[i] = part[0][i] + part[1][i] + ..., part[n_part][size] */
rq_status rq_cuda_total(double *sum, const double *part, int64_t size, int64_t n_part, rq_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
