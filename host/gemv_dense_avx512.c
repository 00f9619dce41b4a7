/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 twins for matrices that are not packed (gemv_dense.c is the plain C): 16 weights at a time become fp32, exactly,
 * and meet up to 8 tokens in registers; bytes of a weight are read from memory once. Few tokens keep several independent
 * sums going, so that the multiply latency is filled. */
#include <immintrin.h>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

enum kind { F32, F16, BF16, Q8_0 };

/* Columns j .. j + 15 of a row; mask: those that exist. A run of 16 lies within one block of Q8_0. */
INLINE __m512 weights(enum kind kind, const unsigned char *row, int64_t j, __mmask16 mask) {
    if (kind == F32) return _mm512_maskz_loadu_ps(mask, row + 4 * j);
    if (kind == Q8_0) {
        const unsigned char *block = row + j / 32 * (int64_t)sizeof(rq_q8_0);
        uint16_t d;
        memcpy(&d, block, sizeof d);
        __m512i q = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(block + 2 + j % 32)));
        __m512 scale = _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(d)));
        return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(q));
    }
    __m256i h = _mm256_maskz_loadu_epi16(mask, row + 2 * j);
    if (kind == F16) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

INLINE void rows(enum kind kind, float *y, const rq_dense *w, const float *x, int n_tok, int64_t row0, int64_t n_rows) {
    const int chains = n_tok == 1 ? 4 : n_tok <= 3 ? 2 : 1;
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        const unsigned char *row = w->data + r * w->row_bytes;
        __m512 sum[8];
        int64_t j = 0;
        UNROLL for (int i = 0; i < n_tok * chains; ++i) sum[i] = _mm512_setzero_ps();
        for (; j + 16 * chains <= w->n_in; j += 16 * chains) {
            UNROLL for (int i = 0; i < chains; ++i) {
                __m512 v = weights(kind, row, j + 16 * i, 0xffff);
                UNROLL for (int t = 0; t < n_tok; ++t) {
                    __m512 xt = _mm512_loadu_ps(x + t * w->n_in + j + 16 * i);
                    sum[t * chains + i] = _mm512_fmadd_ps(v, xt, sum[t * chains + i]);
                }
            }
        }
        for (; j < w->n_in; j += 16) {
            __mmask16 mask = (__mmask16)(w->n_in - j >= 16 ? 0xffffu : 0xffffu >> (16 - (w->n_in - j)));
            __m512 v = weights(kind, row, j, mask);
            UNROLL for (int t = 0; t < n_tok; ++t) {
                __m512 xt = _mm512_maskz_loadu_ps(mask, x + t * w->n_in + j);
                sum[t * chains] = _mm512_fmadd_ps(v, xt, sum[t * chains]);
            }
        }
        UNROLL for (int t = 0; t < n_tok; ++t) {
            __m512 total = sum[t * chains];
            if (chains >= 2) total = _mm512_add_ps(total, sum[t * chains + 1]);
            if (chains == 4) {
                total = _mm512_add_ps(total, _mm512_add_ps(sum[t * chains + 2], sum[t * chains + 3]));
            }
            y[t * w->n_out + r] = _mm512_reduce_add_ps(total);
        }
    }
}

INLINE void gemv(enum kind kind, float *y, const rq_dense *w, const float *x, int64_t n_tok, int64_t row0,
                 int64_t n_rows) {
    for (int64_t t = 0, n; t < n_tok; t += n) {
        int64_t left = n_tok - t;
        n = left >= 8 ? 8 : left >= 4 ? 4 : left;
        float *yt = y + t * w->n_out;
        const float *xt = x + t * w->n_in;
        if (n == 1)
            rows(kind, yt, w, xt, 1, row0, n_rows);
        else if (n == 2)
            rows(kind, yt, w, xt, 2, row0, n_rows);
        else if (n == 3)
            rows(kind, yt, w, xt, 3, row0, n_rows);
        else if (n == 4)
            rows(kind, yt, w, xt, 4, row0, n_rows);
        else
            rows(kind, yt, w, xt, 8, row0, n_rows);
    }
}

RQ_OP_gemv(rq_gemv_f32_rows_avx512, rq_f32_rows) { gemv(F32, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_f16_rows_avx512, rq_f16_rows) { gemv(F16, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_bf16_rows_avx512, rq_bf16_rows) { gemv(BF16, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_q8_0_rows_avx512, rq_q8_0_rows) { gemv(Q8_0, y, w, x, n_tok, row0, n_rows); }
