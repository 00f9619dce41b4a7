/* SPDX-License-Identifier: Apache-2.0 */
/* Generation on CUDA (host/backend_cuda_decode.c, one captured graph for a token and one for sixteen) against the CPU's decoder, which
 * tests/test_llama.c holds against transformers: small models of every format with a device form, stacked and not, dense ones through cuBLAS,
 * with biases, rotated, with a packed head.
 *
 * A GPU multiplies activations of fp16 where the CPU has fp32. Roundings are independent, so the bound is on the root mean square of the logits' differences, as a
 * share of that of the logits; where inputs of matrices are rounded to 8 bits a step can fall to the other side, which costs more. Greedy
 * tokens must be the CPU's, but for those whose logits the CPU itself has closer together than the bound. Libraries: quantizer models cublas. */
#include "decoder.h"
#include "device.h"
#include "hosttest.h"

enum { D = 128, FF = 192, HEADS = 4, KV = 2, HEAD = 64, VOCAB = 403, LAYERS = 2, CONTEXT = 96, MAX_PACKED = 15 };

enum kind { DENSE, GRID4, GRID3, SSVQ_SHARED, SSVQ_OWN, VQ, W4A8, W4A8_TURNED, MIXED };
typedef struct model_case {
    const char *what;
    enum kind kind;
    bool bias, rotated, tied, packed_head, group_order;
    double bound;
} model_case;

typedef struct model {
    rq_model pub;
    rq_block block[LAYERS];
    rq_packed packed[MAX_PACKED];
    char name[LAYERS * RQ_N_LINEARS][32];
    rq_rng rng;
} model;

