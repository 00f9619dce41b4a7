/* SPDX-License-Identifier: Apache-2.0 */
/* Grids of whole rows on a GPU: the search of w4a8's two levels (round_w4a8.c), and --clip output (comp_clip.c), one product of all errors with H for
 * each range that is tried. */
#include "backend_cuda.h"

enum { NEAR = 5, SEARCH_STEPS = 16 }; /* round_w4a8.c: steps tried below the one that spans a group, and scales */

/* step = 1 */
static rq_status unit_steps(cuda_device *dev, float *step, int64_t count) {
    float *one = NULL;
    rq_status status = RQ_OK;
    RQ_TRY(RQ_NEW(one, count));
    for (int64_t i = 0; i < count; ++i) one[i] = 1;
    RQ_TRY(cuda_upload(dev, step, one, count * (int64_t)sizeof *one, dev->compute));
done:
    free(one);
    return status;
}

static rq_status two_levels(const cuda_rows *r, const rq_cuda_grids *to, bool search) {
    rq_status status = RQ_OK;
    const rq_sweep *s = r->s;
    cuda_device *dev = r->dev;
    int64_t n = s->prep->n;
    int n_factor = search ? (int)rq_min_i64(s->opt->clip_steps, SEARCH_STEPS) : 1;
    double factor[SEARCH_STEPS], *on_factor = NULL, *error = NULL;
    float *largest = NULL, *row_scale = NULL;
    for (int i = 0; i < n_factor; ++i) factor[i] = 1.0 - 0.5 * i / n_factor;
    RQ_TRY(CUDA_NEW(dev, on_factor, n_factor, r->label));
    RQ_TRY(CUDA_NEW(dev, error, s->n_out * n_factor * s->n_group, r->label));
    RQ_TRY(CUDA_NEW(dev, largest, s->n_out, r->label));
    RQ_TRY(CUDA_NEW(dev, row_scale, s->n_out, r->label));
    RQ_TRY(cuda_upload(dev, on_factor, factor, n_factor * (int64_t)sizeof *factor, dev->compute));
    KERNEL_TRY(dev, rq_cuda_row_largest(largest, r->w, r->dead, s->n_out, n, dev->compute));
    rq_cuda_level_search a = {.w = r->w,
                              .weight = r->weight,
                              .dead = r->dead,
                              .factor = on_factor,
                              .largest = largest,
                              .n_out = s->n_out,
                              .n = n,
                              .group = s->group,
                              .n_group = s->n_group,
                              .reach = search ? NEAR : 0,
                              .error = error};
    KERNEL_TRY(dev, rq_cuda_find_levels(&a, n_factor, dev->compute));
    KERNEL_TRY(dev, rq_cuda_best_scale(row_scale, &a, n_factor, dev->compute));
    a.row_scale = row_scale;
    a.error = NULL;
    a.reach = search ? RQ_W4A8_MAX_STEP : 0;
    a.climbs = search;
    a.scale = to->scale;
    a.zero = to->zero;
    a.step = to->step;
    KERNEL_TRY(dev, rq_cuda_find_levels(&a, 1, dev->compute));
done:
    cuda_release(on_factor);
    cuda_release(error);
    cuda_release(largest);
    cuda_release(row_scale);
    return status;
}

rq_status cuda_find_rows(const cuda_rows *r, const rq_cuda_grids *to, bool search) {
    rq_status status = RQ_OK;
    const rq_sweep *s = r->s;
    if (s->opt->group && s->step) return two_levels(r, to, search);
    RQ_TRY(cuda_find_scales(r, to, 0, s->n_group, search, 0));
    if (to->step) RQ_TRY(unit_steps(r->dev, to->step, s->n_out * s->n_group));
done:
    return status;
}

/* Grids at ranges shrunk to `shrink`, of which factor is the double on the device; steps of one level stay as find_rows() left them. */
static rq_status find_at(const cuda_rows *r, const rq_cuda_grids *to, const float *largest, const double *factor,
                         float shrink) {
    const rq_sweep *s = r->s;
    if (!s->opt->group || !s->step) return cuda_find_scales(r, to, 0, s->n_group, false, shrink);
    const rq_cuda_level_search a = {.w = r->w,
                                    .weight = r->weight,
                                    .dead = r->dead,
                                    .factor = factor,
                                    .largest = largest,
                                    .n_out = s->n_out,
                                    .n = s->prep->n,
                                    .group = s->group,
                                    .n_group = s->n_group,
                                    .reach = NEAR,
                                    .climbs = 1,
                                    .scale = to->scale,
                                    .zero = to->zero,
                                    .step = to->step};
    rq_status status = RQ_OK;
    KERNEL_TRY(r->dev, rq_cuda_find_levels(&a, 1, r->dev->compute));
done:
    return status;
}

/* ---- --clip output */

typedef struct clip_job {
    cuda_rows rows;
    float *w, *weight, *grid_factor, *e, *eh, *largest;
    uint8_t *dead;
    double *factor, *loss, *least;
    rq_cuda_grids now, best;
} clip_job;

static void job_free(clip_job *j) {
    void *all[] = {j->w,        j->weight,     j->grid_factor, j->e,        j->eh,        j->largest,
                   j->dead,     j->factor,     j->loss,        j->least,    j->now.scale, j->now.zero,
                   j->now.step, j->best.scale, j->best.zero,   j->best.step};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) cuda_release(all[i]);
}

