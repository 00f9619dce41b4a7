/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of the forward pass (cuda/llama_*.cu) against their definitions in fp64; what inputs of w4a8 go through, and the rotary embedding, to the last
 * bit. Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "rq_cuda_llama.h"

#include "act_case.h"

static rq_rng rng = {1};

static float *random_floats(size_t n, float scale) {
    float *x = (float *)rq_host_alloc(n * sizeof *x);
    for (size_t i = 0; i < n; ++i) x[i] = scale * rq_rand_float(&rng);
    return x;
}
static float *there(const float *x, size_t n) { return (float *)rq_device_copy(x, n * sizeof *x); }
static float *back(const float *x, size_t n) {
    float *to = (float *)rq_host_alloc(n * sizeof *to);
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(to, x, n * sizeof *x);
    return to;
}

/* ---- rows */

static void test_rmsnorm(int n_tok, int width, bool gain, bool in_place) {
    const size_t n = (size_t)n_tok * width;
    float *x = random_floats(n, 3), *g = random_floats((size_t)width, 1), *d_x = there(x, n);
    float *d_out = in_place ? d_x : (float *)rq_device_buffer(n * 4), *d_norm = (float *)rq_device_buffer(n_tok * 4u);
    EXPECT_EQ(rq_cuda_row_norms(d_norm, d_x, n_tok, width, 0), RQ_OK);
    EXPECT_EQ(rq_cuda_rmsnorm(d_out, d_x, gain ? there(g, (size_t)width) : NULL, n_tok, width, 1e-5f, 0), RQ_OK);
    float *out = back(d_out, n), *norm = back(d_norm, (size_t)n_tok);
    for (int t = 0; t < n_tok; ++t) {
        double sum = 0;
        for (int j = 0; j < width; ++j) sum += (double)x[t * width + j] * x[t * width + j];
        EXPECT_NEAR_AT(t, norm[t], sqrt(sum), 1e-7 * sqrt(sum));
        for (int j = 0; j < width; ++j) {
            const double want = x[t * width + j] / sqrt(sum / width + 1e-5) * (gain ? (double)g[j] : 1);
            EXPECT_NEAR_AT(t * width + j, out[t * width + j], want, 3e-7 * fabs(want));
        }
    }
    rq_record("rmsnorm", RQ_F32, out, n, 1e-5);
    free(x), free(g), free(out), free(norm);
    rq_device_free_all();
}

static void test_elements(int n_tok, int width) {
    const size_t n = (size_t)n_tok * width;
    float *gate = random_floats(n, 8), *up = random_floats(n, 2), *by = random_floats((size_t)n_tok, 2),
          *bias = random_floats((size_t)width, 1);
    gate[0] = 200, gate[1 % n] = -200, gate[2 % n] = 0;
    by[0] = 0;
    if (n_tok > 2) by[2] = -1;
    float *d_gate = there(gate, n), *d_up = there(up, n), *d_by = there(by, (size_t)n_tok), *d_scaled = there(up, n);
    float *d_divided = there(up, n), *d_bias = there(bias, (size_t)width), *d_set = (float *)rq_device_buffer(n * 4);
    uint16_t *d_half = (uint16_t *)rq_device_buffer(n * 2), *half = (uint16_t *)rq_host_alloc(n * 2);
    EXPECT_EQ(rq_cuda_to_bf16(d_half, d_gate, (int64_t)n, 0), RQ_OK);
    EXPECT_EQ(rq_cuda_swiglu(d_gate, d_gate, d_up, (int64_t)n, 0), RQ_OK);
    EXPECT_EQ(rq_cuda_scale_rows(d_scaled, d_by, n_tok, width, 0, 0), RQ_OK);
    EXPECT_EQ(rq_cuda_scale_rows(d_divided, d_by, n_tok, width, 1, 0), RQ_OK);
    EXPECT_EQ(rq_cuda_bias(d_up, d_bias, n_tok, width, 1, 0), RQ_OK);
    EXPECT_EQ(rq_cuda_bias(d_set, d_bias, n_tok, width, 0, 0), RQ_OK);
    float *got = back(d_gate, n), *scaled = back(d_scaled, n), *divided = back(d_divided, n), *sum = back(d_up, n),
          *set = back(d_set, n);
    rq_device_read(half, d_half, n * 2);
    for (size_t i = 0; i < n; ++i) {
        const double g = (double)gate[i], want = g / (1 + exp(-g)) * (double)up[i];
        const float f = by[i / (size_t)width];
        EXPECT_NEAR_AT((long long)i, got[i], want, 1e-6 * fabs(want) + 1e-40);
        EXPECT_NEAR_AT((long long)i, scaled[i], up[i] * f, 0);
        EXPECT_NEAR_AT((long long)i, divided[i], f > 0 ? up[i] / f : up[i], 0);
        EXPECT_NEAR_AT((long long)i, sum[i], up[i] + bias[i % (size_t)width], 0);
        EXPECT_NEAR_AT((long long)i, set[i], bias[i % (size_t)width], 0);
        EXPECT_EQ_AT((long long)i, half[i], rq_bf16_bits(gate[i]));
    }
    free(gate), free(up), free(by), free(bias), free(half), free(got), free(scaled), free(divided), free(sum),
        free(set);
    rq_device_free_all();
}

