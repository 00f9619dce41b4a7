/* SPDX-License-Identifier: Apache-2.0 */
// The layout of repacked matrices (host/fmt_tile.h) as the list of whole numbers that operators take: what has to be known without reading
// the device's memory. Offsets follow from it by rq_tile_plan.
#ifndef REQUITE_LAYOUT_H
#define REQUITE_LAYOUT_H

#include <array>

#include "fmt_tile.h"
#include "tensors.h"

namespace requite {

constexpr size_t layout_size = 20;

inline std::array<int64_t, layout_size> layout_numbers(const rq_tile_layout &t) {
    return {t.kind,       t.n_out,      t.n_in,      t.bits,    t.group,     t.zeros,   t.vec_len,
            t.n_book,     t.book_cols,  t.code_bits, t.book_u8, t.n_outlier, t.vec_out, t.n_stage,
            t.n_codes[0], t.n_codes[1], t.no_scales, t.columns, t.factors,   t.hadamard};
}

inline rq_tile_layout layout_of(const std::vector<int64_t> &n) {
    if (n.size() != layout_size) refuse("layout has ", n.size(), " numbers, not ", layout_size);
    const auto small = [&](size_t i) { return static_cast<int>(n[i]); };
    rq_tile_layout t{};
    if (n[0] < RQ_TILE_GRID || n[0] > RQ_TILE_W4A8 || n[1] < 1 || n[2] < 1 || n[1] > INT32_MAX || n[2] > INT32_MAX)
        refuse("layout begins with kind ", n[0], " and [", n[1], ", ", n[2], "]: that is no matrix");
    t.kind = static_cast<rq_tile_kind>(n[0]);
    t.n_out = n[1], t.n_in = n[2], t.bits = small(3), t.group = n[4], t.zeros = small(5), t.vec_len = small(6);
    t.n_book = n[7], t.book_cols = n[8], t.code_bits = small(9), t.book_u8 = small(10), t.n_outlier = small(11);
    t.vec_out = small(12), t.n_stage = small(13), t.n_codes[0] = n[14], t.n_codes[1] = n[15];
    t.no_scales = small(16), t.columns = small(17), t.factors = small(18), t.hadamard = small(19);
    if (t.kind != RQ_TILE_W4A8 && (t.group < 1 || t.group > t.n_in))
        refuse("layout has groups of ", t.group, " of ", t.n_in, " columns");
    if ((t.kind == RQ_TILE_SSVQ || t.kind == RQ_TILE_VQ) && (t.vec_len < 1 || t.book_cols < 1 || t.n_book < 1))
        refuse("layout has vectors of ", t.vec_len, ", ", t.n_book, " codebooks for ", t.book_cols, " columns each");
    rq_tile_plan(&t);
    return t;
}

} // namespace requite

#endif
