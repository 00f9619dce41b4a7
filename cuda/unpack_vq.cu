/* SPDX-License-Identifier: Apache-2.0 */
/* VQ for unpack_tile.cuh: w = scale v col_scale + col_bias, v the sum of the stages' entries, each step rounded to fp32 as the definition has it
 * (fmt_vq.h), what is absent left out; and outlier columns. Codes are read where they are wanted, through L1: with vectors down the
 * rows a lane's eight columns are codes of eight lanes. Targets: sm_80 sm_90a. */
#include "unpack_tile.cuh"

static __device__ __forceinline__ int rq_unpack_code_bits(int64_t n_codes) {
    return n_codes <= 256 ? 8 : n_codes <= 4096 ? 12 : 16;
}

template <int VEC, bool OUT> struct rq_unpack_vq {
    const rq_unpack_job &job;
    const int rb, kb, lane;
    const rq_unpack_outliers outliers;

    __device__ __forceinline__ rq_unpack_vq(const rq_unpack_job &job_, int rb_, int kb_, int lane_)
        : job(job_), rb(rb_), kb(kb_), lane(lane_), outliers(job_, kb_) {}
    __device__ __forceinline__ int words_of(int stage) const {
        return 64 / VEC * rq_unpack_code_bits(job.t.n_codes[stage]) / 32;
    }
    /* A lane's word of this tile: parts of 16 bytes a lane, then of 8, then of 4 (fmt_tile.h). */
    __device__ __forceinline__ uint32_t word(int of_lane, int n) const {
        const int words = words_of(0) + (job.t.n_stage > 1 ? words_of(1) : 0), left = words - n / 4 * 4;
        int part = n / 4 * 4, size = left >= 4 ? 4 : left >= 2 && n - part < 2 ? 2 : 1;
        if (size == 1 && left == 3) part += 2;
        const uint8_t *tile = job.from + job.t.tiles + ((int64_t)rb * job.t.n_kb + kb) * job.t.tile_bytes;
        return __ldg(reinterpret_cast<const uint32_t *>(tile) + part * 32 + of_lane * size + n - part);
    }
    __device__ __forceinline__ uint32_t code(int of_lane, int n, int stage) const {
        const int bits = rq_unpack_code_bits(job.t.n_codes[stage]), at = n * bits, offset = at % 32;
        const int first = (stage ? words_of(0) : 0) + at / 32;
        uint32_t v = word(of_lane, first) >> offset;
        if (offset + bits > 32) v |= word(of_lane, first + 1) << (32 - offset);
        return v & ((1u << bits) - 1u);
    }
    /* The entries of stage `stage` for the lane's 8 columns. */
    __device__ __forceinline__ void entries(float (&v)[8], int s, int lower, int stage) const {
        const rq_tile_layout &t = job.t;
        const int64_t first = t.n_book == 1 ? 0 : kb / (t.book_cols / RQ_TILE_COLS) * t.n_codes[stage];
        const uint8_t *book = job.from + (stage ? t.book_2 : t.book);
        if constexpr (OUT) {
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                const int of_lane = e / 2 * 8 + lane % 4 * 2 + e % 2;
                v[e] = rq_unpack_half(book, (first + code(of_lane, 2 * s + lower, stage)) * 8 + lane / 4);
            }
        } else {
#pragma unroll
            for (int i = 0; i < 8 / VEC; ++i)
                rq_unpack_entry<VEC>(v + i * VEC, book, first + code(lane, (2 * s + lower) * (8 / VEC) + i, stage));
        }
    }
    __device__ __forceinline__ void values(float (&v)[8], int s, int lower) const {
        const rq_tile_layout &t = job.t;
        const int row = lane / 4 + 8 * lower, col = kb * RQ_TILE_COLS + s * 32 + lane % 4 * 8;
        entries(v, s, lower, 0);
        if (t.n_stage > 1) {
            float more[8];
            entries(more, s, lower, 1);
#pragma unroll
            for (int e = 0; e < 8; ++e) v[e] = __fadd_rn(v[e], more[e]);
        }
        if (!t.no_scales) {
            const float scale = rq_unpack_half(job.from + t.scales, rq_unpack_group(t, rb, kb, s) * RQ_TILE_ROWS + row);
#pragma unroll
            for (int e = 0; e < 8; ++e) v[e] = __fmul_rn(scale, v[e]);
        }
        if (t.columns) {
            const uint8_t *columns = job.from + t.columns_at;
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                const int64_t j = min((int64_t)col + e, t.n_in - 1);
                v[e] = __fadd_rn(__fmul_rn(v[e], rq_unpack_half(columns, j)), rq_unpack_half(columns, t.n_in + j));
            }
        }
        outliers.put(v, job, rb, row, col);
    }
};

template <int VEC, bool OUT> static const void *function(rq_act act) {
    return act == RQ_ACT_F16 ? (const void *)rq_unpack<rq_unpack_vq<VEC, OUT>, RQ_ACT_F16>
                             : (const void *)rq_unpack<rq_unpack_vq<VEC, OUT>, RQ_ACT_BF16>;
}
const void *rq_unpack_vq_function(const rq_cuda_gemv_desc *d) {
    return d->vec_out        ? function<8, true>(d->act)
           : d->vec_len == 8 ? function<8, false>(d->act)
                             : function<4, false>(d->act);
}

const char *rq_unpack_vq_refuse(const rq_cuda_gemv_desc *d) {
    const bool row = d->group == d->n_in;
    if (d->vec_out ? d->vec_len != 8 : d->vec_len != 4 && d->vec_len != 8)
        return "vectors have 4 or 8 columns, or 8 rows";
    if (d->n_stage != 1 && d->n_stage != 2) return "VQ has 1 or 2 stages";
    for (int s = 0; s < d->n_stage; ++s)
        if (d->n_codes[s] < 1 || d->n_codes[s] > 65536) return "a codebook has 1 to 65536 entries";
    if (d->group < 1 || d->group > d->n_in) return "a group has 1 to n_in columns";
    if (!row && (d->group % 32 != 0 || d->no_scales)) return "groups are multiples of 32 columns, or whole rows";
    if (d->book_cols < 1 || d->n_book != (d->n_in + d->book_cols - 1) / d->book_cols)
        return "there is a codebook for each book_cols columns";
    if (d->n_book > 1 && d->book_cols % RQ_TILE_COLS != 0) return "columns of one codebook are multiples of 128";
    return d->n_outlier < 0 || d->n_outlier > 16 ? "there are 0 to 16 outlier columns" : NULL;
}
