/* SPDX-License-Identifier: Apache-2.0 */
// torch.ops.requite.* on the CPU: the C library's own functions (host/rq_packed.h), so that results are its bytes. The schemas are in
// schemas.cpp, fake kernels and gradients in python/requite/ops.py.
#include <tuple>

#include "matrices.h"

namespace requite {
namespace {

// y[..., n_out] = x[..., n_in] W^T + bias, by one of the C library's four.
template <typename Matrix, typename Function>
Tensor linear(const Tensor &x, const Rows &rows, const Matrix &w, const MaybeTensor &bias, Function function) {
    const float *b = data_of<float>(bias, "bias", {w.n_out});
    Tensor y = empty_like_rows(x, rows.shape, w.n_out, ScalarType::Float);
    if (rows.n_tok > 0) check(function(output_of<float>(y), &w, b, rows.data, rows.n_tok));
    return y;
}

template <typename Matrix, typename Function> Tensor dense(const Tensor &like, const Matrix &w, Function function) {
    Tensor out = torch::stable::new_empty(like, Shape{w.n_out, w.n_in}, ScalarType::Float);
    check(function(output_of<float>(out), &w, 0, w.n_out));
    return out;
}

Tensor linear_grid(const Tensor &x, const Tensor &words, const Tensor &scale, const MaybeTensor &zero,
                   const MaybeTensor &perm, const MaybeTensor &bias, int64_t bits, int64_t group) {
    const Rows rows = rows_of(x, "x");
    const Grid m(words, scale, zero, perm, rows.n, bits, group);
    return linear(x, rows, m.w, bias, rq_grid_linear);
}

Tensor unpack_grid(const Tensor &words, const Tensor &scale, const MaybeTensor &zero, const MaybeTensor &perm,
                   int64_t n_in, int64_t bits, int64_t group) {
    check_range(n_in, "n_in", 1, INT32_MAX);
    return dense(words, Grid(words, scale, zero, perm, n_in, bits, group).w, rq_grid_dense);
}

Tensor linear_ssvq(const Tensor &x, const Tensor &codes, const Tensor &signs, const Tensor &book,
                   const MaybeTensor &book_scale, const Tensor &scale, const MaybeTensor &outlier,
                   const MaybeTensor &outlier_cols, const MaybeTensor &outlier_scale, const MaybeTensor &bias,
                   int64_t book_cols, int64_t group) {
    const Rows rows = rows_of(x, "x");
    const Ssvq m(codes, signs, book, book_scale, scale, outlier, outlier_cols, outlier_scale, rows.n, book_cols, group);
    return linear(x, rows, m.w, bias, rq_ssvq_linear);
}

Tensor unpack_ssvq(const Tensor &codes, const Tensor &signs, const Tensor &book, const MaybeTensor &book_scale,
                   const Tensor &scale, const MaybeTensor &outlier, const MaybeTensor &outlier_cols,
                   const MaybeTensor &outlier_scale, int64_t n_in, int64_t book_cols, int64_t group) {
    check_range(n_in, "n_in", 1, INT32_MAX);
    const Ssvq m(codes, signs, book, book_scale, scale, outlier, outlier_cols, outlier_scale, n_in, book_cols, group);
    return dense(codes, m.w, rq_ssvq_dense);
}

Tensor linear_vq(const Tensor &x, const Tensor &codes, const Tensor &book, const MaybeTensor &codes2,
                 const MaybeTensor &book2, const MaybeTensor &book_of, const MaybeTensor &scale,
                 const MaybeTensor &col_scale, const MaybeTensor &col_bias, const MaybeTensor &outlier,
                 const MaybeTensor &outlier_cols, const MaybeTensor &outlier_scale, const MaybeTensor &bias,
                 int64_t n_out, int64_t book_cols, int64_t group, bool vec_out) {
    const Rows rows = rows_of(x, "x");
    const Vq m(codes, book, codes2, book2, book_of, scale, col_scale, col_bias, outlier, outlier_cols, outlier_scale,
               n_out, rows.n, book_cols, group, vec_out);
    return linear(x, rows, m.w, bias, rq_vq_linear);
}

Tensor unpack_vq(const Tensor &codes, const Tensor &book, const MaybeTensor &codes2, const MaybeTensor &book2,
                 const MaybeTensor &book_of, const MaybeTensor &scale, const MaybeTensor &col_scale,
                 const MaybeTensor &col_bias, const MaybeTensor &outlier, const MaybeTensor &outlier_cols,
                 const MaybeTensor &outlier_scale, int64_t n_out, int64_t n_in, int64_t book_cols, int64_t group,
                 bool vec_out) {
    check_range(n_in, "n_in", 1, INT32_MAX);
    const Vq m(codes, book, codes2, book2, book_of, scale, col_scale, col_bias, outlier, outlier_cols, outlier_scale,
               n_out, n_in, book_cols, group, vec_out);
    return dense(codes, m.w, rq_vq_dense);
}

Tensor linear_w4a8(const Tensor &x, const Tensor &words, const Tensor &scale, const MaybeTensor &zero,
                   const MaybeTensor &step, const MaybeTensor &base, const MaybeTensor &in_scale,
                   const MaybeTensor &bias, int64_t group, int64_t hadamard) {
    const Rows rows = rows_of(x, "x");
    const W4a8 m(words, scale, zero, step, base, in_scale, rows.n, group, hadamard);
    return linear(x, rows, m.w, bias, rq_w4a8_linear);
}

Tensor unpack_w4a8(const Tensor &words, const Tensor &scale, const MaybeTensor &zero, const MaybeTensor &step,
                   const MaybeTensor &base, const MaybeTensor &in_scale, int64_t n_in, int64_t group,
                   int64_t hadamard) {
    check_range(n_in, "n_in", 1, RQ_W4A8_MAX_COLS);
    return dense(words, W4a8(words, scale, zero, step, base, in_scale, n_in, group, hadamard).w, rq_w4a8_dense);
}

Tensor gemm_w4a8(const Tensor &q, const Tensor &q_scale, const Tensor &q_sum, const Tensor &words, const Tensor &scale,
                 const MaybeTensor &zero, const MaybeTensor &step, const MaybeTensor &base, const MaybeTensor &bias,
                 int64_t group) {
    check_rank(q, "q", 2, "[n_tok, n_in]");
    const int64_t n_tok = q.size(0), n_in = q.size(1);
    check_range(n_in, "the n_in of q", 1, RQ_W4A8_MAX_COLS);
    const W4a8 m(words, scale, zero, step, base, std::nullopt, n_in, group, 0);
    const rq_rows8 rows = {const_cast<int8_t *>(data_of<int8_t>(q, "q", {n_tok, n_in})), n_in,
                           const_cast<float *>(data_of<float>(q_scale, "q_scale", {n_tok})),
                           const_cast<int32_t *>(data_of<int32_t>(q_sum, "q_sum", {n_tok}))}; // only read
    const float *b = data_of<float>(bias, "bias", {m.w.n_out});
    Tensor y = torch::stable::new_empty(q, Shape{n_tok, m.w.n_out}, ScalarType::Float);
    if (n_tok > 0) check(rq_w4a8_product(output_of<float>(y), &m.w, b, &rows, n_tok));
    return y;
}

// Tensors for rows as int8, and the struct over them.
struct Int8Rows {
    Tensor q, scale, sum;
    rq_rows8 to;

