/* SPDX-License-Identifier: Apache-2.0 */
/* The skeleton of the GEMV kernels: y = W x for 1 to 16 tokens, W in tiles of 16 rows x 128 columns (fmt_tile.h). What a tile
 * is made of is the format's, F:
 *
 *   F::ACT                  rq_act of x and y, or RQ_GEMV_ACT_OF_JOB
 *   F::DEPTH                tiles of a batch: consecutive ones of a row block, all in the registers of one warp
 *   F::ROWS                 row blocks that a warp takes at once; a tile is that many tiles, below each other, with the same x
 *   F::args                 the kernel's second parameter
 *   F::tile, F::side        a lane's registers of a tile, and of what else the tiles of a batch need (scales)
 *   F(args, job, front)     front: shared memory of the format's own, job.shared_format bytes
 *   stage(kb0, kb1)         fills it, once, by all threads, for tile columns kb0 .. kb1 - 1; a barrier follows
 *   F::EDITS_X, edits_x(), edit_x(job, x, kb0, kb1)   where both are true, by all threads, when x is in shared memory
 *   rq_gemv_x_of<F, HALVES>  where x is not of ACT; rq_gemv_x_stride<F>
 *   F::SAVES_X              lanes of tokens that are not there load no x: where shared memory is what there is least of
 *   F::SUMS                 0, or 1, 2, 4: x[0].sums(run, half) has the sums of x over the run-th of so many runs of the tile's
 *                           columns, for the tokens of acc[half][0], [1]
 *   place(rb, kb)           where the batch that begins with tile (rb, kb) is; it may lie outside, then nothing is loaded
 *   load(tile, place, d)    starts the loads of the batch's tile d
 *   load_side(side, rb, kb) likewise, of the side data of all its tiles: of those that are there
 *   multiply(acc, tile, side, d, x)   adds the products of tile d to acc[half][4], accumulators of mma.m16n8k16 for tokens 8 half ..
 *                           (of ROWS row blocks: acc[r * halves + half]);
 *                           x[half].step(s) is the lane's 16 bytes of x in the tile's s-th step of 32 columns
 *   end_rows(acc, rb)       when all tiles of the warp in a row block are in acc: scales that hold for whole rows
 *   rq_gemv_sum<F>          int where acc holds the bits of integers after end_rows; otherwise float
 *   rq_gemv_sides<F>        where it says that x is the A operand, acc is what F likes, and end_rows leaves there: element 2 o + i of
 *                           acc[r * halves + half] is token 8 half + l / 4, row 8 o + 2 (l % 4) + i of lane l; and the 4-byte words 1, 2 of
 *                           each 16 bytes of x have changed places
 *   correct(sum, job, rb, row, token)   once an output: what does not go through the tiles; a float
 *
 * d is a constant wherever it is given. A batch costs addresses and branches once, its tiles only their loads and arithmetic.
 *
 * A block takes a part of the columns (job.split parts) and every (blocks / split)-th group of row blocks, so that it brings only its part
 * of x to shared memory, once. In a group, 2^log_warps warps share the tiles of a row block, each its own columns. A warp goes from batch to
 * batch, also over the ends of row blocks, without a barrier, and the loads of a batch start while the one before is multiplied: tile d
 * takes the registers of tile d. At the end of a row block all meet once, and the sums of the warps are added in a fixed order. Where
 * the columns are cut, the block that comes last to a row block adds the parts in their order, and leaves the workspace zero. No
 * result depends on who came last. */
#ifndef RQ_GEMV_TILE_CUH
#define RQ_GEMV_TILE_CUH
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "e4m3.cuh"
#include "gemv_variants.h"

template <class F> struct rq_gemv_sides {
    static constexpr bool X_IS_A = false;
    static constexpr int SUM_PITCH = RQ_GEMV_SUM_PITCH;
    static __host__ __device__ constexpr int accumulators(int halves) { return F::ROWS * halves; }
};

template <class F> struct rq_gemv_sum { typedef float type; };

