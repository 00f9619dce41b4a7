/* SPDX-License-Identifier: Apache-2.0 */
/* Integer arithmetic (PTX ISA, "Integer Arithmetic Instructions" and "Extended-Precision Integer Arithmetic"): add to
 * fns, the packed 16-bit forms, dot products of bytes, and the video instructions that CUDA's SIMD intrinsics still
 * become (vabsdiff2, vabsdiff4; the others are done in plain integer code by the compiler).
 *
 * Division by zero is unspecified in PTX: here the quotient has all bits set and the remainder is the dividend. */
#include "alu.h"

/* ------------------------------------------------------------------ add, sub, mul, mad */
BINARY(add16, uint16_t, a + b)
BINARY(add32, uint32_t, a + b)
BINARY(add64, uint64_t, a + b)
BINARY(sub16, uint16_t, a - b)
BINARY(sub32, uint32_t, a - b)
BINARY(sub64, uint64_t, a - b)
BINARY(mul16, uint16_t, (uint32_t)a *b)
BINARY(mul32, uint32_t, a *b)
BINARY(mul64, uint64_t, a *b)
BINARY(mulhi_u16, uint16_t, ((uint32_t)a * b) >> 16)
BINARY(mulhi_s16, int16_t, ((int32_t)a * b) >> 16)
BINARY(mulhi_u32, uint32_t, ((uint64_t)a * b) >> 32)
BINARY(mulhi_s32, int32_t, ((int64_t)a * b) >> 32)
BINARY(mulhi_u64, uint64_t, ((unsigned __int128)a * b) >> 64)
BINARY(mulhi_s64, int64_t, ((__int128)a * b) >> 64)
TERNARY(mad16, uint16_t, (uint32_t)a *b + c)
TERNARY(mad32, uint32_t, a *b + c)
TERNARY(mad64, uint64_t, a *b + c)
TERNARY(madhi_u16, uint16_t, (((uint32_t)a * b) >> 16) + c)
TERNARY(madhi_s16, int16_t, (((int32_t)a * b) >> 16) + c)
TERNARY(madhi_u32, uint32_t, (((uint64_t)a * b) >> 32) + c)
TERNARY(madhi_s32, uint32_t, (uint32_t)(((int64_t)(int32_t)a * (int32_t)b) >> 32) + c)
TERNARY(madhi_u64, uint64_t, (uint64_t)(((unsigned __int128)a * b) >> 64) + c)
TERNARY(madhi_s64, uint64_t, (uint64_t)(((__int128)(int64_t)a * (int64_t)b) >> 64) + c)

static inline int32_t clamp_s32(int64_t v) {
    return v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? INT32_MIN : (int32_t)v;
}
BINARY(add_sat_s32, int32_t, clamp_s32((int64_t)a + b))
BINARY(sub_sat_s32, int32_t, clamp_s32((int64_t)a - b))
TERNARY(madhi_sat_s32, int32_t, clamp_s32((((int64_t)a * b) >> 32) + c))

/* Products twice as wide as their factors. */
#define WIDE_MUL(name, T, TD)                                                                                          \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) {                                                        \
        TD *d = (TD *)OPND(0);                                                                                         \
        const T *A = (const T *)OPND(1), *B = (const T *)OPND(2);                                                      \
        LANES({ d[l] = (TD)((TD)A[l] * (TD)B[l]); });                                                                  \
    }
#define WIDE_MAD(name, T, TD, UD)                                                                                      \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) {                                                        \
        UD *d = (UD *)OPND(0);                                                                                         \
        const T *A = (const T *)OPND(1), *B = (const T *)OPND(2);                                                      \
        const UD *C = (const UD *)OPND(3);                                                                             \
        LANES({ d[l] = (UD)((UD)((TD)A[l] * (TD)B[l]) + C[l]); });                                                     \
    }
