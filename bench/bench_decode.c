/* SPDX-License-Identifier: Apache-2.0 */
/* bench_decode: tokens a second of a whole decoder with random weights, a token a step (rq_decode): packed formats beside fp16. On the CPU here; with --device
 * cuda or sim bench_decode_cuda. Embedding and head are fp16 in all rows. The first 32 positions of a text, again and again.
 *
 * A layer's matrices are some of several copies that together are larger than four last-level caches, so that a large model needs not be in memory as a whole. Of
 * a row are given: milliseconds and tokens a second, the bytes of weights that a step reads, and the share of the read rate measured in the same run that this
 * is. Before a row is timed, two runs of a few tokens must give the same logits, all finite. docs/bench.md explains the columns. */
#include <getopt.h>
#include <math.h>

#include "decode_models.h"
#include "harness_operand.h"
#include "llama.h"

enum { POSITIONS = 32, CHECK_TOKENS = 4, MAX_MODELS = 8, N_SUBJECTS = RQ_N_LINEARS + 1 };

static const char *const format_names[] = {"f16", "ssvq2", "ssvq3", "grid2", "grid3", "grid4", "vq8x256+256"};
enum { N_FORMATS = sizeof format_names / sizeof *format_names };

typedef struct options {
    bench_decoder model[MAX_MODELS];
    int n_models;
    int64_t threads;
    double seconds;
    const char *json, *csv, *formats; /* formats NULL: all */
    char flags[512];
} options;

/* A model of copies of a few random matrices. */
typedef struct random_model {
    rq_model pub;
    bench_subject subject[N_SUBJECTS]; /* of the linears, then the head, which is the embedding too */
    bench_books books;
    rq_packed *packed; /* [n_layer][RQ_N_LINEARS] */
    rq_tensor *tensor; /* the same, and the head */
    float *ones;
    double bytes; /* of weights that a step reads */
    rq_decode_state *state;
    float *logits;
    rq_status status;
} random_model;

static rq_status make_subject(random_model *m, bench_subject *s, const char *format, const bench_machine *machine) {
    rq_status status = RQ_OK;
    if (strncmp(format, "grid", 4) == 0)
        RQ_TRY(bench_make_grid(s, format[4] - '0', 128, false, false));
    else if (strncmp(format, "ssvq", 4) == 0)
        RQ_TRY(bench_make_ssvq(s, format[4] == '2' ? 8 : 4, 0, 0, false));
    else if (strncmp(format, "vq", 2) == 0)
        RQ_TRY(bench_make_vq(s, &m->books.at[0], 0, 0));
    else
        bench_make_dense(s, "f16_rows");
    RQ_TRY(bench_make_copies(s, machine));
done:
    return status;
}

/* Copy i of a subject as a linear layer. */
static void place(rq_linear *l, rq_packed *p, rq_tensor *t, const bench_subject *s, int64_t i, const char *name) {
    rq_dense d;
    bench_copy_at(p, &d, s, s->copies + i % s->n_copies * s->copy_bytes);
    *l = (rq_linear){.name = name, .n_out = s->n_out, .n_in = s->n_in};
    if (s->packed.n_out > 0) {
        l->packed = p;
        return;
    }
    *t = (rq_tensor){.name = name,
                     .dtype = RQ_F16,
                     .rank = 2,
                     .shape = {s->n_out, s->n_in},
                     .data = d.data,
                     .n_bytes = s->n_out * d.row_bytes};
    l->tensor = t;
}

