/* SPDX-License-Identifier: Apache-2.0 */
/* Variables of a module: constant, device, managed, in templates and namespaces; copies to and from them, their addresses. */
#include "cudatest.h"

__constant__ int table[8] = {10, 11, 12, 13, 14, 15, 16, 17};
__device__ int counter = 3;
__device__ double grid[4][4];
__managed__ int shared_by_all[16];
namespace inner {
static __device__ float hidden = 1.5f;
}
__device__ int unused_by_kernels[2] = {8, 9};
struct pair {
    int a;
    float b;
};
__constant__ pair constants = {4, 0.25f};

__global__ void use(int *out) {
    int i = (int)threadIdx.x;
    out[i] = table[i & 7] * counter + constants.a;
    if (i < 16) {
        grid[i / 4][i % 4] = i * 0.5 + inner::hidden;
        shared_by_all[i] += i;
    }
    __syncthreads();
    if (i == 0) counter++;
}

template <typename T> __device__ T accumulated;
template <typename T> __global__ void accumulate(T by) { accumulated<T> += by; }

int main(void) {
    rq_need_device(80);
    enum { N = 32 };
    int *out = (int *)rq_device_buffer(N * sizeof(int)), host[N];
    for (int i = 0; i < 16; ++i) shared_by_all[i] = 100;
    use<<<1, N>>>(out);
    rq_device_read(host, out, sizeof host);
    for (int i = 0; i < N; ++i) EXPECT_EQ_AT(i, host[i], (10 + (i & 7)) * 3 + 4);
    for (int i = 0; i < 16; ++i) EXPECT_EQ_AT(i, shared_by_all[i], 100 + i);

    int got = 0, set[2] = {70, 71};
    CHECK_CUDA(cudaMemcpyFromSymbol(&got, counter, sizeof got));
    EXPECT_EQ(got, 4);
    CHECK_CUDA(cudaMemcpyToSymbol(table, set, sizeof set, 3 * sizeof(int)));
    got = 2;
    CHECK_CUDA(cudaMemcpyToSymbol(counter, &got, sizeof got));
    pair p = {1000, 0.5f};
    cudaStream_t s;
    CHECK_CUDA(cudaStreamCreate(&s));
    CHECK_CUDA(cudaMemcpyToSymbolAsync(constants, &p, sizeof p, 0, cudaMemcpyHostToDevice, s));
    use<<<1, N, 0, s>>>(out);
    CHECK_CUDA(cudaStreamSynchronize(s));
    rq_device_read(host, out, sizeof host);
    const int now[8] = {10, 11, 12, 70, 71, 15, 16, 17};
    for (int i = 0; i < N; ++i) EXPECT_EQ_AT(i, host[i], now[i & 7] * 2 + 1000);

    double seen[4][4];
    CHECK_CUDA(cudaMemcpyFromSymbol(seen, grid, sizeof seen));
    for (int i = 0; i < 16; ++i) EXPECT_NEAR_AT(i, seen[i / 4][i % 4], i * 0.5 + 1.5, 0);
    float hidden = 0;
    CHECK_CUDA(cudaMemcpyFromSymbol(&hidden, inner::hidden, sizeof hidden));
    EXPECT_NEAR(hidden, 1.5, 0);

    void *address = NULL;
    size_t bytes = 0;
    CHECK_CUDA(cudaGetSymbolAddress(&address, grid));
    CHECK_CUDA(cudaGetSymbolSize(&bytes, grid));
    EXPECT_EQ(bytes, sizeof seen);
    CHECK_CUDA(cudaMemcpyAsync(&seen[0][1], (char *)address + 8, 8, cudaMemcpyDeviceToHost, s));
    EXPECT_NEAR(seen[0][1], 2.0, 0);
    CHECK_CUDA(cudaMemset(address, 0, bytes));
    CHECK_CUDA(cudaMemcpyFromSymbol(seen, grid, sizeof seen));
    EXPECT_NEAR(seen[3][3], 0, 0);
    CHECK_CUDA(cudaMemcpyFromSymbol(&got, unused_by_kernels, sizeof got, sizeof got));
    EXPECT_EQ(got, 9);
    EXPECT_EQ(cudaMemcpyFromSymbol(host, counter, 8), cudaErrorInvalidValue); /* past its end */
    EXPECT_EQ(cudaMemcpyToSymbol(table, set, 8, 28), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpyToSymbol(table, set, 8, 0, cudaMemcpyDeviceToHost), cudaErrorInvalidMemcpyDirection);
    (void)cudaGetLastError();

    accumulate<float><<<1, 1>>>(0.5f);
    accumulate<float><<<1, 1>>>(0.25f);
    accumulate<int><<<1, 1>>>(7);
    float f = 0;
    CHECK_CUDA(cudaMemcpyFromSymbol(&f, accumulated<float>, sizeof f));
    CHECK_CUDA(cudaMemcpyFromSymbol(&got, accumulated<int>, sizeof got));
    EXPECT_NEAR(f, 0.75, 0);
    EXPECT_EQ(got, 7);
    CHECK_CUDA(cudaStreamDestroy(s));
    return rq_done(__FILE__);
}
