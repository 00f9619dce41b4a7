/* SPDX-License-Identifier: Apache-2.0 */
/* Decoders by the name of a device, and the CPU's row. */
#include "decoder.h"

#include <math.h>

#include "device.h"

/* A program that is linked without backend_cuda*.c has no such row. */
#pragma weak rq_decoder_cuda

struct rq_decoder {
    const rq_decoder_ops *ops;
    void *own;
    int64_t n_vocab, max_seq, pos;
    bool ended; /* the last token that fits has been given */
};

rq_status rq_likeliest(int32_t *id, const float *logits, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (!isfinite(logits[i]))
            return rq_fail(RQ_ERR_NUMERIC, "the logit of token %lld is %g", (long long)i, (double)logits[i]);
        if (logits[i] > logits[best]) best = i;
    }
    *id = (int32_t)best;
    return RQ_OK;
}

/* ---- the CPU: a token that is the answer of next() is fed when something is asked of it */

typedef struct cpu_decoder {
    rq_decode_state *state;
    float *logits;
    int64_t n_vocab;
    int32_t waiting; /* -1: none */
} cpu_decoder;

static void cpu_close(void *own) {
    cpu_decoder *d = own;
    if (!d) return;
    rq_decode_free(d->state);
    free(d->logits);
    free(d);
}

static rq_status cpu_open(void **own, const rq_model *m, int64_t max_seq, int index) {
    rq_status status = RQ_OK;
    cpu_decoder *d = NULL;
    (void)index;
    RQ_TRY(RQ_NEW_ZERO(d, 1));
    d->waiting = -1;
    d->n_vocab = m->cfg.n_vocab;
    RQ_TRY(rq_decode_new(&d->state, m, max_seq));
    RQ_TRY(RQ_NEW(d->logits, d->n_vocab));
    *own = d;
    d = NULL;
done:
    cpu_close(d);
    return status;
}

static rq_status feed_waiting(cpu_decoder *d) {
    if (d->waiting < 0) return RQ_OK;
    rq_status status = rq_decode(d->state, &d->waiting, 1, d->logits);
    if (status == RQ_OK) d->waiting = -1;
    return status;
}

static rq_status cpu_feed(void *own, const int32_t *ids, int64_t n_tok) {
    cpu_decoder *d = own;
    rq_status status = feed_waiting(d);
    return status == RQ_OK ? rq_decode(d->state, ids, n_tok, d->logits) : status;
}

static rq_status cpu_logits(void *own, float *logits) {
    cpu_decoder *d = own;
    rq_status status = feed_waiting(d);
    if (status == RQ_OK) memcpy(logits, d->logits, (size_t)d->n_vocab * sizeof *logits);
    return status;
}

static rq_status cpu_next(void *own, int32_t *id) {
    cpu_decoder *d = own;
    rq_status status = feed_waiting(d);
    if (status == RQ_OK) status = rq_likeliest(id, d->logits, d->n_vocab);
    if (status == RQ_OK) d->waiting = *id;
    return status;
}

const rq_decoder_ops rq_decoder_cpu = {cpu_open, cpu_close, cpu_feed, cpu_logits, cpu_next};

/* ---- any device */

rq_status rq_decoder_open(rq_decoder **out, const rq_model *m, int64_t max_seq, const char *device) {
    rq_status status = RQ_OK;
    rq_decoder *d = NULL;
    const rq_device_ops *row = &rq_device_cpu;
    int index = 0;
    *out = NULL;
    if (max_seq < 1) RQ_FAIL(RQ_ERR_ARG, "a cache for %lld tokens is impossible", (long long)max_seq);
    if (device) RQ_TRY(rq_device_find(&row, &index, device));
    RQ_TRY(RQ_NEW_ZERO(d, 1));
    d->n_vocab = m->cfg.n_vocab;
    d->max_seq = max_seq;
    d->ops = row == &rq_device_cpu ? &rq_decoder_cpu : &rq_decoder_cuda;
    RQ_TRY(d->ops->open(&d->own, m, max_seq, index));
    *out = d;
    d = NULL;
done:
    free(d);
    return status;
}

void rq_decoder_close(rq_decoder *d) {
    if (!d) return;
    d->ops->close(d->own);
    free(d);
}

int64_t rq_decoder_pos(const rq_decoder *d) { return d->pos; }

static rq_status check(const rq_decoder *d, int64_t n_tok) {
    if (!d->ended && n_tok <= d->max_seq - d->pos) return RQ_OK;
    return rq_fail(RQ_ERR_ARG, "%lld tokens do not fit: the cache holds %lld of %lld", (long long)n_tok,
                   (long long)d->pos, (long long)d->max_seq);
}

rq_status rq_decoder_feed(rq_decoder *d, const int32_t *ids, int64_t n_tok) {
    rq_status status = RQ_OK;
    if (n_tok < 1) RQ_FAIL(RQ_ERR_ARG, "there are no tokens to feed");
    RQ_TRY(check(d, n_tok));
    for (int64_t i = 0; i < n_tok; ++i) {
        if (ids[i] < 0 || ids[i] >= d->n_vocab)
            RQ_FAIL(RQ_ERR_INPUT, "token %lld is %d, but the vocabulary has %lld entries", (long long)i, (int)ids[i],
                    (long long)d->n_vocab);
    }
    RQ_TRY(d->ops->feed(d->own, ids, n_tok));
    d->pos += n_tok;
done:
    return status;
}

rq_status rq_decoder_logits(rq_decoder *d, float *logits) {
    if (d->pos < 1 || d->ended) return rq_fail(RQ_ERR_ARG, "there are no logits: nothing was fed before them");
    return d->ops->logits(d->own, logits);
}

rq_status rq_decoder_next(rq_decoder *d, int32_t *id) {
    if (d->pos < 1) return rq_fail(RQ_ERR_ARG, "nothing was fed that a token could follow");
    rq_status status = check(d, 0);
    if (status == RQ_OK) status = d->ops->next(d->own, id);
    if (status != RQ_OK) return status;
    if (d->pos < d->max_seq)
        ++d->pos;
    else
        d->ended = true;
    return RQ_OK;
}
