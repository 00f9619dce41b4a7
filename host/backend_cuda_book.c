/* SPDX-License-Identifier: Apache-2.0 */
/* Codebooks on a GPU: the task's arrays there, and the sweep (comp_block.c is the CPU's): blocks of up to 128 columns by one kernel, what is right of a block
 * by cuBLAS. */
#include "backend_cuda_book.h"

_Static_assert(sizeof(rq_cuda_vec_code) == sizeof(rq_vec_code), "codes travel as they are");
_Static_assert((int)RQ_CUDA_BOOK_VEC == (int)RQ_VEC_MAX, "vectors of the device are the host's");
_Static_assert(RQ_SEARCH_PAD % 32 == 0, "tables of the device are the host's");

static void book_free(cuda_book *b) {
    if (!b) return;
    void *all[] = {b->table[0], b->table[1], b->scale,   b->step, b->matrix, b->code,     b->outlier,
                   b->span,     b->perm,     b->dead,    b->kept, b->goal,   b->q,        b->e,
                   b->g,        b->delta,    b->v,       b->sum,  b->part,   b->row_loss, b->bias,
                   b->line_row, b->row_line, b->book_of, b->tile};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) cuda_release(all[i]);
    free(b);
}

void cuda_book_forget(void *own, rq_book_task *t) {
    (void)cudaSetDevice(((cuda_device *)own)->index);
    book_free(t->on_device);
    t->on_device = NULL;
}

/* Columns of a span as lanes of its vector. */
static rq_cuda_span span_of(const rq_book_task *t, const rq_span *s) {
    const rq_prep *p = t->prep;
    rq_cuda_span to = {s->pos, p->perm[s->pos], s->vec, 0, 1};
    if (s->vec < 0) return to;
    to.which = (int32_t)rq_book_of(&t->book, s->vec);
    if (t->vec_out) return to;
    to.col = s->vec * t->d;
    to.lanes = 0;
    for (int64_t c = s->pos; c < s->pos + s->width; ++c) to.lanes |= 1u << (p->perm[c] - to.col);
    return to;
}

static rq_status send_order(cuda_device *dev, const cuda_book *b, const rq_book_task *t) {
    rq_status status = RQ_OK;
    const rq_prep *p = t->prep;
    rq_cuda_span *span = NULL;
    uint8_t *dead = NULL;
    RQ_TRY(RQ_NEW(span, p->n_span));
    RQ_TRY(RQ_NEW(dead, p->n));
    for (int64_t i = 0; i < p->n_span; ++i) span[i] = span_of(t, &p->span[i]);
    for (int64_t i = 0; i < p->n; ++i) dead[i] = p->dead[i];
    RQ_TRY(cuda_upload(dev, b->span, span, p->n_span * (int64_t)sizeof *span, dev->compute));
    RQ_TRY(cuda_upload(dev, b->dead, dead, p->n, dev->compute));
    RQ_TRY(cuda_upload(dev, b->perm, p->perm, p->n * (int64_t)sizeof *p->perm, dev->compute));
    RQ_TRY(cuda_upload(dev, b->matrix, t->matrix, t->n_out * (int64_t)sizeof *t->matrix, dev->compute));
done:
    free(span);
    free(dead);
    return status;
}

/* Matrices of the stack. */
static int64_t n_matrices(const rq_book_task *t) { return t->matrix[t->n_out - 1] + 1; }

/* Scales of rows, or of columns of each matrix. */
static int64_t n_scales(const rq_book_task *t) { return t->vec_out ? n_matrices(t) * t->n : t->n_out * t->n_group; }

rq_status cuda_book_of(cuda_book **own, cuda_device *dev, rq_book_task *t) {
    rq_status status = RQ_OK;
    const rq_book *k = &t->book;
    cuda_book *b = *own = t->on_device;
    int64_t n_outlier = t->prep->n_outlier;
    if (b) return RQ_OK;
    RQ_TRY(RQ_NEW_ZERO(b, 1));
    for (int i = 0; i < 2 && k->value[i]; ++i)
        RQ_TRY(CUDA_NEW(dev, b->table[i], k->n_book * k->d * k->k_pad[i], t->label));
    RQ_TRY(CUDA_NEW(dev, b->scale, n_scales(t), t->label));
    RQ_TRY(CUDA_NEW(dev, b->step, n_matrices(t) * n_outlier, t->label));
    RQ_TRY(CUDA_NEW(dev, b->matrix, t->n_out, t->label));
    RQ_TRY(CUDA_NEW(dev, b->code, t->n_line * t->n_vec, t->label));
    /* Outlier columns have codes too, which nothing writes. */
    CUDA_TRY(cudaMemsetAsync(b->code, 0, (size_t)(t->n_line * t->n_vec) * sizeof *b->code, dev->compute), t->label);
    RQ_TRY(CUDA_NEW(dev, b->outlier, t->n_out * n_outlier, t->label));
    RQ_TRY(CUDA_NEW(dev, b->span, t->prep->n_span, t->label));
    RQ_TRY(CUDA_NEW(dev, b->perm, t->n, t->label));
    RQ_TRY(CUDA_NEW(dev, b->dead, t->n, t->label));
    RQ_TRY(send_order(dev, b, t));
    if (t->vec_out) RQ_TRY(cuda_lines_new(dev, b, t));
done:
    if (status != RQ_OK)
        book_free(b);
    else
        *own = t->on_device = b;
    return status;
}

