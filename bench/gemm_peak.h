/* SPDX-License-Identifier: Apache-2.0 */
/* The ceiling of bench_gemm. */
#ifndef BENCH_GEMM_PEAK_H
#define BENCH_GEMM_PEAK_H

#include "harness.h"

/* Gop/s (products and sums) of one thread, measured now on registers; call it where the CPU has AVX-512 VNNI. 0 on other architectures. */
double bench_vnni_peak(double seconds);

#endif
