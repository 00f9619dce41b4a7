/* SPDX-License-Identifier: Apache-2.0 */
/* cvt and cvt.pack (PTX ISA, "Data Movement and Conversion Instructions: cvt").
 *
 * One general path (values as 64-bit integers or doubles, rounded by hand to the destination's precision and least
 * exponent) takes every pair of types and every modifier; the pairs that kernels live on have short ones beside it.
 * NaN: f32 0x7fffffff, f16 and bf16 0x7fff, e4m3 and e5m2 0x7f; f64 and f32 <- bf16 keep what fits. To integers: 0, or,
 * where the source is f64 or the destination has 64 bits, the top bit alone. Random rounding (.rs) is of later targets.
 * */
#include "alu.h"
#include "half.h"

/* ------------------------------------------------------------------ types */
typedef struct format { /* of floating-point numbers */
    int precision, least_exponent;
    double most;
} format;
static format format_of(gs_type t) {
    switch (t) {
    case T_F16:
    case T_F16X2: return (format){11, -14, 65504};
    case T_BF16:
    case T_BF16X2: return (format){8, -126, 0x1.fep127};
    case T_TF32: return (format){11, -126, 0x1.ffcp127};
    case T_F32: return (format){24, -126, 0x1.fffffep127};
    default: return (format){53, -1022, 0x1.fffffffffffffp1023};
    }
}
static bool is_float(gs_type t) { return t == T_F16 || t == T_BF16 || t == T_F32 || t == T_F64 || t == T_TF32; }
static bool is_signed(gs_type t) { return t == T_S8 || t == T_S16 || t == T_S32 || t == T_S64; }
static bool is_integer(gs_type t) { return is_signed(t) || t == T_U8 || t == T_U16 || t == T_U32 || t == T_U64; }
static unsigned bits_of(gs_type t) { return 8u * gs_type_bytes[t]; }

/* The modifiers of a cvt. */
enum { ROUND_NO_INTEGER, ROUND_RNI, ROUND_RZI, ROUND_RMI, ROUND_RPI };
static inline uint8_t integer_rounding(const gs_ins *i) { return i->cmp; }
static inline bool relu(const gs_ins *i) { return i->flag; }
static inline bool satfinite(const gs_ins *i) { return i->sub; }

/* ------------------------------------------------------------------ rounding */
static double to_integral(double v, uint8_t mode) {
    switch (mode) {
    case ROUND_RNI: return nearbyint(v);
    case ROUND_RZI: return trunc(v);
    case ROUND_RMI: return floor(v);
    case ROUND_RPI: return ceil(v);
    default: return v;
    }
}
/* What is too large for the format: infinity, or its largest number where the mode rounds towards zero from there. */
static double overflow(double v, double most, uint8_t mode) {
    if (fabs(v) <= most || isinf(v)) return v;
    bool to_most = mode == ROUND_RZ || (mode == ROUND_RM && v > 0) || (mode == ROUND_RP && v < 0);
    return copysign(to_most ? most : INFINITY, v);
}
static double round_to(double v, format f, uint8_t mode) {
    if (v != v || v == 0 || isinf(v) || f.precision == 53) return v;
    int exponent = ilogb(v);
    if (exponent < f.least_exponent) exponent = f.least_exponent;
    int last = exponent - f.precision + 1; /* of the last place */
    double units = scalbn(v, -last), r;
    switch (mode) {
    case ROUND_RN: r = nearbyint(units); break;
    case ROUND_RZ: r = trunc(units); break;
    case ROUND_RM: r = floor(units); break;
    case ROUND_RP: r = ceil(units); break;
    default: r = round(units); break; /* .rna: ties away from zero */
    }
    return overflow(copysign(scalbn(r, last), v), f.most, mode);
}
/* An integer, rounded to the format; exact in the double that is returned. */
static double round_integer(uint64_t size, bool negative, format f, uint8_t mode) {
    double v = 0;
    if (size) {
        int bits = 64 - __builtin_clzll(size), drop = bits - f.precision;
        if (drop > 0) {
            uint64_t kept = size >> drop, rest = size & ((1ull << drop) - 1), half = 1ull << (drop - 1);
            bool up = mode == ROUND_RN   ? rest > half || (rest == half && kept & 1)
                      : mode == ROUND_RM ? rest && negative
                      : mode == ROUND_RP ? rest && !negative
                                         : false;
            v = scalbn((double)(kept + up), drop);
        } else
            v = (double)size;
    }
    return overflow(negative ? -v : v, f.most, mode);
}

