/* SPDX-License-Identifier: Apache-2.0 */
/* gemv for sign-split vector codes (fmt_ssvq.h) with 8-bit magnitudes and up to 256 codes, 1 to 16 tokens, on AVX-512 with byte
 * permutes (VBMI). Other codebooks go to gemv_ssvq_avx512.c.
 *
 * A magnitude m is taken as m / 256, which bfloat16 holds exactly: two bytes. The codebook is kept as planes of bytes, each byte 2
 * or 3 of one element for all 256 codes, in four registers. Codes are looked up 64 at a time, in a block: two byte permutes
 * under masks give a byte of element e of 64 vectors, for either plane; one instruction puts the sign bits into the upper byte; two
 * rounds of unpacking, with zeros below, make four registers of floats. These are the magnitudes themselves with their signs, so
 * nothing is rounded before the multiply-add. 64 weights take 16 instructions, and four rows share what is loaded.
 *
 * Unpacking leaves vector 16 q + 4 g + i of a block in lane 4 q + i of register g. x is put in that order once per call:
 * xr[block][g][token][e][lane] is column V (64 block + 16 q + 4 g + i) + e, V = vec_len, zero in outlier columns and past the end.
 * Scales multiply the sum of a row, or of a block when a group is a multiple of 16 V columns, else the weights. A row's sum is 16
 * lanes (two chains for one token) and one tree per cut of the columns. */
#include "simd_avx512.h"

enum { CODES = 64, RUN = 16, ROWS = 4, MAX_VEC = XR_FLOATS / 4 };
/* How scales are applied: to the sum, to the sum of a block, whose quarters of 16 vectors have one each, or to the weights. */
enum scaling { OF_ROW, OF_QUARTER, OF_VECTOR };

typedef struct planes { /* of codes 0 .. 255, element by element */
    uint8_t hi[8][256], lo[8][256];
} planes;

typedef struct part { /* columns [j0, j0 + n) of one codebook */
    float *y;         /* of the first token of this pass, row 0 */
    const rq_ssvq *w;
    const planes *book;
    const float *xr;
    const float *xo; /* [n_tok][16]: outlier scale * x, NULL but for the first cut */
    int64_t j0, n, row0, n_rows;
    float book_scale;
    int64_t quarter_group[MAX_VEC / 16]; /* OF_QUARTER */
    bool fours;                          /* OF_VECTOR: groups begin at multiples of four vectors */
    int32_t four_group[MAX_VEC / 8];     /* groups of those, counted from the part's first */
} part;

/* One byte of an element for 64 codes; high: those from 128 on. They are replaced first, then the others: a lane that the mask
 * leaves out keeps its code, or what was looked up for it. */
INLINE __m512i look_up_high(const uint8_t plane[256], __m512i codes, __mmask64 high) {
    return _mm512_mask2_permutex2var_epi8(_mm512_load_si512(plane + 128), codes, high, _mm512_load_si512(plane + 192));
}
INLINE __m512i look_up_rest(const uint8_t plane[256], __m512i v, __mmask64 high) {
    return _mm512_mask2_permutex2var_epi8(_mm512_load_si512(plane), v, ~high, _mm512_load_si512(plane + 64));
}
INLINE __m512i look_up(const uint8_t plane[256], __m512i codes, __mmask64 high) {
    return look_up_rest(plane, look_up_high(plane, codes, high), high);
}

/* ---- the codebook ----------------------------------------------------------------------------------------------------- */

/* The upper half of the float m / 256, m in 0 .. 255. */
#define LOG2(m)                                                                                                        \
    ((m) > 127 ? 7 : (m) > 63 ? 6 : (m) > 31 ? 5 : (m) > 15 ? 4 : (m) > 7 ? 3 : (m) > 3 ? 2 : (m) > 1 ? 1 : 0)