template <int ACT> __device__ __forceinline__ float rq_gemv_get(const void *p, size_t i) {
    if (ACT == RQ_ACT_F16) return __half2float(static_cast<const __half *>(p)[i]);
    return __bfloat162float(static_cast<const __nv_bfloat16 *>(p)[i]);
}
template <int ACT> __device__ __forceinline__ void rq_gemv_put(void *p, size_t i, float v) {
    if (ACT == RQ_ACT_F16)
        static_cast<__half *>(p)[i] = __float2half_rn(v);
    else
        static_cast<__nv_bfloat16 *>(p)[i] = __float2bfloat16_rn(v);
}
enum { RQ_GEMV_ACT_OF_JOB = 2 };
template <int ACT> __device__ __forceinline__ float rq_gemv_get(const rq_gemv_job &job, const void *p, size_t i) {
    if (ACT != RQ_GEMV_ACT_OF_JOB) return rq_gemv_get<ACT>(p, i);
    return job.act == RQ_ACT_F16 ? rq_gemv_get<RQ_ACT_F16>(p, i) : rq_gemv_get<RQ_ACT_BF16>(p, i);
}
template <int ACT> __device__ __forceinline__ void rq_gemv_put(const rq_gemv_job &job, void *p, size_t i, float v) {
    if (ACT != RQ_GEMV_ACT_OF_JOB)
        rq_gemv_put<ACT>(p, i, v);
    else if (job.act == RQ_ACT_F16)
        rq_gemv_put<RQ_ACT_F16>(p, i, v);
    else
        rq_gemv_put<RQ_ACT_BF16>(p, i, v);
}
template <int ACT>
__device__ __forceinline__ void rq_gemv_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if (ACT == RQ_ACT_F16)
        ptx_mma_f16(c, a[0], a[1], a[2], a[3], b0, b1);
    else
        ptx_mma_bf16(c, a[0], a[1], a[2], a[3], b0, b1);
}

/* Sums of x over runs of columns: [tile column][RUNS][8 HALVES tokens] floats. A lane's are those of the tokens that its accumulators
 * are of; of tokens that are not there they are anything. */
template <int RUNS, int HALVES> struct rq_gemv_sums {
    static constexpr int OF_TILE = RUNS * HALVES * 8;
    const float *at;
    __device__ __forceinline__ void set(const float *sums) { at = sums + threadIdx.x % 4 * 2; }
    __device__ __forceinline__ rq_gemv_sums tile(int n) const { return {at + n * OF_TILE}; }
    __device__ __forceinline__ float2 of(int run, int half) const {
        return *reinterpret_cast<const float2 *>(at + (run * HALVES + half) * 8);
    }
    /* By mma with ones: accumulators of all rows are the sums, for 8 tokens at once. A warp a tile column; by all threads, between
     * barriers. */
    template <int ACT, class X>
    static __device__ __forceinline__ void stage(float *sums, const X (&x)[HALVES], int n_kb) {
        constexpr uint32_t one = ACT == RQ_ACT_F16 ? 0x3c003c00u : 0x3f803f80u;
        const uint32_t ones[4] = {one, one, one, one};
        const int lane = threadIdx.x % 32;
#pragma unroll 1
        for (int kb = threadIdx.x / 32; kb < n_kb; kb += RQ_GEMV_WARPS)
#pragma unroll
            for (int h = 0; h < HALVES; ++h) {
                const X here = x[h].tile(kb);
                float sum[4];
#pragma unroll
                for (int s = 0; s < 4; ++s) {
                    if (s % (4 / RUNS) == 0) sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
                    const uint4 b = here.step(s);
                    rq_gemv_mma<ACT>(sum, ones, b.x, b.y);
                    rq_gemv_mma<ACT>(sum, ones, b.z, b.w);
                    if (s % (4 / RUNS) == 4 / RUNS - 1 && lane < 4)
                        *reinterpret_cast<float2 *>(sums + kb * OF_TILE + (s / (4 / RUNS) * HALVES + h) * 8 +
                                                    lane * 2) = make_float2(sum[0], sum[1]);
                }
            }
    }
};
template <int HALVES> struct rq_gemv_sums<0, HALVES> {
    static constexpr int OF_TILE = 0;
    __device__ __forceinline__ void set(const float *) {}
    __device__ __forceinline__ rq_gemv_sums tile(int) const { return {}; }
    template <int, class X> static __device__ __forceinline__ void stage(float *, const X (&)[HALVES], int) {}
};

