/* SPDX-License-Identifier: Apache-2.0 */
/* Integer grid codes: the bit stream of fmt_grid.h, its tensors on disk, and the run-time form.
 *
 * On disk this is the `pack-quantized` layout of compressed-tensors (0.18 and later: a dense stream for every width):
 * codes along each row, zero points as a stream down each column of [n_out] (one stream per group). docs/formats.md. */
#include <jansson.h>
#include <math.h>

#include "pack_common.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are used as they are in the file");

enum { ROWS_PER_ITEM = 64, MAP_PAGE = 4096 };

/* ---- definition and size ---------------------------------------------------------------------------------------------- */

static void unpack_row(const rq_packed *p, int64_t row, float *dst) {
    const rq_grid *g = &p->u.grid;
    for (int64_t j = 0; j < g->n_in; ++j) {
        int64_t group = j / g->group;
        int level = (int)rq_grid_code(g, row, j) - rq_grid_zero(g, row, group);
        dst[g->perm ? g->perm[j] : j] = rq_grid_scale(g, row, group) * (float)level;
    }
}

static int64_t zero_words(int64_t n_out, int bits) { return rq_grid_row_words(n_out, bits); }

/* Every tensor of the matrix in the file, padding of the streams and the shape included. */
static int64_t size_bits(const rq_packed *p) {
    const rq_grid *g = &p->u.grid;
    int64_t total = g->n_out * g->row_words * 32 + 2 * 64;
    total += g->n_out * g->n_group * (g->scale_f16 ? 16 : 32);
    if (g->zero) total += zero_words(g->n_out, g->bits) * g->n_group * 32;
    if (g->perm) total += g->n_in * 32;
    return total;
}

/* ---- checks shared by packing and loading ----------------------------------------------------------------------------- */

rq_status rq_grid_sizes(const char *name, rq_status code, int64_t n_out, int64_t n_in, int bits, int64_t group) {
    int64_t n;
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
        return rq_fail(code, "%s: %d bits; a grid has 2, 3, 4 or 8", name, bits);
    }
    if (n_out < 1 || n_in < 1 || n_out > INT32_MAX || n_in > INT32_MAX || !rq_mul_size(n_out, n_in, &n) ||
        n > INT64_MAX / 64) {
        return rq_fail(code, "%s: impossible shape [%lld, %lld]", name, (long long)n_out, (long long)n_in);
    }
    if (group < 1 || group > n_in) {
        return rq_fail(code, "%s: group %lld is not in 1 .. %lld (input features)", name, (long long)group,
                       (long long)n_in);
    }
    return RQ_OK;
}

/* perm: the columns in stable order of their group. Group k must hold exactly the columns that a matrix sorted by group
 * has at [k * group, (k + 1) * group). */
static rq_status sort_by_group(int32_t *perm, const char *name, const int32_t *g_idx, int64_t n_in, int64_t group,
                               rq_status range_code) {
    rq_status status = RQ_OK;
    int64_t n_group = rq_ceil_div(n_in, group), *next = NULL;
    RQ_TRY(RQ_NEW(next, n_group));
    for (int64_t k = 0; k < n_group; ++k) next[k] = k * group;
    for (int64_t j = 0; j < n_in; ++j) {
        int64_t k = g_idx[j];
        if (k < 0 || k >= n_group) {
            RQ_FAIL(range_code, "%s: column %lld is in group %lld of %lld", name, (long long)j, (long long)k,
                    (long long)n_group);
        }
        if (next[k] == rq_min_i64(n_in, (k + 1) * group)) {
            RQ_FAIL(RQ_ERR_UNSUPPORTED,
                    "%s: group %lld has more than its %lld columns; groups must be equal but the last", name,
                    (long long)k, (long long)(rq_min_i64(n_in, (k + 1) * group) - k * group));
        }
        perm[next[k]++] = (int32_t)j;
    }
done: /* n_in columns in groups that cannot overflow fill every group */
    free(next);
    return status;
}

