/* SPDX-License-Identifier: Apache-2.0 */
/* What the AVX-512 gemv twins share. Included by *_avx512.c only, which are compiled for that instruction set. */
#ifndef RQ_SIMD_AVX512_H
#define RQ_SIMD_AVX512_H

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
    XR_FLOATS = 8192, /* of x at a time: 32 KiB, so that it stays in L1 while rows pass over it */
    PASS_TOK = 8      /* tokens that meet a weight while it is in a register */
};

/* How many of the tokens left one pass takes: 8, 4, 3, 2 or 1. */
INLINE int64_t pass_tokens(int64_t left) { return left >= 8 ? 8 : left >= 4 ? 4 : left; }

/* Independent sums per row and token. Two rows run together, so 8 sums are in flight at least: latency 4, two a cycle. */
INLINE int chains_of(int n_tok) { return n_tok == 1 ? 4 : n_tok == 2 ? 2 : 1; }

INLINE __mmask16 mask_left(int64_t n) { /* the first n of 16 lanes */
    return (__mmask16)(n >= 16 ? 0xffffu : n <= 0 ? 0u : 0xffffu >> (16 - n));
}

/* y = or += the sum over the chains of a row and token, in a fixed tree. */
INLINE void finish(float *y, const __m512 *sum, int chains, bool add) {
    __m512 total = sum[0];
    if (chains >= 2) total = _mm512_add_ps(total, sum[1]);
    if (chains == 4) total = _mm512_add_ps(total, _mm512_add_ps(sum[2], sum[3]));
    float value = _mm512_reduce_add_ps(total);
    *y = add ? *y + value : value;
}

/* Columns [j0, j1) of n_tok tokens as xr[j / 16][token][16], zeros past j1: all tokens of a column are side by side, so a
 * pass reads one stream (token rows a power of two apart would fall on the same lines of the cache). */
INLINE void pack_x(float *xr, const float *x, int64_t n_in, int64_t n_tok, int64_t j0, int64_t j1) {
    for (int64_t j = j0; j < j1; j += 16) {
        for (int64_t t = 0; t < n_tok; ++t, xr += 16) {
            _mm512_storeu_ps(xr, _mm512_maskz_loadu_ps(mask_left(j1 - j), x + t * n_in + j));
        }
    }
}

/* out[8][16] = in[16][8] transposed: three rounds of even and odd elements. */
INLINE void reorder_block(float *out, __m512 v[8]) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    __m512 a[8], b[8];
    UNROLL for (int i = 0; i < 4; ++i) { /* a[0..3]: s even, a[4..7]: s odd */
        a[i] = _mm512_permutex2var_ps(v[2 * i], even, v[2 * i + 1]);
        a[4 + i] = _mm512_permutex2var_ps(v[2 * i], odd, v[2 * i + 1]);
    }
    UNROLL for (int h = 0; h < 2; ++h) { /* b[4h ..]: s = h + 0, h + 0, h + 2, h + 2 (mod 4) */
        UNROLL for (int i = 0; i < 2; ++i) {
            b[4 * h + i] = _mm512_permutex2var_ps(a[4 * h + 2 * i], even, a[4 * h + 2 * i + 1]);
            b[4 * h + 2 + i] = _mm512_permutex2var_ps(a[4 * h + 2 * i], odd, a[4 * h + 2 * i + 1]);
        }
    }
    UNROLL for (int h = 0; h < 2; ++h) {
        UNROLL for (int q = 0; q < 2; ++q) {
            int s = h + 2 * q;
            _mm512_storeu_ps(out + 16 * s, _mm512_permutex2var_ps(b[4 * h + 2 * q], even, b[4 * h + 2 * q + 1]));
            _mm512_storeu_ps(out + 16 * (s + 4), _mm512_permutex2var_ps(b[4 * h + 2 * q], odd, b[4 * h + 2 * q + 1]));
        }
    }
}

/* out[4][16] = in[16][4] transposed: two rounds. */
INLINE void reorder_quads(float *out, __m512 v[4]) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    UNROLL for (int h = 0; h < 2; ++h) {
        const __m512i pick = h ? odd : even;
        __m512 a = _mm512_permutex2var_ps(v[0], pick, v[1]), b = _mm512_permutex2var_ps(v[2], pick, v[3]);
        _mm512_storeu_ps(out + 16 * h, _mm512_permutex2var_ps(a, even, b));
        _mm512_storeu_ps(out + 16 * (h + 2), _mm512_permutex2var_ps(a, odd, b));
    }
}

#endif
