/* SPDX-License-Identifier: Apache-2.0 */
/* Small files whole, path joining, and text that is safe to print. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model_parse.h"

rq_status rq_read_file(const char *path, int64_t max_bytes, char **text, int64_t *n_bytes) {
    rq_status status = RQ_OK;
    char *buf = NULL;
    *text = NULL;
    *n_bytes = 0;
    /* O_NONBLOCK: opening a pipe by mistake must not hang. It means nothing for regular files. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return rq_fail(RQ_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) != 0) RQ_FAIL(RQ_ERR_IO, "cannot stat %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) RQ_FAIL(RQ_ERR_IO, "%s is not a regular file", path);
    if (st.st_size > max_bytes) {
        RQ_FAIL(RQ_ERR_INPUT, "%s has %lld bytes, more than the %lld accepted here", path, (long long)st.st_size,
                (long long)max_bytes);
    }
    RQ_TRY(RQ_NEW(buf, (int64_t)st.st_size + 1));
    int64_t got = 0;
    while (got < st.st_size) {
        ssize_t n = read(fd, buf + got, (size_t)(st.st_size - got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) RQ_FAIL(RQ_ERR_IO, "cannot read %s: %s", path, strerror(errno));
        if (n == 0) break; /* it shrank meanwhile: what is there is what we have */
        got += n;
    }
    buf[got] = '\0';
    *text = buf;
    *n_bytes = got;
    buf = NULL;
done:
    free(buf);
    close(fd);
    return status;
}

char *rq_path_join(const char *dir, const char *name) {
    size_t a = strlen(dir), b = strlen(name);
    char *path = malloc(a + b + 2);
    if (!path) return NULL;
    memcpy(path, dir, a);
    if (a > 0 && dir[a - 1] != '/') path[a++] = '/';
    memcpy(path + a, name, b + 1);
    return path;
}

rq_shown rq_show(const char *name, int64_t n_bytes) {
    rq_shown s;
    const int64_t room = (int64_t)sizeof s.text - 4;
    int64_t n = n_bytes < room ? n_bytes : room;
    for (int64_t i = 0; i < n; ++i) {
        unsigned char c = (unsigned char)name[i];
        s.text[i] = (char)(c < 0x20 || c == 0x7f ? '?' : c);
    }
    if (n < n_bytes) {
        memcpy(s.text + n, "...", 3);
        n += 3;
    }
    s.text[n] = '\0';
    return s;
}

bool rq_utf8_valid(const char *text, int64_t n_bytes) {
    const unsigned char *p = (const unsigned char *)text;
    for (int64_t i = 0; i < n_bytes;) {
        unsigned c = p[i++];
        if (c < 0x80) continue;
        int more = c >= 0xc2 && c <= 0xdf ? 1 : c >= 0xe0 && c <= 0xef ? 2 : c >= 0xf0 && c <= 0xf4 ? 3 : 0;
        if (more == 0 || i + more > n_bytes) return false;
        uint32_t point = c & (0x3fu >> more);
        for (int k = 0; k < more; ++k, ++i) {
            if ((p[i] & 0xc0) != 0x80) return false;
            point = point << 6 | (p[i] & 0x3fu);
        }
        /* Shortest form only, no surrogates, nothing past U+10FFFF. */
        static const uint32_t least[4] = {0, 0x80, 0x800, 0x10000};
        if (point < least[more] || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff)) return false;
    }
    return true;
}
