/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints of other tools: their matrices as ours, and ours as theirs. One line of peers.def each; docs/peers.md has the layouts.
 *
 * Reading: what our own files say in their metadata is made of quantization_config and of the names of tensors; the entries of matrices have
 * the peer's name as "format", and rq_container_load hands them to the peer. Codes, zero points, scales and codebooks stay what they are;
 * what has no exact place in our formats is refused.
 *
 * Writing: the tensors of one matrix at a time, then the configuration that goes with all of them. What the peer cannot express is refused
 * with the matrix and the numbers. */
#ifndef RQ_PEER_H
#define RQ_PEER_H

#include <jansson.h>

#include "formats.h"

typedef struct rq_peer_ops {
    const char *name;            /* of --to, and of entries */
    const char *method;          /* quant_method of the configurations that it reads; NULL: it reads none itself */
    const char *config_file;     /* a second place of quantization_config, for older tools; or NULL */
    const char *const *suffixes; /* of a matrix' tensors, NULL at the end */
    /* Adds an entry to `linears` for every matrix of the store that config is about. */
    rq_status (*describe)(json_t *linears, const json_t *config, const rq_store *s);
    rq_status (*load)(rq_packed *p, const rq_store *s, const char *name, const json_t *entry);
    /* The tensors of a matrix, and what `config` is to know of it. NULL: the layout is only read. */
    rq_status (*pack)(rq_packed_file *f, json_t **settings, const char *name, const rq_packed *p);
    /* quantization_config. settings: an object of matrices; dense: an array of the linear layers that are not packed. */
    rq_status (*config)(json_t **config, const json_t *settings, const json_t *dense);
} rq_peer_ops;

enum {
    RQ_N_PEERS = 0
#define RQ_PEER(id, name) +1
#include "peers.def"
#undef RQ_PEER
};
#define RQ_PEER(id, name) extern const rq_peer_ops rq_peer_##name;
#include "peers.def"
#undef RQ_PEER

const rq_peer_ops *rq_peer_at(int i);
const rq_peer_ops *rq_peer_by_name(const char *name); /* NULL when there is none */
bool rq_peer_reads(const char *method);

/* {"version": 1, "linears": {...}} of the checkpoint that config (all of config.json) and the store make; *meta is NULL when there is no
 * quantization_config of a peer in it. */
rq_status rq_peer_metadata(json_t **meta, const json_t *config, const rq_store *s);

/* ---- For peer_*.c ------------------------------------------------------------------------------------------------------- */

#define RQ_PEER_NAME 1024 /* of a matrix, with its end */

/* Whether `tensor` is a matrix' name and `suffix`; then that name. */
bool rq_peer_module(char name[RQ_PEER_NAME], const char *tensor, const char *suffix);
/* NAME + suffix, of this dtype and rank. */
rq_status rq_peer_find(const rq_tensor **t, const rq_store *s, const char *name, const char *suffix, rq_dtype dtype,
                       int rank);
/* The same in any float type, of this shape. */
rq_status rq_peer_find_float(const rq_tensor **t, const rq_store *s, const char *name, const char *suffix, int rank,
                             const int64_t *shape);
/* NAME + suffix in any float type, [n_out][n_group] or (turned) [n_group][n_out], as scales of a grid whose sizes are set: in fp16 when all
 * are exact there, in fp32 otherwise. */
rq_status rq_peer_load_scales(rq_grid_parts *g, const rq_store *s, const char *name, const char *suffix, bool turned);
/* An integer of a configuration; absent and null give `fallback`, or with INT64_MIN for it are refused. */
rq_status rq_peer_int(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t fallback, int64_t *v);

/* Codebooks, and the factors that multiply them, as fp16 from tensors that rq_peer_find_float found. All must be exact there; a power of two may move from the
 * factors into the books for that, which no weight notices. */
typedef struct rq_peer_floats {
    const rq_tensor *book[2], *factor; /* factor may be NULL */
    int n_book;
    rq_f16 *book_f16[2], *factor_f16; /* set by rq_peer_halves; free() them */
} rq_peer_floats;
rq_status rq_peer_halves(rq_peer_floats *f, const char *name);

/* A matrix that is to be written on an integer grid: row by row its codes in input-feature order. */
void rq_peer_row_codes(uint8_t *codes, const rq_grid *g, int64_t row);
/* *groups [n_in] for a dynamic act-order, else NULL. */
rq_status rq_peer_groups(int32_t **groups, const rq_grid *g);
/* Refuses what is no grid, and scales that are not exact in fp16. `peer` is for people. */
rq_status rq_peer_check_grid(const char *name, const rq_packed *p, const char *peer);
/* rq_pack_give for four dimensions. */
rq_status rq_peer_give4(rq_packed_file *f, const char *name, const char *suffix, const int64_t shape[4],
                        rq_f16 *memory);
rq_status rq_peer_check_f16(const char *name, const rq_grid *g, const char *peer);
/* {"bits", "group", "whole", "sym", "act_order"} of a grid; whole: one group is a whole row. */
json_t *rq_peer_grid_settings(const rq_grid *g);
/* The group that most matrices with several groups have; -1 when every matrix has one group. */
int64_t rq_peer_common_group(const json_t *settings);
/* What a matrix' own settings are called beside that: its group, or -1. */
int64_t rq_peer_group(const json_t *of_matrix, int64_t common);

#endif
