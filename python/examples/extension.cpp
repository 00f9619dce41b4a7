/* SPDX-License-Identifier: Apache-2.0 */
// torch.ops.example.mlp: the MLP of a Llama block over 4-bit weights, in one operator: silu(x gate^T) * (x up^T), times down^T. It calls
// Requite's C interface (rq_packed.h) on the tensors' memory: no copy of the weights, and nothing of Requite in Python.
#include <rq_packed.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <stdexcept>
#include <string>

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

static void need(bool good, const char *sentence) {
    if (!good) throw std::runtime_error(sentence);
}

static void run(rq_status status) {
    if (status != RQ_OK) throw std::runtime_error(rq_last_error());
}

// words int32 [n_out, n_in / 8] and scale float16 [n_out, n_in / group], both contiguous and on the CPU, as a matrix of Requite.
static rq_grid matrix(const Tensor &words, const Tensor &scale, int64_t group, const char *sentence) {
    need(words.is_cpu() && words.is_contiguous() && words.scalar_type() == ScalarType::Int && words.dim() == 2,
         sentence);
    rq_grid w = {};
    w.bits = 4;
    w.n_out = words.size(0);
    w.n_in = words.size(1) * 8;
    w.group = group;
    need(scale.is_cpu() && scale.is_contiguous() && scale.scalar_type() == ScalarType::Half && group > 0 &&
             w.n_in % group == 0 && scale.numel() == w.n_out * (w.n_in / group),
         sentence);
    w.words = static_cast<const uint32_t *>(words.const_data_ptr());
    w.scale_f16 = static_cast<const rq_f16 *>(scale.const_data_ptr());
    return w;
}

static Tensor mlp(const Tensor &x, const Tensor &gate_words, const Tensor &gate_scale, const Tensor &up_words,
                  const Tensor &up_scale, const Tensor &down_words, const Tensor &down_scale, int64_t group) {
    need(x.is_cpu() && x.is_contiguous() && x.scalar_type() == ScalarType::Float && x.dim() == 2,
         "x: float32 rows on the CPU");
    const rq_grid gate =
        matrix(gate_words, gate_scale, group, "gate: int32 words [n_out, n_in / 8] and float16 scales");
    const rq_grid up = matrix(up_words, up_scale, group, "up: int32 words [n_out, n_in / 8] and float16 scales");
    const rq_grid down =
        matrix(down_words, down_scale, group, "down: int32 words [n_out, n_in / 8] and float16 scales");
    const int64_t n_tok = x.size(0);
    need(x.size(1) == gate.n_in && up.n_in == gate.n_in && up.n_out == gate.n_out && down.n_in == gate.n_out,
         "gate and up take x's columns, down takes as many as they give");
    Tensor a = torch::stable::new_empty(x, {n_tok, gate.n_out}), b = torch::stable::new_empty(x, {n_tok, up.n_out});
    Tensor y = torch::stable::new_empty(x, {n_tok, down.n_out});
    float *pa = static_cast<float *>(a.mutable_data_ptr());
    const float *pb = static_cast<const float *>(b.const_data_ptr());
    const float *px = static_cast<const float *>(x.const_data_ptr());
    run(rq_grid_linear(pa, &gate, nullptr, px, n_tok));
    run(rq_grid_linear(static_cast<float *>(b.mutable_data_ptr()), &up, nullptr, px, n_tok));
    for (int64_t i = 0; i < a.numel(); ++i) pa[i] = pa[i] / (1.0f + std::exp(-pa[i])) * pb[i];
    run(rq_grid_linear(static_cast<float *>(y.mutable_data_ptr()), &down, nullptr, pa, n_tok));
    return y;
}

STABLE_TORCH_LIBRARY(example, m) {
    m.def("mlp(Tensor x, Tensor gate_words, Tensor gate_scale, Tensor up_words, Tensor up_scale, Tensor down_words, "
          "Tensor down_scale, int group) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(example, CPU, m) { m.impl("mlp", TORCH_BOX(&mlp)); }
