/* SPDX-License-Identifier: Apache-2.0 */
/* k-means against brute force in fp64: the assignment, the update, the loss, for each kind of weights; ties; empty cells;
 * degenerate points, scales and weights; the same bytes for any number of threads; what is refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels.h"
#include "kmeans_impl.h"
#include "random.h"

typedef struct problem {
    rq_kmeans_opt o;
    int64_t n;
    float *x, *w, *c;
    uint16_t *a;
    double reach; /* of the points from their centre */
} problem;

static float normal(uint64_t seed, uint64_t i) { /* near enough: the sum of uniform numbers */
    double s = -6;
    for (uint64_t j = 0; j < 12; ++j) s += rq_random_unit(seed, 12 * i + j);
    return (float)s;
}

static problem make(int64_t n, int64_t k, int d, rq_kmeans_weights kind, uint64_t seed) {
    problem p = {.o = rq_kmeans_default(k, d), .n = n, .reach = 1};
    p.o.weights = kind;
    p.o.seed = seed;
    p.x = malloc((size_t)(n * d) * sizeof *p.x);
    p.c = malloc((size_t)(k * d) * sizeof *p.c);
    p.a = malloc((size_t)n * sizeof *p.a);
    assert_true(p.x && p.c && p.a);
    int64_t n_w = kind == RQ_KMEANS_PLAIN ? 0 : kind == RQ_KMEANS_PER_POINT ? n : n * d;
    if (n_w) p.w = malloc((size_t)n_w * sizeof *p.w);
    for (int64_t i = 0; i < n * d; ++i) p.x[i] = normal(seed, (uint64_t)i);
    for (int64_t i = 0; i < n_w; ++i) {
        float g = normal(seed + 99, (uint64_t)i);
        p.w[i] = g * g;
    }
    return p;
}

static void drop(problem *p) { free(p->x), free(p->w), free(p->c), free(p->a); }

static double weight_of(const problem *p, int64_t i, int r) {
    if (p->o.weights == RQ_KMEANS_PLAIN) return 1;
    return p->o.weights == RQ_KMEANS_PER_POINT ? p->w[i] : p->w[i * p->o.d + r];
}

static double distance(const problem *p, int64_t i, const float *c) {
    double s = 0;
    for (int r = 0; r < p->o.d; ++r) s += weight_of(p, i, r) * pow((double)p->x[i * p->o.d + r] - (double)c[r], 2);
    return s;
}

/* sum_r w (|x|^2 + |c|^2): what the rounding of a distance is in proportion to. */
static double rounding(const problem *p, int64_t i, const float *c) {
    double s = 0;
    for (int r = 0; r < p->o.d; ++r) {
        double x = (double)p->x[i * p->o.d + r];
        s += weight_of(p, i, r) * (x * x + (double)c[r] * (double)c[r] + p->reach * p->reach);
    }
    return s;
}

/* Every point is with its nearest centroid as far as fp32 can tell; returns the loss. */
static double check_assignment(const problem *p, const uint16_t *a) {
    double total = 0;
    for (int64_t i = 0; i < p->n; ++i) {
        assert_true(a[i] < p->o.k);
        const float *mine = p->c + a[i] * p->o.d;
        double own = distance(p, i, mine);
        for (int64_t j = 0; j < p->o.k; ++j) {
            const float *c = p->c + j * p->o.d;
            assert_true(own <= distance(p, i, c) + 2e-6 * (rounding(p, i, c) + rounding(p, i, mine)));
        }
        total += own;
    }
    return total;
}

static void check_near(double a, double b, double tolerance) {
    if (!(fabs(a - b) <= tolerance)) fail_msg("%.17g is not within %g of %.17g", a, tolerance, b);
}

static bool all_finite(const float *v, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        if (!isfinite(v[i])) return false;
    }
    return true;
}

