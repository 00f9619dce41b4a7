/* SPDX-License-Identifier: Apache-2.0 */
/* Refinement of codebook codes on a GPU, the passes of comp_refine_book.c and comp_lines.c and the questions of comp_refit_book.c: products with H by cuBLAS, the rest by
 * kernels (comp_book_refine_sm80.cu, comp_lines_sm80.cu). Which rows round to nearest, and conjugate gradients, are decided on the host: by sums of rows, and by vectors as long as
 * the codebooks. */
#include "backend_cuda_book.h"

enum { MOST_PARTS = 256, LEAST_PARTS = 4, PART_BYTES = 64 << 20 };

/* NULL when *status says why. */
static cuda_book *refine_of(rq_status *failed, cuda_device *dev, rq_book_task *t) {
    rq_status status = RQ_OK;
    cuda_book *b = NULL;
    int32_t *kept = NULL;
    int64_t weights = t->n_out * t->n;
    CUDA_TRY(cudaSetDevice(dev->index), t->label);
    RQ_TRY(cuda_book_of(&b, dev, t));
    if (b->goal) goto done;
    RQ_TRY(CUDA_NEW(dev, b->kept, t->n, t->label));
    RQ_TRY(CUDA_NEW(dev, b->q, weights, t->label));
    RQ_TRY(CUDA_NEW(dev, b->e, weights, t->label));
    RQ_TRY(CUDA_NEW(dev, b->g, weights, t->label));
    RQ_TRY(CUDA_NEW(dev, b->delta, t->n_out * RQ_COMP_BLOCK, t->label));
    RQ_TRY(CUDA_NEW(dev, b->row_loss, t->n_out, t->label));
    RQ_TRY(rq_book_kept(&kept, t));
    RQ_TRY(cuda_upload(dev, b->kept, kept, t->n * (int64_t)sizeof *kept, dev->compute));
    RQ_TRY(CUDA_NEW(dev, b->goal, weights, t->label));
    RQ_TRY(cuda_upload(dev, b->goal, t->goal, weights * (int64_t)sizeof *t->goal, dev->compute));
done:
    free(kept);
    *failed = status;
    return status == RQ_OK ? b : NULL;
}

rq_status cuda_book_expand(cuda_device *dev, const cuda_book *b, const rq_book_task *t, rq_cuda_expand what) {
    rq_status status = RQ_OK;
    const rq_cuda_books k = cuda_books(b, t);
    KERNEL_TRY(dev,
               rq_cuda_expand_books(b->q, &k, b->kept, t->book.vec_per_book, t->book.n_book, what, b->v, dev->compute));
done:
    return status;
}

/* e = q - goal, g = e H, in rows [row0, row0 + n_rows). */
static rq_status gradient(cuda_device *dev, const cuda_book *b, const rq_book_task *t, int64_t row0, int64_t n_rows) {
    rq_status status = RQ_OK;
    const float *hd;
    int64_t n = t->n, at = row0 * n;
    RQ_TRY(cuda_prep_hd(dev, &hd, t->prep, t->label));
    KERNEL_TRY(dev, rq_cuda_subtract(b->e + at, b->q + at, b->goal + at, n_rows, n, dev->compute));
    RQ_TRY(cuda_sgemm(dev, RQ_N, n_rows, n, n, 1, b->e + at, n, hd, n, 0, b->g + at, n, t->label));
done:
    return status;
}

/* After gradient(): J of its rows one by one, on the host. */
static rq_status row_losses(cuda_device *dev, const cuda_book *b, const rq_book_task *t, int64_t row0, int64_t n_rows,
                            double *loss) {
    rq_status status = RQ_OK;
    int64_t n = t->n, at = row0 * n;
    KERNEL_TRY(dev, rq_cuda_row_parts(b->row_loss, b->e + at, b->g + at, n_rows, n, 0, n, n, 1, dev->compute));
    RQ_TRY(cuda_download(dev, loss, b->row_loss, n_rows * (int64_t)sizeof *loss));
done:
    return status;
}

/* Everything as the host has it, and its values. */
static rq_status load(cuda_device *dev, const cuda_book *b, const rq_book_task *t) {
    rq_status status = RQ_OK;
    RQ_TRY(cuda_book_send(dev, b, t));
    RQ_TRY(cuda_book_send_codes(dev, b, t));
    RQ_TRY(cuda_book_expand(dev, b, t, RQ_EXPAND_VALUE));
done:
    return status;
}

