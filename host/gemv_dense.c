/* SPDX-License-Identifier: Apache-2.0 */
/* Plain C for matrices that are not packed: y[t][i] = sum_j w[i][j] x[t][j] straight from the bytes of a file. Eight partial
 * sums per row, so that a compiler may vectorize without changing the order of the additions. */
#include "kernels.h"

enum { LANES = 8 };

static void load_f32(float *w, const unsigned char *row, int64_t j, int64_t n) {
    memcpy(w, row + j * 4, (size_t)n * 4);
}

static void load_f16(float *w, const unsigned char *row, int64_t j, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        rq_f16 h;
        memcpy(&h, row + (j + i) * 2, 2);
        w[i] = rq_f32_of_f16(h);
    }
}

static void load_bf16(float *w, const unsigned char *row, int64_t j, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        rq_bf16 h;
        memcpy(&h, row + (j + i) * 2, 2);
        w[i] = rq_f32_of_bf16(h);
    }
}

static void load_q8_0(float *w, const unsigned char *row, int64_t j, int64_t n) { /* j and n lie within one block */
    rq_q8_0 block;
    memcpy(&block, row + j / 32 * (int64_t)sizeof block, sizeof block);
    float d = rq_f32_of_f16(block.d);
    for (int64_t i = 0; i < n; ++i) w[i] = d * (float)block.q[j % 32 + i];
}

typedef void (*load_fn)(float *w, const unsigned char *row, int64_t j, int64_t n);

static inline void dense_gemv(load_fn load, float *y, const rq_dense *w, const float *x, int64_t n_tok, int64_t row0,
                              int64_t n_rows) {
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        const unsigned char *row = w->data + r * w->row_bytes;
        float part[RQ_GEMV_MAX_TOK][LANES] = {{0}};
        for (int64_t j = 0; j < w->n_in; j += LANES) {
            int64_t n = w->n_in - j < LANES ? w->n_in - j : LANES;
            float v[LANES];
            load(v, row, j, n);
            for (int64_t t = 0; t < n_tok; ++t) {
                const float *xt = x + t * w->n_in + j;
                for (int64_t i = 0; i < n; ++i) part[t][i] += v[i] * xt[i];
            }
        }
        for (int64_t t = 0; t < n_tok; ++t) {
            float sum = 0.0f;
            for (int i = 0; i < LANES; ++i) sum += part[t][i];
            y[t * w->n_out + r] = sum;
        }
    }
}

RQ_OP_gemv(rq_gemv_f32_rows_c, rq_f32_rows) { dense_gemv(load_f32, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_f16_rows_c, rq_f16_rows) { dense_gemv(load_f16, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_bf16_rows_c, rq_bf16_rows) { dense_gemv(load_bf16, y, w, x, n_tok, row0, n_rows); }
RQ_OP_gemv(rq_gemv_q8_0_rows_c, rq_q8_0_rows) { dense_gemv(load_q8_0, y, w, x, n_tok, row0, n_rows); }