/* Where a lane finds x in shared memory: 16 bytes of its token for each step of 32 columns. SAVES: lanes of tokens that are not there
 * load nothing, and get anything; otherwise they load some other token. The sums of neither are read. */
template <bool SAVES, class SUMS> struct rq_gemv_x {
    const uint4 *at;
    SUMS run_sums;
    __device__ __forceinline__ void set(const uint8_t *x, const float *sums, int pitch, int token, int n_tok) {
        at = reinterpret_cast<const uint4 *>(x + min(token, n_tok - 1) * pitch) + threadIdx.x % 4;
        run_sums.set(sums);
    }
    __device__ __forceinline__ rq_gemv_x tile(int n) const { return {at + n * (RQ_TILE_COLS / 8), run_sums.tile(n)}; }
    __device__ __forceinline__ uint4 step(int s) const { return at[4 * s]; }
    __device__ __forceinline__ void step(int s, uint4 &kept) const { kept = at[4 * s]; }
    __device__ __forceinline__ float2 sums(int run, int half) const { return run_sums.of(run, half); }
};
template <class SUMS> struct rq_gemv_x<true, SUMS> {
    uint32_t at;
    bool there;
    __device__ __forceinline__ void set(const uint8_t *x, const float *, int pitch, int token, int n_tok) {
        at = ptx_shared(x) + min(token, n_tok - 1) * pitch + threadIdx.x % 4 * 16;
        there = token < n_tok;
    }
    __device__ __forceinline__ rq_gemv_x tile(int n) const { return {at + n * (RQ_TILE_COLS * 2), there}; }
    __device__ __forceinline__ uint4 step(int s) const { return ptx_load_shared16_where(there, at + s * 64); }
    __device__ __forceinline__ void step(int s, uint4 &kept) const {
        ptx_load_shared16_where(there, at + s * 64, kept);
    }
};

/* Where column i of x is when words 1 and 2 of each 16 bytes have changed places. */
__device__ __forceinline__ int rq_gemv_swapped(int i) { return (i & ~6) | (i & 2) << 1 | (i & 4) >> 1; }
/* x of bytes (rq_gemv_x_of): 8 of them a step. IN_ORDER: they are 4 columns from 4 q on and 4 from 16 + 4 q on, as mma.m16n8k32 has them by the
 * manual; otherwise columns 8 q .. 8 q + 7. */
template <bool IN_ORDER> struct rq_gemv_x_of_bytes {
    uint32_t at;
    bool there;
    __device__ __forceinline__ void set(const uint8_t *x, const float *, int pitch, int token, int n_tok) {
        at = ptx_shared(x) + min(token, n_tok - 1) * pitch + threadIdx.x % 4 * 8;
        there = token < n_tok;
    }
    __device__ __forceinline__ rq_gemv_x_of_bytes tile(int n) const { return {at + n * RQ_TILE_COLS, there}; }
    /* In order goes with 4-bit weights, which leave shared memory idle, and registers short: all lanes load. */
    __device__ __forceinline__ uint2 step(int s) const {
        return IN_ORDER ? ptx_load_shared8(at + s * 32) : ptx_load_shared8_where(there, at + s * 32);
    }
};
typedef rq_gemv_x_of_bytes<false> rq_gemv_x_bytes;
typedef rq_gemv_x_of_bytes<true> rq_gemv_x_bytes_in_order;
/* x of e4m3, which shared memory has as halves: 16 bytes a step, 4 columns from 4 q on and 4 from 16 + 4 q on. */
struct rq_gemv_x_e4m3 {
    uint32_t at;
    __device__ __forceinline__ void set(const uint8_t *x, const float *, int pitch, int token, int n_tok) {
        at = ptx_shared(x) + min(token, n_tok - 1) * pitch + threadIdx.x % 4 * 16;
    }
    __device__ __forceinline__ rq_gemv_x_e4m3 tile(int n) const { return {at + n * (RQ_TILE_COLS * 2)}; }
    __device__ __forceinline__ uint4 step(int s) const { return ptx_load_shared16(at + s * 64); }
};
/* How a format reads x; another one specializes this. More than 8 tokens have no quarter of a warp to save, and no register for the
 * question. */
