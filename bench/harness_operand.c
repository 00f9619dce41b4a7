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
    s->operand = "grid";
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

void bench_make_dense(bench_subject *s, const char *operand) {
    bool q8 = !strcmp(operand, "q8_0_rows");
    int64_t row = q8 ? s->n_in / 32 * (int64_t)sizeof(rq_q8_0) : s->n_in * (strcmp(operand, "f32_rows") ? 2 : 4);
    s->operand = operand;
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

rq_status bench_make_copies(bench_subject *s, const bench_machine *m) {
    rq_status status = RQ_OK;
    s->copy_bytes = rq_ceil_div(s->copy_bytes + 64, 64) * 64; /* room for reads past the end */
    s->n_copies = rq_ceil_div(4 * m->llc_bytes, s->copy_bytes) + 1;
    RQ_TRY(RQ_NEW(s->copies, s->n_copies * s->copy_bytes));
    if (!strcmp(s->operand, "grid")) {
        for (int64_t i = 0; i < s->copy_bytes / 8; ++i) ((uint64_t *)s->copies)[i] = draw();
        s->packed.u.grid.words = (const uint32_t *)s->copies;
    } else {
        fill_dense(s);
        s->dense.data = s->copies;
    }
    for (int64_t i = 1; i < s->n_copies; ++i) memcpy(s->copies + i * s->copy_bytes, s->copies, (size_t)s->copy_bytes);
done:
    return status;
}

void bench_drop_subject(bench_subject *s) {
    free(s->copies);
    free(s->side[0]);
    free(s->side[1]);
}

void bench_define_row(const bench_subject *s, int64_t row, float *w) {
    const unsigned char *p = s->dense.data + row * s->dense.row_bytes;
    if (!strcmp(s->operand, "grid")) {
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
