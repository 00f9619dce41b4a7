/* SPDX-License-Identifier: Apache-2.0 */
/* Leaf header: sign-split vector quantization (docs/formats.md), shared by host and device code.
 *
 *   w[i][j] = outlier_scale[o] * outlier[i][o]                                          j is outlier column o
 *           = scale[i][j / group] * sign(i, j) * book_scale[b] * book[b][code(i, j / V)][j % V]      otherwise
 *
 * V = vec_len consecutive columns share one code: the index of a vector of magnitudes in codebook b = j / book_cols. sign is
 * -1 where the bit of (i, j) is set. Codes of row i are an LSB-first bit stream of code_bits each in little-endian 32-bit words,
 * signs one of one bit each. The last vector may reach past n_in: its codes and signs are there, its magnitudes unused. What
 * code and signs say in an outlier column does not count. Source: SSVQ (signs apart, a codebook of magnitudes). */
#ifndef RQ_FMT_SSVQ_H
#define RQ_FMT_SSVQ_H

#include "rq_base.h"

enum { RQ_SSVQ_MAX_OUTLIERS = 16 };

typedef struct rq_ssvq {
    int64_t n_out, n_in;
    int vec_len;                    /* 4 or 8 */
    int code_bits;                  /* 4 .. 12 */
    int64_t n_codes;                /* 16 .. 2^code_bits */
    int64_t n_book;                 /* codebooks of this matrix, each for book_cols columns: ceil(n_in / book_cols) */
    int64_t book_cols;              /* a multiple of vec_len */
    int64_t group;                  /* columns that share a scale: a multiple of vec_len, or n_in for one scale a row */
    int64_t n_group;                /* ceil(n_in / group) */
    int64_t code_words, sign_words; /* 32-bit words of a row */
    const uint32_t *codes;          /* [n_out][code_words] */
    const uint32_t *signs;          /* [n_out][sign_words] */
    const rq_f16 *book_f16;         /* [n_book][n_codes][vec_len], exactly one of the two is set; not negative */
    const uint8_t *book_u8;
    const float *book_scale;    /* [n_book]; 1 for fp16 books */
    const rq_f16 *scale;        /* [n_out][n_group] */
    int n_outlier;              /* 0 .. RQ_SSVQ_MAX_OUTLIERS */
    const int32_t *outlier_col; /* [n_outlier], ascending */
    const int8_t *outlier;      /* [n_out][n_outlier] */
    const float *outlier_scale; /* [n_outlier] */
} rq_ssvq;

static inline int64_t rq_ssvq_n_vec(int64_t n_in, int vec_len) { return (n_in + vec_len - 1) / vec_len; }
static inline int64_t rq_ssvq_code_words(int64_t n_in, int vec_len, int code_bits) {
    return (rq_ssvq_n_vec(n_in, vec_len) * code_bits + 31) / 32;
}
static inline int64_t rq_ssvq_sign_words(int64_t n_in, int vec_len) {
    return (rq_ssvq_n_vec(n_in, vec_len) * vec_len + 31) / 32;
}

static inline uint32_t rq_ssvq_code(const rq_ssvq *s, int64_t row, int64_t vec) {
    int64_t p = vec * s->code_bits;
    const uint32_t *w = s->codes + row * s->code_words + (p >> 5);
    unsigned o = (unsigned)(p & 31);
    uint64_t two = w[0];
    if (o + (unsigned)s->code_bits > 32) two |= (uint64_t)w[1] << 32;
    return (uint32_t)(two >> o) & ((1u << s->code_bits) - 1u);
}
static inline int rq_ssvq_negative(const rq_ssvq *s, int64_t row, int64_t j) {
    return (int)(s->signs[row * s->sign_words + (j >> 5)] >> (j & 31)) & 1;
}
/* book_scale * magnitude, in one rounding. */
static inline float rq_ssvq_magnitude(const rq_ssvq *s, int64_t book, uint32_t code, int64_t e) {
    int64_t k = (book * s->n_codes + code) * s->vec_len + e;
    return s->book_scale[book] * (s->book_f16 ? rq_f32_of_f16(s->book_f16[k]) : (float)s->book_u8[k]);
}

#endif
