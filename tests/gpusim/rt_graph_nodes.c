/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes of graphs: adding them, and reading and setting what they do. */
#include <string.h>

#include "rt_copy.h"
#include "rt_graph.h"
#include "rt_host.h"
#include "rt_launch.h"

/* ---- work from parameters */

/* kernelParams has one pointer per argument; extra is the other way to pass them, a list of keys and values. */
static cudaError_t kernel_work(void *func, dim3 grid, dim3 block, unsigned shared, void **args, void **extra,
                               rt_work **out) {
    rt_launch l = {.kernel = rt_kernel_find(func), .grid = grid, .block = block, .shared = shared};
    if (!l.kernel) return cudaErrorInvalidDeviceFunction;
    cudaError_t e = rt_launch_check(&l);
    if (e != cudaSuccess) return e;
    const void *packed = NULL;
    size_t packed_bytes = 0;
    e = rt_launch_extra(extra, &packed, &packed_bytes);
    return e == cudaSuccess ? rt_launch_new(&l, args, packed, packed_bytes, out) : e;
}

cudaError_t rt_kernel_node_work(const struct cudaKernelNodeParams *p, rt_work **out) {
    if (!p) return cudaErrorInvalidValue;
    return kernel_work(p->func, p->gridDim, p->blockDim, p->sharedMemBytes, p->kernelParams, p->extra, out);
}

static cudaError_t copy_work(const rt_copy *c, rt_work **out) {
    cudaError_t e = rt_copy_check("a graph's copy", c);
    if (e == cudaSuccess) *out = rt_copy_new(c);
    return e;
}

cudaError_t rt_copy_node_work(const struct cudaMemcpy3DParms *p, rt_work **out) {
    rt_copy c;
    cudaError_t e = rt_copy_of_3d(p, &c);
    return e == cudaSuccess ? copy_work(&c, out) : e;
}

cudaError_t rt_copy_1d_work(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind, rt_work **out) {
    rt_copy c = {.dst = dst, .src = src, .width = n, .height = 1, .depth = 1, .kind = kind};
    return copy_work(&c, out);
}

static cudaError_t to_symbol_work(const void *symbol, const void *src, size_t n, size_t offset,
                                  enum cudaMemcpyKind kind, rt_work **out) {
    void *at;
    size_t bytes;
    cudaError_t e = rt_symbol(symbol, &at, &bytes);
    if (e != cudaSuccess) return e;
    if (offset > bytes || n > bytes - offset) return cudaErrorInvalidValue;
    return rt_copy_1d_work((char *)at + offset, src, n, kind, out);
}

static cudaError_t from_symbol_work(void *dst, const void *symbol, size_t n, size_t offset, enum cudaMemcpyKind kind,
                                    rt_work **out) {
    void *at;
    size_t bytes;
    cudaError_t e = rt_symbol(symbol, &at, &bytes);
    if (e != cudaSuccess) return e;
    if (offset > bytes || n > bytes - offset) return cudaErrorInvalidValue;
    return rt_copy_1d_work(dst, (char *)at + offset, n, kind, out);
}

cudaError_t rt_fill_node_work(const struct cudaMemsetParams *p, rt_work **out) {
    if (!p) return cudaErrorInvalidValue;
    rt_fill f = {p->dst, p->pitch, p->width, p->height, 1, p->value, p->elementSize};
    cudaError_t e = rt_fill_check("a graph's fill", &f);
    if (e == cudaSuccess) *out = rt_fill_new(&f);
    return e;
}

cudaError_t rt_host_node_work(const struct cudaHostNodeParams *p, rt_work **out) {
    if (!p || !p->fn) return cudaErrorInvalidValue;
    *out = rt_host_new(p->fn, p->userData);
    return cudaSuccess;
}

cudaError_t rt_event_node_work(cudaEvent_t handle, bool record, rt_work **out) {
    rt_event *e;
    cudaError_t err = rt_event_of(handle, &e);
    if (err == cudaSuccess) *out = record ? rt_record_new(e) : rt_wait_new(e);
    return err;
}

