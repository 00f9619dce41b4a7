/* SPDX-License-Identifier: Apache-2.0 */
/* Bulk and tensor copies at run time (PTX ISA 9.7.9.25).
 *
 * Bytes land as late as the program allows. A copy that an mbarrier completes lands when somebody waits on that mbarrier
 * (gs_bulk_settle); until then its destination is filled with 0xCB. A store reads shared memory at its wait_group or
 * wait_group.read, and reaches global memory at its wait_group, or when the warp ends. For the race checks the bytes of a
 * copy belong to the warp's agent AGENT_BULK at the clock of the copy, which others learn from the mbarrier or the wait.
 *
 * Tensor boxes lie in shared memory row after row, innermost dimension first, and the swizzle permutes 16-byte pieces by
 * the bits of their shared address. A box whose rows are narrower than the swizzle is refused: how it is padded is not
 * documented. Elements outside the tensor are read as zero or NaN and not written. */
#include "bulk.h"

#include <stdlib.h>

#include "core.h"
#include "lanes.h"
#include "mbarrier.h"
#include "tmap.h"

enum { POISON = 0xCB, MAX_ROW = 2048 };

typedef struct bulk_copy {
    const bulk_plan *plan;
    int lane, pc;
    uint32_t clock;    /* of AGENT_BULK when it was issued */
    uint32_t group;    /* stores: 0 not committed yet, else the number of the group in its lane */
    uint32_t bytes;    /* in shared memory */
    uint32_t shared;   /* address inside its block: destination of loads, source of stores */
    gs_block *block;   /* that block */
    uint8_t *at;       /* the bytes there; NULL: a bad address, nothing is moved */
    uint8_t *other;    /* the other side of linear copies; NULL as above */
    uint32_t mbarrier; /* address inside its block */
    gs_block *bar_block;
    gs_tmap map; /* of tensor copies */
    int32_t coord[GS_TMAP_RANK];
    uint8_t *data; /* stores: what was read from shared memory, once it was */
} bulk_copy;

struct gs_bulk_group { /* gs_warp.bulk */
    bulk_copy *load, *store;
    int n_load, cap_load, n_store, cap_store;
    uint32_t committed[32]; /* groups of each lane */
};

/* ------------------------------------------------------------------ boxes */
typedef struct box_row { /* one row of a box: `elements` next to each other in shared memory */
    uint32_t offset;     /* in the box, bytes */
    uint32_t from, to;   /* elements inside the tensor; none when from == to */
    uint64_t global;     /* address of element `from` */
} box_row;

static uint32_t box_rows(const gs_tmap *t) {
    uint32_t n = 1;
    for (int k = 1; k < t->rank; ++k) n *= t->box[k];
    return n;
}

static box_row row_of_box(const gs_tmap *t, const int32_t *coord, uint32_t r) {
    box_row row = {.offset = r * t->box[0] * t->elem_bytes, .global = t->base};
    bool inside = true;
    for (int k = 1; k < t->rank; ++k) {
        int64_t at = coord[k] + (int64_t)(r % t->box[k]) * t->step[k];
        r /= t->box[k];
        inside = inside && at >= 0 && at <= (int64_t)t->last[k];
        row.global += (uint64_t)at * t->stride[k];
    }
    int64_t from = coord[0] < 0 ? -(int64_t)coord[0] : 0, to = (int64_t)t->last[0] + 1 - coord[0];
    if (to > t->box[0]) to = t->box[0];
    if (!inside || from >= to) return row;
    row.from = (uint32_t)from;
    row.to = (uint32_t)to;
    row.global += (uint64_t)(coord[0] + from) * t->elem_bytes;
    return row;
}

/* One row between shared memory and a buffer, in pieces of 16 bytes. */
static void row_to_shared(const bulk_copy *c, uint32_t offset, const uint8_t *row, uint32_t n) {
    for (uint32_t k = 0; k < n; k += 16)
        memcpy(c->block->shared + gs_swizzle(c->shared + offset + k, c->map.swizzle), row + k, 16);
}
static void row_from_shared(const bulk_copy *c, uint32_t offset, uint8_t *row, uint32_t n) {
    for (uint32_t k = 0; k < n; k += 16)
        memcpy(row + k, c->block->shared + gs_swizzle(c->shared + offset + k, c->map.swizzle), 16);
}

