/* SPDX-License-Identifier: Apache-2.0 */
/* W4A8 weights as tiles (fmt_tile.h), and back. One function knows where a code is, another where the levels of a group are, and both
 * ways go through them. */
#include "rq_repack.h"

enum { STEP_COLS = 32, HALF_STEP = 16, LANES = 32, OFFSET = 128, SYMMETRIC = 8 };

static rq_status refuse(const char **why, const char *text) {
    if (why) *why = text;
    return RQ_ERR_UNSUPPORTED;
}

static bool same_input(const rq_w4a8 *a, const rq_w4a8 *b) {
    if (a->hadamard != b->hadamard || !a->in_scale != !b->in_scale) return false;
    return !a->in_scale || memcmp(a->in_scale, b->in_scale, (size_t)a->n_in * sizeof *a->in_scale) == 0;
}

rq_status rq_repack_w4a8_plan(rq_tile_layout *t, const rq_w4a8 *m, int n, const char **why) {
    if (n < 1) return refuse(why, "no matrix to repack");
    if (m->n_in < 1 || m->n_in > RQ_W4A8_MAX_COLS) return refuse(why, "W4A8 has 1 to 131072 columns");
    if (m->group < 0 || m->group % STEP_COLS) return refuse(why, "groups are multiples of 32 columns");
    int64_t rows = 0;
    for (int i = 0; i < n; ++i) {
        if (m[i].n_in != m->n_in || m[i].group != m->group)
            return refuse(why, "the stacked matrices have different columns or groups");
        if (!same_input(&m[i], m))
            return refuse(why, "the stacked matrices have different factors or Hadamard matrices of the input");
        if (rows % RQ_TILE_ROWS) return refuse(why, "all stacked matrices but the last have multiples of 16 rows");
        rows += m[i].n_out;
    }
    *t = (rq_tile_layout){.kind = RQ_TILE_W4A8, .n_out = rows, .n_in = m->n_in, .bits = 4, .group = m->group};
    t->factors = m->in_scale != NULL;
    t->hadamard = m->hadamard;
    rq_tile_plan(t);
    return RQ_OK;
}

/* ---- where things are */

/* The byte of the code of (row, j), and the lowest of its 4 bits. */
static int64_t code_place(const rq_tile_layout *t, int64_t row, int64_t j, int *bit) {
    int in_step = (int)(j % STEP_COLS), step = (int)(j % RQ_TILE_COLS) / STEP_COLS, r = (int)(row % RQ_TILE_ROWS);
    int lane = r % 8 * 4 + in_step % HALF_STEP / 4;
    int64_t tile = rq_tile_w4a8_place(row / RQ_TILE_ROWS, j / RQ_TILE_COLS, t->n_kb);
    *bit = in_step / HALF_STEP * 4;
    return t->tiles + tile * t->tile_bytes + (step / 2 * LANES + lane) * 16 + (step % 2 * 2 + r / 8) * 4 + in_step % 4;
}
/* The step of a group; 128 + base is the byte after it. */
static int64_t level_place(const rq_tile_layout *t, int64_t row, int64_t k) {
    int64_t block = rq_tile_w4a8_place(row / RQ_TILE_ROWS, k, t->n_group), r = row % RQ_TILE_ROWS;
    return t->levels + block * RQ_TILE_ROWS * 2 + r % 8 * 4 + r / 8 * 2;
}

/* ---- there */

static void pack_row(uint8_t *to, const rq_tile_layout *t, const rq_w4a8 *w, int64_t row, int64_t at) {
    for (int64_t j = 0; j < w->n_in; ++j) {
        int bit;
        uint8_t *byte = to + code_place(t, at, j, &bit);
        *byte = (uint8_t)(*byte | rq_w4a8_code(w, row, j) << bit);
    }
    int32_t zero = w->group ? OFFSET : w->zero ? w->zero[row] : SYMMETRIC;
    memcpy(to + t->scales + at * 4, &w->scale[row], 4);
    memcpy(to + t->zero_points + at * 4, &zero, 4);
    for (int64_t k = 0; k < w->n_group; ++k) {
        uint8_t *level = to + level_place(t, at, k);
        level[0] = w->step[row * w->n_group + k];
        level[1] = (uint8_t)(w->base[row * w->n_group + k] + OFFSET);
    }
}

void rq_repack_w4a8(void *to, const rq_tile_layout *t, const rq_w4a8 *m, int n) {
    memset(to, 0, (size_t)t->bytes);
    if (t->factors) memcpy((uint8_t *)to + t->factors_at, m->in_scale, (size_t)t->n_in * sizeof *m->in_scale);
    int64_t first = 0;
    for (int i = 0; i < n; first += m[i++].n_out)
        for (int64_t row = 0; row < m[i].n_out; ++row) pack_row(to, t, &m[i], row, first + row);
}

/* ---- and back */

static void unpack_row(const rq_w4a8_arrays *to, const rq_w4a8 *w, const rq_tile_layout *t, const uint8_t *from,
                       int64_t row, int64_t at) {
    uint32_t *words = to->words ? to->words + row * w->row_words : NULL;
    if (words) memset(words, 0, (size_t)w->row_words * 4);
    for (int64_t j = 0; words && j < w->n_in; ++j) {
        int bit;
        const uint8_t *byte = from + code_place(t, at, j, &bit);
        words[j / 8] |= (uint32_t)(*byte >> bit & 15) << j % 8 * 4;
    }
    if (to->scale) memcpy(&to->scale[row], from + t->scales + at * 4, 4);
    int32_t zero;
    memcpy(&zero, from + t->zero_points + at * 4, 4);
    if (to->zero && !w->group) to->zero[row] = (uint8_t)zero;
    for (int64_t k = 0; k < w->n_group; ++k) {
        const uint8_t *level = from + level_place(t, at, k);
        if (to->step) to->step[row * w->n_group + k] = level[0];
        if (to->base) to->base[row * w->n_group + k] = (int8_t)(level[1] - OFFSET);
    }
}

void rq_repack_w4a8_back(const rq_w4a8_arrays *to, const rq_w4a8 *shape, const rq_tile_layout *t, const void *from,
                         int64_t first) {
    if (to->in_scale && t->factors) memcpy(to->in_scale, (const uint8_t *)from + t->factors_at, (size_t)t->n_in * 4);
    for (int64_t row = 0; row < shape->n_out; ++row) unpack_row(to, shape, t, from, row, first + row);
}
