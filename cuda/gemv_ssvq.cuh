/* SPDX-License-Identifier: Apache-2.0 */
/* Tiles of SSVQ (fmt_ssvq.h) for the skeleton of gemv_tile.cuh: a code is looked up, signs are put on.
 *
 * The codebook of magnitudes lies in shared memory in copies, all copies of an entry in 128 bytes, and the lanes that a load serves at
 * once read a copy each: whatever the codes are, no two meet in a bank. table + 128 code is one dot product of bytes.
 *
 * BYTES: magnitudes are bytes, and stay bytes until the mma: bits 00mm of a half are the subnormal m 2^-24, which tensor cores multiply
 * exactly, and 80mm is its negative; 2^24 goes to the scales. A shift and a mask make 4 bytes of signs, and one PRMT joins two of them
 * with two magnitudes to the register that the mma takes. The table is read with half the bytes of one of halves.
 *
 * Otherwise the table has halves (or bfloat16: the integers 0..255 of byte magnitudes, exact): a shift and a LOP3,
 * (w << n & 0x80008000) ^ pair, put the signs on two of them. fp16 magnitudes go with fp16 x.
 *
 * The scales of codebook and row come after the sums. In outlier columns x is zero for the tiles, and their own int8
 * weights are added in fp32, with x as it was, once an output. */
#ifndef RQ_GEMV_SSVQ_CUH
#define RQ_GEMV_SSVQ_CUH
#include "gemv_tile.cuh"

/* Shared memory of the format: x of the outlier columns [outlier][token], which codebook it is, and the table. What is needed once a
 * row block lies there rather than in a register. */
enum { RQ_SSVQ_BOOK = 16 * 16 * 4, RQ_SSVQ_TABLE = RQ_SSVQ_BOOK + 128 };

/* Bytes of the table from an entry to the next, all copies: 128 up to 1024 entries, above what 128 KiB have room for, and then lanes may
 * meet in a bank. */
__host__ __device__ constexpr int rq_gemv_ssvq_stride(int n_codes) { return n_codes <= 1024 ? 128 : 131072 / n_codes; }

/* A warp takes two row blocks at once: what it reads of x, 16 bytes a lane for 16 weights, serves two rows. */
enum { RQ_SSVQ_ROWS = 2 };
/* Tiles of a batch: as many as registers are for. */
__host__ __device__ constexpr int rq_gemv_ssvq_depth(int steps) { return steps == 1 ? 1 : 2; }

struct rq_gemv_ssvq_args {
    const uint8_t *tiles, *scales, *book; /* one of rq_tile_layout's arrays each */
    const float *book_scales;
    const uint8_t *outliers;
    const int32_t *outlier_cols;
    const float *outlier_scales;
    int n_rb, n_kb, n_group, n_book, book_kb, book_u8, n_outlier;
    /* HIGH: entries of a codebook, and the stride of the table, its logarithm, and in the second byte. */
    int n_codes, log_stride;
    uint32_t stride, stride_2;
    uint32_t steps_of_group, reciprocal; /* as in rq_gemv_grid_args */
};

/* The numbers of bytes 0 and 1: or-ed below the exponent of 1024, or of 2^23 in fp32, whose upper half is then the bfloat16. */
template <int ACT> __device__ __forceinline__ uint32_t rq_ssvq_pair_of_bytes(uint32_t bytes) {
    if (ACT == RQ_ACT_F16) return ptx_add_f16x2(ptx_prmt(bytes, 0x64646464u, 0x4140), 0xe400e400u);
    const float low = __uint_as_float(ptx_prmt(bytes, 0x4b000000u, 0x7440)) - 8388608.0f;
    const float high = __uint_as_float(ptx_prmt(bytes, 0x4b000000u, 0x7441)) - 8388608.0f;
    return ptx_prmt(__float_as_uint(low), __float_as_uint(high), 0x7632);
}

