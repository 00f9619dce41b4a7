/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs that run: instantiation, launches, and updates. A launch runs the steps in one of two orders that the edges allow
 * (GPUSIM_REVERSE: the other), so an edge that is missing shows in one of them. */
#include <stdlib.h>
#include <string.h>

#include "rt_capture.h"
#include "rt_graph.h"

/* ---- programs */

static void free_steps(rt_program *p) {
    for (size_t k = 0; k < p->n_step; ++k) {
        rt_work_drop(p->step[k].work);
        rt_program_drop(p->step[k].child);
        free(p->step[k].dep);
    }
    free(p->step);
    free(p->order[0]);
    free(p->order[1]);
    free(p);
}

void rt_program_drop(rt_program *p) {
    if (p && --p->refs == 0) free_steps(p);
}

/* Depth first from the first node on (or the last), what a step depends on before it. false: there is a cycle. */
static bool sort_steps(const rt_program *p, bool reverse, size_t *order) {
    enum { NEW, OPEN, DONE };
    size_t n = p->n_step, n_order = 0, depth = 0;
    uint8_t *state = rt_calloc(n, 1);
    size_t *stack = rt_calloc(n + 1, sizeof *stack), *next = rt_calloc(n + 1, sizeof *next);
    bool sound = true;
    for (size_t i = 0; i < n && sound; ++i) {
        size_t root = reverse ? n - 1 - i : i;
        if (state[root] != NEW) continue;
        stack[depth++] = root;
        state[root] = OPEN;
        while (depth && sound) {
            size_t at = stack[depth - 1];
            const rt_step *s = &p->step[at];
            if (next[at] == s->n_dep) {
                state[at] = DONE;
                order[n_order++] = at;
                depth--;
                continue;
            }
            size_t d = s->dep[next[at]++];
            sound = state[d] != OPEN;
            if (state[d] != NEW) continue;
            state[d] = OPEN;
            stack[depth++] = d;
        }
    }
    free(state);
    free(stack);
    free(next);
    return sound;
}

