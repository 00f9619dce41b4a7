/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA GEMV on grid codes (cuda/gemv_grid.cuh) against sums in double of its definition, over shapes chosen for their edges.
 * Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "cudatest.h"
#include "fmt_grid.h"
#include "rq_cuda.h"
#include "rq_repack.h"

typedef struct problem {
    const char *what;
    int n_out, n_in, bits, group, n_tok;
    bool zeros, bf16, perm, bias, residual, early;
    int stack; /* matrices that it is repacked from, 1 to 4 */
} problem;

/* The matrix as the file has it, with the values of the definition. */
typedef struct matrix {
    rq_grid g;
    uint32_t *words;
    rq_f16 *scale;
    uint8_t *zero;
    int32_t *perm;
    int stride;   /* every so many rows are checked */
    double *w;    /* [n_out][n_in], stored order, of the rows that are */
    double *size; /* |w|; of 2-bit codes with zero points what is added for it, scale (|code - 2| + |2 - zero|) */
    rq_tile_layout layout;
    uint8_t *packed;
} matrix;

static matrix make_matrix(const problem *p, rq_rng *rng) {
    matrix m = {};
    rq_grid *g = &m.g;
    g->n_out = p->n_out, g->n_in = p->n_in, g->bits = p->bits, g->group = p->group;
    g->n_group = (p->n_in + p->group - 1) / p->group;
    g->row_words = rq_grid_row_words(p->n_in, p->bits);
    const size_t n_words = (size_t)(g->n_out * g->row_words), n_scale = (size_t)(g->n_out * g->n_group);
    m.words = (uint32_t *)rq_host_alloc((n_words + 1) * 4);
    m.scale = (rq_f16 *)rq_host_alloc(n_scale * 2);
    rq_rand_bytes(rng, m.words, n_words * 4);
    for (size_t i = 0; i < n_scale; ++i) m.scale[i].bits = rq_half_bits((rq_rand_float(rng) + 2.0f) / 64);
    if (p->zeros) {
        m.zero = (uint8_t *)rq_host_alloc(n_scale);
        for (size_t i = 0; i < n_scale; ++i) m.zero[i] = (uint8_t)(rq_rand_u32(rng) % (1u << p->bits));
        m.zero[0] = 0, m.zero[n_scale - 1] = (uint8_t)((1u << p->bits) - 1);
    }
    if (p->perm) {
        m.perm = (int32_t *)rq_host_alloc((size_t)p->n_in * 4);
        for (int j = 0; j < p->n_in; ++j) m.perm[j] = j;
        for (int j = p->n_in - 1; j > 0; --j) {
            const int k = (int)(rq_rand_u32(rng) % (uint32_t)(j + 1)), was = m.perm[j];
            m.perm[j] = m.perm[k], m.perm[k] = was;
        }
    }
    g->words = m.words, g->scale_f16 = m.scale, g->zero = m.zero, g->perm = m.perm;
    m.stride = p->n_out > 1000 ? 97 : 1;
    m.w = (double *)rq_host_alloc((size_t)(g->n_out * g->n_in) * 8);
    m.size = (double *)rq_host_alloc((size_t)(g->n_out * g->n_in) * 8);
    for (int64_t i = 0; i < g->n_out; i += m.stride)
        for (int64_t j = 0; j < g->n_in; ++j) {
            const double scale = rq_grid_scale(g, i, j / g->group);
            const int code = (int)rq_grid_code(g, i, j), zero = rq_grid_zero(g, i, j / g->group);
            m.w[i * g->n_in + j] = scale * (code - zero);
            m.size[i * g->n_in + j] =
                scale * (g->bits == 2 && p->zeros ? abs(code - 2) + abs(2 - zero) : abs(code - zero));
        }
    /* As several matrices that share x: their first rows are multiples of 16, the last takes what is left. */
    rq_grid parts[4];
    for (int i = 0, first = 0; i < p->stack; ++i) {
        const int rows = i + 1 < p->stack ? p->n_out / p->stack / 16 * 16 : p->n_out - first;
        parts[i] = *g;
        parts[i].n_out = rows, parts[i].words += first * g->row_words, parts[i].scale_f16 += first * g->n_group;
        if (g->zero) parts[i].zero += first * g->n_group;
        first += rows;
    }
    const char *why = "";
    if (rq_repack_grid_plan(&m.layout, parts, p->stack, &why) != RQ_OK) RQ_DIE("%s: %s", p->what, why);
    m.packed = (uint8_t *)rq_host_alloc((size_t)m.layout.bytes);
    if (rq_repack_grid(m.packed, &m.layout, parts, p->stack, &why) != RQ_OK) RQ_DIE("%s: %s", p->what, why);
    return m;
}
static void free_matrix(matrix *m) {
    free(m->words), free(m->scale), free(m->zero), free(m->perm), free(m->w), free(m->size), free(m->packed);
}

