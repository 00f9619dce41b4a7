/* SPDX-License-Identifier: Apache-2.0 */
/* The linear layers of a small denoiser, 4-bit weights and 8-bit activations, over 8 time steps: the time projection of a resnet block from a table, an
 * attention block's q, k, v and output projections, and a GEGLU feed-forward whose last input has factors and a Hadamard matrix. Scales of
 * activations come from tables too, by step. One graph is captured, and replayed for each pair of steps of two samples with nothing changed but
 * two integers on the device; the bytes are those of plain C, and their distance to the same network in double is bounded.
 *
 * Each token attends to itself alone, so that the attention's result is v: softmax has no part in what is tested.
 * Libraries: requite. Targets: sm_80 sm_90a. */
#include <cuda_fp16.h>

#include "act_case.h"
#include "w4a8_case.h"

enum { STEPS = 8, SAMPLES = 2, TOKENS = 12, ROWS = SAMPLES * TOKENS, C = 64, INNER = 128, EMB = 32 };
enum layer { QKV, OUT, FF_IN, FF_OUT, LAYERS };

/* ---- the two layers that are not linear, the same in plain C and on the device */

/* a times GELU of b in its form b / (1 + e^(-1.702 b)). */
static __host__ __device__ float geglu(float a, float b) { return rq_act_silu(b * 1.702f) * 0.587544f * a; }

__global__ void attend_alone(__half *out, const __half *qkv) {
    out[blockIdx.x * C + threadIdx.x] = qkv[blockIdx.x * 3 * C + 2 * C + threadIdx.x];
}
__global__ void geglu_rows(__half *out, const __half *x) {
    const __half *row = x + blockIdx.x * 2 * INNER;
    out[blockIdx.x * INNER + threadIdx.x] =
        __float2half_rn(geglu(__half2float(row[threadIdx.x]), __half2float(row[INNER + threadIdx.x])));
}

/* ---- the network */

typedef struct network {
    w4a8_problem p[LAYERS];
    w4a8_case w[LAYERS];
    float time[STEPS][C];
    float scale[LAYERS][STEPS]; /* of the input of a layer */
    float factor[INNER];
    rq_hadamard h;
    uint16_t x[ROWS * C];
} network;

/* Powers of two only: butterflies, in either type. */
template <class T> static void hadamard(T *v, T norm) {
    for (int half = 1; half < INNER; half *= 2)
        for (int i = 0; i < INNER; ++i)
            if (!(i & half)) {
                const T a = v[i], b = v[i + half];
                v[i] = a + b, v[i + half] = a - b;
            }
    for (int i = 0; i < INNER; ++i) v[i] *= norm;
}

/* A layer's input as it is quantized. */
template <class T> static void input_of(const network *net, int layer, T *h) {
    if (layer != FF_OUT) return;
    hadamard(h, (T)(sizeof(T) == 4 ? net->h.norm : 1 / sqrt((double)INNER)));
    for (int j = 0; j < INNER; ++j) h[j] *= (T)net->factor[j];
}

static double half_value(uint16_t b) { return (double)rq_half_value(b); }

/* In double, with the same weights: y of one token. most[layer] is the largest input of each layer so far. */
static void exact_token(const network *net, int step, const uint16_t *x, double *y, float *most) {
    double h[INNER], out[3 * C > 2 * INNER ? 3 * C : 2 * INNER], h1[C], h2[C];
    for (int i = 0; i < C; ++i) h1[i] = half_value(x[i]) + (double)net->time[step][i];
    memcpy(h, h1, sizeof h1);
    for (int layer = 0; layer < LAYERS; ++layer) {
        const w4a8_case *w = &net->w[layer];
        const int n_in = net->p[layer].n_in;
        input_of(net, layer, h);
        for (int j = 0; j < n_in; ++j) most[layer] = fmaxf(most[layer], fabsf((float)h[j]));
        for (int r = 0; r < w->n_out; ++r) {
            out[r] = half_value(w->bias[r]);
            for (int j = 0; j < n_in; ++j)
                out[r] += (double)w->scale[r] * (double)w->level[(size_t)r * n_in + j] * h[j];
        }
        if (layer == QKV) memcpy(h, out + 2 * C, sizeof h1);
        for (int i = 0; layer == OUT && i < C; ++i) h[i] = h2[i] = out[i] + h1[i];
        for (int i = 0; layer == FF_IN && i < INNER; ++i) h[i] = (double)geglu((float)out[i], (float)out[INNER + i]);
        for (int i = 0; layer == FF_OUT && i < C; ++i) y[i] = out[i] + h2[i];
    }
}

