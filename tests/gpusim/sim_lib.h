/* SPDX-License-Identifier: Apache-2.0 */
/* What the stand-ins for cuBLAS, cuSOLVER and NCCL (sim_*.c) share: calls that run in the order of a stream, on memory that
 * is checked to be the device's, and the number formats. */
#ifndef RQ_GPUSIM_SIM_LIB_H
#define RQ_GPUSIM_SIM_LIB_H
#include <library_types.h>

#include "rt.h"

/* Memory that a call works on: checked when it is called and when it runs. */
typedef struct sim_span {
    const char *name; /* "A" */
    const void *p;
    size_t bytes;
} sim_span;
enum { SIM_SPANS = 16 };

typedef enum sim_status { SIM_OK, SIM_BAD_MEMORY, SIM_BAD_STREAM } sim_status;

/* Queues run(arg) in the stream, with a copy of arg (bytes). Memory that is not the device's, or ends too early, is a
 * finding. */
sim_status sim_submit(const char *function, cudaStream_t stream, const sim_span *span, size_t n_span,
                      void (*run)(void *arg), const void *arg, size_t arg_bytes);
/* The same on a device, for calls that wait for others: it runs once ready(arg) is true, and after *order, which becomes
 * this call (a stream of NULL: after nothing). */
sim_status sim_submit_waiting(const char *function, int device, cudaStream_t stream, rt_dep *order,
                              const sim_span *span, size_t n_span, bool (*ready)(void *arg), void (*run)(void *arg),
                              const void *arg, size_t arg_bytes);

/* The bytes of a column-major matrix: rows x cols, leading dimension ld, elements of `element` bytes. */
size_t sim_matrix_bytes(int64_t rows, int64_t cols, int64_t ld, size_t element);

/* ---- number formats, by cudaDataType */
size_t sim_type_bytes(cudaDataType type); /* 0: one that is not known here */
double sim_load(cudaDataType type, const void *p, size_t index);
/* To nearest even; integers and fp8 saturate. */
void sim_store(cudaDataType type, void *p, size_t index, double v);

#endif
