/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of activations as int8 (cuda/quantize_rows.cu): the bytes and scales of plain C.
 * Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "cudatest.h"
#include "rq_cuda.h"

static uint16_t bits_of(bool bf16, float v) { return bf16 ? rq_bf16_bits(v) : rq_half_bits(v); }
static float value_of(bool bf16, uint16_t b) { return bf16 ? rq_bf16_value(b) : rq_half_value(b); }

static void test(int n_tok, int n_in, bool bf16, bool fixed) {
    const size_t n = (size_t)n_tok * n_in;
    rq_rng rng = {(uint64_t)n_in * 31u + (uint64_t)n_tok};
    uint16_t *x = (uint16_t *)rq_host_alloc(n * 2);
    int8_t *want = (int8_t *)rq_host_alloc(n), *got = (int8_t *)rq_host_alloc(n);
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
            want[(size_t)t * n_in + j] = (int8_t)q;
        }
    }
    rq_cuda_quantize_args a = {};
    a.q = (int8_t *)rq_device_buffer(n);
    a.scale = (float *)(fixed ? rq_device_copy(scale, (size_t)n_tok * 4) : rq_device_buffer((size_t)n_tok * 4));
    a.x = rq_device_copy(x, n * 2);
    a.act = bf16 ? RQ_ACT_BF16 : RQ_ACT_F16, a.n_tok = n_tok, a.n_in = n_in, a.fixed = fixed;
    for (int early = 0; early < 2; ++early) {
        a.early_launch = early;
        EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_OK);
    }
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(got, a.q, n);
    rq_device_read(got_scale, a.scale, (size_t)n_tok * 4);
    for (size_t i = 0; i < n; ++i) EXPECT_EQ_AT(i, got[i], want[i]);
    for (int t = 0; t < n_tok; ++t) EXPECT_EQ_AT(t, got_scale[t], scale[t]);
    rq_device_free_all();
    free(x), free(want), free(got), free(scale), free(got_scale);
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
    rq_cuda_quantize_args a = {};
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_ERR_ARG);
    a.q = (int8_t *)16, a.scale = (float *)16, a.x = (void *)16, a.n_tok = 1;
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_ERR_UNSUPPORTED);
    return rq_done(__FILE__);
}
