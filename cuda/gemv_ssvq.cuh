/* SPDX-License-Identifier: Apache-2.0 */
/* Tiles of SSVQ (fmt_ssvq.h) for the skeleton of gemv_tile.cuh: a code is looked up, signs are or-ed in.
 *
 * The codebook of magnitudes lies in shared memory 8 times (vectors of 4: 16 times), all copies of an entry in 128 bytes. The lanes that
 * a 128-bit (64-bit) load serves at once, 8 (16) of them, each read a copy of their own: whatever the codes are, no two meet in
 * a bank. The codes lie in the words so that one LOP3 makes the offset, (w & 0x7f80) | copy. A shift and a LOP3,
 * (w << n & 0x80008000) ^ pair, put the signs on two magnitudes, and the result is where the mma wants it.
 *
 * Magnitudes of a byte become the integers 0..255 in the type of x, exact in fp16 and in bfloat16. fp16 magnitudes go with fp16 x.
 * The scales of codebook and row come after the sums. In outlier columns x is zero for the tiles, and their own int8
 * weights are added in fp32, with x as it was, once an output. */
#ifndef RQ_GEMV_SSVQ_CUH
#define RQ_GEMV_SSVQ_CUH
#include "gemv_tile.cuh"

/* Shared memory of the format: the table, x of the outlier columns [outlier][token], and which codebook it is. What is needed once a
 * row block lies there rather than in a register. */
enum { RQ_SSVQ_TABLE = 256 * 128, RQ_SSVQ_BOOK = RQ_SSVQ_TABLE + 16 * 16 * 4, RQ_SSVQ_SHARED = RQ_SSVQ_BOOK + 16 };

struct rq_gemv_ssvq_args {
    const uint8_t *tiles, *scales, *book; /* one of rq_tile_layout's arrays each */
    const float *book_scales;
    const uint8_t *outliers;
    const int32_t *outlier_cols;
    const float *outlier_scales;
    int n_kb, n_group, n_book, book_kb, book_u8, n_outlier;
    uint32_t zero;                       /* is 0 */
    uint32_t steps_of_group, reciprocal; /* as in rq_gemv_grid_args */
};

/* The halves, or bfloat16s, of bytes 0 and 1. */
template <int ACT> __device__ __forceinline__ uint32_t rq_ssvq_pair_of_bytes(uint32_t bytes) {
    const float low = (float)(bytes & 0xffu), high = (float)(bytes >> 8 & 0xffu);
    if (ACT == RQ_ACT_BF16) /* 8 significant bits: the upper half of the float is all of it */
        return ptx_prmt(__float_as_uint(low), __float_as_uint(high), 0x7632);
    const __half2 pair = __floats2half2_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, 4);
    return bits;
}

/* Tiles of a batch: as many as 64 registers a thread leave room for. */
__host__ __device__ constexpr int rq_gemv_ssvq_depth(int steps) { return steps == 1 ? 2 : 3; }

