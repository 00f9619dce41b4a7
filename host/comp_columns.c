/* SPDX-License-Identifier: Apache-2.0 */
/* A scale and a bias for each column of each matrix, with vectors down the outputs (VPTQ, arXiv:2409.17066, section 3).
 *
 * At first standard deviation and mean, or VPTQ's range and minimum, of the start weights. The refit then takes codes and codebooks
 * as they are: Q_rj = s_j v_rj + b_j, and J = tr((Q - goal) H (Q - goal)^T) is quadratic in s and b. With G = (Q - goal) H, C = V^T V
 * and 1 the ones, half its gradient and its Hessian are
 *
 *   g_s = diag(V^T G)    g_b = 1^T G        A_ss = C o H    A_sb = diag(1^T V) H    A_bb = n_rows H
 *
 * (o elementwise), so a change costs n numbers a column to follow, not n_rows n. Columns are taken in turns: the best (s, b) of
 * one given all else, s within a factor of 2 of what it was, rounded to fp16, taken where J falls. Both matrices of V and H
 * meet only in C o H, once a refit. */
#include <math.h>

#include "backend.h"
#include "device.h"

enum { MAX_SWEEPS = 64 };

static float column_round(const rq_book_task *t, double v) {
    float x = (float)v * t->scale_unit;
    x = x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
    return rq_f32_of_f16(rq_f16_of_f32(x)) / t->scale_unit;
}

/* The rows after row0 that are of its matrix. */
static int64_t matrix_end(const rq_book_task *t, int64_t row0) {
    int64_t row1 = row0;
    while (row1 < t->n_out && t->matrix[row1] == t->matrix[row0]) ++row1;
    return row1;
}

static void first_factors(rq_book_task *t, int64_t row0, int64_t row1, int64_t j) {
    double sum = 0, square = 0, count = (double)(row1 - row0), low = INFINITY, high = -INFINITY;
    int64_t at = t->matrix[row0] * t->n + j;
    for (int64_t r = row0; r < row1; ++r) {
        double w = (double)t->start[r * t->n + j];
        sum += w;
        low = fmin(low, w);
        high = fmax(high, w);
    }
    if (t->opt->col_norm == RQ_COL_RANGE) {
        t->col_bias[at] = column_round(t, low);
        t->col_scale[at] = column_round(t, high - low);
        return;
    }
    float bias = column_round(t, sum / count);
    for (int64_t r = row0; r < row1; ++r) {
        double e = (double)t->start[r * t->n + j] - (double)bias;
        square += e * e;
    }
    t->col_bias[at] = bias;
    t->col_scale[at] = column_round(t, sqrt(square / count));
}

rq_status rq_column_factors(rq_book_task *t, int n_matrices) {
    rq_status status = RQ_OK;
    RQ_TRY(RQ_NEW_ZERO(t->col_scale, n_matrices * t->n));
    RQ_TRY(RQ_NEW_ZERO(t->col_bias, n_matrices * t->n));
    for (int64_t row0 = 0, row1; row0 < t->n_out; row0 = row1) {
        row1 = matrix_end(t, row0);
        for (int64_t j = 0; j < t->n; ++j) first_factors(t, row0, row1, j);
    }
done:
    return status;
}

/* ---- what the refit needs of the codes ---- */

/* q = Q - goal, g = q H; J. */
static double loss_of(const rq_book_columns *f) {
    const rq_book_task *t = f->t;
    int64_t n = t->n;
    double sum = 0;
    for (int64_t r = 0; r < f->n_rows; ++r) rq_book_row(t, f->row0 + r, f->q + r * n);
    for (int64_t i = 0; i < f->n_rows * n; ++i) f->q[i] -= t->goal[f->row0 * n + i];
    rq_sgemm(RQ_N, RQ_N, f->n_rows, n, n, 1, f->q, n, t->prep->hd, n, 0, f->g, n);
    for (int64_t i = 0; i < f->n_rows * n; ++i) sum += (double)f->q[i] * (double)f->g[i];
    return sum;
}

rq_status rq_book_column_terms(rq_book_columns *c, double *loss, bool terms) {
    rq_status status = RQ_OK;
    const rq_book_task *t = c->t;
    int64_t n = t->n, line = 0;
    if (!c->q) RQ_TRY(RQ_NEW(c->q, c->n_rows * n));
    if (!c->g) RQ_TRY(RQ_NEW(c->g, c->n_rows * n));
    *loss = loss_of(c);
    if (!terms) goto done;
    while (t->line_row[line] < c->row0) ++line;
    memset(c->slope_s, 0, (size_t)n * sizeof *c->slope_s);
    memset(c->slope_b, 0, (size_t)n * sizeof *c->slope_b);
    memset(c->v_sum, 0, (size_t)n * sizeof *c->v_sum);
    for (; line < t->n_line && t->line_row[line] < c->row0 + c->n_rows; ++line) {
        for (int64_t j = 0; j < n; ++j) {
            float v[RQ_VEC_MAX];
            rq_book_expand(&t->book, j, &t->code[line * t->n_vec + j], v);
            for (int64_t r = t->line_row[line]; r < t->line_row[line + 1]; ++r) {
                float x = c->kept[j] < 0 ? v[r - t->line_row[line]] : 0, *g = &c->g[(r - c->row0) * n + j];
                c->slope_s[j] += (double)x * (double)*g;
                c->slope_b[j] += (double)*g;
                c->v_sum[j] += (double)x;
                *g = x; /* V from here on */
            }
        }
    }
    rq_sgemm(RQ_T, RQ_N, n, n, c->n_rows, 1, c->g, n, c->g, n, 0, c->c, n);
done:
    return status;
}

