/* SPDX-License-Identifier: Apache-2.0 */
/* The ceilings that every other benchmark on this GPU is a share of: memory copied and read, the L2, the tensor cores through
 * cuBLAS, and what a launch costs. All data is random: zeros flatter. cuda_harness.h has the arguments.
 * Targets: sm_80 sm_90a. */
#include "cuda_harness.h"
#include "cuda_streams.h"

#include <cmath>
#include <cstdint>
#ifdef RQ_HAVE_CUBLAS
#include <cublas_v2.h>
#define BENCH_CUBLAS(call)                                                                                             \
    do {                                                                                                               \
        cublasStatus_t s_ = (call);                                                                                    \
        if (s_ != CUBLAS_STATUS_SUCCESS) {                                                                             \
            fprintf(stderr, "%s:%d: %s: cuBLAS status %d\n", __FILE__, __LINE__, #call, (int)s_);                      \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#endif

enum { THREADS = STREAM_THREADS, UNROLL = STREAM_UNROLL };

/* Each block copies its own part `turns` times, past the L1. */
__global__ void __launch_bounds__(THREADS) copy_again(const uint4 *in, uint4 *out, int per_block, int turns) {
    in += (size_t)blockIdx.x * per_block;
    out += (size_t)blockIdx.x * per_block;
    for (int turn = 0; turn < turns; ++turn)
        for (int i = threadIdx.x; i < per_block; i += THREADS) __stcg(out + i, __ldcg(in + i));
}
__global__ void empty() {}

struct bench {
    bench_options options;
    bench_device device;
    bench_output *output = nullptr;
    cudaStream_t stream = nullptr;
    int wrong = 0;

    bool wants(const bench_model &m) const {
        if (m.name.find(options.filter) == std::string::npos) return false;
        if (options.list) printf("%s\n", m.name.c_str());
        if (options.dry_run) printf("%-20s %16.0f bytes %18.0f operations\n", m.name.c_str(), m.bytes, m.flops);
        return !options.list && !options.dry_run;
    }
    void report(const bench_model &m, const bench_times &t) const {
        bench_record r;
        bench_record_device(r, device);
        r.text("bench", m.name).number("bytes", m.bytes).number("flops", m.flops).integer("samples", t.samples);
        r.number("t_med_us", t.med_us).number("t_p20_us", t.p20_us).number("t_p80_us", t.p80_us);
        printf("%-20s %12.3f us (%.3f to %.3f, %d samples)", m.name.c_str(), t.med_us, t.p20_us, t.p80_us, t.samples);
        if (m.bytes > 0) {
            r.number("gbs", m.bytes / t.med_us * 1e-3);
            printf(" %9.1f GB/s", m.bytes / t.med_us * 1e-3);
        }
        if (m.flops > 0) {
            r.number("tflops", m.flops / t.med_us * 1e-6);
            printf(" %9.1f Tops/s", m.flops / t.med_us * 1e-6);
        }
        printf("\n");
        fflush(stdout);
        output->add(r);
    }
    void measure(const bench_model &m, int launches, const std::function<void(int)> &run) {
        if (!options.check) {
            report(m, bench_time(stream, launches, run));
            return;
        }
        run(0);
        BENCH_CUDA(cudaStreamSynchronize(stream));
    }
    void verify(const bench_model &m, bool right) {
        if (!right) fprintf(stderr, "%s: wrong result\n", m.name.c_str());
        if (options.check) printf("%s: %s\n", m.name.c_str(), right ? "checked" : "wrong");
        wrong += !right;
    }
    uint32_t *random(size_t bytes, uint32_t seed, bool halves) const {
        void *p = nullptr;
        BENCH_CUDA(cudaMalloc(&p, bytes));
        fill<<<options.check ? 4 : 4096, THREADS, 0, stream>>>((uint32_t *)p, bytes / 4, seed, halves);
        BENCH_CUDA(cudaGetLastError());
        return (uint32_t *)p;
    }
};

/* 8 GiB, or a third of what is free. */
static size_t large_bytes(const bench &b) {
    if (b.options.check) return 64 << 10;
    const size_t most = (size_t)8 << 30;
    return b.options.dry_run || b.options.list ? most : std::min(most, b.device.free_bytes / 3 >> 20 << 20);
}

static void bench_memory(bench &b) {
    const size_t bytes = large_bytes(b), words = bytes / 4;
    const bench_model copy = {"copy", 2.0 * (double)bytes, 0}, read = {"read", (double)bytes, 0};
    const bool do_copy = b.wants(copy), do_read = b.wants(read);
    if (!do_copy && !do_read) return;
    uint32_t *from = b.random(bytes, 1, false), *to = nullptr, *sum = nullptr;
    if (do_copy) {
        BENCH_CUDA(cudaMalloc((void **)&to, bytes));
        b.measure(copy, 1,
                  [&](int) { BENCH_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, b.stream)); });
        uint32_t first = 0, last = 0;
        BENCH_CUDA(cudaMemcpy(&first, to, 4, cudaMemcpyDeviceToHost));
        BENCH_CUDA(cudaMemcpy(&last, to + words - 1, 4, cudaMemcpyDeviceToHost));
        const size_t i = words - 1;
        b.verify(copy, first == hash32(1) && last == hash32((uint32_t)i * 2654435761u + 1 + (uint32_t)(i >> 32)));
        BENCH_CUDA(cudaFree(to));
    }
    if (do_read) {
        uint32_t got = 0, want = 0;
        BENCH_CUDA(cudaMalloc((void **)&sum, 4));
        const int blocks = b.options.check ? 4 : b.device.prop.multiProcessorCount * 8;
        const auto run = [&](int) { read_all<true><<<blocks, THREADS, 0, b.stream>>>((uint4 *)from, bytes / 16, sum); };
        BENCH_CUDA(cudaMemsetAsync(sum, 0, 4, b.stream));
        b.measure(read, 1, run);
        BENCH_CUDA(cudaMemsetAsync(sum, 0, 4, b.stream));
        run(0);
        BENCH_CUDA(cudaMemcpyAsync(&got, sum, 4, cudaMemcpyDeviceToHost, b.stream));
        BENCH_CUDA(cudaStreamSynchronize(b.stream));
        for (size_t i = 0; i < words && b.options.check; ++i) want ^= hash32((uint32_t)i * 2654435761u + 1);
        b.verify(read, !b.options.check || got == want);
        BENCH_CUDA(cudaFree(sum));
    }
    BENCH_CUDA(cudaFree(from));
}

static void bench_l2(bench &b) {
    /* A quarter of the cache for each of the two buffers: a launch long enough to time. */
    const int blocks = b.options.check ? 2 : b.device.prop.multiProcessorCount * 4, turns = b.options.check ? 2 : 200;
    const size_t l2 = b.options.check ? 32 << 10 : b.options.dry_run || b.options.list ? 50 << 20 : b.device.l2_bytes;
    const int per_block = std::max(1, (int)(l2 / 4 / 16 / (size_t)std::max(1, blocks)));
    const size_t bytes = (size_t)per_block * blocks * 16;
    const bench_model m = {"copy_l2", 2.0 * (double)bytes * turns, 0};
    if (!b.wants(m)) return;
    uint32_t *from = b.random(bytes, 2, false), *to = nullptr, last = 0;
    BENCH_CUDA(cudaMalloc((void **)&to, bytes));
    b.measure(m, 1,
              [&](int) { copy_again<<<blocks, THREADS, 0, b.stream>>>((uint4 *)from, (uint4 *)to, per_block, turns); });
    BENCH_CUDA(cudaMemcpy(&last, to + bytes / 4 - 1, 4, cudaMemcpyDeviceToHost));
    b.verify(m, last == hash32((uint32_t)(bytes / 4 - 1) * 2654435761u + 2));
    BENCH_CUDA(cudaFree(from));
    BENCH_CUDA(cudaFree(to));
}

/* One launch after the other from the host; the same in a graph; a graph of one launch with the host waiting for its end. */
static void bench_launch(bench &b) {
    const int many = b.options.check ? 3 : 1000;
    const bench_model plain = {"launch", 0, 0}, in_graph = {"launch_in_graph", 0, 0},
                      round_trip = {"graph_round_trip", 0, 0};
    if (b.wants(plain))
        b.measure(plain, many, [&](int) {
            for (int i = 0; i < many; ++i) empty<<<1, 32, 0, b.stream>>>();
        });
    if (b.wants(in_graph)) {
        cudaGraphExec_t g = bench_graph(b.stream, [&] {
            for (int i = 0; i < many; ++i) empty<<<1, 32, 0, b.stream>>>();
        });
        b.measure(in_graph, many, [&](int) { BENCH_CUDA(cudaGraphLaunch(g, b.stream)); });
        BENCH_CUDA(cudaGraphExecDestroy(g));
    }
    if (b.wants(round_trip)) {
        cudaGraphExec_t g = bench_graph(b.stream, [&] { empty<<<1, 32, 0, b.stream>>>(); });
        std::vector<double> us;
        for (int i = 0; i < many + 10; ++i) {
            const double start = bench_wall_us();
            BENCH_CUDA(cudaGraphLaunch(g, b.stream));
            BENCH_CUDA(cudaStreamSynchronize(b.stream));
            if (i >= 10) us.push_back(bench_wall_us() - start);
        }
        if (!b.options.check) b.report(round_trip, bench_quantiles(us));
        BENCH_CUDA(cudaGraphExecDestroy(g));
    }
}

#ifdef RQ_HAVE_CUBLAS
/* C (m x n) = A^T B by columns, as a linear layer has it: A is k x m (the weights by rows), B k x n (the tokens). */
struct gemm {
    bench_model model;
    int m, n, k;
    bool int8;
    int buffers; /* of weights, rotated: more than the L2 holds together */
};
static double gemm_element(const std::vector<uint32_t> &words, size_t i, bool int8) {
    if (int8) return (int8_t)(words[i / 4] >> (i % 4 * 8));
    __half_raw h;
    h.x = (uint16_t)(words[i / 2] >> (i % 2 * 16));
    return __half2float(__half(h));
}
static void bench_gemm(bench &b, cublasHandle_t blas, gemm g) {
    if (b.options.check) g.m = 64, g.n = std::min(g.n, 32), g.k = 128, g.buffers = 1;
    if (!b.wants(g.model)) return;
    const size_t element = g.int8 ? 1 : 2, bytes_a = (size_t)g.m * g.k * element, bytes_b = (size_t)g.n * g.k * element;
    const size_t bytes_c = (size_t)g.m * g.n * (g.int8 ? 4 : 2);
    std::vector<uint32_t *> weights;
    for (int i = 0; i < g.buffers; ++i) weights.push_back(b.random(bytes_a, 100 + i, !g.int8));
    uint32_t *tokens = b.random(bytes_b, 99, !g.int8), *out = nullptr;
    BENCH_CUDA(cudaMalloc((void **)&out, bytes_c));
    const float one_f = 1, zero_f = 0;
    const int32_t one_i = 1, zero_i = 0;
    const cudaDataType in_type = g.int8 ? CUDA_R_8I : CUDA_R_16F, out_type = g.int8 ? CUDA_R_32I : CUDA_R_16F;
    const void *one = g.int8 ? (const void *)&one_i : &one_f, *zero = g.int8 ? (const void *)&zero_i : &zero_f;
    b.measure(g.model, 1, [&](int i) {
        BENCH_CUBLAS(cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, g.m, g.n, g.k, one, weights[i % g.buffers], in_type,
                                  g.k, tokens, in_type, g.k, zero, out, out_type, g.m,
                                  g.int8 ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    });
    /* The last column of the first row, from the buffers themselves. */
    BENCH_CUBLAS(cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, g.m, g.n, g.k, one, weights[0], in_type, g.k, tokens,
                              in_type, g.k, zero, out, out_type, g.m, g.int8 ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                              CUBLAS_GEMM_DEFAULT));
    BENCH_CUDA(cudaStreamSynchronize(b.stream));
    std::vector<uint32_t> row((size_t)g.k * element / 4), token(row.size());
    uint32_t got_bits = 0;
    const size_t at = (size_t)(g.n - 1) * g.m;
    BENCH_CUDA(cudaMemcpy(row.data(), weights[0], g.k * element, cudaMemcpyDeviceToHost));
    BENCH_CUDA(
        cudaMemcpy(token.data(), tokens + (size_t)(g.n - 1) * row.size(), g.k * element, cudaMemcpyDeviceToHost));
    BENCH_CUDA(cudaMemcpy(&got_bits, (char *)out + at * (g.int8 ? 4 : 2), g.int8 ? 4 : 2, cudaMemcpyDeviceToHost));
    double want = 0, size = 0;
    for (int k = 0; k < g.k; ++k) {
        const double term = gemm_element(row, k, g.int8) * gemm_element(token, k, g.int8);
        want += term;
        size += term < 0 ? -term : term;
    }
    const double got = g.int8 ? (double)(int32_t)got_bits : gemm_element({got_bits}, 0, false);
    b.verify(g.model, std::abs(got - want) <= (g.int8 ? 0 : 1e-3 * size));
    for (uint32_t *w : weights) BENCH_CUDA(cudaFree(w));
    BENCH_CUDA(cudaFree(tokens));
    BENCH_CUDA(cudaFree(out));
}
static gemm gemm_of(const char *name, int m, int n, int k, bool int8, int buffers) {
    const double element = int8 ? 1 : 2, out = int8 ? 4 : 2;
    gemm g = {{name, element * ((double)m * k + (double)n * k) + out * m * n, 2.0 * m * n * k}, m, n, k, int8, buffers};
    return g;
}
static void bench_blas(bench &b) {
    cublasHandle_t blas = nullptr;
    if (!b.options.list && !b.options.dry_run) {
        BENCH_CUBLAS(cublasCreate(&blas));
        BENCH_CUBLAS(cublasSetStream(blas, b.stream));
    }
    bench_gemm(b, blas, gemm_of("gemm_f16_8192", 8192, 8192, 8192, false, 1));
    bench_gemm(b, blas, gemm_of("gemm_s8_8192", 8192, 8192, 8192, true, 1));
    bench_gemm(b, blas, gemm_of("gemv_f16_28672x4096", 28672, 1, 4096, false, 4));
    if (blas) BENCH_CUBLAS(cublasDestroy(blas));
}
#endif

int main(int argc, char **argv) {
    bench b;
    b.options = bench_parse(argc, argv);
    const bool runs = !b.options.list && !b.options.dry_run;
    if (runs) {
        b.device = bench_look();
        BENCH_CUDA(cudaStreamCreate(&b.stream));
        printf("%s, sm_%d%d, %d multiprocessors, L2 %.0f MiB\n", b.device.prop.name, b.device.prop.major,
               b.device.prop.minor, b.device.prop.multiProcessorCount, (double)b.device.l2_bytes / (1 << 20));
    } else {
        memset(&b.device.prop, 0, sizeof b.device.prop);
        b.device.prop.multiProcessorCount = 132;
    }
    bench_output output(runs ? b.options.json : "");
    b.output = &output;
    bench_memory(b);
    bench_l2(b);
    bench_launch(b);
#ifdef RQ_HAVE_CUBLAS
    bench_blas(b);
#else
    printf("no cuBLAS in this build: gemm_f16_8192, gemm_s8_8192, gemv_f16_28672x4096 are left out\n");
#endif
    if (runs) BENCH_CUDA(cudaStreamDestroy(b.stream));
    return b.wrong != 0;
}
