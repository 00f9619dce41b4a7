/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target: config.json, and generation_config.json after the first zero byte. A configuration that is accepted can be
 * written as JSON (or is refused in words), and what was written is accepted again with the same sizes. What it says of quantization is
 * read for a store with a matrix W of every kind. */
#include "model_parse.h"
#include "peer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* 8 bytes a tensor. */
static rq_store *open_every_kind(void) {
    static uint8_t bytes[8192];
    static const struct {
        const char *name, *dtype, *shape;
    } tensor[] = {{"W.codes", "I8", "2,2,2"}, {"W.indices", "I32", "1,1,2"},     {"W.qweight", "I32", "2,1"},
                  {"W.qzeros", "I32", "2,1"}, {"W.weight_packed", "I32", "1,2"}, {"W.weight_scale", "F32", "1,2"},
                  {"V.weight", "I8", "2,4"},  {"V.weight_scale", "F32", "2,1"}};
    const int n = (int)(sizeof tensor / sizeof *tensor);
    char header[4096] = "{";
    for (int i = 0; i < n; ++i) {
        const size_t at = strlen(header);
        snprintf(header + at, sizeof header - at, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%d,%d]}",
                 i ? "," : "", tensor[i].name, tensor[i].dtype, tensor[i].shape, 8 * i, 8 * i + 8);
    }
    strcat(header, "}");
    const uint64_t length = strlen(header);
    rq_store *s;
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, length);
    if (rq_store_open_memory(&s, bytes, 8 + (int64_t)length + 8 * n, "every kind") != RQ_OK) abort();
    return s;
}

/* Whatever it says, loading what it describes ends in a matrix or a sentence. */
static void read_quantization(const char *text, int64_t n) {
    rq_store *s = open_every_kind();
    json_t *config = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, NULL), *meta = NULL, *entry;
    const char *name;
    if (rq_peer_metadata(&meta, config, s) == RQ_OK && meta) {
        json_object_foreach(json_object_get(meta, "linears"), name, entry) {
            rq_packed p;
            const rq_peer_ops *peer = rq_peer_by_name(json_string_value(json_object_get(entry, "format")));
            if (!peer) abort();
            if (peer->load(&p, s, name, entry) == RQ_OK) rq_packed_free(&p);
        }
    }
    json_decref(meta);
    json_decref(config);
    rq_store_close(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *cut = size ? memchr(data, 0, size) : NULL;
    int64_t n = cut ? cut - data : (int64_t)size;
    rq_config c, d;
    char *json = NULL;
    read_quantization((const char *)data, n);
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
