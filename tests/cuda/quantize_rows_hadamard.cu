/* SPDX-License-Identifier: Apache-2.0 */
/* Rows, also after RMSNorm or SiLU, times a Hadamard matrix, then factors and int8 (cuda/quantize_rows_hadamard.cu): the bytes, scales and sums of plain C on the sums that
 * host/fmt_act.h words. The signs of the core are random here: the kernel takes any.
 * Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "act_case.h"
#include "rq_cuda_hadamard.h"

typedef struct turn {
    int core, width, n_in, n_tok;
    bool bf16, silu, factor, steps;
} turn;

static void test(turn c) {
    rq_rng rng = {(uint64_t)c.n_in * 131u + (uint64_t)c.core * 7u + (uint64_t)c.silu};
    const int pitch = c.silu ? 2 * c.n_in : c.n_in; /* gate and up are halves of one row */
    const size_t n = (size_t)c.n_tok * c.n_in;
    const rq_hadamard h = act_hadamard_random(c.core, c.width, &rng);
    uint16_t *x = (uint16_t *)rq_host_alloc((size_t)c.n_tok * pitch * 2);
    float *factor = (float *)rq_host_alloc((size_t)c.n_in * 4), *rows = (float *)rq_host_alloc(n * 4);
    for (int i = 0; i < c.n_tok * pitch; ++i) x[i] = bits_of(c.bf16, 4 * rq_rand_float(&rng));
    if (c.n_tok > 1) memset(x + pitch, 0, (size_t)c.n_in * 2); /* a row of zeros */
    if (c.n_tok > 3) x[3 * pitch + c.n_in / 2] = 0x7fff;       /* NaN, for its block */
    for (int j = 0; j < c.n_in; ++j) factor[j] = 1 + rq_rand_float(&rng);
    for (int t = 0; t < c.n_tok; ++t) {
        float *row = rows + (size_t)t * c.n_in;
        for (int j = 0; j < c.n_in; ++j) {
            row[j] = value_of(c.bf16, x[t * pitch + j]);
            if (c.silu) row[j] = rq_act_silu(row[j]) * value_of(c.bf16, x[t * pitch + c.n_in + j]);
        }
        for (int j = 0; j < c.n_in; j += h.size) act_hadamard(&h, row + j);
        for (int j = 0; c.factor && j < c.n_in; ++j) row[j] *= factor[j];
    }
    const rq_act act = c.bf16 ? RQ_ACT_BF16 : RQ_ACT_F16;
    const uint16_t *d_x = (const uint16_t *)rq_device_copy(x, (size_t)c.n_tok * pitch * 2);
    int8_t *q = (int8_t *)rq_device_buffer(n);
    float *scale = (float *)rq_device_buffer((size_t)c.n_tok * 4);
    int32_t *sum = (int32_t *)rq_device_buffer((size_t)c.n_tok * 4);
    const float *d_factor = c.factor ? (const float *)rq_device_copy(factor, (size_t)c.n_in * 4) : NULL;
    const rq_act_steps steps = c.steps ? act_steps_on_device() : rq_act_steps{};
    if (c.silu) {
        rq_cuda_silu_args a = {};
        a.q = q, a.scale = scale, a.sum = sum, a.gate = d_x, a.up = d_x + c.n_in, a.pitch = pitch, a.act = act;
        a.n_tok = c.n_tok, a.n_in = c.n_in, a.factor = d_factor, a.hadamard = &h, a.steps = steps, a.early_launch = 1;
        EXPECT_EQ(rq_cuda_silu_quantize(&a, 0), RQ_OK);
    } else {
        rq_cuda_quantize_args a = {};
        a.q = q, a.scale = scale, a.sum = sum, a.x = d_x, a.act = act;
        a.n_tok = c.n_tok, a.n_in = c.n_in, a.factor = d_factor, a.hadamard = &h, a.steps = steps;
        EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_OK);
    }
    const long before = rq_test.failures;
    act_check(rows, c.n_tok, c.n_in, c.steps, q, scale, sum);
    if (rq_test.failures > before)
        fprintf(stderr, "  in order %d x %d, %d columns, silu %d, factors %d, steps %d\n", c.core, c.width, c.n_in,
                c.silu, c.factor, c.steps);
    rq_device_free_all();
    free(x), free(factor), free(rows);
}

