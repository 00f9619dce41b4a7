/* SPDX-License-Identifier: Apache-2.0 */
/* Grid codes in the layout of the CUDA kernels: a lane emulator takes each lane's words of a tile as fmt_tile.h words it, and the 16 x 16
 * operand of each mma.m16n8k16 as the PTX manual places its registers; multiplied with x, placed likewise, it must be the sum of the
 * definition, in integers. The way back must give the same bits, stacked matrices too, and what has no place must be refused. */
#include "repack_fixture.h"

typedef struct matrix { /* g points into the rest */
    rq_grid g;
    uint32_t *words;
    rq_f16 *scale;
    float *scale_f32;
    uint8_t *zero;
} matrix;

static matrix make(int64_t n_out, int64_t n_in, int bits, int64_t group, bool zeros, bool wide_scales) {
    matrix m = {.g = {.n_out = n_out, .n_in = n_in, .bits = bits, .group = group}};
    rq_grid *g = &m.g;
    g->n_group = (n_in + group - 1) / group;
    g->row_words = rq_grid_row_words(n_in, bits);
    int64_t n_scale = n_out * g->n_group;
    m.words = take(n_out * g->row_words + 1, 4);
    m.scale = take(n_scale, 2), m.scale_f32 = take(n_scale, 4), m.zero = take(n_scale, 1);
    for (int64_t i = 0; i < n_out; ++i)
        for (int64_t j = 0; j < n_in; ++j) { /* bits after the row stay zero, as they come back */
            uint64_t code = random_word() & ((1u << bits) - 1u);
            int64_t p = j * bits;
            uint32_t *w = m.words + i * g->row_words + (p >> 5);
            code <<= p & 31;
            w[0] |= (uint32_t)code;
            if (code >> 32) w[1] |= (uint32_t)(code >> 32);
        }
    for (int64_t i = 0; i < n_scale; ++i) {
        m.scale[i].bits = (uint16_t)random_word(); /* any bits, NaN among them */
        if (wide_scales) m.scale[i].bits &= 0x7bff;
        m.scale_f32[i] = rq_f32_of_f16(m.scale[i]);
        m.zero[i] = (uint8_t)(random_word() & ((1u << bits) - 1u));
    }
    g->words = m.words;
    if (wide_scales)
        g->scale_f32 = m.scale_f32;
    else
        g->scale_f16 = m.scale;
    if (zeros) g->zero = m.zero;
    return m;
}
static void drop(matrix *m) { free(m->words), free(m->scale), free(m->scale_f32), free(m->zero); }

/* ---- the lane emulator */

/* Word k of part p, of 16 bytes a lane; of the last part of 3-bit codes 8 bytes. */
static uint32_t word_of(const uint8_t *tile, int lane, int part, int bytes, int k) {
    uint32_t w;
    memcpy(&w, tile + part * 512 + lane * bytes + k * 4, 4);
    return w;
}

/* The code of row lane / 4 + 8 r, column e = 0..7 of the lane's 8 in step s: fmt_tile.h, sentence by sentence. */
static uint32_t code_of(const uint8_t *tile, int bits, int lane, int s, int r, int e) {
    if (bits == 8) return word_of(tile, lane, s, 16, 2 * r + e / 4) >> (8 * (e % 4)) & 255u;
    if (bits == 4) {
        uint32_t w = word_of(tile, lane, s / 2, 16, s % 2 * 2 + r);
        return w >> (4 * (e % 2 ? 4 + e / 2 : e / 2)) & 15u;
    }
    uint32_t half = word_of(tile, lane, 0, 16, s) >> (e % 2 ? 16 : 0) & 0xffffu;
    uint32_t low = half >> (2 * (r ? 4 + e / 2 : e / 2)) & 3u;
    if (bits == 2) return low;
    uint32_t high = word_of(tile, lane, 1, 8, s / 2) >> (16 * (s % 2)) & 0xffffu;
    return low | (high >> (8 * r + e) & 1u) << 2;
}

/* sum_j code(i, j) x[j] of the tile's rows, for 8 tokens, through the fragments. x is [8][128]. */
static void multiply_tile(int64_t sum[16][8], const uint8_t *tile, int bits, const int (*x)[RQ_TILE_COLS]) {
    for (int s = 0; s < 4; ++s)
        for (int mma = 0; mma < 2; ++mma) {
            int64_t a[16][16], b[16][8];
            for (int lane = 0; lane < 32; ++lane) {
                int group = lane / 4, quad = lane % 4;
                for (int i = 0; i < 8; ++i) { /* a0..a3 of the manual, two halves each: row, then column */
                    int row = group + (i / 2 % 2 ? 8 : 0), col = quad * 2 + i % 2 + (i >= 4 ? 8 : 0);
                    /* Registers 0, 2 are pairs 0, 1 of this mma of the upper row, 1, 3 those of the lower one. */
                    int pair = mma * 2 + i / 4;
                    a[row][col] = code_of(tile, bits, lane, s, i / 2 % 2, pair * 2 + i % 2);
                }
                for (int i = 0; i < 4; ++i) /* b0, b1: the lane's 8 columns of token `group` */
                    b[quad * 2 + i % 2 + (i >= 2 ? 8 : 0)][group] = x[group][32 * s + 8 * quad + 4 * mma + i];
            }
            for (int row = 0; row < 16; ++row)
                for (int token = 0; token < 8; ++token)
                    for (int k = 0; k < 16; ++k) sum[row][token] += a[row][k] * b[k][token];
        }
}

