/* SPDX-License-Identifier: Apache-2.0 */
/* Device memory: a sorted table of allocations, kept for a while after they are freed; and the translation of an address of a
 * lane to host memory, which is where bounds and alignment are checked. */
#include <stdlib.h>

#include "core.h"

typedef enum { LIVE, FREED, HOST } range_state;
typedef struct range {
    uint64_t start, end;
    range_state state;
    int number; /* counts allocations, for messages */
} range;

static pthread_rwlock_t g_lock = PTHREAD_RWLOCK_INITIALIZER;
static range *g_range;
static int g_n, g_cap, g_number;
static size_t g_in_use, g_kept;
enum { KEEP_BYTES = 512 << 20 };

/* The first range that ends after addr. */
static int find(uint64_t addr) {
    int lo = 0, hi = g_n;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (g_range[mid].end <= addr)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}
static void insert(uint64_t start, uint64_t end, range_state state) {
    g_range = gs_grow(g_range, g_n, &g_cap, sizeof *g_range);
    int at = find(start);
    memmove(&g_range[at + 1], &g_range[at], (size_t)(g_n - at) * sizeof *g_range);
    g_range[at] = (range){start, end, state, state == LIVE ? ++g_number : 0};
    g_n++;
}
static void drop(int at) {
    memmove(&g_range[at], &g_range[at + 1], (size_t)(g_n - at - 1) * sizeof *g_range);
    g_n--;
}
void *gs_mem_alloc(size_t bytes) {
    if (bytes > (size_t)1 << 44) return NULL;
    size_t n = bytes ? bytes : 1;
    void *p = aligned_alloc(256, ((n + 255) & ~(size_t)255) + 256); /* the last 256 bytes keep neighbours apart */
    if (!p) return NULL;
    memset(p, 0xA5, n < (256u << 20) ? n : 256u << 20);
    pthread_rwlock_wrlock(&g_lock);
    insert((uint64_t)(uintptr_t)p, (uint64_t)(uintptr_t)p + n, LIVE);
    g_in_use += n;
    pthread_rwlock_unlock(&g_lock);
    return p;
}
bool gs_mem_free(void *p) {
    uint64_t a = (uint64_t)(uintptr_t)p;
    pthread_rwlock_wrlock(&g_lock);
    int at = find(a);
    range_state state = HOST;
    bool start = at < g_n && g_range[at].start == a;
    if (at < g_n && g_range[at].start <= a) state = g_range[at].state;
    if (!start || state != LIVE) {
        pthread_rwlock_unlock(&g_lock);
        gs_find_host("device memory", "free of %p: %s", p,
                     start && state == FREED ? "it was freed before" : "it is not the start of an allocation");
        return false;
    }
    size_t n = g_range[at].end - a;
    g_range[at].state = FREED;
    g_in_use -= n;
    g_kept += n;
    memset(p, 0xDF, n < (16u << 20) ? n : 16u << 20);
    /* the oldest ones go when too much is kept */
    while (g_kept > KEEP_BYTES) {
        int oldest = -1;
        for (int k = 0; k < g_n; ++k)
            if (g_range[k].state == FREED && (oldest < 0 || g_range[k].number < g_range[oldest].number)) oldest = k;
        if (oldest < 0) break;
        g_kept -= g_range[oldest].end - g_range[oldest].start;
        free((void *)(uintptr_t)g_range[oldest].start);
        drop(oldest);
    }
    pthread_rwlock_unlock(&g_lock);
    return true;
}
bool gs_mem_register(void *p, size_t bytes) {
    pthread_rwlock_wrlock(&g_lock);
    uint64_t a = (uint64_t)(uintptr_t)p;
    int at = find(a);
    bool ok = bytes && !(at < g_n && g_range[at].start < a + bytes);
    if (ok) insert(a, a + bytes, HOST);
    pthread_rwlock_unlock(&g_lock);
    return ok;
}
void gs_mem_unregister(void *p) {
    pthread_rwlock_wrlock(&g_lock);
    int at = find((uint64_t)(uintptr_t)p);
    if (at < g_n && g_range[at].start == (uint64_t)(uintptr_t)p && g_range[at].state == HOST) drop(at);
    pthread_rwlock_unlock(&g_lock);
}
bool gs_mem_find(const void *p, size_t n, void **start, size_t *bytes) {
    uint64_t a = (uint64_t)(uintptr_t)p;
    pthread_rwlock_rdlock(&g_lock);
    int at = find(a);
    bool ok = at < g_n && g_range[at].start <= a && a + n <= g_range[at].end && g_range[at].state == LIVE;
    if (ok && start) *start = (void *)(uintptr_t)g_range[at].start;
    if (ok && bytes) *bytes = g_range[at].end - g_range[at].start;
    pthread_rwlock_unlock(&g_lock);
    return ok;
}
bool gs_mem_is_freed(const void *p) {
    uint64_t a = (uint64_t)(uintptr_t)p;
    pthread_rwlock_rdlock(&g_lock);
    int at = find(a);
    bool freed = at < g_n && g_range[at].start <= a && g_range[at].state == FREED;
    pthread_rwlock_unlock(&g_lock);
    return freed;
}
size_t gs_mem_in_use(void) { return g_in_use; }
int gs_mem_report_leaks(void) {
    int n = 0;
    for (int k = 0; k < g_n; ++k)
        if (g_range[k].state == LIVE) {
            n++;
            gs_find_host("device memory leak", "allocation %d of %llu bytes was never freed", g_range[k].number,
                         (unsigned long long)(g_range[k].end - g_range[k].start));
        }
    return n;
}

