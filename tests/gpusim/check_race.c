/* SPDX-License-Identifier: Apache-2.0 */
/* Races in shared memory, by vector clocks (as in FastTrack: Flanagan and Freund, PLDI 2009), and initialisation.
 *
 * Every warp and every asynchronous agent of a warp (cp.async, bulk copies, wgmma) has a component. Two accesses to a byte, one
 * of them a write, must be ordered: by a barrier, an mbarrier, an atomic, or the wait that belongs to the asynchronous
 * operation. Inside a warp only __syncwarp (and barriers) order lanes, since lanes need not run in lockstep.
 *
 * A second clock (pvc) holds what a proxy fence has covered: what the generic proxy wrote may be read by the asynchronous
 * proxy (bulk copies, wgmma) only when a fence.proxy.async lies on the path between them (PTX ISA, memory consistency model,
 * causality order). Left out: accesses to global memory. A __syncwarp of part of a warp counts as one of all its lanes, so
 * that no false finding comes of it; a race between the halves can then be missed. */
#include <stdlib.h>

#include "core.h"

struct gs_race_pools {
    uint32_t *readers; /* vectors of n_agent clocks, for words with concurrent readers */
    uint32_t n_readers, cap_readers;
    gs_shadow *split; /* four entries each, for words accessed in parts */
    uint32_t n_split, cap_split;
};

void gs_race_block(gs_block *b, int n_agent) {
    gs_worker *wk = b->worker;
    if (!(wk->launch->check & (GS_CHECK_RACES | GS_CHECK_UNINIT | GS_CHECK_PROXY))) return;
    if (!b->shadow) {
        b->shadow = calloc(b->shared_end / 4 + 8, sizeof *b->shadow);
        b->pools = calloc(1, sizeof *b->pools);
        b->barrier_clock = malloc(16 * 2 * (size_t)n_agent * sizeof *b->barrier_clock);
        if (!b->shadow || !b->pools || !b->barrier_clock) abort();
    }
    b->pools->n_readers = b->pools->n_split = 0;
    memset(b->barrier_clock, 0, 16 * 2 * (size_t)n_agent * sizeof *b->barrier_clock);
    b->epoch = ++wk->epoch;
}
void gs_race_free(gs_block *b) {
    if (b->pools) {
        free(b->pools->readers);
        free(b->pools->split);
    }
    free(b->pools);
    free(b->shadow);
    free(b->barrier_clock);
}

/* ------------------------------------------------------------------ clocks */
static void join(uint32_t *a, const uint32_t *b, int n) {
    for (int k = 0; k < n; ++k) a[k] = a[k] > b[k] ? a[k] : b[k];
}
static int agents(const gs_block *b) { return b->cluster->n_agent; }

void gs_clock_barrier(gs_block *b, int id) {
    if (!b->shadow) return;
    int n = agents(b);
    uint32_t *v = b->barrier_clock + (size_t)id * 2 * n, *pv = v + n;
    for (int a = 0; a < b->n_warp; ++a) {
        gs_warp *w = &b->warp[a];
        if (!w->done && !(w->blocked && w->barrier == id)) continue;
        join(v, w->vc, n);
        join(pv, w->pvc, n);
    }
    for (int a = 0; a < b->n_warp; ++a) {
        gs_warp *w = &b->warp[a];
        if (w->done || !w->blocked || w->barrier != id) continue;
        memcpy(w->vc, v, (size_t)n * sizeof *v);
        memcpy(w->pvc, pv, (size_t)n * sizeof *v);
        w->vc[w->agent]++;
    }
    memset(v, 0, 2 * (size_t)n * sizeof *v);
}
void gs_clock_arrive(gs_warp *w, int id) {
    gs_block *b = w->block;
    if (!b->shadow) return;
    int n = agents(b);
    gs_clock_release(w, b->barrier_clock + (size_t)id * 2 * n, b->barrier_clock + (size_t)id * 2 * n + n);
}
void gs_clock_release(gs_warp *w, uint32_t *vc, uint32_t *pvc) {
    int n = agents(w->block);
    join(vc, w->vc, n);
    join(pvc, w->pvc, n);
    w->vc[w->agent]++;
}
void gs_clock_acquire(gs_warp *w, const uint32_t *vc, const uint32_t *pvc) {
    int n = agents(w->block);
    uint32_t own = w->vc[w->agent];
    join(w->vc, vc, n);
    join(w->pvc, pvc, n);
    w->vc[w->agent] = own;
}
void gs_proxy_fence(gs_warp *w) {
    if (!w->block->shadow) return;
    join(w->pvc, w->vc, agents(w->block));
    w->vc[w->agent]++; /* what comes after is not covered */
}
void gs_clock_tick(gs_warp *w, int agent) { w->tick[agent]++; }
void gs_clock_join_upto(gs_warp *w, int agent, uint32_t clock) {
    uint32_t *c = &w->vc[w->agent + agent];
    if (*c < clock) *c = clock;
}
void gs_clock_join_agent(gs_warp *w, int agent) { gs_clock_join_upto(w, agent, w->tick[agent]); }

