/* SPDX-License-Identifier: Apache-2.0 */
/* Calibrate block by block, in two streams: the full-precision model's activations ("fp") and those of the model
 * quantized so far ("q"). A block has four stages, each a set of matrices that share their input:
 *
 *   stage 0  q k v    input norm1(x)              after it: attention, kept as `ao`
 *   stage 1  o        input ao                    x += o(ao)
 *   stage 2  gate up  input norm2(x)              f = silu(gate) * up, kept as `f`
 *   stage 3  down     input f                     x += down(f)
 *
 * One pass over the samples per stage applies the matrices of the stage before, so every product is made once per stream, and
 * accumulates H = sum a_q a_q^T and, where a compensator wants it, D = sum (a_fp - a_q) a_q^T. Where the matrices of a stage are for 8-bit
 * activations (w4a8), a_q is what the 8-bit codes of the input stand for, in H, in D and in the product that follows. What is done to activations, and
 * where they are, is the device's (forward.h); it holds one chunk of samples, and the boundaries of a block for all of them in rq_rows. Chunks are cut by
 * sample, never by memory, so results do not depend on it.
 *
 * With several ranks (ranks.h) a rank has every n-th chunk, and every n-th tile of H and D: the inputs of a chunk go to all ranks, and each adds
 * them to its own tiles. So every number is summed by one rank in the order of the chunks, as one process would, and no number of ranks
 * changes a bit. Then the tiles are put together (and quantize_blocks.c shares out the stage's matrices). */
#include "calib_blocks.h"

#include "backend.h"
#include "device_plan.h"

enum { CHUNK_TOKENS = 2048 };

static int64_t stage_width(const rq_calib *c, int stage) { return stage == 1 ? c->qd : stage == 3 ? c->ff : c->d; }

void rq_calib_free(rq_calib *c) {
    for (int i = 0; i < RQ_N_STREAMS; ++i) {
        rq_stream *s = &c->s[i];
        for (int m = 0; m < RQ_N_LINEARS; ++m) free(s->w[m]);
        if (!c->run) continue;
        c->row->rows_free(c->run, s->x);
        c->row->rows_free(c->run, s->ao);
        c->row->rows_free(c->run, s->f);
        c->row->free_floats(c->run, s->in);
    }
    float *there[] = {c->x, c->a, c->q, c->k, c->v, c->g, c->u, c->act, c->most_there, c->peer_q, c->peer_d};
    for (size_t i = 0; c->run && i < sizeof there / sizeof *there; ++i) c->row->free_floats(c->run, there[i]);
    if (c->run) c->row->end(c->run);
    for (int m = 0; m < RQ_N_LINEARS; ++m) free(c->bias[m]);
    void *all[] = {c->norm1, c->norm2, c->h, c->cross, c->token, c->residual, c->most};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) free(all[i]);
}

/* What of activations is there all the time: rows of all samples, buffers of a chunk. */
static rq_status new_activations(rq_calib *c, int64_t widest) {
    rq_status status = RQ_OK;
    const rq_forward_ops *row = c->row;
    const int64_t t = c->chunk * c->seq_len;
    const char *rows = "activations between passes", *chunk = "a chunk of activations";
    for (int i = 0; i < RQ_N_STREAMS; ++i) {
        rq_stream *s = &c->s[i];
        if (!s->active) continue;
        RQ_TRY(row->new_floats(c->run, &s->in, t * widest, chunk));
        RQ_TRY(row->rows_new(c->run, &s->x, c->d, rows));
        RQ_TRY(row->rows_new(c->run, &s->ao, c->qd, rows));
        RQ_TRY(row->rows_new(c->run, &s->f, c->ff, rows));
    }
    const struct {
        float **p;
        int64_t width;
    } buffer[] = {{&c->x, c->d},  {&c->a, widest}, {&c->q, c->qd}, {&c->k, c->kd},
                  {&c->v, c->kd}, {&c->g, c->ff},  {&c->u, c->ff}, {&c->act, widest}};
    for (size_t i = 0; i < sizeof buffer / sizeof *buffer; ++i)
        RQ_TRY(row->new_floats(c->run, buffer[i].p, t * buffer[i].width, chunk));
done:
    return status;
}

