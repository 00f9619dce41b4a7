/* SPDX-License-Identifier: Apache-2.0 */
/* W4A8 weights in the layout of the CUDA kernels: a lane emulator takes each lane's words of a tile as fmt_tile.h words it, decodes them as
 * the kernels do, four codes at a time in one 32-bit multiplication, and puts the bytes where the PTX manual places the registers of the
 * A operand of mma.m16n8k32: they must be the levels of the format, plus the zero point. The way back must give the same arrays. */
#include "repack_fixture.h"

/* ---- a random matrix */
typedef struct matrix {
    rq_w4a8 w;
    rq_w4a8_arrays own; /* what w points to */
} matrix;

static matrix make(int64_t n_out, int64_t n_in, int64_t group, bool zeros) {
    matrix m = {.w = {.n_out = n_out, .n_in = n_in, .group = group}};
    rq_w4a8 *w = &m.w;
    w->n_group = group ? (n_in + group - 1) / group : 0, w->row_words = rq_w4a8_row_words(n_in);
    m.own.words = take(n_out * w->row_words, 4), m.own.scale = take(n_out, 4), m.own.zero = take(n_out, 1);
    m.own.step = take(n_out * w->n_group, 1), m.own.base = take(n_out * w->n_group, 1);
    for (int64_t i = 0; i < n_out; ++i) {
        for (int64_t j = 0; j < n_in; ++j) m.own.words[i * w->row_words + j / 8] |= random_word() % 16 << j % 8 * 4;
        m.own.scale[i] = (float)(random_word() % 1000 + 1) / 7.0f;
        m.own.zero[i] = (uint8_t)(random_word() % 16);
    }
    for (int64_t k = 0; k < n_out * w->n_group; ++k) {
        int step = (int)(random_word() % RQ_W4A8_MAX_STEP) + 1, room = 255 - 15 * step;
        m.own.step[k] = (uint8_t)step;
        m.own.base[k] = (int8_t)(-128 + (k % 3 == 0 ? room : (int)(random_word() % (uint32_t)(room + 1))));
    }
    w->words = m.own.words, w->scale = m.own.scale, w->zero = zeros ? m.own.zero : NULL;
    w->step = group ? m.own.step : NULL, w->base = group ? m.own.base : NULL;
    return m;
}
static void drop(matrix *m) {
    free(m->own.words), free(m->own.scale), free(m->own.zero), free(m->own.step), free(m->own.base);
}

/* ---- the emulator */
static uint32_t word_at(const uint8_t *p) {
    uint32_t w;
    memcpy(&w, p, 4);
    return w;
}
/* The A operand of a step of 32 columns: 16 rows of bytes. */
static void fragment(uint8_t a[16][32], const uint8_t *tiles, const rq_tile_layout *t, int64_t rb, int64_t step) {
    int64_t kb = step / 4, s = step % 4;
    const uint8_t *tile = tiles + t->tiles + ((rb / 8 * t->n_kb + kb) * 8 + rb % 8) * 1024;
    for (int lane = 0; lane < 32; ++lane) {
        int g = lane / 4, q = lane % 4;
        uint32_t registers[4];
        for (int r = 0; r < 2; ++r) {
            uint32_t w = word_at(tile + s / 2 * 512 + lane * 16 + (s % 2 * 2 + r) * 4);
            registers[r] = w & 0x0f0f0f0fu, registers[2 + r] = w >> 4 & 0x0f0f0f0fu;
            if (t->n_group) {
                int64_t k = step * 32 / t->group;
                const uint8_t *level =
                    tiles + t->levels + ((rb / 8 * t->n_group + k) * 8 + rb % 8) * 32 + g * 4 + r * 2;
                registers[r] = registers[r] * level[0] + level[1] * 0x01010101u;
                registers[2 + r] = registers[2 + r] * level[0] + level[1] * 0x01010101u;
            }
        }
        for (int i = 0; i < 4; ++i)
            for (int b = 0; b < 4; ++b) a[g + 8 * (i % 2)][4 * q + b + 16 * (i / 2)] = (uint8_t)(registers[i] >> 8 * b);
    }
}

