/* SPDX-License-Identifier: Apache-2.0 */
/* bench_quantize --device cuda: seconds of each stage of quantizing one matrix on a GPU, beside the work that device_plan.c counts for it. Stages: gram
 * (H, and D where the compensator wants it; gram_h: H alone; gram_bf16: H alone of activations that are on the device, rounded to bfloat16, as
 * calibration makes it with --activations bf16), factor, terms, sweep (with the search of scales), refine. "quantized" is what the published layer
 * classes do once their Hessian is there, without and with our refinement: factor, terms and sweep with all that the host does in between. In the
 * same run: cuBLAS in fp32 and bf16 on large squares, and copies from pinned memory.
 *
 * Before a shape is timed its Gram matrix is compared with sums in double at sampled places, and afterwards the loss of sampled rows must be
 * small. --check does that at small sizes, in the simulator too. --rates FILE: the rates for `requite quantize --dry-run --rates FILE`.
 * Targets: sm_80 sm_90a. Libraries: quantizer requite. */
#include <getopt.h>

#include "cuda_harness.h"
#include "shapes.h"
extern "C" {
#include "quantize_ops.h"
#include "random.h"
}
#ifdef RQ_HAVE_CUBLAS
#include <cublas_v2.h>
#endif
/* backend_cuda.h is for C alone. */
struct cuda_device;
extern "C" rq_status cuda_gram_here_bf16(cuda_device *dev, const float *a, const float *b, int64_t n_tok, int64_t n);

struct settings {
    std::string json, rates, filter, preset = "best";
    bench_shapes shapes = {};
    std::vector<std::string> set;
    rq_comp comp = RQ_COMP_RESCOMP;
    int64_t tokens = 0; /* 0: as many as the goals name, fewer of long rows */
    int repeat = 3;
    bool list = false, dry_run = false, check = false;
};

static void die(const char *what) {
    fprintf(stderr, "bench_quantize: %s: %s\n", what, rq_last_error());
    exit(1);
}
#define CHECK_RQ(call)                                                                                                 \
    do {                                                                                                               \
        if ((call) != RQ_OK) die(#call);                                                                               \
    } while (0)

/* ---- what the machine gives ------------------------------------------------------------------------------------------- */

struct ceilings {
    double fp32 = 0, bf16 = 0, bus = 0; /* operations and bytes a second; 0: not measured */
};

#ifdef RQ_HAVE_CUBLAS
static double matrix_rate(cublasHandle_t blas, cudaStream_t stream, int n, bool bf16) {
    const size_t element = bf16 ? 2 : 4;
    void *x = nullptr, *y = nullptr, *z = nullptr;
    for (void **p : {&x, &y, &z}) BENCH_CUDA(cudaMalloc(p, (size_t)n * n * element));
    std::vector<uint32_t> host((size_t)n * n);
    for (size_t i = 0; i < host.size(); ++i) {
        const float v = (float)rq_random_unit(7, i) - 0.5f;
        const uint32_t bits = rq_f32_bits(v);
        host[i] = bf16 ? (bits >> 16) | (bits & 0xffff0000u) : bits;
    }
    for (void *p : {x, y}) BENCH_CUDA(cudaMemcpy(p, host.data(), (size_t)n * n * element, cudaMemcpyHostToDevice));
    const float one = 1, zero = 0;
    const cudaDataType type = bf16 ? CUDA_R_16BF : CUDA_R_32F;
    int wrong = 0;
    const auto run = [&](int) {
        wrong += cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, x, type, n, y, type, n, &zero, z, type, n,
                              CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS;
    };
    const bench_times t = bench_time(stream, 1, run, n < 1024 ? 0 : 1);
    for (void *p : {x, y, z}) BENCH_CUDA(cudaFree(p));
    if (wrong) die("cublasGemmEx");
    return 2.0 * n * n * n / t.med_us * 1e6;
}
#endif

static double bus_rate(cudaStream_t stream, size_t bytes) {
    void *from = nullptr, *to = nullptr;
    BENCH_CUDA(cudaMallocHost(&from, bytes));
    BENCH_CUDA(cudaMalloc(&to, bytes));
    memset(from, 1, bytes);
    const auto run = [&](int) { BENCH_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream)); };
    const bench_times t = bench_time(stream, 1, run, bytes < 1 << 24 ? 0 : 0.5);
    BENCH_CUDA(cudaFree(to));
    BENCH_CUDA(cudaFreeHost(from));
    return (double)bytes / t.med_us * 1e6;
}

