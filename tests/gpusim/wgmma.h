/* SPDX-License-Identifier: Apache-2.0 */
/* What op_wgmma.c (decoding, arithmetic) and wgmma.c (what is in flight) share. */
#ifndef RQ_GPUSIM_WGMMA_H
#define RQ_GPUSIM_WGMMA_H
#include "sim.h"

typedef struct
    wgmma_plan { /* gs_ins.extra; operands: D registers, A registers or descriptor, descriptor of B, scale-d */
    uint16_t n, d_regs;
    uint8_t k;              /* elements */
    uint8_t a_elem, b_elem; /* enum tc_elem */
    uint8_t a_regs;         /* 4, or 0 when A is in shared memory */
    bool integer, half, saturate, negate;
    bool a_mn, b_mn; /* MN-major, the transposed forms */
    uint32_t shape;  /* equal for instructions whose accumulators may follow one another without a fence */
} wgmma_plan;

/* Begins an mma_async: a new clock, checks of the warpgroup. */
void gs_wgmma_begin(gs_warp *w, const gs_ins *i, uint32_t mask, uint64_t a_desc, uint64_t b_desc, bool scale_d);
/* The register of operand k is an accumulator: from here on it holds poison. Returns its value, which is the result to
 * come of an earlier wgmma when that is in flight, and where the new result goes. */
uint8_t *gs_wgmma_accumulator(gs_warp *w, const gs_ins *i, int k);
/* The register of operand k is a part of A. */
const uint8_t *gs_wgmma_input(gs_warp *w, const gs_ins *i, int k);

void gs_wgmma_fence(gs_warp *w, const gs_ins *i, uint32_t mask);
void gs_wgmma_commit(gs_warp *w, const gs_ins *i, uint32_t mask);
void gs_wgmma_wait(gs_warp *w, const gs_ins *i, uint32_t mask); /* imm: groups that may stay */

#endif
