/* SPDX-License-Identifier: Apache-2.0 */
/* The dense algebra under the quantizer (host/backend.h) on random matrices: time and GFLOP/s of useful work, that is with
 * what lies below a triangle not counted. Results are checked by tests/test_backend.c, at smaller sizes. */
#include <getopt.h>

#include "backend.h"
#include "harness.h"

enum { N_OPS = 8, MAX_SIZES = 16 };

typedef struct job {
    int64_t n, n_tok;
    float *a, *b, *c;
    double *h, *u, *inverse;
    rq_status status;
} job;

static void fill(float *x, int64_t n) {
    uint32_t s = 12345;
    for (int64_t i = 0; i < n; ++i) {
        s = s * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)s * 0x1p-31f;
    }
}

static void op_sgemm(void *arg, int64_t i) {
    job *j = arg;
    (void)i;
    rq_sgemm(RQ_N, RQ_T, j->n, j->n, j->n, 1.0f, j->a, j->n, j->b, j->n, 0.0f, j->c, j->n);
}
static void op_linear(void *arg, int64_t i) { /* tokens through a layer */
    job *j = arg;
    (void)i;
    rq_sgemm(RQ_N, RQ_T, j->n_tok, j->n, j->n, 1.0f, j->a, j->n, j->b, j->n, 0.0f, j->c, j->n);
}
static void op_gram(void *arg, int64_t i) {
    job *j = arg;
    (void)i;
    j->status = rq_gram_add(j->u, j->a, j->n_tok, j->n);
}
static void op_cross(void *arg, int64_t i) {
    job *j = arg;
    (void)i;
    j->status = rq_cross_add(j->u, j->a, j->a, j->n_tok, j->n);
}
static void op_factor(void *arg, int64_t i) {
    job *j = arg;
    (void)i;
    j->status = rq_factor_upper(j->u, j->inverse, j->h, j->n, NULL);
}
static void op_du(void *arg, int64_t i) {
    job *j = arg;
    (void)i;
    rq_sgemm_du(j->c, j->a, j->b, j->n);
}
static void op_tu(void *arg, int64_t i) {
    job *j = arg;
    (void)i;
    rq_sgemm_tu(j->c, j->b, j->b, j->n);
}
static void op_wu(void *arg, int64_t i) {
    job *j = arg;
    (void)i;
    rq_sgemm_wu(j->c, j->a, j->b, j->n, j->n, 0.0f);
}

/* Useful operations are n3 n^3 + tok n^2 n_tok. tri: b is upper triangular. */
static const struct {
    const char *name, *what;
    bench_fn fn;
    double n3, tok;
    bool tri;
} ops[N_OPS] = {
    {"sgemm", "A B^T, n x n", op_sgemm, 2, 0, false},
    {"linear", "X W^T, n_tok x n x n", op_linear, 0, 2, false},
    {"gram", "H += X^T X", op_gram, 0, 1, false},
    {"cross", "D += Y^T X", op_cross, 0, 2, false},
    {"factor", "U and U^-1, fp64", op_factor, 2.0 / 3, 0, false},
    {"du", "strictly upper D U^T", op_du, 1.0 / 3, 0, true}, /* n - j products for each j > i */
    {"tu", "strictly upper T U", op_tu, 1.0 / 3, 0, true},
    {"wu", "W T", op_wu, 1, 0, true},
};

static rq_status make(job *j, int64_t n, int64_t n_tok) {
    rq_status status = RQ_OK;
    int64_t rows = rq_max_i64(n, n_tok);
    memset(j, 0, sizeof *j);
    j->n = n;
    j->n_tok = n_tok;
    RQ_TRY(RQ_NEW(j->a, rows * n));
    RQ_TRY(RQ_NEW(j->b, n * n));
    RQ_TRY(RQ_NEW(j->c, rows * n));
    RQ_TRY(RQ_NEW_ZERO(j->h, n * n));
    RQ_TRY(RQ_NEW_ZERO(j->u, n * n));
    RQ_TRY(RQ_NEW(j->inverse, n * n));
    fill(j->a, rows * n);
    RQ_TRY(rq_gram_add(j->h, j->a, n_tok, n));
    for (int64_t i = 0; i < n; ++i) j->h[i * n + i] += (double)n_tok;
done:
    return status;
}

static void drop(job *j) { free(j->a), free(j->b), free(j->c), free(j->h), free(j->u), free(j->inverse); }

