/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 + FMA + F16C twins for matrices that are not packed (gemv_dense.c is the plain C): 8 weights at a time become fp32,
 * exactly, and meet up to 4 tokens in registers. */
#include <immintrin.h>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

enum kind { F32, F16, BF16, Q8_0 };

/* Columns j .. j + 7 of a row; a run of 8 lies within one block of Q8_0. */
INLINE __m256 weights(enum kind kind, const unsigned char *row, int64_t j) {
    if (kind == F32) {
        __m256i bits = _mm256_loadu_si256((const __m256i *)(row + 4 * j));
        return _mm256_castsi256_ps(bits);
    }
    if (kind == Q8_0) {
        const unsigned char *block = row + j / 32 * (int64_t)sizeof(rq_q8_0);
        uint16_t d;
        memcpy(&d, block, sizeof d);
        __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(block + 2 + j % 32)));
        __m256 scale = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(d)));
        return _mm256_mul_ps(scale, _mm256_cvtepi32_ps(q));
    }
    __m128i h = _mm_loadu_si128((const __m128i *)(row + 2 * j));
    if (kind == F16) return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

INLINE float sum_lanes(__m256 v) {
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

INLINE void rows(enum kind kind, float *y, const rq_dense *w, const float *x, int n_tok, int64_t row0, int64_t n_rows) {
    const int chains = n_tok == 1 ? 4 : n_tok <= 3 ? 2 : 1;
    const int64_t n_in = w->n_in, full = n_in / 8 * 8;
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        const unsigned char *row = w->data + r * w->row_bytes;
        __m256 sum[8];
        int64_t j = 0;
        UNROLL for (int i = 0; i < n_tok * chains; ++i) sum[i] = _mm256_setzero_ps();
        for (; j + 8 * chains <= n_in; j += 8 * chains) {
            UNROLL for (int i = 0; i < chains; ++i) {
                __m256 v = weights(kind, row, j + 8 * i);
                UNROLL for (int t = 0; t < n_tok; ++t) {
                    __m256 xt = _mm256_loadu_ps(x + t * n_in + j + 8 * i);
                    sum[t * chains + i] = _mm256_fmadd_ps(v, xt, sum[t * chains + i]);
                }
            }
        }
        for (; j < full; j += 8) {
            __m256 v = weights(kind, row, j);
            UNROLL for (int t = 0; t < n_tok; ++t) {
                sum[t * chains] = _mm256_fmadd_ps(v, _mm256_loadu_ps(x + t * n_in + j), sum[t * chains]);
            }
        }
        if (j < n_in) { /* the last columns from a zeroed copy; Q8_0 has none */
            unsigned char tail[32] = {0};
            size_t rest = (size_t)(n_in - j);
            memcpy(tail, row + (kind == F32 ? 4 : 2) * j, rest * (kind == F32 ? 4 : 2));
            __m256 v = weights(kind == Q8_0 ? F32 : kind, tail, 0);
            UNROLL for (int t = 0; t < n_tok; ++t) {
                float xt[8] = {0};
                memcpy(xt, x + t * n_in + j, rest * sizeof *xt);
                sum[t * chains] = _mm256_fmadd_ps(v, _mm256_loadu_ps(xt), sum[t * chains]);
            }
        }
        UNROLL for (int t = 0; t < n_tok; ++t) {
            __m256 total = sum[t * chains];
            if (chains >= 2) total = _mm256_add_ps(total, sum[t * chains + 1]);
            if (chains == 4) {
                total = _mm256_add_ps(total, _mm256_add_ps(sum[t * chains + 2], sum[t * chains + 3]));
            }
            y[t * w->n_out + r] = sum_lanes(total);
        }
    }
}

INLINE void gemv(enum kind kind, float *y, const rq_dense *w, const float *x, int64_t n_tok, int64_t row0,
                 int64_t n_rows) {
    for (int64_t t = 0, n; t < n_tok; t += n) {
        int64_t left = n_tok - t;
        n = left >= 4 ? 4 : left;
        float *yt = y + t * w->n_out;
        const float *xt = x + t * w->n_in;
        if (n == 1)
            rows(kind, yt, w, xt, 1, row0, n_rows);
        else if (n == 2)
            rows(kind, yt, w, xt, 2, row0, n_rows);
        else if (n == 3)
            rows(kind, yt, w, xt, 3, row0, n_rows);
        else
            rows(kind, yt, w, xt, 4, row0, n_rows);
    }
}

RQ_OP_gemv(rq_gemv_f32_rows_avx2, rq_f32_rows) { gemv(F32, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_f16_rows_avx2, rq_f16_rows) { gemv(F16, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_bf16_rows_avx2, rq_bf16_rows) { gemv(BF16, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_q8_0_rows_avx2, rq_q8_0_rows) { gemv(Q8_0, y, w, x, n_tok, row0, n_rows); }
