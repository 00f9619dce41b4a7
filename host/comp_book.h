/* SPDX-License-Identifier: Apache-2.0 */
/* Codebook quantization of a set of matrices that share their input: what its stages share. The matrices are stacked: n_out is the
 * rows of all of them. docs/methods.md ("Codebooks") has the formulas. Internal to the compensation stage.
 *
 * Everything here is in units in which the stacked weights have a root mean square near 1 (a power of two away from the real
 * ones), and H a mean diagonal near 1: no scale of a model or of its activations overflows fp32. */
#ifndef RQ_COMP_BOOK_H
#define RQ_COMP_BOOK_H

#include "comp.h"

enum { RQ_VEC_MAX = 16, RQ_BOOK_TILE = 96 /* rows of a task */ };

/* What one vector became: the codes of its stages and, for ssvq, bit r set where lane r is negative. */
typedef struct rq_vec_code {
    uint16_t code[2], negative;
} rq_vec_code;

typedef struct rq_book {
    int d, n_stage;
    int64_t k[2], k_pad[2], n_book, n_vec, vec_per_book;
    uint8_t *book_of; /* [n_vec] which codebook; NULL: runs of vec_per_book vectors share one */
    float *value[2];  /* [n_book][k][d]: what the stored entries stand for */
    float *table[2];  /* [n_book][n_table][k_pad]: made from value, for the search */
    int64_t n_table;
    uint8_t *u8; /* the stored entries: of ssvq one of u8 with book_scale, and f16; of vq f16 */
    float *book_scale;
    rq_f16 *f16[2];
} rq_book;

/* A batch of searches: n vectors of one block of columns under one metric, row-major [d][d] with zeros in lanes that do not count.
 * In: t[n][d] targets, s[n] scales. Out: code[n], and q[n][d] = s * what the code stands for. */
typedef struct rq_pick {
    const rq_book *book;
    int64_t which; /* of the n_book codebooks */
    const float *metric;
    bool diagonal; /* only the metric's diagonal counts */
    int64_t n;
    const float *t, *s;
    rq_vec_code *code;
    float *q;
    float *scratch; /* [2][k_pad of both stages] */
} rq_pick;

typedef struct rq_vec_rounder {
    rq_format format;
    bool magnitudes; /* entries are not negative and signs are apart */
    int64_t (*n_table)(int d);
    void (*make_table)(float *table, const float *value, int d, int64_t k, int64_t k_pad);
    void (*pick)(const rq_pick *p);
} rq_vec_rounder;

typedef struct rq_book_task {
    const rq_prep *prep;
    const rq_quant_opt *opt;
    const rq_vec_rounder *vec;
    int64_t n_out, n, n_line, n_vec, group,
        n_group; /* n_line lines of n_vec vectors: rows, or with vec_out d rows each */
    int d;
    bool vec_out;
    const float *start;          /* [n_out][n] natural order: where the sweep starts, and W0 of ResComp's term */
    const float *goal;           /* [n_out][n]: what the refinement aims at */
    float *scale;                /* [n_out][n_group]; NULL with vec_out, which has the next two */
    float *col_scale, *col_bias; /* [n_matrices][n] */
    int64_t *line_row;           /* [n_line + 1] first row of each line; lines at a matrix' end may be short */
    float scale_unit;            /* a power of two: scale * scale_unit is exact in fp16 */
    rq_vec_code *code;           /* [n_line][n_vec] */
    int8_t *outlier;             /* [n_out][n_outlier] */
    float *outlier_step;         /* [n_matrices][n_outlier] */
    const int32_t *matrix;       /* [n_out] of the set */
    rq_book book;
    const char *label; /* the set in messages */
    void *on_device;   /* the device's copies of these (device.h) */
} rq_book_task;

/* The stored type of a scale. */
static inline float rq_book_scale_round(const rq_book_task *t, float s) {
    float v = s * t->scale_unit;
    v = v > 65504.0f ? 65504.0f : v;
    return rq_f32_of_f16(rq_f16_of_f32(v)) / t->scale_unit;
}

