/* SPDX-License-Identifier: Apache-2.0 */
/* Memory: kinds of it and what is said about them, copies of every shape and direction, fills, pools. In the simulator also
 * what only it sees: copies past the end of an allocation, use of freed memory, double frees. */
#include "cudatest.h"
#ifdef RQ_TEST_SIM
extern "C" {
#include "../gpusim/gpusim.h"
}
#endif

__global__ void increment(int *p, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) p[i]++;
}

static void test_kinds(void) {
    void *d = NULL, *h = NULL, *m = NULL, *mapped = NULL;
    static int plain[64];
    struct cudaPointerAttributes a;
    CHECK_CUDA(cudaMalloc(&d, 1000));
    CHECK_CUDA(cudaHostAlloc(&h, 1000, cudaHostAllocMapped));
    CHECK_CUDA(cudaMallocManaged(&m, 1000));
    EXPECT_EQ((uintptr_t)d % 256, 0);
    CHECK_CUDA(cudaPointerGetAttributes(&a, (char *)d + 10));
    EXPECT_EQ(a.type, cudaMemoryTypeDevice);
    EXPECT_EQ(a.device, 0);
    CHECK_CUDA(cudaPointerGetAttributes(&a, h));
    EXPECT_EQ(a.type, cudaMemoryTypeHost);
    CHECK_CUDA(cudaPointerGetAttributes(&a, m));
    EXPECT_EQ(a.type, cudaMemoryTypeManaged);
    CHECK_CUDA(cudaPointerGetAttributes(&a, plain));
    EXPECT_EQ(a.type, cudaMemoryTypeUnregistered);
    /* The device works on mapped and managed memory. */
    CHECK_CUDA(cudaHostGetDevicePointer(&mapped, h, 0));
    memset(h, 0, 1000);
    memset(m, 0, 1000);
    increment<<<1, 256>>>((int *)mapped, 250);
    increment<<<1, 256>>>((int *)m, 250);
    CHECK_CUDA(cudaDeviceSynchronize());
    EXPECT_EQ(((int *)h)[249], 1);
    EXPECT_EQ(((int *)m)[249], 1);
    /* Registered memory. */
    CHECK_CUDA(cudaHostRegister(plain, sizeof plain, cudaHostRegisterDefault));
    EXPECT_EQ(cudaHostRegister(plain, sizeof plain, 0), cudaErrorHostMemoryAlreadyRegistered);
    CHECK_CUDA(cudaPointerGetAttributes(&a, plain + 3));
    EXPECT_EQ(a.type, cudaMemoryTypeHost);
    CHECK_CUDA(cudaHostUnregister(plain));
    EXPECT_EQ(cudaHostUnregister(plain), cudaErrorHostMemoryNotRegistered);
    (void)cudaGetLastError();
    /* Nothing is freed twice, but nothing can be freed as often as one likes. */
    CHECK_CUDA(cudaFree(NULL));
    CHECK_CUDA(cudaFreeHost(NULL));
    EXPECT_EQ(cudaFree(plain), cudaErrorInvalidValue);
    (void)cudaGetLastError();
    CHECK_CUDA(cudaFree(d));
    CHECK_CUDA(cudaFreeHost(h));
    CHECK_CUDA(cudaFree(m));
    CHECK_CUDA(cudaMalloc(&d, 0));
    EXPECT(d == NULL);
    EXPECT_EQ(cudaMalloc(&d, (size_t)1 << 60), cudaErrorMemoryAllocation);
    EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
    size_t available = 0, total = 0;
    CHECK_CUDA(cudaMemGetInfo(&available, &total));
    EXPECT(available <= total && total > 0);
}

