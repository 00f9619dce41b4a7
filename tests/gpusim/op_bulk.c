/* SPDX-License-Identifier: Apache-2.0 */
/* Decoding of cp.async.bulk, cp.reduce.async.bulk, their tensor forms, prefetches and groups (PTX ISA 9.7.9.25). The work is
 * in bulk.c. Refused: im2col forms, .cp_mask and .ignore_oob (later chips), tensormap.replace. Cache hints have no effect. */
#include <ctype.h>
#include <stdlib.h>

#include "bulk.h"
#include "core.h"
#include "lanes.h"

static const char *const dim_names[] = {"1d", "2d", "3d", "4d", "5d"};
static const char *const op_names[] = {"add", "min", "max", "inc", "dec", "and", "or", "xor"};

static int mod_index(const gs_decoder *d, const char *name) {
    for (int k = 0; k < d->n_mod; ++k)
        if (!strcmp(d->mod[k], name)) return k;
    return -1;
}

/* Which way the bytes go: the destination's state space comes before the source's. */
static bulk_kind direction(gs_decoder *d, bool reduce) {
    int global = mod_index(d, "global"), cta = mod_index(d, "shared::cta"), cluster = mod_index(d, "shared::cluster");
    gs_mod(d, "global");
    gs_mod(d, "shared::cta");
    gs_mod(d, "shared::cluster");
    bool mbarrier = gs_mod(d, "mbarrier::complete_tx::bytes"), group = gs_mod(d, "bulk_group");
    if (cluster >= 0 && cta > cluster && global < 0 && mbarrier && !group) return BULK_REMOTE;
    int shared = cluster >= 0 ? cluster : cta;
    if (cluster >= 0 && cta >= 0) gs_die(d, "these state spaces do not go together");
    if (!reduce && shared >= 0 && global > shared && mbarrier && !group) return BULK_LOAD;
    if (global >= 0 && cta > global && group && !mbarrier) return BULK_STORE;
    gs_die(d, "needs a destination, a source and how it completes, in this order");
}

/* "[map, {x, y}]": the address of the map, then the coordinates. */
static void decode_map(gs_decoder *d, const char *text, const bulk_plan *p, gs_opnd *map, gs_opnd coord[5]) {
    char part[GS_ARG_TEXT];
    int n = 0;
    size_t at = 0;
    for (const char *s = text;; ++s) {
        if (*s && *s != ',') {
            if (!strchr("[]{}", *s) && !isspace((unsigned char)*s) && at + 3 < sizeof part) part[at++] = *s;
            continue;
        }
        part[at] = 0;
        if (n > p->rank || !at) gs_die(d, "'%s': needs a tensor map and %d coordinates", text, p->rank);
        if (n == 0) {
            char address[GS_ARG_TEXT + 4];
            snprintf(address, sizeof address, "[%s]", part);
            *map = gs_parse_address(d, address);
        } else {
            coord[n - 1] = gs_parse_operand(d, part, 4);
        }
        ++n;
        at = 0;
        if (!*s) break;
    }
    if (n != p->rank + 1) gs_die(d, "'%s': needs a tensor map and %d coordinates", text, p->rank);
}

/* Which reductions there are: PTX ISA, cp.reduce.async.bulk. */
static bool legal_reduction(bulk_kind kind, bulk_op op, gs_type t) {
    bool remote = kind == BULK_REMOTE;
    switch (op) {
    case BULK_ADD:
        if (t == T_F32 || t == T_F64 || t == T_F16 || t == T_BF16) return !remote;
        return t == T_U32 || t == T_S32 || t == T_U64;
    case BULK_MIN:
    case BULK_MAX:
        if (t == T_U64 || t == T_S64 || t == T_F16 || t == T_BF16) return !remote;
        return t == T_U32 || t == T_S32;
    case BULK_INC:
    case BULK_DEC: return t == T_U32;
    default: return t == T_B32 || (t == T_B64 && !remote);
    }
}

static void reduction(gs_decoder *d, bulk_plan *p) {
    int op = gs_mod_of(d, op_names, 8, -1);
    if (op < 0) gs_die(d, "no such reduction");
    p->op = (uint8_t)(BULK_ADD + op);
    if (p->rank) {
        if (d->n_type) gs_die(d, "the type is the tensor map's");
        if (op == 0) d->kernel->ordered = true; /* the map may say floating point */
        return;
    }
    if (d->n_type != 1 || !legal_reduction((bulk_kind)p->kind, (bulk_op)p->op, d->types[0]))
        gs_die(d, "no such reduction of this type");
    p->type = (uint8_t)d->types[0];
    bool half = p->type == T_F16 || p->type == T_BF16;
    if (half && op == 0 && !gs_mod(d, "noftz")) gs_die(d, "needs .noftz");
    /* sums of floats depend on the order of the blocks */
    if (op == 0 && (half || p->type == T_F32 || p->type == T_F64)) d->kernel->ordered = true;
}

