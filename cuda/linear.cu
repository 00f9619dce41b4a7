/* SPDX-License-Identifier: Apache-2.0 */
/* rq_cuda_linear_*: y = W x for any number of tokens. Few go to the GEMV, in chunks of up to 16; for many the weights are made dense in scratch
 * memory and cuBLAS multiplies; or, of W4A8, to the GEMM. Which one, says a model of their cost (rq_cuda_rates): what each moves, over the rate of copying, and the
 * operations of cuBLAS over the rate of the tensor cores. Targets: sm_80 sm_90a. */
#include "blas.h"
#include "gemv_tile.cuh"
#include "unpack_variants.h"

enum { CHUNK = 16, THREADS = 256 };

/* ---- what cuBLAS does not do: x in stored order, bias */

/* to[t][j] = x[t][perm[j]], or the same without perm: rows begin at multiples of 16 bytes then. */
static __global__ void __launch_bounds__(THREADS)
    rq_linear_gather(uint16_t *to, int64_t ld, const uint16_t *x, const int32_t *perm, int n_in) {
    const int j = blockIdx.x * THREADS + threadIdx.x;
    const int64_t t = blockIdx.y + (int64_t)gridDim.y * blockIdx.z;
    if (j < n_in) to[t * ld + j] = x[t * n_in + (perm ? perm[j] : j)];
}
/* y[t][i] = bias[i] */
static __global__ void __launch_bounds__(THREADS) rq_linear_start(uint16_t *y, const uint16_t *bias, int n_out) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    const int64_t t = blockIdx.y + (int64_t)gridDim.y * blockIdx.z;
    if (i < n_out) y[t * n_out + i] = bias[i];
}
/* y[t][i] = sums[t][i] + bias[i] + residual[t][i], rounded once */
template <int ACT>
static __global__ void __launch_bounds__(THREADS)
    rq_linear_finish(void *y, const float *sums, const void *bias, const void *residual, int n_out) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    const int64_t t = blockIdx.y + (int64_t)gridDim.y * blockIdx.z, at = t * n_out + i;
    if (i < n_out) rq_gemv_put<ACT>(y, at, sums[at] + rq_gemv_get<ACT>(bias, i) + rq_gemv_get<ACT>(residual, at));
}
/* A block for THREADS columns of a token. */
static dim3 grid_of(int64_t columns, int64_t n_tok) {
    const int64_t most = 32768, z = (n_tok + most - 1) / most, y = (n_tok + z - 1) / z;
    return dim3((unsigned)((columns + THREADS - 1) / THREADS), (unsigned)y, (unsigned)z);
}

/* ---- the choice */

rq_cuda_linear_desc rq_cuda_linear_desc_default(void) {
    rq_cuda_linear_desc d = {};
    d.struct_size = sizeof d;
    d.weights = rq_cuda_gemv_desc_default();
    d.path = RQ_LINEAR_AUTO;
    d.blas_workspace = (size_t)32 << 20;
    d.rates.copy_gbs = 4300, d.rates.matrix_tflops = 790, d.rates.gemv_of_copy = 0.7, d.rates.launch_us = 2.5;
    return d;
}

static size_t round_up(size_t bytes) { return (bytes + RQ_TILE_ALIGN - 1) / RQ_TILE_ALIGN * RQ_TILE_ALIGN; }

/* The sentence of what cannot be done on any device, or NULL. */
static const char *refuse(const rq_cuda_linear_desc *d) {
    if (!d || d->struct_size != sizeof *d) return "a description begins with rq_cuda_linear_desc_default()";
    if (d->weights.n_tok < 1 || d->weights.n_tok > 1 << 24) return "n_tok is 1 to 2^24";
    if (d->path != RQ_LINEAR_AUTO && d->path != RQ_LINEAR_GEMV && d->path != RQ_LINEAR_DEQUANTIZE &&
        d->path != RQ_LINEAR_GEMM)
        return "the path is automatic, GEMV, dequantize or GEMM";
    const rq_cuda_rates *r = &d->rates;
    if (!(r->copy_gbs > 0 && r->matrix_tflops > 0 && r->gemv_of_copy > 0 && r->launch_us >= 0))
        return "rates are positive numbers";
    return NULL;
}

