/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA GEMM on W4A8 (cuda/gemm_w4a8*.cu), both kernels: the bits of the definition, whatever the shape, the groups and the cut of
 * the columns. Every combination of step, base and code, and the dispatcher's choice. Libraries: requite. Targets: sm_80 sm_90a.
 * In table.json. */
#include "w4a8_case.h"

static void test(const w4a8_problem *p, rq_cuda_gemm_wish wish) {
    w4a8_case c = w4a8_make(p);
    rq_cuda_gemv_desc d = w4a8_describe(p, &c);
    rq_cuda_gemm_plan plan;
    if (rq_cuda_gemm_make_plan(&plan, &d, &wish) != RQ_OK) RQ_DIE("%s: %s", p->what, rq_cuda_last_error());
    if (p->split) EXPECT(plan.split > 1);
    if (wish.tile_rows) EXPECT_EQ(plan.tile_rows, wish.tile_rows);
    if (wish.capability == 80) EXPECT_EQ(plan.capability, 80);
    const rq_cuda_gemv_args a = w4a8_upload(p, &c, plan.workspace_bytes);
    for (int early = 0; early < 2; ++early) { /* the second run finds the workspace as the first left it */
        d.early_launch = early;
        EXPECT_EQ(rq_cuda_gemm_run(&plan, &d, &a, 0), RQ_OK);
    }
    w4a8_check(p, &c, &a, plan.workspace_bytes);
    rq_device_free_all();
    w4a8_free(&c);
}

/* The layer's call: which way, and the same bits by the GEMV in chunks. */
static void test_linear(const w4a8_problem *p, rq_linear_path want) {
    w4a8_case c = w4a8_make(p);
    rq_cuda_linear_desc d = rq_cuda_linear_desc_default();
    d.weights = w4a8_describe(p, &c);
    for (int forced = 0; forced < 2; ++forced) {
        d.path = forced ? RQ_LINEAR_GEMV : RQ_LINEAR_AUTO;
        rq_cuda_linear_plan plan;
        if (rq_cuda_linear_make_plan(&plan, &d) != RQ_OK) RQ_DIE("%s: %s", p->what, rq_cuda_last_error());
        EXPECT_EQ(plan.path, forced ? RQ_LINEAR_GEMV : want);
        rq_cuda_linear_args a = {};
        a.gemv = w4a8_upload(p, &c, plan.workspace_bytes);
        EXPECT_EQ(rq_cuda_linear_run(&plan, &d, &a, 0), RQ_OK);
        w4a8_check(p, &c, &a.gemv, plan.workspace_bytes);
        rq_device_free_all();
    }
    w4a8_free(&c);
}

/* Every step with every base that it may have, and each code: row i has base i - 128, group k step k + 1; x is one hot, so that y is the level of
 * one column: 16 columns of a group have the 16 codes. */
static void test_levels(rq_cuda_gemm_wish wish) {
    enum { N_OUT = 256, GROUP = 32, N_IN = GROUP * RQ_W4A8_MAX_STEP, N_TOK = 64 };
    static uint32_t words[N_OUT][N_IN / 8];
    static uint8_t step[N_OUT][RQ_W4A8_MAX_STEP];
    static int8_t base[N_OUT][RQ_W4A8_MAX_STEP], x[N_TOK][N_IN];
    static float scale[N_OUT], x_scale[N_TOK];
    static int32_t x_sum[N_TOK];
    static uint16_t y[N_TOK][N_OUT];
    for (int i = 0; i < N_OUT; ++i) {
        scale[i] = 1;
        for (int k = 0; k < RQ_W4A8_MAX_STEP; ++k) {
            step[i][k] = (uint8_t)(k + 1);
            const int most_base = 127 - 15 * (k + 1);
            base[i][k] = (int8_t)(i - 128 < most_base ? i - 128 : most_base);
        }
        for (int j = 0; j < N_IN; ++j) words[i][j / 8] |= (uint32_t)(j % 16) << j % 8 * 4;
    }
    rq_w4a8 w = {};
    w.n_out = N_OUT, w.n_in = N_IN, w.group = GROUP, w.n_group = RQ_W4A8_MAX_STEP, w.row_words = N_IN / 8;
    w.words = words[0], w.scale = scale, w.step = step[0], w.base = base[0];
    rq_tile_layout t;
    const char *why = "";
    if (rq_repack_w4a8_plan(&t, &w, 1, &why) != RQ_OK) RQ_DIE("%s", why);
    uint8_t *packed = (uint8_t *)rq_host_alloc((size_t)t.bytes);
    rq_repack_w4a8(packed, &t, &w, 1);
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default();
    d.kind = RQ_TILE_W4A8, d.n_out = N_OUT, d.n_in = N_IN, d.n_tok = N_TOK, d.group = GROUP, d.x_s8 = 1;
    rq_cuda_gemm_plan plan;
    EXPECT_EQ(rq_cuda_gemm_make_plan(&plan, &d, &wish), RQ_OK);
    rq_cuda_gemv_args a = {};
    a.y = rq_device_buffer(sizeof y), a.weights = rq_device_copy(packed, (size_t)t.bytes);
    void *zeros = rq_host_alloc(plan.workspace_bytes);
    if (plan.workspace_bytes) a.workspace = rq_device_copy(zeros, plan.workspace_bytes);
    for (int t0 = 0; t0 < N_IN; t0 += N_TOK) {
        memset(x, 0, sizeof x);
        for (int s = 0; s < N_TOK; ++s) {
            x_scale[s] = 1, x_sum[s] = t0 + s < N_IN;
            if (t0 + s < N_IN) x[s][t0 + s] = 1;
        }
        a.x = rq_device_copy(x, sizeof x), a.x_scale = (const float *)rq_device_copy(x_scale, sizeof x_scale);
        a.x_sum = (const int32_t *)rq_device_copy(x_sum, sizeof x_sum);
        EXPECT_EQ(rq_cuda_gemm_run(&plan, &d, &a, 0), RQ_OK);
        CHECK_CUDA(cudaDeviceSynchronize());
        rq_device_read(y, a.y, sizeof y);
        for (int s = 0; s < N_TOK && t0 + s < N_IN; ++s)
            for (int i = 0; i < N_OUT; ++i) {
                const int j = t0 + s, level = j % 16 * step[i][j / GROUP] + base[i][j / GROUP];
                EXPECT_EQ_AT(i * N_IN + j, y[s][i], rq_half_bits((float)level));
            }
        rq_device_free((void *)a.x), rq_device_free((void *)a.x_scale), rq_device_free((void *)a.x_sum);
    }
    memset(words, 0, sizeof words);
    rq_device_free_all();
    free(packed), free(zeros);
}

