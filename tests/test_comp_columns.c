/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors down the outputs against definitions worked out in fp64: the sweep of every compensator, scales and biases of columns and
 * their refit, codebooks that columns pick, the second stage's fit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "comp_problem.h"

/* Vectors down the outputs: every column corrected by a solve against what is left of H, for lines of 4, 4 and 2 rows. */
static void lines_equal_their_literal_form(void **state) {
    (void)state;
    enum { M = 10, N = 14, D = 4 };
    static const rq_comp comps[] = {RQ_COMP_GPTQ, RQ_COMP_GPTAQ, RQ_COMP_RESCOMP, RQ_COMP_GPTQ};
    int n_compared = 0;
    for (int i = 0; i < 60; ++i) {
        problem p = problem_new(M, N, 120, 131 + (uint64_t)i);
        rq_quant_opt o = options(RQ_ROUND_VQ, comps[i % 4], D, 16);
        o.vec_out = true;
        o.act_order = i % 4 == 3;
        o.block = 5;
        if (i % 5 == 1) o.col_norm = RQ_COL_RANGE;
        if (i % 3 == 1) o.book_cols = 6, o.book_order = RQ_BOOK_HDIAG;
        rq_prep prep;
        rq_quant_result r;
        double h[N * N], d[N * N], inv[N * N], goal[N * D], w[N * D], q[N * D], near[N * D], hr[N], dr[N], e[N];
        assert_int_equal(rq_prepare(&prep, p.h, p.d, N, &o, "test"), RQ_OK);
        assert_int_equal(rq_quantize_matrix(&r, p.w, M, &prep, &o, "test"), RQ_OK);
        assert_true(!r.vq.book_of == (i % 3 != 1));
        in_sweep_order(h, d, &p, &prep);
        inverse(inv, h, N);
        for (int64_t row0 = 0; row0 < M; row0 += D) { /* [sweep column][row of the line] */
            int64_t n_rows = M - row0 < D ? M - row0 : D;
            bool clear = true;
            for (int64_t x = 0; x < N * n_rows; ++x) {
                goal[x] = w[x] = (double)p.w[(row0 + x % n_rows) * N + prep.perm[x / n_rows]];
                for (int64_t k = 0; k < N * N; ++k)
                    goal[x] += o.alpha * (double)p.w[(row0 + x % n_rows) * N + prep.perm[k / N]] * d[k] *
                               inv[k % N * N + x / n_rows];
            }
            for (int64_t j = 0; j < N; ++j) {
                codebook c = codebook_of(&r, prep.perm[j]);
                clear &= round_lane(q + j * n_rows, w + j * n_rows, n_rows, &c, &r, prep.perm[j]);
                clear &= round_lane(near + j * n_rows, goal + j * n_rows, n_rows, &c, &r, prep.perm[j]);
                solve_rest(hr, h, h, N, j, 1, j + 1);
                solve_rest(dr, d, h, N, j, 1, j + 1);
                for (int64_t x = (j + 1) * n_rows; x < N * n_rows; ++x) {
                    int64_t at = x / n_rows - j - 1, k = j * n_rows + x % n_rows;
                    double start = (double)p.w[(row0 + x % n_rows) * N + prep.perm[j]];
                    w[x] += (w[k] - q[k]) * hr[at] + o.alpha * q[k] * dr[at] +
                            o.alpha2 * (start - q[k]) * (hr[at] + dr[at]);
                }
            }
            double loss[2] = {0, 0};
            for (int64_t x = 0; x < 2 * n_rows; ++x) {
                const double *from = x < n_rows ? q : near;
                for (int64_t j = 0; j < N; ++j) e[j] = from[j * n_rows + x % n_rows] - goal[j * n_rows + x % n_rows];
                for (int64_t k = 0; k < N * N; ++k) loss[x / n_rows] += e[k / N] * e[k % N] * h[k];
            }
            if (!clear || fabs(loss[0] - loss[1]) < 1e-3 * loss[0]) continue;
            ++n_compared;
            for (int64_t x = 0; x < N * n_rows; ++x) {
                double got = (double)r.q[(row0 + x % n_rows) * N + prep.perm[x / n_rows]];
                assert_true(fabs((loss[0] <= loss[1] ? q : near)[x] - got) < 1e-3);
            }
        }
        rq_quant_result_free(&r);
        rq_prep_free(&prep);
        problem_free(&p);
    }
    assert_true(n_compared > 40);
}

