/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA kernels, as C: plan -> workspace -> run, on an explicit stream. A run allocates nothing, waits for nothing and reads
 * nothing back, so that it can be captured in a graph. Weights come repacked for these kernels (host/repack_*.c); all
 * pointers of a run are device pointers.
 *
 *   y[t][i] = sum_j w[i][j] x[t][j] (+ bias[i]) (+ residual[t][i])       t < n_tok <= 16, fp32 sums, y rounded once
 *
 * The result is the same bytes in every run: no floating-point atomics. */
#ifndef RQ_CUDA_H
#define RQ_CUDA_H

#include "fmt_act.h"
#include "fmt_tile.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *rq_cuda_stream;

typedef enum rq_act { RQ_ACT_F16, RQ_ACT_BF16 } rq_act; /* of x, bias, residual and y */

/* What there is to do: sizes and formats, no pointers. rq_cuda_gemv_desc_default() then set the rest. */
typedef struct rq_cuda_gemv_desc {
    size_t struct_size;
    rq_tile_kind kind; /* of the repacked weights */
    int64_t n_out, n_in, n_tok;
    rq_act act;
    int bits;          /* RQ_TILE_GRID: 2, 3, 4 or 8 */
    int64_t group;     /* columns that share a scale; n_in: one a row. RQ_TILE_W4A8: a step and a base; 0: one level */
    int zeros;         /* RQ_TILE_GRID: 1 when there are zero points */
    int vec_len;       /* RQ_TILE_SSVQ, RQ_TILE_VQ, as the five below: 4 or 8 */
    int64_t n_book;    /* codebooks, each for book_cols columns */
    int64_t book_cols; /* a multiple of 128; n_in when there is one codebook */
    int code_bits;     /* RQ_TILE_SSVQ, 9 to 12: codebooks of 2^code_bits entries; up to 8: of up to 256 */
    int book_u8;       /* RQ_TILE_SSVQ, 1: magnitudes are bytes, 0: fp16 */
    int n_outlier;     /* columns that are int8 */
    int x_s8; /* RQ_TILE_SSVQ with bytes as magnitudes, and RQ_TILE_W4A8: x is int8 with a scale a token, and act is what the rest has */
    int x_e4m3;         /* RQ_TILE_W4A8: x is e4m3 with a scale a token, and not int8 */
    int64_t x_pitch;    /* RQ_TILE_W4A8: bytes from a token of x to the next, at least n_in; 0: n_in */
    int vec_out;        /* RQ_TILE_VQ, as the four below: vectors run down the rows */
    int n_stage;        /* 1 or 2 */
    int64_t n_codes[2]; /* entries of a codebook of each stage */
    int no_scales;      /* 1: there are none; group is n_in then */
    int columns;        /* 1: each column has a scale and a bias */
    int bias, residual; /* 1: added */
    int early_launch; /* 1: launched with programmatic dependent launch (sm_90): the weights' first loads do not wait for the kernel before */
} rq_cuda_gemv_desc;

typedef struct rq_cuda_gemv_args {
    void *y;              /* [n_tok][n_out] of act */
    const void *x;        /* [n_tok][n_in] of act, or [n_tok][x_pitch] int8 or e4m3 */
    const float *x_scale; /* [n_tok], of int8 and e4m3 x: x_scale[t] x[t][j] is what is multiplied; otherwise NULL */
    const int32_t *x_sum; /* [n_tok], for W4A8 with int8 x: the sums of x[t]; otherwise NULL */
    const float *x_block_sum; /* rq_cuda_x8.block_sum, for W4A8 with e4m3 x: sums over 128 columns; otherwise NULL */
    const void *weights;      /* rq_tile_layout.bytes bytes, 256-byte aligned */
    const void *bias;         /* [n_out] of act, or NULL */
    const void *residual;     /* [n_tok][n_out] of act, or NULL; may be y */
    const int32_t *perm;      /* NULL, or [n_in]: stored column j multiplies x[perm[j]] */
    void *
        workspace; /* rq_cuda_gemv_plan.workspace_bytes, 256-byte aligned; zero before its first use, left zero after */
} rq_cuda_gemv_args;

