/* SPDX-License-Identifier: Apache-2.0 */
/* What the inputs of matrices for 8-bit activations go through before they are quantized (docs/methods.md, "Full rotation" and "Column
 * factors"): Hadamard matrices at the inputs of o and down, and a factor for each column, the inverse of both in the weights.
 *
 * Factors come from the full-precision model in the basis that is quantized, c_j = max |x_j| over the calibration tokens:
 *
 *   smooth   1 / f_j = c_j^a / (max_i |W_ij|)^b         SmoothQuant (Xiao et al., 2023), a and b apart as in QServe (Lin et al., 2024)
 *   cross    1 / f_j = c_j^(1 - a)                       CrossQuant (arXiv:2410.07505): steps t^a c_j^(1-a) with t a token's largest
 *
 * both with a common factor so that the mean of log f is 0. */
#include <math.h>
#include <unistd.h>

#include "quantize.h"
#include "random.h"

/* ---- Hadamard matrices of --rotate full ------------------------------------------------------------------------------- */

enum { LEAST_ORDER = 16 };

static const char *round_of(const rq_matrix_plan *p) { return rq_round_name(p->opt.round); }

/* The largest order that divides n. */
static int64_t largest_order(int64_t n) {
    int64_t best = 0;
    for (int64_t parts = 1; parts <= n / LEAST_ORDER && !best; ++parts) {
        if (n % parts == 0 && rq_hadamard_usable(n / parts)) best = n / parts;
    }
    return best;
}

/* The order for o (at 0) or down (at 1). One that is not above the head's size gives o nothing: the rotation of v's heads, which is free,
 * mixes as much. */
static rq_status choose_order(const rq_quantizer *z, int at, int64_t n, int64_t *order) {
    const int asked = z->job->hadamard[at];
    const char *what = at ? "down" : "o";
    *order = asked < 0 ? 0 : asked ? asked : largest_order(n);
    if (asked > 0 && (n % asked || !rq_hadamard_usable(asked))) {
        return rq_fail(RQ_ERR_ARG,
                       "--hadamard %d: %s has %lld inputs; the order must divide them and be k * 2^p with a Hadamard "
                       "matrix of order k, k at most %d",
                       asked, what, (long long)n, RQ_ACT_MAX_CORE);
    }
    if (asked == 0 && *order == 0) {
        rq_log(RQ_LOG_WARN, "--rotate full: no Hadamard matrix of order %d or more divides the %lld inputs of %s",
               LEAST_ORDER, (long long)n, what);
    }
    if (!at && *order && *order <= z->model->cfg.head_dim) {
        rq_log(RQ_LOG_INFO,
               "--rotate full: heads of %lld are rotated as they are; o gets no Hadamard matrix of order %lld",
               (long long)z->model->cfg.head_dim, (long long)*order);
        *order = 0;
    }
    return RQ_OK;
}

static rq_status plan_hadamard(rq_quantizer *z) {
    rq_status status = RQ_OK;
    const rq_config *c = &z->model->cfg;
    for (int at = 0; at < 2; ++at) {
        const int which = at ? RQ_DOWN : RQ_O;
        int64_t order;
        RQ_TRY(choose_order(z, at, z->plan[which].n_in, &order));
        if (!order) continue;
        RQ_TRY(RQ_NEW(z->act_online[at], 2));
        RQ_TRY(rq_hadamard_make(z->act_online[at], order));
        RQ_TRY(rq_rotation_new(&z->online[at], order, 0, "plain"));
        for (int64_t layer = 0; layer < c->n_layer; ++layer) {
            rq_matrix_plan *p = &z->plan[layer * RQ_N_LINEARS + which];
            if (!p->quantized) continue;
            if (p->opt.round != RQ_ROUND_W4A8) {
                RQ_FAIL(RQ_ERR_ARG,
                        "--rotate full: %s is quantized by %s, and only --round w4a8 multiplies inputs by a Hadamard "
                        "matrix; "
                        "use --rotate residual",
                        p->name, round_of(p));
            }
            p->hadamard = (int)order;
        }
    }
done:
    return status;
}

static bool has_factors(const rq_quantize_job *job, int stage) {
    return job->factor_stages == 0 || job->factor_stages >> stage & 1;
}

