/* SPDX-License-Identifier: Apache-2.0 */
/* The quantizer's CUDA row (host/backend_cuda*.c, cuda/comp_*.cu) against its CPU row, which tests/test_comp.c holds against fp64 definitions: Gram
 * matrices of whole numbers to the last bit, the factor against its definition, codes of every compensator and rounder of columns.
 *
 * Codes may differ where a weight lies on an edge of two, and then in what follows in its row; with these numbers at most one row in a hundred does.
 * Libraries: quantizer requite. Targets: sm_80 sm_90a. In table.json. */
#include "comp_case.h"

/* ---- Gram matrices: small whole numbers, so every sum is exact */

static void test_gram(int64_t n, int64_t n_tok, int calls, bool cross) {
    float *a = rq_host_alloc((size_t)(n_tok * n) * sizeof *a), *b = rq_host_alloc((size_t)(n_tok * n) * sizeof *b);
    double *h[2], *d[2];
    rq_rng r = {(uint64_t)n};
    for (int k = 0; k < 2; ++k) {
        h[k] = rq_host_alloc((size_t)(n * n) * sizeof **h);
        d[k] = rq_host_alloc((size_t)(n * n) * sizeof **d);
    }
    const rq_device_ops *row[2] = {&rq_device_cpu, gpu->ops};
    void *own[2] = {NULL, gpu->own};
    for (int k = 0; k < 2; ++k) CHECK_RQ(row[k]->gram_start(own[k], h[k], cross ? d[k] : NULL, n));
    for (int c = 0; c < calls; ++c) {
        for (int64_t i = 0; i < n_tok * n; ++i) {
            a[i] = (float)(rq_rand_u32(&r) % 9) - 4;
            b[i] = (float)(rq_rand_u32(&r) % 5) - 2;
        }
        for (int k = 0; k < 2; ++k)
            CHECK_RQ(row[k]->gram_add(own[k], h[k], cross ? d[k] : NULL, a, cross ? b : NULL, n_tok, n));
    }
    for (int k = 0; k < 2; ++k) CHECK_RQ(row[k]->gram_finish(own[k], h[k], cross ? d[k] : NULL, n));
    for (int64_t i = 0; i < n * n; ++i) {
        EXPECT_EQ_AT(i, h[1][i], h[0][i]);
        if (cross) EXPECT_EQ_AT(i, d[1][i], d[0][i]);
    }
    for (int k = 0; k < 2; ++k) free(h[k]), free(d[k]);
    free(a), free(b);
}

/* ---- the factor and its terms */

static void test_prepare(int64_t n, bool act_order) {
    problem p = problem_new(1, n, (int)(2 * n), true);
    rq_quant_opt o;
    rq_prep prep[2];
    rq_quant_default(&o, RQ_COMP_RESCOMP);
    o.act_order = act_order;
    o.group = 0;
    for (int k = 0; k < 2; ++k) CHECK_RQ(rq_prepare_on(&prep[k], k ? gpu : NULL, p.h, p.d, n, &o, "test"));
    EXPECT_EQ(prep[1].n_retries, prep[0].n_retries);
    EXPECT_EQ(prep[1].n_dead, prep[0].n_dead);
    /* (H + damping) U^T U = 1, in sweep order */
    double worst = 0;
    for (int64_t i = 0; i < n; ++i) {
        double *row = rq_host_alloc((size_t)n * sizeof *row); /* of (H + damping) U^T */
        for (int64_t k = 0; k < n; ++k) {
            row[k] = 0;
            for (int64_t j = k; j < n; ++j) {
                int64_t a = prep[1].perm[i], b = prep[1].perm[j];
                double v = p.h[a * n + b] + (a == b ? prep[1].damp_used + (prep[1].dead[a] ? 1 : 0) : 0);
                row[k] += v * (double)prep[1].u[k * n + j];
            }
        }
        for (int64_t j = 0; j < n; ++j) {
            double sum = 0;
            for (int64_t k = 0; k <= j; ++k) sum += row[k] * (double)prep[1].u[k * n + j];
            worst = fmax(worst, fabs(sum - (i == j)));
        }
        free(row);
    }
    EXPECT_NEAR(worst, 0, 2e-4);
    double most[3] = {0};
    for (int64_t i = 0; i < n * n; ++i) {
        most[0] = fmax(most[0], fabs((double)prep[0].u[i]));
        most[1] = fmax(most[1], fabs((double)prep[0].t[i]));
        most[2] = fmax(most[2], fabs((double)prep[0].m[i]));
    }
    for (int64_t i = 0; i < n * n; ++i) {
        EXPECT_NEAR_AT(i, prep[1].u[i], prep[0].u[i], 1e-5 * most[0]);
        EXPECT_NEAR_AT(i, prep[1].t[i], prep[0].t[i], 1e-5 * most[1]);
        EXPECT_NEAR_AT(i, prep[1].m[i], prep[0].m[i], 1e-5 * most[2]);
        EXPECT_NEAR_AT(i, prep[1].hd[i], prep[0].hd[i], 0);
    }
    for (int k = 0; k < 2; ++k) rq_prep_free(&prep[k]);
    problem_free(&p);
}