static void check_matrix(const uint8_t *tiles, const rq_tile_layout *t, const rq_w4a8 *w, int64_t first) {
    uint8_t a[16][32];
    for (int64_t rb = 0; rb * 16 < w->n_out; ++rb)
        for (int64_t step = 0; step * 32 < w->n_in; ++step) {
            fragment(a, tiles, t, first / 16 + rb, step);
            for (int64_t r = 0; r < 16 && rb * 16 + r < w->n_out; ++r)
                for (int64_t c = 0; c < 32 && step * 32 + c < w->n_in; ++c) {
                    int32_t zero;
                    memcpy(&zero, tiles + t->zero_points + (first + rb * 16 + r) * 4, 4);
                    assert_int_equal(a[r][c] - zero, rq_w4a8_level(w, rb * 16 + r, step * 32 + c));
                }
        }
    assert_memory_equal(tiles + t->scales + first * 4, w->scale, (size_t)w->n_out * 4);
}
static void check_back(const uint8_t *tiles, const rq_tile_layout *t, const matrix *m, int64_t first) {
    const rq_w4a8 *w = &m->w;
    int64_t n_word = w->n_out * w->row_words, n_level = w->n_out * w->n_group;
    rq_w4a8_arrays back = {.words = take(n_word, 4),
                           .scale = take(w->n_out, 4),
                           .zero = take(w->n_out, 1),
                           .step = take(n_level, 1),
                           .base = take(n_level, 1)};
    rq_repack_w4a8_back(&back, w, t, tiles, first);
    assert_memory_equal(back.words, w->words, (size_t)n_word * 4);
    assert_memory_equal(back.scale, w->scale, (size_t)w->n_out * 4);
    for (int64_t i = 0; !w->group && i < w->n_out; ++i) assert_int_equal(back.zero[i], w->zero ? w->zero[i] : 8);
    if (n_level) assert_memory_equal(back.step, w->step, (size_t)n_level);
    if (n_level) assert_memory_equal(back.base, w->base, (size_t)n_level);
    free(back.words), free(back.scale), free(back.zero), free(back.step), free(back.base);
}