bool gs_mem_check(gs_worker *wk, uint64_t addr, uint64_t n) {
    if (addr >= wk->range_start && addr + n <= wk->range_end && addr + n > addr) return true;
    pthread_rwlock_rdlock(&g_lock);
    int at = find(addr);
    bool ok = at < g_n && g_range[at].start <= addr && addr + n <= g_range[at].end && addr + n >= addr &&
              g_range[at].state != FREED;
    if (ok) {
        wk->range_start = g_range[at].start;
        wk->range_end = g_range[at].end;
    }
    pthread_rwlock_unlock(&g_lock);
    return ok;
}
void gs_mem_explain(uint64_t addr, uint64_t n, char *text, size_t size) {
    pthread_rwlock_rdlock(&g_lock);
    int at = find(addr);
    if (at < g_n && g_range[at].start <= addr) {
        range r = g_range[at];
        if (r.state == FREED)
            snprintf(text, size, "inside allocation %d (%llu bytes), which was freed", r.number,
                     (unsigned long long)(r.end - r.start));
        else
            snprintf(text, size, "%llu bytes of it past the end of allocation %d (%llu bytes)",
                     (unsigned long long)(addr + n - r.end), r.number, (unsigned long long)(r.end - r.start));
    } else if (at > 0 && addr - g_range[at - 1].end < 4096)
        snprintf(text, size, "%llu bytes past the end of %s %d (%llu bytes)",
                 (unsigned long long)(addr - g_range[at - 1].end),
                 g_range[at - 1].state == FREED ? "freed allocation" : "allocation", g_range[at - 1].number,
                 (unsigned long long)(g_range[at - 1].end - g_range[at - 1].start));
    else if (at < g_n && g_range[at].start - addr < 4096)
        snprintf(text, size, "%llu bytes before allocation %d", (unsigned long long)(g_range[at].start - addr),
                 g_range[at].number);
    else
        snprintf(text, size, "near no allocation");
    pthread_rwlock_unlock(&g_lock);
}

