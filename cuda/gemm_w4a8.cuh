/* SPDX-License-Identifier: Apache-2.0 */
/* What the GEMM kernels of W4A8 share (gemm_w4a8_mma.cu, gemm_w4a8_wgmma.cu; for e4m3 gemm_w4a8_e4m3_*.cu): the job, where things are, and the end of a tile.
 *
 * A block has a tile of outputs, ROWS rows x TOK tokens, and a part of the columns. It walks along them 128 at a time, a stage of a ring in
 * shared memory each: x as rows of 128 bytes under the 128-byte swizzle, weights as they are packed (fmt_tile.h: 8 KiB for 128 rows, in
 * one piece), levels likewise. Of int8, sums are int32, modulo 2^32. Where the columns are cut, blocks add theirs to the workspace by integer
 * atomics, which are the same in any order; of e4m3 sums are fp32, and each block has a place of its own there. Who comes last to a tile takes the
 * sums out, of e4m3 in the order of the parts, leaves zeros, and finishes it. */
#ifndef RQ_GEMM_W4A8_CUH
#define RQ_GEMM_W4A8_CUH
#include "gemv_w4a8.cuh"
#include "ptx_async.cuh"

enum {
    RQ_GEMM_COLS = RQ_TILE_COLS,                       /* of a stage: 128 bytes of x */
    RQ_GEMM_SLAB = RQ_TILE_W4A8_BLOCKS * RQ_TILE_ROWS, /* rows of a piece of weights */
    RQ_GEMM_SLAB_BYTES = RQ_GEMM_SLAB * RQ_GEMM_COLS / 2,
    RQ_GEMM_LEVEL_BYTES = RQ_GEMM_SLAB * 2, /* levels of a slab in a group */
    RQ_GEMM_BARRIER = 1
};

struct rq_gemm_job {
    const uint8_t *tiles, *levels;
    const float *scales;
    const int32_t *zeros;
    const void *x;
    const float *x_scale;
    const int32_t *x_sum;     /* of int8 */
    const float *x_block_sum; /* of e4m3: [n_kb][sum_pitch] */
    const void *bias, *residual;
    void *y;
    void *parts;        /* int32 [tile][TOK][ROWS], or float [tile][split][TOK][ROWS]; zero between launches */
    unsigned *counters; /* [tile], likewise */
    int64_t x_pitch;
    int n_out, n_in, n_tok, n_slab, n_kb, n_group, sum_pitch;
    int split, part_kb;
    uint32_t steps_of_group, reciprocal; /* as of the GEMV */
    rq_act act;
    bool whole; /* rows of y, bias and residual begin at multiples of 8 bytes */
};

/* Rows and bytes of a stage. STEPS as of the GEMV: 32-column steps between two levels, 4 or 1; 0: there are none. SUMMED: with the sums
 * of x. */
template <int SLABS, int TOK, int STEPS, bool SUMMED = false> struct rq_gemm_stage {
    static constexpr int X = TOK * RQ_GEMM_COLS, WEIGHTS = SLABS * RQ_GEMM_SLAB_BYTES;
    static constexpr int GROUPS = STEPS == 0 ? 0 : 4 / STEPS; /* that columns of a stage may be of */
    static constexpr int LEVELS = SLABS * GROUPS * RQ_GEMM_LEVEL_BYTES;
    static constexpr int LEVELS_AT = X + WEIGHTS, SUMS_AT = LEVELS_AT + LEVELS, SUMS = SUMMED ? TOK * 4 : 0;
    static constexpr int BYTES = (SUMS_AT + SUMS + 1023) / 1024 * 1024; /* the swizzle repeats after 1024 */
};

__device__ __forceinline__ int rq_gemm_group(const rq_gemm_job &job, int step) {
    return job.reciprocal ? (int)__umulhi((uint32_t)step, job.reciprocal) : step;
}
/* The groups of a stage: the first, and how many; those past the end are left out. */
__device__ __forceinline__ int2 rq_gemm_groups(const rq_gemm_job &job, int kb) {
    const int first = rq_gemm_group(job, kb * 4), last = rq_gemm_group(job, kb * 4 + 3);
    return make_int2(first, min(last, job.n_group - 1) - first + 1);
}

/* The registers of a lane for a step of 32 columns, of its 4 words of two steps. */
template <int STEPS>
__device__ __forceinline__ void rq_gemm_decode(uint32_t (&a)[4], uint32_t upper, uint32_t lower,
                                               const rq_w4a8_level (&level)[2]) {
    rq_w4a8_codes(a[0], a[2], upper);
    rq_w4a8_codes(a[1], a[3], lower);
    if (STEPS)
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = level[i % 2].of(a[i]);
}

/* ---- the end of a tile */

template <int THREADS> __device__ __forceinline__ void rq_gemm_meet() {
    asm volatile("bar.sync %0, %1;" ::"n"((int)RQ_GEMM_BARRIER), "n"(THREADS) : "memory");
}
/* Sums of a tile in shared memory: [token][row]. 4 more than the rows: the 8 rows and 4 tokens that a warp stores at once lie in different
 * banks. */
