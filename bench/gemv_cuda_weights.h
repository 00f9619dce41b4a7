/* SPDX-License-Identifier: Apache-2.0 */
/* A matrix on the device, as the kernels read it: random tiles and side data, in copies that take turns. Any bits are a valid
 * tile, so they are made on the device; what they mean is decoded here from the words of host/fmt_tile.h alone, apart from
 * host/repack_*.c and the kernels, so that a misreading of either is seen. */
#ifndef BENCH_GEMV_CUDA_WEIGHTS_H
#define BENCH_GEMV_CUDA_WEIGHTS_H
#include "cuda_harness.h"
#include "cuda_streams.h"
#include "rq_cuda.h"

/* splitmix64: the same data in every run. */
struct gemv_random {
    uint64_t state;
    uint32_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return (uint32_t)((z ^ (z >> 31)) >> 32);
    }
    float unit() { return (float)(int32_t)(next() >> 8) * 0x1p-23f - 1.0f; } /* [-1, 1) */
};

static inline rq_tile_layout gemv_layout(const rq_cuda_gemv_desc &d) {
    rq_tile_layout t = {};
    t.kind = d.kind, t.n_out = d.n_out, t.n_in = d.n_in, t.group = d.group;
    if (d.kind == RQ_TILE_GRID) {
        t.bits = d.bits, t.zeros = d.zeros;
    } else if (d.kind == RQ_TILE_VQ) {
        t.vec_len = d.vec_len, t.vec_out = d.vec_out, t.n_stage = d.n_stage;
        t.n_codes[0] = d.n_codes[0], t.n_codes[1] = d.n_stage > 1 ? d.n_codes[1] : 0;
        t.no_scales = d.no_scales, t.columns = d.columns;
        t.n_book = d.n_book, t.book_cols = d.book_cols, t.n_outlier = d.n_outlier;
    } else {
        t.bits = d.vec_len == 8 ? 2 : 3, t.vec_len = d.vec_len, t.code_bits = d.code_bits;
        t.n_book = d.n_book, t.book_cols = d.book_cols, t.book_u8 = d.book_u8, t.n_outlier = d.n_outlier;
    }
    rq_tile_plan(&t);
    return t;
}

/* VQ: of each word of a lane, the bits that codes of these codebooks may have. A tile's words lie in parts of 128, 64 and 32. */
struct gemv_masks {
    int words;
    uint32_t mask[32];
};
static inline gemv_masks gemv_masks_of(const rq_tile_layout &t) {
    gemv_masks m = {};
    for (int s = 0; s < t.n_stage; ++s) {
        const int bits = rq_tile_code_bits(t.n_codes[s]), first = m.words;
        m.words += 64 / t.vec_len * bits / 32;
        for (int b = 0; b < (m.words - first) * 32; ++b)
            if (b % bits < 31 && t.n_codes[s] >> (b % bits) > 1) m.mask[first + b / 32] |= 1u << (b % 32);
    }
    return m;
}
/* A lane's word, in 4-byte words from the tile's start. */
__host__ __device__ static inline int gemv_word_at(int words, int lane, int word) {
    const int part = word / 4 * 4, left = words - part;
    const int size = left >= 4 ? 4 : left >= 2 && word - part < 2 ? 2 : 1, from = size == 1 ? word : part;
    return from * 32 + lane * size + word - from;
}
static __global__ void keep_codes(uint32_t *tiles, size_t lanes, gemv_masks m) {
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < lanes; i += step)
        for (int w = 0; w < m.words; ++w)
            tiles[i / 32 * 32 * m.words + gemv_word_at(m.words, (int)(i % 32), w)] &= m.mask[w];
}

class gemv_weights {
  public:
    rq_tile_layout t;
    int n_copies;

