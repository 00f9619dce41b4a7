/* SPDX-License-Identifier: Apache-2.0 */
/* VQ weights in the layout of the CUDA kernels: a lane emulator reads the tiles as a warp does, as fmt_tile.h has it written down (parts of
 * 16, 8 and 4 bytes; ldmatrix.trans where vectors run down the rows; the documented fragments of mma.m16n8k16 with weights as B),
 * and must see the weights of the format. The way back must give the same bits. */
#include "repack_fixture.h"

/* ---- a random matrix */
typedef struct matrix {
    rq_vq q;
    rq_vq_arrays own; /* what q points to */
} matrix;

static rq_f16 *take_halves(int64_t n) {
    rq_f16 *to = take(n, sizeof *to);
    for (int64_t i = 0; i < n; ++i) to[i].bits = (uint16_t)(random_word() % 0x7c00u | (random_word() & 0x8000u));
    return to;
}

typedef struct shape {
    int64_t n_out, n_in;
    int vec_len, vec_out, code_bits[2];
    int64_t n_codes[2]; /* the second 0: one stage */
    int64_t book_cols, group;
    int scales, columns, n_outlier;
} shape;

static void make_codes(matrix *m, int s) {
    rq_vq *q = &m->q;
    int bits = q->code_bits[s];
    q->code_words[s] = (q->n_code * bits + 31) / 32;
    q->codes[s] = m->own.codes[s] = take(q->n_line * q->code_words[s], 4);
    for (int64_t i = 0; i < q->n_line * q->n_code; ++i) {
        uint32_t code = (uint32_t)(random_word() % (uint64_t)q->n_codes[s]);
        uint32_t *words = m->own.codes[s] + i / q->n_code * q->code_words[s];
        for (int b = 0; b < bits; ++b) {
            int64_t at = i % q->n_code * bits + b;
            words[at / 32] |= (code >> b & 1u) << (at % 32);
        }
    }
}

static matrix make(shape k) {
    matrix m = {.q = {.n_out = k.n_out,
                      .n_in = k.n_in,
                      .vec_len = k.vec_len,
                      .vec_out = k.vec_out,
                      .n_stage = k.n_codes[1] ? 2 : 1,
                      .code_bits = {k.code_bits[0], k.code_bits[1]},
                      .n_codes = {k.n_codes[0], k.n_codes[1]},
                      .book_cols = k.book_cols,
                      .group = k.group,
                      .n_outlier = k.n_outlier}};
    rq_vq *q = &m.q;
    q->n_line = k.vec_out ? (k.n_out + k.vec_len - 1) / k.vec_len : k.n_out;
    q->n_code = k.vec_out ? k.n_in : (k.n_in + k.vec_len - 1) / k.vec_len;
    q->n_book = (q->n_in + q->book_cols - 1) / q->book_cols;
    q->n_group = (q->n_in + q->group - 1) / q->group;
    for (int s = 0; s < q->n_stage && s < 2; ++s) {
        make_codes(&m, s);
        q->book[s] = m.own.book[s] = take_halves(q->n_book * q->n_codes[s] * q->vec_len);
    }
    if (k.scales) q->scale = m.own.scale = take_halves(q->n_out * q->n_group);
    if (k.columns) {
        q->col_scale = m.own.col_scale = take_halves(q->n_in);
        q->col_bias = m.own.col_bias = take_halves(q->n_in);
    }
    q->outlier_col = m.own.outlier_col = take(q->n_outlier, 4);
    q->outlier = m.own.outlier = take(q->n_out * q->n_outlier, 1);
    q->outlier_scale = m.own.outlier_scale = take(q->n_outlier, 4);
    for (int64_t i = 0; i < q->n_out * q->n_outlier; ++i) m.own.outlier[i] = (int8_t)random_word();
    for (int o = 0; o < q->n_outlier; ++o) {
        m.own.outlier_col[o] = (int32_t)(q->n_in * o / q->n_outlier);
        m.own.outlier_scale[o] = (float)(random_word() % 1000) / 3.0f;
    }
    return m;
}

static void drop(matrix *m) {
    rq_vq_arrays *a = &m->own;
    void *all[] = {a->codes[0],  a->codes[1], a->book[0],     a->book[1], a->scale,
                   a->col_scale, a->col_bias, a->outlier_col, a->outlier, a->outlier_scale};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; ++i) free(all[i]);
}

/* ---- the emulator */