static ceilings measure_ceilings(bool check) {
    ceilings c;
    cudaStream_t stream;
    BENCH_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    c.bus = bus_rate(stream, check ? 1 << 16 : 256 << 20);
#ifdef RQ_HAVE_CUBLAS
    cublasHandle_t blas;
    if (cublasCreate(&blas) != CUBLAS_STATUS_SUCCESS || cublasSetStream(blas, stream) != CUBLAS_STATUS_SUCCESS)
        die("cublasCreate");
    c.fp32 = matrix_rate(blas, stream, check ? 64 : 8192, false);
    c.bf16 = matrix_rate(blas, stream, check ? 64 : 8192, true);
    if (cublasDestroy(blas) != CUBLAS_STATUS_SUCCESS) die("cublasDestroy");
#endif
    BENCH_CUDA(cudaStreamDestroy(stream));
    return c;
}

/* ---- one matrix ------------------------------------------------------------------------------------------------------- */

enum { CHUNK = RQ_CUDA_GRAM_CHUNK };

/* Sums of twelve uniform numbers are normal enough, and quick. */
static float normal(uint64_t seed, uint64_t i) {
    double sum = -6;
    for (uint64_t k = 0; k < 3; ++k) {
        const uint64_t u = rq_random_u64(seed, i * 3 + k);
        for (int part = 0; part < 4; ++part) sum += (double)((u >> (16 * part)) & 0xffff) / 65536;
    }
    return (float)sum;
}

struct matrix {
    int64_t n_out, n, tokens;
    rq_quant_opt opt;
    std::vector<float> w, x, dx; /* activations of one chunk, and more: chunk t begins 8 t + 1 numbers further on */
    std::vector<double> h, d;

    matrix(int64_t rows, int64_t cols, int64_t n_tok, const rq_quant_opt &o)
        : n_out(rows), n(cols), tokens(n_tok), opt(o), w((size_t)(rows * cols)),
          x((size_t)(CHUNK * cols + 8 * (n_tok / CHUNK + 1))), dx(x.size()), h((size_t)(cols * cols)),
          d(rq_quant_wants_cross(&o) ? (size_t)(cols * cols) : 0) {
        fill(w, 1, 0.02f);
        fill(x, 2, 1);
        fill(dx, 3, 0.05f);
        for (size_t i = 0; i < x.size(); ++i) x[i] *= 0.5f + (float)(i % 37) / 37;
    }
    static void fill(std::vector<float> &v, uint64_t seed, float scale) {
        struct job {
            float *to;
            uint64_t seed, size;
            float scale;
        } j = {v.data(), seed, v.size(), scale};
        rq_parallel_for((int64_t)((v.size() + 65535) / 65536),
                        [](void *arg, int64_t item) {
                            const job *k = static_cast<const job *>(arg);
                            const uint64_t end = std::min(k->size, (uint64_t)(item + 1) * 65536);
                            for (uint64_t i = (uint64_t)item * 65536; i < end; ++i)
                                k->to[i] = k->scale * normal(k->seed, i);
                        },
                        &j);
    }
    int64_t offset(int64_t t0) const { return t0 / CHUNK * 8; }

