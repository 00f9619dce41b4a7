/* SPDX-License-Identifier: Apache-2.0 */
/* f32 and f64 arithmetic of PTX: every opcode of tests/gpusim/op_float.c. Correctly rounded results must be the same
 * bits as those of exact.h; .approx and .full stay within the bounds that the PTX ISA states (subnormals, where it
 * leaves them open, are not looked at). */
#include "ptx_case.h"

#include "exact.h"

static exact_format format_of(const ptx_case *t) { return t->bits == 64 ? exact_f64 : exact_f32; }
static uint64_t flushed(exact_format f, uint64_t v, bool ftz) {
    return ftz && exact_is_subnormal(f, v) ? v & exact_sign(f) : v;
}
static exact_number operand(const ptx_case *t, uint64_t v) {
    return exact_of_bits(format_of(t), flushed(format_of(t), v, t->ftz));
}
/* .ftz and .sat of a rounded result. Whether hardware takes a result that only rounding lifts to the smallest normal
 * number for a subnormal one is not said: open. */
static uint64_t finished(const ptx_case *t, uint64_t v, bool inexact) {
    exact_format f = format_of(t);
    uint64_t one = (uint64_t)f.most << (f.precision - 1), size = v & (exact_sign(f) - 1);
    if (t->ftz && inexact && size == 1ull << (f.precision - 1)) ptx_open = true;
    v = flushed(f, v, t->ftz);
    if (t->sat) v = (v & exact_sign(f)) || exact_is_nan(f, v) ? 0 : v > one ? one : v;
    return v;
}
static void ref_add(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    bool inexact;
    uint64_t v = exact_sum(operand(t, in[0]), operand(t, in[1]), format_of(t), t->mode, &inexact);
    out[0] = finished(t, v, inexact);
}
static void ref_sub(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    uint64_t negated[4] = {in[0], in[1] ^ exact_sign(format_of(t)), 0, 0};
    ref_add(t, negated, out);
}
static void ref_mul(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    bool inexact;
    exact_number p = exact_product(operand(t, in[0]), operand(t, in[1]));
    uint64_t v = exact_round_number(p, format_of(t), t->mode, &inexact);
    out[0] = finished(t, v, inexact);
}
static void ref_fma(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    bool inexact;
    exact_number p = exact_product(operand(t, in[0]), operand(t, in[1]));
    uint64_t v = exact_sum(p, operand(t, in[2]), format_of(t), t->mode, &inexact);
    out[0] = finished(t, v, inexact);
}
static void ref_div(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    bool inexact;
    exact_number q = exact_quotient(operand(t, in[0]), operand(t, in[1]));
    uint64_t v = exact_round_number(q, format_of(t), t->mode, &inexact);
    out[0] = finished(t, v, inexact);
}
static void ref_rcp(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    uint64_t one_over[4] = {(uint64_t)format_of(t).most << (format_of(t).precision - 1), in[0], 0, 0};
    ref_div(t, one_over, out);
}
static void ref_sqrt(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    bool inexact;
    uint64_t v = exact_round_number(exact_root(operand(t, in[0])), format_of(t), t->mode, &inexact);
    out[0] = finished(t, v, inexact);
}

/* ---- min, max. mode: 1 max; flags: 1 .NaN, 2 .xorsign.abs */
static void ref_min_max(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    exact_format f = format_of(t);
    uint64_t a = flushed(f, in[0], t->ftz), b = flushed(f, in[1], t->ftz), sign = (a ^ b) & exact_sign(f);
    if (t->flags & 2) a &= exact_sign(f) - 1, b &= exact_sign(f) - 1;
    bool nan_a = exact_is_nan(f, a), nan_b = exact_is_nan(f, b);
    if ((nan_a && nan_b) || ((t->flags & 1) && (nan_a || nan_b))) {
        out[0] = exact_nan(f);
        return;
    }
    if (nan_a || nan_b) {
        out[0] = nan_a ? b : a;
    } else {
        int order = exact_order(exact_of_bits(f, a), exact_of_bits(f, b));
        if (order == 0 && a != b) order = a & exact_sign(f) ? -1 : 1; /* -0 is less than +0 */
        out[0] = (order < 0) == (t->mode == 0) ? a : b;
    }
    if (t->flags & 2) out[0] |= sign;
}

