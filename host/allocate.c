/* SPDX-License-Identifier: Apache-2.0 */
/* Bit allocation. LQ-LoRA (arXiv:2311.12023) states it as an integer program over measured losses, BAQ (arXiv:2506.05664) as a convex
 * one whose solution gives every matrix the same loss per bit; here the second solves the first.
 *
 * With a price lambda for a bit, each matrix takes the setting of the least loss + lambda * bits: a vertex of its lower convex hull.
 * Walking down the hulls' edges, steepest first, until the budget is spent gives lambda, a lower bound on every solution
 *     D = sum_m min_s (loss_ms + lambda bits_ms) - lambda budget
 * and a first solution. What any solution loses over D is the sum of its settings' regrets
 *     regret_ms = loss_ms + lambda bits_ms - min_s (...)
 * plus lambda times the bits it leaves unused. So a better solution than the one known, whose gap is G, has regrets that add up to
 * less than G; that leaves few settings, and dynamic programming over the matrices, keeping pairs (bits, regret) that no other pair
 * is better than in both, finds the best of them. */
#include "allocate.h"

#include <math.h>

#define MAX_STATES (4LL << 20)

typedef struct edge { /* of a hull: from one setting of a matrix to the next larger one */
    double slope;     /* loss saved per bit */
    int64_t matrix;
    int order, from, to;
} edge;

typedef struct state {
    int64_t bits;
    double regret;
    int32_t parent; /* in the stage before */
    int32_t setting;
} state;

typedef struct search {
    const rq_bank *b;
    int64_t budget;
    double lambda, least; /* least: sum over matrices of min_s (loss + lambda bits) */
    double *regret;       /* [n_matrix][n_setting] */
    edge *edges;
    int64_t n_edge;
    int *best; /* the best solution known */
    int64_t best_bits;
    double best_loss;
    state *states;  /* of all stages, one after the other */
    int64_t *stage; /* [n_matrix + 1] where each begins */
    int64_t n_state, n_room, max_states;
    bool cut; /* states were left out */
} search;

static double loss_of(const rq_bank *b, int64_t m, int s) {
    double loss = b->loss[m * b->n_setting + s], w = b->weight ? b->weight[m] : 1.0;
    return isfinite(loss) ? w * loss : INFINITY;
}

static int64_t bits_of(const rq_bank *b, int64_t m, int s) { return b->bits[m * b->n_setting + s]; }

static rq_status check_bank(const rq_bank *b, int64_t max_states) {
    if (b->n_matrix < 1 || b->n_setting < 1 || b->n_setting > RQ_BANK_MAX || max_states < 0) {
        return rq_fail(RQ_ERR_ARG, "allocation: %lld matrices with %d settings, %lld states", (long long)b->n_matrix,
                       b->n_setting, (long long)max_states);
    }
    for (int64_t m = 0; m < b->n_matrix; ++m) {
        bool any = false;
        for (int s = 0; s < b->n_setting; ++s) {
            double loss = b->loss[m * b->n_setting + s];
            if (!(loss >= 0) || bits_of(b, m, s) < 0 || bits_of(b, m, s) > INT64_MAX / 2 / b->n_matrix) {
                return rq_fail(RQ_ERR_ARG, "allocation: setting %d of matrix %lld has %lld bits and loss %g", s,
                               (long long)m, (long long)bits_of(b, m, s), loss);
            }
            any |= isfinite(loss);
        }
        if (b->weight && !(b->weight[m] >= 0 && isfinite(b->weight[m]))) {
            return rq_fail(RQ_ERR_ARG, "allocation: the weight of matrix %lld is %g", (long long)m, b->weight[m]);
        }
        if (!any) return rq_fail(RQ_ERR_ARG, "allocation: matrix %lld has no setting with a finite loss", (long long)m);
    }
    return RQ_OK;
}

/* Fewest bits first, then the least loss. */
static bool smaller(const rq_bank *b, int64_t m, int s, int t) {
    if (bits_of(b, m, s) != bits_of(b, m, t)) return bits_of(b, m, s) < bits_of(b, m, t);
    return loss_of(b, m, s) < loss_of(b, m, t);
}

/* Adds the edges of matrix m's hull, steepest first; returns the smallest setting, where the hull begins. */
static int add_hull(search *z, int64_t m) {
    const rq_bank *b = z->b;
    int at = -1, order = 0;
    for (int s = 0; s < b->n_setting; ++s) {
        if (isfinite(loss_of(b, m, s)) && (at < 0 || smaller(b, m, s, at))) at = s;
    }
    const int first = at;
    for (;;) {
        int to = -1;
        double slope = 0;
        for (int s = 0; s < b->n_setting; ++s) {
            double saved = loss_of(b, m, at) - loss_of(b, m, s);
            if (!isfinite(loss_of(b, m, s)) || bits_of(b, m, s) <= bits_of(b, m, at) || !(saved > 0)) continue;
            double this_slope = saved / (double)(bits_of(b, m, s) - bits_of(b, m, at));
            if (to < 0 || this_slope > slope || (this_slope == slope && bits_of(b, m, s) > bits_of(b, m, to))) {
                to = s;
                slope = this_slope;
            }
        }
        if (to < 0) return first;
        z->edges[z->n_edge++] = (edge){.slope = slope, .matrix = m, .order = order, .from = at, .to = to};
        ++order;
        at = to;
    }
}