static rq_status check_codes(const rq_grid_codes *q, const char *name) {
    rq_status status = RQ_OK;
    RQ_TRY(rq_grid_sizes(name, RQ_ERR_ARG, q->n_out, q->n_in, q->bits, q->group));
    if (!q->codes || !q->scale) RQ_FAIL(RQ_ERR_ARG, "%s: codes or scales are missing", name);
    if (q->n_group != rq_ceil_div(q->n_in, q->group)) {
        RQ_FAIL(RQ_ERR_ARG, "%s: %lld groups do not cover %lld columns by %lld", name, (long long)q->n_group,
                (long long)q->n_in, (long long)q->group);
    }
    if (q->scale_dtype != RQ_F16 && q->scale_dtype != RQ_F32) {
        RQ_FAIL(RQ_ERR_ARG, "%s: scales are stored as F16 or F32", name);
    }
    unsigned any = 0;
    for (int64_t i = 0; i < q->n_out * q->n_in; ++i) any |= q->codes[i];
    if (any >> q->bits) RQ_FAIL(RQ_ERR_ARG, "%s: a code needs more than %d bits", name, q->bits);
    for (int64_t i = 0; i < q->n_out * q->n_group; ++i) {
        float s = q->scale[i];
        if (!isfinite(s) || (q->scale_dtype == RQ_F16 && rq_f32_of_f16(rq_f16_of_f32(s)) != s)) {
            RQ_FAIL(RQ_ERR_NUMERIC, "%s: scale %g of row %lld, group %lld is not a finite %s", name, (double)s,
                    (long long)(i / q->n_group), (long long)(i % q->n_group),
                    q->scale_dtype == RQ_F16 ? "float16" : "float32");
        }
        if (q->zero && q->zero[i] >> q->bits) {
            RQ_FAIL(RQ_ERR_ARG, "%s: zero point %d needs more than %d bits", name, q->zero[i], q->bits);
        }
    }
done:
    return status;
}

/* ---- packing ---------------------------------------------------------------------------------------------------------- */

typedef struct pack_job {
    uint32_t *words;
    int64_t n_out, n_in, row_words;
    int bits;
    const uint8_t *codes;        /* one byte each, or */
    const unsigned char *packed; /* a stream in file order */
    const int32_t *perm;         /* stored column j takes source column perm[j]; NULL: the same order */
} pack_job;

static void pack_body(void *arg, int64_t item) {
    const pack_job *j = arg;
    int64_t end = rq_min_i64(j->n_out, (item + 1) * ROWS_PER_ITEM);
    for (int64_t i = item * ROWS_PER_ITEM; i < end; ++i) {
        uint32_t *row = j->words + i * j->row_words;
        for (int64_t k = 0; k < j->n_in; ++k) {
            int64_t from = j->perm ? j->perm[k] : k;
            uint32_t v = j->codes ? j->codes[i * j->n_in + from]
                                  : rq_get_code(j->packed + i * j->row_words * 4, 1, from, j->bits);
            rq_put_code(row, 1, k, j->bits, v);
        }
    }
}

/* Allocates and fills words[n_out][row_words] and one zero word after them (kernels may read 4 bytes past the end). */
static rq_status pack_words(uint32_t **out, pack_job *j) {
    rq_status status = RQ_OK;
    j->row_words = rq_grid_row_words(j->n_in, j->bits);
    RQ_TRY(RQ_NEW_ZERO(j->words, j->n_out * j->row_words + 1));
    rq_parallel_for(rq_ceil_div(j->n_out, ROWS_PER_ITEM), pack_body, j);
    *out = j->words;
done:
    return status;
}

static rq_status pack_scales(void **out, const rq_grid_codes *q) {
    rq_status status = RQ_OK;
    int64_t n = q->n_out * q->n_group;
    RQ_TRY(rq_alloc(out, n, q->scale_dtype == RQ_F16 ? sizeof(rq_f16) : sizeof(float)));
    for (int64_t i = 0; i < n; ++i) {
        if (q->scale_dtype == RQ_F16)
            ((rq_f16 *)*out)[i] = rq_f16_of_f32(q->scale[i]);
        else
            ((float *)*out)[i] = q->scale[i];
    }
done:
    return status;
}

static rq_status pack_zeros(uint32_t **out, const rq_grid_codes *q, int64_t n_words) {
    rq_status status = RQ_NEW_ZERO(*out, n_words * q->n_group);
    for (int64_t i = 0; i < q->n_out && status == RQ_OK; ++i) {
        for (int64_t k = 0; k < q->n_group; ++k) {
            rq_put_code(*out + k, q->n_group, i, q->bits, q->zero[i * q->n_group + k]);
        }
    }
    return status;
}