/* ------------------------------------------------------------------ to and from bits */
static double float_value(gs_type t, uint64_t bits) {
    switch (t) {
    case T_F16: return (double)gs_h2f((uint16_t)bits);
    case T_BF16: return (double)gs_b2f((uint16_t)bits);
    case T_F32: return (double)gs_float((uint32_t)bits);
    default: {
        double v;
        memcpy(&v, &bits, 8);
        return v;
    }
    }
}
/* v is a number of the format t, so that no cast below rounds. */
static uint64_t float_bits(gs_type t, double v) {
    switch (t) {
    case T_F16:
    case T_F16X2: return v != v ? 0x7fff : gs_f2h((float)v);
    case T_BF16:
    case T_BF16X2: return gs_f2b((float)v);
    case T_TF32:
    case T_F32: return v != v ? 0x7fffffffu : gs_bits((float)v);
    default: {
        uint64_t u;
        memcpy(&u, &v, 8);
        return v != v ? u | 0x0008000000000000u : u; /* quiet */
    }
    }
}
static double flush32(double v) { return fabs(v) < 0x1p-126 ? copysign(0.0, v) : v; }

/* What the modifiers do to a rounded result. */
static double modify(const gs_ins *i, gs_type t, double v) {
    if (satfinite(i) && fabs(v) > format_of(t).most) v = copysign(format_of(t).most, v);
    if (relu(i) && signbit(v) && v == v) v = 0;
    if (i->sat) v = v != v || signbit(v) ? 0 : v > 1 ? 1 : v;
    if (i->ftz && t == T_F32) v = flush32(v);
    return v;
}
static uint64_t narrowed(const gs_ins *i, gs_type t, double v) {
    return float_bits(t, modify(i, t, round_to(v, format_of(t), i->round)));
}