cudaError_t rt_node_work(const struct cudaGraphNodeParams *p, rt_work **out) {
    switch (p->type) {
    case cudaGraphNodeTypeKernel: {
        const struct cudaKernelNodeParamsV2 *k = &p->kernel;
        return kernel_work(k->func, k->gridDim, k->blockDim, k->sharedMemBytes, k->kernelParams, k->extra, out);
    }
    case cudaGraphNodeTypeMemcpy: return rt_copy_node_work(&p->memcpy.copyParams, out);
    case cudaGraphNodeTypeMemset: {
        const struct cudaMemsetParamsV2 *m = &p->memset;
        struct cudaMemsetParams old = {m->dst, m->pitch, m->value, m->elementSize, m->width, m->height};
        return rt_fill_node_work(&old, out);
    }
    case cudaGraphNodeTypeHost: {
        struct cudaHostNodeParams old = {p->host.fn, p->host.userData};
        return rt_host_node_work(&old, out);
    }
    case cudaGraphNodeTypeEventRecord: return rt_event_node_work(p->eventRecord.event, true, out);
    case cudaGraphNodeTypeWaitEvent: return rt_event_node_work(p->eventWait.event, false, out);
    default: return cudaErrorNotSupported;
    }
}

/* ---- adding */

typedef struct place { /* where a node goes */
    cudaGraphNode_t *out;
    cudaGraph_t graph;
    const cudaGraphNode_t *dep;
    size_t n_dep;
} place;

static cudaError_t check_place(const place *p) {
    if (!p->out || !rt_is_graph(p->graph) || (p->n_dep && !p->dep)) return cudaErrorInvalidValue;
    for (size_t k = 0; k < p->n_dep; ++k) {
        if (!rt_is_node(p->dep[k]) || p->dep[k]->graph != p->graph) return cudaErrorInvalidValue;
        for (size_t j = 0; j < k; ++j) {
            if (p->dep[j] == p->dep[k]) return cudaErrorInvalidValue;
        }
    }
    return cudaSuccess;
}

/* Adds work, or passes on the error that came instead. */
static cudaError_t add(const place *p, enum cudaGraphNodeType type, cudaError_t made, rt_work *w) {
    if (made != cudaSuccess) return made;
    cudaError_t e = check_place(p);
    if (e != cudaSuccess) {
        rt_work_drop(w);
        return e;
    }
    *p->out = rt_node_new(p->graph, type, w, p->dep, p->n_dep);
    return cudaSuccess;
}

#define PLACE (&(place){out, g, dep, n})

static cudaError_t add_kernel(const place *at, const struct cudaKernelNodeParams *p) {
    rt_work *w = NULL;
    cudaError_t e = rt_kernel_node_work(p, &w);
    return add(at, cudaGraphNodeTypeKernel, e, w);
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t *out, cudaGraph_t g, const cudaGraphNode_t *dep, size_t n,
                                   const struct cudaKernelNodeParams *p) {
    RT_CALL(add_kernel(PLACE, p));
}

static cudaError_t add_copy(const place *at, const struct cudaMemcpy3DParms *p) {
    rt_work *w = NULL;
    cudaError_t e = rt_copy_node_work(p, &w);
    return add(at, cudaGraphNodeTypeMemcpy, e, w);
}

cudaError_t cudaGraphAddMemcpyNode(cudaGraphNode_t *out, cudaGraph_t g, const cudaGraphNode_t *dep, size_t n,
                                   const struct cudaMemcpy3DParms *p) {
    RT_CALL(add_copy(PLACE, p));
}

static cudaError_t add_copy_1d(const place *at, void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind) {
    rt_work *w = NULL;
    cudaError_t e = rt_copy_1d_work(dst, src, bytes, kind, &w);
    return add(at, cudaGraphNodeTypeMemcpy, e, w);
}

cudaError_t cudaGraphAddMemcpyNode1D(cudaGraphNode_t *out, cudaGraph_t g, const cudaGraphNode_t *dep, size_t n,
                                     void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind) {
    RT_CALL(add_copy_1d(PLACE, dst, src, bytes, kind));
}

static cudaError_t add_to_symbol(const place *at, const void *symbol, const void *src, size_t bytes, size_t offset,
                                 enum cudaMemcpyKind kind) {
    rt_work *w = NULL;
    cudaError_t e = to_symbol_work(symbol, src, bytes, offset, kind, &w);
    return add(at, cudaGraphNodeTypeMemcpy, e, w);
}

