/* SPDX-License-Identifier: Apache-2.0 */
/* Attributes of kernels, and occupancy. The simulator knows no registers: what a kernel needs of them is in the compiler's
 * own report, and occupancy here is by threads, blocks and shared memory. */
#include <string.h>

#include "rt.h"
#include "rt_launch.h"

enum { SOME_REGISTERS = 32 };

static cudaError_t find(const void *function, rt_kernel **k, gs_kernel_info *info) {
    *k = rt_kernel_find(function);
    if (!*k) return cudaErrorInvalidDeviceFunction;
    gs_kernel *loaded;
    return rt_kernel_load(*k, rt_self.device, &loaded, info);
}

static cudaError_t get_attributes(struct cudaFuncAttributes *a, const void *function) {
    if (!a) return cudaErrorInvalidValue;
    rt_kernel *k;
    gs_kernel_info info;
    cudaError_t e = find(function, &k, &info);
    if (e != cudaSuccess) return e;
    memset(a, 0, sizeof *a);
    a->sharedSizeBytes = info.static_shared_bytes;
    a->localSizeBytes = info.local_bytes;
    a->maxThreadsPerBlock = (int)info.max_threads;
    a->numRegs = SOME_REGISTERS;
    a->ptxVersion = info.ptx_version;
    a->binaryVersion = info.binary_version;
    int dynamic = k->max_dynamic[rt_self.device];
    a->maxDynamicSharedSizeBytes = dynamic >= 0 ? dynamic : RT_BLOCK_SHARED - (int)info.static_shared_bytes;
    a->preferredShmemCarveout = k->carveout;
    a->requiredClusterWidth = info.cluster[0] ? (int)info.cluster[0] : k->required_cluster[0];
    a->requiredClusterHeight = info.cluster[0] ? (int)info.cluster[1] : k->required_cluster[1];
    a->requiredClusterDepth = info.cluster[0] ? (int)info.cluster[2] : k->required_cluster[2];
    a->clusterDimMustBeSet = a->requiredClusterWidth != 0;
    a->nonPortableClusterSizeAllowed = k->non_portable_cluster;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *function) {
    RT_CALL(get_attributes(a, function));
}

static cudaError_t set_cluster(rt_kernel *k, int axis, int v, const gs_kernel_info *info) {
    if (v < 0 || info->cluster[0]) return cudaErrorInvalidValue;
    k->required_cluster[axis] = v;
    for (int i = 0; i < 3; ++i) {
        if (!k->required_cluster[i]) k->required_cluster[i] = 1;
    }
    return cudaSuccess;
}

cudaError_t rt_func_set_attribute(rt_kernel *k, enum cudaFuncAttribute a, int v, int device) {
    gs_kernel *loaded;
    gs_kernel_info info;
    cudaError_t e = rt_kernel_load(k, device, &loaded, &info);
    if (e != cudaSuccess) return e;
    switch ((int)a) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize:
        if (v < 0 || (size_t)v + info.static_shared_bytes > RT_BLOCK_SHARED_MAX) return cudaErrorInvalidValue;
        k->max_dynamic[device] = v;
        return cudaSuccess;
    case cudaFuncAttributePreferredSharedMemoryCarveout:
        if (v < -1 || v > 100) return cudaErrorInvalidValue;
        k->carveout = v;
        return cudaSuccess;
    case cudaFuncAttributeRequiredClusterWidth: return set_cluster(k, 0, v, &info);
    case cudaFuncAttributeRequiredClusterHeight: return set_cluster(k, 1, v, &info);
    case cudaFuncAttributeRequiredClusterDepth: return set_cluster(k, 2, v, &info);
    case cudaFuncAttributeNonPortableClusterSizeAllowed: k->non_portable_cluster = v != 0; return cudaSuccess;
    case cudaFuncAttributeClusterSchedulingPolicyPreference: return cudaSuccess; /* about speed alone */
    default: return cudaErrorInvalidValue;
    }
}

static cudaError_t set_attribute(const void *function, enum cudaFuncAttribute a, int v) {
    rt_kernel *k = rt_kernel_find(function);
    return k ? rt_func_set_attribute(k, a, v, rt_self.device) : cudaErrorInvalidDeviceFunction;
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute a, int v) {
    RT_CALL(set_attribute(function, a, v));
}

static cudaError_t set_for_device(cudaKernel_t kernel, enum cudaFuncAttribute a, int v, int device) {
    if (device < 0 || device >= rt_device_count()) return cudaErrorInvalidDevice;
    rt_kernel *k = rt_kernel_find(kernel);
    return k ? rt_func_set_attribute(k, a, v, device) : cudaErrorInvalidResourceHandle;
}

cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t k, enum cudaFuncAttribute a, int v, int device) {
    RT_CALL(set_for_device(k, a, v, device));
}

