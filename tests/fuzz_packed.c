/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target: a file of packed matrices in any format, ours or another tool's. The input is the metadata entry "requite" up to a zero byte, then tensors: a name up
 * to a zero byte, a byte each for dtype and rank, two bytes for each extent, and the data (zeros where the input ends). The frame around
 * them is made here, so that changes reach the loaders instead of failing at lengths and offsets.
 *
 * What is accepted is used: every row unpacked, counted, described, multiplied with for one token and for more than a GEMV takes, and all
 * products are numbers wherever the weights' sum of sizes is. Then it is packed as every tool's, and what that gives is as large as it says. */
#include <math.h>

#include "container.h"
#include "linear.h"
#include "model_parse.h"
#include "peer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_BYTES = 1 << 18, MAX_TENSORS = 32, MAX_WEIGHTS = 1 << 17, TOKENS = RQ_GEMV_MAX_TOK + 1 };

typedef struct cursor {
    const uint8_t *at, *end;
} cursor;

static unsigned next_byte(cursor *c) { return c->at < c->end ? *c->at++ : 0; }

/* Up to the next zero byte, as a JSON string; NULL when it is not UTF-8. */
static json_t *next_text(cursor *c) {
    const uint8_t *from = c->at, *zero = memchr(c->at, 0, (size_t)(c->end - c->at));
    c->at = zero ? zero + 1 : c->end;
    return json_stringn((const char *)from, (size_t)((zero ? zero : c->end) - from));
}

/* One tensor: its entry in the header, its data behind *n bytes of `data`. False when it is too large. */
static bool next_tensor(cursor *c, json_t *header, uint8_t *data, int64_t *n) {
    static const rq_dtype dtypes[] = {RQ_I32, RQ_F32, RQ_F16, RQ_U8, RQ_I8, RQ_I64, RQ_BF16, RQ_I16};
    json_t *name = next_text(c), *shape = json_array();
    const rq_dtype dtype = dtypes[next_byte(c) % (sizeof dtypes / sizeof *dtypes)];
    int64_t n_bytes = rq_dtype_block_bytes(dtype);
    for (unsigned i = next_byte(c) % 5; i > 0; --i) {
        const unsigned low = next_byte(c), extent = low | next_byte(c) << 8;
        json_array_append_new(shape, json_integer((json_int_t)extent));
        n_bytes = rq_min_i64(MAX_BYTES + 1, n_bytes * (int64_t)extent);
    }
    if (!name || *n + n_bytes > MAX_BYTES) {
        json_decref(name);
        json_decref(shape);
        return false;
    }
    const int64_t there = rq_min_i64(n_bytes, c->end - c->at);
    memset(data + *n, 0, (size_t)n_bytes);
    memcpy(data + *n, c->at, (size_t)there);
    c->at += there;
    json_object_set_new(header, json_string_value(name),
                        json_pack("{s:s, s:o, s:[I,I]}", "dtype", rq_dtype_name(dtype), "shape", shape, "data_offsets",
                                  (json_int_t)*n, (json_int_t)(*n + n_bytes)));
    json_decref(name);
    *n += n_bytes;
    return true;
}

/* The whole file in `bytes`; its length, or 0. */
static int64_t frame(uint8_t **bytes, const uint8_t *data, size_t size) {
    cursor c = {data, data + size};
    json_t *header = json_object(), *meta = next_text(&c);
    uint8_t *body = malloc(MAX_BYTES);
    int64_t n = 0, total = 0;
    bool ok = meta != NULL && body != NULL;
    for (int i = 0; ok && i < MAX_TENSORS && c.at < c.end; ++i) ok = next_tensor(&c, header, body, &n);
    if (ok) json_object_set_new(header, "__metadata__", json_pack("{s:O}", "requite", meta));
    char *text = ok ? json_dumps(header, JSON_COMPACT) : NULL;
    if (text) {
        const uint64_t length = strlen(text);
        total = 8 + (int64_t)length + n;
        *bytes = malloc((size_t)total); /* of the exact size, so that reads past the end are seen */
        if (!*bytes) abort();
        memcpy(*bytes, &length, 8);
        memcpy(*bytes + 8, text, length);
        memcpy(*bytes + 8 + length, body, (size_t)n);
    }
    json_decref(header);
    json_decref(meta);
    free(body);
    free(text);
    return total;
}

