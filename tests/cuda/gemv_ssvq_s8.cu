/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA GEMV on SSVQ with int8 activations (cuda/gemv_ssvq_s8.cuh). With a scale a row its definition is integer sums and a few roundings
 * that are written out here, and the result must be the same bits; with groups or several codebooks, sums in double.
 * Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "gemv_case.h"
#include "ssvq_stack.h"

typedef struct inputs {
    int8_t *x;                 /* [n_tok][n_in] */
    float *x_scale;            /* [n_tok] */
    uint16_t *residual, *bias; /* [n_tok][n_out], [n_out] */
} inputs;

static inputs make_inputs(const problem *p, int n_out, rq_rng *rng) {
    const size_t n_x = (size_t)p->n_tok * p->n_in, n_y = (size_t)p->n_tok * n_out;
    inputs in;
    in.x = (int8_t *)rq_host_alloc(n_x);
    in.x_scale = (float *)rq_host_alloc((size_t)p->n_tok * 4);
    in.residual = (uint16_t *)rq_host_alloc(n_y * 2), in.bias = (uint16_t *)rq_host_alloc((size_t)n_out * 2);
    for (size_t i = 0; i < n_x; ++i) in.x[i] = (int8_t)((int)(rq_rand_u32(rng) % 255) - 127);
    in.x[0] = -128; /* nobody's quantizer gives it, but bytes are bytes */
    for (int t = 0; t < p->n_tok; ++t) in.x_scale[t] = (rq_rand_float(rng) + 2.0f) / 300;
    fill(rng, p->bf16, in.residual, n_y), fill(rng, p->bf16, in.bias, (size_t)n_out);
    return in;
}
static void free_inputs(inputs *in) { free(in->x), free(in->x_scale), free(in->residual), free(in->bias); }

/* The definition for a scale a row and one codebook: row i of matrix s, x of a token in stored order. */
static uint16_t definition(const problem *p, const rq_ssvq *s, int64_t i, const int8_t *x, float x_scale,
                           const uint16_t *bias, const uint16_t *residual) {
    int64_t sum = 0;
    for (int64_t j = 0; j < s->n_in; ++j) {
        bool outlier = false;
        for (int o = 0; o < s->n_outlier; ++o) outlier |= s->outlier_col[o] == j;
        if (outlier) continue;
        const int m = s->book_u8[rq_ssvq_code(s, i, j / s->vec_len) * s->vec_len + j % s->vec_len];
        sum += rq_ssvq_negative(s, i, j) ? -m * x[j] : m * x[j];
    }
    float y = (float)sum * s->book_scale[0] * rq_half_value(s->scale[i].bits);
    for (int o = 0; o < s->n_outlier; ++o)
        y = fmaf(s->outlier_scale[o] * s->outlier[i * s->n_outlier + o], x[s->outlier_col[o]], y);
    y *= x_scale;
    if (bias) y += value_of(p->bf16, *bias);
    if (residual) y += value_of(p->bf16, *residual);
    return bits_of(p->bf16, y);
}

static device set_up(const problem *p, const stack *m, const inputs *in) {
    device v = {};
    v.d = describe(p, &m->layout);
    v.d.x_s8 = 1;
    make_plan(&v, p->what);
    const size_t n_y = (size_t)p->n_tok * m->n_out;
    v.a.y = rq_device_buffer(n_y * 2);
    v.a.x = v.x = rq_device_copy(in->x, (size_t)p->n_tok * p->n_in);
    v.a.x_scale = (const float *)rq_device_copy(in->x_scale, (size_t)p->n_tok * 4);
    v.a.weights = rq_device_copy(m->packed, (size_t)m->layout.bytes);
    if (p->bias) v.a.bias = rq_device_copy(in->bias, (size_t)m->n_out * 2);
    if (p->residual) v.a.residual = rq_device_copy(in->residual, n_y * 2);
    if (p->perm) v.a.perm = (const int32_t *)rq_device_copy(m->perm, (size_t)p->n_in * 4);
    return v;
}

