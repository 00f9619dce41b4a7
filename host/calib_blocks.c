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
 * activations (w4a8), a_q is what the 8-bit codes of the input stand for, in H, in D and in the product that follows. Boundary activations live in
 * spill files; memory holds one chunk of samples. Chunks are cut by sample, never by memory, so results do not depend on it.
 *
 * With several ranks (ranks.h) a rank has every n-th chunk, and every n-th tile of H and D: the inputs of a chunk go to all ranks, and each adds
 * them to its own tiles. So every number is summed by one rank in the order of the chunks, as one process would, and no number of ranks
 * changes a bit. Then the tiles are put together (and quantize_blocks.c shares out the stage's matrices). */
#include <math.h>

#include "backend.h"
#include "calib_blocks.h"

enum { CHUNK_TOKENS = 2048 };

static int64_t stage_width(const rq_calib *c, int stage) { return stage == 1 ? c->qd : stage == 3 ? c->ff : c->d; }

void rq_calib_free(rq_calib *c) {
    for (int i = 0; i < RQ_N_STREAMS; ++i) {
        rq_stream *s = &c->s[i];
        rq_spill_free(&s->x);
        rq_spill_free(&s->ao);
        rq_spill_free(&s->f);
        for (int m = 0; m < RQ_N_LINEARS; ++m) free(s->w[m]);
        free(s->in);
    }
    for (int m = 0; m < RQ_N_LINEARS; ++m) free(c->bias[m]);
    void *all[] = {c->norm1, c->norm2, c->x,     c->a,     c->q,        c->k,    c->v,      c->g,     c->u,
                   c->act,   c->h,     c->cross, c->token, c->residual, c->most, c->peer_q, c->peer_d};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) free(all[i]);
}

