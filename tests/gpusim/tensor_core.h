/* SPDX-License-Identifier: Apache-2.0 */
/* The arithmetic of the tensor core instructions, for op_mma.c and op_wgmma.c (PTX ISA 9.7.14.5 and 9.7.15.5).
 *
 * Both hand over A as rows and B as columns of K elements, packed as they lie in registers or shared memory. It is done
 * eight columns at a time: B is turned round, so that the innermost loop runs over the columns.
 *
 * Floating point: products are exact, they are added to C one after the other in double (k rising) and rounded once to
 * the type of D, to nearest even. Tensor cores align the products to the largest exponent of a group, cut the bits
 * below, and round the sum of each group: their last bits differ from these and between chips. Results that are exact
 * in all orders, such as small integers, are the same. NaN results are 0x7fffffff (0x7fff for f16).
 * Integers: exact; the sum wraps around, or is clamped with .satfinite. */
#ifndef RQ_GPUSIM_TENSOR_CORE_H
#define RQ_GPUSIM_TENSOR_CORE_H
#include "lanes.h"

enum { TC_COLS = 8, TC_ROWS = 16, TC_MAX_K = 64, TC_ROW_BYTES = 32 };

/* Element types of A and B. gs_type has no 4-bit types. */
enum tc_elem { TC_F16, TC_BF16, TC_TF32, TC_E4M3, TC_E5M2, TC_S8, TC_U8, TC_S4, TC_U4, TC_F64, TC_ELEMS };
static const uint8_t tc_elem_bits[TC_ELEMS] = {16, 16, 32, 8, 8, 8, 8, 4, 4, 64};

typedef double tc_double8 __attribute__((vector_size(64)));
typedef float tc_float8 __attribute__((vector_size(32)));

/* fp8 as a whole number times a power of two, without a branch: these loops vectorise. */
static inline float tc_fp8(uint32_t v, uint32_t fraction_bits, uint32_t bias) {
    uint32_t f = v & ((1u << fraction_bits) - 1), e = (v & 0x7f) >> fraction_bits;
    uint32_t whole = f | (uint32_t)(e != 0) << fraction_bits, exponent = (e ? e : 1) + 127 - bias - fraction_bits;
    return gs_float(gs_bits((float)(int32_t)whole * gs_float(exponent << 23)) | (v & 0x80) << 24);
}

/* n elements as doubles, `step` doubles apart. Every value of these types is a double. */
static inline void tc_to_double(double *out, int step, const uint8_t *in, enum tc_elem type, int n) {
    switch (type) {
    case TC_F16:
        for (int j = 0; j < n; ++j) {
            uint16_t h;
            memcpy(&h, in + 2 * j, 2);
            out[j * step] = (double)gs_h2f(h);
        }
        break;
    case TC_BF16:
        for (int j = 0; j < n; ++j) {
            uint16_t h;
            memcpy(&h, in + 2 * j, 2);
            out[j * step] = (double)gs_b2f(h);
        }
        break;
    case TC_TF32: /* the low 13 bits of the register are not looked at */
        for (int j = 0; j < n; ++j) {
            uint32_t u;
            memcpy(&u, in + 4 * j, 4);
            out[j * step] = (double)gs_float(u & 0xffffe000u);
        }
        break;
    case TC_E4M3:
    case TC_E5M2: {
        float x[TC_ROW_BYTES];
        if (type == TC_E4M3)
            for (int j = 0; j < n; ++j) x[j] = (in[j] & 0x7f) == 0x7f ? NAN : tc_fp8(in[j], 3, 7);
        else
            for (int j = 0; j < n; ++j)
                x[j] = gs_float((in[j] & 0x7c) == 0x7c ? (in[j] & 0x80u) << 24 | 0x7f800000u | (in[j] & 3u) << 21
                                                       : gs_bits(tc_fp8(in[j], 2, 15)));
        for (int j = 0; j < n; ++j) out[j * step] = (double)x[j];
        break;
    }
    default: /* TC_F64; the integers have their own way */
        for (int j = 0; j < n; ++j) memcpy(&out[j * step], in + 8 * j, 8);
        break;
    }
}

/* Integers as floats. All sums are exact: 32 products of 8 bits, or 64 of 4 bits, stay below 2^22. */
static inline void tc_to_float(float *out, int step, const uint8_t *in, enum tc_elem type, int n) {
    switch (type) {
    case TC_S8:
        for (int j = 0; j < n; ++j) out[j * step] = (int8_t)in[j];
        break;
    case TC_U8:
        for (int j = 0; j < n; ++j) out[j * step] = in[j];
        break;
    case TC_S4:
        for (int j = 0; j < n; ++j) out[j * step] = (float)(((in[j / 2] >> (4 * (j & 1)) & 15) ^ 8) - 8);
        break;
    default: /* TC_U4 */
        for (int j = 0; j < n; ++j) out[j * step] = (float)((in[j / 2] >> (4 * (j & 1))) & 15);
        break;
    }
}