/* After RMSNorm with a weight, or with a residual (whose sum goes to the place of x). */
static void test_norm(turn c, bool residual) {
    rq_rng rng = {(uint64_t)c.n_in * 17u + (uint64_t)c.core};
    const size_t n = (size_t)c.n_tok * c.n_in;
    const rq_hadamard h = act_hadamard_random(c.core, c.width, &rng);
    uint16_t *x = (uint16_t *)rq_host_alloc(2 * n * 2), *weight = (uint16_t *)rq_host_alloc((size_t)c.n_in * 2),
             *stream = (uint16_t *)rq_host_alloc(n * 2), *got = (uint16_t *)rq_host_alloc(n * 2);
    float *factor = (float *)rq_host_alloc((size_t)c.n_in * 4), *rows = (float *)rq_host_alloc(n * 4);
    for (size_t i = 0; i < 2 * n; ++i) x[i] = bits_of(c.bf16, 4 * rq_rand_float(&rng));
    for (int j = 0; j < c.n_in; ++j) weight[j] = bits_of(c.bf16, 1 + rq_rand_float(&rng));
    for (int j = 0; j < c.n_in; ++j) factor[j] = 1 + rq_rand_float(&rng);
    for (int t = 0; t < c.n_tok; ++t) {
        float *row = rows + (size_t)t * c.n_in;
        definition(residual ? NORM_RESIDUAL : NORM_WEIGHT, c.bf16, c.n_in, x + (size_t)t * c.n_in,
                   x + n + (size_t)t * c.n_in, weight, 1e-5f, row, stream + (size_t)t * c.n_in);
        for (int j = 0; j < c.n_in; j += h.size) act_hadamard(&h, row + j);
        for (int j = 0; c.factor && j < c.n_in; ++j) row[j] *= factor[j];
    }
    uint16_t *d_x = (uint16_t *)rq_device_copy(x, n * 2);
    rq_cuda_rmsnorm_args a = {};
    a.q = (int8_t *)rq_device_buffer(n);
    a.scale = (float *)rq_device_buffer((size_t)c.n_tok * 4);
    a.sum = (int32_t *)rq_device_buffer((size_t)c.n_tok * 4);
    a.x = d_x, a.weight = rq_device_copy(weight, (size_t)c.n_in * 2);
    if (residual) a.residual = rq_device_copy(x + n, n * 2), a.stream = d_x;
    a.eps = 1e-5f, a.act = c.bf16 ? RQ_ACT_BF16 : RQ_ACT_F16, a.n_tok = c.n_tok, a.n_in = c.n_in;
    a.factor = c.factor ? (const float *)rq_device_copy(factor, (size_t)c.n_in * 4) : NULL;
    a.steps = c.steps ? act_steps_on_device() : rq_act_steps{};
    EXPECT_EQ(rq_cuda_rmsnorm_hadamard_quantize(&a, &h, 0), RQ_OK);
    const long before = rq_test.failures;
    act_check(rows, c.n_tok, c.n_in, c.steps, a.q, a.scale, a.sum);
    rq_device_read(got, d_x, n * 2);
    for (size_t i = 0; residual && i < n; ++i) EXPECT_EQ_AT(i, got[i], stream[i]);
    if (rq_test.failures > before)
        fprintf(stderr, "  in RMSNorm, order %d x %d, %d columns, residual %d\n", c.core, c.width, c.n_in, residual);
    rq_device_free_all();
    free(x), free(weight), free(stream), free(got), free(factor), free(rows);
}

