/* SPDX-License-Identifier: Apache-2.0 */
/* rq_packed.h: structs of other programs, checked and completed, then what linear.c and the kernels do. */
#include "rq_packed.h"

#include "act_hadamard.h"
#include "kernels.h"
#include "linear.h"
#include "pack_common.h"
#include "rotate.h"

enum { ROWS_PER_ITEM = 32, TOK_PER_ITEM = 8 };

/* ---- checks ------------------------------------------------------------------------------------------------------------- */

static rq_status missing(const char *name, const char *what) { return rq_fail(RQ_ERR_ARG, "%s: %s", name, what); }

static rq_status check_outliers(const char *name, int n, const int32_t *col, const int8_t *value, const float *scale,
                                int64_t n_in) {
    if (n && (!col || !value || !scale)) return missing(name, "outlier columns without their values and scales");
    for (int o = 0; o < n; ++o) {
        if (col[o] < (o ? col[o - 1] + 1 : 0) || col[o] >= n_in) {
            return rq_fail(RQ_ERR_ARG, "%s: outlier column %d of %lld is out of range or out of order", name, col[o],
                           (long long)n_in);
        }
    }
    return RQ_OK;
}

static rq_status take_grid(rq_packed *p, const rq_grid *from) {
    rq_status status = RQ_OK;
    const char *name = "rq_grid";
    *p = (rq_packed){.format = RQ_FORMAT_GRID};
    if (!from) return missing(name, "NULL");
    RQ_TRY(rq_grid_sizes(name, RQ_ERR_ARG, from->n_out, from->n_in, from->bits, from->group));
    if (!from->words || (from->scale_f16 != NULL) + (from->scale_f32 != NULL) != 1) {
        return missing(name, "words and one of scale_f16 and scale_f32 are needed");
    }
    rq_grid *g = &p->u.grid;
    *g = *from;
    g->n_group = rq_ceil_div(g->n_in, g->group);
    g->row_words = rq_grid_row_words(g->n_in, g->bits);
    for (int64_t j = 0; g->perm && j < g->n_in; ++j) {
        if (g->perm[j] < 0 || g->perm[j] >= g->n_in) {
            RQ_FAIL(RQ_ERR_ARG, "%s: perm[%lld] is %d; there are %lld columns", name, (long long)j, g->perm[j],
                    (long long)g->n_in);
        }
    }
done:
    return status;
}

static rq_status take_ssvq(rq_packed *p, const rq_ssvq *from) {
    rq_status status = RQ_OK;
    const char *name = "rq_ssvq";
    float *ones;
    *p = (rq_packed){.format = RQ_FORMAT_SSVQ};
    if (!from) return missing(name, "NULL");
    rq_ssvq *s = &p->u.ssvq;
    *s = *from;
    RQ_TRY(rq_ssvq_sizes(s, name, RQ_ERR_ARG));
    if (!s->codes || !s->signs || !s->scale || (s->book_f16 != NULL) + (s->book_u8 != NULL) != 1 ||
        (s->book_u8 && !s->book_scale)) {
        return missing(name,
                       "codes, signs, scale, one of book_f16 and book_u8, and book_scale with the latter are needed");
    }
    RQ_TRY(check_outliers(name, s->n_outlier, s->outlier_col, s->outlier, s->outlier_scale, s->n_in));
    if (s->book_scale) goto done;
    RQ_TRY(RQ_NEW(ones, s->n_book));
    s->book_scale = rq_pack_own(p, ones);
    for (int64_t b = 0; b < s->n_book; ++b) ones[b] = 1.0f;
done:
    return status;
}