static uint16_t bits_of(bool bf16, float v) { return bf16 ? rq_bf16_bits(v) : rq_half_bits(v); }
static float value_of(bool bf16, uint16_t b) { return bf16 ? rq_bf16_value(b) : rq_half_value(b); }
static void fill(rq_rng *rng, bool bf16, uint16_t *to, size_t n) {
    for (size_t i = 0; i < n; ++i) to[i] = bits_of(bf16, rq_rand_float(rng));
}

static rq_cuda_gemv_desc describe(const problem *p) {
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default();
    d.kind = RQ_TILE_GRID;
    d.n_out = p->n_out, d.n_in = p->n_in, d.n_tok = p->n_tok;
    d.act = p->bf16 ? RQ_ACT_BF16 : RQ_ACT_F16;
    d.bits = p->bits, d.group = p->group, d.zeros = p->zeros;
    d.bias = p->bias, d.residual = p->residual, d.early_launch = p->early;
    return d;
}

static bool all_zero(const void *device, size_t bytes) {
    uint8_t *host = (uint8_t *)rq_host_alloc(bytes);
    rq_device_read(host, device, bytes);
    bool zero = true;
    for (size_t i = 0; i < bytes; ++i) zero = zero && host[i] == 0;
    free(host);
    return zero;
}

/* One matrix, two runs, one of them from a graph: right, the same bytes, and the workspace zero. */
static void test_problem(const problem *p) {
    rq_rng rng = {(uint64_t)p->n_out * 1000003u + (uint64_t)p->n_in * 1009u + (uint64_t)p->bits * 101u +
                  (uint64_t)p->group * 7u + (uint64_t)p->n_tok};
    matrix m = make_matrix(p, &rng);
    const size_t n_y = (size_t)p->n_tok * p->n_out, n_x = (size_t)p->n_tok * p->n_in;
    uint16_t *x = (uint16_t *)rq_host_alloc(n_x * 2), *y = (uint16_t *)rq_host_alloc(n_y * 2);
    uint16_t *again = (uint16_t *)rq_host_alloc(n_y * 2), *residual = (uint16_t *)rq_host_alloc(n_y * 2);
    uint16_t *bias = (uint16_t *)rq_host_alloc((size_t)p->n_out * 2);
    fill(&rng, p->bf16, x, n_x), fill(&rng, p->bf16, residual, n_y), fill(&rng, p->bf16, bias, (size_t)p->n_out);

    const rq_cuda_gemv_desc d = describe(p);
    rq_cuda_gemv_plan plan;
    const char *why = "";
    if (rq_cuda_gemv_supports(&d, &why) != RQ_OK) RQ_DIE("%s: %s", p->what, why);
    if (rq_cuda_gemv_make_plan(&plan, &d) != RQ_OK) RQ_DIE("%s: %s", p->what, rq_cuda_last_error());
    rq_cuda_gemv_args a = {};
    a.y = rq_device_buffer(n_y * 2);
    a.x = rq_device_copy(x, n_x * 2);
    a.weights = rq_device_copy(m.packed, (size_t)m.layout.bytes);
    if (p->bias) a.bias = rq_device_copy(bias, (size_t)p->n_out * 2);
    if (p->residual) a.residual = rq_device_copy(residual, n_y * 2);
    if (p->perm) a.perm = (const int32_t *)rq_device_copy(m.perm, (size_t)p->n_in * 4);
    if (plan.workspace_bytes) {
        a.workspace = rq_device_buffer(plan.workspace_bytes);
        CHECK_CUDA(cudaMemset(a.workspace, 0, plan.workspace_bytes));
    }
    cudaStream_t stream;
    CHECK_CUDA(cudaStreamCreate(&stream));
    if (rq_cuda_gemv_run(&plan, &d, &a, stream) != RQ_OK) RQ_DIE("%s: %s", p->what, rq_cuda_last_error());
    CHECK_CUDA(cudaStreamSynchronize(stream));
    rq_device_read(y, a.y, n_y * 2);
    if (plan.workspace_bytes) EXPECT(all_zero(a.workspace, plan.workspace_bytes));

    double worst = 0;
    for (int t = 0; t < p->n_tok; ++t)
        for (int i = 0; i < p->n_out; i += m.stride) {
            double want = 0, size = 0;
            for (int j = 0; j < p->n_in; ++j) {
                const double v = value_of(p->bf16, x[(size_t)t * p->n_in + (p->perm ? m.perm[j] : j)]);
                want += m.w[(size_t)i * p->n_in + j] * v, size += m.size[(size_t)i * p->n_in + j] * fabs(v);
            }
            const size_t at = (size_t)t * p->n_out + i;
            if (p->bias) want += value_of(p->bf16, bias[i]), size += 1;
            if (p->residual) want += value_of(p->bf16, residual[at]), size += 1;
            /* fp32 sums of at most n_in / 16 mma and 16 warps' partial sums, and the rounding of y. */
            const double bound =
                size * (p->n_in / 16 + 64) * 0x1p-23 + fabs(want) * (p->bf16 ? 0x1p-8 : 0x1p-11) * 1.001 + 0x1p-24;
            const double got = value_of(p->bf16, y[at]);
            EXPECT_NEAR_AT(at, got, want, bound);
            worst = fmax(worst, fabs(got - want) / bound);
        }

    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK_CUDA(cudaMemset(a.y, 0x5a, n_y * 2));
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    if (rq_cuda_gemv_run(&plan, &d, &a, stream) != RQ_OK) RQ_DIE("%s: %s", p->what, rq_cuda_last_error());
    if (rq_cuda_gemv_run(&plan, &d, &a, stream) != RQ_OK) RQ_DIE("%s: %s", p->what, rq_cuda_last_error());
    CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CHECK_CUDA(cudaGraphLaunch(exec, stream));
    CHECK_CUDA(cudaStreamSynchronize(stream));
    rq_device_read(again, a.y, n_y * 2);
    EXPECT_EQ(memcmp(y, again, n_y * 2), 0);
    if (plan.workspace_bytes) EXPECT(all_zero(a.workspace, plan.workspace_bytes));
    CHECK_CUDA(cudaGraphExecDestroy(exec));
    CHECK_CUDA(cudaGraphDestroy(graph));
    CHECK_CUDA(cudaStreamDestroy(stream));

    char name[96];
    snprintf(name, sizeof name, "y %s %dx%d b%d g%d t%d", p->what, p->n_out, p->n_in, p->bits, p->group, p->n_tok);
    printf("%-44s %s: %d blocks, split %d, 2^%d warps a row block, error %.2f of the bound\n", name + 2, plan.kernel,
           plan.blocks, plan.split, plan.log_warps, worst);
    /* The tensor cores of a GPU may truncate where the simulator rounds. */
    rq_record(name, p->bf16 ? RQ_BF16 : RQ_F16, y, n_y, 0x1p-6 * p->n_in / 64);
    rq_device_free_all();
    free_matrix(&m);
    free(x), free(y), free(again), free(residual), free(bias);
}

