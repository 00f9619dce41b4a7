/* SPDX-License-Identifier: Apache-2.0 */
/* Streams: the calls. What they do is in rt_queue.c. */
#include <string.h>

#include "rt.h"
#include "rt_capture.h"
#include "rt_host.h"

enum { PRIORITY_LEAST = 0, PRIORITY_GREATEST = -5 };

static cudaError_t create(cudaStream_t *out, unsigned flags, int priority) {
    if (!out || flags & ~(unsigned)cudaStreamNonBlocking) return cudaErrorInvalidValue;
    if (priority > PRIORITY_LEAST) priority = PRIORITY_LEAST; /* clamped, as documented */
    if (priority < PRIORITY_GREATEST) priority = PRIORITY_GREATEST;
    *out = rt_stream_new(rt_self.device, flags, priority);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *s) { RT_CALL(create(s, cudaStreamDefault, 0)); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { RT_CALL(create(s, flags, 0)); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) {
    RT_CALL(create(s, flags, priority));
}

static cudaError_t priority_range(int *least, int *greatest) {
    if (least) *least = PRIORITY_LEAST;
    if (greatest) *greatest = PRIORITY_GREATEST;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { RT_CALL(priority_range(least, greatest)); }

/* Returns at once; what is queued still runs. */
static cudaError_t destroy(cudaStream_t handle) {
    rt_stream *s;
    if (!handle || handle == cudaStreamLegacy || handle == cudaStreamPerThread) return cudaErrorInvalidResourceHandle;
    cudaError_t e = rt_stream_of(handle, &s);
    if (e == cudaSuccess && s->capture) e = rt_capture_unsafe();
    if (e == cudaSuccess) s->destroyed = true;
    return e;
}

cudaError_t cudaStreamDestroy(cudaStream_t s) { RT_CALL(destroy(s)); }

static cudaError_t synchronize(cudaStream_t handle) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(handle, &s);
    if (e == cudaSuccess) e = rt_capture_waits(s);
    return e == cudaSuccess ? rt_sync_stream(s) : e;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s) { RT_CALL(synchronize(s)); }

/* A program may poll until it is done, so each question brings the stream one step on. */
static cudaError_t query(cudaStream_t handle) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(handle, &s);
    if (e == cudaSuccess) e = rt_capture_waits(s);
    if (e != cudaSuccess) return e;
    if (s->done == s->issued) return cudaSuccess;
    rt_run_one(s);
    return rt_devices[s->device].sticky != cudaSuccess ? rt_devices[s->device].sticky : cudaErrorNotReady;
}

cudaError_t cudaStreamQuery(cudaStream_t s) { RT_CALL(query(s)); }

static cudaError_t get(cudaStream_t handle, int *priority, unsigned *flags, unsigned long long *id, int *device) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(handle, &s);
    if (e != cudaSuccess) return e;
    if (!priority && !flags && !id && !device) return cudaErrorInvalidValue;
    if (priority) *priority = s->priority;
    if (flags) *flags = s->flags;
    if (id) *id = s->id;
    if (device) *device = s->device;
    return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) { RT_CALL(get(s, priority, NULL, NULL, NULL)); }
cudaError_t cudaStreamGetFlags(cudaStream_t s, unsigned *flags) { RT_CALL(get(s, NULL, flags, NULL, NULL)); }
cudaError_t cudaStreamGetId(cudaStream_t s, unsigned long long *id) { RT_CALL(get(s, NULL, NULL, id, NULL)); }
cudaError_t cudaStreamGetDevice(cudaStream_t s, int *device) { RT_CALL(get(s, NULL, NULL, NULL, device)); }

/* ---- attributes: kept, none changes a result */

static bool known_attribute(cudaStreamAttrID a) {
    return a == cudaStreamAttributeAccessPolicyWindow || a == cudaStreamAttributeSynchronizationPolicy ||
           a == cudaStreamAttributePriority || a == cudaStreamAttributeMemSyncDomainMap ||
           a == cudaStreamAttributeMemSyncDomain;
}

