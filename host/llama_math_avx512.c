/* SPDX-License-Identifier: Apache-2.0 */
/* The AVX-512 twin of llama_math.c. */
#if defined(__x86_64__) && defined(__GNUC__)
#define RQ_MATH_TABLE rq_llama_math_avx512
#define RQ_MATH_NAME  "avx512"
#include "llama_math_body.h"
#endif
