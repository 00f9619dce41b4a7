/* SPDX-License-Identifier: Apache-2.0 */
/* Stream capture (CUDA Programming Guide, "Creating a Graph Using Stream Capture"). A capturing stream collects nodes instead
 * of running work; each has its own set of nodes that the next one depends on. An event recorded in it carries that set, and
 * a stream that waits for such an event joins the capture. What is forbidden meanwhile ends the capture: it is invalid from
 * then on, and only cudaStreamEndCapture gets out of it. */
#include "rt_capture.h"

#include <stdlib.h>
#include <string.h>

#include "rt_graph.h"

struct rt_capture {
    int refs; /* its own while in progress, and one for each event that was recorded in it */
    unsigned long long id;
    rt_stream *origin;
    rt_graph *graph;
    bool own_graph; /* begun with cudaStreamBeginCapture, which makes the graph */
    enum cudaStreamCaptureMode mode;
    const rt_thread *thread;
    bool invalid, ended;
    struct rt_capture *next; /* of those in progress */
};
typedef struct rt_capture rt_capture;

static rt_capture *in_progress;

static void drop(rt_capture *c) {
    if (c && --c->refs == 0) free(c);
}

static cudaError_t invalidate(rt_capture *c, cudaError_t e) {
    c->invalid = true;
    return e;
}

/* ---- what the others ask */

bool rt_capture_forbids(const rt_stream *s) {
    if (!s->legacy) return false;
    for (const rt_stream *o = rt_streams; o; o = o->next) {
        if (o->capture && o->device == s->device && !(o->flags & cudaStreamNonBlocking)) return true;
    }
    return false;
}

static void leaf_set(rt_stream *s, rt_node *only) {
    s->n_leaf = 0;
    rt_grow(&s->leaf, 0, &s->cap_leaf, sizeof(rt_node *));
    s->leaf[s->n_leaf++] = only;
}

static void leaf_add(rt_stream *s, rt_node *n) {
    for (size_t k = 0; k < s->n_leaf; ++k) {
        if (s->leaf[k] == n) return;
    }
    rt_grow(&s->leaf, s->n_leaf, &s->cap_leaf, sizeof(rt_node *));
    s->leaf[s->n_leaf++] = n;
}

cudaError_t rt_capture_work(rt_stream *s, rt_work *w) {
    rt_capture *c = s->capture;
    if (!c) { /* the default stream would wait for streams that capture */
        for (rt_stream *o = rt_streams; o; o = o->next) {
            if (o->capture && o->device == s->device && !(o->flags & cudaStreamNonBlocking)) o->capture->invalid = true;
        }
        rt_work_drop(w);
        return cudaErrorStreamCaptureImplicit;
    }
    if (c->invalid) {
        rt_work_drop(w);
        return cudaErrorStreamCaptureInvalidated;
    }
    leaf_set(s, rt_node_new(c->graph, rt_node_type_of(w), w, s->leaf, s->n_leaf));
    return cudaSuccess;
}

/* cudaThreadExchangeStreamCaptureMode says which captures make a call unsafe. */
cudaError_t rt_capture_unsafe(void) {
    enum cudaStreamCaptureMode mine = rt_self.capture_mode;
    cudaError_t e = cudaSuccess;
    if (mine == cudaStreamCaptureModeRelaxed) return e;
    for (rt_capture *c = in_progress; c; c = c->next) {
        bool own = c->thread == &rt_self && c->mode != cudaStreamCaptureModeRelaxed;
        bool other =
            c->thread != &rt_self && c->mode == cudaStreamCaptureModeGlobal && mine == cudaStreamCaptureModeGlobal;
        if (own || other) e = invalidate(c, cudaErrorStreamCaptureUnsupported);
    }
    return e;
}

cudaError_t rt_capture_device_waits(int device) {
    cudaError_t e = cudaSuccess;
    for (rt_stream *s = rt_streams; s; s = s->next) {
        if (s->capture && s->device == device) e = invalidate(s->capture, cudaErrorStreamCaptureUnsupported);
    }
    return e;
}

cudaError_t rt_capture_waits(rt_stream *s) {
    if (s->capture) return invalidate(s->capture, cudaErrorStreamCaptureUnsupported);
    if (!rt_capture_forbids(s)) return cudaSuccess;
    for (rt_stream *o = rt_streams; o; o = o->next) {
        if (o->capture && o->device == s->device && !(o->flags & cudaStreamNonBlocking)) o->capture->invalid = true;
    }
    return cudaErrorStreamCaptureImplicit;
}

/* ---- events */