#define HALF(m)     ((m) ? (119 + LOG2(m)) << 7 | (((m) << (7 - LOG2(m))) & 127) : 0)
#define LO(m)       (uint8_t)(HALF(m) & 255)
#define HI(m)       (uint8_t)(HALF(m) >> 8)
#define ROW4(f, m)  f(m), f((m) + 1), f((m) + 2), f((m) + 3)
#define ROW16(f, m) ROW4(f, m), ROW4(f, (m) + 4), ROW4(f, (m) + 8), ROW4(f, (m) + 12)
#define ROW64(f, m) ROW16(f, m), ROW16(f, (m) + 16), ROW16(f, (m) + 32), ROW16(f, (m) + 48)
#define ALL(f)      ROW64(f, 0), ROW64(f, 64), ROW64(f, 128), ROW64(f, 192)
static const uint8_t half_lo[256] __attribute__((aligned(64))) = {ALL(LO)};
static const uint8_t half_hi[256] __attribute__((aligned(64))) = {ALL(HI)};

/* Codes that the book does not have stand for zeros: the padding of a row may name them. */
static void make_planes(planes *p, const rq_ssvq *w, int64_t book) {
    uint8_t raw[256 * 8] __attribute__((aligned(64))) = {0};
    const int V = w->vec_len, per_pair = 128 / V; /* vectors in two registers */
    const __m512i lane =
        _mm512_set_epi8(63, 62, 61, 60, 59, 58, 57, 56, 55, 54, 53, 52, 51, 50, 49, 48, 47, 46, 45, 44, 43, 42, 41, 40,
                        39, 38, 37, 36, 35, 34, 33, 32, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16,
                        15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    /* The first element of vector lane (modulo per_pair): byte V * lane of the pair. */
    const __m512i first = _mm512_and_si512(_mm512_slli_epi16(lane, V == 8 ? 3 : 2), _mm512_set1_epi8((char)(128 - V)));
    memcpy(raw, w->book_u8 + book * w->n_codes * V, (size_t)(w->n_codes * V));
    for (int e = 0; e < V; ++e) {
        const __m512i pick = _mm512_or_si512(first, _mm512_set1_epi8((char)e));
        for (int c = 0; c < 256; c += CODES) {
            __m512i v = _mm512_setzero_si512();
            for (int i = 0; i < CODES; i += per_pair) {
                const uint8_t *pair = raw + (c + i) * V;
                __m512i some = _mm512_permutex2var_epi8(_mm512_load_si512(pair), pick, _mm512_load_si512(pair + 64));
                v = _mm512_mask_mov_epi8(v, (~0ull >> (64 - per_pair)) << i, some);
            }
            const __mmask64 high = _mm512_movepi8_mask(v);
            _mm512_store_si512(p->lo[e] + c, look_up(half_lo, v, high));
            _mm512_store_si512(p->hi[e] + c, look_up(half_hi, v, high));
        }
    }
}

/* ---- decoding --------------------------------------------------------------------------------------------------------- */

INLINE __m512i load_bytes(const uint8_t *p, int64_t left, int need) {
    if (left >= CODES && need == CODES) return _mm512_loadu_si512(p);
    if (left > need) left = need;
    return _mm512_maskz_loadu_epi8(left >= CODES ? ~0ull : ~(~0ull << left), p);
}

/* 64 codes, a byte each, from vector v of a row on; v is a multiple of 8. left: bytes of the row from there. */
INLINE __m512i load_codes(const uint8_t *row, int64_t row_bytes, int64_t v, int bits) {
    const int64_t at = v * bits / 8;
    if (bits == 8) return load_bytes(row + at, row_bytes - at, CODES);
    /* Lane q of 64 bits gets the bytes that its 8 codes begin in, and each code is shifted down. */
    const __m512i i = _mm512_set_epi64(0x0706050403020100, 0x0706050403020100, 0x0706050403020100, 0x0706050403020100,
                                       0x0706050403020100, 0x0706050403020100, 0x0706050403020100, 0x0706050403020100);
    const __m512i lane =
        _mm512_mullo_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), _mm512_set1_epi64(bits * 0x0101010101010101));
    __m512i bytes = _mm512_permutexvar_epi8(_mm512_add_epi8(i, lane), load_bytes(row + at, row_bytes - at, 8 * bits));
    __m512i shift = _mm512_mullo_epi16(_mm512_and_si512(i, _mm512_set1_epi16(0xff)), _mm512_set1_epi16((short)bits));
    shift = _mm512_or_si512(
        shift, _mm512_slli_epi16(_mm512_mullo_epi16(_mm512_srli_epi16(i, 8), _mm512_set1_epi16((short)bits)), 8));
    return _mm512_and_si512(_mm512_multishift_epi64_epi8(shift, bytes), _mm512_set1_epi8((char)((1 << bits) - 1)));
}

