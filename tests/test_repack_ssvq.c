/* SPDX-License-Identifier: Apache-2.0 */
/* SSVQ weights in the layout of the CUDA kernels: a lane emulator reads the tiles as a warp does, with the instructions of the
 * kernel written out (a dot product of bytes for the address in the replicated table, shift and XOR, or shift and permute, for the
 * signs, the documented fragments of mma.m16n8k16), and must see the weights of the format. The way back must give the same bits. */
#include "repack_fixture.h"

/* ---- a random matrix */
typedef struct matrix {
    rq_ssvq s;
    rq_ssvq_arrays own; /* what s points to */
} matrix;

typedef struct shape {
    int64_t n_out, n_in;
    int vec_len, code_bits;
    int64_t n_codes, book_cols, group;
    int u8, n_outlier;
} shape;

static matrix make(shape k) {
    matrix m = {.s = {.n_out = k.n_out,
                      .n_in = k.n_in,
                      .vec_len = k.vec_len,
                      .code_bits = k.code_bits,
                      .n_codes = k.n_codes,
                      .book_cols = k.book_cols,
                      .group = k.group,
                      .n_outlier = k.n_outlier}};
    rq_ssvq *s = &m.s;
    s->n_book = (s->n_in + s->book_cols - 1) / s->book_cols;
    s->n_group = (s->n_in + s->group - 1) / s->group;
    s->code_words = rq_ssvq_code_words(s->n_in, s->vec_len, s->code_bits);
    s->sign_words = rq_ssvq_sign_words(s->n_in, s->vec_len);
    int64_t entries = s->n_book * s->n_codes * s->vec_len, n_vec = rq_ssvq_n_vec(s->n_in, s->vec_len);
    s->codes = m.own.codes = take(s->n_out * s->code_words, 4);
    s->signs = m.own.signs = take(s->n_out * s->sign_words, 4);
    if (k.u8)
        s->book_u8 = m.own.book_u8 = take(entries, 1);
    else
        s->book_f16 = m.own.book_f16 = take(entries, 2);
    s->book_scale = m.own.book_scale = take(s->n_book, 4);
    s->scale = m.own.scale = take(s->n_out * s->n_group, 2);
    s->outlier_col = m.own.outlier_col = take(s->n_outlier, 4);
    s->outlier = m.own.outlier = take(s->n_out * s->n_outlier, 1);
    s->outlier_scale = m.own.outlier_scale = take(s->n_outlier, 4);
    for (int64_t r = 0; r < s->n_out; ++r)
        for (int64_t v = 0; v < n_vec; ++v) {
            uint32_t code = (uint32_t)(random_word() % (uint64_t)s->n_codes), sign = random_word();
            uint64_t at = (uint64_t)v * s->code_bits, wide = (uint64_t)code << (at % 32);
            m.own.codes[r * s->code_words + (int64_t)(at / 32)] |= (uint32_t)wide;
            if (wide >> 32) m.own.codes[r * s->code_words + (int64_t)(at / 32) + 1] |= (uint32_t)(wide >> 32);
            for (int e = 0; e < s->vec_len; ++e) {
                int64_t j = v * s->vec_len + e;
                m.own.signs[r * s->sign_words + j / 32] |= (sign >> e & 1u) << (j % 32);
            }
        }
    for (int64_t i = 0; i < entries; ++i)
        if (k.u8)
            m.own.book_u8[i] = (uint8_t)random_word();
        else
            m.own.book_f16[i].bits = (uint16_t)(random_word() % 0x7c00u);
    for (int64_t b = 0; b < s->n_book; ++b) m.own.book_scale[b] = k.u8 ? (float)(random_word() % 1000) / 7.0f : 1.0f;
    for (int64_t i = 0; i < s->n_out * s->n_group; ++i) m.own.scale[i].bits = (uint16_t)(random_word() % 0x7c00u);
    for (int64_t i = 0; i < s->n_out * s->n_outlier; ++i) m.own.outlier[i] = (int8_t)random_word();
    for (int o = 0; o < s->n_outlier; ++o) {
        m.own.outlier_col[o] = (int32_t)(s->n_in * o / s->n_outlier);
        m.own.outlier_scale[o] = (float)(random_word() % 1000) / 3.0f;
    }
    return m;
}

