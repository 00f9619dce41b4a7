/* SPDX-License-Identifier: Apache-2.0 */
/* bench_gemm: y = W x with W4A8 weights on int8 or e4m3 activations, 1 to 4096 tokens, over the layers of real models: what rq_cuda_linear_*
 * chooses, in the same run with cuBLAS in fp16, in int8 (int32 results) and in e4m3 (without scales: lower bounds of its time). Cold: copies of the weights that
 * together are larger than four L2s take turns.
 *
 * A row is checked before it is timed: outputs of sampled rows and tokens must be the bits of the definition in plain C
 * (fmt_w4a8.h), of e4m3 within what fp32 sums, and Hopper's shorter ones, may differ by; a failed check is exit code 1. --check does so at small sizes, in the simulator too, and prints no times.
 * Targets: sm_80 sm_90a. Libraries: requite. */
#include <memory>

#include "gemm_cuda_weights.h"
#include "gemv_cuda_times.h"
#include "shapes.h"
#ifdef RQ_HAVE_CUBLAS
#include "gemv_cuda_cublas.h"
#endif

static const int all_tokens[] = {1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096}, few_tokens[] = {1, 20, 70};

/* A layer's product, ready to run. */
class gemm_run {
  public:
    rq_cuda_linear_plan plan;
    gemm_run(const gemm_weights &w, int n_tok, bool e4m3, cudaStream_t stream)
        : w_(w), n_tok_(n_tok), e4m3_(e4m3), stream_(stream) {
        desc_ = rq_cuda_linear_desc_default();
        rq_cuda_gemv_desc &d = desc_.weights;
        d.kind = RQ_TILE_W4A8, d.n_out = w.t.n_out, d.n_in = w.t.n_in, d.n_tok = n_tok, d.group = w.t.group;
        d.x_s8 = !e4m3, d.x_e4m3 = e4m3;
        if (rq_cuda_linear_make_plan(&plan, &desc_) != RQ_OK) {
            fprintf(stderr, "%s\n", rq_cuda_last_error());
            exit(1);
        }
        const size_t pitch = (size_t)(n_tok + 3) / 4 * 4;
        x_.resize((size_t)(n_tok * w.t.n_in)), scale_.resize((size_t)n_tok), sum_.resize((size_t)n_tok);
        block_sum_.resize((size_t)((w.t.n_in + 127) / 128) * pitch);
        for (size_t i = 0; i < x_.size(); ++i) x_[i] = code_of(i);
        for (int t = 0; t < n_tok; ++t) {
            scale_[(size_t)t] = 1e-3f * (float)(t % 5 + 1);
            for (int64_t j = 0; j < w.t.n_in; ++j) {
                const uint8_t v = x_[(size_t)(t * w.t.n_in + j)];
                sum_[(size_t)t] += (int8_t)v;
                block_sum_[(size_t)(j / 128) * pitch + (size_t)t] += rq_e4m3_value(v); /* exact */
            }
        }
        args_ = {};
        args_.gemv.x = upload(x_.data(), x_.size());
        args_.gemv.x_scale = (const float *)upload(scale_.data(), scale_.size() * 4);
        if (e4m3)
            args_.gemv.x_block_sum = (const float *)upload(block_sum_.data(), block_sum_.size() * 4);
        else
            args_.gemv.x_sum = (const int32_t *)upload(sum_.data(), sum_.size() * 4);
        args_.gemv.y = upload(nullptr, (size_t)(n_tok * w.t.n_out) * 2);
        args_.gemv.workspace = upload(nullptr, plan.workspace_bytes + 256);
    }
    ~gemm_run() {
        for (void *p : mine_) cudaFree(p);
    }
    gemm_run(const gemm_run &) = delete;
    gemm_run &operator=(const gemm_run &) = delete;
    void run(int i) {
        args_.gemv.weights = w_.copy(i);
        if (rq_cuda_linear_run(&plan, &desc_, &args_, stream_) != RQ_OK) {
            fprintf(stderr, "%s\n", rq_cuda_last_error());
            exit(1);
        }
    }
    /* Rows and tokens on a grid through all of y, the last ones too. */
    bool right() {
        run(0);
        BENCH_CUDA(cudaStreamSynchronize(stream_));
        const int64_t n_out = w_.t.n_out, n_in = w_.t.n_in;
        std::vector<uint16_t> y((size_t)(n_tok_ * n_out));
        BENCH_CUDA(cudaMemcpy(y.data(), args_.gemv.y, y.size() * 2, cudaMemcpyDeviceToHost));
        const int64_t row_step = n_out / 37 + 1, tok_step = n_tok_ / 7 + 1;
        for (int64_t i = n_out - 1; i >= 0; i -= row_step)
            for (int64_t t = n_tok_ - 1; t >= 0; t -= tok_step) {
                if (!w_.is_output(y[(size_t)(t * n_out + i)], i, &x_[(size_t)(t * n_in)], scale_[(size_t)t], e4m3_))
                    return false;
            }
        return true;
    }

