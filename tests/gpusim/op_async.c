/* SPDX-License-Identifier: Apache-2.0 */
/* cp.async (non-bulk), mbarrier, st.async, red.async (PTX ISA, data movement and synchronization).
 *
 * The bytes of a cp.async land as late as allowed: when a wait covers them. Until then the target holds 0xCB, and any other
 * access to it is a finding. An mbarrier is ours in layout (it is opaque): 16 bits expected, 16 bits pending, then
 * 2 * outstanding bytes + phase. */
#include <stdlib.h>

#include "core.h"
#include "lanes.h"
#include "mbarrier.h"

/* ------------------------------------------------------------------ cp.async */
static void cpasync(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint64_t dst[32], src[32];
    gs_lane_addresses(w, i, 0, dst);
    gs_lane_addresses(w, i, 1, src);
    uint32_t n = (uint32_t)i->imm;
    const uint32_t *size = i->n_op > 2 && !i->op[2].pred ? (const uint32_t *)OPND(2) : NULL;
    uint32_t ignore = i->n_op > 2 && i->op[2].pred ? gs_pred_read(w, i, 2) : 0;
    uint32_t fetching = m & ~ignore; /* lanes that only fill with zeros ask nothing of global memory */
    for (uint32_t rest = size ? fetching : 0; rest; rest &= rest - 1)
        if (!size[__builtin_ctz(rest)]) fetching &= ~(rest & (0u - rest));
    gs_count_access(w, i, SP_GLOBAL, src, fetching, n, false);
    gs_count_access(w, i, SP_SHARED, dst, m, n, true);
    gs_clock_tick(w, AGENT_CPASYNC);
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        uint32_t want = ignore >> l & 1 ? 0 : size ? size[l] : n;
        if (want > n)
            gs_find(w, GS_FAULT_ILLEGAL, "cp.async", l, -1, "source size %u, more than the copy's %u", want, n);
        if (want > n) want = n;
        if ((dst[l] | (want ? src[l] : 0)) & (n - 1)) {
            gs_find(w, GS_FAULT_MISALIGNED, "misaligned", l, -1, "cp.async of %u bytes from 0x%llx to shared 0x%llx", n,
                    (unsigned long long)src[l], (unsigned long long)dst[l]);
            continue;
        }
        uint8_t *to = gs_shared_lane(w, (uint32_t)dst[l], n, AGENT_CPASYNC, l, GS_WRITE);
        if (!to || (want && !gs_global_span(w, src[l], want, l, GS_READ))) continue;
        memset(to, 0xCB, n);
        w->copy = gs_grow(w->copy, w->n_copy, &w->cap_copy, sizeof *w->copy);
        w->copy[w->n_copy++] = (gs_copy){.dst = (uint32_t)dst[l],
                                         .bytes = (uint16_t)n,
                                         .src_bytes = (uint16_t)want,
                                         .lane = (uint8_t)l,
                                         .serial = ++w->copy_serial,
                                         .src = src[l],
                                         .pc = w->pc};
    }
}
static void decode_cpasync(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    bool ca = gs_mod(d, "ca");
    if (!ca && !gs_mod(d, "cg")) gs_die(d, "neither .ca nor .cg");
    if (!gs_mod(d, "shared") && !gs_mod(d, "shared::cta")) gs_die(d, "the target is not shared");
    if (!gs_mod(d, "global")) gs_die(d, "the source is not global");
    bool hint = gs_mod(d, "L2::cache_hint");
    int n = d->n_arg - hint;
    if (n < 3 || n > 4) gs_die(d, "%d operands", d->n_arg);
    gs_add_address(d, 0);
    gs_add_address(d, 1);
    i->imm = gs_parse_immediate(d, d->arg[2].text);
    if (i->imm != 16 && !(ca && (i->imm == 4 || i->imm == 8))) gs_die(d, "%llu bytes", (unsigned long long)i->imm);
    if (n == 4) gs_add_arg(d, 3, 4);
}
static void commit(gs_warp *w, const gs_ins *i, uint32_t m) {
    (void)i;
    for (uint32_t rest = m; rest; rest &= rest - 1) w->copy_group[__builtin_ctz(rest)]++;
    for (int k = 0; k < w->n_copy; ++k)
        if (!w->copy[k].group && m >> w->copy[k].lane & 1) w->copy[k].group = w->copy_group[w->copy[k].lane];
}
static void wait_group(gs_warp *w, const gs_ins *i, uint32_t m) {
    int kept = 0;
    int64_t newest = (int64_t)i->imm; /* -1: all, committed or not */
    gs_clock_join_agent(w, AGENT_CPASYNC);
    for (int k = 0; k < w->n_copy; ++k) {
        gs_copy *c = &w->copy[k];
        bool due =
            m >> c->lane & 1 && (newest < 0 || (c->group && (int64_t)(w->copy_group[c->lane] - c->group) >= newest));
        if (due)
            gs_copy_land(w, c);
        else
            w->copy[kept++] = *c;
    }
    w->n_copy = kept;
    /* what is still under way stays unknown to the warp: its clock is renewed */
    if (kept) {
        gs_clock_tick(w, AGENT_CPASYNC);
        for (int k = 0; k < kept; ++k) gs_copy_mark(w, &w->copy[k]);
    }
}
static void decode_wait(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    if (gs_mod(d, "wait_all")) {
        i->imm = (uint64_t)-1;
        gs_need_args(d, 0);
        return;
    }
    gs_need_args(d, 1);
    i->imm = gs_parse_immediate(d, d->arg[0].text);
}
static void decode_nothing(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)i;
    (void)row;
    gs_need_args(d, 0);
}
static void copy_arrive(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint64_t a[32];
    gs_lane_addresses(w, i, 0, a);
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        gs_mbarrier_arrive_later(w, (uint32_t)a[l], l, i->flag);
    }
}
static void decode_copy_arrive(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    gs_mod(d, "shared");
    gs_mod(d, "shared::cta");
    i->flag = gs_mod(d, "noinc");
    gs_need_args(d, 1);
    gs_add_address(d, 0);
}