/* Where lane e of a vector lies in [n_out][n], or -1 when it reaches past the matrix. */
static inline int64_t rq_book_lane(const rq_book_task *t, int64_t line, int64_t vec, int64_t e) {
    int64_t col = vec * t->d + e, row = t->line_row[line] + e;
    if (t->vec_out) return row < t->line_row[line + 1] ? row * t->n + vec : -1;
    return col < t->n ? line * t->n + col : -1;
}

/* A weight is factor * (what the code says) + bias. */
static inline float rq_book_factor(const rq_book_task *t, int64_t line, int64_t vec) {
    return t->vec_out ? t->col_scale[t->matrix[t->line_row[line]] * t->n + vec]
                      : t->scale[line * t->n_group + vec * t->d / t->group];
}
static inline float rq_book_bias(const rq_book_task *t, int64_t line, int64_t vec) {
    return t->vec_out ? t->col_bias[t->matrix[t->line_row[line]] * t->n + vec] : 0;
}

static inline int64_t rq_book_of(const rq_book *b, int64_t vec) {
    return b->book_of ? b->book_of[vec] : vec / b->vec_per_book;
}

/* v[d] = what a code stands for, without the scale. */
void rq_book_expand(const rq_book *b, int64_t vec, const rq_vec_code *c, float *v);

/* q[n]: what row `row` of the stack became. */
void rq_book_row(const rq_book_task *t, int64_t row, float *q);

/* inv = a^-1 for a symmetric positive definite a[n][n], n <= RQ_VEC_MAX; its diagonal's inverse when a is not. */
void rq_invert_spd(double *inv, const double *a, int64_t n);

/* comp_book_fit.c. */
rq_status rq_book_new(rq_book_task *t);
/* k-means on the scaled start weights of all rows, weighed by the diagonals of metric [n_vec][d][d]; then rq_book_store. */
rq_status rq_book_fit(rq_book_task *t, const float *metric);
/* VPTQ's two passes: the first stage on the start weights, a sweep with it alone, and the second stage on what every weight was when
 * that sweep rounded it less what it became. The caller sweeps again with both. */
rq_status rq_book_fit_second(rq_book_task *t, const float *metric);
/* Round book->value to the stored type, what it stands for back to value, and make the search tables. */
void rq_book_store(rq_book_task *t);
void rq_book_free(rq_book *b);
int64_t rq_book_scratch(const rq_book *b); /* floats of rq_pick.scratch */

/* metric [n_vec][d][d]: what the sweep pays for an error in a vector, (U_bb^T U_bb)^-1 over the root of its largest entry (searches
 * do not care, and in the codebook's fit it halves the lead of columns with a large H). Without a factor the diagonal of H, or ones. */
rq_status rq_book_sweep_metric(float **metric, const rq_book_task *t);

/* comp_block.c: the sweep. at[n_out][n], natural order, or NULL: what each weight of a vector was when it was rounded. */
rq_status rq_block_sweep(rq_book_task *t, const float *metric, float *at);
/* comp_refine_book.c: descent over codes, scales and codebooks on tr((Q - goal) Hd (Q - goal)^T). */
rq_status rq_refine_book(rq_book_task *t);
/* comp_lines.c: the sweep's rounding of one column for rows [row0, row0 + n_rows) of whole lines, w and q `stride` apart. */
int64_t rq_lines_tile(const rq_book_task *t); /* lines of a task */
void rq_lines_round(rq_book_task *t, int64_t col, int64_t line0, int64_t n_lines, const float *w, int64_t w_stride,
                    float *q, int64_t q_stride, rq_vec_code *code, float *scratch);
/* comp_columns.c: with vec_out, first factors and biases of the columns of each matrix; and those that minimize J with codes
 * and codebooks as they are, if they lower it when stored. */
