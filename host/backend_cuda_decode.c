/* SPDX-License-Identifier: Apache-2.0 */
/* Generation on a GPU: the CUDA row of decoder.h. A step is rq_cuda_decode_run, captured once for one token and once for sixteen, and replayed: tokens,
 * position and the likeliest token lie on the device. A prompt goes through in sixteens; the last of them may be short, and what stands in its
 * place is overwritten later. next() starts the following step before it waits for the token that it gives. */
#include "backend_cuda_decode.h"

enum { MANY = RQ_DECODE_MAX_TOK, MIN_CAPABILITY = 8 };

typedef struct step_graph {
    rq_cuda_decode_plan plan;
    void *workspace;
    cudaGraphExec_t graph;
} step_graph;

typedef struct cuda_decoder {
    int index, major; /* of the compute capability */
    cudaStream_t stream;
    cuda_weights weights;
    step_graph one, many;
    void *cache;
    rq_cuda_decode_state *state; /* of the device */
    float *logits;
    rq_cuda_decode_state *seen; /* pinned: [2] what steps have left, by turns, and what goes to the device */
    cudaEvent_t done[2];
    int turn; /* of the step that was started last */
    int64_t pos;
} cuda_decoder;

/* A kernel of cuda/: its sentence is rq_cuda_last_error's. */
static rq_status kernel(rq_status status) {
    return status == RQ_OK ? RQ_OK : rq_fail(status, "%s", rq_cuda_last_error());
}

static void close_decoder(void *own) {
    cuda_decoder *d = own;
    if (!d) return;
    (void)cudaSetDevice(d->index);
    if (d->stream) (void)cudaStreamSynchronize(d->stream);
    step_graph *graphs[] = {&d->one, &d->many};
    for (int i = 0; i < 2; ++i) {
        if (graphs[i]->graph) (void)cudaGraphExecDestroy(graphs[i]->graph);
        if (d->done[i]) (void)cudaEventDestroy(d->done[i]);
    }
    if (d->seen) (void)cudaFreeHost(d->seen);
    cuda_weights_free(&d->weights);
    if (d->stream) (void)cudaStreamDestroy(d->stream);
    free(d);
}

static rq_status open_device(cuda_decoder *d, int index) {
    rq_status status = RQ_OK;
    int count = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess) RQ_FAIL(RQ_ERR_DEVICE, "no CUDA device: %s", cuda_why_none(e));
    if (index >= count)
        RQ_FAIL(RQ_ERR_DEVICE, "cuda:%d: this machine has %d CUDA device%s", index, count, count == 1 ? "" : "s");
    d->index = index;
    CUDA_TRY(cudaSetDevice(index), "the device");
    CUDA_TRY(cudaDeviceGetAttribute(&d->major, cudaDevAttrComputeCapabilityMajor, index), "the device");
    if (d->major < MIN_CAPABILITY)
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "cuda:%d has compute capability %d: the kernels need 8.0", index, d->major);
    CUDA_TRY(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "the device");
    for (int i = 0; i < 2; ++i) CUDA_TRY(cudaEventCreateWithFlags(&d->done[i], cudaEventDisableTiming), "the device");
    CUDA_TRY(cudaMallocHost((void **)&d->seen, 3 * sizeof *d->seen), "pinned memory");
done:
    return status;
}

/* All that is needed against what is free, before anything is brought over. */
static rq_status check_memory(const cuda_decoder *d) {
    rq_status status = RQ_OK;
    size_t free_bytes = 0, total = 0;
    const double gib = 1.0 / (1 << 30);
    const rq_cuda_decode_desc *desc = &d->weights.desc;
    CUDA_TRY(cudaMemGetInfo(&free_bytes, &total), "the device");
    double weights = (double)d->weights.bytes, cache = (double)d->one.plan.cache_bytes;
    double rest = (double)(d->one.plan.workspace_bytes + d->many.plan.workspace_bytes) + 4.0 * (double)desc->n_vocab;
    if (weights + cache + rest > (double)free_bytes)
        RQ_FAIL(RQ_ERR_NOMEM,
                "the model needs %.3f GiB on cuda:%d (weights %.3f, the cache of %lld tokens %.3f, scratch %.3f), and "
                "%.3f of %.3f GiB are free",
                (weights + cache + rest) * gib, d->index, weights * gib, (long long)desc->max_seq, cache * gib,
                rest * gib, (double)free_bytes * gib, (double)total * gib);
done:
    return status;
}

static rq_status queue_step(cuda_decoder *d, const step_graph *g) {
    const rq_cuda_decode_args a = {d->state, d->logits, d->cache, g->workspace};
    return kernel(rq_cuda_decode_run(&g->plan, &d->weights.desc, &a, d->stream));
}

/* The first run loads kernels and libraries, which a capture may not. */
static rq_status capture(cuda_decoder *d, step_graph *g) {
    rq_status status = RQ_OK;
    cudaGraph_t graph = NULL;
    RQ_TRY(queue_step(d, g));
    CUDA_TRY(cudaStreamSynchronize(d->stream), "the first step");
    CUDA_TRY(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal), "a step");
    status = queue_step(d, g);
    cudaError_t e = cudaStreamEndCapture(d->stream, &graph);
    if (status != RQ_OK) goto done;
    CUDA_TRY(e, "a step");
    CUDA_TRY(cudaGraphInstantiateWithFlags(&g->graph, graph, 0), "a step");