cudaError_t cudaGraphAddMemcpyNodeToSymbol(cudaGraphNode_t *out, cudaGraph_t g, const cudaGraphNode_t *dep, size_t n,
                                           const void *symbol, const void *src, size_t bytes, size_t offset,
                                           enum cudaMemcpyKind kind) {
    RT_CALL(add_to_symbol(PLACE, symbol, src, bytes, offset, kind));
}

static cudaError_t add_from_symbol(const place *at, void *dst, const void *symbol, size_t bytes, size_t offset,
                                   enum cudaMemcpyKind kind) {
    rt_work *w = NULL;
    cudaError_t e = from_symbol_work(dst, symbol, bytes, offset, kind, &w);
    return add(at, cudaGraphNodeTypeMemcpy, e, w);
}

cudaError_t cudaGraphAddMemcpyNodeFromSymbol(cudaGraphNode_t *out, cudaGraph_t g, const cudaGraphNode_t *dep, size_t n,
                                             void *dst, const void *symbol, size_t bytes, size_t offset,
                                             enum cudaMemcpyKind kind) {
    RT_CALL(add_from_symbol(PLACE, dst, symbol, bytes, offset, kind));
}

static cudaError_t add_fill(const place *at, const struct cudaMemsetParams *p) {
    rt_work *w = NULL;
    cudaError_t e = rt_fill_node_work(p, &w);
    return add(at, cudaGraphNodeTypeMemset, e, w);
}

cudaError_t cudaGraphAddMemsetNode(cudaGraphNode_t *out, cudaGraph_t g, const cudaGraphNode_t *dep, size_t n,
                                   const struct cudaMemsetParams *p) {
    RT_CALL(add_fill(PLACE, p));
}

static cudaError_t add_host(const place *at, const struct cudaHostNodeParams *p) {
    rt_work *w = NULL;
    cudaError_t e = rt_host_node_work(p, &w);
    return add(at, cudaGraphNodeTypeHost, e, w);
}

cudaError_t cudaGraphAddHostNode(cudaGraphNode_t *out, cudaGraph_t g, const cudaGraphNode_t *dep, size_t n,
                                 const struct cudaHostNodeParams *p) {
    RT_CALL(add_host(PLACE, p));
}

static cudaError_t add_event(const place *at, cudaEvent_t event, bool record) {
    rt_work *w = NULL;
    cudaError_t e = rt_event_node_work(event, record, &w);
    return add(at, record ? cudaGraphNodeTypeEventRecord : cudaGraphNodeTypeWaitEvent, e, w);
}

cudaError_t cudaGraphAddEventRecordNode(cudaGraphNode_t *out, cudaGraph_t g, const cudaGraphNode_t *dep, size_t n,
                                        cudaEvent_t event) {
    RT_CALL(add_event(PLACE, event, true));
}
cudaError_t cudaGraphAddEventWaitNode(cudaGraphNode_t *out, cudaGraph_t g, const cudaGraphNode_t *dep, size_t n,
                                      cudaEvent_t event) {
    RT_CALL(add_event(PLACE, event, false));
}
cudaError_t cudaGraphAddEmptyNode(cudaGraphNode_t *out, cudaGraph_t g, const cudaGraphNode_t *dep, size_t n) {
    RT_CALL(add(PLACE, cudaGraphNodeTypeEmpty, cudaSuccess, NULL));
}

static cudaError_t add_child(const place *at, cudaGraph_t child) {
    if (!rt_is_graph(child)) return cudaErrorInvalidValue;
    cudaError_t e = add(at, cudaGraphNodeTypeGraph, cudaSuccess, NULL);
    if (e != cudaSuccess) return e;
    (*at->out)->child = rt_graph_clone(child);
    (*at->out)->child->is_child = true;
    return cudaSuccess;
}

cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t *out, cudaGraph_t g, const cudaGraphNode_t *dep, size_t n,
                                       cudaGraph_t child) {
    RT_CALL(add_child(PLACE, child));
}

static cudaError_t add_any(const place *at, const struct cudaGraphNodeParams *p) {
    if (!p) return cudaErrorInvalidValue;
    if (p->type == cudaGraphNodeTypeEmpty) return add(at, p->type, cudaSuccess, NULL);
    if (p->type == cudaGraphNodeTypeGraph) return add_child(at, p->graph.graph);
    rt_work *w = NULL;
    cudaError_t e = rt_node_work(p, &w);
    return add(at, p->type, e, w);
}