static cudaError_t set_attribute(cudaStream_t handle, cudaStreamAttrID a, const cudaStreamAttrValue *v) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(handle, &s);
    if (e != cudaSuccess) return e;
    if (!v || !known_attribute(a)) return cudaErrorInvalidValue;
    s->attribute[a] = *v;
    if (a == cudaStreamAttributePriority) s->priority = v->priority;
    return cudaSuccess;
}

static cudaError_t get_attribute(cudaStream_t handle, cudaStreamAttrID a, cudaStreamAttrValue *v) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(handle, &s);
    if (e != cudaSuccess) return e;
    if (!v || !known_attribute(a)) return cudaErrorInvalidValue;
    *v = s->attribute[a];
    if (a == cudaStreamAttributePriority) v->priority = s->priority;
    return cudaSuccess;
}

static cudaError_t copy_attributes(cudaStream_t to, cudaStream_t from) {
    rt_stream *s, *t;
    cudaError_t e = rt_stream_of(to, &t);
    if (e == cudaSuccess) e = rt_stream_of(from, &s);
    if (e == cudaSuccess) memcpy(t->attribute, s->attribute, sizeof t->attribute);
    return e;
}

cudaError_t cudaStreamSetAttribute(cudaStream_t s, cudaStreamAttrID a, const cudaStreamAttrValue *v) {
    RT_CALL(set_attribute(s, a, v));
}
cudaError_t cudaStreamGetAttribute(cudaStream_t s, cudaStreamAttrID a, cudaStreamAttrValue *v) {
    RT_CALL(get_attribute(s, a, v));
}
cudaError_t cudaStreamCopyAttributes(cudaStream_t to, cudaStream_t from) { RT_CALL(copy_attributes(to, from)); }

/* ---- host functions in a stream */

/* User code runs without the lock, and may not call CUDA. */
static cudaError_t run_host(rt_work *w, rt_stream *s) {
    rt_host_work *h = (rt_host_work *)w;
    int depth;
    if (rt_ending) return cudaSuccess; /* what it would use may be gone by then */
    rt_self.in_callback = true;
    rt_unlock_all(&depth);
    if (h->fn) {
        h->fn(h->user);
    } else {
        h->callback(h->stream, cudaSuccess, h->user);
    }
    rt_lock_again(depth);
    rt_self.in_callback = false;
    (void)s;
    return cudaSuccess;
}

rt_work *rt_host_new(cudaHostFn_t fn, void *user) {
    rt_host_work *h = rt_work_new(RT_WORK_HOST, sizeof *h, run_host);
    h->fn = fn;
    h->user = user;
    return &h->base;
}

static cudaError_t host_function(cudaStream_t handle, cudaHostFn_t fn, cudaStreamCallback_t callback, void *user) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(handle, &s);
    if (e != cudaSuccess) return e;
    if (!fn && !callback) return cudaErrorInvalidValue;
    if (callback && s->capture) return cudaErrorStreamCaptureUnsupported; /* older than capture */
    rt_host_work *h = (rt_host_work *)rt_host_new(fn, user);
    h->callback = callback;
    h->stream = handle;
    return rt_submit(s, &h->base);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *user) {
    RT_CALL(host_function(s, fn, NULL, user));
}

static cudaError_t add_callback(cudaStream_t s, cudaStreamCallback_t callback, void *user, unsigned flags) {
    return flags ? cudaErrorInvalidValue : host_function(s, NULL, callback, user);
}

cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t callback, void *user, unsigned flags) {
    RT_CALL(add_callback(s, callback, user, flags));
}

static cudaError_t device_synchronize(void) {
    cudaError_t e = rt_capture_device_waits(rt_self.device);
    return e == cudaSuccess ? rt_run_device(rt_self.device) : e;
}

cudaError_t cudaDeviceSynchronize(void) { RT_CALL(device_synchronize()); }
