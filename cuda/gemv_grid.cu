/* SPDX-License-Identifier: Apache-2.0 */
/* Grid codes as a format of gemv_launch.cu. Targets: sm_80 sm_90a. */
#include "gemv_grid.cuh"

const void *rq_gemv_grid_function_2(const rq_cuda_gemv_desc *d, int steps);
const void *rq_gemv_grid_function_3(const rq_cuda_gemv_desc *d, int steps);
const void *rq_gemv_grid_function_4(const rq_cuda_gemv_desc *d, int steps);
const void *rq_gemv_grid_function_8(const rq_cuda_gemv_desc *d, int steps);

/* A whole row counts as one long group. */
static bool is_row(const rq_cuda_gemv_desc *d) { return d->group == d->n_in; }
static int steps_of(const rq_cuda_gemv_desc *d) {
    if (is_row(d) || d->group % RQ_TILE_COLS == 0) return 4;
    return d->group % 64 == 0 && rq_gemv_grid_pairs(d->bits, d->zeros) ? 2 : 1;
}

static const char *refuse(const rq_cuda_gemv_desc *d) {
    if (d->bits != 2 && d->bits != 3 && d->bits != 4 && d->bits != 8) return "grid codes have 2, 3, 4 or 8 bits";
    if (d->group < 1 || d->group > d->n_in) return "a group has 1 to n_in columns";
    if (!is_row(d) && d->group % 32 != 0) return "groups are multiples of 32 columns, or whole rows";
    if (d->n_outlier != 0) return "grid codes have no outlier columns";
    return NULL;
}

static rq_tile_layout layout(const rq_cuda_gemv_desc *d) {
    rq_tile_layout t = {};
    t.kind = RQ_TILE_GRID;
    t.n_out = d->n_out, t.n_in = d->n_in, t.bits = d->bits, t.group = d->group, t.zeros = d->zeros;
    rq_tile_plan(&t);
    return t;
}

static rq_gemv_kernel pick(const rq_cuda_gemv_desc *d) {
    const int steps = steps_of(d);
    rq_gemv_kernel k = {};
    k.depth = rq_gemv_grid_depth(d->bits, steps, d->zeros), k.rows = 1;
    k.sums = d->zeros && d->bits == 2 ? 4 / steps : 0;
    switch (d->bits) {
    case 2: k.function = rq_gemv_grid_function_2(d, steps), k.name = "gemv_grid_2"; break;
    case 3: k.function = rq_gemv_grid_function_3(d, steps), k.name = "gemv_grid_3"; break;
    case 4: k.function = rq_gemv_grid_function_4(d, steps), k.name = "gemv_grid_4"; break;
    case 8: k.function = rq_gemv_grid_function_8(d, steps), k.name = "gemv_grid_8"; break;
    }
    return k;
}

static void fill(void *to, const rq_cuda_gemv_desc *d, const void *weights) {
    const rq_tile_layout t = layout(d);
    const uint8_t *base = static_cast<const uint8_t *>(weights);
    rq_gemv_grid_args a;
    a.tiles = base + t.tiles, a.scales = base + t.scales, a.zeros = d->zeros ? base + t.zero_points : NULL;
    a.n_kb = (int)t.n_kb, a.n_group = (int)t.n_group;
    /* floor(step / s) = floor(step (floor(2^32 / s) + 1) / 2^32) while step * s < 2^32: n_in has 2^20 at most. */
    a.steps_of_group = (uint32_t)(is_row(d) ? t.n_kb * 4 : d->group / 32);
    a.reciprocal = a.steps_of_group == 1 ? 0 : (uint32_t)(((uint64_t)1 << 32) / a.steps_of_group + 1);
    memcpy(to, &a, sizeof a);
}
RQ_STATIC_ASSERT(sizeof(rq_gemv_grid_args) <= RQ_GEMV_ARGS, "a format's arguments");

extern const rq_gemv_format rq_gemv_grid = {RQ_TILE_GRID, refuse, layout, pick, fill};
