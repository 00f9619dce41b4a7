/* SPDX-License-Identifier: Apache-2.0 */
/* What is known of a row, as a line of the table and as a record. docs/bench.md explains the columns. */
#ifndef BENCH_GEMV_CUDA_TABLE_H
#define BENCH_GEMV_CUDA_TABLE_H
#include <map>

#include "gemv_cuda_times.h"

struct gemv_row {
    std::string model, layer, format; /* grid4-g128-zero, ssvq2-u8-o8, vq8x256+256-o8 */
    rq_cuda_gemv_desc desc;
    rq_linear_path path = RQ_LINEAR_GEMV; /* dense weights: "/dense" behind the format */
    rq_tile_layout t;
    double weights() const { return (double)desc.n_out * (double)desc.n_in; }
    double bpw() const { return 8.0 * (double)t.bytes / weights(); }
    /* Read and written: the matrix with all its side data and padding, once in 16 tokens, x, y. Or the matrix once, dense weights written
     * and read, x, y. */
    double bytes() const {
        const double turns = path == RQ_LINEAR_GEMV ? (double)((desc.n_tok + 15) / 16) : 1;
        const double dense = path == RQ_LINEAR_GEMV ? 0 : 4.0 * weights();
        return turns * (double)t.bytes + dense +
               (double)(desc.n_tok * (desc.n_in * (desc.x_s8 ? 1 : 2) + 2 * desc.n_out));
    }
    double fp16_bytes() const { return 2.0 * weights() + 2.0 * (double)(desc.n_tok * (desc.n_in + desc.n_out)); }
    std::string name() const {
        return model + " " + layer + " " + std::to_string(desc.n_out) + "x" + std::to_string(desc.n_in) + " " + format +
               " t=" + std::to_string(desc.n_tok);
    }
};

static inline void gemv_print_start(const gemv_row &r) {
    printf("%-16s %-8s %6lld %6lld  %-20s %4lld %7.3f", r.model.c_str(), r.layer.c_str(), (long long)r.desc.n_out,
           (long long)r.desc.n_in, r.format.c_str(), (long long)r.desc.n_tok, r.bpw());
}
static inline void gemv_print_head() {
    printf("%-16s %-8s %6s %6s  %-20s %4s %7s", "model", "layer", "n_out", "n_in", "format", "t", "bits/w");
}

/* ---- --dry-run */
static inline void gemv_print_dry_head() {
    printf(" %10s %10s %12s %12s %7s\n", "MB", "fp16 MB", "floor us", "fp16 us", "ratio");
}
static inline void gemv_print_dry(const gemv_row &r, double gbs) {
    printf(" %10.3f %10.3f %12.2f %12.2f %7.2f\n", r.bytes() * 1e-6, r.fp16_bytes() * 1e-6, r.bytes() / gbs * 1e-3,
           r.fp16_bytes() / gbs * 1e-3, r.fp16_bytes() / r.bytes());
}

/* ---- the simulator */
static inline void gemv_print_count_head() {
    printf(" %8s %8s %8s %7s %7s %7s %8s %6s %5s\n", "asked", "sectors", "ld conf", "st conf", "ins/w", "shB/w",
           "mma/256w", "blocks", "split");
}
struct gemv_counted {
    double asked, sectors; /* bytes of all blocks together / bytes of the row: what is read again comes from the L2 */
    double ld_conflict, st_conflict; /* wavefronts of shared memory / those without a conflict */
    double ins, shared; /* lane instructions and bytes of shared memory a weight, as kernels are budgeted */
    double mma;         /* mma a 16 x 16 piece */
};
static inline gemv_counted gemv_derive(const gemv_row &r, std::map<std::string, double> &c) {
    const auto ratio = [&](const char *a, const char *b) { return c[b] > 0 ? c[a] / c[b] : 1; };
    return {(c["ld_bytes"] + c["st_bytes"] + c["bulk_bytes"]) / r.bytes(),
            ((c["ld_sectors"] + c["st_sectors"]) * 32 + c["bulk_bytes"]) / r.bytes(),
            ratio("shared_ld_waves", "shared_ld_ideal"),
            ratio("shared_st_waves", "shared_st_ideal"),
            c["warp_ins"] * 32 / r.weights(),
            (c["shared_ld_waves"] + c["shared_st_waves"]) * 128 / r.weights(),
            c["mma"] * 256 / r.weights()};
}
static inline void gemv_print_counts(const gemv_counted &d, const rq_cuda_gemv_plan &p) {
    printf(" %8.3f %8.3f %8.3f %7.3f %7.3f %7.3f %8.3f %6d %5d", d.asked, d.sectors, d.ld_conflict, d.st_conflict,
           d.ins, d.shared, d.mma, p.blocks, p.split);
}
static inline void gemv_record_counts(bench_record &o, const gemv_counted &d, std::map<std::string, double> &c) {
    o.number("asked_of_bytes", d.asked).number("sectors_of_bytes", d.sectors);
    o.number("shared_ld_conflict", d.ld_conflict).number("shared_st_conflict", d.st_conflict);
    o.number("lane_ins_per_weight", d.ins)
        .number("shared_bytes_per_weight", d.shared)
        .number("mma_per_256_weights", d.mma);
    for (const auto &one : c) o.integer(one.first.c_str(), (long long)one.second);
}

