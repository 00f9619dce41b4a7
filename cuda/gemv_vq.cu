/* SPDX-License-Identifier: Apache-2.0 */
/* VQ as a format of gemv_launch.cu. Targets: sm_80 sm_90a. */
#include "gemv_vq.cuh"

/* The compiled kernels, by vectors and bits of a code: gemv_vq_<vec_len>_<bits of the first stage>_<of the second>.cu. */
typedef struct variant {
    int vec_len, vec_out, bits[2];
    const char *name;
    void (*pick)(rq_gemv_kernel *k, const rq_cuda_gemv_desc *d);
} variant;
void rq_gemv_vq_pick_8_8_0(rq_gemv_kernel *k, const rq_cuda_gemv_desc *d);
void rq_gemv_vq_pick_8_8_8(rq_gemv_kernel *k, const rq_cuda_gemv_desc *d);
void rq_gemv_vq_pick_4_8_0(rq_gemv_kernel *k, const rq_cuda_gemv_desc *d);
void rq_gemv_vq_pick_4_8_8(rq_gemv_kernel *k, const rq_cuda_gemv_desc *d);
static const variant variants[] = {
    {8, 0, {8, 0}, "gemv_vq_8_8", rq_gemv_vq_pick_8_8_0},
    {8, 0, {8, 8}, "gemv_vq_8_8_8", rq_gemv_vq_pick_8_8_8},
    {4, 0, {8, 0}, "gemv_vq_4_8", rq_gemv_vq_pick_4_8_0},
    {4, 0, {8, 8}, "gemv_vq_4_8_8", rq_gemv_vq_pick_4_8_8},
};
static const variant *variant_of(const rq_cuda_gemv_desc *d) {
    const int first = rq_tile_code_bits(d->n_codes[0]), second = d->n_stage > 1 ? rq_tile_code_bits(d->n_codes[1]) : 0;
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; ++i) {
        const variant *v = &variants[i];
        if (v->vec_len == d->vec_len && v->vec_out == (d->vec_out != 0) && v->bits[0] == first && v->bits[1] == second)
            return v;
    }
    return NULL;
}

static bool is_row(const rq_cuda_gemv_desc *d) { return d->group == d->n_in; }

static const char *refuse(const rq_cuda_gemv_desc *d) {
    if (d->n_stage != 1 && d->n_stage != 2) return "VQ has 1 or 2 stages";
    for (int s = 0; s < d->n_stage; ++s)
        if (d->n_codes[s] < 1 || d->n_codes[s] > 65536) return "a codebook has 1 to 65536 entries";
    if (d->vec_out && d->vec_len != 8) return "vectors down the rows have 8 of them";
    if (d->vec_len != 4 && d->vec_len != 8) return "vectors have 4 or 8 columns";
    if (!variant_of(d)) return "there is no kernel of VQ with these vectors, stages and sizes of codebooks";
    if (d->group < 1 || d->group > d->n_in) return "a group has 1 to n_in columns";
    if (!is_row(d) && (d->group % 32 != 0 || d->no_scales)) return "groups are multiples of 32 columns, or whole rows";
    if (d->book_cols < 1 || d->n_book != (d->n_in + d->book_cols - 1) / d->book_cols)
        return "there is a codebook for each book_cols columns";
    if (d->n_book > 1 && d->book_cols % RQ_TILE_COLS != 0) return "columns of one codebook are multiples of 128";
    if (d->n_outlier < 0 || d->n_outlier > 16) return "there are 0 to 16 outlier columns";
    if (d->zeros) return "VQ has no zero points";
    return NULL;
}

static rq_tile_layout layout(const rq_cuda_gemv_desc *d) {
    rq_tile_layout t = {};
    t.kind = RQ_TILE_VQ;
    t.n_out = d->n_out, t.n_in = d->n_in, t.vec_len = d->vec_len, t.vec_out = d->vec_out != 0, t.n_stage = d->n_stage;
    t.n_codes[0] = d->n_codes[0], t.n_codes[1] = d->n_stage > 1 ? d->n_codes[1] : 0;
    t.no_scales = d->no_scales != 0, t.columns = d->columns != 0;
    t.group = d->group, t.n_book = d->n_book, t.book_cols = d->n_book > 1 ? d->book_cols : d->n_in;
    t.n_outlier = d->n_outlier;
    rq_tile_plan(&t);
    return t;
}

static rq_gemv_kernel pick(const rq_cuda_gemv_desc *d) {
    rq_gemv_kernel k = {};
    const variant *v = variant_of(d);
    v->pick(&k, d);
    k.name = v->name;
    return k;
}

static void fill(void *to, const rq_cuda_gemv_desc *d, const void *weights) {
    const rq_tile_layout t = layout(d);
    const uint8_t *base = static_cast<const uint8_t *>(weights);
    rq_gemv_vq_args a = {};
    a.tiles = base + t.tiles, a.scales = base + t.scales, a.book[0] = base + t.book, a.book[1] = base + t.book_2;
    a.columns = reinterpret_cast<const __half *>(base + t.columns_at);
    a.outliers = base + t.outliers;
    a.outlier_cols = reinterpret_cast<const int32_t *>(base + t.outlier_cols);
    a.outlier_scales = reinterpret_cast<const float *>(base + t.outlier_scales);
    a.n_rb = (int)t.n_rb, a.n_kb = (int)t.n_kb, a.n_group = (int)t.n_group;
    a.book_kb = (int)(t.n_book > 1 ? t.book_cols / RQ_TILE_COLS : t.n_kb);
    a.n_outlier = t.n_outlier, a.no_scales = t.no_scales, a.has_columns = t.columns;
    a.n_codes[0] = (int)t.n_codes[0], a.n_codes[1] = (int)t.n_codes[1];
    a.steps_of_group = (uint32_t)(is_row(d) ? t.n_kb * 4 : d->group / 32);
    a.reciprocal = a.steps_of_group == 1 ? 0 : (uint32_t)(((uint64_t)1 << 32) / a.steps_of_group + 1);
    memcpy(to, &a, sizeof a);
}
RQ_STATIC_ASSERT(sizeof(rq_gemv_vq_args) <= RQ_GEMV_ARGS, "a format's arguments");

extern const rq_gemv_format rq_gemv_vq = {RQ_TILE_VQ, refuse, layout, pick, fill};
