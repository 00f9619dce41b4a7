/* SPDX-License-Identifier: Apache-2.0 */
/* setp and set (PTX ISA, "Comparison and Selection Instructions" and "Half Precision Comparison Instructions"). A
 * comparison gives 32 bits, one a lane; what becomes of them is the same for all types. */
#include "alu.h"
#include "half.h"

enum { LT, LE, GT, GE, EQ, NE, NUM, NAN_ };
enum { BOOL_NONE, BOOL_AND, BOOL_OR, BOOL_XOR };
/* gs_ins: cmp the comparison; flag: true for NaN (equ, neu, ltu...); sub: the boolean operation; vec: 2 for pairs;
 * type: of set's result (T_NONE: setp); type2: what is compared. */

/* ------------------------------------------------------------------ comparisons */
#ifdef __AVX512F__
/* _mm512_cmp..._mask takes its predicate as a constant. */
#define ON_EACH(COMPARE, LESS, LESS_EQ, GREATER, GREATER_EQ, EQUAL, UNEQUAL)                                           \
    switch (cmp) {                                                                                                     \
    case LT: return COMPARE(LESS);                                                                                     \
    case LE: return COMPARE(LESS_EQ);                                                                                  \
    case GT: return COMPARE(GREATER);                                                                                  \
    case GE: return COMPARE(GREATER_EQ);                                                                               \
    case EQ: return COMPARE(EQUAL);                                                                                    \
    default: return COMPARE(UNEQUAL);                                                                                  \
    }
static uint32_t compare_s32(const int32_t *a, const int32_t *b, uint8_t cmp) {
    __m512i a0 = _mm512_loadu_si512(a), a1 = _mm512_loadu_si512(a + 16);
    __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 16);
#define COMPARE(how) (_mm512_cmp_epi32_mask(a0, b0, how) | (uint32_t)_mm512_cmp_epi32_mask(a1, b1, how) << 16)
    ON_EACH(COMPARE, _MM_CMPINT_LT, _MM_CMPINT_LE, _MM_CMPINT_NLE, _MM_CMPINT_NLT, _MM_CMPINT_EQ, _MM_CMPINT_NE)
#undef COMPARE
}
static uint32_t compare_u32(const uint32_t *a, const uint32_t *b, uint8_t cmp) {
    __m512i a0 = _mm512_loadu_si512(a), a1 = _mm512_loadu_si512(a + 16);
    __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 16);
#define COMPARE(how) (_mm512_cmp_epu32_mask(a0, b0, how) | (uint32_t)_mm512_cmp_epu32_mask(a1, b1, how) << 16)
    ON_EACH(COMPARE, _MM_CMPINT_LT, _MM_CMPINT_LE, _MM_CMPINT_NLE, _MM_CMPINT_NLT, _MM_CMPINT_EQ, _MM_CMPINT_NE)
#undef COMPARE
}
static uint32_t ordered_f32(const float *a, const float *b, uint8_t cmp) {
    __m512 a0 = _mm512_loadu_ps(a), a1 = _mm512_loadu_ps(a + 16), b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
#define COMPARE(how) (_mm512_cmp_ps_mask(a0, b0, how) | (uint32_t)_mm512_cmp_ps_mask(a1, b1, how) << 16)
    ON_EACH(COMPARE, _CMP_LT_OQ, _CMP_LE_OQ, _CMP_GT_OQ, _CMP_GE_OQ, _CMP_EQ_OQ, _CMP_NEQ_OQ)
#undef COMPARE
}
#endif
#define ALL_LANES(E)                                                                                                   \
    for (int l = 0; l < 32; ++l) r |= (uint32_t)(E) << l;                                                              \
    break
#define COMPARE_LOOP(name, T, UNEQUAL)                                                                                 \
    static uint32_t name(const T *a, const T *b, uint8_t cmp) {                                                        \
        uint32_t r = 0;                                                                                                \
        switch (cmp) {                                                                                                 \
        case LT: ALL_LANES(a[l] < b[l]);                                                                               \
        case LE: ALL_LANES(a[l] <= b[l]);                                                                              \
        case GT: ALL_LANES(a[l] > b[l]);                                                                               \
        case GE: ALL_LANES(a[l] >= b[l]);                                                                              \
        case EQ: ALL_LANES(a[l] == b[l]);                                                                              \
        default: ALL_LANES(UNEQUAL);                                                                                   \
        }                                                                                                              \
        return r;                                                                                                      \
    }
COMPARE_LOOP(compare_u16, uint16_t, a[l] != b[l])
COMPARE_LOOP(compare_s16, int16_t, a[l] != b[l])
COMPARE_LOOP(compare_u64, uint64_t, a[l] != b[l])
COMPARE_LOOP(compare_s64, int64_t, a[l] != b[l])
COMPARE_LOOP(ordered_f64, double, a[l]<b[l] || a[l]> b[l])
#ifndef __AVX512F__
COMPARE_LOOP(compare_u32, uint32_t, a[l] != b[l])
COMPARE_LOOP(compare_s32, int32_t, a[l] != b[l])
COMPARE_LOOP(ordered_f32, float, a[l]<b[l] || a[l]> b[l])
#endif