WIDE_MUL(mulwide_u16, uint16_t, uint32_t)
WIDE_MUL(mulwide_s16, int16_t, int32_t)
WIDE_MUL(mulwide_u32, uint32_t, uint64_t)
WIDE_MUL(mulwide_s32, int32_t, int64_t)
WIDE_MAD(madwide_u16, uint16_t, uint32_t, uint32_t)
WIDE_MAD(madwide_s16, int16_t, int32_t, uint32_t)
WIDE_MAD(madwide_u32, uint32_t, uint64_t, uint64_t)
WIDE_MAD(madwide_s32, int32_t, int64_t, uint64_t)

/* Factors of 24 bits, a product of 48. */
static inline uint64_t product24_u(uint32_t a, uint32_t b) { return (uint64_t)(a & 0xffffff) * (b & 0xffffff); }
static inline int64_t product24_s(uint32_t a, uint32_t b) {
    return (int64_t)((int32_t)(a << 8) >> 8) * ((int32_t)(b << 8) >> 8);
}
BINARY(mul24lo_u32, uint32_t, product24_u(a, b))
BINARY(mul24lo_s32, uint32_t, product24_s(a, b))
BINARY(mul24hi_u32, uint32_t, product24_u(a, b) >> 16)
BINARY(mul24hi_s32, uint32_t, product24_s(a, b) >> 16)
TERNARY(mad24lo_u32, uint32_t, (uint32_t)product24_u(a, b) + c)
TERNARY(mad24lo_s32, uint32_t, (uint32_t)product24_s(a, b) + c)
TERNARY(mad24hi_u32, uint32_t, (uint32_t)(product24_u(a, b) >> 16) + c)
TERNARY(mad24hi_s32, uint32_t, (uint32_t)(product24_s(a, b) >> 16) + c)
TERNARY(mad24hi_sat_s32, uint32_t, clamp_s32((product24_s(a, b) >> 16) + (int32_t)c))

/* ------------------------------------------------------------------ carries: one bit a lane, in the warp */
static inline void put_carry(gs_warp *w, const gs_ins *i, uint32_t carry, uint32_t m) {
    if (i->sub) w->carry = (w->carry & ~m) | (carry & m); /* sub: the instruction has .cc */
}
/* flag: takes the carry in */
#define CARRY_OPS(bits, T)                                                                                             \
    static void add_carry##bits(gs_warp *w, const gs_ins *i, uint32_t m) {                                             \
        T *d = (T *)OPND(0);                                                                                           \
        const T *A = (const T *)OPND(1), *B = (const T *)OPND(2);                                                      \
        uint32_t in = i->flag ? w->carry : 0, out = 0;                                                                 \
        LANES({                                                                                                        \
            T first = A[l] + B[l], sum = first + (in >> l & 1);                                                        \
            out |= (uint32_t)(first < A[l] || sum < first) << l;                                                       \
            d[l] = sum;                                                                                                \
        });                                                                                                            \
        put_carry(w, i, out, m);                                                                                       \
    }                                                                                                                  \
    static void sub_carry##bits(gs_warp *w, const gs_ins *i, uint32_t m) {                                             \
        T *d = (T *)OPND(0);                                                                                           \
        const T *A = (const T *)OPND(1), *B = (const T *)OPND(2);                                                      \
        uint32_t in = i->flag ? w->carry : 0, out = 0;                                                                 \
        LANES({                                                                                                        \
            T first = A[l] - B[l], borrow = in >> l & 1;                                                               \
            out |= (uint32_t)(A[l] < B[l] || first < borrow) << l;                                                     \
            d[l] = first - borrow;                                                                                     \
        });                                                                                                            \
        put_carry(w, i, out, m);                                                                                       \
    }
CARRY_OPS(32, uint32_t)
CARRY_OPS(64, uint64_t)

#define CARRY_MAD(name, T, PRODUCT)                                                                                    \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) {                                                        \
        T *d = (T *)OPND(0);                                                                                           \
        const T *A = (const T *)OPND(1), *B = (const T *)OPND(2), *C = (const T *)OPND(3);                             \
        uint32_t in = i->flag ? w->carry : 0, out = 0;                                                                 \
        LANES({                                                                                                        \
            T a = A[l], b = B[l], product = (T)(PRODUCT);                                                              \
            T first = product + C[l], sum = first + (in >> l & 1);                                                     \
            out |= (uint32_t)(first < product || sum < first) << l;                                                    \
            d[l] = sum;                                                                                                \
        });                                                                                                            \
        put_carry(w, i, out, m);                                                                                       \
    }
