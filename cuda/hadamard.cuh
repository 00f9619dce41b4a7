/* SPDX-License-Identifier: Apache-2.0 */
/* Columns in shared memory times Hadamard matrices of order core * 2^p, for kernels that do this on the way (quantize_rows_hadamard.cu) or alone
 * (hadamard_rows.cu). T: float or double. Sums are those of host/fmt_act.h, whichever threads make them:
 *   stages 1, 2, 4      of the 8 columns that a thread reads, in its registers
 *   stages 8, 16        by shuffles, as many of them as leave a multiple of three
 *   three at a time     through shared memory, 8 columns of a distance of 2^s in registers
 *   the core            a thread makes 4 rows x 4 columns of out[r][i] = +-v[0][i] +- v[1][i] ...; the sums are multiply-adds with +1 and -1, which
 *                       round as additions do
 * Units of 16 bytes are stored at u ^ (u / 8 % 8), as the 128-byte swizzle of tensor copies has them: of floats no access of a stage has a bank
 * conflict. */
#ifndef RQ_HADAMARD_CUH
#define RQ_HADAMARD_CUH
#include "fmt_act.h"

enum { HADAMARD_CHUNK = 8, UNIT = 4, TILE = 4 };

struct hadamard_shape {
    rq_hadamard h;
    int log_width; /* size / core = 2^log_width */
    int core_row;  /* floats from row to row of the signs, 0: core is 1 */
};

/* Where column i is. */
template <typename T> static __device__ __forceinline__ int place(int i) {
    constexpr int unit = 16 / (int)sizeof(T);
    return i ^ (i / (8 * unit) % 8 * unit);
}
/* Columns i .. i + 3, i a multiple of 4. */
static __device__ __forceinline__ void load4(float (&v)[UNIT], const float *x, int i) {
    const float4 all = *reinterpret_cast<const float4 *>(x + place<float>(i));
    v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
}
static __device__ __forceinline__ void load4(double (&v)[UNIT], const double *x, int i) {
    const double2 low = *reinterpret_cast<const double2 *>(x + place<double>(i));
    const double2 high = *reinterpret_cast<const double2 *>(x + place<double>(i + 2));
    v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
}
static __device__ __forceinline__ void store8(float *x, int i, const float (&v)[HADAMARD_CHUNK]) {
    *reinterpret_cast<float4 *>(x + place<float>(i)) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4 *>(x + place<float>(i + UNIT)) = make_float4(v[4], v[5], v[6], v[7]);
}
static __device__ __forceinline__ void store8(double *x, int i, const double (&v)[HADAMARD_CHUNK]) {
#pragma unroll
    for (int k = 0; k < HADAMARD_CHUNK; k += 2)
        *reinterpret_cast<double2 *>(x + place<double>(i + k)) = make_double2(v[k], v[k + 1]);
}

/* ---- butterflies */

template <typename T> static __device__ __forceinline__ void butterfly(T &a, T &b) {
    const T sum = a + b;
    b = a - b;
    a = sum;
}
/* Stages of distance 1, 2 and 4 of 8 numbers, as many as there are. */
template <typename T> static __device__ __forceinline__ void three_stages(T (&v)[HADAMARD_CHUNK], int stages) {
#pragma unroll
    for (int s = 0; s < 3; ++s)
#pragma unroll
        for (int k = 0; k < HADAMARD_CHUNK; ++k)
            if (s < stages && !(k >> s & 1)) butterfly(v[k], v[k + (1 << s)]);
}
template <typename T> static __device__ __forceinline__ void shuffle_stage(T (&v)[HADAMARD_CHUNK], int lanes) {
    const T sign = threadIdx.x & lanes ? (T)-1 : (T)1;
#pragma unroll
    for (int k = 0; k < HADAMARD_CHUNK; ++k) v[k] = fma(sign, v[k], __shfl_xor_sync(0xffffffffu, v[k], lanes));
}

/* Stages that go by shuffles. */
static __device__ __forceinline__ int shuffle_stages(int log_width) { return log_width > 3 ? (log_width - 3) % 3 : 0; }

/* Stages s, s + 1, s + 2. */
template <typename T> static __device__ __forceinline__ void pass(T *x, int n, int s, int threads) {
    for (int t = threadIdx.x; t < n / HADAMARD_CHUNK; t += threads) {
        const int at = (t >> s << (s + 3)) + (t & ((1 << s) - 1));
        T v[HADAMARD_CHUNK];
#pragma unroll
        for (int k = 0; k < HADAMARD_CHUNK; ++k) v[k] = x[place<T>(at + (k << s))];
        three_stages(v, 3);
#pragma unroll
        for (int k = 0; k < HADAMARD_CHUNK; ++k) x[place<T>(at + (k << s))] = v[k];
    }
    __syncthreads();
}