static void drop(matrix *m) {
    rq_ssvq_arrays *a = &m->own;
    void *all[] = {a->codes, a->signs,       a->book_f16, a->book_u8,      a->book_scale,
                   a->scale, a->outlier_col, a->outlier,  a->outlier_scale};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; ++i) free(all[i]);
}

/* ---- the emulator */
typedef struct fragment { /* what a lane hands to the two mma of a step: [mma][register], two halves each */
    uint32_t a[2][4];
} fragment;

static uint32_t table_stride(int64_t n_codes) { return n_codes <= 1024 ? 128 : (uint32_t)(131072 / n_codes); }

/* The replicated table of book b: of each entry table_stride() bytes, the entry over and over: of halves, or of bytes. */
static void replicate(uint8_t *table, const uint8_t *tiles, const rq_tile_layout *t, int64_t b, bool bytes) {
    int64_t size = t->vec_len * (bytes ? 1 : 2), n_codes = rq_tile_ssvq_codes(t->code_bits);
    int64_t stride = table_stride(n_codes);
    for (int64_t c = 0; c < n_codes; ++c)
        for (int64_t e = 0; e < t->vec_len; ++e) {
            int64_t at = (b * n_codes + c) * t->vec_len + e;
            rq_f16 h;
            if (t->book_u8)
                h = rq_f16_of_f32((float)tiles[t->book + at]);
            else
                memcpy(&h, tiles + t->book + at * 2, 2);
            for (int64_t copy = 0; copy < stride / size; ++copy) {
                if (bytes)
                    table[c * stride + copy * size + e] = tiles[t->book + at];
                else
                    memcpy(table + c * stride + copy * size + e * 2, &h, 2);
            }
        }
}

static uint32_t word_at(const uint8_t *p) {
    uint32_t w;
    memcpy(&w, p, 4);
    return w;
}
static uint32_t dot_bytes(uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 32; i += 8) c += (a >> i & 255u) * (b >> i & 255u);
    return c;
}
static uint32_t dot_halves(uint32_t a, uint32_t b, uint32_t c) {
    return c + (a & 0xffffu) * (b & 255u) + (a >> 16) * (b >> 8 & 255u);
}
static uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t d = 0;
    for (int i = 0; i < 4; ++i) d |= (uint32_t)(both >> 8 * (selector >> 4 * i & 7u) & 255u) << 8 * i;
    return d;
}
static uint32_t with_sign(uint32_t w, int left, uint32_t pair) { return (w << left & 0x80008000u) ^ pair; }

/* 4 weights of a row: w << left has their signs. Two registers of pairs, 1 apart from the other row's. */
static void four(uint32_t *to, const uint8_t *magnitudes, uint32_t w, int left, bool bytes) {
    if (bytes) {
        uint32_t m = word_at(magnitudes), signs = w << left & 0x80808080u;
        to[0] = permute(m, signs, 0x7150);
        to[2] = permute(m, signs, 0x6342);
    } else {
        to[0] = with_sign(w, left, word_at(magnitudes));
        to[2] = with_sign(w, left + 8, word_at(magnitudes + 4));
    }
}

/* The upper bits of step's codes, a byte each: what the kernel makes of its lane's 2, 4 or 8 bytes. */
static uint32_t high_of(const rq_tile_layout *t, const uint8_t *tile, int step, int lane) {
    int high = rq_tile_high_bits(t->code_bits), bytes = 8 / t->vec_len * high, j = t->vec_len == 8 ? step / 2 : step;
    const uint8_t *mine = tile + (t->vec_len == 8 ? 512 : 768) + lane * bytes;
    uint32_t w[2] = {0, 0};
    memcpy(w, mine, (size_t)bytes);
    if (high == 4) return w[j / 2] >> 4 * (j % 2) & 0x0f0f0f0fu;
    return (t->vec_len == 4 ? w[0] >> 2 * j : (w[0] | w[0] << 14) >> 4 * j) & 0x03030303u;
}
static const uint8_t *entry(const rq_tile_layout *t, const uint8_t *tile, const uint8_t *table, uint32_t codes,
                            int step, int lane, int byte, uint32_t size) {
    uint32_t stride = table_stride(rq_tile_ssvq_codes(t->code_bits)), base = (uint32_t)lane % (stride / size) * size;
    if (t->code_bits <= 8) return table + dot_bytes(codes, 128u << 8 * byte, base);
    uint32_t two = permute(codes, high_of(t, tile, step, lane), byte < 2 ? 0x5140 : 0x7362);
    return table + dot_halves(two, stride << 8 * (byte % 2), base);
}

