/* SPDX-License-Identifier: Apache-2.0 */
/* The GEMM of W4A8 for sm_90a, e4m3 activations: wgmma.m64nNk32.f32.e4m3.e4m3 over the ring of gemm_w4a8_ring.cuh.
 *
 * A code u of 4 bits is, as a byte, the e4m3 number u / 512: the subnormals and the smallest normal numbers are 2^-9 apart. So decoding is what it is
 * for int8, two masks and a shift for 8 weights, exact, and what zero points and bases are is made up for by the sums of x. With A_b the sum
 * of u x over the 128 columns of block b, and X_b that of x, which the kernel before has made (rq_cuda_x8.block_sum):
 *
 *   one level     y = (sum_b A_b - zero sum_b X_b) scale x_scale
 *   two levels    y = (sum_b step_b A_b + base_b X_b) scale x_scale               groups of multiples of 128 columns
 *
 * The tensor cores of Hopper do not add e4m3 products in full fp32: about 14 bits are kept (DeepSeek-V3 technical report, 2024, section 3.3.2,
 * which adds up 128 columns there, and those sums in fp32 registers). The same here: a wgmma group's sums hold 128 columns. While one warp group adds, the
 * other one's wgmma run. Targets: sm_80 sm_90a (nothing for sm_80). */
#include "gemm_w4a8_ring.cuh"

template <int TOK, int STEPS> using ring_of = rq_ring<1, TOK, STEPS, STEPS != 0, float>;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
static const float unit = 512.0f; /* of a sum */
/* Step and base of a row, of the word of levels of two: bytes of a float whose unit is 1. */
struct row_level {
    float step, base;
    __device__ __forceinline__ void set(uint32_t levels, int lower) {
        step = __uint_as_float(ptx_prmt(levels, 0x4b000000u, lower ? 0x7542 : 0x7540)) - 8388608.0f;
        base = (__uint_as_float(ptx_prmt(levels, 0x4b000000u, lower ? 0x7543 : 0x7541)) - 8388736.0f) * (1.0f / 512.0f);
    }
};

/* The sums of 128 columns to the others. */
template <int TOK, int STEPS>
static __device__ __forceinline__ void promote(float (&acc)[1][TOK / 8][4], const float (&part)[TOK / 8][4],
                                               uint32_t levels_at, uint32_t sums_at) {
    row_level row[2];
    if (STEPS) {
        const uint32_t both = ptx_load_shared4(levels_at);
        row[0].set(both, 0), row[1].set(both, 1);
    }
#pragma unroll
    for (int t = 0; t < TOK / 8; ++t) {
        const uint2 sums = STEPS ? ptx_load_shared8(sums_at + t * 32) : make_uint2(0, 0);
#pragma unroll
        for (int k = 0; k < 4; ++k)
            if (STEPS)
                acc[0][t][k] = fmaf(row[k / 2].base, __uint_as_float(k % 2 ? sums.y : sums.x),
                                    fmaf(row[k / 2].step, part[t][k], acc[0][t][k]));
            else
                acc[0][t][k] += part[t][k];
    }
}

/* The sums of 64 rows. Register buffers of A by turns: while a wgmma reads one, the other is written. */
template <int TOK, int STEPS>
static __device__ __forceinline__ void consume(float (&acc)[1][TOK / 8][4], uint32_t ring, uint32_t full,
                                               uint32_t empty, int n, int warp_rb) {
    typedef ring_of<TOK, STEPS> g;
    typedef typename g::stage stage;
    const int lane = threadIdx.x % 32;
    const uint32_t weights_at = stage::X + warp_rb * 1024 + lane * 16;
    const uint32_t levels_at = stage::LEVELS_AT + warp_rb * 32 + lane / 4 * 4, sums_at = stage::SUMS_AT + lane % 4 * 8;
    rq_ring_place at = {0, 0};
    float part[TOK / 8][4];
#pragma unroll
    for (int t = 0; t < TOK / 8; ++t)
#pragma unroll
        for (int k = 0; k < 4; ++k) part[t][k] = 0.0f;
#pragma unroll 1
    for (int i = 0; i < n; ++i, at.template next<g::STAGES>()) {
        const uint32_t from = ring + at.stage * stage::BYTES;
        ptx_barrier_wait(full + at.stage * 8, at.parity);
        uint4 words;
        uint32_t a[2][4];
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            if (s % 2 == 0) words = ptx_load_shared16(from + weights_at + s / 2 * 512);
            uint32_t(&mine)[4] = a[s % 2];
            rq_w4a8_codes(mine[0], mine[2], s % 2 ? words.z : words.x);
            rq_w4a8_codes(mine[1], mine[3], s % 2 ? words.w : words.y);
            ptx_wgmma_fence();
            ptx_wgmma_e4m3(part, mine, ptx_wgmma_rows128(from + s * 32), s > 0);
            ptx_wgmma_commit();
            if (s < 3) ptx_wgmma_wait<1>();
        }
        ptx_wgmma_wait<0>();
        if (!STEPS && lane == 0) ptx_barrier_arrive(empty + at.stage * 8);
        promote<TOK, STEPS>(acc, part, from + levels_at, from + sums_at);
        if (STEPS) __syncwarp();
        if (STEPS && lane == 0) ptx_barrier_arrive(empty + at.stage * 8);
    }
}

