/* SPDX-License-Identifier: Apache-2.0 */
/* The AVX-512 VNNI twin of gemm_w4a8.c. vpdpbusd multiplies unsigned bytes with signed ones: weights are decoded to bytes 0 .. 255, codes
 * themselves, or in two levels u * step + base + 128 by one shuffle in a table of the group. What that is too much is taken off with the
 * sum of the activations. Four rows and six tokens: 24 sums in registers, ten loads for 24 products. Sums wrap; the differences fit. */
#if defined(__x86_64__)
#include "simd_avx512.h"

enum { BLOCK = 64, TILE_TOK = 6 };
#define ZERO_ROW(w, row) ((w)->group ? 128 : (w)->zero ? (w)->zero[row] : 8)

INLINE void unpack_row(uint8_t *to, const rq_w4a8 *w, int64_t row, int64_t j, int64_t n_block);
INLINE void tile(int32_t *sum, const uint8_t *bytes, const int8_t *x, int64_t pitch, int64_t n_block, int n);
#include "gemm_w4a8_body.h"

/* 64 codes from the first n of 32 bytes. */
INLINE __m512i codes_of(const char *from, int64_t n) {
    const __m256i pairs = n >= BLOCK / 2 ? _mm256_loadu_si256((const __m256i *)from)
                                         : _mm256_maskz_loadu_epi8((__mmask32)((1u << n) - 1u), from);
    const __m512i wide = _mm512_cvtepu8_epi16(pairs);
    return _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), _mm512_set1_epi8(15));
}

INLINE void unpack_row(uint8_t *to, const rq_w4a8 *w, int64_t row, int64_t j, int64_t n_block) {
    const char *from = (const char *)(w->words + row * w->row_words) + j / 2;
    int64_t n = w->row_words * 4 - j / 2;
    if (!w->group) {
        for (int64_t b = 0; b < n_block; ++b, from += BLOCK / 2, n -= BLOCK / 2)
            _mm512_store_si512(to + b * BLOCK, codes_of(from, n));
        return;
    }
    tables t = tables_at(w, row, j, -128);
    if (w->group % BLOCK == 0) {
        __m512i table = _mm512_broadcast_i32x4(t.now);
        for (int64_t b = 0; b < n_block; ++b, j += BLOCK, from += BLOCK / 2, n -= BLOCK / 2) {
            if (j >= t.next) table = _mm512_broadcast_i32x4(tables_next(&t, j));
            _mm512_store_si512(to + b * BLOCK, _mm512_shuffle_epi8(table, codes_of(from, n)));
        }
        return;
    }
    for (int64_t b = 0; b < n_block; ++b, j += BLOCK, from += BLOCK / 2, n -= BLOCK / 2) { /* multiples of 32: halves */
        const __m256i low = _mm256_broadcastsi128_si256(tables_next(&t, j));
        const __m256i high = j + 32 < w->n_in ? _mm256_broadcastsi128_si256(tables_next(&t, j + 32)) : low;
        const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        _mm512_store_si512(to + b * BLOCK, _mm512_shuffle_epi8(both, codes_of(from, n)));
    }
}

/* The sums of four registers, as four numbers. */
INLINE __m128i add_across(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* sum += the products of u and s, four to a lane. The instruction itself: given the intrinsic on an array of sums, gcc 12 keeps half of them in
 * memory. */
INLINE void add_products(__m512i *sum, __m512i u, __m512i s) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(u), "v"(s));
}

INLINE void tile_of(int n, int32_t *sum, const uint8_t *bytes, const int8_t *x, int64_t pitch, int64_t n_block) {
    __m512i acc[TILE_TOK][ROWS];
    UNROLL for (int t = 0; t < n; ++t) { UNROLL for (int r = 0; r < ROWS; ++r) acc[t][r] = _mm512_setzero_si512(); }
    for (int64_t b = 0; b < n_block; ++b) {
        __m512i w[ROWS];
        UNROLL for (int r = 0; r < ROWS; ++r) w[r] = _mm512_load_si512(bytes + r * PANEL + b * BLOCK);
        UNROLL for (int t = 0; t < n; ++t) {
            const __m512i v = _mm512_loadu_si512(x + t * pitch + b * BLOCK);
            UNROLL for (int r = 0; r < ROWS; ++r) add_products(&acc[t][r], w[r], v);
        }
    }
    UNROLL for (int t = 0; t < n; ++t) {
        __m128i *to = (__m128i *)(sum + t * ROWS);
        _mm_storeu_si128(to,
                         _mm_add_epi32(_mm_loadu_si128(to), add_across(acc[t][0], acc[t][1], acc[t][2], acc[t][3])));
    }
}

INLINE void tile(int32_t *sum, const uint8_t *bytes, const int8_t *x, int64_t pitch, int64_t n_block, int n) {
    switch (n) {
    case 1: tile_of(1, sum, bytes, x, pitch, n_block); break;
    case 2: tile_of(2, sum, bytes, x, pitch, n_block); break;
    case 3: tile_of(3, sum, bytes, x, pitch, n_block); break;
    case 4: tile_of(4, sum, bytes, x, pitch, n_block); break;
    case 5: tile_of(5, sum, bytes, x, pitch, n_block); break;
    default: tile_of(TILE_TOK, sum, bytes, x, pitch, n_block); break;
    }
}

RQ_OP_gemm(rq_gemm_w4a8_avx512vnni, rq_w4a8) { gemm_rows(y, w, x, tok0, n_tok, row0, n_rows); }
#endif