    Int8Rows(const Tensor &x, const Rows &rows)
        : q(torch::stable::new_empty(x, Shape{rows.n_tok, rows.n}, ScalarType::Char)),
          scale(torch::stable::new_empty(x, Shape{rows.n_tok}, ScalarType::Float)),
          sum(torch::stable::new_empty(x, Shape{rows.n_tok}, ScalarType::Int)), to{output_of<int8_t>(q), rows.n,
                                                                                   output_of<float>(scale),
                                                                                   output_of<int32_t>(sum)} {}
};

rq_rows8_input input_of(const MaybeTensor &factor, int64_t hadamard, int64_t n) {
    check_range(hadamard, "hadamard", 0, n);
    return {static_cast<int>(hadamard), data_of<float>(factor, "factor", {n})};
}

std::tuple<Tensor, Tensor, Tensor> quantize_rows(const Tensor &x, const MaybeTensor &factor, int64_t hadamard) {
    const Rows rows = rows_of(x, "x");
    const rq_rows8_input input = input_of(factor, hadamard, rows.n);
    const Int8Rows out(x, rows);
    if (rows.n_tok > 0) check(rq_quantize_rows(&out.to, rows.data, rows.n_tok, rows.n, &input));
    return {out.q, out.scale, out.sum};
}

// The fourth is x + residual, or x itself again: an operator may not return its argument, so without a residual it is empty.
std::tuple<Tensor, Tensor, Tensor, Tensor> quantize_rmsnorm(const Tensor &x, const MaybeTensor &residual,
                                                            const MaybeTensor &weight, double eps,
                                                            const MaybeTensor &factor, int64_t hadamard) {
    const Rows rows = rows_of(x, "x");
    const rq_rows8_input input = input_of(factor, hadamard, rows.n);
    const float *add = data_of<float>(residual, "residual", rows.shape),
                *gain = data_of<float>(weight, "weight", {rows.n});
    const Int8Rows out(x, rows);
    Tensor stream = torch::stable::new_empty(x, residual ? rows.shape : Shape{0}, ScalarType::Float);
    if (rows.n_tok > 0)
        check(rq_quantize_rmsnorm(&out.to, output_of<float>(stream), rows.data, add, gain, static_cast<float>(eps),
                                  rows.n_tok, rows.n, &input));
    return {out.q, out.scale, out.sum, stream};
}

std::tuple<Tensor, Tensor, Tensor> quantize_gated(const Tensor &gate, const Tensor &up, const MaybeTensor &factor,
                                                  int64_t hadamard) {
    const Rows rows = rows_of(gate, "gate");
    const float *other = data_of<float>(up, "up", rows.shape);
    const rq_rows8_input input = input_of(factor, hadamard, rows.n);
    const Int8Rows out(gate, rows);
    if (rows.n_tok > 0) check(rq_quantize_gated(&out.to, rows.data, other, rows.n, rows.n_tok, rows.n, &input));
    return {out.q, out.scale, out.sum};
}

Tensor hadamard(const Tensor &x, int64_t order, bool transposed) {
    const Rows rows = rows_of(x, "x");
    check_range(order, "order", 1, rows.n);
    Tensor y = torch::stable::new_empty(x, rows.shape, ScalarType::Float);
    torch::stable::copy_(y, x);
    check(rq_hadamard_rows(output_of<float>(y), rows.n_tok, rows.n, order, transposed));
    return y;
}

Tensor rotate(const Tensor &x, const std::string &kind, int64_t seed, bool inverse) {
    const Rows rows = rows_of(x, "x");
    Tensor y = torch::stable::new_empty(x, rows.shape, ScalarType::Float);
    torch::stable::copy_(y, x);
    check(rq_rotate_rows(output_of<float>(y), rows.n_tok, rows.n, kind.c_str(), static_cast<uint64_t>(seed), inverse));
    return y;
}

} // namespace
} // namespace requite

STABLE_TORCH_LIBRARY_IMPL(requite, CPU, m) {
    using namespace requite;
    m.impl("linear_grid", TORCH_BOX(&linear_grid));
    m.impl("unpack_grid", TORCH_BOX(&unpack_grid));
    m.impl("linear_ssvq", TORCH_BOX(&linear_ssvq));
    m.impl("unpack_ssvq", TORCH_BOX(&unpack_ssvq));
    m.impl("linear_vq", TORCH_BOX(&linear_vq));
    m.impl("unpack_vq", TORCH_BOX(&unpack_vq));
    m.impl("linear_w4a8", TORCH_BOX(&linear_w4a8));
    m.impl("unpack_w4a8", TORCH_BOX(&unpack_w4a8));
    m.impl("gemm_w4a8", TORCH_BOX(&gemm_w4a8));
    m.impl("quantize_rows", TORCH_BOX(&quantize_rows));
    m.impl("quantize_rmsnorm", TORCH_BOX(&quantize_rmsnorm));
    m.impl("quantize_gated", TORCH_BOX(&quantize_gated));
    m.impl("hadamard", TORCH_BOX(&hadamard));
    m.impl("rotate", TORCH_BOX(&rotate));
}
