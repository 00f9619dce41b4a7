/* SPDX-License-Identifier: Apache-2.0 */
/* y = x W^T (+ bias) for weights in memory, in a file, or packed.
 *
 * Few tokens: the weights are read once and multiplied as they are read (the gemv kernels), rows shared out to threads.
 * More tokens: a task takes a tile of rows and a tile of tokens, unpacks the rows to fp32 scratch and calls one
 * single-threaded gemm. Tile borders depend on the sizes alone. Format w4a8 has its own way, linear_w4a8.c. */
#include "linear.h"

#include <pthread.h>

#include "backend.h"
#include "kernels.h"

enum {
    GEMV_TOK = RQ_GEMV_MAX_TOK, /* beyond, unpacking once for a gemm is no slower (docs/kernels.md) */
    GEMV_TOK_FP32 = 4,          /* fp32 in memory needs no unpacking */
    TILE_ROWS = 256,
    TILE_TOK = 512
};

typedef struct linear_job {
    const rq_linear *l;
    float *y;
    const float *x; /* in stored column order where the kernel wants that */
    int64_t n_tok;
    int64_t item_rows;       /* gemv */
    const rq_kernel *kernel; /* NULL: no kernel for this operand */
    rq_dense dense;
    pthread_mutex_t lock; /* guards the two below */
    rq_status status;
    char error[512];
} linear_job;

/* The sentence is thread-local: carry the first one over to the caller's thread. */
static void report(linear_job *j, rq_status status) {
    pthread_mutex_lock(&j->lock);
    if (j->status == RQ_OK) {
        j->status = status;
        snprintf(j->error, sizeof j->error, "%.500s", rq_last_error());
    }
    pthread_mutex_unlock(&j->lock);
}

rq_status rq_linear_rows(const rq_linear *l, int64_t row0, int64_t n_rows, float *dst) {
    if (row0 < 0 || n_rows < 0 || row0 > l->n_out - n_rows) {
        return rq_fail(RQ_ERR_ARG, "%s: rows %lld .. %lld of %lld", l->name ? l->name : "matrix", (long long)row0,
                       (long long)(row0 + n_rows), (long long)l->n_out);
    }
    if (l->tensor) return rq_tensor_rows_f32(l->tensor, row0, n_rows, dst);
    for (int64_t i = 0; i < n_rows; ++i) {
        if (l->packed)
            rq_unpack_row(l->packed, row0 + i, dst + i * l->n_in);
        else
            /* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): one of tensor, packed and w is there */
            memcpy(dst + i * l->n_in, l->w + (row0 + i) * l->n_in, (size_t)l->n_in * sizeof *dst);
    }
    return RQ_OK;
}

static void add_bias(const linear_job *j, int64_t t0, int64_t t1, int64_t r0, int64_t r1) {
    if (!j->l->bias) return;
    for (int64_t t = t0; t < t1; ++t) {
        for (int64_t r = r0; r < r1; ++r) j->y[t * j->l->n_out + r] += j->l->bias[r];
    }
}

/* ---- few tokens ------------------------------------------------------------------------------------------------------- */

static void gemv_body(void *arg, int64_t item) {
    linear_job *j = arg;
    const rq_linear *l = j->l;
    int64_t r0 = item * j->item_rows, r1 = rq_min_i64(l->n_out, r0 + j->item_rows);
    if (l->packed) {
        if (j->kernel) {
            j->kernel->gemv(j->y, &l->packed->u, j->x, j->n_tok, r0, r1 - r0);
        } else {
            rq_status status = rq_gemv_generic(j->y, l->packed, j->x, j->n_tok, r0, r1 - r0);
            if (status != RQ_OK) report(j, status);
        }
    } else {
        j->kernel->gemv(j->y, &j->dense, j->x, j->n_tok, r0, r1 - r0);
    }
    if (!l->tensor || !l->tensor->n_interleaved_heads) add_bias(j, 0, j->n_tok, r0, r1);
}

