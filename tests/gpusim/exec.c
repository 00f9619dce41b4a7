/* SPDX-License-Identifier: Apache-2.0 */
/* Execution: grid -> clusters of blocks -> warps -> groups of lanes.
 *
 * Lanes of a warp that are at one instruction form a group. The group with the lowest program counter runs, up to where the
 * next one waits, so that groups meet again where the code does; a group that spins gives way after a while, as independent
 * thread scheduling promises. Blocks are shared out over host threads when no result can depend on their order; a kernel in
 * which blocks can see each other (gs_kernel.ordered) runs on one thread, in order, and a further block becomes resident only
 * when those before it are stuck. So results are the same for any number of threads. */
#include <stdlib.h>

#include "core.h"

enum { QUANTUM = 20000, RESIDENT = 264, IDLE_ROUNDS = 64 };
enum { READY, AT_COLLECTIVE, AT_BARRIER, TIRED };

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
static uint32_t lane_value(const gs_warp *w, const gs_opnd *o, uint32_t mask) {
    uint32_t v;
    memcpy(&v, w->base[o->base] + o->off + 4 * (uint32_t)__builtin_ctz(mask), 4);
    return v;
}
/* The warp arrives as a whole. True: it goes on at once. */
static bool barrier_arrive(gs_warp *w, const gs_ins *i, uint32_t mask) {
    gs_block *b = w->block;
    uint32_t id = i->n_op > 0 && i->op[0].size ? lane_value(w, &i->op[0], mask) : 0;
    uint32_t count = i->n_op > 1 && i->op[1].size ? lane_value(w, &i->op[1], mask) : 0;
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

/* ------------------------------------------------------------------ one warp */
/* Merge groups at one instruction; the ready one that is furthest behind, or -1. */
static int pick(gs_warp *w) {
    for (int a = 0; a < w->n_group; ++a)
        for (int b = a + 1; b < w->n_group;)
            if (w->group[a].pc == w->group[b].pc) {
                w->group[a].mask |= w->group[b].mask;
                w->group[a].state = READY;
                w->group[a].divergent = false;
                w->group[b] = w->group[--w->n_group];
            } else
                ++b;
    for (int again = 0; again < 2; ++again) {
        int best = -1;
        for (int a = 0; a < w->n_group; ++a)
            if (w->group[a].state == READY && (best < 0 || w->group[a].pc < w->group[best].pc)) best = a;
        if (best >= 0) return best;
        for (int a = 0; a < w->n_group; ++a)
            if (w->group[a].state == TIRED) w->group[a].state = READY;
    }
    return -1;
}
static uint32_t members(const gs_warp *w, const gs_ins *i, uint32_t mask) {
    if (i->members < 0) return 0xffffffffu;
    const gs_opnd *o = &i->op[i->members];
    return lane_value(w, o, mask);
}
static void wake_waiting(gs_warp *w) {
    for (int a = 0; a < w->n_group; ++a)
        if (w->group[a].state == AT_COLLECTIVE || w->group[a].state == AT_BARRIER) w->group[a].state = READY;
}
static void end_warp(gs_warp *w) {
    w->done = true;
    w->block->worker->progress++;
    gs_cpasync_exit(w);
    gs_wgmma_exit(w);
    gs_bulk_exit(w);
    gs_barrier_leave(w->block);
    gs_cluster_barrier_check(w->block->cluster);
}
static _Noreturn void stuck(gs_warp *w) {
    const gs_group *g = &w->group[0];
    w->pc = (int)g->pc;
    bool barrier = g->state == AT_BARRIER;
    gs_stop(w, GS_FAULT_DEADLOCK, barrier ? "divergent barrier" : "warp collective never completes",
            __builtin_ctz(g->mask),
            "lanes 0x%08x wait here for lanes 0x%08x that never come (the warp has lanes 0x%08x)", g->mask,
            w->live & ~g->mask, w->live);
}

/* A barrier reached by lanes m of the group `mask`. Returns true to leave run_warp (the warp is blocked), false to go on;
 * *moved tells whether the group got past it. */
static bool at_barrier(gs_warp *w, gs_group *g, const gs_ins *i, uint32_t pc, uint32_t m, uint32_t mask, bool *moved) {
    *moved = false;
    if (m != mask)
        gs_stop(w, GS_FAULT_DEADLOCK, "divergent barrier", __builtin_ctz(m),
                "a guarded barrier that only part of the warp executes");
    g->pc = pc;
    if (m != w->live) { /* the others may come, or exit; who exits without doing anything else is not missed */
        if (g->state != AT_BARRIER)
            for (int a = 0; a < w->n_group; ++a)
                g->divergent |= &w->group[a] != g && w->block->kernel->code[w->group[a].pc].flow != FLOW_EXIT;
        g->state = AT_BARRIER;
        return false;
    }
    if (g->divergent)
        gs_find(w, GS_FINDING, "divergent barrier", __builtin_ctz(m), -1,
                "lanes 0x%08x of the warp come to this barrier, the others never do", m);
    g->divergent = false;
    g->pc = pc + 1;
    g->state = READY;
    *moved = true;
    return !barrier_arrive(w, i, m);
}

typedef enum { RAN_QUANTUM, RAN_BLOCKED, RAN_DONE, RAN_YIELD } gs_ran;

static gs_ran run_warp(gs_warp *w, int64_t budget) {
    gs_block *b = w->block;
    gs_worker *wk = b->worker;
    gs_kernel *k = b->kernel;
    const gs_ins *code = k->code;
    for (;;) {
        if (!w->n_group) {
            end_warp(w);
            return RAN_DONE;
        }
        int gi = pick(w);
        if (gi < 0) stuck(w);
        gs_group *g = &w->group[gi];
        uint32_t pc = g->pc, mask = g->mask, limit = 0xffffffffu;
        for (int a = 0; a < w->n_group; ++a)
            if (w->group[a].pc > pc && w->group[a].pc < limit) limit = w->group[a].pc;
        for (;;) {
            const gs_ins *i = &code[pc];
            uint32_t m = mask;
            w->pc = (int)pc;
            if (--budget < 0) {
                g->pc = pc;
                g->mask = mask;
                if (w->n_group > 1) g->state = TIRED;
                return w->yield ? (w->yield = false, RAN_YIELD) : RAN_QUANTUM;
            }
            if (i->guard) {
                uint32_t p;
                memcpy(&p, w->base[BASE_REG] + i->guard_off, 4);
                m &= i->guard == 1 ? p : ~p;
            }
            gs_pc_counts *count = &wk->pc[pc];
            count->exec++;
            count->lanes += (unsigned)__builtin_popcount(m);
            w->ins++;
            if (w->wgmma && m) gs_wgmma_guard(w, i);
            if (i->flow == FLOW_NEXT) {
                if (m && i->exec) i->exec(w, i, m);
                if (w->retry) {
                    w->retry = false;
                    g->pc = pc;
                    g->mask = mask;
                    if (w->n_group > 1) g->state = TIRED;
                    return RAN_YIELD;
                }
                ++pc;
                if (w->yield) budget = 0;
            } else if (i->flow == FLOW_BRANCH) {
                if (m == mask)
                    pc = (uint32_t)i->target;
                else if (!m)
                    ++pc;
                else {
                    wk->counts.divergent++;
                    g->pc = pc + 1;
                    g->mask = mask & ~m;
                    w->group[w->n_group++] = (gs_group){.pc = (uint32_t)i->target, .mask = m};
                    break;
                }
                if (w->n_group > 1) {
                    g->pc = pc;
                    break;
                }
            } else if (i->flow == FLOW_EXIT) {
                if (m && i->exec) i->exec(w, i, m);
                w->live &= ~m;
                mask &= ~m;
                if (m) wake_waiting(w);
                if (!mask) {
                    w->group[gi] = w->group[--w->n_group];
                    break;
                }
                ++pc;
            } else if (i->flow == FLOW_BARRIER) {
                if (!m) {
                    ++pc;
                    goto next;
                }
                bool moved, leave = at_barrier(w, g, i, pc, m, mask, &moved);
                if (leave) return RAN_BLOCKED;
                if (!moved) break;
                ++pc;
                continue;
            } else if (i->flow == FLOW_TABLE) {
                const uint32_t *index = (const uint32_t *)OPND(0);
                uint32_t rest = m, first = 1;
                if (m != mask)
                    gs_stop(w, GS_FAULT_ILLEGAL, "brx.idx", __builtin_ctz(mask), "a guarded brx.idx is not supported");
                while (rest) {
                    uint32_t v = index[__builtin_ctz(rest)], same = 0;
                    if (v >= i->imm)
                        gs_stop(w, GS_FAULT_ILLEGAL, "brx.idx", __builtin_ctz(rest), "index %u of a table of %u", v,
                                (unsigned)i->imm);
                    for (uint32_t r = rest; r; r &= r - 1) same |= index[__builtin_ctz(r)] == v ? r & (0u - r) : 0;
                    rest &= ~same;
                    if (first) {
                        g->pc = (uint32_t)i->table[v];
                        g->mask = same;
                    } else
                        w->group[w->n_group++] = (gs_group){.pc = (uint32_t)i->table[v], .mask = same};
                    wk->counts.divergent += first == 0;
                    first = 0;
                }
                break;
            } else { /* FLOW_COLLECTIVE */
                if (!m) {
                    ++pc;
                    goto next;
                }
                uint32_t need = members(w, i, m);
                if (i->members >= 0 && need & w->started & ~w->live)
                    gs_find(w, GS_FINDING, "warp collective", __builtin_ctz(need & w->started & ~w->live), -1,
                            "the member mask 0x%08x names lanes that have exited", need);
                if (i->members >= 0 && m & ~need)
                    gs_find(w, GS_FINDING, "warp collective", __builtin_ctz(m & ~need), -1,
                            "a lane that is not in its own member mask 0x%08x", need);
                if ((m & need) != (need & w->live)) {
                    g->pc = pc;
                    g->mask = mask;
                    g->state = AT_COLLECTIVE;
                    break;
                }
                i->exec(w, i, m);
                ++pc;
                if (w->yield) budget = 0;
            }
        next:
            if (pc >= limit) {
                g->pc = pc;
                g->mask = mask;
                break;
            }
            if (w->n_group > 1) {
                g->pc = pc;
                g->mask = mask;
            }
        }
    }
}

/* ------------------------------------------------------------------ blocks and clusters */
static void *aligned(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 127) & ~(size_t)63);
    if (!p) abort();
    return p;
}
static void make_block(gs_worker *wk, gs_cluster *c, gs_block *b, uint32_t rank) {
    gs_launch_state *l = wk->launch;
    gs_kernel *k = l->k;
    const gs_dim3 size = l->opt->block;
    memset(b, 0, sizeof *b);
    b->worker = wk;
    b->kernel = k;
    b->cluster = c;
    b->rank = rank;
    b->n_thread = (int)(size.x * size.y * size.z);
    b->n_warp = (b->n_thread + 31) / 32;
    b->dynamic_base = k->shared_end;
    b->shared_end = k->shared_end + (uint32_t)l->opt->dynamic_shared_bytes;
    b->shared = aligned(b->shared_end + 256);
    b->warp = calloc((size_t)b->n_warp, sizeof *b->warp);
    if (!b->warp) abort();
    for (int a = 0; a < b->n_warp; ++a) {
        gs_warp *w = &b->warp[a];
        w->block = b;
        w->id = a;
        w->agent = ((int)rank * b->n_warp + a) * AGENTS;
        w->base[BASE_REG] = aligned(k->reg_bytes + 64);
        w->base[BASE_CONST] = k->constant;
        w->base[BASE_SPECIAL] = aligned(GS_SPECIALS * 128);
        w->local = k->local_bytes ? aligned(32 * (size_t)k->local_bytes) : NULL;
        memset(w->base[BASE_REG], 0xEE, k->reg_bytes);
        w->vc = calloc(2 * (size_t)c->n_agent, sizeof *w->vc);
        if (!w->vc) abort();
        w->pvc = w->vc + c->n_agent;
    }
}
static void start_block(gs_worker *wk, gs_block *b, uint64_t linear) {
    gs_launch_state *l = wk->launch;
    gs_dim3 grid = l->opt->grid;
    b->linear = linear;
    b->at = (gs_dim3){(uint32_t)(linear % grid.x), (uint32_t)(linear / grid.x % grid.y),
                      (uint32_t)(linear / grid.x / grid.y)};
    memset(b->barrier, 0, sizeof b->barrier);
    if (b->shared_end > GS_SHARED_BASE) memset(b->shared + GS_SHARED_BASE, 0xAB, b->shared_end - GS_SHARED_BASE);
    b->busy = true;
    b->finished = false;
    gs_async_block_start(b);
    gs_race_block(b, b->cluster->n_agent);
    for (int a = 0; a < b->n_warp; ++a) {
        gs_warp *w = &b->warp[a];
        int left = b->n_thread - a * 32;
        w->live = w->started = left >= 32 ? 0xffffffffu : (1u << left) - 1;
        w->group[0] = (gs_group){.mask = w->live};
        w->n_group = 1;
        w->done = w->blocked = w->yield = w->retry = false;
        w->cluster_arrived = w->cluster_phase = 0;
        w->sub = 0;
        w->ins = 0;
        w->n_copy = 0;
        memset(w->copy_group, 0, sizeof w->copy_group);
        memset(w->tick, 0, sizeof w->tick);
        memset(w->vc, 0, 2 * (size_t)b->cluster->n_agent * sizeof *w->vc);
        w->vc[w->agent] = 1;
        gs_special_fill(w, l->opt, (uint64_t)(uintptr_t)l->workspace);
    }
}
static void make_cluster(gs_worker *wk, gs_cluster *c) {
    gs_launch_state *l = wk->launch;
    const gs_dim3 s = l->opt->block;
    memset(c, 0, sizeof *c);
    c->n_block = (int)(l->cluster.x * l->cluster.y * l->cluster.z);
    c->n_agent = c->n_block * (int)((s.x * s.y * s.z + 31) / 32) * AGENTS;
    c->block = calloc((size_t)c->n_block, sizeof *c->block);
    c->join = calloc(4 * (size_t)c->n_agent, sizeof *c->join);
    if (!c->block || !c->join) abort();
    c->pjoin = c->join + c->n_agent;
    c->join_done = c->pjoin + c->n_agent;
    c->pjoin_done = c->join_done + c->n_agent;
    for (int r = 0; r < c->n_block; ++r) make_block(wk, c, &c->block[r], (uint32_t)r);
}
static void start_cluster(gs_worker *wk, gs_cluster *c, uint64_t number) {
    gs_launch_state *l = wk->launch;
    gs_dim3 g = l->opt->grid, u = l->cluster;
    uint64_t nx = g.x / u.x, ny = g.y / u.y;
    uint64_t cx = number % nx, cy = number / nx % ny, cz = number / nx / ny;
    c->number = number;
    c->busy = true;
    c->generation = 0;
    memset(c->join, 0, 4 * (size_t)c->n_agent * sizeof *c->join);
    for (int r = 0; r < c->n_block; ++r) {
        uint64_t x = cx * u.x + (uint32_t)r % u.x, y = cy * u.y + (uint32_t)r / u.x % u.y,
                 z = cz * u.z + (uint32_t)r / u.x / u.y;
        start_block(wk, &c->block[r], x + g.x * (y + (uint64_t)g.y * z));
    }
    wk->counts.blocks += (uint64_t)c->n_block;
}
static void free_cluster(gs_cluster *c) {
    for (int r = 0; r < c->n_block; ++r) {
        gs_block *b = &c->block[r];
        for (int a = 0; a < b->n_warp; ++a) {
            gs_warp *w = &b->warp[a];
            gs_wgmma_free(w);
            gs_bulk_free(w);
            free(w->base[BASE_REG]);
            free(w->base[BASE_SPECIAL]);
            free(w->local);
            free(w->copy);
            free(w->vc);
        }
        gs_race_free(b);
        gs_async_block_free(b);
        free(b->warp);
        free(b->shared);
    }
    free(c->block);
    free(c->join);
}
static _Noreturn void deadlock(gs_cluster *c) {
    gs_warp *at = NULL;
    for (int r = 0; r < c->n_block && !at; ++r)
        for (int a = 0; a < c->block[r].n_warp && !at; ++a)
            if (!c->block[r].warp[a].done) at = &c->block[r].warp[a];
    const gs_barrier *b = &at->block->barrier[at->barrier];
    if (at->blocked && at->barrier < 16)
        gs_stop(at, GS_FAULT_DEADLOCK, "barrier never completes", __builtin_ctz(at->live),
                "barrier %d has %u arrivals and waits for %u threads", at->barrier, b->arrived,
                b->expected ? b->expected : (uint32_t)at->block->n_warp * 32);
    gs_stop(at, GS_FAULT_DEADLOCK, "wait never completes", __builtin_ctz(at->live),
            "every thread of the block waits, and nothing can end a wait");
}

