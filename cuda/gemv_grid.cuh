/* SPDX-License-Identifier: Apache-2.0 */
/* Tiles of grid codes: w = scale (code - zero), 2, 3, 4 or 8 bits, for the skeleton of gemv_tile.cuh.
 *
 * Codes become pairs of halves (or bfloat16) without a conversion: bits or-ed below the exponent of a power of two M give M + q in units
 * of the last place. In fp16 M = 1024 takes 10 bits of q; so a code that lies 2 j bits up is M + 4^j q, and one fma, 4^-j (M + 4^j q) -
 * (4^-j M + zero), gives q - zero. All these numbers are integers of at most 11 bits: nothing is rounded. In bfloat16 M = 128 takes 7
 * bits, and integers up to 256 are exact: the same with more shifts. 8-bit codes do not fit in 7 bits; they go through fp32 (M = 2^23),
 * and q - zero, at most 255 in size, has 8 significant bits, so that the upper half of the fp32 is the bfloat16.
 *
 * The tensor cores multiply the integers q - zero with x and add in fp32; the scale of the group comes after, once a group and row.
 *
 * 2-bit codes with zero points have no issue slots for constants of their own. They are decoded as symmetric ones, q - 2, and the sum
 * of a group begins with (2 - zero) times the sum of x over the group, which a block makes once, in fp32, when x is there. Columns of x that are
 * alone come out exact; otherwise the error is that of fp32 sums of |q - 2| |x| and |2 - zero| |x| instead of |q - zero| |x|. */
#ifndef RQ_GEMV_GRID_CUH
#define RQ_GEMV_GRID_CUH
#include "gemv_tile.cuh"

struct rq_gemv_grid_args {
    const uint8_t *tiles;
    const uint8_t *scales, *zeros; /* [n_rb][n_group][16] fp16; zeros: NULL when symmetric */
    int n_kb, n_group;
    uint32_t steps_of_group; /* 32-column steps */
    uint32_t reciprocal;     /* floor(2^32 / steps_of_group) + 1, or 0 for one step a group */
};

/* -n twice, for integers 1 <= n < 2^11 (bfloat16: 2^8), as bits. */
__host__ __device__ constexpr uint32_t rq_minus_f16x2(uint32_t n) {
    uint32_t e = 0;
    while (n >> (e + 1)) ++e;
    return (0x8000u | (e + 15) << 10 | (n << (10 - e) & 0x3ffu)) * 0x00010001u;
}
__host__ __device__ constexpr uint32_t rq_minus_bf16x2(uint32_t n) {
    uint32_t e = 0;
    while (n >> (e + 1)) ++e;
    return (0x8000u | (e + 127) << 7 | (n << (7 - e) & 0x7fu)) * 0x00010001u;
}

/* Tiles of a batch: as many as 64 registers a thread leave room for. */
__host__ __device__ constexpr int rq_gemv_grid_depth(int bits, int steps, bool zeros) {
    if (bits > 2) return bits == 8 ? 1 : 2;
    return steps == 4 ? 4 : (steps == 2 ? 4 : 3) - (zeros ? 1 : 0);
}

/* Whether groups of 64 are taken as pairs of steps: the offsets of 4-bit codes with zero points leave no register for it on sm_80. */
__host__ __device__ constexpr bool rq_gemv_grid_pairs(int bits, bool zeros) { return bits != 4 || !zeros; }

