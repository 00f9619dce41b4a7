/* SPDX-License-Identifier: Apache-2.0 */
/* VQ weights as tiles (fmt_tile.h), and back. One function knows where a code is, and both ways go through it. */
#include "rq_repack.h"

enum { STEP_COLS = 32, LANE_COLS = 8, LANES = 32 };

static rq_status refuse(const char **why, const char *text) {
    if (why) *why = text;
    return RQ_ERR_UNSUPPORTED;
}

/* 0 x infinity would reach the sums of rows that have nothing to do with it: x is zero where a tile is padded. */
static bool is_finite(const rq_f16 *v, int64_t n) {
    for (int64_t i = 0; v && i < n; ++i)
        if ((v[i].bits & 0x7c00u) == 0x7c00u) return false;
    return true;
}
static int64_t book_values(const rq_vq *q, int stage) { return q->n_book * q->n_codes[stage] * q->vec_len; }

static bool same_columns(const rq_f16 *a, const rq_f16 *b, int64_t n) {
    if (!a != !b) return false;
    return !a || memcmp(a, b, (size_t)n * sizeof *a) == 0;
}
static const char *not_stackable(const rq_vq *a, const rq_vq *b) {
    if (a->n_in != b->n_in || a->vec_len != b->vec_len || !a->vec_out != !b->vec_out || a->group != b->group ||
        a->n_group != b->n_group)
        return "the stacked matrices have different columns, vectors or groups";
    bool books = a->n_stage == b->n_stage && a->n_book == b->n_book && a->book_cols == b->book_cols;
    for (int s = 0; books && s < a->n_stage; ++s)
        books = a->n_codes[s] == b->n_codes[s] &&
                memcmp(a->book[s], b->book[s], (size_t)book_values(a, s) * sizeof(rq_f16)) == 0;
    if (!books) return "the stacked matrices have different codebooks";
    if (!a->scale != !b->scale || !same_columns(a->col_scale, b->col_scale, a->n_in) ||
        !same_columns(a->col_bias, b->col_bias, a->n_in))
        return "the stacked matrices have different scales of columns, or not all have scales";
    if (a->n_outlier != b->n_outlier ||
        (a->n_outlier && memcmp(a->outlier_col, b->outlier_col, (size_t)a->n_outlier * sizeof(int32_t)) != 0))
        return "the stacked matrices have different outlier columns";
    return NULL;
}

static const char *unsuitable(const rq_vq *m) {
    if (m->vec_out ? m->vec_len != 8 : m->vec_len != 4 && m->vec_len != 8)
        return m->vec_out ? "vectors down the rows have 8 of them" : "vectors of 4 or 8 columns only";
    if (m->n_stage != 1 && m->n_stage != 2) return "1 or 2 stages only";
    for (int s = 0; s < m->n_stage; ++s) {
        if (m->n_codes[s] < 1 || m->n_codes[s] > 65536) return "codebooks of at most 65536 entries only";
        if (!is_finite(m->book[s], book_values(m, s))) return "a value of a codebook is not finite";
    }
    if (m->group < 1 || (m->n_group > 1 && m->group % STEP_COLS)) return "groups are multiples of 32 columns";
    if (m->n_book < 1 || (m->n_book > 1 && m->book_cols % RQ_TILE_COLS))
        return "columns of one codebook are multiples of 128";
    if (m->book_of) return "columns that share a codebook are neighbours";
    if (m->n_outlier < 0 || m->n_outlier > RQ_VQ_MAX_OUTLIERS) return "at most 16 outlier columns";
    if (!m->col_scale != !m->col_bias) return "columns have scales and biases, or neither";
    if (!is_finite(m->col_scale, m->n_in) || !is_finite(m->col_bias, m->n_in))
        return "a scale or bias of a column is not finite";
    return NULL;
}

rq_status rq_repack_vq_plan(rq_tile_layout *t, const rq_vq *m, int n, const char **why) {
    if (n < 1) return refuse(why, "no matrix to repack");
    const char *text = unsuitable(m);
    if (text) return refuse(why, text);
    int64_t rows = 0;
    for (int i = 0; i < n; ++i) {
        if ((text = not_stackable(&m[0], &m[i]))) return refuse(why, text);
        if (rows % RQ_TILE_ROWS) return refuse(why, "all stacked matrices but the last have multiples of 16 rows");
        rows += m[i].n_out;
    }
    *t = (rq_tile_layout){.kind = RQ_TILE_VQ,
                          .n_out = rows,
                          .n_in = m->n_in,
                          .vec_len = m->vec_len,
                          .vec_out = m->vec_out != 0,
                          .n_stage = m->n_stage,
                          .no_scales = !m->scale,
                          .columns = m->col_scale != NULL,
                          .n_codes = {m->n_codes[0], m->n_stage > 1 ? m->n_codes[1] : 0},
                          .group = m->scale && m->n_group > 1 ? m->group : m->n_in,
                          .n_book = m->n_book,
                          .book_cols = m->n_book > 1 ? m->book_cols : m->n_in,
                          .n_outlier = m->n_outlier};
    rq_tile_plan(t);
    return RQ_OK;
}

