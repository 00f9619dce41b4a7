/* SPDX-License-Identifier: Apache-2.0 */
/* NCCL against plain loops: collectives and messages among all devices, driven by one thread with groups, and by a thread for
 * each. In the simulator there are three devices, and then three processes do the same. Sums are exact.
 * Libraries: nccl */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <nccl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "cudatest.h"

#define CHECK_NCCL(call)                                                                                               \
    do {                                                                                                               \
        ncclResult_t r_ = (call);                                                                                      \
        if (r_ != ncclSuccess) RQ_DIE("%s: %s", #call, ncclGetErrorString(r_));                                        \
    } while (0)

enum { N = 1000, MOST = 8 };

/* Element i of rank r's data. */
static int element(int r, int i) { return (i * 7 + r * 13) % 11 - 5; }

struct rank_state {
    int rank, n;
    ncclComm_t comm;
    cudaStream_t stream;
    int *ints, *sums, *all, *piece, *got;
    __half *halves;
    __nv_bfloat16 *brains;
    float *floats;
    int8_t *bytes;
};

template <typename T> static T *upload(int rank, int count, T (*make)(int)) {
    std::vector<T> host((size_t)count, T());
    for (int i = 0; i < count; ++i) host[(size_t)i] = make(element(rank, i));
    T *p = NULL;
    CHECK_CUDA(cudaMalloc((void **)&p, (size_t)count * sizeof(T)));
    CHECK_CUDA(cudaMemcpy(p, host.data(), (size_t)count * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}
static int to_int(int v) { return v; }
static float to_float(int v) { return (float)v; }
static int8_t to_byte(int v) { return (int8_t)v; }
static __half to_half(int v) { return __float2half((float)v); }
static __nv_bfloat16 to_brain(int v) { return __float2bfloat16((float)v); }

static void begin(rank_state *s) {
    CHECK_CUDA(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking));
    s->ints = upload(s->rank, N * s->n, to_int); /* as many as a scatter of N needs */
    s->sums = upload(0, N, to_int);
    s->piece = upload(0, N, to_int);
    s->got = upload(0, N, to_int);
    s->all = upload(0, N * s->n, to_int);
    s->floats = upload(s->rank, N, to_float);
    s->bytes = upload(s->rank, N, to_byte);
    s->halves = upload(s->rank, N, to_half);
    s->brains = upload(s->rank, N, to_brain);
}

static void end(rank_state *s) {
    void *all[] = {s->ints, s->sums, s->piece, s->got, s->all, s->floats, s->bytes, s->halves, s->brains};
    for (void *p : all) CHECK_CUDA(cudaFree(p));
    CHECK_CUDA(cudaStreamDestroy(s->stream));
}

/* The calls of one rank; several ranks of one thread need a group around each. */
static void all_reduces(rank_state *s) {
    CHECK_NCCL(ncclAllReduce(s->ints, s->sums, N, ncclInt32, ncclSum, s->comm, s->stream));
    CHECK_NCCL(ncclAllReduce(s->floats, s->floats, N, ncclFloat32, ncclAvg, s->comm, s->stream)); /* in place */
    CHECK_NCCL(ncclAllReduce(s->bytes, s->bytes, N, ncclInt8, ncclMin, s->comm, s->stream));
    CHECK_NCCL(ncclAllReduce(s->halves, s->halves, N, ncclFloat16, ncclMax, s->comm, s->stream));
    CHECK_NCCL(ncclAllReduce(s->brains, s->brains, N, ncclBfloat16, ncclSum, s->comm, s->stream));
}
static void others(rank_state *s) {
    CHECK_NCCL(ncclAllGather(s->ints, s->all, N, ncclInt32, s->comm, s->stream));
    CHECK_NCCL(ncclReduceScatter(s->ints, s->piece, N, ncclInt32, ncclSum, s->comm, s->stream));
    CHECK_NCCL(ncclBroadcast(s->ints, s->got, N / 2, ncclInt32, s->n - 1, s->comm, s->stream));
}
/* To the next, from the one before. */
static void ring(rank_state *s) {
    CHECK_NCCL(ncclGroupStart());
    CHECK_NCCL(ncclSend(s->ints, N, ncclInt32, (s->rank + 1) % s->n, s->comm, s->stream));
    CHECK_NCCL(ncclRecv(s->got, N, ncclInt32, (s->rank + s->n - 1) % s->n, s->comm, s->stream));
    CHECK_NCCL(ncclGroupEnd());
}

template <typename T> static std::vector<T> download(const rank_state *s, const T *p, int count) {
    std::vector<T> host((size_t)count, T());
    CHECK_CUDA(cudaMemcpyAsync(host.data(), p, (size_t)count * sizeof(T), cudaMemcpyDeviceToHost, s->stream));
    CHECK_CUDA(cudaStreamSynchronize(s->stream));
    return host;
}

/* How many elements are wrong: threads must not share the counters of cudatest.h. */
static int wrong_reduces(const rank_state *s) {
    std::vector<int> sums = download(s, s->sums, N);
    std::vector<float> floats = download(s, s->floats, N);
    std::vector<int8_t> bytes = download(s, s->bytes, N);
    std::vector<__half> halves = download(s, s->halves, N);
    std::vector<__nv_bfloat16> brains = download(s, s->brains, N);
    int wrong = 0;
    for (int i = 0; i < N; ++i) {
        int sum = 0, low = 100, high = -100;
        for (int r = 0; r < s->n; ++r) {
            int v = element(r, i);
            sum += v;
            low = v < low ? v : low;
            high = v > high ? v : high;
        }
        size_t k = (size_t)i;
        wrong += sums[k] != sum || fabsf(floats[k] - (float)sum / (float)s->n) > 1e-5f || bytes[k] != low;
        wrong += __half2float(halves[k]) != (float)high || __bfloat162float(brains[k]) != (float)sum;
    }
    return wrong;
}

static int wrong_others(const rank_state *s) {
    std::vector<int> all = download(s, s->all, N * s->n), piece = download(s, s->piece, N),
                     got = download(s, s->got, N);
    int wrong = 0;
    for (int r = 0; r < s->n; ++r)
        for (int i = 0; i < N; ++i) wrong += all[(size_t)(r * N + i)] != element(r, i);
    for (int i = 0; i < N; ++i) {
        int sum = 0;
        for (int r = 0; r < s->n; ++r) sum += element(r, s->rank * N + i);
        wrong += piece[(size_t)i] != sum;
        wrong += got[(size_t)i] != (i < N / 2 ? element(s->n - 1, i) : element(0, i));
    }
    return wrong;
}

static int wrong_ring(const rank_state *s) {
    std::vector<int> got = download(s, s->got, N);
    int wrong = 0;
    for (int i = 0; i < N; ++i) wrong += got[(size_t)i] != element((s->rank + s->n - 1) % s->n, i);
    return wrong;
}

/* Everything, by one rank on its current device. */
static int run_rank(int rank, int n, ncclUniqueId id) {
    rank_state s = {};
    s.rank = rank;
    s.n = n;
    CHECK_NCCL(ncclCommInitRank(&s.comm, n, id, rank));
    int got = -1;
    CHECK_NCCL(ncclCommUserRank(s.comm, &got));
    int wrong = got != rank;
    begin(&s);
    all_reduces(&s);
    wrong += wrong_reduces(&s);
    others(&s);
    wrong += wrong_others(&s);
    ring(&s);
    wrong += wrong_ring(&s);
    CHECK_NCCL(ncclCommDestroy(s.comm));
    end(&s);
    return wrong;
}

static void test_one_thread(int n) {
    ncclComm_t comm[MOST];
    rank_state s[MOST] = {};
    CHECK_NCCL(ncclCommInitAll(comm, n, NULL));
    for (int r = 0; r < n; ++r) {
        CHECK_CUDA(cudaSetDevice(r));
        s[r].rank = r;
        s[r].n = n;
        s[r].comm = comm[r];
        begin(&s[r]);
    }
    void (*const steps[])(rank_state *) = {all_reduces, others, ring};
    int (*const wrong[])(const rank_state *) = {wrong_reduces, wrong_others, wrong_ring};
    for (int k = 0; k < 3; ++k) {
        CHECK_NCCL(ncclGroupStart());
        for (int r = 0; r < n; ++r) steps[k](&s[r]);
        CHECK_NCCL(ncclGroupEnd());
        for (int r = 0; r < n; ++r) {
            CHECK_CUDA(cudaSetDevice(r));
            EXPECT_EQ_AT(r, wrong[k](&s[r]), 0);
        }
    }
    EXPECT_EQ(ncclAllReduce(s[0].ints, s[0].sums, N, (ncclDataType_t)99, ncclSum, comm[0], s[0].stream),
              ncclInvalidArgument);
    EXPECT_EQ(ncclBroadcast(s[0].ints, s[0].sums, N, ncclInt32, n, comm[0], s[0].stream), ncclInvalidArgument);
    for (int r = 0; r < n; ++r) {
        CHECK_CUDA(cudaSetDevice(r));
        end(&s[r]);
        CHECK_NCCL(ncclCommDestroy(comm[r]));
    }
    CHECK_CUDA(cudaSetDevice(0));
}

static void test_threads(int n) {
    ncclUniqueId id;
    CHECK_NCCL(ncclGetUniqueId(&id));
    int wrong[MOST] = {};
    std::vector<std::thread> threads;
    for (int r = 0; r < n; ++r)
        threads.emplace_back([r, n, id, &wrong] {
            CHECK_CUDA(cudaSetDevice(r));
            wrong[r] = run_rank(r, n, id);
        });
    for (std::thread &t : threads) t.join();
    for (int r = 0; r < n; ++r) EXPECT_EQ_AT(r, wrong[r], 0);
}

#ifdef RQ_TEST_SIM
/* Each process has device 0 for itself. */
static void test_processes(int n) {
    ncclUniqueId id;
    CHECK_NCCL(ncclGetUniqueId(&id));
    pid_t child[MOST];
    fflush(NULL);
    for (int r = 0; r < n; ++r) {
        child[r] = fork();
        if (child[r] == 0) _exit(run_rank(r, n, id) != 0);
    }
    for (int r = 0; r < n; ++r) {
        int status = -1;
        waitpid(child[r], &status, 0);
        EXPECT_EQ_AT(r, status, 0);
    }
}
#endif

int main(void) {
#ifdef RQ_TEST_SIM
    setenv("GPUSIM_DEVICES", "3", 1);
    test_processes(3);
#endif
    rq_need_device(80);
    int n = 0;
    CHECK_CUDA(cudaGetDeviceCount(&n));
    if (n > MOST) n = MOST;
    test_one_thread(n);
    test_threads(n);
    return rq_done(__FILE__);
}
