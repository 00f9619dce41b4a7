/* SPDX-License-Identifier: Apache-2.0 */
/* Kernel launches as work, for streams and graph nodes alike. */
#ifndef RQ_GPUSIM_RT_LAUNCH_H
#define RQ_GPUSIM_RT_LAUNCH_H
#include "rt.h"

typedef struct rt_launch {
    rt_kernel *kernel;
    dim3 grid, block, cluster; /* cluster 0: the kernel's own */
    size_t shared;
    bool cooperative;
    int device; /* set by rt_launch_new */
} rt_launch;
typedef struct rt_kernel_work {
    rt_work base;
    rt_launch launch;
    void *args; /* packed: as the kernel sees them */
    size_t arg_bytes;
    void **arg; /* where each is inside args, for those who ask for a node's parameters */
} rt_kernel_work;

/* Errors of a launch that the call itself finds; on the current device. */
cudaError_t rt_launch_check(const rt_launch *l);
/* Copies the arguments: one pointer each (args), or the packed block (extra, as cuLaunchKernel takes it). */
cudaError_t rt_launch_new(const rt_launch *l, void **args, const void *packed, size_t packed_bytes, rt_work **out);
cudaError_t rt_launch_submit(const rt_launch *l, void **args, const void *packed, size_t packed_bytes,
                             cudaStream_t stream);
/* The list of keys and values that passes packed arguments (CU_LAUNCH_PARAM_*); NULL: nothing is passed this way. */
cudaError_t rt_launch_extra(void **extra, const void **packed, size_t *packed_bytes);
/* cudaLaunchConfig_t: its attributes into *l. */
cudaError_t rt_launch_of_config(const cudaLaunchConfig_t *c, rt_launch *l, cudaStream_t *stream);
/* What <<<>>> becomes; declared by nvcc in the files that it compiles. */
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t s);
/* Blocks of this kernel that an SM holds at a time; 0: none. */
int rt_blocks_per_sm(const gs_kernel_info *info, uint32_t threads, size_t shared);

#endif