static float *floats(model *m, int64_t n, float size, float offset) {
    float *p = rq_host_alloc((size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; ++i) p[i] = rq_rand_float(&m->rng) * size + offset;
    return p;
}
static uint8_t *bytes_below(model *m, int64_t n, unsigned below) {
    uint8_t *p = rq_host_alloc((size_t)n);
    for (int64_t i = 0; i < n; ++i) p[i] = (uint8_t)(rq_rand_u32(&m->rng) % below);
    return p;
}
/* Codes around the middle of `levels`: weights are 0 in the mean, or all tokens come to be the same, and scores far too large for fp16. */
static uint8_t *centred(model *m, int64_t n, unsigned levels) {
    uint8_t *p = bytes_below(m, n, levels - 1);
    for (int64_t i = 0; i < n; ++i) ++p[i];
    return p;
}
/* Exact in fp16. */
static float *scales(model *m, int64_t n, float size) {
    float *p = floats(m, n, size / 4, size);
    for (int64_t i = 0; i < n; ++i) p[i] = rq_f32_of_f16(rq_f16_of_f32(p[i]));
    return p;
}

/* A weight has about the size that keeps sums of n_in products as they are. */
static float weight_size(int64_t n_in) { return 1.0f / sqrtf((float)n_in); }

static void pack_grid(model *m, rq_packed *p, int64_t n_out, int64_t n_in, int bits, bool zeros, bool group_order) {
    const int64_t group = group_order ? 32 : 64;
    rq_grid_codes q = {.n_out = n_out,
                       .n_in = n_in,
                       .group = group,
                       .n_group = rq_ceil_div(n_in, group),
                       .bits = bits,
                       .scale_dtype = RQ_F16};
    uint8_t *codes = centred(m, n_out * n_in, 1u << bits), *zero = bytes_below(m, n_out * q.n_group, 1u << bits);
    for (int64_t i = 0; i < n_out * q.n_group; ++i) zero[i] = (uint8_t)((1 << (bits - 1)) - (int)(i % 2));
    float *scale = scales(m, n_out * q.n_group, 3.4f * weight_size(n_in) / (float)(1 << bits));
    /* As many columns a group as there are in one, but not side by side. */
    int32_t *g_idx = rq_host_alloc((size_t)n_in * sizeof *g_idx);
    for (int64_t j = 0; j < n_in; ++j) g_idx[j] = (int32_t)(j * 5 % n_in / group);
    q.codes = codes, q.scale = scale, q.zero = zeros ? zero : NULL, q.g_idx = group_order ? g_idx : NULL;
    CHECK_RQ(rq_grid_pack(p, &q));
    free(codes), free(zero), free(scale), free(g_idx);
}

static void pack_ssvq(model *m, rq_packed *p, int64_t n_out, int64_t n_in, uint64_t book_seed) {
    rq_ssvq_codes q = {
        .n_out = n_out, .n_in = n_in, .vec_len = 8, .code_bits = 8, .n_codes = 256, .book_cols = n_in, .group = n_in};
    model book = {.rng = {book_seed}};
    uint8_t *entries = bytes_below(&book, 256 * 8, 256), *negative = bytes_below(m, n_out * n_in, 2);
    uint16_t *codes = rq_host_alloc((size_t)(n_out * n_in / 8) * sizeof *codes);
    for (int64_t i = 0; i < n_out * n_in / 8; ++i) codes[i] = (uint16_t)(rq_rand_u32(&m->rng) % 256);
    float *scale = scales(m, n_out, 1), book_scale = 1.7f * weight_size(n_in) / 256;
    q.codes = codes, q.negative = negative, q.book_u8 = entries, q.book_scale = &book_scale, q.scale = scale;
    CHECK_RQ(rq_ssvq_pack(p, &q));
    free(entries), free(negative), free(codes), free(scale);
}

static void pack_vq(model *m, rq_packed *p, int64_t n_out, int64_t n_in) {
    rq_vq_codes q = {.n_out = n_out,
                     .n_in = n_in,
                     .vec_len = 8,
                     .n_stage = 2,
                     .code_bits = {8, 8},
                     .n_codes = {256, 256},
                     .book_cols = n_in,
                     .group = n_in};
    uint16_t *codes[2];
    rq_f16 *book[2];
    for (int s = 0; s < 2; ++s) {
        codes[s] = rq_host_alloc((size_t)(n_out * n_in / 8) * sizeof *codes[s]);
        for (int64_t i = 0; i < n_out * n_in / 8; ++i) codes[s][i] = (uint16_t)(rq_rand_u32(&m->rng) % 256);
        book[s] = rq_host_alloc(256 * 8 * sizeof *book[s]);
        for (int i = 0; i < 256 * 8; ++i)
            book[s][i] = rq_f16_of_f32(rq_rand_float(&m->rng) * weight_size(n_in) * (s ? 0.5f : 1.5f));
        q.codes[s] = codes[s], q.book[s] = book[s];
    }
    float *scale = scales(m, n_out, 1);
    q.scale = scale;
    CHECK_RQ(rq_vq_pack(p, &q));
    for (int s = 0; s < 2; ++s) free(codes[s]), free(book[s]);
    free(scale);
}

/* turned: inputs have a Hadamard matrix (where down and o would have it) and factors. */
static void pack_w4a8(model *m, rq_packed *p, int64_t n_out, int64_t n_in, int64_t group, bool hadamard,
                      const float *in_scale) {
    rq_w4a8_codes q = {
        .n_out = n_out, .n_in = n_in, .group = group, .hadamard = hadamard ? 64 : 0, .in_scale = in_scale};
    const int64_t n_group = group ? rq_ceil_div(n_in, group) : 0;
    uint8_t *codes = centred(m, n_out * n_in, 16), *step = bytes_below(m, n_out * n_group + 1, 8);
    int8_t *base = rq_host_alloc((size_t)(n_out * n_group) + 1);
    for (int64_t i = 0; i < n_out * n_group; ++i) step[i] = (uint8_t)(step[i] + 5), base[i] = (int8_t)(-8 * step[i]);
    float *scale = floats(m, n_out, 0.1f * weight_size(n_in), 0.2f * weight_size(n_in));
    for (int64_t i = 0; group && i < n_out; ++i) scale[i] /= 8;
    q.codes = codes, q.scale = scale, q.step = group ? step : NULL, q.base = group ? base : NULL;
    CHECK_RQ(rq_w4a8_pack(p, &q));
    free(codes), free(step), free(base), free(scale);
}

static void make_linear(model *m, const model_case *c, int layer, int i, const float *in_scale) {
    static const int64_t shape[RQ_N_LINEARS][2] = {{HEADS * HEAD, D}, {KV * HEAD, D}, {KV * HEAD, D}, {D, HEADS * HEAD},
                                                   {FF, D},           {FF, D},        {D, FF}};
    const int64_t n_out = shape[i][0], n_in = shape[i][1];
    const bool turned = c->kind == W4A8_TURNED && (i == RQ_O || i == RQ_DOWN);
    char *name = m->name[layer * RQ_N_LINEARS + i];
    rq_packed *p = &m->packed[m->pub.n_packed];
    rq_linear *l = &m->block[layer].lin[i];
    enum kind kind = c->kind;
    if (kind == MIXED) kind = (enum kind)(DENSE + (layer * RQ_N_LINEARS + i) % MIXED);
    snprintf(name, sizeof m->name[0], "layer %d %s", layer, rq_linear_suffix[i]);
    *l = (rq_linear){.name = name, .n_out = n_out, .n_in = n_in, .packed = p};
    if (c->bias && i != RQ_O) l->bias = floats(m, n_out, 0.5f, 0);
    switch (kind) {
    case GRID4:
    case GRID3: pack_grid(m, p, n_out, n_in, kind == GRID4 ? 4 : 3, kind == GRID4, c->group_order); break;
    case SSVQ_SHARED: pack_ssvq(m, p, n_out, n_in, i < RQ_O ? 1 : i == RQ_O ? 2 : 3); break;
    case SSVQ_OWN: pack_ssvq(m, p, n_out, n_in, (uint64_t)i); break;
    case VQ: pack_vq(m, p, n_out, n_in); break;
    case W4A8: pack_w4a8(m, p, n_out, n_in, 0, false, NULL); break;
    case W4A8_TURNED: pack_w4a8(m, p, n_out, n_in, 64, turned, i == RQ_O ? NULL : in_scale); break;
    default: l->packed = NULL, l->w = floats(m, n_out * n_in, 1.7f * weight_size(n_in), 0); return;
    }
    ++m->pub.n_packed;
}

static model *make_model(const model_case *c) {
    model *m = rq_host_alloc(sizeof *m);
    m->rng.state = (uint64_t)c->kind * 77 + c->bias + 2u * c->rotated + 4u * c->packed_head;
    m->pub.cfg = (rq_config){.n_layer = LAYERS,
                             .d_model = D,
                             .d_ff = FF,
                             .n_head = HEADS,
                             .n_kv_head = KV,
                             .head_dim = HEAD,
                             .n_vocab = VOCAB,
                             .max_seq = CONTEXT,
                             .rms_eps = 1e-5f,
                             .tied_head = c->tied,
                             .eos_id = {2},
                             .n_eos = 1};
    m->pub.block = m->block, m->pub.packed = m->packed;
    for (int layer = 0; layer < LAYERS; ++layer) {
        float *of_d = floats(m, D, 0.5f, 1), *of_ff = floats(m, FF, 0.5f, 1);
        for (int i = 0; i < RQ_N_LINEARS; ++i) make_linear(m, c, layer, i, i == RQ_DOWN ? of_ff : of_d);
        m->block[layer].norm1 = floats(m, D, 0.3f, 1), m->block[layer].norm2 = floats(m, D, 0.3f, 1);
        free(of_d), free(of_ff);
    }
    m->pub.embed =
        (rq_linear){.name = "embedding", .n_out = VOCAB, .n_in = D, .w = floats(m, (int64_t)VOCAB * D, 1, 0)};
    m->pub.head = m->pub.embed;
    if (!c->tied) m->pub.head.name = "head", m->pub.head.w = floats(m, (int64_t)VOCAB * D, 0.5f, 0);
    if (c->packed_head) {
        free((void *)m->pub.head.w);
        m->pub.head.w = NULL, m->pub.head.packed = &m->packed[m->pub.n_packed++];
        pack_grid(m, &m->packed[m->pub.n_packed - 1], VOCAB, D, 8, true, false);
    }
    m->pub.norm_f = floats(m, D, 0.3f, 1);
    m->pub.rope_inv_freq = rq_host_alloc(HEAD / 2 * sizeof(float));
    for (int i = 0; i < HEAD / 2; ++i) m->pub.rope_inv_freq[i] = (float)pow(10000, -2.0 * i / HEAD);
    if (c->rotated) CHECK_RQ(rq_rotation_new(&m->pub.rotation, D, 5, NULL));
    return m;
}

static void free_model(model *m) {
    for (int layer = 0; layer < LAYERS; ++layer) {
        for (int i = 0; i < RQ_N_LINEARS; ++i)
            free((void *)m->block[layer].lin[i].w), free((void *)m->block[layer].lin[i].bias);
        free(m->block[layer].norm1), free(m->block[layer].norm2);
    }
    for (int64_t i = 0; i < m->pub.n_packed; ++i) rq_packed_free(&m->packed[i]);
    if (m->pub.head.w != m->pub.embed.w) free((void *)m->pub.head.w);
    free((void *)m->pub.embed.w), free(m->pub.norm_f), free(m->pub.rope_inv_freq);
    rq_rotation_free(m->pub.rotation);
    free(m);
}

/* Root mean square of the differences, over that of the logits; and how far apart the CPU's two likeliest are, likewise. */
static double difference(const float *got, const float *want, double *gap) {
    double square = 0, off = 0, first = -INFINITY, second = -INFINITY;
    for (int i = 0; i < VOCAB; ++i) {
        const double g = (double)got[i], w = (double)want[i];
        square += w * w, off += (g - w) * (g - w);
        if (w > first)
            second = first, first = w;
        else
            second = fmax(second, w);
    }
    *gap = (first - second) / sqrt(square / VOCAB);
    return sqrt(off / square);
}

/* Prompts of several lengths, then tokens of the GPU's, each of them also fed to the CPU. */
static void test_model(const model_case *c) {
    static float got[VOCAB], want[VOCAB];
    const int prompts[] = {1, 16, 35}, steps[] = {30, 5, 10}, n_prompt = rq_small() ? 2 : 3;
    model *m = make_model(c);
    double worst = 0, gap;
    int same = 0, close = 0;
    for (int k = 0; k < n_prompt; ++k) {
        rq_decoder *cpu, *gpu;
        int32_t ids[CONTEXT], id, expect;
        rq_rng r = {(uint64_t)k};
        for (int i = 0; i < prompts[k]; ++i) ids[i] = (int32_t)(rq_rand_u32(&r) % VOCAB);
        CHECK_RQ(rq_decoder_open(&cpu, &m->pub, CONTEXT, NULL));
        CHECK_RQ(rq_decoder_open(&gpu, &m->pub, CONTEXT, "cuda"));
        CHECK_RQ(rq_decoder_feed(cpu, ids, prompts[k]));
        CHECK_RQ(rq_decoder_feed(gpu, ids, prompts[k]));
        for (int step = 0; step < (rq_small() ? 4 : steps[k]); ++step) {
            CHECK_RQ(rq_decoder_logits(cpu, want));
            CHECK_RQ(rq_decoder_logits(gpu, got));
            const double d = difference(got, want, &gap);
            worst = fmax(worst, d);
            CHECK_RQ(rq_likeliest(&expect, want, VOCAB));
            CHECK_RQ(rq_decoder_next(gpu, &id));
            if (gap > 4 * c->bound)
                EXPECT_EQ_AT(step, id, expect);
            else
                ++close;
            same += id == expect;
            CHECK_RQ(rq_decoder_feed(cpu, &id, 1));
        }
        EXPECT_EQ(rq_decoder_pos(gpu), rq_decoder_pos(cpu));
        rq_decoder_close(cpu), rq_decoder_close(gpu);
    }
    EXPECT(worst <= c->bound && worst > 0);
    EXPECT(4 * close <= 3 * same);
    printf("%-34s logits differ by %.2e of them, bound %.1e; %d tokens the same, %d too close to tell\n", c->what,
           worst, c->bound, same, close);
    free_model(m);
}

/* The same bytes from two decoders, one that reads logits after each step and one that runs ahead; the end of the cache; what is refused. */
static void test_use(void) {
    static const model_case c = {"", SSVQ_SHARED, .tied = true};
    static float first[VOCAB], second[VOCAB];
    model *m = make_model(&c);
    rq_decoder *a, *b;
    int32_t ids[24], more[24], id;
    CHECK_RQ(rq_decoder_open(&a, &m->pub, 24, "cuda"));
    CHECK_RQ(rq_decoder_open(&b, &m->pub, 24, "cuda:0"));
    EXPECT(rq_decoder_next(a, &id) == RQ_ERR_ARG && rq_decoder_logits(a, first) == RQ_ERR_ARG);
    for (int i = 0; i < 5; ++i) ids[i] = more[i] = i * 7;
    CHECK_RQ(rq_decoder_feed(a, ids, 5));
    CHECK_RQ(rq_decoder_feed(b, ids, 5));
    for (int i = 5; i < 24; ++i) {
        CHECK_RQ(rq_decoder_next(a, &ids[i]));
        CHECK_RQ(rq_decoder_logits(b, second));
        CHECK_RQ(rq_likeliest(&more[i], second, VOCAB));
        CHECK_RQ(rq_decoder_feed(b, &more[i], 1));
        EXPECT_EQ_AT(i, ids[i], more[i]);
    }
    CHECK_RQ(rq_decoder_logits(a, first));
    CHECK_RQ(rq_decoder_logits(b, second));
    EXPECT(memcmp(first, second, sizeof first) == 0);
    EXPECT(rq_decoder_feed(a, ids, 1) == RQ_ERR_ARG && strstr(rq_last_error(), "24 of 24"));
    CHECK_RQ(rq_decoder_next(a, &id)); /* the last one is not fed */
    EXPECT(rq_decoder_next(a, &id) == RQ_ERR_ARG);
    rq_decoder_close(b);
    CHECK_RQ(rq_decoder_open(&b, &m->pub, 24, "cuda"));
    ids[3] = VOCAB;
    EXPECT(rq_decoder_feed(b, ids, 5) == RQ_ERR_INPUT && rq_decoder_pos(b) == 0);
    rq_decoder_close(a), rq_decoder_close(b);
    EXPECT(rq_decoder_open(&a, &m->pub, 24, "cuda:77") == RQ_ERR_DEVICE && strstr(rq_last_error(), "cuda:77"));
    EXPECT(rq_decoder_open(&a, &m->pub, (int64_t)1 << 30, "cuda") != RQ_OK);
    EXPECT(rq_decoder_open(&a, &m->pub, 1 << 24, "cuda") == RQ_ERR_NOMEM && strstr(rq_last_error(), "GiB are free"));
    ((float *)m->pub.embed.w)[77] = 70000;
    EXPECT(rq_decoder_open(&a, &m->pub, 24, "cuda") == RQ_ERR_UNSUPPORTED && strstr(rq_last_error(), "embedding"));
    free_model(m);
}

int main(void) {
    rq_need_device(80);
    static const model_case cases[] = {
        {"dense", DENSE, .bound = 2e-3},
        {"dense, biases, tied", DENSE, .bias = true, .tied = true, .bound = 2e-3},
        {"dense, rotated", DENSE, .rotated = true, .bound = 2e-3},
        {"grid, 4 bits, zero points", GRID4, .bound = 2e-3},
        {"grid, 4 bits, dynamic act-order", GRID4, .group_order = true, .bias = true, .bound = 2e-3},
        {"grid, 3 bits, packed head", GRID3, .packed_head = true, .bound = 2e-3},
        {"grid, 3 bits, rotated packed head", GRID3, .packed_head = true, .rotated = true, .bound = 2e-3},
        {"ssvq, stacked", SSVQ_SHARED, .tied = true, .bound = 2e-3},
        {"ssvq, a codebook a matrix, biases", SSVQ_OWN, .bias = true, .bound = 2e-3},
        {"vq, two stages", VQ, .rotated = true, .tied = true, .bound = 2e-3},
        {"w4a8, a scale a row", W4A8, .bound = 4e-2},
        {"w4a8, groups, Hadamard and factors", W4A8_TURNED, .bias = true, .bound = 4e-2},
        {"every format", MIXED, .bias = true, .bound = 1e-2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) test_model(&cases[i]);
    test_use();
    return rq_done(__FILE__);
}
