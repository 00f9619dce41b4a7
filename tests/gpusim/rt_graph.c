/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs as structures: nodes, edges, clones, and questions about them. */
#include "rt_graph.h"

#include <stdlib.h>
#include <string.h>

void rt_bury(void *p) {
    enum { PLACES = 65536 };
    static void *grave[PLACES];
    static size_t n;
    void **place = &grave[n++ % PLACES];
    free(*place);
    *place = p;
}

bool rt_is_graph(const rt_graph *g) { return g && g->magic == RT_GRAPH_MAGIC; }
bool rt_is_node(const rt_node *n) { return n && n->magic == RT_NODE_MAGIC; }

rt_graph *rt_graph_new(void) {
    rt_graph *g = rt_calloc(1, sizeof *g);
    g->magic = RT_GRAPH_MAGIC;
    return g;
}

void rt_node_depend(rt_node *n, rt_node *dep) {
    for (size_t k = 0; k < n->n_dep; ++k) {
        if (n->dep[k] == dep) return;
    }
    rt_grow(&n->dep, n->n_dep, &n->cap_dep, sizeof(rt_node *));
    n->dep[n->n_dep++] = dep;
}

rt_node *rt_node_new(rt_graph *g, enum cudaGraphNodeType type, rt_work *work, rt_node *const *dep, size_t n_dep) {
    rt_node *n = rt_calloc(1, sizeof *n);
    n->magic = RT_NODE_MAGIC;
    n->graph = g;
    n->type = type;
    n->work = work;
    n->index = g->n_node;
    for (size_t k = 0; k < n_dep; ++k) rt_node_depend(n, dep[k]);
    rt_grow(&g->node, g->n_node, &g->cap_node, sizeof(rt_node *));
    g->node[g->n_node++] = n;
    return n;
}

static void free_node(rt_node *n) {
    rt_work_drop(n->work);
    if (n->child) rt_graph_free(n->child);
    free(n->dep);
    n->magic = 0;
    n->work = NULL;
    n->child = NULL;
    n->dep = NULL;
    n->n_dep = n->cap_dep = 0;
    rt_bury(n);
}

void rt_graph_free(rt_graph *g) {
    for (size_t k = 0; k < g->n_node; ++k) free_node(g->node[k]);
    free(g->node);
    g->node = NULL;
    g->n_node = g->cap_node = 0;
    g->magic = 0;
    rt_bury(g);
}

rt_graph *rt_graph_clone(rt_graph *g) {
    rt_graph *c = rt_graph_new();
    c->original = g;
    for (size_t k = 0; k < g->n_node; ++k) {
        rt_node *from = g->node[k];
        rt_node *n = rt_node_new(c, from->type, from->work ? rt_work_keep(from->work) : NULL, NULL, 0);
        n->original = from;
        if (from->child) {
            n->child = rt_graph_clone(from->child);
            n->child->is_child = true;
        }
    }
    for (size_t k = 0; k < g->n_node; ++k) {
        for (size_t d = 0; d < g->node[k]->n_dep; ++d) rt_node_depend(c->node[k], c->node[g->node[k]->dep[d]->index]);
    }
    return c;
}

enum cudaGraphNodeType rt_node_type_of(const rt_work *w) {
    switch (w->kind) {
    case RT_WORK_COPY: return cudaGraphNodeTypeMemcpy;
    case RT_WORK_SET: return cudaGraphNodeTypeMemset;
    case RT_WORK_HOST: return cudaGraphNodeTypeHost;
    case RT_WORK_RECORD: return cudaGraphNodeTypeEventRecord;
    case RT_WORK_WAIT: return cudaGraphNodeTypeWaitEvent;
    case RT_WORK_GRAPH: return cudaGraphNodeTypeGraph;
    case RT_WORK_EMPTY: return cudaGraphNodeTypeEmpty;
    case RT_WORK_FREE: return cudaGraphNodeTypeMemFree;
    case RT_WORK_KERNEL:
    case RT_WORK_CALL: break; /* calls of the libraries are kernels to everybody else */
    }
    return cudaGraphNodeTypeKernel;
}

