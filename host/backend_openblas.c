/* SPDX-License-Identifier: Apache-2.0 */
/* OpenBLAS, loaded with dlopen so that (a) nothing but its run-time package is needed, and (b) we can ask for its AVX-512
 * kernels: releases older than the CPU fall back to their AVX2 ones, at half the speed. It is told to use one thread. */
#include <dlfcn.h>
#include <pthread.h>

#include "backend_openblas.h"

rq_openblas rq_blas;

static pthread_once_t load_once = PTHREAD_ONCE_INIT;
static char load_error[512]; /* empty when loaded */
static char backend_name[64] = "OpenBLAS (not loaded)";

/* The file: RQ_OPENBLAS names another. */
static const char *library_name(void) {
    const char *given = getenv("RQ_OPENBLAS");
    return given && *given ? given : "libopenblas.so.0";
}

/* ISO C has no conversion from void * to a function pointer; POSIX promises that the bits are the same. The library that comes with Python's SciPy
 * has the same functions with a prefix. */
static bool find_symbol(void *lib, const char *name, void *slot, size_t slot_bytes) {
    char prefixed[64];
    void *address = dlsym(lib, name);
    snprintf(prefixed, sizeof prefixed, "scipy_%s", name);
    if (!address) address = dlsym(lib, prefixed);
    if (!address) {
        snprintf(load_error, sizeof load_error,
                 "%s has no %s: install a full build of OpenBLAS (Debian and Ubuntu: package libopenblas0)",
                 library_name(), name);
        return false;
    }
    memcpy(slot, &address, slot_bytes);
    return true;
}
#define FIND(lib, name, member) find_symbol((lib), (name), &rq_blas.member, sizeof rq_blas.member)

static bool cpu_has_avx512(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
    return false;
#endif
}

/* Set name to value (NULL: unset) and give back a copy of what it was (NULL: not set). */
static char *swap_env(const char *name, const char *value) {
    const char *now = getenv(name);
    char *before = now ? strdup(now) : NULL;
    if (value) {
        setenv(name, value, 1);
    } else {
        unsetenv(name);
    }
    return before;
}

/* OpenBLAS reads both variables in its load-time constructor only, so they are put back afterwards. OPENBLAS_CORETYPE is
 * often set for a whole site to the lowest common core; ours is chosen by the CPU, and RQ_OPENBLAS_CORETYPE chooses another
 * ("env" leaves OPENBLAS_CORETYPE alone). */
static void *open_library(void) {
    const char *wanted = getenv("RQ_OPENBLAS_CORETYPE");
    if (!wanted) wanted = cpu_has_avx512() ? "SkylakeX" : "env";
    bool choose = strcmp(wanted, "env") != 0;
    char *core = choose ? swap_env("OPENBLAS_CORETYPE", wanted) : NULL;
    char *threads = swap_env("OPENBLAS_NUM_THREADS", "1"); /* no idle pool of its own */
    void *lib = dlopen(library_name(), RTLD_NOW | RTLD_LOCAL);
    if (choose) free(swap_env("OPENBLAS_CORETYPE", core));
    free(swap_env("OPENBLAS_NUM_THREADS", threads));
    free(core);
    free(threads);
    return lib;
}

static void load_library(void) {
    void *lib = open_library();
    if (!lib) {
        snprintf(load_error, sizeof load_error,
                 "OpenBLAS is needed and could not be loaded (%s): install it (Debian and Ubuntu: package "
                 "libopenblas0), or name the file in RQ_OPENBLAS",
                 dlerror());
        return;
    }
    if (!FIND(lib, "cblas_sgemm", sgemm) || !FIND(lib, "cblas_dgemm", dgemm) || !FIND(lib, "cblas_ssyrk", ssyrk) ||
        !FIND(lib, "cblas_dtrsm", dtrsm) || !FIND(lib, "dpotrf_", dpotrf) ||
        !FIND(lib, "openblas_set_num_threads", set_num_threads) || !FIND(lib, "openblas_get_corename", get_corename)) {
        return;
    }
    rq_blas.set_num_threads(1);
    snprintf(backend_name, sizeof backend_name, "OpenBLAS %s", rq_blas.get_corename());
}

rq_status rq_backend_init(void) {
    pthread_once(&load_once, load_library);
    if (load_error[0]) return rq_fail(RQ_ERR_DEVICE, "%s", load_error);
    return RQ_OK;
}

const char *rq_backend_name(void) {
    pthread_once(&load_once, load_library);
    return backend_name;
}
