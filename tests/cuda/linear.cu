/* SPDX-License-Identifier: Apache-2.0 */
/* The dispatcher (cuda/linear.cu): both of its ways against sums in double, for one token and for more than a GEMV takes, twice, once from a
 * graph; what it chooses; and what it says without cuBLAS. Libraries: requite cublas. Targets: sm_80 sm_90a.
 * In table.json. */
#include <cublas_v2.h>

#include "weights_case.h"

/* What cuda/blas.cu takes from cuBLAS' header without including it. */
static_assert(CUBLAS_OP_N == 0 && CUBLAS_OP_T == 1 && CUBLAS_COMPUTE_32F == 68 && CUBLAS_GEMM_DEFAULT == -1 &&
                  CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION == 16,
              "cuda/blas.cu has cuBLAS' constants");

typedef struct linear_case {
    int n_tok;
    rq_linear_path path;
    bool bias, residual, in_place, perm, own_handle;
} linear_case;

static void fill(rq_rng *rng, const weights *m, uint16_t *to, size_t n) {
    for (size_t i = 0; i < n; ++i) to[i] = weights_bits(m, rq_rand_float(rng));
}

typedef struct operands { /* on the host */
    uint16_t *x, *bias, *residual, *y;
    int32_t *perm;
} operands;

static void compare(const weights_case *c, const weights *m, const linear_case *l, const operands *o,
                    const char *name) {
    const bool dense = l->path == RQ_LINEAR_DEQUANTIZE;
    const double last = c->bf16 ? 0x1p-8 : 0x1p-11;
    double worst = 0;
    for (int t = 0; t < l->n_tok; ++t)
        for (int i = 0; i < c->n_out; ++i) {
            double want = 0, size = 0;
            for (int j = 0; j < c->n_in; ++j) {
                float w = m->w[(size_t)i * c->n_in + j];
                if (dense) w = weights_value(m, weights_bits(m, w));
                const double v = weights_value(m, o->x[(size_t)t * c->n_in + (l->perm ? o->perm[j] : j)]);
                want += w * v, size += fabs(w * v);
            }
            const size_t at = (size_t)t * c->n_out + i;
            if (l->bias) want += weights_value(m, o->bias[i]), size += 1;
            if (l->residual) want += weights_value(m, o->residual[at]), size += 1;
            const double bound = size * (c->n_in / 16 + 64) * 0x1p-23 + fabs(want) * last * 1.001 + 0x1p-24;
            const double got = weights_value(m, o->y[at]);
            EXPECT_NEAR_AT(at, got, want, bound);
            worst = fmax(worst, fabs(got - want) / bound);
        }
    printf("%-52s error %.2f of the bound\n", name, worst);
}

