/* SPDX-License-Identifier: Apache-2.0 */
/* Codebooks in the quantizer's CUDA row (host/backend_cuda_book*.c, cuda/comp_book*.cu) against its CPU row, which tests/test_comp_book.c holds against
 * definitions: codes of every compensator, length of vectors, metric and number of stages; outlier columns. Vectors along the inputs: comp_lines.c has the other
 * axis.
 * Libraries: quantizer requite. Targets: sm_80 sm_90a. In table.json. */
#include "comp_codes.h"

static void test_sweeps(void) {
    static const char *const rounds[] = {"round=ssvq,vec-len=8,codes=64,outliers=2,outlier-min=1",
                                         "round=ssvq,vec-len=4,codes=100,outliers=0,group=32",
                                         "round=vq,vec-len=4,codes=64,codes2=32,outliers=1,outlier-min=1",
                                         "round=vq,vec-len=6,codes=70,outliers=0,assign=diag",
                                         "round=vq,vec-len=12,codes=64,codes2=16,outliers=3,outlier-min=1"};
    char text[256];
    for (int c = 0; c < RQ_N_COMPS && !rq_small(); ++c) {
        for (size_t k = 0; k < sizeof rounds / sizeof *rounds; ++k) {
            snprintf(text, sizeof text, "%s,comp=%s,cd-sweeps=0,refit=0", rounds[k], rq_comp_get((rq_comp)c)->name);
            test_codes(30, 150, text);
        }
    }
    test_codes(28, 131, "round=ssvq,vec-len=8,codes=64,outliers=2,outlier-min=1,comp=rescomp,cd-sweeps=0,refit=0");
    test_codes(4, 40, "round=vq,vec-len=4,codes=40,codes2=16,comp=gptq,cd-sweeps=0,refit=0");
    test_codes(4, 30, "round=vq,vec-len=6,codes=32,comp=gptaq,cd-sweeps=0,refit=0,update=allw");
    test_codes(4, 30, "round=vq,vec-len=12,codes=32,comp=rtn,cd-sweeps=0,refit=0");
    if (!rq_small()) {
        test_codes(20, 96, "round=vq,vec-len=4,codes=64,codes2=32,stage-fit=sweep,comp=gptq,cd-sweeps=0,refit=0");
        test_codes(20, 96, "round=ssvq,vec-len=8,codes=32,book-cols=32,act-order=true,comp=gptq,cd-sweeps=0,refit=0");
        test_codes(3, 8, "round=ssvq,vec-len=8,codes=16,comp=gptq,cd-sweeps=0,refit=0");
    }
}

/* ---- k-means: the CPU's bytes */

static void test_kmeans(int64_t n, int d, int64_t k, rq_kmeans_weights weights, bool clumped) {
    rq_rng g = {(uint64_t)(n + d)};
    rq_kmeans_opt o = rq_kmeans_default(k, d);
    int64_t row = weights == RQ_KMEANS_PER_COMPONENT ? d : 1;
    float *x = rq_host_alloc((size_t)(n * d) * sizeof *x), *w = rq_host_alloc((size_t)(n * row) * sizeof *w),
          *centroid[2];
    uint16_t *assign[2];
    double loss[2];
    o.n_iter = 5;
    o.weights = weights;
    o.seeding = RQ_KMEANS_PLUSPLUS;
    for (int64_t i = 0; i < n * d; ++i) x[i] = clumped ? (float)(rq_rand_u32(&g) % 2) : rq_rand_float(&g);
    for (int64_t i = 0; i < n * row; ++i) w[i] = fabsf(rq_rand_float(&g)) + 0.01f;
    for (int c = 0; c < 2; ++c) {
        centroid[c] = rq_host_alloc((size_t)(k * d) * sizeof **centroid);
        assign[c] = rq_host_alloc((size_t)n * sizeof **assign);
        o.engine = c ? gpu->ops->kmeans : NULL;
        o.engine_own = c ? gpu->own : NULL;
        CHECK_RQ(rq_kmeans(centroid[c], assign[c], &loss[c], x, weights == RQ_KMEANS_PLAIN ? NULL : w, n, &o, false));
    }
    EXPECT_EQ(memcmp(centroid[0], centroid[1], (size_t)(k * d) * sizeof **centroid), 0);
    EXPECT_EQ(memcmp(assign[0], assign[1], (size_t)n * sizeof **assign), 0);
    EXPECT_EQ(loss[0], loss[1]);
    for (int c = 0; c < 2; ++c) free(centroid[c]), free(assign[c]);
    free(x), free(w);
}

static void test_all_kmeans(void) {
    test_kmeans(300, 8, 20, RQ_KMEANS_PER_COMPONENT, false);
    if (rq_small()) return;
    test_kmeans(2500, 4, 70, RQ_KMEANS_PER_COMPONENT, false);   /* chunks; a tile of points and some */
    test_kmeans(1100, 16, 300, RQ_KMEANS_PER_COMPONENT, false); /* several tiles of centroids, sums in global memory */
    test_kmeans(700, 5, 33, RQ_KMEANS_PER_POINT, false);
    test_kmeans(33, 1, 16, RQ_KMEANS_PLAIN, false);
    test_kmeans(400, 3, 30, RQ_KMEANS_PLAIN, true); /* more cells than values: some are empty */
    test_kmeans(1, 2, 3, RQ_KMEANS_PLAIN, false);
}

/* ---- refinement */

static void test_refinements(void) {
    test_codes(12, 70, "round=ssvq,vec-len=8,codes=32,outliers=2,outlier-min=1,comp=gptq");
    if (rq_small()) return;
    test_codes(30, 150, "round=ssvq,vec-len=8,codes=64,outliers=2,outlier-min=1,comp=qep,refit=0,cd-sweeps=3");
    test_codes(30, 136, "round=ssvq,vec-len=4,codes=40,outliers=3,outlier-min=1,group=32,comp=rescomp,refit=1");
    test_codes(30, 130, "round=vq,vec-len=4,codes=48,codes2=32,outliers=1,outlier-min=1,group=64,comp=gptaq");
    test_codes(20, 141, "round=vq,vec-len=6,codes=48,outliers=0,comp=gptq,cd-sweeps=0");
    test_codes(20, 136, "round=vq,vec-len=12,codes=32,codes2=16,outliers=2,outlier-min=1,comp=gptq");
    test_codes(20, 64, "round=ssvq,vec-len=8,codes=24,book-cols=32,comp=gptq,refit=1");
    test_codes(12, 64, "round=ssvq,vec-len=8,codes=24,comp=gptq,sign-steps=12");
}

static void test_plans(void) {
    test_plan(20, 136, "round=ssvq,codes=32,outliers=0,kmeans-iters=2,comp=rescomp");
    test_plan(9, 130, "round=vq,vec-len=6,codes=20,codes2=18,outliers=0,kmeans-iters=1,comp=qep,cd-sweeps=1,refit=1");
    test_plan(9, 96,
              "round=vq,vec-len=4,codes=20,codes2=18,stage-fit=sweep,outliers=0,kmeans-iters=1,group=32,comp=gptaq");
    test_plan(9, 64, "round=ssvq,vec-len=4,codes=16,book-cols=32,outliers=0,kmeans-iters=1,kmeans-points=50,comp=rtn");
}

int main(void) {
    rq_need_device(80);
    CHECK_RQ(rq_device_open(&gpu, "cuda"));
    test_all_kmeans();
    test_sweeps();
    test_refinements();
    if (!rq_small()) test_plans();
    return codes_done(__FILE__);
}
