/* SPDX-License-Identifier: Apache-2.0 */
/* The matrices of a block, stage by stage: sets with one input and one group of options, dealt out to the ranks; what became of them goes
 * into the quantized stream and into a file of the work folder. */
#include "calib_blocks.h"

/* One matrix of a set, quantized, with its losses (0 without H): its line of the log, its values into the q stream. */
static rq_status finish_matrix(rq_calib *c, int64_t layer, int which, const rq_prep *prep, const rq_quant_result *r,
                               const rq_loss *loss, double seconds, char *line, size_t line_size) {
    rq_status status = RQ_OK;
    rq_matrix_plan *p = rq_calib_plan(c, layer, which);
    rq_packed packed = {0};
    const float *w = c->s[RQ_FP].w[which];
    rq_matrix_losses l = {.sym = loss->sym, .asym = loss->asym, .whw = loss->whw, .seconds = seconds};
    RQ_TRY(rq_result_pack(&packed, r));
    l.bpw = (double)rq_packed_size_bits(&packed) / (double)(p->n_out * p->n_in);
    rq_matrix_log(line, line_size, p, prep, &l, w, r->q);
    memcpy(c->s[RQ_QS].w[which], r->q, (size_t)(p->n_out * p->n_in) * sizeof(float));
done:
    rq_packed_free(&packed);
    return status;
}

/* The rank that measures a matrix: where ranks share rows, each has the whole of it when it is done. */
static int measured_by(const rq_prep *prep, int which) { return which % rq_n_ranks(prep->share_rows); }

/* loss[n] of m[n], quantized to r[n]: those that this rank measures. */
static rq_status set_losses(rq_calib *c, rq_loss *loss, const int *which, const rq_quant_matrix *m,
                            const rq_quant_result *r, int n, const rq_prep *prep) {
    rq_status status = RQ_OK;
    rq_loss_of of[RQ_N_LINEARS];
    rq_loss found[RQ_N_LINEARS] = {0};
    int count = 0;
    for (int i = 0; i < n; ++i) {
        if (measured_by(prep, which[i]) == rq_rank(prep->share_rows))
            of[count++] = (rq_loss_of){m[i].w, r[i].q, m[i].n_out};
    }
    if (count == 0 || !c->need_h) goto done;
    RQ_TRY(c->row->loss(c->run, found, of, count, prep->n, c->h, c->need_cross ? c->cross : NULL));
    for (int i = n; i-- > 0;) {
        if (measured_by(prep, which[i]) == rq_rank(prep->share_rows)) loss[i] = found[--count];
    }
done:
    return status;
}

/* The set whose first matrix is `lead`. Its log lines share its seconds equally. */
static rq_status quantize_set(rq_calib *c, int64_t layer, int lead, const rq_prep *prep) {
    enum { LINE = 4096 };
    rq_status status = RQ_OK;
    rq_quant_matrix m[RQ_N_LINEARS];
    rq_quant_result r[RQ_N_LINEARS] = {0};
    rq_loss loss[RQ_N_LINEARS] = {0};
    int which[RQ_N_LINEARS], n = 0;
    char *text = NULL;
    const char *line[RQ_N_LINEARS];
    double started = rq_seconds();
    for (int k = lead; k < RQ_N_LINEARS; ++k) {
        const rq_matrix_plan *p = rq_calib_plan(c, layer, k);
        if (!p->quantized || p->lead != lead) continue;
        which[n] = k;
        m[n++] = (rq_quant_matrix){p->name, c->s[RQ_FP].w[k], p->n_out};
    }
    RQ_TRY(RQ_NEW(text, n * LINE));
    RQ_TRY(rq_quantize_set(r, m, n, prep, &rq_calib_plan(c, layer, lead)->opt));
    for (int i = 0; i < n; ++i) { /* of no format but w4a8 are they read */
        r[i].w4a8.hadamard = rq_calib_plan(c, layer, which[i])->hadamard;
        r[i].w4a8.in_scale = rq_calib_plan(c, layer, which[i])->in_scale;
    }
    double seconds = (rq_seconds() - started) / n;
    RQ_TRY(set_losses(c, loss, which, m, r, n, prep));
    for (int i = 0; i < n; ++i) {
        line[i] = text + i * LINE;
        const int by = measured_by(prep, which[i]);
        if (by == rq_rank(prep->share_rows))
            RQ_TRY(finish_matrix(c, layer, which[i], prep, &r[i], &loss[i], seconds, text + i * LINE, LINE));
        else
            memcpy(c->s[RQ_QS].w[which[i]], r[i].q, (size_t)(m[i].n_out * prep->n) * sizeof(float));
        RQ_TRY(rq_ranks_bcast(prep->share_rows, text + i * LINE, LINE, by));
    }
    if (rq_rank(prep->share_rows) == 0) RQ_TRY(rq_part_save(c->z, layer, lead, r, line));
done:
    for (int i = 0; i < n; ++i) rq_quant_result_free(&r[i]);
    free(text);
    return status;
}

