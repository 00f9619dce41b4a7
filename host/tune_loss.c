/* SPDX-License-Identifier: Apache-2.0 */
/* The distillation loss of a position, KL(p || q) with p = softmax(r) of the reference and q = softmax(x) of the
 * model, and its gradient by the state h that the model's head W multiplies:
 *
 *   KL = sum over v of p_v ((r_v - lse r) - (x_v - lse x))        dKL/dh = (q - p) W
 *
 * A task is a block of positions. The model's logits over the whole vocabulary are held for it, the reference's a
 * tile of the vocabulary at a time (their lse is known), and q - p is multiplied with the same tile of W at once:
 * three products in all. */
#include <math.h>
#include <stdatomic.h>

#include "backend.h"
#include "llama_math.h"
#include "simd.h"
#include "tune.h"

enum { TILE_POS = 128 /* positions of a task */, LANES = 16 };

typedef struct loss_job {
    const rq_llama_math *math;
    const float *h, *ref_h, *head, *ref_head;
    const double *ref_lse;
    double *out; /* [n_pos]: the loss, or lse when there is no model */
    float *dh, dh_scale;
    int64_t n_pos, n_vocab, d, ref_d, tile;
    int64_t slot_floats;
    float *scratch;
    _Atomic int64_t next;
} loss_job;

/* x and r become logs of probabilities, then z = r - x. */
RQ_CLONES static void log_probs(float *restrict x, float *restrict r, float *restrict z, float x_lse, float r_lse,
                                int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int k = 0; k < LANES; ++k) {
            x[i + k] -= x_lse;
            r[i + k] -= r_lse;
            z[i + k] = r[i + k] - x[i + k];
        }
    }
    for (; i < n; ++i) {
        x[i] -= x_lse;
        r[i] -= r_lse;
        z[i] = r[i] - x[i];
    }
}

/* x = (x - r) scale */
RQ_CLONES static void difference(float *restrict x, const float *restrict r, float scale, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int k = 0; k < LANES; ++k) x[i + k] = (x[i + k] - r[i + k]) * scale;
    }
    for (; i < n; ++i) x[i] = (x[i] - r[i]) * scale;
}

/* One position, one tile of the vocabulary: returns its part of the loss; x becomes (q - p) dh_scale. */
static double fold_tile(const loss_job *j, float *x, float *r, float *z, double x_lse, double r_lse, int64_t n) {
    log_probs(x, r, z, (float)x_lse, (float)r_lse, n);
    j->math->exp(r, r, n);
    double kl = (double)j->math->dot(r, z, n);
    if (j->dh) {
        j->math->exp(x, x, n);
        difference(x, r, j->dh_scale, n);
    }
    return kl;
}

static double log_sum(const loss_job *j, const float *x, int64_t n) {
    float top = j->math->max(x, n);
    return (double)top + log(j->math->sum_exp(x, n, top));
}

static void loss_tile(const loss_job *j, float *scratch, int64_t first) {
    int64_t n = rq_min_i64(TILE_POS, j->n_pos - first), n_vocab = j->n_vocab, d = j->d;
    float *x = scratch, *r = x + TILE_POS * n_vocab, *z = r + TILE_POS * j->tile;
    double lse[TILE_POS];
    for (int64_t row = 0; row < n_vocab; row += j->tile) {
        int64_t rows = rq_min_i64(j->tile, n_vocab - row);
        rq_sgemm_tile(RQ_N, RQ_T, n, rows, d, 1.0f, j->h + first * d, d, j->head + row * d, d, 0.0f, x + row, n_vocab);
    }
    for (int64_t p = 0; p < n; ++p) {
        lse[p] = log_sum(j, x + p * n_vocab, n_vocab);
        j->out[first + p] = 0.0;
    }
    for (int64_t row = 0; row < n_vocab; row += j->tile) {
        int64_t rows = rq_min_i64(j->tile, n_vocab - row);
        rq_sgemm_tile(RQ_N, RQ_T, n, rows, j->ref_d, 1.0f, j->ref_h + first * j->ref_d, j->ref_d,
                      j->ref_head + row * j->ref_d, j->ref_d, 0.0f, r, j->tile);
        for (int64_t p = 0; p < n; ++p) {
            j->out[first + p] +=
                fold_tile(j, x + p * n_vocab + row, r + p * j->tile, z, lse[p], j->ref_lse[first + p], rows);
        }
        if (j->dh) {
            rq_sgemm_tile(RQ_N, RQ_N, n, d, rows, 1.0f, x + row, n_vocab, j->head + row * d, d, row ? 1.0f : 0.0f,
                          j->dh + first * d, d);
        }
    }
}

