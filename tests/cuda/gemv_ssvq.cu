/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA GEMV on SSVQ (cuda/gemv_ssvq.cuh) against sums in double of its definition, over shapes chosen for their edges.
 * Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "gemv_case.h"
#include "ssvq_stack.h"

static void test_problem(const problem *p) {
    rq_rng rng = {(uint64_t)p->rows[0] * 1000003u + (uint64_t)p->n_in * 1009u + (uint64_t)p->vec_len * 101u +
                  (uint64_t)p->group * 7u + (uint64_t)p->n_tok};
    stack m = make_stack(p, &rng);
    const device v = set_up(p, &m);
    const size_t n_y = (size_t)p->n_tok * m.n_out, n_x = (size_t)p->n_tok * p->n_in;
    uint16_t *x = (uint16_t *)rq_host_alloc(n_x * 2), *y = (uint16_t *)rq_host_alloc(n_y * 2);
    uint16_t *residual = (uint16_t *)rq_host_alloc(n_y * 2), *bias = (uint16_t *)rq_host_alloc((size_t)m.n_out * 2);
    fill(&rng, p->bf16, x, n_x), fill(&rng, p->bf16, residual, n_y), fill(&rng, p->bf16, bias, (size_t)m.n_out);
    CHECK_CUDA(cudaMemcpy(v.x, x, n_x * 2, cudaMemcpyHostToDevice));
    if (p->bias) CHECK_CUDA(cudaMemcpy(v.bias, bias, (size_t)m.n_out * 2, cudaMemcpyHostToDevice));
    if (p->residual) CHECK_CUDA(cudaMemcpy(v.residual, residual, n_y * 2, cudaMemcpyHostToDevice));
    cudaStream_t stream;
    CHECK_CUDA(cudaStreamCreate(&stream));
    run(p, &v, stream);
    CHECK_CUDA(cudaStreamSynchronize(stream));
    rq_device_read(y, v.a.y, n_y * 2);
    expect_clean_workspace(&v);

    double worst = 0;
    for (int t = 0; t < p->n_tok; ++t)
        for (int i = 0; i < m.n_out; i += m.stride) {
            double want = 0, size = 0;
            for (int j = 0; j < p->n_in; ++j) {
                const double term = m.w[(size_t)i * p->n_in + j] *
                                    value_of(p->bf16, x[(size_t)t * p->n_in + (p->perm ? m.perm[j] : j)]);
                want += term, size += fabs(term);
            }
            const size_t at = (size_t)t * m.n_out + i;
            if (p->bias) want += value_of(p->bf16, bias[i]), size += 1;
            if (p->residual) want += value_of(p->bf16, residual[at]), size += 1;
            /* fp32 sums of at most n_in / 16 mma and 16 warps' partial sums, and the rounding of y. */
            const double bound =
                size * (p->n_in / 16 + 64) * 0x1p-23 + fabs(want) * (p->bf16 ? 0x1p-8 : 0x1p-11) * 1.001 + 0x1p-24;
            const double got = value_of(p->bf16, y[at]);
            EXPECT_NEAR_AT(at, got, want, bound);
            worst = fmax(worst, fabs(got - want) / bound);
        }
    test_graph(p, &v, stream, y, n_y);
    expect_clean_workspace(&v);
    CHECK_CUDA(cudaStreamDestroy(stream));

    char name[96];
    snprintf(name, sizeof name, "y %s %dx%d v%d g%d o%d t%d", p->what, m.n_out, p->n_in, p->vec_len, p->group,
             p->n_outlier, p->n_tok);
    printf("%-44s %s: %d blocks, split %d, 2^%d warps a row block, error %.2f of the bound\n", name + 2, v.plan.kernel,
           v.plan.blocks, v.plan.split, v.plan.log_warps, worst);
    /* The tensor cores of a GPU may truncate where the simulator rounds. */
    rq_record(name, p->bf16 ? RQ_BF16 : RQ_F16, y, n_y, 0x1p-6 * p->n_in / 64);
    rq_device_free_all();
    free_stack(&m);
    free(x), free(y), free(residual), free(bias);
}

/* x with a single 1: y is a column of W. The scales are powers of two, so that there is one rounding, that of y, and the result is
 * exact. All columns, 16 at a time. */
