/* SPDX-License-Identifier: Apache-2.0 */
/* y = x W^T for weights of 4 bits and inputs of e4m3 (fmt_w4a8.h, fmt_act.h), in plain C: what the CUDA kernels approach. All numbers of e4m3 are
 * multiples of 2^-9, so the sums are integers, exact, and how the work is cut does not show in the result. */
#include "linear.h"

enum { BLOCK = 512, ITEM_ROWS = 8, ITEM_TOK = 8 };

typedef struct job {
    const rq_w4a8 *w;
    const float *bias, *x;
    float *y, *scale; /* scale: [n_tok] */
    uint8_t *q;       /* [n_tok][n_in] */
    int64_t n_tok;
    int32_t units[256];
} job;

static void quantize_body(void *arg, int64_t item) {
    const job *j = arg;
    const int64_t n_in = j->w->n_in, t1 = rq_min_i64(j->n_tok, (item + 1) * ITEM_TOK);
    for (int64_t t = item * ITEM_TOK; t < t1; ++t) {
        rq_act_e4m3_row(j->q + t * n_in, &j->scale[t], j->x + t * n_in, n_in);
    }
}

void rq_act_e4m3_row(uint8_t *q, float *scale, const float *x, int64_t n) {
    float most = 0.0f;
    for (int64_t i = 0; i < n; ++i) most = fabsf(x[i]) > most ? fabsf(x[i]) : most; /* NaN is not */
    *scale = most / (float)RQ_E4M3_MOST;
    for (int64_t i = 0; i < n; ++i) q[i] = rq_act_e4m3(x[i], *scale);
}

static void product_body(void *arg, int64_t item) {
    const job *j = arg;
    const rq_w4a8 *w = j->w;
    const int64_t r1 = rq_min_i64(w->n_out, (item + 1) * ITEM_ROWS);
    int32_t level[BLOCK];
    int64_t sum[ITEM_TOK];
    for (int64_t r = item * ITEM_ROWS; r < r1; ++r) {
        for (int64_t t0 = 0; t0 < j->n_tok; t0 += ITEM_TOK) {
            const int64_t n_tok = rq_min_i64(ITEM_TOK, j->n_tok - t0);
            memset(sum, 0, sizeof sum);
            for (int64_t j0 = 0; j0 < w->n_in; j0 += BLOCK) {
                const int64_t n = rq_min_i64(BLOCK, w->n_in - j0);
                for (int64_t k = 0; k < n; ++k) level[k] = rq_w4a8_level(w, r, j0 + k);
                for (int64_t t = 0; t < n_tok; ++t) {
                    const uint8_t *q = j->q + (t0 + t) * w->n_in + j0;
                    for (int64_t k = 0; k < n; ++k) sum[t] += (int64_t)level[k] * j->units[q[k]];
                }
            }
            for (int64_t t = 0; t < n_tok; ++t) {
                const float y = rq_w4a8_output_e4m3(sum[t], w->scale[r], j->scale[t0 + t]);
                j->y[(t0 + t) * w->n_out + r] = j->bias ? y + j->bias[r] : y;
            }
        }
    }
}

rq_status rq_linear_w4a8_e4m3(const rq_w4a8 *w, const float *bias, float *y, const float *x, int64_t n_tok) {
    rq_status status = RQ_OK;
    float *changed = NULL;
    job j = {.w = w, .bias = bias, .x = x, .y = y, .n_tok = n_tok};
    for (int code = 0; code < 256; ++code) j.units[code] = rq_e4m3_units((uint8_t)code);
    RQ_TRY(RQ_NEW(j.scale, n_tok));
    RQ_TRY(RQ_NEW(j.q, n_tok * w->n_in));
    if (w->in_scale || w->hadamard) {
        RQ_TRY(RQ_NEW(changed, n_tok * w->n_in));
        memcpy(changed, x, (size_t)(n_tok * w->n_in) * sizeof *x);
        rq_w4a8_input(w, changed, n_tok);
        j.x = changed;
    }
    rq_parallel_for(rq_ceil_div(n_tok, ITEM_TOK), quantize_body, &j);
    rq_parallel_for(rq_ceil_div(w->n_out, ITEM_ROWS), product_body, &j);
done:
    free(j.scale);
    free(j.q);
    free(changed);
    return status;
}
