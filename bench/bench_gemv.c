/* SPDX-License-Identifier: Apache-2.0 */
/* y = W x for a few tokens: every gemv row of kernels.def over the layers of real models.
 *
 * A row is timed only after its output met the definition (fp64 sums over unpacked rows) and a second run gave the same
 * bytes; a failed check is exit code 1. Cold: the weights rotate through copies of more than four last-level caches, as
 * they do when a whole model is run. Warm: one copy again and again; of interest only where a model fits the cache. The
 * ceiling is the read bandwidth measured in the same run. docs/bench.md explains the columns. */
#include <dlfcn.h>
#include <math.h>

#include "backend.h"
#include "gemv_options.h"

enum { CHECK_ROWS = 48 };

/* ---- running ---------------------------------------------------------------------------------------------------------- */

/* OpenBLAS's own sgemv on fp32 weights, called by rows like the kernels; the library is loaded already. */
static void (*cblas_sgemv)(int order, int trans, int m, int n, float alpha, const float *a, int lda, const float *x,
                           int inc_x, float beta, float *y, int inc_y);

typedef struct run {
    const bench_subject *s;
    const rq_kernel *kernel; /* NULL: sgemv */
    float *y;
    const float *x;
    int64_t n_tok, item_rows;
    bool rotate;
    rq_packed packed; /* the copy in use: this, or */
    rq_dense dense;
} run;

static void rows_body(void *arg, int64_t item) {
    const run *r = arg;
    int64_t row0 = item * r->item_rows, n = rq_min_i64(r->item_rows, r->s->n_out - row0);
    if (!r->kernel) {
        const float *w = (const float *)r->dense.data + row0 * r->s->n_in;
        for (int64_t t = 0; t < r->n_tok; ++t) {
            cblas_sgemv(101, 111, (int)n, (int)r->s->n_in, 1.0f, w, (int)r->s->n_in, r->x + t * r->s->n_in, 1, 0.0f,
                        r->y + t * r->s->n_out + row0, 1);
        }
    } else {
        const void *w = r->packed.n_out ? (const void *)&r->packed.u : (const void *)&r->dense;
        r->kernel->gemv(r->y, w, r->x, r->n_tok, row0, n);
    }
}

static void run_once(void *arg, int64_t i) {
    run *r = arg;
    const unsigned char *data = r->s->copies + (r->rotate ? i % r->s->n_copies : 0) * r->s->copy_bytes;
    bench_copy_at(&r->packed, &r->dense, r->s, data);
    rq_parallel_for(rq_ceil_div(r->s->n_out, r->item_rows), rows_body, r);
}

/* Up to CHECK_ROWS rows spread over the matrix against fp64; all outputs written; a second run bit-equal.
 * *worst: the largest error as a fraction of its bound. */
static rq_status check(run *r, double *worst) {
    rq_status status = RQ_OK;
    const bench_subject *s = r->s;
    int64_t n = r->n_tok * s->n_out, stride = rq_max_i64(1, s->n_out / CHECK_ROWS);
    float *first = NULL, *w = NULL;
    *worst = 0;
    RQ_TRY(RQ_NEW(first, n));
    RQ_TRY(RQ_NEW(w, s->n_in));
    for (int64_t i = 0; i < n; ++i) r->y[i] = NAN;
    run_once(r, 0);
    memcpy(first, r->y, (size_t)n * sizeof *first);
    for (int64_t i = 0; i < n; ++i) {
        if (!isfinite(r->y[i])) RQ_FAIL(RQ_ERR_NUMERIC, "output %lld was not written or is not finite", (long long)i);
    }
    run_once(r, 1);
    if (memcmp(first, r->y, (size_t)n * sizeof *first) != 0) RQ_FAIL(RQ_ERR_NUMERIC, "two runs differ");
    for (int64_t row = 0; row < s->n_out; row += stride) {
        bench_define_row(s, row, w);
        for (int64_t t = 0; t < r->n_tok; ++t) {
            double sum = 0, mag = 0;
            for (int64_t j = 0; j < s->n_in; ++j) {
                double term = (double)w[j] * (double)r->x[t * s->n_in + j];
                sum += term;
                mag += fabs(term);
            }
            double got = (double)r->y[t * s->n_out + row], error = fabs(got - sum);
            double bound = (double)(s->n_in + 8) * 0x1p-24 * mag;
            if (!(error <= bound)) {
                RQ_FAIL(RQ_ERR_NUMERIC, "row %lld, token %lld: %.9g instead of %.9g", (long long)row, (long long)t, got,
                        sum);
            }
            if (error / bound > *worst) *worst = error / bound;
        }
    }
done:
    free(first);
    free(w);
    return status;
}

