/* SPDX-License-Identifier: Apache-2.0 */
/* The skeleton of the GEMV kernels: y = W x for 1 to 16 tokens, W in tiles of 16 rows x 128 columns (fmt_tile.h). What a tile
 * is made of is the format's, F:
 *
 *   F::ACT                  rq_act of x and y
 *   F::DEPTH                tiles that a warp loads ahead, in registers
 *   F::args                 the kernel's second parameter
 *   F::tile                 a lane's registers of a tile
 *   F(args, job, front)     front: shared memory of the format's own, job.shared_format bytes
 *   stage(kb0, kb1)         fills it, once, by all threads, for tile columns kb0 .. kb1 - 1; a barrier follows
 *   F::EDITS_X, edits_x(), edit_x(job, x, kb0, kb1)   where both are true, by all threads, when x is in shared memory
 *   load(tile &, rb, kb)    starts the loads of tile (rb, kb)
 *   multiply(acc, tile, x, rb, kb)   adds the tile's products to acc[half][4], accumulators of mma.m16n8k16 for tokens
 *                           8 half ..; x[half] is the lane's 16 bytes of the first step of 32 columns, x[half][4 s] those of step s
 *   end_rows(acc, rb)       when all tiles of the warp in a row block are in acc: scales that hold for whole rows
 *   correct(sum, job, rb, row, token)   once an output: what does not go through the tiles
 *
 * A block takes a part of the columns (job.split parts) and every (blocks / split)-th group of row blocks, so that it brings only its part
 * of x to shared memory, once. In a group, 2^log_warps warps share the tiles of a row block, each its own columns. A warp goes from tile to
 * tile, also over the ends of row blocks, with DEPTH tiles' loads under way, without a barrier; at the end of a row block all meet
 * once, and the sums of the warps are added in a fixed order. Where the columns are cut, the block that comes last to a row block
 * adds the parts in their order, and leaves the workspace zero. No result depends on who came last. */
#ifndef RQ_GEMV_TILE_CUH
#define RQ_GEMV_TILE_CUH
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gemv_variants.h"
#include "ptx.cuh"

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
template <int ACT>
__device__ __forceinline__ void rq_gemv_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if (ACT == RQ_ACT_F16)
        ptx_mma_f16(c, a[0], a[1], a[2], a[3], b0, b1);
    else
        ptx_mma_bf16(c, a[0], a[1], a[2], a[3], b0, b1);
}

/* Columns kb0 * 128 .. kb1 * 128 - 1 of all tokens to shared memory, zeros beyond n_in. Not by ld.global.nc: the kernel before may
 * have written x while this one was already there. */
static __device__ __forceinline__ void rq_gemv_stage_x(const rq_gemv_job &job, uint8_t *to, int kb0, int kb1) {
    const int n_vec = (kb1 - kb0) * (RQ_TILE_COLS / 8), col0 = kb0 * RQ_TILE_COLS;
    const uint16_t *x = static_cast<const uint16_t *>(job.x);
    const bool whole = job.perm == nullptr && job.n_in % 8 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
    for (int token = 0; token < job.n_tok; ++token, to += job.x_pitch) {
        const uint16_t *row = x + (size_t)token * job.n_in;
        for (int v = threadIdx.x; v < n_vec; v += RQ_GEMV_THREADS) {
            const int col = col0 + v * 8;
            uint4 value = make_uint4(0, 0, 0, 0);
            if (whole) {
                if (col < job.n_in) value = *reinterpret_cast<const uint4 *>(row + col);
            } else {
                uint32_t pair[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    pair[i] = 0;
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        const int c = col + 2 * i + j;
                        if (c < job.n_in) pair[i] |= (uint32_t)row[job.perm ? job.perm[c] : c] << (16 * j);
                    }
                }
                value = make_uint4(pair[0], pair[1], pair[2], pair[3]);
            }
            reinterpret_cast<uint4 *>(to)[v] = value;
        }
    }
}

/* The sum of all parts of these 16 outputs, in their order, in the warp that comes last: there true is returned. `sum` is that of
 * row lane % 16. */
static __device__ __forceinline__ bool rq_gemv_add_parts(const rq_gemv_job &job, float &sum, int output, int part,
                                                         int lane) {
    float *parts = job.parts + (size_t)output * job.split * RQ_TILE_ROWS + lane;
    const bool writes = lane < RQ_TILE_ROWS;
    if (writes) __stcg(parts + part * RQ_TILE_ROWS, sum);
    __threadfence();
    __syncwarp();
    unsigned before = 0;
    if (lane == 0) before = atomicAdd(job.counters + output, 1u);
    before = __shfl_sync(0xffffffffu, before, 0);
    if (before != (unsigned)job.split - 1u) return false;
    __threadfence();
    sum = 0.0f;
    for (int p = 0; writes && p < job.split; ++p) {
        sum += __ldcg(parts + p * RQ_TILE_ROWS);
        __stcg(parts + p * RQ_TILE_ROWS, 0.0f);
    }
    if (lane == 0) __stcg(job.counters + output, 0u);
    return true;
}

