/* SPDX-License-Identifier: Apache-2.0 */
/* The SIMD twins of gemv and unpack for vector quantization (fmt_vq.h), 1 to 16 tokens, on vectors of LANES floats. Included by
 * gemv_vq_avx2.c and gemv_vq_avx512.c, which bring vec and what is done with it, and decode_codes.
 *
 * Codes of a pair of lines are unpacked to 16 bits first, whatever their width. Codebooks stay as they are: 4 KiB for 256 entries of 8, 1
 * MiB for 65,536.
 *
 * Vectors along inputs (4 or 8): LANES columns are a few fp16 vectors put together and widened; with two stages those of the other
 * codebook are added. Groups and codebooks must be cut at multiples of LANES columns.
 * Vectors along outputs (4 or 8): a register has the weights of LANES / V columns in V rows, times x of
 * each column repeated V times. Groups may end anywhere: what is left of one is filled up with columns whose x is 0. A line is
 * multiplied whole, and the rows asked for are written. Where columns pick their codebooks, codes count from the first one's entries.
 * Anything else goes to the C twin.
 *
 * Row scales multiply the sum of a group. With a scale and a bias for each column weights are made one by one, in the roundings of the
 * definition: a bias may cancel most of a weight. Outlier columns of x are zeros in the copy that is multiplied, and their
 * products are added at the end. A row's sum is LANES lanes (times up to 4 chains for few tokens; along outputs LANES / V times up to
 * two) and one tree per cut of the columns. */

enum {
    ROWS = 2,                 /* or lines */
    MAX_CODE = XR_FLOATS / 4, /* codes of a cut */
    OUT_COLS = XR_FLOATS / 8  /* columns of a cut, along outputs */
};

typedef uint16_t line_codes[2][MAX_CODE + 16]; /* of a line, by stage */

typedef struct part { /* columns [j0, j1) of one codebook */
    float *y;         /* of the first token of this pass, row 0 */
    const rq_vq *w;
    const rq_f16 *book[2]; /* of these columns; the second is NULL with one stage */
    const float *xr;
    const float *xo; /* [n_tok][RQ_VQ_MAX_OUTLIERS]: outlier scale * x, NULL but for the first cut */
    int64_t j0, j1, row0, n_rows;
    const float *col_scale, *col_bias; /* along outputs, from j0 on; NULL: none */
} part;

/* n codes of a line from the i-th on, and 16 zeros. */
static void unpack_codes(uint16_t *to, const rq_vq *w, int stage, int64_t line, int64_t i, int64_t n) {
    int64_t done = decode_codes(to, w, stage, line, i, n);
    for (; done < n; ++done) to[done] = (uint16_t)rq_vq_code(w, stage, line, i + done);
    memset(to + n, 0, 16 * sizeof *to);
}

static void unpack_stages(line_codes to, const rq_vq *w, int64_t line, int64_t i, int64_t n) {
    unpack_codes(to[0], w, 0, line, i, n);
    if (w->n_stage == 2) unpack_codes(to[1], w, 1, line, i, n);
    for (int s = 0; w->book_of && s < w->n_stage; ++s) {
        for (int64_t c = 0; c < n; ++c) to[s][c] = (uint16_t)(to[s][c] + w->book_of[i + c] * w->n_codes[s]);
    }
}

/* Columns that are cut as if they had one codebook, and how many such runs there are. */
static int64_t run_cols(const rq_vq *w) { return w->book_of ? w->n_in : w->book_cols; }
static int64_t n_runs(const rq_vq *w) { return w->book_of ? 1 : w->n_book; }

static float outliers_of(const part *p, int64_t row, int t) {
    const rq_vq *w = p->w;
    float sum = 0.0f;
    for (int o = 0; p->xo && o < w->n_outlier; ++o) {
        sum += p->xo[t * RQ_VQ_MAX_OUTLIERS + o] * (float)w->outlier[row * w->n_outlier + o];
    }
    return sum;
}

static part part_of(const rq_vq *w, int64_t book, int64_t row0, int64_t n_rows) {
    part p = {.w = w, .j0 = book * w->book_cols, .row0 = row0, .n_rows = n_rows};
    p.book[0] = w->book[0] + book * w->n_codes[0] * w->vec_len;
    if (w->n_stage == 2) p.book[1] = w->book[1] + book * w->n_codes[1] * w->vec_len;
    return p;
}

