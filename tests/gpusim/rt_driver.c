/* SPDX-License-Identifier: Apache-2.0 */
/* A stand-in for libcuda: the part of the driver API that kernel libraries reach for, on top of the runtime's. A context is
 * the device's primary one, a module is a library, a function is a kernel. Codes of the two are the same numbers but for the
 * few in result_of. */
#include "rt_driver.h"

#include <string.h>

#include "tmap.h"

CUresult rt_driver_result(cudaError_t e) {
    switch ((int)e) {
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidPitchValue:
    case cudaErrorInvalidMemcpyDirection: return CUDA_ERROR_INVALID_VALUE;
    case cudaErrorInvalidDeviceFunction: return CUDA_ERROR_INVALID_HANDLE;
    case cudaErrorInvalidSymbol: return CUDA_ERROR_NOT_FOUND;
    default: return (CUresult)(int)e;
    }
}

/* Errors of the driver API are not the runtime's last error: that is put back. */
static CUresult done(cudaError_t last, cudaError_t e) {
    rt_self.last = last;
    return rt_driver_result(e);
}
#define DRIVER(call)                                                                                                   \
    do {                                                                                                               \
        cudaError_t last_ = rt_self.last;                                                                              \
        return done(last_, (call));                                                                                    \
    } while (0)

static void *pointer_of(CUdeviceptr p) { return (void *)(uintptr_t)p; }

/* ---- devices and contexts */

CUresult cuInit(unsigned flags) { return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *v) { DRIVER(cudaDriverGetVersion(v)); }
CUresult cuDeviceGetCount(int *n) { DRIVER(cudaGetDeviceCount(n)); }

static bool is_device(int d) { return d >= 0 && d < rt_device_count(); }

CUresult cuDeviceGet(CUdevice *d, int ordinal) {
    if (!d) return CUDA_ERROR_INVALID_VALUE;
    if (!is_device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *d = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int len, CUdevice d) {
    struct cudaDeviceProp p;
    if (!name || len <= 0) return CUDA_ERROR_INVALID_VALUE;
    cudaError_t last = rt_self.last, e = cudaGetDeviceProperties(&p, d);
    if (e == cudaSuccess) snprintf(name, (size_t)len, "%s", p.name);
    return done(last, e);
}

/* The two enumerations have the same numbers. */
CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) {
    DRIVER(cudaDeviceGetAttribute(v, (enum cudaDeviceAttr)a, d));
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice d) {
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    if (!is_device(d)) return CUDA_ERROR_INVALID_DEVICE;
    struct cudaDeviceProp p;
    cudaError_t last = rt_self.last, e = cudaGetDeviceProperties(&p, d);
    *bytes = e == cudaSuccess ? p.totalGlobalMem : 0;
    return done(last, e);
}

struct CUctx_st {
    int device;
};
static struct CUctx_st contexts[RT_MAX_DEVICES];

static CUcontext context_of(int device) {
    contexts[device].device = device;
    return &contexts[device];
}

static bool is_context(CUcontext c) { return c >= contexts && c < contexts + rt_device_count(); }

CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) {
    if (!c) return CUDA_ERROR_INVALID_VALUE;
    if (!is_device(d)) return CUDA_ERROR_INVALID_DEVICE;
    *c = context_of(d);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice d) { return is_device(d) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE; }

CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned *flags, int *active) {
    if (!is_device(d)) return CUDA_ERROR_INVALID_DEVICE;
    if (flags) *flags = 0;
    if (active) *active = 1;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *c) {
    if (!c) return CUDA_ERROR_INVALID_VALUE;
    *c = context_of(rt_self.device);
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext c) {
    if (!c) return CUDA_SUCCESS; /* the runtime would make the primary one current again */
    if (!is_context(c)) return CUDA_ERROR_INVALID_CONTEXT;
    DRIVER(cudaSetDevice(c->device));
}

CUresult cuCtxGetDevice(CUdevice *d) { DRIVER(cudaGetDevice(d)); }
CUresult cuCtxSynchronize(void) { DRIVER(cudaDeviceSynchronize()); }

/* ---- modules, libraries, functions */

CUresult cuModuleLoadData(CUmodule *m, const void *image) {
    cudaLibrary_t l = NULL;
    if (!m) return CUDA_ERROR_INVALID_VALUE;
    cudaError_t last = rt_self.last, e = cudaLibraryLoadData(&l, image, NULL, NULL, 0, NULL, NULL, 0);
    *m = (CUmodule)l;
    return done(last, e);
}

