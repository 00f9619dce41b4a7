/* SPDX-License-Identifier: Apache-2.0 */
/* Leaf header: vector quantization (docs/formats.md), shared by host and device code.
 *
 *   w[i][j] = outlier_scale[o] * outlier[i][o]                                 j is outlier column o
 *           = scale[i][j / group] * v(i, j) * col_scale[j] + col_bias[j]       otherwise; factors that are absent are left out
 *   v(i, j) = book[0][b][code_0][e] (+ book[1][b][code_1][e] with two stages)  b = j / book_cols, or book_of[j]
 *
 * Vectors of V = vec_len weights run along a row, code(i, j / V) and e = j % V, or with vec_out down a column, code(i / V, j) and
 * e = i % V. Codes lie in lines: one of ceil(n_in / V) codes for each row, or one of n_in codes for each V rows. A line of a stage
 * is an LSB-first bit stream of code_bits each in little-endian 32-bit words. What the last vector has beyond the matrix does
 * not count, nor do codes of outlier columns. Every operation above rounds once to fp32, in the order written.
 * Sources: AQLM (vectors along inputs, several stages), VPTQ (vectors along outputs, a scale and a bias for each column). */
#ifndef RQ_FMT_VQ_H
#define RQ_FMT_VQ_H

#include "rq_base.h"

enum { RQ_VQ_MAX_OUTLIERS = 16, RQ_VQ_MAX_VEC = 16, RQ_VQ_MAX_BOOKS = 256 /* to pick from by column */ };

typedef struct rq_vq {
    int64_t n_out, n_in;
    int vec_len;               /* 2 .. RQ_VQ_MAX_VEC */
    int vec_out;               /* vectors run down the outputs */
    int n_stage;               /* 1 or 2 */
    int code_bits[2];          /* 4 .. 16 */
    int64_t n_codes[2];        /* 16 .. 2^code_bits */
    int64_t n_line, n_code;    /* lines, codes of a line */
    int64_t n_book, book_cols; /* codebooks, each for book_cols columns; without vec_out a multiple of vec_len */
    int64_t group, n_group;    /* columns that share a scale; without vec_out a multiple of vec_len, or n_in */
    int64_t code_words[2];     /* 32-bit words of a line */
    const uint32_t *codes[2];  /* [n_line][code_words] */
    const rq_f16 *book[2];     /* [n_book][n_codes][vec_len] */
    const uint8_t *book_of;    /* [n_in], with vec_out: the codebook of each column; NULL: j / book_cols */
    const rq_f16 *scale;       /* [n_out][n_group] or NULL */
    const rq_f16 *col_scale;   /* [n_in], both or neither */
    const rq_f16 *col_bias;
    int n_outlier;              /* 0 .. RQ_VQ_MAX_OUTLIERS */
    const int32_t *outlier_col; /* [n_outlier], ascending */
    const int8_t *outlier;      /* [n_out][n_outlier] */
    const float *outlier_scale; /* [n_outlier] */
} rq_vq;

static inline uint32_t rq_vq_code(const rq_vq *q, int stage, int64_t line, int64_t i) {
    int64_t p = i * q->code_bits[stage];
    const uint32_t *w = q->codes[stage] + line * q->code_words[stage] + (p >> 5);
    unsigned o = (unsigned)(p & 31);
    uint64_t two = w[0];
    if (o + (unsigned)q->code_bits[stage] > 32) two |= (uint64_t)w[1] << 32;
    return (uint32_t)(two >> o) & ((1u << q->code_bits[stage]) - 1u);
}
/* v(row, j) */
static inline float rq_vq_value(const rq_vq *q, int64_t row, int64_t j) {
    int64_t line = q->vec_out ? row / q->vec_len : row, i = q->vec_out ? j : j / q->vec_len;
    int64_t e = (q->vec_out ? row : j) % q->vec_len, b = q->book_of ? q->book_of[j] : j / q->book_cols;
    float v = 0;
    for (int s = 0; s < q->n_stage; ++s) {
        float part = rq_f32_of_f16(q->book[s][(b * q->n_codes[s] + rq_vq_code(q, s, line, i)) * q->vec_len + e]);
        v = s ? v + part : part;
    }
    return v;
}
/* The weight of (row, j), which is in no outlier column. */
static inline float rq_vq_weight(const rq_vq *q, int64_t row, int64_t j) {
    float w = rq_vq_value(q, row, j);
    if (q->scale) w = rq_f32_of_f16(q->scale[row * q->n_group + j / q->group]) * w;
    if (q->col_scale) {
        w = w * rq_f32_of_f16(q->col_scale[j]);
        w = w + rq_f32_of_f16(q->col_bias[j]);
    }
    return w;
}

#endif
