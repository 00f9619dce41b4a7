/* SPDX-License-Identifier: Apache-2.0 */
/* Streams and events: work of one stream runs in order, waits hold what they say, the default stream waits for the others,
 * and asynchronous calls read and write host memory when the documents say. Then programs with a wait left out: on a GPU they
 * are right by luck; in the simulator, which runs work late, each is wrong in one of its two orders. */
#include "cudatest.h"
#ifdef RQ_TEST_SIM
extern "C" {
#include "../gpusim/gpusim.h"
}
#endif

enum { N = 1000 };

__global__ void set_all(int *p, int v) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < N) p[i] = v;
}

/* out = in * factor + 1 */
__global__ void step(int *out, const int *in, int factor) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < N) out[i] = in[i] * factor + 1;
}

static int *device_ints(void) { return (int *)rq_device_buffer(N * sizeof(int)); }
static const int BLOCKS = (N + 127) / 128;

static int *pinned_ints(void) {
    void *p = NULL;
    CHECK_CUDA(cudaMallocHost(&p, N * sizeof(int)));
    return (int *)p;
}

static int sum_of_errors(const int *p, int want) {
    int wrong = 0;
    for (int i = 0; i < N; ++i) wrong += p[i] != want;
    return wrong;
}

static int device_wrong(const int *p, int want) {
    static int host[N];
    rq_device_read(host, p, sizeof host);
    return sum_of_errors(host, want);
}

static void test_order(void) {
    cudaStream_t s;
    CHECK_CUDA(cudaStreamCreate(&s));
    int *a = device_ints(), *b = device_ints(), *h = pinned_ints();
    set_all<<<BLOCKS, 128, 0, s>>>(a, 3);
    step<<<BLOCKS, 128, 0, s>>>(b, a, 2);
    step<<<BLOCKS, 128, 0, s>>>(a, b, 2);
    CHECK_CUDA(cudaMemcpyAsync(h, a, N * sizeof(int), cudaMemcpyDeviceToHost, s));
    CHECK_CUDA(cudaMemsetAsync(a, 0, N * sizeof(int), s));
    CHECK_CUDA(cudaStreamSynchronize(s));
    EXPECT_EQ(sum_of_errors(h, 15), 0);
    EXPECT_EQ(device_wrong(a, 0), 0);
    EXPECT_EQ(cudaStreamQuery(s), cudaSuccess);
    CHECK_CUDA(cudaStreamDestroy(s));
    CHECK_CUDA(cudaFreeHost(h));
}

/* Two non-blocking streams, joined by events both ways. */
static void test_events(void) {
    cudaStream_t s, t;
    cudaEvent_t forth, back;
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CHECK_CUDA(cudaStreamCreateWithPriority(&t, cudaStreamNonBlocking, -1));
    CHECK_CUDA(cudaEventCreateWithFlags(&forth, cudaEventDisableTiming));
    CHECK_CUDA(cudaEventCreateWithFlags(&back, cudaEventDisableTiming));
    int *a = device_ints(), *b = device_ints();
    for (int round = 0; round < 5; ++round) {
        set_all<<<BLOCKS, 128, 0, s>>>(a, round);
        CHECK_CUDA(cudaEventRecord(forth, s));
        CHECK_CUDA(cudaStreamWaitEvent(t, forth, 0));
        step<<<BLOCKS, 128, 0, t>>>(b, a, 10);
        CHECK_CUDA(cudaEventRecord(back, t));
        CHECK_CUDA(cudaStreamWaitEvent(s, back, 0));
        CHECK_CUDA(cudaMemsetAsync(a, 0xff, N * sizeof(int), s)); /* must not overtake the step */
    }
    CHECK_CUDA(cudaStreamSynchronize(s));
    EXPECT_EQ(device_wrong(b, 41), 0);
    EXPECT_EQ(device_wrong(a, -1), 0);
    CHECK_CUDA(cudaEventDestroy(forth));
    CHECK_CUDA(cudaEventDestroy(back));
    CHECK_CUDA(cudaStreamDestroy(s));
    CHECK_CUDA(cudaStreamDestroy(t));
}

