/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of bench_gemv on the CPU (gemv_options.h). */
#include "gemv_options.h"

#include <getopt.h>

static void usage(FILE *f) {
    fputs(
        "bench_gemv: y = W x for 1 .. 16 tokens, checked, then timed\n"
        "  --format NAME|all       grid (default), ssvq, vq, f32, f16, bf16, q8_0, or all\n"
        "  --bits 2,3,4,8          of grid; of ssvq 2 (vectors of 8) and 3 (of 4); default all\n"
        "  --group N               columns that share a scale (default 128, ssvq and vq a whole row; 0: a whole row)\n"
        "  --sym                   no zero points (default: with them)\n"
        "  --scales f16|f32        default f16\n"
        "  --outliers N            of ssvq and vq: 8-bit outlier columns (default 8)\n"
        "  --magnitudes u8|f16     of ssvq (default u8)\n"
        "  --books LIST            of vq: vector length x entries, + entries of a second stage, \"out\": down the "
        "outputs\n"
        "                          (default " BENCH_DEFAULT_BOOKS ")\n"
        "  --shapes LIST           presets, PRESET/tpN and NxK, comma-separated (default smollm2-135m); see --list\n"
        "  --tokens 1,2,4,8,16     default 1\n"
        "  --filter TEXT           only rows with TEXT in \"model layer NxK format bits t=N kernel\"\n"
        "  --impl NAME|all         c, avx2, avx512, avx512vbmi or all (default: the one that is picked here)\n"
        "  --threads N             default: one per core\n"
        "  --clock wall|cpu        cpu: time given to this process, for --threads 1 on a machine that others use\n"
        "  --device cpu|cuda|sim   cuda: the GPU's kernels, in the simulator where there is only that; the flags are "
        "the same\n"
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
    bench_list_shapes();
    return 0;
}

static bool known_format(const char *name) {
    static const char *const names[] = {"all", "grid", "ssvq", "vq", "f32", "f16", "bf16", "q8_0"};
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i) {
        if (!strcmp(name, names[i])) return true;
    }
    fprintf(stderr, "bench_gemv: no format \"%s\": grid, ssvq, vq, f32, f16, bf16, q8_0 or all\n", name);
    return false;
}

static bool known_impl(const char *name) {
    bool found = !strcmp(name, "all");
    for (int64_t i = 0; i < rq_kernel_count(); ++i) found |= !strcmp(rq_kernel_at(i)->impl, name);
    if (!found) fprintf(stderr, "bench_gemv: no kernel is called \"%s\" (--list)\n", name);
    return found;
}

static bool known_bits(gemv_options *o, const char *text) {
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
    O_OUTLIERS,
    O_MAGNITUDES,
    O_BOOKS,
    O_SHAPES,
    O_TOKENS,
    O_FILTER,
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
                                             {"outliers", 1, NULL, O_OUTLIERS},
                                             {"magnitudes", 1, NULL, O_MAGNITUDES},
                                             {"books", 1, NULL, O_BOOKS},
                                             {"shapes", 1, NULL, O_SHAPES},
                                             {"tokens", 1, NULL, O_TOKENS},
                                             {"filter", 1, NULL, O_FILTER},
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
static int take_option(gemv_options *o, int id, const char *arg) {
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
    case O_OUTLIERS: ok = bench_parse_ints(arg, 0, RQ_SSVQ_MAX_OUTLIERS, &o->n_outlier, 1) == 1; break;
    case O_MAGNITUDES: o->f16_magnitudes = !strcmp(arg, "f16"), ok = o->f16_magnitudes || !strcmp(arg, "u8"); break;
    case O_BOOKS: ok = bench_parse_books(&o->books, arg); break;
    case O_SHAPES: ok = bench_add_shapes(&o->shapes, arg); break;
    case O_TOKENS: ok = (o->n_tokens = bench_parse_ints(arg, 1, RQ_GEMV_MAX_TOK, o->tokens, 16)) > 0; break;
    case O_FILTER: o->filter = arg; break;
    case O_IMPL: o->impl = arg, ok = known_impl(arg); break;
    case O_THREADS: ok = bench_parse_ints(arg, 1, 1024, &v, 1) == 1, o->threads = (int)v; break;
    case O_CLOCK: o->cpu_clock = !strcmp(arg, "cpu"), ok = o->cpu_clock || !strcmp(arg, "wall"); break;
    case O_DEVICE: break; /* cpu: anything else was handed over */
    case O_BASELINE:
        if (!strcmp(arg, "sgemv")) {
            o->sgemv = true;
        } else if (!strcmp(arg, "cublas")) {
            fprintf(stderr, "bench_gemv: --baseline cublas needs --device cuda\n");
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

int gemv_parse(gemv_options *o, int argc, char **argv) {
    *o = (gemv_options){.format = "grid",
                        .bits = {2, 3, 4, 8},
                        .n_bits = 4,
                        .tokens = {1},
                        .n_tokens = 1,
                        .group = -1,
                        .n_outlier = 8,
                        .seconds = 0.4,
                        .fail_if_slower = -1};
    bench_parse_books(&o->books, BENCH_DEFAULT_BOOKS);
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
    if (!o->shapes.n && !bench_add_shapes(&o->shapes, "smollm2-135m")) return 3;
    return 0;
}
