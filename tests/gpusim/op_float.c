/* SPDX-License-Identifier: Apache-2.0 */
/* f32 and f64 arithmetic (PTX ISA, "Floating-Point Instructions").
 *
 * Rounding: add, sub, mul, fma, mad, div, rcp and sqrt are correctly rounded in all four modes. `.approx` and `.full`
 * give the correctly rounded result too (div, rcp, sqrt), or that of libm in double, rounded once (rsqrt, sin, cos,
 * lg2, ex2, tanh): closer to the true value than a GPU, which stays within the bounds of the PTX ISA. What it says of
 * their range is followed: div.approx by more than 2^126.
 * `.ftz`: subnormal inputs, and results that are subnormal after rounding, become zero of the same sign.
 * NaN: f32 gives 0x7fffffff, as the hardware does (the PTX ISA leaves its bits open; abs, neg and copysign touch the
 * sign only). f64 keeps the payload of the first operand that is NaN, made quiet; a new NaN is 0xfff8000000000000. */
#include <fenv.h>

#include "alu.h"

static const uint32_t nan32 = 0x7fffffffu;
static inline uint64_t bits64(double v) {
    uint64_t u;
    memcpy(&u, &v, 8);
    return u;
}
static inline double double_of(uint64_t u) {
    double v;
    memcpy(&v, &u, 8);
    return v;
}

/* The directed modes are the processor's own. The loads of the lanes cannot move across these calls, so neither can
 * what is computed from them. */
static void enter_rounding(uint8_t round) {
    static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    if (round != ROUND_RN) fesetround(modes[round]);
}
static void leave_rounding(uint8_t round) {
    if (round != ROUND_RN) fesetround(FE_TONEAREST);
}

/* ------------------------------------------------------------------ f32: results and operands as bits */
static inline bool is_nan32(uint32_t u) { return (u & 0x7fffffffu) > 0x7f800000u; }
static inline uint32_t canonical32(uint32_t u) { return is_nan32(u) ? nan32 : u; }
static inline uint32_t flush32(uint32_t u, bool ftz) { return ftz && !(u & 0x7f800000u) ? u & 0x80000000u : u; }
static inline float input32(uint32_t u, bool ftz) { return gs_float(flush32(u, ftz)); }
/* [0, 1]; NaN and whatever has the sign give +0 */
static inline uint32_t saturate32(uint32_t u) { return u >> 31 || is_nan32(u) ? 0 : u > 0x3f800000u ? 0x3f800000u : u; }
static inline uint32_t output32(float v, bool ftz, bool sat) {
    uint32_t u = flush32(gs_bits(v), ftz);
    return sat ? saturate32(u) : canonical32(u);
}

/* name: the plain form, rounded to nearest; name_ftz: with .ftz; name_mod: with .sat or a directed mode too. */
#define F32_BODY(INPUT, OUTPUT)                                                                                        \
    uint32_t *d = (uint32_t *)OPND(0);                                                                                 \
    const uint32_t *A = (const uint32_t *)OPND(1);                                                                     \
    const uint32_t *B = i->n_op > 2 ? (const uint32_t *)OPND(2) : A;                                                   \
    const uint32_t *C = i->n_op > 3 ? (const uint32_t *)OPND(3) : A;                                                   \
    LANES({                                                                                                            \
        float a = INPUT(A[l]);                                                                                         \
        float b = INPUT(B[l]);                                                                                         \
        float c = INPUT(C[l]);                                                                                         \
        (void)b, (void)c;                                                                                              \
        d[l] = OUTPUT;                                                                                                 \
    });
#define INPUT_FTZ(u) input32(u, true)
#define INPUT_MOD(u) input32(u, i->ftz)
#define F32_OP(name, E)                                                                                                \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) { F32_BODY(gs_float, canonical32(gs_bits(E))) }          \
    static void name##_ftz(gs_warp *w, const gs_ins *i, uint32_t m) { F32_BODY(INPUT_FTZ, output32(E, true, false)) }  \
    static void name##_mod(gs_warp *w, const gs_ins *i, uint32_t m) {                                                  \
        enter_rounding(i->round);                                                                                      \
        F32_BODY(INPUT_MOD, output32(E, i->ftz, i->sat))                                                               \
        leave_rounding(i->round);                                                                                      \
    }
F32_OP(add_f32, a + b)
F32_OP(sub_f32, a - b)
F32_OP(mul_f32, a *b)
F32_OP(fma_f32, fmaf(a, b, c))
F32_OP(div_f32, a / b)
F32_OP(rcp_f32, 1.0f / a)
F32_OP(sqrt_f32, sqrtf(a))