/* two: the fp stream too, where the plan wants D. */
rq_status rq_calib_new(rq_calib *c, rq_quantizer *z, bool two) {
    rq_status status = RQ_OK;
    const rq_quantize_job *job = z->job;
    *c =
        (rq_calib){.z = z, .cfg = &z->model->cfg, .n_samples = job->samples.n_samples, .seq_len = job->samples.seq_len};
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
    for (int i = 0; i < RQ_N_STREAMS; ++i) c->s[i].x.fd = c->s[i].ao.fd = c->s[i].f.fd = -1;
    for (int i = 0; i < RQ_N_STREAMS; ++i) {
        rq_stream *s = &c->s[i];
        for (int m = 0; m < RQ_N_LINEARS; ++m) {
            const rq_linear *l = &z->model->block[0].lin[m];
            RQ_TRY(RQ_NEW(s->w[m], l->n_out * l->n_in)); /* the fp stream's also hold what is being quantized */
            if (i == RQ_QS && l->bias) RQ_TRY(RQ_NEW(c->bias[m], l->n_out));
        }
        if (!s->active) continue;
        RQ_TRY(rq_spill_new(&s->x, z->work_dir, c->d));
        RQ_TRY(rq_spill_new(&s->ao, z->work_dir, c->qd));
        RQ_TRY(rq_spill_new(&s->f, z->work_dir, c->ff));
        RQ_TRY(RQ_NEW(s->in, t * widest));
    }
    RQ_TRY(RQ_NEW(c->norm1, c->d));
    RQ_TRY(RQ_NEW(c->norm2, c->d));
    RQ_TRY(RQ_NEW(c->x, t * c->d));
    RQ_TRY(RQ_NEW(c->a, t * widest));
    RQ_TRY(RQ_NEW(c->q, t * c->qd));
    RQ_TRY(RQ_NEW(c->k, t * c->kd));
    RQ_TRY(RQ_NEW(c->v, t * c->kd));
    RQ_TRY(RQ_NEW(c->g, t * c->ff));
    RQ_TRY(RQ_NEW(c->u, t * c->ff));
    RQ_TRY(RQ_NEW(c->act, t * widest));
    RQ_TRY(RQ_NEW(c->h, widest * widest));
    if (any_cross) RQ_TRY(RQ_NEW(c->cross, widest * widest));
    c->ranks = job->ranks;
    if (rq_n_ranks(c->ranks) > 1) {
        RQ_TRY(RQ_NEW(c->peer_q, t * widest));
        if (any_cross) RQ_TRY(RQ_NEW(c->peer_d, t * widest));
    }
    if (job->token_weights != RQ_TOKENS_EVEN) RQ_TRY(RQ_NEW(c->token, c->n_samples * c->seq_len));
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

/* y = in W^T for a matrix of a stream, W in the basis that is quantized and `in` what the block computes. */
static rq_status apply(rq_calib *c, const rq_stream *s, int which, float *y, const float *in, int64_t n_tok) {
    rq_status status = RQ_OK;
    const rq_linear *lin = &s->block.lin[which];
    memcpy(c->act, in, (size_t)(n_tok * lin->n_in) * sizeof *in);
    RQ_TRY(rq_input_apply(c->z, c->layer, which, c->act, n_tok));
    if (takes_act8(c, s, which)) RQ_TRY(rq_act8_round_trip(c->act, n_tok, lin->n_in));
    in = c->act;
    RQ_TRY(rq_linear_apply(lin, y, in, n_tok));
done:
    return status;
}

/* x += W in for the chunk in c->x; c->a is scratch. */
static rq_status add_residual(rq_calib *c, const rq_stream *s, int which, const float *in, int64_t n_tok) {
    rq_status status = apply(c, s, which, c->a, in, n_tok);
    for (int64_t i = 0; status == RQ_OK && i < n_tok * c->d; ++i) c->x[i] += c->a[i];
    return status;
}

/* The input of a stage for one stream and one chunk, into s->in; boundary activations are brought up to date. */
static rq_status stage_input(rq_calib *c, rq_stream *s, int stage, int64_t row0, int64_t n_tok) {
    rq_status status = RQ_OK;
    RQ_TRY(rq_spill_read(&s->x, row0, n_tok, c->x));
    switch (stage) {
    case 0: rq_rmsnorm(s->in, c->x, c->norm1, n_tok, c->d, c->cfg->rms_eps); break;
    case 1:
        rq_rmsnorm(c->a, c->x, c->norm1, n_tok, c->d, c->cfg->rms_eps);
        RQ_TRY(apply(c, s, RQ_Q, c->q, c->a, n_tok));
        RQ_TRY(apply(c, s, RQ_K, c->k, c->a, n_tok));
        RQ_TRY(apply(c, s, RQ_V, c->v, c->a, n_tok));
        RQ_TRY(rq_attention(c->z->model, s->in, c->q, c->k, c->v, n_tok / c->seq_len, c->seq_len));
        RQ_TRY(rq_spill_write(&s->ao, row0, n_tok, s->in));
        break;
    case 2:
        RQ_TRY(rq_spill_read(&s->ao, row0, n_tok, c->q));
        RQ_TRY(add_residual(c, s, RQ_O, c->q, n_tok));
        RQ_TRY(rq_spill_write(&s->x, row0, n_tok, c->x));
        rq_rmsnorm(s->in, c->x, c->norm2, n_tok, c->d, c->cfg->rms_eps);
        break;
    default:
        rq_rmsnorm(c->a, c->x, c->norm2, n_tok, c->d, c->cfg->rms_eps);
        RQ_TRY(apply(c, s, RQ_GATE, c->g, c->a, n_tok));
        RQ_TRY(apply(c, s, RQ_UP, c->u, c->a, n_tok));
        rq_swiglu(s->in, c->g, c->u, n_tok * c->ff);
        RQ_TRY(rq_spill_write(&s->f, row0, n_tok, s->in));
    }
done:
    return status;
}

static int64_t n_chunks(const rq_calib *c) { return rq_ceil_div(c->n_samples, c->chunk); }

static int64_t chunk_tokens(const rq_calib *c, int64_t i) {
    return rq_min_i64(c->chunk, c->n_samples - i * c->chunk) * c->seq_len;
}

/* Rows of a chunk of n_tok tokens that statistics are made of. */
static int64_t tokens_kept(const rq_calib *c, int64_t n_tok) {
    return n_tok / c->seq_len * (c->seq_len - rq_min_i64(c->z->job->skip_tokens, c->seq_len));
}

/* Drop the first tokens of every sample; returns how many rows are left. */
static int64_t without_first_tokens(const rq_calib *c, float *rows, int64_t n_tok, int64_t width) {
    int64_t skip = rq_min_i64(c->z->job->skip_tokens, c->seq_len), keep = c->seq_len - skip, n = 0;
    if (skip == 0) return n_tok;
    for (int64_t i = 0; i < n_tok / c->seq_len; ++i, n += keep) {
        memmove(rows + n * width, rows + (i * c->seq_len + skip) * width, (size_t)(keep * width) * sizeof *rows);
    }
    return n;
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
        rq_token_norm(token, c->x, n_tok, c->d);
    } else {
        RQ_TRY(rq_linear_apply(&lin[RQ_Q], c->q, in->in, n_tok));
        RQ_TRY(rq_linear_apply(&lin[RQ_K], c->k, in->in, n_tok));
        RQ_TRY(rq_token_attention(token, c->z->model, c->q, c->k, n_seq, c->seq_len));
    }
    rq_token_scale(token, n_seq, c->seq_len, job->skip_tokens, job->token_min);
done:
    return status;
}

