/* SPDX-License-Identifier: Apache-2.0 */
/* unpack for sign-split vector codes, all but the decoding. Included by gemv_ssvq_avx2.c and gemv_ssvq_avx512.c, after fits, make_table
 * and unpack_part (columns of one codebook in one row). */
static void unpack_any(float *dst, const rq_ssvq *w, int64_t row0, int64_t n_rows) {
    float table[(1 << 12) * 8] __attribute__((aligned(64)));
    if (!fits(w)) {
        rq_unpack_ssvq_c(dst, w, row0, n_rows);
        return;
    }
    for (int64_t b = 0; b < w->n_book; ++b) {
        int64_t begin = b * w->book_cols, end = rq_min_i64(w->n_in, begin + w->book_cols);
        make_table(table, w, b);
        for (int64_t j = begin; j < end; j += XR_FLOATS) {
            for (int64_t r = 0; r < n_rows; ++r) {
                if (w->vec_len == 8)
                    unpack_part(dst + r * w->n_in, w, table, row0 + r, j, rq_min_i64(end, j + XR_FLOATS), 8);
                else
                    unpack_part(dst + r * w->n_in, w, table, row0 + r, j, rq_min_i64(end, j + XR_FLOATS), 4);
            }
        }
    }
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int o = 0; o < w->n_outlier; ++o) {
            float v = w->outlier_scale[o] * (float)w->outlier[(row0 + r) * w->n_outlier + o];
            dst[r * w->n_in + w->outlier_col[o]] = v;
        }
    }
}
