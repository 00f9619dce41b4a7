/* SPDX-License-Identifier: Apache-2.0 */
/* Sign learning (SSVQ's, for one layer and without autograd): with codes and scales as they are, a weight is s sigma c, sigma the sign of
 * a latent number, c an entry of the codebook of magnitudes. J = tr((Q - goal) H (Q - goal)^T) is quadratic: with G = (Q - goal) H
 *
 *   dJ/dsigma = 2 G s c     (the straight-through gradient of the latent)          dJ/dc = 2 sum over members of G s sigma
 *
 * Latents start at +-|goal| with the signs at hand and move in units of weights against G c / H_jj, the gradient over
 * the curvature of its column times s, with momentum; entries against the gradient over the diagonal of its second derivative. Rates
 * fall as half a cosine. A flip moves its weight by 2 s c, so signs oscillate: every FREEZE_EVERY steps those that flipped more often of
 * late than a threshold, which falls as a cosine too, are frozen at the sign they had most of the time.
 *
 * This does not go downhill: flips that pay one by one collide when taken together. It is for leaving the local minimum that descent
 * over codes ended in; rq_refine_book descends again afterwards and keeps the better of the two. */
#include "comp_signs.h"

#include <math.h>

#include "backend.h"

enum { FREEZE_EVERY = 5 };
static const float MOMENTUM = 0.9f, FLIP_MEMORY = 0.9f;
static const double FIRST_THRESHOLD = 0.2, LAST_THRESHOLD = 0.02; /* of the running mean of flips */
static const double ENTRY_RATE = 0.1;
static const float LEAST_LATENT = 1e-6f; /* a weight whose goal is zero has a sign too */

void rq_sign_step(rq_sign *s, float slope, float rate) {
    bool was = s->latent < 0;
    s->momentum = MOMENTUM * s->momentum + (1 - MOMENTUM) * slope;
    if (!s->frozen) s->latent -= rate * s->momentum;
    bool now = s->latent < 0;
    s->flips = FLIP_MEMORY * s->flips + (1 - FLIP_MEMORY) * (now != was ? 1.0f : 0.0f);
    int balance = s->balance + (now ? -1 : 1);
    if (balance > INT16_MIN && balance < INT16_MAX) s->balance = (int16_t)balance;
}

void rq_sign_freeze(rq_sign *s, float threshold) {
    if (s->frozen || !(s->flips > threshold)) return;
    s->frozen = true;
    if (s->balance != 0 && (s->balance < 0) != (s->latent < 0)) s->latent = -s->latent;
}

/* ---- state ---- */

static int64_t entry_of(const rq_signs *s, int64_t row, int64_t i) {
    const rq_book_task *t = s->t;
    return (rq_book_of(&t->book, i) * t->book.k[0] + t->code[row * t->n_vec + i].code[0]) * t->d;
}

static void rows_of(const rq_signs *s, int64_t part, int64_t *row0, int64_t *row1) {
    *row0 = s->t->n_out * part / RQ_SIGN_PARTS;
    *row1 = s->t->n_out * (part + 1) / RQ_SIGN_PARTS;
}

/* What rows of a part add to J's gradient by the entries, or to the diagonal of its second derivative. */
static void scatter_part(void *arg, int64_t part) {
    const rq_signs *s = arg;
    const rq_book_task *t = s->t;
    double *sum = s->sum + part * s->n_entry;
    int64_t row0, row1, n = t->n;
    rows_of(s, part, &row0, &row1);
    memset(sum, 0, (size_t)s->n_entry * sizeof *sum);
    for (int64_t row = row0; row < row1; ++row) {
        for (int64_t i = 0; i < t->n_vec; ++i) {
            double scale = (double)rq_book_factor(t, row, i), *to = sum + entry_of(s, row, i);
            for (int64_t j = i * t->d; j < rq_min_i64(n, (i + 1) * t->d); ++j) {
                if (s->kept[j]) continue;
                double g = s->curves ? scale * (double)t->prep->hd[j * (n + 1)] : (double)s->g[row * n + j];
                to[j - i * t->d] += 2 * scale * (!s->curves && s->sign[row * n + j].latent < 0 ? -g : g);
            }
        }
    }
}

static void scatter(rq_signs *s, double *out, bool curves) {
    s->curves = curves;
    rq_parallel_for(RQ_SIGN_PARTS, scatter_part, s);
    for (int64_t i = 0; i < s->n_entry; ++i) {
        out[i] = 0;
        for (int64_t part = 0; part < RQ_SIGN_PARTS; ++part) out[i] += s->sum[part * s->n_entry + i];
    }
}

rq_status rq_signs_new(rq_signs *s, rq_book_task *t) {
    rq_status status = RQ_OK;
    int64_t n = t->n, cells = t->n_out * n;
    *s = (rq_signs){.t = t, .n_entry = t->book.n_book * t->book.k[0] * t->d};
    RQ_TRY(RQ_NEW_ZERO(s->sign, cells));
    RQ_TRY(RQ_NEW(s->entry, s->n_entry));
    RQ_TRY(RQ_NEW(s->slope, s->n_entry));
    RQ_TRY(RQ_NEW(s->curve, s->n_entry));
    RQ_TRY(RQ_NEW(s->sum, RQ_SIGN_PARTS * s->n_entry));
    RQ_TRY(RQ_NEW(s->e, cells));
    RQ_TRY(RQ_NEW(s->g, cells));
    RQ_TRY(RQ_NEW_ZERO(s->kept, n));
    for (int o = 0; o < t->prep->n_outlier; ++o) s->kept[t->prep->outlier_col[o]] = true;
    memcpy(s->entry, t->book.value[0], (size_t)s->n_entry * sizeof *s->entry);
    for (int64_t at = 0; at < cells; ++at) {
        int64_t j = at % n;
        bool negative = t->code[at / n * t->n_vec + j / t->d].negative >> (j % t->d) & 1;
        float size = fmaxf(fabsf(t->goal[at]), LEAST_LATENT);
        s->sign[at].latent = negative ? -size : size;
    }
    scatter(s, s->curve, true);
done:
    if (status != RQ_OK) rq_signs_free(s);
    return status;
}

