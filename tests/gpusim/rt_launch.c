/* SPDX-License-Identifier: Apache-2.0 */
/* Kernel launches: what the call refuses (limits of compute capability 9.0), the copy of the arguments, and the run. */
#include "rt_launch.h"

#include <stdlib.h>
#include <string.h>

#include "rt_capture.h"

/* ---- checks */

static bool is_zero(dim3 d) { return !d.x || !d.y || !d.z; }

int rt_blocks_per_sm(const gs_kernel_info *info, uint32_t threads, size_t shared) {
    if (!threads || threads > info->max_threads) return 0;
    uint32_t warps = (threads + 31) / 32;
    size_t by_threads = RT_SM_THREADS / 32 / warps;
    size_t each = (info->static_shared_bytes + shared + RT_BLOCK_RESERVED + 127) & ~(size_t)127;
    size_t by_shared = RT_SM_SHARED / each;
    size_t n = RT_SM_BLOCKS;
    if (by_threads < n) n = by_threads;
    if (by_shared < n) n = by_shared;
    return (int)n;
}

static dim3 cluster_of(const rt_launch *l, const gs_kernel_info *info) {
    if (info->cluster[0]) return (dim3){info->cluster[0], info->cluster[1], info->cluster[2]};
    return l->cluster.x ? l->cluster : (dim3){1, 1, 1};
}

static cudaError_t check_cluster(const rt_launch *l, const gs_kernel_info *info) {
    if (info->cluster[0] && l->cluster.x &&
        (info->cluster[0] != l->cluster.x || info->cluster[1] != l->cluster.y || info->cluster[2] != l->cluster.z)) {
        return cudaErrorInvalidClusterSize;
    }
    dim3 c = cluster_of(l, info);
    if (is_zero(c)) return cudaErrorInvalidClusterSize;
    uint64_t n = (uint64_t)c.x * c.y * c.z;
    if (n > (l->kernel->non_portable_cluster ? RT_CLUSTER_MAX : RT_CLUSTER_PORTABLE))
        return cudaErrorInvalidClusterSize;
    if (l->grid.x % c.x || l->grid.y % c.y || l->grid.z % c.z) return cudaErrorInvalidClusterSize;
    return cudaSuccess;
}

static cudaError_t check_sizes(const rt_launch *l, const gs_kernel_info *info) {
    if (is_zero(l->grid) || is_zero(l->block)) return cudaErrorInvalidConfiguration;
    uint64_t threads = (uint64_t)l->block.x * l->block.y * l->block.z;
    if (l->block.x > 1024 || l->block.y > 1024 || l->block.z > 64 || threads > RT_BLOCK_THREADS) {
        return cudaErrorInvalidConfiguration;
    }
    if (l->grid.x > INT32_MAX || l->grid.y > 65535 || l->grid.z > 65535) return cudaErrorInvalidConfiguration;
    if (threads > info->max_threads) return cudaErrorInvalidValue;
    const uint32_t *r = info->required;
    if (r[0] && (r[0] != l->block.x || r[1] != l->block.y || r[2] != l->block.z)) return cudaErrorInvalidValue;
    return cudaSuccess;
}

static size_t dynamic_limit(const rt_kernel *k, const gs_kernel_info *info, int device) {
    if (k->max_dynamic[device] >= 0) return (size_t)k->max_dynamic[device];
    return info->static_shared_bytes < RT_BLOCK_SHARED ? RT_BLOCK_SHARED - info->static_shared_bytes : 0;
}

cudaError_t rt_launch_check(const rt_launch *l) {
    int device = rt_self.device;
    gs_kernel *k;
    gs_kernel_info info;
    cudaError_t e = rt_kernel_load(l->kernel, device, &k, &info);
    if (e == cudaSuccess) e = check_sizes(l, &info);
    if (e == cudaSuccess) e = check_cluster(l, &info);
    if (e != cudaSuccess) return e;
    if (l->shared > dynamic_limit(l->kernel, &info, device)) return cudaErrorInvalidValue;
    if (info.static_shared_bytes + l->shared > RT_BLOCK_SHARED_MAX) return cudaErrorInvalidValue;
    if (!l->cooperative) return cudaSuccess;
    uint64_t blocks = (uint64_t)l->grid.x * l->grid.y * l->grid.z;
    int resident = rt_blocks_per_sm(&info, l->block.x * l->block.y * l->block.z, l->shared);
    return blocks > (uint64_t)resident * RT_SM_COUNT ? cudaErrorCooperativeLaunchTooLarge : cudaSuccess;
}

