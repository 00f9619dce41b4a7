/* SPDX-License-Identifier: Apache-2.0 */
/* The list of peers, and what their readers and writers share (peer.h). */
#include "peer.h"

#include <math.h>

#include "model_parse.h"
#include "pack_common.h"

static const rq_peer_ops *const peers[RQ_N_PEERS] = {
#define RQ_PEER(id, name) &rq_peer_##name,
#include "peers.def"
#undef RQ_PEER
};

const rq_peer_ops *rq_peer_at(int i) { return i >= 0 && i < RQ_N_PEERS ? peers[i] : NULL; }

const rq_peer_ops *rq_peer_by_name(const char *name) {
    for (int i = 0; i < RQ_N_PEERS; ++i) {
        if (strcmp(peers[i]->name, name) == 0) return peers[i];
    }
    return NULL;
}

static const rq_peer_ops *by_method(const char *method) {
    for (int i = 0; i < RQ_N_PEERS; ++i) {
        if (peers[i]->method && strcmp(peers[i]->method, method) == 0) return peers[i];
    }
    return NULL;
}

bool rq_peer_reads(const char *method) { return by_method(method) != NULL; }

rq_status rq_peer_metadata(json_t **meta, const json_t *config, const rq_store *s) {
    const json_t *quant = json_object_get(config, "quantization_config");
    const char *method = json_string_value(json_object_get(quant, "quant_method"));
    const rq_peer_ops *peer = method ? by_method(method) : NULL;
    *meta = NULL;
    if (!peer) return RQ_OK;
    *meta = json_pack("{s:i, s:{}}", "version", 1, "linears");
    if (!*meta) return rq_fail(RQ_ERR_NOMEM, "out of memory");
    rq_status status = peer->describe(json_object_get(*meta, "linears"), quant, s);
    if (status != RQ_OK) {
        rq_fail_context(status, "%s", rq_store_path(s));
        json_decref(*meta);
        *meta = NULL;
    }
    return status;
}

/* ---- reading ---- */

bool rq_peer_module(char name[RQ_PEER_NAME], const char *tensor, const char *suffix) {
    size_t n = strlen(tensor), m = strlen(suffix);
    if (n <= m || n - m >= RQ_PEER_NAME - 64 || strcmp(tensor + n - m, suffix) != 0) return false;
    memcpy(name, tensor, n - m);
    name[n - m] = '\0';
    return true;
}

rq_status rq_peer_find(const rq_tensor **t, const rq_store *s, const char *name, const char *suffix, rq_dtype dtype,
                       int rank) {
    char full[RQ_PEER_NAME];
    int n = snprintf(full, sizeof full, "%s%s", name, suffix);
    *t = n > 0 && n < (int)sizeof full ? rq_store_find(s, full) : NULL;
    if (!*t) return rq_fail(RQ_ERR_INPUT, "%s%s: the tensor is missing", RQ_SHOW(name), suffix);
    if ((*t)->dtype != dtype || (*t)->rank != rank) {
        return rq_fail(RQ_ERR_INPUT, "%s: is %s of rank %d, should be %s of rank %d", RQ_SHOW(full),
                       rq_dtype_name((*t)->dtype), (*t)->rank, rq_dtype_name(dtype), rank);
    }
    return RQ_OK;
}

rq_status rq_peer_find_float(const rq_tensor **to, const rq_store *s, const char *name, const char *suffix, int rank,
                             const int64_t *shape) {
    char full[RQ_PEER_NAME], text[128] = "";
    snprintf(full, sizeof full, "%s%s", name, suffix);
    const rq_tensor *t = *to = rq_store_find(s, full);
    if (!t) return rq_fail(RQ_ERR_INPUT, "%s: the tensor is missing", RQ_SHOW(full));
    if (t->dtype != RQ_F16 && t->dtype != RQ_BF16 && t->dtype != RQ_F32) {
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s: is %s; F16, BF16 and F32 are read", RQ_SHOW(full),
                       rq_dtype_name(t->dtype));
    }
    if (t->rank != rank || memcmp(t->shape, shape, (size_t)rank * sizeof *shape) != 0) {
        for (int i = 0; i < rank; ++i) {
            const size_t n = strlen(text);
            snprintf(text + n, sizeof text - n, "%s%lld", i ? ", " : "", (long long)shape[i]);
        }
        return rq_fail(RQ_ERR_INPUT, "%s: is not [%s]", RQ_SHOW(full), text);
    }
    return rq_tensor_check_finite(t);
}