/* STEPS: 32-column steps between two scales, 1 (any multiple of 32 columns), 2 (of 64) or 4 (of 128, and whole rows). */
template <int BITS_, int ACT_, int STEPS_, bool ZEROS_> struct rq_gemv_grid_tiles {
    static constexpr int BITS = BITS_, ACT = ACT_, STEPS = STEPS_, WORDS = BITS * 2;
    static constexpr int ROWS = 1;
    static constexpr bool EDITS_X = false, SAVES_X = false, ZEROS = ZEROS_, BF16 = ACT_ == RQ_ACT_BF16;
    static constexpr bool FOLDS = ZEROS_ && BITS_ == 2, SUBTRACTS = ZEROS_ && !FOLDS;
    static constexpr int DEPTH = rq_gemv_grid_depth(BITS, STEPS_, ZEROS_), SUMS = FOLDS ? 4 / STEPS_ : 0;
    typedef rq_gemv_grid_args args;
    /* Scales and zero points of rows l % 8 and l % 8 + 8 in the (l / 8)-th run of STEPS steps: of a tile, when it has several runs;
     * otherwise of all tiles of the batch, which are no more than 4. */
    static constexpr bool SIDE_OF_TILE = STEPS < 4;
    struct side {
        uint32_t scale, zero;
    };
    struct tile {
        uint32_t w[WORDS];
        side own;
    };
    struct place_type {
        const uint8_t *from;
        int rb, kb;
    };
    static_assert(SIDE_OF_TILE || DEPTH <= 4, "one load brings the side data of four runs of steps");

    const rq_gemv_grid_args &a;
    const int row; /* l / 4 */

    __device__ __forceinline__ rq_gemv_grid_tiles(const rq_gemv_grid_args &args_, const rq_gemv_job &, uint8_t *)
        : a(args_), row(threadIdx.x % 32 / 4) {}
    __device__ __forceinline__ void stage(int, int) {}
    __device__ __forceinline__ bool edits_x() const { return false; }
    __device__ __forceinline__ void edit_x(const rq_gemv_job &, uint8_t *, int, int) const {}

    __device__ __forceinline__ place_type place(int rb, int kb) const {
        const uint32_t tile_bytes = RQ_TILE_ROWS * RQ_TILE_COLS * BITS / 8;
        return {a.tiles + ptx_thread() % 32 * 16 + (size_t)((uint32_t)rb * a.n_kb + kb) * tile_bytes, rb, kb};
    }
    __device__ __forceinline__ void load(tile &t, const place_type &at, int d) const {
        const uint8_t *from = at.from + d * (RQ_TILE_ROWS * RQ_TILE_COLS * BITS / 8);
#pragma unroll
        for (int p = 0; p < WORDS / 4; ++p) {
            const uint4 v = ptx_load_once16(from + p * 512);
            t.w[4 * p] = v.x, t.w[4 * p + 1] = v.y, t.w[4 * p + 2] = v.z, t.w[4 * p + 3] = v.w;
        }
        if (BITS == 3) {
            const uint2 v = ptx_load_once8(from + 512 - ptx_thread() % 32 * 8);
            t.w[WORDS - 2] = v.x, t.w[WORDS - 1] = v.y;
        }
        if (SIDE_OF_TILE) load_runs(t.own, at.rb, at.kb + d);
    }
    __device__ __forceinline__ void load_side(side &to, int rb, int kb) const {
        if (!SIDE_OF_TILE) load_runs(to, rb, kb);
    }
    __device__ __forceinline__ void load_runs(side &to, int rb, int kb) const {
        const int lane = ptx_thread() % 32; /* rather than in a register through all of multiply */
        /* Lanes of runs that there are not read with the last one: a sector more would be memory traffic. */
        constexpr int runs = (SIDE_OF_TILE ? 4 : DEPTH * 4) / STEPS;
        const uint32_t step = kb * 4 + min(lane / 8, runs - 1) * STEPS;
        /* Past the row's end, where nothing is used: the last group. */
        const int group = min((int)(a.reciprocal ? __umulhi(step, a.reciprocal) : step), a.n_group - 1);
        const size_t at = (size_t)(((uint32_t)rb * a.n_group + group) * 8 + lane % 8) * 4;
        to.scale = ptx_load_side4(a.scales + at);
        if (ZEROS) to.zero = ptx_load_side4(a.zeros + at);
    }

    /* The fp16 bits of rows lane / 4 (low half) and lane / 4 + 8 in step s of tile d. */
    __device__ __forceinline__ uint32_t side_of(uint32_t of_lane, int d, int s) const {
        return __shfl_sync(0xffffffffu, of_lane, (SIDE_OF_TILE ? s : 4 * d + s) / STEPS * 8 + row);
    }
    static __device__ __forceinline__ float float_of(uint32_t two_rows, int lower) {
        return ptx_float_of_f16(lower ? two_rows >> 16 : two_rows);
    }

    /* -(M 4^-j + zero) of one row, a pair of them; for 8 bits in bfloat16 a float, in c[0]. */
    struct offsets {
        uint32_t c[4];
    };
    __device__ __forceinline__ offsets offsets_of(uint32_t zeros, int lower) const {
        offsets o;
        const uint32_t middle = 1u << (BITS - 1);
        const float zero_float = SUBTRACTS ? float_of(zeros, lower) : (float)middle;
        if (BF16 && BITS == 8) o.c[0] = __float_as_uint(-8388608.0f - zero_float);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (BF16 && BITS == 8) continue;
            if (!SUBTRACTS)
                o.c[j] = BF16 ? rq_minus_bf16x2((128u >> 2 * j) + middle) : rq_minus_f16x2((1024u >> 2 * j) + middle);
            else if (BF16) /* its upper half has all the bits of the float */
                o.c[j] = ptx_prmt(__float_as_uint(-(float)(128 >> 2 * j) - zero_float), 0, 0x3232);
            else
                o.c[j] = ptx_fma_f16x2(ptx_prmt(zeros, 0, lower ? 0x3232 : 0x1010), rq_minus_f16x2(1),
                                       rq_minus_f16x2(1024u >> 2 * j));
        }
        return o;
    }

    /* j of pair c of a row, below, for 2 and 4 bits. The further up codes may stay, the fewer shifts there are; fp16 has 10 bits of room,
     * bfloat16 7. With zero points each j has offsets of its own in two registers, and few are better than few shifts. */
    static __device__ __forceinline__ constexpr int place_of(int c) {
        if (BITS == 4) return BF16 || SUBTRACTS ? 0 : c % 2 * 2;
        return BF16 && c == 3 ? 0 : c;
    }
    /* q - zero of two codes whose lowest bits are 2 j bits above the lowest of each half of `bits`. MASK is of codes at 0. */
    template <uint32_t MASK> static __device__ __forceinline__ uint32_t pair(uint32_t bits, int j, uint32_t offset) {
        const uint32_t v = ptx_lop3<0xea>(bits, MASK << 2 * j, BF16 ? 0x43004300u : 0x64006400u);
        if (BF16) return ptx_fma_bf16x2(v, (uint32_t)(127 - 2 * j) * 0x00800080u, offset);
        return j == 0 ? ptx_add_f16x2(v, offset) : ptx_fma_f16x2(v, (uint32_t)(15 - 2 * j) * 0x04000400u, offset);
    }

    /* The A fragments of the two mma of a step: pair c (columns 2 c, 2 c + 1) of row lane / 4 + 8 r is a[c / 2][c % 2 * 2 + r]. */
    __device__ __forceinline__ void decode(uint32_t (&a)[2][4], const tile &t, int s, const offsets (&o)[2]) const {
        if (BITS == 4) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const uint32_t w = t.w[2 * s + r];
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    const int j = place_of(c);
                    a[c / 2][c % 2 * 2 + r] = pair<0x000f000fu>(w >> (4 * c - 2 * j), j, o[r].c[j]);
                }
            }
        } else if (BITS == 8) {
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    const uint32_t w = t.w[4 * s + 2 * r + c / 2];
                    uint32_t v;
                    if (BF16) {
                        const float offset = __uint_as_float(o[r].c[0]);
                        const uint32_t low = ptx_prmt(w, 0x4b000000u, 0x7440u + c % 2 * 2);
                        const uint32_t high = ptx_prmt(w, 0x4b000000u, 0x7441u + c % 2 * 2);
                        v = ptx_prmt(__float_as_uint(__uint_as_float(low) + offset),
                                     __float_as_uint(__uint_as_float(high) + offset), 0x7632);
                    } else
                        v = ptx_add_f16x2(ptx_prmt(w, 0x64646464u, c % 2 ? 0x4342 : 0x4140), o[r].c[0]);
                    a[c / 2][c % 2 * 2 + r] = v;
                }
        } else if (BITS == 3) {
            /* The high bits of even columns to the low half, of odd ones to the other, as the low bits lie. Then one select joins
             * the bits of every second pair, four bits apart: from there on they are like 4-bit codes. */
            const uint32_t both = t.w[WORDS - 2 + s / 2];
            const uint32_t high = s % 2 ? ptx_prmt(both, both >> 1, 0x7632) : ptx_prmt(both, both << 15, 0x7610);
            const uint32_t even = ptx_lop3<0xca>(0x33333333u, t.w[s], high << 2);
            const uint32_t odd = ptx_lop3<0xca>(0x33333333u, t.w[s] >> 2, high);
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    const int j = BF16 && SUBTRACTS ? 0 : c / 2 * 2, down = 8 * r + 2 * (c / 2 * 2 - j);
                    a[c / 2][c % 2 * 2 + r] = pair<0x00070007u>((c % 2 ? odd : even) >> down, j, o[r].c[j]);
                }
        } else {
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    /* Shifted down by 8 for the second row, or as far as leaves the code within the bits below M. */
                    const int j = place_of(c), down = 8 * r + 2 * (c - j);
                    a[c / 2][c % 2 * 2 + r] = pair<0x00030003u>(t.w[s] >> down, j, o[r].c[j]);
                }
        }
    }

    /* What the sums of a group begin with: nothing; or, where codes have no zero point taken off but the middle, 2^(bits-1), the rest of it
     * times the sum of x. */
    template <int HALVES, class X>
    __device__ __forceinline__ void start(float (&sum)[HALVES][4], uint32_t zeros, const X &x, int run) const {
        float2 of_x = make_float2(0.0f, 0.0f);
        const float middle = (float)(1 << (BITS - 1));
        const float rest[2] = {FOLDS ? middle - float_of(zeros, 0) : 0.0f, FOLDS ? middle - float_of(zeros, 1) : 0.0f};
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
            if constexpr (FOLDS) of_x = x.sums(run, h);
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[h][i] = FOLDS ? rest[i / 2] * (i % 2 ? of_x.y : of_x.x) : 0.0f;
        }
    }

    template <int HALVES, class X>
    __device__ __forceinline__ void multiply(float (&acc)[HALVES][4], const tile &t, const side &of_batch, int d,
                                             const X (&x)[HALVES]) const {
        const side &of = SIDE_OF_TILE ? t.own : of_batch;
        float sum[HALVES][4];
        offsets o[2];
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            if (s % STEPS == 0) {
                const uint32_t zeros = ZEROS ? side_of(of.zero, d, s) : 0;
                o[0] = offsets_of(zeros, 0), o[1] = offsets_of(zeros, 1);
                start<HALVES>(sum, zeros, x[0], s / STEPS);
            }
            uint32_t w[2][4];
            decode(w, t, s, o);
#pragma unroll
            for (int h = 0; h < HALVES; ++h) {
                const uint4 b = x[h].step(s);
                rq_gemv_mma<ACT>(sum[h], w[0], b.x, b.y);
                rq_gemv_mma<ACT>(sum[h], w[1], b.z, b.w);
            }
            if (s % STEPS == STEPS - 1) {
                const uint32_t scales = side_of(of.scale, d, s);
                const float upper = float_of(scales, 0), lower = float_of(scales, 1);
#pragma unroll
                for (int h = 0; h < HALVES; ++h)
#pragma unroll
                    for (int i = 0; i < 4; ++i) acc[h][i] = fmaf(i < 2 ? upper : lower, sum[h][i], acc[h][i]);
            }
        }
    }
    template <int HALVES> __device__ __forceinline__ void end_rows(float (&)[HALVES][4], int) const {}
    __device__ __forceinline__ float correct(float sum, const rq_gemv_job &, int, int, int) const { return sum; }
};

