/* SPDX-License-Identifier: Apache-2.0 */
/* Leaf header: weights as the CUDA GEMV kernels read them. Made from the file's layout by host/repack_*.c, exactly, and back.
 *
 * A tile is 16 rows x 128 columns, all of what a warp reads at once. Tiles lie row block by row block, and inside one by
 * columns: tile (rb, kb) begins at (rb * n_kb + kb) * tile_bytes, n_rb = ceil(n_out / 16), n_kb = ceil(n_in / 128). What is
 * beyond the matrix decodes to anything: the kernels put zeros into x there, and do not write such rows.
 *
 * A tile is 4 steps of 32 columns. In a step, lane l of the warp holds 8 consecutive columns of two rows:
 *     g = l / 4, q = l % 4:   rows g and g + 8, columns 8 q .. 8 q + 7 of the step.
 * Read as fp16 pairs, columns (0,1) (2,3) of both rows are the A fragment of mma.m16n8k16 and columns (4,5) (6,7) that of a second
 * one: a dot product does not care for the order of its terms, so the 16 columns of an mma are the 4 x 4 that the lanes of a
 * quad hold. The matching B fragments of token n = g are x[n][8 q .. 8 q + 7] of the step: one 16-byte load.
 *
 * Parts. A lane's bytes of a tile are cut into parts of 16 (or 8) bytes; part p of all 32 lanes is contiguous, so that a warp
 * reads 512 (or 256) contiguous bytes with one instruction.
 *
 *   GRID 2 bits   part 0 (16 B): word s (s = 0..3) is step s. Its 16-bit halves hold even and odd columns: bits 2i, 2i+1 are column
 *                 2i of row g for i < 4 and column 2(i-4) of row g + 8 for i >= 4; bits 16+2i, 17+2i the columns one further.
 *   GRID 3 bits   part 0 as for 2 bits with the low two bits of the codes; part 1 (8 B): 16 bits a step, step s in bits 16(s%2) of
 *                 word s/2: bit i of them is the high bit of row g + 8 (i/8), column i%8.
 *   GRID 4 bits   parts 0, 1 (16 B each): part p holds steps 2p and 2p+1, two words a step: row g, then row g + 8. Nibble i < 4 is
 *                 column 2i, nibble 4 + i column 2i + 1.
 *   GRID 8 bits   parts 0..3: part p is step p; words 0, 1: row g, columns 0..3 and 4..7, a byte each; words 2, 3: row g + 8.
 *   SSVQ 8        (vec_len 8, 256 codes) part 0: word s / 2 holds the codes of step s, of row g + 8r in byte 2 (s % 2) + r; word
 *                 2 + s / 2 its signs: of columns (2j, 2j+1) of row g + 8r at bits (p, p + 16), p = 15 - 4 (s % 2) - 2 r - j / 2 - 8 (j % 2).
 *                 So what a shift left by k brings to the top of the four bytes of a word are the signs of 4 columns.
 *   SSVQ 4        (vec_len 4, 256 codes, 3 bits a weight) part 0: word s is step s: codes of row g (columns 0..3, 4..7) in bytes 0, 1,
 *                 of row g + 8 in bytes 2, 3; part 1 (8 B): word s / 2 holds the signs of step s, as above.
 *   SSVQ, codes of 9 to 12 bits: as above with their low 8 bits; the others follow in a part of their own, 2 (up to 10 bits) or 4 each, so 8 or
 *                 16 times as many bits a lane (vec_len 8, 4). Of the code in byte b of code word j: 4 bits at 32 (j / 2) + 8 b + 4 (j % 2); 2 bits
 *                 at 8 b + 2 j (vec_len 4), 4 j + 8 (b % 2) + 2 (b / 2) (vec_len 8).
 *   VQ            a lane's codes of a tile: those of the first stage, then those of the second, each an LSB-first stream of 8, 12 or 16 bits a
 *                 code (n_codes up to 256, 4096, 65536) in 32-bit words. The words go to parts of 16 B, then one of 8 B, one of 4 B.
 *                 vec_len 8: code 2 s + r is that of step s, row g + 8 r, columns 8 q .. 8 q + 7.
 *                 vec_len 4: code 4 s + 2 r + h is that of columns 8 q + 4 h .. 8 q + 4 h + 3.
 *                 vec_out (vec_len 8): code 2 s + r is that of rows 8 r .. 8 r + 7 in column c(l) of step s: with l = 8 p + 2 q + e,
 *                 c = 8 q + 2 p + e. ldmatrix.trans then gives each lane its 8 columns of its row, as above.
 *   W4A8          part p: words 2 i and 2 i + 1 are rows g and g + 8 of step 2 p + i; nibbles 2 c and 2 c + 1 of them columns 4 q + c and
 *                 16 + 4 q + c of the step. So the even nibbles of both words are registers 0 and 1, the odd ones 2 and 3, of the A fragment
 *                 of mma.m16n8k32, and of a warp's quarter of wgmma.m64nNk32, with columns in their order: x in shared memory may be a
 *                 plain matrix.
 *
 * W4A8's tiles lie 8 row blocks (128 rows) at a time, which is what the GEMM copies at once: tile (rb, kb) begins at
 * ((rb / 8 * n_kb + kb) * 8 + rb % 8) * 1024. Row blocks are padded to a multiple of 8.
 *
 * Side data, each array from the next multiple of 256 bytes (rq_tile_layout has the offsets):
 *   scales      GRID: [n_rb][n_group][8][2] fp16: rows 0, 8, 1, 9, ... 7, 15 (rq_tile_grid_place); SSVQ: [n_rb][n_group][16] fp16; VQ the
 *               same, where there are any
 *   zeros       GRID with zero points: [n_rb][n_group][8][2] fp16, the zero point itself (an integer)
 *   book        SSVQ: [n_book][256, or 2^code_bits][vec_len] fp16 or uint8, then [n_rb][n_book] float scales
 *               VQ: [n_book][n_codes][vec_len] fp16 of the first stage, then (book_2) of the second
 *   columns     VQ, where there are any: [n_in] fp16 scales, then [n_in] fp16 biases
 *   W4A8: scales are [rows] fp32, zero_points [rows] int32 (8 when symmetric, 128 in two levels), rows a multiple of 128;
 *   levels      in two levels, [n_rb / 8][n_group][8][8][4] uint8: of row block 8 i + b and lanes 4 g ..: step and 128 + base of row g, then of
 *               row g + 8. So u * step + 128 + base is a byte, 128 above the level.
 *   factors     W4A8: [n_in] fp32, where there are any: in_scale of fmt_w4a8.h, for the kernel that quantizes x
 *   outliers    SSVQ, VQ: [n_rb][n_outlier][16] int8, then [n_outlier] int32 columns, [n_rb][n_outlier] float scales
 * Rows beyond n_out have scale 0. Several matrices with one x (q, k, v) are stacked to one, row block by row block: that is why
 * what is one number a matrix is here one a row block. */