CARRY_MAD(madlo_carry32, uint32_t, a *b)
CARRY_MAD(madlo_carry64, uint64_t, a *b)
CARRY_MAD(madhi_carry_u32, uint32_t, ((uint64_t)a * b) >> 32)
CARRY_MAD(madhi_carry_s32, uint32_t, ((int64_t)(int32_t)a * (int32_t)b) >> 32)
CARRY_MAD(madhi_carry_u64, uint64_t, ((unsigned __int128)a * b) >> 64)
CARRY_MAD(madhi_carry_s64, uint64_t, ((__int128)(int64_t)a * (int64_t)b) >> 64)

/* ------------------------------------------------------------------ sad, div, rem, abs, neg, min, max */
TERNARY(sad_u16, uint16_t, c + (a < b ? b - a : a - b))
TERNARY(sad_s16, int16_t, c + (a < b ? b - a : a - b))
TERNARY(sad_u32, uint32_t, c + (a < b ? b - a : a - b))
TERNARY(sad_s32, uint32_t, c + ((int32_t)a < (int32_t)b ? b - a : a - b))
TERNARY(sad_u64, uint64_t, c + (a < b ? b - a : a - b))
TERNARY(sad_s64, uint64_t, c + ((int64_t)a < (int64_t)b ? b - a : a - b))

static inline int64_t divide_s64(int64_t a, int64_t b) {
    if (b == 0) return -1;
    return b == -1 ? (int64_t)(0 - (uint64_t)a) : a / b; /* the smallest by -1 wraps */
}
static inline int64_t remainder_s64(int64_t a, int64_t b) {
    if (b == 0) return a;
    return b == -1 ? 0 : a % b;
}
BINARY(div_u16, uint16_t, b ? a / b : 0xffff)
BINARY(div_s16, int16_t, divide_s64(a, b))
BINARY(div_u32, uint32_t, b ? a / b : UINT32_MAX)
BINARY(div_s32, int32_t, divide_s64(a, b))
BINARY(div_u64, uint64_t, b ? a / b : UINT64_MAX)
BINARY(div_s64, int64_t, divide_s64(a, b))
BINARY(rem_u16, uint16_t, b ? a % b : a)
BINARY(rem_s16, int16_t, remainder_s64(a, b))
BINARY(rem_u32, uint32_t, b ? a % b : a)
BINARY(rem_s32, int32_t, remainder_s64(a, b))
BINARY(rem_u64, uint64_t, b ? a % b : a)
BINARY(rem_s64, int64_t, remainder_s64(a, b))

UNARY(abs16, int16_t, a < 0 ? -a : a)
UNARY(abs32, uint32_t, (int32_t)a < 0 ? 0 - a : a)
UNARY(abs64, uint64_t, (int64_t)a < 0 ? 0 - a : a)
UNARY(neg16, uint16_t, 0 - a)
UNARY(neg32, uint32_t, 0 - a)
UNARY(neg64, uint64_t, 0 - a)

#define LEAST (a < b ? a : b)
#define MOST  (a > b ? a : b)
BINARY(min_u16, uint16_t, LEAST)
BINARY(min_s16, int16_t, LEAST)
BINARY(min_u32, uint32_t, LEAST)
BINARY(min_s32, int32_t, LEAST)
BINARY(min_u64, uint64_t, LEAST)
BINARY(min_s64, int64_t, LEAST)
BINARY(max_u16, uint16_t, MOST)
BINARY(max_s16, int16_t, MOST)
BINARY(max_u32, uint32_t, MOST)
BINARY(max_s32, int32_t, MOST)
BINARY(max_u64, uint64_t, MOST)
BINARY(max_s64, int64_t, MOST)
/* .relu: negative results become 0 */
BINARY(min_relu_s32, int32_t, LEAST < 0 ? 0 : LEAST)
BINARY(max_relu_s32, int32_t, MOST < 0 ? 0 : MOST)

