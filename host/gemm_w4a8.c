/* SPDX-License-Identifier: Apache-2.0 */
/* The plain C definition of the product of 4-bit weights and 8-bit activations (fmt_w4a8.h): codes of a row are decoded once for
 * BLOCK columns, and meet every token. */
#include "kernels.h"

enum { BLOCK = 512, TOKENS = 64 };

static int32_t dot(const int16_t *level, const int8_t *x, int64_t n) {
    int32_t sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += level[j] * x[j];
    return sum;
}

RQ_OP_gemm(rq_gemm_w4a8_c, rq_w4a8) {
    int16_t level[BLOCK];
    int32_t acc[TOKENS];
    for (int64_t first = tok0; first < tok0 + n_tok; first += TOKENS) {
        const int64_t count = first + TOKENS < tok0 + n_tok ? TOKENS : tok0 + n_tok - first;
        for (int64_t r = row0; r < row0 + n_rows; ++r) {
            memset(acc, 0, sizeof acc);
            for (int64_t j0 = 0; j0 < w->n_in; j0 += BLOCK) {
                const int64_t n = j0 + BLOCK < w->n_in ? BLOCK : w->n_in - j0;
                for (int64_t j = 0; j < n; ++j) level[j] = (int16_t)rq_w4a8_level(w, r, j0 + j);
                for (int64_t t = 0; t < count; ++t) acc[t] += dot(level, x->q + (first + t) * x->pitch + j0, n);
            }
            for (int64_t t = 0; t < count; ++t) {
                y[(first + t) * w->n_out + r] = rq_w4a8_output(acc[t], w->scale[r], x->scale[first + t]);
            }
        }
    }
}
