/* SPDX-License-Identifier: Apache-2.0 */
/* The bodies behind llama_math.h, included once per instruction set with RQ_MATH_TABLE and RQ_MATH_NAME set. Written on
 * 64-byte vector types, which the compiler cuts to the registers it has: lanes, order of additions and roundings are the
 * same everywhere (the build turns contraction to fused multiply-add off). */
#include <math.h>

#include "llama_math.h"

/* Every function that takes vectors is inlined, so how vectors would be passed does not matter. */
#pragma GCC diagnostic ignored "-Wpsabi"

#define INLINE static inline __attribute__((always_inline))
enum { LANES = 16 };
typedef float vf __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));

INLINE vf splat(float a) { return (vf){a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a}; }

INLINE vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }

/* The last n < 16 elements; the other lanes get `fill`. */
INLINE vf load_tail(const float *p, int64_t n, float fill) {
    vf v = splat(fill);
    memcpy(&v, p, (size_t)n * sizeof *p);
    return v;
}

INLINE void store_tail(float *p, vf v, int64_t n) { memcpy(p, &v, (size_t)n * sizeof *p); }

/* mask ? a : b, lane by lane; a comparison gives all ones or all zeros. */
INLINE vf pick(vu mask, vf a, vf b) { return (vf)((mask & (vu)a) | (~mask & (vu)b)); }
INLINE vf max_of(vf a, vf b) { return pick((vu)(a > b), a, b); }

INLINE float lanes_max(vf v) {
    float m = v[0];
    for (int i = 1; i < LANES; ++i) m = v[i] > m ? v[i] : m;
    return m;
}

INLINE double lanes_sum(vf v) {
    double s[4] = {0};
    for (int i = 0; i < LANES; ++i) s[i & 3] += (double)v[i];
    return (s[0] + s[2]) + (s[1] + s[3]);
}

/* exp(x) = 2^k exp(r), k = round(x / ln 2), |r| <= ln(2) / 2. ln 2 is cut in two so that k * HI is exact; the polynomial
 * is a minimax fit of our own (relative error 3e-9 before rounding); 2^k in two factors reaches subnormal results. */
INLINE vf exp_of(vf x) {
    const vf lo = splat(-105.0f), hi = splat(89.0f), round = splat(12582912.0f); /* 1.5 * 2^23 */
    x = pick((vu)(x < lo), lo, x);
    x = pick((vu)(x > hi), hi, x);
    vf t = x * splat(1.44269504f) + round, k = t - round;
    vf r = (x - k * splat(0.693359375f)) + k * splat(2.12194440e-4f);
    vf q = splat(0.0013814539f);
    q = q * r + splat(0.008368745f);
    q = q * r + splat(0.04166839f);
    q = q * r + splat(0.16666521f);
    q = q * r + splat(0.49999994f);
    q = splat(1.0f) + (r + r * r * q);
    /* t's low bits are k in two's complement; k / 2 and the rest, each biased into an exponent field. */
    vu n = (vu)t - (vu)round + 512u, half = n >> 1;
    vu a = (half - 256u + 127u) << 23, b = (n - half - 256u + 127u) << 23;
    return q * (vf)a * (vf)b;
}

static void math_exp(float *y, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, exp_of(load(x + i)));
    if (i < n) store_tail(y + i, exp_of(load_tail(x + i, n - i, 0.0f)), n - i);
}

static float math_max(const float *x, int64_t n) {
    vf m = splat(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) m = max_of(load(x + i), m);
    if (i < n) m = max_of(load_tail(x + i, n - i, -INFINITY), m);
    return lanes_max(m);
}

static float math_softmax(float *x, int64_t n, float scale) {
    vf shift = splat(math_max(x, n)), by = splat(scale), sum = splat(0.0f);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf e = exp_of((load(x + i) - shift) * by);
        store(x + i, e);
        sum += e;
    }
    if (i < n) {
        vf e = exp_of((load_tail(x + i, n - i, -INFINITY) - shift) * by);
        store_tail(x + i, e, n - i);
        sum += e;
    }
    return (float)lanes_sum(sum);
}

