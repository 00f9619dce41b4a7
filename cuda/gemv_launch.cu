/* SPDX-License-Identifier: Apache-2.0 */
/* rq_cuda_gemv_*: which kernel, over how many blocks, and its launch. Targets: sm_80 sm_90a. */
#include <stdio.h>

#include "gemv_variants.h"

static const rq_gemv_format *const formats[] = {&rq_gemv_grid, &rq_gemv_ssvq, &rq_gemv_vq, &rq_gemv_w4a8};

static thread_local char last_error[256] = "";
const char *rq_cuda_last_error(void) { return last_error; }

rq_status rq_gemv_fail(rq_status status, const char *text) {
    snprintf(last_error, sizeof last_error, "%s", text);
    return status;
}
rq_status rq_gemv_fail_cuda(const char *what, cudaError_t e) {
    snprintf(last_error, sizeof last_error, "%s: %s", what, cudaGetErrorString(e));
    return RQ_ERR_DEVICE;
}

rq_cuda_gemv_desc rq_cuda_gemv_desc_default(void) {
    rq_cuda_gemv_desc d = {};
    d.struct_size = sizeof d;
    d.kind = RQ_TILE_GRID;
    d.n_tok = 1;
    d.bits = 4;
    d.group = 128;
    d.act = RQ_ACT_F16;
    return d;
}

cudaError_t rq_gemv_look(rq_gemv_device *info) {
    int device = 0, major = 0, minor = 0;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&info->multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&info->shared_of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&info->shared_of_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor,
                                   device);
    info->capability = major * 10 + minor;
    return e;
}

const rq_gemv_format *rq_gemv_format_of(rq_tile_kind kind) {
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; ++i)
        if (formats[i]->kind == kind) return formats[i];
    return NULL;
}

/* Of what type x may be, and how far its tokens lie apart. */
static const char *refuse_x(const rq_cuda_gemv_desc *d) {
    if (d->x_s8 && d->x_e4m3) return "x is int8 or e4m3, not both";
    if (d->x_pitch && d->kind != RQ_TILE_W4A8) return "x_pitch is of W4A8";
    if (d->x_pitch && d->x_pitch < d->n_in) return "x_pitch is n_in or more, or 0";
    if (d->kind == RQ_TILE_W4A8)
        return d->x_s8 || d->x_e4m3 ? NULL : "W4A8 multiplies int8 or e4m3 activations: x_s8 or x_e4m3 is 1";
    if (d->x_e4m3) return "e4m3 activations go with W4A8 weights only";
    return d->x_s8 && d->kind != RQ_TILE_SSVQ ? "int8 activations go with SSVQ and W4A8 weights only" : NULL;
}

/* The sentence of what cannot be done on any device, or NULL. */
const char *rq_gemv_refuse_sizes(const rq_cuda_gemv_desc *d) {
    if (!d || d->struct_size != sizeof *d) return "a description begins with rq_cuda_gemv_desc_default()";
    if (d->n_out < 1 || d->n_out > 1 << 24) return "n_out is 1 to 2^24";
    if (d->n_in < 1 || d->n_in > 1 << 20) return "n_in is 1 to 2^20";
    if (d->n_tok < 1 || d->n_tok > 16) return "n_tok is 1 to 16";
    if ((d->n_out + 15) / 16 * ((d->n_in + 127) / 128) >= (int64_t)1 << 31) return "the matrix has 2^31 tiles or more";
    if (d->act != RQ_ACT_F16 && d->act != RQ_ACT_BF16) return "activations are fp16 or bf16";
    if (!rq_gemv_format_of(d->kind)) return "there is no CUDA kernel of this format";
    return refuse_x(d);
}
const char *rq_gemv_refuse(const rq_cuda_gemv_desc *d) {
    const char *text = rq_gemv_refuse_sizes(d);
    return text ? text : rq_gemv_format_of(d->kind)->refuse(d);
}

rq_status rq_cuda_gemv_supports(const rq_cuda_gemv_desc *d, const char **why) {
    const char *text = rq_gemv_refuse(d);
    rq_status s = RQ_OK;
    rq_gemv_device info = {};
    if (text)
        s = rq_gemv_fail(RQ_ERR_UNSUPPORTED, text);
    else if (cudaError_t e = rq_gemv_look(&info))
        s = rq_gemv_fail_cuda("no CUDA device", e);
    else if (info.capability < 80)
        s = rq_gemv_fail(RQ_ERR_UNSUPPORTED, "the kernels need compute capability 8.0");
    if (why && s != RQ_OK) *why = last_error;
    return s;
}

/* How the tiles are shared out. Time is counted in tiles of one warp; what else a group of row blocks costs (sums, barrier), and
 * parts of columns (workspace), is set against that. The numbers only order the choices. */
typedef struct sharing {
    int log_warps, part_kb, split, blocks;
    double cost;
} sharing;
static const double cost_of_group = 0.5, cost_of_parts = 0.5, cost_of_part = 0.05;

