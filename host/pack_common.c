/* SPDX-License-Identifier: Apache-2.0 */
/* What the packers share (pack_common.h). */
#include "pack_common.h"

#include <jansson.h>
#include <math.h>

void *rq_pack_own(rq_packed *p, void *memory) { return p->owned[p->n_owned++] = memory; }

rq_status rq_pack_add(rq_packed_file *f, const char *name, const char *suffix, rq_dtype dtype, const int64_t shape[3],
                      void *data) {
    size_t len = strlen(name), more = strlen(suffix) + 1;
    char *full = NULL;
    rq_status status = RQ_NEW(full, (int64_t)(len + more));
    if (status != RQ_OK) return status;
    memcpy(full, name, len);
    memcpy(full + len, suffix, more);
    f->memory[f->n_memory++] = full;
    rq_out_tensor *t = &f->tensor[f->n_tensors++];
    *t = (rq_out_tensor){full, dtype, shape[2] ? 3 : shape[1] ? 2 : 1, {0}, rq_fill_from_memory, data};
    memcpy(t->shape, shape, 3 * sizeof *shape);
    return RQ_OK;
}

rq_status rq_pack_give(rq_packed_file *f, const char *name, const char *suffix, rq_dtype dtype, const int64_t shape[3],
                       void *memory) {
    f->memory[f->n_memory++] = memory;
    return rq_pack_add(f, name, suffix, dtype, shape, memory);
}

rq_status rq_pack_add_parts(rq_packed_file *f, const char *name, const rq_pack_part *part, size_t n) {
    rq_status status = RQ_OK;
    for (size_t i = 0; i < n; ++i) {
        if (!part[i].data) continue;
        void *data = (void *)(uintptr_t)part[i].data; /* rq_out_tensor has one pointer for all uses */
        RQ_TRY(rq_pack_add(f, name, part[i].suffix, part[i].dtype, part[i].shape, data));
    }
done:
    return status;
}

rq_status rq_pack_new_shape(rq_packed_file *f, int64_t **shape, int64_t n_out, int64_t n_in) {
    rq_status status = RQ_NEW(*shape, 2);
    if (status != RQ_OK) return status;
    f->memory[f->n_memory++] = *shape;
    (*shape)[0] = n_out;
    (*shape)[1] = n_in;
    return RQ_OK;
}

rq_status rq_pack_end(rq_packed_file *f, rq_packed *p, const char *name, rq_status status) {
    while (status == RQ_OK && p->n_owned > 0) f->memory[f->n_memory++] = p->owned[--p->n_owned];
    rq_packed_free(p);
    if (status != RQ_OK) {
        rq_fail_context(status, "%s", name);
        rq_packed_file_free(f);
    }
    return status;
}

void rq_packed_file_free(rq_packed_file *f) {
    while (f->n_memory > 0) free(f->memory[--f->n_memory]);
    memset(f, 0, sizeof *f);
}

static const rq_tensor *find(const rq_store *s, const char *name, const char *suffix, char full[1024]) {
    int n = snprintf(full, 1024, "%s%s", name, suffix);
    return n > 0 && n < 1024 ? rq_store_find(s, full) : NULL;
}

bool rq_pack_has(const rq_store *s, const char *name, const char *suffix) {
    char full[1024];
    return find(s, name, suffix, full) != NULL;
}

static void print_shape(char text[80], const int64_t *shape, int rank) {
    int n = snprintf(text, 80, "[");
    for (int i = 0; i < rank && n < 60; ++i)
        n += snprintf(text + n, 80 - (size_t)n, "%s%lld", i ? ", " : "", (long long)shape[i]);
    snprintf(text + n, 80 - (size_t)n, "]");
}

rq_status rq_pack_find(const rq_tensor **t, const rq_store *s, const char *name, const char *suffix, rq_dtype dtype,
                       const int64_t shape[3]) {
    char full[1024], have[80], want[80];
    int rank = shape[2] ? 3 : shape[1] ? 2 : 1;
    *t = find(s, name, suffix, full);
    if (!*t) return rq_fail(RQ_ERR_INPUT, "%s: the tensor is missing", full);
    const rq_tensor *x = *t;
    if (x->dtype != dtype) {
        return rq_fail(RQ_ERR_INPUT, "%s: is %s, should be %s", full, rq_dtype_name(x->dtype), rq_dtype_name(dtype));
    }
    if (x->rank != rank || memcmp(x->shape, shape, (size_t)rank * sizeof *shape) != 0) {
        print_shape(have, x->shape, x->rank);
        print_shape(want, shape, rank);
        return rq_fail(RQ_ERR_INPUT, "%s: its shape %s does not fit %s", full, have, want);
    }
    return RQ_OK;
}

