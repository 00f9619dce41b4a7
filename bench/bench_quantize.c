/* SPDX-License-Identifier: Apache-2.0 */
/* bench_quantize: seconds per stage of quantizing one matrix, with the machine's sgemm rate measured in the same run.
 *
 * Stages: gram (H and, when the compensator wants it, D from `tokens` activations, both streams given), prepare (factor of H and
 * the terms), quantize (sweep and refinement), pack. "after_gram" is their sum without the first: what the published layer
 * classes do once their Hessian is there. Activations are Gaussian with a scale of 0.5 to 1.5 per column. */
#include <getopt.h>
#include <math.h>

#include "backend.h"
#include "harness.h"
#include "quantize_ops.h"
#include "random.h"
#include "shapes.h"

enum { MAX_COMPS = RQ_N_COMPS, MAX_SETTINGS = 64 };

typedef struct options {
    bench_shapes shapes;
    rq_comp comp[MAX_COMPS];
    int n_comps;
    const char *preset, *json, *csv, *rates;
    const char *set[MAX_SETTINGS]; /* key=value */
    int n_set, repeat;
    int64_t tokens;
    bool dry_run;
    const char *device_name; /* NULL: the CPU */
} options;

typedef struct stages {
    double gram, prepare, quantize, pack;
    double stage[TIMED_STAGES]; /* of the same, what each operation of device.h took */
} stages;

static void help(void) {
    printf("usage: bench_quantize [options]\n\nSeconds per stage of quantizing one matrix.\n\n"
           "  --comp A,B        compensators: ");
    for (int i = 0; i < RQ_N_COMPS; ++i) printf("%s%s", i ? " " : "", rq_comp_get((rq_comp)i)->name);
    printf(" (all)\n  --round NAME      grid\n"
           "  --shapes LIST     OUTxIN or a model, comma-separated: ");
    for (int i = 0; i < BENCH_N_PRESETS; ++i) printf("%s%s", i ? " " : "", bench_presets[i].name);
    printf(" (576x1536)\n  --preset NAME     best (default) or reference\n  --set KEY=VALUE   any quantization option, "
           "e.g. bits=4; may be repeated\n"
           "  --tokens N        activations in the Gram matrices (4096)\n  --repeat N        best of N (3)\n"
           "  --device NAME     cpu; cuda: bench_quantize_cuda, a program of its own; sim: the work that a GPU would "
           "be given, without one\n"
           "  --threads N       worker threads (every core)\n  --json FILE, --csv FILE\n"
           "  --rates FILE      the rates for `requite quantize --dry-run --devices NxCPU --rates FILE`\n  --dry-run   "
           "      sizes and "
           "work, without running\n");
}

static bool add_comps(options *o, const char *text) {
    char copy[256], *save = NULL;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *item = strtok_r(copy, ",", &save); item; item = strtok_r(NULL, ",", &save)) {
        if (o->n_comps == MAX_COMPS || !rq_comp_by_name(item, &o->comp[o->n_comps])) return false;
        ++o->n_comps;
    }
    return o->n_comps > 0;
}

/* Two-by-two normal numbers from the counter generator. */
static void fill_normal(float *x, int64_t n, uint64_t seed, double scale) {
    for (int64_t i = 0; i < n; i += 2) {
        double a = rq_random_unit(seed, (uint64_t)i) + 1e-300, b = rq_random_unit(seed, (uint64_t)i + 1);
        double r = scale * sqrt(-2 * log(a));
        x[i] = (float)(r * cos(6.283185307179586 * b));
        if (i + 1 < n) x[i + 1] = (float)(r * sin(6.283185307179586 * b));
    }
}

static double sgemm_gflops(int64_t n) {
    float *a, *b, *c;
    double best = 0;
    if (RQ_NEW(a, n * n) != RQ_OK || RQ_NEW(b, n * n) != RQ_OK || RQ_NEW(c, n * n) != RQ_OK) return 0;
    fill_normal(a, n * n, 1, 1);
    fill_normal(b, n * n, 2, 1);
    for (int i = 0; i < 4; ++i) {
        double started = rq_seconds();
        rq_sgemm(RQ_N, RQ_N, n, n, n, 1, a, n, b, n, 0, c, n);
        double rate = 2e-9 * (double)n * (double)n * (double)n / (rq_seconds() - started);
        best = rate > best ? rate : best;
    }
    free(a);
    free(b);
    free(c);
    return best;
}