/* x with a single 1: y is a column of W, exactly, rounded once to the type of y. All columns, 16 at a time. */
static void test_decode(int n_out, int n_in, int bits, int group, bool zeros, bool bf16) {
    problem p = {"decode", n_out, n_in, bits, group, 16, zeros, bf16, false, false, false, false, 1};
    rq_rng rng = {(uint64_t)bits * 31u + (uint64_t)group};
    matrix m = make_matrix(&p, &rng);

    const rq_cuda_gemv_desc d = describe(&p);
    rq_cuda_gemv_plan plan;
    if (rq_cuda_gemv_make_plan(&plan, &d) != RQ_OK) RQ_DIE("%s", rq_cuda_last_error());
    const size_t n_x = (size_t)16 * n_in, n_y = (size_t)16 * n_out;
    uint16_t *x = (uint16_t *)rq_host_alloc(n_x * 2), *y = (uint16_t *)rq_host_alloc(n_y * 2);
    rq_cuda_gemv_args a = {};
    a.weights = rq_device_copy(m.packed, (size_t)m.layout.bytes);
    a.y = rq_device_buffer(n_y * 2);
    void *d_x = rq_device_buffer(n_x * 2);
    a.x = d_x;
    if (plan.workspace_bytes) {
        a.workspace = rq_device_buffer(plan.workspace_bytes);
        CHECK_CUDA(cudaMemset(a.workspace, 0, plan.workspace_bytes));
    }
    for (int j0 = 0; j0 < n_in; j0 += 16) {
        memset(x, 0, n_x * 2);
        for (int t = 0; t < 16; ++t) x[(size_t)t * n_in + (j0 + t) % n_in] = bits_of(bf16, 1.0f);
        CHECK_CUDA(cudaMemcpy(d_x, x, n_x * 2, cudaMemcpyHostToDevice));
        if (rq_cuda_gemv_run(&plan, &d, &a, 0) != RQ_OK) RQ_DIE("%s", rq_cuda_last_error());
        CHECK_CUDA(cudaDeviceSynchronize());
        rq_device_read(y, a.y, n_y * 2);
        for (int t = 0; t < 16; ++t)
            for (int i = 0; i < n_out; ++i) {
                /* scale (11 bits) times an integer (8 bits) is exact in float. */
                const float want = (float)m.w[(size_t)i * n_in + (j0 + t) % n_in];
                /* A zero has either sign: it is a sum. */
                const uint16_t got = y[(size_t)t * n_out + i];
                EXPECT_EQ_AT(j0 + t, want == 0.0f ? got & 0x7fff : got, bits_of(bf16, want));
            }
    }
    printf("decode %dx%d b%d g%d%s%s\n", n_out, n_in, bits, group, zeros ? " zeros" : "", bf16 ? " bf16" : "");
    rq_device_free_all();
    free_matrix(&m);
    free(x), free(y);
}

