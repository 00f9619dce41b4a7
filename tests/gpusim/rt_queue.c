/* SPDX-License-Identifier: Apache-2.0 */
/* Streams as queues. Work is queued by the call and runs late: when something must wait for it. Then only what is waited for
 * runs, in the order of its stream, after what its events and the default stream ask for. So a program that forgets to wait
 * sees old data, every time. With GPUSIM_REVERSE everything else runs first (the last stream before the first), which
 * brings out the opposite mistakes: work that overtakes what it should have waited for.
 *
 * Every operation has a number in its stream (its ticket) and a list of operations of other streams that it waits for. The
 * rules of the default stream (CUDA Programming Guide, "Stream synchronization behavior") are such waits too. */
#include <stdlib.h>
#include <string.h>

#include "rt.h"
#include "rt_capture.h"

enum {
    STREAM_MAGIC = 0x53545231,
    MAX_PENDING = 1024, /* a device takes about this many launches before a call blocks */
    HANG_SECONDS = 60   /* work of other threads or processes that never comes */
};

rt_stream *rt_streams;
static rt_stream **last_link = &rt_streams;

/* ---- work */

void *rt_work_new(rt_work_kind kind, size_t bytes, cudaError_t (*run)(rt_work *, rt_stream *)) {
    rt_work *w = rt_calloc(1, bytes);
    w->kind = kind;
    w->refs = 1;
    w->run = run;
    return w;
}

rt_work *rt_work_keep(rt_work *w) {
    w->refs++;
    return w;
}

void rt_work_drop(rt_work *w) {
    if (!w || --w->refs > 0) return;
    if (w->drop) w->drop(w);
    free(w);
}

/* ---- streams */

rt_stream *rt_stream_new(int device, unsigned flags, int priority) {
    static unsigned long long n;
    rt_stream *s = rt_calloc(1, sizeof *s);
    s->magic = STREAM_MAGIC;
    s->device = device;
    s->flags = flags;
    s->priority = priority;
    s->id = ++n;
    *last_link = s;
    last_link = &s->next;
    return s;
}

cudaError_t rt_stream_of(cudaStream_t handle, rt_stream **out) {
    int d = rt_self.device;
    rt_stream **slot = NULL;
    if (!handle || handle == cudaStreamLegacy) slot = &rt_devices[d].legacy;
    if (handle == cudaStreamPerThread) slot = &rt_self.own[d];
    if (slot) {
        if (!*slot) {
            *slot = rt_stream_new(d, cudaStreamDefault, 0);
            (*slot)->legacy = slot == &rt_devices[d].legacy;
        }
        *out = *slot;
        return cudaSuccess;
    }
    /* Streams are never freed, so the handle of a destroyed one can be told apart; others are the caller's mistake. */
    if (handle->magic != STREAM_MAGIC || handle->destroyed) return cudaErrorInvalidResourceHandle;
    *out = handle;
    return cudaSuccess;
}

/* ---- queueing */

static void add_dep(rt_op *op, size_t *cap, rt_dep d) {
    if (d.stream->done >= d.ticket) return;
    rt_grow(&op->dep, op->n_dep, cap, sizeof *op->dep);
    op->dep[op->n_dep++] = d;
}

/* The default stream waits for all blocking streams, and they wait for it. */
static void add_default_deps(rt_op *op, size_t *cap, rt_stream *s) {
    if (s->flags & cudaStreamNonBlocking) return;
    if (!s->legacy) {
        rt_stream *legacy = rt_devices[s->device].legacy;
        if (legacy) add_dep(op, cap, (rt_dep){legacy, legacy->issued});
        return;
    }
    for (rt_stream *o = rt_streams; o; o = o->next) {
        if (o == s || o->device != s->device || o->flags & cudaStreamNonBlocking) continue;
        add_dep(op, cap, (rt_dep){o, o->issued});
    }
}

static bool eager(void) {
    static int on = -1;
    if (on < 0) {
        const char *text = getenv("GPUSIM_EAGER");
        on = text && *text && strcmp(text, "0") != 0;
    }
    return on;
}

cudaError_t rt_submit_after(rt_stream *s, rt_work *w, const rt_dep *dep, size_t n_dep) {
    if (s->capture || rt_capture_forbids(s)) return rt_capture_work(s, w);
    rt_op *op = rt_calloc(1, sizeof *op);
    size_t cap = 0;
    for (size_t k = 0; k < n_dep; ++k) add_dep(op, &cap, dep[k]);
    add_default_deps(op, &cap, s);
    op->work = w;
    op->ticket = ++s->issued;
    if (s->tail) {
        s->tail->next = op;
    } else {
        s->head = op;
    }
    s->tail = op;
    rt_changed();
    if (eager()) return rt_run_to(s, s->issued);
    if (s->issued - s->done > MAX_PENDING) return rt_run_to(s, s->issued - MAX_PENDING / 2);
    return cudaSuccess;
}

cudaError_t rt_submit(rt_stream *s, rt_work *w) { return rt_submit_after(s, w, NULL, 0); }

/* ---- running */

