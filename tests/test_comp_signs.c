/* SPDX-License-Identifier: Apache-2.0 */
/* Sign learning against the definition of the loss in fp64: gradients by differences of the relaxed loss, the freezing rule on
 * scripted signs, all sign patterns of tiny problems, the loss never above that of the refinement alone, threads. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "backend.h"
#include "comp_signs.h"

enum { MAX_N = 24, MAX_M = 6, D = 4, K = 16 };

static double uniform(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(*seed >> 11) / 9007199254740992.0 - 0.5;
}

/* A task by hand, as rq_quantize_books leaves it to the refinement. */
typedef struct tiny {
    rq_book_task t;
    rq_prep prep;
    rq_quant_opt opt;
    float goal[MAX_M * MAX_N], scale[MAX_M], hd[MAX_N * MAX_N], step[1];
    rq_vec_code code[MAX_M * MAX_N / D];
    int32_t matrix[MAX_M], outlier_col[1];
    int64_t line_row[MAX_M + 1];
    int8_t outlier[MAX_M];
} tiny;

/* m rows of n inputs; column `outlier` (none below 0) is an outlier column. */
static void tiny_new(tiny *z, int64_t m, int64_t n, int outlier, uint64_t seed) {
    memset(z, 0, sizeof *z);
    double x[MAX_N];
    for (int tok = 0; tok < 2 * MAX_N; ++tok) {
        double common = 3 * uniform(&seed);
        for (int64_t j = 0; j < n; ++j) x[j] = uniform(&seed) * (1 + (double)(j % 3)) + common;
        for (int64_t i = 0; i < n * n; ++i) z->hd[i] += (float)(x[i / n] * x[i % n] / (double)n);
    }
    for (int64_t j = 0; j < n; ++j) z->hd[j * (n + 1)] += 0.05f;
    rq_quant_default_round(&z->opt, RQ_COMP_GPTQ, RQ_ROUND_SSVQ);
    z->prep = (rq_prep){.n = n, .hd = z->hd, .outlier_col = z->outlier_col, .n_outlier = outlier >= 0};
    z->outlier_col[0] = outlier;
    z->step[0] = 0.02f;
    z->t = (rq_book_task){.prep = &z->prep,
                          .opt = &z->opt,
                          .vec = rq_round_ssvq.vec,
                          .n_out = m,
                          .n = n,
                          .n_line = m,
                          .n_vec = rq_ceil_div(n, D),
                          .group = n,
                          .n_group = 1,
                          .d = D,
                          .start = z->goal,
                          .goal = z->goal,
                          .scale = z->scale,
                          .line_row = z->line_row,
                          .scale_unit = 1,
                          .code = z->code,
                          .outlier = z->outlier,
                          .outlier_step = z->step,
                          .matrix = z->matrix};
    rq_book *b = &z->t.book;
    *b = (rq_book){.d = D, .n_stage = 1, .k = {K, 0}, .k_pad = {RQ_SEARCH_PAD, 0}, .n_book = 1};
    b->vec_per_book = z->t.n_vec;
    b->n_table = rq_round_ssvq.vec->n_table(D);
    assert_int_equal(RQ_NEW(b->value[0], K * D), RQ_OK);
    assert_int_equal(RQ_NEW(b->table[0], b->n_table * RQ_SEARCH_PAD), RQ_OK);
    assert_int_equal(RQ_NEW(b->u8, K * D), RQ_OK);
    assert_int_equal(RQ_NEW(b->book_scale, 1), RQ_OK);
    for (int i = 0; i < K * D; ++i) b->value[0][i] = (float)(fabs(uniform(&seed)) * 3 + 0.1);
    rq_book_store(&z->t);
    for (int64_t r = 0; r < m; ++r) {
        z->line_row[r + 1] = r + 1;
        z->scale[r] = 1 + (float)r / 8;
        z->outlier[r] = (int8_t)(100 * uniform(&seed));
        for (int64_t j = 0; j < n; ++j) z->goal[r * n + j] = (float)(3 * uniform(&seed));
        for (int64_t v = 0; v < z->t.n_vec; ++v) {
            rq_vec_code *c = &z->code[r * z->t.n_vec + v];
            c->code[0] = (uint16_t)((uniform(&seed) + 0.5) * K);
            c->negative = (uint16_t)((uniform(&seed) + 0.5) * (1 << D));
        }
    }
}

