/* SPDX-License-Identifier: Apache-2.0 */
/* Y = X W^T for 4-bit weights and 8-bit activations, any number of tokens: every gemm row of kernels.def, a linear layer from fp32 inputs on
 * (rounded to 8 bits, then the kernel it picks), and sgemm on fp32 weights. One thread. A row is timed only after some of its rows gave the very bytes of the definition. The ceiling is what the CPU adds up of 8-bit products on
 * registers alone, measured in the same run. docs/bench.md explains the columns. */
#include <getopt.h>

#include "backend.h"
#include "gemm_peak.h"
#include "kernels.h"
#include "linear.h"
#include "shapes.h"

enum { MAX_TOKENS = 16, CHECK_ROWS = 24 };

typedef struct options {
    bench_shapes shapes;
    int64_t tokens[MAX_TOKENS], group;
    int n_tokens;
    bool own_tokens; /* --tokens was given */
    double seconds;
    const char *json, *csv, *impl; /* impl NULL: all */
    char flags[512];
} options;

typedef struct job {
    const char *name;        /* the kernel's, "linear" or "sgemm" */
    const rq_kernel *kernel; /* NULL: one of the other two */
    bool linear;
    rq_packed p;
    rq_act8 x;
    float *dense, *in, *y, *want; /* fp32 weights and activations; dense may be NULL */
    int64_t n_tok;
    rq_status status; /* of linear */
} job;

static uint32_t draw(void) {
    static uint32_t s = 12345;
    s = s * 1664525u + 1013904223u;
    return s >> 8;
}

static rq_status make_weights(job *j, int64_t n_out, int64_t n_in, int64_t group) {
    rq_status status = RQ_OK;
    uint8_t *codes = NULL, *small = NULL;
    int8_t *base = NULL;
    float *scale = NULL;
    int64_t n = group ? n_out * rq_ceil_div(n_in, group) : n_out;
    RQ_TRY(RQ_NEW(codes, n_out * n_in));
    RQ_TRY(RQ_NEW(small, n));
    RQ_TRY(RQ_NEW(base, n));
    RQ_TRY(RQ_NEW(scale, n_out));
    for (int64_t i = 0; i < n_out * n_in; ++i) codes[i] = (uint8_t)(draw() % 16);
    for (int64_t i = 0; i < n_out; ++i) scale[i] = (float)(1 + draw() % 1000) * 1e-5f;
    for (int64_t k = 0; k < n; ++k) {
        small[k] = (uint8_t)(group ? 1 + draw() % RQ_W4A8_MAX_STEP : draw() % 16);
        base[k] = (int8_t)((int)(draw() % (group ? 256u - 15u * small[k] : 1u)) - 128);
    }
    const rq_w4a8_codes q = {.n_out = n_out,
                             .n_in = n_in,
                             .group = group,
                             .codes = codes,
                             .scale = scale,
                             .zero = group ? NULL : small,
                             .step = group ? small : NULL,
                             .base = group ? base : NULL};
    RQ_TRY(rq_w4a8_pack(&j->p, &q));
done:
    free(codes), free(small), free(base), free(scale);
    return status;
}

static rq_status make_inputs(job *j, void **memory, int64_t n_tok) {
    rq_status status = RQ_OK;
    int64_t n_in = j->p.n_in, pitch = rq_ceil_div(n_in, RQ_ACT8_ALIGN) * RQ_ACT8_ALIGN;
    float *scale;
    int32_t *sum;
    RQ_TRY(RQ_NEW(j->in, n_tok * n_in));
    for (int64_t i = 0; i < n_tok * n_in; ++i) j->in[i] = (float)draw() * 0x1p-23f - 1.0f;
    RQ_TRY(rq_alloc(memory, n_tok * (pitch + 8) + RQ_ACT8_ALIGN, 1));
    int8_t *q = (int8_t *)*memory + (RQ_ACT8_ALIGN - (uintptr_t)*memory % RQ_ACT8_ALIGN) % RQ_ACT8_ALIGN;
    scale = (float *)(void *)(q + n_tok * pitch);
    sum = (int32_t *)(void *)(scale + n_tok);
    const rq_act_rows rows = {.n_in = n_in, .x = j->in};
    rq_kernel_pick("quantize", "act_rows")->quantize(q, pitch, scale, sum, &rows, 0, n_tok);
    j->x = (rq_act8){q, pitch, scale, sum};
    j->n_tok = n_tok;
done:
    return status;
}

static void run(void *arg, int64_t i) {
    job *j = arg;
    (void)i;
    if (j->kernel)
        j->kernel->gemm(j->y, &j->p.u, &j->x, 0, j->n_tok, 0, j->p.n_out);
    else if (j->linear)
        j->status = rq_linear_w4a8(&j->p.u.w4a8, NULL, j->y, j->in, j->n_tok);
    else
        rq_sgemm(RQ_N, RQ_T, j->n_tok, j->p.n_out, j->p.n_in, 1.0f, j->in, j->p.n_in, j->dense, j->p.n_in, 0.0f, j->y,
                 j->p.n_out);
}