static void test_directions(void) {
    enum { N = 777 };
    static uint8_t in[N], out[N];
    rq_rng r = {1};
    rq_rand_bytes(&r, in, N);
    uint8_t *a = (uint8_t *)rq_device_buffer(N), *b = (uint8_t *)rq_device_buffer(N);
    CHECK_CUDA(cudaMemcpy(a, in, N, cudaMemcpyHostToDevice));
    CHECK_CUDA(cudaMemcpy(b, a, N, cudaMemcpyDeviceToDevice));
    CHECK_CUDA(cudaMemcpy(out, b, N, cudaMemcpyDeviceToHost));
    EXPECT(!memcmp(in, out, N));
    memset(out, 0, N);
    CHECK_CUDA(cudaMemcpy(out + 1, b + 1, N - 2, cudaMemcpyDefault));
    EXPECT(!memcmp(in + 1, out + 1, N - 2) && !out[0] && !out[N - 1]);
    CHECK_CUDA(cudaMemcpy(out, in, N, cudaMemcpyHostToHost));
    EXPECT(!memcmp(in, out, N));
    CHECK_CUDA(cudaMemcpy(a, in, 0, cudaMemcpyHostToDevice));
    /* The wrong kind. */
    EXPECT_EQ(cudaMemcpy(out, in, N, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpy(out, in, N, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpy(a, b, N, (enum cudaMemcpyKind)17), cudaErrorInvalidMemcpyDirection);
    EXPECT_EQ(cudaMemset(in, 0, N), cudaErrorInvalidValue);
    (void)cudaGetLastError();
}

static void test_shapes(void) {
    enum { W = 21, H = 13, D = 3 };
    static uint8_t in[D][H][W], out[D][H][W + 5];
    rq_rng r = {2};
    rq_rand_bytes(&r, in, sizeof in);
    uint8_t *p = NULL;
    size_t pitch = 0;
    CHECK_CUDA(cudaMallocPitch((void **)&p, &pitch, W, H));
    EXPECT(pitch >= W && pitch % 32 == 0);
    CHECK_CUDA(cudaMemset2D(p, pitch, 0x77, W, H));
    CHECK_CUDA(cudaMemcpy2D(p + pitch + 2, pitch, in, W, 10, H - 1, cudaMemcpyHostToDevice));
    CHECK_CUDA(cudaMemcpy2D(out, W + 5, p, pitch, W, H, cudaMemcpyDeviceToHost));
    for (int y = 0; y < H; ++y)
        for (int x = 0; x < W; ++x) {
            bool copied = y >= 1 && x >= 2 && x < 12;
            EXPECT_EQ_AT(y * W + x, out[0][y][x], copied ? in[0][y - 1][x - 2] : 0x77);
        }
    EXPECT_EQ(cudaMemcpy2D(p, W - 1, in, W, W, H, cudaMemcpyHostToDevice), cudaErrorInvalidPitchValue);
    (void)cudaGetLastError();
    CHECK_CUDA(cudaFree(p));
    struct cudaPitchedPtr box;
    CHECK_CUDA(cudaMalloc3D(&box, make_cudaExtent(W, H, D)));
    struct cudaMemcpy3DParms c = {};
    c.srcPtr = make_cudaPitchedPtr(in, W, W, H);
    c.dstPtr = box;
    c.extent = make_cudaExtent(W, H, D);
    c.kind = cudaMemcpyHostToDevice;
    CHECK_CUDA(cudaMemcpy3D(&c));
    memset(out, 0, sizeof out);
    struct cudaMemcpy3DParms back = {};
    back.srcPtr = box;
    back.srcPos = make_cudaPos(1, 2, 1);
    back.dstPtr = make_cudaPitchedPtr(out, W + 5, W, H);
    back.extent = make_cudaExtent(W - 1, H - 2, D - 1);
    back.kind = cudaMemcpyDeviceToHost;
    CHECK_CUDA(cudaMemcpy3D(&back));
    for (int z = 0; z < D - 1; ++z)
        for (int y = 0; y < H - 2; ++y)
            for (int x = 0; x < W - 1; ++x) EXPECT_EQ_AT(x, out[z][y][x], in[z + 1][y + 2][x + 1]);
    CHECK_CUDA(cudaFree(box.ptr));
}

static void test_pools(void) {
    enum { N = 300 };
    cudaStream_t s;
    int *p = NULL, host[N];
    CHECK_CUDA(cudaStreamCreate(&s));
    CHECK_CUDA(cudaMallocAsync((void **)&p, sizeof host, s));
    CHECK_CUDA(cudaMemsetAsync(p, 0, sizeof host, s));
    increment<<<3, 128, 0, s>>>(p, N);
    CHECK_CUDA(cudaMemcpyAsync(host, p, sizeof host, cudaMemcpyDeviceToHost, s));
    CHECK_CUDA(cudaFreeAsync(p, s));
    CHECK_CUDA(cudaStreamSynchronize(s));
    for (int i = 0; i < N; ++i) EXPECT_EQ_AT(i, host[i], 1);
    cudaMemPool_t pool;
    uint64_t keep = UINT64_MAX, got = 0;
    CHECK_CUDA(cudaDeviceGetDefaultMemPool(&pool, 0));
    CHECK_CUDA(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
    CHECK_CUDA(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &got));
    EXPECT(got == keep);
    CHECK_CUDA(cudaMemPoolTrimTo(pool, 0));
    CHECK_CUDA(cudaStreamDestroy(s));
}

#ifdef RQ_TEST_SIM
static int n_found;
static void count_findings(void *user, const char *kind, const char *text) {
    (void)user, (void)kind, (void)text;
    n_found++;
}

static void test_findings(void) {
    char host[256] = "";
    char *p = NULL, *q = NULL;
    cudaStream_t s;
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CHECK_CUDA(cudaMalloc((void **)&p, 100));
    CHECK_CUDA(cudaMalloc((void **)&q, 100));
    gs_findings_sink(count_findings, NULL);
    EXPECT_EQ(cudaMemcpy(p + 60, host, 41, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    EXPECT_EQ(n_found, 1);
    EXPECT_EQ(cudaMemcpy(p + 60, host, 40, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(host, p, 101, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    EXPECT_EQ(n_found, 2);
    EXPECT_EQ(cudaMemset(p, 0, 101), cudaErrorInvalidValue);
    EXPECT_EQ(n_found, 3);
    EXPECT_EQ(cudaFree(p), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(host, p, 10, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    EXPECT_EQ(n_found, 4);
    EXPECT_EQ(cudaFree(p), cudaErrorInvalidValue);
    EXPECT_EQ(n_found, 5);
    /* The stream frees it before the copy, whose call is still in order. */
    EXPECT_EQ(cudaFreeAsync(q, s), cudaSuccess);
    EXPECT_EQ(cudaMemsetAsync(q, 0, 10, s), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(s), cudaSuccess);
    EXPECT_EQ(n_found, 6);
    gs_findings_sink(NULL, NULL);
    gs_findings_reset();
    (void)cudaGetLastError();
    CHECK_CUDA(cudaStreamDestroy(s));
}
#endif

#ifdef RQ_TEST_SIM
/* The host gets memory that the device had: the simulator keeps what is freed for a while, and then forgets it. */
static void test_reuse(void) {
    enum { SIZE = 64 << 10 };
    void *device, *other, *big;
    CHECK_CUDA(cudaMalloc(&device, SIZE));
    CHECK_CUDA(cudaMalloc(&other, SIZE));
    CHECK_CUDA(cudaMemset(other, 1, SIZE));
    CHECK_CUDA(cudaFree(device));
    CHECK_CUDA(cudaMalloc(&big, (size_t)600 << 20));
    CHECK_CUDA(cudaFree(big));
    void *host = aligned_alloc(256, SIZE + 256);
    if (host == device) CHECK_CUDA(cudaMemcpy(host, other, SIZE, cudaMemcpyDeviceToHost));
    free(host);
    CHECK_CUDA(cudaFree(other));
}
#endif

int main(void) {
    rq_need_device(80);
    test_kinds();
    test_directions();
    test_shapes();
    test_pools();
#ifdef RQ_TEST_SIM
    test_findings();
    test_reuse();
#endif
    return rq_done(__FILE__);
}
