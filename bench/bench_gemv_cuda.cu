/* SPDX-License-Identifier: Apache-2.0 */
/* y = W x on the GPU for a few tokens, and for more by both ways of the dispatcher: every kernel behind cuda/rq_cuda.h over the layers of
 * real models. In a full build it is
 * what `bench_gemv --device cuda` runs; in a build of the kernels alone it stands by itself, as bench_gemv_cuda.
 *
 * A row is checked against sums in double and on one-hot inputs (gemv_cuda_check.h) before it is timed (gemv_cuda_times.h); a
 * failed check is exit code 1. In the simulator, known by the device's name, a row is checked and its accesses and
 * instructions are counted (gemv_cuda_counts.h): no time is printed.
 * Targets: sm_80 sm_90a. Libraries: requite. */
#include <memory>

#include "cuda_clocks.h"
#include "gemv_cuda_compare.h"
#include "gemv_cuda_counts.h"
#include "gemv_cuda_options.h"
#include "gemv_cuda_table.h"
#ifdef RQ_HAVE_CUBLAS
#include "gemv_cuda_cublas.h"
#endif

struct context {
    gemv_options o;
    bench_device device;
    bool simulated = false;
    cudaStream_t stream = nullptr;
    gemv_ceilings ceilings;
    std::unique_ptr<gemv_counts> counts;
    std::unique_ptr<gemv_stopwatch> stopwatch;
    std::unique_ptr<bench_clocks> clocks;
    std::unique_ptr<bench_output> output;
    std::vector<gemv_old_record> old;
    std::string git;
    int failed = 0, slower = 0, compared = 0, unknown = 0, refused = 0, rows = 0;
    std::map<std::string, std::pair<double, double>>
        step_us; /* of a model's block, by what was the same: ours, cuBLAS */
    std::map<std::string, int> step_layers, step_blocks;

    size_t copies() const { return simulated ? 0 : 4 * device.l2_bytes; }
    size_t room() const {
        size_t free = 0, total = 0;
        BENCH_CUDA(cudaMemGetInfo(&free, &total));
        return free / 4 * 3;
    }
};

/* ---- the rows of a shape -------------------------------------------------------------------------------------------------- */

/* What is benchmarked of a format: bits of grid and ssvq, codebooks of vq. */
struct gemv_kind {
    rq_tile_kind kind;
    int bits;
    const bench_book *book;
};
static std::vector<gemv_kind> kinds_of(const gemv_options &o) {
    std::vector<gemv_kind> all;
    const auto wanted = [&](const char *name) { return o.format == "all" || o.format == name; };
    for (int bits : o.bits)
        if (wanted("grid")) all.push_back({RQ_TILE_GRID, bits, nullptr});
    for (int bits : o.bits)
        if (wanted("ssvq") && bits <= 3) all.push_back({RQ_TILE_SSVQ, bits, nullptr});
    for (int i = 0; i < o.books.n; ++i)
        if (wanted("vq")) all.push_back({RQ_TILE_VQ, 0, &o.books.at[i]});
    return all;
}

/* Scales a row; with vectors down the rows, of columns instead, as VPTQ has them. */
static std::string describe_vq(rq_cuda_gemv_desc &d, const gemv_options &o, const bench_book &b) {
    d.vec_len = b.vec_len, d.vec_out = b.vec_out, d.n_stage = b.n_stage;
    for (int s = 0; s < b.n_stage; ++s) d.n_codes[s] = (int64_t)1 << b.code_bits[s];
    d.group = d.n_in, d.n_book = 1, d.book_cols = d.n_in, d.no_scales = d.columns = b.vec_out;
    d.n_outlier = (int)std::min<int64_t>(o.outliers, d.n_in);
    return std::string(b.name) + "-o" + std::to_string(d.n_outlier);
}

