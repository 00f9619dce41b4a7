/* SPDX-License-Identifier: Apache-2.0 */
/* The AVX-512 twin of act_quantize.c: 16 columns at a time, masks at the ends of rows. */
#if defined(__x86_64__)
#include "simd_avx512.h"

typedef __m512 V;
typedef __m512i VI;
enum { W = 16 };

INLINE V v_set(float a) { return _mm512_set1_ps(a); }
INLINE V v_load(const float *p, int64_t n) {
    return n >= W ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(mask_left(n), p);
}
INLINE void v_store(float *p, V v, int64_t n) { _mm512_mask_storeu_ps(p, mask_left(n), v); }
INLINE V v_add(V a, V b) { return _mm512_add_ps(a, b); }
INLINE V v_sub(V a, V b) { return _mm512_sub_ps(a, b); }
INLINE V v_mul(V a, V b) { return _mm512_mul_ps(a, b); }
INLINE V v_div(V a, V b) { return _mm512_div_ps(a, b); }
INLINE V v_fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
INLINE V v_min(V a, V b) { return _mm512_min_ps(a, b); } /* b where one is NaN, as v_max */
INLINE V v_max(V a, V b) { return _mm512_max_ps(a, b); }
INLINE V v_abs(V a) { return _mm512_abs_ps(a); }
INLINE V v_rint(V a) { return _mm512_roundscale_ps(a, 8 | _MM_FROUND_TO_NEAREST_INT); }
INLINE V v_not_nan(V a) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a); }
INLINE V v_two_to(V n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
INLINE float v_largest(V a) { return _mm512_reduce_max_ps(a); }
/* a + b in the lower place, a - b in the upper one, of pairs `half` apart. */
INLINE V v_butterfly(V v, int half) {
    const __mmask16 upper = half == 1 ? 0xaaaa : half == 2 ? 0xcccc : half == 4 ? 0xf0f0 : 0xff00;
    const V other = half == 1   ? _mm512_permute_ps(v, 0xb1)
                    : half == 2 ? _mm512_permute_ps(v, 0x4e)
                    : half == 4 ? _mm512_shuffle_f32x4(v, v, 0xb1)
                                : _mm512_shuffle_f32x4(v, v, 0x4e);
    return _mm512_mask_sub_ps(_mm512_add_ps(v, other), upper, other, v);
}
INLINE VI vi_zero(void) { return _mm512_setzero_si512(); }
INLINE VI vi_add(VI a, VI b) { return _mm512_add_epi32(a, b); }
INLINE VI v_to_int(V a) { return _mm512_cvtps_epi32(a); }
INLINE int32_t vi_across(VI a) { return _mm512_reduce_add_epi32(a); }
INLINE void vi_store_bytes(int8_t *to, VI a, int64_t n) { _mm512_mask_cvtepi32_storeu_epi8(to, mask_left(n), a); }

#include "act_quantize_body.h"

RQ_OP_quantize(rq_quantize_act_rows_avx512, rq_act_rows) { quantize_rows(q, pitch, scale, sum, a, tok0, n_tok); }
RQ_OP_quantize(rq_quantize_act_rmsnorm_avx512, rq_act_rmsnorm) {
    quantize_rmsnorm(q, pitch, scale, sum, a, tok0, n_tok);
}
RQ_OP_quantize(rq_quantize_act_gated_avx512, rq_act_gated) { quantize_gated(q, pitch, scale, sum, a, tok0, n_tok); }
#endif
