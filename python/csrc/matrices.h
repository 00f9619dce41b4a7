/* SPDX-License-Identifier: Apache-2.0 */
// Packed matrices of tensors: the structs of rq_packed.h. Every shape, dtype and stride is checked here, so that no tensor can make
// the C library read beyond it; codebooks have 2^code_bits entries for the same reason.
#ifndef REQUITE_MATRICES_H
#define REQUITE_MATRICES_H

#include "tensors.h"

namespace requite {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline void check_range(int64_t v, const char *name, int64_t low, int64_t high) {
    if (v < low || v > high) refuse(name, " is ", v, "; it is ", low, " to ", high, " here");
}

// log2 of a codebook's entries.
inline int code_bits_of(const Tensor &book, const char *name) {
    const int64_t n = book.size(1);
    for (int bits = 4; bits <= 16; ++bits)
        if (n == int64_t{1} << bits) return bits;
    refuse(name, " has ", n,
           " entries: a power of two from 16 to 65536 is wanted (pad it, so that no code can be beyond it)");
}

struct Grid {
    rq_grid w{};
    std::vector<uint32_t> copy; // of words, where 4 bytes past their end are of another page

    Grid(const Tensor &words, const Tensor &scale, const MaybeTensor &zero, const MaybeTensor &perm, int64_t n_in,
         int64_t bits, int64_t group) {
        check_rank(words, "words", 2, "[n_out, ceil(n_in bits / 32)]");
        if (bits != 2 && bits != 3 && bits != 4 && bits != 8) refuse("bits is ", bits, ": 2, 3, 4 or 8 is wanted");
        check_range(group, "group", 1, n_in);
        const int64_t n_out = words.size(0), n_group = ceil_div(n_in, group);
        w.n_out = n_out;
        w.n_in = n_in;
        w.bits = static_cast<int>(bits);
        w.group = group;
        w.words = data_of<uint32_t>(words, "words", {n_out, rq_grid_row_words(n_in, w.bits)});
        if (scale.scalar_type() == ScalarType::Half)
            w.scale_f16 = data_of<rq_f16>(scale, "scale", {n_out, n_group});
        else
            w.scale_f32 = data_of<float>(scale, "scale", {n_out, n_group});
        w.zero = data_of<uint8_t>(zero, "zero", {n_out, n_group});
        w.perm = data_of<int32_t>(perm, "perm", {n_in});
        w.n_group = n_group;
        w.row_words = words.size(1);
        const uintptr_t end = reinterpret_cast<uintptr_t>(w.words + words.numel());
        if (words.numel() > 0 && (end - 1) / 4096 != (end + 3) / 4096) {
            copy.assign(w.words, w.words + words.numel());
            copy.push_back(0);
            w.words = copy.data();
        }
    }
};

// Columns that are int8: three tensors or none.
template <typename Matrix>
void set_outliers(Matrix &w, const MaybeTensor &outlier, const MaybeTensor &cols, const MaybeTensor &scale) {
    if (outlier.has_value() != cols.has_value() || outlier.has_value() != scale.has_value())
        refuse("outlier, outlier_cols and outlier_scale go together");
    if (!outlier) return;
    check_rank(*cols, "outlier_cols", 1, "[n_outlier]");
    check_range(cols->size(0), "the number of outlier_cols", 0, RQ_SSVQ_MAX_OUTLIERS);
    w.n_outlier = static_cast<int>(cols->size(0));
    w.outlier = data_of<int8_t>(outlier, "outlier", {w.n_out, w.n_outlier});
    w.outlier_col = data_of<int32_t>(cols, "outlier_cols", {w.n_outlier});
    w.outlier_scale = data_of<float>(scale, "outlier_scale", {w.n_outlier});
}

struct Ssvq {
    rq_ssvq w{};
    std::vector<float> ones; // scales of float16 codebooks

    Ssvq(const Tensor &codes, const Tensor &signs, const Tensor &book, const MaybeTensor &book_scale,
         const Tensor &scale, const MaybeTensor &outlier, const MaybeTensor &outlier_cols,
         const MaybeTensor &outlier_scale, int64_t n_in, int64_t book_cols, int64_t group) {
        check_rank(codes, "codes", 2, "[n_out, words of a row]");
        check_rank(book, "book", 3, "[ceil(n_in / book_cols), entries, vec_len]");
        w.n_out = codes.size(0);
        w.n_in = n_in;
        w.code_bits = code_bits_of(book, "book");
        w.n_codes = book.size(1);
        check_range(book.size(2), "the vec_len of book", 4, 8);
        w.vec_len = static_cast<int>(book.size(2));
        check_range(book_cols, "book_cols", 1, INT32_MAX);
        check_range(group, "group", 1, n_in);
        w.book_cols = book_cols;
        w.group = group;
        const int64_t n_book = ceil_div(n_in, book_cols);
        const Shape book_shape{n_book, w.n_codes, w.vec_len};
        w.codes = data_of<uint32_t>(codes, "codes", {w.n_out, rq_ssvq_code_words(n_in, w.vec_len, w.code_bits)});
        w.signs = data_of<uint32_t>(signs, "signs", {w.n_out, rq_ssvq_sign_words(n_in, w.vec_len)});
        w.scale = data_of<rq_f16>(scale, "scale", {w.n_out, ceil_div(n_in, group)});
        if (book.scalar_type() == ScalarType::Byte) {
            if (!book_scale) refuse("book_scale is missing: a book of uint8 needs it");
            w.book_u8 = data_of<uint8_t>(book, "book", book_shape);
            w.book_scale = data_of<float>(book_scale, "book_scale", {n_book});
        } else {
            if (book_scale)
                refuse("book_scale is for a book of uint8, and book has dtype ", dtype_name(book.scalar_type()));
            w.book_f16 = data_of<rq_f16>(book, "book", book_shape);
            ones.assign(static_cast<size_t>(n_book), 1.0f);
            w.book_scale = ones.data();
        }
        w.n_book = n_book;
        w.n_group = ceil_div(n_in, group);
        w.code_words = codes.size(1);
        w.sign_words = signs.size(1);
        set_outliers(w, outlier, outlier_cols, outlier_scale);
    }
};

struct Vq {
    rq_vq w{};

