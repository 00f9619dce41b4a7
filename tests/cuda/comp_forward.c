/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA row of forward.h (host/backend_cuda_forward.c, backend_cuda_rows.c) against the CPU's, operation by operation, and rows of all samples on the
 * device and in files. What is bit for bit the same: inputs of w4a8, rows, Gram matrices of whole numbers. The kernels have tests against fp64
 * (llama.cu), the whole pass has sim_quantize. Libraries: quantizer requite models. Targets: sm_80 sm_90a. */
#include "comp_case.h"

#include "act_hadamard.h"
#include "backend_cuda_forward.h"
#include "random.h"

enum { N_SEQ = 3, SEQ = 21, N_TOK = N_SEQ * SEQ, N_HEAD = 4, N_KV = 2, HEAD = 16, D = N_HEAD * HEAD, FF = 96 };

static float inv_freq[HEAD / 2];
static rq_model model = {.cfg = {.d_model = D,
                                 .d_ff = FF,
                                 .n_head = N_HEAD,
                                 .n_kv_head = N_KV,
                                 .head_dim = HEAD,
                                 .n_layer = 1,
                                 .rms_eps = 1e-5f},
                         .rope_inv_freq = inv_freq};

/* Both rows, with the same numbers in host[], there[0] (the CPU's) and there[1]. */
enum { N_BUF = 4 };
typedef struct both {
    const rq_forward_ops *row[2];
    void *run[2];
    float *buf[2][N_BUF];
    int64_t n[N_BUF];
} both;

static rq_forward_job job_of(int64_t n_tok, int64_t chunk, double matrix_bytes) {
    return (rq_forward_job){.device = gpu,
                            .model = &model,
                            .dir = ".",
                            .n_tok = n_tok,
                            .chunk = chunk,
                            .seq_len = SEQ,
                            .n_streams = 2,
                            .cross = true,
                            .matrix_bytes = matrix_bytes};
}

static void both_new(both *b, bool bf16) {
    rq_forward_job job = job_of(N_TOK, N_TOK, 0);
    *b = (both){.row = {&rq_forward_cpu, &rq_forward_cuda}};
    for (int k = 0; k < 2; ++k) {
        job.device = k ? gpu : NULL;
        job.bf16 = k && bf16;
        CHECK_RQ(b->row[k]->begin(&b->run[k], &job));
        CHECK_RQ(b->row[k]->pass_begin(b->run[k]));
    }
}

static void fill(both *b, int i, int64_t n, float scale, uint64_t seed) {
    float *x = rq_host_alloc((size_t)n * sizeof *x);
    for (int64_t j = 0; j < n; ++j) x[j] = scale * (float)(rq_random_unit(seed, (uint64_t)j) - 0.5);
    b->n[i] = n;
    for (int k = 0; k < 2; ++k) {
        if (b->buf[k][i]) b->row[k]->free_floats(b->run[k], b->buf[k][i]);
        CHECK_RQ(b->row[k]->new_floats(b->run[k], &b->buf[k][i], n, "a test"));
        CHECK_RQ(b->row[k]->upload(b->run[k], b->buf[k][i], x, n));
    }
    free(x);
}

/* The first n numbers of buffer i are the same up to `bound` times the largest of them. */
static void compare(both *b, int i, int64_t n, double bound, const char *what) {
    float *x[2];
    double most = 0, worst = 0;
    for (int k = 0; k < 2; ++k) {
        x[k] = rq_host_alloc((size_t)n * sizeof **x);
        CHECK_RQ(b->row[k]->download(b->run[k], x[k], b->buf[k][i], n));
    }
    for (int64_t j = 0; j < n; ++j) {
        most = fmax(most, fabs((double)x[0][j]));
        worst = x[0][j] == x[1][j] ? worst : fmax(worst, fabs((double)x[0][j] - (double)x[1][j]));
        if (isnan(x[1][j])) worst = INFINITY;
    }
    if (!(worst <= bound * most)) fprintf(stderr, "%s: off by %g, largest %g\n", what, worst, most);
    EXPECT(worst <= bound * most);
    free(x[0]), free(x[1]);
}

#define ON_BOTH(call)                                                                                                  \
    for (int k = 0; k < 2; ++k) {                                                                                      \
        const rq_forward_ops *row = b->row[k];                                                                         \
        void *run = b->run[k];                                                                                         \
        float **buf = b->buf[k];                                                                                       \
        CHECK_RQ(row->call);                                                                                           \
    }

