/* SPDX-License-Identifier: Apache-2.0 */
/* What the AVX2 gemv twins share. Included by *_avx2.c only, which are compiled for AVX2, FMA and F16C. */
#ifndef RQ_SIMD_AVX2_H
#define RQ_SIMD_AVX2_H

#include <immintrin.h>

#include "kernels.h"

/* Loops over rows, tokens and chains have constant bounds where the functions are inlined, and must be unrolled for their
 * sums to live in registers. Not in instrumented builds: speed is of no interest there, and compiling would take minutes. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define INLINE static inline
#define UNROLL
#elif defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("unroll")
#else
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#endif

enum {
    ROWS_AHEAD =
        4, /* rows to prefetch ahead: two rows at once are two streams, which the hardware's prefetcher follows badly */
    XR_FLOATS = 6144, /* of x at a time: 24 KiB of a 32 KiB L1 */
    PASS_TOK = 4      /* tokens that meet a weight while it is in a register */
};

INLINE int64_t pass_tokens(int64_t left) { return left >= 4 ? 4 : left; }

/* Independent sums per row and token; two rows run together, so at least 6 are in flight and 16 registers do. */
INLINE int chains_of(int n_tok) { return n_tok == 1 ? 4 : n_tok == 2 ? 2 : 1; }

/* y = or += the sum over the chains of a row and token, in a fixed tree. */
INLINE void finish(float *y, const __m256 *sum, int chains, bool add) {
    __m256 total = sum[0];
    if (chains >= 2) total = _mm256_add_ps(total, sum[1]);
    if (chains == 4) total = _mm256_add_ps(total, _mm256_add_ps(sum[2], sum[3]));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps(total, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    float value = _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
    *y = add ? *y + value : value; // cppcheck-suppress uninitvar ; read only when it was written before
}

/* Columns [j0, j1) of n_tok tokens as xr[j / 8][token][8], zeros past j1: a pass reads one stream. */
INLINE void pack_x(float *xr, const float *x, int64_t n_in, int64_t n_tok, int64_t j0, int64_t j1) {
    for (int64_t j = j0; j < j1; j += 8) {
        for (int64_t t = 0; t < n_tok; ++t, xr += 8) {
            float tail[8] = {0};
            const float *from = x + t * n_in + j;
            if (j1 - j < 8) from = memcpy(tail, from, (size_t)(j1 - j) * sizeof *from);
            _mm256_storeu_ps(xr, _mm256_loadu_ps(from));
        }
    }
}

#endif
