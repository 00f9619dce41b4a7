/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a model: a store of named tensors over read-only mappings, and the configuration that goes with it.
 *
 * A store hides where tensors come from (one .safetensors, a Hugging Face folder with one file or shards, one .gguf).
 * Names, shapes and row order are always those of the Hugging Face checkpoint: GGUF names are mapped
 * (blk.0.attn_q.weight -> model.layers.0.self_attn.q_proj.weight) and the rows of q and k, which the GGUF converter
 * interleaves for arch "llama", are read back in half-split order. */
#ifndef RQ_MODEL_H
#define RQ_MODEL_H

#include "common.h"

typedef enum rq_dtype {
    RQ_F64,
    RQ_F32,
    RQ_F16,
    RQ_BF16,
    RQ_I64,
    RQ_I32,
    RQ_I16,
    RQ_I8,
    RQ_U64,
    RQ_U32,
    RQ_U16,
    RQ_U8,
    RQ_BOOL,
    RQ_F8_E4M3,
    RQ_F8_E5M2, /* readable as bytes, not converted */
    RQ_Q4_0,
    RQ_Q4_1,
    RQ_Q8_0,
    RQ_Q4_K,
    RQ_Q6_K, /* GGUF blocks along the row */
    RQ_N_DTYPES
} rq_dtype;

#define RQ_MAX_RANK 8

typedef struct rq_tensor {
    const char *name;
    rq_dtype dtype;
    int rank;
    int64_t shape[RQ_MAX_RANK]; /* row-major, last dimension contiguous */
    const void *data;           /* inside the mapping; may be unaligned for its type */
    int64_t n_bytes;
    int64_t n_interleaved_heads; /* > 0: GGUF q/k rows, undone by the row readers below */
} rq_tensor;

typedef struct rq_store rq_store;

/* Open a folder, a .safetensors or a .gguf. Whole-file checks happen here; tensor data is only mapped.
 * RQ_ERR_IO when it cannot be opened, RQ_ERR_INPUT when it is malformed, RQ_ERR_UNSUPPORTED by name. */
rq_status rq_store_open(rq_store **out, const char *path);
void rq_store_close(rq_store *s);
const char *rq_store_path(const rq_store *s);
bool rq_store_is_gguf(const rq_store *s);
int64_t rq_store_count(const rq_store *s);
const rq_tensor *rq_store_at(const rq_store *s, int64_t i);          /* sorted by name */
const rq_tensor *rq_store_find(const rq_store *s, const char *name); /* NULL when absent */
/* All bytes of the files behind the store (what the disk holds). */
int64_t rq_store_file_bytes(const rq_store *s);

/* Metadata: GGUF key-values, or the string pairs of safetensors' __metadata__ (first shard that has the key). */
typedef struct rq_meta_array {
    int type; /* GGUF value type of the elements */
    int64_t n;
    const void *first;             /* first element in the mapping */
    const void *end;               /* one past the last */
    const uint64_t *string_offset; /* strings only: where each starts, owned by the store */
    const void *base;
} rq_meta_array;
bool rq_meta_i64(const rq_store *s, const char *key, int64_t *v);
bool rq_meta_f64(const rq_store *s, const char *key, double *v);
bool rq_meta_bool(const rq_store *s, const char *key, bool *v);
bool rq_meta_str(const rq_store *s, const char *key, const char **text, int64_t *n_bytes); /* not NUL-terminated */
bool rq_meta_array_get(const rq_store *s, const char *key, rq_meta_array *a);
bool rq_meta_array_str(const rq_meta_array *a, int64_t i, const char **text, int64_t *n_bytes);
bool rq_meta_array_i64(const rq_meta_array *a, int64_t i, int64_t *v);
bool rq_meta_array_f64(const rq_meta_array *a, int64_t i, double *v);

const char *rq_dtype_name(rq_dtype d); /* "F32", "Q4_K" */
int64_t rq_dtype_block(rq_dtype d);    /* elements a block holds (1 for plain types) */
int64_t rq_dtype_block_bytes(rq_dtype d);
int64_t rq_tensor_numel(const rq_tensor *t);

/* Rows of a matrix (rank 2) or the whole of a vector (rank 1, row 0) as float32, in Hugging Face order.
 * Exact for every type narrower than float32. RQ_ERR_UNSUPPORTED for types that hold no real numbers. */
rq_status rq_tensor_rows_f32(const rq_tensor *t, int64_t row0, int64_t n_rows, float *dst);
rq_status rq_tensor_f32(const rq_tensor *t, float *dst); /* all of it, any rank (no interleave beyond rank 2) */
/* RQ_ERR_INPUT naming the tensor and the first index when a value is NaN or infinite. */
rq_status rq_tensor_check_finite(const rq_tensor *t);

/* Whether every byte of it is zero. */
bool rq_tensor_is_zero(const rq_tensor *t);

typedef enum rq_rope_scaling { RQ_ROPE_PLAIN, RQ_ROPE_LINEAR, RQ_ROPE_LLAMA3 } rq_rope_scaling;

typedef struct rq_config {
    char arch[32]; /* "llama", "mistral", "qwen2" */
    int64_t n_layer, d_model, d_ff, n_head, n_kv_head, head_dim, n_vocab, max_seq;
    float rms_eps;
    double rope_theta;
    rq_rope_scaling rope_scaling;
    double rope_factor, rope_low_freq_factor, rope_high_freq_factor;
    int64_t rope_original_max_seq;
    bool tied_head, qkv_bias, o_bias, mlp_bias;
    int64_t bos_id, eos_id[8], n_eos; /* -1 / 0 when the model names none */
} rq_config;

/* From config.json (+ generation_config.json for eos ids, if there) or GGUF metadata; sizes are checked for sense and
 * against the tensors that must be there. Unknown architectures, activations or rope types are refused by name. */
rq_status rq_config_load(rq_config *c, const rq_store *s);

/* config.json for a model that came from GGUF (a folder copies its own instead): a string to free(). */
rq_status rq_config_to_json(const rq_config *c, char **json_text);

/* Writing safetensors: tensors in the given order are laid out as docs/formats.md says, streamed to `path`.tmp, synced and
 * renamed. fill() writes exactly n_bytes of tensor data; an error from it removes the temporary file. */
typedef struct rq_out_tensor {
    const char *name;
    rq_dtype dtype;
    int rank;
    int64_t shape[RQ_MAX_RANK];
    rq_status (*fill)(void *arg, void *dst, int64_t n_bytes);
    void *arg;
} rq_out_tensor;
rq_status rq_safetensors_write(const char *path, const rq_out_tensor *tensors, int64_t n_tensors,
                               const char *const *metadata_pairs, int64_t n_pairs); /* key, value, key, value, ... */
rq_status rq_fill_from_memory(void *arg, void *dst, int64_t n_bytes);               /* arg: the bytes */
rq_out_tensor
rq_out_stored(const rq_tensor *t); /* a tensor of a store as it is; the store stays open until it is written */

/* A small file whole, NUL-terminated (length excludes it); max_bytes guards against absurd sizes. */
rq_status rq_read_file(const char *path, int64_t max_bytes, char **text, int64_t *n_bytes);
/* Write aside, fsync, rename. */
rq_status rq_write_file(const char *path, const void *data, int64_t n_bytes);
char *rq_path_join(const char *dir, const char *name); /* malloc'ed; NULL when out of memory */

#endif
