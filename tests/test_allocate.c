/* SPDX-License-Identifier: Apache-2.0 */
/* Bit allocation against every combination on small banks, and against its own bound on a bank the size of a model. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "allocate.h"
#include "random.h"

enum { MAX_M = 400, MAX_S = 12 };

typedef struct fixture {
    int64_t bits[MAX_M * MAX_S];
    double loss[MAX_M * MAX_S], weight[MAX_M];
    int setting[MAX_M];
} fixture;

/* The least loss within the budget over all choices, and the fewest bits of those that have it. */
static double brute_force(const rq_bank *b, int64_t budget, int64_t *bits) {
    int at[MAX_M] = {0};
    double best = INFINITY;
    for (;;) {
        double loss = 0;
        int64_t used = 0, m = 0;
        for (int64_t i = 0; i < b->n_matrix; ++i) {
            loss += (b->weight ? b->weight[i] : 1) * b->loss[i * b->n_setting + at[i]];
            used += b->bits[i * b->n_setting + at[i]];
        }
        if (used <= budget && (loss < best || (loss == best && used < *bits))) best = loss, *bits = used;
        while (m < b->n_matrix && ++at[m] == b->n_setting) at[m++] = 0;
        if (m == b->n_matrix) return best;
    }
}

static void check_choice(const rq_bank *b, const int *setting, const rq_allocation *r, int64_t budget) {
    double loss = 0;
    int64_t bits = 0;
    for (int64_t m = 0; m < b->n_matrix; ++m) {
        assert_true(setting[m] >= 0 && setting[m] < b->n_setting);
        loss += (b->weight ? b->weight[m] : 1) * b->loss[m * b->n_setting + setting[m]];
        bits += b->bits[m * b->n_setting + setting[m]];
    }
    assert_true(bits == r->bits && bits <= budget);
    assert_true(fabs(loss - r->loss) <= 1e-12 * loss);
    assert_true(r->bound <= r->loss);
}

static void test_brute_force(void **state) {
    (void)state;
    static fixture f;
    for (uint64_t seed = 0; seed < 3000; ++seed) {
        rq_bank b = {
            .n_matrix = 1 + (int64_t)(seed % 6), .n_setting = 1 + (int)(seed / 6 % 5), .bits = f.bits, .loss = f.loss};
        bool whole = seed % 2, missing = seed % 3 == 0;
        int64_t low = 0, high = 0, bits = 0;
        if (seed % 5 == 0) b.weight = f.weight;
        for (int64_t m = 0; m < b.n_matrix; ++m) {
            int64_t lo = INT64_MAX, hi = 0;
            f.weight[m] = (double)(rq_random_u64(seed, 7000 + (uint64_t)m) % 4);
            for (int s = 0; s < b.n_setting; ++s) {
                int64_t i = m * b.n_setting + s;
                uint64_t u = (uint64_t)i;
                f.bits[i] = (int64_t)(rq_random_u64(seed, u) % 20);
                f.loss[i] = whole ? (double)(rq_random_u64(seed, 1000 + u) % 8) : rq_random_unit(seed, 1000 + u);
                if (missing && s > 0 && rq_random_u64(seed, 2000 + u) % 4 == 0) f.loss[i] = INFINITY;
                if (isinf(f.loss[i])) continue;
                lo = rq_min_i64(lo, f.bits[i]);
                hi = rq_max_i64(hi, f.bits[i]);
            }
            low += lo;
            high += hi;
        }
        for (int64_t budget = low; budget <= high + 1; budget += 1 + (high - low) / 7) {
            rq_allocation r;
            rq_bank finite = b; /* infinity times a weight of 0 is no number */
            if (missing) finite.weight = b.weight = NULL;
            assert_int_equal(rq_allocate(f.setting, &r, &b, budget, 0), RQ_OK);
            check_choice(&finite, f.setting, &r, budget);
            double best = brute_force(&finite, budget, &bits);
            assert_true(r.exact);
            if (!(fabs(r.loss - best) <= 1e-9 * best)) fail_msg("seed %d: %g, %g is possible", (int)seed, r.loss, best);
            if (whole) assert_int_equal(r.bits, bits);
        }
        rq_allocation r;
        if (low > 0) assert_int_equal(rq_allocate(f.setting, &r, &b, low - 1, 0), RQ_ERR_ARG);
    }
}

