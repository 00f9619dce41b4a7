/* SPDX-License-Identifier: Apache-2.0 */
/* f16, f16x2, bf16 and bf16x2 arithmetic of PTX: every opcode of tests/gpusim/op_half.c; the same bits as exact.h, one
 * rounding each, and ex2 and tanh within the bounds of the PTX ISA. */
#include "ptx_case.h"

#include "exact.h"

static const struct type {
    const char *name;
    bool bf16;
    int parts, out;
    const char *one, *two, *three, *inputs;
} types[] = {{"f16", false, 1, OUT_F16, "h=h", "h=hh", "h=hhh", "hhh"},
             {"f16x2", false, 2, OUT_F16X2, "r=r", "r=rr", "r=rrr", "HHH"},
             {"bf16", true, 1, OUT_BF16, "h=h", "h=hh", "h=hhh", "bbb"},
             {"bf16x2", true, 2, OUT_BF16X2, "r=r", "r=rr", "r=rrr", "BBB"}};

/* sign: bf16; bits: parts; mode: the operation; flags: 1 .relu or .NaN, 2 .xorsign.abs */
static exact_format format_of(const ptx_case *t) { return t->sign ? exact_bf16 : exact_f16; }
static uint64_t flushed(const ptx_case *t, uint64_t v) {
    return t->ftz && exact_is_subnormal(format_of(t), v) ? v & 0x8000 : v;
}
static exact_number operand(const ptx_case *t, uint64_t v) { return exact_of_bits(format_of(t), flushed(t, v)); }
static void for_parts(const ptx_case *t, const uint64_t in[4], uint64_t out[2],
                      uint64_t (*one)(const ptx_case *, uint64_t, uint64_t, uint64_t)) {
    out[0] = 0;
    for (int k = 0; k < t->bits; ++k)
        out[0] |= one(t, in[0] >> (16 * k) & 0xffff, in[1] >> (16 * k) & 0xffff, in[2] >> (16 * k) & 0xffff)
                  << (16 * k);
}

enum { ADD, SUB, MUL, FMA };
static uint64_t arithmetic(const ptx_case *t, uint64_t a, uint64_t b, uint64_t c) {
    exact_format f = format_of(t);
    uint64_t v, one = t->sign ? 0x3f80 : 0x3c00;
    bool inexact;
    exact_number x = operand(t, a), y = operand(t, b), product = exact_product(x, y);
    switch (t->mode) {
    case SUB: y.negative = !y.negative; /* fall through */
    case ADD: v = exact_sum(x, y, f, EXACT_RN, &inexact); break;
    case MUL: v = exact_round_number(product, f, EXACT_RN, &inexact); break;
    default: v = exact_sum(product, operand(t, c), f, EXACT_RN, &inexact); break;
    }
    if (t->ftz && inexact && (v & 0x7fff) == 0x0400) ptx_open = true; /* see ptx_float.c */
    v = flushed(t, v);
    bool nan = exact_is_nan(f, v);
    if (t->flags && (v & 0x8000) && !nan) v = 0;
    if (t->sat) v = nan || (v & 0x8000) ? 0 : v > one ? one : v;
    return v;
}
static void ref_arithmetic(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    for_parts(t, in, out, arithmetic);
}

static uint64_t least_or_most(const ptx_case *t, uint64_t a, uint64_t b, uint64_t c) {
    (void)c;
    exact_format f = format_of(t);
    a = flushed(t, a), b = flushed(t, b);
    uint64_t sign = t->flags & 2 ? (a ^ b) & 0x8000 : 0;
    if (t->flags & 2) a &= 0x7fff, b &= 0x7fff;
    bool nan_a = exact_is_nan(f, a), nan_b = exact_is_nan(f, b);
    if ((nan_a && nan_b) || ((t->flags & 1) && (nan_a || nan_b))) return 0x7fff;
    if (nan_a || nan_b) return (nan_a ? b : a) | sign;
    int order = exact_order(exact_of_bits(f, a), exact_of_bits(f, b));
    if (order == 0) order = (int)(b >> 15) - (int)(a >> 15); /* -0 is less than +0 */
    return ((order < 0) == (t->mode == 0) ? a : b) | sign;
}
static void ref_min_max(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    for_parts(t, in, out, least_or_most);
}

static uint64_t with_sign(const ptx_case *t, uint64_t a, uint64_t b, uint64_t c) {
    (void)b, (void)c;
    a = flushed(t, a);
    return t->mode ? a ^ 0x8000 : a & 0x7fff;
}
static void ref_sign(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) { for_parts(t, in, out, with_sign); }