/* Dense rows that no kernel reads (GGUF's 4-bit blocks, say): dequantize a few, then multiply. */
static void scratch_body(void *arg, int64_t item) {
    linear_job *j = arg;
    const rq_linear *l = j->l;
    int64_t r0 = item * j->item_rows, r1 = rq_min_i64(l->n_out, r0 + j->item_rows);
    float *w = NULL;
    rq_status status = RQ_NEW(w, l->n_in);
    rq_dense row = {l->n_out, l->n_in, 0, (const unsigned char *)w}; /* row_bytes 0: every row is this one */
    for (int64_t r = r0; r < r1 && status == RQ_OK; ++r) {
        status = rq_linear_rows(l, r, 1, w);
        if (status == RQ_OK) j->kernel->gemv(j->y, &row, j->x, j->n_tok, r, 1);
    }
    if (status != RQ_OK)
        report(j, status);
    else
        add_bias(j, 0, j->n_tok, r0, r1);
    free(w);
}

/* The gemv kernel that reads a tensor's bytes as they are, or NULL. */
static const rq_kernel *tensor_kernel(const rq_tensor *t) {
    switch (t->dtype) {
    case RQ_F32: return rq_kernel_pick("gemv", "f32_rows");
    case RQ_F16: return rq_kernel_pick("gemv", "f16_rows");
    case RQ_BF16: return rq_kernel_pick("gemv", "bf16_rows");
    case RQ_Q8_0: return rq_kernel_pick("gemv", "q8_0_rows");
    default: return NULL;
    }
}

/* Outputs came in the file's row order, pairs (i, i + half) of each head side by side; put them half-split. */
static rq_status split_heads(const linear_job *j) {
    const rq_linear *l = j->l;
    int64_t width = l->n_out / l->tensor->n_interleaved_heads, half = width / 2;
    float *head = NULL;
    rq_status status = RQ_NEW(head, width);
    if (status != RQ_OK) return status;
    for (int64_t t = 0; t < j->n_tok; ++t) {
        for (float *y = j->y + t * l->n_out; y < j->y + (t + 1) * l->n_out; y += width) {
            memcpy(head, y, (size_t)width * sizeof *y);
            for (int64_t i = 0; i < half; ++i) {
                y[i] = head[2 * i];
                y[half + i] = head[2 * i + 1];
            }
        }
    }
    free(head);
    add_bias(j, 0, j->n_tok, 0, l->n_out);
    return RQ_OK;
}

static rq_status apply_gemv(linear_job *j) {
    const rq_linear *l = j->l;
    rq_body_fn body = gemv_body;
    if (l->packed) {
        j->kernel = rq_kernel_pick("gemv", rq_format_get(l->packed->format)->name);
    } else if (l->w) {
        j->kernel = rq_kernel_pick("gemv", "f32_rows");
        j->dense = (rq_dense){l->n_out, l->n_in, l->n_in * (int64_t)sizeof *l->w, (const unsigned char *)l->w};
    } else {
        const rq_tensor *t = l->tensor;
        j->kernel = tensor_kernel(t);
        j->dense = (rq_dense){l->n_out, l->n_in, t->n_bytes / l->n_out, t->data};
        if (!j->kernel) {
            j->kernel = rq_kernel_pick("gemv", "f32_rows");
            body = scratch_body;
        }
    }
    j->item_rows = rq_gemv_item_rows(l->n_out, rq_get_threads());
    rq_parallel_for(rq_ceil_div(l->n_out, j->item_rows), body, j);
    if (j->status == RQ_OK && body == gemv_body && l->tensor && l->tensor->n_interleaved_heads) {
        j->status = split_heads(j);
        if (j->status != RQ_OK) snprintf(j->error, sizeof j->error, "%.500s", rq_last_error());
    }
    return j->status;
}

/* ---- more tokens ------------------------------------------------------------------------------------------------------ */

static void tile_body(void *arg, int64_t item) {
    linear_job *j = arg;
    const rq_linear *l = j->l;
    int64_t n_row_tiles = rq_ceil_div(l->n_out, TILE_ROWS), row = item % n_row_tiles, tok = item / n_row_tiles;
    int64_t r0 = row * TILE_ROWS, r1 = rq_min_i64(l->n_out, r0 + TILE_ROWS);
    int64_t t0 = tok * TILE_TOK, t1 = rq_min_i64(j->n_tok, t0 + TILE_TOK);
    const float *w = l->w ? l->w + r0 * l->n_in : NULL;
    float *scratch = NULL;
    rq_status status = RQ_OK;
    if (!w) {
        RQ_TRY(RQ_NEW(scratch, (r1 - r0) * l->n_in));
        if (j->kernel)
            j->kernel->unpack(scratch, &l->packed->u, r0, r1 - r0);
        else
            RQ_TRY(rq_linear_rows(l, r0, r1 - r0, scratch));
        w = scratch;
    }
    rq_sgemm_tile(RQ_N, RQ_T, t1 - t0, r1 - r0, l->n_in, 1.0f, j->x + t0 * l->n_in, l->n_in, w, l->n_in, 0.0f,
                  j->y + t0 * l->n_out + r0, l->n_out);
    add_bias(j, t0, t1, r0, r1);
done:
    if (status != RQ_OK) report(j, status);
    free(scratch);
}

