/* SPDX-License-Identifier: Apache-2.0 */
/* y = W x for any packed format, from the format's unpack_row alone: the definition in fp64, and the fp32 routine that a
 * format runs on until it has a kernel of its own. */
#include <math.h>

#include "kernels.h"

rq_status rq_gemv_define(double *y64, double *mag, const rq_packed *p, const float *x, int64_t n_tok, int64_t row0,
                         int64_t n_rows) {
    float *w = NULL;
    rq_status status = RQ_NEW(w, p->n_in);
    for (int64_t r = row0; r < row0 + n_rows && status == RQ_OK; ++r) {
        rq_unpack_row(p, r, w);
        for (int64_t t = 0; t < n_tok; ++t) {
            const float *xt = x + t * p->n_in;
            double sum = 0, abs_sum = 0;
            for (int64_t j = 0; j < p->n_in; ++j) {
                double term = (double)w[j] * (double)xt[j];
                sum += term;
                abs_sum += fabs(term);
            }
            y64[t * p->n_out + r] = sum;
            if (mag) mag[t * p->n_out + r] = abs_sum;
        }
    }
    free(w);
    return status;
}

rq_status rq_gemv_generic(float *y, const rq_packed *p, const float *x, int64_t n_tok, int64_t row0, int64_t n_rows) {
    float *w = NULL;
    rq_status status = RQ_NEW(w, p->n_in);
    rq_dense row = {p->n_out, p->n_in, 0, (const unsigned char *)w}; /* row_bytes 0: every row is this one */
    const rq_kernel *k = rq_kernel_pick("gemv", "f32_rows");
    for (int64_t r = row0; r < row0 + n_rows && status == RQ_OK; ++r) {
        rq_unpack_row(p, r, w);
        k->gemv(y, &row, x, n_tok, r, 1);
    }
    free(w);
    return status;
}
