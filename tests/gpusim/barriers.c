/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of barriers that execution and the sync family share. */
#include "core.h"
#include "lanes.h"

/* bar.red: the vote is the last operand. */
void gs_barrier_vote(gs_warp *w, const gs_ins *i, uint32_t mask, gs_barrier *at) {
    uint32_t parity = at->generation & 1;
    at->votes[parity] += (uint32_t)__builtin_popcount(gs_pred_read(w, i, i->n_op - 1) & mask);
    at->voters[parity] += (uint32_t)__builtin_popcount(mask);
}
void gs_cluster_barrier_check(gs_cluster *c) {
    bool any = false;
    for (int r = 0; r < c->n_block; ++r)
        for (int a = 0; a < c->block[r].n_warp; ++a) {
            const gs_warp *w = &c->block[r].warp[a];
            if (!w->done && w->live & ~w->cluster_arrived) return;
            any |= w->cluster_arrived != 0;
        }
    if (!any) return;
    for (int r = 0; r < c->n_block; ++r)
        for (int a = 0; a < c->block[r].n_warp; ++a) c->block[r].warp[a].cluster_arrived = 0;
    c->generation++;
    size_t bytes = 2 * (size_t)c->n_agent * sizeof *c->join;
    memcpy(c->join_done, c->join, bytes);
    memset(c->join, 0, bytes);
}
