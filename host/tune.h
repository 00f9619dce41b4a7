/* SPDX-License-Identifier: Apache-2.0 */
/* Tune what a packed model has besides its codes: after layer-by-layer quantization, the scales of the groups, the
 * gains of the norms and the codebooks are trained together so that the whole model predicts what the original predicts. Codes,
 * signs, zero points and sizes stay; docs/tune.md says what is minimised and how. */
#ifndef RQ_TUNE_H
#define RQ_TUNE_H

#include "llama.h"

enum { RQ_TUNE_MAX_EPOCHS = 100 };

/* Called after each batch; loss is the mean divergence of the stage so far, NaN when there is none yet. True asks to
 * stop (RQ_ERR_CANCELLED; the model is then as it was). */
typedef bool (*rq_tune_progress_fn)(void *user, double done_frac, const char *text, double loss);

typedef struct rq_tune_opt {
    int64_t epochs;  /* passes over the training windows, 1 .. RQ_TUNE_MAX_EPOCHS */
    double lr_scale; /* a full step of Adam moves a scale by this part of its starting value; 0: scales stay */
    double lr_gain;  /* the same for a gain, in units of the root mean square of its vector's starting values */
    double
        lr_book; /* the same for an entry of a codebook, in units of the root mean square of its codebook; 0: they stay */
                 /* a rate below 0 is chosen by rq_tune_rates */
    int64_t batch;         /* windows per step */
    int64_t n_holdout;     /* the last windows, not trained on; with them the best epoch's parameters are kept */
    double warmup_frac;    /* of all steps, with a rate that grows to the full one; then it falls as a cosine */
    uint64_t seed;         /* of the order of the windows */
    int64_t max_act_bytes; /* activations kept for the backward pass; recomputed block by block when they need more */
    bool measure_train;    /* measure the training windows before and after too */
    rq_tune_progress_fn progress;
    void *user;
} rq_tune_opt;

void rq_tune_default(rq_tune_opt *o);
/* Fill in rates below 0 by what the weights of m are stored as; rq_tune does so too. */
void rq_tune_rates(rq_tune_opt *o, const rq_model *m);

typedef struct rq_tune_epoch {
    double train;   /* mean KL over its batches, each before its step */
    double holdout; /* after it, with scales rounded as they are stored; NaN without held-out windows */
} rq_tune_epoch;

typedef struct rq_tune_result {
    int64_t n_scales, n_gains, n_entries, n_train, n_holdout, n_steps;
    /* Mean KL(reference || model) over all positions, in nats, with parameters rounded as they are stored. NaN: not
     * measured. */
    double train_before, train_after, holdout_before, holdout_after;
    int64_t n_epochs;   /* entries of epoch[] */
    int64_t best_epoch; /* whose parameters were kept, counted from 1; 0: the start was best */
    rq_tune_epoch epoch[RQ_TUNE_MAX_EPOCHS];
    double seconds;
} rq_tune_result;

/* Minimise the mean KL(ref || m) over ids[n_windows][seq_len], every position and the whole vocabulary. m must be a
 * packed model; its scales and norms are changed in memory, where its kernels read them (rq_tune_write makes a folder
 * of it). Dense matrices, outlier columns and codes with scales of columns take part as they are. With held-out windows the result is
 * never worse on them than the start. On any error the model is as it was. Same result for any thread count.
 *
 * Memory: a byte per weight for the codes of a grid, the heads in fp32, 4 d_model bytes per reference token, max_act_bytes.
 * Work: about 3 forward passes per token and epoch, 4 when activations do not fit. */
rq_status rq_tune(rq_model *m, const rq_model *ref, const int32_t *ids, int64_t n_windows, int64_t seq_len,
                  const rq_tune_opt *opt, rq_tune_result *result);

/* Write the folder of m again as `out` (new or empty): model.safetensors with the scales and norms of m, every other
 * tensor and file byte for byte, and report.json with `tune_json` (an object) under "tune". */
rq_status rq_tune_write(const rq_model *m, const char *out, const char *tune_json);
/* RQ_ERR_ARG when rq_tune_write would refuse: to be asked before hours of work. */
rq_status rq_tune_check_out(const rq_model *m, const char *out);

/* ---- pieces of tune.c, shared by its files and its test ---- */

/* A packed matrix as training sees it. */
typedef struct rq_tune_matrix {
    const rq_linear *lin;
    const rq_grid *grid;    /* a grid, or NULL */
    const rq_packed *vec;   /* codebook codes with scales of rows (ssvq, vq), or NULL */
    const rq_w4a8 *w4a8;    /* codes for 8-bit inputs, or NULL; none of the three: frozen */
    int64_t group, n_group; /* of its scales; n_group 0: frozen */
    uint8_t *code;          /* grid: [n_out][n_in], by input feature */
    int32_t *group_of;      /* grid: [n_in], or NULL: group of feature j is j / group */
    bool *kept;             /* vec: [n_in], columns that no scale of a row belongs to */
    int64_t param;          /* its scales are param .. param + n_out * n_group - 1 */
    int64_t in_param;       /* w4a8 with factors of inputs: they are in_param .. in_param + n_in - 1 */
    int64_t book[2];        /* vec: of the tuner's books, for each stage */
} rq_tune_matrix;

