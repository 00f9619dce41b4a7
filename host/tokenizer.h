/* SPDX-License-Identifier: Apache-2.0 */
/* Byte-level BPE as in GPT-2, SmolLM2, Llama-3 and Qwen2, from tokenizer.json or from GGUF metadata. */
#ifndef RQ_TOKENIZER_H
#define RQ_TOKENIZER_H

#include "model.h"

typedef struct rq_tokenizer rq_tokenizer;

/* From the store's folder (tokenizer.json) or its GGUF metadata. Normalizers, pre-tokenizers, models or decoders
 * that are not understood are refused by name (RQ_ERR_UNSUPPORTED). */
rq_status rq_tokenizer_open(rq_tokenizer **out, const rq_store *s);
rq_status rq_tokenizer_open_json(rq_tokenizer **out, const char *json_text, int64_t n_bytes, const char *label);
void rq_tokenizer_close(rq_tokenizer *t);
int64_t rq_tokenizer_n_vocab(const rq_tokenizer *t);

/* Text (UTF-8; n_bytes) to ids. Special tokens in the text are matched before BPE, as `tokenizers` does; with
 * add_special the post-processor's template (for example BOS) is applied. *ids is malloc'ed. Invalid UTF-8 is
 * RQ_ERR_INPUT with the byte offset. */
rq_status rq_tokenizer_encode(const rq_tokenizer *t, const char *text, int64_t n_bytes, bool add_special, int32_t **ids,
                              int64_t *n_ids);
/* Ids to text: malloc'ed, NUL-terminated; bytes that are no UTF-8 are kept as they are. */
rq_status rq_tokenizer_decode(const rq_tokenizer *t, const int32_t *ids, int64_t n_ids, bool skip_special, char **text,
                              int64_t *n_bytes);
/* tokenizer.json text for a tokenizer that came from GGUF (what Hugging Face `tokenizers` opens): free() it. */
rq_status rq_tokenizer_to_json(const rq_tokenizer *t, char **json_text);

#endif