static gemv_row make_row(const context &c, int shape, const gemv_kind &k, int n_tok) {
    const gemv_options &o = c.o;
    const rq_tile_kind kind = k.kind;
    const int bits = k.bits;
    gemv_row r;
    rq_cuda_gemv_desc &d = r.desc = rq_cuda_gemv_desc_default();
    char format[64];
    r.model = o.shapes.at[shape].model, r.layer = o.shapes.at[shape].shape.layer;
    d.kind = kind, d.n_out = o.shapes.at[shape].shape.n_out, d.n_in = o.shapes.at[shape].shape.n_in, d.n_tok = n_tok;
    d.act = o.bf16 ? RQ_ACT_BF16 : RQ_ACT_F16, d.x_s8 = o.x_s8;
    d.bias = d.residual = d.early_launch = 0;
    if (kind == RQ_TILE_GRID) {
        d.bits = bits, d.zeros = !o.sym;
        d.group = o.group == 0 || o.group > d.n_in ? d.n_in : o.group;
        snprintf(format, sizeof format, "grid%d-%s%s", bits,
                 d.group == d.n_in ? "row" : ("g" + std::to_string(d.group)).c_str(), o.sym ? "" : "-z");
    } else if (kind == RQ_TILE_VQ) {
        snprintf(format, sizeof format, "%s", describe_vq(d, o, *k.book).c_str());
    } else { /* scale and codebook a matrix: what experiments found best */
        d.vec_len = bits == 2 ? 8 : 4, d.group = d.n_in, d.n_book = 1, d.book_cols = d.n_in, d.book_u8 = !o.book_f16;
        d.n_outlier = (int)std::min<int64_t>(o.outliers, d.n_in);
        d.code_bits = o.code_bits;
        const std::string book = o.code_bits > 8 ? "-k" + std::to_string(1 << o.code_bits) : "";
        snprintf(format, sizeof format, "ssvq%d%s-%s-o%d", bits, book.c_str(), o.book_f16 ? "f16" : "u8", d.n_outlier);
    }
    r.format = format;
    r.t = gemv_layout(d);
    return r;
}
static bool passes(const gemv_options &o, const gemv_row &r) {
    bool any = o.filter.empty();
    for (const std::string &f : o.filter) any = any || r.name().find(f) != std::string::npos;
    return any;
}

/* ---- comparison with an earlier run --------------------------------------------------------------------------------------- */

/* The change in percent: of the cold time; in the simulator the worst of what a kernel takes. */
static void compare(context &c, const bench_record &record) {
    static const char *const same[] = {"gpu",   "n_out", "n_in", "format",   "bits",     "group",
                                       "n_tok", "act",   "sym",  "codebook", "outliers", "variant"};
    static const char *const counted[] = {"warp_ins", "ld_sectors", "st_sectors", "shared_ld_waves", "shared_st_waves"};
    for (const gemv_old_record &old : c.old) {
        const auto old_value = [&](const char *key) {
            const auto at = old.find(key);
            return at == old.end() ? std::string("null") : at->second;
        };
        bool equal = true;
        for (const char *key : same) equal = equal && old_value(key) == record.value(key);
        double worst = -100;
        bool found = false;
        const auto take = [&](const char *key) {
            const double was = atof(old_value(key).c_str()), is = atof(record.value(key).c_str());
            if (!equal || was <= 0) return;
            found = true, worst = std::max(worst, 100 * (is / was - 1));
        };
        if (c.simulated)
            for (const char *key : counted) take(key);
        else
            take("t_cold_med_us");
        if (!found) continue;
        const bool slower = c.o.fail_if_slower >= 0 && worst > 100 * c.o.fail_if_slower;
        printf("  %+.1f %% to the earlier run%s", worst, slower ? " SLOWER" : "");
        ++c.compared, c.slower += slower;
        return;
    }
    printf("  not in the earlier run");
    ++c.unknown;
}

/* ---- one row -------------------------------------------------------------------------------------------------------------- */

