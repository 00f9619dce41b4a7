/* SPDX-License-Identifier: Apache-2.0 */
/* SSVQ with byte magnitudes on int8 activations: the tiles of gemv_ssvq.cuh, the same look-ups, integer tensor cores.
 *
 * A weight is s m with m = 0..255, and no byte holds all of -255..255. But sum s m x = sum m x - 2 sum over the negative ones of m x, and
 * both are products of bytes without a sign and bytes with one, which mma.m16n8k32 takes. The first needs nothing but the look-up. For the
 * second the signs of four weights become a mask of bytes, a shift and a PRMT that replicates sign bits, and one AND leaves what is negative.
 * A second mma costs less here than magnitudes of 7 bits would.
 *
 * Exactness: what a warp sums is int32, at most 255 * 128 * 65,536 columns. A scale a row: these sums become floats at the end of a row
 * block, and are added as such: still exact while they are below 2^24. With group scales the sum of a group, at most 128 columns
 * at a time, is exact as a float. The scales come after: of row or group, codebook, token. In outlier columns x is zero for the tiles, and
 * int8 weights times int8 x are added in fp32 before the token's scale. */
#ifndef RQ_GEMV_SSVQ_S8_CUH
#define RQ_GEMV_SSVQ_S8_CUH
#include "gemv_ssvq.cuh"