/* All butterflies of n columns, which read(v, i) gives 8 at a time, to x, which has room for a multiple of 8. */
template <typename T, class Read>
static __device__ __forceinline__ void butterflies(T *x, int n, int log_width, int threads, Read read) {
    const int n_chunk = (n + HADAMARD_CHUNK - 1) / HADAMARD_CHUNK, lane = threadIdx.x % 32;
    const int shuffles = shuffle_stages(log_width);
    for (int c = threadIdx.x; c - lane < n_chunk; c += threads) { /* whole warps: they shuffle */
        T v[HADAMARD_CHUNK] = {};
        if (c < n_chunk) read(v, c * HADAMARD_CHUNK);
        three_stages(v, log_width);
        if (shuffles > 0) shuffle_stage(v, 1);
        if (shuffles > 1) shuffle_stage(v, 2);
        if (c < n_chunk) store8(x, c * HADAMARD_CHUNK, v);
    }
    __syncthreads();
    for (int s = 3 + shuffles; s < log_width; s += 3) pass(x, n, s, threads);
}

/* ---- the core. With a width below 4 the 4 columns of a group are not neighbours, and only those that are there count. */

struct tile {
    int group, row; /* group of columns, tile of rows of the core */
};
static __device__ __forceinline__ tile tile_of(const hadamard_shape &s, int item) {
    /* Neighbours have groups of the same block, up to 8, then the next tile of rows: a warp's loads meet in few units. A row of the core is a
     * power of two, so that its groups are cut without a rest. */
    const int rows = s.h.core / TILE, log = min(max(s.log_width - 2, 0), 3), k = item >> log;
    return {(k / rows << log) + (item & ((1 << log) - 1)), k % rows};
}
/* Column k of a group, in the first row of the core; -1 past the end. */
static __device__ __forceinline__ int column_of(const hadamard_shape &s, int n, int group, int k) {
    const int column = group * UNIT + k, block = column >> s.log_width;
    const int at = block * s.h.size + (column & ((1 << s.log_width) - 1));
    return at < n ? at : -1;
}

/* Signs as a table of +-1 in shared memory: [core][core_row], all rows of a column of the core in turn. */
static __device__ __forceinline__ void fill_signs(float *sign, const hadamard_shape &s, int threads) {
    for (int e = threadIdx.x; e < s.h.core * s.core_row; e += threads) {
        const int c = e / s.core_row, r = e % s.core_row;
        sign[e] = s.h.row[r] >> c & 1 ? -1.0f : 1.0f;
    }
}
struct sign_table {
    const float *sign;
    int core_row, row;
    __device__ __forceinline__ void of(float (&s)[TILE], int c) const {
        const float4 four = *reinterpret_cast<const float4 *>(sign + c * core_row + row * TILE);
        s[0] = four.x, s[1] = four.y, s[2] = four.z, s[3] = four.w;
    }
};
/* Signs as the bits that they are: nothing beside the columns lies in shared memory. */
struct sign_bits {
    uint64_t bits[TILE];
    __device__ __forceinline__ sign_bits(const rq_hadamard &h, int row) {
#pragma unroll
        for (int m = 0; m < TILE; ++m) bits[m] = h.row[row * TILE + m];
    }
    __device__ __forceinline__ void of(double (&s)[TILE], int c) const {
#pragma unroll
        for (int m = 0; m < TILE; ++m) s[m] = __hiloint2double(0x3ff00000 | (int)(bits[m] >> c & 1) << 31, 0);
    }
};

/* sum += the tile's results: from -0 they are exactly those of sums that begin with their first term. */
template <typename T, class Signs>
static __device__ __forceinline__ void tile_sums(T (&sum)[TILE][UNIT], const hadamard_shape &s, int n, const T *x,
                                                 tile t, const Signs &signs) {
    int at[UNIT];
#pragma unroll
    for (int k = 0; k < UNIT; ++k) at[k] = column_of(s, n, t.group, k);
    for (int c = 0; c < s.h.core; ++c) {
        const int down = c << s.log_width;
        T row[TILE], v[UNIT];
        signs.of(row, c);
        if (s.log_width >= 2) {
            load4(v, x, at[0] + down);
        } else {
#pragma unroll
            for (int k = 0; k < UNIT; ++k) v[k] = at[k] < 0 ? (T)0 : x[place<T>(at[k] + down)];
        }
#pragma unroll
        for (int m = 0; m < TILE; ++m)
#pragma unroll
            for (int k = 0; k < UNIT; ++k) sum[m][k] = fma(row[m], v[k], sum[m][k]);
    }
}

/* Tiles of n columns. */
static inline __host__ __device__ int tiles_of(const rq_hadamard &h, int n) {
    return (n / h.core + UNIT - 1) / UNIT * (h.core / TILE);
}

/* ---- host: *s of the matrix; false when it is none of rq_hadamard_make. */
static inline bool hadamard_shape_of(hadamard_shape *s, const rq_hadamard *h) {
    const bool order = h->size >= 2 && h->core >= 1 && h->core <= RQ_ACT_MAX_CORE && h->size % h->core == 0 &&
                       (h->core == 1 || h->core % TILE == 0);
    const int width = order ? h->size / h->core : 0;
    if (!order || width & (width - 1)) return false;
    s->h = *h;
    s->log_width = 0;
    while (1 << s->log_width < width) ++s->log_width;
    s->core_row = h->core > 1 ? h->core : 0;
    return true;
}
#endif