/* The signs of 64 vectors: byte v has those of vector v, the last element's in bit 7. left: bytes of the row from there. */
INLINE __m512i load_signs(const uint8_t *signs, int64_t left, int V) {
    if (V == 8) return load_bytes(signs, left, CODES);
    __m256i s = left >= 32 ? _mm256_loadu_si256((const __m256i *)signs)
                           : _mm256_maskz_loadu_epi8((__mmask32) ~(~0u << (left < 0 ? 0 : left)), signs);
    __m512i w = _mm512_cvtepu8_epi16(s);
    return _mm512_or_si512(_mm512_and_si512(_mm512_slli_epi16(w, 4), _mm512_set1_epi16(0x00f0)),
                           _mm512_and_si512(_mm512_slli_epi16(w, 8), _mm512_set1_epi16((short)0xf000)));
}

/* ---- rows ------------------------------------------------------------------------------------------------------------- */

/* scale * book_scale of every vector of the part's blocks, in the order of the runs: to[64 block + 16 g + lane]. Vectors past the part, whose
 * x is 0, have its last one. */
static void spread_scales(float *to, const part *p, int64_t row) {
    const rq_ssvq *w = p->w;
    const int64_t V = w->vec_len, n_vec = rq_ceil_div(p->n, CODES * V) * CODES;
    int64_t k = p->j0 / w->group, until = (k + 1) * w->group - p->j0;
    const rq_f16 *from = w->scale + row * w->n_group;
    float scale = p->book_scale * rq_f32_of_f16(from[k]);
    for (int64_t j = 0, v = 0; v < n_vec; j += V, ++v) {
        if (j >= until && j < p->n) {
            scale = p->book_scale * rq_f32_of_f16(from[++k]);
            until += w->group;
        }
        to[v / CODES * CODES + v / 4 % 4 * RUN + v / 16 % 4 * 4 + v % 4] = scale;
    }
}

/* The same where four vectors in a row always have one scale. */
static void spread_scales_of_4(float *to, const part *p, int64_t row) {
    const rq_ssvq *w = p->w;
    const int64_t k = p->j0 / w->group, n = (p->j0 + p->n - 1) / w->group - k + 1;
    const rq_f16 *from = w->scale + row * w->n_group + k;
    float group[MAX_VEC / 8 + 16];
    for (int64_t i = 0; i < n; i += 16) {
        const __m512 some = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask_left(n - i), from + i));
        _mm512_storeu_ps(group + i, _mm512_mul_ps(_mm512_set1_ps(p->book_scale), some));
    }
    for (int64_t b = 0; b * CODES * w->vec_len < p->n; ++b) { /* a block's 16 fours have at most 16 groups */
        const int32_t *four = p->four_group + 16 * b;
        const __m512i lane = _mm512_sub_epi32(_mm512_loadu_si512(four), _mm512_set1_epi32(four[0]));
        const __m512 fours = _mm512_permutexvar_ps(lane, _mm512_loadu_ps(group + four[0]));
        UNROLL for (int g = 0; g < 4; ++g) {
            _mm512_storeu_ps(to + CODES * b + RUN * g, _mm512_permutevar_ps(fours, _mm512_set1_epi32(g)));
        }
    }
}

