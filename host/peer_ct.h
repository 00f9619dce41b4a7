/* SPDX-License-Identifier: Apache-2.0 */
/* compressed-tensors: the two directions of its configuration (peer_ct_config.c) for peer_ct.c. */
#ifndef RQ_PEER_CT_H
#define RQ_PEER_CT_H

#include "peer.h"

rq_status rq_peer_ct_describe(json_t *linears, const json_t *config, const rq_store *s);
rq_status rq_peer_ct_config(json_t **to, const json_t *settings, const json_t *dense);

#endif
