/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of activations as int8 (cuda/quantize_rows.cu), alone, after RMSNorm and after SiLU: the bytes, scales and sums of plain C on
 * host/fmt_act.h, whose own parts are held against double.
 * Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "act_case.h"

static void test(int n_tok, int n_in, bool bf16, bool fixed) {
    const size_t n = (size_t)n_tok * n_in;
    rq_rng rng = {(uint64_t)n_in * 31u + (uint64_t)n_tok};
    uint16_t *x = (uint16_t *)rq_host_alloc(n * 2);
    int8_t *want = (int8_t *)rq_host_alloc(n), *got = (int8_t *)rq_host_alloc(n);
    int32_t *sum = (int32_t *)rq_host_alloc((size_t)n_tok * 4), *got_sum = (int32_t *)rq_host_alloc((size_t)n_tok * 4);
    float *scale = (float *)rq_host_alloc((size_t)n_tok * 4), *got_scale = (float *)rq_host_alloc((size_t)n_tok * 4);
    for (int t = 0; t < n_tok; ++t) {
        uint16_t *row = x + (size_t)t * n_in;
        for (int j = 0; j < n_in; ++j) row[j] = bits_of(bf16, t == 2 ? 0.0f : ldexpf(rq_rand_float(&rng), t % 9 - 4));
        if (t == 1 && n_in > 8) { /* ties, and the ends of the range */
            for (int j = 0; j < 8; ++j) row[j] = bits_of(bf16, ((float)j - 3.5f) / 8);
            row[n_in - 1] = bits_of(bf16, -127.0f / 8);
        }
        if (t == 3) row[n_in / 2] = 0x7fff; /* NaN */
        float most = 0;
        for (int j = 0; j < n_in; ++j) most = fmaxf(most, fabsf(value_of(bf16, row[j])));
        scale[t] = fixed ? 0.005f * (float)(t + 1) : most / 127.0f;
        for (int j = 0; j < n_in; ++j) {
            float q = scale[t] > 0 ? nearbyintf(value_of(bf16, row[j]) / scale[t]) : 0.0f;
            q = q != q ? 0.0f : q > 127.0f ? 127.0f : q < -127.0f ? -127.0f : q;
            want[(size_t)t * n_in + j] = (int8_t)q, sum[t] += (int)q;
        }
    }
    rq_cuda_quantize_args a = {};
    a.q = (int8_t *)rq_device_buffer(n);
    a.scale = (float *)(fixed ? rq_device_copy(scale, (size_t)n_tok * 4) : rq_device_buffer((size_t)n_tok * 4));
    a.sum = (int32_t *)rq_device_buffer((size_t)n_tok * 4);
    a.x = rq_device_copy(x, n * 2);
    a.act = bf16 ? RQ_ACT_BF16 : RQ_ACT_F16, a.n_tok = n_tok, a.n_in = n_in, a.fixed = fixed;
    for (int early = 0; early < 2; ++early) {
        a.early_launch = early;
        EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_OK);
    }
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(got, a.q, n);
    rq_device_read(got_scale, a.scale, (size_t)n_tok * 4);
    rq_device_read(got_sum, a.sum, (size_t)n_tok * 4);
    for (size_t i = 0; i < n; ++i) EXPECT_EQ_AT(i, got[i], want[i]);
    for (int t = 0; t < n_tok; ++t) EXPECT(got_scale[t] == scale[t]);
    for (int t = 0; t < n_tok; ++t) EXPECT_EQ_AT(t, got_sum[t], sum[t]);
    rq_device_free_all();
    free(x), free(want), free(got), free(scale), free(got_scale), free(sum), free(got_sum);
}

/* ---- RMSNorm and SiLU */