typedef struct inputs {
    float *w, *x, *dx;
    double *h, *d;
} inputs;

static rq_status inputs_new(inputs *in, int64_t n_out, int64_t n_in, int64_t tokens) {
    rq_status status = RQ_OK;
    *in = (inputs){0};
    RQ_TRY(RQ_NEW(in->w, n_out * n_in));
    RQ_TRY(RQ_NEW(in->x, tokens * n_in));
    RQ_TRY(RQ_NEW(in->dx, tokens * n_in));
    RQ_TRY(RQ_NEW(in->h, n_in * n_in));
    RQ_TRY(RQ_NEW(in->d, n_in * n_in));
    fill_normal(in->w, n_out * n_in, 3, 0.02);
    fill_normal(in->x, tokens * n_in, 4, 1);
    fill_normal(in->dx, tokens * n_in, 5, 0.05);
    for (int64_t i = 0; i < tokens * n_in; ++i) in->x[i] *= (float)(0.5 + rq_random_unit(6, (uint64_t)(i % n_in)));
done:
    return status;
}

static void inputs_free(inputs *in) {
    free(in->w);
    free(in->x);
    free(in->dx);
    free(in->h);
    free(in->d);
}

static rq_status one_run(stages *t, inputs *in, int64_t n_out, int64_t n_in, int64_t tokens, const rq_quant_opt *o) {
    rq_status status = RQ_OK;
    rq_prep prep = {0};
    rq_quant_result r = {0};
    rq_packed_file file = {0};
    char *entry = NULL;
    bool cross = rq_comp_get(o->comp)->uses_cross;
    double t0 = rq_seconds(), t1;
    const rq_device device = timed_device(NULL, NULL);
    double *d = cross ? in->d : NULL;
    RQ_TRY(device.ops->gram_start(device.own, in->h, d, n_in));
    RQ_TRY(device.ops->gram_add(device.own, in->h, d, in->x, in->dx, tokens, n_in));
    RQ_TRY(device.ops->gram_finish(device.own, in->h, d, n_in));
    t1 = rq_seconds();
    t->gram = t1 - t0;
    timed_begin();
    RQ_TRY(rq_prepare_on(&prep, &device, in->h, d, n_in, o, "bench"));
    t0 = rq_seconds();
    t->prepare = t0 - t1;
    RQ_TRY(rq_quantize_matrix(&r, in->w, n_out, &prep, o, "bench"));
    t1 = rq_seconds();
    t->quantize = t1 - t0;
    RQ_TRY(rq_result_pack_file(&file, &entry, "bench", &r));
    t->pack = rq_seconds() - t1;
    memcpy(t->stage, timed_seconds, sizeof t->stage);
    t->stage[TIMED_GRAM] = t->gram;
done:
    free(entry);
    rq_packed_file_free(&file);
    rq_quant_result_free(&r);
    rq_prep_free(&prep);
    return status;
}

/* --rates: operations as device_plan.c counts them, over seconds, of the largest matrix that was measured. */
typedef struct rates {
    double work[TIMED_STAGES], seconds[TIMED_STAGES], entries, host;
} rates;
static rates rate;

static rq_status keep_rates(const stages *t, int64_t n_out, int64_t n_in, int64_t tokens, const rq_quant_opt *q) {
    rq_device_work w;
    const rq_status status = rq_device_plan(&w, n_out, n_in, tokens, q);
    if (status != RQ_OK) return status;
    double host = t->prepare + t->quantize, entries = (double)n_in * (double)(n_in + n_out);
    for (int i = 0; i < TIMED_STAGES; ++i) {
        const double work = timed_work(&w, i)->flops + timed_work(&w, i)->own_flops;
        if (i != TIMED_GRAM) host -= t->stage[i];
        if (work <= rate.work[i]) continue;
        rate.work[i] = work;
        rate.seconds[i] = t->stage[i];
    }
    if (entries <= rate.entries) return RQ_OK;
    rate.entries = entries;
    rate.host = host;
    return RQ_OK;
}