static cudaError_t make_orders(rt_program *p) {
    for (int reverse = 0; reverse < 2; ++reverse) {
        p->order[reverse] = rt_calloc(p->n_step, sizeof(size_t));
        if (!sort_steps(p, reverse, p->order[reverse])) return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}

cudaError_t rt_program_new(rt_graph *g, rt_program **out) {
    rt_program *p = rt_calloc(1, sizeof *p);
    p->refs = 1;
    p->step = rt_calloc(g->n_node, sizeof *p->step);
    p->n_step = g->n_node;
    cudaError_t e = cudaSuccess;
    for (size_t k = 0; k < g->n_node && e == cudaSuccess; ++k) {
        const rt_node *n = g->node[k];
        rt_step *s = &p->step[k];
        s->node = n;
        s->type = n->type;
        s->work = n->work ? rt_work_keep(n->work) : NULL;
        s->n_dep = n->n_dep;
        s->dep = rt_calloc(n->n_dep, sizeof *s->dep);
        for (size_t d = 0; d < n->n_dep; ++d) s->dep[d] = n->dep[d]->index;
        if (n->child) e = rt_program_new(n->child, &s->child);
    }
    if (e == cudaSuccess) e = make_orders(p);
    if (e != cudaSuccess) {
        free_steps(p);
        return e;
    }
    *out = p;
    return cudaSuccess;
}

rt_program *rt_program_copy(const rt_program *from) {
    rt_program *p = rt_calloc(1, sizeof *p);
    p->refs = 1;
    p->n_step = from->n_step;
    p->step = rt_calloc(from->n_step, sizeof *p->step);
    for (size_t k = 0; k < from->n_step; ++k) {
        rt_step *s = &p->step[k];
        *s = from->step[k];
        if (s->work) rt_work_keep(s->work);
        if (s->child) s->child->refs++;
        s->dep = rt_calloc(s->n_dep, sizeof *s->dep);
        memcpy(s->dep, from->step[k].dep, s->n_dep * sizeof *s->dep);
    }
    for (int o = 0; o < 2; ++o) {
        p->order[o] = rt_calloc(p->n_step, sizeof(size_t));
        memcpy(p->order[o], from->order[o], p->n_step * sizeof(size_t));
    }
    return p;
}

/* ---- running */

typedef struct graph_work {
    rt_work base;
    rt_program *program;
} graph_work;

static cudaError_t run_program(const rt_program *p, rt_stream *s) {
    const size_t *order = p->order[gs_settings_get()->reverse];
    for (size_t k = 0; k < p->n_step; ++k) {
        const rt_step *step = &p->step[order[k]];
        if (step->disabled) continue;
        cudaError_t e = cudaSuccess;
        if (step->child) e = run_program(step->child, s);
        if (step->work) {
            e = rt_wait_ready(step->work, s);
            if (e == cudaSuccess) e = step->work->run(step->work, s);
        }
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}

static cudaError_t run_graph(rt_work *w, rt_stream *s) { return run_program(((graph_work *)w)->program, s); }
static void drop_graph(rt_work *w) { rt_program_drop(((graph_work *)w)->program); }

rt_work *rt_program_work(rt_program *p) {
    graph_work *w = rt_work_new(RT_WORK_GRAPH, sizeof *w, run_graph);
    w->base.drop = drop_graph;
    w->program = p;
    p->refs++;
    return &w->base;
}

/* ---- instantiation */

static bool is_exec(cudaGraphExec_t x) { return x && x->magic == RT_EXEC_MAGIC; }

static cudaError_t instantiate(cudaGraphExec_t *out, cudaGraph_t g, unsigned long long flags) {
    const unsigned long long known = cudaGraphInstantiateFlagAutoFreeOnLaunch | cudaGraphInstantiateFlagUpload |
                                     cudaGraphInstantiateFlagUseNodePriority;
    if (!out || !rt_is_graph(g) || flags & ~(known | cudaGraphInstantiateFlagDeviceLaunch))
        return cudaErrorInvalidValue;
    if (flags & cudaGraphInstantiateFlagDeviceLaunch) return cudaErrorNotSupported; /* launches from a kernel */
    rt_program *p;
    cudaError_t e = rt_program_new(g, &p);
    if (e != cudaSuccess) return e;
    struct CUgraphExec_st *x = rt_calloc(1, sizeof *x);
    x->magic = RT_EXEC_MAGIC;
    x->flags = flags;
    x->program = p;
    *out = x;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t g, unsigned long long flags) {
    RT_CALL(instantiate(out, g, flags));
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *out, cudaGraph_t g, unsigned long long flags) {
    RT_CALL(instantiate(out, g, flags));
}

static cudaError_t instantiate_params(cudaGraphExec_t *out, cudaGraph_t g, cudaGraphInstantiateParams *p) {
    if (!p) return cudaErrorInvalidValue;
    cudaError_t e = instantiate(out, g, p->flags);
    p->errNode_out = NULL;
    p->result_out = e == cudaSuccess ? cudaGraphInstantiateSuccess : cudaGraphInstantiateInvalidStructure;
    return e;
}

cudaError_t cudaGraphInstantiateWithParams(cudaGraphExec_t *out, cudaGraph_t g, cudaGraphInstantiateParams *p) {
    RT_CALL(instantiate_params(out, g, p));
}

static cudaError_t exec_flags(cudaGraphExec_t x, unsigned long long *flags) {
    if (!is_exec(x) || !flags) return cudaErrorInvalidValue;
    *flags = x->flags;
    return cudaSuccess;
}

cudaError_t cudaGraphExecGetFlags(cudaGraphExec_t x, unsigned long long *flags) { RT_CALL(exec_flags(x, flags)); }

/* Launches in flight keep the program. */
static cudaError_t exec_destroy(cudaGraphExec_t x) {
    if (!is_exec(x)) return cudaErrorInvalidValue;
    x->magic = 0;
    rt_program_drop(x->program);
    x->program = NULL;
    rt_bury(x);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) { RT_CALL(exec_destroy(x)); }

/* Event nodes: the launch waits for what the wait nodes name, and the record nodes' events are this launch from now on. */
static void event_deps(const rt_program *p, rt_dep **dep, size_t *n, size_t *cap) {
    for (size_t k = 0; k < p->n_step; ++k) {
        const rt_step *s = &p->step[k];
        if (s->child) event_deps(s->child, dep, n, cap);
        if (s->disabled || !s->work || s->work->kind != RT_WORK_WAIT) continue;
        const rt_event *e = ((rt_event_work *)s->work)->event;
        if (!e->recorded) continue;
        rt_grow(dep, *n, cap, sizeof **dep);
        (*dep)[(*n)++] = e->at;
    }
}

static void event_records(const rt_program *p, rt_dep at) {
    for (size_t k = 0; k < p->n_step; ++k) {
        const rt_step *s = &p->step[k];
        if (s->child) event_records(s->child, at);
        if (s->disabled || !s->work || s->work->kind != RT_WORK_RECORD) continue;
        rt_event *e = ((rt_event_work *)s->work)->event;
        rt_capture_forget(e);
        e->recorded = true;
        e->at = at;
    }
}

static cudaError_t launch(cudaGraphExec_t x, cudaStream_t stream) {
    rt_stream *s;
    if (!is_exec(x)) return cudaErrorInvalidValue;
    cudaError_t e = rt_stream_of(stream, &s);
    if (e != cudaSuccess) return e;
    rt_dep *dep = NULL;
    size_t n = 0, cap = 0;
    event_deps(x->program, &dep, &n, &cap);
    e = rt_submit_after(s, rt_program_work(x->program), dep, n);
    free(dep);
    if (e == cudaSuccess && !s->capture) event_records(x->program, (rt_dep){s, s->issued});
    return e;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) { RT_CALL(launch(x, s)); }

static cudaError_t upload(cudaGraphExec_t x, cudaStream_t stream) {
    rt_stream *s;
    return is_exec(x) ? rt_stream_of(stream, &s) : cudaErrorInvalidValue;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t x, cudaStream_t s) { RT_CALL(upload(x, s)); }

/* ---- updates: launches from now on */

static cudaError_t step_of(cudaGraphExec_t x, cudaGraphNode_t node, size_t *index) {
    if (!is_exec(x)) return cudaErrorInvalidValue;
    for (size_t k = 0; k < x->program->n_step; ++k) {
        if (x->program->step[k].node != node) continue;
        *index = k;
        return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}

static rt_step *writable(cudaGraphExec_t x, size_t index) {
    if (x->program->refs > 1) {
        rt_program *copy = rt_program_copy(x->program);
        rt_program_drop(x->program);
        x->program = copy;
    }
    return &x->program->step[index];
}

/* Puts work (or the error that came instead of it) into a node's step. */
static cudaError_t set_work(cudaGraphExec_t x, cudaGraphNode_t node, enum cudaGraphNodeType type, cudaError_t made,
                            rt_work *w) {
    size_t index;
    if (made != cudaSuccess) return made;
    cudaError_t e = step_of(x, node, &index);
    if (e == cudaSuccess && x->program->step[index].type != type) e = cudaErrorInvalidValue;
    if (e != cudaSuccess) {
        rt_work_drop(w);
        return e;
    }
    rt_step *s = writable(x, index);
    rt_work_drop(s->work);
    s->work = w;
    return cudaSuccess;
}

static cudaError_t set_kernel(cudaGraphExec_t x, cudaGraphNode_t n, const struct cudaKernelNodeParams *p) {
    rt_work *w = NULL;
    cudaError_t e = rt_kernel_node_work(p, &w);
    return set_work(x, n, cudaGraphNodeTypeKernel, e, w);
}

cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t x, cudaGraphNode_t n,
                                             const struct cudaKernelNodeParams *p) {
    RT_CALL(set_kernel(x, n, p));
}

static cudaError_t set_copy(cudaGraphExec_t x, cudaGraphNode_t n, const struct cudaMemcpy3DParms *p) {
    rt_work *w = NULL;
    cudaError_t e = rt_copy_node_work(p, &w);
    return set_work(x, n, cudaGraphNodeTypeMemcpy, e, w);
}

cudaError_t cudaGraphExecMemcpyNodeSetParams(cudaGraphExec_t x, cudaGraphNode_t n, const struct cudaMemcpy3DParms *p) {
    RT_CALL(set_copy(x, n, p));
}

static cudaError_t set_copy_1d(cudaGraphExec_t x, cudaGraphNode_t n, void *dst, const void *src, size_t bytes,
                               enum cudaMemcpyKind kind) {
    rt_work *w = NULL;
    cudaError_t e = rt_copy_1d_work(dst, src, bytes, kind, &w);
    return set_work(x, n, cudaGraphNodeTypeMemcpy, e, w);
}

cudaError_t cudaGraphExecMemcpyNodeSetParams1D(cudaGraphExec_t x, cudaGraphNode_t n, void *dst, const void *src,
                                               size_t bytes, enum cudaMemcpyKind kind) {
    RT_CALL(set_copy_1d(x, n, dst, src, bytes, kind));
}

static cudaError_t set_fill(cudaGraphExec_t x, cudaGraphNode_t n, const struct cudaMemsetParams *p) {
    rt_work *w = NULL;
    cudaError_t e = rt_fill_node_work(p, &w);
    return set_work(x, n, cudaGraphNodeTypeMemset, e, w);
}

cudaError_t cudaGraphExecMemsetNodeSetParams(cudaGraphExec_t x, cudaGraphNode_t n, const struct cudaMemsetParams *p) {
    RT_CALL(set_fill(x, n, p));
}

static cudaError_t set_host(cudaGraphExec_t x, cudaGraphNode_t n, const struct cudaHostNodeParams *p) {
    rt_work *w = NULL;
    cudaError_t e = rt_host_node_work(p, &w);
    return set_work(x, n, cudaGraphNodeTypeHost, e, w);
}

cudaError_t cudaGraphExecHostNodeSetParams(cudaGraphExec_t x, cudaGraphNode_t n, const struct cudaHostNodeParams *p) {
    RT_CALL(set_host(x, n, p));
}

static cudaError_t set_event(cudaGraphExec_t x, cudaGraphNode_t n, cudaEvent_t event, bool record) {
    rt_work *w = NULL;
    cudaError_t e = rt_event_node_work(event, record, &w);
    return set_work(x, n, record ? cudaGraphNodeTypeEventRecord : cudaGraphNodeTypeWaitEvent, e, w);
}

cudaError_t cudaGraphExecEventRecordNodeSetEvent(cudaGraphExec_t x, cudaGraphNode_t n, cudaEvent_t e) {
    RT_CALL(set_event(x, n, e, true));
}
cudaError_t cudaGraphExecEventWaitNodeSetEvent(cudaGraphExec_t x, cudaGraphNode_t n, cudaEvent_t e) {
    RT_CALL(set_event(x, n, e, false));
}

static cudaError_t set_any(cudaGraphExec_t x, cudaGraphNode_t n, const struct cudaGraphNodeParams *p) {
    rt_work *w = NULL;
    if (!p) return cudaErrorInvalidValue;
    cudaError_t e = rt_node_work(p, &w);
    return set_work(x, n, p->type, e, w);
}

cudaError_t cudaGraphExecNodeSetParams(cudaGraphExec_t x, cudaGraphNode_t n, struct cudaGraphNodeParams *p) {
    RT_CALL(set_any(x, n, p));
}

static bool can_disable(enum cudaGraphNodeType t) {
    return t == cudaGraphNodeTypeKernel || t == cudaGraphNodeTypeMemset || t == cudaGraphNodeTypeMemcpy;
}

static cudaError_t set_enabled(cudaGraphExec_t x, cudaGraphNode_t node, unsigned on) {
    size_t index;
    cudaError_t e = step_of(x, node, &index);
    if (e != cudaSuccess) return e;
    if (!can_disable(x->program->step[index].type)) return cudaErrorInvalidValue;
    writable(x, index)->disabled = !on;
    return cudaSuccess;
}

cudaError_t cudaGraphNodeSetEnabled(cudaGraphExec_t x, cudaGraphNode_t n, unsigned on) {
    RT_CALL(set_enabled(x, n, on));
}

static cudaError_t get_enabled(cudaGraphExec_t x, cudaGraphNode_t node, unsigned *on) {
    size_t index;
    cudaError_t e = step_of(x, node, &index);
    if (e != cudaSuccess) return e;
    if (!on || !can_disable(x->program->step[index].type)) return cudaErrorInvalidValue;
    *on = !x->program->step[index].disabled;
    return cudaSuccess;
}

cudaError_t cudaGraphNodeGetEnabled(cudaGraphExec_t x, cudaGraphNode_t n, unsigned *on) {
    RT_CALL(get_enabled(x, n, on));
}

/* ---- update by a whole graph */

static bool same_deps(const rt_step *a, const rt_step *b) {
    if (a->n_dep != b->n_dep) return false;
    for (size_t k = 0; k < a->n_dep; ++k) {
        bool found = false;
        for (size_t j = 0; j < b->n_dep; ++j) found |= a->dep[k] == b->dep[j];
        if (!found) return false;
    }
    return true;
}

static enum cudaGraphExecUpdateResult compare(const rt_program *a, const rt_program *b, size_t *at) {
    *at = 0;
    if (a->n_step != b->n_step) return cudaGraphExecUpdateErrorTopologyChanged;
    for (size_t k = 0; k < a->n_step; ++k) {
        const rt_step *s = &a->step[k], *t = &b->step[k];
        *at = k;
        if (s->type != t->type) return cudaGraphExecUpdateErrorNodeTypeChanged;
        if (!same_deps(s, t)) return cudaGraphExecUpdateErrorTopologyChanged;
        size_t inner;
        if (s->child && compare(s->child, t->child, &inner) != cudaGraphExecUpdateSuccess) {
            return cudaGraphExecUpdateErrorTopologyChanged;
        }
    }
    return cudaGraphExecUpdateSuccess;
}

static cudaError_t update(cudaGraphExec_t x, cudaGraph_t g, cudaGraphExecUpdateResultInfo *info) {
    if (!is_exec(x) || !rt_is_graph(g)) return cudaErrorInvalidValue;
    rt_program *p;
    cudaError_t e = rt_program_new(g, &p);
    if (e != cudaSuccess) return e;
    size_t at;
    enum cudaGraphExecUpdateResult r = compare(x->program, p, &at);
    if (info) {
        memset(info, 0, sizeof *info);
        info->result = r;
        if (r != cudaGraphExecUpdateSuccess && at < p->n_step) info->errorNode = g->node[at];
    }
    if (r != cudaGraphExecUpdateSuccess) {
        rt_program_drop(p);
        return cudaErrorGraphExecUpdateFailure;
    }
    /* The nodes keep the names that they have in the graph which x was made of. */
    for (size_t k = 0; k < p->n_step; ++k) {
        p->step[k].node = x->program->step[k].node;
        p->step[k].disabled = x->program->step[k].disabled;
    }
    rt_program_drop(x->program);
    x->program = p;
    return cudaSuccess;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t x, cudaGraph_t g, cudaGraphExecUpdateResultInfo *info) {
    RT_CALL(update(x, g, info));
}
