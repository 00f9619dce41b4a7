/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 + FMA + F16C twins for grid codes (fmt_grid.h). The plan of gemv_grid_avx512.c with half the lanes: a block is 64
 * columns, lane l of a register holds the codes of columns 8l .. 8l + 7, x is reordered to xr[block][s][l] once per call.
 * vpermps has 8 entries here, so 2- and 3-bit groups of whole blocks look their weights up; 4-bit ones, and groups that
 * share a block, are masked, converted, shifted by the zero and scaled. Groups must be multiples of 8 (8-bit codes too);
 * others go to the C twin. Up to 4 tokens are in registers. */
#include <immintrin.h>

#include "kernels.h"

enum {
    BLOCK = 64,
    MAX_BLOCKS = 128, /* of a cut: 32 KiB of x */
    TOK = 4
};

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

typedef struct cut {
    int64_t first, n;             /* blocks [first, first + n) */
    const float *xr;              /* [token][n * BLOCK] */
    int32_t group[MAX_BLOCKS][8]; /* of every lane */
    bool single[MAX_BLOCKS];      /* one group in the block */
} cut;

/* ---- decoding a block ------------------------------------------------------------------------------------------------- */

/* p: the block's first byte, `left`: bytes of the row from there; past them reads as 0. 3 bits read 4 bytes more than the
 * block, which rows may (fmt_grid.h). */
INLINE __m256i load_codes(const unsigned char *p, int64_t left, int bits) {
    unsigned char tail[32] = {0};
    if (left < 8 * bits) {
        memcpy(tail, p, (size_t)left);
        p = tail;
    }
    if (bits == 4) return _mm256_loadu_si256((const __m256i *)p);
    if (bits == 2) return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    const __m256i three = _mm256_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1, 0, 1, 2, -1, 3, 4, 5,
                                           -1, 6, 7, 8, -1, 9, 10, 11, -1);
    __m128i lo = _mm_loadu_si128((const __m128i *)p), hi = _mm_loadu_si128((const __m128i *)(p + 12));
    return _mm256_shuffle_epi8(_mm256_set_m128i(hi, lo), three);
}

INLINE float scale_at(const rq_grid *g, int64_t k) {
    if (!g->scale_f16) return g->scale_f32[k];
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(g->scale_f16[k].bits)));
}

INLINE float zero_at(const rq_grid *g, int64_t k) { return g->zero ? (float)g->zero[k] : (float)(1 << (g->bits - 1)); }

/* Scale and zero of every lane of block b of the cut; k: the row's first group. */
INLINE void lane_groups(__m256 *scale, __m256 *zero, const rq_grid *g, int64_t k, const cut *c, int64_t b) {
    if (c->single[b]) {
        *scale = _mm256_set1_ps(scale_at(g, k + c->group[b][0]));
        *zero = _mm256_set1_ps(zero_at(g, k + c->group[b][0]));
        return;
    }
    float s[8], z[8];
    for (int l = 0; l < 8; ++l) {
        s[l] = scale_at(g, k + c->group[b][l]);
        z[l] = zero_at(g, k + c->group[b][l]);
    }
    *scale = _mm256_loadu_ps(s);
    *zero = _mm256_loadu_ps(z);
}

/* The s-th weight of every lane. */
INLINE __m256 decode(__m256i w, int s, int bits, bool lut, __m256 table, __m256 scale, __m256 zero) {
    __m256i index = s ? _mm256_srli_epi32(w, bits * s) : w;
    if (lut) return _mm256_permutevar8x32_ps(table, index); /* looks at 3 bits of the index */
    index = _mm256_and_si256(index, _mm256_set1_epi32((1 << bits) - 1));
    return _mm256_mul_ps(scale, _mm256_sub_ps(_mm256_cvtepi32_ps(index), zero));
}

/* scale * (code - zero) for every index, when the lanes share both */
INLINE __m256 group_table(int bits, __m256 scale, __m256 zero) {
    const __m256i i = _mm256_and_si256(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32((1 << bits) - 1));
    return _mm256_mul_ps(scale, _mm256_sub_ps(_mm256_cvtepi32_ps(i), zero));
}

