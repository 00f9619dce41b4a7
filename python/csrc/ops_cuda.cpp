/* SPDX-License-Identifier: Apache-2.0 */
// torch.ops.requite.* on CUDA devices: the kernels of cuda/, on PyTorch's current stream. What an operator needs beyond its result (workspace,
// scratch, int8 rows) is a tensor of PyTorch's allocator, and nothing is waited for or read back, so that a captured graph can hold it; like
// everything that loads a library or makes a table at first use, run it once before a capture. A result is float16 or bfloat16, as x is.
//
// With REQUITE_SIM the same code takes tensors of the CPU to the simulator of tests/gpusim, for tests.
#ifndef REQUITE_SIM
#define REQUITE_CUDA
#include <cuda_runtime_api.h>
#endif
#include "layout.h"
#include "rq_cuda_hadamard.h"
#include "rq_packed.h"

#include <map>
#include <mutex>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <tuple>

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void **ret_stream);

namespace requite {
namespace {

void run(rq_status status) {
    if (status != RQ_OK) throw std::runtime_error(rq_cuda_last_error());
}

#ifdef REQUITE_SIM
struct Device {
    rq_cuda_stream stream = nullptr;

    explicit Device(const Tensor &) {}
    ~Device() { hide_all(); }
};
#else
// The device of x for the length of a call, and the stream that PyTorch queues on.
struct Device {
    torch::stable::accelerator::DeviceGuard guard;
    rq_cuda_stream stream;

    explicit Device(const Tensor &x) : guard(x.get_device_index()) {
        void *now = nullptr;
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &now));
        stream = static_cast<rq_cuda_stream>(now);
    }
};
#endif

Tensor new_here(const Tensor &on, const Shape &shape, ScalarType type) {
    return visible(torch::stable::new_empty(on, shape, type));
}

// Rows of float16 or bfloat16.
struct HalfRows {
    const void *data;
    int64_t n_tok, n;
    Shape shape;
    ScalarType type;
    rq_act act;
};

rq_act act_of(const Tensor &x, const char *name) {
    if (x.scalar_type() != ScalarType::Half && x.scalar_type() != ScalarType::BFloat16)
        refuse(name, " has dtype ", dtype_name(x.scalar_type()), ": float16 or bfloat16 is wanted on ", device_name);
    return x.scalar_type() == ScalarType::Half ? RQ_ACT_F16 : RQ_ACT_BF16;
}

HalfRows half_rows(const Tensor &x, const char *name) {
    const rq_act act = act_of(x, name);
    if (x.dim() < 1 || x.size(x.dim() - 1) < 1)
        refuse(name, " has shape ", shape_text(x.sizes()), ": rows [..., n] are wanted");
    check_memory(x, name);
    const Shape shape(x.sizes().begin(), x.sizes().end());
    return {x.const_data_ptr(), x.numel() / shape.back(), shape.back(), shape, x.scalar_type(), act};
}

// More of the same type and device as x.
const void *like_rows(const MaybeTensor &t, const char *name, const HalfRows &x, const Tensor &on, const Shape &shape) {
    if (!t) return nullptr;
    if (t->scalar_type() != x.type)
        refuse(name, " has dtype ", dtype_name(t->scalar_type()), ", not ", dtype_name(x.type));
    if (shape_text(t->sizes()) != shape_text(shape))
        refuse(name, " has shape ", shape_text(t->sizes()), ", not ", shape_text(shape));
    check_memory(*t, name);
    if (t->get_device_index() != on.get_device_index()) refuse(name, " is on another device than x");
    return t->const_data_ptr();
}

template <typename T> const T *on_device(const MaybeTensor &t, const char *name, const Tensor &on, const Shape &shape) {
    const T *data = data_of<T>(t, name, shape);
    if (t && t->get_device_index() != on.get_device_index())
        refuse(name, " is on another device than the first argument");
    return data;
}

// Memory that begins at a multiple of 256 bytes, which allocators give but do not promise.
struct Bytes {
    Tensor memory;
    void *data = nullptr;

    Bytes(const Tensor &on, size_t n, bool zero) {
        const Shape shape{static_cast<int64_t>(n ? n + RQ_TILE_ALIGN : 0)};
        memory = zero ? visible(torch::stable::new_zeros(on, shape, ScalarType::Byte))
                      : new_here(on, shape, ScalarType::Byte);
        const uintptr_t at = reinterpret_cast<uintptr_t>(memory.mutable_data_ptr());
        if (n) data = reinterpret_cast<void *>((at + RQ_TILE_ALIGN - 1) / RQ_TILE_ALIGN * RQ_TILE_ALIGN);
    }
};

