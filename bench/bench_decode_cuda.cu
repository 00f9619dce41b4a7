/* SPDX-License-Identifier: Apache-2.0 */
/* bench_decode --device cuda: tokens a second of a whole decoder with random weights, one token a step in one captured graph (rq_cuda_decode_run), greedy: packed formats
 * beside the same graph with fp16 matrices through cuBLAS. Embedding and head are fp16 in all of them; the head goes through our own kernel, or in
 * "fp16-blas-head" through cuBLAS too; "ssvq2-no-ahead" asks for no weights while the small kernels run. A step is timed with so many tokens in the cache as the row says, 32 steps between two events.
 *
 * Of a row are given: microseconds and tokens a second; what a step reads, and the share of the copy rate measured in the same run that this
 * is; how many times the speed of the faster of both fp16 rows. Before a row is timed, a step from the graph must give the logits of one that was launched, bit for bit, and
 * all logits must be finite. --check does only that, with a small model, in the simulator too. --shapes takes the models of decode_models.h.
 * Targets: sm_80 sm_90a. Libraries: requite. */
#include <memory>

#include "decode_models.h"
#include "gemm_cuda_weights.h"
#include "gemv_cuda_times.h"
#include "gemv_cuda_weights.h"
#include "rq_cuda_decode.h"
#ifdef RQ_HAVE_CUBLAS
#include <cublas_v2.h>
#endif

enum { STEPS = 32 };

/* ---- formats */

struct format {
    const char *name;
    bool dense, blas_head;
    rq_tile_kind kind;
    int bits, group, codes, codes_2; /* group 0: a scale a row; codes: of vq */
    bool nothing_ahead;
};
static const format formats[] = {
    {"fp16", true, false, RQ_TILE_GRID, 16, 0, 0, 0, false},
    {"fp16-blas-head", true, true, RQ_TILE_GRID, 16, 0, 0, 0, false},
    {"ssvq2", false, false, RQ_TILE_SSVQ, 2, 0, 0, 0, false},
    {"ssvq2-no-ahead", false, false, RQ_TILE_SSVQ, 2, 0, 0, 0, true},
    {"ssvq3", false, false, RQ_TILE_SSVQ, 3, 0, 0, 0, false},
    {"grid2-g128", false, false, RQ_TILE_GRID, 2, 128, 0, 0, false},
    {"grid3-g128", false, false, RQ_TILE_GRID, 3, 128, 0, 0, false},
    {"grid4-g128", false, false, RQ_TILE_GRID, 4, 128, 0, 0, false},
    {"vq8x256+256", false, false, RQ_TILE_VQ, 2, 0, 256, 256, false},
    {"w4a8-row", false, false, RQ_TILE_W4A8, 4, 0, 0, 0, false},
    {"w4a8-g128", false, false, RQ_TILE_W4A8, 4, 128, 0, 0, false},
};

static rq_cuda_gemv_desc desc_of(const format &f, const bench_shape &s) {
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default();
    d.n_out = s.n_out, d.n_in = s.n_in;
    if (f.dense) return d;
    d.kind = f.kind, d.group = f.group || f.kind == RQ_TILE_W4A8 ? f.group : s.n_in;
    if (f.kind == RQ_TILE_GRID) {
        d.bits = f.bits, d.zeros = 1;
    } else if (f.kind == RQ_TILE_SSVQ) {
        d.vec_len = f.bits == 2 ? 8 : 4, d.n_book = 1, d.book_cols = s.n_in, d.book_u8 = 1;
    } else if (f.kind == RQ_TILE_VQ) {
        d.vec_len = 8, d.n_book = 1, d.book_cols = s.n_in, d.n_stage = f.codes_2 ? 2 : 1;
        d.n_codes[0] = f.codes, d.n_codes[1] = f.codes_2;
    } else {
        d.x_s8 = 1;
    }
    return d;
}
static double bytes_of(const format &f, const bench_shape &s) {
    if (f.dense) return 2.0 * (double)s.n_out * (double)s.n_in;
    if (f.kind != RQ_TILE_W4A8) return (double)gemv_layout(desc_of(f, s)).bytes;
    rq_tile_layout t = {};
    t.kind = f.kind, t.n_out = s.n_out, t.n_in = s.n_in, t.bits = 4, t.group = f.group;
    rq_tile_plan(&t);
    return (double)t.bytes;
}
/* Read by a step, without keys and values. */
static double model_bytes(const format &f, const bench_decoder &m) {
    bench_shape s[4];
    bench_block_shapes(s, &m);
    double bytes = 2.0 * (double)m.n_vocab * (double)m.d_model;
    for (int i = 0; i < 4; ++i) bytes += (double)m.n_layer * bytes_of(f, s[i]);
    return bytes;
}

