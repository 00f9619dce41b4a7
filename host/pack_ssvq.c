/* SPDX-License-Identifier: Apache-2.0 */
/* Sign-split vector quantization: the layout of fmt_ssvq.h, its tensors on disk, and the run-time form. docs/formats.md has
 * the tensors. A codebook that several matrices use is stored once, under the name of one of them. */
#include <jansson.h>
#include <math.h>

#include "pack_common.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are used as they are in the file");

enum { ROWS_PER_ITEM = 64 };

/* ---- definition and size ---------------------------------------------------------------------------------------------- */

static void unpack_row(const rq_packed *p, int64_t row, float *dst) {
    const rq_ssvq *s = &p->u.ssvq;
    for (int64_t j = 0; j < s->n_in; ++j) {
        uint32_t code = rq_ssvq_code(s, row, j / s->vec_len);
        float m = rq_ssvq_magnitude(s, j / s->book_cols, code, j % s->vec_len);
        float scale = rq_f32_of_f16(s->scale[row * s->n_group + j / s->group]);
        dst[j] = scale * (rq_ssvq_negative(s, row, j) ? -m : m);
    }
    for (int o = 0; o < s->n_outlier; ++o) {
        dst[s->outlier_col[o]] = s->outlier_scale[o] * (float)s->outlier[row * s->n_outlier + o];
    }
}

static int64_t book_bits(const rq_ssvq *s) {
    int64_t n = s->n_book * s->n_codes * s->vec_len;
    return s->book_u8 ? n * 8 + s->n_book * 32 : n * 16;
}

/* Every tensor of the matrix in the file, padding and the shape included, and its share of the codebook. */
static int64_t size_bits(const rq_packed *p) {
    const rq_ssvq *s = &p->u.ssvq;
    int64_t total = s->n_out * (s->code_words + s->sign_words) * 32 + s->n_out * s->n_group * 16 + 2 * 64;
    if (s->n_outlier) total += s->n_outlier * (s->n_out * 8 + 32 + 32);
    return total + p->shared_bits;
}

/* ---- checks shared by packing and loading ----------------------------------------------------------------------------- */

/* Sizes and parameters, before anything is allocated; fills the counts that follow from them. */
rq_status rq_ssvq_sizes(rq_ssvq *s, const char *name, rq_status code) {
    int64_t n;
    if (s->vec_len != 4 && s->vec_len != 8) return rq_fail(code, "%s: vectors of %d; 4 or 8", name, s->vec_len);
    if (s->n_out < 1 || s->n_in < 1 || s->n_out > INT32_MAX || s->n_in > INT32_MAX ||
        !rq_mul_size(s->n_out, s->n_in, &n) || n > INT64_MAX / 256) {
        return rq_fail(code, "%s: impossible shape [%lld, %lld]", name, (long long)s->n_out, (long long)s->n_in);
    }
    if (s->code_bits < 4 || s->code_bits > 12 || s->n_codes < 16 || s->n_codes > 1 << s->code_bits) {
        return rq_fail(code, "%s: %lld codes of %d bits; 4 to 12 bits and 16 codes to what the bits can say", name,
                       (long long)s->n_codes, s->code_bits);
    }
    if (s->book_cols < 1 || s->book_cols % s->vec_len || s->book_cols > (int64_t)INT32_MAX + 1) {
        return rq_fail(code, "%s: a codebook for %lld columns; a multiple of %d", name, (long long)s->book_cols,
                       s->vec_len);
    }
    if (s->group < 1 || s->group > s->n_in || (s->group % s->vec_len && s->group != s->n_in)) {
        return rq_fail(code, "%s: group %lld of %lld columns; a multiple of %d, or all", name, (long long)s->group,
                       (long long)s->n_in, s->vec_len);
    }
    if (s->n_outlier < 0 || s->n_outlier > RQ_SSVQ_MAX_OUTLIERS) {
        return rq_fail(code, "%s: %d outlier columns; at most %d", name, s->n_outlier, RQ_SSVQ_MAX_OUTLIERS);
    }
    s->n_book = rq_ceil_div(s->n_in, s->book_cols);
    s->n_group = rq_ceil_div(s->n_in, s->group);
    s->code_words = rq_ssvq_code_words(s->n_in, s->vec_len, s->code_bits);
    s->sign_words = rq_ssvq_sign_words(s->n_in, s->vec_len);
    return RQ_OK;
}

