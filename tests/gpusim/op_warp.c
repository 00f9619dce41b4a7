/* SPDX-License-Identifier: Apache-2.0 */
/* What the lanes of a warp tell each other (PTX ISA, shfl.sync, vote.sync, match.sync, redux.sync, activemask,
 * elect.sync). The forms without .sync are gone from the hardware (sm_70 and later) and refused. exec.c runs a
 * collective when all lanes of its member mask are there, once, with these lanes as the mask. */
#include "alu.h"

/* ------------------------------------------------------------------ shfl: operands d, p, a, b, c, members */
enum { SHFL_UP, SHFL_DOWN, SHFL_BFLY, SHFL_IDX };
/* The lane that each lane reads, and the lanes for which that is in their segment; the others read themselves. b, c: c has
 * the clamp in its low 5 bits, the mask of the segment in bits 8 to 12. */
static uint32_t shfl_sources(int source[32], const uint32_t *b, const uint32_t *c, uint8_t mode) {
    uint32_t in_range = 0;
    for (int l = 0; l < 32; ++l) {
        int n = (int)(b[l] & 31), clamp = (int)(c[l] & 31), segment = (int)(c[l] >> 8 & 31);
        int first = l & segment, last = first | (clamp & ~segment), from;
        from = mode == SHFL_UP ? l - n : mode == SHFL_DOWN ? l + n : mode == SHFL_BFLY ? l ^ n : first | (n & ~segment);
        bool inside = mode == SHFL_UP ? from >= last : from <= last; /* up: the clamp is 0, the segment's first lane */
        source[l] = inside ? from : l;
        in_range |= (uint32_t)inside << l;
    }
    return in_range;
}
static void shfl(gs_warp *w, const gs_ins *i, uint32_t m) {
    const uint32_t *A = (const uint32_t *)OPND(2);
    uint32_t r[32], outside = 0;
    int source[32];
    uint32_t in_range = shfl_sources(source, (const uint32_t *)OPND(3), (const uint32_t *)OPND(4), i->sub);
    for (int l = 0; l < 32; ++l) {
        r[l] = A[source[l]];
        outside |= (uint32_t) !(m >> source[l] & 1) << l;
    }
    for (outside &= m; outside; outside &= outside - 1) {
        int lane = __builtin_ctz(outside);
        gs_find(w, GS_FINDING, "shuffle", lane, -1, "reads lane %d, which is not among those that take part (0x%08x)",
                source[lane], m);
    }
    if (i->op[0].size) {
        uint32_t *d = (uint32_t *)OPND(0);
        LANES({ d[l] = r[l]; });
    }
    gs_pred_write(w, i, 1, in_range, m);
}

/* ------------------------------------------------------------------ vote: operands d, p, members */
enum { VOTE_ALL, VOTE_ANY, VOTE_UNI, VOTE_BALLOT };
static void vote(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t p = gs_pred_read(w, i, 1) & m;
    bool yes = i->sub == VOTE_ALL ? p == m : i->sub == VOTE_ANY ? p != 0 : p == m || p == 0;
    gs_pred_write(w, i, 0, yes ? UINT32_MAX : 0, m);
}
static void ballot(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t p = gs_pred_read(w, i, 1) & m, *d = (uint32_t *)OPND(0);
    LANES({ d[l] = p; });
}

/* ------------------------------------------------------------------ match: operands d, p, a, members */
static void match(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t r[32] = {0}, all = 0;
    int64_t v[32];
    alu_load(w, i, 2, 8u * gs_type_bytes[i->type], false, v);
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        for (uint32_t other = m; other; other &= other - 1)
            if (v[__builtin_ctz(other)] == v[lane]) r[lane] |= other & (0 - other);
        if (r[lane] == m) all |= 1u << lane;
    }
    if (i->sub) /* .all: the mask when all lanes agree, else 0 */
        for (int l = 0; l < 32; ++l) r[l] = all >> l & 1 ? m : 0;
    if (i->op[0].size) {
        uint32_t *d = (uint32_t *)OPND(0);
        LANES({ d[l] = r[l]; });
    }
    gs_pred_write(w, i, 1, all, m);
}

/* ------------------------------------------------------------------ redux: operands d, a, members */
enum { REDUX_ADD, REDUX_MIN, REDUX_MAX, REDUX_AND, REDUX_OR, REDUX_XOR };
static uint32_t reduced(uint8_t how, bool is_signed, uint32_t a, uint32_t b) {
    bool less = is_signed ? (int32_t)a < (int32_t)b : a < b;
    switch (how) {
    case REDUX_ADD: return a + b;
    case REDUX_MIN: return less ? a : b;
    case REDUX_MAX: return less ? b : a;
    case REDUX_AND: return a & b;
    case REDUX_OR: return a | b;
    default: return a ^ b;
    }
}
static void redux(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t *d = (uint32_t *)OPND(0), r = 0;
    const uint32_t *A = (const uint32_t *)OPND(1);
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        uint32_t v = A[__builtin_ctz(rest)];
        r = rest == m ? v : reduced(i->sub, i->type == T_S32, r, v);
    }
    LANES({ d[l] = r; });
}

