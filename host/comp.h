/* SPDX-License-Identifier: Apache-2.0 */
/* Compensate and round one matrix: options, what is prepared once per shared input, the sweep, the refinement.
 * Letters as in docs/methods.md: W weights [n_out][n_in], H Gram matrix of the quantized stream's inputs, D cross Gram
 * (full-precision minus quantized inputs, times quantized inputs), U with (H + damping)^-1 = U^T U, T = strict_upper(D U^T) U. */
#ifndef RQ_COMP_H
#define RQ_COMP_H

#include "formats.h"

typedef struct rq_quant_opt rq_quant_opt;
typedef struct rq_device rq_device; /* device.h */

typedef enum rq_comp {
#define RQ_COMP(id, ...) RQ_COMP_##id,
#include "comp.def"
#undef RQ_COMP
    RQ_N_COMPS
} rq_comp;

typedef enum rq_round {
#define RQ_ROUND(id, ...) RQ_ROUND_##id,
#include "round.def"
#undef RQ_ROUND
    RQ_N_ROUNDS
} rq_round;

typedef struct rq_comp_row {
    const char *name;
    bool propagates, uses_cross;
    double alpha, alpha2, rho;
} rq_comp_row;
const rq_comp_row *rq_comp_get(rq_comp c);
bool rq_comp_by_name(const char *name, rq_comp *c);

/* A rounder of single columns, or of vectors by a codebook (comp_book.h). find() gives scale and zero of one group from its n values x and
 * weights wt of the clip search (all 1 for a plain one). A rounder whose groups hang together has find_row() instead: the same for all
 * groups of a row, and a step for each. find_at() gives all groups of a row for its range shrunk to `shrink` of itself, without choosing
 * among ranges. round() takes one column of n_rows rows, row i with its own scale[i], zero[i] and step[i]: codes,
 * what they stand for, and w clamped to what codes can stand for. What they stand for is scale * (code - zero), and of a rounder with
 * find_row() scale * (code * step - zero). */
typedef struct rq_rounder {
    const char *name;
    const struct rq_vec_rounder *vec; /* codebook rounders have this, and neither find nor round */
    void (*find)(const rq_quant_opt *o, const float *x, const float *wt, int64_t n, float *scale, float *zero);
    void (*find_row)(const rq_quant_opt *o, const float *x, const float *wt, int64_t n, int64_t group, float *scale,
                     float *zero, float *step);
    void (*find_at)(const rq_quant_opt *o, const float *x, const float *wt, int64_t n, int64_t group, float shrink,
                    float *scale, float *zero, float *step);
    void (*round)(int bits, int64_t n_rows, const float *w, const float *scale, const float *zero, const float *step,
                  uint8_t *code, float *q, float *clamped);
} rq_rounder;
#define RQ_ROUND(id, text, ops) extern const rq_rounder ops;
#include "round.def"
#undef RQ_ROUND
const rq_rounder *rq_round_get(rq_round r);
const char *rq_round_name(rq_round r);
bool rq_round_by_name(const char *name, rq_round *r);

/* OUTPUT: what a row loses in its output, e H e^T, decides on its range (comp_clip.c). */
typedef enum rq_clip { RQ_CLIP_NONE, RQ_CLIP_MSE, RQ_CLIP_OUTPUT } rq_clip;
typedef enum rq_clip_weights { RQ_CLIP_PLAIN, RQ_CLIP_HDIAG } rq_clip_weights;
/* What finished columns contribute to the trailing update: their quantized values ("org") or their values at the moment
 * of rounding, clamped to the grid ("allw"). AUTO is ResComp's choice: allw above 2 bits; every other compensator: org. */
