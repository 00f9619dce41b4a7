/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target over the files of a folder: the stored corpus as a plain test, without libFuzzer. */
#include <dirent.h>
#include <stdio.h>

#include "common.h"
#include "model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv) {
    int n_files = 0;
    DIR *folder = argc == 2 ? opendir(argv[1]) : NULL;
    if (!folder) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    for (const struct dirent *e; (e = readdir(folder)) != NULL;) {
        char *path, *text;
        int64_t n;
        if (e->d_name[0] == '.') continue;
        path = rq_path_join(argv[1], e->d_name);
        if (!path || rq_read_file(path, 1 << 24, &text, &n) != RQ_OK) {
            fprintf(stderr, "%s\n", rq_last_error());
            return 2;
        }
        /* A copy of the exact size: rq_read_file adds a zero byte that would hide reads past the end. */
        uint8_t *copy = malloc(n ? (size_t)n : 1);
        if (!copy) return 2;
        memcpy(copy, text, (size_t)n);
        (void)LLVMFuzzerTestOneInput(copy, (size_t)n);
        free(copy);
        free(text);
        free(path);
        ++n_files;
    }
    closedir(folder);
    printf("%d inputs\n", n_files);
    return n_files > 0 ? 0 : 1; /* an empty corpus tests nothing */
}