/* mode: 0 tanh, 1 ex2 */
static uint64_t special(const ptx_case *t, uint64_t a, uint64_t b, uint64_t c) {
    (void)b, (void)c;
    a = flushed(t, a);
    double x = t->sign ? (double)rq_bf16_value((uint16_t)a) : (double)rq_half_value((uint16_t)a);
    double v = t->mode ? exp2(x) : tanh(x);
    if (t->sign && t->mode && v < 0x1.02p-126 && v > 0) ptx_open = true; /* .ftz, at its edge */
    return t->sign ? rq_bf16_bits((float)v) : rq_half_bits((float)v);
}
static void ref_special(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) { for_parts(t, in, out, special); }

static const char *flag(bool on, const char *name) { return on ? name : ""; }
static void add_arithmetic(const struct type *y) {
    static const char *const names[] = {"add", "sub", "mul"};
    ptx_case t = {
        .shape = y->two, .inputs = y->inputs, .ref = ref_arithmetic, .out = y->out, .bits = y->parts, .sign = y->bf16};
    for (int k = 0; k < 3; ++k)
        for (int how = 0; how < (y->bf16 ? 1 : 4); ++how) {
            t.mode = k, t.ftz = how & 1, t.sat = how & 2;
            ptx_add(t, "%s%s%s.%s d, a, b;", names[k], flag(t.ftz, ".ftz"), flag(t.sat, ".sat"), y->name);
            ptx_add(t, "%s.rn%s%s.%s d, a, b;", names[k], flag(t.ftz, ".ftz"), flag(t.sat, ".sat"), y->name);
        }
    t.shape = y->three, t.mode = FMA;
    for (int relu = 0; relu < 2; ++relu)
        for (int how = 0; how < (y->bf16 ? 1 : 4); ++how) {
            t.ftz = how & 1, t.sat = how & 2, t.flags = relu;
            if (t.sat && relu) continue;
            ptx_add(t, "fma.rn%s%s%s.%s d, a, b, c;", flag(t.ftz, ".ftz"), flag(t.sat, ".sat"), flag(relu, ".relu"),
                    y->name);
        }
}
static void add_others(const struct type *y) {
    static const char *const min_max[] = {"min", "max"}, *const signs[] = {"abs", "neg"};
    ptx_case t = {.inputs = y->inputs, .out = y->out, .bits = y->parts, .sign = y->bf16};
    for (int k = 0; k < 2; ++k) {
        t.shape = y->two, t.ref = ref_min_max, t.mode = k;
        for (int how = 0; how < 8; ++how) {
            t.ftz = how & 4, t.flags = how & 3;
            if (t.ftz && y->bf16) continue;
            ptx_add(t, "%s%s%s%s.%s d, a, b;", min_max[k], flag(t.ftz, ".ftz"), flag(how & 1, ".NaN"),
                    flag(how & 2, ".xorsign.abs"), y->name);
        }
        t.shape = y->one, t.ref = ref_sign, t.flags = 0;
        for (int ftz = 0; ftz < (y->bf16 ? 1 : 2); ++ftz) {
            t.ftz = ftz;
            ptx_add(t, "%s%s.%s d, a;", signs[k], flag(ftz, ".ftz"), y->name);
        }
    }
    /* Bounds: the unit in the last place of the result, and what the PTX ISA adds to it: 2^-9.9 for ex2, 2^-10.987 for
     * tanh of f16; 2^-7 and 2^-8 of bf16. */
    t.ref = ref_special, t.mode = 0, t.ftz = false;
    t.relative = y->bf16 ? 0x1p-7 : 0x1p-10;
    t.absolute = y->bf16 ? 0x1p-8 : 0x1p-10;
    ptx_add(t, "tanh.approx.%s d, a;", y->name);
    t.mode = 1;
    t.relative = y->bf16 ? 0x1.8p-7 : 0x1.8p-10;
    t.absolute = y->bf16 ? 0 : 0x1p-24;
    t.ftz = y->bf16;
    ptx_add(t, "ex2.approx%s.%s d, a;", flag(y->bf16, ".ftz"), y->name);
}

int main(void) {
    for (size_t k = 0; k < sizeof types / sizeof *types; ++k) {
        add_arithmetic(&types[k]);
        add_others(&types[k]);
    }
    return ptx_run_all(__FILE__);
}