/* ------------------------------------------------------------------ mbarrier */
enum { MB_INIT, MB_INVAL, MB_ARRIVE, MB_DROP, MB_EXPECT, MB_COMPLETE };
static void mb_set(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint64_t a[32];
    gs_lane_addresses(w, i, 0, a);
    const uint32_t *v = i->n_op > 1 ? (const uint32_t *)OPND(1) : NULL;
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        switch (i->sub) {
        case MB_INIT: gs_mbarrier_init(w, (uint32_t)a[l], v ? v[l] : 0, l); break;
        case MB_INVAL: gs_mbarrier_inval(w, (uint32_t)a[l], l); break;
        case MB_EXPECT: gs_mbarrier_tx(w, (uint32_t)a[l], (int64_t)v[l], l); break;
        default: gs_mbarrier_tx(w, (uint32_t)a[l], -(int64_t)v[l], l); break;
        }
    }
}
/* operands: state (or sink), address, count or bytes */
static void mb_arrive(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint64_t a[32];
    gs_lane_addresses(w, i, 1, a);
    const uint32_t *v = i->n_op > 2 ? (const uint32_t *)OPND(2) : NULL;
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        if (i->flag) gs_mbarrier_tx(w, (uint32_t)a[l], v[l], l); /* expect_tx first, then one arrival */
        uint64_t state = gs_mbarrier_arrive(w, (uint32_t)a[l],
                                            i->flag ? 1
                                            : v     ? v[l]
                                                    : 1,
                                            i->sub == MB_DROP, i->round != 0, l);
        if (i->op[0].size) ((uint64_t *)OPND(0))[l] = state;
    }
}
/* operands: predicate, address, state or parity */
static void mb_test(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint64_t a[32];
    gs_lane_addresses(w, i, 1, a);
    uint32_t yes = 0;
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        uint64_t v = 0;
        memcpy(&v, OPND(2) + (uint32_t)l * i->op[2].size, i->op[2].size);
        bool parity = i->flag;
        if (gs_mbarrier_test(w, (uint32_t)a[l], parity ? (uint32_t)v & 1 : (uint32_t)(v >> 63), l)) yes |= 1u << l;
    }
    gs_pred_write(w, i, 0, yes, m);
    if (yes != m) w->yield = true;
}
static void mb_pending(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t *d = (uint32_t *)OPND(0);
    const uint64_t *s = (const uint64_t *)OPND(1);
    LANES({ d[l] = (uint32_t)(s[l] & 0xffff); });
}
static void decode_mbarrier(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    static const char *const order[] = {"relaxed", "acquire", "release"};
    static const char *const scope[] = {"cta", "cluster"};
    gs_mod_of(d, order, 3, 0);
    gs_mod_of(d, scope, 2, 0);
    gs_mod_space(d);
    static const char *const what[] = {"init",     "inval",         "arrive",    "arrive_drop", "test_wait",
                                       "try_wait", "pending_count", "expect_tx", "complete_tx"};
    int op = -1;
    for (int k = 0; k < d->n_mod && op < 0; ++k) /* the first that is there: arrive.expect_tx is an arrive */
        for (int q = 0; q < 9 && op < 0; ++q)
            if (!strcmp(d->mod[k], what[q])) op = q, d->used[k] = true;
    switch (op) {
    case 0:
    case 1:
        gs_need_args(d, op == 0 ? 2 : 1);
        i->sub = op == 0 ? MB_INIT : MB_INVAL;
        i->exec = mb_set;
        gs_add_address(d, 0);
        if (op == 0) gs_add_arg(d, 1, 4);
        return;
    case 2:
    case 3: {
        bool state = d->arg[0].text[0] != '['; /* the remote form may leave the state out */
        i->flag = gs_mod(d, "expect_tx");
        i->round = gs_mod(d, "noComplete");
        i->sub = op == 2 ? MB_ARRIVE : MB_DROP;
        i->exec = mb_arrive;
        if (state)
            gs_add_arg(d, 0, 8);
        else
            gs_add(d, gs_no_operand);
        gs_add_address(d, state);
        if (d->n_arg > state + 1) gs_add_arg(d, state + 1, 4);
        gs_need_args(d, d->n_op - !state);
        if (i->flag && d->n_op < 3) gs_die(d, "expect_tx without bytes");
        return;
    }
    case 4:
    case 5:
        i->flag = gs_mod(d, "parity");
        i->exec = mb_test;
        if (d->n_arg != 3 && !(op == 5 && d->n_arg == 4)) gs_die(d, "%d operands", d->n_arg);
        gs_add_arg(d, 0, 4);
        gs_add_address(d, 1);
        gs_add_arg(d, 2, i->flag ? 4 : 8);
        return;
    case 6:
        gs_need_args(d, 2);
        i->exec = mb_pending;
        gs_add_arg(d, 0, 4);
        gs_add_arg(d, 1, 8);
        return;
    case 7:
    case 8:
        gs_need_args(d, 2);
        i->sub = op == 7 ? MB_EXPECT : MB_COMPLETE;
        i->exec = mb_set;
        gs_add_address(d, 0);
        gs_add_arg(d, 1, 4);
        return;
    default: gs_die(d, "not known");
    }
}

