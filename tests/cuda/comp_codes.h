/* SPDX-License-Identifier: Apache-2.0 */
/* A set of matrices quantized with codebooks by the CPU's row and by CUDA's: for comp_book.c and comp_lines.c. Codes may differ where two entries are equally near
 * but for the order of sums, and then in what follows in the row: at most one row of a set (down the outputs one
 * line), and by codes_done() one row in fifty of all, has any. */
#ifndef RQ_TEST_COMP_CODES_H
#define RQ_TEST_COMP_CODES_H
#include "comp_case.h"

static int64_t rows_compared, rows_other;

/* Rows that became something else: by what codes stand for, so outlier columns count too. */
static inline int64_t other_rows(const float *a, const float *b, int64_t n_out, int64_t n) {
    int64_t other = 0;
    for (int64_t i = 0; i < n_out; ++i) {
        bool differs = false;
        for (int64_t j = i * n; j < (i + 1) * n; ++j) differs |= !(fabsf(a[j] - b[j]) <= 1e-5f * fabsf(a[j]));
        other += differs;
    }
    return other;
}

/* settings: as --override has them, after the rounder's defaults. A set of two matrices, the second of 5 rows. */
static inline void test_codes(int64_t n_out, int64_t n, const char *settings) {
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
    int64_t most = o.vec_out ? o.vec_len : 1; /* a line */
    if (other > most)
        fprintf(stderr, "%s: %lld of %lld rows have other codes\n", settings, (long long)other,
                (long long)n_out + SECOND);
    EXPECT(other <= most);
    EXPECT_NEAR(loss[1], loss[0], 1e-3 * fabs(loss[0]) + 1e-5 * whole);
    for (int k = 0; k < 2; ++k) {
        rq_quant_result_free(&r[k][0]);
        rq_quant_result_free(&r[k][1]);
        rq_prep_free(&prep[k]);
    }
    problem_free(&p);
}

/* Ends a program. */
static inline int codes_done(const char *program) {
    EXPECT(50 * rows_other <= rows_compared);
    printf("%lld of %lld rows have other codes than on the CPU\n", (long long)rows_other, (long long)rows_compared);
    rq_device_close(gpu);
    return rq_done(program);
}

#endif