typedef struct range_job {
    const rq_ssvq *s;
    int64_t *bad; /* per item: the first row with a code out of range, or -1 */
} range_job;

static void range_body(void *arg, int64_t item) {
    const range_job *j = arg;
    const rq_ssvq *s = j->s;
    int64_t n_vec = rq_ssvq_n_vec(s->n_in, s->vec_len), end = rq_min_i64(s->n_out, (item + 1) * ROWS_PER_ITEM);
    j->bad[item] = -1;
    for (int64_t i = item * ROWS_PER_ITEM; i < end && j->bad[item] < 0; ++i) {
        uint32_t most = 0;
        for (int64_t v = 0; v < n_vec; ++v) {
            uint32_t c = rq_ssvq_code(s, i, v);
            most = c > most ? c : most;
        }
        if (most >= s->n_codes) j->bad[item] = i;
    }
}

static rq_status check_range(const rq_ssvq *s, const char *name, rq_status code) {
    rq_status status = RQ_OK;
    range_job j = {s, NULL};
    int64_t n = rq_ceil_div(s->n_out, ROWS_PER_ITEM);
    if (s->n_codes == 1 << s->code_bits) return RQ_OK; /* no code can be out of range */
    RQ_TRY(RQ_NEW(j.bad, n));
    rq_parallel_for(n, range_body, &j);
    for (int64_t i = 0; i < n; ++i) {
        if (j.bad[i] >= 0) {
            RQ_FAIL(code, "%s.weight_codes: row %lld has a code beyond the %lld of the codebook", name,
                    (long long)j.bad[i], (long long)s->n_codes);
        }
    }
done:
    free(j.bad);
    return status;
}

/* Magnitudes not negative and finite, also after their scale and the largest row scale. */
static rq_status check_book(const rq_ssvq *s, const char *name, rq_status code) {
    int64_t per_book = s->n_codes * s->vec_len;
    for (int64_t b = 0; b < s->n_book; ++b) {
        float scale = s->book_scale[b];
        if (!(scale >= 0.0f) || !isfinite(scale * 255.0f * 65504.0f)) {
            return rq_fail(code, "%s.weight_book_scale: %g of codebook %lld is negative or too large", name,
                           (double)scale, (long long)b);
        }
        for (int64_t i = b * per_book; s->book_f16 && i < (b + 1) * per_book; ++i) {
            if (s->book_f16[i].bits >= 0x7c00u) { /* a sign, an infinity or NaN */
                return rq_fail(code, "%s.weight_book: value %lld is negative or not finite", name, (long long)i);
            }
        }
    }
    return RQ_OK;
}

static rq_status check_scales(const rq_ssvq *s, const char *name, rq_status code) {
    for (int64_t i = 0; i < s->n_out * s->n_group; ++i) {
        if (!isfinite(rq_f32_of_f16(s->scale[i]))) {
            return rq_fail(code, "%s.weight_scale: row %lld, group %lld is not a finite number", name,
                           (long long)(i / s->n_group), (long long)(i % s->n_group));
        }
    }
    for (int o = 0; o < s->n_outlier; ++o) {
        if (s->outlier_col[o] < (o ? s->outlier_col[o - 1] + 1 : 0) || s->outlier_col[o] >= s->n_in) {
            return rq_fail(code, "%s.weight_outlier_cols: column %d of %lld is out of range or out of order", name,
                           s->outlier_col[o], (long long)s->n_in);
        }
        if (!isfinite(s->outlier_scale[o] * 128.0f)) {
            return rq_fail(code, "%s.weight_outlier_scale: %g of column %d is too large or not a number", name,
                           (double)s->outlier_scale[o], s->outlier_col[o]);
        }
    }
    return RQ_OK;
}

static rq_status check_contents(const rq_ssvq *s, const char *name, rq_status code) {
    rq_status status = check_book(s, name, code);
    if (status == RQ_OK) status = check_scales(s, name, code);
    if (status == RQ_OK) status = check_range(s, name, code);
    return status;
}

static rq_packed describe(const rq_ssvq *s) {
    rq_packed p = {.format = RQ_FORMAT_SSVQ, .n_out = s->n_out, .n_in = s->n_in};
    p.u.ssvq = *s;
    return p;
}