static sharing share(const rq_tile_layout *t, int blocks, int most_kb, const rq_gemv_kernel *k) {
    sharing best = {};
    best.cost = 1e300;
    const int64_t book_kb = t->n_book > 1 ? t->book_cols / RQ_TILE_COLS : 0; /* a part has one codebook */
    for (int log_warps = 4; log_warps >= 0; --log_warps) {
        const int64_t warps = 1 << log_warps, of_group = RQ_GEMV_WARPS / warps * k->rows;
        const int64_t groups = (t->n_rb + of_group - 1) / of_group;
        for (int64_t want = 1; want <= t->n_kb && want <= blocks; ++want) {
            const int64_t part_kb = (t->n_kb + want - 1) / want, split = (t->n_kb + part_kb - 1) / part_kb;
            if (split != want || part_kb > most_kb || (book_kb && book_kb % part_kb != 0)) continue;
            const int64_t across = groups < blocks / split ? groups : blocks / split;
            const int64_t turns = (groups + across - 1) / across;
            const int64_t tiles = (part_kb + warps * k->depth - 1) / (warps * k->depth) * k->depth * k->rows;
            const double parts = split > 1 ? cost_of_parts + cost_of_part * (double)split : 0.0;
            const double cost =
                (double)turns * ((double)tiles + cost_of_group + parts) + (double)part_kb / 64 +
                1e-6 * (double)(across * split * part_kb); /* of equals, who brings less x to shared memory */
            if (cost < best.cost - 1e-9) {
                best.log_warps = log_warps, best.part_kb = (int)part_kb, best.split = (int)split;
                best.blocks = (int)(across * split), best.cost = cost;
            }
        }
    }
    return best;
}

static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
/* Floats and counters of the workspace: each output's sum from each part. */
static int64_t counter_bytes(const rq_tile_layout *t, int64_t n_tok) { return round_up(t->n_rb * n_tok * 4, 256); }

/* Columns of all tokens in shared memory: 64 bytes more than a multiple of 128, so that two tokens' 64 bytes, which eight lanes read
 * at once, lie in different banks; of int8 32 more, for four tokens' 32 bytes, which sixteen do. */
static int64_t x_bytes(const rq_cuda_gemv_desc *d) { return d->x_s8 ? 1 : 2; } /* e4m3 becomes fp16 there */
static int64_t x_pad(const rq_cuda_gemv_desc *d) { return d->x_s8 ? 32 : 64; }
static int64_t x_pitch(const rq_cuda_gemv_desc *d, int64_t part_kb) {
    return part_kb * RQ_TILE_COLS * x_bytes(d) + x_pad(d);
}
/* Sums of x, of a tile column: rq_gemv_sums. */
static int64_t x_sum_bytes(const rq_gemv_kernel *k, int64_t n_tok) { return k->sums * (n_tok > 8 ? 64 : 32); }
static int64_t sum_bytes(int64_t n_tok, const rq_gemv_kernel *k) {
    return 2 * k->rows * n_tok * (k->x_is_a ? RQ_GEMV_SUM_PITCH_X_IS_A : RQ_GEMV_SUM_PITCH) * 4;
}

rq_status rq_cuda_gemv_make_plan(rq_cuda_gemv_plan *plan, const rq_cuda_gemv_desc *d) {
    const char *text = plan ? rq_gemv_refuse(d) : "there is no plan to fill";
    if (text) return rq_gemv_fail(plan ? RQ_ERR_UNSUPPORTED : RQ_ERR_ARG, text);
    rq_gemv_device info = {};
    if (cudaError_t e = rq_gemv_look(&info)) return rq_gemv_fail_cuda("no CUDA device", e);
    if (info.capability < 80) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "the kernels need compute capability 8.0");
    const rq_gemv_format *f = rq_gemv_format_of(d->kind);
    const rq_tile_layout t = f->layout(d);
    const rq_gemv_kernel k = f->pick(d);
    if (!k.function) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "there is no CUDA kernel of this format");

    /* The system keeps 1 KiB of a block's share. */
    const int per_sm = rq_gemv_blocks_per_sm((d->n_tok > 8 ? 2 : 1) * k.rows);
    int64_t shared = info.shared_of_multiprocessor / per_sm - 1024;
    if (shared > info.shared_of_block) shared = info.shared_of_block;
    const int64_t for_x = shared - k.shared_format - sum_bytes(d->n_tok, &k) - d->n_tok * x_pad(d);
    const int64_t most_kb = for_x / (d->n_tok * RQ_TILE_COLS * x_bytes(d) + x_sum_bytes(&k, d->n_tok));
    if (for_x < 0 || most_kb < 1)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "a block's shared memory is too small for so many tokens");
    const sharing s = share(&t, info.multiprocessors * per_sm, (int)most_kb, &k);
    if (s.split == 0)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED,
                            "n_in is too large for this device's shared memory, or has too many codebooks");

    memset(plan, 0, sizeof *plan);
    plan->blocks = s.blocks, plan->threads = RQ_GEMV_THREADS, plan->split = s.split;
    plan->log_warps = s.log_warps, plan->part_kb = s.part_kb;
    plan->shared_bytes = (size_t)(k.shared_format + s.part_kb * x_sum_bytes(&k, d->n_tok) +
                                  d->n_tok * x_pitch(d, s.part_kb) + sum_bytes(d->n_tok, &k));
    if (s.split > 1)
        plan->workspace_bytes = (size_t)(counter_bytes(&t, d->n_tok) + t.n_rb * d->n_tok * s.split * RQ_TILE_ROWS * 4);
    plan->bytes =
        (double)t.bytes +
        (double)d->n_tok * (double)((d->x_s8 || d->x_e4m3 ? 1 : 2) * d->n_in + 2 * d->n_out * (d->residual ? 2 : 1)) +
        (d->bias ? 2.0 * (double)d->n_out : 0.0);
    plan->kernel = k.name;
    /* Not in run: it need not be capturable, and is the same for all plans of the kernel. */
    if (cudaError_t e =
            cudaFuncSetAttribute(k.function, cudaFuncAttributeMaxDynamicSharedMemorySize, info.shared_of_block))
        return rq_gemv_fail_cuda("cudaFuncSetAttribute", e);
    return RQ_OK;
}

