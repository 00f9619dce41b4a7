/* SPDX-License-Identifier: Apache-2.0 */
/* Rows times a Hadamard matrix (rq_cuda_hadamard_rows: fp32, the sums and so the numbers of host/fmt_act.h) or a rotation by one with random signs
 * (rq_cuda_rotate_rows: fp64, those of host/rotate.c: the randomized Hadamard transform of QuaRot, arXiv:2404.00456), alone. hadamard.cuh has
 * the stages.
 *
 * A block has `span` columns of a row in shared memory: one order, or as many as make about 4,096 columns. Results of the last stage go
 * straight to global memory, so that y may be x. Signs of a rotation are random numbers by counter (host/random.h), made where they are used.
 * Targets: sm_80 sm_90a. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdio.h>

#include "gemv_variants.h"
#include "hadamard.cuh"
#include "random.h"
#include "rq_cuda_hadamard.h"

enum { MOST_THREADS = 512, SPAN = 4096 };
enum turn { NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER }; /* of a rotation, with 1 / sqrt(size) */

struct rows_job {
    hadamard_shape shape;
    void *y;
    const void *x;
    const float *factor; /* of columns, or NULL */
    int64_t n;           /* columns of a row */
    int span;
    bool whole; /* rows are multiples of 8 columns that begin at multiples of 16 bytes */
    turn signs;
    bool plain; /* all signs are plus */
    uint64_t seed;
    double scale;
};

/* ---- columns in memory; T: what is computed with */

template <int TYPE> struct stored { using type = uint16_t; };
template <> struct stored<RQ_ROWS_F32> { using type = float; };
template <> struct stored<RQ_ROWS_F64> { using type = double; };

template <int TYPE> static __device__ __forceinline__ auto value(typename stored<TYPE>::type bits) {
    if constexpr (TYPE == RQ_ROWS_F16)
        return __half2float(__ushort_as_half(bits));
    else if constexpr (TYPE == RQ_ROWS_BF16)
        return __uint_as_float((uint32_t)bits << 16);
    else
        return bits;
}
/* Rounded to fp32 first, where that is a step to 16 bits. */
template <int TYPE, typename T> static __device__ __forceinline__ typename stored<TYPE>::type rounded(T v) {
    if constexpr (TYPE == RQ_ROWS_F16)
        return __half_as_ushort(__float2half_rn((float)v));
    else if constexpr (TYPE == RQ_ROWS_BF16)
        return __bfloat16_as_ushort(__float2bfloat16_rn((float)v));
    else
        return (typename stored<TYPE>::type)v;
}

/* N neighbours, zeros from `left` on. */
template <int TYPE, typename T, int N>
static __device__ __forceinline__ void read_columns(T (&v)[N], const void *from, int64_t at, bool whole, int left) {
    using S = typename stored<TYPE>::type;
    const S *x = static_cast<const S *>(from) + at;
    __align__(16) S s[N];
    if (whole) {
#pragma unroll
        for (int k = 0; k < N * (int)sizeof(S) / 16; ++k)
            reinterpret_cast<uint4 *>(s)[k] = reinterpret_cast<const uint4 *>(x)[k];
    } else {
#pragma unroll
        for (int k = 0; k < N; ++k) s[k] = k < left ? x[k] : S{};
    }
#pragma unroll
    for (int k = 0; k < N; ++k) v[k] = (T)value<TYPE>(s[k]);
}
/* Four neighbours. */
template <int TYPE, typename T>
static __device__ __forceinline__ void write_unit(void *to, int64_t at, const T (&v)[UNIT]) {
    using S = typename stored<TYPE>::type;
    __align__(16) S s[UNIT];
#pragma unroll
    for (int k = 0; k < UNIT; ++k) s[k] = rounded<TYPE>(v[k]);
    S *y = static_cast<S *>(to) + at;
    if constexpr (sizeof s == 8) {
        *reinterpret_cast<uint2 *>(y) = *reinterpret_cast<const uint2 *>(s);
    } else {
#pragma unroll
        for (int k = 0; k < (int)sizeof s / 16; ++k)
            reinterpret_cast<uint4 *>(y)[k] = reinterpret_cast<const uint4 *>(s)[k];
    }
}

/* ---- the kernel */

static __device__ __forceinline__ double signed_scale(const rows_job &job, int column) {
    const uint64_t i = (uint64_t)(column % job.shape.h.size);
    return job.plain || rq_random_u64(job.seed, i) >> 63 ? job.scale : -job.scale;
}

