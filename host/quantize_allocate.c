/* SPDX-License-Identifier: Apache-2.0 */
/* --bpw: a setting for each matrix out of a bank. A first pass runs the full-precision model, quantizes every matrix with every setting
 * (without refinement and without the second stream: H alone) and measures its loss; allocate.h chooses; the plan gets the
 * choice, and the run goes on as without --bpw. Matrices that share a codebook are one unit and get one setting. Matrices
 * with options of their own (--override) keep them, and their bits count. */
#include <jansson.h>
#include <math.h>
#include <unistd.h>

#include "allocate.h"
#include "quantize.h"

typedef struct unit { /* matrices of one stage that get one setting */
    int64_t layer;
    int which[RQ_N_LINEARS], n;
} unit;

typedef struct measure {
    rq_quantizer *z;
    const char *setting[RQ_BANK_MAX];
    int n_setting;
    unit *units;
    int64_t n_unit;
    int64_t *bits; /* [n_unit][n_setting] */
    double *loss;
    double *weight; /* [n_unit] of the losses */
    int *choice;    /* [n_unit] */
    int64_t next;   /* the first unit that is not measured yet */
} measure;

static const char *const loss_name[] = {"residual", "relative", "absolute"};

bool rq_bpw_loss_by_name(const char *name, rq_bpw_loss *l) {
    for (int i = 0; i < 3; ++i) {
        if (strcmp(name, loss_name[i]) == 0) {
            *l = (rq_bpw_loss)i;
            return true;
        }
    }
    return false;
}

const char *rq_bpw_loss_name(rq_bpw_loss l) { return loss_name[l]; }

const char *rq_bank_setting(const rq_quantize_job *job, int i) {
    static const char *const grid[] = {"bits=2", "bits=3", "bits=4", "bits=8"};
    static const char *const ssvq[] = {"vec-len=8,codes=64", "vec-len=8,codes=256", "vec-len=4,codes=64",
                                       "vec-len=4,codes=256", "vec-len=4,codes=1024"};
    static const char *const vq[] = {
        "codes=64", "codes=256", "codes=1024", "codes=256,codes2=16", "codes=256,codes2=64", "codes=256,codes2=256"};
#define OWN(bank) (i < (int)(sizeof(bank) / sizeof *(bank)) ? (bank)[i] : NULL)
    if (job->n_bank > 0) return i < job->n_bank ? job->bank[i] : NULL;
    if (job->opt.round == RQ_ROUND_SSVQ) return OWN(ssvq);
    return job->opt.round == RQ_ROUND_VQ ? OWN(vq) : OWN(grid);
#undef OWN
}

static rq_matrix_plan *plan_of(const measure *g, const unit *u, int i) {
    return &g->z->plan[u->layer * RQ_N_LINEARS + u->which[i]];
}

/* The options of a matrix under a setting; *ok is false when they do not suit it. */
static rq_status options_of(const measure *g, const rq_matrix_plan *p, int s, rq_quant_opt *o, bool *ok) {
    *o = p->opt;
    *ok = true;
    if (p->pinned) return RQ_OK;
    rq_status status = rq_quant_set_all(o, g->setting[s]);
    if (status != RQ_OK) return rq_fail_context(status, "--bank '%s'", g->setting[s]);
    *ok = rq_quant_check(o, p->n_in) == RQ_OK;
    return RQ_OK;
}