rq_status cuda_book_gradient(cuda_book **b, cuda_device *dev, rq_book_task *t, int64_t row0, int64_t n_rows,
                             double *loss) {
    rq_status status;
    double *of_row = NULL;
    *b = refine_of(&status, dev, t);
    if (!*b) goto done;
    RQ_TRY(RQ_NEW(of_row, n_rows));
    RQ_TRY(load(dev, *b, t));
    RQ_TRY(gradient(dev, *b, t, row0, n_rows));
    RQ_TRY(row_losses(dev, *b, t, row0, n_rows, of_row));
    *loss = 0;
    for (int64_t row = 0; row < n_rows; ++row) *loss += of_row[row];
done:
    free(of_row);
    return status;
}

/* ---- rows that rounding to the nearest code serves better ---- */

/* Every vector to the nearest code: values in b->q, codes in b->code and b->outlier. */
static rq_status nearest(cuda_device *dev, const cuda_book *b, const rq_book_refine *r) {
    rq_status status = RQ_OK;
    const rq_book_task *t = r->t;
    const rq_prep *p = t->prep;
    int64_t d = t->d, cells = t->vec_out ? 0 : t->n_vec * d * d;
    float *plain = NULL, *metric = NULL; /* ones for the vectors' own lanes */
    RQ_TRY(RQ_NEW_ZERO(plain, cells));
    for (int64_t j = 0; j < t->n && !t->vec_out; ++j)
        plain[j / d * d * d + j % d * (d + 1)] = r->kept[j] < 0 ? 1.0f : 0;
    RQ_TRY(CUDA_NEW(dev, metric, cells, t->label));
    RQ_TRY(cuda_upload(dev, metric, plain, cells * (int64_t)sizeof *plain, dev->compute));
    KERNEL_TRY(dev, rq_cuda_to_sweep_order(b->g, b->goal, b->perm, b->dead, t->n_out, t->n, dev->compute));
    rq_cuda_book_block block = {.books = cuda_books(b, t), .w = b->g, .metric = metric, .q = b->q, .diagonal = 1};
    for (int64_t first = 0, last; first < p->n_span; first = last) {
        last = cuda_book_block(p, first);
        block.span = b->span + first;
        block.n_span = (int)(last - first);
        block.col0 = p->span[first].pos;
        block.width = (int)(p->span[last - 1].pos + p->span[last - 1].width - block.col0);
        KERNEL_TRY(dev,
                   t->vec_out ? rq_cuda_sweep_lines(&block, dev->compute) : rq_cuda_sweep_books(&block, dev->compute));
    }
done:
    free(plain);
    cuda_release(metric);
    return status;
}

static double line_loss(const rq_book_task *t, const double *of_row, int64_t line) {
    double sum = 0;
    for (int64_t row = t->line_row[line]; row < t->line_row[line + 1]; ++row) sum += of_row[row];
    return sum;
}

static rq_status choose(cuda_device *dev, const cuda_book *b, const rq_book_refine *r) {
    rq_status status = RQ_OK;
    rq_book_task *t = r->t;
    int64_t n_outlier = t->prep->n_outlier;
    double *now = NULL, *other = NULL;
    rq_vec_code *code = NULL;
    int8_t *outlier = NULL;
    RQ_TRY(RQ_NEW(now, t->n_out));
    RQ_TRY(RQ_NEW(other, t->n_out));
    RQ_TRY(RQ_NEW(code, t->n_line * t->n_vec));
    RQ_TRY(RQ_NEW(outlier, rq_max_i64(1, t->n_out * n_outlier)));
    RQ_TRY(load(dev, b, t));
    RQ_TRY(gradient(dev, b, t, 0, t->n_out));
    RQ_TRY(row_losses(dev, b, t, 0, t->n_out, now));
    RQ_TRY(nearest(dev, b, r));
    RQ_TRY(gradient(dev, b, t, 0, t->n_out));
    RQ_TRY(row_losses(dev, b, t, 0, t->n_out, other));
    RQ_TRY(cuda_book_fetch(dev, b, t, code, outlier));
    for (int64_t line = 0; line < t->n_line; ++line) {
        if (line_loss(t, now, line) <= line_loss(t, other, line)) continue; /* a sweep that ended in NaN loses */
        int64_t row0 = t->line_row[line], n_rows = t->line_row[line + 1] - row0;
        memcpy(t->code + line * t->n_vec, code + line * t->n_vec, (size_t)t->n_vec * sizeof *code);
        memcpy(t->outlier + row0 * n_outlier, outlier + row0 * n_outlier, (size_t)(n_rows * n_outlier));
    }
done:
    free(now);
    free(other);
    free(code);
    free(outlier);
    return status;
}

/* ---- scales ---- */

