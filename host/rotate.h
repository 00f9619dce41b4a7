/* SPDX-License-Identifier: Apache-2.0 */
/* Orthogonal rotations R of the residual stream: x' = x R, a random sign vector followed by a Hadamard matrix
 * (Sylvester x Paley orders) where one exists for the width, a random orthogonal matrix otherwise. */
#ifndef RQ_ROTATE_H
#define RQ_ROTATE_H

#include "common.h"

typedef struct rq_rotation rq_rotation;

/* Deterministic in (n, seed). kind: "hadamard", "orthogonal", or NULL to pick; "plain" is a Hadamard matrix without the signs. */
rq_status rq_rotation_new(rq_rotation **out, int64_t n, uint64_t seed, const char *kind);
void rq_rotation_free(rq_rotation *r);
const char *rq_rotation_kind(const rq_rotation *r);
uint64_t rq_rotation_seed(const rq_rotation *r);
int64_t rq_rotation_size(const rq_rotation *r);

/* Rows of x[n_rows][ld >= n] times R (inverse: times R^T), in place. Parallel over rows; computed in fp64 for both types.
 * RQ_ERR_NOMEM when there is no room for two rows per task; x is unchanged then. */
rq_status rq_rotation_apply(const rq_rotation *r, float *x, int64_t n_rows, int64_t ld, bool inverse);
rq_status rq_rotation_apply_f64(const rq_rotation *r, double *x, int64_t n_rows, int64_t ld, bool inverse);

/* Is there a Hadamard matrix of order n (H H^T = n I) that is built here? False when no construction is known to us. */
bool rq_hadamard_order_exists(int64_t n);

#endif
