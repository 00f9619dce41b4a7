/* SPDX-License-Identifier: Apache-2.0 */
/* The names that calls get when a program is compiled with --default-stream per-thread: the stream 0 is then the thread's
 * own. */
#include "rt.h"
#include "rt_driver.h"
#include "rt_launch.h"

#define OWN(s) ((s) ? (s) : cudaStreamPerThread)
/* `declared` in parentheses with names, `passed` as the plain call gets them. */
#define PER_THREAD(name, declared, passed)                                                                             \
    cudaError_t name declared;                                                                                         \
    cudaError_t name declared { return passed; }

// clang-format off
PER_THREAD(__cudaLaunchKernel_ptsz, (cudaKernel_t k, dim3 g, dim3 b, void **a, size_t n, cudaStream_t s),
           __cudaLaunchKernel(k, g, b, a, n, OWN(s)))
PER_THREAD(cudaLaunchKernel_ptsz, (const void *f, dim3 g, dim3 b, void **a, size_t n, cudaStream_t s),
           cudaLaunchKernel(f, g, b, a, n, OWN(s)))
PER_THREAD(cudaLaunchCooperativeKernel_ptsz, (const void *f, dim3 g, dim3 b, void **a, size_t n, cudaStream_t s),
           cudaLaunchCooperativeKernel(f, g, b, a, n, OWN(s)))
PER_THREAD(cudaLaunchHostFunc_ptsz, (cudaStream_t s, cudaHostFn_t f, void *u), cudaLaunchHostFunc(OWN(s), f, u))
PER_THREAD(cudaMemcpyAsync_ptsz, (void *d, const void *o, size_t n, enum cudaMemcpyKind k, cudaStream_t s),
           cudaMemcpyAsync(d, o, n, k, OWN(s)))
PER_THREAD(cudaMemcpy2DAsync_ptsz, (void *d, size_t dp, const void *o, size_t op, size_t w, size_t h,
                                    enum cudaMemcpyKind k, cudaStream_t s),
           cudaMemcpy2DAsync(d, dp, o, op, w, h, k, OWN(s)))
PER_THREAD(cudaMemcpy3DAsync_ptsz, (const struct cudaMemcpy3DParms *p, cudaStream_t s), cudaMemcpy3DAsync(p, OWN(s)))
PER_THREAD(cudaMemcpyToSymbolAsync_ptsz, (const void *y, const void *o, size_t n, size_t at, enum cudaMemcpyKind k,
                                          cudaStream_t s),
           cudaMemcpyToSymbolAsync(y, o, n, at, k, OWN(s)))
PER_THREAD(cudaMemcpyFromSymbolAsync_ptsz, (void *d, const void *y, size_t n, size_t at, enum cudaMemcpyKind k,
                                            cudaStream_t s),
           cudaMemcpyFromSymbolAsync(d, y, n, at, k, OWN(s)))
PER_THREAD(cudaMemsetAsync_ptsz, (void *p, int v, size_t n, cudaStream_t s), cudaMemsetAsync(p, v, n, OWN(s)))
PER_THREAD(cudaMemset2DAsync_ptsz, (void *p, size_t q, int v, size_t w, size_t h, cudaStream_t s),
           cudaMemset2DAsync(p, q, v, w, h, OWN(s)))
PER_THREAD(cudaMallocAsync_ptsz, (void **p, size_t n, cudaStream_t s), cudaMallocAsync(p, n, OWN(s)))
PER_THREAD(cudaFreeAsync_ptsz, (void *p, cudaStream_t s), cudaFreeAsync(p, OWN(s)))
PER_THREAD(cudaMallocFromPoolAsync_ptsz, (void **p, size_t n, cudaMemPool_t q, cudaStream_t s),
           cudaMallocFromPoolAsync(p, n, q, OWN(s)))
PER_THREAD(cudaStreamSynchronize_ptsz, (cudaStream_t s), cudaStreamSynchronize(OWN(s)))
PER_THREAD(cudaStreamQuery_ptsz, (cudaStream_t s), cudaStreamQuery(OWN(s)))
PER_THREAD(cudaStreamWaitEvent_ptsz, (cudaStream_t s, cudaEvent_t e, unsigned f), cudaStreamWaitEvent(OWN(s), e, f))
PER_THREAD(cudaStreamAddCallback_ptsz, (cudaStream_t s, cudaStreamCallback_t c, void *u, unsigned f),
           cudaStreamAddCallback(OWN(s), c, u, f))