static rq_status make_matrices(random_model *m, const bench_decoder *b, const char *format,
                               const bench_machine *machine) {
    rq_status status = RQ_OK;
    const int64_t nq = b->n_head * b->head_dim, nkv = b->n_kv_head * b->head_dim, d = b->d_model;
    const int64_t shape[N_SUBJECTS][2] = {{nq, d},      {nkv, d},     {nkv, d},     {d, nq},
                                          {b->d_ff, d}, {b->d_ff, d}, {d, b->d_ff}, {b->n_vocab, d}};
    for (int i = 0; i < N_SUBJECTS; ++i) {
        bench_subject *s = &m->subject[i];
        s->n_out = shape[i][0];
        s->n_in = shape[i][1];
        RQ_TRY(make_subject(m, s, i < RQ_N_LINEARS ? format : "f16", machine));
        m->bytes += (double)s->size_bits / 8 * (double)(i < RQ_N_LINEARS ? b->n_layer : 1);
    }
    RQ_TRY(RQ_NEW_ZERO(m->packed, b->n_layer * RQ_N_LINEARS + 1));
    RQ_TRY(RQ_NEW_ZERO(m->tensor, b->n_layer * RQ_N_LINEARS + 1));
    RQ_TRY(RQ_NEW_ZERO(m->pub.block, b->n_layer));
    for (int64_t i = 0; i < b->n_layer; ++i) {
        for (int k = 0; k < RQ_N_LINEARS; ++k) {
            const int64_t at = i * RQ_N_LINEARS + k;
            place(&m->pub.block[i].lin[k], &m->packed[at], &m->tensor[at], &m->subject[k], i, rq_linear_suffix[k]);
        }
        m->pub.block[i].norm1 = m->pub.block[i].norm2 = m->ones;
    }
    const int64_t last = b->n_layer * RQ_N_LINEARS;
    place(&m->pub.head, &m->packed[last], &m->tensor[last], &m->subject[RQ_N_LINEARS], 0, "head");
    m->pub.embed = m->pub.head;
done:
    return status;
}

static void drop_model(random_model *m) {
    rq_decode_free(m->state);
    for (int i = 0; i < N_SUBJECTS; ++i) bench_drop_subject(&m->subject[i]);
    free(m->pub.block), free(m->pub.rope_inv_freq), free(m->packed), free(m->tensor), free(m->ones), free(m->logits);
    memset(m, 0, sizeof *m);
}

static rq_status make_model(random_model *m, const bench_decoder *b, const char *format, const bench_machine *machine) {
    rq_status status = RQ_OK;
    memset(m, 0, sizeof *m);
    if (strncmp(format, "vq", 2) == 0 && !bench_parse_books(&m->books, format + 2))
        RQ_FAIL(RQ_ERR_ARG, "no codebooks %s", format);
    m->pub.cfg = (rq_config){.n_layer = b->n_layer,
                             .d_model = b->d_model,
                             .d_ff = b->d_ff,
                             .n_head = b->n_head,
                             .n_kv_head = b->n_kv_head,
                             .head_dim = b->head_dim,
                             .n_vocab = b->n_vocab,
                             .max_seq = POSITIONS,
                             .rms_eps = 1e-5f};
    RQ_TRY(RQ_NEW(m->ones, b->d_model));
    for (int64_t i = 0; i < b->d_model; ++i) m->ones[i] = 1;
    m->pub.norm_f = m->ones;
    RQ_TRY(RQ_NEW(m->pub.rope_inv_freq, b->head_dim / 2));
    for (int64_t i = 0; i < b->head_dim / 2; ++i)
        m->pub.rope_inv_freq[i] = (float)pow(10000, -2.0 * (double)i / (double)b->head_dim);
    RQ_TRY(make_matrices(m, b, format, machine));
    RQ_TRY(RQ_NEW(m->logits, b->n_vocab));
    RQ_TRY(rq_decode_new(&m->state, &m->pub, POSITIONS));
done:
    return status;
}

static void step(void *arg, int64_t i) {
    random_model *m = arg;
    const int32_t id = (int32_t)(i * 7919 % m->pub.cfg.n_vocab);
    if (rq_decode_pos(m->state) == POSITIONS) rq_decode_reset(m->state);
    if (m->status == RQ_OK) m->status = rq_decode(m->state, &id, 1, m->logits);
}