#ifndef RQ_FMT_TILE_H
#define RQ_FMT_TILE_H

#include "rq_base.h"

enum { RQ_TILE_ROWS = 16, RQ_TILE_COLS = 128, RQ_TILE_ALIGN = 256, RQ_TILE_W4A8_BLOCKS = 8 };

typedef enum rq_tile_kind { RQ_TILE_GRID, RQ_TILE_SSVQ, RQ_TILE_VQ, RQ_TILE_W4A8 } rq_tile_kind;

typedef struct rq_tile_layout { /* offsets in bytes from the start of the repacked matrix; filled by rq_tile_plan */
    rq_tile_kind kind;
    int64_t n_out, n_in, n_rb, n_kb;
    int bits;      /* GRID: 2, 3, 4, 8; SSVQ: 2 (vec_len 8) or 3 (vec_len 4) */
    int vec_len;   /* SSVQ; VQ */
    int code_bits; /* SSVQ: 0 to 12; up to 8 a code is a byte */
    /* VQ: vectors down the rows; stages; entries of their codebooks; there are scales; there are column scales and biases. */
    int vec_out, n_stage, no_scales, columns;
    int64_t n_codes[2];
    int64_t group, n_group;    /* W4A8: both 0 with one level */
    int zeros;                 /* GRID */
    int64_t n_book, book_cols; /* SSVQ, VQ: book_cols a multiple of 128, or n_in */
    int book_u8;               /* magnitudes are uint8 with a scale, not fp16 */
    int n_outlier;
    int factors, hadamard; /* W4A8: x has factors; the order of its Hadamard matrix, or 0. Products know of neither */
    int64_t tile_bytes;
    /* Offsets. VQ's book_2 is where SSVQ has book_scales. */
    int64_t tiles, scales, zero_points, book, book_scales, book_2, columns_at, outliers, outlier_cols, outlier_scales;
    int64_t levels, factors_at; /* W4A8 */
    int64_t bytes;              /* of all of it */
} rq_tile_layout;

static inline int64_t rq_tile_round(int64_t bytes) {
    return (bytes + RQ_TILE_ALIGN - 1) / RQ_TILE_ALIGN * RQ_TILE_ALIGN;
}

/* Where row r of a row block is among its 16 scales and zero points of grid codes: the two rows of a lane are neighbours. */
static inline int64_t rq_tile_grid_place(int64_t r) { return r % 8 * 2 + r / 8; }

/* Of a code of SSVQ: the bits that are not in its byte, and the entries that such a codebook has here. */
static inline int rq_tile_high_bits(int code_bits) { return code_bits <= 8 ? 0 : code_bits <= 10 ? 2 : 4; }
static inline int64_t rq_tile_ssvq_codes(int code_bits) { return code_bits <= 8 ? 256 : (int64_t)1 << code_bits; }