/* Units in the order of the stages. A matrix is one by itself, unless it could share a codebook with others. */
static rq_status make_units(measure *g) {
    rq_status status = RQ_OK;
    const int64_t n_layer = g->z->model->cfg.n_layer;
    bool shares = false;
    for (; rq_bank_setting(g->z->job, g->n_setting); ++g->n_setting) {
        rq_quant_opt o = g->z->job->opt;
        const char *text = rq_bank_setting(g->z->job, g->n_setting);
        if (g->n_setting == RQ_BANK_MAX) RQ_FAIL(RQ_ERR_ARG, "a bank has at most %d settings", RQ_BANK_MAX);
        status = rq_quant_set_all(&o, text);
        if (status == RQ_OK) status = rq_quant_check(&o, 0);
        if (status != RQ_OK) {
            rq_fail_context(status, "--bank '%s'", text);
            goto done;
        }
        shares |= rq_round_is_book(o.round) && o.share_books;
        g->setting[g->n_setting] = text;
    }
    RQ_TRY(RQ_NEW_ZERO(g->units, n_layer * RQ_N_LINEARS));
    for (int64_t layer = 0; layer < n_layer; ++layer) {
        for (int st = 0; st < RQ_N_STAGES; ++st) {
            unit *common = NULL;
            for (int m = rq_stage_first[st]; m < rq_stage_first[st + 1]; ++m) {
                const rq_matrix_plan *p = &g->z->plan[layer * RQ_N_LINEARS + m];
                if (!p->quantized) continue;
                unit *u = shares && !p->pinned && common ? common : &g->units[g->n_unit++];
                u->layer = layer;
                u->which[u->n++] = m;
                if (!p->pinned) common = u;
            }
        }
    }
    RQ_TRY(RQ_NEW(g->bits, g->n_unit * g->n_setting));
    RQ_TRY(RQ_NEW(g->loss, g->n_unit * g->n_setting));
    RQ_TRY(RQ_NEW(g->choice, g->n_unit));
    RQ_TRY(RQ_NEW(g->weight, g->n_unit));
    for (int64_t i = 0; i < g->n_unit; ++i) g->weight[i] = 1;
    for (int64_t i = 0; i < g->n_unit * g->n_setting; ++i) g->loss[i] = INFINITY, g->bits[i] = 0;
done:
    return status;
}

/* Whether a matrix's loss is taken as it is, or over tr(W H W^T). */
static bool is_absolute(const measure *g, int which) {
    rq_bpw_loss how = g->z->job->bpw_loss;
    return how == RQ_BPW_ABSOLUTE || (how == RQ_BPW_RESIDUAL && (which == RQ_O || which == RQ_DOWN));
}

/* What an output relative to its size is worth to the residual stream: what the matrix at the end of its branch, o or down, adds
 * to the stream relative to it. `of` is that of `stage`, 1 or 3; the matrices of the stage before belong to the same branch. */
static rq_status weigh_branch(measure *g, int64_t layer, int stage, const rq_gathered *of, float *const *w) {
    rq_status status = RQ_OK;
    const int end = stage == 1 ? RQ_O : RQ_DOWN;
    const rq_matrix_plan *p = &g->z->plan[layer * RQ_N_LINEARS + end];
    rq_loss l;
    RQ_TRY(of->row->loss(of->run, &l, &(rq_loss_of){w[end], w[end], p->n_out}, 1, p->n_in, of->h, NULL));
    for (int64_t i = 0; i < g->n_unit; ++i) {
        const unit *u = &g->units[i];
        if (u->layer == layer && u->which[0] >= rq_stage_first[stage - 1] && u->which[0] < rq_stage_first[stage]) {
            g->weight[i] = l.whw > 0 ? l.whw : 0;
        }
    }
done:
    return status;
}

/* Bits and loss of one unit under one setting; prep belongs to the setting's options. */
static rq_status measure_unit(measure *g, int64_t i, int s, const rq_quant_opt *o, const rq_prep *prep,
                              const rq_gathered *of, float *const *w) {
    rq_status status = RQ_OK;
    const unit *u = &g->units[i];
    rq_quant_matrix m[RQ_N_LINEARS];
    rq_quant_result r[RQ_N_LINEARS] = {0};
    rq_loss_of made[RQ_N_LINEARS];
    rq_loss l[RQ_N_LINEARS];
    double loss = 0;
    for (int k = 0; k < u->n; ++k) {
        const rq_matrix_plan *p = plan_of(g, u, k);
        m[k] = (rq_quant_matrix){p->name, w[u->which[k]], p->n_out};
    }
    RQ_TRY(rq_quantize_set(r, m, u->n, prep, o));
    for (int k = 0; k < u->n; ++k) made[k] = (rq_loss_of){m[k].w, r[k].q, m[k].n_out};
    RQ_TRY(of->row->loss(of->run, l, made, u->n, prep->n, of->h, NULL));
    for (int k = 0; k < u->n; ++k) {
        const double sym = l[k].sym > 0 ? l[k].sym : 0;
        loss += is_absolute(g, u->which[k]) ? sym : l[k].whw > 0 ? sym / l[k].whw : 0;
    }
    g->loss[i * g->n_setting + s] = loss;
done:
    for (int k = 0; k < u->n; ++k) rq_quant_result_free(&r[k]);
    return status;
}

