/* SPDX-License-Identifier: Apache-2.0 */
/* How many products of bytes a core can add up in a second: a loop of vpdpbusd on registers alone, enough of them in flight. */
#include "gemm_peak.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum { SUMS = 24, TURNS = 4096 };

#define ADD(k)        __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(s##k) : "v"(w), "v"(x));
#define FOLD(k)       all = _mm512_add_epi32(all, s##k);
#define START(k)      __m512i s##k = _mm512_set1_epi32(k);
#define TIMES_8(f, t) f(t##0) f(t##1) f(t##2) f(t##3) f(t##4) f(t##5) f(t##6) f(t##7)
#define TIMES_24(f)   TIMES_8(f, 1) TIMES_8(f, 2) TIMES_8(f, 3)

__attribute__((target("avx512f,avx512vnni"))) static int32_t turn(int32_t seed) {
    const __m512i w = _mm512_set1_epi32(seed | 0x01020304), x = _mm512_set1_epi32(seed | 0x05060708);
    __m512i all = _mm512_setzero_si512();
    TIMES_24(START)
    for (int i = 0; i < TURNS; ++i) {
        /* Written out: from an array in a loop gcc 12 keeps the sums in memory, and measures that. */
        TIMES_24(ADD)
    }
    TIMES_24(FOLD)
    return _mm512_cvtsi512_si32(all);
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