    /* Seconds. */
    double gram(const rq_device &dev, bool cross) {
        double *to = cross && !d.empty() ? d.data() : nullptr;
        BENCH_CUDA(cudaDeviceSynchronize());
        const double start = bench_wall_us();
        CHECK_RQ(dev.ops->gram_start(dev.own, h.data(), to, n));
        for (int64_t t0 = 0; t0 < tokens; t0 += CHUNK)
            CHECK_RQ(dev.ops->gram_add(dev.own, h.data(), to, x.data() + offset(t0), dx.data() + offset(t0),
                                       std::min<int64_t>(CHUNK, tokens - t0), n));
        CHECK_RQ(dev.ops->gram_finish(dev.own, h.data(), to, n));
        return 1e-6 * (bench_wall_us() - start);
    }
    /* Seconds until H is on the device. A chunk is there in fp32 like the inputs of a pass. */
    double gram_bf16(const rq_device &dev) {
        float *there = nullptr;
        BENCH_CUDA(cudaMalloc(&there, x.size() * sizeof *there));
        BENCH_CUDA(cudaMemcpy(there, x.data(), x.size() * sizeof *there, cudaMemcpyHostToDevice));
        CHECK_RQ(dev.ops->gram_start(dev.own, h.data(), nullptr, n));
        BENCH_CUDA(cudaDeviceSynchronize());
        const double start = bench_wall_us();
        for (int64_t t0 = 0; t0 < tokens; t0 += CHUNK)
            CHECK_RQ(cuda_gram_here_bf16(static_cast<cuda_device *>(dev.own), there + offset(t0), nullptr,
                                         std::min<int64_t>(CHUNK, tokens - t0), n));
        BENCH_CUDA(cudaDeviceSynchronize());
        const double end = bench_wall_us();
        CHECK_RQ(dev.ops->gram_finish(dev.own, h.data(), nullptr, n));
        BENCH_CUDA(cudaFree(there));
        return 1e-6 * (end - start);
    }
    /* Sampled entries against sums in double: products of 24 bits, sums of a chunk in fp32. bf16: of H alone. */
    bool gram_is_right(bool bf16) const {
        for (uint64_t k = 0; k < 12; ++k) {
            const int64_t i = (int64_t)(rq_random_u64(11, k) % (uint64_t)n),
                          j = (int64_t)(rq_random_u64(12, k) % (uint64_t)n);
            double want[2] = {0, 0}, size[2] = {0, 0};
            for (int64_t t = 0; t < tokens; ++t) {
                const float *a = x.data() + offset(t) + t % CHUNK * n, *b = dx.data() + offset(t) + t % CHUNK * n;
                const float ai = bf16 ? rq_f32_of_bf16(rq_bf16_of_f32(a[i])) : a[i],
                            aj = bf16 ? rq_f32_of_bf16(rq_bf16_of_f32(a[j])) : a[j];
                const double term[2] = {(double)ai * (double)aj, (double)b[i] * (double)aj};
                for (int m = 0; m < 2; ++m) want[m] += term[m], size[m] += std::fabs(term[m]);
            }
            const size_t at = (size_t)(i * n + j);
            if (std::fabs(h[at] - want[0]) > 1e-5 * size[0] ||
                (!bf16 && !d.empty() && std::fabs(d[at] - want[1]) > 1e-5 * size[1])) {
                fprintf(stderr, "H or D [%lld][%lld] is %g, %g, and not %g, %g\n", (long long)i, (long long)j, h[at],
                        d.empty() ? 0 : d[at], want[0], want[1]);
                return false;
            }
        }
        return true;
    }
    /* Two rows: the loss e H e^T is a small part of w H w^T. */
    bool loss_is_small(const rq_quant_result &r) const {
        for (int64_t row : {(int64_t)0, n_out - 1}) {
            double loss = 0, whole = 0;
            const float *a = w.data() + row * n, *q = r.q + row * n;
            for (int64_t i = 0; i < n; ++i) {
                double eh = 0, wh = 0;
                for (int64_t j = 0; j < n; ++j) {
                    const double hij = h[(size_t)(i * n + j)];
                    eh += hij * ((double)a[j] - (double)q[j]), wh += hij * (double)a[j];
                }
                loss += eh * ((double)a[i] - (double)q[i]), whole += wh * (double)a[i];
            }
            if (!(loss < 0.2 * whole)) {
                fprintf(stderr, "row %lld: loss %g of %g\n", (long long)row, loss, whole);
                return false;
            }
        }
        return true;
    }
};