/* One iteration from given centroids: the centroids are the weighted means of the points that brute force puts there. */
static void check_update(problem *p) {
    int64_t k = p->o.k, d = p->o.d;
    float *start = malloc((size_t)(k * d) * sizeof *start);
    uint16_t *a0 = malloc((size_t)p->n * sizeof *a0);
    double *sum = calloc((size_t)(2 * k * d), sizeof *sum), loss, *weight = sum + k * d;
    for (int64_t j = 0; j < k * d; ++j)
        p->c[j] = start[j] = p->x[(j / d * 7 % p->n) * d + j % d] + 0.01f * (float)(j % 5);
    assert_int_equal(rq_kmeans_assign(a0, &loss, p->x, p->w, p->n, p->c, &p->o), RQ_OK);
    check_near(loss, check_assignment(p, a0), 1e-12 * loss);
    p->o.n_iter = 1;
    assert_int_equal(rq_kmeans(p->c, p->a, &loss, p->x, p->w, p->n, &p->o, true), RQ_OK);
    for (int64_t i = 0; i < p->n; ++i) {
        for (int r = 0; r < d; ++r) {
            sum[a0[i] * d + r] += weight_of(p, i, r) * (double)p->x[i * d + r];
            weight[a0[i] * d + r] += weight_of(p, i, r);
        }
    }
    for (int64_t j = 0; j < k; ++j) {
        bool empty = true;
        for (int r = 0; r < d; ++r) empty &= !(weight[j * d + r] > 0);
        if (empty) continue; /* repair is tested elsewhere */
        for (int r = 0; r < d; ++r) {
            int64_t at = j * d + r;
            check_near((double)p->c[at], weight[at] > 0 ? sum[at] / weight[at] : (double)start[at], 1e-6);
        }
    }
    check_near(loss, check_assignment(p, p->a), 1e-12 * loss);
    free(start);
    free(a0);
    free(sum);
}

static void test_brute_force(void **state) {
    (void)state;
    static const struct {
        int64_t n, k;
        int d;
    } sizes[] = {{1, 1, 1},     {15, 4, 3},     {64, 64, 2},    {1000, 7, 5},
                 {3001, 33, 8}, {2500, 256, 4}, {999, 100, 16}, {700, 17, 13}};
    for (int kind = 0; kind < 3; ++kind) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; ++s) {
            problem p = make(sizes[s].n, sizes[s].k, sizes[s].d, (rq_kmeans_weights)kind, s);
            check_update(&p);
            for (int64_t i = 0; i < p.n && p.w; ++i) p.w[i] = 0; /* points without weight, wholly or in part */
            check_update(&p);
            drop(&p);
        }
    }
}

/* One point and centroid by the formula: a chain of fused multiply-adds from the bias. */
static float score_of(const float *u, const float *table, int64_t i, int64_t j, int f) {
    enum { L = RQ_KMEANS_LANES };
    const float *x = u + i / L * f * L + i % L, *v = table + j / L * (f + 1) * L + j % L;
    float s = v[0];
    for (int r = 0; r < f; ++r) s = fmaf(x[r * L], v[(1 + r) * L], s);
    return s;
}

/* Every twin of the kernel, for every number of features: on whole numbers, with many ties, which go to the lowest index, and on
 * fractions, where rounding must be the same. */
