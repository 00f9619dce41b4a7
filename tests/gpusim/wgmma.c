/* SPDX-License-Identifier: Apache-2.0 */
/* What wgmma has in flight (PTX ISA 9.7.15.7: wgmma.fence, commit_group, wait_group).
 *
 * The result of a wgmma.mma_async is computed at once and kept aside; its accumulator registers hold poison until the
 * wait_group that covers it. Until then
 *   - the next wgmma of the same shape may accumulate on them: it takes the value kept aside;
 *   - a mov of 32 bits may copy them: compilers write such copies around inline PTX, the assembler removes them. The copy
 *     is in flight like its source;
 *   - any other access is a finding, and so is writing a register that holds a part of A.
 * A register that was accessed after the last wgmma.fence must not be used by a wgmma as accumulator or A. Here too a mov
 * passes: it hands on what is known of its source. A register of A may be accessed between the fence and the wgmma when the
 * fence came after the last commit_group: compilers move its computation down past the fence, and assemblers cope.
 *
 * Which operands an instruction writes is not known to this file, so a change of A is seen by comparing the registers
 * after each instruction that names them. */
#include "wgmma.h"

#include <stdlib.h>

#include "core.h"

enum { SLOT_BYTES = 64, CLOCKS = 64, LOG = 64, WATCHED = 8 };
static const uint32_t poison = 0x7fc0dead, poison_half = 0x7fff7fff;

typedef struct wgmma_slot { /* of a register, by the first 64 bytes of its vector */
    uint32_t fence;         /* number of the last fence before it was accessed by an ordinary instruction, 0 never */
    int32_t access_pc;
    bool accumulator, input; /* in flight */
    uint32_t shape;
    uint32_t group, in_group; /* that the accumulator, the input waits for; 0: not committed yet */
    int32_t pc, in_pc;        /* of the wgmma */
} wgmma_slot;

typedef struct wgmma_issue { /* to compare the warps of a group */
    uint64_t a, b;
    int32_t pc;
    bool scale_d;
} wgmma_issue;

struct gs_wgmma_state {
    uint64_t linear;        /* the block that this is about, plus one */
    uint32_t fences;        /* so far */
    uint32_t fences_before; /* at the last commit */
    uint32_t groups;        /* committed so far */
    uint32_t clock[CLOCKS]; /* of the wgmma agent at each commit */
    uint32_t issued;
    wgmma_issue log[LOG];
    wgmma_slot *slot;
    uint8_t *value;   /* as the registers: results to come of accumulators, copies of inputs */
    uint32_t *flying; /* offsets of the registers in flight */
    int n_flying, cap_flying;
    uint32_t watch[WATCHED]; /* inputs that the last instruction named */
    int n_watch, watch_pc;
};

static struct gs_wgmma_state *state_of(gs_warp *w) {
    if (!w->wgmma) {
        struct gs_wgmma_state *s = calloc(1, sizeof *s);
        size_t bytes = w->block->kernel->reg_bytes + 256;
        if (!s) abort();
        s->slot = calloc(bytes / SLOT_BYTES, sizeof *s->slot);
        s->value = malloc(bytes);
        if (!s->slot || !s->value) abort();
        w->wgmma = s;
    }
    if (w->wgmma->linear != w->block->linear + 1) {
        w->wgmma->linear = w->block->linear + 1;
        w->wgmma->issued = 0;
    }
    return w->wgmma;
}
static bool is_register(const gs_opnd *o) { return o->base == BASE_REG && o->size && !o->pred; }
static wgmma_slot *slot_at(const gs_warp *w, uint32_t off) { return &w->wgmma->slot[off / SLOT_BYTES]; }

static void fly(struct gs_wgmma_state *s, uint32_t off) {
    wgmma_slot *t = &s->slot[off / SLOT_BYTES];
    if (t->accumulator || t->input) return;
    s->flying = gs_grow(s->flying, s->n_flying, &s->cap_flying, sizeof *s->flying);
    s->flying[s->n_flying++] = off;
}

/* ------------------------------------------------------------------ the registers of a wgmma */
static void check_fence(gs_warp *w, const wgmma_slot *t) {
    const struct gs_wgmma_state *s = w->wgmma;
    if (s->fences && t->fence == s->fences + 1)
        gs_find(w, GS_FINDING, "missing wgmma.fence", 0, t->access_pc,
                "wgmma uses a register that was accessed after the last wgmma.fence");
}

