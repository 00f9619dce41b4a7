/* SPDX-License-Identifier: Apache-2.0 */
/* What lanes of a warp tell each other: shfl.sync, vote.sync, match.sync, redux.sync, activemask, elect.sync
 * (tests/gpusim/op_warp.c). Each with all 32 lanes and with the members PTX_LANES alone. */
#include "ptx_case.h"

static bool member(uint32_t lanes, int l) { return lanes >> l & 1; }
static int lowest(uint32_t lanes) {
    int l = 0;
    while (!member(lanes, l)) ++l;
    return l;
}
static bool odd(uint64_t v) { return v & 1; }

/* ---- shfl: a is the value, mode the kind, bits the width of a segment, sign: the distance is fixed (flags), else b.
 * d the value, d2 whether the source was in the segment. Of all lanes only: with some, d is a and d2 is 1. */
enum { UP, DOWN, BFLY, IDX };
static void ref_shfl(const ptx_case *t, uint32_t lanes, uint64_t in[32][4], uint64_t out[32][2]) {
    for (int l = 0; l < 32; ++l) {
        if (!member(lanes, l)) continue;
        if (lanes != 0xffffffffu) {
            out[l][0] = in[l][0], out[l][1] = 1;
            continue;
        }
        int n = t->sign ? t->flags : (int)(in[l][1] & 31), first = l / t->bits * t->bits, last = first + t->bits - 1,
            from;
        bool inside;
        switch (t->mode) {
        case UP:
            from = l - n;
            inside = from >= first;
            break;
        case DOWN:
            from = l + n;
            inside = from <= last;
            break;
        case BFLY: /* may reach lanes before the segment */
            from = l ^ n;
            inside = from <= last;
            break;
        default:
            from = first + n % t->bits;
            inside = true;
            break;
        }
        if (!inside) from = l;
        out[l][0] = in[from][0];
        out[l][1] = inside;
    }
}
/* From the member that b counts off. */
static void ref_shfl_member(const ptx_case *t, uint32_t lanes, uint64_t in[32][4], uint64_t out[32][2]) {
    int list[32], n = 0;
    (void)t;
    for (int l = 0; l < 32; ++l)
        if (member(lanes, l)) list[n++] = l;
    for (int k = 0; k < n; ++k) {
        out[list[k]][0] = in[list[in[list[k]][1] % (uint64_t)n]][0];
        out[list[k]][1] = 1;
    }
}

/* ---- vote on bit 0 of a. mode: 0 all, 1 any, 2 uni, 3 ballot; flags: of the negated predicate */
static void ref_vote(const ptx_case *t, uint32_t lanes, uint64_t in[32][4], uint64_t out[32][2]) {
    int n = 0, yes = 0;
    uint32_t mask = 0;
    for (int l = 0; l < 32; ++l)
        if (member(lanes, l)) {
            bool p = odd(in[l][0]) != (t->flags != 0);
            ++n, yes += p;
            mask |= (uint32_t)p << l;
        }
    uint64_t result = t->mode == 3 ? mask : t->mode == 0 ? yes == n : t->mode == 1 ? yes > 0 : yes == n || yes == 0;
    for (int l = 0; l < 32; ++l)
        if (member(lanes, l)) out[l][0] = result;
}
/* The same of a & b, which all lanes agree on now and then. */
static void ref_vote_masked(const ptx_case *t, uint32_t lanes, uint64_t in[32][4], uint64_t out[32][2]) {
    uint64_t masked[32][4];
    for (int l = 0; l < 32; ++l) masked[l][0] = t->flags ? in[l][0] | in[l][1] : in[l][0] & in[l][1];
    ptx_case plain = *t;
    plain.flags = 0;
    ref_vote(&plain, lanes, masked, out);
}