/* div.approx is a * (1 / b), whose reciprocal is 0 for the largest b. */
static inline float divide_approx(float a, float b) {
    float size = fabsf(b);
    if (!(size > 0x1p126f && size < INFINITY) || a != a) return a / b;
    return isinf(a) ? gs_float(nan32) : copysignf(0.0f, a) * copysignf(1.0f, b);
}
F32_OP(div_approx_f32, divide_approx(a, b))
F32_OP(rsqrt_f32, (float)(1.0 / sqrt((double)a)))
F32_OP(sin_f32, (float)sin((double)a))
F32_OP(cos_f32, (float)cos((double)a))
F32_OP(lg2_f32, (float)log2((double)a))
F32_OP(ex2_f32, (float)exp2((double)a))
F32_OP(tanh_f32, (float)tanh((double)a))

/* ------------------------------------------------------------------ f64 */
static inline bool is_nan64(uint64_t u) { return (u & 0x7fffffffffffffffu) > 0x7ff0000000000000u; }
static inline uint64_t result64(double v, double a, double b, double c) {
    const uint64_t quiet = 0x0008000000000000u;
    if (v == v) return bits64(v);
    if (a != a) return bits64(a) | quiet;
    if (b != b) return bits64(b) | quiet;
    if (c != c) return bits64(c) | quiet;
    return 0xfff8000000000000u;
}
#define F64_OP(name, E)                                                                                                \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) {                                                        \
        uint64_t *d = (uint64_t *)OPND(0);                                                                             \
        const double *A = (const double *)OPND(1);                                                                     \
        const double *B = i->n_op > 2 ? (const double *)OPND(2) : A;                                                   \
        const double *C = i->n_op > 3 ? (const double *)OPND(3) : A;                                                   \
        enter_rounding(i->round);                                                                                      \
        LANES({                                                                                                        \
            double a = A[l];                                                                                           \
            double b = B[l];                                                                                           \
            double c = C[l];                                                                                           \
            d[l] = result64(E, a, b, c);                                                                               \
        });                                                                                                            \
        leave_rounding(i->round);                                                                                      \
    }
F64_OP(add_f64, a + b)
F64_OP(sub_f64, a - b)
F64_OP(mul_f64, a *b)
F64_OP(fma_f64, fma(a, b, c))
F64_OP(div_f64, a / b)
F64_OP(rcp_f64, 1.0 / a)
F64_OP(sqrt_f64, sqrt(a))
F64_OP(rsqrt_f64, 1.0 / sqrt(a))

/* rcp.approx.ftz.f64, rsqrt.approx.ftz.f64: the upper words only; the result is cut to 20 fraction bits. */
static inline uint64_t upper_word(uint64_t u) {
    u &= 0xffffffff00000000u;
    return u & 0x7ff0000000000000u ? u : u & 0x8000000000000000u; /* .ftz */
}
static inline uint64_t upper_result(double v) { return v != v ? 0x7fffffff00000000u : upper_word(bits64(v)); }
UNARY(rcp_upper_f64, uint64_t, upper_result(1.0 / double_of(upper_word(a))))
UNARY(rsqrt_upper_f64, uint64_t, upper_result(1.0 / sqrt(double_of(upper_word(a)))))

/* ------------------------------------------------------------------ min and max: -0 is less than +0; one NaN is passed
 * over */
/* As a signed integer that orders as the numbers do. */
static inline int32_t order32(uint32_t u) { return (int32_t)(u ^ ((uint32_t)((int32_t)u >> 31) & 0x7fffffffu)); }
static inline int64_t order64(uint64_t u) {
    return (int64_t)(u ^ ((uint64_t)((int64_t)u >> 63) & 0x7fffffffffffffffu));
}
/* flag: .NaN, either NaN gives NaN; sub: .xorsign.abs */
static inline uint32_t least_or_most32(uint32_t a, uint32_t b, bool most, bool nan, bool xorsign) {
    uint32_t sign = (a ^ b) & 0x80000000u, keep = xorsign ? 0x7fffffffu : 0xffffffffu;
    a &= keep;
    b &= keep;
    bool less = order32(a) < order32(b), nan_a = is_nan32(a), nan_b = is_nan32(b);
    uint32_t r = less != most ? a : b;
    r = nan_a ? b : nan_b ? a : r;
    if ((nan_a && nan_b) || (nan && (nan_a || nan_b))) return nan32;
    return xorsign ? r | sign : r;
}
BINARY(min_f32, uint32_t, least_or_most32(flush32(a, i->ftz), flush32(b, i->ftz), false, i->flag, i->sub))
BINARY(max_f32, uint32_t, least_or_most32(flush32(a, i->ftz), flush32(b, i->ftz), true, i->flag, i->sub))
static inline uint64_t least_or_most64(uint64_t a, uint64_t b, bool most) {
    bool nan_a = is_nan64(a), nan_b = is_nan64(b);
    if (nan_a && nan_b) return a | 0x0008000000000000u;
    if (nan_a || nan_b) return nan_a ? b : a;
    return (order64(a) < order64(b)) != most ? a : b;
}
BINARY(min_f64, uint64_t, least_or_most64(a, b, false))
BINARY(max_f64, uint64_t, least_or_most64(a, b, true))

