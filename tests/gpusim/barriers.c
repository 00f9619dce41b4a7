/* SPDX-License-Identifier: Apache-2.0 */
/* Barriers: of a block (bar, barrier) and of a cluster. What is special about one instruction is in op_sync.c. */
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

/* ------------------------------------------------------------------ barriers of a block */
static void barrier_complete(gs_block *b, int id) {
    gs_clock_barrier(b, id);
    for (int a = 0; a < b->n_warp; ++a)
        if (b->warp[a].blocked && b->warp[a].barrier == id) {
            b->warp[a].blocked = false;
            b->warp[a].sub++;
        }
    gs_barrier *at = &b->barrier[id];
    at->arrived = 0;
    at->generation++;
    at->votes[at->generation & 1] = at->voters[at->generation & 1] = 0;
    b->worker->counts.barriers++;
    b->worker->progress++;
}
static uint32_t exited_threads(const gs_block *b) {
    uint32_t n = 0;
    for (int a = 0; a < b->n_warp; ++a)
        if (b->warp[a].done) n += 32;
    return n;
}
/* A warp ended: exited threads count as arrived, unless the barrier names its own number. */
void gs_barrier_leave(gs_block *b) {
    for (int id = 0; id < 16; ++id) {
        bool any = false;
        for (int a = 0; a < b->n_warp; ++a) any |= b->warp[a].blocked && b->warp[a].barrier == id;
        if (any && !b->barrier[id].expected && b->barrier[id].arrived + exited_threads(b) >= (uint32_t)b->n_warp * 32)
            barrier_complete(b, id);
    }
}
uint32_t gs_lane_value(const gs_warp *w, const gs_opnd *o, uint32_t mask) {
    uint32_t v;
    memcpy(&v, w->base[o->base] + o->off + 4 * (uint32_t)__builtin_ctz(mask), 4);
    return v;
}
/* The warp arrives as a whole. True: it goes on at once. */
bool gs_barrier_arrive(gs_warp *w, const gs_ins *i, uint32_t mask) {
    gs_block *b = w->block;
    uint32_t id = i->n_op > 0 && i->op[0].size ? gs_lane_value(w, &i->op[0], mask) : 0;
    uint32_t count = i->n_op > 1 && i->op[1].size ? gs_lane_value(w, &i->op[1], mask) : 0;
    if (id > 15)
        gs_stop(w, GS_FAULT_ILLEGAL, "barrier", __builtin_ctz(mask), "barrier %u does not exist (0 to 15)", id);
    if (count % 32 || count > 1024)
        gs_stop(w, GS_FAULT_ILLEGAL, "barrier", __builtin_ctz(mask), "barrier for %u threads, not a multiple of 32",
                count);
    gs_barrier *at = &b->barrier[id];
    if (at->arrived && at->expected != count)
        gs_find(w, GS_FINDING, "barrier", __builtin_ctz(mask), -1,
                "barrier %u is waited for with %u threads and with %u", id, at->expected, count);
    at->expected = count;
    at->arrived += 32;
    if (i->sub == 2) gs_barrier_vote(w, i, mask, at);
    w->sub++;
    w->blocked = true;
    w->barrier = (int)id;
    bool arrive_only = i->sub == 1;
    uint32_t need = count ? count : (uint32_t)b->n_warp * 32;
    if (at->arrived + (count ? 0 : exited_threads(b)) >= need) {
        barrier_complete(b, (int)id);
        return true;
    }
    if (arrive_only) {
        gs_clock_arrive(w, (int)id);
        w->blocked = false;
        return true;
    }
    return false;
}
