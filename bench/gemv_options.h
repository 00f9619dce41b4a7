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

/* With --device cuda or sim among the arguments: replaces this program by the bench_gemv_cuda that was built for a GPU (gpu/) or
 * for the simulator (sim/), in the folder of this one; cuda takes the simulator's where there is no other. Returns 0 where
 * there is nothing to hand over, 2 (with a sentence to stderr) where that program was not built. */
int gemv_hand_over(char **argv);

#endif
