/* SPDX-License-Identifier: Apache-2.0 */
/* What test_formats*.c share: random numbers, memory, a folder with one file, and a load that must be refused. */
#ifndef RQ_FORMATS_FIXTURE_H
#define RQ_FORMATS_FIXTURE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "formats.h"

static char folder[256], path[300]; /* path: the file that a test writes and reads */
static uint64_t seed = 7;

static inline uint32_t draw(uint32_t below) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((seed >> 33) % below);
}

static inline void *must_alloc(int64_t n, size_t size) {
    void *p;
    assert_int_equal(rq_alloc(&p, n, size), RQ_OK);
    return p;
}

static inline int64_t tensor_bits(const rq_store *s) {
    int64_t bits = 0;
    for (int64_t i = 0; i < rq_store_count(s); ++i) bits += rq_store_at(s, i)->n_bytes * 8;
    return bits;
}

/* Write the first n tensors as they stand now, and load the matrix m by this description. */
static inline void load_gives(rq_format format, const rq_packed_file *f, int n, const char *entry, rq_status want) {
    rq_store *s;
    rq_packed p;
    json_t *json = json_loads(entry, 0, NULL);
    assert_non_null(json);
    assert_int_equal(rq_safetensors_write(path, f->tensor, n, NULL, 0), RQ_OK);
    assert_int_equal(rq_store_open(&s, path), RQ_OK);
    rq_status status = rq_format_get(format)->load(&p, s, "m", json);
    if (status != want) fail_msg("%s: status %d: %s", entry, status, rq_last_error());
    if (want == RQ_OK)
        rq_packed_free(&p);
    else
        assert_true(p.n_owned == 0 && strlen(rq_last_error()) > 10);
    json_decref(json);
    rq_store_close(s);
}

static inline int set_up(void **state) {
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.200s/rq_formats_XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(folder)) return 1;
    snprintf(path, sizeof path, "%s/m.safetensors", folder);
    return 0;
}

static inline int tear_down(void **state) {
    (void)state;
    unlink(path);
    return rmdir(folder);
}

#endif
