/* SPDX-License-Identifier: Apache-2.0 */
/* A model on a GPU, for generation: packed matrices as tiles (rq_repack.h), those with one input stacked where their format allows it; dense ones, the
 * embedding and the head as fp16; norms and angles as fp32.
 *
 * The rotation of a rotated model is folded: into the rows of the embedding, x' = x R, and into those of the head, whose product with
 * (y R^T) * norm_f is that of ((row * norm_f) R) with y. Each is rounded to fp16 once. */
#include <math.h>

#include "backend_cuda_decode.h"
#include "llama_block.h"
#include "rq_repack.h"

enum { CHUNK_FLOATS = 1 << 22, F16_MOST = 65504 };

/* ---- what goes where ---------------------------------------------------------------------------------------------------- */

static rq_tile_kind kind_of(rq_format f) {
    switch (f) {
    case RQ_FORMAT_GRID: return RQ_TILE_GRID;
    case RQ_FORMAT_SSVQ: return RQ_TILE_SSVQ;
    case RQ_FORMAT_VQ: return RQ_TILE_VQ;
    default: return RQ_TILE_W4A8;
    }
}

/* The union's members side by side, for the functions of rq_repack.h. */
typedef union operands {
    rq_grid grid[3];
    rq_ssvq ssvq[3];
    rq_vq vq[3];
    rq_w4a8 w4a8[3];
} operands;

static void take_operands(operands *o, const cuda_stack *s) {
    memset(o, 0, sizeof *o);
    for (int i = 0; i < s->n; ++i) {
        const rq_packed *p = s->linear[i]->packed;
        switch (p->format) {
        case RQ_FORMAT_GRID: o->grid[i] = p->u.grid; break;
        case RQ_FORMAT_SSVQ: o->ssvq[i] = p->u.ssvq; break;
        case RQ_FORMAT_VQ: o->vq[i] = p->u.vq; break;
        default: o->w4a8[i] = p->u.w4a8; break;
        }
    }
}

static rq_status plan_tiles(cuda_stack *s, const char **why) {
    operands o;
    take_operands(&o, s);
    switch (s->linear[0]->packed->format) {
    case RQ_FORMAT_GRID: return rq_repack_grid_plan(&s->tiles, o.grid, s->n, why);
    case RQ_FORMAT_SSVQ: return rq_repack_ssvq_plan(&s->tiles, o.ssvq, s->n, why);
    case RQ_FORMAT_VQ: return rq_repack_vq_plan(&s->tiles, o.vq, s->n, why);
    default: return rq_repack_w4a8_plan(&s->tiles, o.w4a8, s->n, why);
    }
}

static void describe(rq_cuda_gemv_desc *d, const rq_tile_layout *t) {
    d->kind = t->kind;
    d->bits = t->bits;
    d->group = t->kind == RQ_TILE_W4A8 || t->group ? t->group : t->n_in;
    d->zeros = t->zeros;
    d->vec_len = t->vec_len;
    d->n_book = t->n_book;
    d->book_cols = t->book_cols;
    d->code_bits = t->code_bits;
    d->book_u8 = t->book_u8;
    d->n_outlier = t->n_outlier;
    d->vec_out = t->vec_out;
    d->n_stage = t->n_stage;
    d->n_codes[0] = t->n_codes[0];
    d->n_codes[1] = t->n_codes[1];
    d->no_scales = t->no_scales;
    d->columns = t->columns;
    d->x_s8 = t->kind == RQ_TILE_W4A8;
}

/* Fills the matrix without its pointers, or says why there is no such stack. */
static rq_status plan_stack(cuda_stack *s, const char **why) {
    rq_cuda_decode_matrix *m = s->to;
    bool packed = s->linear[0]->packed && !s->gain && !s->rotated;
    memset(m, 0, sizeof *m);
    m->gemv = rq_cuda_gemv_desc_default();
    m->gemv.n_in = s->linear[0]->n_in;
    m->dense = !packed;
    for (int i = 0; i < s->n; ++i) {
        const rq_linear *l = s->linear[i];
        m->gemv.n_out += l->n_out;
        if ((l->packed != NULL) != (s->linear[0]->packed != NULL) ||
            (l->packed && l->packed->format != s->linear[0]->packed->format)) {
            *why = "they are of several formats";
            return RQ_ERR_UNSUPPORTED;
        }
        /* Until it is uploaded the address is the host's: the plan of a step looks only at whether there is one. */
        if (l->bias) m->bias = l->bias;
    }
    if (!packed) return RQ_OK;
    rq_status status = plan_tiles(s, why);
    if (status != RQ_OK) return status;
    describe(&m->gemv, &s->tiles);
    rq_cuda_gemv_desc d = m->gemv;
    d.bias = m->bias != NULL;
    status = rq_cuda_gemv_supports(&d, why);
    if (status == RQ_OK && m->gemv.kind == RQ_TILE_W4A8) {
        const rq_w4a8 *w = &s->linear[0]->packed->u.w4a8;
        m->hadamard = w->hadamard ? &w->online[0] : NULL;
        m->factor = w->in_scale;
    }
    return status;
}

