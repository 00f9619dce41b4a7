/* SPDX-License-Identifier: Apache-2.0 */
/* The column sweep on a GPU: scales of groups, blocks of up to 128 columns by one kernel, and the update of what is right of a block by cuBLAS. Rows
 * stay on the device from first to last column. */
#include "backend_cuda.h"

typedef struct sweep_job {
    cuda_device *dev;
    const rq_sweep *s;
    const char *label;
    const float *u, *t;
    float *natural, *w, *w0; /* [n_out][n]: natural order, and in sweep order; w0: for ResComp */
    float *x, *y;            /* [n_out][RQ_COMP_BLOCK] */
    float *scale, *zero, *step, *weight, *factor;
    uint8_t *codes, *dead;
    int32_t *perm, *stored;
    cuda_rows rows; /* of dynamic groups; of static ones w and dead are others */
} sweep_job;

static void job_free(sweep_job *j) {
    void *all[] = {j->natural, j->w,      j->w0,     j->x,     j->y,    j->scale, j->zero,
                   j->step,    j->weight, j->factor, j->codes, j->dead, j->perm,  j->stored};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) cuda_release(all[i]);
}

static rq_status job_new(sweep_job *j) {
    rq_status status = RQ_OK;
    const rq_sweep *s = j->s;
    int64_t n = s->prep->n, groups = s->n_out * s->n_group;
    RQ_TRY(CUDA_NEW(j->dev, j->natural, s->n_out * n, j->label));
    RQ_TRY(CUDA_NEW(j->dev, j->w, s->n_out * n, j->label));
    if (j->u && s->opt->alpha2 != 0) RQ_TRY(CUDA_NEW(j->dev, j->w0, s->n_out * n, j->label));
    if (j->u) RQ_TRY(CUDA_NEW(j->dev, j->x, s->n_out * RQ_COMP_BLOCK, j->label));
    if (j->t) RQ_TRY(CUDA_NEW(j->dev, j->y, s->n_out * RQ_COMP_BLOCK, j->label));
    RQ_TRY(CUDA_NEW(j->dev, j->scale, groups, j->label));
    RQ_TRY(CUDA_NEW(j->dev, j->zero, groups, j->label));
    if (s->step) RQ_TRY(CUDA_NEW(j->dev, j->step, groups, j->label));
    RQ_TRY(CUDA_NEW(j->dev, j->weight, n, j->label));
    RQ_TRY(CUDA_NEW(j->dev, j->factor, s->opt->clip_steps, j->label));
    RQ_TRY(CUDA_NEW(j->dev, j->codes, s->n_out * n, j->label));
    RQ_TRY(CUDA_NEW(j->dev, j->dead, n, j->label));
    RQ_TRY(CUDA_NEW(j->dev, j->perm, n, j->label));
    RQ_TRY(CUDA_NEW(j->dev, j->stored, n, j->label));
done:
    return status;
}

/* Order, dead features, weights and factors of the clip search, and W. */
static rq_status job_fill(sweep_job *j) {
    rq_status status = RQ_OK;
    const rq_sweep *s = j->s;
    const rq_prep *p = s->prep;
    cuda_device *dev = j->dev;
    int64_t n = p->n;
    int32_t *stored = NULL;
    uint8_t *dead = NULL;
    RQ_TRY(RQ_NEW(stored, n));
    RQ_TRY(RQ_NEW(dead, n));
    for (int64_t c = 0; c < n; ++c) {
        stored[c] = s->groups_in_sweep_order ? (int32_t)c : p->perm[c];
        dead[c] = p->dead[c];
    }
    RQ_TRY(cuda_upload(dev, j->perm, p->perm, n * (int64_t)sizeof *p->perm, dev->compute));
    RQ_TRY(cuda_upload(dev, j->stored, stored, n * (int64_t)sizeof *stored, dev->compute));
    RQ_TRY(cuda_upload(dev, j->dead, dead, n, dev->compute));
    RQ_TRY(cuda_send_search(&j->rows, j->weight, j->factor, s->groups_in_sweep_order));
    RQ_TRY(cuda_upload(dev, j->natural, s->w0, s->n_out * n * (int64_t)sizeof *s->w0, dev->compute));
    KERNEL_TRY(dev, rq_cuda_to_sweep_order(j->w, j->natural, j->perm, j->dead, s->n_out, n, dev->compute));
    if (j->w0) {
        CUDA_TRY(cudaMemcpyAsync(j->w0, j->w, (size_t)(s->n_out * n) * sizeof *j->w0, cudaMemcpyDeviceToDevice,
                                 dev->compute),
                 j->label);
    }
done:
    free(stored);
    free(dead);
    return status;
}