done:
    if (graph) (void)cudaGraphDestroy(graph);
    return status;
}

static rq_status prepare(cuda_decoder *d, step_graph *g) {
    rq_status status = RQ_OK;
    const int64_t bytes = (int64_t)g->plan.workspace_bytes;
    RQ_TRY(cuda_weights_put(&d->weights, &g->workspace, NULL, bytes, "scratch of a step"));
    CUDA_TRY(cudaMemsetAsync(g->workspace, 0, (size_t)bytes, d->stream), "scratch of a step");
    RQ_TRY(capture(d, g));
done:
    return status;
}

static rq_status open_decoder(void **own, const rq_model *m, int64_t max_seq, int index) {
    rq_status status = RQ_OK;
    cuda_decoder *d = NULL;
    void *at;
    RQ_TRY(RQ_NEW_ZERO(d, 1));
    RQ_TRY(open_device(d, index));
    RQ_TRY(cuda_weights_plan(&d->weights, m, max_seq));
    rq_cuda_decode_desc *desc = &d->weights.desc;
    desc->early_launch = d->major >= 9; /* no device before has it */
    RQ_TRY(kernel(rq_cuda_decode_make_plan(&d->one.plan, desc, 1)));
    RQ_TRY(kernel(rq_cuda_decode_make_plan(&d->many.plan, desc, MANY)));
    RQ_TRY(check_memory(d));
    RQ_TRY(cuda_weights_upload(&d->weights));
    RQ_TRY(cuda_weights_put(&d->weights, &d->cache, NULL, (int64_t)d->one.plan.cache_bytes, "keys and values"));
    RQ_TRY(cuda_weights_put(&d->weights, &at, NULL, desc->n_vocab * (int64_t)sizeof *d->logits, "logits"));
    d->logits = at;
    RQ_TRY(cuda_weights_put(&d->weights, &at, NULL, (int64_t)sizeof *d->state, "the state"));
    d->state = at;
    CUDA_TRY(cudaMemsetAsync(d->state, 0, sizeof *d->state, d->stream), "the state");
    RQ_TRY(prepare(d, &d->one));
    RQ_TRY(prepare(d, &d->many));
    *own = d;
    d = NULL;
done:
    close_decoder(d);
    return status;
}

/* Starts a step, and the copy of what it leaves. */
static rq_status start(cuda_decoder *d, const step_graph *g) {
    rq_status status = RQ_OK;
    d->turn = !d->turn;
    CUDA_TRY(cudaGraphLaunch(g->graph, d->stream), "a step");
    CUDA_TRY(cudaMemcpyAsync(&d->seen[d->turn], d->state, sizeof *d->state, cudaMemcpyDeviceToHost, d->stream),
             "a step");
    CUDA_TRY(cudaEventRecord(d->done[d->turn], d->stream), "a step");
done:
    return status;
}

static rq_status feed(void *own, const int32_t *ids, int64_t n_tok) {
    rq_status status = RQ_OK;
    cuda_decoder *d = own;
    const int64_t before = d->pos;
    CUDA_TRY(cudaSetDevice(d->index), "a step");
    CUDA_TRY(cudaStreamSynchronize(d->stream), "the step before");
    while (n_tok > 0) {
        const int64_t n = rq_min_i64(n_tok, MANY);
        rq_cuda_decode_state *s = &d->seen[2];
        memset(s, 0, sizeof *s);
        memcpy(s->token, ids, (size_t)n * sizeof *ids);
        s->n = (int32_t)n;
        s->pos = (int32_t)d->pos;
        CUDA_TRY(cudaMemcpyAsync(d->state, s, sizeof *s, cudaMemcpyHostToDevice, d->stream), "tokens");
        RQ_TRY(start(d, n == 1 ? &d->one : &d->many));
        CUDA_TRY(cudaStreamSynchronize(d->stream), "a step");
        ids += n;
        n_tok -= n;
        d->pos += n;
    }
done:
    if (status != RQ_OK) d->pos = before;
    return status;
}

static rq_status logits(void *own, float *to) {
    rq_status status = RQ_OK;
    cuda_decoder *d = own;
    const size_t bytes = (size_t)d->weights.desc.n_vocab * sizeof *to;
    CUDA_TRY(cudaSetDevice(d->index), "logits");
    CUDA_TRY(cudaMemcpyAsync(to, d->logits, bytes, cudaMemcpyDeviceToHost, d->stream), "logits");
    CUDA_TRY(cudaStreamSynchronize(d->stream), "logits");
done:
    return status;
}

static rq_status next(void *own, int32_t *id) {
    rq_status status = RQ_OK;
    cuda_decoder *d = own;
    const int now = d->turn;
    CUDA_TRY(cudaSetDevice(d->index), "a step");
    if (d->pos < d->weights.desc.max_seq) {
        RQ_TRY(start(d, &d->one));
        ++d->pos;
    }
    CUDA_TRY(cudaEventSynchronize(d->done[now]), "a step");
    if (d->seen[now].bad >= 0) RQ_FAIL(RQ_ERR_NUMERIC, "the logit of token %d is not finite", (int)d->seen[now].bad);
    *id = d->seen[now].token[0];
done:
    return status;
}

const rq_decoder_ops rq_decoder_cuda = {open_decoder, close_decoder, feed, logits, next};
