/* SPDX-License-Identifier: Apache-2.0 */
/* Calibration's forward pass on a GPU: products by cuBLAS in fp32 (or of numbers rounded to bfloat16), the rest in fp32 by cuda/llama_*.cu. A matrix is uploaded when a pass first multiplies by it
 * and forgotten when the pass ends: of a block there are the matrices of one stage at a time. */
#include "backend_cuda_forward.h"

#include "backend_cuda_ranks.h"

#include "llama_block.h"

/* ---- memory ----------------------------------------------------------------------------------------------------------- */

static rq_status new_floats(void *own, float **p, int64_t count, const char *what) {
    return CUDA_NEW(((cuda_forward *)own)->dev, *p, count, what);
}

static void free_floats(void *own, float *p) {
    (void)own;
    cuda_release(p);
}

static rq_status upload(void *own, float *to, const float *from, int64_t count) {
    cuda_device *dev = ((cuda_forward *)own)->dev;
    return cuda_upload(dev, to, from, count * (int64_t)sizeof *to, dev->compute);
}

static rq_status download(void *own, float *to, const float *from, int64_t count) {
    return cuda_download(((cuda_forward *)own)->dev, to, from, count * (int64_t)sizeof *to);
}

/* What of the host's a pass needs on the device; true when it is there already, otherwise there are `bytes` for it. */
static rq_status keep_place(cuda_forward *f, void **there, bool *filled, const float *host, int64_t count,
                            size_t element, const char *what) {
    rq_status status = RQ_OK;
    for (int i = 0; i < f->n_kept; ++i) {
        *there = f->kept[i].there;
        *filled = f->kept[i].host == host && f->kept[i].count == count;
        if (*filled) return RQ_OK;
    }
    if (f->n_kept == CUDA_KEPT_MAX)
        return rq_fail(RQ_ERR_UNSUPPORTED, "a pass uses more than %d matrices and vectors", CUDA_KEPT_MAX);
    *filled = false;
    RQ_TRY(cuda_new(f->dev, there, count, element, what));
    f->kept[f->n_kept].host = host;
    f->kept[f->n_kept].count = count;
    f->kept[f->n_kept++].there = *there;
done:
    return status;
}

static rq_status keep(cuda_forward *f, float **there, const float *host, int64_t count, const char *what) {
    bool filled;
    rq_status status = keep_place(f, (void **)there, &filled, host, count, sizeof **there, what);
    return status == RQ_OK && !filled ? upload(f, *there, host, count) : status;
}

/* Rounded on the device, piece by piece. A matrix that is kept so is never kept in fp32. */
static rq_status keep_bf16(cuda_forward *f, uint16_t **there, const float *host, int64_t count, const char *what) {
    rq_status status = RQ_OK;
    bool filled;
    RQ_TRY(keep_place(f, (void **)there, &filled, host, count, sizeof **there, what));
    for (int64_t at = 0; !filled && at < count; at += RQ_CUDA_PIECE) {
        const int64_t n = rq_min_i64(RQ_CUDA_PIECE, count - at);
        RQ_TRY(upload(f, f->piece, host + at, n));
        KERNEL_TRY(f->dev, rq_cuda_to_bf16(*there + at, f->piece, n, f->dev->compute));
    }
done:
    return status;
}

static void forget_kept(cuda_forward *f) {
    for (int i = 0; i < f->n_kept; ++i) cuda_release(f->kept[i].there);
    f->n_kept = 0;
}

static void end(void *own) {
    cuda_forward *f = own;
    (void)cudaSetDevice(f->dev->index);
    (void)cudaStreamSynchronize(f->dev->compute);
    forget_kept(f);
    cuda_slots_free(f);
    cuda_release(f->rope);
    cuda_release(f->per_token);
    cuda_release(f->spare);
    cuda_release(f->lse);
    cuda_release(f->by_head);
    cuda_release(f->piece);
    cuda_release(f->half);
    free(f);
}

