/* SPDX-License-Identifier: Apache-2.0 */
/* cuBLASLt against plain loops: int8, fp16, bf16 and fp8 products with bias, activation and scales, row-major layouts, and
 * what the heuristic refuses. Sums are of small integers and exact; GELU is compared within a bound.
 * Libraries: cublasLt */
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "cudatest.h"

#define CHECK_LT(call)                                                                                                 \
    do {                                                                                                               \
        cublasStatus_t s_ = (call);                                                                                    \
        if (s_ != CUBLAS_STATUS_SUCCESS) RQ_DIE("%s: %s", #call, cublasLtGetStatusString(s_));                         \
    } while (0)

static rq_rng rng = {12};
static double small_integer(void) { return (double)(int)(rq_rand_u32(&rng) % 5) - 2; }

/* Numbers as the device has them. */
static void put(cudaDataType t, void *p, int i, double v) {
    switch (t) {
    case CUDA_R_8I: ((int8_t *)p)[i] = (int8_t)v; break;
    case CUDA_R_32I: ((int32_t *)p)[i] = (int32_t)v; break;
    case CUDA_R_16F: ((__half *)p)[i] = __float2half((float)v); break;
    case CUDA_R_16BF: ((__nv_bfloat16 *)p)[i] = __float2bfloat16((float)v); break;
    case CUDA_R_8F_E4M3: ((__nv_fp8_e4m3 *)p)[i] = __nv_fp8_e4m3((float)v); break;
    case CUDA_R_8F_E5M2: ((__nv_fp8_e5m2 *)p)[i] = __nv_fp8_e5m2((float)v); break;
    default: ((float *)p)[i] = (float)v; break;
    }
}
static double get(cudaDataType t, const void *p, int i) {
    switch (t) {
    case CUDA_R_8I: return ((const int8_t *)p)[i];
    case CUDA_R_32I: return ((const int32_t *)p)[i];
    case CUDA_R_16F: return __half2float(((const __half *)p)[i]);
    case CUDA_R_16BF: return __bfloat162float(((const __nv_bfloat16 *)p)[i]);
    case CUDA_R_8F_E4M3: return (float)((const __nv_fp8_e4m3 *)p)[i];
    case CUDA_R_8F_E5M2: return (float)((const __nv_fp8_e5m2 *)p)[i];
    default: return ((const float *)p)[i];
    }
}
static size_t bytes_of(cudaDataType t) {
    switch (t) {
    case CUDA_R_8I:
    case CUDA_R_8F_E4M3:
    case CUDA_R_8F_E5M2: return 1;
    case CUDA_R_16F:
    case CUDA_R_16BF: return 2;
    default: return 4;
    }
}

/* A matrix on both sides; A is stored k x m and B k x n, as all types allow. */
struct matrix {
    cudaDataType type;
    int rows, cols;
    bool row_major;
    void *host, *device;
    cublasLtMatrixLayout_t layout;
    matrix(cudaDataType t, int r, int c, bool row = false) : type(t), rows(r), cols(c), row_major(row) {
        host = rq_host_alloc((size_t)rows * (size_t)cols * 4);
        for (int i = 0; i < rows * cols; ++i) put(type, host, i, small_integer());
        device = rq_device_copy(host, bytes());
        CHECK_LT(cublasLtMatrixLayoutCreate(&layout, type, (uint64_t)rows, (uint64_t)cols, row ? cols : rows));
        cublasLtOrder_t order = row ? CUBLASLT_ORDER_ROW : CUBLASLT_ORDER_COL;
        CHECK_LT(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_ORDER, &order, sizeof order));
    }
    ~matrix() {
        CHECK_LT(cublasLtMatrixLayoutDestroy(layout));
        rq_device_free(device);
        free(host);
    }
    matrix(const matrix &) = delete;
    size_t bytes() const { return (size_t)rows * (size_t)cols * bytes_of(type); }
    double at(int i, int j) const { return get(type, host, row_major ? i * cols + j : j * rows + i); }
    void read() { rq_device_read(host, device, bytes()); }
};

struct problem {
    cublasComputeType_t compute;
    cudaDataType scale, ab, cd, bias_type;
    cublasLtEpilogue_t epilogue;
    double alpha, beta, scale_a; /* scale_a: for fp8, 0 without */
    double bound;
    bool row_major;
};

