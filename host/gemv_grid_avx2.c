/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 + FMA + F16C twins for grid codes (fmt_grid.h). The plan of gemv_grid_avx512.c with half the lanes: a block is 64
 * columns, lane l of a register holds the codes of columns 8l .. 8l + 7, x is reordered to xr[block][s][l] once per call.
 * vpermps has 8 entries here, so 2- and 3-bit groups of whole blocks look their weights up; 4-bit ones, and groups that
 * share a block, are masked, converted, shifted by the zero and scaled. Groups must be multiples of 8 (8-bit codes too);
 * others go to the C twin. Up to 4 tokens and 2 rows are in
 * registers. */
#include "simd_avx2.h"

enum { BLOCK = 64, MAX_BLOCKS = XR_FLOATS / BLOCK };

typedef struct cut {
    int64_t first, n;             /* blocks [first, first + n) */
    const float *xr;              /* [n blocks][token][8][8] */
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

/* Columns of the cut for n_tok tokens; zeros past n_in. */
static void reorder_x(float *xr, const float *x, int64_t n_in, int64_t n_tok, int64_t first, int64_t n_blocks) {
    for (int64_t b = 0; b < n_blocks; ++b) {
        int64_t col = (first + b) * BLOCK, left = n_in - col;
        for (int64_t t = 0; t < n_tok; ++t, xr += BLOCK) {
            float tail[BLOCK] = {0};
            const float *from = x + t * n_in + col;
            if (left < BLOCK) from = memcpy(tail, from, (size_t)left * sizeof *from);
            transpose(xr, from);
        }
    }
}

/* ---- gemv ------------------------------------------------------------------------------------------------------------- */

typedef struct part {
    float *y; /* of the first token of this pass, row 0 */
    const rq_grid *g;
    const cut *c;
    int64_t row0, n_rows;
    bool add; /* not the first cut */
} part;

/* n_rows rows from r on, over one cut, for n_tok tokens; lut: every block lies in one group, and bits <= 3. All but r are
 * constants where this is inlined. */
INLINE void block_rows(const part *p, int64_t r, int n_rows, int bits, int n_tok, bool lut) {
    const rq_grid *g = p->g;
    const cut *c = p->c;
    const int chains = chains_of(n_tok);
    const int64_t at = c->first * 8 * bits, left = g->row_words * 4 - at;
    const unsigned char *row[2];
    __m256 sum[2 * PASS_TOK * 4], scale[2], zero[2], table[2];
    UNROLL for (int i = 0; i < n_rows; ++i) row[i] = (const unsigned char *)(g->words + (r + i) * g->row_words) + at;
    UNROLL for (int i = 0; i < n_rows * n_tok * chains; ++i) sum[i] = _mm256_setzero_ps();
    for (int64_t b = 0; b < c->n; ++b) {
        __m256i w[2];
        UNROLL for (int i = 0; i < n_rows; ++i) {
            w[i] = load_codes(row[i] + b * 8 * bits, left - b * 8 * bits, bits);
            _mm_prefetch((const char *)(row[i] + b * 8 * bits + ROWS_AHEAD * g->row_words * 4), _MM_HINT_T0);
            lane_groups(&scale[i], &zero[i], g, (r + i) * g->n_group, c, b);
            table[i] = lut ? group_table(bits, scale[i], zero[i]) : scale[i];
        }
        const float *xr = c->xr + b * n_tok * BLOCK;
        UNROLL for (int s = 0; s < 8; ++s) {
            __m256 v[2];
            UNROLL for (int i = 0; i < n_rows; ++i) v[i] = decode(w[i], s, bits, lut, table[i], scale[i], zero[i]);
            UNROLL for (int t = 0; t < n_tok; ++t) {
                __m256 xt = _mm256_loadu_ps(xr + t * BLOCK + 8 * s);
                UNROLL for (int i = 0; i < n_rows; ++i) {
                    __m256 *to = &sum[(i * n_tok + t) * chains + s % chains];
                    *to = _mm256_fmadd_ps(v[i], xt, *to);
                }
            }
        }
    }
    UNROLL for (int i = 0; i < n_rows; ++i) {
        UNROLL for (int t = 0; t < n_tok; ++t) {
            finish(p->y + t * g->n_out + r + i, &sum[(i * n_tok + t) * chains], chains, p->add);
        }
    }
}

INLINE void block_all_rows(const part *p, int bits, int n_tok, bool lut) {
    int64_t r = p->row0, end = p->row0 + p->n_rows;
    for (; r + 2 <= end; r += 2) block_rows(p, r, 2, bits, n_tok, lut);
    if (r < end) block_rows(p, r, 1, bits, n_tok, lut); /* the same sums in the same order */
}

#define ROWS(bits, n_tok)                                                                                              \
    static void rows_##bits##_##n_tok(const part *p, bool lut) {                                                       \
        if (bits < 4 && lut)                                                                                           \
            block_all_rows(p, bits, n_tok, true);                                                                      \
        else                                                                                                           \
            block_all_rows(p, bits, n_tok, false);                                                                     \
    }
