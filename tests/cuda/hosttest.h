/* SPDX-License-Identifier: Apache-2.0 */
/* cudatest.h beside the library's headers, for tests of host code: both call types of numbers by the same names. */
#ifndef RQ_HOSTTEST_H
#define RQ_HOSTTEST_H
#define RQ_I8   RECORD_I8
#define RQ_U8   RECORD_U8
#define RQ_I16  RECORD_I16
#define RQ_U16  RECORD_U16
#define RQ_I32  RECORD_I32
#define RQ_U32  RECORD_U32
#define RQ_I64  RECORD_I64
#define RQ_U64  RECORD_U64
#define RQ_F16  RECORD_F16
#define RQ_BF16 RECORD_BF16
#define RQ_F32  RECORD_F32
#define RQ_F64  RECORD_F64
#include "cudatest.h"
#undef RQ_I8
#undef RQ_U8
#undef RQ_I16
#undef RQ_U16
#undef RQ_I32
#undef RQ_U32
#undef RQ_I64
#undef RQ_U64
#undef RQ_F16
#undef RQ_BF16
#undef RQ_F32
#undef RQ_F64

#include "common.h"

#define CHECK_RQ(call)                                                                                                 \
    do {                                                                                                               \
        rq_status s_ = (call);                                                                                         \
        if (s_ != RQ_OK) RQ_DIE("%s: %s", #call, rq_last_error());                                                     \
    } while (0)
#endif