static void test_decode(const problem *p) {
    rq_rng rng = {(uint64_t)p->vec_len * 31u + (uint64_t)p->group};
    stack m = make_stack(p, &rng);
    for (int k = 0; k < m.n; ++k) {
        const rq_ssvq *s = &m.s[k];
        for (int64_t i = 0; i < s->n_out * s->n_group; ++i)
            ((rq_f16 *)s->scale)[i].bits = rq_half_bits(ldexpf(1.0f, (int)(i % 5) - 4));
        for (int64_t b = 0; b < s->n_book; ++b) ((float *)s->book_scale)[b] = ldexpf(1.0f, -(int)(b % 3) - 4);
        for (int o = 0; o < s->n_outlier; ++o) ((float *)s->outlier_scale)[o] = ldexpf(1.0f, -o % 4);
    }
    rq_repack_ssvq(m.packed, &m.layout, m.s, m.n);
    const device v = set_up(p, &m);
    const size_t n_x = (size_t)16 * p->n_in, n_y = (size_t)16 * m.n_out;
    uint16_t *x = (uint16_t *)rq_host_alloc(n_x * 2), *y = (uint16_t *)rq_host_alloc(n_y * 2);
    for (int j0 = 0; j0 < p->n_in; j0 += 16) {
        memset(x, 0, n_x * 2);
        for (int t = 0; t < 16; ++t) x[(size_t)t * p->n_in + (j0 + t) % p->n_in] = bits_of(p->bf16, 1.0f);
        CHECK_CUDA(cudaMemcpy(v.x, x, n_x * 2, cudaMemcpyHostToDevice));
        run(p, &v, 0);
        CHECK_CUDA(cudaDeviceSynchronize());
        rq_device_read(y, v.a.y, n_y * 2);
        for (int k = 0, row = 0; k < m.n; ++k)
            for (int64_t i = 0; i < m.s[k].n_out; ++i, ++row)
                for (int t = 0; t < 16; ++t) {
                    const rq_ssvq *s = &m.s[k];
                    const int64_t j = (j0 + t) % p->n_in, b = j / s->book_cols;
                    const int64_t at =
                        (b * s->n_codes + rq_ssvq_code(s, i, j / s->vec_len)) * s->vec_len + j % s->vec_len;
                    float want = (s->book_u8 ? s->book_u8[at] : rq_half_value(s->book_f16[at].bits)) *
                                 s->book_scale[b] * rq_half_value(s->scale[i * s->n_group + j / s->group].bits) *
                                 (rq_ssvq_negative(s, i, j) ? -1.0f : 1.0f);
                    for (int o = 0; o < s->n_outlier; ++o)
                        if (s->outlier_col[o] == j) want = s->outlier_scale[o] * s->outlier[i * s->n_outlier + o];
                    const uint16_t got = y[(size_t)t * m.n_out + row];
                    EXPECT_EQ_AT(j, want == 0.0f ? got & 0x7fff : got, want == 0.0f ? 0 : bits_of(p->bf16, want));
                }
    }
    expect_clean_workspace(&v);
    printf("decode %dx%d v%d g%d o%d%s%s\n", m.n_out, p->n_in, p->vec_len, p->group, p->n_outlier, p->u8 ? " u8" : "",
           p->bf16 ? " bf16" : "");
    rq_device_free_all();
    free_stack(&m);
    free(x), free(y);
}

static void expect_refused(rq_cuda_gemv_desc d, const char *word) {
    const char *why = "";
    EXPECT_EQ(rq_cuda_gemv_supports(&d, &why), RQ_ERR_UNSUPPORTED);
    if (rq_failed(strstr(why, word) != NULL)) fprintf(stderr, "\"%s\" does not say \"%s\"\n", why, word);
}
static void test_refusals(void) {
    rq_cuda_gemv_desc good = rq_cuda_gemv_desc_default(), d;
    good.kind = RQ_TILE_SSVQ, good.n_out = 64, good.n_in = 512, good.vec_len = 8;
    good.group = 512, good.n_book = 1, good.book_cols = 512, good.book_u8 = 1;
    EXPECT_EQ(rq_cuda_gemv_supports(&good, NULL), RQ_OK);
    d = good, d.vec_len = 2, expect_refused(d, "4 or 8");
    d = good, d.group = 40, expect_refused(d, "multiples of 32");
    d = good, d.n_book = 3, expect_refused(d, "codebook");
    d = good, d.n_book = 8, d.book_cols = 64, expect_refused(d, "128");
    d = good, d.code_bits = 13, expect_refused(d, "12 bits");
    d = good, d.n_outlier = 17, expect_refused(d, "outlier");
    d = good, d.book_u8 = 0, d.act = RQ_ACT_BF16, expect_refused(d, "fp16 magnitudes");
    d = good, d.zeros = 1, expect_refused(d, "zero points");
    d = good, d.n_tok = 17, expect_refused(d, "n_tok");
}