template <class F, int HALVES> struct rq_gemv_x_of {
    typedef rq_gemv_x<F::SAVES_X && HALVES == 1, rq_gemv_sums<F::SUMS, HALVES>> type;
};
/* Bytes from a token of x to the next, of formats that know better than n_in. */
template <class F> struct rq_gemv_x_stride {
    static __device__ __forceinline__ int64_t of(const typename F::args &) { return 0; }
};

/* Columns kb0 * 128 .. kb1 * 128 - 1 of all tokens to shared memory, zeros beyond n_in. Not by ld.global.nc: the kernel before may
 * have written x while this one was already there. Loops are hardly unrolled: the first weights are in registers already. */
template <bool X_IS_A>
__device__ __forceinline__ void rq_gemv_stage_x(const rq_gemv_job &job, uint8_t *to, int kb0, int kb1) {
    const int n_col = (kb1 - kb0) * RQ_TILE_COLS, col0 = kb0 * RQ_TILE_COLS;
    const uint16_t *x = static_cast<const uint16_t *>(job.x);
    const bool whole = job.perm == nullptr && job.n_in % 8 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
#pragma unroll 1
    for (int token = 0; token < job.n_tok; ++token, to += job.x_pitch, x += job.n_in) {
        if (whole) {
#pragma unroll 2
            for (int i = threadIdx.x * 8; i < n_col; i += RQ_GEMV_THREADS * 8) {
                uint4 value = make_uint4(0, 0, 0, 0);
                if (col0 + i < job.n_in) value = *reinterpret_cast<const uint4 *>(x + col0 + i);
                if (X_IS_A) value = make_uint4(value.x, value.z, value.y, value.w);
                *reinterpret_cast<uint4 *>(to + i * 2) = value;
            }
        } else {
#pragma unroll 2
            for (int i = threadIdx.x * 2; i < n_col; i += RQ_GEMV_THREADS * 2) {
                uint32_t pair = 0;
                if (col0 + i < job.n_in) pair = x[job.perm ? job.perm[col0 + i] : col0 + i];
                if (col0 + i + 1 < job.n_in)
                    pair |= (uint32_t)x[job.perm ? job.perm[col0 + i + 1] : col0 + i + 1] << 16;
                *reinterpret_cast<uint32_t *>(to + (X_IS_A ? rq_gemv_swapped(i) : i) * 2) = pair;
            }
        }
    }
}

/* The same of bytes. */
static __device__ __forceinline__ void rq_gemv_stage_x_bytes(const rq_gemv_job &job, uint8_t *to, int kb0, int kb1) {
    const int n_col = (kb1 - kb0) * RQ_TILE_COLS, col0 = kb0 * RQ_TILE_COLS;
    const uint8_t *x = static_cast<const uint8_t *>(job.x);
    const bool whole = job.perm == nullptr && job.n_in % 16 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
#pragma unroll 1
    for (int token = 0; token < job.n_tok; ++token, to += job.x_pitch, x += job.n_in) {
        if (whole) {
#pragma unroll 2
            for (int i = threadIdx.x * 16; i < n_col; i += RQ_GEMV_THREADS * 16) {
                uint4 value = make_uint4(0, 0, 0, 0);
                if (col0 + i < job.n_in) value = *reinterpret_cast<const uint4 *>(x + col0 + i);
                *reinterpret_cast<uint4 *>(to + i) = value;
            }
        } else {
#pragma unroll 1
            for (int i = threadIdx.x * 4; i < n_col; i += RQ_GEMV_THREADS * 4) {
                uint32_t four = 0;
                for (int k = 0; k < 4 && col0 + i + k < job.n_in; ++k)
                    four |= (uint32_t)x[job.perm ? job.perm[col0 + i + k] : col0 + i + k] << 8 * k;
                *reinterpret_cast<uint32_t *>(to + i) = four;
            }
        }
    }
}

/* 8 bytes of a token from column j on, zeros past the end. stride: from a token to the next. */
static __device__ __forceinline__ bool rq_gemv_eight_whole(const rq_gemv_job &job, int64_t stride) {
    return job.perm == nullptr && (job.n_in | stride) % 8 == 0 && reinterpret_cast<uintptr_t>(job.x) % 8 == 0;
}
static __device__ __forceinline__ uint2 rq_gemv_eight_bytes(const rq_gemv_job &job, const uint8_t *x, int j,
                                                            bool whole) {
    uint2 eight = make_uint2(0, 0);
    if (whole && j < job.n_in) eight = *reinterpret_cast<const uint2 *>(x + j);
    for (int k = 0; !whole && k < 8 && j + k < job.n_in; ++k)
        (k < 4 ? eight.x : eight.y) |= (uint32_t)x[job.perm ? job.perm[j + k] : j + k] << 8 * (k % 4);
    return eight;
}

