/* SPDX-License-Identifier: Apache-2.0 */
/* What the packers share: lists of tensors to write, tensors of a store that must be as expected, bit streams. */
#ifndef RQ_PACK_COMMON_H
#define RQ_PACK_COMMON_H

#include "formats.h"

/* Hands `memory` to p, which frees it. Returns it. */
void *rq_pack_own(rq_packed *p, void *memory);

/* NAME + suffix as one more tensor of the file; trailing zeros of shape[3] lower the rank. `data` stays the caller's. */
rq_status rq_pack_add(rq_packed_file *f, const char *name, const char *suffix, rq_dtype dtype, const int64_t shape[3],
                      void *data);

/* The same of memory that is the file's from now on, also when it fails. */
rq_status rq_pack_give(rq_packed_file *f, const char *name, const char *suffix, rq_dtype dtype, const int64_t shape[3],
                       void *memory);

/* The tensors of a matrix as a table; those without data are left out. */
typedef struct rq_pack_part {
    const char *suffix;
    rq_dtype dtype;
    int64_t shape[3];
    const void *data; /* only read */
} rq_pack_part;
rq_status rq_pack_add_parts(rq_packed_file *f, const char *name, const rq_pack_part *part, size_t n);

/* The numbers of .weight_shape, in memory of the file. */
rq_status rq_pack_new_shape(rq_packed_file *f, int64_t **shape, int64_t n_out, int64_t n_in);

/* The end of filling f from p: what p owns becomes the file's, whose tensors point into it; after a failure both are freed. Returns status. */
rq_status rq_pack_end(rq_packed_file *f, rq_packed *p, const char *name, rq_status status);

bool rq_pack_has(const rq_store *s, const char *name, const char *suffix);
/* NAME + suffix with the dtype and shape it must have; trailing zeros of shape[3] lower the rank. */
rq_status rq_pack_find(const rq_tensor **t, const rq_store *s, const char *name, const char *suffix, rq_dtype dtype,
                       const int64_t shape[3]);
/* The tensor's data where it is, or a copy that p owns when it is not aligned for elements of `size` bytes. */
rq_status rq_pack_aligned(const void **data, rq_packed *p, const rq_tensor *t, size_t size);

/* The two together: *to is the data of NAME + suffix. */
rq_status rq_pack_load(const void **to, rq_packed *p, const rq_store *s, const char *name, const char *suffix,
                       rq_dtype dtype, const int64_t shape[3]);
/* *to is a copy that p owns. */
rq_status rq_pack_copy(const void **to, rq_packed *p, const void *from, int64_t n_bytes);
/* scale[n] as fp16 that p owns; RQ_ERR_NUMERIC when one is not exact, finite fp16. */
rq_status rq_pack_f16(const rq_f16 **to, rq_packed *p, const float *scale, int64_t n);
/* Users of a shared codebook count equal parts of it; the one it is stored under (own) also what does not divide. */
void rq_pack_share(rq_packed *p, int64_t bits, bool own, int64_t n_users);

/* Or `v` in as element i of the stream that starts at word 0; consecutive words are `stride` apart. Words start zeroed. */
static inline void rq_put_code(uint32_t *words, int64_t stride, int64_t i, int bits, uint32_t v) {
    int64_t p = i * bits, w = p >> 5;
    unsigned o = (unsigned)(p & 31);
    words[w * stride] |= v << o;
    if (o + (unsigned)bits > 32) words[(w + 1) * stride] |= v >> (32 - o);
}

/* Sizes and parameters of a matrix, before anything else of it is looked at: refused with `code`. All but the grid's fill in the counts that
 * follow from them. */
rq_status rq_grid_sizes(const char *name, rq_status code, int64_t n_out, int64_t n_in, int bits, int64_t group);
rq_status rq_ssvq_sizes(rq_ssvq *s, const char *name, rq_status code);
rq_status rq_vq_sizes(rq_vq *q, const char *name, rq_status code);
rq_status rq_w4a8_sizes(rq_w4a8 *w, const char *name, rq_status code);

/* Element i of such a stream, which may be unaligned: bytes of a file. */
static inline uint32_t rq_get_code(const unsigned char *words, int64_t stride, int64_t i, int bits) {
    int64_t p = i * bits, w = p >> 5;
    unsigned o = (unsigned)(p & 31);
    uint32_t lo, hi = 0;
    memcpy(&lo, words + w * stride * 4, 4);
    if (o + (unsigned)bits > 32) memcpy(&hi, words + (w + 1) * stride * 4, 4);
    return (uint32_t)(((uint64_t)hi << 32 | lo) >> o) & ((1u << bits) - 1u);
}

/* What `requite inspect` says of scales and codes; `summary` is the end of the table's line. */
typedef struct rq_pack_usage {
    int64_t *count; /* of each code */
    int64_t n_codes;
    float scale_min, scale_max;
    double scale_sum;
    int64_t n_scale;
} rq_pack_usage;
void rq_pack_count_scale(rq_pack_usage *u, float scale);
/* Adds code_use, dead_codes, code_entropy_bits, scale_min, scale_max, scale_mean and summary to a JSON object. */
void rq_pack_report(const rq_pack_usage *u, void *json_object, const char *summary);

#endif
