/* SPDX-License-Identifier: Apache-2.0 */
/* Entry points of the driver by name, and the names of its errors. */
#include <string.h>

#include "rt_driver.h"

typedef struct entry {
    const char *name;
    void (*function)(void);
} entry;

/* The headers rename some (cuMemAlloc is cuMemAlloc_v2): the name stays as it is asked for. */
#define ENTRY(f)                                                                                                       \
    { #f, (void (*)(void))f }
// clang-format off
static const entry entries[] = {
    ENTRY(cuInit), ENTRY(cuDriverGetVersion), ENTRY(cuDeviceGet), ENTRY(cuDeviceGetCount), ENTRY(cuDeviceGetName),
    ENTRY(cuDeviceGetAttribute), ENTRY(cuDeviceTotalMem), ENTRY(cuDevicePrimaryCtxRetain),
    ENTRY(cuDevicePrimaryCtxRelease), ENTRY(cuDevicePrimaryCtxGetState), ENTRY(cuCtxGetCurrent), ENTRY(cuCtxSetCurrent),
    ENTRY(cuCtxGetDevice), ENTRY(cuCtxSynchronize), ENTRY(cuModuleLoadData), ENTRY(cuModuleLoadDataEx),
    ENTRY(cuModuleLoad), ENTRY(cuModuleUnload), ENTRY(cuModuleGetFunction), ENTRY(cuModuleGetGlobal),
    ENTRY(cuLibraryLoadData), ENTRY(cuLibraryUnload), ENTRY(cuLibraryGetKernel), ENTRY(cuLibraryGetModule),
    ENTRY(cuKernelGetFunction), ENTRY(cuKernelSetAttribute), ENTRY(cuFuncGetAttribute), ENTRY(cuFuncSetAttribute),
    ENTRY(cuFuncSetCacheConfig), ENTRY(cuOccupancyMaxActiveBlocksPerMultiprocessor), ENTRY(cuLaunchKernel),
    ENTRY(cuLaunchKernelEx), ENTRY(cuLaunchCooperativeKernel), ENTRY(cuMemAlloc), ENTRY(cuMemFree),
    ENTRY(cuMemHostAlloc), ENTRY(cuMemFreeHost), ENTRY(cuMemGetInfo), ENTRY(cuMemcpy), ENTRY(cuMemcpyAsync),
    ENTRY(cuMemcpyHtoD), ENTRY(cuMemcpyDtoH), ENTRY(cuMemcpyDtoD), ENTRY(cuMemcpyHtoDAsync), ENTRY(cuMemcpyDtoHAsync),
    ENTRY(cuMemcpyDtoDAsync), ENTRY(cuMemsetD8), ENTRY(cuMemsetD8Async), ENTRY(cuMemsetD32), ENTRY(cuMemsetD32Async),
    ENTRY(cuPointerGetAttribute), ENTRY(cuStreamCreate), ENTRY(cuStreamDestroy), ENTRY(cuStreamSynchronize),
    ENTRY(cuStreamQuery), ENTRY(cuStreamWaitEvent), ENTRY(cuEventCreate), ENTRY(cuEventRecord),
    ENTRY(cuEventSynchronize), ENTRY(cuEventDestroy), ENTRY(cuEventElapsedTime), ENTRY(cuTensorMapEncodeTiled),
    ENTRY(cuGetErrorName), ENTRY(cuGetErrorString), ENTRY(cuGetProcAddress),
};
// clang-format on

/* NULL: we have no such function. */
static const entry *find(const char *name) {
    for (size_t i = 0; name && i < sizeof entries / sizeof entries[0]; ++i) {
        if (!strcmp(entries[i].name, name)) return &entries[i];
    }
    return NULL;
}

static void put(const entry *e, void **out) {
    *out = NULL;
    if (e) memcpy(out, &e->function, sizeof *out);
}

static cudaError_t entry_point(const char *name, void **function, enum cudaDriverEntryPointQueryResult *result) {
    if (!name || !*name || !function) return cudaErrorInvalidValue;
    const entry *e = find(name);
    put(e, function);
    if (result) *result = e ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return e || result ? cudaSuccess : cudaErrorSymbolNotFound;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    (void)version, (void)flags; /* one version of each, and default streams are as the function's name says */
    RT_CALL(entry_point(name, function, result));
}

cudaError_t cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags,
                                    enum cudaDriverEntryPointQueryResult *result) {
    (void)flags;
    RT_CALL(entry_point(name, function, result));
}