/* The values that LANES / V codes stand for. one: there is one stage, which spares asking in a loop. */
INLINE vec values(const part *p, line_codes codes, int64_t at, int V, bool one) {
    vec v = v_vectors(p->book[0], codes[0] + at, V);
    return !one && p->book[1] ? v_add(v, v_vectors(p->book[1], codes[1] + at, V)) : v;
}

/* ---- along inputs ----------------------------------------------------------------------------------------------------- */

/* scale and bias of the columns from j on */
INLINE void column_factors(vec *factor, vec *bias, const rq_vq *w, int64_t j) {
    rq_f16 some[2][LANES] = {0};
    if (w->n_in - j >= LANES) {
        *factor = v_halves(w->col_scale + j), *bias = v_halves(w->col_bias + j);
        return;
    }
    memcpy(some[0], w->col_scale + j, (size_t)(w->n_in - j) * sizeof some[0][0]);
    memcpy(some[1], w->col_bias + j, (size_t)(w->n_in - j) * sizeof some[0][0]);
    *factor = v_halves(some[0]), *bias = v_halves(some[1]);
}

/* n runs of LANES columns from j on, all in one group; scale: of each row, where columns have factors too. plain: one stage,
 * and no factors. */
INLINE void step(vec *sum, const part *p, line_codes *codes, int n_rows, int V, int n_tok, int n, int64_t j,
                 const float *scale, bool plain) {
    const int chains = chains_of(n_tok);
    UNROLL for (int q = 0; q < n; ++q) {
        const int64_t from = j - p->j0 + LANES * q;
        vec v[ROWS];
        UNROLL for (int i = 0; i < n_rows; ++i) v[i] = values(p, codes[i], from / V, V, plain);
        if (!plain && p->w->col_scale) {
            vec factor, bias;
            column_factors(&factor, &bias, p->w, j + LANES * q);
            UNROLL for (int i = 0; i < n_rows; ++i) {
                v[i] = v_add(v_mul(v_mul(v_set1(scale[i]), v[i]), factor), bias);
            }
        }
        UNROLL for (int t = 0; t < n_tok; ++t) {
            const vec xt = v_load(p->xr + from * n_tok + LANES * t);
            UNROLL for (int i = 0; i < n_rows; ++i) {
                vec *to = &sum[(i * n_tok + t) * chains + q % chains];
                *to = v_fma(v[i], xt, *to);
            }
        }
    }
}

/* n_rows rows from r on. Everything but p and r is a constant where this is inlined. */
INLINE void some_rows(const part *p, int64_t r, int n_rows, int V, int n_tok, bool plain) {
    const rq_vq *w = p->w;
    const int chains = chains_of(n_tok);
    line_codes codes[ROWS];
    vec total[ROWS * PASS_TOK];
    UNROLL for (int i = 0; i < n_rows; ++i) unpack_stages(codes[i], w, r + i, p->j0 / V, (p->j1 - p->j0 + V - 1) / V);
    UNROLL for (int i = 0; i < n_rows * n_tok; ++i) total[i] = v_set1(0.0f);
    for (int64_t j = p->j0; j < p->j1;) {
        const int64_t k = j / w->group, end = rq_min_i64(p->j1, (k + 1) * w->group);
        vec sum[ROWS * PASS_TOK * 4];
        float scale[ROWS];
        UNROLL for (int i = 0; i < n_rows * n_tok * chains; ++i) sum[i] = v_set1(0.0f);
        UNROLL for (int i = 0; i < n_rows; ++i) {
            scale[i] = w->scale ? rq_f32_of_f16(w->scale[(r + i) * w->n_group + k]) : 1.0f;
        }
        for (; j + 4 * LANES <= end; j += 4 * LANES) step(sum, p, codes, n_rows, V, n_tok, 4, j, scale, plain);
        for (; j < end; j += LANES) step(sum, p, codes, n_rows, V, n_tok, 1, j, scale, plain);
        UNROLL for (int i = 0; i < n_rows; ++i) {
            const vec factor = v_set1(w->col_scale ? 1.0f : scale[i]);
            UNROLL for (int t = 0; t < n_tok; ++t) {
                const vec *from = &sum[(i * n_tok + t) * chains];
                vec s = from[0];
                if (chains >= 2) s = v_add(s, from[1]);
                if (chains == 4) s = v_add(s, v_add(from[2], from[3]));
                total[i * n_tok + t] = v_fma(s, factor, total[i * n_tok + t]);
            }
        }
    }
    UNROLL for (int i = 0; i < n_rows; ++i) {
        UNROLL for (int t = 0; t < n_tok; ++t) {
            float *y = p->y + t * w->n_out + r + i, value = 0.0f;
            finish(&value, &total[i * n_tok + t], 1, false);
            value += outliers_of(p, r + i, t);
            *y = p->j0 > 0 ? *y + value : value;
        }
    }
}