static void math_swiglu(float *out, const float *gate, const float *up, int64_t n) {
    const vf one = splat(1.0f), zero = splat(0.0f);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf g = load(gate + i);
        store(out + i, g / (one + exp_of(zero - g)) * load(up + i));
    }
    if (i < n) {
        vf g = load_tail(gate + i, n - i, 0.0f);
        store_tail(out + i, g / (one + exp_of(zero - g)) * load_tail(up + i, n - i, 0.0f), n - i);
    }
}

static float math_dot(const float *a, const float *b, int64_t n) {
    vf s = splat(0.0f), s2 = splat(0.0f);
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        s += load(a + i) * load(b + i);
        s2 += load(a + i + LANES) * load(b + i + LANES);
    }
    for (; i + LANES <= n; i += LANES) s += load(a + i) * load(b + i);
    if (i < n) s2 += load_tail(a + i, n - i, 0.0f) * load_tail(b + i, n - i, 0.0f);
    return (float)lanes_sum(s + s2);
}

static void math_axpy(float *y, float a, const float *x, int64_t n) {
    vf by = splat(a);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, load(y + i) + by * load(x + i));
    for (; i < n; ++i) y[i] += a * x[i];
}

static void math_scale(float *y, float a, int64_t n) {
    vf by = splat(a);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, by * load(y + i));
    for (; i < n; ++i) y[i] *= a;
}

static void math_rmsnorm(float *out, const float *x, const float *gain, int64_t n, float eps) {
    double square = 0;
    int64_t i = 0;
    while (i + LANES <= n) { /* a lane adds at most 64 squares before they move on to fp64 */
        vf s = splat(0.0f);
        for (int j = 0; j < 64 && i + LANES <= n; ++j, i += LANES) s += load(x + i) * load(x + i);
        square += lanes_sum(s);
    }
    for (; i < n; ++i) square += (double)x[i] * (double)x[i];
    float inv = (float)(1.0 / sqrt(square / (double)n + (double)eps));
    vf by = splat(inv);
    for (i = 0; i + LANES <= n; i += LANES) {
        vf y = load(x + i) * by;
        store(out + i, gain ? y * load(gain + i) : y);
    }
    for (; i < n; ++i) out[i] = gain ? x[i] * inv * gain[i] : x[i] * inv;
}

static double math_sum_exp(const float *x, int64_t n, float shift) {
    double sum = 0;
    vf by = splat(shift);
    int64_t i = 0;
    while (i + LANES <= n) {
        vf s = splat(0.0f);
        for (int j = 0; j < 16 && i + LANES <= n; ++j, i += LANES) s += exp_of(load(x + i) - by);
        sum += lanes_sum(s);
    }
    if (i < n) sum += lanes_sum(exp_of(load_tail(x + i, n - i, -INFINITY) - by));
    return sum;
}

static double math_sum_exp_cross(const float *r, const float *x, int64_t n, float shift, double *cross) {
    double sum = 0, product = 0;
    vf by = splat(shift);
    int64_t i = 0;
    while (i + LANES <= n) {
        vf s = splat(0.0f), c = splat(0.0f);
        for (int j = 0; j < 16 && i + LANES <= n; ++j, i += LANES) {
            vf a = load(r + i), e = exp_of(a - by);
            s += e;
            c += e * (a - load(x + i));
        }
        sum += lanes_sum(s);
        product += lanes_sum(c);
    }
    for (; i < n; ++i) {
        float e = lanes_max(exp_of(splat(r[i] - shift)));
        sum += (double)e;
        product += (double)(e * (r[i] - x[i]));
    }
    *cross += product;
    return sum;
}

const rq_llama_math RQ_MATH_TABLE = {RQ_MATH_NAME, math_exp,   math_softmax, math_swiglu,  math_rmsnorm,      math_dot,
                                     math_axpy,    math_scale, math_max,     math_sum_exp, math_sum_exp_cross};