/* fp16 books have no scales of their own. */
static rq_status unit_scales(rq_packed *p) {
    rq_ssvq *s = &p->u.ssvq;
    float *ones;
    rq_status status = RQ_NEW(ones, s->n_book);
    if (status != RQ_OK) return status;
    s->book_scale = rq_pack_own(p, ones);
    for (int64_t b = 0; b < s->n_book; ++b) ones[b] = 1.0f;
    return RQ_OK;
}

/* ---- packing ---------------------------------------------------------------------------------------------------------- */

static rq_status pack_streams(rq_packed *p, const rq_ssvq_codes *q) {
    rq_status status = RQ_OK;
    rq_ssvq *s = &p->u.ssvq;
    uint32_t *codes, *signs;
    int64_t n_vec = rq_ssvq_n_vec(s->n_in, s->vec_len);
    RQ_TRY(RQ_NEW_ZERO(codes, s->n_out * s->code_words));
    s->codes = rq_pack_own(p, codes);
    RQ_TRY(RQ_NEW_ZERO(signs, s->n_out * s->sign_words));
    s->signs = rq_pack_own(p, signs);
    for (int64_t i = 0; i < s->n_out; ++i) {
        for (int64_t v = 0; v < n_vec; ++v) {
            uint32_t c = q->codes[i * n_vec + v];
            if (c >= s->n_codes) {
                RQ_FAIL(RQ_ERR_ARG, "row %lld, vector %lld: code %u of %lld", (long long)i, (long long)v, c,
                        (long long)s->n_codes);
            }
            rq_put_code(codes + i * s->code_words, 1, v, s->code_bits, c);
        }
        for (int64_t j = 0; j < s->n_in; ++j) {
            if (q->negative[i * s->n_in + j]) rq_put_code(signs + i * s->sign_words, 1, j, 1, 1);
        }
    }
done:
    return status;
}

#define COPY(to, from, n) rq_pack_copy((const void **)&(to), p, (from), (n) * (int64_t)sizeof *(to))

rq_status rq_ssvq_pack(rq_packed *p, const rq_ssvq_codes *q) {
    rq_status status = RQ_OK;
    const char *name = "rq_ssvq_pack";
    rq_ssvq sizes = {.n_out = q->n_out,
                     .n_in = q->n_in,
                     .vec_len = q->vec_len,
                     .code_bits = q->code_bits,
                     .n_codes = q->n_codes,
                     .book_cols = q->book_cols,
                     .group = q->group,
                     .n_outlier = q->n_outlier};
    memset(p, 0, sizeof *p);
    RQ_TRY(rq_ssvq_sizes(&sizes, name, RQ_ERR_ARG));
    if (!q->codes || !q->negative || !q->scale || !q->book_f16 == !q->book_u8 || (q->book_u8 && !q->book_scale) ||
        (q->n_outlier && (!q->outlier_col || !q->outlier || !q->outlier_scale)) || q->book_users < 0) {
        RQ_FAIL(RQ_ERR_ARG, "%s: codes, signs, scales, one kind of codebook or outliers are missing", name);
    }
    *p = describe(&sizes);
    rq_ssvq *s = &p->u.ssvq;
    int64_t n = s->n_book * s->n_codes * s->vec_len;
    RQ_TRY(pack_streams(p, q));
    RQ_TRY(rq_pack_f16(&s->scale, p, q->scale, s->n_out * s->n_group));
    if (q->book_u8) {
        RQ_TRY(COPY(s->book_u8, q->book_u8, n));
        RQ_TRY(COPY(s->book_scale, q->book_scale, s->n_book));
    } else {
        RQ_TRY(COPY(s->book_f16, q->book_f16, n));
        RQ_TRY(unit_scales(p));
    }
    if (s->n_outlier) {
        RQ_TRY(COPY(s->outlier_col, q->outlier_col, s->n_outlier));
        RQ_TRY(COPY(s->outlier, q->outlier, s->n_out * s->n_outlier));
        RQ_TRY(COPY(s->outlier_scale, q->outlier_scale, s->n_outlier));
    }
    RQ_TRY(check_contents(s, name, RQ_ERR_ARG));
    rq_pack_share(p, book_bits(s), !q->book, rq_max_i64(1, q->book_users));
done:
    if (status != RQ_OK) rq_packed_free(p);
    return status;
}

