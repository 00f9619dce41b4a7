/* SPDX-License-Identifier: Apache-2.0 */
/* The AVX2 twin of gemm_w4a8.c. vpmaddubsw adds pairs of products of unsigned and signed bytes in 16 bits. Weights are decoded to their
 * levels; the size of a level (at most 128) meets the activation with the level's sign, so a pair is at most 2 * 128 * 127, which fits. */
#if defined(__x86_64__)
#include "simd_avx2.h"

enum { BLOCK = 32, TILE_TOK = 2 };
#define ZERO_ROW(w, row) 0

INLINE void unpack_row(uint8_t *to, const rq_w4a8 *w, int64_t row, int64_t j, int64_t n_block);
INLINE void tile(int32_t *sum, const uint8_t *bytes, const int8_t *x, int64_t pitch, int64_t n_block, int n);
#include "gemm_w4a8_body.h"

/* 32 codes from the first n of 16 bytes. */
INLINE __m256i codes_of(const char *from, int64_t n) {
    __m128i pairs;
    if (n >= BLOCK / 2) {
        pairs = _mm_loadu_si128((const __m128i *)from);
    } else {
        char some[BLOCK / 2] = {0};
        memcpy(some, from, (size_t)n);
        pairs = _mm_loadu_si128((const __m128i *)some);
    }
    const __m256i wide = _mm256_cvtepu8_epi16(pairs);
    return _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi16(wide, 4)), _mm256_set1_epi8(15));
}

INLINE void unpack_row(uint8_t *to, const rq_w4a8 *w, int64_t row, int64_t j, int64_t n_block) {
    const char *from = (const char *)(w->words + row * w->row_words) + j / 2;
    const int zero = w->zero ? w->zero[row] : 8;
    int64_t n = w->row_words * 4 - j / 2;
    __m128i table = _mm_sub_epi8(_mm_loadu_si128((const __m128i *)multiples[1]), _mm_set1_epi8((char)zero));
    tables t = {0};
    if (w->group) t = tables_at(w, row, j, 0);
    for (int64_t b = 0; b < n_block; ++b, j += BLOCK, from += BLOCK / 2, n -= BLOCK / 2) {
        if (w->group) table = tables_next(&t, j);
        _mm256_store_si256((__m256i *)(to + b * BLOCK),
                           _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes_of(from, n)));
    }
}

INLINE void tile_of(int n, int32_t *sum, const uint8_t *bytes, const int8_t *x, int64_t pitch, int64_t n_block) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i acc[TILE_TOK][ROWS];
    UNROLL for (int t = 0; t < n; ++t) { UNROLL for (int r = 0; r < ROWS; ++r) acc[t][r] = _mm256_setzero_si256(); }
    for (int64_t b = 0; b < n_block; ++b) {
        UNROLL for (int r = 0; r < ROWS; ++r) {
            const __m256i w = _mm256_load_si256((const __m256i *)(bytes + r * PANEL + b * BLOCK)),
                          size = _mm256_abs_epi8(w);
            UNROLL for (int t = 0; t < n; ++t) {
                const __m256i v = _mm256_loadu_si256((const __m256i *)(x + t * pitch + b * BLOCK));
                const __m256i two = _mm256_maddubs_epi16(size, _mm256_sign_epi8(v, w));
                acc[t][r] = _mm256_add_epi32(acc[t][r], _mm256_madd_epi16(two, ones));
            }
        }
    }
    UNROLL for (int t = 0; t < n; ++t) {
        const __m256i ab = _mm256_hadd_epi32(acc[t][0], acc[t][1]), cd = _mm256_hadd_epi32(acc[t][2], acc[t][3]);
        const __m256i all = _mm256_hadd_epi32(ab, cd);
        __m128i *to = (__m128i *)(sum + t * ROWS);
        _mm_storeu_si128(to, _mm_add_epi32(_mm_loadu_si128(to), _mm_add_epi32(_mm256_castsi256_si128(all),
                                                                              _mm256_extracti128_si256(all, 1))));
    }
}

INLINE void tile(int32_t *sum, const uint8_t *bytes, const int8_t *x, int64_t pitch, int64_t n_block, int n) {
    if (n == 1)
        tile_of(1, sum, bytes, x, pitch, n_block);
    else
        tile_of(TILE_TOK, sum, bytes, x, pitch, n_block);
}

RQ_OP_gemm(rq_gemm_w4a8_avx2, rq_w4a8) { gemm_rows(y, w, x, tok0, n_tok, row0, n_rows); }
#endif