rq_status cuda_send_search(const cuda_rows *r, float *weight, float *factor, bool sweep_order) {
    rq_status status = RQ_OK;
    int64_t n = r->s->prep->n;
    int steps = r->s->opt->clip_steps;
    float *line = NULL;
    RQ_TRY(RQ_NEW(line, rq_max_i64(n, steps)));
    rq_sweep_clip_weights(r->s, line, 0, n, sweep_order);
    RQ_TRY(cuda_upload(r->dev, weight, line, n * (int64_t)sizeof *line, r->dev->compute));
    for (int i = 0; i < steps; ++i) line[i] = (float)(1.0 - 0.8 * i / steps);
    RQ_TRY(cuda_upload(r->dev, factor, line, steps * (int64_t)sizeof *line, r->dev->compute));
done:
    free(line);
    return status;
}

rq_status cuda_find_scales(const cuda_rows *r, const rq_cuda_grids *to, int64_t col0, int64_t n_group, bool search,
                           float shrink) {
    const rq_sweep *s = r->s;
    const rq_quant_opt *o = s->opt;
    rq_cuda_scales a = {.w = r->w,
                        .weight = r->weight,
                        .dead = r->dead,
                        .n_out = s->n_out,
                        .n = s->prep->n,
                        .col0 = col0,
                        .group = s->group,
                        .n_group = n_group,
                        .out0 = col0 / s->group,
                        .out_groups = s->n_group,
                        .scale = to->scale,
                        .zero = to->zero,
                        .factor = r->factor,
                        .bits = o->bits,
                        .sym = o->sym,
                        .steps = search ? o->clip_steps : 1,
                        .power = (float)o->clip_power,
                        .shrink = shrink,
                        .f16 = o->scale_dtype == RQ_F16};
    rq_status status = rq_cuda_find_scales(&a, r->dev->compute);
    ++r->dev->done.launches;
    return status == RQ_OK ? RQ_OK : rq_fail(status, "%s: %s", r->label, rq_cuda_last_error());
}

/* Scales of groups that are found before the sweep, on the starting weights. */
static rq_status static_groups(sweep_job *j) {
    rq_status status = RQ_OK;
    const rq_sweep *s = j->s;
    int64_t bytes = s->n_out * s->n_group * (int64_t)sizeof(float);
    const rq_cuda_grids to = {j->scale, j->zero, j->step};
    const bool search = s->opt->clip == RQ_CLIP_MSE;
    if (s->found) {
        RQ_TRY(cuda_upload(j->dev, j->scale, s->scale, bytes, j->dev->compute));
        RQ_TRY(cuda_upload(j->dev, j->zero, s->zero, bytes, j->dev->compute));
        if (s->step) RQ_TRY(cuda_upload(j->dev, j->step, s->step, bytes, j->dev->compute));
        goto done;
    }
    j->rows.w = j->natural;
    j->rows.dead = s->group < s->prep->n ? j->dead : NULL;
    if (s->step)
        RQ_TRY(cuda_find_rows(&j->rows, &to, search));
    else
        RQ_TRY(cuda_find_scales(&j->rows, &to, 0, s->n_group, search, 0));
done:
    return status;
}

