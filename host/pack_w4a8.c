/* SPDX-License-Identifier: Apache-2.0 */
/* 4-bit weights for 8-bit activations: the layout of fmt_w4a8.h, its tensors on disk (docs/formats.md), and the run-time form. */
#include <jansson.h>
#include <math.h>

#include "act_hadamard.h"
#include "pack_common.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are used as they are in the file");

enum { LEVELS = 16 };

/* ---- definition and size ---------------------------------------------------------------------------------------------- */

/* Each operation rounds once: scale * level, times in_scale, then those of the transposed Hadamard matrix, since w (H x) = (w H) x. */
static void unpack_row(const rq_packed *p, int64_t row, float *dst) {
    const rq_w4a8 *w = &p->u.w4a8;
    for (int64_t j = 0; j < w->n_in; ++j) {
        dst[j] = w->scale[row] * (float)rq_w4a8_level(w, row, j);
        if (w->in_scale) dst[j] *= w->in_scale[j];
    }
    if (w->hadamard) rq_hadamard_apply(&w->online[1], dst, w->n_in);
}

/* Every tensor of the matrix in the file, padding of the rows and the shape included. */
static int64_t size_bits(const rq_packed *p) {
    const rq_w4a8 *w = &p->u.w4a8;
    int64_t total = w->n_out * (w->row_words * 32 + 32) + 2 * 64;
    total += w->n_out * w->n_group * 16;
    if (w->zero) total += w->n_out * 8;
    if (w->in_scale) total += w->n_in * 32;
    return total;
}

void rq_w4a8_input(const rq_w4a8 *w, float *x, int64_t n_tok) {
    for (int64_t t = 0; t < n_tok; ++t, x += w->n_in) {
        if (w->hadamard) rq_hadamard_apply(&w->online[0], x, w->n_in);
        for (int64_t j = 0; w->in_scale && j < w->n_in; ++j) x[j] *= w->in_scale[j];
    }
}

/* ---- checks shared by packing and loading ----------------------------------------------------------------------------- */

/* Sizes, before anything is allocated; fills the counts that follow from them. */
rq_status rq_w4a8_sizes(rq_w4a8 *w, const char *name, rq_status code) {
    if (w->n_out < 1 || w->n_in < 1 || w->n_out > INT32_MAX || w->n_in > INT32_MAX) {
        return rq_fail(code, "%s: impossible shape [%lld, %lld]", name, (long long)w->n_out, (long long)w->n_in);
    }
    if (w->n_in > RQ_W4A8_MAX_COLS) {
        return rq_fail(code == RQ_ERR_INPUT ? RQ_ERR_UNSUPPORTED : code,
                       "%s: %lld input features; sums of more than %d products may leave 32 bits", name,
                       (long long)w->n_in, RQ_W4A8_MAX_COLS);
    }
    if (w->group < 0 || w->group % 32 || w->group > rq_ceil_div(w->n_in, 32) * 32 || w->group > RQ_W4A8_MAX_GROUP) {
        return rq_fail(code, "%s: group %lld of %lld columns; 0 or a multiple of 32 up to %d", name,
                       (long long)w->group, (long long)w->n_in, RQ_W4A8_MAX_GROUP);
    }
    if (w->hadamard && (!rq_hadamard_usable(w->hadamard) || w->n_in % w->hadamard)) {
        return rq_fail(
            code,
            "%s: a Hadamard matrix of order %d on %lld columns; the order is 0, or divides them and is k * 2^p "
            "with a known matrix of order k, k at most %d",
            name, w->hadamard, (long long)w->n_in, RQ_ACT_MAX_CORE);
    }
    w->n_group = w->group ? rq_ceil_div(w->n_in, w->group) : 0;
    w->row_words = rq_w4a8_row_words(w->n_in);
    return RQ_OK;
}