static void decode_bulk(gs_decoder *d, gs_ins *i, bool reduce, bool tensor, bool prefetch) {
    bulk_plan *p = calloc(1, sizeof *p);
    if (!p) gs_die(d, "out of memory");
    i->extra = p;
    if (tensor) {
        p->rank = (uint8_t)(1 + gs_mod_of(d, dim_names, 5, -1));
        if (!p->rank) gs_die(d, "needs .1d to .5d");
        gs_mod(d, "tile"); /* the other modes are refused as unknown modifiers */
    }
    if (prefetch) {
        p->kind = BULK_PREFETCH;
        if (!gs_mod(d, "L2") || !gs_mod(d, "global")) gs_die(d, "needs .L2.global");
    } else {
        p->kind = (uint8_t)direction(d, reduce);
    }
    if (tensor && p->kind == BULK_REMOTE) gs_die(d, "no such tensor copy");
    if (reduce) reduction(d, p);
    p->multicast = p->kind == BULK_LOAD && gs_mod(d, "multicast::cluster");

    gs_opnd map = gs_no_operand, coord[5] = {gs_no_operand}, shared = gs_no_operand, size = gs_no_operand;
    gs_opnd mbarrier = gs_no_operand, ctas = gs_no_operand;
    bool global_first = p->kind == BULK_STORE || p->kind == BULK_PREFETCH;
    int arg = 0;
    for (int side = 0; side < (p->kind == BULK_PREFETCH ? 1 : 2); ++side) {
        if (arg >= d->n_arg) gs_die(d, "operands are missing");
        const char *text = d->arg[arg++].text;
        if ((side == 0) != global_first)
            shared = gs_parse_address(d, text);
        else if (tensor)
            decode_map(d, text, p, &map, coord);
        else
            map = gs_parse_address(d, text);
    }
    if (!tensor) {
        if (arg >= d->n_arg) gs_die(d, "operands are missing");
        size = gs_parse_operand(d, d->arg[arg++].text, 4);
    }
    if (p->kind == BULK_LOAD || p->kind == BULK_REMOTE) {
        if (arg >= d->n_arg) gs_die(d, "operands are missing");
        mbarrier = gs_parse_address(d, d->arg[arg++].text);
    }
    if (p->multicast) {
        if (arg >= d->n_arg) gs_die(d, "operands are missing");
        ctas = gs_parse_operand(d, d->arg[arg++].text, 2);
    }
    if (gs_mod(d, "L2::cache_hint")) ++arg; /* the policy */
    gs_need_args(d, arg);
    gs_add(d, shared);
    gs_add(d, map);
    gs_add(d, size);
    gs_add(d, mbarrier);
    gs_add(d, ctas);
    for (int k = 0; k < p->rank; ++k) gs_add(d, coord[k]);
}

static void decode_linear(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    decode_bulk(d, i, false, false, false);
}
static void decode_tensor(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    decode_bulk(d, i, false, true, false);
}
static void decode_reduce(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    decode_bulk(d, i, true, false, false);
}
static void decode_reduce_tensor(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    decode_bulk(d, i, true, true, false);
}
static void decode_prefetch(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    decode_bulk(d, i, false, false, true);
}
static void decode_prefetch_tensor(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    decode_bulk(d, i, false, true, true);
}
static void decode_commit(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    (void)i;
    gs_need_args(d, 0);
}
static void decode_wait(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    gs_need_args(d, 1);
    i->imm = gs_parse_immediate(d, d->arg[0].text);
    i->flag = gs_mod(d, "read");
}

GS_TABLE(bulk) = {
    {"cp.async.bulk.commit_group", T_NONE, decode_commit, gs_bulk_commit, GS_C_ASYNC, NULL},
    {"cp.async.bulk.wait_group", T_NONE, decode_wait, gs_bulk_wait, GS_C_ASYNC, NULL},
    {"cp.reduce.async.bulk.tensor", T_NONE, decode_reduce_tensor, gs_bulk_copy, GS_C_ASYNC, NULL},
    {"cp.reduce.async.bulk", T_NONE, decode_reduce, gs_bulk_copy, GS_C_ASYNC, NULL},
    {"cp.async.bulk.prefetch.tensor", T_NONE, decode_prefetch_tensor, gs_bulk_copy, GS_C_ASYNC, NULL},
    {"cp.async.bulk.prefetch", T_NONE, decode_prefetch, gs_bulk_copy, GS_C_ASYNC, NULL},
    {"cp.async.bulk.tensor", T_NONE, decode_tensor, gs_bulk_copy, GS_C_ASYNC, NULL},
    {"cp.async.bulk", T_NONE, decode_linear, gs_bulk_copy, GS_C_ASYNC, NULL},
    {NULL, T_NONE, NULL, NULL, 0, NULL},
};