/* Bits of a code of VQ in a tile. */
static inline int rq_tile_code_bits(int64_t n_codes) { return n_codes <= 256 ? 8 : n_codes <= 4096 ? 12 : 16; }

static inline int64_t rq_tile_bytes_of(const rq_tile_layout *t) {
    const int64_t weights = (int64_t)RQ_TILE_ROWS * RQ_TILE_COLS;
    if (t->kind == RQ_TILE_GRID) return weights * t->bits / 8;
    if (t->kind == RQ_TILE_W4A8) return weights / 2;
    if (t->kind == RQ_TILE_SSVQ)
        return (weights * t->bits + weights / t->vec_len * rq_tile_high_bits(t->code_bits)) / 8;
    int bits = rq_tile_code_bits(t->n_codes[0]) + (t->n_stage > 1 ? rq_tile_code_bits(t->n_codes[1]) : 0);
    return weights / t->vec_len * bits / 8;
}
static inline int64_t rq_tile_book_bytes(const rq_tile_layout *t, int stage) {
    if (t->kind == RQ_TILE_SSVQ)
        return stage ? 0 : t->n_book * rq_tile_ssvq_codes(t->code_bits) * t->vec_len * (t->book_u8 ? 1 : 2);
    return t->kind == RQ_TILE_VQ && stage < t->n_stage ? t->n_book * t->n_codes[stage] * t->vec_len * 2 : 0;
}

/* Where a tile of W4A8 is, in tiles (and likewise the levels of a group, in 32 bytes); and the rest of rq_tile_plan. */
static inline int64_t rq_tile_w4a8_place(int64_t rb, int64_t kb, int64_t n_kb) {
    return (rb / RQ_TILE_W4A8_BLOCKS * n_kb + kb) * RQ_TILE_W4A8_BLOCKS + rb % RQ_TILE_W4A8_BLOCKS;
}
static inline void rq_tile_plan_w4a8(rq_tile_layout *t) {
    int64_t rb = (t->n_rb + RQ_TILE_W4A8_BLOCKS - 1) / RQ_TILE_W4A8_BLOCKS * RQ_TILE_W4A8_BLOCKS;
    t->tiles = 0;
    t->scales = rb * t->n_kb * t->tile_bytes;
    t->zero_points = t->scales + rb * RQ_TILE_ROWS * 4;
    t->levels = t->zero_points + rb * RQ_TILE_ROWS * 4;
    t->bytes = t->factors_at = t->levels + rb * t->n_group * RQ_TILE_ROWS * 2;
    if (t->factors) t->bytes = rq_tile_round(t->bytes + t->n_in * 4);
    t->book = t->book_scales = t->book_2 = t->columns_at = t->bytes;
    t->outliers = t->outlier_cols = t->outlier_scales = t->bytes;
}

/* Fills n_rb .. bytes from what is above them, and vec_out .. columns, group, zeros, n_book, book_cols, book_u8, n_outlier. */
static inline void rq_tile_plan(rq_tile_layout *t) {
    t->n_rb = (t->n_out + RQ_TILE_ROWS - 1) / RQ_TILE_ROWS;
    t->n_kb = (t->n_in + RQ_TILE_COLS - 1) / RQ_TILE_COLS;
    t->n_group = t->group ? (t->n_in + t->group - 1) / t->group : 0;
    t->tile_bytes = rq_tile_bytes_of(t);
    if (t->kind == RQ_TILE_W4A8) {
        rq_tile_plan_w4a8(t);
        return;
    }
    t->tiles = 0;
    t->scales = rq_tile_round(t->n_rb * t->n_kb * t->tile_bytes);
    int64_t per_row = t->n_rb * t->n_group * RQ_TILE_ROWS * 2;
    t->zero_points = rq_tile_round(t->scales + (t->no_scales ? 0 : per_row));
    t->book = rq_tile_round(t->zero_points + (t->zeros ? per_row : 0));
    t->book_scales = t->book_2 = rq_tile_round(t->book + rq_tile_book_bytes(t, 0));
    t->columns_at =
        rq_tile_round(t->book_2 + (t->kind == RQ_TILE_SSVQ ? t->n_rb * t->n_book * 4 : rq_tile_book_bytes(t, 1)));
    t->outliers = rq_tile_round(t->columns_at + (t->columns ? t->n_in * 4 : 0));
    t->outlier_cols = rq_tile_round(t->outliers + t->n_rb * t->n_outlier * RQ_TILE_ROWS);
    t->outlier_scales = rq_tile_round(t->outlier_cols + t->n_outlier * 4);
    t->bytes = rq_tile_round(t->outlier_scales + t->n_rb * t->n_outlier * 4);
}

#endif