static void test_kernels(void **state) {
    (void)state;
    enum { L = RQ_KMEANS_LANES, N = 64, MAX_BLOCKS = 9, MAX_FEAT = 32 };
    static float u[N * MAX_FEAT], table[MAX_BLOCKS * L * (MAX_FEAT + 1)];
    assert_string_equal(rq_kmeans_twin_at(0)->name, "c");
    for (int f = 1; f <= MAX_FEAT; ++f) {
        for (int whole = 0; whole < 2; ++whole) {
            for (int64_t k = 1; k <= MAX_BLOCKS * L; k += k < 34 ? 1 : 55) {
                int64_t n_block = rq_ceil_div(k, L);
                for (int i = 0; i < N * f; ++i) {
                    u[i] = whole ? (float)(rq_random_u64(1, (uint64_t)i) % 5) - 2 : normal(1, (uint64_t)i);
                }
                for (int i = 0; i < n_block * L * (f + 1); ++i) {
                    table[i] = whole ? (float)(rq_random_u64(2, (uint64_t)i) % 5) - 2 : normal(2, (uint64_t)i);
                }
                for (int64_t j = k; j < n_block * L; ++j) table[(n_block - 1) * L * (f + 1) + j % L] = INFINITY;
                for (int t = 0; rq_kmeans_twin_at(t); ++t) {
                    uint16_t got[N];
                    memset(got, 0xff, sizeof got);
                    rq_kmeans_twin_at(t)->nearest(got, u, N / L, f, table, n_block);
                    for (int64_t i = 0; i < N; ++i) {
                        int64_t at = 0;
                        for (int64_t j = 1; j < k; ++j) {
                            if (score_of(u, table, i, j, f) < score_of(u, table, i, at, f)) at = j;
                        }
                        assert_int_equal(got[i], at);
                    }
                }
            }
        }
    }
}

static void test_threads(void **state) {
    (void)state;
    static const int threads[] = {2, 3, 5};
    for (int kind = 0; kind < 3; ++kind) {
        for (int seeding = 0; seeding < 2; ++seeding) {
            problem p = make(9000, 60, 8, (rq_kmeans_weights)kind, 5),
                    q = make(9000, 60, 8, (rq_kmeans_weights)kind, 5);
            double loss, other;
            p.o.seeding = seeding ? RQ_KMEANS_PLUSPLUS : RQ_KMEANS_SAMPLE;
            p.o.n_iter = 6;
            rq_set_threads(1);
            assert_int_equal(rq_kmeans(p.c, p.a, &loss, p.x, p.w, p.n, &p.o, false), RQ_OK);
            for (int t = 0; t < 3; ++t) {
                rq_set_threads(threads[t]);
                assert_int_equal(rq_kmeans(q.c, q.a, &other, q.x, q.w, q.n, &p.o, false), RQ_OK);
                assert_memory_equal(p.c, q.c, 60 * 8 * sizeof *p.c);
                assert_memory_equal(p.a, q.a, 9000 * sizeof *p.a);
                assert_memory_equal(&loss, &other, sizeof loss);
            }
            drop(&p);
            drop(&q);
        }
    }
    rq_set_threads(2);
}

static void test_loss_falls(void **state) {
    (void)state;
    for (int kind = 0; kind < 3; ++kind) {
        for (int seeding = 0; seeding < 2; ++seeding) {
            problem p = make(4000, 50, 4, (rq_kmeans_weights)kind, 3);
            double last = INFINITY, loss;
            p.o.seeding = seeding ? RQ_KMEANS_PLUSPLUS : RQ_KMEANS_SAMPLE;
            for (int it = 0; it <= 10; ++it) {
                p.o.n_iter = it;
                assert_int_equal(rq_kmeans(p.c, p.a, &loss, p.x, p.w, p.n, &p.o, false), RQ_OK);
                check_near(loss, check_assignment(&p, p.a), 1e-12 * loss);
                assert_true(loss <= last * (1 + 1e-6));
                last = loss;
            }
            drop(&p);
        }
    }
}

/* Clusters far apart and a start with all centroids in one of them: empty cells must find the others. */
static void test_repair(void **state) {
    (void)state;
    problem p = make(4000, 20, 2, RQ_KMEANS_PLAIN, 4);
    double loss;
    for (int64_t i = 0; i < p.n; ++i) {
        for (int r = 0; r < 2; ++r) p.x[2 * i + r] = 100.0f * (float)(r ? i % 20 / 5 : i % 5) + 0.1f * p.x[2 * i + r];
    }
    p.reach = 300;
    for (int64_t j = 0; j < 40; ++j) p.c[j] = 1e6f + (float)j; /* all but one stay empty */
    p.o.n_iter = 10;
    assert_int_equal(rq_kmeans(p.c, p.a, &loss, p.x, NULL, p.n, &p.o, true), RQ_OK);
    check_near(loss, check_assignment(&p, p.a), 1e-12 * loss);
    assert_true(loss < 4000 * 2 * 0.02); /* 20 clusters with a variance of 0.01 a component */
    drop(&p);
}