/* What a codebook rounder measures distances in: plain, weighed by the diagonal of the block's metric, or the exact metric. */
typedef enum rq_assign { RQ_ASSIGN_EUCLID, RQ_ASSIGN_DIAG, RQ_ASSIGN_MAHALANOBIS } rq_assign;
typedef enum rq_book_dtype { RQ_BOOK_F16, RQ_BOOK_U8 } rq_book_dtype;
typedef enum rq_book_order { RQ_BOOK_NATURAL, RQ_BOOK_HDIAG } rq_book_order; /* which columns share a codebook */
/* Scale and bias of a column before any refit: standard deviation and mean, or range and minimum. */
typedef enum rq_col_norm { RQ_COL_STD, RQ_COL_RANGE } rq_col_norm;
/* The second stage is fitted to what the first leaves of the start weights, or of the weights as a sweep with it met them. */
typedef enum rq_stage_fit { RQ_STAGE_START, RQ_STAGE_SWEEP } rq_stage_fit;
typedef enum rq_update { RQ_UPDATE_AUTO, RQ_UPDATE_ORG, RQ_UPDATE_ALLW } rq_update;

struct rq_quant_opt {
    size_t struct_size;
    rq_comp comp;
    rq_round round;
    double alpha, alpha2, rho; /* taken from comp.def by rq_quant_default */
    double damp_frac;          /* of mean(diag H) */
    double shrink;             /* off-diagonal of H times (1 - shrink) */
    int64_t block;             /* lazy block width, 128 */
    rq_update update;
    int bits;      /* 2, 3, 4, 8 */
    int64_t group; /* columns per scale; 0: the whole row */
    bool sym, act_order, static_groups;
    rq_clip clip;
    rq_clip_weights clip_weights;
    double clip_power;    /* error |.|^power in the clip search */
    int clip_steps;       /* shrink factors 1, 1 - 0.8/steps, ... */
    rq_dtype scale_dtype; /* RQ_F16 or RQ_F32 */
    int cd_sweeps;        /* coordinate-descent sweeps after each of (refit + 1) rounds */
    int refit;            /* rounds of least-squares refit of the group scales, and of codebooks */
    int sign_steps;       /* ssvq: gradient steps of sign learning after the refinement, 0 for none */
    double sign_rate;     /* ... and their first rate */
    /* Codebook rounders (ssvq, vq); bits, sym, clip and static_groups are the grid's. */
    int vec_len, codes, codes2; /* weights a vector; codebook size; size of the second stage's (vq), 0 without one */
    bool vec_out;               /* vq: vectors run down the outputs, with a scale and a bias for each column */
    rq_col_norm col_norm;       /* vec_out */
    rq_stage_fit stage_fit;     /* codes2 > 0 */
    int64_t book_cols;          /* columns that share a codebook; 0: all */
    rq_book_order book_order;   /* book_cols > 0: neighbours, or (vec_out) those of like H_jj */
    rq_book_dtype book_dtype;   /* ssvq */
    bool share_books;           /* one codebook for matrices with the same input */
    int outliers;               /* columns of largest H_jj kept as 8-bit numbers ... */
    double outlier_min;         /* ... those whose H_jj is above this times the mean */
    rq_assign assign;
    int kmeans_iters;
    int64_t kmeans_points; /* vectors a codebook is fitted on; 0: all */
    int kmeans_seed;
};

/* The settings of the reference implementations (sym, power 2.4, dynamic groups), or ours; with comp's factors. */
void rq_quant_reference(rq_quant_opt *o, rq_comp comp);
void rq_quant_default(rq_quant_opt *o, rq_comp comp);
/* VPTQ's (arXiv:2409.17066, with its smaller codebook of 4,096 entries of 6): vq down the outputs, range and minimum of columns,
 * columns in the order of H_jj, a second stage (when codes2 asks for one) fitted to what a sweep leaves, nothing after the sweep. */
void rq_quant_vptq(rq_quant_opt *o, rq_comp comp);
/* Our settings for a rounder: rq_quant_default for the grid. Codebooks: docs/methods.md, "Codebooks". */
void rq_quant_default_round(rq_quant_opt *o, rq_comp comp, rq_round round);
bool rq_round_is_book(rq_round r);
/* True when every option has the same value. */
bool rq_quant_same(const rq_quant_opt *a, const rq_quant_opt *b);
/* RQ_ERR_ARG with a sentence when a value is out of range or two contradict each other. n_in: 0 when not known yet. */
rq_status rq_quant_check(const rq_quant_opt *o, int64_t n_in);

