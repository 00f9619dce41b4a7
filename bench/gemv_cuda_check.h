/* SPDX-License-Identifier: Apache-2.0 */
/* One matrix, one number of tokens, ready to run (int8 activations: in steps of 1/64); and its check against sums in double: sampled row blocks on random inputs,
 * decoding on one-hot inputs, every output written, a second run on another copy equal bit for bit, the workspace left zero. */
#ifndef BENCH_GEMV_CUDA_CHECK_H
#define BENCH_GEMV_CUDA_CHECK_H
#include "gemv_cuda_weights.h"

#define BENCH_RQ(call)                                                                                                 \
    do {                                                                                                               \
        if ((call) != RQ_OK) {                                                                                         \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, rq_cuda_last_error());                       \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Bits of fp16 or bf16, and their values. */
static inline float gemv_value(rq_act act, uint16_t bits) {
    rq_f16 h = {bits};
    rq_bf16 b = {bits};
    return act == RQ_ACT_F16 ? rq_f32_of_f16(h) : rq_f32_of_bf16(b);
}
static inline uint16_t gemv_bits(rq_act act, float v) {
    return act == RQ_ACT_F16 ? rq_f16_of_f32(v).bits : rq_bf16_of_f32(v).bits;
}

/* A matrix for the dispatcher, one of its ways: few tokens by the GEMV are one launch of it. */
static inline rq_cuda_linear_desc gemv_linear(const rq_cuda_gemv_desc &d, rq_linear_path path) {
    rq_cuda_linear_desc l = rq_cuda_linear_desc_default();
    l.weights = d, l.path = path;
    return l;
}

class gemv_run {
  public:
    rq_cuda_gemv_desc desc;
    rq_cuda_linear_plan plan = {};

    gemv_run(const rq_cuda_gemv_desc &d, rq_linear_path path, const gemv_weights &weights, cudaStream_t stream)
        : desc(d), linear_(gemv_linear(d, path)), weights_(weights), stream_(stream), x_((size_t)(d.n_tok * d.n_in)) {
        BENCH_RQ(rq_cuda_linear_make_plan(&plan, &linear_));
        BENCH_CUDA(cudaMalloc(&args_.y, y_bytes()));
        BENCH_CUDA(cudaMalloc((void **)&device_x_, x_.size() * 2));
        if (desc.x_s8) {
            const std::vector<float> scale((size_t)d.n_tok, INT8_STEP);
            BENCH_CUDA(cudaMalloc((void **)&device_scale_, scale.size() * 4));
            BENCH_CUDA(cudaMemcpy(device_scale_, scale.data(), scale.size() * 4, cudaMemcpyHostToDevice));
            args_.x_scale = device_scale_;
        }
        if (plan.workspace_bytes) {
            BENCH_CUDA(cudaMalloc(&args_.workspace, plan.workspace_bytes));
            BENCH_CUDA(cudaMemsetAsync(args_.workspace, 0, plan.workspace_bytes, stream_));
        }
        if (plan.scratch_bytes) BENCH_CUDA(cudaMalloc(&linear_args_.scratch, plan.scratch_bytes));
        args_.x = device_x_;
        gemv_random random = {9};
        for (uint16_t &v : x_) v = bits_of(random.unit());
        set_x();
    }
    ~gemv_run() {
        cudaFree(args_.y);
        cudaFree(device_x_);
        cudaFree(device_scale_);
        cudaFree(args_.workspace);
        cudaFree(linear_args_.scratch);
    }
    gemv_run(const gemv_run &) = delete;
    gemv_run &operator=(const gemv_run &) = delete;

    void run(int copy) {
        args_.weights = weights_.copy(copy);
        BENCH_RQ(rq_cuda_linear_run(&plan, &linear_, &linear_args_, stream_));
    }
    const gemv_weights &weights() const { return weights_; }

    struct verdict {
        bool ok = true, exact_decode = true, deterministic = true;
        double rel_fro = 0, max_abs = 0; /* error over the sampled outputs */
        std::string why;
    };
    verdict check() {
        verdict v;
        const std::vector<uint16_t> first = result(0);
        expected_ = first;
        if (first != result(1)) return fail(v, &v.deterministic, "two runs differ");
        for (size_t i = 0; i < first.size(); ++i)
            if (!std::isfinite(gemv_value(desc.act, first[i])))
                return fail(v, nullptr, "output " + std::to_string(i) + " was not written or is not finite");
        const rq_tile_layout &t = weights_.t;
        double squares = 0, errors = 0;
        for (int64_t rb : sampled()) {
            const std::vector<uint8_t> tiles = weights_.row_block(rb);
            for (int r = 0; r < RQ_TILE_ROWS && rb * RQ_TILE_ROWS + r < t.n_out && v.ok; ++r)
                check_row(&v, first, tiles, rb, r, &squares, &errors);
        }
        v.rel_fro = squares > 0 ? std::sqrt(errors / squares) : 0;
        for (int turn = 0; turn < 3 && v.ok; ++turn) check_one_hot(&v, turn);
        set_x();
        if (v.ok && !workspace_is_zero()) fail(v, nullptr, "the workspace is not left zero");
        return v;
    }

    /* After more runs on the same inputs: the same outputs as this or the other run's check() saw, and a clean workspace. */
    bool intact(const gemv_run &checked) const { return outputs() == checked.expected_ && workspace_is_zero(); }

  private:
    rq_cuda_linear_desc linear_;
    const gemv_weights &weights_;
    cudaStream_t stream_;
    std::vector<uint16_t> x_, expected_;
    uint16_t *device_x_ = nullptr; /* of x_s8, bytes of that many */
    float *device_scale_ = nullptr;
    rq_cuda_linear_args linear_args_ = {};
    rq_cuda_gemv_args &args_ = linear_args_.gemv;

    size_t y_bytes() const { return (size_t)(desc.n_tok * desc.n_out) * 2; }
    void set_x() { upload(x_); }
    /* An element of x as it is kept here, the bits of its 16, or 8, bits. */
    static constexpr float INT8_STEP = 1.0f / 64;
    uint16_t bits_of(float v) const {
        return desc.x_s8 ? (uint8_t)(int8_t)std::lrint(v / INT8_STEP) : gemv_bits(desc.act, v);
    }
    double value_of(uint16_t bits) const {
        return desc.x_s8 ? (double)(int8_t)bits * INT8_STEP : gemv_value(desc.act, bits);
    }
    void upload(const std::vector<uint16_t> &x) {
        if (desc.x_s8) {
            const std::vector<uint8_t> bytes(x.begin(), x.end());
            BENCH_CUDA(cudaMemcpy(device_x_, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
            return;
        }
        BENCH_CUDA(cudaMemcpyAsync(device_x_, x.data(), x.size() * 2, cudaMemcpyHostToDevice, stream_));
        BENCH_CUDA(cudaStreamSynchronize(stream_));
    }
    static verdict fail(verdict &v, bool *which, const std::string &why) {
        if (which) *which = false;
        v.ok = false, v.why = why;
        return v;
    }
    /* Outputs start as NaN. */
    std::vector<uint16_t> result(int copy) {
        BENCH_CUDA(cudaMemsetAsync(args_.y, 0xff, y_bytes(), stream_));
        run(copy);
        return outputs();
    }
    std::vector<uint16_t> outputs() const {
        std::vector<uint16_t> y(y_bytes() / 2);
        BENCH_CUDA(cudaMemcpyAsync(y.data(), args_.y, y_bytes(), cudaMemcpyDeviceToHost, stream_));
        BENCH_CUDA(cudaStreamSynchronize(stream_));
        return y;
    }
    std::vector<int64_t> sampled() const {
        const int64_t n = weights_.t.n_rb;
        std::vector<int64_t> all = {0};
        for (int64_t rb : {n / 3, n - n / 4, n - 1})
            if (rb > all.back() && rb < n) all.push_back(rb);
        return all;
    }
    /* fp32 sums: within 2^-14 of the sum of the terms' sizes (tensor cores cut, so the bound is no multiple of 2^-24), and the
     * result is rounded once; half the last place of the smallest numbers besides. Dense weights are rounded, each. Of many tokens
     * 17 are looked at. */
    void check_row(verdict *v, const std::vector<uint16_t> &y, const std::vector<uint8_t> &tiles, int64_t rb, int r,
                   double *squares, double *errors) const {
        std::vector<double> w((size_t)desc.n_in);
        for (int64_t j = 0; j < desc.n_in; ++j) w[(size_t)j] = weights_.element(tiles, rb, r, j);
        const int64_t row = rb * RQ_TILE_ROWS + r;
        const double last = desc.act == RQ_ACT_F16 ? 0x1p-11 : 0x1p-8;
        const double of_terms = 0x1p-14 + (plan.path == RQ_LINEAR_DEQUANTIZE ? last : 0);
        const int64_t looks = std::min<int64_t>(desc.n_tok, 17);
        for (int64_t k = 0; k < looks; ++k) {
            const int64_t tok = looks == 1 ? 0 : k * (desc.n_tok - 1) / (looks - 1);
            double sum = 0, size = 0;
            for (int64_t j = 0; j < desc.n_in; ++j) {
                const double term = w[(size_t)j] * value_of(x_[(size_t)(tok * desc.n_in + j)]);
                sum += term, size += std::fabs(term);
            }
            const double got = gemv_value(desc.act, y[(size_t)(tok * desc.n_out + row)]), error = std::fabs(got - sum);
            *squares += sum * sum, *errors += error * error;
            v->max_abs = std::max(v->max_abs, error);
            if (error <= size * of_terms + std::fabs(sum) * last + 0x1p-25) continue;
            char text[160];
            snprintf(text, sizeof text, "row %lld, token %lld: %.9g instead of %.9g", (long long)row, (long long)tok,
                     got, sum);
            fail(*v, nullptr, text);
            return;
        }
    }
    /* Every token has a single 1: the outputs are a column of the matrix, rounded once from what fp32 makes of it. */
    void check_one_hot(verdict *v, int turn) {
        const rq_tile_layout &t = weights_.t;
        gemv_random random = {(uint64_t)turn + 77};
        std::vector<int64_t> column;
        for (int64_t tok = 0; tok < desc.n_tok; ++tok)
            column.push_back(tok + turn == 0 ? 0 : tok + turn == 2 ? t.n_in - 1 : random.next() % t.n_in);
        std::vector<uint16_t> x(x_.size(), 0);
        for (int64_t tok = 0; tok < desc.n_tok; ++tok)
            x[(size_t)(tok * desc.n_in + column[(size_t)tok])] = bits_of(1.0f);
        upload(x);
        const std::vector<uint16_t> y = result(0);
        for (int64_t rb : sampled()) {
            const std::vector<uint8_t> tiles = weights_.row_block(rb);
            for (int64_t k = 0; k < RQ_TILE_ROWS * desc.n_tok; ++k) {
                const int64_t row = rb * RQ_TILE_ROWS + k % RQ_TILE_ROWS, tok = k / RQ_TILE_ROWS;
                if (row >= t.n_out) continue;
                const double w = weights_.element(tiles, rb, (int)(k % RQ_TILE_ROWS), column[(size_t)tok]);
                const float got = gemv_value(desc.act, y[(size_t)(tok * desc.n_out + row)]);
                const float one = gemv_value(desc.act, gemv_bits(desc.act, (float)(w * (1 - 0x1p-21))));
                const float other = gemv_value(desc.act, gemv_bits(desc.act, (float)(w * (1 + 0x1p-21))));
                if (got >= std::min(one, other) && got <= std::max(one, other)) continue;
                char text[160];
                snprintf(text, sizeof text, "column %lld decodes to %.9g in row %lld, instead of %.9g",
                         (long long)column[(size_t)tok], got, (long long)row, w);
                fail(*v, &v->exact_decode, text);
                return;
            }
        }
    }
    bool workspace_is_zero() const {
        std::vector<uint8_t> seen(plan.workspace_bytes);
        if (!seen.empty()) BENCH_CUDA(cudaMemcpy(seen.data(), args_.workspace, seen.size(), cudaMemcpyDeviceToHost));
        return std::all_of(seen.begin(), seen.end(), [](uint8_t b) { return b == 0; });
    }
};
#endif
