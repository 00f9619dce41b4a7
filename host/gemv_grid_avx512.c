/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 (F, BW, VL, DQ) twins for grid codes (fmt_grid.h): gemv for 1 .. 16 tokens, and unpacking to fp32.
 *
 * 2, 3 and 4 bits. A block is 128 columns: lane l of a register holds the 8 codes of columns 8l .. 8l + 7 in its low bits,
 * however wide they are. The s-th codes of all lanes are then one shift away, and vpermps looks them up in a table of the
 * group's 16 (or 8, or 4, repeated) values scale * (code - zero): it ignores the index bits above the fourth, so nothing is
 * masked. Three instructions decode and multiply 16 weights, and each weight is the very float of the definition. x is put
 * in the matching order once per call: xr[block][s][l] = x[128 block + 8 l + s]. With one token four rows run together, which
 * halves the loads of x; scales and zeros of a row become floats before it starts, so that a group's table is two instructions. Groups that are no multiple of a block
 * carry scale and zero per lane instead (two instructions more), so they must be multiples of 8; others go to the C twin.
 *
 * 8 bits. 16 columns at a time: widen, subtract, scale, multiply. Groups must be multiples of 16.
 *
 * Columns are cut so that the reordered x stays in L1. Weights are read from memory once: the tokens, at most 8 at a time
 * in registers, pass over a piece of rows that is in cache. A row's sum is 16 lanes (times 2 chains for 1 or 2 tokens; 8 bits: up to 4)
 * and one tree per cut: it depends on n_in and n_tok only. */
#include "simd_avx512.h"

enum { ROWS = 4, BLOCK = 128, MAX_BLOCKS = XR_FLOATS / BLOCK };

/* One cut of the columns: [first, first + n) blocks, and for lane scales which groups its lanes belong to. */
typedef struct cut {
    int64_t first, n;
    const float *xr;                    /* [n blocks][token][8][16] */
    int64_t group0[MAX_BLOCKS];         /* group of the block's first column */
    unsigned char n_group[MAX_BLOCKS];  /* groups it touches */
    unsigned char lane[MAX_BLOCKS][16]; /* lane's group - group0 */
} cut;

/* ---- decoding a block ------------------------------------------------------------------------------------------------- */

/* p: the block's first byte, `left`: bytes of the row from there. Bytes past the row read as 0. */
INLINE __m512i load_codes(const unsigned char *p, int64_t left, int bits) {
    const int64_t need = 16 * bits;
    __m512i v;
    /* Plain loads wherever the row allows: masked ones cost much more when the data is not in cache. */
    if (left >= (bits == 2 ? 32 : 64)) {
        v = bits == 2 ? _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p)) : _mm512_loadu_si512(p);
    } else {
        v = _mm512_maskz_loadu_epi8(~0ull >> (64 - (left < need ? left : need)), p);
    }
    if (bits == 4) return v;
    if (bits == 2) return _mm512_cvtepu16_epi32(_mm512_castsi512_si256(v));
    /* 12 bytes to each 16-byte lane, then 3 bytes to each 4-byte lane */
    const __m512i spread = _mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11);
    const __m128i three = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(spread, v), _mm512_broadcast_i32x4(three));
}

INLINE __m512 code_values(int bits) { /* 0 .. 2^bits - 1, repeated to 16 */
    const __m512i i = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_cvtepi32_ps(_mm512_and_si512(i, _mm512_set1_epi32((1 << bits) - 1)));
}

INLINE float scale_at(const rq_grid *g, int64_t k) {
    if (!g->scale_f16) return g->scale_f32[k];
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(g->scale_f16[k].bits)));
}

/* Scales and zeros of n groups of a row, from k on, as floats; up to 15 more are written. */
INLINE void group_floats(float *scale, float *zero, const rq_grid *g, int64_t k, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = mask_left(n - i);
        const bool whole = mask == 0xffff; /* plain loads, as above */
        const int64_t ahead = 2 * ROWS_AHEAD * g->n_group;
        __m512 s, z;
        const char *later;
        if (g->scale_f32)
            later = (const char *)(g->scale_f32 + k + i + ahead);
        else
            later = (const char *)(g->scale_f16 + k + i + ahead);
        _mm_prefetch(later, _MM_HINT_T0);
        if (g->zero) _mm_prefetch((const char *)(g->zero + k + i + ahead), _MM_HINT_T0);
        if (g->scale_f32)
            s = _mm512_maskz_loadu_ps(mask, g->scale_f32 + k + i);
        else if (whole)
            s = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(g->scale_f16 + k + i)));
        else
            s = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, g->scale_f16 + k + i));
        if (!g->zero)
            z = _mm512_set1_ps((float)(1 << (g->bits - 1)));
        else if (whole)
            z = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(g->zero + k + i))));
        else
            z = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, g->zero + k + i)));
        _mm512_storeu_ps(scale + i, s);
        _mm512_storeu_ps(zero + i, z);
    }
}

