/* SPDX-License-Identifier: Apache-2.0 */
/* What gemv_launch.cu and the kernels of a weight format agree on. A format is a row: rq_gemv_format. */
#ifndef RQ_GEMV_VARIANTS_H
#define RQ_GEMV_VARIANTS_H
#include <cuda_runtime_api.h>

#include "rq_cuda.h"

enum { RQ_GEMV_LOG_WARPS = 4, RQ_GEMV_WARPS = 16, RQ_GEMV_THREADS = RQ_GEMV_WARPS * 32, RQ_GEMV_ARGS = 128 };
/* Floats of a token's partial sums of a block: 16 rows a warp, and 4 so that tokens begin in different banks; 8 where x is the A operand,
 * whose sums lie otherwise in the lanes. */
enum { RQ_GEMV_SUM_PITCH = RQ_GEMV_WARPS * RQ_TILE_ROWS + 4, RQ_GEMV_SUM_PITCH_X_IS_A = RQ_GEMV_SUM_PITCH + 4 };

/* Two blocks of 16 warps with 64 registers a thread, or, for accumulators of more than 8 tokens or more than one row block, one with
 * 128. */
#ifdef __CUDACC__
__host__ __device__
#endif
    static constexpr int
    rq_gemv_blocks_per_sm(int accumulators) {
    return accumulators == 1 ? 2 : 1;
}

/* What a launch is, without what the format needs: the kernels' first parameter. */
typedef struct rq_gemv_job {
    void *y;
    const void *x, *bias, *residual;
    const float *x_scale; /* of x in bytes */
    const int32_t *perm;
    unsigned *counters; /* [n_rb][n_tok], zero between launches */
    float *parts;       /* [n_rb][n_tok][split][16], likewise */
    int n_out, n_in, n_tok;
    int n_rb, n_kb; /* tiles: rq_tile_layout */
    int split;      /* parts that the columns are cut into; block b has part b % split */
    int part_kb;    /* tile columns of a part */
    int log_warps; /* 2^log_warps warps share the tiles of a row block; a block has 16 / 2^log_warps row blocks at once */
    int rb_step;   /* from a block's group of row blocks to its next */
    int batch_step;       /* from a warp's batch of tiles to its next in the row block */
    int rounds;           /* batches of a warp in a row block */
    int x_pitch;          /* bytes of a token in shared memory */
    int shared_format;    /* bytes of shared memory before x: the format's, then the sums of x where it wants them */
    rq_act act;           /* of x and y, for kernels that do both */
    const int32_t *x_sum; /* W4A8 */
} rq_gemv_job;

/* One compiled kernel. */
typedef struct rq_gemv_kernel {
    const void *function; /* NULL: there is none */
    const char *name;
    int shared_format; /* bytes of shared memory that the format wants for itself, a multiple of 16 */
    int depth;         /* F::DEPTH */
    int rows;          /* F::ROWS */
    int x_is_a;        /* rq_gemv_sides<F>::X_IS_A */
    int sums;          /* F::SUMS */
} rq_gemv_kernel;

/* A format of weights. The functions get descriptions whose sizes, n_tok and act have been checked. */
typedef struct rq_gemv_format {
    rq_tile_kind kind;
    const char *(*refuse)(const rq_cuda_gemv_desc *d); /* NULL when it can, otherwise a sentence */
    rq_tile_layout (*layout)(const rq_cuda_gemv_desc *d);
    rq_gemv_kernel (*pick)(const rq_cuda_gemv_desc *d);
    /* The kernel's second parameter, at most RQ_GEMV_ARGS bytes, of these weights on the device. */
    void (*fill)(void *args, const rq_cuda_gemv_desc *d, const void *weights);
} rq_gemv_format;

extern const rq_gemv_format rq_gemv_grid, rq_gemv_ssvq, rq_gemv_vq, rq_gemv_w4a8;

/* Of gemv_launch.cu, for what else runs on these formats: the format (NULL: there is none), the sentence of what cannot be done on any
 * device (or NULL), and rq_cuda_last_error's sentence. */
const rq_gemv_format *rq_gemv_format_of(rq_tile_kind kind);
const char *rq_gemv_refuse(const rq_cuda_gemv_desc *d);
const char *rq_gemv_refuse_sizes(const rq_cuda_gemv_desc *d); /* the same, without what only the format knows */
const char *rq_gemv_refuse_args(const rq_cuda_gemv_desc *d, const rq_cuda_gemv_args *a, size_t workspace_bytes);
rq_status rq_gemv_fail(rq_status status, const char *text);
rq_status rq_gemv_fail_cuda(const char *what, cudaError_t e);

/* What a plan needs to know of the current device. */
typedef struct rq_gemv_device {
    int capability, multiprocessors, shared_of_block, shared_of_multiprocessor;
} rq_gemv_device;
cudaError_t rq_gemv_look(rq_gemv_device *info);

#endif