static void cut_lanes(cut *c, const rq_grid *g) {
    for (int64_t b = 0; b < c->n; ++b) {
        int64_t col = (c->first + b) * BLOCK, k = col / g->group, next = (k + 1) * g->group;
        for (int l = 0; l < 8; ++l, col += 8) {
            if (col >= next && k + 1 < g->n_group) { /* columns past n_in repeat the last group */
                ++k;
                next += g->group;
            }
            c->group[b][l] = (int32_t)k;
        }
        c->single[b] = c->group[b][0] == c->group[b][7];
    }
}

/* ---- x in block order ------------------------------------------------------------------------------------------------- */

/* out[8][8] = in[8][8] transposed. */
INLINE void transpose(float *out, const float *in) {
    __m256 a[8], b[8];
    UNROLL for (int i = 0; i < 4; ++i) {
        __m256 even = _mm256_loadu_ps(in + 16 * i), odd = _mm256_loadu_ps(in + 16 * i + 8);
        a[2 * i] = _mm256_unpacklo_ps(even, odd);
        a[2 * i + 1] = _mm256_unpackhi_ps(even, odd);
    }
    UNROLL for (int i = 0; i < 2; ++i) {
        b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
        b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
        b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
        b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
    }
    UNROLL for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(out + 8 * i, _mm256_permute2f128_ps(b[i], b[4 + i], 0x20));
        _mm256_storeu_ps(out + 8 * (i + 4), _mm256_permute2f128_ps(b[i], b[4 + i], 0x31));
    }
}

/* One token's columns of the cut; zeros past n_in. */
static void reorder_x(float *out, const float *x, int64_t n_in, int64_t first, int64_t n_blocks) {
    for (int64_t b = 0; b < n_blocks; ++b) {
        int64_t col = (first + b) * BLOCK, left = n_in - col;
        float tail[BLOCK] = {0};
        if (left < BLOCK) memcpy(tail, x + col, (size_t)left * sizeof *x);
        transpose(out + b * BLOCK, left < BLOCK ? tail : x + col);
    }
}

/* ---- gemv ------------------------------------------------------------------------------------------------------------- */

INLINE float sum_lanes(__m256 v) {
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

/* Rows of one cut; y is that of the pass's first token, `add` is false for the first cut. bits, n_tok and lut are constants
 * where this is inlined; lut: every block lies in one group, and bits <= 3. */
INLINE void rows(float *y, const rq_grid *g, const cut *c, int64_t row0, int64_t n_rows, bool add, int bits, int n_tok,
                 bool lut) {
    const int chains = n_tok == 1 ? 4 : n_tok == 2 ? 2 : 1;
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        const unsigned char *row = (const unsigned char *)(g->words + r * g->row_words);
        __m256 sum[4], scale, zero, table = _mm256_setzero_ps();
        UNROLL for (int i = 0; i < n_tok * chains; ++i) sum[i] = _mm256_setzero_ps();
        for (int64_t b = 0; b < c->n; ++b) {
            int64_t at = (c->first + b) * 8 * bits;
            __m256i w = load_codes(row + at, g->row_words * 4 - at, bits);
            lane_groups(&scale, &zero, g, r * g->n_group, c, b);
            if (lut) table = group_table(bits, scale, zero);
            const float *xr = c->xr + b * BLOCK;
            UNROLL for (int s = 0; s < 8; ++s) {
                __m256 v = decode(w, s, bits, lut, table, scale, zero);
                UNROLL for (int t = 0; t < n_tok; ++t) {
                    int i = t * chains + s % chains;
                    sum[i] = _mm256_fmadd_ps(v, _mm256_loadu_ps(xr + t * c->n * BLOCK + 8 * s), sum[i]);
                }
            }
        }
        UNROLL for (int t = 0; t < n_tok; ++t) {
            __m256 total = sum[t * chains];
            if (chains >= 2) total = _mm256_add_ps(total, sum[t * chains + 1]);
            if (chains == 4) {
                total = _mm256_add_ps(total, _mm256_add_ps(sum[t * chains + 2], sum[t * chains + 3]));
            }
            float *out = y + t * g->n_out + r, value = sum_lanes(total);
            *out = add ? *out + value : value;
        }
    }
}

