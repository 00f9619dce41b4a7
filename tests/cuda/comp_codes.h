/* SPDX-License-Identifier: Apache-2.0 */
/* A set of matrices quantized with codebooks by the CPU's row and by CUDA's: for comp_book.c and comp_lines.c. Codes may differ where two entries are equally near
 * but for the order of sums, and then in what follows in the row: at most one row of a set (down the outputs one
 * line), and by codes_done() one row in fifty of all, has any. */
#ifndef RQ_TEST_COMP_CODES_H
#define RQ_TEST_COMP_CODES_H
#include "comp_case.h"

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
    twin t;
    rq_quant_default_round(&o, RQ_COMP_GPTQ, RQ_ROUND_SSVQ);
    CHECK_RQ(rq_quant_set_all(&o, settings));
    twin_new(&t, &p, m, 2, &o, settings);
    int64_t other = other_rows(t.r[0][0].q, t.r[1][0].q, n_out, n) + other_rows(t.r[0][1].q, t.r[1][1].q, SECOND, n);
    rows_seen(settings, other, n_out + SECOND, o.vec_out ? o.vec_len : 1);
    twin_free(&t);
    problem_free(&p);
}

/* Ends a program. */
static inline int codes_done(const char *program) {
    rows_done(50);
    rq_device_close(gpu);
    return rq_done(program);
}

#endif