/* True when groups are cut in sweep order and found as the sweep reaches them (dynamic groups); false when they are cut and
 * found beforehand in natural order (static groups, one group a row, round to nearest). */
bool rq_groups_in_sweep_order(const rq_quant_opt *o, int64_t n_in);

/* One option by its flag name without dashes ("bits", "alpha", "act-order"), as the command line, a --config file and an
 * --override give it; RQ_ERR_ARG names key and value. rq_quant_key(i) lists the keys (NULL past the end). */
typedef struct rq_quant_key {
    const char *key;
    char kind;          /* 'i' integer, 'd' number, 'b' true/false, 'e' one of a list */
    const char *values; /* for 'e': "mse|none"; otherwise a short name of the argument */
    const char *help;
} rq_quant_key;
const rq_quant_key *rq_quant_key_at(int i);
rq_status rq_quant_set(rq_quant_opt *o, const char *key, const char *value);
/* "key=value,key=value"; comp=NAME also takes NAME's factors; round=NAME comes first wherever it stands, with NAME's
 * settings. */
rq_status rq_quant_set_all(rq_quant_opt *o, const char *text);
/* The value as text, as rq_quant_set would take it. */
void rq_quant_get(const rq_quant_opt *o, const char *key, char *text, size_t size);

/* Columns that are rounded together, contiguous in sweep order: one, or those of a vector that are not outlier columns. */
typedef struct rq_span {
    int32_t pos, width; /* in sweep order */
    int32_t
        vec; /* vector, of columns vec * vec_len and on (the column itself with vec_out); or -1 - o: outlier column o */
} rq_span;

/* Everything that matrices with the same input share. Columns of u and t are in sweep order: position c holds input feature
 * perm[c]. "stored" order, that of hd, is sweep order with dynamic act-order groups and the natural order otherwise. */
typedef struct rq_prep {
    int64_t n;
    int32_t *perm; /* [n] */
    bool *dead;    /* [n] natural order: H[j][j] was 0 */
    float *hdiag;  /* [n] natural order, before damping; times unit for a codebook */
    float *h;      /* [n][n] natural order, before damping; NULL unless clip is OUTPUT */
    float *u;      /* [n][n] sweep order, upper; NULL for rtn */
    float *t;      /* [n][n] sweep order, strictly upper; NULL when not needed */
    float *m;      /* [n][n] natural order: D (H + damping)^-1; NULL when not needed */
    float *hd;     /* [n][n] stored order, damped; NULL when no refinement is asked for */
    /* Codebook rounders: */
    rq_span *span; /* [n_span] in sweep order: outlier columns first; NULL for the grid */
    int64_t n_span;
    int32_t *outlier_col; /* [n_outlier] ascending */
    int n_outlier;
    double unit;        /* u, t, m, hd are those of unit * H and unit * D: a power of two, 1 for the grid */
    double damp_used;   /* what was added to the diagonal */
    int n_retries;      /* damping raised so many times */
    bool diagonal_only; /* the last rung: off-diagonal dropped */
    int64_t n_dead;
    const rq_device *device; /* where it was made, and where its matrices are quantized; NULL: the CPU */
    const struct rq_ranks
        *share_rows; /* ranks that have each a part of the rows of a grid's matrices; NULL: all are this one's */
    void *on_device; /* the device's copies of u, t and m */
} rq_prep;

/* What options need from calibration: H, and D. */
bool rq_quant_wants_h(const rq_quant_opt *o);
bool rq_quant_wants_cross(const rq_quant_opt *o);

/* h: fp64 [n][n]; d: fp64 [n][n] or NULL. Neither is changed. label names the tensor in messages. RQ_ERR_ARG when the
 * compensator needs D and there is none; RQ_ERR_NUMERIC when h or d holds NaN or infinity. A matrix that is not positive
 * definite climbs the damping ladder and is reported in the result, never an error. */
