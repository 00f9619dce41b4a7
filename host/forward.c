/* SPDX-License-Identifier: Apache-2.0 */
/* The CPU's row of forward.h: the functions of llama.h, spill files, OpenBLAS. Every element is computed the same way for any number of
 * threads. */
#include "forward.h"

#include <math.h>

#include "backend.h"
#include "quantize.h"

/* A program that is linked without backend_cuda_forward.c has no such row. */
#pragma weak rq_forward_cuda

struct rq_rows {
    rq_spill file;
};

static rq_status cpu_begin(void **f, const rq_forward_job *job) {
    rq_status status = RQ_OK;
    rq_forward_job *mine = NULL;
    RQ_TRY(RQ_NEW(mine, 1));
    *mine = *job;
done:
    *f = mine;
    return status;
}

static void cpu_end(void *f) { free(f); }

static rq_status cpu_new(void *f, float **p, int64_t count, const char *what) {
    (void)f, (void)what;
    return RQ_NEW(*p, count);
}

static void cpu_free(void *f, float *p) {
    (void)f;
    free(p);
}

static rq_status cpu_copy(void *f, float *to, const float *from, int64_t count) {
    (void)f;
    if (to != from) memcpy(to, from, (size_t)count * sizeof *to);
    return RQ_OK;
}

/* ---- rows ------------------------------------------------------------------------------------------------------------- */

static rq_status cpu_rows_new(void *f, rq_rows **r, int64_t width, const char *what) {
    (void)what;
    rq_status status = RQ_OK;
    RQ_TRY(RQ_NEW_ZERO(*r, 1));
    (*r)->file.fd = -1;
    RQ_TRY(rq_spill_new(&(*r)->file, ((const rq_forward_job *)f)->dir, width));
done:
    return status;
}

static void cpu_rows_free(void *f, rq_rows *r) {
    (void)f;
    if (r) rq_spill_free(&r->file);
    free(r);
}

static rq_status cpu_rows_read(void *f, rq_rows *r, int64_t row0, int64_t n_rows, float *to) {
    (void)f;
    return rq_spill_read(&r->file, row0, n_rows, to);
}

static rq_status cpu_rows_write(void *f, rq_rows *r, int64_t row0, int64_t n_rows, const float *from) {
    (void)f;
    return rq_spill_write(&r->file, row0, n_rows, from);
}

static rq_status cpu_share(void *f, float *x, int64_t count, int root) {
    return rq_ranks_bcast(((const rq_forward_job *)f)->ranks, x, count * (int64_t)sizeof *x, root);
}

static rq_status cpu_pass(void *f) {
    (void)f;
    return RQ_OK;
}

/* ---- the model -------------------------------------------------------------------------------------------------------- */

static rq_status cpu_rmsnorm(void *f, float *out, const float *x, const float *gain, int64_t n_tok, int64_t width) {
    rq_rmsnorm(out, x, gain, n_tok, width, ((const rq_forward_job *)f)->model->cfg.rms_eps);
    return RQ_OK;
}

static rq_status cpu_linear(void *f, float *y, const rq_linear *lin, const float *in, int64_t n_tok) {
    (void)f;
    return rq_linear_apply(lin, y, in, n_tok);
}

static rq_status cpu_add_linear(void *f, float *x, const rq_linear *lin, const float *in, int64_t n_tok,
                                float *scratch) {
    (void)f;
    rq_status status = rq_linear_apply(lin, scratch, in, n_tok);
    for (int64_t i = 0; status == RQ_OK && i < n_tok * lin->n_out; ++i) x[i] += scratch[i];
    return status;
}

static rq_status cpu_input(void *f, float *out, const float *x, const rq_input *how, int64_t n_tok, int64_t width) {
    cpu_copy(f, out, x, n_tok * width);
    rq_input_apply(how, out, n_tok, width);
    return how->act8 ? rq_act8_round_trip(out, n_tok, width) : RQ_OK;
}

static rq_status cpu_attention(void *f, float *out, float *q, float *k, const float *v, int64_t n_seq) {
    const rq_forward_job *job = f;
    return rq_attention(job->model, out, q, k, v, n_seq, job->seq_len);
}

static rq_status cpu_swiglu(void *f, float *out, const float *gate, const float *up, int64_t n) {
    (void)f;
    rq_swiglu(out, gate, up, n);
    return RQ_OK;
}