/* ---- match of a & 3 (or a & 1 & b: often the same in all lanes). mode: 0 any, 1 all; flags: values */
static void ref_match(const ptx_case *t, uint32_t lanes, uint64_t in[32][4], uint64_t out[32][2]) {
    for (int l = 0; l < 32; ++l) {
        if (!member(lanes, l)) continue;
        uint32_t same = 0;
        for (int k = 0; k < 32; ++k) {
            uint64_t a = in[l][0] & (uint64_t)t->flags, b = in[k][0] & (uint64_t)t->flags;
            if (t->bits == 64) a <<= 40, b <<= 40; /* the upper word counts too */
            if (member(lanes, k) && a == b) same |= 1u << k;
        }
        out[l][0] = t->mode ? (same == lanes ? lanes : 0) : same;
        out[l][1] = same == lanes;
    }
}

/* ---- redux: mode add, min, max, and, or, xor */
static void ref_redux(const ptx_case *t, uint32_t lanes, uint64_t in[32][4], uint64_t out[32][2]) {
    int64_t r = 0;
    bool any = false;
    for (int l = 0; l < 32; ++l) {
        if (!member(lanes, l)) continue;
        int64_t v = t->sign ? (int64_t)(int32_t)(uint32_t)in[l][0] : (int64_t)in[l][0];
        if (!any)
            r = v;
        else
            switch (t->mode) {
            case 0: r += v; break;
            case 1: r = v < r ? v : r; break;
            case 2: r = v > r ? v : r; break;
            case 3: r &= v; break;
            case 4: r |= v; break;
            default: r ^= v; break;
            }
        any = true;
    }
    for (int l = 0; l < 32; ++l)
        if (member(lanes, l)) out[l][0] = (uint64_t)r;
}

static void ref_activemask(const ptx_case *t, uint32_t lanes, uint64_t in[32][4], uint64_t out[32][2]) {
    (void)t, (void)in;
    for (int l = 0; l < 32; ++l)
        if (member(lanes, l)) out[l][0] = lanes;
}
static void ref_elect(const ptx_case *t, uint32_t lanes, uint64_t in[32][4], uint64_t out[32][2]) {
    (void)t, (void)in;
    for (int l = 0; l < 32; ++l)
        if (member(lanes, l)) out[l][0] = (uint64_t)lowest(lanes), out[l][1] = l == lowest(lanes);
}