int main(void) {
    rq_need_device(80);
    test_refusals();
    for (int vec_len = 8; vec_len >= 4; vec_len -= 4) {
        const problem decodes[] = {
            /* rows                   bits book  group out n_tok u8    bf16   perm   bias   residual early */
            {"decode", {19}, 160, vec_len, 8, 160, 160, 0, 16, true, false, false, false, false, false},
            {"decode", {16}, 300, vec_len, 8, 128, 32, 3, 16, true, true, false, false, false, false},
            {"decode", {32, 17}, 384, vec_len, 8, 256, 128, 16, 16, false, false, false, false, false, false},
            {"decode", {33}, 384, vec_len, 8, 256, 32, 5, 16, true, false, false, false, false, false},
            {"decode", {16}, 400, vec_len, 6, 400, 128, 0, 16, true, false, false, false, false, false},
            {"decode", {20}, 640, vec_len, 10, 640, 640, 1, 16, true, false, false, false, false, false},
            {"decode", {20}, 640, vec_len, 12, 256, 64, 1, 16, true, false, false, false, false, false},
            {"decode", {16}, 512, vec_len, 12, 512, 512, 0, 16, true, true, false, false, false, false},
            {"decode", {32, 3}, 512, vec_len, 9, 256, 512, 0, 16, false, false, false, false, false, false},
        };
        for (size_t i = 0; i < sizeof decodes / sizeof decodes[0]; ++i) test_decode(&decodes[i]);
        const problem problems[] = {
            {"least", {1}, 4, vec_len, 8, 4, 4, 0, 1, true, false, false, false, false, false},
            {"rows", {15}, 128, vec_len, 4, 128, 128, 1, 2, false, false, false, true, false, false},
            {"rows", {16}, 160, vec_len, 8, 160, 32, 16, 3, true, true, false, false, true, false},
            {"rows", {17}, 160, vec_len, 7, 160, 64, 2, 8, true, true, true, true, true, true},
            {"odd", {33}, 1000, vec_len, 8, 1000, 1000, 16, 9, true, false, true, false, true, true},
            {"odd", {51}, 333, vec_len, 5, 333, 96, 5, 5, false, false, false, true, true, false},
            {"books", {40}, 900, vec_len, 8, 256, 900, 4, 7, true, true, false, true, false, false},
            {"books", {21}, 1000, vec_len, 6, 128, 128, 0, 16, false, false, true, false, true, false},
            {"qkv", {64, 32, 25}, 640, vec_len, 8, 640, 640, 16, 1, true, false, false, false, false, true},
            {"qkv", {32, 16, 16}, 640, vec_len, 8, 256, 128, 3, 12, true, true, false, true, false, true},
            {"long", {40}, 4096 + 36, vec_len, 8, 4096 + 36, 4096 + 36, 16, 1, true, false, false, false, false, false},
            {"long", {40}, 4096 + 36, vec_len, 8, 2048, 64, 7, 16, true, true, false, true, true, true},
            {"bytes", {50}, 900, vec_len, 8, 256, 32, 4, 4, true, false, false, true, true, false},
            {"bytes", {50}, 900, vec_len, 8, 900, 128, 1, 13, true, false, true, false, true, true},
            {"wide", {40}, 900, vec_len, 11, 384, 32, 4, 3, true, true, false, true, true, false},
            {"wide", {49}, 1000, vec_len, 12, 1000, 1000, 2, 12, false, false, true, false, true, true},
            {"wide", {33}, 640, vec_len, 10, 640, 128, 1, 16, true, false, false, true, false, false},
            {"rowwise", {70}, 2050, vec_len, 8, 2050, 2050, 0, 4, false, false, false, false, false, false},
        };
        for (size_t i = 0; i < sizeof problems / sizeof problems[0]; ++i)
            if (!rq_small() || problems[i].n_in <= 1000) test_problem(&problems[i]);
        /* The shape whose counts docs/kernels.md has. */
        const problem layer = {"layer", {4096}, 4096,  vec_len, 8,     4096,  4096, 16,
                               1,       true,   false, false,   false, false, true};
        test_problem(&layer);
        for (int code_bits = 10; code_bits <= 12; code_bits += 2) {
            problem wide = layer;
            wide.what = "wide layer", wide.code_bits = code_bits;
            test_problem(&wide);
        }
    }
    return rq_done(__FILE__);
}