INLINE void all_rows(const part *p, int V, int n_tok) {
    const bool plain = !p->book[1] && !p->w->col_scale;
    int64_t r = p->row0, end = p->row0 + p->n_rows;
    for (; plain && r + 2 <= end; r += 2) some_rows(p, r, 2, V, n_tok, true);
    for (; r + 2 <= end; r += 2) some_rows(p, r, 2, V, n_tok, false);
    if (r < end) some_rows(p, r, 1, V, n_tok, false); /* the same sums in the same order */
}

/* Outlier columns: out of the packed x, and as products with their scales. */
static void take_outliers(part *p, float *xr, float *xo, const float *x, int64_t n_tok) {
    const rq_vq *w = p->w;
    p->xo = p->j0 == 0 && w->n_outlier ? xo : NULL;
    for (int64_t t = 0; t < n_tok; ++t) {
        for (int o = 0; o < w->n_outlier; ++o) {
            int64_t j = w->outlier_col[o] - p->j0;
            xo[t * RQ_VQ_MAX_OUTLIERS + o] = w->outlier_scale[o] * x[t * w->n_in + w->outlier_col[o]];
            if (j >= 0 && j < p->j1 - p->j0) xr[(j / LANES * n_tok + t) * LANES + j % LANES] = 0.0f;
        }
    }
}

/* ---- along outputs ---------------------------------------------------------------------------------------------------- */

/* LANES / V columns, at `i` of the codes and `c` of x and the columns' factors, in n_lines lines. */
INLINE void step_out(vec *sum, const part *p, line_codes *codes, const float *x, const float *col_scale,
                     const float *col_bias, int64_t pitch, int n_lines, int V, int n_tok, int64_t i, int64_t c,
                     const vec *scale) {
    vec v[ROWS];
    UNROLL for (int l = 0; l < n_lines; ++l) v[l] = values(p, codes[l], i, V, false);
    if (col_scale) {
        const vec factor = v_spread(col_scale + c, V), bias = v_spread(col_bias + c, V);
        UNROLL for (int l = 0; l < n_lines; ++l) v[l] = v_add(v_mul(v_mul(scale[l], v[l]), factor), bias);
    }
    UNROLL for (int t = 0; t < n_tok; ++t) {
        const vec xt = v_spread(x + t * pitch + c, V);
        UNROLL for (int l = 0; l < n_lines; ++l) sum[l * n_tok + t] = v_fma(v[l], xt, sum[l * n_tok + t]);
    }
}

/* The last columns of a group or cut, fewer than LANES / V: the others are filled with zeros. */
INLINE void rest_out(vec *sum, const part *p, line_codes *codes, int n_lines, int V, int n_tok, int64_t i, int64_t n,
                     const vec *scale) {
    float x[PASS_TOK][LANES + LANES] = {{0}}, factor[2 * LANES] = {0}, bias[2 * LANES] = {0};
    for (int t = 0; t < n_tok; ++t) memcpy(x[t], p->xr + t * OUT_COLS + i, (size_t)n * sizeof **x);
    if (p->col_scale) {
        memcpy(factor, p->col_scale + i, (size_t)n * sizeof *factor);
        memcpy(bias, p->col_bias + i, (size_t)n * sizeof *bias);
    }
    step_out(sum, p, codes, x[0], p->col_scale ? factor : NULL, bias, 2 * LANES, n_lines, V, n_tok, i, 0, scale);
}

