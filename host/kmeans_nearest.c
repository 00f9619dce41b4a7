/* SPDX-License-Identifier: Apache-2.0 */
/* The nearest centroid of each point: the definition in plain C, and the choice among its twins. */
#include <math.h>

#include "kernels.h"
#include "kmeans_impl.h"
#include "simd.h"

enum { L = RQ_KMEANS_LANES };

RQ_CLONES static void nearest(uint16_t *best, const float *u, int64_t n_group, int n_feat, const float *table,
                              int64_t n_block) {
    for (int64_t g = 0; g < n_group; ++g, u += n_feat * L, best += L) {
        float least[L];
        uint32_t at[L] = {0};
        for (int l = 0; l < L; ++l) least[l] = INFINITY;
        for (int64_t j = 0; j < n_block * L; ++j) {
            const float *v = table + j / L * L * (n_feat + 1) + j % L;
            float s[L];
            for (int l = 0; l < L; ++l) s[l] = v[0];
            for (int r = 0; r < n_feat; ++r) {
                for (int l = 0; l < L; ++l) s[l] = fmaf(u[r * L + l], v[(1 + r) * L], s[l]);
            }
            for (int l = 0; l < L; ++l) {
                bool less = s[l] < least[l];
                least[l] = less ? s[l] : least[l];
                at[l] = less ? (uint32_t)j : at[l];
            }
        }
        for (int l = 0; l < L; ++l) best[l] = (uint16_t)at[l];
    }
}

void rq_kmeans_nearest_plain(uint16_t *best, const float *u, int64_t n_group, int n_feat, const float *table,
                             int64_t n_block) {
    nearest(best, u, n_group, n_feat, table, n_block);
}

const rq_kmeans_twin *rq_kmeans_twin_at(int i) {
    static const rq_kmeans_twin twin[] = {
        {"c", rq_kmeans_nearest_plain},
#ifdef RQ_KMEANS_X86
        {"avx2", rq_kmeans_nearest_avx2},
        {"avx512", rq_kmeans_nearest_avx512},
#endif
    };
    static const rq_need need[] = {RQ_NEED_ANY, RQ_NEED_AVX2, RQ_NEED_AVX512};
    if (i < 0 || i >= (int)(sizeof twin / sizeof *twin) || need[i] > rq_kernel_ceiling()) return NULL;
    return &twin[i];
}

const rq_kmeans_twin *rq_kmeans_pick(void) {
    int last = 0;
    while (rq_kmeans_twin_at(last + 1)) ++last;
    return rq_kmeans_twin_at(last);
}
