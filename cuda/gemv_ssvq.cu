/* SPDX-License-Identifier: Apache-2.0 */
/* SSVQ as a format of gemv_launch.cu. Targets: sm_80 sm_90a. */
#include "gemv_ssvq.cuh"

const void *rq_gemv_ssvq_function_4(const rq_cuda_gemv_desc *d, int steps);
const void *rq_gemv_ssvq_function_8(const rq_cuda_gemv_desc *d, int steps);
const void *rq_gemv_ssvq_wide_function_4(const rq_cuda_gemv_desc *d, int steps);
const void *rq_gemv_ssvq_wide_function_8(const rq_cuda_gemv_desc *d, int steps);
const void *rq_gemv_ssvq_s8_function_4(const rq_cuda_gemv_desc *d, int steps);
const void *rq_gemv_ssvq_s8_function_8(const rq_cuda_gemv_desc *d, int steps);

static bool is_row(const rq_cuda_gemv_desc *d) { return d->group == d->n_in; }
static bool is_wide(const rq_cuda_gemv_desc *d) { return d->code_bits > 8; }
/* Codes of more than 8 bits have no kernel for 4. Of int8 x: integer sums of several codebooks cannot be added, a row is a group then; and groups of more than 8 tokens, whose sums take
 * the registers of a tile, are ended at each step. */
static int steps_of(const rq_cuda_gemv_desc *d) {
    if (is_row(d) && !(d->x_s8 && d->n_book > 1)) return 0;
    if (is_wide(d) || (d->x_s8 && d->n_tok > 8)) return 1;
    return is_row(d) || d->group % RQ_TILE_COLS == 0 ? 4 : 1;
}

static const char *refuse(const rq_cuda_gemv_desc *d) {
    if (d->vec_len != 4 && d->vec_len != 8) return "vectors have 4 or 8 columns";
    if (d->code_bits < 0 || d->code_bits > 12) return "codes have at most 12 bits";
    if (d->group < 1 || d->group > d->n_in) return "a group has 1 to n_in columns";
    if (!is_row(d) && d->group % 32 != 0) return "groups are multiples of 32 columns, or whole rows";
    if (d->book_cols < 1 || d->n_book != (d->n_in + d->book_cols - 1) / d->book_cols)
        return "there is a codebook for each book_cols columns";
    if (d->n_book > 1 && d->book_cols % RQ_TILE_COLS != 0) return "columns of one codebook are multiples of 128";
    if (d->n_outlier < 0 || d->n_outlier > 16) return "there are 0 to 16 outlier columns";
    if (d->x_s8 && !d->book_u8) return "int8 activations need byte magnitudes";
    if (d->x_s8 && is_wide(d)) return "int8 activations: codebooks of at most 256 entries";
    if (d->x_s8 && d->n_in > 65536) return "int8 activations: at most 65536 columns, for sums of 32 bits";
    if (!d->book_u8 && d->act == RQ_ACT_BF16)
        return "fp16 magnitudes need fp16 activations: bfloat16 has not their 11 bits (byte magnitudes go with both)";
    if (d->zeros) return "SSVQ has no zero points";
    return NULL;
}

static rq_tile_layout layout(const rq_cuda_gemv_desc *d) {
    rq_tile_layout t = {};
    t.kind = RQ_TILE_SSVQ;
    t.n_out = d->n_out, t.n_in = d->n_in, t.vec_len = d->vec_len, t.bits = d->vec_len == 8 ? 2 : 3;
    t.code_bits = d->code_bits;
    t.group = d->group, t.n_book = d->n_book, t.book_cols = d->n_book > 1 ? d->book_cols : d->n_in;
    t.book_u8 = d->book_u8 != 0, t.n_outlier = d->n_outlier;
    rq_tile_plan(&t);
    return t;
}

static rq_gemv_kernel pick(const rq_cuda_gemv_desc *d) {
    rq_gemv_kernel k = {};
    const bool eight = d->vec_len == 8;
    const int n_codes = (int)rq_tile_ssvq_codes(d->code_bits);
    if (is_wide(d)) {
        k.function = (eight ? rq_gemv_ssvq_wide_function_8 : rq_gemv_ssvq_wide_function_4)(d, steps_of(d));
        k.name = eight ? "gemv_ssvq_8_wide" : "gemv_ssvq_4_wide";
    } else if (d->x_s8) {
        k.function = (eight ? rq_gemv_ssvq_s8_function_8 : rq_gemv_ssvq_s8_function_4)(d, steps_of(d));
        k.name = eight ? "gemv_ssvq_8_s8" : "gemv_ssvq_4_s8";
    } else {
        const bool bytes = d->book_u8 && d->act == RQ_ACT_F16;
        k.function = (eight ? rq_gemv_ssvq_function_8 : rq_gemv_ssvq_function_4)(d, steps_of(d));
        k.name = eight ? bytes ? "gemv_ssvq_8_bytes" : "gemv_ssvq_8" : bytes ? "gemv_ssvq_4_bytes" : "gemv_ssvq_4";
    }
    k.shared_format = RQ_SSVQ_TABLE + n_codes * rq_gemv_ssvq_stride(n_codes);
    k.depth = rq_gemv_ssvq_depth(steps_of(d)), k.rows = RQ_SSVQ_ROWS;
    return k;
}

static void fill(void *to, const rq_cuda_gemv_desc *d, const void *weights) {
    const rq_tile_layout t = layout(d);
    const uint8_t *base = static_cast<const uint8_t *>(weights);
    rq_gemv_ssvq_args a = {};
    a.tiles = base + t.tiles, a.scales = base + t.scales, a.book = base + t.book, a.outliers = base + t.outliers;
    a.book_scales = reinterpret_cast<const float *>(base + t.book_scales);
    a.outlier_cols = reinterpret_cast<const int32_t *>(base + t.outlier_cols);
    a.outlier_scales = reinterpret_cast<const float *>(base + t.outlier_scales);
    a.n_rb = (int)t.n_rb, a.n_kb = (int)t.n_kb, a.n_group = (int)t.n_group, a.n_book = (int)t.n_book;
    a.book_kb = (int)(t.n_book > 1 ? t.book_cols / RQ_TILE_COLS : t.n_kb);
    a.book_u8 = t.book_u8, a.n_outlier = t.n_outlier;
    a.n_codes = (int)rq_tile_ssvq_codes(d->code_bits);
    a.stride = (uint32_t)rq_gemv_ssvq_stride(a.n_codes), a.stride_2 = a.stride << 8;
    while (1u << a.log_stride < a.stride) ++a.log_stride;
    a.steps_of_group = (uint32_t)(is_row(d) ? t.n_kb * 4 : d->group / 32);
    a.reciprocal = a.steps_of_group == 1 ? 0 : (uint32_t)(((uint64_t)1 << 32) / a.steps_of_group + 1);
    memcpy(to, &a, sizeof a);
}
RQ_STATIC_ASSERT(sizeof(rq_gemv_ssvq_args) <= RQ_GEMV_ARGS, "a format's arguments");

extern const rq_gemv_format rq_gemv_ssvq = {RQ_TILE_SSVQ, refuse, layout, pick, fill};
