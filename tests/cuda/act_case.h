/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of activations as int8 share: 16-bit numbers, and rows h in the words of host/fmt_act.h, in plain C. */
#ifndef RQ_ACT_CASE_H
#define RQ_ACT_CASE_H
#include "cudatest.h"
#include "fmt_act.h"
#include "rq_cuda.h"

static inline uint16_t bits_of(bool bf16, float v) { return bf16 ? rq_bf16_bits(v) : rq_half_bits(v); }
static inline float value_of(bool bf16, uint16_t b) { return bf16 ? rq_bf16_value(b) : rq_half_value(b); }

/* Scale and bytes of a row, and their sum, which is returned. fixed: the scale is there already. */
static inline int32_t quantize(const float *h, int n, bool fixed, float *scale, int8_t *q) {
    float most = 0;
    int32_t sum = 0;
    for (int j = 0; j < n; ++j) most = fmaxf(most, fabsf(h[j]));
    if (!fixed) *scale = most / 127.0f;
    for (int j = 0; j < n; ++j) {
        const float v = *scale > 0 ? nearbyintf(h[j] / *scale) : 0.0f;
        q[j] = (int8_t)(v != v ? 0.0f : v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v);
        sum += q[j];
    }
    return sum;
}

enum fusion { NORM, NORM_WEIGHT, NORM_RESIDUAL, SILU, FUSIONS };

/* The row h of a token, and what goes on as the residual stream. */
static inline void definition(enum fusion f, bool bf16, int n, const uint16_t *x, const uint16_t *second,
                              const uint16_t *weight, float eps, float *h, uint16_t *stream) {
    static float partial[RQ_ACT_PARTIALS];
    memset(partial, 0, sizeof partial);
    for (int j = 0; j < n; ++j) {
        h[j] = value_of(bf16, x[j]);
        if (f == SILU) {
            h[j] = rq_act_silu(h[j]) * value_of(bf16, second[j]);
        } else if (f == NORM_RESIDUAL) {
            stream[j] = bits_of(bf16, h[j] + value_of(bf16, second[j]));
            h[j] = value_of(bf16, stream[j]);
        }
        partial[j % RQ_ACT_PARTIALS] += h[j] * h[j];
    }
    if (f == SILU) return;
    const float r = 1.0f / sqrtf(rq_act_sum(partial) / (float)n + eps);
    for (int j = 0; j < n; ++j) {
        h[j] *= r;
        if (weight) h[j] *= value_of(bf16, weight[j]);
    }
}

/* One block times a Hadamard matrix, in place, in the order of sums of fmt_act.h. */
static inline void act_hadamard(const rq_hadamard *h, float *v) {
    static float to[32768];
    const int width = h->size / h->core;
    for (int half = 1; half < width; half *= 2) {
        for (int i = 0; i < h->size; ++i) to[i] = i % width & half ? v[i - half] - v[i] : v[i] + v[i + half];
        memcpy(v, to, (size_t)h->size * sizeof *v);
    }
    for (int i = 0; i < h->size; ++i) {
        const int r = i / width;
        to[i] = h->row[r] & 1 ? -v[i % width] : v[i % width];
        for (int c = 1; c < h->core; ++c) {
            const float x = v[c * width + i % width];
            to[i] = h->row[r] >> c & 1 ? to[i] - x : to[i] + x;
        }
    }
    for (int i = 0; i < h->size; ++i) v[i] = to[i] * h->norm;
}

/* One whose core has random signs: kernels take any. */
static inline rq_hadamard act_hadamard_random(int core, int width, rq_rng *rng) {
    rq_hadamard h = {};
    h.size = core * width, h.core = core, h.norm = (float)(1.0 / sqrt((double)h.size));
    for (int r = 0; core > 1 && r < core; ++r) h.row[r] = rq_rand_u64(rng) >> (64 - core);
    return h;
}

/* Five rows, two a step, with a table: its index, and the scale of each row. One step is not in the table, and one scale is 0. */
enum { ACT_ROWS = 5, ACT_STEPS = 4, ACT_ROWS_PER_STEP = 2 };
static const int32_t act_step[3] = {2, ACT_STEPS, 3};
static const float act_table[ACT_STEPS] = {0.5f, 0.25f, 0.017f, 0.0f};
static inline float act_scale(int t) { return t / 2 == 1 ? NAN : t / 2 == 0 ? act_table[2] : act_table[3]; }
static inline rq_act_steps act_steps_on_device(void) {
    return {(const float *)rq_device_copy(act_table, sizeof act_table),
            (const int32_t *)rq_device_copy(act_step, sizeof act_step), ACT_STEPS, ACT_ROWS_PER_STEP};
}

/* What a kernel made of rows h[n_tok][n_in], against plain C. steps: with the table above. */
static inline void act_check(const float *h, int n_tok, int n_in, bool steps, const int8_t *q, const float *scale,
                             const int32_t *sum) {
    const size_t n = (size_t)n_tok * n_in;
    int8_t *got = (int8_t *)rq_host_alloc(n), *want = (int8_t *)rq_host_alloc((size_t)n_in);
    float *got_scale = (float *)rq_host_alloc((size_t)n_tok * 4);
    int32_t *got_sum = (int32_t *)rq_host_alloc((size_t)n_tok * 4);
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(got, q, n);
    rq_device_read(got_scale, scale, (size_t)n_tok * 4);
    rq_device_read(got_sum, sum, (size_t)n_tok * 4);
    for (int t = 0; t < n_tok; ++t) {
        float want_scale = steps ? act_scale(t) : 0.0f;
        const int32_t want_sum = quantize(h + (size_t)t * n_in, n_in, steps, &want_scale, want);
        EXPECT(rq_bits_of_float(got_scale[t]) == rq_bits_of_float(want_scale));
        EXPECT_EQ_AT(t, got_sum[t], want_sum);
        for (int j = 0; j < n_in; ++j) EXPECT_EQ_AT(t * 100000 + j, got[(size_t)t * n_in + j], want[j]);
    }
    free(got), free(want), free(got_scale), free(got_sum);
}
#endif
