/* SPDX-License-Identifier: Apache-2.0 */
/* The search of codebook codes (host/round_ssvq.c and host/round_vq.c are the definitions) by one warp, for as many vectors as it has lanes for. Lane
 * row * D + r has component r of the vector of row `row`; D is the length of a vector, rounded up to 4, 8 or 16, with zeros past its end.
 *
 * With signs sigma, a code costs s c' M c' - 2 (M t) c', c' = sigma c. The lanes share out the codes, 32 apart; each tries its own for all rows, so an
 * entry is loaded once for all of them: coalesced, from L1, where the codebooks of 2 bits stay (256 entries of 8: 8 KiB). M is shared by the rows; in shared
 * memory its upper triangle is doubled, so that c' M c' takes d (d + 1) / 2 products. Equal costs go to the lower code, as on the CPU. */
#ifndef RQ_COMP_BOOK_PICK_CUH
#define RQ_COMP_BOOK_PICK_CUH
#include "comp_launch.cuh"
#include "rq_cuda_book.h"

constexpr unsigned RQ_ALL = 0xffffffffu;                 /* lanes */
enum { RQ_BOOK_ROUNDS_SSVQ = 3, RQ_BOOK_ROUNDS_VQ = 4 }; /* MAX_ROUNDS of round_ssvq.c and round_vq.c */

template <int D> struct rq_pick_shared {
    float metric[D][D]; /* the metric, times 2 above the diagonal */
    float linear[32];   /* 2 M t */
};

template <int D> struct rq_picked {
    float q;     /* s * what the code stands for, of this lane's component */
    int code[2]; /* of this lane's row */
    bool negative;
};

/* M[r][u] of the metric above. */
template <int D> static __device__ __forceinline__ float rq_metric_at(const rq_pick_shared<D> &m, int r, int u) {
    return r < u ? m.metric[u][r] : m.metric[r][u];
}

/* sum_u M[r][u] v_u, v being spread over the lanes of a row. */
template <int D> static __device__ __forceinline__ float rq_times_metric(const rq_pick_shared<D> &m, int d, float v) {
    const int r = threadIdx.x % D;
    float sum = 0;
#pragma unroll
    for (int u = 0; u < D; ++u) {
        const float other = __shfl_sync(RQ_ALL, v, u, D);
        if (u < d) sum = fmaf(rq_metric_at(m, r, u), other, sum);
    }
    return sum;
}

/* The metric's elements that a lane carries to shared memory, for the vector after this one. */
template <int D> struct rq_metric_part {
    enum { N = D * D < 32 ? 1 : D * D / 32 };
    float v[N];
    __device__ __forceinline__ void load(const float *metric, int d, bool diagonal) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int at = i * 32 + (int)(threadIdx.x % 32), r = at / D, u = at % D;
            v[i] = r < d && u < d && (r == u || !diagonal) ? metric[r * d + u] : 0.0f;
        }
    }
    __device__ __forceinline__ void store(rq_pick_shared<D> &m) const {
        __syncwarp();
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int at = i * 32 + (int)(threadIdx.x % 32), r = at / D, u = at % D;
            if (r < D) m.metric[r][u] = u > r ? 2 * v[i] : v[i];
        }
        __syncwarp();
    }
    /* As it is; the caller waits. */
    __device__ __forceinline__ void copy(float (*to)[D]) const {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int at = i * 32 + (int)(threadIdx.x % 32);
            if (at / D < D) to[at / D][at % D] = v[i];
        }
    }
};

/* The best code of each row, in every lane. negative: a bit a lane. */
template <int D, bool SIGNS>
static __device__ __forceinline__ void rq_search(int (&at)[32 / D], const rq_pick_shared<D> &m, const float *table,
                                                 int d, int k, int k_pad, unsigned negative, const float (&s)[32 / D]) {
    enum { ROWS = 32 / D };
    float best[ROWS], linear[ROWS][D];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        best[i] = INFINITY;
        at[i] = 0;
#pragma unroll
        for (int r = 0; r < D; ++r) linear[i][r] = m.linear[i * D + r];
    }
    for (int j = threadIdx.x % 32; j < k_pad; j += 32) {
        float c[D];
#pragma unroll
        for (int r = 0; r < D; ++r) c[r] = r < d ? table[r * k_pad + j] : 0.0f;
        float square = 0;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            float v[D], dot = 0;
#pragma unroll
            for (int r = 0; r < D; ++r) {
                v[r] = c[r];
                if (SIGNS) v[r] = __uint_as_float(__float_as_uint(c[r]) ^ (negative << (31 - i * D - r) & 0x80000000u));
                dot = fmaf(linear[i][r], v[r], dot);
            }
            if (SIGNS || i == 0) {
                square = 0;
#pragma unroll
                for (int r = 0; r < D; ++r) {
                    float y = 0;
#pragma unroll
                    for (int u = r; u < D; ++u) y = fmaf(m.metric[r][u], v[u], y);
                    square = fmaf(v[r], y, square);
                }
            }
            const float cost = fmaf(s[i], square, -dot);
            if (cost < best[i] && j < k) best[i] = cost, at[i] = j;
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            const float other = __shfl_xor_sync(RQ_ALL, best[i], step);
            const int other_at = __shfl_xor_sync(RQ_ALL, at[i], step);
            if (other < best[i] || (other == best[i] && other_at < at[i])) best[i] = other, at[i] = other_at;
        }
    }
}