/* The scales of the four quarters of a block, each in the four lanes that hold it; group[4]. */
INLINE __m512 quarter_scales(const part *p, int64_t row, const int64_t *group) {
    const rq_f16 *s = p->w->scale + row * p->w->n_group;
    __m128 four = _mm_cvtph_ps(_mm_setr_epi16((short)s[group[0]].bits, (short)s[group[1]].bits, (short)s[group[2]].bits,
                                              (short)s[group[3]].bits, 0, 0, 0, 0));
    four = _mm_mul_ps(four, _mm_set1_ps(p->book_scale));
    const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_ps(lane, _mm512_castps128_ps512(four));
}

/* y = or += the sum of a row and token. */
INLINE void finish_row(const part *p, int64_t r, int t, __m512 sum, enum scaling scaling) {
    const rq_ssvq *w = p->w;
    float *y = p->y + t * w->n_out + r;
    __m512 extra = _mm512_setzero_ps();
    if (p->xo) {
        __m128i q = _mm_maskz_loadu_epi8(mask_left(w->n_outlier), w->outlier + r * w->n_outlier);
        extra = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)), _mm512_loadu_ps(p->xo + 16 * t));
    }
    if (scaling != OF_ROW)
        sum = _mm512_add_ps(sum, extra);
    else
        sum = _mm512_fmadd_ps(sum, _mm512_set1_ps(p->book_scale * rq_f32_of_f16(w->scale[r])), extra);
    float value = _mm512_reduce_add_ps(sum);
    *y = p->j0 > 0 ? *y + value : value;
}

/* What n_rows rows from r on have at hand in their block. The scales are elsewhere: a function fills them, and with its address known to that
 * one the struct, sums and all, would stay in memory. */
typedef struct rows_at {
    const uint8_t *codes[ROWS], *signs[ROWS]; /* of the rows, from their beginning */
    __m512 sum[ROWS * PASS_TOK];              /* [row][token][chain] */
    __m512 total[ROWS * PASS_TOK];            /* OF_QUARTER: of blocks that are done */
    const float *scales[ROWS];                /* OF_VECTOR */
} rows_at;

/* Element e of a block: 64 weights of each row, times x. Step by step for all rows, so that what depends on each other lies apart. */
INLINE void one_element(rows_at *a, const part *p, const __m512i *codes, __m512i *signs, const __mmask64 *high,
                        int64_t j, int e, int n_rows, int V, int n_tok, enum scaling scaling) {
    const int chains = n_tok == 1 ? 2 : 1;
    const float *xj = p->xr + j * n_tok;
    const uint8_t *pl = p->book->lo[e], *ph = p->book->hi[e];
    const __m512i none = _mm512_setzero_si512();
    __m512i lo[ROWS], hi[ROWS];
    UNROLL for (int i = 0; i < n_rows; ++i) lo[i] = look_up_high(pl, codes[i], high[i]);
    UNROLL for (int i = 0; i < n_rows; ++i) hi[i] = look_up_high(ph, codes[i], high[i]);
    UNROLL for (int i = 0; i < n_rows; ++i) lo[i] = look_up_rest(pl, lo[i], high[i]);
    UNROLL for (int i = 0; i < n_rows; ++i) hi[i] = look_up_rest(ph, hi[i], high[i]);
    UNROLL for (int i = 0; i < n_rows; ++i) {
        hi[i] = _mm512_ternarylogic_epi32(hi[i], signs[i], _mm512_set1_epi8((char)0x80), 0xf8); /* hi | (sign & 80) */
        signs[i] = _mm512_add_epi8(signs[i], signs[i]);
    }
    UNROLL for (int i = 0; i < n_rows; ++i) {
        const __m512i low = _mm512_unpacklo_epi8(lo[i], hi[i]);
        hi[i] = _mm512_unpackhi_epi8(lo[i], hi[i]);
        lo[i] = low;
    }
    UNROLL for (int g = 0; g < 4; ++g) {
        UNROLL for (int i = 0; i < n_rows; ++i) {
            const __m512i two = g < 2 ? lo[i] : hi[i];
            __m512i bits = g % 2 ? _mm512_unpackhi_epi16(none, two) : _mm512_unpacklo_epi16(none, two);
            __m512 value = _mm512_castsi512_ps(bits);
            if (scaling == OF_VECTOR) value = _mm512_mul_ps(value, _mm512_loadu_ps(a->scales[i] + j / V + RUN * g));
            UNROLL for (int t = 0; t < n_tok; ++t) {
                __m512 *to = &a->sum[(i * n_tok + t) * chains + g % chains];
                *to = _mm512_fmadd_ps(value, _mm512_loadu_ps(xj + ((g * n_tok + t) * V + e) * RUN), *to);
            }
        }
    }
}

