/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 (F, BW, VL, DQ) twins for sign-split vector codes (fmt_ssvq.h): gemv for 1 .. 16 tokens, and unpacking to fp32.
 *
 * A codebook becomes a table of floats on the stack once per call, book_scale * magnitude in the one rounding of the definition: 8
 * KiB for 256 codes of 8, so that it stays in L1. 16 columns are two (or four) vectors from it, put together in a register;
 * their signs are the 16 bits of a mask, under which the sign bit is flipped. Codes of a few rows are unpacked to 16-bit
 * offsets first, 16 or 32 at a time, whatever their width. Rows run in fours (two with several tokens), so that they share what is loaded of x.
 *
 * Groups and codebooks must be cut at multiples of 16 columns; others go to the C twin. Outlier columns of x are zeros in the copy
 * that is multiplied, and their products are added at the end. A row's sum is 16 lanes (two chains for one token) and one
 * tree per cut of the columns. */
#include "simd_avx512.h"

enum { ROWS = 4, MAX_VEC = XR_FLOATS / 4, UNIT = 2 /* floats that an offset counts */ };

typedef struct part { /* columns [j0, j1) of one codebook */
    float *y;         /* of the first token of this pass, row 0 */
    const rq_ssvq *w;
    const float *table; /* [n_codes][vec_len] */
    const float *xr;
    const float *xo; /* [n_tok][16]: outlier scale * x, NULL but for the first cut */
    int64_t j0, j1, row0, n_rows;
} part;

/* ---- decoding --------------------------------------------------------------------------------------------------------- */

static void make_table(float *table, const rq_ssvq *w, int64_t book) {
    const int64_t n = w->n_codes * w->vec_len, at = book * n;
    const __m512 scale = _mm512_set1_ps(w->book_scale[book]);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = mask_left(n - i);
        __m512 v;
        if (w->book_f16)
            v = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, w->book_f16 + at + i));
        else
            v = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, w->book_u8 + at + i)));
        _mm512_mask_storeu_ps(table + i, mask, _mm512_mul_ps(scale, v));
    }
}

/* Where the vectors of columns [j0, j1) of a row are in the table, in units; up to 16 more than asked for are written. */
static void offsets(uint16_t *to, const rq_ssvq *w, int64_t row, int64_t j0, int64_t j1) {
    const int64_t first = j0 / w->vec_len, end = first + (j1 - j0 + w->vec_len - 1) / w->vec_len;
    const int bits = w->code_bits, shift = w->vec_len == 8 ? 2 : 1; /* of 4 * vec_len bytes */
    const uint8_t *bytes = (const uint8_t *)(w->codes + row * w->code_words);
    const __m512i step = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                            _mm512_set1_epi32(bits));
    int64_t v = first;
    for (; v + 16 <= end && ((v + 16) * bits + 31) / 8 <= w->code_words * 4; v += 16) {
        __m256i codes;
        if (bits == 8) {
            codes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(bytes + v)));
        } else { /* four bytes hold any code of up to 12 bits */
            __m512i bit = _mm512_add_epi32(_mm512_set1_epi32((int)(v * bits & 7)), step);
            __m512i four = _mm512_i32gather_epi32(_mm512_srli_epi32(bit, 3), bytes + (v * bits >> 3), 1);
            four = _mm512_srlv_epi32(four, _mm512_and_si512(bit, _mm512_set1_epi32(7)));
            codes = _mm512_cvtepi32_epi16(_mm512_and_si512(four, _mm512_set1_epi32((1 << bits) - 1)));
        }
        _mm256_storeu_si256((__m256i *)(to + v - first), _mm256_slli_epi16(codes, shift));
    }
    for (; v < end; ++v) to[v - first] = (uint16_t)(rq_ssvq_code(w, row, v) << shift);
    _mm256_storeu_si256((__m256i *)(to + end - first), _mm256_setzero_si256());
}

/* The float vectors of 16 columns. */
INLINE __m512 look_up(const float *table, const uint16_t *at, int V) {
    if (V == 8) {
        __m256 a = _mm256_loadu_ps(table + (int64_t)at[0] * UNIT);
        __m256 b = _mm256_loadu_ps(table + (int64_t)at[1] * UNIT);
        return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1);
    }
    __m128 a = _mm_loadu_ps(table + (int64_t)at[0] * UNIT);
    __m128 b = _mm_loadu_ps(table + (int64_t)at[1] * UNIT);
    __m128 c = _mm_loadu_ps(table + (int64_t)at[2] * UNIT);
    __m128 d = _mm_loadu_ps(table + (int64_t)at[3] * UNIT);
    __m256 ab = _mm256_insertf128_ps(_mm256_castps128_ps256(a), b, 1);
    __m256 cd = _mm256_insertf128_ps(_mm256_castps128_ps256(c), d, 1);
    return _mm512_insertf32x8(_mm512_castps256_ps512(ab), cd, 1);
}

