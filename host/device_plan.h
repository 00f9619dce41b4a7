/* SPDX-License-Identifier: Apache-2.0 */
/* What the CUDA row of device.h is going to do for one matrix, without doing it: products, launches, bytes. It follows the loops of
 * backend_cuda*.c, whose tile sizes stand here; tests/cuda/comp.c compares it with what a run counted. */
#ifndef RQ_DEVICE_PLAN_H
#define RQ_DEVICE_PLAN_H

#include "comp.h"

enum {
    RQ_CUDA_GRAM_CHUNK = 2048,       /* tokens whose products are summed in fp32: as on the CPU */
    RQ_CUDA_PANEL = 1024,            /* rows of a panel of a Gram matrix */
    RQ_CUDA_GRAM_TOKENS = 8192,      /* the same two in bfloat16: products there are so quick that */
    RQ_CUDA_PANEL_BF16 = 2048,       /* adding panels to the fp64 matrix, and small ones, would cost as much */
    RQ_CUDA_TILE = 2048,             /* of products with a triangle: those that are zero are left out */
    RQ_CUDA_BLOCK = 128,             /* columns of a block */
    RQ_CUDA_STACK_ROWS = 16384,      /* of small matrices that are swept together: 512 blocks of the sweep's kernel */
    RQ_CUDA_SLOTS = 2,               /* chunks on their way to the device, and from it */
    RQ_CUDA_PIECE = 4 << 20,         /* numbers of a matrix that are rounded to bfloat16 at a time */
    RQ_CUDA_SYSTEM_BYTES = 256 << 20 /* of normal equations of the refit at a time */
};

/* launches: kernels of ours, products and calls of cuSOLVER. flops: of products and cuSOLVER; of our kernels own_flops. bytes: of device memory, each
 * operand of each launch once. upload and download go over the bus. */
typedef struct rq_work {
    double flops, own_flops, bytes, upload, download;
    int64_t launches;
} rq_work;

typedef struct rq_device_work {
    rq_work forward; /* the matrix times `tokens` inputs in the streams that calibration has: upload and products */
    rq_work gram;    /* H and, where the compensator wants it, D of `tokens` tokens */
    rq_work factor;  /* U */
    rq_work terms;   /* T and M */
    rq_work sweep;   /* the moved targets, scales or k-means, the sweep */
    rq_work refine;  /* after the sweep */
    double memory;   /* device memory at its highest, without the libraries' */
} rq_device_work;

/* What decides how much device memory calibration takes: widths of the model (qd, kd: of queries, of keys), tokens of a chunk. */
typedef struct rq_forward_shape {
    int64_t d, ff, qd, kd, n_head, chunk;
    int n_streams;
    bool cross, bf16;
    bool ranks; /* several: inputs of another one too */
} rq_forward_shape;
/* Bytes of device memory, without activations of all samples: buffers of a chunk, which are there all the time, and what a pass has beside them at most, the
 * matrices of a stage and Gram matrices. What a matrix needs (rq_device_work.memory) comes after a pass. */
void rq_device_plan_forward(double *chunk, double *pass, const rq_forward_shape *s);

/* H and, with cross, D of tokens that are on the device in fp32, in chunks of RQ_CUDA_GRAM_CHUNK, multiplied in bfloat16; without what comes
 * after the last of them. */
void rq_device_plan_gram_bf16(rq_work *w, int64_t n, int64_t tokens, bool cross);

/* Of one n_out x n_in matrix, or of several with one input and so many rows together, swept as one stack. RQ_ERR_UNSUPPORTED for what the device does not have. */
rq_status rq_device_plan(rq_device_work *w, int64_t n_out, int64_t n_in, int64_t tokens, const rq_quant_opt *o);

#endif
