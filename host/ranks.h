/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks: processes on one or more machines that quantize one model together. Who starts and connects them fills in the table; the library
 * asks for two operations and holds no state of its own. Every rank makes the same calls in the same order.
 *
 * A rank that fails alone leaves the others waiting in their next call: its caller has to end them all (the command does, through MPI). */
#ifndef RQ_RANKS_H
#define RQ_RANKS_H

#include "common.h"

typedef struct rq_ranks {
    int rank, n_ranks;
    int local; /* of the ranks on this machine, which one */
    void *user;
    /* data of `root` to all. */
    rq_status (*bcast)(void *user, void *data, int64_t n_bytes, int root);
    /* x[n] of all ranks summed, to all. Used only where at most one rank has something else than 0: no order of the sum shows. */
    rq_status (*sum)(void *user, double *x, int64_t n);
} rq_ranks;

/* With NULL, or one rank, these do nothing. */
static inline int rq_rank(const rq_ranks *r) { return r ? r->rank : 0; }
static inline int rq_n_ranks(const rq_ranks *r) { return r ? r->n_ranks : 1; }
rq_status rq_ranks_bcast(const rq_ranks *r, void *data, int64_t n_bytes, int root);
rq_status rq_ranks_sum(const rq_ranks *r, double *x, int64_t n);
/* *flag on any rank becomes *flag on all. */
rq_status rq_ranks_any(const rq_ranks *r, bool *flag);
/* Whether rank 0 has the file `path`; if so the others have it too afterwards, at the same path. */
rq_status rq_ranks_file_from_first(const rq_ranks *r, const char *path, bool *found);
/* The file `path` of rank `from` to rank 0, at the same path, unless it is there already (a file system that both see). */
rq_status rq_ranks_file_to_first(const rq_ranks *r, const char *path, int from);

#endif