/* What the device must give: y of one token, in the roundings of the kernels. */
static void plain_token(const network *net, int step, const uint16_t *x, uint16_t *y) {
    float h[INNER];
    int8_t q[INNER];
    uint16_t out[3 * C > 2 * INNER ? 3 * C : 2 * INNER], h1[C], h2[C];
    for (int i = 0; i < C; ++i) h1[i] = rq_half_bits(rq_half_value(x[i]) + net->time[step][i]);
    for (int i = 0; i < C; ++i) h[i] = rq_half_value(h1[i]);
    for (int layer = 0; layer < LAYERS; ++layer) {
        const w4a8_case *w = &net->w[layer];
        const int n_in = net->p[layer].n_in;
        float scale = net->scale[layer][step];
        input_of(net, layer, h);
        quantize(h, n_in, true, &scale, q);
        for (int r = 0; r < w->n_out; ++r) {
            int64_t sum = 0;
            for (int j = 0; j < n_in; ++j) sum += (int64_t)w->level[(size_t)r * n_in + j] * q[j];
            float v = (float)sum * w->scale[r];
            v *= scale;
            v += rq_half_value(w->bias[r]);
            if (layer == OUT || layer == FF_OUT) v += rq_half_value(layer == OUT ? h1[r] : h2[r]);
            out[r] = rq_half_bits(v);
        }
        if (layer == OUT) memcpy(h2, out, sizeof h2);
        for (int i = 0; layer == QKV && i < C; ++i) h[i] = rq_half_value(out[2 * C + i]);
        for (int i = 0; layer == OUT && i < C; ++i) h[i] = rq_half_value(out[i]);
        for (int i = 0; layer == FF_IN && i < INNER; ++i)
            h[i] = rq_half_value(rq_half_bits(geglu(rq_half_value(out[i]), rq_half_value(out[INNER + i]))));
    }
    memcpy(y, out, C * sizeof *y);
}

/* Random weights, a table of time projections, and scales from a run in double. */
static void make(network *net) {
    static const w4a8_problem problems[LAYERS] = {
        {"q, k, v", C, C, ROWS, 32, false, false, true, false, 3, 0},
        {"out", C, C, ROWS, 0, true, false, true, true, 0, 0},
        {"feed-forward in", 2 * INNER, C, ROWS, 64, false, false, true, false, 0, 0},
        {"feed-forward out", C, INNER, ROWS, 0, false, false, true, true, 0, 0}};
    rq_rng rng = {2026};
    for (int l = 0; l < LAYERS; ++l) {
        net->p[l] = problems[l];
        net->w[l] = w4a8_make(&net->p[l]);
    }
    net->h.size = INNER, net->h.core = 1, net->h.norm = (float)(1.0 / sqrt((double)INNER));
    for (int j = 0; j < INNER; ++j) net->factor[j] = 1 + 0.5f * rq_rand_float(&rng);
    for (int i = 0; i < ROWS * C; ++i) net->x[i] = rq_half_bits(rq_rand_float(&rng));
    for (int r = 0; r < C; ++r) {
        float w[EMB], bias = 0.1f * rq_rand_float(&rng);
        for (int j = 0; j < EMB; ++j) w[j] = rq_rand_float(&rng);
        for (int k = 0; k < STEPS; ++k) { /* of a sinusoidal embedding; large steps come with larger activations */
            double sum = (double)bias;
            for (int j = 0; j < EMB; ++j) {
                const double angle = k * 125 * exp(-log(10000.0) * (j % (EMB / 2)) / (EMB / 2));
                sum += (double)w[j] * (double)rq_act_silu((float)(j < EMB / 2 ? cos(angle) : sin(angle)));
            }
            net->time[k][r] = (float)(sum * (1 + k));
        }
    }
    for (int k = 0; k < STEPS; ++k) {
        float most[LAYERS] = {};
        double y[C];
        for (int t = 0; t < ROWS; ++t) exact_token(net, k, net->x + t * C, y, most);
        for (int l = 0; l < LAYERS; ++l) net->scale[l][k] = most[l] / 127.0f;
    }
}

/* ---- on the device */

typedef struct device {
    int32_t *step; /* [SAMPLES] */
    uint16_t *x, *h1, *qkv, *att, *h2, *ff, *gated, *y;
    int8_t *q;
    float *scale;
    int32_t *sum;
    float *time, *factor;
    rq_act_steps table[LAYERS];
    rq_cuda_linear_desc desc[LAYERS];
    rq_cuda_linear_plan plan[LAYERS];
    rq_cuda_linear_args args[LAYERS];
} device;

static uint16_t *halves(size_t n) { return (uint16_t *)rq_device_buffer(n * 2); }

