/* SPDX-License-Identifier: Apache-2.0 */
/* The AVX2 decoders against the plain ones, bit for bit, on random bytes (NaN matches NaN), at odd addresses; half
 * precision against all 65536 values computed from the definition. The plain ones are compared with the gguf package in
 * test_readers_gguf.c. Also the speed, printed and not asserted. */
#include <math.h>

#include "readers_build.h"

static uint64_t next_random(uint64_t *x) {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

static bool same(float a, float b) { return rq_f32_bits(a) == rq_f32_bits(b) || (isnan(a) && isnan(b)); }

static const rq_dtype block_types[] = {RQ_F64, RQ_F32, RQ_F16, RQ_BF16, RQ_Q4_0, RQ_Q4_1, RQ_Q8_0, RQ_Q4_K, RQ_Q6_K};
#define N_TYPES (sizeof block_types / sizeof *block_types)

static void twins_agree(void **state) {
    (void)state;
    if (!rq_dequant_has_avx2()) {
        print_message("skip: this CPU has no AVX2 and F16C\n");
        skip();
    }
    uint64_t seed = 88172645463325252u;
    for (size_t k = 0; k < N_TYPES; ++k) {
        rq_dtype d = block_types[k];
        rq_dequant_fn plain = rq_dequant_plain(d), twin = rq_dequant_avx2(d);
        if (!twin) continue;
        for (int64_t n = 0; n < 40; ++n) {
            int64_t bytes_n = n * rq_dtype_block_bytes(d), elems = n * rq_dtype_block(d);
            uint8_t *raw = malloc((size_t)bytes_n + 1);
            float *a = malloc((size_t)elems * 4 + 4), *b = malloc((size_t)elems * 4 + 4);
            for (int64_t i = 0; i < bytes_n + 1; ++i) raw[i] = (uint8_t)next_random(&seed);
            a[elems] = b[elems] = 12345.0f; /* a guard after the end */
            plain(raw + 1, n, a);           /* odd address */
            twin(raw + 1, n, b);
            for (int64_t i = 0; i < elems; ++i) {
                if (!same(a[i], b[i])) {
                    fail_msg("%s[%lld]: %.9g, twin %.9g", rq_dtype_name(d), (long long)i, (double)a[i], (double)b[i]);
                }
            }
            assert_true(a[elems] == 12345.0f && b[elems] == 12345.0f);
            free(raw);
            free(a);
            free(b);
        }
    }
}

static void all_halves(void **state) {
    (void)state;
    uint16_t *bits = malloc(65536 * sizeof *bits);
    float *f = malloc(65536 * sizeof *f);
    for (int i = 0; i < 65536; ++i) bits[i] = (uint16_t)i;
    for (int way = 0; way < 2; ++way) {
        if (way == 1 && !rq_dequant_has_avx2()) break;
        (way ? rq_dequant_avx2(RQ_F16) : rq_dequant_plain(RQ_F16))((const uint8_t *)bits, 65536, f);
        for (int i = 0; i < 65536; ++i) {
            int exponent = i >> 10 & 31, mantissa = i & 1023;
            double v = exponent == 0    ? ldexp(mantissa, -24)
                       : exponent == 31 ? (mantissa ? NAN : INFINITY)
                                        : ldexp(1024 + mantissa, exponent - 25);
            if (i & 0x8000) v = -v;
            if (!same(f[i], (float)v)) fail_msg("half %04x: %.9g, not %.9g", i, (double)f[i], v);
        }
        (way ? rq_dequant_avx2(RQ_BF16) : rq_dequant_plain(RQ_BF16))((const uint8_t *)bits, 65536, f);
        for (int i = 0; i < 65536; ++i) assert_int_equal(rq_f32_bits(f[i]), (uint32_t)i << 16);
    }
    free(bits);
    free(f);
}

static void types_and_sizes(void **state) {
    (void)state;
    assert_string_equal(rq_dtype_name(RQ_Q4_K), "Q4_K");
    assert_string_equal(rq_dtype_name(RQ_N_DTYPES), "unknown");
    assert_int_equal(rq_dtype_block(RQ_Q6_K), 256);
    assert_int_equal(rq_dtype_block(RQ_Q4_1), 32);
    assert_int_equal(rq_dtype_block(RQ_I64), 1);
    for (int d = 0; d < RQ_N_DTYPES; ++d) {
        assert_true(rq_dtype_block((rq_dtype)d) > 0 && rq_dtype_block_bytes((rq_dtype)d) > 0);
        assert_string_not_equal(rq_dtype_name((rq_dtype)d), "unknown");
    }
    assert_true(rq_dtype_is_real(RQ_Q8_0));
    assert_false(rq_dtype_is_real(RQ_I8));
    assert_false(rq_dtype_is_real(RQ_F8_E4M3));
}

static void speed(void **state) {
    (void)state;
    const int64_t elems = 1 << 14; /* stays in the cache: the decoder is timed, not the memory */
    uint8_t *raw = calloc((size_t)elems, 8);
    float *f = calloc((size_t)elems, sizeof *f);
    for (size_t k = 0; k < N_TYPES; ++k) {
        rq_tensor t = {.name = "t", .dtype = block_types[k], .rank = 1, .shape = {elems}, .data = raw};
        double best = 1e9;
        for (int repeat = 0; repeat < 50; ++repeat) {
            double t0 = rq_seconds();
            assert_int_equal(rq_tensor_f32(&t, f), RQ_OK);
            double dt = rq_seconds() - t0;
            best = dt < best ? dt : best;
        }
        print_message("%-5s %6.2f G elements/s\n", rq_dtype_name(t.dtype), 1e-9 * (double)elems / best);
    }
    free(raw);
    free(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(twins_agree),
        cmocka_unit_test(all_halves),
        cmocka_unit_test(types_and_sizes),
        cmocka_unit_test(speed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