/* ---- where a code is in a tile */
static int words_of(const rq_tile_layout *t, int stage) { /* of a lane */
    return 64 / t->vec_len * rq_tile_code_bits(t->n_codes[stage]) / 32;
}
/* The byte offset of a lane's word in a tile: parts of 16 bytes, then of 8, then of 4. */
static int64_t word_at(const rq_tile_layout *t, int lane, int word) {
    int n = words_of(t, 0) + (t->n_stage > 1 ? words_of(t, 1) : 0), part = word / 4 * 4;
    int size = n - part >= 4 ? 4 : n - part >= 2 && word - part < 2 ? 2 : 1; /* words of its part, in 1 after 2 */
    if (size == 1 && n - part == 3) part += 2;
    return ((int64_t)part * LANES + lane * size + word - part) * 4;
}

typedef struct place {
    int64_t tile; /* byte offset of the tile */
    int lane, code;
} place;
/* The vector whose first weight is (row, j). */
static place place_of(const rq_tile_layout *t, int64_t row, int64_t j) {
    int in_tile = (int)(j % RQ_TILE_COLS), r = (int)(row % RQ_TILE_ROWS), c = in_tile % STEP_COLS;
    place p;
    p.tile = t->tiles + (row / RQ_TILE_ROWS * t->n_kb + j / RQ_TILE_COLS) * t->tile_bytes;
    p.code = (in_tile / STEP_COLS * 2 + r / 8) * (LANE_COLS / t->vec_len);
    if (t->vec_out) {
        p.lane = c % 8 / 2 * 8 + c / 8 * 2 + c % 2;
        p.code = in_tile / STEP_COLS * 2 + r / 8;
    } else {
        p.lane = r % 8 * 4 + c / LANE_COLS;
        p.code += c % LANE_COLS / t->vec_len;
    }
    return p;
}

/* A code may begin in one word and end in the next. */
typedef struct piece {
    int64_t at;               /* byte offset of the word */
    int offset, from, n_bits; /* these bits of the code, from bit `offset` of the word */
} piece;
static int pieces_of(piece to[2], const rq_tile_layout *t, place p, int stage) {
    int bits = rq_tile_code_bits(t->n_codes[stage]), at = p.code * bits, n = 0;
    for (int done = 0; done < bits; ++n) {
        int offset = (at + done) % 32, room = 32 - offset, left = bits - done;
        to[n].at = p.tile + word_at(t, p.lane, (stage ? words_of(t, 0) : 0) + (at + done) / 32);
        to[n].offset = offset, to[n].from = done, to[n].n_bits = room < left ? room : left;
        done += to[n].n_bits;
    }
    return n;
}
static void put_code(uint8_t *tiles, const rq_tile_layout *t, place p, int stage, uint32_t code) {
    piece all[2];
    int n = pieces_of(all, t, p, stage);
    for (int i = 0; i < n; ++i) {
        uint32_t word;
        memcpy(&word, tiles + all[i].at, 4);
        word |= (code >> all[i].from & ((1u << all[i].n_bits) - 1u)) << all[i].offset;
        memcpy(tiles + all[i].at, &word, 4);
    }
}
static uint32_t get_code(const uint8_t *tiles, const rq_tile_layout *t, place p, int stage) {
    piece all[2];
    int n = pieces_of(all, t, p, stage);
    uint32_t code = 0;
    for (int i = 0; i < n; ++i) {
        uint32_t word;
        memcpy(&word, tiles + all[i].at, 4);
        code |= (word >> all[i].offset & ((1u << all[i].n_bits) - 1u)) << all[i].from;
    }
    return code;
}

/* ---- there */
static void pack_row(uint8_t *to, const rq_tile_layout *t, const rq_vq *q, int64_t row, int64_t first) {
    int64_t rb = (first + row) / RQ_TILE_ROWS, r = (first + row) % RQ_TILE_ROWS;
    for (int64_t g = 0; q->scale && g < t->n_group; ++g)
        memcpy(to + t->scales + ((rb * t->n_group + g) * RQ_TILE_ROWS + r) * 2, &q->scale[row * q->n_group + g], 2);
    for (int o = 0; o < t->n_outlier; ++o)
        memcpy(to + t->outliers + (rb * t->n_outlier + o) * RQ_TILE_ROWS + r, &q->outlier[row * q->n_outlier + o], 1);
    if (q->vec_out && row % q->vec_len) return;
    int64_t line = q->vec_out ? row / q->vec_len : row, step = q->vec_out ? 1 : q->vec_len;
    for (int64_t k = 0; k < q->n_code; ++k)
        for (int s = 0; s < q->n_stage; ++s)
            put_code(to, t, place_of(t, first + row, k * step), s, rq_vq_code(q, s, line, k));
}