/* For rq_gemv_x_bytes_in_order: words c and c + 4 of each 8 become neighbours. The upper half of a warp stores its two words the other way
 * round, so that no two lanes meet in a bank. */
static __device__ __forceinline__ void rq_gemv_stage_x_bytes_in_order(const rq_gemv_job &job, int64_t stride,
                                                                      uint8_t *to, int kb0, int kb1) {
    const int n_col = (kb1 - kb0) * RQ_TILE_COLS, col0 = kb0 * RQ_TILE_COLS;
    const uint8_t *x = static_cast<const uint8_t *>(job.x);
    const bool whole = rq_gemv_eight_whole(job, stride), other = threadIdx.x & 16;
#pragma unroll 1
    for (int token = 0; token < job.n_tok; ++token, to += job.x_pitch, x += stride)
#pragma unroll 1
        for (int i = threadIdx.x * 8; i < n_col; i += RQ_GEMV_THREADS * 8) {
            const uint2 eight = rq_gemv_eight_bytes(job, x, col0 + i, whole);
            uint8_t *first = to + (i & ~31) + (i & 8) * 2 + (i & 16) / 4;
            *reinterpret_cast<uint32_t *>(first + (other ? 8 : 0)) = other ? eight.y : eight.x;
            *reinterpret_cast<uint32_t *>(first + (other ? 0 : 8)) = other ? eight.x : eight.y;
        }
}

/* For rq_gemv_x_e4m3, likewise: of 4 columns, columns 0 and 2, then 1 and 3. The upper half of each 16 lanes stores its two pieces the other
 * way round, for the banks. */
static __device__ __forceinline__ void rq_gemv_stage_x_e4m3(const rq_gemv_job &job, int64_t stride, uint8_t *to,
                                                            int kb0, int kb1) {
    const int n_col = (kb1 - kb0) * RQ_TILE_COLS, col0 = kb0 * RQ_TILE_COLS;
    const uint8_t *x = static_cast<const uint8_t *>(job.x);
    const bool whole = rq_gemv_eight_whole(job, stride), other = threadIdx.x & 8;
#pragma unroll 1
    for (int token = 0; token < job.n_tok; ++token, to += job.x_pitch, x += stride)
#pragma unroll 1
        for (int i = threadIdx.x * 8; i < n_col; i += RQ_GEMV_THREADS * 8) {
            const uint2 eight = rq_gemv_eight_bytes(job, x, col0 + i, whole);
            uint8_t *first = to + (i & ~31) * 2 + (i & 8) * 4 + (i & 16) / 2;
            *reinterpret_cast<uint2 *>(first + (other ? 16 : 0)) = rq_e4m3_to_f16(other ? eight.y : eight.x);
            *reinterpret_cast<uint2 *>(first + (other ? 0 : 16)) = rq_e4m3_to_f16(other ? eight.x : eight.y);
        }
}

/* The sum of all parts of these 16 outputs, in their order, in the warp that comes last: there true is returned. `sum` is that of
 * row lane % 16. */
template <class SUM>
static __device__ __forceinline__ bool rq_gemv_add_parts(const rq_gemv_job &job, SUM &sum, int output, int part,
                                                         int lane) {
    SUM *parts = reinterpret_cast<SUM *>(job.parts) + (size_t)output * job.split * RQ_TILE_ROWS + lane;
    const bool writes = lane < RQ_TILE_ROWS;
    if (writes) __stcg(parts + part * RQ_TILE_ROWS, sum);
    __threadfence();
    __syncwarp();
    unsigned before = 0;
    if (lane == 0) before = atomicAdd(job.counters + output, 1u);
    before = __shfl_sync(0xffffffffu, before, 0);
    if (before != (unsigned)job.split - 1u) return false;
    __threadfence();
    sum = 0;
    for (int p = 0; writes && p < job.split; ++p) {
        sum += __ldcg(parts + p * RQ_TILE_ROWS);
        __stcg(parts + p * RQ_TILE_ROWS, (SUM)0);
    }
    if (lane == 0) __stcg(job.counters + output, 0u);
    return true;
}

