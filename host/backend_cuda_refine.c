/* SPDX-License-Identifier: Apache-2.0 */
/* Refinement of a grid on a GPU: coordinate descent over the codes, block by block, and the normal equations of the scales' refit; their small
 * systems, one a row, are solved on the CPU (comp_refine.c). Grids of w4a8 have one scale a row, and where they have two levels also steps and bases,
 * which are searched in whole numbers group by group. */
#include "backend_cuda.h"

_Static_assert((int)RQ_CUDA_BLOCK == (int)RQ_COMP_BLOCK, "the plan's block is the kernels'");

typedef struct refine_job {
    cuda_device *dev;
    const rq_refine *r;
    const rq_prep *p;
    const char *label;
    int64_t n_group, n_scale, tile; /* scales of a row; rows whose normal equations are made at a time */
    const float *h;                 /* [n][n] */
    float *target, *q, *g, *e;      /* [n_out][n] */
    float *wh, *level;              /* [n_out][n], for the refit: W* H and what codes stand for before the scale */
    float *delta;                   /* [n_out][RQ_COMP_BLOCK] */
    float *scale, *zero, *step;
    float *hu, *change; /* [n_out][group], with two levels */
    double *h11;        /* [n_group] */
    uint8_t *codes;
    double *normal, *rhs, *host_normal, *host_rhs; /* [tile][n_group][n_group], [n_out][n_group] */
} refine_job;

static void job_free(refine_job *j) {
    void *all[] = {j->target, j->q,    j->g,  j->e,      j->wh,  j->level, j->delta,  j->scale,
                   j->zero,   j->step, j->hu, j->change, j->h11, j->codes, j->normal, j->rhs};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) cuda_release(all[i]);
    free(j->host_normal);
    free(j->host_rhs);
}

static bool two_levels(const rq_refine *r) { return r->step && r->opt->group; }

/* What the refit of steps and bases needs. */
static rq_status levels_new(refine_job *j) {
    rq_status status = RQ_OK;
    const rq_refine *r = j->r;
    double *h11 = NULL;
    RQ_TRY(RQ_NEW_ZERO(h11, j->n_group));
    for (int64_t row = 0; row < r->n; ++row) {
        int64_t c0 = row / r->group * r->group;
        for (int64_t c = c0; c < rq_min_i64(r->n, c0 + r->group); ++c)
            h11[row / r->group] += (double)r->hd[row * r->n + c];
    }
    RQ_TRY(CUDA_NEW(j->dev, j->hu, r->n_out * r->group, j->label));
    RQ_TRY(CUDA_NEW(j->dev, j->change, r->n_out * r->group, j->label));
    RQ_TRY(CUDA_NEW(j->dev, j->h11, j->n_group, j->label));
    RQ_TRY(cuda_upload(j->dev, j->h11, h11, j->n_group * (int64_t)sizeof *h11, j->dev->compute));
done:
    free(h11);
    return status;
}