CUresult cuModuleLoadDataEx(CUmodule *m, const void *image, unsigned n, CUjit_option *options, void **values) {
    (void)n, (void)options, (void)values; /* about compiling */
    return cuModuleLoadData(m, image);
}

CUresult cuModuleLoad(CUmodule *m, const char *path) {
    cudaLibrary_t l = NULL;
    if (!m) return CUDA_ERROR_INVALID_VALUE;
    cudaError_t last = rt_self.last, e = cudaLibraryLoadFromFile(&l, path, NULL, NULL, 0, NULL, NULL, 0);
    *m = (CUmodule)l;
    return done(last, e);
}

CUresult cuModuleUnload(CUmodule m) { DRIVER(cudaLibraryUnload((cudaLibrary_t)m)); }

CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) {
    cudaKernel_t k = NULL;
    if (!f) return CUDA_ERROR_INVALID_VALUE;
    cudaError_t last = rt_self.last, e = cudaLibraryGetKernel(&k, (cudaLibrary_t)m, name);
    *f = (CUfunction)k;
    return done(last, e);
}

CUresult cuModuleGetGlobal(CUdeviceptr *p, size_t *bytes, CUmodule m, const char *name) {
    void *address = NULL;
    cudaError_t last = rt_self.last, e = cudaLibraryGetGlobal(&address, bytes, (cudaLibrary_t)m, name);
    if (p) *p = (CUdeviceptr)(uintptr_t)address;
    return done(last, e);
}

CUresult cuLibraryLoadData(CUlibrary *l, const void *image, CUjit_option *jit, void **jit_values, unsigned n_jit,
                           CUlibraryOption *options, void **values, unsigned n) {
    (void)jit, (void)jit_values, (void)n_jit, (void)options, (void)values, (void)n;
    DRIVER(cudaLibraryLoadData(l, image, NULL, NULL, 0, NULL, NULL, 0));
}

CUresult cuLibraryUnload(CUlibrary l) { DRIVER(cudaLibraryUnload(l)); }
CUresult cuLibraryGetKernel(CUkernel *k, CUlibrary l, const char *name) { DRIVER(cudaLibraryGetKernel(k, l, name)); }

CUresult cuLibraryGetModule(CUmodule *m, CUlibrary l) {
    if (!m) return CUDA_ERROR_INVALID_VALUE;
    *m = (CUmodule)l;
    return CUDA_SUCCESS;
}

CUresult cuKernelGetFunction(CUfunction *f, CUkernel k) {
    if (!f || !k) return CUDA_ERROR_INVALID_VALUE;
    *f = (CUfunction)k;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction f) {
    struct cudaFuncAttributes all;
    if (!v) return CUDA_ERROR_INVALID_VALUE;
    cudaError_t last = rt_self.last, e = cudaFuncGetAttributes(&all, f);
    if (e != cudaSuccess) return done(last, e);
    switch ((int)a) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *v = all.maxThreadsPerBlock; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *v = (int)all.sharedSizeBytes; break;
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES: *v = (int)all.constSizeBytes; break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *v = (int)all.localSizeBytes; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *v = all.numRegs; break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION: *v = all.ptxVersion; break;
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *v = all.binaryVersion; break;
    case CU_FUNC_ATTRIBUTE_CACHE_MODE_CA: *v = all.cacheModeCA; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *v = all.maxDynamicSharedSizeBytes; break;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: *v = all.preferredShmemCarveout; break;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET: *v = all.clusterDimMustBeSet; break;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH: *v = all.requiredClusterWidth; break;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT: *v = all.requiredClusterHeight; break;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH: *v = all.requiredClusterDepth; break;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: *v = all.nonPortableClusterSizeAllowed; break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
    DRIVER(cudaFuncSetAttribute(f, (enum cudaFuncAttribute)a, v));
}

CUresult cuKernelSetAttribute(CUfunction_attribute a, int v, CUkernel k, CUdevice d) {
    DRIVER(cudaKernelSetAttributeForDevice(k, (enum cudaFuncAttribute)a, v, d));
}

CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache c) {
    (void)c;
    DRIVER(cudaFuncSetCacheConfig(f, cudaFuncCachePreferNone));
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction f, int threads, size_t shared) {
    DRIVER(cudaOccupancyMaxActiveBlocksPerMultiprocessor(n, f, threads, shared));
}

/* ---- launches */