/* ------------------------------------------------------------------ signs and classes */
UNARY(abs_f32, uint32_t, flush32(a, i->ftz) & 0x7fffffffu)
UNARY(neg_f32, uint32_t, flush32(a, i->ftz) ^ 0x80000000u)
UNARY(abs_f64, uint64_t, a & 0x7fffffffffffffffu)
UNARY(neg_f64, uint64_t, a ^ 0x8000000000000000u)
/* the sign of a, the rest of b */
BINARY(copysign_f32, uint32_t, (a & 0x80000000u) | (b & 0x7fffffffu))
BINARY(copysign_f64, uint64_t, (a & 0x8000000000000000u) | (b & 0x7fffffffffffffffu))

enum { TESTP_FINITE, TESTP_INFINITE, TESTP_NUMBER, TESTP_NAN, TESTP_NORMAL, TESTP_SUBNORMAL };
/* size: the value without its sign; zeros are normal numbers here */
static inline bool test_class(uint64_t size, uint64_t infinity, uint64_t least_normal, uint8_t which) {
    switch (which) {
    case TESTP_FINITE: return size < infinity;
    case TESTP_INFINITE: return size == infinity;
    case TESTP_NUMBER: return size <= infinity;
    case TESTP_NAN: return size > infinity;
    case TESTP_NORMAL: return size == 0 || (size >= least_normal && size < infinity);
    default: return size && size < least_normal;
    }
}
static void testp_f32(gs_warp *w, const gs_ins *i, uint32_t m) {
    const uint32_t *A = (const uint32_t *)OPND(1);
    uint32_t p = 0;
    for (int l = 0; l < 32; ++l) p |= (uint32_t)test_class(A[l] & 0x7fffffffu, 0x7f800000u, 0x00800000u, i->sub) << l;
    gs_pred_write(w, i, 0, p, m);
}
static void testp_f64(gs_warp *w, const gs_ins *i, uint32_t m) {
    const uint64_t *A = (const uint64_t *)OPND(1);
    uint32_t p = 0;
    for (int l = 0; l < 32; ++l)
        p |= (uint32_t)test_class(A[l] & 0x7fffffffffffffffu, 0x7ff0000000000000u, 0x0010000000000000u, i->sub) << l;
    gs_pred_write(w, i, 0, p, m);
}

