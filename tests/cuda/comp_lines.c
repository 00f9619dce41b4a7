/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors down the outputs in the quantizer's CUDA row (host/backend_cuda_lines.c, backend_cuda_book*.c, cuda/comp_lines_sm80.cu) against its CPU row, which
 * tests/test_comp_columns.c and test_comp_book.c hold against definitions: codes of every compensator, length of vectors, size of a codebook, one and two stages; short
 * lines at the end of each matrix, outlier columns, columns that share codebooks, columns without any spread; the descent over codes, and the refits of
 * codebooks and of the columns' scales and biases.
 *
 * Libraries: quantizer requite. Targets: sm_80 sm_90a. In table.json. */
#include "comp_codes.h"
#include "rq_cuda_book.h"

#define SWEEP "vec-axis=out,cd-sweeps=0,refit=0,kmeans-iters=4,"

static void test_sweeps(void) {
    static const char *const rounds[] = {
        "round=vq," SWEEP "vec-len=6,codes=70,outliers=2,outlier-min=1",
        "round=vq," SWEEP "vec-len=4,codes=300,outliers=0,act-order=true",
        "round=vq," SWEEP "vec-len=4,codes=64,codes2=32,outliers=1,outlier-min=1,book-cols=50,book-order=hdiag",
        "round=vq," SWEEP "vec-len=12,codes=40,codes2=20,outliers=0,col-norm=range,stage-fit=sweep,act-order=true",
        "round=vq," SWEEP "vec-len=16,codes=33,outliers=0,update=allw",
        "round=vq," SWEEP "vec-len=3,codes=17,outliers=1,outlier-min=1,book-cols=64,update=allw"};
    char text[256];
    for (int c = 0; c < RQ_N_COMPS && !rq_small(); ++c) {
        for (size_t k = 0; k < sizeof rounds / sizeof *rounds; ++k) {
            snprintf(text, sizeof text, "%s,comp=%s", rounds[k], rq_comp_get((rq_comp)c)->name);
            test_codes(31, 140, text);
        }
    }
    test_codes(27, 131, "round=vq," SWEEP "vec-len=6,codes=300,outliers=2,outlier-min=1,comp=rescomp");
    test_codes(7, 30, "round=vq," SWEEP "vec-len=4,codes=24,codes2=16,comp=gptq,book-cols=10");
    test_codes(17, 30, "round=vq," SWEEP "vec-len=12,codes=16,comp=rtn");
    if (rq_small()) return;
    test_codes(1, 20, "round=vq," SWEEP "vec-len=2,codes=16,comp=gptaq");  /* no whole line in either matrix */
    test_codes(200, 24, "round=vq," SWEEP "vec-len=8,codes=16,comp=gptq"); /* several thread blocks */
    test_codes(64, 140, "round=vq," SWEEP "vec-len=5,codes=1000,codes2=520,comp=gptq");
    test_codes(36, 129, "round=vq," SWEEP "vec-len=6,codes=40,comp=gptq,block=32");
}

static void test_refinements(void) {
    test_codes(13, 40, "round=vq,vec-axis=out,vec-len=4,codes=20,outliers=1,outlier-min=1,comp=gptq,refit=1");
    if (rq_small()) return;
    test_codes(30, 150,
               "round=vq,vec-axis=out,vec-len=6,codes=48,outliers=2,outlier-min=1,comp=qep,refit=0,cd-sweeps=3");
    test_codes(30, 136,
               "round=vq,vec-axis=out,vec-len=4,codes=40,codes2=20,outliers=1,outlier-min=1,comp=rescomp,refit=1");
    test_codes(33, 130, "round=vq,vec-axis=out,vec-len=4,codes=48,book-cols=40,book-order=hdiag,outliers=0,comp=gptaq");
    test_codes(28, 141, "round=vq,vec-axis=out,vec-len=12,codes=24,outliers=3,outlier-min=1,comp=gptq,cd-sweeps=0");
    test_codes(40, 64, "round=vq,vec-axis=out,vec-len=16,codes=32,codes2=16,act-order=true,comp=gptq,col-norm=range");
    test_codes(40, 96, "round=vq,vec-axis=out,vec-len=3,codes=64,comp=gptq,refit=1,cd-sweeps=2");
}

static void test_plans(void) {
    test_plan(20, 136, "round=vq,vec-axis=out,vec-len=6,codes=60,outliers=0,kmeans-iters=2,comp=rescomp");
    test_plan(
        37, 130,
        "round=vq,vec-axis=out,vec-len=4,codes=20,codes2=18,outliers=0,kmeans-iters=1,comp=qep,cd-sweeps=1,refit=1");
    test_plan(
        36, 96,
        "round=vq,vec-axis=out,vec-len=12,codes=20,codes2=18,stage-fit=sweep,book-cols=40,outliers=0,kmeans-iters=1,"
        "comp=gptaq,refit=0");
    test_plan(20, 140, "round=vq,vec-axis=out,vec-len=4,codes=16,outliers=0,kmeans-iters=1,kmeans-points=50,comp=rtn");
}

/* What the kernels cannot do is refused. */
static void test_refused(void) {
    rq_cuda_book_block b = {.books = {.d = 6, .n_tile = 1}, .width = 129};
    rq_cuda_book_descent d = {.books = {.d = 17, .n_tile = 1}, .width = 128};
    EXPECT_EQ(rq_cuda_sweep_lines(&b, NULL), RQ_ERR_ARG);
    EXPECT_EQ(rq_cuda_descend_lines(&d, NULL), RQ_ERR_ARG);
    b.width = 1;
    b.books.signs = 1;
    EXPECT_EQ(rq_cuda_sweep_lines(&b, NULL), RQ_ERR_ARG);
    EXPECT(strstr(rq_cuda_last_error(), "2 to 16 weights") != NULL);
}

int main(void) {
    rq_need_device(80);
    CHECK_RQ(rq_device_open(&gpu, "cuda"));
    test_refused();
    test_sweeps();
    test_refinements();
    if (!rq_small()) test_plans();
    return codes_done(__FILE__);
}