rq_status rq_peer_load_scales(rq_grid_parts *g, const rq_store *s, const char *name, const char *suffix, bool turned) {
    rq_status status = RQ_OK;
    const rq_tensor *t;
    float *raw = NULL, *f = NULL;
    const int64_t n_out = g->n_out, n_group = rq_ceil_div(g->n_in, g->group), n = n_out * n_group;
    bool exact = true;
    RQ_TRY(rq_peer_find_float(&t, s, name, suffix, 2,
                              turned ? (int64_t[2]){n_group, n_out} : (int64_t[2]){n_out, n_group}));
    RQ_TRY(RQ_NEW(raw, n));
    RQ_TRY(RQ_NEW(f, n));
    RQ_TRY(rq_tensor_f32(t, raw));
    for (int64_t i = 0; i < n_out; ++i) {
        for (int64_t k = 0; k < n_group; ++k) f[i * n_group + k] = raw[turned ? k * n_out + i : i * n_group + k];
    }
    for (int64_t i = 0; i < n && exact; ++i) exact = rq_f32_of_f16(rq_f16_of_f32(f[i])) == f[i];
    if (exact) {
        RQ_TRY(RQ_NEW(g->scale_f16, n));
        for (int64_t i = 0; i < n; ++i) g->scale_f16[i] = rq_f16_of_f32(f[i]);
    } else {
        g->scale_f32 = f;
        f = NULL;
    }
done:
    free(raw);
    free(f);
    return status;
}

rq_status rq_peer_int(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t fallback, int64_t *v) {
    const json_t *f = json_object_get(o, key);
    *v = fallback;
    if ((!f || json_is_null(f)) && fallback != INT64_MIN) return RQ_OK;
    if (!json_is_integer(f)) {
        return rq_fail(RQ_ERR_INPUT, "quantization_config: %s is %s", key, f ? "not an integer" : "missing");
    }
    *v = json_integer_value(f);
    if (*v < lo || *v > hi) {
        return rq_fail(RQ_ERR_UNSUPPORTED, "quantization_config: %s is %lld; %lld to %lld is read", key, (long long)*v,
                       (long long)lo, (long long)hi);
    }
    return RQ_OK;
}

/* The tensor times 2^shift in fp16, or *exact is false. */
static rq_status halves(rq_f16 **out, bool *exact, const rq_tensor *t, int shift) {
    rq_status status = RQ_OK;
    const int64_t n = rq_tensor_numel(t);
    float *f = NULL;
    rq_f16 *h = NULL;
    *out = NULL;
    *exact = true;
    RQ_TRY(RQ_NEW(f, n));
    RQ_TRY(RQ_NEW(h, n));
    RQ_TRY(rq_tensor_f32(t, f));
    for (int64_t i = 0; i < n && *exact; ++i) {
        const float v = ldexpf(f[i], shift);
        h[i] = rq_f16_of_f32(v);
        *exact = rq_f32_of_f16(h[i]) == v && ldexpf(v, -shift) == f[i];
    }
    if (*exact) {
        *out = h;
        h = NULL;
    }
done:
    free(f);
    free(h);
    return status;
}

rq_status rq_peer_halves(rq_peer_floats *f, const char *name) {
    rq_status status = RQ_OK;
    const rq_tensor *t[3] = {f->book[0], f->n_book > 1 ? f->book[1] : NULL, f->factor};
    rq_f16 **to[3] = {&f->book_f16[0], &f->book_f16[1], &f->factor_f16};
    const int most = f->factor ? 15 : 0;
    for (int i = 0; i < 3; ++i) *to[i] = NULL;
    for (int k = 0; k <= 2 * most; ++k) {
        const int shift = k % 2 ? (k + 1) / 2 : -k / 2; /* 0, 1, -1, 2, ... */
        bool all = true, exact;
        for (int i = 0; i < 3 && all; ++i) {
            if (!t[i]) continue;
            RQ_TRY(halves(to[i], &exact, t[i], i < 2 ? shift : -shift));
            all = exact;
        }
        if (all) return RQ_OK;
        for (int i = 0; i < 3; ++i) {
            free(*to[i]);
            *to[i] = NULL;
        }
    }
    RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: its codebooks are not exact in fp16, whatever power of two moves to the scales",
            name);
