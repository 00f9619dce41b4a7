/* SPDX-License-Identifier: Apache-2.0 */
/* cuBLAS against plain loops: every function and number format that the project may call, on ragged shapes with leading
 * dimensions larger than needed, and what is refused. The sums are of small integers, exact in every format, so the results
 * are the same bits everywhere, but for triangular solves.
 * Libraries: cublas */
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cudatest.h"
#ifdef RQ_TEST_SIM
extern "C" {
#include "../gpusim/gpusim.h"
}
#endif

#define CHECK_BLAS(call)                                                                                               \
    do {                                                                                                               \
        cublasStatus_t s_ = (call);                                                                                    \
        if (s_ != CUBLAS_STATUS_SUCCESS) RQ_DIE("%s: %s", #call, cublasGetStatusName(s_));                             \
    } while (0)

static rq_rng rng = {11};
static double small_integer(void) { return (double)(int)(rq_rand_u32(&rng) % 7) - 3; }

template <typename T> static T make(double v) { return (T)(float)v; }
template <> double make<double>(double v) { return v; }
template <> int8_t make<int8_t>(double v) { return (int8_t)v; }
template <> int32_t make<int32_t>(double v) { return (int32_t)v; }
template <typename T> static double value(T v) { return (double)(float)v; }
template <> double value<double>(double v) { return v; }
template <> double value<int8_t>(int8_t v) { return v; }
template <> double value<int32_t>(int32_t v) { return v; }

/* A column-major matrix on both sides; the rows between `rows` and `ld` hold something that must stay. */
template <typename T> struct matrix {
    int rows, cols, ld;
    T *host, *device;
    matrix(int r, int c, int extra) : rows(r), cols(c), ld(r + extra) {
        host = (T *)rq_host_alloc(bytes());
        for (int i = 0; i < ld * cols; ++i) host[i] = make<T>(small_integer());
        device = (T *)rq_device_copy(host, bytes());
    }
    size_t bytes() const { return (size_t)ld * (size_t)cols * sizeof(T); }
    double at(int i, int j) const { return value(host[(size_t)j * (size_t)ld + (size_t)i]); }
    double op(bool t, int i, int j) const { return t ? at(j, i) : at(i, j); }
    ~matrix() {
        rq_device_free(device);
        free(host);
    }
    matrix(const matrix &) = delete;
    /* What the device has now, in place of the host's. */
    void read() { rq_device_read(host, device, bytes()); }
};

template <typename TA, typename TC, typename S>
static void test_gemm_ex(cublasHandle_t h, cudaDataType a_type, cudaDataType c_type, cublasComputeType_t compute, int m,
                         int n, int k, bool ta, bool tb, double alpha, double beta) {
    int pad = 4; /* products of int8 need multiples of 4 */
    matrix<TA> a(ta ? k : m, ta ? m : k, pad), b(tb ? n : k, tb ? k : n, pad);
    matrix<TC> c(m, n, 3), old(1, 1, 0);
    double *want = (double *)rq_host_alloc((size_t)m * (size_t)n * sizeof(double));
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < m; ++i) {
            double sum = 0;
            for (int p = 0; p < k; ++p) sum += a.op(ta, i, p) * b.op(tb, p, j);
            want[j * m + i] = alpha * sum + beta * c.at(i, j);
        }
    double rest = c.at(m, 0);
    S alpha_s = make<S>(alpha), beta_s = make<S>(beta);
    CHECK_BLAS(cublasGemmEx(h, ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb ? CUBLAS_OP_T : CUBLAS_OP_N, m, n, k, &alpha_s,
                            a.device, a_type, a.ld, b.device, a_type, b.ld, &beta_s, c.device, c_type, c.ld, compute,
                            CUBLAS_GEMM_DEFAULT));
    c.read();
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < m; ++i) EXPECT_NEAR_AT(j * m + i, c.at(i, j), value(make<TC>(want[j * m + i])), 0);
    EXPECT_NEAR(c.at(m, 0), rest, 0);
    free(want);
}

