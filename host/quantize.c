/* SPDX-License-Identifier: Apache-2.0 */
/* The quantizer's frame: plan, checks, memory and time estimates, fingerprint, the folder of finished matrices, resume. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <errno.h>
#include <pcre2.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "backend.h"
#include "device.h"
#include "device_plan.h"
#include "folder.h"
#include "quantize.h"
#include "quantize_cost.h"

/* ---- plan ---- */

static rq_status compile(pcre2_code **re, const char *pattern, size_t n) {
    int error;
    PCRE2_SIZE at;
    *re = pcre2_compile((PCRE2_SPTR)pattern, n, PCRE2_UTF, &error, &at, NULL);
    if (*re) return RQ_OK;
    PCRE2_UCHAR text[128] = "";
    pcre2_get_error_message(error, text, sizeof text);
    return rq_fail(RQ_ERR_ARG, "regular expression '%.*s': %s at %zu", (int)n, pattern, (const char *)text, (size_t)at);
}

static bool matches(const pcre2_code *re, const char *name) {
    pcre2_match_data *m = pcre2_match_data_create_from_pattern(re, NULL);
    int n = m ? pcre2_match(re, (PCRE2_SPTR)name, strlen(name), 0, 0, m, NULL) : -1;
    pcre2_match_data_free(m);
    return n > 0;
}

/* Which rules of a list match name: the first, or -1. */
static rq_status first_match(const char *const *rules, int n, bool has_settings, const char *name, int *which) {
    *which = -1;
    for (int i = 0; i < n && *which < 0; ++i) {
        const char *colon = has_settings ? strrchr(rules[i], ':') : rules[i] + strlen(rules[i]);
        if (!colon) return rq_fail(RQ_ERR_ARG, "--override '%s': REGEX:key=value is wanted", rules[i]);
        pcre2_code *re;
        rq_status status = compile(&re, rules[i], (size_t)(colon - rules[i]));
        if (status != RQ_OK) return status;
        if (matches(re, name)) *which = i;
        pcre2_code_free(re);
    }
    return RQ_OK;
}

const int rq_stage_first[RQ_N_STAGES + 1] = {RQ_Q, RQ_O, RQ_GATE, RQ_DOWN, RQ_N_LINEARS};

static bool on_cpu(const rq_quantizer *z) { return !z->job->device || strcmp(z->job->device, "cpu") == 0; }

/* Matrices with one input and the same options are a set where they share their codebooks; and those of a grid, where a GPU sweeps them as
 * one stack of rows. Others are sets of their own. Nothing here depends on the number of ranks, nor do the results. */
void rq_plan_make_sets(rq_quantizer *z) {
    const int64_t most = on_cpu(z) ? 0 : RQ_CUDA_STACK_ROWS;
    for (int64_t layer = 0; layer < z->model->cfg.n_layer; ++layer) {
        rq_matrix_plan *p = &z->plan[layer * RQ_N_LINEARS];
        int64_t rows[RQ_N_LINEARS] = {0}; /* of the set */
        for (int m = 0; m < RQ_N_LINEARS; ++m) p[m].n_set = 0;
        for (int st = 0; st < RQ_N_STAGES; ++st) {
            for (int m = rq_stage_first[st]; m < rq_stage_first[st + 1]; ++m) {
                p[m].lead = m;
                for (int k = rq_stage_first[st]; k < m && p[m].lead == m; ++k) {
                    const bool fits =
                        rq_round_is_book(p[m].opt.round) ? p[m].opt.share_books : rows[k] + p[m].n_out <= most;
                    if (p[k].lead == k && p[k].quantized && p[m].quantized && fits &&
                        rq_quant_same(&p[k].opt, &p[m].opt))
                        p[m].lead = k;
                }
                ++p[p[m].lead].n_set;
                rows[p[m].lead] += p[m].n_out;
            }
        }
    }
}

