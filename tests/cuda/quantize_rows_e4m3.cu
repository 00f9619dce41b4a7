/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of activations as e4m3 (cuda/quantize_rows.cu), alone, after RMSNorm and after SiLU: the bytes, scales and sums of plain C on
 * host/fmt_act.h, whose e4m3 is held against a search; and rows of q that do not follow each other, also of int8.
 * Libraries: requite. Targets: sm_80 sm_90a. */
#include "act_case.h"

/* ---- the definitions, apart from fmt_act.h */

static double e4m3_value(int code) {
    const int exponent = code >> 3 & 15, fraction = code & 7;
    const double size = exponent ? ldexp(8 + fraction, exponent - 10) : ldexp(fraction, -9);
    return code & 0x80 ? -size : size;
}
/* By search; of two that are as near, the even code. */
static uint8_t e4m3_nearest(double v) {
    if (v != v) return 0;
    int best = 0;
    for (int code = 1; code < 0x7f; ++code) {
        const double d = fabs(fabs(v) - e4m3_value(code)), least = fabs(fabs(v) - e4m3_value(best));
        if (d < least || (d == least && code % 2 == 0)) best = code;
    }
    return (uint8_t)(best | (signbit(v) ? 0x80 : 0));
}

typedef struct row_codes { /* of one row */
    float scale;
    int32_t sum;
    uint8_t *q;
    float *block_sum;
} row_codes;

/* In double, where sums of 128 are exact. fixed: the scale in *r is kept. */
static void codes_of(const float *h, int n, bool e4m3, bool fixed, row_codes *r) {
    float most = 0;
    for (int j = 0; j < n; ++j) most = fmaxf(most, fabsf(h[j]));
    if (!fixed) r->scale = most / (e4m3 ? 448.0f : 127.0f);
    r->sum = 0;
    for (int j = 0; j < n; j += 128) {
        double block = 0;
        for (int k = j; k < n && k < j + 128; ++k) {
            float v = r->scale > 0 ? h[k] / r->scale : 0.0f;
            if (e4m3) {
                r->q[k] = r->scale > 0 ? e4m3_nearest(v) : 0;
                block += e4m3_value(r->q[k]);
            } else {
                v = nearbyintf(v);
                v = v != v ? 0.0f : v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v;
                r->q[k] = (uint8_t)(int8_t)v, r->sum += (int8_t)v;
            }
        }
        r->block_sum[j / 128] = (float)block;
    }
}