void rt_graph_mark_before(rt_graph *g, rt_node *const *from, size_t n) {
    for (size_t k = 0; k < g->n_node; ++k) g->node[k]->mark = false;
    rt_node **stack = NULL;
    size_t depth = 0, cap = 0;
    for (size_t k = 0; k < n; ++k) {
        rt_grow(&stack, depth, &cap, sizeof(rt_node *));
        stack[depth++] = from[k];
    }
    while (depth) {
        rt_node *at = stack[--depth];
        if (at->mark) continue;
        at->mark = true;
        for (size_t k = 0; k < at->n_dep; ++k) {
            rt_grow(&stack, depth, &cap, sizeof(rt_node *));
            stack[depth++] = at->dep[k];
        }
    }
    free(stack);
}

/* ---- calls */

static cudaError_t create(cudaGraph_t *out, unsigned flags) {
    if (!out || flags) return cudaErrorInvalidValue;
    *out = rt_graph_new();
    return cudaSuccess;
}

cudaError_t cudaGraphCreate(cudaGraph_t *g, unsigned flags) { RT_CALL(create(g, flags)); }

static cudaError_t destroy(cudaGraph_t g) {
    if (!rt_is_graph(g) || g->is_child) return cudaErrorInvalidValue;
    rt_graph_free(g);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t g) { RT_CALL(destroy(g)); }

static cudaError_t clone_graph(cudaGraph_t *out, cudaGraph_t g) {
    if (!out || !rt_is_graph(g)) return cudaErrorInvalidValue;
    *out = rt_graph_clone(g);
    return cudaSuccess;
}

cudaError_t cudaGraphClone(cudaGraph_t *out, cudaGraph_t g) { RT_CALL(clone_graph(out, g)); }

static cudaError_t find_in_clone(cudaGraphNode_t *out, cudaGraphNode_t original, cudaGraph_t g) {
    if (!out || !rt_is_graph(g)) return cudaErrorInvalidValue;
    for (size_t k = 0; k < g->n_node; ++k) {
        if (g->node[k]->original != original) continue;
        *out = g->node[k];
        return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}

cudaError_t cudaGraphNodeFindInClone(cudaGraphNode_t *out, cudaGraphNode_t original, cudaGraph_t g) {
    RT_CALL(find_in_clone(out, original, g));
}

static cudaError_t node_type(cudaGraphNode_t n, enum cudaGraphNodeType *type) {
    if (!rt_is_node(n) || !type) return cudaErrorInvalidValue;
    *type = n->type;
    return cudaSuccess;
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t n, enum cudaGraphNodeType *type) { RT_CALL(node_type(n, type)); }

/* The usual protocol of lists: without an array *n becomes the count; with one, up to *n of them are written, the rest of it
 * is cleared and *n says how many. */
typedef struct list {
    cudaGraphNode_t *a, *b;
    cudaGraphEdgeData *edge;
    size_t room, n;
} list;

static void put(list *l, rt_node *a, rt_node *b) {
    if (l->n < l->room) {
        if (l->a) l->a[l->n] = a;
        if (l->b) l->b[l->n] = b;
        if (l->edge) memset(&l->edge[l->n], 0, sizeof *l->edge);
    }
    l->n++;
}

static cudaError_t finish(list *l, size_t *n) {
    if (l->a) {
        for (size_t k = l->n; k < l->room; ++k) l->a[k] = NULL;
        if (l->n > l->room) l->n = l->room;
    }
    *n = l->n;
    return cudaSuccess;
}

static cudaError_t get_nodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n, bool roots) {
    if (!rt_is_graph(g) || !n) return cudaErrorInvalidValue;
    list l = {.a = nodes, .room = nodes ? *n : 0};
    for (size_t k = 0; k < g->n_node; ++k) {
        if (!roots || !g->node[k]->n_dep) put(&l, g->node[k], NULL);
    }
    return finish(&l, n);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n) {
    RT_CALL(get_nodes(g, nodes, n, false));
}
cudaError_t cudaGraphGetRootNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n) {
    RT_CALL(get_nodes(g, nodes, n, true));
}

static cudaError_t get_edges(cudaGraph_t g, cudaGraphNode_t *from, cudaGraphNode_t *to, cudaGraphEdgeData *edge,
                             size_t *n) {
    if (!rt_is_graph(g) || !n || !from != !to) return cudaErrorInvalidValue;
    list l = {.a = from, .b = to, .edge = edge, .room = from ? *n : 0};
    for (size_t k = 0; k < g->n_node; ++k) {
        for (size_t d = 0; d < g->node[k]->n_dep; ++d) put(&l, g->node[k]->dep[d], g->node[k]);
    }
    return finish(&l, n);
}