typedef struct rq_cuda_gemv_plan { /* filled by rq_cuda_gemv_make_plan */
    size_t workspace_bytes;
    int blocks, threads, split; /* grid, block, parts a row's columns are cut into */
    size_t shared_bytes;
    double bytes;       /* moved by one run: weights with side data, x, y */
    const char *kernel; /* its name */
    int variant;
    int log_warps, part_kb; /* 2^log_warps warps share a row block; columns / 128 of a part */
} rq_cuda_gemv_plan;

rq_cuda_gemv_desc rq_cuda_gemv_desc_default(void);
/* RQ_OK when the current device can do it; otherwise *why (if not NULL) is a sentence. */
rq_status rq_cuda_gemv_supports(const rq_cuda_gemv_desc *d, const char **why);
rq_status rq_cuda_gemv_make_plan(rq_cuda_gemv_plan *plan, const rq_cuda_gemv_desc *d);
rq_status rq_cuda_gemv_run(const rq_cuda_gemv_plan *plan, const rq_cuda_gemv_desc *d, const rq_cuda_gemv_args *a,
                           rq_cuda_stream stream);

/* ---- W4A8 for many tokens, by tiles of tokens on the tensor cores. Of int8 x, y of rq_cuda_gemv_run to the last bit; of e4m3 x the sums are fp32,
 * in an order that tile and cut of the columns decide. Description and arguments are those of a GEMV of kind RQ_TILE_W4A8 with n_tok from 1 to
 * 2^20; tokens of x begin at multiples of 16 bytes (x and x_pitch), x_block_sum as well, and there is no perm. */

typedef struct rq_cuda_gemm_plan { /* filled by rq_cuda_gemm_make_plan */
    size_t workspace_bytes;
    int capability;                             /* of the kernel: 80 (mma), 90 (wgmma) */
    int tile_rows, tile_tok;                    /* outputs of a block */
    int blocks_out, blocks_tok, split, part_kb; /* the grid; columns / 128 of a part */
    int threads;
    size_t shared_bytes;
    double bytes, operations; /* moved by one run, each once; 2 n_out n_in n_tok */
    const char *kernel;
} rq_cuda_gemm_plan;

/* What a plan is to be, for tuning and tests; 0: as the library chooses. */
typedef struct rq_cuda_gemm_wish {
    int capability;          /* 80: no kernel that needs more */
    int tile_rows, tile_tok; /* 128, or 256 with 128 tokens of int8 on 9.0; 32, 64 or 128, of e4m3 on 8.0 up to 64 */
    int split;               /* parts of the columns, at most */
} rq_cuda_gemm_wish;

rq_status rq_cuda_gemm_supports(const rq_cuda_gemv_desc *d, const char **why);
/* wish may be NULL. */
rq_status rq_cuda_gemm_make_plan(rq_cuda_gemm_plan *plan, const rq_cuda_gemv_desc *d, const rq_cuda_gemm_wish *wish);
rq_status rq_cuda_gemm_run(const rq_cuda_gemm_plan *plan, const rq_cuda_gemv_desc *d, const rq_cuda_gemv_args *a,
                           rq_cuda_stream stream);

/* ---- Activations as int8, for x_s8 and W4A8, or as e4m3, for W4A8: q, a scale and, where sum is not NULL, the sum of q for each row. host/fmt_act.h is their
 * definition, to the last bit:  q[t][j] = rint(h[t][j] / scale[t]), at most 127 in size, ties to even; NaN becomes 0.
 * scale[t] = max_j |h[t][j]| / 127. A row of zeros has scale 0. early_launch as of a gemv.
 *
 * With a block_sum q is e4m3: h[t][j] / scale[t] rounded to the nearest, at most 448 in size, scale[t] = max_j |h[t][j]| / 448, and block_sum[b][t] is the
 * sum of the numbers in columns 128 b on, where [t] goes up to a multiple of 4; there is no sum then. q_pitch: from a row of q to the next, 0: n_in; what lies between
 * is not written. Neither goes with a Hadamard matrix.
 *
 * What a W4A8 matrix wants of its input (in_scale and hadamard of fmt_w4a8.h) is no part of its tiles. It is done here, and the gemv or gemm gets
 * q, scale and sum: `hadamard` is &w->online[0], `factor` is in_scale on the device. rq_repack_w4a8_plan has them in the layout, so that it is seen
 * what the matrix was quantized for.
 *   factor    float[n_in] on the device, or NULL: h[t][j] times factor[j], after RMSNorm's weight and after the Hadamard matrix
 *   hadamard  on the host, copied into the launch; or NULL: each hadamard->size columns of h times that matrix. Up to 32,768 columns.
 *   steps     steps.scale set: scale[t] is steps.scale[steps.step[t / rows_per_step]], from tables on the device: one captured graph serves all
 *             steps of a process, and *step alone changes. A step outside of 0 .. n_step - 1 gives the scale NaN, codes and sum 0. */