#define ROWS(bits, n_tok)                                                                                              \
    static void rows_##bits##_##n_tok(float *y, const rq_grid *g, const cut *c, int64_t row0, int64_t n_rows,          \
                                      bool add, bool lut) {                                                            \
        if (bits < 4 && lut)                                                                                           \
            rows(y, g, c, row0, n_rows, add, bits, n_tok, true);                                                       \
        else                                                                                                           \
            rows(y, g, c, row0, n_rows, add, bits, n_tok, false);                                                      \
    }
#define ROWS_ALL(bits) ROWS(bits, 1) ROWS(bits, 2) ROWS(bits, 3) ROWS(bits, 4)
ROWS_ALL(2)
ROWS_ALL(3)
ROWS_ALL(4)

typedef void (*rows_fn)(float *y, const rq_grid *g, const cut *c, int64_t row0, int64_t n_rows, bool add, bool lut);
#define ROWS_LIST(bits)                                                                                                \
    { NULL, rows_##bits##_1, rows_##bits##_2, rows_##bits##_3, rows_##bits##_4 }
static const rows_fn rows_table[5][TOK + 1] = {[2] = ROWS_LIST(2), [3] = ROWS_LIST(3), [4] = ROWS_LIST(4)};

static void gemv_blocks(float *y, const rq_grid *g, const float *x, int64_t n_tok, int64_t row0, int64_t n_rows) {
    float xr[MAX_BLOCKS * BLOCK];
    cut c;
    int64_t n_blocks = (g->n_in + BLOCK - 1) / BLOCK, step = MAX_BLOCKS / (n_tok < TOK ? n_tok : TOK);
    bool lut = g->group % BLOCK == 0 || g->group >= g->n_in;
    c.xr = xr;
    for (c.first = 0; c.first < n_blocks; c.first += step) {
        c.n = n_blocks - c.first < step ? n_blocks - c.first : step;
        cut_lanes(&c, g);
        for (int64_t t = 0, n; t < n_tok; t += n) {
            n = n_tok - t < TOK ? n_tok - t : TOK;
            for (int64_t i = 0; i < n; ++i)
                reorder_x(xr + i * c.n * BLOCK, x + (t + i) * g->n_in, g->n_in, c.first, c.n);
            rows_table[g->bits][n](y + t * g->n_out, g, &c, row0, n_rows, c.first > 0, lut);
        }
    }
}

/* 8 columns of 8-bit codes as fp32 weights; n: columns that exist. */
INLINE __m256 weights8(const unsigned char *codes, int64_t n, __m256 zero, __m256 scale) {
    uint64_t q = 0;
    memcpy(&q, codes, n < 8 ? (size_t)n : 8);
    __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)q));
    return _mm256_mul_ps(scale, _mm256_sub_ps(_mm256_cvtepi32_ps(wide), zero));
}

static void gemv_8bit(float *y, const rq_grid *g, const float *x, int64_t n_tok, int64_t row0, int64_t n_rows) {
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        const unsigned char *row = (const unsigned char *)(g->words + r * g->row_words);
        __m256 sum[RQ_GEMV_MAX_TOK];
        for (int64_t t = 0; t < n_tok; ++t) sum[t] = _mm256_setzero_ps();
        for (int64_t k = 0; k < g->n_group; ++k) {
            int64_t end = (k + 1) * g->group < g->n_in ? (k + 1) * g->group : g->n_in;
            __m256 scale = _mm256_set1_ps(scale_at(g, r * g->n_group + k));
            __m256 zero = _mm256_set1_ps(zero_at(g, r * g->n_group + k));
            for (int64_t j = k * g->group; j < end; j += 8) {
                int64_t n = end - j;
                __m256 v = weights8(row + j, n, zero, scale);
                for (int64_t t = 0; t < n_tok; ++t) {
                    const float *xt = x + t * g->n_in + j;
                    float tail[8] = {0};
                    if (n < 8) memcpy(tail, xt, (size_t)n * sizeof *xt);
                    sum[t] = _mm256_fmadd_ps(v, _mm256_loadu_ps(n < 8 ? tail : xt), sum[t]);
                }
            }
        }
        for (int64_t t = 0; t < n_tok; ++t) y[t * g->n_out + r] = sum_lanes(sum[t]);
    }
}

