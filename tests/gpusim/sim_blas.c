/* SPDX-License-Identifier: Apache-2.0 */
/* OpenBLAS is loaded when first needed, as host/backend_openblas.c does it and with the same choices (one thread, AVX-512 kernels
 * where the processor has it), because a process has it once. Where it is not installed, or with GPUSIM_BLAS=plain, loops
 * that sum in double take its place. */
#include "sim_blas.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* ---- the library */

static struct {
    bool there;
    void (*sgemm)(const char *ta, const char *tb, const int *m, const int *n, const int *k, const float *alpha,
                  const float *a, const int *lda, const float *b, const int *ldb, const float *beta, float *c,
                  const int *ldc);
    void (*dgemm)(const char *ta, const char *tb, const int *m, const int *n, const int *k, const double *alpha,
                  const double *a, const int *lda, const double *b, const int *ldb, const double *beta, double *c,
                  const int *ldc);
    void (*strsm)(const char *side, const char *uplo, const char *trans, const char *diag, const int *m, const int *n,
                  const float *alpha, const float *a, const int *lda, float *b, const int *ldb);
    void (*dtrsm)(const char *side, const char *uplo, const char *trans, const char *diag, const int *m, const int *n,
                  const double *alpha, const double *a, const int *lda, double *b, const int *ldb);
    void (*spotrf)(const char *uplo, const int *n, float *a, const int *lda, int *info);
    void (*dpotrf)(const char *uplo, const int *n, double *a, const int *lda, int *info);
    void (*set_num_threads)(int n);
} blas;

static pthread_once_t once = PTHREAD_ONCE_INIT;

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

static bool has_avx512(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
    return false;
#endif
}

static void *open_library(void) {
    const char *wanted = getenv("RQ_OPENBLAS_CORETYPE");
    if (!wanted) wanted = has_avx512() ? "SkylakeX" : "env";
    bool choose = strcmp(wanted, "env") != 0;
    char *core = choose ? swap_env("OPENBLAS_CORETYPE", wanted) : NULL;
    char *threads = swap_env("OPENBLAS_NUM_THREADS", "1");
    void *lib = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (choose) free(swap_env("OPENBLAS_CORETYPE", core));
    free(swap_env("OPENBLAS_NUM_THREADS", threads));
    free(core);
    free(threads);
    return lib;
}

static bool find(void *lib, const char *name, void *slot, size_t slot_bytes) {
    void *address = dlsym(lib, name);
    if (address) memcpy(slot, &address, slot_bytes);
    return address != NULL;
}
#define FIND(name, member) find(lib, name, &blas.member, sizeof blas.member)

static void load(void) {
    const char *choice = getenv("GPUSIM_BLAS");
    if (choice && !strcmp(choice, "plain")) return;
    void *lib = open_library();
    if (!lib) return;
    blas.there = FIND("sgemm_", sgemm) && FIND("dgemm_", dgemm) && FIND("strsm_", strsm) && FIND("dtrsm_", dtrsm) &&
                 FIND("spotrf_", spotrf) && FIND("dpotrf_", dpotrf) &&
                 FIND("openblas_set_num_threads", set_num_threads);
    if (blas.there) blas.set_num_threads(1);
}

static bool have(void) {
    pthread_once(&once, load);
    return blas.there;
}

/* ---- plain loops, for both types */

