/* SPDX-License-Identifier: Apache-2.0 */
/* Element types and their conversion to float32. The plain decoders here are the definition; model_dequant_avx2.c has
 * twins that give the same bits. GGUF block formulas: the table in docs/formats.md. */
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <math.h>
#include <stdatomic.h>

#include "model_blocks.h"
#include "model_parse.h"

static const struct {
    const char *name;
    int64_t block, bytes;
} dtype_info[RQ_N_DTYPES] = {
    [RQ_F64] = {"F64", 1, sizeof(double)},
    [RQ_F32] = {"F32", 1, sizeof(float)},
    [RQ_F16] = {"F16", 1, sizeof(rq_f16)},
    [RQ_BF16] = {"BF16", 1, sizeof(rq_bf16)},
    [RQ_I64] = {"I64", 1, sizeof(int64_t)},
    [RQ_I32] = {"I32", 1, sizeof(int32_t)},
    [RQ_I16] = {"I16", 1, sizeof(int16_t)},
    [RQ_I8] = {"I8", 1, sizeof(int8_t)},
    [RQ_U64] = {"U64", 1, sizeof(uint64_t)},
    [RQ_U32] = {"U32", 1, sizeof(uint32_t)},
    [RQ_U16] = {"U16", 1, sizeof(uint16_t)},
    [RQ_U8] = {"U8", 1, sizeof(uint8_t)},
    [RQ_BOOL] = {"BOOL", 1, 1},
    [RQ_F8_E4M3] = {"F8_E4M3", 1, 1},
    [RQ_F8_E5M2] = {"F8_E5M2", 1, 1},
    [RQ_Q4_0] = {"Q4_0", 32, sizeof(rq_block_q4_0)},
    [RQ_Q4_1] = {"Q4_1", 32, sizeof(rq_block_q4_1)},
    [RQ_Q8_0] = {"Q8_0", 32, sizeof(rq_block_q8_0)},
    [RQ_Q4_K] = {"Q4_K", 256, sizeof(rq_block_q4_k)},
    [RQ_Q6_K] = {"Q6_K", 256, sizeof(rq_block_q6_k)},
};

static bool known(rq_dtype d) { return (int)d >= 0 && d < RQ_N_DTYPES; }

const char *rq_dtype_name(rq_dtype d) { return known(d) ? dtype_info[d].name : "unknown"; }

int64_t rq_dtype_block(rq_dtype d) { return known(d) ? dtype_info[d].block : 1; }

int64_t rq_dtype_block_bytes(rq_dtype d) { return known(d) ? dtype_info[d].bytes : 0; }

bool rq_dtype_is_real(rq_dtype d) { return rq_dequant_plain(d) != NULL; }

bool rq_shape_numel(const int64_t *shape, int rank, int64_t *numel) {
    int64_t product = 1;
    bool empty = false;
    for (int i = 0; i < rank; ++i) {
        if (shape[i] == 0) {
            empty = true;
        } else if (!rq_mul_size(product, shape[i], &product)) {
            return false;
        }
    }
    *numel = empty ? 0 : product;
    return true;
}

int64_t rq_tensor_numel(const rq_tensor *t) {
    int64_t n = 0;
    (void)rq_shape_numel(t->shape, t->rank, &n); /* the parsers have refused what fails here */
    return n;
}

/* ---- plain decoders: n_blocks blocks (elements for plain types) -------------------------------------------------- */

static void dequant_f64(const uint8_t *src, int64_t n, float *dst) {
    for (int64_t i = 0; i < n; ++i) {
        double x;
        memcpy(&x, src + i * 8, sizeof x);
        dst[i] = (float)x;
    }
}

static void dequant_f32(const uint8_t *src, int64_t n, float *dst) { memcpy(dst, src, (size_t)n * sizeof *dst); }