/* What a kernel writes: rows of a pitch of their own, between bytes that stay. */
typedef struct target {
    uint8_t *q;
    float *scale, *block_sum;
    int32_t *sum;
    int n_tok, n_in, pitch, n_block, sum_pitch;
    bool e4m3;
} target;
static target target_of(int n_tok, int n_in, bool e4m3, const float *fixed) {
    target t = {};
    t.n_tok = n_tok, t.n_in = n_in, t.e4m3 = e4m3, t.pitch = (n_in + 31) / 16 * 16;
    t.n_block = (n_in + 127) / 128, t.sum_pitch = (n_tok + 3) / 4 * 4;
    t.q = (uint8_t *)rq_device_buffer((size_t)n_tok * t.pitch);
    CHECK_CUDA(cudaMemset(t.q, 0x55, (size_t)n_tok * t.pitch));
    t.scale = (float *)(fixed ? rq_device_copy(fixed, (size_t)n_tok * 4) : rq_device_buffer((size_t)n_tok * 4));
    if (e4m3)
        t.block_sum = (float *)rq_device_buffer((size_t)t.n_block * t.sum_pitch * 4);
    else
        t.sum = (int32_t *)rq_device_buffer((size_t)n_tok * 4);
    return t;
}
template <class ARGS> static void set_target(ARGS *a, const target *t) {
    a->q = (int8_t *)t->q, a->scale = t->scale, a->sum = t->sum, a->q_pitch = t->pitch, a->block_sum = t->block_sum;
    a->n_tok = t->n_tok, a->n_in = t->n_in;
}
/* h: [n_tok][n_in]; fixed: scales, or NULL. */
static void compare(const target *t, const float *h, const float *fixed) {
    const size_t n = (size_t)t->n_tok * t->pitch, n_sum = (size_t)t->n_block * t->sum_pitch;
    uint8_t *got = (uint8_t *)rq_host_alloc(n), *want = (uint8_t *)rq_host_alloc((size_t)t->n_in);
    float *scale = (float *)rq_host_alloc((size_t)t->n_tok * 4), *block = (float *)rq_host_alloc(n_sum * 4),
          *want_block = (float *)rq_host_alloc((size_t)t->n_block * 4);
    int32_t *sum = (int32_t *)rq_host_alloc((size_t)t->n_tok * 4);
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(got, t->q, n);
    rq_device_read(scale, t->scale, (size_t)t->n_tok * 4);
    if (t->e4m3)
        rq_device_read(block, t->block_sum, n_sum * 4);
    else
        rq_device_read(sum, t->sum, (size_t)t->n_tok * 4);
    for (int i = 0; i < t->n_tok; ++i) {
        row_codes r = {fixed ? fixed[i] : 0, 0, want, want_block};
        codes_of(h + (size_t)i * t->n_in, t->n_in, t->e4m3, fixed != NULL, &r);
        EXPECT(rq_bits_of_float(scale[i]) == rq_bits_of_float(r.scale));
        for (int j = 0; j < t->pitch; ++j)
            EXPECT_EQ_AT(i * t->pitch + j, got[(size_t)i * t->pitch + j], j < t->n_in ? want[j] : 0x55);
        if (!t->e4m3) EXPECT_EQ_AT(i, sum[i], r.sum);
        for (int b = 0; t->e4m3 && b < t->n_block; ++b) EXPECT(block[(size_t)b * t->sum_pitch + i] == want_block[b]);
    }
    free(got), free(want), free(scale), free(block), free(want_block), free(sum);
}

static void test(int n_tok, int n_in, bool bf16, bool fixed, bool e4m3) {
    const size_t n = (size_t)n_tok * n_in;
    rq_rng rng = {(uint64_t)n_in * 31u + (uint64_t)n_tok};
    uint16_t *x = (uint16_t *)rq_host_alloc(n * 2);
    float *h = (float *)rq_host_alloc(n * 4), *scale = (float *)rq_host_alloc((size_t)n_tok * 4);
    for (int t = 0; t < n_tok; ++t) {
        uint16_t *row = x + (size_t)t * n_in;
        for (int j = 0; j < n_in; ++j) row[j] = bits_of(bf16, t == 2 ? 0.0f : ldexpf(rq_rand_float(&rng), t % 9 - 4));
        if (t == 1 && n_in > 8) { /* ties, and the ends of the range */
            for (int j = 0; j < 8; ++j) row[j] = bits_of(bf16, ((float)j - 3.5f) / 8);
            row[n_in - 1] = bits_of(bf16, (e4m3 ? -448.0f : -127.0f) / 8);
        }
        for (int j = 0; t == 4 && j < n_in;
             ++j) /* every power of two, and what lies half way above it, for a scale of 1 */
            row[j] = bits_of(bf16, j ? ldexpf(j % 2 ? 1.0625f : 1.0f, j / 2 % 22 - 13) : 448.0f);
        if (t == 3) row[n_in / 2] = 0x7fff; /* NaN */
        scale[t] = 0.005f * (float)(t + 1);
    }
    for (size_t i = 0; i < n; ++i) h[i] = value_of(bf16, x[i]);
    const target to = target_of(n_tok, n_in, e4m3, fixed ? scale : NULL);
    rq_cuda_quantize_args a = {};
    set_target(&a, &to);
    a.x = rq_device_copy(x, n * 2), a.act = bf16 ? RQ_ACT_BF16 : RQ_ACT_F16, a.fixed = fixed;
    for (int early = 0; early < 2; ++early) {
        a.early_launch = early;
        EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_OK);
    }
    compare(&to, h, fixed ? scale : NULL);
    rq_device_free_all();
    free(x), free(h), free(scale);
}