/* ---- signs and classes */
static void ref_abs(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    out[0] = flushed(format_of(t), in[0], t->ftz) & (exact_sign(format_of(t)) - 1);
}
static void ref_neg(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    out[0] = flushed(format_of(t), in[0], t->ftz) ^ exact_sign(format_of(t));
}
static void ref_copysign(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    uint64_t sign = exact_sign(format_of(t));
    out[0] = (in[0] & sign) | (in[1] & (sign - 1));
}
static void ref_testp(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    exact_number x = exact_of_bits(format_of(t), in[0]);
    bool subnormal = exact_is_subnormal(format_of(t), in[0]);
    switch (t->mode) {
    case 0: out[0] = x.is == EXACT_ZERO || x.is == EXACT_FINITE; break;
    case 1: out[0] = x.is == EXACT_INFINITE; break;
    case 2: out[0] = x.is != EXACT_NAN; break;
    case 3: out[0] = x.is == EXACT_NAN; break;
    case 4: out[0] = x.is == EXACT_ZERO || (x.is == EXACT_FINITE && !subnormal); break;
    default: out[0] = subnormal; break;
    }
}

/* ---- approximations, in double. mode: which */
enum { A_DIV, A_DIV_FULL, A_RCP, A_SQRT, A_RSQRT, A_SIN, A_COS, A_LG2, A_EX2, A_TANH };
static double approximated(int which, double a, double b) {
    switch (which) {
    case A_DIV:
    case A_DIV_FULL: return a / b;
    case A_RCP: return 1 / a;
    case A_SQRT: return sqrt(a);
    case A_RSQRT: return 1 / sqrt(a);
    case A_SIN: return sin(a);
    case A_COS: return cos(a);
    case A_LG2: return log2(a);
    case A_EX2: return exp2(a);
    default: return tanh(a);
    }
}
static void ref_approximate(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    double a = (double)rq_float_of_bits((uint32_t)flushed(exact_f32, in[0], t->ftz));
    double b = (double)rq_float_of_bits((uint32_t)flushed(exact_f32, in[1], t->ftz));
    double v = approximated(t->mode, a, b);
    bool two = t->mode == A_DIV || t->mode == A_DIV_FULL;
    if (t->mode == A_DIV && fabs(b) > 0x1p126 && fabs(b) < INFINITY) { /* said of this one alone */
        if (a == a) v = isinf(a) ? NAN : copysign(1.0, a) * copysign(0.0, b);
    }
    if (t->mode == A_SIN || t->mode == A_COS)
        if (fabs(a) > 3.14159 && !isinf(a)) ptx_open = true;
    /* subnormal operands and results, where .ftz does not say what becomes of them */
    bool tiny_in = exact_is_subnormal(exact_f32, in[0]) || (two && exact_is_subnormal(exact_f32, in[1]));
    bool tiny_out = fabs(v) < 0x1.0001p-126 && v != 0;
    if (t->mode != A_TANH && ((tiny_in && !t->ftz) || tiny_out)) ptx_open = true;
    out[0] = rq_bits_of_float((float)v);
}
static double double_of(uint64_t u) {
    double v;
    memcpy(&v, &u, 8);
    return v;
}
static uint64_t bits_of(double v) {
    uint64_t u;
    memcpy(&u, &v, 8);
    return u;
}
/* The .ftz.f64 forms read the upper word only, and leave the lower one 0 in the result. */
static void ref_approximate_f64(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    uint64_t a = in[0];
    if (t->ftz) a = flushed(exact_f64, a & 0xffffffff00000000u, true);
    double v = approximated(t->mode, double_of(a), 1);
    if (fabs(v) < 0x1.0001p-1022 && v != 0) ptx_open = true;
    if (exact_is_subnormal(exact_f64, in[0]) && !t->ftz) ptx_open = true;
    /* a NaN in the lower word only is an infinity here, or not: open */
    if (t->ftz && exact_is_nan(exact_f64, in[0]) != exact_is_nan(exact_f64, a)) ptx_open = true;
    out[0] = bits_of(v);
}