/* The logits after a few tokens, twice. */
static rq_status check(random_model *m) {
    rq_status status = RQ_OK;
    const int64_t n = m->pub.cfg.n_vocab;
    float *first = NULL;
    RQ_TRY(RQ_NEW(first, n));
    for (int k = 0; k < 2; ++k) {
        rq_decode_reset(m->state);
        for (int i = 0; i < CHECK_TOKENS; ++i) step(m, i);
        RQ_TRY(m->status);
        if (k == 0) memcpy(first, m->logits, (size_t)n * sizeof *first);
    }
    for (int64_t i = 0; i < n; ++i) {
        if (!isfinite(first[i]) || first[i] != m->logits[i])
            RQ_FAIL(RQ_ERR_NUMERIC, "the logit of token %lld is %g, then %g", (long long)i, (double)first[i],
                    (double)m->logits[i]);
    }
done:
    free(first);
    return status;
}

static rq_status run_row(json_t *records, const options *o, const bench_machine *m, const bench_decoder *b,
                         const char *format, double *f16_us) {
    rq_status status = RQ_OK;
    random_model model;
    bench_times t;
    RQ_TRY(make_model(&model, b, format, m));
    RQ_TRY(check(&model));
    bench_time(&t, step, &model, o->seconds, 3);
    RQ_TRY(model.status);
    const double gbs = model.bytes / t.med_us * 1e-3;
    if (strcmp(format, "f16") == 0) *f16_us = t.med_us;
    printf("%-13s %-12s %10.2f %10.2f %10.2f %9.3f %8.1f %6.0f", b->name, format, t.med_us * 1e-3, t.p80_us * 1e-3,
           1e6 / t.med_us, model.bytes * 1e-9, gbs, 100 * gbs / m->read_gbs);
    if (*f16_us > 0) printf(" %7.2f", *f16_us / t.med_us);
    printf("\n");
    json_t *r = json_object();
    bench_record_machine(r, m, o->flags);
    json_t *own =
        json_pack("{s:s, s:s, s:s, s:I, s:I, s:f, s:f, s:f, s:i, s:f, s:f, s:f, s:o}", "device", "cpu", "model",
                  b->name, "format", format, "positions", (json_int_t)POSITIONS, "weight_bytes",
                  (json_int_t)model.bytes, "t_med_us", t.med_us, "t_p20_us", t.p20_us, "t_p80_us", t.p80_us, "samples",
                  t.n, "tokens_s", 1e6 / t.med_us, "gbs", gbs, "pct_read_gbs", 100 * gbs / m->read_gbs, "speedup_f16",
                  *f16_us > 0 ? json_real(*f16_us / t.med_us) : json_null());
    json_object_update(r, own);
    json_decref(own);
    json_array_append_new(records, r);
done:
    drop_model(&model);
    return status;
}

static void usage(FILE *f) {
    fputs("bench_decode: tokens a second of a whole decoder with random weights\n"
          "  --shapes LIST           models: tiny",
          f);
    for (int i = 0; i < BENCH_N_MODELS; ++i) fprintf(f, ", %s", bench_model_heads[i].name);
    fputs(" (smollm2-135m)\n"
          "  --formats LIST          of",
          f);
    for (int i = 0; i < N_FORMATS; ++i) fprintf(f, " %s", format_names[i]);
    fputs(" (all)\n"
          "  --threads N             (every core)\n"
          "  --clock wall|cpu        cpu: time this process was given, on a machine that others use; one thread\n"
          "  --seconds S             sampling per row, at least 3 steps (default 2)\n"
          "  --json FILE, --csv FILE a record per row\n"
          "  --device cuda|sim       the CUDA side (its --help), in the simulator without times\n",
          f);
}

static bool add_models(options *o, const char *text) {
    for (const char *p = text; *p; p += *p == ',') {
        size_t n = strcspn(p, ",");
        if (o->n_models == MAX_MODELS || !bench_find_decoder(&o->model[o->n_models], p, n)) return false;
        ++o->n_models;
        p += n;
    }
    return o->n_models > 0;
}

