/* SPDX-License-Identifier: Apache-2.0 */
/* Tiles of VQ (fmt_vq.h) for the skeleton of gemv_tile.cuh: a code is looked up, and what is found is an operand of the mma.
 *
 * Weights are the B operand of mma.m16n8k16 and x is A: an entry of 8 halves, one 128-bit load, is then B of two mma as it stands,
 * with no move. 8 rows are the mma's 8 columns, tokens its 16 rows. Up to 8 tokens leave half of A free, and what a lane loads of x
 * fills it: its 16 bytes are A of both mma, of which the first multiplies two pairs of columns in rows 0..7 and the second the
 * other two pairs in rows 8..15. What either makes of the rest is not read.
 *
 * Two stages are multiplied one after the other into the same fp32 sums: no sum of halves is rounded, and two mma more cost less than
 * four additions of pairs.
 *
 * A codebook lies in shared memory several times where that fits. With all copies of an entry in 128 bytes, the lanes that a
 * 128-bit (64-bit) load serves at once, 8 (16) of them, each read a copy of their own: no two meet in a bank.
 * Vectors down the rows are looked up by ldmatrix, whose rows are 16 bytes at any address: it transposes on the way.
 *
 * The tensor cores multiply fp16, as codebooks are. x in bfloat16, or times a scale of each column, is brought to fp16 when it is in shared
 * memory: times a power of two a token that makes its largest 2^14 .. 2^15, taken out of the sums in fp32. bfloat16 stays exact down to
 * 2^-31 of the largest, and nothing is off by more than 2^-40 of it. A product with a column's scale is rounded once, to 2^-11 of it. */
#ifndef RQ_GEMV_VQ_CUH
#define RQ_GEMV_VQ_CUH
#include "gemv_tile.cuh"

/* Shared memory of the format, from its start: x of the outlier columns [outlier][token]; the largest |x| of each token, as bits of a float; x times the
 * biases of columns, of each token, and before that of each warp; then the tables. */
enum {
    RQ_VQ_OUTLIER_X = 0,
    RQ_VQ_LARGEST = RQ_VQ_OUTLIER_X + 16 * 16 * 4,
    RQ_VQ_DOT = RQ_VQ_LARGEST + 16 * 4,
    RQ_VQ_DOT_PARTS = RQ_VQ_DOT + 16 * 4,
    RQ_VQ_TABLE = RQ_VQ_DOT_PARTS + RQ_GEMV_WARPS * 16 * 4
};
/* Row blocks that a warp takes at once: what is read of x serves 32 rows. */
enum { RQ_VQ_ROWS = 2 };

struct rq_gemv_vq_args {
    const uint8_t *tiles, *scales, *book[2]; /* one of rq_tile_layout's arrays each */
    const __half *columns;
    const uint8_t *outliers;
    const int32_t *outlier_cols;
    const float *outlier_scales;
    int n_rb, n_kb, n_group, book_kb, n_outlier;
    int n_codes[2];
    int no_scales, has_columns;
    uint32_t zero;                       /* is 0 */
    uint32_t steps_of_group, reciprocal; /* as in rq_gemv_grid_args */
};

/* How the vectors of a stage are looked up: BITS of a code in the tile (0: there is no such stage), and an entry in shared memory, with its
 * copies, 2^SHIFT bytes. */
template <int BITS_, int SHIFT_> struct rq_vq_stage { static constexpr int BITS = BITS_, SHIFT = SHIFT_; };
typedef rq_vq_stage<0, 0> rq_vq_none;