void rq_signs_free(rq_signs *s) {
    free(s->sign);
    free(s->entry);
    free(s->slope);
    free(s->curve);
    free(s->sum);
    free(s->e);
    free(s->g);
    free(s->kept);
    *s = (rq_signs){0};
}

/* ---- steps ---- */

/* e = Q - goal. */
static void forward_part(void *arg, int64_t part) {
    const rq_signs *s = arg;
    const rq_book_task *t = s->t;
    int64_t row0, row1, n = t->n;
    rows_of(s, part, &row0, &row1);
    for (int64_t row = row0; row < row1; ++row) {
        const rq_sign *sign = s->sign + row * n;
        const float *goal = t->goal + row * n;
        float *e = s->e + row * n;
        for (int64_t i = 0; i < t->n_vec; ++i) {
            const float *c = s->entry + entry_of(s, row, i);
            float scale = rq_book_factor(t, row, i);
            for (int64_t j = i * t->d; j < rq_min_i64(n, (i + 1) * t->d); ++j) {
                float q = scale * c[j - i * t->d];
                e[j] = (sign[j].latent < 0 ? -q : q) - goal[j];
            }
        }
        for (int o = 0; o < t->prep->n_outlier; ++o) {
            int64_t j = t->prep->outlier_col[o], at = row * t->prep->n_outlier + o;
            e[j] = t->outlier_step[t->matrix[row] * t->prep->n_outlier + o] * (float)t->outlier[at] - goal[j];
        }
    }
}

double rq_signs_gradient(rq_signs *s) {
    const rq_book_task *t = s->t;
    double sum = 0;
    rq_parallel_for(RQ_SIGN_PARTS, forward_part, s);
    rq_sgemm(RQ_N, RQ_N, t->n_out, t->n, t->n, 1, s->e, t->n, t->prep->hd, t->n, 0, s->g, t->n);
    scatter(s, s->slope, false);
    for (int64_t i = 0; i < t->n_out * t->n; ++i) sum += (double)s->e[i] * (double)s->g[i];
    return sum;
}

static void step_part(void *arg, int64_t part) {
    const rq_signs *s = arg;
    const rq_book_task *t = s->t;
    int64_t row0, row1, n = t->n;
    rows_of(s, part, &row0, &row1);
    for (int64_t row = row0; row < row1; ++row) {
        rq_sign *sign = s->sign + row * n;
        for (int64_t i = 0; i < t->n_vec; ++i) {
            const float *c = s->entry + entry_of(s, row, i);
            for (int64_t j = i * t->d; j < rq_min_i64(n, (i + 1) * t->d); ++j) {
                if (s->kept[j]) continue;
                rq_sign_step(&sign[j], s->g[row * n + j] * c[j - i * t->d] / t->prep->hd[j * (n + 1)], s->rate);
                if (s->threshold > 0) rq_sign_freeze(&sign[j], s->threshold);
            }
        }
    }
}

/* Signs and codebooks into the task. */
static void publish(rq_signs *s) {
    rq_book_task *t = s->t;
    int64_t n = t->n;
    for (int64_t row = 0; row < t->n_out; ++row) {
        for (int64_t i = 0; i < t->n_vec; ++i) {
            rq_vec_code *c = &t->code[row * t->n_vec + i];
            for (int64_t j = i * t->d; j < rq_min_i64(n, (i + 1) * t->d); ++j) {
                unsigned bit = 1u << (j - i * t->d);
                if (!s->kept[j])
                    c->negative = (uint16_t)(s->sign[row * n + j].latent < 0 ? c->negative | bit : c->negative & ~bit);
            }
        }
    }
    memcpy(t->book.value[0], s->entry, (size_t)s->n_entry * sizeof *s->entry);
    rq_book_store(t);
}

void rq_signs_run(rq_signs *s, int64_t steps, double rate) {
    for (int64_t step = 0; step < steps; ++step) {
        double fall = 0.5 * (1 + cos(3.14159265358979323846 * (double)step / (double)steps));
        bool freezes = step % FREEZE_EVERY == FREEZE_EVERY - 1;
        rq_signs_gradient(s);
        s->rate = (float)(rate * fall);
        s->threshold = freezes ? (float)(LAST_THRESHOLD + (FIRST_THRESHOLD - LAST_THRESHOLD) * fall) : 0;
        rq_parallel_for(RQ_SIGN_PARTS, step_part, s);
        for (int64_t i = 0; i < s->n_entry; ++i) {
            double down = s->curve[i] > 0 ? ENTRY_RATE * fall * s->slope[i] / s->curve[i] : 0;
            s->entry[i] = fmaxf(0, s->entry[i] - (float)down);
        }
    }
    publish(s);
}
