/* SPDX-License-Identifier: Apache-2.0 */
/* The times of a matrix on a GPU. A launch takes a few microseconds, too short for two events: 20 or more launches between
 * them, mostly as a graph, and the time is divided.
 *
 *   cold      a graph; the copies of the weights take turns, together more than four L2s: the headline
 *   graph     the same with programmatic dependent launch (sm_90): as an engine chains its layers
 *   launch    cold without a graph
 *   warm      a graph, one copy again and again; of interest where a model fits the L2
 *   polluted  cold, and 64 MiB of other data are read between the launches, so that x and codebook have left the L2 too; the time
 *             of that reading alone is taken off
 *   read      a kernel that only reads, on the bytes of cold: what any kernel could reach */
#ifndef BENCH_GEMV_CUDA_TIMES_H
#define BENCH_GEMV_CUDA_TIMES_H
#include "gemv_cuda_check.h"

enum { GEMV_LAUNCHES = 20, GEMV_POLLUTION = 64 << 20, GEMV_REHEARSAL = 64 << 10 };

/* Launches for one graph: whole turns over the copies, so that the next graph does not begin with a warm one. */
static inline int gemv_launches(int copies) { return (GEMV_LAUNCHES + copies - 1) / copies * copies; }

static inline bench_times gemv_time_graph(cudaStream_t stream, int n, const std::function<void(int)> &enqueue,
                                          double seconds) {
    cudaGraphExec_t graph = bench_graph(stream, [&] {
        for (int i = 0; i < n; ++i) enqueue(i);
    });
    const bench_times t = bench_time(
        stream, n, [&](int) { BENCH_CUDA(cudaGraphLaunch(graph, stream)); }, seconds);
    BENCH_CUDA(cudaGraphExecDestroy(graph));
    return t;
}

struct gemv_times {
    bench_times cold, graph, launch, warm, polluted, read; /* samples 0: not measured */
};

class gemv_stopwatch {
  public:
    /* seconds 0: a rehearsal. All of it runs once, with little pollution; times mean nothing. */
    gemv_stopwatch(cudaStream_t stream, int multiprocessors, double seconds)
        : stream_(stream), blocks_(seconds > 0 ? multiprocessors * 8 : 2), seconds_(seconds),
          pollution_(seconds > 0 ? GEMV_POLLUTION : GEMV_REHEARSAL) {
        BENCH_CUDA(cudaMalloc(&other_, pollution_));
        BENCH_CUDA(cudaMalloc((void **)&sum_, 4));
        BENCH_CUDA(cudaMemset(sum_, 0, 4));
        fill<<<blocks_, STREAM_THREADS, 0, stream>>>((uint32_t *)other_, pollution_ / 4, 5, false);
        BENCH_CUDA(cudaGetLastError());
    }
    ~gemv_stopwatch() {
        cudaFree(other_);
        cudaFree(sum_);
    }
    gemv_stopwatch(const gemv_stopwatch &) = delete;
    gemv_stopwatch &operator=(const gemv_stopwatch &) = delete;

    /* early: the same matrix with early_launch, or NULL. */
    gemv_times measure(gemv_run &run, gemv_run *early) {
        gemv_times t;
        const gemv_weights &w = run.weights();
        const int n = gemv_launches(w.n_copies);
        const double less = seconds_ / 4;
        const size_t pieces = (size_t)w.t.bytes / 16;
        t.cold = gemv_time_graph(
            stream_, n, [&](int i) { run.run(i); }, seconds_);
        if (early)
            t.graph = gemv_time_graph(
                stream_, n, [&](int i) { early->run(i); }, less);
        t.launch = bench_time(
            stream_, n,
            [&](int) {
                for (int i = 0; i < n; ++i) run.run(i);
            },
            less);
        t.warm = gemv_time_graph(
            stream_, GEMV_LAUNCHES, [&](int) { run.run(0); }, less);
        t.read = gemv_time_graph(
            stream_, n, [&](int i) { read((const uint4 *)w.copy(i), pieces); }, less);
        t.polluted = polluted(run, less);
        return t;
    }

  private:
    cudaStream_t stream_;
    int blocks_;
    double seconds_;
    size_t pollution_;
    void *other_ = nullptr;
    uint32_t *sum_ = nullptr;

    void read(const uint4 *from, size_t pieces) {
        read_all<true><<<blocks_, STREAM_THREADS, 0, stream_>>>(from, pieces, sum_);
        BENCH_CUDA(cudaGetLastError());
    }
    void pollute() {
        read_all<false><<<blocks_, STREAM_THREADS, 0, stream_>>>((const uint4 *)other_, pollution_ / 16, sum_);
        BENCH_CUDA(cudaGetLastError());
    }
    bench_times polluted(gemv_run &run, double seconds) {
        const bench_times alone = gemv_time_graph(
            stream_, GEMV_LAUNCHES, [&](int) { pollute(); }, seconds / 2);
        bench_times t = gemv_time_graph(
            stream_, GEMV_LAUNCHES,
            [&](int i) {
                pollute();
                run.run(i);
            },
            seconds / 2);
        t.med_us -= alone.med_us, t.p20_us -= alone.med_us, t.p80_us -= alone.med_us;
        return t;
    }
};

/* Copy and read of up to 8 GiB, GB/s: what the memory gives. */
struct gemv_ceilings {
    double copy_gbs = 0, read_gbs = 0;
};
static inline gemv_ceilings gemv_measure_ceilings(const bench_device &d, cudaStream_t stream) {
    gemv_ceilings c;
    const size_t bytes = std::min((size_t)8 << 30, d.free_bytes / 3 >> 20 << 20);
    const int blocks = d.prop.multiProcessorCount * 8;
    uint32_t *from = nullptr, *to = nullptr;
    BENCH_CUDA(cudaMalloc((void **)&from, bytes));
    BENCH_CUDA(cudaMalloc((void **)&to, bytes));
    fill<<<blocks, STREAM_THREADS, 0, stream>>>(from, bytes / 4, 3, false);
    BENCH_CUDA(cudaGetLastError());
    const bench_times copy = bench_time(
        stream, 1, [&](int) { BENCH_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream)); }, 0.3);
    const bench_times read = bench_time(
        stream, 1,
        [&](int) { read_all<true><<<blocks, STREAM_THREADS, 0, stream>>>((const uint4 *)from, bytes / 16, to); }, 0.3);
    BENCH_CUDA(cudaFree(from));
    BENCH_CUDA(cudaFree(to));
    c.copy_gbs = 2.0 * (double)bytes / copy.med_us * 1e-3;
    c.read_gbs = (double)bytes / read.med_us * 1e-3;
    return c;
}
#endif
