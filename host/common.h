/* SPDX-License-Identifier: Apache-2.0 */
/* Internal helpers that every stage uses: errors, memory, threads, log. Not installed. */
#ifndef RQ_COMMON_H
#define RQ_COMMON_H

#include <stdio.h>
#include <stdlib.h>

#include "rq.h"

#if defined(__GNUC__)
#define RQ_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define RQ_PRINTF(fmt, args)
#endif

/* Record the sentence (thread-local) and hand the status back: return rq_fail(RQ_ERR_ARG, "...", ...). */
rq_status rq_fail(rq_status status, const char *fmt, ...) RQ_PRINTF(2, 3);

/* Put words in front of the sentence recorded last, to say where it happened. Returns status. */
rq_status rq_fail_context(rq_status status, const char *fmt, ...) RQ_PRINTF(2, 3);

#ifdef __clang_analyzer__ /* It reads one file at a time: say here that the status given is the one that comes back. */
#define rq_fail(status, ...)         (rq_fail(status, __VA_ARGS__), (status))
#define rq_fail_context(status, ...) (rq_fail_context(status, __VA_ARGS__), (status))
#endif

/* Both jump to the function's single `done:` label, which frees in reverse; `status` is the local. */
#define RQ_TRY(expr)                                                                                                   \
    do {                                                                                                               \
        status = (expr);                                                                                               \
        if (status != RQ_OK) goto done;                                                                                \
    } while (0)
#define RQ_FAIL(code, ...)                                                                                             \
    do {                                                                                                               \
        status = rq_fail((code), __VA_ARGS__);                                                                         \
        goto done;                                                                                                     \
    } while (0)

/* 64-byte aligned, NOT zeroed, free() releases it; size overflow is reported, a zero count gives a valid pointer. */
rq_status rq_alloc(void **out, int64_t count, size_t elem_bytes);
rq_status rq_alloc_zero(void **out, int64_t count, size_t elem_bytes);
#define RQ_NEW(ptr, count)      rq_alloc((void **)&(ptr), (count), sizeof *(ptr))
#define RQ_NEW_ZERO(ptr, count) rq_alloc_zero((void **)&(ptr), (count), sizeof *(ptr))

/* c = a * b for non-negative sizes; false on overflow or a negative factor. */
static inline bool rq_mul_size(int64_t a, int64_t b, int64_t *c) {
    return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, c);
}

static inline int64_t rq_min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t rq_max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t rq_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Run body(arg, i) for i in [0, n) on the pool (rq_set_threads). Items are handed out one by one; the order is not
 * fixed, so an item must write only what is its own. A call from inside a body runs inline on that thread. */
typedef void (*rq_body_fn)(void *arg, int64_t i);
void rq_parallel_for(int64_t n, rq_body_fn body, void *arg);

/* Log through the callback of rq_set_log; silent without one. */
void rq_log(rq_log_level level, const char *fmt, ...) RQ_PRINTF(2, 3);

double rq_seconds(void); /* monotonic clock */

#endif
