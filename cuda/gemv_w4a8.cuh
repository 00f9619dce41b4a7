/* SPDX-License-Identifier: Apache-2.0 */
/* W4A8 (fmt_w4a8.h) for 1 to 16 tokens, as a format of gemv_tile.cuh: codes of 4 bits on int8 x, integer tensor cores.
 *
 * A word has 8 codes of a row, and its even and odd nibbles are two registers of the A operand of mma.m16n8k32.u8.s8: two masks and a
 * shift for 8 weights. In two levels a multiply-add makes level + 128 of four codes at once, since no byte of u * step + 128 + base
 * exceeds 255, and A stays unsigned: what zero points and the 128 are too much is zero_i * x_sum, taken off the finished sum.
 *
 * Everything up to there is integer: warps and parts of columns add int32, modulo 2^32, which the result fits in. So y is the
 * definition to the last bit, however the columns were cut. */
#ifndef RQ_GEMV_W4A8_CUH
#define RQ_GEMV_W4A8_CUH
#include "gemv_tile.cuh"

struct rq_gemv_w4a8_args {
    const uint8_t *tiles, *levels;
    const float *scales;
    const int32_t *zeros;
    int64_t x_stride; /* bytes from a token of x to the next */
    int n_kb, n_group;
    uint32_t steps_of_group; /* 32-column steps */
    uint32_t reciprocal;     /* floor(2^32 / steps_of_group) + 1, or 0 for one step a group */
};

/* Both registers of a word. */
__device__ __forceinline__ void rq_w4a8_codes(uint32_t &low, uint32_t &high, uint32_t w) {
    low = w & 0x0f0f0f0fu, high = w >> 4 & 0x0f0f0f0fu;
}
/* Step and four times 128 + base of a row of the two that a word of the levels has. */
struct rq_w4a8_level {
    uint32_t step, offset;
    __device__ __forceinline__ void set(uint32_t levels, int lower) {
        step = ptx_prmt(levels, 0, lower ? 0x4442 : 0x4440), offset = ptx_prmt(levels, 0, lower ? 0x3333 : 0x1111);
    }
    __device__ __forceinline__ uint32_t of(uint32_t codes) const { return codes * step + offset; }
};