static void test_refusals(void) {
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default();
    rq_cuda_gemm_plan plan;
    const char *why = NULL;
    d.n_out = 128, d.n_in = 128, d.n_tok = 64;
    EXPECT_EQ(rq_cuda_gemm_supports(&d, &why), RQ_ERR_UNSUPPORTED); /* not W4A8 */
    d.kind = RQ_TILE_W4A8, d.x_s8 = 1, d.group = 0;
    EXPECT_EQ(rq_cuda_gemm_supports(&d, &why), RQ_OK);
    d.n_in = 120;
    EXPECT_EQ(rq_cuda_gemm_supports(&d, &why), RQ_ERR_UNSUPPORTED);
    EXPECT(why && strstr(why, "16"));
    d.n_in = 128;
    EXPECT_EQ(rq_cuda_gemm_make_plan(&plan, &d, NULL), RQ_OK);
    rq_cuda_gemv_args a = {};
    a.y = a.workspace = (void *)256, a.x = (const void *)8, a.weights = (const void *)256;
    a.x_scale = (const float *)16, a.x_sum = (const int32_t *)16;
    EXPECT_EQ(rq_cuda_gemm_run(&plan, &d, &a, 0), RQ_ERR_ARG); /* x does not begin at 16 bytes */
}

int main(void) {
    rq_need_device(80);
    const w4a8_problem problems[] = {
        /* what, n_out, n_in, n_tok, group, zeros, bf16, bias, residual, stack, split */
        {"one level", 128, 256, 32, 0, false, false, false, false, 0, 0},
        {"one level with zero points", 100, 400, 33, 0, true, true, true, true, 0, 0},
        {"groups of 128", 144, 512, 64, 128, false, false, false, true, 0, 0},
        {"groups of 32", 33, 288, 20, 32, false, true, true, false, 0, 0},
        {"groups of 96", 130, 496, 65, 96, false, false, false, false, 0, 0},
        {"groups of 256, cut", 16, 2320, 40, 256, false, false, true, true, 0, 1},
        {"one token, one row", 1, 16, 1, 0, true, false, false, false, 0, 0},
        {"cut columns", 200, 4096, 100, 0, true, true, true, false, 0, 1},
        {"a stack", 48, 1280, 17, 64, false, false, true, false, 3, 0},
        {"a long row", 128, 3200, 64, 160, false, false, false, false, 0, 0},
        {"groups of 128, few tokens", 128, 256, 20, 128, false, true, false, true, 0, 0},
        {"groups of 128, more tokens", 120, 384, 70, 128, false, false, true, false, 0, 0},
    };
    for (int capability = 80; capability <= 90; capability += 10) {
        const rq_cuda_gemm_wish wish = {capability, 0, 0, 0};
        for (size_t i = 0; i < sizeof problems / sizeof problems[0]; ++i) test(&problems[i], wish);
        test_levels(wish);
    }
    const w4a8_problem tiles[] = {
        {"two slabs", 256, 1152, 128, 0, true, false, true, false, 0, 0},
        {"two slabs, one of them not there, groups of 128", 300, 384, 200, 128, false, true, false, true, 0, 0},
        {"two slabs, groups of 32, cut", 140, 528, 130, 32, false, false, false, false, 0, 1},
    };
    for (int i = 0; i < 3; ++i) test(&tiles[i], {90, 256, 128, i == 2 ? 3 : 1});
    test(&tiles[0], {90, 128, 64, 2});
    test(&tiles[2], {80, 128, 32, 2});
    if (!rq_small()) test(&tiles[1], {80, 128, 128, 1}), test(&tiles[1], {90, 128, 128, 1});
    const w4a8_problem chunked = {
        "a row that is no multiple of 16 bytes", 40, 200, 19, 0, true, false, false, true, 0, 0};
    test_linear(&problems[8], RQ_LINEAR_GEMM);
    test_linear(&chunked, RQ_LINEAR_GEMV);
    test_refusals();
    return rq_done(__FILE__);
}