#define ROWS_ALL(bits) ROWS(bits, 1) ROWS(bits, 2) ROWS(bits, 3) ROWS(bits, 4)
ROWS_ALL(2)
ROWS_ALL(3)
ROWS_ALL(4)

typedef void (*rows_fn)(const part *p, bool lut);
#define ROWS_LIST(bits)                                                                                                \
    { NULL, rows_##bits##_1, rows_##bits##_2, rows_##bits##_3, rows_##bits##_4 }
static const rows_fn rows_table[5][PASS_TOK + 1] = {[2] = ROWS_LIST(2), [3] = ROWS_LIST(3), [4] = ROWS_LIST(4)};

static void gemv_blocks(float *y, const rq_grid *g, const float *x, int64_t n_tok, int64_t row0, int64_t n_rows) {
    float xr[XR_FLOATS] __attribute__((aligned(64)));
    cut c;
    int64_t n_blocks = (g->n_in + BLOCK - 1) / BLOCK, step = MAX_BLOCKS / (n_tok < PASS_TOK ? n_tok : PASS_TOK);
    bool lut = g->group % BLOCK == 0 || g->group >= g->n_in;
    c.xr = xr;
    for (c.first = 0; c.first < n_blocks; c.first += step) {
        c.n = n_blocks - c.first < step ? n_blocks - c.first : step;
        cut_lanes(&c, g);
        for (int64_t t = 0, n; t < n_tok; t += n) {
            n = pass_tokens(n_tok - t);
            reorder_x(xr, x + t * g->n_in, g->n_in, n, c.first, c.n);
            part p = {y + t * g->n_out, g, &c, row0, n_rows, c.first > 0};
            rows_table[g->bits][n](&p, lut);
        }
    }
}

/* ---- 8 bits ----------------------------------------------------------------------------------------------------------- */

/* 8 columns of codes as fp32 weights; n: columns that exist. */
INLINE __m256 weights8(const unsigned char *codes, int64_t n, __m256 zero, __m256 scale) {
    uint64_t q = 0;
    if (n >= 8)
        memcpy(&q, codes, 8);
    else
        memcpy(&q, codes, (size_t)n);
    __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)q));
    return _mm256_mul_ps(scale, _mm256_sub_ps(_mm256_cvtepi32_ps(wide), zero));
}