static void test_one(const weights_case *c, const weights *m, const linear_case *l) {
    rq_rng rng = {(uint64_t)l->n_tok * 31 + (uint64_t)c->n_in};
    const size_t n_x = (size_t)l->n_tok * c->n_in, n_y = (size_t)l->n_tok * c->n_out;
    operands o = {};
    o.x = (uint16_t *)rq_host_alloc(n_x * 2), o.y = (uint16_t *)rq_host_alloc(n_y * 2);
    o.bias = (uint16_t *)rq_host_alloc((size_t)c->n_out * 2), o.residual = (uint16_t *)rq_host_alloc(n_y * 2);
    o.perm = (int32_t *)rq_host_alloc((size_t)c->n_in * 4);
    fill(&rng, m, o.x, n_x), fill(&rng, m, o.bias, (size_t)c->n_out), fill(&rng, m, o.residual, n_y);
    for (int j = 0; j < c->n_in; ++j) o.perm[j] = (int)((j * 7ll + 3) % c->n_in); /* n_in is no multiple of 7 */

    rq_cuda_linear_desc d = rq_cuda_linear_desc_default();
    d.weights = m->d, d.weights.n_tok = l->n_tok, d.path = l->path, d.blas_workspace = 4096;
    d.weights.bias = l->bias, d.weights.residual = l->residual;
    cublasHandle_t handle = NULL;
    if (l->own_handle && cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) RQ_DIE("cublasCreate");
    d.blas = handle;
    rq_cuda_linear_plan plan;
    if (rq_cuda_linear_make_plan(&plan, &d) != RQ_OK) RQ_DIE("%s: %s", c->what, rq_cuda_last_error());
    EXPECT_EQ(plan.path, l->path);
    rq_cuda_linear_args a = {};
    a.gemv.x = rq_device_copy(o.x, n_x * 2), a.gemv.weights = rq_device_copy(m->packed, (size_t)m->layout.bytes);
    void *y = rq_device_buffer(n_y * 2), *residual = rq_device_copy(o.residual, n_y * 2);
    a.gemv.y = l->in_place ? residual : y;
    if (l->bias) a.gemv.bias = rq_device_copy(o.bias, (size_t)c->n_out * 2);
    if (l->residual) a.gemv.residual = residual;
    if (l->perm) a.gemv.perm = (const int32_t *)rq_device_copy(o.perm, (size_t)c->n_in * 4);
    if (plan.workspace_bytes) {
        a.gemv.workspace = rq_device_buffer(plan.workspace_bytes);
        CHECK_CUDA(cudaMemset(a.gemv.workspace, 0, plan.workspace_bytes));
    }
    if (plan.scratch_bytes) {
        a.scratch = rq_device_buffer(plan.scratch_bytes);
        CHECK_CUDA(cudaMemset(a.scratch, 0xff, plan.scratch_bytes)); /* NaN: what is not written is not read */
    }
    cudaStream_t stream;
    CHECK_CUDA(cudaStreamCreate(&stream));
    if (rq_cuda_linear_run(&plan, &d, &a, stream) != RQ_OK) RQ_DIE("%s: %s", c->what, rq_cuda_last_error());
    CHECK_CUDA(cudaStreamSynchronize(stream));
    rq_device_read(o.y, a.gemv.y, n_y * 2);
    char name[128];
    snprintf(name, sizeof name, "%s %dx%d t%d %s%s%s%s%s%s", c->what, c->n_out, c->n_in, l->n_tok,
             l->path == RQ_LINEAR_GEMV ? "gemv" : "dense", c->bf16 ? " bf16" : "", l->bias ? " bias" : "",
             l->residual ? " residual" : "", l->in_place ? " in place" : "", l->perm ? " perm" : "");
    compare(c, m, l, &o, name);
    rq_record(name, c->bf16 ? RQ_BF16 : RQ_F16, o.y, n_y, 0x1p-6 * c->n_in / 64);

    uint16_t *again = (uint16_t *)rq_host_alloc(n_y * 2);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK_CUDA(cudaMemcpy(residual, o.residual, n_y * 2, cudaMemcpyHostToDevice));
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    if (rq_cuda_linear_run(&plan, &d, &a, stream) != RQ_OK) RQ_DIE("%s: %s", c->what, rq_cuda_last_error());
    CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CHECK_CUDA(cudaGraphLaunch(exec, stream));
    CHECK_CUDA(cudaStreamSynchronize(stream));
    rq_device_read(again, a.gemv.y, n_y * 2);
    EXPECT_EQ(memcmp(o.y, again, n_y * 2), 0);
    CHECK_CUDA(cudaGraphExecDestroy(exec));
    CHECK_CUDA(cudaGraphDestroy(graph));
    CHECK_CUDA(cudaStreamDestroy(stream));
    if (handle && cublasDestroy(handle) != CUBLAS_STATUS_SUCCESS) RQ_DIE("cublasDestroy");
    rq_device_free_all();
    free(again), free(o.x), free(o.y), free(o.bias), free(o.residual), free(o.perm);
}

/* Before anything has loaded cuBLAS. */
static void test_without_cublas(void) {
    rq_cuda_linear_desc d = rq_cuda_linear_desc_default();
    rq_cuda_linear_plan plan;
    const char *why = "";
    d.weights.n_out = 64, d.weights.n_in = 256, d.weights.n_tok = 40;
    CHECK_CUDA(cudaFree(NULL));
    setenv("RQ_CUBLAS", "/nowhere/libcublas.so", 1);
    d.path = RQ_LINEAR_DEQUANTIZE;
    EXPECT(rq_cuda_linear_supports(&d, &why) == RQ_ERR_UNSUPPORTED && strstr(why, "cuBLAS"));
    d.path = RQ_LINEAR_GEMV;
    EXPECT_EQ(rq_cuda_linear_make_plan(&plan, &d), RQ_OK);
    EXPECT(plan.launches == 3 && plan.chunk == 14 && plan.last.blocks > 0);
    unsetenv("RQ_CUBLAS");
}

static void test_choice(void) {
    rq_cuda_linear_desc d = rq_cuda_linear_desc_default();
    rq_cuda_linear_plan plan;
    d.weights.n_out = 4096, d.weights.n_in = 4096;
    rq_linear_path before = RQ_LINEAR_GEMV;
    for (int64_t n_tok = 1; n_tok <= 4096; n_tok *= 2) {
        d.weights.n_tok = n_tok;
        EXPECT_EQ(rq_cuda_linear_make_plan(&plan, &d), RQ_OK);
        EXPECT_EQ(plan.path, plan.gemv_us <= plan.dequantize_us ? RQ_LINEAR_GEMV : RQ_LINEAR_DEQUANTIZE);
        if (n_tok <= 16) EXPECT_EQ(plan.path, RQ_LINEAR_GEMV);
        EXPECT(before == RQ_LINEAR_GEMV || plan.path == RQ_LINEAR_DEQUANTIZE); /* one crossover */
        before = plan.path;
    }
    EXPECT_EQ(before, RQ_LINEAR_DEQUANTIZE);
    d.weights.n_tok = 16, d.rates.gemv_of_copy = 0.001; /* other rates, another choice */
    EXPECT_EQ(rq_cuda_linear_make_plan(&plan, &d), RQ_OK);
    EXPECT_EQ(plan.path, RQ_LINEAR_DEQUANTIZE);
}