rq_status rq_pack_aligned(const void **data, rq_packed *p, const rq_tensor *t, size_t size) {
    void *copy;
    *data = t->data;
    if ((uintptr_t)t->data % size == 0) return RQ_OK;
    rq_status status = rq_alloc(&copy, t->n_bytes, 1);
    if (status != RQ_OK) return status;
    memcpy(rq_pack_own(p, copy), t->data, (size_t)t->n_bytes);
    *data = copy;
    return RQ_OK;
}

rq_status rq_pack_load(const void **to, rq_packed *p, const rq_store *s, const char *name, const char *suffix,
                       rq_dtype dtype, const int64_t shape[3]) {
    const rq_tensor *t;
    rq_status status = rq_pack_find(&t, s, name, suffix, dtype, shape);
    return status == RQ_OK ? rq_pack_aligned(to, p, t, (size_t)rq_dtype_block_bytes(dtype)) : status;
}

rq_status rq_pack_copy(const void **to, rq_packed *p, const void *from, int64_t n_bytes) {
    void *memory;
    rq_status status = rq_alloc(&memory, n_bytes, 1);
    if (status != RQ_OK) return status;
    *to = memcpy(rq_pack_own(p, memory), from, (size_t)n_bytes);
    return RQ_OK;
}

rq_status rq_pack_f16(const rq_f16 **to, rq_packed *p, const float *scale, int64_t n) {
    rq_f16 *half;
    rq_status status = RQ_NEW(half, n);
    if (status != RQ_OK) return status;
    *to = rq_pack_own(p, half);
    for (int64_t i = 0; i < n; ++i) {
        half[i] = rq_f16_of_f32(scale[i]);
        if (rq_f32_of_f16(half[i]) != scale[i] || !isfinite(scale[i])) {
            return rq_fail(RQ_ERR_NUMERIC, "scale %lld is %g, not a finite float16", (long long)i, (double)scale[i]);
        }
    }
    return RQ_OK;
}

void rq_pack_share(rq_packed *p, int64_t bits, bool own, int64_t n_users) {
    p->shared_bits = bits / n_users + (own ? bits % n_users : 0);
}

void rq_pack_count_scale(rq_pack_usage *u, float scale) {
    u->scale_min = u->n_scale && u->scale_min < scale ? u->scale_min : scale;
    u->scale_max = u->n_scale && u->scale_max > scale ? u->scale_max : scale;
    u->scale_sum += (double)scale;
    ++u->n_scale;
}

void rq_pack_report(const rq_pack_usage *u, void *json_object, const char *summary) {
    json_t *to = json_object, *counts = json_array();
    int64_t n_dead = 0, n = 0;
    double entropy = 0; /* of the codes: what a perfect entropy coder would spend on one */
    char text[256];
    for (int64_t c = 0; c < u->n_codes; ++c) {
        json_array_append_new(counts, json_integer(u->count[c]));
        n_dead += u->count[c] == 0;
        n += u->count[c];
    }
    for (int64_t c = 0; c < u->n_codes; ++c) {
        double f = (double)u->count[c] / (double)n;
        if (u->count[c]) entropy -= f * log2(f);
    }
    json_object_set_new(to, "code_use", counts);
    json_object_set_new(to, "dead_codes", json_integer(n_dead));
    json_object_set_new(to, "code_entropy_bits", json_real(entropy));
    json_object_set_new(to, "scale_min", json_real((double)u->scale_min));
    json_object_set_new(to, "scale_max", json_real((double)u->scale_max));
    json_object_set_new(to, "scale_mean", json_real(u->scale_sum / (double)u->n_scale));
    snprintf(text, sizeof text, "%s, %lld dead, entropy %.2f, scale %.3g..%.3g", summary, (long long)n_dead, entropy,
             (double)u->scale_min, (double)u->scale_max);
    json_object_set_new(to, "summary", json_string(text));
}
