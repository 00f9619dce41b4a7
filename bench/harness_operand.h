/* SPDX-License-Identifier: Apache-2.0 */
/* Operands to time: random matrices in every form that kernels.def reads, in enough copies to stay out of the cache. */
#ifndef BENCH_HARNESS_OPERAND_H
#define BENCH_HARNESS_OPERAND_H

#include "harness.h"
#include "kernels.h"
#include "vq_books.h"

/* One matrix: n_copies times the same rows at different addresses. n_out and n_in are set by the caller. */
typedef struct bench_subject {
    const char *operand; /* of kernels.def */
    const char *
        variant; /* of it: "ssvq-f16" has fp16 magnitudes, "vq8x256" 256 vectors of 8; as the operand where there is one only */
    int bits; /* of a weight's code, rounded up */
    int64_t n_out, n_in, size_bits, n_copies;
    rq_packed packed; /* copy 0 of a packed matrix; its codes point into `copies` */
    rq_dense dense;
    unsigned char *copies;
    int64_t copy_bytes;
    void *side[6];
} bench_subject;

float bench_noise(void); /* uniform in [-1, 1), the same sequence every run */

/* Codes of `bits`; group 0 or beyond n_in means whole rows. Sizes are known after this, memory for codes is not taken. */
rq_status bench_make_grid(bench_subject *s, int bits, int64_t group, bool sym, bool f32_scales);
/* vec_len 8 or 4, 256 codes, one codebook; group 0 or beyond n_in means whole rows. RQ_ERR_ARG when it does not fit vec_len. */
rq_status bench_make_ssvq(bench_subject *s, int vec_len, int64_t group, int n_outlier, bool f16);
/* Codebooks of 2^code_bits; group 0 or beyond n_in means whole rows. RQ_ERR_ARG when it does not fit vec_len. `book` must outlive s. */
rq_status bench_make_vq(bench_subject *s, const bench_book *book, int64_t group, int n_outlier);
/* operand: f32_rows, f16_rows, bf16_rows or q8_0_rows */
void bench_make_dense(bench_subject *s, const char *operand);
/* Random contents, copied until they exceed four last-level caches. */
rq_status bench_make_copies(bench_subject *s, const bench_machine *m);
/* p, or d for plain rows: the copy that begins at `data`. */
void bench_copy_at(rq_packed *p, rq_dense *d, const bench_subject *s, const unsigned char *data);
void bench_drop_subject(bench_subject *s);

/* Row `row` in fp32 by the definitions, w[n_in]. */
void bench_define_row(const bench_subject *s, int64_t row, float *w);

#endif
