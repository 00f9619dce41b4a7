/* SPDX-License-Identifier: Apache-2.0 */
/* Vector quantization: the layout of fmt_vq.h, its tensors on disk, and the run-time form. docs/formats.md has the tensors.
 * Codebooks that several matrices use are stored once, under the name of one of them. */
#include <jansson.h>
#include <math.h>

#include "pack_common.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are used as they are in the file");

enum { LINES_PER_ITEM = 64 };

static const char *const codes_name[2] = {".weight_codes", ".weight_codes2"};
static const char *const book_name[2] = {".weight_book", ".weight_book2"}, book_of_name[] = ".weight_book_of";

/* ---- definition and size ---------------------------------------------------------------------------------------------- */

static void unpack_row(const rq_packed *p, int64_t row, float *dst) {
    const rq_vq *q = &p->u.vq;
    for (int64_t j = 0; j < q->n_in; ++j) dst[j] = rq_vq_weight(q, row, j);
    for (int o = 0; o < q->n_outlier; ++o) {
        dst[q->outlier_col[o]] = q->outlier_scale[o] * (float)q->outlier[row * q->n_outlier + o];
    }
}

static int64_t book_bits(const rq_vq *q) {
    int64_t n = 0;
    for (int s = 0; s < q->n_stage; ++s) n += q->n_book * q->n_codes[s] * q->vec_len * 16;
    return n + (q->book_of ? q->n_in * 8 : 0);
}

/* Every tensor of the matrix in the file, padding and the shape included, and its share of the codebooks. */
static int64_t size_bits(const rq_packed *p) {
    const rq_vq *q = &p->u.vq;
    int64_t total = 2 * 64 + p->shared_bits;
    for (int s = 0; s < q->n_stage; ++s) total += q->n_line * q->code_words[s] * 32;
    if (q->scale) total += q->n_out * q->n_group * 16;
    if (q->col_scale) total += q->n_in * 2 * 16;
    if (q->n_outlier) total += q->n_outlier * (q->n_out * 8 + 32 + 32);
    return total;
}

/* ---- checks shared by packing and loading ----------------------------------------------------------------------------- */

/* Sizes and parameters, before anything is allocated; fills the counts that follow from them. */
rq_status rq_vq_sizes(rq_vq *q, const char *name, rq_status code) {
    int64_t n;
    if (q->vec_len < 2 || q->vec_len > RQ_VQ_MAX_VEC || q->n_stage < 1 || q->n_stage > 2) {
        return rq_fail(code, "%s: vectors of %d in %d stages; 2 to %d, in one or two", name, q->vec_len, q->n_stage,
                       RQ_VQ_MAX_VEC);
    }
    if (q->n_out < 1 || q->n_in < 1 || q->n_out > INT32_MAX || q->n_in > INT32_MAX ||
        !rq_mul_size(q->n_out, q->n_in, &n) || n > INT64_MAX / 256) {
        return rq_fail(code, "%s: impossible shape [%lld, %lld]", name, (long long)q->n_out, (long long)q->n_in);
    }
    for (int s = 0; s < q->n_stage; ++s) {
        if (q->code_bits[s] < 4 || q->code_bits[s] > 16 || q->n_codes[s] < 16 || q->n_codes[s] > 1 << q->code_bits[s]) {
            return rq_fail(code, "%s: %lld codes of %d bits; 4 to 16 bits and 16 codes to what the bits can say", name,
                           (long long)q->n_codes[s], q->code_bits[s]);
        }
    }
    const int64_t unit = q->vec_out ? 1 : q->vec_len;
    if (q->book_cols < 1 || q->book_cols % unit || q->book_cols > (int64_t)INT32_MAX + RQ_VQ_MAX_VEC) {
        return rq_fail(code, "%s: a codebook for %lld columns; a multiple of %lld", name, (long long)q->book_cols,
                       (long long)unit);
    }
    if (q->group < 1 || q->group > q->n_in || (q->group % unit && q->group != q->n_in)) {
        return rq_fail(code, "%s: group %lld of %lld columns; a multiple of %lld, or all", name, (long long)q->group,
                       (long long)q->n_in, (long long)unit);
    }
    if (q->n_outlier < 0 || q->n_outlier > RQ_VQ_MAX_OUTLIERS) {
        return rq_fail(code, "%s: %d outlier columns; at most %d", name, q->n_outlier, RQ_VQ_MAX_OUTLIERS);
    }
    q->n_line = q->vec_out ? rq_ceil_div(q->n_out, q->vec_len) : q->n_out;
    q->n_code = q->vec_out ? q->n_in : rq_ceil_div(q->n_in, q->vec_len);
    q->n_book = rq_ceil_div(q->n_in, q->book_cols);
    q->n_group = rq_ceil_div(q->n_in, q->group);
    for (int s = 0; s < q->n_stage; ++s) q->code_words[s] = rq_ceil_div(q->n_code * q->code_bits[s], 32);
    return RQ_OK;
}

