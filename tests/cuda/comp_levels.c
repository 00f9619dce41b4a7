/* SPDX-License-Identifier: Apache-2.0 */
/* The search of w4a8's scales, steps and bases on a GPU (cuda/comp_levels_sm80.cu). Every step and base that it tries for a group is the only one without an
 * error in one group of a matrix made for that, so none can be left out; and whole rows, heavy-tailed as weights are, against the CPU's search
 * (round_w4a8.c), where each of them has to be found somewhere. Libraries: quantizer requite. Targets: sm_80 sm_90a. */
#include "comp_case.h"

enum { REACH = 5, TRIED = 3 * (REACH + 1), LEN = 32, LOW = -100, HIGH = 70, SPAN = 12 /* ceil((HIGH - LOW) / 15) */ };

static void to_device(void **there, const void *from, size_t bytes) {
    CHECK_CUDA(cudaMalloc(there, bytes));
    if (from) CHECK_CUDA(cudaMemcpy(*there, from, bytes, cudaMemcpyHostToDevice));
}

static void from_device(void *to, const void *there, size_t bytes) {
    CHECK_CUDA(cudaDeviceSynchronize());
    CHECK_CUDA(cudaMemcpy(to, there, bytes, cudaMemcpyDeviceToHost));
}

/* ---- one group for each step and base */

/* What find_group() of round_w4a8.c tries at place i: for each step the range from the lowest value, the one to the highest, and between. */
static void tried_at(int i, double *step, double *base) {
    *step = SPAN - i / 3;
    const double low = LOW, high = HIGH - 15 * *step, middle = rint((low + high) / 2);
    *base = i % 3 == 0 ? middle : rint(((i % 3 == 1 ? low : high) + middle) / 2);
}

/* A group that begins with LOW and HIGH, which hardly count, and is on the grid of place i otherwise. */
static void group_of(float *w, int i) {
    double step, base;
    tried_at(i, &step, &base);
    w[0] = LOW, w[1] = HIGH;
    for (int j = 2, u = 0; j < LEN; ++j, ++u) {
        double v = base + step * (u % 16);
        if (v < LOW || v > HIGH) v = base + step * 8;
        w[j] = (float)v;
    }
}

/* What a group loses, as the search of scales asks for, and then step and base. */
static void test_tried(bool climbs) {
    float w[TRIED * LEN], weight[LEN], one[TRIED], got[3][TRIED], *there[6];
    double error[TRIED], factor = 1, *factor_there, *error_there;
    for (int j = 0; j < LEN; ++j) weight[j] = j < 2 ? 1e-6f : 1;
    for (int i = 0; i < TRIED; ++i) one[i] = 1, group_of(w + i * LEN, i);
    to_device((void **)&there[0], w, sizeof w);
    to_device((void **)&there[1], weight, sizeof weight);
    to_device((void **)&there[2], one, sizeof one);
    for (int k = 0; k < 3; ++k) to_device((void **)&there[3 + k], NULL, sizeof one);
    to_device((void **)&factor_there, &factor, sizeof factor);
    to_device((void **)&error_there, NULL, sizeof error);
    rq_cuda_level_search s = {.w = there[0],
                              .weight = there[1],
                              .factor = factor_there,
                              .row_scale = there[2],
                              .n_out = TRIED,
                              .n = LEN,
                              .group = LEN,
                              .n_group = 1,
                              .reach = REACH,
                              .climbs = climbs,
                              .error = error_there};
    cuda_device *dev = gpu->own;
    CHECK_RQ(rq_cuda_find_levels(&s, 1, dev->compute));
    s.error = NULL, s.scale = there[3], s.step = there[4], s.zero = there[5];
    CHECK_RQ(rq_cuda_find_levels(&s, 1, dev->compute));
    from_device(error, error_there, sizeof error);
    for (int k = 0; k < 3; ++k) from_device(got[k], there[3 + k], sizeof one);
    for (int i = 0; i < TRIED; ++i) {
        double step, base, want = 0;
        tried_at(i, &step, &base);
        for (int j = 0; j < 2; ++j) { /* the two that hardly count go to the ends of the grid */
            const double v = j ? HIGH : LOW, end = fmin(fmax(rint((v - base) / step), 0), 15);
            want += 1e-6 * pow(base + end * step - v, 2);
        }
        EXPECT_EQ_AT(i, got[0][i], 1);
        EXPECT_EQ_AT(i, got[1][i], step);
        EXPECT_EQ_AT(i, got[2][i], -base);
        EXPECT_NEAR_AT(i, error[i], want, 1e-5 * want + 1e-12);
    }
    for (int k = 0; k < 6; ++k) CHECK_CUDA(cudaFree(there[k]));
    CHECK_CUDA(cudaFree(factor_there));
    CHECK_CUDA(cudaFree(error_there));
}