/* fmt_act.h's e4m3: every code, every number half way between two, and its neighbours. */
static void test_e4m3(void) {
    for (int code = 0; code < 256; ++code) {
        if ((code & 0x7f) == 0x7f) continue;
        const float v = rq_e4m3_value((uint8_t)code);
        EXPECT(v == (float)e4m3_value(code));
        EXPECT_EQ_AT(code, rq_e4m3_of(code == 0x80 ? -0.0f : v), code);
        EXPECT_EQ_AT(code, rq_e4m3_units((uint8_t)code), (int)(e4m3_value(code) * 512));
        if ((code & 0x7f) == 0x7e) continue; /* the largest: no neighbour */
        const float half = (float)((e4m3_value(code) + e4m3_value(code + 1)) / 2);
        for (int by = -1; by <= 1; ++by) {
            const float near = by ? nextafterf(half, by * 1000.0f) : half;
            EXPECT_EQ_AT(code, rq_e4m3_of(near), e4m3_nearest(near));
        }
    }
    rq_rng rng = {9};
    for (int i = 0; i < 20000; ++i) {
        const float v = ldexpf(rq_rand_float(&rng), (int)(rq_rand_u32(&rng) % 24) - 13);
        EXPECT_EQ_AT(i, rq_e4m3_of(v), e4m3_nearest(v));
    }
    EXPECT_EQ(rq_e4m3_of(1e30f), 0x7e);
    EXPECT_EQ(rq_e4m3_of(-HUGE_VALF), 0xfe);
    EXPECT_EQ(rq_e4m3_of(nanf("")), 0);
}

/* ---- RMSNorm and SiLU */

static void test_fusion(enum fusion f, int n_tok, int n_in, bool bf16, bool e4m3) {
    const bool split = f == SILU && n_in % 2 == 0; /* gate and up are halves of one row */
    const size_t n = (size_t)n_tok * n_in;
    rq_rng rng = {(uint64_t)n_in * 131u + (uint64_t)n_tok + (uint64_t)f * 7u};
    uint16_t *x = (uint16_t *)rq_host_alloc(2 * n * 2), *stream = (uint16_t *)rq_host_alloc(n * 2),
             *got_stream = (uint16_t *)rq_host_alloc(n * 2), *weight = (uint16_t *)rq_host_alloc((size_t)n_in * 2);
    float *h = (float *)rq_host_alloc(n * 4);
    for (size_t i = 0; i < 2 * n; ++i) x[i] = bits_of(bf16, 4 * rq_rand_float(&rng));
    for (int j = 0; j < n_in; ++j) weight[j] = bits_of(bf16, 1 + rq_rand_float(&rng));
    if (n_tok > 1) memset(x + n_in, 0, (size_t)n_in * 2); /* a row of zeros, but with its residual */
    x[0] = bits_of(bf16, f == SILU ? -200.0f : 30.0f);
    const int64_t pitch = split ? 2 * n_in : n_in;
    const uint16_t *second = split ? x + n_in : x + n;
    void *d_x = rq_device_copy(x, 2 * n * 2), *d_weight = rq_device_copy(weight, (size_t)n_in * 2);
    const void *d_second = static_cast<uint16_t *>(d_x) + (second - x);
    void *d_stream = rq_device_buffer(n * 2);
    const target to = target_of(n_tok, n_in, e4m3, NULL);
    const rq_act act = bf16 ? RQ_ACT_BF16 : RQ_ACT_F16;
    const float eps = 1e-5f;
    if (f == SILU) {
        rq_cuda_silu_args a = {};
        set_target(&a, &to);
        a.gate = d_x, a.up = d_second, a.pitch = pitch, a.act = act, a.early_launch = 1;
        EXPECT_EQ(rq_cuda_silu_quantize(&a, 0), RQ_OK);
    } else {
        rq_cuda_rmsnorm_args a = {};
        set_target(&a, &to);
        a.x = d_x, a.weight = f == NORM ? NULL : d_weight, a.eps = eps, a.act = act;
        if (f == NORM_RESIDUAL) a.residual = d_second, a.stream = d_stream;
        EXPECT_EQ(rq_cuda_rmsnorm_quantize(&a, 0), RQ_OK);
    }
    for (int t = 0; t < n_tok; ++t)
        definition(f, bf16, n_in, x + t * pitch, second + t * pitch, f == NORM ? NULL : weight, eps,
                   h + (size_t)t * n_in, stream + (size_t)t * n_in);
    compare(&to, h, NULL);
    if (f == NORM_RESIDUAL) rq_device_read(got_stream, d_stream, n * 2);
    for (size_t i = 0; f == NORM_RESIDUAL && i < n; ++i) EXPECT_EQ_AT(i, got_stream[i], stream[i]);
    rq_device_free_all();
    free(x), free(stream), free(got_stream), free(weight), free(h);
}

