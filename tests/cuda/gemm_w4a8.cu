/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA GEMM on W4A8 (cuda/gemm_w4a8*.cu), both kernels: the bits of the definition, whatever the shape, the groups and the cut of
 * the columns. Every combination of step, base and code, and the dispatcher's choice. Libraries: requite. Targets: sm_80 sm_90a.
 * In table.json. */
#include "w4a8_gemm.h"

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
    d.x_pitch = 136;
    EXPECT_EQ(rq_cuda_gemm_supports(&d, &why), RQ_ERR_UNSUPPORTED);
    d.x_pitch = 128;
    EXPECT_EQ(rq_cuda_gemm_supports(&d, &why), RQ_OK);
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
        for (size_t i = 0; i < sizeof problems / sizeof problems[0]; ++i) w4a8_gemm_test(&problems[i], wish);
        w4a8_levels_test(wish, 32, false);
    }
    const w4a8_problem tiles[] = {
        {"two slabs", 256, 1152, 128, 0, true, false, true, false, 0, 0},
        {"two slabs, one of them not there, groups of 128", 300, 384, 200, 128, false, true, false, true, 0, 0},
        {"two slabs, groups of 32, cut", 140, 528, 130, 32, false, false, false, false, 0, 1},
    };
    for (int i = 0; i < 3; ++i) w4a8_gemm_test(&tiles[i], {90, 256, 128, i == 2 ? 3 : 1});
    w4a8_gemm_test(&tiles[0], {90, 128, 64, 2});
    w4a8_gemm_test(&tiles[2], {80, 128, 32, 2});
    if (!rq_small()) w4a8_gemm_test(&tiles[1], {80, 128, 128, 1}), w4a8_gemm_test(&tiles[1], {90, 128, 128, 1});
    const w4a8_problem chunked = {
        "a row that is no multiple of 16 bytes", 40, 200, 19, 0, true, false, false, true, 0, 0};
    const w4a8_problem apart = {"rows of x apart", 40, 203, 19, 0, true, false, false, true, 0, 0, W4A8_S8, 208};
    w4a8_linear_test(&problems[8], RQ_LINEAR_GEMM);
    w4a8_linear_test(&chunked, RQ_LINEAR_GEMV);
    w4a8_linear_test(&apart, RQ_LINEAR_GEMM);
    w4a8_gemm_test(&apart, {80, 0, 0, 0});
    test_refusals();
    return rq_done(__FILE__);
}