/* Every output against the definition: bits where there are such, else a bound. */
static double check(const problem *p, const stack *m, const inputs *in, const uint16_t *y) {
    const bool exact = p->group == p->n_in && p->book_cols >= p->n_in;
    int8_t *x = (int8_t *)rq_host_alloc((size_t)p->n_in);
    double worst = 0;
    for (int t = 0; t < p->n_tok; ++t) {
        for (int j = 0; j < p->n_in; ++j) x[j] = in->x[(size_t)t * p->n_in + (p->perm ? m->perm[j] : j)];
        for (int k = 0, first = 0; k < m->n; first += (int)m->s[k++].n_out)
            for (int64_t i = 0; i < m->s[k].n_out; ++i) {
                const int row = first + (int)i;
                const size_t at = (size_t)t * m->n_out + row;
                if (row % m->stride) continue;
                const uint16_t *bias = p->bias ? in->bias + row : NULL;
                const uint16_t *residual = p->residual ? in->residual + at : NULL;
                if (exact) {
                    EXPECT_EQ_AT(at, y[at], definition(p, &m->s[k], i, x, in->x_scale[t], bias, residual));
                    continue;
                }
                double want = 0, size = 0;
                for (int j = 0; j < p->n_in; ++j) {
                    const double term = m->w[(size_t)row * p->n_in + j] * x[j] * (double)in->x_scale[t];
                    want += term, size += fabs(term);
                }
                if (bias) want += value_of(p->bf16, *bias), size += 1;
                if (residual) want += value_of(p->bf16, *residual), size += 1;
                /* Products are exact, sums of groups are added in fp32, in as many additions as there are groups, parts and warps. */
                const double bound =
                    size * (p->n_in / 32 + 64) * 0x1p-24 + fabs(want) * (p->bf16 ? 0x1p-8 : 0x1p-11) * 1.001 + 0x1p-24;
                const double got = value_of(p->bf16, y[at]);
                EXPECT_NEAR_AT(at, got, want, bound);
                worst = fmax(worst, fabs(got - want) / bound);
            }
    }
    free(x);
    return worst;
}

static void test_problem(const problem *p) {
    rq_rng rng = {(uint64_t)p->rows[0] * 100003u + (uint64_t)p->n_in * 109u + (uint64_t)p->vec_len * 11u +
                  (uint64_t)p->n_tok};
    stack m = make_stack(p, &rng);
    inputs in = make_inputs(p, m.n_out, &rng);
    const device v = set_up(p, &m, &in);
    const size_t n_y = (size_t)p->n_tok * m.n_out;
    uint16_t *y = (uint16_t *)rq_host_alloc(n_y * 2), *again = (uint16_t *)rq_host_alloc(n_y * 2);
    run(p, &v, 0);
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(y, v.a.y, n_y * 2);
    const double worst = check(p, &m, &in, y);

    /* Twice from a graph, into a spoilt y: the same bytes. */
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK_CUDA(cudaMemset(v.a.y, 0x5a, n_y * 2));
    CHECK_CUDA(cudaStreamCreate(&stream));
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    run(p, &v, stream);
    run(p, &v, stream);
    CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CHECK_CUDA(cudaGraphLaunch(exec, stream));
    CHECK_CUDA(cudaStreamSynchronize(stream));
    rq_device_read(again, v.a.y, n_y * 2);
    EXPECT_EQ(memcmp(y, again, n_y * 2), 0);
    CHECK_CUDA(cudaGraphExecDestroy(exec));
    CHECK_CUDA(cudaGraphDestroy(graph));
    CHECK_CUDA(cudaStreamDestroy(stream));

    char name[96];
    snprintf(name, sizeof name, "y %s %dx%d v%d g%d o%d t%d", p->what, m.n_out, p->n_in, p->vec_len, p->group,
             p->n_outlier, p->n_tok);
    printf("%-44s %s: %d blocks, split %d, 2^%d warps a row block, error %.2f of the bound\n", name + 2, v.plan.kernel,
           v.plan.blocks, v.plan.split, v.plan.log_warps, worst);
    rq_record(name, p->bf16 ? RQ_BF16 : RQ_F16, y, n_y, 0x1p-6 * p->n_in / 64);
    rq_device_free_all();
    free_stack(&m), free_inputs(&in);
    free(y), free(again);
}