/* prep: NULL for pinned matrices. Outlier columns are as many as these statistics ask for; the final run's may ask for some more
 * or fewer. */
static void count_bits(measure *g, int64_t i, int s, const rq_quant_opt *o, const rq_prep *prep) {
    const unit *u = &g->units[i];
    double bits = 0;
    for (int k = 0; k < u->n; ++k) {
        rq_matrix_plan p = *plan_of(g, u, k);
        int n_set = p.pinned ? g->z->plan[u->layer * RQ_N_LINEARS + p.lead].n_set : u->n;
        p.opt = *o;
        if (prep) p.opt.outliers = prep->n_outlier;
        bits += rq_plan_bits(&p, rq_round_is_book(o->round) && o->share_books ? n_set : 1);
    }
    g->bits[i * g->n_setting + s] = (int64_t)ceil(bits);
}

/* All units of a stage under all settings. */
static rq_status measure_stage(void *arg, int64_t layer, int stage, const rq_gathered *of, float *const *w) {
    measure *g = arg;
    rq_status status = RQ_OK;
    rq_prep prep = {0};
    int64_t first = g->next;
    if (g->z->job->bpw_loss == RQ_BPW_RESIDUAL && stage % 2 == 1) RQ_TRY(weigh_branch(g, layer, stage, of, w));
    while (g->next < g->n_unit && g->units[g->next].layer == layer &&
           g->units[g->next].which[0] < rq_stage_first[stage + 1]) {
        ++g->next;
    }
    for (int s = 0; s < g->n_setting; ++s) {
        bool prepared = false;
        for (int64_t i = first; i < g->next; ++i) {
            const rq_matrix_plan *p = plan_of(g, &g->units[i], 0);
            rq_quant_opt o;
            bool ok;
            RQ_TRY(options_of(g, p, s, &o, &ok));
            if (!ok || (p->pinned && s > 0)) continue;
            if (p->pinned) { /* its loss is the same whatever the others get */
                count_bits(g, i, s, &o, NULL);
                g->loss[i * g->n_setting] = 0;
                continue;
            }
            o.alpha = o.alpha2 = o.rho = 0;
            o.cd_sweeps = o.refit = o.sign_steps = 0;
            if (!prepared) {
                rq_prep_free(&prep);
                RQ_TRY(rq_prepare_on(&prep, g->z->device, of->h, NULL, p->n_in, &o, p->name));
                prepared = true;
            }
            count_bits(g, i, s, &o, &prep);
            RQ_TRY(measure_unit(g, i, s, &o, &prep, of, w));
            char text[160];
            snprintf(text, sizeof text, "measuring %s: %s", g->setting[s], p->name);
            double n = (double)p->n_in, flops = 0;
            for (int k = 0; k < g->units[i].n; ++k) flops += 4.0 * (double)plan_of(g, &g->units[i], k)->n_out * n * n;
            bool stop = rq_quantizer_progress(g->z, flops, text);
            RQ_TRY(rq_ranks_any(g->z->job->ranks, &stop));
            if (stop) {
                RQ_FAIL(RQ_ERR_CANCELLED, "stopped while measuring %s; nothing is kept of that", p->name);
            }
        }
    }
done:
    rq_prep_free(&prep);
    return status;
}

/* ---- the choice, and its record ---- */

static json_t *to_json(const measure *g, const rq_allocation *r) {
    const rq_quantize_job *job = g->z->job;
    json_t *j = json_pack("{s:f, s:s, s:I, s:f, s:f, s:b, s:f, s:[], s:[]}", "target_bpw", job->bpw, "compared",
                          rq_bpw_loss_name(job->bpw_loss), "bits", (json_int_t)r->bits, "loss", r->loss, "bound",
                          r->bound, "exact", r->exact, "lambda", r->lambda, "settings", "units");
    for (int s = 0; j && s < g->n_setting; ++s) {
        json_array_append_new(json_object_get(j, "settings"), json_string(g->setting[s]));
    }
    for (int64_t i = 0; j && i < g->n_unit; ++i) {
        json_t *names = json_array(), *bits = json_array(), *loss = json_array();
        for (int k = 0; k < g->units[i].n; ++k) {
            json_array_append_new(names, json_string(plan_of(g, &g->units[i], k)->name));
        }
        for (int s = 0; s < g->n_setting; ++s) {
            double l = g->loss[i * g->n_setting + s];
            json_array_append_new(bits, json_integer(g->bits[i * g->n_setting + s]));
            json_array_append_new(loss, isfinite(l) ? json_real(l) : json_null());
        }
        bool pinned = plan_of(g, &g->units[i], 0)->pinned;
        json_array_append_new(json_object_get(j, "units"),
                              json_pack("{s:o, s:i, s:b, s:f, s:o, s:o}", "names", names, "setting", g->choice[i],
                                        "pinned", pinned, "weight", g->weight[i], "bits", bits, "loss", loss));
    }
    return j;
}