    /* copies: at least that many bytes in all, as far as `most` bytes of memory go. */
    gemv_weights(const rq_cuda_gemv_desc &d, size_t copies, size_t most, cudaStream_t stream) : t(gemv_layout(d)) {
        const size_t bytes = (size_t)t.bytes, wanted = copies / bytes + 1, room = most / bytes;
        n_copies = (int)std::max<size_t>(1, std::min<size_t>({wanted, room, 4096}));
        make_side_data(0x52455155u + (uint64_t)d.n_out * 31 + (uint64_t)d.n_in);
        BENCH_CUDA(cudaMalloc((void **)&device_, bytes * n_copies));
        const size_t words = (size_t)(t.n_rb * t.n_kb * t.tile_bytes / 4);
        fill<<<(unsigned)std::min<size_t>(4096, words / 256 + 1), STREAM_THREADS, 0, stream>>>((uint32_t *)device_,
                                                                                               words, 7, false);
        if (t.kind == RQ_TILE_VQ) {
            const gemv_masks masks = gemv_masks_of(t);
            const size_t lanes = words / masks.words;
            keep_codes<<<(unsigned)std::min<size_t>(4096, lanes / 256 + 1), STREAM_THREADS, 0, stream>>>(
                (uint32_t *)device_, lanes, masks);
        }
        BENCH_CUDA(cudaGetLastError());
        BENCH_CUDA(cudaMemcpyAsync(device_ + t.scales, side_.data(), side_.size(), cudaMemcpyHostToDevice, stream));
        /* Between the tiles and the scales there may be a gap, which nobody reads. */
        const size_t tiles = words * 4, gap = (size_t)t.scales - tiles;
        if (gap) BENCH_CUDA(cudaMemsetAsync(device_ + tiles, 0, gap, stream));
        for (int i = 1; i < n_copies; ++i)
            BENCH_CUDA(cudaMemcpyAsync(device_ + i * bytes, device_, bytes, cudaMemcpyDeviceToDevice, stream));
        BENCH_CUDA(cudaStreamSynchronize(stream));
    }
    ~gemv_weights() { cudaFree(device_); }
    gemv_weights(const gemv_weights &) = delete;
    gemv_weights &operator=(const gemv_weights &) = delete;

    const void *copy(int i) const { return device_ + (size_t)(i % n_copies) * (size_t)t.bytes; }

    /* The tiles of a row block, back from the device. */
    std::vector<uint8_t> row_block(int64_t rb) const {
        std::vector<uint8_t> tiles((size_t)(t.n_kb * t.tile_bytes));
        BENCH_CUDA(cudaMemcpy(tiles.data(), device_ + (size_t)rb * tiles.size(), tiles.size(), cudaMemcpyDeviceToHost));
        return tiles;
    }
    /* Element (16 rb + r, j) of row block rb, whose tiles are given: exact, but for one rounding to double. */
    double element(const std::vector<uint8_t> &tiles, int64_t rb, int r, int64_t j) const {
        for (int o = 0; o < t.n_outlier; ++o)
            if (at<int32_t>(t.outlier_cols + 4 * o) == j)
                return (double)at<int8_t>(t.outliers + (rb * t.n_outlier + o) * RQ_TILE_ROWS + r) *
                       at<float>(t.outlier_scales + 4 * (rb * t.n_outlier + o));
        const place p = {tiles.data() + j / RQ_TILE_COLS * t.tile_bytes, (int)(j % RQ_TILE_COLS / 32),
                         r % 8 * 4 + (int)(j % 32 / 8), r / 8, (int)(j % 8)};
        if (t.kind == RQ_TILE_VQ) return vq(tiles, rb, r, j);
        const int64_t in_block = t.kind == RQ_TILE_GRID ? r % 8 * 2 + r / 8 : r; /* its side data's place */
        const int64_t k = (rb * t.n_group + j / t.group) * RQ_TILE_ROWS + in_block;
        return half_at(t.scales + 2 * k) * (t.kind == RQ_TILE_GRID ? grid(p, k) : ssvq(p, rb, j));
    }

  private:
    struct place {
        const uint8_t *tile;
        int step, lane, upper, e; /* upper: row 8 .. 15 of the tile; e: of the lane's 8 columns */
    };
    uint8_t *device_ = nullptr;
    std::vector<uint8_t> side_; /* what is behind the tiles, from t.scales on */