/* Two 16-bit values in 32 bits. */
#define PACKED16(name, T, E)                                                                                           \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) {                                                        \
        T *d = (T *)OPND(0);                                                                                           \
        const T *A = (const T *)OPND(1), *B = (const T *)OPND(2);                                                      \
        LANES({                                                                                                        \
            for (int h = 2 * l; h < 2 * l + 2; ++h) {                                                                  \
                T a = A[h], b = B[h];                                                                                  \
                d[h] = (T)(E);                                                                                         \
            }                                                                                                          \
        });                                                                                                            \
    }
PACKED16(add16x2, uint16_t, a + b)
PACKED16(min_u16x2, uint16_t, LEAST)
PACKED16(min_s16x2, int16_t, LEAST)
PACKED16(max_u16x2, uint16_t, MOST)
PACKED16(max_s16x2, int16_t, MOST)
PACKED16(min_relu_s16x2, int16_t, LEAST < 0 ? 0 : LEAST)
PACKED16(max_relu_s16x2, int16_t, MOST < 0 ? 0 : MOST)

/* ------------------------------------------------------------------ bits */
/* A count of 32 bits from an operand of T. */
#define COUNT(name, T, E)                                                                                              \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) {                                                        \
        uint32_t *d = (uint32_t *)OPND(0);                                                                             \
        const T *A = (const T *)OPND(1);                                                                               \
        LANES({                                                                                                        \
            T a = A[l];                                                                                                \
            d[l] = (uint32_t)(E);                                                                                      \
        });                                                                                                            \
    }
COUNT(popc32, uint32_t, __builtin_popcount(a))
COUNT(popc64, uint64_t, __builtin_popcountll(a))
COUNT(clz32, uint32_t, a ? __builtin_clz(a) : 32)
COUNT(clz64, uint64_t, a ? __builtin_clzll(a) : 64)

/* The highest bit that differs from the sign; shiftamt counts it from the top. */
static inline uint32_t find_bit(uint64_t a, unsigned bits, bool is_signed, bool shiftamt) {
    if (is_signed && (a >> (bits - 1) & 1)) a = ~a;
    if (bits == 32) a &= 0xffffffffu;
    if (!a) return UINT32_MAX;
    uint32_t at = 63u - (uint32_t)__builtin_clzll(a);
    return shiftamt ? bits - 1 - at : at;
}
COUNT(bfind_u32, uint32_t, find_bit(a, 32, false, i->flag))
COUNT(bfind_s32, uint32_t, find_bit(a, 32, true, i->flag))
COUNT(bfind_u64, uint64_t, find_bit(a, 64, false, i->flag))
COUNT(bfind_s64, uint64_t, find_bit(a, 64, true, i->flag))

static inline uint64_t reverse64(uint64_t a) {
    a = (a >> 1 & 0x5555555555555555u) | (a & 0x5555555555555555u) << 1;
    a = (a >> 2 & 0x3333333333333333u) | (a & 0x3333333333333333u) << 2;
    a = (a >> 4 & 0x0f0f0f0f0f0f0f0fu) | (a & 0x0f0f0f0f0f0f0f0fu) << 4;
    return __builtin_bswap64(a);
}
UNARY(brev32, uint32_t, reverse64(a) >> 32)
UNARY(brev64, uint64_t, reverse64(a))

