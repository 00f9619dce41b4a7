/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of bench_gemv on the CPU. That of the CUDA side has the same flags (gemv_cuda_options.h). */
#ifndef BENCH_GEMV_OPTIONS_H
#define BENCH_GEMV_OPTIONS_H

#include "harness_operand.h"
#include "shapes.h"
#include "vq_books.h"

typedef struct gemv_options {
    const char *format, *impl, *filter, *json_path, *csv_path, *baseline_path;
    int64_t bits[4], tokens[16], group /* -1: not given */, n_outlier;
    int n_bits, n_tokens, threads;
    bool sym, f32_scales, f16_magnitudes, sgemv, dry_run, cpu_clock;
    double seconds, fail_if_slower; /* fraction; negative: off */
    bench_shapes shapes;
    bench_books books;
    char flags[512];
} gemv_options;

/* 0: go on; otherwise the exit code + 1. */
int gemv_parse(gemv_options *o, int argc, char **argv);

#endif