/* Seconds of the stages, and of all after the Gram matrix with and without refinement. */
struct seconds {
    double stage[TIMED_STAGES] = {}, gram_h = 0, gram_bf16 = 0, prepared = 0, quantized = 0;
    double swept() const { return prepared + quantized - stage[TIMED_REFINE]; }
    double host() const {
        double on_device = 0;
        for (int i = TIMED_FACTOR; i < TIMED_STAGES; ++i) on_device += stage[i];
        return prepared + quantized - on_device;
    }
};

static seconds run_once(matrix &m, const rq_device &dev, bool check, bool *right) {
    seconds s;
    rq_prep prep;
    rq_quant_result r;
    const double gram = m.gram(dev, true);
    if (check) *right = m.gram_is_right(false);
    timed_begin();
    double start = bench_wall_us();
    CHECK_RQ(rq_prepare_on(&prep, &dev, m.h.data(), m.d.empty() ? nullptr : m.d.data(), m.n, &m.opt, "bench"));
    s.prepared = 1e-6 * (bench_wall_us() - start);
    start = bench_wall_us();
    CHECK_RQ(rq_quantize_matrix(&r, m.w.data(), m.n_out, &prep, &m.opt, "bench"));
    s.quantized = 1e-6 * (bench_wall_us() - start);
    for (int i = 0; i < TIMED_STAGES; ++i) s.stage[i] = timed_seconds[i];
    s.stage[TIMED_GRAM] = gram;
    if (check) *right = m.loss_is_small(r) && *right;
    rq_quant_result_free(&r);
    rq_prep_free(&prep);
    return s;
}

/* ---- the program ------------------------------------------------------------------------------------------------------ */

struct stage_rate { /* of the largest matrix so far */
    double work = 0, seconds = 0;
};

struct bench {
    settings o;
    bench_device device;
    ceilings ceiling;
    rq_device *gpu = nullptr;
    rq_device timed_gpu = {};
    bench_output *output = nullptr;
    stage_rate rate[TIMED_STAGES], gram_bf16, host; /* of the host: cells of H and W */
    double launch_seconds = 0;                      /* of a launch of the smallest sweep */
    int64_t launch_cells = 0;
    int wrong = 0;
};

/* needed: the operations of the triangle of H alone, without those that panels make above it; 0: not a triangle. */
static void record(bench &b, const matrix &m, const char *stage, double seconds, const rq_work *work, double tokens,
                   double needed) {
    const double all = work ? work->flops + work->own_flops : 0;
    bench_record r;
    bench_record_device(r, b.device);
    r.text("bench", "quantize").text("stage", stage).text("comp", rq_comp_get(m.opt.comp)->name);
    r.integer("n_out", m.n_out).integer("n_in", m.n).number("seconds", seconds);
    printf("%-8s %6lldx%-6lld %-10s %11.5f s", rq_comp_get(m.opt.comp)->name, (long long)m.n_out, (long long)m.n, stage,
           seconds);
    if (work) {
        r.number("flops", work->flops).number("own_flops", work->own_flops).number("bytes", work->bytes);
        r.number("upload", work->upload).number("download", work->download).integer("launches", work->launches);
        r.number("tflops", all / seconds * 1e-12);
        printf(" %8.2f Top/s", all / seconds * 1e-12);
        if (b.ceiling.fp32 > 0) {
            r.number("of_fp32", all / seconds / b.ceiling.fp32).number("of_bf16", all / seconds / b.ceiling.bf16);
            printf(" %5.1f %% of fp32 %5.1f %% of bf16", 100 * all / seconds / b.ceiling.fp32,
                   100 * all / seconds / b.ceiling.bf16);
        }
    }
    if (needed > 0) {
        r.number("needed_flops", needed);
        printf(" (%.2f of the triangle alone)", needed / seconds * 1e-12);
        if (b.ceiling.bf16 > 0) r.number("needed_of_bf16", needed / seconds / b.ceiling.bf16);
    }
    if (tokens > 0) {
        r.integer("tokens", (long long)tokens).number("tokens_per_s", tokens / seconds);
        printf(" %10.0f tokens/s", tokens / seconds);
    }
    printf("\n");
    fflush(stdout);
    r.number("fp32_tflops", b.ceiling.fp32 * 1e-12).number("bf16_tflops", b.ceiling.bf16 * 1e-12);
    r.number("bus_gbs", b.ceiling.bus * 1e-9);
    for (int i = 0; rq_quant_key_at(i); ++i) {
        char value[64];
        rq_quant_get(&m.opt, rq_quant_key_at(i)->key, value, sizeof value);
        if (strcmp(rq_quant_key_at(i)->key, "comp") != 0) r.text(rq_quant_key_at(i)->key, value);
    }
    const char *commit = getenv("RQ_COMMIT");
    if (commit) r.text("git", commit);
    b.output->add(r);
}