/* BYTES: the table has bytes. HIGH: 0, 2 or 4 bits of a code are not in its byte. STEPS: 32-column steps between two scales, 1 (any multiple of 32 columns), 4 (of 128), 0 (a scale for the row). */
template <int VEC_, int ACT_, int STEPS_, bool BYTES_, int HIGH_ = 0> struct rq_gemv_ssvq_tiles {
    static constexpr int VEC = VEC_, ACT = ACT_, STEPS = STEPS_, DEPTH = rq_gemv_ssvq_depth(STEPS_);
    static constexpr bool BYTES = BYTES_;
    static constexpr int HIGH = HIGH_;
    static constexpr int LANE_HIGH = 8 / VEC * HIGH, HIGH_AT = VEC == 8 ? 512 : 768,
                         TILE_BYTES = HIGH_AT + 32 * LANE_HIGH;
    static constexpr int ENTRY = VEC * (BYTES ? 1 : 2);
    static constexpr bool EDITS_X = true, SAVES_X = true;
    static constexpr int SUMS = 0;
    static constexpr int ROWS = RQ_SSVQ_ROWS;
    typedef rq_gemv_ssvq_args args;
    /* Scales, as in rq_gemv_grid_tiles: of rows 2 (l % 8), 2 (l % 8) + 1 in the (l / 8)-th step of a tile (STEPS 1) or tile of a batch. */
    struct side {
        uint32_t scale[ROWS];
    };
    struct tile {
        uint4 code[ROWS];
        uint2 sign[ROWS]; /* VEC 4 */
        uint2 high[ROWS]; /* HIGH */
        side own;         /* STEPS 1 */
    };
    struct place_type {
        const uint8_t *from;
        int rb, kb;
    };

    static_assert(DEPTH <= 4, "one load brings the scales of four tiles");

    const rq_gemv_ssvq_args &a;
    const rq_gemv_job &job;
    const int lane;
    const uint32_t my_half; /* selects, of two rows' halves, that of row l / 4 */
    uint8_t *const front;
    const uint32_t table; /* this lane's copy of the first entry */

    __device__ __forceinline__ rq_gemv_ssvq_tiles(const rq_gemv_ssvq_args &args_, const rq_gemv_job &job_,
                                                  uint8_t *front_)
        : a(args_), job(job_), lane(threadIdx.x % 32), my_half(threadIdx.x / 4 % 2 ? 0x4432 : 0x4410), front(front_),
          table(ptx_shared(front_) + RQ_SSVQ_TABLE +
                (threadIdx.x & ((HIGH ? args_.stride : 128) / ENTRY - 1)) * ENTRY) {
        const int slot = threadIdx.x / 32 >> job.log_warps, slots = RQ_GEMV_WARPS >> job.log_warps;
        fetch_ends((blockIdx.x / job.split * slots + slot) * ROWS);
    }
    __device__ __forceinline__ float *outlier_x() const { return reinterpret_cast<float *>(front); }
    __device__ __forceinline__ int *book_number() const { return reinterpret_cast<int *>(front + RQ_SSVQ_BOOK); }

    /* Columns of one part have one codebook. */
    __device__ __forceinline__ void stage(int kb0, int) const {
        const int book = kb0 / a.book_kb;
        if (threadIdx.x == 0) *book_number() = book;
        const int n_codes = HIGH ? a.n_codes : 256, log_slots = HIGH ? a.log_stride - 4 : 3;
        const uint8_t *from = a.book + (size_t)book * n_codes * VEC * (a.book_u8 ? 1 : 2);
#pragma unroll 1 /* few registers: the first tiles are in some of them */
        for (int i = threadIdx.x; i < n_codes << log_slots; i += RQ_GEMV_THREADS) {
            const int code = i >> log_slots;
            uint4 v;
            if (BYTES && VEC == 8) {
                const uint2 w = __ldg(reinterpret_cast<const uint2 *>(from) + code);
                v = make_uint4(w.x, w.y, w.x, w.y);
            } else if (BYTES) {
                v.x = v.y = v.z = v.w = __ldg(reinterpret_cast<const uint32_t *>(from) + code);
            } else if (a.book_u8) {
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
            reinterpret_cast<uint4 *>(front + RQ_SSVQ_TABLE)[i] = v;
        }
    }

    /* What the codes of outlier columns say does not count: x is zero there, and kept aside. */
    __device__ __forceinline__ bool edits_x() const { return a.n_outlier != 0; }
    __device__ __forceinline__ void edit_x(const rq_gemv_job &, uint8_t *x, int kb0, int kb1) const {
        take_outliers<uint16_t>(x, kb0, kb1, [this](size_t i) { return rq_gemv_get<ACT>(job.x, i); });
    }
    template <class T, class GET>
    __device__ __forceinline__ void take_outliers(uint8_t *x, int kb0, int kb1, const GET &get) const {
#pragma unroll 1
        for (int i = threadIdx.x; i < a.n_outlier * job.n_tok; i += RQ_GEMV_THREADS) {
            const int o = i / job.n_tok, token = i % job.n_tok, col = __ldg(a.outlier_cols + o);
            const int from = job.perm ? __ldg(job.perm + col) : col, here = col - kb0 * RQ_TILE_COLS;
            outlier_x()[o * 16 + token] = get((size_t)token * job.n_in + from);
            if (here >= 0 && here < (kb1 - kb0) * RQ_TILE_COLS)
                reinterpret_cast<T *>(x + token * job.x_pitch)[here] = 0;
        }
    }

    __device__ __forceinline__ place_type place(int rb, int kb) const {
        return {a.tiles + lane * 16 + (size_t)((uint32_t)rb * a.n_kb + kb) * TILE_BYTES, rb, kb};
    }
    __device__ __forceinline__ void load(tile &t, const place_type &at, int d) const {
        const uint8_t *from = at.from + d * TILE_BYTES;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            t.code[r] = ptx_load_once16(from);
            if (VEC == 4) t.sign[r] = ptx_load_once8(from + 512 - lane * 8);
            const uint8_t *high = from + HIGH_AT - lane * (16 - LANE_HIGH);
            if (LANE_HIGH == 8) t.high[r] = ptx_load_once8(high);
            if (LANE_HIGH == 4) t.high[r].x = ptx_load_once4(high);
            if (LANE_HIGH == 2) t.high[r].x = ptx_load_once2(high);
            if (r + 1 < ROWS && at.rb + r + 1 < a.n_rb) from += (size_t)a.n_kb * TILE_BYTES;
        }
        if (STEPS == 1) load_scales(t.own, at.rb, at.kb + d);
    }
    __device__ __forceinline__ void load_side(side &to, int rb, int kb) const {
        if (STEPS == 4) load_scales(to, rb, kb);
    }
    __device__ __forceinline__ void load_scales(side &to, int rb, int kb) const {
        const uint32_t step = kb * 4 + lane / 8 * STEPS;
        const int group = min((int)(a.reciprocal ? __umulhi(step, a.reciprocal) : step), a.n_group - 1);
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
            to.scale[r] = ptx_load_side4(
                a.scales + (size_t)(((uint32_t)min(rb + r, a.n_rb - 1) * a.n_group + group) * 8 + lane % 8) * 4);
    }

    /* Where the magnitudes are of the code in byte B of w: table + copy + 128 code, an integer dot product with one byte that is not
     * zero. It runs where multiplications do, and the integer ALU has more than enough to do here. */
    template <int B> __device__ __forceinline__ uint32_t entry(uint32_t w, uint32_t high) const {
        if (HIGH == 0) return ptx_dot_bytes(w, 128u << 8 * B, table);
        const uint32_t two = ptx_prmt(w, high, B < 2 ? 0x5140 : 0x7362); /* whole codes, two of them */
        return ptx_dot_halves(two, B % 2 ? a.stride_2 : a.stride, table);
    }
    /* The upper bits of step S's codes, in the bytes that their lower bits have in codes(). */
    template <int S> static __device__ __forceinline__ uint32_t high(const tile &t, int r) {
        constexpr int J = VEC == 8 ? S / 2 : S;
        const uint2 &h = t.high[r];
        if (HIGH == 0) return 0;
        if (HIGH == 4) return (J / 2 ? h.y : h.x) >> 4 * (J % 2) & 0x0f0f0f0fu;
        return (VEC == 4 ? h.x >> 2 * J : (h.x | h.x << 14) >> 4 * J) & 0x03030303u;
    }
    /* Two magnitudes with the signs in bits 15 - LEFT and 31 - LEFT of w: (a & b) ^ c. */
    template <int LEFT> static __device__ __forceinline__ uint32_t with_signs(uint32_t w, uint32_t pair) {
        return ptx_lop3<0x6a>(w << LEFT, 0x80008000u, pair);
    }

    /* The A fragments of the two mma of step S: pair c (columns 2 c, 2 c + 1) of row lane / 4 + 8 H is m[c / 2][c % 2 * 2 + H]. */
    template <int S> __device__ __forceinline__ void decode(uint32_t (&m)[2][4], const tile &t, int r) const {
        row<S, 0>(m, t, r);
        row<S, 1>(m, t, r);
    }
    template <int S> static __device__ __forceinline__ uint32_t codes(const tile &t, int r) {
        const uint4 &c = t.code[r];
        return VEC == 8 ? S < 2 ? c.x : c.y : S == 0 ? c.x : S == 1 ? c.y : S == 2 ? c.z : c.w;
    }
    template <int S> static __device__ __forceinline__ uint32_t signs(const tile &t, int r) {
        return VEC == 8 ? S < 2 ? t.code[r].z : t.code[r].w : S < 2 ? t.sign[r].x : t.sign[r].y;
    }
    /* The magnitudes of row lane / 4 + 8 H in step S, columns 0..3 and 4..7. */
    template <int S, int H> __device__ __forceinline__ uint2 bytes(const tile &t, int r) const {
        const uint32_t w = codes<S>(t, r), v = high<S>(t, r);
        if (VEC == 8) return ptx_load_shared8(entry<S % 2 * 2 + H>(w, v));
        return make_uint2(ptx_load_shared4(entry<H * 2>(w, v)), ptx_load_shared4(entry<H * 2 + 1>(w, v)));
    }
    template <int S, int H> __device__ __forceinline__ uint4 halves(const tile &t, int r) const {
        const uint32_t w = codes<S>(t, r), v = high<S>(t, r);
        if (VEC == 8) return ptx_load_shared16(entry<S % 2 * 2 + H>(w, v));
        const uint2 low = ptx_load_shared8(entry<H * 2>(w, v)), up = ptx_load_shared8(entry<H * 2 + 1>(w, v));
        return make_uint4(low.x, low.y, up.x, up.y);
    }
    template <int S, int H> __device__ __forceinline__ void row(uint32_t (&m)[2][4], const tile &t, int r) const {
        constexpr int LEFT = S % 2 * 4 + H * 2; /* the signs of columns 0..3; of 4..7: LEFT + 1 */
        const uint32_t w = signs<S>(t, r);
        if (BYTES) {
            const uint2 u = bytes<S, H>(t, r);
            const uint32_t low = w << LEFT & 0x80808080u, high = w << (LEFT + 1) & 0x80808080u;
            m[0][H] = ptx_prmt(u.x, low, 0x7150), m[0][2 + H] = ptx_prmt(u.x, low, 0x6342);
            m[1][H] = ptx_prmt(u.y, high, 0x7150), m[1][2 + H] = ptx_prmt(u.y, high, 0x6342);
        } else {
            const uint4 u = halves<S, H>(t, r);
            m[0][H] = with_signs<LEFT>(w, u.x), m[0][2 + H] = with_signs<LEFT + 8>(w, u.y);
            m[1][H] = with_signs<LEFT + 1>(w, u.z), m[1][2 + H] = with_signs<LEFT + 9>(w, u.w);
        }
    }

    /* The scale of row lane / 4 + 8 * lower in step s of tile d. */
    __device__ __forceinline__ float scale(const side &of, int r, int d, int s, int lower) const {
        const int run = STEPS == 1 ? s : d;
        const uint32_t pair = __shfl_sync(0xffffffffu, of.scale[r], run * 8 + lower * 4 + lane / 8);
        return ptx_float_of_f16(ptx_prmt(pair, 0, my_half));
    }

    template <int S, int HALVES, class X>
    __device__ __forceinline__ void step(float (&acc)[ROWS * HALVES][4], float (&sum)[ROWS * HALVES][4], const tile &t,
                                         const side &of, int d, const X (&x)[HALVES]) const {
        uint4 b[HALVES];
#pragma unroll
        for (int h = 0; h < HALVES; ++h) b[h] = x[h].step(S);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            uint32_t m[2][4];
            decode<S>(m, t, r);
#pragma unroll
            for (int h = 0; h < HALVES; ++h) {
                float(&to)[4] = STEPS ? sum[r * HALVES + h] : acc[r * HALVES + h];
                rq_gemv_mma<ACT>(to, m[0], b[h].x, b[h].y);
                rq_gemv_mma<ACT>(to, m[1], b[h].z, b[h].w);
            }
            if (STEPS == 0 || S % (STEPS ? STEPS : 1) != STEPS - 1) continue;
            const float upper = scale(of, r, d, S, 0), lower = scale(of, r, d, S, 1);
#pragma unroll
            for (int h = r * HALVES; h < (r + 1) * HALVES; ++h)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    acc[h][i] = fmaf(i < 2 ? upper : lower, sum[h][i], acc[h][i]);
                    sum[h][i] = 0.0f;
                }
        }
    }
    template <int HALVES, class X>
    __device__ __forceinline__ void multiply(float (&acc)[ROWS * HALVES][4], const tile &t, const side &of_batch, int d,
                                             const X (&x)[HALVES]) const {
        const side &of = STEPS == 1 ? t.own : of_batch;
        float sum[ROWS * HALVES][4] = {};
        step<0>(acc, sum, t, of, d, x);
        step<1>(acc, sum, t, of, d, x);
        step<2>(acc, sum, t, of, d, x);
        step<3>(acc, sum, t, of, d, x);
    }

    /* What the end of a row block will need, to L2, one row block ahead: nothing else hides the time that it takes. */
    __device__ __forceinline__ void fetch_ends(int rb) const {
        if (rb >= a.n_rb) return;
        const int bytes = a.n_outlier * RQ_TILE_ROWS, at = lane * 128;
        if (at < ROWS * bytes && at < (a.n_rb - rb) * bytes) ptx_prefetch(a.outliers + (size_t)rb * bytes + at);
        if (lane == 0) {
            if (STEPS == 0) ptx_prefetch(a.scales + (size_t)rb * RQ_TILE_ROWS * 2);
            ptx_prefetch(a.book_scales + (size_t)rb * a.n_book);
            if (a.n_outlier) ptx_prefetch(a.outlier_scales + (size_t)rb * a.n_outlier);
        }
    }
    /* Several codebooks meet only in the sum of the parts. */
    template <int N> __device__ __forceinline__ void end_rows(float (&acc)[N][4], int rb) const {
        fetch_ends(rb + job.rb_step);
        if (a.n_book == 1) return;
#pragma unroll
        for (int h = 0; h < N; ++h) {
            const int r = min(rb + h / (N / ROWS), a.n_rb - 1);
            const float by = __ldg(a.book_scales + (size_t)r * a.n_book + *book_number());
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[h][i] *= by;
        }
    }

    __device__ __forceinline__ float correct(float sum, const rq_gemv_job &, int rb, int row, int token) const {
        return with_outliers(scaled(BYTES ? sum * 0x1p24f : sum, rb, row), rb, row, token);
    }
    __device__ __forceinline__ float scaled(float sum, int rb, int row) const {
        if (a.n_book == 1) sum *= __ldg(a.book_scales + rb);
        if (STEPS == 0)
            sum *= __half2float(__ldg(reinterpret_cast<const __half *>(a.scales) + (size_t)rb * RQ_TILE_ROWS + row));
        return sum;
    }
    __device__ __forceinline__ float with_outliers(float sum, int rb, int row, int token) const {
        const uint8_t *codes = a.outliers + (size_t)rb * a.n_outlier * RQ_TILE_ROWS + row;
        const float *scales = a.outlier_scales + (size_t)rb * a.n_outlier, *x = outlier_x() + token;
#pragma unroll 1
        for (int left = a.n_outlier; left > 0; left -= 8, codes += 8 * RQ_TILE_ROWS, scales += 8, x += 8 * 16) {
            float weight[8]; /* all loads before the first use of one: each takes as long as all of them */
#pragma unroll
            for (int o = 0; o < 8; ++o)
                if (o < left) weight[o] = __ldg(scales + o) * (float)(int8_t)__ldg(codes + o * RQ_TILE_ROWS);
#pragma unroll
            for (int o = 0; o < 8; ++o)
                if (o < left) sum = fmaf(weight[o], x[o * 16], sum);
        }
        return sum;
    }
};

