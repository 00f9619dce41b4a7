/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors down the outputs (host/comp_lines.c is the definition): what the kernels of comp_lines_sm80.cu share. A thread block has the lines of one tile, up
 * to 32 rows, lane line * D + e having row e of a line in each of its 8 warps; D is the length of a vector, rounded up to 4, 8 or 16. All rows of a column pay the same
 * for an error, so a code costs |c|^2 - 2 t c in the units of the column, for those rows that there are.
 *
 * Few lines are open at a time, a d-th of the rows, and columns come one after the other: so it is the codes that are shared out, 256 of them at a time over
 * the block, each thread trying its own for all lines. Two minima over a warp (redux.sync) and the 8 of the warps, in shared memory, give the best; equal costs go to
 * the lower code, as on the CPU. Every warp then knows the codes of all lines.
 *
 * The open columns are in registers: a warp has 4 of the rows, a lane 4 neighbouring columns of them, so that a row of U, T or H is one conflict-free
 * 16-byte load. */
#ifndef RQ_COMP_LINES_CUH
#define RQ_COMP_LINES_CUH
#include "comp_launch.cuh"
#include "rq_cuda_book.h"

enum { RQ_LINES_WARPS = 8, RQ_LINES_THREADS = 32 * RQ_LINES_WARPS, RQ_LINES_OWN = 4 /* rows of a warp */ };
enum { RQ_LINES_ROUNDS = 4 /* MAX_ROUNDS of host/round_vq.c */ };
constexpr unsigned RQ_LINES_ALL = 0xffffffffu; /* lanes */
static_assert(RQ_LINES_WARPS * RQ_LINES_OWN == 32, "a lane for each row");
static_assert(RQ_COMP_BLOCK == 32 * 4, "the lanes of a warp cover a block");

/* Halves are used in turns, so that one barrier is enough between writing and reading. */
template <int D> struct rq_lines_shared {
    float column[2][32]; /* the open column */
    float target[RQ_LINES_WARPS][32];
    uint2 least[2][RQ_LINES_WARPS][32 / D]; /* of the codes of a warp: cost and code */
};

/* Floats in the order of unsigned numbers. */
static __device__ __forceinline__ unsigned rq_ordered(float v) {
    const unsigned bits = __float_as_uint(v);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

/* Row of the tile's lane `lane`, or -1. */
template <int D> static __device__ __forceinline__ int64_t rq_line_row(const rq_cuda_line_tile &tile, int d, int lane) {
    return lane / D < tile.n_lines && lane % D < tile.tall ? tile.row0 + lane / D * d + lane % D : -1;
}

/* 4 rows of a block of columns from m[.][n], and to the shared column `c` of it. */
template <int D> struct rq_lines_open {
    float v[RQ_LINES_OWN][4];
    __device__ __forceinline__ void load(const float *m, const rq_cuda_books &k, const rq_cuda_line_tile &tile,
                                         int64_t col0, int width) {
        const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * RQ_LINES_OWN;
#pragma unroll
        for (int r = 0; r < RQ_LINES_OWN; ++r) {
            const int64_t row = rq_line_row<D>(tile, k.d, first + r);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int c = lane * 4 + i;
                v[r][i] = row >= 0 && c < width ? m[row * k.n + col0 + c] : 0.0f;
            }
        }
    }
    __device__ __forceinline__ void publish(float *column, int c) const {
        if ((int)(threadIdx.x % 32) != c / 4) return;
        float own[RQ_LINES_OWN];
#pragma unroll
        for (int r = 0; r < RQ_LINES_OWN; ++r)
            own[r] = c % 4 < 2 ? (c % 4 ? v[r][1] : v[r][0]) : (c % 4 == 2 ? v[r][2] : v[r][3]);
        *reinterpret_cast<float4 *>(&column[threadIdx.x / 32 * RQ_LINES_OWN]) = {own[0], own[1], own[2], own[3]};
    }
    /* v += x m[c][.], lane r having x of row r. */
    __device__ __forceinline__ void add(float x, const float *row_of_m) {
        const float4 m4 = *reinterpret_cast<const float4 *>(&row_of_m[threadIdx.x % 32 * 4]);
        const float mk[4] = {m4.x, m4.y, m4.z, m4.w};
#pragma unroll
        for (int r = 0; r < RQ_LINES_OWN; ++r) {
            const float xr = __shfl_sync(RQ_LINES_ALL, x, threadIdx.x / 32 * RQ_LINES_OWN + r);
#pragma unroll
            for (int i = 0; i < 4; ++i) v[r][i] = fmaf(xr, mk[i], v[r][i]);
        }
    }
};

/* The nearest of k entries to the target of each line, for this lane's; t is this lane's component of its line's, 0 where it does not count. `count`
 * components do. All threads of the block call it, *turn changes. */