/* ---- the cases */
#define P_OF_A "and.b32 t0, a, 1; setp.ne.u32 p, t0, 0; "
static void add_shfl(void) {
    static const char *const names[] = {"up", "down", "bfly", "idx"};
    for (int mode = 0; mode < 4; ++mode)
        for (int width = 1; width <= 32; width *= 2) {
            /* c: the segment's mask above its last (for .up: first) lane */
            int c = (32 - width) << 8 | (mode == UP ? 0 : 31);
            ptx_case t = {.shape = "rr=rr", .inputs = "ii", .warp_ref = ref_shfl, .mode = mode, .bits = width};
            const char *alone = "mov.b32 d, a; mov.u32 d2, 1; setp.ne.u32 q, members, 0xffffffff; @q bra x_done;";
            ptx_add(t, "%s shfl.sync.%s.b32 d|p, a, b, %d, members; selp.u32 d2, 1, 0, p; x_done:", alone, names[mode],
                    c);
            for (int n = 1; n < 32; n *= 3) {
                t.sign = true, t.flags = n;
                ptx_add(t, "%s shfl.sync.%s.b32 d|p, a, %d, %d, members; selp.u32 d2, 1, 0, p; x_done:", alone,
                        names[mode], n, c);
            }
        }
    ptx_case t = {.shape = "rr=rr", .inputs = "ii", .warp_ref = ref_shfl_member};
    ptx_add(t, "popc.b32 t0, members; rem.u32 t1, b, t0; add.u32 t1, t1, 1; fns.b32 t2, members, 0, t1; "
               "shfl.sync.idx.b32 d|p, a, t2, 31, members; selp.u32 d2, 1, 0, p;");
}
static void add_votes(void) {
    static const char *const names[] = {"all", "any", "uni"};
    for (int mode = 0; mode < 3; ++mode)
        for (int how = 0; how < 4; ++how) {
            ptx_case t = {.shape = "r=rr",
                          .inputs = "ii",
                          .warp_ref = how < 2 ? ref_vote : ref_vote_masked,
                          .mode = mode,
                          .flags = how & 1};
            const char *mix = how < 2 ? "mov.b32 t1, a;" : how == 2 ? "and.b32 t1, a, b;" : "or.b32 t1, a, b;";
            ptx_add(
                t,
                "%s and.b32 t0, t1, 1; setp.ne.u32 p, t0, 0; vote.sync.%s.pred q, %sp, members; selp.u32 d, 1, 0, q;",
                mix, names[mode], how == 1 ? "!" : "");
        }
    for (int negated = 0; negated < 2; ++negated) {
        ptx_case t = {.shape = "r=r", .inputs = "i", .warp_ref = ref_vote, .mode = 3, .flags = negated};
        ptx_add(t, P_OF_A "vote.sync.ballot.b32 d, %sp, members;", negated ? "!" : "");
    }
}
static void add_matches(void) {
    for (int values = 0; values <= 7; values = 2 * values + 1) {
        ptx_case t = {.shape = "r=r", .inputs = "i", .warp_ref = ref_match, .flags = values, .bits = 32};
        ptx_add(t, "and.b32 t0, a, %d; match.any.sync.b32 d, t0, members;", values);
        t.mode = 1, t.shape = "rr=r";
        ptx_add(t, "and.b32 t0, a, %d; match.all.sync.b32 d|p, t0, members; selp.u32 d2, 1, 0, p;", values);
        t.bits = 64, t.mode = 0, t.shape = "r=l";
        ptx_add(t, "and.b64 u0, a, %d; shl.b64 u0, u0, 40; match.any.sync.b64 d, u0, members;", values);
        t.mode = 1, t.shape = "rr=l";
        ptx_add(t, "and.b64 u0, a, %d; shl.b64 u0, u0, 40; match.all.sync.b64 d|p, u0, members; selp.u32 d2, 1, 0, p;",
                values);
    }
}
static void add_others(void) {
    static const char *const names[] = {"add", "min", "max", "and", "or", "xor"};
    ptx_case t = {.shape = "r=r", .inputs = "i", .warp_ref = ref_redux};
    for (int mode = 0; mode < 6; ++mode) {
        t.mode = mode, t.sign = false;
        ptx_add(t, "redux.sync.%s.%s d, a, members;", names[mode], mode < 3 ? "u32" : "b32");
        t.sign = true;
        if (mode < 3) ptx_add(t, "redux.sync.%s.s32 d, a, members;", names[mode]);
    }
    t = (ptx_case){.shape = "r=r", .inputs = "i", .warp_ref = ref_activemask};
    ptx_add(t, "activemask.b32 d;");
    t = (ptx_case){.shape = "rr=r", .inputs = "i", .warp_ref = ref_elect};
    ptx_add(t, "elect.sync d|p, members; selp.u32 d2, 1, 0, p;");
}

#ifdef RQ_TEST_SIM
/* Where a GPU would give anything, the simulator says so. */
static char seen[600];
static void keep_finding(void *user, const char *kind, const char *text) {
    (void)user;
    snprintf(seen, sizeof seen, "%s: %s", kind, text);
}
static void check_finding(void) {
    rq_ptx *m = rq_ptx_load(
        ".version 8.3\n.target sm_90\n.address_size 64\n.visible .entry k()\n{\n.reg .pred p;\n.reg .b32 l, d;\n"
        "mov.u32 l, %laneid;\nsetp.gt.u32 p, l, 15;\n@p bra x_end;\n"
        "shfl.sync.down.b32 d, l, 1, 31, 0x0000ffff;\nx_end:\nret;\n}\n");
    void *args[1] = {NULL};
    gs_findings_sink(keep_finding, NULL);
    EXPECT(!rq_ptx_try_launch(m, "k", 1, 32, 0, args)); /* lane 15 reads lane 16 */
    gs_findings_sink(NULL, NULL);
    EXPECT(gs_findings() == 1);
    EXPECT(strstr(seen, "lane 16") != NULL);
    EXPECT(strstr(seen, "shuffle") != NULL);
    gs_findings_reset();
    rq_ptx_unload(m);
}
#else
static void check_finding(void) {}
#endif

int main(void) {
    add_shfl();
    add_votes();
    add_matches();
    add_others();
    check_finding();
    return ptx_run_all(__FILE__);
}
