/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 twins for matrices that are not packed (gemv_dense.c is the plain C): 16 weights at a time become fp32, exactly,
 * and meet up to 8 tokens in registers; bytes of a weight are read from memory once. Few tokens keep several independent
 * sums going, so that the multiply latency is filled. */
#include "simd_avx512.h"

enum kind { F32, F16, BF16, Q8_0 };

/* Where column j + extra of a row is: its first byte, or the block of Q8_0 that holds it. extra is a constant, and j a
 * multiple of 32 unless extra is small, so that runs within one block share the conversion of its scale. */
INLINE const unsigned char *column(enum kind kind, const unsigned char *row, int64_t j, int extra) {
    if (kind == Q8_0) return row + ((j >> 5) + extra / 32) * (int64_t)sizeof(rq_q8_0);
    return row + (kind == F32 ? 4 : 2) * (j + extra);
}

/* Columns j + extra .. + 15 of a row; mask: those that exist. */
INLINE __m512 weights(enum kind kind, const unsigned char *row, int64_t j, int extra, __mmask16 mask) {
    const unsigned char *at = column(kind, row, j, extra);
    if (kind == F32) return _mm512_maskz_loadu_ps(mask, at);
    if (kind == Q8_0) {
        uint16_t d;
        memcpy(&d, at, sizeof d);
        __m512i q = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(at + 2 + (j & 31) + extra % 32)));
        __m512 scale = _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(d)));
        return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(q));
    }
    __m256i h = _mm256_maskz_loadu_epi16(mask, at);
    if (kind == F16) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* n runs of 16 columns from j on, one for each chain; xr: their packed x; mask: columns that exist. */
INLINE void step(enum kind kind, __m512 *sum, const rq_dense *w, int64_t r, int n_rows, int n_tok, int n,
                 const float *xr, int64_t j, __mmask16 mask) {
    const unsigned char *row = w->data + r * w->row_bytes;
    const int chains = chains_of(n_tok);
    UNROLL for (int q = 0; q < n; ++q) {
        UNROLL for (int i = 0; i < n_rows; ++i) {
            _mm_prefetch((const char *)column(kind, row + (i + ROWS_AHEAD) * w->row_bytes, j, 16 * q), _MM_HINT_T0);
        }
        __m512 v[2];
        UNROLL for (int i = 0; i < n_rows; ++i) v[i] = weights(kind, row + i * w->row_bytes, j, 16 * q, mask);
        UNROLL for (int t = 0; t < n_tok; ++t) {
            __m512 xt = _mm512_loadu_ps(xr + (q * n_tok + t) * 16);
            UNROLL for (int i = 0; i < n_rows; ++i) {
                __m512 *to = &sum[(i * n_tok + t) * chains + q];
                *to = _mm512_fmadd_ps(v[i], xt, *to);
            }
        }
    }
}

/* n_rows rows from r on over columns [j0, j1) for n_tok tokens; xr is packed from j0 on. */
INLINE void rows(enum kind kind, float *y, const rq_dense *w, const float *xr, int64_t r, int n_rows, int n_tok,
                 int64_t j0, int64_t j1) {
    const int chains = chains_of(n_tok);
    __m512 sum[2 * PASS_TOK * 4];
    int64_t j = j0;
    UNROLL for (int i = 0; i < n_rows * n_tok * chains; ++i) sum[i] = _mm512_setzero_ps();
    for (; j + 16 * chains <= j1; j += 16 * chains) {
        step(kind, sum, w, r, n_rows, n_tok, chains, xr + (j - j0) * n_tok, j, 0xffff);
    }
    for (; j < j1; j += 16) step(kind, sum, w, r, n_rows, n_tok, 1, xr + (j - j0) * n_tok, j, mask_left(j1 - j));
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
            else if (n == 4)
                all_rows(kind, yt, w, xr, 4, row0, n_rows, j, end);
            else
                all_rows(kind, yt, w, xr, 8, row0, n_rows, j, end);
        }
    }
}

RQ_OP_gemv(rq_gemv_f32_rows_avx512, rq_f32_rows) { gemv(F32, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_f16_rows_avx512, rq_f16_rows) { gemv(F16, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_bf16_rows_avx512, rq_bf16_rows) { gemv(BF16, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_q8_0_rows_avx512, rq_q8_0_rows) { gemv(Q8_0, y, w, x, n_tok, row0, n_rows); }
