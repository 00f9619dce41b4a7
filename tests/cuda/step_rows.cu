/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of a table over the steps of a process, added to activations or written over them (cuda/step_rows.cu): each bit, a step for all rows and one
 * for each sample, rows at any alignment, steps that are not in the table.
 * Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "act_case.h"

static void test(int n_tok, int n, bool bf16, bool over, int rows_per_step) {
    enum { STEPS = 3 };
    static const int32_t step[4] = {2, 0, -1, STEPS};
    const size_t count = (size_t)n_tok * n;
    rq_rng rng = {(uint64_t)n * 31u + (uint64_t)n_tok};
    uint16_t *x = (uint16_t *)rq_host_alloc(count * 2), *got = (uint16_t *)rq_host_alloc(count * 2);
    float *table = (float *)rq_host_alloc((size_t)STEPS * n * 4);
    for (size_t i = 0; i < count; ++i) x[i] = bits_of(bf16, rq_rand_float(&rng));
    for (int i = 0; i < STEPS * n; ++i) table[i] = rq_rand_float(&rng);
    rq_cuda_step_rows_args a = {};
    a.y = rq_device_copy(x, count * 2), a.x = over ? NULL : a.y;
    a.table = (const float *)rq_device_copy(table, (size_t)STEPS * n * 4);
    a.step = (const int32_t *)rq_device_copy(step, sizeof step);
    a.n_step = STEPS, a.rows_per_step = rows_per_step, a.act = bf16 ? RQ_ACT_BF16 : RQ_ACT_F16;
    a.n_tok = n_tok, a.n = n, a.early_launch = over;
    EXPECT_EQ(rq_cuda_step_rows(&a, 0), RQ_OK);
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(got, a.y, count * 2);
    for (int t = 0; t < n_tok; ++t) {
        const int k = step[rows_per_step ? t / rows_per_step : 0];
        for (int i = 0; i < n; ++i) {
            const size_t at = (size_t)t * n + i;
            const float before = over ? 0.0f : value_of(bf16, x[at]);
            if (k < 0 || k >= STEPS)
                EXPECT(value_of(bf16, got[at]) != value_of(bf16, got[at]));
            else
                EXPECT_EQ_AT(at, got[at], bits_of(bf16, before + table[k * n + i]));
        }
    }
    rq_device_free_all();
    free(x), free(got), free(table);
}

int main(void) {
    rq_need_device(80);
    for (int bf16 = 0; bf16 < 2; ++bf16)
        for (int over = 0; over < 2; ++over) {
            test(1, 1, bf16, over, 0);
            test(5, 37, bf16, over, 0);
            test(8, 320, bf16, over, 2);
            test(4, 2048, bf16, over, 1);
            test(7, 2564, bf16, over, 2);
            test(3, 4104, bf16, over, 0);
        }
    rq_cuda_step_rows_args a = {};
    EXPECT_EQ(rq_cuda_step_rows(NULL, 0), RQ_ERR_ARG);
    EXPECT_EQ(rq_cuda_step_rows(&a, 0), RQ_ERR_ARG);
    a.y = (void *)16, a.table = (const float *)16, a.step = (const int32_t *)16, a.n_tok = 1, a.n_step = 1;
    EXPECT_EQ(rq_cuda_step_rows(&a, 0), RQ_ERR_UNSUPPORTED); /* no columns */
    a.n = 8, a.n_step = 0;
    EXPECT_EQ(rq_cuda_step_rows(&a, 0), RQ_ERR_ARG);
    return rq_done(__FILE__);
}
