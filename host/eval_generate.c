/* SPDX-License-Identifier: Apache-2.0 */
/* Writing text: prefill, then a token at a time, the likeliest or drawn from softmax(logits / temperature). */
#include <math.h>

#include "eval.h"
#include "random.h"

/* Inverse of the cumulative distribution at u in [0, 1), summed in order of ids; the likeliest token has logit `top`. */
static int32_t draw(const float *logits, int64_t n, double top, double temperature, double u) {
    double sum = 0, below = 0;
    int32_t last = 0; /* the last token that can be drawn at all, should rounding leave u above the sum */
    for (int64_t i = 0; i < n; ++i) sum += exp(((double)logits[i] - top) / temperature);
    for (int64_t i = 0; i < n; ++i) {
        double p = exp(((double)logits[i] - top) / temperature);
        if (p <= 0) continue;
        below += p;
        last = (int32_t)i;
        if (u * sum < below) break;
    }
    return last;
}

static bool is_eos(const rq_config *c, int32_t id) {
    for (int64_t i = 0; i < c->n_eos; ++i) {
        if (c->eos_id[i] == id) return true;
    }
    return false;
}

static rq_status announce(const rq_generate_opt *opt, int32_t id) {
    rq_status status = RQ_OK;
    char *piece = NULL;
    int64_t n_bytes = 0;
    if (!opt->on_token) return RQ_OK;
    if (opt->tokenizer) RQ_TRY(rq_tokenizer_decode(opt->tokenizer, &id, 1, true, &piece, &n_bytes));
    if (!opt->on_token(opt->user, id, piece ? piece : "", n_bytes)) {
        RQ_FAIL(RQ_ERR_CANCELLED, "generation was stopped on request");
    }
done:
    free(piece);
    return status;
}

static rq_status check_request(const rq_model *m, int64_t n_prompt, const rq_generate_opt *opt) {
    if (n_prompt < 1) return rq_fail(RQ_ERR_ARG, "the prompt holds no token");
    if (opt->max_tokens < 1 || opt->max_tokens > m->cfg.max_seq - n_prompt) {
        return rq_fail(RQ_ERR_ARG, "%lld new tokens after a prompt of %lld do not fit the model's context of %lld",
                       (long long)opt->max_tokens, (long long)n_prompt, (long long)m->cfg.max_seq);
    }
    if (!(opt->temperature >= 0.0) || !isfinite(opt->temperature)) {
        return rq_fail(RQ_ERR_ARG, "a temperature of %g makes no sense", opt->temperature);
    }
    return RQ_OK;
}

/* The token after what was fed, drawn with logits as scratch; without them the likeliest, which is fed with that. */
static rq_status choose(rq_decoder *d, int32_t *id, float *logits, int64_t n_vocab, const rq_generate_opt *opt,
                        int64_t n_new) {
    if (!logits) return rq_decoder_next(d, id);
    rq_status status = rq_decoder_logits(d, logits);
    if (status == RQ_OK) status = rq_likeliest(id, logits, n_vocab);
    if (status != RQ_OK) return status;
    double u = rq_random_unit(opt->seed, (uint64_t)n_new);
    *id = draw(logits, n_vocab, (double)logits[*id], opt->temperature, u);
    return RQ_OK;
}

rq_status rq_generate(const rq_model *m, int32_t *ids, const int32_t *prompt, int64_t n_prompt,
                      const rq_generate_opt *opt, rq_generate_result *result) {
    rq_status status = RQ_OK;
    rq_decoder *d = NULL;
    float *logits = NULL;
    double start = 0, opened = 0, prefilled = 0;
    int64_t n_vocab = m->cfg.n_vocab, n_steps = 0;
    memset(result, 0, sizeof *result);
    RQ_TRY(check_request(m, n_prompt, opt));
    start = rq_seconds();
    RQ_TRY(rq_decoder_open(&d, m, n_prompt + opt->max_tokens - 1, opt->device)); /* the last one is not fed */
    if (opt->temperature > 0) RQ_TRY(RQ_NEW(logits, n_vocab));
    result->n_prompt = n_prompt;

    opened = rq_seconds();
    result->open_seconds = opened - start;
    RQ_TRY(rq_decoder_feed(d, prompt, n_prompt));
    prefilled = rq_seconds();
    result->prefill_seconds = prefilled - opened;
    for (;;) {
        int32_t id;
        RQ_TRY(choose(d, &id, logits, n_vocab, opt, result->n_new));
        if (!opt->ignore_eos && is_eos(&m->cfg, id)) {
            result->hit_eos = true;
            break;
        }
        ids[result->n_new++] = id;
        RQ_TRY(announce(opt, id));
        if (result->n_new == opt->max_tokens) break;
        if (logits) RQ_TRY(rq_decoder_feed(d, &id, 1));
        ++n_steps;
    }
done:
    if (prefilled > 0) {
        result->decode_seconds = rq_seconds() - prefilled;
        if (result->prefill_seconds > 0) result->prefill_tok_s = (double)n_prompt / result->prefill_seconds;
        if (n_steps > 0 && result->decode_seconds > 0) result->decode_tok_s = (double)n_steps / result->decode_seconds;
    }
    free(logits);
    rq_decoder_close(d);
    return status;
}