/* All kernels of one vector length, and the one of a description. */
template <int VEC, int ACT, bool BYTES> static const void *rq_gemv_ssvq_function(bool two_halves, int steps) {
    typedef rq_gemv_ssvq_tiles<VEC, ACT, 0, BYTES> row;
    typedef rq_gemv_ssvq_tiles<VEC, ACT, 4, BYTES> tiles;
    typedef rq_gemv_ssvq_tiles<VEC, ACT, 1, BYTES> each;
    if (two_halves)
        return steps == 0   ? (const void *)rq_gemv<row, 2>
               : steps == 4 ? (const void *)rq_gemv<tiles, 2>
                            : (const void *)rq_gemv<each, 2>;
    return steps == 0   ? (const void *)rq_gemv<row, 1>
           : steps == 4 ? (const void *)rq_gemv<tiles, 1>
                        : (const void *)rq_gemv<each, 1>;
}
template <int VEC> static const void *rq_gemv_ssvq_function(const rq_cuda_gemv_desc *d, int steps) {
    const bool two_halves = d->n_tok > 8;
    if (d->act == RQ_ACT_BF16) return rq_gemv_ssvq_function<VEC, RQ_ACT_BF16, false>(two_halves, steps);
    return d->book_u8 ? rq_gemv_ssvq_function<VEC, RQ_ACT_F16, true>(two_halves, steps)
                      : rq_gemv_ssvq_function<VEC, RQ_ACT_F16, false>(two_halves, steps);
}

