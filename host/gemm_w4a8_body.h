/* SPDX-License-Identifier: Apache-2.0 */
/* What the SIMD twins of gemm_w4a8.c share; included by them alone. ROWS rows are decoded to bytes for PANEL columns at a time, which stay in
 * L1 while all tokens pass over them, TILE_TOK at once. Where all of the tokens are too much for L2, OUT_ROWS rows go through one panel before
 * the next. The including file has defined, for BLOCK columns at a time:
 *
 *   TILE_TOK, BLOCK
 *   ZERO_ROW(w, row)   what the bytes of a row are above its levels
 *   unpack_row(to, w, row, j, n_block)   n_block blocks of bytes of a row from column j on; past n_in they may be anything, since
 *                      activations are 0 there
 *   tile(sum, bytes, x, pitch, n_block, n)   sum[t * ROWS + r] += the products of ROWS rows of PANEL bytes with n tokens
 *
 * Sums of OUT_ROWS rows wait until they are whole cache lines of a token's outputs: written a few rows at a time, a line would have gone to
 * the outer caches and come back in between, since tokens' rows are far apart. */

/* x->pitch is a multiple of both blocks, so that the last block of a row needs no care. */
enum { ROWS = 4, OUT_ROWS = 64, PANEL = 4096, TOKENS = 256, GAP = 4, CACHED_BYTES = 640 << 10 };
RQ_STATIC_ASSERT(PANEL % BLOCK == 0 && RQ_ACT8_ALIGN % BLOCK == 0,
                 "blocks do not straddle panels, nor leave rows of x");

/* y of ROWS rows (or the first n_rows of them) and one token. */
INLINE void finish_token(float *y, const int32_t *sum, __m128i zero, __m128 scale, float x_scale, int32_t x_sum,
                         int64_t n_rows) {
    const __m128i acc =
        _mm_sub_epi32(_mm_loadu_si128((const __m128i *)sum), _mm_mullo_epi32(zero, _mm_set1_epi32(x_sum)));
    const __m128 v = _mm_mul_ps(_mm_mul_ps(_mm_cvtepi32_ps(acc), scale), _mm_set1_ps(x_scale));
    if (n_rows >= ROWS) {
        _mm_storeu_ps(y, v);
    } else {
        float all[ROWS];
        _mm_storeu_ps(all, v);
        memcpy(y, all, (size_t)n_rows * sizeof *y);
    }
}

/* The sums of rows row .. row + ROWS - 1, beyond `last` of that once more, over the panel from column p on. */
static void add_rows(int32_t *sum, const rq_w4a8 *w, const rq_act8 *x, int64_t tok0, int64_t n_tok, int64_t row,
                     int64_t last, int64_t p) {
    _Alignas(64) uint8_t bytes[ROWS * PANEL];
    const int64_t left = w->n_in - p, n_block = ((left < PANEL ? left : PANEL) + BLOCK - 1) / BLOCK;
    for (int r = 0; r < ROWS; ++r) unpack_row(bytes + r * PANEL, w, row + r < last ? row + r : last, p, n_block);
    for (int64_t t = 0; t < n_tok; t += TILE_TOK) {
        const int8_t *from = x->q + (tok0 + t) * x->pitch + p;
        tile(sum + t * ROWS, bytes, from, x->pitch, n_block, n_tok - t < TILE_TOK ? (int)(n_tok - t) : TILE_TOK);
    }
}

/* Rows row .. row + OUT_ROWS - 1, those up to `last`. */
static void some_rows(float *y, const rq_w4a8 *w, const rq_act8 *x, int64_t tok0, int64_t n_tok, int64_t row,
                      int64_t last) {
    int32_t sum[(TOKENS + GAP) * OUT_ROWS], zero[OUT_ROWS]; /* sum[row / ROWS][token][row % ROWS], not a page apart */
    float scale[OUT_ROWS];
    const int64_t pitch = n_tok + GAP, together = n_tok * w->n_in > CACHED_BYTES ? OUT_ROWS : ROWS;
    const int64_t n_rows = last - row + 1 < OUT_ROWS ? last - row + 1 : OUT_ROWS;
    for (int64_t r = 0; r < OUT_ROWS; ++r) {
        const int64_t from = row + (r < n_rows ? r : n_rows - 1);
        zero[r] = ZERO_ROW(w, from);
        scale[r] = w->scale[from];
    }
    memset(sum, 0, (size_t)(pitch * OUT_ROWS) * sizeof *sum);
    for (int64_t r0 = 0; r0 < n_rows; r0 += together) {
        for (int64_t p = 0; p < w->n_in; p += PANEL) {
            for (int64_t r = r0; r < r0 + together && r < n_rows; r += ROWS)
                add_rows(sum + r * pitch, w, x, tok0, n_tok, row + r, last, p);
        }
    }
    for (int64_t t = 0; t < n_tok; ++t) {
        for (int64_t r = 0; r < n_rows; r += ROWS) {
            finish_token(y + (tok0 + t) * w->n_out + row + r, sum + r * pitch + t * ROWS,
                         _mm_loadu_si128((const __m128i *)(zero + r)), _mm_loadu_ps(scale + r), x->scale[tok0 + t],
                         x->sum[tok0 + t], n_rows - r);
        }
    }
}

INLINE void gemm_rows(float *y, const rq_w4a8 *w, const rq_act8 *x, int64_t tok0, int64_t n_tok, int64_t row0,
                      int64_t n_rows) {
    for (int64_t t = tok0; t < tok0 + n_tok; t += TOKENS) {
        const int64_t left = tok0 + n_tok - t;
        for (int64_t r = row0; r < row0 + n_rows; r += OUT_ROWS)
            some_rows(y, w, x, t, left < TOKENS ? left : TOKENS, r, row0 + n_rows - 1);
    }
}

/* u * step for the 16 codes of a group, by step. */
#define STEP(s)                                                                                                        \
    { 0, s, 2 * s, 3 * s, 4 * s, 5 * s, 6 * s, 7 * s, 8 * s, 9 * s, 10 * s, 11 * s, 12 * s, 13 * s, 14 * s, 15 * s }
static const uint8_t multiples[RQ_W4A8_MAX_STEP + 1][16] = {STEP(0),  STEP(1),  STEP(2),  STEP(3),  STEP(4),  STEP(5),
                                                            STEP(6),  STEP(7),  STEP(8),  STEP(9),  STEP(10), STEP(11),
                                                            STEP(12), STEP(13), STEP(14), STEP(15), STEP(16), STEP(17)};
#undef STEP

/* The tables of a row's groups, one after the other: bytes of the 16 codes of the group that column j is in. Asked for ascending j, at most
 * one group further each time. */
typedef struct tables {
    const uint8_t *step;
    const int8_t *base;
    int64_t group, next; /* next: the column where the group after this one begins */
    __m128i now;
    char offset;
} tables;

INLINE __m128i table_of(const tables *t) {
    return _mm_add_epi8(_mm_loadu_si128((const __m128i *)multiples[*t->step]),
                        _mm_set1_epi8((char)(*t->base + t->offset)));
}

INLINE tables tables_at(const rq_w4a8 *w, int64_t row, int64_t j, char offset) {
    const int64_t k = j / w->group, at = row * w->n_group + k;
    tables t = {w->step + at, w->base + at, w->group, (k + 1) * w->group, _mm_setzero_si128(), offset};
    t.now = table_of(&t);
    return t;
}

INLINE __m128i tables_next(tables *t, int64_t j) {
    if (j >= t->next) {
        ++t->step, ++t->base;
        t->next += t->group;
        t->now = table_of(t);
    }
    return t->now;
}
