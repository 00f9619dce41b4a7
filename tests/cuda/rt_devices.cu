/* SPDX-License-Identifier: Apache-2.0 */
/* Two devices, and several host threads: each device has its own variables, streams and memory; events reach across; a stream
 * takes work of its own device alone; threads have their own current device, last error and default stream. */
#include <thread>
#include <vector>

#include "cudatest.h"

enum { N = 256 };

__device__ int seed = 5;
__global__ void fill(int *p, int add) { p[threadIdx.x] = seed + add; }
__global__ void add_from(int *p, const int *q) { p[threadIdx.x] += q[threadIdx.x]; }

static int wrong(const int *device, int want) {
    int host[N], n = 0;
    CHECK_CUDA(cudaMemcpy(host, device, sizeof host, cudaMemcpyDeviceToHost));
    for (int v : host) n += v != want;
    return n;
}

static void test_two_devices(void) {
    int *p[2], changed = 50, device = -1;
    cudaStream_t s[2];
    cudaEvent_t e;
    for (int d = 0; d < 2; ++d) {
        CHECK_CUDA(cudaSetDevice(d));
        CHECK_CUDA(cudaMalloc((void **)&p[d], N * sizeof(int)));
        CHECK_CUDA(cudaStreamCreateWithFlags(&s[d], cudaStreamNonBlocking));
        struct cudaPointerAttributes a;
        CHECK_CUDA(cudaPointerGetAttributes(&a, p[d]));
        EXPECT_EQ(a.device, d);
        CHECK_CUDA(cudaStreamGetDevice(s[d], &device));
        EXPECT_EQ(device, d);
    }
    CHECK_CUDA(cudaMemcpyToSymbol(seed, &changed, sizeof changed)); /* of device 1 alone */
    fill<<<1, N, 0, s[1]>>>(p[1], 1);
    CHECK_CUDA(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    CHECK_CUDA(cudaEventRecord(e, s[1]));
    CHECK_CUDA(cudaSetDevice(0));
    fill<<<1, N, 0, s[0]>>>(p[0], 1);
    /* The stream of another device. */
    fill<<<1, N, 0, s[1]>>>(p[0], 1);
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidResourceHandle);
    EXPECT_EQ(cudaEventRecord(e, s[0]), cudaErrorInvalidResourceHandle);
    (void)cudaGetLastError();
    int can = 0;
    CHECK_CUDA(cudaDeviceCanAccessPeer(&can, 0, 1));
    int *copy = NULL;
    CHECK_CUDA(cudaMalloc((void **)&copy, N * sizeof(int)));
    CHECK_CUDA(cudaStreamWaitEvent(s[0], e, 0));
    CHECK_CUDA(cudaMemcpyPeerAsync(copy, 0, p[1], 1, N * sizeof(int), s[0]));
    add_from<<<1, N, 0, s[0]>>>(p[0], copy);
    if (can) {
        CHECK_CUDA(cudaDeviceEnablePeerAccess(1, 0));
        EXPECT_EQ(cudaDeviceEnablePeerAccess(1, 0), cudaErrorPeerAccessAlreadyEnabled);
        (void)cudaGetLastError();
        add_from<<<1, N, 0, s[0]>>>(p[0], p[1]);
        CHECK_CUDA(cudaStreamSynchronize(s[0]));
        CHECK_CUDA(cudaDeviceDisablePeerAccess(1));
    }
    CHECK_CUDA(cudaStreamSynchronize(s[0]));
    EXPECT_EQ(wrong(p[0], 6 + 51 * (can ? 2 : 1)), 0);
    CHECK_CUDA(cudaFree(copy));
    CHECK_CUDA(cudaEventDestroy(e));
    for (int d = 0; d < 2; ++d) {
        CHECK_CUDA(cudaSetDevice(d));
        CHECK_CUDA(cudaFree(p[d]));
        CHECK_CUDA(cudaStreamDestroy(s[d]));
    }
    CHECK_CUDA(cudaSetDevice(0));
}

/* Each thread on its own stream, with the host waiting in between. */
static int thread_work(int t) {
    int device = -1, bad = 0, *p = NULL, *q = NULL, host[N];
    CHECK_CUDA(cudaGetDevice(&device));
    bad += device != 0; /* whatever the other threads chose */
    CHECK_CUDA(cudaSetDevice(t % 2));
    bad += cudaGetLastError() != cudaSuccess;
    CHECK_CUDA(cudaMalloc((void **)&p, sizeof host));
    CHECK_CUDA(cudaMalloc((void **)&q, sizeof host));
    for (int round = 0; round < 20; ++round) {
        for (int i = 0; i < N; ++i) host[i] = t * 1000 + round + i;
        CHECK_CUDA(cudaMemcpyAsync(p, host, sizeof host, cudaMemcpyHostToDevice, cudaStreamPerThread));
        CHECK_CUDA(cudaMemsetAsync(q, 0, sizeof host, cudaStreamPerThread));
        add_from<<<1, N, 0, cudaStreamPerThread>>>(q, p);
        add_from<<<1, N, 0, cudaStreamPerThread>>>(q, p);
        CHECK_CUDA(cudaMemcpyAsync(host, q, sizeof host, cudaMemcpyDeviceToHost, cudaStreamPerThread));
        CHECK_CUDA(cudaStreamSynchronize(cudaStreamPerThread));
        for (int i = 0; i < N; ++i) bad += host[i] != 2 * (t * 1000 + round + i);
    }
    bad += cudaSetDevice(99) != cudaErrorInvalidDevice;
    bad += cudaGetLastError() != cudaErrorInvalidDevice; /* this thread's own */
    CHECK_CUDA(cudaFree(p));
    CHECK_CUDA(cudaFree(q));
    return bad;
}

static void test_threads(void) {
    enum { THREADS = 5 };
    int bad[THREADS] = {};
    std::vector<std::thread> threads;
    for (int t = 0; t < THREADS; ++t) threads.emplace_back([t, &bad] { bad[t] = thread_work(t); });
    for (std::thread &t : threads) t.join();
    for (int t = 0; t < THREADS; ++t) EXPECT_EQ_AT(t, bad[t], 0);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

int main(void) {
#ifdef RQ_TEST_SIM
    setenv("GPUSIM_DEVICES", "2", 1);
#endif
    rq_need_device(80);
    int n = 0;
    CHECK_CUDA(cudaGetDeviceCount(&n));
    if (n < 2) {
        printf("skip: this needs two devices\n");
        return 77;
    }
    test_two_devices();
    test_threads();
    return rq_done(__FILE__);
}
