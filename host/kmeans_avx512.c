/* SPDX-License-Identifier: Apache-2.0 */
/* The AVX-512 twin of kmeans_nearest.c. Points are in lanes and stay in registers; centroids are broadcast from a table that stays in
 * cache; no distance is written. While centroids pass, only the smallest score so far and the block of 16 centroids that
 * brought it are kept: one minimum a score and two instructions a block. Then the 16 scores of that block are made again, with
 * centroids in lanes, by the same chain of multiply-adds, and the first one equal to the minimum is the answer. */
#include <math.h>

#include "kmeans_impl.h"
#include "simd_avx512.h"

#ifdef RQ_KMEANS_X86
/* Loops over features: clang unrolls those of constant length by itself, and warns when it is told to unroll the other one. */
#ifdef __clang__
#define FEATURES
#else
#define FEATURES UNROLL
#endif

enum { L = RQ_KMEANS_LANES };

enum { KEPT = 16 }; /* most features that stay in registers; more are read from cache again and again */

/* n_vec groups of points from u on, [n_vec][n_feat][L]. */
INLINE void groups(uint16_t *best, const float *u, int n_vec, bool keep, int n_feat, const float *table,
                   int64_t n_block) {
    const int64_t block_floats = (n_feat + 1) * L;
    __m512 x[RQ_KMEANS_TILE / L][KEPT], least[RQ_KMEANS_TILE / L];
    __m512i block[RQ_KMEANS_TILE / L];
    UNROLL for (int q = 0; q < n_vec; ++q) {
        FEATURES for (int r = 0; keep && r < n_feat; ++r) x[q][r] = _mm512_loadu_ps(u + (q * n_feat + r) * L);
        least[q] = _mm512_set1_ps(INFINITY);
        block[q] = _mm512_setzero_si512();
    }
    const float *v = table;
    for (int64_t b = 0; b < n_block; ++b, v += block_floats) {
        __m512 now[RQ_KMEANS_TILE / L];
        UNROLL for (int q = 0; q < n_vec; ++q) now[q] = least[q];
        for (int j = 0; j < L; j += 4 / n_vec) { /* four chains at a time */
            __m512 s[4][RQ_KMEANS_TILE / L];
            UNROLL for (int i = 0; i < 4 / n_vec; ++i) {
                UNROLL for (int q = 0; q < n_vec; ++q) s[i][q] = _mm512_set1_ps(v[j + i]);
            }
            FEATURES for (int r = 0; r < n_feat; ++r) {
                UNROLL for (int i = 0; i < 4 / n_vec; ++i) {
                    __m512 c = _mm512_set1_ps(v[(1 + r) * L + j + i]);
                    UNROLL for (int q = 0; q < n_vec; ++q) {
                        __m512 xr = keep ? x[q][r] : _mm512_loadu_ps(u + (q * n_feat + r) * L);
                        s[i][q] = _mm512_fmadd_ps(xr, c, s[i][q]);
                    }
                }
            }
            UNROLL for (int i = 0; i < 4 / n_vec; ++i) {
                UNROLL for (int q = 0; q < n_vec; ++q) now[q] = _mm512_min_ps(s[i][q], now[q]);
            }
        }
        UNROLL for (int q = 0; q < n_vec; ++q) {
            __mmask16 less = _mm512_cmp_ps_mask(now[q], least[q], _CMP_LT_OQ);
            block[q] = _mm512_mask_mov_epi32(block[q], less, _mm512_set1_epi32((int)b));
            least[q] = now[q];
        }
    }
    UNROLL for (int q = 0; q < n_vec; ++q) {
        float score[L];
        int32_t at[L];
        _mm512_storeu_ps(score, least[q]);
        _mm512_storeu_si512(at, block[q]);
        for (int l = 0; l < L; ++l) {
            const float *from = table + at[l] * block_floats, *xl = u + q * n_feat * L + l;
            __m512 s = _mm512_loadu_ps(from);
            FEATURES for (int r = 0; r < n_feat; ++r) {
                s = _mm512_fmadd_ps(_mm512_set1_ps(xl[r * L]), _mm512_loadu_ps(from + (1 + r) * L), s);
            }
            __mmask16 equal = _mm512_cmp_ps_mask(s, _mm512_set1_ps(score[l]), _CMP_EQ_OQ);
            best[q * L + l] = (uint16_t)(at[l] * L + __builtin_ctz(equal));
        }
    }
}

INLINE void all(uint16_t *best, const float *u, int64_t n_group, int n_vec, bool keep, int n_feat, const float *table,
                int64_t n_block) {
    for (int64_t g = 0; g < n_group; g += n_vec) {
        groups(best + g * L, u + g * n_feat * L, n_vec, keep, n_feat, table, n_block);
    }
}

void rq_kmeans_nearest_avx512(uint16_t *best, const float *u, int64_t n_group, int n_feat, const float *table,
                              int64_t n_block) {
    /* Two groups while both fit the registers: then a broadcast serves two multiply-adds. */
    switch (n_feat) {
    case 1: all(best, u, n_group, 2, true, 1, table, n_block); break;
    case 2: all(best, u, n_group, 2, true, 2, table, n_block); break;
    case 3: all(best, u, n_group, 2, true, 3, table, n_block); break;
    case 4: all(best, u, n_group, 2, true, 4, table, n_block); break;
    case 5: all(best, u, n_group, 2, true, 5, table, n_block); break;
    case 6: all(best, u, n_group, 2, true, 6, table, n_block); break;
    case 7: all(best, u, n_group, 2, true, 7, table, n_block); break;
    case 8: all(best, u, n_group, 2, true, 8, table, n_block); break;
    case 12: all(best, u, n_group, 1, true, 12, table, n_block); break;
    case 16: all(best, u, n_group, 1, true, 16, table, n_block); break;
    default: all(best, u, n_group, 1, false, n_feat, table, n_block); break;
    }
}
#endif
