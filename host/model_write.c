/* SPDX-License-Identifier: Apache-2.0 */
/* Writing: files aside, synced and renamed, so that a reader sees the old file or the whole new one; safetensors. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model_parse.h"

typedef struct out_file {
    const char *path;
    char *tmp_path;
    int fd;
    int64_t written, wanted; /* wanted: of the whole file, for the message */
} out_file;

static rq_status out_open(out_file *f, const char *path, int64_t wanted) {
    *f = (out_file){.path = path, .fd = -1, .wanted = wanted};
    f->tmp_path = malloc(strlen(path) + 5);
    if (!f->tmp_path) return rq_fail(RQ_ERR_NOMEM, "out of memory");
    snprintf(f->tmp_path, strlen(path) + 5, "%s.tmp", path);
    f->fd = open(f->tmp_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (f->fd < 0) {
        int err = errno;
        free(f->tmp_path);
        f->tmp_path = NULL;
        return rq_fail(RQ_ERR_IO, "cannot create %s.tmp: %s", path, strerror(err));
    }
    return RQ_OK;
}

static rq_status out_write(out_file *f, const void *data, int64_t n_bytes) {
    const char *p = data;
    while (n_bytes > 0) {
        ssize_t n = write(f->fd, p, (size_t)rq_min_i64(n_bytes, (int64_t)1 << 30));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            return rq_fail(RQ_ERR_IO, "cannot write %s: %lld of %lld bytes were written, then: %s", f->tmp_path,
                           (long long)f->written, (long long)f->wanted, strerror(errno));
        }
        p += n;
        n_bytes -= n;
        f->written += n;
    }
    return RQ_OK;
}

/* Make a rename in this folder durable. Some file systems cannot sync a folder; that is no error of ours. */
static rq_status sync_folder_of(const char *path) {
    rq_status status = RQ_OK;
    char *folder = strdup(path);
    if (!folder) return rq_fail(RQ_ERR_NOMEM, "out of memory");
    char *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder ? 1 : 0] = '\0';
    int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        if (fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP) {
            status = rq_fail(RQ_ERR_IO, "cannot sync the folder of %s: %s", path, strerror(errno));
        }
        close(fd);
    }
    free(folder);
    return status;
}

/* Sync, close, rename when status is RQ_OK; otherwise remove what was written. Hands the first failure back. */
static rq_status out_close(out_file *f, rq_status status) {
    if (f->fd < 0) return status;
    if (status == RQ_OK && fsync(f->fd) != 0) {
        status =
            rq_fail(RQ_ERR_IO, "cannot sync %s of %lld bytes: %s", f->tmp_path, (long long)f->wanted, strerror(errno));
    }
    if (close(f->fd) != 0 && status == RQ_OK) {
        status =
            rq_fail(RQ_ERR_IO, "cannot close %s of %lld bytes: %s", f->tmp_path, (long long)f->wanted, strerror(errno));
    }
    if (status == RQ_OK && rename(f->tmp_path, f->path) != 0) {
        status = rq_fail(RQ_ERR_IO, "cannot rename %s to %s: %s", f->tmp_path, f->path, strerror(errno));
    }
    if (status == RQ_OK) {
        status = sync_folder_of(f->path);
    } else {
        unlink(f->tmp_path);
    }
    free(f->tmp_path);
    f->tmp_path = NULL;
    f->fd = -1;
    return status;
}

rq_status rq_write_file(const char *path, const void *data, int64_t n_bytes) {
    out_file f;
    rq_status status = out_open(&f, path, n_bytes);
    if (status != RQ_OK) return status;
    return out_close(&f, out_write(&f, data, n_bytes));
}

rq_status rq_fill_from_memory(void *arg, void *dst, int64_t n_bytes) {
    if (n_bytes > 0) memcpy(dst, arg, (size_t)n_bytes);
    return RQ_OK;
}

rq_out_tensor rq_out_stored(const rq_tensor *t) {
    rq_out_tensor out = {.name = t->name,
                         .dtype = t->dtype,
                         .rank = t->rank,
                         .fill = rq_fill_from_memory,
                         .arg = (void *)(uintptr_t)t->data};
    memcpy(out.shape, t->shape, sizeof out.shape);
    return out;
}

typedef struct placed { /* an output tensor and where it goes */
    const rq_out_tensor *t;
    int64_t n_bytes, begin;
} placed;

static int by_alignment_then_name(const void *a, const void *b) {
    const rq_out_tensor *x = ((const placed *)a)->t, *y = ((const placed *)b)->t;
    int64_t p = rq_dtype_block_bytes(x->dtype), q = rq_dtype_block_bytes(y->dtype);
    return p != q ? (p > q ? -1 : 1) : strcmp(x->name, y->name);
}

