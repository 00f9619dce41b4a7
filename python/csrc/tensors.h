/* SPDX-License-Identifier: Apache-2.0 */
// Tensors of PyTorch as the C library's pointers, each checked and named in what is said of it. LibTorch's stable ABI alone: one build
// serves every torch from 2.10 on.
#ifndef REQUITE_TENSORS_H
#define REQUITE_TENSORS_H

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "rq_packed.h"
#include "visible.h"

namespace requite {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

template <typename... Words> [[noreturn]] void refuse(const Words &...words) {
    std::ostringstream text;
    ((text << words), ...);
    throw std::runtime_error(text.str());
}

// What the C library refuses, in its own sentence.
inline void check(rq_status status) {
    if (status != RQ_OK) throw std::runtime_error(rq_last_error());
}

template <typename List> std::string shape_text(const List &sizes) {
    std::ostringstream text;
    text << "[";
    for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
    text << "]";
    return text.str();
}

inline const char *dtype_name(ScalarType t) {
    switch (t) {
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    default: return "another type";
    }
}

// Which of the C library's element types a tensor's is.
template <typename T> constexpr ScalarType scalar_of();
template <> constexpr ScalarType scalar_of<float>() { return ScalarType::Float; }
template <> constexpr ScalarType scalar_of<rq_f16>() { return ScalarType::Half; }
template <> constexpr ScalarType scalar_of<uint8_t>() { return ScalarType::Byte; }
template <> constexpr ScalarType scalar_of<int8_t>() { return ScalarType::Char; }
template <> constexpr ScalarType scalar_of<int32_t>() { return ScalarType::Int; }
template <> constexpr ScalarType scalar_of<uint32_t>() { return ScalarType::Int; } // words of bits

// Which device's tensors a file of operators takes.
#ifdef REQUITE_CUDA
constexpr const char *device_name = "a CUDA device";
inline bool is_here(const Tensor &t) { return t.is_cuda(); }
#else
constexpr const char *device_name = "the CPU";
inline bool is_here(const Tensor &t) { return t.is_cpu(); }
#endif

// On that device, in rows, with its memory still there.
inline void check_memory(const Tensor &t, const char *name) {
    if (!is_here(t)) refuse(name, " is not on ", device_name);
    if (!t.is_contiguous())
        refuse(name, " is not contiguous: strides ", shape_text(t.strides()), " of shape ", shape_text(t.sizes()),
               "; pass ", name, ".contiguous()");
    int64_t bytes = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
    if ((t.storage_offset() + t.numel()) * static_cast<int64_t>(t.element_size()) > bytes && t.numel() > 0)
        refuse(name, " of shape ", shape_text(t.sizes()), " has no memory for that: its storage, of ", bytes,
               " bytes, was freed or shrunk");
    visible(t);
}

template <typename T> const T *data_of(const Tensor &t, const char *name, const Shape &shape) {
    if (t.scalar_type() != scalar_of<T>())
        refuse(name, " has dtype ", dtype_name(t.scalar_type()), ", not ", dtype_name(scalar_of<T>()));
    if (shape_text(t.sizes()) != shape_text(shape))
        refuse(name, " has shape ", shape_text(t.sizes()), ", not ", shape_text(shape));
    check_memory(t, name);
    return static_cast<const T *>(t.const_data_ptr());
}
template <typename T> const T *data_of(const MaybeTensor &t, const char *name, const Shape &shape) {
    return t ? data_of<T>(*t, name, shape) : nullptr;
}

template <typename T> T *output_of(const Tensor &t) { return static_cast<T *>(t.mutable_data_ptr()); }

inline void check_rank(const Tensor &t, const char *name, int64_t rank, const char *meaning) {
    if (t.dim() != rank) refuse(name, " has shape ", shape_text(t.sizes()), ": ", meaning, " is wanted");
}

// Rows of activations x[..., n].
struct Rows {
    const float *data;
    int64_t n_tok, n;
    Shape shape;
};
inline Rows rows_of(const Tensor &x, const char *name) {
    if (x.dim() < 1 || x.size(x.dim() - 1) < 1)
        refuse(name, " has shape ", shape_text(x.sizes()), ": rows [..., n] are wanted");
    Shape shape(x.sizes().begin(), x.sizes().end());
    const float *data = data_of<float>(x, name, shape);
    return {data, x.numel() / shape.back(), shape.back(), shape};
}

inline Tensor empty_like_rows(const Tensor &x, Shape shape, int64_t last, ScalarType type) {
    shape.back() = last;
    return torch::stable::new_empty(x, shape, type);
}

} // namespace requite

#endif
