/* SPDX-License-Identifier: Apache-2.0 */
/* Several ranks with a GPU each, connected by NCCL (loaded like cuBLAS). As on the CPU nothing is summed across ranks: the inputs of every chunk go to
 * all of them, a panel of a Gram matrix belongs to one, which adds the chunks in their order, and at the end panels go to all. So on GPUs of one
 * kind any number of ranks gives the same bytes. */
#include "backend_cuda_ranks.h"

#include "ranks.h"

struct cuda_ranks {
    const cuda_nccl *lib;
    void *comm;
    int rank, n;
};

enum { NCCL_BYTES = 0 /* ncclInt8 */ };

static rq_status failed(const cuda_device *dev, const char *call, int code) {
    return rq_fail(RQ_ERR_DEVICE, "%s on cuda:%d, rank %d of %d: %s", call, dev->index, dev->ranks->rank, dev->ranks->n,
                   dev->ranks->lib->error_string(code));
}
#define NCCL_TRY(dev, call)                                                                                            \
    do {                                                                                                               \
        int code_ = (dev)->ranks->lib->call;                                                                           \
        if (code_ != 0) {                                                                                              \
            status = failed((dev), "NCCL: " #call, code_);                                                             \
            goto done;                                                                                                 \
        }                                                                                                              \
    } while (0)

rq_status cuda_join(void *own, const rq_ranks *ranks) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    cuda_nccl_id id = {{0}};
    int code;
    CUDA_TRY(cudaSetDevice(dev->index), "NCCL");
    RQ_TRY(RQ_NEW_ZERO(dev->ranks, 1));
    dev->ranks->rank = rq_rank(ranks);
    dev->ranks->n = rq_n_ranks(ranks);
    RQ_TRY(cuda_nccl_load(&dev->ranks->lib));
    if (dev->ranks->rank == 0 && (code = dev->ranks->lib->get_unique_id(&id)) != 0) {
        status = failed(dev, "ncclGetUniqueId", code);
        goto done;
    }
    RQ_TRY(ranks->bcast(ranks->user, &id, sizeof id, 0));
    code = dev->ranks->lib->init_rank(&dev->ranks->comm, dev->ranks->n, id, dev->ranks->rank);
    if (code != 0) status = failed(dev, "ncclCommInitRank", code);
done:
    return status;
}

void cuda_leave(cuda_device *dev) {
    if (dev->ranks && dev->ranks->comm) (void)dev->ranks->lib->destroy(dev->ranks->comm);
    free(dev->ranks);
    dev->ranks = NULL;
}

rq_status cuda_share(cuda_device *dev, void *data, int64_t bytes, int root) {
    rq_status status = RQ_OK;
    if (!dev->ranks || bytes == 0) return RQ_OK;
    CUDA_TRY(cudaSetDevice(dev->index), "NCCL");
    NCCL_TRY(dev, broadcast(data, data, (size_t)bytes, NCCL_BYTES, root, dev->ranks->comm, dev->compute));
done:
    return status;
}

/* To and fro from the last panel, which of H has the most work. */
static int owner(const cuda_device *dev, int64_t r0, int64_t n) {
    const int64_t k = rq_ceil_div(n, dev->panel_rows) - 1 - r0 / dev->panel_rows, at = k % dev->ranks->n;
    return (int)(k / dev->ranks->n % 2 ? dev->ranks->n - 1 - at : at);
}

bool cuda_owns_panel(const cuda_device *dev, int64_t r0, int64_t n) {
    return !dev->ranks || owner(dev, r0, n) == dev->ranks->rank;
}

rq_status cuda_share_panels(cuda_device *dev, double *matrix, int64_t n) {
    rq_status status = RQ_OK;
    bool grouped = false;
    if (!dev->ranks) return RQ_OK;
    NCCL_TRY(dev, group_start());
    grouped = true;
    for (int64_t r0 = 0; r0 < n; r0 += dev->panel_rows) {
        const int64_t rows = rq_min_i64(dev->panel_rows, n - r0);
        RQ_TRY(cuda_share(dev, matrix + r0 * n, rows * n * (int64_t)sizeof *matrix, owner(dev, r0, n)));
    }
    grouped = false;
    NCCL_TRY(dev, group_end());
done:
    if (grouped) (void)dev->ranks->lib->group_end();
    return status;
}
