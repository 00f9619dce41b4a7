/* SPDX-License-Identifier: Apache-2.0 */
/* A run of a GEMV on the device, for tests whose problem and stack of matrices are types of their own: plan, buffers, workspace, and the same run
 * from a graph. A problem has what, n_tok, n_in, bias, residual and perm; a stack n_out, packed, perm and layout; describe(problem, layout) makes
 * the description of both. */
#ifndef RQ_GEMV_CASE_H
#define RQ_GEMV_CASE_H

#include "cudatest.h"
#include "rq_cuda.h"

/* What a run needs on the device. */
struct device {
    rq_cuda_gemv_desc d;
    rq_cuda_gemv_plan plan;
    rq_cuda_gemv_args a;
    void *x, *residual, *bias;
};

/* The plan, and a workspace of zeros where it wants one. */
static inline void make_plan(device *v, const char *what) {
    const char *why = "";
    if (rq_cuda_gemv_supports(&v->d, &why) != RQ_OK) RQ_DIE("%s: %s", what, why);
    if (rq_cuda_gemv_make_plan(&v->plan, &v->d) != RQ_OK) RQ_DIE("%s: %s", what, rq_cuda_last_error());
    if (v->plan.workspace_bytes) {
        v->a.workspace = rq_device_buffer(v->plan.workspace_bytes);
        CHECK_CUDA(cudaMemset(v->a.workspace, 0, v->plan.workspace_bytes));
    }
}

template <class Problem, class Stack> static device set_up(const Problem *p, const Stack *m) {
    device v = {};
    v.d = describe(p, &m->layout);
    make_plan(&v, p->what);
    const size_t n_y = (size_t)p->n_tok * m->n_out, n_x = (size_t)p->n_tok * p->n_in;
    v.a.y = rq_device_buffer(n_y * 2);
    v.a.x = v.x = rq_device_buffer(n_x * 2);
    v.a.weights = rq_device_copy(m->packed, (size_t)m->layout.bytes);
    if (p->bias) v.a.bias = v.bias = rq_device_buffer((size_t)m->n_out * 2);
    if (p->residual) v.a.residual = v.residual = rq_device_buffer(n_y * 2);
    if (p->perm) v.a.perm = (const int32_t *)rq_device_copy(m->perm, (size_t)p->n_in * 4);
    return v;
}

template <class Problem> static void run(const Problem *p, const device *v, cudaStream_t stream) {
    if (rq_cuda_gemv_run(&v->plan, &v->d, &v->a, stream) != RQ_OK) RQ_DIE("%s: %s", p->what, rq_cuda_last_error());
}

static inline void expect_clean_workspace(const device *v) {
    const size_t bytes = v->plan.workspace_bytes;
    if (bytes == 0) return;
    uint8_t *host = (uint8_t *)rq_host_alloc(bytes);
    rq_device_read(host, v->a.workspace, bytes);
    size_t dirty = 0;
    for (size_t i = 0; i < bytes; ++i) dirty += host[i] != 0;
    EXPECT_EQ(dirty, 0);
    free(host);
}

/* Two runs from a graph into a spoilt y: the same bytes. */
template <class Problem>
static void test_graph(const Problem *p, const device *v, cudaStream_t stream, const uint16_t *y, size_t n_y) {
    uint16_t *again = (uint16_t *)rq_host_alloc(n_y * 2);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK_CUDA(cudaMemset(v->a.y, 0x5a, n_y * 2));
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    run(p, v, stream);
    run(p, v, stream);
    CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CHECK_CUDA(cudaGraphLaunch(exec, stream));
    CHECK_CUDA(cudaStreamSynchronize(stream));
    rq_device_read(again, v->a.y, n_y * 2);
    EXPECT_EQ(memcmp(y, again, n_y * 2), 0);
    CHECK_CUDA(cudaGraphExecDestroy(exec));
    CHECK_CUDA(cudaGraphDestroy(graph));
    free(again);
}

#endif
