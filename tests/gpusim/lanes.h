/* SPDX-License-Identifier: Apache-2.0 */
/* Loops over the 32 lanes of a warp, and the number formats of PTX. Families (op_*.c) are compiled twice, plain and for
 * AVX-512 (gpusim.cmake defines GS_ISA); the loops vectorise, the results are the same bits: every operation here is exact or
 * correctly rounded, and nothing is contracted (-ffp-contract=off). */
#ifndef RQ_GPUSIM_LANES_H
#define RQ_GPUSIM_LANES_H
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

#include "sim.h"

#ifndef GS_ISA
#define GS_ISA base
#endif
#define GS_PASTE3_(a, b, c) a##b##_##c
#define GS_PASTE3(a, b, c)  GS_PASTE3_(a, b, c)
#define GS_TABLE(family)    const gs_row GS_PASTE3(gs_rows_, family, GS_ISA)[]

/* The lanes of a vector operand are independent, though the compiler cannot see that two operands are one register or none. */
#ifdef __clang__
#define GS_INDEPENDENT
#else
#define GS_INDEPENDENT _Pragma("GCC ivdep")
#endif

/* LANES({ body with l }) for the lanes of m: a straight loop when all are active, so that it vectorises. */
#define LANES(...)                                                                                                     \
    do {                                                                                                               \
        if (m == 0xffffffffu) {                                                                                        \
            GS_INDEPENDENT for (int l = 0; l < 32; ++l) __VA_ARGS__                                                    \
        } else                                                                                                         \
            for (uint32_t rest_ = m; rest_; rest_ &= rest_ - 1) {                                                      \
                int l = __builtin_ctz(rest_);                                                                          \
                __VA_ARGS__                                                                                            \
            }                                                                                                          \
    } while (0)

/* d = E(a), E(a, b), E(a, b, c) on vectors of T. */
#define UNARY(name, T, E)                                                                                              \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) {                                                        \
        T *d = (T *)OPND(0);                                                                                           \
        const T *A = (const T *)OPND(1);                                                                               \
        LANES({                                                                                                        \
            T a = A[l];                                                                                                \
            d[l] = (T)(E);                                                                                             \
        });                                                                                                            \
    }
#define BINARY(name, T, E)                                                                                             \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) {                                                        \
        T *d = (T *)OPND(0);                                                                                           \
        const T *A = (const T *)OPND(1), *B = (const T *)OPND(2);                                                      \
        LANES({                                                                                                        \
            T a = A[l], b = B[l];                                                                                      \
            d[l] = (T)(E);                                                                                             \
        });                                                                                                            \
    }
#define TERNARY(name, T, E)                                                                                            \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) {                                                        \
        T *d = (T *)OPND(0);                                                                                           \
        const T *A = (const T *)OPND(1), *B = (const T *)OPND(2), *C = (const T *)OPND(3);                             \
        LANES({                                                                                                        \
            T a = A[l], b = B[l], c = C[l];                                                                            \
            d[l] = (T)(E);                                                                                             \
        });                                                                                                            \
    }

/* Predicates: 32 bits at the operand. */
static inline uint32_t gs_pred_read(const gs_warp *w, const gs_ins *i, int k) {
    uint32_t p;
    memcpy(&p, w->base[i->op[k].base] + i->op[k].off, 4);
    return i->op[k].negated ? ~p : p;
}
static inline void gs_pred_write(gs_warp *w, const gs_ins *i, int k, uint32_t value, uint32_t m) {
    if (!i->op[k].size) return;
    uint32_t p;
    uint8_t *at = w->base[i->op[k].base] + i->op[k].off;
    memcpy(&p, at, 4);
    p = (p & ~m) | (value & m);
    memcpy(at, &p, 4);
}

static inline uint32_t gs_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float gs_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* fp16 <-> fp32, round to nearest even. */
static inline float gs_h2f(uint16_t h) {
#ifdef __F16C__
    return _cvtsh_ss(h);
#else
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 31, f = h & 1023;
    if (e == 31) return gs_float(sign | 0x7f800000u | (f ? 0x400000u | f << 13 : 0));
    if (e) return gs_float(sign | ((e + 112) << 23) | f << 13);
    float v = (float)f * 0x1p-24f;
    return sign ? -v : v;
#endif
}
static inline uint16_t gs_f2h(float v) {
#ifdef __F16C__
    return (uint16_t)_cvtss_sh(v, 0);
#else
    uint32_t u = gs_bits(v), sign = (u >> 16) & 0x8000, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00 | ((a >> 13) & 0x1ff));
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* 65520 and above */
    if (a < 0x38800000u) {                                  /* subnormal: a multiple of 2^-24 */
        float t = gs_float(a) * 0x1p24f;
        return (uint16_t)(sign | (uint32_t)nearbyintf(t));
    }
    a += 0xfff + ((a >> 13) & 1);
    return (uint16_t)(sign | ((a - 0x38000000u) >> 13));
#endif
}
/* One rounding from double: to a float that keeps a sticky last bit, then to the narrow type. */
static inline float gs_odd_float(double s) {
    float f = (float)s;
    uint32_t u = gs_bits(f);
    if ((double)f != s && f == f && (u & 0x7f800000u) != 0x7f800000u) {
        if (fabs((double)f) > fabs(s)) u--;
        u |= 1;
        f = gs_float(u);
    }
    return f;
}
static inline uint16_t gs_d2h(double s) { return gs_f2h(gs_odd_float(s)); }

static inline float gs_b2f(uint16_t b) { return gs_float((uint32_t)b << 16); }
static inline uint16_t gs_f2b(float v) {
    uint32_t u = gs_bits(v);
    if (v != v) return 0x7fff; /* what the hardware gives */
    u += 0x7fff + ((u >> 16) & 1);
    return (uint16_t)(u >> 16);
}
static inline uint16_t gs_d2b(double s) { return gs_f2b(gs_odd_float(s)); }

/* fp8: e4m3 (no infinity, 0x7f is NaN, largest 448), e5m2 (as fp16 with a short fraction). */
static inline float gs_e4m3_f(uint8_t v) {
    uint32_t e = (v >> 3) & 15, f = v & 7;
    if ((v & 0x7f) == 0x7f) return gs_float(0x7fc00000u);
    float x = e ? gs_float(((e + 120) << 23) | f << 20) : (float)f * 0x1p-9f;
    return v & 0x80 ? -x : x;
}
static inline float gs_e5m2_f(uint8_t v) { return gs_h2f((uint16_t)(v << 8)); }

#endif