rq_status rq_grid_pack_file(rq_packed_file *f, const char *name, const rq_grid_codes *q) {
    rq_status status = RQ_OK;
    uint32_t *words, *zeros;
    int64_t *shape;
    int32_t *g_idx, *perm = NULL;
    void *scales;
    memset(f, 0, sizeof *f);
    RQ_TRY(check_codes(q, name));
    pack_job j = {NULL, q->n_out, q->n_in, 0, q->bits, q->codes, NULL, NULL};
    RQ_TRY(pack_words(&words, &j));
    f->memory[f->n_memory++] = words;
    RQ_TRY(rq_pack_add(f, name, ".weight_packed", RQ_I32, (int64_t[3]){q->n_out, j.row_words}, words));
    RQ_TRY(pack_scales(&scales, q));
    f->memory[f->n_memory++] = scales;
    RQ_TRY(rq_pack_add(f, name, ".weight_scale", q->scale_dtype, (int64_t[3]){q->n_out, q->n_group}, scales));
    RQ_TRY(rq_pack_new_shape(f, &shape, q->n_out, q->n_in));
    RQ_TRY(rq_pack_add(f, name, ".weight_shape", RQ_I64, (int64_t[3]){2}, shape));
    if (q->zero) {
        int64_t n_words = zero_words(q->n_out, q->bits);
        RQ_TRY(pack_zeros(&zeros, q, n_words));
        f->memory[f->n_memory++] = zeros;
        RQ_TRY(rq_pack_add(f, name, ".weight_zero_point", RQ_I32, (int64_t[3]){n_words, q->n_group}, zeros));
    }
    if (q->g_idx) {
        RQ_TRY(RQ_NEW(perm, q->n_in)); /* only to refuse what could not be loaded again */
        RQ_TRY(sort_by_group(perm, name, q->g_idx, q->n_in, q->group, RQ_ERR_ARG));
        RQ_TRY(RQ_NEW(g_idx, q->n_in));
        f->memory[f->n_memory++] = g_idx;
        memcpy(g_idx, q->g_idx, (size_t)q->n_in * sizeof *g_idx);
        RQ_TRY(rq_pack_add(f, name, ".weight_g_idx", RQ_I32, (int64_t[3]){q->n_in}, g_idx));
    }
done:
    free(perm);
    if (status != RQ_OK) rq_packed_file_free(f);
    return status;
}

static void describe(rq_packed *p, int64_t n_out, int64_t n_in, int bits, int64_t group) {
    memset(p, 0, sizeof *p);
    p->format = RQ_FORMAT_GRID;
    p->n_out = n_out;
    p->n_in = n_in;
    rq_grid *g = &p->u.grid;
    g->n_out = n_out;
    g->n_in = n_in;
    g->bits = bits;
    g->group = group;
    g->n_group = rq_ceil_div(n_in, group);
    g->row_words = rq_grid_row_words(n_in, bits);
}

rq_status rq_grid_pack(rq_packed *p, const rq_grid_codes *q) {
    rq_status status = RQ_OK;
    const char *name = "rq_grid_pack";
    memset(p, 0, sizeof *p);
    RQ_TRY(check_codes(q, name));
    describe(p, q->n_out, q->n_in, q->bits, q->group);
    rq_grid *g = &p->u.grid;
    int32_t *perm = NULL;
    uint32_t *words;
    uint8_t *zero;
    void *scales;
    if (q->g_idx) {
        RQ_TRY(RQ_NEW(perm, q->n_in));
        g->perm = rq_pack_own(p, perm);
        RQ_TRY(sort_by_group(perm, name, q->g_idx, q->n_in, q->group, RQ_ERR_ARG));
    }
    pack_job j = {NULL, q->n_out, q->n_in, 0, q->bits, q->codes, NULL, perm};
    RQ_TRY(pack_words(&words, &j));
    g->words = rq_pack_own(p, words);
    RQ_TRY(pack_scales(&scales, q));
    rq_pack_own(p, scales);
    if (q->scale_dtype == RQ_F16)
        g->scale_f16 = scales;
    else
        g->scale_f32 = scales;
    if (q->zero) {
        RQ_TRY(RQ_NEW(zero, q->n_out * q->n_group));
        g->zero = rq_pack_own(p, zero);
        memcpy(zero, q->zero, (size_t)(q->n_out * q->n_group));
    }
done:
    if (status != RQ_OK) rq_packed_free(p);
    return status;
}

/* ---- loading ---------------------------------------------------------------------------------------------------------- */

/* Whether 4 bytes after the tensor can be read: the rest of its last page can, and the tensor behind it in the file. */
static bool readable_past_end(const rq_store *s, const rq_tensor *t) {
    uintptr_t end = (uintptr_t)t->data + (uintptr_t)t->n_bytes;
    if ((end - 1) / MAP_PAGE == (end + 3) / MAP_PAGE) return true;
    for (int64_t i = 0, n = rq_store_count(s); i < n; ++i) {
        const rq_tensor *next = rq_store_at(s, i);
        if ((uintptr_t)next->data == end && next->n_bytes >= 4) return true;
    }
    return false;
}