static void test_column_max(int n_rows, int width) {
    const size_t n = (size_t)n_rows * width;
    float *x = random_floats(n, 1), *most = random_floats((size_t)width, 0.5f);
    for (int j = 0; j < width; ++j) most[j] = fabsf(most[j]);
    x[n / 2] = NAN;
    if (width > 2) x[2] = -INFINITY;
    float *d_most = there(most, (size_t)width);
    EXPECT_EQ(rq_cuda_column_max(d_most, there(x, n), n_rows, width, 0), RQ_OK);
    float *got = back(d_most, (size_t)width);
    for (int j = 0; j < width; ++j) {
        float want = most[j];
        for (int r = 0; r < n_rows; ++r) {
            const float v = fabsf(x[r * width + j]);
            if (!(v <= want) && want == want) want = v;
        }
        EXPECT_NEAR_AT(j, got[j], want, 0);
    }
    free(x), free(most), free(got);
    rq_device_free_all();
}

/* ---- inputs of w4a8 */

/* core 0: no Hadamard matrix. */
static void test_inputs(int n_tok, int n, int core, int across, bool factors, bool in_place) {
    const size_t count = (size_t)n_tok * n;
    const rq_hadamard h = core ? act_hadamard_random(core, across, &rng) : rq_hadamard{};
    float *x = random_floats(count, 4), *factor = random_floats((size_t)n, 1);
    if (n_tok > 1) memset(x + n, 0, (size_t)n * 4); /* a row of zeros */
    float *d_x = there(x, count);
    float *d_out = in_place ? d_x : (float *)rq_device_buffer(count * 4), *d_act = (float *)rq_device_buffer(count * 4);
    const float *d_factor = factors ? there(factor, (size_t)n) : NULL;
    if (core || factors)
        EXPECT_EQ(rq_cuda_input_rows(d_out, d_x, core ? &h : NULL, d_factor, n_tok, n, 0), RQ_OK);
    else
        d_out = d_x;
    EXPECT_EQ(rq_cuda_act8_rows(d_act, d_out, n_tok, n, 0), RQ_OK);
    float *out = back(d_out, count), *act = back(d_act, count);
    int8_t *q = (int8_t *)rq_host_alloc((size_t)n);
    for (int t = 0; t < n_tok; ++t) {
        float *row = x + (size_t)t * n, scale = 0;
        for (int j = 0; core && j < n; j += h.size) act_hadamard(&h, row + j);
        for (int j = 0; factors && j < n; ++j) row[j] *= factor[j];
        quantize(row, n, false, &scale, q);
        for (int j = 0; j < n; ++j) {
            EXPECT_NEAR_AT(t * n + j, out[t * n + j], row[j], 0);
            EXPECT_NEAR_AT(t * n + j, act[t * n + j], scale * (float)q[j], 0);
        }
    }
    free(x), free(factor), free(out), free(act), free(q);
    rq_device_free_all();
}

