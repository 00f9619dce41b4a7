/* SPDX-License-Identifier: Apache-2.0 */
/* What samples of CUDA programs look like: a reduction with cooperative groups, an inclusive scan in three kernels and a
 * transpose, on two streams with events between, first launched as they are, then captured into a graph that is replayed on
 * changing input. All sums are of small integers, so that every order gives the same bits.
 * Targets: sm_80 sm_90a. In table.json. */
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <numeric>
#include <vector>

#include "cudatest.h"

namespace cg = cooperative_groups;

constexpr int kThreads = 256, kTile = 32, kTileRows = 8;

/* Each block adds up its part and adds it to *sum. */
template <typename T> __global__ void reduce(const T *in, int n, T *sum) {
    cg::thread_block block = cg::this_thread_block();
    cg::thread_block_tile<32> warp = cg::tiled_partition<32>(block);
    __shared__ T of_warp[kThreads / 32];
    T v = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += in[i];
    for (int step = warp.size() / 2; step; step /= 2) v += warp.shfl_down(v, step);
    if (warp.thread_rank() == 0) of_warp[warp.meta_group_rank()] = v;
    block.sync();
    if (warp.meta_group_rank() == 0) {
        v = warp.thread_rank() < kThreads / 32 ? of_warp[warp.thread_rank()] : T(0);
        for (int step = warp.size() / 2; step; step /= 2) v += warp.shfl_down(v, step);
        if (warp.thread_rank() == 0) atomicAdd(sum, v);
    }
}

/* An inclusive scan of each block's part; its total goes to totals. */
__global__ void scan_blocks(const int *in, int *out, int *totals, int n) {
    __shared__ int values[2][kThreads];
    const int i = blockIdx.x * kThreads + threadIdx.x, t = threadIdx.x;
    int now = 0;
    values[0][t] = i < n ? in[i] : 0;
    __syncthreads();
    for (int step = 1; step < kThreads; step *= 2, now ^= 1) {
        values[now ^ 1][t] = values[now][t] + (t >= step ? values[now][t - step] : 0);
        __syncthreads();
    }
    if (i < n) out[i] = values[now][t];
    if (t == kThreads - 1) totals[blockIdx.x] = values[now][t];
}
/* The totals of all blocks before, one after the other: few. */
__global__ void scan_totals(int *totals, int n) {
    int before = 0;
    for (int i = 0; i < n; ++i) {
        int total = totals[i];
        totals[i] = before;
        before += total;
    }
}
__global__ void add_totals(int *out, const int *totals, int n) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    if (i < n) out[i] += totals[blockIdx.x];
}

/* out[x][y] = in[y][x], both coalesced; the extra column keeps the tile free of bank conflicts. */
__global__ void transpose(const float *in, float *out, int width, int height) {
    __shared__ float tile[kTile][kTile + 1];
    int x = blockIdx.x * kTile + threadIdx.x, y = blockIdx.y * kTile + threadIdx.y;
    for (int j = 0; j < kTile; j += kTileRows)
        if (x < width && y + j < height) tile[threadIdx.y + j][threadIdx.x] = in[(y + j) * width + x];
    __syncthreads();
    x = blockIdx.y * kTile + threadIdx.x;
    y = blockIdx.x * kTile + threadIdx.y;
    for (int j = 0; j < kTile; j += kTileRows)
        if (x < height && y + j < width) out[(y + j) * height + x] = tile[threadIdx.x][threadIdx.y + j];
}

struct Device {
    int *in, *scanned, *totals;
    float *matrix, *turned, *sum;
};

static const int n = 5000, width = 100, height = 50, blocks = (n + kThreads - 1) / kThreads;

/* The work of one turn: the scan on `main`; the transpose and the sum of its result on `side`, which starts after the input
 * is there (`ready`) and is joined again (`done`). */
static void enqueue(const Device &d, const int *in, const float *matrix, cudaStream_t main, cudaStream_t side,
                    cudaEvent_t ready, cudaEvent_t done) {
    CHECK_CUDA(cudaMemcpyAsync(d.in, in, n * sizeof(int), cudaMemcpyHostToDevice, main));
    CHECK_CUDA(cudaMemcpyAsync(d.matrix, matrix, n * sizeof(float), cudaMemcpyHostToDevice, main));
    CHECK_CUDA(cudaEventRecord(ready, main));
    CHECK_CUDA(cudaStreamWaitEvent(side, ready, 0));

    scan_blocks<<<blocks, kThreads, 0, main>>>(d.in, d.scanned, d.totals, n);
    scan_totals<<<1, 1, 0, main>>>(d.totals, blocks);
    add_totals<<<blocks, kThreads, 0, main>>>(d.scanned, d.totals, n);

    CHECK_CUDA(cudaMemsetAsync(d.sum, 0, sizeof(float), side));
    const dim3 grid((width + kTile - 1) / kTile, (height + kTile - 1) / kTile), block(kTile, kTileRows);
    transpose<<<grid, block, 0, side>>>(d.matrix, d.turned, width, height);
    reduce<float><<<4, kThreads, 0, side>>>(d.turned, n, d.sum);
    CHECK_CUDA(cudaEventRecord(done, side));
    CHECK_CUDA(cudaStreamWaitEvent(main, done, 0));
    CHECK_CUDA(cudaGetLastError());
}