/* 30 blocks of seven matrices with losses that fall about fourfold a bit. */
static void make_model(fixture *f, rq_bank *b) {
    static const int64_t size[7] = {331776, 110592, 110592, 331776, 884736, 884736, 884736};
    static const double bpw[10] = {1.52, 2.02, 2.27, 2.52, 3.02, 3.27, 3.52, 4.02, 4.27, 8.03};
    *b = (rq_bank){.n_matrix = 210, .n_setting = 10, .bits = f->bits, .loss = f->loss};
    for (int64_t m = 0; m < b->n_matrix; ++m) {
        double scale = exp(4 * rq_random_unit(1, (uint64_t)m)) * (double)size[m % 7];
        for (int s = 0; s < b->n_setting; ++s) {
            int64_t i = m * b->n_setting + s;
            f->bits[i] = (int64_t)(bpw[s] * (double)size[m % 7] / 32) * 32;
            f->loss[i] = scale * pow(0.25, bpw[s]) * (0.8 + 0.4 * rq_random_unit(2, (uint64_t)i));
        }
    }
}

static void test_model(void **state) {
    (void)state;
    static fixture f;
    int again[MAX_M];
    rq_bank b;
    make_model(&f, &b);
    int64_t weights = 30LL * (331776 * 2 + 110592 * 2 + 884736 * 3);
    for (double bpw = 1.6; bpw < 7.8; bpw += 0.37) {
        rq_allocation r, cut;
        int64_t budget = (int64_t)(bpw * (double)weights);
        assert_int_equal(rq_allocate(f.setting, &r, &b, budget, 0), RQ_OK);
        check_choice(&b, f.setting, &r, budget);
        assert_true(r.exact && r.bits > budget - 400000);
        memcpy(again, f.setting, sizeof again);
        assert_int_equal(rq_allocate(f.setting, &cut, &b, budget, 210 * 20), RQ_OK); /* with hardly any memory */
        check_choice(&b, f.setting, &cut, budget);
        assert_true(cut.loss >= r.loss && cut.bound <= r.loss && cut.loss < 1.01 * r.loss);
        assert_int_equal(rq_allocate(f.setting, &cut, &b, budget, 0), RQ_OK);
        assert_memory_equal(again, f.setting, 210 * sizeof *again);
    }
}

/* A heavier weight on one matrix never takes bits from it. */
static void test_weights(void **state) {
    (void)state;
    static fixture f;
    rq_bank b;
    rq_allocation r;
    int64_t last = 0;
    make_model(&f, &b);
    for (int m = 0; m < 210; ++m) f.weight[m] = 1;
    b.weight = f.weight;
    for (f.weight[100] = 0; f.weight[100] < 1e6; f.weight[100] = 10 * f.weight[100] + 0.01) {
        assert_int_equal(rq_allocate(f.setting, &r, &b, 200000000, 0), RQ_OK);
        assert_true(f.bits[1000 + f.setting[100]] >= last);
        last = f.bits[1000 + f.setting[100]];
    }
    assert_true(last > f.bits[1000]);
}

static void check_refused(const rq_bank *b, int64_t budget, const char *word) {
    int setting[4];
    rq_allocation r;
    assert_int_equal(rq_allocate(setting, &r, b, budget, 0), RQ_ERR_ARG);
    if (!strstr(rq_last_error(), word)) fail_msg("'%s' is not in '%s'", word, rq_last_error());
}

static void test_refusals(void **state) {
    (void)state;
    int64_t bits[4] = {10, 20, 30, 40};
    double loss[4] = {4, 2, 3, 1}, weight[2] = {1, -1};
    rq_bank b = {.n_matrix = 2, .n_setting = 2, .bits = bits, .loss = loss};
    check_refused(&b, 39, "take 40 bits, the budget is 39");
    b.weight = weight, check_refused(&b, 100, "weight of matrix 1 is -1"), b.weight = NULL;
    loss[2] = NAN, check_refused(&b, 100, "setting 0 of matrix 1"), loss[2] = INFINITY;
    loss[3] = INFINITY, check_refused(&b, 100, "matrix 1 has no setting"), loss[3] = 1;
    bits[1] = -1, check_refused(&b, 100, "setting 1 of matrix 0"), bits[1] = 20;
    b.n_setting = 0, check_refused(&b, 100, "0 settings");
    b.n_setting = 256, check_refused(&b, 100, "256 settings");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_brute_force),
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