/* n runs of 8 columns from j on, one for each chain; left: columns that exist; xr: their packed x. */
INLINE void step8(__m256 *sum, const rq_grid *g, int64_t r, int n_rows, int n_tok, int n, const float *xr, int64_t j,
                  int64_t left, const __m256 *scale, const __m256 *zero) {
    const int chains = chains_of(n_tok);
    UNROLL for (int q = 0; q < n; ++q) {
        __m256 v[2];
        UNROLL for (int i = 0; i < n_rows; ++i) {
            const unsigned char *row = (const unsigned char *)(g->words + (r + i) * g->row_words);
            v[i] = weights8(row + j + 8 * q, left, zero[i], scale[i]);
        }
        UNROLL for (int t = 0; t < n_tok; ++t) {
            __m256 xt = _mm256_loadu_ps(xr + (q * n_tok + t) * 8);
            UNROLL for (int i = 0; i < n_rows; ++i) {
                __m256 *to = &sum[(i * n_tok + t) * chains + q];
                *to = _mm256_fmadd_ps(v[i], xt, *to);
            }
        }
    }
}

INLINE void rows8(float *y, const rq_grid *g, const float *xr, int64_t r, int n_rows, int n_tok, int64_t j0,
                  int64_t j1) {
    const int chains = chains_of(n_tok);
    __m256 sum[2 * PASS_TOK * 4], scale[2], zero[2];
    UNROLL for (int i = 0; i < n_rows * n_tok * chains; ++i) sum[i] = _mm256_setzero_ps();
    for (int64_t j = j0; j < j1;) {
        int64_t k = j / g->group, end = (k + 1) * g->group < j1 ? (k + 1) * g->group : j1;
        UNROLL for (int i = 0; i < n_rows; ++i) {
            scale[i] = _mm256_set1_ps(scale_at(g, (r + i) * g->n_group + k));
            zero[i] = _mm256_set1_ps(zero_at(g, (r + i) * g->n_group + k));
        }
        for (; j + 8 * chains <= end; j += 8 * chains) {
            UNROLL for (int i = 0; i < n_rows; ++i) {
                _mm_prefetch((const char *)(g->words + (r + i + ROWS_AHEAD) * g->row_words) + j, _MM_HINT_T0);
            }
            step8(sum, g, r, n_rows, n_tok, chains, xr + (j - j0) * n_tok, j, 8, scale, zero);
        }
        for (; j < end; j += 8) step8(sum, g, r, n_rows, n_tok, 1, xr + (j - j0) * n_tok, j, end - j, scale, zero);
    }
    UNROLL for (int i = 0; i < n_rows; ++i) {
        UNROLL for (int t = 0; t < n_tok; ++t) {
            finish(y + t * g->n_out + r + i, &sum[(i * n_tok + t) * chains], chains, j0 > 0);
        }
    }
}

INLINE void all_rows8(float *y, const rq_grid *g, const float *xr, int n_tok, int64_t row0, int64_t n_rows, int64_t j0,
                      int64_t j1) {
    int64_t r = row0, end = row0 + n_rows;
    for (; r + 2 <= end; r += 2) rows8(y, g, xr, r, 2, n_tok, j0, j1);
    if (r < end) rows8(y, g, xr, r, 1, n_tok, j0, j1);
}

static void gemv_8bit(float *y, const rq_grid *g, const float *x, int64_t n_tok, int64_t row0, int64_t n_rows) {
    float xr[XR_FLOATS] __attribute__((aligned(64)));
    int64_t step = XR_FLOATS / (n_tok < PASS_TOK ? n_tok : PASS_TOK) / 64 * 64;
    for (int64_t j = 0; j < g->n_in; j += step) {
        int64_t end = g->n_in - j < step ? g->n_in : j + step;
        for (int64_t t = 0, n; t < n_tok; t += n) {
            n = pass_tokens(n_tok - t);
            float *yt = y + t * g->n_out;
            pack_x(xr, x + t * g->n_in, g->n_in, n, j, end);
            if (n == 1)
                all_rows8(yt, g, xr, 1, row0, n_rows, j, end);
            else if (n == 2)
                all_rows8(yt, g, xr, 2, row0, n_rows, j, end);
            else if (n == 3)
                all_rows8(yt, g, xr, 3, row0, n_rows, j, end);
            else
                all_rows8(yt, g, xr, 4, row0, n_rows, j, end);
        }
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
        float *out = dst + (r - row0) * g->n_in, tail[8] = {0};
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