/* The words of a lane, part by part: 16 bytes as long as they last, then 8, then 4. */
static void load_words(uint32_t *to, int n, const uint8_t *tile, int lane) {
    for (int done = 0, size; done < n; done += size) {
        size = n - done >= 4 ? 4 : n - done >= 2 ? 2 : 1;
        memcpy(to + done, tile + lane * size * 4, (size_t)size * 4);
        tile += (ptrdiff_t)32 * size * 4;
    }
}
static uint32_t code_of(const uint32_t *words, int bits, int i) {
    uint32_t code = 0;
    for (int b = 0; b < bits; ++b) code |= (words[(i * bits + b) / 32] >> ((i * bits + b) % 32) & 1u) << b;
    return code;
}

/* What each lane gets for one stage, step and half of the rows: 8 halves, two registers for each of two mma. */
typedef struct fragment {
    uint16_t b[8];
} fragment;

static void decode(fragment f[32], const uint8_t *tile, const uint16_t *book, const rq_tile_layout *t, int stage,
                   int step, int upper) {
    int bits[2] = {rq_tile_code_bits(t->n_codes[0]), t->n_stage > 1 ? rq_tile_code_bits(t->n_codes[1]) : 0};
    int first = 64 / t->vec_len * bits[0] / 32, n = first + 64 / t->vec_len * bits[1] / 32, per_row = 8 / t->vec_len;
    const uint16_t *entry[32][2];
    for (int lane = 0; lane < 32; ++lane) {
        uint32_t words[32] = {0};
        load_words(words, n, tile, lane);
        for (int h = 0; h < per_row; ++h) {
            uint32_t code = code_of(words + (stage ? first : 0), bits[stage], (step * 2 + upper) * per_row + h);
            assert_true(code < t->n_codes[stage]);
            entry[lane][h] = book + (int64_t)code * t->vec_len;
        }
    }
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 8; ++i) {
            if (!t->vec_out)
                f[lane].b[i] = entry[lane][i / t->vec_len][i % t->vec_len];
            else /* register i / 2 of ldmatrix.trans: rows 2 q and 2 q + 1 of matrix i / 2, element g */
                f[lane].b[i] = entry[8 * (i / 2) + lane % 4 * 2 + i % 2][0][lane / 4];
        }
}

/* The bits that B holds at (k, n) of a step's two mma: register i / 2 of lane 4 n + q holds k = 2 q, 2 q + 1 (+ 8 in the second). */
static uint16_t b_at(const fragment *f, int mma, int k, int n) {
    return f[n * 4 + k % 8 / 2].b[4 * mma + k / 8 * 2 + k % 2];
}
/* The column of the step that A's lane feeds into k of that mma: lane 4 g + q gives x[8 q + 4 mma .. + 3], two a register. */
static int column_of(int mma, int k) { return k % 8 / 2 * 8 + 4 * mma + k / 8 * 2 + k % 2; }

static uint16_t want_bits(const rq_vq *q, int stage, int64_t row, int64_t j) {
    int64_t line = q->vec_out ? row / q->vec_len : row, i = q->vec_out ? j : j / q->vec_len;
    int64_t e = (q->vec_out ? row : j) % q->vec_len, b = j / q->book_cols;
    return q->book[stage][(b * q->n_codes[stage] + rq_vq_code(q, stage, line, i)) * q->vec_len + e].bits;
}

/* Every weight of matrix q, whose first row is `first`. */
static void check_decode(const rq_vq *q, const rq_tile_layout *t, const uint8_t *tiles, int64_t first) {
    for (int64_t i = 0; i < t->n_kb * t->n_stage; ++i) {
        int64_t kb = i / t->n_stage, stage = i % t->n_stage, entries = t->n_codes[stage] * t->vec_len;
        const uint8_t *book = tiles + (stage ? t->book_2 : t->book) + kb * 128 / t->book_cols * entries * 2;
        uint16_t *copy = take(entries, 2); /* as shared memory has it */
        memcpy(copy, book, (size_t)entries * 2);
        for (int64_t rb = first / 16; rb * 16 < first + q->n_out; ++rb)
            for (int half = 0; half < 8; ++half) { /* step, rows 0..7 or 8..15 */
                fragment f[32];
                decode(f, tiles + t->tiles + (rb * t->n_kb + kb) * t->tile_bytes, copy, t, (int)stage, half / 2,
                       half % 2);
                for (int w = 0; w < 2 * 16 * 8; ++w) {
                    int mma = w / 128, k = w / 8 % 16, n = w % 8;
                    int64_t row = rb * 16 + half % 2 * 8 + n - first, j = kb * 128 + half / 2 * 32 + column_of(mma, k);
                    if (row >= q->n_out || j >= q->n_in) continue;
                    assert_int_equal(b_at(f, mma, k, n), want_bits(q, (int)stage, row, j));
                }
            }
        free(copy);
    }
}

