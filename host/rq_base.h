/* SPDX-License-Identifier: Apache-2.0 */
/* Leaf header (C library only; cuda/ may include it): status codes, element types, half-precision bits. */
#ifndef RQ_BASE_H
#define RQ_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#define RQ_STATIC_ASSERT static_assert
#else
#define RQ_STATIC_ASSERT _Static_assert
#endif

/* Every function that can fail returns one of these; rq_last_error() has the sentence. The list is closed. */
typedef enum rq_status {
    RQ_OK = 0,
    RQ_ERR_ARG = -1,         /* a caller's argument is wrong (size, NULL, option value) */
    RQ_ERR_NOMEM = -2,       /* out of memory, or over the budget that was given */
    RQ_ERR_IO = -3,          /* the operating system refused: open, write, disk full */
    RQ_ERR_INPUT = -4,       /* a file or model is malformed, or holds impossible values */
    RQ_ERR_UNSUPPORTED = -5, /* well-formed, but not something we handle; the text says what */
    RQ_ERR_NUMERIC = -6,     /* the numbers broke down (NaN, not positive definite after damping) */
    RQ_ERR_DEVICE = -7,      /* BLAS, CUDA or another device library failed or is missing */
    RQ_ERR_CANCELLED = -8    /* a callback or a signal asked to stop; work done so far is kept */
} rq_status;

/* Bits of a half or bfloat16, wrapped so that bits never mix with numbers. */
typedef struct rq_f16 {
    uint16_t bits;
} rq_f16;
typedef struct rq_bf16 {
    uint16_t bits;
} rq_bf16;
RQ_STATIC_ASSERT(sizeof(rq_f16) == 2 && sizeof(rq_bf16) == 2, "half types are two bytes in files");

static inline uint32_t rq_f32_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float rq_f32_of_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float rq_f32_of_bf16(rq_bf16 h) { return rq_f32_of_bits((uint32_t)h.bits << 16); }

static inline rq_bf16 rq_bf16_of_f32(float x) { /* round to nearest even; NaN stays NaN */
    uint32_t u = rq_f32_bits(x);
    rq_bf16 h;
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        h.bits = (uint16_t)((u >> 16) | 0x40u);
    } else {
        h.bits = (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
    return h;
}

static inline float rq_f32_of_f16(rq_f16 h) {
    uint32_t sign = (uint32_t)(h.bits & 0x8000u) << 16, mag = h.bits & 0x7fffu;
    if (mag >= 0x7c00u) return rq_f32_of_bits(sign | 0x7f800000u | ((mag & 0x3ffu) << 13));
    if (mag >= 0x0400u) return rq_f32_of_bits(sign | ((mag << 13) + 0x38000000u));
    /* Subnormal: mag * 2^-24 is exact in binary32. */
    float x = (float)mag * 5.9604644775390625e-8f;
    return sign ? -x : x;
}

static inline rq_f16 rq_f16_of_f32(float x) { /* round to nearest even; overflow gives infinity */
    uint32_t u = rq_f32_bits(x), sign = (u >> 16) & 0x8000u, mag = u & 0x7fffffffu;
    rq_f16 h;
    if (mag >= 0x7f800000u) {
        h.bits = (uint16_t)(sign | (mag > 0x7f800000u ? 0x7e00u : 0x7c00u));
    } else if (mag >= 0x477ff000u) { /* 65520 and above round to infinity */
        h.bits = (uint16_t)(sign | 0x7c00u);
    } else if (mag >= 0x38800000u) { /* normal half */
        uint32_t r = mag - 0x38000000u;
        h.bits = (uint16_t)(sign | ((r + 0xfffu + ((r >> 13) & 1u)) >> 13));
    } else { /* subnormal half: adding 0.5 aligns the last bit kept with 2^-24, rounding to even */
        float m = rq_f32_of_bits(mag) + 0.5f;
        h.bits = (uint16_t)(sign | (rq_f32_bits(m) - rq_f32_bits(0.5f)));
    }
    return h;
}

#ifdef __cplusplus
}
#endif
#endif