/* The scales of the rows of a line, in the lanes of their weights; 0 for rows that are not there. */
INLINE vec line_scales(const rq_vq *w, int64_t line, int64_t k, int V) {
    float s[LANES] = {0};
    for (int64_t l = 0; l < LANES; ++l) {
        int64_t row = line * V + l % V;
        if (row < w->n_out) s[l] = w->scale ? rq_f32_of_f16(w->scale[row * w->n_group + k]) : 1.0f;
    }
    return v_load(s);
}

/* n_lines lines from `line` on. Everything but p and line is a constant where this is inlined. */
INLINE void some_lines(const part *p, int64_t line, int n_lines, int V, int n_tok) {
    const rq_vq *w = p->w;
    const int columns = LANES / V, chains = n_tok < 4 ? 2 : 1;
    line_codes codes[ROWS];
    vec total[ROWS * PASS_TOK], scale[ROWS], sum[2][ROWS * PASS_TOK];
    UNROLL for (int l = 0; l < n_lines; ++l) unpack_stages(codes[l], w, line + l, p->j0, p->j1 - p->j0);
    UNROLL for (int i = 0; i < n_lines * n_tok; ++i) total[i] = v_set1(0.0f);
    for (int64_t j = p->j0; j < p->j1;) {
        const int64_t k = j / w->group, end = rq_min_i64(p->j1, (k + 1) * w->group) - p->j0;
        int64_t i = j - p->j0;
        UNROLL for (int l = 0; l < n_lines; ++l) scale[l] = line_scales(w, line + l, k, V);
        UNROLL for (int s = 0; s < n_lines * n_tok; ++s) sum[0][s] = sum[1][s] = v_set1(0.0f);
        for (; i + chains * columns <= end; i += chains * columns) {
            UNROLL for (int c = 0; c < chains; ++c)
                step_out(sum[c], p, codes, p->xr, p->col_scale, p->col_bias, OUT_COLS, n_lines, V, n_tok,
                         i + c * columns, i + c * columns, scale);
        }
        for (; i < end; i += columns)
            rest_out(sum[0], p, codes, n_lines, V, n_tok, i, rq_min_i64(columns, end - i), scale);
        UNROLL for (int s = 0; s < n_lines * n_tok; ++s) {
            const vec both = v_add(sum[0][s], sum[1][s]);
            total[s] = p->col_scale ? v_add(total[s], both) : v_fma(both, scale[s / n_tok], total[s]);
        }
        j = p->j0 + end;
    }
    for (int s = 0; s < n_lines * n_tok; ++s) {
        float lane[LANES];
        v_store(lane, total[s]);
        for (int e = 0; e < V; ++e) {
            const int64_t row = (line + s / n_tok) * V + e;
            float *y = p->y + s % n_tok * w->n_out + row, value = lane[e];
            if (row < p->row0 || row >= p->row0 + p->n_rows) continue;
            for (int c = 1; c < columns; ++c) value += lane[c * V + e];
            value += outliers_of(p, row, s % n_tok);
            *y = p->j0 > 0 ? *y + value : value;
        }
    }
}

INLINE void all_lines(const part *p, int V, int n_tok) {
    int64_t line = p->row0 / V, end = (p->row0 + p->n_rows + V - 1) / V;
    for (; line + 2 <= end; line += 2) some_lines(p, line, 2, V, n_tok);
    if (line < end) some_lines(p, line, 1, V, n_tok);
}

static void floats_of_halves(float *to, const rq_f16 *from, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) v_store(to + i, v_halves(from + i));
    for (; i < n; ++i) to[i] = rq_f32_of_f16(from[i]);
}

/* ---- which of them ---------------------------------------------------------------------------------------------------- */

typedef void (*rows_fn)(const part *p);
#define ROWS_OF(V, n_tok)                                                                                              \
    static void rows_##V##_##n_tok(const part *p) { all_rows(p, V, n_tok); }                                           \
    static void lines_##V##_##n_tok(const part *p) { all_lines(p, V, n_tok); }
