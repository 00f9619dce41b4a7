/* SPDX-License-Identifier: Apache-2.0 */
/* Devices: GPUSIM_DEVICES of them, each like an H100 with less memory. */
#include <cuda_profiler_api.h>
#include <string.h>

#include "rt.h"
#include "rt_capture.h"

static bool is_device(int d) { return d >= 0 && d < rt_device_count(); }

static cudaError_t device_count(int *n) {
    if (!n) return cudaErrorInvalidValue;
    *n = rt_device_count();
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *n) { RT_CALL_ALWAYS(device_count(n)); }

static cudaError_t set_device(int d) {
    if (!is_device(d)) return cudaErrorInvalidDevice;
    rt_self.device = d;
    return rt_devices[d].sticky;
}

cudaError_t cudaSetDevice(int d) { RT_CALL_ALWAYS(set_device(d)); }

static cudaError_t get_device(int *d) {
    if (!d) return cudaErrorInvalidValue;
    *d = rt_self.device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *d) { RT_CALL_ALWAYS(get_device(d)); }

static cudaError_t init_device(int d, unsigned flags) {
    if (!is_device(d)) return cudaErrorInvalidDevice;
    if (flags & cudaInitDeviceFlagsAreValid) return cudaSuccess;
    return flags ? cudaErrorInvalidValue : cudaSuccess;
}

cudaError_t cudaInitDevice(int d, unsigned device_flags, unsigned flags) {
    (void)device_flags;
    RT_CALL(init_device(d, flags));
}

static cudaError_t set_flags(unsigned flags) {
    if (flags & ~(unsigned)cudaDeviceMask) return cudaErrorInvalidValue;
    rt_current()->flags = flags;
    return cudaSuccess;
}

static cudaError_t get_flags(unsigned *flags) {
    if (!flags) return cudaErrorInvalidValue;
    *flags = rt_current()->flags | cudaDeviceMapHost;
    return cudaSuccess;
}

cudaError_t cudaSetDeviceFlags(unsigned flags) { RT_CALL(set_flags(flags)); }
cudaError_t cudaGetDeviceFlags(unsigned *flags) { RT_CALL(get_flags(flags)); }

static cudaError_t version(int *v) {
    if (!v) return cudaErrorInvalidValue;
    *v = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *v) { RT_CALL_ALWAYS(version(v)); }
cudaError_t cudaRuntimeGetVersion(int *v) { RT_CALL_ALWAYS(version(v)); }

/* Everything of the device goes: memory, streams, modules (so variables start anew), and the error that stuck to it. */
static cudaError_t reset(void) {
    int d = rt_self.device;
    rt_run_device(d);
    for (rt_stream *s = rt_streams; s; s = s->next) {
        if (s->device == d) s->destroyed = true;
    }
    rt_devices[d].legacy = NULL;
    rt_self.own[d] = NULL;
    rt_memory_reset(d);
    rt_code_reset(d);
    rt_devices[d].sticky = cudaSuccess;
    rt_devices[d].peers = 0;
    rt_self.last = cudaSuccess;
    return cudaSuccess;
}

cudaError_t cudaDeviceReset(void) { RT_CALL_ALWAYS(reset()); }

/* ---- what a device is like */

/* Rates in kHz, sizes in bytes; 0 for what the simulator has not (textures, surfaces) and for what is switched off. */
static int attribute(enum cudaDeviceAttr a, int d) {
    switch ((int)a) {
    case cudaDevAttrMaxThreadsPerBlock: return RT_BLOCK_THREADS;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return INT32_MAX;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return RT_BLOCK_SHARED;
    case cudaDevAttrTotalConstantMemory: return 65536;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxPitch: return INT32_MAX;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrClockRate: return 1980000;
    case cudaDevAttrTextureAlignment:
    case cudaDevAttrSurfaceAlignment: return 512;
    case cudaDevAttrTexturePitchAlignment: return 32;
    case cudaDevAttrMultiProcessorCount: return RT_SM_COUNT;
    case cudaDevAttrMemoryClockRate: return 2619000;
    case cudaDevAttrGlobalMemoryBusWidth: return 5120;
    case cudaDevAttrL2CacheSize: return 52428800;
    case cudaDevAttrMaxPersistingL2CacheSize: return 32768000;
    case cudaDevAttrMaxAccessPolicyWindowSize: return 134217728;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return RT_SM_THREADS;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return RT_SM_BLOCKS;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return RT_SM_SHARED;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return RT_BLOCK_SHARED_MAX;
    case cudaDevAttrReservedSharedMemoryPerBlock: return RT_BLOCK_RESERVED;
    case cudaDevAttrAsyncEngineCount: return 3;
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrPciBusId: return d + 1;
    case cudaDevAttrMultiGpuBoardGroupID: return d;
    case cudaDevAttrSingleToDoublePrecisionPerfRatio: return 2;
    case cudaDevAttrMemSyncDomainCount: return 4;
    case cudaDevAttrGpuOverlap:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrEccEnabled:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrStreamPrioritiesSupported:
    case cudaDevAttrGlobalL1CacheSupported:
    case cudaDevAttrLocalL1CacheSupported:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentManagedAccess:
    case cudaDevAttrComputePreemptionSupported:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrHostRegisterSupported:
    case cudaDevAttrHostRegisterReadOnlySupported:
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrClusterLaunch: return 1;
    case cudaDevAttrNumaId:
    case cudaDevAttrHostNumaId: return -1;
    default: return 0;
    }
}