/* The damping ladder: H that is not positive definite until damping has grown. */
static void test_ladder(void) {
    enum { N = 40 };
    problem p = problem_new(1, N, N, false);
    rq_quant_opt o;
    rq_prep prep[2];
    rq_quant_reference(&o, RQ_COMP_GPTQ);
    o.damp_frac = 1e-6;
    o.group = 0;
    for (int64_t i = 0; i < N; ++i)
        for (int64_t j = 0; j < N; ++j)
            if (i != j) p.h[i * N + j] *= 1.5;
    for (int k = 0; k < 2; ++k) CHECK_RQ(rq_prepare_on(&prep[k], k ? gpu : NULL, p.h, NULL, N, &o, "test"));
    EXPECT(prep[0].n_retries > 0);
    EXPECT_EQ(prep[1].n_retries, prep[0].n_retries);
    EXPECT_EQ(prep[1].diagonal_only, prep[0].diagonal_only);
    for (int k = 0; k < 2; ++k) rq_prep_free(&prep[k]);
    problem_free(&p);
}

/* ---- codes */

/* settings: as --override has them, after the compensator's defaults. */
static void test_codes(int64_t n_out, int64_t n, bool reference, const char *settings) {
    problem p = problem_new(n_out, n, (int)n + 30, true);
    const rq_quant_matrix m = {settings, p.w, n_out};
    rq_quant_opt o;
    twin t;
    (reference ? rq_quant_reference : rq_quant_default)(&o, RQ_COMP_GPTQ);
    CHECK_RQ(rq_quant_set_all(&o, settings));
    twin_new(&t, &p, &m, 1, &o, settings);
    const rq_quant_result *cpu = t.r[0], *cuda = t.r[1];
    int64_t other = 0;
    for (int64_t i = 0; i < n_out; ++i) other += memcmp(cpu->codes + i * n, cuda->codes + i * n, (size_t)n) != 0;
    rows_seen(settings, other, n_out, 1);
    if (o.group == 0 || o.group == n || o.static_groups) {
        const bool w4a8 = o.round == RQ_ROUND_W4A8;
        const int64_t groups = n_out * (w4a8 ? 1 : cpu->grid.n_group);
        const float *want = w4a8 ? cpu->w4a8.scale : cpu->scale, *got = w4a8 ? cuda->w4a8.scale : cuda->scale;
        for (int64_t i = 0; i < groups && o.cd_sweeps == 0; ++i)
            EXPECT_NEAR_AT(i, got[i], want[i], 1e-6 * (double)want[i]);
    }
    twin_free(&t);
    problem_free(&p);
}