static void upload(device *d, const network *net) {
    const int32_t none[SAMPLES] = {};
    d->step = (int32_t *)rq_device_copy(none, sizeof none);
    d->x = (uint16_t *)rq_device_copy(net->x, sizeof net->x);
    d->h1 = halves(ROWS * C), d->qkv = halves(ROWS * 3 * C), d->att = halves(ROWS * C), d->h2 = halves(ROWS * C);
    d->ff = halves(ROWS * 2 * INNER), d->gated = halves(ROWS * INNER), d->y = halves(ROWS * C);
    d->q = (int8_t *)rq_device_buffer(ROWS * INNER);
    d->scale = (float *)rq_device_buffer(ROWS * 4), d->sum = (int32_t *)rq_device_buffer(ROWS * 4);
    d->time = (float *)rq_device_copy(net->time, sizeof net->time);
    d->factor = (float *)rq_device_copy(net->factor, sizeof net->factor);
    uint16_t *const y[LAYERS] = {d->qkv, d->h2, d->ff, d->y}, *const residual[LAYERS] = {NULL, d->h1, NULL, d->h2};
    for (int l = 0; l < LAYERS; ++l) {
        const float *scale = (const float *)rq_device_copy(net->scale[l], sizeof net->scale[l]);
        d->table[l] = {scale, d->step, STEPS, TOKENS};
        d->desc[l] = rq_cuda_linear_desc_default();
        d->desc[l].weights = w4a8_describe(&net->p[l], &net->w[l]);
        EXPECT_EQ(rq_cuda_linear_make_plan(&d->plan[l], &d->desc[l]), RQ_OK);
        void *zero = rq_host_alloc(d->plan[l].workspace_bytes + 1);
        rq_cuda_gemv_args *a = &d->args[l].gemv;
        a->y = y[l], a->x = d->q, a->x_scale = d->scale, a->x_sum = d->sum, a->residual = residual[l];
        a->weights = rq_device_copy(net->w[l].packed, (size_t)net->w[l].layout.bytes);
        a->bias = rq_device_copy(net->w[l].bias, (size_t)net->w[l].n_out * 2);
        a->workspace = rq_device_copy(zero, d->plan[l].workspace_bytes + 1);
        d->args[l].scratch = rq_device_buffer(d->plan[l].scratch_bytes + 1);
        free(zero);
    }
}

static void linear(device *d, int layer, const uint16_t *x, cudaStream_t s) {
    rq_cuda_quantize_args a = {};
    a.q = d->q, a.scale = d->scale, a.sum = d->sum, a.x = x, a.n_tok = ROWS, a.n_in = d->desc[layer].weights.n_in;
    a.steps = d->table[layer];
    rq_hadamard h = {};
    h.size = INNER, h.core = 1, h.norm = (float)(1.0 / sqrt((double)INNER));
    if (layer == FF_OUT) a.factor = d->factor, a.hadamard = &h;
    EXPECT_EQ(rq_cuda_quantize_rows(&a, s), RQ_OK);
    EXPECT_EQ(rq_cuda_linear_run(&d->plan[layer], &d->desc[layer], &d->args[layer], s), RQ_OK);
}

static void forward(device *d, cudaStream_t s) {
    rq_cuda_step_rows_args time = {};
    time.y = d->h1, time.x = d->x, time.table = d->time, time.step = d->step, time.n_step = STEPS;
    time.rows_per_step = TOKENS, time.n_tok = ROWS, time.n = C;
    EXPECT_EQ(rq_cuda_step_rows(&time, s), RQ_OK);
    linear(d, QKV, d->h1, s);
    attend_alone<<<ROWS, C, 0, s>>>((__half *)d->att, (const __half *)d->qkv);
    linear(d, OUT, d->att, s);
    linear(d, FF_IN, d->h2, s);
    geglu_rows<<<ROWS, INNER, 0, s>>>((__half *)d->gated, (const __half *)d->ff);
    linear(d, FF_OUT, d->gated, s);
}

int main(void) {
    rq_need_device(80);
    static network net;
    static device d;
    cudaStream_t s;
    cudaGraph_t graph;
    cudaGraphExec_t run;
    make(&net);
    upload(&d, &net);
    CHECK_CUDA(cudaStreamCreate(&s));
    CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    forward(&d, s);
    CHECK_CUDA(cudaStreamEndCapture(s, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&run, graph, 0));
    static uint16_t got[ROWS * C], want[C];
    double worst = 0;
    for (int k = 0; k < STEPS; ++k) {
        const int32_t step[SAMPLES] = {k, STEPS - 1 - k};
        CHECK_CUDA(cudaMemcpyAsync(d.step, step, sizeof step, cudaMemcpyHostToDevice, s));
        CHECK_CUDA(cudaGraphLaunch(run, s));
        CHECK_CUDA(cudaStreamSynchronize(s));
        rq_device_read(got, d.y, sizeof got);
        double error = 0, size = 0;
        for (int t = 0; t < ROWS; ++t) {
            float most[LAYERS] = {};
            double y[C];
            plain_token(&net, step[t / TOKENS], net.x + t * C, want);
            exact_token(&net, step[t / TOKENS], net.x + t * C, y, most);
            for (int i = 0; i < C; ++i) {
                EXPECT_EQ_AT(t * C + i, got[t * C + i], want[i]);
                error += (half_value(got[t * C + i]) - y[i]) * (half_value(got[t * C + i]) - y[i]), size += y[i] * y[i];
            }
        }
        worst = fmax(worst, sqrt(error / size));
    }
    printf("8-bit activations: at most %.4f of the output's size away from double\n", worst);
    EXPECT(worst < 0.02 && worst > 0);
    CHECK_CUDA(cudaGraphExecDestroy(run));
    CHECK_CUDA(cudaGraphDestroy(graph));
    CHECK_CUDA(cudaStreamDestroy(s));
    rq_device_free_all();
    for (int l = 0; l < LAYERS; ++l) w4a8_free(&net.w[l]);
    return rq_done(__FILE__);
}
