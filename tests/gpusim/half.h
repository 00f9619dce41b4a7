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

/* n is a multiple of 16. */
static inline void half_widen(float *to, const uint16_t *from, int n, bool bf16) {
#ifdef __AVX512F__
    for (int l = 0; l < n; l += 16) _mm512_storeu_ps(to + l, bf16 ? bf16_load16(from + l) : half_load16(from + l));
#else
    if (bf16)
        for (int l = 0; l < n; ++l) to[l] = gs_b2f(from[l]);
    else
        for (int l = 0; l < n; ++l) to[l] = gs_h2f(from[l]);
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
        for (int l = 0; l < n; ++l) to[l] = from[l] != from[l] ? 0x7fff : gs_f2h(from[l]);
#endif
}
/* a = a * b + c, rounded to odd. The product of two halves is exact in double; the error of the sum is exact by Knuth's
 * two-sum, and makes the double odd; that then becomes an odd float. */
static inline void half_fma_odd(float *a, const float *b, const float *c, int n) {
#ifdef __AVX512F__
    for (int l = 0; l < n; l += 16) {
        __m512 r = half_fma_odd16(_mm512_loadu_ps(a + l), _mm512_loadu_ps(b + l), _mm512_loadu_ps(c + l));
        _mm512_storeu_ps(a + l, r);
    }
#else
    for (int l = 0; l < n; ++l) {
        double p = (double)a[l] * b[l], q = c[l], s = p + q;
        double rest = s - p, error = (p - (s - rest)) + (q - rest);
        if (error != 0 && fabs(s) < INFINITY) {
            uint64_t u;
            memcpy(&u, &s, 8);
            if ((error < 0) != (s < 0)) --u; /* rounded away from zero: one back */
            u |= 1;
            memcpy(&s, &u, 8);
        }
        a[l] = gs_odd_float(s);
    }
#endif
}
#endif
