/* SPDX-License-Identifier: Apache-2.0 */
/* Floating-point arithmetic worked out exactly and rounded once, in integers only: what the tests of PTX instructions
 * expect. Slow and plain on purpose, and nothing of it is shared with the simulator.
 *
 * A number is sign, 128-bit integer and power of two. Sums are made in a fixed-point integer wide enough for the
 * product of any two doubles; quotients and roots carry a last bit that says whether anything is left of them. */
#ifndef RQ_EXACT_H
#define RQ_EXACT_H
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef unsigned __int128 exact_uint;
typedef struct exact_format { /* precision with the hidden bit; exponents of the smallest and largest normal numbers */
    int precision, least, most;
} exact_format;
static const exact_format exact_f16 = {11, -14, 15}, exact_bf16 = {8, -126, 127}, exact_f32 = {24, -126, 127},
                          exact_f64 = {53, -1022, 1023}, exact_tf32 = {11, -126, 127}, exact_e5m2 = {3, -14, 15};

enum { EXACT_RN, EXACT_RZ, EXACT_RM, EXACT_RP, EXACT_RNA }; /* nearest even, to zero, down, up, nearest away */
typedef enum exact_class { EXACT_ZERO, EXACT_FINITE, EXACT_INFINITE, EXACT_NAN } exact_class;
typedef struct exact_number {
    exact_class is;
    bool negative;
    exact_uint size; /* the value is size * 2^exponent */
    int exponent;
} exact_number;

/* ---- formats */
static inline int exact_bits(exact_format f) { /* of all: fraction, exponent, sign */
    int exponent_bits = 1;
    while ((1 << exponent_bits) - 1 < 2 * f.most + 1) ++exponent_bits;
    return f.precision + exponent_bits;
}
static inline uint64_t exact_sign(exact_format f) { return 1ull << (exact_bits(f) - 1); }
static inline uint64_t exact_infinity(exact_format f) { return (uint64_t)(2 * f.most + 1) << (f.precision - 1); }
static inline uint64_t exact_nan(exact_format f) { return exact_sign(f) - 1; }
static inline bool exact_is_nan(exact_format f, uint64_t v) { return (v & (exact_sign(f) - 1)) > exact_infinity(f); }
static inline bool exact_is_subnormal(exact_format f, uint64_t v) {
    v &= exact_sign(f) - 1;
    return v && v < 1ull << (f.precision - 1);
}
static inline exact_number exact_of_bits(exact_format f, uint64_t v) {
    bool negative = (v & exact_sign(f)) != 0;
    v &= exact_sign(f) - 1;
    if (v >= exact_infinity(f))
        return (exact_number){v > exact_infinity(f) ? EXACT_NAN : EXACT_INFINITE, negative, 0, 0};
    uint64_t fraction = v & ((1ull << (f.precision - 1)) - 1);
    int field = (int)(v >> (f.precision - 1));
    if (field) fraction |= 1ull << (f.precision - 1);
    return (exact_number){fraction ? EXACT_FINITE : EXACT_ZERO, negative, fraction,
                          f.least - f.precision + 1 + (field ? field - 1 : 0)};
}
static inline exact_number exact_of_integer(bool negative, uint64_t size) {
    return (exact_number){size ? EXACT_FINITE : EXACT_ZERO, negative, size, 0};
}

/* ---- fixed point: bit 0 is 2^EXACT_LAST */
enum { EXACT_WORDS = 142, EXACT_LAST = -2272 };
typedef struct exact_fixed {
    uint32_t w[EXACT_WORDS];
} exact_fixed;
static inline void exact_place(exact_fixed *x, exact_uint size, int exponent) {
    int at = exponent - EXACT_LAST, word = at / 32, shift = at % 32;
    memset(x, 0, sizeof *x);
    for (int k = 0; k < 4; ++k) {
        uint64_t part = (uint64_t)(uint32_t)(size >> (32 * k)) << shift;
        x->w[word + k] |= (uint32_t)part;
        x->w[word + k + 1] |= (uint32_t)(part >> 32);
    }
}
static inline int exact_compare(const exact_fixed *a, const exact_fixed *b) {
    for (int k = EXACT_WORDS - 1; k >= 0; --k)
        if (a->w[k] != b->w[k]) return a->w[k] < b->w[k] ? -1 : 1;
    return 0;
}
static inline void exact_accumulate(exact_fixed *a, const exact_fixed *b, bool subtract) { /* a >= b when subtracting */
    int64_t carry = 0;
    for (int k = 0; k < EXACT_WORDS; ++k) {
        carry += (int64_t)a->w[k] + (subtract ? -(int64_t)b->w[k] : (int64_t)b->w[k]);
        a->w[k] = (uint32_t)carry;
        carry >>= 32;
    }
}
static inline int exact_bit(const exact_fixed *x, int at) { return at < 0 ? 0 : (int)(x->w[at / 32] >> (at % 32) & 1); }

