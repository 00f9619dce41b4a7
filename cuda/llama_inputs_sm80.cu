/* SPDX-License-Identifier: Apache-2.0 */
/* Inputs of matrices of w4a8 in fp32, for calibration: Hadamard matrix, column factors, and to int8 and back. The numbers are those of host/fmt_act.h to
 * the last bit (quantize_rows_hadamard.cu has the kernels for decoding, from halves to codes; hadamard_rows.cu those of the Hadamard matrix).
 * Targets: sm_80 sm_90a. */
#include "comp_launch.cuh"
#include "quantize_rows.cuh"
#include "rq_cuda_hadamard.h"
#include "rq_cuda_llama.h"

static __global__ void __launch_bounds__(RQ_COMP_ACROSS)
    rq_factor_rows(float *out, const float *x, const float *factor, int64_t width) {
    const int64_t c = rq_comp_col(), at = blockIdx.x * width + c;
    if (c < width) out[at] = __fmul_rn(x[at], factor[c]);
}

static __global__ void __launch_bounds__(ROW_THREADS) rq_act8_rows(float *out, const float *x, int64_t width) {
    __shared__ row_reduced<ROW_THREADS / 32> reduced;
    const int64_t row = blockIdx.x * width;
    float most = 0.0f;
    for (int64_t j = threadIdx.x; j < width; j += ROW_THREADS) most = fmaxf(most, fabsf(x[row + j])); /* not NaN */
    const float scale = __fdiv_rn(largest(most, reduced), 127.0f);
    for (int64_t j = threadIdx.x; j < width; j += ROW_THREADS)
        out[row + j] = __fmul_rn(scale, (float)quotient(x[row + j], scale));
}

rq_status rq_cuda_input_rows(float *out, const float *x, const rq_hadamard *h, const float *factor, int64_t n_tok,
                             int64_t width, rq_cuda_stream stream) {
    if (!h) {
        if (!factor) return rq_gemv_fail(RQ_ERR_ARG, "neither a Hadamard matrix nor factors");
        rq_factor_rows<<<rq_comp_rows(width, n_tok), RQ_COMP_ACROSS, 0, stream>>>(out, x, factor, width);
        return rq_comp_launched("rq_factor_rows");
    }
    rq_cuda_hadamard_args a = {};
    a.y = out, a.x = x, a.type = RQ_ROWS_F32, a.n_tok = n_tok, a.n = width, a.hadamard = h, a.factor = factor;
    return rq_cuda_hadamard_rows(&a, stream);
}

rq_status rq_cuda_act8_rows(float *out, const float *x, int64_t n_tok, int64_t width, rq_cuda_stream stream) {
    rq_act8_rows<<<(unsigned)n_tok, ROW_THREADS, 0, stream>>>(out, x, width);
    return rq_comp_launched("rq_act8_rows");
}