/* One turn for every warp of a cluster. */
typedef enum { CLUSTER_DONE, CLUSTER_RAN, CLUSTER_WAITS } gs_turn;
static gs_turn turn(gs_worker *wk, gs_cluster *c) {
    bool alive = false, ran = false, worked = false;
    uint64_t before = wk->progress;
    for (int r = 0; r < c->n_block; ++r) {
        gs_block *b = &c->block[wk->launch->reverse ? c->n_block - 1 - r : r];
        if (b->finished) continue;
        bool left = false;
        for (int a = 0; a < b->n_warp; ++a) {
            gs_warp *w = &b->warp[wk->launch->reverse ? b->n_warp - 1 - a : a];
            if (w->done) continue;
            left = true;
            if (w->blocked) continue;
            ran = true;
            uint64_t ins = w->ins;
            gs_ran how = run_warp(w, QUANTUM);
            wk->ins += w->ins - ins;
            worked |= how != RAN_YIELD;
        }
        alive |= left;
        if (!left) b->finished = true;
    }
    if (!alive) return CLUSTER_DONE;
    if (!ran) {
        bool other = false; /* a barrier may have completed in this very turn */
        for (int r = 0; r < c->n_block; ++r)
            for (int a = 0; a < c->block[r].n_warp; ++a)
                other |= !c->block[r].warp[a].done && !c->block[r].warp[a].blocked;
        if (!other) deadlock(c);
    }
    return worked || wk->progress != before ? CLUSTER_RAN : CLUSTER_WAITS;
}
/* A launch without end: too many instructions, or very many in which nothing was stored and nobody arrived anywhere. */
static void too_long(gs_worker *wk, gs_cluster *c) {
    enum { IDLE_INS = 200000000 };
    if (wk->progress != wk->seen_progress) {
        wk->seen_progress = wk->progress;
        wk->seen_ins = wk->ins;
    }
    bool idle = wk->ins - wk->seen_ins > IDLE_INS;
    if (wk->ins <= wk->launch->max_ins && !idle) return;
    for (int r = 0; r < c->n_block; ++r)
        for (int a = 0; a < c->block[r].n_warp; ++a)
            if (!c->block[r].warp[a].done)
                gs_stop(&c->block[r].warp[a], GS_FAULT_DEADLOCK, "still running", 0, "after %.1e warp instructions%s",
                        (double)wk->ins,
                        idle ? ", the last 2e8 of which stored nothing: a wait for what never happens?"
                             : " (GPUSIM_MAX_INS)");
}
static void end_cluster(gs_worker *wk, gs_cluster *c) {
    (void)wk;
    for (int r = 0; r < c->n_block; ++r) c->block[r].busy = false;
    c->busy = false;
}