static void divide_rows(float *rows, const float *by, int64_t n_tok, int64_t width) {
    for (int64_t t = 0; t < n_tok; ++t) {
        for (int64_t j = 0; j < width && by[t] > 0; ++j) rows[t * width + j] /= by[t];
    }
}

static void scale_rows(float *rows, const float *by, int64_t n_tok, int64_t width) {
    for (int64_t t = 0; t < n_tok; ++t) {
        for (int64_t j = 0; j < width; ++j) rows[t * width + j] *= by[t];
    }
}

/* NaN is kept: it is the largest. */
static void column_max(float *most, const float *rows, int64_t n_rows, int64_t width) {
    for (int64_t i = 0; i < n_rows * width; ++i) {
        float *at = &most[i % width], v = fabsf(rows[i]);
        if (!(v <= *at)) *at = isnan(*at) ? *at : v;
    }
}

/* What of the chunk's inputs goes into H and D: in the basis that is quantized (a stage that has one of its own has one matrix), in 8 bits
 * where they are, weighed, without first tokens; in->in of the fp stream becomes the difference. */
static rq_status chunk_statistics(rq_calib *c, int stage, int64_t row0, int64_t n_tok) {
    rq_status status = RQ_OK;
    int64_t width = stage_width(c, stage);
    float *q = c->s[RQ_QS].in, *fp = c->s[RQ_FP].in;
    RQ_TRY(rq_input_apply(c->z, c->layer, rq_stage_first[stage], q, n_tok));
    if (c->need_cross) RQ_TRY(rq_input_apply(c->z, c->layer, rq_stage_first[stage], fp, n_tok));
    if (c->stage_act8) RQ_TRY(rq_act8_round_trip(q, n_tok, width));
    if (c->token) {
        scale_rows(q, c->token + row0, n_tok, width);
        if (c->need_cross) scale_rows(fp, c->token + row0, n_tok, width);
    }
    int64_t kept = without_first_tokens(c, q, n_tok, width);
    if (c->need_cross) {
        without_first_tokens(c, fp, n_tok, width);
        for (int64_t i = 0; i < kept * width; ++i) fp[i] -= q[i];
    }
done:
    return status;
}