/* Scale and bias of a column before any refit. */
static void columns_are_normalized(void **state) {
    (void)state;
    enum { M = 21, N = 9 };
    problem p = problem_new(M, N, 60, 17);
    for (int range = 0; range < 2; ++range) {
        rq_quant_opt o = options(RQ_ROUND_VQ, RQ_COMP_GPTQ, 4, 16);
        rq_prep prep;
        rq_quant_result r;
        o.vec_out = true;
        o.col_norm = range ? RQ_COL_RANGE : RQ_COL_STD;
        assert_int_equal(rq_prepare(&prep, p.h, NULL, N, &o, "test"), RQ_OK);
        assert_int_equal(rq_quantize_matrix(&r, p.w, M, &prep, &o, "test"), RQ_OK);
        for (int64_t j = 0; j < N; ++j) {
            double low = INFINITY, high = -INFINITY, mean = 0, square = 0;
            for (int64_t i = 0; i < M; ++i) {
                double w = (double)p.w[i * N + j];
                low = fmin(low, w);
                high = fmax(high, w);
                mean += w / M;
            }
            for (int64_t i = 0; i < M; ++i) square += pow((double)p.w[i * N + j] - mean, 2) / M;
            double scale = (double)rq_f32_of_f16(r.vq.col_scale[j]), bias = (double)rq_f32_of_f16(r.vq.col_bias[j]);
            assert_true(fabs(scale - (range ? high - low : sqrt(square))) < 1e-3 * scale);
            assert_true(fabs(bias - (range ? low : mean)) < 1e-3 * scale);
        }
        rq_quant_result_free(&r);
        rq_prep_free(&prep);
    }
    problem_free(&p);
}

/* --book-order hdiag: columns of a codebook have larger H_jj than those of the next one, and there are as many of them. */
static void books_follow_the_diagonal(void **state) {
    (void)state;
    enum { M = 12, N = 23 };
    problem p = problem_new(M, N, 60, 23);
    rq_quant_opt o = options(RQ_ROUND_VQ, RQ_COMP_GPTQ, 4, 16);
    rq_prep prep;
    rq_quant_result r;
    int count[4] = {0};
    o.vec_out = true;
    o.outliers = 2;
    o.book_cols = 6;
    o.book_order = RQ_BOOK_HDIAG;
    assert_int_equal(rq_prepare(&prep, p.h, NULL, N, &o, "test"), RQ_OK);
    assert_int_equal(rq_quantize_matrix(&r, p.w, M, &prep, &o, "test"), RQ_OK);
    assert_int_equal(prep.n_outlier, 2);
    for (int64_t j = 0; j < N; ++j) {
        if (j == prep.outlier_col[0] || j == prep.outlier_col[1]) continue;
        ++count[r.vq.book_of[j]];
        for (int64_t k = 0; k < N; ++k) {
            if (k == prep.outlier_col[0] || k == prep.outlier_col[1]) continue;
            if (r.vq.book_of[j] < r.vq.book_of[k]) assert_true(p.h[j * N + j] >= p.h[k * N + k]);
        }
    }
    for (int b = 0; b < 4; ++b) assert_true(count[b] == 5 || count[b] == 6);
    rq_quant_result_free(&r);
    rq_prep_free(&prep);
    problem_free(&p);
}

/* tr(E H E^T) for the rows of one matrix when its columns have scales s and biases b. */
static double columns_loss(const rq_book_task *t, const double *h, int64_t row0, int64_t row1, const double *s,
                           const double *b) {
    double sum = 0, e[MAX_N];
    for (int64_t r = row0; r < row1; ++r) {
        int64_t line = 0;
        while (t->line_row[line + 1] <= r) ++line;
        for (int64_t j = 0; j < t->n; ++j) {
            const rq_vec_code *c = &t->code[line * t->n_vec + j];
            double v = (double)t->book.value[0][c->code[0] * t->d + r - t->line_row[line]];
            e[j] = s[j] * v + b[j] - (double)t->goal[r * t->n + j];
        }
        for (int64_t k = 0; k < t->n * t->n; ++k) sum += e[k / t->n] * e[k % t->n] * h[k];
    }
    return sum;
}