static bool take(gs_worker *wk, uint64_t *number) {
    gs_launch_state *l = wk->launch;
    pthread_mutex_lock(&l->lock);
    bool any = l->next < l->n_cluster && !(l->stop && l->next > l->stop_order);
    if (any) *number = l->next++;
    pthread_mutex_unlock(&l->lock);
    return any;
}
static uint64_t in_order(const gs_launch_state *l, uint64_t n) { return l->reverse ? l->n_cluster - 1 - n : n; }

/* Blocks that cannot see each other: one cluster at a time, to its end. */
static void run_apart(gs_worker *wk) {
    uint64_t n;
    while (take(wk, &n)) {
        gs_cluster *c = wk->gang[0];
        wk->order = n;
        start_cluster(wk, c, in_order(wk->launch, n));
        int idle = 0;
        for (;;) {
            gs_turn t = turn(wk, c);
            if (t == CLUSTER_DONE) break;
            idle = t == CLUSTER_WAITS ? idle + 1 : 0;
            if (idle > IDLE_ROUNDS) deadlock(c);
            too_long(wk, c);
        }
        end_cluster(wk, c);
    }
}
/* Blocks that may wait for each other. */
static void run_together(gs_worker *wk) {
    gs_launch_state *l = wk->launch;
    int limit = l->opt->cooperative && l->n_cluster > RESIDENT ? (int)l->n_cluster : RESIDENT, idle = 0;
    for (;;) {
        bool busy = false, moved = false;
        for (int r = 0; r < limit; ++r) {
            if (r == wk->n_gang) {
                if (l->next >= l->n_cluster) break;
                wk->gang = gs_grow(wk->gang, wk->n_gang, &wk->cap_gang, sizeof *wk->gang);
                wk->gang[wk->n_gang] = malloc(sizeof **wk->gang);
                if (!wk->gang[wk->n_gang]) abort();
                make_cluster(wk, wk->gang[wk->n_gang++]);
            }
            gs_cluster *c = wk->gang[r];
            if (!c->busy) {
                if (l->next >= l->n_cluster) continue;
                start_cluster(wk, c, in_order(l, l->next++));
                moved = true;
            }
            for (;;) { /* until it is done, or only waits */
                uint64_t before = wk->progress;
                gs_turn t = turn(wk, c);
                too_long(wk, c);
                if (t == CLUSTER_DONE) {
                    end_cluster(wk, c);
                    moved = true;
                    if (l->next >= l->n_cluster) break;
                    start_cluster(wk, c, in_order(l, l->next++));
                    continue;
                }
                moved |= t == CLUSTER_RAN;
                if (wk->progress == before) break; /* it may wait for a block that comes later */
            }
            busy |= c->busy;
        }
        if (!busy && l->next >= l->n_cluster) return;
        idle = moved ? 0 : idle + 1;
        if (idle > IDLE_ROUNDS)
            for (int r = 0; r < wk->n_gang; ++r)
                if (wk->gang[r]->busy) deadlock(wk->gang[r]);
    }
}
static void *work(void *arg) {
    gs_worker *wk = arg;
    gs_launch_state *l = wk->launch;
    if (setjmp(wk->stop)) { /* gs_stop recorded why */
        pthread_mutex_lock(&l->lock);
        if (!l->stop || wk->order < l->stop_order) l->stop_order = wk->order;
        l->stop = true;
        pthread_mutex_unlock(&l->lock);
        if (!wk->together) { /* blocks that come first in the order are still owed */
            for (int r = 0; r < wk->n_gang; ++r) free_cluster(wk->gang[r]), make_cluster(wk, wk->gang[r]);
            if (setjmp(wk->stop)) return NULL;
            run_apart(wk);
        }
        return NULL;
    }
    if (wk->together)
        run_together(wk);
    else
        run_apart(wk);
    return NULL;
}