/* ------------------------------------------------------------------ the general path. type: of d; type2: of a */
static void cvt_int_int(gs_warp *w, const gs_ins *i, uint32_t m) {
    int64_t v[32], r[32];
    gs_type to = i->type, from = i->type2;
    alu_load(w, i, 1, bits_of(from), is_signed(from), v);
    unsigned up = 64 - bits_of(to);
    if (i->sat) {
        uint64_t most = UINT64_MAX >> (up + is_signed(to));
        int64_t least = is_signed(to) ? -(int64_t)most - 1 : 0;
        for (int l = 0; l < 32; ++l)
            if (is_signed(from) && v[l] < 0)
                v[l] = v[l] < least ? least : v[l];
            else
                v[l] = (uint64_t)v[l] > most ? (int64_t)most : v[l];
    }
    /* cut to the destination's type, then extended as it says to the register */
    if (is_signed(to))
        for (int l = 0; l < 32; ++l) r[l] = (int64_t)((uint64_t)v[l] << up) >> up;
    else
        for (int l = 0; l < 32; ++l) r[l] = (int64_t)((uint64_t)v[l] << up >> up);
    alu_store(w, i, 0, r, m);
}
static void cvt_int_float(gs_warp *w, const gs_ins *i, uint32_t m) /* to float */
{
    int64_t v[32], r[32];
    bool sign = is_signed(i->type2);
    format f = format_of(i->type);
    alu_load(w, i, 1, bits_of(i->type2), sign, v);
    for (int l = 0; l < 32; ++l) {
        bool negative = sign && v[l] < 0;
        uint64_t size = negative ? 0 - (uint64_t)v[l] : (uint64_t)v[l];
        r[l] = (int64_t)float_bits(i->type, modify(i, i->type, round_integer(size, negative, f, i->round)));
    }
    alu_store(w, i, 0, r, m);
}
static int64_t float_to_integer(double v, gs_type to, bool from_f64, uint8_t mode) {
    unsigned bits = bits_of(to);
    if (v != v) {
        if (!from_f64 && bits < 64) return 0;
        int64_t top = (int64_t)(1ull << (bits - 1));
        return is_signed(to) ? (int64_t)((uint64_t)top << (64 - bits)) >> (64 - bits) : top;
    }
    v = to_integral(v, mode);
    double end = scalbn(1.0, (int)bits - is_signed(to)); /* the first too large */
    if (is_signed(to)) {
        if (v >= end) return (int64_t)(UINT64_MAX >> (65 - bits));
        return v < -end ? (int64_t)(UINT64_MAX << (bits - 1)) : (int64_t)v;
    }
    if (v >= end) return (int64_t)(UINT64_MAX >> (64 - bits));
    return v < 0 ? 0 : (int64_t)(uint64_t)v;
}
static void cvt_float_int(gs_warp *w, const gs_ins *i, uint32_t m) /* to integer */
{
    int64_t v[32], r[32];
    alu_load(w, i, 1, bits_of(i->type2), false, v);
    for (int l = 0; l < 32; ++l) {
        double x = float_value(i->type2, (uint64_t)v[l]);
        if (i->ftz) x = flush32(x);
        r[l] = float_to_integer(x, i->type, i->type2 == T_F64, integer_rounding(i));
    }
    alu_store(w, i, 0, r, m);
}
static void cvt_float_float(gs_warp *w, const gs_ins *i, uint32_t m) {
    int64_t v[32], r[32];
    alu_load(w, i, 1, bits_of(i->type2), false, v);
    for (int l = 0; l < 32; ++l) {
        double x = float_value(i->type2, (uint64_t)v[l]);
        if (i->ftz && i->type2 == T_F32) x = flush32(x);
        r[l] = (int64_t)narrowed(i, i->type, to_integral(x, integer_rounding(i)));
    }
    alu_store(w, i, 0, r, m);
}
/* Two floats into one register: a above b. */
static void cvt_pair(gs_warp *w, const gs_ins *i, uint32_t m) {
    const float *A = (const float *)OPND(1), *B = (const float *)OPND(2);
    unsigned shift = bits_of(i->type) / 2;
    int64_t r[32];
    for (int l = 0; l < 32; ++l)
        r[l] = (int64_t)(narrowed(i, i->type, (double)A[l]) << shift | narrowed(i, i->type, (double)B[l]));
    alu_store(w, i, 0, r, m);
}
/* cvt.pack.sat: d = c shifted up, clamped a, clamped b. type: of the parts */
static void cvt_pack(gs_warp *w, const gs_ins *i, uint32_t m) {
    const int32_t *A = (const int32_t *)OPND(1), *B = (const int32_t *)OPND(2);
    const uint32_t *C = (const uint32_t *)OPND(3);
    uint32_t *d = (uint32_t *)OPND(0);
    unsigned bits = bits_of(i->type);
    bool sign = is_signed(i->type), has_c = i->op[3].size;
    int32_t most = (int32_t)(UINT32_MAX >> (32 - bits + sign)), least = sign ? -most - 1 : 0;
    uint32_t part = UINT32_MAX >> (32 - bits);
    LANES({
        int32_t a = A[l] < least ? least : A[l] > most ? most : A[l];
        int32_t b = B[l] < least ? least : B[l] > most ? most : B[l];
        uint32_t above = has_c ? C[l] << (2 * (bits & 15)) : 0;
        d[l] = above | ((uint32_t)a & part) << bits | ((uint32_t)b & part);
    });
}

