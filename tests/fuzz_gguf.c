/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target: bytes behind the magic of a GGUF file. What is accepted is read whole, metadata and configuration too. */
#include "fuzz_store.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_metadata(const rq_store *s) {
    for (int64_t i = 0; i < s->n_meta; ++i) {
        const char *key = s->meta[i].key, *text;
        rq_meta_array a;
        int64_t n, v;
        double f;
        bool yes;
        (void)rq_meta_i64(s, key, &v);
        (void)rq_meta_f64(s, key, &f);
        (void)rq_meta_bool(s, key, &yes);
        if (rq_meta_str(s, key, &text, &n)) touch(text, n);
        if (!rq_meta_array_get(s, key, &a)) continue;
        for (int64_t k = 0; k < a.n; ++k) {
            if (rq_meta_array_str(&a, k, &text, &n)) touch(text, n);
            (void)rq_meta_array_i64(&a, k, &v);
            (void)rq_meta_array_f64(&a, k, &f);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    rq_store *s = NULL;
    rq_config c;
    uint8_t *file = malloc(size + 4); /* of the exact size, so that reads past the end are seen */
    if (!file) return 0;
    memcpy(file, "GGUF", 4);
    if (size) memcpy(file + 4, data, size);
    if (rq_store_open_memory(&s, file, (int64_t)size + 4, "input") == RQ_OK) {
        read_tensors(s);
        read_metadata(s);
        char *json = NULL;
        if (rq_config_load(&c, s) == RQ_OK && rq_config_to_json(&c, &json) == RQ_OK) free(json);
        rq_store_close(s);
    }
    free(file);
    return 0;
}