rq_cuda_gemv_desc desc_of(const rq_tile_layout &t, int64_t n_tok, rq_act act) {
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default();
    d.kind = t.kind, d.n_out = t.n_out, d.n_in = t.n_in, d.n_tok = n_tok, d.act = act, d.group = t.group;
    d.bits = t.bits, d.zeros = t.zeros, d.vec_len = t.vec_len, d.n_book = t.n_book, d.book_cols = t.book_cols;
    d.code_bits = t.code_bits, d.book_u8 = t.book_u8, d.n_outlier = t.n_outlier, d.vec_out = t.vec_out,
    d.n_stage = t.n_stage;
    d.n_codes[0] = t.n_codes[0], d.n_codes[1] = t.n_codes[1], d.no_scales = t.no_scales, d.columns = t.columns;
    return d;
}

// Plan, scratch, run. The workspace is zero before a run, as the kernels want it.
void multiply(const Tensor &on, const Device &device, const rq_cuda_gemv_desc &weights, const rq_cuda_gemv_args &args) {
    rq_cuda_linear_desc d = rq_cuda_linear_desc_default();
    rq_cuda_linear_plan plan;
    d.weights = weights;
    run(rq_cuda_linear_make_plan(&plan, &d));
    const Bytes workspace(on, plan.workspace_bytes, true), scratch(on, plan.scratch_bytes, false);
    rq_cuda_linear_args a{};
    a.gemv = args;
    a.gemv.workspace = workspace.data;
    a.scratch = scratch.data;
    run(rq_cuda_linear_run(&plan, &d, &a, device.stream));
}

// int8 rows whose tokens begin at multiples of 16 bytes, as the GEMM wants them.
struct Int8Rows {
    int64_t pitch;
    Tensor q, scale, sum;

    Int8Rows(const Tensor &on, int64_t n_tok, int64_t n, int64_t align)
        : pitch((n + align - 1) / align * align), q(new_here(on, Shape{n_tok, pitch}, ScalarType::Char)),
          scale(new_here(on, Shape{n_tok}, ScalarType::Float)), sum(new_here(on, Shape{n_tok}, ScalarType::Int)) {}
};

// What becomes int8, on its way: the order of a Hadamard matrix, made here, and factors.
struct Input {
    rq_hadamard h[2];
    const rq_hadamard *hadamard = nullptr;
    const float *factor = nullptr;

    Input(int64_t order, int64_t n, const float *f) : factor(f) {
        if (order < 0 || order > n || (order && n % order))
            refuse("hadamard is ", order, ": 0, or an order that divides ", n, " is wanted");
        if (!order) return;
        check(rq_hadamard_make(h, order));
        hadamard = h;
    }
};

Tensor linear_tiles(const Tensor &x, const Tensor &tiles, const MaybeTensor &perm, const MaybeTensor &bias,
                    std::vector<int64_t> layout) {
    const rq_tile_layout t = layout_of(layout);
    const HalfRows rows = half_rows(x, "x");
    if (rows.n != t.n_in) refuse("x has rows of ", rows.n, ", and the matrix ", t.n_in, " columns");
    const uint8_t *weights = on_device<uint8_t>(tiles, "tiles", x, {t.bytes});
    const Device device(x);
    rq_cuda_gemv_desc d = desc_of(t, rows.n_tok, rows.act);
    rq_cuda_gemv_args a{};
    a.bias = like_rows(bias, "bias", rows, x, {t.n_out});
    a.perm = on_device<int32_t>(perm, "perm", x, {t.n_in});
    a.weights = weights;
    a.x = rows.data;
    d.bias = a.bias != nullptr;
    Tensor y = visible(empty_like_rows(x, rows.shape, t.n_out, rows.type));
    a.y = y.mutable_data_ptr();
    if (rows.n_tok == 0) return y;
    if (t.kind != RQ_TILE_W4A8) {
        multiply(x, device, d, a);
        return y;
    }
    if (perm) refuse("perm is for a grid, and this matrix is w4a8");
    const Int8Rows q(x, rows.n_tok, rows.n, 16);
    const Input input(t.hadamard, rows.n,
                      t.factors ? reinterpret_cast<const float *>(weights + t.factors_at) : nullptr);
    rq_cuda_quantize_args to{};
    to.q = output_of<int8_t>(q.q), to.scale = output_of<float>(q.scale), to.sum = output_of<int32_t>(q.sum);
    to.x = rows.data, to.act = rows.act, to.n_tok = rows.n_tok, to.n_in = rows.n;
    to.q_pitch = q.pitch, to.hadamard = input.hadamard, to.factor = input.factor;
    run(rq_cuda_quantize_rows(&to, device.stream));
    d.x_s8 = 1, d.x_pitch = q.pitch;
    a.x = to.q, a.x_scale = to.scale, a.x_sum = to.sum;
    multiply(x, device, d, a);
    return y;
}

