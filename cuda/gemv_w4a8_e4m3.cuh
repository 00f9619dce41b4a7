/* SPDX-License-Identifier: Apache-2.0 */
/* W4A8 with e4m3 activations for 1 to 16 tokens, as a format of gemv_tile.cuh: codes and x as halves (e4m3.cuh), fp32 sums. Tiles and levels
 * are those of int8 activations. */
#ifndef RQ_GEMV_W4A8_E4M3_CUH
#define RQ_GEMV_W4A8_E4M3_CUH
#include "gemv_w4a8.cuh"

template <int STEPS> struct rq_gemv_w4a8_e4m3_tiles : rq_gemv_w4a8_tiles<STEPS> {
    typedef rq_gemv_w4a8_tiles<STEPS> tiles;
    typedef typename tiles::tile tile;
    typedef typename tiles::side side;
    using tiles::a;
    using tiles::of_quad;
    __device__ __forceinline__ rq_gemv_w4a8_e4m3_tiles(const rq_gemv_w4a8_args &args, const rq_gemv_job &job,
                                                       uint8_t *at)
        : tiles(args, job, at) {}

    /* With one level the zero points, of row l / 4 in even lanes, of row l / 4 + 8 in odd ones. */
    __device__ __forceinline__ void load_side(side &to, int rb, int kb) const {
        const int lane = ptx_thread() % 32;
        if (STEPS == 0)
            to.level = ptx_load_side4(a.zeros + rb * RQ_TILE_ROWS + lane / 4 + lane % 2 * 8);
        else
            tiles::load_side(to, rb, kb);
    }

    template <int HALVES, class X>
    __device__ __forceinline__ void multiply(float (&acc)[HALVES][4], const tile &t, const side &of_batch, int d,
                                             const X (&x)[HALVES]) const {
        rq_w4a8_halves<STEPS> row[2];
        if (STEPS == 0) row[0].set_zero(of_quad(of_batch.level, 0)), row[1].set_zero(of_quad(of_batch.level, 1));
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            if (STEPS && s % (STEPS ? STEPS : 1) == 0) {
                const uint32_t both = STEPS == 1 ? of_quad(t.level, s) : of_quad(of_batch.level, d);
                row[0].set_level(both, 0), row[1].set_level(both, 1);
            }
            uint32_t h[2][4];
            row[0].of(h[0], t.w[2 * s]), row[1].of(h[1], t.w[2 * s + 1]);
#pragma unroll
            for (int half = 0; half < HALVES; ++half) {
                const uint4 b = x[half].step(s);
                ptx_mma_f16(acc[half], h[0][0], h[1][0], h[0][1], h[1][1], b.x, b.y);
                ptx_mma_f16(acc[half], h[0][2], h[1][2], h[0][3], h[1][3], b.z, b.w);
            }
        }
    }
    __device__ __forceinline__ float correct(float sum, const rq_gemv_job &job, int rb, int row, int token) const {
        return __fmul_rn(__fmul_rn(sum * RQ_E4M3_F16_UNIT, __ldg(a.scales + rb * RQ_TILE_ROWS + row)),
                         __ldcg(job.x_scale + token));
    }
};
template <int STEPS, int HALVES> struct rq_gemv_x_of<rq_gemv_w4a8_e4m3_tiles<STEPS>, HALVES> {
    typedef rq_gemv_x_e4m3 type;
};
template <int STEPS> struct rq_gemv_x_stride<rq_gemv_w4a8_e4m3_tiles<STEPS>> {
    static __device__ __forceinline__ int64_t of(const rq_gemv_w4a8_args &a) { return a.x_stride; }
};
#endif