static const rt_dep *unmet(const rt_op *op) {
    for (size_t k = 0; k < op->n_dep; ++k) {
        if (op->dep[k].stream->done < op->dep[k].ticket) return &op->dep[k];
    }
    return NULL;
}

/* The first operation of s, whose waits are over. */
static void run_head(rt_stream *s) {
    rt_op *op = s->head;
    op->running = true;
    if (rt_devices[s->device].sticky == cudaSuccess) {
        int device = rt_self.device;
        rt_self.device = s->device;
        cudaError_t e = op->work->run(op->work, s);
        rt_self.device = device;
        if (e != cudaSuccess) rt_poison(s->device, e);
    }
    s->head = op->next;
    if (!s->head) s->tail = NULL;
    s->done = op->ticket;
    rt_work_drop(op->work);
    free(op->dep);
    free(op);
    rt_changed();
}

static bool can_run(const rt_stream *s) {
    const rt_op *op = s->head;
    return op && !op->running && !unmet(op) && (!op->work->ready || op->work->ready(op->work));
}

/* One operation of any stream; false when none can run. */
static bool run_any(void) {
    for (rt_stream *s = rt_streams; s; s = s->next) {
        if (!can_run(s)) continue;
        run_head(s);
        return true;
    }
    return false;
}

static void report_hang(const rt_stream *s) {
    gs_find_host("stream", "work of stream %llu waits for other threads or processes, and nothing came for %d s", s->id,
                 HANG_SECONDS);
}

/* The head of s cannot go on by itself: another thread runs it, or it waits for other threads or processes. */
static bool wait_for_others(const rt_stream *s, double *waited) {
    if (!s->head->running && run_any()) return true;
    const double step = 0.002;
    if (rt_wait(step)) return true;
    if (!s->head || s->head->running) return true;
    *waited += step;
    if (*waited < HANG_SECONDS) return true;
    report_hang(s);
    rt_poison(s->device, cudaErrorLaunchTimeout);
    return false;
}

cudaError_t rt_wait_ready(rt_work *w, const rt_stream *s) {
    double waited = 0;
    while (w->ready && !w->ready(w)) {
        if (run_any()) continue;
        const double step = 0.002;
        if (rt_wait(step)) continue;
        waited += step;
        if (waited >= HANG_SECONDS) {
            report_hang(s);
            return cudaErrorLaunchTimeout;
        }
    }
    return cudaSuccess;
}

static cudaError_t run_needed(rt_stream *s, uint64_t ticket) {
    rt_dep *stack = NULL;
    size_t n = 0, cap = 0;
    double waited = 0;
    rt_dep first = {s, ticket};
    rt_grow(&stack, n, &cap, sizeof *stack);
    stack[n++] = first;
    while (n) {
        rt_stream *t = stack[n - 1].stream;
        if (t->done >= stack[n - 1].ticket) {
            n--;
            continue;
        }
        const rt_dep *d = t->head->running ? NULL : unmet(t->head);
        if (d) {
            rt_dep next = *d;
            rt_grow(&stack, n, &cap, sizeof *stack);
            stack[n++] = next;
        } else if (can_run(t)) {
            run_head(t);
            waited = 0;
        } else if (rt_devices[t->device].sticky != cudaSuccess && !t->head->running) {
            run_head(t); /* drops it */
        } else {
            wait_for_others(t, &waited);
        }
    }
    free(stack);
    return rt_devices[s->device].sticky;
}

/* All streams of the device but one, last to first, as far as they go without waiting for anybody. */
static void run_others_first(const rt_stream *but) {
    size_t n = 0, k = 0;
    for (rt_stream *s = rt_streams; s; s = s->next) n++;
    rt_stream **all = rt_calloc(n, sizeof(rt_stream *));
    for (rt_stream *s = rt_streams; s; s = s->next) all[k++] = s;
    while (k--) {
        if (all[k] == but) continue;
        while (can_run(all[k])) run_head(all[k]);
    }
    free(all);
}

cudaError_t rt_run_to(rt_stream *s, uint64_t ticket) {
    if (s->done < ticket && gs_settings_get()->reverse) run_others_first(s);
    return run_needed(s, ticket);
}

cudaError_t rt_sync_stream(rt_stream *s) { return rt_run_to(s, s->issued); }

cudaError_t rt_run_device(int device) {
    bool reverse = gs_settings_get()->reverse;
    if (reverse) run_others_first(NULL);
    for (rt_stream *s = rt_streams; s; s = s->next) {
        if (s->device == device) run_needed(s, s->issued);
    }
    return rt_devices[device].sticky;
}

void rt_run_one(rt_stream *s) {
    if (!s->head || s->head->running) {
        rt_wait(0.001);
        return;
    }
    const rt_dep *d = unmet(s->head);
    if (d) {
        run_needed(d->stream, d->ticket);
    } else if (can_run(s)) {
        run_head(s);
    } else if (!run_any()) {
        rt_wait(0.001);
    }
}

void rt_run_everything(void) {
    for (int d = 0; d < rt_device_count(); ++d) rt_run_device(d);
}