template <int D>
static __device__ __forceinline__ int rq_nearest_entry(rq_lines_shared<D> &m, int *turn, const float *table, int count,
                                                       int k, int k_pad, float t) {
    enum { LINES = 32 / D };
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float target[LINES][D], best[LINES];
    int at[LINES];
    __syncwarp();
    m.target[warp][lane] = t;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < LINES; ++i) {
        best[i] = INFINITY;
        at[i] = 0;
#pragma unroll
        for (int r = 0; r < D; r += 4) {
            const float4 v = *reinterpret_cast<const float4 *>(&m.target[warp][i * D + r]);
            target[i][r] = v.x, target[i][r + 1] = v.y, target[i][r + 2] = v.z, target[i][r + 3] = v.w;
        }
    }
    for (int j = threadIdx.x; j < k; j += RQ_LINES_THREADS) {
        float c[D], square = 0;
#pragma unroll
        for (int r = 0; r < D; ++r) {
            c[r] = r < count ? table[r * k_pad + j] : 0.0f;
            square = fmaf(c[r], c[r], square);
        }
#pragma unroll
        for (int i = 0; i < LINES; ++i) {
            float dot = 0;
#pragma unroll
            for (int r = 0; r < D; ++r) dot = fmaf(target[i][r], c[r], dot);
            const float cost = fmaf(-2.0f, dot, square);
            if (cost < best[i]) best[i] = cost, at[i] = j;
        }
    }
#pragma unroll
    for (int i = 0; i < LINES; ++i) {
        const unsigned cost = rq_ordered(best[i]), low = __reduce_min_sync(RQ_LINES_ALL, cost),
                       code = __reduce_min_sync(RQ_LINES_ALL, cost == low ? (unsigned)at[i] : ~0u);
        if (lane == 0) m.least[*turn][warp][i] = {low, code};
    }
    __syncthreads();
    uint2 least = m.least[*turn][0][lane / D];
#pragma unroll
    for (int i = 1; i < RQ_LINES_WARPS; ++i) {
        const uint2 other = m.least[*turn][i][lane / D];
        if (other.x < least.x || (other.x == least.x && other.y < least.y)) least = other;
    }
    *turn ^= 1;
    return (int)least.y;
}

struct rq_line_picked {
    float v; /* what the code stands for without scale and bias, of this lane's row */
    int code[2];
};

/* Codes for the targets t, in units of the column; idle: this lane has no line. All threads of the block call it. */
template <int D>
static __device__ __forceinline__ rq_line_picked rq_pick_lines(const rq_cuda_books &b, rq_lines_shared<D> &m, int *turn,
                                                               int which, int count, bool idle, float t) {
    const int e = threadIdx.x % D;
    const float *table[2] = {b.table[0] + (int64_t)which * b.d * b.k_pad[0],
                             b.n_stage > 1 ? b.table[1] + (int64_t)which * b.d * b.k_pad[1] : NULL};
    rq_line_picked p = {0, {rq_nearest_entry<D>(m, turn, table[0], count, b.k[0], b.k_pad[0], t), 0}};
    float v[2] = {e < b.d ? table[0][e * b.k_pad[0] + p.code[0]] : 0.0f, 0};
    bool done = idle;
    for (int round = 0; b.n_stage > 1 && round < RQ_LINES_ROUNDS; ++round) {
        /* One stage with the other held, in turns, until neither changes. All warps see the same, and leave together. */
        const int was[2] = {p.code[0], p.code[1]};
#pragma unroll
        for (int s = 1; s >= 0; --s) {
            const float rest = e < count ? t - v[1 - s] : 0.0f;
            const int found = rq_nearest_entry<D>(m, turn, table[s], count, b.k[s], b.k_pad[s], rest);
            if (!done) {
                p.code[s] = found;
                v[s] = e < b.d ? table[s][e * b.k_pad[s] + found] : 0.0f;
            }
        }
        done = done || (round > 0 && p.code[0] == was[0] && p.code[1] == was[1]);
        if (__all_sync(RQ_LINES_ALL, done)) break;
    }
    p.v = v[0] + v[1];
    return p;
}

/* The block of a matrix of columns at col0, zeros past its width. */
static __device__ __forceinline__ void rq_lines_square(float (*to)[RQ_COMP_BLOCK], const float *from, int64_t n,
                                                       int64_t col0, int width) {
    for (int i = threadIdx.x; i < RQ_COMP_BLOCK * RQ_COMP_BLOCK; i += RQ_LINES_THREADS) {
        const int r = i / RQ_COMP_BLOCK, c = i % RQ_COMP_BLOCK;
        to[r][c] = r < width && c < width ? from[(col0 + r) * n + col0 + c] : 0.0f;
    }
}
#endif