/* Codes of more than 8 bits; all groups are ended at each step. */
template <int VEC, int ACT, bool BYTES, int HIGH>
static const void *rq_gemv_ssvq_wide_function(bool two_halves, int steps) {
    typedef rq_gemv_ssvq_tiles<VEC, ACT, 0, BYTES, HIGH> row;
    typedef rq_gemv_ssvq_tiles<VEC, ACT, 1, BYTES, HIGH> each;
    if (two_halves) return steps == 0 ? (const void *)rq_gemv<row, 2> : (const void *)rq_gemv<each, 2>;
    return steps == 0 ? (const void *)rq_gemv<row, 1> : (const void *)rq_gemv<each, 1>;
}
template <int VEC, int HIGH> static const void *rq_gemv_ssvq_wide_function(const rq_cuda_gemv_desc *d, int steps) {
    const bool two_halves = d->n_tok > 8;
    if (d->act == RQ_ACT_BF16) return rq_gemv_ssvq_wide_function<VEC, RQ_ACT_BF16, false, HIGH>(two_halves, steps);
    return d->book_u8 ? rq_gemv_ssvq_wide_function<VEC, RQ_ACT_F16, true, HIGH>(two_halves, steps)
                      : rq_gemv_ssvq_wide_function<VEC, RQ_ACT_F16, false, HIGH>(two_halves, steps);
}
#endif
