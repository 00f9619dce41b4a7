/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA GEMM on W4A8 with e4m3 activations (cuda/gemm_w4a8_e4m3_*.cu), both kernels: of small integers the bits of the definition, whatever
 * the shape, the groups and the cut of the columns; of any numbers sums within a bound. Every combination of step, base and code, and of zero
 * point and code; the dispatcher's choice. Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "w4a8_gemm.h"

static void test_refusals(void) {
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default();
    rq_cuda_gemm_plan plan;
    d.n_out = 128, d.n_in = 128, d.n_tok = 64, d.kind = RQ_TILE_W4A8, d.x_e4m3 = 1, d.group = 0;
    EXPECT_EQ(rq_cuda_gemm_make_plan(&plan, &d, NULL), RQ_OK);
    rq_cuda_gemv_args a = {};
    a.y = a.workspace = (void *)256, a.x = a.weights = (const void *)256, a.x_scale = (const float *)16;
    EXPECT_EQ(rq_cuda_gemm_run(&plan, &d, &a, 0), RQ_ERR_ARG); /* no sums */
    a.x_block_sum = (const float *)8;
    EXPECT_EQ(rq_cuda_gemm_run(&plan, &d, &a, 0), RQ_ERR_ARG); /* not at 16 bytes */
    const rq_cuda_gemm_wish wish = {80, 0, 128, 0};
    EXPECT_EQ(rq_cuda_gemm_make_plan(&plan, &d, &wish), RQ_ERR_UNSUPPORTED); /* the kernel has no such tile */
    rq_cuda_linear_desc l = rq_cuda_linear_desc_default();
    const char *why = "";
    l.weights = d, l.path = RQ_LINEAR_DEQUANTIZE;
    EXPECT(rq_cuda_linear_supports(&l, &why) == RQ_ERR_UNSUPPORTED);
}

int main(void) {
    rq_need_device(80);
    const w4a8_problem problems[] = {
        /* what, n_out, n_in, n_tok, group, zeros, bf16, bias, residual, stack, split, x, pitch */
        {"one level", 128, 256, 32, 0, false, false, false, false, 0, 0, W4A8_E4M3_SMALL},
        {"one level with zero points", 100, 400, 33, 0, true, true, true, true, 0, 0, W4A8_E4M3_SMALL},
        {"groups of 128", 144, 512, 64, 128, false, false, false, true, 0, 0, W4A8_E4M3_SMALL},
        {"groups of 32", 33, 288, 20, 32, false, true, true, false, 0, 0, W4A8_E4M3_SMALL},
        {"groups of 96", 130, 496, 65, 96, false, false, false, false, 0, 0, W4A8_E4M3_SMALL},
        {"groups of 256, cut", 16, 2320, 40, 256, false, false, true, true, 0, 1, W4A8_E4M3_SMALL},
        {"one token, one row", 1, 16, 1, 0, true, false, false, false, 0, 0, W4A8_E4M3_SMALL},
        {"cut columns", 200, 4096, 100, 0, true, true, true, false, 0, 1, W4A8_E4M3_SMALL},
        {"a stack", 48, 1280, 17, 128, false, false, true, false, 3, 0, W4A8_E4M3_SMALL},
        {"rows of x apart", 40, 203, 19, 0, true, false, false, true, 0, 0, W4A8_E4M3_SMALL, 208},
        {"rows of x apart, groups of 128", 130, 333, 127, 128, false, false, false, true, 0, 0, W4A8_E4M3_SMALL, 352},
        {"groups of 128, 200 tokens", 120, 384, 200, 128, false, false, true, false, 0, 0, W4A8_E4M3_SMALL},
        {"any numbers", 130, 1040, 66, 0, true, false, false, true, 0, 0, W4A8_E4M3},
        {"any numbers, groups of 128", 130, 784, 33, 128, false, true, true, false, 0, 0, W4A8_E4M3},
        {"any numbers, groups of 64, cut", 64, 1600, 18, 64, false, false, false, false, 0, 1, W4A8_E4M3},
    };
    for (int capability = 80; capability <= 90; capability += 10) {
        const rq_cuda_gemm_wish wish = {capability, 0, 0, 0};
        for (size_t i = 0; i < sizeof problems / sizeof problems[0]; ++i) w4a8_gemm_test(&problems[i], wish);
        w4a8_levels_test(wish, 0, true), w4a8_levels_test(wish, 128, true);
    }
    w4a8_levels_test({80, 0, 0, 0}, 32, true);
    const w4a8_problem tiles[] = {
        {"128 tokens", 256, 1152, 128, 0, true, false, true, false, 0, 0, W4A8_E4M3_SMALL},
        {"128 tokens, groups of 128", 300, 384, 200, 128, false, true, false, true, 0, 0, W4A8_E4M3_SMALL},
    };
    for (int i = 0; i < 2; ++i)
        w4a8_gemm_test(&tiles[i], {90, 128, 128, 2}), w4a8_gemm_test(&tiles[i], {90, 128, 64, 3});
    w4a8_gemm_test(&tiles[0], {80, 128, 32, 2});
    if (!rq_small()) w4a8_gemm_test(&tiles[1], {80, 128, 64, 1});
    const w4a8_problem chunked = {
        "a row that is no multiple of 16 bytes", 40, 200, 19, 0, true, false, false, true, 0, 0, W4A8_E4M3_SMALL};
    w4a8_linear_test(&problems[8], RQ_LINEAR_GEMM);
    w4a8_linear_test(&problems[9], RQ_LINEAR_GEMM);
    w4a8_linear_test(&chunked, RQ_LINEAR_GEMV);
    test_refusals();
    return rq_done(__FILE__);
}
