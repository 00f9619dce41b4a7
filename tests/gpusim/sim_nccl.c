/* SPDX-License-Identifier: Apache-2.0 */
/* A stand-in for NCCL: communicators of the threads of one process or of several processes, the collectives and messages
 * that the project may call, and groups. Each call runs in the order of its stream, when all its partners have come; so a
 * rank that forgets to wait reads old data, and one that never comes is reported. Reductions add up in the order of the
 * ranks, so all of them get the same bits. */
#include "sim_nccl.h"

#include <nccl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "rt_graph.h"
#include "sim_lib.h"

/* The header declares these two without saying that they take nothing. */
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);

enum { COMM_MAGIC = 0x4e434331, MAX_PARTS = 512 };

struct ncclComm {
    uint32_t magic;
    int device;
    sim_link link;
    uint64_t n_collective, n_sent[SIM_MAX_RANKS], n_received[SIM_MAX_RANKS];
    rt_dep order; /* its last call: they run in the order in which they were called, whatever their streams */
    bool failed;
};

typedef enum part_kind { ALL_REDUCE, BROADCAST, REDUCE, ALL_GATHER, REDUCE_SCATTER, SEND, RECV } part_kind;
static const char *const kind_name[] = {"ncclAllReduce",     "ncclBroadcast", "ncclReduce", "ncclAllGather",
                                        "ncclReduceScatter", "ncclSend",      "ncclRecv"};

typedef struct part {
    part_kind kind;
    const void *send;
    void *recv;
    size_t count; /* as the function counts */
    ncclDataType_t type;
    ncclRedOp_t op;
    int root; /* or the partner */
    uint64_t number;
} part;

/* One call, or all calls of a group that go to one communicator and stream. */
typedef struct nccl_call {
    struct ncclComm *comm;
    size_t n;
    bool posted;
    part part[];
} nccl_call;

/* ---- types */

static size_t type_bytes(ncclDataType_t t) {
    switch (t) {
    case ncclInt8:
    case ncclUint8:
    case ncclFloat8e4m3:
    case ncclFloat8e5m2: return 1;
    case ncclFloat16:
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32: return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64: return 8;
    default: return 0;
    }
}

static cudaDataType float_type(ncclDataType_t t) {
    switch (t) {
    case ncclFloat16: return CUDA_R_16F;
    case ncclBfloat16: return CUDA_R_16BF;
    case ncclFloat8e4m3: return CUDA_R_8F_E4M3;
    case ncclFloat8e5m2: return CUDA_R_8F_E5M2;
    case ncclFloat32: return CUDA_R_32F;
    default: return CUDA_R_64F;
    }
}

static bool is_float(ncclDataType_t t) { return t >= ncclFloat16; }

/* ---- reductions: of element i of all ranks' data */

static double reduce_floats(const part *p, const void *const *data, int n, size_t i) {
    cudaDataType t = float_type(p->type);
    double v = sim_load(t, data[0], i);
    for (int r = 1; r < n; ++r) {
        double w = sim_load(t, data[r], i);
        switch (p->op) {
        case ncclProd: v *= w; break;
        case ncclMax: v = w > v ? w : v; break;
        case ncclMin: v = w < v ? w : v; break;
        default: v += w; break;
        }
        if (t != CUDA_R_64F) v = (double)(float)v;
    }
    return p->op == ncclAvg ? v / n : v;
}

/* Whole numbers as 64 bits, wrapping; wider than the type, so that order is right for both signs. */
static uint64_t load_whole(ncclDataType_t t, const void *data, size_t i) {
    const uint8_t *at = (const uint8_t *)data + i * type_bytes(t);
    int32_t s;
    uint32_t u;
    uint64_t w;
    switch (t) {
    case ncclInt8: return (uint64_t)(int64_t)(int8_t)*at;
    case ncclUint8: return *at;
    case ncclInt32: memcpy(&s, at, 4); return (uint64_t)(int64_t)s;
    case ncclUint32: memcpy(&u, at, 4); return u;
    default: memcpy(&w, at, 8); return w;
    }
}