/* All kernels of a number of bits, and the one of a description. */
template <int BITS, int ACT, int STEPS, bool ZEROS> static const void *rq_gemv_grid_function(bool two_halves) {
    typedef rq_gemv_grid_tiles<BITS, ACT, STEPS, ZEROS> tiles;
    return two_halves ? (const void *)rq_gemv<tiles, 2> : (const void *)rq_gemv<tiles, 1>;
}
template <int BITS, int ACT, int STEPS> static const void *rq_gemv_grid_function(bool two_halves, bool zeros) {
    if constexpr (STEPS != 2 || rq_gemv_grid_pairs(BITS, true))
        if (zeros) return rq_gemv_grid_function<BITS, ACT, STEPS, true>(two_halves);
    return rq_gemv_grid_function<BITS, ACT, STEPS, false>(two_halves);
}
template <int BITS, int ACT> static const void *rq_gemv_grid_function(bool two_halves, bool zeros, int steps) {
    return steps == 4   ? rq_gemv_grid_function<BITS, ACT, 4>(two_halves, zeros)
           : steps == 2 ? rq_gemv_grid_function<BITS, ACT, 2>(two_halves, zeros)
                        : rq_gemv_grid_function<BITS, ACT, 1>(two_halves, zeros);
}
template <int BITS> static const void *rq_gemv_grid_function(const rq_cuda_gemv_desc *d, int steps) {
    const bool two_halves = d->n_tok > 8;
    return d->act == RQ_ACT_F16 ? rq_gemv_grid_function<BITS, RQ_ACT_F16>(two_halves, d->zeros, steps)
                                : rq_gemv_grid_function<BITS, RQ_ACT_BF16>(two_halves, d->zeros, steps);
}
#endif
