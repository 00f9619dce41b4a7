/* SPDX-License-Identifier: Apache-2.0 */
/* The quantizer's own kernels, for host/backend_cuda.c: what is left of calibration, factor, sweep and refinement beside products of dense
 * matrices. docs/methods.md has the algebra, docs/devices.md the division of work. All pointers are device pointers, matrices are row-major;
 * calls only queue. No floating-point atomics: the same bytes in every run. */
#ifndef RQ_CUDA_COMP_H
#define RQ_CUDA_COMP_H

#include "rq_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- comp_prepare_sm80.cu: Gram matrices, the factor, the cross terms */

/* h[row0 + i][c] += p[i][c] for i < rows and c < cols, h[.][n] in fp64; lower: only where c <= row0 + i. */
rq_status rq_cuda_gram_fold(double *h, int64_t n, const float *p, int64_t ld, int64_t row0, int64_t rows, int64_t cols,
                            int lower, rq_cuda_stream stream);
/* h[r][c] = h[c][r] above the diagonal. */
rq_status rq_cuda_gram_mirror(double *h, int64_t n, rq_cuda_stream stream);
/* x[i] and x[count - 1 - i] change places. */
rq_status rq_cuda_reverse(double *x, int64_t count, rq_cuda_stream stream);
/* u[r][c] = c < r ? 0 : x read backwards. *bad (n before) becomes the first r whose diagonal is not a positive number. */
rq_status rq_cuda_factor_read(float *u, int32_t *bad, const double *x, int64_t n, rq_cuda_stream stream);
/* t[r][c] = 0 for c < first[r]. */
rq_status rq_cuda_clear_left(float *t, const int32_t *first, int64_t n, rq_cuda_stream stream);
/* to[perm[r]][perm[c]] = from[r][c] */
rq_status rq_cuda_to_natural(float *to, const float *from, const int32_t *perm, int64_t n, rq_cuda_stream stream);

/* ---- comp_block_sm80.cu, comp_scales_sm80.cu: the sweep */

/* to[i][c] = dead[perm[c]] ? 0 : from[i][perm[c]] */
rq_status rq_cuda_to_sweep_order(float *to, const float *from, const int32_t *perm, const uint8_t *dead, int64_t n_out,
                                 int64_t n, rq_cuda_stream stream);

/* Scales and zero points of n_group groups of `group` columns (the last may be short) from column col0 on: round_grid.c's find(), with its
 * sums. */
typedef struct rq_cuda_scales {
    const float *w;      /* [n_out][n] */
    const float *weight; /* [n] of the clip search */
    const uint8_t *dead; /* [n] whose values count as 0, or NULL */
    int64_t n_out, n, col0, group, n_group, out0;
    int64_t out_groups; /* scale[n_out][out_groups], written from out0 on */
    float *scale, *zero;
    const float *factor;  /* [steps] of the clip search, falling from 1 */
    int bits, sym, steps; /* steps: 1 without a search */
    float power;
    float shrink; /* not 0: no search, the range shrunk to this of itself (find_at() there) */
    int f16;      /* scales are rounded to fp16 */
} rq_cuda_scales;
rq_status rq_cuda_find_scales(const rq_cuda_scales *s, rq_cuda_stream stream);

/* ---- comp_levels_sm80.cu: two levels of w4a8, and the clip search by the output */

typedef struct rq_cuda_grids {
    float *scale, *zero, *step; /* [n_out][n_group]; step: NULL where it is 1 */
} rq_cuda_grids;

/* Steps and bases of all groups at scales of rows: row_scale, or factor[p] * largest / 119 for each p of n_factor. Into error[n_out][n_factor][n_group],
 * what a group loses; or with error NULL into scale, zero and step. */
typedef struct rq_cuda_level_search {
    const float *w, *weight; /* [n_out][n], [n] */
    const uint8_t *dead;     /* [n], or NULL */
    const double *factor;
    const float *row_scale, *largest; /* [n_out]; row_scale: or NULL */
    int64_t n_out, n, group, n_group;
    int reach, climbs; /* of round_w4a8.c: find_group's argument, and whether climb() follows */
    double *error;
    float *scale, *zero, *step;
} rq_cuda_level_search;
rq_status rq_cuda_row_largest(float *largest, const float *w, const uint8_t *dead, int64_t n_out, int64_t n,
                              rq_cuda_stream stream);
