/* SPDX-License-Identifier: Apache-2.0 */
/* The GEMM of W4A8 where the tensor cores have no e4m3 (sm_80), and for groups that end inside of 128 columns: the frame of gemm_w4a8_mma.cuh
 * with mma.m16n8k16 on halves, which codes and x become in registers (e4m3.cuh). Targets: sm_80 sm_90a. */
#include "gemm_w4a8_mma.cuh"

template <int TOK_, int STEPS_> struct multiplier {
    static constexpr int TOK = TOK_, STEPS = STEPS_;
    typedef rq_gemm_stage<1, TOK, STEPS> stage;
    typedef rq_gemm_end_e4m3 end;
    typedef rq_w4a8_halves<STEPS> halves;
    int warp_rb;
    uint32_t zero[2]; /* of two rows each */
    __device__ __forceinline__ multiplier(const rq_gemm_job &job, int rb) : warp_rb(rb) {
        const int lane = threadIdx.x % 32, row = ((int)blockIdx.y * RQ_TILE_W4A8_BLOCKS + rb) * RQ_TILE_ROWS + lane / 4;
        if (STEPS == 0)
#pragma unroll
            for (int r = 0; r < 2; ++r)
                zero[r] = (uint32_t)__ldg(job.zeros + row + r * RQ_TILE_ROWS) |
                          (uint32_t)__ldg(job.zeros + row + r * RQ_TILE_ROWS + 8) << 16;
    }
    __device__ __forceinline__ end at_end() const { return {NULL, RQ_E4M3_F16_UNIT, 0.0f}; }

    __device__ __forceinline__ void multiply(const rq_gemm_job &job, float (&acc)[2][TOK / 16][4], uint32_t from,
                                             int kb, int warp_tok) const {
        const int lane = threadIdx.x % 32;
        const uint32_t weights = from + stage::X + warp_rb * 1024 + lane * 16;
        const uint32_t levels = from + stage::LEVELS_AT + warp_rb * 32 + lane / 4 * 4;
        const int first = STEPS == 1 ? rq_gemm_group(job, kb * 4) : 0;
#pragma unroll 1 /* by halves, as for int8 */
        for (int half = 0; half < 2; ++half) {
            const uint4 words[2] = {ptx_load_shared16(weights + half * 512),
                                    ptx_load_shared16(weights + 1024 + half * 512)};
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                int group = 0;
                if (STEPS == 1) group = min(rq_gemm_group(job, kb * 4 + half * 2 + s), job.n_group - 1) - first;
                uint32_t h[2][2][4]; /* row block, row, pairs */
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const uint32_t level =
                        STEPS ? ptx_load_shared4(levels + group * RQ_GEMM_LEVEL_BYTES + r * 32) : zero[r];
                    decode(h[r], s ? words[r].z : words[r].x, s ? words[r].w : words[r].y, level);
                }
                const int piece = half * 4 + s * 2 + lane / 8 % 2, token = warp_tok + lane % 8 + lane / 16 * 8;
#pragma unroll
                for (int t = 0; t < TOK / 2; t += 16) {
                    const uint4 b = ptx_load_matrices(from + rq_gemm_piece(token + t, piece));
                    multiply_eight(acc, t / 8, h, rq_e4m3_to_f16(b.x), rq_e4m3_to_f16(b.y));
                    multiply_eight(acc, t / 8 + 1, h, rq_e4m3_to_f16(b.z), rq_e4m3_to_f16(b.w));
                }
            }
        }
    }
    static __device__ __forceinline__ void decode(uint32_t (&h)[2][4], uint32_t upper, uint32_t lower, uint32_t level) {
        halves row[2];
        if (STEPS)
            row[0].set_level(level, 0), row[1].set_level(level, 1);
        else
            row[0].set_zero(level & 0xffffu), row[1].set_zero(level >> 16);
        row[0].of(h[0], upper), row[1].of(h[1], lower);
    }
    /* 8 tokens; even: x of the columns that the even nibbles are of. */
    static __device__ __forceinline__ void multiply_eight(float (&acc)[2][TOK / 16][4], int t,
                                                          const uint32_t (&h)[2][2][4], uint2 even, uint2 odd) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            ptx_mma_f16(acc[r][t], h[r][0][0], h[r][1][0], h[r][0][1], h[r][1][1], even.x, even.y);
            ptx_mma_f16(acc[r][t], h[r][0][2], h[r][1][2], h[r][0][3], h[r][1][3], odd.x, odd.y);
        }
    }
};

template <int TOK, int STEPS> using frame = rq_gemm_mma_frame<multiplier<TOK, STEPS>>;
template <int TOK, int STEPS>
__global__ void __launch_bounds__(RQ_GEMM_MMA_THREADS, 2) rq_gemm_w4a8_e4m3_mma(const rq_gemm_job job) {
    frame<TOK, STEPS>::run(job);
}

RQ_GEMM_MMA_KERNELS(rq_gemm_w4a8_e4m3_mma, frame, "gemm_w4a8_e4m3_mma")
/* 128 tokens would leave room for one block only. */
rq_gemm_kernel rq_gemm_e4m3_mma_kernel(int tok, int steps) { return tok == 32 ? of<32>(steps) : of<64>(steps); }
