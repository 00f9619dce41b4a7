/* SPDX-License-Identifier: Apache-2.0 */
/* Sign-split vectors: magnitudes from a codebook, a sign for each weight (SSVQ). With signs sigma the cost of codeword c for the
 * target t under the metric M is, but for t M t,
 *
 *   s^2 sum_{r <= u} (2 - [r = u]) sigma_r sigma_u M_ru c_r c_u  -  2 s sum_r sigma_r (M t)_r c_r
 *
 * which is linear in the products c_r c_u: they are tabulated for each codebook, squares first, then c itself, so a search is one
 * sum of table rows for each set of signs. Signs start as the target's; then the flip that gains most is taken while one
 * does, and the search repeats with the new signs. Under a diagonal metric the target's signs are exact. */
#include "comp_book.h"

enum { MAX_ROUNDS = 3 };

static int64_t n_table(int d) { return d * (d + 1) / 2 + d; }

/* Rows: d squares, products r < u, d values. */
static void make_table(float *table, const float *value, int d, int64_t k, int64_t k_pad) {
    int64_t row = 0;
    memset(table, 0, (size_t)(n_table(d) * k_pad) * sizeof *table);
    for (int r = 0; r < d; ++r, ++row) {
        for (int64_t c = 0; c < k; ++c) table[row * k_pad + c] = value[c * d + r] * value[c * d + r];
    }
    for (int r = 0; r < d; ++r) {
        for (int u = r + 1; u < d; ++u, ++row) {
            for (int64_t c = 0; c < k; ++c) table[row * k_pad + c] = value[c * d + r] * value[c * d + u];
        }
    }
    for (int r = 0; r < d; ++r, ++row) {
        for (int64_t c = 0; c < k; ++c) table[row * k_pad + c] = value[c * d + r];
    }
}

static int64_t search(const rq_pick *p, const float *mt, float s, const float *sign) {
    const rq_book *b = p->book;
    int d = b->d, n_square = p->diagonal ? d : d * (d + 1) / 2, at = d;
    float quadratic[RQ_VEC_MAX * (RQ_VEC_MAX + 1) / 2], linear[RQ_VEC_MAX];
    const float *table = b->table[0] + p->which * b->n_table * b->k_pad[0];
    for (int r = 0; r < d; ++r) {
        quadratic[r] = s * p->metric[r * d + r];
        linear[r] = -2 * sign[r] * mt[r];
        for (int u = r + 1; u < d && !p->diagonal; ++u)
            quadratic[at++] = 2 * s * sign[r] * sign[u] * p->metric[r * d + u];
    }
    return rq_best_code(table, quadratic, n_square, table + d * (d + 1) / 2 * b->k_pad[0], linear, d, b->k[0],
                        b->k_pad[0]);
}

/* Take the flip that lowers the cost most while there is one; me = M (q - t). Returns whether any was taken. */
static bool flip_signs(const rq_pick *p, float *q, float *me, float *sign) {
    int d = p->book->d;
    bool any = false;
    for (int turn = 0; turn < 2 * d; ++turn) { /* each turn lowers the cost; the bound is for rounding */
        float best = 0;
        int at = -1;
        for (int r = 0; r < d; ++r) {
            float step = -2 * q[r], gain = step * (step * p->metric[r * d + r] + 2 * me[r]);
            if (gain < best) {
                best = gain;
                at = r;
            }
        }
        if (at < 0) break;
        float step = -2 * q[at];
        for (int r = 0; r < d; ++r) me[r] += step * p->metric[at * d + r];
        q[at] = -q[at];
        sign[at] = -sign[at];
        any = true;
    }
    return any;
}

static void pick_one(const rq_pick *p, const float *t, float s, rq_vec_code *code, float *q) {
    const rq_book *b = p->book;
    int d = b->d;
    float mt[RQ_VEC_MAX], me[RQ_VEC_MAX], sign[RQ_VEC_MAX];
    int64_t c = 0, before = -1;
    for (int r = 0; r < d; ++r) {
        float sum = 0;
        for (int u = 0; u < d; ++u) sum += p->diagonal && u != r ? 0 : p->metric[r * d + u] * t[u];
        mt[r] = sum;
        sign[r] = t[r] < 0 ? -1.0f : 1.0f;
    }
    for (int round = 0; round < MAX_ROUNDS; ++round) {
        c = search(p, mt, s, sign);
        if (c == before) break; /* the flips were found with this codeword */
        before = c;
        const float *v = b->value[0] + (p->which * b->k[0] + c) * d;
        for (int r = 0; r < d; ++r) q[r] = s * sign[r] * v[r];
        if (p->diagonal) break;
        for (int r = 0; r < d; ++r) {
            float sum = -mt[r];
            for (int u = 0; u < d; ++u) sum += p->metric[r * d + u] * q[u];
            me[r] = sum;
        }
        if (!flip_signs(p, q, me, sign)) break;
    }
    *code = (rq_vec_code){{(uint16_t)c, 0}, 0};
    for (int r = 0; r < d; ++r) code->negative = (uint16_t)(code->negative | (sign[r] < 0) << r);
}

static void pick(const rq_pick *p) {
    int d = p->book->d;
    for (int64_t i = 0; i < p->n; ++i) pick_one(p, p->t + i * d, p->s[i], &p->code[i], p->q + i * d);
}

static const rq_vec_rounder vec = {RQ_FORMAT_SSVQ, true, n_table, make_table, pick};
const rq_rounder rq_round_ssvq = {.name = "ssvq", .vec = &vec};
