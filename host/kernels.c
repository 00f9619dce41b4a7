/* SPDX-License-Identifier: Apache-2.0 */
/* Every row of kernels.def, and which of them this machine runs. */
#include "kernels.h"

#include <pthread.h>

/* Rows take their own operand type; the table holds one type per operation. The compiler makes these a jump. */
#define WRAP_gemv(fn, operand)                                                                                         \
    static void fn##_any(float *y, const void *w, const float *x, int64_t n_tok, int64_t row0, int64_t n_rows) {       \
        fn(y, (const operand *)w, x, n_tok, row0, n_rows);                                                             \
    }
#define WRAP_unpack(fn, operand)                                                                                       \
    static void fn##_any(float *dst, const void *w, int64_t row0, int64_t n_rows) {                                    \
        fn(dst, (const operand *)w, row0, n_rows);                                                                     \
    }
#define WRAP_quantize(fn, operand)                                                                                     \
    static void fn##_any(int8_t *q, int64_t pitch, float *scale, int32_t *sum, const void *a, int64_t tok0,            \
                         int64_t n_tok) {                                                                              \
        fn(q, pitch, scale, sum, (const operand *)a, tok0, n_tok);                                                     \
    }
#define WRAP_gemm(fn, operand)                                                                                         \
    static void fn##_any(float *y, const void *w, const rq_act8 *x, int64_t tok0, int64_t n_tok, int64_t row0,         \
                         int64_t n_rows) {                                                                             \
        fn(y, (const operand *)w, x, tok0, n_tok, row0, n_rows);                                                       \
    }
#define RQ_KERNEL(op, operand, impl, need) WRAP_##op(rq_##op##_##operand##_##impl, rq_##operand)
#include "kernels.def"
#undef RQ_KERNEL

static const rq_kernel table[] = {
#define RQ_KERNEL(op, operand, impl, need)                                                                             \
    {#op, #operand, #impl, RQ_NEED_##need, .op = rq_##op##_##operand##_##impl##_any},
#include "kernels.def"
#undef RQ_KERNEL
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static rq_need cpu_has, ceiling;
static const char *asked; /* a value of RQ_KERNEL that cannot be had */

static void look(void) {
    cpu_has = RQ_NEED_ANY;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        cpu_has = RQ_NEED_AVX2; /* every CPU with AVX2 converts halves (F16C) too */
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
            cpu_has = RQ_NEED_AVX512;
            if (__builtin_cpu_supports("avx512vnni")) cpu_has = RQ_NEED_AVX512VNNI;
            if (cpu_has == RQ_NEED_AVX512VNNI && __builtin_cpu_supports("avx512vbmi")) cpu_has = RQ_NEED_AVX512VBMI;
        }
    }
#endif
    static const char *const names[] = {[RQ_NEED_ANY] = "c",
                                        [RQ_NEED_AVX2] = "avx2",
                                        [RQ_NEED_AVX512] = "avx512",
                                        [RQ_NEED_AVX512VNNI] = "avx512vnni",
                                        [RQ_NEED_AVX512VBMI] = "avx512vbmi"};
    const char *want = getenv("RQ_KERNEL");
    ceiling = cpu_has;
    if (!want || !*want) return;
    for (int n = RQ_NEED_ANY; n <= RQ_NEED_AVX512VBMI; ++n) {
        if (strcmp(want, names[n]) == 0 && (rq_need)n <= cpu_has) {
            ceiling = (rq_need)n;
            return;
        }
    }
    asked = want;
}

int64_t rq_kernel_count(void) { return (int64_t)(sizeof table / sizeof *table); }

const rq_kernel *rq_kernel_at(int64_t i) { return &table[i]; }

bool rq_kernel_usable(const rq_kernel *k, const char **why) {
    static const char *const text[] = {"", "needs AVX2 and FMA", "needs AVX-512 F, BW, VL and DQ",
                                       "needs AVX-512 with VNNI", "needs AVX-512 with VNNI and VBMI"};
    pthread_once(&once, look);
    if (why) *why = text[k->need];
    return k->need <= cpu_has;
}

const rq_kernel *rq_kernel_pick(const char *op, const char *operand) {
    const rq_kernel *best = NULL;
    pthread_once(&once, look);
    for (int64_t i = 0; i < rq_kernel_count(); ++i) {
        const rq_kernel *k = &table[i];
        if (k->need <= ceiling && strcmp(k->op, op) == 0 && strcmp(k->operand, operand) == 0) best = k;
    }
    return best;
}

rq_need rq_kernel_ceiling(void) {
    pthread_once(&once, look);
    return ceiling;
}

rq_status rq_kernels_check(void) {
    pthread_once(&once, look);
    if (!asked) return RQ_OK;
    return rq_fail(
        RQ_ERR_ARG,
        "RQ_KERNEL is \"%s\": it must be c, avx2, avx512, avx512vnni or avx512vbmi, and something this CPU has", asked);
}