/* ---- the work */

/* What the device would say afterwards. A finding that a GPU would not notice is no error. */
static cudaError_t error_of(gs_result r) {
    switch (r) {
    case GS_OK:
    case GS_FINDING: return cudaSuccess;
    case GS_FAULT_ADDRESS: return cudaErrorIllegalAddress;
    case GS_FAULT_MISALIGNED: return cudaErrorMisalignedAddress;
    case GS_FAULT_TRAP: return cudaErrorLaunchFailure;
    case GS_FAULT_ASSERT: return cudaErrorAssert;
    case GS_FAULT_ILLEGAL: return cudaErrorIllegalInstruction;
    case GS_FAULT_DEADLOCK: return cudaErrorLaunchTimeout;
    case GS_BAD_LAUNCH: return cudaErrorLaunchFailure;
    }
    return cudaErrorUnknown;
}

static cudaError_t run_kernel(rt_work *w, rt_stream *s) {
    (void)s;
    rt_kernel_work *kw = (rt_kernel_work *)w;
    const rt_launch *l = &kw->launch;
    gs_kernel *k;
    gs_kernel_info info;
    cudaError_t e = rt_kernel_load(l->kernel, l->device, &k, &info);
    if (e != cudaSuccess) return e;
    dim3 c = cluster_of(l, &info);
    gs_launch_opt opt = {.grid = {l->grid.x, l->grid.y, l->grid.z},
                         .block = {l->block.x, l->block.y, l->block.z},
                         .cluster = {c.x, c.y, c.z},
                         .dynamic_shared_bytes = l->shared,
                         .cooperative = l->cooperative,
                         .arg_buffer = kw->args};
    gs_counts counts;
    gs_result r = gs_launch(k, &opt, &counts);
    if (r == GS_BAD_LAUNCH) gs_find_host("launch", "%s: %s", gs_kernel_name(k), gs_error());
    return error_of(r);
}

static void drop_kernel(rt_work *w) {
    free(((rt_kernel_work *)w)->args);
    free(((rt_kernel_work *)w)->arg);
}

cudaError_t rt_launch_new(const rt_launch *l, void **args, const void *packed, size_t packed_bytes, rt_work **out) {
    gs_kernel *k;
    gs_kernel_info info;
    cudaError_t e = rt_kernel_load(l->kernel, rt_self.device, &k, &info);
    if (e != cudaSuccess) return e;
    if (packed ? packed_bytes < info.param_bytes : info.n_param && !args) return cudaErrorInvalidValue;
    rt_kernel_work *w = rt_work_new(RT_WORK_KERNEL, sizeof *w, run_kernel);
    w->base.drop = drop_kernel;
    w->launch = *l;
    w->launch.device = rt_self.device;
    w->arg_bytes = info.param_bytes;
    w->args = rt_calloc(1, info.param_bytes);
    w->arg = rt_calloc(info.n_param + 1, sizeof(void *));
    if (packed && info.param_bytes) memcpy(w->args, packed, info.param_bytes);
    for (uint32_t i = 0; i < info.n_param; ++i) {
        size_t offset, bytes;
        gs_kernel_param(k, i, &offset, &bytes);
        w->arg[i] = (char *)w->args + offset;
        if (!packed) memcpy(w->arg[i], args[i], bytes);
    }
    *out = &w->base;
    return cudaSuccess;
}