    template <class T> T at(int64_t offset) const {
        T v;
        memcpy(&v, side_.data() + (offset - t.scales), sizeof v);
        return v;
    }
    template <class T> void put(int64_t offset, T v) { memcpy(side_.data() + (offset - t.scales), &v, sizeof v); }
    double half_at(int64_t offset) const { return rq_f32_of_f16(at<rq_f16>(offset)); }
    static uint32_t word(const uint8_t *p) {
        uint32_t w;
        memcpy(&w, p, 4);
        return w;
    }

    double grid(const place &p, int64_t k) const {
        const uint8_t *low = p.tile + p.lane * 16;
        const int pair = p.e / 2, odd = p.e % 2;
        uint32_t code = 0;
        if (t.bits < 4) code = word(low + 4 * p.step) >> (2 * (pair + 4 * p.upper) + 16 * odd) & 3u;
        if (t.bits == 3) {
            const uint32_t high = word(p.tile + 512 + p.lane * 8 + p.step / 2 * 4);
            code |= (high >> (16 * (p.step % 2) + 8 * p.upper + p.e) & 1u) << 2;
        }
        if (t.bits == 4)
            code = word(low + 512 * (p.step / 2) + 8 * (p.step % 2) + 4 * p.upper) >> 4 * (pair + 4 * odd) & 15u;
        if (t.bits == 8) code = low[512 * p.step + 8 * p.upper + p.e];
        return (double)code - (t.zeros ? half_at(t.zero_points + 2 * k) : (double)(1 << (t.bits - 1)));
    }
    double ssvq(const place &p, int64_t rb, int64_t j) const {
        const bool eight = t.vec_len == 8;
        const uint8_t *lane = p.tile + p.lane * 16;
        const uint32_t codes = word(lane + 4 * (eight ? p.step / 2 : p.step));
        const uint32_t signs = word((eight ? lane + 8 : p.tile + 512 + p.lane * 8) + p.step / 2 * 4);
        const int code_byte = eight ? 2 * (p.step % 2) + p.upper : 2 * p.upper + p.e / 4;
        uint32_t code = codes >> 8 * code_byte & 255u;
        if (const int high = rq_tile_high_bits(t.code_bits)) {
            const int j = eight ? p.step / 2 : p.step, b = code_byte;
            const int at = high == 4 ? 32 * (j / 2) + 8 * b + 4 * (j % 2)
                           : eight   ? 4 * j + 8 * (b % 2) + b / 2 * 2
                                     : 8 * b + 2 * j;
            const uint8_t *more = p.tile + (eight ? 512 : 768) + p.lane * high * (8 / t.vec_len);
            code |= (more[at / 8] >> at % 8 & ((1u << high) - 1)) << 8;
        }
        const int pair = p.e / 2, sign_bit = 15 - 4 * (p.step % 2) - 2 * p.upper - pair / 2 - 8 * (pair % 2);
        const int64_t book = j / t.book_cols,
                      k = (book * rq_tile_ssvq_codes(t.code_bits) + code) * t.vec_len + p.e % t.vec_len;
        const double size = (t.book_u8 ? (double)at<uint8_t>(t.book + k) : half_at(t.book + 2 * k)) *
                            at<float>(t.book_scales + 4 * (rb * t.n_book + book));
        return signs >> (sign_bit + 16 * (p.e % 2)) & 1u ? -size : size;
    }

