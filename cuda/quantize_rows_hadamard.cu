/* SPDX-License-Identifier: Apache-2.0 */
/* Rows, RMSNorm, or SiLU and product, then a Hadamard matrix, factors, int8, in one kernel: rq_cuda_quantize_rows and rq_cuda_silu_quantize with
 * args.hadamard, rq_cuda_rmsnorm_hadamard_quantize. Sums are those of fmt_act.h, whichever threads make them, so the bytes are plain C's.
 *
 * A block has a row, in shared memory as fp32 (hadamard.cuh has the stages). Results of the last one stay in registers: norm, factors, largest, codes.
 * Targets: sm_80 sm_90a. */
#include "hadamard.cuh"
#include "quantize_rows.cuh"

enum { MOST_ITEMS = 4, MOST_THREADS = 512, MOST_COLUMNS = 32768 };
static_assert((int)CHUNK == (int)HADAMARD_CHUNK, "columns that a thread reads");

struct hadamard_job {
    row_job row;
    hadamard_shape shape;
    int n_item; /* tiles of 4 x 4 */
};

/* Column k of row m of a tile, or -1. */
static __device__ __forceinline__ int output_of(const hadamard_job &job, int item, tile t, int m, int k) {
    if (!job.shape.core_row) {
        const int at = (item + m * job.n_item) * UNIT + k;
        return at < job.row.n_in ? at : -1;
    }
    const int at = column_of(job.shape, job.row.n_in, t.group, k);
    return at < 0 ? -1 : at + ((t.row * TILE + m) << job.shape.log_width);
}

/* r of RMSNorm. The sum with the residual is written for the second reading, which other threads may do. */
template <int THREADS> static __device__ __forceinline__ float norm_of_row(const row_job &job, row_sums &sums) {
    float square[CHUNK] = {};
    for (int i = threadIdx.x * CHUNK; threadIdx.x < ROW_THREADS && i < job.n_in; i += RQ_ACT_PARTIALS) {
        float v[CHUNK];
        read<RMSNORM, false>(v, job, i);
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) square[k] = fmaf(v[k], v[k], square[k]);
    }
    return one_over_rms<THREADS>(job, square, sums);
}

template <int SOURCE, int THREADS, int ITEMS>
__global__ void __launch_bounds__(THREADS) rq_quantize_hadamard(const __grid_constant__ hadamard_job job) {
    extern __shared__ __align__(128) float x[];
    __shared__ row_reduced<THREADS / 32> reduced;
    float *sign = x + (job.row.n_in + 31) / 32 * 32;
    fill_signs(sign, job.shape, THREADS);
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    float r = 0.0f;
    if constexpr (SOURCE == RMSNORM) {
        __shared__ row_sums sums;
        r = norm_of_row<THREADS>(job.row, sums);
    }
    butterflies(x, job.row.n_in, job.shape.log_width, THREADS, [&](float(&v)[CHUNK], int i) {
        read<SOURCE, SOURCE == RMSNORM>(v, job.row, i);
        if (SOURCE == RMSNORM) norm(v, job.row, i, r);
    });

    float h[ITEMS][TILE][UNIT], most = 0.0f;
    /* Four columns that are neighbours, at a multiple of four in every array. */
    const bool units = job.row.whole && (job.shape.core_row ? job.shape.log_width >= 2 : true);
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int item = threadIdx.x + i * THREADS;
#pragma unroll
        for (int m = 0; m < TILE; ++m)
#pragma unroll
            for (int k = 0; k < UNIT; ++k) h[i][m][k] = -0.0f;
        if (item >= job.n_item) continue;
        tile t = {};
        if (job.shape.core_row) {
            t = tile_of(job.shape, item);
            tile_sums(h[i], job.shape, job.row.n_in, x, t, sign_table{sign, job.shape.core_row, t.row});
        }
#pragma unroll
        for (int m = 0; m < TILE; ++m) {
            if (!job.shape.core_row) {
                const int at = (item + m * job.n_item) * UNIT;
                if (at >= job.row.n_in) continue;
                load4(h[i][m], x, at); /* what is past the end was stored too */
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
                h[i][m][k] = __fmul_rn(__fmul_rn(h[i][m][k], job.shape.h.norm), f[k]); /* times 1 changes nothing */
                most = fmaxf(most, fabsf(h[i][m][k]));                                 /* NaN is not the largest */
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
        const tile t = job.shape.core_row ? tile_of(job.shape, item) : tile{};
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

rq_status rq_rows_hadamard(row_job *row, source from, const rq_hadamard *h, int64_t n_tok, int early_launch,
                           rq_cuda_stream stream) {
    if (row->fixed) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "scales that are there already, with a Hadamard matrix");
    if (row->block_sum || row->q_pitch != row->n_in)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "e4m3, or rows of q with something between, with a Hadamard matrix");
    hadamard_job job = {};
    if (!hadamard_shape_of(&job.shape, h))
        return rq_gemv_fail(RQ_ERR_ARG, "the Hadamard matrix is none of rq_hadamard_make");
    if (row->n_in % h->size) return rq_gemv_fail(RQ_ERR_ARG, "n_in is no multiple of the Hadamard matrix's order");
    job.n_item = h->core > 1 ? tiles_of(*h, row->n_in) : (row->n_in + TILE * UNIT - 1) / (TILE * UNIT);
    if (row->n_in > MOST_COLUMNS || job.n_item > MOST_ITEMS * MOST_THREADS)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED,
                            "a row with a Hadamard matrix lies in shared memory: up to 32,768 columns");
    if (rq_status s = rq_rows_check(row, n_tok)) return s;
    job.row = *row;
    int threads;
    const void *kernel = from == SILU      ? pick<SILU>(job.n_item, &threads)
                         : from == RMSNORM ? pick<RMSNORM>(job.n_item, &threads)
                                           : pick<PLAIN>(job.n_item, &threads);
    const int shared = ((row->n_in + 31) / 32 * 32 + h->core * job.shape.core_row) * (int)sizeof(float);
    if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared))
        return rq_gemv_fail_cuda("cudaFuncSetAttribute", e);
    return rq_rows_launch(kernel, &job, n_tok, threads, shared, early_launch, stream);
}
