/* SPDX-License-Identifier: Apache-2.0 */
/* Hadamard matrices by Paley's two constructions over GF(q), q a prime power. For rotate.c and act_hadamard.c. */
#ifndef RQ_ROTATE_HADAMARD_H
#define RQ_ROTATE_HADAMARD_H

#include "common.h"

/* The smallest k with n = k * 2^p such that a matrix of order k is known (k = 1 for powers of two); 0 when there is none. */
int64_t rq_hadamard_core(int64_t n);

/* That matrix, entries +-1, h[k][k] with h h^T = k I. k must come from rq_hadamard_core. */
rq_status rq_hadamard_fill(int8_t *h, int64_t k);

#endif