static rq_status make_plan(rq_quantizer *z) {
    rq_status status = RQ_OK;
    const rq_quantize_job *job = z->job;
    const rq_model *m = z->model;
    RQ_TRY(RQ_NEW_ZERO(z->plan, m->cfg.n_layer * RQ_N_LINEARS));
    for (int64_t i = 0; i < m->cfg.n_layer * RQ_N_LINEARS; ++i) {
        rq_matrix_plan *p = &z->plan[i];
        const rq_linear *l = &m->block[i / RQ_N_LINEARS].lin[i % RQ_N_LINEARS];
        int rule;
        snprintf(p->name, sizeof p->name, "model.layers.%lld.%s", (long long)(i / RQ_N_LINEARS),
                 rq_linear_suffix[i % RQ_N_LINEARS]);
        p->n_out = l->n_out;
        p->n_in = l->n_in;
        p->opt = job->opt;
        if (l->packed) RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s is packed already: quantize starts from a dense model", p->name);
        RQ_TRY(first_match(job->skip, job->n_skip, false, p->name, &rule));
        p->quantized = rule < 0;
        RQ_TRY(first_match(job->override_rules, job->n_override_rules, true, p->name, &rule));
        p->pinned = rule >= 0;
        if (rule >= 0) RQ_TRY(rq_quant_set_all(&p->opt, strrchr(job->override_rules[rule], ':') + 1));
        if (!p->quantized) continue;
        status = rq_quant_check(&p->opt, p->n_in);
        if (status != RQ_OK) {
            rq_fail_context(status, "%s", p->name);
            goto done;
        }
        if (l->tensor) RQ_TRY(rq_tensor_check_finite(l->tensor));
    }
    rq_plan_make_sets(z);
done:
    return status;
}

bool rq_plan_needs_calibration(const rq_quantizer *z) {
    for (int64_t i = 0; i < z->model->cfg.n_layer * RQ_N_LINEARS; ++i) {
        if (z->plan[i].quantized && rq_quant_wants_h(&z->plan[i].opt)) return true;
    }
    return false;
}

/* ---- what it will cost ---- */

double rq_plan_bits(const rq_matrix_plan *p, int n_set) {
    const rq_quant_opt *o = &p->opt;
    int64_t group = o->group ? o->group : p->n_in, n_group = rq_ceil_div(p->n_in, group);
    double scales = (double)(p->n_out * n_group) * (o->scale_dtype == RQ_F32 ? 32 : 16);
    if (o->round == RQ_ROUND_W4A8) {
        return 32.0 * (double)(p->n_out * (rq_w4a8_row_words(p->n_in) + 1)) + 128 +
               (p->wants_in_scale ? 32.0 * (double)p->n_in : 0) +
               (o->group ? 16.0 * (double)(p->n_out * n_group)
                : o->sym ? 0
                         : 8.0 * (double)p->n_out);
    }
    if (!rq_round_is_book(o->round)) {
        return 32.0 * (double)(p->n_out * rq_grid_row_words(p->n_in, o->bits)) + scales +
               (o->sym ? 0 : 32.0 * (double)(rq_ceil_div(p->n_out * o->bits, 32) * n_group)) +
               (rq_groups_in_sweep_order(o, p->n_in) && o->act_order ? 32.0 * (double)p->n_in : 0) + 128;
    }
    int64_t codes[2] = {o->codes, o->codes2}, books = o->book_cols ? rq_ceil_div(p->n_in, o->book_cols) : 1;
    int64_t lines = o->vec_out ? rq_ceil_div(p->n_out, o->vec_len) : p->n_out;
    double bits = (o->vec_out ? 32.0 * (double)p->n_in : scales) + 128,
           book = 0; /* a scale and a bias a column, or rows' */
    for (int s = 0; s < 2 && codes[s]; ++s) {
        int code_bits = 4;
        while (1 << code_bits < codes[s]) ++code_bits;
        bits += 32.0 * (double)(lines * rq_ssvq_code_words(p->n_in, o->vec_out ? 1 : o->vec_len, code_bits));
        book += (double)(books * codes[s] * o->vec_len) * (o->book_dtype == RQ_BOOK_U8 ? 8 : 16);
    }
    if (o->book_order == RQ_BOOK_HDIAG) book += 8.0 * (double)p->n_in;
    if (o->round == RQ_ROUND_SSVQ) bits += 32.0 * (double)(p->n_out * rq_ssvq_sign_words(p->n_in, o->vec_len));
    if (o->book_dtype == RQ_BOOK_U8) book += 32.0 * (double)books;
    return bits + book / n_set + (double)o->outliers * (8.0 * (double)p->n_out + 64);
}