static rq_status load_words(rq_packed *p, const rq_store *s, const rq_tensor *t) {
    rq_grid *g = &p->u.grid;
    uint32_t *words;
    rq_status status = RQ_OK;
    if (g->perm) { /* sort the columns by group: codes move, so the words are ours */
        pack_job j = {NULL, g->n_out, g->n_in, 0, g->bits, NULL, t->data, g->perm};
        RQ_TRY(pack_words(&words, &j));
        g->words = rq_pack_own(p, words);
    } else if ((uintptr_t)t->data % sizeof(uint32_t) == 0 && readable_past_end(s, t)) {
        g->words = t->data;
    } else {
        RQ_TRY(RQ_NEW(words, g->n_out * g->row_words + 1));
        g->words = rq_pack_own(p, words);
        memcpy(words, t->data, (size_t)t->n_bytes);
        words[g->n_out * g->row_words] = 0;
    }
done:
    return status;
}

static rq_status check_scales(const rq_grid *g, const char *name) {
    for (int64_t i = 0; i < g->n_out; ++i) {
        for (int64_t k = 0; k < g->n_group; ++k) {
            if (!isfinite(rq_grid_scale(g, i, k))) {
                return rq_fail(RQ_ERR_INPUT, "%s.weight_scale: row %lld, group %lld is not a finite number", name,
                               (long long)i, (long long)k);
            }
        }
    }
    return RQ_OK;
}

static rq_status load_scales(rq_packed *p, const char *name, const rq_tensor *t) {
    rq_status status = RQ_OK;
    rq_grid *g = &p->u.grid;
    const void *data = t->data;
    bool half = t->dtype == RQ_F16;
    size_t size = half ? sizeof(rq_f16) : sizeof(float);
    if ((uintptr_t)data % size != 0) {
        void *copy;
        RQ_TRY(rq_alloc(&copy, g->n_out * g->n_group, size));
        memcpy(rq_pack_own(p, copy), data, (size_t)t->n_bytes);
        data = copy;
    }
    if (half)
        g->scale_f16 = data;
    else
        g->scale_f32 = data;
    RQ_TRY(check_scales(g, name));
done:
    return status;
}

static rq_status load_zeros(rq_packed *p, const rq_tensor *t) {
    rq_grid *g = &p->u.grid;
    uint8_t *zero;
    rq_status status = RQ_NEW(zero, g->n_out * g->n_group);
    if (status != RQ_OK) return status;
    g->zero = rq_pack_own(p, zero);
    for (int64_t i = 0; i < g->n_out; ++i) {
        for (int64_t k = 0; k < g->n_group; ++k) {
            zero[i * g->n_group + k] =
                (uint8_t)rq_get_code((const unsigned char *)t->data + k * 4, g->n_group, i, g->bits);
        }
    }
    return RQ_OK;
}

static rq_status load_groups(rq_packed *p, const char *name, const rq_tensor *t) {
    rq_status status = RQ_OK;
    rq_grid *g = &p->u.grid;
    int32_t *g_idx = NULL, *perm;
    RQ_TRY(RQ_NEW(g_idx, g->n_in));
    memcpy(g_idx, t->data, (size_t)t->n_bytes);
    RQ_TRY(RQ_NEW(perm, g->n_in));
    g->perm = rq_pack_own(p, perm);
    RQ_TRY(sort_by_group(perm, name, g_idx, g->n_in, g->group, RQ_ERR_INPUT));
done:
    free(g_idx);
    return status;
}

rq_status rq_grid_load(rq_packed *p, const rq_store *s, const char *name, int bits, int64_t group, bool sym) {
    rq_status status = RQ_OK;
    const rq_tensor *t;
    int64_t shape[2];
    memset(p, 0, sizeof *p);
    RQ_TRY(rq_pack_find(&t, s, name, ".weight_shape", RQ_I64, (int64_t[3]){2}));
    memcpy(shape, t->data, sizeof shape);
    RQ_TRY(rq_grid_sizes(name, RQ_ERR_INPUT, shape[0], shape[1], bits, group));
    describe(p, shape[0], shape[1], bits, group);
    rq_grid *g = &p->u.grid;
    if (rq_pack_has(s, name, ".weight_g_idx")) {
        RQ_TRY(rq_pack_find(&t, s, name, ".weight_g_idx", RQ_I32, (int64_t[3]){g->n_in}));
        RQ_TRY(load_groups(p, name, t));
    }
    RQ_TRY(rq_pack_find(&t, s, name, ".weight_packed", RQ_I32, (int64_t[3]){g->n_out, g->row_words}));
    RQ_TRY(load_words(p, s, t));
    /* The dtype of the scales is the file's choice among two. */
    if (rq_pack_find(&t, s, name, ".weight_scale", RQ_F16, (int64_t[3]){g->n_out, g->n_group}) != RQ_OK) {
        RQ_TRY(rq_pack_find(&t, s, name, ".weight_scale", RQ_F32, (int64_t[3]){g->n_out, g->n_group}));
    }
    RQ_TRY(load_scales(p, name, t));
    if (!sym) {
        RQ_TRY(rq_pack_find(&t, s, name, ".weight_zero_point", RQ_I32,
                            (int64_t[3]){zero_words(g->n_out, bits), g->n_group}));
        RQ_TRY(load_zeros(p, t));
    } else if (rq_pack_has(s, name, ".weight_zero_point")) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: described as symmetric, but has zero points", name);
    }