INLINE __m128i load_bytes(const void *p, size_t n) {
    int64_t v = 0;
    memcpy(&v, p, n);
    return _mm_cvtsi64_si128(v);
}

/* The first n of a block's scales and zeros, k on. Two and four are groups of 64 and 32: plain loads, as above. */
INLINE __m512 load_scales(const rq_grid *g, int64_t k, int n) {
    const __mmask16 mask = mask_left(n);
    if (g->scale_f32) return _mm512_maskz_loadu_ps(mask, g->scale_f32 + k);
    if (n == 2) return _mm512_castps128_ps512(_mm_cvtph_ps(load_bytes(g->scale_f16 + k, 4)));
    if (n == 4) return _mm512_castps128_ps512(_mm_cvtph_ps(load_bytes(g->scale_f16 + k, 8)));
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, g->scale_f16 + k));
}

INLINE __m512 load_zeros(const rq_grid *g, int64_t k, int n) {
    __m128i z;
    if (n == 2)
        z = load_bytes(g->zero + k, 2);
    else if (n == 4)
        z = load_bytes(g->zero + k, 4);
    else
        z = _mm_maskz_loadu_epi8(mask_left(n), g->zero + k);
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(z));
}

/* Scale and zero of every lane; k: index of the block's first group. */
INLINE void lane_groups(__m512 *scale, __m512 *zero, const rq_grid *g, int64_t k, const cut *c, int64_t b) {
    __m512i sel = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)c->lane[b]));
    *scale = _mm512_permutexvar_ps(sel, load_scales(g, k, c->n_group[b]));
    if (g->zero)
        *zero = _mm512_permutexvar_ps(sel, load_zeros(g, k, c->n_group[b]));
    else
        *zero = _mm512_set1_ps((float)(1 << (g->bits - 1)));
}

/* Fills the lane tables of a cut. Columns past n_in repeat the last group. */
static void cut_lanes(cut *c, const rq_grid *g) {
    for (int64_t b = 0; b < c->n; ++b) {
        int64_t col = (c->first + b) * BLOCK, group0 = col / g->group, k = group0, next = (group0 + 1) * g->group;
        for (int l = 0; l < 16; ++l, col += 8) {
            if (col >= next && k + 1 < g->n_group) {
                ++k;
                next += g->group;
            }
            c->lane[b][l] = (unsigned char)(k - group0);
        }
        c->group0[b] = group0;
        c->n_group[b] = (unsigned char)(k - group0 + 1);
    }
}

/* ---- x in block order ------------------------------------------------------------------------------------------------- */