static fragment decode(const rq_tile_layout *t, const uint8_t *tile, const uint8_t *table, int step, int lane,
                       bool bytes) {
    fragment f;
    uint32_t size = (uint32_t)t->vec_len * (bytes ? 1 : 2);
    const uint8_t *mine = tile + lane * 16;
    uint32_t codes = word_at(mine + 4 * (t->vec_len == 8 ? step / 2 : step));
    uint32_t signs = word_at((t->vec_len == 8 ? mine + 8 : tile + 512 + lane * 8) + step / 2 * 4);
    for (int lower = 0; lower < 2; ++lower)
        for (int half = 0; half < 2; ++half) {
            int byte = t->vec_len == 8 ? step % 2 * 2 + lower : lower * 2 + half;
            const uint8_t *v = entry(t, tile, table, codes, step, lane, byte, size);
            if (t->vec_len == 8) v += half * (int)size / 2;
            four(f.a[half] + lower, v, signs, step % 2 * 4 + lower * 2 + half, bytes);
        }
    return f;
}

/* The bits that A holds at (row, k) of a step's two mma, by the documented fragment: register i of lane 4 g + q holds row
 * g + 8 (i % 2), columns 2 q and 2 q + 1 (+ 8 when i / 2). */
static uint16_t a_at(const fragment *f, int mma, int row, int k) {
    int lane = row % 8 * 4 + k % 8 / 2, i = row / 8 + k / 8 * 2;
    return (uint16_t)(f[lane].a[mma][i] >> (k % 2 * 16));
}
/* The column of the step that B's lane feeds into k of that mma: lane 4 n + q gives x[8 q + 4 mma .. + 3], two a register. */
static int column_of(int mma, int k) { return k % 8 / 2 * 8 + 4 * mma + k / 8 * 2 + k % 2; }

static uint16_t want_bits(const rq_ssvq *s, int64_t row, int64_t j, bool bytes) {
    int64_t b = j / s->book_cols;
    int64_t at = (b * s->n_codes + rq_ssvq_code(s, row, j / s->vec_len)) * s->vec_len + j % s->vec_len;
    uint16_t bits = s->book_u8 ? rq_f16_of_f32((float)s->book_u8[at]).bits : s->book_f16[at].bits;
    if (bytes) bits = s->book_u8[at]; /* times 2^-24 */
    return (uint16_t)(bits ^ (rq_ssvq_negative(s, row, j) ? 0x8000 : 0));
}

/* Every weight of matrix s, whose first row is `first`. */
static void check_decode(const rq_ssvq *s, const rq_tile_layout *t, const uint8_t *tiles, int64_t first, bool bytes) {
    int64_t n_codes = rq_tile_ssvq_codes(t->code_bits);
    uint8_t *table = take(n_codes, table_stride(n_codes));
    for (int64_t kb = 0; kb < t->n_kb; ++kb) {
        replicate(table, tiles, t, kb * 128 / t->book_cols, bytes);
        for (int64_t rb = first / 16; rb * 16 < first + s->n_out; ++rb)
            for (int step = 0; step < 4; ++step) {
                fragment f[32];
                const uint8_t *tile = tiles + t->tiles + (rb * t->n_kb + kb) * t->tile_bytes;
                for (int lane = 0; lane < 32; ++lane) f[lane] = decode(t, tile, table, step, lane, bytes);
                for (int i = 0; i < 2 * 16 * 16; ++i) {
                    int mma = i / 256, r = i / 16 % 16, k = i % 16;
                    int64_t row = rb * 16 + r - first, j = kb * 128 + step * 32 + column_of(mma, k);
                    if (row >= s->n_out || j >= s->n_in) continue;
                    assert_int_equal(a_at(f, mma, r, k), want_bits(s, row, j, bytes));
                }
            }
    }
    free(table);
}