/* h = x. fixed: scale[t] is there already (positive). */
typedef struct rq_cuda_quantize_args {
    int8_t *q;     /* [n_tok][n_in] */
    float *scale;  /* [n_tok] */
    int32_t *sum;  /* [n_tok], or NULL */
    const void *x; /* [n_tok][n_in] of act */
    rq_act act;
    int64_t n_tok, n_in;
    int fixed, early_launch;
    const float *factor;
    const rq_hadamard *hadamard;
    rq_act_steps steps; /* not with fixed */
    int64_t q_pitch;
    float *block_sum;
} rq_cuda_quantize_args;
rq_status rq_cuda_quantize_rows(const rq_cuda_quantize_args *a, rq_cuda_stream stream);

/* stream = x + residual, rounded to act;  h = stream / sqrt(mean of stream^2 + eps) * weight. Without a residual x is the stream. */
typedef struct rq_cuda_rmsnorm_args {
    int8_t *q;
    float *scale;
    int32_t *sum;
    void *stream;         /* [n_tok][n_in] of act, if and only if there is a residual; may be x or residual */
    const void *x;        /* [n_tok][n_in] of act */
    const void *residual; /* likewise, or NULL */
    const void *weight;   /* [n_in] of act, or NULL: folded into the matrices */
    float eps;
    rq_act act;
    int64_t n_tok, n_in;
    int early_launch;
    const float *factor;
    rq_act_steps steps;
    int64_t q_pitch;
    float *block_sum;
} rq_cuda_rmsnorm_args;
rq_status rq_cuda_rmsnorm_quantize(const rq_cuda_rmsnorm_args *a, rq_cuda_stream stream);

/* h = gate / (1 + e^-gate) * up */
typedef struct rq_cuda_silu_args {
    int8_t *q; /* [n_tok][n_in] */
    float *scale;
    int32_t *sum;
    const void *gate,
        *up; /* rows of n_in of act, pitch elements apart: halves of one row, where both matrices are stacked */
    int64_t pitch;
    rq_act act;
    int64_t n_tok, n_in;
    int early_launch;
    const float *factor;
    const rq_hadamard *hadamard;
    rq_act_steps steps;
    int64_t q_pitch;
    float *block_sum;
} rq_cuda_silu_args;
rq_status rq_cuda_silu_quantize(const rq_cuda_silu_args *a, rq_cuda_stream stream);

/* ---- y[t][i] = x[t][i] + table[k][i], in fp32 and rounded once to act; k = step[t / rows_per_step], or step[0] when rows_per_step is 0. With the
 * projections of a time embedding for all steps in the table (rq_steps_project), and *step on the device, a captured graph serves all steps. */
typedef struct rq_cuda_step_rows_args {
    void *y;             /* [n_tok][n] of act; may be x */
    const void *x;       /* [n_tok][n] of act, or NULL: y is the row of the table */
    const float *table;  /* [n_step][n] on the device */
    const int32_t *step; /* on the device; one that is not in 0 .. n_step - 1 makes its rows NaN */
    int64_t n_step, rows_per_step;
    rq_act act;
    int64_t n_tok, n;
    int early_launch;
} rq_cuda_step_rows_args;
rq_status rq_cuda_step_rows(const rq_cuda_step_rows_args *a, rq_cuda_stream stream);

/* W as a dense matrix to[n_out][ld] of d->act, in stored column order: each weight is the number of the format's definition in fp32, rounded once.
 * What lies between n_in and ld is not written. n_tok, bias, residual and early_launch of d do not count. A run only launches. */
