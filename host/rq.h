/* SPDX-License-Identifier: Apache-2.0 */
/* Requite's public C interface. Nothing here exits or prints: errors are a status plus rq_last_error(), progress and log
 * go to callbacks. Process-wide settings (threads, log, progress) are to be set before work starts. */
#ifndef RQ_H
#define RQ_H

#include "rq_base.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define RQ_API      __attribute__((visibility("default")))
#define RQ_MUST_USE __attribute__((warn_unused_result))
#else
#define RQ_API
#define RQ_MUST_USE
#endif

#define RQ_VERSION "0.1.0"

/* ---- errors, log, progress, threads ---------------------------------------------------------------------------------- */

RQ_API const char *rq_version(void);
/* One sentence for a status: "malformed file or model". Never NULL. */
RQ_API const char *rq_status_text(rq_status status);
/* What went wrong last on this thread, with names and numbers. Valid until the next failing call on this thread. */
RQ_API const char *rq_last_error(void);

typedef enum rq_log_level { RQ_LOG_WARN = 0, RQ_LOG_INFO = 1, RQ_LOG_DEBUG = 2 } rq_log_level;
typedef void (*rq_log_fn)(void *user, rq_log_level level, const char *text);
RQ_API void rq_set_log(rq_log_fn fn, void *user);

/* Worker threads, 1 .. 1024; 0 means one per available core. Results do not depend on it. */
RQ_API void rq_set_threads(int n_threads);
RQ_API int rq_get_threads(void);

#ifdef __cplusplus
}
#endif
#endif