uint8_t *gs_wgmma_accumulator(gs_warp *w, const gs_ins *i, int k) {
    struct gs_wgmma_state *s = w->wgmma;
    const wgmma_plan *p = i->extra;
    uint32_t off = i->op[k].off;
    wgmma_slot *t = slot_at(w, off);
    if (t->input)
        gs_find(w, GS_FINDING, "wgmma not waited for", 0, t->in_pc,
                "wgmma writes a register that an earlier one still reads as a part of A");
    if (!t->accumulator) {
        check_fence(w, t);
        fly(s, off);
        t->accumulator = true;
        memcpy(s->value + off, w->base[BASE_REG] + off, 128);
        uint32_t *r = (uint32_t *)(w->base[BASE_REG] + off);
        for (int l = 0; l < 32; ++l) r[l] = p->half ? poison_half : poison;
    } else if (t->shape != p->shape) {
        gs_find(w, GS_FINDING, "wgmma not waited for", 0, t->pc,
                "accumulators in flight are used by a wgmma of another shape or type");
    }
    t->group = 0;
    t->pc = w->pc;
    t->shape = p->shape;
    return s->value + off;
}

const uint8_t *gs_wgmma_input(gs_warp *w, const gs_ins *i, int k) {
    const gs_opnd *o = &i->op[k];
    const uint8_t *at = w->base[o->base] + o->off;
    if (!is_register(o)) return at;
    struct gs_wgmma_state *s = w->wgmma;
    wgmma_slot *t = slot_at(w, o->off);
    if (t->accumulator) {
        gs_find(w, GS_FINDING, "wgmma not waited for", 0, t->pc, "wgmma reads as A a result that is not there yet");
        return at;
    }
    if (s->fences == s->fences_before) check_fence(w, t);
    fly(s, o->off);
    t->input = true;
    t->in_group = 0;
    t->in_pc = w->pc;
    memcpy(s->value + o->off, at, 128);
    return at;
}

/* ------------------------------------------------------------------ the warpgroup */
static void compare_warps(gs_warp *w, const wgmma_issue *mine) {
    struct gs_wgmma_state *s = w->wgmma;
    const gs_block *b = w->block;
    for (int a = w->id & ~3; a < (w->id | 3) + 1 && a < b->n_warp; ++a) {
        const struct gs_wgmma_state *other = b->warp[a].wgmma;
        if (a == w->id || !other || other->linear != b->linear + 1) continue;
        if (other->issued <= s->issued || other->issued - s->issued > LOG) continue;
        const wgmma_issue *its = &other->log[s->issued % LOG];
        if (its->pc == mine->pc && its->a == mine->a && its->b == mine->b && its->scale_d == mine->scale_d) return;
        gs_find(w, GS_FINDING, "warps of a warpgroup differ", 0, its->pc, "wgmma number %u of warp %d has other %s",
                s->issued + 1, a, its->pc != mine->pc ? "instructions before it" : "operands");
        return;
    }
}

void gs_wgmma_begin(gs_warp *w, const gs_ins *i, uint32_t mask, uint64_t a_desc, uint64_t b_desc, bool scale_d) {
    (void)i;
    struct gs_wgmma_state *s = state_of(w);
    if (!s->fences)
        gs_find(w, GS_FINDING, "missing wgmma.fence", 0, -1, "no wgmma.fence comes before the first wgmma of the warp");
    if (mask != 0xffffffffu || (w->id | 3) >= w->block->n_warp)
        gs_find(w, GS_FINDING, "incomplete warpgroup", 0, -1,
                "wgmma needs four whole warps, the first a multiple of four");
    wgmma_issue mine = {a_desc, b_desc, w->pc, scale_d};
    compare_warps(w, &mine);
    s->log[s->issued++ % LOG] = mine;
    gs_clock_tick(w, AGENT_WGMMA);
}

/* ------------------------------------------------------------------ ordinary instructions beside them */
static void check_watched(gs_warp *w) {
    struct gs_wgmma_state *s = w->wgmma;
    for (int k = 0; k < s->n_watch; ++k) {
        uint32_t off = s->watch[k];
        const wgmma_slot *t = slot_at(w, off);
        if (!t->input || !memcmp(s->value + off, w->base[BASE_REG] + off, 128)) continue;
        int pc = w->pc;
        w->pc = s->watch_pc;
        gs_find(w, GS_FINDING, "wgmma not waited for", 0, t->in_pc,
                "a register of A is written while a wgmma reads it");
        w->pc = pc;
        memcpy(s->value + off, w->base[BASE_REG] + off, 128);
    }
    s->n_watch = 0;
}

static void copy_register(gs_warp *w, uint32_t to, uint32_t from) {
    struct gs_wgmma_state *s = w->wgmma;
    wgmma_slot *d = slot_at(w, to), *t = slot_at(w, from);
    d->fence = t->fence;
    d->access_pc = t->access_pc;
    if (!t->accumulator) return;
    fly(s, to);
    d->accumulator = true;
    d->group = t->group;
    d->shape = t->shape;
    d->pc = t->pc;
    memmove(s->value + to, s->value + from, 128);
}