static void test_all_codes(void) {
    static const char *const grids[] = {"bits=4,group=32,static-groups=false,act-order=false",
                                        "bits=3,group=48,static-groups=true,act-order=true",
                                        "bits=2,group=0,sym=true,clip=mse,clip-weights=none,clip-power=2.4",
                                        "bits=8,group=32,clip=none,scale-dtype=f32"};
    char text[256];
    for (int c = 0; c < RQ_N_COMPS && !rq_small(); ++c) {
        for (size_t g = 0; g < sizeof grids / sizeof *grids; ++g) {
            snprintf(text, sizeof text, "comp=%s,cd-sweeps=0,refit=0,%s", rq_comp_get((rq_comp)c)->name, grids[g]);
            test_codes(40, 150, g == 2, text);
        }
        snprintf(text, sizeof text, "round=w4a8,comp=%s,cd-sweeps=0,refit=0,group=%d", rq_comp_get((rq_comp)c)->name,
                 c % 2 ? 32 : 0);
        test_codes(20, 128, false, text);
    }
    /* One row more than a block has, a column alone in the last block, blocks that are cut short by groups, the other trailing update. */
    test_codes(33, 129, false, "comp=rescomp,cd-sweeps=0,refit=0,group=64,static-groups=false,act-order=true");
    if (!rq_small()) test_codes(5, 24, false, "comp=gptaq,cd-sweeps=0,refit=0,group=16,block=7,update=allw");
    test_codes(3, 1, false, "comp=gptq,cd-sweeps=0,refit=0,group=0");
    test_codes(20, 96, false, "comp=gptq,cd-sweeps=0,refit=0,group=0,clip=output");
    if (!rq_small()) {
        test_codes(20, 96, false, "comp=gptq,round=w4a8,cd-sweeps=0,refit=0,group=0,clip=output");
        test_codes(20, 72, false, "comp=qep,cd-sweeps=0,refit=0,group=0,sym=true,clip=output,clip-steps=9");
        test_codes(20, 150, false, "comp=rtn,round=w4a8,group=64,clip=none");
        test_codes(11, 150, false, "comp=gptq,round=w4a8,cd-sweeps=0,refit=0,group=64,clip-weights=none");
    }
    test_codes(4, 56, false, "comp=gptaq,round=w4a8,group=32,clip=output,clip-steps=3,cd-sweeps=1,refit=1");
    /* With refinement: its blocks, groups that a block cuts, the order of dynamic groups, and w4a8's. */
    test_codes(33, 129, false, "comp=rescomp,group=48,bits=3");
    if (!rq_small()) {
        test_codes(20, 96, false, "comp=gptaq,group=32,bits=2,static-groups=false,act-order=true");
        test_codes(20, 200, false, "comp=qep,group=0,bits=4,sym=true,cd-sweeps=1,refit=3");
        test_codes(20, 96, false, "comp=gptq,group=32,bits=8,scale-dtype=f32,cd-sweeps=2,refit=0");
        test_codes(20, 150, false, "comp=gptq,round=w4a8,group=32");
        test_codes(20, 136, false, "comp=rescomp,round=w4a8,group=64,refit=3,cd-sweeps=2");
        test_codes(20, 130, false, "comp=gptaq,round=w4a8,group=0,refit=2");
    }
    rows_done(100);
}

/* ---- stacks: matrices that share everything are swept as one, and come out as each would by itself */

static int64_t *launches_of(void) { return &((cuda_device *)gpu->own)->done.launches; }

/* Rows that differ: none here. On a GPU a product's sums may come in another order when it has more rows. */
#ifdef RQ_TEST_SIM
enum { OTHER_ROWS = 0 };
#else
enum { OTHER_ROWS = 1 };
#endif

/* a and b, of `rows` rows of so many bytes each; or neither is there. */
static void expect_same(const void *a, const void *b, int64_t rows, size_t bytes) {
    int64_t other = 0;
    EXPECT_EQ(a != NULL, b != NULL);
    for (int64_t i = 0; a && b && i < rows; ++i)
        other += memcmp((const char *)a + (size_t)i * bytes, (const char *)b + (size_t)i * bytes, bytes) != 0;
    EXPECT(other <= OTHER_ROWS);
}