static cudaError_t get_attribute(int *v, enum cudaDeviceAttr a, int d) {
    if (!v || (int)a <= 0 || (int)a >= (int)cudaDevAttrMax) return cudaErrorInvalidValue;
    if (!is_device(d)) return cudaErrorInvalidDevice;
    *v = attribute(a, d);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) { RT_CALL(get_attribute(v, a, d)); }

static cudaError_t properties(struct cudaDeviceProp *p, int d) {
    if (!p) return cudaErrorInvalidValue;
    if (!is_device(d)) return cudaErrorInvalidDevice;
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "gpusim sm_90");
    p->uuid.bytes[0] = (char)(d + 1);
    p->totalGlobalMem = rt_devices[d].total;
    p->sharedMemPerBlock = RT_BLOCK_SHARED;
    p->sharedMemPerBlockOptin = RT_BLOCK_SHARED_MAX;
    p->sharedMemPerMultiprocessor = RT_SM_SHARED;
    p->reservedSharedMemPerBlock = RT_BLOCK_RESERVED;
    p->totalConstMem = 65536;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->memPitch = INT32_MAX;
    p->maxThreadsPerBlock = RT_BLOCK_THREADS;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = INT32_MAX;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->maxThreadsPerMultiProcessor = RT_SM_THREADS;
    p->maxBlocksPerMultiProcessor = RT_SM_BLOCKS;
    p->multiProcessorCount = RT_SM_COUNT;
    p->major = 9;
    p->textureAlignment = p->surfaceAlignment = 512;
    p->texturePitchAlignment = 32;
    p->pciBusID = d + 1;
    p->asyncEngineCount = 3;
    p->memoryBusWidth = attribute(cudaDevAttrGlobalMemoryBusWidth, d);
    p->l2CacheSize = attribute(cudaDevAttrL2CacheSize, d);
    p->persistingL2CacheMaxSize = attribute(cudaDevAttrMaxPersistingL2CacheSize, d);
    p->accessPolicyMaxWindowSize = attribute(cudaDevAttrMaxAccessPolicyWindowSize, d);
    p->multiGpuBoardGroupID = d;
    p->canMapHostMemory = p->concurrentKernels = p->ECCEnabled = p->unifiedAddressing = 1;
    p->streamPrioritiesSupported = p->globalL1CacheSupported = p->localL1CacheSupported = 1;
    p->managedMemory = p->concurrentManagedAccess = p->computePreemptionSupported = 1;
    p->canUseHostPointerForRegisteredMem = p->cooperativeLaunch = p->hostRegisterSupported = 1;
    p->hostRegisterReadOnlySupported = p->memoryPoolsSupported = p->clusterLaunch = 1;
    p->deviceNumaId = p->hostNumaId = -1;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) { RT_CALL(properties(p, d)); }

static cudaError_t choose(int *d) {
    if (!d) return cudaErrorInvalidValue;
    *d = 0; /* all are alike */
    return cudaSuccess;
}

cudaError_t cudaChooseDevice(int *d, const struct cudaDeviceProp *p) {
    (void)p;
    RT_CALL(choose(d));
}

static cudaError_t bus_id(char *text, int len, int d) {
    if (!text || len < 13) return cudaErrorInvalidValue;
    if (!is_device(d)) return cudaErrorInvalidDevice;
    snprintf(text, (size_t)len, "0000:%02x:00.0", (unsigned)(d + 1) & 0xff);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int len, int d) { RT_CALL(bus_id(text, len, d)); }

static cudaError_t by_bus_id(int *d, const char *text) {
    if (!d || !text) return cudaErrorInvalidValue;
    for (int k = 0; k < rt_device_count(); ++k) {
        char own[16];
        bus_id(own, sizeof own, k);
        if (strcmp(own, text) != 0 && strcmp(own + 5, text) != 0) continue; /* the domain may be left out */
        *d = k;
        return cudaSuccess;
    }
    return cudaErrorInvalidDevice;
}

