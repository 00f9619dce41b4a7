/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 + FMA + F16C twins for matrices that are not packed (gemv_dense.c is the plain C): 8 weights at a time become fp32,
 * exactly, and meet up to 4 tokens in registers. */
#include "simd_avx2.h"

enum kind { F32, F16, BF16, Q8_0 };

/* Where column j + extra of a row is: its first byte, or the block of Q8_0 that holds it. extra is a constant, and j a
 * multiple of 32 unless extra is small, so that runs within one block share the conversion of its scale. */
INLINE const unsigned char *column(enum kind kind, const unsigned char *row, int64_t j, int extra) {
    if (kind == Q8_0) return row + ((j >> 5) + extra / 32) * (int64_t)sizeof(rq_q8_0);
    return row + (kind == F32 ? 4 : 2) * (j + extra);
}

/* Columns j + extra .. + 7 of a row. */
INLINE __m256 weights(enum kind kind, const unsigned char *row, int64_t j, int extra) {
    const unsigned char *at = column(kind, row, j, extra);
    if (kind == F32) return _mm256_castsi256_ps(_mm256_loadu_si256((const __m256i *)at));
    if (kind == Q8_0) {
        uint16_t d;
        memcpy(&d, at, sizeof d);
        __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(at + 2 + (j & 31) + extra % 32)));
        __m256 scale = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(d)));
        return _mm256_mul_ps(scale, _mm256_cvtepi32_ps(q));
    }
    __m128i h = _mm_loadu_si128((const __m128i *)at);
    if (kind == F16) return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* The same for the last n < 8 columns, through a zeroed copy. Q8_0 has none: its rows are whole blocks. */
INLINE __m256 last_weights(enum kind kind, const unsigned char *row, int64_t j, int64_t n) {
    const size_t size = kind == F32 ? 4 : 2;
    unsigned char tail[32] = {0};
    if (kind == Q8_0) return weights(kind, row, j, 0);
    memcpy(tail, row + (int64_t)size * j, (size_t)n * size);
    return weights(kind, tail, 0, 0);
}

/* n runs of 8 columns from j on, one for each chain; left: columns that exist; xr: their packed x. */
INLINE void step(enum kind kind, __m256 *sum, const rq_dense *w, int64_t r, int n_rows, int n_tok, int n,
                 const float *xr, int64_t j, int64_t left) {
    const unsigned char *row = w->data + r * w->row_bytes;
    const int chains = chains_of(n_tok);
    UNROLL for (int q = 0; q < n; ++q) {
        UNROLL for (int i = 0; i < n_rows; ++i) {
            _mm_prefetch((const char *)column(kind, row + (i + ROWS_AHEAD) * w->row_bytes, j, 8 * q), _MM_HINT_T0);
        }
        __m256 v[2];
        UNROLL for (int i = 0; i < n_rows; ++i) {
            v[i] = left >= 8 ? weights(kind, row + i * w->row_bytes, j, 8 * q)
                             : last_weights(kind, row + i * w->row_bytes, j, left);
        }
        UNROLL for (int t = 0; t < n_tok; ++t) {
            __m256 xt = _mm256_loadu_ps(xr + (q * n_tok + t) * 8);
            UNROLL for (int i = 0; i < n_rows; ++i) {
                __m256 *to = &sum[(i * n_tok + t) * chains + q];
                *to = _mm256_fmadd_ps(v[i], xt, *to);
            }
        }
    }
}

/* n_rows rows from r on over columns [j0, j1) for n_tok tokens; xr is packed from j0 on. */
INLINE void rows(enum kind kind, float *y, const rq_dense *w, const float *xr, int64_t r, int n_rows, int n_tok,
                 int64_t j0, int64_t j1) {
    const int chains = chains_of(n_tok);
    __m256 sum[2 * PASS_TOK * 4];
    int64_t j = j0;
    UNROLL for (int i = 0; i < n_rows * n_tok * chains; ++i) sum[i] = _mm256_setzero_ps();
    for (; j + 8 * chains <= j1; j += 8 * chains) {
        step(kind, sum, w, r, n_rows, n_tok, chains, xr + (j - j0) * n_tok, j, 8);
    }
    for (; j < j1; j += 8) step(kind, sum, w, r, n_rows, n_tok, 1, xr + (j - j0) * n_tok, j, j1 - j);
    UNROLL for (int i = 0; i < n_rows; ++i) {
        UNROLL for (int t = 0; t < n_tok; ++t) {
            finish(y + t * w->n_out + r + i, &sum[(i * n_tok + t) * chains], chains, j0 > 0);
        }
    }
}

INLINE void all_rows(enum kind kind, float *y, const rq_dense *w, const float *xr, int n_tok, int64_t row0,
                     int64_t n_rows, int64_t j0, int64_t j1) {
    int64_t r = row0, end = row0 + n_rows;
    for (; r + 2 <= end; r += 2) rows(kind, y, w, xr, r, 2, n_tok, j0, j1);
    if (r < end) rows(kind, y, w, xr, r, 1, n_tok, j0, j1); /* the same sums in the same order */
}

INLINE void gemv(enum kind kind, float *y, const rq_dense *w, const float *x, int64_t n_tok, int64_t row0,
                 int64_t n_rows) {
    float xr[XR_FLOATS] __attribute__((aligned(64)));
    int64_t step_cols = XR_FLOATS / (n_tok < PASS_TOK ? n_tok : PASS_TOK) / 64 * 64;
    for (int64_t j = 0; j < w->n_in; j += step_cols) {
        int64_t end = w->n_in - j < step_cols ? w->n_in : j + step_cols;
        for (int64_t t = 0, n; t < n_tok; t += n) {
            n = pass_tokens(n_tok - t);
            float *yt = y + t * w->n_out;
            pack_x(xr, x + t * w->n_in, w->n_in, n, j, end);
            if (n == 1)
                all_rows(kind, yt, w, xr, 1, row0, n_rows, j, end);
            else if (n == 2)
                all_rows(kind, yt, w, xr, 2, row0, n_rows, j, end);
            else if (n == 3)
                all_rows(kind, yt, w, xr, 3, row0, n_rows, j, end);
            else
                all_rows(kind, yt, w, xr, 4, row0, n_rows, j, end);
        }
    }
}

RQ_OP_gemv(rq_gemv_f32_rows_avx2, rq_f32_rows) { gemv(F32, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_f16_rows_avx2, rq_f16_rows) { gemv(F16, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_bf16_rows_avx2, rq_bf16_rows) { gemv(BF16, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_q8_0_rows_avx2, rq_q8_0_rows) { gemv(Q8_0, y, w, x, n_tok, row0, n_rows); }
