/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA row of forward.h, shared by its files: backend_cuda_rows.c keeps activations between passes, backend_cuda_loss.c has the losses,
 * backend_cuda_forward.c the rest. */
#ifndef RQ_BACKEND_CUDA_FORWARD_H
#define RQ_BACKEND_CUDA_FORWARD_H

#include "backend_cuda.h"
#include "forward.h"
#include "quantize.h"
#include "rq_cuda_llama.h"

enum { CUDA_KEPT_MAX = 32 }; /* matrices and vectors of a pass */

/* A chunk between a file and the device: pinned memory and a place on the device. */
typedef struct cuda_slot {
    float *pinned, *there;
    cudaEvent_t ready; /* `there` is filled (out), or has been used (in) */
    cudaEvent_t copied;
    rq_rows *rows; /* out: what is to be written once it is copied; NULL: nothing */
    int64_t row0, n_rows;
} cuda_slot;

typedef struct cuda_forward {
    cuda_device *dev;
    rq_forward_job job;
    float *rope;      /* cosines and sines of all positions */
    float *per_token; /* [chunk] */
    uint16_t *half;   /* bf16: a chunk of what is multiplied */
    float *piece;     /* bf16: of a matrix that is rounded */
    float *spare;     /* a chunk; NULL until it is needed, as the two below */
    float *lse;       /* [chunk][n_head]: of rq_cuda_attend */
    double *by_head;  /* [chunk][n_head] */
    int64_t widest;   /* of activations */
    double room;      /* bytes left for rows of this rank's samples */
    cuda_slot in[RQ_CUDA_SLOTS], out[RQ_CUDA_SLOTS];
    int next_in, next_out;
    cudaStream_t back; /* copies to the host */
    struct {
        const void *host;
        int64_t count;
        void *there;
    } kept[CUDA_KEPT_MAX]; /* until the pass ends */
    int n_kept;
} cuda_forward;

/* ---- backend_cuda_rows.c */
rq_status cuda_rows_new(void *own, rq_rows **out, int64_t width, const char *what);
void cuda_rows_free(void *own, rq_rows *r);
rq_status cuda_rows_read(void *own, rq_rows *r, int64_t row0, int64_t n_rows, float *to);
rq_status cuda_rows_write(void *own, rq_rows *r, int64_t row0, int64_t n_rows, const float *from);
/* All that is on its way to files. */
rq_status cuda_rows_flush(cuda_forward *f);
void cuda_slots_free(cuda_forward *f);

/* ---- backend_cuda_loss.c */
rq_status cuda_loss(void *own, rq_loss *l, const rq_loss_of *m, int count, int64_t n, const double *h, const double *d);

#endif
