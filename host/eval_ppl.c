/* SPDX-License-Identifier: Apache-2.0 */
/* Perplexity and KL divergence without ever holding a row of logits whole.
 *
 * The vocabulary is walked in tiles: rows of the head are made fp32 once per batch of windows, multiplied with a block of
 * positions, and folded at once into running sums per position:
 *
 *   m = max x, s = sum exp(x - m), and for a reference r: c = sum exp(r - max r) (r - x)
 *   nll = m + log s - x_target          KL(r || x) = c / s_r + (m + log s) - (m_r + log s_r)
 *
 * A new maximum rescales the sums. Exponentials are fp32, what is summed over tiles is fp64. */
#include "eval.h"

#include <math.h>
#include <stdatomic.h>

#include "backend.h"
#include "llama_math.h"

enum {
    BATCH_TOKENS = 1 << 12, /* positions that share one pass over the head */
    TILE_ROWS = 1024,       /* of the head, unless the caller says otherwise */
    TILE_POS = 128          /* positions of a task: its logits (512 KiB a model) stay in the cache */
};

struct rq_eval_ref {
    const rq_model *m;
    int32_t *ids;
    float *h; /* [n_windows * ctx][d_model], what the head multiplies */
    int64_t n_windows, ctx;
};

/* Running sums of one position under one model. */
typedef struct lse {
    float max, target;
    int32_t best;
    double sum;
} lse;

typedef struct position {
    lse x, r;
    double cross;
} position;

typedef struct tile_job {
    const rq_llama_math *math;
    const float *h[2], *w[2]; /* model, reference (NULL without one): states [n_pos][d], head rows [n_rows][d] */
    int64_t d[2];
    const int32_t *target; /* [n_pos]: the token at the position; the one after is predicted */
    position *pos;
    float *scratch; /* [slots][2][TILE_POS][tile_rows] */
    int64_t n_pos, first_row, n_rows, tile_rows;
    _Atomic int64_t next;
} tile_job;

/* Returns what older sums must be multiplied by. */
static double fold_max(lse *s, const rq_llama_math *math, const float *x, int64_t first_row, int64_t n) {
    float top = math->max(x, n);
    if (!(top > s->max)) return 1.0;
    double keep = exp((double)s->max - (double)top);
    int64_t i = 0;
    while (i < n - 1 && x[i] != top) ++i;
    s->max = top;
    s->best = (int32_t)(first_row + i);
    return keep;
}

static void fold_position(const tile_job *job, position *p, const float *x, const float *r, int64_t target) {
    const rq_llama_math *math = job->math;
    int64_t n = job->n_rows, at = target - job->first_row;
    double keep = fold_max(&p->x, math, x, job->first_row, n);
    p->x.sum = p->x.sum * keep + math->sum_exp(x, n, p->x.max);
    if (at >= 0 && at < n) p->x.target = x[at];
    if (!r) return;
    keep = fold_max(&p->r, math, r, job->first_row, n);
    p->cross *= keep;
    p->r.sum = p->r.sum * keep + math->sum_exp_cross(r, x, n, p->r.max, &p->cross);
    if (at >= 0 && at < n) p->r.target = r[at];
}

static void tile_slot(void *arg, int64_t slot) {
    tile_job *job = arg;
    float *x = job->scratch + slot * 2 * TILE_POS * job->tile_rows, *r = x + TILE_POS * job->tile_rows;
    for (;;) {
        int64_t first = atomic_fetch_add(&job->next, 1) * TILE_POS;
        if (first >= job->n_pos) return;
        int64_t n = rq_min_i64(TILE_POS, job->n_pos - first), rows = job->n_rows;
        for (int i = 0; i < 2 && job->h[i]; ++i) {
            int64_t d = job->d[i];
            rq_sgemm_tile(RQ_N, RQ_T, n, rows, d, 1.0f, job->h[i] + first * d, d, job->w[i], d, 0.0f, i ? r : x, rows);
        }
        for (int64_t p = 0; p < n; ++p) {
            /* The last position of all predicts nothing; any target will do. */
            int64_t next = rq_min_i64(first + p + 1, job->n_pos - 1);
            fold_position(job, &job->pos[first + p], x + p * rows, job->h[1] ? r + p * rows : NULL, job->target[next]);
        }
    }
}