static rq_status write_rates(const char *path, const bench_machine *machine, double gflops, const char *flags) {
    json_t *j = json_pack("{s:s, s:b, s:f}", "device", "cpu", "measured", 1, "fp32", 1e9 * gflops);
    for (int i = 0; i < TIMED_STAGES; ++i) {
        if (rate.seconds[i] > 0) json_object_set_new(j, timed_names[i], json_real(rate.work[i] / rate.seconds[i]));
    }
    if (rate.host > 0) json_object_set_new(j, "host", json_real(rate.entries / rate.host));
    bench_record_machine(j, machine, flags);
    const int failed = json_dump_file(j, path, JSON_INDENT(1));
    json_decref(j);
    return failed ? rq_fail(RQ_ERR_IO, "cannot write %s", path) : RQ_OK;
}

static double after_gram(const stages *t) { return t->prepare + t->quantize + t->pack; }

/* --device sim: a line for each stage. */
static rq_status plan_one(const options *o, const rq_quant_opt *q, int64_t n_out, int64_t n_in, json_t *records,
                          const bench_machine *machine, const char *flags) {
    rq_status status = RQ_OK;
    rq_device_work w;
    rq_work bf16 = {0}; /* with --activations bf16, in calibration: nothing goes over the bus before the end */
    const char *comp = rq_comp_get(q->comp)->name;
    RQ_TRY(rq_device_plan(&w, n_out, n_in, o->tokens, q));
    if (w.gram.launches) rq_device_plan_gram_bf16(&bf16, n_in, o->tokens, rq_quant_wants_cross(q));
    const struct {
        const char *name;
        const rq_work *work;
    } stage[] = {{"forward", &w.forward}, {"gram", &w.gram},   {"gram_bf16", &bf16}, {"factor", &w.factor},
                 {"terms", &w.terms},     {"sweep", &w.sweep}, {"refine", &w.refine}};
    for (size_t i = 0; i < sizeof stage / sizeof *stage; ++i) {
        const rq_work *s = stage[i].work;
        printf("%-8s %6lldx%-6lld %-9s %10.3f %10.3f %10.3f %10.1f %10.1f %9lld\n", comp, (long long)n_out,
               (long long)n_in, stage[i].name, s->flops * 1e-9, s->own_flops * 1e-9, s->bytes * 1e-9,
               s->upload / 1048576, s->download / 1048576, (long long)s->launches);
        json_t *j = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:I, s:f}", "device", "sim",
                              "comp", comp, "stage", stage[i].name, "n_out", (json_int_t)n_out, "n_in",
                              (json_int_t)n_in, "tokens", (json_int_t)o->tokens, "flops", s->flops, "own_flops",
                              s->own_flops, "bytes", s->bytes, "upload_bytes", s->upload, "download_bytes", s->download,
                              "launches", (json_int_t)s->launches, "memory_bytes", w.memory);
        bench_record_machine(j, machine, flags);
        json_array_append_new(records, j);
    }
    printf("%-8s %6lldx%-6lld device memory %.2f GiB\n", comp, (long long)n_out, (long long)n_in,
           w.memory / 1073741824);
done:
    return status;
}

static bool is_plan(const options *o) { return o->device_name && strcmp(o->device_name, "sim") == 0; }