/* The block from column p->j0 + j on. `plain`: codes are bytes, and the rows have all of the block. */
INLINE void one_block(rows_at *a, const part *p, int64_t r, int64_t j, int n_rows, int V, int n_tok,
                      enum scaling scaling, bool plain) {
    const rq_ssvq *w = p->w;
    const int chains = n_tok == 1 ? 2 : 1;
    const int64_t code_bytes = w->code_words * 4, sign_bytes = w->sign_words * 4;
    const int64_t v = (p->j0 + j) / V, code_at = plain ? v : v * w->code_bits / 8, sign_at = v * V / 8;
    __m512i codes[ROWS], signs[ROWS];
    __mmask64 high[ROWS];
    UNROLL for (int i = 0; i < n_rows; ++i) {
        codes[i] = plain ? _mm512_loadu_si512(a->codes[i] + v) : load_codes(a->codes[i], code_bytes, v, w->code_bits);
        signs[i] = load_signs(a->signs[i] + sign_at, plain ? CODES : sign_bytes - sign_at, V);
        high[i] = _mm512_movepi8_mask(codes[i]);
        _mm_prefetch((const char *)a->codes[i] + ROWS * code_bytes + code_at, _MM_HINT_T0);
        _mm_prefetch((const char *)a->signs[i] + ROWS * sign_bytes + sign_at, _MM_HINT_T0);
    }
    for (int e = V - 1; e >= 0; --e) one_element(a, p, codes, signs, high, j, e, n_rows, V, n_tok, scaling);
    UNROLL for (int i = 0; i < n_rows && scaling == OF_QUARTER; ++i) {
        __m512 scale = quarter_scales(p, r + i, p->quarter_group + j / (RUN * V));
        UNROLL for (int c = 0; c < n_tok * chains; ++c) {
            __m512 *to = &a->total[i * n_tok * chains + c], *from = &a->sum[i * n_tok * chains + c];
            *to = _mm512_fmadd_ps(*from, scale, *to);
            *from = _mm512_setzero_ps();
        }
    }
}

/* n_rows rows from r on. Everything but p and r is a constant where this is inlined. */
INLINE void some_rows(const part *p, int64_t r, int n_rows, int V, int n_tok, enum scaling scaling) {
    const rq_ssvq *w = p->w;
    const int chains = n_tok == 1 ? 2 : 1;
    float scales[ROWS][MAX_VEC / 2 + CODES];
    rows_at a;
    int64_t j = 0;
    UNROLL for (int i = 0; i < n_rows; ++i) {
        a.codes[i] = (const uint8_t *)(w->codes + (r + i) * w->code_words);
        a.signs[i] = (const uint8_t *)(w->signs + (r + i) * w->sign_words);
    }
    UNROLL for (int i = 0; i < n_rows && scaling == OF_VECTOR; ++i) {
        if (p->fours)
            spread_scales_of_4(scales[i], p, r + i);
        else
            spread_scales(scales[i], p, r + i);
        a.scales[i] = scales[i];
    }
    UNROLL for (int i = 0; i < n_rows * n_tok * chains; ++i) a.sum[i] = a.total[i] = _mm512_setzero_ps();
    if (w->code_bits == 8)
        for (; j + CODES * V <= p->n; j += CODES * V) one_block(&a, p, r, j, n_rows, V, n_tok, scaling, true);
    for (; j < p->n; j += CODES * V) one_block(&a, p, r, j, n_rows, V, n_tok, scaling, false);
    UNROLL for (int i = 0; i < n_rows; ++i) {
        UNROLL for (int t = 0; t < n_tok; ++t) {
            const __m512 *from = scaling == OF_QUARTER ? a.total : a.sum;
            __m512 all = from[(i * n_tok + t) * chains];
            if (chains == 2) all = _mm512_add_ps(all, from[i * 2 + 1]);
            finish_row(p, r + i, t, all, scaling);
        }
    }
}

