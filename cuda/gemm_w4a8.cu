/* SPDX-License-Identifier: Apache-2.0 */
/* rq_cuda_gemm_*: which kernel, over how many blocks, and its launch. Targets: sm_80 sm_90a. */
#include "gemm_w4a8.cuh"

enum { MOST_TOKENS = 1 << 20, FEWEST_STAGES = 4 /* of a part of the columns */ };

static int steps_of(const rq_cuda_gemv_desc *d) { return d->group == 0 ? 0 : d->group % RQ_TILE_COLS == 0 ? 4 : 1; }

static int64_t pitch_of(const rq_cuda_gemv_desc *d) { return d->x_pitch ? d->x_pitch : d->n_in; }

/* The description as the GEMV has it: what it refuses for other reasons than the tokens is refused here too. */
static const char *refuse(const rq_cuda_gemv_desc *d) {
    if (!d || d->struct_size != sizeof *d) return "a description begins with rq_cuda_gemv_desc_default()";
    if (d->kind != RQ_TILE_W4A8) return "the GEMM is of W4A8 weights";
    if (d->n_tok < 1 || d->n_tok > MOST_TOKENS) return "n_tok is 1 to 2^20";
    if (pitch_of(d) % 16 != 0)
        return "the GEMM needs tokens of x to begin at multiples of 16 bytes: x_pitch, or n_in where that is 0, is one";
    rq_cuda_gemv_desc one = *d;
    one.n_tok = 1;
    return rq_gemv_refuse(&one);
}

static int64_t slabs_of(int64_t n_rb) { return (n_rb + RQ_TILE_W4A8_BLOCKS - 1) / RQ_TILE_W4A8_BLOCKS; }
static rq_tile_layout layout_of(const rq_cuda_gemv_desc *d) { return rq_gemv_format_of(RQ_TILE_W4A8)->layout(d); }
static rq_gemm_kernel kernel_of(const rq_cuda_gemm_plan *p, const rq_cuda_gemv_desc *d) {
    if (d->x_e4m3)
        return p->capability >= 90 ? rq_gemm_e4m3_wgmma_kernel(p->tile_tok, steps_of(d))
                                   : rq_gemm_e4m3_mma_kernel(p->tile_tok, steps_of(d));
    if (p->capability >= 90) return rq_gemm_wgmma_kernel(p->tile_rows / RQ_GEMM_SLAB, p->tile_tok, steps_of(d));
    return rq_gemm_mma_kernel(p->tile_tok, steps_of(d));
}
/* e4m3 by mma on halves, whose tiles have up to 64 tokens. */
static bool is_halves(const rq_cuda_gemm_plan *p, const rq_cuda_gemv_desc *d) {
    return d->x_e4m3 && p->capability < 90;
}
static size_t counter_bytes(const rq_cuda_gemm_plan *p) {
    return ((size_t)p->blocks_out * p->blocks_tok * 4 + RQ_TILE_ALIGN - 1) / RQ_TILE_ALIGN * RQ_TILE_ALIGN;
}

static const char *refuse_wish(const rq_cuda_gemm_wish *w) {
    if (w->capability != 0 && w->capability != 80 && w->capability != 90) return "kernels are for 80 and 90";
    if (w->tile_tok != 0 && w->tile_tok != 32 && w->tile_tok != 64 && w->tile_tok != 128)
        return "tiles have 32, 64 or 128 tokens";
    if (w->tile_rows != 0 && w->tile_rows != RQ_GEMM_SLAB && w->tile_rows != 2 * RQ_GEMM_SLAB)
        return "tiles have 128 or 256 rows";
    return w->split < 0 ? "there is one part of the columns or more" : NULL;
}

/* The tile: as many tokens as there are, up to 128, and two slabs where that leaves a block for each multiprocessor. The columns are cut where even
 * half of them have none. */
