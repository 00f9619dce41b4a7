/* SPDX-License-Identifier: Apache-2.0 */
/* The AVX2 twin of kmeans_nearest.c, on the plan of kmeans_avx512.c with half as many lanes and registers: a group of 16 points is two
 * vectors, which meet four centroids at a time. */
#include <math.h>

#include "kmeans_impl.h"
#include "simd_avx2.h"

#ifdef RQ_KMEANS_X86
enum { L = RQ_KMEANS_LANES, CHAINS = 4 };

/* A group of points, u [n_feat][L]. */
INLINE void group(uint16_t *best, const float *u, int n_feat, const float *table, int64_t n_block) {
    const int64_t block_floats = (n_feat + 1) * L;
    __m256 least[2] = {_mm256_set1_ps(INFINITY), _mm256_set1_ps(INFINITY)};
    __m256i block[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    const float *v = table;
    for (int64_t b = 0; b < n_block; ++b, v += block_floats) {
        __m256 now[2] = {least[0], least[1]};
        for (int j = 0; j < L; j += CHAINS) {
            __m256 s[CHAINS][2];
            UNROLL for (int i = 0; i < CHAINS; ++i) s[i][0] = s[i][1] = _mm256_set1_ps(v[j + i]);
            for (int r = 0; r < n_feat; ++r) {
                __m256 x0 = _mm256_loadu_ps(u + r * L), x1 = _mm256_loadu_ps(u + r * L + 8);
                UNROLL for (int i = 0; i < CHAINS; ++i) {
                    __m256 c = _mm256_set1_ps(v[(1 + r) * L + j + i]);
                    s[i][0] = _mm256_fmadd_ps(x0, c, s[i][0]);
                    s[i][1] = _mm256_fmadd_ps(x1, c, s[i][1]);
                }
            }
            UNROLL for (int i = 0; i < CHAINS; ++i) {
                UNROLL for (int h = 0; h < 2; ++h) now[h] = _mm256_min_ps(s[i][h], now[h]);
            }
        }
        UNROLL for (int h = 0; h < 2; ++h) {
            __m256i less = _mm256_castps_si256(_mm256_cmp_ps(now[h], least[h], _CMP_LT_OQ));
            block[h] = _mm256_blendv_epi8(block[h], _mm256_set1_epi32((int)b), less);
            least[h] = now[h];
        }
    }
    float score[L];
    int32_t at[L];
    UNROLL for (int h = 0; h < 2; ++h) {
        _mm256_storeu_ps(score + 8 * h, least[h]);
        _mm256_storeu_si256((__m256i *)(at + 8 * h), block[h]);
    }
    for (int l = 0; l < L; ++l) {
        const float *from = table + at[l] * block_floats;
        __m256 s0 = _mm256_loadu_ps(from), s1 = _mm256_loadu_ps(from + 8), want = _mm256_set1_ps(score[l]);
        for (int r = 0; r < n_feat; ++r) {
            __m256 x = _mm256_set1_ps(u[r * L + l]);
            s0 = _mm256_fmadd_ps(x, _mm256_loadu_ps(from + (1 + r) * L), s0);
            s1 = _mm256_fmadd_ps(x, _mm256_loadu_ps(from + (1 + r) * L + 8), s1);
        }
        int equal = _mm256_movemask_ps(_mm256_cmp_ps(s0, want, _CMP_EQ_OQ)) |
                    _mm256_movemask_ps(_mm256_cmp_ps(s1, want, _CMP_EQ_OQ)) << 8;
        best[l] = (uint16_t)(at[l] * L + __builtin_ctz((unsigned)equal));
    }
}

INLINE void all(uint16_t *best, const float *u, int64_t n_group, int n_feat, const float *table, int64_t n_block) {
    for (int64_t g = 0; g < n_group; ++g) group(best + g * L, u + g * n_feat * L, n_feat, table, n_block);
}

void rq_kmeans_nearest_avx2(uint16_t *best, const float *u, int64_t n_group, int n_feat, const float *table,
                            int64_t n_block) {
    switch (n_feat) {
    case 4: all(best, u, n_group, 4, table, n_block); break;
    case 8: all(best, u, n_group, 8, table, n_block); break;
    default: all(best, u, n_group, n_feat, table, n_block); break;
    }
}
#endif
