/* SPDX-License-Identifier: Apache-2.0 */
/* An ordinary program: a stream, events, <<<>>>, a __constant__, a template kernel, and a dot product whose last block adds up
 * what the others left (a counter in a __device__ variable says which is last).
 * Targets: sm_80 sm_90a. In table.json. */
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <vector>

#include "cudatest.h"

__constant__ float c_bias[4];
__device__ unsigned g_done;

template <int THREADS>
__global__ void __launch_bounds__(THREADS) split_dot(const float *a, const float *b, int n, float *part, float *out) {
    __shared__ float warp_sum[THREADS / 32];
    __shared__ bool last;
    float v = 0;
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < n; i += gridDim.x * THREADS) v += a[i] * b[i];
    for (int step = 16; step; step >>= 1) v += __shfl_xor_sync(~0u, v, step);
    if ((threadIdx.x & 31) == 0) warp_sum[threadIdx.x >> 5] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0;
        for (int i = 0; i < THREADS / 32; ++i) sum += warp_sum[i];
        part[blockIdx.x] = sum;
        __threadfence();
        last = atomicInc(&g_done, gridDim.x - 1) == gridDim.x - 1;
        if (last) __threadfence();
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float sum = c_bias[1];
        for (unsigned i = 0; i < gridDim.x; ++i) sum += part[i];
        *out = sum;
    }
}

int main() {
    rq_need_device(80);
    const int n = 10000, blocks = 8;
    const size_t bytes = n * sizeof(float);
    const float bias[4] = {0, 2.5f, 0, 0};
    std::vector<float> a(n), b(n);
    double want = bias[1], size = 0;
    for (int i = 0; i < n; ++i) {
        a[i] = (float)(i % 17) * 0.125f;
        b[i] = (float)(i % 5) - 2.0f;
        want += (double)a[i] * b[i];
        size += fabs((double)a[i] * b[i]);
    }
    float *d_a, *d_b, *d_part, *d_out, result = 0;
    cudaStream_t stream;
    cudaEvent_t start, stop;
    CHECK_CUDA(cudaMalloc(&d_a, bytes));
    CHECK_CUDA(cudaMalloc(&d_b, bytes));
    CHECK_CUDA(cudaMalloc(&d_part, blocks * sizeof(float)));
    CHECK_CUDA(cudaMalloc(&d_out, sizeof(float)));
    CHECK_CUDA(cudaStreamCreate(&stream));
    CHECK_CUDA(cudaEventCreate(&start));
    CHECK_CUDA(cudaEventCreate(&stop));
    CHECK_CUDA(cudaMemcpyToSymbol(c_bias, bias, sizeof bias));
    CHECK_CUDA(cudaMemcpyAsync(d_a, a.data(), bytes, cudaMemcpyHostToDevice, stream));
    CHECK_CUDA(cudaMemcpyAsync(d_b, b.data(), bytes, cudaMemcpyHostToDevice, stream));
    for (int turn = 0; turn < 2; ++turn) { /* the counter is back at 0 for the second */
        CHECK_CUDA(cudaMemsetAsync(d_out, 0xff, sizeof(float), stream));
        CHECK_CUDA(cudaEventRecord(start, stream));
        split_dot<128><<<blocks, 128, 0, stream>>>(d_a, d_b, n, d_part, d_out);
        CHECK_CUDA(cudaGetLastError());
        CHECK_CUDA(cudaEventRecord(stop, stream));
        CHECK_CUDA(cudaMemcpyAsync(&result, d_out, sizeof result, cudaMemcpyDeviceToHost, stream));
        CHECK_CUDA(cudaStreamSynchronize(stream));
        EXPECT_NEAR(result, want, size * 1e-6);
        rq_record("dot", RQ_F32, &result, 1, size * 1e-6);
    }
    float ms = -1;
    CHECK_CUDA(cudaEventElapsedTime(&ms, start, stop));
    EXPECT(ms >= 0);
    CHECK_CUDA(cudaEventDestroy(start));
    CHECK_CUDA(cudaEventDestroy(stop));
    CHECK_CUDA(cudaStreamDestroy(stream));
    CHECK_CUDA(cudaFree(d_a));
    CHECK_CUDA(cudaFree(d_b));
    CHECK_CUDA(cudaFree(d_part));
    CHECK_CUDA(cudaFree(d_out));
    return rq_done(__FILE__);
}