/* Atomics on shared words both acquire and release. */
void gs_clock_sync_word(gs_warp *w, gs_block *owner, uint32_t addr) {
    if (!owner->shadow) return;
    int n = agents(w->block);
    struct gs_race_pools *p = owner->pools;
    gs_shadow *s = &owner->shadow[addr >> 2];
    if (s->epoch != owner->epoch) {
        memset(s, 0, sizeof *s);
        s->epoch = owner->epoch;
    }
    /* the clock lies in the pool of reader vectors, two vectors long: vc and pvc */
    if (!s->sync) {
        while (p->n_readers + 2 > p->cap_readers) {
            p->cap_readers = p->cap_readers ? 2 * p->cap_readers : 64;
            p->readers = realloc(p->readers, (size_t)p->cap_readers * (size_t)n * sizeof *p->readers);
            if (!p->readers) abort();
        }
        memset(p->readers + (size_t)p->n_readers * n, 0, 2 * (size_t)n * sizeof *p->readers);
        s->sync = p->n_readers + 1;
        p->n_readers += 2;
    }
    uint32_t *vc = p->readers + (size_t)(s->sync - 1) * n;
    gs_clock_acquire(w, vc, vc + n);
    gs_clock_release(w, vc, vc + n);
}

/* ------------------------------------------------------------------ accesses */
static const char *unfinished(int agent) {
    static const char *const kind[AGENTS] = {"shared memory race", "cp.async not waited for",
                                             "bulk copy not waited for", "wgmma not waited for"};
    return kind[agent % AGENTS];
}
static uint32_t *reader_vector(gs_block *b, gs_shadow *s) {
    struct gs_race_pools *p = b->pools;
    int n = agents(b);
    if (!s->readers) {
        if (p->n_readers == p->cap_readers) {
            p->cap_readers = p->cap_readers ? 2 * p->cap_readers : 64;
            p->readers = realloc(p->readers, (size_t)p->cap_readers * (size_t)n * sizeof *p->readers);
            if (!p->readers) abort();
        }
        s->readers = ++p->n_readers;
        memset(p->readers + (size_t)(s->readers - 1) * n, 0, (size_t)n * sizeof *p->readers);
    }
    return p->readers + (size_t)(s->readers - 1) * n;
}
/* Is what `agent` did at `clock` ordered before the present access? */
static inline bool known(const gs_warp *w, int agent, uint32_t clock) { return clock <= w->vc[agent]; }