/* ------------------------------------------------------------------ e4m3x2, e5m2x2 */
/* e4m3 or e5m2 of a float, .satfinite: `most` is the largest, bias the exponent's. No branches, so that it vectorises. */
static inline uint32_t f8_of_float(uint32_t u, int fraction, int bias, uint32_t most, bool relu) {
    int drop = 23 - fraction;
    uint32_t sign = u >> 24 & 0x80, size = u & 0x7fffffffu;
    uint32_t normal =
        ((size + (1u << (drop - 1)) - 1 + (size >> drop & 1)) >> drop) - ((uint32_t)(127 - bias) << fraction);
    /* the sum with 2^23 last places of a subnormal rounds to one */
    float ruler = gs_float((uint32_t)(127 + 24 - bias - fraction) << 23);
    uint32_t small = gs_bits(gs_float(size) + ruler) - gs_bits(ruler);
    uint32_t r = size < (uint32_t)(128 - bias) << 23 ? small : normal;
    r = r > most ? most : r;
    r = relu && sign ? 0 : r | sign;
    return size > 0x7f800000u ? 0x7f : r;
}
static void f8_from_floats(uint16_t *to, const float *from, const gs_ins *i) {
    bool relu_too = relu(i);
    if (i->type == T_E4M3X2)
        for (int l = 0; l < 32; ++l) to[l] = (uint16_t)f8_of_float(gs_bits(from[l]), 3, 7, 0x7e, relu_too);
    else
        for (int l = 0; l < 32; ++l) to[l] = (uint16_t)f8_of_float(gs_bits(from[l]), 2, 15, 0x7b, relu_too);
}
static void cvt_f8_f32(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint16_t *d = (uint16_t *)OPND(0), high[32], low[32];
    f8_from_floats(high, (const float *)OPND(1), i);
    f8_from_floats(low, (const float *)OPND(2), i);
    LANES({ d[l] = (uint16_t)(high[l] << 8 | low[l]); });
}
static void cvt_f8_f16x2(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint16_t *d = (uint16_t *)OPND(0), high[32], low[32];
    const uint32_t *A = (const uint32_t *)OPND(1);
    float v[32];
    for (int l = 0; l < 32; ++l) high[l] = (uint16_t)(A[l] >> 16), low[l] = (uint16_t)A[l];
    half_widen(v, high, 32, false);
    f8_from_floats(high, v, i);
    half_widen(v, low, 32, false);
    f8_from_floats(low, v, i);
    LANES({ d[l] = (uint16_t)(high[l] << 8 | low[l]); });
}
/* Shifted to where f16 has exponent and fraction, e4m3 is the number times 2^-8. */
static void cvt_f16x2_f8(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t *d = (uint32_t *)OPND(0);
    const uint16_t *A = (const uint16_t *)OPND(1);
    uint16_t h[64];
    for (int l = 0; l < 32; ++l) h[2 * l] = A[l] & 0xff, h[2 * l + 1] = A[l] >> 8;
    if (i->type2 == T_E4M3X2) {
        float v[64];
        uint16_t moved[64];
        for (int l = 0; l < 64; ++l) moved[l] = (uint16_t)((h[l] & 0x80) << 8 | (h[l] & 0x7f) << 7);
        half_widen(v, moved, 64, false);
        for (int l = 0; l < 64; ++l) v[l] *= 256;
        half_narrow(moved, v, 64, false);
        for (int l = 0; l < 64; ++l) h[l] = (h[l] & 0x7f) == 0x7f ? 0x7fff : moved[l];
    } else
        for (int l = 0; l < 64; ++l) h[l] = (h[l] & 0x7f) > 0x7c ? 0x7fff : (uint16_t)(h[l] << 8);
    if (relu(i))
        for (int l = 0; l < 64; ++l) h[l] = h[l] & 0x8000 ? 0 : h[l];
    LANES({ d[l] = (uint32_t)h[2 * l + 1] << 16 | h[2 * l]; });
}
/* ------------------------------------------------------------------ short paths: registers as wide as their types */
static void fast_f32_f16(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t *d = (uint32_t *)OPND(0);
    float v[32];
    half_widen(v, (const uint16_t *)OPND(1), 32, false);
    LANES({
        uint32_t u = gs_bits(v[l]);
        d[l] = (u & 0x7fffffffu) > 0x7f800000u ? 0x7fffffffu : u;
    });
}
static void fast_f32_bf16(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t *d = (uint32_t *)OPND(0);
    const uint16_t *A = (const uint16_t *)OPND(1);
    LANES({ d[l] = (uint32_t)A[l] << 16; });
}
static void fast_half_f32(gs_warp *w, const gs_ins *i, uint32_t m) /* f16 or bf16 */
{
    uint16_t *d = (uint16_t *)OPND(0), h[32];
    half_narrow(h, (const float *)OPND(1), 32, i->type == T_BF16);
    LANES({ d[l] = h[l]; });
}
static void fast_pair_f32(gs_warp *w, const gs_ins *i, uint32_t m) /* f16x2 or bf16x2 */
{
    uint32_t *d = (uint32_t *)OPND(0);
    uint16_t high[32], low[32];
    half_narrow(high, (const float *)OPND(1), 32, i->type == T_BF16X2);
    half_narrow(low, (const float *)OPND(2), 32, i->type == T_BF16X2);
    LANES({ d[l] = (uint32_t)high[l] << 16 | low[l]; });
}
#define CONVERT(name, FROM, TO, E)                                                                                     \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) {                                                        \
        TO *d = (TO *)OPND(0);                                                                                         \
        const FROM *A = (const FROM *)OPND(1);                                                                         \
        LANES({                                                                                                        \
            FROM a = A[l];                                                                                             \
            d[l] = (TO)(E);                                                                                            \
        });                                                                                                            \
    }
