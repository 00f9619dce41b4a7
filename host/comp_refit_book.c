/* SPDX-License-Identifier: Apache-2.0 */
/* Codebooks by least squares under the full H (AQLM's and QuIP#'s tuning, in closed form): with codes, signs and scales fixed, Q = S c
 * + outlier columns (+ column biases) is linear in the entries c of the codebooks, and J(c) = tr((Q - goal) H (Q - goal)^T) is minimal where
 * S^T ((S c + o - goal) H) = 0. That system is k d wide and never formed: conjugate gradients apply S (look up), H (one product)
 * and S^T (add up), preconditioned by the diagonal, sum over the members of an entry of s^2 H_jj. An entry of ssvq that turns
 * negative gives its sign to its members. The result is rounded to the stored type and kept only where J is lower then. */
#include <math.h>

#include "backend.h"
#include "device.h"

enum { N_STEPS = 8, N_CHUNKS = 8 };

typedef struct job {
    const rq_book_system *s;
    const double *v; /* what expand() spreads */
    bool squares;    /* scatter() sums s^2 H_jj instead of s g */
} job;

static int64_t stage_offset(const rq_book_task *t, int stage) {
    return stage ? t->book.n_book * t->book.k[0] * t->d : 0;
}

/* Where in a codebook vector i of a row has its entry of a stage. */
static int64_t entry_of(const rq_book_task *t, int stage, int64_t i, const rq_vec_code *c) {
    return stage_offset(t, stage) + (rq_book_of(&t->book, i) * t->book.k[stage] + c->code[stage]) * t->d;
}

static void lines_of_chunk(const rq_book_task *t, int64_t chunk, int64_t *line0, int64_t *line1) {
    *line0 = t->n_line * chunk / N_CHUNKS;
    *line1 = t->n_line * (chunk + 1) / N_CHUNKS;
}

/* q = S v, zero in outlier columns. */
static void expand(void *arg, int64_t chunk) {
    const job *j = arg;
    const rq_book_system *f = j->s;
    const rq_book_task *t = f->t;
    int64_t line0, line1, n = t->n;
    lines_of_chunk(t, chunk, &line0, &line1);
    for (int64_t line = line0; line < line1; ++line) {
        for (int64_t i = 0; i < t->n_vec; ++i) {
            const rq_vec_code *c = &t->code[line * t->n_vec + i];
            float s = rq_book_factor(t, line, i);
            for (int64_t e = 0; e < t->d; ++e) {
                int64_t cell = rq_book_lane(t, line, i, e);
                if (cell < 0) continue;
                double v = 0;
                for (int stage = 0; stage < t->book.n_stage; ++stage) v += j->v[entry_of(t, stage, i, c) + e];
                if (c->negative >> e & 1) v = -v;
                f->q[cell] = f->kept[cell % n] >= 0 ? 0 : s * (float)v;
            }
        }
    }
}

/* sum += S^T h, or the diagonal of S^T H S with the same structure. */
static void scatter(void *arg, int64_t chunk) {
    const job *j = arg;
    const rq_book_system *f = j->s;
    const rq_book_task *t = f->t;
    int64_t line0, line1, n = t->n;
    double *sum = f->sum + chunk * f->n_entry;
    lines_of_chunk(t, chunk, &line0, &line1);
    memset(sum, 0, (size_t)f->n_entry * sizeof *sum);
    for (int64_t line = line0; line < line1; ++line) {
        for (int64_t i = 0; i < t->n_vec; ++i) {
            const rq_vec_code *c = &t->code[line * t->n_vec + i];
            double s = (double)rq_book_factor(t, line, i);
            for (int64_t e = 0; e < t->d; ++e) {
                int64_t cell = rq_book_lane(t, line, i, e);
                if (cell < 0 || f->kept[cell % n] >= 0) continue;
                double v = j->squares ? s * s * (double)t->prep->hd[cell % n * (n + 1)]
                                      : (c->negative >> e & 1 ? -s : s) * (double)f->h[cell];
                for (int stage = 0; stage < t->book.n_stage; ++stage) sum[entry_of(t, stage, i, c) + e] += v;
            }
        }
    }
}

