/* SPDX-License-Identifier: Apache-2.0 */
/* Where the quantizer's heavy work is done: one table of coarse operations, with a row for the CPU (device.c) and one for CUDA
 * (backend_cuda.c). Everything else - order of columns, dead features, the damping ladder, formats - is the same code for both.
 * docs/devices.md says what runs where. */
#ifndef RQ_DEVICE_H
#define RQ_DEVICE_H

#include "comp_book.h"
#include "comp_sweep.h"
#include "kmeans.h"
#include "ranks.h"

typedef struct rq_device_ops {
    const char *name;
    /* Grids of matrices that share their input and options are swept as one stack of up to so many rows. 0: each by itself. */
    int64_t stack_rows;
    /* own: the row's state. Index of the GPU; for the CPU 0. Below 0: that of the rank -1 - index of this machine, which take turns. */
    rq_status (*open)(void **own, int index);
    /* Connects the devices of several ranks, each of which calls it; NULL: they share nothing but what ranks.h does. */
    rq_status (*join)(void *own, const rq_ranks *ranks);
    void (*close)(void *own);
    /* H[n][n] += A^T A and, with d, D += B^T A, from zero; A and B come in chunks [n_tok][n] of fp32. Between start and finish h and d
     * belong to the device, after finish they hold both triangles. A chunk may be changed as soon as add returns. */
    rq_status (*gram_start)(void *own, double *h, double *d, int64_t n);
    rq_status (*gram_add)(void *own, double *h, double *d, const float *a, const float *b, int64_t n_tok, int64_t n);
    rq_status (*gram_finish)(void *own, double *h, double *d, int64_t n);
    /* p->u from the damped matrix h, in sweep order (rq_factor_upper). RQ_ERR_NUMERIC with *bad when it is not positive definite. */
    rq_status (*factor)(void *own, rq_prep *p, const double *h, int64_t *bad);
    /* p->t and p->m from D in sweep order, fp32; d is scratch afterwards. */
    rq_status (*triangular_term)(void *own, rq_prep *p, float *d);
    rq_status (*target_move)(void *own, rq_prep *p, float *d);
    /* out = w + factor w M, all [n_out][n]. */
    rq_status (*move)(void *own, float *out, const float *w, int64_t n_out, const rq_prep *p, double factor);
    /* rq_clip_output; sweep and refinement on a grid. label names the matrix in messages. */
    rq_status (*clip)(void *own, const rq_sweep *s, const char *label);
    rq_status (*sweep)(void *own, const rq_sweep *s, const char *label);
    rq_status (*refine)(void *own, const rq_refine *r, const rq_prep *p, const char *label);
    const rq_kmeans_engine *kmeans; /* NULL: the CPU's */
    /* Codebooks (comp_book.h): rq_block_sweep, rq_book_refine_pass, rq_book_system_ask, rq_book_column_terms; and what they left on the device for t
     * (t->on_device). */
    rq_status (*book_sweep)(void *own, rq_book_task *t, const float *metric, float *at);
    rq_status (*book_pass)(void *own, const rq_book_refine *r, rq_book_pass pass);
    rq_status (*book_ask)(void *own, rq_book_system *s, rq_book_ask ask, double *out, const double *v, double *loss);
    rq_status (*book_columns)(void *own, rq_book_columns *c, double *loss, bool terms);
    void (*book_forget)(void *own, rq_book_task *t);
    /* What the calls above left on the device for p (p->on_device). */
    void (*forget)(void *own, rq_prep *p);
} rq_device_ops;

/* The CPU's row, and CUDA's where the program has it: one that is linked without backend_cuda.c has only the CPU. */
extern const rq_device_ops rq_device_cpu;
extern const rq_device_ops rq_device_cuda;

struct rq_device {
    const rq_device_ops *ops;
    void *own;
};

/* "cpu", "cuda" or "cuda:N". RQ_ERR_DEVICE, with a sentence that says what is missing, when there is none of that kind; RQ_ERR_ARG for another
 * name. rq_device_check and rq_device_find, which gives the row and the index, read the name alone. */
rq_status rq_device_check(const char *name);
rq_status rq_device_find(const rq_device_ops **row, int *index, const char *name);
rq_status rq_device_open(rq_device **d, const char *name);
/* One of several ranks: "cuda" is a GPU for each. */
rq_status rq_device_open_rank(rq_device **d, const char *name, const rq_ranks *ranks);
void rq_device_close(rq_device *d); /* after every rq_prep made on it is freed */

/* NULL is the CPU. */
static inline const rq_device_ops *rq_device_row(const rq_device *d) { return d ? d->ops : &rq_device_cpu; }
static inline void *rq_device_own(const rq_device *d) { return d ? d->own : NULL; }

#endif
