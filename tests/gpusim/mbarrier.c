/* SPDX-License-Identifier: Apache-2.0 */
/* mbarrier objects (PTX ISA, parallel synchronization): counts in shared memory, clocks beside it. */
#include <stdlib.h>

#include "core.h"
#include "mbarrier.h"

typedef struct words { /* our layout of the opaque 64 bits */
    uint16_t expected, pending;
    int32_t tx_phase; /* 2 * outstanding bytes + phase */
} words;
_Static_assert(sizeof(words) == 8, "an mbarrier has 64 bits");

typedef struct mbarrier {
    uint32_t addr;
    bool live;
    int pc;          /* of its init */
    uint32_t *clock; /* [4][n_agent]: arrivals of this phase (vc, pvc), of the last one */
} mbarrier;
typedef struct later { /* cp.async.mbarrier.arrive */
    uint32_t addr, serial;
    gs_warp *warp;
    int lane;
} later;
struct gs_mbarriers {
    mbarrier *at;
    int n, cap;
    later *later;
    int n_later, cap_later;
};

void gs_async_block_start(gs_block *b) {
    if (!b->mbarriers && !(b->mbarriers = calloc(1, sizeof *b->mbarriers))) abort();
    struct gs_mbarriers *m = b->mbarriers;
    for (int k = 0; k < m->n; ++k) m->at[k].live = false;
    m->n_later = 0;
}
void gs_async_block_free(gs_block *b) {
    if (!b->mbarriers) return;
    for (int k = 0; k < b->mbarriers->n; ++k) free(b->mbarriers->at[k].clock);
    free(b->mbarriers->at);
    free(b->mbarriers->later);
    free(b->mbarriers);
}

/* ------------------------------------------------------------------ finding one */
static mbarrier *entry(gs_block *b, uint32_t inside) {
    for (int k = 0; k < b->mbarriers->n; ++k)
        if (b->mbarriers->at[k].addr == inside) return &b->mbarriers->at[k];
    return NULL;
}
/* The live mbarrier at an address, as lane `lane` of w uses it; stops the launch when there is none. */
static mbarrier *live(gs_warp *w, uint32_t addr, int lane, gs_block **owner, words **at) {
    uint32_t inside;
    gs_block *b = gs_shared_owner(w, addr, &inside, lane);
    if (!b) gs_stop(w, GS_FAULT_ADDRESS, "mbarrier", lane, "no shared memory at 0x%x", addr);
    mbarrier *m = entry(b, inside);
    if (!m || !m->live)
        gs_stop(w, GS_FAULT_ILLEGAL, "mbarrier", lane, "there is no initialised mbarrier at shared address 0x%x",
                inside);
    *owner = b;
    *at = (words *)(void *)(b->shared + inside);
    return m;
}
static void touch(gs_warp *w, gs_block *b, uint32_t inside, int lane, gs_access access) {
    gs_race_touch(w, b, inside, 8, (gs_touch){AGENT_SELF, lane, access, false});
}
static void settle(gs_block *b, mbarrier *m, words *x) {
    if (x->pending || x->tx_phase >> 1) return;
    x->tx_phase ^= 1;
    x->pending = x->expected;
    size_t n = 2 * (size_t)b->cluster->n_agent;
    memcpy(m->clock + n, m->clock, n * sizeof *m->clock);
    memset(m->clock, 0, n * sizeof *m->clock);
    b->worker->progress++;
}

void gs_mbarrier_init(gs_warp *w, uint32_t addr, uint32_t count, int lane) {
    if (addr >> 24) gs_stop(w, GS_FAULT_ILLEGAL, "mbarrier", lane, "init of another block's mbarrier");
    if (!count || count > 65535)
        gs_stop(w, GS_FAULT_ILLEGAL, "mbarrier", lane, "init with a count of %u (1 to 65535)", count);
    uint8_t *p = gs_address(w, SP_SHARED, addr, 8, lane, GS_WRITE);
    if (!p) return;
    gs_block *b = w->block;
    mbarrier *m = entry(b, addr);
    if (m && m->live)
        gs_find(w, GS_FINDING, "mbarrier", lane, m->pc, "init of the mbarrier at shared address 0x%x, which is in use",
                addr);
    if (!m) {
        struct gs_mbarriers *all = b->mbarriers;
        all->at = gs_grow(all->at, all->n, &all->cap, sizeof *all->at);
        m = &all->at[all->n++];
        m->addr = addr;
        m->clock = malloc(4 * (size_t)b->cluster->n_agent * sizeof *m->clock);
        if (!m->clock) abort();
    }
    m->live = true;
    m->pc = w->pc;
    memset(m->clock, 0, 4 * (size_t)b->cluster->n_agent * sizeof *m->clock);
    words x = {(uint16_t)count, (uint16_t)count, 0};
    memcpy(p, &x, 8);
}
bool gs_mbarrier_is_live(gs_block *b, uint32_t inside) {
    const mbarrier *m = entry(b, inside);
    return m && m->live;
}
void gs_mbarrier_inval(gs_warp *w, uint32_t addr, int lane) {
    gs_block *b;
    words *x;
    mbarrier *m = live(w, addr, lane, &b, &x);
    touch(w, b, m->addr, lane, GS_WRITE);
    m->live = false;
}