static void check_back(const rq_ssvq *s, const rq_tile_layout *t, const uint8_t *tiles, int64_t first) {
    int64_t entries = s->n_book * s->n_codes * s->vec_len;
    rq_ssvq_arrays b = {.codes = take(s->n_out * s->code_words, 4),
                        .signs = take(s->n_out * s->sign_words, 4),
                        .book_f16 = take(entries, 2),
                        .book_u8 = take(entries, 1),
                        .book_scale = take(s->n_book, 4),
                        .scale = take(s->n_out * s->n_group, 2),
                        .outlier_col = take(s->n_outlier, 4),
                        .outlier = take(s->n_out * s->n_outlier, 1),
                        .outlier_scale = take(s->n_outlier, 4)};
    rq_repack_ssvq_back(&b, s, t, tiles, first);
    assert_memory_equal(b.codes, s->codes, (size_t)(s->n_out * s->code_words) * 4);
    assert_memory_equal(b.signs, s->signs, (size_t)(s->n_out * s->sign_words) * 4);
    if (s->book_u8)
        assert_memory_equal(b.book_u8, s->book_u8, (size_t)entries);
    else
        assert_memory_equal(b.book_f16, s->book_f16, (size_t)entries * 2);
    assert_memory_equal(b.book_scale, s->book_scale, (size_t)s->n_book * 4);
    assert_memory_equal(b.scale, s->scale, (size_t)(s->n_out * s->n_group) * 2);
    if (s->n_outlier) {
        assert_memory_equal(b.outlier_col, s->outlier_col, (size_t)s->n_outlier * 4);
        assert_memory_equal(b.outlier, s->outlier, (size_t)(s->n_out * s->n_outlier));
        assert_memory_equal(b.outlier_scale, s->outlier_scale, (size_t)s->n_outlier * 4);
    }
    matrix own = {.own = b};
    drop(&own);
}

static void check_stack(matrix *m, int n) {
    rq_ssvq list[4];
    for (int i = 0; i < n; ++i) list[i] = m[i].s;
    rq_tile_layout t;
    const char *why = "";
    if (rq_repack_ssvq_plan(&t, list, n, &why) != RQ_OK) fail_msg("%s", why);
    uint8_t *tiles = take(t.bytes, 1);
    memset(tiles, 0xcb, (size_t)t.bytes);
    rq_repack_ssvq(tiles, &t, list, n);
    int64_t first = 0;
    for (int i = 0; i < n; first += list[i++].n_out) {
        check_decode(&list[i], &t, tiles, first, false);
        if (t.book_u8) check_decode(&list[i], &t, tiles, first, true);
        check_back(&list[i], &t, tiles, first);
    }
    for (int64_t row = first; row < t.n_rb * 16; ++row) /* rows beyond the matrix have scale 0 */
        for (int64_t g = 0; g < t.n_group; ++g)
            assert_int_equal(tiles[t.scales + ((row / 16 * t.n_group + g) * 16 + row % 16) * 2], 0);
    free(tiles);
}

static void shapes(void **state) {
    (void)state;
    static const shape all[] = {
        {1, 8, 8, 8, 256, 8, 8, 1, 0},           {16, 128, 8, 8, 256, 128, 128, 1, 0},
        {17, 129, 8, 8, 256, 129, 129, 0, 3},    {33, 1000, 8, 7, 100, 1000, 32, 0, 16},
        {40, 640, 8, 4, 16, 256, 128, 1, 1},     {1, 4, 4, 8, 256, 4, 4, 1, 1},
        {18, 132, 4, 8, 256, 132, 132, 1, 0},    {48, 1284, 4, 5, 32, 512, 64, 0, 16},
        {15, 2047, 4, 6, 50, 2047, 2047, 0, 16}, {31, 4096, 8, 8, 255, 1024, 4096, 1, 16},
        {17, 300, 8, 9, 512, 300, 300, 1, 0},    {33, 520, 8, 10, 1000, 256, 64, 0, 3},
        {19, 300, 8, 11, 1500, 300, 300, 1, 0},  {40, 1000, 8, 12, 4096, 512, 128, 0, 2},
        {17, 300, 4, 9, 500, 300, 300, 1, 1},    {33, 520, 4, 10, 1024, 256, 64, 0, 0},
        {19, 300, 4, 11, 2048, 300, 300, 0, 0},  {40, 1000, 4, 12, 4095, 512, 128, 1, 2},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; ++i) {
        matrix m = make(all[i]);
        check_stack(&m, 1);
        drop(&m);
    }
}