static rq_status add_tensors(rq_packed_file *f, const char *name, const rq_ssvq *s, bool with_book, int64_t *shape) {
    const rq_pack_part part[] = {
        {".weight_codes", RQ_I32, {s->n_out, s->code_words}, s->codes},
        {".weight_signs", RQ_I32, {s->n_out, s->sign_words}, s->signs},
        {".weight_scale", RQ_F16, {s->n_out, s->n_group}, s->scale},
        {".weight_shape", RQ_I64, {2}, shape},
        {".weight_book",
         s->book_u8 ? RQ_U8 : RQ_F16,
         {s->n_book, s->n_codes, s->vec_len},
         !with_book   ? NULL
         : s->book_u8 ? (const void *)s->book_u8
                      : (const void *)s->book_f16},
        {".weight_book_scale", RQ_F32, {s->n_book}, with_book && s->book_u8 ? s->book_scale : NULL},
        {".weight_outlier", RQ_I8, {s->n_out, s->n_outlier}, s->outlier},
        {".weight_outlier_cols", RQ_I32, {s->n_outlier}, s->outlier_col},
        {".weight_outlier_scale", RQ_F32, {s->n_outlier}, s->outlier_scale},
    };
    return rq_pack_add_parts(f, name, part, sizeof part / sizeof *part);
}

static rq_status make_entry(char **text, const rq_ssvq *s, const rq_ssvq_codes *q) {
    json_t *e = json_pack("{s:s, s:i, s:i, s:I, s:I, s:I, s:i}", "format", "ssvq", "vec_len", s->vec_len, "code_bits",
                          s->code_bits, "n_codes", (json_int_t)s->n_codes, "book_cols", (json_int_t)s->book_cols,
                          "group", (json_int_t)s->group, "n_outlier", s->n_outlier);
    if (q->book) json_object_set_new(e, "book", json_string(q->book));
    if (q->book_users > 1) json_object_set_new(e, "book_users", json_integer(q->book_users));
    *text = json_dumps(e, JSON_COMPACT);
    json_decref(e);
    return *text ? RQ_OK : rq_fail(RQ_ERR_NOMEM, "out of memory");
}

rq_status rq_ssvq_pack_file(rq_packed_file *f, char **json_entry, const char *name, const rq_ssvq_codes *q) {
    rq_status status = RQ_OK;
    rq_ssvq_codes own = *q;
    rq_packed p = {0};
    int64_t *shape;
    memset(f, 0, sizeof *f);
    *json_entry = NULL;
    if (own.book && strcmp(own.book, name) == 0) own.book = NULL;
    RQ_TRY(rq_ssvq_pack(&p, &own));
    RQ_TRY(rq_pack_new_shape(f, &shape, q->n_out, q->n_in));
    RQ_TRY(add_tensors(f, name, &p.u.ssvq, !own.book, shape));
    RQ_TRY(make_entry(json_entry, &p.u.ssvq, &own));
done:
    return rq_pack_end(f, &p, name, status);
}

/* ---- loading ---------------------------------------------------------------------------------------------------------- */

/* NAME + suffix, checked and aligned, as the member `to` of the matrix. */
#define LOAD(to, from, suffix, dtype, ...)                                                                             \
    RQ_TRY(rq_pack_load((const void **)&(to), p, s, (from), (suffix), (dtype), (int64_t[3])__VA_ARGS__))

static rq_status load_tensors(rq_packed *p, const rq_store *s, const char *name, const char *book) {
    rq_status status = RQ_OK;
    rq_ssvq *v = &p->u.ssvq;
    LOAD(v->codes, name, ".weight_codes", RQ_I32, {v->n_out, v->code_words});
    LOAD(v->signs, name, ".weight_signs", RQ_I32, {v->n_out, v->sign_words});
    LOAD(v->scale, name, ".weight_scale", RQ_F16, {v->n_out, v->n_group});
    /* The type of the magnitudes is the file's choice among two. */
    if (rq_pack_has(s, book, ".weight_book_scale")) {
        LOAD(v->book_u8, book, ".weight_book", RQ_U8, {v->n_book, v->n_codes, v->vec_len});
        LOAD(v->book_scale, book, ".weight_book_scale", RQ_F32, {v->n_book});
    } else {
        LOAD(v->book_f16, book, ".weight_book", RQ_F16, {v->n_book, v->n_codes, v->vec_len});
        RQ_TRY(unit_scales(p));
    }
    if (v->n_outlier) {
        LOAD(v->outlier, name, ".weight_outlier", RQ_I8, {v->n_out, v->n_outlier});
        LOAD(v->outlier_col, name, ".weight_outlier_cols", RQ_I32, {v->n_outlier});
        LOAD(v->outlier_scale, name, ".weight_outlier_scale", RQ_F32, {v->n_outlier});
    } else if (rq_pack_has(s, name, ".weight_outlier")) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: described as without outlier columns, but has them", name);
    }