rq_status rq_prepare(rq_prep *p, const double *h, const double *d, int64_t n, const rq_quant_opt *o, const char *label);
/* The same with the heavy parts on a device, which must outlive p; NULL: the CPU. */
rq_status rq_prepare_on(rq_prep *p, const rq_device *device, const double *h, const double *d, int64_t n,
                        const rq_quant_opt *o, const char *label);
void rq_prep_free(rq_prep *p);

typedef struct rq_quant_result {
    rq_format format; /* which of these the matrix became; they point into the arrays below */
    int n_owned;
    rq_grid_codes grid;
    rq_ssvq_codes ssvq;
    rq_vq_codes vq;
    rq_w4a8_codes w4a8;
    uint8_t *codes;
    float *scale;
    uint8_t *zero;
    int32_t *g_idx;
    float *q; /* [n_out][n_in] what the codes stand for, natural order */
    void *owned[16];
} rq_quant_result;
void rq_quant_result_free(rq_quant_result *r);
/* The run-time form, and the tensors on disk with the entry of the metadata (free() it), whatever the format. */
rq_status rq_result_pack(rq_packed *p, const rq_quant_result *r);
/* r->q[n_out][n_in] as a reader of the format sees them. */
rq_status rq_result_values(rq_quant_result *r, int64_t n_out, int64_t n_in);
rq_status rq_result_pack_file(rq_packed_file *f, char **json_entry, const char *name, const rq_quant_result *r);

/* One matrix of a set that shares its input. */
typedef struct rq_quant_matrix {
    const char *name; /* for messages, and the name a codebook that is shared is stored under: the first one's */
    const float *w;   /* [n_out][n_in] */
    int64_t n_out;
} rq_quant_matrix;

/* Quantize a set of matrices with one input and one group of options: r[n_matrices]. Codebook rounders fit one codebook for all
 * (docs/methods.md, "Codebooks"). Grids are each matrix's own; a device may sweep several as one stack of rows (rq_device_ops.stack_rows). Names must outlive the results. Same bytes for any thread count. */
rq_status rq_quantize_set(rq_quant_result *r, const rq_quant_matrix *m, int n_matrices, const rq_prep *p,
                          const rq_quant_opt *o);

/* Quantize w[n_out][n_in]. Work: O(n_out n_in^2). Same bytes for any thread count.
 * Sources: GPTQ arXiv:2210.17323; GPTAQ arXiv:2504.02692; ResComp arXiv:2604.07955; QEP arXiv:2504.09629. */
rq_status rq_quantize_matrix(rq_quant_result *r, const float *w, int64_t n_out, const rq_prep *p, const rq_quant_opt *o,
                             const char *label);

/* ---- pieces, for quantize_matrix and tests ---- */

/* order[n]: indices by falling value, equal ones as they come. */
rq_status rq_order_falling(int32_t *order, const double *value, int64_t n);

/* QuantEase coordinate descent and scale refit on the objective tr((Q - W*) Hd (Q - W*)^T), all in stored order. Nothing raises the
 * objective (fp32 rounding aside). */
typedef struct rq_refine {
    uint8_t *codes;      /* [n_out][n] */
    float *scale, *zero; /* [n_out][n_group] */
    float *
        step; /* for a rounder with find_row(), NULL for the grid: then all groups of a row have one scale, and step and
                            zero are fitted too where there are groups */
    const float *target; /* [n_out][n] */
    const float *hd;     /* [n][n] */
    int64_t n_out, n, group;
    const rq_quant_opt *opt;
} rq_refine;
rq_status rq_refine_grid(const rq_refine *r);

/* loss_sym = tr(E H E^T), loss_asym = loss_sym + 2 tr(W D E^T) (0 without d), wHw = tr(W H W^T), E = W - Q; H, D undamped. */
rq_status rq_layer_loss(const float *w, const float *q, int64_t n_out, int64_t n, const double *h, const double *d,
                        double *loss_sym, double *loss_asym, double *whw);

#endif