INLINE __m512 negate(__m512 v, __mmask16 negative) {
    __m512i bits = _mm512_castps_si512(v);
    return _mm512_castsi512_ps(_mm512_mask_xor_epi32(bits, negative, bits, _mm512_set1_epi32(INT32_MIN)));
}

/* ---- gemv ------------------------------------------------------------------------------------------------------------- */

/* n runs of 16 columns from j on, all in one group. */
INLINE void step(__m512 *sum, const part *p, const uint16_t (*at)[MAX_VEC + 16], const uint8_t *const *signs,
                 int n_rows, int V, int n_tok, int n, int64_t j) {
    const int chains = chains_of(n_tok) > 2 ? 2 : chains_of(n_tok);
    uint64_t negative[ROWS] = {0};
    UNROLL for (int i = 0; i < n_rows; ++i) memcpy(&negative[i], signs[i] + j / 8, (size_t)(2 * n));
    UNROLL for (int q = 0; q < n; ++q) {
        UNROLL for (int i = 0; i < n_rows; ++i) {
            __m512 v = look_up(p->table, at[i] + (j - p->j0) / V + 16 / V * q, V);
            v = negate(v, (__mmask16)(negative[i] >> (16 * q)));
            UNROLL for (int t = 0; t < n_tok; ++t) {
                __m512 *to = &sum[(i * n_tok + t) * chains + q % chains];
                *to = _mm512_fmadd_ps(v, _mm512_loadu_ps(p->xr + (j - p->j0 + 16 * q) * n_tok + 16 * t), *to);
            }
        }
    }
}

/* n_rows rows from r on. Everything but p and r is a constant where this is inlined. */
INLINE void some_rows(const part *p, int64_t r, int n_rows, int V, int n_tok) {
    const rq_ssvq *w = p->w;
    const int chains = chains_of(n_tok) > 2 ? 2 : chains_of(n_tok);
    uint16_t at[ROWS][MAX_VEC + 16];
    const uint8_t *signs[ROWS];
    __m512 total[ROWS * PASS_TOK];
    UNROLL for (int i = 0; i < n_rows; ++i) {
        offsets(at[i], w, r + i, p->j0, p->j1);
        signs[i] = (const uint8_t *)(w->signs + (r + i) * w->sign_words);
    }
    UNROLL for (int i = 0; i < n_rows * n_tok; ++i) total[i] = _mm512_setzero_ps();
    for (int64_t j = p->j0; j < p->j1;) {
        const int64_t k = j / w->group, end = rq_min_i64(p->j1, (k + 1) * w->group);
        __m512 sum[ROWS * PASS_TOK];
        UNROLL for (int i = 0; i < n_rows * n_tok * chains; ++i) sum[i] = _mm512_setzero_ps();
        for (; j + 64 <= end; j += 64) {
            UNROLL for (int i = 0; i < n_rows; ++i) {
                _mm_prefetch((const char *)signs[i] + ROWS * w->sign_words * 4 + j / 8, _MM_HINT_T0);
            }
            step(sum, p, at, signs, n_rows, V, n_tok, 4, j);
        }
        for (; j < end; j += 16) step(sum, p, at, signs, n_rows, V, n_tok, 1, j);
        UNROLL for (int i = 0; i < n_rows; ++i) {
            const __m512 scale = _mm512_set1_ps(rq_f32_of_f16(w->scale[(r + i) * w->n_group + k]));
            UNROLL for (int t = 0; t < n_tok; ++t) {
                __m512 s = sum[(i * n_tok + t) * chains];
                if (chains == 2) s = _mm512_add_ps(s, sum[(i * n_tok + t) * 2 + 1]);
                total[i * n_tok + t] = _mm512_fmadd_ps(s, scale, total[i * n_tok + t]);
            }
        }
    }
    UNROLL for (int i = 0; i < n_rows; ++i) {
        __m128i q = _mm_setzero_si128();
        if (p->xo) q = _mm_maskz_loadu_epi8(mask_left(w->n_outlier), w->outlier + (r + i) * w->n_outlier);
        UNROLL for (int t = 0; t < n_tok; ++t) {
            __m512 s = total[i * n_tok + t];
            if (p->xo)
                s = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)), _mm512_loadu_ps(p->xo + 16 * t), s);
            finish(p->y + t * w->n_out + r + i, &s, 1, p->j0 > 0);
        }
    }
}

INLINE void all_rows(const part *p, int V, int n_tok) {
    const int together = n_tok == 1 ? 4 : 2;
    int64_t r = p->row0, end = p->row0 + p->n_rows;
    for (; r + together <= end; r += together) some_rows(p, r, together, V, n_tok);
    for (; r < end; ++r) some_rows(p, r, 1, V, n_tok); /* the same sums in the same order */
}

