/* SPDX-License-Identifier: Apache-2.0 */
/* Leaf header: activations on their way to int8 or e4m3 (W4A8), the parts whose rounding the plain C definitions, the SIMD twins and the CUDA
 * kernels share, so that all give the same bytes. Nothing here may be contracted: fmaf where it says so, and nowhere else.
 *
 *   quantize    scale = max_j |h_j| / 127 (NaN is not the largest), or one of a table (rq_act_steps);  q_j = rint(h_j / scale), ties to
 *               even, at most 127 in size; NaN and a scale that is not above 0 give 0;  sum = sum_j q_j       the division is IEEE's
 *   to e4m3     scale = max_j |h_j| / 448;  x8_j = h_j / scale rounded to the nearest number of e4m3, ties to the even one, at most 448 in
 *               size; NaN and a scale that is not above 0 give 0;  sums: of the x8_j of each 128 columns, exact, then rounded to fp32 once
 *   rmsnorm     h_j = (x_j * r) * w_j,  r = 1 / sqrt(S / n_in + eps)                  each operation rounded to fp32
 *               S = sum_j x_j^2 in the order of rq_act_sum. With a residual, x_j is x_j + residual_j in fp32, rounded to the type of both
 *               (which is what goes on to be the residual stream): a square of such a number is exact in fp32.
 *   silu        h_j = rq_act_silu(gate_j) * up_j
 *   hadamard    each `size` columns in turn, as v[core][size / core], become norm * H v (struct rq_hadamard): butterflies a + b, a - b along the
 *               second index, of neighbours, then of those 2 apart, 4 apart ...; then, if core > 1, for each second index i
 *               out[r][i] = (+-v[0][i]) +- v[1][i] +- ... in that order, with the signs of row r; then one product with norm
 *   factors     h_j * factor_j, after RMSNorm's gain, and after a Hadamard matrix where both are there */
#ifndef RQ_FMT_ACT_H
#define RQ_FMT_ACT_H

#include <math.h>

#include "rq_base.h"

#ifdef __CUDACC__
#define RQ_ACT_FUNCTION static __host__ __device__ __forceinline__
#else
#define RQ_ACT_FUNCTION static inline
#endif

/* A Hadamard matrix of order size = core * 2^p, the one of order core times Sylvester's of order 2^p: made by rq_hadamard_make
 * (act_hadamard.h), and small enough to be a parameter of a kernel. */
enum { RQ_ACT_MAX_CORE = 64 };
typedef struct rq_hadamard {
    int size, core;
    float norm;                    /* fp32 of 1 / sqrt(size) */
    uint64_t row[RQ_ACT_MAX_CORE]; /* bit c of row r: the sign of entry (r, c) of the core, 1 for minus */
} rq_hadamard;

/* Scales that are there before the rows are, one for each step of a process (a time step of diffusion), and which of them is for row t:
 * scale[step[t / rows_per_step]], or scale[step[0]] for all rows when rows_per_step is 0. A step that is not in the table has the scale
 * NaN: codes and sum are 0, and a product with them is NaN, which nobody overlooks. */
typedef struct rq_act_steps {
    const float *scale; /* [n_step]; NULL: scales are computed */
    const int32_t *step;
    int64_t n_step, rows_per_step;
} rq_act_steps;

/* The entry of row t, -1 when it is not in the table. */
RQ_ACT_FUNCTION int64_t rq_act_step(const int32_t *step, int64_t n_step, int64_t rows_per_step, int64_t t) {
    const int64_t k = step[rows_per_step ? t / rows_per_step : 0];
    return k >= 0 && k < n_step ? k : -1;
}
RQ_ACT_FUNCTION float rq_act_nan(void) {
    const union {
        uint32_t u;
        float f;
    } nan = {0x7fc00000u};
    return nan.f;
}
RQ_ACT_FUNCTION float rq_act_step_scale(const rq_act_steps *s, int64_t t) {
    const int64_t k = rq_act_step(s->step, s->n_step, s->rows_per_step, t);
    return k < 0 ? rq_act_nan() : s->scale[k];
}

