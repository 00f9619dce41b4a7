/* SPDX-License-Identifier: Apache-2.0 */
/* Writing text: prefill, then a token at a time, the likeliest or drawn from softmax(logits / temperature). */
#include <math.h>

#include "eval.h"
#include "random.h"

static int32_t likeliest(const float *logits, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; ++i) {
        if (logits[i] > logits[best]) best = i;
    }
    return (int32_t)best;
}

/* Inverse of the cumulative distribution at u in [0, 1), summed in order of ids. */
static int32_t draw(const float *logits, int64_t n, double temperature, double u) {
    double top = (double)logits[likeliest(logits, n)], sum = 0, below = 0;
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

rq_status rq_generate(const rq_model *m, int32_t *ids, const int32_t *prompt, int64_t n_prompt,
                      const rq_generate_opt *opt, rq_generate_result *result) {
    rq_status status = RQ_OK;
    rq_decode_state *s = NULL;
    float *logits = NULL;
    double start = 0, prefilled = 0;
    int64_t n_vocab = m->cfg.n_vocab, n_steps = 0;
    memset(result, 0, sizeof *result);
    RQ_TRY(check_request(m, n_prompt, opt));
    RQ_TRY(rq_decode_new(&s, m, n_prompt + opt->max_tokens));
    RQ_TRY(RQ_NEW(logits, n_vocab));
    result->n_prompt = n_prompt;

    start = rq_seconds();
    RQ_TRY(rq_decode(s, prompt, n_prompt, logits));
    prefilled = rq_seconds();
    result->prefill_seconds = prefilled - start;
    for (;;) {
        for (int64_t i = 0; i < n_vocab; ++i) {
            if (!isfinite(logits[i])) {
                RQ_FAIL(RQ_ERR_NUMERIC, "the logit of token %lld is %g", (long long)i, (double)logits[i]);
            }
        }
        double u = rq_random_unit(opt->seed, (uint64_t)result->n_new);
        int32_t id = opt->temperature > 0 ? draw(logits, n_vocab, opt->temperature, u) : likeliest(logits, n_vocab);
        if (!opt->ignore_eos && is_eos(&m->cfg, id)) {
            result->hit_eos = true;
            break;
        }
        ids[result->n_new++] = id;
        RQ_TRY(announce(opt, id));
        if (result->n_new == opt->max_tokens) break;
        RQ_TRY(rq_decode(s, &id, 1, logits));
        ++n_steps;
    }
done:
    if (prefilled > 0) {
        result->decode_seconds = rq_seconds() - prefilled;
        if (result->prefill_seconds > 0) result->prefill_tok_s = (double)n_prompt / result->prefill_seconds;
        if (n_steps > 0 && result->decode_seconds > 0) result->decode_tok_s = (double)n_steps / result->decode_seconds;
    }
    free(logits);
    rq_decode_free(s);
    return status;
}