template <class F, int HALVES>
__global__ void __launch_bounds__(RQ_GEMV_THREADS, RQ_GEMV_BLOCKS_PER_SM)
    rq_gemv(const rq_gemv_job job, const typename F::args args) {
    extern __shared__ __align__(16) uint8_t shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warps = 1 << job.log_warps, slots = RQ_GEMV_WARPS >> job.log_warps;
    const int slot = warp >> job.log_warps, turn = warp & (warps - 1);
    const int part = blockIdx.x % job.split, step = gridDim.x / job.split;
    const int kb0 = part * job.part_kb, kb1 = min(job.n_kb, kb0 + job.part_kb);
    const int n_group = (job.n_rb + slots - 1) / slots;
    int group = blockIdx.x / job.split;

    uint8_t *const shared_x = shared + job.shared_format;
    float *sums = reinterpret_cast<float *>(shared_x + job.n_tok * job.x_pitch);
    F format(args, job, shared);
    typename F::tile tiles[F::DEPTH];
    /* The weights do not depend on the kernel before: their first loads are under way while it ends. */
    const int first_kb = kb0 + turn;
    int rb = group * slots + slot;
#pragma unroll
    for (int d = 0; d < F::DEPTH; ++d)
        if (rb < job.n_rb && first_kb + d * warps < kb1) format.load(tiles[d], rb, first_kb + d * warps);
    format.stage(kb0, kb1);
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    rq_gemv_stage_x(job, shared_x, kb0, kb1);
    __syncthreads();
    if (F::EDITS_X && format.edits_x()) {
        format.edit_x(job, shared_x, kb0, kb1);
        __syncthreads();
    }

    /* Column n of an mma is token n; lanes of tokens that are not there read the last one, and nobody reads their sums. */
    const uint4 *x[HALVES];
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
        const int token = min(h * 8 + lane / 4, job.n_tok - 1);
        x[h] = reinterpret_cast<const uint4 *>(shared_x + token * job.x_pitch) + lane % 4;
    }
    /* As many for every warp: those without a tile skip it. */
    const int rounds = ((kb1 - kb0 + warps - 1) / warps + F::DEPTH - 1) / F::DEPTH;
    for (int iteration = 0; group < n_group; group += step, ++iteration) {
        float acc[HALVES][4];
#pragma unroll
        for (int h = 0; h < HALVES; ++h)
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[h][i] = 0.0f;
        for (int round = 0, kb = first_kb; round < rounds; ++round) {
            const bool last = round + 1 == rounds;
            const int next_rb = last ? rb + step * slots : rb, next_kb = last ? first_kb : kb + F::DEPTH * warps;
#pragma unroll
            for (int d = 0; d < F::DEPTH; ++d) {
                const int at = kb + d * warps, then = next_kb + d * warps;
                if (rb < job.n_rb && at < kb1) {
                    const uint4 *here[HALVES];
#pragma unroll
                    for (int h = 0; h < HALVES; ++h) here[h] = x[h] + (at - kb0) * (RQ_TILE_COLS / 8);
                    format.multiply(acc, tiles[d], here, rb, at);
                }
                if (next_rb < job.n_rb && then < kb1) format.load(tiles[d], next_rb, then);
            }
            kb = next_kb;
        }
        format.end_rows(acc, rb);

        /* Two buffers by turns: who is ahead writes the other one, and meets the others before it comes to this one again. */
        float *const block_sums = sums + (iteration & 1) * job.n_tok * RQ_GEMV_SUM_PITCH;
#pragma unroll
        for (int h = 0; h < HALVES; ++h)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int token = h * 8 + lane % 4 * 2 + i;
                if (token < job.n_tok) {
                    float *to = block_sums + token * RQ_GEMV_SUM_PITCH + warp * RQ_TILE_ROWS + lane / 4;
                    to[0] = acc[h][i];
                    to[8] = acc[h][2 + i];
                }
            }
        __syncthreads();
        /* 16 outputs of one token a warp; the warp that begins changes from group to group. */
        for (int item = (warp + iteration) % RQ_GEMV_WARPS; item < slots * job.n_tok; item += RQ_GEMV_WARPS) {
            const int item_slot = item % slots, token = item / slots, row = lane % RQ_TILE_ROWS;
            const int item_rb = group * slots + item_slot;
            if (item_rb >= job.n_rb) continue;
            const float *from = block_sums + token * RQ_GEMV_SUM_PITCH + item_slot * warps * RQ_TILE_ROWS + row;
            float sum = 0.0f;
            for (int w = lane / RQ_TILE_ROWS; w < warps; w += 2) sum += from[w * RQ_TILE_ROWS];
            sum += __shfl_xor_sync(0xffffffffu, sum, 16);
            if (job.split > 1 && !rq_gemv_add_parts(job, sum, item_rb * job.n_tok + token, part, lane)) continue;
            const int out = item_rb * RQ_TILE_ROWS + row;
            if (lane >= RQ_TILE_ROWS || out >= job.n_out) continue;
            sum = format.correct(sum, job, item_rb, row, token);
            const size_t at = (size_t)token * job.n_out + out;
            if (job.bias) sum += rq_gemv_get<F::ACT>(job.bias, out);
            if (job.residual) sum += rq_gemv_get<F::ACT>(job.residual, at);
            rq_gemv_put<F::ACT>(job.y, at, sum);
        }
        rb += step * slots;
    }
}
#endif
