/* SPDX-License-Identifier: Apache-2.0 */
/* Logic, shifts, prmt, selp and slct of PTX: every opcode of tests/gpusim/op_logic.c, expected bit by bit. */
#include "ptx_case.h"

static int bit(uint64_t v, int at) { return (int)(v >> at & 1); }

/* ---- and, or, xor, not, cnot, lop3: a table of truth, entry a * 4 + b * 2 + c */
static uint64_t looked_up(int bits, int table, uint64_t a, uint64_t b, uint64_t c) {
    uint64_t r = 0;
    for (int k = 0; k < bits; ++k) r |= (uint64_t)bit((uint64_t)table, 4 * bit(a, k) + 2 * bit(b, k) + bit(c, k)) << k;
    return r;
}
static void table_of_two(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    out[0] = looked_up(t->bits, t->mode, 0, in[0], in[1]);
}
static void table_of_three(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    out[0] = looked_up(32, t->mode, in[0], in[1], in[2]);
}
static void logical_not(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    (void)t;
    out[0] = in[0] == 0;
}
/* p: bit 0 of a, q: bit 0 of b */
static void table_of_predicates(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    out[0] = looked_up(1, t->mode, 0, in[0], in[1]);
}
/* lop3 with d|p and q: bit 0 of e. flags: 0 or, 1 and; out[0] is d, out[1] p */
static void table_and_predicate(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    bool nonzero, q = in[3] & 1;
    out[0] = looked_up(32, t->mode, in[0], in[1], in[2]);
    nonzero = out[0] != 0;
    out[1] = t->flags ? nonzero && q : nonzero || q;
}

/* ---- shifts: one place at a time */
static void shift_left(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    out[0] = in[0];
    for (uint64_t k = 0; k < in[1] && k < 64; ++k) out[0] *= 2;
    (void)t;
}
static void shift_right(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    int sign = t->sign ? bit(in[0], t->bits - 1) : 0;
    out[0] = in[0];
    for (uint64_t k = 0; k < in[1] && k < 64; ++k) out[0] = out[0] >> 1 | (uint64_t)sign << (t->bits - 1);
}
/* mode: 0 left, 1 right; flags: 1 clamp. Bit k of b:a */
static void funnel(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    int n = (int)(t->flags ? (in[2] > 32 ? 32 : in[2]) : in[2] % 32);
    out[0] = 0;
    for (int k = 0; k < 32; ++k) {
        int from = t->mode ? k + n : 32 + k - n;
        out[0] |= (uint64_t)(from >= 64 ? 0 : from < 32 ? bit(in[0], from) : bit(in[1], from - 32)) << k;
    }
}

/* ---- prmt. mode 0: by nibbles; 1 f4e, 2 b4e, 3 rc8, 4 ecl, 5 ecr, 6 rc16 */
static int byte_chosen(const ptx_case *t, uint64_t c, int at) {
    int n = (int)(c & 3);
    switch (t->mode) {
    case 1: return n + at;
    case 2: return (n - at) & 7;
    case 3: return n;
    case 4: return at > n ? at : n;
    case 5: return at < n ? at : n;
    default: return (n & 1) * 2 + (at & 1);
    }
}
static void permuted(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    uint8_t from[8];
    for (int k = 0; k < 8; ++k) from[k] = (uint8_t)((k < 4 ? in[0] : in[1]) >> (8 * (k & 3)));
    out[0] = 0;
    for (int at = 0; at < 4; ++at) {
        int nibble = (int)(in[2] >> (4 * at)) & 15;
        uint8_t v = t->mode ? from[byte_chosen(t, in[2], at)] : from[nibble & 7];
        if (!t->mode && nibble & 8) v = v >= 128 ? 255 : 0;
        out[0] |= (uint64_t)v << (8 * at);
    }
}

/* ---- selp: p is bit 0 of c. slct: by the sign of c */
static void select_by_predicate(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    (void)t;
    out[0] = in[in[2] & 1 ? 0 : 1];
}
static void select_by_sign(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    (void)t;
    out[0] = in[bit(in[2], 31) ? 1 : 0];
}
static void select_by_float(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    uint32_t c = (uint32_t)in[2], size = c & 0x7fffffffu;
    bool zero = size == 0 || (t->ftz && size < 0x00800000u), nan = size > 0x7f800000u;
    out[0] = in[!nan && (zero || !bit(c, 31)) ? 0 : 1];
}

