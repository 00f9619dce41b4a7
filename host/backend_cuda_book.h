/* SPDX-License-Identifier: Apache-2.0 */
/* What the codebook operations of the CUDA row share (backend_cuda_book*.c): a task's arrays on the device, from its first operation to
 * book_forget. The host's arrays are the master: an operation sends what it reads of them, and brings back what it changed. */
#ifndef RQ_BACKEND_CUDA_BOOK_H
#define RQ_BACKEND_CUDA_BOOK_H

#include "backend_cuda.h"
#include "comp_book.h"
#include "rq_cuda_book.h"

typedef struct cuda_book {
    float *table[2], *scale, *step;
    int32_t *matrix;
    rq_cuda_vec_code *code;
    int8_t *outlier;
    rq_cuda_span *span; /* in sweep order */
    int32_t *perm;
    uint8_t *dead;
    /* Vectors down the outputs: */
    float *bias;
    int32_t *line_row, *row_line, *book_of;
    rq_cuda_line_tile *tile;
    int n_tile;
    /* backend_cuda_book_refine.c, from its first operation on: */
    int32_t *kept;
    float *goal, *q, *e, *g; /* [n_out][n] natural order */
    float *delta;            /* [n_out][RQ_COMP_BLOCK] */
    double *row_loss;        /* [n_out] */
    double *v, *sum, *part;  /* [n_entry], and [n_part][n_entry] */
    int64_t n_entry, n_part;
} cuda_book;

/* Made by the first call for a task. */
rq_status cuda_book_of(cuda_book **own, cuda_device *dev, rq_book_task *t);
/* Tables, scales and outlier steps as the host has them now. */
rq_status cuda_book_send(cuda_device *dev, const cuda_book *b, const rq_book_task *t);
rq_cuda_books cuda_books(const cuda_book *b, const rq_book_task *t);
/* Codes and outliers as the host has them now. */
rq_status cuda_book_send_codes(cuda_device *dev, const cuda_book *b, const rq_book_task *t);
/* Codes and outliers to the host. */
rq_status cuda_book_fetch(cuda_device *dev, const cuda_book *b, const rq_book_task *t, rq_vec_code *code,
                          int8_t *outlier);
/* backend_cuda_lines.c: what a task with vectors down the outputs has beside, made; of biases only the room. */
rq_status cuda_lines_new(cuda_device *dev, cuda_book *b, const rq_book_task *t);
/* backend_cuda_book_refine.c: *b with everything as the host has it now, values in q, e = q - goal, and in rows [row0, row0 + n_rows) g = e H; J of those. And
 * what codes stand for into q. */
rq_status cuda_book_gradient(cuda_book **b, cuda_device *dev, rq_book_task *t, int64_t row0, int64_t n_rows,
                             double *loss);
rq_status cuda_book_expand(cuda_device *dev, const cuda_book *b, const rq_book_task *t, rq_cuda_expand what);
/* Spans [first, *last) fit a block of RQ_COMP_BLOCK columns. */
int64_t cuda_book_block(const rq_prep *p, int64_t first);

#endif