static void same_bytes(const void *a, const void *b, int64_t bytes) {
    if (bytes && b) assert_memory_equal(a, b, (size_t)bytes);
}
static void check_back(const rq_vq *q, const rq_tile_layout *t, const uint8_t *tiles, int64_t first) {
    matrix back = {.own = {.scale = take(q->n_out * q->n_group, 2),
                           .col_scale = take(q->n_in, 2),
                           .col_bias = take(q->n_in, 2),
                           .outlier_col = take(q->n_outlier, 4),
                           .outlier = take(q->n_out * q->n_outlier, 1),
                           .outlier_scale = take(q->n_outlier, 4)}};
    rq_vq_arrays *b = &back.own;
    for (int s = 0; s < q->n_stage && s < 2; ++s) {
        b->codes[s] = take(q->n_line * q->code_words[s], 4);
        b->book[s] = take(q->n_book * q->n_codes[s] * q->vec_len, 2);
        memset(b->codes[s], 0x5a, (size_t)(q->n_line * q->code_words[s]) * 4);
    }
    rq_repack_vq_back(b, q, t, tiles, first);
    for (int s = 0; s < q->n_stage && s < 2; ++s) {
        same_bytes(b->codes[s], q->codes[s], q->n_line * q->code_words[s] * 4);
        same_bytes(b->book[s], q->book[s], q->n_book * q->n_codes[s] * q->vec_len * 2);
    }
    same_bytes(b->scale, q->scale, q->n_out * q->n_group * 2);
    same_bytes(b->col_scale, q->col_scale, q->n_in * 2);
    same_bytes(b->col_bias, q->col_bias, q->n_in * 2);
    same_bytes(b->outlier_col, q->outlier_col, q->n_outlier * 4);
    same_bytes(b->outlier, q->outlier, q->n_out * q->n_outlier);
    same_bytes(b->outlier_scale, q->outlier_scale, q->n_outlier * 4);
    drop(&back);
    rq_repack_vq_back(&(rq_vq_arrays){0}, q, t, tiles, first); /* nothing is wanted */
}

static void check_stack(matrix *m, int n) {
    rq_vq list[4];
    for (int i = 0; i < n; ++i) list[i] = m[i].q;
    rq_tile_layout t;
    const char *why = "";
    if (rq_repack_vq_plan(&t, list, n, &why) != RQ_OK) fail_msg("%s", why);
    uint8_t *tiles = take(t.bytes, 1);
    memset(tiles, 0xcb, (size_t)t.bytes);
    rq_repack_vq(tiles, &t, list, n);
    int64_t first = 0;
    for (int i = 0; i < n; first += list[i++].n_out) {
        check_decode(&list[i], &t, tiles, first);
        check_back(&list[i], &t, tiles, first);
    }
    for (int64_t row = first; !t.no_scales && row < t.n_rb * 16; ++row) /* rows beyond the matrix have scale 0 */
        for (int64_t g = 0; g < t.n_group; ++g)
            assert_int_equal(tiles[t.scales + ((row / 16 * t.n_group + g) * 16 + row % 16) * 2], 0);
    free(tiles);
}

