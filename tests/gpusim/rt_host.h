/* SPDX-License-Identifier: Apache-2.0 */
/* Host functions in streams and graphs. */
#ifndef RQ_GPUSIM_RT_HOST_H
#define RQ_GPUSIM_RT_HOST_H
#include "rt.h"

typedef struct rt_host_work {
    rt_work base;
    cudaHostFn_t fn;
    cudaStreamCallback_t callback; /* the older form, in place of fn */
    cudaStream_t stream;
    void *user;
} rt_host_work;
rt_work *rt_host_new(cudaHostFn_t fn, void *user);

#endif
