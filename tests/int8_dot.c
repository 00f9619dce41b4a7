/* SPDX-License-Identifier: Apache-2.0 */
/* The loops of test_int8_dot.c, compiled once per set of flags that host/ is built with; RQ_FLAVOUR is the set's name. */
#include "int8_dot.h"

#define JOIN2(a, b) a##_##b
#define JOIN(a, b)  JOIN2(a, b)
#define NAME(x)     JOIN(x, RQ_FLAVOUR)

/* Never inlined: the caller's knowledge of the data must not decide how the loop is compiled. */
#define ALONE __attribute__((noinline)) static

/* Bytes that are signed by a cast: the first factor of the product must stay signed. */
ALONE int signed_32(const uint8_t *a, const int8_t *b) {
    int sum = 0;
    for (int k = 0; k < 32; ++k) sum += (int8_t)a[k] * b[k];
    return sum;
}

ALONE int signed_any(const uint8_t *a, const int8_t *b, int n) {
    int sum = 0;
    for (int k = 0; k < n; ++k) sum += (int8_t)a[k] * b[k];
    return sum;
}

/* Four-bit codes around 8, as packed weights are. */
ALONE int nibble_64(const uint8_t *a, const int8_t *b) {
    int sum = 0;
    for (int k = 0; k < 64; ++k) sum += ((int)(a[k] & 15) - 8) * b[k];
    return sum;
}

ALONE int nibble_any(const uint8_t *a, const int8_t *b, int n) {
    int sum = 0;
    for (int k = 0; k < n; ++k) sum += ((int)(a[k] & 15) - 8) * b[k];
    return sum;
}

const int8_dots NAME(int8_dots) = {signed_32, signed_any, nibble_64, nibble_any};
