/* SPDX-License-Identifier: Apache-2.0 */
/* Where a model generates: one table of a few operations, with a row for the CPU (decoder.c: rq_decode) and one for CUDA (backend_cuda_decode.c).
 * What asks for text knows neither. docs/devices.md says what a GPU does. */
#ifndef RQ_DECODER_H
#define RQ_DECODER_H

#include "llama.h"

typedef struct rq_decoder_ops {
    /* A cache for max_seq tokens of m, which stays open meanwhile. index: of the GPU. */
    rq_status (*open)(void **own, const rq_model *m, int64_t max_seq, int index);
    void (*close)(void *own);
    /* As below; the arguments have been checked. */
    rq_status (*feed)(void *own, const int32_t *ids, int64_t n_tok);
    rq_status (*logits)(void *own, float *logits);
    rq_status (*next)(void *own, int32_t *id);
} rq_decoder_ops;

extern const rq_decoder_ops rq_decoder_cpu;
extern const rq_decoder_ops rq_decoder_cuda; /* where the program has it */

typedef struct rq_decoder rq_decoder;

/* device: NULL, or a name of device.h. */
rq_status rq_decoder_open(rq_decoder **out, const rq_model *m, int64_t max_seq, const char *device);
void rq_decoder_close(rq_decoder *d);
int64_t rq_decoder_pos(const rq_decoder *d); /* tokens that have been fed */
/* The next tokens; all of their work is done when it returns. After a failure nothing of them counts. */
rq_status rq_decoder_feed(rq_decoder *d, const int32_t *ids, int64_t n_tok);
/* logits[n_vocab] after the last token that was fed. */
rq_status rq_decoder_logits(rq_decoder *d, float *logits);
/* The likeliest token after what was fed, the one with the lowest number of several; it is fed with that, which may be under way, or not yet
 * begun, when this returns. RQ_ERR_NUMERIC when a logit is not finite. The last one that fits is not fed: only close may follow. */
rq_status rq_decoder_next(rq_decoder *d, int32_t *id);

/* The likeliest of logits[n], and RQ_ERR_NUMERIC for one that is not finite. */
rq_status rq_likeliest(int32_t *id, const float *logits, int64_t n);

#endif