typedef struct range_job {
    const rq_vq *q;
    int stage;
    int64_t *bad; /* per item: the first line with a code out of range, or -1 */
} range_job;

static void range_body(void *arg, int64_t item) {
    const range_job *j = arg;
    int64_t end = rq_min_i64(j->q->n_line, (item + 1) * LINES_PER_ITEM);
    j->bad[item] = -1;
    for (int64_t i = item * LINES_PER_ITEM; i < end && j->bad[item] < 0; ++i) {
        uint32_t most = 0;
        for (int64_t c = 0; c < j->q->n_code; ++c) {
            uint32_t code = rq_vq_code(j->q, j->stage, i, c);
            most = code > most ? code : most;
        }
        if (most >= j->q->n_codes[j->stage]) j->bad[item] = i;
    }
}

static rq_status check_range(const rq_vq *q, int stage, const char *name, rq_status code) {
    rq_status status = RQ_OK;
    range_job j = {q, stage, NULL};
    int64_t n = rq_ceil_div(q->n_line, LINES_PER_ITEM);
    if (q->n_codes[stage] == 1 << q->code_bits[stage]) return RQ_OK; /* no code can be out of range */
    RQ_TRY(RQ_NEW(j.bad, n));
    rq_parallel_for(n, range_body, &j);
    for (int64_t i = 0; i < n; ++i) {
        if (j.bad[i] >= 0) {
            RQ_FAIL(code, "%s%s: line %lld has a code beyond the %lld of the codebook", name, codes_name[stage],
                    (long long)j.bad[i], (long long)q->n_codes[stage]);
        }
    }
done:
    free(j.bad);
    return status;
}

static rq_status check_finite(const rq_f16 *v, int64_t n, const char *name, const char *suffix, rq_status code) {
    for (int64_t i = 0; v && i < n; ++i) {
        if ((v[i].bits & 0x7c00u) == 0x7c00u) {
            return rq_fail(code, "%s%s: value %lld is not a finite number", name, suffix, (long long)i);
        }
    }
    return RQ_OK;
}

static rq_status check_contents(const rq_vq *q, const char *name, rq_status code) {
    rq_status status = RQ_OK;
    for (int s = 0; s < q->n_stage && s < 2; ++s) {
        RQ_TRY(check_finite(q->book[s], q->n_book * q->n_codes[s] * q->vec_len, name, book_name[s], code));
        RQ_TRY(check_range(q, s, name, code));
    }
    for (int64_t j = 0; q->book_of && j < q->n_in; ++j) {
        if (q->book_of[j] >= q->n_book)
            RQ_FAIL(code, "%s%s: column %lld is of codebook %d; there are %lld", name, book_of_name, (long long)j,
                    q->book_of[j], (long long)q->n_book);
    }
    RQ_TRY(check_finite(q->scale, q->n_out * q->n_group, name, ".weight_scale", code));
    RQ_TRY(check_finite(q->col_scale, q->n_in, name, ".weight_col_scale", code));
    RQ_TRY(check_finite(q->col_bias, q->n_in, name, ".weight_col_bias", code));
    for (int o = 0; o < q->n_outlier; ++o) {
        if (q->outlier_col[o] < (o ? q->outlier_col[o - 1] + 1 : 0) || q->outlier_col[o] >= q->n_in) {
            RQ_FAIL(code, "%s.weight_outlier_cols: column %d of %lld is out of range or out of order", name,
                    q->outlier_col[o], (long long)q->n_in);
        }
        if (!isfinite(q->outlier_scale[o] * 128.0f)) {
            RQ_FAIL(code, "%s.weight_outlier_scale: %g of column %d is too large or not a number", name,
                    (double)q->outlier_scale[o], q->outlier_col[o]);
        }
    }
done:
    return status;
}