static void test_products(cublasHandle_t h) {
    for (int t = 0; t < 4; ++t) {
        bool ta = t & 1, tb = t & 2;
        test_gemm_ex<float, float, float>(h, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F, 37, 19, 23, ta, tb, 2, -1);
        test_gemm_ex<double, double, double>(h, CUDA_R_64F, CUDA_R_64F, CUBLAS_COMPUTE_64F, 20, 31, 17, ta, tb, 1, 0);
        test_gemm_ex<__half, __half, float>(h, CUDA_R_16F, CUDA_R_16F, CUBLAS_COMPUTE_32F, 24, 16, 40, ta, tb, 1, 1);
        test_gemm_ex<__half, float, float>(h, CUDA_R_16F, CUDA_R_32F, CUBLAS_COMPUTE_32F, 24, 16, 40, ta, tb, 0.5, 0);
        test_gemm_ex<__nv_bfloat16, __nv_bfloat16, float>(h, CUDA_R_16BF, CUDA_R_16BF, CUBLAS_COMPUTE_32F, 8, 24, 16,
                                                          ta, tb, 1, 0);
        test_gemm_ex<__nv_bfloat16, float, float>(h, CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F, 8, 24, 16, ta, tb, 1,
                                                  2);
    }
    /* The device takes int8 where both factors run along k. */
    test_gemm_ex<int8_t, int32_t, int32_t>(h, CUDA_R_8I, CUDA_R_32I, CUBLAS_COMPUTE_32I, 32, 16, 64, true, false, 1, 0);
    test_gemm_ex<int8_t, int32_t, int32_t>(h, CUDA_R_8I, CUDA_R_32I, CUBLAS_COMPUTE_32I, 32, 16, 64, true, false, 3, 1);
}

static void test_batch(cublasHandle_t h) {
    enum { M = 5, N = 6, K = 7, BATCH = 3 };
    matrix<float> a(M, K * BATCH, 0), b(K, N * BATCH, 0), c(M, N * BATCH, 0);
    float one = 1, zero = 0;
    CHECK_BLAS(cublasSgemmStridedBatched(h, CUBLAS_OP_N, CUBLAS_OP_N, M, N, K, &one, a.device, M, M * K, b.device, K,
                                         K * N, &zero, c.device, M, M * N, BATCH));
    c.read();
    for (int z = 0; z < BATCH; ++z)
        for (int j = 0; j < N; ++j)
            for (int i = 0; i < M; ++i) {
                double sum = 0;
                for (int p = 0; p < K; ++p) sum += a.at(i, z * K + p) * b.at(p, z * N + j);
                EXPECT_NEAR_AT(i, c.at(i, z * N + j), sum, 0);
            }
}

static void test_symmetric(cublasHandle_t h) {
    enum { N = 21, K = 13 };
    for (int t = 0; t < 4; ++t) {
        bool trans = t & 1, upper = t & 2;
        matrix<double> a(trans ? K : N, trans ? N : K, 2), c(N, N, 1), before(N, N, 1);
        memcpy(before.host, c.host, c.bytes());
        double alpha = 2, beta = 3;
        CHECK_BLAS(cublasDsyrk(h, upper ? CUBLAS_FILL_MODE_UPPER : CUBLAS_FILL_MODE_LOWER,
                               trans ? CUBLAS_OP_T : CUBLAS_OP_N, N, K, &alpha, a.device, a.ld, &beta, c.device, c.ld));
        c.read();
        for (int j = 0; j < N; ++j)
            for (int i = 0; i < N; ++i) {
                double sum = 0;
                for (int p = 0; p < K; ++p) sum += a.op(trans, i, p) * a.op(trans, j, p);
                bool in = upper ? i <= j : i >= j;
                EXPECT_NEAR_AT(j * N + i, c.at(i, j), in ? 2 * sum + 3 * before.at(i, j) : before.at(i, j), 0);
            }
    }
}

