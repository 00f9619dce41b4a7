/* SPDX-License-Identifier: Apache-2.0 */
/* Bulk copies: what op_bulk.c (decoding) and bulk.c (running) share. */
#ifndef RQ_GPUSIM_BULK_H
#define RQ_GPUSIM_BULK_H
#include "sim.h"

typedef enum bulk_kind {
    BULK_LOAD,    /* global -> shared memory of one block, or of several (multicast); an mbarrier counts the bytes */
    BULK_REMOTE,  /* shared -> shared memory of a block of the cluster; an mbarrier there counts the bytes */
    BULK_STORE,   /* shared -> global; bulk groups of the thread */
    BULK_PREFETCH /* no effect; addresses are checked */
} bulk_kind;

typedef enum bulk_op {
    BULK_COPY,
    BULK_ADD,
    BULK_MIN,
    BULK_MAX,
    BULK_INC,
    BULK_DEC,
    BULK_AND,
    BULK_OR,
    BULK_XOR
} bulk_op;

typedef struct bulk_plan {  /* gs_ins.extra */
    uint8_t kind, op, type; /* enum gs_type of a reduction of a linear copy */
    uint8_t rank;           /* 0: a linear copy; else the dimensions of the tensor */
    bool multicast;
} bulk_plan;

/* Operands of the instruction, in this order whatever the form; absent ones have size 0. Coordinates follow. */
enum { BULK_SHARED, BULK_GLOBAL /* or the tensor map */, BULK_SIZE, BULK_MBARRIER, BULK_MASK, BULK_COORD };
/* BULK_REMOTE: the source is in BULK_GLOBAL's place, the destination in BULK_SHARED's. */

void gs_bulk_copy(gs_warp *w, const gs_ins *i, uint32_t mask);
void gs_bulk_commit(gs_warp *w, const gs_ins *i, uint32_t mask);
void gs_bulk_wait(gs_warp *w, const gs_ins *i, uint32_t mask); /* imm: groups that may stay; flag: .read */

#endif