/* STEPS: 32-column steps between two scales, 1 (any multiple of 32 columns), 4 (of 128), 0 (a scale for the row). */
template <int VEC_, int ACT_, int STEPS_> struct rq_gemv_ssvq_tiles {
    static constexpr int VEC = VEC_, ACT = ACT_, STEPS = STEPS_, DEPTH = rq_gemv_ssvq_depth(STEPS_);
    static constexpr int TILE_BYTES = VEC == 8 ? 512 : 768;
    static constexpr bool EDITS_X = true;
    typedef rq_gemv_ssvq_args args;
    struct tile {
        uint4 code;
        uint2 sign;     /* VEC 4 */
        uint32_t scale; /* STEPS > 0: of rows 2 (l % 8), 2 (l % 8) + 1 in step l / 8 */
    };

    struct side {}; /* none of a batch */
    struct place_type {
        const uint8_t *from;
        int rb, kb;
    };

    const rq_gemv_ssvq_args &a;
    const int lane;
    uint8_t *const front;
    const uint32_t table, copy; /* the table, and this lane's copy in an entry */

    __device__ __forceinline__ rq_gemv_ssvq_tiles(const rq_gemv_ssvq_args &args_, const rq_gemv_job &, uint8_t *front_)
        : a(args_), lane(threadIdx.x % 32), front(front_), table(table_address(args_, front_)),
          copy(VEC == 8 ? threadIdx.x % 8 * 16 : threadIdx.x % 16 * 8) {}
    /* On sm_90 ptxas adds a base to a load's address for nothing when it is in a uniform register, and a kernel's parameter is;
     * on sm_80 it sees that of a constant, and not of a sum. */
    static __device__ __forceinline__ uint32_t table_address(const rq_gemv_ssvq_args &args, const uint8_t *front) {
#if __CUDA_ARCH__ >= 900
        return ptx_shared(front) + args.zero;
#else
        return ptx_shared(front);
#endif
    }
    __device__ __forceinline__ float *outlier_x() const { return reinterpret_cast<float *>(front + RQ_SSVQ_TABLE); }
    __device__ __forceinline__ int *book_number() const { return reinterpret_cast<int *>(front + RQ_SSVQ_BOOK); }

    /* Columns of one part have one codebook. */
    __device__ __forceinline__ void stage(int kb0, int) const {
        const int book = kb0 / a.book_kb;
        if (threadIdx.x == 0) *book_number() = book;
        const uint8_t *from = a.book + (size_t)book * 256 * VEC * (a.book_u8 ? 1 : 2);
        for (int i = threadIdx.x; i < RQ_SSVQ_TABLE / 16; i += RQ_GEMV_THREADS) {
            const int code = i / 8;
            uint4 v;
            if (a.book_u8) {
                uint2 w;
                if (VEC == 8)
                    w = __ldg(reinterpret_cast<const uint2 *>(from) + code);
                else
                    w.x = w.y = __ldg(reinterpret_cast<const uint32_t *>(from) + code);
                v.x = rq_ssvq_pair_of_bytes<ACT>(w.x), v.y = rq_ssvq_pair_of_bytes<ACT>(w.x >> 16);
                v.z = rq_ssvq_pair_of_bytes<ACT>(w.y), v.w = rq_ssvq_pair_of_bytes<ACT>(w.y >> 16);
            } else if (VEC == 8) {
                v = __ldg(reinterpret_cast<const uint4 *>(from) + code);
            } else {
                const uint2 w = __ldg(reinterpret_cast<const uint2 *>(from) + code);
                v = make_uint4(w.x, w.y, w.x, w.y);
            }
            reinterpret_cast<uint4 *>(front)[i] = v;
        }
    }

    /* What the codes of outlier columns say does not count: x is zero there, and kept aside. */
    __device__ __forceinline__ bool edits_x() const { return a.n_outlier != 0; }
    __device__ __forceinline__ void edit_x(const rq_gemv_job &job, uint8_t *x, int kb0, int kb1) const {
        for (int i = threadIdx.x; i < a.n_outlier * job.n_tok; i += RQ_GEMV_THREADS) {
            const int o = i / job.n_tok, token = i % job.n_tok, col = __ldg(a.outlier_cols + o);
            const int from = job.perm ? __ldg(job.perm + col) : col, here = col - kb0 * RQ_TILE_COLS;
            outlier_x()[o * 16 + token] = rq_gemv_get<ACT>(job.x, (size_t)token * job.n_in + from);
            if (here >= 0 && here < (kb1 - kb0) * RQ_TILE_COLS)
                reinterpret_cast<uint16_t *>(x + token * job.x_pitch)[here] = 0;
        }
    }

    __device__ __forceinline__ place_type place(int rb, int kb) const {
        return {a.tiles + lane * 16 + (size_t)((uint32_t)rb * a.n_kb + kb) * TILE_BYTES, rb, kb};
    }
    __device__ __forceinline__ void load_side(side &, int, int) const {}
    __device__ __forceinline__ void load(tile &t, const place_type &at, int d) const {
        const uint8_t *from = at.from + d * TILE_BYTES;
        t.code = ptx_load_once16(from);
        if (VEC == 4) t.sign = ptx_load_once8(from + 512 - lane * 8);
        if (STEPS) {
            const uint32_t step = (at.kb + d) * 4 + lane / 8;
            const int group = min((int)(a.reciprocal ? __umulhi(step, a.reciprocal) : step), a.n_group - 1);
            t.scale = ptx_load_side4(a.scales + ((size_t)((uint32_t)at.rb * a.n_group + group) * 8 + lane % 8) * 4);
        }
    }

    /* Where the magnitudes of the code in bits 7..14 of w are: (a & b) | c. */
    __device__ __forceinline__ uint32_t entry(uint32_t w) const { return table + ptx_lop3<0xea>(w, 0x7f80u, copy); }
    /* Two magnitudes with the signs in bits 15 - LEFT and 31 - LEFT of w: (a & b) ^ c. */
    template <int LEFT> static __device__ __forceinline__ uint32_t with_signs(uint32_t w, uint32_t pair) {
        return ptx_lop3<0x6a>(w << LEFT, 0x80008000u, pair);
    }

    /* The A fragments of the two mma of step S: pair c (columns 2 c, 2 c + 1) of row lane / 4 + 8 r is m[c / 2][c % 2 * 2 + r]. */
    template <int S> __device__ __forceinline__ void decode(uint32_t (&m)[2][4], const tile &t) const {
        const uint32_t w = S == 0 ? t.code.x : S == 1 ? t.code.y : S == 2 ? t.code.z : t.code.w;
        if (VEC == 8) {
            const uint4 u = ptx_load_shared16(entry(w)), v = ptx_load_shared16(entry(w >> 16));
            m[0][0] = with_signs<0>(w, u.x), m[0][1] = with_signs<9>(w, v.x);
            m[0][2] = with_signs<10>(w, u.y), m[0][3] = with_signs<11>(w, v.y);
            m[1][0] = with_signs<12>(w, u.z), m[1][1] = with_signs<13>(w, v.z);
            m[1][2] = with_signs<14>(w, u.w), m[1][3] = with_signs<15>(w, v.w);
        } else {
            constexpr int L = S % 2 * 8;
            const uint32_t s = S < 2 ? t.sign.x : t.sign.y;
            const uint2 u0 = ptx_load_shared8(entry(w << 7)), u1 = ptx_load_shared8(entry(w >> 1));
            const uint2 v0 = ptx_load_shared8(entry(w >> 9)), v1 = ptx_load_shared8(entry(w >> 17));
            m[0][0] = with_signs<L>(s, u0.x), m[0][2] = with_signs<L + 1>(s, u0.y);
            m[1][0] = with_signs<L + 2>(s, u1.x), m[1][2] = with_signs<L + 3>(s, u1.y);
            m[0][1] = with_signs<L + 4>(s, v0.x), m[0][3] = with_signs<L + 5>(s, v0.y);
            m[1][1] = with_signs<L + 6>(s, v1.x), m[1][3] = with_signs<L + 7>(s, v1.y);
        }
    }

    /* The scale of row lane / 4 + 8 * lower in step s. */
    __device__ __forceinline__ float scale(const tile &t, int s, int lower) const {
        const uint32_t pair = __shfl_sync(0xffffffffu, t.scale, s * 8 + lower * 4 + lane / 8);
        return ptx_float_of_f16(lane / 4 % 2 ? pair >> 16 : pair & 0xffffu);
    }

    template <int S, int HALVES>
    __device__ __forceinline__ void step(float (&acc)[HALVES][4], float (&sum)[HALVES][4], const tile &t,
                                         const uint4 *const (&x)[HALVES]) const {
        uint32_t m[2][4];
        decode<S>(m, t);
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
            const uint4 b = x[h][4 * S];
            rq_gemv_mma<ACT>(STEPS ? sum[h] : acc[h], m[0], b.x, b.y);
            rq_gemv_mma<ACT>(STEPS ? sum[h] : acc[h], m[1], b.z, b.w);
        }
        if (STEPS == 1 || (STEPS == 4 && S == 3)) {
            const float upper = scale(t, S, 0), lower = scale(t, S, 1);
#pragma unroll
            for (int h = 0; h < HALVES; ++h)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    acc[h][i] = fmaf(i < 2 ? upper : lower, sum[h][i], acc[h][i]);
                    sum[h][i] = 0.0f;
                }
        }
    }
    template <int HALVES>
    __device__ __forceinline__ void multiply(float (&acc)[HALVES][4], const tile &t, const side &, int,
                                             const uint4 *const (&x)[HALVES]) const {
        float sum[HALVES][4] = {};
        step<0>(acc, sum, t, x);
        step<1>(acc, sum, t, x);
        step<2>(acc, sum, t, x);
        step<3>(acc, sum, t, x);
    }

    /* Several codebooks meet only in the sum of the parts. */
    template <int HALVES> __device__ __forceinline__ void end_rows(float (&acc)[HALVES][4], int rb) const {
        if (a.n_book == 1) return;
        const float by = __ldg(a.book_scales + (size_t)rb * a.n_book + *book_number());
#pragma unroll
        for (int h = 0; h < HALVES; ++h)
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[h][i] *= by;
    }

    __device__ __forceinline__ float correct(float sum, const rq_gemv_job &, int rb, int row, int token) const {
        if (a.n_book == 1) sum *= __ldg(a.book_scales + rb);
        if (STEPS == 0)
            sum *= __half2float(__ldg(reinterpret_cast<const __half *>(a.scales) + (size_t)rb * RQ_TILE_ROWS + row));
        const int8_t *codes =
            reinterpret_cast<const int8_t *>(a.outliers) + (size_t)rb * a.n_outlier * RQ_TILE_ROWS + row;
#pragma unroll 4
        for (int o = 0; o < a.n_outlier; ++o) {
            const float scale = __ldg(a.outlier_scales + (size_t)rb * a.n_outlier + o);
            sum = fmaf(scale * (float)__ldg(codes + o * RQ_TILE_ROWS), outlier_x()[o * 16 + token], sum);
        }
        return sum;
    }
};

/* All kernels of one vector length, and the one of a description. */
template <int VEC, int ACT> static const void *rq_gemv_ssvq_function(bool two_halves, int steps) {
    typedef rq_gemv_ssvq_tiles<VEC, ACT, 0> row;
    typedef rq_gemv_ssvq_tiles<VEC, ACT, 4> tiles;
    typedef rq_gemv_ssvq_tiles<VEC, ACT, 1> each;
    if (two_halves)
        return steps == 0   ? (const void *)rq_gemv<row, 2>
               : steps == 4 ? (const void *)rq_gemv<tiles, 2>
                            : (const void *)rq_gemv<each, 2>;
    return steps == 0   ? (const void *)rq_gemv<row, 1>
           : steps == 4 ? (const void *)rq_gemv<tiles, 1>
                        : (const void *)rq_gemv<each, 1>;
}
template <int VEC> static const void *rq_gemv_ssvq_function(const rq_cuda_gemv_desc *d, int steps) {
    return d->act == RQ_ACT_F16 ? rq_gemv_ssvq_function<VEC, RQ_ACT_F16>(d->n_tok > 8, steps)
                                : rq_gemv_ssvq_function<VEC, RQ_ACT_BF16>(d->n_tok > 8, steps);
}
#endif