cudaError_t cudaGraphAddNode(cudaGraphNode_t *out, cudaGraph_t g, const cudaGraphNode_t *dep,
                             const cudaGraphEdgeData *edge, size_t n, struct cudaGraphNodeParams *p) {
    (void)edge; /* see cudaGraphAddDependencies */
    RT_CALL(add_any(PLACE, p));
}

/* ---- reading */

/* The work of a node of the kind; NULL: it is another kind of node. */
static rt_work *work_of(cudaGraphNode_t n, rt_work_kind kind) {
    return rt_is_node(n) && n->work && n->work->kind == kind ? n->work : NULL;
}

static cudaError_t get_kernel(cudaGraphNode_t n, struct cudaKernelNodeParams *p) {
    const rt_kernel_work *w = (rt_kernel_work *)work_of(n, RT_WORK_KERNEL);
    if (!w || !p) return cudaErrorInvalidValue;
    const rt_kernel *k = w->launch.kernel;
    memset(p, 0, sizeof *p);
    const void *func = k->host ? k->host : k;
    memcpy(&p->func, &func, sizeof func);
    p->gridDim = w->launch.grid;
    p->blockDim = w->launch.block;
    p->sharedMemBytes = (unsigned)w->launch.shared;
    p->kernelParams = w->arg;
    return cudaSuccess;
}

cudaError_t cudaGraphKernelNodeGetParams(cudaGraphNode_t n, struct cudaKernelNodeParams *p) {
    RT_CALL(get_kernel(n, p));
}

static cudaError_t get_copy(cudaGraphNode_t n, struct cudaMemcpy3DParms *p) {
    const rt_copy_work *w = (rt_copy_work *)work_of(n, RT_WORK_COPY);
    if (!w || !p) return cudaErrorInvalidValue;
    const rt_copy *c = &w->copy;
    memset(p, 0, sizeof *p);
    p->dstPtr = (struct cudaPitchedPtr){c->dst, c->dst_pitch, c->width, c->height};
    p->srcPtr = (struct cudaPitchedPtr){NULL, c->src_pitch, c->width, c->height};
    memcpy(&p->srcPtr.ptr, &c->src, sizeof c->src);
    p->extent = (struct cudaExtent){c->width, c->height, c->depth};
    p->kind = c->kind;
    return cudaSuccess;
}

cudaError_t cudaGraphMemcpyNodeGetParams(cudaGraphNode_t n, struct cudaMemcpy3DParms *p) { RT_CALL(get_copy(n, p)); }

static cudaError_t get_fill(cudaGraphNode_t n, struct cudaMemsetParams *p) {
    const rt_fill_work *w = (rt_fill_work *)work_of(n, RT_WORK_SET);
    if (!w || !p) return cudaErrorInvalidValue;
    const rt_fill *f = &w->fill;
    *p = (struct cudaMemsetParams){f->dst, f->pitch, f->value, f->element, f->width, f->height};
    return cudaSuccess;
}

cudaError_t cudaGraphMemsetNodeGetParams(cudaGraphNode_t n, struct cudaMemsetParams *p) { RT_CALL(get_fill(n, p)); }

static cudaError_t get_host(cudaGraphNode_t n, struct cudaHostNodeParams *p) {
    const rt_host_work *w = (rt_host_work *)work_of(n, RT_WORK_HOST);
    if (!w || !p) return cudaErrorInvalidValue;
    *p = (struct cudaHostNodeParams){w->fn, w->user};
    return cudaSuccess;
}

cudaError_t cudaGraphHostNodeGetParams(cudaGraphNode_t n, struct cudaHostNodeParams *p) { RT_CALL(get_host(n, p)); }

static cudaError_t get_event(cudaGraphNode_t n, cudaEvent_t *e, rt_work_kind kind) {
    const rt_event_work *w = (rt_event_work *)work_of(n, kind);
    if (!w || !e) return cudaErrorInvalidValue;
    *e = w->event;
    return cudaSuccess;
}

cudaError_t cudaGraphEventRecordNodeGetEvent(cudaGraphNode_t n, cudaEvent_t *e) {
    RT_CALL(get_event(n, e, RT_WORK_RECORD));
}
cudaError_t cudaGraphEventWaitNodeGetEvent(cudaGraphNode_t n, cudaEvent_t *e) {
    RT_CALL(get_event(n, e, RT_WORK_WAIT));
}

