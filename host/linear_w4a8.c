/* SPDX-License-Identifier: Apache-2.0 */
/* y = x W^T for weights of 4 bits and inputs of 8 (fmt_w4a8.h): the input as int8, after its Hadamard matrix and factors if there are
 * any, the product. Integer sums are exact, so how rows and tokens are cut does not show in the result. */
#include "linear.h"

#include "kernels.h"

enum { TILE_ROWS = 96, TILE_TOK = 256, ACT_TOK = 8 };

typedef struct job {
    const rq_w4a8 *w;
    const float *bias;
    const rq_act_steps *steps;
    float *y, *scratch; /* scratch: a row for each item, with a Hadamard matrix */
    const float *x;
    int64_t n_tok, item_tok, item_rows;
    int8_t *q;
    float *scale;
    int32_t *sum;
    int64_t pitch;
    const rq_kernel *quantize, *gemm;
} job;

static void quantize_body(void *arg, int64_t item) {
    const job *j = arg;
    const rq_w4a8 *w = j->w;
    const int64_t t0 = item * ACT_TOK, t1 = rq_min_i64(j->n_tok, t0 + ACT_TOK);
    rq_act_rows rows = {.n_in = w->n_in,
                        .x = j->x,
                        .after = {.hadamard = w->hadamard ? &w->online[0] : NULL,
                                  .scratch = w->hadamard ? j->scratch + item * w->n_in : NULL,
                                  .factor = w->in_scale}};
    if (j->steps) rows.after.steps = *j->steps;
    j->quantize->quantize(j->q, j->pitch, j->scale, j->sum, &rows, t0, t1 - t0);
}

static void gemm_body(void *arg, int64_t item) {
    const job *j = arg;
    const rq_w4a8 *w = j->w;
    const int64_t n_row_tiles = rq_ceil_div(w->n_out, j->item_rows);
    const int64_t r0 = item % n_row_tiles * j->item_rows, r1 = rq_min_i64(w->n_out, r0 + j->item_rows);
    const int64_t t0 = item / n_row_tiles * TILE_TOK, t1 = rq_min_i64(j->n_tok, t0 + TILE_TOK);
    const rq_act8 x = {j->q, j->pitch, j->scale, j->sum};
    j->gemm->gemm(j->y, w, &x, t0, t1 - t0, r0, r1 - r0);
    for (int64_t t = t0; j->bias && t < t1; ++t) {
        for (int64_t r = r0; r < r1; ++r) j->y[t * w->n_out + r] += j->bias[r];
    }
}

static void multiply(job *j) {
    const rq_w4a8 *w = j->w;
    j->gemm = rq_kernel_pick("gemm", "w4a8");
    j->item_rows = j->n_tok <= RQ_GEMV_MAX_TOK ? rq_gemv_item_rows(w->n_out, rq_get_threads()) : TILE_ROWS;
    rq_parallel_for(rq_ceil_div(w->n_out, j->item_rows) * rq_ceil_div(j->n_tok, TILE_TOK), gemm_body, j);
}

rq_status rq_linear_w4a8_act8(const rq_w4a8 *w, const float *bias, float *y, const rq_act8 *x, int64_t n_tok) {
    rq_status status = RQ_OK;
    const int64_t pitch = rq_ceil_div(w->n_in, RQ_ACT8_ALIGN) * RQ_ACT8_ALIGN;
    int8_t *copy = NULL; /* of codes that do not lie as the kernels want them */
    if (n_tok < 1) goto done;
    if (x->pitch % RQ_ACT8_ALIGN || (uintptr_t)x->q % RQ_ACT8_ALIGN) {
        RQ_TRY(RQ_NEW(copy, n_tok * pitch));
        for (int64_t t = 0; t < n_tok; ++t) {
            memcpy(copy + t * pitch, x->q + t * x->pitch, (size_t)w->n_in);
            memset(copy + t * pitch + w->n_in, 0, (size_t)(pitch - w->n_in));
        }
    }
    job j = {.w = w,
             .bias = bias,
             .y = y,
             .n_tok = n_tok,
             .q = copy ? copy : (int8_t *)(uintptr_t)x->q, /* only read from here on, as the next two */
             .scale = (float *)(uintptr_t)x->scale,
             .sum = (int32_t *)(uintptr_t)x->sum,
             .pitch = copy ? pitch : x->pitch};
    multiply(&j);
done:
    free(copy);
    return status;
}

rq_status rq_linear_w4a8_steps(const rq_w4a8 *w, const float *bias, float *y, const float *x, int64_t n_tok,
                               const rq_act_steps *steps) {
    rq_status status = RQ_OK;
    void *q = NULL;
    job j = {.w = w, .steps = steps, .bias = bias, .y = y, .x = x, .n_tok = n_tok};
    j.pitch = rq_ceil_div(w->n_in, RQ_ACT8_ALIGN) * RQ_ACT8_ALIGN;
    RQ_TRY(RQ_NEW(j.scale, n_tok));
    RQ_TRY(RQ_NEW(j.sum, n_tok));
    if (w->hadamard) RQ_TRY(RQ_NEW(j.scratch, rq_ceil_div(n_tok, ACT_TOK) * w->n_in));
    RQ_TRY(rq_alloc(&q, n_tok * j.pitch + RQ_ACT8_ALIGN, 1));
    j.q = (int8_t *)q + (RQ_ACT8_ALIGN - (uintptr_t)q % RQ_ACT8_ALIGN) % RQ_ACT8_ALIGN;
    j.quantize = rq_kernel_pick("quantize", "act_rows");
    rq_parallel_for(rq_ceil_div(n_tok, ACT_TOK), quantize_body, &j);
    multiply(&j);
done:
    free(q);
    free(j.scale);
    free(j.sum);
    free(j.scratch);
    return status;
}

rq_status rq_linear_w4a8(const rq_w4a8 *w, const float *bias, float *y, const float *x, int64_t n_tok) {
    return rq_linear_w4a8_steps(w, bias, y, x, n_tok, NULL);
}

typedef struct trip {
    float *x;
    int64_t n_tok, n_in;
    const rq_kernel *k;
    _Atomic bool failed;
} trip;

static void trip_body(void *arg, int64_t item) {
    trip *j = arg;
    const int64_t t0 = item * ACT_TOK, t1 = rq_min_i64(j->n_tok, t0 + ACT_TOK), n_in = j->n_in;
    int8_t *q = NULL;
    float scale;
    int32_t sum;
    if (RQ_NEW(q, n_in) != RQ_OK) {
        j->failed = true;
        return;
    }
    for (float *x = j->x + t0 * n_in; x < j->x + t1 * n_in; x += n_in) {
        const rq_act_rows row = {.n_in = n_in, .x = x};
        j->k->quantize(q, n_in, &scale, &sum, &row, 0, 1);
        for (int64_t i = 0; i < n_in; ++i) x[i] = scale * (float)q[i];
    }
    free(q);
}

rq_status rq_act8_round_trip(float *x, int64_t n_tok, int64_t n_in) {
    trip j = {x, n_tok, n_in, rq_kernel_pick("quantize", "act_rows"), false};
    rq_parallel_for(rq_ceil_div(n_tok, ACT_TOK), trip_body, &j);
    return j.failed ? rq_fail(RQ_ERR_NOMEM, "out of memory for 8-bit activations") : RQ_OK;
}
