/* SPDX-License-Identifier: Apache-2.0 */
/* The passes of k-means on a GPU (kmeans_impl.h): points, weights and the kernel's form of the points stay there for a run of passes; each sends the
 * centroids and brings back the nearest ones, the host's repair and losses want them, and the sums. The same bytes as the CPU's. */
#include "backend_cuda.h"
#include "kmeans_impl.h"
#include "rq_cuda_book.h"

_Static_assert(RQ_KMEANS_LANES == 16, "the kernel's points side by side");
_Static_assert(RQ_KMEANS_PLAIN == 0 && RQ_KMEANS_PER_POINT == 1 && RQ_KMEANS_PER_COMPONENT == 2,
               "the kernel's weights");

typedef struct run {
    rq_cuda_kmeans k;
    float *x, *weight, *u, *table;
} run;

static const char WHAT[] = "k-means";

static void end(void *own, void *state) {
    run *r = state;
    (void)cudaSetDevice(((cuda_device *)own)->index);
    void *all[] = {r->x, r->weight, r->u, r->table, r->k.best, r->k.part, r->k.sum};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) cuda_release(all[i]);
    free(r);
}

static rq_status begin(void *own, void **state, const rq_kmeans_data *p, int64_t k, int n_col) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    run *r = NULL;
    int64_t n_weight = p->weights == RQ_KMEANS_PER_COMPONENT ? p->n * p->d : p->n, lanes = p->n_group * RQ_KMEANS_LANES;
    int64_t n_block = rq_ceil_div(k, RQ_KMEANS_LANES);
    CUDA_TRY(cudaSetDevice(dev->index), WHAT);
    RQ_TRY(RQ_NEW_ZERO(r, 1));
    *state = r;
    RQ_TRY(CUDA_NEW(dev, r->x, p->n * p->d, WHAT));
    RQ_TRY(CUDA_NEW(dev, r->u, lanes * p->n_feat, WHAT));
    RQ_TRY(CUDA_NEW(dev, r->table, n_block * RQ_KMEANS_LANES * (p->n_feat + 1), WHAT));
    RQ_TRY(CUDA_NEW(dev, r->k.best, lanes, WHAT));
    RQ_TRY(CUDA_NEW(dev, r->k.part, p->n_chunk * k * n_col, WHAT));
    RQ_TRY(CUDA_NEW(dev, r->k.sum, k * n_col, WHAT));
    RQ_TRY(cuda_upload(dev, r->x, p->x, p->n * p->d * (int64_t)sizeof *p->x, dev->compute));
    RQ_TRY(cuda_upload(dev, r->u, p->u, lanes * p->n_feat * (int64_t)sizeof *p->u, dev->compute));
    if (p->weight) {
        RQ_TRY(CUDA_NEW(dev, r->weight, n_weight, WHAT));
        RQ_TRY(cuda_upload(dev, r->weight, p->weight, n_weight * (int64_t)sizeof *p->weight, dev->compute));
    }
    r->k.x = r->x;
    r->k.weight = r->weight;
    r->k.u = r->u;
    r->k.table = r->table;
    r->k.n = p->n;
    r->k.n_group = p->n_group;
    r->k.n_block = n_block;
    r->k.chunk = p->chunk;
    r->k.n_chunk = p->n_chunk;
    r->k.k = k;
    r->k.d = p->d;
    r->k.n_feat = p->n_feat;
    r->k.n_col = n_col;
    r->k.weights = (int)p->weights;
done:
    return status;
}

static rq_status pass(void *own, void *state, uint16_t *best, double *sum, const float *table) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    run *r = state;
    const rq_cuda_kmeans *k = &r->k;
    CUDA_TRY(cudaSetDevice(dev->index), WHAT);
    RQ_TRY(cuda_upload(dev, r->table, table, k->n_block * RQ_KMEANS_LANES * (k->n_feat + 1) * (int64_t)sizeof *table,
                       dev->compute));
    KERNEL_TRY(dev, rq_cuda_kmeans_nearest(k, dev->compute));
    if (sum) {
        ++dev->done.launches; /* chunks, then their total */
        KERNEL_TRY(dev, rq_cuda_kmeans_sums(k, dev->compute));
        RQ_TRY(cuda_download(dev, sum, k->sum, k->k * k->n_col * (int64_t)sizeof *sum));
    }
    RQ_TRY(cuda_download(dev, best, k->best, k->n_group * RQ_KMEANS_LANES * (int64_t)sizeof *best));
done:
    return status;
}

const rq_kmeans_engine cuda_kmeans = {begin, pass, end};