rq_status cuda_book_send(cuda_device *dev, const cuda_book *b, const rq_book_task *t) {
    rq_status status = RQ_OK;
    const rq_book *k = &t->book;
    float *entries = NULL;
    for (int i = 0; i < k->n_stage; ++i) { /* the search table ends with the entries, component by component */
        int64_t part = k->d * k->k_pad[i];
        free(entries);
        RQ_TRY(RQ_NEW(entries, k->n_book * part));
        for (int64_t which = 0; which < k->n_book; ++which) {
            memcpy(entries + which * part, k->table[i] + (which + 1) * k->n_table * k->k_pad[i] - part,
                   (size_t)part * sizeof *entries);
        }
        RQ_TRY(cuda_upload(dev, b->table[i], entries, k->n_book * part * (int64_t)sizeof *entries, dev->compute));
    }
    const float *scale = t->vec_out ? t->col_scale : t->scale;
    RQ_TRY(cuda_upload(dev, b->scale, scale, n_scales(t) * (int64_t)sizeof *scale, dev->compute));
    if (t->vec_out)
        RQ_TRY(cuda_upload(dev, b->bias, t->col_bias, n_scales(t) * (int64_t)sizeof *t->col_bias, dev->compute));
    RQ_TRY(cuda_upload(dev, b->step, t->outlier_step,
                       n_matrices(t) * t->prep->n_outlier * (int64_t)sizeof *t->outlier_step, dev->compute));
done:
    free(entries);
    return status;
}

rq_cuda_books cuda_books(const cuda_book *b, const rq_book_task *t) {
    const rq_book *k = &t->book;
    return (rq_cuda_books){.d = t->d,
                           .n_stage = k->n_stage,
                           .signs = t->vec->magnitudes,
                           .k = {(int)k->k[0], (int)k->k[1]},
                           .k_pad = {(int)k->k_pad[0], (int)k->k_pad[1]},
                           .table = {b->table[0], b->table[1]},
                           .scale = b->scale,
                           .group = t->group,
                           .n_group = t->n_group,
                           .step = b->step,
                           .matrix = b->matrix,
                           .n_out = t->n_out,
                           .n = t->n,
                           .n_line = t->n_line,
                           .n_vec = t->n_vec,
                           .n_outlier = t->prep->n_outlier,
                           .code = b->code,
                           .outlier = b->outlier,
                           .bias = b->bias,
                           .line_row = b->line_row,
                           .row_line = b->row_line,
                           .book_of = b->book_of,
                           .tile = b->tile,
                           .n_tile = b->n_tile};
}

rq_status cuda_book_send_codes(cuda_device *dev, const cuda_book *b, const rq_book_task *t) {
    rq_status status = RQ_OK;
    RQ_TRY(cuda_upload(dev, b->code, t->code, t->n_line * t->n_vec * (int64_t)sizeof *t->code, dev->compute));
    RQ_TRY(cuda_upload(dev, b->outlier, t->outlier, t->n_out * t->prep->n_outlier, dev->compute));
done:
    return status;
}

rq_status cuda_book_fetch(cuda_device *dev, const cuda_book *b, const rq_book_task *t, rq_vec_code *code,
                          int8_t *outlier) {
    rq_status status = RQ_OK;
    RQ_TRY(cuda_download(dev, code, b->code, t->n_line * t->n_vec * (int64_t)sizeof *code));
    RQ_TRY(cuda_download(dev, outlier, b->outlier, t->n_out * t->prep->n_outlier));
done:
    return status;
}

int64_t cuda_book_block(const rq_prep *p, int64_t first) {
    int64_t last = first, width = 0;
    while (last < p->n_span && width + p->span[last].width <= RQ_COMP_BLOCK) width += p->span[last++].width;
    return last;
}

/* ---- the sweep ---- */

