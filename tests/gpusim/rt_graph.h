/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs: nodes that hold work, and programs, which are graphs put into an order to run. */
#ifndef RQ_GPUSIM_RT_GRAPH_H
#define RQ_GPUSIM_RT_GRAPH_H
#include "rt.h"
#include "rt_event.h"

enum { RT_GRAPH_MAGIC = 0x47524631, RT_NODE_MAGIC = 0x4e4f4431, RT_EXEC_MAGIC = 0x45584531 };

struct CUgraphNode_st {
    uint32_t magic; /* 0 once destroyed */
    struct CUgraph_st *graph;
    enum cudaGraphNodeType type;
    rt_work *work;            /* NULL: an empty node or a child graph */
    struct CUgraph_st *child; /* owned */
    struct CUgraphNode_st **dep;
    size_t n_dep, cap_dep;
    struct CUgraphNode_st *original; /* what it was cloned from */
    size_t index;                    /* in its graph */
    bool mark;
};
typedef struct CUgraphNode_st rt_node;

struct CUgraph_st {
    uint32_t magic; /* 0 once destroyed */
    bool is_child;  /* belongs to a node */
    rt_node **node;
    size_t n_node, cap_node;
    struct CUgraph_st *original;
};
typedef struct CUgraph_st rt_graph;

rt_graph *rt_graph_new(void);
void rt_graph_free(rt_graph *g);
rt_graph *rt_graph_clone(rt_graph *g);
bool rt_is_graph(const rt_graph *g);
bool rt_is_node(const rt_node *n);
/* Takes over the reference to work. dep: nodes of the same graph. */
rt_node *rt_node_new(rt_graph *g, enum cudaGraphNodeType type, rt_work *work, rt_node *const *dep, size_t n_dep);
void rt_node_depend(rt_node *n, rt_node *dep);
enum cudaGraphNodeType rt_node_type_of(const rt_work *w);
/* Marks every node that one of `from` depends on, directly or not, and those themselves. */
void rt_graph_mark_before(rt_graph *g, rt_node *const *from, size_t n);

/* Work from the parameters of nodes. */
cudaError_t rt_kernel_node_work(const struct cudaKernelNodeParams *p, rt_work **out);
cudaError_t rt_copy_node_work(const struct cudaMemcpy3DParms *p, rt_work **out);
cudaError_t rt_copy_1d_work(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind, rt_work **out);
cudaError_t rt_fill_node_work(const struct cudaMemsetParams *p, rt_work **out);
cudaError_t rt_host_node_work(const struct cudaHostNodeParams *p, rt_work **out);
cudaError_t rt_event_node_work(cudaEvent_t e, bool record, rt_work **out);
cudaError_t rt_node_work(const struct cudaGraphNodeParams *p, rt_work **out);

/* A graph as it runs. Never changed once something refers to it: updates make a copy. */
typedef struct rt_step {
    const rt_node *node; /* its name only: the graph may be gone */
    enum cudaGraphNodeType type;
    rt_work *work;
    struct rt_program *child;
    bool disabled;
    size_t *dep, n_dep; /* indices of steps */
} rt_step;
typedef struct rt_program {
    int refs;
    rt_step *step; /* in the order of the graph's nodes */
    size_t n_step;
    size_t *order[2]; /* in which steps run: the first nodes first, and the last ones first */
} rt_program;
cudaError_t rt_program_new(rt_graph *g, rt_program **out);
rt_program *rt_program_copy(const rt_program *p);
void rt_program_drop(rt_program *p);
rt_work *rt_program_work(rt_program *p);

struct CUgraphExec_st {
    uint32_t magic;
    unsigned long long flags;
    rt_program *program;
};

/* Memory that had a handle to it: freed only after many others, so that a stale handle is recognised. */
void rt_bury(void *p);

#endif