/* STEPS: 32-column steps between two scales: 1 (any multiple of 32 columns), 0 (a scale for the row, or none). */
template <int VEC, class FIRST, class SECOND, int STEPS> struct rq_gemv_vq_tiles {
    static constexpr int ACT = RQ_GEMV_ACT_OF_JOB, ROWS = RQ_VQ_ROWS;
    static constexpr int FIRST_WORDS = 64 / VEC * FIRST::BITS / 32, WORDS = FIRST_WORDS + 64 / VEC * SECOND::BITS / 32;
    static constexpr int DEPTH = STEPS || WORDS > 4 ? 1 : 2;
    static constexpr int TILE_BYTES = WORDS * 4 * 32, FIRST_PART = WORDS >= 4 ? 16 : 8;
    static constexpr bool EDITS_X = true, SAVES_X = true;
    static constexpr int SUMS = 0;
    typedef rq_gemv_vq_args args;
    /* Scales, as in rq_gemv_grid_tiles: of rows 2 (l % 8), 2 (l % 8) + 1 in the (l / 8)-th step of a tile. */
    struct side {};
    struct tile {
        uint32_t word[ROWS][WORDS];
        uint32_t scale[ROWS]; /* STEPS 1 */
    };
    struct place_type {
        const uint8_t *from;
        int rb, kb;
    };

    const rq_gemv_vq_args &a;
    const rq_gemv_job &job;
    const int lane;
    uint8_t *const front;
    const uint32_t table, copy; /* the tables, and this lane's copy in an entry */
    uint4 x_of_steps[2];        /* what a lane without a token does not load stays what it was */

    __device__ __forceinline__ rq_gemv_vq_tiles(const rq_gemv_vq_args &args_, const rq_gemv_job &job_, uint8_t *front_)
        : a(args_), job(job_), lane(threadIdx.x % 32), front(front_), table(table_address(args_, front_)),
          copy(threadIdx.x * VEC * 2), x_of_steps() {
        const int slot = threadIdx.x / 32 >> job.log_warps, slots = RQ_GEMV_WARPS >> job.log_warps;
        fetch_ends((blockIdx.x / job.split * slots + slot) * ROWS);
    }
    /* As in rq_gemv_ssvq_tiles. */
    static __device__ __forceinline__ uint32_t table_address(const rq_gemv_vq_args &args, const uint8_t *front) {
#if __CUDA_ARCH__ >= 900
        return ptx_shared(front) + RQ_VQ_TABLE + args.zero;
#else
        return ptx_shared(front) + RQ_VQ_TABLE;
#endif
    }
    __device__ __forceinline__ float *outlier_x() const { return reinterpret_cast<float *>(front + RQ_VQ_OUTLIER_X); }
    __device__ __forceinline__ uint32_t *largest() const { return reinterpret_cast<uint32_t *>(front + RQ_VQ_LARGEST); }
    __device__ __forceinline__ float *dot() const { return reinterpret_cast<float *>(front + RQ_VQ_DOT); }
    __device__ __forceinline__ float *dot_parts() const { return reinterpret_cast<float *>(front + RQ_VQ_DOT_PARTS); }

    /* Columns of one part have one codebook. */
    template <class STAGE> __device__ __forceinline__ void stage_table(int s, int book, uint8_t *to) const {
        const uint8_t *from = a.book[s] + (size_t)book * a.n_codes[s] * VEC * 2;
#pragma unroll 1 /* few registers: the first tiles are in some of them */
        for (int i = threadIdx.x; i << 4 < a.n_codes[s] << STAGE::SHIFT; i += RQ_GEMV_THREADS) {
            const int code = i >> (STAGE::SHIFT - 4);
            uint4 v;
            if (VEC == 8) {
                v = __ldg(reinterpret_cast<const uint4 *>(from) + code);
            } else {
                const uint2 w = __ldg(reinterpret_cast<const uint2 *>(from) + code);
                v = make_uint4(w.x, w.y, w.x, w.y);
            }
            reinterpret_cast<uint4 *>(to)[i] = v;
        }
    }
    static constexpr int SECOND_TABLE = 1 << (FIRST::BITS + FIRST::SHIFT);
    __device__ __forceinline__ void stage(int kb0, int) const {
        if (threadIdx.x < 16) largest()[threadIdx.x] = 0;
        stage_table<FIRST>(0, kb0 / a.book_kb, front + RQ_VQ_TABLE);
        if constexpr (SECOND::BITS != 0) stage_table<SECOND>(1, kb0 / a.book_kb, front + RQ_VQ_TABLE + SECOND_TABLE);
    }

    /* ---- x, when it is in shared memory. What the codes of outlier columns say does not count: x is zero there, and kept aside. */
    __device__ __forceinline__ bool scales_x() const { return a.has_columns || job.act == RQ_ACT_BF16; }
    __device__ __forceinline__ bool edits_x() const { return a.n_outlier != 0 || scales_x(); }
    __device__ __forceinline__ float x_of(int token, int col) const {
        const int from = job.perm ? __ldg(job.perm + col) : col;
        return rq_gemv_get<ACT>(job, job.x, (size_t)token * job.n_in + from);
    }
    __device__ __forceinline__ void edit_x(const rq_gemv_job &, uint8_t *x, int kb0, int kb1) const {
#pragma unroll 1
        for (int i = threadIdx.x; i < a.n_outlier * job.n_tok; i += RQ_GEMV_THREADS) {
            const int o = i / job.n_tok, token = i % job.n_tok, col = __ldg(a.outlier_cols + o);
            const int here = col - kb0 * RQ_TILE_COLS;
            outlier_x()[o * 16 + token] = x_of(token, col);
            if (here >= 0 && here < (kb1 - kb0) * RQ_TILE_COLS)
                reinterpret_cast<uint16_t *>(x + token * job.x_pitch)[rq_gemv_swapped(here)] = 0;
        }
        if (!scales_x()) return;
        __syncthreads();
        bring_to_half(x, kb0, (kb1 - kb0) * RQ_TILE_COLS);
        if (a.has_columns) multiply_biases();
    }
    /* Two columns of x as they are in shared memory, times the columns' scales. */
    __device__ __forceinline__ float2 scaled(uint32_t pair, int col) const {
        float2 v;
        if (job.act == RQ_ACT_F16)
            v = __half22float2(*reinterpret_cast<const __half2 *>(&pair));
        else
            v = make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
        if (a.has_columns) {
            v.x *= col < job.n_in ? __half2float(__ldg(a.columns + col)) : 0.0f;
            v.y *= col + 1 < job.n_in ? __half2float(__ldg(a.columns + col + 1)) : 0.0f;
        }
        return v;
    }
    /* 2^n and 2^-n that bring numbers of this size to 2^14 .. 2^15. */
    static __device__ __forceinline__ int power_of(uint32_t size) { return min(141 - (int)(size >> 23), 126); }
    static __device__ __forceinline__ float two_to(int n) { return __uint_as_float((uint32_t)(127 + n) << 23); }
    __device__ __forceinline__ void bring_to_half(uint8_t *x, int kb0, int n_col) const {
#pragma unroll 1
        for (int token = 0; token < job.n_tok; ++token) {
            const uint32_t *from = reinterpret_cast<const uint32_t *>(x + token * job.x_pitch);
            uint32_t size = 0;
#pragma unroll 1
            for (int i = threadIdx.x; i < n_col / 2; i += RQ_GEMV_THREADS) {
                const float2 v = scaled(from[i], kb0 * RQ_TILE_COLS + rq_gemv_swapped(i * 2));
                size = max(size, max(__float_as_uint(fabsf(v.x)), __float_as_uint(fabsf(v.y))));
            }
            size = __reduce_max_sync(0xffffffffu, size);
            if (lane == 0) atomicMax(largest() + token, size);
        }
        __syncthreads();
#pragma unroll 1
        for (int token = 0; token < job.n_tok; ++token) {
            uint32_t *to = reinterpret_cast<uint32_t *>(x + token * job.x_pitch);
            const float by = two_to(power_of(largest()[token]));
#pragma unroll 1
            for (int i = threadIdx.x; i < n_col / 2; i += RQ_GEMV_THREADS) {
                const float2 v = scaled(to[i], kb0 * RQ_TILE_COLS + rq_gemv_swapped(i * 2));
                const __half2 h = __floats2half2_rn(v.x * by, v.y * by);
                to[i] = *reinterpret_cast<const uint32_t *>(&h);
            }
        }
    }
    /* Of all columns, whichever part this block has: correct() adds them once. */
    __device__ __forceinline__ void multiply_biases() const {
        const int warp = threadIdx.x / 32;
#pragma unroll 1
        for (int token = 0; token < job.n_tok; ++token) {
            float sum = 0.0f;
#pragma unroll 1
            for (int col = threadIdx.x; col < job.n_in; col += RQ_GEMV_THREADS) {
                bool counts = true;
                for (int o = 0; o < a.n_outlier; ++o) counts = counts && __ldg(a.outlier_cols + o) != col;
                if (counts) sum = fmaf(x_of(token, col), __half2float(__ldg(a.columns + job.n_in + col)), sum);
            }
#pragma unroll
            for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
            if (lane == 0) dot_parts()[warp * 16 + token] = sum;
        }
        __syncthreads();
        if (threadIdx.x < job.n_tok) {
            float sum = 0.0f;
            for (int w = 0; w < RQ_GEMV_WARPS; ++w) sum += dot_parts()[w * 16 + threadIdx.x];
            dot()[threadIdx.x] = sum;
        }
    }

    /* ---- tiles */
    __device__ __forceinline__ place_type place(int rb, int kb) const {
        return {a.tiles + lane * FIRST_PART + (size_t)((uint32_t)rb * a.n_kb + kb) * TILE_BYTES, rb, kb};
    }
    __device__ __forceinline__ void load(tile &t, const place_type &at, int d) const {
        const uint8_t *from = at.from + d * TILE_BYTES;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int w = 0; w + 4 <= WORDS; w += 4) {
                const uint4 v = ptx_load_once16(from + w * 128);
                t.word[r][w] = v.x, t.word[r][w + 1] = v.y, t.word[r][w + 2] = v.z, t.word[r][w + 3] = v.w;
            }
            if (WORDS & 2) {
                const uint2 v = ptx_load_once8(from + WORDS / 4 * 512 - lane * (FIRST_PART - 8));
                t.word[r][WORDS & ~3] = v.x, t.word[r][(WORDS & ~3) + 1] = v.y;
            }
            if (WORDS & 1) t.word[r][WORDS - 1] = ptx_load_once4(from + (WORDS - 1) * 128 - lane * (FIRST_PART - 4));
            if (r + 1 < ROWS && at.rb + r + 1 < a.n_rb) from += (size_t)a.n_kb * TILE_BYTES;
        }
        if (STEPS == 1) load_scales(t, at.rb, at.kb + d);
    }
    __device__ __forceinline__ void load_side(side &, int, int) const {}
    __device__ __forceinline__ void load_scales(tile &t, int rb, int kb) const {
        const uint32_t step = kb * 4 + lane / 8;
        const int group = min((int)(a.reciprocal ? __umulhi(step, a.reciprocal) : step), a.n_group - 1);
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
            t.scale[r] = ptx_load_side4(
                a.scales + (size_t)(((uint32_t)min(rb + r, a.n_rb - 1) * a.n_group + group) * 8 + lane % 8) * 4);
    }

    /* Code I of the stream that begins at word W, times 2^SHIFT, with whatever around it. */
    template <class STAGE, int W, int I>
    static __device__ __forceinline__ uint32_t code(const uint32_t (&word)[WORDS]) {
        constexpr int bit = I * STAGE::BITS, w = W + bit / 32, from = bit % 32, right = from - STAGE::SHIFT;
        if (from + STAGE::BITS > 32) return ptx_funnel_right(word[w], word[w + 1 < WORDS ? w + 1 : w], right & 31);
        return right >= 0 ? word[w] >> (right & 31) : word[w] << (-right & 31);
    }
    template <class STAGE, int W, int I>
    __device__ __forceinline__ uint32_t entry(const uint32_t (&word)[WORDS]) const {
        constexpr uint32_t mask = ((1u << STAGE::BITS) - 1u) << STAGE::SHIFT, copies = (1u << STAGE::SHIFT) - 1u;
        return table + (W ? SECOND_TABLE : 0) + ptx_lop3<0xea>(code<STAGE, W, I>(word), mask, copy & copies);
    }
    /* The lane's 8 weights of a row in step S; row lane / 4 + 8 o. */
    template <class STAGE, int W, int I> __device__ __forceinline__ uint4 look_up(const uint32_t (&word)[WORDS]) const {
        if (VEC == 8) return ptx_load_shared16(entry<STAGE, W, I>(word));
        const uint2 u = ptx_load_shared8(entry<STAGE, W, 2 * I>(word)),
                    v = ptx_load_shared8(entry<STAGE, W, 2 * I + 1>(word));
        return make_uint4(u.x, u.y, v.x, v.y);
    }

    /* Up to 8 tokens have two accumulators for 8 rows (TWO_SUMS). Where the sums of a group must be held too there are not so many
     * registers: groups have the kernels of more than 8 tokens only. */
    template <bool TWO_SUMS>
    static __device__ __forceinline__ void multiply_rows(float (*to)[4], const uint4 (&x)[2], uint4 w) {
        const uint4 u = x[0], v = x[1];
        if (TWO_SUMS) {
            ptx_mma_f16(to[0], u.x, u.y, u.z, u.w, w.x, w.y);
            ptx_mma_f16(to[1], u.x, u.y, u.z, u.w, w.z, w.w);
        } else {
            ptx_mma_f16(to[0], u.x, v.x, u.z, v.z, w.x, w.y);
            ptx_mma_f16(to[0], u.y, v.y, u.w, v.w, w.z, w.w);
        }
    }
    /* Element i of a token's half: of rows 2 (lane % 4) + i. */
    template <bool TWO_SUMS> static __device__ __forceinline__ float sum_of(const float (*from)[4], int half, int i) {
        return TWO_SUMS ? from[0][i] + from[1][2 + i] : from[0][2 * half + i];
    }
    template <int S, int O, int HALVES, int N>
    __device__ __forceinline__ void step_rows(float (&acc)[N][4], const tile &t, int r, const uint4 (&x)[2]) const {
        static_assert(STEPS == 0 || HALVES == 2, "groups have no kernel of one half");
        constexpr bool TWO = HALVES == 1;
        float own[1][4] = {};
        float(*to)[4] = STEPS ? own : acc + (r * 2 + O) * (TWO ? 2 : 1);
        multiply_rows<TWO>(to, x, look_up<FIRST, 0, S * 2 + O>(t.word[r]));
        if constexpr (SECOND::BITS != 0) multiply_rows<TWO>(to, x, look_up<SECOND, FIRST_WORDS, S * 2 + O>(t.word[r]));
        if (STEPS == 0) return;
        const uint32_t scales = __shfl_sync(0xffffffffu, t.scale[r], S * 8 + O * 4 + lane % 4);
#pragma unroll
        for (int half = 0; half < HALVES; ++half)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float &sum = acc[r * HALVES + half][O * 2 + i];
                sum = fmaf(ptx_float_of_f16(scales >> (16 * i)), sum_of<TWO>(own, half, i), sum);
            }
    }
    template <int S, int N, int HALVES, class X>
    __device__ __forceinline__ void step(float (&acc)[N][4], const tile &t, const X (&x)[HALVES]) {
        uint4 here[2] = {};
        if (HALVES == 1)
            x[0].step(S, x_of_steps[S % 2]), here[0] = x_of_steps[S % 2];
        else
            here[0] = x[0].step(S), here[1] = x[HALVES - 1].step(S);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            step_rows<S, 0, HALVES>(acc, t, r, here);
            step_rows<S, 1, HALVES>(acc, t, r, here);
        }
    }
    template <int N, int HALVES, class X>
    __device__ __forceinline__ void multiply(float (&acc)[N][4], const tile &t, const side &, int,
                                             const X (&x)[HALVES]) {
        step<0>(acc, t, x);
        step<1>(acc, t, x);
        step<2>(acc, t, x);
        step<3>(acc, t, x);
    }

    /* ---- the end of a row block. What it will need, to L2, one row block ahead: nothing else hides the time that it takes. */
    __device__ __forceinline__ void fetch_ends(int rb) const {
        if (rb >= a.n_rb) return;
        const int bytes = a.n_outlier * RQ_TILE_ROWS, at = lane * 128;
        if (at < ROWS * bytes && at < (a.n_rb - rb) * bytes) ptx_prefetch(a.outliers + (size_t)rb * bytes + at);
        if (lane == 0) {
            if (STEPS == 0 && !a.no_scales) ptx_prefetch(a.scales + (size_t)rb * RQ_TILE_ROWS * 2);
            if (a.n_outlier) ptx_prefetch(a.outlier_scales + (size_t)rb * a.n_outlier);
        }
    }
    template <int N> __device__ __forceinline__ void end_rows(float (&acc)[N][4], int rb) const {
        constexpr int HALVES = N == rq_gemv_sides<rq_gemv_vq_tiles>::accumulators(1) ? 1 : 2;
        fetch_ends(rb + job.rb_step);
#pragma unroll
        for (int r = 0; r < ROWS && STEPS == 0; ++r) {
            float sum[HALVES][4];
#pragma unroll
            for (int i = 0; i < HALVES * 4; ++i)
                sum[i / 4][i % 4] =
                    sum_of<HALVES == 1>(acc + (r * 2 + i % 4 / 2) * (HALVES == 1 ? 2 : 1), i / 4, i % 2);
#pragma unroll
            for (int i = 0; i < HALVES * 4; ++i) acc[r * HALVES + i / 4][i % 4] = sum[i / 4][i % 4];
        }
        if (!scales_x()) return;
#pragma unroll
        for (int h = 0; h < ROWS * HALVES; ++h) {
            const float by = two_to(-power_of(largest()[h % HALVES * 8 + lane / 4]));
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[h][i] *= by;
        }
    }

    __device__ __forceinline__ float correct(float sum, const rq_gemv_job &, int rb, int row, int token) const {
        if (STEPS == 0 && !a.no_scales)
            sum *= __half2float(__ldg(reinterpret_cast<const __half *>(a.scales) + (size_t)rb * RQ_TILE_ROWS + row));
        if (a.has_columns) sum += dot()[token];
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

template <int VEC, class FIRST, class SECOND, int STEPS>
struct rq_gemv_sides<rq_gemv_vq_tiles<VEC, FIRST, SECOND, STEPS>> {
    static constexpr bool X_IS_A = true;
    static constexpr int SUM_PITCH = RQ_GEMV_SUM_PITCH_X_IS_A;
    /* Without group scales: two of 8 rows each, or one for both halves. */
    static __host__ __device__ constexpr int accumulators(int halves) {
        return RQ_VQ_ROWS * (STEPS ? halves : halves == 1 ? 4 : 2);
    }
};

/* Fills what pick() says of the kernel. */
template <int VEC, class FIRST, class SECOND>
static void rq_gemv_vq_pick(rq_gemv_kernel *k, const rq_cuda_gemv_desc *d) {
    typedef rq_gemv_vq_tiles<VEC, FIRST, SECOND, 0> row;
    typedef rq_gemv_vq_tiles<VEC, FIRST, SECOND, 1> each;
    const bool is_row = d->group == d->n_in, two_halves = d->n_tok > 8;
    k->function = !is_row      ? (const void *)rq_gemv<each, 2>
                  : two_halves ? (const void *)rq_gemv<row, 2>
                               : (const void *)rq_gemv<row, 1>;
    k->depth = is_row ? row::DEPTH : each::DEPTH, k->rows = RQ_VQ_ROWS, k->x_is_a = 1;
    k->shared_format = RQ_VQ_TABLE + (SECOND::BITS ? row::SECOND_TABLE + (int)(d->n_codes[1] << SECOND::SHIFT)
                                                   : (int)(d->n_codes[0] << FIRST::SHIFT));
}
#endif