/* op(A) X = alpha B or X op(A) = alpha B: the product with X must give B back. */
static void test_triangular(cublasHandle_t h) {
    enum { M = 14, N = 9 };
    for (int t = 0; t < 16; ++t) {
        bool left = t & 1, upper = t & 2, trans = t & 4, unit = t & 8;
        int order = left ? M : N;
        matrix<double> a(order, order, 1), b(M, N, 2), x(M, N, 2), y(M, N, 0);
        for (int i = 0; i < order; ++i) a.host[i * a.ld + i] = 8;
        CHECK_CUDA(cudaMemcpy(a.device, a.host, a.bytes(), cudaMemcpyHostToDevice));
        CHECK_CUDA(cudaMemcpy(x.device, b.host, b.bytes(), cudaMemcpyHostToDevice));
        double alpha = 2, one = 1;
        cublasSideMode_t side = left ? CUBLAS_SIDE_LEFT : CUBLAS_SIDE_RIGHT;
        cublasFillMode_t fill = upper ? CUBLAS_FILL_MODE_UPPER : CUBLAS_FILL_MODE_LOWER;
        cublasOperation_t op = trans ? CUBLAS_OP_T : CUBLAS_OP_N;
        cublasDiagType_t diag = unit ? CUBLAS_DIAG_UNIT : CUBLAS_DIAG_NON_UNIT;
        CHECK_BLAS(cublasDtrsm(h, side, fill, op, diag, M, N, &alpha, a.device, a.ld, x.device, x.ld));
        x.read();
        double largest = 1;
        for (int j = 0; j < N; ++j)
            for (int i = 0; i < M; ++i) largest = fmax(largest, fabs(x.at(i, j)));
        for (int j = 0; j < N; ++j)
            for (int i = 0; i < M; ++i) {
                double sum = 0;
                for (int p = 0; p < order; ++p) {
                    int r = left ? i : p, s = left ? p : j; /* of op(A) */
                    bool in = (upper != trans) ? r <= s : r >= s;
                    double v = r == s && unit ? 1 : in ? a.op(trans, r, s) : 0;
                    sum += v * (left ? x.at(p, j) : x.at(i, p));
                }
                EXPECT_NEAR_AT(j * M + i, sum, 2 * b.at(i, j), 1e-12 * largest);
            }
        /* And trmm is that product. */
        CHECK_BLAS(cublasDtrmm(h, side, fill, op, diag, M, N, &one, a.device, a.ld, x.device, x.ld, y.device, y.ld));
        y.read();
        for (int j = 0; j < N; ++j)
            for (int i = 0; i < M; ++i) EXPECT_NEAR_AT(j * M + i, y.at(i, j), 2 * b.at(i, j), 1e-12 * largest);
    }
}

static void test_vectors(cublasHandle_t h) {
    enum { M = 17, N = 11 };
    matrix<float> a(M, N, 3), x(M, 1, 0), y(N * 2, 1, 0), before(N * 2, 1, 0), c(N, M, 0), z(N, M, 0);
    memcpy(before.host, y.host, y.bytes());
    float two = 2, minus = -1, half = 0.5f;
    CHECK_BLAS(cublasSgemv(h, CUBLAS_OP_T, M, N, &two, a.device, a.ld, x.device, 1, &minus, y.device, 2));
    y.read();
    for (int j = 0; j < N; ++j) {
        double sum = 0;
        for (int i = 0; i < M; ++i) sum += a.at(i, j) * x.at(i, 0);
        EXPECT_NEAR_AT(j, y.at(2 * j, 0), 2 * sum - before.at(2 * j, 0), 0);
        EXPECT_NEAR_AT(j, y.at(2 * j + 1, 0), before.at(2 * j + 1, 0), 0);
    }
    CHECK_BLAS(
        cublasSgeam(h, CUBLAS_OP_T, CUBLAS_OP_N, N, M, &two, a.device, a.ld, &half, z.device, z.ld, c.device, c.ld));
    c.read();
    for (int j = 0; j < M; ++j)
        for (int i = 0; i < N; ++i) EXPECT_NEAR_AT(i, c.at(i, j), 2 * a.at(j, i) + 0.5 * z.at(i, j), 0);
    memcpy(before.host, y.host, y.bytes());
    CHECK_BLAS(cublasSscal(h, N, &two, y.device, 2));
    CHECK_BLAS(cublasSaxpy(h, N, &minus, x.device, 1, y.device, 2));
    y.read();
    for (int j = 0; j < N; ++j) EXPECT_NEAR_AT(j, y.at(2 * j, 0), 2 * before.at(2 * j, 0) - x.at(j, 0), 0);
}