static bool less(ncclDataType_t t, uint64_t a, uint64_t b) { return t == ncclUint64 ? a < b : (int64_t)a < (int64_t)b; }

static uint64_t reduce_whole(const part *p, const void *const *data, int n, size_t i) {
    uint64_t v = load_whole(p->type, data[0], i);
    for (int r = 1; r < n; ++r) {
        uint64_t w = load_whole(p->type, data[r], i);
        switch (p->op) {
        case ncclProd: v *= w; break;
        case ncclMax: v = less(p->type, v, w) ? w : v; break;
        case ncclMin: v = less(p->type, w, v) ? w : v; break;
        default: v += w; break;
        }
    }
    if (p->op != ncclAvg) return v;
    return p->type == ncclUint64 ? v / (uint64_t)n : (uint64_t)((int64_t)v / n);
}

/* count elements from element `first` of the ranks' data. */
static void reduce(const part *p, const void *const *data, int n, size_t first, size_t count) {
    size_t bytes = type_bytes(p->type);
    for (size_t i = 0; i < count; ++i) {
        if (is_float(p->type)) {
            sim_store(float_type(p->type), p->recv, i, reduce_floats(p, data, n, first + i));
        } else {
            uint64_t v = reduce_whole(p, data, n, first + i); /* its low bytes, as this is a little-endian machine */
            memcpy((uint8_t *)p->recv + i * bytes, &v, bytes);
        }
    }
}

/* ---- a call in its stream */

static void fail(struct ncclComm *c, const char *function, const char *why) {
    if (!c->failed) gs_find_host("nccl", "rank %d, %s: %s", c->link.rank, function, why);
    c->failed = true;
}

/* What this rank puts in: everything, only the root's data, or its piece. */
static size_t bytes_sent(const part *p, int rank, int n) {
    size_t bytes = p->count * type_bytes(p->type);
    if (p->kind == BROADCAST) return rank == p->root ? bytes : 0;
    if (p->kind == REDUCE_SCATTER) return bytes * (size_t)n;
    return p->kind == RECV ? 0 : bytes;
}

static void post(struct ncclComm *c, part *p) {
    sim_envelope e = {p->count, (int32_t)p->kind, (int32_t)p->type, (int32_t)p->op, p->root};
    size_t bytes = bytes_sent(p, c->link.rank, c->link.n);
    bool good = true;
    switch (p->kind) {
    case SEND:
        p->number = ++c->n_sent[p->root];
        good = sim_link_send(&c->link, p->root, p->number, &e, p->send, bytes);
        break;
    case RECV:
        p->number = ++c->n_received[p->root];
        sim_link_want(&c->link, p->root, p->number);
        break;
    default:
        p->number = ++c->n_collective;
        good = sim_link_post(&c->link, p->number, &e, p->send, bytes);
        break;
    }
    if (!good) fail(c, kind_name[p->kind], "shared memory cannot be had");
}

static bool part_ready(const struct ncclComm *c, const part *p) {
    switch (p->kind) {
    case SEND: return sim_link_is_wanted(&c->link, p->root, p->number);
    case RECV: return sim_link_is_sent(&c->link, p->root, p->number);
    default: return sim_link_all_posted(&c->link, p->number);
    }
}

static bool call_ready(void *arg) {
    nccl_call *call = arg;
    if (!call->posted) {
        for (size_t k = 0; k < call->n; ++k) post(call->comm, &call->part[k]);
        call->posted = true;
    }
    for (size_t k = 0; !call->comm->failed && k < call->n; ++k) {
        if (!part_ready(call->comm, &call->part[k])) return false;
    }
    return true;
}

static bool agrees(const part *p, const sim_envelope *e) {
    if (p->kind == RECV) return e->count * type_bytes((ncclDataType_t)e->type) == p->count * type_bytes(p->type);
    bool same = e->kind == (int32_t)p->kind && e->count == p->count && e->type == (int32_t)p->type;
    bool reduces = p->kind == ALL_REDUCE || p->kind == REDUCE || p->kind == REDUCE_SCATTER;
    bool rooted = p->kind == BROADCAST || p->kind == REDUCE;
    return same && (!reduces || e->op == (int32_t)p->op) && (!rooted || e->root == p->root);
}