done:
    return status;
}

/* The metadata's entry: {"format": "ssvq", "vec_len": 8, "code_bits": 8, "n_codes": 256, "book_cols": 4096, "group": 4096,
 * "n_outlier": 0}, and for a codebook that is shared "book": the name it is stored under, "book_users": how many use it. */
static rq_status load(rq_packed *p, const rq_store *s, const char *name, const void *json_entry) {
    rq_status status = RQ_OK;
    json_error_t error;
    json_int_t n_codes, book_cols, group, users = 1;
    const char *book = name;
    const rq_tensor *t;
    int64_t shape[2];
    rq_ssvq v = {0};
    memset(p, 0, sizeof *p);
    if (json_unpack_ex((json_t *)json_entry, &error, 0, "{s:i, s:i, s:I, s:I, s:I, s:i, s?:s, s?:I}", "vec_len",
                       &v.vec_len, "code_bits", &v.code_bits, "n_codes", &n_codes, "book_cols", &book_cols, "group",
                       &group, "n_outlier", &v.n_outlier, "book", &book, "book_users", &users) != 0) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: its description in the metadata is malformed: %s", name, error.text);
    }
    if (users < 1) RQ_FAIL(RQ_ERR_INPUT, "%s: a codebook with %lld users", name, (long long)users);
    RQ_TRY(rq_pack_find(&t, s, name, ".weight_shape", RQ_I64, (int64_t[3]){2}));
    memcpy(shape, t->data, sizeof shape);
    v.n_out = shape[0];
    v.n_in = shape[1];
    v.n_codes = n_codes;
    v.book_cols = book_cols;
    v.group = group;
    RQ_TRY(rq_ssvq_sizes(&v, name, RQ_ERR_INPUT));
    *p = describe(&v);
    RQ_TRY(load_tensors(p, s, name, book));
    RQ_TRY(check_contents(&p->u.ssvq, name, RQ_ERR_INPUT));
    rq_pack_share(p, book_bits(&p->u.ssvq), strcmp(book, name) == 0, users);
done:
    if (status != RQ_OK) rq_packed_free(p);
    return status;
}

static void inspect(const rq_packed *p, void *json_object) {
    const rq_ssvq *s = &p->u.ssvq;
    int64_t count[1 << 12] = {0};
    rq_pack_usage u = {.count = count, .n_codes = s->n_codes};
    json_t *to = json_object;
    char text[160];
    for (int64_t i = 0; i < s->n_out; ++i) {
        for (int64_t v = 0; v < rq_ssvq_n_vec(s->n_in, s->vec_len); ++v) ++count[rq_ssvq_code(s, i, v)];
        for (int64_t k = 0; k < s->n_group; ++k) {
            rq_pack_count_scale(&u, rq_f32_of_f16(s->scale[i * s->n_group + k]));
        }
    }
    json_object_set_new(to, "vec_len", json_integer(s->vec_len));
    json_object_set_new(to, "code_bits", json_integer(s->code_bits));
    json_object_set_new(to, "n_codes", json_integer(s->n_codes));
    json_object_set_new(to, "n_book", json_integer(s->n_book));
    json_object_set_new(to, "book_cols", json_integer(s->book_cols));
    json_object_set_new(to, "book_dtype", json_string(s->book_u8 ? "U8" : "F16"));
    json_object_set_new(to, "book_bits", json_integer(p->shared_bits));
    json_object_set_new(to, "group", json_integer(s->group));
    json_object_set_new(to, "n_outlier", json_integer(s->n_outlier));
    snprintf(text, sizeof text, "%d-vectors, %lld codes of %d bits, %lld %s book%s, group %lld, %d outliers",
             s->vec_len, (long long)s->n_codes, s->code_bits, (long long)s->n_book, s->book_u8 ? "U8" : "F16",
             s->n_book > 1 ? "s" : "", (long long)s->group, s->n_outlier);
    rq_pack_report(&u, to, text);
}

const rq_format_ops rq_format_ssvq = {"ssvq", unpack_row, size_bits, load, inspect};