/* ------------------------------------------------------------------ addresses of lanes */
static bool out_of_shared(const gs_block *b, uint32_t a, uint64_t n) {
    if (a < GS_SHARED_BASE || a + n > b->shared_end) return true;
    uint64_t end = GS_SHARED_BASE + b->kernel->info.static_shared_bytes; /* the gap between static and dynamic */
    return a + n > end && a < b->dynamic_base;
}
gs_block *gs_shared_owner(gs_warp *w, uint32_t addr, uint32_t *inside, int lane) {
    uint32_t rank = addr >> 24;
    *inside = addr & 0xffffff;
    if (!rank) return w->block;
    gs_cluster *c = w->block->cluster;
    if (rank > (uint32_t)c->n_block) {
        gs_find(w, GS_FAULT_ADDRESS, "out of bounds", lane, -1, "shared address 0x%x names block %u of a cluster of %d",
                addr, rank - 1, c->n_block);
        return NULL;
    }
    gs_block *b = &c->block[rank - 1];
    if (b->finished) {
        gs_find(w, GS_FAULT_ADDRESS, "distributed shared memory", lane, -1,
                "block %u of the cluster has exited, its shared memory is gone", rank - 1);
        return NULL;
    }
    return b;
}
static uint8_t *shared_at(gs_warp *w, uint32_t addr, uint32_t n, gs_touch t, const void *value) {
    uint32_t a;
    gs_block *b = gs_shared_owner(w, addr, &a, t.lane);
    if (!b) return NULL;
    if (out_of_shared(b, a, n)) {
        gs_find(w, GS_FAULT_ADDRESS, "out of bounds", t.lane, -1,
                "%s of %u bytes at shared address 0x%x; the block has 0x%x to 0x%x",
                t.access == GS_READ ? "read" : "write", n, a, GS_SHARED_BASE, b->shared_end);
        return NULL;
    }
    if (value && b->shadow) t.same_value = !memcmp(b->shared + a, value, n);
    gs_race_touch(w, b, a, n, t);
    return b->shared + a;
}
static uint8_t *resolve(gs_warp *w, gs_space space, uint64_t a, uint32_t n, int lane, gs_access access,
                        const void *value) {
    gs_block *b = w->block;
    if (space == SP_GENERIC) {
        uint64_t window = a & GS_WINDOW_MASK;
        space = window == GS_SHARED_WINDOW ? SP_SHARED : window == GS_LOCAL_WINDOW ? SP_LOCAL : SP_GLOBAL;
        if (space != SP_GLOBAL) a &= ~GS_WINDOW_MASK;
    }
    if (a & (n - 1)) {
        gs_find(w, GS_FAULT_MISALIGNED, "misaligned", lane, -1, "%s of %u bytes at address 0x%llx",
                access == GS_READ ? "read" : "write", n, (unsigned long long)a);
        return NULL;
    }
    if (access != GS_READ) b->worker->progress++;
    switch (space) {
    case SP_SHARED: return shared_at(w, (uint32_t)a, n, (gs_touch){AGENT_SELF, lane, access, false}, value);
    case SP_LOCAL:
        if (a + n > b->kernel->local_bytes) {
            gs_find(w, GS_FAULT_ADDRESS, "out of bounds", lane, -1, "local address 0x%llx of %u bytes",
                    (unsigned long long)a, b->kernel->local_bytes);
            return NULL;
        }
        return w->local + (size_t)lane * b->kernel->local_bytes + a;
    case SP_PARAM: return b->worker->launch->param + a;
    default:
        if ((b->worker->launch->check & GS_CHECK_BOUNDS) && !gs_mem_check(b->worker, a, n)) {
            char text[200];
            gs_mem_explain(a, n, text, sizeof text);
            bool freed = strstr(text, "which was freed");
            gs_find(w, GS_FAULT_ADDRESS, freed ? "use after free" : "out of bounds", lane, -1,
                    "%s of %u bytes at 0x%llx: %s", access == GS_READ ? "read" : "write", n, (unsigned long long)a,
                    text);
            return NULL;
        }
        return (uint8_t *)(uintptr_t)a;
    }
}
uint8_t *gs_address(gs_warp *w, gs_space space, uint64_t addr, uint32_t n, int lane, gs_access access) {
    return resolve(w, space, addr, n, lane, access, NULL);
}
uint8_t *gs_address_store(gs_warp *w, gs_space space, uint64_t addr, uint32_t n, int lane, const void *value) {
    return resolve(w, space, addr, n, lane, GS_WRITE, value);
}
uint8_t *gs_shared_span(gs_warp *w, uint32_t addr, uint32_t n, int agent, gs_access access) {
    if (access != GS_READ) w->block->worker->progress++;
    return shared_at(w, addr, n, (gs_touch){agent, 0, access, false}, NULL);
}
uint8_t *gs_global_span(gs_warp *w, uint64_t a, uint64_t n, int lane, gs_access access) {
    if (!n || gs_mem_check(w->block->worker, a, n)) return (uint8_t *)(uintptr_t)a;
    char text[200];
    gs_mem_explain(a, n, text, sizeof text);
    gs_find(w, GS_FAULT_ADDRESS, strstr(text, "which was freed") ? "use after free" : "out of bounds", lane, -1,
            "%s of %llu bytes at 0x%llx: %s", access == GS_READ ? "read" : "write", (unsigned long long)n,
            (unsigned long long)a, text);
    return NULL;
}
void gs_lane_addresses(const gs_warp *w, const gs_ins *i, int k, uint64_t addr[32]) {
    const gs_opnd *o = &i->op[k];
    if (o->size == 4) {
        const uint32_t *p = (const uint32_t *)OPND(k);
        for (int l = 0; l < 32; ++l) addr[l] = (uint32_t)(p[l] + (uint32_t)o->imm);
    } else {
        const uint64_t *p = (const uint64_t *)OPND(k);
        for (int l = 0; l < 32; ++l) addr[l] = p[l] + (uint64_t)o->imm;
    }
}
