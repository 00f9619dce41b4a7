/* SPDX-License-Identifier: Apache-2.0 */
/* Errors that calls find by themselves: launches beyond the limits, handles and arguments that are not valid. None of them
 * sticks. Limits are those of compute capability 9.0; what another device has less of is asked of it. */
#include <cooperative_groups.h>

#include "cudatest.h"

__global__ void nothing(int *p) {
    if (p) *p = 1;
}
__global__ void with_shared(int *p) {
    extern __shared__ int s[];
    s[threadIdx.x] = (int)threadIdx.x;
    if (p) p[threadIdx.x] = s[threadIdx.x];
}
__global__ void __launch_bounds__(128) bounded(int *p) {
    if (p) *p = 1;
}
__global__ void with_static_shared(int *p) {
    __shared__ int s[1024];
    s[threadIdx.x] = 1;
    __syncthreads();
    if (p) *p = s[threadIdx.x ^ 1];
}
__global__ void cooperative(int *p) {
    cooperative_groups::this_grid().sync();
    if (p && threadIdx.x == 0) p[blockIdx.x] = 1;
}

/* The error of the launch just made; it must leave nothing behind. */
static cudaError_t launch_error(void) {
    cudaError_t e = cudaGetLastError();
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    return e;
}

static void test_sizes(void) {
    nothing<<<1, 1>>>(NULL);
    EXPECT_EQ(launch_error(), cudaSuccess);
    nothing<<<0, 1>>>(NULL);
    EXPECT_EQ(launch_error(), cudaErrorInvalidConfiguration);
    nothing<<<1, 0>>>(NULL);
    EXPECT_EQ(launch_error(), cudaErrorInvalidConfiguration);
    nothing<<<1, 1025>>>(NULL);
    EXPECT_EQ(launch_error(), cudaErrorInvalidConfiguration);
    nothing<<<1, dim3(1, 1, 65)>>>(NULL);
    EXPECT_EQ(launch_error(), cudaErrorInvalidConfiguration);
    nothing<<<dim3(1, 65536, 1), 1>>>(NULL);
    EXPECT_EQ(launch_error(), cudaErrorInvalidConfiguration);
    bounded<<<1, 128>>>(NULL);
    EXPECT_EQ(launch_error(), cudaSuccess);
    bounded<<<1, 129>>>(NULL);
    EXPECT(launch_error() != cudaSuccess);
}

static void test_shared(void) {
    int most = 0;
    CHECK_CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    with_shared<<<1, 32, 48 * 1024>>>(NULL);
    EXPECT_EQ(launch_error(), cudaSuccess);
    with_shared<<<1, 32, 48 * 1024 + 4>>>(NULL);
    EXPECT_EQ(launch_error(), cudaErrorInvalidValue);
    CHECK_CUDA(cudaFuncSetAttribute(with_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    with_shared<<<1, 32, (size_t)most>>>(NULL);
    EXPECT_EQ(launch_error(), cudaSuccess);
    EXPECT_EQ(cudaFuncSetAttribute(with_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, most + 1),
              cudaErrorInvalidValue);
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
    /* Static shared memory counts against it. */
    EXPECT_EQ(cudaFuncSetAttribute(with_static_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, most - 4096),
              cudaSuccess);
    EXPECT_EQ(cudaFuncSetAttribute(with_static_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, most - 4095),
              cudaErrorInvalidValue);
    (void)cudaGetLastError();
    struct cudaFuncAttributes a;
    CHECK_CUDA(cudaFuncGetAttributes(&a, with_static_shared));
    EXPECT_EQ(a.sharedSizeBytes, 4096);
    EXPECT_EQ(a.maxDynamicSharedSizeBytes, most - 4096);
    EXPECT_EQ(a.maxThreadsPerBlock, 1024);
    CHECK_CUDA(cudaFuncGetAttributes(&a, bounded));
    EXPECT_EQ(a.maxThreadsPerBlock, 128);
}

static void test_cooperative(void) {
    int per_sm = 0, sms = 0;
    CHECK_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, cooperative, 1024, 0));
    CHECK_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    EXPECT(per_sm >= 1 && per_sm <= 2);
    int *p = (int *)rq_device_buffer(4 * sizeof(int)), *none = NULL;
    void *args[] = {&p}, *no_args[] = {&none};
    EXPECT_EQ(cudaLaunchCooperativeKernel((const void *)cooperative, dim3(4), dim3(64), args, 0, 0), cudaSuccess);
    int host[4];
    rq_device_read(host, p, sizeof host);
    for (int i = 0; i < 4; ++i) EXPECT_EQ_AT(i, host[i], 1);
    unsigned too_many = (unsigned)(per_sm * sms + 1);
    EXPECT_EQ(cudaLaunchCooperativeKernel((const void *)cooperative, dim3(too_many), dim3(1024), no_args, 0, 0),
              cudaErrorCooperativeLaunchTooLarge);
    EXPECT_EQ(launch_error(), cudaErrorCooperativeLaunchTooLarge);
}

