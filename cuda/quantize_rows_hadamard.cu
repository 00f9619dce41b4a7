/* SPDX-License-Identifier: Apache-2.0 */
/* Rows, or SiLU and product, then a Hadamard matrix, factors, int8, in one kernel: rq_cuda_quantize_rows and rq_cuda_silu_quantize with
 * args.hadamard. Sums are those of fmt_act.h, whichever threads make them, so the bytes are plain C's.
 *
 * A block has a row, in shared memory as fp32. The order is core * 2^p:
 *   stages 1, 2, 4      of the 8 columns that a thread reads, in its registers
 *   stages 8, 16        by shuffles, as many of them as leave a multiple of three
 *   three at a time     through shared memory, 8 columns of a distance of 2^s in registers
 *   the core            a thread makes 4 rows x 4 columns of out[r][i] = +-v[0][i] +- v[1][i] ...; the signs are a table of +-1 in shared
 *                       memory, and the sums multiply-adds with them, which round as additions do. Results stay in registers:
 *                       norm, factors, largest, codes.
 * Units of 16 bytes are stored at u ^ (u / 8 % 8), as the 128-byte swizzle of tensor copies has them: no access of a stage has a bank conflict.
 * Targets: sm_80 sm_90a. */
#include "quantize_rows.cuh"

enum { UNIT = 4, TILE = 4, MOST_ITEMS = 4, MOST_THREADS = 512, MOST_COLUMNS = 32768 };

struct hadamard_job {
    row_job row;
    rq_hadamard h;
    int log_width; /* size / core = 2^log_width */
    int n_group, n_item,
        core_row; /* groups of 4 columns of the core; tiles of 4 x 4; floats from row to row of the signs, 0: core is 1 */
};

/* Where column i is. */
static __device__ __forceinline__ int place(int i) { return i ^ (i / 32 % 8 * UNIT); }

static __device__ __forceinline__ void butterfly(float &a, float &b) {
    const float sum = a + b;
    b = a - b;
    a = sum;
}
/* Stages of distance 1, 2 and 4 of 8 numbers, as many as there are. */
static __device__ __forceinline__ void three_stages(float (&v)[CHUNK], int stages) {
#pragma unroll
    for (int s = 0; s < 3; ++s)
#pragma unroll
        for (int k = 0; k < CHUNK; ++k)
            if (s < stages && !(k >> s & 1)) butterfly(v[k], v[k + (1 << s)]);
}
static __device__ __forceinline__ void shuffle_stage(float (&v)[CHUNK], int lanes) {
    const float sign = threadIdx.x & lanes ? -1.0f : 1.0f;
#pragma unroll
    for (int k = 0; k < CHUNK; ++k) v[k] = fmaf(sign, v[k], __shfl_xor_sync(0xffffffffu, v[k], lanes));
}

/* The row, and the stages that need no shared memory. */
template <int SOURCE, int THREADS>
static __device__ __forceinline__ void begin(float *x, const hadamard_job &job, int shuffles) {
    const int n_chunk = (job.row.n_in + CHUNK - 1) / CHUNK, lane = threadIdx.x % 32;
    for (int c = threadIdx.x; c - lane < n_chunk; c += THREADS) { /* whole warps: they shuffle */
        float v[CHUNK] = {};
        if (c < n_chunk) read<SOURCE, false>(v, job.row, c * CHUNK);
        three_stages(v, job.log_width);
        if (shuffles > 0) shuffle_stage(v, 1);
        if (shuffles > 1) shuffle_stage(v, 2);
        if (c >= n_chunk) continue;
        *reinterpret_cast<float4 *>(x + place(c * CHUNK)) = make_float4(v[0], v[1], v[2], v[3]);
        *reinterpret_cast<float4 *>(x + place(c * CHUNK + UNIT)) = make_float4(v[4], v[5], v[6], v[7]);
    }
    __syncthreads();
}
/* Stages s, s + 1, s + 2. */
template <int THREADS> static __device__ __forceinline__ void pass(float *x, int n_in, int s) {
    for (int t = threadIdx.x; t < n_in / CHUNK; t += THREADS) {
        const int at = (t >> s << (s + 3)) + (t & ((1 << s) - 1));
        float v[CHUNK];
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) v[k] = x[place(at + (k << s))];
        three_stages(v, 3);
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) x[place(at + (k << s))] = v[k];
    }
    __syncthreads();
}

/* A thread's 4 x 4 results: column k of row m is column `at + m * step + k` of the row of activations, if it is below n_in; with width below
 * 4 columns are not neighbours, and of a group only those below `columns` are there. */