static rq_status sweep_blocks(cuda_device *dev, rq_cuda_book_block *b, const cuda_book *own, float *w,
                              const rq_book_task *t) {
    rq_status status = RQ_OK;
    const rq_prep *p = t->prep;
    int64_t n = t->n;
    for (int64_t first = 0, last; first < p->n_span; first = last) {
        last = cuda_book_block(p, first);
        int64_t c0 = p->span[first].pos, c1 = p->span[last - 1].pos + p->span[last - 1].width;
        b->span = own->span + first;
        b->n_span = (int)(last - first);
        b->col0 = c0;
        b->width = (int)(c1 - c0);
        status = t->vec_out ? rq_cuda_sweep_lines(b, dev->compute) : rq_cuda_sweep_books(b, dev->compute);
        ++dev->done.launches;
        if (status != RQ_OK) RQ_FAIL(status, "%s: %s", t->label, rq_cuda_last_error());
        if (!b->u || c1 == n) continue;
        RQ_TRY(cuda_sgemm(dev, RQ_N, t->n_out, n - c1, c1 - c0, -1, b->x, RQ_COMP_BLOCK, b->u + c0 * n + c1, n, 1,
                          w + c1, n, t->label));
        if (!b->t) continue;
        RQ_TRY(cuda_sgemm(dev, RQ_N, t->n_out, n - c1, c1 - c0, 1, b->y, RQ_COMP_BLOCK, b->t + c0 * n + c1, n, 1,
                          w + c1, n, t->label));
    }
done:
    return status;
}

rq_status cuda_book_sweep(void *own, rq_book_task *t, const float *metric, float *at) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    const cuda_prep *q = t->prep->on_device;
    cuda_book *book = NULL;
    float *natural = NULL, *w = NULL, *w0 = NULL, *x = NULL, *y = NULL, *on_metric = NULL, *on_at = NULL;
    int64_t weights = t->n_out * t->n,
            cells = t->vec_out ? 0 : t->n_vec * t->d * t->d; /* nearest is plainly nearest there */
    CUDA_TRY(cudaSetDevice(dev->index), t->label);
    RQ_TRY(cuda_book_of(&book, dev, t));
    RQ_TRY(cuda_book_send(dev, book, t));
    bool moves = t->prep->u != NULL;
    RQ_TRY(CUDA_NEW(dev, natural, weights, t->label)); /* then `at`: it is read once */
    RQ_TRY(CUDA_NEW(dev, w, weights, t->label));
    RQ_TRY(CUDA_NEW(dev, on_metric, cells, t->label));
    if (moves && t->opt->alpha2 != 0) RQ_TRY(CUDA_NEW(dev, w0, weights, t->label));
    if (moves) RQ_TRY(CUDA_NEW(dev, x, t->n_out * RQ_COMP_BLOCK, t->label));
    if (t->prep->t) RQ_TRY(CUDA_NEW(dev, y, t->n_out * RQ_COMP_BLOCK, t->label));
    RQ_TRY(cuda_upload(dev, on_metric, metric, cells * (int64_t)sizeof *metric, dev->compute));
    RQ_TRY(cuda_upload(dev, natural, t->start, weights * (int64_t)sizeof *t->start, dev->compute));
    KERNEL_TRY(dev, rq_cuda_to_sweep_order(w, natural, book->perm, book->dead, t->n_out, t->n, dev->compute));
    if (w0) {
        CUDA_TRY(cudaMemcpyAsync(w0, w, (size_t)weights * sizeof *w, cudaMemcpyDeviceToDevice, dev->compute), t->label);
    }
    if (at) on_at = natural;
    rq_cuda_book_block b = {.books = cuda_books(book, t),
                            .w = w,
                            .w0 = w0,
                            .u = moves ? q->u : NULL,
                            .t = t->prep->t ? q->t : NULL,
                            .metric = on_metric,
                            .x = x,
                            .y = y,
                            .at = on_at,
                            .diagonal = t->opt->assign != RQ_ASSIGN_MAHALANOBIS,
                            .allw = t->opt->update == RQ_UPDATE_ALLW,
                            .a1 = (float)t->opt->alpha,
                            .a2 = (float)t->opt->alpha2};
    RQ_TRY(sweep_blocks(dev, &b, book, w, t));
    RQ_TRY(cuda_book_fetch(dev, book, t, t->code, t->outlier));
    if (at) RQ_TRY(cuda_download(dev, at, on_at, weights * (int64_t)sizeof *at));
done:
    cuda_release(natural);
    cuda_release(w);
    cuda_release(w0);
    cuda_release(x);
    cuda_release(y);
    cuda_release(on_metric);
    return status;
}