/* ---- one line of the table -------------------------------------------------------------------------------------------- */

typedef struct context {
    gemv_options o;
    bench_machine machine;
    json_t *records, *old;
    int n_failed, n_slower, n_compared, n_new; /* the last two: with and without a row in the earlier run */
    double sgemv_us;                           /* of this shape and token count, 0: not measured */
} context;

static const char *const identity[] = {"device", "n_out", "n_in",   "format", "bits",    "group",
                                       "sym",    "n_tok", "kernel", "cpu",    "threads", "clock"};

static void print_head(const context *c) {
    printf("%-16s %-8s %6s %6s  %-12s %4s %5s %3s %-10s %7s", "model", "layer", "n_out", "n_in", "format", "bits",
           "group", "tok", "kernel", "bits/w");
    if (c->o.dry_run) {
        printf(" %10s %12s\n", "bytes MB", "floor us");
        return;
    }
    printf(" %9s %9s %9s %9s %7s %6s %8s %8s%s\n", "cold us", "p20", "p80", "warm us", "GB/s", "% read", "Gweight/s",
           "x sgemv", c->old ? "  x old" : "");
}

/* Bytes a call must move: the matrix with all its side data, x and y. */
static int64_t model_bytes(const bench_subject *s, int64_t n_tok) {
    return s->size_bits / 8 + 4 * n_tok * (s->n_in + s->n_out);
}

/* Columns that share a scale; 0: the operand has no such thing. */
static int64_t group_of(const bench_subject *s) {
    if (!strcmp(s->operand, "grid")) return s->packed.u.grid.group;
    if (!strcmp(s->operand, "ssvq")) return s->packed.u.ssvq.group;
    return !strcmp(s->operand, "vq") && s->packed.u.vq.scale ? s->packed.u.vq.group : 0;
}

static json_t *describe(const context *c, int shape, const bench_subject *s, int64_t n_tok, const char *kernel) {
    bool grid = !strcmp(s->operand, "grid");
    json_t *r = json_object();
    bench_record_machine(r, &c->machine, c->o.flags);
    json_object_set_new(r, "device", json_string("cpu"));
    json_object_set_new(r, "model", json_string(c->o.shapes.at[shape].model));
    json_object_set_new(r, "layer", json_string(c->o.shapes.at[shape].shape.layer));
    json_object_set_new(r, "n_out", json_integer(s->n_out));
    json_object_set_new(r, "n_in", json_integer(s->n_in));
    json_object_set_new(r, "format", json_string(s->variant));
    json_object_set_new(r, "bits", json_integer(s->bits));
    json_object_set_new(r, "group", group_of(s) ? json_integer(group_of(s)) : json_null());
    json_object_set_new(r, "sym", grid ? json_boolean(c->o.sym) : json_null());
    json_object_set_new(r, "n_tok", json_integer(n_tok));
    json_object_set_new(r, "kernel", json_string(kernel));
    json_object_set_new(r, "bpw", json_real((double)s->size_bits / (double)(s->n_out * s->n_in)));
    json_object_set_new(r, "bytes", json_integer(model_bytes(s, n_tok)));
    json_object_set_new(r, "flops", json_integer(2 * s->n_out * s->n_in * n_tok));
    return r;
}

static void print_start(const context *c, int shape, const bench_subject *s, int64_t n_tok, const char *kernel) {
    char group[24] = "-";
    if (group_of(s)) snprintf(group, sizeof group, "%lld", (long long)group_of(s));
    printf("%-16s %-8s %6lld %6lld  %-12s %4d %5s %3lld %-10s %7.3f", c->o.shapes.at[shape].model,
           c->o.shapes.at[shape].shape.layer, (long long)s->n_out, (long long)s->n_in, s->variant, s->bits, group,
           (long long)n_tok, kernel, (double)s->size_bits / (double)(s->n_out * s->n_in));
}

static bool passes_filter(const context *c, int shape, const bench_subject *s, int64_t n_tok, const char *kernel) {
    char name[160];
    snprintf(name, sizeof name, "%s %s %lldx%lld %s %d t=%lld %s", c->o.shapes.at[shape].model,
             c->o.shapes.at[shape].shape.layer, (long long)s->n_out, (long long)s->n_in, s->variant, s->bits,
             (long long)n_tok, kernel);
    return !c->o.filter || strstr(name, c->o.filter) != NULL;
}