static void combine(struct ncclComm *c, const part *p, const void *const *data) {
    size_t bytes = p->count * type_bytes(p->type);
    int rank = c->link.rank, n = c->link.n;
    switch (p->kind) {
    case ALL_REDUCE: reduce(p, data, n, 0, p->count); break;
    case REDUCE:
        if (rank == p->root) reduce(p, data, n, 0, p->count);
        break;
    case REDUCE_SCATTER: reduce(p, data, n, (size_t)rank * p->count, p->count); break;
    case BROADCAST:
        if (bytes) memcpy(p->recv, data[p->root], bytes);
        break;
    case ALL_GATHER:
        for (int r = 0; bytes && r < n; ++r) memcpy((char *)p->recv + (size_t)r * bytes, data[r], bytes);
        break;
    case SEND:
    case RECV: break;
    }
}

static void run_collective(struct ncclComm *c, const part *p) {
    const sim_message *m[SIM_MAX_RANKS] = {0};
    const void *data[SIM_MAX_RANKS] = {0};
    bool good = true;
    for (int r = 0; r < c->link.n; ++r) {
        m[r] = sim_link_open(&c->link, r, p->number, true);
        if (m[r]) data[r] = m[r] + 1;
        if (m[r] && agrees(p, &m[r]->is)) continue;
        char why[160];
        snprintf(why, sizeof why, "rank %d called %s with %llu elements of type %d, this one with %zu of type %d", r,
                 m[r] ? kind_name[m[r]->is.kind] : "nothing", m[r] ? (unsigned long long)m[r]->is.count : 0,
                 m[r] ? m[r]->is.type : -1, p->count, (int)p->type);
        fail(c, kind_name[p->kind], why);
        good = false;
    }
    if (good) combine(c, p, data);
    for (int r = 0; r < c->link.n; ++r) {
        if (m[r]) sim_link_close(&c->link, m[r], r, p->number, true);
    }
}

static void run_receive(struct ncclComm *c, const part *p) {
    const sim_message *m = sim_link_open(&c->link, p->root, p->number, false);
    if (!m || !agrees(p, &m->is)) {
        fail(c, kind_name[p->kind], "the message sent is of another size");
    } else if (m->bytes) {
        memcpy(p->recv, m + 1, m->bytes);
    }
    if (m) sim_link_close(&c->link, m, p->root, p->number, false);
}

static void run_call(void *arg) {
    nccl_call *call = arg;
    for (size_t k = 0; !call->comm->failed && k < call->n; ++k) {
        const part *p = &call->part[k];
        if (p->kind == RECV) {
            run_receive(call->comm, p);
        } else if (p->kind != SEND) {
            run_collective(call->comm, p);
        }
    }
    call->posted = false; /* a graph may run it again */
}

/* ---- groups */

typedef struct pending {
    struct ncclComm *comm;
    cudaStream_t stream;
    part part;
    bool done;
} pending;
static _Thread_local struct {
    int depth;
    pending *list;
    size_t n, cap;
    ncclResult_t error;
} group;

static size_t spans_of(const part *p, int rank, int n, sim_span *span) {
    size_t k = 0, bytes = p->count * type_bytes(p->type), in = bytes_sent(p, rank, n), out = bytes;
    if (p->kind == ALL_GATHER) out = bytes * (size_t)n;
    if (p->kind == SEND || (p->kind == REDUCE && rank != p->root)) out = 0;
    if (in) span[k++] = (sim_span){"the data sent", p->send, in};
    if (out) span[k++] = (sim_span){"the data received", p->recv, out};
    return k;
}

