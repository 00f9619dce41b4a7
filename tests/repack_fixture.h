/* SPDX-License-Identifier: Apache-2.0 */
/* What test_repack_*.c share: random words and zeroed memory. */
#ifndef RQ_REPACK_FIXTURE_H
#define RQ_REPACK_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "rq_repack.h"

static uint64_t rng;

static inline uint32_t random_word(void) {
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng >> 32);
}

static inline void *take(int64_t count, size_t size) {
    void *p = calloc((size_t)(count ? count : 1), size);
    assert_non_null(p);
    return p;
}

#endif