static void tiny_free(tiny *z) { rq_book_free(&z->t.book); }

/* J in fp64 for signs[m][n] that may be any number and entries c[K * D]. */
static double relaxed(const tiny *z, const double *sign, const double *c) {
    double sum = 0;
    int64_t n = z->t.n;
    for (int64_t r = 0; r < z->t.n_out; ++r) {
        double e[MAX_N];
        for (int64_t j = 0; j < n; ++j) {
            bool kept = z->prep.n_outlier && j == z->outlier_col[0];
            double q = (double)z->scale[r] * sign[r * n + j] * c[z->code[r * z->t.n_vec + j / D].code[0] * D + j % D];
            e[j] = (kept ? (double)z->step[0] * z->outlier[r] : q) - (double)z->goal[r * n + j];
        }
        for (int64_t i = 0; i < n * n; ++i) sum += e[i / n] * e[i % n] * (double)z->hd[i];
    }
    return sum;
}

static void signs_and_entries(const tiny *z, double *sign, double *c) {
    int64_t n = z->t.n;
    for (int64_t i = 0; i < z->t.n_out * n; ++i)
        sign[i] = z->code[i / n * z->t.n_vec + i % n / D].negative >> (i % n % D) & 1 ? -1 : 1;
    for (int i = 0; i < K * D; ++i) c[i] = (double)z->t.book.value[0][i];
}

/* J is quadratic, so central differences are exact: by a sign, by an entry, and its second difference. */
static void gradients_match_differences(void **state) {
    (void)state;
    enum { M = 5, N = 22 };
    tiny z;
    rq_signs s;
    double sign[M * N], c[K * D];
    tiny_new(&z, M, N, 6, 3);
    signs_and_entries(&z, sign, c);
    assert_int_equal(rq_signs_new(&s, &z.t), RQ_OK);
    double loss = rq_signs_gradient(&s), now = relaxed(&z, sign, c);
    assert_true(fabs(loss - now) < 1e-4 * now);
    for (int i = 0; i < M * N; ++i) {
        double was = sign[i], side[2];
        for (int k = 0; k < 2; ++k) {
            sign[i] = was + (k ? 1 : -1);
            side[k] = relaxed(&z, sign, c);
        }
        sign[i] = was;
        const rq_vec_code *code = &z.code[i / N * z.t.n_vec + i % N / D];
        double entry = i % N == 6 ? 0 : c[code->code[0] * D + i % N % D];
        double want = 2 * (double)s.g[i] * (double)z.scale[i / N] * entry;
        assert_true(fabs((side[1] - side[0]) / 2 - want) < 1e-4 * (1 + fabs(want)));
    }
    for (int i = 0; i < K * D; ++i) {
        double was = c[i], side[2];
        for (int k = 0; k < 2; ++k) {
            c[i] = was + (k ? 1 : -1);
            side[k] = relaxed(&z, sign, c);
        }
        c[i] = was;
        assert_true(fabs((side[1] - side[0]) / 2 - s.slope[i]) < 1e-4 * (1 + fabs(s.slope[i])));
        double own = 0; /* members only pay for themselves in the diagonal that the step divides by */
        for (int64_t at = 0; at < M * N; ++at) {
            bool member = z.code[at / N * z.t.n_vec + at % N / D].code[0] * D + at % N % D == i && at % N != 6;
            own += member ? 2 * pow((double)z.scale[at / N], 2) * (double)z.hd[at % N * (N + 1)] : 0;
        }
        assert_true(fabs(own - s.curve[i]) < 1e-6 * (1 + own));
    }
    rq_signs_free(&s);
    tiny_free(&z);
}

/* Signs and codebook that were learned are those of the task; bits of outlier columns are left alone; some signs changed. */
static void learned_signs_are_the_codes(void **state) {
    (void)state;
    enum { M = 5, N = 22 };
    tiny z;
    rq_signs s;
    double was[M * N], sign[M * N], c[K * D];
    int n_flipped = 0;
    tiny_new(&z, M, N, 6, 4);
    signs_and_entries(&z, was, c);
    assert_int_equal(rq_signs_new(&s, &z.t), RQ_OK);
    rq_signs_run(&s, 20, 0.4);
    signs_and_entries(&z, sign, c);
    for (int i = 0; i < M * N; ++i) {
        assert_true(sign[i] == (i % N == 6 ? was[i] : s.sign[i].latent < 0 ? -1 : 1));
        n_flipped += sign[i] != was[i];
    }
    assert_true(n_flipped > 5 && n_flipped < M * N / 2 + 20);
    for (int i = 0; i < K * D; ++i)
        assert_true(fabs(c[i] - (double)s.entry[i]) <= 0.501 * (double)z.t.book.book_scale[0]);
    rq_signs_free(&s);
    tiny_free(&z);
}

