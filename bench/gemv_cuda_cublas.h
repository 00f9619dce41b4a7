/* SPDX-License-Identifier: Apache-2.0 */
/* The baselines: the same shape in fp16, in int8 with int32 results, or in e4m3 with fp16 results, through cuBLAS, cold: cublasGemmEx as it
 * comes, and the fastest of the first 8 algorithms that cuBLASLt suggests for this shape and number of tokens. The better of the two counts; e4m3
 * goes by cuBLASLt alone. One result is checked. */
#ifndef BENCH_GEMV_CUDA_CUBLAS_H
#define BENCH_GEMV_CUDA_CUBLAS_H
#include <cublasLt.h>
#include <cublas_v2.h>

#include "fmt_act.h"
#include "gemv_cuda_times.h"

#define BENCH_CUBLAS(call)                                                                                             \
    do {                                                                                                               \
        cublasStatus_t s_ = (call);                                                                                    \
        if (s_ != CUBLAS_STATUS_SUCCESS) {                                                                             \
            fprintf(stderr, "%s:%d: %s: cuBLAS status %d\n", __FILE__, __LINE__, #call, (int)s_);                      \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Bytes as e4m3 without a NaN, up to 240 in size. */
static __global__ void gemv_cublas_finite(uint32_t *bytes, size_t words) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < words; i += gridDim.x * (size_t)blockDim.x)
        bytes[i] &= 0xf7f7f7f7u;
}

class gemv_cublas {
  public:
    enum element { F16, S8, E4M3 };
    /* y (n_out x tokens, by columns) = W^T x, W being n_in x n_out by columns: the rows of the layer. */
    gemv_cublas(int64_t n_out, int64_t n_in, int most_tok, size_t copies, size_t most, cudaStream_t stream,
                element e = F16)
        : n_out_(n_out), n_in_(n_in), element_(e), stream_(stream) {
        bytes_ = ((size_t)(n_out * n_in) * in_bytes() + 255) / 256 * 256;
        n_copies_ = (int)std::max<size_t>(1, std::min<size_t>({copies / bytes_ + 1, most / bytes_, 4096}));
        w_ = random(bytes_ * n_copies_, 11);
        x_ = random((size_t)n_in * most_tok * in_bytes() + 256, 12);
        BENCH_CUDA(cudaMalloc(&y_, (size_t)n_out * most_tok * out_bytes()));
        BENCH_CUDA(cudaMalloc(&workspace_, WORKSPACE));
        BENCH_CUBLAS(cublasCreate(&blas_));
        BENCH_CUBLAS(cublasSetStream(blas_, stream));
        BENCH_CUBLAS(cublasSetWorkspace(blas_, workspace_, WORKSPACE));
        BENCH_CUBLAS(cublasLtCreate(&lt_));
    }
    ~gemv_cublas() {
        cublasLtDestroy(lt_);
        cublasDestroy(blas_);
        for (void *p : {w_, x_, y_, workspace_}) cudaFree(p);
    }
    gemv_cublas(const gemv_cublas &) = delete;
    gemv_cublas &operator=(const gemv_cublas &) = delete;

    struct answer {
        bool ok = true;
        double us = 0; /* 0: there is none */
    };
    /* seconds 0: a rehearsal. */
    answer run(int n_tok, double seconds) {
        answer a;
        matmul m(n_out_, n_in_, n_tok, element_);
        if (element_ != E4M3) {
            BENCH_CUDA(cudaMemsetAsync(y_, 0xff, (size_t)(n_out_ * n_tok) * out_bytes(), stream_));
            gemm(n_tok, 0);
            a.ok = right(n_tok);
        }
        const std::vector<cublasLtMatmulHeuristicResult_t> algos = suggestions(m);
        if (!algos.empty()) {
            BENCH_CUDA(cudaMemsetAsync(y_, 0xff, (size_t)(n_out_ * n_tok) * out_bytes(), stream_));
            lt(m, algos[0], 0);
            a.ok = a.ok && right(n_tok);
        }
        const int n = gemv_launches(n_copies_);
        a.us = 1e300;
        if (element_ != E4M3)
            a.us = gemv_time_graph(
                       stream_, n, [&](int i) { gemm(n_tok, i); }, seconds / 4)
                       .med_us;
        for (const auto &algo : algos)
            a.us = std::min(a.us, gemv_time_graph(
                                      stream_, n, [&](int i) { lt(m, algo, i); }, seconds / 8)
                                      .med_us);
        if (a.us == 1e300) a.us = 0;
        return a;
    }

  private:
    enum { WORKSPACE = 32 << 20, SUGGESTIONS = 8 };
    static cudaDataType_t type_of(element e) { return e == S8 ? CUDA_R_8I : e == E4M3 ? CUDA_R_8F_E4M3 : CUDA_R_16F; }
    struct matmul { /* what cuBLASLt wants to know of a product */
        cublasLtMatmulDesc_t op = nullptr;
        cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
        matmul(int64_t n_out, int64_t n_in, int n_tok, element e) {
            const cublasOperation_t turned = CUBLAS_OP_T;
            const bool s8 = e == S8;
            const cudaDataType_t in = type_of(e), out = s8 ? CUDA_R_32I : CUDA_R_16F;
            BENCH_CUBLAS(cublasLtMatmulDescCreate(&op, s8 ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                                                  s8 ? CUDA_R_32I : CUDA_R_32F));
            BENCH_CUBLAS(cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof turned));
            BENCH_CUBLAS(cublasLtMatrixLayoutCreate(&w, in, n_in, n_out, n_in));
            BENCH_CUBLAS(cublasLtMatrixLayoutCreate(&x, in, n_in, n_tok, n_in));
            BENCH_CUBLAS(cublasLtMatrixLayoutCreate(&y, out, n_out, n_tok, n_out));
        }
        ~matmul() {
            cublasLtMatrixLayoutDestroy(w);
            cublasLtMatrixLayoutDestroy(x);
            cublasLtMatrixLayoutDestroy(y);
            cublasLtMatmulDescDestroy(op);
        }
        matmul(const matmul &) = delete;
        matmul &operator=(const matmul &) = delete;
    };
    int64_t n_out_, n_in_;
    element element_;
    cudaStream_t stream_;
    size_t bytes_ = 0;
    int n_copies_ = 1;
    void *w_ = nullptr, *x_ = nullptr, *y_ = nullptr, *workspace_ = nullptr;
    cublasHandle_t blas_ = nullptr;
    cublasLtHandle_t lt_ = nullptr;

    size_t in_bytes() const { return element_ == F16 ? 2 : 1; }
    size_t out_bytes() const { return element_ == S8 ? 4 : 2; }
    /* 1 and 0, as the type of the sums wants them. */
    const void *factor(bool one) const {
        static const float f[2] = {0, 1};
        static const int32_t i[2] = {0, 1};
        return element_ == S8 ? (const void *)&i[one] : (const void *)&f[one];
    }
    void *random(size_t bytes, uint32_t seed) const {
        void *p = nullptr;
        BENCH_CUDA(cudaMalloc(&p, bytes));
        const size_t words = bytes / 4;
        fill<<<(unsigned)std::min<size_t>(4096, words / 256 + 1), STREAM_THREADS, 0, stream_>>>((uint32_t *)p, words,
                                                                                                seed, element_ == F16);
        if (element_ == E4M3) gemv_cublas_finite<<<1024, STREAM_THREADS, 0, stream_>>>((uint32_t *)p, words);
        BENCH_CUDA(cudaGetLastError());
        return p;
    }
    const void *copy(int i) const { return (const char *)w_ + (size_t)(i % n_copies_) * bytes_; }
    void gemm(int n_tok, int i) {
        const int m = (int)n_out_, k = (int)n_in_;
        const bool s8 = element_ == S8;
        const cudaDataType_t in = type_of(element_), out = s8 ? CUDA_R_32I : CUDA_R_16F;
        BENCH_CUBLAS(cublasGemmEx(blas_, CUBLAS_OP_T, CUBLAS_OP_N, m, n_tok, k, factor(true), copy(i), in, k, x_, in, k,
                                  factor(false), y_, out, m, s8 ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                                  CUBLAS_GEMM_DEFAULT));
    }
    void lt(const matmul &m, const cublasLtMatmulHeuristicResult_t &algo, int i) {
        BENCH_CUBLAS(cublasLtMatmul(lt_, m.op, factor(true), copy(i), m.w, x_, m.x, factor(false), y_, m.y, y_, m.y,
                                    &algo.algo, workspace_, WORKSPACE, stream_));
    }
    /* Empty where it has none, as for odd numbers of inputs. */
    std::vector<cublasLtMatmulHeuristicResult_t> suggestions(const matmul &m) const {
        cublasLtMatmulPreference_t preference;
        const size_t most = WORKSPACE;
        std::vector<cublasLtMatmulHeuristicResult_t> found(SUGGESTIONS);
        int n = 0;
        BENCH_CUBLAS(cublasLtMatmulPreferenceCreate(&preference));
        BENCH_CUBLAS(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most,
                                                          sizeof most));
        const cublasStatus_t s =
            cublasLtMatmulAlgoGetHeuristic(lt_, m.op, m.w, m.x, m.y, m.y, preference, SUGGESTIONS, found.data(), &n);
        BENCH_CUBLAS(cublasLtMatmulPreferenceDestroy(preference));
        found.resize(s == CUBLAS_STATUS_SUCCESS ? (size_t)n : 0);
        return found;
    }
    /* The last output of the last token. */
    bool right(int n_tok) const { return element_ == S8 ? right_s8(n_tok) : right_float(n_tok); }
    float value(const uint8_t *p) const {
        uint16_t half;
        if (element_ == E4M3) return rq_e4m3_value(*p);
        memcpy(&half, p, 2);
        return gemv_value(RQ_ACT_F16, half);
    }
    bool right_s8(int n_tok) const {
        std::vector<int8_t> w((size_t)n_in_), x((size_t)n_in_);
        int32_t got = 0;
        BENCH_CUDA(cudaStreamSynchronize(stream_));
        BENCH_CUDA(cudaMemcpy(w.data(), (const int8_t *)w_ + (n_out_ - 1) * n_in_, w.size(), cudaMemcpyDeviceToHost));
        BENCH_CUDA(cudaMemcpy(x.data(), (const int8_t *)x_ + (n_tok - 1) * n_in_, x.size(), cudaMemcpyDeviceToHost));
        BENCH_CUDA(cudaMemcpy(&got, (const int32_t *)y_ + n_tok * n_out_ - 1, 4, cudaMemcpyDeviceToHost));
        int64_t sum = 0;
        for (size_t j = 0; j < w.size(); ++j) sum += w[j] * x[j];
        return got == sum;
    }
    bool right_float(int n_tok) const {
        const size_t row = (size_t)n_in_ * in_bytes();
        std::vector<uint8_t> w(row), x(row);
        rq_f16 got = {0};
        BENCH_CUDA(cudaStreamSynchronize(stream_));
        BENCH_CUDA(cudaMemcpy(w.data(), (const char *)w_ + (size_t)(n_out_ - 1) * row, row, cudaMemcpyDeviceToHost));
        BENCH_CUDA(cudaMemcpy(x.data(), (const char *)x_ + (size_t)(n_tok - 1) * row, row, cudaMemcpyDeviceToHost));
        BENCH_CUDA(cudaMemcpy(&got, (const char *)y_ + (size_t)(n_tok * n_out_ - 1) * 2, 2, cudaMemcpyDeviceToHost));
        double sum = 0, size = 0;
        for (size_t j = 0; j < row; j += in_bytes()) {
            const double term = (double)value(&w[j]) * value(&x[j]);
            sum += term, size += std::fabs(term);
        }
        if (std::fabs(sum) > 65000) return true; /* no fp16: nothing to compare */
        /* Hopper keeps about 14 bits of a sum of e4m3 products. */
        return std::fabs(rq_f32_of_f16(got) - sum) <=
               size * (element_ == E4M3 ? 0x1p-10 : 0x1p-14) + std::fabs(sum) * 0x1p-10;
    }
};
#endif