/* acc[r][c] += sum over q of a[r][q] * b[q][c], q rising. */
static inline void tc_multiply_double(int rows, int k, const double a[][TC_MAX_K], const double b[][TC_COLS],
                                      double acc[][TC_COLS]) {
    for (int r = 0; r < rows; ++r) {
        tc_double8 s, col;
        memcpy(&s, acc[r], sizeof s);
        for (int q = 0; q < k; ++q) {
            memcpy(&col, b[q], sizeof col);
            s += a[r][q] * col;
        }
        memcpy(acc[r], &s, sizeof s);
    }
}

/* The same for integers; C is added by the caller. */
static inline void tc_multiply_int(int rows, int k, const float a[][TC_MAX_K], const float b[][TC_COLS],
                                   int32_t sum[][TC_COLS]) {
    for (int r = 0; r < rows; ++r) {
        tc_float8 s = {0}, col;
        for (int q = 0; q < k; ++q) {
            memcpy(&col, b[q], sizeof col);
            s += a[r][q] * col;
        }
        for (int c = 0; c < TC_COLS; ++c) sum[r][c] = (int32_t)s[c];
    }
}

static inline uint32_t tc_add_int(uint32_t c, int32_t sum, bool saturate) {
    if (!saturate) return c + (uint32_t)sum;
    int64_t s = (int64_t)(int32_t)c + sum;
    if (s > INT32_MAX) s = INT32_MAX;
    if (s < INT32_MIN) s = INT32_MIN;
    return (uint32_t)(int32_t)s;
}

static inline uint32_t tc_round_f32(double s) {
    float f = (float)s;
    return f == f ? gs_bits(f) : 0x7fffffffu;
}
static inline uint16_t tc_round_f16(double s) { return s == s ? gs_d2h(s) : 0x7fff; }

/* The fragment of eight columns of C or D: n registers of f32 or s32 (register r: row lane / 4 + 8 (r / 2), column
 * 2 (lane % 4) + r % 2), or of f16 pairs (register r: row lane / 4 + 8 r). */
static inline void tc_load_acc(double acc[][TC_COLS], const uint8_t *const c[], int n, bool half) {
    for (int r = 0; r < n; ++r)
        for (int l = 0; l < 32; ++l)
            if (half) {
                uint16_t h[2];
                memcpy(h, c[r] + 4 * l, 4);
                acc[r * 8 + (l >> 2)][(l & 3) * 2] = (double)gs_h2f(h[0]);
                acc[r * 8 + (l >> 2)][(l & 3) * 2 + 1] = (double)gs_h2f(h[1]);
            } else {
                float f;
                memcpy(&f, c[r] + 4 * l, 4);
                acc[r / 2 * 8 + (l >> 2)][(l & 3) * 2 + (r & 1)] = (double)f;
            }
}
static inline void tc_store_acc(const double acc[][TC_COLS], uint8_t *const d[], int n, bool half) {
    for (int r = 0; r < n; ++r)
        for (int l = 0; l < 32; ++l) {
            uint32_t u;
            if (half) {
                const double *s = &acc[r * 8 + (l >> 2)][(l & 3) * 2];
                u = tc_round_f16(s[0]) | (uint32_t)tc_round_f16(s[1]) << 16;
            } else {
                u = tc_round_f32(acc[r / 2 * 8 + (l >> 2)][(l & 3) * 2 + (r & 1)]);
            }
            memcpy(d[r] + 4 * l, &u, 4);
        }
}
/* D = C + sum. Registers of D may be registers of C, in any order. */
static inline void tc_store_int(const int32_t sum[][TC_COLS], const uint8_t *const c[], uint8_t *const d[], int n,
                                bool saturate) {
    uint32_t u[4][32];
    for (int r = 0; r < n; ++r) memcpy(u[r], c[r], sizeof u[r]);
    for (int r = 0; r < n; ++r) {
        for (int l = 0; l < 32; ++l)
            u[r][l] = tc_add_int(u[r][l], sum[r / 2 * 8 + (l >> 2)][(l & 3) * 2 + (r & 1)], saturate);
        memcpy(d[r], u[r], sizeof u[r]);
    }
}

#endif