/* ------------------------------------------------------------------ arrivals and bytes */
void gs_mbarrier_tx(gs_warp *w, uint32_t addr, int64_t bytes, int lane) {
    gs_block *b;
    words *x;
    mbarrier *m = live(w, addr, lane, &b, &x);
    touch(w, b, m->addr, lane, GS_ATOMIC);
    int64_t tx = (x->tx_phase >> 1) + bytes;
    if (tx > (1 << 20) - 1 || tx < -((1 << 20) - 1))
        gs_stop(w, GS_FAULT_ILLEGAL, "mbarrier", lane, "%lld outstanding bytes, at most 2^20 - 1", (long long)tx);
    x->tx_phase = (int32_t)(2 * tx + (x->tx_phase & 1));
    w->block->worker->progress++;
    if (bytes < 0) settle(b, m, x);
}
uint64_t gs_mbarrier_arrive(gs_warp *w, uint32_t addr, uint32_t count, bool drop, bool no_complete, int lane) {
    gs_block *b;
    words *x;
    mbarrier *m = live(w, addr, lane, &b, &x);
    touch(w, b, m->addr, lane, GS_ATOMIC);
    uint64_t state = (uint64_t)(x->tx_phase & 1) << 63 | x->pending;
    if (x->pending < count)
        gs_stop(w, GS_FAULT_ILLEGAL, "mbarrier", lane,
                "the mbarrier at shared address 0x%x gets more arrivals than it expects (%u)", m->addr, x->expected);
    if (w->block->shadow) {
        size_t n = (size_t)b->cluster->n_agent;
        gs_clock_release(w, m->clock, m->clock + n);
    }
    x->pending = (uint16_t)(x->pending - count);
    if (drop) x->expected = (uint16_t)(x->expected - count);
    if (no_complete && !x->pending && !(x->tx_phase >> 1))
        gs_find(w, GS_FINDING, "mbarrier", lane, -1, "arrive.noComplete completes the phase");
    w->block->worker->progress++;
    settle(b, m, x);
    return state;
}
void gs_mbarrier_complete_tx(gs_block *b, uint32_t inside, uint32_t bytes, gs_warp *issuer) {
    mbarrier *m = entry(b, inside & 0xffffff);
    if (!m || !m->live)
        gs_stop(issuer, GS_FAULT_ILLEGAL, "mbarrier", 0,
                "a copy completes on shared address 0x%x, where no initialised mbarrier is", inside);
    words *x = (words *)(void *)(b->shared + m->addr);
    int64_t tx = (x->tx_phase >> 1) - (int64_t)bytes;
    if (tx < -((1 << 20) - 1))
        gs_stop(issuer, GS_FAULT_ILLEGAL, "mbarrier", 0, "%lld outstanding bytes", (long long)tx);
    if (issuer->block->shadow) { /* who waits learns what the copy wrote */
        uint32_t *c = &m->clock[issuer->agent + AGENT_BULK], now = issuer->tick[AGENT_BULK];
        if (*c < now) *c = now;
    }
    x->tx_phase = (int32_t)(2 * tx + (x->tx_phase & 1));
    b->worker->progress++;
    settle(b, m, x);
}

