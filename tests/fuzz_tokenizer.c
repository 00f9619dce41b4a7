/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target: tokenizer.json, or a GGUF file with a tokenizer in it. One that is accepted encodes a text, or refuses in
 * words; its ids decode; and written as tokenizer.json and read again it gives the same ids. */
#include "model_parse.h"
#include "tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char text[] = "  Hello, w\xc3\xb6rld 12345!\r\n\t<s> e\xcc\x81\xcc\xa3 \xe6\xbc\xa2\xe5\xad\x97 "
                           "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                           "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa  I'm <|x|>ab ab\xf0\x9f\x99\x82";

static void check_rewritten(const rq_tokenizer *t, rq_status status, const int32_t *ids, int64_t n) {
    rq_tokenizer *again;
    char *json;
    int32_t *ids2;
    int64_t n2;
    if (rq_tokenizer_to_json(t, &json) != RQ_OK) return;
    if (rq_tokenizer_open_json(&again, json, (int64_t)strlen(json), "again") != RQ_OK) {
        fprintf(stderr, "%s\n%s\n", rq_last_error(), json);
        abort();
    }
    rq_status status2 = rq_tokenizer_encode(again, text, (int64_t)sizeof text - 1, true, &ids2, &n2);
    if (status2 != status || n2 != n || (n > 0 && memcmp(ids, ids2, (size_t)n * sizeof *ids) != 0)) abort();
    free(ids2);
    free(json);
    rq_tokenizer_close(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    rq_store *s = NULL;
    rq_tokenizer *t = NULL;
    int32_t *ids;
    int64_t n, n_bytes;
    char *back;
    if (size >= 4 && memcmp(data, "GGUF", 4) == 0) {
        if (rq_store_open_memory(&s, data, (int64_t)size, "input") != RQ_OK) return 0;
        if (rq_tokenizer_open(&t, s) != RQ_OK) t = NULL;
    } else if (rq_tokenizer_open_json(&t, (const char *)data, (int64_t)size, "input") != RQ_OK) {
        t = NULL;
    }
    if (t) {
        rq_status status = rq_tokenizer_encode(t, text, (int64_t)sizeof text - 1, true, &ids, &n);
        check_rewritten(t, status, ids, n);
        if (status == RQ_OK && rq_tokenizer_decode(t, ids, n, false, &back, &n_bytes) == RQ_OK) free(back);
        free(ids);
        rq_tokenizer_close(t);
    }
    rq_store_close(s);
    return 0;
}