/* Bit fields: position and length are the low 8 bits of their operands. */
static inline uint64_t field_extract(uint64_t a, uint32_t pos, uint32_t len, unsigned bits, bool is_signed) {
    pos &= 255;
    len &= 255;
    if (!len) return 0;
    /* Past its top the value is its sign (or 0) for ever: shift it as one of 64 bits. */
    int64_t v = is_signed ? (int64_t)(a << (64 - bits)) >> (64 - bits) : (int64_t)a;
    if (is_signed) {
        v >>= pos > 63 ? 63 : pos;
        return len > 63 ? (uint64_t)v : (uint64_t)((int64_t)((uint64_t)v << (64 - len)) >> (64 - len));
    }
    uint64_t u = pos > 63 ? 0 : a >> pos;
    return len > 63 ? u : u & ((1ull << len) - 1);
}
static inline uint64_t field_insert(uint64_t a, uint64_t b, uint32_t pos, uint32_t len) {
    pos &= 255;
    len &= 255;
    if (pos > 63 || !len) return b;
    uint64_t field = (len > 63 ? UINT64_MAX : (1ull << len) - 1) << pos;
    return (b & ~field) | (a << pos & field);
}
#define FIELD_EXTRACT(name, T, bits, is_signed)                                                                        \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) {                                                        \
        T *d = (T *)OPND(0);                                                                                           \
        const T *A = (const T *)OPND(1);                                                                               \
        const uint32_t *P = (const uint32_t *)OPND(2), *N = (const uint32_t *)OPND(3);                                 \
        LANES({ d[l] = (T)field_extract(A[l], P[l], N[l], bits, is_signed); });                                        \
    }
FIELD_EXTRACT(bfe_u32, uint32_t, 32, false)
FIELD_EXTRACT(bfe_s32, uint32_t, 32, true)
FIELD_EXTRACT(bfe_u64, uint64_t, 64, false)
FIELD_EXTRACT(bfe_s64, uint64_t, 64, true)
#define FIELD_INSERT(name, T)                                                                                          \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) {                                                        \
        T *d = (T *)OPND(0);                                                                                           \
        const T *A = (const T *)OPND(1), *B = (const T *)OPND(2);                                                      \
        const uint32_t *P = (const uint32_t *)OPND(3), *N = (const uint32_t *)OPND(4);                                 \
        LANES({ d[l] = (T)field_insert(A[l], B[l], P[l], N[l]); });                                                    \
    }
FIELD_INSERT(bfi32, uint32_t)
FIELD_INSERT(bfi64, uint64_t)

/* The offset-th set bit of the mask from bit `base` on, upwards or (offset < 0) downwards. */
static inline uint32_t find_nth(uint32_t mask, uint32_t base, int32_t offset) {
    if (base > 31) return UINT32_MAX; /* undefined in PTX */
    if (offset == 0) return mask >> base & 1 ? base : UINT32_MAX;
    int64_t left = offset > 0 ? (int64_t)offset : -(int64_t)offset;
    int step = offset > 0 ? 1 : -1;
    for (int at = (int)base; at >= 0 && at < 32; at += step)
        if (mask >> at & 1 && --left == 0) return (uint32_t)at;
    return UINT32_MAX;
}
TERNARY(fns32, uint32_t, find_nth(a, b, (int32_t)c))

/* szext: extends an n-bit value; bmsk: a mask of b bits from bit a. flag: .clamp, else .wrap */
static inline uint32_t extend(uint32_t a, uint32_t n, bool clamp, bool is_signed) {
    if (clamp && n >= 32) return a;
    n &= 31;
    if (!n) return 0;
    return is_signed ? (uint32_t)((int32_t)(a << (32 - n)) >> (32 - n)) : a & ((1u << n) - 1);
}
static inline uint32_t bit_mask(uint32_t from, uint32_t n, bool clamp) {
    if (clamp && from >= 32) return 0;
    from &= 31;
    if (!clamp) n &= 31;
    uint64_t ones = n >= 32 ? 0xffffffffu : (1ull << n) - 1;
    return (uint32_t)(ones << from);
}
BINARY(szext_u32, uint32_t, extend(a, b, i->flag, false))
BINARY(szext_s32, uint32_t, extend(a, b, i->flag, true))
BINARY(bmsk32, uint32_t, bit_mask(a, b, i->flag))

