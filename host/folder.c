/* SPDX-License-Identifier: Apache-2.0 */
/* Folders (folder.h). */
#include "folder.h"

#include <dirent.h>
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model.h"

enum { MAX_COPY_BYTES = 256 << 20 };

bool rq_folder_is(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static bool is_dots(const char *name) { return strcmp(name, ".") == 0 || strcmp(name, "..") == 0; }

bool rq_folder_is_used(const char *path, const char *but) {
    DIR *dir = opendir(path);
    bool used = false;
    if (!dir) return access(path, F_OK) == 0;
    for (struct dirent *e; (e = readdir(dir));) used |= !is_dots(e->d_name) && !(but && strcmp(e->d_name, but) == 0);
    closedir(dir);
    return used;
}

void rq_folder_remove(const char *path) {
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (is_dots(e->d_name)) continue;
        char *child = rq_path_join(path, e->d_name);
        if (child && unlink(child) != 0) rq_folder_remove(child);
        free(child);
    }
    if (dir) closedir(dir);
    rmdir(path);
}

rq_status rq_folder_copy_file(const char *from_dir, const char *to_dir, const char *name) {
    rq_status status = RQ_OK;
    char *from = rq_path_join(from_dir, name), *to = rq_path_join(to_dir, name), *text = NULL;
    int64_t n;
    if (!from || !to) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (rq_folder_is(from)) {
        rq_log(RQ_LOG_WARN, "the folder %s is not copied", from);
        goto done;
    }
    RQ_TRY(rq_read_file(from, MAX_COPY_BYTES, &text, &n));
    RQ_TRY(rq_write_file(to, text, n));
done:
    free(from);
    free(to);
    free(text);
    return status;
}

rq_status rq_folder_copy(const char *from, const char *to, bool (*skip)(const char *name)) {
    rq_status status = RQ_OK;
    DIR *dir = opendir(from);
    if (!dir) return rq_fail(RQ_ERR_IO, "cannot list %s: %s", from, strerror(errno));
    for (struct dirent *e; (e = readdir(dir));) {
        if (!is_dots(e->d_name) && !skip(e->d_name)) RQ_TRY(rq_folder_copy_file(from, to, e->d_name));
    }
done:
    closedir(dir);
    return status;
}
