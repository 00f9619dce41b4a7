/* SPDX-License-Identifier: Apache-2.0 */
/* Calibration as it stands between calib_blocks.c, which runs the samples through a block stage by stage, and quantize_blocks.c, which makes
 * the stage's matrices from what that left. */
#ifndef RQ_CALIB_BLOCKS_H
#define RQ_CALIB_BLOCKS_H

#include "forward.h"
#include "quantize.h"

enum { RQ_N_STREAMS = 2, RQ_FP = 0, RQ_QS = 1 };

typedef struct rq_stream {
    bool active;
    rq_rows *x, *ao, *f;
    rq_block block;         /* the block's matrices in the host's memory */
    float *w[RQ_N_LINEARS]; /* fp32; the q stream's are filled as matrices finish */
    float *in;              /* stage input of the chunk */
} rq_stream;

typedef struct rq_calib {
    rq_quantizer *z;
    const rq_config *cfg;
    const rq_forward_ops *row; /* of activations, and its state */
    void *run;
    int64_t n_samples, seq_len, chunk; /* chunk: samples at a time */
    int64_t d, ff, qd, kd;             /* widths: model, feed-forward, query, key */
    rq_stream s[RQ_N_STREAMS];
    float *bias[RQ_N_LINEARS];
    float *norm1, *norm2;
    /* Activations of a chunk, the device's (forward.h). act: an input as its matrix gets it. */
    float *x, *a, *q, *k, *v, *g, *u, *act;
    double *h, *cross;
    const rq_ranks *ranks;
    float *peer_q, *peer_d; /* [chunk][widest] inputs of another rank's chunk; NULL with one rank */
    float *most;            /* the largest sizes in the columns of a stage's input; NULL: not wanted */
    float *most_there;      /* the same on the device */
    int64_t layer;          /* the block at hand */
    float *token;           /* what each token of this rank's chunks counts in this block; NULL: 1 */
    float *residual; /* [chunk] norms of the residual stream, when inputs of o and down are taken relative to it */
    bool need_h, need_cross; /* of the stage at hand */
    bool act8[RQ_N_LINEARS]; /* matrices of the block whose inputs are in 8 bits in the quantized stream */
    bool stage_act8;         /* all that are quantized in the stage at hand are such */
} rq_calib;

static inline rq_matrix_plan *rq_calib_plan(const rq_calib *c, int64_t layer, int which) {
    return &c->z->plan[layer * RQ_N_LINEARS + which];
}

/* two: the fp stream too, where the plan wants D. On failure rq_calib_free is still to be called. */
rq_status rq_calib_new(rq_calib *c, rq_quantizer *z, bool two);
void rq_calib_free(rq_calib *c);
/* The embeddings of this rank's samples into both streams. */
rq_status rq_calib_start(rq_calib *c);
rq_status rq_calib_load_block(rq_calib *c, int64_t layer);
/* The pass of a stage: its inputs, and of them what need_h, need_cross and most ask for. */
rq_status rq_calib_run_stage(rq_calib *c, int stage, const char *text);
/* x += down(f): before the next block is loaded. */
rq_status rq_calib_finish_block(rq_calib *c, const char *text);

#endif
