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

struct rq_layer {
    rq_quant_result r;
    rq_packed_file file; /* its tensors point into r */
    char *entry;
    uint8_t *zero;  /* of a symmetric grid, which stores none */
    int32_t *g_idx; /* of a grid whose groups are neighbours, likewise */
    int n_tensors;
    rq_layer_tensor tensor[5 + sizeof((rq_packed_file){0}.tensor) / sizeof(rq_out_tensor)];
};

static void add_tensor(rq_layer *l, const char *name, rq_dtype dtype, int rank, const int64_t *shape,
                       const void *data) {
    rq_layer_tensor *t = &l->tensor[l->n_tensors++];
    *t = (rq_layer_tensor){sizeof *t, name, rq_dtype_name(dtype), rank, {0}, data};
    memcpy(t->shape, shape, (size_t)rank * sizeof *shape);
}

static rq_status add_grid(rq_layer *l) {
    rq_status status = RQ_OK;
    const rq_grid_codes *g = &l->r.grid;
    const int64_t whole[] = {g->n_out, g->n_in}, groups[] = {g->n_out, g->n_group};
    if (!l->r.zero) {
        RQ_TRY(RQ_NEW(l->zero, g->n_out * g->n_group));
        memset(l->zero, 1 << (g->bits - 1), (size_t)(g->n_out * g->n_group));
    }
    if (!l->r.g_idx) {
        RQ_TRY(RQ_NEW(l->g_idx, g->n_in));
        for (int64_t j = 0; j < g->n_in; ++j) l->g_idx[j] = (int32_t)(j / g->group);
    }
    add_tensor(l, "codes", RQ_U8, 2, whole, l->r.codes);
    add_tensor(l, "scale", RQ_F32, 2, groups, l->r.scale);
    add_tensor(l, "zero", RQ_U8, 2, groups, l->r.zero ? l->r.zero : l->zero);
    add_tensor(l, "g_idx", RQ_I32, 1, &g->n_in, l->r.g_idx ? l->r.g_idx : l->g_idx);
done:
    return status;
}

static rq_status list_tensors(rq_layer *l, int64_t n_out, int64_t n_in) {
    rq_status status = RQ_OK;
    static const char matrix[] = "layer"; /* no part of the names that are handed out */
    const int64_t whole[] = {n_out, n_in};
    add_tensor(l, "q", RQ_F32, 2, whole, l->r.q);
    if (l->r.format == RQ_FORMAT_GRID) RQ_TRY(add_grid(l));
    RQ_TRY(rq_result_pack_file(&l->file, &l->entry, matrix, &l->r));
    for (int i = 0; i < l->file.n_tensors; ++i) {
        const rq_out_tensor *t = &l->file.tensor[i];
        add_tensor(l, t->name + sizeof matrix, t->dtype, t->rank, t->shape, t->arg);
    }
done:
    return status;
}

static rq_status fill_info(rq_layer_info *info, const rq_layer *l, const rq_prep *prep, const float *w, const double *h,
                           const double *d, int64_t n_out, int64_t n_in) {
    rq_status status = RQ_OK;
    rq_packed packed = {0};
    double whw = 0;
    *info = (rq_layer_info){.struct_size = sizeof *info,
                            .damp_used = prep->damp_used,
                            .damp_retries = prep->n_retries,
                            .n_dead = prep->n_dead};
    if (h) RQ_TRY(rq_layer_loss(w, l->r.q, n_out, n_in, h, d, &info->loss_sym, &info->loss_asym, &whw));
    info->rel_loss = whw > 0 ? info->loss_sym / whw : 0;
    RQ_TRY(rq_result_pack(&packed, &l->r));
    info->bpw = (double)rq_packed_size_bits(&packed) / (double)(n_out * n_in);
done:
    rq_packed_free(&packed);
    return status;
}