INLINE void all_rows(const part *p, int V, int n_tok, enum scaling scaling) {
    const int step = n_tok == 1 ? 4 : scaling == OF_QUARTER && n_tok >= 4 ? 1 : 2;
    int64_t r = p->row0, end = p->row0 + p->n_rows;
    for (; r + step <= end; r += step) some_rows(p, r, step, V, n_tok, scaling);
    for (; r < end; ++r) some_rows(p, r, 1, V, n_tok, scaling); /* the same sums in the same order */
}

typedef void (*rows_fn)(const part *p);
#define ROWS_OF(V, n_tok)                                                                                              \
    static void rows_##V##_##n_tok(const part *p) { all_rows(p, V, n_tok, OF_ROW); }                                   \
    static void rows_quarter_##V##_##n_tok(const part *p) { all_rows(p, V, n_tok, OF_QUARTER); }                       \
    static void rows_vector_##V##_##n_tok(const part *p) { all_rows(p, V, n_tok, OF_VECTOR); }
#define ROWS_ALL(V) ROWS_OF(V, 1) ROWS_OF(V, 2) ROWS_OF(V, 3) ROWS_OF(V, 4) ROWS_OF(V, 8)
ROWS_ALL(4)
ROWS_ALL(8)
// clang-format off
#define ROWS_LIST(rows, V) {NULL, rows##_##V##_1, rows##_##V##_2, rows##_##V##_3, rows##_##V##_4, NULL, NULL, NULL, rows##_##V##_8}
static const rows_fn rows_table[2][3][PASS_TOK + 1] = {
    {ROWS_LIST(rows, 4), ROWS_LIST(rows_quarter, 4), ROWS_LIST(rows_vector, 4)},
    {ROWS_LIST(rows, 8), ROWS_LIST(rows_quarter, 8), ROWS_LIST(rows_vector, 8)},
};
// clang-format on

/* ---- x ---------------------------------------------------------------------------------------------------------------- */

/* Columns [j0, j1) of n_tok tokens in the order above, zeros past j1 up to a whole block and in outlier columns. */
INLINE void reorder_x(float *xr, const rq_ssvq *w, const float *x, int64_t n_tok, int64_t j0, int64_t j1, int V) {
    const int64_t run = RUN * V, block = CODES * V;
    float *to = xr;
    for (int64_t j = j0; j < j1; j += block) {
        for (int64_t g = 0; g < 4; ++g) {
            for (int64_t t = 0; t < n_tok; ++t, to += run) {
                const float *from = x + t * w->n_in + j + g * 4 * V;
                __m512 v[8];
                UNROLL for (int i = 0; i < V; ++i) { /* a quarter of them from every 16 vectors */
                    const int64_t at = i * 4 / V * run + i % (V / 4) * 16, left = j1 - j - g * 4 * V - at;
                    if (left >= 16)
                        v[i] = _mm512_loadu_ps(from + at);
                    else
                        v[i] = left > 0 ? _mm512_maskz_loadu_ps(mask_left(left), from + at) : _mm512_setzero_ps();
                }
                if (V == 8)
                    reorder_block(to, v);
                else
                    reorder_quads(to, v);
            }
        }
    }
    for (int o = 0; o < w->n_outlier; ++o) {
        int64_t j = w->outlier_col[o] - j0, v = j / V;
        if (j < 0 || j >= j1 - j0) continue;
        int64_t first = (v / CODES * 4 + v / 4 % 4) * n_tok * run + j % V * RUN + v / 16 % 4 * 4 + v % 4;
        for (int64_t t = 0; t < n_tok; ++t) xr[first + t * run] = 0.0f;
    }
}