/* One chunk of this rank: its inputs, in s->in as chunk_statistics leaves them. */
static rq_status chunk_inputs(rq_calib *c, int stage, int64_t chunk) {
    rq_status status = RQ_OK;
    int64_t width = stage_width(c, stage), n_tok = chunk_tokens(c, chunk), row0 = chunk * c->chunk * c->seq_len;
    for (int k = 0; k < RQ_N_STREAMS; ++k) {
        if (c->s[k].active) RQ_TRY(stage_input(c, &c->s[k], stage, row0, n_tok));
    }
    if (c->residual && (stage == 1 || stage == 3)) {
        RQ_TRY(add_residual(c, &c->s[RQ_QS], stage == 1 ? RQ_O : RQ_DOWN, c->s[RQ_QS].in, n_tok));
        rq_token_norm(c->residual, c->x, n_tok, c->d);
        divide_rows(c->s[RQ_QS].in, c->residual, n_tok, width);
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
        int64_t kept = tokens_kept(c, chunk_tokens(c, first + r)), bytes = kept * width * (int64_t)sizeof(float);
        float *q = r == own ? c->s[RQ_QS].in : c->peer_q, *d = r == own ? c->s[RQ_FP].in : c->peer_d;
        RQ_TRY(rq_ranks_bcast(c->ranks, q, bytes, r));
        if (c->need_cross) RQ_TRY(rq_ranks_bcast(c->ranks, d, bytes, r));
        if (c->most) column_max(c->most, q, kept, width);
        if (!c->need_h) continue;
        if (n == 1) {
            const rq_device *dev = c->z->device;
            double *cross = c->need_cross ? c->cross : NULL;
            RQ_TRY(rq_device_row(dev)->gram_add(rq_device_own(dev), c->h, cross, q, d, kept, width));
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
    if (c->need_h) RQ_TRY(row->gram_start(device, c->h, cross, width));
    if (c->most) memset(c->most, 0, (size_t)width * sizeof *c->most);
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
    if (c->need_h) RQ_TRY(row->gram_finish(device, c->h, cross, width));
    if (c->need_h) RQ_TRY(rq_ranks_sum(c->ranks, c->h, width * width));
    if (c->need_cross) RQ_TRY(rq_ranks_sum(c->ranks, c->cross, width * width));
done:
    return status;
}

/* x += down(f) for all samples and both streams, before the block's matrices are replaced by the next one's. */
rq_status rq_calib_finish_block(rq_calib *c, const char *text) {
    rq_status status = RQ_OK;
    int n = rq_n_ranks(c->ranks);
    for (int64_t i = rq_rank(c->ranks); i < n_chunks(c); i += n) {
        int64_t n_tok = chunk_tokens(c, i), row0 = i * c->chunk * c->seq_len;
        for (int k = 0; k < RQ_N_STREAMS; ++k) {
            rq_stream *s = &c->s[k];
            if (!s->active) continue;
            RQ_TRY(rq_spill_read(&s->x, row0, n_tok, c->x));
            RQ_TRY(rq_spill_read(&s->f, row0, n_tok, c->g));
            RQ_TRY(add_residual(c, s, RQ_DOWN, c->g, n_tok));
            RQ_TRY(rq_spill_write(&s->x, row0, n_tok, c->x));
        }
        double flops = 2.0 * (double)c->d * (double)c->ff * (double)n_tok * (c->s[RQ_FP].active ? 2 : 1);
        rq_quantizer_progress(c->z, flops * n, text);
    }
done:
    return status;
}

rq_status rq_calib_start(rq_calib *c) {
    rq_status status = RQ_OK;
    for (int64_t i = rq_rank(c->ranks); i < n_chunks(c); i += rq_n_ranks(c->ranks)) {
        int64_t n_tok = chunk_tokens(c, i), row0 = i * c->chunk * c->seq_len;
        RQ_TRY(rq_embed(c->z->model, c->x, c->z->job->samples.ids + row0, n_tok));
        for (int k = 0; k < RQ_N_STREAMS; ++k) {
            if (c->s[k].active) RQ_TRY(rq_spill_write(&c->s[k].x, row0, n_tok, c->x));
        }
    }
done:
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
    if (what == RQ_GATHER_MAX) RQ_TRY(RQ_NEW(c.most, rq_max_i64(rq_max_i64(c.d, c.ff), c.qd)));
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
            RQ_TRY(fn(arg, layer, st, &(rq_gathered){c.need_h ? c.h : NULL, c.most}, c.s[RQ_FP].w));
        }
        if (layer + 1 < c.cfg->n_layer) RQ_TRY(rq_calib_finish_block(&c, text));
    }
done:
    rq_calib_free(&c);
    return status;
}
