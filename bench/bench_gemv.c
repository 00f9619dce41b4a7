/* SPDX-License-Identifier: Apache-2.0 */
/* y = W x for a few tokens: every gemv row of kernels.def over the layers of real models.
 *
 * A row is timed only after its output met the definition (fp64 sums over unpacked rows) and a second run gave the same
 * bytes; a failed check is exit code 1. Cold: the weights rotate through copies of more than four last-level caches, as
 * they do when a whole model is run. Warm: one copy again and again; of interest only where a model fits the cache. The
 * ceiling is the read bandwidth measured in the same run. docs/bench.md explains the columns. */
#include <dlfcn.h>
#include <getopt.h>
#include <math.h>

#include "backend.h"
#include "harness_operand.h"
#include "shapes.h"

enum { MAX_SHAPES = 64, CHECK_ROWS = 48 };

typedef struct options {
    const char *format, *impl, *json_path, *csv_path, *baseline_path;
    int64_t bits[4], tokens[16], group;
    int n_bits, n_tokens, threads;
    bool sym, f32_scales, sgemv, dry_run, cpu_clock;
    double seconds, fail_if_slower; /* fraction; negative: off */
    struct {
        const char *preset;
        bench_shape shape;
    } shape[MAX_SHAPES];
    int n_shapes;
    char flags[512];
} options;

/* ---- running ---------------------------------------------------------------------------------------------------------- */

/* OpenBLAS's own sgemv on fp32 weights, called by rows like the kernels; the library is loaded already. */
static void (*cblas_sgemv)(int order, int trans, int m, int n, float alpha, const float *a, int lda, const float *x,
                           int inc_x, float beta, float *y, int inc_y);

typedef struct run {
    const bench_subject *s;
    const rq_kernel *kernel; /* NULL: sgemv */
    float *y;
    const float *x;
    int64_t n_tok;
    bool rotate;
    rq_grid grid; /* the copy in use */
    rq_dense dense;
} run;

static void rows_body(void *arg, int64_t item) {
    const run *r = arg;
    int64_t step = rq_gemv_item_rows(r->s->n_out), row0 = item * step, n = rq_min_i64(step, r->s->n_out - row0);
    if (!r->kernel) {
        const float *w = (const float *)r->dense.data + row0 * r->s->n_in;
        for (int64_t t = 0; t < r->n_tok; ++t) {
            cblas_sgemv(101, 111, (int)n, (int)r->s->n_in, 1.0f, w, (int)r->s->n_in, r->x + t * r->s->n_in, 1, 0.0f,
                        r->y + t * r->s->n_out + row0, 1);
        }
    } else {
        const void *w = strcmp(r->s->operand, "grid") ? (const void *)&r->dense : (const void *)&r->grid;
        r->kernel->gemv(r->y, w, r->x, r->n_tok, row0, n);
    }
}

static void run_once(void *arg, int64_t i) {
    run *r = arg;
    const unsigned char *data = r->s->copies + (r->rotate ? i % r->s->n_copies : 0) * r->s->copy_bytes;
    r->grid = r->s->packed.u.grid;
    r->grid.words = (const uint32_t *)data;
    r->dense = r->s->dense;
    r->dense.data = data;
    rq_parallel_for(rq_ceil_div(r->s->n_out, rq_gemv_item_rows(r->s->n_out)), rows_body, r);
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
    options o;
    bench_machine machine;
    json_t *records, *old;
    int n_failed, n_slower;
    double sgemv_us; /* of this shape and token count, 0: not measured */
} context;

static const char *const identity[] = {"device", "n_out", "n_in",   "format", "bits",    "group",
                                       "sym",    "n_tok", "kernel", "cpu",    "threads", "clock"};

