/* SPDX-License-Identifier: Apache-2.0 */
/* The integer grid: scales, zero points and the clip search, rounding. Conventions of docs/methods.md ("The grid"):
 * symmetric codes -2^(b-1) .. 2^(b-1)-1 stored with 2^(b-1) added and scale max|w| / (2^(b-1) - 1); asymmetric codes
 * 0 .. 2^b - 1 with a whole zero point; rounding is half to even, as in the reference implementations. */
#include <math.h>

#include "comp.h"
#include "simd.h"

/* |x|^power through log2 and exp2 polynomials, about 2e-6 relative: only compared with its like in the clip search. */
static inline float pow_abs(float x, float power) {
    uint32_t u = rq_f32_bits(x) & 0x7fffffffu;
    int32_t e = (int32_t)(u >> 23) - 127;
    float m = rq_f32_of_bits((u & 0x7fffffu) | 0x3f800000u) - 1.5f; /* mantissa in [1, 2), centred */
    /* log2(1.5 + m), |m| <= 0.5: Chebyshev fit. */
    float l = 0.5849625007f +
              m * (0.9617959854f +
                   m * ((-0.3205984712f) +
                        m * (0.1425259284f +
                             m * ((-0.07126680309f) +
                                  m * (0.03746649028f +
                                       m * ((-0.0207900332f) + m * (0.01477057116f + m * (-0.008665699308f))))))));
    float y = power * ((float)e + l);
    y = y < -126.0f ? -126.0f : y > 126.0f ? 126.0f : y;
    float whole = rintf(y), f = y - whole; /* 2^f, |f| <= 0.5 */
    float g =
        1.0f + f * (0.6931472067f +
                    f * (0.2402265092f +
                         f * (0.05550327227f + f * (0.009618056679f + f * (0.001340042818f + f * 0.000154614447f)))));
    float r = g * rq_f32_of_bits((uint32_t)((int32_t)whole + 127) << 23);
    return u < 0x00800000u ? 0.0f : r;
}

static int code_max(const rq_quant_opt *o) { return (1 << o->bits) - 1; }

/* Scale and zero point for the range [lo, hi] (lo <= 0 <= hi). */
static inline void grid_of_range(const rq_quant_opt *o, float lo, float hi, float *scale, float *zero) {
    float half = (float)(1 << (o->bits - 1));
    if (o->sym) {
        *scale = hi / (half - 1.0f);
        *zero = half;
    } else {
        *scale = (hi - lo) / (float)code_max(o);
        *zero = rintf(-lo / *scale);
    }
}

/* sum wt |Q(x) - x|^power over one group. */
RQ_CLONES static float clip_error(const float *x, const float *wt, int64_t n, float scale, float zero, float top,
                                  float power) {
    float inv = 1.0f / scale, total = 0, lane[16] = {0};
    int64_t j = 0;
    /* Sixteen partial sums in a fixed order, so that every instruction set gives the same bytes. */
    if (power == 2.0f) {
        for (; j + 16 <= n; j += 16) {
            for (int k = 0; k < 16; ++k) {
                float c = rintf(x[j + k] * inv) + zero;
                c = c < 0.0f ? 0.0f : c;
                c = c > top ? top : c;
                float e = scale * (c - zero) - x[j + k];
                lane[k] += wt[j + k] * (e * e);
            }
        }
    } else {
        for (; j + 16 <= n; j += 16) {
            for (int k = 0; k < 16; ++k) {
                float c = rintf(x[j + k] * inv) + zero;
                c = c < 0.0f ? 0.0f : c;
                c = c > top ? top : c;
                lane[k] += wt[j + k] * pow_abs(scale * (c - zero) - x[j + k], power);
            }
        }
    }
    for (; j < n; ++j) {
        float c = rintf(x[j] * inv) + zero;
        c = c < 0.0f ? 0.0f : c;
        c = c > top ? top : c;
        float e = scale * (c - zero) - x[j];
        total += wt[j] * (power == 2.0f ? e * e : pow_abs(e, power));
    }
    for (int k = 0; k < 16; ++k) total += lane[k];
    return total;
}