static rq_status scales(cuda_device *dev, const cuda_book *b, rq_book_task *t) {
    rq_status status = RQ_OK;
    const rq_cuda_books k = cuda_books(b, t);
    const float *hd;
    int64_t n = t->n;
    RQ_TRY(load(dev, b, t));
    RQ_TRY(gradient(dev, b, t, 0, t->n_out));
    RQ_TRY(cuda_prep_hd(dev, &hd, t->prep, t->label));
    RQ_TRY(cuda_book_expand(dev, b, t, RQ_EXPAND_RAW));
    for (int64_t g = 0; g < t->n_group; ++g) {
        int64_t c0 = g * t->group;
        RQ_TRY(cuda_sgemm(dev, RQ_N, t->n_out, n, rq_min_i64(t->group, n - c0), 1, b->q + c0, n, hd + c0 * n, n, 0,
                          b->e, n, t->label));
        KERNEL_TRY(dev, rq_cuda_refit_book_scales(b->scale, b->g, b->q, b->e, &k, g, t->scale_unit, dev->compute));
    }
    RQ_TRY(cuda_download(dev, t->scale, b->scale, t->n_out * t->n_group * (int64_t)sizeof *t->scale));
done:
    return status;
}

/* ---- descent over codes ---- */

/* Columns in natural order. */
static int64_t column_spans(rq_cuda_span *span, const rq_book_refine *r, int64_t col0, int64_t end) {
    for (int64_t j = col0; j < end; ++j) {
        int32_t col = (int32_t)j, vec = r->kept[j] < 0 ? col : -1 - r->kept[j];
        span[j - col0] = (rq_cuda_span){col, col, vec, (int32_t)rq_book_of(&r->t->book, j), 1};
    }
    return end - col0;
}

/* Vectors in natural order, each followed by its outlier columns. Returns how many of the columns before `end` they are. */
static int64_t natural_spans(rq_cuda_span *span, const rq_book_refine *r, int64_t col0, int64_t end) {
    const rq_book_task *t = r->t;
    int64_t count = 0;
    if (t->vec_out) return column_spans(span, r, col0, end);
    for (int64_t v = col0 / t->d; v * t->d < end; ++v) {
        int32_t first = (int32_t)(v * t->d), width = (int32_t)rq_min_i64(t->d, t->n - first);
        rq_cuda_span *own = &span[count];
        *own = (rq_cuda_span){first, first, (int32_t)v, (int32_t)rq_book_of(&t->book, v), 0};
        for (int32_t e = 0; e < width; ++e) own->lanes |= r->kept[first + e] < 0 ? 1u << e : 0;
        count += own->lanes != 0;
        for (int32_t j = first; j < first + width; ++j) {
            if (r->kept[j] >= 0) span[count++] = (rq_cuda_span){j, j, -1 - r->kept[j], 0, 1};
        }
    }
    return count;
}

static rq_status descend(cuda_device *dev, const cuda_book *b, const rq_book_refine *r) {
    rq_status status = RQ_OK;
    rq_book_task *t = r->t;
    int64_t n = t->n, d_in = t->vec_out ? 1 : t->d, cells = t->vec_out ? 0 : t->n_vec * d_in * d_in,
            most = t->n_vec + t->prep->n_outlier, width = RQ_COMP_BLOCK / d_in * d_in;
    int64_t n_span = 0;
    const float *hd;
    float *metric = NULL, *inverse = NULL;
    rq_cuda_span *span = NULL, *on = NULL;
    RQ_TRY(RQ_NEW(span, most));
    for (int64_t c0 = 0; c0 < n; c0 += width) n_span += natural_spans(span + n_span, r, c0, rq_min_i64(n, c0 + width));
    RQ_TRY(CUDA_NEW(dev, on, most, t->label));
    RQ_TRY(CUDA_NEW(dev, metric, cells, t->label));
    RQ_TRY(CUDA_NEW(dev, inverse, cells, t->label));
    RQ_TRY(cuda_upload(dev, on, span, n_span * (int64_t)sizeof *span, dev->compute));
    RQ_TRY(cuda_upload(dev, metric, r->metric, cells * (int64_t)sizeof *metric, dev->compute));
    RQ_TRY(cuda_upload(dev, inverse, r->inverse, cells * (int64_t)sizeof *inverse, dev->compute));
    RQ_TRY(cuda_book_send(dev, b, t));
    RQ_TRY(cuda_book_send_codes(dev, b, t));
    RQ_TRY(cuda_prep_hd(dev, &hd, t->prep, t->label));
    rq_cuda_book_descent d = {.books = cuda_books(b, t),
                              .g = b->g,
                              .h = hd,
                              .q = b->q,
                              .metric = metric,
                              .inverse = inverse,
                              .delta = b->delta};
    for (int sweep = 0; sweep < t->opt->cd_sweeps; ++sweep) {
        RQ_TRY(cuda_book_expand(dev, b, t, RQ_EXPAND_VALUE));
        RQ_TRY(gradient(dev, b, t, 0, t->n_out));
        d.span = on;
        for (int64_t c0 = 0, c1; c0 < n; c0 = c1) {
            c1 = rq_min_i64(n, c0 + width);
            d.col0 = c0;
            d.width = (int)(c1 - c0);
            d.n_span = (int)natural_spans(span, r, c0, c1);
            KERNEL_TRY(dev,
                       t->vec_out ? rq_cuda_descend_lines(&d, dev->compute) : rq_cuda_descend_books(&d, dev->compute));
            d.span += d.n_span;
            if (c1 == n) continue;
            RQ_TRY(cuda_sgemm(dev, RQ_N, t->n_out, n - c1, c1 - c0, 1, b->delta, RQ_COMP_BLOCK, hd + c0 * n + c1, n, 1,
                              b->g + c1, n, t->label));
        }
    }
    RQ_TRY(cuda_book_fetch(dev, b, t, t->code, t->outlier));
done:
    free(span);
    cuda_release(on);
    cuda_release(metric);
    cuda_release(inverse);
    return status;
}