static cublasLtHandle_t handle;

template <typename T> static void set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, T v) {
    CHECK_LT(cublasLtMatmulDescSetAttribute(d, a, &v, sizeof v));
}

static double activation(double v, int epilogue) {
    if (epilogue & CUBLASLT_EPILOGUE_RELU) v = v < 0 ? 0 : v;
    if (epilogue & CUBLASLT_EPILOGUE_GELU) v = 0.5 * v * (1 + tanh(0.79788456 * (v + 0.044715 * v * v * v)));
    return v;
}

static void test_matmul(const problem &p) {
    enum { M = 32, N = 48, K = 64 };
    /* Row-major: A is m x k and B is n x k, transposed, so that both still run along k. */
    matrix a(p.ab, p.row_major ? M : K, p.row_major ? K : M, p.row_major), c(p.cd, M, N, p.row_major);
    matrix b(p.ab, p.row_major ? N : K, p.row_major ? K : N, p.row_major), bias(p.bias_type, M, 1),
        d(p.cd, M, N, p.row_major);
    cublasLtMatmulDesc_t desc;
    CHECK_LT(cublasLtMatmulDescCreate(&desc, p.compute, p.scale));
    set<int32_t>(desc, CUBLASLT_MATMUL_DESC_TRANSA, p.row_major ? CUBLAS_OP_N : CUBLAS_OP_T);
    set<int32_t>(desc, CUBLASLT_MATMUL_DESC_TRANSB, p.row_major ? CUBLAS_OP_T : CUBLAS_OP_N);
    set<uint32_t>(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)p.epilogue);
    if (p.epilogue & CUBLASLT_EPILOGUE_BIAS) {
        set<const void *>(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.device);
        set<int32_t>(desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, p.bias_type);
    }
    float scale = (float)p.scale_a, *scale_device = (float *)rq_device_copy(&scale, sizeof scale);
    if (p.scale_a != 0) set<const void *>(desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scale_device);

    cublasLtMatmulPreference_t pref;
    CHECK_LT(cublasLtMatmulPreferenceCreate(&pref));
    uint64_t most = 1 << 20;
    CHECK_LT(cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most));
    cublasLtMatmulHeuristicResult_t found[1];
    int n = 0;
    CHECK_LT(cublasLtMatmulAlgoGetHeuristic(handle, desc, a.layout, b.layout, c.layout, d.layout, pref, 1, found, &n));
    EXPECT_EQ(n, 1);
    void *workspace = rq_device_buffer(most);
    float alpha = (float)p.alpha, beta = (float)p.beta;
    int32_t alpha_int = (int32_t)p.alpha, beta_int = (int32_t)p.beta;
    bool whole = p.scale == CUDA_R_32I;
    CHECK_LT(cublasLtMatmul(handle, desc, whole ? (void *)&alpha_int : (void *)&alpha, a.device, a.layout, b.device,
                            b.layout, whole ? (void *)&beta_int : (void *)&beta, c.device, c.layout, d.device, d.layout,
                            &found[0].algo, workspace, most, 0));
    CHECK_CUDA(cudaDeviceSynchronize());
    d.read();
    for (int j = 0; j < N; ++j)
        for (int i = 0; i < M; ++i) {
            double sum = 0;
            for (int q = 0; q < K; ++q) sum += p.row_major ? a.at(i, q) * b.at(j, q) : a.at(q, i) * b.at(q, j);
            double v = p.alpha * (p.scale_a != 0 ? p.scale_a : 1) * sum + p.beta * c.at(i, j);
            if (p.epilogue & CUBLASLT_EPILOGUE_BIAS) v += bias.at(i, 0);
            v = activation(v, p.epilogue);
            uint32_t rounded = 0;
            if (p.cd == CUDA_R_8I) v = v > 127 ? 127 : v < -128 ? -128 : nearbyint(v);
            put(p.cd, &rounded, 0, v);
            EXPECT_NEAR_AT(j * M + i, d.at(i, j), get(p.cd, &rounded, 0), p.bound * (1 + fabs(v)));
        }
    CHECK_LT(cublasLtMatmulPreferenceDestroy(pref));
    CHECK_LT(cublasLtMatmulDescDestroy(desc));
    rq_device_free(workspace);
    rq_device_free(scale_device);
}