double rq_plan_flops(const rq_matrix_plan *p) {
    const double square = (double)p->n_out * (double)p->n_in * (double)p->n_in;
    return (4.0 + (p->opt.clip == RQ_CLIP_OUTPUT ? 2.0 * p->opt.clip_steps : 0)) * square;
}

/* Work on the matrices of all blocks by the rank that has most of it, sets being dealt out as quantize_sets does. */
static double busiest_flops(const rq_quantizer *z, int n_ranks) {
    double total = 0;
    for (int64_t layer = 0; layer < z->model->cfg.n_layer; ++layer) {
        for (int st = 0; st < RQ_N_STAGES; ++st) {
            double round = 0;
            int n_sets = 0;
            for (int lead = rq_stage_first[st]; lead < rq_stage_first[st + 1]; ++lead) {
                const rq_matrix_plan *p = &z->plan[layer * RQ_N_LINEARS];
                double set = 0;
                for (int m = lead; m < rq_stage_first[st + 1]; ++m) {
                    if (p[m].quantized && p[m].lead == lead) set += rq_plan_flops(&p[m]);
                }
                if (set == 0) continue;
                if (on_cpu(z) && !rq_round_is_book(p[lead].opt.round)) { /* ranks share its rows */
                    total += set / n_ranks;
                    continue;
                }
                if (n_sets++ % n_ranks == 0) { /* a round ends when its longest set does */
                    total += round;
                    round = 0;
                }
                round = set > round ? set : round;
            }
            total += round;
        }
    }
    return total;
}

