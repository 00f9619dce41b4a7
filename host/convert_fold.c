/* SPDX-License-Identifier: Apache-2.0 */
/* Folding the rotation R of a residual stream into the two matrices at its ends (convert_fold.h), as QuaRot (arXiv:2404.00456, section 4)
 * and SpinQuant do. A stream that starts as E x and is turned by R, and ends as H diag(g) R^T of its normalized self, is the same as one with
 * rows of E R at its start and rows of H diag(g) R at its end, and no gain: R keeps the length that the norm divides by. */
#include "convert_fold.h"

#include <math.h>

static const char *const part_name[3] = {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"};

bool rq_fold_replaces(const char *tensor) {
    for (int i = 0; i < 3; ++i) {
        if (strcmp(tensor, part_name[i]) == 0) return true;
    }
    return false;
}

static rq_status put_row(unsigned char *to, const rq_fold_part *p, const float *row, int64_t n) {
    if (p->dtype == RQ_F32) {
        memcpy(to, row, (size_t)n * sizeof *row);
        return RQ_OK;
    }
    for (int64_t j = 0; j < n; ++j) {
        const rq_f16 h = rq_f16_of_f32(row[j]);
        if (!isfinite(rq_f32_of_f16(h))) {
            return rq_fail(RQ_ERR_NUMERIC, "%s: %g is too large for fp16 after the rotation; fold to f32", p->name,
                           (double)row[j]);
        }
        memcpy(to + j * (int64_t)sizeof h, &h, sizeof h);
    }
    return RQ_OK;
}

static rq_status fill(void *arg, void *dst, int64_t n_bytes) {
    rq_status status = RQ_OK;
    const rq_fold_part *p = arg;
    unsigned char *to = dst;
    const int64_t size = rq_dtype_block_bytes(p->dtype);
    float *row = NULL;
    const int64_t n = !p->rotation ? n_bytes / size : rq_rotation_size(p->rotation), n_rows = n_bytes / (n * size);
    RQ_TRY(RQ_NEW(row, n));
    for (int64_t i = 0; i < n_rows; ++i) {
        for (int64_t j = 0; j < n; ++j) row[j] = 1.0f;
        if (p->packed) rq_unpack_row(p->packed, i, row);
        if (p->dense) RQ_TRY(rq_tensor_rows_f32(p->dense, i, 1, row));
        for (int64_t j = 0; p->gain && j < n; ++j) row[j] *= p->gain[j];
        if (p->rotation) RQ_TRY(rq_rotation_apply(p->rotation, row, 1, n, false));
        RQ_TRY(put_row(to + i * n * size, p, row, n));
    }
done:
    free(row);
    return status;
}

/* The embedding (0) or the head (1), dense or packed; without a head the embedding is one. */
static rq_status find_matrix(rq_fold *f, int which, const rq_store *s, const json_t *meta, int64_t *n_rows, int64_t d) {
    rq_status status = RQ_OK;
    rq_fold_part *p = &f->part[which];
    for (int i = which; i >= 0; --i) {
        char name[40];
        snprintf(name, sizeof name, "%.*s", (int)(strlen(part_name[i]) - strlen(".weight")), part_name[i]);
        if (json_object_get(json_object_get(meta, "linears"), name)) {
            RQ_TRY(rq_container_load(&f->packed[which], s, meta, name));
            p->packed = &f->packed[which];
            *n_rows = p->packed->n_out;
            if (p->packed->n_in != d)
                RQ_FAIL(RQ_ERR_INPUT, "%s: has rows of %lld, the rotation is of %lld", name, (long long)p->packed->n_in,
                        (long long)d);
            return RQ_OK;
        }
        p->dense = rq_store_find(s, part_name[i]);
        if (!p->dense) continue;
        *n_rows = p->dense->shape[0];
        if (p->dense->rank != 2 || p->dense->shape[1] != d)
            RQ_FAIL(RQ_ERR_INPUT, "%s: is not a matrix with rows of %lld, as the rotation is", part_name[i],
                    (long long)d);
        return RQ_OK;
    }
    RQ_FAIL(RQ_ERR_INPUT, "%s: the tensor is missing", part_name[which]);
done:
    return status;
}

rq_status rq_fold_new(rq_fold *f, const rq_store *s, const json_t *meta, rq_dtype dtype) {
    rq_status status = RQ_OK;
    const json_t *r = json_object_get(meta, "rotation"), *seed = json_object_get(r, "seed"),
                 *size = json_object_get(r, "size");
    const char *kind = json_string_value(json_object_get(r, "kind"));
    const rq_tensor *norm = rq_store_find(s, part_name[2]);
    memset(f, 0, sizeof *f);
    if (!kind || !json_is_integer(seed) || !json_is_integer(size) || !norm || norm->rank != 1 ||
        norm->shape[0] != json_integer_value(size)) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: the rotation is malformed, or %s is no vector of its size", rq_store_path(s),
                part_name[2]);
    }
    const int64_t d = json_integer_value(size);
    RQ_TRY(rq_rotation_new(&f->rotation, d, (uint64_t)json_integer_value(seed), kind));
    RQ_TRY(RQ_NEW(f->gain, d));
    RQ_TRY(rq_tensor_f32(norm, f->gain));
    for (int i = 0; i < 3; ++i) {
        rq_fold_part *p = &f->part[i];
        int64_t n_rows = 0;
        snprintf(p->name, sizeof p->name, "%s", part_name[i]);
        p->dtype = i < 2 ? dtype : RQ_F32;
        if (i < 2) {
            RQ_TRY(find_matrix(f, i, s, meta, &n_rows, d));
            p->rotation = f->rotation;
            p->gain = i == 1 ? f->gain : NULL;
        }
        f->tensor[i] = (rq_out_tensor){.name = p->name,
                                       .dtype = p->dtype,
                                       .rank = i < 2 ? 2 : 1,
                                       .shape = {i < 2 ? n_rows : d, i < 2 ? d : 0},
                                       .fill = fill,
                                       .arg = p};
    }
done:
    return status;
}

void rq_fold_free(rq_fold *f) {
    rq_rotation_free(f->rotation);
    rq_packed_free(&f->packed[0]);
    rq_packed_free(&f->packed[1]);
    free(f->gain);
    memset(f, 0, sizeof *f);
}
