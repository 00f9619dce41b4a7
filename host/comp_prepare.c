/* SPDX-License-Identifier: Apache-2.0 */
/* What matrices with the same input share: sweep order, damped and factored Gram matrix, the triangular term of GPTAQ and
 * ResComp, and the move of the target. docs/methods.md derives each. */
#include <math.h>
#include <stdatomic.h>

#include "backend.h"
#include "device.h"

bool rq_quant_wants_h(const rq_quant_opt *o) {
    if (rq_comp_get(o->comp)->propagates) return true;
    if (rq_round_is_book(o->round))
        return o->outliers > 0 || o->assign != RQ_ASSIGN_EUCLID || o->book_order == RQ_BOOK_HDIAG;
    return o->clip == RQ_CLIP_OUTPUT || (o->clip == RQ_CLIP_MSE && o->clip_weights == RQ_CLIP_HDIAG);
}

bool rq_quant_wants_cross(const rq_quant_opt *o) {
    return rq_comp_get(o->comp)->uses_cross && (o->alpha != 0 || o->alpha2 != 0 || o->rho != 0);
}

#define LADDER_STEPS 6 /* damping times 10 each; after that the diagonal alone, which always factors */

typedef struct gather_arg {
    const rq_prep *p;
    const double *src;
    void *dst;
    double keep, add;  /* off-diagonal factor, diagonal term */
    double unit, dead; /* factor of everything, diagonal of a dead feature */
    bool zero_dead_rows;
} gather_arg;

/* One row of H in sweep order, dead features replaced by 1 on the diagonal, shrunk and damped, in fp64. */
static void gather_h_row(void *arg, int64_t r) {
    const gather_arg *a = arg;
    const rq_prep *p = a->p;
    int64_t n = p->n, j = p->perm[r];
    const double *src = a->src + j * n;
    double *dst = (double *)a->dst + r * n;
    for (int64_t c = 0; c < n; ++c)
        dst[c] = p->dead[j] || p->dead[p->perm[c]] ? 0 : a->unit * a->keep * src[p->perm[c]];
    dst[r] = a->unit * ((p->dead[j] ? a->dead : src[j]) + a->add);
}

/* One row of D in sweep order, fp32; columns of dead features are zero, their rows on request. */
static void gather_d_row(void *arg, int64_t r) {
    const gather_arg *a = arg;
    const rq_prep *p = a->p;
    int64_t n = p->n, j = p->perm[r];
    const double *src = a->src + j * n;
    float *dst = (float *)a->dst + r * n;
    bool zero_row = a->zero_dead_rows && p->dead[j];
    for (int64_t c = 0; c < n; ++c) dst[c] = zero_row || p->dead[p->perm[c]] ? 0 : (float)(a->unit * src[p->perm[c]]);
}

/* Where the damped matrix is needed again, and the one of the output's losses: fp32, the first in stored order. */
typedef struct narrow_job {
    float *to;
    const double *from;
    const int32_t *perm; /* from sweep order; NULL: the order stays */
    int64_t n;
} narrow_job;

static void narrow_row(void *arg, int64_t r) {
    const narrow_job *k = arg;
    const double *from = k->from + r * k->n;
    float *to = k->to + (k->perm ? (int64_t)k->perm[r] : r) * k->n;
    for (int64_t c = 0; c < k->n; ++c) to[k->perm ? k->perm[c] : c] = (float)from[c];
}

typedef struct sort_key {
    double value;
    int32_t index;
} sort_key;