/* With what NaN makes of it. */
static uint32_t compare_f32(const gs_ins *i, const float *a, const float *b) {
    uint32_t nan = 0;
    if (i->cmp <= NE && !i->flag) return ordered_f32(a, b, i->cmp);
    for (int l = 0; l < 32; ++l) nan |= (uint32_t)(a[l] != a[l] || b[l] != b[l]) << l;
    return i->cmp == NAN_ ? nan : i->cmp == NUM ? ~nan : nan | ordered_f32(a, b, i->cmp);
}
static uint32_t compare_f64(const gs_ins *i, const double *a, const double *b) {
    uint32_t nan = 0;
    if (i->cmp <= NE && !i->flag) return ordered_f64(a, b, i->cmp);
    for (int l = 0; l < 32; ++l) nan |= (uint32_t)(a[l] != a[l] || b[l] != b[l]) << l;
    return i->cmp == NAN_ ? nan : i->cmp == NUM ? ~nan : nan | ordered_f64(a, b, i->cmp);
}
static void flush_f32(float to[32], const float *from) {
    for (int l = 0; l < 32; ++l) {
        uint32_t u = gs_bits(from[l]);
        to[l] = gs_float(u & 0x7f800000u ? u : u & 0x80000000u);
    }
}
/* Halves: part 0 or 1 of a pair, widened. */
static void half_part(float to[32], const uint8_t *from, const gs_ins *i, int part, bool bf16) {
    uint16_t h[32];
    for (int l = 0; l < 32; ++l) {
        memcpy(&h[l], from + 2 * (l * i->vec + part), 2);
        if (i->ftz && !(h[l] & (bf16 ? 0x7f80 : 0x7c00))) h[l] &= 0x8000;
    }
    half_widen(to, h, 32, bf16);
}
static uint32_t compare_half(const gs_ins *i, const uint8_t *a, const uint8_t *b, int part) {
    bool bf16 = i->type2 == T_BF16 || i->type2 == T_BF16X2;
    float x[32], y[32];
    half_part(x, a, i, part, bf16);
    half_part(y, b, i, part, bf16);
    return compare_f32(i, x, y);
}
/* Operands k and k + 1, compared as the instruction says; part: of a pair */
static uint32_t compare(const gs_warp *w, const gs_ins *i, int k, int part) {
    const uint8_t *a = OPND(k), *b = OPND(k + 1);
    switch (i->type2) {
    case T_B16:
    case T_U16: return compare_u16((const uint16_t *)a, (const uint16_t *)b, i->cmp);
    case T_S16: return compare_s16((const int16_t *)a, (const int16_t *)b, i->cmp);
    case T_B32:
    case T_U32: return compare_u32((const uint32_t *)a, (const uint32_t *)b, i->cmp);
    case T_S32: return compare_s32((const int32_t *)a, (const int32_t *)b, i->cmp);
    case T_B64:
    case T_U64: return compare_u64((const uint64_t *)a, (const uint64_t *)b, i->cmp);
    case T_S64: return compare_s64((const int64_t *)a, (const int64_t *)b, i->cmp);
    case T_F64: return compare_f64(i, (const double *)a, (const double *)b);
    case T_F32: {
        if (!i->ftz) return compare_f32(i, (const float *)a, (const float *)b);
        float x[32], y[32];
        flush_f32(x, (const float *)a);
        flush_f32(y, (const float *)b);
        return compare_f32(i, x, y);
    }
    default: return compare_half(i, a, b, part);
    }
}
static uint32_t combine(uint8_t sub, uint32_t t, uint32_t c) {
    return sub == BOOL_AND ? t & c : sub == BOOL_OR ? t | c : sub == BOOL_XOR ? t ^ c : t;
}

/* ------------------------------------------------------------------ setp: operands p, q, a, b, c */
static void setp(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t c = i->sub ? gs_pred_read(w, i, 4) : 0;
    uint32_t t = compare(w, i, 2, 0), other = i->vec == 2 ? compare(w, i, 2, 1) : ~t;
    gs_pred_write(w, i, 0, combine(i->sub, t, c), m);
    gs_pred_write(w, i, 1, combine(i->sub, other, c), m);
}

/* ------------------------------------------------------------------ set: operands d, a, b, c */
static void set(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t c = i->sub ? gs_pred_read(w, i, 3) : 0;
    uint32_t t = combine(i->sub, compare(w, i, 1, 0), c);
    if (i->vec == 2) { /* two results of 16 bits */
        uint32_t *d = (uint32_t *)OPND(0), high = combine(i->sub, compare(w, i, 1, 1), c);
        uint32_t yes = i->type == T_F16X2 ? 0x3c00 : i->type == T_BF16X2 ? 0x3f80 : 0xffff;
        LANES({ d[l] = (t >> l & 1 ? yes : 0) | (high >> l & 1 ? yes << 16 : 0); });
    } else if (i->op[0].size == 2) {
        uint16_t *d = (uint16_t *)OPND(0), yes = i->type == T_F16 ? 0x3c00 : i->type == T_BF16 ? 0x3f80 : 0xffff;
        LANES({ d[l] = t >> l & 1 ? yes : 0; });
    } else {
        uint32_t *d = (uint32_t *)OPND(0), yes = i->type == T_F32 ? 0x3f800000u : UINT32_MAX;
        LANES({ d[l] = t >> l & 1 ? yes : 0; });
    }
}