/* ------------------------------------------------------------------ dot products and absolute differences of parts */
static inline int64_t part(uint32_t v, unsigned k, unsigned bits, bool is_signed) {
    uint32_t shifted = v << (32 - bits * (k + 1));
    return is_signed ? (int32_t)shifted >> (32 - bits) : (int64_t)(shifted >> (32 - bits));
}
#ifdef __AVX512BW__
/* Bytes 0 and 2, or 1 and 3, of each word as 16-bit numbers: two of them make one product sum. */
static inline __m512i even_bytes(__m512i v, bool is_signed) {
    v = _mm512_slli_epi16(v, 8);
    return is_signed ? _mm512_srai_epi16(v, 8) : _mm512_srli_epi16(v, 8);
}
static inline __m512i odd_bytes(__m512i v, bool is_signed) {
    return is_signed ? _mm512_srai_epi16(v, 8) : _mm512_srli_epi16(v, 8);
}
static inline void dot16(uint32_t *r, const uint32_t *a, const uint32_t *b, const uint32_t *c, bool sa, bool sb) {
    __m512i x = _mm512_loadu_si512(a), y = _mm512_loadu_si512(b), sum = _mm512_loadu_si512(c);
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(even_bytes(x, sa), even_bytes(y, sb)));
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(odd_bytes(x, sa), odd_bytes(y, sb)));
    _mm512_storeu_si512(r, sum);
}
#else
static inline void dot16(uint32_t *r, const uint32_t *a, const uint32_t *b, const uint32_t *c, bool sa, bool sb) {
    for (int l = 0; l < 16; ++l) {
        r[l] = c[l];
        for (unsigned k = 0; k < 4; ++k) r[l] += (uint32_t)(part(a[l], k, 8, sa) * part(b[l], k, 8, sb));
    }
}
#endif
static void dp4a(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t *d = (uint32_t *)OPND(0), r[32];
    const uint32_t *A = (const uint32_t *)OPND(1), *B = (const uint32_t *)OPND(2), *C = (const uint32_t *)OPND(3);
    bool sa = i->type == T_S32, sb = i->type2 == T_S32;
    dot16(r, A, B, C, sa, sb);
    dot16(r + 16, A + 16, B + 16, C + 16, sa, sb);
    LANES({ d[l] = r[l]; });
}
static void dp2a(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t *d = (uint32_t *)OPND(0);
    const uint32_t *A = (const uint32_t *)OPND(1), *B = (const uint32_t *)OPND(2), *C = (const uint32_t *)OPND(3);
    bool sa = i->type == T_S32, sb = i->type2 == T_S32;
    unsigned first = i->flag ? 2 : 0; /* .hi: the upper two bytes of b */
    LANES({
        uint32_t sum = C[l];
        for (unsigned k = 0; k < 2; ++k) sum += (uint32_t)(part(A[l], k, 16, sa) * part(B[l], first + k, 8, sb));
        d[l] = sum;
    });
}

/* vabsdiff4 and vabsdiff2: types of d, a, b. .add: their sum and c; else the parts themselves. sub: bits of a part */
static void vabsdiff(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t *d = (uint32_t *)OPND(0);
    const uint32_t *A = (const uint32_t *)OPND(1), *B = (const uint32_t *)OPND(2), *C = (const uint32_t *)OPND(3);
    unsigned bits = i->sub, n = 32 / bits;
    bool sa = i->type2 == T_S32, sb = i->type3 == T_S32;
    int64_t most = i->type == T_S32 ? (1ll << (bits - 1)) - 1 : (1ll << bits) - 1;
    LANES({
        uint32_t sum = C[l], packed = 0;
        for (unsigned k = 0; k < n; ++k) {
            int64_t v = part(A[l], k, bits, sa) - part(B[l], k, bits, sb);
            if (v < 0) v = -v;
            if (i->sat && v > most) v = most;
            sum += (uint32_t)v;
            packed |= ((uint32_t)v & (uint32_t)((1ull << bits) - 1)) << (bits * k);
        }
        d[l] = i->flag ? sum : packed;
    });
}