static void range_of(const rq_quant_opt *o, const float *x, int64_t n, float *low, float *high) {
    float lo = 0, hi = 0;
    for (int64_t j = 0; j < n; ++j) {
        lo = x[j] < lo ? x[j] : lo;
        hi = x[j] > hi ? x[j] : hi;
    }
    if (o->sym) {
        hi = -lo > hi ? -lo : hi;
        hi = hi < 1e-5f ? 1e-5f : hi;
        lo = -hi;
    } else if (lo == 0 && hi == 0) {
        lo = -1;
        hi = 1;
    }
    *low = lo;
    *high = hi;
}

/* As they are stored. */
static void finish(const rq_quant_opt *o, float *scale, float *zero) {
    if (o->scale_dtype == RQ_F16) {
        /* The codes must be found for the scale that is stored. Below half's range: its smallest number. */
        rq_f16 h = rq_f16_of_f32(*scale);
        if (h.bits == 0) h.bits = 1;
        if (h.bits >= 0x7c00u) h.bits = 0x7bffu;
        *scale = rq_f32_of_f16(h);
    }
    *zero = *zero < 0 ? 0 : *zero > (float)code_max(o) ? (float)code_max(o) : *zero;
}

static void find_at(const rq_quant_opt *o, const float *x, const float *wt, int64_t n, int64_t group, float shrink,
                    float *scale, float *zero, float *step) {
    for (int64_t g = 0, c = 0; c < n; ++g, c += group) {
        float lo, hi, s, z;
        range_of(o, x + c, rq_min_i64(group, n - c), &lo, &hi);
        grid_of_range(o, lo, hi, &scale[g], &zero[g]);
        grid_of_range(o, shrink * lo, shrink * hi, &s, &z);
        if (s > 0 && isfinite(s)) scale[g] = s, zero[g] = z;
        finish(o, &scale[g], &zero[g]);
    }
    (void)wt;
    (void)step;
}

static void find(const rq_quant_opt *o, const float *x, const float *wt, int64_t n, float *scale, float *zero) {
    float lo, hi;
    range_of(o, x, n, &lo, &hi);
    float best = INFINITY;
    int steps = o->clip == RQ_CLIP_MSE ? o->clip_steps : 1;
    grid_of_range(o, lo, hi, scale, zero);
    for (int i = 0; i < steps && steps > 1; ++i) {
        float p = (float)(1.0 - 0.8 * i / steps), s, z;
        grid_of_range(o, p * lo, p * hi, &s, &z);
        if (!(s > 0) || !isfinite(s)) break;
        float err = clip_error(x, wt, n, s, z, (float)code_max(o), (float)o->clip_power);
        if (err < best) {
            best = err;
            *scale = s;
            *zero = z;
        }
    }
    finish(o, scale, zero);
}

RQ_CLONES static void grid_round(int bits, int64_t n_rows, const float *w, const float *scale, const float *zero,
                                 uint8_t *code, float *q, float *clamped) {
    float top = (float)((1 << bits) - 1);
    for (int64_t i = 0; i < n_rows; ++i) {
        float c = rintf(w[i] / scale[i]) + zero[i];
        c = c < 0.0f ? 0.0f : c;
        c = c > top ? top : c;
        code[i] = (uint8_t)(int)c;
        q[i] = scale[i] * (c - zero[i]);
        float lo = scale[i] * -zero[i], hi = scale[i] * (top - zero[i]);
        float v = w[i] < lo ? lo : w[i];
        clamped[i] = v > hi ? hi : v;
    }
}

static void round_column(int bits, int64_t n_rows, const float *w, const float *scale, const float *zero,
                         const float *step, uint8_t *code, float *q, float *clamped) {
    (void)step;
    grid_round(bits, n_rows, w, scale, zero, code, q, clamped);
}

const rq_rounder rq_round_grid = {.name = "grid", .find = find, .find_at = find_at, .round = round_column};