static rq_status bench_one(const options *o, rq_comp comp, int64_t n_out, int64_t n_in, double gflops, json_t *records,
                           const bench_machine *machine, const char *flags) {
    rq_status status = RQ_OK;
    inputs in = {0};
    stages best = {0}, t;
    rq_quant_opt q;
    (o->preset && strcmp(o->preset, "reference") == 0 ? rq_quant_reference : rq_quant_default)(&q, comp);
    char set[1024] = "";
    size_t used = 0;
    for (int i = 0; i < o->n_set; ++i) {
        used += (size_t)snprintf(set + used, sizeof set - used, "%s%s", i ? "," : "", o->set[i]);
        if (used >= sizeof set) RQ_FAIL(RQ_ERR_ARG, "--set: more than %zu characters", sizeof set);
    }
    RQ_TRY(rq_quant_set_all(&q, set));
    if (is_plan(o)) return plan_one(o, &q, n_out, n_in, records, machine, flags);
    double work = 2e-9 * ((double)n_out * (double)n_in * (double)n_in + 4.0 / 3 * pow((double)n_in, 3));
    if (o->dry_run) {
        printf("%-8s %6lldx%-6lld about %.1f GFLOP after the Gram matrix, %.0f MiB\n", rq_comp_get(comp)->name,
               (long long)n_out, (long long)n_in, work,
               (double)(n_in * n_in * 44 + n_out * n_in * 20 + o->tokens * n_in * 8) / 1048576);
        goto done;
    }
    RQ_TRY(inputs_new(&in, n_out, n_in, o->tokens));
    for (int i = 0; i < o->repeat; ++i) {
        RQ_TRY(one_run(&t, &in, n_out, n_in, o->tokens, &q));
        if (i == 0 || after_gram(&t) < after_gram(&best)) best = t;
    }
    if (o->rates) RQ_TRY(keep_rates(&best, n_out, n_in, o->tokens, &q));
    printf("%-8s %6lldx%-6lld %9.4f %9.4f %9.4f %9.4f %10.4f\n", rq_comp_get(comp)->name, (long long)n_out,
           (long long)n_in, best.gram, best.prepare, best.quantize, best.pack, after_gram(&best));
    json_t *j = json_pack("{s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:i}", "comp", rq_comp_get(comp)->name,
                          "n_out", (json_int_t)n_out, "n_in", (json_int_t)n_in, "tokens", (json_int_t)o->tokens,
                          "gram_s", best.gram, "prepare_s", best.prepare, "quantize_s", best.quantize, "pack_s",
                          best.pack, "after_gram_s", after_gram(&best), "sgemm_gflops", gflops, "repeat", o->repeat);
    json_object_set_new(j, "device", json_string("cpu"));
    for (int i = TIMED_FACTOR; i < TIMED_STAGES; ++i) {
        char key[32];
        snprintf(key, sizeof key, "%s_s", timed_names[i]);
        json_object_set_new(j, key, json_real(best.stage[i]));
    }
    for (int i = 0; rq_quant_key_at(i); ++i) {
        char key[64], value[64];
        snprintf(key, sizeof key, "%s", rq_quant_key_at(i)->key);
        rq_quant_get(&q, key, value, sizeof value);
        if (strcmp(key, "comp") != 0) json_object_set_new(j, key, json_string(value));
    }
    bench_record_machine(j, machine, flags);
    json_array_append_new(records, j);
done:
    inputs_free(&in);
    return status;
}

/* --device sim is this program's own: it only counts. */
static int hand_over(char **argv) {
    for (int i = 1; argv[i]; ++i) {
        if ((!strcmp(argv[i], "--device") && argv[i + 1] && !strcmp(argv[i + 1], "cuda")) ||
            !strcmp(argv[i], "--device=cuda"))
            return bench_hand_over("bench_quantize", argv);
    }
    return 0;
}

static int fail(rq_status status) {
    if (status != RQ_OK) fprintf(stderr, "bench_quantize: %s\n", rq_last_error());
    return status == RQ_OK ? 0 : status == RQ_ERR_ARG ? 2 : 1;
}

