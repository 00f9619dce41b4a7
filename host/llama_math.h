/* SPDX-License-Identifier: Apache-2.0 */
/* Row operations of the forward pass and of evaluation, built three times (plain, AVX2, AVX-512) from llama_math_body.h and
 * picked at run time. All three work in sixteen lanes without fused multiply-add, so they give the same bits. Internal. */
#ifndef RQ_LLAMA_MATH_H
#define RQ_LLAMA_MATH_H

#include "common.h"

typedef struct rq_llama_math {
    const char *name;
    /* y = exp(x), at most 2 units in the last place off; 0 below about -103.97, infinity above 88.73, NaN stays NaN. */
    void (*exp)(float *y, const float *x, int64_t n);
    /* x = exp(scale * (x - max x)), not yet divided by their sum, which is returned. scale > 0. */
    float (*softmax)(float *x, int64_t n, float scale);
    /* out = gate / (1 + exp(-gate)) * up */
    void (*swiglu)(float *out, const float *gate, const float *up, int64_t n);
    /* out = x / sqrt(mean(x^2) + eps) * gain, one row; gain NULL is all ones */
    void (*rmsnorm)(float *out, const float *x, const float *gain, int64_t n, float eps);
    float (*dot)(const float *a, const float *b, int64_t n);
    void (*axpy)(float *y, float a, const float *x, int64_t n); /* y += a x */
    void (*scale)(float *y, float a, int64_t n);                /* y *= a */
    float (*max)(const float *x, int64_t n);
    double (*sum_exp)(const float *x, int64_t n, float shift); /* sum of exp(x - shift) */
    /* Returns the sum of exp(r - shift) and adds that of exp(r - shift) * (r - x) to *cross. */
    double (*sum_exp_cross)(const float *r, const float *x, int64_t n, float shift, double *cross);
} rq_llama_math;

extern const rq_llama_math rq_llama_math_plain;
#if defined(__x86_64__) && defined(__GNUC__)
#define RQ_LLAMA_MATH_X86 1
extern const rq_llama_math rq_llama_math_avx2, rq_llama_math_avx512;
#endif

/* The best one that this processor can run. */
const rq_llama_math *rq_llama_math_get(void);

#endif