/* Device memory that the set of matrices takes which needs most: those that share codebooks are one stack of rows. */
static double most_matrix_bytes(const rq_calib *c) {
    double most = 0;
    for (int64_t i = 0; i < c->cfg->n_layer * RQ_N_LINEARS; ++i) {
        const rq_matrix_plan *p = &c->z->plan[i], *layer = p - i % RQ_N_LINEARS;
        int64_t n_out = 0;
        rq_device_work w;
        if (!p->quantized) continue;
        for (int m = 0; m < RQ_N_LINEARS; ++m)
            n_out += layer[m].quantized && layer[m].lead == p->lead ? layer[m].n_out : 0;
        if (rq_device_plan(&w, n_out, p->n_in, 0, &p->opt) == RQ_OK && w.memory > most) most = w.memory;
    }
    return most;
}

/* ---- chunks: rank r has chunks r, r + n, ..., whose rows lie one after the other where it keeps them */

static int64_t n_chunks(const rq_calib *c) { return rq_ceil_div(c->n_samples, c->chunk); }

static int64_t chunk_tokens(const rq_calib *c, int64_t i) {
    return rq_min_i64(c->chunk, c->n_samples - i * c->chunk) * c->seq_len;
}

static int64_t chunk_row(const rq_calib *c, int64_t i) { return i / rq_n_ranks(c->ranks) * c->chunk * c->seq_len; }

static int64_t own_rows(const rq_calib *c) {
    int64_t rows = 0;
    for (int64_t i = rq_rank(c->ranks); i < n_chunks(c); i += rq_n_ranks(c->ranks)) rows += chunk_tokens(c, i);
    return rows;
}

/* two: the fp stream too, where the plan wants D. */
rq_status rq_calib_new(rq_calib *c, rq_quantizer *z, bool two) {
    rq_status status = RQ_OK;
    const rq_quantize_job *job = z->job;
    *c = (rq_calib){.z = z,
                    .cfg = &z->model->cfg,
                    .n_samples = job->samples.n_samples,
                    .seq_len = job->samples.seq_len,
                    .ranks = job->ranks};
    const rq_config *cfg = c->cfg;
    c->d = cfg->d_model;
    c->ff = cfg->d_ff;
    c->qd = cfg->n_head * cfg->head_dim;
    c->kd = cfg->n_kv_head * cfg->head_dim;
    c->chunk = rq_max_i64(1, CHUNK_TOKENS / rq_max_i64(1, c->seq_len));
    int64_t t = c->chunk * c->seq_len, widest = rq_max_i64(rq_max_i64(c->d, c->ff), c->qd);
    bool any_cross = false;
    for (int64_t i = 0; i < cfg->n_layer * RQ_N_LINEARS; ++i)
        any_cross |= two && z->plan[i].quantized && rq_quant_wants_cross(&z->plan[i].opt);
    c->s[RQ_FP].active = any_cross;
    c->s[RQ_QS].active = true;
    for (int i = 0; i < RQ_N_STREAMS; ++i) {
        rq_stream *s = &c->s[i];
        for (int m = 0; m < RQ_N_LINEARS; ++m) {
            const rq_linear *l = &z->model->block[0].lin[m];
            RQ_TRY(RQ_NEW(s->w[m], l->n_out * l->n_in)); /* the fp stream's also hold what is being quantized */
            if (i == RQ_QS && l->bias) RQ_TRY(RQ_NEW(c->bias[m], l->n_out));
        }
    }
    RQ_TRY(RQ_NEW(c->norm1, c->d));
    RQ_TRY(RQ_NEW(c->norm2, c->d));
    c->row = rq_forward_row(z->device);
    RQ_TRY(c->row->begin(&c->run, &(rq_forward_job){.device = z->device,
                                                    .model = z->model,
                                                    .dir = z->work_dir,
                                                    .n_tok = own_rows(c),
                                                    .chunk = t,
                                                    .seq_len = c->seq_len,
                                                    .n_streams = any_cross ? 2 : 1,
                                                    .matrix_bytes = most_matrix_bytes(c),
                                                    .ranks = job->ranks,
                                                    .bf16 = job->bf16,
                                                    .cross = any_cross}));
    RQ_TRY(new_activations(c, widest));
    RQ_TRY(RQ_NEW(c->h, widest * widest));
    if (any_cross) RQ_TRY(RQ_NEW(c->cross, widest * widest));
    if (rq_n_ranks(c->ranks) > 1) {
        RQ_TRY(c->row->new_floats(c->run, &c->peer_q, t * widest, "inputs of another rank"));
        if (any_cross) RQ_TRY(c->row->new_floats(c->run, &c->peer_d, t * widest, "inputs of another rank"));
    }
    if (job->token_weights != RQ_TOKENS_EVEN) RQ_TRY(RQ_NEW(c->token, rq_max_i64(1, own_rows(c))));
done:
    return status;
}