static rq_status apply_tiles(linear_job *j) {
    const rq_linear *l = j->l;
    j->status = rq_backend_init();
    if (j->status != RQ_OK) {
        snprintf(j->error, sizeof j->error, "%.500s", rq_last_error());
        return j->status;
    }
    j->kernel = l->packed ? rq_kernel_pick("unpack", rq_format_get(l->packed->format)->name) : NULL;
    rq_parallel_for(rq_ceil_div(l->n_out, TILE_ROWS) * rq_ceil_div(j->n_tok, TILE_TOK), tile_body, j);
    return j->status;
}

/* ---- entry ------------------------------------------------------------------------------------------------------------ */

static rq_status check(const rq_linear *l, const float *y, const float *x, int64_t n_tok) {
    const char *name = l->name ? l->name : "matrix";
    if ((l->w != NULL) + (l->tensor != NULL) + (l->packed != NULL) != 1 || l->n_out < 1 || l->n_in < 1 || n_tok < 0 ||
        (n_tok > 0 && (!x || !y))) {
        return rq_fail(RQ_ERR_ARG, "%s: needs one kind of weights, positive sizes and x and y", name);
    }
    if (l->tensor && (l->tensor->rank != 2 || l->tensor->shape[0] != l->n_out || l->tensor->shape[1] != l->n_in)) {
        return rq_fail(RQ_ERR_ARG, "%s: tensor %s is not [%lld, %lld]", name, l->tensor->name, (long long)l->n_out,
                       (long long)l->n_in);
    }
    if (l->packed && (l->packed->n_out != l->n_out || l->packed->n_in != l->n_in)) {
        return rq_fail(RQ_ERR_ARG, "%s: the packed matrix is not [%lld, %lld]", name, (long long)l->n_out,
                       (long long)l->n_in);
    }
    return rq_kernels_check();
}

/* Kernels multiply columns in stored order: gather x to match. */
static rq_status gather(float **out, const rq_linear *l, const float *x, int64_t n_tok) {
    const int32_t *perm = l->packed && l->packed->format == RQ_FORMAT_GRID ? l->packed->u.grid.perm : NULL;
    *out = NULL;
    if (!perm) return RQ_OK;
    rq_status status = RQ_NEW(*out, n_tok * l->n_in);
    for (int64_t t = 0; t < n_tok && status == RQ_OK; ++t) {
        for (int64_t i = 0; i < l->n_in; ++i) (*out)[t * l->n_in + i] = x[t * l->n_in + perm[i]];
    }
    return status;
}

rq_status rq_linear_apply(const rq_linear *l, float *y, const float *x, int64_t n_tok) {
    rq_status status = RQ_OK;
    float *gathered = NULL;
    RQ_TRY(check(l, y, x, n_tok));
    if (l->packed && l->packed->format == RQ_FORMAT_W4A8) {
        if (n_tok > 0) RQ_TRY(rq_linear_w4a8(&l->packed->u.w4a8, l->bias, y, x, n_tok));
        goto done;
    }
    RQ_TRY(gather(&gathered, l, x, n_tok));
    linear_job j = {.l = l, .y = y, .x = gathered ? gathered : x, .n_tok = n_tok, .lock = PTHREAD_MUTEX_INITIALIZER};
    if (n_tok > 0) {
        status = n_tok <= (l->w ? GEMV_TOK_FP32 : GEMV_TOK) ? apply_gemv(&j) : apply_tiles(&j);
        if (status != RQ_OK) rq_fail(status, "%s: %s", l->name ? l->name : "matrix", j.error);
    }
done:
    free(gathered);
    return status;
}