/* All 65,536 combinations of a code and 8 signs, in an upper and in a lower row of a tile; for vectors of 4, of code and signs. */
static void combinations(void **state) {
    (void)state;
    for (int vec_len = 4; vec_len <= 8; vec_len += 4) {
        matrix m = make((shape){32, 32768, vec_len, 8, 256, 32768, 32768, 1, 0});
        for (int64_t i = 0; i < 32 * 4096; ++i) { /* rows 0..7 and 16..23 are upper, the rest lower */
            uint32_t which = (uint32_t)(i % 32768 + i / 65536 * 32768);
            int64_t row = i / 4096, at = i % 4096;
            for (int v = 0; v < 8 / vec_len; ++v) {
                int64_t vec = at * (8 / vec_len) + v;
                m.own.codes[row * m.s.code_words + vec / 4] &= ~(0xffu << (vec % 4 * 8));
                m.own.codes[row * m.s.code_words + vec / 4] |= (which & 255u) << (vec % 4 * 8);
            }
            m.own.signs[row * m.s.sign_words + at / 4] &= ~(0xffu << (at % 4 * 8));
            m.own.signs[row * m.s.sign_words + at / 4] |= which >> 8 << (at % 4 * 8);
        }
        check_stack(&m, 1);
        drop(&m);
    }
}

/* q, k, v: one codebook, the scales of each. */
static void stacked(void **state) {
    (void)state;
    for (int u8 = 0; u8 < 2; ++u8) {
        matrix m[3];
        static const int64_t rows[3] = {32, 16, 21};
        for (int i = 0; i < 3; ++i) {
            m[i] = make((shape){rows[i], 384, 8, 8, 256, 256, 128, u8, 2});
            if (u8)
                memcpy(m[i].own.book_u8, m[0].own.book_u8, 2 * 256 * 8);
            else
                memcpy(m[i].own.book_f16, m[0].own.book_f16, 2 * 256 * 8 * 2);
        }
        check_stack(m, 3);
        for (int i = 0; i < 3; ++i) drop(&m[i]);
    }
}

static void expect_refusal(const rq_ssvq *s, int n, const char *word) {
    rq_tile_layout t;
    const char *why = NULL;
    assert_int_equal(rq_repack_ssvq_plan(&t, s, n, &why), RQ_ERR_UNSUPPORTED);
    assert_non_null(why);
    if (!strstr(why, word)) fail_msg("\"%s\" does not say \"%s\"", why, word);
}

static void refusals(void **state) {
    (void)state;
    matrix m = make((shape){16, 256, 8, 8, 256, 128, 128, 0, 2});
    matrix other = make((shape){16, 256, 8, 8, 256, 128, 128, 0, 2});
    rq_ssvq s = m.s;
    expect_refusal(&s, 0, "no matrix");
    s.n_codes = 4096, expect_refusal(&s, 1, "more entries");
    s = m.s, s.vec_len = 2, expect_refusal(&s, 1, "vectors");
    s = m.s, s.code_bits = 13, expect_refusal(&s, 1, "12 bits");
    s = m.s, s.group = 8, expect_refusal(&s, 1, "32 columns");
    s = m.s, s.book_cols = 64, expect_refusal(&s, 1, "128");
    s = m.s, s.n_outlier = 17, expect_refusal(&s, 1, "outlier");
    rq_ssvq two[2] = {m.s, other.s};
    expect_refusal(two, 2, "different codebooks");
    two[1] = m.s, two[0].n_out = 15, expect_refusal(two, 2, "16 rows");
    two[0] = m.s, two[1].n_outlier = 1, expect_refusal(two, 2, "outlier columns");
    two[1] = m.s, two[1].group = 256, expect_refusal(two, 2, "groups");
    m.own.book_f16[5].bits = 0x7c00;
    expect_refusal(&m.s, 1, "finite");
    drop(&m), drop(&other);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(shapes), cmocka_unit_test(combinations),
                                       cmocka_unit_test(stacked), cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
