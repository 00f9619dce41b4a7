/* SPDX-License-Identifier: Apache-2.0 */
/* How many products of bytes a core can add up in a second: a loop of vpdpbusd on registers alone, enough of them in flight. */
#include "gemm_peak.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum { SUMS = 24, TURNS = 4096 };

__attribute__((target("avx512f,avx512vnni"))) static int32_t turn(int32_t seed) {
    __m512i sum[SUMS], w = _mm512_set1_epi32(seed | 0x01020304);
    const __m512i x = _mm512_set1_epi32(seed | 0x05060708);
    for (int k = 0; k < SUMS; ++k) sum[k] = _mm512_set1_epi32(k);
    for (int i = 0; i < TURNS; ++i) {
#pragma GCC unroll 32
        for (int k = 0; k < SUMS; ++k) {
            sum[k] = _mm512_dpbusd_epi32(sum[k], w, x);
            __asm__("" : "+v"(sum[k])); /* each one is made */
        }
    }
    for (int k = 1; k < SUMS; ++k) sum[0] = _mm512_add_epi32(sum[0], sum[k]);
    return _mm512_cvtsi512_si32(sum[0]);
}

static void run(void *arg, int64_t i) { *(volatile int32_t *)arg = turn((int32_t)i); }

double bench_vnni_peak(double seconds) {
    bench_times t;
    int32_t result;
    bench_time(&t, run, &result, seconds, 10);
    return 2.0 * 64 * SUMS * TURNS / t.p20_us * 1e-3;
}
#else
double bench_vnni_peak(double seconds) {
    (void)seconds;
    return 0;
}
#endif