static cudaError_t cache_config(const void *function) {
    return rt_kernel_find(function) ? cudaSuccess : cudaErrorInvalidDeviceFunction; /* about speed alone */
}

cudaError_t cudaFuncSetCacheConfig(const void *function, enum cudaFuncCache c) {
    (void)c;
    RT_CALL(cache_config(function));
}

static cudaError_t get_name(const char **name, const void *function) {
    if (!name) return cudaErrorInvalidValue;
    const rt_kernel *k = rt_kernel_find(function);
    if (!k) return cudaErrorInvalidDeviceFunction;
    *name = k->name;
    return cudaSuccess;
}

cudaError_t cudaFuncGetName(const char **name, const void *function) { RT_CALL(get_name(name, function)); }

static cudaError_t param_info(const void *function, size_t index, size_t *offset, size_t *bytes) {
    rt_kernel *k;
    gs_kernel_info info;
    cudaError_t e = find(function, &k, &info);
    if (e != cudaSuccess) return e;
    if (index >= info.n_param || !offset) return cudaErrorInvalidValue;
    size_t size;
    gs_kernel_param(k->on[rt_self.device], (uint32_t)index, offset, &size);
    if (bytes) *bytes = size;
    return cudaSuccess;
}

cudaError_t cudaFuncGetParamInfo(const void *function, size_t index, size_t *offset, size_t *bytes) {
    RT_CALL(param_info(function, index, offset, bytes));
}

/* ---- occupancy */

static cudaError_t blocks(int *n, const void *function, int threads, size_t shared) {
    if (!n || threads <= 0) return cudaErrorInvalidValue;
    rt_kernel *k;
    gs_kernel_info info;
    cudaError_t e = find(function, &k, &info);
    if (e == cudaSuccess) *n = rt_blocks_per_sm(&info, (uint32_t)threads, shared);
    return e;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *function, int threads, size_t shared) {
    RT_CALL(blocks(n, function, threads, shared));
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *function, int threads,
                                                                   size_t shared, unsigned flags) {
    (void)flags;
    RT_CALL(blocks(n, function, threads, shared));
}

/* The largest dynamic shared memory with which n blocks still fit. */
static cudaError_t available_shared(size_t *bytes, const void *function, int n, int threads) {
    if (!bytes || n <= 0 || threads <= 0) return cudaErrorInvalidValue;
    rt_kernel *k;
    gs_kernel_info info;
    cudaError_t e = find(function, &k, &info);
    if (e != cudaSuccess) return e;
    if (rt_blocks_per_sm(&info, (uint32_t)threads, 0) < n) return cudaErrorInvalidValue;
    size_t each = ((size_t)RT_SM_SHARED / (size_t)n) & ~(size_t)127;
    size_t most = each - RT_BLOCK_RESERVED - info.static_shared_bytes;
    size_t limit = RT_BLOCK_SHARED_MAX - info.static_shared_bytes;
    *bytes = most < limit ? most : limit;
    return cudaSuccess;
}

cudaError_t cudaOccupancyAvailableDynamicSMemPerBlock(size_t *bytes, const void *function, int n, int threads) {
    RT_CALL(available_shared(bytes, function, n, threads));
}

static cudaError_t cluster_size(int *n, const void *function) {
    if (!n) return cudaErrorInvalidValue;
    rt_kernel *k = rt_kernel_find(function);
    if (!k) return cudaErrorInvalidDeviceFunction;
    *n = k->non_portable_cluster ? RT_CLUSTER_MAX : RT_CLUSTER_PORTABLE;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxPotentialClusterSize(int *n, const void *function, const cudaLaunchConfig_t *c) {
    (void)c;
    RT_CALL(cluster_size(n, function));
}

/* Clusters that the device holds at a time, as if its SMs were one pool (a real one is split into groups of up to 18). */
static cudaError_t active_clusters(int *n, const void *function, const cudaLaunchConfig_t *c) {
    rt_kernel *k;
    gs_kernel_info info;
    cudaError_t e = find(function, &k, &info);
    if (e != cudaSuccess) return e;
    rt_launch l = {.kernel = k};
    cudaStream_t s;
    e = rt_launch_of_config(c, &l, &s);
    if (e != cudaSuccess) return e;
    if (!n) return cudaErrorInvalidValue;
    unsigned size = l.cluster.x ? l.cluster.x * l.cluster.y * l.cluster.z : 1;
    int each = rt_blocks_per_sm(&info, l.block.x * l.block.y * l.block.z, l.shared);
    *n = each * RT_SM_COUNT / (int)size;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int *n, const void *function, const cudaLaunchConfig_t *c) {
    RT_CALL(active_clusters(n, function, c));
}