cudaError_t rt_launch_submit(const rt_launch *l, void **args, const void *packed, size_t packed_bytes,
                             cudaStream_t stream) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(stream, &s);
    if (e != cudaSuccess) return e;
    if (s->device != rt_self.device) return cudaErrorInvalidResourceHandle;
    e = rt_launch_check(l);
    if (e != cudaSuccess) return e;
    rt_work *w;
    e = rt_launch_new(l, args, packed, packed_bytes, &w);
    return e == cudaSuccess ? rt_submit(s, w) : e;
}

cudaError_t rt_launch_extra(void **extra, const void **packed, size_t *packed_bytes) {
    for (; extra && *extra != CU_LAUNCH_PARAM_END; extra += 2) {
        if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) {
            *packed = extra[1];
        } else if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE) {
            memcpy(packed_bytes, extra[1], sizeof *packed_bytes);
        } else {
            return cudaErrorInvalidValue;
        }
    }
    return cudaSuccess;
}

/* ---- calls */

static cudaError_t launch(const void *function, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t s,
                          bool cooperative) {
    rt_kernel *k = rt_kernel_find(function);
    if (!k) return cudaErrorInvalidDeviceFunction;
    rt_launch l = {.kernel = k, .grid = grid, .block = block, .shared = shared, .cooperative = cooperative};
    if (k->required_cluster[0]) {
        l.cluster = (dim3){(unsigned)k->required_cluster[0], (unsigned)k->required_cluster[1],
                           (unsigned)k->required_cluster[2]};
    }
    return rt_launch_submit(&l, args, NULL, 0, s);
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t s) {
    RT_CALL(launch(function, grid, block, args, shared, s, false));
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t s) {
    RT_CALL(launch(kernel, grid, block, args, shared, s, false));
}
cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **args, size_t shared,
                                        cudaStream_t s) {
    RT_CALL(launch(function, grid, block, args, shared, s, true));
}

/* Attributes that change what a kernel computes or may do are taken; those about speed alone are accepted. */
static cudaError_t take_attribute(rt_launch *l, const cudaLaunchAttribute *a) {
    switch (a->id) {
    case cudaLaunchAttributeClusterDimension:
        l->cluster = (dim3){a->val.clusterDim.x, a->val.clusterDim.y, a->val.clusterDim.z};
        return is_zero(l->cluster) ? cudaErrorInvalidValue : cudaSuccess;
    case cudaLaunchAttributeCooperative: l->cooperative = a->val.cooperative != 0; return cudaSuccess;
    case cudaLaunchAttributeIgnore:
    case cudaLaunchAttributeAccessPolicyWindow:
    case cudaLaunchAttributeClusterSchedulingPolicyPreference:
    case cudaLaunchAttributeProgrammaticStreamSerialization: /* the kernel before has always ended */
    case cudaLaunchAttributePriority:
    case cudaLaunchAttributeMemSyncDomainMap:
    case cudaLaunchAttributeMemSyncDomain:
    case cudaLaunchAttributePreferredClusterDimension:
    case cudaLaunchAttributePreferredSharedMemoryCarveout: return cudaSuccess;
    default: return cudaErrorNotSupported;
    }
}

cudaError_t rt_launch_of_config(const cudaLaunchConfig_t *c, rt_launch *l, cudaStream_t *stream) {
    if (!c || (c->numAttrs && !c->attrs)) return cudaErrorInvalidValue;
    l->grid = c->gridDim;
    l->block = c->blockDim;
    l->shared = c->dynamicSmemBytes;
    *stream = c->stream;
    for (unsigned i = 0; i < c->numAttrs; ++i) {
        cudaError_t e = take_attribute(l, &c->attrs[i]);
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}

static cudaError_t launch_config(const cudaLaunchConfig_t *config, const void *function, void **args) {
    rt_launch l = {.kernel = rt_kernel_find(function)};
    if (!l.kernel) return cudaErrorInvalidDeviceFunction;
    cudaStream_t s;
    cudaError_t e = rt_launch_of_config(config, &l, &s);
    return e == cudaSuccess ? rt_launch_submit(&l, args, NULL, 0, s) : e;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **args) {
    RT_CALL(launch_config(config, function, args));
}