/* x with a single 1: y is a column of W, exactly, since all scales are powers of two. All columns, 16 at a time. */
static void test_decode(const problem *p) {
    rq_rng rng = {(uint64_t)p->vec_len * 37u + (uint64_t)p->group};
    stack m = make_stack(p, &rng);
    for (int k = 0; k < m.n; ++k) {
        const rq_ssvq *s = &m.s[k];
        for (int64_t i = 0; i < s->n_out * s->n_group; ++i)
            ((rq_f16 *)s->scale)[i].bits = rq_half_bits(ldexpf(1.0f, (int)(i % 5) - 4));
        for (int64_t b = 0; b < s->n_book; ++b) ((float *)s->book_scale)[b] = ldexpf(1.0f, -(int)(b % 3) - 4);
        for (int o = 0; o < s->n_outlier; ++o) ((float *)s->outlier_scale)[o] = ldexpf(1.0f, -o % 4);
    }
    rq_repack_ssvq(m.packed, &m.layout, m.s, m.n);
    inputs in = make_inputs(p, m.n_out, &rng);
    for (int t = 0; t < 16; ++t) in.x_scale[t] = t % 2 ? 0.5f : 1.0f;
    const device v = set_up(p, &m, &in);
    const size_t n_x = (size_t)16 * p->n_in, n_y = (size_t)16 * m.n_out;
    uint16_t *y = (uint16_t *)rq_host_alloc(n_y * 2);
    for (int j0 = 0; j0 < p->n_in; j0 += 16) {
        memset(in.x, 0, n_x);
        for (int t = 0; t < 16; ++t) in.x[(size_t)t * p->n_in + (j0 + t) % p->n_in] = t % 2 ? -2 : 1;
        CHECK_CUDA(cudaMemcpy(v.x, in.x, n_x, cudaMemcpyHostToDevice));
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
                    float want = s->book_u8[at] * s->book_scale[b] *
                                 rq_half_value(s->scale[i * s->n_group + j / s->group].bits) *
                                 (rq_ssvq_negative(s, i, j) ? -1.0f : 1.0f);
                    for (int o = 0; o < s->n_outlier; ++o)
                        if (s->outlier_col[o] == j) want = s->outlier_scale[o] * s->outlier[i * s->n_outlier + o];
                    const uint16_t got = y[(size_t)t * m.n_out + row];
                    want *= t % 2 ? -1.0f : 1.0f;
                    EXPECT_EQ_AT(j, want == 0.0f ? got & 0x7fff : got, want == 0.0f ? 0 : bits_of(p->bf16, want));
                }
    }
    printf("decode %dx%d v%d g%d o%d%s\n", m.n_out, p->n_in, p->vec_len, p->group, p->n_outlier,
           p->bf16 ? " bf16" : "");
    rq_device_free_all();
    free_stack(&m), free_inputs(&in);
    free(y);
}

/* The largest sums that there are: all magnitudes 255, all signs alike, x of 127, in 65,536 columns. */
static void test_largest(void) {
    problem p = {"largest", {16}, 65536, 8, 8, 65536, 65536, 0, 1, true, true, false, false, false, false};
    rq_rng rng = {3};
    stack m = make_stack(&p, &rng);
    rq_ssvq *s = &m.s[0];
    memset((uint8_t *)s->book_u8, 255, (size_t)(s->n_codes * s->vec_len));
    memset((uint32_t *)s->signs, 0xff, (size_t)(s->n_out * s->sign_words) * 4);
    rq_repack_ssvq(m.packed, &m.layout, m.s, m.n);
    inputs in = make_inputs(&p, m.n_out, &rng);
    memset(in.x, 127, (size_t)p.n_in);
    const device v = set_up(&p, &m, &in);
    uint16_t y[16];
    run(&p, &v, 0);
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(y, v.a.y, sizeof y);
    for (int i = 0; i < 16; ++i) {
        const double want = -255.0 * 127 * 65536 * s->book_scale[0] * rq_half_value(s->scale[i].bits) * in.x_scale[0];
        EXPECT_NEAR_AT(i, (double)rq_bf16_value(y[i]), want, fabs(want) * 0x1p-8);
    }
    rq_device_free_all();
    free_stack(&m), free_inputs(&in);
}