static void print_head(const context *c) {
    printf("%-13s %-8s %6s %6s  %-10s %4s %5s %3s %-7s %7s", "model", "layer", "n_out", "n_in", "format", "bits",
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

static json_t *describe(const context *c, int shape, const bench_subject *s, int64_t n_tok, const char *kernel) {
    bool grid = !strcmp(s->operand, "grid");
    json_t *r = json_object();
    bench_record_machine(r, &c->machine, c->o.flags);
    json_object_set_new(r, "device", json_string("cpu"));
    json_object_set_new(r, "model", json_string(c->o.shape[shape].preset));
    json_object_set_new(r, "layer", json_string(c->o.shape[shape].shape.layer));
    json_object_set_new(r, "n_out", json_integer(s->n_out));
    json_object_set_new(r, "n_in", json_integer(s->n_in));
    json_object_set_new(r, "format", json_string(s->operand));
    json_object_set_new(r, "bits", json_integer(s->bits));
    json_object_set_new(r, "group", grid ? json_integer(s->packed.u.grid.group) : json_null());
    json_object_set_new(r, "sym", grid ? json_boolean(c->o.sym) : json_null());
    json_object_set_new(r, "n_tok", json_integer(n_tok));
    json_object_set_new(r, "kernel", json_string(kernel));
    json_object_set_new(r, "bpw", json_real((double)s->size_bits / (double)(s->n_out * s->n_in)));
    json_object_set_new(r, "bytes", json_integer(model_bytes(s, n_tok)));
    json_object_set_new(r, "flops", json_integer(2 * s->n_out * s->n_in * n_tok));
    return r;
}

static void print_start(const context *c, int shape, const bench_subject *s, int64_t n_tok, const char *kernel) {
    bool grid = !strcmp(s->operand, "grid");
    char group[16] = "-";
    if (grid) snprintf(group, sizeof group, "%lld", (long long)s->packed.u.grid.group);
    printf("%-13s %-8s %6lld %6lld  %-10s %4d %5s %3lld %-7s %7.3f", c->o.shape[shape].preset,
           c->o.shape[shape].shape.layer, (long long)s->n_out, (long long)s->n_in, s->operand, s->bits, group,
           (long long)n_tok, kernel, (double)s->size_bits / (double)(s->n_out * s->n_in));
}

static void compare_old(context *c, const json_t *record, double cold_us) {
    const json_t *was = bench_find(c->old, record, identity, (int)(sizeof identity / sizeof *identity));
    double old_us = json_number_value(json_object_get(was, "t_cold_med_us"));
    if (old_us <= 0) {
        printf("      -");
        return;
    }
    bool slower = c->o.fail_if_slower >= 0 && cold_us > old_us * (1 + c->o.fail_if_slower);
    printf(" %6.2f%s", old_us / cold_us, slower ? " SLOWER" : "");
    c->n_slower += slower;
}

static rq_status line(context *c, int shape, const bench_subject *s, const rq_kernel *k, const float *x, float *y,
                      int64_t n_tok) {
    const char *name = k ? k->impl : "sgemv";
    run r = {.s = s, .kernel = k, .y = y, .x = x, .n_tok = n_tok};
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

static bool wanted(const options *o, const char *operand) {
    size_t n = strlen(o->format);
    if (!strcmp(o->format, "all") || !strcmp(o->format, operand)) return true;
    return !strncmp(o->format, operand, n) && !strcmp(operand + n, "_rows"); /* f16 for f16_rows */
}

static rq_status sweep_shape(context *c, int shape, int64_t n_tok) {
    static const char *const dense[] = {"f32_rows", "f16_rows", "bf16_rows", "q8_0_rows"};
    rq_status status = RQ_OK;
    int64_t n_out = c->o.shape[shape].shape.n_out, n_in = c->o.shape[shape].shape.n_in;
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
        RQ_TRY(bench_make_grid(&s, (int)c->o.bits[b], c->o.group, c->o.sym, c->o.f32_scales));
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
        for (int p = 0; p < BENCH_N_PRESETS; ++p) {
            if (strcmp(bench_presets[p].name, model)) continue;
            double ms = us * 1e-3 * bench_presets[p].n_layer;
            printf("%-13s %-10s %lld bits, %lld tokens, %s: linear layers of a step %.2f ms\n", model,
                   json_string_value(json_object_get(r, "format")),
                   (long long)json_integer_value(json_object_get(r, "bits")),
                   (long long)json_integer_value(json_object_get(r, "n_tok")),
                   json_string_value(json_object_get(r, "kernel")), ms);
        }
    }
}

/* ---- the command line ------------------------------------------------------------------------------------------------- */

static void usage(FILE *f) {
    fputs("bench_gemv: y = W x for 1 .. 16 tokens, checked, then timed\n"
          "  --format NAME|all       grid (default), f32, f16, bf16, q8_0, or all\n"
          "  --bits 2,3,4,8          of grid (default all four)\n"
          "  --group N               columns that share a scale (default 128; 0: a whole row)\n"
          "  --sym                   no zero points (default: with them)\n"
          "  --scales f16|f32        default f16\n"
          "  --shapes LIST           presets and NxK, comma-separated (default smollm2-135m); see --list\n"
          "  --tokens 1,2,4,8,16     default 1\n"
          "  --impl NAME|all         c, avx2, avx512 or all (default: the one that is picked here)\n"
          "  --threads N             default: one per core\n"
          "  --clock wall|cpu        cpu: time given to this process, for --threads 1 on a machine that others use\n"
          "  --device cpu            cuda is refused where the build has no CUDA kernels\n"
          "  --baseline sgemv|FILE   time OpenBLAS's fp32 sgemv too, or compare with the --json of an earlier run\n"
          "  --fail-if-slower P%     exit code 1 when a row is slower than in that run by more than P percent\n"
          "  --seconds S             sampling per row (default 0.4)\n"
          "  --json FILE, --csv FILE a record per row\n"
          "  --dry-run               bytes and the time they take at the measured read bandwidth; nothing is run\n"
          "  --list                  kernels, and whether this machine runs them; shapes\n",
          f);
}

static int list(void) {
    printf("kernels:\n");
    for (int64_t i = 0; i < rq_kernel_count(); ++i) {
        const rq_kernel *k = rq_kernel_at(i);
        const char *why;
        bool usable = rq_kernel_usable(k, &why), picked = rq_kernel_pick(k->op, k->operand) == k;
        printf("  %-7s %-10s %-7s %s\n", k->op, k->operand, k->impl, !usable ? why : picked ? "picked" : "usable");
    }
    printf("shapes:\n");
    for (int p = 0; p < BENCH_N_PRESETS; ++p) {
        printf("  %-13s %d blocks:", bench_presets[p].name, bench_presets[p].n_layer);
        for (int s = 0; s < 4; ++s) {
            const bench_shape *b = &bench_presets[p].shape[s];
            printf(" %s %lldx%lld", b->layer, (long long)b->n_out, (long long)b->n_in);
        }
        printf("\n");
    }
    return 0;
}

static bool add_shapes(options *o, const char *text) {
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, ",");
        int before = o->n_shapes;
        for (int k = 0; k < BENCH_N_PRESETS; ++k) {
            if (strlen(bench_presets[k].name) != n || strncmp(bench_presets[k].name, p, n)) continue;
            for (int s = 0; s < 4 && o->n_shapes < MAX_SHAPES; ++s) {
                o->shape[o->n_shapes].preset = bench_presets[k].name;
                o->shape[o->n_shapes++].shape = bench_presets[k].shape[s];
            }
        }
        long long n_out, n_in;
        int used = 0;
        if (o->n_shapes == before) {
            if (sscanf(p, "%lldx%lld%n", &n_out, &n_in, &used) != 2 || used != (int)n || n_out < 1 || n_in < 1 ||
                n_out > 1 << 24 || n_in > 1 << 24 || o->n_shapes == MAX_SHAPES) {
                fprintf(stderr, "bench_gemv: no shape \"%.*s\" (--list shows the presets)\n", (int)n, p);
                return false;
            }
            o->shape[o->n_shapes].preset = "-";
            o->shape[o->n_shapes++].shape = (bench_shape){"-", n_out, n_in};
        }
        p += n;
        if (*p == ',') ++p;
    }
    return o->n_shapes > 0;
}

