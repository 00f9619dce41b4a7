/* SPDX-License-Identifier: Apache-2.0 */
/* Bit allocation: one setting for each matrix, so that the sum of losses is least while the bits stay within a budget. */
#ifndef RQ_ALLOCATE_H
#define RQ_ALLOCATE_H

#include "common.h"

/* What each setting would cost each matrix. */
typedef struct rq_bank {
    int64_t n_matrix;
    int n_setting;        /* 1 .. RQ_BANK_MAX */
    const int64_t *bits;  /* [n_matrix][n_setting] */
    const double *loss;   /* [n_matrix][n_setting], not negative; infinity where a matrix cannot have a setting */
    const double *weight; /* [n_matrix] factors of the losses, not negative; NULL: 1 */
} rq_bank;
enum { RQ_BANK_MAX = 255 };

typedef struct rq_allocation {
    int64_t bits; /* of all matrices */
    double loss;  /* weighted, of all matrices */
    double bound; /* no choice within the budget loses less */
    bool
        exact; /* loss is the least there is; otherwise the search was cut short, and bound says how far off it can be */
    double lambda; /* loss that a bit was worth in the end: the slope of the convex hull where the budget ends */
} rq_allocation;

/* setting[n_matrix]. The same choice in every run; of equal ones fewer bits. RQ_ERR_ARG, with the numbers, when even the
 * smallest settings are over the budget. `max_states` bounds the search's memory (24 bytes each), 0: 4 million. */
rq_status rq_allocate(int *setting, rq_allocation *result, const rq_bank *bank, int64_t budget_bits,
                      int64_t max_states);

#endif
