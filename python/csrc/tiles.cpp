/* SPDX-License-Identifier: Apache-2.0 */
// Matrices repacked for the CUDA kernels, on the CPU: bytes, and what their layout is (layout.h) as int64. Once, when a model is loaded.
#include <tuple>

#include "layout.h"
#include "matrices.h"
#include "rq_repack.h"

namespace requite {
namespace {

template <typename Matrix, typename Plan, typename Repack>
std::tuple<Tensor, Tensor> tiles(const Tensor &like, const Matrix &w, Plan plan, Repack repack) {
    rq_tile_layout t{};
    const char *why = "";
    if (plan(&t, &w, 1, &why) != RQ_OK) refuse("the CUDA kernels' layout cannot hold this matrix: ", why);
    const Tensor bytes = torch::stable::new_zeros(like, Shape{t.bytes}, ScalarType::Byte);
    if (repack(bytes.mutable_data_ptr(), &t, &w, &why) != RQ_OK)
        refuse("the CUDA kernels' layout cannot hold this matrix: ", why);
    const Tensor layout = torch::stable::new_empty(like, Shape{static_cast<int64_t>(layout_size)}, ScalarType::Long);
    const auto numbers = layout_numbers(t);
    std::copy(numbers.begin(), numbers.end(), static_cast<int64_t *>(layout.mutable_data_ptr()));
    return {bytes, layout};
}

// The other formats' repacking cannot fail once it is planned.
template <auto function> constexpr auto sure() {
    return [](void *to, const rq_tile_layout *t, const auto *w, const char **) {
        function(to, t, w, 1);
        return RQ_OK;
    };
}

std::tuple<Tensor, Tensor> tiles_grid(const Tensor &words, const Tensor &scale, const MaybeTensor &zero, int64_t n_in,
                                      int64_t bits, int64_t group) {
    check_range(n_in, "n_in", 1, INT32_MAX);
    const Grid m(words, scale, zero, std::nullopt, n_in, bits, group);
    return tiles(words, m.w, rq_repack_grid_plan,
                 [](void *to, const rq_tile_layout *t, const rq_grid *w, const char **why) {
                     return rq_repack_grid(to, t, w, 1, why);
                 });
}

std::tuple<Tensor, Tensor> tiles_ssvq(const Tensor &codes, const Tensor &signs, const Tensor &book,
                                      const MaybeTensor &book_scale, const Tensor &scale, const MaybeTensor &outlier,
                                      const MaybeTensor &outlier_cols, const MaybeTensor &outlier_scale, int64_t n_in,
                                      int64_t book_cols, int64_t group) {
    check_range(n_in, "n_in", 1, INT32_MAX);
    const Ssvq m(codes, signs, book, book_scale, scale, outlier, outlier_cols, outlier_scale, n_in, book_cols, group);
    return tiles(codes, m.w, rq_repack_ssvq_plan, sure<rq_repack_ssvq>());
}

std::tuple<Tensor, Tensor> tiles_vq(const Tensor &codes, const Tensor &book, const MaybeTensor &codes2,
                                    const MaybeTensor &book2, const MaybeTensor &book_of, const MaybeTensor &scale,
                                    const MaybeTensor &col_scale, const MaybeTensor &col_bias,
                                    const MaybeTensor &outlier, const MaybeTensor &outlier_cols,
                                    const MaybeTensor &outlier_scale, int64_t n_out, int64_t n_in, int64_t book_cols,
                                    int64_t group, bool vec_out) {
    check_range(n_in, "n_in", 1, INT32_MAX);
    const Vq m(codes, book, codes2, book2, book_of, scale, col_scale, col_bias, outlier, outlier_cols, outlier_scale,
               n_out, n_in, book_cols, group, vec_out);
    return tiles(codes, m.w, rq_repack_vq_plan, sure<rq_repack_vq>());
}

std::tuple<Tensor, Tensor> tiles_w4a8(const Tensor &words, const Tensor &scale, const MaybeTensor &zero,
                                      const MaybeTensor &step, const MaybeTensor &base, const MaybeTensor &in_scale,
                                      int64_t n_in, int64_t group, int64_t hadamard) {
    check_range(n_in, "n_in", 1, RQ_W4A8_MAX_COLS);
    const W4a8 m(words, scale, zero, step, base, in_scale, n_in, group, hadamard);
    return tiles(words, m.w, rq_repack_w4a8_plan, sure<rq_repack_w4a8>());
}

} // namespace
} // namespace requite

STABLE_TORCH_LIBRARY_IMPL(requite, CPU, m) {
    using namespace requite;
    m.impl("tiles_grid", TORCH_BOX(&tiles_grid));
    m.impl("tiles_ssvq", TORCH_BOX(&tiles_ssvq));
    m.impl("tiles_vq", TORCH_BOX(&tiles_vq));
    m.impl("tiles_w4a8", TORCH_BOX(&tiles_w4a8));
}
