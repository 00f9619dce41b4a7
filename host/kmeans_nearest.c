/* SPDX-License-Identifier: Apache-2.0 */
/* The nearest centroid of each point: the definition in plain C, and the choice among its twins. */
#include "kernels.h"
#include "kmeans_impl.h"
#include "simd.h"

RQ_CLONES static void nearest(uint16_t *best, const float *u, int64_t n_group, int n_feat, const float *table,
                              int64_t k) {
    enum { L = RQ_KMEANS_LANES };
    for (int64_t g = 0; g < n_group; ++g, u += n_feat * L, best += L) {
        float least[L];
        uint32_t at[L] = {0};
        const float *v = table;
        for (int64_t j = 0; j < k; ++j, v += n_feat + 1) {
            float s[L];
            for (int l = 0; l < L; ++l) s[l] = v[0];
            for (int r = 0; r < n_feat; ++r) {
                for (int l = 0; l < L; ++l) s[l] += u[r * L + l] * v[1 + r];
            }
            for (int l = 0; l < L; ++l) {
                bool less = j == 0 || s[l] < least[l];
                least[l] = less ? s[l] : least[l];
                at[l] = less ? (uint32_t)j : at[l];
            }
        }
        for (int l = 0; l < L; ++l) best[l] = (uint16_t)at[l];
    }
}

void rq_kmeans_nearest_plain(uint16_t *best, const float *u, int64_t n_group, int n_feat, const float *table,
                             int64_t k) {
    nearest(best, u, n_group, n_feat, table, k);
}

rq_kmeans_nearest_fn rq_kmeans_pick(const char **name) {
    const char *label = "c";
    rq_kmeans_nearest_fn fn = rq_kmeans_nearest_plain;
    if (name) *name = label;
    return fn;
}