static void both_free(both *b) {
    for (int k = 0; k < 2; ++k) {
        CHECK_RQ(b->row[k]->pass_end(b->run[k]));
        for (int i = 0; i < N_BUF; ++i) b->row[k]->free_floats(b->run[k], b->buf[k][i]);
        b->row[k]->end(b->run[k]);
    }
}

/* ---- operations */

static void test_model(both *b) {
    float *w = rq_host_alloc((size_t)(FF * D) * sizeof *w), *bias = rq_host_alloc(FF * sizeof *bias);
    for (int i = 0; i < FF * D; ++i) w[i] = (float)(rq_random_unit(7, (uint64_t)i) - 0.5);
    for (int i = 0; i < FF; ++i) bias[i] = (float)rq_random_unit(8, (uint64_t)i);
    const rq_linear plain = {.name = "plain", .n_out = FF, .n_in = D, .w = w},
                    biased = {.name = "biased", .n_out = FF, .n_in = D, .w = w, .bias = bias};
    fill(b, 0, N_TOK * D, 4, 1);
    fill(b, 1, N_TOK * FF, 4, 2);
    fill(b, 2, N_TOK * FF, 4, 3);
    ON_BOTH(rmsnorm(run, buf[1], buf[0], bias, N_TOK, D));
    compare(b, 1, N_TOK * D, 1e-6, "rmsnorm");
    ON_BOTH(linear(run, buf[1], &plain, buf[0], N_TOK));
    compare(b, 1, N_TOK * FF, 1e-6, "linear");
    ON_BOTH(linear(run, buf[2], &biased, buf[0], N_TOK));
    compare(b, 2, N_TOK * FF, 1e-6, "linear with a bias");
    ON_BOTH(swiglu(run, buf[1], buf[1], buf[2], N_TOK * FF));
    compare(b, 1, N_TOK * FF, 1e-6, "swiglu");
    fill(b, 3, N_TOK * FF, 4, 4);
    ON_BOTH(add_linear(run, buf[1], &plain, buf[0], N_TOK, buf[3]));
    compare(b, 1, N_TOK * FF, 1e-6, "a product added");
    ON_BOTH(add_linear(run, buf[1], &biased, buf[0], N_TOK, buf[3]));
    compare(b, 1, N_TOK * FF, 1e-6, "a product with a bias added");
    fill(b, 0, N_TOK * D, 3, 5);
    fill(b, 1, N_TOK * N_KV * HEAD, 3, 6);
    fill(b, 2, N_TOK * N_KV * HEAD, 2, 7);
    fill(b, 3, N_TOK * D, 2, 8);
    ON_BOTH(attention(run, buf[3], buf[0], buf[1], buf[2], N_SEQ));
    compare(b, 3, N_TOK * D, 1e-6, "attention");
    free(w), free(bias);
}

static void test_inputs(both *b) {
    rq_hadamard h[2];
    float factors[FF];
    CHECK_RQ(rq_hadamard_make(h, 48));
    for (int i = 0; i < FF; ++i) factors[i] = 0.5f + (float)rq_random_unit(9, (uint64_t)i);
    const rq_input how[] = {{&h[0], factors, true},
                            {NULL, factors, false},
                            {NULL, NULL, true},
                            {&h[0], NULL, false},
                            {NULL, factors, true}};
    for (size_t i = 0; i < sizeof how / sizeof *how; ++i) {
        fill(b, 0, N_TOK * FF, 4, 20 + i);
        fill(b, 1, N_TOK * FF, 4, 30 + i);
        ON_BOTH(input(run, buf[1], buf[0], &how[i], N_TOK, FF));
        compare(b, 1, N_TOK * FF, 0, "an input");
        ON_BOTH(input(run, buf[0], buf[0], &how[i], N_TOK, FF));
        compare(b, 0, N_TOK * FF, 0, "an input in place");
    }
}