/* ---- a model on the device */

class buffer {
  public:
    void *at = nullptr;
    explicit buffer(size_t bytes) { BENCH_CUDA(cudaMalloc(&at, bytes)); }
    ~buffer() { cudaFree(at); }
    buffer(const buffer &) = delete;
    buffer &operator=(const buffer &) = delete;
};
typedef std::unique_ptr<buffer> owned;

static owned random_halves(size_t n, uint32_t seed, cudaStream_t stream) {
    owned b(new buffer(n * 2));
    fill<<<1024, STREAM_THREADS, 0, stream>>>((uint32_t *)b->at, n / 2, seed, true);
    BENCH_CUDA(cudaGetLastError());
    return b;
}

/* One of a block's four matrices, for each layer a copy of its own. */
class layer_matrix {
  public:
    layer_matrix(const format &f, const bench_shape &s, int64_t n_layer, uint32_t seed, cudaStream_t stream)

        : dense_(f.dense), desc_(desc_of(f, s)), bytes_(f.dense ? 0 : (int64_t)bytes_of(f, s)),
          of_layer_((size_t)(s.n_out * s.n_in)) {
        const size_t copies = (size_t)bytes_of(f, s) * (size_t)n_layer - 1, most = (size_t)1 << 50;
        if (f.dense)
            plain_ = random_halves(of_layer_ * (size_t)n_layer, seed, stream);
        else if (f.kind == RQ_TILE_W4A8)
            w4a8_.reset(new gemm_weights(s.n_out, s.n_in, f.group, copies, most));
        else
            packed_.reset(new gemv_weights(desc_, copies, most, stream));
    }
    rq_cuda_decode_matrix layer(int i) const {
        rq_cuda_decode_matrix m = {};
        m.dense = dense_, m.gemv = desc_;
        m.weight_bytes = bytes_;
        m.weights = plain_  ? static_cast<const uint16_t *>(plain_->at) + of_layer_ * (size_t)i
                    : w4a8_ ? w4a8_->copy(i)
                            : packed_->copy(i);
        return m;
    }

  private:
    bool dense_;
    rq_cuda_gemv_desc desc_;
    int64_t bytes_;
    size_t of_layer_;
    owned plain_;
    std::unique_ptr<gemm_weights> w4a8_;
    std::unique_ptr<gemv_weights> packed_;
};

static void must(rq_status s) {
    if (s == RQ_OK) return;
    fprintf(stderr, "%s\n", rq_cuda_last_error());
    exit(1);
}