struct tile {
    int group, row; /* group of columns, tile of rows of the core */
};
static __device__ __forceinline__ tile tile_of(const hadamard_job &job, int item) {
    /* Neighbours have groups of the same block, up to 8, then the next tile of rows: a warp's loads meet in few units. A row of the core is a
     * power of two, so that its groups are cut without a rest. */
    const int rows = job.h.core / TILE, log = min(max(job.log_width - 2, 0), 3), k = item >> log;
    return {(k / rows << log) + (item & ((1 << log) - 1)), k % rows};
}
/* Column k of a group, in the first row of the core; -1 past the end. */
static __device__ __forceinline__ int column_of(const hadamard_job &job, int group, int k) {
    const int column = group * UNIT + k, block = column >> job.log_width;
    const int at = block * job.h.size + (column & ((1 << job.log_width) - 1));
    return at < job.row.n_in ? at : -1;
}

static __device__ __forceinline__ void tile_sums(float (&sum)[TILE][UNIT], const hadamard_job &job, const float *x,
                                                 const float *sign, tile t) {
    const bool units = job.log_width >= 2;
    int at[UNIT];
#pragma unroll
    for (int k = 0; k < UNIT; ++k) at[k] = column_of(job, t.group, k);
    for (int c = 0; c < job.h.core; ++c) {
        const float4 s = *reinterpret_cast<const float4 *>(sign + c * job.core_row + t.row * TILE);
        float4 in;
        const int down = c << job.log_width;
        if (units) {
            in = *reinterpret_cast<const float4 *>(x + place(at[0] + down));
        } else {
            in.x = x[place(at[0] + down)], in.y = at[1] < 0 ? 0.0f : x[place(at[1] + down)];
            in.z = at[2] < 0 ? 0.0f : x[place(at[2] + down)], in.w = at[3] < 0 ? 0.0f : x[place(at[3] + down)];
        }
        const float row[TILE] = {s.x, s.y, s.z, s.w}, v[UNIT] = {in.x, in.y, in.z, in.w};
#pragma unroll
        for (int m = 0; m < TILE; ++m)
#pragma unroll
            for (int k = 0; k < UNIT; ++k) sum[m][k] = c ? fmaf(row[m], v[k], sum[m][k]) : row[m] * v[k];
    }
}

/* Column k of row m of a tile, or -1. */
static __device__ __forceinline__ int output_of(const hadamard_job &job, int item, tile t, int m, int k) {
    if (!job.core_row) {
        const int at = (item + m * job.n_item) * UNIT + k;
        return at < job.row.n_in ? at : -1;
    }
    const int at = column_of(job, t.group, k);
    return at < 0 ? -1 : at + ((t.row * TILE + m) << job.log_width);
}

template <int SOURCE, int THREADS, int ITEMS>
__global__ void __launch_bounds__(THREADS) rq_quantize_hadamard(const __grid_constant__ hadamard_job job) {
    extern __shared__ __align__(128) float x[];
    __shared__ row_reduced<THREADS / 32> reduced;
    float *sign = x + (job.row.n_in + 31) / 32 * 32;
    for (int e = threadIdx.x; e < job.h.core * job.core_row; e += THREADS) {
        const int c = e / job.core_row, r = e % job.core_row;
        sign[e] = job.h.row[r] >> c & 1 ? -1.0f : 1.0f;
    }
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    const int rest = job.log_width > 3 ? job.log_width - 3 : 0, shuffles = rest % 3;
    begin<SOURCE, THREADS>(x, job, shuffles);
    for (int s = 3 + shuffles; s < job.log_width; s += 3) pass<THREADS>(x, job.row.n_in, s);

    float h[ITEMS][TILE][UNIT], most = 0.0f;
    /* Four columns that are neighbours, at a multiple of four in every array. */
    const bool units = job.row.whole && (job.core_row ? job.log_width >= 2 : true);
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int item = threadIdx.x + i * THREADS;
#pragma unroll
        for (int m = 0; m < TILE; ++m)
#pragma unroll
            for (int k = 0; k < UNIT; ++k) h[i][m][k] = 0.0f;
        if (item >= job.n_item) continue;
        tile t = {};
        if (job.core_row) {
            t = tile_of(job, item);
            tile_sums(h[i], job, x, sign, t);
        }
#pragma unroll
        for (int m = 0; m < TILE; ++m) {
            if (!job.core_row) {
                const int at = (item + m * job.n_item) * UNIT;
                if (at >= job.row.n_in) continue;
                const float4 v =
                    *reinterpret_cast<const float4 *>(x + place(at)); /* what is past the end was stored too */
                h[i][m][0] = v.x, h[i][m][1] = v.y, h[i][m][2] = v.z, h[i][m][3] = v.w;
            }
            float f[UNIT] = {1.0f, 1.0f, 1.0f, 1.0f};
            if (job.row.factor && units) {
                const int at = output_of(job, item, t, m, 0);
                const float4 v = at < 0 ? float4{} : *reinterpret_cast<const float4 *>(job.row.factor + at);
                f[0] = v.x, f[1] = v.y, f[2] = v.z, f[3] = v.w;
            } else if (job.row.factor) {
#pragma unroll
                for (int k = 0; k < UNIT; ++k) {
                    const int at = output_of(job, item, t, m, k);
                    f[k] = at < 0 ? 0.0f : job.row.factor[at];
                }
            }
#pragma unroll
            for (int k = 0; k < UNIT; ++k) {
                h[i][m][k] = __fmul_rn(__fmul_rn(h[i][m][k], job.h.norm), f[k]); /* times 1 changes nothing */
                most = fmaxf(most, fabsf(h[i][m][k]));                           /* NaN is not the largest */
            }
        }
    }
    const float scale = scale_of(job.row, most, reduced);
    int sum = 0;
    int8_t *q = job.row.q + (size_t)blockIdx.x * job.row.n_in;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int item = threadIdx.x + i * THREADS;
        if (item >= job.n_item) continue;
        const tile t = job.core_row ? tile_of(job, item) : tile{};