/* Matrices of one block: the fp stream gets all of them, the q stream those that stay dense; finished ones come later. */
rq_status rq_calib_load_block(rq_calib *c, int64_t layer) {
    rq_status status = RQ_OK;
    const rq_block *from = &c->z->model->block[layer];
    c->layer = layer;
    rq_block_gains(c->z, layer, c->norm1, c->norm2);
    for (int m = 0; m < RQ_N_LINEARS; ++m) {
        const rq_linear *l = &from->lin[m];
        RQ_TRY(rq_rotated_matrix(c->z, layer, m, c->s[RQ_FP].w[m]));
        if (l->bias) RQ_TRY(rq_rotated_bias(c->z, layer, m, c->bias[m]));
        for (int i = 0; i < RQ_N_STREAMS; ++i) {
            c->s[i].block.lin[m] = (rq_linear){.name = rq_calib_plan(c, layer, m)->name,
                                               .n_out = l->n_out,
                                               .n_in = l->n_in,
                                               .w = c->s[i].w[m],
                                               .bias = l->bias ? c->bias[m] : NULL};
        }
        c->act8[m] = rq_calib_plan(c, layer, m)->quantized && rq_calib_plan(c, layer, m)->opt.round == RQ_ROUND_W4A8;
        if (!rq_calib_plan(c, layer, m)->quantized) {
            memcpy(c->s[RQ_QS].w[m], c->s[RQ_FP].w[m], (size_t)(l->n_out * l->n_in) * sizeof(float));
        }
    }
done:
    return status;
}

/* Whether a matrix of the quantized stream takes its inputs in 8 bits. */
static bool takes_act8(const rq_calib *c, const rq_stream *s, int which) { return s == &c->s[RQ_QS] && c->act8[which]; }

/* What a matrix of a stream gets of `in`, which the block computes, in the basis that is quantized: `in` itself or c->act. */
static rq_status input_of(rq_calib *c, const rq_stream *s, int which, const float **in, int64_t n_tok) {
    rq_input how = rq_input_of(c->z, c->layer, which);
    how.act8 = takes_act8(c, s, which);
    if (rq_input_is_plain(&how)) return RQ_OK;
    const rq_status status = c->row->input(c->run, c->act, *in, &how, n_tok, s->block.lin[which].n_in);
    *in = c->act;
    return status;
}

/* y = in W^T */
static rq_status apply(rq_calib *c, const rq_stream *s, int which, float *y, const float *in, int64_t n_tok) {
    const rq_status status = input_of(c, s, which, &in, n_tok);
    return status == RQ_OK ? c->row->linear(c->run, y, &s->block.lin[which], in, n_tok) : status;
}

/* x += W in for the chunk in c->x; c->a is scratch. */
static rq_status add_residual(rq_calib *c, const rq_stream *s, int which, const float *in, int64_t n_tok) {
    const rq_status status = input_of(c, s, which, &in, n_tok);
    return status == RQ_OK ? c->row->add_linear(c->run, c->x, &s->block.lin[which], in, n_tok, c->a) : status;
}

/* The input of a stage for one stream and one chunk, into s->in; boundary activations are brought up to date. */
static rq_status stage_input(rq_calib *c, rq_stream *s, int stage, int64_t row0, int64_t n_tok) {
    rq_status status = RQ_OK;
    const rq_forward_ops *row = c->row;
    void *run = c->run;
    RQ_TRY(row->rows_read(run, s->x, row0, n_tok, c->x));
    switch (stage) {
    case 0: RQ_TRY(row->rmsnorm(run, s->in, c->x, c->norm1, n_tok, c->d)); break;
    case 1:
        RQ_TRY(row->rmsnorm(run, c->a, c->x, c->norm1, n_tok, c->d));
        RQ_TRY(apply(c, s, RQ_Q, c->q, c->a, n_tok));
        RQ_TRY(apply(c, s, RQ_K, c->k, c->a, n_tok));
        RQ_TRY(apply(c, s, RQ_V, c->v, c->a, n_tok));
        RQ_TRY(row->attention(run, s->in, c->q, c->k, c->v, n_tok / c->seq_len));
        RQ_TRY(row->rows_write(run, s->ao, row0, n_tok, s->in));
        break;
    case 2:
        RQ_TRY(row->rows_read(run, s->ao, row0, n_tok, c->q));
        RQ_TRY(add_residual(c, s, RQ_O, c->q, n_tok));
        RQ_TRY(row->rows_write(run, s->x, row0, n_tok, c->x));
        RQ_TRY(row->rmsnorm(run, s->in, c->x, c->norm2, n_tok, c->d));
        break;
    default:
        RQ_TRY(row->rmsnorm(run, c->a, c->x, c->norm2, n_tok, c->d));
        RQ_TRY(apply(c, s, RQ_GATE, c->g, c->a, n_tok));
        RQ_TRY(apply(c, s, RQ_UP, c->u, c->a, n_tok));
        RQ_TRY(row->swiglu(run, s->in, c->g, c->u, n_tok * c->ff));
        RQ_TRY(row->rows_write(run, s->f, row0, n_tok, s->in));
    }
done:
    return status;
}

