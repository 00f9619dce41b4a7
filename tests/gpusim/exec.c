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
    return gs_lane_value(w, o, mask);
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
    return !gs_barrier_arrive(w, i, m);
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
void gs_make_cluster(gs_worker *wk, gs_cluster *c) {
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
void gs_free_cluster(gs_cluster *c) {
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
                gs_make_cluster(wk, wk->gang[wk->n_gang++]);
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
void *gs_work(void *arg) {
    gs_worker *wk = arg;
    gs_launch_state *l = wk->launch;
    if (setjmp(wk->stop)) { /* gs_stop recorded why */
        pthread_mutex_lock(&l->lock);
        if (!l->stop || wk->order < l->stop_order) l->stop_order = wk->order;
        l->stop = true;
        pthread_mutex_unlock(&l->lock);
        if (!wk->together) { /* blocks that come first in the order are still owed */
            for (int r = 0; r < wk->n_gang; ++r) gs_free_cluster(wk->gang[r]), gs_make_cluster(wk, wk->gang[r]);
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