/* ACT: of y, bias and residual. STEPS 0 sums integers in the registers of acc; it has one codebook. */
template <int VEC_, int ACT_, int STEPS_> struct rq_gemv_ssvq_s8_tiles : rq_gemv_ssvq_tiles<VEC_, ACT_, STEPS_, true> {
    typedef rq_gemv_ssvq_tiles<VEC_, ACT_, STEPS_, true> base;
    typedef typename base::tile tile;
    typedef typename base::side side;
    static constexpr int ROWS = base::ROWS, STEPS = STEPS_;
    using base::base;

    __device__ __forceinline__ void edit_x(const rq_gemv_job &job, uint8_t *x, int kb0, int kb1) const {
        base::template take_outliers<int8_t>(x, kb0, kb1,
                                             [&job](size_t i) { return (float)static_cast<const int8_t *>(job.x)[i]; });
    }

    /* The fragments of a step, register 2 c + H of columns 4 c .. 4 c + 3 of row lane / 4 + 8 H: all magnitudes, and those with a minus. */
    template <int S, int H>
    __device__ __forceinline__ void row(uint32_t (&all)[4], uint32_t (&minus)[4], const tile &t, int r) const {
        constexpr int LEFT = S % 2 * 4 + H * 2;
        const uint2 u = base::template bytes<S, H>(t, r);
        const uint32_t w = base::template signs<S>(t, r);
        /* Byte k of the mask is the sign of column k, that of byte {1, 3, 0, 2}[k] of the shifted word. */
        all[H] = u.x, minus[H] = u.x & ptx_prmt(w << LEFT, 0, 0xa8b9);
        all[2 + H] = u.y, minus[2 + H] = u.y & ptx_prmt(w << (LEFT + 1), 0, 0xa8b9);
    }

    static __device__ __forceinline__ void take(int (&all)[4], int (&minus)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) all[i] -= 2 * minus[i], minus[i] = 0;
    }
    template <int S, bool AT_ONCE, int HALVES>
    __device__ __forceinline__ void step(int (&all)[ROWS * HALVES][4], int (&minus)[ROWS * HALVES][4], const tile &t,
                                         const rq_gemv_x_bytes (&x)[HALVES]) const {
        uint2 b[HALVES];
#pragma unroll
        for (int h = 0; h < HALVES; ++h) b[h] = x[h].step(S);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            uint32_t m[4], n[4];
            row<S, 0>(m, n, t, r);
            row<S, 1>(m, n, t, r);
#pragma unroll
            for (int h = r * HALVES; h < (r + 1) * HALVES; ++h) {
                const uint2 v = b[h - r * HALVES];
                ptx_mma_u8s8(all[h], m[0], m[1], m[2], m[3], v.x, v.y);
                ptx_mma_u8s8(minus[h], n[0], n[1], n[2], n[3], v.x, v.y);
                if (AT_ONCE) take(all[h], minus[h]);
            }
        }
    }
    /* At the end of a group's part of the tile, which step S is: acc += scale * sums, and new ones begin. */
    template <int S, int HALVES>
    __device__ __forceinline__ void end_steps(float (&acc)[ROWS * HALVES][4], int (&all)[ROWS * HALVES][4],
                                              int (&minus)[ROWS * HALVES][4], const side &of, int d) const {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const float upper = base::scale(of, r, d, S, 0), lower = base::scale(of, r, d, S, 1);
#pragma unroll
            for (int h = r * HALVES; h < (r + 1) * HALVES; ++h) {
                take(all[h], minus[h]);
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    acc[h][i] = fmaf(i < 2 ? upper : lower, (float)all[h][i], acc[h][i]), all[h][i] = 0;
            }
        }
    }

    template <int HALVES>
    __device__ __forceinline__ void multiply(float (&acc)[ROWS * HALVES][4], const tile &t, const side &of_batch, int d,
                                             const rq_gemv_x_bytes (&x)[HALVES]) const {
        /* What is negative is taken away once a tile, or after each mma where there are no registers to wait. */
        constexpr bool AT_ONCE = HALVES == 2 && VEC_ == 4;
        const side &of = STEPS == 1 ? t.own : of_batch;
        int all[ROWS * HALVES][4] = {}, minus[ROWS * HALVES][4] = {};
#pragma unroll
        for (int h = 0; h < ROWS * HALVES; ++h)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (STEPS == 0) all[h][i] = __float_as_int(acc[h][i]);
        step<0, AT_ONCE>(all, minus, t, x);
        if (STEPS == 1) end_steps<0, HALVES>(acc, all, minus, of, d);
        step<1, AT_ONCE>(all, minus, t, x);
        if (STEPS == 1) end_steps<1, HALVES>(acc, all, minus, of, d);
        step<2, AT_ONCE>(all, minus, t, x);
        if (STEPS == 1) end_steps<2, HALVES>(acc, all, minus, of, d);
        step<3, AT_ONCE>(all, minus, t, x);
        if (STEPS) end_steps<3, HALVES>(acc, all, minus, of, d);
#pragma unroll
        for (int h = 0; STEPS == 0 && h < ROWS * HALVES; ++h) {
            take(all[h], minus[h]);
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[h][i] = __int_as_float(all[h][i]);
        }
    }

    template <int N> __device__ __forceinline__ void end_rows(float (&acc)[N][4], int rb) const {
        if (STEPS == 0)
#pragma unroll
            for (int h = 0; h < N; ++h)
#pragma unroll
                for (int i = 0; i < 4; ++i) acc[h][i] = (float)__float_as_int(acc[h][i]);
        base::end_rows(acc, rb);
    }
    __device__ __forceinline__ float correct(float sum, const rq_gemv_job &job, int rb, int row, int token) const {
        /* Rounded here, whatever is added to it. */
        return __fmul_rn(__ldcg(job.x_scale + token), base::with_outliers(base::scaled(sum, rb, row), rb, row, token));
    }
};
template <int VEC, int ACT, int STEPS, int HALVES> struct rq_gemv_x_of<rq_gemv_ssvq_s8_tiles<VEC, ACT, STEPS>, HALVES> {
    typedef rq_gemv_x_bytes type;
};

/* The kernel of a description; steps 4 is for up to 8 tokens. */
template <int VEC, int ACT> static const void *rq_gemv_ssvq_s8_function(bool two_halves, int steps) {
    typedef rq_gemv_ssvq_s8_tiles<VEC, ACT, 0> row;
    typedef rq_gemv_ssvq_s8_tiles<VEC, ACT, 4> tiles;
    typedef rq_gemv_ssvq_s8_tiles<VEC, ACT, 1> each;
    if (steps == 0) return two_halves ? (const void *)rq_gemv<row, 2> : (const void *)rq_gemv<row, 1>;
    if (steps == 1) return two_halves ? (const void *)rq_gemv<each, 2> : (const void *)rq_gemv<each, 1>;
    return two_halves ? NULL : (const void *)rq_gemv<tiles, 1>;
}
template <int VEC> static const void *rq_gemv_ssvq_s8_function(const rq_cuda_gemv_desc *d, int steps) {
    return d->act == RQ_ACT_F16 ? rq_gemv_ssvq_s8_function<VEC, RQ_ACT_F16>(d->n_tok > 8, steps)
                                : rq_gemv_ssvq_s8_function<VEC, RQ_ACT_BF16>(d->n_tok > 8, steps);
}
#endif