/* ------------------------------------------------------------------ decoding */
static void decode_wide2(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    alu_types(d, 1);
    gs_need_args(d, 3);
    int n = gs_type_bytes[i->type];
    alu_result(d, 2 * n);
    alu_arg(d, 1, n);
    alu_arg(d, 2, n);
}
static void decode_wide3(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    alu_types(d, 1);
    gs_need_args(d, 4);
    int n = gs_type_bytes[i->type];
    alu_result(d, 2 * n);
    alu_arg(d, 1, n);
    alu_arg(d, 2, n);
    alu_arg(d, 3, 2 * n);
}
static void decode_carry(gs_decoder *d, gs_ins *i, const gs_row *row) {
    bool mad = d->base[0] == 'm';
    i->flag = d->base[3] == 'c'; /* addc, subc, madc */
    i->sub = gs_mod(d, "cc");
    if (mad)
        alu_ternary(d, i, row);
    else
        alu_binary(d, i, row);
}
static void decode_count(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    alu_types(d, 1);
    gs_need_args(d, 2);
    if (!strcmp(d->base, "bfind")) i->flag = gs_mod(d, "shiftamt");
    alu_result(d, 4);
    alu_arg(d, 1, gs_type_bytes[i->type]);
}
/* bfe, bfi: the last two operands are 32 bits */
static void decode_field(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    int n = strcmp(d->base, "bfi") ? 4 : 5;
    alu_types(d, 1);
    gs_need_args(d, n);
    alu_result(d, gs_type_bytes[i->type]);
    for (int k = 1; k < n - 2; ++k) alu_arg(d, k, gs_type_bytes[i->type]);
    alu_arg(d, n - 2, 4);
    alu_arg(d, n - 1, 4);
}
static void decode_clamp(gs_decoder *d, gs_ins *i, const gs_row *row) {
    i->flag = gs_mod(d, "clamp");
    if (!i->flag && !gs_mod(d, "wrap")) gs_die(d, ".clamp or .wrap expected");
    alu_binary(d, i, row);
}
static void need_32(gs_decoder *d, int n) {
    alu_types(d, n);
    for (int k = 0; k < n; ++k)
        if (d->types[k] != T_U32 && d->types[k] != T_S32) gs_die(d, "types .u32 and .s32 expected");
}
static void decode_dot(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    need_32(d, 2);
    if (!strcmp(d->base, "dp2a")) {
        i->flag = gs_mod(d, "hi");
        if (!i->flag && !gs_mod(d, "lo")) gs_die(d, ".lo or .hi expected");
    }
    alu_operands(d, 4, 4);
}
static void decode_video(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    need_32(d, 3);
    i->sub = d->base[8] == '4' ? 8 : 16;
    i->sat = gs_mod(d, "sat");
    i->flag = gs_mod(d, "add");
    if (i->sat && i->flag) gs_die(d, ".sat with .add");
    alu_operands(d, 4, 4);
}

// clang-format off
#define ROW(name, type, decode, exec) {name, type, decode, exec, GS_C_INT, NULL}
#define BOTH16(name, decode, exec) ROW(name, T_U16, decode, exec), ROW(name, T_S16, decode, exec)
#define BOTH32(name, decode, exec) ROW(name, T_U32, decode, exec), ROW(name, T_S32, decode, exec)
#define BOTH64(name, decode, exec) ROW(name, T_U64, decode, exec), ROW(name, T_S64, decode, exec)
/* one function for either sign */
#define SAME(name, decode, f) BOTH16(name, decode, f##16), BOTH32(name, decode, f##32), BOTH64(name, decode, f##64)
/* a function for each sign */
#define EACH16(name, decode, f) ROW(name, T_U16, decode, f##_u16), ROW(name, T_S16, decode, f##_s16)
#define EACH32(name, decode, f) ROW(name, T_U32, decode, f##_u32), ROW(name, T_S32, decode, f##_s32)
#define EACH64(name, decode, f) ROW(name, T_U64, decode, f##_u64), ROW(name, T_S64, decode, f##_s64)
#define EACH(name, decode, f) EACH16(name, decode, f), EACH32(name, decode, f), EACH64(name, decode, f)

