/* SPDX-License-Identifier: Apache-2.0 */
/* Code loaded at run time: PTX as text through cudaLibrary*, kernels and variables by name, and the driver's functions found
 * by cudaGetDriverEntryPoint, which launch the same kernels. */
#include <cuda.h>

#include "cudatest.h"

static const char ptx[] = ".version 8.0\n.target sm_80\n.address_size 64\n"
                          ".visible .global .align 4 .u32 bias = 100;\n"
                          ".visible .entry shift(.param .u64 out, .param .u32 by)\n"
                          "{\n"
                          ".reg .b32 %r<4>; .reg .b64 %rd<4>;\n"
                          "ld.param.u64 %rd1, [out]; ld.param.u32 %r1, [by];\n"
                          "cvta.to.global.u64 %rd1, %rd1;\n"
                          "mov.u32 %r2, %tid.x; mul.wide.u32 %rd2, %r2, 4; add.s64 %rd1, %rd1, %rd2;\n"
                          "ld.global.u32 %r3, [bias]; add.u32 %r2, %r2, %r1; add.u32 %r2, %r2, %r3;\n"
                          "st.global.u32 [%rd1], %r2;\n"
                          "ret;\n"
                          "}\n";

enum { N = 64 };

static void expect_shift(const uint32_t *device, uint32_t by) {
    uint32_t host[N];
    rq_device_read(host, device, sizeof host);
    for (uint32_t i = 0; i < N; ++i) EXPECT_EQ_AT(i, host[i], i + by);
}

static void test_library(void) {
    cudaLibrary_t library;
    cudaKernel_t kernel;
    uint32_t *out = rq_device_buffer(N * 4), by = 7, bias = 5000;
    void *args[] = {&out, &by}, *address = NULL;
    size_t bytes = 0;
    struct dim3 one = {1, 1, 1}, block = {N, 1, 1};
    CHECK_CUDA(cudaLibraryLoadData(&library, ptx, NULL, NULL, 0, NULL, NULL, 0));
    CHECK_CUDA(cudaLibraryGetKernel(&kernel, library, "shift"));
    EXPECT_EQ(cudaLibraryGetKernel(&kernel, library, "shaft"), cudaErrorSymbolNotFound);
    CHECK_CUDA(cudaLaunchKernel((const void *)kernel, one, block, args, 0, NULL));
    expect_shift(out, 107);
    CHECK_CUDA(cudaLibraryGetGlobal(&address, &bytes, library, "bias"));
    EXPECT_EQ(bytes, 4);
    CHECK_CUDA(cudaMemcpy(address, &bias, 4, cudaMemcpyHostToDevice));
    CHECK_CUDA(cudaLaunchKernel((const void *)kernel, one, block, args, 0, NULL));
    expect_shift(out, 5007);
    struct cudaFuncAttributes a;
    CHECK_CUDA(cudaFuncGetAttributes(&a, (const void *)kernel));
    EXPECT_EQ(a.maxThreadsPerBlock, 1024);
    size_t offset = 0;
    CHECK_CUDA(cudaFuncGetParamInfo((const void *)kernel, 1, &offset, &bytes));
    EXPECT_EQ(offset, 8);
    EXPECT_EQ(bytes, 4);
    CHECK_CUDA(cudaLibraryUnload(library));
    (void)cudaGetLastError();
    rq_device_free(out);
}

static void *entry(const char *name) {
    void *f = NULL;
    enum cudaDriverEntryPointQueryResult result;
    CHECK_CUDA(cudaGetDriverEntryPointByVersion(name, &f, 12000, cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess || !f) RQ_DIE("the driver has no %s", name);
    return f;
}

/* ISO C has no conversion from void * to a function pointer; POSIX promises that the bits are the same. */
#define ENTRY(name, slot)                                                                                              \
    do {                                                                                                               \
        void *f_ = entry(name);                                                                                        \
        memcpy(&(slot), &f_, sizeof f_);                                                                               \
    } while (0)

static void test_driver(void) {
    CUresult (*load)(CUmodule *, const void *);
    CUresult (*unload)(CUmodule);
    CUresult (*get_function)(CUfunction *, CUmodule, const char *);
    CUresult (*launch)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
                       void **, void **);
    CUresult (*launch_ex)(const CUlaunchConfig *, CUfunction, void **, void **);
    CUresult (*error_name)(CUresult, const char **);
    ENTRY("cuModuleLoadData", load);
    ENTRY("cuModuleUnload", unload);
    ENTRY("cuModuleGetFunction", get_function);
    ENTRY("cuLaunchKernel", launch);
    ENTRY("cuLaunchKernelEx", launch_ex);
    ENTRY("cuGetErrorName", error_name);
    void *none = &none;
    enum cudaDriverEntryPointQueryResult result;
    CHECK_CUDA(cudaGetDriverEntryPointByVersion("cuNoSuchFunction", &none, 12000, cudaEnableDefault, &result));
    EXPECT_EQ(result, cudaDriverEntryPointSymbolNotFound);

    uint32_t *out = rq_device_buffer(N * 4), by = 9;
    CHECK_CUDA(cudaFree(NULL)); /* there is a context now */
    CUmodule module;
    CUfunction f;
    EXPECT_EQ(load(&module, ptx), CUDA_SUCCESS);
    EXPECT_EQ(get_function(&f, module, "shift"), CUDA_SUCCESS);
    EXPECT_EQ(get_function(&f, module, "shaft"), CUDA_ERROR_NOT_FOUND);
    EXPECT_EQ(get_function(&f, module, "shift"), CUDA_SUCCESS);
    void *args[] = {&out, &by};
    EXPECT_EQ(launch(f, 1, 1, 1, N, 1, 1, 0, NULL, args, NULL), CUDA_SUCCESS);
    expect_shift(out, 109);
    /* Packed arguments. */
    struct {
        uint32_t *out;
        uint32_t by;
    } packed = {out, 11};
    size_t packed_bytes = 12;
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &packed, CU_LAUNCH_PARAM_BUFFER_SIZE, &packed_bytes,
                     CU_LAUNCH_PARAM_END};
    EXPECT_EQ(launch(f, 1, 1, 1, N, 1, 1, 0, NULL, NULL, extra), CUDA_SUCCESS);
    expect_shift(out, 111);
    CUlaunchConfig config = {
        .gridDimX = 1, .gridDimY = 1, .gridDimZ = 1, .blockDimX = N, .blockDimY = 1, .blockDimZ = 1};
    by = 13;
    EXPECT_EQ(launch_ex(&config, f, args, NULL), CUDA_SUCCESS);
    expect_shift(out, 113);
    EXPECT_EQ(launch(f, 0, 1, 1, N, 1, 1, 0, NULL, args, NULL), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess); /* the driver's errors are not the runtime's */
    const char *name = NULL;
    EXPECT_EQ(error_name(CUDA_ERROR_INVALID_VALUE, &name), CUDA_SUCCESS);
    EXPECT(name && !strcmp(name, "CUDA_ERROR_INVALID_VALUE"));
    EXPECT_EQ(unload(module), CUDA_SUCCESS);
}

int main(void) {
    rq_need_device(80);
    test_library();
    test_driver();
    return rq_done(__FILE__);
}