rq_status rq_plan_inputs(rq_quantizer *z) {
    rq_status status = RQ_OK;
    const rq_quantize_job *job = z->job;
    const bool full = job->rotate && strcmp(job->rotate, "full") == 0, factors = job->factors != RQ_FACTORS_NONE;
    if (!full && (job->hadamard[0] || job->hadamard[1])) {
        RQ_FAIL(RQ_ERR_ARG, "--hadamard is the order of the matrices of --rotate full; the rotation is %s",
                job->rotate ? job->rotate : "none");
    }
    if ((full || factors) && job->bpw > 0) {
        RQ_FAIL(RQ_ERR_ARG, "--bpw %g does not go with %s: all matrices must be of w4a8, which has one size of codes",
                job->bpw, full ? "--rotate full" : "column factors");
    }
    if (full) RQ_TRY(plan_hadamard(z));
    for (int64_t i = 0; factors && i < z->model->cfg.n_layer * RQ_N_LINEARS; ++i) {
        rq_matrix_plan *p = &z->plan[i];
        if (p->quantized && p->opt.round != RQ_ROUND_W4A8) {
            RQ_FAIL(RQ_ERR_ARG, "--%s: %s is quantized by %s; column factors are for --round w4a8",
                    job->factors == RQ_FACTORS_SMOOTH ? "smooth" : "cross", p->name, round_of(p));
        }
        p->wants_in_scale = p->quantized && ((i % RQ_N_LINEARS == RQ_O && has_factors(job, 1)) ||
                                             (i % RQ_N_LINEARS == RQ_DOWN && has_factors(job, 3)));
    }
    if (factors && job->samples.n_samples == 0)
        RQ_FAIL(RQ_ERR_ARG, "column factors are measured on calibration text: give --calib FILE");
    if (factors && !(job->factor_a >= 0 && job->factor_a <= 1 && job->factor_b >= 0 && job->factor_b <= 1))
        RQ_FAIL(RQ_ERR_ARG, "--smooth and --cross: exponents %g and %g must be in 0..1", job->factor_a, job->factor_b);
done:
    return status;
}

double rq_input_sign(const rq_quantizer *z, int64_t layer, int which, int64_t i) {
    const rq_config *c = &z->model->cfg;
    const bool mlp = which == RQ_UP || which == RQ_DOWN;
    if (which != RQ_V && which != RQ_O && !mlp) return 1;
    if (!z->plan[layer * RQ_N_LINEARS + (mlp ? RQ_DOWN : RQ_O)].hadamard) return 1;
    if (which == RQ_O) { /* heads of a group are of the same rows of v */
        const int64_t head = i / c->head_dim / (c->n_head / c->n_kv_head);
        i = head * c->head_dim + i % c->head_dim;
    }
    return rq_random_u64(z->job->seed + (mlp ? 3 : 2), (uint64_t)layer << 32 | (uint64_t)i) >> 63 ? 1 : -1;
}

/* ---- applying --------------------------------------------------------------------------------------------------------- */

typedef struct input_job {
    const rq_input *how;
    int64_t width;
    float *x;
} input_job;

static void input_row(void *arg, int64_t t) {
    const input_job *j = arg;
    float *x = j->x + t * j->width;
    if (j->how->hadamard) rq_hadamard_apply(j->how->hadamard, x, j->width);
    for (int64_t i = 0; j->how->factors && i < j->width; ++i) x[i] *= j->how->factors[i];
}

void rq_input_apply(const rq_input *how, float *x, int64_t n_tok, int64_t width) {
    input_job j = {how, width, x};
    if (how->hadamard || how->factors) rq_parallel_for(n_tok, input_row, &j);
}

rq_input rq_input_of(const rq_quantizer *z, int64_t layer, int which) {
    const rq_matrix_plan *p = &z->plan[layer * RQ_N_LINEARS + which];
    return (rq_input){p->hadamard ? z->act_online[which == RQ_DOWN] : NULL, p->in_scale, false};
}

/* ---- column factors --------------------------------------------------------------------------------------------------- */

static int64_t stage_width(const rq_config *c, int stage) {
    return stage == 1 ? c->n_head * c->head_dim : stage == 3 ? c->d_ff : c->d_model;
}

static int64_t layer_width(const rq_config *c) {
    return stage_width(c, 0) + stage_width(c, 1) + stage_width(c, 2) + stage_width(c, 3);
}

static float *factors_at(const rq_config *c, float *all, int64_t layer, int stage) {
    int64_t at = layer * layer_width(c);
    for (int s = 0; s < stage; ++s) at += stage_width(c, s);
    return all + at;
}

const float *rq_stage_factors(const rq_quantizer *z, int64_t layer, int stage) {
    return z->factors ? factors_at(&z->model->cfg, z->factors, layer, stage) : NULL;
}

typedef struct measure {
    const rq_quantizer *z;
    float *factors;
    double *log_f; /* [widest stage] */
    float *weight; /* the same */
} measure;

/* max |W_ij| over the rows of all quantized matrices of a stage; 1 where the weights do not count. */
static void weight_max(const measure *g, int64_t layer, int stage, float *const *w) {
    const bool counts = g->z->job->factors == RQ_FACTORS_SMOOTH;
    const int64_t n = stage_width(&g->z->model->cfg, stage);
    for (int64_t j = 0; j < n; ++j) g->weight[j] = counts ? 0.0f : 1.0f;
    for (int m = rq_stage_first[stage]; m < rq_stage_first[stage + 1]; ++m) {
        const rq_matrix_plan *p = &g->z->plan[layer * RQ_N_LINEARS + m];
        for (int64_t i = 0; counts && p->quantized && i < p->n_out * n; ++i) {
            const float v = fabsf(w[m][i]);
            g->weight[i % n] = v > g->weight[i % n] ? v : g->weight[i % n];
        }
    }
}