/* What elements outside the tensor read as. The NaN is not documented bit by bit. */
static void fill_outside(const gs_tmap *t, uint8_t *row, uint32_t n) {
    memset(row, 0, n);
    if (!t->fill_nan) return;
    memset(row, 0xff, n);
    for (uint32_t k = t->elem_bytes - 1u; k < n; k += t->elem_bytes) row[k] = 0x7f;
}

/* ------------------------------------------------------------------ reductions */
#define INT_CASES(T, a, b)                                                                                             \
    switch (op) {                                                                                                      \
    case BULK_ADD: r = (T)(a + b); break;                                                                              \
    case BULK_MIN: r = b < a ? b : a; break;                                                                           \
    case BULK_MAX: r = b > a ? b : a; break;                                                                           \
    case BULK_INC: r = a >= b ? 0 : (T)(a + 1); break;                                                                 \
    case BULK_DEC: r = a == 0 || a > b ? b : (T)(a - 1); break;                                                        \
    case BULK_AND: r = a & b; break;                                                                                   \
    case BULK_OR: r = a | b; break;                                                                                    \
    default: r = a ^ b; break;                                                                                         \
    }

static uint32_t reduce_u32(bulk_op op, uint32_t a, uint32_t b) {
    uint32_t r;
    INT_CASES(uint32_t, a, b)
    return r;
}
static uint64_t reduce_u64(bulk_op op, uint64_t a, uint64_t b) {
    uint64_t r;
    INT_CASES(uint64_t, a, b)
    return r;
}
/* min and max of floats: a NaN loses; -0 is less than +0. */
static float pick_float(bulk_op op, float a, float b) {
    if (a != a) return b;
    if (b != b) return a;
    if (a == b) return (signbit(a) != 0) == (op == BULK_MIN) ? a : b;
    return (b < a) == (op == BULK_MIN) ? b : a;
}
static uint16_t reduce_half(bulk_op op, gs_type type, uint16_t a, uint16_t b) {
    bool bf = type == T_BF16;
    float x = bf ? gs_b2f(a) : gs_h2f(a), y = bf ? gs_b2f(b) : gs_h2f(b);
    if (op == BULK_ADD) return bf ? gs_d2b((double)x + (double)y) : gs_d2h((double)x + (double)y);
    float r = pick_float(op, x, y);
    return bf ? gs_f2b(r) : gs_f2h(r);
}

