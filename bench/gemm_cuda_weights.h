/* SPDX-License-Identifier: Apache-2.0 */
/* W4A8 matrices on the device, for bench_gemm and bench_decode. */
#ifndef BENCH_GEMM_CUDA_WEIGHTS_H
#define BENCH_GEMM_CUDA_WEIGHTS_H
#include "cuda_harness.h"
#include "cuda_streams.h"
#include "fmt_act.h"
#include "fmt_tile.h"
#include "fmt_w4a8.h"

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

    /* Whether y, fp16, is that of one row and token. */
    bool is_output(uint16_t y, int64_t row, const uint8_t *x, float x_scale, bool e4m3) const {
        int64_t sum = 0, size = 0; /* size: of the terms that a kernel adds, codes and offsets */
        for (int64_t j = 0; j < t.n_in; ++j) {
            const int32_t v = e4m3 ? rq_e4m3_units(x[j]) : (int32_t)(int8_t)x[j];
            sum += (int64_t)level(row, j) * v, size += (int64_t)std::abs(v) * (t.group ? 2 * 255 : 2 * 15);
        }
        float scale;
        memcpy(&scale, &host_[(size_t)(t.scales + row * 4)], 4);
        if (!e4m3) return y == rq_f16_of_f32(rq_w4a8_output((int32_t)sum, scale, x_scale)).bits;
        const double want = rq_w4a8_output_e4m3(sum, scale, x_scale), got = rq_f32_of_f16({y});
        const double most = (double)size * 0x1p-9 * scale * x_scale;
        return std::fabs(want) > 65000 || std::fabs(got - want) <= most * 0x1p-12 + std::fabs(want) * 0x1p-10 + 1e-7;
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
#endif
