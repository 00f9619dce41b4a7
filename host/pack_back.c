/* SPDX-License-Identifier: Apache-2.0 */
/* From a packed matrix in memory back to what its packer takes, and so to the tensors of a file: for matrices that came from another
 * tool's file, whose tensors were other ones. */
#include "pack_common.h"

typedef struct scratch { /* what one matrix needs for a while */
    void *memory[8];
    int n;
} scratch;

static void *take(scratch *s, int64_t n, size_t size) {
    void *p = NULL;
    if (rq_alloc(&p, n, size) == RQ_OK) s->memory[s->n++] = p;
    return p;
}

static rq_status no_memory(void) { return rq_fail(RQ_ERR_NOMEM, "out of memory for the codes of a matrix"); }

/* Group numbers in input-feature order of a matrix whose columns lie sorted by group. */
static rq_status grid_file(rq_packed_file *f, char **entry, const char *name, const rq_grid *g, scratch *s) {
    uint8_t *codes = take(s, g->n_out * g->n_in, 1);
    float *scale = take(s, g->n_out * g->n_group, sizeof *scale);
    int32_t *g_idx = g->perm ? take(s, g->n_in, sizeof *g_idx) : NULL;
    if (!codes || !scale || (g->perm && !g_idx)) return no_memory();
    for (int64_t i = 0; i < g->n_out; ++i) {
        for (int64_t j = 0; j < g->n_in; ++j)
            codes[i * g->n_in + (g->perm ? g->perm[j] : j)] = (uint8_t)rq_grid_code(g, i, j);
        for (int64_t k = 0; k < g->n_group; ++k) scale[i * g->n_group + k] = rq_grid_scale(g, i, k);
    }
    for (int64_t j = 0; g_idx && j < g->n_in; ++j) g_idx[g->perm[j]] = (int32_t)(j / g->group);
    const rq_grid_codes q = {.n_out = g->n_out,
                             .n_in = g->n_in,
                             .group = g->group,
                             .n_group = g->n_group,
                             .bits = g->bits,
                             .scale_dtype = g->scale_f16 ? RQ_F16 : RQ_F32,
                             .codes = codes,
                             .scale = scale,
                             .zero = g->zero,
                             .g_idx = g_idx};
    rq_status status = rq_grid_pack_file(f, name, &q);
    if (status == RQ_OK && asprintf(entry, "{\"format\":\"grid\",\"bits\":%d,\"group\":%lld,\"sym\":%s}", g->bits,
                                    (long long)g->group, g->zero ? "false" : "true") < 0) {
        *entry = NULL;
        rq_packed_file_free(f);
        status = no_memory();
    }
    return status;
}

static rq_status vq_file(rq_packed_file *f, char **entry, const char *name, const rq_vq *q, scratch *s) {
    rq_vq_codes c = {.n_out = q->n_out,
                     .n_in = q->n_in,
                     .vec_len = q->vec_len,
                     .n_stage = q->n_stage,
                     .vec_out = q->vec_out != 0,
                     .book_cols = q->book_cols,
                     .group = q->group,
                     .book_of = q->book_of,
                     .col_scale = q->col_scale,
                     .col_bias = q->col_bias,
                     .n_outlier = q->n_outlier,
                     .outlier_col = q->outlier_col,
                     .outlier = q->outlier,
                     .outlier_scale = q->outlier_scale};
    for (int k = 0; k < q->n_stage && k < 2; ++k) {
        uint16_t *codes = take(s, q->n_line * q->n_code, sizeof *codes);
        if (!codes) return no_memory();
        for (int64_t i = 0; i < q->n_line; ++i) {
            for (int64_t j = 0; j < q->n_code; ++j) codes[i * q->n_code + j] = (uint16_t)rq_vq_code(q, k, i, j);
        }
        c.codes[k] = codes;
        c.code_bits[k] = q->code_bits[k];
        c.n_codes[k] = q->n_codes[k];
        c.book[k] = q->book[k];
    }
    if (q->scale) {
        float *scale = take(s, q->n_out * q->n_group, sizeof *scale);
        if (!scale) return no_memory();
        for (int64_t i = 0; i < q->n_out * q->n_group; ++i) scale[i] = rq_f32_of_f16(q->scale[i]);
        c.scale = scale;
    }
    return rq_vq_pack_file(f, entry, name, &c);
}

static rq_status w4a8_file(rq_packed_file *f, char **entry, const char *name, const rq_w4a8 *w, scratch *s) {
    uint8_t *codes = take(s, w->n_out * w->n_in, 1);
    if (!codes) return no_memory();
    for (int64_t i = 0; i < w->n_out; ++i) {
        for (int64_t j = 0; j < w->n_in; ++j) codes[i * w->n_in + j] = (uint8_t)rq_w4a8_code(w, i, j);
    }
    const rq_w4a8_codes q = {.n_out = w->n_out,
                             .n_in = w->n_in,
                             .group = w->group,
                             .codes = codes,
                             .scale = w->scale,
                             .zero = w->zero,
                             .step = w->step,
                             .base = w->base,
                             .in_scale = w->in_scale,
                             .hadamard = w->hadamard};
    return rq_w4a8_pack_file(f, entry, name, &q);
}

rq_status rq_packed_file_of(rq_packed_file *f, char **json_entry, const char *name, const rq_packed *p) {
    scratch s = {0};
    rq_status status;
    memset(f, 0, sizeof *f);
    *json_entry = NULL;
    switch (p->format) {
    case RQ_FORMAT_GRID: status = grid_file(f, json_entry, name, &p->u.grid, &s); break;
    case RQ_FORMAT_VQ: status = vq_file(f, json_entry, name, &p->u.vq, &s); break;
    case RQ_FORMAT_W4A8: status = w4a8_file(f, json_entry, name, &p->u.w4a8, &s); break;
    default:
        status = rq_fail(RQ_ERR_UNSUPPORTED, "%s: %s matrices come from no other tool's file", name,
                         rq_format_get(p->format)->name);
    }
    while (s.n > 0) free(s.memory[--s.n]);
    return status;
}