/* Scalars on the device are read when the stream gets there. */
static void test_device_scalars(cublasHandle_t h) {
    enum { N = 6 };
    cudaStream_t s;
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CHECK_BLAS(cublasSetStream(h, s));
    CHECK_BLAS(cublasSetPointerMode(h, CUBLAS_POINTER_MODE_DEVICE));
    matrix<float> a(N, N, 0), b(N, N, 0), c(N, N, 0);
    float host[2] = {3, 0}, *scalars = (float *)rq_device_buffer(sizeof host);
    CHECK_CUDA(cudaMemcpyAsync(scalars, host, sizeof host, cudaMemcpyHostToDevice, s));
    CHECK_BLAS(
        cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, N, N, N, scalars, a.device, N, b.device, N, scalars + 1, c.device, N));
    CHECK_CUDA(cudaStreamSynchronize(s));
    c.read();
    double sum = 0;
    for (int p = 0; p < N; ++p) sum += a.at(2, p) * b.at(p, 4);
    EXPECT_NEAR(c.at(2, 4), 3 * sum, 0);
    CHECK_BLAS(cublasSetPointerMode(h, CUBLAS_POINTER_MODE_HOST));
    CHECK_BLAS(cublasSetStream(h, 0));
    CHECK_CUDA(cudaStreamDestroy(s));
    rq_device_free(scalars);
}

/* A product in a graph works on what is there at each launch. */
static void test_graph(cublasHandle_t h) {
    enum { N = 8 };
    cudaStream_t s;
    cudaGraph_t g;
    cudaGraphExec_t x;
    matrix<float> a(N, N, 0), b(N, N, 0), c(N, N, 0);
    float one = 1, zero = 0;
    void *workspace = rq_device_buffer(32 << 20);
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CHECK_BLAS(cublasSetStream(h, s));
    CHECK_BLAS(cublasSetWorkspace(h, workspace, 32 << 20));
    CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    CHECK_BLAS(cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_T, N, N, N, &one, a.device, N, b.device, N, &zero, c.device, N));
    CHECK_CUDA(cudaStreamEndCapture(s, &g));
    CHECK_CUDA(cudaGraphInstantiate(&x, g, 0));
    for (int round = 0; round < 3; ++round) {
        for (int i = 0; i < N * N; ++i) b.host[i] = (float)small_integer();
        CHECK_CUDA(cudaMemcpyAsync(b.device, b.host, b.bytes(), cudaMemcpyHostToDevice, s));
        CHECK_CUDA(cudaGraphLaunch(x, s));
        CHECK_CUDA(cudaStreamSynchronize(s));
        c.read();
        for (int j = 0; j < N; ++j)
            for (int i = 0; i < N; ++i) {
                double sum = 0;
                for (int p = 0; p < N; ++p) sum += a.at(i, p) * b.at(j, p);
                EXPECT_NEAR_AT(j * N + i, c.at(i, j), sum, 0);
            }
    }
    CHECK_CUDA(cudaGraphExecDestroy(x));
    CHECK_CUDA(cudaGraphDestroy(g));
    CHECK_BLAS(cublasSetStream(h, 0));
    CHECK_CUDA(cudaStreamDestroy(s));
    rq_device_free(workspace);
}