static rq_packed describe(const rq_vq *q) {
    rq_packed p = {.format = RQ_FORMAT_VQ, .n_out = q->n_out, .n_in = q->n_in};
    p.u.vq = *q;
    return p;
}

/* ---- packing ---------------------------------------------------------------------------------------------------------- */

static rq_status pack_stream(rq_packed *p, const rq_vq_codes *c, int stage) {
    rq_vq *q = &p->u.vq;
    uint32_t *words;
    rq_status status = RQ_NEW_ZERO(words, q->n_line * q->code_words[stage]);
    if (status != RQ_OK) return status;
    q->codes[stage] = rq_pack_own(p, words);
    for (int64_t i = 0; i < q->n_line; ++i) {
        for (int64_t k = 0; k < q->n_code; ++k) {
            uint32_t code = c->codes[stage][i * q->n_code + k];
            if (code >= q->n_codes[stage]) {
                return rq_fail(RQ_ERR_ARG, "line %lld, vector %lld: code %u of %lld", (long long)i, (long long)k, code,
                               (long long)q->n_codes[stage]);
            }
            rq_put_code(words + i * q->code_words[stage], 1, k, q->code_bits[stage], code);
        }
    }
    return RQ_OK;
}

#define COPY(to, from, n) rq_pack_copy((const void **)&(to), p, (from), (n) * (int64_t)sizeof *(to))

rq_status rq_vq_pack(rq_packed *p, const rq_vq_codes *c) {
    rq_status status = RQ_OK;
    const char *name = "rq_vq_pack";
    rq_vq sizes = {.n_out = c->n_out,
                   .n_in = c->n_in,
                   .vec_len = c->vec_len,
                   .vec_out = c->vec_out,
                   .n_stage = c->n_stage,
                   .code_bits = {c->code_bits[0], c->code_bits[1]},
                   .n_codes = {c->n_codes[0], c->n_codes[1]},
                   .book_cols = c->book_cols,
                   .group = c->group,
                   .n_outlier = c->n_outlier};
    memset(p, 0, sizeof *p);
    RQ_TRY(rq_vq_sizes(&sizes, name, RQ_ERR_ARG));
    bool whole = !c->col_scale == !c->col_bias && c->book_users >= 0 && (c->scale || c->group == c->n_in);
    for (int s = 0; s < c->n_stage; ++s) whole = whole && c->codes[s] && c->book[s];
    if (c->book_of && !c->vec_out)
        RQ_FAIL(RQ_ERR_ARG, "%s: columns pick codebooks only where vectors run down the outputs", name);
    if (!whole || (c->n_outlier && (!c->outlier_col || !c->outlier || !c->outlier_scale))) {
        RQ_FAIL(RQ_ERR_ARG, "%s: codes, codebooks, one of the column arrays or outliers are missing", name);
    }
    *p = describe(&sizes);
    rq_vq *q = &p->u.vq;
    for (int s = 0; s < q->n_stage; ++s) {
        RQ_TRY(pack_stream(p, c, s));
        RQ_TRY(COPY(q->book[s], c->book[s], q->n_book * q->n_codes[s] * q->vec_len));
    }
    if (c->book_of) RQ_TRY(COPY(q->book_of, c->book_of, q->n_in));
    if (c->scale) RQ_TRY(rq_pack_f16(&q->scale, p, c->scale, q->n_out * q->n_group));
    if (c->col_scale) {
        RQ_TRY(COPY(q->col_scale, c->col_scale, q->n_in));
        RQ_TRY(COPY(q->col_bias, c->col_bias, q->n_in));
    }
    if (q->n_outlier) {
        RQ_TRY(COPY(q->outlier_col, c->outlier_col, q->n_outlier));
        RQ_TRY(COPY(q->outlier, c->outlier, q->n_out * q->n_outlier));
        RQ_TRY(COPY(q->outlier_scale, c->outlier_scale, q->n_outlier));
    }
    RQ_TRY(check_contents(q, name, RQ_ERR_ARG));
    rq_pack_share(p, book_bits(q), !c->book_name, rq_max_i64(1, c->book_users));
done:
    if (status != RQ_OK) rq_packed_free(p);
    return status;
}