static cudaError_t launch(rt_launch *l, CUfunction f, void **args, void **extra, CUstream s) {
    l->kernel = rt_kernel_find(f);
    if (!l->kernel) return cudaErrorInvalidResourceHandle;
    const void *packed = NULL;
    size_t packed_bytes = 0;
    cudaError_t e = rt_launch_extra(extra, &packed, &packed_bytes);
    return e == cudaSuccess ? rt_launch_submit(l, args, packed, packed_bytes, s) : e;
}

static cudaError_t locked_launch(rt_launch *l, CUfunction f, void **args, void **extra, CUstream s) {
    RT_CALL(launch(l, f, args, extra, s));
}

CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream s, void **args, void **extra) {
    rt_launch l = {.grid = {gx, gy, gz}, .block = {bx, by, bz}, .shared = shared};
    DRIVER(locked_launch(&l, f, args, extra, s));
}

CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                   unsigned bz, unsigned shared, CUstream s, void **args) {
    rt_launch l = {.grid = {gx, gy, gz}, .block = {bx, by, bz}, .shared = shared, .cooperative = true};
    DRIVER(locked_launch(&l, f, args, NULL, s));
}

static cudaError_t launch_config(const CUlaunchConfig *c, CUfunction f, void **args, void **extra) {
    enum { MOST = 32 };
    _Static_assert(sizeof(CUlaunchAttribute) == sizeof(cudaLaunchAttribute), "the two have one layout");
    cudaLaunchAttribute attribute[MOST];
    if (!c || c->numAttrs > MOST || (c->numAttrs && !c->attrs)) return cudaErrorInvalidValue;
    if (c->numAttrs) memcpy(attribute, c->attrs, c->numAttrs * sizeof *attribute);
    cudaLaunchConfig_t config = {.gridDim = {c->gridDimX, c->gridDimY, c->gridDimZ},
                                 .blockDim = {c->blockDimX, c->blockDimY, c->blockDimZ},
                                 .dynamicSmemBytes = c->sharedMemBytes,
                                 .stream = c->hStream,
                                 .attrs = attribute,
                                 .numAttrs = c->numAttrs};
    rt_launch l = {0};
    cudaStream_t s;
    cudaError_t e = rt_launch_of_config(&config, &l, &s);
    return e == cudaSuccess ? launch(&l, f, args, extra, s) : e;
}

static cudaError_t locked_launch_config(const CUlaunchConfig *c, CUfunction f, void **args, void **extra) {
    RT_CALL(launch_config(c, f, args, extra));
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **args, void **extra) {
    DRIVER(locked_launch_config(c, f, args, extra));
}

/* ---- memory */

CUresult cuMemAlloc(CUdeviceptr *p, size_t bytes) {
    void *got = NULL;
    if (!p || !bytes) return CUDA_ERROR_INVALID_VALUE;
    cudaError_t last = rt_self.last, e = cudaMalloc(&got, bytes);
    *p = (CUdeviceptr)(uintptr_t)got;
    return done(last, e);
}

CUresult cuMemFree(CUdeviceptr p) { DRIVER(cudaFree(pointer_of(p))); }
CUresult cuMemHostAlloc(void **p, size_t bytes, unsigned flags) { DRIVER(cudaHostAlloc(p, bytes, flags)); }
CUresult cuMemFreeHost(void *p) { DRIVER(cudaFreeHost(p)); }
CUresult cuMemGetInfo(size_t *available, size_t *total) { DRIVER(cudaMemGetInfo(available, total)); }
CUresult cuMemcpy(CUdeviceptr dst, CUdeviceptr src, size_t n) {
    DRIVER(cudaMemcpy(pointer_of(dst), pointer_of(src), n, cudaMemcpyDefault));
}
CUresult cuMemcpyAsync(CUdeviceptr dst, CUdeviceptr src, size_t n, CUstream s) {
    DRIVER(cudaMemcpyAsync(pointer_of(dst), pointer_of(src), n, cudaMemcpyDefault, s));
}
CUresult cuMemcpyHtoD(CUdeviceptr dst, const void *src, size_t n) {
    DRIVER(cudaMemcpy(pointer_of(dst), src, n, cudaMemcpyHostToDevice));
}
CUresult cuMemcpyDtoH(void *dst, CUdeviceptr src, size_t n) {
    DRIVER(cudaMemcpy(dst, pointer_of(src), n, cudaMemcpyDeviceToHost));
}
CUresult cuMemcpyDtoD(CUdeviceptr dst, CUdeviceptr src, size_t n) {
    DRIVER(cudaMemcpy(pointer_of(dst), pointer_of(src), n, cudaMemcpyDeviceToDevice));
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr dst, const void *src, size_t n, CUstream s) {
    DRIVER(cudaMemcpyAsync(pointer_of(dst), src, n, cudaMemcpyHostToDevice, s));
}
CUresult cuMemcpyDtoHAsync(void *dst, CUdeviceptr src, size_t n, CUstream s) {
    DRIVER(cudaMemcpyAsync(dst, pointer_of(src), n, cudaMemcpyDeviceToHost, s));
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr dst, CUdeviceptr src, size_t n, CUstream s) {
    DRIVER(cudaMemcpyAsync(pointer_of(dst), pointer_of(src), n, cudaMemcpyDeviceToDevice, s));
}
CUresult cuMemsetD8(CUdeviceptr p, unsigned char v, size_t n) { DRIVER(cudaMemset(pointer_of(p), v, n)); }
CUresult cuMemsetD8Async(CUdeviceptr p, unsigned char v, size_t n, CUstream s) {
    DRIVER(cudaMemsetAsync(pointer_of(p), v, n, s));
}

