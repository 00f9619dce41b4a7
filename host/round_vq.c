/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors along the inputs from a codebook, or as the sum of entries of two (AQLM's additive codes, VPTQ's residual stage). The
 * cost of codeword c for the target t under the metric M is s c M c - 2 (M t) c, times s, but for t M t. c M c is tabulated
 * for the block of columns at hand, so the exact metric costs what the Euclidean one does. With two stages one is searched
 * with the other held, in turns, until neither changes: no turn raises the cost. */
#include "comp_book.h"
#include "simd.h"

enum { MAX_ROUNDS = 4 };

static int64_t n_table(int d) { return d; }

static void make_table(float *table, const float *value, int d, int64_t k, int64_t k_pad) {
    memset(table, 0, (size_t)(d * k_pad) * sizeof *table);
    for (int r = 0; r < d; ++r) {
        for (int64_t c = 0; c < k; ++c) table[r * k_pad + c] = value[c * d + r];
    }
}

RQ_CLONES static void add_products(float *restrict norm, const float *restrict a, const float *restrict b, float f,
                                   int64_t n) {
    for (int64_t c = 0; c < n; ++c) norm[c] += f * a[c] * b[c];
}

static void norms(const rq_pick *p, int stage, float *norm) {
    const rq_book *b = p->book;
    int64_t pad = b->k_pad[stage];
    const float *table = b->table[stage] + p->which * b->n_table * pad;
    memset(norm, 0, (size_t)pad * sizeof *norm);
    for (int r = 0; r < b->d; ++r) {
        for (int u = r; u < b->d; ++u) {
            float m = p->metric[r * b->d + u];
            if (u > r && (p->diagonal || m == 0)) continue;
            add_products(norm, table + r * pad, table + u * pad, u > r ? 2 * m : m, pad);
        }
    }
}

static int64_t search(const rq_pick *p, int stage, const float *norm, const float *t, float s) {
    const rq_book *b = p->book;
    int d = b->d;
    float linear[RQ_VEC_MAX];
    for (int r = 0; r < d; ++r) {
        float sum = 0;
        for (int u = 0; u < d; ++u) sum += p->diagonal && u != r ? 0 : p->metric[r * d + u] * t[u];
        linear[r] = -2 * sum;
    }
    return rq_best_code(b->table[stage] + p->which * b->n_table * b->k_pad[stage], linear, d, norm, &s, 1, b->k[stage],
                        b->k_pad[stage]);
}

static void pick(const rq_pick *p) {
    const rq_book *b = p->book;
    int d = b->d;
    float *norm[2] = {p->scratch, p->scratch + b->k_pad[0]};
    norms(p, 0, norm[0]);
    if (b->n_stage > 1) norms(p, 1, norm[1]);
    for (int64_t i = 0; i < p->n; ++i) {
        const float *t = p->t + i * d;
        float s = p->s[i], *q = p->q + i * d, rest[RQ_VEC_MAX];
        const float *v[2] = {b->value[0] + p->which * b->k[0] * d, NULL};
        int64_t c[2] = {search(p, 0, norm[0], t, s), 0};
        if (b->n_stage > 1) v[1] = b->value[1] + p->which * b->k[1] * d;
        for (int round = 0; b->n_stage > 1 && round < MAX_ROUNDS; ++round) {
            int64_t was[2] = {c[0], c[1]};
            for (int r = 0; r < d; ++r) rest[r] = t[r] - s * v[0][c[0] * d + r];
            c[1] = search(p, 1, norm[1], rest, s);
            for (int r = 0; r < d; ++r) rest[r] = t[r] - s * v[1][c[1] * d + r];
            c[0] = search(p, 0, norm[0], rest, s);
            if (round > 0 && c[0] == was[0] && c[1] == was[1]) break;
        }
        for (int r = 0; r < d; ++r) {
            float sum = v[0][c[0] * d + r];
            if (v[1]) sum += v[1][c[1] * d + r];
            q[r] = s * sum;
        }
        p->code[i] = (rq_vec_code){{(uint16_t)c[0], (uint16_t)c[1]}, 0};
    }
}

static const rq_vec_rounder vec = {RQ_FORMAT_VQ, false, n_table, make_table, pick};
const rq_rounder rq_round_vq = {.name = "vq", .vec = &vec};