static void scatter_all(const rq_book_system *f, double *out, bool squares) {
    job j = {.s = f, .squares = squares};
    rq_parallel_for(N_CHUNKS, scatter, &j);
    for (int64_t e = 0; e < f->n_entry; ++e) {
        out[e] = 0;
        for (int64_t c = 0; c < N_CHUNKS; ++c) out[e] += f->sum[c * f->n_entry + e];
    }
}

static void times_h(const rq_book_system *f) {
    const rq_book_task *t = f->t;
    rq_sgemm(RQ_N, RQ_N, t->n_out, t->n, t->n, 1, f->q, t->n, t->prep->hd, t->n, 0, f->h, t->n);
}

/* q = Q - goal, h = q H; J. */
static double loss_of(const rq_book_system *f) {
    const rq_book_task *t = f->t;
    double sum = 0;
    for (int64_t r = 0; r < t->n_out; ++r) rq_book_row(t, r, f->q + r * t->n);
    for (int64_t i = 0; i < t->n_out * t->n; ++i) f->q[i] -= t->goal[i];
    times_h(f);
    for (int64_t i = 0; i < t->n_out * t->n; ++i) sum += (double)f->q[i] * (double)f->h[i];
    return sum;
}

rq_status rq_book_system_ask(rq_book_system *s, rq_book_ask ask, double *out, const double *v, double *loss) {
    rq_status status = RQ_OK;
    const rq_book_task *t = s->t;
    if (!s->q) RQ_TRY(RQ_NEW(s->q, t->n_out * t->n));
    if (!s->h) RQ_TRY(RQ_NEW(s->h, t->n_out * t->n));
    if (!s->sum && out) RQ_TRY(RQ_NEW(s->sum, N_CHUNKS * s->n_entry));
    if (loss && (ask == RQ_BOOK_LOSS || ask == RQ_BOOK_GRADIENT)) *loss = loss_of(s);
    if (ask == RQ_BOOK_PRODUCT) {
        job j = {.s = s, .v = v};
        rq_parallel_for(N_CHUNKS, expand, &j);
        times_h(s);
    }
    if (ask != RQ_BOOK_LOSS && out) scatter_all(s, out, ask == RQ_BOOK_DIAGONAL);
done:
    return status;
}

/* ---- what asks, on whatever device ---- */

static rq_status ask(rq_book_system *s, rq_book_ask what, double *out, const double *v, double *loss) {
    const rq_device *device = s->t->prep->device;
    return rq_device_row(device)->book_ask(rq_device_own(device), s, what, out, v, loss);
}

rq_status rq_book_kept(int32_t **kept, const rq_book_task *t) {
    rq_status status = RQ_NEW(*kept, t->n);
    for (int64_t j = 0; status == RQ_OK && j < t->n; ++j) (*kept)[j] = -1;
    for (int o = 0; status == RQ_OK && o < t->prep->n_outlier; ++o) (*kept)[t->prep->outlier_col[o]] = o;
    return status;
}

static rq_status system_new(rq_book_system *s, rq_book_task *t) {
    *s = (rq_book_system){.t = t};
    for (int stage = 0; stage < t->book.n_stage; ++stage) s->n_entry += t->book.n_book * t->book.k[stage] * t->d;
    return rq_book_kept(&s->kept, t);
}

static void system_free(rq_book_system *s) {
    free(s->kept);
    free(s->q);
    free(s->h);
    free(s->sum);
}

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