static rq_status job_new(refine_job *j) {
    rq_status status = RQ_OK;
    const rq_refine *r = j->r;
    cuda_device *dev = j->dev;
    int64_t weights = r->n_out * r->n, groups = r->n_out * j->n_group, system = j->n_scale * j->n_scale;
    float **dense[] = {&j->target, &j->q, &j->g, &j->e};
    for (size_t i = 0; i < sizeof dense / sizeof *dense; ++i) RQ_TRY(CUDA_NEW(dev, *dense[i], weights, j->label));
    RQ_TRY(cuda_prep_hd(dev, &j->h, j->p, j->label));
    RQ_TRY(CUDA_NEW(dev, j->delta, r->n_out * RQ_COMP_BLOCK, j->label));
    RQ_TRY(CUDA_NEW(dev, j->scale, groups, j->label));
    RQ_TRY(CUDA_NEW(dev, j->zero, groups, j->label));
    RQ_TRY(CUDA_NEW(dev, j->codes, weights, j->label));
    RQ_TRY(cuda_upload(dev, j->target, r->target, weights * (int64_t)sizeof(float), dev->compute));
    RQ_TRY(cuda_upload(dev, j->codes, r->codes, weights, dev->compute));
    RQ_TRY(cuda_upload(dev, j->scale, r->scale, groups * (int64_t)sizeof(float), dev->compute));
    RQ_TRY(cuda_upload(dev, j->zero, r->zero, groups * (int64_t)sizeof(float), dev->compute));
    if (r->step) {
        RQ_TRY(CUDA_NEW(dev, j->step, groups, j->label));
        RQ_TRY(cuda_upload(dev, j->step, r->step, groups * (int64_t)sizeof(float), dev->compute));
    }
    if (r->opt->refit == 0) goto done;
    if (two_levels(r)) RQ_TRY(levels_new(j));
    j->tile = rq_min_i64(r->n_out, rq_max_i64(1, RQ_CUDA_SYSTEM_BYTES / (system * (int64_t)sizeof(double))));
    RQ_TRY(CUDA_NEW(dev, j->wh, weights, j->label));
    RQ_TRY(CUDA_NEW(dev, j->level, weights, j->label));
    RQ_TRY(CUDA_NEW(dev, j->normal, j->tile * system, j->label));
    RQ_TRY(CUDA_NEW(dev, j->rhs, r->n_out * j->n_scale, j->label));
    RQ_TRY(RQ_NEW(j->host_normal, j->tile * system));
    RQ_TRY(RQ_NEW(j->host_rhs, r->n_out * j->n_scale));
    RQ_TRY(cuda_sgemm(dev, RQ_N, r->n_out, r->n, r->n, 1, j->target, r->n, j->h, r->n, 0, j->wh, r->n, j->label));
done:
    return status;
}

/* New scales in r->scale and on the device, codes as they are. */
static rq_status refit(refine_job *j) {
    rq_status status = RQ_OK;
    const rq_refine *r = j->r;
    cuda_device *dev = j->dev;
    int64_t n = r->n, ns = j->n_scale, system = ns * ns, span = r->step ? n : r->group;
    KERNEL_TRY(
        dev, rq_cuda_levels(j->level, NULL, j->codes, j->scale, j->zero, j->step, r->n_out, n, r->group, dev->compute));
    KERNEL_TRY(dev, rq_cuda_row_parts(j->rhs, j->level, j->wh, r->n_out, n, 0, n, span, ns, dev->compute));
    RQ_TRY(cuda_download(dev, j->host_rhs, j->rhs, r->n_out * ns * (int64_t)sizeof(double)));
    for (int64_t row0 = 0; row0 < r->n_out; row0 += j->tile) {
        int64_t rows = rq_min_i64(j->tile, r->n_out - row0);
        const float *level = j->level + row0 * n;
        for (int64_t g = 0; g < ns; ++g) { /* e = c_g H; its products with the levels of all groups */
            int64_t c0 = g * span, len = rq_min_i64(span, n - c0);
            RQ_TRY(cuda_sgemm(dev, RQ_N, rows, n, len, 1, level + c0, n, j->h + c0 * n, n, 0, j->e, n, j->label));
            KERNEL_TRY(dev,
                       rq_cuda_row_parts(j->normal + g * ns, level, j->e, rows, n, 0, n, span, system, dev->compute));
        }
        RQ_TRY(cuda_download(dev, j->host_normal, j->normal, rows * system * (int64_t)sizeof(double)));
        RQ_TRY(rq_refit_rows(r, row0, rows, j->host_normal, j->host_rhs + row0 * ns));
    }
    RQ_TRY(cuda_upload(dev, j->scale, r->scale, r->n_out * j->n_group * (int64_t)sizeof(float), dev->compute));
done:
    return status;
}

/* g = (q - W*) H */
static rq_status gradient(refine_job *j) {
    rq_status status = RQ_OK;
    const rq_refine *r = j->r;
    KERNEL_TRY(j->dev, rq_cuda_subtract(j->e, j->q, j->target, r->n_out, r->n, j->dev->compute));
    RQ_TRY(cuda_sgemm(j->dev, RQ_N, r->n_out, r->n, r->n, 1, j->e, r->n, j->h, r->n, 0, j->g, r->n, j->label));
done:
    return status;
}