static void against_write(gs_warp *w, gs_shadow *s, uint32_t addr, const gs_touch *t) {
    if (!s->wclk) return;
    int self = w->agent + t->agent;
    if (s->wkind && t->access == GS_ATOMIC) return;
    bool same_warp = s->wagent == w->agent;
    if (!same_warp) {
        if (known(w, s->wagent, s->wclk)) return;
        if (s->wagent == self && t->agent == AGENT_CPASYNC) return; /* a thread's own copies, in order */
        if (t->access == GS_WRITE && t->same_value && t->agent == AGENT_SELF && s->wagent % AGENTS == AGENT_SELF)
            return;
        gs_find(w, GS_FINDING, unfinished(s->wagent), t->lane, s->wpc,
                "shared address 0x%x is %s, written without an ordering between the two", addr,
                t->access == GS_READ ? "read" : "written");
        return;
    }
    /* the warp itself wrote it */
    if (t->agent != AGENT_SELF || s->wlane == t->lane || s->wsub != w->sub) return;
    if (s->wins == (uint32_t)w->ins && s->wpc == w->pc) {
        if (t->access == GS_WRITE && !t->same_value)
            gs_find(w, GS_FINDING, "shared memory race", t->lane, s->wpc,
                    "two lanes store different values to shared address 0x%x in one instruction", addr);
        return;
    }
    if (t->access == GS_WRITE && t->same_value) return;
    gs_find(w, GS_FINDING, "shared memory race", t->lane, s->wpc,
            "shared address 0x%x is %s by another lane of the warp than wrote it, without __syncwarp between", addr,
            t->access == GS_READ ? "read" : "written");
}
static void against_reads(gs_warp *w, gs_block *b, gs_shadow *s, uint32_t addr, const gs_touch *t) {
    if (!s->rclk) return;
    int bad = -1;
    if (s->readers) {
        const uint32_t *v = reader_vector(b, s);
        for (int a = 0; a < agents(b) && bad < 0; ++a)
            if (v[a] && a != w->agent && !known(w, a, v[a])) bad = a;
    } else if (s->ragent != w->agent && !known(w, s->ragent, s->rclk))
        bad = s->ragent;
    if (bad >= 0) {
        if (t->same_value && t->access == GS_WRITE) return;
        gs_find(w, GS_FINDING, unfinished(bad), t->lane, s->rpc,
                "shared address 0x%x is written while an earlier read of it is not ordered before", addr);
        return;
    }
    if (s->ragent == w->agent && t->agent == AGENT_SELF && s->rlane != t->lane && s->rsub == w->sub &&
        !(s->rpc == w->pc && t->access == GS_ATOMIC)) {
        if (t->same_value) return;
        gs_find(w, GS_FINDING, "shared memory race", t->lane, s->rpc,
                "shared address 0x%x is written by another lane of the warp than read it, without __syncwarp between",
                addr);
    }
}
static void note_read(gs_warp *w, gs_block *b, gs_shadow *s, const gs_touch *t) {
    int self = w->agent + t->agent;
    uint32_t clock = t->agent == AGENT_SELF ? w->vc[w->agent] : w->tick[t->agent];
    if (s->readers)
        reader_vector(b, s)[self] = clock;
    else if (s->rclk && s->ragent != self && !known(w, s->ragent, s->rclk)) { /* a second reader beside the first */
        uint32_t *v = reader_vector(b, s);
        v[s->ragent] = s->rclk;
        v[self] = clock;
    }
    bool several = s->rclk && s->ragent == self && s->rsub == w->sub && s->rlane != t->lane;
    s->rclk = clock;
    s->ragent = (uint16_t)self;
    s->rlane = several ? 255 : (uint8_t)t->lane;
    s->rsub = w->sub;
    s->rpc = w->pc;
}
static void note_write(gs_warp *w, gs_shadow *s, const gs_touch *t) {
    s->wagent = (uint16_t)(w->agent + t->agent);
    s->wclk = t->agent == AGENT_SELF ? w->vc[w->agent] : w->tick[t->agent];
    s->wlane = (uint8_t)t->lane;
    s->wsub = w->sub;
    s->wins = (uint32_t)w->ins;
    s->wpc = w->pc;
    s->wkind = t->access == GS_ATOMIC;
    s->rclk = 0;
    s->readers = 0;
}
/* What the generic proxy wrote is read by the asynchronous one: is a proxy fence between them? */
static void against_proxy(gs_warp *w, const gs_shadow *s, uint32_t addr, const gs_touch *t) {
    if (!s->wclk || s->wagent % AGENTS != AGENT_SELF || !known(w, s->wagent, s->wclk)) return;
    if (s->wclk <= w->pvc[s->wagent]) return;
    gs_find(w, GS_FINDING, "missing proxy fence", t->lane, s->wpc,
            "shared address 0x%x is read by %s after an ordinary write, without fence.proxy.async between", addr,
            t->agent == AGENT_WGMMA ? "wgmma" : "a bulk copy");
}
static void touch_entry(gs_warp *w, gs_block *b, gs_shadow *s, uint32_t addr, const gs_touch *t) {
    unsigned check = w->block->worker->launch->check;
    if (check & GS_CHECK_RACES) {
        against_write(w, s, addr, t);
        if (t->access != GS_READ) against_reads(w, b, s, addr, t);
    }
    if (check & GS_CHECK_PROXY && t->access == GS_READ && (t->agent == AGENT_BULK || t->agent == AGENT_WGMMA))
        against_proxy(w, s, addr, t);
    if (t->access == GS_READ)
        note_read(w, b, s, t);
    else
        note_write(w, s, t);
}
static gs_shadow *split_entries(gs_block *b, gs_shadow *s) {
    struct gs_race_pools *p = b->pools;
    if (!s->split) {
        if (p->n_split == p->cap_split) {
            p->cap_split = p->cap_split ? 2 * p->cap_split : 256;
            p->split = realloc(p->split, 4 * (size_t)p->cap_split * sizeof *p->split);
            if (!p->split) abort();
        }
        s->split = ++p->n_split;
        for (int k = 0; k < 4; ++k) {
            gs_shadow *e = &p->split[4 * (s->split - 1) + (uint32_t)k];
            *e = *s;
            e->split = 0;
            if (k) e->readers = 0; /* reader vectors are not shared: the byte keeps the last reader */
        }
    }
    return &p->split[4 * (s->split - 1)];
}

void gs_race_touch(gs_warp *w, gs_block *b, uint32_t addr, uint32_t n, gs_touch t) {
    if (!b->shadow) return;
    unsigned check = w->block->worker->launch->check;
    for (uint32_t at = addr & ~3u; at < addr + n; at += 4) {
        gs_shadow *s = &b->shadow[at >> 2];
        if (s->epoch != b->epoch) {
            memset(s, 0, sizeof *s);
            s->epoch = b->epoch;
        }
        uint32_t from = addr > at ? addr - at : 0, to = addr + n < at + 4 ? addr + n - at : 4;
        uint8_t bytes = (uint8_t)(((1u << to) - 1) & ~((1u << from) - 1));
        if (t.access == GS_READ || t.access == GS_ATOMIC) {
            if (check & GS_CHECK_UNINIT && (s->init & bytes) != bytes) {
                gs_find(w, GS_FINDING, "uninitialised shared memory", t.lane, -1,
                        "shared address 0x%x is read before anything was written there", at + from);
                s->init |= bytes; /* once is enough */
            }
        }
        if (t.access != GS_READ) s->init |= bytes;
        if (bytes == 15 && !s->split)
            touch_entry(w, b, s, at, &t);
        else
            for (uint32_t k = from; k < to; ++k) {
                split_entries(b, s);
                touch_entry(w, b, &b->pools->split[4 * (s->split - 1) + k], at + k, &t);
            }
    }
}
