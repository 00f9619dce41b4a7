/* SPDX-License-Identifier: Apache-2.0 */
/* Grid codes to the tiles of the CUDA GEMV kernels and back (fmt_tile.h has the layout). */
#include "rq_repack.h"

/* Where the bits of each code of a tile are: 32-bit word of the tile, and shift in it. 3-bit codes are in two places. */
typedef struct place {
    uint16_t word;
    uint8_t shift;
} place;
typedef struct tile_map {
    place low[RQ_TILE_ROWS][RQ_TILE_COLS], high[RQ_TILE_ROWS][RQ_TILE_COLS];
    int low_bits, high_bits;
} tile_map;

static rq_status refuse(rq_status status, const char **why, const char *text) {
    if (why) *why = text;
    return status;
}

enum { LANES = 32, PART_WORDS = LANES * 4 }; /* of a part of 16 bytes a lane */

static place word_shift(int word, int shift) { return (place){(uint16_t)word, (uint8_t)shift}; }

static void make_map(tile_map *m, int bits) {
    m->low_bits = bits == 3 ? 2 : bits;
    m->high_bits = bits - m->low_bits;
    for (int row = 0; row < RQ_TILE_ROWS; ++row)
        for (int col = 0; col < RQ_TILE_COLS; ++col) {
            int lane = row % 8 * 4 + col % 32 / 8, lower = row / 8, step = col / 32, e = col % 8;
            place low;
            if (bits == 8)
                low = word_shift(step * PART_WORDS + lane * 4 + lower * 2 + e / 4, e % 4 * 8);
            else if (bits == 4)
                low = word_shift(step / 2 * PART_WORDS + lane * 4 + step % 2 * 2 + lower, e % 2 * 16 + e / 2 * 4);
            else
                low = word_shift(lane * 4 + step, e % 2 * 16 + (lower * 4 + e / 2) * 2);
            m->low[row][col] = low;
            m->high[row][col] = word_shift(PART_WORDS + lane * 2 + step / 2, step % 2 * 16 + lower * 8 + e);
        }
}

/* The layout of t, computed again: a caller's own numbers are not relied on. */
static bool is_planned(const rq_tile_layout *t) {
    rq_tile_layout again = {.kind = RQ_TILE_GRID,
                            .n_out = t->n_out,
                            .n_in = t->n_in,
                            .bits = t->bits,
                            .group = t->group,
                            .zeros = t->zeros};
    if (t->kind != RQ_TILE_GRID || t->n_out < 1 || t->n_in < 1 || t->group < 1) return false;
    rq_tile_plan(&again);
    return again.n_rb == t->n_rb && again.n_kb == t->n_kb && again.n_group == t->n_group &&
           again.tile_bytes == t->tile_bytes && again.tiles == t->tiles && again.scales == t->scales &&
           again.zero_points == t->zero_points && again.bytes == t->bytes;
}

static bool exact_in_f16(float x, rq_f16 *h) {
    *h = rq_f16_of_f32(x);
    return rq_f32_bits(rq_f32_of_f16(*h)) == rq_f32_bits(x);
}

/* The sentence of what the tiles cannot hold of one matrix, or NULL. */
static const char *not_in_tiles(const rq_grid *g, rq_status *status) {
    *status = RQ_ERR_ARG;
    if (g->n_out < 1 || g->n_in < 1 || g->group < 1 || g->group > g->n_in)
        return "the matrix needs at least one row and one column, and a group of 1 to n_in columns";
    if (!g->scale_f16 == !g->scale_f32) return "the matrix needs fp16 or fp32 scales, one of both";
    *status = RQ_ERR_UNSUPPORTED;
    if (g->bits != 2 && g->bits != 3 && g->bits != 4 && g->bits != 8)
        return "the CUDA kernels take grid codes of 2, 3, 4 or 8 bits";
    if (g->group != g->n_in && g->group % 32 != 0)
        return "the CUDA kernels take groups that are multiples of 32 columns, or whole rows";
    int64_t n_scale = g->n_out * g->n_group;
    rq_f16 h;
    for (int64_t i = 0; g->scale_f32 && i < n_scale; ++i)
        if (!exact_in_f16(g->scale_f32[i], &h))
            return "the CUDA kernels take fp16 scales, and an fp32 scale is not exact in fp16";
    *status = RQ_ERR_INPUT;
    for (int64_t i = 0; g->zero && i < n_scale; ++i)
        if (g->zero[i] >> g->bits) return "a zero point is not below 2^bits";
    *status = RQ_OK;
    return NULL;
}