/* With one level: the sums of x over all columns, of the tile's tokens, by the threads that have nothing else to do. */
template <int TOK>
static __device__ __forceinline__ void add_up_x(const rq_gemm_job &job, float *to, uint32_t done, int tid,
                                                int threads) {
    ptx_wait_for_kernels_before();
    for (int t = tid; t < TOK; t += threads) {
        const int token = (int)blockIdx.x * TOK + t;
        float sum = 0.0f;
#pragma unroll 4
        for (int kb = 0; token < job.n_tok && kb < job.n_kb; ++kb)
            sum += __ldcg(job.x_block_sum + (size_t)kb * job.sum_pitch + token);
        to[t] = sum;
    }
    ptx_barrier_arrive(done);
}
#endif

template <int TOK, int STEPS>
__global__ void __launch_bounds__(RQ_RING_THREADS, 1)
    rq_gemm_w4a8_e4m3_wgmma(const rq_gemm_job job, const __grid_constant__ CUtensorMap map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    typedef ring_of<TOK, STEPS> g;
    extern __shared__ __align__(1024) uint8_t ring_memory[];
    __shared__ uint64_t barriers[2 * g::STAGES + 1];
    __shared__ float x_sums[TOK];
    const uint32_t ring = ptx_shared(ring_memory), full = ptx_shared(barriers), empty = full + g::STAGES * 8;
    const uint32_t summed = empty + g::STAGES * 8;
    const int kb0 = (int)blockIdx.z * job.part_kb, n = min(job.n_kb - kb0, job.part_kb);
    if (threadIdx.x == 0) {
        ptx_barrier_start(summed, RQ_RING_OTHERS - 32);
        rq_ring_start<g>(full, empty);
    }
    if (g::SUMMED) rq_ring_clear_sums<g>(job, ring_memory);
    __syncthreads();
    ptx_let_kernels_after_start();
    if (threadIdx.x < RQ_RING_OTHERS) {
        ptx_fewer_registers<40>();
        if (threadIdx.x == 0) rq_ring_fill<g>(job, &map, ring, full, empty, kb0, n);
        if (!STEPS && threadIdx.x >= 32) add_up_x<TOK>(job, x_sums, summed, (int)threadIdx.x - 32, RQ_RING_OTHERS - 32);
    } else {
        ptx_more_registers<232>();
        const int tid = (int)threadIdx.x - RQ_RING_OTHERS;
        ptx_wait_for_kernels_before();
        float acc[1][TOK / 8][4];
#pragma unroll
        for (int t = 0; t < TOK / 8; ++t)
#pragma unroll
            for (int k = 0; k < 4; ++k) acc[0][t][k] = 0.0f;
        consume<TOK, STEPS>(acc, ring, full, empty, n, tid / 32);
        if (!STEPS) ptx_barrier_wait(summed, 0);
        const rq_gemm_end_e4m3 end = {STEPS ? NULL : x_sums, unit, 0.0f};
        rq_ring_finish<g>(job, end, ring_memory, acc, tid);
    }
#endif
}

/* ---- for the launch */

template <int TOK, int STEPS> static rq_gemm_kernel of() {
    rq_gemm_kernel k = {};
    k.slabs = 1, k.tok = TOK, k.threads = RQ_RING_THREADS, k.name = "gemm_w4a8_e4m3_wgmma";
    k.function = (const void *)rq_gemm_w4a8_e4m3_wgmma<TOK, STEPS>, k.shared_bytes = ring_of<TOK, STEPS>::SHARED;
    return k;
}
template <int TOK> static rq_gemm_kernel of(int steps) { return steps ? of<TOK, 4>() : of<TOK, 0>(); }
rq_gemm_kernel rq_gemm_e4m3_wgmma_kernel(int tok, int steps) {
    return tok == 32 ? of<32>(steps) : tok == 64 ? of<64>(steps) : of<128>(steps);
}