static int by_slope(const void *a, const void *b) {
    const edge *x = a, *y = b;
    if (x->slope != y->slope) return x->slope > y->slope ? -1 : 1;
    if (x->matrix != y->matrix) return x->matrix < y->matrix ? -1 : 1;
    return x->order - y->order;
}

static double total_loss(const rq_bank *b, const int *setting) {
    double loss = 0;
    for (int64_t m = 0; m < b->n_matrix; ++m) loss += loss_of(b, m, setting[m]);
    return loss;
}

/* lambda and a first solution: along the hulls while they fit, then whatever later edges still fit. */
static rq_status walk_hulls(search *z) {
    const rq_bank *b = z->b;
    z->best_bits = 0;
    for (int64_t m = 0; m < b->n_matrix; ++m) {
        z->best[m] = add_hull(z, m);
        z->best_bits += bits_of(b, m, z->best[m]);
    }
    if (z->best_bits > z->budget) {
        return rq_fail(RQ_ERR_ARG, "allocation: the smallest settings take %lld bits, the budget is %lld",
                       (long long)z->best_bits, (long long)z->budget);
    }
    qsort(z->edges, (size_t)z->n_edge, sizeof *z->edges, by_slope);
    z->lambda = 0;
    for (int64_t e = 0; e < z->n_edge; ++e) {
        const edge *g = &z->edges[e];
        int64_t more = bits_of(b, g->matrix, g->to) - bits_of(b, g->matrix, g->from);
        if (z->best_bits + more > z->budget || z->best[g->matrix] != g->from) {
            if (z->lambda == 0) z->lambda = g->slope; /* the first edge that does not fit */
            continue;
        }
        z->best[g->matrix] = g->to;
        z->best_bits += more;
    }
    z->best_loss = total_loss(b, z->best);
    return RQ_OK;
}

static void fill_regrets(search *z) {
    const rq_bank *b = z->b;
    z->least = 0;
    for (int64_t m = 0; m < b->n_matrix; ++m) {
        double *regret = z->regret + m * b->n_setting, least = INFINITY;
        for (int s = 0; s < b->n_setting; ++s) {
            regret[s] = loss_of(b, m, s) + z->lambda * (double)bits_of(b, m, s);
            if (regret[s] < least) least = regret[s];
        }
        for (int s = 0; s < b->n_setting; ++s) regret[s] -= least;
        z->least += least;
    }
}

static int by_bits(const void *a, const void *b) {
    const state *x = a, *y = b;
    if (x->bits != y->bits) return x->bits < y->bits ? -1 : 1;
    if (x->regret != y->regret) return x->regret < y->regret ? -1 : 1;
    if (x->parent != y->parent) return x->parent < y->parent ? -1 : 1;
    return x->setting - y->setting;
}

/* Of states in the order of bits, those whose loss (regret less lambda * bits, but for a constant) is below all before. When
 * there are more than fit, the smallest regrets: those nearest to the bound. */
static int64_t keep_front(const search *z, state *s, int64_t n) {
    int64_t kept = 0;
    double least = INFINITY;
    for (int64_t i = 0; i < n; ++i) {
        double loss = s[i].regret - z->lambda * (double)s[i].bits;
        if (!(loss < least)) continue;
        least = loss;
        s[kept++] = s[i];
    }
    return kept;
}

static int by_regret(const void *a, const void *b) {
    const state *x = a, *y = b;
    if (x->regret != y->regret) return x->regret < y->regret ? -1 : 1;
    return by_bits(a, b);
}

static rq_status add_states(search *z, const state *more, int64_t n) {
    if (z->n_state + n > z->n_room) {
        int64_t room = rq_max_i64(1024, 2 * (z->n_state + n));
        state *moved = realloc(z->states, (size_t)room * sizeof *moved);
        if (!moved) return rq_fail(RQ_ERR_NOMEM, "allocation: no memory for %lld states", (long long)room);
        z->states = moved;
        z->n_room = room;
    }
    memcpy(z->states + z->n_state, more, (size_t)n * sizeof *more);
    z->n_state += n;
    return RQ_OK;
}

/* fewest[m], most[m]: bits of the matrices from m on, among settings that can be part of a solution closer to the bound than gap.
 * False when a matrix has no such setting, and the solution known is the best. */
static bool bits_ahead(const search *z, double gap, int64_t *fewest, int64_t *most) {
    const rq_bank *b = z->b;
    fewest[b->n_matrix] = most[b->n_matrix] = 0;
    for (int64_t m = b->n_matrix; m-- > 0;) {
        int64_t lo = INT64_MAX, hi = 0;
        for (int s = 0; s < b->n_setting; ++s) {
            if (!(z->regret[m * b->n_setting + s] < gap)) continue;
            lo = rq_min_i64(lo, bits_of(b, m, s));
            hi = rq_max_i64(hi, bits_of(b, m, s));
        }
        if (lo > hi) return false;
        fewest[m] = fewest[m + 1] + lo;
        most[m] = most[m + 1] + hi;
    }
    return true;
}