static void test_refused(cublasHandle_t h) {
    matrix<float> a(8, 8, 0), c(8, 8, 0);
    float one = 1;
    EXPECT_EQ(cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, 8, 8, 8, &one, a.device, 7, a.device, 8, &one, c.device, 8),
              CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, -1, 8, 8, &one, a.device, 8, a.device, 8, &one, c.device, 8),
              CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(cublasSsyrk(h, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_N, 8, 8, &one, a.device, 8, &one, c.device, 7),
              CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(cublasGemmEx(h, CUBLAS_OP_N, CUBLAS_OP_N, 8, 8, 8, &one, a.device, CUDA_R_32F, 8, a.device, CUDA_R_32F, 8,
                           &one, c.device, CUDA_R_16F, 8, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
              CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ(cublasSgemm(NULL, CUBLAS_OP_N, CUBLAS_OP_N, 8, 8, 8, &one, a.device, 8, a.device, 8, &one, c.device, 8),
              CUBLAS_STATUS_NOT_INITIALIZED);
    EXPECT_EQ(cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, 0, 8, 8, &one, a.device, 8, a.device, 8, &one, c.device, 8),
              CUBLAS_STATUS_SUCCESS);
}

#ifdef RQ_TEST_SIM
static int n_found;
static void count_findings(void *user, const char *kind, const char *text) {
    (void)user, (void)kind, (void)text;
    n_found++;
}

/* Host memory, a matrix that ends too early, and a result that is read without waiting for it. */
static void test_caught(cublasHandle_t h) {
    matrix<float> a(8, 8, 0), c(8, 8, 0);
    float one = 1, zero = 0, first = -100, *pinned = NULL;
    gs_findings_sink(count_findings, NULL);
    EXPECT_EQ(cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, 8, 8, 8, &one, a.host, 8, a.device, 8, &zero, c.device, 8),
              CUBLAS_STATUS_EXECUTION_FAILED);
    EXPECT_EQ(n_found, 1);
    EXPECT_EQ(cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, 8, 9, 8, &one, a.device, 8, a.device, 8, &zero, c.device, 8),
              CUBLAS_STATUS_EXECUTION_FAILED);
    EXPECT_EQ(n_found, 2);
    gs_findings_sink(NULL, NULL);
    gs_findings_reset();

    cudaStream_t s;
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CHECK_CUDA(cudaMallocHost((void **)&pinned, sizeof(float)));
    CHECK_CUDA(cudaMemset(c.device, 0, c.bytes()));
    CHECK_CUDA(cudaDeviceSynchronize());
    CHECK_BLAS(cublasSetStream(h, s));
    CHECK_BLAS(cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, 8, 8, 8, &one, a.device, 8, a.device, 8, &zero, c.device, 8));
    CHECK_CUDA(cudaMemcpy(&first, c.device, sizeof first, cudaMemcpyDeviceToHost)); /* another stream, no wait */
    EXPECT_NEAR(first, 0, 0);
    CHECK_CUDA(cudaStreamSynchronize(s));
    c.read();
    double sum = 0;
    for (int p = 0; p < 8; ++p) sum += a.at(0, p) * a.at(p, 0);
    EXPECT_NEAR(c.at(0, 0), sum, 0);
    CHECK_BLAS(cublasSetStream(h, 0));
    CHECK_CUDA(cudaStreamDestroy(s));
    CHECK_CUDA(cudaFreeHost(pinned));
}
#endif

int main(void) {
    rq_need_device(80);
    cublasHandle_t h;
    CHECK_BLAS(cublasCreate(&h));
    test_products(h);
    test_batch(h);
    test_symmetric(h);
    test_triangular(h);
    test_vectors(h);
    test_device_scalars(h);
    test_graph(h);
    test_refused(h);
#ifdef RQ_TEST_SIM
    if (!gs_settings_get()->reverse) test_caught(h);
#endif
    CHECK_BLAS(cublasDestroy(h));
    return rq_done(__FILE__);
}