/* ------------------------------------------------------------------ activemask, elect */
static void activemask(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t *d = (uint32_t *)OPND(0);
    LANES({ d[l] = m; });
}
/* operands d, p, members: the lowest lane is elected */
static void elect(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t lane = (uint32_t)__builtin_ctz(m);
    if (i->op[0].size) {
        uint32_t *d = (uint32_t *)OPND(0);
        LANES({ d[l] = lane; });
    }
    gs_pred_write(w, i, 1, 1u << lane, m);
}

/* ------------------------------------------------------------------ decoding */
static void collective(gs_decoder *d, gs_ins *i, int members_arg) {
    alu_arg(d, members_arg, 4);
    i->flow = FLOW_COLLECTIVE;
    i->members = (int8_t)(d->n_op - 1);
}
/* d, or d|p; how many operands that are */
static int decode_pair(gs_decoder *d) {
    bool two = d->n_arg > 1 && d->arg[1].after_bar;
    alu_dest(d, 0, 4);
    alu_pred(d, two ? 1 : -1);
    return two ? 2 : 1;
}
static void decode_shfl(gs_decoder *d, gs_ins *i, const gs_row *row) {
    static const char *const modes[] = {"up", "down", "bfly", "idx"};
    (void)row;
    alu_types(d, 1);
    int mode = gs_mod_of(d, modes, 4, -1);
    if (mode < 0) gs_die(d, "no mode");
    i->sub = (uint8_t)mode;
    int a = decode_pair(d);
    gs_need_args(d, a + 4);
    for (int k = 0; k < 3; ++k) alu_arg(d, a + k, 4);
    collective(d, i, a + 3);
}
static void decode_vote(gs_decoder *d, gs_ins *i, const gs_row *row) {
    static const char *const modes[] = {"all", "any", "uni"};
    alu_types(d, 1);
    gs_need_args(d, 3);
    if (row->type == T_PRED) {
        int mode = gs_mod_of(d, modes, 3, -1);
        if (mode < 0) gs_die(d, "no mode");
        i->sub = (uint8_t)mode;
        alu_pred(d, 0);
    } else
        alu_result(d, 4);
    alu_pred(d, 1);
    if (!d->op[1].size) gs_die(d, "the predicate is missing");
    collective(d, i, 2);
}
static void decode_match(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    alu_types(d, 1);
    i->sub = gs_mod(d, "all");
    if (!i->sub && !gs_mod(d, "any")) gs_die(d, "no mode");
    int a = decode_pair(d);
    if (a == 2 && !i->sub) gs_die(d, "d|p is of .all");
    gs_need_args(d, a + 2);
    alu_arg(d, a, gs_type_bytes[i->type]);
    collective(d, i, a + 1);
}
static void decode_redux(gs_decoder *d, gs_ins *i, const gs_row *row) {
    static const char *const names[] = {"add", "min", "max", "and", "or", "xor"};
    alu_types(d, 1);
    gs_need_args(d, 3);
    int how = gs_mod_of(d, names, 6, -1);
    if (how < 0 || (row->type == T_B32) != (how >= REDUX_AND)) gs_die(d, "no operation of this type");
    i->sub = (uint8_t)how;
    alu_result(d, 4);
    alu_arg(d, 1, 4);
    collective(d, i, 2);
}
static void decode_activemask(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    (void)i;
    alu_types(d, 1);
    gs_need_args(d, 1);
    alu_result(d, 4);
}
static void decode_elect(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    alu_types(d, 0);
    gs_need_args(d, 3);
    if (decode_pair(d) != 2 || !d->op[1].size) gs_die(d, "d|p is required");
    collective(d, i, 2);
}

// clang-format off
GS_TABLE(warp) = {
    {"shfl.sync", T_B32, decode_shfl, shfl, GS_C_SHUFFLE, NULL},
    {"vote.sync", T_PRED, decode_vote, vote, GS_C_VOTE, NULL},
    {"vote.sync.ballot", T_B32, decode_vote, ballot, GS_C_VOTE, NULL},
    {"match.sync", T_B32, decode_match, match, GS_C_VOTE, NULL},
    {"match.sync", T_B64, decode_match, match, GS_C_VOTE, NULL},
    {"redux.sync", T_U32, decode_redux, redux, GS_C_SHUFFLE, NULL},
    {"redux.sync", T_S32, decode_redux, redux, GS_C_SHUFFLE, NULL},
    {"redux.sync", T_B32, decode_redux, redux, GS_C_SHUFFLE, NULL},
    {"activemask", T_B32, decode_activemask, activemask, GS_C_VOTE, NULL},
    {"elect.sync", T_NONE, decode_elect, elect, GS_C_VOTE, NULL},
    {0}
};
// clang-format on
