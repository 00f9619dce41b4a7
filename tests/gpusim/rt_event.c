/* SPDX-License-Identifier: Apache-2.0 */
/* Events: a place in a stream, and the time when the stream got there. */
#include "rt_event.h"

#include <stdlib.h>
#include <time.h>

#include "rt_capture.h"
#include "rt_graph.h"

enum { EVENT_MAGIC = 0x45564e31 };

void rt_event_drop(rt_event *e) {
    if (--e->refs > 0) return;
    rt_capture_forget(e);
    rt_bury(e);
}

cudaError_t rt_event_of(cudaEvent_t handle, rt_event **e) {
    if (!handle || handle->magic != EVENT_MAGIC || handle->destroyed) return cudaErrorInvalidResourceHandle;
    *e = handle;
    return cudaSuccess;
}

static cudaError_t create(cudaEvent_t *out, unsigned flags) {
    const unsigned known = cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess;
    if (!out || flags & ~known) return cudaErrorInvalidValue;
    if (flags & cudaEventInterprocess && !(flags & cudaEventDisableTiming)) return cudaErrorInvalidValue;
    rt_event *e = rt_calloc(1, sizeof *e);
    e->magic = EVENT_MAGIC;
    e->refs = 1;
    e->flags = flags;
    e->device = rt_self.device;
    *out = e;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *e) { RT_CALL(create(e, cudaEventDefault)); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { RT_CALL(create(e, flags)); }

static cudaError_t destroy(cudaEvent_t handle) {
    rt_event *e;
    cudaError_t err = rt_event_of(handle, &e);
    if (err != cudaSuccess) return err;
    e->destroyed = true;
    rt_event_drop(e);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e) { RT_CALL(destroy(e)); }

/* ---- record and wait */

static cudaError_t run_record(rt_work *w, rt_stream *s) {
    (void)s;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    ((rt_event_work *)w)->event->ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    return cudaSuccess;
}

static cudaError_t run_nothing(rt_work *w, rt_stream *s) {
    (void)w, (void)s;
    return cudaSuccess;
}

static void drop_event(rt_work *w) { rt_event_drop(((rt_event_work *)w)->event); }

rt_work *rt_record_new(rt_event *e) {
    rt_event_work *w = rt_work_new(RT_WORK_RECORD, sizeof *w, run_record);
    w->base.drop = drop_event;
    w->event = e;
    e->refs++;
    return &w->base;
}

rt_work *rt_wait_new(rt_event *e) {
    rt_event_work *w = rt_work_new(RT_WORK_WAIT, sizeof *w, run_nothing);
    w->base.drop = drop_event;
    w->event = e;
    e->refs++;
    return &w->base;
}

static cudaError_t record(cudaEvent_t handle, cudaStream_t stream, unsigned flags) {
    rt_event *e;
    rt_stream *s;
    cudaError_t err = rt_event_of(handle, &e);
    if (err == cudaSuccess) err = rt_stream_of(stream, &s);
    if (err != cudaSuccess) return err;
    if (flags & ~(unsigned)cudaEventRecordExternal) return cudaErrorInvalidValue;
    if (e->device != s->device) return cudaErrorInvalidResourceHandle;
    if (s->capture && !(flags & cudaEventRecordExternal)) return rt_capture_record(s, e);
    if (!s->capture && flags & cudaEventRecordExternal) return cudaErrorIllegalState;
    err = rt_submit(s, rt_record_new(e));
    if (err != cudaSuccess || s->capture) return err;
    rt_capture_forget(e);
    e->recorded = true;
    e->at = (rt_dep){s, s->issued};
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { RT_CALL(record(e, s, cudaEventRecordDefault)); }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) { RT_CALL(record(e, s, flags)); }

static cudaError_t wait_event(cudaStream_t stream, cudaEvent_t handle, unsigned flags) {
    rt_event *e;
    rt_stream *s;
    cudaError_t err = rt_event_of(handle, &e);
    if (err == cudaSuccess) err = rt_stream_of(stream, &s);
    if (err != cudaSuccess) return err;
    if (flags & ~(unsigned)cudaEventWaitExternal) return cudaErrorInvalidValue;
    if (flags & cudaEventWaitExternal) return s->capture ? rt_submit(s, rt_wait_new(e)) : cudaErrorIllegalState;
    if (e->capture || s->capture) return rt_capture_wait(s, e);
    if (!e->recorded) return cudaSuccess; /* an event that was never recorded holds nobody up */
    return rt_submit_after(s, rt_wait_new(e), &e->at, 1);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) { RT_CALL(wait_event(s, e, flags)); }

/* ---- questions */

static bool is_done(const rt_event *e) { return !e->recorded || e->at.stream->done >= e->at.ticket; }

static cudaError_t query(cudaEvent_t handle) {
    rt_event *e;
    cudaError_t err = rt_event_of(handle, &e);
    if (err != cudaSuccess) return err;
    if (e->capture) return rt_capture_event_used(e);
    if ((err = rt_capture_unsafe()) != cudaSuccess) return err;
    if (is_done(e)) return cudaSuccess;
    rt_stream *s = e->at.stream;
    rt_run_one(s); /* a program may poll until it is done */
    return rt_devices[s->device].sticky != cudaSuccess ? rt_devices[s->device].sticky : cudaErrorNotReady;
}

cudaError_t cudaEventQuery(cudaEvent_t e) { RT_CALL(query(e)); }

static cudaError_t synchronize(cudaEvent_t handle) {
    rt_event *e;
    cudaError_t err = rt_event_of(handle, &e);
    if (err != cudaSuccess) return err;
    if (e->capture) return rt_capture_event_used(e);
    if ((err = rt_capture_unsafe()) != cudaSuccess) return err;
    return e->recorded ? rt_run_to(e->at.stream, e->at.ticket) : cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e) { RT_CALL(synchronize(e)); }

static cudaError_t elapsed(float *ms, cudaEvent_t from, cudaEvent_t to) {
    rt_event *a, *b;
    cudaError_t err = rt_event_of(from, &a);
    if (err == cudaSuccess) err = rt_event_of(to, &b);
    if (err != cudaSuccess) return err;
    if (!ms) return cudaErrorInvalidValue;
    if (a->capture || b->capture) return cudaErrorCapturedEvent;
    if ((a->flags | b->flags) & cudaEventDisableTiming || !a->recorded || !b->recorded) {
        return cudaErrorInvalidResourceHandle;
    }
    if (!is_done(a) || !is_done(b)) return cudaErrorNotReady;
    *ms = (float)((double)(b->ns - a->ns) * 1e-6);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) { RT_CALL(elapsed(ms, from, to)); }