static void expect_refused(rq_cuda_gemv_desc d, const char *word) {
    const char *why = "";
    EXPECT_EQ(rq_cuda_gemv_supports(&d, &why), RQ_ERR_UNSUPPORTED);
    if (rq_failed(strstr(why, word) != NULL)) fprintf(stderr, "\"%s\" does not say \"%s\"\n", why, word);
}
static void test_refusals(void) {
    rq_cuda_gemv_desc good = rq_cuda_gemv_desc_default(), d;
    good.kind = RQ_TILE_SSVQ, good.n_out = 64, good.n_in = 512, good.vec_len = 8, good.x_s8 = 1;
    good.group = 512, good.n_book = 1, good.book_cols = 512, good.book_u8 = 1;
    EXPECT_EQ(rq_cuda_gemv_supports(&good, NULL), RQ_OK);
    d = good, d.book_u8 = 0, expect_refused(d, "byte magnitudes");
    d = good, d.code_bits = 9, expect_refused(d, "at most 256 entries");
    d = good, d.n_in = d.group = d.book_cols = 65537, expect_refused(d, "65536");
    d = good, d.kind = RQ_TILE_GRID, expect_refused(d, "SSVQ and W4A8 weights only");
    rq_cuda_gemv_plan plan;
    rq_cuda_gemv_args a = {};
    EXPECT_EQ(rq_cuda_gemv_make_plan(&plan, &good), RQ_OK);
    a.y = a.workspace = (void *)256, a.x = a.weights = (void *)256;
    EXPECT_EQ(rq_cuda_gemv_run(&plan, &good, &a, 0), RQ_ERR_ARG);
    EXPECT_EQ(strstr(rq_cuda_last_error(), "x_scale") != NULL, true);
}

int main(void) {
    rq_need_device(80);
    test_refusals();
    for (int vec_len = 8; vec_len >= 4; vec_len -= 4) {
        const problem decodes[] = {
            /* rows                   bits book  group out n_tok u8    bf16   perm   bias   residual early */
            {"decode", {19}, 160, vec_len, 8, 160, 160, 0, 16, true, false, false, false, false, false},
            {"decode", {16}, 300, vec_len, 8, 128, 32, 3, 16, true, true, false, false, false, false},
            {"decode", {32, 17}, 384, vec_len, 8, 256, 384, 16, 16, true, false, false, false, false, false},
        };
        for (size_t i = 0; i < sizeof decodes / sizeof decodes[0]; ++i) test_decode(&decodes[i]);
        const problem problems[] = {
            {"least", {1}, 4, vec_len, 8, 4, 4, 0, 1, true, false, false, false, false, false},
            {"rows", {15}, 128, vec_len, 4, 128, 128, 1, 2, true, true, false, true, false, false},
            {"rows", {17}, 160, vec_len, 7, 160, 64, 2, 8, true, true, true, true, true, true},
            {"odd", {33}, 1000, vec_len, 8, 1000, 1000, 16, 9, true, false, true, false, true, true},
            {"odd", {51}, 333, vec_len, 5, 333, 333, 5, 5, true, false, false, true, true, false},
            {"books", {40}, 900, vec_len, 8, 256, 900, 4, 7, true, true, false, true, false, false},
            {"books", {21}, 1000, vec_len, 6, 128, 128, 0, 16, true, false, false, false, true, false},
            {"groups", {21}, 1000, vec_len, 8, 1000, 32, 3, 3, true, false, false, false, true, false},
            {"qkv", {64, 32, 25}, 640, vec_len, 8, 640, 640, 16, 1, true, false, false, false, false, true},
            {"long", {40}, 4096 + 36, vec_len, 8, 4096 + 36, 4096 + 36, 16, 16, true, true, false, true, true, false},
            {"rowwise", {70}, 2050, vec_len, 8, 2050, 2050, 0, 4, true, true, false, false, false, false},
        };
        for (size_t i = 0; i < sizeof problems / sizeof problems[0]; ++i)
            if (!rq_small() || problems[i].n_in <= 1000) test_problem(&problems[i]);
        /* The shape whose counts docs/kernels.md has. */
        const problem layer = {"layer", {4096}, 4096,  vec_len, 8,     4096,  4096, 16,
                               1,       true,   false, false,   false, false, true};
        test_problem(&layer);
    }
    if (!rq_small()) test_largest();
    return rq_done(__FILE__);
}