static void estimate(const rq_quantizer *z, rq_quantize_report *r) {
    const rq_config *c = &z->model->cfg;
    const rq_quantize_job *job = z->job;
    int64_t qd = c->n_head * c->head_dim, kd = c->n_kv_head * c->head_dim;
    int64_t widest = rq_max_i64(rq_max_i64(c->d_model, c->d_ff), qd), block_weights = 0, tallest = 0,
            of_set[RQ_N_LINEARS] = {0};
    double tokens = (double)(job->samples.n_samples * job->samples.seq_len), bits = 0;
    bool cross = false, refine = false, output = false;
    r->n_ranks = job->dry_run && job->dry_ranks ? job->dry_ranks : rq_n_ranks(job->ranks);
    for (int64_t i = 0; i < c->n_layer * RQ_N_LINEARS; ++i) {
        const rq_matrix_plan *p = &z->plan[i];
        int64_t n = p->n_out * p->n_in;
        if (i < RQ_N_LINEARS) block_weights += n;
        if (i % RQ_N_LINEARS == 0) memset(of_set, 0, sizeof of_set);
        of_set[p->lead] += n;
        tallest = rq_max_i64(tallest, rq_round_is_book(p->opt.round) ? 3 * n : of_set[p->lead]); /* a set is stacked */
        if (!p->quantized) continue;
        ++r->n_matrices;
        r->n_weights += n;
        cross |= rq_quant_wants_cross(&p->opt);
        refine |= p->opt.cd_sweeps > 0 || p->opt.refit > 0;
        output |= p->opt.clip == RQ_CLIP_OUTPUT;
        bits += rq_plan_bits(p, z->plan[i / RQ_N_LINEARS * RQ_N_LINEARS + p->lead].n_set);
        r->flops += rq_plan_flops(p);
    }
    r->bpw = r->n_weights ? bits / (double)r->n_weights : 0;
    if (job->bpw > 0) { /* the plan's own settings are only the start */
        int n_bank = 0;
        while (rq_bank_setting(job, n_bank)) ++n_bank;
        r->flops *= 1 + n_bank;
        r->flops_rank = (double)n_bank * r->flops / (1 + n_bank); /* every rank measures all settings */
        r->bpw = job->bpw;
    }
    r->flops_rank += busiest_flops(z, r->n_ranks);
    bool forward = rq_plan_needs_calibration(z);
    for (int stage = 0; (forward || job->factors != RQ_FACTORS_NONE) && stage <= 4; ++stage) {
        double width = stage == 1 ? (double)qd : stage == 3 ? (double)c->d_ff : (double)c->d_model;
        const int passes = (!forward ? 0 : cross ? 2 : 1) + (job->factors != RQ_FACTORS_NONE);
        double per_token = rq_stage_flops(c, stage, job->samples.seq_len) * passes;
        if (forward && stage < 4) per_token += width * width * (cross ? 3 : 1);
        double stage_flops = per_token * tokens * (double)(stage == 4 ? c->n_layer - 1 : c->n_layer);
        r->flops += stage_flops;
        r->flops_rank += stage_flops / r->n_ranks;
    }
    /* Two streams of one block in fp32, Gram matrices in fp64, factors and terms in fp32 (and one fp64 scratch), one chunk of
     * activations, the sweep's copies of the largest matrix. */
    int64_t chunk = rq_max_i64(job->samples.seq_len, 2048);
    r->ram_bytes = 8 * block_weights + 8 * widest * widest * (cross ? 2 : 1) +
                   widest * widest * (16 + 4 * (cross ? 4 : 1) + (refine ? 4 : 0) + (output ? 4 : 0)) +
                   4 * chunk * (3 * c->d_model + 2 * qd + 2 * kd + 2 * c->d_ff + 3 * widest) + 24 * tallest +
                   (64LL << 20);
    r->spill_bytes = (int64_t)(tokens * 4) * (c->d_model + qd + c->d_ff) * (cross ? 2 : 1);
}

/* --devices: a rank each. */
static rq_status estimate_on_devices(const rq_quantizer *z, const rq_device_list *list, rq_quantize_report *r) {
    rq_status status = RQ_OK;
    rq_rates rates = {0};
    RQ_TRY(rq_rates_of(&rates, list, z->job->rates));
    RQ_TRY(rq_quantize_cost(&r->cost, z, &rates, list));
    memcpy(r->cost.device, list->name, sizeof r->cost.device);
    r->cost.device_room = list->memory;
    r->cost.host_bytes = (double)r->ram_bytes * list->n;
done:
    return status;
}

/* ---- progress ---- */

bool rq_quantizer_progress(rq_quantizer *z, double flops, const char *text) {
    z->flops_done += flops;
    double done = z->flops_total > 0 ? z->flops_done / z->flops_total : 0;
    return z->job->progress && z->job->progress(z->job->user, done < 0.999 ? done : 0.999, text);
}

/* ---- fingerprint and work folder ---- */

typedef struct hash_arg {
    const rq_store *store;
    XXH64_hash_t *hash;
} hash_arg;

static void hash_tensor(void *arg, int64_t i) {
    hash_arg *a = arg;
    const rq_tensor *t = rq_store_at(a->store, i);
    a->hash[i] = XXH3_64bits_withSeed(t->data, (size_t)t->n_bytes, XXH3_64bits(t->name, strlen(t->name)));
}