/* Rows of a chunk of n_tok tokens that statistics are made of. */
static int64_t tokens_kept(const rq_calib *c, int64_t n_tok) {
    return n_tok / rq_max_i64(1, c->seq_len) * (c->seq_len - rq_min_i64(c->z->job->skip_tokens, c->seq_len));
}

/* What the tokens of a chunk count in this block: from the q stream's input, which stage 0 left in c->x and in->in, and the original
 * matrices. */
static rq_status weigh_tokens(rq_calib *c, const rq_stream *in, int64_t row0, int64_t n_tok) {
    rq_status status = RQ_OK;
    const rq_quantize_job *job = c->z->job;
    const rq_linear *lin = c->s[RQ_FP].block.lin;
    int64_t n_seq = n_tok / c->seq_len;
    float *token = c->token + row0;
    if (job->token_weights == RQ_TOKENS_NORM) {
        RQ_TRY(c->row->token_norm(c->run, token, c->x, n_tok, c->d));
    } else {
        RQ_TRY(c->row->linear(c->run, c->q, &lin[RQ_Q], in->in, n_tok));
        RQ_TRY(c->row->linear(c->run, c->k, &lin[RQ_K], in->in, n_tok));
        RQ_TRY(c->row->token_attention(c->run, token, c->q, c->k, n_seq));
    }
    rq_token_scale(token, n_seq, c->seq_len, job->skip_tokens, job->token_min);
done:
    return status;
}

/* What of the chunk's inputs goes into H and D: in the basis that is quantized (a stage that has one of its own has one matrix), in 8 bits
 * where they are, weighed, without first tokens; in->in of the fp stream becomes the difference. */
static rq_status chunk_statistics(rq_calib *c, int stage, int64_t row0, int64_t n_tok) {
    rq_status status = RQ_OK;
    const rq_forward_ops *row = c->row;
    void *run = c->run;
    const int64_t width = stage_width(c, stage), skip = rq_min_i64(c->z->job->skip_tokens, c->seq_len);
    rq_input how = rq_input_of(c->z, c->layer, rq_stage_first[stage]);
    float *q = c->s[RQ_QS].in, *fp = c->s[RQ_FP].in, *both[] = {q, fp};
    if (c->need_cross && !rq_input_is_plain(&how)) RQ_TRY(row->input(run, fp, fp, &how, n_tok, width));
    how.act8 = c->stage_act8;
    if (!rq_input_is_plain(&how)) RQ_TRY(row->input(run, q, q, &how, n_tok, width));
    for (int k = 0; k < (c->need_cross ? 2 : 1); ++k) {
        if (c->token) RQ_TRY(row->scale_rows(run, both[k], c->token + row0, n_tok, width));
        if (skip) RQ_TRY(row->drop_first(run, both[k], n_tok / c->seq_len, skip, width));
    }
    if (c->need_cross) RQ_TRY(row->subtract(run, fp, q, tokens_kept(c, n_tok), width));
done:
    return status;
}

/* One chunk of this rank: its inputs, in s->in as chunk_statistics leaves them. */
static rq_status chunk_inputs(rq_calib *c, int stage, int64_t chunk) {
    rq_status status = RQ_OK;
    int64_t width = stage_width(c, stage), n_tok = chunk_tokens(c, chunk), row0 = chunk_row(c, chunk);
    for (int k = 0; k < RQ_N_STREAMS; ++k) {
        if (c->s[k].active) RQ_TRY(stage_input(c, &c->s[k], stage, row0, n_tok));
    }
    if (c->residual && (stage == 1 || stage == 3)) {
        RQ_TRY(add_residual(c, &c->s[RQ_QS], stage == 1 ? RQ_O : RQ_DOWN, c->s[RQ_QS].in, n_tok));
        RQ_TRY(c->row->token_norm(c->run, c->residual, c->x, n_tok, c->d));
        RQ_TRY(c->row->divide_rows(c->run, c->s[RQ_QS].in, c->residual, n_tok, width));
    }
    if (c->token && stage == 0) RQ_TRY(weigh_tokens(c, &c->s[RQ_QS], row0, n_tok));
    if (c->need_h || c->most) RQ_TRY(chunk_statistics(c, stage, row0, n_tok));
done:
    return status;
}

