/* SPDX-License-Identifier: Apache-2.0 */
/* Codebooks in the quantizer's CUDA row (host/backend_cuda_book*.c, cuda/comp_book*.cu) against its CPU row, which tests/test_comp_book.c holds against
 * definitions: codes of every compensator, length of vectors, metric and number of stages; outlier columns.
 *
 * Codes may differ where two entries are equally near but for the order of sums, and then in what follows in the row: at most one row in fifty has any.
 * Libraries: quantizer requite. Targets: sm_80 sm_90a. In table.json. */
#include "comp_case.h"

static int64_t rows_compared, rows_other;

/* Rows that became something else: by what codes stand for, so outlier columns count too. */
static int64_t other_rows(const float *a, const float *b, int64_t n_out, int64_t n) {
    int64_t other = 0;
    for (int64_t i = 0; i < n_out; ++i) {
        bool differs = false;
        for (int64_t j = i * n; j < (i + 1) * n; ++j) differs |= !(fabsf(a[j] - b[j]) <= 1e-5f * fabsf(a[j]));
        other += differs;
    }
    return other;
}

/* settings: as --override has them, after the rounder's defaults. A set of two matrices, the second of 5 rows. */
static void test_codes(int64_t n_out, int64_t n, const char *settings) {
    enum { SECOND = 5 };
    problem p = problem_new(n_out + SECOND, n, (int)n + 30, true);
    const rq_quant_matrix m[2] = {{"first", p.w, n_out}, {"second", p.w + n_out * n, SECOND}};
    rq_quant_opt o;
    rq_prep prep[2];
    rq_quant_result r[2][2];
    double loss[2], whole, unused;
    rq_quant_default_round(&o, RQ_COMP_GPTQ, RQ_ROUND_SSVQ);
    CHECK_RQ(rq_quant_set_all(&o, settings));
    for (int k = 0; k < 2; ++k) {
        CHECK_RQ(rq_prepare_on(&prep[k], k ? gpu : NULL, p.h, p.d, n, &o, settings));
        CHECK_RQ(rq_quantize_set(r[k], m, 2, &prep[k], &o));
        CHECK_RQ(rq_layer_loss(p.w, r[k][0].q, n_out, n, p.h, p.d, &unused, &loss[k], &whole));
    }
    int64_t other = other_rows(r[0][0].q, r[1][0].q, n_out, n) + other_rows(r[0][1].q, r[1][1].q, SECOND, n);
    rows_compared += n_out + SECOND;
    rows_other += other;
    if (other > 1)
        fprintf(stderr, "%s: %lld of %lld rows have other codes\n", settings, (long long)other,
                (long long)n_out + SECOND);
    EXPECT(other <= 1);
    EXPECT_NEAR(loss[1], loss[0], 1e-3 * fabs(loss[0]) + 1e-5 * whole);
    for (int k = 0; k < 2; ++k) {
        rq_quant_result_free(&r[k][0]);
        rq_quant_result_free(&r[k][1]);
        rq_prep_free(&prep[k]);
    }
    problem_free(&p);
}

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
        test_codes(20, 96, "round=vq,vec-len=6,vec-axis=out,codes=32,comp=gptq,cd-sweeps=0,refit=0");
        test_codes(3, 8, "round=ssvq,vec-len=8,codes=16,comp=gptq,cd-sweeps=0,refit=0");
    }
}

int main(void) {
    rq_need_device(80);
    CHECK_RQ(rq_device_open(&gpu, "cuda"));
    test_sweeps();
    EXPECT(50 * rows_other <= rows_compared);
    printf("%lld of %lld rows have other codes than on the CPU\n", (long long)rows_other, (long long)rows_compared);
    rq_device_close(gpu);
    return rq_done(__FILE__);
}