static void keep_rates(bench &b, const matrix &m, const rq_work *const *work, const rq_work &bf16,
                       const seconds &best) {
    if (bf16.flops > b.gram_bf16.work) b.gram_bf16 = {bf16.flops, best.gram_bf16};
    for (int i = 0; i < TIMED_STAGES; ++i) {
        const double all = work[i]->flops + work[i]->own_flops;
        if (all > b.rate[i].work) b.rate[i] = {all, best.stage[i]};
    }
    const double cells = (double)(m.n * m.n + m.n_out * m.n);
    if (cells > b.host.work) b.host = {cells, best.host()};
    if (b.launch_cells == 0 || m.n_out * m.n < b.launch_cells) {
        b.launch_cells = m.n_out * m.n;
        b.launch_seconds = best.stage[TIMED_SWEEP] / (double)work[TIMED_SWEEP]->launches;
    }
}

static void plan_line(const matrix &m, const char *stage, const rq_work &w) {
    printf("%-8s %6lldx%-6lld %-10s %12.3f GFLOP %10.3f GFLOP in kernels %10.3f GB %9.1f MiB up %9.1f MiB down %8lld "
           "launches\n",
           rq_comp_get(m.opt.comp)->name, (long long)m.n_out, (long long)m.n, stage, w.flops * 1e-9, w.own_flops * 1e-9,
           w.bytes * 1e-9, w.upload / 1048576, w.download / 1048576, (long long)w.launches);
}

static void one_matrix(bench &b, int64_t n_out, int64_t n, int64_t tokens, const rq_quant_opt &opt) {
    rq_device_work w, h_alone;
    rq_quant_opt plain = opt;
    rq_quant_default(&plain, RQ_COMP_GPTQ);
    CHECK_RQ(rq_device_plan(&w, n_out, n, tokens, &opt));
    CHECK_RQ(rq_device_plan(&h_alone, n_out, n, tokens, &plain));
    const rq_work *work[TIMED_STAGES];
    for (int i = 0; i < TIMED_STAGES; ++i) work[i] = timed_work(&w, i);
    if (b.o.dry_run) {
        matrix sizes(1, 1, 1, opt);
        sizes.n_out = n_out, sizes.n = n;
        for (int i = 0; i < TIMED_STAGES; ++i) plan_line(sizes, timed_names[i], *work[i]);
        return;
    }
    matrix m(n_out, n, tokens, opt);
    bool right = true;
    seconds best;
    const int repeat = b.o.check ? 1 : n > 8192 ? 1 : b.o.repeat;
    /* Once before, small matrices alone: libraries load their code then. */
    if (!b.o.check && n <= 8192) run_once(m, b.timed_gpu, true, &right);
    for (int i = 0; i < repeat && right; ++i) {
        const seconds s = run_once(m, b.timed_gpu, i == 0, &right);
        if (i == 0) best = s;
        for (int k = 0; k < TIMED_STAGES; ++k) best.stage[k] = std::min(best.stage[k], s.stage[k]);
        if (s.prepared + s.quantized < best.prepared + best.quantized)
            best.prepared = s.prepared, best.quantized = s.quantized;
    }
    for (int i = 0; i < repeat && right; ++i) {
        const double s = m.gram(b.timed_gpu, false), t = m.gram_bf16(b.timed_gpu);
        best.gram_h = i == 0 ? s : std::min(best.gram_h, s);
        best.gram_bf16 = i == 0 ? t : std::min(best.gram_bf16, t);
        right = i > 0 || m.gram_is_right(true);
    }
    if (b.o.check)
        printf("%s %lldx%lld: %s\n", rq_comp_get(opt.comp)->name, (long long)n_out, (long long)n,
               right ? "checked" : "wrong");
    b.wrong += !right;
    if (b.o.check || !right) return;
    rq_work bf16;
    rq_device_plan_gram_bf16(&bf16, n, tokens, false);
    const double triangle = (double)n * (double)(n + 1) * (double)tokens;
    record(b, m, "gram_h", best.gram_h, &h_alone.gram, (double)tokens, triangle);
    record(b, m, "gram_bf16", best.gram_bf16, &bf16, (double)tokens, triangle);
    for (int i = 0; i < TIMED_STAGES; ++i)
        if (work[i]->launches)
            record(b, m, timed_names[i], best.stage[i], work[i], i == TIMED_GRAM ? (double)tokens : 0, 0);
    record(b, m, "host", best.host(), nullptr, 0, 0);
    record(b, m, "swept", best.swept(), nullptr, 0, 0);
    record(b, m, "quantized", best.prepared + best.quantized, nullptr, 0, 0);
    keep_rates(b, m, work, bf16, best);
}