static void test_clusters(void) {
    int major = 0;
    CHECK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    if (major < 9) return;
    cudaLaunchAttribute a[1];
    a[0].id = cudaLaunchAttributeClusterDimension;
    a[0].val.clusterDim.x = 4;
    a[0].val.clusterDim.y = a[0].val.clusterDim.z = 1;
    cudaLaunchConfig_t c = {};
    c.gridDim = dim3(8);
    c.blockDim = dim3(32);
    c.attrs = a;
    c.numAttrs = 1;
    EXPECT_EQ(cudaLaunchKernelEx(&c, nothing, (int *)NULL), cudaSuccess);
    EXPECT_EQ(launch_error(), cudaSuccess);
    c.gridDim = dim3(9); /* no multiple */
    EXPECT(cudaLaunchKernelEx(&c, nothing, (int *)NULL) != cudaSuccess);
    EXPECT(launch_error() != cudaSuccess);
    c.gridDim = dim3(32);
    a[0].val.clusterDim.x = 16; /* not portable */
    EXPECT_EQ(cudaLaunchKernelEx(&c, nothing, (int *)NULL), cudaErrorInvalidClusterSize);
    EXPECT_EQ(launch_error(), cudaErrorInvalidClusterSize);
    CHECK_CUDA(cudaFuncSetAttribute(nothing, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    EXPECT_EQ(cudaLaunchKernelEx(&c, nothing, (int *)NULL), cudaSuccess);
    EXPECT_EQ(launch_error(), cudaSuccess);
}

static void test_handles(void) {
    int v = 0, n = 0;
    EXPECT_EQ(cudaGetDeviceCount(&n), cudaSuccess);
    EXPECT(n >= 1);
    EXPECT_EQ(cudaSetDevice(n), cudaErrorInvalidDevice);
    EXPECT_EQ(cudaDeviceGetAttribute(&v, cudaDevAttrWarpSize, -1), cudaErrorInvalidDevice);
    EXPECT_EQ(cudaPeekAtLastError(), cudaErrorInvalidDevice);
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_EQ(cudaEventDestroy(NULL), cudaErrorInvalidResourceHandle);
    static int not_a_symbol;
    void *address = NULL;
    EXPECT_EQ(cudaGetSymbolAddress(&address, (const void *)&not_a_symbol), cudaErrorInvalidSymbol);
    void *no_args[] = {&address};
    EXPECT_EQ(cudaLaunchKernel((const void *)&not_a_symbol, dim3(1), dim3(1), no_args, 0, 0),
              cudaErrorInvalidDeviceFunction);
    (void)cudaGetLastError();
    struct cudaDeviceProp p;
    CHECK_CUDA(cudaGetDeviceProperties(&p, 0));
    EXPECT_EQ(p.warpSize, 32);
    EXPECT_EQ(p.maxThreadsPerBlock, 1024);
    EXPECT(p.name[0] != 0);
    size_t stack = 0;
    CHECK_CUDA(cudaDeviceSetLimit(cudaLimitStackSize, 2048));
    CHECK_CUDA(cudaDeviceGetLimit(&stack, cudaLimitStackSize));
    EXPECT(stack >= 2048);
}

static void test_names(void) {
    EXPECT(!strcmp(cudaGetErrorName(cudaSuccess), "cudaSuccess"));
    EXPECT(!strcmp(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress"));
    EXPECT(!strcmp(cudaGetErrorName(cudaErrorStreamCaptureImplicit), "cudaErrorStreamCaptureImplicit"));
    EXPECT(cudaGetErrorString(cudaErrorMemoryAllocation)[0] != 0);
    EXPECT(cudaGetErrorString((cudaError_t)12345)[0] != 0);
}

int main(void) {
    rq_need_device(80);
    test_sizes();
    test_shared();
    test_cooperative();
    test_clusters();
    test_handles();
    test_names();
    return rq_done(__FILE__);
}
