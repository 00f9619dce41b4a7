/* SPDX-License-Identifier: Apache-2.0 */
/* W4A8 as a format of gemv_launch.cu. Targets: sm_80 sm_90a. */
#include "gemv_w4a8.cuh"

static int steps_of(const rq_cuda_gemv_desc *d) { return d->group == 0 ? 0 : d->group % RQ_TILE_COLS == 0 ? 4 : 1; }

static const char *refuse(const rq_cuda_gemv_desc *d) {
    if (d->group < 0 || d->group % 32 != 0) return "W4A8: groups are multiples of 32 columns; 0 stands for one level";
    if (d->n_in > 131072) return "W4A8: at most 131072 columns, for sums of 32 bits";
    if (d->n_outlier != 0) return "W4A8 has no outlier columns";
    return NULL;
}

static rq_tile_layout layout(const rq_cuda_gemv_desc *d) {
    rq_tile_layout t = {};
    t.kind = RQ_TILE_W4A8;
    t.n_out = d->n_out, t.n_in = d->n_in, t.bits = 4, t.group = d->group;
    rq_tile_plan(&t);
    return t;
}

template <int STEPS> static const void *function_of(bool two_halves) {
    typedef rq_gemv_w4a8_tiles<STEPS> tiles;
    return two_halves ? (const void *)rq_gemv<tiles, 2> : (const void *)rq_gemv<tiles, 1>;
}
static rq_gemv_kernel pick(const rq_cuda_gemv_desc *d) {
    const bool two_halves = d->n_tok > 8;
    rq_gemv_kernel k = {};
    k.depth = rq_gemv_w4a8_tiles<0>::DEPTH, k.rows = rq_gemv_w4a8_tiles<0>::ROWS;
    switch (steps_of(d)) {
    case 0: k.function = function_of<0>(two_halves), k.name = "gemv_w4a8"; break;
    case 1: k.function = function_of<1>(two_halves), k.name = "gemv_w4a8_groups"; break;
    default: k.function = function_of<4>(two_halves), k.name = "gemv_w4a8_groups_128"; break;
    }
    return k;
}

static void fill(void *to, const rq_cuda_gemv_desc *d, const void *weights) {
    const rq_tile_layout t = layout(d);
    const uint8_t *base = static_cast<const uint8_t *>(weights);
    rq_gemv_w4a8_args a = {};
    a.tiles = base + t.tiles, a.levels = base + t.levels;
    a.scales = reinterpret_cast<const float *>(base + t.scales);
    a.zeros = reinterpret_cast<const int32_t *>(base + t.zero_points);
    a.n_kb = (int)t.n_kb, a.n_group = (int)t.n_group;
    a.steps_of_group = (uint32_t)(d->group / 32);
    a.reciprocal = a.steps_of_group <= 1 ? 0 : (uint32_t)(((uint64_t)1 << 32) / a.steps_of_group + 1);
    memcpy(to, &a, sizeof a);
}
RQ_STATIC_ASSERT(sizeof(rq_gemv_w4a8_args) <= RQ_GEMV_ARGS, "a format's arguments");

extern const rq_gemv_format rq_gemv_w4a8 = {RQ_TILE_W4A8, refuse, layout, pick, fill};