/* ---- the cases */
static const char *const two[] = {"h=hh", "r=rr", "l=ll"}, *const one[] = {"h=h", "r=r", "l=l"};
static void add_logic(void) {
    static const struct {
        const char *name;
        int table;
    } ops[] = {{"and", 0x8}, {"or", 0xe}, {"xor", 0x6}};
    for (int w = 0; w < 3; ++w) {
        int bits = 16 << w;
        for (int k = 0; k < 3; ++k) {
            ptx_case t = {.shape = two[w], .inputs = "ii", .ref = table_of_two, .bits = bits, .mode = ops[k].table};
            ptx_add(t, "%s.b%d d, a, b;", ops[k].name, bits);
        }
        ptx_case t = {.shape = one[w], .inputs = "i", .ref = table_of_two, .bits = bits, .mode = 0x3};
        ptx_add(t, "not.b%d d, a;", bits);
        t.ref = logical_not;
        ptx_add(t, "cnot.b%d d, a;", bits);
    }
    const char *set = "and.b32 t0, a, 1; setp.ne.u32 p, t0, 0; and.b32 t1, b, 1; setp.ne.u32 q, t1, 0;";
    ptx_case t = {.shape = "r=rr", .inputs = "ii", .ref = table_of_predicates};
    for (int k = 0; k < 3; ++k) {
        t.mode = ops[k].table;
        ptx_add(t, "%s %s.pred s, p, q; selp.u32 d, 1, 0, s;", set, ops[k].name);
    }
    t.mode = 0x3;
    ptx_add(t, "%s not.pred s, p; selp.u32 d, 1, 0, s;", set);
    t.mode = 0x2; /* a negated source */
    ptx_add(t, "%s and.pred s, q, !p; selp.u32 d, 1, 0, s;", set);
}
static void add_lop3(void) {
    static const int tables[] = {0x80, 0xfe, 0x96, 0xe8, 0xca, 0x00, 0xff, 0x01, 0x02, 0x04, 0x08, 0x10,
                                 0x20, 0x40, 0x1b, 0x39, 0xd8, 0xea, 0x78, 0x3c, 0xf0, 0xcc, 0xaa, 0x6a};
    for (size_t k = 0; k < sizeof tables / sizeof *tables; ++k) {
        ptx_case t = {.shape = "r=rrr", .inputs = "iii", .ref = table_of_three, .mode = tables[k]};
        ptx_add(t, "lop3.b32 d, a, b, c, 0x%x;", tables[k]);
    }
    for (int is_and = 0; is_and < 2; ++is_and)
        for (int k = 0; k < 2; ++k) {
            ptx_case t = {.shape = "rr=rrrr", .inputs = "iiii", .ref = table_and_predicate, .flags = is_and};
            t.mode = k ? 0x96 : 0x80;
            ptx_add(t,
                    "and.b32 t0, e, 1; setp.ne.u32 q, t0, 0; lop3.%s.b32 d|p, a, b, c, 0x%x, q; selp.u32 d2, 1, 0, p;",
                    is_and ? "and" : "or", t.mode);
        }
}
static void add_shifts(void) {
    static const char *const shapes[] = {"h=hr", "r=rr", "l=lr"};
    static const char *const kinds[] = {"b", "u", "s"};
    for (int w = 0; w < 3; ++w) {
        ptx_case t = {.shape = shapes[w], .inputs = "is", .ref = shift_left, .bits = 16 << w};
        ptx_add(t, "shl.b%d d, a, b;", 16 << w);
        t.ref = shift_right;
        for (int k = 0; k < 3; ++k) {
            t.sign = k == 2;
            ptx_add(t, "shr.%s%d d, a, b;", kinds[k], 16 << w);
        }
    }
    for (int right = 0; right < 2; ++right)
        for (int clamped = 0; clamped < 2; ++clamped) {
            ptx_case t = {.shape = "r=rrr", .inputs = "iis", .ref = funnel, .mode = right, .flags = clamped};
            ptx_add(t, "shf.%s.%s.b32 d, a, b, c;", right ? "r" : "l", clamped ? "clamp" : "wrap");
        }
}
static void add_selection(void) {
    static const char *const modes[] = {"", ".f4e", ".b4e", ".rc8", ".ecl", ".ecr", ".rc16"};
    static const struct {
        const char *name;
        int width; /* 16 bits << this */
    } types[] = {{"b16", 0}, {"u16", 0}, {"s16", 0}, {"b32", 1}, {"u32", 1}, {"s32", 1},
                 {"f32", 1}, {"b64", 2}, {"u64", 2}, {"s64", 2}, {"f64", 2}};
    static const char *const three[] = {"h=hhr", "r=rrr", "l=llr"};
    for (int k = 0; k < 7; ++k) {
        ptx_case t = {.shape = "r=rrr", .inputs = "iii", .ref = permuted, .mode = k};
        ptx_add(t, "prmt.b32%s d, a, b, c;", modes[k]);
    }
    for (size_t k = 0; k < sizeof types / sizeof *types; ++k) {
        ptx_case t = {.shape = three[types[k].width], .inputs = "iii", .ref = select_by_predicate};
        ptx_add(t, "and.b32 t0, c, 1; setp.ne.u32 p, t0, 0; selp.%s d, a, b, p;", types[k].name);
        t.ref = select_by_sign;
        ptx_add(t, "slct.%s.s32 d, a, b, c;", types[k].name);
        t.ref = select_by_float, t.inputs = "iif";
        ptx_add(t, "slct.%s.f32 d, a, b, c;", types[k].name);
        t.ftz = true;
        ptx_add(t, "slct.ftz.%s.f32 d, a, b, c;", types[k].name);
    }
}

int main(void) {
    add_logic();
    add_lop3();
    add_shifts();
    add_selection();
    return ptx_run_all(__FILE__);
}