/* ------------------------------------------------------------------ waits */
static void land_later(gs_block *b, uint32_t inside) {
    struct gs_mbarriers *all = b->mbarriers;
    int kept = 0, n = all->n_later;
    for (int k = 0; k < n; ++k) {
        later e = all->later[k];
        if (e.addr != inside) {
            all->later[kept++] = e;
            continue;
        }
        gs_warp *w = e.warp;
        int left = 0;
        gs_clock_join_agent(w, AGENT_CPASYNC);
        for (int q = 0; q < w->n_copy; ++q) {
            gs_copy *c = &w->copy[q];
            if (c->lane == e.lane && c->serial <= e.serial)
                gs_copy_land(w, c);
            else
                w->copy[left++] = *c;
        }
        w->n_copy = left;
        if (left) {
            gs_clock_tick(w, AGENT_CPASYNC);
            for (int q = 0; q < left; ++q) gs_copy_mark(w, &w->copy[q]);
        }
        gs_mbarrier_arrive(w, inside | (b == w->block ? 0 : (b->rank + 1) << 24), 1, false, false, e.lane);
    }
    all->n_later = kept;
}
bool gs_mbarrier_test(gs_warp *w, uint32_t addr, uint32_t parity, int lane) {
    gs_block *b;
    words *x;
    mbarrier *m = live(w, addr, lane, &b, &x);
    touch(w, b, m->addr, lane, GS_ATOMIC);
    land_later(b, m->addr);
    gs_bulk_settle(b, m->addr);
    if ((uint32_t)(x->tx_phase & 1) == parity) return false;
    if (w->block->shadow) {
        size_t n = (size_t)b->cluster->n_agent;
        gs_clock_acquire(w, m->clock + 2 * n, m->clock + 3 * n);
    }
    w->sub++; /* lanes that arrived before are ordered before those that wait */
    return true;
}
void gs_mbarrier_arrive_later(gs_warp *w, uint32_t addr, int lane, bool noinc) {
    gs_block *b;
    words *x;
    mbarrier *m = live(w, addr, lane, &b, &x);
    touch(w, b, m->addr, lane, GS_ATOMIC);
    if (!noinc) {
        if (x->pending == 65535) gs_stop(w, GS_FAULT_ILLEGAL, "mbarrier", lane, "too many pending arrivals");
        x->pending++;
    }
    struct gs_mbarriers *all = b->mbarriers;
    all->later = gs_grow(all->later, all->n_later, &all->cap_later, sizeof *all->later);
    all->later[all->n_later++] = (later){m->addr, w->copy_serial, w, lane};
}

/* ------------------------------------------------------------------ cp.async */
uint8_t *gs_shared_lane(gs_warp *w, uint32_t addr, uint32_t n, int agent, int lane, gs_access access) {
    uint32_t inside;
    gs_block *b = gs_shared_owner(w, addr, &inside, lane);
    if (!b) return NULL;
    if (inside < GS_SHARED_BASE || (uint64_t)inside + n > b->shared_end) {
        gs_find(w, GS_FAULT_ADDRESS, "out of bounds", lane, -1,
                "%s of %u bytes at shared address 0x%x; the block has 0x%x to 0x%x",
                access == GS_READ ? "read" : "write", n, inside, GS_SHARED_BASE, b->shared_end);
        return NULL;
    }
    gs_race_touch(w, b, inside, n, (gs_touch){agent, lane, access, false});
    return b->shared + inside;
}
void gs_copy_land(gs_warp *w, const gs_copy *c) {
    gs_block *b = w->block;
    uint32_t inside = c->dst & 0xffffff;
    uint8_t *p = b->shared + inside;
    memcpy(p, (const void *)(uintptr_t)c->src, c->src_bytes);
    memset(p + c->src_bytes, 0, (size_t)c->bytes - c->src_bytes);
    int pc = w->pc;
    w->pc = c->pc; /* from now on it is a write of its own lane, made where the copy stands */
    gs_race_touch(w, b, inside, c->bytes, (gs_touch){AGENT_SELF, c->lane, GS_WRITE, false});
    w->pc = pc;
    b->worker->progress++;
}
void gs_copy_mark(gs_warp *w, const gs_copy *c) {
    gs_block *b = w->block;
    if (!b->shadow) return;
    for (uint32_t a = c->dst & 0xffffff, end = a + c->bytes; a < end; a += 4) {
        gs_shadow *s = &b->shadow[a >> 2];
        if (s->epoch == b->epoch && s->wagent == w->agent + AGENT_CPASYNC) s->wclk = w->tick[AGENT_CPASYNC];
    }
}
void gs_cpasync_exit(gs_warp *w) {
    if (!w->n_copy) return;
    w->pc = w->copy[0].pc;
    gs_find(w, GS_FINDING, "cp.async not waited for", w->copy[0].lane, -1, "the warp ends with %d copies under way",
            w->n_copy);
    w->n_copy = 0;
}
