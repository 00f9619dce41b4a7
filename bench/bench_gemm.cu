/* SPDX-License-Identifier: Apache-2.0 */
/* bench_gemm: y = W x with W4A8 weights on int8 activations, 1 to 4096 tokens, over the layers of real models: what rq_cuda_linear_* chooses, in
 * the same run with cuBLAS in fp16 and in int8 (int32 results, no scales: a lower bound of its time). Cold: copies of the weights that
 * together are larger than four L2s take turns.
 *
 * A row is checked before it is timed: outputs of sampled rows and tokens must be the bits of the definition in plain C
 * (fmt_w4a8.h); a failed check is exit code 1. --check does so at small sizes, in the simulator too, and prints no times.
 * Targets: sm_80 sm_90a. Libraries: requite. */
#include <memory>

#include "fmt_w4a8.h"
#include "gemv_cuda_times.h"
#include "shapes.h"
#ifdef RQ_HAVE_CUBLAS
#include "gemv_cuda_cublas.h"
#endif

static const int all_tokens[] = {1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096}, few_tokens[] = {1, 20, 70};

/* Weights as the kernels read them, random but valid, one block of bytes over and over; and a row of them back. */
class gemm_weights {
  public:
    rq_tile_layout t = {};
    gemm_weights(int64_t n_out, int64_t n_in, int64_t group, size_t copies, size_t room) {
        t.kind = RQ_TILE_W4A8, t.n_out = n_out, t.n_in = n_in, t.bits = 4, t.group = group;
        rq_tile_plan(&t);
        host_.resize((size_t)t.bytes);
        for (size_t i = 0; i < host_.size(); ++i) host_[i] = (uint8_t)(hash32((uint32_t)(i % 999983)) >> 9);
        float *scale = reinterpret_cast<float *>(&host_[(size_t)t.scales]);
        int32_t *zero = reinterpret_cast<int32_t *>(&host_[(size_t)t.zero_points]);
        for (int64_t i = 0; i < (t.zero_points - t.scales) / 4; ++i)
            scale[i] = (float)(hash32((uint32_t)i) % 1000 + 1) * 1e-5f, zero[i] = group ? 128 : (int32_t)(i % 16);
        for (int64_t i = t.levels; i < t.bytes; i += 2) {
            host_[(size_t)i] = (uint8_t)(host_[(size_t)i] % RQ_W4A8_MAX_STEP + 1);
            host_[(size_t)i + 1] = (uint8_t)(host_[(size_t)i + 1] % (256 - 15 * host_[(size_t)i]));
        }
        n_copies = (int)std::max<size_t>(1, std::min<size_t>({copies / host_.size() + 1, room / host_.size(), 512}));
        BENCH_CUDA(cudaMalloc((void **)&device_, host_.size() * (size_t)n_copies));
        for (int i = 0; i < n_copies; ++i)
            BENCH_CUDA(
                cudaMemcpy(device_ + host_.size() * (size_t)i, host_.data(), host_.size(), cudaMemcpyHostToDevice));
    }
    ~gemm_weights() { cudaFree(device_); }
    gemm_weights(const gemm_weights &) = delete;
    gemm_weights &operator=(const gemm_weights &) = delete;
    int n_copies = 1;
    const void *copy(int i) const { return device_ + host_.size() * (size_t)(i % n_copies); }

    /* y of one row and token, before it is rounded to 16 bits. */
    float output(int64_t row, const int8_t *x, float x_scale) const {
        int64_t sum = 0;
        for (int64_t j = 0; j < t.n_in; ++j) sum += (int64_t)level(row, j) * x[j];
        float scale;
        memcpy(&scale, &host_[(size_t)(t.scales + row * 4)], 4);
        return rq_w4a8_output((int32_t)sum, scale, x_scale);
    }

  private:
    std::vector<uint8_t> host_;
    uint8_t *device_ = nullptr;