static bool same_preparation(const rq_quant_opt *a, const rq_quant_opt *b) {
    return a->comp == b->comp && a->alpha == b->alpha && a->alpha2 == b->alpha2 && a->rho == b->rho &&
           a->damp_frac == b->damp_frac && a->shrink == b->shrink && a->act_order == b->act_order &&
           a->static_groups == b->static_groups && a->group == b->group && a->cd_sweeps == b->cd_sweeps &&
           a->refit == b->refit && a->clip == b->clip && a->clip_weights == b->clip_weights && a->round == b->round &&
           a->vec_len == b->vec_len && a->vec_out == b->vec_out && a->outliers == b->outliers &&
           a->outlier_min == b->outlier_min && a->assign == b->assign;
}

/* Whether matrix m is there from an interrupted run, and then its values for the q stream: rank 0's work folder counts. */
static rq_status resumed_matrix(rq_calib *c, int64_t layer, int m, bool *have) {
    rq_status status = RQ_OK;
    const rq_matrix_plan *p = rq_calib_plan(c, layer, m);
    *have = false;
    if (rq_rank(c->ranks) == 0) RQ_TRY(rq_part_load(c->z, layer, m, c->s[RQ_QS].w[m], have));
    RQ_TRY(rq_ranks_bcast(c->ranks, have, sizeof *have, 0));
    if (*have) RQ_TRY(rq_ranks_bcast(c->ranks, c->s[RQ_QS].w[m], p->n_out * p->n_in * (int64_t)sizeof(float), 0));
done:
    return status;
}

/* What rank `owner` made of the set goes to all, and its file to rank 0. */
static rq_status share_set(rq_calib *c, int64_t layer, int lead, int owner) {
    rq_status status = RQ_OK;
    char *path = rq_part_path(c->z, layer, lead);
    if (!path) return rq_fail(RQ_ERR_NOMEM, "out of memory");
    for (int m = lead; m < RQ_N_LINEARS; ++m) {
        const rq_matrix_plan *p = rq_calib_plan(c, layer, m);
        if (!p->quantized || p->lead != lead) continue;
        RQ_TRY(rq_ranks_bcast(c->ranks, c->s[RQ_QS].w[m], p->n_out * p->n_in * (int64_t)sizeof(float), owner));
    }
    RQ_TRY(rq_ranks_file_to_first(c->ranks, path, owner));
done:
    free(path);
    return status;
}

/* Ranks share the rows of a grid's matrices on the CPU. Not of codebooks, which rows have in common; nor on GPUs, where a product's order of sums may
 * depend on the number of rows. */
static bool shares_rows(const rq_calib *c, const rq_quant_opt *o) {
    return rq_n_ranks(c->ranks) > 1 && rq_device_row(c->z->device) == &rq_device_cpu && !rq_round_is_book(o->round);
}