static bool known_format(const char *name) {
    static const char *const names[] = {"all", "grid", "f32", "f16", "bf16", "q8_0"};
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i) {
        if (!strcmp(name, names[i])) return true;
    }
    fprintf(stderr, "bench_gemv: no format \"%s\": grid, f32, f16, bf16, q8_0 or all\n", name);
    return false;
}

static bool known_impl(const char *name) {
    bool found = !strcmp(name, "all");
    for (int64_t i = 0; i < rq_kernel_count(); ++i) found |= !strcmp(rq_kernel_at(i)->impl, name);
    if (!found) fprintf(stderr, "bench_gemv: no kernel is called \"%s\" (--list)\n", name);
    return found;
}

static bool known_bits(options *o, const char *text) {
    o->n_bits = bench_parse_ints(text, 2, 8, o->bits, 4);
    for (int i = 0; i < o->n_bits; ++i) {
        if (o->bits[i] > 4 && o->bits[i] < 8) o->n_bits = -1;
    }
    return o->n_bits > 0;
}

enum {
    O_FORMAT = 1,
    O_BITS,
    O_GROUP,
    O_SYM,
    O_SCALES,
    O_SHAPES,
    O_TOKENS,
    O_IMPL,
    O_THREADS,
    O_CLOCK,
    O_DEVICE,
    O_BASELINE,
    O_SLOWER,
    O_SECONDS,
    O_JSON,
    O_CSV,
    O_DRY,
    O_LIST
};