static void share(rq_cuda_gemm_plan *p, const rq_cuda_gemv_desc *d, const rq_cuda_gemm_wish *w, int multiprocessors) {
    const rq_tile_layout t = layout_of(d);
    const int64_t slabs = slabs_of(t.n_rb);
    p->tile_tok = w->tile_tok ? w->tile_tok : d->n_tok <= 32 ? 32 : d->n_tok <= 64 || is_halves(p, d) ? 64 : 128;
    p->blocks_tok = (int)((d->n_tok + p->tile_tok - 1) / p->tile_tok);
    const bool fills = (slabs + 1) / 2 * p->blocks_tok >= multiprocessors;
    /* The sums of two slabs, and those of 128 columns beside them, would not fit in the registers. */
    const bool two =
        p->capability >= 90 && !d->x_e4m3 && p->tile_tok == 128 && (w->tile_rows ? w->tile_rows > RQ_GEMM_SLAB : fills);
    p->tile_rows = two ? 2 * RQ_GEMM_SLAB : RQ_GEMM_SLAB;
    p->blocks_out = (int)(two ? (slabs + 1) / 2 : slabs);
    const int64_t blocks = (int64_t)p->blocks_out * p->blocks_tok, most = t.n_kb / FEWEST_STAGES;
    int64_t split = blocks * 2 <= multiprocessors ? multiprocessors / blocks : 1;
    if (split > most) split = most > 1 ? most : 1;
    if (w->split) split = w->split < t.n_kb ? w->split : t.n_kb;
    p->part_kb = (int)((t.n_kb + split - 1) / split);
    p->split = (int)((t.n_kb + p->part_kb - 1) / p->part_kb);
}

rq_status rq_cuda_gemm_supports(const rq_cuda_gemv_desc *d, const char **why) {
    rq_cuda_gemm_plan plan;
    const rq_status s = rq_cuda_gemm_make_plan(&plan, d, NULL);
    if (why && s != RQ_OK) *why = rq_cuda_last_error();
    return s;
}

rq_status rq_cuda_gemm_make_plan(rq_cuda_gemm_plan *plan, const rq_cuda_gemv_desc *d, const rq_cuda_gemm_wish *wish) {
    const rq_cuda_gemm_wish none = {}, *w = wish ? wish : &none;
    const char *text = plan ? refuse(d) : "there is no plan to fill";
    if (!text) text = refuse_wish(w);
    if (text) return rq_gemv_fail(plan ? RQ_ERR_UNSUPPORTED : RQ_ERR_ARG, text);
    rq_gemv_device info = {};
    if (cudaError_t e = rq_gemv_look(&info)) return rq_gemv_fail_cuda("no CUDA device", e);
    if (info.capability < 80) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "the kernels need compute capability 8.0");
    memset(plan, 0, sizeof *plan);
    /* The machine code for 9.0 is of that architecture alone. */
    plan->capability = info.capability == 90 && w->capability != 80 ? 90 : 80;
    /* Sums of e4m3 products are taken every 128 columns: groups that end in between need the other kernel. */
    if (d->x_e4m3 && steps_of(d) == 1) plan->capability = 80;
    if (is_halves(plan, d) && w->tile_tok > 64)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "tiles of the mma kernel for e4m3 have 32 or 64 tokens");
    share(plan, d, w, info.multiprocessors);
    rq_gemm_kernel k = kernel_of(plan, d);
    plan->threads = k.threads, plan->shared_bytes = (size_t)k.shared_bytes, plan->kernel = k.name;
    if (plan->shared_bytes + 1024 > (size_t)info.shared_of_block)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "a block's shared memory is too small for the GEMM");
    if (plan->blocks_out > 65535) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "the GEMM goes up to 8388480 outputs");
    if (plan->split > 1)
        plan->workspace_bytes = counter_bytes(plan) + (size_t)plan->blocks_out * plan->blocks_tok * plan->tile_rows *
                                                          plan->tile_tok * 4 * (d->x_e4m3 ? plan->split : 1);
    const double n_out = (double)d->n_out, n_in = (double)d->n_in, n_tok = (double)d->n_tok;
    plan->bytes =
        (double)layout_of(d).bytes + n_tok * (n_in + 8 + n_out * (d->residual ? 4 : 2)) + (d->bias ? 2 * n_out : 0);
    plan->operations = 2 * n_out * n_in * n_tok;
    /* Not in run: it need not be capturable, and is the same for all plans of the kernel. */
    if (cudaError_t e = cudaFuncSetAttribute(k.function, cudaFuncAttributeMaxDynamicSharedMemorySize, k.shared_bytes))
        return rq_gemv_fail_cuda("cudaFuncSetAttribute", e);
    if (plan->capability >= 90) return rq_gemm_wgmma_prepare();
    return RQ_OK;
}