typedef void (*rows_fn)(const part *p);
#define ROWS_OF(V, n_tok)                                                                                              \
    static void rows_##V##_##n_tok(const part *p) { all_rows(p, V, n_tok); }
#define ROWS_ALL(V) ROWS_OF(V, 1) ROWS_OF(V, 2) ROWS_OF(V, 3) ROWS_OF(V, 4) ROWS_OF(V, 8)
ROWS_ALL(4)
ROWS_ALL(8)
// clang-format off
#define ROWS_LIST(V) {NULL, rows_##V##_1, rows_##V##_2, rows_##V##_3, rows_##V##_4, NULL, NULL, NULL, rows_##V##_8}
static const rows_fn rows_table[2][PASS_TOK + 1] = {ROWS_LIST(4), ROWS_LIST(8)};
// clang-format on

static void clear_outliers(float *xr, const rq_ssvq *w, int64_t n_tok, int64_t j0, int64_t j1) {
    for (int o = 0; o < w->n_outlier; ++o) {
        int64_t j = w->outlier_col[o] - j0;
        if (j < 0 || j >= j1 - j0) continue;
        for (int64_t t = 0; t < n_tok; ++t) xr[(j / 16 * n_tok + t) * 16 + j % 16] = 0.0f;
    }
}

/* Whether groups and codebooks are cut where this file can cut, and a table serves more vectors than it has. */
static bool fits(const rq_ssvq *w) {
    return (w->n_group == 1 || w->group % 16 == 0) &&
           (w->n_book == 1 || (w->book_cols % 16 == 0 && w->book_cols >= w->n_codes / 8));
}

RQ_OP_gemv(rq_gemv_ssvq_avx512, rq_ssvq) {
    float table[(1 << 12) * 8] __attribute__((aligned(64))), xr[XR_FLOATS] __attribute__((aligned(64))),
        xo[PASS_TOK * 16];
    const int64_t step = XR_FLOATS / rq_min_i64(n_tok, PASS_TOK) / 64 * 64;
    if (!fits(w)) {
        rq_gemv_ssvq_c(y, w, x, n_tok, row0, n_rows);
        return;
    }
    for (int64_t b = 0; b < w->n_book; ++b) {
        int64_t begin = b * w->book_cols, end = rq_min_i64(w->n_in, begin + w->book_cols);
        part p = {.w = w, .table = table, .xr = xr, .row0 = row0, .n_rows = n_rows};
        make_table(table, w, b);
        for (p.j0 = begin; p.j0 < end; p.j0 = p.j1) {
            p.j1 = rq_min_i64(end, p.j0 + step);
            for (int64_t t = 0, n; t < n_tok; t += n) {
                n = pass_tokens(n_tok - t);
                const float *xt = x + t * w->n_in;
                pack_x(xr, xt, w->n_in, n, p.j0, p.j1);
                clear_outliers(xr, w, n, p.j0, p.j1);
                p.xo = p.j0 == 0 && w->n_outlier ? xo : NULL;
                for (int64_t i = 0; p.xo && i < n * 16; ++i) {
                    int64_t o = i % 16;
                    xo[i] = o < w->n_outlier ? w->outlier_scale[o] * xt[i / 16 * w->n_in + w->outlier_col[o]] : 0.0f;
                }
                p.y = y + t * w->n_out;
                rows_table[w->vec_len == 8][n](&p);
            }
        }
    }
}

/* ---- unpack ----------------------------------------------------------------------------------------------------------- */

/* Columns [j0, j1), all of one codebook. */
INLINE void unpack_part(float *dst, const rq_ssvq *w, const float *table, int64_t row, int64_t j0, int64_t j1, int V) {
    uint16_t at[MAX_VEC + 16] = {0};
    const uint8_t *signs = (const uint8_t *)(w->signs + row * w->sign_words);
    offsets(at, w, row, j0, j1);
    for (int64_t j = j0; j < j1;) {
        const int64_t k = j / w->group, end = rq_min_i64(j1, (k + 1) * w->group);
        const __m512 scale = _mm512_set1_ps(rq_f32_of_f16(w->scale[row * w->n_group + k]));
        for (; j < end; j += 16) {
            uint16_t negative;
            memcpy(&negative, signs + j / 8, sizeof negative);
            __m512 v = negate(look_up(table, at + (j - j0) / V, V), negative);
            _mm512_mask_storeu_ps(dst + j, mask_left(end - j), _mm512_mul_ps(scale, v));
        }
    }
}

#include "gemv_ssvq_unpack.h"

RQ_OP_unpack(rq_unpack_ssvq_avx512, rq_ssvq) { unpack_any(dst, w, row0, n_rows); }
