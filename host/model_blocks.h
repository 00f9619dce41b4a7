/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF quantization blocks as they lie in the file (the table in docs/formats.md). Sizes are taken from these structs. */
#ifndef RQ_MODEL_BLOCKS_H
#define RQ_MODEL_BLOCKS_H

#include "rq_base.h"

typedef struct rq_block_q4_0 { /* x[j] = (low nibble - 8) d, x[j + 16] = (high nibble - 8) d */
    rq_f16 d;
    uint8_t qs[16];
} rq_block_q4_0;

typedef struct rq_block_q4_1 { /* x = q d + m, the same nibble order */
    rq_f16 d, m;
    uint8_t qs[16];
} rq_block_q4_1;

typedef struct rq_block_q8_0 {
    rq_f16 d;
    int8_t qs[32];
} rq_block_q8_0;

typedef struct rq_block_q4_k { /* 8 sub-blocks of 32 with 6-bit scale and minimum */
    rq_f16 d, dmin;
    uint8_t scales[12];
    uint8_t qs[128];
} rq_block_q4_k;

typedef struct rq_block_q6_k { /* 16 sub-blocks of 16 with 8-bit scale */
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    rq_f16 d;
} rq_block_q6_k;

RQ_STATIC_ASSERT(sizeof(rq_block_q4_0) == 18, "Q4_0 block");
RQ_STATIC_ASSERT(sizeof(rq_block_q4_1) == 20, "Q4_1 block");
RQ_STATIC_ASSERT(sizeof(rq_block_q8_0) == 34, "Q8_0 block");
RQ_STATIC_ASSERT(sizeof(rq_block_q4_k) == 144, "Q4_K block");
RQ_STATIC_ASSERT(sizeof(rq_block_q6_k) == 210, "Q6_K block");

/* 6-bit scale and minimum of sub-block j (0..7) of Q4_K. */
static inline void rq_q4_k_scale(const uint8_t *s, int j, int *scale, int *minimum) {
    if (j < 4) {
        *scale = s[j] & 63;
        *minimum = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
        *minimum = (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
    }
}

#endif
