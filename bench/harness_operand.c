/* SPDX-License-Identifier: Apache-2.0 */
/* Random operands for the benchmarks (harness_operand.h). */
#include "harness_operand.h"

static uint64_t seed = 88172645463325252u;

static uint64_t draw(void) { /* xorshift: fast enough to fill gigabytes */
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

float bench_noise(void) { return (float)(int32_t)(draw() >> 32) * 0x1p-31f; }

/* Random codes (zeros would flatter), scales and zero points. */
rq_status bench_make_grid(bench_subject *s, int bits, int64_t group, bool sym, bool f32_scales) {
    rq_status status = RQ_OK;
    if (group == 0 || group > s->n_in) group = s->n_in;
    s->operand = s->variant = "grid";
    s->bits = bits;
    s->packed = (rq_packed){.format = RQ_FORMAT_GRID, .n_out = s->n_out, .n_in = s->n_in};
    rq_grid *g = &s->packed.u.grid;
    *g = (rq_grid){.n_out = s->n_out, .n_in = s->n_in, .bits = bits, .group = group};
    g->n_group = rq_ceil_div(s->n_in, group);
    g->row_words = rq_grid_row_words(s->n_in, bits);
    int64_t n = s->n_out * g->n_group;
    s->copy_bytes = s->n_out * g->row_words * 4;
    if (f32_scales) {
        float *scale;
        RQ_TRY(RQ_NEW(scale, n));
        s->side[0] = scale;
        for (int64_t i = 0; i < n; ++i) scale[i] = 0.01f + 0.005f * bench_noise();
        g->scale_f32 = scale;
    } else {
        rq_f16 *scale;
        RQ_TRY(RQ_NEW(scale, n));
        s->side[0] = scale;
        for (int64_t i = 0; i < n; ++i) scale[i] = rq_f16_of_f32(0.01f + 0.005f * bench_noise());
        g->scale_f16 = scale;
    }
    if (!sym) {
        uint8_t *zero;
        RQ_TRY(RQ_NEW(zero, n));
        s->side[1] = zero;
        for (int64_t i = 0; i < n; ++i) zero[i] = (uint8_t)(draw() & ((1u << bits) - 1u));
        g->zero = zero;
    }
    s->size_bits = rq_packed_size_bits(&s->packed);
done:
    return status;
}

/* 8-bit outlier columns, spread over the matrix. */
enum { MAX_OUTLIERS = RQ_SSVQ_MAX_OUTLIERS };
struct outliers {
    int n;
    float scale[MAX_OUTLIERS];
    int32_t col[MAX_OUTLIERS];
    int8_t value[];
};

static rq_status make_outliers(void **side, const bench_subject *s, int n) {
    rq_status status = RQ_OK;
    struct outliers *o;
    RQ_TRY(rq_alloc((void **)&o, (int64_t)sizeof *o + s->n_out * MAX_OUTLIERS, 1));
    *side = o;
    o->n = (int)rq_min_i64(n, s->n_in);
    for (int i = 0; i < o->n; ++i) {
        o->scale[i] = 0.001f + 0.0005f * bench_noise();
        o->col[i] = (int32_t)(i * s->n_in / o->n);
    }
    for (int64_t i = 0; i < s->n_out * MAX_OUTLIERS; ++i) o->value[i] = (int8_t)(draw() >> 56);
done:
    return status;
}

rq_status bench_make_ssvq(bench_subject *s, int vec_len, int64_t group, int n_outlier, bool f16) {
    rq_status status = RQ_OK;
    const int64_t n_vec = rq_ssvq_n_vec(s->n_in, vec_len), n_book = 256 * vec_len;
    if (group == 0 || group > s->n_in) group = s->n_in;
    if (group % vec_len && group != s->n_in) {
        RQ_FAIL(RQ_ERR_ARG, "groups of %lld columns do not fit vectors of %d", (long long)group, vec_len);
    }
    s->operand = "ssvq";
    s->variant = f16 ? "ssvq-f16" : "ssvq";
    s->bits = vec_len == 8 ? 2 : 3;
    s->packed = (rq_packed){.format = RQ_FORMAT_SSVQ, .n_out = s->n_out, .n_in = s->n_in};
    rq_ssvq *q = &s->packed.u.ssvq;
    *q = (rq_ssvq){.n_out = s->n_out, .n_in = s->n_in, .vec_len = vec_len, .code_bits = 8, .n_codes = 256, .n_book = 1};
    q->book_cols = n_vec * vec_len;
    q->group = group;
    q->n_group = rq_ceil_div(s->n_in, group);
    q->code_words = rq_ssvq_code_words(s->n_in, vec_len, 8);
    q->sign_words = rq_ssvq_sign_words(s->n_in, vec_len);
    s->copy_bytes = s->n_out * (q->code_words + q->sign_words) * 4;
    rq_f16 *scale, *book_f16;
    uint8_t *book_u8;
    float *book_scale;
    RQ_TRY(RQ_NEW(scale, s->n_out * q->n_group));
    q->scale = s->side[0] = scale;
    for (int64_t i = 0; i < s->n_out * q->n_group; ++i) scale[i] = rq_f16_of_f32(0.01f + 0.005f * bench_noise());
    RQ_TRY(RQ_NEW(book_scale, 1));
    q->book_scale = s->side[1] = book_scale;
    *book_scale = f16 ? 1.0f : 0.01f;
    RQ_TRY(RQ_NEW(book_f16, n_book));
    s->side[2] = book_f16;
    RQ_TRY(RQ_NEW(book_u8, n_book));
    s->side[3] = book_u8;
    for (int64_t i = 0; i < n_book; ++i) {
        book_u8[i] = (uint8_t)(draw() >> 56);
        book_f16[i] = rq_f16_of_f32(0.01f * (float)book_u8[i]);
    }
    q->book_u8 = f16 ? NULL : book_u8;
    q->book_f16 = f16 ? book_f16 : NULL;
    RQ_TRY(make_outliers(&s->side[4], s, n_outlier));
    const struct outliers *outliers = s->side[4];
    q->n_outlier = outliers->n;
    q->outlier_scale = outliers->scale;
    q->outlier_col = outliers->col;
    q->outlier = outliers->value;
    s->packed.shared_bits = f16 ? n_book * 16 : n_book * 8 + 32;
    s->size_bits = rq_packed_size_bits(&s->packed);
done:
    return status;
}

/* n halves around a mean, no zeros. */
static rq_status random_halves(const rq_f16 **p, void **side, int64_t n, float mean, float spread) {
    rq_status status = RQ_OK;
    rq_f16 *v;
    RQ_TRY(RQ_NEW(v, n));
    *p = *side = v;
    for (int64_t i = 0; i < n; ++i) v[i] = rq_f16_of_f32(mean + spread * bench_noise());
done:
    return status;
}

rq_status bench_make_vq(bench_subject *s, const bench_book *book, int64_t group, int n_outlier) {
    rq_status status = RQ_OK;
    const int64_t V = book->vec_len;
    if (group == 0 || group > s->n_in) group = s->n_in;
    if (!book->vec_out && group % V && group != s->n_in) {
        RQ_FAIL(RQ_ERR_ARG, "groups of %lld columns do not fit vectors of %d", (long long)group, book->vec_len);
    }
    s->operand = "vq";
    s->variant = book->name;
    s->bits = (book->code_bits[0] + book->code_bits[1] + book->vec_len - 1) / book->vec_len;
    s->packed = (rq_packed){.format = RQ_FORMAT_VQ, .n_out = s->n_out, .n_in = s->n_in};
    rq_vq *q = &s->packed.u.vq;
    *q = (rq_vq){.n_out = s->n_out, .n_in = s->n_in, .vec_len = book->vec_len, .vec_out = book->vec_out};
    q->n_stage = book->n_stage;
    q->n_line = q->vec_out ? rq_ceil_div(s->n_out, V) : s->n_out;
    q->n_code = q->vec_out ? s->n_in : rq_ceil_div(s->n_in, V);
    q->n_book = 1;
    q->book_cols = q->n_code * (q->vec_out ? 1 : V);
    q->group = group;
    q->n_group = rq_ceil_div(s->n_in, group);
    for (int i = 0; i < q->n_stage; ++i) {
        q->code_bits[i] = book->code_bits[i];
        q->n_codes[i] = (int64_t)1 << book->code_bits[i];
        q->code_words[i] = rq_ceil_div(q->n_code * q->code_bits[i], 32);
        s->copy_bytes += q->n_line * q->code_words[i] * 4;
        s->packed.shared_bits += q->n_codes[i] * V * 16;
        RQ_TRY(random_halves(&q->book[i], &s->side[i], q->n_codes[i] * V, 0.0f, i ? 0.2f : 1.0f));
    }
    if (q->vec_out) {
        RQ_TRY(random_halves(&q->col_scale, &s->side[2], s->n_in, 0.01f, 0.005f));
        RQ_TRY(random_halves(&q->col_bias, &s->side[3], s->n_in, 0.0f, 0.001f));
    } else {
        RQ_TRY(random_halves(&q->scale, &s->side[2], s->n_out * q->n_group, 0.01f, 0.005f));
    }
    RQ_TRY(make_outliers(&s->side[4], s, n_outlier));
    const struct outliers *outliers = s->side[4];
    q->n_outlier = outliers->n;
    q->outlier_scale = outliers->scale;
    q->outlier_col = outliers->col;
    q->outlier = outliers->value;
    s->size_bits = rq_packed_size_bits(&s->packed);
done:
    return status;
}

void bench_make_dense(bench_subject *s, const char *operand) {
    bool q8 = !strcmp(operand, "q8_0_rows");
    int64_t row = q8 ? s->n_in / 32 * (int64_t)sizeof(rq_q8_0) : s->n_in * (strcmp(operand, "f32_rows") ? 2 : 4);
    s->operand = s->variant = operand;
    s->dense = (rq_dense){s->n_out, s->n_in, row, NULL};
    s->copy_bytes = s->n_out * row;
    s->size_bits = s->copy_bytes * 8;
    s->bits = (int)(row * 8 / s->n_in);
}

/* Values of magnitude near 0.01, as the operand stores them. */
static void fill_dense(bench_subject *s) {
    unsigned char *p = s->copies;
    for (int64_t i = 0; i < s->n_out * s->n_in; ++i) {
        float v = 0.02f * bench_noise();
        if (!strcmp(s->operand, "f32_rows")) {
            memcpy(p + 4 * i, &v, 4);
        } else if (!strcmp(s->operand, "q8_0_rows")) {
            rq_q8_0 *block = (rq_q8_0 *)p + i / 32;
            if (i % 32 == 0) block->d = rq_f16_of_f32(0.0001f + 0.00005f * bench_noise());
            block->q[i % 32] = (int8_t)(draw() >> 56);
        } else {
            uint16_t bits = strcmp(s->operand, "f16_rows") ? rq_bf16_of_f32(v).bits : rq_f16_of_f32(v).bits;
            memcpy(p + 2 * i, &bits, 2);
        }
    }
}

static bool is_packed(const bench_subject *s) { return s->packed.n_out > 0; }

void bench_copy_at(rq_packed *p, rq_dense *d, const bench_subject *s, const unsigned char *data) {
    const uint32_t *words = (const uint32_t *)data;
    *p = s->packed;
    *d = s->dense;
    d->data = data;
    if (!is_packed(s)) return;
    if (p->format == RQ_FORMAT_GRID) {
        p->u.grid.words = words;
    } else if (p->format == RQ_FORMAT_VQ) {
        p->u.vq.codes[0] = words;
        p->u.vq.codes[1] = words + p->u.vq.n_line * p->u.vq.code_words[0];
    } else {
        p->u.ssvq.codes = words;
        p->u.ssvq.signs = words + s->n_out * p->u.ssvq.code_words;
    }
}

rq_status bench_make_copies(bench_subject *s, const bench_machine *m) {
    rq_status status = RQ_OK;
    s->copy_bytes = rq_ceil_div(s->copy_bytes + 64, 64) * 64; /* room for reads past the end */
    s->n_copies = rq_ceil_div(4 * m->llc_bytes, s->copy_bytes) + 1;
    RQ_TRY(RQ_NEW(s->copies, s->n_copies * s->copy_bytes));
    if (is_packed(s)) {
        for (int64_t i = 0; i < s->copy_bytes / 8; ++i) ((uint64_t *)s->copies)[i] = draw();
    } else {
        fill_dense(s);
    }
    bench_copy_at(&s->packed, &s->dense, s, s->copies);
    for (int64_t i = 1; i < s->n_copies; ++i) memcpy(s->copies + i * s->copy_bytes, s->copies, (size_t)s->copy_bytes);
done:
    return status;
}

void bench_drop_subject(bench_subject *s) {
    free(s->copies);
    for (size_t i = 0; i < sizeof s->side / sizeof *s->side; ++i) free(s->side[i]);
}

void bench_define_row(const bench_subject *s, int64_t row, float *w) {
    const unsigned char *p = s->dense.data + row * s->dense.row_bytes;
    if (is_packed(s)) {
        rq_unpack_row(&s->packed, row, w);
        return;
    }
    for (int64_t j = 0; j < s->n_in; ++j) {
        rq_q8_0 block;
        uint16_t half;
        if (!strcmp(s->operand, "f32_rows")) {
            memcpy(&w[j], p + 4 * j, 4);
        } else if (!strcmp(s->operand, "q8_0_rows")) {
            memcpy(&block, p + j / 32 * (int64_t)sizeof block, sizeof block);
            w[j] = rq_f32_of_f16(block.d) * (float)block.q[j % 32];
        } else {
            memcpy(&half, p + 2 * j, 2);
            w[j] = strcmp(s->operand, "f16_rows") ? rq_f32_of_bf16((rq_bf16){half}) : rq_f32_of_f16((rq_f16){half});
        }
    }
}
