/* SPDX-License-Identifier: Apache-2.0 */
/* A warp's rows of one block of columns, for the kernels that go through it vector by vector (comp_book_sm80.cu, comp_book_refine_sm80.cu). They lie in
 * shared memory; while a vector is looked at a lane is a component of a row (comp_book_pick.cuh), while it moves the others a lane is 4 columns. */
#ifndef RQ_COMP_BOOK_WARP_CUH
#define RQ_COMP_BOOK_WARP_CUH
#include "comp_book_pick.cuh"

enum { RQ_LANE_COLS = 4 };
static_assert(RQ_COMP_BLOCK == 32 * RQ_LANE_COLS, "the lanes of a warp cover a block");

template <int D> struct rq_shape {
    enum {
        ROWS = 32 / D,
        WARPS = D == 4 ? 4 : 8,
        STRIDE = RQ_COMP_BLOCK + D /* rows of a warp begin in banks of their own */
    };
};

template <int D> struct rq_warp_shared {
    float w[rq_shape<D>::ROWS][rq_shape<D>::STRIDE];
    float x[32], y[32]; /* [row][component], 0 where there is none */
    rq_pick_shared<D> pick;
};

/* w -= x U - y T for all columns of a block, x and y those of one span whose component 0 has row `at` of U and T; PACKED: components that `lanes` lacks have
 * no row. t may be NULL. Columns before the span, which are done, change too and are not looked at again. */
template <int D, bool PACKED>
static __device__ __forceinline__ void rq_propagate(rq_warp_shared<D> &m, const float (*u)[RQ_COMP_BLOCK],
                                                    const float (*t)[RQ_COMP_BLOCK], unsigned lanes, int at) {
    enum { ROWS = rq_shape<D>::ROWS };
    const int c0 = (int)(threadIdx.x % 32) * RQ_LANE_COLS;
    float4 w[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) w[i] = *reinterpret_cast<const float4 *>(&m.w[i][c0]);
#pragma unroll
    for (int k = 0; k < D; ++k) {
        if (!(lanes >> k & 1)) continue;
        const int row = PACKED ? at++ : at + k;
        const float4 uk = *reinterpret_cast<const float4 *>(&u[row][c0]);
        float4 tk = {};
        if (t) tk = *reinterpret_cast<const float4 *>(&t[row][c0]);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const float x = -m.x[i * D + k];
            w[i] = {fmaf(x, uk.x, w[i].x), fmaf(x, uk.y, w[i].y), fmaf(x, uk.z, w[i].z), fmaf(x, uk.w, w[i].w)};
            if (!t) continue;
            const float y = m.y[i * D + k];
            w[i] = {fmaf(y, tk.x, w[i].x), fmaf(y, tk.y, w[i].y), fmaf(y, tk.z, w[i].z), fmaf(y, tk.w, w[i].w)};
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) *reinterpret_cast<float4 *>(&m.w[i][c0]) = w[i];
}
#endif