/* Columns that are zero in the inputs, or (smooth) in the weights, have factor 1; others are kept within 1e-5 .. 1e5. */
static rq_status measure_stage(void *arg, int64_t layer, int stage, const rq_gathered *of, float *const *w) {
    measure *g = arg;
    const rq_quantize_job *job = g->z->job;
    const int64_t n = stage_width(&g->z->model->cfg, stage);
    float *f = factors_at(&g->z->model->cfg, g->factors, layer, stage);
    double mean = 0;
    int64_t alive = 0;
    weight_max(g, layer, stage, w);
    for (int64_t j = 0; j < n && has_factors(job, stage); ++j) {
        const double c = (double)of->max[j], most = (double)g->weight[j];
        g->log_f[j] = NAN;
        if (!isfinite(c)) {
            return rq_fail(RQ_ERR_NUMERIC, "block %lld: column %lld of the inputs of %s is not finite",
                           (long long)layer, (long long)j, rq_linear_suffix[rq_stage_first[stage]]);
        }
        if (!(c > 0) || !(most > 0)) continue;
        g->log_f[j] = job->factors == RQ_FACTORS_SMOOTH ? job->factor_b * log(most) - job->factor_a * log(c)
                                                        : -(1 - job->factor_a) * log(c);
        mean += g->log_f[j];
        ++alive;
    }
    for (int64_t j = 0; j < n; ++j) {
        const double v = alive ? g->log_f[j] - mean / (double)alive : NAN, most = log(1e5);
        f[j] = isnan(v) ? 1.0f : (float)exp(v < -most ? -most : v > most ? most : v);
    }
    return RQ_OK;
}

static rq_status load_factors(const rq_quantizer *z, float *factors, const char *path) {
    rq_status status = RQ_OK;
    const rq_config *c = &z->model->cfg;
    rq_store *s = NULL;
    RQ_TRY(rq_store_open(&s, path));
    const rq_tensor *t = rq_store_find(s, "factors");
    if (!t || t->rank != 2 || t->shape[0] != c->n_layer || t->shape[1] != layer_width(c))
        RQ_FAIL(RQ_ERR_INPUT, "%s is damaged; run without --resume", path);
    RQ_TRY(rq_tensor_f32(t, factors));
done:
    rq_store_close(s);
    return status;
}

/* The plan has factors only after the whole pass: it runs on the weights as they were. */
rq_status rq_plan_factors(rq_quantizer *z) {
    rq_status status = RQ_OK;
    const rq_config *c = &z->model->cfg;
    const int64_t widest = rq_max_i64(rq_max_i64(c->d_ff, c->d_model), c->n_head * c->head_dim);
    measure g = {.z = z};
    bool found;
    char *path = rq_path_join(z->work_dir, "factors.safetensors");
    if (z->job->factors == RQ_FACTORS_NONE) goto done;
    if (!path) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(RQ_NEW(g.factors, c->n_layer * layer_width(c)));
    RQ_TRY(RQ_NEW(g.log_f, widest));
    RQ_TRY(RQ_NEW(g.weight, widest));
    RQ_TRY(rq_ranks_file_from_first(z->job->ranks, path, &found));
    if (found) {
        RQ_TRY(load_factors(z, g.factors, path));
    } else {
        RQ_TRY(rq_calibrate_stages(z, RQ_GATHER_MAX, measure_stage, &g));
        rq_out_tensor t = {
            .name = "factors", .dtype = RQ_F32, .rank = 2, .fill = rq_fill_from_memory, .arg = g.factors};
        t.shape[0] = c->n_layer;
        t.shape[1] = layer_width(c);
        if (rq_rank(z->job->ranks) == 0) RQ_TRY(rq_safetensors_write(path, &t, 1, NULL, 0));
    }
    z->factors = g.factors;
    g.factors = NULL;
    for (int64_t i = 0; i < c->n_layer * RQ_N_LINEARS; ++i) {
        if (z->plan[i].wants_in_scale)
            z->plan[i].in_scale = rq_stage_factors(z, i / RQ_N_LINEARS, i % RQ_N_LINEARS == RQ_O ? 1 : 3);
    }
done:
    free(path);
    free(g.factors);
    free(g.log_f);
    free(g.weight);
    return status;
}

void rq_inputs_free(rq_quantizer *z) {
    for (int at = 0; at < 2; ++at) {
        rq_rotation_free(z->online[at]);
        free(z->act_online[at]);
    }
    free(z->factors);
}