/* The chunks that the ranks have from `first` on, one each, into this rank's tiles of H and D. */
static rq_status add_chunks(rq_calib *c, int stage, int64_t first) {
    rq_status status = RQ_OK;
    int64_t width = stage_width(c, stage);
    int own = rq_rank(c->ranks), n = rq_n_ranks(c->ranks);
    for (int r = 0; r < n && first + r < n_chunks(c); ++r) {
        int64_t kept = tokens_kept(c, chunk_tokens(c, first + r));
        float *q = r == own ? c->s[RQ_QS].in : c->peer_q, *d = r == own ? c->s[RQ_FP].in : c->peer_d;
        if (n > 1) RQ_TRY(c->row->share(c->run, q, kept * width, r));
        if (n > 1 && c->need_cross) RQ_TRY(c->row->share(c->run, d, kept * width, r));
        if (c->most) RQ_TRY(c->row->column_max(c->run, c->most_there, q, kept, width));
        if (!c->need_h) continue;
        if (n == 1 || !c->row->host) { /* a device knows its own panels, and gram_finish puts them together */
            RQ_TRY(c->row->gram(c->run, c->h, c->need_cross ? c->cross : NULL, q, d, kept, width));
            continue;
        }
        RQ_TRY(rq_gram_add_part(c->h, q, kept, width, own, n));
        if (c->need_cross) RQ_TRY(rq_cross_add_part(c->cross, d, q, kept, width, own, n));
    }
done:
    return status;
}

rq_status rq_calib_run_stage(rq_calib *c, int stage, const char *text) {
    rq_status status = RQ_OK;
    int64_t width = stage_width(c, stage);
    int n = rq_n_ranks(c->ranks);
    const rq_device_ops *row = rq_device_row(c->z->device);
    void *device = rq_device_own(c->z->device);
    double *cross = c->need_cross ? c->cross : NULL;
    RQ_TRY(c->row->pass_begin(c->run));
    if (c->need_h) RQ_TRY(row->gram_start(device, c->h, cross, width));
    if (c->most) {
        memset(c->most, 0, (size_t)width * sizeof *c->most);
        RQ_TRY(c->row->upload(c->run, c->most_there, c->most, width));
    }
    for (int64_t first = 0; first < n_chunks(c); first += n) {
        int64_t chunk = first + rq_rank(c->ranks), all = 0;
        if (chunk < n_chunks(c)) RQ_TRY(chunk_inputs(c, stage, chunk));
        if (c->need_h || c->most) RQ_TRY(add_chunks(c, stage, first));
        for (int64_t i = first; i < first + n && i < n_chunks(c); ++i) all += chunk_tokens(c, i);
        double per_token = rq_stage_flops(c->cfg, stage, c->seq_len) * (c->s[RQ_FP].active ? 2 : 1);
        if (c->need_h) per_token += (double)(width * width) * (c->need_cross ? 3 : 1);
        rq_quantizer_progress(c->z, per_token * (double)all,
                              text); /* an interrupt is seen again after the next matrix */
    }
    RQ_TRY(c->row->pass_end(c->run));
    if (c->most) RQ_TRY(c->row->download(c->run, c->most, c->most_there, width));
    if (c->need_h) RQ_TRY(row->gram_finish(device, c->h, cross, width));
    if (c->need_h && c->row->host) RQ_TRY(rq_ranks_sum(c->ranks, c->h, width * width));
    if (c->need_cross && c->row->host) RQ_TRY(rq_ranks_sum(c->ranks, c->cross, width * width));
done:
    return status;
}