static cudaError_t fill_words(CUdeviceptr p, unsigned v, size_t n, CUstream stream) {
    rt_fill f = {pointer_of(p), 0, n, 1, 1, v, 4};
    rt_stream *s;
    cudaError_t e = rt_stream_of(stream, &s);
    if (e == cudaSuccess) e = rt_fill_check("cuMemsetD32", &f);
    return e == cudaSuccess ? rt_submit(s, rt_fill_new(&f)) : e;
}

static cudaError_t locked_fill_words(CUdeviceptr p, unsigned v, size_t n, CUstream s) {
    RT_CALL(fill_words(p, v, n, s));
}

CUresult cuMemsetD32(CUdeviceptr p, unsigned v, size_t n) { DRIVER(locked_fill_words(p, v, n, NULL)); }
CUresult cuMemsetD32Async(CUdeviceptr p, unsigned v, size_t n, CUstream s) { DRIVER(locked_fill_words(p, v, n, s)); }

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute what, CUdeviceptr p) {
    struct cudaPointerAttributes a;
    if (!data) return CUDA_ERROR_INVALID_VALUE;
    cudaError_t last = rt_self.last, e = cudaPointerGetAttributes(&a, pointer_of(p));
    if (e != cudaSuccess) return done(last, e);
    if (a.type == cudaMemoryTypeUnregistered) return CUDA_ERROR_INVALID_VALUE;
    unsigned type = a.type == cudaMemoryTypeHost ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
    CUcontext c = context_of(a.device);
    switch ((int)what) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: memcpy(data, &c, sizeof c); break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: memcpy(data, &type, sizeof type); break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: memcpy(data, &p, sizeof p); break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        if (!a.hostPointer) return CUDA_ERROR_INVALID_VALUE;
        memcpy(data, &a.hostPointer, sizeof a.hostPointer);
        break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: memcpy(data, &a.device, sizeof a.device); break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

/* ---- streams and events */

CUresult cuStreamCreate(CUstream *s, unsigned flags) { DRIVER(cudaStreamCreateWithFlags(s, flags)); }
CUresult cuStreamDestroy(CUstream s) { DRIVER(cudaStreamDestroy(s)); }
CUresult cuStreamSynchronize(CUstream s) { DRIVER(cudaStreamSynchronize(s)); }
CUresult cuStreamQuery(CUstream s) { DRIVER(cudaStreamQuery(s)); }
CUresult cuStreamWaitEvent(CUstream s, CUevent e, unsigned flags) { DRIVER(cudaStreamWaitEvent(s, e, flags)); }
CUresult cuEventCreate(CUevent *e, unsigned flags) { DRIVER(cudaEventCreateWithFlags(e, flags)); }
CUresult cuEventRecord(CUevent e, CUstream s) { DRIVER(cudaEventRecord(e, s)); }
CUresult cuEventSynchronize(CUevent e) { DRIVER(cudaEventSynchronize(e)); }
CUresult cuEventDestroy(CUevent e) { DRIVER(cudaEventDestroy(e)); }
CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to) { DRIVER(cudaEventElapsedTime(ms, from, to)); }

/* ---- tensor maps */

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *dim, const cuuint64_t *stride, const cuuint32_t *box,
                                const cuuint32_t *element_stride, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2, CUtensorMapFloatOOBfill fill) {
    return (CUresult)gs_tmap_encode_tiled(map, (int)type, rank, address, dim, stride, box, element_stride,
                                          (int)interleave, (int)swizzle, (int)l2, (int)fill);
}
