/* SPDX-License-Identifier: Apache-2.0 */
/* Packed matrices of a store, found through the "requite" entry of its metadata (docs/formats.md), or through the configuration of the tool
 * that wrote it (docs/peers.md). */
#ifndef RQ_CONTAINER_H
#define RQ_CONTAINER_H

#include <jansson.h>

#include "formats.h"

/* The metadata object, or NULL with RQ_OK when the store has none. json_decref it. Of another tool's checkpoint it is made from config.json. */
rq_status rq_container_metadata(const rq_store *s, json_t **meta);
/* What no matrix can check alone: a codebook has as many users as each of them says ("book_users"), so that the shares that
 * they count add up to its size. */
rq_status rq_container_check(const rq_store *s, const json_t *meta);
/* One packed matrix by its name; RQ_ERR_INPUT when the metadata does not describe it. */
rq_status rq_container_load(rq_packed *p, const rq_store *s, const json_t *meta, const char *name);
enum { RQ_CONTAINER_NAME = 1024 };
/* Whether a tensor is part of a packed matrix; then *name is that matrix' (in buffer). */
bool rq_container_owns(const json_t *meta, const char *tensor, const char **name, char buffer[RQ_CONTAINER_NAME]);

#endif