/* Rounds to the format; *inexact says whether anything was lost (may be NULL). */
static inline uint64_t exact_round(bool negative, const exact_fixed *x, exact_format f, int mode, bool *inexact) {
    int top = 32 * EXACT_WORDS - 1;
    while (top >= 0 && !exact_bit(x, top)) --top;
    uint64_t sign = negative ? exact_sign(f) : 0;
    if (inexact) *inexact = false;
    if (top < 0) return sign;
    int exponent = top + EXACT_LAST < f.least ? f.least : top + EXACT_LAST,
        last = exponent - f.precision + 1 - EXACT_LAST;
    uint64_t kept = 0;
    for (int at = top; at >= last; --at) kept = kept << 1 | (uint64_t)exact_bit(x, at);
    bool half = exact_bit(x, last - 1), rest = false;
    for (int k = 0; k < last - 1 && !rest; k += (k % 32 == 0 && k + 32 <= last - 1) ? 32 : 1)
        rest = (k % 32 == 0 && k + 32 <= last - 1) ? x->w[k / 32] != 0 : exact_bit(x, k);
    if (inexact) *inexact = half || rest;
    bool up = mode == EXACT_RN    ? half && (rest || (kept & 1))
              : mode == EXACT_RNA ? half
              : mode == EXACT_RM  ? negative && (half || rest)
              : mode == EXACT_RP  ? !negative && (half || rest)
                                  : false;
    uint64_t v = ((uint64_t)(exponent - f.least) << (f.precision - 1)) + kept + up;
    if (v >= exact_infinity(f)) { /* too large */
        bool stays = mode == EXACT_RZ || (mode == EXACT_RM && !negative) || (mode == EXACT_RP && negative);
        v = exact_infinity(f) - (stays ? 1 : 0);
    }
    return sign | v;
}
static inline uint64_t exact_round_number(exact_number x, exact_format f, int mode, bool *inexact) {
    if (inexact) *inexact = false;
    if (x.is == EXACT_NAN) return exact_nan(f);
    uint64_t sign = x.negative ? exact_sign(f) : 0;
    if (x.is == EXACT_INFINITE) return sign | exact_infinity(f);
    if (x.is == EXACT_ZERO) return sign;
    exact_fixed v;
    exact_place(&v, x.size, x.exponent);
    return exact_round(x.negative, &v, f, mode, inexact);
}