Tensor gemm_tiles(const Tensor &q, const Tensor &q_scale, const Tensor &q_sum, const Tensor &tiles,
                  const MaybeTensor &bias, std::vector<int64_t> layout, bool bfloat16) {
    const rq_tile_layout t = layout_of(layout);
    if (t.kind != RQ_TILE_W4A8) refuse("layout is of kind ", t.kind, ": int8 rows go with a w4a8 matrix");
    if (q.dim() != 2) refuse("q has shape ", shape_text(q.sizes()), ": [n_tok, n_in] is wanted");
    const int64_t n_tok = q.size(0);
    rq_cuda_gemv_args a{};
    a.x = on_device<int8_t>(q, "q", q, {n_tok, t.n_in});
    a.x_scale = on_device<float>(q_scale, "q_scale", q, {n_tok});
    a.x_sum = on_device<int32_t>(q_sum, "q_sum", q, {n_tok});
    a.weights = on_device<uint8_t>(tiles, "tiles", q, {t.bytes});
    const ScalarType type = bfloat16 ? ScalarType::BFloat16 : ScalarType::Half;
    const HalfRows as_y{nullptr, n_tok, t.n_out, {}, type, bfloat16 ? RQ_ACT_BF16 : RQ_ACT_F16};
    a.bias = like_rows(bias, "bias", as_y, q, {t.n_out});
    rq_cuda_gemv_desc d = desc_of(t, n_tok, as_y.act);
    d.x_s8 = 1, d.bias = a.bias != nullptr;
    const Device device(q);
    Tensor y = new_here(q, Shape{n_tok, t.n_out}, type);
    a.y = y.mutable_data_ptr();
    if (n_tok > 0) multiply(q, device, d, a);
    return y;
}

Tensor unpack_tiles(const Tensor &tiles, std::vector<int64_t> layout, bool bfloat16) {
    const rq_tile_layout t = layout_of(layout);
    const uint8_t *weights = on_device<uint8_t>(tiles, "tiles", tiles, {t.bytes});
    const Device device(tiles);
    Tensor w = new_here(tiles, Shape{t.n_out, t.n_in}, bfloat16 ? ScalarType::BFloat16 : ScalarType::Half);
    const rq_cuda_gemv_desc d = desc_of(t, 1, bfloat16 ? RQ_ACT_BF16 : RQ_ACT_F16);
    run(rq_cuda_unpack_run(&d, w.mutable_data_ptr(), t.n_in, weights, device.stream));
    return w;
}