static void test_statistics(both *b) {
    float norm[2][N_TOK], got[2][N_TOK], by[N_TOK];
    for (int t = 0; t < N_TOK; ++t) by[t] = t % 9 == 4 ? 0 : 0.5f + (float)rq_random_unit(10, (uint64_t)t);
    fill(b, 0, N_TOK * D, 3, 11);
    fill(b, 1, N_TOK * N_KV * HEAD, 3, 12);
    ON_BOTH(token_norm(run, norm[k], buf[0], N_TOK, D));
    ON_BOTH(token_attention(run, got[k], buf[0], buf[1], N_SEQ));
    for (int t = 0; t < N_TOK; ++t) {
        EXPECT_NEAR_AT(t, norm[1][t], norm[0][t], 1e-6 * (double)norm[0][t]);
        EXPECT_NEAR_AT(t, got[1][t], got[0][t], 1e-5 * (double)got[0][t]);
    }
    fill(b, 0, N_TOK * D, 3, 13);
    fill(b, 1, N_TOK * D, 3, 14);
    ON_BOTH(scale_rows(run, buf[0], by, N_TOK, D));
    ON_BOTH(divide_rows(run, buf[1], by, N_TOK, D));
    ON_BOTH(drop_first(run, buf[0], N_SEQ, 4, D));
    ON_BOTH(drop_first(run, buf[1], N_SEQ, 0, D));
    compare(b, 0, (N_TOK - 4 * N_SEQ) * D, 0, "rows scaled, without the first");
    compare(b, 1, N_TOK * D, 0, "rows divided");
    ON_BOTH(subtract(run, buf[1], buf[0], N_TOK - 4 * N_SEQ, D));
    compare(b, 1, N_TOK * D, 0, "a difference");
    fill(b, 2, D, 0, 1);
    ON_BOTH(column_max(run, buf[2], buf[1], N_TOK, D));
    ON_BOTH(column_max(run, buf[2], buf[0], 5, D));
    compare(b, 2, D, 0, "the largest of columns");
    ON_BOTH(drop_first(run, buf[0], N_SEQ, SEQ, D)); /* nothing is left */
}

static void test_gram(both *b) {
    double *h[2], *d[2];
    float x[N_TOK * D];
    const rq_device_ops *ops[2] = {&rq_device_cpu, gpu->ops};
    void *own[2] = {NULL, gpu->own};
    for (int i = 0; i < 2; ++i) {
        fill(b, i, N_TOK * D, 1, 1);
        for (int j = 0; j < N_TOK * D; ++j) x[j] = (float)((int)(rq_random_u64(15 + (uint64_t)i, (uint64_t)j) % 9) - 4);
        ON_BOTH(upload(run, buf[i], x, N_TOK * D));
    }
    for (int k = 0; k < 2; ++k) {
        h[k] = rq_host_alloc(D * D * sizeof **h), d[k] = rq_host_alloc(D * D * sizeof **d);
        CHECK_RQ(ops[k]->gram_start(own[k], h[k], d[k], D));
    }
    ON_BOTH(gram(run, h[k], d[k], buf[0], buf[1], N_TOK, D));
    ON_BOTH(gram(run, h[k], d[k], buf[1], buf[0], 5, D));
    for (int k = 0; k < 2; ++k) CHECK_RQ(ops[k]->gram_finish(own[k], h[k], d[k], D));
    for (int i = 0; i < D * D; ++i) {
        EXPECT_EQ_AT(i, h[1][i], h[0][i]);
        EXPECT_EQ_AT(i, d[1][i], d[0][i]);
    }
    for (int k = 0; k < 2; ++k) free(h[k]), free(d[k]);
}

/* Two matrices, one with more rows than go past H at a time. */
static void test_loss(both *b) {
    enum { MATRICES = 2, FIRST = 7 };
    problem p = problem_new(FIRST + 1030, 20, 60, false);
    float *q = rq_host_alloc((size_t)(p.n_out * p.n) * sizeof *q);
    for (int64_t i = 0; i < p.n_out * p.n; ++i) q[i] = p.w[i] + 0.1f * (float)(rq_random_unit(3, (uint64_t)i) - 0.5);
    const rq_loss_of of[MATRICES] = {{p.w, q, FIRST}, {p.w + FIRST * p.n, q + FIRST * p.n, p.n_out - FIRST}};
    for (int cross = 0; cross < 2; ++cross) {
        rq_loss l[2][MATRICES];
        for (int k = 0; k < 2; ++k)
            CHECK_RQ(b->row[k]->loss(b->run[k], l[k], of, MATRICES, p.n, p.h, cross ? p.d : NULL));
        for (int i = 0; i < MATRICES; ++i) {
            const rq_loss *cpu = &l[0][i], *cuda = &l[1][i];
            EXPECT_NEAR_AT(i, cuda->sym, cpu->sym, 1e-6 * cpu->sym);
            EXPECT_NEAR_AT(i, cuda->asym, cpu->asym, 1e-6 * cpu->sym);
            EXPECT_NEAR_AT(i, cuda->whw, cpu->whw, 1e-6 * cpu->whw);
            EXPECT((cuda->asym == cuda->sym) == !cross);
        }
    }
    free(q);
    problem_free(&p);
}