/* The status of the heuristic. */
static cublasStatus_t possible(cudaDataType ab, cudaDataType cd, cublasComputeType_t compute, cudaDataType scale,
                               bool transpose_a, int k) {
    matrix a(ab, transpose_a ? k : 32, transpose_a ? 32 : k), b(ab, k, 32), c(cd, 32, 32);
    cublasLtMatmulDesc_t desc;
    cublasLtMatmulPreference_t pref;
    CHECK_LT(cublasLtMatmulDescCreate(&desc, compute, scale));
    CHECK_LT(cublasLtMatmulPreferenceCreate(&pref));
    set<int32_t>(desc, CUBLASLT_MATMUL_DESC_TRANSA, transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    cublasLtMatmulHeuristicResult_t found[1];
    int n = 0;
    cublasStatus_t s =
        cublasLtMatmulAlgoGetHeuristic(handle, desc, a.layout, b.layout, c.layout, c.layout, pref, 1, found, &n);
    if (s == CUBLAS_STATUS_SUCCESS && n == 0) s = CUBLAS_STATUS_NOT_SUPPORTED;
    CHECK_LT(cublasLtMatmulPreferenceDestroy(pref));
    CHECK_LT(cublasLtMatmulDescDestroy(desc));
    return s;
}

int main(void) {
    rq_need_device(89); /* fp8 */
    CHECK_LT(cublasLtCreate(&handle));
    const cublasLtEpilogue_t none = CUBLASLT_EPILOGUE_DEFAULT;
    const problem problems[] = {
        {CUBLAS_COMPUTE_32I, CUDA_R_32I, CUDA_R_8I, CUDA_R_32I, CUDA_R_32I, none, 1, 0, 0, 0, false},
        {CUBLAS_COMPUTE_32I, CUDA_R_32F, CUDA_R_8I, CUDA_R_8I, CUDA_R_32F, none, 0.5, 0, 0, 0, false},
        {CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16F, CUDA_R_16F, CUDA_R_16F, none, 1, 1, 0, 0, false},
        {CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16F, CUDA_R_32F, CUDA_R_32F, none, 2, 0, 0, 0, false},
        {CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF, CUBLASLT_EPILOGUE_BIAS, 1, 0, 0, 0,
         false},
        {CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF, CUBLASLT_EPILOGUE_RELU_BIAS, 1, 0, 0, 0,
         false},
        {CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16F, CUDA_R_16F, CUDA_R_16F, CUBLASLT_EPILOGUE_GELU_BIAS, 0.125, 0, 0,
         2e-3, false},
        {CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16F, CUDA_R_16F, CUDA_R_16F, none, 1, 0, 0, 0, true},
        {CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_8F_E4M3, CUDA_R_16BF, CUDA_R_16BF, none, 1, 0, 0, 0, false},
        {CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_8F_E4M3, CUDA_R_16BF, CUDA_R_16BF, CUBLASLT_EPILOGUE_BIAS, 1, 0, 0.5, 0,
         false},
        {CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, CUBLASLT_EPILOGUE_RELU, 1, 0, 0, 0, false},
    };
    for (const problem &p : problems) test_matmul(p);
    /* The device wants both factors along k, and rows at multiples of 16 bytes for fp8. */
    EXPECT_EQ(possible(CUDA_R_8F_E4M3, CUDA_R_16BF, CUBLAS_COMPUTE_32F, CUDA_R_32F, true, 64), CUBLAS_STATUS_SUCCESS);
    EXPECT(possible(CUDA_R_8F_E4M3, CUDA_R_16BF, CUBLAS_COMPUTE_32F, CUDA_R_32F, false, 64) != CUBLAS_STATUS_SUCCESS);
    EXPECT(possible(CUDA_R_8F_E4M3, CUDA_R_16BF, CUBLAS_COMPUTE_32F, CUDA_R_32F, true, 60) != CUBLAS_STATUS_SUCCESS);
    EXPECT(possible(CUDA_R_8I, CUDA_R_16F, CUBLAS_COMPUTE_32I, CUDA_R_32I, true, 64) != CUBLAS_STATUS_SUCCESS);
    CHECK_LT(cublasLtDestroy(handle));
    return rq_done(__FILE__);
}
