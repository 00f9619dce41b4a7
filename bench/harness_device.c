/* SPDX-License-Identifier: Apache-2.0 */
/* --device: the CUDA side of a benchmark is a program of its own, since one program cannot have both the CUDA runtime and the simulator
 * in it. */
#include <limits.h>
#include <unistd.h>

#include "harness.h"

/* The value of --device, or NULL. The last one counts, as with any option. */
static const char *device_of(char **argv) {
    const char *device = NULL;
    for (int i = 1; argv[i] && strcmp(argv[i], "--"); ++i) {
        if (!strcmp(argv[i], "--device") && argv[i + 1]) device = argv[++i];
        if (!strncmp(argv[i], "--device=", 9)) device = argv[i] + 9;
    }
    return device;
}

int bench_hand_over(const char *program, char **argv) {
    const char *device = device_of(argv);
    if (!device || !strcmp(device, "cpu")) return 0;
    if (strcmp(device, "cuda") && strcmp(device, "sim")) {
        fprintf(stderr, "%s: no device \"%s\": cpu, cuda or sim\n", program, device);
        return 2;
    }
    char self[PATH_MAX], path[PATH_MAX + 64];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) n = 0;
    while (n > 0 && self[n - 1] != '/') --n;
    static const char *const folders[] = {"gpu", "sim"};
    for (int i = strcmp(device, "cuda") ? 1 : 0; i < 2; ++i) {
        snprintf(path, sizeof path, "%.*s%s/%s_cuda", (int)n, self, folders[i], program);
        if (access(path, X_OK)) continue;
        execv(path, argv);
        fprintf(stderr, "%s: %s does not start\n", program, path);
        return 2;
    }
    fprintf(
        stderr,
        "%s: --device %s: this build has CPU code only (-DRQ_CUDA=ON for a GPU, -DRQ_GPUSIM=ON for the simulator)\n",
        program, device);
    return 2;
}
