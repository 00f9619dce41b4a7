/* SPDX-License-Identifier: Apache-2.0 */
/* A small pool: rq_parallel_for hands items out one by one. Ours rather than OpenMP's so that ThreadSanitizer sees it, a
 * second OpenMP runtime in the process cannot fight it, and idle workers sleep.
 *
 * Jobs of a decoding step follow each other within microseconds, and waking a thread takes tens of them: whoever waits keeps looking for
 * WAIT_US and sleeps then, unless there are more threads than cores. A worker that comes when all items are
 * taken is not waited for. */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

#define MAX_THREADS 1024
#define WAIT_US     50

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER; /* guards everything below but next_item */
static pthread_mutex_t job_lock = PTHREAD_MUTEX_INITIALIZER;  /* one job at a time; others wait their turn */
static pthread_cond_t job_posted = PTHREAD_COND_INITIALIZER, job_done = PTHREAD_COND_INITIALIZER;
static int n_threads_wanted, n_workers;
static _Atomic unsigned job_number; /* these two are only written with the lock held, and looked at without */
static _Atomic int n_running;       /* workers that joined the job and are not done */
static _Atomic bool may_spin;
static struct {
    rq_body_fn body;
    void *arg;
    int64_t n;
    int n_helpers; /* workers that may join this job; 0: too late */
} job;
static _Atomic int64_t next_item;
static _Thread_local bool inside_body;

/* With the lock held. Asked once: the system call costs more than a small layer. */
static int n_cores(void) {
    static int cores;
    if (!cores) {
        long n = sysconf(_SC_NPROCESSORS_ONLN);
        cores = n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : (int)n;
    }
    return cores;
}

void rq_set_threads(int n_threads) {
    pthread_mutex_lock(&pool_lock);
    n_threads_wanted = n_threads < 0 ? 0 : n_threads > MAX_THREADS ? MAX_THREADS : n_threads;
    pthread_mutex_unlock(&pool_lock);
}

int rq_get_threads(void) {
    pthread_mutex_lock(&pool_lock);
    int n = n_threads_wanted ? n_threads_wanted : n_cores();
    pthread_mutex_unlock(&pool_lock);
    return n;
}

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Waits a while, but never long, for another job than `seen`, or with done for the joined workers to be done. */
static void look_for(bool done, unsigned seen) {
    struct timespec begin, now;
    if (!may_spin) return;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
        for (int i = 0; i < 32; ++i) {
            if (done ? n_running == 0 : job_number != seen) return;
            relax();
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - begin.tv_sec) * 1000000 + (now.tv_nsec - begin.tv_nsec) / 1000 < WAIT_US);
}

static void run_items(rq_body_fn body, void *arg, int64_t n) {
    bool was_inside = inside_body;
    inside_body = true;
    for (;;) {
        int64_t i = atomic_fetch_add(&next_item, 1);
        if (i >= n) break;
        body(arg, i);
    }
    inside_body = was_inside;
}

static void *worker(void *index_arg) {
    int index = (int)(intptr_t)index_arg;
    unsigned seen = 0;
    for (;;) {
        look_for(false, seen);
        pthread_mutex_lock(&pool_lock);
        while (job_number == seen) pthread_cond_wait(&job_posted, &pool_lock);
        seen = job_number;
        bool joins = index < job.n_helpers;
        rq_body_fn body = job.body;
        void *arg = job.arg;
        int64_t n = job.n;
        n_running += joins;
        pthread_mutex_unlock(&pool_lock);
        if (!joins) continue;
        run_items(body, arg, n);
        pthread_mutex_lock(&pool_lock);
        if (--n_running == 0) pthread_cond_signal(&job_done);
        pthread_mutex_unlock(&pool_lock);
    }
    return NULL;
}

void rq_parallel_for(int64_t n, rq_body_fn body, void *arg) {
    int n_threads = inside_body ? 1 : rq_get_threads();
    if (n_threads > n) n_threads = (int)n;
    if (n_threads <= 1) {
        for (int64_t i = 0; i < n; ++i) body(arg, i);
        return;
    }
    pthread_mutex_lock(&job_lock);
    pthread_mutex_lock(&pool_lock);
    while (n_workers < n_threads - 1) {
        pthread_t t;
        if (pthread_create(&t, NULL, worker, (void *)(intptr_t)n_workers) != 0) break; /* fewer will do */
        pthread_detach(t);
        ++n_workers;
    }
    atomic_store(&next_item, 0);
    job.body = body;
    job.arg = arg;
    job.n = n;
    job.n_helpers = n_threads - 1 < n_workers ? n_threads - 1 : n_workers;
    may_spin = n_threads <= n_cores();
    ++job_number;
    pthread_cond_broadcast(&job_posted);
    pthread_mutex_unlock(&pool_lock);

    run_items(body, arg, n);

    pthread_mutex_lock(&pool_lock);
    job.n_helpers = 0;
    pthread_mutex_unlock(&pool_lock);
    look_for(true, 0);
    pthread_mutex_lock(&pool_lock);
    while (n_running > 0) pthread_cond_wait(&job_done, &pool_lock);
    pthread_mutex_unlock(&pool_lock);
    pthread_mutex_unlock(&job_lock);
}