static void dequant_f16(const uint8_t *src, int64_t n, float *dst) {
    for (int64_t i = 0; i < n; ++i) {
        rq_f16 h;
        memcpy(&h, src + i * 2, sizeof h);
        dst[i] = rq_f32_of_f16(h);
    }
}

static void dequant_bf16(const uint8_t *src, int64_t n, float *dst) {
    for (int64_t i = 0; i < n; ++i) {
        rq_bf16 h;
        memcpy(&h, src + i * 2, sizeof h);
        dst[i] = rq_f32_of_bf16(h);
    }
}

static void dequant_q4_0(const uint8_t *src, int64_t n, float *dst) {
    for (int64_t i = 0; i < n; ++i, dst += 32) {
        rq_block_q4_0 b;
        memcpy(&b, src + i * (int64_t)sizeof b, sizeof b);
        float d = rq_f32_of_f16(b.d);
        for (int j = 0; j < 16; ++j) {
            dst[j] = (float)((b.qs[j] & 15) - 8) * d;
            dst[j + 16] = (float)((b.qs[j] >> 4) - 8) * d;
        }
    }
}

static void dequant_q4_1(const uint8_t *src, int64_t n, float *dst) {
    for (int64_t i = 0; i < n; ++i, dst += 32) {
        rq_block_q4_1 b;
        memcpy(&b, src + i * (int64_t)sizeof b, sizeof b);
        float d = rq_f32_of_f16(b.d), m = rq_f32_of_f16(b.m);
        for (int j = 0; j < 16; ++j) {
            dst[j] = (float)(b.qs[j] & 15) * d + m;
            dst[j + 16] = (float)(b.qs[j] >> 4) * d + m;
        }
    }
}

static void dequant_q8_0(const uint8_t *src, int64_t n, float *dst) {
    for (int64_t i = 0; i < n; ++i, dst += 32) {
        rq_block_q8_0 b;
        memcpy(&b, src + i * (int64_t)sizeof b, sizeof b);
        float d = rq_f32_of_f16(b.d);
        for (int j = 0; j < 32; ++j) dst[j] = (float)b.qs[j] * d;
    }
}

static void dequant_q4_k(const uint8_t *src, int64_t n, float *dst) {
    for (int64_t i = 0; i < n; ++i) {
        rq_block_q4_k b;
        memcpy(&b, src + i * (int64_t)sizeof b, sizeof b);
        float d = rq_f32_of_f16(b.d), dmin = rq_f32_of_f16(b.dmin);
        for (int sub = 0; sub < 8; ++sub, dst += 32) { /* 32 bytes hold two sub-blocks: low nibbles, then high */
            const uint8_t *q = b.qs + 32 * (sub / 2);
            int scale, minimum, shift = 4 * (sub & 1);
            rq_q4_k_scale(b.scales, sub, &scale, &minimum);
            float ds = d * (float)scale, dm = dmin * (float)minimum;
            for (int j = 0; j < 32; ++j) dst[j] = ds * (float)(q[j] >> shift & 15) - dm;
        }
    }
}

static void dequant_q6_k(const uint8_t *src, int64_t n, float *dst) {
    for (int64_t i = 0; i < n; ++i, dst += 256) {
        rq_block_q6_k b;
        memcpy(&b, src + i * (int64_t)sizeof b, sizeof b);
        float d = rq_f32_of_f16(b.d);
        for (int at = 0; at < 256; ++at) { /* at = 128 half + 32 r + l */
            int half = at >> 7, r = at >> 5 & 3, l = at & 31;
            int low = b.ql[64 * half + 32 * (r & 1) + l] >> (r >= 2 ? 4 : 0) & 15;
            int high = b.qh[32 * half + l] >> (2 * r) & 3;
            float ds = d * (float)b.scales[at >> 4];
            dst[at] = ds * (float)((low | high << 4) - 32);
        }
    }
}