static void expect_same_matrix(const rq_quant_result *a, const rq_quant_result *b, int64_t n_out, int64_t n) {
    const bool w4a8 = a->format == RQ_FORMAT_W4A8;
    const size_t groups = (size_t)(!w4a8 ? a->grid.n_group : a->w4a8.group ? rq_ceil_div(n, a->w4a8.group) : 1);
    EXPECT_EQ(a->format, b->format);
    EXPECT_EQ(w4a8 ? b->w4a8.n_out : b->grid.n_out, n_out);
    expect_same(a->codes, b->codes, n_out, (size_t)n);
    expect_same(a->q, b->q, n_out, (size_t)n * sizeof *a->q);
    expect_same(a->g_idx, b->g_idx, n, sizeof *a->g_idx);
    if (w4a8) {
        expect_same(a->w4a8.scale, b->w4a8.scale, n_out, sizeof *a->w4a8.scale);
        expect_same(a->w4a8.step, b->w4a8.step, n_out, groups);
        expect_same(a->w4a8.base, b->w4a8.base, n_out, groups);
        expect_same(a->w4a8.zero, b->w4a8.zero, n_out, 1);
    } else {
        expect_same(a->scale, b->scale, n_out, groups * sizeof *a->scale);
        expect_same(a->zero, b->zero, n_out, groups);
    }
}

static void test_stack(int64_t n, const char *settings) {
    enum { MATRICES = 3 };
    static const int64_t rows[MATRICES] = {21, 6, 9};
    problem p = problem_new(36, n, (int)n + 30, true);
    rq_quant_matrix m[MATRICES];
    rq_quant_result one[MATRICES], all[MATRICES];
    rq_quant_opt o;
    rq_prep prep;
    rq_device_work w;
    rq_quant_default(&o, RQ_COMP_GPTQ);
    CHECK_RQ(rq_quant_set_all(&o, settings));
    CHECK_RQ(rq_prepare_on(&prep, gpu, p.h, rq_quant_wants_cross(&o) ? p.d : NULL, n, &o, settings));
    int64_t row0 = 0, start = *launches_of();
    for (int i = 0; i < MATRICES; row0 += rows[i++]) {
        m[i] = (rq_quant_matrix){settings, p.w + row0 * n, rows[i]};
        CHECK_RQ(rq_quantize_matrix(&one[i], m[i].w, rows[i], &prep, &o, settings));
    }
    const int64_t apart = *launches_of() - start;
    start = *launches_of();
    CHECK_RQ(rq_quantize_set(all, m, MATRICES, &prep, &o));
    const int64_t together = *launches_of() - start;
    for (int i = 0; i < MATRICES; ++i) expect_same_matrix(&one[i], &all[i], rows[i], n);
    EXPECT_EQ(apart, MATRICES * together);
    CHECK_RQ(rq_device_plan(&w, row0, n, 0, &o));
    EXPECT_EQ(together, w.sweep.launches + w.refine.launches);
    for (int i = 0; i < MATRICES; ++i) rq_quant_result_free(&one[i]), rq_quant_result_free(&all[i]);
    rq_prep_free(&prep);
    problem_free(&p);
}

/* A stack has an end: the third matrix is one row too many. And what is wrong with one of a set is said of that one. */
static void test_stack_ends(void) {
    enum { N = 4, MATRICES = 3 };
    static const int64_t rows[MATRICES] = {RQ_CUDA_STACK_ROWS - 5, 5, 1};
    const int64_t n_out = RQ_CUDA_STACK_ROWS + 1;
    problem p = problem_new(n_out, N, 9, false);
    rq_quant_matrix m[MATRICES];
    rq_quant_result one, all[MATRICES];
    rq_quant_opt o;
    rq_prep prep;
    rq_quant_default(&o, RQ_COMP_RTN);
    CHECK_RQ(rq_quant_set_all(&o, "group=0,clip=none"));
    CHECK_RQ(rq_prepare_on(&prep, gpu, NULL, NULL, N, &o, "test"));
    int64_t row0 = 0, start = *launches_of();
    for (int i = 0; i < MATRICES; row0 += rows[i++])
        m[i] = (rq_quant_matrix){(const char *[]){"q", "k", "v"}[i], p.w + row0 * N, rows[i]};
    CHECK_RQ(rq_quantize_set(all, m, MATRICES, &prep, &o));
    EXPECT_EQ(*launches_of() - start, 2 * 3);
    CHECK_RQ(rq_quantize_matrix(&one, m[2].w, 1, &prep, &o, "v"));
    expect_same_matrix(&one, &all[2], 1, N);
    for (int i = 0; i < MATRICES; ++i) rq_quant_result_free(&all[i]);
    rq_quant_result_free(&one);
    p.w[(rows[0] + 2) * N + 3] = NAN;
    EXPECT_EQ(rq_quantize_set(all, m, MATRICES, &prep, &o), RQ_ERR_INPUT);
    EXPECT(strstr(rq_last_error(), "k: weight [2][3]"));
    rq_prep_free(&prep);
    problem_free(&p);
}