/* Conjugate gradients from the codebooks as they are; x gains the change. r holds minus half the gradient. */
static rq_status solve(rq_book_system *f, double *x, double *r) {
    rq_status status = RQ_OK;
    int64_t n = f->n_entry;
    double *diagonal = NULL, *z = NULL, *p = NULL, *ap = NULL;
    RQ_TRY(RQ_NEW(diagonal, n));
    RQ_TRY(RQ_NEW(z, n));
    RQ_TRY(RQ_NEW(p, n));
    RQ_TRY(RQ_NEW(ap, n));
    RQ_TRY(ask(f, RQ_BOOK_DIAGONAL, diagonal, NULL, NULL));
    for (int64_t i = 0; i < n; ++i) p[i] = z[i] = diagonal[i] > 0 ? r[i] / diagonal[i] : 0;
    double rz = dot(r, z, n), first = rz;
    for (int step = 0; step < N_STEPS && rz > 1e-8 * first; ++step) {
        RQ_TRY(ask(f, RQ_BOOK_PRODUCT, ap, p, NULL));
        double curve = dot(p, ap, n);
        if (!(curve > 0)) break;
        double a = rz / curve;
        for (int64_t i = 0; i < n; ++i) {
            x[i] += a * p[i];
            r[i] -= a * ap[i];
            z[i] = diagonal[i] > 0 ? r[i] / diagonal[i] : 0;
        }
        double now = dot(r, z, n), b = now / rz;
        rz = now;
        for (int64_t i = 0; i < n; ++i) p[i] = z[i] + b * p[i];
    }
done:
    free(diagonal);
    free(z);
    free(p);
    free(ap);
    return status;
}

/* Flip the signs of members whose entry is negative; flipping twice brings them back. */
static void fold_signs(rq_book_task *t, const double *x) {
    for (int64_t line = 0; line < t->n_line; ++line) {
        for (int64_t i = 0; i < t->n_vec; ++i) {
            rq_vec_code *c = &t->code[line * t->n_vec + i];
            const double *v = x + entry_of(t, 0, i, c);
            for (int e = 0; e < t->d; ++e) c->negative = (uint16_t)(c->negative ^ (v[e] < 0) << e);
        }
    }
}

static void set_values(rq_book_task *t, const double *x) {
    for (int stage = 0; stage < t->book.n_stage; ++stage) {
        const double *from = x + stage_offset(t, stage);
        for (int64_t i = 0; i < t->book.n_book * t->book.k[stage] * t->d; ++i)
            t->book.value[stage][i] = (float)(t->vec->magnitudes ? fabs(from[i]) : from[i]);
    }
}

rq_status rq_book_loss(rq_book_task *t, double *out) {
    rq_book_system s;
    rq_status status = system_new(&s, t);
    if (status == RQ_OK) status = ask(&s, RQ_BOOK_LOSS, NULL, NULL, out);
    system_free(&s);
    return status;
}

rq_status rq_refit_book(rq_book_task *t) {
    rq_status status = RQ_OK;
    rq_book_system f = {0};
    double *x = NULL, *r = NULL, *was = NULL, before, after;
    RQ_TRY(system_new(&f, t));
    RQ_TRY(RQ_NEW(x, f.n_entry));
    RQ_TRY(RQ_NEW(r, f.n_entry));
    RQ_TRY(RQ_NEW(was, f.n_entry));
    for (int stage = 0; stage < t->book.n_stage; ++stage) {
        for (int64_t i = 0; i < t->book.n_book * t->book.k[stage] * t->d; ++i)
            was[stage_offset(t, stage) + i] = (double)t->book.value[stage][i];
    }
    memcpy(x, was, (size_t)f.n_entry * sizeof *x);
    RQ_TRY(ask(&f, RQ_BOOK_GRADIENT, r, NULL, &before));
    for (int64_t i = 0; i < f.n_entry; ++i) r[i] = -r[i];
    RQ_TRY(solve(&f, x, r));
    for (int64_t i = 0; i < f.n_entry; ++i) {
        if (!isfinite(x[i])) goto done; /* nothing was changed yet */
    }
    if (t->vec->magnitudes) fold_signs(t, x);
    set_values(t, x);
    rq_book_store(t);
    RQ_TRY(ask(&f, RQ_BOOK_LOSS, NULL, NULL, &after));
    if (!(after < before)) {
        if (t->vec->magnitudes) fold_signs(t, x);
        set_values(t, was);
        rq_book_store(t); /* stored values come back as they were */
    }
done:
    system_free(&f);
    free(x);
    free(r);
    free(was);
    return status;
}
