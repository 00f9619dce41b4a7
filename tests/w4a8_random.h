/* SPDX-License-Identifier: Apache-2.0 */
/* Random numbers and random W4A8 matrices for tests of products: included once by a program, after cmocka. */
#ifndef RQ_TEST_W4A8_RANDOM_H
#define RQ_TEST_W4A8_RANDOM_H

#include "formats.h"

static uint64_t seed = 9;

static inline uint32_t draw(uint32_t below) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((seed >> 33) % below);
}

static inline float noise(void) { return (float)((int32_t)draw(1u << 24) - (1 << 23)) * 0x1p-22f; }

static inline void *must_alloc(int64_t n, size_t size) {
    void *p;
    assert_int_equal(rq_alloc(&p, n, size), RQ_OK);
    return p;
}

static inline float *random_f32(int64_t n) {
    float *p = must_alloc(n, sizeof *p);
    for (int64_t i = 0; i < n; ++i) p[i] = noise();
    return p;
}

/* extreme: levels at the ends of their range. */
static inline void make_weights(rq_packed *p, int64_t n_out, int64_t n_in, int64_t group, bool sym, bool extreme,
                                const float *in_scale, int hadamard) {
    int64_t n = group ? n_out * rq_ceil_div(n_in, group) : 0;
    uint8_t *codes = must_alloc(n_out * n_in, 1), *zero = must_alloc(n_out, 1), *step = must_alloc(n, 1);
    int8_t *base = must_alloc(n, 1);
    float *scale = random_f32(n_out);
    for (int64_t i = 0; i < n_out * n_in; ++i) codes[i] = (uint8_t)(extreme ? i / n_in % 2 * 15 : draw(16));
    for (int64_t i = 0; i < n_out; ++i) zero[i] = (uint8_t)(extreme ? i % 3 / 2 * 15 : draw(16));
    for (int64_t k = 0; k < n; ++k) {
        step[k] = (uint8_t)(extreme ? 17 : 1 + draw(17));
        base[k] = (int8_t)((int)draw(256u - 15u * step[k]) - 128);
    }
    const rq_w4a8_codes q = {.n_out = n_out,
                             .n_in = n_in,
                             .group = group,
                             .codes = codes,
                             .scale = scale,
                             .zero = group || sym ? NULL : zero,
                             .step = group ? step : NULL,
                             .base = group ? base : NULL,
                             .in_scale = in_scale,
                             .hadamard = hadamard};
    assert_int_equal(rq_w4a8_pack(p, &q), RQ_OK);
    free(codes), free(zero), free(step), free(base), free(scale);
}

#endif
