/* SPDX-License-Identifier: Apache-2.0 */
/* Packed weight formats: one row of formats.def each. A format owns pack, unpack and size; unpack_row is its definition. */
#ifndef RQ_FORMATS_H
#define RQ_FORMATS_H

#include "fmt_grid.h"
#include "model.h"

typedef enum rq_format {
#define RQ_FORMAT(id, text, ...) RQ_FORMAT_##id,
#include "formats.def"
#undef RQ_FORMAT
    RQ_N_FORMATS
} rq_format;

/* A packed matrix ready to run. `u` points into a store's mapping or into memory that the rq_packed owns. */
typedef struct rq_packed {
    rq_format format;
    int64_t n_out, n_in;
    union {
        rq_grid grid;
    } u;
    void *owned[6]; /* free()d by rq_packed_free */
    int n_owned;
} rq_packed;

typedef struct rq_format_ops {
    const char *name;
    void (*unpack_row)(const rq_packed *p, int64_t row, float *dst); /* dst[n_in], input-feature order */
    int64_t (*size_bits)(const rq_packed *p);                        /* all side data: what bpw counts */
    rq_status (*load)(rq_packed *p, const rq_store *s, const char *name, const void *json_entry);
} rq_format_ops;

#define RQ_FORMAT(id, text, ops) extern const rq_format_ops ops;
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

/* The tensors that a packed matrix is on disk (compressed-tensors pack-quantized names):
 *   NAME.weight_packed I32 [n_out, row_words]   NAME.weight_scale F16|F32 [n_out, n_group]   NAME.weight_shape I64 [2]
 *   NAME.weight_zero_point I32 [ceil(n_out*bits/32), n_group] when asymmetric   NAME.weight_g_idx I32 [n_in] with act-order groups.
 * Fills out[] (at most 5) with names and memory that *memory owns; frees with rq_grid_file_free. */
typedef struct rq_grid_file {
    rq_out_tensor tensor[5];
    int n_tensors;
    void *memory[10];
    int n_memory;
} rq_grid_file;
rq_status rq_grid_pack_file(rq_grid_file *f, const char *name, const rq_grid_codes *q);
void rq_grid_file_free(rq_grid_file *f);

/* The run-time form straight from codes (no file), owning its memory. */
rq_status rq_grid_pack(rq_packed *p, const rq_grid_codes *q);

/* The run-time form of a matrix in a store: words and scales are used from the mapping where alignment allows (copied
 * where not, or to sort columns by group when g_idx is there). Everything is checked: shapes, dtypes, zero and g_idx
 * ranges, finite scales. bits, group and sym describe it (from the file's metadata). */
rq_status rq_grid_load(rq_packed *p, const rq_store *s, const char *name, int bits, int64_t group, bool sym);

#endif
