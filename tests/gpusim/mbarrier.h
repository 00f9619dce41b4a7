/* SPDX-License-Identifier: Apache-2.0 */
/* mbarrier objects and the landing of cp.async, for op_async.c. Addresses are shared addresses as lanes see them. */
#ifndef RQ_GPUSIM_MBARRIER_H
#define RQ_GPUSIM_MBARRIER_H
#include "sim.h"

void gs_mbarrier_init(gs_warp *w, uint32_t addr, uint32_t count, int lane);
bool gs_mbarrier_is_live(gs_block *b, uint32_t inside); /* at this address inside the block */
void gs_mbarrier_inval(gs_warp *w, uint32_t addr, int lane);
void gs_mbarrier_tx(gs_warp *w, uint32_t addr, int64_t bytes, int lane); /* expect (> 0) or complete (< 0) */
uint64_t gs_mbarrier_arrive(gs_warp *w, uint32_t addr, uint32_t count, bool drop, bool no_complete, int lane);
bool gs_mbarrier_test(gs_warp *w, uint32_t addr, uint32_t parity, int lane); /* is the phase of that parity over? */
void gs_mbarrier_arrive_later(gs_warp *w, uint32_t addr, int lane,
                              bool noinc); /* when the lane's copies so far have landed */

/* As gs_shared_span, for one lane. */
uint8_t *gs_shared_lane(gs_warp *w, uint32_t addr, uint32_t n, int agent, int lane, gs_access access);
void gs_copy_land(gs_warp *w, const gs_copy *c);
void gs_copy_mark(gs_warp *w, const gs_copy *c); /* still under way: renew its clock */

#endif