class decoder {
  public:
    rq_cuda_decode_plan plan;
    decoder(const format &f, const bench_decoder &m, int64_t max_seq, bool early, cudaStream_t stream)
        : n_vocab_((size_t)m.n_vocab), stream_(stream) {
        bench_shape s[4];
        bench_block_shapes(s, &m);
        for (int i = 0; i < 4; ++i)
            matrices_.emplace_back(new layer_matrix(f, s[i], m.n_layer, (uint32_t)i + 1, stream));
        layers_.resize((size_t)m.n_layer);
        for (int i = 0; i < (int)m.n_layer; ++i) {
            rq_cuda_decode_layer &l = layers_[(size_t)i];
            l = {};
            l.qkv[0] = matrices_[0]->layer(i), l.o = matrices_[1]->layer(i);
            l.gate_up[0] = matrices_[2]->layer(i), l.down = matrices_[3]->layer(i);
            l.n_qkv = l.n_gate_up = 1;
        }
        embed_ = random_halves(n_vocab_ * (size_t)m.d_model, 7, stream);
        head_ = random_halves(n_vocab_ * (size_t)m.d_model, 8, stream);
        rope_ = random_floats(max_seq * m.head_dim);
        desc_ = rq_cuda_decode_desc_default();
        desc_.n_layer = m.n_layer, desc_.d_model = m.d_model, desc_.d_ff = m.d_ff, desc_.n_vocab = m.n_vocab;
        desc_.n_head = m.n_head, desc_.n_kv_head = m.n_kv_head, desc_.head_dim = m.head_dim, desc_.max_seq = max_seq;
        desc_.eps = 1e-5f, desc_.layer = layers_.data(), desc_.embed = embed_->at;
        desc_.rope = static_cast<const float *>(rope_->at), desc_.early_launch = early, desc_.blas_head = f.blas_head;
        desc_.head.dense = 1, desc_.head.gemv.n_out = m.n_vocab, desc_.head.gemv.n_in = m.d_model,
        desc_.head.weights = head_->at;
        if (f.nothing_ahead) desc_.ahead_bytes = 0;
        must(rq_cuda_decode_make_plan(&plan, &desc_, 1));
        workspace_.reset(new buffer(plan.workspace_bytes));
        BENCH_CUDA(cudaMemsetAsync(workspace_->at, 0, plan.workspace_bytes, stream));
        cache_ = random_halves(plan.cache_bytes / 2, 9, stream);
        logits_.reset(new buffer(n_vocab_ * 4)), state_.reset(new buffer(sizeof(rq_cuda_decode_state)));
        BENCH_CUDA(cudaMallocHost((void **)&start_, sizeof *start_));
        *start_ = {};
        start_->n = 1;
        begin_at(0);
        run(); /* loads what a capture may not */
        BENCH_CUDA(cudaStreamSynchronize(stream));
        graph_ = bench_graph(stream, [&] { run(); });
    }
    ~decoder() {
        cudaGraphExecDestroy(graph_);
        cudaFreeHost(start_);
    }
    decoder(const decoder &) = delete;
    decoder &operator=(const decoder &) = delete;

    /* The first of the next steps has so many tokens in the cache. */
    void begin_at(int pos) {
        start_->pos = pos;
        BENCH_CUDA(cudaMemcpyAsync(state_->at, start_, sizeof *start_, cudaMemcpyHostToDevice, stream_));
    }
    void replay() { BENCH_CUDA(cudaGraphLaunch(graph_, stream_)); }
    void run() {
        const rq_cuda_decode_args a = {static_cast<rq_cuda_decode_state *>(state_->at),
                                       static_cast<float *>(logits_->at), cache_->at, workspace_->at};
        must(rq_cuda_decode_run(&plan, &desc_, &a, stream_));
    }
    std::vector<float> logits() {
        std::vector<float> v(n_vocab_);
        BENCH_CUDA(cudaStreamSynchronize(stream_));
        BENCH_CUDA(cudaMemcpy(v.data(), logits_->at, v.size() * 4, cudaMemcpyDeviceToHost));
        return v;
    }
    rq_cuda_decode_state state() {
        rq_cuda_decode_state s;
        BENCH_CUDA(cudaStreamSynchronize(stream_));
        BENCH_CUDA(cudaMemcpy(&s, state_->at, sizeof s, cudaMemcpyDeviceToHost));
        return s;
    }

  private:
    size_t n_vocab_;
    cudaStream_t stream_;
    std::vector<std::unique_ptr<layer_matrix>> matrices_;
    std::vector<rq_cuda_decode_layer> layers_;
    owned embed_, head_, rope_, workspace_, cache_, logits_, state_;
    rq_cuda_decode_desc desc_;
    rq_cuda_decode_state *start_ = nullptr;
    cudaGraphExec_t graph_ = nullptr;