static void test_stacks(void) {
    test_stack(150, "comp=rescomp,group=32,bits=3");
    test_stack(129, "comp=gptaq,group=32,static-groups=false,act-order=true,cd-sweeps=1,refit=0");
    test_stack(96, "comp=qep,group=0,sym=true,clip=output,clip-steps=4,cd-sweeps=0,refit=0");
    test_stack(96, "comp=gptq,round=w4a8,group=32,refit=1");
    test_stack(96, "comp=rtn,round=w4a8,group=0");
    test_stack_ends();
}

/* ---- plans */

static void test_plans(void) {
    test_plan(20, 150, "comp=rescomp,group=32");
    test_plan(9, 130, "comp=qep,group=64,static-groups=false,act-order=true,cd-sweeps=0,refit=0");
    test_plan(9, 130, "comp=gptaq,group=0,clip=output,cd-sweeps=1,refit=0");
    test_plan(7, 64, "comp=gptq,round=w4a8,group=32,cd-sweeps=0,refit=0");
    test_plan(7, 64, "comp=rescomp,round=w4a8,group=32,refit=2");
    test_plan(9, 72, "comp=gptq,round=w4a8,group=0,clip=output,clip-steps=5");
    test_plan(9, 72, "comp=gptq,round=w4a8,group=32,clip=output,clip-steps=5,cd-sweeps=0,refit=0");
    test_plan(7, 64, "comp=rtn,group=16");
}

/* ---- what is refused */

static void test_refused(void) {
    problem p = problem_new(2, 300, 20, false);
    rq_quant_opt o;
    rq_prep prep;
    rq_quant_result r;
    rq_device *other = NULL;
    rq_quant_default(&o, RQ_COMP_GPTQ);
    o.block = 256;
    CHECK_RQ(rq_prepare_on(&prep, gpu, p.h, NULL, p.n, &o, "test"));
    EXPECT_EQ(rq_quantize_matrix(&r, p.w, 2, &prep, &o, "proj"), RQ_ERR_UNSUPPORTED);
    EXPECT(strstr(rq_last_error(), "proj") && strstr(rq_last_error(), "256"));
    rq_prep_free(&prep);
    EXPECT_EQ(rq_device_open(&other, "cuda:77"), RQ_ERR_DEVICE);
    EXPECT_EQ(rq_device_open(&other, "cuda:"), RQ_ERR_ARG);
    EXPECT_EQ(rq_device_open(&other, "cuda:1x"), RQ_ERR_ARG);
    EXPECT_EQ(rq_device_open(&other, "tpu"), RQ_ERR_ARG);
    EXPECT(other == NULL);
    problem_free(&p);
}

int main(void) {
    rq_need_device(80);
    CHECK_RQ(rq_device_open(&gpu, "cuda"));
    test_gram(37, 50, 3, true);
    if (!rq_small()) test_gram(130, 2049, 2, false);
    if (!rq_small()) test_gram(1040, 3, 1, true); /* two panels */
    test_prepare(70, true);
    if (!rq_small()) test_prepare(33, false);
    if (!rq_small()) test_ladder();
    test_all_codes();
    if (!rq_small()) test_plans();
    if (!rq_small()) test_stacks();
    test_refused();
    rq_device_close(gpu);
    return rq_done(__FILE__);
}