#define ROWS_ALL(V) ROWS_OF(V, 1) ROWS_OF(V, 2) ROWS_OF(V, 3) ROWS_OF(V, 4) RQ_VQ_EIGHT(V)
ROWS_ALL(4)
ROWS_ALL(8)
// clang-format off
#define ROWS_LIST(name) {NULL, name##_1, name##_2, name##_3, name##_4, RQ_VQ_EIGHT_OF(name)}
// clang-format on
static const rows_fn rows_table[2][2][PASS_TOK + 1] = {{ROWS_LIST(rows_4), ROWS_LIST(rows_8)},
                                                       {ROWS_LIST(lines_4), ROWS_LIST(lines_8)}};

static void run_rows(const part *p, int64_t n_tok) { rows_table[p->w->vec_out != 0][p->w->vec_len == 8][n_tok](p); }

static bool fits(const rq_vq *w) {
    if (w->vec_len != 4 && w->vec_len != 8) return false;
    for (int s = 0; w->book_of && s < w->n_stage; ++s)
        if (w->n_book * w->n_codes[s] > 1 << 16) return false; /* codes are 16 bits here */
    return w->vec_out || ((w->n_group == 1 || w->group % LANES == 0) && (w->n_book == 1 || w->book_cols % LANES == 0));
}

static void gemv_in(float *y, const rq_vq *w, const float *x, int64_t n_tok, int64_t row0, int64_t n_rows) {
    float xr[XR_FLOATS] __attribute__((aligned(64))), xo[PASS_TOK * RQ_VQ_MAX_OUTLIERS];
    const int64_t most = XR_FLOATS / rq_min_i64(n_tok, PASS_TOK) / 64 * 64;
    for (int64_t b = 0; b < w->n_book; ++b) {
        part p = part_of(w, b, row0, n_rows);
        p.xr = xr;
        for (int64_t end = rq_min_i64(w->n_in, p.j0 + w->book_cols); p.j0 < end; p.j0 = p.j1) {
            p.j1 = rq_min_i64(end, p.j0 + most);
            for (int64_t t = 0, n; t < n_tok; t += n) {
                n = pass_tokens(n_tok - t);
                pack_x(xr, x + t * w->n_in, w->n_in, n, p.j0, p.j1);
                take_outliers(&p, xr, xo, x + t * w->n_in, n);
                p.y = y + t * w->n_out;
                run_rows(&p, n);
            }
        }
    }
}

static void gemv_out(float *y, const rq_vq *w, const float *x, int64_t n_tok, int64_t row0, int64_t n_rows) {
    /* v_spread reads LANES floats */
    float xr[PASS_TOK * OUT_COLS + LANES], xo[PASS_TOK * RQ_VQ_MAX_OUTLIERS], factor[OUT_COLS + LANES],
        bias[OUT_COLS + LANES];
    memset(xr, 0, sizeof xr), memset(factor, 0, sizeof factor), memset(bias, 0, sizeof bias);
    for (int64_t b = 0; b < n_runs(w); ++b) {
        part p = part_of(w, b, row0, n_rows);
        p.xr = xr;
        for (int64_t end = rq_min_i64(w->n_in, p.j0 + run_cols(w)); p.j0 < end; p.j0 = p.j1) {
            p.j1 = rq_min_i64(end, p.j0 + OUT_COLS);
            if (w->col_scale) {
                floats_of_halves(factor, w->col_scale + p.j0, p.j1 - p.j0), p.col_scale = factor;
                floats_of_halves(bias, w->col_bias + p.j0, p.j1 - p.j0), p.col_bias = bias;
            }
            for (int64_t t = 0, n; t < n_tok; t += n) {
                n = pass_tokens(n_tok - t);
                p.xo = p.j0 == 0 && w->n_outlier ? xo : NULL;
                for (int64_t i = 0; i < n; ++i) {
                    const float *from = x + (t + i) * w->n_in;
                    memcpy(xr + i * OUT_COLS, from + p.j0, (size_t)(p.j1 - p.j0) * sizeof *xr);
                    for (int o = 0; o < w->n_outlier; ++o) {
                        int64_t j = w->outlier_col[o];
                        xo[i * RQ_VQ_MAX_OUTLIERS + o] = w->outlier_scale[o] * from[j];
                        if (j >= p.j0 && j < p.j1) xr[i * OUT_COLS + j - p.j0] = 0.0f;
                    }
                }
                p.y = y + t * w->n_out;
                run_rows(&p, n);
            }
        }
    }
}