static void test_refusals(void) {
    int8_t q;
    float scale = 0;
    uint16_t x = 0;
    rq_hadamard h = {};
    h.size = 64, h.core = 1, h.norm = 0.125f;
    rq_cuda_quantize_args a = {};
    a.q = &q, a.scale = &scale, a.x = &x, a.n_tok = 1, a.n_in = 96, a.hadamard = &h;
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_ERR_ARG); /* 96 is no multiple of 64 */
    a.n_in = 65536;
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_ERR_UNSUPPORTED);
    a.n_in = 64, a.fixed = 1;
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_ERR_UNSUPPORTED);
    a.fixed = 0, h.core = 64; /* a core of 64 with a width of 1 is fine, of 68 is not */
    h.size = 68, h.core = 68, a.n_in = 68;
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_ERR_ARG);
    h.size = 36, h.core = 12, a.n_in = 36;
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_ERR_ARG); /* 3 is no power of two */
    h.size = 48, a.n_in = 48, a.steps.scale = &scale;
    EXPECT_EQ(rq_cuda_quantize_rows(&a, 0), RQ_ERR_ARG); /* a table without an index */
    rq_cuda_rmsnorm_args norm = {};
    norm.q = &q, norm.scale = &scale, norm.x = &x, norm.n_tok = 1, norm.n_in = 40;
    EXPECT_EQ(rq_cuda_rmsnorm_hadamard_quantize(&norm, &h, 0), RQ_ERR_ARG); /* 40 is no multiple of 48 */
    EXPECT_EQ(rq_cuda_rmsnorm_hadamard_quantize(&norm, NULL, 0), RQ_ERR_ARG);
}

int main(void) {
    rq_need_device(80);
    static const turn turns[] = {
        /* powers of two: less than a unit, than a chunk, with none, one and two stages of shuffles, with and without passes */
        {1, 2, 6, 5, false, false, false, false},
        {1, 4, 20, 5, true, false, true, false},
        {1, 8, 24, 1, false, true, true, false},
        {1, 16, 48, 4, false, false, true, true},
        {1, 32, 32, 5, true, true, false, true},
        {1, 64, 192, 2, false, false, false, false},
        {1, 128, 128, 1, true, false, true, false},
        {1, 256, 768, 2, false, true, true, false},
        {1, 2048, 2048, 1, false, false, true, false},
        {1, 4096, 4096, 1, false, false, false, false},
        /* cores alone, of one column and of few, and blocks of them */
        {12, 1, 12, 5, false, false, true, false},
        {12, 1, 84, 2, true, true, true, true},
        {20, 2, 40, 4, false, false, true, false},
        {28, 4, 336, 5, false, true, true, true},
        {36, 16, 576, 5, true, false, true, false},
        {36, 16, 4032, 1, false, false, false, false}, /* more tiles than threads of a small block */
        {60, 8, 960, 2, false, true, true, false},
        {44, 32, 1408, 1, false, false, true, false},
        {64, 16, 1024, 1, false, false, true, false},
        {28, 512, 14336, 2, false, true, true, false},
        {12, 128, 1536, 5, true, false, true, true},
        {28, 1024, 28672, 1, false, true, true, false},
        {20, 1024, 20480, 1, false, false, true, false},
    };
    for (size_t i = 0; i < sizeof turns / sizeof *turns; ++i) test(turns[i]);
    static const turn norms[] = {{1, 8, 24, 3, false, false, true, false},
                                 {12, 1, 84, 2, true, false, false, false},
                                 {36, 16, 576, 5, true, false, true, true},
                                 {1, 4096, 4096, 2, false, false, false, false},
                                 {20, 1024, 20480, 1, true, false, true, false}};
    for (size_t i = 0; i < 2 * (sizeof norms / sizeof *norms); ++i) test_norm(norms[i / 2], i % 2 == 1);
    static const turn large[] = {{60, 512, 30720, 1, false, true, true, false},
                                 {1, 32768, 32768, 1, true, false, false, false},
                                 {52, 16, 832, 4, false, false, false, true}};
    for (size_t i = 0; !rq_small() && i < sizeof large / sizeof *large; ++i) test(large[i]);
    test_refusals();
    return rq_done(__FILE__);
}
