/* SPDX-License-Identifier: Apache-2.0 */
/* SSVQ for unpack_tile.cuh: w = scale (+- book_scale magnitude), each product rounded to fp32 as the definition has it (fmt_ssvq.h), and outlier
 * columns from their int8 weights. The codebook is read through L1, where it stays. Targets: sm_80 sm_90a. */
#include "unpack_tile.cuh"

template <int VEC> struct rq_unpack_ssvq {
    const rq_unpack_job &job;
    const int rb, kb, lane;
    uint32_t codes[4], signs[2]; /* codes: of vectors of 8 two words */
    const uint8_t *book, *upper; /* upper: what the lane's codes have beyond 8 bits */
    float book_scale;
    const rq_unpack_outliers outliers;

    __device__ __forceinline__ rq_unpack_ssvq(const rq_unpack_job &job_, int rb_, int kb_, int lane_)
        : job(job_), rb(rb_), kb(kb_), lane(lane_), outliers(job_, kb_) {
        const rq_tile_layout &t = job.t;
        const uint8_t *from = job.from + t.tiles + ((int64_t)rb * t.n_kb + kb) * t.tile_bytes;
        const uint4 v = ptx_load_once16(from + lane * 16);
        codes[0] = v.x, codes[1] = v.y, codes[2] = v.z, codes[3] = v.w;
        const uint2 more = VEC == 8 ? make_uint2(v.z, v.w) : ptx_load_once8(from + 512 + lane * 8);
        signs[0] = more.x, signs[1] = more.y;
        const int which = t.n_book == 1 ? 0 : kb / (int)(t.book_cols / RQ_TILE_COLS);
        upper = from + (VEC == 8 ? 512 : 768) + lane * (8 / VEC) * high_bits();
        const int n_codes = t.code_bits <= 8 ? 256 : 1 << t.code_bits;
        book = job.from + t.book + (int64_t)which * n_codes * VEC * (t.book_u8 ? 1 : 2);
        book_scale = __ldg(reinterpret_cast<const float *>(job.from + t.book_scales) + rb * t.n_book + which);
    }
    __device__ __forceinline__ int high_bits() const {
        return job.t.code_bits <= 8 ? 0 : job.t.code_bits <= 10 ? 2 : 4;
    }
    __device__ __forceinline__ uint32_t code(int s, int lower, int vector) const {
        const int j = VEC == 8 ? s / 2 : s, b = VEC == 8 ? 2 * (s % 2) + lower : 2 * lower + vector;
        const uint32_t byte = codes[j] >> 8 * b & 0xffu;
        const int high = high_bits();
        if (high == 0) return byte;
        const int at = high == 4  ? 32 * (j / 2) + 8 * b + 4 * (j % 2)
                       : VEC == 4 ? 8 * b + 2 * j
                                  : 4 * j + 8 * (b % 2) + b / 2 * 2;
        return byte | (__ldg(upper + at / 8) >> at % 8 & ((1u << high) - 1u)) << 8;
    }
    /* The signs of a pair of columns: bits 0 and 16. */
    __device__ __forceinline__ uint32_t sign_pair(int s, int lower, int pair) const {
        return signs[s / 2] >> (15 - 4 * (s % 2) - 2 * lower - pair / 2 - pair % 2 * 8);
    }
    /* The 8 magnitudes of a lane's columns: an entry of 8, or two of 4, each by one load. */
    __device__ __forceinline__ void magnitudes(float (&m)[8], int s, int lower) const {
        if (job.t.book_u8) {
            const uint32_t *words = reinterpret_cast<const uint32_t *>(book);
            uint2 w;
            if (VEC == 8)
                w = __ldg(reinterpret_cast<const uint2 *>(book) + code(s, lower, 0));
            else
                w = make_uint2(__ldg(words + code(s, lower, 0)), __ldg(words + code(s, lower, 1)));
#pragma unroll
            for (int e = 0; e < 8; ++e) m[e] = (float)((e < 4 ? w.x : w.y) >> e % 4 * 8 & 0xffu);
            return;
        }
#pragma unroll
        for (int i = 0; i < 8 / VEC; ++i) rq_unpack_entry<VEC>(m + i * VEC, book, code(s, lower, i));
    }
    __device__ __forceinline__ void values(float (&v)[8], int s, int lower) const {
        const rq_tile_layout &t = job.t;
        const int row = lane / 4 + 8 * lower;
        const float scale = rq_unpack_half(job.from + t.scales, rq_unpack_group(t, rb, kb, s) * RQ_TILE_ROWS + row);
        magnitudes(v, s, lower);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const float size = __fmul_rn(book_scale, v[e]);
            v[e] = __fmul_rn(scale, sign_pair(s, lower, e / 2) >> e % 2 * 16 & 1u ? -size : size);
        }
        outliers.put(v, job, rb, row, kb * RQ_TILE_COLS + s * 32 + lane % 4 * 8);
    }
};

template <int VEC> static const void *function(rq_act act) {
    return act == RQ_ACT_F16 ? (const void *)rq_unpack<rq_unpack_ssvq<VEC>, RQ_ACT_F16>
                             : (const void *)rq_unpack<rq_unpack_ssvq<VEC>, RQ_ACT_BF16>;
}
const void *rq_unpack_ssvq_function(const rq_cuda_gemv_desc *d) {
    return d->vec_len == 8 ? function<8>(d->act) : function<4>(d->act);
}