static rq_status add_tensors(rq_packed_file *f, const char *name, const rq_vq *q, bool with_book, int64_t *shape) {
    const rq_pack_part part[] = {
        {codes_name[0], RQ_I32, {q->n_line, q->code_words[0]}, q->codes[0]},
        {codes_name[1], RQ_I32, {q->n_line, q->code_words[1]}, q->codes[1]},
        {book_name[0], RQ_F16, {q->n_book, q->n_codes[0], q->vec_len}, with_book ? q->book[0] : NULL},
        {book_name[1], RQ_F16, {q->n_book, q->n_codes[1], q->vec_len}, with_book ? q->book[1] : NULL},
        {book_of_name, RQ_U8, {q->n_in}, with_book ? q->book_of : NULL},
        {".weight_shape", RQ_I64, {2}, shape},
        {".weight_scale", RQ_F16, {q->n_out, q->n_group}, q->scale},
        {".weight_col_scale", RQ_F16, {q->n_in}, q->col_scale},
        {".weight_col_bias", RQ_F16, {q->n_in}, q->col_bias},
        {".weight_outlier", RQ_I8, {q->n_out, q->n_outlier}, q->outlier},
        {".weight_outlier_cols", RQ_I32, {q->n_outlier}, q->outlier_col},
        {".weight_outlier_scale", RQ_F32, {q->n_outlier}, q->outlier_scale},
    };
    return rq_pack_add_parts(f, name, part, sizeof part / sizeof *part);
}

static rq_status make_entry(char **text, const rq_vq *q, const rq_vq_codes *c) {
    json_t *bits = json_array(), *codes = json_array();
    for (int s = 0; s < q->n_stage; ++s) {
        json_array_append_new(bits, json_integer(q->code_bits[s]));
        json_array_append_new(codes, json_integer(q->n_codes[s]));
    }
    json_t *e = json_pack("{s:s, s:i, s:s, s:o, s:o, s:I, s:I, s:b, s:b, s:i}", "format", "vq", "vec_len", q->vec_len,
                          "vec_axis", q->vec_out ? "out" : "in", "code_bits", bits, "n_codes", codes, "book_cols",
                          (json_int_t)q->book_cols, "group", (json_int_t)q->group, "scales", q->scale != NULL,
                          "columns", q->col_scale != NULL, "n_outlier", q->n_outlier);
    if (q->book_of) json_object_set_new(e, "book_of", json_true());
    if (c->book_name) json_object_set_new(e, "book", json_string(c->book_name));
    if (c->book_users > 1) json_object_set_new(e, "book_users", json_integer(c->book_users));
    *text = json_dumps(e, JSON_COMPACT);
    json_decref(e);
    return *text ? RQ_OK : rq_fail(RQ_ERR_NOMEM, "out of memory");
}

rq_status rq_vq_pack_file(rq_packed_file *f, char **json_entry, const char *name, const rq_vq_codes *c) {
    rq_status status = RQ_OK;
    rq_vq_codes own = *c;
    rq_packed p = {0};
    int64_t *shape;
    memset(f, 0, sizeof *f);
    *json_entry = NULL;
    if (own.book_name && strcmp(own.book_name, name) == 0) own.book_name = NULL;
    RQ_TRY(rq_vq_pack(&p, &own));
    RQ_TRY(rq_pack_new_shape(f, &shape, c->n_out, c->n_in));
    RQ_TRY(add_tensors(f, name, &p.u.vq, !own.book_name, shape));
    RQ_TRY(make_entry(json_entry, &p.u.vq, &own));
done:
    return rq_pack_end(f, &p, name, status);
}

/* ---- loading ---------------------------------------------------------------------------------------------------------- */