/* device_plan.h counts what a pass does with a matrix, in two streams. */
static void test_forward_plan(void) {
    enum { TOKENS = 2048 + 70, CHUNK = 2048, OUT = 9, IN = 48 };
    const rq_forward_ops *row = &rq_forward_cuda;
    const rq_forward_job job = job_of(TOKENS, CHUNK, 0);
    float w[2][OUT * IN] = {{0}}, *x, *y;
    rq_work *done = &((cuda_device *)gpu->own)->done;
    rq_device_work plan;
    rq_quant_opt o;
    void *run;
    rq_quant_default(&o, RQ_COMP_RESCOMP);
    CHECK_RQ(rq_quant_set_all(&o, "group=16"));
    CHECK_RQ(rq_device_plan(&plan, OUT, IN, TOKENS, &o));
    CHECK_RQ(row->begin(&run, &job));
    CHECK_RQ(row->new_floats(run, &x, CHUNK * IN, "a test"));
    CHECK_RQ(row->new_floats(run, &y, CHUNK * OUT, "a test"));
    CHECK_CUDA(cudaMemset(x, 0, sizeof(float[CHUNK * IN])));
    *done = (rq_work){0};
    CHECK_RQ(row->pass_begin(run));
    for (int t = 0; t < TOKENS; t += CHUNK) {
        for (int k = 0; k < 2; ++k) {
            const rq_linear lin = {.name = "w", .n_out = OUT, .n_in = IN, .w = w[k]};
            CHECK_RQ(row->linear(run, y, &lin, x, rq_min_i64(CHUNK, TOKENS - t)));
        }
    }
    CHECK_RQ(row->pass_end(run));
    EXPECT_EQ(done->launches, plan.forward.launches);
    EXPECT_NEAR(done->flops, plan.forward.flops, 0);
    EXPECT_NEAR(done->upload, plan.forward.upload, 0);
    row->free_floats(run, x);
    row->free_floats(run, y);
    row->end(run);
}

/* What is rounded to bfloat16 beforehand is multiplied as it is, and anything else as if it were. */
static void test_bf16(void) {
    both both_rows, *b = &both_rows;
    float *w = rq_host_alloc((size_t)(FF * D) * sizeof *w), x[2][N_TOK * D], bias[FF];
    const rq_linear lin = {.name = "biased", .n_out = FF, .n_in = D, .w = w, .bias = bias};
    both_new(b, true);
    for (int i = 0; i < FF; ++i) bias[i] = (float)rq_random_unit(8, (uint64_t)i);
    fill(b, 0, N_TOK * D, 1, 1);
    fill(b, 2, N_TOK * FF, 1, 2);
    fill(b, 1, N_TOK * FF, 1, 2);
    for (int k = 0; k < 2; ++k) {
        for (int i = 0; i < N_TOK * D; ++i) {
            x[k][i] = (float)(rq_random_unit(9, (uint64_t)i) - 0.5);
            if (k == 0) x[k][i] = rq_bf16_value(rq_bf16_bits(x[k][i]));
        }
        CHECK_RQ(b->row[k]->upload(b->run[k], b->buf[k][0], x[k], N_TOK * D));
        for (int i = 0; i < FF * D; ++i) {
            w[i] = (float)(rq_random_unit(7, (uint64_t)i) - 0.5);
            if (k == 0) w[i] = rq_bf16_value(rq_bf16_bits(w[i]));
        }
        CHECK_RQ(b->row[k]->linear(b->run[k], b->buf[k][1], &lin, b->buf[k][0], N_TOK));
        CHECK_RQ(b->row[k]->add_linear(b->run[k], b->buf[k][1], &lin, b->buf[k][0], N_TOK, b->buf[k][2]));
    }
    compare(b, 1, N_TOK * FF, 1e-6, "products in bfloat16");
    test_gram(b);
    both_free(b);
    free(w);
}