/* x += down(f) for all samples and both streams, before the block's matrices are replaced by the next one's. */
rq_status rq_calib_finish_block(rq_calib *c, const char *text) {
    rq_status status = RQ_OK;
    const rq_forward_ops *row = c->row;
    int n = rq_n_ranks(c->ranks);
    RQ_TRY(row->pass_begin(c->run));
    for (int64_t i = rq_rank(c->ranks); i < n_chunks(c); i += n) {
        int64_t n_tok = chunk_tokens(c, i), row0 = chunk_row(c, i);
        for (int k = 0; k < RQ_N_STREAMS; ++k) {
            rq_stream *s = &c->s[k];
            if (!s->active) continue;
            RQ_TRY(row->rows_read(c->run, s->x, row0, n_tok, c->x));
            RQ_TRY(row->rows_read(c->run, s->f, row0, n_tok, c->g));
            RQ_TRY(add_residual(c, s, RQ_DOWN, c->g, n_tok));
            RQ_TRY(row->rows_write(c->run, s->x, row0, n_tok, c->x));
        }
        double flops = 2.0 * (double)c->d * (double)c->ff * (double)n_tok * (c->s[RQ_FP].active ? 2 : 1);
        rq_quantizer_progress(c->z, flops * n, text);
    }
    RQ_TRY(row->pass_end(c->run));
done:
    return status;
}

rq_status rq_calib_start(rq_calib *c) {
    rq_status status = RQ_OK;
    float *x = NULL; /* embeddings are looked up by the host */
    RQ_TRY(RQ_NEW(x, c->chunk * c->seq_len * c->d));
    for (int64_t i = rq_rank(c->ranks); i < n_chunks(c); i += rq_n_ranks(c->ranks)) {
        int64_t n_tok = chunk_tokens(c, i), row0 = chunk_row(c, i);
        RQ_TRY(rq_embed(c->z->model, x, c->z->job->samples.ids + i * c->chunk * c->seq_len, n_tok));
        RQ_TRY(c->row->upload(c->run, c->x, x, n_tok * c->d));
        for (int k = 0; k < RQ_N_STREAMS; ++k) {
            if (c->s[k].active) RQ_TRY(c->row->rows_write(c->run, c->s[k].x, row0, n_tok, c->x));
        }
    }
done:
    free(x);
    return status;
}

double rq_stage_flops(const rq_config *cfg, int stage, int64_t seq_len) {
    int64_t d = cfg->d_model, qd = cfg->n_head * cfg->head_dim, kd = cfg->n_kv_head * cfg->head_dim;
    switch (stage) {
    case 1: return 2.0 * (double)(d * (qd + 2 * kd)) + 2.0 * (double)(qd * seq_len);
    case 2: return 2.0 * (double)(qd * d);
    case 3: return 4.0 * (double)(d * cfg->d_ff);
    case 4: return 2.0 * (double)(d * cfg->d_ff);
    default: return 0;
    }
}

rq_status rq_calibrate_stages(rq_quantizer *z, rq_gather what, rq_stage_fn fn, void *arg) {
    rq_status status = RQ_OK;
    rq_calib c;
    char text[96];
    RQ_TRY(rq_calib_new(&c, z, false));
    c.need_h = what != RQ_GATHER_MAX;
    if (what == RQ_GATHER_GRAM_PER_RESIDUAL) RQ_TRY(RQ_NEW(c.residual, c.chunk * c.seq_len));
    if (what == RQ_GATHER_MAX) {
        const int64_t widest = rq_max_i64(rq_max_i64(c.d, c.ff), c.qd);
        RQ_TRY(RQ_NEW(c.most, widest));
        RQ_TRY(c.row->new_floats(c.run, &c.most_there, widest, "the largest of each column"));
    }
    RQ_TRY(rq_calib_start(&c));
    for (int64_t layer = 0; layer < c.cfg->n_layer; ++layer) {
        RQ_TRY(rq_calib_load_block(&c, layer));
        snprintf(text, sizeof text, "block %lld of %lld: measuring", (long long)layer + 1, (long long)c.cfg->n_layer);
        for (int m = 0; m < RQ_N_LINEARS;
             ++m) { /* the one stream there is runs on the original matrices and activations */
            const rq_linear *l = &c.s[RQ_QS].block.lin[m];
            c.act8[m] = false;
            memcpy(c.s[RQ_QS].w[m], c.s[RQ_FP].w[m], (size_t)(l->n_out * l->n_in) * sizeof(float));
        }
        for (int st = 0; st < RQ_N_STAGES; ++st) {
            RQ_TRY(rq_calib_run_stage(&c, st, text));
            RQ_TRY(fn(arg, layer, st, &(rq_gathered){c.need_h ? c.h : NULL, c.most, c.row, c.run}, c.s[RQ_FP].w));
        }
        if (layer + 1 < c.cfg->n_layer) RQ_TRY(rq_calib_finish_block(&c, text));
    }
done:
    rq_calib_free(&c);
    return status;
}