static void add_to_step(context &c, int shape, const gemv_row &r, double us, double cublas_us) {
    const int blocks = c.o.shapes.at[shape].n_layer;
    if (!blocks) return;
    const std::string key = r.model + ", " + r.format + ", " + std::to_string(r.desc.n_tok) + " tokens";
    c.step_us[key].first += us, c.step_us[key].second += cublas_us;
    ++c.step_layers[key], c.step_blocks[key] = blocks;
}

static void count(context &c, const gemv_row &r, gemv_run &run, bench_record &record) {
    c.counts->begin();
    run.run(0);
    BENCH_CUDA(cudaStreamSynchronize(c.stream));
    std::map<std::string, double> sums = c.counts->end();
    const gemv_counted d = gemv_derive(r, sums);
    gemv_print_counts(d, run.plan.most);
    gemv_record_counts(record, d, sums);
}

static bool supports(const rq_cuda_gemv_desc &d, rq_linear_path path, const char **why) {
    const rq_cuda_linear_desc l = gemv_linear(d, path);
    return rq_cuda_linear_supports(&l, why) == RQ_OK;
}

/* False when the results after all the launches are not those that were checked. */
static bool time_it(context &c, int shape, const gemv_row &r, gemv_run &run, double cublas_us, bench_record &record) {
    std::unique_ptr<gemv_run> early;
    rq_cuda_gemv_desc d = r.desc;
    d.early_launch = 1;
    if (c.device.prop.major >= 9 && r.path == RQ_LINEAR_GEMV && supports(d, r.path, nullptr))
        early.reset(new gemv_run(d, r.path, run.weights(), c.stream));
    const gemv_times t = c.stopwatch->measure(run, early.get());
    if (!run.intact(run) || (early && !early->intact(run))) return false;
    if (c.o.check) return true;
    gemv_print_times(r, t, c.ceilings, cublas_us);
    gemv_record_times(record, r, t, c.ceilings, cublas_us);
    const double unknown = std::nan(""); /* null */
    const int mhz = c.clocks->sm_mhz(), celsius = c.clocks->celsius();
    record.number("clock_sm_mhz", mhz < 0 ? unknown : mhz).number("temp", celsius < 0 ? unknown : celsius);
    add_to_step(c, shape, r, t.cold.med_us, cublas_us);
    return true;
}

static bool failed(context &c, const std::string &why) {
    printf("  CHECK FAILED: %s\n", why.c_str());
    ++c.failed;
    return false;
}

static bool one_row(context &c, int shape, const gemv_row &r, const gemv_weights &weights, double cublas_us) {
    gemv_run run(r.desc, r.path, weights, c.stream);
    gemv_print_start(r);
    fflush(stdout);
    const gemv_run::verdict v = run.check();
    ++c.rows;
    if (!v.ok) return failed(c, v.why);
    bench_record record = gemv_record(r, c.device, c.simulated, c.o.flags, c.git);
    gemv_record_check(record, v, run.plan);
    const bool chosen = (run.plan.gemv_us <= run.plan.dequantize_us) == (r.path == RQ_LINEAR_GEMV);
    record.truth("chosen", chosen);
    /* With --check a rehearsal, of the GEMV for one number of tokens. */
    const bool timed = c.o.check ? r.path != RQ_LINEAR_GEMV || r.desc.n_tok == c.o.tokens.front() : !c.simulated;
    if (!timed && !c.o.check) count(c, r, run, record);
    if (timed && !time_it(c, shape, r, run, cublas_us, record))
        return failed(c, "after launches in graphs the results are others");
    if (c.o.check) {
        printf("  checked: relative error %.1e\n", v.rel_fro);
        return true;
    }
    if (!c.o.old_path.empty()) compare(c, record);
    printf("%s\n", chosen && r.desc.n_tok > 16 ? "  chosen" : "");
    fflush(stdout);
    c.output->add(record);
    return true;
}