/* One flat object: operations (products and those of our kernels) a second of each stage, bytes a second of the bus, seconds of a launch. */
static void write_rates(const bench &b) {
    bench_record r;
    bench_record_device(r, b.device);
    r.text("device", b.device.prop.name)
        .truth("measured", true)
        .integer("memory", (long long)b.device.prop.totalGlobalMem);
    for (int i = 0; i < TIMED_STAGES; ++i)
        if (b.rate[i].seconds > 0) r.number(timed_names[i], b.rate[i].work / b.rate[i].seconds);
    if (b.gram_bf16.seconds > 0) r.number("gram_bf16", b.gram_bf16.work / b.gram_bf16.seconds);
    if (b.host.seconds > 0) r.number("host", b.host.work / b.host.seconds);
    r.number("fp32", b.ceiling.fp32)
        .number("bf16", b.ceiling.bf16)
        .number("bus", b.ceiling.bus)
        .number("launch", b.launch_seconds);
    FILE *f = fopen(b.o.rates.c_str(), "w");
    if (!f || fprintf(f, "%s\n", r.json().c_str()) < 0 || fclose(f) != 0) {
        fprintf(stderr, "bench_quantize: cannot write %s\n", b.o.rates.c_str());
        exit(1);
    }
}

static void usage() {
    printf(
        "usage: bench_quantize --device cuda [options]\n\nSeconds per stage of quantizing one matrix on a GPU.\n\n"
        "  --comp NAME       compensator (rescomp)\n"
        "  --shapes LIST     OUTxIN or a model, comma-separated (4096x4096,128x4096,8192x28672)\n"
        "  --preset NAME     best (default) or reference\n  --set KEY=VALUE   any quantization option; may be "
        "repeated\n"
        "  --tokens N        activations in the Gram matrices (262144; of rows longer than 8192 an eighth)\n"
        "  --repeat N        best of N (3; rows longer than 8192: once)\n  --filter TEXT     shapes with TEXT in them\n"
        "  --json FILE       --rates FILE\n  --list, --dry-run (the work of each stage), --check (small, times "
        "nothing)\n");
}

