/* SPDX-License-Identifier: Apache-2.0 */
/* Plain C for vector quantization (fmt_vq.h), either way that vectors run: a run of a row's weights is decoded by the
 * definition and meets every token; unpack is the definition, row by row. The SIMD twins come here for what they do not cut. */
#include "kernels.h"

RQ_OP_gemv(rq_gemv_vq_c, rq_vq) {
    enum { RUN = 256 }; /* columns decoded at a time */
    float weight[RUN];
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        float sum[RQ_GEMV_MAX_TOK] = {0};
        for (int64_t j = 0; j < w->n_in; j += RUN) {
            int64_t n = w->n_in - j < RUN ? w->n_in - j : RUN;
            for (int64_t i = 0; i < n; ++i) weight[i] = rq_vq_weight(w, r, j + i);
            for (int o = 0; o < w->n_outlier; ++o) {
                int64_t at = w->outlier_col[o] - j;
                if (at >= 0 && at < n) weight[at] = w->outlier_scale[o] * (float)w->outlier[r * w->n_outlier + o];
            }
            for (int64_t t = 0; t < n_tok; ++t) {
                const float *xt = x + t * w->n_in + j;
                float part = 0.0f;
                for (int64_t i = 0; i < n; ++i) part += weight[i] * xt[i];
                sum[t] += part;
            }
        }
        for (int64_t t = 0; t < n_tok; ++t) y[t * w->n_out + r] = sum[t];
    }
}

RQ_OP_unpack(rq_unpack_vq_c, rq_vq) {
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        float *out = dst + (r - row0) * w->n_in;
        for (int64_t j = 0; j < w->n_in; ++j) out[j] = rq_vq_weight(w, r, j);
        for (int o = 0; o < w->n_outlier; ++o) {
            out[w->outlier_col[o]] = w->outlier_scale[o] * (float)w->outlier[r * w->n_outlier + o];
        }
    }
}