CONVERT(fast_f32_s32, int32_t, float, a)
CONVERT(fast_f32_u32, uint32_t, float, a)
CONVERT(fast_f64_s32, int32_t, double, a)
CONVERT(fast_f64_f32, float, double, a)
CONVERT(fast_f32_f64, double, uint32_t, a != a ? 0x7fffffffu : gs_bits((float)a))
static inline int32_t clamped_s32(float v) {
    if (v >= 0x1p31f) return INT32_MAX;
    return v >= -0x1p31f ? (int32_t)v : v < 0 ? INT32_MIN : 0; /* the last: NaN */
}
CONVERT(fast_rni_s32_f32, float, int32_t, clamped_s32(nearbyintf(a)))
CONVERT(fast_rzi_s32_f32, float, int32_t, clamped_s32(a))
CONVERT(fast_rzi_u32_f32, float, uint32_t, a >= 0x1p32f ? UINT32_MAX : a > 0 ? (uint32_t)a : 0)
static inline uint32_t canonical32(float v) { return v != v ? 0x7fffffffu : gs_bits(v); }
CONVERT(fast_rni_f32_f32, float, uint32_t, canonical32(nearbyintf(a)))
CONVERT(fast_rzi_f32_f32, float, uint32_t, canonical32(truncf(a)))
CONVERT(fast_rmi_f32_f32, float, uint32_t, canonical32(floorf(a)))
CONVERT(fast_rpi_f32_f32, float, uint32_t, canonical32(ceilf(a)))
/* .rna: half a last place up, then cut */
static inline uint32_t tf32_of(uint32_t u) {
    return (u & 0x7fffffffu) > 0x7f800000u ? 0x7fffffffu : (u + 0x1000) & ~0x1fffu;
}
CONVERT(fast_tf32_f32, uint32_t, uint32_t, tf32_of(a))
CONVERT(fast_u32_u64, uint64_t, uint32_t, a)
CONVERT(fast_u64_u32, uint32_t, uint64_t, a)
CONVERT(fast_s64_s32, int32_t, int64_t, a)
CONVERT(fast_u32_u16, uint16_t, uint32_t, a)
CONVERT(fast_s32_s16, int16_t, int32_t, a)
CONVERT(fast_u16_u32, uint32_t, uint16_t, a)

/* cvt.ftz.sat.f32.f32 and its parts */
static void fast_f32_f32(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t *d = (uint32_t *)OPND(0);
    const uint32_t *A = (const uint32_t *)OPND(1);
    uint32_t flush = i->ftz ? 0x80000000u : 0xffffffffu;
    bool sat = i->sat;
    LANES({
        uint32_t u = A[l] & 0x7f800000u ? A[l] : A[l] & flush;
        bool nan = (u & 0x7fffffffu) > 0x7f800000u;
        uint32_t clamped = u >> 31 || nan ? 0 : u > 0x3f800000u ? 0x3f800000u : u;
        d[l] = sat ? clamped : nan ? 0x7fffffffu : u;
    });
}