/* Whatever the points are: finite centroids, a loss that brute force agrees with, and zero when there are cells enough. */
static void check_degenerate(problem *p, bool zero) {
    for (int seeding = 0; seeding < 2; ++seeding) {
        double loss = NAN;
        p->o.seeding = seeding ? RQ_KMEANS_PLUSPLUS : RQ_KMEANS_SAMPLE;
        assert_int_equal(rq_kmeans(p->c, p->a, &loss, p->x, p->w, p->n, &p->o, false), RQ_OK);
        assert_true(all_finite(p->c, p->o.k * p->o.d));
        double expect = 0;
        for (int64_t i = 0; i < p->n; ++i) expect += distance(p, i, p->c + p->a[i] * p->o.d);
        assert_true(isfinite(loss));
        check_near(loss, expect, 1e-9 * expect);
        if (zero) assert_true(loss == 0);
    }
}

static void test_degenerate(void **state) {
    (void)state;
    static const double scales[] = {1, 1e30, 3e38, 1e-30, 1e-40, 1e-45};
    for (int kind = 0; kind < 3; ++kind) {
        for (size_t s = 0; s < sizeof scales / sizeof *scales; ++s) {
            problem p = make(300, 20, 3, (rq_kmeans_weights)kind, 8);
            for (int64_t i = 0; i < p.n * 3; ++i) p.x[i] = (float)(scales[s] * (double)p.x[i] / 6);
            check_degenerate(&p, false);
            double centre_loss = 0, loss;
            for (int64_t i = 0; i < p.n; ++i) centre_loss += distance(&p, i, (float[3]){0, 0, 0});
            assert_int_equal(rq_kmeans(p.c, NULL, &loss, p.x, p.w, p.n, &p.o, false), RQ_OK);
            if (s + 1 < sizeof scales / sizeof *scales) assert_true(loss < 0.6 * centre_loss);
            for (int64_t i = 0; i < p.n; ++i) memcpy(p.x + 3 * i, p.x, 3 * sizeof *p.x); /* all equal */
            check_degenerate(&p, true);
            p.n = 7; /* more cells than points */
            for (int64_t i = 0; i < p.n * 3; ++i) p.x[i] = (float)(scales[s] * normal(1, (uint64_t)i) / 6);
            check_degenerate(&p, true);
            drop(&p);
        }
        problem p = make(500, 8, 4, (rq_kmeans_weights)kind, 9);
        for (int64_t i = 0; i < p.n; ++i) { /* constant columns, one of them large; few values */
            p.x[4 * i] = 1e7f;
            p.x[4 * i + 1] = 0;
            p.x[4 * i + 2] = (float)(i % 2);
            p.x[4 * i + 3] = (float)(i / 2 % 4);
        }
        check_degenerate(&p, true);
        for (int64_t i = 0; p.w && i < p.n * (kind == 2 ? 4 : 1); ++i) p.w[i] = i % 3 ? 0 : 1e38f;
        check_degenerate(&p, false);
        for (int64_t i = 0; p.w && i < p.n * (kind == 2 ? 4 : 1); ++i) p.w[i] = 0;
        check_degenerate(&p, true);
        drop(&p);
    }
}

/* A value of one of several kinds, few or many different ones, at any scale. */
static float odd_value(uint64_t seed, uint64_t i, int kind, double scale) {
    double u = rq_random_unit(seed, i);
    switch (kind) {
    case 0: return (float)(scale * (u - 0.5));
    case 1: return (float)(scale * floor(3 * u));
    case 2: return u < 0.5 ? 0 : (float)(scale * 1e-30 * u);
    case 3: return u < 0.9 ? (float)(scale * 1e-6 * u) : (float)(u < 0.95 ? scale : -scale);
    default: return (float)scale;
    }
}