/* What becomes of the result of a column of the span. */
static __device__ __forceinline__ float finished(const rows_job &job, float v, int64_t row_column, int) {
    v = __fmul_rn(v, job.shape.h.norm);
    return job.factor ? __fmul_rn(v, job.factor[row_column]) : v;
}
static __device__ __forceinline__ double finished(const rows_job &job, double v, int64_t, int column) {
    return job.signs == SIGNS_AFTER ? v * signed_scale(job, column) : v;
}

template <int TYPE, typename T>
static __device__ __forceinline__ void write_results(const rows_job &job, int64_t row, int64_t col0, int n,
                                                     const int (&at)[UNIT], const T (&v)[UNIT], bool units) {
    T out[UNIT];
#pragma unroll
    for (int k = 0; k < UNIT; ++k) out[k] = at[k] < 0 ? (T)0 : finished(job, v[k], col0 + at[k], at[k]);
    if (units) {
        write_unit<TYPE>(job.y, row + col0 + at[0], out);
        return;
    }
    typename stored<TYPE>::type *y = static_cast<typename stored<TYPE>::type *>(job.y) + row + col0;
#pragma unroll
    for (int k = 0; k < UNIT; ++k)
        if (at[k] >= 0) y[at[k]] = rounded<TYPE>(out[k]);
}

static __device__ __forceinline__ sign_table signs_of(const hadamard_shape &s, const float *table, int row, float) {
    return {table, s.core_row, row};
}
static __device__ __forceinline__ sign_bits signs_of(const hadamard_shape &s, const float *, int row, double) {
    return sign_bits(s.h, row);
}

template <typename T, int TYPE>
__global__ void __launch_bounds__(MOST_THREADS) rq_hadamard_rows(const __grid_constant__ rows_job job) {
    extern __shared__ __align__(128) unsigned char memory[];
    T *x = reinterpret_cast<T *>(memory);
    const hadamard_shape &shape = job.shape;
    const int64_t row = blockIdx.x * job.n, col0 = (int64_t)blockIdx.y * job.span;
    const int n = (int)min((int64_t)job.span, job.n - col0), threads = blockDim.x;
    float *table = reinterpret_cast<float *>(x + (job.span + 31) / 32 * 32);
    if constexpr (sizeof(T) == 4) fill_signs(table, shape, threads);
    butterflies(x, n, shape.log_width, threads, [&](T(&v)[HADAMARD_CHUNK], int i) {
        read_columns<TYPE>(v, job.x, row + col0 + i, job.whole, n - i);
        if constexpr (sizeof(T) == 8) {
#pragma unroll
            for (int k = 0; k < HADAMARD_CHUNK; ++k)
                if (job.signs == SIGNS_BEFORE) v[k] *= signed_scale(job, i + k);
        }
    });
    if (!shape.core_row) {
        for (int i = threadIdx.x * UNIT; i < n; i += threads * UNIT) {
            int at[UNIT];
            T v[UNIT];
            load4(v, x, i);
#pragma unroll
            for (int k = 0; k < UNIT; ++k) at[k] = i + k < n ? i + k : -1;
            write_results<TYPE>(job, row, col0, n, at, v, job.whole);
        }
        return;
    }
    for (int item = threadIdx.x; item < tiles_of(shape.h, n); item += threads) {
        const tile t = tile_of(shape, item);
        T sum[TILE][UNIT];
#pragma unroll
        for (int m = 0; m < TILE; ++m)
#pragma unroll
            for (int k = 0; k < UNIT; ++k) sum[m][k] = sizeof(T) == 4 ? (T)-0.0 : (T)0; /* rotate.c adds to 0 */
        tile_sums(sum, shape, n, x, t, signs_of(shape, table, t.row, T{}));
#pragma unroll
        for (int m = 0; m < TILE; ++m) {
            int at[UNIT];
#pragma unroll
            for (int k = 0; k < UNIT; ++k) {
                const int first = column_of(shape, n, t.group, k);
                at[k] = first < 0 ? -1 : first + ((t.row * TILE + m) << shape.log_width);
            }
            write_results<TYPE>(job, row, col0, n, at, sum[m], job.whole && shape.log_width >= 2);
        }
    }
}

/* ---- launch */

static const void *kernel_of(rq_rows_type type, bool rotates) {
    switch (type) {
    case RQ_ROWS_F16:
        return rotates ? (const void *)rq_hadamard_rows<double, RQ_ROWS_F16>
                       : (const void *)rq_hadamard_rows<float, RQ_ROWS_F16>;
    case RQ_ROWS_BF16:
        return rotates ? (const void *)rq_hadamard_rows<double, RQ_ROWS_BF16>
                       : (const void *)rq_hadamard_rows<float, RQ_ROWS_BF16>;
    case RQ_ROWS_F32:
        return rotates ? (const void *)rq_hadamard_rows<double, RQ_ROWS_F32>
                       : (const void *)rq_hadamard_rows<float, RQ_ROWS_F32>;
    case RQ_ROWS_F64: return rotates ? (const void *)rq_hadamard_rows<double, RQ_ROWS_F64> : nullptr;
    }
    return nullptr;
}