static rq_status take_vq(rq_packed *p, const rq_vq *from) {
    rq_status status = RQ_OK;
    const char *name = "rq_vq";
    *p = (rq_packed){.format = RQ_FORMAT_VQ};
    if (!from) return missing(name, "NULL");
    rq_vq *q = &p->u.vq;
    *q = *from;
    RQ_TRY(rq_vq_sizes(q, name, RQ_ERR_ARG));
    for (int s = 0; s < q->n_stage; ++s) {
        if (!q->codes[s] || !q->book[s]) return missing(name, "codes and book of each stage are needed");
    }
    if ((q->col_scale != NULL) != (q->col_bias != NULL))
        return missing(name, "col_scale and col_bias: both or neither");
    if (!q->scale && q->group != q->n_in) return missing(name, "a group without scales");
    if (q->book_of && (!q->vec_out || q->n_book > RQ_VQ_MAX_BOOKS))
        return missing(name, "book_of is for up to 256 codebooks of vectors along outputs");
    for (int64_t j = 0; q->book_of && j < q->n_in; ++j) {
        if (q->book_of[j] >= q->n_book) {
            RQ_FAIL(RQ_ERR_ARG, "%s: book_of[%lld] is %d; there are %lld", name, (long long)j, q->book_of[j],
                    (long long)q->n_book);
        }
    }
    RQ_TRY(check_outliers(name, q->n_outlier, q->outlier_col, q->outlier, q->outlier_scale, q->n_in));
done:
    return status;
}

static rq_status take_w4a8(rq_packed *p, const rq_w4a8 *from) {
    rq_status status = RQ_OK;
    const char *name = "rq_w4a8";
    rq_hadamard *h;
    *p = (rq_packed){.format = RQ_FORMAT_W4A8};
    if (!from) return missing(name, "NULL");
    rq_w4a8 *w = &p->u.w4a8;
    *w = *from;
    RQ_TRY(rq_w4a8_sizes(w, name, RQ_ERR_ARG));
    if (!w->words || !w->scale) return missing(name, "words and scale are needed");
    if (w->group ? !w->step || !w->base || w->zero : w->step || w->base)
        return missing(name, "step and base go with a group, zero goes without");
    if (!w->hadamard || w->online) goto done;
    RQ_TRY(RQ_NEW(h, 2));
    w->online = rq_pack_own(p, h);
    RQ_TRY(rq_hadamard_make(h, w->hadamard));
done:
    return status;
}

/* ---- what is the same for all formats ------------------------------------------------------------------------------------ */

typedef struct dense_job {
    const rq_packed *p;
    const rq_kernel *unpack; /* NULL: row by row from the definition */
    float *dst;
    int64_t n_in, row0, n_rows;
} dense_job;

static void dense_body(void *arg, int64_t item) {
    const dense_job *j = arg;
    const int64_t r0 = item * ROWS_PER_ITEM, r1 = rq_min_i64(j->n_rows, r0 + ROWS_PER_ITEM);
    if (j->unpack) {
        j->unpack->unpack(j->dst + r0 * j->n_in, &j->p->u, j->row0 + r0, r1 - r0);
        return;
    }
    for (int64_t r = r0; r < r1; ++r) rq_unpack_row(j->p, j->row0 + r, j->dst + r * j->n_in);
}

static rq_status dense(const rq_packed *p, float *dst, int64_t row0, int64_t n_rows) {
    if (row0 < 0 || n_rows < 0 || row0 > p->n_out - n_rows || !dst) {
        return rq_fail(RQ_ERR_ARG, "rows %lld .. %lld of %lld, or no place for them", (long long)row0,
                       (long long)row0 + n_rows, (long long)p->n_out);
    }
    const bool sorted = p->format == RQ_FORMAT_GRID && p->u.grid.perm; /* kernels write columns as they are stored */
    dense_job j = {.p = p, .dst = dst, .n_in = p->n_in, .row0 = row0, .n_rows = n_rows};
    j.unpack = sorted ? NULL : rq_kernel_pick("unpack", rq_format_get(p->format)->name);
    rq_parallel_for(rq_ceil_div(n_rows, ROWS_PER_ITEM), dense_body, &j);
    return RQ_OK;
}

static rq_status linear(const rq_packed *p, float *y, const float *bias, const float *x, int64_t n_tok) {
    const rq_linear l = {
        .name = rq_format_get(p->format)->name, .n_out = p->n_out, .n_in = p->n_in, .packed = p, .bias = bias};
    return rq_linear_apply(&l, y, x, n_tok);
}