/* ------------------------------------------------------------------ st.async, red.async: to the shared memory of another block */
static void st_async(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint64_t a[32], bar[32];
    uint32_t es = gs_type_bytes[i->type], n = es * i->vec;
    gs_lane_addresses(w, i, 0, a);
    gs_lane_addresses(w, i, i->vec + 1, bar);
    gs_clock_tick(w, AGENT_BULK);
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        if (a[l] & (n - 1)) {
            gs_find(w, GS_FAULT_MISALIGNED, "misaligned", l, -1, "%s of %u bytes at shared 0x%llx",
                    i->sub ? "red.async" : "st.async", n, (unsigned long long)a[l]);
            continue;
        }
        uint8_t *p = gs_shared_lane(w, (uint32_t)a[l], n, AGENT_BULK, l, i->sub ? GS_ATOMIC : GS_WRITE);
        if (!p) continue;
        for (int v = 0; v < i->vec; ++v) {
            uint64_t x = 0, old = 0;
            memcpy(&x, OPND(1 + v) + (uint32_t)l * i->op[1 + v].size, es);
            memcpy(&old, p + (uint32_t)v * es, es);
            int64_t so = i->type == T_S32 ? (int32_t)old : (int64_t)old,
                    sx = i->type == T_S32 ? (int32_t)x : (int64_t)x;
            switch (i->sub) {
            case 0: break;
            case 1: x = old + x; break;
            case 2: x = (i->type == T_S32 ? so < sx : old < x) ? old : x; break;
            case 3: x = (i->type == T_S32 ? so > sx : old > x) ? old : x; break;
            case 4: x = old >= x ? 0 : old + 1; break;
            case 5: x = old == 0 || old > x ? x : old - 1; break;
            case 6: x &= old; break;
            case 7: x |= old; break;
            default: x ^= old; break;
            }
            memcpy(p + (uint32_t)v * es, &x, es);
        }
        uint32_t inside;
        gs_block *b = gs_shared_owner(w, (uint32_t)bar[l], &inside, l);
        if (b) gs_mbarrier_complete_tx(b, inside, n, w);
    }
}
static void decode_st_async(gs_decoder *d, gs_ins *i, const gs_row *row) {
    bool red = !strncmp(row->name, "red", 3);
    static const char *const ops[] = {"add", "min", "max", "inc", "dec", "and", "or", "xor"};
    int op = red ? gs_mod_of(d, ops, 8, -1) : -1;
    if (red && op < 0) gs_die(d, "no operation");
    i->sub = (uint8_t)(op + 1);
    if (!gs_mod(d, "shared::cluster") || !gs_mod(d, "mbarrier::complete_tx::bytes"))
        gs_die(d, "only to .shared::cluster with an mbarrier");
    i->vec = gs_mod(d, "v2") ? 2 : gs_mod(d, "v4") ? 4 : 1;
    if (gs_type_bytes[i->type] != 4 && gs_type_bytes[i->type] != 8) gs_die(d, "type");
    gs_need_args(d, i->vec + 2);
    gs_add_address(d, 0);
    for (int k = 0; k < i->vec; ++k) gs_add_arg(d, 1 + k, gs_type_bytes[i->type]);
    gs_add_address(d, i->vec + 1);
}

GS_TABLE(async) = {{"cp.async.commit_group", T_NONE, decode_nothing, commit, GS_C_ASYNC, NULL},
                   {"cp.async.wait_group", T_NONE, decode_wait, wait_group, GS_C_ASYNC, NULL},
                   {"cp.async.wait_all", T_NONE, decode_wait, wait_group, GS_C_ASYNC, NULL},
                   {"cp.async.mbarrier.arrive", T_B64, decode_copy_arrive, copy_arrive, GS_C_ASYNC, NULL},
                   {"cp.async.ca", T_NONE, decode_cpasync, cpasync, GS_C_ASYNC, "L2::64B L2::128B L2::256B"},
                   {"cp.async.cg", T_NONE, decode_cpasync, cpasync, GS_C_ASYNC, "L2::64B L2::128B L2::256B"},
                   {"mbarrier", T_NONE, decode_mbarrier, NULL, GS_C_ASYNC, NULL},
                   {"st.async", T_NONE, decode_st_async, st_async, GS_C_ASYNC, "weak"},
                   {"red.async", T_NONE, decode_st_async, st_async, GS_C_ASYNC, "relaxed cluster"},
                   {NULL, T_NONE, NULL, NULL, 0, NULL}};