static void check(const Device &d, const int *in, const float *matrix, cudaStream_t stream) {
    std::vector<int> scanned(n);
    std::vector<float> turned(n);
    float sum = -1;
    CHECK_CUDA(cudaMemcpyAsync(scanned.data(), d.scanned, n * sizeof(int), cudaMemcpyDeviceToHost, stream));
    CHECK_CUDA(cudaMemcpyAsync(turned.data(), d.turned, n * sizeof(float), cudaMemcpyDeviceToHost, stream));
    CHECK_CUDA(cudaMemcpyAsync(&sum, d.sum, sizeof sum, cudaMemcpyDeviceToHost, stream));
    CHECK_CUDA(cudaStreamSynchronize(stream));
    int running = 0;
    for (int i = 0; i < n; ++i) EXPECT_EQ_AT(i, scanned[i], running += in[i]);
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x) EXPECT_EQ_AT(x * height + y, turned[x * height + y], matrix[y * width + x]);
    EXPECT_NEAR(sum, std::accumulate(matrix, matrix + n, 0.0), 0);
    rq_record("scanned", RQ_I32, scanned.data(), n, 0);
    rq_record("turned", RQ_F32, turned.data(), n, 0);
    rq_record("sum", RQ_F32, &sum, 1, 0);
}

int main() {
    rq_need_device(80);
    Device d;
    int *in;
    float *matrix;
    cudaStream_t main_stream, side;
    cudaEvent_t ready, done;
    CHECK_CUDA(cudaMalloc(&d.in, n * sizeof(int)));
    CHECK_CUDA(cudaMalloc(&d.scanned, n * sizeof(int)));
    CHECK_CUDA(cudaMalloc(&d.totals, blocks * sizeof(int)));
    CHECK_CUDA(cudaMalloc(&d.matrix, n * sizeof(float)));
    CHECK_CUDA(cudaMalloc(&d.turned, n * sizeof(float)));
    CHECK_CUDA(cudaMalloc(&d.sum, sizeof(float)));
    CHECK_CUDA(cudaMallocHost(&in, n * sizeof(int)));
    CHECK_CUDA(cudaMallocHost(&matrix, n * sizeof(float)));
    CHECK_CUDA(cudaStreamCreateWithFlags(&main_stream, cudaStreamNonBlocking));
    CHECK_CUDA(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
    CHECK_CUDA(cudaEventCreateWithFlags(&ready, cudaEventDisableTiming));
    CHECK_CUDA(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));

    auto change_input = [&](int turn) {
        for (int i = 0; i < n; ++i) {
            in[i] = (i * 7 + turn * 13) % 23 - 9;
            matrix[i] = (float)((i * 5 + turn * 11) % 97 - 40);
        }
    };
    change_input(0);
    enqueue(d, in, matrix, main_stream, side, ready, done);
    check(d, in, matrix, main_stream);

    cudaGraph_t graph;
    cudaGraphExec_t replay;
    CHECK_CUDA(cudaStreamBeginCapture(main_stream, cudaStreamCaptureModeThreadLocal));
    enqueue(d, in, matrix, main_stream, side, ready, done);
    CHECK_CUDA(cudaStreamEndCapture(main_stream, &graph));
    size_t nodes = 0;
    CHECK_CUDA(cudaGraphGetNodes(graph, nullptr, &nodes));
    EXPECT_EQ(nodes, 8); /* two copies, a fill, five kernels; the events are edges */
    CHECK_CUDA(cudaGraphInstantiate(&replay, graph, 0));
    for (int turn = 1; turn <= 3; ++turn) {
        change_input(turn);
        CHECK_CUDA(cudaGraphLaunch(replay, main_stream));
        check(d, in, matrix, main_stream);
    }

    CHECK_CUDA(cudaGraphExecDestroy(replay));
    CHECK_CUDA(cudaGraphDestroy(graph));
    CHECK_CUDA(cudaEventDestroy(ready));
    CHECK_CUDA(cudaEventDestroy(done));
    CHECK_CUDA(cudaStreamDestroy(main_stream));
    CHECK_CUDA(cudaStreamDestroy(side));
    CHECK_CUDA(cudaFreeHost(in));
    CHECK_CUDA(cudaFreeHost(matrix));
    for (void *p :
         {(void *)d.in, (void *)d.scanned, (void *)d.totals, (void *)d.matrix, (void *)d.turned, (void *)d.sum})
        CHECK_CUDA(cudaFree(p));
    return rq_done(__FILE__);
}