/* The end of a group of row blocks, of which my_rb is this warp's: the sums of the warps, of the parts, and what is written. What it needs it
 * asks for again, for in registers it would be carried through the loop over the tiles. */
template <class F, int HALVES>
__device__ __forceinline__ void rq_gemv_finish(F &format, const rq_gemv_job &job,
                                               const float (&acc)[rq_gemv_sides<F>::accumulators(HALVES)][4],
                                               uint8_t *sums, int buffer, int my_rb) {
    typedef rq_gemv_sides<F> sides;
    const int tid = ptx_thread(), lane = tid % 32, warp = tid / 32;
    const int warps = 1 << job.log_warps, slots = RQ_GEMV_WARPS >> job.log_warps;
    /* Two buffers by turns: who is ahead writes the other one, and meets the others before it comes to this one again. */
    float *const all = reinterpret_cast<float *>(sums) + buffer * F::ROWS * job.n_tok * sides::SUM_PITCH;
#pragma unroll
    for (int h = 0; h < F::ROWS * HALVES; ++h)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int token = h % HALVES * 8 + (sides::X_IS_A ? lane / 4 : lane % 4 * 2 + i);
            if (token < job.n_tok) {
                float *to = all + (h / HALVES * job.n_tok + token) * sides::SUM_PITCH + warp * RQ_TILE_ROWS;
                if (sides::X_IS_A) {
                    ptx_store_shared8(ptx_shared(to + i * 8 + lane % 4 * 2), acc[h][2 * i], acc[h][2 * i + 1]);
                } else {
                    to[lane / 4] = acc[h][i];
                    to[lane / 4 + 8] = acc[h][2 + i];
                }
            }
        }
    __syncthreads();
    /* 16 outputs of one token a warp. */
    for (int item = warp; item < F::ROWS * slots * job.n_tok; item += RQ_GEMV_WARPS) {
        const int item_slot = item & (slots - 1), which = item >> (RQ_GEMV_LOG_WARPS - job.log_warps);
        const int r = F::ROWS == 1 ? 0 : which / job.n_tok, token = which - r * job.n_tok, row = lane % RQ_TILE_ROWS;
        const int rb = my_rb + (item_slot - (warp >> job.log_warps)) * F::ROWS + r, out = rb * RQ_TILE_ROWS + row;
        if (rb >= job.n_rb) continue;
        typedef typename rq_gemv_sum<F>::type sum_type;
        const sum_type *from =
            reinterpret_cast<const sum_type *>(all) + which * sides::SUM_PITCH + item_slot * warps * RQ_TILE_ROWS + row;
        sum_type of_warps = 0;
        for (int w = lane / RQ_TILE_ROWS; w < warps; w += 2) of_warps += from[w * RQ_TILE_ROWS];
        of_warps += __shfl_xor_sync(0xffffffffu, of_warps, 16);
        if (job.split > 1 && !rq_gemv_add_parts(job, of_warps, rb * job.n_tok + token, blockIdx.x % job.split, lane))
            continue;
        if (lane >= RQ_TILE_ROWS || out >= job.n_out) continue;
        float sum = format.correct(of_warps, job, rb, row, token);
        const size_t at = (size_t)token * job.n_out + out;
        if (job.bias) sum += rq_gemv_get<F::ACT>(job, job.bias, out);
        if (job.residual) sum += rq_gemv_get<F::ACT>(job, job.residual, at);
        rq_gemv_put<F::ACT>(job, job.y, at, sum);
    }
}