rq_status rq_cuda_unpack_supports(const rq_cuda_gemv_desc *d, const char **why);
rq_status rq_cuda_unpack_run(const rq_cuda_gemv_desc *d, void *to, int64_t ld, const void *weights,
                             rq_cuda_stream stream);

/* ---- y = W x for any number of tokens: the GEMV in chunks of up to 16, or dense weights and cuBLAS, whichever should be faster; of W4A8, which
 * has no dense way, the GEMM from 17 tokens on.
 * The second rounds each weight to act before it multiplies, so its results differ by up to 2^-11 (bfloat16: 2^-8) of the terms' sizes. cuBLAS is
 * loaded when a plan first needs it; without it such a plan is refused with a sentence, and RQ_LINEAR_GEMV still runs. */

typedef enum rq_linear_path { RQ_LINEAR_AUTO, RQ_LINEAR_GEMV, RQ_LINEAR_DEQUANTIZE, RQ_LINEAR_GEMM } rq_linear_path;

/* What the choice reckons with. The defaults stand for an H200: what such a GPU is reported to copy (read + written) and to multiply in fp16, and
 * estimates of the share of the former that a GEMV reaches and of a launch. None is measured here yet; bench_gemv shows both ways.
 *   gemv         = chunks (launch_us + format / (gemv_of_copy copy)) + (x + y) / copy
 *   dequantize   = 2 launch_us + (format + 2 dense + x + y) / copy + 2 n_out n_in n_tok / matrix       in bytes and operations */
typedef struct rq_cuda_rates {
    double copy_gbs, matrix_tflops, gemv_of_copy, launch_us;
} rq_cuda_rates;

typedef struct rq_cuda_linear_desc {
    size_t struct_size;
    rq_cuda_gemv_desc weights; /* n_tok: from 1 */
    rq_linear_path path;       /* RQ_LINEAR_AUTO by default; int8 and e4m3 x go with GEMV and GEMM only */
    rq_cuda_rates rates;
    size_t blas_workspace; /* bytes of scratch for cuBLAS, 32 MiB */
    void *blas; /* a cublasHandle_t of this device, whose stream and workspace a run sets; NULL: one of ours */
} rq_cuda_linear_desc;

typedef struct rq_cuda_linear_args {
    rq_cuda_gemv_args gemv; /* y, x, residual of all tokens; workspace: zero before its first use, left zero after */
    void *scratch;          /* plan.scratch_bytes, 256-byte aligned, of any contents */
} rq_cuda_linear_args;

typedef struct rq_cuda_linear_plan { /* filled by rq_cuda_linear_make_plan */
    rq_linear_path path;             /* GEMV, DEQUANTIZE or GEMM */
    size_t workspace_bytes, scratch_bytes;
    double gemv_us, dequantize_us; /* what the choice was made by */
    double bytes;                  /* moved by one run, x and y among them */
    const char *kernel;
    int launches;
    int64_t chunk;                /* tokens of a GEMV; the last one has what is left */
    rq_cuda_gemv_plan most, last; /* of the chunks */
    rq_cuda_gemm_plan gemm;
    int64_t ld; /* of dense weights and x in scratch */
    size_t x_at, sums_at, blas_at;
} rq_cuda_linear_plan;

rq_cuda_linear_desc rq_cuda_linear_desc_default(void);
rq_status rq_cuda_linear_supports(const rq_cuda_linear_desc *d, const char **why);
/* Not while a stream is captured: it may load cuBLAS. */
rq_status rq_cuda_linear_make_plan(rq_cuda_linear_plan *plan, const rq_cuda_linear_desc *d);
/* Only queues: it can be captured. */
rq_status rq_cuda_linear_run(const rq_cuda_linear_plan *plan, const rq_cuda_linear_desc *d,
                             const rq_cuda_linear_args *a, rq_cuda_stream stream);
/* Ends the cuBLAS handles that plans made; runs have ended. */
void rq_cuda_linear_release(void);

/* The sentence behind the last status of this thread that was not RQ_OK. */
const char *rq_cuda_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