cudaError_t cudaDeviceGetByPCIBusId(int *d, const char *text) { RT_CALL(by_bus_id(d, text)); }

/* ---- limits and caches */

static size_t usual_limit(enum cudaLimit l) {
    switch ((int)l) {
    case cudaLimitStackSize: return 1024;
    case cudaLimitPrintfFifoSize: return 8 << 20;
    case cudaLimitMallocHeapSize: return 8 << 20;
    case cudaLimitMaxL2FetchGranularity: return 64;
    default: return 0;
    }
}

static bool is_limit(enum cudaLimit l) {
    return l == cudaLimitStackSize || l == cudaLimitPrintfFifoSize || l == cudaLimitMallocHeapSize ||
           l == cudaLimitMaxL2FetchGranularity || l == cudaLimitPersistingL2CacheSize;
}

static cudaError_t set_limit(enum cudaLimit l, size_t v) {
    if (!is_limit(l)) return cudaErrorUnsupportedLimit;
    rt_current()->limit[l] = v + 1; /* 0: never set */
    return cudaSuccess;
}

static cudaError_t get_limit(size_t *v, enum cudaLimit l) {
    if (!v) return cudaErrorInvalidValue;
    if (!is_limit(l)) return cudaErrorUnsupportedLimit;
    size_t set = rt_current()->limit[l];
    *v = set ? set - 1 : usual_limit(l);
    return cudaSuccess;
}

cudaError_t cudaDeviceSetLimit(enum cudaLimit l, size_t v) { RT_CALL(set_limit(l, v)); }
cudaError_t cudaDeviceGetLimit(size_t *v, enum cudaLimit l) { RT_CALL(get_limit(v, l)); }

/* Preferences about caches change no result. */
cudaError_t cudaDeviceSetCacheConfig(enum cudaFuncCache c) {
    (void)c;
    RT_CALL(cudaSuccess);
}

static cudaError_t cache_config(enum cudaFuncCache *c) {
    if (!c) return cudaErrorInvalidValue;
    *c = cudaFuncCachePreferNone;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetCacheConfig(enum cudaFuncCache *c) { RT_CALL(cache_config(c)); }
cudaError_t cudaCtxResetPersistingL2Cache(void) { RT_CALL(cudaSuccess); }
cudaError_t cudaProfilerStart(void) { RT_CALL(cudaSuccess); }
cudaError_t cudaProfilerStop(void) { RT_CALL(cudaSuccess); }

/* ---- peers: every device can reach every other */

static cudaError_t can_access(int *can, int d, int peer) {
    if (!can) return cudaErrorInvalidValue;
    if (!is_device(d) || !is_device(peer)) return cudaErrorInvalidDevice;
    *can = d != peer;
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int d, int peer) { RT_CALL(can_access(can, d, peer)); }

static cudaError_t enable_peer(int peer, unsigned flags) {
    if (flags) return cudaErrorInvalidValue;
    if (!is_device(peer) || peer == rt_self.device) return cudaErrorInvalidDevice;
    uint32_t *peers = &rt_current()->peers, bit = 1u << peer;
    if (*peers & bit) return cudaErrorPeerAccessAlreadyEnabled;
    *peers |= bit;
    return cudaSuccess;
}

static cudaError_t disable_peer(int peer) {
    if (!is_device(peer)) return cudaErrorInvalidDevice;
    uint32_t *peers = &rt_current()->peers, bit = 1u << peer;
    if (!(*peers & bit)) return cudaErrorPeerAccessNotEnabled;
    *peers &= ~bit;
    return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) { RT_CALL(enable_peer(peer, flags)); }
cudaError_t cudaDeviceDisablePeerAccess(int peer) { RT_CALL(disable_peer(peer)); }

static cudaError_t peer_attribute(int *v, enum cudaDeviceP2PAttr a, int from, int to) {
    if (!v) return cudaErrorInvalidValue;
    if (!is_device(from) || !is_device(to) || from == to) return cudaErrorInvalidDevice;
    switch ((int)a) {
    case cudaDevP2PAttrPerformanceRank: *v = 0; return cudaSuccess;
    case cudaDevP2PAttrAccessSupported:
    case cudaDevP2PAttrNativeAtomicSupported: *v = 1; return cudaSuccess;
    case cudaDevP2PAttrCudaArrayAccessSupported: *v = 0; return cudaSuccess;
    default: return cudaErrorInvalidValue;
    }
}

cudaError_t cudaDeviceGetP2PAttribute(int *v, enum cudaDeviceP2PAttr a, int from, int to) {
    RT_CALL(peer_attribute(v, a, from, to));
}
