/* SPDX-License-Identifier: Apache-2.0 */
/* Gram matrices on a GPU: H = A^T A, of which panels of the lower triangle are computed, and D = B^T A. A product of a panel is in fp32 (of numbers in fp32, or
 * of numbers rounded to bfloat16, whose products fp32 holds exactly), its sum over some tokens too; then it is added to the fp64 matrix. How many tokens, bounds
 * the error: RQ_CUDA_GRAM_CHUNK in fp32, and RQ_CUDA_GRAM_TOKENS in bfloat16, where adding a panel would take as long as a product of fewer
 * (docs/devices.md has both bounds). The tokens of a product follow from the order alone in which they come, so neither chunks nor ranks change a bit. */
#include "backend_cuda_ranks.h"
#include "rq_cuda_llama.h"

void cuda_gram_free(cuda_device *dev) {
    void *all[] = {dev->h, dev->d, dev->panel, dev->half[0], dev->half[1], dev->a[0], dev->a[1], dev->b[0], dev->b[1]};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) cuda_release(all[i]);
    dev->h = dev->d = NULL;
    dev->panel = NULL;
    for (int i = 0; i < 2; ++i) dev->half[i] = NULL, dev->a[i] = dev->b[i] = NULL;
    dev->held = 0;
}

rq_status cuda_gram_start(void *own, double *h, double *d, int64_t n) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    (void)h;
    CUDA_TRY(cudaSetDevice(dev->index), "a Gram matrix");
    cuda_gram_free(dev);
    RQ_TRY(CUDA_NEW(dev, dev->h, n * n, "the Gram matrix"));
    CUDA_TRY(cudaMemsetAsync(dev->h, 0, (size_t)(n * n) * sizeof *dev->h, dev->compute), "the Gram matrix");
    if (d) {
        RQ_TRY(CUDA_NEW(dev, dev->d, n * n, "the cross Gram matrix"));
        CUDA_TRY(cudaMemsetAsync(dev->d, 0, (size_t)(n * n) * sizeof *dev->d, dev->compute), "the cross Gram matrix");
    }
    dev->chunk = 0;
    dev->panel_rows = RQ_CUDA_PANEL;
done:
    if (status != RQ_OK) cuda_gram_free(dev);
    return status;
}

/* dev->panel = the product of rows r0 .. r0 + rows of X^T and the first `cols` columns of A. */
static rq_status panel_product(cuda_device *dev, bool bf16, const void *x, const void *a, int64_t r0, int64_t rows,
                               int64_t cols, int64_t n_tok, int64_t n, const char *what) {
    if (bf16)
        return cuda_gemm_bf16_tn(dev, rows, cols, n_tok, (const uint16_t *)x + r0, n, a, n, dev->panel, cols, what);
    return cuda_sgemm_tn(dev, rows, cols, n_tok, (const float *)x + r0, n, a, n, dev->panel, cols, what);
}

/* This rank's panels of the lower triangle of H and, with b, of all of D, from n_tok tokens on the device. */
static rq_status add_panels(cuda_device *dev, bool bf16, const void *a, const void *b, int64_t n_tok, int64_t n) {
    rq_status status = RQ_OK;
    dev->panel_rows = bf16 ? RQ_CUDA_PANEL_BF16 : RQ_CUDA_PANEL;
    if (!dev->panel) RQ_TRY(CUDA_NEW(dev, dev->panel, rq_min_i64(n, dev->panel_rows) * n, "a panel of a Gram matrix"));
    for (int64_t r0 = 0; r0 < n; r0 += dev->panel_rows) {
        const int64_t rows = rq_min_i64(dev->panel_rows, n - r0), cols = r0 + rows;
        if (!cuda_owns_panel(dev, r0, n)) continue;
        RQ_TRY(panel_product(dev, bf16, a, a, r0, rows, cols, n_tok, n, "the Gram matrix"));
        KERNEL_TRY(dev, rq_cuda_gram_fold(dev->h, n, dev->panel, cols, r0, rows, cols, 1, dev->compute));
        if (!b) continue;
        RQ_TRY(panel_product(dev, bf16, b, a, r0, rows, n, n_tok, n, "the cross Gram matrix"));
        KERNEL_TRY(dev, rq_cuda_gram_fold(dev->d, n, dev->panel, n, r0, rows, n, 0, dev->compute));
    }
done:
    return status;
}

