/* SPDX-License-Identifier: Apache-2.0 */
/* Leaf header: 4-bit weights for 8-bit activations (docs/formats.md), shared by host and device code.
 *
 *   group 0 (a scale a row):  w[i][j] = scale[i] * q,  q = u - zero[i]               u = code(i, j) in 0 .. 15
 *   else (two levels):        w[i][j] = scale[i] * q,  q = u * step[i][k] + base[i][k],  k = j / group
 *
 * In two levels q is an 8-bit integer for every u: steps are 1 .. 17, and 15 * step + base is at most 127. So a product needs no factor
 * inside of a row: with xq[t] the int8 codes of a token's activations, sx[t] their scale (rq_act_quantize of ops.h), the sum over j of
 * q * xq[t][j] as an exact integer acc,
 *
 *   y[t][i] = ((float)acc * scale[i]) * sx[t]                                       two fp32 products, in this order
 *
 * Activations may also be e4m3 (fmt_act.h): with x8[t] their numbers, y[t][i] = ((float)sum * scale[i]) * sx[t], sum the exact sum over j of q * x8[t][j]. It is
 * a multiple of 2^-9, and fits in 64 bits as such. fp32 sums, as GPUs make them, come near that; what they give depends on their order.
 *
 * What is quantized is not x but in_scale[j] * (H x)[j]: H the normalized Hadamard matrix of order `hadamard` (fmt_act.h) on consecutive
 * columns (none when 0), and no factors where in_scale is NULL.
 *
 * Codes of row i are nibbles, least significant first, in the 32-bit words words[i * row_words ...]; nibbles past n_in do not count.
 * Sources: two levels from QServe (Lin et al., 2024, section 4), base instead of a zero point from LiquidGEMM (Hu et al., 2025). */
#ifndef RQ_FMT_W4A8_H
#define RQ_FMT_W4A8_H

#include "fmt_act.h"

enum {
    RQ_W4A8_MAX_STEP = 17,
    RQ_W4A8_MAX_GROUP = 4096,
    RQ_W4A8_MAX_COLS = 131072 /* 128 * 127 * n_in stays below 2^31 */
};

typedef struct rq_w4a8 {
    int64_t n_out, n_in;
    int64_t group;   /* columns that share step and base: a multiple of 32; 0: one scale a row, one level */
    int64_t n_group; /* ceil(n_in / group); 0 with one level */
    int64_t row_words;
    const uint32_t *words;     /* [n_out][row_words] */
    const float *scale;        /* [n_out] */
    const uint8_t *zero;       /* [n_out] 0 .. 15; NULL: 8 (symmetric), and in two levels */
    const uint8_t *step;       /* [n_out][n_group] 1 .. 17; NULL with one level, as base */
    const int8_t *base;        /* [n_out][n_group] */
    const float *in_scale;     /* [n_in], or NULL */
    int hadamard;              /* order of H: k * 2^p that divides n_in, k at most RQ_ACT_MAX_CORE; or 0 */
    const rq_hadamard *online; /* [2] H and its transpose; NULL when hadamard is 0 */
} rq_w4a8;

static inline int64_t rq_w4a8_row_words(int64_t n_in) { return (n_in + 7) / 8; }

static inline int rq_w4a8_code(const rq_w4a8 *w, int64_t row, int64_t j) {
    return (int)(w->words[row * w->row_words + j / 8] >> j % 8 * 4 & 15u);
}

/* q of the two formulas above. */
static inline int rq_w4a8_level(const rq_w4a8 *w, int64_t row, int64_t j) {
    const int u = rq_w4a8_code(w, row, j);
    if (!w->group) return u - (w->zero ? w->zero[row] : 8);
    const int64_t k = row * w->n_group + j / w->group;
    return u * w->step[k] + w->base[k];
}

/* The end of the product: bias and residual are added after it, one fp32 sum each. */
static inline float rq_w4a8_output(int32_t acc, float scale, float x_scale) { return (float)acc * scale * x_scale; }

/* Likewise of e4m3; acc in units of 2^-9. */
static inline float rq_w4a8_output_e4m3(int64_t acc, float scale, float x_scale) {
    return (float)acc * 0x1p-9f * scale * x_scale;
}

#endif