/* *p = op(*p, *v), one element, atomically. Signed minima are those of unsigned numbers with the sign bit turned over. */
static void reduce_element(bulk_op op, gs_type type, uint8_t *p, const uint8_t *v) {
    size_t n = gs_type_bytes[type];
    bool sign = (type == T_S32 || type == T_S64) && (op == BULK_MIN || op == BULK_MAX);
    if (n == 2) {
        uint16_t old = __atomic_load_n((uint16_t *)p, __ATOMIC_RELAXED), b, r;
        memcpy(&b, v, 2);
        do r = reduce_half(op, type, old, b);
        while (!__atomic_compare_exchange_n((uint16_t *)p, &old, r, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    } else if (n == 4) {
        uint32_t old = __atomic_load_n((uint32_t *)p, __ATOMIC_RELAXED), b, r, flip = sign ? 1u << 31 : 0;
        memcpy(&b, v, 4);
        do r = type == T_F32 ? gs_bits(gs_float(old) + gs_float(b)) : reduce_u32(op, old ^ flip, b ^ flip) ^ flip;
        while (!__atomic_compare_exchange_n((uint32_t *)p, &old, r, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    } else {
        uint64_t old = __atomic_load_n((uint64_t *)p, __ATOMIC_RELAXED), b, r, flip = sign ? 1ull << 63 : 0;
        memcpy(&b, v, 8);
        do {
            if (type == T_F64) {
                double x, y;
                memcpy(&x, &old, 8);
                memcpy(&y, &b, 8);
                x += y;
                memcpy(&r, &x, 8);
            } else {
                r = reduce_u64(op, old ^ flip, b ^ flip) ^ flip;
            }
        } while (!__atomic_compare_exchange_n((uint64_t *)p, &old, r, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    }
}
static void combine(bulk_op op, gs_type type, uint8_t *to, const uint8_t *from, size_t n) {
    if (op == BULK_COPY) {
        memcpy(to, from, n);
        return;
    }
    for (size_t k = 0; k < n; k += gs_type_bytes[type]) reduce_element(op, type, to + k, from + k);
}
/* The type of the reduction that a tensor map stands for; T_NONE: there is none. */
static gs_type reduction_type(const gs_tmap *t, bulk_op op) {
    static const gs_type of[GS_TMAP_TYPES] = {
        [GS_TMAP_U32] = T_U32, [GS_TMAP_S32] = T_S32, [GS_TMAP_U64] = T_U64, [GS_TMAP_S64] = T_S64,
        [GS_TMAP_F16] = T_F16, [GS_TMAP_F32] = T_F32, [GS_TMAP_F64] = T_F64, [GS_TMAP_BF16] = T_BF16};
    gs_type r = of[t->type];
    bool integer = r == T_U32 || r == T_S32 || r == T_U64 || r == T_S64, half = r == T_F16 || r == T_BF16;
    if (op == BULK_ADD) return r == T_S64 ? T_U64 : r;
    if (op == BULK_MIN || op == BULK_MAX) return integer || half ? r : T_NONE;
    if (op == BULK_INC || op == BULK_DEC) return r == T_U32 ? r : T_NONE;
    return integer ? r : T_NONE;
}

/* ------------------------------------------------------------------ moving the bytes */
static void land_load(const bulk_copy *c) {
    const bulk_plan *p = c->plan;
    if (!c->at || (!p->rank && !c->other)) return;
    if (!p->rank) {
        combine((bulk_op)p->op, (gs_type)p->type, c->at, c->other, c->bytes);
        return;
    }
    uint8_t row[MAX_ROW];
    uint32_t n = c->map.box[0] * c->map.elem_bytes;
    for (uint32_t r = 0; r < box_rows(&c->map); ++r) {
        box_row b = row_of_box(&c->map, c->coord, r);
        fill_outside(&c->map, row, n);
        if (b.from < b.to)
            memcpy(row + b.from * c->map.elem_bytes, (const void *)(uintptr_t)b.global,
                   (b.to - b.from) * (size_t)c->map.elem_bytes);
        row_to_shared(c, b.offset, row, n);
    }
}

static void read_source(bulk_copy *c) {
    if (c->data || !c->at) return;
    c->data = malloc(c->bytes + 16);
    if (!c->data) abort();
    if (!c->plan->rank) {
        memcpy(c->data, c->at, c->bytes);
        return;
    }
    uint32_t n = c->map.box[0] * c->map.elem_bytes;
    for (uint32_t k = 0; k < c->bytes; k += n) row_from_shared(c, k, c->data + k, n);
}

static void land_store(bulk_copy *c) {
    const bulk_plan *p = c->plan;
    read_source(c);
    if (c->data && !p->rank && c->other) combine((bulk_op)p->op, (gs_type)p->type, c->other, c->data, c->bytes);
    for (uint32_t r = 0; c->data && p->rank && r < box_rows(&c->map); ++r) {
        box_row b = row_of_box(&c->map, c->coord, r);
        gs_type type = p->op == BULK_COPY ? T_B8 : reduction_type(&c->map, (bulk_op)p->op);
        if (b.from < b.to)
            combine((bulk_op)p->op, type, (uint8_t *)(uintptr_t)b.global,
                    c->data + b.offset + b.from * c->map.elem_bytes, (b.to - b.from) * (size_t)c->map.elem_bytes);
    }
    free(c->data);
    c->data = NULL;
}

/* ------------------------------------------------------------------ issue */
static void bulk_stop(gs_warp *w, int lane, const char *what, uint64_t value, unsigned unit) {
    gs_stop(w, GS_FAULT_MISALIGNED, "misaligned bulk copy", lane, "%s 0x%llx is not a multiple of %u", what,
            (unsigned long long)value, unit);
}

static bool read_map(gs_warp *w, uint64_t address, int lane, gs_tmap *t) {
    uint8_t bytes[GS_TMAP_BYTES];
    if (address % 64) bulk_stop(w, lane, "the address of the tensor map", address, 64);
    for (uint32_t k = 0; k < GS_TMAP_BYTES; k += 16) {
        const uint8_t *p = gs_address(w, SP_GENERIC, address + k, 16, lane, GS_READ);
        if (!p) return false;
        memcpy(bytes + k, p, 16);
    }
    if (!gs_tmap_read(bytes, t))
        gs_stop(w, GS_FAULT_ILLEGAL, "tensor map", lane, "there is no tensor map at 0x%llx",
                (unsigned long long)address);
    return true;
}

/* Map, coordinates and size of a tensor copy; checks every row's address. False: nothing can be moved. */
static bool prepare_tensor(gs_warp *w, const gs_ins *i, bulk_copy *c, uint64_t map_address) {
    const bulk_plan *p = c->plan;
    if (!read_map(w, map_address, c->lane, &c->map)) return false;
    const gs_tmap *t = &c->map;
    if (t->rank != p->rank)
        gs_stop(w, GS_FAULT_ILLEGAL, "tensor map", c->lane, "the tensor map has %d dimensions, the instruction %d",
                t->rank, p->rank);
    uint32_t inner = t->box[0] * (uint32_t)t->elem_bytes;
    if (t->swizzle && inner != 16u << t->swizzle)
        gs_stop(w, GS_FAULT_ILLEGAL, "tensor map", c->lane,
                "rows of %u bytes under a swizzle of %u are not implemented", inner, 16u << t->swizzle);
    if (p->op != BULK_COPY && !reduction_type(t, (bulk_op)p->op))
        gs_stop(w, GS_FAULT_ILLEGAL, "tensor map", c->lane, "the tensor map's type has no such reduction");
    for (int k = 0; k < p->rank; ++k) c->coord[k] = ((const int32_t *)OPND(BULK_COORD + k))[c->lane];
    c->bytes = gs_tmap_box_bytes(t);
    if (p->kind == BULK_PREFETCH) return true;
    for (uint32_t r = 0; r < box_rows(t); ++r) {
        box_row b = row_of_box(t, c->coord, r);
        uint64_t n = (uint64_t)(b.to - b.from) * t->elem_bytes;
        if (n && !gs_global_span(w, b.global, n, c->lane, p->kind == BULK_LOAD ? GS_READ : GS_WRITE)) return false;
        gs_counts_of(w)->bulk_bytes += n;
    }
    return true;
}

static bool prepare_linear(gs_warp *w, const gs_ins *i, bulk_copy *c, uint64_t other) {
    const bulk_plan *p = c->plan;
    c->bytes = ((const uint32_t *)OPND(BULK_SIZE))[c->lane];
    if (c->bytes % 16) bulk_stop(w, c->lane, "the size", c->bytes, 16);
    if (other % 16) bulk_stop(w, c->lane, p->kind == BULK_REMOTE ? "the source" : "the global address", other, 16);
    if (p->kind == BULK_REMOTE)
        c->other = gs_shared_span(w, (uint32_t)other, c->bytes, AGENT_BULK, GS_READ);
    else
        c->other = gs_global_span(w, other, c->bytes, c->lane, p->kind == BULK_STORE ? GS_WRITE : GS_READ);
    if (c->other && p->kind != BULK_PREFETCH) gs_counts_of(w)->bulk_bytes += c->bytes;
    return c->other != NULL;
}

static struct gs_bulk_group *bulk_of(gs_warp *w) {
    if (!w->bulk) w->bulk = calloc(1, sizeof *w->bulk);
    if (!w->bulk) abort();
    return w->bulk;
}

/* A copy into the shared memory of the block that owns `shared`: poison until it lands. */
static void issue_load(gs_warp *w, const bulk_copy *model, uint32_t shared, uint32_t mbarrier, bool good) {
    struct gs_bulk_group *g = bulk_of(w);
    bulk_copy c = *model;
    c.block = gs_shared_owner(w, shared, &c.shared, c.lane);
    c.bar_block = gs_shared_owner(w, mbarrier, &c.mbarrier, c.lane);
    if (!c.block || !c.bar_block) return;
    if (c.block != c.bar_block)
        gs_stop(w, GS_FAULT_ILLEGAL, "bulk copy", c.lane, "destination and mbarrier are in different blocks");
    if (!gs_mbarrier_is_live(c.bar_block, c.mbarrier))
        gs_stop(w, GS_FAULT_ILLEGAL, "mbarrier", c.lane, "there is no initialised mbarrier at shared address 0x%x",
                c.mbarrier);
    c.at = good ? gs_shared_span(w, shared, c.bytes, AGENT_BULK, c.plan->op == BULK_COPY ? GS_WRITE : GS_ATOMIC) : NULL;
    if (c.at && c.plan->op == BULK_COPY) memset(c.at, POISON, c.bytes);
    g->load = gs_grow(g->load, g->n_load, &g->cap_load, sizeof *g->load);
    g->load[g->n_load++] = c;
}
static void issue_multicast(gs_warp *w, const bulk_copy *c, uint32_t shared, uint32_t mbarrier, uint32_t ctas,
                            bool good) {
    int n = w->block->cluster->n_block;
    if (!ctas || ctas >> n)
        gs_stop(w, GS_FAULT_ILLEGAL, "bulk copy", c->lane, "multicast mask 0x%x in a cluster of %d blocks", ctas, n);
    for (uint32_t r = 0; r < (uint32_t)n; ++r)
        if (ctas >> r & 1)
            issue_load(w, c, (shared & 0xffffff) | (r + 1) << 24, (mbarrier & 0xffffff) | (r + 1) << 24, good);
}
static void issue_store(gs_warp *w, const bulk_copy *model, uint32_t shared, bool good) {
    struct gs_bulk_group *g = bulk_of(w);
    bulk_copy c = *model;
    c.block = w->block;
    c.shared = shared & 0xffffff;
    c.at = gs_shared_span(w, shared, c.bytes, AGENT_BULK, GS_READ);
    if (!good) c.at = NULL;
    g->store = gs_grow(g->store, g->n_store, &g->cap_store, sizeof *g->store);
    g->store[g->n_store++] = c;
}

void gs_bulk_copy(gs_warp *w, const gs_ins *i, uint32_t mask) {
    const bulk_plan *p = i->extra;
    uint64_t shared[32] = {0}, other[32], mbarrier[32] = {0};
    if (i->op[BULK_SHARED].size) gs_lane_addresses(w, i, BULK_SHARED, shared);
    if (i->op[BULK_MBARRIER].size) gs_lane_addresses(w, i, BULK_MBARRIER, mbarrier);
    gs_lane_addresses(w, i, BULK_GLOBAL, other);
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        bulk_copy c = {.plan = p, .lane = lane, .pc = w->pc};
        unsigned unit = p->rank ? 128 : 16;
        gs_clock_tick(w, AGENT_BULK);
        c.clock = w->tick[AGENT_BULK];
        if (p->kind != BULK_PREFETCH && shared[lane] % unit)
            bulk_stop(w, lane, p->kind == BULK_STORE ? "the source" : "the destination", shared[lane], unit);
        if (mbarrier[lane] % 8) bulk_stop(w, lane, "the address of the mbarrier", mbarrier[lane], 8);
        bool good = p->rank ? prepare_tensor(w, i, &c, other[lane]) : prepare_linear(w, i, &c, other[lane]);
        if (p->kind == BULK_STORE) {
            issue_store(w, &c, (uint32_t)shared[lane], good);
        } else if (p->multicast) {
            uint16_t ctas = ((const uint16_t *)OPND(BULK_MASK))[lane];
            issue_multicast(w, &c, (uint32_t)shared[lane], (uint32_t)mbarrier[lane], ctas, good);
        } else if (p->kind != BULK_PREFETCH) {
            issue_load(w, &c, (uint32_t)shared[lane], (uint32_t)mbarrier[lane], good);
        }
    }
}

/* ------------------------------------------------------------------ completion */
static void settle_warp(gs_warp *issuer, const gs_block *b, uint32_t mbarrier) {
    struct gs_bulk_group *g = issuer->bulk;
    int kept = 0;
    for (int k = 0; k < g->n_load; ++k) {
        bulk_copy *c = &g->load[k];
        if (c->bar_block != b || c->mbarrier != mbarrier) {
            g->load[kept++] = *c;
            continue;
        }
        land_load(c);
        /* who waits learns of this copy, not of later ones of the same warp */
        uint32_t now = issuer->tick[AGENT_BULK];
        issuer->tick[AGENT_BULK] = c->clock;
        gs_mbarrier_complete_tx(c->bar_block, c->mbarrier, c->bytes, issuer);
        issuer->tick[AGENT_BULK] = now;
    }
    g->n_load = kept;
}

/* Somebody waits on an mbarrier of block b: the copies that it counts land now. */
void gs_bulk_settle(gs_block *b, uint32_t mbarrier) {
    gs_cluster *cluster = b->cluster;
    for (int r = 0; r < cluster->n_block; ++r)
        for (int a = 0; a < cluster->block[r].n_warp; ++a) {
            gs_warp *w = &cluster->block[r].warp[a];
            if (w->bulk && w->bulk->n_load) settle_warp(w, b, mbarrier);
        }
}

void gs_bulk_commit(gs_warp *w, const gs_ins *i, uint32_t mask) {
    (void)i;
    struct gs_bulk_group *g = bulk_of(w);
    for (uint32_t rest = mask; rest; rest &= rest - 1) g->committed[__builtin_ctz(rest)]++;
    for (int k = 0; k < g->n_store; ++k)
        if (!g->store[k].group && mask >> g->store[k].lane & 1) g->store[k].group = g->committed[g->store[k].lane];
}

void gs_bulk_wait(gs_warp *w, const gs_ins *i, uint32_t mask) {
    struct gs_bulk_group *g = bulk_of(w);
    int kept = 0;
    for (int k = 0; k < g->n_store; ++k) {
        bulk_copy *c = &g->store[k];
        bool over = mask >> c->lane & 1 && c->group && c->group + i->imm <= g->committed[c->lane];
        if (over) {
            gs_clock_join_upto(w, AGENT_BULK, c->clock);
            if (i->flag)
                read_source(c);
            else
                land_store(c);
        }
        if (!over || i->flag) g->store[kept++] = *c;
    }
    g->n_store = kept;
}

/* ------------------------------------------------------------------ the end */
static void not_waited_for(gs_warp *w, const bulk_copy *c, const char *what) {
    gs_find(w, GS_FINDING, "bulk copy not waited for", c->lane, c->pc, "%s", what);
}

/* A warp ends. Stores whose source was not waited for may read shared memory that is gone; with the last warp of a block, so
 * does its memory go, and no copy may still be under way to it. */
void gs_bulk_exit(gs_warp *w) {
    struct gs_bulk_group *g = w->bulk;
    for (int k = 0; g && k < g->n_store; ++k) {
        bulk_copy *c = &g->store[k];
        if (!c->data && c->at)
            not_waited_for(w, c,
                           c->group ? "the thread ends without waiting until its bulk store has read shared memory"
                                    : "the thread ends without committing its bulk store to a group");
        land_store(c);
    }
    if (g) {
        g->n_store = 0;
        memset(g->committed, 0, sizeof g->committed);
    }
    for (int a = 0; a < w->block->n_warp; ++a)
        if (!w->block->warp[a].done) return;
    gs_cluster *cluster = w->block->cluster;
    for (int r = 0; r < cluster->n_block; ++r)
        for (int a = 0; a < cluster->block[r].n_warp; ++a) {
            gs_warp *issuer = &cluster->block[r].warp[a];
            struct gs_bulk_group *loads = issuer->bulk;
            int kept = 0;
            for (int k = 0; loads && k < loads->n_load; ++k) {
                bulk_copy *c = &loads->load[k];
                bool source = c->plan->kind == BULK_REMOTE && issuer->block == w->block;
                if (c->block == w->block)
                    not_waited_for(w, c, "the block ends and nobody has waited for a copy into its shared memory");
                else if (source)
                    not_waited_for(w, c, "the block ends while a copy reads its shared memory");
                else
                    loads->load[kept++] = *c;
            }
            if (loads) loads->n_load = kept;
        }
}

void gs_bulk_free(gs_warp *w) {
    if (!w->bulk) return;
    for (int k = 0; k < w->bulk->n_store; ++k) free(w->bulk->store[k].data);
    free(w->bulk->load);
    free(w->bulk->store);
    free(w->bulk);
    w->bulk = NULL;
}