rq_dequant_fn rq_dequant_plain(rq_dtype d) {
    switch (d) {
    case RQ_F64: return dequant_f64;
    case RQ_F32: return dequant_f32;
    case RQ_F16: return dequant_f16;
    case RQ_BF16: return dequant_bf16;
    case RQ_Q4_0: return dequant_q4_0;
    case RQ_Q4_1: return dequant_q4_1;
    case RQ_Q8_0: return dequant_q8_0;
    case RQ_Q4_K: return dequant_q4_k;
    case RQ_Q6_K: return dequant_q6_k;
    default: return NULL;
    }
}

bool rq_dequant_has_avx2(void) {
#if defined(__x86_64__)
    /* Asked for every row, and cpuid is slow under a hypervisor: remember the answer. clang 14 does not know "f16c". */
    static _Atomic int answer; /* 0: not asked yet, 1: no, 2: yes */
    int a = atomic_load_explicit(&answer, memory_order_relaxed);
    if (a == 0) {
        unsigned eax, ebx, ecx = 0, edx;
        bool yes = __builtin_cpu_supports("avx2") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
        a = yes ? 2 : 1;
        atomic_store_explicit(&answer, a, memory_order_relaxed);
    }
    return a == 2;
#else
    return false;
#endif
}

static rq_dequant_fn best(rq_dtype d) {
    rq_dequant_fn fn = rq_dequant_has_avx2() ? rq_dequant_avx2(d) : NULL;
    return fn ? fn : rq_dequant_plain(d);
}

/* ---- rows --------------------------------------------------------------------------------------------------------- */

/* Row of the file that holds row r of the checkpoint. GGUF stores pair i of a head as rows 2i, 2i+1; the checkpoint
 * has the first members of all pairs, then the second ones. */
static int64_t file_row(const rq_tensor *t, int64_t r) {
    if (t->n_interleaved_heads == 0) return r;
    int64_t head_dim = t->shape[0] / t->n_interleaved_heads, half = head_dim / 2;
    int64_t head = r / head_dim, within = r % head_dim;
    return head * head_dim + 2 * (within % half) + within / half;
}

static rq_status no_reals(const rq_tensor *t) {
    return rq_fail(RQ_ERR_UNSUPPORTED, "tensor %s is %s, which holds no real numbers that are read here",
                   RQ_SHOW(t->name), rq_dtype_name(t->dtype));
}

static void vector_f32(const rq_tensor *t, rq_dequant_fn fn, float *dst) {
    const uint8_t *src = t->data;
    int64_t n = rq_tensor_numel(t), bytes = rq_dtype_block_bytes(t->dtype);
    if (t->n_interleaved_heads == 0) {
        fn(src, n / rq_dtype_block(t->dtype), dst);
        return;
    }
    for (int64_t i = 0; i < n; ++i)
        fn(src + file_row(t, i) * bytes, 1, dst + i); /* the parser wants plain types here */
}

rq_status rq_tensor_rows_f32(const rq_tensor *t, int64_t row0, int64_t n_rows, float *dst) {
    rq_dequant_fn fn = best(t->dtype);
    int64_t block = rq_dtype_block(t->dtype);
    int64_t rows = t->rank == 2 ? t->shape[0] : 1;
    if (!fn) return no_reals(t);
    if (t->rank > 2 || row0 < 0 || n_rows < 0 || row0 > rows || n_rows > rows - row0) {
        return rq_fail(RQ_ERR_ARG, "tensor %s of rank %d has no rows %lld to %lld", RQ_SHOW(t->name), t->rank,
                       (long long)row0, (long long)(row0 + n_rows));
    }
    if (n_rows == 0) return RQ_OK;
    if (t->rank < 2) {
        vector_f32(t, fn, dst);
        return RQ_OK;
    }
    int64_t width = t->shape[1], row_bytes = width / block * rq_dtype_block_bytes(t->dtype);
    const uint8_t *src = t->data;
    if (width == 0) return RQ_OK;
    if (t->n_interleaved_heads == 0) {
        fn(src + row0 * row_bytes, n_rows * (width / block), dst);
        return RQ_OK;
    }
    for (int64_t i = 0; i < n_rows; ++i) {
        fn(src + file_row(t, row0 + i) * row_bytes, width / block, dst + i * width);
    }
    return RQ_OK;
}

