/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs: built node by node and captured from streams, replayed, updated, cloned; arguments are those of the capture. Then
 * what a capture forbids, with the error of each, and (in the simulator) a graph whose missing edge shows in one order. */
#include "cudatest.h"
#ifdef RQ_TEST_SIM
extern "C" {
#include "../gpusim/gpusim.h"
}
#endif

enum { N = 512 };

__global__ void fill(int *p, int v) { p[threadIdx.x] = v; }
__global__ void add(int *out, const int *a, const int *b) { out[threadIdx.x] = a[threadIdx.x] + b[threadIdx.x]; }
__global__ void scale(int *p, int factor) { p[threadIdx.x] *= factor; }

static int *device_ints(void) { return (int *)rq_device_buffer(N * sizeof(int)); }

static int first_wrong(const int *device, int want) {
    int host[N];
    rq_device_read(host, device, sizeof host);
    for (int i = 0; i < N; ++i) {
        if (host[i] != want) return host[i];
    }
    return want;
}
#define EXPECT_ALL(device, want) EXPECT_EQ(first_wrong(device, want), want)

static cudaKernelNodeParams kernel_params(void *f, void **args) {
    cudaKernelNodeParams p = {};
    p.func = f;
    p.gridDim = dim3(1);
    p.blockDim = dim3(N);
    p.kernelParams = args;
    return p;
}

static void run(cudaGraphExec_t x, cudaStream_t s) {
    CHECK_CUDA(cudaGraphLaunch(x, s));
    CHECK_CUDA(cudaStreamSynchronize(s));
}

static void set_flag(void *user) { *(int *)user += 100; }

/* A diamond: two fills, their sum, and a host function after it; then other arguments, and a disabled node. */
static void test_explicit(cudaStream_t s) {
    int *a = device_ints(), *b = device_ints(), *c = device_ints(), two = 2, three = 3, seven = 7, flag = 0;
    cudaGraph_t g;
    cudaGraphNode_t fill_a, fill_b, sum, host, zero;
    CHECK_CUDA(cudaGraphCreate(&g, 0));
    cudaMemsetParams m = {};
    m.dst = c;
    m.elementSize = 4;
    m.value = 0x01010101;
    m.width = N;
    m.height = 1;
    CHECK_CUDA(cudaGraphAddMemsetNode(&zero, g, NULL, 0, &m));
    void *args_a[] = {&a, &two}, *args_b[] = {&b, &three}, *args_sum[] = {&c, &a, &b}, *args_other[] = {&b, &seven};
    cudaKernelNodeParams p = kernel_params((void *)fill, args_a);
    CHECK_CUDA(cudaGraphAddKernelNode(&fill_a, g, NULL, 0, &p));
    p = kernel_params((void *)fill, args_b);
    CHECK_CUDA(cudaGraphAddKernelNode(&fill_b, g, NULL, 0, &p));
    cudaGraphNode_t before[] = {zero, fill_a, fill_b};
    p = kernel_params((void *)add, args_sum);
    CHECK_CUDA(cudaGraphAddKernelNode(&sum, g, before, 3, &p));
    cudaHostNodeParams h = {set_flag, &flag};
    CHECK_CUDA(cudaGraphAddHostNode(&host, g, &sum, 1, &h));
    two = three = -1; /* the arguments were copied */

    cudaGraphExec_t x;
    CHECK_CUDA(cudaGraphInstantiate(&x, g, 0));
    run(x, s);
    EXPECT_ALL(c, 5);
    EXPECT_EQ(flag, 100);
    p = kernel_params((void *)fill, args_other);
    CHECK_CUDA(cudaGraphExecKernelNodeSetParams(x, fill_b, &p));
    run(x, s);
    EXPECT_ALL(c, 9);
    CHECK_CUDA(cudaGraphNodeSetEnabled(x, sum, 0));
    run(x, s);
    EXPECT_ALL(c, 0x01010101);
    EXPECT_EQ(flag, 300);

    size_t n = 0, edges = 0;
    CHECK_CUDA(cudaGraphGetNodes(g, NULL, &n));
    CHECK_CUDA(cudaGraphGetEdges(g, NULL, NULL, NULL, &edges));
    EXPECT_EQ(n, 5);
    EXPECT_EQ(edges, 4);
    CHECK_CUDA(cudaGraphGetRootNodes(g, NULL, &n));
    EXPECT_EQ(n, 3);
    enum cudaGraphNodeType type;
    CHECK_CUDA(cudaGraphNodeGetType(host, &type));
    EXPECT_EQ(type, cudaGraphNodeTypeHost);
    cudaKernelNodeParams got;
    CHECK_CUDA(cudaGraphKernelNodeGetParams(fill_b, &got));
    EXPECT_EQ(got.blockDim.x, N);
    EXPECT_EQ(*(int *)got.kernelParams[1], 3); /* the graph itself was not changed */
    /* A circle cannot be instantiated. */
    cudaGraphExec_t none;
    CHECK_CUDA(cudaGraphAddDependencies(g, &host, &fill_a, NULL, 1));
    EXPECT(cudaGraphInstantiate(&none, g, 0) != cudaSuccess);
    (void)cudaGetLastError();
    CHECK_CUDA(cudaGraphExecDestroy(x));
    CHECK_CUDA(cudaGraphDestroy(g));
}