/* Columns of the cut for n_tok tokens; zeros past n_in. */
static void reorder_x(float *xr, const float *x, int64_t n_in, int64_t n_tok, int64_t first, int64_t n_blocks) {
    for (int64_t b = 0; b < n_blocks; ++b) {
        int64_t col = (first + b) * BLOCK, left = n_in - col;
        for (int64_t t = 0; t < n_tok; ++t, xr += BLOCK) {
            __m512 v[8];
            UNROLL for (int i = 0; i < 8; ++i) {
                int64_t at = left > 16 * i ? 16 * i : 0; /* a mask of none reads nothing, but stay inside x */
                v[i] = _mm512_maskz_loadu_ps(mask_left(left - 16 * i), x + t * n_in + col + at);
            }
            reorder_block(xr, v);
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

/* n_rows rows from r on, over one cut, for n_tok tokens. All but r are constants where this is inlined. */
INLINE void lut_rows(const part *p, int64_t r, int n_rows, int bits, int n_tok, bool lanes) {
    const rq_grid *g = p->g;
    const cut *c = p->c;
    const int chains = n_tok <= 2 ? 2 : 1, need = bits == 2 ? 32 : 64; /* bytes that a plain load reads */
    const __m512 values = code_values(bits);
    const int64_t group_blocks = g->group < g->n_in ? g->group / BLOCK : INT64_MAX; /* lanes: not used */
    const unsigned char *row[ROWS];
    const int64_t at = c->first * 16 * bits, left = g->row_words * 4 - at, ahead = ROWS_AHEAD * g->row_words * 4;
    const int64_t n_plain = left < need ? 0 : (left - need) / (16 * bits) + 1; /* blocks that one may read */
    int64_t k = -1, until = 0; /* of the groups of the cut: the one at hand, and the block where it ends */
    float group_scale[ROWS][MAX_BLOCKS + 16], group_zero[ROWS][MAX_BLOCKS + 16];
    __m512 sum[2 * PASS_TOK * 2], table[ROWS], scale[ROWS], zero[ROWS];
    if (!lanes) until = -(c->first % group_blocks);
    UNROLL for (int i = 0; i < n_rows; ++i) {
        row[i] = (const unsigned char *)(g->words + (r + i) * g->row_words) + at;
        table[i] = scale[i] = zero[i] = values;
        if (lanes) continue;
        const int64_t k0 = c->first / group_blocks, k1 = (c->first + c->n - 1) / group_blocks + 1;
        group_floats(group_scale[i], group_zero[i], g, (r + i) * g->n_group + k0, k1 - k0);
    }
    UNROLL for (int i = 0; i < n_rows * n_tok * chains; ++i) sum[i] = _mm512_setzero_ps();
    for (int64_t b = 0; b < c->n; ++b) {
        __m512i w[ROWS];
        bool step = !lanes && b >= until;
        if (step) {
            ++k;
            until = group_blocks == INT64_MAX ? INT64_MAX : until + group_blocks;
        }
        UNROLL for (int i = 0; i < n_rows; ++i) {
            w[i] = load_codes(row[i] + b * 16 * bits, b < n_plain ? need : left - b * 16 * bits, bits);
            _mm_prefetch((const char *)(row[i] + b * 16 * bits + ahead), _MM_HINT_T0);
            if (lanes)
                lane_groups(&scale[i], &zero[i], g, (r + i) * g->n_group + c->group0[b], c, b);
            else if (step)
                table[i] = _mm512_mul_ps(_mm512_set1_ps(group_scale[i][k]),
                                         _mm512_sub_ps(values, _mm512_set1_ps(group_zero[i][k])));
        }
        const float *xr = c->xr + b * n_tok * BLOCK;
        UNROLL for (int s = 0; s < 8; ++s) {
            __m512 v[ROWS];
            UNROLL for (int i = 0; i < n_rows; ++i) {
                __m512i index = s ? _mm512_srli_epi32(w[i], (unsigned)(bits * s)) : w[i];
                v[i] = _mm512_permutexvar_ps(index, lanes ? values : table[i]);
                if (lanes) v[i] = _mm512_mul_ps(scale[i], _mm512_sub_ps(v[i], zero[i]));
            }
            UNROLL for (int t = 0; t < n_tok; ++t) {
                __m512 xt = _mm512_loadu_ps(xr + t * BLOCK + 16 * s);
                UNROLL for (int i = 0; i < n_rows; ++i) {
                    __m512 *to = &sum[(i * n_tok + t) * chains + s % chains];
                    *to = _mm512_fmadd_ps(v[i], xt, *to);
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

INLINE void lut_all_rows(const part *p, int bits, int n_tok, bool lanes) {
    const int step = n_tok == 1 && !lanes ? ROWS : 2;
    int64_t r = p->row0, end = p->row0 + p->n_rows;
    for (; r + step <= end; r += step) lut_rows(p, r, step, bits, n_tok, lanes);
    for (; r < end; ++r) lut_rows(p, r, 1, bits, n_tok, lanes); /* the same sums in the same order */
}

#define ROWS_OF(bits, n_tok)                                                                                           \
    static void rows_##bits##_##n_tok(const part *p, bool lanes) {                                                     \
        if (lanes)                                                                                                     \
            lut_all_rows(p, bits, n_tok, true);                                                                        \
        else                                                                                                           \
            lut_all_rows(p, bits, n_tok, false);                                                                       \
    }
#define ROWS_ALL(bits) ROWS_OF(bits, 1) ROWS_OF(bits, 2) ROWS_OF(bits, 3) ROWS_OF(bits, 4) ROWS_OF(bits, 8)
ROWS_ALL(2)
ROWS_ALL(3)
ROWS_ALL(4)

typedef void (*rows_fn)(const part *p, bool lanes);
#define ROWS_LIST(bits)                                                                                                \
    { NULL, rows_##bits##_1, rows_##bits##_2, rows_##bits##_3, rows_##bits##_4, NULL, NULL, NULL, rows_##bits##_8 }
static const rows_fn rows_table[5][PASS_TOK + 1] = {[2] = ROWS_LIST(2), [3] = ROWS_LIST(3), [4] = ROWS_LIST(4)};

static void gemv_lut(float *y, const rq_grid *g, const float *x, int64_t n_tok, int64_t row0, int64_t n_rows) {
    float xr[XR_FLOATS] __attribute__((aligned(64)));
    cut c;
    int64_t n_blocks = (g->n_in + BLOCK - 1) / BLOCK, step = MAX_BLOCKS / (n_tok < PASS_TOK ? n_tok : PASS_TOK);
    bool lanes = g->group % BLOCK != 0 && g->group < g->n_in;
    c.xr = xr;
    for (c.first = 0; c.first < n_blocks; c.first += step) {
        c.n = n_blocks - c.first < step ? n_blocks - c.first : step;
        if (lanes) cut_lanes(&c, g);
        for (int64_t t = 0, n; t < n_tok; t += n) {
            n = pass_tokens(n_tok - t);
            reorder_x(xr, x + t * g->n_in, g->n_in, n, c.first, c.n);
            part p = {y + t * g->n_out, g, &c, row0, n_rows, c.first > 0};
            rows_table[g->bits][n](&p, lanes);
        }
    }
}

/* ---- 8 bits ----------------------------------------------------------------------------------------------------------- */

/* 16 columns of codes as fp32 weights; mask: columns that exist. */
INLINE __m512 weights8(const unsigned char *codes, __mmask16 mask, __m512i zero, __m512 scale) {
    __m128i bytes = mask == 0xffff ? _mm_loadu_si128((const __m128i *)codes) : _mm_maskz_loadu_epi8(mask, codes);
    __m512i q = _mm512_cvtepu8_epi32(bytes);
    return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_sub_epi32(q, zero)));
}

/* One step of 16 * n columns at j; xr is packed from j0 on. */
INLINE void step8(__m512 *sum, const rq_grid *g, int64_t r, int n_rows, int n_tok, int n, const float *xr, int64_t j,
                  __mmask16 mask, const __m512 *scale, const __m512i *zero) {
    const int chains = chains_of(n_tok);
    UNROLL for (int q = 0; q < n; ++q) {
        __m512 v[2];
        UNROLL for (int i = 0; i < n_rows; ++i) {
            const unsigned char *row = (const unsigned char *)(g->words + (r + i) * g->row_words);
            v[i] = weights8(row + j + 16 * q, mask, zero[i], scale[i]);
        }
        UNROLL for (int t = 0; t < n_tok; ++t) {
            __m512 xt = _mm512_loadu_ps(xr + (q * n_tok + t) * 16);
            UNROLL for (int i = 0; i < n_rows; ++i) {
                __m512 *to = &sum[(i * n_tok + t) * chains + q];
                *to = _mm512_fmadd_ps(v[i], xt, *to);
            }
        }
    }
}

INLINE void rows8(float *y, const rq_grid *g, const float *xr, int64_t r, int n_rows, int n_tok, int64_t j0,
                  int64_t j1) {
    const int chains = chains_of(n_tok);
    __m512 sum[2 * PASS_TOK * 4], scale[2];
    __m512i zero[2];
    UNROLL for (int i = 0; i < n_rows * n_tok * chains; ++i) sum[i] = _mm512_setzero_ps();
    for (int64_t j = j0; j < j1;) {
        int64_t k = j / g->group, end = (k + 1) * g->group < j1 ? (k + 1) * g->group : j1;
        UNROLL for (int i = 0; i < n_rows; ++i) {
            scale[i] = _mm512_set1_ps(scale_at(g, (r + i) * g->n_group + k));
            zero[i] = _mm512_set1_epi32(rq_grid_zero(g, r + i, k));
        }
        for (; j + 16 * chains <= end; j += 16 * chains) {
            UNROLL for (int i = 0; i < n_rows; ++i) {
                _mm_prefetch((const char *)(g->words + (r + i + ROWS_AHEAD) * g->row_words) + j, _MM_HINT_T0);
            }
            step8(sum, g, r, n_rows, n_tok, chains, xr + (j - j0) * n_tok, j, 0xffff, scale, zero);
        }
        for (; j < end; j += 16) {
            step8(sum, g, r, n_rows, n_tok, 1, xr + (j - j0) * n_tok, j, mask_left(end - j), scale, zero);
        }
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
            else if (n == 4)
                all_rows8(yt, g, xr, 4, row0, n_rows, j, end);
            else
                all_rows8(yt, g, xr, 8, row0, n_rows, j, end);
        }
    }
}

/* Whether groups fall on the lanes of this file. */
static bool fits(const rq_grid *g) { return g->group >= g->n_in || g->group % (g->bits == 8 ? 16 : 8) == 0; }

RQ_OP_gemv(rq_gemv_grid_avx512, rq_grid) {
    if (!fits(w))
        rq_gemv_grid_c(y, w, x, n_tok, row0, n_rows);
    else if (w->bits == 8)
        gemv_8bit(y, w, x, n_tok, row0, n_rows);
    else
        gemv_lut(y, w, x, n_tok, row0, n_rows);
}

/* ---- unpack ----------------------------------------------------------------------------------------------------------- */

/* Blocks of a cut in column order: outputs 16s .. 16s + 15 are the codes of lanes 2s and 2s + 1. */
INLINE void unpack_cut(float *dst, const rq_grid *g, const cut *c, int64_t row0, int64_t n_rows, int bits) {
    const __m512 values = code_values(bits);
    const __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512i shift =
        _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7), _mm512_set1_epi32(bits));
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        const unsigned char *row = (const unsigned char *)(g->words + r * g->row_words);
        float *out = dst + (r - row0) * g->n_in;
        __m512 scale, zero;
        for (int64_t b = 0; b < c->n; ++b) {
            int64_t at = (c->first + b) * 16 * bits, left = g->n_in - (c->first + b) * BLOCK;
            __m512i w = load_codes(row + at, g->row_words * 4 - at, bits);
            lane_groups(&scale, &zero, g, r * g->n_group + c->group0[b], c, b);
            UNROLL for (int s = 0; s < 8; ++s) {
                if (16 * s >= left) break;
                __m512i lane = _mm512_add_epi32(half, _mm512_set1_epi32(2 * s));
                __m512i index = _mm512_srlv_epi32(_mm512_permutexvar_epi32(lane, w), shift);
                __m512 level = _mm512_sub_ps(_mm512_permutexvar_ps(index, values), _mm512_permutexvar_ps(lane, zero));
                __m512 v = _mm512_mul_ps(_mm512_permutexvar_ps(lane, scale), level);
                _mm512_mask_storeu_ps(out + (c->first + b) * BLOCK + 16 * s, mask_left(left - 16 * s), v);
            }
        }
    }
}

static void unpack_lut(float *dst, const rq_grid *g, int64_t row0, int64_t n_rows) {
    int64_t n_blocks = (g->n_in + BLOCK - 1) / BLOCK;
    cut c;
    for (c.first = 0; c.first < n_blocks; c.first += MAX_BLOCKS) {
        c.n = n_blocks - c.first < MAX_BLOCKS ? n_blocks - c.first : MAX_BLOCKS;
        cut_lanes(&c, g);
        if (g->bits == 2)
            unpack_cut(dst, g, &c, row0, n_rows, 2);
        else if (g->bits == 3)
            unpack_cut(dst, g, &c, row0, n_rows, 3);
        else
            unpack_cut(dst, g, &c, row0, n_rows, 4);
    }
}

static void unpack_8bit(float *dst, const rq_grid *g, int64_t row0, int64_t n_rows) {
    for (int64_t r = row0; r < row0 + n_rows; ++r) {
        const unsigned char *row = (const unsigned char *)(g->words + r * g->row_words);
        float *out = dst + (r - row0) * g->n_in;
        for (int64_t k = 0; k < g->n_group; ++k) {
            int64_t end = (k + 1) * g->group < g->n_in ? (k + 1) * g->group : g->n_in;
            __m512 scale = _mm512_set1_ps(scale_at(g, r * g->n_group + k));
            __m512i zero = _mm512_set1_epi32(rq_grid_zero(g, r, k));
            for (int64_t j = k * g->group; j < end; j += 16) {
                __mmask16 mask = mask_left(end - j);
                _mm512_mask_storeu_ps(out + j, mask, weights8(row + j, mask, zero, scale));
            }
        }
    }
}

RQ_OP_unpack(rq_unpack_grid_avx512, rq_grid) {
    if (!fits(w))
        rq_unpack_grid_c(dst, w, row0, n_rows);
    else if (w->bits == 8)
        unpack_8bit(dst, w, row0, n_rows);
    else
        unpack_lut(dst, w, row0, n_rows);
}