done:
    if (status != RQ_OK) rq_packed_free(p);
    return status;
}

rq_status rq_grid_take(rq_packed *p, const char *name, const rq_grid_parts *from, rq_status so_far) {
    rq_status status = so_far;
    int32_t *perm;
    void *const given[] = {from->words, from->scale_f16, from->scale_f32, from->zero};
    memset(p, 0, sizeof *p);
    if (status == RQ_OK) status = rq_grid_sizes(name, RQ_ERR_INPUT, from->n_out, from->n_in, from->bits, from->group);
    if (status == RQ_OK) describe(p, from->n_out, from->n_in, from->bits, from->group);
    for (int i = 0; i < 4; ++i) rq_pack_own(p, given[i]);
    RQ_TRY(status);
    rq_grid *g = &p->u.grid;
    g->words = from->words;
    g->scale_f16 = from->scale_f16;
    g->scale_f32 = from->scale_f32;
    RQ_TRY(check_scales(g, name));
    for (int64_t i = 0; from->zero && i < g->n_out * g->n_group; ++i) {
        if (from->zero[i] != 1 << (g->bits - 1)) g->zero = from->zero; /* else it is symmetric */
    }
    if (from->g_idx) {
        RQ_TRY(RQ_NEW(perm, g->n_in));
        g->perm = rq_pack_own(p, perm);
        RQ_TRY(sort_by_group(perm, name, from->g_idx, g->n_in, g->group, RQ_ERR_INPUT));
        uint32_t *words;
        pack_job j = {NULL, g->n_out, g->n_in, 0, g->bits, NULL, (const unsigned char *)from->words, perm};
        RQ_TRY(pack_words(&words, &j));
        g->words = words;
        free(from->words);
        p->owned[0] = words;
    }
done:
    if (status != RQ_OK) rq_packed_free(p);
    return status;
}

/* The metadata's entry: {"format": "grid", "bits": 3, "group": 128, "sym": false}. */
static rq_status load(rq_packed *p, const rq_store *s, const char *name, const void *json_entry) {
    json_error_t error;
    int bits, sym;
    json_int_t group;
    memset(p, 0, sizeof *p);
    if (json_unpack_ex((json_t *)json_entry, &error, 0, "{s:i, s:I, s:b}", "bits", &bits, "group", &group, "sym",
                       &sym) != 0) {
        return rq_fail(RQ_ERR_INPUT, "%s: its description in the metadata is malformed: %s", name, error.text);
    }
    return rq_grid_load(p, s, name, bits, (int64_t)group, sym != 0);
}

static void inspect(const rq_packed *p, void *json_object) {
    const rq_grid *g = &p->u.grid;
    int64_t count[256] = {0};
    rq_pack_usage u = {.count = count, .n_codes = 1 << g->bits};
    json_t *to = json_object;
    char text[80];
    for (int64_t i = 0; i < g->n_out; ++i) {
        for (int64_t j = 0; j < g->n_in; ++j) ++count[rq_grid_code(g, i, j)];
        for (int64_t k = 0; k < g->n_group; ++k) rq_pack_count_scale(&u, rq_grid_scale(g, i, k));
    }
    json_object_set_new(to, "bits", json_integer(g->bits));
    json_object_set_new(to, "group", json_integer(g->group));
    json_object_set_new(to, "sym", json_boolean(g->zero == NULL));
    json_object_set_new(to, "act_order_groups", json_boolean(g->perm != NULL));
    snprintf(text, sizeof text, "%d bits group %lld %s", g->bits, (long long)g->group, g->zero ? "asym" : "sym");
    rq_pack_report(&u, to, text);
}

const rq_format_ops rq_format_grid = {"grid", unpack_row, size_bits, load, inspect};
