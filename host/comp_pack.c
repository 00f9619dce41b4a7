/* SPDX-License-Identifier: Apache-2.0 */
/* What a matrix became, in the format of its rounder: in memory, or as tensors of a file with the entry of its description. */
#include "comp.h"

#include <jansson.h>

rq_status rq_result_pack(rq_packed *p, const rq_quant_result *r) {
    switch (r->format) {
    case RQ_FORMAT_SSVQ: return rq_ssvq_pack(p, &r->ssvq);
    case RQ_FORMAT_VQ: return rq_vq_pack(p, &r->vq);
    case RQ_FORMAT_W4A8: return rq_w4a8_pack(p, &r->w4a8);
    default: return rq_grid_pack(p, &r->grid);
    }
}

rq_status rq_result_values(rq_quant_result *r, int64_t n_out, int64_t n_in) {
    rq_packed packed = {0};
    rq_status status = rq_result_pack(&packed, r);
    for (int64_t i = 0; status == RQ_OK && i < n_out; ++i) rq_unpack_row(&packed, i, r->q + i * n_in);
    rq_packed_free(&packed);
    return status;
}

rq_status rq_result_pack_file(rq_packed_file *f, char **json_entry, const char *name, const rq_quant_result *r) {
    if (r->format == RQ_FORMAT_SSVQ) return rq_ssvq_pack_file(f, json_entry, name, &r->ssvq);
    if (r->format == RQ_FORMAT_VQ) return rq_vq_pack_file(f, json_entry, name, &r->vq);
    if (r->format == RQ_FORMAT_W4A8) return rq_w4a8_pack_file(f, json_entry, name, &r->w4a8);
    json_t *e = json_pack("{s:s, s:i, s:I, s:b}", "format", "grid", "bits", r->grid.bits, "group",
                          (json_int_t)r->grid.group, "sym", r->zero == NULL);
    *json_entry = json_dumps(e, JSON_COMPACT);
    json_decref(e);
    if (!*json_entry) return rq_fail(RQ_ERR_NOMEM, "out of memory");
    rq_status status = rq_grid_pack_file(f, name, &r->grid);
    if (status != RQ_OK) {
        free(*json_entry);
        *json_entry = NULL;
    }
    return status;
}