static void freezing_takes_the_majority(void **state) {
    (void)state;
    rq_sign calm = {.latent = 1}, busy = {.latent = 1}, even = {.latent = -1};
    for (int i = 0; i < 9; ++i) {
        rq_sign_step(&calm, -0.1f, 1);
        /* Positive in six steps, negative in three, and negative at last. */
        static const float path[] = {1, -1, 1, 1, -1, 1, 1, 1, -1};
        float before = i ? path[i - 1] : 1;
        busy.latent = before;
        busy.momentum = 0;
        rq_sign_step(&busy, 10 * (before - path[i]), 1); /* momentum takes a tenth of it */
        assert_true((busy.latent < 0) == (path[i] < 0));
    }
    assert_int_equal(calm.balance, 9);
    assert_int_equal(busy.balance, 3);
    assert_true(calm.flips == 0 && calm.momentum < 0 && calm.latent > 1);
    /* flips of steps 1, 2, 4, 5, 8 (from 0), each remembered at 0.9 a step */
    double want = 0.1 * (pow(0.9, 7) + pow(0.9, 6) + pow(0.9, 4) + pow(0.9, 3) + 1);
    assert_true(fabs((double)busy.flips - want) < 1e-6);
    rq_sign_freeze(&busy, (float)want * 1.01f);
    assert_false(busy.frozen);
    rq_sign_freeze(&busy, (float)want * 0.99f);
    assert_true(busy.frozen && busy.latent > 0);
    float at = busy.latent;
    for (int i = 0; i < 50; ++i) rq_sign_step(&busy, 100, 1);
    assert_true(busy.latent == at);
    even.flips = 1;
    rq_sign_freeze(&even, 0.5f);
    assert_true(even.frozen && even.latent < 0);
    rq_sign_freeze(&calm, 0);
    assert_false(calm.frozen);
}

/* One row of two vectors: all 256 sign patterns with all pairs of codes. Learning with refinement comes near the least. */
static void tiny_problems_come_near_the_optimum(void **state) {
    (void)state;
    enum { N = 8, TRIALS = 60 };
    double ratio[2] = {0, 0};
    for (int trial = 0; trial < TRIALS; ++trial) {
        tiny z;
        double best = INFINITY, sign[N], c[K * D], got[2];
        tiny_new(&z, 1, N, -1, 100 + (uint64_t)trial);
        signs_and_entries(&z, sign, c);
        for (int codes = 0; codes < K * K; ++codes) {
            z.code[0].code[0] = (uint16_t)(codes % K);
            z.code[1].code[0] = (uint16_t)(codes / K);
            for (int pattern = 0; pattern < 1 << N; ++pattern) {
                for (int j = 0; j < N; ++j) sign[j] = pattern >> j & 1 ? -1 : 1;
                best = fmin(best, relaxed(&z, sign, c));
            }
        }
        for (int learns = 0; learns < 2; ++learns) {
            tiny y;
            tiny_new(&y, 1, N, -1, 100 + (uint64_t)trial);
            y.opt.refit = 0;
            y.opt.sign_steps = 0;
            assert_int_equal(rq_refine_book(&y.t), RQ_OK);
            double loss, first;
            assert_int_equal(rq_book_loss(&y.t, &first), RQ_OK);
            if (learns) { /* the codebook stays as it is, for the comparison: signs alone, then descent */
                rq_vec_code was[2] = {y.code[0], y.code[1]};
                rq_signs s;
                assert_int_equal(rq_signs_new(&s, &y.t), RQ_OK);
                memset(s.curve, 0, (size_t)s.n_entry * sizeof *s.curve);
                rq_signs_run(&s, 20, 0.4);
                rq_signs_free(&s);
                assert_int_equal(rq_refine_book(&y.t), RQ_OK);
                assert_int_equal(rq_book_loss(&y.t, &loss), RQ_OK);
                if (loss > first) memcpy(y.code, was, sizeof was);
            }
            assert_int_equal(rq_book_loss(&y.t, &got[learns]), RQ_OK);
            assert_true(got[learns] >= best * (1 - 1e-4) && got[learns] <= first * (1 + 1e-6));
            ratio[learns] += got[learns] / best / TRIALS;
            tiny_free(&y);
        }
        tiny_free(&z);
    }
    print_message("over the least: %.4f by descent, %.4f with signs learned\n", ratio[0], ratio[1]);
    assert_true(ratio[1] <= ratio[0] && ratio[1] < 1.35);
}

