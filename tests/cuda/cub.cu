/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels that we did not write: a sum, a radix sort and a scan of CUB (part of the CUDA toolkit). The last two let blocks wait
 * for what earlier blocks publish.
 * Targets: sm_90a. */
#include <cub/cub.cuh>

#include <algorithm>
#include <vector>

#include "cudatest.h"

/* Runs a CUB call twice: for the size of its workspace, and with it. */
template <typename F> static void with_workspace(F call) {
    void *workspace = nullptr;
    size_t bytes = 0;
    CHECK_CUDA(call(workspace, bytes));
    CHECK_CUDA(cudaMalloc(&workspace, bytes));
    CHECK_CUDA(call(workspace, bytes));
    CHECK_CUDA(cudaDeviceSynchronize());
    CHECK_CUDA(cudaFree(workspace));
}

int main() {
    rq_need_device(90);
    const int n = rq_small() ? 5000 : 60000;
    std::vector<uint32_t> in(n), got(n), want(n);
    rq_rng rng = {11};
    uint32_t sum = 0;
    for (int k = 0; k < n; ++k) {
        in[k] = rq_rand_u32(&rng);
        sum += in[k];
        want[k] = sum;
    }
    uint32_t *d_in = (uint32_t *)rq_device_copy(in.data(), n * 4), *d_out = (uint32_t *)rq_device_buffer(n * 4), total;
    uint32_t *d_total = (uint32_t *)rq_device_buffer(4);
    with_workspace([&](void *w, size_t &bytes) { return cub::DeviceReduce::Sum(w, bytes, d_in, d_total, n); });
    rq_device_read(&total, d_total, 4);
    EXPECT_EQ(total, sum);
    with_workspace([&](void *w, size_t &bytes) { return cub::DeviceScan::InclusiveSum(w, bytes, d_in, d_out, n); });
    rq_device_read(got.data(), d_out, n * 4);
    for (int k = 0; k < n; ++k) EXPECT_EQ_AT(k, got[k], want[k]);
    rq_record("scan", RQ_U32, got.data(), n, 0);
    with_workspace([&](void *w, size_t &bytes) { return cub::DeviceRadixSort::SortKeys(w, bytes, d_in, d_out, n); });
    rq_device_read(got.data(), d_out, n * 4);
    std::sort(in.begin(), in.end());
    for (int k = 0; k < n; ++k) EXPECT_EQ_AT(k, got[k], in[k]);
    rq_record("sort", RQ_U32, got.data(), n, 0);
    return rq_done(__FILE__);
}
