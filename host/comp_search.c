/* SPDX-License-Identifier: Apache-2.0 */
/* The inner loop of codebook searches: scores of all codes as sums of table rows, and the least of them. Sixty-four codes at a
 * time stay in registers while the rows go by. */
#include <math.h>

#include "comp_book.h"
#include "simd.h"

/* Sixteen lanes; a compiler without such registers takes them apart. */
typedef float lanes __attribute__((vector_size(64)));
typedef int32_t lanes_i __attribute__((vector_size(64)));

enum { N_LANES = 16 };

typedef struct least {
    lanes score;
    lanes_i index;
} least;

static inline __attribute__((always_inline)) void keep_least(least *l, const lanes *scores, int64_t first, int64_t k) {
    const lanes score = *scores; /* by address: as an argument it would need an instruction set of its own */
    const lanes_i step = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    lanes_i index = step + (int32_t)first;
    lanes_i better = (score < l->score) & (index < (int32_t)k);
    l->score = (lanes)((better & (lanes_i)score) | (~better & (lanes_i)l->score));
    l->index = (better & index) | (~better & l->index);
}

RQ_CLONES static int64_t best_code(const float *a, const float *ca, int64_t na, const float *b, const float *cb,
                                   int64_t nb, int64_t k, int64_t k_pad) {
    const lanes zero = {0};
    least l = {zero + INFINITY, {0}};
    for (int64_t j = 0; j < k; j += RQ_SEARCH_PAD) {
        lanes s0 = zero, s1 = zero, s2 = zero, s3 = zero;
        for (int64_t p = 0; p < na; ++p) {
            const lanes *row = (const lanes *)(const void *)(a + p * k_pad + j);
            float c = ca[p];
            s0 += c * row[0];
            s1 += c * row[1];
            s2 += c * row[2];
            s3 += c * row[3];
        }
        for (int64_t p = 0; p < nb; ++p) {
            const lanes *row = (const lanes *)(const void *)(b + p * k_pad + j);
            float c = cb[p];
            s0 += c * row[0];
            s1 += c * row[1];
            s2 += c * row[2];
            s3 += c * row[3];
        }
        keep_least(&l, &s0, j, k);
        keep_least(&l, &s1, j + N_LANES, k);
        keep_least(&l, &s2, j + 2 * N_LANES, k);
        keep_least(&l, &s3, j + 3 * N_LANES, k);
    }
    float best = INFINITY;
    int64_t at = 0;
    for (int i = 0; i < N_LANES; ++i) {
        if (l.score[i] < best || (l.score[i] == best && l.index[i] < at)) {
            best = l.score[i];
            at = l.index[i];
        }
    }
    return at;
}

int64_t rq_best_code(const float *a, const float *ca, int64_t na, const float *b, const float *cb, int64_t nb,
                     int64_t k, int64_t k_pad) {
    return best_code(a, ca, na, b, cb, nb, k, k_pad);
}