std::tuple<Tensor, Tensor, Tensor> quantize_rows(const Tensor &x, const MaybeTensor &factor, int64_t hadamard) {
    const HalfRows rows = half_rows(x, "x");
    const Input input(hadamard, rows.n, on_device<float>(factor, "factor", x, {rows.n}));
    const Device device(x);
    const Int8Rows out(x, rows.n_tok, rows.n, 1);
    rq_cuda_quantize_args to{};
    to.q = output_of<int8_t>(out.q), to.scale = output_of<float>(out.scale), to.sum = output_of<int32_t>(out.sum);
    to.x = rows.data, to.act = rows.act, to.n_tok = rows.n_tok, to.n_in = rows.n, to.hadamard = input.hadamard,
    to.factor = input.factor;
    if (rows.n_tok > 0) run(rq_cuda_quantize_rows(&to, device.stream));
    return {out.q, out.scale, out.sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> quantize_rmsnorm(const Tensor &x, const MaybeTensor &residual,
                                                            const MaybeTensor &weight, double eps,
                                                            const MaybeTensor &factor, int64_t hadamard) {
    const HalfRows rows = half_rows(x, "x");
    const Input input(hadamard, rows.n, on_device<float>(factor, "factor", x, {rows.n}));
    const Device device(x);
    const Int8Rows out(x, rows.n_tok, rows.n, 1);
    Tensor stream = new_here(x, residual ? rows.shape : Shape{0}, rows.type);
    rq_cuda_rmsnorm_args to{};
    to.q = output_of<int8_t>(out.q), to.scale = output_of<float>(out.scale), to.sum = output_of<int32_t>(out.sum);
    to.x = rows.data, to.residual = like_rows(residual, "residual", rows, x, rows.shape);
    to.stream = residual ? stream.mutable_data_ptr() : nullptr;
    to.weight = like_rows(weight, "weight", rows, x, {rows.n});
    to.eps = static_cast<float>(eps), to.act = rows.act, to.n_tok = rows.n_tok, to.n_in = rows.n;
    to.factor = input.factor;
    if (rows.n_tok > 0 && input.hadamard)
        run(rq_cuda_rmsnorm_hadamard_quantize(&to, input.hadamard, device.stream));
    else if (rows.n_tok > 0)
        run(rq_cuda_rmsnorm_quantize(&to, device.stream));
    return {out.q, out.scale, out.sum, stream};
}

std::tuple<Tensor, Tensor, Tensor> quantize_gated(const Tensor &gate, const Tensor &up, const MaybeTensor &factor,
                                                  int64_t hadamard) {
    const HalfRows rows = half_rows(gate, "gate");
    const Input input(hadamard, rows.n, on_device<float>(factor, "factor", gate, {rows.n}));
    const Device device(gate);
    const Int8Rows out(gate, rows.n_tok, rows.n, 1);
    rq_cuda_silu_args to{};
    to.q = output_of<int8_t>(out.q), to.scale = output_of<float>(out.scale), to.sum = output_of<int32_t>(out.sum);
    to.gate = rows.data, to.up = like_rows(up, "up", rows, gate, rows.shape), to.pitch = rows.n;
    to.act = rows.act, to.n_tok = rows.n_tok, to.n_in = rows.n, to.hadamard = input.hadamard, to.factor = input.factor;
    if (rows.n_tok > 0) run(rq_cuda_silu_quantize(&to, device.stream));
    return {out.q, out.scale, out.sum};
}

// ---- Hadamard matrices and rotations: rows of float32 too

HalfRows rows_to_turn(const Tensor &x, rq_rows_type *type) {
    if (x.scalar_type() != ScalarType::Float) {
        if (x.scalar_type() != ScalarType::Half && x.scalar_type() != ScalarType::BFloat16)
            refuse("x has dtype ", dtype_name(x.scalar_type()), ": float16, bfloat16 or float32 is wanted on ",
                   device_name);
        const HalfRows rows = half_rows(x, "x");
        *type = rows.act == RQ_ACT_F16 ? RQ_ROWS_F16 : RQ_ROWS_BF16;
        return rows;
    }
    const Rows rows = rows_of(x, "x");
    *type = RQ_ROWS_F32;
    return {rows.data, rows.n_tok, rows.n, rows.shape, ScalarType::Float, RQ_ACT_F16};
}

Tensor hadamard(const Tensor &x, int64_t order, bool transposed) {
    const Device device(x);
    rq_hadamard h[2];
    rq_cuda_hadamard_args a{};
    const HalfRows rows = rows_to_turn(x, &a.type);
    if (order < 1 || order > rows.n || rows.n % order)
        refuse("order is ", order, ", which does not divide rows of ", rows.n);
    check(rq_hadamard_make(h, order));
    Tensor y = new_here(x, rows.shape, rows.type);
    a.y = y.mutable_data_ptr(), a.x = rows.data, a.n_tok = rows.n_tok, a.n = rows.n, a.hadamard = &h[transposed];
    if (rows.n_tok > 0) run(rq_cuda_hadamard_rows(&a, device.stream));
    return y;
}

// R of kind "orthogonal" as float32 on x's device, made by the CPU when it is first asked for and then kept: a captured graph may hold it, and a
// tensor of a device is better not freed when the process ends.
Tensor orthogonal(const Tensor &x, int64_t n, int64_t seed) {
    static std::mutex lock;
    static auto &kept = *new std::map<std::tuple<int32_t, int64_t, int64_t>, Tensor>;
    const std::lock_guard<std::mutex> guard(lock);
    const auto key = std::make_tuple(x.get_device_index(), n, seed);
    const auto found = kept.find(key);
    if (found != kept.end()) return found->second;
    Tensor r = torch::stable::new_zeros(x, Shape{n, n}, ScalarType::Float, std::nullopt,
                                        torch::stable::Device(torch::headeronly::DeviceType::CPU));
    float *entry = output_of<float>(r);
    for (int64_t i = 0; i < n; ++i) entry[i * n + i] = 1;
    check(rq_rotate_rows(entry, n, n, "orthogonal", static_cast<uint64_t>(seed), false));
    return kept.emplace(key, torch::stable::to(r, x.device())).first->second;
}

Tensor rotate(const Tensor &x, const std::string &kind, int64_t seed, bool inverse) {
    const Device device(x);
    rq_hadamard h[2];
    rq_cuda_rotate_args a{};
    const HalfRows rows = rows_to_turn(x, &a.type);
    if (kind == "orthogonal") { // a product by PyTorch, in float32
        const Tensor r = orthogonal(x, rows.n, seed);
        const Tensor y = torch::stable::matmul(torch::stable::to(x, ScalarType::Float),
                                               inverse ? torch::stable::transpose(r, 0, 1) : r);
        return torch::stable::to(y, rows.type);
    }
    if (kind != "hadamard" && kind != "plain")
        refuse("unknown kind of rotation \"", kind, "\"; there are hadamard, orthogonal and plain");
    check(rq_hadamard_make(h, rows.n));
    Tensor y = new_here(x, rows.shape, rows.type);
    a.y = y.mutable_data_ptr(), a.x = rows.data, a.n_tok = rows.n_tok, a.n = rows.n, a.hadamard = h;
    a.seed = static_cast<uint64_t>(seed), a.plain = kind == "plain", a.inverse = inverse;
    if (rows.n_tok > 0) run(rq_cuda_rotate_rows(&a, device.stream));
    return y;
}

} // namespace
} // namespace requite