  private:
    const gemm_weights &w_;
    int n_tok_;
    bool e4m3_;
    cudaStream_t stream_;
    rq_cuda_linear_desc desc_;
    rq_cuda_linear_args args_;
    std::vector<uint8_t> x_; /* int8 or e4m3 */
    std::vector<float> scale_, block_sum_;
    std::vector<int32_t> sum_;
    std::vector<void *> mine_;

    /* -127 .. 127, or whole eighths of e4m3 up to 15 in size. */
    uint8_t code_of(size_t i) const {
        const int v = (int)(hash32((uint32_t)i + 77) >> 9) % 255 - 127;
        return e4m3_ ? rq_e4m3_of((float)v / 8) : (uint8_t)(int8_t)v;
    }
    void *upload(const void *from, size_t bytes) {
        void *p = nullptr;
        BENCH_CUDA(cudaMalloc(&p, bytes));
        if (from)
            BENCH_CUDA(cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice));
        else
            BENCH_CUDA(cudaMemset(p, 0, bytes));
        mine_.push_back(p);
        return p;
    }
};

struct context {
    bench_options o;
    bench_device device;
    cudaStream_t stream = nullptr;
    std::unique_ptr<bench_output> output;
    int failed = 0;
    size_t copies() const { return o.check ? 0 : 4 * device.l2_bytes; }
    size_t room() const {
        size_t free = 0, total = 0;
        BENCH_CUDA(cudaMemGetInfo(&free, &total));
        return free / 4;
    }
};

/* Microseconds by number of tokens; 0: none. */
enum { BLAS_F16, BLAS_S8, BLAS_E4M3, BLAS_KINDS };
static const char *const blas_names[] = {"fp16", "int8", "fp8"};
static std::vector<double> baseline(context &c, const bench_shape &s, const std::vector<int> &tokens, int kind) {
    std::vector<double> us(tokens.size(), 0.0);
#ifdef RQ_HAVE_CUBLAS
    if (kind == BLAS_E4M3 && (s.n_in % 16 || c.device.prop.major * 10 + c.device.prop.minor < 89))
        return us; /* which it has no product for */
    const gemv_cublas::element elements[] = {gemv_cublas::F16, gemv_cublas::S8, gemv_cublas::E4M3};
    gemv_cublas blas(s.n_out, s.n_in, tokens.back(), c.copies(), c.room(), c.stream, elements[kind]);
    for (size_t i = 0; i < tokens.size(); ++i) {
        if (kind == BLAS_S8 && tokens[i] % 4) continue; /* cuBLAS wants multiples of 4 there */
        const gemv_cublas::answer a = blas.run(tokens[i], c.o.check ? 0 : 0.3);
        if (!a.ok)
            printf("cuBLAS %s, %lldx%lld, %d tokens: CHECK FAILED\n", blas_names[kind], (long long)s.n_out,
                   (long long)s.n_in, tokens[i]);
        c.failed += !a.ok;
        us[i] = a.us;
    }
#else
    (void)c, (void)s, (void)kind;
#endif
    return us;
}

/* The microseconds of cuBLAS, by kind. */
struct blas_times {
    double us[BLAS_KINDS];
};

static void time_row(context &c, gemm_run &run, const gemm_weights &w, bench_record &r, int n_tok, blas_times blas) {
    const bench_times t = gemv_time_graph(
        c.stream, gemv_launches(w.n_copies), [&](int i) { run.run(i); }, 0.5);
    const double operations = 2.0 * (double)w.t.n_out * (double)w.t.n_in * (double)n_tok;
    const double tops = operations / t.med_us * 1e-6, gbs = run.plan.bytes / t.med_us * 1e-3;
    printf(" %9.1f us %7.1f TOPS %7.0f GB/s", t.med_us, tops, gbs);
    r.number("t_cold_med_us", t.med_us).number("t_cold_p20", t.p20_us).number("t_cold_p80", t.p80_us);
    r.integer("samples", t.samples).number("noise_pct", t.noise_pct).number("tops", tops).number("gbs", gbs);
    static const char *const keys[] = {"f16", "s8", "e4m3"};
    for (int k = 0; k < BLAS_KINDS; ++k) {
        const bool there = blas.us[k] > 0;
        const std::string key = keys[k];
        if (there) printf("  x %.2f cuBLAS %s", blas.us[k] / t.med_us, blas_names[k]);
        r.number(("cublas_" + key + "_us").c_str(), there ? blas.us[k] : std::nan("")); /* null */
        r.number(("speedup_" + key).c_str(), there ? blas.us[k] / t.med_us : std::nan(""));
    }
}

