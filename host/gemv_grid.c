/* SPDX-License-Identifier: Apache-2.0 */
/* Plain C for grid codes (fmt_grid.h). gemv: y[t][i] = sum_groups scale * sum_j (code - zero) x[t][j]; unpack: one rounding
 * per weight. The SIMD twins are gemv_grid_avx2.c and gemv_grid_avx512.c, which come here for groups that they do not cut. */
#include "kernels.h"

/* Codes of columns [j0, j1) of a row minus their group's zero, exact in fp32. A 64-bit window holds any run of up to 7
 * codes of 8 bits from any bit offset, so codes are drained from one that is refilled by words. */
static void levels(float *dst, const rq_grid *g, int64_t row, int64_t j0, int64_t j1, int zero) {
    const uint32_t *w = g->words + row * g->row_words + (j0 * g->bits >> 5);
    int left = 32 - (int)(j0 * g->bits & 31); /* bits of the window that are valid */
    uint64_t window = *w++ >> (32 - left);
    const uint32_t mask = (1u << g->bits) - 1u;
    for (int64_t j = j0; j < j1; ++j) {
        if (left < g->bits) { /* the last code of a row never needs a word beyond the row */
            window |= (uint64_t)*w++ << left;
            left += 32;
        }
        *dst++ = (float)((int)((uint32_t)window & mask) - zero);
        window >>= g->bits;
        left -= g->bits;
    }
}

RQ_OP_gemv(rq_gemv_grid_c, rq_grid) {
    enum { RUN = 256 }; /* columns decoded at a time */
    float level[RUN];
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        float sum[RQ_GEMV_MAX_TOK] = {0};
        for (int64_t k = 0; k < w->n_group; ++k) {
            int64_t begin = k * w->group, end = begin + w->group < w->n_in ? begin + w->group : w->n_in;
            float part[RQ_GEMV_MAX_TOK] = {0};
            for (int64_t j = begin; j < end; j += RUN) {
                int64_t n = end - j < RUN ? end - j : RUN;
                levels(level, w, r, j, j + n, rq_grid_zero(w, r, k));
                for (int64_t t = 0; t < n_tok; ++t) {
                    const float *xt = x + t * w->n_in + j;
                    float s = 0.0f;
                    for (int64_t i = 0; i < n; ++i) s += level[i] * xt[i];
                    part[t] += s;
                }
            }
            float scale = rq_grid_scale(w, r, k);
            for (int64_t t = 0; t < n_tok; ++t) sum[t] += scale * part[t];
        }
        for (int64_t t = 0; t < n_tok; ++t) y[t * w->n_out + r] = sum[t];
    }
}

RQ_OP_unpack(rq_unpack_grid_c, rq_grid) {
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        float *out = dst + (r - row0) * w->n_in;
        for (int64_t k = 0; k < w->n_group; ++k) {
            int64_t begin = k * w->group, end = begin + w->group < w->n_in ? begin + w->group : w->n_in;
            float scale = rq_grid_scale(w, r, k);
            levels(out + begin, w, r, begin, end, rq_grid_zero(w, r, k));
            for (int64_t j = begin; j < end; ++j) out[j] *= scale;
        }
    }
}
