/* SPDX-License-Identifier: Apache-2.0 */
/* Leaf header: the packed layout of grid codes (the table in docs/formats.md), shared by host and device code.
 *
 *   w[i][j] = scale[i][j / group] * (code(i, j) - zero[i][j / group])        code in 0 .. 2^bits - 1
 *
 * Codes of row i are an LSB-first bit stream cut into little-endian 32-bit words: element j occupies bits
 * [j * bits, (j + 1) * bits) of words[i * row_words ...], row_words = ceil(n_in * bits / 32). Symmetric matrices have no
 * zero array: zero = 2^(bits - 1). The last group may be short. On disk this is compressed-tensors' `pack-quantized`. */
#ifndef RQ_FMT_GRID_H
#define RQ_FMT_GRID_H

#include "rq_base.h"

typedef struct rq_grid {
    int64_t n_out, n_in;
    int bits;        /* 2, 3, 4 or 8 */
    int64_t group;   /* columns that share a scale, in stored order; 1 .. n_in */
    int64_t n_group; /* ceil(n_in / group) */
    int64_t row_words;
    const uint32_t *words;   /* [n_out][row_words]; readable for 4 bytes past the end */
    const rq_f16 *scale_f16; /* [n_out][n_group], exactly one of the two is set */
    const float *scale_f32;
    const uint8_t *zero; /* [n_out][n_group], NULL when symmetric */
    const int32_t *perm; /* NULL, or [n_in]: stored column j multiplies input feature perm[j] (dynamic act-order) */
} rq_grid;

static inline int64_t rq_grid_row_words(int64_t n_in, int bits) { return (n_in * bits + 31) / 32; }

static inline float rq_grid_scale(const rq_grid *g, int64_t row, int64_t group) {
    int64_t k = row * g->n_group + group;
    return g->scale_f16 ? rq_f32_of_f16(g->scale_f16[k]) : g->scale_f32[k];
}

static inline int rq_grid_zero(const rq_grid *g, int64_t row, int64_t group) {
    return g->zero ? g->zero[row * g->n_group + group] : 1 << (g->bits - 1);
}

static inline uint32_t rq_grid_code(const rq_grid *g, int64_t row, int64_t j) {
    int64_t p = j * g->bits;
    const uint32_t *w = g->words + row * g->row_words + (p >> 5);
    unsigned o = (unsigned)(p & 31);
    uint64_t two = w[0];
    if (o + (unsigned)g->bits > 32) two |= (uint64_t)w[1] << 32;
    return (uint32_t)(two >> o) & ((1u << g->bits) - 1u);
}

#endif
