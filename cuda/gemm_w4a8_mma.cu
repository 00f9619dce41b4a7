/* SPDX-License-Identifier: Apache-2.0 */
/* The GEMM of W4A8 for sm_80: mma.m16n8k32 over a ring that cp.async fills. 8 warps, 4 along the rows and 2 along the tokens; a warp has 32 rows,
 * whose codes it reads from shared memory as they are packed, 16 bytes a lane without a conflict, and decodes in registers. x comes by
 * ldmatrix. Targets: sm_80 sm_90a. */
#include "gemm_w4a8.cuh"

enum { THREADS = RQ_GEMM_MMA_THREADS, ROWS = RQ_GEMM_SLAB, WARP_ROWS = 32 };

static constexpr int stages_of(int tok) { return tok == 128 ? 3 : 4; }

template <int TOK, int STEPS> struct gemm {
    typedef rq_gemm_stage<1, TOK, STEPS> stage;
    static constexpr int STAGES = stages_of(TOK), WARP_TOK = TOK / 2;
    static constexpr int SUMS = TOK * rq_gemm_sums<ROWS>::PITCH * 4;
    static constexpr int SHARED = STAGES * stage::BYTES > SUMS ? STAGES *stage::BYTES : SUMS;
    static_assert(WARP_TOK % 16 == 0, "ldmatrix brings 16 tokens");

    /* Byte of 16-byte piece `piece` of a token. */
    static __device__ __forceinline__ uint32_t place_of(int token, int piece) {
        return (uint32_t)(token * RQ_GEMM_COLS + ((piece ^ (token & 7)) << 4));
    }
    /* Weights and levels do not depend on the kernel before. */
    static __device__ __forceinline__ void start_weights(const rq_gemm_job &job, uint32_t to, int kb) {
        const int tid = threadIdx.x;
        const uint8_t *from = job.tiles + ((size_t)blockIdx.y * job.n_kb + kb) * RQ_GEMM_SLAB_BYTES;
#pragma unroll
        for (int i = 0; i < RQ_GEMM_SLAB_BYTES; i += THREADS * 16)
            ptx_copy_async16(to + stage::X + i + tid * 16, from + i + tid * 16, true);
        if (STEPS == 0) return;
        const int2 groups = rq_gemm_groups(job, kb);
        from = job.levels + ((size_t)blockIdx.y * job.n_group + groups.x) * RQ_GEMM_LEVEL_BYTES;
        if (tid < groups.y * (RQ_GEMM_LEVEL_BYTES / 16))
            ptx_copy_async16(to + stage::X + stage::WEIGHTS + tid * 16, from + tid * 16, true);
    }
    static __device__ __forceinline__ void start_x(const rq_gemm_job &job, uint32_t to, int kb) {
        const int tid = threadIdx.x, piece = tid % 8, token0 = (int)blockIdx.x * TOK,
                  col = kb * RQ_GEMM_COLS + piece * 16;
#pragma unroll 1 /* the sums of 128 tokens leave no registers for more addresses */
        for (int t = tid / 8; t < TOK; t += THREADS / 8) {
            const bool there = token0 + t < job.n_tok && col < job.n_in;
            ptx_copy_async16(to + place_of(t, piece), job.x + (there ? (size_t)(token0 + t) * job.n_in + col : 0),
                             there);
        }
    }

    static __device__ __forceinline__ void multiply(const rq_gemm_job &job, int (&acc)[2][WARP_TOK / 8][4],
                                                    uint32_t from, int kb, int warp_rb, int warp_tok) {
        const int lane = threadIdx.x % 32;
        const uint32_t weights = from + stage::X + warp_rb * 1024 + lane * 16;
        const uint32_t levels = from + stage::X + stage::WEIGHTS + warp_rb * 32 + lane / 4 * 4;
        const int first = STEPS == 1 ? rq_gemm_group(job, kb * 4) : 0;
        rq_w4a8_level level[2][2];
        if (STEPS == 4) set(level, levels);
            /* By halves, a loop: unrolled, loads of all steps would pile up in registers. */
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
            const uint4 words[2] = {ptx_load_shared16(weights + half * 512),
                                    ptx_load_shared16(weights + 1024 + half * 512)};
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                if (STEPS == 1) {
                    const int group = min(rq_gemm_group(job, kb * 4 + half * 2 + s), job.n_group - 1);
                    set(level, levels + (group - first) * RQ_GEMM_LEVEL_BYTES);
                }
                uint32_t a[2][4];
#pragma unroll
                for (int r = 0; r < 2; ++r)
                    rq_gemm_decode<STEPS>(a[r], s ? words[r].z : words[r].x, s ? words[r].w : words[r].y, level[r]);
                const int piece = half * 4 + s * 2 + lane / 8 % 2, token = warp_tok + lane % 8 + lane / 16 * 8;
#pragma unroll
                for (int t = 0; t < WARP_TOK; t += 16) {
                    const uint4 b = ptx_load_matrices(from + place_of(token + t, piece));
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        ptx_mma_u8s8(acc[r][t / 8], a[r][0], a[r][1], a[r][2], a[r][3], b.x, b.y);
                        ptx_mma_u8s8(acc[r][t / 8 + 1], a[r][0], a[r][1], a[r][2], a[r][3], b.z, b.w);
                    }
                }
            }
        }
    }
    static __device__ __forceinline__ void set(rq_w4a8_level (&level)[2][2], uint32_t levels) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const uint32_t both = ptx_load_shared4(levels + r * 32);
            level[r][0].set(both, 0), level[r][1].set(both, 1);
        }
    }
};

