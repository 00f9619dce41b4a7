/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 twins of gemv and unpack for vector quantization: gemv_vq_body.h on registers of 8. */
#include "simd_avx2.h"

enum { LANES = 8 };
typedef __m256 vec;
INLINE vec v_set1(float a) { return _mm256_set1_ps(a); }
INLINE vec v_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void v_store(float *p, vec a) { _mm256_storeu_ps(p, a); }
INLINE vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec v_halves(const rq_f16 *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }

/* The entries of 8 / V codes, one after the other. */
INLINE vec v_vectors(const rq_f16 *book, const uint16_t *code, int V) {
    if (V == 8) return v_halves(book + 8 * (int64_t)code[0]);
    __m128i a = _mm_loadl_epi64((const __m128i *)(book + 4 * (int64_t)code[0]));
    __m128i b = _mm_loadl_epi64((const __m128i *)(book + 4 * (int64_t)code[1]));
    return _mm256_cvtph_ps(_mm_unpacklo_epi64(a, b));
}

/* Each of 8 / V floats V times; p has 8. */
INLINE vec v_spread(const float *p, int V) {
    if (V == 8) return _mm256_broadcast_ss(p);
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(p), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}

/* Codes from the i-th of a line on, 8 at a time, at most n: how many. */
static int64_t decode_codes(uint16_t *to, const rq_vq *w, int stage, int64_t line, int64_t i, int64_t n) {
    const int64_t n_bytes = w->code_words[stage] * 4;
    const int bits = w->code_bits[stage];
    const uint8_t *bytes = (const uint8_t *)(w->codes[stage] + line * w->code_words[stage]);
    const __m256i step = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(bits));
    int64_t v = 0;
    for (; v + 8 <= n && ((i + v + 8) * bits + 31) / 8 <= n_bytes; v += 8) {
        const int64_t at = (i + v) * bits;
        __m128i codes;
        if (bits == 8) {
            codes = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(bytes + i + v)));
        } else if (bits == 16) {
            codes = _mm_loadu_si128((const __m128i *)(bytes + 2 * (i + v)));
        } else { /* four bytes hold any code of up to 16 bits */
            __m256i bit = _mm256_add_epi32(_mm256_set1_epi32((int)(at & 7)), step);
            __m256i four = _mm256_i32gather_epi32((const int *)(bytes + (at >> 3)), _mm256_srli_epi32(bit, 3), 1);
            four = _mm256_srlv_epi32(four, _mm256_and_si256(bit, _mm256_set1_epi32(7)));
            four = _mm256_and_si256(four, _mm256_set1_epi32((1 << bits) - 1));
            codes = _mm_packus_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
        }
        _mm_storeu_si128((__m128i *)(to + v), codes);
    }
    return v;
}

#define RQ_VQ_EIGHT(V)
#define RQ_VQ_EIGHT_OF(name)
#include "gemv_vq_body.h"

RQ_OP_gemv(rq_gemv_vq_avx2, rq_vq) { gemv_any(y, w, x, n_tok, row0, n_rows); }

RQ_OP_unpack(rq_unpack_vq_avx2, rq_vq) { unpack_any(dst, w, row0, n_rows); }