rq_status cuda_book_pass(void *own, const rq_book_refine *r, rq_book_pass pass) {
    cuda_device *dev = own;
    rq_status status;
    cuda_book *b = refine_of(&status, dev, r->t);
    if (!b) return status;
    return pass == RQ_BOOK_CHOOSE   ? choose(dev, b, r)
           : pass == RQ_BOOK_SCALES ? scales(dev, b, r->t)
                                    : descend(dev, b, r);
}

/* ---- least squares for the codebooks ---- */

static rq_status system_of(cuda_device *dev, cuda_book *b, const rq_book_system *s) {
    rq_status status = RQ_OK;
    const char *label = s->t->label;
    if (b->part) return RQ_OK;
    b->n_entry = s->n_entry;
    b->n_part = PART_BYTES / (s->n_entry * (int64_t)sizeof *b->part);
    b->n_part = rq_min_i64(s->t->n_line, rq_min_i64(MOST_PARTS, rq_max_i64(LEAST_PARTS, b->n_part)));
    RQ_TRY(CUDA_NEW(dev, b->v, s->n_entry, label));
    RQ_TRY(CUDA_NEW(dev, b->sum, s->n_entry, label));
    RQ_TRY(CUDA_NEW(dev, b->part, b->n_part * s->n_entry, label));
done:
    return status;
}

static rq_status sums(cuda_device *dev, const cuda_book *b, const rq_book_task *t, const float *h, double *out) {
    rq_status status = RQ_OK;
    const rq_cuda_books k = cuda_books(b, t);
    rq_cuda_book_sums s = {.h = h,
                           .kept = b->kept,
                           .part = b->part,
                           .sum = b->sum,
                           .vec_per_book = t->book.vec_per_book,
                           .n_book = t->book.n_book,
                           .n_entry = b->n_entry,
                           .n_part = b->n_part};
    RQ_TRY(cuda_prep_hd(dev, &s.hd, t->prep, t->label));
    ++dev->done.launches; /* runs of rows, then their total */
    KERNEL_TRY(dev, rq_cuda_sum_books(&s, &k, dev->compute));
    RQ_TRY(cuda_download(dev, out, b->sum, b->n_entry * (int64_t)sizeof *out));
done:
    return status;
}

rq_status cuda_book_ask(void *own, rq_book_system *s, rq_book_ask ask, double *out, const double *v, double *loss) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    rq_book_task *t = s->t;
    cuda_book *b;
    const float *hd;
    b = refine_of(&status, dev, t);
    if (!b) goto done;
    RQ_TRY(system_of(dev, b, s));
    if (ask == RQ_BOOK_LOSS || ask == RQ_BOOK_GRADIENT) RQ_TRY(cuda_book_gradient(&b, dev, t, 0, t->n_out, loss));
    if (ask == RQ_BOOK_PRODUCT) {
        RQ_TRY(cuda_prep_hd(dev, &hd, t->prep, t->label));
        RQ_TRY(cuda_upload(dev, b->v, v, s->n_entry * (int64_t)sizeof *v, dev->compute));
        RQ_TRY(cuda_book_expand(dev, b, t, RQ_EXPAND_DIRECTION));
        RQ_TRY(cuda_sgemm(dev, RQ_N, t->n_out, t->n, t->n, 1, b->q, t->n, hd, t->n, 0, b->g, t->n, t->label));
    }
    if (ask != RQ_BOOK_LOSS) RQ_TRY(sums(dev, b, t, ask == RQ_BOOK_DIAGONAL ? NULL : b->g, out));
done:
    return status;
}