template <int TOK, int STEPS> __global__ void __launch_bounds__(THREADS, 2) rq_gemm_w4a8_mma(const rq_gemm_job job) {
    typedef gemm<TOK, STEPS> g;
    extern __shared__ __align__(1024) uint8_t ring_memory[];
    const uint32_t ring = ptx_shared(ring_memory);
    const int kb0 = (int)blockIdx.z * job.part_kb, n = min(job.n_kb - kb0, job.part_kb);
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int warp_rb = warp % 4 * 2, warp_tok = warp / 4 * g::WARP_TOK;
    int acc[2][g::WARP_TOK / 8][4] = {};
    /* Groups are counted by commits: a stage past the end commits an empty one. */
#pragma unroll
    for (int s = 0; s < g::STAGES - 1; ++s)
        if (s < n) g::start_weights(job, ring + s * g::stage::BYTES, kb0 + s);
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
#pragma unroll
    for (int s = 0; s < g::STAGES - 1; ++s) {
        if (s < n) g::start_x(job, ring + s * g::stage::BYTES, kb0 + s);
        ptx_commit_copies();
    }
    int at = 0, to = g::STAGES - 1;
#pragma unroll 1
    for (int s = 0; s < n; ++s) {
        ptx_wait_for_copies<g::STAGES - 2>();
        __syncthreads(); /* stage s is there for all, and all are done with the one that is filled next */
        if (s + g::STAGES - 1 < n) {
            g::start_weights(job, ring + to * g::stage::BYTES, kb0 + s + g::STAGES - 1);
            g::start_x(job, ring + to * g::stage::BYTES, kb0 + s + g::STAGES - 1);
        }
        ptx_commit_copies();
        g::multiply(job, acc, ring + at * g::stage::BYTES, kb0 + s, warp_rb, warp_tok);
        at = at + 1 == g::STAGES ? 0 : at + 1, to = to + 1 == g::STAGES ? 0 : to + 1;
    }
    ptx_wait_for_copies<0>();
    __syncthreads();
    const rq_gemm_sums<ROWS> sums = {reinterpret_cast<int *>(ring_memory)};
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int t = 0; t < g::WARP_TOK / 8; ++t)
            sums.put((warp_rb + r) * RQ_TILE_ROWS + lane / 4, warp_tok + t * 8 + lane % 4 * 2, acc[r][t]);
    rq_gemm_meet<THREADS>();
    rq_gemm_finish<ROWS, TOK, THREADS>(job, sums, (int)threadIdx.x);
}

template <int TOK> static rq_gemm_kernel of(int steps) {
    rq_gemm_kernel k = {};
    k.slabs = 1, k.tok = TOK, k.threads = THREADS, k.name = "gemm_w4a8_mma";
    if (steps == 0)
        k.function = (const void *)rq_gemm_w4a8_mma<TOK, 0>, k.shared_bytes = gemm<TOK, 0>::SHARED;
    else if (steps == 1)
        k.function = (const void *)rq_gemm_w4a8_mma<TOK, 1>, k.shared_bytes = gemm<TOK, 1>::SHARED;
    else
        k.function = (const void *)rq_gemm_w4a8_mma<TOK, 4>, k.shared_bytes = gemm<TOK, 4>::SHARED;
    return k;
}
rq_gemm_kernel rq_gemm_mma_kernel(int tok, int steps) {
    return tok == 32 ? of<32>(steps) : tok == 64 ? of<64>(steps) : of<128>(steps);
}
