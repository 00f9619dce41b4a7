/* SPDX-License-Identifier: Apache-2.0 */
/* The GEMM of W4A8 for sm_80, int8 activations: mma.m16n8k32 in the frame of gemm_w4a8_mma.cuh, codes decoded in registers.
 * Targets: sm_80 sm_90a. */
#include "gemm_w4a8_mma.cuh"

template <int TOK_, int STEPS_> struct multiplier {
    static constexpr int TOK = TOK_, STEPS = STEPS_;
    typedef rq_gemm_stage<1, TOK, STEPS> stage;
    typedef rq_gemm_end_s8 end;
    int warp_rb;
    __device__ __forceinline__ multiplier(const rq_gemm_job &, int rb) : warp_rb(rb) {}
    __device__ __forceinline__ end at_end() const { return {}; }

    __device__ __forceinline__ void multiply(const rq_gemm_job &job, int (&acc)[2][TOK / 16][4], uint32_t from, int kb,
                                             int warp_tok) const {
        const int lane = threadIdx.x % 32;
        const uint32_t weights = from + stage::X + warp_rb * 1024 + lane * 16;
        const uint32_t levels = from + stage::LEVELS_AT + warp_rb * 32 + lane / 4 * 4;
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
                for (int t = 0; t < TOK / 2; t += 16) {
                    const uint4 b = ptx_load_matrices(from + rq_gemm_piece(token + t, piece));
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

template <int TOK, int STEPS> using frame = rq_gemm_mma_frame<multiplier<TOK, STEPS>>;
template <int TOK, int STEPS>
__global__ void __launch_bounds__(RQ_GEMM_MMA_THREADS, 2) rq_gemm_w4a8_mma(const rq_gemm_job job) {
    frame<TOK, STEPS>::run(job);
}

RQ_GEMM_MMA_KERNELS(rq_gemm_w4a8_mma, frame, "gemm_w4a8_mma")
rq_gemm_kernel rq_gemm_mma_kernel(int tok, int steps) {
    return tok == 32 ? of<32>(steps) : tok == 64 ? of<64>(steps) : of<128>(steps);
}