/* Dynamic programming over the matrices; the states of a stage are the ways to set the matrices so far. */
static rq_status run_stages(search *z) {
    const rq_bank *b = z->b;
    rq_status status = RQ_OK;
    state *next = NULL;
    int64_t *fewest = NULL, *most = NULL, room = 0, share = rq_max_i64(1, z->max_states / b->n_matrix);
    double gap = z->best_loss - (z->least - z->lambda * (double)z->budget);
    gap += 1e-12 * (fabs(z->best_loss) + z->lambda * (double)z->budget); /* sums are rounded */
    RQ_TRY(RQ_NEW(fewest, b->n_matrix + 1));
    RQ_TRY(RQ_NEW(most, b->n_matrix + 1));
    if (!bits_ahead(z, gap, fewest, most)) goto done;
    RQ_TRY(add_states(z, &(state){.parent = -1, .setting = -1}, 1));
    z->stage[0] = 0;
    for (int64_t m = 0; m < b->n_matrix; ++m) {
        const int64_t first = z->stage[m], n = z->n_state - first;
        int64_t count = 0;
        if (!next || n * b->n_setting > room) {
            free(next);
            room = n * b->n_setting;
            RQ_TRY(RQ_NEW(next, room));
        }
        for (int64_t i = 0; i < n; ++i) {
            for (int s = 0; s < b->n_setting; ++s) {
                double regret = z->states[first + i].regret + z->regret[m * b->n_setting + s];
                int64_t bits = z->states[first + i].bits + bits_of(b, m, s), unused = z->budget - bits - most[m + 1];
                if (bits + fewest[m + 1] > z->budget) continue;
                if (!(regret + z->lambda * (double)rq_max_i64(0, unused) < gap)) continue;
                next[count++] = (state){.bits = bits, .regret = regret, .parent = (int32_t)i, .setting = s};
            }
        }
        if (count == 0) { /* nothing is better than what is known */
            z->n_state = 0;
            goto done;
        }
        qsort(next, (size_t)count, sizeof *next, by_bits);
        count = keep_front(z, next, count);
        if (count > share) {
            qsort(next, (size_t)count, sizeof *next, by_regret);
            count = share;
            z->cut = true;
        }
        z->stage[m + 1] = z->n_state;
        RQ_TRY(add_states(z, next, count));
    }
done:
    free(next);
    free(fewest);
    free(most);
    return status;
}

/* The best state of the last stage, if it is better than the solution known. */
static void take_best(search *z, int *scratch) {
    const rq_bank *b = z->b;
    if (z->n_state <= 1) return;
    for (int64_t i = z->stage[b->n_matrix]; i < z->n_state; ++i) {
        int64_t at = i;
        double guess = z->least + z->states[i].regret - z->lambda * (double)z->states[i].bits;
        if (guess > z->best_loss + 1e-9 * fabs(z->best_loss)) continue;
        for (int64_t m = b->n_matrix; m-- > 0;) {
            scratch[m] = z->states[at].setting;
            at = z->stage[m] + z->states[at].parent;
        }
        double loss = total_loss(b, scratch);
        if (loss < z->best_loss || (loss == z->best_loss && z->states[i].bits < z->best_bits)) {
            z->best_loss = loss;
            z->best_bits = z->states[i].bits;
            memcpy(z->best, scratch, (size_t)b->n_matrix * sizeof *z->best);
        }
    }
}

rq_status rq_allocate(int *setting, rq_allocation *result, const rq_bank *bank, int64_t budget_bits,
                      int64_t max_states) {
    rq_status status = RQ_OK;
    search z = {.b = bank, .budget = budget_bits, .max_states = max_states ? max_states : MAX_STATES, .best = setting};
    int *scratch = NULL;
    RQ_TRY(check_bank(bank, max_states));
    RQ_TRY(RQ_NEW(z.edges, bank->n_matrix * bank->n_setting));
    RQ_TRY(walk_hulls(&z));
    RQ_TRY(RQ_NEW(z.regret, bank->n_matrix * bank->n_setting));
    fill_regrets(&z);
    RQ_TRY(RQ_NEW(z.stage, bank->n_matrix + 1));
    RQ_TRY(RQ_NEW(scratch, bank->n_matrix));
    RQ_TRY(run_stages(&z));
    take_best(&z, scratch);
    *result = (rq_allocation){.bits = z.best_bits, .loss = z.best_loss, .exact = !z.cut, .lambda = z.lambda};
    result->bound = z.cut ? fmin(z.best_loss, z.least - z.lambda * (double)z.budget) : z.best_loss;
done:
    free(z.edges);
    free(z.regret);
    free(z.states);
    free(z.stage);
    free(scratch);
    return status;
}
