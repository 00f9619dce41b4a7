/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of bench_gemv's CUDA side: the flags of the CPU's (gemv_options.h) as far as they make sense here. */
#ifndef BENCH_GEMV_CUDA_OPTIONS_H
#define BENCH_GEMV_CUDA_OPTIONS_H
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "rq_cuda.h"
#include "shapes.h"
#include "vq_books.h"

struct gemv_options {
    std::string format = "all", json, csv, old_path, flags;
    std::vector<std::string> filter;
    std::vector<int> bits = {2, 3, 4, 8}, tokens;
    int64_t group = 128;
    int outliers = 8, code_bits = 8;
    bool sym = false, bf16 = false, x_s8 = false, book_f16 = false, cublas = true;
    std::string path = "auto"; /* of the dispatcher; auto: by tokens and device */
    bool list = false, dry_run = false, check = false;
    double seconds = 0.25, fail_if_slower = -1, rate = 4300; /* s a row; fraction; GB/s for --dry-run */
    bench_shapes shapes = {};
    bench_books books = {};
    gemv_options() { bench_parse_books(&books, BENCH_DEFAULT_BOOKS); }

    /* Whether this way is shown for so many tokens. */
    bool takes(rq_linear_path way, int n_tok, bool simulated) const {
        if (path == "both" || (path == "auto" && (n_tok > 16 || !(simulated || dry_run)))) return true;
        return (path == "dequantize") == (way == RQ_LINEAR_DEQUANTIZE);
    }
};

static inline void gemv_usage(FILE *f) {
    fputs("bench_gemv --device cuda: y = W x on the GPU for a few tokens, checked, then timed. In the simulator: "
          "checked, then\n"
          "counted.\n"
          "  --format grid|ssvq|vq|all  default all\n"
          "  --bits 2,3,4,8          of grid; of ssvq 2 (vectors of 8) and 3 (of 4); default all\n"
          "  --group N               of grid: columns that share a scale (default 128; 0: a whole row)\n"
          "  --books LIST            of vq: vector length x entries, + entries of a second stage, \"out\": down the "
          "outputs\n"
          "                          (default " BENCH_DEFAULT_BOOKS ")\n"
          "  --sym                   grid without zero points (default: with them)\n"
          "  --outliers N            of ssvq and vq: 8-bit outlier columns (default 8)\n"
          "  --magnitudes u8|f16     of ssvq (default u8)\n"
          "  --code-bits 8|10|12     of ssvq: codebooks of 256, 1024 or 4096 entries (default 8)\n"
          "  --act f16|bf16|int8     activations and results (default f16); int8: of ssvq\n"
          "  --shapes LIST           presets, PRESET/tpN and NxK, comma-separated (default smollm2-135m); see --list\n"
          "  --tokens 1,8,64         default 1; up to 4096\n"
          "  --path gemv|dequantize|both  the GEMV (beyond 16 tokens in chunks), or dense weights and cuBLAS; default: "
          "both,\n"
          "                          in the simulator and with --dry-run up to 16 tokens the GEMV\n"
          "  --filter A,B            only rows with A or B in \"model layer NxK format t=N\"\n"
          "  --baseline cublas|none|FILE  fp16 cuBLAS beside it (default), not, or compare with the --json of an "
          "earlier run\n"
          "  --fail-if-slower P%     exit code 1 when a row is slower than in that run by more than P percent; in the\n"
          "                          simulator, when it takes more instructions, sectors or wavefronts\n"
          "  --seconds S             sampling of a row's cold time (default 0.25; the other times take less)\n"
          "  --json FILE, --csv FILE a record per row\n"
          "  --dry-run               bytes and the time they take at --rate GB/s (4300); nothing is run\n"
          "  --check                 small shapes, each checked, none timed\n"
          "  --list                  what there is\n",
          f);
}

