/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target: config.json, and generation_config.json after the first zero byte. A configuration that is accepted can be
 * written as JSON (or is refused in words), and what was written is accepted again with the same sizes. */
#include "model_parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *cut = size ? memchr(data, 0, size) : NULL;
    int64_t n = cut ? cut - data : (int64_t)size;
    rq_config c, d;
    char *json = NULL;
    if (rq_config_from_json(&c, (const char *)data, n, cut ? (const char *)cut + 1 : NULL,
                            cut ? (int64_t)size - n - 1 : 0, "input") != RQ_OK) {
        return 0;
    }
    if (rq_config_to_json(&c, &json) != RQ_OK) return 0;
    if (rq_config_from_json(&d, json, (int64_t)strlen(json), NULL, 0, "again") != RQ_OK || c.n_layer != d.n_layer ||
        c.d_model != d.d_model || c.head_dim != d.head_dim || c.rope_scaling != d.rope_scaling || c.n_eos != d.n_eos) {
        fprintf(stderr, "%s\n%s\n", rq_last_error(), json);
        abort();
    }
    free(json);
    return 0;
}
