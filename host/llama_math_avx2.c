/* SPDX-License-Identifier: Apache-2.0 */
/* The AVX2 twin of llama_math.c. */
#if defined(__x86_64__) && defined(__GNUC__)
#define RQ_MATH_TABLE rq_llama_math_avx2
#define RQ_MATH_NAME  "avx2"
#include "llama_math_body.h"
#endif