static int by_value_descending(const void *a, const void *b) {
    const sort_key *x = a, *y = b;
    if (x->value != y->value) return x->value > y->value ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

rq_status rq_order_falling(int32_t *order, const double *value, int64_t n) {
    sort_key *key;
    rq_status status = RQ_NEW(key, n);
    if (status != RQ_OK) return status;
    for (int64_t i = 0; i < n; ++i) key[i] = (sort_key){value[i], (int32_t)i};
    qsort(key, (size_t)n, sizeof *key, by_value_descending);
    for (int64_t i = 0; i < n; ++i) order[i] = key[i].index;
    free(key);
    return RQ_OK;
}

static rq_status sweep_order(rq_prep *p, const double *h, bool act_order) {
    rq_status status = RQ_OK;
    double *value = NULL;
    RQ_TRY(RQ_NEW_ZERO(value, p->n));
    for (int64_t j = 0; j < p->n && act_order; ++j) value[j] = p->dead[j] ? 1.0 : h[j * p->n + j];
    RQ_TRY(rq_order_falling(p->perm, value, p->n));
done:
    free(value);
    return status;
}

/* Outlier columns, spans and the sweep order of a codebook rounder: outlier columns one by one, then the vectors in natural
 * order, or those of larger mean diagonal first. */
static rq_status spans(rq_prep *p, double mean_diag, const rq_quant_opt *o) {
    rq_status status = RQ_OK;
    int64_t n = p->n, width = o->vec_out ? 1 : o->vec_len, n_vec = rq_ceil_div(n, width), pos = 0;
    sort_key *key = NULL;
    bool *kept = NULL;
    RQ_TRY(RQ_NEW(key, n));
    RQ_TRY(RQ_NEW_ZERO(kept, n));
    RQ_TRY(RQ_NEW(p->outlier_col, rq_max_i64(1, o->outliers)));
    RQ_TRY(RQ_NEW(p->span, n_vec + o->outliers));
    for (int64_t j = 0; j < n; ++j) {
        key[j].value = p->hdiag && !p->dead[j] ? p->hdiag[j] : 0;
        key[j].index = (int32_t)j;
    }
    if (p->hdiag) qsort(key, (size_t)n, sizeof *key, by_value_descending);
    /* At least one column is left to the codebook. */
    for (int64_t i = 0; p->hdiag && i < o->outliers && i + 1 < n; ++i) {
        if (key[i].value > 0 && key[i].value > o->outlier_min * mean_diag) kept[key[i].index] = true;
    }
    for (int64_t j = 0; j < n; ++j) {
        if (!kept[j]) continue;
        p->span[p->n_span++] = (rq_span){(int32_t)pos, 1, -1 - p->n_outlier};
        p->outlier_col[p->n_outlier++] = (int32_t)j;
        p->perm[pos++] = (int32_t)j;
    }
    for (int64_t v = 0; v < n_vec; ++v) {
        key[v].value = 0;
        key[v].index = (int32_t)v;
        int64_t c0 = v * width, len = rq_min_i64(width, n - c0);
        for (int64_t j = c0; j < c0 + len && p->hdiag && o->act_order; ++j)
            key[v].value += kept[j] ? 0 : (double)p->hdiag[j] / (double)len;
    }
    qsort(key, (size_t)n_vec, sizeof *key, by_value_descending);
    for (int64_t i = 0; i < n_vec; ++i) {
        int64_t v = key[i].index, first = pos;
        for (int64_t j = v * width; j < rq_min_i64(n, (v + 1) * width); ++j) {
            if (!kept[j]) p->perm[pos++] = (int32_t)j;
        }
        if (pos > first) p->span[p->n_span++] = (rq_span){(int32_t)first, (int32_t)(pos - first), (int32_t)v};
    }
done:
    free(key);
    free(kept);
    return status;
}

typedef struct finite_job {
    const float *narrow; /* one of the two, [n_rows][n] */
    const double *wide;
    int64_t n;
    _Atomic int64_t bad;
} finite_job;

static void check_row(void *arg, int64_t r) {
    finite_job *job = arg;
    int64_t i = r * job->n;
    const int64_t end = i + job->n;
    while (i < end && (job->wide ? isfinite(job->wide[i]) : isfinite(job->narrow[i]))) ++i;
    int64_t first = job->bad;
    while (i < end && i < first && !atomic_compare_exchange_weak(&job->bad, &first, i)) {}
}

int64_t rq_first_not_finite(const float *narrow, const double *wide, int64_t n_rows, int64_t n) {
    finite_job job = {narrow, wide, n, n_rows * n};
    rq_parallel_for(n_rows, check_row, &job);
    return job.bad < n_rows * n ? job.bad : -1;
}

static rq_status check_finite(const double *a, int64_t n, const char *what, const char *label) {
    const int64_t i = rq_first_not_finite(NULL, a, n, n);
    if (i < 0) return RQ_OK;
    return rq_fail(
        RQ_ERR_NUMERIC,
        "%s: the %s matrix holds %g at row %lld, column %lld: the calibration activations overflowed or held NaN",
        label, what, a[i], (long long)(i / n), (long long)(i % n));
}

/* p->u, sweep order; climbs the damping ladder. hp is scratch [n][n] fp64 and ends as the damped matrix. */
static rq_status factor(rq_prep *p, const double *h, const rq_quant_opt *o, double mean_diag, double *hp,
                        const char *label) {
    rq_status status = RQ_OK;
    double damp = o->damp_frac * mean_diag;
    for (int step = 0;; ++step) {
        int64_t bad = 0;
        gather_arg a = {p, h, hp, 1.0 - o->shrink, damp, p->unit, p->span ? 0 : 1, false};
        if (step > LADDER_STEPS) {
            a.keep = 0;
            p->diagonal_only = true;
        }
        rq_parallel_for(p->n, gather_h_row, &a);
        status = rq_device_row(p->device)->factor(rq_device_own(p->device), p, hp, &bad);
        p->damp_used = damp;
        p->n_retries = step;
        if (status == RQ_OK) break;
        if (status != RQ_ERR_NUMERIC || p->diagonal_only) goto done;
        rq_log(RQ_LOG_WARN, "%s: Gram matrix is not positive definite (column %lld) at damping %.3g; trying %s", label,
               (long long)bad, damp, step < LADDER_STEPS ? "ten times more" : "its diagonal alone");
        if (step < LADDER_STEPS) damp *= 10;
    }
done:
    return status;
}

/* D in sweep order, for the terms of the device: p->t without rows of dead features; p->m with them, for W D is where the contribution
 * of features that are dead only in the quantized stream enters. */
static rq_status cross_terms(rq_prep *p, const double *d, bool needs_t, bool needs_m) {
    rq_status status = RQ_OK;
    const rq_device_ops *row = rq_device_row(p->device);
    void *own = rq_device_own(p->device);
    float *dp = NULL;
    RQ_TRY(RQ_NEW(dp, p->n * p->n));
    gather_arg a = {p, d, dp, 1, 0, p->unit, 1, true};
    if (needs_t) {
        rq_parallel_for(p->n, gather_d_row, &a);
        RQ_TRY(row->triangular_term(own, p, dp));
    }
    if (needs_m) {
        a.zero_dead_rows = false;
        rq_parallel_for(p->n, gather_d_row, &a);
        RQ_TRY(row->target_move(own, p, dp));
    }
done:
    free(dp);
    return status;
}

rq_status rq_prepare(rq_prep *p, const double *h, const double *d, int64_t n, const rq_quant_opt *o,
                     const char *label) {
    return rq_prepare_on(p, NULL, h, d, n, o, label);
}

rq_status rq_prepare_on(rq_prep *p, const rq_device *device, const double *h, const double *d, int64_t n,
                        const rq_quant_opt *o, const char *label) {
    rq_status status = RQ_OK;
    const rq_comp_row *row = rq_comp_get(o->comp);
    bool book = rq_round_is_book(o->round);
    bool refine = row->propagates && (o->cd_sweeps > 0 || o->refit > 0 || book);
    bool needs_h = rq_quant_wants_h(o);
    bool needs_t = row->propagates && (o->alpha != 0 || o->alpha2 != 0);
    bool needs_m = row->propagates && (o->rho != 0 || (refine && o->alpha != 0));
    double *hp = NULL;
    *p = (rq_prep){.n = n, .unit = 1, .device = device};
    RQ_TRY(rq_quant_check(o, n));
    if (needs_h && !h) RQ_FAIL(RQ_ERR_ARG, "%s: %s needs the Gram matrix H", label, row->name);
    if ((needs_t || needs_m) && !d) {
        RQ_FAIL(RQ_ERR_ARG, "%s: %s needs the cross Gram matrix dXXT beside H", label, row->name);
    }
    if (h) RQ_TRY(check_finite(h, n, "Gram", label));
    if (d) RQ_TRY(check_finite(d, n, "cross Gram", label));
    RQ_TRY(rq_backend_init());
    RQ_TRY(RQ_NEW(p->perm, n));
    RQ_TRY(RQ_NEW_ZERO(p->dead, n));
    double mean_diag = 0;
    if (h) {
        RQ_TRY(RQ_NEW(p->hdiag, n));
        for (int64_t j = 0; j < n; ++j) {
            double v = h[j * n + j];
            if (v < 0)
                RQ_FAIL(RQ_ERR_NUMERIC, "%s: the Gram matrix has %g on its diagonal at %lld", label, v, (long long)j);
            p->dead[j] = v == 0 && row->propagates; /* round to nearest touches no weight that it could keep */
            p->n_dead += p->dead[j];
            p->hdiag[j] = (float)(v == 0 && !book ? 1.0 : v);
            mean_diag += (book ? v : (double)p->hdiag[j]) / (double)n;
        }
    }
    if (book) {
        if (mean_diag > 0) p->unit = ldexp(1.0, -ilogb(mean_diag));
        if (!(mean_diag > 0)) mean_diag = 1;
        for (int64_t j = 0; h && j < n; ++j) p->hdiag[j] = (float)(p->unit * h[j * n + j]);
        RQ_TRY(spans(p, p->unit * mean_diag, o));
    } else {
        RQ_TRY(sweep_order(p, h, h && row->propagates && o->act_order));
    }
    if (h && o->clip == RQ_CLIP_OUTPUT) {
        RQ_TRY(RQ_NEW(p->h, n * n));
        narrow_job narrow = {p->h, h, NULL, n};
        rq_parallel_for(n, narrow_row, &narrow);
    }
    if (!row->propagates) goto done;

    RQ_TRY(RQ_NEW(hp, n * n));
    RQ_TRY(factor(p, h, o, mean_diag, hp, label));
    if (needs_t || needs_m) RQ_TRY(cross_terms(p, d, needs_t, needs_m));
    if (refine) {
        RQ_TRY(RQ_NEW(p->hd, n * n));
        bool stored_is_sweep = rq_groups_in_sweep_order(o, n) && o->act_order; /* never with a codebook */
        narrow_job narrow = {p->hd, hp, stored_is_sweep ? NULL : p->perm, n};
        rq_parallel_for(n, narrow_row, &narrow);
    }
done:
    free(hp);
    if (status == RQ_ERR_DEVICE || status == RQ_ERR_NOMEM) rq_fail_context(status, "%s", label);
    if (status != RQ_OK) rq_prep_free(p);
    return status;
}

void rq_prep_free(rq_prep *p) {
    if (p->on_device) rq_device_row(p->device)->forget(rq_device_own(p->device), p);
    free(p->perm);
    free(p->dead);
    free(p->hdiag);
    free(p->h);
    free(p->u);
    free(p->t);
    free(p->m);
    free(p->hd);
    free(p->span);
    free(p->outlier_col);
    *p = (rq_prep){0};
}