/* The refinement with learned signs ends no higher than without, and scales and signs are what is stored. */
static void learning_never_raises_the_loss(void **state) {
    (void)state;
    int lower = 0;
    for (int trial = 0; trial < 40; ++trial) {
        double loss[2];
        for (int learns = 0; learns < 2; ++learns) {
            tiny z;
            tiny_new(&z, MAX_M, 19 + trial % 5, trial % 2 ? 3 : -1, (uint64_t)trial);
            z.opt.refit = 6; /* what the rounds after learning bring is brought without it too */
            z.opt.sign_steps = learns ? 25 : 0;
            z.opt.sign_rate = trial % 4 == 3 ? 20 : 0.4;
            assert_int_equal(rq_refine_book(&z.t), RQ_OK);
            assert_int_equal(rq_book_loss(&z.t, &loss[learns]), RQ_OK);
            double sign[MAX_M * MAX_N], c[K * D];
            signs_and_entries(&z, sign, c);
            double exact = relaxed(&z, sign, c);
            assert_true(fabs(exact - loss[learns]) < 1e-4 * exact);
            for (int i = 0; i < K * D; ++i) assert_true((float)c[i] == z.t.book.book_scale[0] * (float)z.t.book.u8[i]);
            tiny_free(&z);
        }
        assert_true(loss[1] <= loss[0] * (1 + 1e-6));
        lower += loss[1] < loss[0];
    }
    assert_true(lower > 20);
}

static void same_bytes_for_any_thread_count(void **state) {
    (void)state;
    tiny first;
    for (int threads = 1; threads <= 3; ++threads) {
        tiny z;
        rq_set_threads(threads);
        tiny_new(&z, MAX_M, 22, 2, 9);
        z.opt.sign_steps = 25;
        assert_int_equal(rq_refine_book(&z.t), RQ_OK);
        if (threads > 1) {
            assert_memory_equal(first.code, z.code, sizeof z.code);
            assert_memory_equal(first.scale, z.scale, sizeof z.scale);
            assert_memory_equal(first.t.book.u8, z.t.book.u8, K * D);
            tiny_free(&z);
        } else {
            first = z;
        }
    }
    tiny_free(&first);
    rq_set_threads(0);
}

static void bad_options_are_refused(void **state) {
    (void)state;
    rq_quant_opt o;
    rq_quant_default_round(&o, RQ_COMP_QEP, RQ_ROUND_SSVQ);
    assert_int_equal(o.sign_steps, 0);
    assert_int_equal(rq_quant_set_all(&o, "sign-steps=40,sign-rate=0.2"), RQ_OK);
    assert_true(o.sign_steps == 40 && o.sign_rate == 0.2);
    assert_int_equal(rq_quant_check(&o, 64), RQ_OK);
    o.sign_rate = NAN;
    assert_int_equal(rq_quant_check(&o, 64), RQ_ERR_ARG);
    rq_quant_default_round(&o, RQ_COMP_QEP, RQ_ROUND_VQ);
    o.sign_steps = 40;
    assert_int_equal(rq_quant_check(&o, 64), RQ_ERR_ARG);
    assert_non_null(strstr(rq_last_error(), "vq has no signs"));
    rq_quant_default_round(&o, RQ_COMP_RTN, RQ_ROUND_SSVQ);
    o.sign_steps = 40;
    assert_int_equal(rq_quant_check(&o, 64), RQ_ERR_ARG);
}

static int start(void **state) {
    (void)state;
    return rq_backend_init() == RQ_OK ? 0 : -1;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_match_differences),    cmocka_unit_test(learned_signs_are_the_codes),
        cmocka_unit_test(freezing_takes_the_majority),    cmocka_unit_test(tiny_problems_come_near_the_optimum),
        cmocka_unit_test(learning_never_raises_the_loss), cmocka_unit_test(same_bytes_for_any_thread_count),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests(tests, start, NULL);
}