#ifndef REQUITE_SIM
// For requite.ops.why_no_cuda(): the CUDA release that is linked in here, and the newest that this machine's driver runs (0: no driver).
extern "C" __attribute__((visibility("default"))) void requite_torch_cuda_releases(int *linked, int *driver) {
    *linked = CUDART_VERSION;
    if (cudaDriverGetVersion(driver) != cudaSuccess) *driver = 0;
}
#endif

#ifdef REQUITE_SIM
#define REQUITE_KEY CPU
STABLE_TORCH_LIBRARY_FRAGMENT(requite, m) { // the CPU has its own of these
    m.def("sim_quantize_rows(Tensor x, Tensor? factor, int hadamard) -> (Tensor q, Tensor scale, Tensor sum)");
    m.def(
        "sim_quantize_rmsnorm(Tensor x, Tensor? residual, Tensor? weight, float eps, Tensor? factor, int hadamard) -> "
        "(Tensor q, Tensor scale, Tensor sum, Tensor stream)");
    m.def("sim_quantize_gated(Tensor gate, Tensor up, Tensor? factor, int hadamard) -> (Tensor q, Tensor scale, Tensor "
          "sum)");
    m.def("sim_hadamard(Tensor x, int order, bool transposed) -> Tensor");
    m.def("sim_rotate(Tensor x, str kind, int seed, bool inverse) -> Tensor");
}
#define REQUITE_NAME(name) "sim_" name
#else
#define REQUITE_KEY        CUDA
#define REQUITE_NAME(name) name
#endif
STABLE_TORCH_LIBRARY_IMPL(requite, REQUITE_KEY, m) {
    using namespace requite;
    m.impl("linear_tiles", TORCH_BOX(&linear_tiles));
    m.impl("gemm_tiles", TORCH_BOX(&gemm_tiles));
    m.impl("unpack_tiles", TORCH_BOX(&unpack_tiles));
    m.impl(REQUITE_NAME("quantize_rows"), TORCH_BOX(&quantize_rows));
    m.impl(REQUITE_NAME("quantize_rmsnorm"), TORCH_BOX(&quantize_rmsnorm));
    m.impl(REQUITE_NAME("quantize_gated"), TORCH_BOX(&quantize_gated));
    m.impl(REQUITE_NAME("hadamard"), TORCH_BOX(&hadamard));
    m.impl(REQUITE_NAME("rotate"), TORCH_BOX(&rotate));
}
