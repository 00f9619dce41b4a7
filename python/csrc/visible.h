/* SPDX-License-Identifier: Apache-2.0 */
// Memory that a device can see. PyTorch's CUDA tensors are; in a build for the simulator (REQUITE_SIM), tensors of the CPU are shown to it for
// the length of a call, so that it knows their bounds and finds what kernels touch beyond them.
#ifndef REQUITE_VISIBLE_H
#define REQUITE_VISIBLE_H

#include <torch/csrc/stable/tensor.h>

#ifdef REQUITE_SIM
#include <map>

extern "C" int cudaHostRegister(void *p, size_t bytes, unsigned flags);
extern "C" int cudaHostUnregister(void *p);
extern "C" int cudaDeviceSynchronize();

namespace requite {
inline std::map<void *, size_t> &shown() {
    static std::map<void *, size_t> ranges;
    return ranges;
}
inline void hide_all() {
    cudaDeviceSynchronize();
    for (const auto &range : shown()) cudaHostUnregister(range.first);
    shown().clear();
}
inline const torch::stable::Tensor &visible(const torch::stable::Tensor &t) {
    void *p = t.data_ptr();
    const size_t bytes = static_cast<size_t>(t.numel()) * t.element_size();
    if (bytes && shown().emplace(p, bytes).second) cudaHostRegister(p, bytes, 0);
    return t;
}
} // namespace requite
#else
namespace requite {
inline const torch::stable::Tensor &visible(const torch::stable::Tensor &t) { return t; }
} // namespace requite
#endif

#endif