    double vq(const std::vector<uint8_t> &tiles, int64_t rb, int r, int64_t j) const {
        const uint8_t *tile = tiles.data() + j / RQ_TILE_COLS * t.tile_bytes;
        const int words = (int)(t.tile_bytes / 128), c = (int)(j % 32), per_row = 8 / t.vec_len,
                  octet = (int)(j % 128 / 32) * 2 + r / 8;
        const int lane = t.vec_out ? c % 8 / 2 * 8 + c / 8 * 2 + c % 2 : r % 8 * 4 + c / 8;
        const int code = t.vec_out ? octet : octet * per_row + c % 8 / t.vec_len;
        double v = 0;
        for (int s = 0, first = 0; s < t.n_stage; ++s) {
            const int bits = rq_tile_code_bits(t.n_codes[s]), at = code * bits, w = first + at / 32;
            uint64_t two = word(tile + 4 * gemv_word_at(words, lane, w));
            if (at % 32 + bits > 32) two |= (uint64_t)word(tile + 4 * gemv_word_at(words, lane, w + 1)) << 32;
            const int64_t entry = j / t.book_cols * t.n_codes[s] + (int64_t)(two >> at % 32 & ((1u << bits) - 1));
            v += half_at((s ? t.book_2 : t.book) + 2 * (entry * t.vec_len + (t.vec_out ? r : j) % t.vec_len));
            first += 64 / t.vec_len * bits / 32;
        }
        if (!t.no_scales) v *= half_at(t.scales + 2 * ((rb * t.n_group + j / t.group) * RQ_TILE_ROWS + r));
        return t.columns ? v * half_at(t.columns_at + 2 * j) + half_at(t.columns_at + 2 * (t.n_in + j)) : v;
    }

    /* Sizes as in a quantized model: outputs of about 1 for inputs of about 1. */
    void make_side_data(uint64_t seed) {
        gemv_random random = {seed};
        side_.assign((size_t)(t.bytes - t.scales), 0);
        for (int64_t k = 0; !t.no_scales && k < t.n_rb * t.n_group * RQ_TILE_ROWS; ++k) {
            const int64_t i = k % RQ_TILE_ROWS, r = t.kind == RQ_TILE_GRID ? i / 2 + i % 2 * 8 : i;
            const int64_t row = k / (t.n_group * RQ_TILE_ROWS) * RQ_TILE_ROWS + r;
            const float scale = 0.02f + 0.01f * random.unit();
            if (row < t.n_out) put(t.scales + 2 * k, rq_f16_of_f32(scale));
            if (t.zeros) put(t.zero_points + 2 * k, rq_f16_of_f32((float)(random.next() >> (32 - t.bits))));
        }
        if (t.kind == RQ_TILE_GRID) return;
        for (int s = 0; t.kind == RQ_TILE_VQ && s < t.n_stage; ++s)
            for (int64_t k = 0; k < rq_tile_book_bytes(&t, s) / 2; ++k)
                put((s ? t.book_2 : t.book) + 2 * k, rq_f16_of_f32(std::rint(random.unit() * 1024) / 1024));
        for (int64_t j = 0; t.columns && j < t.n_in; ++j) { /* powers of two: products with x are exact */
            put(t.columns_at + 2 * j, rq_f16_of_f32(0.03125f * (float)(1 << random.next() % 2)));
            put(t.columns_at + 2 * (t.n_in + j), rq_f16_of_f32(std::rint(random.unit() * 64) / 65536));
        }
        for (int64_t k = 0; t.kind == RQ_TILE_SSVQ && k < t.n_book * rq_tile_ssvq_codes(t.code_bits) * t.vec_len; ++k) {
            if (t.book_u8)
                put(t.book + k, (uint8_t)random.next());
            else
                put(t.book + 2 * k, rq_f16_of_f32(1.0f + random.unit()));
        }
        for (int64_t k = 0; t.kind == RQ_TILE_SSVQ && k < t.n_rb * t.n_book; ++k)
            put(t.book_scales + 4 * k, t.book_u8 ? 0.0078125f : 1.0f);
        for (int64_t k = 0; k < t.n_rb * t.n_outlier * RQ_TILE_ROWS; ++k)
            put(t.outliers + k, (int8_t)((int)(random.next() % 255) - 127));
        for (int o = 0; o < t.n_outlier; ++o) /* one in each n-th of the columns: ascending */
            put(t.outlier_cols + 4 * o,
                (int32_t)(t.n_in * o / t.n_outlier + random.next() % std::max<int64_t>(1, t.n_in / t.n_outlier)));
        for (int64_t k = 0; k < t.n_rb * t.n_outlier; ++k)
            put(t.outlier_scales + 4 * k, 0.001f + 0.0005f * random.unit());
    }
};
#endif