    static owned random_floats(int64_t n) {
        std::vector<float> v((size_t)n);
        for (size_t i = 0; i < v.size(); ++i) v[i] = (float)(int)(hash32((uint32_t)i) % 2001) * 1e-3f - 1;
        owned b(new buffer(v.size() * 4));
        BENCH_CUDA(cudaMemcpy(b->at, v.data(), v.size() * 4, cudaMemcpyHostToDevice));
        return b;
    }
};

/* ---- rows */

struct context {
    bench_options o;
    bench_device device;
    gemv_ceilings ceilings;
    cudaStream_t stream = nullptr;
    std::unique_ptr<bench_output> output;
    int failed = 0, blas = 0; /* cuBLAS' version */
};

/* Two steps launched one by one, and two from the graph: the same logits, and all of them finite. */
static bool right(decoder &d, int pos) {
    d.begin_at(pos);
    d.run(), d.run();
    const std::vector<float> launched = d.logits();
    const rq_cuda_decode_state a = d.state();
    d.begin_at(pos);
    d.replay(), d.replay();
    const rq_cuda_decode_state b = d.state();
    return launched == d.logits() && a.bad == -1 && b.bad == -1 && a.token[0] == b.token[0] && b.pos == pos + 2;
}

static void time_row(context &c, decoder &d, bench_record &r, int pos, double *fp16_us, bool dense) {
    const bench_times t = bench_time(
        c.stream, STEPS,
        [&](int) {
            d.begin_at(pos);
            for (int i = 0; i < STEPS; ++i) d.replay();
        },
        1.0);
    const double bytes = d.plan.weight_bytes + d.plan.key_bytes * (pos + 0.5 * STEPS);
    const double gbs = bytes / t.med_us * 1e-3, of_copy = gbs / c.ceilings.copy_gbs;
    if (dense && (*fp16_us <= 0 || t.med_us < *fp16_us)) *fp16_us = t.med_us;
    printf(" %9.1f us %8.1f tokens/s %8.3f GB %6.0f GB/s %4.0f %% of copy", t.med_us, 1e6 / t.med_us, bytes * 1e-9, gbs,
           100 * of_copy);
    r.number("t_med_us", t.med_us).number("t_p20_us", t.p20_us).number("t_p80_us", t.p80_us);
    r.integer("samples", t.samples).number("noise_pct", t.noise_pct).number("tokens_s", 1e6 / t.med_us);
    r.number("bytes", bytes).number("gbs", gbs).number("copy_gbs", c.ceilings.copy_gbs).number("of_copy", of_copy);
    r.number("fp16_us", *fp16_us > 0 ? *fp16_us : std::nan(""));
    r.number("speedup_fp16", *fp16_us > 0 ? *fp16_us / t.med_us : std::nan(""));
    if (!dense && *fp16_us > 0) printf("  x %.2f fp16", *fp16_us / t.med_us);
}

/* Of cuBLAS; 0 where there is none. */
static int blas_version() {
    int version = 0;
#ifdef RQ_HAVE_CUBLAS
    cublasHandle_t handle = nullptr;
    if (cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) return 0;
    if (cublasGetVersion(handle, &version) != CUBLAS_STATUS_SUCCESS) version = 0;
    cublasDestroy(handle);
#endif
    return version;
}

static std::string name_of(const bench_decoder &m, const format &f, int pos) {
    return std::string(m.name) + " " + f.name + " at " + std::to_string(pos);
}