static void lse_tile(const loss_job *j, float *r, int64_t first) {
    int64_t n = rq_min_i64(TILE_POS, j->n_pos - first), d = j->ref_d;
    float top[TILE_POS] = {0};
    double sum[TILE_POS] = {0};
    for (int64_t row = 0; row < j->n_vocab; row += j->tile) {
        int64_t rows = rq_min_i64(j->tile, j->n_vocab - row);
        rq_sgemm_tile(RQ_N, RQ_T, n, rows, d, 1.0f, j->ref_h + first * d, d, j->ref_head + row * d, d, 0.0f, r,
                      j->tile);
        for (int64_t p = 0; p < n; ++p) {
            float most = j->math->max(r + p * j->tile, rows);
            if (row == 0) {
                top[p] = most;
                sum[p] = 0.0;
            } else if (most > top[p]) {
                sum[p] *= exp((double)top[p] - (double)most);
                top[p] = most;
            }
            sum[p] += j->math->sum_exp(r + p * j->tile, rows, top[p]);
        }
    }
    for (int64_t p = 0; p < n; ++p) j->out[first + p] = (double)top[p] + log(sum[p]);
}

static void loss_slot(void *arg, int64_t slot) {
    loss_job *j = arg;
    float *scratch = j->scratch + slot * j->slot_floats;
    for (;;) {
        int64_t first = atomic_fetch_add(&j->next, 1) * TILE_POS;
        if (first >= j->n_pos) return;
        (j->h ? loss_tile : lse_tile)(j, scratch, first);
    }
}

static rq_status run(loss_job *j) {
    rq_status status = RQ_OK;
    int64_t n_slot = rq_min_i64(rq_get_threads(), rq_ceil_div(j->n_pos, TILE_POS));
    j->math = rq_llama_math_get();
    j->slot_floats = TILE_POS * ((j->h ? j->n_vocab : 0) + j->tile) + j->tile;
    RQ_TRY(RQ_NEW(j->scratch, n_slot * j->slot_floats));
    rq_parallel_for(n_slot, loss_slot, j);
done:
    free(j->scratch);
    return status;
}

rq_status rq_tune_loss(const rq_tuner *t, const float *h, const float *ref_h, const double *ref_lse, int64_t n_pos,
                       float dh_scale, float *dh, double *loss_sum) {
    rq_status status = RQ_OK;
    loss_job j = {.h = h, .ref_h = ref_h, .head = t->head, .ref_head = t->ref_head, .ref_lse = ref_lse};
    j.dh = dh;
    j.dh_scale = dh_scale;
    j.n_pos = n_pos;
    j.n_vocab = t->m->cfg.n_vocab;
    j.tile = t->vocab_tile;
    j.d = t->m->cfg.d_model;
    j.ref_d = t->ref->cfg.d_model;
    RQ_TRY(RQ_NEW(j.out, n_pos));
    RQ_TRY(run(&j));
    *loss_sum = 0;
    for (int64_t p = 0; p < n_pos; ++p) *loss_sum += j.out[p];
done:
    free(j.out);
    return status;
}

rq_status rq_tune_ref_lse(const rq_tuner *t, const float *ref_h, int64_t n_pos, double *lse) {
    loss_job j = {.ref_h = ref_h, .ref_head = t->ref_head, .out = lse, .n_pos = n_pos};
    j.tile = t->vocab_tile;
    j.n_vocab = t->ref->cfg.n_vocab;
    j.ref_d = t->ref->cfg.d_model;
    return run(&j);
}