GS_TABLE(int) = {
    BOTH32("add.cc", decode_carry, add_carry32), BOTH64("add.cc", decode_carry, add_carry64),
    BOTH32("addc", decode_carry, add_carry32), BOTH64("addc", decode_carry, add_carry64),
    BOTH32("sub.cc", decode_carry, sub_carry32), BOTH64("sub.cc", decode_carry, sub_carry64),
    BOTH32("subc", decode_carry, sub_carry32), BOTH64("subc", decode_carry, sub_carry64),
    BOTH32("mad.lo.cc", decode_carry, madlo_carry32), BOTH64("mad.lo.cc", decode_carry, madlo_carry64),
    EACH32("mad.hi.cc", decode_carry, madhi_carry), EACH64("mad.hi.cc", decode_carry, madhi_carry),
    BOTH32("madc.lo", decode_carry, madlo_carry32), BOTH64("madc.lo", decode_carry, madlo_carry64),
    EACH32("madc.hi", decode_carry, madhi_carry), EACH64("madc.hi", decode_carry, madhi_carry),
    ROW("add.sat", T_S32, alu_binary, add_sat_s32),
    ROW("sub.sat", T_S32, alu_binary, sub_sat_s32),
    ROW("mad.hi.sat", T_S32, alu_ternary, madhi_sat_s32),
    ROW("mad24.hi.sat", T_S32, alu_ternary, mad24hi_sat_s32),

    SAME("add", alu_binary, add),
    ROW("add", T_U16X2, alu_binary, add16x2), ROW("add", T_S16X2, alu_binary, add16x2),
    SAME("sub", alu_binary, sub),
    SAME("mul.lo", alu_binary, mul), EACH("mul.hi", alu_binary, mulhi),
    EACH16("mul.wide", decode_wide2, mulwide), EACH32("mul.wide", decode_wide2, mulwide),
    SAME("mad.lo", alu_ternary, mad), EACH("mad.hi", alu_ternary, madhi),
    EACH16("mad.wide", decode_wide3, madwide), EACH32("mad.wide", decode_wide3, madwide),
    EACH32("mul24.lo", alu_binary, mul24lo), EACH32("mul24.hi", alu_binary, mul24hi),
    EACH32("mad24.lo", alu_ternary, mad24lo), EACH32("mad24.hi", alu_ternary, mad24hi),
    EACH("sad", alu_ternary, sad),
    EACH("div", alu_binary, div), EACH("rem", alu_binary, rem),
    ROW("abs", T_S16, alu_unary, abs16), ROW("abs", T_S32, alu_unary, abs32), ROW("abs", T_S64, alu_unary, abs64),
    ROW("neg", T_S16, alu_unary, neg16), ROW("neg", T_S32, alu_unary, neg32), ROW("neg", T_S64, alu_unary, neg64),

    ROW("min.relu", T_S32, alu_binary, min_relu_s32), ROW("max.relu", T_S32, alu_binary, max_relu_s32),
    ROW("min.relu", T_S16X2, alu_binary, min_relu_s16x2), ROW("max.relu", T_S16X2, alu_binary, max_relu_s16x2),
    EACH("min", alu_binary, min), EACH("max", alu_binary, max),
    ROW("min", T_U16X2, alu_binary, min_u16x2), ROW("min", T_S16X2, alu_binary, min_s16x2),
    ROW("max", T_U16X2, alu_binary, max_u16x2), ROW("max", T_S16X2, alu_binary, max_s16x2),

    ROW("popc", T_B32, decode_count, popc32), ROW("popc", T_B64, decode_count, popc64),
    ROW("clz", T_B32, decode_count, clz32), ROW("clz", T_B64, decode_count, clz64),
    EACH32("bfind", decode_count, bfind), EACH64("bfind", decode_count, bfind),
    ROW("brev", T_B32, alu_unary, brev32), ROW("brev", T_B64, alu_unary, brev64),
    EACH32("bfe", decode_field, bfe), EACH64("bfe", decode_field, bfe),
    ROW("bfi", T_B32, decode_field, bfi32), ROW("bfi", T_B64, decode_field, bfi64),
    ROW("fns", T_B32, alu_ternary, fns32),
    EACH32("szext", decode_clamp, szext), ROW("bmsk", T_B32, decode_clamp, bmsk32),

    BOTH32("dp4a", decode_dot, dp4a), BOTH32("dp2a", decode_dot, dp2a),
    BOTH32("vabsdiff4", decode_video, vabsdiff), BOTH32("vabsdiff2", decode_video, vabsdiff),
    {0}
};
// clang-format on
