/* SPDX-License-Identifier: Apache-2.0 */
/* The AVX2 twin of act_quantize.c: 8 columns at a time, the ends of rows through memory. */
#if defined(__x86_64__)
#include "simd_avx2.h"

typedef __m256 V;
typedef __m256i VI;
enum { W = 8 };

INLINE V v_set(float a) { return _mm256_set1_ps(a); }
INLINE V v_load(const float *p, int64_t n) {
    float some[W] = {0};
    if (n >= W) return _mm256_loadu_ps(p);
    memcpy(some, p, (size_t)n * sizeof *p);
    return _mm256_loadu_ps(some);
}
INLINE void v_store(float *p, V v, int64_t n) {
    float some[W];
    _mm256_storeu_ps(n >= W ? p : some, v);
    if (n < W) memcpy(p, some, (size_t)n * sizeof *p);
}
INLINE V v_add(V a, V b) { return _mm256_add_ps(a, b); }
INLINE V v_sub(V a, V b) { return _mm256_sub_ps(a, b); }
INLINE V v_mul(V a, V b) { return _mm256_mul_ps(a, b); }
INLINE V v_div(V a, V b) { return _mm256_div_ps(a, b); }
INLINE V v_fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
INLINE V v_min(V a, V b) { return _mm256_min_ps(a, b); } /* b where one is NaN, as v_max */
INLINE V v_max(V a, V b) { return _mm256_max_ps(a, b); }
INLINE V v_abs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE V v_rint(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE V v_not_nan(V a) { return _mm256_and_ps(a, _mm256_cmp_ps(a, a, _CMP_ORD_Q)); }
INLINE V v_two_to(V n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
INLINE float v_largest(V a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
/* a + b in the lower place, a - b in the upper one, of pairs `half` apart. */
INLINE V v_butterfly(V v, int half) {
    const V minus = _mm256_xor_ps(v, _mm256_set1_ps(-0.0f));
    if (half == 1) return _mm256_add_ps(_mm256_permute_ps(v, 0xb1), _mm256_blend_ps(v, minus, 0xaa));
    if (half == 2) return _mm256_add_ps(_mm256_permute_ps(v, 0x4e), _mm256_blend_ps(v, minus, 0xcc));
    return _mm256_add_ps(_mm256_permute2f128_ps(v, v, 1), _mm256_blend_ps(v, minus, 0xf0));
}
INLINE VI vi_zero(void) { return _mm256_setzero_si256(); }
INLINE VI vi_add(VI a, VI b) { return _mm256_add_epi32(a, b); }
INLINE VI v_to_int(V a) { return _mm256_cvtps_epi32(a); }
INLINE int32_t vi_across(VI a) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    four = _mm_hadd_epi32(four, four);
    return _mm_cvtsi128_si32(_mm_hadd_epi32(four, four));
}
INLINE void vi_store_bytes(int8_t *to, VI a, int64_t n) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    int8_t some[W];
    _mm_storel_epi64((__m128i *)some, _mm_packs_epi16(words, words));
    memcpy(to, some, (size_t)(n >= W ? W : n));
}

#include "act_quantize_body.h"

RQ_OP_quantize(rq_quantize_act_rows_avx2, rq_act_rows) { quantize_rows(q, pitch, scale, sum, a, tok0, n_tok); }
RQ_OP_quantize(rq_quantize_act_rmsnorm_avx2, rq_act_rmsnorm) { quantize_rmsnorm(q, pitch, scale, sum, a, tok0, n_tok); }
RQ_OP_quantize(rq_quantize_act_gated_avx2, rq_act_gated) { quantize_gated(q, pitch, scale, sum, a, tok0, n_tok); }
#endif
