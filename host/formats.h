/* SPDX-License-Identifier: Apache-2.0 */
/* Packed weight formats: one row of formats.def each. A format owns pack, unpack and size; unpack_row is its definition. */
#ifndef RQ_FORMATS_H
#define RQ_FORMATS_H

#include "model.h"
#include "ops.h" /* the structs of all formats */

typedef enum rq_format {
#define RQ_FORMAT(id, name) RQ_FORMAT_##id,
#include "formats.def"
#undef RQ_FORMAT
    RQ_N_FORMATS
} rq_format;

/* A packed matrix ready to run. `u` points into a store's mapping or into memory that the rq_packed owns. */
typedef struct rq_packed {
    rq_format format;
    int64_t n_out, n_in;
    union {
#define RQ_FORMAT(id, name) rq_##name name;
#include "formats.def"
#undef RQ_FORMAT
    } u;
    int64_t shared_bits; /* of data that several matrices use (a codebook): what of it is counted with this one */
    void *owned[12];     /* free()d by rq_packed_free */
    int n_owned;
} rq_packed;

typedef struct rq_format_ops {
    const char *name;
    void (*unpack_row)(const rq_packed *p, int64_t row, float *dst); /* dst[n_in], input-feature order */
    int64_t (*size_bits)(const rq_packed *p);                        /* all side data: what bpw counts */
    rq_status (*load)(rq_packed *p, const rq_store *s, const char *name, const void *json_entry);
    void (*inspect)(const rq_packed *p, void *json_object); /* adds what `requite inspect` shows, "summary" among it */
} rq_format_ops;

#define RQ_FORMAT(id, name) extern const rq_format_ops rq_format_##name;
#include "formats.def"
#undef RQ_FORMAT

const rq_format_ops *rq_format_get(rq_format f);
bool rq_format_by_name(const char *name, rq_format *f);

void rq_unpack_row(const rq_packed *p, int64_t row, float *dst);
int64_t rq_packed_size_bits(const rq_packed *p);
void rq_packed_free(rq_packed *p);

/* What a grid quantizer hands over: codes[n_out][n_in] one byte each in input-feature order, scales, zeros
 * (NULL when symmetric) [n_out][n_group], and for dynamic act-order g_idx[n_in], the group of each input feature. */
typedef struct rq_grid_codes {
    int64_t n_out, n_in, group, n_group;
    int bits;
    rq_dtype scale_dtype; /* RQ_F16 or RQ_F32: how `scale` is stored; the values must be exact in it */
    const uint8_t *codes;
    const float *scale;
    const uint8_t *zero;
    const int32_t *g_idx; /* NULL: group of column j is j / group */
} rq_grid_codes;

/* The tensors that a packed matrix is on disk, ready for rq_safetensors_write. */
typedef struct rq_packed_file {
    rq_out_tensor tensor[12];
    void *memory[32]; /* names and data, free()d by rq_packed_file_free */
    int n_tensors, n_memory;
} rq_packed_file;
void rq_packed_file_free(rq_packed_file *f);

/* compressed-tensors pack-quantized names:
 *   NAME.weight_packed I32 [n_out, row_words]   NAME.weight_scale F16|F32 [n_out, n_group]   NAME.weight_shape I64 [2]
 *   NAME.weight_zero_point I32 [ceil(n_out*bits/32), n_group] when asymmetric   NAME.weight_g_idx I32 [n_in] with act-order groups */
rq_status rq_grid_pack_file(rq_packed_file *f, const char *name, const rq_grid_codes *q);

/* The run-time form straight from codes (no file), owning its memory. */
rq_status rq_grid_pack(rq_packed *p, const rq_grid_codes *q);

/* The run-time form of a matrix in a store: words and scales are used from the mapping where alignment allows (copied
 * where not, or to sort columns by group when g_idx is there). Everything is checked: shapes, dtypes, zero and g_idx
 * ranges, finite scales. bits, group and sym describe it (from the file's metadata). */
rq_status rq_grid_load(rq_packed *p, const rq_store *s, const char *name, int bits, int64_t group, bool sym);

/* A grid matrix from parts that p takes over, also when it fails (g_idx stays the caller's): what readers of other tools' files have. Checked
 * like a file. so_far: a status other than RQ_OK only frees the parts and comes back. */