static rq_gemm_job job_of(const rq_cuda_gemm_plan *p, const rq_cuda_gemv_desc *d, const rq_cuda_gemv_args *a) {
    const rq_tile_layout t = layout_of(d);
    const uint8_t *base = static_cast<const uint8_t *>(a->weights);
    rq_gemm_job job = {};
    job.tiles = base + t.tiles, job.levels = base + t.levels;
    job.scales = reinterpret_cast<const float *>(base + t.scales);
    job.zeros = reinterpret_cast<const int32_t *>(base + t.zero_points);
    job.x = a->x, job.x_scale = a->x_scale, job.x_sum = a->x_sum, job.x_block_sum = a->x_block_sum;
    job.x_pitch = pitch_of(d), job.sum_pitch = (int)((d->n_tok + 3) / 4 * 4);
    job.bias = a->bias, job.residual = a->residual, job.y = a->y;
    job.counters = static_cast<unsigned *>(a->workspace);
    job.parts = static_cast<uint8_t *>(a->workspace) + counter_bytes(p);
    job.n_out = (int)d->n_out, job.n_in = (int)d->n_in, job.n_tok = (int)d->n_tok, job.act = d->act;
    job.n_slab = (int)slabs_of(t.n_rb), job.n_kb = (int)t.n_kb, job.n_group = (int)t.n_group;
    job.split = p->split, job.part_kb = p->part_kb;
    job.steps_of_group = (uint32_t)(d->group / 32);
    job.reciprocal = job.steps_of_group <= 1 ? 0 : (uint32_t)(((uint64_t)1 << 32) / job.steps_of_group + 1);
    job.whole = d->n_out % 4 == 0 && (reinterpret_cast<uintptr_t>(a->y) | reinterpret_cast<uintptr_t>(a->bias) |
                                      reinterpret_cast<uintptr_t>(a->residual)) %
                                             8 ==
                                         0;
    return job;
}

rq_status rq_cuda_gemm_run(const rq_cuda_gemm_plan *plan, const rq_cuda_gemv_desc *d, const rq_cuda_gemv_args *a,
                           rq_cuda_stream stream) {
    const char *text = refuse(d);
    if (text) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, text);
    if (!plan || plan->threads < 1 || !a) return rq_gemv_fail(RQ_ERR_ARG, "a run needs a plan and arguments");
    text = rq_gemv_refuse_args(d, a, plan->workspace_bytes);
    if (!text && a->perm) text = "the GEMM has no permutation of the inputs";
    if (!text && (reinterpret_cast<uintptr_t>(a->x) | reinterpret_cast<uintptr_t>(a->x_block_sum)) % 16)
        text = "x and x_block_sum of the GEMM begin at multiples of 16 bytes";
    if (text) return rq_gemv_fail(RQ_ERR_ARG, text);
    rq_gemm_job job = job_of(plan, d, a);
    const rq_gemm_kernel k = kernel_of(plan, d);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)plan->blocks_tok, (unsigned)plan->blocks_out, (unsigned)plan->split);
    config.blockDim = dim3((unsigned)plan->threads);
    config.dynamicSmemBytes = plan->shared_bytes;
    config.stream = stream;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &early;
    config.numAttrs = d->early_launch ? 1 : 0;
    rq_gemm_map map;
    if (plan->capability >= 90) {
        const rq_status s = rq_gemm_wgmma_map(&map, &job, plan->tile_tok);
        if (s != RQ_OK) return s;
    }
    void *params[] = {&job, &map}; /* mma takes the first only */
    if (cudaError_t e = cudaLaunchKernelExC(&config, k.function, params)) return rq_gemv_fail_cuda("launch", e);
    return RQ_OK;
}
