/* SPDX-License-Identifier: Apache-2.0 */
/* --device: the CUDA side is a program of its own, since one program cannot have both the CUDA runtime and the simulator
 * in it (gemv_options.h). */
#include <limits.h>
#include <unistd.h>

#include "gemv_options.h"

/* The value of --device, or NULL. The last one counts, as with any option. */
static const char *device_of(char **argv) {
    const char *device = NULL;
    for (int i = 1; argv[i] && strcmp(argv[i], "--"); ++i) {
        if (!strcmp(argv[i], "--device") && argv[i + 1]) device = argv[++i];
        if (!strncmp(argv[i], "--device=", 9)) device = argv[i] + 9;
    }
    return device;
}

int gemv_hand_over(char **argv) {
    const char *device = device_of(argv);
    if (!device || !strcmp(device, "cpu")) return 0;
    if (strcmp(device, "cuda") && strcmp(device, "sim")) {
        fprintf(stderr, "bench_gemv: no device \"%s\": cpu, cuda or sim\n", device);
        return 2;
    }
    char self[PATH_MAX], path[PATH_MAX + 32];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) n = 0;
    while (n > 0 && self[n - 1] != '/') --n;
    static const char *const folders[] = {"gpu", "sim"};
    for (int i = strcmp(device, "cuda") ? 1 : 0; i < 2; ++i) {
        snprintf(path, sizeof path, "%.*s%s/bench_gemv_cuda", (int)n, self, folders[i]);
        if (access(path, X_OK)) continue;
        execv(path, argv);
        fprintf(stderr, "bench_gemv: %s does not start\n", path);
        return 2;
    }
    fprintf(stderr,
            "bench_gemv: --device %s: this build has CPU kernels only (-DRQ_CUDA=ON for a GPU, -DRQ_GPUSIM=ON "
            "for the simulator)\n",
            device);
    return 2;
}
