/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA GEMV on W4A8 (cuda/gemv_w4a8.cuh): the bits of the definition, whatever the shape, the groups and the cut of the columns.
 * Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "w4a8_case.h"

static void test(const w4a8_problem *p) {
    w4a8_case c = w4a8_make(p);
    rq_cuda_gemv_desc d = w4a8_describe(p, &c);
    rq_cuda_gemv_plan plan;
    if (rq_cuda_gemv_make_plan(&plan, &d) != RQ_OK) RQ_DIE("%s: %s", p->what, rq_cuda_last_error());
    if (p->split) EXPECT(plan.split > 1);
    const rq_cuda_gemv_args a = w4a8_upload(p, &c, plan.workspace_bytes);
    for (int early = 0; early < 2; ++early) { /* the second run finds the workspace as the first left it */
        d.early_launch = early;
        EXPECT_EQ(rq_cuda_gemv_run(&plan, &d, &a, 0), RQ_OK);
    }
    w4a8_check(p, &c, &a, plan.workspace_bytes);
    rq_device_free_all();
    w4a8_free(&c);
}

static void test_refusals(void) {
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default();
    rq_cuda_gemv_plan plan;
    const char *why = NULL;
    d.kind = RQ_TILE_W4A8, d.n_out = 64, d.n_in = 128, d.group = 0;
    EXPECT_EQ(rq_cuda_gemv_supports(&d, &why), RQ_ERR_UNSUPPORTED);
    EXPECT(why && strstr(why, "x_s8"));
    d.x_s8 = d.x_e4m3 = 1;
    EXPECT_EQ(rq_cuda_gemv_supports(&d, &why), RQ_ERR_UNSUPPORTED);
    EXPECT(why && strstr(why, "not both"));
    d.x_e4m3 = 0, d.x_pitch = 127;
    EXPECT_EQ(rq_cuda_gemv_supports(&d, &why), RQ_ERR_UNSUPPORTED);
    d.x_pitch = 0;
    EXPECT_EQ(rq_cuda_gemv_supports(&d, &why), RQ_OK);
    d.group = 40;
    EXPECT_EQ(rq_cuda_gemv_supports(&d, &why), RQ_ERR_UNSUPPORTED);
    d.group = 128, d.n_in = 131072 + 128;
    EXPECT_EQ(rq_cuda_gemv_supports(&d, &why), RQ_ERR_UNSUPPORTED);
    d.n_in = 128;
    EXPECT_EQ(rq_cuda_gemv_make_plan(&plan, &d), RQ_OK);
    rq_cuda_gemv_args a = {};
    a.y = &d, a.x = &d, a.x_scale = (const float *)&d, a.weights = (const void *)256;
    EXPECT_EQ(rq_cuda_gemv_run(&plan, &d, &a, 0), RQ_ERR_ARG); /* no sums */
    d.x_s8 = 0, d.x_e4m3 = 1, a.x_sum = (const int32_t *)&d;
    EXPECT_EQ(rq_cuda_gemv_run(&plan, &d, &a, 0), RQ_ERR_ARG); /* those of int8 */
    d.kind = RQ_TILE_GRID, d.bits = 4;
    EXPECT_EQ(rq_cuda_gemv_supports(&d, &why), RQ_ERR_UNSUPPORTED);
    EXPECT(why && strstr(why, "e4m3"));
}

int main(void) {
    rq_need_device(80);
    const w4a8_problem problems[] = {
        /* what, n_out, n_in, n_tok, group, zeros, bf16, bias, residual, stack, split */
        {"one level", 256, 512, 1, 0, false, false, false, false, 0, 0},
        {"one level with zero points", 64, 384, 3, 0, true, true, true, true, 0, 0},
        {"groups of 128", 144, 512, 8, 128, false, false, false, true, 0, 0},
        {"groups of 32", 48, 288, 5, 32, false, true, true, false, 0, 0},
        {"groups of 96", 33, 500, 2, 96, false, false, false, false, 0, 0},
        {"groups of 256", 16, 1000, 16, 256, false, false, true, true, 0, 0},
        {"a column", 1, 1, 1, 0, true, false, false, false, 0, 0},
        {"a row, odd", 1, 333, 13, 32, false, true, false, false, 0, 0},
        {"cut columns", 32, 32768, 2, 128, false, false, true, false, 0, 1},
        {"cut columns, 9 tokens", 17, 20000, 9, 0, true, true, false, false, 0, 1},
        /* of which test_gemv_counts.py wants to see what they move */
        {"4096x4096", 4096, 4096, 1, 0, true, false, false, false, 0, 0},
        {"4096x4096, groups of 128", 4096, 4096, 1, 128, false, false, false, false, 0, 0},
        {"a stack", 48, 256, 4, 128, false, false, true, false, 3, 0},
        {"rows of x apart", 40, 200, 3, 0, true, false, false, false, 0, 0, W4A8_S8, 208},
        {"rows of x apart, odd", 40, 200, 9, 32, false, false, false, false, 0, 0, W4A8_S8, 203},
        {"e4m3: one level", 256, 512, 1, 0, false, false, false, false, 0, 0, W4A8_E4M3_SMALL},
        {"e4m3: one level with zero points", 64, 384, 3, 0, true, true, true, true, 0, 0, W4A8_E4M3_SMALL},
        {"e4m3: groups of 128", 144, 512, 8, 128, false, false, false, true, 0, 0, W4A8_E4M3_SMALL},
        {"e4m3: groups of 32", 48, 288, 5, 32, false, true, true, false, 0, 0, W4A8_E4M3_SMALL, 304},
        {"e4m3: groups of 96", 33, 500, 2, 96, false, false, false, false, 0, 0, W4A8_E4M3_SMALL},
        {"e4m3: groups of 256", 16, 1000, 16, 256, false, false, true, true, 0, 0, W4A8_E4M3_SMALL},
        {"e4m3: a row, odd", 1, 333, 13, 32, false, true, false, false, 0, 0, W4A8_E4M3_SMALL, 335},
        {"e4m3: cut columns", 32, 32768, 2, 128, false, false, true, false, 0, 1, W4A8_E4M3_SMALL},
        {"e4m3: cut columns, 9 tokens", 17, 20000, 9, 0, true, true, false, false, 0, 1, W4A8_E4M3_SMALL},
        {"e4m3: 4096x4096", 4096, 4096, 1, 0, true, false, false, false, 0, 0, W4A8_E4M3_SMALL},
        {"e4m3: 4096x4096, groups of 128", 4096, 4096, 1, 128, false, false, false, false, 0, 0, W4A8_E4M3_SMALL},
        {"e4m3: any numbers", 64, 1000, 7, 0, true, false, true, true, 0, 0, W4A8_E4M3},
        {"e4m3: any numbers, groups of 64", 50, 700, 12, 64, false, true, false, false, 0, 0, W4A8_E4M3},
    };
    for (size_t i = 0; i < sizeof problems / sizeof problems[0]; ++i) test(&problems[i]);
    if (!rq_small()) {
        const w4a8_problem large = {"large", 1040, 2048, 7, 128, false, false, false, true, 0, 0};
        test(&large);
    }
    test_refusals();
    return rq_done(__FILE__);
}