void rt_capture_forget(rt_event *e) {
    drop(e->capture);
    e->capture = NULL;
    free(e->capture_leaf);
    e->capture_leaf = NULL;
    e->n_leaf = 0;
}

cudaError_t rt_capture_record(rt_stream *s, rt_event *e) {
    if (s->capture->invalid) return cudaErrorStreamCaptureInvalidated;
    rt_capture_forget(e);
    e->capture = s->capture;
    e->capture->refs++;
    e->n_leaf = s->n_leaf;
    e->capture_leaf = rt_calloc(s->n_leaf, sizeof(rt_node *));
    if (s->n_leaf) memcpy(e->capture_leaf, s->leaf, s->n_leaf * sizeof(rt_node *));
    return cudaSuccess;
}

cudaError_t rt_capture_wait(rt_stream *s, rt_event *e) {
    rt_capture *mine = s->capture, *its = e->capture;
    if (mine && mine->invalid) return cudaErrorStreamCaptureInvalidated;
    if (!its) { /* recorded outside */
        return e->recorded ? invalidate(mine, cudaErrorStreamCaptureIsolation) : cudaSuccess;
    }
    if (its->ended) return mine ? invalidate(mine, cudaErrorStreamCaptureIsolation) : cudaErrorCapturedEvent;
    if (its->invalid) return cudaErrorStreamCaptureInvalidated;
    if (mine && mine != its) {
        invalidate(mine, cudaErrorStreamCaptureMerge);
        return invalidate(its, cudaErrorStreamCaptureMerge);
    }
    if (s->legacy) return invalidate(its, cudaErrorStreamCaptureImplicit);
    if (!mine) {
        s->capture = its;
        s->n_leaf = 0;
    }
    for (size_t k = 0; k < e->n_leaf; ++k) leaf_add(s, e->capture_leaf[k]);
    return cudaSuccess;
}

cudaError_t rt_capture_event_used(rt_event *e) {
    if (!e->capture->ended) e->capture->invalid = true;
    return cudaErrorCapturedEvent;
}

/* ---- begin and end */

static cudaError_t begin(cudaStream_t handle, rt_graph *g, const cudaGraphNode_t *dep, size_t n_dep,
                         enum cudaStreamCaptureMode mode) {
    static unsigned long long n;
    rt_stream *s;
    cudaError_t e = rt_stream_of(handle, &s);
    if (e != cudaSuccess) return e;
    if (s->legacy) return cudaErrorStreamCaptureUnsupported;
    if (s->capture) return cudaErrorIllegalState;
    if (mode != cudaStreamCaptureModeGlobal && mode != cudaStreamCaptureModeThreadLocal &&
        mode != cudaStreamCaptureModeRelaxed) {
        return cudaErrorInvalidValue;
    }
    rt_capture *c = rt_calloc(1, sizeof *c);
    c->refs = 1;
    c->id = ++n;
    c->origin = s;
    c->own_graph = !g;
    c->graph = g ? g : rt_graph_new();
    c->mode = mode;
    c->thread = &rt_self;
    c->next = in_progress;
    in_progress = c;
    s->capture = c;
    s->n_leaf = 0;
    for (size_t k = 0; k < n_dep; ++k) leaf_add(s, dep[k]);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    RT_CALL(begin(s, NULL, NULL, 0, mode));
}

static cudaError_t begin_to_graph(cudaStream_t s, cudaGraph_t g, const cudaGraphNode_t *dep, size_t n,
                                  enum cudaStreamCaptureMode mode) {
    if (!rt_is_graph(g) || (n && !dep)) return cudaErrorInvalidValue;
    for (size_t k = 0; k < n; ++k) {
        if (!rt_is_node(dep[k]) || dep[k]->graph != g) return cudaErrorInvalidValue;
    }
    return begin(s, g, dep, n, mode);
}

cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t s, cudaGraph_t g, const cudaGraphNode_t *dep,
                                          const cudaGraphEdgeData *edge, size_t n, enum cudaStreamCaptureMode mode) {
    (void)edge;
    RT_CALL(begin_to_graph(s, g, dep, n, mode));
}

/* Every other stream of the capture must have come back: what it did last must be before what the origin did last. */
static bool is_joined(rt_capture *c) {
    rt_graph_mark_before(c->graph, c->origin->leaf, c->origin->n_leaf);
    for (const rt_stream *s = rt_streams; s; s = s->next) {
        if (s->capture != c || s == c->origin) continue;
        for (size_t k = 0; k < s->n_leaf; ++k) {
            if (!s->leaf[k]->mark) return false;
        }
    }
    return true;
}

