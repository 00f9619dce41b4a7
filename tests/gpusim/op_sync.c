/* SPDX-License-Identifier: Apache-2.0 */
/* bar, barrier, bar.warp.sync, barrier.cluster, membar, fence, trap and what has no effect here (PTX ISA, parallel
 * synchronization and miscellaneous instructions). The block barrier itself is in exec.c. */
#include <stdlib.h>

#include "core.h"
#include "lanes.h"

/* ------------------------------------------------------------------ block barriers */
/* bar.red is a barrier that counts votes and, after it, an instruction that reads the result. */
static void read_votes(gs_warp *w, const gs_ins *i, uint32_t m) {
    const gs_barrier *at = &w->block->barrier[w->barrier];
    uint32_t parity = (at->generation + 1) & 1; /* of the phase that just ended */
    uint32_t votes = at->votes[parity], voters = at->voters[parity];
    if (i->sub == 0) {
        uint32_t *d = (uint32_t *)OPND(0);
        LANES({ d[l] = votes; });
    } else
        gs_pred_write(w, i, 0, (i->sub == 1 ? votes == voters : votes > 0) ? 0xffffffffu : 0, m);
}
static void decode_bar(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    i->flow = FLOW_BARRIER;
    i->class = GS_C_BARRIER;
    if (gs_mod(d, "sync")) {
        if (d->n_arg > 2) gs_die(d, "%d operands", d->n_arg);
        for (int k = 0; k < d->n_arg; ++k) gs_add_arg(d, k, 4);
    } else if (gs_mod(d, "arrive")) {
        gs_need_args(d, 2);
        i->sub = 1;
        gs_add_arg(d, 0, 4);
        gs_add_arg(d, 1, 4);
    } else if (gs_mod(d, "red")) {
        static const char *const ops[] = {"popc", "and", "or"};
        int op = gs_mod_of(d, ops, 3, -1);
        if (op < 0 || d->n_arg < 3 || d->n_arg > 4) gs_die(d, "form of the reduction");
        i->sub = 2;
        gs_add_arg(d, 1, 4); /* the barrier */
        if (d->n_arg == 4)
            gs_add_arg(d, 2, 4);
        else
            gs_add(d, gs_no_operand);
        gs_add_arg(d, d->n_arg - 1, 4); /* the vote */
        gs_opnd result = gs_parse_operand(d, d->arg[0].text, 4);
        gs_ins *second = gs_new_ins(d->parser);
        second->exec = read_votes;
        second->class = GS_C_BARRIER;
        second->sub = (uint8_t)op;
        second->n_op = 1;
        second->op = malloc(sizeof *second->op);
        if (!second->op) abort();
        second->op[0] = result;
    } else
        gs_die(d, "neither sync, arrive nor red");
}

/* ------------------------------------------------------------------ warps */
static void syncwarp(gs_warp *w, const gs_ins *i, uint32_t m) {
    (void)i;
    (void)m;
    w->sub++;
}
static void decode_syncwarp(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    i->flow = FLOW_COLLECTIVE;
    i->members = 0;
    gs_need_args(d, 1);
    gs_add_arg(d, 0, 4);
}

/* ------------------------------------------------------------------ clusters */
static void cluster_arrive(gs_warp *w, const gs_ins *i, uint32_t m) {
    gs_cluster *c = w->block->cluster;
    if (w->cluster_arrived & m)
        gs_stop(w, GS_FAULT_ILLEGAL, "barrier.cluster", __builtin_ctz(m & w->cluster_arrived),
                "a thread arrives twice in one phase");
    if (!i->flag && w->block->shadow) gs_clock_release(w, c->join, c->pjoin);
    w->cluster_arrived |= m;
    w->cluster_phase = c->generation;
    w->block->worker->progress++;
    gs_cluster_barrier_check(c);
}
static void cluster_wait(gs_warp *w, const gs_ins *i, uint32_t m) {
    gs_cluster *c = w->block->cluster;
    (void)i;
    if (c->generation == w->cluster_phase) {
        if (m & ~w->cluster_arrived)
            gs_stop(w, GS_FAULT_DEADLOCK, "barrier.cluster", __builtin_ctz(m & ~w->cluster_arrived),
                    "a thread waits that has not arrived");
        w->retry = true;
        return;
    }
    if (w->block->shadow) gs_clock_acquire(w, c->join_done, c->pjoin_done);
    w->sub++;
}
static void decode_cluster(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    gs_need_args(d, 0);
    bool wait = gs_mod(d, "wait");
    if (!wait && !gs_mod(d, "arrive")) gs_die(d, "neither arrive nor wait");
    gs_mod(d, "aligned");
    gs_mod(d, "release");
    gs_mod(d, "acquire");
    i->flag = gs_mod(d, "relaxed");
    i->exec = wait ? cluster_wait : cluster_arrive;
}