done:
    for (int i = 0; i < 3 && status != RQ_OK; ++i) {
        free(*to[i]);
        *to[i] = NULL;
    }
    return status;
}

/* ---- writing ---- */

void rq_peer_row_codes(uint8_t *codes, const rq_grid *g, int64_t row) {
    for (int64_t j = 0; j < g->n_in; ++j) codes[g->perm ? g->perm[j] : j] = (uint8_t)rq_grid_code(g, row, j);
}

rq_status rq_peer_groups(int32_t **groups, const rq_grid *g) {
    *groups = NULL;
    if (!g->perm) return RQ_OK;
    rq_status status = RQ_NEW(*groups, g->n_in);
    for (int64_t j = 0; j < g->n_in && status == RQ_OK; ++j) (*groups)[g->perm[j]] = (int32_t)(j / g->group);
    return status;
}

rq_status rq_peer_check_grid(const char *name, const rq_packed *p, const char *peer) {
    if (p->format == RQ_FORMAT_GRID) return RQ_OK;
    return rq_fail(RQ_ERR_UNSUPPORTED,
                   "%s: is packed as %s; %s has integer grids with a scale and a zero point a group", name,
                   rq_format_get(p->format)->name, peer);
}

rq_status rq_peer_give4(rq_packed_file *f, const char *name, const char *suffix, const int64_t shape[4],
                        rq_f16 *memory) {
    rq_status status = rq_pack_give(f, name, suffix, RQ_F16, shape, memory);
    if (status != RQ_OK) return status;
    rq_out_tensor *t = &f->tensor[f->n_tensors - 1];
    t->rank = 4;
    t->shape[3] = shape[3];
    return RQ_OK;
}

rq_status rq_peer_check_f16(const char *name, const rq_grid *g, const char *peer) {
    for (int64_t i = 0; !g->scale_f16 && i < g->n_out * g->n_group; ++i) {
        const float s = g->scale_f32[i];
        if (rq_f32_of_f16(rq_f16_of_f32(s)) == s) continue;
        return rq_fail(RQ_ERR_UNSUPPORTED,
                       "%s: scale %.9g of row %lld, group %lld is no float16, which %s stores (quantize with "
                       "--scale-dtype f16)",
                       name, (double)s, (long long)(i / g->n_group), (long long)(i % g->n_group), peer);
    }
    return RQ_OK;
}

json_t *rq_peer_grid_settings(const rq_grid *g) {
    return json_pack("{s:i, s:I, s:b, s:b, s:b}", "bits", g->bits, "group", (json_int_t)g->group, "whole",
                     g->n_group == 1, "sym", g->zero == NULL, "act_order", g->perm != NULL);
}

int64_t rq_peer_common_group(const json_t *settings) {
    const char *name, *other;
    json_t *v, *w;
    int64_t best = -1, best_count = 0;
    json_object_foreach((json_t *)(uintptr_t)settings, name, v) {
        int64_t count = 0;
        const json_int_t group = json_integer_value(json_object_get(v, "group"));
        if (json_is_true(json_object_get(v, "whole")) || group == best) continue;
        json_object_foreach((json_t *)(uintptr_t)settings, other, w) {
            count +=
                json_is_false(json_object_get(w, "whole")) && json_integer_value(json_object_get(w, "group")) == group;
        }
        if (count > best_count) {
            best = group;
            best_count = count;
        }
    }
    return best;
}

int64_t rq_peer_group(const json_t *of_matrix, int64_t common) {
    const int64_t group = json_integer_value(json_object_get(of_matrix, "group"));
    return json_is_true(json_object_get(of_matrix, "whole")) && group != common ? -1 : group;
}
