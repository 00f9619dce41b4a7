/* SPDX-License-Identifier: Apache-2.0 */
/* From a format's own layout to the one the CUDA kernels read (fmt_tile.h), exactly, and back. Dependency-free: these files are
 * compiled with leaf headers and the C library alone. */
#ifndef RQ_REPACK_H
#define RQ_REPACK_H

#include "fmt_ssvq.h"
#include "fmt_tile.h"

#ifdef __cplusplus
extern "C" {
#endif

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

#ifdef __cplusplus
}
#endif
#endif