/* STEPS: 32-column steps between two levels, 1 or 4 (groups of multiples of 128 columns); 0: one level. */
template <int STEPS_> struct rq_gemv_w4a8_tiles {
    static constexpr int ACT = RQ_GEMV_ACT_OF_JOB, STEPS = STEPS_, DEPTH = 2, ROWS = 1, SUMS = 0;
    static constexpr int TILE_BYTES = RQ_TILE_ROWS * RQ_TILE_COLS / 2;
    static constexpr bool EDITS_X = false, SAVES_X = false;
    typedef rq_gemv_w4a8_args args;
    /* Levels of rows l / 4 and l / 4 + 8: lane l has those of tile l % 4 of the batch, or of step l % 4 of the tile. */
    struct side {
        uint32_t level;
    };
    struct tile {
        uint32_t w[8];
        uint32_t level;
    };
    struct place_type {
        const uint8_t *from;
        int rb, kb;
    };

    static_assert(RQ_TILE_W4A8_BLOCKS == 8, "rb >> 3 and rb & 7");

    const rq_gemv_w4a8_args &a;

    __device__ __forceinline__ rq_gemv_w4a8_tiles(const rq_gemv_w4a8_args &args_, const rq_gemv_job &, uint8_t *)
        : a(args_) {}
    __device__ __forceinline__ void stage(int, int) {}
    __device__ __forceinline__ bool edits_x() const { return false; }
    __device__ __forceinline__ void edit_x(const rq_gemv_job &, uint8_t *, int, int) const {}

    __device__ __forceinline__ place_type place(int rb, int kb) const {
        const size_t place = ((uint32_t)(rb >> 3) * a.n_kb + kb) * RQ_TILE_W4A8_BLOCKS + (rb & 7);
        return {a.tiles + ptx_thread() % 32 * 16 + place * TILE_BYTES, rb, kb};
    }
    __device__ __forceinline__ void load(tile &t, const place_type &at, int d) const {
        const uint8_t *from = at.from + d * (RQ_TILE_W4A8_BLOCKS * TILE_BYTES);
#pragma unroll
        for (int p = 0; p < 2; ++p) {
            const uint4 v = ptx_load_once16(from + p * 512);
            t.w[4 * p] = v.x, t.w[4 * p + 1] = v.y, t.w[4 * p + 2] = v.z, t.w[4 * p + 3] = v.w;
        }
        if (STEPS == 1) t.level = load_level(at.rb, (at.kb + d) * 4 + ptx_thread() % 4);
    }
    __device__ __forceinline__ void load_side(side &to, int rb, int kb) const {
        if (STEPS == 4) to.level = load_level(rb, (kb + min(ptx_thread() % 4, DEPTH - 1)) * 4);
    }
    /* Of the group that a step is in; past the row's end, where nothing is used, of the last. */
    __device__ __forceinline__ uint32_t load_level(int rb, uint32_t step) const {
        const int group = min((int)(a.reciprocal ? __umulhi(step, a.reciprocal) : step), a.n_group - 1);
        const uint32_t place = ((uint32_t)(rb >> 3) * a.n_group + group) * RQ_TILE_W4A8_BLOCKS + (rb & 7);
        return ptx_load_side4(a.levels + (size_t)place * (RQ_TILE_ROWS * 2) + ptx_thread() % 32 / 4 * 4);
    }

    static __device__ __forceinline__ uint32_t of_quad(uint32_t levels, int which) {
        return __shfl_sync(0xffffffffu, levels, which, 4);
    }

    template <int HALVES, class X>
    __device__ __forceinline__ void multiply(float (&acc)[HALVES][4], const tile &t, const side &of_batch, int d,
                                             const X (&x)[HALVES]) const {
        int sum[HALVES][4];
        rq_w4a8_level level[2];
#pragma unroll
        for (int h = 0; h < HALVES; ++h)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[h][i] = __float_as_int(acc[h][i]);
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            uint32_t m[4];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                rq_w4a8_codes(m[r], m[2 + r], t.w[2 * s + r]);
                if (STEPS && s % (STEPS ? STEPS : 1) == 0 && r == 0) {
                    const uint32_t both = STEPS == 1 ? of_quad(t.level, s) : of_quad(of_batch.level, d);
                    level[0].set(both, 0), level[1].set(both, 1);
                }
                if (STEPS) m[r] = level[r].of(m[r]), m[2 + r] = level[r].of(m[2 + r]);
            }
#pragma unroll
            for (int h = 0; h < HALVES; ++h) {
                const uint2 b = x[h].step(s);
                ptx_mma_u8s8(sum[h], m[0], m[1], m[2], m[3], b.x, b.y);
            }
        }
#pragma unroll
        for (int h = 0; h < HALVES; ++h)
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[h][i] = __int_as_float(sum[h][i]);
    }
    template <int HALVES> __device__ __forceinline__ void end_rows(float (&)[HALVES][4], int) const {}
    __device__ __forceinline__ float correct(int sum, const rq_gemv_job &job, int rb, int row, int token) const {
        const int i = rb * RQ_TILE_ROWS + row;
        const int level = (int)((uint32_t)sum - (uint32_t)__ldg(a.zeros + i) * (uint32_t)__ldcg(job.x_sum + token));
        /* Rounded here, whatever is added to it. */
        return __fmul_rn(__fmul_rn((float)level, __ldg(a.scales + i)), __ldcg(job.x_scale + token));
    }
};
template <int STEPS> struct rq_gemv_sum<rq_gemv_w4a8_tiles<STEPS>> { typedef int type; };
template <int STEPS, int HALVES> struct rq_gemv_x_of<rq_gemv_w4a8_tiles<STEPS>, HALVES> {
    typedef rq_gemv_x_bytes_in_order type;
};
template <int STEPS> struct rq_gemv_x_stride<rq_gemv_w4a8_tiles<STEPS>> {
    static __device__ __forceinline__ int64_t of(const rq_gemv_w4a8_args &a) { return a.x_stride; }
};
#endif
