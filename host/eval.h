/* SPDX-License-Identifier: Apache-2.0 */
/* How good is a model: perplexity over windows of tokens, distance from a reference model, and text that it writes. */
#ifndef RQ_EVAL_H
#define RQ_EVAL_H

#include "decoder.h"
#include "tokenizer.h"

/* ---- perplexity, KL divergence ---------------------------------------------------------------------------------------- */

/* Called after each batch of windows with the mean nll so far; false stops the run (RQ_ERR_CANCELLED). */
typedef bool (*rq_eval_progress_fn)(void *user, int64_t windows_done, int64_t n_windows, double nll);

typedef struct rq_eval_opt {
    rq_eval_progress_fn progress; /* or NULL */
    void *user;
    double *window_nll; /* [n_windows], filled when set */
    double *window_kl;  /* the same; needs a reference */
    int64_t tile_rows;  /* rows of the head at a time; 0: 1024. More memory, not another result (up to rounding) */
} rq_eval_opt;

typedef struct rq_eval_result {
    int64_t n_windows, ctx;
    double nll, nll_stderr; /* mean of the windows' means over ctx - 1 predictions each; its error over windows */
    double ppl;             /* exp(nll) */
    double seconds;
    /* With a reference (has_ref), over all ctx positions of every window: */
    bool has_ref;
    double ref_nll, ref_ppl;
    double kl, kl_stderr; /* mean KL(reference || model) over the whole vocabulary, in nats */
    double top1_frac;     /* positions where both models' likeliest token is the same */
} rq_eval_result;

/* Windows are ids[n_windows][ctx]: not overlapping, each from position 0. ref is NULL or a model with the same vocabulary.
 * opt may be NULL. Work in batches of about 4096 tokens; logits exist only a tile at a time. A loss that is not finite is
 * RQ_ERR_NUMERIC. Same result for any thread count. */
rq_status rq_eval(const rq_model *m, const rq_model *ref, const int32_t *ids, int64_t n_windows, int64_t ctx,
                  const rq_eval_opt *opt, rq_eval_result *result);

/* A reference run once and kept (what its head multiplies: 4 d_model bytes per token), for comparing several models with it.
 * The reference model must stay open: its head is applied again each time. */
typedef struct rq_eval_ref rq_eval_ref;
rq_status rq_eval_ref_new(rq_eval_ref **out, const rq_model *ref, const int32_t *ids, int64_t n_windows, int64_t ctx);
void rq_eval_ref_free(rq_eval_ref *ref);
/* rq_eval on the reference's own windows. */
rq_status rq_eval_with(const rq_model *m, const rq_eval_ref *ref, const rq_eval_opt *opt, rq_eval_result *result);

/* ---- text --------------------------------------------------------------------------------------------------------------- */

typedef struct rq_generate_opt {
    int64_t max_tokens;
    double temperature; /* 0: the likeliest token each time */
    uint64_t seed;      /* of the sampling; same seed, same text */
    bool ignore_eos;
    const char *device;            /* as of decoder.h: NULL is the CPU */
    const rq_tokenizer *tokenizer; /* gives on_token its text; NULL: no text */
    /* Called with each new token; false stops (RQ_ERR_CANCELLED, the result is filled). A piece may end inside a UTF-8
     * character. */
    bool (*on_token)(void *user, int32_t id, const char *piece, int64_t n_bytes);
    void *user;
} rq_generate_opt;

typedef struct rq_generate_result {
    int64_t n_prompt, n_new;
    bool hit_eos; /* the model ended its text; its end token is not among the ids */
    double open_seconds, prefill_seconds, decode_seconds; /* the first: weights brought to a device */
    double prefill_tok_s, decode_tok_s;                   /* 0 when nothing was timed */
} rq_generate_result;

/* ids[max_tokens] receives the continuation of the prompt. */
rq_status rq_generate(const rq_model *m, int32_t *ids, const int32_t *prompt, int64_t n_prompt,
                      const rq_generate_opt *opt, rq_generate_result *result);

#endif