/* Called before every instruction of a warp that has used wgmma. */
void gs_wgmma_guard(gs_warp *w, const gs_ins *i) {
    struct gs_wgmma_state *s = w->wgmma;
    if (s->n_watch) check_watched(w);
    if (i->class == GS_C_WGMMA) return;
    bool move = i->class == GS_C_MOVE && i->n_op == 2 && i->op[0].size == 4 && i->op[1].size == 4;
    bool copy = move && is_register(&i->op[0]) && is_register(&i->op[1]) && !i->guard;
    for (int k = 0; k < i->n_op; ++k) {
        if (!is_register(&i->op[k])) continue;
        wgmma_slot *t = slot_at(w, i->op[k].off);
        if (t->input && s->n_watch < WATCHED) {
            s->watch[s->n_watch++] = i->op[k].off;
            s->watch_pc = w->pc;
        }
        if (t->accumulator && !(copy && (k == 1 || slot_at(w, i->op[1].off)->accumulator)))
            gs_find(w, GS_FINDING, "wgmma not waited for", 0, t->pc,
                    "an accumulator register is accessed before the wgmma.wait_group that its wgmma needs");
        if (!move) {
            t->fence = s->fences + 1;
            t->access_pc = w->pc;
        }
    }
    if (copy)
        copy_register(w, i->op[0].off, i->op[1].off);
    else if (move && is_register(&i->op[0]))
        slot_at(w, i->op[0].off)->fence = 0;
}

/* ------------------------------------------------------------------ fence, groups, the end */
void gs_wgmma_fence(gs_warp *w, const gs_ins *i, uint32_t mask) {
    (void)i;
    (void)mask;
    state_of(w)->fences++;
}

void gs_wgmma_commit(gs_warp *w, const gs_ins *i, uint32_t mask) {
    (void)i;
    (void)mask;
    struct gs_wgmma_state *s = state_of(w);
    s->groups++;
    s->fences_before = s->fences;
    s->clock[s->groups % CLOCKS] = w->tick[AGENT_WGMMA];
    for (int k = 0; k < s->n_flying; ++k) {
        wgmma_slot *t = slot_at(w, s->flying[k]);
        if (t->accumulator && !t->group) t->group = s->groups;
        if (t->input && !t->in_group) t->in_group = s->groups;
    }
}

void gs_wgmma_wait(gs_warp *w, const gs_ins *i, uint32_t mask) {
    (void)mask;
    struct gs_wgmma_state *s = state_of(w);
    if (s->groups <= i->imm) return;
    uint32_t done = s->groups - (uint32_t)i->imm;
    int kept = 0;
    gs_clock_join_upto(w, AGENT_WGMMA, s->clock[done % CLOCKS]);
    for (int k = 0; k < s->n_flying; ++k) {
        uint32_t off = s->flying[k];
        wgmma_slot *t = slot_at(w, off);
        if (t->accumulator && t->group && t->group <= done) {
            t->accumulator = false;
            memcpy(w->base[BASE_REG] + off, s->value + off, 128);
        }
        if (t->input && t->in_group && t->in_group <= done) t->input = false;
        if (t->accumulator || t->input) s->flying[kept++] = off;
    }
    s->n_flying = kept;
}

static uint32_t issued_by(const gs_block *b, const gs_warp *w) {
    return w->wgmma && w->wgmma->linear == b->linear + 1 ? w->wgmma->issued : 0;
}
/* Called when any warp ends. What it issued stays, for the other warps of its group; the rest is made ready for the warp's
 * next block. */
void gs_wgmma_exit(gs_warp *w) {
    struct gs_wgmma_state *s = w->wgmma;
    const gs_block *b = w->block;
    for (int a = w->id & ~3; a < (w->id | 3) + 1 && a < b->n_warp; ++a) {
        const gs_warp *other = &b->warp[a];
        if (a == w->id || !other->done || issued_by(b, other) == issued_by(b, w)) continue;
        gs_find(w, GS_FINDING, "warps of a warpgroup differ", 0, -1, "it issued %u wgmma, warp %d issued %u",
                issued_by(b, w), a, issued_by(b, other));
        break;
    }
    if (!s) return;
    check_watched(w);
    for (int k = 0; k < s->n_flying; ++k) {
        wgmma_slot *t = slot_at(w, s->flying[k]);
        if (t->accumulator && !k)
            gs_find(w, GS_FINDING, "wgmma not waited for", 0, t->pc, "the warp ends with a wgmma in flight");
        t->accumulator = t->input = false;
    }
    s->n_flying = 0;
    s->fences = s->fences_before = s->groups = 0;
    memset(s->slot, 0, b->kernel->reg_bytes / SLOT_BYTES * sizeof *s->slot);
}

void gs_wgmma_free(gs_warp *w) {
    if (!w->wgmma) return;
    free(w->wgmma->slot);
    free(w->wgmma->value);
    free(w->wgmma->flying);
    free(w->wgmma);
    w->wgmma = NULL;
}