/* A fork and a join by events; copies from and to pinned memory, whose bytes are those of each replay. */
static void test_capture(cudaStream_t s) {
    cudaStream_t t;
    cudaEvent_t fork, join;
    CHECK_CUDA(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
    CHECK_CUDA(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
    CHECK_CUDA(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
    int *a = device_ints(), *b = device_ints(), *c = device_ints(), *in, *out;
    CHECK_CUDA(cudaMallocHost((void **)&in, N * sizeof(int)));
    CHECK_CUDA(cudaMallocHost((void **)&out, N * sizeof(int)));
    cudaGraph_t g;
    CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    enum cudaStreamCaptureStatus status;
    CHECK_CUDA(cudaStreamIsCapturing(s, &status));
    EXPECT_EQ(status, cudaStreamCaptureStatusActive);
    CHECK_CUDA(cudaMemcpyAsync(a, in, N * sizeof(int), cudaMemcpyHostToDevice, s));
    CHECK_CUDA(cudaEventRecord(fork, s));
    CHECK_CUDA(cudaStreamWaitEvent(t, fork, 0));
    int factor = 10;
    scale<<<1, N, 0, s>>>(a, factor);
    fill<<<1, N, 0, t>>>(b, 4);
    CHECK_CUDA(cudaMemsetAsync(c, 0xff, N * sizeof(int), t));
    CHECK_CUDA(cudaEventRecord(join, t));
    CHECK_CUDA(cudaStreamWaitEvent(s, join, 0));
    add<<<1, N, 0, s>>>(c, a, b);
    CHECK_CUDA(cudaMemcpyAsync(out, c, N * sizeof(int), cudaMemcpyDeviceToHost, s));
    CHECK_CUDA(cudaStreamEndCapture(s, &g));
    factor = 0;
    size_t n = 0;
    CHECK_CUDA(cudaGraphGetNodes(g, NULL, &n));
    EXPECT_EQ(n, 6);
    cudaGraphExec_t x;
    CHECK_CUDA(cudaGraphInstantiate(&x, g, 0));
    CHECK_CUDA(cudaGraphDestroy(g));
    for (int round = 0; round < 3; ++round) {
        for (int i = 0; i < N; ++i) in[i] = i + round;
        run(x, s);
        for (int i = 0; i < N; ++i) EXPECT_EQ_AT(i, out[i], 10 * (i + round) + 4);
    }
    CHECK_CUDA(cudaGraphExecDestroy(x));
    CHECK_CUDA(cudaEventDestroy(fork));
    CHECK_CUDA(cudaEventDestroy(join));
    CHECK_CUDA(cudaStreamDestroy(t));
    CHECK_CUDA(cudaFreeHost(in));
    CHECK_CUDA(cudaFreeHost(out));
}

static cudaGraph_t capture_fill(cudaStream_t s, int *p, int v, bool twice) {
    cudaGraph_t g;
    CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    fill<<<1, N, 0, s>>>(p, v);
    scale<<<1, N, 0, s>>>(p, 3);
    if (twice) scale<<<1, N, 0, s>>>(p, 3);
    CHECK_CUDA(cudaStreamEndCapture(s, &g));
    return g;
}

/* The whole graph anew; a launch already queued keeps what it was launched with. */
static void test_update(cudaStream_t s) {
    int *a = device_ints(), *b = device_ints();
    cudaGraph_t one = capture_fill(s, a, 5, false), two = capture_fill(s, b, 6, false),
                other = capture_fill(s, a, 1, true);
    cudaGraphExec_t x;
    CHECK_CUDA(cudaMemset(b, 0, N * sizeof(int)));
    CHECK_CUDA(cudaDeviceSynchronize());
    CHECK_CUDA(cudaGraphInstantiate(&x, one, 0));
    CHECK_CUDA(cudaGraphLaunch(x, s));
    cudaGraphExecUpdateResultInfo info;
    CHECK_CUDA(cudaGraphExecUpdate(x, two, &info));
    EXPECT_EQ(info.result, cudaGraphExecUpdateSuccess);
    CHECK_CUDA(cudaStreamSynchronize(s));
    EXPECT_ALL(a, 15);
    EXPECT_ALL(b, 0);
    run(x, s);
    EXPECT_ALL(b, 18);
    EXPECT_EQ(cudaGraphExecUpdate(x, other, &info), cudaErrorGraphExecUpdateFailure);
    EXPECT_EQ(info.result, cudaGraphExecUpdateErrorTopologyChanged);
    (void)cudaGetLastError();
    CHECK_CUDA(cudaGraphExecDestroy(x));
    CHECK_CUDA(cudaGraphDestroy(one));
    CHECK_CUDA(cudaGraphDestroy(two));
    CHECK_CUDA(cudaGraphDestroy(other));
}

static void test_clone_and_child(cudaStream_t s) {
    int *a = device_ints();
    cudaGraph_t inner = capture_fill(s, a, 2, false), outer, copy;
    cudaGraphNode_t child, after;
    CHECK_CUDA(cudaGraphCreate(&outer, 0));
    CHECK_CUDA(cudaGraphAddChildGraphNode(&child, outer, NULL, 0, inner));
    CHECK_CUDA(cudaGraphDestroy(inner));
    int five = 5;
    void *args[] = {&a, &five};
    cudaKernelNodeParams p = kernel_params((void *)scale, args);
    CHECK_CUDA(cudaGraphAddKernelNode(&after, outer, &child, 1, &p));
    CHECK_CUDA(cudaGraphClone(&copy, outer));
    CHECK_CUDA(cudaGraphDestroy(outer));
    cudaGraphExec_t x;
    CHECK_CUDA(cudaGraphInstantiate(&x, copy, 0));
    run(x, s);
    EXPECT_ALL(a, 30);
    CHECK_CUDA(cudaGraphExecDestroy(x));
    CHECK_CUDA(cudaGraphDestroy(copy));
}

/* ---- what a capture forbids */

static void end_broken(cudaStream_t s) {
    cudaGraph_t g = NULL;
    EXPECT_EQ(cudaStreamEndCapture(s, &g), cudaErrorStreamCaptureInvalidated);
    EXPECT(g == NULL);
    (void)cudaGetLastError();
}

static void test_forbidden(cudaStream_t s) {
    cudaStream_t t, blocking;
    cudaEvent_t e, outside;
    cudaGraph_t g = NULL;
    CHECK_CUDA(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
    CHECK_CUDA(cudaStreamCreate(&blocking));
    CHECK_CUDA(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    CHECK_CUDA(cudaEventCreateWithFlags(&outside, cudaEventDisableTiming));
    CHECK_CUDA(cudaEventRecord(outside, t));
    int *a = device_ints();

    EXPECT_EQ(cudaStreamBeginCapture(cudaStreamLegacy, cudaStreamCaptureModeGlobal), cudaErrorStreamCaptureUnsupported);
    EXPECT_EQ(cudaStreamEndCapture(s, &g), cudaErrorIllegalState);

    CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    EXPECT_EQ(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal), cudaErrorIllegalState);
    EXPECT_EQ(cudaStreamSynchronize(s), cudaErrorStreamCaptureUnsupported);
    enum cudaStreamCaptureStatus status;
    CHECK_CUDA(cudaStreamIsCapturing(s, &status));
    EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated);
    end_broken(s);

    void *p = NULL;
    CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    EXPECT_EQ(cudaMalloc(&p, 16), cudaErrorStreamCaptureUnsupported);
    end_broken(s);

    CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed)); /* here it may */
    EXPECT_EQ(cudaMalloc(&p, 16), cudaSuccess);
    EXPECT_EQ(cudaStreamEndCapture(s, &g), cudaSuccess);
    CHECK_CUDA(cudaGraphDestroy(g));
    CHECK_CUDA(cudaFree(p));

    CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    EXPECT_EQ(cudaStreamWaitEvent(s, outside, 0), cudaErrorStreamCaptureIsolation);
    end_broken(s);

    CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    CHECK_CUDA(cudaEventRecord(e, s));
    CHECK_CUDA(cudaStreamWaitEvent(t, e, 0));
    EXPECT_EQ(cudaStreamEndCapture(t, &g), cudaErrorStreamCaptureUnmatched);
    if (cudaStreamEndCapture(s, &g) == cudaSuccess) CHECK_CUDA(cudaGraphDestroy(g)); /* whether it broke is not said */
    (void)cudaGetLastError();

    CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    CHECK_CUDA(cudaEventRecord(e, s));
    CHECK_CUDA(cudaStreamWaitEvent(t, e, 0));
    fill<<<1, N, 0, t>>>(a, 1);
    EXPECT_EQ(cudaStreamEndCapture(s, &g), cudaErrorStreamCaptureUnjoined);
    (void)cudaGetLastError();
    EXPECT_EQ(cudaEventSynchronize(e), cudaErrorCapturedEvent);

    CHECK_CUDA(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed));
    EXPECT_EQ(cudaMemsetAsync(a, 0, 16, cudaStreamLegacy), cudaErrorStreamCaptureImplicit);
    end_broken(blocking);

    /* Everything works again. */
    fill<<<1, N, 0, s>>>(a, 77);
    CHECK_CUDA(cudaStreamSynchronize(s));
    EXPECT_ALL(a, 77);
    CHECK_CUDA(cudaStreamDestroy(t));
    CHECK_CUDA(cudaStreamDestroy(blocking));
    CHECK_CUDA(cudaEventDestroy(e));
    CHECK_CUDA(cudaEventDestroy(outside));
}