/* ---- refit ---- */

typedef struct refit {
    rq_book_columns a;
    float *s, *b, *was; /* [n], [n] of this matrix, [2 n] as they were */
} refit;

static rq_status ask(refit *f, double *loss, bool terms) {
    const rq_device *device = f->a.t->prep->device;
    return rq_device_row(device)->book_columns(rq_device_own(device), &f->a, loss, terms);
}

/* The best scale and bias of column j, stored; how much J falls by them, 0 when they stay. */
static double step_column(const refit *f, int64_t j) {
    const rq_book_task *t = f->a.t;
    int64_t n = t->n;
    const float *h = t->prep->hd + j * n, *c = f->a.c + j * n;
    double *slope_s = f->a.slope_s, *slope_b = f->a.slope_b;
    double m = (double)f->a.n_rows, sum = f->a.v_sum[j], ss = (double)c[j], own = (double)h[j];
    double det = ss * m - sum * sum, s = (double)f->s[j], ds = 0;
    if (s > 0 && det > 1e-6 * ss * m) {
        double wanted = s - (slope_s[j] * m - slope_b[j] * sum) / (det * own);
        ds = (double)column_round(t, fmin(fmax(wanted, 0.5 * s), 2 * s)) - s;
        if (!(s + ds > 0)) ds = 0;
    }
    double wanted = (double)f->b[j] - (slope_b[j] + own * sum * ds) / (m * own);
    double db = (double)column_round(t, wanted) - (double)f->b[j];
    double linear = 2 * (ds * slope_s[j] + db * slope_b[j]);
    double change = linear + own * (ds * ds * ss + 2 * ds * db * sum + db * db * m);
    if (!(change < -1e-6 * fabs(linear))) return 0;
    f->s[j] = (float)(s + ds);
    f->b[j] = (float)((double)f->b[j] + db);
    for (int64_t k = 0; k < n; ++k) {
        slope_s[k] += (double)h[k] * ((double)c[k] * ds + f->a.v_sum[k] * db);
        slope_b[k] += (double)h[k] * (sum * ds + m * db);
    }
    return -change;
}

static rq_status refit_matrix(refit *f) {
    rq_status status = RQ_OK;
    int64_t n = f->a.t->n;
    double before = 0, after = 0, fell = 0;
    memcpy(f->was, f->s, (size_t)n * sizeof *f->was);
    memcpy(f->was + n, f->b, (size_t)n * sizeof *f->was);
    RQ_TRY(ask(f, &before, true));
    for (int sweep = 0; sweep < MAX_SWEEPS; ++sweep) {
        double now = 0;
        for (int64_t j = 0; j < n; ++j) now += f->a.kept[j] < 0 ? step_column(f, j) : 0;
        fell += now;
        if (now <= 1e-3 * fell) break;
    }
    if (fell > 0) RQ_TRY(ask(f, &after, false));
    if (fell > 0 && after < before) goto done;
    memcpy(f->s, f->was, (size_t)n * sizeof *f->was);
    memcpy(f->b, f->was + n, (size_t)n * sizeof *f->was);
done:
    return status;
}

rq_status rq_refit_columns(rq_book_task *t) {
    rq_status status = RQ_OK;
    int32_t *kept = NULL;
    refit f = {.a = {.t = t}};
    int64_t n = t->n;
    RQ_TRY(rq_book_kept(&kept, t));
    f.a.kept = kept;
    RQ_TRY(RQ_NEW(f.a.c, n * n));
    RQ_TRY(RQ_NEW(f.a.slope_s, n));
    RQ_TRY(RQ_NEW(f.a.slope_b, n));
    RQ_TRY(RQ_NEW(f.a.v_sum, n));
    RQ_TRY(RQ_NEW(f.was, 2 * n));
    for (int64_t row0 = 0, row1; row0 < t->n_out; row0 = row1) {
        row1 = matrix_end(t, row0);
        f.a.row0 = row0;
        f.a.n_rows = row1 - row0;
        f.s = t->col_scale + t->matrix[row0] * n;
        f.b = t->col_bias + t->matrix[row0] * n;
        RQ_TRY(refit_matrix(&f));
        free(f.a.q);
        free(f.a.g);
        f.a.q = f.a.g = NULL;
    }
done:
    free(kept);
    free(f.a.q);
    free(f.a.g);
    free(f.a.c);
    free(f.a.slope_s);
    free(f.a.slope_b);
    free(f.a.v_sum);
    free(f.was);
    return status;
}