/* NAME + suffix, checked and aligned, as the member `to` of the matrix. */
#define LOAD(to, from, suffix, dtype, ...)                                                                             \
    RQ_TRY(rq_pack_load((const void **)&(to), p, s, (from), (suffix), (dtype), (int64_t[3])__VA_ARGS__))

static rq_status load_tensors(rq_packed *p, const rq_store *s, const char *name, const char *book, bool scales,
                              bool columns, bool book_of) {
    rq_status status = RQ_OK;
    rq_vq *q = &p->u.vq;
    for (int k = 0; k < q->n_stage && k < 2; ++k) {
        LOAD(q->codes[k], name, codes_name[k], RQ_I32, {q->n_line, q->code_words[k]});
        LOAD(q->book[k], book, book_name[k], RQ_F16, {q->n_book, q->n_codes[k], q->vec_len});
    }
    if (book_of) LOAD(q->book_of, book, book_of_name, RQ_U8, {q->n_in});
    if (scales) LOAD(q->scale, name, ".weight_scale", RQ_F16, {q->n_out, q->n_group});
    if (columns) {
        LOAD(q->col_scale, name, ".weight_col_scale", RQ_F16, {q->n_in});
        LOAD(q->col_bias, name, ".weight_col_bias", RQ_F16, {q->n_in});
    }
    if (q->n_outlier) {
        LOAD(q->outlier, name, ".weight_outlier", RQ_I8, {q->n_out, q->n_outlier});
        LOAD(q->outlier_col, name, ".weight_outlier_cols", RQ_I32, {q->n_outlier});
        LOAD(q->outlier_scale, name, ".weight_outlier_scale", RQ_F32, {q->n_outlier});
    }
    if ((!q->n_outlier && rq_pack_has(s, name, ".weight_outlier")) ||
        (!scales && rq_pack_has(s, name, ".weight_scale")) || (!columns && rq_pack_has(s, name, ".weight_col_scale")) ||
        (q->n_stage == 1 && rq_pack_has(s, name, codes_name[1])) || (!book_of && rq_pack_has(s, name, book_of_name))) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: has tensors that its description does not know", name);
    }
done:
    return status;
}

/* One or two integers, as many as there are stages. */
static bool stage_values(int64_t to[2], int *n, const json_t *array) {
    *n = (int)rq_min_i64(3, (int64_t)json_array_size(array));
    for (int i = 0; i < *n && i < 2; ++i) {
        if (!json_is_integer(json_array_get(array, (size_t)i))) return false;
        to[i] = json_integer_value(json_array_get(array, (size_t)i));
        if (to[i] < 0 || to[i] > INT32_MAX) return false;
    }
    return *n == 1 || *n == 2;
}

/* The metadata's entry: {"format": "vq", "vec_len": 8, "vec_axis": "in", "code_bits": [12], "n_codes": [4096], "book_cols": 4096,
 * "group": 4096, "scales": true, "columns": false, "n_outlier": 0}, "book_of": true where columns pick their codebooks, and "book",
 * "book_users" as for ssvq. */