static void compare_old(context *c, const json_t *record, double cold_us) {
    const json_t *was = bench_find(c->old, record, identity, (int)(sizeof identity / sizeof *identity));
    double old_us = json_number_value(json_object_get(was, "t_cold_med_us"));
    if (old_us <= 0) {
        printf("      -");
        ++c->n_new;
        return;
    }
    ++c->n_compared;
    bool slower = c->o.fail_if_slower >= 0 && cold_us > old_us * (1 + c->o.fail_if_slower);
    printf(" %6.2f%s", old_us / cold_us, slower ? " SLOWER" : "");
    c->n_slower += slower;
}

static rq_status line(context *c, int shape, const bench_subject *s, const rq_kernel *k, const float *x, float *y,
                      int64_t n_tok) {
    const char *name = k ? k->impl : "sgemv";
    run r = {.s = s, .kernel = k, .y = y, .x = x, .n_tok = n_tok};
    r.item_rows = rq_gemv_item_rows(s->n_out, rq_get_threads());
    if (!passes_filter(c, shape, s, n_tok, name)) return RQ_OK;
    print_start(c, shape, s, n_tok, name);
    if (c->o.dry_run) {
        double bytes = (double)model_bytes(s, n_tok);
        printf(" %10.3f %12.1f\n", bytes * 1e-6, bytes / c->machine.read_gbs * 1e-3);
        return RQ_OK;
    }
    double worst;
    rq_status status = check(&r, &worst);
    if (status == RQ_ERR_NUMERIC) {
        printf("  CHECK FAILED: %s\n", rq_last_error());
        ++c->n_failed;
        return RQ_OK;
    }
    if (status != RQ_OK) return status;
    bench_times cold, warm;
    r.rotate = true;
    bench_time(&cold, run_once, &r, c->o.seconds, 10);
    r.rotate = false;
    bench_time(&warm, run_once, &r, c->o.seconds / 4, 10);
    double gbs = (double)model_bytes(s, n_tok) / cold.med_us * 1e-3;
    if (!k) c->sgemv_us = cold.med_us;
    printf(" %9.1f %9.1f %9.1f %9.1f %7.2f %6.1f %8.2f ", cold.med_us, cold.p20_us, cold.p80_us, warm.med_us, gbs,
           100 * gbs / c->machine.read_gbs, (double)(s->n_out * s->n_in) / cold.med_us * 1e-3);
    if (c->sgemv_us > 0)
        printf("%8.2f", c->sgemv_us / cold.med_us);
    else
        printf("%8s", "-");
    json_t *record = describe(c, shape, s, n_tok, name);
    json_object_set_new(record, "t_cold_med_us", json_real(cold.med_us));
    json_object_set_new(record, "t_cold_p20_us", json_real(cold.p20_us));
    json_object_set_new(record, "t_cold_p80_us", json_real(cold.p80_us));
    json_object_set_new(record, "cold_samples", json_integer(cold.n));
    json_object_set_new(record, "t_warm_med_us", json_real(warm.med_us));
    json_object_set_new(record, "gbs_cold", json_real(gbs));
    json_object_set_new(record, "pct_read_gbs", json_real(100 * gbs / c->machine.read_gbs));
    json_object_set_new(record, "sgemv_us", c->sgemv_us > 0 ? json_real(c->sgemv_us) : json_null());
    json_object_set_new(record, "error_of_bound", json_real(worst));
    if (c->old) compare_old(c, record, cold.med_us);
    printf("\n");
    fflush(stdout);
    json_array_append_new(c->records, record);
    return RQ_OK;
}

/* ---- sweeps ----------------------------------------------------------------------------------------------------------- */

static rq_status lines_of_subject(context *c, int shape, bench_subject *s, const float *x, float *y, int64_t n_tok,
                                  bool sgemv) {
    rq_status status = RQ_OK;
    if (!c->o.dry_run) RQ_TRY(bench_make_copies(s, &c->machine));
    if (sgemv) RQ_TRY(line(c, shape, s, NULL, x, y, n_tok));
    for (int64_t i = 0; i < rq_kernel_count() && !sgemv; ++i) {
        const rq_kernel *k = rq_kernel_at(i);
        if (!k->gemv || strcmp(k->operand, s->operand)) continue;
        /* Without --impl: the row that rq_linear_apply would take. */
        if (c->o.impl ? strcmp(c->o.impl, "all") && strcmp(c->o.impl, k->impl)
                      : k != rq_kernel_pick("gemv", s->operand)) {
            continue;
        }
        const char *why;
        if (rq_kernel_usable(k, &why))
            RQ_TRY(line(c, shape, s, k, x, y, n_tok));
        else
            printf("%s %s %s: skipped, %s\n", k->op, k->operand, k->impl, why);
    }
done:
    bench_drop_subject(s);
    return status;
}