#define PLAIN(T, suffix)                                                                                               \
    static void plain_gemm_##suffix(bool ta, bool tb, int m, int n, int k, T alpha, const T *a, size_t lda,            \
                                    const T *b, size_t ldb, T beta, T *c, size_t ldc) {                                \
        for (int j = 0; j < n; ++j) {                                                                                  \
            for (int i = 0; i < m; ++i) {                                                                              \
                double sum = 0;                                                                                        \
                for (int p = 0; p < k; ++p) {                                                                          \
                    double x = (double)(ta ? a[(size_t)i * lda + (size_t)p] : a[(size_t)p * lda + (size_t)i]);         \
                    double y = (double)(tb ? b[(size_t)p * ldb + (size_t)j] : b[(size_t)j * ldb + (size_t)p]);         \
                    sum += x * y;                                                                                      \
                }                                                                                                      \
                T *at = &c[(size_t)j * ldc + (size_t)i];                                                               \
                double old = beta != 0 ? (double)beta * (double)*at : 0;                                               \
                *at = (T)((double)alpha * sum + old);                                                                  \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    /* Element (i, j) of op(A). */                                                                                     \
    static double op_##suffix(sim_triangle t, const T *a, size_t lda, int i, int j) {                                  \
        if (i == j && t.unit) return 1;                                                                                \
        return (double)(t.transposed ? a[(size_t)i * lda + (size_t)j] : a[(size_t)j * lda + (size_t)i]);               \
    }                                                                                                                  \
    /* One right-hand side x[0], x[step], ...: op(A) x = x, or x op(A) = x, which is op(A)^T x^T = x^T. */             \
    static void plain_solve_##suffix(sim_triangle t, int n, const T *a, size_t lda, T *x, size_t step) {               \
        sim_triangle s = t;                                                                                            \
        if (!t.left) s.transposed = !t.transposed;                                                                     \
        bool backward = s.upper != s.transposed;                                                                       \
        for (int done = 0; done < n; ++done) {                                                                         \
            int i = backward ? n - 1 - done : done;                                                                    \
            double sum = (double)x[(size_t)i * step];                                                                  \
            for (int q = 0; q < done; ++q) {                                                                           \
                int j = backward ? n - 1 - q : q;                                                                      \
                sum -= op_##suffix(s, a, lda, i, j) * (double)x[(size_t)j * step];                                     \
            }                                                                                                          \
            x[(size_t)i * step] = (T)(sum / op_##suffix(s, a, lda, i, i));                                             \
        }                                                                                                              \
    }                                                                                                                  \
    static void plain_trsm_##suffix(sim_triangle t, int m, int n, T alpha, const T *a, size_t lda, T *b, size_t ldb) { \
        for (int j = 0; j < n; ++j) {                                                                                  \
            for (int i = 0; i < m; ++i) b[(size_t)j * ldb + (size_t)i] *= alpha;                                       \
        }                                                                                                              \
        if (t.left) {                                                                                                  \
            for (int j = 0; j < n; ++j) plain_solve_##suffix(t, m, a, lda, b + (size_t)j * ldb, 1);                    \
        } else {                                                                                                       \
            for (int i = 0; i < m; ++i) plain_solve_##suffix(t, n, a, lda, b + i, ldb);                                \
        }                                                                                                              \
    }                                                                                                                  \
    static int plain_potrf_##suffix(bool upper, int n, T *a, size_t lda) {                                             \
        /* Element (i, j), i >= j, of the lower factor; the upper one is its transpose. */                             \
        size_t row = upper ? lda : 1, column = upper ? 1 : lda;                                                        \
        for (int j = 0; j < n; ++j) {                                                                                  \
            for (int i = j; i < n; ++i) {                                                                              \
                double sum = (double)a[(size_t)i * row + (size_t)j * column];                                          \
                for (int p = 0; p < j; ++p) {                                                                          \
                    sum -= (double)a[(size_t)i * row + (size_t)p * column] *                                           \
                           (double)a[(size_t)j * row + (size_t)p * column];                                            \
                }                                                                                                      \
                if (i == j) {                                                                                          \
                    if (!(sum > 0)) return j + 1;                                                                      \
                    sum = sqrt(sum);                                                                                   \
                } else {                                                                                               \
                    sum /= (double)a[(size_t)j * (row + column)];                                                      \
                }                                                                                                      \
                a[(size_t)i * row + (size_t)j * column] = (T)sum;                                                      \
            }                                                                                                          \
        }                                                                                                              \
        return 0;                                                                                                      \
    }

PLAIN(float, s)
PLAIN(double, d)

/* ---- the functions */

#define CHOOSE(T, suffix)                                                                                              \
    void sim_##suffix##gemm(bool ta, bool tb, int m, int n, int k, T alpha, const T *a, int lda, const T *b, int ldb,  \
                            T beta, T *c, int ldc) {                                                                   \
        if (m <= 0 || n <= 0) return;                                                                                  \
        if (have()) {                                                                                                  \
            blas.suffix##gemm(ta ? "T" : "N", tb ? "T" : "N", &m, &n, &k, &alpha, a, &lda, b, &ldb, &beta, c, &ldc);   \
        } else {                                                                                                       \
            plain_gemm_##suffix(ta, tb, m, n, k, alpha, a, (size_t)lda, b, (size_t)ldb, beta, c, (size_t)ldc);         \
        }                                                                                                              \
    }                                                                                                                  \
    void sim_##suffix##trsm(sim_triangle t, int m, int n, T alpha, const T *a, int lda, T *b, int ldb) {               \
        if (m <= 0 || n <= 0) return;                                                                                  \
        if (have()) {                                                                                                  \
            blas.suffix##trsm(t.left ? "L" : "R", t.upper ? "U" : "L", t.transposed ? "T" : "N", t.unit ? "U" : "N",   \
                              &m, &n, &alpha, a, &lda, b, &ldb);                                                       \
        } else {                                                                                                       \
            plain_trsm_##suffix(t, m, n, alpha, a, (size_t)lda, b, (size_t)ldb);                                       \
        }                                                                                                              \
    }                                                                                                                  \
    int sim_##suffix##potrf(bool upper, int n, T *a, int lda) {                                                        \
        if (n <= 0) return 0;                                                                                          \
        if (!have()) return plain_potrf_##suffix(upper, n, a, (size_t)lda);                                            \
        int info = 0;                                                                                                  \
        blas.suffix##potrf(upper ? "U" : "L", &n, a, &lda, &info);                                                     \
        return info;                                                                                                   \
    }

CHOOSE(float, s)
CHOOSE(double, d)