static const struct option long_options[] = {{"format", 1, NULL, O_FORMAT},
                                             {"bits", 1, NULL, O_BITS},
                                             {"group", 1, NULL, O_GROUP},
                                             {"sym", 0, NULL, O_SYM},
                                             {"scales", 1, NULL, O_SCALES},
                                             {"shapes", 1, NULL, O_SHAPES},
                                             {"tokens", 1, NULL, O_TOKENS},
                                             {"impl", 1, NULL, O_IMPL},
                                             {"threads", 1, NULL, O_THREADS},
                                             {"clock", 1, NULL, O_CLOCK},
                                             {"device", 1, NULL, O_DEVICE},
                                             {"baseline", 1, NULL, O_BASELINE},
                                             {"fail-if-slower", 1, NULL, O_SLOWER},
                                             {"seconds", 1, NULL, O_SECONDS},
                                             {"json", 1, NULL, O_JSON},
                                             {"csv", 1, NULL, O_CSV},
                                             {"dry-run", 0, NULL, O_DRY},
                                             {"list", 0, NULL, O_LIST},
                                             {"help", 0, NULL, 'h'},
                                             {NULL, 0, NULL, 0}};

/* 0: go on; otherwise the exit code + 1. */
static int take_option(options *o, int id, const char *arg) {
    int64_t v = 0;
    char *end = NULL;
    bool ok = true;
    switch (id) {
    case 'h': usage(stdout); return 1;
    case O_LIST: list(); return 1;
    case O_FORMAT: o->format = arg, ok = known_format(arg); break;
    case O_BITS: ok = known_bits(o, arg); break;
    case O_GROUP: ok = bench_parse_ints(arg, 0, 1 << 24, &o->group, 1) == 1; break;
    case O_SYM: o->sym = true; break;
    case O_SCALES: o->f32_scales = !strcmp(arg, "f32"), ok = o->f32_scales || !strcmp(arg, "f16"); break;
    case O_SHAPES: ok = add_shapes(o, arg); break;
    case O_TOKENS: ok = (o->n_tokens = bench_parse_ints(arg, 1, RQ_GEMV_MAX_TOK, o->tokens, 16)) > 0; break;
    case O_IMPL: o->impl = arg, ok = known_impl(arg); break;
    case O_THREADS: ok = bench_parse_ints(arg, 1, 1024, &v, 1) == 1, o->threads = (int)v; break;
    case O_CLOCK: o->cpu_clock = !strcmp(arg, "cpu"), ok = o->cpu_clock || !strcmp(arg, "wall"); break;
    case O_DEVICE:
        if (strcmp(arg, "cpu")) {
            fprintf(stderr, "bench_gemv: --device %s: this build has CPU kernels only\n", arg);
            return 3;
        }
        break;
    case O_BASELINE:
        if (!strcmp(arg, "sgemv")) {
            o->sgemv = true;
        } else if (!strcmp(arg, "cublas")) {
            fprintf(stderr, "bench_gemv: --baseline cublas needs --device cuda; this build has CPU kernels only\n");
            return 3;
        } else {
            o->baseline_path = arg;
        }
        break;
    case O_SLOWER: o->fail_if_slower = strtod(arg, &end) / 100, ok = end != arg && (!*end || !strcmp(end, "%")); break;
    case O_SECONDS: o->seconds = strtod(arg, &end), ok = end != arg && !*end && o->seconds > 0; break;
    case O_JSON: o->json_path = arg; break;
    case O_CSV: o->csv_path = arg; break;
    case O_DRY: o->dry_run = true; break;
    default: usage(stderr); return 3;
    }
    if (ok) return 0;
    fprintf(stderr, "bench_gemv: \"%s\" does not do here; see --help\n", arg);
    return 3;
}