/* The matrix whose first row is row `first` of the stack. */
static void check_tiles(const matrix *m, const rq_tile_layout *t, const uint8_t *packed, int64_t first) {
    const rq_grid *g = &m->g;
    int64_t n_rb = (g->n_out + 15) / 16;
    for (int64_t rb = 0; rb < n_rb; ++rb)
        for (int64_t kb = 0; kb < t->n_kb; ++kb) {
            const uint8_t *tile = packed + t->tiles + ((first / 16 + rb) * t->n_kb + kb) * t->tile_bytes;
            int x[8][RQ_TILE_COLS];
            int64_t got[16][8] = {0};
            for (int token = 0; token < 8; ++token)
                for (int j = 0; j < RQ_TILE_COLS; ++j)
                    x[token][j] = kb * RQ_TILE_COLS + j < g->n_in ? (int)(random_word() % 2001) - 1000 : 0;
            multiply_tile(got, tile, t->bits, (const int(*)[RQ_TILE_COLS])x);
            for (int row = 0; row < 16 && rb * 16 + row < g->n_out; ++row)
                for (int token = 0; token < 8; ++token) {
                    int64_t want = 0;
                    for (int j = 0; j < RQ_TILE_COLS && kb * RQ_TILE_COLS + j < g->n_in; ++j)
                        want += (int64_t)rq_grid_code(g, rb * 16 + row, kb * RQ_TILE_COLS + j) * x[token][j];
                    assert_int_equal(got[row][token], want);
                }
        }
    for (int64_t i = 0; i < n_rb * 16; ++i)
        for (int64_t k = 0; k < t->n_group; ++k) {
            int64_t at = (((first + i) / 16 * t->n_group + k) * 16 + i % 8 * 2 + i % 16 / 8) * 2;
            rq_f16 scale, zero;
            memcpy(&scale, packed + t->scales + at, 2);
            assert_int_equal(scale.bits, i < g->n_out ? m->scale[i * g->n_group + k].bits : 0);
            if (!t->zeros) continue;
            memcpy(&zero, packed + t->zero_points + at, 2);
            assert_true(rq_f32_of_f16(zero) == (i < g->n_out ? (float)m->zero[i * g->n_group + k] : 0.0f));
        }
}

static void check_back(const matrix *m, const rq_tile_layout *t, const uint8_t *packed, int64_t first) {
    const rq_grid *g = &m->g;
    int64_t n_word = g->n_out * g->row_words, n_scale = g->n_out * g->n_group;
    uint32_t *words = take(n_word, 4);
    rq_f16 *scale = take(n_scale, 2);
    uint8_t *zero = take(n_scale, 1);
    assert_int_equal(rq_unpack_tiles_grid(words, scale, zero, packed, t, first, g->n_out, NULL), RQ_OK);
    assert_memory_equal(words, m->words, (size_t)n_word * 4);
    assert_memory_equal(scale, m->scale, (size_t)n_scale * 2);
    if (g->zero) assert_memory_equal(zero, m->zero, (size_t)n_scale);
    free(words), free(scale), free(zero);
}

static void test_round_trips(void **state) {
    (void)state;
    static const struct {
        int64_t n_out, n_in, group; /* group 0: the row */
    } shapes[] = {{1, 1, 0},      {1, 32, 32},  {15, 128, 128}, {16, 160, 32},  {17, 130, 64},
                  {33, 1000, 96}, {31, 333, 0}, {48, 256, 256}, {5, 2080, 1024}};
    static const int widths[] = {2, 3, 4, 8};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; ++s)
        for (int b = 0; b < 4; ++b)
            for (int variant = 0; variant < 3; ++variant) {
                int64_t group = shapes[s].group ? shapes[s].group : shapes[s].n_in;
                matrix m = make(shapes[s].n_out, shapes[s].n_in, widths[b], group, variant == 1, variant == 2);
                rq_tile_layout t;
                const char *why = NULL;
                assert_int_equal(rq_repack_grid_plan(&t, &m.g, 1, &why), RQ_OK);
                assert_null(why);
                uint8_t *packed = take(t.bytes + 16, 1);
                memset(packed, 0xcb, (size_t)t.bytes + 16);
                assert_int_equal(rq_repack_grid(packed, &t, &m.g, 1, NULL), RQ_OK);
                for (int i = 0; i < 16; ++i) assert_int_equal(packed[t.bytes + i], 0xcb);
                check_tiles(&m, &t, packed, 0);
                check_back(&m, &t, packed, 0);
                free(packed);
                drop(&m);
            }
}