typedef struct fast_path {
    uint8_t to, from, round, integer_round; /* T_..., ROUND_... */
    gs_exec_fn exec;
} fast_path;
/* Chosen when the instruction has no other modifier. */
static const fast_path fast_paths[] = {
    {T_F32, T_F16, ROUND_RN, ROUND_NO_INTEGER, fast_f32_f16},
    {T_F32, T_BF16, ROUND_RN, ROUND_NO_INTEGER, fast_f32_bf16},
    {T_F16, T_F32, ROUND_RN, ROUND_NO_INTEGER, fast_half_f32},
    {T_BF16, T_F32, ROUND_RN, ROUND_NO_INTEGER, fast_half_f32},
    {T_F16X2, T_F32, ROUND_RN, ROUND_NO_INTEGER, fast_pair_f32},
    {T_BF16X2, T_F32, ROUND_RN, ROUND_NO_INTEGER, fast_pair_f32},
    {T_F32, T_S32, ROUND_RN, ROUND_NO_INTEGER, fast_f32_s32},
    {T_F32, T_U32, ROUND_RN, ROUND_NO_INTEGER, fast_f32_u32},
    {T_F64, T_S32, ROUND_RN, ROUND_NO_INTEGER, fast_f64_s32},
    {T_F64, T_F32, ROUND_RN, ROUND_NO_INTEGER, fast_f64_f32},
    {T_F32, T_F64, ROUND_RN, ROUND_NO_INTEGER, fast_f32_f64},
    {T_S32, T_F32, ROUND_RN, ROUND_RNI, fast_rni_s32_f32},
    {T_S32, T_F32, ROUND_RN, ROUND_RZI, fast_rzi_s32_f32},
    {T_U32, T_F32, ROUND_RN, ROUND_RZI, fast_rzi_u32_f32},
    {T_F32, T_F32, ROUND_RN, ROUND_RNI, fast_rni_f32_f32},
    {T_F32, T_F32, ROUND_RN, ROUND_RZI, fast_rzi_f32_f32},
    {T_F32, T_F32, ROUND_RN, ROUND_RMI, fast_rmi_f32_f32},
    {T_F32, T_F32, ROUND_RN, ROUND_RPI, fast_rpi_f32_f32},
    {T_TF32, T_F32, ROUND_RNA, ROUND_NO_INTEGER, fast_tf32_f32},
    {T_U32, T_U64, ROUND_RN, ROUND_NO_INTEGER, fast_u32_u64},
    {T_U64, T_U32, ROUND_RN, ROUND_NO_INTEGER, fast_u64_u32},
    {T_S64, T_S32, ROUND_RN, ROUND_NO_INTEGER, fast_s64_s32},
    {T_U32, T_U16, ROUND_RN, ROUND_NO_INTEGER, fast_u32_u16},
    {T_S32, T_S16, ROUND_RN, ROUND_NO_INTEGER, fast_s32_s16},
    {T_U16, T_U32, ROUND_RN, ROUND_NO_INTEGER, fast_u16_u32},
};