static int64_t stack_bytes(const cuda_stack *s) {
    const rq_cuda_decode_matrix *m = s->to;
    int64_t bytes = m->dense ? rq_tile_round(m->gemv.n_out * m->gemv.n_in * 2) : s->tiles.bytes;
    if (m->bias) bytes += rq_tile_round(m->gemv.n_out * 2);
    if (!m->dense && m->gemv.kind == RQ_TILE_GRID && s->linear[0]->packed->u.grid.perm)
        bytes += rq_tile_round(m->gemv.n_in * 4);
    return bytes;
}

/* n matrices with one input: as one, or, where that cannot be, each by itself. */
static rq_status plan_group(cuda_weights *w, rq_cuda_decode_matrix *to, int *n_to, const rq_linear *l, int n) {
    const char *why = "";
    cuda_stack *s = &w->stack[w->n_stack];
    *s = (cuda_stack){.n = n, .to = to};
    for (int i = 0; i < n; ++i) s->linear[i] = l + i;
    *n_to = 1;
    if (plan_stack(s, &why) == RQ_OK) {
        w->bytes += stack_bytes(s);
        ++w->n_stack;
        return RQ_OK;
    }
    *n_to = n;
    for (int i = 0; i < n; ++i) {
        s = &w->stack[w->n_stack++];
        *s = (cuda_stack){.n = 1, .to = to + i, .linear = {l + i}};
        rq_status status = plan_stack(s, &why);
        if (status != RQ_OK)
            return rq_fail(status, "%s [%lld, %lld] cannot run on a GPU: %s", l[i].name, (long long)l[i].n_out,
                           (long long)l[i].n_in, why);
        w->bytes += stack_bytes(s);
    }
    return RQ_OK;
}

rq_status cuda_weights_plan(cuda_weights *w, const rq_model *m, int64_t max_seq) {
    rq_status status = RQ_OK;
    const rq_config *c = &m->cfg;
    memset(w, 0, sizeof *w);
    w->m = m;
    w->max_memory = c->n_layer * (3 * RQ_N_LINEARS + 2) + 16;
    RQ_TRY(RQ_NEW_ZERO(w->layer, c->n_layer));
    RQ_TRY(RQ_NEW_ZERO(w->stack, c->n_layer * RQ_N_LINEARS + 1));
    RQ_TRY(RQ_NEW_ZERO(w->memory, w->max_memory));
    for (int64_t i = 0; i < c->n_layer; ++i) {
        rq_cuda_decode_layer *l = &w->layer[i];
        const rq_linear *from = m->block[i].lin;
        int one;
        RQ_TRY(plan_group(w, l->qkv, &l->n_qkv, from + RQ_Q, 3));
        RQ_TRY(plan_group(w, &l->o, &one, from + RQ_O, 1));
        RQ_TRY(plan_group(w, l->gate_up, &l->n_gate_up, from + RQ_GATE, 2));
        RQ_TRY(plan_group(w, &l->down, &one, from + RQ_DOWN, 1));
        w->bytes += 2 * rq_tile_round(c->d_model * 4);
    }
    rq_cuda_decode_desc *d = &w->desc;
    *d = rq_cuda_decode_desc_default();
    d->n_layer = c->n_layer;
    d->d_model = c->d_model;
    d->d_ff = c->d_ff;
    d->n_head = c->n_head;
    d->n_kv_head = c->n_kv_head;
    d->head_dim = c->head_dim;
    d->n_vocab = c->n_vocab;
    d->max_seq = max_seq;
    d->eps = c->rms_eps;
    d->layer = w->layer;
    const char *why = "";
    w->embed = (cuda_stack){.linear = {&m->embed}, .n = 1, .rotated = m->rotation != NULL, .to = &w->embed_matrix};
    w->embed_matrix = (rq_cuda_decode_matrix){.dense = 1};
    w->embed_matrix.gemv.n_out = c->n_vocab;
    w->embed_matrix.gemv.n_in = c->d_model;
    w->bytes += stack_bytes(&w->embed) + rq_tile_round(c->d_model * 4) + rq_tile_round(max_seq * c->head_dim * 4);
    cuda_stack *head = &w->stack[w->n_stack];
    *head = (cuda_stack){.linear = {&m->head}, .n = 1, .rotated = m->rotation != NULL, .to = &d->head};
    if (m->rotation) head->gain = m->norm_f;
    status = plan_stack(head, &why);
    if (status != RQ_OK) RQ_FAIL(status, "%s cannot run on a GPU: %s", m->head.name, why);
    /* A head that is the embedding, and is read as it is, is there already. */
    if (d->head.dense && !m->rotation && c->tied_head) goto done;
    w->bytes += stack_bytes(head);
    ++w->n_stack;
done:
    return status;
}