/* Whether --formats names it. */
static bool wanted(const options *o, const char *name) {
    const size_t n = strlen(name);
    for (const char *p = o->formats; p && *p; p += *p == ',') {
        const size_t length = strcspn(p, ",");
        if (length == n && strncmp(p, name, n) == 0) return true;
        p += length;
    }
    return !o->formats;
}

/* An exit code, or -1 to go on. */
static int parse(options *o, int argc, char **argv) {
    static const struct option list[] = {{"shapes", 1, NULL, 'z'}, {"formats", 1, NULL, 'f'}, {"threads", 1, NULL, 't'},
                                         {"clock", 1, NULL, 'k'},  {"seconds", 1, NULL, 's'}, {"json", 1, NULL, 'o'},
                                         {"csv", 1, NULL, 'c'},    {"device", 1, NULL, 'd'},  {"help", 0, NULL, 'h'},
                                         {NULL, 0, NULL, 0}};
    const char *models = "smollm2-135m";
    int id;
    *o = (options){.seconds = 2};
    while ((id = getopt_long(argc, argv, "h", list, NULL)) != -1) {
        bool ok = true;
        switch (id) {
        case 'z': models = optarg; break;
        case 'f': o->formats = optarg; break;
        case 't': ok = bench_parse_ints(optarg, 1, 1024, &o->threads, 1) == 1; break;
        case 'k':
            ok = !strcmp(optarg, "wall") || !strcmp(optarg, "cpu");
            bench_set_clock(strcmp(optarg, "cpu") ? BENCH_WALL : BENCH_CPU);
            break;
        case 's': ok = (o->seconds = strtod(optarg, NULL)) > 0; break;
        case 'o': o->json = optarg; break;
        case 'c': o->csv = optarg; break;
        case 'd': break; /* cpu: bench_hand_over took the others */
        case 'h': return usage(stdout), 0;
        default: ok = false;
        }
        if (!ok) return usage(stderr), 2;
    }
    bench_join_flags(o->flags, sizeof o->flags, argc, argv);
    if (add_models(o, models)) return -1;
    fprintf(stderr, "bench_decode: --shapes %s: not a model, or too many (--help lists them)\n", models);
    return 2;
}

int main(int argc, char **argv) {
    rq_status status = RQ_OK;
    static options o;
    bench_machine m;
    int code = bench_hand_over("bench_decode", argv);
    if (code == 0) code = parse(&o, argc, argv);
    if (code >= 0) return code;
    json_t *records = json_array();
    if (o.threads) rq_set_threads((int)o.threads);
    RQ_TRY(rq_kernels_check());
    bench_machine_look(&m);
    RQ_TRY(bench_measure_read(&m));
    printf("cpu %s, load %.2f, %d threads, read %.1f GB/s\n", m.cpu, m.load_before, m.n_threads, m.read_gbs);
    printf("%-13s %-12s %10s %10s %10s %9s %8s %6s %7s\n", "model", "format", "ms", "p80", "tokens/s", "GB", "GB/s",
           "% read", "x f16");
    for (int i = 0; i < o.n_models; ++i) {
        double f16_us = 0;
        for (int k = 0; k < N_FORMATS; ++k) {
            if (wanted(&o, format_names[k])) RQ_TRY(run_row(records, &o, &m, &o.model[i], format_names[k], &f16_us));
        }
    }
    if (json_array_size(records) == 0) RQ_FAIL(RQ_ERR_ARG, "--formats %s: there is none of that name", o.formats);
    if (o.json) RQ_TRY(bench_write_json(o.json, records));
    if (o.csv) RQ_TRY(bench_write_csv(o.csv, records));
done:
    if (status != RQ_OK) fprintf(stderr, "bench_decode: %s\n", rq_last_error());
    json_decref(records);
    return status != RQ_OK;
}