static void test_input_refusals(void) {
    rq_hadamard h = act_hadamard_random(1, 64, &rng);
    EXPECT_EQ(rq_cuda_input_rows(NULL, NULL, &h, NULL, 1, 96, 0), RQ_ERR_ARG);
    EXPECT_EQ(rq_cuda_input_rows(NULL, NULL, NULL, NULL, 1, 96, 0), RQ_ERR_ARG);
    h = act_hadamard_random(1, 65536, &rng);
    EXPECT_EQ(rq_cuda_input_rows(NULL, NULL, &h, NULL, 1, 65536, 0), RQ_ERR_UNSUPPORTED);
    EXPECT(strstr(rq_cuda_last_error(), "65536") && strstr(rq_cuda_last_error(), "262144"));
}

/* ---- attention */

static void test_rope(int n_tok, int n_pos, int n_head, int head_dim) {
    const size_t n = (size_t)n_tok * n_head * head_dim, half = (size_t)head_dim / 2;
    float *x = random_floats(n, 2), *table = random_floats((size_t)n_pos * head_dim, 1), *d_x = there(x, n);
    EXPECT_EQ(rq_cuda_rope(d_x, there(table, (size_t)n_pos * head_dim), n_tok, n_pos, n_head, head_dim, 0), RQ_OK);
    float *got = back(d_x, n);
    for (size_t i = 0; i < n; ++i) {
        const size_t t = i / ((size_t)n_head * head_dim) % (size_t)n_pos, d = i % (size_t)head_dim;
        const float c = table[t * head_dim + d % half], s = table[t * head_dim + half + d % half];
        const float by_c = x[i] * c, by_s = x[d < half ? i + half : i - half] * s;
        EXPECT_NEAR_AT((long long)i, got[i], d < half ? by_c - by_s : by_c + by_s, 0);
    }
    free(x), free(table), free(got);
    rq_device_free_all();
}

typedef struct attention_case {
    int n_seq, n_q, first_pos, n_head, n_kv_head, head_dim;
    bool by_head; /* keys lie [head][position], as in a cache; otherwise [position][head] */
    float scale;
} attention_case;

static void test_attention(const attention_case *c) {
    const int n_pos = c->first_pos + c->n_q, width = c->n_head * c->head_dim, hd = c->head_dim;
    const size_t n = (size_t)c->n_seq * c->n_q * width, n_kv = (size_t)c->n_seq * n_pos * c->n_kv_head * hd;
    float *q = random_floats(n, c->scale), *k = random_floats(n_kv, c->scale), *v = random_floats(n_kv, 1);
    rq_cuda_attention a = {};
    a.q = there(q, n), a.k = there(k, n_kv), a.v = there(v, n_kv), a.out = (float *)rq_device_buffer(n * 4);
    a.lse = (float *)rq_device_buffer((size_t)c->n_seq * c->n_q * c->n_head * 4);
    a.kv_seq = (int64_t)n_pos * c->n_kv_head * hd, a.kv_pos = c->by_head ? hd : c->n_kv_head * hd;
    a.kv_head = c->by_head ? (int64_t)n_pos * hd : hd;
    a.n_seq = c->n_seq, a.n_q = c->n_q, a.first_pos = c->first_pos;
    a.n_head = c->n_head, a.n_kv_head = c->n_kv_head, a.head_dim = hd;
    EXPECT_EQ(rq_cuda_attend(&a, 0), RQ_OK);
    float *out = back(a.out, n), *lse = back(a.lse, (size_t)c->n_seq * c->n_q * c->n_head);
    double *score = (double *)rq_host_alloc((size_t)n_pos * sizeof *score);
    const size_t n_received = (size_t)c->n_seq * c->n_q;
    double *want_received = (double *)rq_host_alloc(n_received * sizeof *want_received);
    for (int row = 0; row < c->n_seq * c->n_q * c->n_head; ++row) {
        const int head = row % c->n_head, i = row / c->n_head % c->n_q, seq = row / c->n_head / c->n_q;
        const int64_t kv_at = seq * a.kv_seq + head / (c->n_head / c->n_kv_head) * a.kv_head;
        const float *of = q + ((size_t)(seq * c->n_q + i) * c->n_head + head) * hd;
        double most = -INFINITY, sum = 0;
        for (int p = 0; p <= c->first_pos + i; ++p) {
            score[p] = 0;
            for (int d = 0; d < hd; ++d) score[p] += (double)of[d] * (double)k[kv_at + p * a.kv_pos + d];
            score[p] /= sqrt((double)hd);
            most = fmax(most, score[p]);
        }
        for (int p = 0; p <= c->first_pos + i; ++p) sum += score[p] = exp(score[p] - most);
        for (int p = 0; p <= i; ++p) want_received[seq * c->n_q + p] += score[p] / sum;
        EXPECT_NEAR_AT(row, lse[row], most + log(sum), 1e-5 * (1 + fabs(most)));
        for (int d = 0; d < hd; ++d) {
            double want = 0;
            for (int p = 0; p <= c->first_pos + i; ++p) want += score[p] / sum * (double)v[kv_at + p * a.kv_pos + d];
            EXPECT_NEAR_AT(row * hd + d, out[(of - q) + d], want, 2e-6 * (1 + fabs(most)));
        }
    }
    if (c->first_pos == 0) {
        float *d_received = (float *)rq_device_buffer(n_received * 4);
        double *by_head = (double *)rq_device_buffer(n_received * (size_t)c->n_head * 8);
        EXPECT_EQ(rq_cuda_attend_received(d_received, by_head, &a, 0), RQ_OK);
        float *received = back(d_received, n_received);
        for (size_t i = 0; i < n_received; ++i)
            EXPECT_NEAR_AT((long long)i, received[i], want_received[i],
                           1e-5 * c->scale * c->scale * want_received[i] + 1e-38);
        free(received);
    }
    rq_record("attention", RQ_F32, out, n, 1e-5);
    free(q), free(k), free(v), free(out), free(lse), free(score), free(want_received);
    rq_device_free_all();
}