/* at[] of this lane's row. */
template <int D> static __device__ __forceinline__ int rq_of_row(const int (&at)[32 / D]) {
    int mine = 0; /* a sum of masks: an index would send at[] to local memory */
#pragma unroll
    for (int i = 0; i < 32 / D; ++i) mine |= at[i] & -(int)((int)(threadIdx.x % 32) / D == i);
    return mine;
}

/* Flip the sign that lowers the cost most while one does, in the rows that are `active`; me = M (q - t). Whether this lane's row had any. */
template <int D>
static __device__ __forceinline__ bool rq_flip_signs(const rq_pick_shared<D> &m, int d, bool active, float *q, float me,
                                                     bool *negative) {
    const int r = threadIdx.x % D;
    const float own = m.metric[r][r];
    bool any = false;
    for (int turn = 0; turn < 2 * d; ++turn) {
        const float step = -2 * *q;
        /* Not fused: a weight that nothing weighs against (a dead feature's) gains exactly 0 by a flip, and keeps its sign. */
        float best = step * __fadd_rn(__fmul_rn(step, own), 2 * me);
        int at = r;
#pragma unroll
        for (int k = D / 2; k > 0; k /= 2) {
            const float other = __shfl_xor_sync(RQ_ALL, best, k);
            const int other_at = __shfl_xor_sync(RQ_ALL, at, k);
            if (other < best || (other == best && other_at < at)) best = other, at = other_at;
        }
        active = active && best < 0;
        if (!__any_sync(RQ_ALL, active)) break;
        const float taken = __shfl_sync(RQ_ALL, step, at, D);
        if (!active) continue;
        any = true;
        me = fmaf(taken, rq_metric_at(m, r, at), me);
        if (at == r) *q = -*q, *negative = !*negative;
    }
    return any;
}

/* Codes for the targets t under scale s, both of this lane's row. All lanes of the warp call it. */
template <int D, bool SIGNS>
static __device__ __forceinline__ rq_picked<D> rq_pick(const rq_cuda_books &b, rq_pick_shared<D> &m, int which,
                                                       bool diagonal, float t, float s) {
    enum { ROWS = 32 / D };
    const int lane = threadIdx.x % 32, r = lane % D, d = b.d;
    const float *table[2] = {b.table[0] + (int64_t)which * d * b.k_pad[0],
                             b.n_stage > 1 ? b.table[1] + (int64_t)which * d * b.k_pad[1] : NULL};
    float scales[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) scales[i] = __shfl_sync(RQ_ALL, s, i * D);
    int at[ROWS];
    rq_picked<D> p = {0, {0, 0}, SIGNS && t < 0};
    const float mt = rq_times_metric(m, d, t);
    m.linear[lane] = 2 * mt;
    __syncwarp();
    if (SIGNS) {
        bool done = false;
        int before = -1;
        for (int round = 0; round < RQ_BOOK_ROUNDS_SSVQ; ++round) {
            rq_search<D, true>(at, m, table[0], d, b.k[0], b.k_pad[0], __ballot_sync(RQ_ALL, p.negative), scales);
            const int found = rq_of_row<D>(at);
            done = done || found == before; /* the flips were found with this code */
            if (!done) {
                before = p.code[0] = found;
                const float v = r < d ? table[0][r * b.k_pad[0] + found] : 0.0f;
                p.q = s * (p.negative ? -v : v);
            }
            if (diagonal) break;
            const float me = rq_times_metric(m, d, p.q) - mt;
            done = !rq_flip_signs(m, d, !done, &p.q, me, &p.negative) || done;
            if (__all_sync(RQ_ALL, done)) break;
        }
        return p;
    }
    rq_search<D, false>(at, m, table[0], d, b.k[0], b.k_pad[0], 0, scales);
    p.code[0] = rq_of_row<D>(at);
    float v[2] = {r < d ? table[0][r * b.k_pad[0] + p.code[0]] : 0.0f, 0};
    bool done = b.n_stage < 2;
    for (int round = 0; b.n_stage > 1 && round < RQ_BOOK_ROUNDS_VQ; ++round) {
        /* One stage with the other held, in turns, until neither changes. */
        const int was[2] = {p.code[0], p.code[1]};
#pragma unroll
        for (int k = 1; k >= 0; --k) {
            const float rest = rq_times_metric(m, d, t - s * v[1 - k]);
            __syncwarp();
            m.linear[lane] = 2 * rest;
            __syncwarp();
            rq_search<D, false>(at, m, table[k], d, b.k[k], b.k_pad[k], 0, scales);
            if (!done) {
                p.code[k] = rq_of_row<D>(at);
                v[k] = r < d ? table[k][r * b.k_pad[k] + p.code[k]] : 0.0f;
            }
        }
        done = done || (round > 0 && p.code[0] == was[0] && p.code[1] == was[1]);
        if (__all_sync(RQ_ALL, done)) break;
    }
    p.q = s * (v[0] + v[1]);
    return p;
}

/* An outlier column: 8-bit steps. */
static __device__ __forceinline__ float rq_nearest_step(float w, float step) {
    const float v = step > 0 ? rintf(__fdiv_rn(w, step)) : 0.0f;
    return v < -127 ? -127.0f : v > 127 ? 127.0f : v;
}
#endif
