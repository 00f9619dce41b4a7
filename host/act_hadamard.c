/* SPDX-License-Identifier: Apache-2.0 */
/* The plain C definition of the Hadamard matrices of fmt_act.h: the core by Paley's constructions (rotate_hadamard.h), the powers of two by
 * butterflies. */
#include "act_hadamard.h"

#include <math.h>

#include "rotate_hadamard.h"

bool rq_hadamard_usable(int64_t size) {
    const int64_t k = size >= 2 ? rq_hadamard_core(size) : 0;
    return k >= 1 && k <= RQ_ACT_MAX_CORE;
}

rq_status rq_hadamard_make(rq_hadamard h[2], int64_t size) {
    rq_status status = RQ_OK;
    int8_t entry[RQ_ACT_MAX_CORE * RQ_ACT_MAX_CORE];
    if (!rq_hadamard_usable(size)) {
        RQ_FAIL(RQ_ERR_ARG,
                "no Hadamard matrix of order %lld for inputs: it is k * 2^p with one of order k, k at most %d",
                (long long)size, RQ_ACT_MAX_CORE);
    }
    const int k = (int)rq_hadamard_core(size);
    RQ_TRY(rq_hadamard_fill(entry, k));
    memset(h, 0, 2 * sizeof *h);
    for (int turned = 0; turned < 2; ++turned) {
        h[turned].size = (int)size;
        h[turned].core = k;
        h[turned].norm = (float)(1.0 / sqrt((double)size));
        for (int r = 0; r < k; ++r) {
            for (int c = 0; c < k; ++c) h[turned].row[r] |= (uint64_t)(entry[turned ? c * k + r : r * k + c] < 0) << c;
        }
    }
done:
    return status;
}

/* v[core][width] along its first index, column by column. */
static void apply_core(const rq_hadamard *h, float *v, int width) {
    float in[RQ_ACT_MAX_CORE];
    for (int i = 0; i < width; ++i) {
        for (int c = 0; c < h->core; ++c) in[c] = v[c * width + i];
        for (int r = 0; r < h->core; ++r) {
            float sum = h->row[r] & 1 ? -in[0] : in[0];
            for (int c = 1; c < h->core; ++c) sum = h->row[r] >> c & 1 ? sum - in[c] : sum + in[c];
            v[r * width + i] = sum;
        }
    }
}

void rq_hadamard_apply(const rq_hadamard *h, float *x, int64_t n) {
    const int width = h->size / h->core;
    for (float *v = x; v < x + n; v += h->size) {
        for (int half = 1; half < width; half *= 2) {
            for (int i = 0; i < h->size; i += 2 * half) {
                for (int k = i; k < i + half; ++k) {
                    const float a = v[k], b = v[k + half];
                    v[k] = a + b;
                    v[k + half] = a - b;
                }
            }
        }
        if (h->core > 1) apply_core(h, v, width);
        for (int i = 0; i < h->size; ++i) v[i] *= h->norm;
    }
}