/* The call of all pending parts that go where the first does. */
static ncclResult_t submit_from(size_t first) {
    pending *a = &group.list[first];
    size_t n = 0, n_span = 0;
    sim_span span[2 * MAX_PARTS];
    nccl_call *call = rt_calloc(1, sizeof *call + MAX_PARTS * sizeof(part));
    call->comm = a->comm;
    for (size_t k = first; k < group.n; ++k) {
        pending *b = &group.list[k];
        if (b->done || b->comm != a->comm || b->stream != a->stream || n == MAX_PARTS) continue;
        b->done = true;
        n_span += spans_of(&b->part, a->comm->link.rank, a->comm->link.n, span + n_span);
        call->part[n++] = b->part;
    }
    call->n = n;
    ncclResult_t result = ncclSuccess;
    if (n_span > SIM_SPANS) n_span = SIM_SPANS; /* of a large group the first ones are checked */
    sim_status s =
        sim_submit_waiting(n == 1 ? kind_name[call->part[0].kind] : "a group of NCCL calls", a->comm->device, a->stream,
                           &a->comm->order, span, n_span, call_ready, run_call, call, sizeof *call + n * sizeof(part));
    if (s == SIM_BAD_MEMORY) result = ncclInvalidArgument;
    if (s == SIM_BAD_STREAM) result = ncclUnhandledCudaError;
    free(call);
    return result;
}

static ncclResult_t submit_all(void) {
    ncclResult_t result = group.error;
    for (size_t k = 0; k < group.n && result == ncclSuccess; ++k) {
        if (!group.list[k].done) result = submit_from(k);
    }
    free(group.list);
    group.list = NULL;
    group.n = group.cap = 0;
    group.error = ncclSuccess;
    return result;
}

ncclResult_t ncclGroupStart(void) {
    group.depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    if (!group.depth) return ncclInvalidUsage;
    return --group.depth ? ncclSuccess : submit_all();
}

static bool is_comm(const struct ncclComm *c) { return c && c->magic == COMM_MAGIC; }

static ncclResult_t call(ncclComm_t comm, cudaStream_t stream, part p) {
    ncclResult_t result = ncclSuccess;
    if (!is_comm(comm)) {
        result = ncclInvalidArgument;
    } else if (!type_bytes(p.type) || p.root < 0 || p.root >= comm->link.n || p.op < 0 || p.op >= ncclNumOps) {
        result = ncclInvalidArgument;
    } else if (comm->failed) {
        result = ncclInternalError;
    }
    if (result != ncclSuccess) {
        if (group.depth) group.error = result;
        return result;
    }
    rt_grow(&group.list, group.n, &group.cap, sizeof *group.list);
    group.list[group.n++] = (pending){comm, stream, p, false};
    return group.depth ? ncclSuccess : submit_all();
}

/* ---- the functions */

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t c, cudaStream_t s) {
    return call(c, s, (part){ALL_REDUCE, send, recv, count, type, op, 0, 0});
}
ncclResult_t ncclReduce(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t c, cudaStream_t s) {
    return call(c, s, (part){REDUCE, send, recv, count, type, op, root, 0});
}
ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count, ncclDataType_t type, int root, ncclComm_t c,
                           cudaStream_t s) {
    return call(c, s, (part){BROADCAST, send, recv, count, type, ncclSum, root, 0});
}
ncclResult_t ncclBcast(void *data, size_t count, ncclDataType_t type, int root, ncclComm_t c, cudaStream_t s) {
    return call(c, s, (part){BROADCAST, data, data, count, type, ncclSum, root, 0});
}
ncclResult_t ncclAllGather(const void *send, void *recv, size_t count, ncclDataType_t type, ncclComm_t c,
                           cudaStream_t s) {
    return call(c, s, (part){ALL_GATHER, send, recv, count, type, ncclSum, 0, 0});
}
ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t c, cudaStream_t s) {
    return call(c, s, (part){REDUCE_SCATTER, send, recv, count, type, op, 0, 0});
}
ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t s) {
    return call(c, s, (part){SEND, send, NULL, count, type, ncclSum, peer, 0});
}
ncclResult_t ncclRecv(void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t s) {
    return call(c, s, (part){RECV, NULL, recv, count, type, ncclSum, peer, 0});
}

/* ---- communicators */

