/* SPDX-License-Identifier: Apache-2.0 */
/* The table of kernels and the choice among them at run time. */
#ifndef RQ_KERNELS_H
#define RQ_KERNELS_H

#include "formats.h"
#include "ops.h"

#define RQ_KERNEL(op, operand, impl, need) RQ_OP_##op(rq_##op##_##operand##_##impl, rq_##operand);
#include "kernels.def"
#undef RQ_KERNEL

/* Each has what those before it have. */
typedef enum rq_need { RQ_NEED_ANY, RQ_NEED_AVX2, RQ_NEED_AVX512, RQ_NEED_AVX512VNNI, RQ_NEED_AVX512VBMI } rq_need;

typedef struct rq_kernel {
    const char *op, *operand, *impl;
    rq_need need;
    rq_gemv_fn gemv; /* exactly one is set */
    rq_unpack_fn unpack;
    rq_quantize_fn quantize;
    rq_gemm_fn gemm;
} rq_kernel;

int64_t rq_kernel_count(void);
const rq_kernel *rq_kernel_at(int64_t i);
/* Whether this machine can run it; otherwise *why (if not NULL) is what is missing: "needs AVX-512 F, BW, VL and DQ". */
bool rq_kernel_usable(const rq_kernel *k, const char **why);
/* The best usable row, NULL when no row has this operation and operand. The environment variable RQ_KERNEL (c, avx2,
 * avx512, avx512vnni or avx512vbmi) is a ceiling on what is picked, for tests and measurements. */
const rq_kernel *rq_kernel_pick(const char *op, const char *operand);
/* The most that may be picked here: what the CPU has, or RQ_KERNEL's ceiling. */
rq_need rq_kernel_ceiling(void);
/* RQ_ERR_ARG when RQ_KERNEL is not one of those, or asks for what this machine lacks. */
rq_status rq_kernels_check(void);

/* Rows of one item when a matrix is shared out to n_threads: a kernel puts x in its own order once per call, so enough rows to
 * pay for that, and few enough that the items spread evenly. The result does not depend on it. */
static inline int64_t rq_gemv_item_rows(int64_t n_out, int n_threads) {
    return rq_max_i64(32, rq_min_i64(n_threads > 1 ? 128 : 256, n_out / (8 * (int64_t)n_threads) / 32 * 32));
}

/* The definition that every kernel is held to, for any packed format: rows are unpacked one by one and summed in fp64.
 * y64[n_tok][n_out] and, unless NULL, mag[n_tok][n_out] = sum |w x|; x in input-feature order. */
rq_status rq_gemv_define(double *y64, double *mag, const rq_packed *p, const float *x, int64_t n_tok, int64_t row0,
                         int64_t n_rows);
/* The same in fp32 for formats that have no kernel yet. */
rq_status rq_gemv_generic(float *y, const rq_packed *p, const float *x, int64_t n_tok, int64_t row0, int64_t n_rows);

#endif