/* Scales and biases of all columns against the minimum of their quadratic, found by differences of the loss itself. */
static void columns_refit_is_least_squares(void **state) {
    (void)state;
    enum { M = 17, N = 11, D = 4, K = 16, FIRST = 10, TWO_N = 2 * N };
    problem p = problem_new(M, N, 80, 29);
    rq_quant_opt o = options(RQ_ROUND_VQ, RQ_COMP_GPTQ, D, K);
    rq_prep prep;
    int64_t line_row[] = {0, 4, 8, 10, 14, 17};
    int32_t matrix[M];
    float scale[2 * N], bias[2 * N], value[K * D];
    rq_vec_code code[5 * N];
    double h[N * N], unused[N * N];
    uint64_t seed = 3;
    o.vec_out = true;
    o.refit = 1;
    assert_int_equal(rq_prepare(&prep, p.h, NULL, N, &o, "test"), RQ_OK);
    in_sweep_order(h, unused, &p, &prep);
    for (int i = 0; i < M; ++i) matrix[i] = i >= FIRST;
    for (int i = 0; i < K * D; ++i) value[i] = (float)uniform(&seed) * 4;
    for (int i = 0; i < 2 * N; ++i) scale[i] = 0.375f, bias[i] = 0;
    for (int line = 0; line < 5; ++line) { /* codes that have something to do with the weights */
        for (int j = 0; j < N; ++j) {
            double best = INFINITY;
            for (int c = 0; c < K; ++c) {
                double cost = 0;
                for (int64_t r = line_row[line]; r < line_row[line + 1]; ++r)
                    cost += pow(0.375 * (double)value[c * D + r - line_row[line]] - (double)p.w[r * N + j], 2);
                if (cost < best) {
                    best = cost;
                    code[line * N + j] = (rq_vec_code){{(uint16_t)c, 0}, 0};
                }
            }
        }
    }
    rq_book_task t = {
        .prep = &prep,
        .opt = &o,
        .vec = rq_round_vq.vec,
        .n_out = M,
        .n = N,
        .n_line = 5,
        .n_vec = N,
        .d = D,
        .vec_out = true,
        .start = p.w,
        .goal = p.w,
        .col_scale = scale,
        .col_bias = bias,
        .line_row = line_row,
        .scale_unit = 1,
        .code = code,
        .matrix = matrix,
        .book = {.d = D, .n_stage = 1, .k = {K, 0}, .n_book = 1, .vec_per_book = N, .value = {value, NULL}}};
    assert_int_equal(rq_refit_columns(&t), RQ_OK);
    for (int m = 0; m < 2; ++m) {
        int64_t row0 = m ? FIRST : 0, row1 = m ? M : FIRST;
        double x[TWO_N], a[TWO_N * TWO_N], inv[TWO_N * TWO_N], slope[TWO_N], start[TWO_N];
        for (int i = 0; i < TWO_N; ++i) start[i] = i < N ? 0.375 : 0;
        double before = columns_loss(&t, h, row0, row1, start, start + N);
        double up[TWO_N];
        for (int i = 0; i < TWO_N; ++i) {
            memcpy(x, start, sizeof x);
            x[i] += 1;
            up[i] = columns_loss(&t, h, row0, row1, x, x + N);
        }
        for (int i = 0; i < TWO_N; ++i) {
            for (int k = 0; k < TWO_N; ++k) {
                memcpy(x, start, sizeof x);
                x[i] += 1;
                x[k] += 1;
                a[i * TWO_N + k] = columns_loss(&t, h, row0, row1, x, x + N) - up[i] - up[k] + before;
            }
        }
        for (int i = 0; i < TWO_N; ++i) slope[i] = up[i] - before - a[i * TWO_N + i] / 2;
        inverse(inv, a, TWO_N);
        for (int i = 0; i < TWO_N; ++i) {
            x[i] = start[i];
            for (int k = 0; k < TWO_N; ++k) x[i] -= inv[i * TWO_N + k] * slope[k];
        }
        double best = columns_loss(&t, h, row0, row1, x, x + N);
        for (int i = 0; i < N; ++i) x[i] = (double)scale[m * N + i], x[N + i] = (double)bias[m * N + i];
        double got = columns_loss(&t, h, row0, row1, x, x + N);
        assert_true(got >= best * (1 - 1e-6) && best < 0.9 * before && got - best < 0.02 * (before - best));
    }
    rq_prep_free(&prep);
    problem_free(&p);
}