ncclResult_t ncclGetVersion(int *version) {
    if (!version) return ncclInvalidArgument;
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    if (!id) return ncclInvalidArgument;
    uint64_t random[2];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) return ncclSystemError;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, SIM_ID_BYTES, "%016llx%016llx", (unsigned long long)random[0],
             (unsigned long long)random[1]);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *out, int n, ncclUniqueId id, int rank) {
    if (!out || n < 1 || n > SIM_MAX_RANKS || rank < 0 || rank >= n) return ncclInvalidArgument;
    if (strspn(id.internal, "0123456789abcdef") != 32 || id.internal[32]) return ncclInvalidArgument;
    struct ncclComm *c = rt_calloc(1, sizeof *c);
    const char *why;
    if (!sim_link_join(&c->link, id.internal, n, rank, &why)) {
        gs_find_host("nccl", "rank %d of %d: %s", rank, n, why);
        free(c);
        return ncclInvalidUsage;
    }
    c->magic = COMM_MAGIC;
    c->device = rt_self.device;
    *out = c;
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int n, ncclUniqueId id, int rank, ncclConfig_t *config) {
    (void)config; /* about speed, and returning early: this returns at once */
    return ncclCommInitRank(out, n, id, rank);
}

ncclResult_t ncclCommInitAll(ncclComm_t *out, int n, const int *devices) {
    ncclUniqueId id;
    if (!out || n < 1 || n > rt_device_count()) return ncclInvalidArgument;
    ncclResult_t r = ncclGetUniqueId(&id);
    int device = rt_self.device;
    for (int k = 0; k < n && r == ncclSuccess; ++k) {
        int d = devices ? devices[k] : k;
        for (int j = 0; devices && j < k; ++j) {
            if (devices[j] == d) r = ncclInvalidUsage; /* one device twice */
        }
        if (d < 0 || d >= rt_device_count()) r = ncclInvalidArgument;
        if (r != ncclSuccess) break;
        rt_self.device = d;
        r = ncclCommInitRank(&out[k], n, id, k);
    }
    rt_self.device = device;
    return r;
}

/* What is queued runs first; its partners may be other threads, which are waited for. */
ncclResult_t ncclCommFinalize(ncclComm_t c) {
    if (!is_comm(c)) return ncclInvalidArgument;
    rt_enter_always();
    if (c->order.stream) rt_run_to(c->order.stream, c->order.ticket);
    rt_leave(cudaSuccess);
    return c->failed ? ncclInternalError : ncclSuccess;
}

static void end(ncclComm_t c) {
    rt_enter_always();
    sim_link_leave(&c->link);
    c->magic = 0;
    rt_bury(c);
    rt_leave(cudaSuccess);
}

ncclResult_t ncclCommDestroy(ncclComm_t c) {
    if (!c) return ncclSuccess;
    if (!is_comm(c)) return ncclInvalidArgument;
    ncclCommFinalize(c);
    end(c);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t c) {
    if (!is_comm(c)) return ncclInvalidArgument;
    c->failed = true; /* what is still queued does nothing and keeps the communicator */
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *error) {
    if (!is_comm(c) || !error) return ncclInvalidArgument;
    *error = c->failed ? ncclInternalError : ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t c, int *n) {
    if (!is_comm(c) || !n) return ncclInvalidArgument;
    *n = c->link.n;
    return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t c, int *rank) {
    if (!is_comm(c) || !rank) return ncclInvalidArgument;
    *rank = c->link.rank;
    return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(const ncclComm_t c, int *device) {
    if (!is_comm(c) || !device) return ncclInvalidArgument;
    *device = c->device;
    return ncclSuccess;
}

ncclResult_t ncclMemAlloc(void **p, size_t bytes) {
    return cudaMalloc(p, bytes) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}
ncclResult_t ncclMemFree(void *p) { return cudaFree(p) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError; }

const char *ncclGetErrorString(ncclResult_t r) {
    switch (r) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "a CUDA call failed";
    case ncclSystemError: return "a call of the system failed";
    case ncclInternalError: return "an internal error";
    case ncclInvalidArgument: return "an argument is not valid";
    case ncclInvalidUsage: return "the call is not allowed so";
    case ncclRemoteError: return "another rank failed";
    case ncclInProgress: return "in progress";
    default: return "an unknown NCCL result";
    }
}

const char *ncclGetLastError(ncclComm_t c) {
    return is_comm(c) && c->failed ? "the ranks disagree; the report is on stderr" : "";
}
