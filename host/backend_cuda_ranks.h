/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks with a GPU each (backend_cuda_ranks.c). Without ranks these do nothing, and every panel is the device's own. */
#ifndef RQ_BACKEND_CUDA_RANKS_H
#define RQ_BACKEND_CUDA_RANKS_H

#include "backend_cuda.h"

/* What is used of NCCL, in declarations of our own: building needs no header of its. Codes are ncclResult_t, 0 is success. */
typedef struct cuda_nccl_id {
    char bytes[128];
} cuda_nccl_id;
typedef struct cuda_nccl {
    int (*get_unique_id)(cuda_nccl_id *id);
    int (*init_rank)(void **comm, int n, cuda_nccl_id id, int rank);
    int (*destroy)(void *comm);
    int (*broadcast)(const void *from, void *to, size_t count, int type, int root, void *comm, cudaStream_t stream);
    int (*group_start)(void);
    int (*group_end)(void);
    const char *(*error_string)(int code);
} cuda_nccl;
/* backend_cuda_libs.c; RQ_NCCL can name the file. */
rq_status cuda_nccl_load(const cuda_nccl **lib);

rq_status cuda_join(void *own, const rq_ranks *ranks);
void cuda_leave(cuda_device *dev);
/* The root's bytes of device memory to all, on the compute stream. */
rq_status cuda_share(cuda_device *dev, void *data, int64_t bytes, int root);
/* Panel of rows r0 .. of an n x n Gram matrix: whether it is this rank's; and the owners' to all. */
bool cuda_owns_panel(const cuda_device *dev, int64_t r0, int64_t n);
rq_status cuda_share_panels(cuda_device *dev, double *matrix, int64_t n);

#endif