static rq_status shared_memory(const void *kernel, const rq_hadamard *h, size_t bytes) {
    int device = 0, most = 0;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (e != cudaSuccess) return rq_gemv_fail_cuda("cudaDeviceGetAttribute", e);
    if (bytes > (size_t)most) {
        char text[160];
        snprintf(text, sizeof text, "a Hadamard matrix of order %d needs %zu bytes of shared memory, a block has %d",
                 h->size, bytes, most);
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, text);
    }
    e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    return e == cudaSuccess ? RQ_OK : rq_gemv_fail_cuda("cudaFuncSetAttribute", e);
}

static rq_status launch(rows_job *job, const rq_hadamard *h, rq_rows_type type, int64_t n_tok, rq_cuda_stream stream) {
    const bool rotates = job->signs != NO_SIGNS;
    const void *kernel = kernel_of(type, rotates);
    if (!kernel)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, rotates ? "rows to rotate are fp16, bf16, fp32 or fp64"
                                                        : "rows for a Hadamard matrix are fp16, bf16 or fp32");
    if (!h || !hadamard_shape_of(&job->shape, h))
        return rq_gemv_fail(RQ_ERR_ARG, "the Hadamard matrix is none of rq_hadamard_make");
    if (n_tok < 1 || n_tok > INT32_MAX || job->n < 1 || job->n > 1 << 30)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "rows are 1 to 2^31 - 1, of 1 to 2^30 columns");
    if (job->n % h->size) {
        char text[120];
        snprintf(text, sizeof text, "a row of %lld columns is no multiple of the Hadamard matrix's order %d",
                 (long long)job->n, h->size);
        return rq_gemv_fail(RQ_ERR_ARG, text);
    }
    const int64_t orders = job->n / h->size, fit = h->size < SPAN ? SPAN / h->size : 1;
    job->span = (int)((fit < orders ? fit : orders) * h->size);
    const int64_t spans = (job->n + job->span - 1) / job->span;
    const size_t element = rotates ? sizeof(double) : sizeof(float);
    const size_t table = rotates ? 0 : (size_t)h->core * (size_t)job->shape.core_row * sizeof(float);
    const size_t shared = ((size_t)job->span + 31) / 32 * 32 * element + table;
    if (rq_status s = shared_memory(kernel, h, shared)) return s;
    if (!job->x || !job->y) return rq_gemv_fail(RQ_ERR_ARG, "x or y is NULL");
    job->whole = job->n % HADAMARD_CHUNK == 0 && job->span % HADAMARD_CHUNK == 0 &&
                 (reinterpret_cast<uintptr_t>(job->x) | reinterpret_cast<uintptr_t>(job->y)) % 16 == 0;
    int threads = (job->span / HADAMARD_CHUNK + 31) / 32 * 32;
    threads = threads < 32 ? 32 : threads > MOST_THREADS ? (int)MOST_THREADS : threads;
    void *params[] = {job};
    const cudaError_t e = cudaLaunchKernel(kernel, dim3((unsigned)n_tok, (unsigned)spans), dim3((unsigned)threads),
                                           params, shared, stream);
    return e == cudaSuccess ? RQ_OK : rq_gemv_fail_cuda("rq_hadamard_rows", e);
}

rq_status rq_cuda_hadamard_rows(const rq_cuda_hadamard_args *a, rq_cuda_stream stream) {
    if (!a) return rq_gemv_fail(RQ_ERR_ARG, "there are no arguments");
    rows_job job = {};
    job.y = a->y, job.x = a->x, job.n = a->n, job.factor = a->factor;
    return launch(&job, a->hadamard, a->type, a->n_tok, stream);
}

rq_status rq_cuda_rotate_rows(const rq_cuda_rotate_args *a, rq_cuda_stream stream) {
    if (!a) return rq_gemv_fail(RQ_ERR_ARG, "there are no arguments");
    rows_job job = {};
    job.y = a->y, job.x = a->x, job.n = a->n, job.seed = a->seed, job.plain = a->plain != 0;
    job.signs = a->inverse ? SIGNS_AFTER : SIGNS_BEFORE;
    if (a->hadamard) job.scale = 1.0 / sqrt((double)a->hadamard->size);
    return launch(&job, a->hadamard ? &a->hadamard[a->inverse ? 0 : 1] : nullptr, a->type, a->n_tok, stream);
}