rq_status rq_column_factors(rq_book_task *t, int n_matrices);
rq_status rq_refit_columns(rq_book_task *t);
/* comp_refit_book.c: the codebooks that minimize it with codes, signs and scales as they are, if they lower it when stored. */
rq_status rq_refit_book(rq_book_task *t);
/* What refinement lowers, tr((Q - goal) Hd (Q - goal)^T), with everything as it is stored. */
rq_status rq_book_loss(rq_book_task *t, double *out);

/* ---- the refinement's work, which a device may have (device.h) ---- */

typedef struct rq_book_refine {
    rq_book_task *t;
    float *
        metric; /* [n_vec][d][d]: H_bb over its largest entry, zeros in lanes that are not the vector's; NULL with vec_out */
    float *inverse; /* [n_vec][d][d]: H_bb^-1, zeros likewise; NULL with vec_out */
    int32_t *kept;  /* [n]: which outlier column it is, or -1 */
} rq_book_refine;
/* CHOOSE: lines that rounding every vector to the nearest code serves better are rounded so. SCALES: refit of scales, of rows: with vec_out there is
 * rq_refit_columns. DESCEND: opt->cd_sweeps passes over the codes. All change the task. */
typedef enum rq_book_pass { RQ_BOOK_CHOOSE, RQ_BOOK_SCALES, RQ_BOOK_DESCEND } rq_book_pass;
rq_status rq_book_refine_pass(const rq_book_refine *r, rq_book_pass pass);
/* comp_lines.c: the passes with vec_out. */
rq_status rq_lines_pass(const rq_book_refine *r, rq_book_pass pass);

/* What the refit of scales and biases of one matrix asks for (comp_columns.c has the formulas): J of its rows, and with `terms` the rest. */
typedef struct rq_book_columns {
    rq_book_task *t;
    const int32_t *kept;  /* [n]: as above */
    int64_t row0, n_rows; /* of the matrix */
    float *q, *g;         /* [n_rows][n]: scratch of the CPU's, made when first used and freed by who asks */
    float *c;             /* [n][n]: V^T V */
    double *slope_s, *slope_b, *v_sum; /* [n]: g_s, g_b, 1^T V */
} rq_book_columns;
rq_status rq_book_column_terms(rq_book_columns *c, double *loss, bool terms);

/* Least squares for the codebooks: what conjugate gradients ask for. With e = Q - goal, S the map from the entries of all codebooks ([stage]
 * [book][k][d]) to what codes make of them, outlier columns being no part of it. LOSS: *loss = tr(e H e^T). GRADIENT: that, and out = S^T (e H). PRODUCT: out = S^T
 * ((S v) H). DIAGONAL: out = the diagonal of S^T S H. PRODUCT and DIAGONAL
 * are of the task as it was at the GRADIENT before them. */
typedef struct rq_book_system {
    rq_book_task *t;
    int64_t n_entry; /* numbers in the codebooks of all stages */
    int32_t *kept;   /* [n]: as above */
    float *q, *h;    /* [n_out][n]: scratch of the CPU's, made when first used, as is sum */
    double *sum;
} rq_book_system;
typedef enum rq_book_ask { RQ_BOOK_LOSS, RQ_BOOK_GRADIENT, RQ_BOOK_PRODUCT, RQ_BOOK_DIAGONAL } rq_book_ask;
rq_status rq_book_system_ask(rq_book_system *s, rq_book_ask ask, double *out, const double *v, double *loss);
/* kept[n] of a task. */
rq_status rq_book_kept(int32_t **kept, const rq_book_task *t);

/* The whole, for rq_quantize_set. */
rq_status rq_quantize_books(rq_quant_result *r, const rq_quant_matrix *m, int n_matrices, const rq_prep *p,
                            const rq_quant_opt *o);

/* comp_search.c: the lowest j < k with the least sum_p ca[p] a[p][j] + sum_p cb[p] b[p][j]; rows of k_pad floats, a multiple
 * of RQ_SEARCH_PAD. */
enum { RQ_SEARCH_PAD = 64 };
int64_t rq_best_code(const float *a, const float *ca, int64_t na, const float *b, const float *cb, int64_t nb,
                     int64_t k, int64_t k_pad);

#endif