    Vq(const Tensor &codes, const Tensor &book, const MaybeTensor &codes2, const MaybeTensor &book2,
       const MaybeTensor &book_of, const MaybeTensor &scale, const MaybeTensor &col_scale, const MaybeTensor &col_bias,
       const MaybeTensor &outlier, const MaybeTensor &outlier_cols, const MaybeTensor &outlier_scale, int64_t n_out,
       int64_t n_in, int64_t book_cols, int64_t group, bool vec_out) {
        if (codes2.has_value() != book2.has_value()) refuse("codes2 and book2 go together");
        check_rank(book, "book", 3, "[ceil(n_in / book_cols), entries, vec_len]");
        check_range(book.size(2), "the vec_len of book", 2, RQ_VQ_MAX_VEC);
        check_range(n_out, "n_out", 1, INT32_MAX);
        check_range(book_cols, "book_cols", 1, INT32_MAX);
        check_range(group, "group", 1, n_in);
        w.n_out = n_out;
        w.n_in = n_in;
        w.vec_len = static_cast<int>(book.size(2));
        w.vec_out = vec_out;
        w.n_stage = codes2 ? 2 : 1;
        w.book_cols = book_cols;
        w.group = group;
        set_stage(0, codes, book, "codes", "book");
        if (codes2) set_stage(1, *codes2, *book2, "codes2", "book2");
        w.n_line = vec_out ? ceil_div(n_out, w.vec_len) : n_out;
        w.n_code = vec_out ? n_in : ceil_div(n_in, w.vec_len);
        w.n_book = ceil_div(n_in, book_cols);
        w.n_group = ceil_div(n_in, group);
        w.book_of = data_of<uint8_t>(book_of, "book_of", {n_in});
        w.scale = data_of<rq_f16>(scale, "scale", {n_out, ceil_div(n_in, group)});
        w.col_scale = data_of<rq_f16>(col_scale, "col_scale", {n_in});
        w.col_bias = data_of<rq_f16>(col_bias, "col_bias", {n_in});
        set_outliers(w, outlier, outlier_cols, outlier_scale);
    }

  private:
    void set_stage(int s, const Tensor &codes, const Tensor &book, const char *codes_name, const char *book_name) {
        check_rank(book, book_name, 3, "[ceil(n_in / book_cols), entries, vec_len]");
        const int64_t lines = w.vec_out ? ceil_div(w.n_out, w.vec_len) : w.n_out;
        const int64_t n_code = w.vec_out ? w.n_in : ceil_div(w.n_in, w.vec_len);
        w.code_bits[s] = code_bits_of(book, book_name);
        w.n_codes[s] = book.size(1);
        w.code_words[s] = ceil_div(n_code * w.code_bits[s], 32);
        w.codes[s] = data_of<uint32_t>(codes, codes_name, {lines, ceil_div(n_code * w.code_bits[s], 32)});
        w.book[s] = data_of<rq_f16>(book, book_name, {ceil_div(w.n_in, w.book_cols), w.n_codes[s], w.vec_len});
    }
};

struct W4a8 {
    rq_w4a8 w{};

    W4a8(const Tensor &words, const Tensor &scale, const MaybeTensor &zero, const MaybeTensor &step,
         const MaybeTensor &base, const MaybeTensor &in_scale, int64_t n_in, int64_t group, int64_t hadamard) {
        check_rank(words, "words", 2, "[n_out, ceil(n_in / 8)]");
        check_range(group, "group", 0, RQ_W4A8_MAX_GROUP);
        check_range(hadamard, "hadamard", 0, n_in);
        w.n_out = words.size(0);
        w.n_in = n_in;
        w.group = group;
        w.hadamard = static_cast<int>(hadamard);
        const int64_t n_group = group ? ceil_div(n_in, group) : 0;
        w.n_group = n_group;
        w.row_words = rq_w4a8_row_words(n_in);
        w.words = data_of<uint32_t>(words, "words", {w.n_out, rq_w4a8_row_words(n_in)});
        w.scale = data_of<float>(scale, "scale", {w.n_out});
        w.zero = data_of<uint8_t>(zero, "zero", {w.n_out});
        w.step = data_of<uint8_t>(step, "step", {w.n_out, n_group});
        w.base = data_of<int8_t>(base, "base", {w.n_out, n_group});
        w.in_scale = data_of<float>(in_scale, "in_scale", {n_in});
    }
};

} // namespace requite

#endif