template <int ROWS, class SUM> struct rq_gemm_sums {
    static constexpr int PITCH = ROWS + 4;
    SUM *at;
    __device__ __forceinline__ void put(int row, int token, const SUM (&acc)[4]) const {
        at[token * PITCH + row] = acc[0], at[(token + 1) * PITCH + row] = acc[1];
        at[token * PITCH + row + 8] = acc[2], at[(token + 1) * PITCH + row + 8] = acc[3];
    }
    __device__ __forceinline__ uint4 four(int row, int token) const {
        return *reinterpret_cast<const uint4 *>(at + token * PITCH + row);
    }
    __device__ __forceinline__ SUM &of(int i) const { return at[i / ROWS * PITCH + i % ROWS]; }
};

/* What int8 and e4m3 end differently in: y / scales of a sum. */
struct rq_gemm_end_s8 {
    typedef int sum;
    uint32_t x_sum;
    __device__ __forceinline__ void token(const rq_gemm_job &job, int token, int) {
        x_sum = (uint32_t)__ldcg(job.x_sum + token);
    }
    __device__ __forceinline__ float level(uint32_t v, int zero) const {
        return (float)(int)(v - (uint32_t)zero * x_sum);
    }
};
struct rq_gemm_end_e4m3 {
    typedef float sum;
    const float *x_sums; /* of the tile's tokens; NULL: zero points are in the sums already */
    float unit;          /* of the sums, a power of two */
    float x_sum;
    __device__ __forceinline__ void token(const rq_gemm_job &, int, int t) { x_sum = x_sums ? x_sums[t] : 0.0f; }
    __device__ __forceinline__ float level(uint32_t v, int zero) const {
        return __fmaf_rn(-(float)zero, x_sum, __uint_as_float(v) * unit);
    }
};

/* Counts this part; true in the block that comes last, when it sees what all others stored. */
template <int THREADS> __device__ __forceinline__ bool rq_gemm_is_last(const rq_gemm_job &job, int tile, int tid) {
    __shared__ unsigned before;
    __threadfence();
    rq_gemm_meet<THREADS>();
    if (tid == 0) before = atomicAdd(job.counters + tile, 1u);
    rq_gemm_meet<THREADS>();
    if (before != (unsigned)job.split - 1u) return false;
    __threadfence();
    if (tid == 0) __stcg(job.counters + tile, 0u);
    return true;
}
/* Adds the sums of this part to the workspace; true in the block that comes last, whose sums are those of all parts then. */
template <int ROWS, int TOK, int THREADS>
__device__ __forceinline__ bool rq_gemm_add_parts(const rq_gemm_job &job, const rq_gemm_sums<ROWS, int> &sums, int tile,
                                                  int tid) {
    int32_t *parts = static_cast<int32_t *>(job.parts) + (size_t)tile * (TOK * ROWS);
    for (int i = tid; i < TOK * ROWS; i += THREADS) atomicAdd(parts + i, sums.of(i));
    if (!rq_gemm_is_last<THREADS>(job, tile, tid)) return false;
    for (int i = tid; i < TOK * ROWS; i += THREADS) sums.of(i) = __ldcg(parts + i), __stcg(parts + i, 0);
    rq_gemm_meet<THREADS>();
    return true;
}
template <int ROWS, int TOK, int THREADS>
__device__ __forceinline__ bool rq_gemm_add_parts(const rq_gemm_job &job, const rq_gemm_sums<ROWS, float> &sums,
                                                  int tile, int tid) {
    float *parts = static_cast<float *>(job.parts) + (size_t)tile * job.split * (TOK * ROWS);
    for (int i = tid; i < TOK * ROWS; i += THREADS) __stcg(parts + blockIdx.z * (TOK * ROWS) + i, sums.of(i));
    if (!rq_gemm_is_last<THREADS>(job, tile, tid)) return false;
    for (int i = tid; i < TOK * ROWS; i += THREADS) {
        float sum = 0.0f;
        for (int p = 0; p < job.split; ++p) {
            sum += __ldcg(parts + p * (TOK * ROWS) + i);
            __stcg(parts + p * (TOK * ROWS) + i, 0.0f);
        }
        sums.of(i) = sum;
    }
    rq_gemm_meet<THREADS>();
    return true;
}

template <int ACT> __device__ __forceinline__ void rq_gemm_load4(float (&to)[4], const void *p, size_t at, int n) {
    const uint16_t *from = static_cast<const uint16_t *>(p) + at;
    uint16_t bits[4];
    if (n > 4) { /* four, in one piece */
        const uint2 v = *reinterpret_cast<const uint2 *>(from);
        bits[0] = (uint16_t)v.x, bits[1] = (uint16_t)(v.x >> 16), bits[2] = (uint16_t)v.y,
        bits[3] = (uint16_t)(v.y >> 16);
    } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) bits[k] = k < n ? from[k] : (uint16_t)0;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k)
        to[k] = ACT == RQ_ACT_F16 ? __half2float(__ushort_as_half(bits[k]))
                                  : __bfloat162float(__ushort_as_bfloat16(bits[k]));
}