static rq_status load(rq_packed *p, const rq_store *s, const char *name, const void *json_entry) {
    rq_status status = RQ_OK;
    json_error_t error;
    json_int_t book_cols, group, users = 1;
    json_t *bits_array, *codes_array;
    const char *book = name, *axis;
    const rq_tensor *t;
    int64_t shape[2], bits[2] = {0}, n_codes[2] = {0};
    int scales, columns, n_stage, book_of = 0;
    rq_vq q = {0};
    memset(p, 0, sizeof *p);
    if (json_unpack_ex((json_t *)json_entry, &error, 0,
                       "{s:i, s:s, s:o, s:o, s:I, s:I, s:b, s:b, s:i, s?:b, s?:s, s?:I}", "vec_len", &q.vec_len,
                       "vec_axis", &axis, "code_bits", &bits_array, "n_codes", &codes_array, "book_cols", &book_cols,
                       "group", &group, "scales", &scales, "columns", &columns, "n_outlier", &q.n_outlier, "book_of",
                       &book_of, "book", &book, "book_users", &users) != 0) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: its description in the metadata is malformed: %s", name, error.text);
    }
    q.vec_out = strcmp(axis, "out") == 0;
    if ((!q.vec_out && strcmp(axis, "in") != 0) || users < 1 || !stage_values(bits, &q.n_stage, bits_array) ||
        !stage_values(n_codes, &n_stage, codes_array) || n_stage != q.n_stage) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: its axis, stages or users of the codebook are malformed", name);
    }
    RQ_TRY(rq_pack_find(&t, s, name, ".weight_shape", RQ_I64, (int64_t[3]){2}));
    memcpy(shape, t->data, sizeof shape);
    q.n_out = shape[0];
    q.n_in = shape[1];
    for (int k = 0; k < q.n_stage; ++k) {
        q.code_bits[k] = (int)bits[k];
        q.n_codes[k] = n_codes[k];
    }
    q.book_cols = book_cols;
    q.group = group;
    if (book_of && !q.vec_out)
        RQ_FAIL(RQ_ERR_INPUT, "%s: columns pick codebooks, but its vectors run along inputs", name);
    if (!scales && group != q.n_in) RQ_FAIL(RQ_ERR_INPUT, "%s: groups of columns, but no scales", name);
    RQ_TRY(rq_vq_sizes(&q, name, RQ_ERR_INPUT));
    *p = describe(&q);
    RQ_TRY(load_tensors(p, s, name, book, scales, columns, book_of));
    RQ_TRY(check_contents(&p->u.vq, name, RQ_ERR_INPUT));
    rq_pack_share(p, book_bits(&p->u.vq), strcmp(book, name) == 0, users);
done:
    if (status != RQ_OK) rq_packed_free(p);
    return status;
}

/* Codes are those of the first stage. */
static void inspect(const rq_packed *p, void *json_object) {
    const rq_vq *q = &p->u.vq;
    static _Thread_local int64_t count[1 << 16]; /* half a MiB is much for a stack */
    rq_pack_usage u = {.count = count, .n_codes = q->n_codes[0]};
    json_t *to = json_object, *bits = json_array(), *codes = json_array();
    char text[160];
    memset(count, 0, sizeof count);
    for (int64_t i = 0; i < q->n_line; ++i) {
        for (int64_t k = 0; k < q->n_code; ++k) ++count[rq_vq_code(q, 0, i, k)];
    }
    if (!q->scale) rq_pack_count_scale(&u, 1.0f);
    for (int64_t i = 0; q->scale && i < q->n_out * q->n_group; ++i) rq_pack_count_scale(&u, rq_f32_of_f16(q->scale[i]));
    for (int s = 0; s < q->n_stage; ++s) {
        json_array_append_new(bits, json_integer(q->code_bits[s]));
        json_array_append_new(codes, json_integer(q->n_codes[s]));
    }
    json_object_set_new(to, "vec_len", json_integer(q->vec_len));
    json_object_set_new(to, "vec_axis", json_string(q->vec_out ? "out" : "in"));
    json_object_set_new(to, "code_bits", bits);
    json_object_set_new(to, "n_codes", codes);
    json_object_set_new(to, "n_book", json_integer(q->n_book));
    json_object_set_new(to, "book_cols", json_integer(q->book_cols));
    json_object_set_new(to, "book_of", json_boolean(q->book_of != NULL));
    json_object_set_new(to, "book_bits", json_integer(p->shared_bits));
    json_object_set_new(to, "group", json_integer(q->group));
    json_object_set_new(to, "columns", json_boolean(q->col_scale != NULL));
    json_object_set_new(to, "n_outlier", json_integer(q->n_outlier));
    snprintf(text, sizeof text, "%d-vectors along %s, %d stage%s, %lld codes of %d bits, %lld book%s, group %lld",
             q->vec_len, q->vec_out ? "outputs" : "inputs", q->n_stage, q->n_stage > 1 ? "s" : "",
             (long long)q->n_codes[0], q->code_bits[0], (long long)q->n_book, q->n_book > 1 ? "s" : "",
             (long long)q->group);
    rq_pack_report(&u, to, text);
}

const rq_format_ops rq_format_vq = {"vq", unpack_row, size_bits, load, inspect};