/* ---- to the device ------------------------------------------------------------------------------------------------------ */

rq_status cuda_weights_put(cuda_weights *w, void **to, const void *from, int64_t bytes, const char *what) {
    rq_status status = RQ_OK;
    *to = NULL;
    if (w->n_memory == w->max_memory) RQ_FAIL(RQ_ERR_ARG, "%s: too many buffers on the device", what);
    CUDA_TRY(cudaMalloc(to, (size_t)rq_max_i64(bytes, 1)), what);
    w->memory[w->n_memory++] = *to;
    if (from) CUDA_TRY(cudaMemcpy(*to, from, (size_t)bytes, cudaMemcpyHostToDevice), what);
done:
    return status;
}

typedef struct halves_job {
    rq_f16 *to;
    const float *from;
    int64_t n;
    _Atomic bool too_large;
} halves_job;

enum { HALVES_OF_TASK = 1 << 14 };
static void halves_item(void *arg, int64_t item) {
    halves_job *j = arg;
    int64_t end = rq_min_i64(j->n, (item + 1) * HALVES_OF_TASK);
    for (int64_t i = item * HALVES_OF_TASK; i < end; ++i) {
        j->to[i] = rq_f16_of_f32(j->from[i]);
        if (!(fabsf(j->from[i]) <= F16_MOST)) j->too_large = true;
    }
}

static rq_status to_halves(rq_f16 *to, const float *from, int64_t n, const char *what) {
    halves_job j = {to, from, n, false};
    rq_parallel_for(rq_ceil_div(n, HALVES_OF_TASK), halves_item, &j);
    return j.too_large ? rq_fail(RQ_ERR_UNSUPPORTED, "%s has numbers that fp16 cannot hold", what) : RQ_OK;
}

/* Rows as fp16, a few thousand at a time. */
static rq_status upload_dense(cuda_weights *w, const cuda_stack *s, void **to) {
    rq_status status = RQ_OK;
    const int64_t n_in = s->to->gemv.n_in, chunk = rq_max_i64(1, CHUNK_FLOATS / n_in);
    float *rows = NULL;
    rq_f16 *halves = NULL;
    int64_t at = 0;
    RQ_TRY(RQ_NEW(rows, chunk * n_in));
    RQ_TRY(RQ_NEW(halves, chunk * n_in));
    RQ_TRY(cuda_weights_put(w, to, NULL, s->to->gemv.n_out * n_in * 2, s->linear[0]->name));
    for (int i = 0; i < s->n; ++i) {
        const rq_linear *l = s->linear[i];
        for (int64_t row = 0; row < l->n_out; row += chunk) {
            const int64_t n = rq_min_i64(chunk, l->n_out - row);
            RQ_TRY(rq_linear_rows(l, row, n, rows));
            for (int64_t k = 0; s->gain && k < n * n_in; ++k) rows[k] *= s->gain[k % n_in];
            if (s->rotated) RQ_TRY(rq_rotation_apply(w->m->rotation, rows, n, n_in, false));
            RQ_TRY(to_halves(halves, rows, n * n_in, l->name));
            CUDA_TRY(cudaMemcpy((rq_f16 *)*to + at, halves, (size_t)(n * n_in) * 2, cudaMemcpyHostToDevice), l->name);
            at += n * n_in;
        }
    }
done:
    free(rows);
    free(halves);
    return status;
}