/* The codebooks of one stage of a matrix, and of all that use the same. */
typedef struct rq_tune_book {
    rq_packed *owner;           /* the first that uses it: memory of our own goes there */
    int64_t n_book, n_codes, d; /* n_book codebooks of n_codes entries of d numbers */
    int64_t param;              /* its numbers are param .. param + n_book * n_codes * d - 1 */
    const void *data;           /* as stored now: bytes, or halves */
    const float *scale;         /* [n_book], of bytes; NULL of halves */
    void *start;                /* copies of both as they were at first */
    float *start_scale;
} rq_tune_book;

/* What the backward pass of one block needs; x is its own, the rest is shared by all blocks when they are run again. */
typedef struct rq_tune_tape {
    float *x;         /* [n_tok][d_model], input of the block */
    float *q, *k, *v; /* rotated by position */
    float *att;       /* output of attention */
    float *mid;       /* [n_tok][d_model], residual stream between attention and the feed-forward part */
    float *gate, *up;
} rq_tune_tape;

typedef struct rq_tuner {
    rq_model *m;
    const rq_model *ref;
    const int32_t *ids;
    int64_t n_windows, seq_len, batch;
    rq_tune_matrix *matrix; /* [n_layer * RQ_N_LINEARS] */
    /* Parameters: all scales (and factors of inputs), then norm1 and norm2 of each block, then the final norm, then entries of codebooks. */
    int64_t n_scale, first_entry, n_param;
    rq_tune_book *book; /* [n_book] */
    int64_t n_book;
    double *book_sum;
    bool train_books;           /* their gradient is wanted */
    float *value, *unit, *grad; /* grad: of the mean loss by value / unit */
    float *start;               /* values before */
    /* Reference and heads. */
    float *head, *ref_head; /* fp32 [n_vocab][width]; ref_head may be head */
    float *ref_h;           /* [n_windows * seq_len][ref d_model] */
    double *ref_lse;        /* log of the sum of exponentials of the reference's logits */
    int64_t vocab_tile;     /* rows of the head that are worked on together */
    /* Working memory. */
    bool recompute;
    rq_tune_tape *tape; /* [n_layer] */
    float *memory;
    float *x, *h, *dx, *dh;               /* [n_tok][d_model] */
    float *act, *dgate, *dup;             /* [n_tok][d_ff] */
    float *datt, *dq, *dk_head, *dv_head; /* [n_tok][n_head * head_dim] */
    float *dk, *dv;                       /* [n_tok][n_kv_head * head_dim] */
    float *w, *dw;                        /* one matrix */
    float *partial;                       /* sums over pieces of tokens */
    float *wide[2]; /* w4a8: [n_tok] of the widest input or output; NULL when there is no such matrix, as ones */
    float *ones;    /* of the widest output */
} rq_tuner;

/* max_act_bytes as in the options. Runs nothing yet; ids must stay. */
rq_status rq_tuner_new(rq_tuner **out, rq_model *m, const rq_model *ref, const int32_t *ids, int64_t n_windows,
                       int64_t seq_len, int64_t batch, int64_t max_act_bytes);
void rq_tuner_free(rq_tuner *t);
/* Reference states of windows w0 .. w0 + n - 1; every window has to be done once before its loss is asked for. */
rq_status rq_tuner_reference(rq_tuner *t, int64_t w0, int64_t n);
/* Mean loss over these windows (at most batch) and, in t->grad, its gradient at t->value. */
rq_status rq_tuner_gradient(rq_tuner *t, const int64_t *window, int64_t n, double *loss);
/* Put t->value into the model, scales rounded to their stored type. */
rq_status rq_tuner_publish(rq_tuner *t);
/* Sum of the loss over the positions of windows w0 .. w0 + n - 1 (at most batch), by the model's own kernels. */
rq_status rq_tuner_measure(rq_tuner *t, int64_t w0, int64_t n, double *loss_sum);

/* Index of the first gain of a norm: 0 before attention, 1 before the feed-forward part; layer n_layer: the final
 * one. */
int64_t rq_tune_gain(const rq_tuner *t, int64_t layer, int which);

/* tune_params.c */
rq_status rq_tune_params_new(rq_tuner *t);
/* fp32 weights at t->value (or as they are, when frozen). */
rq_status rq_tune_weights(const rq_tuner *t, int64_t matrix, float *w);
/* Gradient of a matrix's scales, and what it adds to that of its codebooks, from that of its weights, dw[n_out][n_in]; t->w
 * holds the weights. */
void rq_tune_matrix_grad(rq_tuner *t, int64_t matrix, const float *dw);
/* Memory of our own, n elements, behind what `now` points to in p, made once: what was loaded may be a read-only mapping. */
rq_status rq_tune_own(void **memory, rq_packed *p, const void *now, int64_t n, int64_t size);