/* ---- operations */
static inline exact_number exact_product(exact_number a, exact_number b) {
    bool negative = a.negative != b.negative;
    exact_number r = {EXACT_NAN, negative, 0, 0};
    if (a.is == EXACT_NAN || b.is == EXACT_NAN) return r;
    if (a.is == EXACT_INFINITE || b.is == EXACT_INFINITE) {
        if (a.is != EXACT_ZERO && b.is != EXACT_ZERO) r.is = EXACT_INFINITE;
        return r;
    }
    r.is = a.is == EXACT_ZERO || b.is == EXACT_ZERO ? EXACT_ZERO : EXACT_FINITE;
    r.size = a.size * b.size;
    r.exponent = a.exponent + b.exponent;
    return r;
}
static inline uint64_t exact_sum(exact_number a, exact_number b, exact_format f, int mode, bool *inexact) {
    if (inexact) *inexact = false;
    if (a.is == EXACT_NAN || b.is == EXACT_NAN) return exact_nan(f);
    if (a.is == EXACT_INFINITE && b.is == EXACT_INFINITE && a.negative != b.negative) return exact_nan(f);
    if (a.is == EXACT_INFINITE) return exact_round_number(a, f, mode, inexact);
    if (b.is == EXACT_INFINITE) return exact_round_number(b, f, mode, inexact);
    if (a.is == EXACT_ZERO && b.is == EXACT_ZERO && a.negative == b.negative) return a.negative ? exact_sign(f) : 0;
    exact_fixed x, y;
    exact_place(&x, a.size, a.is == EXACT_ZERO ? 0 : a.exponent);
    exact_place(&y, b.size, b.is == EXACT_ZERO ? 0 : b.exponent);
    if (a.negative == b.negative) {
        exact_accumulate(&x, &y, false);
        return exact_round(a.negative, &x, f, mode, inexact);
    }
    int order = exact_compare(&x, &y);
    if (order == 0) return mode == EXACT_RM ? exact_sign(f) : 0;
    if (order > 0) {
        exact_accumulate(&x, &y, true);
        return exact_round(a.negative, &x, f, mode, inexact);
    }
    exact_accumulate(&y, &x, true);
    return exact_round(b.negative, &y, f, mode, inexact);
}
static inline exact_number exact_quotient(exact_number a, exact_number b) {
    exact_number r = {EXACT_NAN, a.negative != b.negative, 0, 0};
    if (a.is == EXACT_NAN || b.is == EXACT_NAN) return r;
    if (a.is == EXACT_INFINITE || b.is == EXACT_ZERO) {
        if (a.is != b.is) r.is = EXACT_INFINITE; /* not inf / inf, 0 / 0 */
        return r;
    }
    if (a.is == EXACT_ZERO || b.is == EXACT_INFINITE) {
        r.is = EXACT_ZERO;
        return r;
    }
    while (!(a.size >> 126)) a.size <<= 1, a.exponent--; /* so that the quotient has at least 73 bits */
    exact_uint q = a.size / b.size;
    r.is = EXACT_FINITE;
    r.size = q << 1 | (a.size % b.size != 0);
    r.exponent = a.exponent - b.exponent - 1;
    return r;
}
static inline exact_number exact_root(exact_number a) {
    exact_number r = {EXACT_NAN, false, 0, 0};
    if (a.is == EXACT_ZERO || (a.is == EXACT_INFINITE && !a.negative)) return a;
    if (a.is == EXACT_NAN || a.negative) return r;
    while (!(a.size >> 125)) a.size <<= 1, a.exponent--;
    if (a.exponent & 1) a.size <<= 1, a.exponent--;
    exact_uint root = 0; /* bit by bit: the largest whose square is not larger */
    for (int k = 63; k >= 0; --k) {
        exact_uint next = root | (exact_uint)1 << k;
        if (next * next <= a.size) root = next;
    }
    r.is = EXACT_FINITE;
    r.size = root << 1 | (root * root != a.size);
    r.exponent = a.exponent / 2 - 1;
    return r;
}
/* An order: -1, 0, 1; NaN is the caller's. Zeros are equal. */
static inline int exact_order(exact_number a, exact_number b) {
    exact_fixed x, y;
    if (a.is == EXACT_ZERO && b.is == EXACT_ZERO) return 0;
    bool na = a.negative && a.is != EXACT_ZERO, nb = b.negative && b.is != EXACT_ZERO;
    if (na != nb) return na ? -1 : 1;
    int order = 0;
    if (a.is == EXACT_INFINITE || b.is == EXACT_INFINITE)
        order = (a.is == EXACT_INFINITE) - (b.is == EXACT_INFINITE);
    else {
        exact_place(&x, a.size, a.is == EXACT_ZERO ? 0 : a.exponent);
        exact_place(&y, b.size, b.is == EXACT_ZERO ? 0 : b.exponent);
        order = exact_compare(&x, &y);
    }
    return na ? -order : order;
}
/* The value as an integer by a rounding mode (RN, RZ, RM, RP), as sign and size; `large` when it is 2^65 or more. */
static inline exact_uint exact_integer(exact_number a, int mode, bool *large) {
    *large = false;
    if (a.is != EXACT_FINITE) return 0;
    if (a.exponent >= 0) {
        *large = a.exponent > 64 || (a.exponent && a.size >> (128 - a.exponent)) || (a.size << a.exponent) >> 65;
        return *large ? 0 : a.size << a.exponent;
    }
    int drop = -a.exponent;
    if (drop > 120) { /* a tiny fraction: sizes have at most 106 bits */
        bool up = (mode == EXACT_RM && a.negative) || (mode == EXACT_RP && !a.negative);
        return up ? 1 : 0;
    }
    exact_uint kept = a.size >> drop, rest = a.size & (((exact_uint)1 << drop) - 1), half = (exact_uint)1 << (drop - 1);
    bool up = mode == EXACT_RN   ? rest > half || (rest == half && (kept & 1))
              : mode == EXACT_RM ? a.negative && rest
              : mode == EXACT_RP ? !a.negative && rest
                                 : false;
    return kept + up;
}
#endif