const char *rq_gemv_refuse_args(const rq_cuda_gemv_desc *d, const rq_cuda_gemv_args *a, size_t workspace_bytes) {
    if (!a->y || !a->x || !a->weights) return "y, x or weights is NULL";
    if ((a->bias != NULL) != (d->bias != 0) || (a->residual != NULL) != (d->residual != 0))
        return "bias and residual are given if, and only if, the description has them";
    if ((a->x_scale != NULL) != (d->x_s8 || d->x_e4m3)) return "x_scale is given if, and only if, x is int8 or e4m3";
    if ((a->x_sum != NULL) != (d->kind == RQ_TILE_W4A8 && d->x_s8))
        return "x_sum is given if, and only if, weights are W4A8 and x is int8";
    if ((a->x_block_sum != NULL) != (d->x_e4m3 != 0)) return "x_block_sum is given if, and only if, x is e4m3";
    if (workspace_bytes && !a->workspace) return "this plan needs a workspace";
    if (reinterpret_cast<uintptr_t>(a->weights) % RQ_TILE_ALIGN ||
        reinterpret_cast<uintptr_t>(a->workspace) % RQ_TILE_ALIGN)
        return "weights and workspace begin at multiples of 256 bytes";
    return NULL;
}

rq_status rq_cuda_gemv_run(const rq_cuda_gemv_plan *plan, const rq_cuda_gemv_desc *d, const rq_cuda_gemv_args *a,
                           rq_cuda_stream stream) {
    const char *text = rq_gemv_refuse(d);
    if (text) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, text);
    if (!plan || plan->blocks < 1 || !a) return rq_gemv_fail(RQ_ERR_ARG, "a run needs a plan and arguments");
    if ((text = rq_gemv_refuse_args(d, a, plan->workspace_bytes))) return rq_gemv_fail(RQ_ERR_ARG, text);
    const rq_gemv_format *f = rq_gemv_format_of(d->kind);
    const rq_tile_layout t = f->layout(d);
    const rq_gemv_kernel k = f->pick(d);
    rq_gemv_job job = {};
    job.y = a->y, job.x = a->x, job.bias = a->bias, job.residual = a->residual, job.perm = a->perm;
    job.x_scale = a->x_scale, job.x_sum = a->x_sum;
    job.counters = static_cast<unsigned *>(a->workspace);
    job.parts = reinterpret_cast<float *>(static_cast<uint8_t *>(a->workspace) + counter_bytes(&t, d->n_tok));
    job.n_out = (int)d->n_out, job.n_in = (int)d->n_in, job.n_tok = (int)d->n_tok, job.act = d->act;
    job.n_rb = (int)t.n_rb, job.n_kb = (int)t.n_kb;
    job.split = plan->split, job.part_kb = plan->part_kb, job.log_warps = plan->log_warps;
    job.rb_step = plan->blocks / plan->split * (RQ_GEMV_WARPS >> plan->log_warps) * k.rows;
    job.batch_step = k.depth << plan->log_warps;
    job.rounds = (plan->part_kb + job.batch_step - 1) / job.batch_step;
    job.x_pitch = (int)x_pitch(d, plan->part_kb);
    job.shared_format = k.shared_format + (int)(plan->part_kb * x_sum_bytes(&k, d->n_tok));
    alignas(16) uint8_t format_args[RQ_GEMV_ARGS] = {};
    f->fill(format_args, d, a->weights);

    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)plan->blocks);
    config.blockDim = dim3((unsigned)plan->threads);
    config.dynamicSmemBytes = plan->shared_bytes;
    config.stream = stream;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &early;
    config.numAttrs = d->early_launch ? 1 : 0;
    void *params[] = {&job, format_args};
    if (cudaError_t e = cudaLaunchKernelExC(&config, k.function, params)) return rq_gemv_fail_cuda("launch", e);
    return RQ_OK;
}
