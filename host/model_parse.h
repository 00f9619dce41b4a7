/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the model readers: the store's layout, parsers over bytes in memory (the fuzzers call these), and small
 * helpers shared by model_*.c. */
#ifndef RQ_MODEL_PARSE_H
#define RQ_MODEL_PARSE_H

#include "model.h"

/* Limits on what a file may claim; docs/formats.md lists them. */
#define RQ_MAX_HEADER_BYTES ((int64_t)100000000)
#define RQ_MAX_NAME_BYTES   ((int64_t)65536)
#define RQ_MAX_TENSORS      ((int64_t)1000000)
#define RQ_MAX_SHARDS       ((int64_t)10000)
#define RQ_MAX_JSON_BYTES   ((int64_t)64 << 20) /* config.json, generation_config.json, the index of shards */

RQ_STATIC_ASSERT(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "file formats are read as little-endian memory");

typedef struct rq_file {
    const uint8_t *base;
    int64_t n_bytes;
    bool mapped; /* ours to unmap; false when the bytes are the caller's */
} rq_file;

typedef struct rq_slot {
    rq_tensor t;
    int64_t file; /* index into rq_store.file */
} rq_slot;

/* Value types of GGUF; metadata of safetensors is stored as strings. */
typedef enum rq_meta_type {
    RQ_META_U8,
    RQ_META_I8,
    RQ_META_U16,
    RQ_META_I16,
    RQ_META_U32,
    RQ_META_I32,
    RQ_META_F32,
    RQ_META_BOOL,
    RQ_META_STR,
    RQ_META_ARRAY,
    RQ_META_U64,
    RQ_META_I64,
    RQ_META_F64,
    RQ_N_META_TYPES
} rq_meta_type;

typedef struct rq_meta {
    const char *key;
    int64_t order; /* position in the file(s): the first of equal safetensors keys wins */
    rq_meta_type type;
    const uint8_t *value; /* scalar, or the bytes of a string */
    int64_t n_bytes;
    rq_meta_array array;
    uint64_t *string_offset; /* the owner of array.string_offset */
} rq_meta;

typedef struct rq_arena_block rq_arena_block;

struct rq_store {
    char *path, *folder; /* folder: where config.json lies; NULL for a store over memory */
    bool is_gguf;
    rq_file *file;
    int64_t n_file;
    rq_slot *slot;
    int64_t n_slot, cap_slot;
    rq_meta *meta;
    int64_t n_meta, cap_meta;
    rq_arena_block *arena; /* names */
};

/* A store over bytes that stay the caller's: GGUF by its magic, safetensors otherwise. */
rq_status rq_store_open_memory(rq_store **out, const void *bytes, int64_t n_bytes, const char *label);

/* Parsers: append tensors and metadata of s->file[file] to the store; the caller sorts. */
rq_status rq_parse_safetensors(rq_store *s, int64_t file, const char *label);
rq_status rq_parse_gguf(rq_store *s, int64_t file, const char *label);

rq_status rq_store_add(rq_store *s, const rq_tensor *t, int64_t file); /* copies the name */
rq_status rq_store_add_meta(rq_store *s, const char *key, int64_t key_bytes, rq_meta **out);
rq_status rq_store_keep(rq_store *s, const char *text, int64_t n_bytes, const char **out); /* NUL-terminated copy */
const rq_meta *rq_store_meta(const rq_store *s, const char *key);
void rq_store_sort_meta(rq_store *s);

/* Config from JSON text alone, sizes checked for sense, tensors not looked at. generation may be NULL. */
rq_status rq_config_from_json(rq_config *c, const char *text, int64_t n_bytes, const char *generation,
                              int64_t n_generation, const char *label);
rq_status rq_config_from_gguf(rq_config *c, const rq_store *s);
rq_status rq_config_check_sizes(const rq_config *c, const char *label);
rq_status rq_config_check_tensors(const rq_config *c, const rq_store *s);
rq_status rq_config_add_eos(rq_config *c, int64_t id, const char *label);

/* Decoders: n_blocks blocks of a type to floats. NULL when the type has none. The plain ones define the result; the
 * AVX2 ones give the same bits. */
typedef void (*rq_dequant_fn)(const uint8_t *src, int64_t n_blocks, float *dst);
rq_dequant_fn rq_dequant_plain(rq_dtype d);
rq_dequant_fn rq_dequant_avx2(rq_dtype d); /* NULL too when there is no twin; runs where rq_dequant_has_avx2() */
bool rq_dequant_has_avx2(void);
bool rq_dtype_is_real(rq_dtype d);
/* Elements of a shape. False on a negative dimension, or when those that are not zero multiply to more than 2^63 - 1: so
 * any part of the product, in any order, is safe later. */
bool rq_shape_numel(const int64_t *shape, int rank, int64_t *numel);

/* A name as it may be printed: control bytes replaced, long ones cut. Lives until the end of the full expression. */
typedef struct rq_shown {
    char text[160];
} rq_shown;
rq_shown rq_show(const char *name, int64_t n_bytes);
#define RQ_SHOW(name) (rq_show((name), (int64_t)strlen(name)).text)

bool rq_utf8_valid(const char *text, int64_t n_bytes);

#endif
