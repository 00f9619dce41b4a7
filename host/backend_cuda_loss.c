/* SPDX-License-Identifier: Apache-2.0 */
/* rq_layer_loss on a GPU: H, then D, is on the device in fp32, and the rows of the matrices go past it LOSS_ROWS at a time. */
#include "backend_cuda_forward.h"

enum { LOSS_ROWS = 1024 };

typedef struct narrow_job {
    float *to;
    const double *from;
    int64_t n;
} narrow_job;

static void narrow_row(void *arg, int64_t row) {
    const narrow_job *j = arg;
    for (int64_t i = row * j->n; i < (row + 1) * j->n; ++i) j->to[i] = (float)j->from[i];
}

/* Rows of a matrix at a time, on the device. */
typedef struct loss_tile {
    float *m, *w, *e, *product; /* H or D [n][n], rows of W, of W - Q, of one of them times m */
    double *sum;                /* [rows] */
    float *narrow;              /* the host's: H or D in fp32 */
    int64_t n, rows;
} loss_tile;

/* tr(A M B^T) of the rows at hand, A and B in fp32 and sums of rows in fp64. */
static rq_status add_trace(cuda_device *dev, const loss_tile *t, double *total, const float *a, const float *b,
                           int64_t rows) {
    rq_status status = RQ_OK;
    double sum[LOSS_ROWS];
    RQ_TRY(cuda_sgemm(dev, RQ_N, rows, t->n, t->n, 1, a, t->n, t->m, t->n, 0, t->product, t->n, "a loss"));
    KERNEL_TRY(dev, rq_cuda_row_parts(t->sum, t->product, b, rows, t->n, 0, t->n, t->n, 1, dev->compute));
    RQ_TRY(cuda_download(dev, sum, t->sum, rows * (int64_t)sizeof *sum));
    for (int64_t i = 0; i < rows; ++i) *total += sum[i];
done:
    return status;
}

static rq_status set_matrix(cuda_device *dev, const loss_tile *t, const double *m) {
    narrow_job job = {t->narrow, m, t->n};
    rq_parallel_for(t->n, narrow_row, &job);
    return cuda_upload(dev, t->m, t->narrow, t->n * t->n * (int64_t)sizeof *t->m, dev->compute);
}

/* Of all rows with the matrix on the device: H gives sym and whw, D what asym has beside sym. */
static rq_status add_losses(cuda_device *dev, const loss_tile *t, rq_loss *l, const rq_loss_of *of, bool cross) {
    rq_status status = RQ_OK;
    double moved = 0;
    for (int64_t r0 = 0; r0 < of->n_out; r0 += t->rows) {
        const int64_t rows = rq_min_i64(t->rows, of->n_out - r0), bytes = rows * t->n * (int64_t)sizeof *t->w;
        RQ_TRY(cuda_upload(dev, t->w, of->w + r0 * t->n, bytes, dev->compute));
        RQ_TRY(cuda_upload(dev, t->e, of->q + r0 * t->n, bytes, dev->compute));
        KERNEL_TRY(dev, rq_cuda_subtract(t->e, t->w, t->e, rows, t->n, dev->compute));
        if (cross) {
            RQ_TRY(add_trace(dev, t, &moved, t->w, t->e, rows));
            continue;
        }
        RQ_TRY(add_trace(dev, t, &l->sym, t->e, t->e, rows));
        RQ_TRY(add_trace(dev, t, &l->whw, t->w, t->w, rows));
    }
    l->asym = cross ? l->sym + 2 * moved : l->sym;
done:
    return status;
}

rq_status cuda_loss(void *own, rq_loss *l, const rq_loss_of *m, int count, int64_t n, const double *h,
                    const double *d) {
    rq_status status = RQ_OK;
    cuda_device *dev = ((cuda_forward *)own)->dev;
    loss_tile t = {.n = n};
    for (int i = 0; i < count; ++i) {
        l[i] = (rq_loss){0};
        t.rows = rq_max_i64(t.rows, rq_min_i64(LOSS_ROWS, m[i].n_out));
    }
    CUDA_TRY(cudaSetDevice(dev->index), "a loss");
    RQ_TRY(RQ_NEW(t.narrow, n * n));
    RQ_TRY(CUDA_NEW(dev, t.m, n * n, "a loss"));
    float **tile[] = {&t.w, &t.e, &t.product};
    for (size_t i = 0; i < sizeof tile / sizeof *tile; ++i) RQ_TRY(CUDA_NEW(dev, *tile[i], t.rows * n, "a loss"));
    RQ_TRY(CUDA_NEW(dev, t.sum, t.rows, "a loss"));
    RQ_TRY(set_matrix(dev, &t, h));
    for (int i = 0; i < count; ++i) RQ_TRY(add_losses(dev, &t, &l[i], &m[i], false));
    if (d) RQ_TRY(set_matrix(dev, &t, d));
    for (int i = 0; d && i < count; ++i) RQ_TRY(add_losses(dev, &t, &l[i], &m[i], true));
done:
    free(t.narrow);
    cuda_release(t.m);
    cuda_release(t.w);
    cuda_release(t.e);
    cuda_release(t.product);
    cuda_release(t.sum);
    return status;
}