/* Sums of a batch's positions over the whole vocabulary. h[1] is NULL without a reference. */
static rq_status fold_batch(position *pos, const rq_model *m[2], const float *h[2], const int32_t *ids, int64_t n_pos,
                            int64_t tile_rows) {
    rq_status status = RQ_OK;
    int64_t n_vocab = m[0]->cfg.n_vocab, n_slot = rq_min_i64(rq_get_threads(), rq_ceil_div(n_pos, TILE_POS));
    float *w[2] = {NULL, NULL};
    tile_job job = {.math = rq_llama_math_get(),
                    .h = {h[0], h[1]},
                    .target = ids,
                    .pos = pos,
                    .n_pos = n_pos,
                    .tile_rows = tile_rows};
    RQ_TRY(rq_backend_init());
    RQ_TRY(RQ_NEW(job.scratch, n_slot * 2 * TILE_POS * tile_rows));
    for (int i = 0; i < 2 && h[i] && m[i]; ++i) {
        job.d[i] = m[i]->cfg.d_model;
        RQ_TRY(RQ_NEW(w[i], tile_rows * job.d[i]));
        job.w[i] = w[i];
    }
    const lse none = {.max = -INFINITY, .best = -1};
    for (int64_t p = 0; p < n_pos; ++p) pos[p] = (position){none, none, 0.0};
    for (int64_t row = 0; row < n_vocab; row += tile_rows) {
        job.first_row = row;
        job.n_rows = rq_min_i64(tile_rows, n_vocab - row);
        for (int i = 0; i < 2 && h[i]; ++i) RQ_TRY(rq_linear_rows(&m[i]->head, row, job.n_rows, w[i]));
        atomic_store(&job.next, 0);
        rq_parallel_for(n_slot, tile_slot, &job);
    }
done:
    free(w[0]);
    free(w[1]);
    free(job.scratch);
    return status;
}

/* ---- windows ----------------------------------------------------------------------------------------------------------- */

static double log_sum(const lse *s) { return (double)s->max + log(s->sum); }

/* Mean and its error of n values; the error of a single one is 0. */
static void mean_error(double *mean, double *error, const double *v, int64_t n) {
    double sum = 0, square = 0;
    for (int64_t i = 0; i < n; ++i) sum += v[i];
    *mean = sum / (double)n;
    for (int64_t i = 0; i < n; ++i) square += (v[i] - *mean) * (v[i] - *mean);
    *error = n > 1 ? sqrt(square / (double)(n - 1) / (double)n) : 0.0;
}

typedef struct eval_run {
    const rq_model *m[2]; /* model, reference or NULL */
    const rq_eval_ref *kept;
    const int32_t *ids;
    int64_t n_windows, ctx;
    double *nll, *ref_nll, *kl; /* per window */
    int64_t n_same;
} eval_run;

static rq_status fold_window(eval_run *run, const position *pos, int64_t window) {
    double nll = 0, ref = 0, kl = 0;
    for (int64_t p = 0; p < run->ctx; ++p) {
        double x = log_sum(&pos[p].x);
        if (p + 1 < run->ctx) nll += x - (double)pos[p].x.target;
        if (!run->m[1]) continue;
        double r = log_sum(&pos[p].r);
        if (p + 1 < run->ctx) ref += r - (double)pos[p].r.target;
        kl += pos[p].cross / pos[p].r.sum + (x - r);
        run->n_same += pos[p].x.best == pos[p].r.best;
    }
    run->nll[window] = nll / (double)(run->ctx - 1);
    run->ref_nll[window] = ref / (double)(run->ctx - 1);
    run->kl[window] = kl / (double)run->ctx;
    if (!isfinite(nll)) {
        return rq_fail(RQ_ERR_NUMERIC, "window %lld: the model's loss is %g", (long long)window, run->nll[window]);
    }
    if (!isfinite(ref) || !isfinite(kl)) {
        return rq_fail(RQ_ERR_NUMERIC, "window %lld: the reference's loss is %g, the divergence from it %g",
                       (long long)window, run->ref_nll[window], run->kl[window]);
    }
    return RQ_OK;
}

static rq_status head_inputs(const rq_model *m, float *h, const int32_t *ids, int64_t n_seq, int64_t ctx) {
    rq_status status = rq_forward(m, h, ids, n_seq, ctx);
    return status == RQ_OK ? rq_final_norm(m, h, h, n_seq * ctx) : status;
}

static rq_status run_batches(eval_run *run, const rq_eval_opt *opt) {
    rq_status status = RQ_OK;
    int64_t batch = rq_min_i64(run->n_windows, rq_max_i64(1, BATCH_TOKENS / run->ctx)), n_tok = batch * run->ctx;
    int64_t tile_rows = opt && opt->tile_rows ? opt->tile_rows : TILE_ROWS;
    float *own[2] = {NULL, NULL};
    position *pos = NULL;
    if (tile_rows < 1) return rq_fail(RQ_ERR_ARG, "tiles of %lld rows make no sense", (long long)tile_rows);
    tile_rows = rq_min_i64(tile_rows, run->m[0]->cfg.n_vocab);
    RQ_TRY(RQ_NEW(pos, n_tok));
    RQ_TRY(RQ_NEW(own[0], n_tok * run->m[0]->cfg.d_model));
    if (run->m[1] && !run->kept) RQ_TRY(RQ_NEW(own[1], n_tok * run->m[1]->cfg.d_model));
    for (int64_t first = 0; first < run->n_windows; first += batch) {
        int64_t n = rq_min_i64(batch, run->n_windows - first);
        const int32_t *ids = run->ids + first * run->ctx;
        const float *h[2] = {own[0], own[1]};
        RQ_TRY(head_inputs(run->m[0], own[0], ids, n, run->ctx));
        if (own[1]) RQ_TRY(head_inputs(run->m[1], own[1], ids, n, run->ctx));
        if (run->m[1] && run->kept) h[1] = run->kept->h + first * run->ctx * run->m[1]->cfg.d_model;
        RQ_TRY(fold_batch(pos, run->m, h, ids, n * run->ctx, tile_rows));
        for (int64_t i = 0; i < n; ++i) RQ_TRY(fold_window(run, pos + i * run->ctx, first + i));
        double nll, error;
        mean_error(&nll, &error, run->nll, first + n);
        if (opt && opt->progress && !opt->progress(opt->user, first + n, run->n_windows, nll)) {
            RQ_FAIL(RQ_ERR_CANCELLED, "evaluation was stopped after %lld of %lld windows", (long long)(first + n),
                    (long long)run->n_windows);
        }
    }
done:
    free(pos);
    free(own[0]);
    free(own[1]);
    return status;
}