/* Free memory against what passes and matrices need. What is left, but for a sixteenth of the device's, is room for rows. */
static rq_status check_memory(cuda_forward *f) {
    rq_status status = RQ_OK;
    size_t left = 0, total = 0;
    double chunk, pass;
    const rq_config *c = &f->job.model->cfg;
    rq_device_plan_forward(&chunk, &pass,
                           &(rq_forward_shape){.d = c->d_model,
                                               .ff = c->d_ff,
                                               .qd = c->n_head * c->head_dim,
                                               .kd = c->n_kv_head * c->head_dim,
                                               .n_head = c->n_head,
                                               .chunk = f->job.chunk,
                                               .n_streams = f->job.n_streams,
                                               .cross = f->job.cross,
                                               .bf16 = f->job.bf16,
                                               .ranks = rq_n_ranks(f->job.ranks) > 1});
    const double matrix = f->job.matrix_bytes, most = chunk + (pass > matrix ? pass : matrix);
    CUDA_TRY(cudaMemGetInfo(&left, &total), "the forward pass");
    f->room = (double)left - most - (double)total / 16;
    if (most <= (double)left) goto done;
    RQ_FAIL(RQ_ERR_NOMEM,
            "cuda:%d: chunks of %lld tokens take %.1f MiB of device memory, and beside them a pass %.1f MiB and the "
            "largest "
            "matrix %.1f MiB; %.1f of %.1f MiB are free",
            f->dev->index, (long long)f->job.chunk, chunk / 1048576, pass / 1048576, matrix / 1048576,
            (double)left / 1048576, (double)total / 1048576);
done:
    return status;
}

static rq_status begin(void **own, const rq_forward_job *job) {
    rq_status status = RQ_OK;
    const rq_config *c = &job->model->cfg;
    float *table = NULL;
    cuda_forward *f = NULL;
    *own = NULL;
    if (c->head_dim > RQ_LLAMA_MAX_HEAD)
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "attention on a GPU has heads of up to %d, the model's are %lld", RQ_LLAMA_MAX_HEAD,
                (long long)c->head_dim);
    RQ_TRY(RQ_NEW_ZERO(f, 1));
    *own = f;
    f->dev = rq_device_own(job->device);
    f->job = *job;
    f->widest = rq_max_i64(rq_max_i64(c->d_model, c->d_ff), c->n_head * c->head_dim);
    CUDA_TRY(cudaSetDevice(f->dev->index), "the forward pass");
    RQ_TRY(check_memory(f));
    RQ_TRY(rq_rope_table(&table, job->model, 0, job->seq_len));
    RQ_TRY(CUDA_NEW(f->dev, f->rope, job->seq_len * c->head_dim, "the rotary embedding"));
    RQ_TRY(upload(f, f->rope, table, job->seq_len * (c->head_dim / 2) * 2));
    RQ_TRY(CUDA_NEW(f->dev, f->per_token, job->chunk, "numbers of tokens"));
    if (job->bf16) RQ_TRY(CUDA_NEW(f->dev, f->piece, RQ_CUDA_PIECE, "a piece of a matrix"));
    if (job->bf16) RQ_TRY(CUDA_NEW(f->dev, f->half, job->chunk * f->widest, "a chunk in bfloat16"));
done:
    free(table);
    return status;
}

static rq_status pass_begin(void *own) {
    rq_status status = RQ_OK;
    CUDA_TRY(cudaSetDevice(((cuda_forward *)own)->dev->index), "a pass");
done:
    return status;
}

static rq_status pass_end(void *own) {
    rq_status status = RQ_OK;
    cuda_forward *f = own;
    RQ_TRY(cuda_rows_flush(f));
    CUDA_TRY(cudaStreamSynchronize(f->dev->compute), "a pass");
    forget_kept(f);
done:
    return status;
}

/* ---- the model -------------------------------------------------------------------------------------------------------- */

static rq_status rmsnorm(void *own, float *out, const float *x, const float *gain, int64_t n_tok, int64_t width) {
    rq_status status = RQ_OK;
    cuda_forward *f = own;
    float *there = NULL;
    if (gain) RQ_TRY(keep(f, &there, gain, width, "a norm's gain"));
    KERNEL_TRY(f->dev, rq_cuda_rmsnorm(out, x, there, n_tok, width, f->job.model->cfg.rms_eps, f->dev->compute));
done:
    return status;
}

/* y = in W^T + bias, or y += that. The bias goes first: the product adds to it. */
static rq_status product(cuda_forward *f, float *y, const rq_linear *lin, const float *in, int64_t n_tok, bool adds) {
    rq_status status = RQ_OK;
    const int64_t n_out = lin->n_out, n_in = lin->n_in;
    const float beta = adds || lin->bias ? 1.0f : 0.0f;
    float *w, *bias;
    uint16_t *there;
    if (lin->bias) {
        RQ_TRY(keep(f, &bias, lin->bias, n_out, lin->name));
        KERNEL_TRY(f->dev, rq_cuda_bias(y, bias, n_tok, n_out, adds, f->dev->compute));
    }
    if (f->job.bf16) {
        RQ_TRY(keep_bf16(f, &there, lin->w, n_out * n_in, lin->name));
        KERNEL_TRY(f->dev, rq_cuda_to_bf16(f->half, in, n_tok * n_in, f->dev->compute));
        RQ_TRY(cuda_gemm_bf16(f->dev, RQ_T, n_tok, n_out, n_in, f->half, n_in, there, n_in, beta, y, n_out, lin->name));
    } else {
        RQ_TRY(keep(f, &w, lin->w, n_out * n_in, lin->name));
        RQ_TRY(cuda_sgemm(f->dev, RQ_T, n_tok, n_out, n_in, 1, in, n_in, w, n_in, beta, y, n_out, lin->name));
    }
done:
    return status;
}