typedef struct rq_grid_parts {
    int64_t n_out, n_in, group;
    int bits;
    uint32_t *words;   /* [n_out][row_words], columns in input-feature order, and one more word */
    rq_f16 *scale_f16; /* [n_out][n_group], one of the two */
    float *scale_f32;
    uint8_t *zero;        /* [n_out][n_group], less than 2^bits; NULL: symmetric */
    const int32_t *g_idx; /* [n_in] with act-order groups, or NULL */
} rq_grid_parts;
rq_status rq_grid_take(rq_packed *p, const char *name, const rq_grid_parts *from, rq_status so_far);

/* The tensors of a packed matrix, as its pack_file gives them, and its entry of the metadata: free() it. */
rq_status rq_packed_file_of(rq_packed_file *f, char **json_entry, const char *name, const rq_packed *p);

/* What an ssvq quantizer hands over (fmt_ssvq.h has the meaning). Books are [ceil(n_in / book_cols)][n_codes][vec_len]. */
typedef struct rq_ssvq_codes {
    int64_t n_out, n_in;
    int vec_len, code_bits;
    int64_t n_codes, book_cols, group;
    const uint16_t *codes;   /* [n_out][ceil(n_in / vec_len)] */
    const uint8_t *negative; /* [n_out][n_in]: 1 where the weight is negative */
    const rq_f16 *book_f16;  /* exactly one of the two */
    const uint8_t *book_u8;
    const float *book_scale; /* [n_book], with book_u8 only */
    const float *scale;      /* [n_out][ceil(n_in / group)], exact in fp16 */
    int n_outlier;
    const int32_t *outlier_col; /* [n_outlier], ascending */
    const int8_t *outlier;      /* [n_out][n_outlier] */
    const float *outlier_scale; /* [n_outlier] */
    const char *book;           /* matrix under whose name the book is stored; NULL: this one */
    int64_t book_users;         /* how many matrices name that book; 0 counts as 1 */
} rq_ssvq_codes;

/* The run-time form, owning its memory. */
rq_status rq_ssvq_pack(rq_packed *p, const rq_ssvq_codes *q);
/* The tensors of docs/formats.md; the book only where it is this matrix's. The entry of the metadata: free() it. */
rq_status rq_ssvq_pack_file(rq_packed_file *f, char **json_entry, const char *name, const rq_ssvq_codes *q);

/* What a vq quantizer hands over (fmt_vq.h). Books are [ceil(n_in / book_cols)][n_codes][vec_len]. */
typedef struct rq_vq_codes {
    int64_t n_out, n_in;
    int vec_len, n_stage;
    bool vec_out;
    int code_bits[2];
    int64_t n_codes[2], book_cols, group;
    const uint16_t *codes[2]; /* [n_line][n_code]: the vectors of a row, or with vec_out the columns of vec_len rows */
    const rq_f16 *book[2];
    const uint8_t
        *book_of;       /* [n_in], with vec_out: the codebook of each column; NULL: book_cols neighbours share one */
    const float *scale; /* [n_out][ceil(n_in / group)], exact in fp16; NULL: 1 */
    const rq_f16 *col_scale, *col_bias; /* [n_in], both or neither */
    int n_outlier;
    const int32_t *outlier_col; /* [n_outlier], ascending */
    const int8_t *outlier;      /* [n_out][n_outlier] */
    const float *outlier_scale; /* [n_outlier] */
    const char *book_name;      /* matrix under whose name the books are stored; NULL: this one */
    int64_t book_users;         /* how many matrices name those books; 0 counts as 1 */
} rq_vq_codes;
rq_status rq_vq_pack(rq_packed *p, const rq_vq_codes *c);
rq_status rq_vq_pack_file(rq_packed_file *f, char **json_entry, const char *name, const rq_vq_codes *c);

/* What a w4a8 quantizer hands over (fmt_w4a8.h). */
typedef struct rq_w4a8_codes {
    int64_t n_out, n_in, group;
    const uint8_t *codes; /* [n_out][n_in], 0 .. 15 */
    const float *scale;   /* [n_out] */
    const uint8_t *zero;  /* [n_out], group 0 only; NULL: symmetric */
    const uint8_t *step;  /* [n_out][ceil(n_in / group)], with a group only, as base */
    const int8_t *base;
    const float *in_scale; /* [n_in] or NULL */
    int hadamard;
} rq_w4a8_codes;
rq_status rq_w4a8_pack(rq_packed *p, const rq_w4a8_codes *q);
rq_status rq_w4a8_pack_file(rq_packed_file *f, char **json_entry, const char *name, const rq_w4a8_codes *q);
/* What a matrix wants of its inputs x[n_tok][n_in] before they are quantized, in place: the Hadamard matrix, then in_scale. */
void rq_w4a8_input(const rq_w4a8 *w, float *x, int64_t n_tok);

#endif
