/* SPDX-License-Identifier: Apache-2.0 */
/* Sign learning of ssvq codes: what comp_signs.c shares with its test. Internal to the compensation stage. */
#ifndef RQ_COMP_SIGNS_H
#define RQ_COMP_SIGNS_H

#include "comp_book.h"

/* The sign of one weight while it is learned: that of its latent value, negative below zero. */
typedef struct rq_sign {
    float latent, momentum;
    float flips;     /* running mean of "the sign changed in this step" */
    int16_t balance; /* steps spent positive less steps spent negative */
    bool frozen;
} rq_sign;

/* One step against `slope`, the latent's gradient in the latent's units, unless frozen. */
void rq_sign_step(rq_sign *s, float slope, float rate);
/* Freeze for good what flips more often than the threshold, at the sign it had in most steps (the present one when even). */
void rq_sign_freeze(rq_sign *s, float threshold);

typedef struct rq_signs {
    rq_book_task *t;
    rq_sign *sign;   /* [n_out][n] */
    int64_t n_entry; /* numbers in the codebooks */
    float *entry;    /* the codebooks as they are learned, not rounded */
    double *slope;   /* [n_entry]: dJ/dc */
    double *curve;   /* [n_entry]: the diagonal of its second derivative */
    float *e, *g;    /* [n_out][n]: Q - goal, (Q - goal) H */
    bool *kept;      /* [n]: outlier columns */
    double *sum;     /* [RQ_SIGN_PARTS][n_entry] */
    bool curves;     /* which of the two is being summed */
    float rate, threshold;
} rq_signs;
enum { RQ_SIGN_PARTS = 8 };

/* Start from the codes, signs and codebook of t, which must stay until rq_signs_free. */
rq_status rq_signs_new(rq_signs *s, rq_book_task *t);
void rq_signs_free(rq_signs *s);
/* J with the signs and codebooks as they are, s->g = (Q - goal) H and s->slope. */
double rq_signs_gradient(rq_signs *s);
/* `steps` of gradient, signs and codebooks; then the signs and the rounded codebooks go back to the task. J may be higher then. */
void rq_signs_run(rq_signs *s, int64_t steps, double rate);

#endif