static rq_status linear(void *own, float *y, const rq_linear *lin, const float *in, int64_t n_tok) {
    return product(own, y, lin, in, n_tok, false);
}

static rq_status add_linear(void *own, float *x, const rq_linear *lin, const float *in, int64_t n_tok, float *scratch) {
    (void)scratch;
    return product(own, x, lin, in, n_tok, true);
}

static rq_status input(void *own, float *out, const float *x, const rq_input *how, int64_t n_tok, int64_t width) {
    rq_status status = RQ_OK;
    cuda_forward *f = own;
    float *factors = NULL;
    if (how->factors) RQ_TRY(keep(f, &factors, how->factors, width, "column factors"));
    if (how->hadamard || factors) {
        KERNEL_TRY(f->dev, rq_cuda_input_rows(out, x, how->hadamard, factors, n_tok, width, f->dev->compute));
        x = out;
    }
    if (how->act8) KERNEL_TRY(f->dev, rq_cuda_act8_rows(out, x, n_tok, width, f->dev->compute));
done:
    return status;
}

/* Rotary embedding of q and k, and attention that is described in *a, out of v. */
static rq_status attend(cuda_forward *f, rq_cuda_attention *a, float *out, float *q, float *k, const float *v,
                        int64_t n_seq, float *lse) {
    rq_status status = RQ_OK;
    const rq_config *c = &f->job.model->cfg;
    const int64_t seq = f->job.seq_len, kv = c->n_kv_head * c->head_dim;
    KERNEL_TRY(f->dev, rq_cuda_rope(q, f->rope, n_seq * seq, seq, c->n_head, c->head_dim, f->dev->compute));
    KERNEL_TRY(f->dev, rq_cuda_rope(k, f->rope, n_seq * seq, seq, c->n_kv_head, c->head_dim, f->dev->compute));
    *a = (rq_cuda_attention){.q = q,
                             .k = k,
                             .v = v,
                             .out = out,
                             .kv_seq = seq * kv,
                             .kv_head = c->head_dim,
                             .kv_pos = kv,
                             .n_seq = n_seq,
                             .n_q = seq,
                             .n_head = c->n_head,
                             .n_kv_head = c->n_kv_head,
                             .head_dim = c->head_dim,
                             .lse = lse};
    KERNEL_TRY(f->dev, rq_cuda_attend(a, f->dev->compute));
done:
    return status;
}

static rq_status attention(void *own, float *out, float *q, float *k, const float *v, int64_t n_seq) {
    rq_cuda_attention a;
    return attend(own, &a, out, q, k, v, n_seq, NULL);
}

static rq_status swiglu(void *own, float *out, const float *gate, const float *up, int64_t n) {
    rq_status status = RQ_OK;
    cuda_device *dev = ((cuda_forward *)own)->dev;
    KERNEL_TRY(dev, rq_cuda_swiglu(out, gate, up, n, dev->compute));
done:
    return status;
}

/* ---- statistics ------------------------------------------------------------------------------------------------------- */

static rq_status token_norm(void *own, float *norm, const float *x, int64_t n_tok, int64_t width) {
    rq_status status = RQ_OK;
    cuda_forward *f = own;
    KERNEL_TRY(f->dev, rq_cuda_row_norms(f->per_token, x, n_tok, width, f->dev->compute));
    RQ_TRY(download(f, norm, f->per_token, n_tok));
done:
    return status;
}

static rq_status spare_chunk(cuda_forward *f) {
    return f->spare ? RQ_OK : CUDA_NEW(f->dev, f->spare, f->job.chunk * f->widest, "a chunk to spare");
}