/* Small problems of every kind: all is finite, the assignment is the nearest one as far as fp32 can tell at the reach of the
 * points, and iterations never leave more loss than the seeds. */
static void test_many(void **state) {
    (void)state;
    static const double scales[] = {1, 1.7e38, 1e-38, 1e-44, 1e20, 1e-20};
    for (uint64_t seed = 0; seed < 4000; ++seed) {
        uint64_t r = rq_random_u64(77, seed);
        problem p = make(1 + (int64_t)(r % 60), 1 + (int64_t)(r / 64 % 70), 1 + (int)(r / 8192 % 16),
                         (rq_kmeans_weights)(r / 131072 % 3), seed);
        int kind = (int)(seed % 5), d = p.o.d;
        double scale = scales[seed / 5 % 6], start, loss, reach = 0;
        p.o.seeding = seed % 7 ? RQ_KMEANS_SAMPLE : RQ_KMEANS_PLUSPLUS;
        p.o.n_iter = 0;
        for (int64_t i = 0; i < p.n * d; ++i) {
            p.x[i] = odd_value(seed, (uint64_t)i, kind, scale);
            reach = fmax(reach, 2 * fabs((double)p.x[i]));
        }
        for (int64_t i = 0; i < p.n * (p.o.weights == RQ_KMEANS_PER_POINT ? 1 : d) && p.w; ++i) {
            p.w[i] = fabsf(odd_value(seed + 1, (uint64_t)i, (int)(seed / 3 % 5), scales[seed / 11 % 6]));
        }
        assert_int_equal(rq_kmeans(p.c, p.a, &start, p.x, p.w, p.n, &p.o, false), RQ_OK);
        p.o.n_iter = 6;
        assert_int_equal(rq_kmeans(p.c, p.a, &loss, p.x, p.w, p.n, &p.o, false), RQ_OK);
        assert_true(isfinite(loss) && all_finite(p.c, p.o.k * d));
        double total = 0, slack = 0;
        for (int64_t i = 0; i < p.n; ++i) {
            double own = distance(&p, i, p.c + p.a[i] * d), w = 0;
            for (int q = 0; q < d; ++q) w = fmax(w, weight_of(&p, i, q));
            total += own;
            slack += 4e-6 * d * w * reach * reach;
            for (int64_t j = 0; j < p.o.k; ++j) {
                assert_true(own <= distance(&p, i, p.c + j * d) + 4e-6 * d * w * reach * reach);
            }
        }
        check_near(loss, total, 1e-9 * total);
        assert_true(loss <= start + slack);
        drop(&p);
    }
}

/* Centroids that are very far from points that are near to each other. */
static void test_far_centroids(void **state) {
    (void)state;
    problem p = make(100, 4, 2, RQ_KMEANS_PLAIN, 1);
    uint16_t expect[2] = {3, 1};
    static const float c[8] = {3e38f, 3e38f, 1, 1, -3e38f, 1e30f, -1, -1};
    memcpy(p.c, c, sizeof c);
    for (int64_t i = 0; i < p.n; ++i) p.x[2 * i] = p.x[2 * i + 1] = i % 2 ? 0.9f : -0.9f;
    assert_int_equal(rq_kmeans_assign(p.a, NULL, p.x, NULL, p.n, p.c, &p.o), RQ_OK);
    for (int64_t i = 0; i < p.n; ++i) assert_int_equal(p.a[i], expect[i % 2]);
    p.c[2] = p.c[3] = 2e38f; /* all far, and one of them nearest */
    p.c[6] = p.c[7] = 1e30f;
    assert_int_equal(rq_kmeans_assign(p.a, NULL, p.x, NULL, p.n, p.c, &p.o), RQ_OK);
    for (int64_t i = 0; i < p.n; ++i) assert_int_equal(p.a[i], 3);
    drop(&p);
}

static bool stop_at_3(void *user, double done_frac, const char *text) {
    int *calls = user;
    assert_true(done_frac > 0 && done_frac <= 1 && text);
    return ++*calls == 3;
}