/* New steps and bases on the device, group by group, codes and scales as they are. */
static rq_status refit_levels(refine_job *j) {
    rq_status status = RQ_OK;
    const rq_refine *r = j->r;
    cuda_device *dev = j->dev;
    int64_t n = r->n;
    rq_cuda_level_refit l = {.u = j->level,
                             .g = j->g,
                             .hu = j->hu,
                             .q = j->q,
                             .change = j->change,
                             .h11 = j->h11,
                             .grids = {j->scale, j->zero, j->step},
                             .n_out = r->n_out,
                             .n = n,
                             .group = r->group,
                             .n_group = j->n_group};
    RQ_TRY(gradient(j));
    KERNEL_TRY(dev,
               rq_cuda_levels(j->level, NULL, j->codes, j->scale, NULL, NULL, r->n_out, n, r->group, dev->compute));
    for (int64_t c0 = 0; c0 < n; c0 += r->group) {
        int64_t len = rq_min_i64(r->group, n - c0);
        l.col0 = c0;
        l.len = (int)len;
        RQ_TRY(cuda_sgemm(dev, RQ_N, r->n_out, len, len, 1, j->level + c0, n, j->h + c0 * n + c0, n, 0, j->hu, len,
                          j->label));
        KERNEL_TRY(dev, rq_cuda_refit_levels(&l, dev->compute));
        RQ_TRY(cuda_sgemm(dev, RQ_N, r->n_out, n, len, 1, j->change, len, j->h + c0 * n, n, 1, j->g, n, j->label));
    }
done:
    return status;
}

/* One pass over all columns. */
static rq_status descend(refine_job *j) {
    rq_status status = RQ_OK;
    const rq_refine *r = j->r;
    cuda_device *dev = j->dev;
    int64_t n = r->n;
    rq_cuda_descent d = {.g = j->g,
                         .h = j->h,
                         .scale = j->scale,
                         .zero = j->zero,
                         .step = j->step,
                         .q = j->q,
                         .delta = j->delta,
                         .codes = j->codes,
                         .n_out = r->n_out,
                         .n = n,
                         .group = r->group,
                         .n_group = j->n_group,
                         .bits = r->opt->bits};
    RQ_TRY(gradient(j));
    for (int64_t c0 = 0; c0 < n; c0 += RQ_COMP_BLOCK) {
        d.col0 = c0;
        d.width = (int)rq_min_i64(RQ_COMP_BLOCK, n - c0);
        KERNEL_TRY(dev, rq_cuda_descend_block(&d, dev->compute));
        RQ_TRY(cuda_sgemm(dev, RQ_N, r->n_out, n, d.width, 1, j->delta, RQ_COMP_BLOCK, j->h + c0 * n, n, 1, j->g, n,
                          j->label));
    }
done:
    return status;
}

rq_status cuda_refine(void *own, const rq_refine *r, const rq_prep *p, const char *label) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    refine_job j = {.dev = dev, .r = r, .p = p, .label = label, .n_group = rq_ceil_div(r->n, r->group)};
    int64_t groups = r->n_out * j.n_group;
    j.n_scale = r->step ? 1 : j.n_group;
    CUDA_TRY(cudaSetDevice(dev->index), label);
    RQ_TRY(job_new(&j));
    for (int round = 0; round <= r->opt->refit; ++round) {
        if (round > 0) RQ_TRY(refit(&j));
        KERNEL_TRY(dev,
                   rq_cuda_levels(NULL, j.q, j.codes, j.scale, j.zero, j.step, r->n_out, r->n, r->group, dev->compute));
        if (round > 0 && two_levels(r)) RQ_TRY(refit_levels(&j));
        for (int i = 0; i < r->opt->cd_sweeps; ++i) RQ_TRY(descend(&j));
    }
    RQ_TRY(cuda_download(dev, r->codes, j.codes, r->n_out * r->n));
    if (two_levels(r) && r->opt->refit > 0) {
        RQ_TRY(cuda_download(dev, r->zero, j.zero, groups * (int64_t)sizeof *r->zero));
        RQ_TRY(cuda_download(dev, r->step, j.step, groups * (int64_t)sizeof *r->step));
    }
done:
    job_free(&j);
    return status;
}