static rq_status check_contents(const rq_w4a8 *w, const char *name, rq_status code) {
    for (int64_t i = 0; i < w->n_out; ++i) {
        if (!isfinite(w->scale[i] * 128.0f)) {
            return rq_fail(code, "%s.weight_scale: %g of row %lld is too large or not a number", name,
                           (double)w->scale[i], (long long)i);
        }
        if (w->zero && w->zero[i] >= LEVELS) {
            return rq_fail(code, "%s.weight_zero: %d of row %lld is not in 0 .. 15", name, w->zero[i], (long long)i);
        }
    }
    for (int64_t k = 0; k < w->n_out * w->n_group; ++k) {
        const int step = w->step[k], base = w->base[k];
        if (step < 1 || step > RQ_W4A8_MAX_STEP || (LEVELS - 1) * step + base > INT8_MAX) {
            return rq_fail(code, "%s: step %d and base %d of row %lld, group %lld leave 8 bits", name, step, base,
                           (long long)(k / w->n_group), (long long)(k % w->n_group));
        }
    }
    for (int64_t j = 0; w->in_scale && j < w->n_in; ++j) {
        if (!isfinite(w->in_scale[j])) {
            return rq_fail(code, "%s.weight_in_scale: value %lld is not a finite number", name, (long long)j);
        }
    }
    return RQ_OK;
}

/* *p of these sizes, with the Hadamard matrix that goes with them. */
static rq_status describe(rq_packed *p, const rq_w4a8 *w) {
    rq_status status = RQ_OK;
    rq_hadamard *h;
    *p = (rq_packed){.format = RQ_FORMAT_W4A8, .n_out = w->n_out, .n_in = w->n_in};
    p->u.w4a8 = *w;
    if (!w->hadamard) goto done;
    RQ_TRY(RQ_NEW(h, 2));
    p->u.w4a8.online = rq_pack_own(p, h);
    RQ_TRY(rq_hadamard_make(h, w->hadamard));
done:
    return status;
}

/* ---- packing ---------------------------------------------------------------------------------------------------------- */

#define COPY(to, from, n) rq_pack_copy((const void **)&(to), p, (from), (n) * (int64_t)sizeof *(to))

rq_status rq_w4a8_pack(rq_packed *p, const rq_w4a8_codes *q) {
    rq_status status = RQ_OK;
    const char *name = "rq_w4a8_pack";
    rq_w4a8 sizes = {.n_out = q->n_out, .n_in = q->n_in, .group = q->group, .hadamard = q->hadamard};
    uint32_t *words;
    memset(p, 0, sizeof *p);
    RQ_TRY(rq_w4a8_sizes(&sizes, name, RQ_ERR_ARG));
    if (!q->codes || !q->scale || (q->group ? !q->step || !q->base || q->zero : q->step || q->base)) {
        RQ_FAIL(RQ_ERR_ARG, "%s: codes or scales are missing, or steps and bases do not go with group %lld", name,
                (long long)q->group);
    }
    RQ_TRY(describe(p, &sizes));
    rq_w4a8 *w = &p->u.w4a8;
    RQ_TRY(RQ_NEW_ZERO(words, w->n_out * w->row_words));
    w->words = rq_pack_own(p, words);
    unsigned any = 0;
    for (int64_t i = 0; i < w->n_out; ++i) {
        for (int64_t j = 0; j < w->n_in; ++j) {
            any |= q->codes[i * w->n_in + j];
            words[i * w->row_words + j / 8] |= (q->codes[i * w->n_in + j] & 15u) << j % 8 * 4;
        }
    }
    if (any >= LEVELS) RQ_FAIL(RQ_ERR_ARG, "%s: a code needs more than 4 bits", name);
    RQ_TRY(COPY(w->scale, q->scale, w->n_out));
    if (q->zero) RQ_TRY(COPY(w->zero, q->zero, w->n_out));
    if (q->step) RQ_TRY(COPY(w->step, q->step, w->n_out * w->n_group));
    if (q->base) RQ_TRY(COPY(w->base, q->base, w->n_out * w->n_group));
    if (q->in_scale) RQ_TRY(COPY(w->in_scale, q->in_scale, w->n_in));
    RQ_TRY(check_contents(w, name, RQ_ERR_ARG));
done:
    if (status != RQ_OK) rq_packed_free(p);
    return status;
}

