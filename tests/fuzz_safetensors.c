/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target: bytes as a safetensors file. What is accepted is read to the last element. */
#include "fuzz_store.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    rq_store *s = NULL;
    if (rq_store_open_memory(&s, data, (int64_t)size, "input") != RQ_OK) return 0;
    read_tensors(s);
    rq_store_close(s);
    return 0;
}