static void test_fusion(enum fusion f, int n_tok, int n_in, bool bf16) {
    const bool split = f == SILU && n_in % 2 == 0; /* gate and up are halves of one row */
    const size_t n = (size_t)n_tok * n_in;
    rq_rng rng = {(uint64_t)n_in * 131u + (uint64_t)n_tok + (uint64_t)f * 7u};
    uint16_t *x = (uint16_t *)rq_host_alloc(2 * n * 2), *stream = (uint16_t *)rq_host_alloc(n * 2),
             *got_stream = (uint16_t *)rq_host_alloc(n * 2), *weight = (uint16_t *)rq_host_alloc((size_t)n_in * 2);
    int8_t *want = (int8_t *)rq_host_alloc(n), *got = (int8_t *)rq_host_alloc(n);
    float *h = (float *)rq_host_alloc((size_t)n_in * 4), *got_scale = (float *)rq_host_alloc((size_t)n_tok * 4);
    int32_t *got_sum = (int32_t *)rq_host_alloc((size_t)n_tok * 4);
    for (size_t i = 0; i < 2 * n; ++i) x[i] = bits_of(bf16, 4 * rq_rand_float(&rng));
    for (int j = 0; j < n_in; ++j) weight[j] = bits_of(bf16, 1 + rq_rand_float(&rng));
    if (n_tok > 1) memset(x + n_in, 0, (size_t)n_in * 2); /* a row of zeros, but with its residual */
    x[0] = bits_of(bf16, f == SILU ? -200.0f : 30.0f);
    const int64_t pitch = split ? 2 * n_in : n_in;
    const uint16_t *second = split ? x + n_in : x + n;
    void *d_x = rq_device_copy(x, 2 * n * 2), *d_weight = rq_device_copy(weight, (size_t)n_in * 2);
    const void *d_second = static_cast<uint16_t *>(d_x) + (second - x);
    void *d_stream = rq_device_buffer(n * 2);
    int8_t *q = (int8_t *)rq_device_buffer(n);
    float *scale = (float *)rq_device_buffer((size_t)n_tok * 4);
    int32_t *sum = (int32_t *)rq_device_buffer((size_t)n_tok * 4);
    const rq_act act = bf16 ? RQ_ACT_BF16 : RQ_ACT_F16;
    const float eps = 1e-5f;
    if (f == SILU) {
        rq_cuda_silu_args a = {};
        a.q = q, a.scale = scale, a.sum = sum, a.gate = d_x, a.up = d_second, a.pitch = pitch;
        a.act = act, a.n_tok = n_tok, a.n_in = n_in, a.early_launch = 1;
        EXPECT_EQ(rq_cuda_silu_quantize(&a, 0), RQ_OK);
    } else {
        rq_cuda_rmsnorm_args a = {};
        a.q = q, a.scale = scale, a.sum = sum, a.x = d_x, a.weight = f == NORM ? NULL : d_weight;
        a.eps = eps, a.act = act, a.n_tok = n_tok, a.n_in = n_in;
        if (f == NORM_RESIDUAL) a.residual = d_second, a.stream = d_stream;
        EXPECT_EQ(rq_cuda_rmsnorm_quantize(&a, 0), RQ_OK);
    }
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(got, q, n);
    rq_device_read(got_scale, scale, (size_t)n_tok * 4);
    rq_device_read(got_sum, sum, (size_t)n_tok * 4);
    if (f == NORM_RESIDUAL) rq_device_read(got_stream, d_stream, n * 2);
    for (int t = 0; t < n_tok; ++t) {
        float want_scale;
        definition(f, bf16, n_in, x + t * pitch, second + t * pitch, f == NORM ? NULL : weight, eps, h,
                   stream + (size_t)t * n_in);
        const int32_t want_sum = quantize(h, n_in, false, &want_scale, want + (size_t)t * n_in);
        EXPECT(got_scale[t] == want_scale);
        EXPECT_EQ_AT(t, got_sum[t], want_sum);
    }
    for (size_t i = 0; i < n; ++i) EXPECT_EQ_AT(i, got[i], want[i]);
    for (size_t i = 0; f == NORM_RESIDUAL && i < n; ++i) EXPECT_EQ_AT(i, got_stream[i], stream[i]);
    rq_device_free_all();
    free(x), free(stream), free(got_stream), free(weight), free(want), free(got), free(h), free(got_scale),
        free(got_sum);
}