/* ------------------------------------------------------------------ decoding */
/* A register at least as wide as the type (8-bit types live in 16). */
static void cvt_operand(gs_decoder *d, int arg, gs_type t) {
    if (arg >= d->n_arg) gs_die(d, "operand %d is missing", arg + 1);
    int bytes = gs_type_bytes[t] < 2 ? 2 : gs_type_bytes[t];
    gs_opnd o = gs_parse_operand(d, d->arg[arg].text, bytes);
    if (o.pred || o.size < bytes || o.size > 8) gs_die(d, "operand '%s'", d->arg[arg].text);
    if (arg == 0 && o.base != BASE_REG) gs_die(d, "'%s' is no register", d->arg[arg].text);
    gs_add(d, o);
}
static void need(gs_decoder *d, bool ok, const char *what) {
    if (!ok) gs_die(d, "%s", what);
}
/* Which conversion it is, and whether its rounding modifier is the right one. */
static gs_exec_fn choose(gs_decoder *d, gs_ins *i, bool rounded) {
    gs_type to = i->type, from = i->type2;
    bool integer_rounded = i->cmp != ROUND_NO_INTEGER, f8_to = to == T_E4M3X2 || to == T_E5M2X2;
    bool f8_from = from == T_E4M3X2 || from == T_E5M2X2;
    if (i->round == ROUND_RNA) need(d, to == T_TF32, ".rna is of tf32");
    if (f8_to || f8_from || to == T_F16X2 || to == T_BF16X2 || to == T_TF32) {
        need(d, rounded && !integer_rounded, "a rounding modifier (.rn, .rz) is required");
        need(d, i->round == ROUND_RN || (i->round == ROUND_RZ && !f8_to && !f8_from) || i->round == ROUND_RNA,
             "this rounding is not supported here");
        if (f8_to) need(d, satfinite(i), ".satfinite is required");
        if (f8_to && from == T_F16X2) return cvt_f8_f16x2;
        if (f8_from) {
            need(d, to == T_F16X2, "types");
            return cvt_f16x2_f8;
        }
        need(d, from == T_F32, "types");
        return to == T_TF32 ? cvt_float_float : f8_to ? cvt_f8_f32 : cvt_pair;
    }
    if (is_integer(to) && is_integer(from)) {
        need(d, !rounded && !integer_rounded, "rounding of integers");
        return cvt_int_int;
    }
    if (is_float(to) && is_integer(from)) {
        need(d, rounded && !integer_rounded, "a rounding modifier (.rn, .rz, .rm, .rp) is required");
        return cvt_int_float;
    }
    if (is_integer(to) && is_float(from)) {
        need(d, integer_rounded && !rounded, "an integer rounding modifier (.rni, .rzi, .rmi, .rpi) is required");
        return cvt_float_int;
    }
    need(d, is_float(to) && is_float(from) && from != T_TF32, "types");
    bool loses = format_of(to).precision < format_of(from).precision || (to == T_F16 && from == T_BF16);
    if (to == from)
        need(d, !rounded, "rounding to the same type");
    else
        need(d, !integer_rounded && rounded == loses,
             loses ? "a rounding modifier is required" : "rounding of an exact result");
    return cvt_float_float;
}
static void decode_cvt(gs_decoder *d, gs_ins *i, const gs_row *row) {
    static const char *const integer_modes[] = {"rni", "rzi", "rmi", "rpi"};
    (void)row;
    alu_types(d, 2);
    bool rounded = gs_mod(d, "rn") || gs_mod(d, "rz") || gs_mod(d, "rm") || gs_mod(d, "rp");
    i->round = alu_round(d);
    if (gs_mod(d, "rna")) {
        rounded = true;
        i->round = ROUND_RNA;
    }
    i->cmp = (uint8_t)(gs_mod_of(d, integer_modes, 4, -1) + 1);
    gs_type to = i->type, from = i->type2;
    if (to == T_F32 || from == T_F32) i->ftz = gs_mod(d, "ftz");
    if (is_integer(to) || ((to == T_F16 || to == T_F32 || to == T_F64) && from != T_BF16)) i->sat = gs_mod(d, "sat");
    bool f8_from = from == T_E4M3X2 || from == T_E5M2X2;
    if (!is_integer(to) && to != T_F32 && to != T_F64 && (from == T_F32 || from == T_F16X2 || f8_from)) {
        i->flag = gs_mod(d, "relu");
        if (!f8_from) i->sub = gs_mod(d, "satfinite");
    }
    i->exec = choose(d, i, rounded);
    bool pair = i->exec == cvt_pair || i->exec == cvt_f8_f32, f8 = f8_from || to == T_E4M3X2 || to == T_E5M2X2;
    gs_need_args(d, pair ? 3 : 2);
    cvt_operand(d, 0, to);
    cvt_operand(d, 1, from);
    if (pair) cvt_operand(d, 2, from);
    int bytes_to = gs_type_bytes[to], bytes_from = gs_type_bytes[from];
    bool same_sizes = d->op[0].size == bytes_to && d->op[1].size == bytes_from;
    if (pair && d->op[2].size != bytes_from) same_sizes = false;
    if (!same_sizes && (f8 || pair)) gs_die(d, "a register wider than its type");
    if (!same_sizes) return;
    if (to == T_F32 && from == T_F32 && i->cmp == ROUND_NO_INTEGER) i->exec = fast_f32_f32;
    if (i->ftz || i->sat || i->flag || i->sub) return;
    for (size_t k = 0; k < sizeof fast_paths / sizeof *fast_paths; ++k) {
        const fast_path *f = &fast_paths[k];
        if (f->to == to && f->from == from && f->round == i->round && f->integer_round == i->cmp) i->exec = f->exec;
    }
}
static void decode_pack(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    bool small = i->type == T_U8 || i->type == T_S8;
    need(d, small || i->type == T_U16 || i->type == T_S16, "types");
    need(d, i->type2 == T_S32, "types");
    need(d, d->n_type == (small ? 3 : 2) && (!small || i->type3 == T_B32), "types");
    gs_need_args(d, small ? 4 : 3);
    alu_result(d, 4);
    for (int k = 1; k < d->n_arg; ++k) alu_arg(d, k, 4);
    if (!small) gs_add(d, gs_no_operand);
}

// clang-format off
GS_TABLE(cvt) = {
    {"cvt.pack.sat", T_NONE, decode_pack, cvt_pack, GS_C_CVT, NULL},
    {"cvt", T_NONE, decode_cvt, cvt_int_int, GS_C_CVT, NULL},
    {0}
};
// clang-format on
