/* SPDX-License-Identifier: Apache-2.0 */
/* What the CUDA benchmarks share: the device, timing by events, and records. Nothing but the CUDA runtime and the C++ library,
 * so that they build on a bare GPU machine.
 *
 * Arguments of each: --json FILE (an array of flat records, rewritten after each one, so that what was measured is there when
 * the run is stopped), --filter TEXT (only benchmarks with TEXT in their name), --list, --dry-run (the bytes and operations
 * of each, and nothing is run), --check (each once at a size that the simulator can run; results are checked, times are not
 * reported). In the simulator times mean nothing: only --list, --dry-run and --check are taken. */
#ifndef BENCH_CUDA_HARNESS_H
#define BENCH_CUDA_HARNESS_H
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#define BENCH_CUDA(call)                                                                                               \
    do {                                                                                                               \
        cudaError_t e_ = (call);                                                                                       \
        if (e_ != cudaSuccess) {                                                                                       \
            fprintf(stderr, "%s:%d: %s: %s (%s)\n", __FILE__, __LINE__, #call, cudaGetErrorName(e_),                   \
                    cudaGetErrorString(e_));                                                                           \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

struct bench_options {
    std::string json, filter, shapes; /* shapes: of programs that have them */
    bool list = false, dry_run = false, check = false;
};

/* What a benchmark moves and computes; what a run of it is. */
struct bench_model {
    std::string name;
    double bytes = 0; /* read plus written, of one run */
    double flops = 0; /* two a multiply-add */
};

struct bench_times {
    int samples = 0;
    double med_us = 0, p20_us = 0, p80_us = 0;
    double noise_pct = 0; /* standard deviation / mean */
};

static inline bench_options bench_parse(int argc, char **argv) {
    bench_options o;
    for (int i = 1; i < argc; ++i) {
        std::string a = argv[i];
        const bool more = i + 1 < argc;
        if (a == "--json" && more)
            o.json = argv[++i];
        else if (a == "--filter" && more)
            o.filter = argv[++i];
        else if (a == "--shapes" && more)
            o.shapes = argv[++i];
        else if (a == "--device" && more) /* who handed over to this program has read it */
            ++i;
        else if (a == "--list")
            o.list = true;
        else if (a == "--dry-run")
            o.dry_run = true;
        else if (a == "--check")
            o.check = true;
        else {
            fprintf(stderr, "usage: %s [--json FILE] [--filter TEXT] [--shapes LIST] [--list] [--dry-run] [--check]\n",
                    argv[0]);
            exit(2);
        }
    }
#ifdef RQ_TEST_SIM
    if (!o.list && !o.dry_run && !o.check) {
        fprintf(stderr,
                "%s: this is the simulator, where times mean nothing: --dry-run prints what would be moved, "
                "--check runs it small\n",
                argv[0]);
        exit(2);
    }
#endif
    return o;
}

/* One JSON object, built field by field. Keys are plain names. */
class bench_record {
  public:
    bench_record &text(const char *key, const std::string &value) {
        std::string quoted = "\"";
        for (char c : value) {
            if (c == '"' || c == '\\') quoted += '\\';
            quoted += (unsigned char)c < 32 ? ' ' : c;
        }
        return raw(key, quoted + "\"");
    }
    bench_record &number(const char *key, double value) {
        char buffer[40];
        snprintf(buffer, sizeof buffer, value != value || value - value != 0 ? "null" : "%.6g", value);
        return raw(key, buffer);
    }
    bench_record &integer(const char *key, long long value) { return raw(key, std::to_string(value)); }
    bench_record &truth(const char *key, bool value) { return raw(key, value ? "true" : "false"); }
    bench_record &none(const char *key) { return raw(key, "null"); }
    std::string json() const {
        std::string all;
        for (const auto &f : fields_) all += (all.empty() ? "{\"" : ",\"") + f.first + "\":" + f.second;
        return all + "}";
    }
    /* As CSV: the keys, the values. */
    std::string head() const {
        std::string all;
        for (const auto &f : fields_) all += (all.empty() ? "" : ",") + f.first;
        return all;
    }
    std::string line() const {
        std::string all;
        for (size_t i = 0; i < fields_.size(); ++i)
            all += (i ? "," : "") + (fields_[i].second == "null" ? std::string() : fields_[i].second);
        return all;
    }
    /* The value as it stands in the JSON; empty when there is no such key. */
    std::string value(const std::string &key) const {
        for (const auto &f : fields_)
            if (f.first == key) return f.second;
        return "";
    }

  private:
    bench_record &raw(const char *key, const std::string &value) {
        fields_.emplace_back(key, value);
        return *this;
    }
    std::vector<std::pair<std::string, std::string>> fields_;
};

/* Files of records, as JSON and CSV; an empty path: none. */
class bench_output {
  public:
    explicit bench_output(const std::string &json, const std::string &csv = "") : json_(json), csv_(csv) {}
    void add(const bench_record &r) {
        lines_.push_back(csv_.empty() ? "" : (lines_.empty() ? r.head() + "\n" : "") + r.line());
        records_.push_back(r.json());
        write(json_, records_, "[\n", ",\n", "\n]\n");
        write(csv_, lines_, "", "\n", "\n");
    }

  private:
    static void write(const std::string &path, const std::vector<std::string> &all, const char *before,
                      const char *between, const char *after) {
        if (path.empty()) return;
        const std::string part = path + ".part"; /* the old file stays until the new one is whole */
        FILE *f = fopen(part.c_str(), "w");
        bool ok = f != nullptr;
        for (size_t i = 0; ok && i < all.size(); ++i)
            ok = fputs(i ? between : before, f) >= 0 && fputs(all[i].c_str(), f) >= 0;
        if (f) ok = fputs(after, f) >= 0 && fclose(f) == 0 && ok;
        if (!ok || rename(part.c_str(), path.c_str()) != 0) {
            fprintf(stderr, "cannot write %s\n", path.c_str());
            exit(1);
        }
    }
    std::string json_, csv_;
    std::vector<std::string> records_, lines_;
};

struct bench_device {
    cudaDeviceProp prop;
    int driver = 0, runtime = 0;
    size_t free_bytes = 0, l2_bytes = 0;
};
static inline bench_device bench_look() {
    bench_device d;
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
        printf("skip: no CUDA device here\n");
        exit(77);
    }
    size_t total = 0;
    BENCH_CUDA(cudaGetDeviceProperties(&d.prop, 0));
    BENCH_CUDA(cudaDriverGetVersion(&d.driver));
    BENCH_CUDA(cudaRuntimeGetVersion(&d.runtime));
    BENCH_CUDA(cudaMemGetInfo(&d.free_bytes, &total));
    d.l2_bytes = (size_t)d.prop.l2CacheSize;
    return d;
}
static inline void bench_record_device(bench_record &r, const bench_device &d) {
    char date[16];
    const time_t now = time(nullptr);
    strftime(date, sizeof date, "%Y-%m-%d", gmtime(&now));
    r.integer("schema_version", 1).text("date", date).text("gpu", d.prop.name);
    r.integer("sm", d.prop.major * 10 + d.prop.minor).integer("multiprocessors", d.prop.multiProcessorCount);
    r.integer("l2_bytes", (long long)d.l2_bytes).integer("driver", d.driver).integer("cuda", d.runtime);
}

static inline double bench_wall_us() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}
static inline bench_times bench_quantiles(std::vector<double> us) {
    std::sort(us.begin(), us.end());
    const auto at = [&](double q) { return us[std::min(us.size() - 1, (size_t)(q * (double)us.size()))]; };
    bench_times t;
    t.samples = (int)us.size();
    t.med_us = at(0.5), t.p20_us = at(0.2), t.p80_us = at(0.8);
    double mean = 0, square = 0;
    for (double u : us) mean += u / (double)us.size();
    for (double u : us) square += (u - mean) * (u - mean) / (double)us.size();
    t.noise_pct = mean > 0 ? 100 * std::sqrt(square) / mean : 0;
    return t;
}
/* Calls run(i) with i counting up: three times untimed, then between two events each until `seconds` have passed, at
 * least 10 and at most 2000 times (with 0 seconds: once, a rehearsal). One call should take well over 10 us: put many launches into it, and say how many. */
