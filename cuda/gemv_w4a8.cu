/* SPDX-License-Identifier: Apache-2.0 */
/* W4A8 as a format of gemv_launch.cu. Targets: sm_80 sm_90a. */
#include "gemv_w4a8_e4m3.cuh"

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

template <class TILES> static rq_gemv_kernel kernel_of(bool two_halves, const char *name) {
    rq_gemv_kernel k = {};
    k.depth = TILES::DEPTH, k.rows = TILES::ROWS, k.name = name;
    k.function = two_halves ? (const void *)rq_gemv<TILES, 2> : (const void *)rq_gemv<TILES, 1>;
    return k;
}
static rq_gemv_kernel pick(const rq_cuda_gemv_desc *d) {
    const bool two_halves = d->n_tok > 8;
    const int steps = steps_of(d);
    if (d->x_e4m3) {
        if (steps == 0) return kernel_of<rq_gemv_w4a8_e4m3_tiles<0>>(two_halves, "gemv_w4a8_e4m3");
        if (steps == 1) return kernel_of<rq_gemv_w4a8_e4m3_tiles<1>>(two_halves, "gemv_w4a8_e4m3_groups");
        return kernel_of<rq_gemv_w4a8_e4m3_tiles<4>>(two_halves, "gemv_w4a8_e4m3_groups_128");
    }
    if (steps == 0) return kernel_of<rq_gemv_w4a8_tiles<0>>(two_halves, "gemv_w4a8");
    if (steps == 1) return kernel_of<rq_gemv_w4a8_tiles<1>>(two_halves, "gemv_w4a8_groups");
    return kernel_of<rq_gemv_w4a8_tiles<4>>(two_halves, "gemv_w4a8_groups_128");
}

static void fill(void *to, const rq_cuda_gemv_desc *d, const void *weights) {
    const rq_tile_layout t = layout(d);
    const uint8_t *base = static_cast<const uint8_t *>(weights);
    rq_gemv_w4a8_args a = {};
    a.tiles = base + t.tiles, a.levels = base + t.levels;
    a.scales = reinterpret_cast<const float *>(base + t.scales);
    a.zeros = reinterpret_cast<const int32_t *>(base + t.zero_points);
    a.n_kb = (int)t.n_kb, a.n_group = (int)t.n_group;
    a.x_stride = d->x_pitch ? d->x_pitch : d->n_in;
    a.steps_of_group = (uint32_t)(d->group / 32);
    a.reciprocal = a.steps_of_group <= 1 ? 0 : (uint32_t)(((uint64_t)1 << 32) / a.steps_of_group + 1);
    memcpy(to, &a, sizeof a);
}
RQ_STATIC_ASSERT(sizeof(rq_gemv_w4a8_args) <= RQ_GEMV_ARGS, "a format's arguments");

extern const rq_gemv_format rq_gemv_w4a8 = {RQ_TILE_W4A8, refuse, layout, pick, fill};