static rq_status check_windows(const rq_model *m, int64_t n_windows, int64_t ctx) {
    int64_t n;
    if (n_windows < 1 || ctx < 2 || !rq_mul_size(n_windows, ctx, &n) || !rq_mul_size(n, m->cfg.d_model, &n)) {
        return rq_fail(RQ_ERR_ARG, "cannot evaluate %lld windows of %lld tokens", (long long)n_windows, (long long)ctx);
    }
    if (ctx > m->cfg.max_seq) {
        return rq_fail(RQ_ERR_ARG, "windows of %lld tokens are longer than the model's context of %lld", (long long)ctx,
                       (long long)m->cfg.max_seq);
    }
    return RQ_OK;
}

static rq_status evaluate(eval_run *run, const rq_eval_opt *opt, rq_eval_result *result) {
    rq_status status = RQ_OK;
    double start = rq_seconds(), unused;
    int64_t n = run->n_windows;
    memset(result, 0, sizeof *result);
    RQ_TRY(check_windows(run->m[0], n, run->ctx));
    if (run->m[1] && run->m[1]->cfg.n_vocab != run->m[0]->cfg.n_vocab) {
        RQ_FAIL(RQ_ERR_ARG, "the vocabularies differ: %lld in the model, %lld in the reference",
                (long long)run->m[0]->cfg.n_vocab, (long long)run->m[1]->cfg.n_vocab);
    }
    RQ_TRY(RQ_NEW(run->nll, n));
    RQ_TRY(RQ_NEW(run->ref_nll, n));
    RQ_TRY(RQ_NEW(run->kl, n));
    RQ_TRY(run_batches(run, opt));
    result->n_windows = n;
    result->ctx = run->ctx;
    mean_error(&result->nll, &result->nll_stderr, run->nll, n);
    result->ppl = exp(result->nll);
    if (run->m[1]) {
        result->has_ref = true;
        mean_error(&result->ref_nll, &unused, run->ref_nll, n);
        result->ref_ppl = exp(result->ref_nll);
        mean_error(&result->kl, &result->kl_stderr, run->kl, n);
        result->top1_frac = (double)run->n_same / ((double)n * (double)run->ctx);
    }
    if (opt && opt->window_nll) memcpy(opt->window_nll, run->nll, (size_t)n * sizeof *run->nll);
    if (opt && opt->window_kl && run->m[1]) memcpy(opt->window_kl, run->kl, (size_t)n * sizeof *run->kl);
    result->seconds = rq_seconds() - start;
done:
    free(run->nll);
    free(run->ref_nll);
    free(run->kl);
    return status;
}

rq_status rq_eval(const rq_model *m, const rq_model *ref, const int32_t *ids, int64_t n_windows, int64_t ctx,
                  const rq_eval_opt *opt, rq_eval_result *result) {
    eval_run run = {.m = {m, ref}, .ids = ids, .n_windows = n_windows, .ctx = ctx};
    return evaluate(&run, opt, result);
}

rq_status rq_eval_with(const rq_model *m, const rq_eval_ref *ref, const rq_eval_opt *opt, rq_eval_result *result) {
    eval_run run = {.m = {m, ref->m}, .kept = ref, .ids = ref->ids, .n_windows = ref->n_windows, .ctx = ref->ctx};
    return evaluate(&run, opt, result);
}

rq_status rq_eval_ref_new(rq_eval_ref **out, const rq_model *ref, const int32_t *ids, int64_t n_windows, int64_t ctx) {
    rq_status status = RQ_OK;
    rq_eval_ref *r = NULL;
    *out = NULL;
    RQ_TRY(check_windows(ref, n_windows, ctx));
    RQ_TRY(RQ_NEW_ZERO(r, 1));
    r->m = ref;
    r->n_windows = n_windows;
    r->ctx = ctx;
    RQ_TRY(RQ_NEW(r->ids, n_windows * ctx));
    RQ_TRY(RQ_NEW(r->h, n_windows * ctx * ref->cfg.d_model));
    memcpy(r->ids, ids, (size_t)(n_windows * ctx) * sizeof *ids);
    RQ_TRY(head_inputs(ref, r->h, ids, n_windows, ctx));
    *out = r;
    r = NULL;
done:
    rq_eval_ref_free(r);
    return status;
}

void rq_eval_ref_free(rq_eval_ref *ref) {
    if (!ref) return;
    free(ref->ids);
    free(ref->h);
    free(ref);
}