/* Factors, and scales from a table, in the three kernels. */
static void test_after(enum fusion f, int n_in, bool factors, bool steps) {
    const int n_tok = ACT_ROWS;
    const size_t n = (size_t)n_tok * n_in;
    rq_rng rng = {(uint64_t)n_in * 17u + (uint64_t)f};
    uint16_t *x = (uint16_t *)rq_host_alloc(2 * n * 2), *stream = (uint16_t *)rq_host_alloc(n * 2);
    float *h = (float *)rq_host_alloc(n * 4), *factor = (float *)rq_host_alloc((size_t)n_in * 4);
    for (size_t i = 0; i < 2 * n; ++i) x[i] = bits_of(false, 2 * rq_rand_float(&rng));
    for (int j = 0; j < n_in; ++j) factor[j] = rq_rand_float(&rng);
    x[0] = 0x7fff; /* NaN, for its row where there is a norm */
    for (int t = 0; t < n_tok; ++t) {
        float *row = h + (size_t)t * n_in;
        if (f == FUSIONS)
            for (int j = 0; j < n_in; ++j) row[j] = value_of(false, x[(size_t)t * n_in + j]);
        else
            definition(f, false, n_in, x + (size_t)t * n_in, x + n + (size_t)t * n_in, NULL, 1e-5f, row, stream);
        for (int j = 0; factors && j < n_in; ++j) row[j] *= factor[j];
    }
    const uint16_t *d_x = (const uint16_t *)rq_device_copy(x, 2 * n * 2);
    int8_t *q = (int8_t *)rq_device_buffer(n);
    float *scale = (float *)rq_device_buffer((size_t)n_tok * 4);
    int32_t *sum = (int32_t *)rq_device_buffer((size_t)n_tok * 4);
    const float *d_factor = factors ? (const float *)rq_device_copy(factor, (size_t)n_in * 4) : NULL;
    const rq_act_steps table = steps ? act_steps_on_device() : rq_act_steps{};
    if (f == SILU) {
        rq_cuda_silu_args a = {};
        a.q = q, a.scale = scale, a.sum = sum, a.gate = d_x, a.up = d_x + n, a.pitch = n_in;
        a.n_tok = n_tok, a.n_in = n_in, a.factor = d_factor, a.steps = table;
        EXPECT_EQ(rq_cuda_silu_quantize(&a, 0), RQ_OK);
    } else if (f == NORM) {
        rq_cuda_rmsnorm_args a = {};
        a.q = q, a.scale = scale, a.sum = sum, a.x = d_x, a.eps = 1e-5f;
        a.n_tok = n_tok, a.n_in = n_in, a.factor = d_factor, a.steps = table;
        EXPECT_EQ(rq_cuda_rmsnorm_quantize(&a, 0), RQ_OK);
    } else {
        rq_cuda_quantize_args a = {};
        a.q = q, a.scale = scale, a.sum = sum, a.x = d_x;
        a.n_tok = n_tok, a.n_in = n_in, a.factor = d_factor, a.steps = table;
        EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_OK);
    }
    act_check(h, n_tok, n_in, steps, q, scale, sum);
    rq_device_free_all();
    free(x), free(stream), free(h), free(factor);
}

/* The parts of fmt_act.h against double. */
static void test_parts(void) {
    for (float x = -87.0f; x <= 87.0f; x += 0.0137f)
        EXPECT_NEAR_AT((long long)(x * 1e4f), rq_act_exp(x), exp((double)x), exp((double)x) * 0x1p-22);
    for (float x = -100.0f; x <= 100.0f; x += 0.0731f) {
        const double y = (double)x / (1 + exp(-(double)x));
        EXPECT_NEAR_AT((long long)(x * 1e4f), rq_act_silu(x), y, fabs(y) * 0x1p-20 + 1e-34);
    }
    static float partial[RQ_ACT_PARTIALS];
    rq_rng rng = {5};
    double sum = 0;
    for (int i = 0; i < RQ_ACT_PARTIALS; ++i) sum += partial[i] = rq_rand_float(&rng);
    EXPECT_NEAR(rq_act_sum(partial), sum, 1e-3);
}

int main(void) {
    rq_need_device(80);
    for (int bf16 = 0; bf16 < 2; ++bf16)
        for (int fixed = 0; fixed < 2; ++fixed) {
            test(1, 1, bf16, fixed);
            test(4, 37, bf16, fixed);
            test(5, 4096, bf16, fixed);
            test(16, 4104, bf16, fixed);
            test(3, 9001, bf16, fixed);
        }
    test_parts();
    for (int f = 0; f < FUSIONS; ++f)
        for (int bf16 = 0; bf16 < 2; ++bf16) {
            const enum fusion of = (enum fusion)f;
            test_fusion(of, 1, 7, bf16);
            test_fusion(of, 3, 576, bf16);
            test_fusion(of, 2, 4104, bf16);
            test_fusion(of, 2, 9002, bf16); /* rows that do not begin at multiples of 16 bytes */
            if (!rq_small()) test_fusion(of, 2, 16384, bf16), test_fusion(of, 1, 28672, bf16);
        }
    for (int flags = 1; flags < 4; ++flags)
        for (const int n_in : {37, 576, 2056}) {
            test_after(NORM, n_in, flags & 1, flags & 2);
            test_after(SILU, n_in, flags & 1, flags & 2);
            test_after(FUSIONS, n_in, flags & 1, flags & 2);
        }
    if (!rq_small()) test_after(FUSIONS, 17000, true, false), test_after(NORM, 17000, true, true);
    rq_cuda_rmsnorm_args norm = {};
    norm.n_in = 8, norm.n_tok = 1, norm.residual = &norm;
    EXPECT_EQ(rq_cuda_rmsnorm_quantize(&norm, 0), RQ_ERR_ARG);
    rq_cuda_silu_args silu = {};
    silu.n_in = 8, silu.n_tok = 1, silu.up = &silu, silu.pitch = 7;
    EXPECT_EQ(rq_cuda_silu_quantize(&silu, 0), RQ_ERR_ARG);
    rq_cuda_quantize_args a = {};
    a.n_in = 1;
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_ERR_ARG);
    a.n_in = 0;
    a.q = (int8_t *)16, a.scale = (float *)16, a.x = (void *)16, a.n_tok = 1;
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_ERR_UNSUPPORTED);
    return rq_done(__FILE__);
}