/* The order of a sum of terms v_0 .. v_(n-1): partial sum p adds the terms p, p + 2048, p + 4096, ... from 0, in that order; then
 * partial sum p takes that of p + 1024, for p < 1024, then p + 512 for p < 512, and so on to p + 1. Vectors of any width and threads
 * of a block both do that without a detour, in as many additions as there are terms. */
enum { RQ_ACT_PARTIALS = 2048 };

/* The second half of it, in place. */
RQ_ACT_FUNCTION float rq_act_sum(float *partial) {
    for (int half = RQ_ACT_PARTIALS / 2; half; half /= 2)
        for (int p = 0; p < half; ++p) partial[p] += partial[p + half];
    return partial[0];
}

/* ---- e4m3 (OCP 8-bit floating point, 2023): a sign, 4 bits of exponent with bias 7, 3 of fraction; no infinities, 0x7f is NaN. All numbers are
 * multiples of 2^-9, the largest is 448; codes 0 to 15 are that many times 2^-9. */

enum { RQ_E4M3_MOST = 448, RQ_E4M3_SUM_COLS = 128 };

/* By bits: adding the half of what is cut off, less one where that is a tie and the result would be odd, rounds to even, and carries into the
 * exponent rightly. Below 2^-6 numbers are 2^-9 apart, as floats from 2^14 on are 2^-9 apart: a sum rounds. */
RQ_ACT_FUNCTION uint8_t rq_e4m3_of(float v) {
    union {
        float f;
        uint32_t u;
    } a, small;
    a.f = v;
    const uint32_t sign = a.u >> 24 & 0x80u;
    a.u &= 0x7fffffffu;
    if (!(a.f == a.f)) return 0;
    if (a.f > (float)RQ_E4M3_MOST) a.f = (float)RQ_E4M3_MOST;
    small.f = a.f + 0x1p14f;
    const uint32_t normal = (a.u + 0x7ffffu + (a.u >> 20 & 1u) - ((127u - 7u) << 23)) >> 20;
    return (uint8_t)(sign | (a.f < 0x1p-6f ? small.u & 15u : normal));
}
/* In units of 2^-9. */
RQ_ACT_FUNCTION int32_t rq_e4m3_units(uint8_t code) {
    const int32_t fraction = code & 7, exponent = code >> 3 & 15;
    const int32_t size = exponent ? (8 + fraction) << (exponent - 1) : fraction;
    return code & 0x80 ? -size : size;
}
RQ_ACT_FUNCTION float rq_e4m3_value(uint8_t code) { return (float)rq_e4m3_units(code) * 0x1p-9f; }
/* h / scale as e4m3. */
RQ_ACT_FUNCTION uint8_t rq_act_e4m3(float h, float scale) { return scale > 0.0f ? rq_e4m3_of(h / scale) : (uint8_t)0; }

/* e^x for -87 <= x <= 87 within 2 units of the last place: x = n ln 2 + r, a Taylor polynomial of r, 2^n by its bits. */
RQ_ACT_FUNCTION float rq_act_exp(float x) {
    const float n = rintf(x * 1.44269504f);
    const float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x));
    float p = 1.98412698e-4f;
    p = fmaf(p, r, 1.38888889e-3f);
    p = fmaf(p, r, 8.33333333e-3f);
    p = fmaf(p, r, 4.16666667e-2f);
    p = fmaf(p, r, 1.66666667e-1f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    union {
        uint32_t u;
        float f;
    } two_to_n;
    two_to_n.u = (uint32_t)((int32_t)n + 127) << 23;
    return p * two_to_n.f;
}

/* x / (1 + e^-x). NaN stays NaN; the exponent is kept to -87 .. 87, where the result no longer changes. */
RQ_ACT_FUNCTION float rq_act_silu(float x) {
    const float e = -x < 87.0f ? -x > -87.0f ? -x : -87.0f : 87.0f;
    return x / (1.0f + rq_act_exp(e));
}
#endif
