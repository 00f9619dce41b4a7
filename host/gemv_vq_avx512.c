/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 (F, BW, VL, DQ) twins of gemv and unpack for vector quantization: gemv_vq_body.h on registers of 16. */
#include "simd_avx512.h"

enum { LANES = 16 };
typedef __m512 vec;
INLINE vec v_set1(float a) { return _mm512_set1_ps(a); }
INLINE vec v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(float *p, vec a) { _mm512_storeu_ps(p, a); }
INLINE vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec v_halves(const rq_f16 *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

INLINE __m128i load_4(const rq_f16 *a, const rq_f16 *b) {
    return _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)a), _mm_loadl_epi64((const __m128i *)b));
}

/* The entries of 16 / V codes, one after the other. */
INLINE vec v_vectors(const rq_f16 *book, const uint16_t *code, int V) {
    __m128i a, b;
    if (V == 8) {
        a = _mm_loadu_si128((const __m128i *)(book + 8 * (int64_t)code[0]));
        b = _mm_loadu_si128((const __m128i *)(book + 8 * (int64_t)code[1]));
    } else {
        a = load_4(book + 4 * (int64_t)code[0], book + 4 * (int64_t)code[1]);
        b = load_4(book + 4 * (int64_t)code[2], book + 4 * (int64_t)code[3]);
    }
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1));
}

/* Each of 16 / V floats V times; p has 16. */
INLINE vec v_spread(const float *p, int V) {
    const __m512i by8 = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512i by4 = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_ps(V == 8 ? by8 : by4, _mm512_loadu_ps(p));
}

/* Codes from the i-th of a line on, 16 at a time, at most n: how many. */
static int64_t decode_codes(uint16_t *to, const rq_vq *w, int stage, int64_t line, int64_t i, int64_t n) {
    const int64_t n_bytes = w->code_words[stage] * 4;
    const int bits = w->code_bits[stage];
    const uint8_t *bytes = (const uint8_t *)(w->codes[stage] + line * w->code_words[stage]);
    const __m512i step = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                            _mm512_set1_epi32(bits));
    int64_t v = 0;
    for (; v + 16 <= n && ((i + v + 16) * bits + 31) / 8 <= n_bytes; v += 16) {
        const int64_t at = (i + v) * bits;
        __m256i codes;
        if (bits == 8) {
            codes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(bytes + i + v)));
        } else if (bits == 16) {
            codes = _mm256_loadu_si256((const __m256i *)(bytes + 2 * (i + v)));
        } else { /* four bytes hold any code of up to 16 bits */
            __m512i bit = _mm512_add_epi32(_mm512_set1_epi32((int)(at & 7)), step);
            __m512i four = _mm512_i32gather_epi32(_mm512_srli_epi32(bit, 3), bytes + (at >> 3), 1);
            four = _mm512_srlv_epi32(four, _mm512_and_si512(bit, _mm512_set1_epi32(7)));
            codes = _mm512_cvtepi32_epi16(_mm512_and_si512(four, _mm512_set1_epi32((1 << bits) - 1)));
        }
        _mm256_storeu_si256((__m256i *)(to + v), codes);
    }
    return v;
}

#define RQ_VQ_EIGHT(V)       ROWS_OF(V, 8)
#define RQ_VQ_EIGHT_OF(name) [8] = name##_8,
#include "gemv_vq_body.h"

RQ_OP_gemv(rq_gemv_vq_avx512, rq_vq) { gemv_any(y, w, x, n_tok, row0, n_rows); }

RQ_OP_unpack(rq_unpack_vq_avx512, rq_vq) { unpack_any(dst, w, row0, n_rows); }