CUresult cuGetProcAddress(const char *name, void **function, int version, cuuint64_t flags,
                          CUdriverProcAddressQueryResult *result) {
    (void)version, (void)flags;
    if (!name || !function) return CUDA_ERROR_INVALID_VALUE;
    const entry *e = find(name);
    put(e, function);
    if (result) *result = e ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return e ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

/* ---- errors */

typedef struct name_row {
    CUresult code;
    const char *name;
} name_row;
#define NAME(code)                                                                                                     \
    { code, #code }
// clang-format off
static const name_row names[] = {
    NAME(CUDA_SUCCESS), NAME(CUDA_ERROR_INVALID_VALUE), NAME(CUDA_ERROR_OUT_OF_MEMORY),
    NAME(CUDA_ERROR_NOT_INITIALIZED), NAME(CUDA_ERROR_DEINITIALIZED), NAME(CUDA_ERROR_NO_DEVICE),
    NAME(CUDA_ERROR_INVALID_DEVICE), NAME(CUDA_ERROR_INVALID_IMAGE), NAME(CUDA_ERROR_INVALID_CONTEXT),
    NAME(CUDA_ERROR_NO_BINARY_FOR_GPU), NAME(CUDA_ERROR_UNSUPPORTED_LIMIT), NAME(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED),
    NAME(CUDA_ERROR_INVALID_PTX), NAME(CUDA_ERROR_INVALID_SOURCE), NAME(CUDA_ERROR_FILE_NOT_FOUND),
    NAME(CUDA_ERROR_INVALID_HANDLE), NAME(CUDA_ERROR_ILLEGAL_STATE), NAME(CUDA_ERROR_NOT_FOUND),
    NAME(CUDA_ERROR_NOT_READY), NAME(CUDA_ERROR_ILLEGAL_ADDRESS), NAME(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES),
    NAME(CUDA_ERROR_LAUNCH_TIMEOUT), NAME(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED),
    NAME(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED), NAME(CUDA_ERROR_ASSERT),
    NAME(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED), NAME(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED),
    NAME(CUDA_ERROR_ILLEGAL_INSTRUCTION), NAME(CUDA_ERROR_MISALIGNED_ADDRESS), NAME(CUDA_ERROR_LAUNCH_FAILED),
    NAME(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE), NAME(CUDA_ERROR_NOT_PERMITTED), NAME(CUDA_ERROR_NOT_SUPPORTED),
    NAME(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED), NAME(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED),
    NAME(CUDA_ERROR_STREAM_CAPTURE_MERGE), NAME(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED),
    NAME(CUDA_ERROR_STREAM_CAPTURE_UNJOINED), NAME(CUDA_ERROR_STREAM_CAPTURE_ISOLATION),
    NAME(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT), NAME(CUDA_ERROR_CAPTURED_EVENT),
    NAME(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD), NAME(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE),
    NAME(CUDA_ERROR_INVALID_CLUSTER_SIZE), NAME(CUDA_ERROR_UNKNOWN),
};
// clang-format on

CUresult cuGetErrorName(CUresult e, const char **name) {
    if (!name) return CUDA_ERROR_INVALID_VALUE;
    *name = NULL;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i) {
        if (names[i].code == e) *name = names[i].name;
    }
    return *name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult e, const char **text) {
    if (!text) return CUDA_ERROR_INVALID_VALUE;
    *text = rt_error_text((cudaError_t)(int)e);
    return CUDA_SUCCESS;
}
