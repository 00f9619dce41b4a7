/* SPDX-License-Identifier: Apache-2.0 */
/* What calibration does to activations, as a table: a row for the CPU (forward.c) and one for CUDA (backend_cuda_forward.c). calib_blocks.c keeps the
 * order of stages, chunks and ranks and calls nothing else. Activations are float[n_tok][width], token-major, in memory that new_floats
 * gave: the device's, which nobody else reads or writes. Rows of all samples between two passes are rq_rows: each device knows where to
 * keep those. Other pointers are the host's, and may be changed when the call returns. Calls are done in order, but not always by the time they
 * return; those that give the host something are. */
#ifndef RQ_FORWARD_H
#define RQ_FORWARD_H

#include "act_hadamard.h"
#include "device.h"
#include "llama.h"

/* What an input goes through when the model runs (docs/methods.md, "Full rotation" and "Column factors"), in this order. */
typedef struct rq_input {
    const rq_hadamard *hadamard; /* or NULL */
    const float *factors;        /* [width], or NULL */
    bool act8;                   /* to 8 bits and back */
} rq_input;
static inline bool rq_input_is_plain(const rq_input *in) { return !in->hadamard && !in->factors && !in->act8; }

typedef struct rq_forward_job {
    const rq_device *device; /* NULL: the CPU */
    const rq_model *model;
    const char *dir;               /* for temporary files */
    int64_t n_tok, chunk, seq_len; /* tokens of this rank's samples, of a chunk at most, of a sample */
    int n_streams;
    bool bf16;             /* numbers that are multiplied are rounded to bfloat16 (CUDA) */
    bool cross;            /* there will be cross Gram matrices */
    const rq_ranks *ranks; /* NULL: one */
    double matrix_bytes;   /* of device memory that quantizing the largest matrix takes (rq_device_plan) */
} rq_forward_job;

typedef struct rq_rows rq_rows;

typedef struct rq_loss {
    double sym, asym, whw;
} rq_loss;

/* Of a matrix w[n_out][n] that became q. */
typedef struct rq_loss_of {
    const float *w, *q;
    int64_t n_out;
} rq_loss_of;

typedef struct rq_forward_ops {
    bool host; /* activations are in the host's memory */
    /* f: the row's state. Checks that there is memory for the whole run. */
    rq_status (*begin)(void **f, const rq_forward_job *job);
    void (*end)(void *f);
    rq_status (*new_floats)(void *f, float **p, int64_t count, const char *what);
    void (*free_floats)(void *f, float *p);
    rq_status (*upload)(void *f, float *to, const float *from, int64_t count);
    rq_status (*download)(void *f, float *to, const float *from, int64_t count);

    rq_status (*rows_new)(void *f, rq_rows **r, int64_t width, const char *what);
    void (*rows_free)(void *f, rq_rows *r);
    rq_status (*rows_read)(void *f, rq_rows *r, int64_t row0, int64_t n_rows, float *to);
    rq_status (*rows_write)(void *f, rq_rows *r, int64_t row0, int64_t n_rows, const float *from);
    /* The numbers of rank root to all. */
    rq_status (*share)(void *f, float *x, int64_t count, int root);
    /* Before the first and after the last chunk of a pass: between them matrices and gains keep their values. */
    rq_status (*pass_begin)(void *f);
    rq_status (*pass_end)(void *f);

    rq_status (*rmsnorm)(void *f, float *out, const float *x, const float *gain, int64_t n_tok, int64_t width);
    /* y = in W^T + bias, W in the host's fp32; in may not be y. */
    rq_status (*linear)(void *f, float *y, const rq_linear *lin, const float *in, int64_t n_tok);
    /* x += in W^T + bias; scratch[n_tok][n_out]. */
    rq_status (*add_linear)(void *f, float *x, const rq_linear *lin, const float *in, int64_t n_tok, float *scratch);
    /* out = what becomes of x; in place when they are the same. */
    rq_status (*input)(void *f, float *out, const float *x, const rq_input *how, int64_t n_tok, int64_t width);
    /* rq_attention: q and k are changed. */
    rq_status (*attention)(void *f, float *out, float *q, float *k, const float *v, int64_t n_seq);
    rq_status (*swiglu)(void *f, float *out, const float *gate, const float *up, int64_t n);

    /* Statistics. rq_token_norm and rq_token_attention (which changes q and k), to the host. */
    rq_status (*token_norm)(void *f, float *norm, const float *x, int64_t n_tok, int64_t width);
    rq_status (*token_attention)(void *f, float *received, float *q, float *k, int64_t n_seq);
    /* Row t times by[t]; divided by it, where it is above 0. */
    rq_status (*scale_rows)(void *f, float *rows, const float *by, int64_t n_tok, int64_t width);
    rq_status (*divide_rows)(void *f, float *rows, const float *by, int64_t n_tok, int64_t width);
    /* Without the first `skip` rows of each of n_seq sequences, in place. */
    rq_status (*drop_first)(void *f, float *rows, int64_t n_seq, int64_t skip, int64_t width);
    rq_status (*subtract)(void *f, float *a, const float *b, int64_t n_tok, int64_t width); /* a -= b */
    /* most[j] = max(most[j], |rows[.][j]|); most is the device's. NaN is the largest. */
    rq_status (*column_max)(void *f, float *most, const float *rows, int64_t n_rows, int64_t width);
    /* rq_device_ops.gram_add of activations of this table. */
    rq_status (*gram)(void *f, double *h, double *d, const float *a, const float *b, int64_t n_tok, int64_t n);
    /* rq_layer_loss of each of m[count], between passes. All but f are the host's. */
    rq_status (*loss)(void *f, rq_loss *l, const rq_loss_of *m, int count, int64_t n, const double *h, const double *d);
} rq_forward_ops;

/* The row that goes with a device; NULL is the CPU. */
const rq_forward_ops *rq_forward_row(const rq_device *d);

/* The CPU's, and CUDA's where the program has it. */
extern const rq_forward_ops rq_forward_cpu;
extern const rq_forward_ops rq_forward_cuda;

#endif
