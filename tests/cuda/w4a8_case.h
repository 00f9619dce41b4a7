/* SPDX-License-Identifier: Apache-2.0 */
/* A stack of W4A8 matrices with int8 activations, and its product in plain 64-bit integers and the few roundings of fmt_w4a8.h: what the CUDA
 * kernels must give to the last bit. And with e4m3 activations, in double: small integers, whose sums every order and width of summation gives
 * exactly, to the last bit too; any numbers within a bound. */
#ifndef RQ_W4A8_CASE_H
#define RQ_W4A8_CASE_H
#include "cudatest.h"
#include "fmt_act.h"
#include "rq_cuda.h"
#include "rq_repack.h"

enum w4a8_x { W4A8_S8, W4A8_E4M3_SMALL, W4A8_E4M3 };
typedef struct w4a8_problem {
    const char *what;
    int n_out, n_in, n_tok, group; /* of each matrix of the stack */
    bool zeros, bf16, bias, residual;
    int stack; /* 0: one */
    int split; /* 1: demand that the columns are cut */
    enum w4a8_x x = W4A8_S8;
    int pitch = 0; /* n_in */
} w4a8_problem;
static inline int w4a8_pitch(const w4a8_problem *p) { return p->pitch ? p->pitch : p->n_in; }

typedef struct w4a8_case {
    rq_tile_layout layout;
    int n_out; /* of the stack */
    uint8_t *packed;
    int8_t *level;      /* [n_out][n_in] */
    float *scale;       /* [n_out] */
    int8_t *x;          /* [n_tok][pitch], int8 or e4m3 */
    float *x_scale;     /* [n_tok] */
    int32_t *x_sum;     /* [n_tok], of int8 */
    float *x_block_sum; /* [blocks][sum_pitch], of e4m3 */
    int n_block, sum_pitch;
    double *exact, *bound; /* [n_tok][n_out], of e4m3: y before its last rounding, and how far off it may be */
    uint16_t *bias, *residual, *want; /* bias [n_out], the others [n_tok][n_out] */
} w4a8_case;

static inline float w4a8_value(const w4a8_problem *p, uint16_t b) {
    return p->bf16 ? rq_bf16_value(b) : rq_half_value(b);
}
static inline uint16_t w4a8_bits(const w4a8_problem *p, float v) { return p->bf16 ? rq_bf16_bits(v) : rq_half_bits(v); }

/* One matrix of the stack; its levels go to rows `first` on of the case. */
static inline rq_w4a8 w4a8_matrix(const w4a8_problem *p, w4a8_case *c, int first, rq_rng *rng) {
    rq_w4a8 w = {};
    w.n_out = p->n_out, w.n_in = p->n_in, w.group = p->group;
    w.n_group = p->group ? (p->n_in + p->group - 1) / p->group : 0, w.row_words = rq_w4a8_row_words(p->n_in);
    uint32_t *words = (uint32_t *)rq_host_alloc((size_t)(w.n_out * w.row_words) * 4);
    uint8_t *zero = (uint8_t *)rq_host_alloc((size_t)w.n_out), *step;
    step = (uint8_t *)rq_host_alloc((size_t)(w.n_out * w.n_group));
    int8_t *base = (int8_t *)rq_host_alloc((size_t)(w.n_out * w.n_group));
    rq_rand_bytes(rng, words, (size_t)(w.n_out * w.row_words) * 4);
    for (int64_t i = 0; i < w.n_out; ++i) {
        c->scale[first + i] = (rq_rand_float(rng) + 2.0f) / 1000;
        zero[i] = (uint8_t)(rq_rand_u32(rng) % 16);
        for (int64_t k = i * w.n_group; k < (i + 1) * w.n_group; ++k) { /* the ends of the range too */
            step[k] = (uint8_t)(rq_rand_u32(rng) % RQ_W4A8_MAX_STEP + 1);
            const int room = 255 - 15 * step[k];
            base[k] = (int8_t)(-128 + (k % 3 == 0 ? 0 : k % 3 == 1 ? room : (int)(rq_rand_u32(rng) % (room + 1u))));
        }
    }
    w.words = words, w.scale = c->scale + first, w.zero = p->zeros ? zero : NULL;
    w.step = p->group ? step : NULL, w.base = p->group ? base : NULL;
    for (int64_t i = 0; i < w.n_out; ++i)
        for (int64_t j = 0; j < w.n_in; ++j) c->level[(first + i) * w.n_in + j] = (int8_t)rq_w4a8_level(&w, i, j);
    return w;
}
static inline void w4a8_matrix_free(const rq_w4a8 *w) {
    free(const_cast<uint32_t *>(w->words)), free(const_cast<uint8_t *>(w->zero));
    free(const_cast<uint8_t *>(w->step)), free(const_cast<int8_t *>(w->base));
}