rq_status rq_cuda_find_levels(const rq_cuda_level_search *s, int n_factor, rq_cuda_stream stream);
/* The scale of the first factor whose errors are least in sum. */
rq_status rq_cuda_best_scale(float *row_scale, const rq_cuda_level_search *s, int n_factor, rq_cuda_stream stream);

/* e = w - Q(w), dead columns being 0. step: or NULL. */
rq_status rq_cuda_round_error(float *e, const float *w, const uint8_t *dead, const float *scale, const float *zero,
                              const float *step, int64_t n_out, int64_t n, int64_t group, int bits,
                              rq_cuda_stream stream);
/* Rows whose loss is less than the least so far (with first, all) give their grids to best. */
rq_status rq_cuda_keep_better(const rq_cuda_grids *best, const rq_cuda_grids *now, double *least, const double *loss,
                              int first, int64_t n_out, int64_t n_group, rq_cuda_stream stream);

/* One group's step and base in all rows, codes and scales fixed: u codes as numbers, hu = u H_gg, h11 the sums of the groups' blocks of H. q follows, by
 * change[n_out][len]. */
typedef struct rq_cuda_level_refit {
    const float *u, *g; /* [n_out][n] */
    const float *hu;    /* [n_out][len] */
    float *q, *change;  /* [n_out][n], [n_out][len] */
    const double *h11;  /* [n_group] */
    rq_cuda_grids grids;
    int64_t n_out, n, group, n_group, col0;
    int len;
} rq_cuda_level_refit;
rq_status rq_cuda_refit_levels(const rq_cuda_level_refit *r, rq_cuda_stream stream);

enum { RQ_COMP_BLOCK = 128 }; /* columns of a block, at most */

/* One block of columns: rounding, and what it does to the later columns of the block. What the columns after it are owed is
 * - x U + y T with the x and y left here. */
typedef struct rq_cuda_block {
    const float *w, *w0; /* [n_out][n] sweep order; w0: NULL where a2 is 0 */
    const float *u, *t;  /* [n][n], or NULL */
    int64_t n_out, n, col0;
    int width;                        /* columns, at most RQ_COMP_BLOCK */
    const int32_t *stored;            /* [n] where the column's code goes */
    int64_t group, n_group;           /* of stored columns */
    const float *scale, *zero, *step; /* [n_out][n_group]; step: NULL where it is 1 */
    uint8_t *codes;                   /* [n_out][n] */
    float *x, *y;                     /* [n_out][RQ_COMP_BLOCK]; y: NULL where t is */
    float a1, a2;
    int bits, allw;
} rq_cuda_block;
rq_status rq_cuda_sweep_block(const rq_cuda_block *b, rq_cuda_stream stream);

/* ---- comp_refine_sm80.cu: after the sweep, all in stored order */

/* Coordinate descent over one block of columns, G = (Q - W*) H being up to date; what codes change leaves delta, for G += delta H. */
typedef struct rq_cuda_descent {
    const float *g, *h;        /* [n_out][n], [n][n] */
    const float *scale, *zero; /* [n_out][n_group] */
    const float *
        step; /* the same where what a code stands for is scale * (code * step - zero), or NULL: scale * (code - zero) */
    float *q, *delta; /* [n_out][n], [n_out][RQ_COMP_BLOCK] */
    uint8_t *codes;   /* [n_out][n] */
    int64_t n_out, n, col0, group, n_group;
    int width, bits;
} rq_cuda_descent;
rq_status rq_cuda_descend_block(const rq_cuda_descent *d, rq_cuda_stream stream);
/* level = code * step - zero, q = scale * level; either may be NULL, and so may step (1) and zero (0). */
rq_status rq_cuda_levels(float *level, float *q, const uint8_t *codes, const float *scale, const float *zero,
                         const float *step, int64_t n_out, int64_t n, int64_t group, rq_cuda_stream stream);
/* e = a - b, [n_out][n] */
rq_status rq_cuda_subtract(float *e, const float *a, const float *b, int64_t n_out, int64_t n, rq_cuda_stream stream);
/* sum[i * row_pitch + p] = the sum of a b over part p of row i: columns of [col0, col0 + cols) in parts of `part`; fp64. */
rq_status rq_cuda_row_parts(double *sum, const float *a, const float *b, int64_t n_out, int64_t n, int64_t col0,
                            int64_t cols, int64_t part, int64_t row_pitch, rq_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
