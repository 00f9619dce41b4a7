/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors down the outputs on a GPU: lines in tiles of one thread block each, and what the refit of scales and biases of columns (comp_columns.c) asks for: J by
 * a product with H, V^T V by one of V with itself, sums of columns by a kernel. The refit itself, which follows one column at a time with vectors as long as a
 * row, is the host's. Sweep, descent and codebooks are in backend_cuda_book*.c. */
#include "backend_cuda_book.h"

/* Lines of one matrix and one height, as many as a tile takes. */
static int make_tiles(rq_cuda_line_tile *tile, const rq_book_task *t) {
    int n = 0;
    for (int64_t line = 0; line < t->n_line; ++line) {
        int64_t row = t->line_row[line];
        int32_t tall = (int32_t)(t->line_row[line + 1] - row);
        rq_cuda_line_tile *own = n > 0 ? &tile[n - 1] : NULL;
        if (own && own->n_lines < rq_cuda_tile_lines(t->d) && own->tall == tall && own->matrix == t->matrix[row])
            ++own->n_lines;
        else
            tile[n++] = (rq_cuda_line_tile){row, (int32_t)line, 1, tall, t->matrix[row]};
    }
    return n;
}

rq_status cuda_lines_new(cuda_device *dev, cuda_book *b, const rq_book_task *t) {
    rq_status status = RQ_OK;
    int32_t *line_row = NULL, *row_line = NULL, *book_of = NULL;
    rq_cuda_line_tile *tile = NULL;
    int64_t n_bias = (t->matrix[t->n_out - 1] + 1) * t->n;
    RQ_TRY(RQ_NEW(tile, t->n_line));
    RQ_TRY(RQ_NEW(line_row, t->n_line + 1));
    RQ_TRY(RQ_NEW(row_line, t->n_out));
    RQ_TRY(RQ_NEW(book_of, t->n));
    b->n_tile = make_tiles(tile, t);
    for (int64_t line = 0; line <= t->n_line; ++line) line_row[line] = (int32_t)t->line_row[line];
    for (int64_t line = 0; line < t->n_line; ++line)
        for (int64_t row = t->line_row[line]; row < t->line_row[line + 1]; ++row) row_line[row] = (int32_t)line;
    for (int64_t j = 0; j < t->n; ++j) book_of[j] = (int32_t)rq_book_of(&t->book, j);
    RQ_TRY(CUDA_NEW(dev, b->bias, n_bias, t->label));
    RQ_TRY(CUDA_NEW(dev, b->tile, b->n_tile, t->label));
    RQ_TRY(CUDA_NEW(dev, b->line_row, t->n_line + 1, t->label));
    RQ_TRY(CUDA_NEW(dev, b->row_line, t->n_out, t->label));
    RQ_TRY(CUDA_NEW(dev, b->book_of, t->n, t->label));
    RQ_TRY(cuda_upload(dev, b->tile, tile, b->n_tile * (int64_t)sizeof *tile, dev->compute));
    RQ_TRY(cuda_upload(dev, b->line_row, line_row, (t->n_line + 1) * (int64_t)sizeof *line_row, dev->compute));
    RQ_TRY(cuda_upload(dev, b->row_line, row_line, t->n_out * (int64_t)sizeof *row_line, dev->compute));
    RQ_TRY(cuda_upload(dev, b->book_of, book_of, t->n * (int64_t)sizeof *book_of, dev->compute));
done:
    free(tile);
    free(line_row);
    free(row_line);
    free(book_of);
    return status;
}

rq_status cuda_book_columns(void *own, rq_book_columns *c, double *loss, bool terms) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    rq_book_task *t = c->t;
    cuda_book *b;
    double *on_sum = NULL, *sum = NULL;
    float *on_c = NULL;
    int64_t n = t->n, at = c->row0 * n;
    RQ_TRY(cuda_book_gradient(&b, dev, t, c->row0, c->n_rows, loss));
    if (!terms) goto done;
    RQ_TRY(RQ_NEW(sum, 3 * n));
    RQ_TRY(CUDA_NEW(dev, on_sum, 3 * n, t->label));
    RQ_TRY(CUDA_NEW(dev, on_c, n * n, t->label));
    RQ_TRY(cuda_book_expand(dev, b, t, RQ_EXPAND_RAW)); /* V */
    KERNEL_TRY(dev, rq_cuda_column_sums(on_sum, b->q + at, b->g + at, c->n_rows, n, dev->compute));
    RQ_TRY(cuda_sgemm_tn(dev, n, n, c->n_rows, b->q + at, n, b->q + at, n, on_c, n, t->label));
    RQ_TRY(cuda_download(dev, sum, on_sum, 3 * n * (int64_t)sizeof *sum));
    RQ_TRY(cuda_download(dev, c->c, on_c, n * n * (int64_t)sizeof *on_c));
    memcpy(c->slope_s, sum, (size_t)n * sizeof *sum);
    memcpy(c->slope_b, sum + n, (size_t)n * sizeof *sum);
    memcpy(c->v_sum, sum + 2 * n, (size_t)n * sizeof *sum);
done:
    free(sum);
    cuda_release(on_sum);
    cuda_release(on_c);
    return status;
}
