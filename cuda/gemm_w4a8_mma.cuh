/* SPDX-License-Identifier: Apache-2.0 */
/* The frame of the GEMM of W4A8 by mma (sm_80): a ring that cp.async fills, 8 warps, 4 along the rows and 2 along the tokens; a warp has 32 rows,
 * whose codes it reads from shared memory as they are packed, 16 bytes a lane without a conflict. x comes by ldmatrix. What a stage is multiplied
 * by is M's:
 *
 *   M::TOK, M::STEPS    tokens of the tile; as of rq_gemm_stage
 *   M::end              what the end of a tile needs (gemm_w4a8.cuh)
 *   M(job, warp_rb)     before the kernels before have ended
 *   multiply(job, acc, from, kb, warp_tok)   adds the products of the stage at `from` */
#ifndef RQ_GEMM_W4A8_MMA_CUH
#define RQ_GEMM_W4A8_MMA_CUH
#include "gemm_w4a8.cuh"

/* Byte of 16-byte piece `piece` of a token. */
__device__ __forceinline__ uint32_t rq_gemm_piece(int token, int piece) {
    return (uint32_t)(token * RQ_GEMM_COLS + ((piece ^ (token & 7)) << 4));
}

template <class M> struct rq_gemm_mma_frame {
    enum {
        THREADS = RQ_GEMM_MMA_THREADS,
        ROWS = RQ_GEMM_SLAB,
        TOK = M::TOK,
        STAGES = TOK == 128 ? 3 : 4,
        WARP_TOK = TOK / 2
    };
    typedef rq_gemm_stage<1, TOK, M::STEPS> stage;
    typedef typename M::end::sum sum;
    static constexpr int SUMS = TOK * rq_gemm_sums<ROWS, sum>::PITCH * 4;
    static constexpr int SHARED = STAGES * stage::BYTES > SUMS ? STAGES *stage::BYTES : SUMS;
    static_assert(WARP_TOK % 16 == 0, "ldmatrix brings 16 tokens");

    /* Weights and levels do not depend on the kernel before. */
    static __device__ __forceinline__ void start_weights(const rq_gemm_job &job, uint32_t to, int kb) {
        const int tid = threadIdx.x;
        const uint8_t *from = job.tiles + ((size_t)blockIdx.y * job.n_kb + kb) * RQ_GEMM_SLAB_BYTES;
#pragma unroll
        for (int i = 0; i < RQ_GEMM_SLAB_BYTES; i += THREADS * 16)
            ptx_copy_async16(to + stage::X + i + tid * 16, from + i + tid * 16, 16);
        if (M::STEPS == 0) return;
        const int2 groups = rq_gemm_groups(job, kb);
        from = job.levels + ((size_t)blockIdx.y * job.n_group + groups.x) * RQ_GEMM_LEVEL_BYTES;
        if (tid < groups.y * (RQ_GEMM_LEVEL_BYTES / 16))
            ptx_copy_async16(to + stage::LEVELS_AT + tid * 16, from + tid * 16, 16);
    }
    static __device__ __forceinline__ void start_x(const rq_gemm_job &job, uint32_t to, int kb) {
        const int tid = threadIdx.x, piece = tid % 8, token0 = (int)blockIdx.x * TOK,
                  col = kb * RQ_GEMM_COLS + piece * 16;
        const int bytes = max(0, min(16, job.n_in - col));
#pragma unroll 1 /* the sums of 128 tokens leave no registers for more addresses */
        for (int t = tid / 8; t < TOK; t += THREADS / 8) {
            const bool there = token0 + t < job.n_tok && bytes > 0;
            const uint8_t *x = static_cast<const uint8_t *>(job.x);
            ptx_copy_async16(to + rq_gemm_piece(t, piece), x + (there ? (token0 + t) * job.x_pitch + col : 0),
                             there ? bytes : 0);
        }
    }

    /* Groups of copies are counted by commits: a stage past the end commits an empty one. */
    static __device__ __forceinline__ void run(const rq_gemm_job &job) {
        extern __shared__ __align__(1024) uint8_t ring_memory[];
        const uint32_t ring = ptx_shared(ring_memory);
        const int kb0 = (int)blockIdx.z * job.part_kb, n = min(job.n_kb - kb0, job.part_kb);
        const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
        const int warp_rb = warp % 4 * 2, warp_tok = warp / 4 * WARP_TOK;
        sum acc[2][WARP_TOK / 8][4] = {};
#pragma unroll
        for (int s = 0; s < STAGES - 1; ++s)
            if (s < n) start_weights(job, ring + s * stage::BYTES, kb0 + s);
        M multiplier(job, warp_rb);
        ptx_wait_for_kernels_before();
        ptx_let_kernels_after_start();
#pragma unroll
        for (int s = 0; s < STAGES - 1; ++s) {
            if (s < n) start_x(job, ring + s * stage::BYTES, kb0 + s);
            ptx_commit_copies();
        }
        int at = 0, to = STAGES - 1;
#pragma unroll 1
        for (int s = 0; s < n; ++s) {
            ptx_wait_for_copies<STAGES - 2>();
            __syncthreads(); /* stage s is there for all, and all are done with the one that is filled next */
            if (s + STAGES - 1 < n) {
                start_weights(job, ring + to * stage::BYTES, kb0 + s + STAGES - 1);
                start_x(job, ring + to * stage::BYTES, kb0 + s + STAGES - 1);
            }
            ptx_commit_copies();
            multiplier.multiply(job, acc, ring + at * stage::BYTES, kb0 + s, warp_tok);
            at = at + 1 == STAGES ? 0 : at + 1, to = to + 1 == STAGES ? 0 : to + 1;
        }
        ptx_wait_for_copies<0>();
        __syncthreads();
        const rq_gemm_sums<ROWS, sum> sums = {reinterpret_cast<sum *>(ring_memory)};
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int t = 0; t < WARP_TOK / 8; ++t)
                sums.put((warp_rb + r) * RQ_TILE_ROWS + lane / 4, warp_tok + t * 8 + lane % 4 * 2, acc[r][t]);
        rq_gemm_meet<THREADS>();
        typename M::end end = multiplier.at_end();
        rq_gemm_finish<ROWS, TOK, THREADS>(job, end, sums, (int)threadIdx.x);
    }
};

/* For the launch: of a template of kernels over <TOK, STEPS>, and of their frames. */
#define RQ_GEMM_MMA_KERNELS(function_, frame, name_)                                                                   \
    template <int TOK, int STEPS> static rq_gemm_kernel of() {                                                         \
        rq_gemm_kernel k = {};                                                                                         \
        k.slabs = 1, k.tok = TOK, k.threads = RQ_GEMM_MMA_THREADS, k.name = name_;                                     \
        k.function = (const void *)function_<TOK, STEPS>, k.shared_bytes = frame<TOK, STEPS>::SHARED;                  \
        return k;                                                                                                      \
    }                                                                                                                  \
    template <int TOK> static rq_gemm_kernel of(int steps) {                                                           \
        return steps == 0 ? of<TOK, 0>() : steps == 1 ? of<TOK, 1>() : of<TOK, 4>();                                   \
    }
#endif