/* tune_books.c: matrices of codebook codes (ssvq, vq) with scales of rows. */
const rq_f16 **rq_tune_row_scales(rq_packed *p); /* where they are; NULL when there are none, or of columns too */
rq_status rq_tune_vec_new(rq_tune_matrix *x, rq_packed *p);
rq_status rq_tune_books_find(rq_tuner *t); /* counts their parameters */
void rq_tune_books_values(rq_tuner *t);    /* t->value and t->unit of their parameters */
void rq_tune_books_free(rq_tuner *t);
void rq_tune_vec_weights(const rq_tuner *t, const rq_tune_matrix *x, float *w);
void rq_tune_vec_grad(rq_tuner *t, const rq_tune_matrix *x, const float *dw);
/* Magnitudes do not go below zero. */
void rq_tune_books_clamp(rq_tuner *t);
rq_status rq_tune_books_publish(rq_tuner *t);

/* tune_w4a8.c: matrices for 8-bit inputs. */
void rq_tune_w4a8_new(rq_tune_matrix *x, const rq_packed *p);
void rq_tune_w4a8_values(rq_tuner *t, const rq_tune_matrix *x); /* t->value and t->unit of their parameters */
/* y = the model's own product at t->value. */
rq_status rq_tune_w4a8_apply(const rq_tuner *t, const rq_tune_matrix *x, float *y, const float *in, int64_t n_tok);
/* Gradients of the parameters, and dx = beta dx + the gradient by the input; beta 0 or 1. */
rq_status rq_tune_w4a8_back(rq_tuner *t, const rq_tune_matrix *x, float *dx, float beta, const float *dy,
                            const float *in, int64_t n_tok);
rq_status rq_tune_w4a8_publish(rq_tuner *t, const rq_tune_matrix *x);

/* tune_block.c: out = block(tape[layer].x) keeping what the tape holds; out NULL stops where the tape is full. */
rq_status rq_tune_block_forward(rq_tuner *t, int64_t layer, int64_t n_seq, float *out);
/* t->dx: gradient by the block's output, becomes that by its input. */
rq_status rq_tune_block_backward(rq_tuner *t, int64_t layer, int64_t n_seq);

/* tune_math.c, deterministic for any thread count. dx += the gradient by x of rmsnorm(x) * gain given dy; dgain (may
 * be NULL with gain NULL: ones) is set to the sum over tokens, times unit[]. partial: ceil(n_tok / RQ_TUNE_PIECE) *
 * width floats. */
enum { RQ_TUNE_PIECE = 64 };
void rq_tune_rmsnorm_grad(float *dx, float *dgain, const float *dy, const float *x, const float *gain,
                          const float *unit, int64_t n_tok, int64_t width, float eps, float *partial);
/* dgain = unit * sum over tokens of dy * y; dy *= gain. */
void rq_tune_gain_grad(float *dgain, float *dy, const float *y, const float *gain, const float *unit, int64_t n_tok,
                       int64_t width, float *partial);
/* dgate holds the gradient by silu(gate) * up and becomes that by gate; dup is set. */
void rq_tune_swiglu_grad(float *dgate, float *dup, const float *gate, const float *up, int64_t n);
void rq_tune_add(float *out, const float *a, const float *b, int64_t n); /* out = a + b; out may be either */

/* tune_attention.c: t->datt -> t->dq, t->dk, t->dv, with the rotary embedding undone. */
rq_status rq_tune_attention_grad(rq_tuner *t, const rq_tune_tape *tape, int64_t n_seq);

/* tune_loss.c: sum over positions of KL(softmax(ref_h ref_head^T) || softmax(h head^T)), and dh[n_pos][d_model] =
 * dh_scale times its gradient by h (NULL: not wanted). */
rq_status rq_tune_loss(const rq_tuner *t, const float *h, const float *ref_h, const double *ref_lse, int64_t n_pos,
                       float dh_scale, float *dh, double *loss_sum);
/* log sum exp of the reference's logits per position. */
rq_status rq_tune_ref_lse(const rq_tuner *t, const float *ref_h, int64_t n_pos, double *lse);

/* tune_adam.c: Adam with bias correction on `value` in units; a rate for each class of parameters. */
enum { RQ_TUNE_SCALES, RQ_TUNE_GAINS, RQ_TUNE_ENTRIES, RQ_TUNE_CLASSES };
typedef struct rq_adam {
    int64_t end[RQ_TUNE_CLASSES], step; /* a class ends where the next one begins */
    float *mean, *square;
} rq_adam;
rq_status rq_adam_new(rq_adam *a, const rq_tuner *t);
void rq_adam_free(rq_adam *a);
void rq_adam_step(rq_adam *a, float *value, const float *unit, const float *grad, const double *rate);
/* Part of the full rate at a step of n_steps: grows over the first warmup steps, then falls as half a cosine. */
double rq_adam_schedule(int64_t step, int64_t n_steps, double warmup_frac);

#endif