/* ---- rows of all samples: two passes over five chunks, the second reads what the first wrote, and writes over it */

static void test_rows(bool in_files) {
    enum { CHUNKS = 5, ROWS = CHUNKS * N_TOK };
    const rq_forward_ops *row = &rq_forward_cuda;
    rq_forward_job job = job_of(ROWS, N_TOK, 0);
    void *run;
    rq_rows *r[2];
    float *x, host[N_TOK * D], *seen = rq_host_alloc(N_TOK * D * sizeof *seen);
    CHECK_RQ(row->begin(&run, &job));
    if (in_files) ((cuda_forward *)run)->room = 0;
    CHECK_RQ(row->new_floats(run, &x, N_TOK * D, "a test"));
    for (int i = 0; i < 2; ++i) CHECK_RQ(row->rows_new(run, &r[i], D, "a test"));
    EXPECT((((cuda_forward *)run)->in[0].pinned != NULL) == in_files);
    for (int pass = 0; pass < 3; ++pass) {
        CHECK_RQ(row->pass_begin(run));
        for (int c = 0; c < CHUNKS; ++c) {
            for (int i = 0; i < 2; ++i) {
                const int64_t n = c == CHUNKS - 1 ? SEQ : N_TOK;
                if (pass > 0) {
                    CHECK_RQ(row->rows_read(run, r[i], c * N_TOK, n, x));
                    CHECK_RQ(row->download(run, seen, x, n * D));
                    for (int64_t j = 0; j < n * D; ++j)
                        EXPECT_EQ_AT(j, seen[j], (pass - 1) * 1000000 + c * 10000 + i * 500000 + (int)j % 9999);
                }
                for (int64_t j = 0; j < n * D; ++j)
                    host[j] = (float)(pass * 1000000 + c * 10000 + i * 500000 + (int)j % 9999);
                CHECK_RQ(row->upload(run, x, host, n * D));
                CHECK_RQ(row->rows_write(run, r[i], c * N_TOK, n, x));
                if (pass == 1 && c == 2) { /* what has just been written */
                    CHECK_RQ(row->rows_read(run, r[i], c * N_TOK + 1, 1, x));
                    CHECK_RQ(row->download(run, seen, x, D));
                    EXPECT_EQ(seen[0], host[D]);
                }
            }
        }
        CHECK_RQ(row->pass_end(run));
    }
    for (int i = 0; i < 2; ++i) row->rows_free(run, r[i]);
    row->free_floats(run, x);
    row->end(run);
    free(seen);
}

static void test_refused(void) {
    rq_forward_job job = job_of(N_TOK, N_TOK, 1e15);
    void *run = NULL;
    EXPECT_EQ(rq_forward_cuda.begin(&run, &job), RQ_ERR_NOMEM);
    EXPECT(strstr(rq_last_error(), "matrix 953674316.4 MiB")); /* 1e15 bytes */
    if (run) rq_forward_cuda.end(run);
    model.cfg.head_dim = 512;
    job = job_of(N_TOK, N_TOK, 0);
    EXPECT_EQ(rq_forward_cuda.begin(&run, &job), RQ_ERR_UNSUPPORTED);
    EXPECT(run == NULL && strstr(rq_last_error(), "512"));
    model.cfg.head_dim = HEAD;
}

int main(void) {
    both b;
    rq_need_device(80);
    for (int i = 0; i < HEAD / 2; ++i) inv_freq[i] = powf(10000.0f, -(float)i / (HEAD / 2));
    CHECK_RQ(rq_device_open(&gpu, "cuda"));
    EXPECT(rq_forward_row(gpu) == &rq_forward_cuda && rq_forward_row(NULL) == &rq_forward_cpu);
    both_new(&b, false);
    test_model(&b);
    test_inputs(&b);
    test_statistics(&b);
    test_gram(&b);
    test_loss(&b);
    both_free(&b);
    test_forward_plan();
    test_bf16();
    test_rows(false);
    test_rows(true);
    test_refused();
    rq_device_close(gpu);
    return rq_done(__FILE__);
}
