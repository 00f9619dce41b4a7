/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of single PTX instructions: the test holds PTX as text, and runs it. In the simulator (RQ_TEST_SIM) straight on
 * gpusim.h, with no runtime library between; on a real GPU the driver compiles the same text. Plain C.
 *
 *   rq_ptx *m = rq_ptx_load(text);
 *   void *args[] = {&out, &in};
 *   rq_ptx_launch(m, "kernel", 1, 32, 0, args);
 *
 * Memory is that of cudatest.h: rq_device_copy, rq_device_buffer, rq_device_read. */
#ifndef RQ_PTXTEST_H
#define RQ_PTXTEST_H
#ifdef RQ_TEST_SIM
#define RQ_TEST_DIRECT 1
#endif
#include "cudatest.h"

/* Most of what such a text begins with. */
#define RQ_PTX_HEAD ".version 8.0\n.target sm_90a\n.address_size 64\n"

#ifdef RQ_TEST_SIM
typedef gs_module rq_ptx;
static inline rq_ptx *rq_ptx_try_load(const char *text) { return gs_load(text, "test"); }
static inline const char *rq_ptx_error(void) { return gs_error(); }
static inline void rq_ptx_unload(rq_ptx *m) { gs_unload(m); }
/* False when the launch failed or the simulator found something wrong. */
static inline bool rq_ptx_try_launch(rq_ptx *m, const char *kernel, unsigned blocks, unsigned threads, size_t shared,
                                     void **args) {
    gs_kernel *k = gs_module_kernel(m, kernel);
    if (!k) RQ_DIE("no kernel %s", kernel);
    gs_launch_opt opt = {{blocks, 1, 1}, {threads, 1, 1}, {0, 0, 0}, shared, false, args, NULL};
    gs_counts counts;
    return gs_launch(k, &opt, &counts) == GS_OK;
}
static inline void rq_need_device(int capability) { (void)capability; }
#else
typedef struct CUlib_st rq_ptx;
static inline rq_ptx *rq_ptx_try_load(const char *text) {
    cudaLibrary_t m = NULL;
    return cudaLibraryLoadData(&m, text, NULL, NULL, 0, NULL, NULL, 0) == cudaSuccess ? m : NULL;
}
static inline const char *rq_ptx_error(void) { return cudaGetErrorString(cudaGetLastError()); }
static inline void rq_ptx_unload(rq_ptx *m) { CHECK_CUDA(cudaLibraryUnload(m)); }
static inline bool rq_ptx_try_launch(rq_ptx *m, const char *kernel, unsigned blocks, unsigned threads, size_t shared,
                                     void **args) {
    cudaKernel_t k = NULL;
    CHECK_CUDA(cudaLibraryGetKernel(&k, m, kernel));
    struct dim3 grid = {blocks, 1, 1}, block = {threads, 1, 1};
    cudaError_t e = cudaLaunchKernel((const void *)k, grid, block, args, shared, NULL);
    if (e == cudaSuccess) e = cudaDeviceSynchronize();
    if (e != cudaSuccess) fprintf(stderr, "%s: %s\n", kernel, cudaGetErrorString(e));
    return e == cudaSuccess;
}
#endif

static inline rq_ptx *rq_ptx_load(const char *text) {
    rq_ptx *m = rq_ptx_try_load(text);
    if (!m) RQ_DIE("the PTX does not load: %s", rq_ptx_error());
    return m;
}
static inline void rq_ptx_launch(rq_ptx *m, const char *kernel, unsigned blocks, unsigned threads, size_t shared,
                                 void **args) {
    if (!rq_ptx_try_launch(m, kernel, blocks, threads, shared, args)) RQ_DIE("%s did not run rightly", kernel);
}
#endif