static inline double w4a8_x_value(const w4a8_problem *p, const w4a8_case *c, int t, int j) {
    const int8_t x = c->x[(size_t)t * w4a8_pitch(p) + j];
    return p->x == W4A8_S8 ? (double)x : (double)rq_e4m3_value((uint8_t)x);
}
/* Of e4m3: fp32 sums of 32 products, of 128 columns, of warps and parts, each rounded once, of numbers that are at most `size`: with a level of
 * up to 128 in size go a code and an offset of up to 255 each. The tensor cores of Hopper keep about 14 bits in a sum of 128 columns, of which
 * they may cut off as much in each of its four parts. */
static inline double w4a8_bound(const w4a8_problem *p, double size) {
    return size * ((p->n_in / 16 + 64) * 0x1p-24 + 0x1p-13);
}
static inline void w4a8_define(const w4a8_problem *p, w4a8_case *c) {
    for (int t = 0; t < p->n_tok; ++t)
        for (int i = 0; i < c->n_out; ++i) {
            double sum = 0, size = 0; /* of int8 below 2^31 */
            for (int j = 0; j < p->n_in; ++j) {
                const double x = w4a8_x_value(p, c, t, j);
                sum += c->level[(size_t)i * p->n_in + j] * x, size += fabs(x) * (p->group ? 2 * 255 : 2 * 15);
            }
            float y = (float)sum * c->scale[i];
            y *= c->x_scale[t];
            const size_t at = (size_t)t * c->n_out + i;
            double exact = sum * c->scale[i] * c->x_scale[t];
            if (p->bias) y += w4a8_value(p, c->bias[i]), exact += w4a8_value(p, c->bias[i]);
            if (p->residual) y += w4a8_value(p, c->residual[at]), exact += w4a8_value(p, c->residual[at]);
            c->want[at] = w4a8_bits(p, y);
            if (p->x != W4A8_E4M3) continue;
            c->exact[at] = exact;
            c->bound[at] = w4a8_bound(p, size * c->scale[i] * c->x_scale[t]) + (p->bias + p->residual) * 0x1p-23 +
                           fabs(exact) * (p->bf16 ? 0x1.01p-8 : 0x1.01p-11) + 0x1p-24;
        }
}

/* Random activations; those of e4m3 are any but NaN, or whole numbers from -2 to 2. What lies past n_in is not read, or does not count. */
static inline void w4a8_make_x(const w4a8_problem *p, w4a8_case *c, rq_rng *rng) {
    const int pitch = w4a8_pitch(p);
    const size_t n_x = (size_t)p->n_tok * pitch;
    c->n_block = (p->n_in + 127) / 128, c->sum_pitch = (p->n_tok + 3) / 4 * 4;
    c->x = (int8_t *)rq_host_alloc(n_x), c->x_scale = (float *)rq_host_alloc((size_t)p->n_tok * 4);
    c->x_sum = (int32_t *)rq_host_alloc((size_t)p->n_tok * 4);
    c->x_block_sum = (float *)rq_host_alloc((size_t)c->n_block * c->sum_pitch * 4);
    rq_rand_bytes(rng, c->x, n_x);
    for (size_t i = 0; p->x == W4A8_E4M3 && i < n_x; ++i)
        if ((c->x[i] & 0x7f) == 0x7f) c->x[i] = (int8_t)0x80;
    for (size_t i = 0; p->x == W4A8_E4M3_SMALL && i < n_x; ++i)
        c->x[i] = (int8_t)rq_e4m3_of((float)((uint8_t)c->x[i] % 5) - 2.0f);
    for (int j = 0; p->x == W4A8_S8 && j < p->n_in; ++j) /* the largest sums that there are */
        if (p->n_tok > 1) c->x[pitch + j] = -128;
    for (int t = 0; t < p->n_tok; ++t) {
        c->x_scale[t] = (rq_rand_float(rng) + 2.0f) / 300;
        for (int b = 0; b < c->n_block; ++b) {
            double sum = 0;
            for (int j = b * 128; j < p->n_in && j < b * 128 + 128; ++j) sum += w4a8_x_value(p, c, t, j);
            c->x_block_sum[(size_t)b * c->sum_pitch + t] = (float)sum;
            if (p->x == W4A8_S8) c->x_sum[t] += (int32_t)sum;
        }
    }
    for (size_t i = 0; i < n_x; ++i) /* NaN of e4m3 */
        if ((int)(i % pitch) >= p->n_in) c->x[i] = 0x7f;
}

