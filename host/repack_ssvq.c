/* SPDX-License-Identifier: Apache-2.0 */
/* SSVQ weights as tiles (fmt_tile.h), and back. One function knows where a bit is, and both ways go through it. */
#include "rq_repack.h"

enum { STEP_COLS = 32, LANE_COLS = 8, PAIRS = 4, LANES = 32, MOST_BITS = 12 };

static rq_status refuse(const char **why, const char *text) {
    if (why) *why = text;
    return RQ_ERR_UNSUPPORTED;
}

static size_t book_bytes(const rq_ssvq *s) {
    return (size_t)(s->n_book * s->n_codes * s->vec_len) * (s->book_u8 ? 1 : sizeof(rq_f16));
}
static const void *book_of(const rq_ssvq *s) {
    return s->book_u8 ? (const void *)s->book_u8 : (const void *)s->book_f16;
}

/* 0 x infinity would reach the sums of rows that have nothing to do with it: x is zero where a tile is padded. */
static bool book_is_finite(const rq_ssvq *s) {
    if (s->book_u8) return true;
    for (int64_t i = 0; i < s->n_book * s->n_codes * s->vec_len; ++i)
        if ((s->book_f16[i].bits & 0x7c00u) == 0x7c00u) return false;
    return true;
}

static const char *not_stackable(const rq_ssvq *a, const rq_ssvq *b) {
    if (a->n_in != b->n_in || a->vec_len != b->vec_len || a->group != b->group || a->n_group != b->n_group)
        return "the stacked matrices have different columns, vectors or groups";
    if (a->n_book != b->n_book || a->book_cols != b->book_cols || a->n_codes != b->n_codes ||
        !a->book_u8 != !b->book_u8 || memcmp(book_of(a), book_of(b), book_bytes(a)) != 0)
        return "the stacked matrices have different codebooks";
    if (a->n_outlier != b->n_outlier ||
        (a->n_outlier && memcmp(a->outlier_col, b->outlier_col, (size_t)a->n_outlier * sizeof(int32_t)) != 0))
        return "the stacked matrices have different outlier columns";
    return NULL;
}

rq_status rq_repack_ssvq_plan(rq_tile_layout *t, const rq_ssvq *m, int n, const char **why) {
    if (n < 1) return refuse(why, "no matrix to repack");
    if (m->vec_len != 4 && m->vec_len != 8) return refuse(why, "vectors of 4 or 8 columns only");
    int code_bits = 0;
    for (int i = 0; i < n; ++i) {
        if (m[i].code_bits < 1 || m[i].code_bits > MOST_BITS) return refuse(why, "codes of at most 12 bits only");
        if (m[i].code_bits > code_bits) code_bits = m[i].code_bits;
    }
    if (m->group < 1 || (m->n_group > 1 && m->group % STEP_COLS))
        return refuse(why, "groups are multiples of 32 columns");
    if (m->n_book < 1 || (m->n_book > 1 && m->book_cols % RQ_TILE_COLS))
        return refuse(why, "columns of one codebook are multiples of 128");
    if (m->n_outlier < 0 || m->n_outlier > RQ_SSVQ_MAX_OUTLIERS) return refuse(why, "at most 16 outlier columns");
    if (m->n_codes < 1 || m->n_codes > 1 << code_bits)
        return refuse(why, "a codebook has more entries than its codes can name");
    if (!book_is_finite(m)) return refuse(why, "a magnitude is not finite");
    int64_t rows = 0;
    for (int i = 0; i < n; ++i) {
        const char *text = not_stackable(&m[0], &m[i]);
        if (text) return refuse(why, text);
        if (rows % RQ_TILE_ROWS) return refuse(why, "all stacked matrices but the last have multiples of 16 rows");
        rows += m[i].n_out;
    }
    *t = (rq_tile_layout){.kind = RQ_TILE_SSVQ,
                          .n_out = rows,
                          .n_in = m->n_in,
                          .bits = m->vec_len == 8 ? 2 : 3,
                          .vec_len = m->vec_len,
                          .code_bits = code_bits,
                          .group = m->n_group > 1 ? m->group : m->n_in,
                          .n_book = m->n_book,
                          .book_cols = m->n_book > 1 ? m->book_cols : m->n_in,
                          .book_u8 = m->book_u8 != NULL,
                          .n_outlier = m->n_outlier};
    rq_tile_plan(t);
    return RQ_OK;
}

/* ---- where things are in a tile */
typedef struct place {
    int64_t tile; /* byte offset of the tile */
    int step, lane, upper;
} place;