static void one_row(context &c, const std::string &name, const gemm_weights &w, int n_tok, bool e4m3, blas_times blas) {
    gemm_run run(w, n_tok, e4m3, c.stream);
    printf("%-49s %-26s", name.c_str(), run.plan.kernel);
    const bool right = run.right();
    c.failed += !right;
    bench_record r;
    bench_record_device(r, c.device);
    r.text("name", name).integer("n_out", w.t.n_out).integer("n_in", w.t.n_in).integer("n_tok", n_tok);
    r.text("x", e4m3 ? "e4m3" : "int8");
    r.integer("group", w.t.group).text("kernel", run.plan.kernel).integer("launches", run.plan.launches);
    r.integer("tile_rows", run.plan.gemm.tile_rows).integer("tile_tok", run.plan.gemm.tile_tok);
    r.integer("split", run.plan.path == RQ_LINEAR_GEMM ? run.plan.gemm.split : run.plan.most.split);
    r.integer("bytes", (long long)run.plan.bytes).truth("check", right);
    if (right && !c.o.check) time_row(c, run, w, r, n_tok, blas);
    printf("%s\n", !right ? "  CHECK FAILED" : c.o.check ? "  checked" : "");
    fflush(stdout);
    c.output->add(r);
}

static void sweep(context &c, const char *model, const bench_shape &s, const std::vector<int> &tokens) {
    std::vector<double> blas[BLAS_KINDS];
    for (int64_t group : {(int64_t)0, (int64_t)128}) {
        std::unique_ptr<gemm_weights> w;
        for (size_t i = 0; i < 2 * tokens.size(); ++i) {
            const int n_tok = tokens[i / 2];
            const bool e4m3 = i % 2;
            char name[96];
            snprintf(name, sizeof name, "%s %s %lldx%lld w4%s-%s %d tokens", model, s.layer, (long long)s.n_out,
                     (long long)s.n_in, e4m3 ? "f8" : "a8", group ? "g128" : "row", n_tok);
            if (strstr(name, c.o.filter.c_str()) == nullptr) continue;
            if (c.o.list || c.o.dry_run) {
                printf("%-49s %.3g GB of weights, %.3g Gop\n", name, (double)s.n_out * (double)s.n_in / 2 * 1e-9,
                       2e-9 * (double)s.n_out * (double)s.n_in * n_tok);
                continue;
            }
            blas_times times;
            for (int k = 0; k < BLAS_KINDS; ++k) {
                if (blas[k].empty()) blas[k] = baseline(c, s, tokens, k);
                times.us[k] = blas[k][i / 2];
            }
            if (!w) w.reset(new gemm_weights(s.n_out, s.n_in, group, c.copies(), c.room()));
            one_row(c, name, *w, n_tok, e4m3, times);
        }
    }
}

int main(int argc, char **argv) {
    context c;
    c.o = bench_parse(argc, argv);
    c.output.reset(new bench_output(c.o.json));
    bench_shapes shapes = {};
    const char *usual = c.o.check ? "40x272,200x512" : "llama3-8b,llama3-70b";
    if (!bench_add_shapes(&shapes, c.o.shapes.empty() ? usual : c.o.shapes.c_str())) return 2;
    const std::vector<int> many(std::begin(all_tokens), std::end(all_tokens)),
        few(std::begin(few_tokens), std::end(few_tokens));
    if (!c.o.list && !c.o.dry_run) {
        c.device = bench_look();
        BENCH_CUDA(cudaStreamCreate(&c.stream));
    }
    for (int i = 0; i < shapes.n; ++i) {
        const bench_shape &s = shapes.at[i].shape;
        sweep(c, shapes.at[i].model, s, c.o.check ? few : s.n_tok ? std::vector<int>{s.n_tok} : many);
    }
    if (c.stream) BENCH_CUDA(cudaStreamDestroy(c.stream));
    if (c.failed) printf("%d checks failed\n", c.failed);
    return c.failed != 0;
}