static void shapes(void **state) {
    (void)state;
    static const shape all[] = {
        {1, 8, 8, 0, {8, 0}, {256, 0}, 8, 8, 1, 0, 0},
        {17, 129, 8, 0, {7, 8}, {100, 256}, 129, 129, 1, 1, 3},
        {33, 1000, 4, 0, {8, 0}, {256, 0}, 128, 32, 1, 0, 16},
        {18, 132, 4, 0, {5, 4}, {32, 16}, 132, 132, 0, 0, 1},
        {31, 333, 8, 0, {12, 0}, {4096, 0}, 333, 333, 1, 1, 2},
        {16, 512, 8, 0, {10, 12}, {1000, 4096}, 256, 128, 1, 0, 0},
        {40, 260, 4, 0, {12, 0}, {4001, 0}, 260, 260, 0, 1, 0},
        {20, 300, 4, 0, {11, 9}, {2048, 300}, 128, 64, 1, 0, 5},
        {19, 200, 8, 0, {16, 0}, {65536, 0}, 200, 200, 1, 0, 0},
        {16, 160, 8, 0, {13, 8}, {8000, 256}, 160, 160, 1, 0, 4},
        {9, 140, 8, 0, {8, 12}, {256, 4096}, 140, 140, 1, 0, 0},
        {17, 129, 8, 1, {8, 0}, {256, 0}, 129, 129, 1, 1, 3},
        {33, 333, 8, 1, {12, 8}, {4096, 256}, 128, 96, 1, 1, 16},
        {8, 31, 8, 1, {16, 8}, {65536, 200}, 31, 31, 0, 1, 0},
        {23, 64, 8, 1, {16, 16}, {30000, 65536}, 64, 64, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; ++i) {
        matrix m = make(all[i]);
        check_stack(&m, 1);
        drop(&m);
    }
}

/* q, k, v: the same codebooks and columns, the scales of each. */
static void stacked(void **state) {
    (void)state;
    for (int vec_out = 0; vec_out < 2; ++vec_out) {
        matrix m[3];
        static const int64_t rows[3] = {32, 16, 21};
        for (int i = 0; i < 3; ++i) {
            m[i] = make((shape){rows[i], 384, 8, vec_out, {12, 8}, {300, 256}, 256, 128, 1, 1, 2});
            memcpy(m[i].own.book[0], m[0].own.book[0], 2 * 300 * 8 * 2);
            memcpy(m[i].own.book[1], m[0].own.book[1], 2 * 256 * 8 * 2);
            memcpy(m[i].own.col_scale, m[0].own.col_scale, 384 * 2);
            memcpy(m[i].own.col_bias, m[0].own.col_bias, 384 * 2);
        }
        check_stack(m, 3);
        for (int i = 0; i < 3; ++i) drop(&m[i]);
    }
}

static void expect_refusal(const rq_vq *q, int n, const char *word) {
    rq_tile_layout t;
    const char *why = NULL;
    assert_int_equal(rq_repack_vq_plan(&t, q, n, &why), RQ_ERR_UNSUPPORTED);
    assert_non_null(why);
    if (!strstr(why, word)) fail_msg("\"%s\" does not say \"%s\"", why, word);
}

static void refusals(void **state) {
    (void)state;
    shape k = {16, 256, 8, 0, {8, 0}, {256, 0}, 128, 128, 1, 1, 2};
    matrix m = make(k), other = make(k);
    rq_vq q = m.q;
    expect_refusal(&q, 0, "no matrix");
    q.vec_len = 2, expect_refusal(&q, 1, "4 or 8");
    q = m.q, q.vec_out = 1, q.vec_len = 4, expect_refusal(&q, 1, "down the rows");
    q = m.q, q.n_stage = 3, expect_refusal(&q, 1, "stages");
    q = m.q, q.n_codes[0] = 65537, expect_refusal(&q, 1, "65536");
    q = m.q, q.group = 8, expect_refusal(&q, 1, "32 columns");
    q = m.q, q.book_cols = 64, expect_refusal(&q, 1, "128");
    q = m.q, q.book_of = (const uint8_t *)"", expect_refusal(&q, 1, "neighbours");
    q = m.q, q.n_outlier = 17, expect_refusal(&q, 1, "outlier");
    q = m.q, q.col_bias = NULL, expect_refusal(&q, 1, "neither");
    rq_vq two[2] = {m.q, other.q};
    expect_refusal(two, 2, "different codebooks");
    two[1] = m.q, two[0].n_out = 15, expect_refusal(two, 2, "16 rows");
    two[0] = m.q, two[1].n_outlier = 1, expect_refusal(two, 2, "outlier columns");
    two[1] = m.q, two[1].group = 256, expect_refusal(two, 2, "groups");
    two[1] = m.q, two[1].col_scale = other.q.col_scale, expect_refusal(two, 2, "scales of columns");
    two[1] = m.q, two[1].scale = NULL, expect_refusal(two, 2, "not all have scales");
    m.own.col_bias[255].bits = 0xfc00;
    expect_refusal(&m.q, 1, "column is not finite");
    m.own.book[0][5].bits = 0x7c00;
    expect_refusal(&m.q, 1, "codebook is not finite");
    drop(&m), drop(&other);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(shapes), cmocka_unit_test(stacked), cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
