/* SPDX-License-Identifier: Apache-2.0 */
/* Integer arithmetic of PTX: every opcode of tests/gpusim/op_int.c in every type. What is expected is worked out in 128
 * bits, or bit by bit. */
#include "ptx_case.h"

typedef __int128 wide; /* extended over every result here */
typedef unsigned __int128 uwide;

/* Operand v as a number of the case's type, or of another one. */
static wide number_of(uint64_t v, int bits, bool sign) {
    uint64_t low = bits == 64 ? v : v & ((1ull << bits) - 1);
    if (sign && (low >> (bits - 1) & 1)) return (wide)low - ((wide)1 << bits);
    return (wide)low;
}
static wide num(const ptx_case *t, uint64_t v) { return number_of(v, t->bits, t->sign); }
static wide low_half(wide v) { return v; } /* the harness cuts to the result's size */
static wide high_half(const ptx_case *t, wide v) {
    if (t->bits == 64 && !t->sign) return (wide)((uwide)v >> 64);
    return v >> t->bits;
}
static wide clamp(wide v, int bits, bool sign) {
    wide most = ((wide)1 << (bits - sign)) - 1, least = sign ? -most - 1 : 0;
    return v > most ? most : v < least ? least : v;
}

#define REF(name, E)                                                                                                   \
    static void name(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {                                       \
        wide a = num(t, in[0]), b = num(t, in[1]), c = num(t, in[2]);                                                  \
        (void)a, (void)b, (void)c;                                                                                     \
        out[0] = (uint64_t)(E);                                                                                        \
    }
REF(sum, a + b)
REF(difference, a - b)
REF(sum_clamped, clamp(a + b, t->bits, t->sign))
REF(difference_clamped, clamp(a - b, t->bits, t->sign))
REF(product_low, low_half((wide)((uwide)a *(uwide)b)))
REF(product_high, high_half(t, (wide)((uwide)a *(uwide)b)))
REF(mad_low, (wide)((uwide)a *(uwide)b) + c)
REF(mad_high, high_half(t, (wide)((uwide)a *(uwide)b)) + c)
REF(mad_high_clamped, clamp(((a * b) >> 32) + c, 32, true))
REF(absolute, a < 0 ? -a : a)
REF(negative, -a)
REF(least, a < b ? a : b)
REF(most, a > b ? a : b)
REF(least_relu, (a < b ? a : b) < 0 ? 0 : a < b ? a : b)
REF(most_relu, (a > b ? a : b) < 0 ? 0 : a > b ? a : b)
REF(absolute_difference, (a > b ? a - b : b - a) + c)
REF(quotient, a / b)
REF(rest, a - (a / b) * b)

/* mad.wide: c has twice the bits */
static void mad_wide(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    out[0] = (uint64_t)(num(t, in[0]) * num(t, in[1])) + in[2];
}

/* 24-bit factors */
static void product24(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    wide p = number_of(in[0], 24, t->sign) * number_of(in[1], 24, t->sign);
    wide part = t->mode ? p >> 16 : p, c = t->flags ? number_of(in[2], 32, t->sign) : 0;
    out[0] = (uint64_t)(t->sat ? clamp(number_of((uint64_t)part, 32, true) + c, 32, true) : part + c);
}

/* Packed halves: the case's bits are 16. */
static void packed(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    out[0] = 0;
    for (int part = 0; part < 2; ++part) {
        wide a = number_of(in[0] >> (16 * part), 16, t->sign), b = number_of(in[1] >> (16 * part), 16, t->sign), r;
        switch (t->mode) {
        case 0: r = a + b; break;
        case 1: r = a < b ? a : b; break;
        default: r = a > b ? a : b; break;
        }
        if (t->flags && r < 0) r = 0;
        out[0] |= ((uint64_t)r & 0xffff) << (16 * part);
    }
}

/* ---- carries: a test is a chain over two words, whose upper word shows the carry. mode: which chain */
enum { CHAIN_ADD, CHAIN_SUB, CHAIN_MAD_LO, CHAIN_MAD_HI };
static void chain(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    int bits = t->bits;
    uwide one = (uwide)1 << bits; /* 2^64 needs 65 bits: there is room */
    uwide a = (uwide)number_of(in[0], bits, false), b = (uwide)number_of(in[1], bits, false);
    uwide c = (uwide)number_of(in[2], bits, false), carry, low, high;
    wide p = number_of(in[0], bits, t->sign) * number_of(in[1], bits, t->sign);
    if (bits == 64 && !t->sign) p = (wide)(a * b);
    uwide part = t->mode == CHAIN_MAD_HI ? (uwide)high_half(t, p) : (uwide)p;
    part &= one - 1;
    switch (t->mode) {
    case CHAIN_ADD: /* add.cc d, a, b; addc.cc d2, b, c; addc d2 += e */
        low = a + b;
        high = b + c + (low >= one);
        carry = high >= one;
        break;
    case CHAIN_SUB:
        low = a - b;
        high = b - c - (a < b);
        carry = b < c + (a < b);
        break;
    default: /* mad.cc d, a, b, c; madc.cc d2, a, b, c */
        low = part + c;
        high = part + c + (low >= one);
        carry = high >= one;
        break;
    }
    out[0] = (uint64_t)low;
    out[1] = (uint64_t)(t->mode == CHAIN_SUB ? high - carry : high + carry);
}

/* ---- bits, one at a time */
static int bit(uint64_t v, int at) { return (int)(v >> at & 1); }
static void population(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    out[0] = 0;
    for (int k = 0; k < t->bits; ++k) out[0] += (uint64_t)bit(in[0], k);
}
static void leading_zeros(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    out[0] = 0;
    while ((int)out[0] < t->bits && !bit(in[0], t->bits - 1 - (int)out[0])) out[0]++;
}
static void find(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    int sign = t->sign ? bit(in[0], t->bits - 1) : 0;
    out[0] = 0xffffffff;
    for (int k = 0; k < t->bits; ++k)
        if (bit(in[0], k) != sign) out[0] = (uint64_t)(t->mode ? t->bits - 1 - k : k);
}
static void reverse(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    out[0] = 0;
    for (int k = 0; k < t->bits; ++k) out[0] |= (uint64_t)bit(in[0], t->bits - 1 - k) << k;
}
static void extract(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    int pos = (int)(in[1] & 255), len = (int)(in[2] & 255), top = t->bits - 1;
    int sign = !t->sign || len == 0 ? 0 : bit(in[0], pos + len - 1 < top ? pos + len - 1 : top);
    out[0] = 0;
    for (int k = 0; k < t->bits; ++k) out[0] |= (uint64_t)(k < len && pos + k <= top ? bit(in[0], pos + k) : sign) << k;
}
static void insert(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    int pos = (int)(in[2] & 255), len = (int)(in[3] & 255);
    out[0] = in[1];
    for (int k = 0; k < len && pos + k < t->bits; ++k)
        out[0] = (out[0] & ~(1ull << (pos + k))) | (uint64_t)bit(in[0], k) << (pos + k);
}
static void nth_set(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    (void)t;
    int base = (int)(in[1] & 31), offset = (int)(int32_t)in[2] % 12, found = 0;
    out[0] = 0xffffffff;
    if (offset == 0 && bit(in[0], base)) out[0] = (uint64_t)base;
    for (int at = base; offset && at >= 0 && at<32; at += offset> 0 ? 1 : -1)
        if (bit(in[0], at) && ++found == (offset > 0 ? offset : -offset)) {
            out[0] = (uint64_t)at;
            break;
        }
}
static void extended(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    uint64_t n = in[1];
    out[0] = 0;
    if (t->mode && n >= 32) /* .clamp */
        out[0] = in[0];
    else if (n & 31)
        out[0] = (uint64_t)number_of(in[0], (int)(n & 31), t->sign);
}
static void mask_of_bits(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    uint64_t from = in[0], n = in[1];
    if (!t->mode) from &= 31, n &= 31;
    out[0] = 0;
    for (uint64_t k = 0; k < 32; ++k)
        if (k >= from && k - from < n) out[0] |= 1ull << k;
}

/* ---- dot products, absolute differences. mode: 4 dp4a, 2 dp2a.lo, 3 dp2a.hi; sign: of a, flags: of b */
static void dot(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    wide r = (wide)in[2];
    int n = t->mode == 4 ? 4 : 2, a_bits = t->mode == 4 ? 8 : 16;
    for (int k = 0; k < n; ++k) {
        int at = t->mode == 3 ? k + 2 : k;
        r += number_of(in[0] >> (a_bits * k), a_bits, t->sign) * number_of(in[1] >> (8 * at), 8, t->flags);
    }
    out[0] = (uint64_t)r;
}
static void differences(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    uint64_t total = in[2];
    out[0] = 0;
    for (int at = 0; at < 32; at += t->bits) {
        wide v = number_of(in[0] >> at, t->bits, t->sign) - number_of(in[1] >> at, t->bits, t->sign);
        if (v < 0) v = -v;
        if (t->sat) v = clamp(v, t->bits, t->sign);
        out[0] |= ((uint64_t)v & ((1ull << t->bits) - 1)) << at;
        total += (uint64_t)v;
    }
    if (t->mode) out[0] = total;
}

/* ---- the cases */
static const struct type {
    const char *name;
    int bits;
    bool sign;
    const char *one, *two, *three, *wide_two, *wide_three; /* shapes */
} types[] = {{"u16", 16, false, "h=h", "h=hh", "h=hhh", "r=hh", "r=hhr"},
             {"s16", 16, true, "h=h", "h=hh", "h=hhh", "r=hh", "r=hhr"},
             {"u32", 32, false, "r=r", "r=rr", "r=rrr", "l=rr", "l=rrl"},
             {"s32", 32, true, "r=r", "r=rr", "r=rrr", "l=rr", "l=rrl"},
             {"u64", 64, false, "l=l", "l=ll", "l=lll", NULL, NULL},
             {"s64", 64, true, "l=l", "l=ll", "l=lll", NULL, NULL}};

static ptx_case with(const struct type *y, ptx_ref ref, const char *form, const char *inputs) {
    return (ptx_case){.shape = form, .inputs = inputs, .ref = ref, .bits = y->bits, .sign = y->sign};
}
static void add_for(const struct type *y) {
    const char *two = y->two, *three = y->three;
    ptx_add(with(y, sum, two, "ii"), "add.%s d, a, b;", y->name);
    ptx_add(with(y, difference, two, "ii"), "sub.%s d, a, b;", y->name);
    ptx_add(with(y, product_low, two, "ii"), "mul.lo.%s d, a, b;", y->name);
    ptx_add(with(y, product_high, two, "ii"), "mul.hi.%s d, a, b;", y->name);
    ptx_add(with(y, mad_low, three, "iii"), "mad.lo.%s d, a, b, c;", y->name);
    ptx_add(with(y, mad_high, three, "iii"), "mad.hi.%s d, a, b, c;", y->name);
    ptx_add(with(y, absolute_difference, three, "iii"), "sad.%s d, a, b, c;", y->name);
    ptx_add(with(y, least, two, "ii"), "min.%s d, a, b;", y->name);
    ptx_add(with(y, most, two, "ii"), "max.%s d, a, b;", y->name);
    ptx_add(with(y, quotient, two, "in"), "div.%s d, a, b;", y->name);
    ptx_add(with(y, rest, two, "in"), "rem.%s d, a, b;", y->name);
    if (y->sign) {
        ptx_add(with(y, absolute, y->one, "i"), "abs.%s d, a;", y->name);
        ptx_add(with(y, negative, y->one, "i"), "neg.%s d, a;", y->name);
    }
    if (y->wide_two) {
        ptx_add(with(y, product_low, y->wide_two, "ii"), "mul.wide.%s d, a, b;", y->name);
        ptx_add(with(y, mad_wide, y->wide_three, "iii"), "mad.wide.%s d, a, b, c;", y->name);
    }
}
static void add_carries(const struct type *y) {
    const char *two = y->bits == 32 ? "rr=rrr" : "ll=lll", *n = y->name;
    ptx_case t = {.shape = two, .inputs = "iii", .ref = chain, .bits = y->bits, .sign = y->sign, .mode = CHAIN_ADD};
    ptx_add(t, "add.cc.%s d, a, b; addc.cc.%s d2, b, c; addc.%s d2, d2, 0;", n, n, n);
    t.mode = CHAIN_SUB;
    ptx_add(t, "sub.cc.%s d, a, b; subc.cc.%s d2, b, c; subc.%s d2, d2, 0;", n, n, n);
    t.mode = CHAIN_MAD_LO;
    ptx_add(t, "mad.lo.cc.%s d, a, b, c; madc.lo.cc.%s d2, a, b, c; addc.%s d2, d2, 0;", n, n, n);
    ptx_add(t, "mad.lo.cc.%s d, a, b, c; madc.lo.cc.%s d2, a, b, c; madc.lo.%s d2, 0, 0, d2;", n, n, n);
    t.mode = CHAIN_MAD_HI;
    ptx_add(t, "mad.hi.cc.%s d, a, b, c; madc.hi.cc.%s d2, a, b, c; addc.%s d2, d2, 0;", n, n, n);
    ptx_add(t, "mad.hi.cc.%s d, a, b, c; madc.hi.cc.%s d2, a, b, c; madc.hi.%s d2, 0, 0, d2;", n, n, n);
}
static void add_bits(const struct type *y) {
    const char *same = y->bits == 32 ? "r=r" : "l=l", *count = y->bits == 32 ? "r=r" : "r=l";
    ptx_add(with(y, find, count, "i"), "bfind.%s d, a;", y->name);
    ptx_case t = with(y, find, count, "i");
    t.mode = 1;
    ptx_add(t, "bfind.shiftamt.%s d, a;", y->name);
    ptx_add(with(y, extract, y->bits == 32 ? "r=rrr" : "l=lrr", "iss"), "bfe.%s d, a, b, c;", y->name);
    if (y->sign) return; /* the rest is untyped */
    ptx_add(with(y, population, count, "i"), "popc.b%d d, a;", y->bits);
    ptx_add(with(y, leading_zeros, count, "i"), "clz.b%d d, a;", y->bits);
    ptx_add(with(y, reverse, same, "i"), "brev.b%d d, a;", y->bits);
    ptx_add(with(y, insert, y->bits == 32 ? "r=rrrr" : "l=llrr", "iiss"), "bfi.b%d d, a, b, c, e;", y->bits);
}
static void add_24(const struct type *y) {
    static const char *const parts[] = {"lo", "hi"};
    for (int k = 0; k < 2; ++k) {
        ptx_case t = {.shape = "r=rr", .inputs = "ii", .ref = product24, .sign = y->sign, .mode = k};
        ptx_add(t, "mul24.%s.%s d, a, b;", parts[k], y->name);
        t.shape = "r=rrr", t.inputs = "iii", t.flags = 1;
        ptx_add(t, "mad24.%s.%s d, a, b, c;", parts[k], y->name);
        t.sat = true;
        if (k && y->sign) ptx_add(t, "mad24.hi.sat.s32 d, a, b, c;");
    }
}
static void add_packed(bool sign) {
    static const char *const names[] = {"add", "min", "max"};
    const char *type = sign ? "s16x2" : "u16x2";
    for (int k = 0; k < 3; ++k) {
        ptx_case t = {.shape = "r=rr", .inputs = "ii", .ref = packed, .bits = 16, .sign = sign, .mode = k};
        ptx_add(t, "%s.%s d, a, b;", names[k], type);
        t.flags = 1;
        if (k && sign) ptx_add(t, "%s.s16x2.relu d, a, b;", names[k]);
    }
}
static void add_dots(void) {
    static const char *const names[] = {"u32", "s32"};
    for (int sa = 0; sa < 2; ++sa)
        for (int sb = 0; sb < 2; ++sb) {
            ptx_case t = {.shape = "r=rrr", .inputs = "iii", .ref = dot, .sign = sa, .flags = sb, .mode = 4};
            ptx_add(t, "dp4a.%s.%s d, a, b, c;", names[sa], names[sb]);
            t.mode = 2;
            ptx_add(t, "dp2a.lo.%s.%s d, a, b, c;", names[sa], names[sb]);
            t.mode = 3;
            ptx_add(t, "dp2a.hi.%s.%s d, a, b, c;", names[sa], names[sb]);
        }
    for (int sign = 0; sign < 2; ++sign)
        for (int parts = 2; parts <= 4; parts += 2) {
            const char *n = names[sign];
            ptx_case t = {.shape = "r=rrr", .inputs = "iii", .ref = differences, .bits = 32 / parts, .sign = sign};
            ptx_add(t, "vabsdiff%d.%s.%s.%s d, a, b, c;", parts, n, n, n);
            t.sat = true;
            ptx_add(t, "vabsdiff%d.%s.%s.%s.sat d, a, b, c;", parts, n, n, n);
            t.sat = false, t.mode = 1;
            ptx_add(t, "vabsdiff%d.%s.%s.%s.add d, a, b, c;", parts, n, n, n);
        }
}

int main(void) {
    const struct type *u32 = &types[2], *s32 = &types[3];
    for (size_t k = 0; k < sizeof types / sizeof *types; ++k) {
        add_for(&types[k]);
        if (types[k].bits < 32) continue;
        add_carries(&types[k]);
        add_bits(&types[k]);
    }
    ptx_add(with(s32, sum_clamped, "r=rr", "ii"), "add.sat.s32 d, a, b;");
    ptx_add(with(s32, difference_clamped, "r=rr", "ii"), "sub.sat.s32 d, a, b;");
    ptx_add(with(s32, mad_high_clamped, "r=rrr", "iii"), "mad.hi.sat.s32 d, a, b, c;");
    ptx_add(with(s32, least_relu, "r=rr", "ii"), "min.s32.relu d, a, b;");
    ptx_add(with(s32, most_relu, "r=rr", "ii"), "max.s32.relu d, a, b;");
    add_24(u32);
    add_24(s32);
    add_packed(false);
    add_packed(true);
    /* base within 0..31, a few bits on */
    ptx_add(with(u32, nth_set, "r=rrr", "iii"), "and.b32 t0, b, 31; rem.s32 t1, c, 12; fns.b32 d, a, t0, t1;");
    for (int clamped = 0; clamped < 2; ++clamped) {
        const char *mode = clamped ? "clamp" : "wrap";
        ptx_case t = {.shape = "r=rr", .inputs = "is", .ref = extended, .mode = clamped};
        ptx_add(t, "szext.%s.u32 d, a, b;", mode);
        t.sign = true;
        ptx_add(t, "szext.%s.s32 d, a, b;", mode);
        t.inputs = "ss", t.ref = mask_of_bits;
        ptx_add(t, "bmsk.%s.b32 d, a, b;", mode);
    }
    add_dots();
    return ptx_run_all(__FILE__);
}