static rq_status run_size(json_t *records, const bench_machine *m, const char *flags, int64_t n, int64_t n_tok,
                          double seconds) {
    rq_status status = RQ_OK;
    job j;
    RQ_TRY(make(&j, n, n_tok));
    for (int o = 0; o < N_OPS; ++o) {
        bench_times t;
        fill(j.b, n * n);
        for (int64_t i = 0; ops[o].tri && i < n; ++i) memset(j.b + i * n, 0, (size_t)i * sizeof *j.b);
        bench_time(&t, ops[o].fn, &j, seconds, 3);
        RQ_TRY(j.status);
        double flops =
            ops[o].n3 * (double)n * (double)n * (double)n + ops[o].tok * (double)n * (double)n * (double)n_tok;
        double gflops = flops / t.med_us * 1e-3;
        printf("%-7s %-22s %6lld %6lld %10.3f %10.3f %10.3f %9.1f\n", ops[o].name, ops[o].what, (long long)n,
               (long long)(ops[o].tok > 0 ? n_tok : 0), t.med_us * 1e-3, t.p20_us * 1e-3, t.p80_us * 1e-3, gflops);
        fflush(stdout);
        json_t *r = json_object();
        bench_record_machine(r, m, flags);
        json_object_set_new(r, "backend", json_string(rq_backend_name()));
        json_object_set_new(r, "op", json_string(ops[o].name));
        json_object_set_new(r, "n", json_integer(n));
        json_object_set_new(r, "n_tok", json_integer(ops[o].tok > 0 ? n_tok : 0));
        json_object_set_new(r, "t_med_us", json_real(t.med_us));
        json_object_set_new(r, "t_p20_us", json_real(t.p20_us));
        json_object_set_new(r, "t_p80_us", json_real(t.p80_us));
        json_object_set_new(r, "samples", json_integer(t.n));
        json_object_set_new(r, "gflops", json_real(gflops));
        json_array_append_new(records, r);
    }
done:
    drop(&j);
    return status;
}

static void usage(FILE *f) {
    fputs("bench_dense: the dense algebra of the quantizer\n"
          "  --sizes 576,1536,4096   n (default these three)\n"
          "  --tokens N              rows of X (default 2048)\n"
          "  --threads N             default: one per core\n"
          "  --seconds S             sampling per row, at least 3 samples (default 0.5)\n"
          "  --json FILE, --csv FILE a record per row\n",
          f);
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"sizes", 1, NULL, 'z'}, {"tokens", 1, NULL, 't'},  {"threads", 1, NULL, 'j'}, {"json", 1, NULL, 'o'},
        {"csv", 1, NULL, 'c'},   {"seconds", 1, NULL, 's'}, {"help", 0, NULL, 'h'},    {NULL, 0, NULL, 0}};
    const char *json_path = NULL, *csv_path = NULL;
    int64_t sizes[MAX_SIZES] = {576, 1536, 4096}, n_tok = 2048, threads = 0;
    int n_sizes = 3, id;
    double seconds = 0.5;
    while ((id = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        bool ok = true;
        if (id == 'z')
            ok = (n_sizes = bench_parse_ints(optarg, 1, 1 << 16, sizes, MAX_SIZES)) > 0;
        else if (id == 't')
            ok = bench_parse_ints(optarg, 1, 1 << 20, &n_tok, 1) == 1;
        else if (id == 'j')
            ok = bench_parse_ints(optarg, 1, 1024, &threads, 1) == 1;
        else if (id == 's')
            ok = (seconds = strtod(optarg, NULL)) > 0;
        else if (id == 'o')
            json_path = optarg;
        else if (id == 'c')
            csv_path = optarg;
        else if (id == 'h')
            return usage(stdout), 0;
        else
            ok = false;
        if (!ok) return usage(stderr), 2;
    }
    char flags[512];
    bench_join_flags(flags, sizeof flags, argc, argv);
    rq_status status = RQ_OK;
    bench_machine m;
    json_t *records = json_array();
    rq_set_threads((int)threads);
    RQ_TRY(rq_backend_init());
    bench_machine_look(&m);
    RQ_TRY(bench_measure_read(&m));
    printf("cpu %s, %d cores, %d threads, %s, load %.2f\n", m.cpu, m.n_cores, m.n_threads, rq_backend_name(),
           m.load_before);
    printf("%-7s %-22s %6s %6s %10s %10s %10s %9s\n", "op", "", "n", "n_tok", "ms", "p20", "p80", "GFLOP/s");
    for (int i = 0; i < n_sizes; ++i) RQ_TRY(run_size(records, &m, flags, sizes[i], n_tok, seconds));
    if (json_path) RQ_TRY(bench_write_json(json_path, records));
    if (csv_path) RQ_TRY(bench_write_csv(csv_path, records));
done:
    if (status != RQ_OK) fprintf(stderr, "bench_dense: %s\n", rq_last_error());
    json_decref(records);
    return status != RQ_OK;
}