static void leave(rt_capture *c) {
    for (rt_stream *s = rt_streams; s; s = s->next) {
        if (s->capture != c) continue;
        s->capture = NULL;
        s->n_leaf = 0;
    }
    for (rt_capture **link = &in_progress; *link; link = &(*link)->next) {
        if (*link != c) continue;
        *link = c->next;
        break;
    }
    c->ended = true; /* events may still name it */
    c->graph = NULL;
}

static cudaError_t end(cudaStream_t handle, cudaGraph_t *out) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(handle, &s);
    if (e != cudaSuccess) return e;
    if (out) *out = NULL;
    rt_capture *c = s->capture;
    if (!out) return cudaErrorInvalidValue;
    if (!c) return cudaErrorIllegalState;
    if (s != c->origin) return invalidate(c, cudaErrorStreamCaptureUnmatched);
    if (c->thread != &rt_self && c->mode != cudaStreamCaptureModeRelaxed) return cudaErrorStreamCaptureWrongThread;
    if (c->invalid) {
        e = cudaErrorStreamCaptureInvalidated;
    } else if (!is_joined(c)) {
        e = cudaErrorStreamCaptureUnjoined;
    }
    rt_graph *g = c->graph;
    bool own_graph = c->own_graph;
    leave(c);
    drop(c);
    if (e == cudaSuccess) {
        *out = g;
    } else if (own_graph) {
        rt_graph_free(g);
    }
    return e;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out) { RT_CALL(end(s, out)); }

/* ---- questions */

static enum cudaStreamCaptureStatus status_of(const rt_stream *s) {
    if (!s->capture) return cudaStreamCaptureStatusNone;
    return s->capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}

static cudaError_t is_capturing(cudaStream_t handle, enum cudaStreamCaptureStatus *status) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(handle, &s);
    if (e != cudaSuccess) return e;
    if (!status) return cudaErrorInvalidValue;
    if (rt_capture_forbids(s)) return cudaErrorStreamCaptureImplicit; /* asked of the default stream: no harm done */
    *status = status_of(s);
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    RT_CALL(is_capturing(s, status));
}

static cudaError_t capture_info(cudaStream_t handle, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                cudaGraph_t *g, const cudaGraphNode_t **dep, const cudaGraphEdgeData **edge,
                                size_t *n) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(handle, &s);
    if (e != cudaSuccess) return e;
    if (!status) return cudaErrorInvalidValue;
    if (rt_capture_forbids(s)) return cudaErrorStreamCaptureImplicit;
    *status = status_of(s);
    if (*status != cudaStreamCaptureStatusActive) return cudaSuccess;
    if (id) *id = s->capture->id;
    if (g) *g = s->capture->graph;
    if (dep) *dep = s->leaf;
    if (edge) *edge = NULL;
    if (n) *n = s->n_leaf;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *g, const cudaGraphNode_t **dep, const cudaGraphEdgeData **edge,
                                     size_t *n) {
    RT_CALL(capture_info(s, status, id, g, dep, edge, n));
}

static cudaError_t update_dependencies(cudaStream_t handle, cudaGraphNode_t *dep, size_t n, unsigned flags) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(handle, &s);
    if (e != cudaSuccess) return e;
    if (!s->capture) return cudaErrorIllegalState;
    if (s->capture->invalid) return cudaErrorStreamCaptureInvalidated;
    if (flags > cudaStreamSetCaptureDependencies || (n && !dep)) return cudaErrorInvalidValue;
    for (size_t k = 0; k < n; ++k) {
        if (!rt_is_node(dep[k]) || dep[k]->graph != s->capture->graph) return cudaErrorInvalidValue;
    }
    if (flags == cudaStreamSetCaptureDependencies) s->n_leaf = 0;
    for (size_t k = 0; k < n; ++k) leaf_add(s, dep[k]);
    return cudaSuccess;
}

cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t s, cudaGraphNode_t *dep, const cudaGraphEdgeData *edge,
                                                size_t n, unsigned flags) {
    (void)edge;
    RT_CALL(update_dependencies(s, dep, n, flags));
}

static cudaError_t exchange_mode(enum cudaStreamCaptureMode *mode) {
    if (!mode || *mode > cudaStreamCaptureModeRelaxed) return cudaErrorInvalidValue;
    enum cudaStreamCaptureMode old = rt_self.capture_mode;
    rt_self.capture_mode = *mode;
    *mode = old;
    return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { RT_CALL(exchange_mode(mode)); }