/* ---- rows against the CPU's search */

static void test_rows(int64_t n_out, int64_t n, int64_t group) {
    const int64_t n_group = rq_ceil_div(n, group), grids = n_out * n_group;
    const size_t bytes = (size_t)grids * sizeof(float);
    float *w = rq_host_alloc((size_t)(n_out * n) * sizeof *w), *weight = rq_host_alloc((size_t)n * sizeof *weight);
    float *want[3], *got[3], *there[2];
    rq_cuda_grids to;
    rq_quant_opt o;
    rq_rng r = {(uint64_t)(n_out + n)};
    for (int64_t i = 0; i < n_out * n; ++i) {
        const float v = rq_rand_float(&r), tail = rq_rand_float(&r);
        w[i] = v * (1 + 4 * tail * tail * tail * tail);
    }
    for (int64_t j = 0; j < n; ++j) weight[j] = fabsf(rq_rand_float(&r)) + 0.01f;
    rq_quant_default_round(&o, RQ_COMP_GPTQ, RQ_ROUND_W4A8);
    o.group = (int)group;
    for (int k = 0; k < 3; ++k) want[k] = rq_host_alloc(bytes), got[k] = rq_host_alloc(bytes);
    for (int64_t i = 0; i < n_out; ++i)
        rq_round_get(RQ_ROUND_W4A8)
            ->find_row(&o, w + i * n, weight, n, group, want[0] + i * n_group, want[1] + i * n_group,
                       want[2] + i * n_group);
    to_device((void **)&there[0], w, (size_t)(n_out * n) * sizeof *w);
    to_device((void **)&there[1], weight, (size_t)n * sizeof *weight);
    to_device((void **)&to.scale, NULL, bytes);
    to_device((void **)&to.zero, NULL, bytes);
    to_device((void **)&to.step, NULL, bytes);
    rq_prep prep = {.n = n};
    const rq_sweep s = {.prep = &prep, .opt = &o, .n_out = n_out, .n_group = n_group, .group = group, .step = to.step};
    const cuda_rows rows = {.dev = gpu->own, .s = &s, .label = "a test", .w = there[0], .weight = there[1]};
    CHECK_RQ(cuda_find_rows(&rows, &to, true));
    const float *of[3] = {to.scale, to.zero, to.step};
    for (int k = 0; k < 3; ++k) from_device(got[k], of[k], bytes);
    int64_t other = 0;
    for (int64_t i = 0; i < grids; ++i)
        other += got[0][i] != want[0][i] || got[1][i] != want[1][i] || got[2][i] != want[2][i];
    if (other) fprintf(stderr, "%lld of %lld groups are others than on the CPU\n", (long long)other, (long long)grids);
    EXPECT_EQ(other, 0);
    for (int k = 0; k < 3; ++k) {
        free(want[k]), free(got[k]);
        CHECK_CUDA(cudaFree((void *)(uintptr_t)of[k]));
    }
    for (int k = 0; k < 2; ++k) CHECK_CUDA(cudaFree(there[k]));
    free(w), free(weight);
}

int main(void) {
    rq_need_device(80);
    CHECK_RQ(rq_device_open(&gpu, "cuda"));
    test_tried(false);
    test_tried(true);
    test_rows(9, 70, 16);
    if (!rq_small()) test_rows(64, 256, 32);
    rq_device_close(gpu);
    return rq_done(__FILE__);
}