static void fail(const char *what, const char *name) {
    fprintf(stderr, "%s: %s: %s\n", name, what, rq_last_error());
    abort();
}

/* Weights as they are defined, and products with ones, which no kernel may turn to NaN where the row has a finite sum. */
static void use(const rq_packed *p, const char *name) {
    const int64_t n_out = p->n_out, n_in = p->n_in;
    const rq_linear l = {.name = name, .n_out = n_out, .n_in = n_in, .packed = p};
    float *row = malloc((size_t)n_in * sizeof *row), *x = malloc((size_t)(TOKENS * n_in) * sizeof *x),
          *y = malloc((size_t)(TOKENS * n_out) * sizeof *y);
    double *sum = calloc((size_t)n_out, sizeof *sum);
    if (!row || !x || !y || !sum) abort();
    for (int64_t i = 0; i < n_out; ++i) {
        rq_unpack_row(p, i, row);
        for (int64_t j = 0; j < n_in; ++j) sum[i] += fabs((double)row[j]);
    }
    for (int64_t j = 0; j < TOKENS * n_in; ++j) x[j] = 1.0f;
    for (int64_t n_tok = 1; n_tok <= TOKENS; n_tok += TOKENS - 1) {
        if (rq_linear_apply(&l, y, x, n_tok) != RQ_OK) fail("does not multiply", name);
        for (int64_t i = 0; i < n_tok * n_out; ++i) {
            if (sum[i % n_out] < 1e30 && !isfinite(y[i])) fail("a product is not a number", name);
        }
    }
    json_t *about = json_object();
    rq_format_get(p->format)->inspect(p, about);
    if (rq_packed_size_bits(p) <= 0 || !json_object_get(about, "summary")) fail("has no size or description", name);
    json_decref(about);
    free(row);
    free(x);
    free(y);
    free(sum);
}

static void repack(const rq_packed *p) {
    for (int i = 0; i < RQ_N_PEERS; ++i) {
        rq_packed_file f;
        json_t *settings;
        if (rq_peer_at(i)->pack(&f, &settings, "W", p) != RQ_OK) continue;
        for (int k = 0; k < f.n_tensors; ++k) {
            const rq_out_tensor *t = &f.tensor[k];
            int64_t n = rq_dtype_block_bytes(t->dtype);
            for (int d = 0; d < t->rank; ++d) n *= t->shape[d];
            char *bytes = malloc((size_t)n);
            if (!bytes || t->fill(t->arg, bytes, n) != RQ_OK) abort();
            free(bytes);
        }
        json_decref(settings);
        rq_packed_file_free(&f);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    rq_store *s = NULL;
    json_t *meta = NULL, *entry;
    uint8_t *bytes = NULL;
    const char *name;
    const int64_t n = frame(&bytes, data, size);
    rq_set_threads(1);
    if (n > 0 && rq_store_open_memory(&s, bytes, n, "input") == RQ_OK && rq_container_metadata(s, &meta) == RQ_OK) {
        json_object_foreach(json_object_get(meta, "linears"), name, entry) {
            rq_packed p;
            if (rq_container_load(&p, s, meta, name) != RQ_OK) continue;
            if (p.n_out <= MAX_WEIGHTS / p.n_in) {
                use(&p, name);
                repack(&p);
            }
            rq_packed_free(&p);
        }
    }
    json_decref(meta);
    rq_store_close(s);
    free(bytes);
    return 0;
}