static void test_options(void **state) {
    (void)state;
    problem p = make(20000, 30, 4, RQ_KMEANS_PER_POINT, 12);
    double all, sampled, loose;
    assert_int_equal(rq_kmeans(p.c, p.a, &all, p.x, p.w, p.n, &p.o, false), RQ_OK);
    p.o.max_points = 3000;
    assert_int_equal(rq_kmeans(p.c, p.a, &sampled, p.x, p.w, p.n, &p.o, false), RQ_OK);
    check_near(sampled, check_assignment(&p, p.a), 1e-12 * sampled); /* assign is of all points */
    assert_true(sampled > all && sampled < 1.1 * all);
    p.o.max_points = 0;
    p.o.tol = 0.01;
    assert_int_equal(rq_kmeans(p.c, p.a, &loose, p.x, p.w, p.n, &p.o, false), RQ_OK);
    check_near(loose, check_assignment(&p, p.a), 1e-12 * loose);
    assert_true(loose > all && loose < 1.2 * all);
    int calls = 0;
    p.o.tol = 0;
    p.o.progress = stop_at_3;
    p.o.user = &calls;
    assert_int_equal(rq_kmeans(p.c, p.a, &all, p.x, p.w, p.n, &p.o, false), RQ_ERR_CANCELLED);
    assert_int_equal(calls, 3);
    drop(&p);
}

static void check_refused(const problem *p, rq_status expect, const char *word) {
    double loss;
    assert_int_equal(rq_kmeans(p->c, p->a, &loss, p->x, p->w, p->n, &p->o, true), expect);
    if (!strstr(rq_last_error(), word)) fail_msg("'%s' is not in '%s'", word, rq_last_error());
}

static void test_refusals(void **state) {
    (void)state;
    problem p = make(50, 5, 3, RQ_KMEANS_PER_COMPONENT, 1), q = p;
    memset(p.c, 0, 15 * sizeof *p.c);
    q.o.k = 65537, check_refused(&q, RQ_ERR_ARG, "65537"), q = p;
    q.o.k = 0, check_refused(&q, RQ_ERR_ARG, "0 centroids"), q = p;
    q.o.d = 17, check_refused(&q, RQ_ERR_ARG, "17"), q = p;
    q.n = 0, check_refused(&q, RQ_ERR_ARG, "0 points"), q = p;
    q.o.struct_size = 8, check_refused(&q, RQ_ERR_ARG, "struct_size"), q = p;
    q.o.tol = NAN, check_refused(&q, RQ_ERR_ARG, "tol"), q = p;
    q.o.n_iter = -1, check_refused(&q, RQ_ERR_ARG, "n_iter"), q = p;
    q.w = NULL, check_refused(&q, RQ_ERR_ARG, "not given"), q = p;
    q.o.weights = RQ_KMEANS_PLAIN, check_refused(&q, RQ_ERR_ARG, "not asked"), q = p;
    q.x[100] = NAN, check_refused(&q, RQ_ERR_NUMERIC, "component 1 of point 33"), q.x[100] = 0;
    q.x[0] = -INFINITY, check_refused(&q, RQ_ERR_NUMERIC, "component 0 of point 0"), q.x[0] = 0;
    q.w[149] = -1, check_refused(&q, RQ_ERR_ARG, "component 2 of weight 49"), q.w[149] = INFINITY;
    check_refused(&q, RQ_ERR_NUMERIC, "weight 49"), q.w[149] = 1;
    q.c[7] = NAN, check_refused(&q, RQ_ERR_NUMERIC, "component 1 of centroid 2"), q.c[7] = 0;
    drop(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_brute_force), cmocka_unit_test(test_kernels),       cmocka_unit_test(test_threads),
        cmocka_unit_test(test_loss_falls),  cmocka_unit_test(test_repair),        cmocka_unit_test(test_degenerate),
        cmocka_unit_test(test_many),        cmocka_unit_test(test_far_centroids), cmocka_unit_test(test_options),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