static int64_t chunks_of(int64_t n_tok) { return (n_tok + CHUNK - 1) / CHUNK; }
static rq_cuda_gemv_desc with_tokens(const rq_cuda_linear_desc *d, int64_t n_tok) {
    rq_cuda_gemv_desc g = d->weights;
    g.n_tok = n_tok;
    return g;
}

/* Microseconds of both ways. */
static void costs(rq_cuda_linear_plan *p, const rq_cuda_linear_desc *d, int64_t format_bytes) {
    const rq_cuda_gemv_desc *w = &d->weights;
    const double bytes_us = d->rates.copy_gbs * 1e3, weights = (double)w->n_out * (double)w->n_in;
    const double x_and_y = 2.0 * (double)w->n_tok * (double)(w->n_in + w->n_out) / bytes_us;
    p->gemv_us =
        (double)chunks_of(w->n_tok) * (d->rates.launch_us + (double)format_bytes / (d->rates.gemv_of_copy * bytes_us)) +
        x_and_y;
    p->dequantize_us = 2 * d->rates.launch_us + ((double)format_bytes + 2 * 2.0 * weights) / bytes_us + x_and_y +
                       2 * weights * (double)w->n_tok / (d->rates.matrix_tflops * 1e6);
}

static rq_status plan_gemv(rq_cuda_linear_plan *p, const rq_cuda_linear_desc *d) {
    const int64_t n_tok = d->weights.n_tok, n = chunks_of(n_tok);
    p->chunk = (n_tok + n - 1) / n, p->launches = (int)((n_tok + p->chunk - 1) / p->chunk);
    const int64_t rest = n_tok - (p->launches - 1) * p->chunk;
    const rq_cuda_gemv_desc most = with_tokens(d, p->chunk), last = with_tokens(d, rest);
    rq_status s = rq_cuda_gemv_make_plan(&p->most, &most);
    if (s == RQ_OK) s = rq_cuda_gemv_make_plan(&p->last, &last);
    p->workspace_bytes =
        p->most.workspace_bytes > p->last.workspace_bytes ? p->most.workspace_bytes : p->last.workspace_bytes;
    p->kernel = p->most.kernel;
    p->bytes = p->most.bytes * (p->launches - 1) + p->last.bytes;
    return s;
}

static rq_status plan_dequantize(rq_cuda_linear_plan *p, const rq_cuda_linear_desc *d) {
    const rq_cuda_gemv_desc *w = &d->weights;
    rq_status s = rq_cuda_unpack_supports(w, NULL);
    if (s == RQ_OK) s = rq_blas_prepare(d->blas);
    p->ld = (w->n_in + 7) / 8 * 8;
    p->x_at = round_up((size_t)(w->n_out * p->ld) * 2);
    p->sums_at = p->x_at + round_up((size_t)(w->n_tok * p->ld) * 2);
    p->blas_at = p->sums_at + (w->bias && w->residual ? round_up((size_t)(w->n_tok * w->n_out) * 4) : 0);
    p->scratch_bytes = p->blas_at + round_up(d->blas_workspace);
    p->launches = 2, p->kernel = "dequantize + cuBLAS";
    const rq_cuda_gemv_desc one = with_tokens(d, 1);
    p->bytes = (double)rq_gemv_format_of(one.kind)->layout(&one).bytes + 4.0 * (double)w->n_out * (double)p->ld +
               2.0 * (double)w->n_tok * (double)(w->n_in + w->n_out);
    return s;
}

static rq_status plan_gemm(rq_cuda_linear_plan *p, const rq_cuda_linear_desc *d) {
    const rq_status s = rq_cuda_gemm_make_plan(&p->gemm, &d->weights, NULL);
    p->launches = 1, p->workspace_bytes = p->gemm.workspace_bytes, p->kernel = p->gemm.kernel, p->bytes = p->gemm.bytes;
    return s;
}