rq_status rq_tensor_f32(const rq_tensor *t, float *dst) {
    if (t->rank == 2) return rq_tensor_rows_f32(t, 0, t->shape[0], dst);
    if (t->rank < 2) return rq_tensor_rows_f32(t, 0, 1, dst);
    rq_dequant_fn fn = best(t->dtype);
    if (!fn) return no_reals(t);
    fn(t->data, rq_tensor_numel(t) / rq_dtype_block(t->dtype), dst);
    return RQ_OK;
}

/* ---- finite check: chunks of rows in parallel, each remembering its first bad element ------------------------------ */

#define CHUNK_ELEMS 65536
#define NO_MEMORY   (-2) /* in first_bad; -1: all is well */

typedef struct finite_scan {
    rq_tensor t; /* rank 2, or rank 1 as one row */
    int64_t rows, width, rows_per_chunk;
    int64_t *first_bad; /* per chunk */
} finite_scan;

static void scan_chunk(void *arg, int64_t chunk) {
    const finite_scan *f = arg;
    int64_t row0 = chunk * f->rows_per_chunk, n_rows = rq_min_i64(f->rows_per_chunk, f->rows - row0);
    float *buf = malloc((size_t)(n_rows * f->width) * sizeof *buf);
    f->first_bad[chunk] = NO_MEMORY;
    if (!buf) return;
    f->first_bad[chunk] = -1;
    (void)rq_tensor_rows_f32(&f->t, row0, n_rows, buf); /* cannot fail: type and rows were checked */
    for (int64_t i = 0; i < n_rows * f->width; ++i) {
        if (!isfinite(buf[i])) { /* NOLINT(clang-analyzer-core.CallAndMessage): filled, see above */
            f->first_bad[chunk] = row0 * f->width + i;
            break;
        }
    }
    free(buf);
}

bool rq_tensor_is_zero(const rq_tensor *t) {
    const unsigned char *data = t->data;
    return t->n_bytes == 0 || (data[0] == 0 && memcmp(data, data + 1, (size_t)t->n_bytes - 1) == 0);
}

rq_status rq_tensor_check_finite(const rq_tensor *t) {
    rq_status status = RQ_OK;
    finite_scan f = {.t = *t, .rows = 1, .width = rq_tensor_numel(t)};
    if (f.width == 0 || !rq_dtype_is_real(t->dtype)) return RQ_OK; /* nothing that could be NaN */
    if (t->rank >= 2) {                                            /* any rank as rows */
        f.width = t->shape[t->rank - 1];
        f.rows = rq_tensor_numel(t) / f.width;
        f.t.rank = 2;
        f.t.shape[0] = f.rows;
        f.t.shape[1] = f.width;
    }
    f.rows_per_chunk = rq_max_i64(1, CHUNK_ELEMS / f.width);
    int64_t n_chunks = rq_ceil_div(f.rows, f.rows_per_chunk);
    RQ_TRY(RQ_NEW(f.first_bad, n_chunks));
    rq_parallel_for(n_chunks, scan_chunk, &f);
    for (int64_t i = 0; i < n_chunks; ++i) {
        if (f.first_bad[i] == NO_MEMORY) RQ_FAIL(RQ_ERR_NOMEM, "out of memory while checking %s", RQ_SHOW(t->name));
        if (f.first_bad[i] >= 0) {
            RQ_FAIL(RQ_ERR_INPUT, "tensor %s: element %lld (row %lld, column %lld) is NaN or infinite",
                    RQ_SHOW(t->name), (long long)f.first_bad[i], (long long)(f.first_bad[i] / f.width),
                    (long long)(f.first_bad[i] % f.width));
        }
    }
done:
    free(f.first_bad);
    return status;
}
