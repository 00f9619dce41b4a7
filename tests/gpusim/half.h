/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors of f16 and bf16: to floats, from floats, and the fused multiply-add rounded to odd that all their arithmetic
 * is.
 *
 * Rounding to odd: an inexact result gets its last bit set. A float so rounded keeps enough of the exact value that a
 * second rounding, to a type with at least two bits fewer, gives what one rounding of the exact value gives. */
#ifndef RQ_GPUSIM_HALF_H
#define RQ_GPUSIM_HALF_H
#include "lanes.h"

#ifdef __AVX512F__
static inline __m512 half_load16(const void *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}
/* To nearest even; NaN gives 0x7fff. */
static inline void half_store16(void *to, __m512 v) {
    __m256i h = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    _mm256_storeu_si256((__m256i *)to, _mm256_mask_mov_epi16(h, nan, _mm256_set1_epi16(0x7fff)));
}
static inline __m512 bf16_load16(const void *from) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline void bf16_store16(void *to, __m512 v) {
    __m512i u = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    u = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff)), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    u = _mm512_mask_mov_epi32(u, nan, _mm512_set1_epi32(0x7fff));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(u));
}
/* Inexact where rounding down and up differ; then the result nearer to zero, with its last bit set. */
static inline __m512 half_fma_odd16(__m512 a, __m512 b, __m512 c) {
    __m512 zero = _mm512_fmadd_round_ps(a, b, c, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    __m512 down = _mm512_fmadd_round_ps(a, b, c, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 up = _mm512_fmadd_round_ps(a, b, c, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    __mmask16 inexact = _mm512_cmp_ps_mask(down, up, _CMP_NEQ_OQ);
    __m512i u = _mm512_castps_si512(zero);
    return _mm512_castsi512_ps(_mm512_mask_or_epi32(u, inexact, u, _mm512_set1_epi32(1)));
}
#endif

#ifndef __AVX512F__
/* Without branches, so that loops over them vectorise. A half's exponent and fraction, moved to where a float has them, are
 * the number times 2^-112, subnormals included. */
static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, size = (uint32_t)(h & 0x7fff) << 13;
    uint32_t u = gs_bits(gs_float(size) * 0x1p112f);
    if (size >= 0x0f800000u) u = size | 0x7f800000u; /* infinity, NaN */
    return gs_float(u | sign);
}
static inline uint16_t half_of_float(float v) {
    uint32_t u = gs_bits(v), sign = (u >> 16) & 0x8000, size = u & 0x7fffffffu;
    uint32_t normal = (size + 0xfff + ((size >> 13) & 1) - 0x38000000u) >> 13;
    uint32_t small = gs_bits(gs_float(size) + 0.5f) - 0x3f000000u; /* the sum rounds to multiples of 2^-24 */
    uint32_t r = size < 0x38800000u ? small : normal;
    r = size >= 0x477ff000u ? 0x7c00 : r; /* 65520 and above */
    return (uint16_t)(size > 0x7f800000u ? 0x7fff : r | sign);
}
/* The product of two f16 is exact in float, and so is the error of the sum (Knuth's two-sum). */
static inline float half_fma_odd_f16(float a, float b, float c) {
    float p = a * b, s = p + c, part = s - p, error = (p - (s - part)) + (c - part);
    uint32_t u = gs_bits(s), inexact = error < 0 || error > 0; /* not of infinity and NaN */
    uint32_t beyond = inexact & ((error < 0) != (s < 0));      /* s was rounded away from zero: one back */
    return gs_float((u - beyond) | inexact);
}
/* That of two bf16 may leave the range of float: in double, made odd, and then made an odd float. */
static inline float half_fma_odd_bf16(float a, float b, float c) {
    double p = (double)a * b, q = c, s = p + q, part = s - p, error = (p - (s - part)) + (q - part);
    if (error < 0 || error > 0) {
        uint64_t u;
        memcpy(&u, &s, 8);
        if ((error < 0) != (s < 0)) --u;
        u |= 1;
        memcpy(&s, &u, 8);
    }
    return gs_odd_float(s);
}
#endif

/* n is a multiple of 16. */
static inline void half_widen(float *to, const uint16_t *from, int n, bool bf16) {
#ifdef __AVX512F__
    for (int l = 0; l < n; l += 16) _mm512_storeu_ps(to + l, bf16 ? bf16_load16(from + l) : half_load16(from + l));
#else
    if (bf16)
        for (int l = 0; l < n; ++l) to[l] = gs_b2f(from[l]);
    else
        for (int l = 0; l < n; ++l) to[l] = half_to_float(from[l]);
#endif
}
static inline void half_narrow(uint16_t *to, const float *from, int n, bool bf16) {
#ifdef __AVX512F__
    for (int l = 0; l < n; l += 16) {
        __m512 v = _mm512_loadu_ps(from + l);
        if (bf16)
            bf16_store16(to + l, v);
        else
            half_store16(to + l, v);
    }
#else
    if (bf16)
        for (int l = 0; l < n; ++l) to[l] = gs_f2b(from[l]);
    else
        for (int l = 0; l < n; ++l) to[l] = half_of_float(from[l]);
#endif
}
/* a = a * b + c, rounded to odd. */
static inline void half_fma_odd(float *a, const float *b, const float *c, int n, bool bf16) {
#ifdef __AVX512F__
    (void)bf16;
    for (int l = 0; l < n; l += 16) {
        __m512 r = half_fma_odd16(_mm512_loadu_ps(a + l), _mm512_loadu_ps(b + l), _mm512_loadu_ps(c + l));
        _mm512_storeu_ps(a + l, r);
    }
#else
    if (bf16)
        for (int l = 0; l < n; ++l) a[l] = half_fma_odd_bf16(a[l], b[l], c[l]);
    else
        for (int l = 0; l < n; ++l) a[l] = half_fma_odd_f16(a[l], b[l], c[l]);
#endif
}
#endif