/* An event that is recorded again means its latest record; a wait means the record before it. */
static void test_rerecord(void) {
    cudaStream_t s, t;
    cudaEvent_t e;
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CHECK_CUDA(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
    CHECK_CUDA(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    EXPECT_EQ(cudaEventQuery(e), cudaSuccess); /* never recorded */
    int *a = device_ints(), *b = device_ints(), *c = device_ints();
    set_all<<<BLOCKS, 128, 0, s>>>(a, 1);
    CHECK_CUDA(cudaEventRecord(e, s));
    CHECK_CUDA(cudaStreamWaitEvent(t, e, 0));
    set_all<<<BLOCKS, 128, 0, s>>>(c, 2);
    CHECK_CUDA(cudaEventRecord(e, s));
    step<<<BLOCKS, 128, 0, t>>>(b, a, 5);
    CHECK_CUDA(cudaEventSynchronize(e));
    EXPECT_EQ(cudaEventQuery(e), cudaSuccess);
    int *h = pinned_ints();
    CHECK_CUDA(cudaMemcpy(h, c, N * sizeof(int), cudaMemcpyDeviceToHost));
    EXPECT_EQ(sum_of_errors(h, 2), 0);
    CHECK_CUDA(cudaStreamSynchronize(t));
    EXPECT_EQ(device_wrong(b, 6), 0);
    CHECK_CUDA(cudaEventDestroy(e));
    CHECK_CUDA(cudaStreamDestroy(s));
    CHECK_CUDA(cudaStreamDestroy(t));
    CHECK_CUDA(cudaFreeHost(h));
}

/* The default stream comes after and before everything of blocking streams. */
static void test_default_stream(void) {
    cudaStream_t s, t;
    CHECK_CUDA(cudaStreamCreate(&s));
    CHECK_CUDA(cudaStreamCreate(&t));
    int *a = device_ints(), *b = device_ints(), *c = device_ints();
    set_all<<<BLOCKS, 128, 0, s>>>(a, 4);
    step<<<BLOCKS, 128>>>(b, a, 3);
    step<<<BLOCKS, 128, 0, t>>>(c, b, 3);
    CHECK_CUDA(cudaStreamSynchronize(t));
    EXPECT_EQ(device_wrong(c, 40), 0);
    set_all<<<BLOCKS, 128, 0, cudaStreamPerThread>>>(a, 7);
    step<<<BLOCKS, 128, 0, cudaStreamLegacy>>>(b, a, 2);
    CHECK_CUDA(cudaDeviceSynchronize());
    EXPECT_EQ(device_wrong(b, 15), 0);
    CHECK_CUDA(cudaStreamDestroy(s));
    CHECK_CUDA(cudaStreamDestroy(t));
}

/* A pageable source may change once the call has returned; a pageable destination is there then. */
static void test_pageable(void) {
    cudaStream_t s;
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    static int in[N], out[N];
    int *a = device_ints();
    for (int i = 0; i < N; ++i) in[i] = 21;
    CHECK_CUDA(cudaMemcpyAsync(a, in, sizeof in, cudaMemcpyHostToDevice, s));
    for (int i = 0; i < N; ++i) in[i] = 0;
    step<<<BLOCKS, 128, 0, s>>>(a, a, 2);
    CHECK_CUDA(cudaMemcpyAsync(out, a, sizeof out, cudaMemcpyDeviceToHost, s));
    EXPECT_EQ(sum_of_errors(out, 43), 0);
    CHECK_CUDA(cudaStreamDestroy(s));
}

static void add_one(void *user) { *(int *)user += 1; }
static void double_it(void *user) { *(int *)user *= 2; }

static void test_host_functions(void) {
    cudaStream_t s;
    CHECK_CUDA(cudaStreamCreate(&s));
    int v = 3, *a = device_ints(), *h = pinned_ints();
    set_all<<<BLOCKS, 128, 0, s>>>(a, 9);
    CHECK_CUDA(cudaLaunchHostFunc(s, add_one, &v));
    CHECK_CUDA(cudaLaunchHostFunc(s, double_it, &v));
    CHECK_CUDA(cudaMemcpyAsync(h, a, N * sizeof(int), cudaMemcpyDeviceToHost, s));
    CHECK_CUDA(cudaLaunchHostFunc(s, double_it, h));
    CHECK_CUDA(cudaStreamSynchronize(s));
    EXPECT_EQ(v, 8);
    EXPECT_EQ(h[0], 18);
    EXPECT_EQ(h[1], 9);
    CHECK_CUDA(cudaStreamDestroy(s));
    CHECK_CUDA(cudaFreeHost(h));
}

/* Work of a destroyed stream still runs. Polling ends. */
static void test_destroy_and_poll(void) {
    cudaStream_t s, t;
    cudaEvent_t e;
    CHECK_CUDA(cudaStreamCreate(&s));
    CHECK_CUDA(cudaStreamCreate(&t));
    CHECK_CUDA(cudaEventCreate(&e));
    int *a = device_ints(), *b = device_ints();
    set_all<<<BLOCKS, 128, 0, s>>>(a, 6);
    CHECK_CUDA(cudaStreamDestroy(s));
    set_all<<<BLOCKS, 128, 0, t>>>(b, 5);
    CHECK_CUDA(cudaEventRecord(e, t));
    cudaError_t r;
    while ((r = cudaEventQuery(e)) == cudaErrorNotReady) {}
    EXPECT_EQ(r, cudaSuccess);
    while ((r = cudaStreamQuery(t)) == cudaErrorNotReady) {}
    EXPECT_EQ(r, cudaSuccess);
    (void)cudaGetLastError(); /* a "not ready" may be left there */
    CHECK_CUDA(cudaDeviceSynchronize());
    EXPECT_EQ(device_wrong(a, 6), 0);
    EXPECT_EQ(device_wrong(b, 5), 0);
    CHECK_CUDA(cudaEventDestroy(e));
    CHECK_CUDA(cudaStreamDestroy(t));
}

static void test_times(void) {
    cudaEvent_t from, to, plain;
    float ms = -1;
    CHECK_CUDA(cudaEventCreate(&from));
    CHECK_CUDA(cudaEventCreate(&to));
    CHECK_CUDA(cudaEventCreateWithFlags(&plain, cudaEventDisableTiming));
    EXPECT_EQ(cudaEventElapsedTime(&ms, from, to), cudaErrorInvalidResourceHandle); /* not recorded */
    int *a = device_ints();
    CHECK_CUDA(cudaEventRecord(from));
    set_all<<<BLOCKS, 128>>>(a, 1);
    CHECK_CUDA(cudaEventRecord(to));
    CHECK_CUDA(cudaEventRecord(plain));
    CHECK_CUDA(cudaEventSynchronize(to));
    CHECK_CUDA(cudaEventElapsedTime(&ms, from, to));
    EXPECT(ms > 0 && ms < 60000);
    EXPECT_EQ(cudaEventElapsedTime(&ms, from, plain), cudaErrorInvalidResourceHandle);
    (void)cudaGetLastError();
    CHECK_CUDA(cudaDeviceSynchronize());
    CHECK_CUDA(cudaEventDestroy(from));
    CHECK_CUDA(cudaEventDestroy(to));
    CHECK_CUDA(cudaEventDestroy(plain));
}

static void test_questions(void) {
    cudaStream_t s;
    int least = 1, greatest = 1, priority = 1;
    unsigned flags = 0;
    CHECK_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    EXPECT_EQ(least, 0);
    EXPECT(greatest <= least);
    CHECK_CUDA(cudaStreamCreateWithPriority(&s, cudaStreamNonBlocking, greatest - 100)); /* clamped */
    CHECK_CUDA(cudaStreamGetPriority(s, &priority));
    CHECK_CUDA(cudaStreamGetFlags(s, &flags));
    EXPECT_EQ(priority, greatest);
    EXPECT_EQ(flags, cudaStreamNonBlocking);
    CHECK_CUDA(cudaStreamDestroy(s));
    EXPECT_EQ(cudaStreamCreateWithFlags(&s, 0x80), cudaErrorInvalidValue);
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

#ifdef RQ_TEST_SIM
/* How many of the two orders give a wrong result. */
static int wrong_orders(int (*program)(void)) {
    int n = 0;
    for (int reverse = 0; reverse < 2; ++reverse) {
        gs_settings_get()->reverse = reverse;
        n += program() != 0;
        CHECK_CUDA(cudaDeviceSynchronize());
    }
    gs_settings_get()->reverse = false;
    return n;
}

static bool with_wait; /* the corrected twin */

/* The reader does not wait for the writer. */
static int read_too_early(void) {
    cudaStream_t s, t;
    cudaEvent_t e;
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CHECK_CUDA(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
    CHECK_CUDA(cudaEventCreate(&e));
    int *a = device_ints(), *b = device_ints();
    CHECK_CUDA(cudaMemset(a, 0, N * sizeof(int)));
    CHECK_CUDA(cudaDeviceSynchronize());
    set_all<<<BLOCKS, 128, 0, s>>>(a, 8);
    CHECK_CUDA(cudaEventRecord(e, s));
    if (with_wait) CHECK_CUDA(cudaStreamWaitEvent(t, e, 0));
    step<<<BLOCKS, 128, 0, t>>>(b, a, 1);
    CHECK_CUDA(cudaDeviceSynchronize());
    CHECK_CUDA(cudaStreamDestroy(s));
    CHECK_CUDA(cudaStreamDestroy(t));
    CHECK_CUDA(cudaEventDestroy(e));
    return device_wrong(b, 9);
}

/* The next input overwrites the buffer before it is read. */
static int overwrite_too_early(void) {
    cudaStream_t s, t;
    cudaEvent_t e;
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CHECK_CUDA(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
    CHECK_CUDA(cudaEventCreate(&e));
    int *a = device_ints(), *b = device_ints();
    set_all<<<BLOCKS, 128, 0, s>>>(a, 8);
    CHECK_CUDA(cudaStreamSynchronize(s));
    step<<<BLOCKS, 128, 0, s>>>(b, a, 1);
    CHECK_CUDA(cudaEventRecord(e, s));
    if (with_wait) CHECK_CUDA(cudaStreamWaitEvent(t, e, 0));
    set_all<<<BLOCKS, 128, 0, t>>>(a, 0);
    CHECK_CUDA(cudaStreamSynchronize(s));
    int wrong = device_wrong(b, 9);
    CHECK_CUDA(cudaStreamDestroy(s));
    CHECK_CUDA(cudaStreamDestroy(t));
    CHECK_CUDA(cudaEventDestroy(e));
    return wrong;
}

/* The host reads its pinned buffer before the copy to it is over. */
static int host_reads_too_early(void) {
    cudaStream_t s;
    CHECK_CUDA(cudaStreamCreate(&s));
    int *a = device_ints(), *h = pinned_ints();
    memset(h, 0, N * sizeof(int));
    set_all<<<BLOCKS, 128, 0, s>>>(a, 8);
    CHECK_CUDA(cudaMemcpyAsync(h, a, N * sizeof(int), cudaMemcpyDeviceToHost, s));
    if (with_wait) CHECK_CUDA(cudaStreamSynchronize(s));
    int wrong = sum_of_errors(h, 8);
    CHECK_CUDA(cudaStreamDestroy(s));
    CHECK_CUDA(cudaFreeHost(h));
    return wrong;
}

/* The host reuses its pinned buffer before the copy from it is over. */
static int host_writes_too_early(void) {
    cudaStream_t s;
    CHECK_CUDA(cudaStreamCreate(&s));
    int *a = device_ints(), *h = pinned_ints();
    for (int i = 0; i < N; ++i) h[i] = 8;
    CHECK_CUDA(cudaMemcpyAsync(a, h, N * sizeof(int), cudaMemcpyHostToDevice, s));
    if (with_wait) CHECK_CUDA(cudaStreamSynchronize(s));
    for (int i = 0; i < N; ++i) h[i] = 0;
    CHECK_CUDA(cudaStreamSynchronize(s));
    CHECK_CUDA(cudaStreamDestroy(s));
    int wrong = device_wrong(a, 8);
    CHECK_CUDA(cudaFreeHost(h));
    return wrong;
}

static void test_missing_waits(void) {
    int (*const programs[])(void) = {read_too_early, overwrite_too_early, host_reads_too_early, host_writes_too_early};
    for (int p = 0; p < 4; ++p) {
        with_wait = false;
        EXPECT(wrong_orders(programs[p]) >= 1);
        with_wait = true;
        EXPECT_EQ_AT(p, wrong_orders(programs[p]), 0);
    }
}
#endif

int main(void) {
    rq_need_device(80);
    test_order();
    test_events();
    test_rerecord();
    test_default_stream();
    test_pageable();
    test_host_functions();
    test_destroy_and_poll();
    test_times();
    test_questions();
    rq_device_free_all();
#ifdef RQ_TEST_SIM
    test_missing_waits();
#endif
    return rq_done(__FILE__);
}