rq_status cuda_gram_here(cuda_device *dev, const float *a, const float *b, int64_t n_tok, int64_t n) {
    rq_status status = RQ_OK;
    for (int64_t t0 = 0; t0 < n_tok; t0 += RQ_CUDA_GRAM_CHUNK)
        RQ_TRY(
            add_panels(dev, false, a + t0 * n, b ? b + t0 * n : NULL, rq_min_i64(RQ_CUDA_GRAM_CHUNK, n_tok - t0), n));
done:
    return status;
}

/* The tokens that are held, into H and D. */
static rq_status multiply_held(cuda_device *dev, int64_t n) {
    rq_status status = RQ_OK;
    if (dev->held > 0) RQ_TRY(add_panels(dev, true, dev->half[0], dev->half[1], dev->held, n));
    dev->held = 0;
done:
    return status;
}

rq_status cuda_gram_here_bf16(cuda_device *dev, const float *a, const float *b, int64_t n_tok, int64_t n) {
    rq_status status = RQ_OK;
    const float *from[] = {a, b};
    for (int i = 0; i < (b ? 2 : 1); ++i) {
        if (!dev->half[i]) RQ_TRY(CUDA_NEW(dev, dev->half[i], RQ_CUDA_GRAM_TOKENS * n, "activations in bfloat16"));
    }
    for (int64_t t0 = 0, tokens; t0 < n_tok; t0 += tokens) {
        tokens = rq_min_i64(RQ_CUDA_GRAM_TOKENS - dev->held, n_tok - t0);
        for (int i = 0; i < (b ? 2 : 1); ++i)
            KERNEL_TRY(dev, rq_cuda_to_bf16(dev->half[i] + dev->held * n, from[i] + t0 * n, tokens * n, dev->compute));
        dev->held += tokens;
        if (dev->held == RQ_CUDA_GRAM_TOKENS) RQ_TRY(multiply_held(dev, n));
    }
done:
    return status;
}

rq_status cuda_gram_add(void *own, double *h, double *d, const float *a, const float *b, int64_t n_tok, int64_t n) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    (void)h;
    CUDA_TRY(cudaSetDevice(dev->index), "activations");
    for (int64_t t0 = 0; t0 < n_tok; t0 += RQ_CUDA_GRAM_CHUNK) {
        int64_t tokens = rq_min_i64(RQ_CUDA_GRAM_CHUNK, n_tok - t0), bytes = tokens * n * (int64_t)sizeof *a;
        int i = (int)(dev->chunk++ % 2);
        if (!dev->a[i]) RQ_TRY(CUDA_NEW(dev, dev->a[i], RQ_CUDA_GRAM_CHUNK * n, "activations"));
        if (d && !dev->b[i]) RQ_TRY(CUDA_NEW(dev, dev->b[i], RQ_CUDA_GRAM_CHUNK * n, "activations"));
        CUDA_TRY(cudaStreamWaitEvent(dev->copy, dev->used[i], 0), "activations");
        RQ_TRY(cuda_upload(dev, dev->a[i], a + t0 * n, bytes, dev->copy));
        if (d) RQ_TRY(cuda_upload(dev, dev->b[i], b + t0 * n, bytes, dev->copy));
        CUDA_TRY(cudaEventRecord(dev->filled[i], dev->copy), "activations");
        CUDA_TRY(cudaStreamWaitEvent(dev->compute, dev->filled[i], 0), "activations");
        RQ_TRY(cuda_gram_here(dev, dev->a[i], d ? dev->b[i] : NULL, tokens, n));
        CUDA_TRY(cudaEventRecord(dev->used[i], dev->compute), "activations");
    }
done:
    return status;
}

rq_status cuda_gram_finish(void *own, double *h, double *d, int64_t n) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    CUDA_TRY(cudaSetDevice(dev->index), "a Gram matrix");
    RQ_TRY(multiply_held(dev, n));
    RQ_TRY(cuda_share_panels(dev, dev->h, n));
    if (d) RQ_TRY(cuda_share_panels(dev, dev->d, n));
    KERNEL_TRY(dev, rq_cuda_gram_mirror(dev->h, n, dev->compute));
    RQ_TRY(cuda_download(dev, h, dev->h, n * n * (int64_t)sizeof *h));
    if (d) RQ_TRY(cuda_download(dev, d, dev->d, n * n * (int64_t)sizeof *d));
done:
    cuda_gram_free(dev);
    return status;
}