static void test_refused(void) {
    rq_cuda_linear_desc good = rq_cuda_linear_desc_default(), d;
    rq_cuda_linear_plan plan;
    const char *why = "";
    good.weights.n_out = 64, good.weights.n_in = 256, good.weights.n_tok = 100, good.path = RQ_LINEAR_DEQUANTIZE;
    d = good, d.weights.n_tok = 0;
    EXPECT(rq_cuda_linear_supports(&d, &why) == RQ_ERR_UNSUPPORTED && strstr(why, "n_tok"));
    d = good, d.weights.bits = 7;
    EXPECT(rq_cuda_linear_supports(&d, &why) == RQ_ERR_UNSUPPORTED && strstr(why, "bits"));
    d = good, d.rates.copy_gbs = 0;
    EXPECT(rq_cuda_linear_supports(&d, &why) == RQ_ERR_UNSUPPORTED && strstr(why, "rates"));
    d = good, d.weights.kind = RQ_TILE_SSVQ, d.weights.vec_len = 8, d.weights.group = 256, d.weights.n_book = 1;
    d.weights.book_cols = 256, d.weights.book_u8 = 1, d.weights.x_s8 = 1;
    EXPECT(rq_cuda_linear_supports(&d, &why) == RQ_ERR_UNSUPPORTED && strstr(why, "int8"));
    d.path = RQ_LINEAR_AUTO, d.weights.n_tok = 4096;
    EXPECT(rq_cuda_linear_make_plan(&plan, &d) == RQ_OK && plan.path == RQ_LINEAR_GEMV);
    d = good, d.path = RQ_LINEAR_AUTO; /* codebooks that the GEMV has no kernel for */
    d.weights.kind = RQ_TILE_VQ, d.weights.vec_len = 8, d.weights.group = 256, d.weights.n_book = 1;
    d.weights.book_cols = 256, d.weights.n_stage = 1, d.weights.n_codes[0] = 4096, d.weights.vec_out = 1;
    d.weights.n_tok = 1;
    EXPECT(rq_cuda_linear_make_plan(&plan, &d) == RQ_OK);
    EXPECT(plan.path == (rq_cuda_gemv_supports(&d.weights, NULL) == RQ_OK ? RQ_LINEAR_GEMV : RQ_LINEAR_DEQUANTIZE));
    d = good, d.struct_size = 1;
    EXPECT_EQ(rq_cuda_linear_make_plan(&plan, &d), RQ_ERR_UNSUPPORTED);
    EXPECT_EQ(rq_cuda_linear_make_plan(NULL, &good), RQ_ERR_ARG);
    EXPECT_EQ(rq_cuda_linear_make_plan(&plan, &good), RQ_OK);
    rq_cuda_linear_args a = {};
    EXPECT_EQ(rq_cuda_linear_run(&plan, &good, &a, 0), RQ_ERR_ARG);
    a.gemv.x = a.gemv.y = a.scratch = &plan, a.gemv.weights = (const void *)256;
    a.scratch = (void *)128;
    EXPECT(rq_cuda_linear_run(&plan, &good, &a, 0) == RQ_ERR_ARG && strstr(rq_cuda_last_error(), "256 bytes"));
}

int main(void) {
    rq_need_device(80);
    test_without_cublas();
    test_choice();
    test_refused();
    const weights_case cases[] = {
        {"grid4", RQ_TILE_GRID, 50, 520, 4, 128, true, false, false, 0, 0},
        {"grid2", RQ_TILE_GRID, 33, 331, 2, 64, false, false, true, 0, 0},
        {"ssvq2", RQ_TILE_SSVQ, 40, 392, 2, 392, false, true, false, 392, 3},
        {"ssvq3", RQ_TILE_SSVQ, 17, 264, 3, 128, false, true, true, 264, 2},
        {"vq", RQ_TILE_VQ, 40, 392, 0, 392, false, false, false, 392, 3, 8, 8, 8, 8},
    };
    const linear_case ways[] = {
        /* n_tok path             bias   residual in_place perm own_handle */
        {1, RQ_LINEAR_GEMV, false, false, false, false, false},
        {17, RQ_LINEAR_GEMV, true, true, false, true, false},
        {33, RQ_LINEAR_GEMV, false, true, true, false, false},
        {100, RQ_LINEAR_GEMV, false, false, false, false, false},
        {1, RQ_LINEAR_DEQUANTIZE, false, false, false, false, false},
        {17, RQ_LINEAR_DEQUANTIZE, true, false, false, true, false},
        {17, RQ_LINEAR_DEQUANTIZE, false, true, false, false, true},
        {33, RQ_LINEAR_DEQUANTIZE, true, true, true, false, false},
        {100, RQ_LINEAR_DEQUANTIZE, false, true, true, true, false},
    };
    for (const weights_case &c : cases) {
        weights m = weights_make(&c);
        for (const linear_case &l : ways) test_one(&c, &m, &l);
        weights_free(&m);
    }
    rq_cuda_linear_release();
    return rq_done(__FILE__);
}
