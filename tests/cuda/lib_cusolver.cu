/* SPDX-License-Identifier: Apache-2.0 */
/* cuSOLVER against what it must fulfil: a factor times its transpose is the matrix, an inverse times the matrix is one, a
 * solution solves; the other triangle stays; a matrix that is not positive definite is named.
 * Libraries: cusolver cublas */
#include <cusolverDn.h>

#include "cudatest.h"

#define CHECK_SOLVER(call)                                                                                             \
    do {                                                                                                               \
        cusolverStatus_t s_ = (call);                                                                                  \
        if (s_ != CUSOLVER_STATUS_SUCCESS) RQ_DIE("%s: status %d", #call, (int)s_);                                    \
    } while (0)

enum { N = 40, LD = N + 3, RHS = 5 };

/* Symmetric, and far from singular: integers off the diagonal, N on it. */
template <typename T> static void make_matrix(T *a) {
    rq_rng r = {21};
    for (int j = 0; j < N; ++j)
        for (int i = 0; i < LD; ++i) a[j * LD + i] = (T)77;
    for (int j = 0; j < N; ++j)
        for (int i = 0; i <= j; ++i)
            a[j * LD + i] = a[i * LD + j] = (T)((int)(rq_rand_u32(&r) % 5) - 2 + (i == j ? 4 * N : 0));
}

template <typename T> static double tolerance(void) { return sizeof(T) == 8 ? 1e-10 : 1e-3; }
template <typename T> static cudaDataType type_of(void) { return sizeof(T) == 8 ? CUDA_R_64F : CUDA_R_32F; }

/* F^T F or F F^T is a; the other triangle is as it was. */
template <typename T> static void expect_factor(const T *f, const T *a, bool upper) {
    for (int j = 0; j < N; ++j)
        for (int i = 0; i < N; ++i) {
            bool in = upper ? i <= j : i >= j;
            if (!in) {
                EXPECT_NEAR_AT(j * N + i, f[j * LD + i], a[j * LD + i], 0);
                continue;
            }
            double sum = 0;
            int most = i < j ? i : j;
            for (int p = 0; p <= most; ++p)
                sum += upper ? (double)f[i * LD + p] * f[j * LD + p] : (double)f[p * LD + i] * f[p * LD + j];
            EXPECT_NEAR_AT(j * N + i, sum, a[j * LD + i], tolerance<T>());
        }
}

template <typename T> static void test_cholesky(cusolverDnHandle_t h, bool upper) {
    static T a[N * LD], f[N * LD], b[RHS * LD], x[RHS * LD], v[N * LD];
    make_matrix(a);
    for (int i = 0; i < RHS * LD; ++i) b[i] = (T)(i % 9 - 4);
    cublasFillMode_t fill = upper ? CUBLAS_FILL_MODE_UPPER : CUBLAS_FILL_MODE_LOWER;
    T *da = (T *)rq_device_copy(a, sizeof a), *db = (T *)rq_device_copy(b, sizeof b);
    int *info = (int *)rq_device_buffer(sizeof(int)), got = -1;
    size_t device_bytes = 0, host_bytes = 0;
    cusolverDnParams_t params;
    CHECK_SOLVER(cusolverDnCreateParams(&params));
    CHECK_SOLVER(cusolverDnXpotrf_bufferSize(h, params, fill, N, type_of<T>(), da, LD, type_of<T>(), &device_bytes,
                                             &host_bytes));
    void *work = rq_device_buffer(device_bytes + 1), *host_work = rq_host_alloc(host_bytes + 1);
    CHECK_SOLVER(cusolverDnXpotrf(h, params, fill, N, type_of<T>(), da, LD, type_of<T>(), work, device_bytes, host_work,
                                  host_bytes, info));
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(f, da, sizeof f);
    rq_device_read(&got, info, sizeof got);
    EXPECT_EQ(got, 0);
    expect_factor(f, a, upper);

    CHECK_SOLVER(cusolverDnXpotrs(h, params, fill, N, RHS, type_of<T>(), da, LD, type_of<T>(), db, LD, info));
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(x, db, sizeof x);
    for (int j = 0; j < RHS; ++j)
        for (int i = 0; i < N; ++i) {
            double sum = 0;
            for (int p = 0; p < N; ++p) sum += (double)a[p * LD + i] * x[j * LD + p];
            EXPECT_NEAR_AT(i, sum, b[j * LD + i], tolerance<T>());
        }

    /* The inverse of the factor. */
    rq_device_free(work);
    free(host_work);
    CHECK_SOLVER(cusolverDnXtrtri_bufferSize(h, fill, CUBLAS_DIAG_NON_UNIT, N, type_of<T>(), da, LD, &device_bytes,
                                             &host_bytes));
    work = rq_device_buffer(device_bytes + 1);
    host_work = rq_host_alloc(host_bytes + 1);
    CHECK_SOLVER(cusolverDnXtrtri(h, fill, CUBLAS_DIAG_NON_UNIT, N, type_of<T>(), da, LD, work, device_bytes, host_work,
                                  host_bytes, info));
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(v, da, sizeof v);
    rq_device_read(&got, info, sizeof got);
    EXPECT_EQ(got, 0);
    for (int j = 0; j < N; ++j)
        for (int i = 0; i < N; ++i) {
            if (upper ? i > j : i < j) continue;
            double sum = 0;
            int low = upper ? i : j, high = upper ? j : i;
            for (int p = low; p <= high; ++p) sum += (double)f[p * LD + i] * v[j * LD + p];
            EXPECT_NEAR_AT(j * N + i, sum, i == j, tolerance<T>());
        }
    CHECK_SOLVER(cusolverDnDestroyParams(params));
    rq_device_free(work);
    free(host_work);
    rq_device_free(da);
    rq_device_free(db);
    rq_device_free(info);
}

/* The older functions, and the inverse of the whole matrix. */
static void test_old(cusolverDnHandle_t h, bool upper) {
    static double a[N * LD], f[N * LD], v[N * LD];
    make_matrix(a);
    cublasFillMode_t fill = upper ? CUBLAS_FILL_MODE_UPPER : CUBLAS_FILL_MODE_LOWER;
    double *da = (double *)rq_device_copy(a, sizeof a);
    int *info = (int *)rq_device_buffer(sizeof(int)), n = 0, m = 0, got = -1;
    CHECK_SOLVER(cusolverDnDpotrf_bufferSize(h, fill, N, da, LD, &n));
    CHECK_SOLVER(cusolverDnDpotri_bufferSize(h, fill, N, da, LD, &m));
    size_t most = (size_t)(n > m ? n : m) + 1;
    double *work = (double *)rq_device_buffer(most * sizeof(double));
    CHECK_SOLVER(cusolverDnDpotrf(h, fill, N, da, LD, work, n, info));
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(f, da, sizeof f);
    expect_factor(f, a, upper);
    CHECK_SOLVER(cusolverDnDpotri(h, fill, N, da, LD, work, m, info));
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(v, da, sizeof v);
    rq_device_read(&got, info, sizeof got);
    EXPECT_EQ(got, 0);
    for (int j = 0; j < N; ++j)
        for (int i = 0; i < N; ++i) {
            double sum = 0;
            for (int p = 0; p < N; ++p) {
                bool in = upper ? p <= j : p >= j;
                sum += a[p * LD + i] * (in ? v[j * LD + p] : v[p * LD + j]);
            }
            EXPECT_NEAR_AT(j * N + i, sum, i == j, 1e-10);
        }
    rq_device_free(da);
    rq_device_free(work);
    rq_device_free(info);
}

static void test_refused(cusolverDnHandle_t h) {
    static double a[N * LD];
    make_matrix(a);
    a[17 * LD + 17] = -1;
    double *da = (double *)rq_device_copy(a, sizeof a);
    int *info = (int *)rq_device_buffer(sizeof(int)), n = 0, got = 0;
    CHECK_SOLVER(cusolverDnDpotrf_bufferSize(h, CUBLAS_FILL_MODE_LOWER, N, da, LD, &n));
    double *work = (double *)rq_device_buffer(((size_t)n + 1) * sizeof(double));
    CHECK_SOLVER(cusolverDnDpotrf(h, CUBLAS_FILL_MODE_LOWER, N, da, LD, work, n, info));
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(&got, info, sizeof got);
    EXPECT_EQ(got, 18); /* 1-based */
    EXPECT_EQ(cusolverDnDpotrf_bufferSize(h, CUBLAS_FILL_MODE_LOWER, N, da, N - 1, &n), CUSOLVER_STATUS_INVALID_VALUE);
    EXPECT_EQ(cusolverDnDpotrf_bufferSize(h, CUBLAS_FILL_MODE_LOWER, -1, da, LD, &n), CUSOLVER_STATUS_INVALID_VALUE);
}

int main(void) {
    rq_need_device(80);
    cusolverDnHandle_t h;
    cudaStream_t s;
    CHECK_SOLVER(cusolverDnCreate(&h));
    CHECK_CUDA(cudaStreamCreate(&s));
    CHECK_SOLVER(cusolverDnSetStream(h, s));
    for (int upper = 0; upper < 2; ++upper) {
        test_cholesky<double>(h, upper);
        test_cholesky<float>(h, upper);
        test_old(h, upper);
    }
    test_refused(h);
    CHECK_SOLVER(cusolverDnDestroy(h));
    CHECK_CUDA(cudaStreamDestroy(s));
    return rq_done(__FILE__);
}