#define RQ_FORMAT(id, name)                                                                                            \
    rq_status rq_##name##_linear(float *y, const rq_##name *w, const float *bias, const float *x, int64_t n_tok) {     \
        rq_status status = RQ_OK;                                                                                      \
        rq_packed p;                                                                                                   \
        RQ_TRY(take_##name(&p, w));                                                                                    \
        p.n_out = w->n_out;                                                                                            \
        p.n_in = w->n_in;                                                                                              \
        RQ_TRY(linear(&p, y, bias, x, n_tok));                                                                         \
    done:                                                                                                              \
        rq_packed_free(&p);                                                                                            \
        return status;                                                                                                 \
    }                                                                                                                  \
    rq_status rq_##name##_dense(float *dst, const rq_##name *w, int64_t row0, int64_t n_rows) {                        \
        rq_status status = RQ_OK;                                                                                      \
        rq_packed p;                                                                                                   \
        RQ_TRY(take_##name(&p, w));                                                                                    \
        p.n_out = w->n_out;                                                                                            \
        p.n_in = w->n_in;                                                                                              \
        RQ_TRY(dense(&p, dst, row0, n_rows));                                                                          \
    done:                                                                                                              \
        rq_packed_free(&p);                                                                                            \
        return status;                                                                                                 \
    }
#include "formats.def"
#undef RQ_FORMAT

/* ---- activations ---------------------------------------------------------------------------------------------------------- */

typedef union act_operand { /* what a row of kernels.def for quantize reads */
    rq_act_rows rows;
    rq_act_rmsnorm rmsnorm;
    rq_act_gated gated;
} act_operand;

typedef struct quantize_job {
    const rq_kernel *kernel;
    const rq_rows8 *to;
    act_operand operand;
    size_t after; /* where in the operand its rq_act_after is */
    float *scratch;
    int64_t n_tok, n_in;
} quantize_job;

static void quantize_body(void *arg, int64_t item) {
    const quantize_job *j = arg;
    const int64_t t0 = item * TOK_PER_ITEM, t1 = rq_min_i64(j->n_tok, t0 + TOK_PER_ITEM);
    act_operand a = j->operand;
    rq_act_after *after = (rq_act_after *)(void *)((char *)&a + j->after);
    if (j->scratch) after->scratch = j->scratch + item * j->n_in;
    j->kernel->quantize(j->to->codes, j->to->pitch, j->to->scale, j->to->sum, &a, t0, t1 - t0);
}

static rq_status quantize(quantize_job *j, const char *operand, const rq_rows8_input *input) {
    rq_status status = RQ_OK;
    rq_hadamard h[2];
    rq_act_after *after = (rq_act_after *)(void *)((char *)&j->operand + j->after);
    const rq_rows8 *to = j->to;
    int64_t size;
    if (!to || !to->codes || !to->scale || !to->sum || j->n_tok < 0 || j->n_in < 1 || to->pitch < j->n_in ||
        !rq_mul_size(j->n_tok, to->pitch, &size)) {
        return rq_fail(RQ_ERR_ARG,
                       "rows as int8: codes, scale, sum, sizes of at least 1 and a pitch of at least n_in are needed");
    }
    RQ_TRY(rq_kernels_check());
    if (input && input->hadamard) {
        if (input->hadamard < 0 || j->n_in % input->hadamard) {
            RQ_FAIL(RQ_ERR_ARG, "a Hadamard matrix of order %d on %lld columns", input->hadamard, (long long)j->n_in);
        }
        RQ_TRY(rq_hadamard_make(h, input->hadamard));
        RQ_TRY(RQ_NEW(j->scratch, rq_ceil_div(j->n_tok, TOK_PER_ITEM) * j->n_in));
        after->hadamard = &h[0];
    }
    after->factor = input ? input->factor : NULL;
    j->kernel = rq_kernel_pick("quantize", operand);
    rq_parallel_for(rq_ceil_div(j->n_tok, TOK_PER_ITEM), quantize_body, j);
done:
    free(j->scratch);
    return status;
}

rq_status rq_quantize_rows(const rq_rows8 *to, const float *x, int64_t n_tok, int64_t n_in,
                           const rq_rows8_input *input) {
    quantize_job j = {.to = to, .n_tok = n_tok, .n_in = n_in, .after = offsetof(rq_act_rows, after)};
    if (!x) return rq_fail(RQ_ERR_ARG, "rq_quantize_rows: no x");
    j.operand.rows = (rq_act_rows){.n_in = n_in, .x = x};
    return quantize(&j, "act_rows", input);
}