void rq_repack_vq(void *to_, const rq_tile_layout *t, const rq_vq *m, int n) {
    uint8_t *to = to_;
    size_t columns = (size_t)t->n_in * sizeof(rq_f16);
    memset(to, 0, (size_t)t->bytes);
    for (int s = 0; s < m->n_stage; ++s)
        memcpy(to + (s ? t->book_2 : t->book), m->book[s], (size_t)rq_tile_book_bytes(t, s));
    if (t->columns) {
        memcpy(to + t->columns_at, m->col_scale, columns);
        memcpy(to + t->columns_at + (int64_t)columns, m->col_bias, columns);
    }
    if (t->n_outlier) memcpy(to + t->outlier_cols, m->outlier_col, (size_t)t->n_outlier * sizeof(int32_t));
    int64_t first = 0;
    for (int i = 0; i < n; first += m[i++].n_out) {
        for (int64_t row = 0; row < m[i].n_out; ++row) pack_row(to, t, &m[i], row, first);
        for (int64_t rb = first / RQ_TILE_ROWS; t->n_outlier && rb * RQ_TILE_ROWS < first + m[i].n_out; ++rb)
            memcpy(to + t->outlier_scales + rb * t->n_outlier * 4, m[i].outlier_scale, (size_t)t->n_outlier * 4);
    }
}

/* ---- back */
static void put_bits(uint32_t *words, int64_t at, int bits, uint32_t value) {
    int o = (int)(at % 32);
    words[at / 32] |= value << o;
    if (o && o + bits > 32) words[at / 32 + 1] |= value >> (32 - o);
}

static void unpack_row(const rq_vq_arrays *to, const rq_vq *q, const rq_tile_layout *t, const uint8_t *from,
                       int64_t row, int64_t first) {
    int64_t rb = (first + row) / RQ_TILE_ROWS, r = (first + row) % RQ_TILE_ROWS;
    for (int64_t g = 0; to->scale && !t->no_scales && g < t->n_group; ++g)
        memcpy(&to->scale[row * q->n_group + g], from + t->scales + ((rb * t->n_group + g) * RQ_TILE_ROWS + r) * 2, 2);
    for (int o = 0; to->outlier && o < t->n_outlier; ++o)
        memcpy(&to->outlier[row * q->n_outlier + o], from + t->outliers + (rb * t->n_outlier + o) * RQ_TILE_ROWS + r,
               1);
    if (q->vec_out && row % q->vec_len) return;
    int64_t line = q->vec_out ? row / q->vec_len : row, step = q->vec_out ? 1 : q->vec_len;
    for (int s = 0; s < q->n_stage; ++s) {
        if (!to->codes[s]) continue;
        uint32_t *words = to->codes[s] + line * q->code_words[s];
        memset(words, 0, (size_t)q->code_words[s] * 4);
        for (int64_t k = 0; k < q->n_code; ++k)
            put_bits(words, k * q->code_bits[s], q->code_bits[s],
                     get_code(from, t, place_of(t, first + row, k * step), s));
    }
}

void rq_repack_vq_back(const rq_vq_arrays *to, const rq_vq *shape, const rq_tile_layout *t, const void *from_,
                       int64_t first) {
    const uint8_t *from = from_;
    size_t columns = (size_t)t->n_in * sizeof(rq_f16), outliers = (size_t)t->n_outlier * 4;
    for (int64_t row = 0; row < shape->n_out; ++row) unpack_row(to, shape, t, from, row, first);
    for (int s = 0; s < t->n_stage; ++s)
        if (to->book[s]) memcpy(to->book[s], from + (s ? t->book_2 : t->book), (size_t)rq_tile_book_bytes(t, s));
    if (t->columns && to->col_scale) memcpy(to->col_scale, from + t->columns_at, columns);
    if (t->columns && to->col_bias) memcpy(to->col_bias, from + t->columns_at + (int64_t)columns, columns);
    if (t->n_outlier && to->outlier_col) memcpy(to->outlier_col, from + t->outlier_cols, outliers);
    if (t->n_outlier && to->outlier_scale)
        memcpy(to->outlier_scale, from + t->outlier_scales + first / RQ_TILE_ROWS * t->n_outlier * 4, outliers);
}
