/* SPDX-License-Identifier: Apache-2.0 */
/* The thread pool: every item exactly once, for every number of items and threads; calls from inside an item; several
 * callers at once; changes of the number of threads; settings, log and errors per thread. ThreadSanitizer runs this too. */
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdio.h>

#include <cmocka.h>

#include "common.h"

enum { MAX_ITEMS = 1000 };

typedef struct marks {
    _Atomic int seen[MAX_ITEMS];
    int plain[MAX_ITEMS]; /* not atomic: an item's own place needs no lock, and the caller may read it afterwards */
} marks;

static void mark(void *arg, int64_t i) {
    marks *m = arg;
    atomic_fetch_add(&m->seen[i], 1);
    m->plain[i] += (int)i + 1;
}

static void every_item_once(void **state) {
    (void)state;
    static const int counts[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 100, 999, 1000};
    static const int threads[] = {1, 2, 3, 8, 33};
    for (size_t t = 0; t < sizeof threads / sizeof *threads; ++t) {
        rq_set_threads(threads[t]);
        assert_int_equal(rq_get_threads(), threads[t]);
        for (size_t c = 0; c < sizeof counts / sizeof *counts; ++c) {
            static marks m;
            memset(&m, 0, sizeof m);
            rq_parallel_for(counts[c], mark, &m);
            for (int i = 0; i < MAX_ITEMS; ++i) {
                assert_int_equal(m.seen[i], i < counts[c]);
                assert_int_equal(m.plain[i], i < counts[c] ? i + 1 : 0);
            }
        }
    }
}

/* A negative count is no work, not a loop without end. */
static void negative_count(void **state) {
    (void)state;
    static marks m;
    memset(&m, 0, sizeof m);
    rq_set_threads(4);
    rq_parallel_for(-1, mark, &m);
    for (int i = 0; i < MAX_ITEMS; ++i) assert_int_equal(m.plain[i], 0);
}

typedef struct nest {
    int depth;
    int64_t width;
    _Atomic int64_t leaves;
    _Atomic int moved; /* an inner item ran on another thread than its outer one */
    pthread_t owner;
    struct nest *top;
} nest;

static void go_down(void *arg, int64_t i) {
    (void)i;
    nest *n = arg;
    if (n->depth < n->top->depth && !pthread_equal(n->owner, pthread_self())) atomic_store(&n->top->moved, 1);
    if (n->depth == 0) {
        atomic_fetch_add(&n->top->leaves, 1);
        return;
    }
    nest inner = {.depth = n->depth - 1, .width = n->width, .owner = pthread_self(), .top = n->top};
    rq_parallel_for(n->width, go_down, &inner);
}

/* Calls from inside an item run on that item's thread, however deep, and lose nothing. */
static void nested_calls(void **state) {
    (void)state;
    for (int threads = 1; threads <= 8; threads *= 2) {
        rq_set_threads(threads);
        nest top = {.depth = 3, .width = 6};
        top.top = &top;
        rq_parallel_for(top.width, go_down, &top);
        assert_int_equal(top.leaves, 6 * 6 * 6 * 6);
        assert_int_equal(top.moved, 0);
    }
}

typedef struct sum_job {
    int64_t n;
    int64_t part[MAX_ITEMS];
    int64_t total;
    int rounds;
} sum_job;

static void add_part(void *arg, int64_t i) {
    sum_job *s = arg;
    s->part[i] = i * i;
}

static void *many_rounds(void *arg) {
    sum_job *s = arg;
    for (int r = 0; r < s->rounds; ++r) {
        memset(s->part, 0, sizeof s->part);
        rq_parallel_for(s->n, add_part, s);
        for (int64_t i = 0; i < s->n; ++i) s->total += s->part[i];
    }
    return NULL;
}

/* Callers on different threads take turns; each gets its own result. */
static void several_callers(void **state) {
    (void)state;
    enum { CALLERS = 4, ROUNDS = 50 };
    static sum_job jobs[CALLERS];
    pthread_t thread[CALLERS];
    rq_set_threads(3);
    memset(jobs, 0, sizeof jobs);
    for (int k = 0; k < CALLERS; ++k) {
        jobs[k].n = 10 + 97 * k;
        jobs[k].rounds = ROUNDS;
        assert_int_equal(pthread_create(&thread[k], NULL, many_rounds, &jobs[k]), 0);
    }
    for (int k = 0; k < CALLERS; ++k) {
        assert_int_equal(pthread_join(thread[k], NULL), 0);
        int64_t n = jobs[k].n;
        assert_int_equal(jobs[k].total, ROUNDS * ((n - 1) * n * (2 * n - 1) / 6));
    }
}

/* More and fewer threads from one call to the next, and a worker that missed a call joins the one after. */
static void changing_the_number(void **state) {
    (void)state;
    for (int round = 0; round < 200; ++round) {
        static marks m;
        memset(&m, 0, sizeof m);
        rq_set_threads(1 + (round * 7) % 11);
        int n = 1 + (round * 13) % 40;
        rq_parallel_for(n, mark, &m);
        for (int i = 0; i < n; ++i) assert_int_equal(m.plain[i], i + 1);
    }
}

static void limits_of_the_number(void **state) {
    (void)state;
    rq_set_threads(0);
    assert_true(rq_get_threads() >= 1);
    int cores = rq_get_threads();
    rq_set_threads(-5);
    assert_int_equal(rq_get_threads(), cores);
    rq_set_threads(1 << 30);
    assert_int_equal(rq_get_threads(), 1024);
    rq_set_threads(2);
}

static void *fail_elsewhere(void *arg) {
    *(rq_status *)arg = rq_fail(RQ_ERR_INPUT, "tensor %s has %d rows", "elsewhere", 7);
    assert_string_equal(rq_last_error(), "tensor elsewhere has 7 rows");
    return NULL;
}

/* The sentence belongs to the thread that failed. */
static void errors_per_thread(void **state) {
    (void)state;
    pthread_t thread;
    rq_status there = RQ_OK;
    assert_int_equal(rq_fail(RQ_ERR_ARG, "here %d", 1), RQ_ERR_ARG);
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &there), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(there, RQ_ERR_INPUT);
    assert_string_equal(rq_last_error(), "here 1");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_once),     cmocka_unit_test(negative_count),
        cmocka_unit_test(nested_calls),        cmocka_unit_test(several_callers),
        cmocka_unit_test(changing_the_number), cmocka_unit_test(limits_of_the_number),
        cmocka_unit_test(errors_per_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
