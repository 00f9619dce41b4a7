/* SPDX-License-Identifier: Apache-2.0 */
// What torch.ops.requite.* are, for all devices. docs/python.md says what each tensor holds; shapes and dtypes are in the comments.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(requite, m) {
    // y[..., n_out] = x[..., n_in] W^T + bias, all float32 on the CPU; unpack: W[n_out, n_in] itself.

    // words int32 [n_out, ceil(n_in bits / 32)], scale float16 or float32 [n_out, ceil(n_in / group)], zero uint8 as scale, perm int32 [n_in]
    m.def("linear_grid(Tensor x, Tensor words, Tensor scale, Tensor? zero, Tensor? perm, Tensor? bias, int bits, int "
          "group) -> Tensor");
    m.def(
        "unpack_grid(Tensor words, Tensor scale, Tensor? zero, Tensor? perm, int n_in, int bits, int group) -> Tensor");

    // codes and signs int32 streams [n_out, words], book float16 or uint8 [books, 2^b, 4 or 8], book_scale float32 [books] with uint8,
    // scale float16 [n_out, ceil(n_in / group)], outlier int8 [n_out, k], outlier_cols int32 [k], outlier_scale float32 [k]
    m.def("linear_ssvq(Tensor x, Tensor codes, Tensor signs, Tensor book, Tensor? book_scale, Tensor scale, Tensor? "
          "outlier, "
          "Tensor? outlier_cols, Tensor? outlier_scale, Tensor? bias, int book_cols, int group) -> Tensor");
    m.def("unpack_ssvq(Tensor codes, Tensor signs, Tensor book, Tensor? book_scale, Tensor scale, Tensor? outlier, "
          "Tensor? outlier_cols, "
          "Tensor? outlier_scale, int n_in, int book_cols, int group) -> Tensor");

    // codes and codes2 int32 [lines, words], book and book2 float16 [books, 2^b, vec_len], book_of uint8 [n_in], scale float16 [n_out,
    // ceil(n_in / group)], col_scale and col_bias float16 [n_in], outliers as above
    m.def(
        "linear_vq(Tensor x, Tensor codes, Tensor book, Tensor? codes2, Tensor? book2, Tensor? book_of, Tensor? scale, "
        "Tensor? col_scale, Tensor? col_bias, Tensor? outlier, Tensor? outlier_cols, Tensor? outlier_scale, Tensor? "
        "bias, int n_out, "
        "int book_cols, int group, bool vec_out) -> Tensor");
    m.def("unpack_vq(Tensor codes, Tensor book, Tensor? codes2, Tensor? book2, Tensor? book_of, Tensor? scale, Tensor? "
          "col_scale, "
          "Tensor? col_bias, Tensor? outlier, Tensor? outlier_cols, Tensor? outlier_scale, int n_out, int n_in, int "
          "book_cols, int group, "
          "bool vec_out) -> Tensor");

    // words int32 [n_out, ceil(n_in / 8)], scale float32 [n_out], zero uint8 [n_out], step uint8 and base int8 [n_out, ceil(n_in / group)],
    // in_scale float32 [n_in]. x becomes int8 on its way, so unpack is what the weights stand for, not all that happens.
    m.def("linear_w4a8(Tensor x, Tensor words, Tensor scale, Tensor? zero, Tensor? step, Tensor? base, Tensor? "
          "in_scale, Tensor? bias, "
          "int group, int hadamard) -> Tensor");
    m.def("unpack_w4a8(Tensor words, Tensor scale, Tensor? zero, Tensor? step, Tensor? base, Tensor? in_scale, int "
          "n_in, int group, "
          "int hadamard) -> Tensor");
    // The second half of linear_w4a8: q int8 [n_tok, n_in], q_scale float32 and q_sum int32 [n_tok], as quantize_rows gives them.
    m.def("gemm_w4a8(Tensor q, Tensor q_scale, Tensor q_sum, Tensor words, Tensor scale, Tensor? zero, Tensor? step, "
          "Tensor? base, "
          "Tensor? bias, int group) -> Tensor");

    // Rows [..., n] to (q int8 [n_tok, n], scale float32 [n_tok], sum int32 [n_tok]). factor float32 [n].
    m.def("quantize_rows(Tensor x, Tensor? factor, int hadamard) -> (Tensor q, Tensor scale, Tensor sum)");
    // Of RMSNorm with weight float32 [n]; stream is x + residual, of no elements without a residual.
    m.def("quantize_rmsnorm(Tensor x, Tensor? residual, Tensor? weight, float eps, Tensor? factor, int hadamard) -> "
          "(Tensor q, Tensor scale, Tensor sum, Tensor stream)");
    // Of silu(gate) * up.
    m.def(
        "quantize_gated(Tensor gate, Tensor up, Tensor? factor, int hadamard) -> (Tensor q, Tensor scale, Tensor sum)");

    // Each `order` consecutive values of x[..., n] times the normalized Hadamard matrix of that order; on CUDA devices x is float16, bfloat16 or
    // float32, here and below.
    m.def("hadamard(Tensor x, int order, bool transposed) -> Tensor");
    // Rows of x[..., n] times the rotation of a rotated model's residual stream, or its inverse; kind and seed are the metadata's.
    m.def("rotate(Tensor x, str kind, int seed, bool inverse) -> Tensor");

    // For CUDA devices: a matrix repacked, on the CPU, into what the kernels read: bytes uint8, and int64 numbers that are its layout. Then y of
    // x float16 or bfloat16, bias of x's type; of rows that are int8 already (w4a8); and the dense weights, columns as they are stored.
    m.def("tiles_grid(Tensor words, Tensor scale, Tensor? zero, int n_in, int bits, int group) -> (Tensor tiles, "
          "Tensor layout)");
    m.def("tiles_ssvq(Tensor codes, Tensor signs, Tensor book, Tensor? book_scale, Tensor scale, Tensor? outlier, "
          "Tensor? outlier_cols, "
          "Tensor? outlier_scale, int n_in, int book_cols, int group) -> (Tensor tiles, Tensor layout)");
    m.def("tiles_vq(Tensor codes, Tensor book, Tensor? codes2, Tensor? book2, Tensor? book_of, Tensor? scale, Tensor? "
          "col_scale, "
          "Tensor? col_bias, Tensor? outlier, Tensor? outlier_cols, Tensor? outlier_scale, int n_out, int n_in, int "
          "book_cols, int group, "
          "bool vec_out) -> (Tensor tiles, Tensor layout)");
    m.def("tiles_w4a8(Tensor words, Tensor scale, Tensor? zero, Tensor? step, Tensor? base, Tensor? in_scale, int "
          "n_in, int group, "
          "int hadamard) -> (Tensor tiles, Tensor layout)");
    m.def("linear_tiles(Tensor x, Tensor tiles, Tensor? perm, Tensor? bias, int[] layout) -> Tensor");
    m.def("gemm_tiles(Tensor q, Tensor q_scale, Tensor q_sum, Tensor tiles, Tensor? bias, int[] layout, bool bfloat16) "
          "-> Tensor");
    m.def("unpack_tiles(Tensor tiles, int[] layout, bool bfloat16) -> Tensor");
}
