/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels between the products of a decoder (cuda/decode_*_sm80.cu) against their definitions in double: the residual stream and its norm, SiLU and
 * product, attention over a cache at lengths around its tiles and parts, a plain matrix times one token, the likeliest token. fp16 and bfloat16; each
 * twice, the second time to the same bits. The whole decoder is in comp_decode.c. Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "cudatest.h"
#include "rq_cuda_decode.h"

static const double last_of[2] = {0x1p-11, 0x1p-8}; /* half a unit of the last place of act, relative */

static uint16_t bits_of(rq_act act, float v) { return act == RQ_ACT_F16 ? rq_half_bits(v) : rq_bf16_bits(v); }
static double value_of(rq_act act, uint16_t b) { return act == RQ_ACT_F16 ? rq_half_value(b) : rq_bf16_value(b); }
static uint16_t *random_act(rq_rng *r, rq_act act, size_t n, float size) {
    uint16_t *p = (uint16_t *)rq_host_alloc(n * 2);
    for (size_t i = 0; i < n; ++i) p[i] = bits_of(act, rq_rand_float(r) * size);
    return p;
}
static float *random_float(rq_rng *r, size_t n, float size) {
    float *p = (float *)rq_host_alloc(n * 4);
    for (size_t i = 0; i < n; ++i) p[i] = rq_rand_float(r) * size;
    return p;
}
/* Two runs may differ by a unit of the last place of numbers of that size. */
static void record_act(const char *name, rq_act act, const uint16_t *p, size_t n, double size) {
    rq_record(name, act == RQ_ACT_F16 ? RQ_F16 : RQ_BF16, p, n, size * 2 * last_of[act]);
}
#define RUN(call)                                                                                                      \
    do {                                                                                                               \
        if ((call) != RQ_OK) RQ_DIE("%s: %s", #call, rq_cuda_last_error());                                            \
        CHECK_CUDA(cudaDeviceSynchronize());                                                                           \
    } while (0)
#define REFUSED(call) EXPECT((call) != RQ_OK && rq_cuda_last_error()[0])

/* token: RQ_DECODE_MAX_TOK of them, or NULL. */
static rq_cuda_decode_state *state_of(int pos, int n, const int *token) {
    rq_cuda_decode_state s = {};
    for (int i = 0; i < RQ_DECODE_MAX_TOK; ++i) s.token[i] = token ? token[i] : i;
    s.n = n, s.pos = pos, s.bad = -1;
    return (rq_cuda_decode_state *)rq_device_copy(&s, sizeof s);
}

/* ---- norm */

enum { TABLE_ROWS = 7 };
typedef struct norm_case {
    int n, n_tok;
    rq_act act;
    bool table, weight, factor, q8, last_only;
} norm_case;

static void test_norm(const norm_case *c) {
    rq_rng r = {(uint64_t)(c->n * 16 + c->n_tok)};
    const size_t all = (size_t)c->n * c->n_tok;
    const int token[RQ_DECODE_MAX_TOK] = {3, 0, 6, 6, 1, 2, 5, 4, 3, 0, 6, 6, 1, 2, 5, 4},
              n_of_state = c->n_tok - c->n_tok / 3;
    float *stream = random_float(&r, all, 3), *weight = random_float(&r, (size_t)c->n, 2),
          *factor = random_float(&r, (size_t)c->n, 1), *got_stream = (float *)rq_host_alloc(all * 4);
    uint16_t *add = random_act(&r, c->act, all, 1), *table = random_act(&r, c->act, (size_t)c->n * TABLE_ROWS, 2);
    const int rows = c->last_only ? 1 : c->n_tok;
    const size_t out = (size_t)rows * c->n;
    uint16_t *h = (uint16_t *)rq_host_alloc(out * 2), *again = (uint16_t *)rq_host_alloc(out * 2);
    int8_t *q = (int8_t *)rq_host_alloc(out);
    float scale[RQ_DECODE_MAX_TOK];
    int32_t sum[RQ_DECODE_MAX_TOK];
    for (int time = 0; time < 2; ++time) {
        rq_cuda_decode_norm_args a = {};
        a.stream = (float *)rq_device_copy(stream, all * 4);
        void *to_h = rq_device_buffer(out * 2), *to_q = rq_device_buffer(out);
        float *to_scale = (float *)rq_device_buffer((size_t)rows * 4);
        int32_t *to_sum = (int32_t *)rq_device_buffer((size_t)rows * 4);
        if (c->q8)
            a.q = (int8_t *)to_q, a.scale = to_scale, a.sum = to_sum;
        else
            a.h = to_h;
        if (c->table)
            a.table = rq_device_copy(table, (size_t)c->n * TABLE_ROWS * 2), a.n_row = TABLE_ROWS;
        else
            a.add = rq_device_copy(add, all * 2);
        if (c->weight) a.weight = (const float *)rq_device_copy(weight, (size_t)c->n * 4);
        if (c->factor) a.factor = (const float *)rq_device_copy(factor, (size_t)c->n * 4);
        a.state = state_of(0, n_of_state, token), a.last_only = c->last_only;
        a.eps = 1e-5f, a.act = c->act, a.n_tok = c->n_tok, a.n = c->n, a.early_launch = time;
        if (time) a.ahead = rq_device_copy(stream, all * 4), a.ahead_bytes = (int64_t)all * 4 - 4;
        RUN(rq_cuda_decode_norm(&a, NULL));
        rq_device_read(got_stream, a.stream, all * 4);
        if (c->q8) {
            rq_device_read(q, to_q, out), rq_device_read(scale, to_scale, (size_t)rows * 4);
            rq_device_read(sum, to_sum, (size_t)rows * 4);
        } else {
            rq_device_read(time ? again : h, to_h, out * 2);
        }
        rq_device_free_all();
    }
    if (!c->q8) EXPECT(memcmp(h, again, out * 2) == 0);
    if (!c->q8) record_act("norm", c->act, h, out, 64);
    for (int row = 0; row < rows; ++row) {
        const int t = c->last_only ? n_of_state - 1 : row;
        double square = 0, most = 0;
        long long all_q = 0;
        double *v = (double *)rq_host_alloc((size_t)c->n * 8);
        for (int i = 0; i < c->n; ++i) {
            const size_t at = (size_t)t * c->n + i;
            const float s = c->table ? (float)value_of(c->act, table[(c->last_only ? 0 : token[t]) * c->n + i])
                                     : stream[at] + (float)value_of(c->act, add[at]);
            EXPECT_NEAR_AT(at, got_stream[at], c->last_only ? stream[at] : s, 0);
            v[i] = s, square += (double)s * s;
        }
        for (int i = 0; i < c->n; ++i) {
            v[i] /= sqrt(square / c->n + (double)1e-5f);
            if (c->weight) v[i] *= weight[i];
            if (c->factor) v[i] *= factor[i];
            most = fmax(most, fabs(v[i]));
        }
        if (c->q8) EXPECT_NEAR_AT(row, scale[row], most / 127, most / 127 * 0x1p-20);
        for (int i = 0; i < c->n; ++i) {
            const size_t at = (size_t)row * c->n + i;
            if (c->q8) {
                EXPECT_NEAR_AT(at, q[at], v[i] / (most / 127), 0.5 + 127 * 0x1p-19);
                all_q += q[at];
            } else {
                EXPECT_NEAR_AT(at, value_of(c->act, h[at]), v[i], fabs(v[i]) * (last_of[c->act] + 0x1p-20) + 0x1p-24);
            }
        }
        if (c->q8) EXPECT_EQ_AT(row, sum[row], all_q);
        free(v);
    }
    free(stream), free(weight), free(factor), free(got_stream), free(add), free(table), free(h), free(again), free(q);
}

static void test_norms(void) {
    static const norm_case cases[] = {
        {64, 1, RQ_ACT_F16, true, true, false, false, false},
        {576, 3, RQ_ACT_F16, false, true, false, false, false},
        {4096, 2, RQ_ACT_BF16, false, true, false, false, false},
        {4104, 1, RQ_ACT_F16, false, false, false, false, false},
        {8200, 1, RQ_ACT_F16, false, true, false, false, false},
        {16384, 1, RQ_ACT_F16, false, true, true, true, false},
        {576, 16, RQ_ACT_F16, true, true, false, true, false},
        {4104, 2, RQ_ACT_BF16, false, true, true, true, false},
        {576, 7, RQ_ACT_F16, false, true, false, false, true},
        {8, 16, RQ_ACT_BF16, true, false, false, false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i)
        if (!rq_small() || cases[i].n <= 4104) test_norm(&cases[i]);
    /* A token without a row: NaN, and nothing read. */
    const int token[RQ_DECODE_MAX_TOK] = {TABLE_ROWS, -1};
    uint16_t table[TABLE_ROWS * 8] = {}, h[16];
    float stream[16];
    rq_cuda_decode_norm_args a = {};
    a.h = rq_device_buffer(sizeof h), a.stream = (float *)rq_device_buffer(sizeof stream);
    a.table = rq_device_copy(table, sizeof table), a.n_row = TABLE_ROWS, a.state = state_of(0, 2, token);
    a.n_tok = 2, a.n = 8;
    RUN(rq_cuda_decode_norm(&a, NULL));
    rq_device_read(h, a.h, sizeof h), rq_device_read(stream, a.stream, sizeof stream);
    for (int i = 0; i < 16; ++i) EXPECT(rq_half_value(h[i]) != rq_half_value(h[i]) && stream[i] != stream[i]);
    a.n = 12;
    REFUSED(rq_cuda_decode_norm(&a, NULL));
    a.n = 8, a.n_tok = 17;
    REFUSED(rq_cuda_decode_norm(&a, NULL));
    a.n_tok = 2, a.q = (int8_t *)a.h;
    REFUSED(rq_cuda_decode_norm(&a, NULL));
    rq_device_free_all();
}

/* ---- SiLU, repeated rows */

static void test_swiglu(rq_act act, int n, int n_tok, bool stacked) {
    rq_rng r = {(uint64_t)n};
    const size_t all = (size_t)n * n_tok;
    uint16_t *both = random_act(&r, act, 2 * all, 6), *y = (uint16_t *)rq_host_alloc(all * 2);
    const uint16_t *on_device = (const uint16_t *)rq_device_copy(both, 4 * all);
    void *to = rq_device_buffer(all * 2);
    rq_cuda_decode_swiglu_args a = {};
    a.y = to, a.gate = on_device, a.up = on_device + (stacked ? (size_t)n : all), a.pitch = stacked ? 2 * n : n;
    a.act = act, a.n_tok = n_tok, a.n = n, a.ahead = on_device, a.ahead_bytes = 4 * (int64_t)all;
    RUN(rq_cuda_decode_swiglu(&a, NULL));
    rq_device_read(y, to, all * 2);
    record_act("swiglu", act, y, all, 64);
    for (int t = 0; t < n_tok; ++t)
        for (int i = 0; i < n; ++i) {
            const size_t gate_at = (size_t)t * (size_t)a.pitch + i, up_at = gate_at + (stacked ? (size_t)n : all);
            const double g = value_of(act, both[gate_at]), want = g / (1 + exp(-g)) * value_of(act, both[up_at]);
            EXPECT_NEAR_AT(i, value_of(act, y[(size_t)t * n + i]), want,
                           fabs(want) * (last_of[act] + 0x1p-20) + 0x1p-24);
        }
    uint16_t *rows = (uint16_t *)rq_host_alloc(all * 2);
    void *repeated = rq_device_buffer(all * 2);
    RUN(rq_cuda_decode_repeat(repeated, on_device, n_tok, n, 0, NULL));
    rq_device_read(rows, repeated, all * 2);
    for (size_t i = 0; i < all; ++i) EXPECT_EQ_AT(i, rows[i], both[i % (size_t)n]);
    a.n = n + 4;
    REFUSED(rq_cuda_decode_swiglu(&a, NULL));
    rq_device_free_all();
    free(both), free(y), free(rows);
}

/* ---- attention */

typedef struct attention_case {
    int n_head, n_kv, head_dim, n_tok, pos, max_seq;
    rq_act act;
    bool stacked;
} attention_case;

typedef struct attention_data {
    uint16_t *qkv, *k_cache, *v_cache;
    float *rope;
} attention_data;

/* x rotated by the angles of a position, rounded to act if it goes to the cache. */
static void rotate(double *to, const attention_case *c, const attention_data *d, const uint16_t *x, int pos,
                   bool cached) {
    const int half = c->head_dim / 2;
    for (int i = 0; i < half; ++i) {
        const double a = value_of(c->act, x[i]), b = value_of(c->act, x[half + i]);
        const double co = d->rope[(size_t)pos * c->head_dim + i], si = d->rope[(size_t)pos * c->head_dim + half + i];
        to[i] = a * co - b * si, to[half + i] = b * co + a * si;
    }
    for (int i = 0; cached && i < c->head_dim; ++i) to[i] = value_of(c->act, bits_of(c->act, (float)to[i]));
}

static void compare_attention(const attention_case *c, const attention_data *d, const uint16_t *out,
                              const uint16_t *k_after, const uint16_t *v_after) {
    const int hd = c->head_dim, nq = c->n_head * hd, nkv = c->n_kv * hd, pitch = nq + 2 * nkv;
    const size_t cache = (size_t)nkv * c->max_seq;
    double *q = (double *)rq_host_alloc((size_t)hd * 8), *turned = (double *)rq_host_alloc((size_t)hd * 8);
    double *w = (double *)rq_host_alloc((size_t)c->max_seq * 8), worst = 0;
    /* What the caches are to be: as before, and the new keys and values. A key is within one rounding of its definition. */
    for (size_t i = 0; i < cache; ++i) {
        const int head = (int)(i / ((size_t)hd * c->max_seq)), p = (int)(i / hd % c->max_seq), t = p - c->pos,
                  column = (int)(i % hd);
        if (t < 0 || t >= c->n_tok) {
            EXPECT_EQ_AT(i, k_after[i], d->k_cache[i]);
            EXPECT_EQ_AT(i, v_after[i], d->v_cache[i]);
            continue;
        }
        const size_t row = c->stacked ? (size_t)t * pitch + nq : (size_t)c->n_tok * nq + (size_t)t * nkv;
        const uint16_t *k = d->qkv + row + (size_t)head * hd;
        const uint16_t *v = d->qkv + (c->stacked ? row + nkv : row + (size_t)c->n_tok * nkv) + (size_t)head * hd;
        rotate(turned, c, d, k, p, false);
        EXPECT_NEAR_AT(i, value_of(c->act, k_after[i]), turned[column],
                       fabs(turned[column]) * last_of[c->act] + 0x1p-22);
        EXPECT_EQ_AT(i, v_after[i], v[column]);
    }
    for (int t = 0; t < c->n_tok; ++t)
        for (int h = 0; h < c->n_head; ++h) {
            const int n_key = c->pos + t + 1;
            const size_t kv = (size_t)(h / (c->n_head / c->n_kv)) * c->max_seq * hd;
            rotate(q, c, d, d->qkv + (c->stacked ? (size_t)t * pitch : (size_t)t * nq) + (size_t)h * hd, c->pos + t,
                   false);
            double most = -INFINITY, sum = 0;
            for (int p = 0; p < n_key; ++p) {
                w[p] = 0;
                for (int i = 0; i < hd; ++i) w[p] += q[i] * value_of(c->act, k_after[kv + (size_t)p * hd + i]);
                w[p] /= sqrt(hd), most = fmax(most, w[p]);
            }
            for (int p = 0; p < n_key; ++p) sum += w[p] = exp(w[p] - most);
            for (int i = 0; i < hd; ++i) {
                double want = 0, size = 0;
                for (int p = 0; p < n_key; ++p) {
                    const double term = w[p] / sum * value_of(c->act, v_after[kv + (size_t)p * hd + i]);
                    want += term, size += fabs(term);
                }
                const double got = value_of(c->act, out[((size_t)t * c->n_head + h) * hd + i]);
                const double bound = fabs(want) * last_of[c->act] + size * 0x1p-16 + 0x1p-24;
                EXPECT_NEAR_AT(i, got, want, bound);
                worst = fmax(worst, fabs(got - want) / bound);
            }
        }
    printf("attention %2d/%d heads of %3d, %2d tokens at %4d: error %.2f of the bound\n", c->n_head, c->n_kv, hd,
           c->n_tok, c->pos, worst);
    free(q), free(turned), free(w);
}

static void test_attention(const attention_case *c) {
    rq_rng r = {(uint64_t)(c->pos * 64 + c->head_dim + c->n_head)};
    const int hd = c->head_dim, nq = c->n_head * hd, nkv = c->n_kv * hd, pitch = nq + 2 * nkv;
    const size_t all = (size_t)c->n_tok * pitch, cache = (size_t)nkv * c->max_seq, out = (size_t)c->n_tok * nq;
    attention_data d = {random_act(&r, c->act, all, 3), random_act(&r, c->act, cache, 3),
                        random_act(&r, c->act, cache, 1), random_float(&r, (size_t)c->max_seq * hd, 1)};
    uint16_t *got[2], *k_after = (uint16_t *)rq_host_alloc(cache * 2), *v_after = (uint16_t *)rq_host_alloc(cache * 2);
    rq_cuda_decode_attention_desc desc = {c->n_head, c->n_kv, hd, c->max_seq, c->n_tok, c->act, 0};
    rq_cuda_decode_attention_plan plan;
    RUN(rq_cuda_decode_attention_make_plan(&plan, &desc));
    void *workspace = rq_device_buffer(plan.workspace_bytes);
    CHECK_CUDA(cudaMemset(workspace, 0, plan.workspace_bytes));
    const uint16_t *qkv = (const uint16_t *)rq_device_copy(d.qkv, all * 2);
    rq_cuda_decode_attention_args a = {};
    a.q = qkv;
    if (c->stacked)
        a.k = qkv + nq, a.v = qkv + nq + nkv, a.q_pitch = a.k_pitch = a.v_pitch = pitch;
    else
        a.k = qkv + (size_t)c->n_tok * nq, a.v = qkv + (size_t)c->n_tok * (nq + nkv), a.q_pitch = nq,
        a.k_pitch = a.v_pitch = nkv;
    a.k_cache = rq_device_copy(d.k_cache, cache * 2), a.v_cache = rq_device_copy(d.v_cache, cache * 2);
    a.rope = (const float *)rq_device_copy(d.rope, (size_t)c->max_seq * hd * 4);
    a.state = state_of(c->pos, c->n_tok, NULL), a.workspace = workspace;
    for (int time = 0; time < 2; ++time) { /* the second with what the first has left in the workspace */
        got[time] = (uint16_t *)rq_host_alloc(out * 2);
        a.out = rq_device_buffer(out * 2);
        desc.early_launch = time;
        if (time) a.ahead = a.k_cache, a.ahead_bytes = (int64_t)cache * 2;
        RUN(rq_cuda_decode_attention_run(&plan, &desc, &a, NULL));
        rq_device_read(got[time], a.out, out * 2);
    }
    EXPECT(memcmp(got[0], got[1], out * 2) == 0);
    record_act("attention", c->act, got[0], out, 1);
    rq_device_read(k_after, a.k_cache, cache * 2), rq_device_read(v_after, a.v_cache, cache * 2);
    compare_attention(c, &d, got[0], k_after, v_after);
    rq_device_free_all();
    free(d.qkv), free(d.k_cache), free(d.v_cache), free(d.rope), free(got[0]), free(got[1]), free(k_after),
        free(v_after);
}

static void test_attentions(void) {
    static const attention_case cases[] = {
        {4, 4, 64, 1, 0, 8, RQ_ACT_F16, true},        {9, 3, 64, 1, 63, 128, RQ_ACT_F16, true},
        {9, 3, 64, 1, 64, 128, RQ_ACT_F16, false},    {8, 2, 128, 1, 126, 1008, RQ_ACT_F16, true},
        {8, 2, 128, 1, 127, 1008, RQ_ACT_BF16, true}, {8, 1, 128, 1, 128, 1008, RQ_ACT_F16, true},
        {8, 2, 128, 1, 999, 1008, RQ_ACT_F16, true},  {14, 2, 64, 1, 999, 1008, RQ_ACT_F16, false},
        {12, 1, 128, 1, 300, 320, RQ_ACT_F16, true},  {2, 1, 256, 1, 200, 208, RQ_ACT_F16, true},
        {2, 2, 96, 1, 70, 80, RQ_ACT_BF16, true},     {4, 2, 16, 1, 5, 16, RQ_ACT_F16, true},
        {9, 3, 64, 16, 0, 64, RQ_ACT_F16, true},      {4, 2, 128, 16, 50, 128, RQ_ACT_F16, false},
        {4, 1, 32, 5, 123, 128, RQ_ACT_BF16, true},   {4, 4, 8, 1, 30, 40, RQ_ACT_F16, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i)
        if (!rq_small() || cases[i].pos < 300) test_attention(&cases[i]);
    /* Past the end of the cache nothing is written or counted: what follows is right again. */
    rq_cuda_decode_attention_desc d = {2, 1, 64, 16, 1, RQ_ACT_F16, 0};
    rq_cuda_decode_attention_plan plan;
    RUN(rq_cuda_decode_attention_make_plan(&plan, &d));
    uint16_t zeros[16 * 64] = {}, out[128];
    float rope[16 * 64] = {};
    rq_cuda_decode_attention_args a = {};
    a.q = rq_device_copy(zeros, 256 * 2), a.k = (const uint16_t *)a.q + 128, a.v = (const uint16_t *)a.q + 192;
    a.q_pitch = a.k_pitch = a.v_pitch = 256, a.rope = (const float *)rq_device_copy(rope, sizeof rope);
    a.k_cache = rq_device_copy(zeros, sizeof zeros), a.v_cache = rq_device_copy(zeros, sizeof zeros);
    a.workspace = rq_device_buffer(plan.workspace_bytes), a.out = rq_device_copy(zeros, sizeof out);
    CHECK_CUDA(cudaMemset(a.workspace, 0, plan.workspace_bytes));
    a.state = state_of(16, 1, NULL);
    RUN(rq_cuda_decode_attention_run(&plan, &d, &a, NULL));
    rq_device_read(out, a.out, sizeof out);
    EXPECT(memcmp(out, zeros, sizeof out) == 0);
    d.head_dim = 60;
    REFUSED(rq_cuda_decode_attention_make_plan(&plan, &d));
    d.head_dim = 264;
    REFUSED(rq_cuda_decode_attention_make_plan(&plan, &d));
    d.head_dim = 64, d.n_kv_head = 3;
    REFUSED(rq_cuda_decode_attention_make_plan(&plan, &d));
    rq_device_free_all();
}

/* ---- the head */

static void test_dense(rq_act act, int n_out, int n_in) {
    rq_rng r = {(uint64_t)(n_out + n_in)};
    const size_t all = (size_t)n_out * n_in;
    uint16_t *w = random_act(&r, act, all, 1), *x = random_act(&r, act, (size_t)n_in, 2);
    float *y = (float *)rq_host_alloc((size_t)n_out * 4);
    rq_cuda_decode_dense_args a = {(float *)rq_device_buffer((size_t)n_out * 4),
                                   rq_device_copy(w, all * 2),
                                   rq_device_copy(x, (size_t)n_in * 2),
                                   n_out,
                                   n_in,
                                   act,
                                   0};
    RUN(rq_cuda_decode_dense(&a, NULL));
    rq_device_read(y, a.y, (size_t)n_out * 4);
    rq_record("dense", RQ_F32, y, (size_t)n_out, n_in * 0x1p-20);
    for (int i = 0; i < n_out; ++i) {
        double want = 0, size = 0;
        for (int j = 0; j < n_in; ++j) {
            const double term = value_of(act, w[(size_t)i * n_in + j]) * value_of(act, x[j]);
            want += term, size += fabs(term);
        }
        EXPECT_NEAR_AT(i, y[i], want, size * (n_in / 32 + 16) * 0x1p-24);
    }
    a.n_in = n_in + 1;
    REFUSED(rq_cuda_decode_dense(&a, NULL));
    rq_device_free_all();
    free(w), free(x), free(y);
}

typedef struct pick_case {
    int n, best, second, bad; /* logits of best and second are the same, the largest; bad: one that is NaN */
    bool act;
} pick_case;

static void test_pick(const pick_case *c) {
    rq_rng r = {(uint64_t)c->n};
    float *logits = random_float(&r, (size_t)c->n, 4), *got = (float *)rq_host_alloc((size_t)c->n * 4);
    uint16_t *half = (uint16_t *)rq_host_alloc((size_t)c->n * 2);
    logits[c->best] = logits[c->second] = 5;
    if (c->bad >= 0) logits[c->bad] = c->bad % 2 ? NAN : INFINITY;
    for (int i = 0; i < c->n; ++i) half[i] = rq_half_bits(logits[i]);
    rq_cuda_decode_pick_args a = {};
    a.logits = (float *)(c->act ? rq_device_buffer((size_t)c->n * 4) : rq_device_copy(logits, (size_t)c->n * 4));
    if (c->act) a.from = rq_device_copy(half, (size_t)c->n * 2);
    a.n = c->n, a.state = state_of(41, 3, NULL), a.workspace = rq_device_buffer(RQ_DECODE_PICK_BYTES);
    CHECK_CUDA(cudaMemset(a.workspace, 0, RQ_DECODE_PICK_BYTES));
    for (int time = 0; time < 2; ++time) RUN(rq_cuda_decode_pick(&a, NULL));
    rq_cuda_decode_state s;
    rq_device_read(&s, a.state, sizeof s);
    EXPECT_EQ(s.pos, 41 + 3 + 1);
    EXPECT_EQ(s.n, 1);
    EXPECT_EQ(s.bad, c->bad);
    if (c->bad < 0) rq_record("pick", RQ_I32, s.token, 1, 0);
    if (c->bad < 0) EXPECT_EQ(s.token[0], c->best < c->second ? c->best : c->second);
    rq_device_read(got, a.logits, (size_t)c->n * 4);
    for (int i = 0; i < c->n; ++i) EXPECT(i == c->bad || got[i] == (c->act ? rq_half_value(half[i]) : logits[i]));
    rq_device_free_all();
    free(logits), free(got), free(half);
}

int main(void) {
    rq_need_device(80);
    test_norms();
    test_swiglu(RQ_ACT_F16, 1536, 1, true);
    test_swiglu(RQ_ACT_BF16, 2056, 3, false);
    test_swiglu(RQ_ACT_F16, 8, 16, true);
    test_attentions();
    test_dense(RQ_ACT_F16, 1003, 576);
    test_dense(RQ_ACT_BF16, 33, 4096);
    test_dense(RQ_ACT_F16, 1, 8);
    static const pick_case picks[] = {
        {49152, 30000, 29999, -1, false}, {49152, 0, 49151, -1, true},   {1, 0, 0, -1, false},
        {257, 256, 255, -1, false},       {5000, 100, 200, 4321, false}, {5000, 7, 8, 0, true}};
    for (size_t i = 0; i < sizeof picks / sizeof *picks; ++i) test_pick(&picks[i]);
    return rq_done(__FILE__);
}