/* What cannot be done is refused with a sentence, and leaves no plan. */
static void refused(rq_cuda_gemv_desc d, const char *part) {
    const char *why = "";
    rq_cuda_gemv_plan plan;
    EXPECT(rq_cuda_gemv_supports(&d, &why) == RQ_ERR_UNSUPPORTED && strstr(why, part));
    EXPECT(rq_cuda_gemv_make_plan(&plan, &d) == RQ_ERR_UNSUPPORTED && strstr(rq_cuda_last_error(), part));
}
static void test_refused(void) {
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default(), good;
    d.n_out = 64, d.n_in = 256;
    good = d;
    EXPECT_EQ(rq_cuda_gemv_supports(&good, NULL), RQ_OK);
    d.bits = 5, refused(d, "2, 3, 4 or 8"), d = good;
    d.group = 48, refused(d, "multiples of 32"), d = good;
    d.group = 512, refused(d, "1 to n_in"), d = good;
    d.n_tok = 17, refused(d, "1 to 16"), d = good;
    d.n_out = 0, refused(d, "n_out"), d = good;
    d.n_in = (1 << 20) + 1, refused(d, "n_in"), d = good;
    d.struct_size = 0, refused(d, "rq_cuda_gemv_desc_default");
    rq_cuda_gemv_plan plan;
    rq_cuda_gemv_args a = {};
    EXPECT_EQ(rq_cuda_gemv_make_plan(&plan, &good), RQ_OK);
    EXPECT_EQ(rq_cuda_gemv_run(&plan, &good, &a, 0), RQ_ERR_ARG);
    a.y = &plan, a.x = &plan, a.weights = (const void *)256, a.bias = &plan;
    EXPECT_EQ(rq_cuda_gemv_run(&plan, &good, &a, 0), RQ_ERR_ARG);
    EXPECT(strstr(rq_cuda_last_error(), "bias"));
}

int main(void) {
    rq_need_device(80);
    test_refused();
    static const int widths[] = {2, 3, 4, 8};
    for (size_t b = 0; b < sizeof widths / sizeof widths[0]; ++b) {
        const int bits = widths[b];
        for (int bf16 = 0; bf16 < 2; ++bf16) {
            test_decode(19, 160, bits, 32, true, bf16);
            test_decode(16, 256, bits, 128, false, bf16);
            test_decode(33, 320, bits, 64, true, bf16);
            test_decode(16, 384, bits, 128, true, bf16);
        }
        const problem problems[] = {
            /* what      n_out n_in      bits  group    n_tok zeros  bf16   perm   bias   residual early stack */
            {"least", 1, 32, bits, 32, 1, false, false, false, false, false, false, 1},
            {"rows", 15, 128, bits, 128, 2, true, false, false, true, false, false, 1},
            {"rows", 16, 160, bits, 32, 3, false, true, false, false, true, false, 1},
            {"rows", 17, 160, bits, 64, 8, true, true, true, true, true, true, 1},
            {"odd", 33, 1000, bits, 1000, 9, true, false, true, false, true, true, 1},
            {"odd", 51, 333, bits, 96, 5, false, false, false, true, true, false, 1},
            {"long", 40, 4096 + 32, bits, 128, 1, false, false, false, false, false, false, 1},
            {"long", 40, 4096 + 32, bits, 64, 16, true, true, false, true, true, true, 1},
            {"zeros", 100, 2000, bits, 128, 1, true, false, false, false, false, true, 1},
            {"zeros", 50, 1000, bits, 64, 7, true, false, false, false, false, false, 1},
            {"rowwise", 70, 2050, bits, 2050, 4, true, false, false, false, false, false, 1},
            {"qkv", 85, 333, bits, 96, 3, true, false, true, true, false, false, 3},
            {"gate_up", 160, 416, bits, 128, 11, false, true, false, false, false, true, 2},
        };
        for (size_t i = 0; i < sizeof problems / sizeof problems[0]; ++i)
            if (!rq_small() || problems[i].n_in <= 1000) test_problem(&problems[i]);
        /* The shape whose counts docs/kernels.md has. */
        const problem layer = {"layer", 4096, 4096, bits, 128, 1, false, false, false, false, false, true, 1};
        test_problem(&layer);
        const problem with_zeros = {"layer", 4096, 4096, 2, 128, 1, true, false, false, false, false, true, 1};
        if (bits == 2) test_problem(&with_zeros);
    }
    return rq_done(__FILE__);
}
