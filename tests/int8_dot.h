/* SPDX-License-Identifier: Apache-2.0 */
/* What test_int8_dot.c calls: the same four loops under each set of flags. */
#ifndef INT8_DOT_H
#define INT8_DOT_H

#include <stdint.h>

typedef struct int8_dots {
    int (*signed_32)(const uint8_t *a, const int8_t *b);
    int (*signed_any)(const uint8_t *a, const int8_t *b, int n);
    int (*nibble_64)(const uint8_t *a, const int8_t *b);
    int (*nibble_any)(const uint8_t *a, const int8_t *b, int n);
} int8_dots;

extern const int8_dots int8_dots_plain, int8_dots_loop, int8_dots_avx2, int8_dots_avx512, int8_dots_avx512vbmi;

#endif