template <class F, int HALVES>
__global__ void __launch_bounds__(RQ_GEMV_THREADS, rq_gemv_blocks_per_sm(F::ROWS *HALVES))
    rq_gemv(const rq_gemv_job job, const typename F::args args) {
    extern __shared__ __align__(16) uint8_t shared[];
    /* By a shuffle, so that the compiler knows: the same in all lanes, and so is every branch on it. */
    const int warp_of_block = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    const int slot = warp_of_block >> job.log_warps, turn = warp_of_block & ((1 << job.log_warps) - 1);
    const int kb0 = blockIdx.x % job.split * job.part_kb, kb1 = min(job.n_kb, kb0 + job.part_kb);
    int rb = (blockIdx.x / job.split * (RQ_GEMV_WARPS >> job.log_warps) + slot) * F::ROWS; /* the first of ROWS */
    /* Groups that are left, the present one included. */
    int groups = (job.n_rb - (rb - slot * F::ROWS) + job.rb_step - 1) / job.rb_step;

    uint8_t *const shared_x = shared + job.shared_format;
    F format(args, job, shared);
    typename F::tile tiles[F::DEPTH];
    typename F::side side;
    /* The weights do not depend on the kernel before: their first loads are under way while it ends. */
    const int first_kb = kb0 + turn * F::DEPTH;
    int left = rb < job.n_rb ? kb1 - first_kb : 0; /* tiles from the batch's first to the row block's end */
    if (left > 0) format.load_side(side, rb, first_kb);
#pragma unroll
    for (int d = 0; d < F::DEPTH; ++d)
        if (d < left) format.load(tiles[d], format.place(rb, first_kb), d);
    format.stage(kb0, kb1);
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    typedef typename rq_gemv_x_of<F, HALVES>::type x_type;
    if (std::is_same<x_type, rq_gemv_x_bytes>::value)
        rq_gemv_stage_x_bytes(job, shared_x, kb0, kb1);
    else if (std::is_same<x_type, rq_gemv_x_bytes_in_order>::value)
        rq_gemv_stage_x_bytes_in_order(job, rq_gemv_x_stride<F>::of(args), shared_x, kb0, kb1);
    else if (std::is_same<x_type, rq_gemv_x_e4m3>::value)
        rq_gemv_stage_x_e4m3(job, rq_gemv_x_stride<F>::of(args), shared_x, kb0, kb1);
    else
        rq_gemv_stage_x<rq_gemv_sides<F>::X_IS_A>(job, shared_x, kb0, kb1);
    __syncthreads();
    if (F::EDITS_X && format.edits_x()) {
        format.edit_x(job, shared_x, kb0, kb1);
        __syncthreads();
    }
    typedef rq_gemv_sums<F::SUMS, HALVES> sums_type;
    float *const sums = reinterpret_cast<float *>(shared_x) - job.part_kb * sums_type::OF_TILE;
    /* Column n of an mma is token n. */
    x_type x[HALVES];
#pragma unroll
    for (int h = 0; h < HALVES; ++h)
        x[h].set(shared_x, sums, job.x_pitch, h * 8 + (int)threadIdx.x % 32 / 4, job.n_tok);
    if (F::SUMS) {
        sums_type::template stage<F::ACT>(sums, x, kb1 - kb0);
        __syncthreads();
    }
    for (; groups > 0; --groups) {
        constexpr int N_ACC = rq_gemv_sides<F>::accumulators(HALVES);
        float acc[N_ACC][4];
#pragma unroll
        for (int h = 0; h < N_ACC; ++h)
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[h][i] = 0.0f;
        int kb = first_kb;
        for (int round = job.rounds; round > 0; --round) {
            x_type here[HALVES];
#pragma unroll
            for (int h = 0; h < HALVES; ++h) here[h] = x[h].tile(kb - kb0);
            const int next_rb = rb + (round == 1 ? job.rb_step : 0);
            kb = round == 1 ? first_kb : kb + job.batch_step;
            const int next_left = next_rb < job.n_rb ? kb1 - kb : 0;
            const typename F::place_type next = format.place(next_rb, kb);
            typename F::side next_side = side;
            if (next_left > 0) format.load_side(next_side, next_rb, kb);
#pragma unroll
            for (int d = 0; d < F::DEPTH; ++d) {
                if (d < left) {
                    x_type x_of_tile[HALVES];
#pragma unroll
                    for (int h = 0; h < HALVES; ++h) x_of_tile[h] = here[h].tile(d);
                    format.multiply(acc, tiles[d], side, d, x_of_tile);
                }
                if (d < next_left) format.load(tiles[d], next, d);
            }
            side = next_side, left = next_left;
        }
        format.end_rows(acc, rb);
        rq_gemv_finish<F, HALVES>(format, job, acc, shared_x + job.n_tok * job.x_pitch, groups & 1, rb);
        rb += job.rb_step;
    }
}
#endif