/* y of the tile that begins at (row0, token0). A thread has 4 rows, and goes over the tokens. */
template <int ACT, int ROWS, int TOK, int THREADS, class END>
__device__ __forceinline__ void rq_gemm_write(const rq_gemm_job &job, END &end,
                                              const rq_gemm_sums<ROWS, typename END::sum> &sums, int row0, int token0,
                                              int tid) {
    constexpr int AT_ONCE = THREADS / (ROWS / 4); /* tokens */
    static_assert(THREADS % (ROWS / 4) == 0, "a thread keeps its rows");
    const int row = tid % (ROWS / 4) * 4, out = row0 + row;
    if (out >= job.n_out) return;
    /* Rows are padded to whole slabs. */
    const float4 scale = *reinterpret_cast<const float4 *>(job.scales + out);
    const int4 zero = *reinterpret_cast<const int4 *>(job.zeros + out);
    const int n = job.whole ? 5 : min(4, job.n_out - out);
    const float s[4] = {scale.x, scale.y, scale.z, scale.w};
    const int z[4] = {zero.x, zero.y, zero.z, zero.w};
    float bias[4] = {};
    if (job.bias) rq_gemm_load4<ACT>(bias, job.bias, out, n);
#pragma unroll 1
    for (int t = tid / (ROWS / 4); t < TOK; t += AT_ONCE) {
        const int token = token0 + t;
        if (token >= job.n_tok) break;
        const uint4 four = sums.four(row, t);
        const uint32_t v[4] = {four.x, four.y, four.z, four.w};
        end.token(job, token, t);
        const float x_scale = __ldcg(job.x_scale + token);
        const size_t at = (size_t)token * job.n_out + out;
        float residual[4] = {};
        if (job.residual) rq_gemm_load4<ACT>(residual, job.residual, at, n);
        uint32_t bits[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            float y = __fmul_rn(__fmul_rn(end.level(v[k], z[k]), s[k]), x_scale);
            if (job.bias) y = __fadd_rn(y, bias[k]);
            if (job.residual) y = __fadd_rn(y, residual[k]);
            bits[k] =
                ACT == RQ_ACT_F16 ? __half_as_ushort(__float2half_rn(y)) : __bfloat16_as_ushort(__float2bfloat16_rn(y));
        }
        uint16_t *to = static_cast<uint16_t *>(job.y) + at;
        if (n > 4) {
            *reinterpret_cast<uint2 *>(to) = make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16);
        } else {
#pragma unroll
            for (int k = 0; k < 4; ++k)
                if (k < n) to[k] = (uint16_t)bits[k];
        }
    }
}

/* When all sums of the tile are in shared memory, and THREADS threads have met. */
template <int ROWS, int TOK, int THREADS, class END>
__device__ __forceinline__ void rq_gemm_finish(const rq_gemm_job &job, END &end,
                                               const rq_gemm_sums<ROWS, typename END::sum> &sums, int tid) {
    const int tile = (int)(blockIdx.y * gridDim.x + blockIdx.x);
    if (job.split > 1 && !rq_gemm_add_parts<ROWS, TOK, THREADS>(job, sums, tile, tid)) return;
    const int row0 = (int)blockIdx.y * ROWS, token0 = (int)blockIdx.x * TOK;
    if (job.act == RQ_ACT_F16)
        rq_gemm_write<RQ_ACT_F16, ROWS, TOK, THREADS>(job, end, sums, row0, token0, tid);
    else
        rq_gemm_write<RQ_ACT_BF16, ROWS, TOK, THREADS>(job, end, sums, row0, token0, tid);
}

/* ---- the kernels, for the launch */

enum { RQ_GEMM_MMA_THREADS = 256, RQ_GEMM_WGMMA_THREADS = 384 };
struct rq_gemm_kernel {
    const void *function; /* NULL: there is none */
    const char *name;
    int slabs, tok, threads, shared_bytes;
};
/* tok: 32, 64 or 128; slabs: 1, or 2 with 128 tokens (wgmma). */
rq_gemm_kernel rq_gemm_mma_kernel(int tok, int steps);
rq_gemm_kernel rq_gemm_wgmma_kernel(int slabs, int tok, int steps);
/* For e4m3; wgmma: steps 0 or 4. */
rq_gemm_kernel rq_gemm_e4m3_mma_kernel(int tok, int steps);
rq_gemm_kernel rq_gemm_e4m3_wgmma_kernel(int tok, int steps);

/* A CUtensorMap, the second parameter of the wgmma kernels: of x, in boxes of tok tokens. */
struct alignas(128) rq_gemm_map {
    uint8_t bytes[128];
};
rq_status rq_gemm_wgmma_prepare(void);
rq_status rq_gemm_wgmma_map(rq_gemm_map *to, const rq_gemm_job *job, int tok);
#endif
