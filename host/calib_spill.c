/* SPDX-License-Identifier: Apache-2.0 */
/* Activations of one block boundary on disk (see quantize.h). */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "quantize.h"

rq_status rq_spill_new(rq_spill *s, const char *dir, int64_t width) {
    *s = (rq_spill){.fd = -1, .width = width};
    char *path = rq_path_join(dir, "activations-XXXXXX");
    if (!path) return rq_fail(RQ_ERR_NOMEM, "out of memory");
    s->fd = mkstemp(path);
    if (s->fd >= 0) unlink(path);
    rq_status status =
        s->fd >= 0 ? RQ_OK : rq_fail(RQ_ERR_IO, "cannot make a file for activations in %s: %s", dir, strerror(errno));
    free(path);
    return status;
}

static rq_status transfer(const rq_spill *s, int64_t row0, int64_t n_rows, char *bytes, bool out) {
    int64_t at = row0 * s->width * (int64_t)sizeof(float), left = n_rows * s->width * (int64_t)sizeof(float);
    while (left > 0) {
        ssize_t n = out ? pwrite(s->fd, bytes, (size_t)left, at) : pread(s->fd, bytes, (size_t)left, at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            return rq_fail(RQ_ERR_IO, "cannot %s %lld bytes of activations: %s", out ? "write" : "read",
                           (long long)left, n < 0 ? strerror(errno) : "the file ended");
        }
        bytes += n;
        at += n;
        left -= n;
    }
    return RQ_OK;
}

rq_status rq_spill_write(const rq_spill *s, int64_t row0, int64_t n_rows, const float *rows) {
    return transfer(s, row0, n_rows, (char *)(uintptr_t)rows, true);
}

rq_status rq_spill_read(const rq_spill *s, int64_t row0, int64_t n_rows, float *rows) {
    return transfer(s, row0, n_rows, (char *)rows, false);
}

void rq_spill_free(rq_spill *s) {
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
}