PER_THREAD(cudaStreamGetFlags_ptsz, (cudaStream_t s, unsigned *f), cudaStreamGetFlags(OWN(s), f))
PER_THREAD(cudaStreamGetPriority_ptsz, (cudaStream_t s, int *p), cudaStreamGetPriority(OWN(s), p))
PER_THREAD(cudaStreamGetId_ptsz, (cudaStream_t s, unsigned long long *i), cudaStreamGetId(OWN(s), i))
PER_THREAD(cudaStreamGetDevice_ptsz, (cudaStream_t s, int *d), cudaStreamGetDevice(OWN(s), d))
PER_THREAD(cudaStreamBeginCapture_ptsz, (cudaStream_t s, enum cudaStreamCaptureMode m),
           cudaStreamBeginCapture(OWN(s), m))
PER_THREAD(cudaStreamEndCapture_ptsz, (cudaStream_t s, cudaGraph_t *g), cudaStreamEndCapture(OWN(s), g))
PER_THREAD(cudaStreamIsCapturing_ptsz, (cudaStream_t s, enum cudaStreamCaptureStatus *c),
           cudaStreamIsCapturing(OWN(s), c))
PER_THREAD(cudaEventRecord_ptsz, (cudaEvent_t e, cudaStream_t s), cudaEventRecord(e, OWN(s)))
PER_THREAD(cudaEventRecordWithFlags_ptsz, (cudaEvent_t e, cudaStream_t s, unsigned f),
           cudaEventRecordWithFlags(e, OWN(s), f))
PER_THREAD(cudaGraphLaunch_ptsz, (cudaGraphExec_t x, cudaStream_t s), cudaGraphLaunch(x, OWN(s)))
PER_THREAD(cudaGraphUpload_ptsz, (cudaGraphExec_t x, cudaStream_t s), cudaGraphUpload(x, OWN(s)))
PER_THREAD(cudaGraphInstantiateWithParams_ptsz, (cudaGraphExec_t *x, cudaGraph_t g, cudaGraphInstantiateParams *p),
           cudaGraphInstantiateWithParams(x, g, p))
PER_THREAD(cudaGetDriverEntryPointByVersion_ptsz, (const char *y, void **f, unsigned v, unsigned long long g,
                                                   enum cudaDriverEntryPointQueryResult *r),
           cudaGetDriverEntryPointByVersion(y, f, v, g, r))

/* Calls that wait: in the thread's own stream, then for it. */
static cudaError_t finish(cudaError_t e) { return e == cudaSuccess ? cudaStreamSynchronize(cudaStreamPerThread) : e; }

PER_THREAD(cudaMemcpy_ptds, (void *d, const void *o, size_t n, enum cudaMemcpyKind k),
           finish(cudaMemcpyAsync(d, o, n, k, cudaStreamPerThread)))
PER_THREAD(cudaMemcpy2D_ptds, (void *d, size_t dp, const void *o, size_t op, size_t w, size_t h, enum cudaMemcpyKind k),
           finish(cudaMemcpy2DAsync(d, dp, o, op, w, h, k, cudaStreamPerThread)))
PER_THREAD(cudaMemcpy3D_ptds, (const struct cudaMemcpy3DParms *p), finish(cudaMemcpy3DAsync(p, cudaStreamPerThread)))
PER_THREAD(cudaMemcpyToSymbol_ptds, (const void *y, const void *o, size_t n, size_t at, enum cudaMemcpyKind k),
           finish(cudaMemcpyToSymbolAsync(y, o, n, at, k, cudaStreamPerThread)))
PER_THREAD(cudaMemcpyFromSymbol_ptds, (void *d, const void *y, size_t n, size_t at, enum cudaMemcpyKind k),
           finish(cudaMemcpyFromSymbolAsync(d, y, n, at, k, cudaStreamPerThread)))
PER_THREAD(cudaMemset_ptds, (void *p, int v, size_t n), cudaMemsetAsync(p, v, n, cudaStreamPerThread))
PER_THREAD(cudaMemset2D_ptds, (void *p, size_t q, int v, size_t w, size_t h),
           cudaMemset2DAsync(p, q, v, w, h, cudaStreamPerThread))

/* A configuration carries its stream inside. */
cudaError_t cudaLaunchKernelExC_ptsz(const cudaLaunchConfig_t *config, const void *f, void **args);
// clang-format on
cudaError_t cudaLaunchKernelExC_ptsz(const cudaLaunchConfig_t *config, const void *f, void **args) {
    if (!config) return cudaLaunchKernelExC(config, f, args);
    cudaLaunchConfig_t own = *config;
    own.stream = OWN(own.stream);
    return cudaLaunchKernelExC(&own, f, args);
}