static void one_format(context &c, const bench_decoder &m, const format &f, const std::vector<int> &at,
                       std::vector<double> &fp16_us) {
    std::unique_ptr<decoder> d;
    for (size_t i = 0; i < at.size(); ++i) {
        const std::string name = name_of(m, f, at[i]);
        if (name.find(c.o.filter) == std::string::npos) continue;
        const double bytes = model_bytes(f, m), keys = 4.0 * (double)(m.n_layer * m.n_kv_head * m.head_dim);
        if (c.o.list || c.o.dry_run) {
            printf("%-34s %8.3f GB a step, %8.1f us at 4300 GB/s\n", name.c_str(), (bytes + keys * at[i]) * 1e-9,
                   (bytes + keys * at[i]) / 4300 * 1e-3);
            continue;
        }
        const int longest = at.back() + STEPS + 1;
        size_t free = 0, total = 0;
        BENCH_CUDA(cudaMemGetInfo(&free, &total));
        const double need = bytes + 2.0 * (double)(m.n_vocab * m.d_model) + keys * longest + (double)(64 << 20);
        if (!d && need > (double)free) {
            printf("%-34s left out: it needs %.1f GiB, and %.1f are free\n", name.c_str(), need / (1 << 30),
                   (double)free / (1 << 30));
            return;
        }
        const bool early = c.device.prop.major >= 9;
        if (!d) d.reset(new decoder(f, m, longest, early, c.stream));
        printf("%-34s %3d launches", name.c_str(), d->plan.launches);
        const bool ok = right(*d, at[i]);
        c.failed += !ok;
        bench_record r;
        bench_record_device(r, c.device);
        r.text("model", m.name)
            .text("format", f.name)
            .integer("tokens_in_cache", at[i])
            .integer("launches", d->plan.launches);
        r.number("weight_bytes", d->plan.weight_bytes)
            .number("key_bytes", d->plan.key_bytes)
            .integer("cublas", c.blas)
            .truth("early_launch", early)
            .truth("check", ok);
        if (ok && !c.o.check) time_row(c, *d, r, at[i], &fp16_us[i], f.dense);
        printf("%s\n", !ok ? "  CHECK FAILED" : c.o.check ? "  checked" : "");
        fflush(stdout);
        c.output->add(r);
    }
}

static void one_model(context &c, const bench_decoder &m) {
    const std::vector<int> at = c.o.check ? std::vector<int>{5, 130} : std::vector<int>{128, 4096};
    std::vector<double> fp16_us(at.size(), 0.0);
    for (const format &f : formats) {
        if (f.dense && !c.blas && !c.o.list && !c.o.dry_run) {
            printf("%s %s left out: there is no cuBLAS\n", m.name, f.name);
            continue;
        }
        one_format(c, m, f, at, fp16_us);
    }
}

int main(int argc, char **argv) {
    context c;
    c.o = bench_parse(argc, argv);
    c.output.reset(new bench_output(c.o.json));
    const std::string models = !c.o.shapes.empty() ? c.o.shapes : c.o.check ? "tiny" : "llama3-8b,smollm2-135m";
    if (!c.o.list && !c.o.dry_run) {
        c.device = bench_look();
        c.blas = blas_version();
        BENCH_CUDA(cudaStreamCreate(&c.stream));
        if (!c.o.check) c.ceilings = gemv_measure_ceilings(c.device, c.stream);
        if (!c.o.check) printf("%s: copy %.0f GB/s (read + written)\n", c.device.prop.name, c.ceilings.copy_gbs);
    }
    for (size_t from = 0; from < models.size();) {
        const size_t end = std::min(models.find(',', from), models.size());
        bench_decoder m;
        if (!bench_find_decoder(&m, models.c_str() + from, end - from)) {
            fprintf(stderr, "no model \"%s\": there are tiny", models.substr(from, end - from).c_str());
            for (const bench_heads &h : bench_model_heads) fprintf(stderr, ", %s", h.name);
            fprintf(stderr, "\n");
            return 2;
        }
        one_model(c, m);
        from = end + 1;
    }
    if (c.stream) BENCH_CUDA(cudaStreamDestroy(c.stream));
    if (c.failed) printf("%d checks failed\n", c.failed);
    return c.failed != 0;
}