/* ------------------------------------------------------------------ launch */
static gs_result bad(const char *format, ...) __attribute__((format(printf, 1, 2)));
static gs_result bad(const char *format, ...) {
    char text[400];
    va_list a;
    va_start(a, format);
    vsnprintf(text, sizeof text, format, a);
    va_end(a);
    gs_set_error("%s", text);
    return GS_BAD_LAUNCH;
}
static gs_result check_sizes(const gs_kernel *k, const gs_launch_opt *o, gs_dim3 *cluster) {
    uint64_t threads = (uint64_t)o->block.x * o->block.y * o->block.z;
    if (!o->block.x || !o->block.y || !o->block.z || o->block.x > 1024 || o->block.y > 1024 || o->block.z > 64 ||
        threads > 1024)
        return bad("%s: a block of %u x %u x %u threads", k->name, o->block.x, o->block.y, o->block.z);
    if (threads > k->info.max_threads)
        return bad("%s: a block of %llu threads, the kernel is compiled for at most %u", k->name,
                   (unsigned long long)threads, k->info.max_threads);
    const uint32_t *req = k->info.required;
    if (req[0] && (req[0] != o->block.x || req[1] != o->block.y || req[2] != o->block.z))
        return bad("%s: the kernel requires blocks of %u x %u x %u", k->name, req[0], req[1], req[2]);
    if (!o->grid.x || !o->grid.y || !o->grid.z || o->grid.x > 0x7fffffffu || o->grid.y > 65535 || o->grid.z > 65535)
        return bad("%s: a grid of %u x %u x %u blocks", k->name, o->grid.x, o->grid.y, o->grid.z);
    uint64_t shared = k->shared_end - GS_SHARED_BASE + o->dynamic_shared_bytes;
    if (shared > GS_SHARED_BLOCK_MAX)
        return bad("%s: %llu bytes of shared memory, a block has at most %d", k->name, (unsigned long long)shared,
                   GS_SHARED_BLOCK_MAX);
    *cluster = o->cluster.x         ? o->cluster
               : k->info.cluster[0] ? (gs_dim3){k->info.cluster[0], k->info.cluster[1], k->info.cluster[2]}
                                    : (gs_dim3){1, 1, 1};
    if (!cluster->y || !cluster->z || (uint64_t)cluster->x * cluster->y * cluster->z > 16)
        return bad("%s: a cluster of %u x %u x %u blocks", k->name, cluster->x, cluster->y, cluster->z);
    if (o->grid.x % cluster->x || o->grid.y % cluster->y || o->grid.z % cluster->z)
        return bad("%s: the grid is no multiple of the cluster", k->name);
    return GS_OK;
}
gs_result gs_launch(gs_kernel *k, const gs_launch_opt *opt, gs_counts *counts) {
    gs_settings *set = gs_settings_get();
    if (k->error) {
        gs_find_host("not supported", "%s", k->error);
        gs_set_error("%s", k->error);
        return GS_BAD_LAUNCH;
    }
    gs_launch_state l = {
        .k = k, .opt = opt, .check = set->check, .reverse = set->reverse, .max_ins = set->max_warp_ins};
    gs_result rc = check_sizes(k, opt, &l.cluster);
    if (rc) return rc;
    pthread_mutex_init(&l.lock, NULL);
    l.n_cluster =
        (uint64_t)opt->grid.x * opt->grid.y * opt->grid.z / ((uint64_t)l.cluster.x * l.cluster.y * l.cluster.z);
    /* Parameters keep their alignment in memory: a tensor map wants 64. */
    size_t param_room = (k->param_bytes / 256 + 1) * 256;
    l.param = aligned_alloc(256, param_room);
    l.workspace = calloc(8, sizeof *l.workspace);
    if (!l.param || !l.workspace) abort();
    memset(l.param, 0, param_room);
    if (opt->arg_buffer)
        memcpy(l.param, opt->arg_buffer, k->param_bytes);
    else
        for (int q = 0; q < k->n_param; ++q) memcpy(l.param + k->param[q].addr, opt->args[q], k->param[q].bytes);
    gs_mem_register(l.workspace, 64);
    if (k->param_bytes) gs_mem_register(l.param, k->param_bytes);
    bool together = k->ordered || k->grid_sync || opt->cooperative;
    int n = together ? 1 : set->threads < 1 ? 1 : set->threads;
    if ((uint64_t)n > l.n_cluster) n = (int)l.n_cluster;
    gs_worker *wk = calloc((size_t)n, sizeof *wk);
    pthread_t *thread = calloc((size_t)n, sizeof *thread);
    if (!wk || !thread) abort();
    for (int t = 0; t < n; ++t) {
        wk[t].launch = &l;
        wk[t].together = together;
        wk[t].pc = calloc((size_t)k->n_code, sizeof *wk[t].pc);
        if (!wk[t].pc) abort();
        if (!together) {
            wk[t].gang = gs_grow(NULL, 0, &wk[t].cap_gang, sizeof *wk[t].gang);
            wk[t].gang[0] = malloc(sizeof **wk[t].gang);
            if (!wk[t].gang[0]) abort();
            make_cluster(&wk[t], wk[t].gang[0]);
            wk[t].n_gang = 1;
        }
    }
    for (int t = 1; t < n; ++t)
        if (pthread_create(&thread[t], NULL, work, &wk[t])) abort();
    work(&wk[0]);
    for (int t = 1; t < n; ++t) pthread_join(thread[t], NULL);
    gs_mem_unregister(l.workspace);
    if (k->param_bytes) gs_mem_unregister(l.param);
    rc = gs_report_launch(&l, wk, n);
    if (counts) *counts = l.counts;
    for (int t = 0; t < n; ++t) {
        for (int r = 0; r < wk[t].n_gang; ++r) {
            free_cluster(wk[t].gang[r]);
            free(wk[t].gang[r]);
        }
        free(wk[t].gang);
        free(wk[t].pc);
        free(wk[t].finding);
    }
    free(wk);
    free(thread);
    free(l.pc);
    free(l.finding);
    free(l.param);
    free(l.workspace);
    pthread_mutex_destroy(&l.lock);
    return rc;
}