cudaError_t cudaGraphGetEdges(cudaGraph_t g, cudaGraphNode_t *from, cudaGraphNode_t *to, cudaGraphEdgeData *edge,
                              size_t *n) {
    RT_CALL(get_edges(g, from, to, edge, n));
}

static cudaError_t get_dependencies(cudaGraphNode_t node, cudaGraphNode_t *out, cudaGraphEdgeData *edge, size_t *n) {
    if (!rt_is_node(node) || !n) return cudaErrorInvalidValue;
    list l = {.a = out, .edge = edge, .room = out ? *n : 0};
    for (size_t d = 0; d < node->n_dep; ++d) put(&l, node->dep[d], NULL);
    return finish(&l, n);
}

cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t *out, cudaGraphEdgeData *edge,
                                         size_t *n) {
    RT_CALL(get_dependencies(node, out, edge, n));
}

static bool depends(const rt_node *n, const rt_node *on) {
    for (size_t d = 0; d < n->n_dep; ++d) {
        if (n->dep[d] == on) return true;
    }
    return false;
}

static cudaError_t get_dependents(cudaGraphNode_t node, cudaGraphNode_t *out, cudaGraphEdgeData *edge, size_t *n) {
    if (!rt_is_node(node) || !n) return cudaErrorInvalidValue;
    list l = {.a = out, .edge = edge, .room = out ? *n : 0};
    for (size_t k = 0; k < node->graph->n_node; ++k) {
        if (depends(node->graph->node[k], node)) put(&l, node->graph->node[k], NULL);
    }
    return finish(&l, n);
}

cudaError_t cudaGraphNodeGetDependentNodes(cudaGraphNode_t node, cudaGraphNode_t *out, cudaGraphEdgeData *edge,
                                           size_t *n) {
    RT_CALL(get_dependents(node, out, edge, n));
}

/* ---- changing edges and nodes */

static bool belongs(const rt_node *n, const rt_graph *g) { return rt_is_node(n) && n->graph == g; }

static void remove_dep(rt_node *n, const rt_node *dep) {
    for (size_t k = 0; k < n->n_dep; ++k) {
        if (n->dep[k] != dep) continue;
        memmove(&n->dep[k], &n->dep[k + 1], (n->n_dep - k - 1) * sizeof(rt_node *));
        n->n_dep--;
        return;
    }
}

static cudaError_t change_edges(cudaGraph_t g, const cudaGraphNode_t *from, const cudaGraphNode_t *to, size_t n,
                                bool add) {
    if (!rt_is_graph(g) || (n && (!from || !to))) return cudaErrorInvalidValue;
    for (size_t k = 0; k < n; ++k) {
        if (!belongs(from[k], g) || !belongs(to[k], g) || from[k] == to[k]) return cudaErrorInvalidValue;
        if (depends(to[k], from[k]) == add) return cudaErrorInvalidValue; /* there already, or not there */
    }
    for (size_t k = 0; k < n; ++k) {
        if (add) {
            rt_node_depend(to[k], from[k]);
        } else {
            remove_dep(to[k], from[k]);
        }
    }
    return cudaSuccess;
}

cudaError_t cudaGraphAddDependencies(cudaGraph_t g, const cudaGraphNode_t *from, const cudaGraphNode_t *to,
                                     const cudaGraphEdgeData *edge, size_t n) {
    (void)edge; /* programmatic edges let a kernel start early: here it starts when the other has ended */
    RT_CALL(change_edges(g, from, to, n, true));
}
cudaError_t cudaGraphRemoveDependencies(cudaGraph_t g, const cudaGraphNode_t *from, const cudaGraphNode_t *to,
                                        const cudaGraphEdgeData *edge, size_t n) {
    (void)edge;
    RT_CALL(change_edges(g, from, to, n, false));
}

static cudaError_t destroy_node(cudaGraphNode_t n) {
    if (!rt_is_node(n)) return cudaErrorInvalidValue;
    rt_graph *g = n->graph;
    for (size_t k = 0; k < g->n_node; ++k) remove_dep(g->node[k], n);
    for (size_t k = n->index + 1; k < g->n_node; ++k) {
        g->node[k]->index--;
        g->node[k - 1] = g->node[k];
    }
    g->n_node--;
    free_node(n);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroyNode(cudaGraphNode_t n) { RT_CALL(destroy_node(n)); }
