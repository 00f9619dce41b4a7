/* SPDX-License-Identifier: Apache-2.0 */
/* The list of packed formats, and what can be said of a packed matrix without knowing which it is. */
#include "formats.h"

static const rq_format_ops *const formats[RQ_N_FORMATS] = {
#define RQ_FORMAT(id, name) [RQ_FORMAT_##id] = &rq_format_##name,
#include "formats.def"
#undef RQ_FORMAT
};

const rq_format_ops *rq_format_get(rq_format f) { return formats[f]; }

bool rq_format_by_name(const char *name, rq_format *f) {
    for (int i = 0; i < RQ_N_FORMATS; ++i) {
        if (strcmp(formats[i]->name, name) == 0) {
            *f = (rq_format)i;
            return true;
        }
    }
    return false;
}

void rq_unpack_row(const rq_packed *p, int64_t row, float *dst) { formats[p->format]->unpack_row(p, row, dst); }

int64_t rq_packed_size_bits(const rq_packed *p) { return formats[p->format]->size_bits(p); }

void rq_packed_free(rq_packed *p) {
    while (p->n_owned > 0) free(p->owned[--p->n_owned]);
    memset(p, 0, sizeof *p);
}