static rq_status grids_new(const cuda_rows *r, rq_cuda_grids *g) {
    rq_status status = RQ_OK;
    int64_t count = r->s->n_out * r->s->n_group;
    RQ_TRY(CUDA_NEW(r->dev, g->scale, count, r->label));
    RQ_TRY(CUDA_NEW(r->dev, g->zero, count, r->label));
    if (r->s->step) RQ_TRY(CUDA_NEW(r->dev, g->step, count, r->label));
done:
    return status;
}

static rq_status job_new(clip_job *j, const float *shrink) {
    rq_status status = RQ_OK;
    cuda_device *dev = j->rows.dev;
    const rq_sweep *s = j->rows.s;
    const char *label = j->rows.label;
    int steps = s->opt->clip_steps;
    int64_t n = s->prep->n, weights = s->n_out * n;
    uint8_t *dead = NULL;
    double *factor = NULL;
    RQ_TRY(CUDA_NEW(dev, j->w, weights, label));
    RQ_TRY(CUDA_NEW(dev, j->weight, n, label));
    RQ_TRY(CUDA_NEW(dev, j->grid_factor, steps, label));
    RQ_TRY(CUDA_NEW(dev, j->e, weights, label));
    RQ_TRY(CUDA_NEW(dev, j->eh, weights, label));
    RQ_TRY(CUDA_NEW(dev, j->largest, s->n_out, label));
    RQ_TRY(CUDA_NEW(dev, j->dead, n, label));
    RQ_TRY(CUDA_NEW(dev, j->factor, steps, label));
    RQ_TRY(CUDA_NEW(dev, j->loss, s->n_out, label));
    RQ_TRY(CUDA_NEW(dev, j->least, s->n_out, label));
    RQ_TRY(grids_new(&j->rows, &j->now));
    RQ_TRY(grids_new(&j->rows, &j->best));
    RQ_TRY(RQ_NEW(dead, n));
    RQ_TRY(RQ_NEW(factor, steps));
    for (int64_t i = 0; i < n; ++i) dead[i] = s->prep->dead[i];
    for (int i = 0; i < steps; ++i) factor[i] = (double)shrink[i];
    RQ_TRY(cuda_upload(dev, j->w, s->w0, weights * (int64_t)sizeof *s->w0, dev->compute));
    RQ_TRY(cuda_upload(dev, j->dead, dead, n, dev->compute));
    RQ_TRY(cuda_upload(dev, j->factor, factor, steps * (int64_t)sizeof *factor, dev->compute));
    RQ_TRY(cuda_send_search(&j->rows, j->weight, j->grid_factor, false));
    j->rows.w = j->w;
    j->rows.weight = j->weight;
    j->rows.factor = j->grid_factor;
    j->rows.dead = j->dead;
    KERNEL_TRY(dev, rq_cuda_row_largest(j->largest, j->w, j->dead, s->n_out, n, dev->compute));
done:
    free(dead);
    free(factor);
    return status;
}

/* Rows that lose less with the grids at hand than with any before take them. */
static rq_status keep_better(clip_job *j, const float *h, bool first) {
    rq_status status = RQ_OK;
    cuda_device *dev = j->rows.dev;
    const rq_sweep *s = j->rows.s;
    int64_t n = s->prep->n;
    KERNEL_TRY(dev, rq_cuda_round_error(j->e, j->w, j->dead, j->now.scale, j->now.zero, j->now.step, s->n_out, n,
                                        s->group, s->opt->bits, dev->compute));
    RQ_TRY(cuda_sgemm(dev, RQ_N, s->n_out, n, n, 1, j->e, n, h, n, 0, j->eh, n, j->rows.label));
    KERNEL_TRY(dev, rq_cuda_row_parts(j->loss, j->eh, j->e, s->n_out, n, 0, n, n, 1, dev->compute));
    KERNEL_TRY(dev,
               rq_cuda_keep_better(&j->best, &j->now, j->least, j->loss, first, s->n_out, s->n_group, dev->compute));
done:
    return status;
}

rq_status cuda_clip(void *own, const rq_sweep *s, const char *label) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    clip_job j = {.rows = {.dev = dev, .s = s, .label = label}};
    const int steps = s->opt->clip_steps;
    int64_t bytes = s->n_out * s->n_group * (int64_t)sizeof(float);
    float *shrink = NULL, *h = NULL;
    CUDA_TRY(cudaSetDevice(dev->index), label);
    RQ_TRY(RQ_NEW(shrink, steps));
    for (int k = 0; k < steps; ++k) shrink[k] = rq_clip_shrink(s->opt, k);
    RQ_TRY(job_new(&j, shrink));
    RQ_TRY(CUDA_NEW(dev, h, s->prep->n * s->prep->n, label));
    RQ_TRY(cuda_upload(dev, h, s->prep->h, s->prep->n * s->prep->n * (int64_t)sizeof *h, dev->compute));
    for (int k = -1; k < steps; ++k) {
        if (k < 0)
            RQ_TRY(cuda_find_rows(&j.rows, &j.now, true)); /* the choice by squares */
        else
            RQ_TRY(find_at(&j.rows, &j.now, j.largest, j.factor + k, shrink[k]));
        RQ_TRY(keep_better(&j, h, k < 0));
    }
    RQ_TRY(cuda_download(dev, s->scale, j.best.scale, bytes));
    RQ_TRY(cuda_download(dev, s->zero, j.best.zero, bytes));
    if (s->step) RQ_TRY(cuda_download(dev, s->step, j.best.step, bytes));
done:
    free(shrink);
    cuda_release(h);
    job_free(&j);
    return status;
}