rq_status rq_cuda_linear_make_plan(rq_cuda_linear_plan *plan, const rq_cuda_linear_desc *d) {
    const char *text = plan ? refuse(d) : "there is no plan to fill";
    if (text) return rq_gemv_fail(plan ? RQ_ERR_UNSUPPORTED : RQ_ERR_ARG, text);
    memset(plan, 0, sizeof *plan);
    if (d->path == RQ_LINEAR_GEMM ||
        (d->path == RQ_LINEAR_AUTO && d->weights.n_tok > CHUNK && rq_cuda_gemm_supports(&d->weights, NULL) == RQ_OK)) {
        plan->path = RQ_LINEAR_GEMM;
        return plan_gemm(plan, d);
    }
    const rq_cuda_gemv_desc one = with_tokens(d, 1);
    const char *no_gemv = rq_gemv_refuse(&one), *no_dense = rq_unpack_refuse(&one);
    if (one.x_s8 || one.x_e4m3)
        no_dense = "int8 and e4m3 activations go with GEMV and GEMM, not with dense fp16 or bf16 weights";
    if (no_gemv && (no_dense || d->path == RQ_LINEAR_GEMV)) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, no_gemv);
    if (no_dense && d->path == RQ_LINEAR_DEQUANTIZE) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, no_dense);
    costs(plan, d, rq_gemv_format_of(one.kind)->layout(&one).bytes);
    plan->path = d->path;
    if (d->path == RQ_LINEAR_AUTO)
        plan->path =
            no_dense || (!no_gemv && plan->gemv_us <= plan->dequantize_us) ? RQ_LINEAR_GEMV : RQ_LINEAR_DEQUANTIZE;
    rq_cuda_linear_plan p = *plan;
    const rq_status s = p.path == RQ_LINEAR_GEMV ? plan_gemv(&p, d) : plan_dequantize(&p, d);
    if (s == RQ_OK) *plan = p;
    return s;
}

rq_status rq_cuda_linear_supports(const rq_cuda_linear_desc *d, const char **why) {
    rq_cuda_linear_plan plan;
    const rq_status s = rq_cuda_linear_make_plan(&plan, d);
    if (why && s != RQ_OK) *why = rq_cuda_last_error();
    return s;
}

/* ---- the run */

static rq_status run_gemv(const rq_cuda_linear_plan *p, const rq_cuda_linear_desc *d, const rq_cuda_linear_args *a,
                          rq_cuda_stream stream) {
    const int64_t n_tok = d->weights.n_tok, n_out = d->weights.n_out;
    for (int64_t t = 0; t < n_tok; t += p->chunk) {
        const int64_t left = n_tok - t, n = left < p->chunk ? left : p->chunk;
        const rq_cuda_gemv_desc part = with_tokens(d, n);
        rq_cuda_gemv_args g = a->gemv;
        const bool bytes = d->weights.x_s8 || d->weights.x_e4m3;
        const int64_t pitch = d->weights.x_pitch ? d->weights.x_pitch : d->weights.n_in;
        g.x = static_cast<const uint8_t *>(g.x) + t * pitch * (bytes ? 1 : 2);
        if (g.x_scale) g.x_scale += t;
        if (g.x_sum) g.x_sum += t;
        g.y = static_cast<uint16_t *>(g.y) + t * n_out;
        if (g.residual) g.residual = static_cast<const uint16_t *>(g.residual) + t * n_out;
        const rq_status s = rq_cuda_gemv_run(left > p->chunk ? &p->most : &p->last, &part, &g, stream);
        if (s != RQ_OK) return s;
    }
    return RQ_OK;
}

