/* SPDX-License-Identifier: Apache-2.0 */
/* cudatest.h itself, with malloc in the device's place: what is overwritten or wrong is seen, what is right is not; half and
 * bfloat16 are converted to the nearest; a record has the bytes that it should. */
#define RQ_TEST_DIRECT 1
#include "cudatest.h"

#include <unistd.h>

void *gs_mem_alloc(size_t bytes) { return malloc(bytes); }
bool gs_mem_free(void *p) {
    free(p);
    return true;
}

static int g_wrong;
static void must(bool ok, const char *what) {
    if (ok) return;
    printf("test_harness: %s\n", what);
    g_wrong++;
}
/* How many checks failed since the last call; the header's count is set back. */
static long failures(void) {
    long n = rq_test.failures;
    rq_test.failures = 0;
    return n;
}

static void test_guards(void) {
    uint8_t *p = rq_device_buffer(100), seen[100];
    rq_device_read(seen, p, 100);
    must(failures() == 0, "an untouched buffer has whole guards");
    must(seen[0] == RQ_POISON && seen[99] == RQ_POISON, "a buffer is poisoned");
    for (int at = -RQ_GUARD; at < 256 + RQ_GUARD; ++at) {
        if (at >= 0 && at < 100) continue;
        uint8_t old = p[at];
        p[at] ^= 1;
        rq_device_read(seen, p, 100);
        must(failures() == 1, "one byte beside a buffer is seen");
        p[at] = old;
    }
    rq_device_free(p);
    must(failures() == 0, "whole guards at the end");
    p = rq_device_copy(seen, 100);
    p[-1] = 0;
    rq_device_free_all();
    must(failures() == 1, "a broken guard at the end");
}

static void test_expectations(void) {
    EXPECT(1 == 1);
    EXPECT_EQ(-1, -1L);
    EXPECT_NEAR(1.0f, 1.25, 0.25);
    EXPECT_NEAR(NAN, NAN, 0);
    EXPECT_NEAR(INFINITY, INFINITY, 0);
    must(failures() == 0, "what is right is right");
    EXPECT(1 == 2);
    EXPECT_EQ(1, 2);
    EXPECT_EQ(0xffffffffu, -1);
    EXPECT_NEAR(1.0f, 1.26, 0.25);
    EXPECT_NEAR(NAN, 1, 9);
    EXPECT_NEAR(1, NAN, 9);
    EXPECT_NEAR(INFINITY, -INFINITY, 9);
    EXPECT_NEAR(INFINITY, 1, 9);
    must(failures() == 8, "what is wrong is wrong");
}

/* The bits of f as the nearer of the two neighbours next to it, the even one of two equally near. down: the bits of f cut off. */
static uint16_t nearest(float f, uint16_t down, float (*value)(uint16_t)) {
    uint16_t up = (uint16_t)(down + 1);
    double to_down = fabs((double)f - value(down)), to_up = fabs((double)value(up) - f);
    return to_down < to_up ? down : to_down > to_up ? up : down & 1 ? up : down;
}
static void test_formats(void) {
    must(rq_half_value(0x3c00) == 1 && rq_half_value(0xc200) == -3 && rq_half_value(1) == 0x1p-24f &&
             rq_half_value(0x7bff) == 65504 && rq_half_value(0xfc00) == -INFINITY && isnan(rq_half_value(0x7c01)),
         "values of half");
    must(rq_half_bits(65519) == 0x7bff && rq_half_bits(-65520) == 0xfc00 && rq_half_bits(NAN) == 0x7fff &&
             rq_half_bits(0x1p-25f) == 0 && rq_half_bits(-0x1.002p-25f) == 0x8001,
         "the ends of half");
    for (uint32_t h = 0; h < 65536; ++h) {
        float half = rq_half_value((uint16_t)h), bf16 = rq_bf16_value((uint16_t)h);
        if (half == half) EXPECT_EQ_AT(h, rq_half_bits(half), h);
        if (bf16 == bf16) EXPECT_EQ_AT(h, rq_bf16_bits(bf16), h);
    }
    rq_rng rng = {3};
    for (int i = 0; i < 1000000; ++i) {
        float f = rq_float_of_bits((rq_rand_u32(&rng) & 0x8effffffu) | 0x38000000u); /* normal numbers of half */
        if (fabsf(f) > 65504 || fabsf(f) < 0x1p-14f) continue;
        uint32_t bits = rq_bits_of_float(f), sign = bits >> 16 & 0x8000;
        uint16_t half = (uint16_t)(sign | (((bits & 0x7fffffff) >> 13) - (112 << 10)));
        EXPECT_EQ_AT(i, rq_half_bits(f), nearest(f, half, rq_half_value));
        EXPECT_EQ_AT(i, rq_bf16_bits(f), nearest(f, (uint16_t)(bits >> 16), rq_bf16_value));
    }
    must(failures() == 0, "half and bfloat16");
}

static void test_record(void) {
    char path[4096];
    const char *folder = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/test_harness.XXXXXX", folder ? folder : "/tmp");
    int fd = mkstemp(path);
    must(fd >= 0 && close(fd) == 0 && setenv("RQ_RECORD", path, 1) == 0, "a temporary file");
    const uint16_t data[2] = {0x3c00, 0x8001};
    rq_record("ab", RQ_F16, data, 2, 0.5);
    const uint8_t want[] = {'R', 'Q', 'R', '1', 9, 0, 0, 0, 2, 0, 0, 0,    0,    0,   0,   0, 2,    0, 0,
                            0,   0,   0,   0,   0, 0, 0, 0, 0, 0, 0, 0xe0, 0x3f, 'a', 'b', 0, 0x3c, 1, 0x80};
    uint8_t seen[sizeof want + 1];
    FILE *f = fopen(path, "rb");
    must(f && fread(seen, 1, sizeof seen, f) == sizeof want && memcmp(seen, want, sizeof want) == 0,
         "the bytes of a record");
    if (f) fclose(f);
    unlink(path);
}

int main(void) {
    unsetenv("RQ_EXACT");
    test_guards();
    test_expectations();
    test_formats();
    test_record();
    printf("test_harness: %d wrong\n", g_wrong);
    return g_wrong != 0;
}
