/* SPDX-License-Identifier: Apache-2.0 */
/* Errors, log, memory, clock: what every stage leans on. */
#include <stdarg.h>
#include <time.h>

#include "common.h"

#undef rq_fail /* the analyzer's views of what is defined here */
#undef rq_fail_context

static _Thread_local char last_error[2048];
static rq_log_fn log_fn;
static void *log_user;

const char *rq_version(void) { return RQ_VERSION; }

const char *rq_status_text(rq_status status) {
    switch (status) {
    case RQ_OK: return "done";
    case RQ_ERR_ARG: return "an argument is wrong";
    case RQ_ERR_NOMEM: return "out of memory or over the memory budget";
    case RQ_ERR_IO: return "the operating system refused a file operation";
    case RQ_ERR_INPUT: return "malformed file or model";
    case RQ_ERR_UNSUPPORTED: return "well-formed but not supported";
    case RQ_ERR_NUMERIC: return "the numbers broke down";
    case RQ_ERR_DEVICE: return "a device library failed or is missing";
    case RQ_ERR_CANCELLED: return "stopped on request";
    }
    return "unknown status";
}

const char *rq_last_error(void) { return last_error; }

rq_status rq_fail(rq_status status, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(last_error, sizeof last_error, fmt, args);
    va_end(args);
    return status;
}

rq_status rq_fail_context(rq_status status, const char *fmt, ...) {
    char text[sizeof last_error], before[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(before, sizeof before, fmt, args);
    va_end(args);
    memcpy(text, last_error, sizeof text);
    /* The tail of a very long sentence may be cut; its head says what matters. */
    int n = snprintf(last_error, sizeof last_error, "%s: %.1500s", before, text);
    (void)n;
    return status;
}

void rq_set_log(rq_log_fn fn, void *user) {
    log_fn = fn;
    log_user = user;
}

void rq_log(rq_log_level level, const char *fmt, ...) {
    if (!log_fn) return;
    char text[2048];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    log_fn(log_user, level, text);
}

rq_status rq_alloc(void **out, int64_t count, size_t elem_bytes) {
    int64_t bytes;
    *out = NULL;
    if (!rq_mul_size(count, (int64_t)elem_bytes, &bytes) || bytes > INT64_MAX - 64) {
        return rq_fail(RQ_ERR_NOMEM, "impossible allocation of %lld elements of %zu bytes", (long long)count,
                       elem_bytes);
    }
    size_t padded = ((size_t)bytes + 64) & ~(size_t)63; /* aligned_alloc wants a multiple; never zero */
    *out = aligned_alloc(64, padded);
    if (!*out) return rq_fail(RQ_ERR_NOMEM, "out of memory: %lld bytes were asked for", (long long)bytes);
    return RQ_OK;
}

rq_status rq_alloc_zero(void **out, int64_t count, size_t elem_bytes) {
    rq_status status = rq_alloc(out, count, elem_bytes);
    if (*out) memset(*out, 0, (size_t)count * elem_bytes);
    return status;
}

double rq_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