static inline w4a8_case w4a8_make(const w4a8_problem *p) {
    enum { MOST = 4 };
    w4a8_case c = {};
    rq_rng rng = {(uint64_t)p->n_in * 7919u + (uint64_t)p->n_out * 31u + (uint64_t)p->n_tok};
    const int n = p->stack ? p->stack : 1;
    if (n > MOST) RQ_DIE("a stack of at most %d", MOST);
    c.n_out = n * p->n_out;
    const size_t n_y = (size_t)p->n_tok * c.n_out;
    c.level = (int8_t *)rq_host_alloc((size_t)c.n_out * p->n_in), c.scale = (float *)rq_host_alloc((size_t)c.n_out * 4);
    rq_w4a8 m[MOST];
    for (int i = 0; i < n; ++i) m[i] = w4a8_matrix(p, &c, i * p->n_out, &rng);
    const char *why = "";
    if (rq_repack_w4a8_plan(&c.layout, m, n, &why) != RQ_OK) RQ_DIE("%s: %s", p->what, why);
    c.packed = (uint8_t *)rq_host_alloc((size_t)c.layout.bytes);
    rq_repack_w4a8(c.packed, &c.layout, m, n);
    for (int i = 0; i < n; ++i) w4a8_matrix_free(&m[i]);
    c.bias = (uint16_t *)rq_host_alloc((size_t)c.n_out * 2), c.residual = (uint16_t *)rq_host_alloc(n_y * 2);
    c.want = (uint16_t *)rq_host_alloc(n_y * 2);
    c.exact = (double *)rq_host_alloc(n_y * 8), c.bound = (double *)rq_host_alloc(n_y * 8);
    w4a8_make_x(p, &c, &rng);
    for (int i = 0; i < c.n_out; ++i) c.bias[i] = w4a8_bits(p, rq_rand_float(&rng));
    for (size_t i = 0; i < n_y; ++i) c.residual[i] = w4a8_bits(p, rq_rand_float(&rng));
    w4a8_define(p, &c);
    return c;
}
static inline void w4a8_free(w4a8_case *c) {
    void *all[] = {c->packed,      c->level, c->scale,    c->x,    c->x_scale, c->x_sum,
                   c->x_block_sum, c->bias,  c->residual, c->want, c->exact,   c->bound};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; ++i) free(all[i]);
}

static inline rq_cuda_gemv_desc w4a8_describe(const w4a8_problem *p, const w4a8_case *c) {
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default();
    d.kind = RQ_TILE_W4A8, d.n_out = c->n_out, d.n_in = p->n_in, d.n_tok = p->n_tok, d.group = p->group;
    d.x_s8 = p->x == W4A8_S8, d.x_e4m3 = p->x != W4A8_S8, d.x_pitch = p->pitch;
    d.act = p->bf16 ? RQ_ACT_BF16 : RQ_ACT_F16, d.bias = p->bias, d.residual = p->residual;
    return d;
}
/* Everything on the device; a workspace of these bytes, zero. */
static inline rq_cuda_gemv_args w4a8_upload(const w4a8_problem *p, const w4a8_case *c, size_t workspace_bytes) {
    const size_t n_y = (size_t)p->n_tok * c->n_out;
    rq_cuda_gemv_args a = {};
    a.y = rq_device_buffer(n_y * 2);
    a.x = rq_device_copy(c->x, (size_t)p->n_tok * w4a8_pitch(p));
    a.x_scale = (const float *)rq_device_copy(c->x_scale, (size_t)p->n_tok * 4);
    if (p->x == W4A8_S8)
        a.x_sum = (const int32_t *)rq_device_copy(c->x_sum, (size_t)p->n_tok * 4);
    else
        a.x_block_sum = (const float *)rq_device_copy(c->x_block_sum, (size_t)c->n_block * c->sum_pitch * 4);
    a.weights = rq_device_copy(c->packed, (size_t)c->layout.bytes);
    if (p->bias) a.bias = rq_device_copy(c->bias, (size_t)c->n_out * 2);
    if (p->residual) a.residual = rq_device_copy(c->residual, n_y * 2);
    if (workspace_bytes) {
        void *zero = rq_host_alloc(workspace_bytes);
        a.workspace = rq_device_copy(zero, workspace_bytes);
        free(zero);
    }
    return a;
}
/* y is what it must be, and the workspace zero again. */
static inline void w4a8_check(const w4a8_problem *p, const w4a8_case *c, const rq_cuda_gemv_args *a,
                              size_t workspace_bytes) {
    const size_t n_y = (size_t)p->n_tok * c->n_out;
    CHECK_CUDA(cudaDeviceSynchronize());
    uint16_t *y = (uint16_t *)rq_host_alloc(n_y * 2);
    rq_device_read(y, a->y, n_y * 2);
    const long before = rq_test.failures;
    double worst = 0, most = 0;
    for (size_t i = 0; i < n_y; ++i)
        if (p->x != W4A8_E4M3) {
            EXPECT_EQ_AT(i, y[i], c->want[i]);
        } else {
            const double got = w4a8_value(p, y[i]);
            EXPECT_NEAR_AT(i, got, c->exact[i], c->bound[i]);
            worst = fmax(worst, fabs(got - c->exact[i]) / c->bound[i]), most = fmax(most, c->bound[i]);
        }
    if (p->x == W4A8_E4M3) printf("%-48s error %.2f of the bound\n", p->what, worst);
    if (rq_test.failures > before) fprintf(stderr, "  in %s\n", p->what);
    rq_record(p->what, p->bf16 ? RQ_BF16 : RQ_F16, y, n_y, 2 * most);
    free(y);
    if (!workspace_bytes) return;
    uint8_t *left = (uint8_t *)rq_host_alloc(workspace_bytes);
    rq_device_read(left, a->workspace, workspace_bytes);
    for (size_t i = 0; i < workspace_bytes; ++i)
        if (left[i]) EXPECT_EQ_AT(i, left[i], 0);
    free(left);
}
#endif