/* ---- sweeps --------------------------------------------------------------------------------------------------------------- */

/* weights: made when the first row wants them. */
static void sweep_row(context &c, int shape, const gemv_row &r, std::unique_ptr<gemv_weights> *weights,
                      double cublas_us) {
    const char *why = "";
    if (!passes(c.o, r)) return;
    if (c.o.dry_run) {
        gemv_print_start(r);
        gemv_print_dry(r, c.o.rate);
    } else if (!supports(r.desc, r.path, &why)) {
        gemv_print_start(r);
        printf("  left out: %s\n", why);
        ++c.refused;
    } else {
        /* In the simulator two copies, for the check; otherwise what makes them cold. */
        if (!*weights) {
            const size_t all = c.simulated || c.o.check ? (size_t)r.t.bytes : c.copies();
            weights->reset(new gemv_weights(r.desc, all, c.room(), c.stream));
        }
        one_row(c, shape, r, **weights, cublas_us);
    }
}

static void sweep_format(context &c, int shape, const gemv_kind &kind, const std::map<int, double> &cublas_us) {
    std::unique_ptr<gemv_weights> weights;
    for (int n_tok : c.o.tokens) {
        gemv_row r = make_row(c, shape, kind, n_tok);
        const auto at = cublas_us.find(n_tok);
        const double us = at == cublas_us.end() ? 0 : at->second;
        if (c.o.takes(RQ_LINEAR_GEMV, n_tok, c.simulated)) sweep_row(c, shape, r, &weights, us);
        r.path = RQ_LINEAR_DEQUANTIZE, r.format += "/dense";
        if (c.o.takes(RQ_LINEAR_DEQUANTIZE, n_tok, c.simulated)) sweep_row(c, shape, r, &weights, us);
    }
}

/* cuBLAS by tokens; empty where there is none or nobody asked. */
static std::map<int, double> baseline(context &c, int shape) {
    std::map<int, double> us;
#ifdef RQ_HAVE_CUBLAS
    if (!c.o.cublas || c.o.dry_run || (c.simulated && !c.o.check)) return us;
    const bench_shape &s = c.o.shapes.at[shape].shape;
    bool any = c.o.filter.empty(); /* some row of this shape passes the filter */
    for (const gemv_kind &kind : kinds_of(c.o))
        for (int n_tok : c.o.tokens) any = any || passes(c.o, make_row(c, shape, kind, n_tok));
    if (!any) return us;
    const int most_tok = *std::max_element(c.o.tokens.begin(), c.o.tokens.end());
    gemv_cublas blas(s.n_out, s.n_in, most_tok, c.o.check ? 0 : c.copies(), c.room(), c.stream);
    for (int n_tok : c.o.tokens) {
        const gemv_cublas::answer a = blas.run(n_tok, c.o.check ? 0 : c.o.seconds);
        if (!a.ok) printf("cuBLAS, %lldx%lld, %d tokens: CHECK FAILED\n", (long long)s.n_out, (long long)s.n_in, n_tok);
        if (a.ok && c.o.check)
            printf("cuBLAS, %lldx%lld, %d tokens: checked\n", (long long)s.n_out, (long long)s.n_in, n_tok);
        c.failed += !a.ok;
        us[n_tok] = a.us;
    }
#else
    (void)c, (void)shape;
#endif
    return us;
}

static void sweep(context &c) {
    for (int shape = 0; shape < c.o.shapes.n; ++shape) {
        const std::map<int, double> cublas_us = baseline(c, shape);
        for (const gemv_kind &kind : kinds_of(c.o)) sweep_format(c, shape, kind, cublas_us);
    }
}