/* Weights, calibration ids and options in one number: a resumed run must have the same. */
static rq_status fingerprint(const rq_quantizer *z, char text[40]) {
    rq_status status = RQ_OK;
    const rq_quantize_job *job = z->job;
    int64_t n = rq_store_count(z->model->store);
    hash_arg a = {z->model->store, NULL};
    XXH3_state_t *state = XXH3_createState();
    if (!state) return rq_fail(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(RQ_NEW(a.hash, n));
    rq_parallel_for(n, hash_tensor, &a);
    XXH3_128bits_reset(state);
    XXH3_128bits_update(state, RQ_VERSION, sizeof RQ_VERSION);
    XXH3_128bits_update(state, a.hash, (size_t)n * sizeof *a.hash);
    XXH3_128bits_update(state, job->samples.ids,
                        (size_t)(job->samples.n_samples * job->samples.seq_len) * sizeof(int32_t));
    char line[256];
    for (int64_t i = 0; i < z->model->cfg.n_layer * RQ_N_LINEARS; ++i) {
        const rq_matrix_plan *p = &z->plan[i];
        for (int k = 0; rq_quant_key_at(k); ++k) {
            char value[64];
            rq_quant_get(&p->opt, rq_quant_key_at(k)->key, value, sizeof value);
            int used = snprintf(line, sizeof line, "%s/%d/%s", p->name, p->quantized, value);
            XXH3_128bits_update(state, line, (size_t)used);
        }
    }
    int used =
        snprintf(line, sizeof line, "%lld/%lld/%lld/%s/%llu/%s/%.17g", (long long)job->samples.n_samples,
                 (long long)job->samples.seq_len, (long long)job->skip_tokens, job->rotate ? job->rotate : "none",
                 (unsigned long long)job->seed, rq_token_weights_name(job->token_weights), job->token_min);
    XXH3_128bits_update(state, line, (size_t)used);
    used =
        snprintf(line, sizeof line, "%.17g/%d/%d/%d/%d/%.17g/%.17g/%u", job->bpw, (int)job->bpw_loss, job->hadamard[0],
                 job->hadamard[1], (int)job->factors, job->factor_a, job->factor_b, job->factor_stages);
    XXH3_128bits_update(state, line, (size_t)used);
    for (int i = 0; job->bpw > 0 && rq_bank_setting(job, i); ++i) {
        XXH3_128bits_update(state, rq_bank_setting(job, i), strlen(rq_bank_setting(job, i)) + 1);
    }
    if (job->bf16) XXH3_128bits_update(state, "bf16", 4);
    /* Another device's codes may differ where a weight lies on an edge. */
    if (z->device && z->device->ops != &rq_device_cpu)
        XXH3_128bits_update(state, z->device->ops->name, strlen(z->device->ops->name));
    XXH128_hash_t h = XXH3_128bits_digest(state);
    snprintf(text, 40, "%016llx%016llx\n", (unsigned long long)h.high64, (unsigned long long)h.low64);
done:
    free(a.hash);
    XXH3_freeState(state);
    return status;
}

static rq_status open_first_work_dir(rq_quantizer *z, const char *now) {
    rq_status status = RQ_OK;
    const rq_quantize_job *job = z->job;
    char *path = rq_path_join(z->work_dir, "fingerprint"), *before = NULL;
    int64_t n;
    if (!path) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    bool there = access(path, F_OK) == 0;
    if (there && job->resume) {
        RQ_TRY(rq_read_file(path, 4096, &before, &n));
        if (strcmp(before, now) != 0) {
            RQ_FAIL(RQ_ERR_ARG,
                    "%s was made with other weights, calibration or options; run again with the same, or without "
                    "--resume to start over",
                    z->work_dir);
        }
        rq_log(RQ_LOG_INFO, "going on from %s", z->work_dir);
        goto done;
    }
    if (there)
        rq_log(RQ_LOG_WARN, "starting over: %s of an interrupted run is removed (--resume goes on from one)",
               z->work_dir);
    if (job->resume && !there) rq_log(RQ_LOG_INFO, "nothing to resume in %s: starting anew", z->work_dir);
    /* A run that was killed at once leaves an empty folder, or the first file on its way. */
    if (!there && rq_folder_is_used(z->work_dir, "fingerprint.tmp"))
        RQ_FAIL(RQ_ERR_ARG, "%s exists and is not ours", z->work_dir);
    rq_folder_remove(z->work_dir);
    if (mkdir(z->work_dir, 0777) != 0)
        RQ_FAIL(RQ_ERR_IO, "cannot make the folder %s: %s", z->work_dir, strerror(errno));
    status = rq_write_file(path, now, (int64_t)strlen(now));
    if (status != RQ_OK) rq_folder_remove(z->work_dir);
done:
    free(before);
    free(path);
    return status;
}

/* That of rank 0 first; the others put their activations beside it, or where it would be. All must have the same work. */
static rq_status open_work_dir(rq_quantizer *z) {
    rq_status status = RQ_OK;
    const rq_ranks *ranks = z->job->ranks;
    char own[40] = {0}, first[40];
    RQ_TRY(fingerprint(z, own));
    memcpy(first, own, sizeof first);
    if (rq_rank(ranks) == 0) RQ_TRY(open_first_work_dir(z, own));
    RQ_TRY(rq_ranks_bcast(ranks, first, sizeof first, 0));
    if (strcmp(own, first) != 0)
        RQ_FAIL(RQ_ERR_ARG, "rank %d has other weights, calibration or options than rank 0", rq_rank(ranks));
    if (rq_rank(ranks) > 0 && mkdir(z->work_dir, 0777) != 0 && errno != EEXIST)
        RQ_FAIL(RQ_ERR_IO, "cannot make the folder %s: %s", z->work_dir, strerror(errno));
done:
    return status;
}

/* Rank 0 writes; nobody goes on before it has. */
static rq_status write_output(const rq_quantizer *z, rq_quantize_report *report) {
    rq_status status = RQ_OK;
    if (rq_rank(z->job->ranks) == 0) RQ_TRY(rq_write_output(z, report));
    RQ_TRY(rq_ranks_bcast(z->job->ranks, report, sizeof *report, 0));
done:
    return status;
}

/* ---- the whole ---- */

static rq_status make_rotation(rq_quantizer *z) {
    const rq_quantize_job *job = z->job;
    const rq_config *c = &z->model->cfg;
    if (!job->rotate || strcmp(job->rotate, "none") == 0) return RQ_OK;
    if (strcmp(job->rotate, "residual") != 0 && strcmp(job->rotate, "full") != 0)
        return rq_fail(RQ_ERR_ARG, "--rotate %s: it is none, residual or full", job->rotate);
    rq_status status = rq_rotation_new(&z->rotation, c->d_model, job->seed, NULL);
    if (status == RQ_OK) status = rq_rotation_new(&z->head_rotation, c->head_dim, job->seed + 1, NULL);
    return status;
}

/* OUT must be new or empty, or, with --force, a folder that quantize wrote. */
static rq_status check_out(const rq_quantize_job *job) {
    rq_status status = RQ_OK;
    char *report = rq_path_join(job->out_path, "report.json");
    if (!report) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (!rq_folder_is_used(job->out_path, NULL)) goto done;
    if (!job->force) RQ_FAIL(RQ_ERR_ARG, "%s exists and is not empty; --force replaces it", job->out_path);
    if (access(report, F_OK) != 0)
        RQ_FAIL(RQ_ERR_ARG, "%s holds no report.json of ours: --force does not remove it", job->out_path);
done:
    free(report);
    return status;
}

rq_status rq_quantize_model(const rq_quantize_job *job, rq_quantize_report *report) {
    rq_status status = RQ_OK;
    rq_quantizer z = {.job = job};
    rq_quantize_job planned;
    rq_device_list devices = {0};
    rq_rotation *own = NULL; /* the model's pointer is borrowed for the run */
    double started = rq_seconds();
    *report = (rq_quantize_report){0};
    RQ_TRY(rq_quant_check(&job->opt, 0));
    if (job->device) RQ_TRY(rq_device_check(job->device));
    if (job->devices) {
        if (!job->dry_run) RQ_FAIL(RQ_ERR_ARG, "--devices %s plans a run: give --dry-run too", job->devices);
        if (job->bpw > 0 || job->factors != RQ_FACTORS_NONE)
            RQ_FAIL(RQ_ERR_UNSUPPORTED, "--devices %s: there is no cost model of --bpw, --smooth and --cross",
                    job->devices);
        RQ_TRY(rq_device_list_parse(&devices, job->devices));
        planned = *job;
        planned.dry_ranks = devices.n;
        planned.device = strcasecmp(devices.name, "cpu") == 0 ? "cpu" : "cuda"; /* sets are made as they are there */
        z.job = job = &planned;
    }
    if (job->token_weights != RQ_TOKENS_EVEN && !(job->token_min > 0 && job->token_min <= 1)) {
        RQ_FAIL(RQ_ERR_ARG, "token-min is %g: above 0 and at most 1 is wanted", job->token_min);
    }
    RQ_TRY(rq_backend_init());
    if (job->bf16 && (!job->device || strcmp(job->device, "cpu") == 0))
        RQ_FAIL(RQ_ERR_ARG, "--activations bf16 is for --device cuda: the CPU multiplies in fp32");
    if (!job->dry_run && rq_rank(job->ranks) == 0) RQ_TRY(check_out(job));
    RQ_TRY(job->devices ? rq_model_shapes(&z.model, job->model_path) : rq_model_open(&z.model, job->model_path));
    own = z.model->rotation;
    if (own) RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s is a rotated model: quantize starts from the original", job->model_path);
    RQ_TRY(make_rotation(&z));
    z.model->rotation = z.rotation;
    RQ_TRY(make_plan(&z));
    RQ_TRY(rq_plan_inputs(&z));
    if (job->bpw > 0 && job->samples.n_samples == 0) {
        RQ_FAIL(RQ_ERR_ARG, "--bpw measures losses, which needs calibration text: give --calib FILE");
    }
    if (rq_plan_needs_calibration(&z) && job->samples.n_samples == 0) {
        RQ_FAIL(RQ_ERR_ARG, "%s with these options needs calibration text: give --calib FILE",
                rq_comp_get(job->opt.comp)->name);
    }
    for (int64_t i = 0; job->samples.ids && i < job->samples.n_samples * job->samples.seq_len; ++i) {
        if (job->samples.ids[i] < 0 || job->samples.ids[i] >= z.model->cfg.n_vocab) {
            RQ_FAIL(RQ_ERR_INPUT, "calibration token %lld is id %d, the vocabulary has %lld", (long long)i,
                    job->samples.ids[i], (long long)z.model->cfg.n_vocab);
        }
    }
    estimate(&z, report);
    if (job->devices) RQ_TRY(estimate_on_devices(&z, &devices, report));
    z.flops_total = report->flops;
    if (job->max_ram_bytes > 0 && report->ram_bytes > job->max_ram_bytes) {
        RQ_FAIL(RQ_ERR_NOMEM, "about %.1f MiB of memory are needed, --max-ram allows %.1f MiB",
                (double)report->ram_bytes / 1048576, (double)job->max_ram_bytes / 1048576);
    }
    if (job->dry_run) goto done;
    if (job->device) RQ_TRY(rq_device_open_rank(&z.device, job->device, job->ranks));
    if (asprintf(&z.work_dir, "%s.partial", job->out_path) < 0) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(open_work_dir(&z));
    if (job->bpw > 0) RQ_TRY(rq_plan_allocate(&z));
    RQ_TRY(rq_plan_factors(&z));
    RQ_TRY(rq_quantize_blocks(&z));
    RQ_TRY(write_output(&z, report));
    rq_folder_remove(z.work_dir);
    report->n_resumed = z.n_resumed;
    report->seconds = rq_seconds() - started;
    if (job->progress) job->progress(job->user, 1, "done");
done:
    if (z.model) z.model->rotation = own;
    rq_rotation_free(z.rotation);
    rq_rotation_free(z.head_rotation);
    rq_inputs_free(&z);
    rq_model_close(z.model);
    rq_device_close(z.device);
    free(z.plan);
    free(z.allocation);
    free(z.work_dir);
    return status;
}
