/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 twins for sign-split vector codes (fmt_ssvq.h): gemv for 1 to 16 tokens, and unpacking to fp32.
 *
 * A codebook becomes a table of floats on the stack once per call, book_scale * magnitude in the one rounding of the definition. 8
 * columns are one vector of 8 (or two of 4) from it; their sign byte is spread over the lanes, each bit shifted to the top of its own, and
 * flips the sign there. Codes of a row are unpacked to 16-bit offsets first, whatever their width. Rows run in pairs, which
 * share what is loaded of x. Groups and codebooks must be cut at multiples of 8 columns; others go to the C twin. Outlier
 * columns of x are zeros in the copy that is multiplied, and their products are added at the end. A row's sum is 8 lanes (times
 * up to 4 chains for few tokens) and one tree per group of a cut. */
#include "simd_avx2.h"

enum { ROWS = 2, MAX_VEC = XR_FLOATS / 4, UNIT = 2 /* floats that an offset counts */ };

typedef struct part { /* columns [j0, j1) of one codebook */
    float *y;         /* of the first token of this pass, row 0 */
    const rq_ssvq *w;
    const float *table; /* [n_codes][vec_len] */
    const float *xr;
    const float *x; /* of the first token of this pass, for outliers; NULL but for the first cut */
    int64_t j0, j1, row0, n_rows;
} part;

static void make_table(float *table, const rq_ssvq *w, int64_t book) {
    const int64_t n = w->n_codes * w->vec_len, at = book * n;
    const __m256 scale = _mm256_set1_ps(w->book_scale[book]);
    for (int64_t i = 0; i + 8 <= n; i += 8) {
        __m256 v;
        if (w->book_f16)
            v = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(w->book_f16 + at + i)));
        else
            v = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(w->book_u8 + at + i))));
        _mm256_storeu_ps(table + i, _mm256_mul_ps(scale, v));
    }
    for (int64_t i = n / 8 * 8; i < n; ++i) table[i] = rq_ssvq_magnitude(w, book, 0, i); /* i: 17 codes of 4, say */
}

/* Where the vectors of columns [j0, j1) of a row are in the table, in units; one more is written. */
static void offsets(uint16_t *to, const rq_ssvq *w, int64_t row, int64_t j0, int64_t j1) {
    const int64_t first = j0 / w->vec_len, end = first + (j1 - j0 + w->vec_len - 1) / w->vec_len;
    const int shift = w->vec_len == 8 ? 2 : 1; /* of 4 * vec_len bytes */
    int64_t v = first;
    if (w->code_bits == 8) {
        const uint8_t *bytes = (const uint8_t *)(w->codes + row * w->code_words);
        for (; v + 16 <= end; v += 16) {
            __m256i codes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(bytes + v)));
            _mm256_storeu_si256((__m256i *)(to + v - first), _mm256_slli_epi16(codes, shift));
        }
    }
    for (; v < end; ++v) to[v - first] = (uint16_t)(rq_ssvq_code(w, row, v) << shift);
    to[end - first] = 0;
}

/* The weights of 8 columns, without their scale. */
INLINE __m256 look_up(const float *table, const uint16_t *at, uint8_t negative, int V) {
    const __m256i to_top = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    __m256 v;
    if (V == 8) {
        v = _mm256_loadu_ps(table + (int64_t)at[0] * UNIT);
    } else {
        __m128 a = _mm_loadu_ps(table + (int64_t)at[0] * UNIT);
        v = _mm256_insertf128_ps(_mm256_castps128_ps256(a), _mm_loadu_ps(table + (int64_t)at[1] * UNIT), 1);
    }
    __m256i sign = _mm256_sllv_epi32(_mm256_set1_epi32(negative), to_top);
    return _mm256_xor_ps(v, _mm256_and_ps(_mm256_castsi256_ps(sign), _mm256_set1_ps(-0.0f)));
}

/* n runs of 8 columns from j on, all in one group. */
INLINE void step(__m256 *sum, const part *p, uint16_t (*at)[MAX_VEC + 1], const uint8_t *const *signs, int n_rows,
                 int V, int n_tok, int n, int64_t j) {
    const int chains = chains_of(n_tok);
    UNROLL for (int q = 0; q < n; ++q) {
        UNROLL for (int i = 0; i < n_rows; ++i) {
            __m256 v = look_up(p->table, at[i] + (j - p->j0) / V + 8 / V * q, signs[i][j / 8 + q], V);
            UNROLL for (int t = 0; t < n_tok; ++t) {
                __m256 *to = &sum[(i * n_tok + t) * chains + q % chains];
                *to = _mm256_fmadd_ps(v, _mm256_loadu_ps(p->xr + (j - p->j0 + 8 * q) * n_tok + 8 * t), *to);
            }
        }
    }
}

static float outliers_of(const part *p, int64_t r, int64_t t) {
    const rq_ssvq *w = p->w;
    float sum = 0.0f;
    for (int o = 0; o < w->n_outlier; ++o) {
        float weight = w->outlier_scale[o] * (float)w->outlier[r * w->n_outlier + o];
        sum += weight * p->x[t * w->n_in + w->outlier_col[o]];
    }
    return sum;
}