#pragma unroll
        for (int m = 0; m < TILE; ++m) {
            uint32_t four = 0;
#pragma unroll
            for (int k = 0; k < UNIT; ++k) {
                const int one = quotient(h[i][m][k], scale), at = units ? 0 : output_of(job, item, t, m, k);
                four |= (uint32_t)(one & 255) << 8 * k;
                if (!units && at >= 0) q[at] = (int8_t)one;
                if (units || at >= 0) sum += one;
            }
            const int at = units ? output_of(job, item, t, m, 0) : -1;
            if (at >= 0) *reinterpret_cast<uint32_t *>(q + at) = four;
        }
    }
    if (job.row.sum) write_sum(job.row, sum, reduced);
}

template <int SOURCE> static const void *pick(int items, int *threads) {
    *threads = items <= ROW_THREADS ? (int)ROW_THREADS : (int)MOST_THREADS;
    if (items <= ROW_THREADS) return (const void *)rq_quantize_hadamard<SOURCE, ROW_THREADS, 1>;
    if (items <= 2 * MOST_THREADS) return (const void *)rq_quantize_hadamard<SOURCE, MOST_THREADS, 2>;
    return (const void *)rq_quantize_hadamard<SOURCE, MOST_THREADS, MOST_ITEMS>;
}

rq_status rq_rows_hadamard(row_job *row, bool silu, const rq_hadamard *h, int64_t n_tok, int early_launch,
                           rq_cuda_stream stream) {
    if (row->fixed) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "scales that are there already, with a Hadamard matrix");
    if (row->block_sum || row->q_pitch != row->n_in)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "e4m3, or rows of q with something between, with a Hadamard matrix");
    const bool order = h->size >= 2 && h->core >= 1 && h->core <= RQ_ACT_MAX_CORE && h->size % h->core == 0 &&
                       (h->core == 1 || h->core % TILE == 0);
    const int width = order ? h->size / h->core : 0;
    if (!order || width & (width - 1))
        return rq_gemv_fail(RQ_ERR_ARG, "the Hadamard matrix is none of rq_hadamard_make");
    if (row->n_in % h->size) return rq_gemv_fail(RQ_ERR_ARG, "n_in is no multiple of the Hadamard matrix's order");
    hadamard_job job = {};
    job.h = *h;
    while (1 << job.log_width < width) ++job.log_width;
    job.core_row = h->core > 1 ? h->core : 0;
    job.n_group = (row->n_in / h->core + UNIT - 1) / UNIT;
    job.n_item = h->core > 1 ? job.n_group * (h->core / TILE) : (row->n_in + TILE * UNIT - 1) / (TILE * UNIT);
    if (row->n_in > MOST_COLUMNS || job.n_item > MOST_ITEMS * MOST_THREADS)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED,
                            "a row with a Hadamard matrix lies in shared memory: up to 32,768 columns");
    if (rq_status s = rq_rows_check(row, n_tok)) return s;
    job.row = *row;
    int threads;
    const void *kernel = silu ? pick<SILU>(job.n_item, &threads) : pick<PLAIN>(job.n_item, &threads);
    const int shared = ((row->n_in + 31) / 32 * 32 + h->core * job.core_row) * (int)sizeof(float);
    if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared))
        return rq_gemv_fail_cuda("cudaFuncSetAttribute", e);
    return rq_rows_launch(kernel, &job, n_tok, threads, shared, early_launch, stream);
}