/* ---- a GPU */
static inline void gemv_print_time_head() {
    printf(" %8s %8s %8s %8s %8s %8s %8s %6s %8s %6s %6s %8s %7s\n", "cold us", "p20", "p80", "graph", "launch", "warm",
           "pollut", "noise%", "GB/s", "%copy", "%read", "cublas", "xcublas");
}
static inline void gemv_print_optional(const char *format, const char *none, bool known, double value) {
    if (known)
        printf(format, value);
    else
        printf("%s", none);
}
static inline void gemv_print_times(const gemv_row &r, const gemv_times &t, const gemv_ceilings &c, double cublas_us) {
    const double gbs = r.bytes() / t.cold.med_us * 1e-3;
    printf(" %8.2f %8.2f %8.2f", t.cold.med_us, t.cold.p20_us, t.cold.p80_us);
    gemv_print_optional(" %8.2f", "        -", t.graph.samples > 0, t.graph.med_us);
    printf(" %8.2f %8.2f %8.2f %6.2f %8.1f %6.1f %6.1f", t.launch.med_us, t.warm.med_us, t.polluted.med_us,
           t.cold.noise_pct, gbs, 100 * gbs / c.copy_gbs, 100 * t.read.med_us / t.cold.med_us);
    gemv_print_optional(" %8.2f", "        -", cublas_us > 0, cublas_us);
    gemv_print_optional(" %7.2f", "       -", cublas_us > 0, cublas_us / t.cold.med_us);
}
static inline void gemv_record_times(bench_record &o, const gemv_row &r, const gemv_times &t, const gemv_ceilings &c,
                                     double cublas_us) {
    const double gbs = r.bytes() / t.cold.med_us * 1e-3, flops = 2 * r.weights() * (double)r.desc.n_tok;
    o.number("copy_gbs", c.copy_gbs).number("read_gbs", c.read_gbs);
    o.number("t_cold_med_us", t.cold.med_us).number("t_cold_p20_us", t.cold.p20_us);
    o.number("t_cold_p80_us", t.cold.p80_us).integer("cold_samples", t.cold.samples);
    o.number("noise_pct", t.cold.noise_pct);
    if (t.graph.samples)
        o.number("t_graph_med_us", t.graph.med_us);
    else
        o.none("t_graph_med_us");
    o.number("t_launch_med_us", t.launch.med_us).number("t_warm_med_us", t.warm.med_us);
    o.number("t_polluted_med_us", t.polluted.med_us).number("t_read_med_us", t.read.med_us);
    o.number("gbs_cold", gbs).number("pct_copy_gbs", 100 * gbs / c.copy_gbs);
    o.number("pct_read", 100 * t.read.med_us / t.cold.med_us).number("tops", flops / t.cold.med_us * 1e-6);
    if (cublas_us > 0)
        o.number("cublas_fp16_us", cublas_us).number("x_cublas", cublas_us / t.cold.med_us);
    else
        o.none("cublas_fp16_us").none("x_cublas");
}

/* ---- a record's beginning and end */
static inline bench_record gemv_record(const gemv_row &r, const bench_device &device, bool simulated,
                                       const std::string &flags, const std::string &git) {
    bench_record o;
    const rq_cuda_gemv_desc &d = r.desc;
    const bool grid = d.kind == RQ_TILE_GRID, vq = d.kind == RQ_TILE_VQ;
    std::string codebook = std::to_string(vq ? d.n_codes[0] : rq_tile_ssvq_codes(d.code_bits));
    if (vq && d.n_stage > 1) codebook += "+" + std::to_string(d.n_codes[1]);
    bench_record_device(o, device);
    o.text("git", git).text("flags", flags).text("device", simulated ? "sim" : "cuda");
    o.text("model", r.model).text("layer", r.layer).integer("n_out", d.n_out).integer("n_in", d.n_in);
    o.text("format", grid ? "grid" : vq ? "vq" : "ssvq").text("variant", r.format);
    o.number("bits", 8.0 * (double)r.t.tile_bytes / (RQ_TILE_ROWS * RQ_TILE_COLS));
    o.integer("group", d.group)
        .integer("n_tok", d.n_tok)
        .text("act", d.x_s8                ? "int8"
                     : d.act == RQ_ACT_F16 ? "f16"
                                           : "bf16");
    if (grid)
        o.truth("sym", !d.zeros).none("vec_len").none("codebook").none("outliers");
    else
        o.none("sym")
            .integer("vec_len", d.vec_len)
            .text("codebook", codebook + (d.book_u8 ? " u8" : " f16"))
            .integer("outliers", d.n_outlier);
    o.number("bpw", r.bpw()).number("bytes", r.bytes()).number("flops", 2 * r.weights() * (double)d.n_tok);
    return o;
}
static inline void gemv_record_check(bench_record &o, const gemv_run::verdict &v, const rq_cuda_linear_plan &l) {
    const rq_cuda_gemv_plan &p = l.most; /* of dense weights: nothing */
    o.text("path", l.path == RQ_LINEAR_GEMV ? "gemv" : "dequantize").integer("chunks", l.chunk ? l.launches : 0);
    o.number("model_us_gemv", l.gemv_us).number("model_us_dequantize", l.dequantize_us);
    o.text("kernel", l.kernel).integer("ctas", p.blocks).integer("threads", p.threads).integer("split_k", p.split);
    o.integer("smem", (long long)p.shared_bytes).number("plan_bytes", l.bytes).text("ref", "double");
    o.number("rel_fro_err", v.rel_fro).number("max_abs_err", v.max_abs).truth("exact_decode_ok", v.exact_decode);
    o.truth("deterministic_ok", v.deterministic);
}
#endif