static int parse(options *o, int argc, char **argv) {
    *o = (options){.format = "grid",
                   .bits = {2, 3, 4, 8},
                   .n_bits = 4,
                   .tokens = {1},
                   .n_tokens = 1,
                   .group = 128,
                   .seconds = 0.4,
                   .fail_if_slower = -1};
    bench_join_flags(o->flags, sizeof o->flags, argc, argv);
    int id, code;
    while ((id = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
        if ((code = take_option(o, id, optarg)) != 0) return code;
    }
    if (optind < argc) {
        fprintf(stderr, "bench_gemv: \"%s\" is no option; see --help\n", argv[optind]);
        return 3;
    }
    if (o->fail_if_slower >= 0 && !o->baseline_path) {
        fprintf(stderr, "bench_gemv: --fail-if-slower needs --baseline FILE\n");
        return 3;
    }
    if (o->cpu_clock && o->threads != 1) {
        fprintf(stderr, "bench_gemv: --clock cpu adds up the time of all threads: it needs --threads 1\n");
        return 3;
    }
    if (!o->n_shapes && !add_shapes(o, "smollm2-135m")) return 3;
    return 0;
}

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
    int code = parse(&c.o, argc, argv);
    if (code) return code - 1;
    rq_status status = RQ_OK;
    RQ_TRY(prepare(&c));
    print_head(&c);
    for (int s = 0; s < c.o.n_shapes; ++s) {
        for (int t = 0; t < c.o.n_tokens; ++t) RQ_TRY(sweep_shape(&c, s, c.o.tokens[t]));
    }
    print_models(&c);
    if (c.o.json_path && !c.o.dry_run) RQ_TRY(bench_write_json(c.o.json_path, c.records));
    if (c.o.csv_path && !c.o.dry_run) RQ_TRY(bench_write_csv(c.o.csv_path, c.records));
done:
    if (status != RQ_OK) fprintf(stderr, "bench_gemv: %s\n", rq_last_error());
    if (c.n_failed) fprintf(stderr, "bench_gemv: %d rows failed their check and were not timed\n", c.n_failed);
    if (c.n_slower) fprintf(stderr, "bench_gemv: %d rows are slower than before\n", c.n_slower);
    json_decref(c.records);
    json_decref(c.old);
    return status == RQ_ERR_NOMEM                        ? 3
           : status == RQ_ERR_INPUT                      ? 4
           : status != RQ_OK || c.n_failed || c.n_slower ? 1
                                                         : 0;
}