/* What a sweep with the first stage alone leaves of each weight, literally: left[column in natural order][row]. */
static bool literal_left(double *left, const problem *p, const rq_prep *prep, const rq_quant_result *r, int64_t D) {
    int64_t n = p->n;
    double h[MAX_N * MAX_N], d[MAX_N * MAX_N], hr[MAX_N], w[MAX_N * MAX_N], q[8];
    bool clear = true;
    in_sweep_order(h, d, p, prep);
    for (int64_t i = 0; i < p->m * n; ++i) w[i] = (double)p->w[i / n * n + prep->perm[i % n]];
    for (int64_t j = 0; j < n; ++j) {
        int64_t col = prep->perm[j];
        codebook c = codebook_of(r, col);
        solve_rest(hr, h, h, n, j, 1, j + 1);
        for (int64_t row0 = 0; row0 < p->m; row0 += D) {
            int64_t n_rows = p->m - row0 < D ? p->m - row0 : D;
            double lane[8];
            for (int64_t e = 0; e < n_rows; ++e) lane[e] = w[(row0 + e) * n + j];
            clear &= round_lane(q, lane, n_rows, &c, r, col);
            for (int64_t e = 0; e < n_rows; ++e) {
                left[col * p->m + row0 + e] = lane[e] - q[e];
                for (int64_t k = j + 1; k < n; ++k) w[(row0 + e) * n + k] += (lane[e] - q[e]) * hr[k - j - 1];
            }
        }
    }
    return clear;
}

/* --stage-fit sweep: entries of the second codebook are means of what the first pass left, weighed by s^2 M^(1/2). */
static void second_stage_is_fitted_to_what_a_sweep_leaves(void **state) {
    (void)state;
    enum { M = 60, N = 12, D = 4, K = 16 };
    int n_checked = 0;
    for (uint64_t seed = 0; seed < 12; ++seed) {
        problem p = problem_new(M, N, 100, 400 + seed);
        rq_quant_opt o = options(RQ_ROUND_VQ, RQ_COMP_GPTQ, D, K);
        rq_prep prep;
        rq_quant_result one, r;
        double left[N * M], h[N * N], unused[N * N], hr[N], sum[K][D] = {{0}}, weight[K] = {0};
        o.vec_out = true;
        o.act_order = seed % 2;
        o.kmeans_iters = 300;
        assert_int_equal(rq_prepare(&prep, p.h, NULL, N, &o, "test"), RQ_OK);
        assert_int_equal(rq_quantize_matrix(&one, p.w, M, &prep, &o, "test"), RQ_OK);
        o.codes2 = K;
        o.stage_fit = RQ_STAGE_SWEEP;
        assert_int_equal(rq_quantize_matrix(&r, p.w, M, &prep, &o, "test"), RQ_OK);
        assert_memory_equal(one.vq.book[0], r.vq.book[0], K * D * sizeof(rq_f16));
        bool clear = literal_left(left, &p, &prep, &r, D);
        in_sweep_order(h, unused, &p, &prep);
        for (int64_t j = 0; j < N; ++j) {
            int64_t col = prep.perm[j];
            double s = (double)rq_f32_of_f16(r.vq.col_scale[col]), m = h[j * N + j];
            solve_rest(hr, h, h, N, j, 1, j + 1);
            for (int64_t k = j + 1; k < N; ++k) m -= hr[k - j - 1] * h[j * N + k];
            for (int64_t row0 = 0; row0 < M; row0 += D) {
                double best = INFINITY, second = INFINITY;
                int64_t at = 0;
                for (int64_t c = 0; c < K; ++c) {
                    double cost = 0;
                    for (int64_t e = 0; e < D; ++e)
                        cost += pow(left[col * M + row0 + e] / s - (double)rq_f32_of_f16(r.vq.book[1][c * D + e]), 2);
                    second = cost < best ? best : fmin(second, cost);
                    if (cost < best) {
                        best = cost;
                        at = c;
                    }
                }
                clear = clear && second - best > 1e-3;
                weight[at] += s * s * sqrt(m);
                for (int64_t e = 0; e < D; ++e) sum[at][e] += s * sqrt(m) * left[col * M + row0 + e];
            }
        }
        for (int c = 0; clear && c < K; ++c) {
            for (int e = 0; e < D && weight[c] > 0; ++e) {
                assert_true(fabs(sum[c][e] / weight[c] - (double)rq_f32_of_f16(r.vq.book[1][c * D + e])) < 2e-3);
                ++n_checked;
            }
        }
        rq_quant_result_free(&one);
        rq_quant_result_free(&r);
        rq_prep_free(&prep);
        problem_free(&p);
    }
    assert_true(n_checked > 2 * K * D);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_equal_their_literal_form),
        cmocka_unit_test(columns_are_normalized),
        cmocka_unit_test(books_follow_the_diagonal),
        cmocka_unit_test(columns_refit_is_least_squares),
        cmocka_unit_test(second_stage_is_fitted_to_what_a_sweep_leaves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