static rq_status upload_tiles(cuda_weights *w, const cuda_stack *s, void **to) {
    rq_status status = RQ_OK;
    const char *why = "", *name = s->linear[0]->name;
    char *bytes = NULL;
    operands o;
    take_operands(&o, s);
    RQ_TRY(RQ_NEW(bytes, s->tiles.bytes));
    switch (s->linear[0]->packed->format) {
    case RQ_FORMAT_GRID: status = rq_repack_grid(bytes, &s->tiles, o.grid, s->n, &why); break;
    case RQ_FORMAT_SSVQ: rq_repack_ssvq(bytes, &s->tiles, o.ssvq, s->n); break;
    case RQ_FORMAT_VQ: rq_repack_vq(bytes, &s->tiles, o.vq, s->n); break;
    default: rq_repack_w4a8(bytes, &s->tiles, o.w4a8, s->n); break;
    }
    if (status != RQ_OK) RQ_FAIL(status, "%s cannot be repacked: %s", name, why);
    RQ_TRY(cuda_weights_put(w, to, bytes, s->tiles.bytes, name));
done:
    free(bytes);
    return status;
}

static rq_status upload_bias(cuda_weights *w, const cuda_stack *s, void **to) {
    rq_status status = RQ_OK;
    const int64_t n_out = s->to->gemv.n_out;
    rq_f16 *bias = NULL;
    int64_t at = 0;
    RQ_TRY(RQ_NEW_ZERO(bias, n_out));
    for (int i = 0; i < s->n; ++i) {
        const rq_linear *l = s->linear[i];
        if (l->bias) RQ_TRY(to_halves(bias + at, l->bias, l->n_out, l->name));
        at += l->n_out;
    }
    RQ_TRY(cuda_weights_put(w, to, bias, n_out * 2, s->linear[0]->name));
done:
    free(bias);
    return status;
}

static rq_status upload_stack(cuda_weights *w, const cuda_stack *s) {
    rq_status status = RQ_OK;
    rq_cuda_decode_matrix *m = s->to;
    void *at = NULL;
    RQ_TRY((m->dense ? upload_dense : upload_tiles)(w, s, &at));
    m->weights = at;
    m->weight_bytes = m->dense ? 0 : s->tiles.bytes;
    if (m->bias) {
        RQ_TRY(upload_bias(w, s, &at));
        m->bias = at;
    }
    if (m->dense) goto done;
    if (m->gemv.kind == RQ_TILE_GRID && s->linear[0]->packed->u.grid.perm) {
        RQ_TRY(cuda_weights_put(w, &at, s->linear[0]->packed->u.grid.perm, m->gemv.n_in * 4, s->linear[0]->name));
        m->perm = at;
    }
    if (m->factor) {
        const void *factors = (const char *)m->weights + s->tiles.factors_at;
        m->factor = factors;
    }
done:
    return status;
}

static rq_status upload_floats(cuda_weights *w, const float **to, const float *from, int64_t n, const char *what) {
    void *at = NULL;
    rq_status status = cuda_weights_put(w, &at, from, n * (int64_t)sizeof *from, what);
    *to = at;
    return status;
}

rq_status cuda_weights_upload(cuda_weights *w) {
    rq_status status = RQ_OK;
    const rq_model *m = w->m;
    rq_cuda_decode_desc *d = &w->desc;
    float *rope = NULL;
    for (int64_t i = 0; i < w->n_stack; ++i) RQ_TRY(upload_stack(w, &w->stack[i]));
    RQ_TRY(upload_stack(w, &w->embed));
    d->embed = w->embed_matrix.weights;
    if (!d->head.weights) d->head.weights = d->embed;
    for (int64_t i = 0; i < d->n_layer; ++i) {
        RQ_TRY(upload_floats(w, &w->layer[i].norm1, m->block[i].norm1, d->d_model, "a norm"));
        RQ_TRY(upload_floats(w, &w->layer[i].norm2, m->block[i].norm2, d->d_model, "a norm"));
    }
    if (!m->rotation) RQ_TRY(upload_floats(w, &d->norm_f, m->norm_f, d->d_model, "the last norm"));
    RQ_TRY(rq_rope_table(&rope, m, 0, d->max_seq));
    RQ_TRY(upload_floats(w, &d->rope, rope, d->max_seq * d->head_dim, "rotary angles"));
    /* A copy from memory that is not pinned may return before its end, and a stream that does not block would not wait for it. */
    CUDA_TRY(cudaDeviceSynchronize(), "the weights");
done:
    free(rope);
    return status;
}

void cuda_weights_free(cuda_weights *w) {
    for (int64_t i = 0; i < w->n_memory; ++i) (void)cudaFree(w->memory[i]);
    free(w->memory);
    free(w->stack);
    free(w->layer);
    memset(w, 0, sizeof *w);
}