static rq_status add_tensors(rq_packed_file *f, const char *name, const rq_w4a8 *w, int64_t *shape) {
    const rq_pack_part part[] = {
        {".weight_packed", RQ_I32, {w->n_out, w->row_words}, w->words},
        {".weight_scale", RQ_F32, {w->n_out}, w->scale},
        {".weight_shape", RQ_I64, {2}, shape},
        {".weight_zero", RQ_U8, {w->n_out}, w->zero},
        {".weight_step", RQ_U8, {w->n_out, w->n_group}, w->step},
        {".weight_base", RQ_I8, {w->n_out, w->n_group}, w->base},
        {".weight_in_scale", RQ_F32, {w->n_in}, w->in_scale},
    };
    return rq_pack_add_parts(f, name, part, sizeof part / sizeof *part);
}

rq_status rq_w4a8_pack_file(rq_packed_file *f, char **json_entry, const char *name, const rq_w4a8_codes *q) {
    rq_status status = RQ_OK;
    rq_packed p = {0};
    int64_t *shape;
    memset(f, 0, sizeof *f);
    *json_entry = NULL;
    RQ_TRY(rq_w4a8_pack(&p, q));
    const rq_w4a8 *w = &p.u.w4a8;
    RQ_TRY(rq_pack_new_shape(f, &shape, q->n_out, q->n_in));
    RQ_TRY(add_tensors(f, name, w, shape));
    json_t *e = json_pack("{s:s, s:I, s:b, s:b, s:i}", "format", "w4a8", "group", (json_int_t)w->group, "sym",
                          w->zero == NULL && w->group == 0, "in_scale", w->in_scale != NULL, "hadamard", w->hadamard);
    *json_entry = json_dumps(e, JSON_COMPACT);
    json_decref(e);
    if (!*json_entry) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
done:
    return rq_pack_end(f, &p, name, status);
}

/* ---- loading ---------------------------------------------------------------------------------------------------------- */

/* NAME + suffix, checked and aligned, as the member `to` of the matrix. */
#define LOAD(to, suffix, dtype, ...)                                                                                   \
    RQ_TRY(rq_pack_load((const void **)&(to), p, s, name, (suffix), (dtype), (int64_t[3])__VA_ARGS__))

/* A tensor that the description does not speak of would be left out in silence. */
static rq_status refuse_extra(const rq_store *s, const char *name, const char *suffix, bool described) {
    if (described || !rq_pack_has(s, name, suffix)) return RQ_OK;
    return rq_fail(RQ_ERR_INPUT, "%s%s: the description of the matrix knows no such tensor", name, suffix);
}

static rq_status load_tensors(rq_packed *p, const rq_store *s, const char *name, bool zero, bool in_scale) {
    rq_status status = RQ_OK;
    rq_w4a8 *w = &p->u.w4a8;
    LOAD(w->words, ".weight_packed", RQ_I32, {w->n_out, w->row_words});
    LOAD(w->scale, ".weight_scale", RQ_F32, {w->n_out});
    if (zero) LOAD(w->zero, ".weight_zero", RQ_U8, {w->n_out});
    if (w->group) {
        LOAD(w->step, ".weight_step", RQ_U8, {w->n_out, w->n_group});
        LOAD(w->base, ".weight_base", RQ_I8, {w->n_out, w->n_group});
    }
    if (in_scale) LOAD(w->in_scale, ".weight_in_scale", RQ_F32, {w->n_in});
    RQ_TRY(refuse_extra(s, name, ".weight_zero", zero));
    RQ_TRY(refuse_extra(s, name, ".weight_step", w->group != 0));
    RQ_TRY(refuse_extra(s, name, ".weight_base", w->group != 0));
    RQ_TRY(refuse_extra(s, name, ".weight_in_scale", in_scale));
done:
    return status;
}