static void test_shapes(void **state) {
    (void)state;
    static const struct {
        int64_t n_out, n_in, group;
        bool zeros;
        int n; /* matrices stacked */
    } cases[] = {{1, 1, 0, false, 1},      {16, 128, 0, true, 1},    {130, 300, 0, true, 1},  {33, 288, 32, false, 1},
                 {144, 500, 96, false, 1}, {16, 640, 256, false, 1}, {48, 160, 64, false, 3}, {128, 256, 0, false, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        matrix m[3];
        rq_w4a8 w[3];
        for (int k = 0; k < cases[i].n; ++k) {
            m[k] = make(cases[i].n_out, cases[i].n_in, cases[i].group, cases[i].zeros);
            w[k] = m[k].w;
        }
        rq_tile_layout t;
        const char *why = "";
        assert_int_equal(rq_repack_w4a8_plan(&t, w, cases[i].n, &why), RQ_OK);
        assert_int_equal(t.scales % RQ_TILE_ALIGN | t.zero_points % RQ_TILE_ALIGN | t.levels % RQ_TILE_ALIGN, 0);
        uint8_t *tiles = take(t.bytes, 1);
        memset(tiles, 0xff, (size_t)t.bytes);
        rq_repack_w4a8(tiles, &t, w, cases[i].n);
        for (int k = 0; k < cases[i].n; ++k) {
            check_matrix(tiles, &t, &w[k], k * cases[i].n_out);
            check_back(tiles, &t, &m[k], k * cases[i].n_out);
            drop(&m[k]);
        }
        free(tiles);
    }
}

/* No byte of four levels at once spills into the next one: every step, every base that it may have, every code. */
static void test_levels(void **state) {
    (void)state;
    for (uint32_t step = 1; step <= RQ_W4A8_MAX_STEP; ++step)
        for (uint32_t offset = 0; offset + 15 * step <= 255; ++offset)
            for (uint32_t code = 0; code < 16; ++code) {
                uint32_t codes = code | (15 - code) << 8 | 15u << 16 | code << 24,
                         four = codes * step + offset * 0x01010101u;
                for (int b = 0; b < 32; b += 8) assert_int_equal(four >> b & 255u, (codes >> b & 255u) * step + offset);
            }
}

static void test_refusals(void **state) {
    (void)state;
    matrix a = make(20, 64, 0, false), b = make(20, 64, 32, false);
    rq_tile_layout t;
    const char *why = NULL;
    rq_w4a8 two[2] = {a.w, a.w};
    assert_int_equal(rq_repack_w4a8_plan(&t, two, 0, &why), RQ_ERR_UNSUPPORTED);
    assert_int_equal(rq_repack_w4a8_plan(&t, two, 2, &why), RQ_ERR_UNSUPPORTED); /* 20 rows, then more */
    two[1] = b.w;
    assert_int_equal(rq_repack_w4a8_plan(&t, two, 2, &why), RQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(why, "groups"));
    drop(&a), drop(&b);
}

/* What x is multiplied with before it is quantized goes along: factors in the buffer, the order of the Hadamard matrix in the layout. */
static void test_input(void **state) {
    (void)state;
    matrix a = make(16, 96, 32, false), b = make(20, 96, 32, false);
    float factors[96], others[96], back[96] = {0};
    for (int j = 0; j < 96; ++j) factors[j] = others[j] = (float)j * 0.5f - 7.0f;
    others[95] = 1.0f;
    rq_tile_layout t, plain;
    const char *why = NULL;
    rq_w4a8 two[2] = {a.w, b.w};
    assert_int_equal(rq_repack_w4a8_plan(&plain, two, 2, &why), RQ_OK);
    for (int i = 0; i < 2; ++i) two[i].in_scale = factors, two[i].hadamard = 48;
    assert_int_equal(rq_repack_w4a8_plan(&t, two, 2, &why), RQ_OK);
    assert_int_equal(t.hadamard, 48);
    assert_int_equal(t.factors_at, plain.bytes);
    assert_int_equal(t.factors_at % RQ_TILE_ALIGN, 0);
    assert_true(t.bytes >= plain.bytes + 96 * 4);
    uint8_t *tiles = take(t.bytes, 1), *without = take(plain.bytes, 1);
    rq_repack_w4a8(tiles, &t, two, 2);
    assert_memory_equal(tiles + t.factors_at, factors, sizeof factors);
    const rq_w4a8_arrays to = {.in_scale = back};
    rq_repack_w4a8_back(&to, &two[1], &t, tiles, 16);
    assert_memory_equal(back, factors, sizeof factors);
    two[0] = a.w, two[1] = b.w;
    rq_repack_w4a8(without, &plain, two, 2);
    assert_memory_equal(tiles, without, (size_t)plain.bytes); /* what products read is the same */
    two[0].in_scale = factors, two[1].in_scale = others;
    assert_int_equal(rq_repack_w4a8_plan(&t, two, 2, &why), RQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(why, "factors"));
    two[1].in_scale = NULL;
    assert_int_equal(rq_repack_w4a8_plan(&t, two, 2, &why), RQ_ERR_UNSUPPORTED);
    two[1].in_scale = factors, two[1].hadamard = 96;
    assert_int_equal(rq_repack_w4a8_plan(&t, two, 2, &why), RQ_ERR_UNSUPPORTED);
    free(tiles), free(without);
    drop(&a), drop(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes), cmocka_unit_test(test_levels),
                                       cmocka_unit_test(test_refusals), cmocka_unit_test(test_input)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