static inline bench_times bench_time(cudaStream_t stream, int launches, const std::function<void(int)> &run,
                                     double seconds = 0.5) {
    cudaEvent_t start, stop;
    BENCH_CUDA(cudaEventCreate(&start));
    BENCH_CUDA(cudaEventCreate(&stop));
    int i = 0;
    for (; i < 3; ++i) run(i);
    BENCH_CUDA(cudaStreamSynchronize(stream));
    std::vector<double> us;
    const double until = bench_wall_us() + seconds * 1e6;
    while ((us.size() < (seconds > 0 ? 10 : 1) || bench_wall_us() < until) && us.size() < 2000) {
        float ms = 0;
        BENCH_CUDA(cudaEventRecord(start, stream));
        run(i++);
        BENCH_CUDA(cudaEventRecord(stop, stream));
        BENCH_CUDA(cudaEventSynchronize(stop));
        BENCH_CUDA(cudaEventElapsedTime(&ms, start, stop));
        us.push_back((double)ms * 1e3 / launches);
    }
    BENCH_CUDA(cudaGetLastError());
    BENCH_CUDA(cudaEventDestroy(start));
    BENCH_CUDA(cudaEventDestroy(stop));
    return bench_quantiles(us);
}
/* The launches that enqueue() makes, as a graph that is replayed: no host between them. */
static inline cudaGraphExec_t bench_graph(cudaStream_t stream, const std::function<void()> &enqueue) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    BENCH_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    enqueue();
    BENCH_CUDA(cudaStreamEndCapture(stream, &graph));
    BENCH_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    BENCH_CUDA(cudaGraphDestroy(graph));
    return exec;
}
#endif