/* Whether groups fall on the lanes of this file. */
static bool fits(const rq_grid *g) { return g->group >= g->n_in || g->group % 8 == 0; }

RQ_OP_gemv(rq_gemv_grid_avx2, rq_grid) {
    if (!fits(w))
        rq_gemv_grid_c(y, w, x, n_tok, row0, n_rows);
    else if (w->bits == 8)
        gemv_8bit(y, w, x, n_tok, row0, n_rows);
    else
        gemv_blocks(y, w, x, n_tok, row0, n_rows);
}

/* ---- unpack ----------------------------------------------------------------------------------------------------------- */

INLINE void unpack_cut(float *dst, const rq_grid *g, const cut *c, int64_t row0, int64_t n_rows, int bits) {
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        const unsigned char *row = (const unsigned char *)(g->words + r * g->row_words);
        for (int64_t b = 0; b < c->n; ++b) {
            int64_t at = (c->first + b) * 8 * bits, col = (c->first + b) * BLOCK, left = g->n_in - col;
            float *out = dst + (r - row0) * g->n_in + col;
            float order[BLOCK], rows_of[BLOCK];
            __m256 scale, zero;
            __m256i w = load_codes(row + at, g->row_words * 4 - at, bits);
            lane_groups(&scale, &zero, g, r * g->n_group, c, b);
            UNROLL for (int s = 0; s < 8; ++s) {
                _mm256_storeu_ps(order + 8 * s, decode(w, s, bits, false, scale, scale, zero));
            }
            if (left >= BLOCK) {
                transpose(out, order);
            } else {
                transpose(rows_of, order);
                memcpy(out, rows_of, (size_t)left * sizeof *out);
            }
        }
    }
}

static void unpack_8bit(float *dst, const rq_grid *g, int64_t row0, int64_t n_rows) {
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        const unsigned char *row = (const unsigned char *)(g->words + r * g->row_words);
        float *out = dst + (r - row0) * g->n_in, tail[8];
        for (int64_t k = 0; k < g->n_group; ++k) {
            int64_t end = (k + 1) * g->group < g->n_in ? (k + 1) * g->group : g->n_in;
            __m256 scale = _mm256_set1_ps(scale_at(g, r * g->n_group + k));
            __m256 zero = _mm256_set1_ps(zero_at(g, r * g->n_group + k));
            for (int64_t j = k * g->group; j < end; j += 8) {
                bool whole = end - j >= 8;
                _mm256_storeu_ps(whole ? out + j : tail, weights8(row + j, end - j, zero, scale));
                if (!whole) memcpy(out + j, tail, (size_t)(end - j) * sizeof *out);
            }
        }
    }
}

RQ_OP_unpack(rq_unpack_grid_avx2, rq_grid) {
    if (!fits(w)) {
        rq_unpack_grid_c(dst, w, row0, n_rows);
        return;
    }
    if (w->bits == 8) {
        unpack_8bit(dst, w, row0, n_rows);
        return;
    }
    int64_t n_blocks = (w->n_in + BLOCK - 1) / BLOCK;
    cut c;
    for (c.first = 0; c.first < n_blocks; c.first += MAX_BLOCKS) {
        c.n = n_blocks - c.first < MAX_BLOCKS ? n_blocks - c.first : MAX_BLOCKS;
        cut_lanes(&c, w);
        if (w->bits == 2)
            unpack_cut(dst, w, &c, row0, n_rows, 2);
        else if (w->bits == 3)
            unpack_cut(dst, w, &c, row0, n_rows, 3);
        else
            unpack_cut(dst, w, &c, row0, n_rows, 4);
    }
}