rq_status rq_quantize_rmsnorm(const rq_rows8 *to, float *stream, const float *x, const float *residual,
                              const float *weight, float eps, int64_t n_tok, int64_t n_in,
                              const rq_rows8_input *input) {
    quantize_job j = {.to = to, .n_tok = n_tok, .n_in = n_in, .after = offsetof(rq_act_rmsnorm, after)};
    if (!x || (residual && !stream))
        return rq_fail(RQ_ERR_ARG, "rq_quantize_rmsnorm: x, and a stream with a residual, are needed");
    j.operand.rmsnorm = (rq_act_rmsnorm){
        .n_in = n_in, .x = x, .residual = residual, .stream = residual ? stream : NULL, .weight = weight, .eps = eps};
    return quantize(&j, "act_rmsnorm", input);
}

rq_status rq_quantize_gated(const rq_rows8 *to, const float *gate, const float *up, int64_t stride, int64_t n_tok,
                            int64_t n_in, const rq_rows8_input *input) {
    quantize_job j = {.to = to, .n_tok = n_tok, .n_in = n_in, .after = offsetof(rq_act_gated, after)};
    if (!gate || !up || stride < n_in)
        return rq_fail(RQ_ERR_ARG, "rq_quantize_gated: gate, up and a stride of at least n_in are needed");
    j.operand.gated = (rq_act_gated){.n_in = n_in, .stride = stride, .gate = gate, .up = up};
    return quantize(&j, "act_gated", input);
}

rq_status rq_w4a8_product(float *y, const rq_w4a8 *w, const float *bias, const rq_rows8 *x, int64_t n_tok) {
    rq_status status = RQ_OK;
    rq_packed p;
    RQ_TRY(take_w4a8(&p, w));
    if (!y || !x || !x->codes || !x->scale || !x->sum || x->pitch < w->n_in || n_tok < 0) {
        RQ_FAIL(RQ_ERR_ARG, "rq_w4a8_product: y, and codes, scale, sum and a pitch of at least n_in, are needed");
    }
    RQ_TRY(rq_kernels_check());
    const rq_act8 act = {x->codes, x->pitch, x->scale, x->sum};
    RQ_TRY(rq_linear_w4a8_act8(&p.u.w4a8, bias, y, &act, n_tok));
done:
    rq_packed_free(&p);
    return status;
}

typedef struct hadamard_job {
    const rq_hadamard *h;
    float *x;
    int64_t n_in;
} hadamard_job;

static void hadamard_body(void *arg, int64_t item) {
    const hadamard_job *j = arg;
    rq_hadamard_apply(j->h, j->x + item * j->n_in, j->n_in);
}

rq_status rq_hadamard_rows(float *x, int64_t n_tok, int64_t n_in, int64_t order, bool transposed) {
    rq_hadamard h[2];
    if (!x || n_tok < 0 || n_in < 1 || order < 1 || n_in % order) {
        return rq_fail(RQ_ERR_ARG, "a Hadamard matrix of order %lld on rows of %lld", (long long)order,
                       (long long)n_in);
    }
    rq_status status = rq_hadamard_make(h, order);
    if (status != RQ_OK) return status;
    hadamard_job j = {&h[transposed ? 1 : 0], x, n_in};
    rq_parallel_for(n_tok, hadamard_body, &j);
    return RQ_OK;
}

rq_status rq_rotate_rows(float *x, int64_t n_tok, int64_t n, const char *kind, uint64_t seed, bool inverse) {
    rq_status status = RQ_OK;
    rq_rotation *r = NULL;
    if (!x || !kind || n_tok < 0) return rq_fail(RQ_ERR_ARG, "rq_rotate_rows: x and a kind are needed");
    RQ_TRY(rq_rotation_new(&r, n, seed, kind));
    RQ_TRY(rq_rotation_apply(r, x, n_tok, n, inverse));
done:
    rq_rotation_free(r);
    return status;
}