static int parse(options *o, int argc, char **argv) {
    static const struct option flags[] = {{"comp", 1, 0, 'c'},   {"round", 1, 0, 'r'},  {"shapes", 1, 0, 's'},
                                          {"preset", 1, 0, 'p'}, {"set", 1, 0, 'o'},    {"tokens", 1, 0, 't'},
                                          {"repeat", 1, 0, 'n'}, {"device", 1, 0, 'd'}, {"threads", 1, 0, 'j'},
                                          {"json", 1, 0, 'J'},   {"csv", 1, 0, 'C'},    {"dry-run", 0, 0, 'D'},
                                          {"rates", 1, 0, 'R'},  {"help", 0, 0, 'h'},   {0, 0, 0, 0}};
    int64_t v;
    for (int c; (c = getopt_long(argc, argv, "h", flags, NULL)) != -1;) {
        bool ok = true;
        switch (c) {
        case 'c': ok = strcmp(optarg, "all") == 0 || add_comps(o, optarg); break;
        case 'r': ok = strcmp(optarg, "grid") == 0; break;
        case 's': ok = bench_add_shapes(&o->shapes, optarg); break;
        case 'p':
            o->preset = optarg;
            ok = strcmp(optarg, "best") == 0 || strcmp(optarg, "default") == 0 || strcmp(optarg, "reference") == 0;
            break;
        case 'o':
            ok = o->n_set < MAX_SETTINGS;
            if (ok) o->set[o->n_set++] = optarg;
            break;
        case 't': ok = bench_parse_ints(optarg, 1, 1 << 24, &o->tokens, 1) == 1; break;
        case 'n':
            ok = bench_parse_ints(optarg, 1, 1000, &v, 1) == 1;
            o->repeat = (int)v;
            break;
        case 'j':
            ok = bench_parse_ints(optarg, 1, 1024, &v, 1) == 1;
            if (ok) rq_set_threads((int)v);
            break;
        case 'd':
            o->device_name = optarg;
            ok = is_plan(o) || strcmp(optarg, "cpu") == 0;
            break;
        case 'J': o->json = optarg; break;
        case 'C': o->csv = optarg; break;
        case 'R': o->rates = optarg; break;
        case 'D': o->dry_run = true; break;
        case 'h': help(); return 0;
        default: return 2;
        }
        if (!ok) {
            fprintf(stderr, "bench_quantize: '%s' is not understood; --help lists the options\n", optarg);
            return 2;
        }
    }
    return -1;
}

int main(int argc, char **argv) {
    rq_status status = RQ_OK;
    options o = {.repeat = 3, .tokens = 4096};
    bench_machine machine;
    json_t *records = json_array();
    char flags[1024] = "";
    for (int i = 1; i < argc; ++i) {
        size_t used = strlen(flags);
        snprintf(flags + used, sizeof flags - used, "%s%s", i > 1 ? " " : "", argv[i]);
    }
    int code = hand_over(argv);
    if (code) return code;
    code = parse(&o, argc, argv);
    if (code >= 0) return code;
    if (o.shapes.n == 0) bench_add_shapes(&o.shapes, "576x1536");
    for (int i = 0; o.n_comps == 0 && i < RQ_N_COMPS; ++i) o.comp[i] = (rq_comp)i;
    if (o.n_comps == 0) o.n_comps = RQ_N_COMPS;
    bool runs = !o.dry_run && !is_plan(&o);
    if (runs) RQ_TRY(rq_backend_init());
    bench_machine_look(&machine);
    double gflops = runs ? sgemm_gflops(2048) : 0;
    if (is_plan(&o)) {
        printf("work of a GPU with %lld tokens; nothing is run\n%-8s %13s %-9s %10s %10s %10s %10s %10s %9s\n",
               (long long)o.tokens, "comp", "shape", "stage", "GFLOP", "in kernels", "GB moved", "MiB up", "MiB down",
               "launches");
    }
    if (runs) {
        printf("%s, %d threads, %s: sgemm %.0f GFLOP/s; seconds, best of %d\n", machine.cpu, machine.n_threads,
               rq_backend_name(), gflops, o.repeat);
        printf("%-8s %13s %9s %9s %9s %9s %10s\n", "comp", "shape", "gram", "prepare", "quantize", "pack",
               "after gram");
    }
    for (int s = 0; s < o.shapes.n; ++s) {
        for (int c = 0; c < o.n_comps; ++c)
            RQ_TRY(bench_one(&o, o.comp[c], o.shapes.at[s].shape.n_out, o.shapes.at[s].shape.n_in, gflops, records,
                             &machine, flags));
    }
    if (o.json) RQ_TRY(bench_write_json(o.json, records));
    if (o.csv) RQ_TRY(bench_write_csv(o.csv, records));
    if (o.rates && runs) RQ_TRY(write_rates(o.rates, &machine, gflops, flags));
done:
    json_decref(records);
    return fail(status);
}