static settings parse(int argc, char **argv) {
    static const struct option flags[] = {
        {"comp", 1, nullptr, 'c'},   {"shapes", 1, nullptr, 's'}, {"preset", 1, nullptr, 'p'},
        {"set", 1, nullptr, 'o'},    {"tokens", 1, nullptr, 't'}, {"repeat", 1, nullptr, 'n'},
        {"filter", 1, nullptr, 'f'}, {"json", 1, nullptr, 'J'},   {"rates", 1, nullptr, 'R'},
        {"device", 1, nullptr, 'd'}, {"list", 0, nullptr, 'l'},   {"dry-run", 0, nullptr, 'D'},
        {"check", 0, nullptr, 'k'},  {"help", 0, nullptr, 'h'},   {nullptr, 0, nullptr, 0}};
    settings o;
    bool ok = true;
    for (int c; ok && (c = getopt_long(argc, argv, "h", flags, nullptr)) != -1;) {
        switch (c) {
        case 'c': ok = rq_comp_by_name(optarg, &o.comp); break;
        case 's': ok = bench_add_shapes(&o.shapes, optarg); break;
        case 'p': o.preset = optarg, ok = o.preset == "best" || o.preset == "reference"; break;
        case 'o': o.set.push_back(optarg); break;
        case 't': o.tokens = atoll(optarg), ok = o.tokens > 0; break;
        case 'n': o.repeat = atoi(optarg), ok = o.repeat > 0; break;
        case 'f': o.filter = optarg; break;
        case 'J': o.json = optarg; break;
        case 'R': o.rates = optarg; break;
        case 'd': break;
        case 'l': o.list = true; break;
        case 'D': o.dry_run = true; break;
        case 'k': o.check = true; break;
        case 'h': usage(); exit(0);
        default: exit(2);
        }
        if (!ok) fprintf(stderr, "bench_quantize: '%s' is not understood; --help lists the options\n", optarg);
    }
    if (!ok) exit(2);
#ifdef RQ_TEST_SIM
    if (!o.list && !o.dry_run && !o.check) {
        fprintf(stderr, "bench_quantize: this is the simulator, where times mean nothing: --dry-run prints the work, "
                        "--check runs it small\n");
        exit(2);
    }
#endif
    if (o.shapes.n == 0) bench_add_shapes(&o.shapes, o.check ? "24x160,33x129" : "4096x4096,128x4096,8192x28672");
    return o;
}

static rq_quant_opt options_of(const settings &o) {
    rq_quant_opt q;
    (o.preset == "reference" ? rq_quant_reference : rq_quant_default)(&q, o.comp);
    for (const std::string &s : o.set) CHECK_RQ(rq_quant_set_all(&q, s.c_str()));
    return q;
}

int main(int argc, char **argv) {
    bench b;
    b.o = parse(argc, argv);
    const rq_quant_opt opt = options_of(b.o);
    bench_output output(b.o.json);
    b.output = &output;
    const bool runs = !b.o.list && !b.o.dry_run;
    if (runs) {
        b.device = bench_look();
        b.ceiling = measure_ceilings(b.o.check);
        CHECK_RQ(rq_device_open(&b.gpu, "cuda"));
        b.timed_gpu = timed_device(b.gpu, [] { BENCH_CUDA(cudaDeviceSynchronize()); });
        if (!b.o.check)
            printf("%s: cuBLAS fp32 %.1f, bf16 %.1f TFLOP/s, pinned copies %.1f GB/s\n", b.device.prop.name,
                   b.ceiling.fp32 * 1e-12, b.ceiling.bf16 * 1e-12, b.ceiling.bus * 1e-9);
    }
    for (int i = 0; i < b.o.shapes.n; ++i) {
        const bench_shape &s = b.o.shapes.at[i].shape;
        const std::string name = std::to_string(s.n_out) + "x" + std::to_string(s.n_in);
        if (name.find(b.o.filter) == std::string::npos) continue;
        if (b.o.list) {
            printf("%s\n", name.c_str());
            continue;
        }
        const int64_t tokens = b.o.check ? 300 : b.o.tokens ? b.o.tokens : s.n_in > 8192 ? 32768 : 262144;
        one_matrix(b, s.n_out, s.n_in, tokens, opt);
        if (runs && !b.o.check && !b.o.rates.empty()) write_rates(b); /* again after each: what was measured is kept */
    }
    rq_device_close(b.gpu);
    return b.wrong ? 1 : 0;
}
