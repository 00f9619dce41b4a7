/* SPDX-License-Identifier: Apache-2.0 */
/* A check of the compiler, not of our code. gcc 12.2 vectorises some products of bytes for VNNI as if the signed factor were
 * unsigned (wrong with -O2 -mavx512vnni and with -O3 -march=native). The flags of host/ leave VNNI out; this test compiles such
 * loops with each set of them and compares with sums that no vectoriser touches. Add an instruction set to those flags, and
 * this says whether the compiler still counts right. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "int8_dot.h"

enum { MAX_N = 300 };

static void check(const int8_dots *f) {
    uint8_t a[MAX_N];
    int8_t b[MAX_N];
    for (int k = 0; k < MAX_N; ++k) {
        a[k] = (uint8_t)(k * 37 + 201);
        b[k] = (int8_t)((k * 53 + 7) % 256 - 128);
    }
    int sum_signed = 0, sum_nibble = 0;
    for (volatile int n = 0; n <= MAX_N; n = n + 1) { /* volatile: summed one by one */
        assert_int_equal(f->signed_any(a, b, n), sum_signed);
        assert_int_equal(f->nibble_any(a, b, n), sum_nibble);
        if (n == 32) assert_int_equal(f->signed_32(a, b), sum_signed);
        if (n == 64) assert_int_equal(f->nibble_64(a, b), sum_nibble);
        if (n == MAX_N) break;
        int x = a[n] > 127 ? a[n] - 256 : a[n];
        sum_signed += x * b[n];
        sum_nibble += (a[n] % 16 - 8) * b[n];
    }
}

static void plain_flags(void **state) {
    (void)state;
    check(&int8_dots_plain);
}

static void loop_flags(void **state) {
    (void)state;
    check(&int8_dots_loop);
}

#if defined(__x86_64__)
static void avx2_flags(void **state) {
    (void)state;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        print_message("skip avx2_flags: this CPU has no AVX2\n");
        skip();
    }
    check(&int8_dots_avx2);
}

static void avx512_flags(void **state) {
    (void)state;
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512dq")) {
        print_message("skip avx512_flags: this CPU has no AVX-512\n");
        skip();
    }
    check(&int8_dots_avx512);
}

static void avx512vbmi_flags(void **state) {
    (void)state;
    if (!__builtin_cpu_supports("avx512vbmi") || !__builtin_cpu_supports("avx512vl")) {
        print_message("skip avx512vbmi_flags: this CPU has no AVX-512 with VBMI\n");
        skip();
    }
    check(&int8_dots_avx512vbmi);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_flags),
        cmocka_unit_test(loop_flags),
#if defined(__x86_64__)
        cmocka_unit_test(avx2_flags),
        cmocka_unit_test(avx512_flags),
        cmocka_unit_test(avx512vbmi_flags),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
