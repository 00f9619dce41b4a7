/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the GEMM of W4A8 do with int8 and with e4m3 activations (gemm_w4a8.cu, gemm_w4a8_e4m3.cu). */
#ifndef RQ_W4A8_GEMM_H
#define RQ_W4A8_GEMM_H
#include "w4a8_case.h"

static inline void w4a8_gemm_test(const w4a8_problem *p, rq_cuda_gemm_wish wish) {
    w4a8_case c = w4a8_make(p);
    rq_cuda_gemv_desc d = w4a8_describe(p, &c);
    rq_cuda_gemm_plan plan;
    if (rq_cuda_gemm_make_plan(&plan, &d, &wish) != RQ_OK) RQ_DIE("%s: %s", p->what, rq_cuda_last_error());
    if (p->split) EXPECT(plan.split > 1);
    if (wish.tile_rows) EXPECT_EQ(plan.tile_rows, wish.tile_rows);
    if (wish.capability == 80) EXPECT_EQ(plan.capability, 80);
    if (p->x != W4A8_S8 && p->group % 128) EXPECT_EQ(plan.capability, 80); /* groups that end inside of 128 columns */
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
static inline void w4a8_linear_test(const w4a8_problem *p, rq_linear_path want) {
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

/* Every step with every base that it may have, or every zero point (group 0), and each code: row i has base i - 128, group k step k + 1, columns of
 * a group the 16 codes by turns. x is one hot, so that y is the level of one column. */
static inline void w4a8_levels_test(rq_cuda_gemm_wish wish, int group, bool e4m3) {
    enum { N_OUT = 256, MOST_IN = 128 * RQ_W4A8_MAX_STEP, N_TOK = 64 };
    static uint32_t words[N_OUT][MOST_IN / 8];
    static uint8_t zero[N_OUT], step[N_OUT][RQ_W4A8_MAX_STEP];
    static int8_t base[N_OUT][RQ_W4A8_MAX_STEP], x[N_TOK][MOST_IN];
    static float scale[N_OUT], x_scale[N_TOK], x_block_sum[RQ_W4A8_MAX_STEP][N_TOK];
    static int32_t x_sum[N_TOK];
    static uint16_t y[N_TOK][N_OUT];
    const int n_group = group ? RQ_W4A8_MAX_STEP : 1, n_in = group ? group * n_group : 128, n_case = n_group * 16;
    memset(words, 0, sizeof words);
    for (int i = 0; i < N_OUT; ++i) {
        scale[i] = 1, zero[i] = (uint8_t)(i % 16);
        for (int k = 0; k < RQ_W4A8_MAX_STEP; ++k) {
            step[i][k] = (uint8_t)(k + 1);
            const int most_base = 127 - 15 * (k + 1);
            base[i][k] = (int8_t)(i - 128 < most_base ? i - 128 : most_base);
        }
        for (int j = 0; j < n_in; ++j) words[i][j / 8] |= (uint32_t)(j % 16) << j % 8 * 4;
    }
    rq_w4a8 w = {};
    w.n_out = N_OUT, w.n_in = n_in, w.group = group, w.n_group = group ? n_group : 0, w.row_words = MOST_IN / 8;
    w.words = words[0], w.scale = scale;
    if (group)
        w.step = step[0], w.base = base[0];
    else
        w.zero = zero;
    rq_tile_layout t;
    const char *why = "";
    if (rq_repack_w4a8_plan(&t, &w, 1, &why) != RQ_OK) RQ_DIE("%s", why);
    uint8_t *packed = (uint8_t *)rq_host_alloc((size_t)t.bytes);
    rq_repack_w4a8(packed, &t, &w, 1);
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default();
    d.kind = RQ_TILE_W4A8, d.n_out = N_OUT, d.n_in = n_in, d.n_tok = N_TOK, d.group = group, d.x_pitch = MOST_IN;
    d.x_s8 = !e4m3, d.x_e4m3 = e4m3;
    rq_cuda_gemm_plan plan;
    EXPECT_EQ(rq_cuda_gemm_make_plan(&plan, &d, &wish), RQ_OK);
    rq_cuda_gemv_args a = {};
    a.y = rq_device_buffer(sizeof y), a.weights = rq_device_copy(packed, (size_t)t.bytes);
    void *zeros = rq_host_alloc(plan.workspace_bytes);
    if (plan.workspace_bytes) a.workspace = rq_device_copy(zeros, plan.workspace_bytes);
    for (int s = 0; s < N_TOK; ++s) x_scale[s] = 1;
    a.x_scale = (const float *)rq_device_copy(x_scale, sizeof x_scale);
    for (int first = 0; first < n_case; first += N_TOK) {
        int column[N_TOK];
        memset(x, 0, sizeof x), memset(x_sum, 0, sizeof x_sum), memset(x_block_sum, 0, sizeof x_block_sum);
        for (int s = 0; s < N_TOK; ++s) { /* another 16 columns of each group */
            const int n = first + s, k = n / 16, width = group ? group : n_in;
            column[s] = n < n_case ? k * width + k * 5 % (width / 16) * 16 + n % 16 : -1;
            if (column[s] < 0) continue;
            x[s][column[s]] = e4m3 ? 0x38 : 1, x_sum[s] = 1, x_block_sum[column[s] / 128][s] = 1;
        }
        a.x = rq_device_copy(x, sizeof x);
        if (e4m3)
            a.x_block_sum = (const float *)rq_device_copy(x_block_sum, sizeof x_block_sum);
        else
            a.x_sum = (const int32_t *)rq_device_copy(x_sum, sizeof x_sum);
        EXPECT_EQ(rq_cuda_gemm_run(&plan, &d, &a, 0), RQ_OK);
        CHECK_CUDA(cudaDeviceSynchronize());
        rq_device_read(y, a.y, sizeof y);
        for (int s = 0; s < N_TOK; ++s)
            for (int i = 0; column[s] >= 0 && i < N_OUT; ++i)
                EXPECT_EQ_AT(i * n_in + column[s], y[s][i], rq_half_bits((float)rq_w4a8_level(&w, i, column[s])));
        rq_device_free((void *)a.x), rq_device_free((void *)(e4m3 ? (const void *)a.x_block_sum : a.x_sum));
    }
    rq_device_free_all();
    free(packed), free(zeros);
}
#endif