/* ---- statistics ------------------------------------------------------------------------------------------------------- */

static rq_status cpu_token_norm(void *f, float *norm, const float *x, int64_t n_tok, int64_t width) {
    (void)f;
    rq_token_norm(norm, x, n_tok, width);
    return RQ_OK;
}

static rq_status cpu_token_attention(void *f, float *received, float *q, float *k, int64_t n_seq) {
    const rq_forward_job *job = f;
    return rq_token_attention(received, job->model, q, k, n_seq, job->seq_len);
}

static rq_status cpu_scale_rows(void *f, float *rows, const float *by, int64_t n_tok, int64_t width) {
    (void)f;
    for (int64_t t = 0; t < n_tok; ++t) {
        for (int64_t j = 0; j < width; ++j) rows[t * width + j] *= by[t];
    }
    return RQ_OK;
}

static rq_status cpu_divide_rows(void *f, float *rows, const float *by, int64_t n_tok, int64_t width) {
    (void)f;
    for (int64_t t = 0; t < n_tok; ++t) {
        for (int64_t j = 0; j < width && by[t] > 0; ++j) rows[t * width + j] /= by[t];
    }
    return RQ_OK;
}

static rq_status cpu_drop_first(void *f, float *rows, int64_t n_seq, int64_t skip, int64_t width) {
    const int64_t seq_len = ((const rq_forward_job *)f)->seq_len, keep = seq_len - skip;
    for (int64_t i = 0; i < n_seq; ++i) {
        memmove(rows + i * keep * width, rows + (i * seq_len + skip) * width, (size_t)(keep * width) * sizeof *rows);
    }
    return RQ_OK;
}

static rq_status cpu_subtract(void *f, float *a, const float *b, int64_t n_tok, int64_t width) {
    (void)f;
    for (int64_t i = 0; i < n_tok * width; ++i) a[i] -= b[i];
    return RQ_OK;
}

static rq_status cpu_column_max(void *f, float *most, const float *rows, int64_t n_rows, int64_t width) {
    (void)f;
    for (int64_t i = 0; i < n_rows * width; ++i) {
        float *at = &most[i % width], v = fabsf(rows[i]);
        if (!(v <= *at)) *at = isnan(*at) ? *at : v;
    }
    return RQ_OK;
}

static rq_status cpu_gram(void *f, double *h, double *d, const float *a, const float *b, int64_t n_tok, int64_t n) {
    const rq_device *device = ((const rq_forward_job *)f)->device;
    return rq_device_row(device)->gram_add(rq_device_own(device), h, d, a, b, n_tok, n);
}

static rq_status cpu_loss(void *f, rq_loss *l, const rq_loss_of *m, int count, int64_t n, const double *h,
                          const double *d) {
    rq_status status = RQ_OK;
    (void)f;
    for (int i = 0; status == RQ_OK && i < count; ++i)
        status = rq_layer_loss(m[i].w, m[i].q, m[i].n_out, n, h, d, &l[i].sym, &l[i].asym, &l[i].whw);
    return status;
}

const rq_forward_ops rq_forward_cpu = {
    .host = true,
    .begin = cpu_begin,
    .end = cpu_end,
    .new_floats = cpu_new,
    .free_floats = cpu_free,
    .upload = cpu_copy,
    .download = cpu_copy,
    .rows_new = cpu_rows_new,
    .rows_free = cpu_rows_free,
    .rows_read = cpu_rows_read,
    .rows_write = cpu_rows_write,
    .share = cpu_share,
    .pass_begin = cpu_pass,
    .pass_end = cpu_pass,
    .rmsnorm = cpu_rmsnorm,
    .linear = cpu_linear,
    .add_linear = cpu_add_linear,
    .input = cpu_input,
    .attention = cpu_attention,
    .swiglu = cpu_swiglu,
    .token_norm = cpu_token_norm,
    .token_attention = cpu_token_attention,
    .scale_rows = cpu_scale_rows,
    .divide_rows = cpu_divide_rows,
    .drop_first = cpu_drop_first,
    .subtract = cpu_subtract,
    .column_max = cpu_column_max,
    .gram = cpu_gram,
    .loss = cpu_loss,
};

const rq_forward_ops *rq_forward_row(const rq_device *d) {
    return rq_device_row(d) == &rq_device_cpu || !&rq_forward_cuda ? &rq_forward_cpu : &rq_forward_cuda;
}