/* All linear layers of one decoding step, where all four of a block were measured. */
static void print_steps(const context &c) {
    for (const auto &one : c.step_us) {
        const int blocks = c.step_blocks.at(one.first);
        if (c.step_layers.at(one.first) != 4) continue;
        printf("%s: linear layers of a step %.3f ms", one.first.c_str(), one.second.first * blocks * 1e-3);
        if (one.second.second > 0)
            printf(", cuBLAS fp16 %.3f ms, x %.2f", one.second.second * blocks * 1e-3,
                   one.second.second / one.second.first);
        printf("\n");
    }
}

/* ---- all of it -------------------------------------------------------------------------------------------------------------- */

static int list() {
    printf(
        "formats: grid with 2, 3, 4, 8 bits; ssvq with 2 (vectors of 8) and 3 bits (vectors of 4); vq with --books\n");
    bench_list_shapes();
    return 0;
}

static std::string git_commit() {
    char text[64] = "";
    if (const char *given = getenv("RQ_COMMIT")) return given;
    FILE *f = popen("git rev-parse --short=12 HEAD 2>/dev/null", "r");
    if (f && !fgets(text, sizeof text, f)) text[0] = 0;
    if (f) pclose(f);
    return std::string(text, strcspn(text, "\n"));
}

static void prepare(context &c) {
    c.device = bench_look();
    c.simulated = gemv_counts::simulated(c.device.prop.name);
    c.git = git_commit();
    BENCH_CUDA(cudaStreamCreate(&c.stream));
    printf("%s, sm_%d%d, %d multiprocessors, L2 %.0f MiB\n", c.device.prop.name, c.device.prop.major,
           c.device.prop.minor, c.device.prop.multiProcessorCount, (double)c.device.l2_bytes / (1 << 20));
    if (c.simulated && !c.o.check) return;
    c.stopwatch.reset(new gemv_stopwatch(c.stream, c.device.prop.multiProcessorCount, c.o.check ? 0 : c.o.seconds));
    if (c.o.check) return;
    c.clocks.reset(new bench_clocks);
    c.ceilings = gemv_measure_ceilings(c.device, c.stream);
    printf("copy %.0f GB/s (read + written), read %.0f GB/s\n", c.ceilings.copy_gbs, c.ceilings.read_gbs);
}

static void print_head(const context &c) {
    gemv_print_head();
    if (c.o.check)
        printf("\n");
    else if (c.o.dry_run)
        gemv_print_dry_head();
    else if (c.simulated)
        gemv_print_count_head();
    else
        gemv_print_time_head();
}

static int finish(context &c) {
    /* A comparison that compared nothing must not pass, nor a run that checked nothing. */
    const bool vain = (c.o.fail_if_slower >= 0 && !c.compared) || (!c.rows && !c.refused);
    if (c.failed) fprintf(stderr, "bench_gemv: %d checks failed; these rows were not measured\n", c.failed);
    if (c.unknown) fprintf(stderr, "bench_gemv: %d rows are not in the earlier run\n", c.unknown);
    if (c.slower) fprintf(stderr, "bench_gemv: %d rows are slower than before\n", c.slower);
    if (vain) fprintf(stderr, "bench_gemv: nothing was %s\n", c.rows ? "compared" : "run");
    c.stopwatch.reset();
    BENCH_CUDA(cudaStreamDestroy(c.stream));
    return c.failed || c.slower || vain;
}

int main(int argc, char **argv) {
    static context c; /* static: exit() ends it too, and the file of counts goes */
    c.o = gemv_parse(argc, argv);
    if (c.o.list) return list();
    if (!c.o.old_path.empty() && !gemv_load_records(c.o.old_path, &c.old)) {
        fprintf(stderr, "bench_gemv: %s: no records in it\n", c.o.old_path.c_str());
        return 4;
    }
    if (c.o.dry_run) {
        print_head(c);
        sweep(c);
        return 0;
    }
    if (!c.o.check) c.counts.reset(new gemv_counts);
    prepare(c);
    c.output.reset(new bench_output(c.o.json, c.o.csv));
    print_head(c);
    sweep(c);
    print_steps(c);
    return finish(c);
}