static inline std::vector<std::string> gemv_split(const std::string &text) {
    std::vector<std::string> all;
    for (size_t at = 0; at <= text.size();) {
        size_t end = text.find(',', at);
        if (end == std::string::npos) end = text.size();
        all.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    return all;
}
static inline bool gemv_integer(const std::string &text, long long min, long long max, long long *out) {
    char *end;
    *out = strtoll(text.c_str(), &end, 10);
    return !text.empty() && !*end && *out >= min && *out <= max;
}
static inline bool gemv_integers(const std::string &text, int min, int max, std::vector<int> *out) {
    out->clear();
    for (const std::string &one : gemv_split(text)) {
        long long v;
        if (!gemv_integer(one, min, max, &v)) return false;
        out->push_back((int)v);
    }
    return true;
}
static inline bool gemv_double(const std::string &text, double *out) {
    char *end;
    *out = strtod(text.c_str(), &end);
    return end != text.c_str() && (!*end || !strcmp(end, "%")) && *out >= 0;
}

/* An option with its value. */
static inline bool gemv_take(gemv_options *o, const std::string &name, const std::string &value) {
    long long v = 0;
    if (name == "--format") {
        o->format = value;
        return value == "grid" || value == "ssvq" || value == "vq" || value == "all";
    }
    if (name == "--bits") {
        if (!gemv_integers(value, 2, 8, &o->bits)) return false;
        for (int b : o->bits)
            if (b > 4 && b < 8) return false;
        return true;
    }
    if (name == "--group") {
        const bool ok = gemv_integer(value, 0, 1 << 24, &v);
        o->group = v;
        return ok;
    }
    if (name == "--outliers") {
        const bool ok = gemv_integer(value, 0, 16, &v);
        o->outliers = (int)v;
        return ok;
    }
    if (name == "--code-bits") {
        const bool ok = gemv_integer(value, 8, 12, &v);
        o->code_bits = (int)v;
        return ok && v % 2 == 0; /* any bits are a tile then */
    }
    if (name == "--books") return bench_parse_books(&o->books, value.c_str());
    if (name == "--magnitudes") {
        o->book_f16 = value == "f16";
        return o->book_f16 || value == "u8";
    }
    if (name == "--act") {
        o->bf16 = value == "bf16", o->x_s8 = value == "int8";
        return o->bf16 || o->x_s8 || value == "f16";
    }
    if (name == "--tokens") return gemv_integers(value, 1, 4096, &o->tokens);
    if (name == "--path") {
        o->path = value;
        return value == "gemv" || value == "dequantize" || value == "both";
    }
    if (name == "--shapes") return bench_add_shapes(&o->shapes, value.c_str());
    if (name == "--filter") {
        o->filter = gemv_split(value);
        return true;
    }
    if (name == "--baseline") {
        if (value == "cublas" || value == "none")
            o->cublas = value == "cublas";
        else
            o->old_path = value;
        return value != "sgemv"; /* of the CPU */
    }
    if (name == "--fail-if-slower") {
        const bool ok = gemv_double(value, &o->fail_if_slower);
        o->fail_if_slower /= 100;
        return ok;
    }
    if (name == "--seconds") return gemv_double(value, &o->seconds) && o->seconds > 0;
    if (name == "--rate") return gemv_double(value, &o->rate) && o->rate > 0;
    if (name == "--json") return !(o->json = value).empty();
    if (name == "--csv") return !(o->csv = value).empty();
    return name == "--device" && (value == "cuda" || value == "sim");
}

/* Exits with 2 on what it does not know. */
static inline gemv_options gemv_parse(int argc, char **argv) {
    gemv_options o;
    for (int i = 1; i < argc; ++i) {
        std::string name = argv[i], value;
        o.flags += (i > 1 ? " " : "") + name;
        if (name == "--help" || name == "-h") {
            gemv_usage(stdout);
            exit(0);
        }
        bool *flag = name == "--list"      ? &o.list
                     : name == "--dry-run" ? &o.dry_run
                     : name == "--check"   ? &o.check
                     : name == "--sym"     ? &o.sym
                                           : nullptr;
        if (flag) {
            *flag = true;
            continue;
        }
        const size_t equals = name.find('=');
        bool has_value = equals != std::string::npos;
        if (has_value) {
            value = name.substr(equals + 1), name = name.substr(0, equals);
        } else if ((has_value = i + 1 < argc)) {
            value = argv[++i];
            o.flags += " " + value;
        }
        if (!has_value || !gemv_take(&o, name, value)) {
            fprintf(stderr, "bench_gemv: \"%s%s%s\" does not do here; see --device cuda --help\n", name.c_str(),
                    has_value ? " " : "", value.c_str());
            exit(2);
        }
    }
    if (o.fail_if_slower >= 0 && o.old_path.empty()) {
        fprintf(stderr, "bench_gemv: --fail-if-slower needs --baseline FILE\n");
        exit(2);
    }
    if (o.check && !o.shapes.n) bench_add_shapes(&o.shapes, "48x256,33x520");
    if (o.tokens.empty()) o.tokens = o.check ? std::vector<int>{1, 3, 16, 20} : std::vector<int>{1};
    if (!o.shapes.n) bench_add_shapes(&o.shapes, "smollm2-135m");
    return o;
}
#endif