/* n_rows rows from r on. Everything but p and r is a constant where this is inlined. */
INLINE void some_rows(const part *p, int64_t r, int n_rows, int V, int n_tok) {
    const rq_ssvq *w = p->w;
    const int chains = chains_of(n_tok);
    uint16_t at[ROWS][MAX_VEC + 1];
    const uint8_t *signs[ROWS];
    float total[ROWS * PASS_TOK] = {0};
    UNROLL for (int i = 0; i < n_rows; ++i) {
        offsets(at[i], w, r + i, p->j0, p->j1);
        signs[i] = (const uint8_t *)(w->signs + (r + i) * w->sign_words);
    }
    for (int64_t j = p->j0; j < p->j1;) {
        const int64_t k = j / w->group, end = rq_min_i64(p->j1, (k + 1) * w->group);
        __m256 sum[ROWS * PASS_TOK * 4];
        UNROLL for (int i = 0; i < n_rows * n_tok * chains; ++i) sum[i] = _mm256_setzero_ps();
        for (; j + 32 <= end; j += 32) step(sum, p, at, signs, n_rows, V, n_tok, 4, j);
        for (; j < end; j += 8) step(sum, p, at, signs, n_rows, V, n_tok, 1, j);
        UNROLL for (int i = 0; i < n_rows; ++i) {
            const float scale = rq_f32_of_f16(w->scale[(r + i) * w->n_group + k]);
            UNROLL for (int t = 0; t < n_tok; ++t) {
                float value;
                finish(&value, &sum[(i * n_tok + t) * chains], chains, false);
                total[i * n_tok + t] += scale * value;
            }
        }
    }
    UNROLL for (int i = 0; i < n_rows; ++i) {
        UNROLL for (int t = 0; t < n_tok; ++t) {
            float *y = p->y + t * w->n_out + r + i;
            *y =
                p->x ? total[i * n_tok + t] + outliers_of(p, r + i, t) : (p->j0 > 0 ? *y : 0.0f) + total[i * n_tok + t];
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
#define ROWS_ALL(V) ROWS_OF(V, 1) ROWS_OF(V, 2) ROWS_OF(V, 3) ROWS_OF(V, 4)
ROWS_ALL(4)
ROWS_ALL(8)
static const rows_fn rows_table[2][PASS_TOK + 1] = {{NULL, rows_4_1, rows_4_2, rows_4_3, rows_4_4},
                                                    {NULL, rows_8_1, rows_8_2, rows_8_3, rows_8_4}};

static void clear_outliers(float *xr, const rq_ssvq *w, int64_t n_tok, int64_t j0, int64_t j1) {
    for (int o = 0; o < w->n_outlier; ++o) {
        int64_t j = w->outlier_col[o] - j0;
        if (j < 0 || j >= j1 - j0) continue;
        for (int64_t t = 0; t < n_tok; ++t) xr[(j / 8 * n_tok + t) * 8 + j % 8] = 0.0f;
    }
}

/* Whether groups and codebooks are cut where this file can cut, and a table serves more vectors than it has. */
static bool fits(const rq_ssvq *w) {
    return (w->n_group == 1 || w->group % 8 == 0) &&
           (w->n_book == 1 || (w->book_cols % 8 == 0 && w->book_cols >= w->n_codes / 8));
}

RQ_OP_gemv(rq_gemv_ssvq_avx2, rq_ssvq) {
    float table[(1 << 12) * 8] __attribute__((aligned(32))), xr[XR_FLOATS] __attribute__((aligned(32)));
    const int64_t step = XR_FLOATS / rq_min_i64(n_tok, PASS_TOK) / 32 * 32;
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
                pack_x(xr, x + t * w->n_in, w->n_in, n, p.j0, p.j1);
                clear_outliers(xr, w, n, p.j0, p.j1);
                p.x = p.j0 == 0 ? x + t * w->n_in : NULL;
                p.y = y + t * w->n_out;
                rows_table[w->vec_len == 8][n](&p);
            }
        }
    }
}

/* ---- unpack ----------------------------------------------------------------------------------------------------------- */

/* Columns [j0, j1), all of one codebook. */
INLINE void unpack_part(float *dst, const rq_ssvq *w, const float *table, int64_t row, int64_t j0, int64_t j1, int V) {
    uint16_t at[MAX_VEC + 1];
    const uint8_t *signs = (const uint8_t *)(w->signs + row * w->sign_words);
    offsets(at, w, row, j0, j1);
    for (int64_t j = j0; j < j1;) {
        const int64_t k = j / w->group, end = rq_min_i64(j1, (k + 1) * w->group);
        const __m256 scale = _mm256_set1_ps(rq_f32_of_f16(w->scale[row * w->n_group + k]));
        for (; j < end; j += 8) {
            float some[8];
            _mm256_storeu_ps(some, _mm256_mul_ps(scale, look_up(table, at + (j - j0) / V, signs[j / 8], V)));
            memcpy(dst + j, some, (size_t)rq_min_i64(8, end - j) * sizeof *dst);
        }
    }
}

#include "gemv_ssvq_unpack.h"

RQ_OP_unpack(rq_unpack_ssvq_avx2, rq_ssvq) { unpack_any(dst, w, row0, n_rows); }
