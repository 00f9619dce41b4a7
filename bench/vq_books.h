/* SPDX-License-Identifier: Apache-2.0 */
/* --books: the codebooks that vq is benchmarked with, a list of LENGTHxENTRIES[+ENTRIES][out]: 8x65536 are AQLM's 1x16, 8x256+256 its
 * 2x8, 8x4096out VPTQ's vectors down the outputs, which have a scale and a bias for each column in place of row scales. C and C++. */
#ifndef BENCH_VQ_BOOKS_H
#define BENCH_VQ_BOOKS_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BENCH_MAX_BOOKS = 16 };

typedef struct bench_book {
    char name[24]; /* "vq8x256+256" */
    int vec_len, n_stage;
    bool vec_out;
    int code_bits[2]; /* entries: 2^code_bits */
} bench_book;

typedef struct bench_books {
    int n;
    bench_book at[BENCH_MAX_BOOKS];
} bench_books;

/* A number of entries, 16 .. 65536 and a power of two, as its logarithm; *text is moved behind it. 0: it is none. */
static inline int bench_log_entries(const char **text) {
    char *end;
    long n = strtol(*text, &end, 10);
    if (end == *text) return 0;
    *text = end;
    for (int bits = 4; bits <= 16; ++bits) {
        if (n == 1L << bits) return bits;
    }
    return 0;
}

static inline bool bench_parse_book(bench_book *b, const char *text, size_t n) {
    char one[20], *end;
    if (n >= sizeof one) return false;
    memcpy(one, text, n);
    one[n] = 0;
    long vec_len = strtol(one, &end, 10);
    if (end == one || *end != 'x' || vec_len < 2 || vec_len > 16) return false;
    const char *at = end + 1;
    b->vec_len = (int)vec_len;
    b->n_stage = 1;
    b->code_bits[1] = 0;
    b->code_bits[0] = bench_log_entries(&at);
    if (*at == '+') {
        ++at;
        b->n_stage = 2;
        b->code_bits[1] = bench_log_entries(&at);
    }
    b->vec_out = !strcmp(at, "out");
    snprintf(b->name, sizeof b->name, "vq%s", one);
    return b->code_bits[0] && (b->n_stage == 1 || b->code_bits[1]) && (!*at || b->vec_out);
}

/* Replaces the list by what the text says; false: it says nothing of the kind. */
static inline bool bench_parse_books(bench_books *s, const char *text) {
    s->n = 0;
    for (;;) {
        size_t n = strcspn(text, ",");
        if (s->n == BENCH_MAX_BOOKS || !bench_parse_book(&s->at[s->n], text, n)) return false;
        ++s->n;
        if (!text[n]) return true;
        text += n + 1;
    }
}

#define BENCH_DEFAULT_BOOKS "8x256,8x256+256,8x4096,8x65536,8x4096out"

#endif