#ifdef RQ_TEST_SIM
/* The sum does not depend on the second fill. */
static int sum_of_graph(cudaStream_t s, bool with_edge) {
    int *a = device_ints(), *b = device_ints(), *c = device_ints(), v = 4, w = 5;
    cudaGraph_t g;
    cudaGraphNode_t first, second, sum;
    cudaGraphExec_t x;
    CHECK_CUDA(cudaGraphCreate(&g, 0));
    void *args_a[] = {&a, &v}, *args_b[] = {&b, &w}, *args_sum[] = {&c, &a, &b};
    cudaKernelNodeParams p = kernel_params((void *)fill, args_a);
    CHECK_CUDA(cudaGraphAddKernelNode(&first, g, NULL, 0, &p));
    p = kernel_params((void *)fill, args_b);
    CHECK_CUDA(cudaGraphAddKernelNode(&second, g, NULL, 0, &p));
    p = kernel_params((void *)add, args_sum);
    cudaGraphNode_t before[] = {first, second};
    CHECK_CUDA(cudaGraphAddKernelNode(&sum, g, before, with_edge ? 2 : 1, &p));
    CHECK_CUDA(cudaGraphInstantiate(&x, g, 0));
    CHECK_CUDA(cudaGraphDestroy(g));
    CHECK_CUDA(cudaMemset(b, 0, N * sizeof(int)));
    CHECK_CUDA(cudaDeviceSynchronize());
    run(x, s);
    CHECK_CUDA(cudaGraphExecDestroy(x));
    return first_wrong(c, 9);
}

static void test_missing_edge(cudaStream_t s) {
    int wrong = 0;
    for (int reverse = 0; reverse < 2; ++reverse) {
        gs_settings_get()->reverse = reverse;
        EXPECT_EQ(sum_of_graph(s, true), 9);
        wrong += sum_of_graph(s, false) != 9;
    }
    gs_settings_get()->reverse = false;
    EXPECT_EQ(wrong, 1);
}
#endif

int main(void) {
    rq_need_device(80);
    cudaStream_t s;
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    test_explicit(s);
    test_capture(s);
    test_update(s);
    test_clone_and_child(s);
    test_forbidden(s);
#ifdef RQ_TEST_SIM
    test_missing_edge(s);
#endif
    CHECK_CUDA(cudaStreamDestroy(s));
    return rq_done(__FILE__);
}