static void gemv_any(float *y, const rq_vq *w, const float *x, int64_t n_tok, int64_t row0, int64_t n_rows) {
    if (!fits(w))
        rq_gemv_vq_c(y, w, x, n_tok, row0, n_rows);
    else if (w->vec_out)
        gemv_out(y, w, x, n_tok, row0, n_rows);
    else
        gemv_in(y, w, x, n_tok, row0, n_rows);
}

/* ---- unpack ----------------------------------------------------------------------------------------------------------- */

/* Columns [p->j0, p->j1) of a row; dst: of the row's first column. */
INLINE void unpack_in(float *dst, const part *p, int64_t row, int V) {
    const rq_vq *w = p->w;
    line_codes codes;
    unpack_stages(codes, w, row, p->j0 / V, (p->j1 - p->j0 + V - 1) / V);
    for (int64_t j = p->j0; j < p->j1; j += LANES) {
        vec v = values(p, codes, (j - p->j0) / V, V, false);
        if (w->scale) v = v_mul(v_set1(rq_f32_of_f16(w->scale[row * w->n_group + j / w->group])), v);
        if (w->col_scale) {
            vec factor, bias;
            column_factors(&factor, &bias, w, j);
            v = v_add(v_mul(v, factor), bias);
        }
        float some[LANES];
        v_store(some, v);
        memcpy(dst + j, some, (size_t)rq_min_i64(LANES, p->j1 - j) * sizeof *dst);
    }
}

/* Columns [p->j0, p->j1) of the rows of a line that are asked for; dst: of row p->row0, column 0. */
INLINE void unpack_out(float *dst, const part *p, int64_t line, int V) {
    const rq_vq *w = p->w;
    line_codes codes;
    vec scale = v_set1(1.0f);
    int64_t until = 0; /* column where another group begins */
    unpack_stages(codes, w, line, p->j0, p->j1 - p->j0);
    for (int64_t j = p->j0; j < p->j1; ++j) {
        float some[LANES], *to = dst + j;
        if (j >= until) {
            scale = line_scales(w, line, j / w->group, V);
            until = (j / w->group + 1) * w->group;
        }
        vec v = values(p, codes, j - p->j0, V, false); /* of this column and those after it */
        if (w->scale) v = v_mul(scale, v);
        if (w->col_scale) {
            v = v_mul(v, v_set1(rq_f32_of_f16(w->col_scale[j])));
            v = v_add(v, v_set1(rq_f32_of_f16(w->col_bias[j])));
        }
        v_store(some, v);
        for (int64_t e = 0; e < V; ++e) {
            int64_t row = line * V + e - p->row0;
            if (row >= 0 && row < p->n_rows) to[row * w->n_in] = some[e];
        }
    }
}

static void unpack_columns(float *dst, const part *p) {
    const int64_t V = p->w->vec_len;
    if (p->w->vec_out) {
        for (int64_t line = p->row0 / V; line * V < p->row0 + p->n_rows; ++line) {
            if (V == 8)
                unpack_out(dst, p, line, 8);
            else
                unpack_out(dst, p, line, 4);
        }
        return;
    }
    for (int64_t r = 0; r < p->n_rows; ++r) {
        if (V == 8)
            unpack_in(dst + r * p->w->n_in, p, p->row0 + r, 8);
        else
            unpack_in(dst + r * p->w->n_in, p, p->row0 + r, 4);
    }
}

static void unpack_any(float *dst, const rq_vq *w, int64_t row0, int64_t n_rows) {
    if (!fits(w)) {
        rq_unpack_vq_c(dst, w, row0, n_rows);
        return;
    }
    for (int64_t b = 0; b < n_runs(w); ++b) {
        part p = part_of(w, b, row0, n_rows);
        for (int64_t end = rq_min_i64(w->n_in, p.j0 + run_cols(w)); p.j0 < end; p.j0 = p.j1) {
            p.j1 = rq_min_i64(end, p.j0 + OUT_COLS);
            unpack_columns(dst, &p);
        }
    }
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int o = 0; o < w->n_outlier; ++o) {
            dst[r * w->n_in + w->outlier_col[o]] =
                w->outlier_scale[o] * (float)w->outlier[(row0 + r) * w->n_outlier + o];
        }
    }
}
