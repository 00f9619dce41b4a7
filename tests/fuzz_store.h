/* SPDX-License-Identifier: Apache-2.0 */
/* What the fuzz targets do with a store that was accepted: read everything, through every reader. */
#ifndef RQ_FUZZ_STORE_H
#define RQ_FUZZ_STORE_H

#include "model_parse.h"

static inline void touch(const void *p, int64_t n) {
    static volatile uint8_t sum;
    for (int64_t i = 0; i < n; ++i) sum = (uint8_t)(sum + ((const uint8_t *)p)[i]);
}

static inline void read_tensors(const rq_store *s) {
    for (int64_t i = 0; i < rq_store_count(s); ++i) {
        const rq_tensor *t = rq_store_at(s, i);
        int64_t n = rq_tensor_numel(t);
        if (rq_store_find(s, t->name) != t) abort();
        touch(t->data, t->n_bytes);
        float *f = malloc((size_t)(n ? n : 1) * sizeof *f);
        if (!f) continue;
        if (rq_tensor_f32(t, f) == RQ_OK && t->rank == 2 && t->shape[0] > 0 &&
            rq_tensor_rows_f32(t, t->shape[0] - 1, 1, f) != RQ_OK) {
            abort();
        }
        (void)rq_tensor_check_finite(t);
        free(f);
    }
}

#endif