static rq_status sweep_columns(sweep_job *j, int64_t block) {
    rq_status status = RQ_OK;
    const rq_sweep *s = j->s;
    const rq_cuda_grids to = {j->scale, j->zero, j->step};
    int64_t n = s->prep->n;
    rq_cuda_block b = {.w = j->w,
                       .w0 = j->w0,
                       .u = j->u,
                       .t = j->t,
                       .n_out = s->n_out,
                       .n = n,
                       .stored = j->stored,
                       .group = s->group,
                       .n_group = s->n_group,
                       .scale = j->scale,
                       .zero = j->zero,
                       .step = j->step,
                       .codes = j->codes,
                       .x = j->x,
                       .y = j->y,
                       .a1 = (float)s->opt->alpha,
                       .a2 = (float)s->opt->alpha2,
                       .bits = s->opt->bits,
                       .allw = rq_sweep_allw(s->opt)};
    for (int64_t c0 = 0, c1; c0 < n; c0 = c1) {
        c1 = rq_sweep_block_end(s, block, c0);
        if (s->groups_in_sweep_order && c0 % s->group == 0)
            RQ_TRY(cuda_find_scales(&j->rows, &to, c0, 1, s->opt->clip == RQ_CLIP_MSE, 0));
        b.col0 = c0;
        b.width = (int)(c1 - c0);
        status = rq_cuda_sweep_block(&b, j->dev->compute);
        ++j->dev->done.launches;
        if (status != RQ_OK) RQ_FAIL(status, "%s: %s", j->label, rq_cuda_last_error());
        if (!j->u || c1 == n) continue;
        RQ_TRY(cuda_sgemm(j->dev, RQ_N, s->n_out, n - c1, c1 - c0, -1, j->x, RQ_COMP_BLOCK, j->u + c0 * n + c1, n, 1,
                          j->w + c1, n, j->label));
        if (j->t) {
            RQ_TRY(cuda_sgemm(j->dev, RQ_N, s->n_out, n - c1, c1 - c0, 1, j->y, RQ_COMP_BLOCK, j->t + c0 * n + c1, n, 1,
                              j->w + c1, n, j->label));
        }
    }
done:
    return status;
}

rq_status cuda_sweep(void *own, const rq_sweep *s, const char *label) {
    rq_status status = RQ_OK;
    const cuda_prep *q = s->prep->on_device;
    sweep_job j = {.dev = own, .s = s, .label = label};
    int64_t n = s->prep->n, block = rq_min_i64(s->opt->block, n), groups = s->n_out * s->n_group;
    if (block > RQ_COMP_BLOCK) {
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s: --block %lld: on a GPU blocks have at most %d columns", label,
                       (long long)s->opt->block, RQ_COMP_BLOCK);
    }
    CUDA_TRY(cudaSetDevice(j.dev->index), label);
    if (s->prep->u) j.u = q->u;
    if (s->prep->t) j.t = q->t;
    RQ_TRY(job_new(&j));
    j.rows = (cuda_rows){j.dev, s, label, j.w, j.weight, j.factor, NULL};
    RQ_TRY(job_fill(&j));
    if (!s->groups_in_sweep_order) RQ_TRY(static_groups(&j));
    RQ_TRY(sweep_columns(&j, block));
    RQ_TRY(cuda_download(j.dev, s->codes, j.codes, s->n_out * n));
    RQ_TRY(cuda_download(j.dev, s->scale, j.scale, groups * (int64_t)sizeof *s->scale));
    RQ_TRY(cuda_download(j.dev, s->zero, j.zero, groups * (int64_t)sizeof *s->zero));
    if (s->step) RQ_TRY(cuda_download(j.dev, s->step, j.step, groups * (int64_t)sizeof *s->step));
done:
    job_free(&j);
    return status;
}