/* Attention, here to the keys, is run for the sums of its softmax. */
static rq_status token_attention(void *own, float *received, float *q, float *k, int64_t n_seq) {
    rq_status status = RQ_OK;
    cuda_forward *f = own;
    const int64_t n_head = f->job.model->cfg.n_head;
    rq_cuda_attention a;
    RQ_TRY(spare_chunk(f));
    if (!f->lse) RQ_TRY(CUDA_NEW(f->dev, f->lse, f->job.chunk * n_head, "sums of attention"));
    if (!f->by_head) RQ_TRY(CUDA_NEW(f->dev, f->by_head, f->job.chunk * n_head, "sums of attention"));
    RQ_TRY(attend(f, &a, f->spare, q, k, k, n_seq, f->lse));
    KERNEL_TRY(f->dev, rq_cuda_attend_received(f->per_token, f->by_head, &a, f->dev->compute));
    ++f->dev->done.launches; /* there are two */
    RQ_TRY(download(f, received, f->per_token, n_seq * f->job.seq_len));
done:
    return status;
}

static rq_status by_token(cuda_forward *f, float *rows, const float *by, int64_t n_tok, int64_t width, bool divides) {
    rq_status status = RQ_OK;
    RQ_TRY(upload(f, f->per_token, by, n_tok));
    KERNEL_TRY(f->dev, rq_cuda_scale_rows(rows, f->per_token, n_tok, width, divides, f->dev->compute));
done:
    return status;
}

static rq_status scale_rows(void *own, float *rows, const float *by, int64_t n_tok, int64_t width) {
    return by_token(own, rows, by, n_tok, width, false);
}

static rq_status divide_rows(void *own, float *rows, const float *by, int64_t n_tok, int64_t width) {
    return by_token(own, rows, by, n_tok, width, true);
}

/* There and back: pieces of the rows would overlap. */
static rq_status drop_first(void *own, float *rows, int64_t n_seq, int64_t skip, int64_t width) {
    rq_status status = RQ_OK;
    cuda_forward *f = own;
    const int64_t seq = f->job.seq_len;
    const size_t row = (size_t)width * sizeof *rows, kept = (size_t)(seq - skip) * row;
    if (kept == 0) return RQ_OK;
    RQ_TRY(spare_chunk(f));
    CUDA_TRY(cudaMemcpy2DAsync(f->spare, kept, rows + skip * width, (size_t)seq * row, kept, (size_t)n_seq,
                               cudaMemcpyDeviceToDevice, f->dev->compute),
             "first tokens");
    CUDA_TRY(cudaMemcpyAsync(rows, f->spare, kept * (size_t)n_seq, cudaMemcpyDeviceToDevice, f->dev->compute),
             "first tokens");
done:
    return status;
}

static rq_status subtract(void *own, float *a, const float *b, int64_t n_tok, int64_t width) {
    rq_status status = RQ_OK;
    cuda_device *dev = ((cuda_forward *)own)->dev;
    KERNEL_TRY(dev, rq_cuda_subtract(a, a, b, n_tok, width, dev->compute));
done:
    return status;
}

static rq_status column_max(void *own, float *most, const float *rows, int64_t n_rows, int64_t width) {
    rq_status status = RQ_OK;
    cuda_device *dev = ((cuda_forward *)own)->dev;
    KERNEL_TRY(dev, rq_cuda_column_max(most, rows, n_rows, width, dev->compute));
done:
    return status;
}

static rq_status share(void *own, float *x, int64_t count, int root) {
    return cuda_share(((cuda_forward *)own)->dev, x, count * (int64_t)sizeof *x, root);
}

static rq_status gram(void *own, double *h, double *d, const float *a, const float *b, int64_t n_tok, int64_t n) {
    cuda_forward *f = own;
    (void)h;
    return (f->job.bf16 ? cuda_gram_here_bf16 : cuda_gram_here)(f->dev, a, d ? b : NULL, n_tok, n);
}

const rq_forward_ops rq_forward_cuda = {
    .host = false,
    .begin = begin,
    .end = end,
    .new_floats = new_floats,
    .free_floats = free_floats,
    .upload = upload,
    .download = download,
    .rows_new = cuda_rows_new,
    .rows_free = cuda_rows_free,
    .rows_read = cuda_rows_read,
    .rows_write = cuda_rows_write,
    .share = share,
    .pass_begin = pass_begin,
    .pass_end = pass_end,
    .rmsnorm = rmsnorm,
    .linear = linear,
    .add_linear = add_linear,
    .input = input,
    .attention = attention,
    .swiglu = swiglu,
    .token_norm = token_norm,
    .token_attention = token_attention,
    .scale_rows = scale_rows,
    .divide_rows = divide_rows,
    .drop_first = drop_first,
    .subtract = subtract,
    .column_max = column_max,
    .gram = gram,
    .loss = cuda_loss,
};
