/* SPDX-License-Identifier: Apache-2.0 */
/* Plain C for sign-split vector quantization (fmt_ssvq.h). gemv: y[t][i] = sum_groups scale * sum_j (+-magnitude) x[t][j] plus the
 * outlier columns; unpack: the definition, row by row. The SIMD twins come here for what they do not cut. */
#include "kernels.h"

/* Signed magnitudes of columns [j0, j1) of a row; j0 is a multiple of vec_len. */
static void magnitudes(float *dst, const rq_ssvq *s, int64_t row, int64_t j0, int64_t j1) {
    for (int64_t j = j0; j < j1; j += s->vec_len) {
        int64_t n = j1 - j < s->vec_len ? j1 - j : s->vec_len;
        uint32_t code = rq_ssvq_code(s, row, j / s->vec_len);
        for (int64_t e = 0; e < n; ++e) {
            float m = rq_ssvq_magnitude(s, j / s->book_cols, code, e);
            *dst++ = rq_ssvq_negative(s, row, j + e) ? -m : m;
        }
    }
}

RQ_OP_gemv(rq_gemv_ssvq_c, rq_ssvq) {
    enum { RUN = 256 }; /* columns decoded at a time: a multiple of every vec_len */
    float level[RUN];
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        float sum[RQ_GEMV_MAX_TOK] = {0};
        for (int64_t k = 0; k < w->n_group; ++k) {
            int64_t begin = k * w->group, end = begin + w->group < w->n_in ? begin + w->group : w->n_in;
            float part[RQ_GEMV_MAX_TOK] = {0};
            for (int64_t j = begin; j < end; j += RUN) {
                int64_t n = end - j < RUN ? end - j : RUN;
                magnitudes(level, w, r, j, j + n);
                for (int o = 0; o < w->n_outlier; ++o) {
                    int64_t at = w->outlier_col[o] - j;
                    if (at >= 0 && at < n) level[at] = 0.0f;
                }
                for (int64_t t = 0; t < n_tok; ++t) {
                    const float *xt = x + t * w->n_in + j;
                    float v = 0.0f;
                    for (int64_t i = 0; i < n; ++i) v += level[i] * xt[i];
                    part[t] += v;
                }
            }
            float scale = rq_f32_of_f16(w->scale[r * w->n_group + k]);
            for (int64_t t = 0; t < n_tok; ++t) sum[t] += scale * part[t];
        }
        for (int o = 0; o < w->n_outlier; ++o) {
            float v = w->outlier_scale[o] * (float)w->outlier[r * w->n_outlier + o];
            for (int64_t t = 0; t < n_tok; ++t) sum[t] += v * x[t * w->n_in + w->outlier_col[o]];
        }
        for (int64_t t = 0; t < n_tok; ++t) y[t * w->n_out + r] = sum[t];
    }
}

RQ_OP_unpack(rq_unpack_ssvq_c, rq_ssvq) {
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        float *out = dst + (r - row0) * w->n_in;
        magnitudes(out, w, r, 0, w->n_in);
        for (int64_t k = 0; k < w->n_group; ++k) {
            int64_t begin = k * w->group, end = begin + w->group < w->n_in ? begin + w->group : w->n_in;
            float scale = rq_f32_of_f16(w->scale[r * w->n_group + k]);
            for (int64_t j = begin; j < end; ++j) out[j] *= scale;
        }
        for (int o = 0; o < w->n_outlier; ++o) {
            out[w->outlier_col[o]] = w->outlier_scale[o] * (float)w->outlier[r * w->n_outlier + o];
        }
    }
}
