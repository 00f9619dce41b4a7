/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 (F, BW, VL, DQ) twin of gemv for vector quantization (fmt_vq.h), vectors of 4 or 8 along inputs, 1 to 16 tokens.
 *
 * 16 columns are two (or four) fp16 vectors put together in a register and widened; with two stages those of the other codebook
 * are added. The codebooks stay as they are: 4 KiB for 256 entries of 8, 1 MiB for 65,536. Codes of a pair of rows are unpacked to 16 bits
 * first, 16 at a time, whatever their width. Row scales multiply the sum of a group. With a scale and a bias for each column
 * weights are made one by one, in the roundings of the definition: a bias may cancel most of a weight.
 *
 * Groups and codebooks must be cut at multiples of 16 columns; others, and vectors along outputs, go to the C twin. Outlier columns
 * of x are zeros in the copy that is multiplied, and their products are added at the end. A row's sum is 16 lanes (times up to 4
 * chains for few tokens) and one tree per cut of the columns. */
#include "simd_avx512.h"

enum { ROWS = 2, MAX_CODE = XR_FLOATS / 4 };

typedef uint16_t row_codes[2][MAX_CODE + 16]; /* of a row, by stage */

typedef struct part { /* columns [j0, j1) of one codebook */
    float *y;         /* of the first token of this pass, row 0 */
    const rq_vq *w;
    const rq_f16 *book[2]; /* of these columns; the second is NULL with one stage */
    const float *xr;
    const float *xo; /* [n_tok][16]: outlier scale * x, NULL but for the first cut */
    int64_t j0, j1, row0, n_rows;
} part;

/* Codes of columns [j0, j1) of a row, and 16 zeros. */
static void unpack_codes(uint16_t *to, const rq_vq *w, int stage, int64_t row, int64_t j0, int64_t j1) {
    const int64_t first = j0 / w->vec_len, end = first + (j1 - j0 + w->vec_len - 1) / w->vec_len;
    const int64_t n_bytes = w->code_words[stage] * 4;
    const int bits = w->code_bits[stage];
    const uint8_t *bytes = (const uint8_t *)(w->codes[stage] + row * w->code_words[stage]);
    const __m512i step = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                            _mm512_set1_epi32(bits));
    int64_t v = first;
    for (; v + 16 <= end && ((v + 16) * bits + 31) / 8 <= n_bytes; v += 16) {
        __m256i codes;
        if (bits == 8) {
            codes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(bytes + v)));
        } else if (bits == 16) {
            codes = _mm256_loadu_si256((const __m256i *)(bytes + 2 * v));
        } else { /* four bytes hold any code of up to 16 bits */
            __m512i bit = _mm512_add_epi32(_mm512_set1_epi32((int)(v * bits & 7)), step);
            __m512i four = _mm512_i32gather_epi32(_mm512_srli_epi32(bit, 3), bytes + (v * bits >> 3), 1);
            four = _mm512_srlv_epi32(four, _mm512_and_si512(bit, _mm512_set1_epi32(7)));
            codes = _mm512_cvtepi32_epi16(_mm512_and_si512(four, _mm512_set1_epi32((1 << bits) - 1)));
        }
        _mm256_storeu_si256((__m256i *)(to + v - first), codes);
    }
    for (; v < end; ++v) to[v - first] = (uint16_t)rq_vq_code(w, stage, row, v);
    _mm256_storeu_si256((__m256i *)(to + end - first), _mm256_setzero_si256());
}

INLINE __m128i load_4(const rq_f16 *a, const rq_f16 *b) {
    return _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)a), _mm_loadl_epi64((const __m128i *)b));
}

/* The values of 16 columns in one codebook. */
INLINE __m512 look_up(const rq_f16 *book, const uint16_t *code, int V) {
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

INLINE __m512 load_columns(const rq_f16 *p, int64_t left) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask_left(left), p));
}

/* n runs of 16 columns from j on, all in one group; scale: of each row, where columns have factors too. */
INLINE void step(__m512 *sum, const part *p, row_codes *codes, int n_rows, int V, int n_tok, int n, int64_t j,
                 const float *scale) {
    const int chains = chains_of(n_tok);
    const rq_vq *w = p->w;
    UNROLL for (int q = 0; q < n; ++q) {
        const int64_t from = j - p->j0 + 16 * q, left = w->n_in - j - 16 * q;
        __m512 v[ROWS];
        UNROLL for (int i = 0; i < n_rows; ++i) {
            v[i] = look_up(p->book[0], codes[i][0] + from / V, V);
            if (p->book[1]) v[i] = _mm512_add_ps(v[i], look_up(p->book[1], codes[i][1] + from / V, V));
        }
        if (w->col_scale) {
            const __m512 factor = load_columns(w->col_scale + j + 16 * q, left);
            const __m512 bias = load_columns(w->col_bias + j + 16 * q, left);
            UNROLL for (int i = 0; i < n_rows; ++i) {
                v[i] = _mm512_mul_ps(_mm512_set1_ps(scale[i]), v[i]);
                v[i] = _mm512_add_ps(_mm512_mul_ps(v[i], factor), bias);
            }
        }
        UNROLL for (int t = 0; t < n_tok; ++t) {
            const __m512 xt = _mm512_loadu_ps(p->xr + from * n_tok + 16 * t);
            UNROLL for (int i = 0; i < n_rows; ++i) {
                __m512 *to = &sum[(i * n_tok + t) * chains + q % chains];
                *to = _mm512_fmadd_ps(v[i], xt, *to);
            }
        }
    }
}

