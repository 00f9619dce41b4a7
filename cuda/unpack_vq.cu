/* SPDX-License-Identifier: Apache-2.0 */
/* VQ for unpack_tile.cuh: every operation of the definition (fmt_vq.h) rounded to fp32 in its order, and outlier columns from their int8 weights. All
 * vectors and widths of codes have one kernel: writing is what takes time. Targets: sm_80 sm_90a. */
#include "unpack_tile.cuh"

struct rq_unpack_vq {
    const rq_unpack_job &job;
    const int rb, kb, lane;
    const uint8_t *tile;
    int words, n_bits[2], first_words;

    __device__ __forceinline__ rq_unpack_vq(const rq_unpack_job &job_, int rb_, int kb_, int lane_)
        : job(job_), rb(rb_), kb(kb_), lane(lane_),
          tile(job_.from + job_.t.tiles + ((int64_t)rb_ * job_.t.n_kb + kb_) * job_.t.tile_bytes),
          words((int)(job_.t.tile_bytes / 128)) {
        const rq_tile_layout &t = job.t;
        n_bits[0] = t.n_codes[0] <= 256 ? 8 : t.n_codes[0] <= 4096 ? 12 : 16;
        n_bits[1] = t.n_codes[1] <= 256 ? 8 : t.n_codes[1] <= 4096 ? 12 : 16;
        first_words = 64 / t.vec_len * n_bits[0] / 32;
    }
    /* A word of a lane: parts of 16 bytes, then 8, then 4. */
    __device__ __forceinline__ uint32_t word(int of_lane, int w) const {
        const int part = w / 4 * 4, left = words - part;
        const int size = left >= 4 ? 4 : left >= 2 && w - part < 2 ? 2 : 1, from = size == 1 ? w : part;
        return __ldg(reinterpret_cast<const uint32_t *>(tile) + from * 32 + of_lane * size + w - from);
    }
    __device__ __forceinline__ uint32_t code(int stage, int of_lane, int i) const {
        const int at = i * n_bits[stage], w = (stage ? first_words : 0) + at / 32, from = at % 32;
        const uint32_t low = word(of_lane, w), high = from + n_bits[stage] > 32 ? word(of_lane, w + 1) : 0;
        return ptx_funnel_right(low, high, from) & ((1u << n_bits[stage]) - 1u);
    }
    /* Element e of the lane's 8 in a row. */
    __device__ __forceinline__ float element(int stage, int s, int lower, int e, int64_t book) const {
        const rq_tile_layout &t = job.t;
        const int per_row = 8 / t.vec_len, quad = lane % 4;
        const uint32_t c = t.vec_out ? code(stage, e / 2 * 8 + quad * 2 + e % 2, s * 2 + lower)
                                     : code(stage, lane, (s * 2 + lower) * per_row + e / t.vec_len);
        return rq_unpack_half(job.from + (stage ? t.book_2 : t.book),
                              (book * t.n_codes[stage] + c) * t.vec_len + (t.vec_out ? lane / 4 : e % t.vec_len));
    }
    __device__ __forceinline__ void values(float (&v)[8], int s, int lower) const {
        const rq_tile_layout &t = job.t;
        const int row = lane / 4 + 8 * lower;
        const int64_t book = t.n_book == 1 ? 0 : kb / (t.book_cols / RQ_TILE_COLS),
                      col = (int64_t)kb * RQ_TILE_COLS + s * 32 + lane % 4 * 8;
        const float scale =
            t.no_scales ? 1.0f
                        : rq_unpack_half(job.from + t.scales, rq_unpack_group(t, rb, kb, s) * RQ_TILE_ROWS + row);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            v[e] = element(0, s, lower, e, book);
            if (t.n_stage > 1) v[e] = __fadd_rn(v[e], element(1, s, lower, e, book));
            if (!t.no_scales) v[e] = __fmul_rn(scale, v[e]);
            if (!t.columns || col + e >= t.n_in) continue;
            v[e] = __fmul_rn(v[e], rq_unpack_half(job.from + t.columns_at, col + e));
            v[e] = __fadd_rn(v[e], rq_unpack_half(job.from + t.columns_at, t.n_in + col + e));
        }
        for (int o = 0; o < t.n_outlier; ++o) {
            const int64_t at = __ldg(reinterpret_cast<const int32_t *>(job.from + t.outlier_cols) + o) - col;
            if (at < 0 || at >= 8) continue;
            const int64_t i = (int64_t)rb * t.n_outlier + o;
            const float w = __ldg(reinterpret_cast<const float *>(job.from + t.outlier_scales) + i) *
                            (float)(int8_t)__ldg(job.from + t.outliers + i * RQ_TILE_ROWS + row);
#pragma unroll
            for (int e = 0; e < 8; ++e)
                if (e == at) v[e] = w;
        }
    }
};

const void *rq_unpack_vq_function(const rq_cuda_gemv_desc *d) {
    return d->act == RQ_ACT_F16 ? (const void *)rq_unpack<rq_unpack_vq, RQ_ACT_F16>
                                : (const void *)rq_unpack<rq_unpack_vq, RQ_ACT_BF16>;
}