    /* As fmt_tile.h has it. */
    int level(int64_t row, int64_t j) const {
        const int64_t r = row % 16, s = j % 128 / 32, c = j % 32, lane = r % 8 * 4 + c % 16 / 4;
        const int64_t tile = rq_tile_w4a8_place(row / 16, j / 128, t.n_kb) * t.tile_bytes;
        const uint8_t byte = host_[(size_t)(tile + s / 2 * 512 + lane * 16 + s % 2 * 8 + r / 8 * 4 + c % 4)];
        const int code = byte >> c / 16 * 4 & 15;
        int32_t zero;
        memcpy(&zero, &host_[(size_t)(t.zero_points + row * 4)], 4);
        if (!t.group) return code - zero;
        const int64_t at = t.levels + rq_tile_w4a8_place(row / 16, j / t.group, t.n_group) * 32 + r % 8 * 4 + r / 8 * 2;
        return code * host_[(size_t)at] + host_[(size_t)at + 1] - zero;
    }
};

/* A layer's product, ready to run. */
class gemm_run {
  public:
    rq_cuda_linear_plan plan;
    gemm_run(const gemm_weights &w, int n_tok, cudaStream_t stream) : w_(w), n_tok_(n_tok), stream_(stream) {
        desc_ = rq_cuda_linear_desc_default();
        rq_cuda_gemv_desc &d = desc_.weights;
        d.kind = RQ_TILE_W4A8, d.n_out = w.t.n_out, d.n_in = w.t.n_in, d.n_tok = n_tok, d.group = w.t.group, d.x_s8 = 1;
        if (rq_cuda_linear_make_plan(&plan, &desc_) != RQ_OK) {
            fprintf(stderr, "%s\n", rq_cuda_last_error());
            exit(1);
        }
        x_.resize((size_t)(n_tok * w.t.n_in)), scale_.resize((size_t)n_tok), sum_.resize((size_t)n_tok);
        for (size_t i = 0; i < x_.size(); ++i) x_[i] = (int8_t)((int)(hash32((uint32_t)i + 77) >> 9) % 255 - 127);
        for (int t = 0; t < n_tok; ++t) {
            scale_[(size_t)t] = 1e-3f * (float)(t % 5 + 1);
            for (int64_t j = 0; j < w.t.n_in; ++j) sum_[(size_t)t] += x_[(size_t)(t * w.t.n_in + j)];
        }
        args_ = {};
        args_.gemv.x = upload(x_.data(), x_.size());
        args_.gemv.x_scale = (const float *)upload(scale_.data(), scale_.size() * 4);
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
                const float want = w_.output(i, &x_[(size_t)(t * n_in)], scale_[(size_t)t]);
                if (y[(size_t)(t * n_out + i)] != rq_f16_of_f32(want).bits) return false;
            }
        return true;
    }

  private:
    const gemm_weights &w_;
    int n_tok_;
    cudaStream_t stream_;
    rq_cuda_linear_desc desc_;
    rq_cuda_linear_args args_;
    std::vector<int8_t> x_;
    std::vector<float> scale_;
    std::vector<int32_t> sum_;
    std::vector<void *> mine_;

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
static std::vector<double> baseline(context &c, const bench_shape &s, const std::vector<int> &tokens, bool s8) {
    std::vector<double> us(tokens.size(), 0.0);
#ifdef RQ_HAVE_CUBLAS
    gemv_cublas blas(s.n_out, s.n_in, tokens.back(), c.copies(), c.room(), c.stream, s8);
    for (size_t i = 0; i < tokens.size(); ++i) {
        if (s8 && tokens[i] % 4) continue; /* cuBLAS wants multiples of 4 there */
        const gemv_cublas::answer a = blas.run(tokens[i], c.o.check ? 0 : 0.3);
        if (!a.ok)
            printf("cuBLAS %s, %lldx%lld, %d tokens: CHECK FAILED\n", s8 ? "int8" : "fp16", (long long)s.n_out,
                   (long long)s.n_in, tokens[i]);
        c.failed += !a.ok;
        us[i] = a.us;
    }
#else
    (void)c, (void)s, (void)s8;
#endif
    return us;
}