/* Rows spread over the matrix against the definition, bit for bit. */
static rq_status check(job *j) {
    const rq_w4a8 *w = &j->p.u.w4a8;
    int64_t stride = rq_max_i64(1, w->n_out / CHECK_ROWS);
    run(j, 0);
    if (j->status != RQ_OK) return j->status;
    for (int64_t r = 0; r < w->n_out; r += stride) {
        rq_gemm_w4a8_c(j->want, w, &j->x, 0, j->n_tok, r, 1);
        for (int64_t t = 0; t < j->n_tok; ++t) {
            if (rq_f32_bits(j->want[t * w->n_out + r]) != rq_f32_bits(j->y[t * w->n_out + r])) {
                return rq_fail(RQ_ERR_NUMERIC, "%s: token %lld, row %lld is %g instead of %g", j->name, (long long)t,
                               (long long)r, (double)j->y[t * w->n_out + r], (double)j->want[t * w->n_out + r]);
            }
        }
    }
    return RQ_OK;
}

static rq_status time_row(json_t *records, const options *o, const bench_machine *m, double peak, job *j, int shape) {
    rq_status status = RQ_OK;
    bench_times t;
    const int64_t n_out = j->p.n_out, n_in = j->p.n_in;
    const bool is_int = j->kernel || j->linear;
    if (is_int) RQ_TRY(check(j));
    bench_time(&t, run, j, o->seconds, 3);
    double gops = 2.0 * (double)n_out * (double)n_in * (double)j->n_tok / t.med_us * 1e-3;
    double of_peak = is_int && peak > 0 ? 100 * gops / peak : 0;
    printf("%-13s %6lldx%-6lld %6lld %-11s %11.1f %11.1f %11.1f %9.1f %7.1f\n", o->shapes.at[shape].model,
           (long long)n_out, (long long)n_in, (long long)j->n_tok, j->name, t.med_us, t.p20_us, t.p80_us, gops,
           of_peak);
    fflush(stdout);
    json_t *r = json_object();
    bench_record_machine(r, m, o->flags);
    json_object_set_new(r, "device", json_string("cpu"));
    json_object_set_new(r, "model", json_string(o->shapes.at[shape].model));
    json_object_set_new(r, "layer", json_string(o->shapes.at[shape].shape.layer));
    json_object_set_new(r, "n_out", json_integer(n_out));
    json_object_set_new(r, "n_in", json_integer(n_in));
    json_object_set_new(r, "format", json_string(is_int ? "w4a8" : "f32"));
    json_object_set_new(r, "group", json_integer(is_int ? o->group : 0));
    json_object_set_new(r, "n_tok", json_integer(j->n_tok));
    json_object_set_new(r, "kernel", json_string(j->name));
    json_object_set_new(r, "t_med_us", json_real(t.med_us));
    json_object_set_new(r, "t_p20_us", json_real(t.p20_us));
    json_object_set_new(r, "t_p80_us", json_real(t.p80_us));
    json_object_set_new(r, "samples", json_integer(t.n));
    json_object_set_new(r, "gops", json_real(gops));
    json_object_set_new(r, "vnni_peak_gops", peak > 0 ? json_real(peak) : json_null());
    json_object_set_new(r, "pct_vnni_peak", of_peak > 0 ? json_real(of_peak) : json_null());
    json_array_append_new(records, r);
done:
    return status;
}

/* Whether --impl names it. */
static bool wanted(const options *o, const char *name) {
    size_t n = strlen(name);
    for (const char *at = o->impl; at && (at = strstr(at, name)); at += n) {
        if ((at == o->impl || at[-1] == ',') && (at[n] == ',' || !at[n])) return true;
    }
    return !o->impl;
}

static rq_status run_shape(json_t *records, const options *o, const bench_machine *m, double peak, int shape) {
    rq_status status = RQ_OK;
    const bench_shape *b = &o->shapes.at[shape].shape;
    job j = {0};
    void *memory = NULL;
    RQ_TRY(make_weights(&j, b->n_out, b->n_in, o->group));
    if (wanted(o, "sgemm")) RQ_TRY(RQ_NEW(j.dense, b->n_out * b->n_in));
    for (int64_t r = 0; j.dense && r < b->n_out; ++r) rq_unpack_row(&j.p, r, j.dense + r * b->n_in);
    const bool sized = b->n_tok && !o->own_tokens;
    for (int i = 0; i < (sized ? 1 : o->n_tokens); ++i) {
        free(memory), free(j.in), free(j.y), free(j.want);
        memory = j.in = j.y = j.want = NULL;
        RQ_TRY(make_inputs(&j, &memory, sized ? b->n_tok : o->tokens[i]));
        RQ_TRY(RQ_NEW(j.y, j.n_tok * b->n_out));
        RQ_TRY(RQ_NEW(j.want, j.n_tok * b->n_out));
        for (int64_t k = 0; k < rq_kernel_count(); ++k) {
            j.kernel = rq_kernel_at(k);
            j.name = j.kernel->impl;
            if (!j.kernel->gemm || !rq_kernel_usable(j.kernel, NULL) || !wanted(o, j.name)) continue;
            RQ_TRY(time_row(records, o, m, peak, &j, shape));
        }
        j.kernel = NULL;
        for (int i8 = 1; i8 >= 0; --i8) {
            j.linear = i8;
            j.name = i8 ? "linear" : "sgemm";
            if (wanted(o, j.name)) RQ_TRY(time_row(records, o, m, peak, &j, shape));
        }
    }
done:
    free(memory), free(j.in), free(j.y), free(j.want), free(j.dense);
    rq_packed_free(&j.p);
    return status;
}

