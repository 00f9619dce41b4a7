/* SPDX-License-Identifier: Apache-2.0 */
/* Building files byte by byte for the reader tests, honest and hostile ones. */
#ifndef RQ_READERS_BUILD_H
#define RQ_READERS_BUILD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "model_parse.h"

#define DATA RQ_TEST_DIR "/data/readers/"

typedef struct bytes {
    uint8_t *p;
    size_t n, cap;
} bytes;

static inline void put(bytes *b, const void *data, size_t n) {
    if (b->n + n > b->cap) {
        b->cap = (b->n + n) * 2 + 64;
        b->p = realloc(b->p, b->cap);
        assert_non_null(b->p);
    }
    if (n) memcpy(b->p + b->n, data, n);
    b->n += n;
}

static inline void put_u32(bytes *b, uint32_t v) { put(b, &v, sizeof v); }
static inline void put_u64(bytes *b, uint64_t v) { put(b, &v, sizeof v); }
static inline void put_f32(bytes *b, float v) { put(b, &v, sizeof v); }

static inline void put_zeros(bytes *b, size_t n) {
    static const uint8_t zero[64];
    for (; n > 64; n -= 64) put(b, zero, 64);
    put(b, zero, n);
}

static inline void put_str(bytes *b, const char *s) { /* a GGUF string */
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

static inline void pad32(bytes *b) { put_zeros(b, (32 - b->n % 32) % 32); }

/* A safetensors file: this header, then n_data bytes 0, 1, 2 ... */
static inline bytes safetensors_file(const char *header, size_t n_data) {
    bytes b = {0};
    put_u64(&b, strlen(header));
    put(&b, header, strlen(header));
    for (size_t i = 0; i < n_data; ++i) put(&b, &(uint8_t){(uint8_t)i}, 1);
    return b;
}

/* The bytes are copied so that AddressSanitizer sees every read past their end. */
static inline rq_status open_bytes(rq_store **s, const void *p, size_t n) {
    uint8_t *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    if (n) memcpy(copy, p, n);
    rq_status status = rq_store_open_memory(s, copy, (int64_t)n, "memory");
    if (status == RQ_OK) {
        (*s)->file[0].base = copy; /* freed by close_bytes */
    } else {
        free(copy);
    }
    return status;
}

static inline void close_bytes(rq_store *s) {
    if (!s) return;
    uint8_t *copy = (uint8_t *)(uintptr_t)s->file[0].base;
    rq_store_close(s);
    free(copy);
}

/* Refused with this status and a sentence that holds these words. */
static inline void expect_refusal(const bytes *b, rq_status wanted, const char *words) {
    rq_store *s = NULL;
    rq_status status = open_bytes(&s, b->p, b->n);
    if (status != wanted || !strstr(rq_last_error(), words)) {
        fail_msg("wanted status %d and \"%s\", got %d: %s", wanted, words, status, rq_last_error());
    }
    assert_null(s);
}

static inline bytes read_data(const char *name) {
    char path[512], *text;
    int64_t n;
    bytes b = {0};
    snprintf(path, sizeof path, "%s%s", DATA, name);
    assert_int_equal(rq_read_file(path, 1 << 24, &text, &n), RQ_OK);
    put(&b, text, (size_t)n);
    free(text);
    return b;
}

/* A folder of its own for a test; remove_folder takes it away with the files in it. */
static inline char *new_folder(char *buf, size_t n) {
    const char *tmp = getenv("TMPDIR");
    snprintf(buf, n, "%s/rq_readers_XXXXXX", tmp && *tmp ? tmp : "/tmp");
    char *made = mkdtemp(buf);
    assert_non_null(made);
    return made;
}

static inline void remove_folder(const char *folder, const char *const *names, size_t n) {
    char path[1024];
    for (size_t i = 0; i < n; ++i) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(folder), 0); /* anything left behind, a .tmp for one, makes this fail */
}

static inline void write_text(const char *folder, const char *name, const char *text) {
    char *path = rq_path_join(folder, name);
    assert_non_null(path);
    assert_int_equal(rq_write_file(path, text, (int64_t)strlen(text)), RQ_OK);
    free(path);
}

#endif
