/* SPDX-License-Identifier: Apache-2.0 */
/* Calibration of a two-layer Llama with its forward pass on a GPU, against the CPU: what rq_calibrate_stages gathers of the input of every stage, in
 * fp64 Gram matrices and in the largest numbers of columns. fp32 sums are in another order there, so both are the same up to 1e-5 of the largest entry; with
 * bfloat16 up to 3 %. Weights, biases and tokens are random. Libraries: quantizer requite models. Targets: sm_80 sm_90a. */
#include "comp_case.h"

#include "quantize.h"
#include "random.h"

enum { LAYERS = 2, HEADS = 4, KV = 2, HEAD = 16, D = 48, FF = 80, VOCAB = 32, SEQ = 21, SAMPLES = 100, MOST = FF * FF };

static float inv_freq[HEAD / 2], gains[D];
static rq_block block[LAYERS];
static rq_model model = {.cfg = {.n_layer = LAYERS,
                                 .d_model = D,
                                 .d_ff = FF,
                                 .n_head = HEADS,
                                 .n_kv_head = KV,
                                 .head_dim = HEAD,
                                 .n_vocab = VOCAB,
                                 .rms_eps = 1e-5f},
                         .rope_inv_freq = inv_freq,
                         .block = block};

static float *random_weights(int64_t n, double scale) {
    static uint64_t seed;
    float *w = rq_host_alloc((size_t)n * sizeof *w);
    ++seed;
    for (int64_t i = 0; i < n; ++i) w[i] = (float)(scale * (rq_random_unit(seed, (uint64_t)i) - 0.5));
    return w;
}

static void model_new(void) {
    const int64_t q = HEADS * HEAD, k = KV * HEAD;
    const int64_t shape[RQ_N_LINEARS][2] = {{q, D}, {k, D}, {k, D}, {D, q}, {FF, D}, {FF, D}, {D, FF}};
    for (int i = 0; i < HEAD / 2; ++i) inv_freq[i] = powf(10000.0f, -(float)i / (HEAD / 2));
    for (int i = 0; i < D; ++i) gains[i] = 0.5f + (float)rq_random_unit(77, (uint64_t)i);
    for (int l = 0; l < LAYERS; ++l) {
        block[l].norm1 = block[l].norm2 = gains;
        for (int m = 0; m < RQ_N_LINEARS; ++m) {
            rq_linear *lin = &block[l].lin[m];
            *lin = (rq_linear){.name = rq_linear_suffix[m], .n_out = shape[m][0], .n_in = shape[m][1]};
            lin->w = random_weights(lin->n_out * lin->n_in, 0.6);
            if (m <= RQ_V || m == RQ_DOWN) lin->bias = random_weights(lin->n_out, 0.5);
        }
    }
    model.embed = (rq_linear){.name = "embed", .n_out = VOCAB, .n_in = D, .w = random_weights(VOCAB * D, 3)};
}

/* What is gathered of every stage of every block, one after the other. */
typedef struct gathered {
    double *of[LAYERS * RQ_N_STAGES];
    int64_t n[LAYERS * RQ_N_STAGES];
} gathered;

static rq_status gather(void *arg, int64_t layer, int stage, const rq_gathered *of, float *const *w) {
    static const int64_t width[RQ_N_STAGES] = {D, HEADS * HEAD, D, FF};
    gathered *g = arg;
    const int64_t at = layer * RQ_N_STAGES + stage;
    (void)w;
    g->n[at] = of->h ? width[stage] * width[stage] : width[stage];
    g->of[at] = rq_host_alloc(MOST * sizeof(double));
    for (int64_t i = 0; i < g->n[at]; ++i) g->of[at][i] = of->h ? of->h[i] : (double)of->max[i];
    return RQ_OK;
}

static void test_gather(rq_gather what, rq_quantize_job job, double bound) {
    gathered g[2];
    rq_matrix_plan *plan = rq_host_alloc(LAYERS * RQ_N_LINEARS * sizeof *plan);
    for (int i = 0; i < LAYERS * RQ_N_LINEARS; ++i) {
        const rq_linear *l = &block[i / RQ_N_LINEARS].lin[i % RQ_N_LINEARS];
        plan[i] = (rq_matrix_plan){.quantized = true, .n_out = l->n_out, .n_in = l->n_in};
        rq_quant_default(&plan[i].opt, RQ_COMP_GPTQ);
        CHECK_RQ(rq_quant_set_all(&plan[i].opt, "group=16"));
    }
    for (int k = 0; k < 2; ++k) {
        rq_quantizer z = {
            .job = &job, .device = k ? gpu : NULL, .model = &model, .plan = plan, .work_dir = (char[]){"."}};
        job.bf16 = k && bound > 1e-3;
        CHECK_RQ(rq_calibrate_stages(&z, what, gather, &g[k]));
    }
    for (int at = 0; at < LAYERS * RQ_N_STAGES; ++at) {
        double most = 0, worst = 0;
        for (int64_t i = 0; i < g[0].n[at]; ++i) {
            most = fmax(most, fabs(g[0].of[at][i]));
            worst = fmax(worst, fabs(g[1].of[at][i] - g[0].of[at][i]));
        }
        if (!(worst <= bound * most))
            fprintf(stderr, "block %d, stage %d: off by %g of %g\n", at / 4, at % 4, worst, most);
        EXPECT(most > 0 && worst <= bound * most);
        EXPECT(bound < 1e-3 || worst > 1e-5 * most); /* it was in bfloat16 */
        free(g[0].of[at]), free(g[1].of[at]);
    }
    free(plan);
}

int main(void) {
    static int32_t ids[SAMPLES * SEQ];
    rq_need_device(80);
    CHECK_RQ(rq_device_open(&gpu, "cuda"));
    model_new();
    for (int i = 0; i < SAMPLES * SEQ; ++i) ids[i] = (int32_t)(rq_random_u64(5, (uint64_t)i) % VOCAB);
    rq_quantize_job job = {.samples = {ids, 5, SEQ, 5}, .token_min = 0.01};
    test_gather(RQ_GATHER_GRAM, job, 1e-5);
    test_gather(RQ_GATHER_MAX, job, 1e-5);
    test_gather(RQ_GATHER_GRAM, job, 0.03);
    job.skip_tokens = 2;
    test_gather(RQ_GATHER_GRAM_PER_RESIDUAL, job, 1e-5);
    job.token_weights = RQ_TOKENS_ATTENTION;
    test_gather(RQ_GATHER_GRAM, job, 1e-5);
    job.token_weights = RQ_TOKENS_NORM;
    test_gather(RQ_GATHER_GRAM, job, 1e-5);
    job = (rq_quantize_job){.samples = {ids, SAMPLES, SEQ, SAMPLES}}; /* two chunks, the second of 3 samples */
    if (!rq_small()) test_gather(RQ_GATHER_GRAM, job, 1e-5);
    for (int i = 0; i < LAYERS * RQ_N_LINEARS; ++i) {
        const rq_linear *l = &block[i / RQ_N_LINEARS].lin[i % RQ_N_LINEARS];
        free((void *)(uintptr_t)l->w), free((void *)(uintptr_t)l->bias);
    }
    free((void *)(uintptr_t)model.embed.w);
    rq_device_close(gpu);
    return rq_done(__FILE__);
}