/* n_rows rows from r on. Everything but p and r is a constant where this is inlined. */
INLINE void some_rows(const part *p, int64_t r, int n_rows, int V, int n_tok) {
    const rq_vq *w = p->w;
    const int chains = chains_of(n_tok);
    row_codes codes[ROWS];
    __m512 total[ROWS * PASS_TOK];
    UNROLL for (int i = 0; i < n_rows; ++i) {
        for (int s = 0; s < w->n_stage; ++s) unpack_codes(codes[i][s], w, s, r + i, p->j0, p->j1);
    }
    UNROLL for (int i = 0; i < n_rows * n_tok; ++i) total[i] = _mm512_setzero_ps();
    for (int64_t j = p->j0; j < p->j1;) {
        const int64_t k = j / w->group, end = rq_min_i64(p->j1, (k + 1) * w->group);
        __m512 sum[ROWS * PASS_TOK * 4];
        float scale[ROWS];
        UNROLL for (int i = 0; i < n_rows * n_tok * chains; ++i) sum[i] = _mm512_setzero_ps();
        UNROLL for (int i = 0; i < n_rows; ++i) {
            scale[i] = w->scale ? rq_f32_of_f16(w->scale[(r + i) * w->n_group + k]) : 1.0f;
        }
        for (; j + 64 <= end; j += 64) step(sum, p, codes, n_rows, V, n_tok, 4, j, scale);
        for (; j < end; j += 16) step(sum, p, codes, n_rows, V, n_tok, 1, j, scale);
        UNROLL for (int i = 0; i < n_rows; ++i) {
            const __m512 factor = _mm512_set1_ps(w->col_scale ? 1.0f : scale[i]);
            UNROLL for (int t = 0; t < n_tok; ++t) {
                const __m512 *from = &sum[(i * n_tok + t) * chains];
                __m512 s = from[0];
                if (chains >= 2) s = _mm512_add_ps(s, from[1]);
                if (chains == 4) s = _mm512_add_ps(s, _mm512_add_ps(from[2], from[3]));
                total[i * n_tok + t] = _mm512_fmadd_ps(s, factor, total[i * n_tok + t]);
            }
        }
    }
    UNROLL for (int i = 0; i < n_rows; ++i) {
        __m128i q = _mm_setzero_si128();
        if (p->xo) q = _mm_maskz_loadu_epi8(mask_left(w->n_outlier), w->outlier + (r + i) * w->n_outlier);
        UNROLL for (int t = 0; t < n_tok; ++t) {
            __m512 s = total[i * n_tok + t], value = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q));
            if (p->xo) s = _mm512_fmadd_ps(value, _mm512_loadu_ps(p->xo + 16 * t), s);
            finish(p->y + t * w->n_out + r + i, &s, 1, p->j0 > 0);
        }
    }
}

INLINE void all_rows(const part *p, int V, int n_tok) {
    int64_t r = p->row0, end = p->row0 + p->n_rows;
    for (; r + 2 <= end; r += 2) some_rows(p, r, 2, V, n_tok);
    if (r < end) some_rows(p, r, 1, V, n_tok); /* the same sums in the same order */
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

/* Outlier columns: out of the packed x, and as products with their scales. */
static void take_outliers(part *p, float *xr, float *xo, const float *x, int64_t n_tok) {
    const rq_vq *w = p->w;
    p->xo = p->j0 == 0 && w->n_outlier ? xo : NULL;
    for (int64_t t = 0; t < n_tok; ++t) {
        for (int o = 0; o < 16; ++o) xo[16 * t + o] = 0.0f;
        for (int o = 0; o < w->n_outlier; ++o) {
            int64_t j = w->outlier_col[o] - p->j0;
            xo[16 * t + o] = w->outlier_scale[o] * x[t * w->n_in + w->outlier_col[o]];
            if (j >= 0 && j < p->j1 - p->j0) xr[(j / 16 * n_tok + t) * 16 + j % 16] = 0.0f;
        }
    }
}

static bool fits(const rq_vq *w) {
    return !w->vec_out && (w->vec_len == 4 || w->vec_len == 8) && (w->n_group == 1 || w->group % 16 == 0) &&
           (w->n_book == 1 || w->book_cols % 16 == 0);
}

RQ_OP_gemv(rq_gemv_vq_avx512, rq_vq) {
    float xr[XR_FLOATS] __attribute__((aligned(64))), xo[PASS_TOK * 16];
    const int64_t step = XR_FLOATS / rq_min_i64(n_tok, PASS_TOK) / 64 * 64;
    if (!fits(w)) {
        rq_gemv_vq_c(y, w, x, n_tok, row0, n_rows);
        return;
    }
    for (int64_t b = 0; b < w->n_book; ++b) {
        int64_t begin = b * w->book_cols, end = rq_min_i64(w->n_in, begin + w->book_cols);
        part p = {.w = w, .xr = xr, .row0 = row0, .n_rows = n_rows};
        for (int s = 0; s < w->n_stage; ++s) p.book[s] = w->book[s] + b * w->n_codes[s] * w->vec_len;
        for (p.j0 = begin; p.j0 < end; p.j0 = p.j1) {
            p.j1 = rq_min_i64(end, p.j0 + step);
            for (int64_t t = 0, n; t < n_tok; t += n) {
                n = pass_tokens(n_tok - t);
                pack_x(xr, x + t * w->n_in, w->n_in, n, p.j0, p.j1);
                take_outliers(&p, xr, xo, x + t * w->n_in, n);
                p.y = y + t * w->n_out;
                rows_table[w->vec_len == 8][n](&p);
            }
        }
    }
}