static rq_status run_dequantize(const rq_cuda_linear_plan *p, const rq_cuda_linear_desc *d,
                                const rq_cuda_linear_args *a, rq_cuda_stream stream) {
    const rq_cuda_gemv_desc *w = &d->weights;
    const rq_cuda_gemv_args *g = &a->gemv;
    uint8_t *scratch = static_cast<uint8_t *>(a->scratch);
    uint16_t *x = reinterpret_cast<uint16_t *>(scratch + p->x_at), *y = static_cast<uint16_t *>(g->y);
    float *sums = reinterpret_cast<float *>(scratch + p->sums_at);
    rq_status s = rq_cuda_unpack_run(w, scratch, p->ld, g->weights, stream);
    if (s != RQ_OK) return s;
    rq_blas_product b = {};
    b.n_out = w->n_out, b.n_in = w->n_in, b.n_tok = w->n_tok, b.act = w->act;
    b.w = scratch, b.ld_w = p->ld, b.x = g->x, b.ld_x = w->n_in;
    b.y = y, b.workspace = scratch + p->blas_at, b.workspace_bytes = d->blas_workspace;
    if (g->perm || p->ld != w->n_in) {
        rq_linear_gather<<<grid_of(w->n_in, w->n_tok), THREADS, 0, stream>>>(
            x, p->ld, static_cast<const uint16_t *>(g->x), g->perm, (int)w->n_in);
        b.x = x, b.ld_x = p->ld;
    }
    /* One of both is what the sums are added to, in fp32; both together need them in fp32 themselves, or there would be two roundings. */
    const bool both = w->bias && w->residual;
    if (both) {
        b.y = sums, b.y_float = 1;
    } else if (w->bias) {
        rq_linear_start<<<grid_of(w->n_out, w->n_tok), THREADS, 0, stream>>>(y, static_cast<const uint16_t *>(g->bias),
                                                                             (int)w->n_out);
        b.beta = 1.0f;
    } else if (w->residual) {
        const size_t bytes = (size_t)(w->n_tok * w->n_out) * 2;
        if (g->residual != g->y)
            if (cudaError_t e = cudaMemcpyAsync(y, g->residual, bytes, cudaMemcpyDeviceToDevice, stream))
                return rq_gemv_fail_cuda("cudaMemcpyAsync", e);
        b.beta = 1.0f;
    }
    if (cudaError_t e = cudaGetLastError()) return rq_gemv_fail_cuda("launch", e);
    s = rq_blas_run(d->blas, &b, stream);
    if (s != RQ_OK || !both) return s;
    const dim3 grid = grid_of(w->n_out, w->n_tok);
    if (w->act == RQ_ACT_F16)
        rq_linear_finish<RQ_ACT_F16><<<grid, THREADS, 0, stream>>>(y, sums, g->bias, g->residual, (int)w->n_out);
    else
        rq_linear_finish<RQ_ACT_BF16><<<grid, THREADS, 0, stream>>>(y, sums, g->bias, g->residual, (int)w->n_out);
    if (cudaError_t e = cudaGetLastError()) return rq_gemv_fail_cuda("launch", e);
    return RQ_OK;
}

rq_status rq_cuda_linear_run(const rq_cuda_linear_plan *plan, const rq_cuda_linear_desc *d,
                             const rq_cuda_linear_args *a, rq_cuda_stream stream) {
    const char *text = refuse(d);
    if (text) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, text);
    if (!plan || plan->launches < 1 || !a) return rq_gemv_fail(RQ_ERR_ARG, "a run needs a plan and arguments");
    if (plan->path == RQ_LINEAR_GEMV) return run_gemv(plan, d, a, stream);
    if (plan->path == RQ_LINEAR_GEMM) return rq_cuda_gemm_run(&plan->gemm, &d->weights, &a->gemv, stream);
    const rq_cuda_gemv_args *g = &a->gemv;
    if (!g->y || !g->x || !a->scratch || reinterpret_cast<uintptr_t>(a->scratch) % RQ_TILE_ALIGN)
        return rq_gemv_fail(RQ_ERR_ARG,
                            "y, x or scratch is NULL, or scratch does not begin at a multiple of 256 bytes");
    if ((g->bias != NULL) != (d->weights.bias != 0) || (g->residual != NULL) != (d->weights.residual != 0))
        return rq_gemv_fail(RQ_ERR_ARG, "bias and residual are given if, and only if, the description has them");
    return run_dequantize(plan, d, a, stream);
}

void rq_cuda_linear_release(void) { rq_blas_release(); }