static void test_attention_refusals(void) {
    rq_cuda_attention a = {};
    a.n_seq = a.n_q = a.n_kv_head = 1, a.n_head = 3, a.head_dim = 512;
    EXPECT_EQ(rq_cuda_attend(&a, 0), RQ_ERR_UNSUPPORTED);
    a.head_dim = 64, a.n_kv_head = 2;
    EXPECT_EQ(rq_cuda_attend(&a, 0), RQ_ERR_ARG);
    EXPECT_EQ(rq_cuda_attend_received(NULL, NULL, &a, 0), RQ_ERR_ARG); /* no lse */
}

int main(void) {
    rq_need_device(80);
    test_rmsnorm(3, 300, true, false);
    if (!rq_small()) test_rmsnorm(5, 1, false, true);
    if (!rq_small()) test_rmsnorm(2, 1000, false, true);
    test_elements(5, 300);
    if (!rq_small()) test_elements(1, 3);
    test_column_max(300, 70);
    if (!rq_small()) test_column_max(1, 1);
    /* No matrix; powers of two; cores of one column and of several, in blocks. */
    test_inputs(3, 70, 0, 0, true, false);
    test_inputs(2, 300, 0, 0, false, false);
    test_inputs(2, 256, 1, 64, false, false);
    test_inputs(3, 336, 28, 4, true, true);
    if (!rq_small()) {
        test_inputs(2, 1, 0, 0, true, true);
        test_inputs(2, 24, 12, 1, false, true);
        test_inputs(1, 6, 1, 2, true, false);
        test_inputs(1, 28672, 28, 1024, true, false);
    }
    test_input_refusals();
    test_rope(7, 5, 3, 16);
    if (!rq_small()) test_rope(3, 3, 1, 2);
    /* Heads narrower than the tile, of its width, between two; one query; queries past a block's end; a cache. */
    static const attention_case cases[] = {{2, 70, 0, 2, 1, 64, false, 2}, {1, 5, 0, 4, 2, 16, false, 3},
                                           {1, 1, 0, 1, 1, 80, false, 1},  {1, 67, 13, 2, 2, 128, true, 2},
                                           {2, 3, 130, 2, 1, 32, true, 1}, {1, 40, 0, 1, 1, 200, false, 1},
                                           {3, 64, 0, 3, 3, 2, false, 30}};
    for (size_t i = 0; i < (rq_small() ? 2 : sizeof cases / sizeof *cases); ++i) test_attention(&cases[i]);
    test_attention_refusals();
    return rq_done(__FILE__);
}