/* The lane that holds columns j .. j + 7 (j a multiple of 8) of a row. */
static place place_of(const rq_tile_layout *t, int64_t row, int64_t j) {
    int in_tile = (int)(j % RQ_TILE_COLS), r = (int)(row % RQ_TILE_ROWS);
    place p;
    p.tile = t->tiles + (row / RQ_TILE_ROWS * t->n_kb + j / RQ_TILE_COLS) * t->tile_bytes;
    p.step = in_tile / STEP_COLS;
    p.lane = r % 8 * 4 + in_tile % STEP_COLS / LANE_COLS;
    p.upper = r / 8;
    return p;
}
static uint32_t load32(const uint8_t *p) {
    uint32_t w;
    memcpy(&w, p, 4);
    return w;
}
static void or32(uint8_t *p, uint32_t bits) {
    uint32_t w = load32(p) | bits;
    memcpy(p, &w, 4);
}
/* The word with the codes of a step, the word with its signs, and the bits in them. */
static int64_t code_word(const rq_tile_layout *t, place p) {
    return p.tile + p.lane * 16 + (t->vec_len == 8 ? p.step / 2 : p.step) * 4;
}
static int64_t sign_word(const rq_tile_layout *t, place p) {
    return p.tile + (t->vec_len == 8 ? p.lane * 16 + 8 : LANES * 16 + p.lane * 8) + p.step / 2 * 4;
}
static int code_shift(const rq_tile_layout *t, place p, int vector) {
    return t->vec_len == 8 ? 16 * (p.step % 2) + 8 * p.upper : 16 * p.upper + 8 * vector;
}
/* Where the bits are of a code that are not in its byte: the word, and the bit in it. */
static int64_t high_word(const rq_tile_layout *t, place p, int vector, int *bit) {
    int high = rq_tile_high_bits(t->code_bits), lane_bytes = 8 / t->vec_len * high;
    int j = t->vec_len == 8 ? p.step / 2 : p.step;
    int b = t->vec_len == 8 ? 2 * (p.step % 2) + p.upper : 2 * p.upper + vector;
    int at = high == 4         ? 32 * (j / 2) + 8 * b + 4 * (j % 2)
             : t->vec_len == 4 ? 8 * b + 2 * j
                               : 4 * j + 8 * (b % 2) + b / 2 * 2;
    /* A lane's bytes may be two only: the word that they are in. */
    at += p.lane * lane_bytes * 8;
    *bit = at % 32;
    return p.tile + LANES * (t->vec_len == 8 ? 16 : 24) + at / 32 * 4;
}
static int sign_shift(place p, int pair) { /* of the even column; the odd one's is 16 higher */
    return 15 - 4 * (p.step % 2) - 2 * p.upper - pair / 2 - 8 * (pair % 2);
}

static uint32_t signs_of(const rq_ssvq *s, int64_t row, int64_t j) { /* of columns j .. j + 7, all in one word */
    return s->signs[row * s->sign_words + j / 32] >> (j % 32) & 0xffu;
}

static void pack_row(uint8_t *to, const rq_tile_layout *t, const rq_ssvq *s, int64_t row, int64_t first) {
    int64_t n_vec = rq_ssvq_n_vec(s->n_in, s->vec_len);
    int per_lane = LANE_COLS / s->vec_len;
    for (int64_t j = 0; j < s->n_in; j += LANE_COLS) {
        place p = place_of(t, first + row, j);
        for (int v = 0; v < per_lane; ++v) {
            int64_t vec = j / s->vec_len + v;
            if (vec >= n_vec) continue;
            uint32_t code = rq_ssvq_code(s, row, vec);
            or32(to + code_word(t, p), (code & 0xffu) << code_shift(t, p, v));
            if (t->code_bits <= 8) continue;
            int bit;
            int64_t at = high_word(t, p, v, &bit);
            or32(to + at, code >> 8 << bit);
        }
        uint32_t signs = signs_of(s, row, j);
        for (int pair = 0; pair < PAIRS; ++pair) {
            uint32_t two = signs >> (2 * pair) & 3u;
            or32(to + sign_word(t, p), ((two & 1u) | (two & 2u) << 15) << sign_shift(p, pair));
        }
    }
    for (int64_t g = 0; g < t->n_group; ++g) {
        int64_t at = ((first + row) / RQ_TILE_ROWS * t->n_group + g) * RQ_TILE_ROWS + (first + row) % RQ_TILE_ROWS;
        memcpy(to + t->scales + at * 2, &s->scale[row * s->n_group + g], 2);
    }
    for (int o = 0; o < t->n_outlier; ++o) {
        int64_t at = ((first + row) / RQ_TILE_ROWS * t->n_outlier + o) * RQ_TILE_ROWS + (first + row) % RQ_TILE_ROWS;
        memcpy(to + t->outliers + at, &s->outlier[row * s->n_outlier + o], 1);
    }
}

/* Books in the tiles have rq_tile_ssvq_codes() entries, in the format n_codes. */
static void pack_books(uint8_t *to, const rq_tile_layout *t, const rq_ssvq *s) {
    size_t entry = (size_t)s->vec_len * (s->book_u8 ? 1 : sizeof(rq_f16)), bytes = entry * (size_t)s->n_codes;
    for (int64_t b = 0; b < s->n_book; ++b)
        memcpy(to + t->book + b * (int64_t)entry * rq_tile_ssvq_codes(t->code_bits),
               (const uint8_t *)book_of(s) + b * (int64_t)bytes, bytes);
}