static void time_row(context &c, gemm_run &run, const gemm_weights &w, bench_record &r, double f16_us, double s8_us) {
    const bench_times t = gemv_time_graph(
        c.stream, gemv_launches(w.n_copies), [&](int i) { run.run(i); }, 0.5);
    const double operations = 2.0 * (double)w.t.n_out * (double)w.t.n_in * (double)(int)atoi(r.value("n_tok").c_str());
    const double tops = operations / t.med_us * 1e-6, gbs = run.plan.bytes / t.med_us * 1e-3;
    printf(" %9.1f us %7.1f TOPS %7.0f GB/s", t.med_us, tops, gbs);
    if (f16_us > 0) printf("  x %.2f cuBLAS fp16", f16_us / t.med_us);
    if (s8_us > 0) printf("  x %.2f int8", s8_us / t.med_us);
    const double none = std::nan(""); /* null */
    r.number("t_cold_med_us", t.med_us).number("t_cold_p20", t.p20_us).number("t_cold_p80", t.p80_us);
    r.integer("samples", t.samples).number("noise_pct", t.noise_pct).number("tops", tops).number("gbs", gbs);
    r.number("cublas_f16_us", f16_us > 0 ? f16_us : none).number("cublas_s8_us", s8_us > 0 ? s8_us : none);
    r.number("speedup_f16", f16_us > 0 ? f16_us / t.med_us : none);
    r.number("speedup_s8", s8_us > 0 ? s8_us / t.med_us : none);
}

static void one_row(context &c, const std::string &name, const gemm_weights &w, int n_tok, double f16_us,
                    double s8_us) {
    gemm_run run(w, n_tok, c.stream);
    printf("%-44s %-22s", name.c_str(), run.plan.kernel);
    const bool right = run.right();
    c.failed += !right;
    bench_record r;
    bench_record_device(r, c.device);
    r.text("name", name).integer("n_out", w.t.n_out).integer("n_in", w.t.n_in).integer("n_tok", n_tok);
    r.integer("group", w.t.group).text("kernel", run.plan.kernel).integer("launches", run.plan.launches);
    r.integer("tile_rows", run.plan.gemm.tile_rows).integer("tile_tok", run.plan.gemm.tile_tok);
    r.integer("split", run.plan.path == RQ_LINEAR_GEMM ? run.plan.gemm.split : run.plan.most.split);
    r.integer("bytes", (long long)run.plan.bytes).truth("check", right);
    if (right && !c.o.check) time_row(c, run, w, r, f16_us, s8_us);
    printf("%s\n", !right ? "  CHECK FAILED" : c.o.check ? "  checked" : "");
    fflush(stdout);
    c.output->add(r);
}

static void sweep(context &c, const char *model, const bench_shape &s, const std::vector<int> &tokens) {
    std::vector<double> f16, s8;
    for (int64_t group : {(int64_t)0, (int64_t)128}) {
        std::unique_ptr<gemm_weights> w;
        for (size_t i = 0; i < tokens.size(); ++i) {
            char name[96];
            snprintf(name, sizeof name, "%s %s %lldx%lld w4a8-%s %d tokens", model, s.layer, (long long)s.n_out,
                     (long long)s.n_in, group ? "g128" : "row", tokens[i]);
            if (strstr(name, c.o.filter.c_str()) == nullptr) continue;
            if (c.o.list || c.o.dry_run) {
                printf("%-44s %.3g GB of weights, %.3g Gop\n", name, (double)s.n_out * (double)s.n_in / 2 * 1e-9,
                       2e-9 * (double)s.n_out * (double)s.n_in * tokens[i]);
                continue;
            }
            if (f16.empty()) f16 = baseline(c, s, tokens, false), s8 = baseline(c, s, tokens, true);
            if (!w) w.reset(new gemm_weights(s.n_out, s.n_in, group, c.copies(), c.room()));
            one_row(c, name, *w, tokens[i], f16[i], s8[i]);
        }
    }
}

int main(int argc, char **argv) {
    context c;
    c.o = bench_parse(argc, argv);
    c.output.reset(new bench_output(c.o.json));
    bench_shapes shapes = {};
    if (!bench_add_shapes(&shapes, c.o.check ? "40x272,200x512" : "llama3-8b,llama3-70b")) return 2;
    const std::vector<int> tokens = c.o.check ? std::vector<int>(std::begin(few_tokens), std::end(few_tokens))
                                              : std::vector<int>(std::begin(all_tokens), std::end(all_tokens));
    if (!c.o.list && !c.o.dry_run) {
        c.device = bench_look();
        BENCH_CUDA(cudaStreamCreate(&c.stream));
    }
    for (int i = 0; i < shapes.n; ++i) sweep(c, shapes.at[i].model, shapes.at[i].shape, tokens);
    if (c.stream) BENCH_CUDA(cudaStreamDestroy(c.stream));
    if (c.failed) printf("%d checks failed\n", c.failed);
    return c.failed != 0;
}
