/* SPDX-License-Identifier: Apache-2.0 */
/* The skeleton of the dequantize kernels: W as a dense row-major matrix of fp16 or bfloat16, from the tiles of the GEMV kernels (fmt_tile.h).
 * Each weight is the fp32 number of its format's definition, rounded once. What a tile is made of is the format's, F:
 *
 *   F(job, rb, kb, lane)    loads what the lane holds of tile (rb, kb)
 *   values(v, s, lower)     the weights of row lane / 4 + 8 lower, columns 8 (lane % 4) .. + 7 of the tile's s-th step of 32 columns
 *
 * A warp takes a tile. Its lanes write 16 bytes each, 64 neighbouring ones a row, so that sectors are written whole; the four steps of a
 * row follow each other and meet in the L2. What a row block reads is a few hundredths of what it writes: the writing is what takes time. */
#ifndef RQ_UNPACK_TILE_CUH
#define RQ_UNPACK_TILE_CUH
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ptx.cuh"
#include "unpack_variants.h"

/* Two weights as they lie in memory. */
template <int ACT> __device__ __forceinline__ uint32_t rq_unpack_pair(float low, float high) {
    if (ACT == RQ_ACT_F16) {
        const __half2 h = __floats2half2_rn(low, high);
        return *reinterpret_cast<const uint32_t *>(&h);
    }
    const __nv_bfloat162 b = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&b);
}

template <class F, int ACT> __global__ void __launch_bounds__(RQ_UNPACK_THREADS, 4) rq_unpack(const rq_unpack_job job) {
    const uint32_t tile = blockIdx.x * (RQ_UNPACK_THREADS / 32) + threadIdx.x / 32;
    const uint32_t n_kb = (uint32_t)job.t.n_kb, rb = tile / n_kb, kb = tile - rb * n_kb;
    const int lane = threadIdx.x % 32;
    if (rb >= job.t.n_rb) return;
    const F format(job, (int)rb, (int)kb, lane);
#pragma unroll
    for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
            float v[8];
            format.values(v, s, lower);
            uint32_t pairs[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) pairs[i] = rq_unpack_pair<ACT>(v[2 * i], v[2 * i + 1]);
            const int64_t row = (int64_t)rb * RQ_TILE_ROWS + lane / 4 + 8 * lower;
            const int64_t col = (int64_t)kb * RQ_TILE_COLS + s * 32 + lane % 4 * 8;
            if (row >= job.t.n_out || col >= job.t.n_in) continue;
            uint16_t *to = static_cast<uint16_t *>(job.to) + row * job.ld + col;
            if (job.wide && col + 8 <= job.t.n_in) {
                *reinterpret_cast<uint4 *>(to) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
            } else {
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    if (col + i < job.t.n_in) to[i] = (uint16_t)(pairs[i / 2] >> i % 2 * 16);
            }
        }
}

/* The scale's (or zero point's) place among those of a row block: groups are whole steps, or the row. */
__device__ __forceinline__ int64_t rq_unpack_group(const rq_tile_layout &t, int rb, int kb, int s) {
    const uint32_t group = t.n_group == 1 ? 0 : (uint32_t)(kb * 4 + s) / (uint32_t)(t.group / 32);
    return (int64_t)rb * t.n_group + min(group, (uint32_t)t.n_group - 1); /* beyond the row's end nothing is used */
}
__device__ __forceinline__ float rq_unpack_half(const uint8_t *array, int64_t i) {
    return __half2float(__ldg(reinterpret_cast<const __half *>(array) + i));
}

/* Outlier columns of a tile: their int8 weights with a scale each take the place of what the codes say. */
struct rq_unpack_outliers {
    uint32_t here; /* bit o: outlier column o is in this tile */

    static __device__ __forceinline__ int column(const rq_unpack_job &job, int o) {
        return __ldg(reinterpret_cast<const int32_t *>(job.from + job.t.outlier_cols) + o);
    }
    __device__ __forceinline__ rq_unpack_outliers(const rq_unpack_job &job, int kb) : here(0) {
        for (int o = 0; o < job.t.n_outlier; ++o) here |= (uint32_t)(column(job, o) / RQ_TILE_COLS == kb) << o;
    }
    /* Of row `row` of the tile, columns col .. col + 7 of the matrix. */
    __device__ __forceinline__ void put(float (&v)[8], const rq_unpack_job &job, int rb, int row, int col) const {
        for (uint32_t left = here; left; left &= left - 1) {
            const int o = __ffs((int)left) - 1, at = column(job, o) - col;
            if (at < 0 || at >= 8) continue;
            const int64_t i = (int64_t)rb * job.t.n_outlier + o;
            const float w = __ldg(reinterpret_cast<const float *>(job.from + job.t.outlier_scales) + i) *
                            (float)(int8_t)__ldg(job.from + job.t.outliers + i * RQ_TILE_ROWS + row);
#pragma unroll
            for (int e = 0; e < 8; ++e)
                if (e == at) v[e] = w;
        }
    }
};

/* An entry of VEC halves of a codebook. */
template <int VEC> __device__ __forceinline__ void rq_unpack_entry(float *m, const uint8_t *book, int64_t entry) {
    uint4 w = make_uint4(0, 0, 0, 0);
    if (VEC == 8) {
        w = __ldg(reinterpret_cast<const uint4 *>(book) + entry);
    } else {
        const uint2 half = __ldg(reinterpret_cast<const uint2 *>(book) + entry);
        w.x = half.x, w.y = half.y;
    }
    const uint32_t pairs[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int e = 0; e < VEC; ++e) m[e] = ptx_float_of_f16(pairs[e / 2] >> e % 2 * 16);
}
#endif