rq_status rq_layer_quantize(rq_layer **out, const float *w, const double *h, const double *d, int64_t n_out,
                            int64_t n_in, const char *options, rq_layer_info *info) {
    rq_status status = RQ_OK;
    rq_quant_opt o;
    rq_prep prep = {0};
    rq_layer *l = NULL;
    int64_t count;
    if (out) *out = NULL;
    if (!out || !w || n_out < 1 || n_in < 1 || !rq_mul_size(n_out, n_in, &count)) {
        return rq_fail(RQ_ERR_ARG, "quantizing a layer: a place for it, w and sizes of at least 1 are needed");
    }
    if (info && info->struct_size != sizeof *info)
        return rq_fail(RQ_ERR_ARG, "quantizing a layer: info->struct_size is not set");
    RQ_TRY(parse_options(&o, options));
    RQ_TRY(rq_quant_check(&o, n_in)); /* before the factor of h, which takes n_in^3 */
    RQ_TRY(RQ_NEW_ZERO(l, 1));
    RQ_TRY(rq_prepare(&prep, h, d, n_in, &o, "layer"));
    RQ_TRY(rq_quantize_matrix(&l->r, w, n_out, &prep, &o, "layer"));
    RQ_TRY(list_tensors(l, n_out, n_in));
    if (info) RQ_TRY(fill_info(info, l, &prep, w, h, d, n_out, n_in));
    *out = l;
    l = NULL;
done:
    rq_layer_free(l);
    rq_prep_free(&prep);
    return status;
}

void rq_layer_free(rq_layer *l) {
    if (!l) return;
    rq_packed_file_free(&l->file);
    rq_quant_result_free(&l->r);
    free(l->entry);
    free(l->zero);
    free(l->g_idx);
    free(l);
}

const char *rq_layer_entry(const rq_layer *l) { return l->entry; }

int rq_layer_count(const rq_layer *l) { return l->n_tensors; }

rq_status rq_layer_at(const rq_layer *l, int i, rq_layer_tensor *t) {
    if (!l || !t || t->struct_size != sizeof *t)
        return rq_fail(RQ_ERR_ARG, "rq_layer_at: a layer and t->struct_size are needed");
    if (i < 0 || i >= l->n_tensors) return rq_fail(RQ_ERR_ARG, "rq_layer_at: tensor %d of %d", i, l->n_tensors);
    *t = l->tensor[i];
    return RQ_OK;
}

static void copy_out(void *dst, const void *src, int64_t n, size_t size) {
    if (dst) memcpy(dst, src, (size_t)n * size);
}

rq_status rq_quantize_layer(float *q, uint8_t *codes, float *scale, uint8_t *zero, int32_t *g_idx, const float *w,
                            const double *h, const double *d, int64_t n_out, int64_t n_in, const char *options,
                            rq_layer_info *info) {
    rq_status status = RQ_OK;
    rq_quant_opt o;
    rq_layer *l = NULL;
    if (!q) return rq_fail(RQ_ERR_ARG, "rq_quantize_layer: q is needed");
    RQ_TRY(parse_options(&o, options));
    if (o.round != RQ_ROUND_GRID && (codes || scale || zero || g_idx)) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED,
                "rq_quantize_layer: codes, scales, zeros and group indices are the grid's; with round=%s "
                "only q is given",
                rq_round_name(o.round));
    }
    RQ_TRY(rq_layer_quantize(&l, w, h, d, n_out, n_in, options, info));
    copy_out(q, l->r.q, n_out * n_in, sizeof *q);
    if (o.round != RQ_ROUND_GRID) goto done;
    const int64_t n_group = n_out * l->r.grid.n_group;
    copy_out(codes, l->r.codes, n_out * n_in, sizeof *codes);
    copy_out(scale, l->r.scale, n_group, sizeof *scale);
    copy_out(zero, l->zero ? l->zero : l->r.zero, n_group, sizeof *zero);
    copy_out(g_idx, l->g_idx ? l->g_idx : l->r.g_idx, n_in, sizeof *g_idx);
done:
    rq_layer_free(l);
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