static void usage(FILE *f) {
    fputs("bench_gemm: 4-bit weights times 8-bit activations, one thread\n"
          "  --shapes LIST           presets, PRESET/tpN and NxK (default 4096x4096)\n"
          "  --tokens 1,16,128       how many at once (default these three; of diffusion models, what the layer has)\n"
          "  --group G               0: one scale a row; a multiple of 32: two levels (default 128)\n"
          "  --impl LIST             of c, avx2, avx512vnni, linear, sgemm (default all)\n"
          "  --clock wall|cpu        cpu: time this process was given, on a machine that others use\n"
          "  --seconds S             sampling per row, at least 3 samples (default 0.5)\n"
          "  --json FILE, --csv FILE a record per row\n"
          "  --list                  presets\n",
          f);
}

/* An exit code, or -1 to go on. */
static int parse(options *o, int argc, char **argv) {
    static const struct option list[] = {{"shapes", 1, NULL, 'z'}, {"tokens", 1, NULL, 't'},  {"group", 1, NULL, 'g'},
                                         {"clock", 1, NULL, 'k'},  {"seconds", 1, NULL, 's'}, {"json", 1, NULL, 'o'},
                                         {"csv", 1, NULL, 'c'},    {"list", 0, NULL, 'l'},    {"impl", 1, NULL, 'i'},
                                         {"help", 0, NULL, 'h'},   {NULL, 0, NULL, 0}};
    const char *shapes = "4096x4096";
    int id;
    *o = (options){.tokens = {1, 16, 128}, .n_tokens = 3, .group = 128, .seconds = 0.5};
    while ((id = getopt_long(argc, argv, "h", list, NULL)) != -1) {
        bool ok = true;
        switch (id) {
        case 'z': shapes = optarg; break;
        case 't':
            o->own_tokens = true, ok = (o->n_tokens = bench_parse_ints(optarg, 1, 1 << 16, o->tokens, MAX_TOKENS)) > 0;
            break;
        case 'g': ok = bench_parse_ints(optarg, 0, RQ_W4A8_MAX_GROUP, &o->group, 1) == 1; break;
        case 'k':
            ok = !strcmp(optarg, "wall") || !strcmp(optarg, "cpu");
            bench_set_clock(strcmp(optarg, "cpu") ? BENCH_WALL : BENCH_CPU);
            break;
        case 's': ok = (o->seconds = strtod(optarg, NULL)) > 0; break;
        case 'i': o->impl = optarg; break;
        case 'o': o->json = optarg; break;
        case 'c': o->csv = optarg; break;
        case 'l': return bench_list_shapes(), 0;
        case 'h': return usage(stdout), 0;
        default: ok = false;
        }
        if (!ok) return usage(stderr), 2;
    }
    bench_join_flags(o->flags, sizeof o->flags, argc, argv);
    return bench_add_shapes(&o->shapes, shapes) ? -1 : 2;
}

int main(int argc, char **argv) {
    rq_status status = RQ_OK;
    options o;
    bench_machine m;
    int code = parse(&o, argc, argv);
    if (code >= 0) return code;
    json_t *records = json_array();
    rq_set_threads(1);
    RQ_TRY(rq_kernels_check());
    RQ_TRY(rq_backend_init());
    bench_machine_look(&m);
    RQ_TRY(bench_measure_read(&m));
    double peak = rq_kernel_ceiling() >= RQ_NEED_AVX512VNNI ? bench_vnni_peak(o.seconds) : 0;
    printf("cpu %s, load %.2f, %s; 8-bit products on registers: %.0f Gop/s\n", m.cpu, m.load_before, rq_backend_name(),
           peak);
    printf("%-13s %13s %6s %-11s %11s %11s %11s %9s %7s\n", "model", "outputs x in", "tokens", "kernel", "us", "p20",
           "p80", "Gop/s", "% peak");
    for (int i = 0; i < o.shapes.n; ++i) RQ_TRY(run_shape(records, &o, &m, peak, i));
    if (json_array_size(records) == 0) RQ_FAIL(RQ_ERR_ARG, "--impl %s: nothing of that name runs here", o.impl);
    if (o.json) RQ_TRY(bench_write_json(o.json, records));
    if (o.csv) RQ_TRY(bench_write_csv(o.csv, records));
done:
    if (status != RQ_OK) fprintf(stderr, "bench_gemm: %s\n", rq_last_error());
    json_decref(records);
    return status != RQ_OK;
}
