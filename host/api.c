/* SPDX-License-Identifier: Apache-2.0 */
/* The public functions of rq.h that are more than one internal call. */
#include "backend.h"
#include "comp.h"
#include "llama.h"

static rq_status parse_options(rq_quant_opt *o, const char *text) {
    static const struct {
        char text[20];
        rq_comp comp; /* where none is named */
        void (*set)(rq_quant_opt *o, rq_comp comp);
    } presets[] = {{"preset=reference", RQ_COMP_QEP, rq_quant_reference},
                   {"preset=vptq", RQ_COMP_GPTQ, rq_quant_vptq},
                   {"", RQ_COMP_QEP, rq_quant_default}};
    rq_quant_default(o, RQ_COMP_QEP);
    if (!text) return RQ_OK;
    int preset = 0;
    while (strncmp(text, presets[preset].text, strlen(presets[preset].text)) != 0) ++preset;
    rq_comp comp = presets[preset].comp;
    text += strlen(presets[preset].text);
    text += *text == ',';
    for (const char *p = text; (p = strstr(p, "comp="));) { /* the presets depend on it, so it is looked up first */
        size_t n = strcspn(p + 5, ",");
        char name[32];
        if ((p == text || p[-1] == ',') && n < sizeof name) {
            memcpy(name, p + 5, n);
            name[n] = 0;
            if (!rq_comp_by_name(name, &comp)) return rq_fail(RQ_ERR_ARG, "no compensator '%s'", name);
        }
        p += 5;
    }
    presets[preset].set(o, comp);
    return rq_quant_set_all(o, text);
}

int64_t rq_layer_groups(int64_t n_in, const char *options) {
    rq_quant_opt o;
    rq_status status = parse_options(&o, options);
    if (status == RQ_OK && n_in < 1) status = rq_fail(RQ_ERR_ARG, "a row of %lld inputs", (long long)n_in);
    if (status == RQ_OK) status = rq_quant_check(&o, n_in);
    return status == RQ_OK ? rq_ceil_div(n_in, o.group ? o.group : n_in) : status;
}

static void copy_out(void *dst, const void *src, int64_t n, size_t size) {
    if (dst) memcpy(dst, src, (size_t)n * size);
}

rq_status rq_quantize_layer(float *q, uint8_t *codes, float *scale, uint8_t *zero, int32_t *g_idx, const float *w,
                            const double *h, const double *d, int64_t n_out, int64_t n_in, const char *options,
                            rq_layer_info *info) {
    rq_status status = RQ_OK;
    rq_quant_opt o;
    rq_prep prep = {0};
    rq_quant_result r = {0};
    rq_packed packed = {0};
    int64_t count;
    if (!q || !w || n_out < 1 || n_in < 1 || !rq_mul_size(n_out, n_in, &count)) {
        return rq_fail(RQ_ERR_ARG, "rq_quantize_layer: q, w and sizes of at least 1 are needed");
    }
    if (info && info->struct_size != sizeof *info)
        return rq_fail(RQ_ERR_ARG, "rq_quantize_layer: info->struct_size is not set");
    RQ_TRY(parse_options(&o, options));
    if (o.round != RQ_ROUND_GRID && (codes || scale || zero || g_idx)) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED,
                "rq_quantize_layer: codes, scales, zeros and group indices are the grid's; with round=%s "
                "only q is given",
                rq_round_name(o.round));
    }
    RQ_TRY(rq_prepare(&prep, h, d, n_in, &o, "layer"));
    RQ_TRY(rq_quantize_matrix(&r, w, n_out, &prep, &o, "layer"));
    copy_out(q, r.q, count, sizeof *q);
    copy_out(codes, r.codes, codes ? count : 0, sizeof *codes);
    copy_out(scale, r.scale, n_out * r.grid.n_group, sizeof *scale);
    if (zero && r.zero) copy_out(zero, r.zero, n_out * r.grid.n_group, sizeof *zero);
    if (zero && !r.zero) memset(zero, 1 << (o.bits - 1), (size_t)(n_out * r.grid.n_group));
    for (int64_t j = 0; g_idx && j < n_in; ++j) g_idx[j] = r.g_idx ? r.g_idx[j] : (int32_t)(j / r.grid.group);
    if (info) {
        double whw = 0;
        *info = (rq_layer_info){.struct_size = sizeof *info,
                                .damp_used = prep.damp_used,
                                .damp_retries = prep.n_retries,
                                .n_dead = prep.n_dead};
        if (h) RQ_TRY(rq_layer_loss(w, r.q, n_out, n_in, h, d, &info->loss_sym, &info->loss_asym, &whw));
        info->rel_loss = whw > 0 ? info->loss_sym / whw : 0;
        RQ_TRY(rq_result_pack(&packed, &r));
        info->bpw = (double)rq_packed_size_bits(&packed) / (double)count;
    }
done:
    rq_packed_free(&packed);
    rq_quant_result_free(&r);
    rq_prep_free(&prep);
    return status;
}

int64_t rq_model_n_vocab(const rq_model *m) { return m->cfg.n_vocab; }

double rq_model_bpw(const rq_model *m) { return m->bpw; }

rq_status rq_model_logits(const rq_model *m, float *logits, const int32_t *ids, int64_t n_tok) {
    rq_status status = RQ_OK;
    float *x = NULL;
    if (!m || !logits || !ids || n_tok < 1)
        return rq_fail(RQ_ERR_ARG, "rq_model_logits: a model, logits and at least one id are needed");
    RQ_TRY(rq_backend_init());
    RQ_TRY(RQ_NEW(x, n_tok * m->cfg.d_model));
    RQ_TRY(rq_forward(m, x, ids, 1, n_tok));
    RQ_TRY(rq_logits(m, logits, x, n_tok));
done:
    free(x);
    return status;
}