/* Three matrices as one: each is where its rows are, and comes back. */
static void test_stacks(void **state) {
    (void)state;
    static const int64_t rows[] = {32, 16, 21};
    static const int widths[] = {2, 3, 4, 8};
    for (int b = 0; b < 4; ++b)
        for (int zeros = 0; zeros < 2; ++zeros) {
            matrix m[3];
            rq_grid g[3];
            for (int i = 0; i < 3; ++i) m[i] = make(rows[i], 333, widths[b], 96, zeros, i == 1), g[i] = m[i].g;
            rq_tile_layout t;
            assert_int_equal(rq_repack_grid_plan(&t, g, 3, NULL), RQ_OK);
            assert_int_equal(t.n_out, 69);
            uint8_t *packed = take(t.bytes, 1);
            assert_int_equal(rq_repack_grid(packed, &t, g, 3, NULL), RQ_OK);
            int64_t first = 0;
            for (int i = 0; i < 3; first += rows[i++]) {
                check_tiles(&m[i], &t, packed, first);
                check_back(&m[i], &t, packed, first);
            }
            uint32_t word;
            rq_f16 scale;
            uint8_t zero;
            const char *why = NULL;
            assert_int_equal(rq_unpack_tiles_grid(&word, &scale, &zero, packed, &t, 69, 1, &why), RQ_ERR_ARG);
            assert_non_null(why);
            assert_int_equal(rq_repack_grid(packed, &t, g, 2, &why), RQ_ERR_ARG);
            free(packed);
            for (int i = 0; i < 3; ++i) drop(&m[i]);
        }
}

static void stack_refused(const rq_grid *a, const rq_grid *b, const char *part) {
    rq_grid both[2] = {*a, *b};
    rq_tile_layout t;
    const char *why = NULL;
    assert_int_equal(rq_repack_grid_plan(&t, both, 2, &why), RQ_ERR_UNSUPPORTED);
    assert_non_null(why);
    if (!strstr(why, part)) fail_msg("\"%s\" does not say \"%s\"", why, part);
}
static void test_stacks_refused(void **state) {
    (void)state;
    matrix m = make(16, 64, 4, 32, true, false), odd = make(17, 64, 4, 32, true, false);
    int32_t perm[64] = {0};
    rq_grid g = m.g;
    stack_refused(&odd.g, &m.g, "16 rows");
    g.group = 64, stack_refused(&m.g, &g, "groups"), g = m.g;
    g.zero = NULL, stack_refused(&m.g, &g, "zero points"), g = m.g;
    g.perm = perm, stack_refused(&m.g, &g, "permutations");
    rq_tile_layout t;
    assert_int_equal(rq_repack_grid_plan(&t, &m.g, 0, NULL), RQ_ERR_ARG);
    drop(&m), drop(&odd);
}

static void refused(const rq_grid *g, rq_status status, const char *part) {
    rq_tile_layout t;
    const char *why = NULL;
    assert_int_equal(rq_repack_grid_plan(&t, g, 1, &why), status);
    assert_non_null(why);
    if (!strstr(why, part)) fail_msg("\"%s\" does not say \"%s\"", why, part);
}

static void test_refused(void **state) {
    (void)state;
    matrix m = make(4, 256, 4, 128, true, false);
    rq_grid g = m.g;
    g.group = 48;
    refused(&g, RQ_ERR_UNSUPPORTED, "multiples of 32");
    g = m.g, g.bits = 5;
    refused(&g, RQ_ERR_UNSUPPORTED, "2, 3, 4 or 8");
    g = m.g, g.group = 512;
    refused(&g, RQ_ERR_ARG, "1 to n_in");
    g = m.g, g.scale_f16 = NULL;
    refused(&g, RQ_ERR_ARG, "scales");
    m.scale_f32[0] = 0.1f;
    g.scale_f32 = m.scale_f32;
    refused(&g, RQ_ERR_UNSUPPORTED, "exact");
    m.zero[7] = 16;
    refused(&m.g, RQ_ERR_INPUT, "zero point");
    m.zero[7] = 15;
    /* A layout of another matrix. */
    rq_tile_layout t;
    assert_int_equal(rq_repack_grid_plan(&t, &m.g, 1, NULL), RQ_OK);
    uint8_t *packed = take(t.bytes, 1);
    const char *why = NULL;
    t.n_out = 5;
    assert_int_equal(rq_repack_grid(packed, &t, &m.g, 1, &why), RQ_ERR_ARG);
    assert_non_null(why);
    assert_int_equal(rq_unpack_tiles_grid(m.words, m.scale, NULL, packed, &t, 0, 4, NULL), RQ_ERR_ARG);
    free(packed);
    drop(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trips), cmocka_unit_test(test_stacks),
                                       cmocka_unit_test(test_stacks_refused), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
