/* SPDX-License-Identifier: Apache-2.0 */
/* The plain build of the row operations, and the choice among the three. */
#define RQ_MATH_TABLE rq_llama_math_plain
#define RQ_MATH_NAME  "plain"
#include "llama_math_body.h"

const rq_llama_math *rq_llama_math_get(void) {
#ifdef RQ_LLAMA_MATH_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        return &rq_llama_math_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &rq_llama_math_avx2;
#endif
    return &rq_llama_math_plain;
}