static cudaError_t get_child(cudaGraphNode_t n, cudaGraph_t *g) {
    if (!rt_is_node(n) || !n->child || !g) return cudaErrorInvalidValue;
    *g = n->child;
    return cudaSuccess;
}

cudaError_t cudaGraphChildGraphNodeGetGraph(cudaGraphNode_t n, cudaGraph_t *g) { RT_CALL(get_child(n, g)); }

/* ---- setting */

static cudaError_t set(cudaGraphNode_t n, enum cudaGraphNodeType type, cudaError_t made, rt_work *w) {
    if (made != cudaSuccess) return made;
    if (!rt_is_node(n) || n->type != type) {
        rt_work_drop(w);
        return cudaErrorInvalidValue;
    }
    rt_work_drop(n->work);
    n->work = w;
    return cudaSuccess;
}

static cudaError_t set_kernel(cudaGraphNode_t n, const struct cudaKernelNodeParams *p) {
    rt_work *w = NULL;
    cudaError_t e = rt_kernel_node_work(p, &w);
    return set(n, cudaGraphNodeTypeKernel, e, w);
}

cudaError_t cudaGraphKernelNodeSetParams(cudaGraphNode_t n, const struct cudaKernelNodeParams *p) {
    RT_CALL(set_kernel(n, p));
}

static cudaError_t set_copy(cudaGraphNode_t n, const struct cudaMemcpy3DParms *p) {
    rt_work *w = NULL;
    cudaError_t e = rt_copy_node_work(p, &w);
    return set(n, cudaGraphNodeTypeMemcpy, e, w);
}

cudaError_t cudaGraphMemcpyNodeSetParams(cudaGraphNode_t n, const struct cudaMemcpy3DParms *p) {
    RT_CALL(set_copy(n, p));
}

static cudaError_t set_copy_1d(cudaGraphNode_t n, void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind) {
    rt_work *w = NULL;
    cudaError_t e = rt_copy_1d_work(dst, src, bytes, kind, &w);
    return set(n, cudaGraphNodeTypeMemcpy, e, w);
}

cudaError_t cudaGraphMemcpyNodeSetParams1D(cudaGraphNode_t n, void *dst, const void *src, size_t bytes,
                                           enum cudaMemcpyKind kind) {
    RT_CALL(set_copy_1d(n, dst, src, bytes, kind));
}

static cudaError_t set_fill(cudaGraphNode_t n, const struct cudaMemsetParams *p) {
    rt_work *w = NULL;
    cudaError_t e = rt_fill_node_work(p, &w);
    return set(n, cudaGraphNodeTypeMemset, e, w);
}

cudaError_t cudaGraphMemsetNodeSetParams(cudaGraphNode_t n, const struct cudaMemsetParams *p) {
    RT_CALL(set_fill(n, p));
}

static cudaError_t set_host(cudaGraphNode_t n, const struct cudaHostNodeParams *p) {
    rt_work *w = NULL;
    cudaError_t e = rt_host_node_work(p, &w);
    return set(n, cudaGraphNodeTypeHost, e, w);
}

cudaError_t cudaGraphHostNodeSetParams(cudaGraphNode_t n, const struct cudaHostNodeParams *p) {
    RT_CALL(set_host(n, p));
}

static cudaError_t set_event(cudaGraphNode_t n, cudaEvent_t event, bool record) {
    rt_work *w = NULL;
    cudaError_t e = rt_event_node_work(event, record, &w);
    return set(n, record ? cudaGraphNodeTypeEventRecord : cudaGraphNodeTypeWaitEvent, e, w);
}

cudaError_t cudaGraphEventRecordNodeSetEvent(cudaGraphNode_t n, cudaEvent_t e) { RT_CALL(set_event(n, e, true)); }
cudaError_t cudaGraphEventWaitNodeSetEvent(cudaGraphNode_t n, cudaEvent_t e) { RT_CALL(set_event(n, e, false)); }

static cudaError_t set_any(cudaGraphNode_t n, const struct cudaGraphNodeParams *p) {
    rt_work *w = NULL;
    if (!p) return cudaErrorInvalidValue;
    cudaError_t e = rt_node_work(p, &w);
    return set(n, p->type, e, w);
}

cudaError_t cudaGraphNodeSetParams(cudaGraphNode_t n, struct cudaGraphNodeParams *p) { RT_CALL(set_any(n, p)); }