static const char *not_stackable(const rq_grid *a, const rq_grid *b) {
    if (a->n_in != b->n_in || a->bits != b->bits || a->group != b->group)
        return "the stacked matrices have different columns, bits or groups";
    if (!a->zero != !b->zero) return "of the stacked matrices some have zero points and some have none";
    if (!a->perm != !b->perm || (a->perm && memcmp(a->perm, b->perm, (size_t)a->n_in * sizeof *a->perm) != 0))
        return "the stacked matrices have different permutations of their inputs";
    return NULL;
}

rq_status rq_repack_grid_plan(rq_tile_layout *t, const rq_grid *g, int n, const char **why) {
    if (!t || !g || n < 1) return refuse(RQ_ERR_ARG, why, "no matrix to repack");
    int64_t rows = 0;
    for (int i = 0; i < n; ++i) {
        rq_status status;
        const char *text = not_in_tiles(&g[i], &status);
        if (text) return refuse(status, why, text);
        if ((text = not_stackable(&g[0], &g[i]))) return refuse(RQ_ERR_UNSUPPORTED, why, text);
        if (rows % RQ_TILE_ROWS)
            return refuse(RQ_ERR_UNSUPPORTED, why, "all stacked matrices but the last have multiples of 16 rows");
        rows += g[i].n_out;
    }
    *t = (rq_tile_layout){.kind = RQ_TILE_GRID,
                          .n_out = rows,
                          .n_in = g->n_in,
                          .bits = g->bits,
                          .group = g->group,
                          .zeros = g->zero != NULL};
    rq_tile_plan(t);
    return RQ_OK;
}

/* The codes of a tile; what is beyond the matrix is 0. */
static void pack_tile(uint32_t *tile, const tile_map *m, const rq_grid *g, int64_t rb, int64_t kb) {
    int64_t row0 = rb * RQ_TILE_ROWS, col0 = kb * RQ_TILE_COLS;
    int n_row = g->n_out - row0 < RQ_TILE_ROWS ? (int)(g->n_out - row0) : RQ_TILE_ROWS;
    int n_col = g->n_in - col0 < RQ_TILE_COLS ? (int)(g->n_in - col0) : RQ_TILE_COLS;
    for (int row = 0; row < n_row; ++row)
        for (int col = 0; col < n_col; ++col) {
            uint32_t code = rq_grid_code(g, row0 + row, col0 + col);
            place low = m->low[row][col], high = m->high[row][col];
            tile[low.word] |= (code & ((1u << m->low_bits) - 1u)) << low.shift;
            if (m->high_bits) tile[high.word] |= code >> m->low_bits << high.shift;
        }
}

/* Scales and zero points of the matrix whose first row is row `first` of the stack. */
static bool pack_side(uint8_t *to, const rq_tile_layout *t, const rq_grid *g, int64_t first) {
    rq_f16 *scales = (rq_f16 *)(void *)(to + t->scales), *zeros = (rq_f16 *)(void *)(to + t->zero_points);
    for (int64_t row = 0; row < g->n_out; ++row)
        for (int64_t i = 0; i < t->n_group; ++i) {
            int64_t at = ((first + row) / RQ_TILE_ROWS * t->n_group + i) * RQ_TILE_ROWS +
                         rq_tile_grid_place((first + row) % RQ_TILE_ROWS);
            if (!exact_in_f16(rq_grid_scale(g, row, i), &scales[at]) && g->scale_f32) return false;
            if (g->scale_f16) scales[at] = g->scale_f16[row * g->n_group + i]; /* NaN keeps its bits too */
            if (g->zero) zeros[at] = rq_f16_of_f32((float)g->zero[row * g->n_group + i]);
        }
    return true;
}