/* ---- the cases */
static const char *const modes[] = {".rn", ".rz", ".rm", ".rp"};
static const char *flag(bool on, const char *name) { return on ? name : ""; }
typedef struct op {
    const char *name;
    ptx_ref ref;
    int operands;
    bool has_sat;
} op;
static const op ops[] = {{"add", ref_add, 2, true},  {"sub", ref_sub, 2, true},   {"mul", ref_mul, 2, true},
                         {"fma", ref_fma, 3, true},  {"mad", ref_fma, 3, true},   {"div", ref_div, 2, false},
                         {"rcp", ref_rcp, 1, false}, {"sqrt", ref_sqrt, 1, false}};
static const char *const lists[] = {"", "d, a", "d, a, b", "d, a, b, c"};
static void add_op(const op *o) {
    static const char *const shapes[2][4] = {{"", "r=r", "r=rr", "r=rrr"}, {"", "l=l", "l=ll", "l=lll"}};
    int n = o->operands;
    for (int mode = 0; mode < 4; ++mode) {
        ptx_case t = {.shape = shapes[0][n], .inputs = "ffF", .ref = o->ref, .out = OUT_F32, .bits = 32, .mode = mode};
        for (int ftz = 0; ftz < 2; ++ftz)
            for (int sat = 0; sat < (o->has_sat ? 2 : 1); ++sat) {
                t.ftz = ftz, t.sat = sat;
                ptx_add(t, "%s%s%s%s.f32 %s;", o->name, modes[mode], flag(ftz, ".ftz"), flag(sat, ".sat"), lists[n]);
            }
        t = (ptx_case){.shape = shapes[1][n], .inputs = "ddd", .ref = o->ref, .out = OUT_F64, .bits = 64, .mode = mode};
        ptx_add(t, "%s%s.f64 %s;", o->name, modes[mode], lists[n]);
    }
    if (n != 2 || o->ref == ref_div) return;
    ptx_case t = {.shape = "r=rr", .inputs = "ff", .ref = o->ref, .out = OUT_F32, .bits = 32};
    ptx_add(t, "%s.f32 d, a, b;", o->name); /* .rn by default */
    t.ftz = t.sat = true;
    ptx_add(t, "%s.ftz.sat.f32 d, a, b;", o->name);
    t = (ptx_case){.shape = "l=ll", .inputs = "dd", .ref = o->ref, .out = OUT_F64, .bits = 64};
    ptx_add(t, "%s.f64 d, a, b;", o->name);
}
static void add_min_max(void) {
    static const char *const names[] = {"min", "max"};
    for (int mode = 0; mode < 2; ++mode) {
        ptx_case t = {.shape = "r=rr", .inputs = "ff", .ref = ref_min_max, .out = OUT_F32, .bits = 32, .mode = mode};
        for (int k = 0; k < 8; ++k) {
            t.ftz = k & 1, t.flags = k >> 1;
            ptx_add(t, "%s%s%s%s.f32 d, a, b;", names[mode], flag(k & 1, ".ftz"), flag(k & 2, ".NaN"),
                    flag(k & 4, ".xorsign.abs"));
        }
        t = (ptx_case){.shape = "l=ll", .inputs = "dd", .ref = ref_min_max, .out = OUT_F64, .bits = 64, .mode = mode};
        ptx_add(t, "%s.f64 d, a, b;", names[mode]);
    }
}
static void add_signs(void) {
    static const struct {
        const char *name;
        ptx_ref ref;
    } signs[] = {{"abs", ref_abs}, {"neg", ref_neg}};
    static const char *const tests[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
    ptx_case t;
    for (int k = 0; k < 2; ++k) {
        t = (ptx_case){.shape = "r=r", .inputs = "f", .ref = signs[k].ref, .out = OUT_F32, .bits = 32};
        ptx_add(t, "%s.f32 d, a;", signs[k].name);
        t.ftz = true;
        ptx_add(t, "%s.ftz.f32 d, a;", signs[k].name);
        t = (ptx_case){.shape = "l=l", .inputs = "d", .ref = signs[k].ref, .out = OUT_F64, .bits = 64};
        ptx_add(t, "%s.f64 d, a;", signs[k].name);
    }
    t = (ptx_case){.shape = "r=rr", .inputs = "ff", .ref = ref_copysign, .out = OUT_F32, .bits = 32};
    ptx_add(t, "copysign.f32 d, a, b;");
    t = (ptx_case){.shape = "l=ll", .inputs = "dd", .ref = ref_copysign, .out = OUT_F64, .bits = 64};
    ptx_add(t, "copysign.f64 d, a, b;");
    for (int mode = 0; mode < 6; ++mode) {
        t = (ptx_case){.shape = "r=r", .inputs = "f", .ref = ref_testp, .bits = 32, .mode = mode};
        ptx_add(t, "testp.%s.f32 p, a; selp.u32 d, 1, 0, p;", tests[mode]);
        t = (ptx_case){.shape = "r=l", .inputs = "d", .ref = ref_testp, .bits = 64, .mode = mode};
        ptx_add(t, "testp.%s.f64 p, a; selp.u32 d, 1, 0, p;", tests[mode]);
    }
}
/* Bounds: of the PTX ISA, and half a unit in the last place for the rounding of what is expected. */
static void add_approximations(void) {
    static const struct {
        const char *name;
        int mode;
        const char *inputs;
        double relative, absolute;
    } list[] = {{"div.approx", A_DIV, "ff", 0x1p-22, 0},    {"div.full", A_DIV_FULL, "ff", 0x1p-22, 0},
                {"rcp.approx", A_RCP, "f", 0x1p-22, 0},     {"sqrt.approx", A_SQRT, "f", 0x1p-22, 0},
                {"rsqrt.approx", A_RSQRT, "f", 0x1p-21, 0}, {"sin.approx", A_SIN, "g", 0, 0x1p-20},
                {"cos.approx", A_COS, "g", 0, 0x1p-20},     {"lg2.approx", A_LG2, "f", 0x1p-22, 0x1p-22},
                {"ex2.approx", A_EX2, "g", 0x1p-22, 0},     {"ex2.approx", A_EX2, "f", 0x1p-22, 0},
                {"tanh.approx", A_TANH, "f", 0x1p-11, 0},   {"sin.approx", A_SIN, "f", 0, 0x1p-20},
                {"cos.approx", A_COS, "f", 0, 0x1p-20}};
    for (size_t k = 0; k < sizeof list / sizeof *list; ++k) {
        bool two = list[k].inputs[1] != 0;
        ptx_case t = {.shape = two ? "r=rr" : "r=r", .inputs = list[k].inputs, .ref = ref_approximate, .out = OUT_F32};
        t.mode = list[k].mode, t.relative = list[k].relative + 0x1p-24, t.absolute = list[k].absolute;
        ptx_add(t, "%s.f32 %s;", list[k].name, lists[two ? 2 : 1]);
        t.ftz = true;
        if (t.mode != A_TANH) ptx_add(t, "%s.ftz.f32 %s;", list[k].name, lists[two ? 2 : 1]);
    }
    ptx_case t = {.shape = "l=l",
                  .inputs = "d",
                  .ref = ref_approximate_f64,
                  .out = OUT_F64,
                  .relative = 0x1p-51,
                  .mode = A_RSQRT};
    ptx_add(t, "rsqrt.approx.f64 d, a;");
    t.ftz = true, t.relative = 0x1p-18; /* "gross": no bound is stated */
    ptx_add(t, "rsqrt.approx.ftz.f64 d, a;");
    t.mode = A_RCP;
    ptx_add(t, "rcp.approx.ftz.f64 d, a;");
}

int main(void) {
    for (size_t k = 0; k < sizeof ops / sizeof *ops; ++k) add_op(&ops[k]);
    add_min_max();
    add_signs();
    add_approximations();
    return ptx_run_all(__FILE__);
}