static bool wanted(const gemv_options *o, const char *operand) {
    size_t n = strlen(o->format);
    if (!strcmp(o->format, "all") || !strcmp(o->format, operand)) return true;
    return !strncmp(o->format, operand, n) && !strcmp(operand + n, "_rows"); /* f16 for f16_rows */
}

static rq_status sweep_shape(context *c, int shape, int64_t n_tok) {
    static const char *const dense[] = {"f32_rows", "f16_rows", "bf16_rows", "q8_0_rows"};
    rq_status status = RQ_OK;
    int64_t n_out = c->o.shapes.at[shape].shape.n_out, n_in = c->o.shapes.at[shape].shape.n_in;
    float *x = NULL, *y = NULL;
    RQ_TRY(RQ_NEW(x, n_tok * n_in));
    RQ_TRY(RQ_NEW(y, n_tok * n_out));
    for (int64_t i = 0; i < n_tok * n_in; ++i) x[i] = bench_noise();
    c->sgemv_us = 0;
    if (c->o.sgemv) {
        bench_subject s = {.n_out = n_out, .n_in = n_in};
        bench_make_dense(&s, "f32_rows");
        RQ_TRY(lines_of_subject(c, shape, &s, x, y, n_tok, true));
    }
    for (int b = 0; b < c->o.n_bits && wanted(&c->o, "grid"); ++b) {
        bench_subject s = {.n_out = n_out, .n_in = n_in};
        RQ_TRY(bench_make_grid(&s, (int)c->o.bits[b], c->o.group < 0 ? 128 : c->o.group, c->o.sym, c->o.f32_scales));
        RQ_TRY(lines_of_subject(c, shape, &s, x, y, n_tok, false));
    }
    for (int b = 0; b < c->o.n_bits && wanted(&c->o, "ssvq"); ++b) {
        bench_subject s = {.n_out = n_out, .n_in = n_in};
        if (c->o.bits[b] > 3) continue; /* vectors of 8 are 2 bits a weight, of 4 are 3 */
        RQ_TRY(bench_make_ssvq(&s, c->o.bits[b] == 2 ? 8 : 4, c->o.group < 0 ? 0 : c->o.group, (int)c->o.n_outlier,
                               c->o.f16_magnitudes));
        RQ_TRY(lines_of_subject(c, shape, &s, x, y, n_tok, false));
    }
    for (int b = 0; b < c->o.books.n && wanted(&c->o, "vq"); ++b) {
        bench_subject s = {.n_out = n_out, .n_in = n_in};
        RQ_TRY(bench_make_vq(&s, &c->o.books.at[b], c->o.group < 0 ? 0 : c->o.group, (int)c->o.n_outlier));
        RQ_TRY(lines_of_subject(c, shape, &s, x, y, n_tok, false));
    }
    for (int d = 0; d < 4; ++d) {
        if (!wanted(&c->o, dense[d]) || (d == 3 && n_in % 32)) continue;
        bench_subject s = {.n_out = n_out, .n_in = n_in};
        bench_make_dense(&s, dense[d]);
        RQ_TRY(lines_of_subject(c, shape, &s, x, y, n_tok, false));
    }
done:
    free(x);
    free(y);
    return status;
}

static int n_layer_of(const bench_shapes *s, const char *model) {
    for (int i = 0; i < s->n; ++i) {
        if (!strcmp(s->at[i].model, model)) return s->at[i].n_layer;
    }
    return 0;
}