/* t is the layout of this stack. */
static bool is_planned_for(const rq_tile_layout *t, const rq_grid *g, int n) {
    int64_t rows = 0;
    for (int i = 0; i < n; ++i) {
        if (t->n_in != g[i].n_in || t->bits != g[i].bits || t->group != g[i].group || t->zeros != (g[i].zero != NULL) ||
            rows % RQ_TILE_ROWS)
            return false;
        rows += g[i].n_out;
    }
    return is_planned(t) && t->n_out == rows;
}

rq_status rq_repack_grid(void *dst, const rq_tile_layout *t, const rq_grid *g, int n, const char **why) {
    if (!dst || !t || !g || n < 1 || !is_planned_for(t, g, n))
        return refuse(RQ_ERR_ARG, why, "the layout is not the one planned for these matrices");
    uint8_t *to = dst;
    tile_map m;
    make_map(&m, t->bits);
    memset(to, 0, (size_t)t->bytes);
    int64_t first = 0;
    for (int i = 0; i < n; first += g[i++].n_out) {
        uint8_t *tiles = to + t->tiles + first / RQ_TILE_ROWS * t->n_kb * t->tile_bytes;
        for (int64_t rb = 0; rb * RQ_TILE_ROWS < g[i].n_out; ++rb)
            for (int64_t kb = 0; kb < t->n_kb; ++kb)
                pack_tile((uint32_t *)(void *)(tiles + (rb * t->n_kb + kb) * t->tile_bytes), &m, &g[i], rb, kb);
        if (!pack_side(to, t, &g[i], first))
            return refuse(RQ_ERR_UNSUPPORTED, why, "an fp32 scale is not exact in fp16");
    }
    return RQ_OK;
}

rq_status rq_unpack_tiles_grid(uint32_t *words, rq_f16 *scales, uint8_t *zeros, const void *src,
                               const rq_tile_layout *t, int64_t first, int64_t n_out, const char **why) {
    if (!words || !scales || !src || !t || !is_planned(t) || (t->zeros && !zeros))
        return refuse(RQ_ERR_ARG, why, "the layout is not one of rq_repack_grid_plan, or an array is missing");
    if (first < 0 || n_out < 1 || n_out > t->n_out - first)
        return refuse(RQ_ERR_ARG, why, "these rows are not all in the layout");
    const uint8_t *from = src;
    tile_map m;
    make_map(&m, t->bits);
    int64_t row_words = rq_grid_row_words(t->n_in, t->bits);
    memset(words, 0, (size_t)(n_out * row_words) * sizeof *words);
    for (int64_t row = 0; row < n_out; ++row) {
        int64_t rb = (first + row) / RQ_TILE_ROWS, r = (first + row) % RQ_TILE_ROWS;
        uint32_t *to = words + row * row_words;
        for (int64_t col = 0; col < t->n_in; ++col) {
            const uint32_t *tile =
                (const uint32_t *)(const void *)(from + t->tiles + (rb * t->n_kb + col / RQ_TILE_COLS) * t->tile_bytes);
            place low = m.low[r][col % RQ_TILE_COLS], high = m.high[r][col % RQ_TILE_COLS];
            uint32_t code = tile[low.word] >> low.shift & ((1u << m.low_bits) - 1u);
            if (m.high_bits) code |= (tile[high.word] >> high.shift & ((1u << m.high_bits) - 1u)) << m.low_bits;
            int64_t bit = col * t->bits;
            unsigned shift = (unsigned)(bit & 31);
            to[bit >> 5] |= code << shift;
            if (shift + (unsigned)t->bits > 32) to[(bit >> 5) + 1] |= code >> (32 - shift);
        }
        const rq_f16 *scale = (const rq_f16 *)(const void *)(from + t->scales);
        const rq_f16 *zero = (const rq_f16 *)(const void *)(from + t->zero_points);
        for (int64_t i = 0; i < t->n_group; ++i) {
            int64_t at = (rb * t->n_group + i) * RQ_TILE_ROWS + rq_tile_grid_place(r);
            scales[row * t->n_group + i] = scale[at];
            if (t->zeros) zeros[row * t->n_group + i] = (uint8_t)rq_f32_of_f16(zero[at]);
        }
    }
    return RQ_OK;
}