/* The sets whose first matrices are lead[n]: those with shared rows by all ranks, the others one a rank at a time. */
static rq_status quantize_sets(rq_calib *c, int64_t layer, const int *lead, int n) {
    rq_status status = RQ_OK;
    rq_prep prep = {0};
    const rq_quant_opt *prepared = NULL;
    const int own = rq_rank(c->ranks), n_ranks = rq_n_ranks(c->ranks);
    for (int first = 0, round; first < n; first += round) {
        bool stop = false;
        const bool shared = shares_rows(c, &rq_calib_plan(c, layer, lead[first])->opt);
        for (round = 1; !shared && round < n_ranks && first + round < n; ++round) {
            if (shares_rows(c, &rq_calib_plan(c, layer, lead[first + round])->opt)) break;
        }
        if (shared || own < round) {
            const int mine = shared ? first : first + own;
            const rq_matrix_plan *p = rq_calib_plan(c, layer, lead[mine]);
            if (!prepared || !same_preparation(prepared, &p->opt)) {
                rq_prep_free(&prep);
                RQ_TRY(rq_prepare_on(&prep, c->z->device, c->need_h ? c->h : NULL, c->need_cross ? c->cross : NULL,
                                     p->n_in, &p->opt, p->name));
                prepared = &p->opt;
            }
            prep.share_rows = shared ? c->ranks : NULL;
            RQ_TRY(quantize_set(c, layer, lead[mine], &prep));
        }
        const char *name = "";
        for (int i = first; i < first + round; ++i) {
            if (!shared) RQ_TRY(share_set(c, layer, lead[i], i - first));
            for (int m = lead[i]; m < RQ_N_LINEARS; ++m) {
                const rq_matrix_plan *p = rq_calib_plan(c, layer, m);
                if (!p->quantized || p->lead != lead[i]) continue;
                name = p->name;
                stop |= rq_quantizer_progress(c->z, rq_plan_flops(p), name);
            }
        }
        RQ_TRY(rq_ranks_any(c->ranks, &stop));
        if (stop) {
            RQ_FAIL(RQ_ERR_CANCELLED, "stopped after %s; finished matrices are kept in %s, --resume goes on from there",
                    name, c->z->work_dir);
        }
    }
done:
    rq_prep_free(&prep);
    return status;
}

/* One stage: its pass over the samples, then its matrices. Stages that an interrupted run finished are only replayed. */
static rq_status quantize_stage(rq_calib *c, int64_t layer, int st, bool forward) {
    rq_status status = RQ_OK;
    int lead[RQ_N_LINEARS], n_sets = 0;
    char text[160];
    c->need_h = c->need_cross = false;
    c->stage_act8 = true; /* a stage with both kinds: H of the inputs as they are */
    for (int m = rq_stage_first[st]; m < rq_stage_first[st + 1]; ++m) {
        rq_matrix_plan *p = rq_calib_plan(c, layer, m);
        bool have;
        if (!p->quantized) continue;
        c->stage_act8 &= c->act8[m];
        RQ_TRY(resumed_matrix(c, layer, m, &have));
        if (have) {
            ++c->z->n_resumed;
            rq_quantizer_progress(c->z, 4.0 * (double)(p->n_out * p->n_in) * (double)p->n_in, p->name);
            continue;
        }
        if (p->lead == m) lead[n_sets++] = m;
        c->need_h |= rq_quant_wants_h(&p->opt);
        c->need_cross |= rq_quant_wants_cross(&p->opt);
    }
    snprintf(text, sizeof text, "block %lld of %lld: calibrating %s", (long long)layer + 1, (long long)c->cfg->n_layer,
             (const char *[]){"q k v", "o", "gate up", "down"}[st]);
    if (forward) RQ_TRY(rq_calib_run_stage(c, st, text));
    RQ_TRY(quantize_sets(c, layer, lead, n_sets));
done:
    return status;
}

rq_status rq_quantize_blocks(rq_quantizer *z) {
    rq_status status = RQ_OK;
    rq_calib c;
    RQ_TRY(rq_calib_new(&c, z, true));
    bool forward = rq_plan_needs_calibration(z);
    if (forward) RQ_TRY(rq_calib_start(&c));
    for (int64_t layer = 0; layer < c.cfg->n_layer; ++layer) {
        RQ_TRY(rq_calib_load_block(&c, layer));
        for (int st = 0; st < RQ_N_STAGES; ++st) RQ_TRY(quantize_stage(&c, layer, st, forward));
        if (forward && layer + 1 < c.cfg->n_layer) RQ_TRY(rq_calib_finish_block(&c, "next block"));
    }
done:
    rq_calib_free(&c);
    return status;
}