static rq_status measure_and_choose(measure *g, const char *path) {
    rq_status status = RQ_OK;
    rq_quantizer *z = g->z;
    rq_allocation r;
    json_t *j = NULL;
    double weights = 0;
    for (int64_t i = 0; i < z->model->cfg.n_layer * RQ_N_LINEARS; ++i) {
        if (z->plan[i].quantized) weights += (double)z->plan[i].n_out * (double)z->plan[i].n_in;
    }
    const rq_gather what = z->job->bpw_loss == RQ_BPW_RESIDUAL ? RQ_GATHER_GRAM_PER_RESIDUAL : RQ_GATHER_GRAM;
    RQ_TRY(rq_calibrate_stages(z, what, measure_stage, g));
    rq_bank bank = {
        .n_matrix = g->n_unit, .n_setting = g->n_setting, .bits = g->bits, .loss = g->loss, .weight = g->weight};
    status = rq_allocate(g->choice, &r, &bank, (int64_t)(z->job->bpw * weights), 0);
    if (status != RQ_OK) {
        rq_fail_context(status, "--bpw %g of %.0f weights", z->job->bpw, weights);
        goto done;
    }
    rq_log(RQ_LOG_INFO, "allocation: %.4f bits a weight of %.4f, loss %.6g%s", (double)r.bits / weights, z->job->bpw,
           r.loss, r.exact ? ", the least possible" : "");
    j = to_json(g, &r);
    z->allocation = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    if (!z->allocation) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (rq_rank(z->job->ranks) == 0) RQ_TRY(rq_write_file(path, z->allocation, (int64_t)strlen(z->allocation)));
done:
    json_decref(j);
    return status;
}

/* The choice of an interrupted run. */
static rq_status load_choice(measure *g, const char *path) {
    rq_status status = RQ_OK;
    int64_t n;
    json_error_t where;
    json_t *j = NULL;
    RQ_TRY(rq_read_file(path, 1 << 28, &g->z->allocation, &n));
    j = json_loads(g->z->allocation, 0, &where);
    const json_t *units = json_object_get(j, "units");
    if ((int64_t)json_array_size(units) != g->n_unit) RQ_FAIL(RQ_ERR_INPUT, "%s is damaged", path);
    for (int64_t i = 0; i < g->n_unit; ++i) {
        const json_t *s = json_object_get(json_array_get(units, (size_t)i), "setting");
        if (!json_is_integer(s) || json_integer_value(s) < 0 || json_integer_value(s) >= g->n_setting) {
            RQ_FAIL(RQ_ERR_INPUT, "%s is damaged", path);
        }
        g->choice[i] = (int)json_integer_value(s);
    }
done:
    json_decref(j);
    return status;
}

rq_status rq_plan_allocate(rq_quantizer *z) {
    rq_status status = RQ_OK;
    measure g = {.z = z};
    bool found;
    char *path = rq_path_join(z->work_dir, "allocation.json");
    if (!path) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(make_units(&g));
    RQ_TRY(rq_ranks_file_from_first(z->job->ranks, path, &found));
    if (found) {
        RQ_TRY(load_choice(&g, path));
    } else {
        RQ_TRY(measure_and_choose(&g, path));
    }
    for (int64_t i = 0; i < g.n_unit; ++i) {
        for (int k = 0; k < g.units[i].n; ++k) {
            rq_matrix_plan *p = plan_of(&g, &g.units[i], k);
            rq_quant_opt o;
            bool ok;
            RQ_TRY(options_of(&g, p, g.choice[i], &o, &ok));
            p->opt = o;
        }
    }
    rq_plan_make_sets(z);
done:
    free(path);
    free(g.units);
    free(g.bits);
    free(g.loss);
    free(g.weight);
    free(g.choice);
    return status;
}