/* Factors of columns, and scales from a table. */
static void test_factors_and_steps(void) {
    enum { N_IN = 300 };
    rq_rng rng = {77};
    uint16_t x[ACT_ROWS][N_IN];
    float factor[N_IN], h[ACT_ROWS][N_IN], scale[ACT_ROWS];
    for (int j = 0; j < N_IN; ++j) factor[j] = rq_rand_float(&rng);
    for (int t = 0; t < ACT_ROWS; ++t)
        for (int j = 0; j < N_IN; ++j) {
            x[t][j] = rq_half_bits(rq_rand_float(&rng));
            h[t][j] = rq_half_value(x[t][j]) * factor[j];
        }
    const target to = target_of(ACT_ROWS, N_IN, true, NULL);
    rq_cuda_quantize_args a = {};
    set_target(&a, &to);
    a.x = rq_device_copy(x, sizeof x), a.act = RQ_ACT_F16;
    a.factor = (const float *)rq_device_copy(factor, sizeof factor);
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_OK);
    compare(&to, h[0], NULL);
    a.steps = act_steps_on_device();
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_OK);
    for (int t = 0; t < ACT_ROWS; ++t) scale[t] = act_scale(t);
    compare(&to, h[0], scale);
    rq_device_free_all();
}

int main(void) {
    rq_need_device(80);
    test_e4m3();
    for (int kind = 0; kind < 8; ++kind) {
        const bool bf16 = kind & 1, fixed = kind & 2, e4m3 = kind & 4;
        test(1, 1, bf16, fixed, e4m3);
        test(5, 37, bf16, fixed, e4m3);
        test(5, 4096, bf16, fixed, e4m3);
        if (!rq_small() || fixed) test(16, 4104, bf16, fixed, e4m3);
        test(3, 9001, bf16, fixed, e4m3);
    }
    test(1, 17000, false, false, true);
    for (int f = 0; f < FUSIONS; ++f)
        for (int kind = 0; kind < 4; ++kind) {
            const enum fusion of = (enum fusion)f;
            const bool bf16 = kind & 1, e4m3 = kind & 2;
            test_fusion(of, 1, 7, bf16, e4m3);
            test_fusion(of, 3, 576, bf16, e4m3);
            if (!e4m3 || !rq_small()) test_fusion(of, 2, 4104, bf16, e4m3);
            test_fusion(of, 2, 9002, bf16, e4m3); /* rows that do not begin at multiples of 16 bytes */
            if (!rq_small()) test_fusion(of, 2, 16384, bf16, e4m3), test_fusion(of, 1, 28672, bf16, e4m3);
        }
    test_factors_and_steps();
    rq_hadamard h = {};
    rq_cuda_quantize_args a = {};
    a.q = (int8_t *)16, a.scale = (float *)16, a.x = (void *)16, a.n_tok = 1, a.n_in = 32, a.q_pitch = 16;
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_ERR_ARG);
    a.q_pitch = 0, a.sum = (int32_t *)16, a.block_sum = (float *)16;
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_ERR_ARG);
    a.sum = NULL, a.hadamard = &h;
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_ERR_UNSUPPORTED);
    return rq_done(__FILE__);
}