/* ------------------------------------------------------------------ decoding */
static int operands_of(const gs_decoder *d) {
    static const char *const unary[] = {"rcp", "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh"};
    for (size_t k = 0; k < sizeof unary / sizeof *unary; ++k)
        if (!strcmp(d->base, unary[k])) return 2;
    return strcmp(d->base, "fma") && strcmp(d->base, "mad") ? 3 : 4;
}
static bool has_rounding(gs_decoder *d) {
    return gs_mod(d, "rn") || gs_mod(d, "rz") || gs_mod(d, "rm") || gs_mod(d, "rp");
}
/* add, sub, mul: rounding is optional; the others need one (or .approx, .full, which have rows of their own). */
static void decode_f32(gs_decoder *d, gs_ins *i, const gs_row *row) {
    static const struct {
        gs_exec_fn plain, ftz, mod;
    } forms[] = {
#define FORMS(name) {name, name##_ftz, name##_mod}
        FORMS(add_f32), FORMS(sub_f32),  FORMS(mul_f32),        FORMS(fma_f32),   FORMS(div_f32),
        FORMS(rcp_f32), FORMS(sqrt_f32), FORMS(div_approx_f32), FORMS(rsqrt_f32), FORMS(sin_f32),
        FORMS(cos_f32), FORMS(lg2_f32),  FORMS(ex2_f32),        FORMS(tanh_f32),
    };
    bool approximate = strstr(row->name, "approx") || (row->exec == div_f32 && gs_mod(d, "full"));
    bool simple = !strcmp(d->base, "add") || !strcmp(d->base, "sub") || !strcmp(d->base, "mul");
    if (!approximate) {
        if (!simple && !has_rounding(d)) gs_die(d, "a rounding modifier is required");
        i->round = alu_round(d);
    }
    if (simple || row->exec == fma_f32) i->sat = gs_mod(d, "sat");
    if (row->exec != tanh_f32) i->ftz = gs_mod(d, "ftz");
    if (i->round || i->sat || i->ftz)
        for (size_t k = 0; k < sizeof forms / sizeof *forms; ++k)
            if (forms[k].plain == row->exec) i->exec = i->round || i->sat ? forms[k].mod : forms[k].ftz;
    alu_same(d, i, operands_of(d));
}
static void decode_f64(gs_decoder *d, gs_ins *i, const gs_row *row) {
    bool simple = !strcmp(d->base, "add") || !strcmp(d->base, "sub") || !strcmp(d->base, "mul");
    if (row->exec != rsqrt_f64) {
        if (!simple && !has_rounding(d)) gs_die(d, "a rounding modifier is required");
        i->round = alu_round(d);
    }
    alu_same(d, i, operands_of(d));
}
static void decode_min_max(gs_decoder *d, gs_ins *i, const gs_row *row) {
    i->ftz = gs_mod(d, "ftz");
    i->flag = gs_mod(d, "NaN");
    i->sub = gs_mod(d, "xorsign");
    if (gs_mod(d, "abs") != (bool)i->sub) gs_die(d, ".xorsign and .abs go together");
    alu_binary(d, i, row);
}
static void decode_sign(gs_decoder *d, gs_ins *i, const gs_row *row) {
    if (row->type == T_F32) i->ftz = gs_mod(d, "ftz");
    alu_unary(d, i, row);
}
static void decode_testp(gs_decoder *d, gs_ins *i, const gs_row *row) {
    static const char *const names[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
    (void)row;
    alu_types(d, 1);
    gs_need_args(d, 2);
    int which = gs_mod_of(d, names, 6, -1);
    if (which < 0) gs_die(d, "what to test for is missing");
    i->sub = (uint8_t)which;
    alu_pred(d, 0);
    alu_arg(d, 1, gs_type_bytes[i->type]);
}

// clang-format off
#define F32(name, exec) {name, T_F32, decode_f32, exec, GS_C_FLOAT, NULL}
#define SFU(name, exec) {name, T_F32, decode_f32, exec, GS_C_SFU, NULL}
#define F64(name, exec) {name, T_F64, decode_f64, exec, GS_C_DOUBLE, NULL}

GS_TABLE(float) = {
    F32("add", add_f32), F32("sub", sub_f32), F32("mul", mul_f32), F32("fma", fma_f32), F32("mad", fma_f32),
    F32("div.approx", div_approx_f32), F32("div", div_f32),
    SFU("rcp.approx", rcp_f32), F32("rcp", rcp_f32), SFU("sqrt.approx", sqrt_f32), F32("sqrt", sqrt_f32),
    SFU("rsqrt.approx", rsqrt_f32), SFU("sin.approx", sin_f32), SFU("cos.approx", cos_f32), SFU("lg2.approx", lg2_f32),
    SFU("ex2.approx", ex2_f32), SFU("tanh.approx", tanh_f32),
    F64("add", add_f64), F64("sub", sub_f64), F64("mul", mul_f64), F64("fma", fma_f64), F64("mad", fma_f64),
    F64("div", div_f64), F64("sqrt", sqrt_f64),
    {"rcp.approx.ftz", T_F64, alu_unary, rcp_upper_f64, GS_C_SFU, NULL},
    {"rsqrt.approx.ftz", T_F64, alu_unary, rsqrt_upper_f64, GS_C_SFU, NULL},
    F64("rcp", rcp_f64), F64("rsqrt.approx", rsqrt_f64),
    {"min", T_F32, decode_min_max, min_f32, GS_C_FLOAT, NULL},
    {"max", T_F32, decode_min_max, max_f32, GS_C_FLOAT, NULL},
    {"min", T_F64, alu_binary, min_f64, GS_C_DOUBLE, NULL}, {"max", T_F64, alu_binary, max_f64, GS_C_DOUBLE, NULL},
    {"abs", T_F32, decode_sign, abs_f32, GS_C_FLOAT, NULL}, {"neg", T_F32, decode_sign, neg_f32, GS_C_FLOAT, NULL},
    {"abs", T_F64, decode_sign, abs_f64, GS_C_DOUBLE, NULL}, {"neg", T_F64, decode_sign, neg_f64, GS_C_DOUBLE, NULL},
    {"copysign", T_F32, alu_binary, copysign_f32, GS_C_FLOAT, NULL},
    {"copysign", T_F64, alu_binary, copysign_f64, GS_C_DOUBLE, NULL},
    {"testp", T_F32, decode_testp, testp_f32, GS_C_COMPARE, NULL},
    {"testp", T_F64, decode_testp, testp_f64, GS_C_COMPARE, NULL},
    {0}
};
// clang-format on
