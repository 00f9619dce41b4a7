/* SPDX-License-Identifier: Apache-2.0 */
/* The one lock, errors that stick to a device, and what happens at the end of the process: queued work runs, leaks are
 * looked for, and findings make the exit status 86. */
#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "rt.h"

enum { EXIT_FINDINGS = 86 };

_Thread_local rt_thread rt_self;
rt_device rt_devices[RT_MAX_DEVICES];
bool rt_ending;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static long env_number(const char *name, long otherwise, long low, long high) {
    const char *text = getenv(name);
    if (!text || !*text) return otherwise;
    char *end;
    long v = strtol(text, &end, 10);
    if (*end || v < low || v > high) {
        fprintf(stderr, "gpusim: %s=%s: a number from %ld to %ld is meant\n", name, text, low, high);
        exit(2);
    }
    return v;
}

int rt_device_count(void) {
    static int n;
    if (!n) n = (int)env_number("GPUSIM_DEVICES", 1, 1, RT_MAX_DEVICES);
    return n;
}

rt_device *rt_current(void) { return &rt_devices[rt_self.device]; }

static void init_devices(void) {
    /* Small enough that a program which takes nearly all of it still fits into an ordinary machine. */
    size_t mib = (size_t)env_number("GPUSIM_MEMORY_MIB", 8192, 1, 1 << 20);
    for (int d = 0; d < RT_MAX_DEVICES; ++d) rt_devices[d].total = mib << 20;
}

static void take_lock(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_devices);
    if (rt_self.depth++ == 0) pthread_mutex_lock(&lock);
}

static void give_lock(void) {
    if (--rt_self.depth == 0) pthread_mutex_unlock(&lock);
}

cudaError_t rt_enter_always(void) {
    take_lock();
    return cudaSuccess;
}

cudaError_t rt_enter(void) {
    take_lock();
    if (rt_self.in_callback) return cudaErrorNotPermitted;
    return rt_current()->sticky;
}

cudaError_t rt_leave(cudaError_t e) {
    if (e != cudaSuccess) rt_self.last = e;
    give_lock();
    return e;
}

void rt_unlock_all(int *depth) {
    *depth = rt_self.depth;
    rt_self.depth = 0;
    pthread_mutex_unlock(&lock);
}

void rt_lock_again(int depth) {
    pthread_mutex_lock(&lock);
    rt_self.depth = depth;
}

bool rt_wait(double seconds) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    int64_t ns = until.tv_nsec + (int64_t)(seconds * 1e9);
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    int depth = rt_self.depth;
    rt_self.depth = 0;
    int rc = pthread_cond_timedwait(&changed, &lock, &until);
    rt_self.depth = depth;
    return rc != ETIMEDOUT;
}

void rt_changed(void) { pthread_cond_broadcast(&changed); }

void rt_poison(int device, cudaError_t e) {
    if (rt_devices[device].sticky == cudaSuccess) rt_devices[device].sticky = e;
}

/* ---- the end of the process */

static void at_end(int status, void *unused) {
    (void)unused;
    (void)status;
    rt_self.in_callback = false;
    rt_enter_always();
    rt_ending = true;
    rt_run_everything();
    bool poisoned = false;
    for (int d = 0; d < rt_device_count(); ++d) poisoned |= rt_devices[d].sticky != cudaSuccess;
    /* After a fault nothing can be freed any more, so what is still allocated says nothing. */
    if (rt_device_memory_used && !poisoned && gs_settings_get()->check & GS_CHECK_LEAKS) gs_mem_report_leaks();
    int n = gs_findings();
    rt_leave(cudaSuccess);
    if (!n) return;
    fflush(NULL);
    fprintf(stderr, "gpusim: %d finding%s\n", n, n == 1 ? "" : "s");
    _exit(EXIT_FINDINGS);
}

/* Registered before main and before C++ constructors, so it runs after everything that they register. */
__attribute__((constructor(101))) static void begin(void) { on_exit(at_end, NULL); }