void rq_repack_ssvq(void *to_, const rq_tile_layout *t, const rq_ssvq *m, int n) {
    uint8_t *to = to_;
    memset(to, 0, (size_t)t->bytes);
    pack_books(to, t, m);
    if (t->n_outlier) memcpy(to + t->outlier_cols, m->outlier_col, (size_t)t->n_outlier * sizeof(int32_t));
    int64_t first = 0;
    for (int i = 0; i < n; ++i) {
        const rq_ssvq *s = &m[i];
        for (int64_t row = 0; row < s->n_out; ++row) pack_row(to, t, s, row, first);
        for (int64_t rb = first / RQ_TILE_ROWS; rb * RQ_TILE_ROWS < first + s->n_out; ++rb) {
            memcpy(to + t->book_scales + rb * t->n_book * 4, s->book_scale, (size_t)t->n_book * 4);
            if (t->n_outlier)
                memcpy(to + t->outlier_scales + rb * t->n_outlier * 4, s->outlier_scale, (size_t)t->n_outlier * 4);
        }
        first += s->n_out;
    }
}

/* ---- back */
static void put_bits(uint32_t *words, int64_t at, int bits, uint32_t value) {
    int o = (int)(at % 32);
    words[at / 32] |= value << o;
    if (o + bits > 32) words[at / 32 + 1] |= value >> (32 - o);
}

static uint32_t code_at(const rq_tile_layout *t, const uint8_t *from, place p, int vector) {
    uint32_t code = load32(from + code_word(t, p)) >> code_shift(t, p, vector) & 0xffu;
    if (t->code_bits <= 8) return code;
    int bit;
    int64_t at = high_word(t, p, vector, &bit);
    return code | (load32(from + at) >> bit & ((1u << rq_tile_high_bits(t->code_bits)) - 1u)) << 8;
}

static void unpack_row(const rq_ssvq_arrays *to, const rq_ssvq *s, const rq_tile_layout *t, const uint8_t *from,
                       int64_t row, int64_t first) {
    int64_t n_vec = rq_ssvq_n_vec(s->n_in, s->vec_len);
    uint32_t *codes = to->codes ? to->codes + row * s->code_words : NULL;
    uint32_t *signs = to->signs ? to->signs + row * s->sign_words : NULL;
    if (codes) memset(codes, 0, (size_t)s->code_words * 4);
    if (signs) memset(signs, 0, (size_t)s->sign_words * 4);
    for (int64_t j = 0; j < s->n_in; j += LANE_COLS) {
        place p = place_of(t, first + row, j);
        uint32_t sign = load32(from + sign_word(t, p));
        for (int v = 0; codes && v < LANE_COLS / s->vec_len; ++v) {
            int64_t vec = j / s->vec_len + v;
            if (vec < n_vec) put_bits(codes, vec * s->code_bits, s->code_bits, code_at(t, from, p, v));
        }
        for (int pair = 0; signs && pair < PAIRS; ++pair) {
            uint32_t two = sign >> sign_shift(p, pair);
            signs[j / 32] |= ((two & 1u) | (two >> 15 & 2u)) << (j % 32 + 2 * pair);
        }
    }
    int64_t rb = (first + row) / RQ_TILE_ROWS, r = (first + row) % RQ_TILE_ROWS;
    for (int64_t g = 0; to->scale && g < t->n_group; ++g)
        memcpy(&to->scale[row * s->n_group + g], from + t->scales + ((rb * t->n_group + g) * RQ_TILE_ROWS + r) * 2, 2);
    for (int o = 0; to->outlier && o < t->n_outlier; ++o)
        memcpy(&to->outlier[row * s->n_outlier + o], from + t->outliers + (rb * t->n_outlier + o) * RQ_TILE_ROWS + r,
               1);
}

static void unpack_books(uint8_t *to, const rq_ssvq *s, const rq_tile_layout *t, const uint8_t *from) {
    int64_t entry = (int64_t)s->vec_len * (t->book_u8 ? 1 : 2), bytes = entry * s->n_codes;
    for (int64_t b = 0; b < s->n_book; ++b)
        memcpy(to + b * bytes, from + t->book + b * entry * rq_tile_ssvq_codes(t->code_bits), (size_t)bytes);
}

void rq_repack_ssvq_back(const rq_ssvq_arrays *to, const rq_ssvq *s, const rq_tile_layout *t, const void *from_,
                         int64_t first) {
    const uint8_t *from = from_;
    int64_t rb = first / RQ_TILE_ROWS;
    for (int64_t row = 0; row < s->n_out; ++row) unpack_row(to, s, t, from, row, first);
    if (t->book_u8 && to->book_u8) unpack_books(to->book_u8, s, t, from);
    if (!t->book_u8 && to->book_f16) unpack_books((uint8_t *)to->book_f16, s, t, from);
    if (to->book_scale) memcpy(to->book_scale, from + t->book_scales + rb * t->n_book * 4, (size_t)t->n_book * 4);
    if (!t->n_outlier) return;
    size_t bytes = (size_t)t->n_outlier * 4;
    if (to->outlier_col) memcpy(to->outlier_col, from + t->outlier_cols, bytes);
    if (to->outlier_scale) memcpy(to->outlier_scale, from + t->outlier_scales + rb * t->n_outlier * 4, bytes);
}