/* ------------------------------------------------------------------ decoding */
static bool is_float_type(gs_type t) {
    return t == T_F16 || t == T_BF16 || t == T_F16X2 || t == T_BF16X2 || t == T_F32 || t == T_F64;
}
/* The comparison, the boolean operation, .ftz; what fits the compared type. */
static void decode_comparison(gs_decoder *d, gs_ins *i, gs_type t) {
    static const char *const ordered[] = {"lt", "le", "gt", "ge", "eq", "ne"};
    static const char *const unordered[] = {"ltu", "leu", "gtu", "geu", "equ", "neu"};
    static const char *const unsigned_names[] = {"lo", "ls", "hi", "hs"};
    static const char *const bools[] = {"and", "or", "xor"};
    int cmp = gs_mod_of(d, ordered, 6, -1);
    if (is_float_type(t)) {
        if (cmp < 0 && (cmp = gs_mod_of(d, unordered, 6, -1)) >= 0) i->flag = true;
        if (cmp < 0 && gs_mod(d, "num")) cmp = NUM;
        if (cmp < 0 && gs_mod(d, "nan")) cmp = NAN_;
        if (t != T_F64 && t != T_BF16 && t != T_BF16X2) i->ftz = gs_mod(d, "ftz");
    } else if (cmp < 0 && (t == T_U16 || t == T_U32 || t == T_U64))
        cmp = gs_mod_of(d, unsigned_names, 4, -1);
    if (cmp < 0) gs_die(d, "no comparison that this type has");
    if ((t == T_B16 || t == T_B32 || t == T_B64) && cmp != EQ && cmp != NE) gs_die(d, "bits have only .eq and .ne");
    i->cmp = (uint8_t)cmp;
    i->sub = (uint8_t)(gs_mod_of(d, bools, 3, -1) + 1);
    i->vec = t == T_F16X2 || t == T_BF16X2 ? 2 : 1;
    i->type2 = (uint8_t)t;
}
static void decode_setp(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    alu_types(d, 1);
    gs_type t = i->type;
    decode_comparison(d, i, t);
    bool two = d->n_arg > 1 && d->arg[1].after_bar;
    if (i->vec == 2 && !two) gs_die(d, "p|q is required");
    if ((t == T_F16 || t == T_BF16) && two) gs_die(d, "p|q is of pairs");
    int a = two ? 2 : 1;
    gs_need_args(d, a + 2 + (i->sub != BOOL_NONE));
    alu_pred(d, 0);
    alu_pred(d, two ? 1 : -1);
    if (d->op[0].negated || d->op[1].negated) gs_die(d, "a destination is negated");
    alu_arg(d, a, gs_type_bytes[t]);
    alu_arg(d, a + 1, gs_type_bytes[t]);
    if (i->sub) alu_pred(d, a + 2);
    if (i->sub && !d->op[4].size) gs_die(d, "a predicate is missing");
}
static void decode_set(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    alu_types(d, 2);
    gs_type to = i->type, t = i->type2;
    decode_comparison(d, i, t);
    if (i->ftz && (to == T_BF16 || to == T_BF16X2)) gs_die(d, ".ftz with a result of bf16");
    bool half = t == T_F16 || t == T_BF16, ok = to == T_U32 || to == T_S32;
    if (i->vec == 2)
        ok |= to == t;
    else
        ok |= (to == T_F16 && t != T_BF16) || to == T_BF16 || (half ? to == T_U16 || to == T_S16 : to == T_F32);
    if (!ok) gs_die(d, "the result's type");
    gs_need_args(d, 3 + (i->sub != BOOL_NONE));
    alu_result(d, gs_type_bytes[to]);
    alu_arg(d, 1, gs_type_bytes[t]);
    alu_arg(d, 2, gs_type_bytes[t]);
    if (i->sub) alu_pred(d, 3);
    if (i->sub && !d->op[3].size) gs_die(d, "a predicate is missing");
}

// clang-format off
#define ROWS(type) \
    {"setp", type, decode_setp, setp, GS_C_COMPARE, NULL}, {"set", type, decode_set, set, GS_C_COMPARE, NULL}

GS_TABLE(compare) = {
    ROWS(T_B16), ROWS(T_U16), ROWS(T_S16), ROWS(T_B32), ROWS(T_U32), ROWS(T_S32), ROWS(T_B64), ROWS(T_U64), ROWS(T_S64),
    ROWS(T_F16), ROWS(T_BF16), ROWS(T_F16X2), ROWS(T_BF16X2), ROWS(T_F32), ROWS(T_F64),
    {0}
};
// clang-format on