/* Cold times of one block added up and multiplied by the number of blocks: all linear layers of a step. */
static void print_models(const context *c) {
    static const char *const same[] = {"model", "format", "bits", "group", "n_tok", "kernel"};
    size_t n = json_array_size(c->records);
    for (size_t i = 0; i < n; ++i) {
        const json_t *r = json_array_get(c->records, i);
        const char *model = json_string_value(json_object_get(r, "model"));
        if (strcmp(json_string_value(json_object_get(r, "layer")), "qkv")) continue;
        double us = 0;
        for (size_t j = i; j < n; ++j) {
            int equal = 0;
            for (int k = 0; k < 6; ++k) {
                equal +=
                    json_equal(json_object_get(r, same[k]), json_object_get(json_array_get(c->records, j), same[k]));
            }
            if (equal == 6) us += json_real_value(json_object_get(json_array_get(c->records, j), "t_cold_med_us"));
        }
        int n_layer = n_layer_of(&c->o.shapes, model);
        if (!n_layer) continue;
        printf("%-16s %-12s %lld bits, %lld tokens, %s: linear layers of a step %.2f ms\n", model,
               json_string_value(json_object_get(r, "format")),
               (long long)json_integer_value(json_object_get(r, "bits")),
               (long long)json_integer_value(json_object_get(r, "n_tok")),
               json_string_value(json_object_get(r, "kernel")), us * 1e-3 * n_layer);
    }
}

/* ---- all of it ------------------------------------------------------------------------------------------------------- */

static rq_status prepare(context *c) {
    rq_status status = RQ_OK;
    rq_set_threads(c->o.threads);
    bench_set_clock(c->o.cpu_clock ? BENCH_CPU : BENCH_WALL);
    RQ_TRY(rq_kernels_check());
    bench_machine_look(&c->machine);
    RQ_TRY(bench_measure_read(&c->machine));
    if (c->o.sgemv) {
        RQ_TRY(rq_backend_init());
        void *lib = dlopen("libopenblas.so.0", RTLD_NOW), *address = lib ? dlsym(lib, "cblas_sgemv") : NULL;
        if (!address) RQ_FAIL(RQ_ERR_DEVICE, "libopenblas.so.0 has no cblas_sgemv");
        memcpy(&cblas_sgemv, &address, sizeof address);
    }
    c->records = json_array();
    if (c->o.baseline_path) {
        json_error_t error;
        c->old = json_load_file(c->o.baseline_path, 0, &error);
        if (!json_is_array(c->old)) RQ_FAIL(RQ_ERR_INPUT, "%s: not a record file: %s", c->o.baseline_path, error.text);
    }
    printf("cpu %s, %d cores, %d threads, last-level cache %lld MiB, load %.2f\n", c->machine.cpu, c->machine.n_cores,
           c->machine.n_threads, (long long)(c->machine.llc_bytes >> 20), c->machine.load_before);
    printf("read bandwidth %.1f GB/s with %d threads%s%s\n", c->machine.read_gbs, c->machine.n_threads,
           c->o.sgemv ? ", sgemv of " : "", c->o.sgemv ? rq_backend_name() : "");
done:
    return status;
}

int main(int argc, char **argv) {
    static context c;
    int code = bench_hand_over("bench_gemv", argv);
    if (code) return code;
    code = gemv_parse(&c.o, argc, argv);
    if (code) return code - 1;
    rq_status status = RQ_OK;
    RQ_TRY(prepare(&c));
    print_head(&c);
    for (int s = 0; s < c.o.shapes.n; ++s) {
        for (int t = 0; t < c.o.n_tokens; ++t) RQ_TRY(sweep_shape(&c, s, c.o.tokens[t]));
    }
    print_models(&c);
    if (c.o.json_path && !c.o.dry_run) RQ_TRY(bench_write_json(c.o.json_path, c.records));
    if (c.o.csv_path && !c.o.dry_run) RQ_TRY(bench_write_csv(c.o.csv_path, c.records));
done:
    if (status != RQ_OK) fprintf(stderr, "bench_gemv: %s\n", rq_last_error());
    if (c.n_failed) fprintf(stderr, "bench_gemv: %d rows failed their check and were not timed\n", c.n_failed);
    if (c.n_new) fprintf(stderr, "bench_gemv: %d rows are not in the earlier run\n", c.n_new);
    /* A comparison that compared nothing must not pass. */
    bool vain = c.o.fail_if_slower >= 0 && !c.o.dry_run && !c.n_compared;
    if (vain) fprintf(stderr, "bench_gemv: nothing was compared\n");
    if (c.n_slower) fprintf(stderr, "bench_gemv: %d rows are slower than before\n", c.n_slower);
    json_decref(c.records);
    json_decref(c.old);
    return status == RQ_ERR_NOMEM                                ? 3
           : status == RQ_ERR_INPUT                              ? 4
           : status != RQ_OK || c.n_failed || c.n_slower || vain ? 1
                                                                 : 0;
}
