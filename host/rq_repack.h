/* SPDX-License-Identifier: Apache-2.0 */
/* From a format's own layout to the one the CUDA kernels read (fmt_tile.h), exactly, and back. Dependency-free: these files are
 * compiled with leaf headers and the C library alone. */
#ifndef RQ_REPACK_H
#define RQ_REPACK_H

#include "fmt_grid.h"
#include "fmt_ssvq.h"
#include "fmt_tile.h"
#include "fmt_vq.h"
#include "fmt_w4a8.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where a function returns something other than RQ_OK, *why (if why is not NULL) is a sentence that needs no freeing. */

/* ---- Grid codes. n matrices that share x (q, k, v; gate, up) are stacked to one, for one launch: the same columns, bits, groups and
 * permutation, all with zero points or none. All but the last have a multiple of 16 rows. */

/* Fills *t for the stack, or says why it has no place in this layout: the group must be a multiple of 32 columns or the row,
 * fp32 scales must be exact in fp16, zero points less than 2^bits. The input permutation is not part of the layout: give
 * g->perm to the run (rq_cuda_gemv_args.perm). */
rq_status rq_repack_grid_plan(rq_tile_layout *t, const rq_grid *g, int n, const char **why);
/* Writes all t->bytes bytes of dst, 4-byte aligned; t is from rq_repack_grid_plan for these matrices. */
rq_status rq_repack_grid(void *dst, const rq_tile_layout *t, const rq_grid *g, int n, const char **why);
/* The other way, rows first .. first + n_out - 1 of the stack: words[n_out][rq_grid_row_words()], scales[n_out][n_group],
 * zeros[n_out][n_group] (not touched without zeros). */
rq_status rq_unpack_tiles_grid(uint32_t *words, rq_f16 *scales, uint8_t *zeros, const void *src,
                               const rq_tile_layout *t, int64_t first, int64_t n_out, const char **why);

/* ---- SSVQ. n matrices that share x are stacked to one: the same columns, codebooks, groups and outlier columns; each has its
 * own scales. All but the last have a multiple of 16 rows. */

/* Fills t, or says in *why (if not NULL) what the tiles cannot hold. */
rq_status rq_repack_ssvq_plan(rq_tile_layout *t, const rq_ssvq *matrices, int n, const char **why);
/* Writes t->bytes bytes. */
void rq_repack_ssvq(void *to, const rq_tile_layout *t, const rq_ssvq *matrices, int n);

typedef struct rq_ssvq_arrays { /* the arrays of rq_ssvq, to be written; what is NULL is left out */
    uint32_t *codes, *signs;
    rq_f16 *book_f16;
    uint8_t *book_u8;
    float *book_scale;
    rq_f16 *scale;
    int32_t *outlier_col;
    int8_t *outlier;
    float *outlier_scale;
} rq_ssvq_arrays;
/* The matrix with the sizes of `shape` (its pointers are not looked at) whose first row is row `first` of the stack. */
void rq_repack_ssvq_back(const rq_ssvq_arrays *to, const rq_ssvq *shape, const rq_tile_layout *t, const void *from,
                         int64_t first);

/* ---- VQ. Stacked like SSVQ; column scales and biases are then the same too. */

rq_status rq_repack_vq_plan(rq_tile_layout *t, const rq_vq *matrices, int n, const char **why);
/* Writes t->bytes bytes. */
void rq_repack_vq(void *to, const rq_tile_layout *t, const rq_vq *matrices, int n);

typedef struct rq_vq_arrays { /* the arrays of rq_vq, to be written; what is NULL is left out */
    uint32_t *codes[2];
    rq_f16 *book[2];
    rq_f16 *scale, *col_scale, *col_bias;
    int32_t *outlier_col;
    int8_t *outlier;
    float *outlier_scale;
} rq_vq_arrays;
/* The matrix with the sizes of `shape` (its pointers are not looked at) whose first row is row `first` of the stack. */
void rq_repack_vq_back(const rq_vq_arrays *to, const rq_vq *shape, const rq_tile_layout *t, const void *from,
                       int64_t first);

/* ---- W4A8. n matrices that share x are stacked to one: the same columns, groups, factors and Hadamard matrix of x. All but the last have a
 * multiple of 16 rows. */

/* Fills t, or says in *why (if not NULL) what the tiles cannot hold. Products take x as it is: who quantizes it (rq_cuda_quantize_rows and its
 * like) applies the Hadamard matrix of order t->hadamard, then the factors at t->factors_at. */
rq_status rq_repack_w4a8_plan(rq_tile_layout *t, const rq_w4a8 *matrices, int n, const char **why);
/* Writes t->bytes bytes, 4-byte aligned. */
void rq_repack_w4a8(void *to, const rq_tile_layout *t, const rq_w4a8 *matrices, int n);

typedef struct rq_w4a8_arrays { /* the arrays of rq_w4a8, to be written; what is NULL is left out */
    uint32_t *words;
    float *scale;
    uint8_t *zero, *step;
    int8_t *base;
    float *in_scale;
} rq_w4a8_arrays;
/* The matrix with the sizes of `shape` (its pointers are not looked at) whose first row is row `first` of the stack. */
void rq_repack_w4a8_back(const rq_w4a8_arrays *to, const rq_w4a8 *shape, const rq_tile_layout *t, const void *from,
                         int64_t first);

#ifdef __cplusplus
}
#endif
#endif