/* ------------------------------------------------------------------ fences */
static void proxy_fence(gs_warp *w, const gs_ins *i, uint32_t m) {
    (void)i;
    (void)m;
    gs_proxy_fence(w);
}
static void decode_fence(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    static const char *const scopes[] = {"cta", "cluster", "gpu", "sys", "gl"};
    gs_mod_of(d, scopes, 5, 0);
    static const char *const order[] = {"sc", "acq_rel", "acquire", "release"};
    gs_mod_of(d, order, 4, 0);
    if (gs_mod(d, "proxy")) {
        gs_space space = gs_mod_space(d);
        gs_mod(d, "sync_restrict::shared::cta");
        gs_mod(d, "sync_restrict::shared::cluster");
        if (gs_mod(d, "async"))
            i->exec = space == SP_GLOBAL ? NULL : proxy_fence;
        else if (gs_mod(d, "async::generic"))
            i->exec = proxy_fence;
        else if (!gs_mod(d, "alias") && !gs_mod(d, "tensormap::generic"))
            gs_die(d, "this proxy");
        for (int k = 0; k < d->n_arg; ++k) /* tensormap: address and size */
            if (d->arg[k].text[0] != '[') gs_parse_immediate(d, d->arg[k].text);
        return;
    }
    gs_mod(d, "mbarrier_init");
    gs_need_args(d, 0);
}

/* ------------------------------------------------------------------ the rest */
static void trap(gs_warp *w, const gs_ins *i, uint32_t m) {
    (void)i;
    gs_stop(w, GS_FAULT_TRAP, "trap", __builtin_ctz(m), "the kernel executed trap");
}
static void decode_none(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)i;
    (void)row;
    gs_need_args(d, 0);
}
static void decode_any(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)i;
    (void)row;
    gs_need_args(d, 1);
}
static void decode_maxnreg(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)i;
    (void)row;
    static const char *const how[] = {"inc", "dec"};
    if (gs_mod_of(d, how, 2, -1) < 0 || !gs_mod(d, "sync") || !gs_mod(d, "aligned")) gs_die(d, "form");
    gs_need_args(d, 1);
    uint64_t n = gs_parse_immediate(d, d->arg[0].text);
    if (n < 24 || n > 256 || n % 8) gs_die(d, "%llu registers: 24 to 256, a multiple of 8", (unsigned long long)n);
    if (d->module->target < 90) gs_die(d, "needs sm_90a");
}

GS_TABLE(sync) = {{"bar.warp", T_NONE, decode_syncwarp, syncwarp, GS_C_BARRIER, "sync"},
                  {"barrier.cluster", T_NONE, decode_cluster, NULL, GS_C_BARRIER, NULL},
                  {"bar", T_NONE, decode_bar, NULL, GS_C_BARRIER, "cta aligned"},
                  {"barrier", T_NONE, decode_bar, NULL, GS_C_BARRIER, "cta aligned"},
                  {"membar", T_NONE, decode_fence, NULL, GS_C_FENCE, NULL},
                  {"fence", T_NONE, decode_fence, NULL, GS_C_FENCE, NULL},
                  {"trap", T_NONE, decode_none, trap, GS_C_OTHER, NULL},
                  {"brkpt", T_NONE, decode_none, NULL, GS_C_OTHER, NULL},
                  {"nanosleep", T_U32, decode_any, NULL, GS_C_OTHER, NULL},
                  {"pmevent", T_NONE, decode_any, NULL, GS_C_OTHER, "mask"},
                  {"griddepcontrol.launch_dependents", T_NONE, decode_none, NULL, GS_C_OTHER, NULL},
                  {"griddepcontrol.wait", T_NONE, decode_none, NULL, GS_C_OTHER, NULL},
                  {"setmaxnreg", T_NONE, decode_maxnreg, NULL, GS_C_OTHER, NULL},
                  {NULL, T_NONE, NULL, NULL, 0, NULL}};