/* The metadata's entry: {"format": "w4a8", "group": 128, "sym": false, "in_scale": false, "hadamard": 0}. */
static rq_status load(rq_packed *p, const rq_store *s, const char *name, const void *json_entry) {
    rq_status status = RQ_OK;
    json_error_t error;
    json_int_t group;
    int sym, in_scale;
    const rq_tensor *t;
    int64_t shape[2];
    rq_w4a8 w = {0};
    memset(p, 0, sizeof *p);
    if (json_unpack_ex((json_t *)json_entry, &error, 0, "{s:I, s:b, s:b, s:i}", "group", &group, "sym", &sym,
                       "in_scale", &in_scale, "hadamard", &w.hadamard) != 0) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: its description in the metadata is malformed: %s", name, error.text);
    }
    if (sym && group) RQ_FAIL(RQ_ERR_INPUT, "%s: described as symmetric, but in two levels bases are stored", name);
    RQ_TRY(rq_pack_find(&t, s, name, ".weight_shape", RQ_I64, (int64_t[3]){2}));
    memcpy(shape, t->data, sizeof shape);
    w.n_out = shape[0];
    w.n_in = shape[1];
    w.group = group;
    RQ_TRY(rq_w4a8_sizes(&w, name, RQ_ERR_INPUT));
    RQ_TRY(describe(p, &w));
    RQ_TRY(load_tensors(p, s, name, !sym && !group, in_scale != 0));
    RQ_TRY(check_contents(&p->u.w4a8, name, RQ_ERR_INPUT));
done:
    if (status != RQ_OK) rq_packed_free(p);
    return status;
}

static void inspect(const rq_packed *p, void *json_object) {
    const rq_w4a8 *w = &p->u.w4a8;
    int64_t count[LEVELS] = {0}, steps[RQ_W4A8_MAX_STEP + 1] = {0};
    rq_pack_usage u = {.count = count, .n_codes = LEVELS};
    json_t *to = json_object;
    char text[160], kind[48], input[40] = "";
    for (int64_t i = 0; i < w->n_out; ++i) {
        for (int64_t j = 0; j < w->n_in; ++j) ++count[rq_w4a8_code(w, i, j)];
        for (int64_t k = 0; k < w->n_group; ++k) ++steps[w->step[i * w->n_group + k]];
        rq_pack_count_scale(&u, w->scale[i]);
    }
    json_object_set_new(to, "group", json_integer(w->group));
    json_object_set_new(to, "sym", json_boolean(w->zero == NULL && w->group == 0));
    json_object_set_new(to, "in_scale", json_boolean(w->in_scale != NULL));
    json_object_set_new(to, "hadamard", json_integer(w->hadamard));
    if (w->group) {
        json_t *use = json_array();
        for (int k = 1; k <= RQ_W4A8_MAX_STEP; ++k) json_array_append_new(use, json_integer(steps[k]));
        json_object_set_new(to, "step_use", use);
    }
    snprintf(kind, sizeof kind, "group %lld in two levels", (long long)w->group);
    if (w->hadamard) snprintf(input, sizeof input, ", inputs by H of %d", w->hadamard);
    snprintf(text, sizeof text, "4 bits for 8-bit inputs, %s%s%s",
             w->group  ? kind
             : w->zero ? "a scale a row, asym"
                       : "a scale a row, sym",
             input, w->in_scale ? ", input factors" : "");
    rq_pack_report(&u, to, text);
}

const rq_format_ops rq_format_w4a8 = {"w4a8", unpack_row, size_bits, load, inspect};