/* Check each tensor, fix the order and the places. *total: bytes of the data section; *largest: of one tensor. */
static rq_status place(placed *p, const rq_out_tensor *tensors, int64_t n, int64_t *total, int64_t *largest) {
    *total = *largest = 0;
    for (int64_t i = 0; i < n; ++i) {
        const rq_out_tensor *t = &tensors[i];
        int64_t bytes = rq_dtype_block_bytes(t->dtype);
        if (!t->name || !t->fill || strcmp(t->name, "__metadata__") == 0 ||
            (int64_t)strlen(t->name) > RQ_MAX_NAME_BYTES || !rq_utf8_valid(t->name, (int64_t)strlen(t->name))) {
            return rq_fail(RQ_ERR_ARG, "output tensor %lld has no usable name or no data", (long long)i);
        }
        if (bytes == 0 || rq_dtype_block(t->dtype) != 1) {
            return rq_fail(RQ_ERR_ARG, "tensor %s: %s cannot be written to safetensors", RQ_SHOW(t->name),
                           rq_dtype_name(t->dtype));
        }
        if (t->rank < 0 || t->rank > RQ_MAX_RANK) {
            return rq_fail(RQ_ERR_ARG, "tensor %s has rank %d", RQ_SHOW(t->name), t->rank);
        }
        for (int k = 0; k < t->rank; ++k) {
            if (!rq_mul_size(bytes, t->shape[k], &bytes)) {
                return rq_fail(RQ_ERR_ARG, "tensor %s: dimension %d is %lld, negative or too large", RQ_SHOW(t->name),
                               k, (long long)t->shape[k]);
            }
        }
        p[i] = (placed){.t = t, .n_bytes = bytes};
        *largest = rq_max_i64(*largest, bytes);
        if (__builtin_add_overflow(*total, bytes, total)) {
            return rq_fail(RQ_ERR_ARG, "the tensors together are beyond 2^63 bytes");
        }
    }
    if (n > 1) qsort(p, (size_t)n, sizeof *p, by_alignment_then_name);
    int64_t at = 0;
    for (int64_t i = 0; i < n; ++i) {
        p[i].begin = at;
        at += p[i].n_bytes;
    }
    return RQ_OK;
}

/* The padded header without its length; *text is malloc'ed. */
static rq_status make_header(const placed *p, int64_t n, const char *const *pairs, int64_t n_pairs, char **text,
                             int64_t *n_bytes) {
    rq_status status = RQ_OK;
    json_t *root = json_object(), *meta = json_object();
    char *dump = NULL;
    int failed = json_object_set_new(root, "__metadata__", meta);
    for (int64_t i = 0; i < n_pairs; ++i) {
        if (!pairs[2 * i] || !pairs[2 * i + 1] || json_object_get(meta, pairs[2 * i])) {
            RQ_FAIL(RQ_ERR_ARG, "metadata pair %lld is empty or repeats a key", (long long)i);
        }
        failed |= json_object_set_new(meta, pairs[2 * i], json_string(pairs[2 * i + 1]));
    }
    if (!json_object_get(meta, "format")) failed |= json_object_set_new(meta, "format", json_string("pt"));
    for (int64_t i = 0; i < n && !failed; ++i) {
        const rq_out_tensor *t = p[i].t;
        json_t *entry = json_object(), *shape = json_array();
        if (json_object_get(root, t->name)) {
            json_decref(entry);
            json_decref(shape);
            RQ_FAIL(RQ_ERR_ARG, "tensor %s is to be written twice", RQ_SHOW(t->name));
        }
        failed |= json_object_set_new(root, t->name, entry);
        failed |= json_object_set_new(entry, "dtype", json_string(rq_dtype_name(t->dtype)));
        failed |= json_object_set_new(entry, "shape", shape);
        for (int k = 0; k < t->rank; ++k) failed |= json_array_append_new(shape, json_integer(t->shape[k]));
        failed |=
            json_object_set_new(entry, "data_offsets",
                                json_pack("[I, I]", (json_int_t)p[i].begin, (json_int_t)(p[i].begin + p[i].n_bytes)));
    }
    if (!failed) dump = json_dumps(root, JSON_COMPACT);
    if (!dump) RQ_FAIL(RQ_ERR_NOMEM, "cannot build the safetensors header: out of memory, or metadata is not UTF-8");
    int64_t len = (int64_t)strlen(dump), padded = (len + 7) / 8 * 8;
    if (padded > RQ_MAX_HEADER_BYTES) {
        RQ_FAIL(RQ_ERR_ARG, "the safetensors header would have %lld bytes, more than readers accept",
                (long long)padded);
    }
    RQ_TRY(RQ_NEW(*text, padded));
    memcpy(*text, dump, (size_t)len);
    memset(*text + len, ' ', (size_t)(padded - len));
    *n_bytes = padded;
done:
    free(dump);
    json_decref(root);
    return status;
}

rq_status rq_safetensors_write(const char *path, const rq_out_tensor *tensors, int64_t n_tensors,
                               const char *const *metadata_pairs, int64_t n_pairs) {
    rq_status status = RQ_OK;
    placed *p = NULL;
    char *header = NULL;
    uint8_t *buf = NULL;
    int64_t n_header = 0, total = 0, largest = 0;
    out_file f = {.fd = -1};
    if (n_tensors < 0 || n_tensors > RQ_MAX_TENSORS || n_pairs < 0) {
        return rq_fail(RQ_ERR_ARG, "cannot write %lld tensors and %lld metadata pairs", (long long)n_tensors,
                       (long long)n_pairs);
    }
    RQ_TRY(RQ_NEW(p, n_tensors));
    RQ_TRY(place(p, tensors, n_tensors, &total, &largest));
    RQ_TRY(make_header(p, n_tensors, metadata_pairs, n_pairs, &header, &n_header));
    uint64_t length = (uint64_t)n_header;
    RQ_TRY(RQ_NEW(buf, largest));
    RQ_TRY(out_open(&f, path, 8 + n_header + total));
    RQ_TRY(out_write(&f, &length, sizeof length));
    RQ_TRY(out_write(&f, header, n_header));
    for (int64_t i = 0; i < n_tensors; ++i) {
        if (p[i].t->fill == rq_fill_from_memory) { /* no need for a copy */
            RQ_TRY(out_write(&f, p[i].t->arg, p[i].n_bytes));
            continue;
        }
        RQ_TRY(p[i].t->fill(p[i].t->arg, buf, p[i].n_bytes));
        RQ_TRY(out_write(&f, buf, p[i].n_bytes));
    }
done:
    status = out_close(&f, status);
    free(p);
    free(header);
    free(buf);
    return status;
}