/* Tokens in passes, over one cut of the columns. */
static void all_tokens(part *p, float *y, const float *x, int64_t n_tok, float *xr, float *xo, enum scaling scaling) {
    const rq_ssvq *w = p->w;
    const int64_t quarter = RUN * w->vec_len;
    for (int64_t j = 0; scaling == OF_QUARTER && j < rq_ceil_div(p->n, 4 * quarter) * 4; ++j) {
        p->quarter_group[j] = rq_min_i64((p->j0 + j * quarter) / w->group, w->n_group - 1);
    }
    p->fours = scaling == OF_VECTOR && w->group % (4 * w->vec_len) == 0;
    for (int64_t i = 0; p->fours && i < rq_ceil_div(p->n, 4 * quarter) * 16; ++i) {
        const int64_t j = rq_min_i64(i * 4 * w->vec_len, p->n - 1); /* parts begin at multiples of 64 columns */
        p->four_group[i] = (int32_t)((p->j0 + j) / w->group - p->j0 / w->group);
    }
    for (int64_t t = 0, n; t < n_tok; t += n) {
        n = pass_tokens(n_tok - t);
        const float *xt = x + t * w->n_in;
        if (w->vec_len == 8)
            reorder_x(xr, w, xt, n, p->j0, p->j0 + p->n, 8);
        else
            reorder_x(xr, w, xt, n, p->j0, p->j0 + p->n, 4);
        for (int64_t i = 0; p->xo && i < n * 16; ++i) {
            int64_t o = i % 16;
            xo[i] = o < w->n_outlier ? w->outlier_scale[o] * xt[i / 16 * w->n_in + w->outlier_col[o]] : 0.0f;
        }
        p->y = y + t * w->n_out;
        rows_table[w->vec_len == 8][scaling][n](p);
    }
}

/* Whether the codebooks are those of this file: their borders must fall on bytes of the signs and on 8 codes. */
static bool fits(const rq_ssvq *w) {
    return w->book_u8 && w->code_bits <= 8 && (w->n_book == 1 || w->book_cols % 64 == 0);
}

static enum scaling scaling_of(const rq_ssvq *w) {
    const int64_t quarter = RUN * w->vec_len;
    if (w->n_group == 1) return OF_ROW;
    return w->group % quarter == 0 && (w->n_book == 1 || w->book_cols % quarter == 0) ? OF_QUARTER : OF_VECTOR;
}

RQ_OP_gemv(rq_gemv_ssvq_avx512vbmi, rq_ssvq) {
    float xr[XR_FLOATS] __attribute__((aligned(64))), xo[PASS_TOK * 16];
    planes book __attribute__((aligned(64)));
    part p;
    if (!fits(w)) {
        rq_gemv_ssvq_avx512(y, w, x, n_tok, row0, n_rows);
        return;
    }
    const enum scaling scaling = scaling_of(w);
    const int64_t block = CODES * w->vec_len, most = rq_min_i64(n_tok, PASS_TOK);
    const int64_t step = XR_FLOATS / (scaling == OF_VECTOR && most == 1 ? 2 : most) / block * block;
    for (int64_t b = 0; b < w->n_book; ++b) {
        int64_t begin = b * w->book_cols, end = rq_min_i64(w->n_in, begin + w->book_cols);
        make_planes(&book, w, b);
        p = (part){.w = w, .book = &book, .xr = xr, .row0 = row0, .n_rows = n_rows};
        p.book_scale = w->book_scale[b] * 256.0f;
        for (p.j0 = begin; p.j0 < end; p.j0 += step) {
            p.n = rq_min_i64(step, end - p.j0);
            p.xo = p.j0 == 0 && w->n_outlier ? xo : NULL;
            all_tokens(&p, y, x, n_tok, xr, xo, scaling);
        }
    }
}
