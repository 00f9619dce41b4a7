/* SPDX-License-Identifier: Apache-2.0 */
/* Grid codes for unpack_tile.cuh: w = scale (code - zero). An fp16 scale times an integer of 8 bits is exact in fp32, so that the rounding to
 * fp16 or bfloat16 is the only one. Targets: sm_80 sm_90a. */
#include "unpack_tile.cuh"

template <int BITS> struct rq_unpack_grid {
    const rq_unpack_job &job;
    const int rb, kb, row; /* lane / 4; its scale and that of row + 8 are neighbours */
    uint32_t w[BITS * 2];

    __device__ __forceinline__ rq_unpack_grid(const rq_unpack_job &job_, int rb_, int kb_, int lane)
        : job(job_), rb(rb_), kb(kb_), row(lane / 4) {
        const uint8_t *from = job.from + job.t.tiles + ((int64_t)rb * job.t.n_kb + kb) * job.t.tile_bytes;
#pragma unroll
        for (int p = 0; p < BITS / 2; ++p) {
            const uint4 v = ptx_load_once16(from + p * 512 + lane * 16);
            w[4 * p] = v.x, w[4 * p + 1] = v.y, w[4 * p + 2] = v.z, w[4 * p + 3] = v.w;
        }
        if (BITS == 3) {
            const uint2 v = ptx_load_once8(from + 512 + lane * 8);
            w[4] = v.x, w[5] = v.y;
        }
    }
    __device__ __forceinline__ uint32_t code(int s, int lower, int e) const {
        if (BITS == 8) return w[4 * s + 2 * lower + e / 4] >> e % 4 * 8 & 0xffu;
        if (BITS == 4) return w[2 * s + lower] >> 4 * (e / 2 + e % 2 * 4) & 0xfu;
        const uint32_t low = w[s] >> (e % 2 * 16 + 2 * (e / 2 + 4 * lower)) & 3u;
        return BITS == 2 ? low : low | (w[4 + s / 2] >> (s % 2 * 16 + 8 * lower + e) & 1u) << 2;
    }
    __device__ __forceinline__ void values(float (&v)[8], int s, int lower) const {
        const int64_t at = rq_unpack_group(job.t, rb, kb, s) * RQ_TILE_ROWS + 2 * row + lower;
        const float scale = rq_unpack_half(job.from + job.t.scales, at);
        const float zero = job.t.zeros ? rq_unpack_half(job.from + job.t.zero_points, at) : (float)(1 << (BITS - 1));
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] = scale * ((float)code(s, lower, e) - zero);
    }
};

template <int BITS> static const void *function(rq_act act) {
    return act == RQ_ACT_F16 ? (const void *)rq_unpack<rq_unpack_grid<BITS>, RQ_ACT_F16>
                             : (const void *)rq_unpack<rq_unpack_grid<BITS>, RQ_ACT_BF16>;
}
const void *rq_unpack_grid_function(const rq_cuda_gemv_desc *d) {
    switch (d->bits) {
    case 2: return function<2>(d->act);
    case 3: return function<3>(d->act);
    case 4: return function<4>(d->act);
    case 8: return function<8>(d->act);
    default: return NULL;
    }
}
