/* SPDX-License-Identifier: Apache-2.0 */
/* On a GPU: the factor U with (H + damping)^-1 = U^T U by one Cholesky of the index-reversed matrix and one triangular inverse in fp64
 * (cusolverDnXpotrf, Xtrtri; docs/methods.md, "Damping and factor"), the triangular term T and the move of the target M. */
#include "backend_cuda.h"

enum { TILE = RQ_CUDA_TILE };

rq_status cuda_prep_of(cuda_prep **own, rq_prep *p) {
    rq_status status = RQ_OK;
    cuda_prep *q = p->on_device;
    if (!q) RQ_TRY(RQ_NEW_ZERO(q, 1));
    p->on_device = *own = q;
done:
    return status;
}

rq_status cuda_prep_hd(cuda_device *dev, const float **hd, const rq_prep *p, const char *what) {
    rq_status status = RQ_OK;
    cuda_prep *q = p->on_device;
    if (!q->hd) {
        RQ_TRY(CUDA_NEW(dev, q->hd, p->n * p->n, what));
        RQ_TRY(cuda_upload(dev, q->hd, p->hd, p->n * p->n * (int64_t)sizeof *p->hd, dev->compute));
    }
    *hd = q->hd;
done:
    return status;
}

void cuda_forget(void *own, rq_prep *p) {
    const cuda_device *dev = own;
    cuda_prep *q = p->on_device;
    (void)cudaSetDevice(dev->index);
    if (q) {
        cuda_release(q->u);
        cuda_release(q->t);
        cuda_release(q->m);
        cuda_release(q->hd);
    }
    free(q);
    p->on_device = NULL;
}

static rq_status solver_failed(const char *call, int64_t n, cusolverStatus_t s) {
    return rq_fail(RQ_ERR_DEVICE, "%s of the %lld x %lld Gram matrix: status %d", call, (long long)n, (long long)n,
                   (int)s);
}

/* C^-1 in the place of G = C C^T, both lower by rows: upper by columns, as cuSOLVER has it. *info: the leading minor that is not positive definite,
 * or 0. */
static rq_status invert_factor(cuda_device *dev, double *g, int64_t n, int *info) {
    rq_status status = RQ_OK;
    const cuda_libs *l = dev->libs;
    size_t device_bytes[2] = {0}, host_bytes[2] = {0};
    void *work = NULL;
    char *host_work = NULL;
    int *device_info = NULL;
    cusolverStatus_t s = l->potrf_size(dev->solver, dev->params, CUBLAS_FILL_MODE_UPPER, n, CUDA_R_64F, g, n,
                                       CUDA_R_64F, &device_bytes[0], &host_bytes[0]);
    if (s != CUSOLVER_STATUS_SUCCESS) return solver_failed("cusolverDnXpotrf_bufferSize", n, s);
    s = l->trtri_size(dev->solver, CUBLAS_FILL_MODE_UPPER, CUBLAS_DIAG_NON_UNIT, n, CUDA_R_64F, g, n, &device_bytes[1],
                      &host_bytes[1]);
    if (s != CUSOLVER_STATUS_SUCCESS) return solver_failed("cusolverDnXtrtri_bufferSize", n, s);
    size_t most = device_bytes[0] > device_bytes[1] ? device_bytes[0] : device_bytes[1],
           most_host = host_bytes[0] > host_bytes[1] ? host_bytes[0] : host_bytes[1];
    RQ_TRY(cuda_new(dev, &work, (int64_t)most, 1, "cuSOLVER's workspace"));
    RQ_TRY(RQ_NEW(host_work, (int64_t)most_host));
    RQ_TRY(CUDA_NEW(dev, device_info, 1, "cuSOLVER's info"));
    s = l->potrf(dev->solver, dev->params, CUBLAS_FILL_MODE_UPPER, n, CUDA_R_64F, g, n, CUDA_R_64F, work,
                 device_bytes[0], host_work, host_bytes[0], device_info);
    dev->done.flops += (double)n * (double)n * (double)n / 3;
    ++dev->done.launches;
    if (s != CUSOLVER_STATUS_SUCCESS) {
        status = solver_failed("cusolverDnXpotrf", n, s);
        goto done;
    }
    RQ_TRY(cuda_download(dev, info, device_info, sizeof *info));
    if (*info < 0) RQ_FAIL(RQ_ERR_DEVICE, "cusolverDnXpotrf: argument %d is wrong (n = %lld)", -*info, (long long)n);
    if (*info) goto done;
    s = l->trtri(dev->solver, CUBLAS_FILL_MODE_UPPER, CUBLAS_DIAG_NON_UNIT, n, CUDA_R_64F, g, n, work, device_bytes[1],
                 host_work, host_bytes[1], device_info);
    dev->done.flops += (double)n * (double)n * (double)n / 3;
    ++dev->done.launches;
    if (s != CUSOLVER_STATUS_SUCCESS) {
        status = solver_failed("cusolverDnXtrtri", n, s);
        goto done;
    }
    RQ_TRY(cuda_download(dev, info, device_info, sizeof *info));
done:
    cuda_release(work);
    cuda_release(device_info);
    free(host_work);
    return status;
}

rq_status cuda_factor(void *own, rq_prep *p, const double *h, int64_t *bad) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    cuda_prep *q;
    int64_t n = p->n;
    double *g = NULL;
    int32_t *device_bad = NULL, first_bad = (int32_t)n;
    int info = 0;
    *bad = 0;
    CUDA_TRY(cudaSetDevice(dev->index), "the factor");
    RQ_TRY(cuda_prep_of(&q, p));
    RQ_TRY(CUDA_NEW(dev, g, n * n, "the factor of the Gram matrix"));
    if (!q->u) RQ_TRY(CUDA_NEW(dev, q->u, n * n, "U"));
    RQ_TRY(CUDA_NEW(dev, device_bad, 1, "the factor's diagonal"));
    RQ_TRY(cuda_upload(dev, g, h, n * n * (int64_t)sizeof *g, dev->compute));
    KERNEL_TRY(dev, rq_cuda_reverse(g, n * n, dev->compute));
    RQ_TRY(invert_factor(dev, g, n, &info));
    if (info == 0) {
        RQ_TRY(cuda_upload(dev, device_bad, &first_bad, sizeof first_bad, dev->compute));
        KERNEL_TRY(dev, rq_cuda_factor_read(q->u, device_bad, g, n, dev->compute));
        RQ_TRY(cuda_download(dev, &first_bad, device_bad, sizeof first_bad));
        if (first_bad < n) *bad = first_bad + 1;
    } else {
        *bad = n - info + 1; /* indices are reversed */
    }
    if (*bad) {
        RQ_FAIL(RQ_ERR_NUMERIC, "the %lld x %lld matrix is not positive definite (found at index %lld)", (long long)n,
                (long long)n, (long long)(*bad - 1));
    }
    if (!p->u) RQ_TRY(RQ_NEW(p->u, n * n));
    RQ_TRY(cuda_download(dev, p->u, q->u, n * n * (int64_t)sizeof *p->u));
done:
    cuda_release(g);
    cuda_release(device_bad);
    return status;
}

/* First column of each row of T that is not zero: right of the diagonal and of the columns that are finished together. */
static rq_status first_columns(cuda_device *dev, int32_t **first, const rq_prep *p) {
    rq_status status = RQ_OK;
    int32_t *host = NULL;
    RQ_TRY(RQ_NEW(host, p->n));
    for (int64_t r = 0; r < p->n; ++r) host[r] = (int32_t)r + 1;
    for (int64_t b = 0; b < p->n_span; ++b) {
        const rq_span *s = &p->span[b];
        for (int32_t r = s->pos; r < s->pos + s->width; ++r) host[r] = s->pos + s->width;
    }
    RQ_TRY(CUDA_NEW(dev, *first, p->n, "T's first columns"));
    RQ_TRY(cuda_upload(dev, *first, host, p->n * (int64_t)sizeof *host, dev->compute));
done:
    free(host);
    return status;
}

/* Tiles of D U^T right of the diagonal; row c of U starts at column c. */
static rq_status product_du(cuda_device *dev, float *to, const float *d, const float *u, int64_t n, bool upper) {
    rq_status status = RQ_OK;
    for (int64_t c0 = 0; c0 < n; c0 += TILE) {
        int64_t c1 = rq_min_i64(n, c0 + TILE), rows = upper ? c1 : n;
        RQ_TRY(cuda_sgemm(dev, RQ_T, rows, c1 - c0, n - c0, 1, d + c0, n, u + c0 * n + c0, n, 0, to + c0, n, "D U^T"));
    }
done:
    return status;
}

/* Tiles of T U; column c of U ends at row c, and with upper row r of T starts at column r. */
static rq_status product_tu(cuda_device *dev, float *to, const float *t, const float *u, int64_t n, bool upper) {
    rq_status status = RQ_OK;
    for (int64_t c0 = 0; c0 < n; c0 += TILE) {
        int64_t c1 = rq_min_i64(n, c0 + TILE), end = upper ? c1 : n;
        for (int64_t r0 = 0; r0 < end; r0 += TILE) {
            int64_t r1 = rq_min_i64(end, r0 + TILE), k0 = upper ? r0 : 0;
            RQ_TRY(cuda_sgemm(dev, RQ_N, r1 - r0, c1 - c0, c1 - k0, 1, t + r0 * n + k0, n, u + k0 * n + c0, n, 0,
                              to + r0 * n + c0, n, "(D U^T) U"));
        }
    }
done:
    return status;
}

rq_status cuda_triangular_term(void *own, rq_prep *p, float *d) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    cuda_prep *q;
    int64_t n = p->n, bytes = n * n * (int64_t)sizeof(float);
    float *device_d = NULL, *du = NULL;
    int32_t *first = NULL;
    CUDA_TRY(cudaSetDevice(dev->index), "T");
    RQ_TRY(cuda_prep_of(&q, p));
    RQ_TRY(CUDA_NEW(dev, device_d, n * n, "D"));
    RQ_TRY(CUDA_NEW(dev, du, n * n, "D U^T"));
    RQ_TRY(first_columns(dev, &first, p));
    RQ_TRY(cuda_upload(dev, device_d, d, bytes, dev->compute));
    CUDA_TRY(cudaMemsetAsync(du, 0, (size_t)bytes, dev->compute), "D U^T");
    RQ_TRY(product_du(dev, du, device_d, q->u, n, true));
    KERNEL_TRY(dev, rq_cuda_clear_left(du, first, n, dev->compute));
    q->t = device_d; /* D is done with */
    device_d = NULL;
    CUDA_TRY(cudaMemsetAsync(q->t, 0, (size_t)bytes, dev->compute), "T");
    RQ_TRY(product_tu(dev, q->t, du, q->u, n, true));
    RQ_TRY(RQ_NEW(p->t, n * n));
    RQ_TRY(cuda_download(dev, p->t, q->t, bytes));
done:
    cuda_release(device_d);
    cuda_release(du);
    cuda_release(first);
    return status;
}

rq_status cuda_target_move(void *own, rq_prep *p, float *d) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    cuda_prep *q;
    int64_t n = p->n, bytes = n * n * (int64_t)sizeof(float);
    float *device_d = NULL, *du = NULL;
    int32_t *perm = NULL;
    CUDA_TRY(cudaSetDevice(dev->index), "M");
    RQ_TRY(cuda_prep_of(&q, p));
    RQ_TRY(CUDA_NEW(dev, device_d, n * n, "D"));
    RQ_TRY(CUDA_NEW(dev, du, n * n, "D U^T"));
    RQ_TRY(CUDA_NEW(dev, perm, n, "the order of columns"));
    RQ_TRY(CUDA_NEW(dev, q->m, n * n, "M"));
    RQ_TRY(cuda_upload(dev, device_d, d, bytes, dev->compute));
    RQ_TRY(cuda_upload(dev, perm, p->perm, n * (int64_t)sizeof *perm, dev->compute));
    RQ_TRY(product_du(dev, du, device_d, q->u, n, false));
    RQ_TRY(product_tu(dev, device_d, du, q->u, n, false));
    KERNEL_TRY(dev, rq_cuda_to_natural(q->m, device_d, perm, n, dev->compute));
    RQ_TRY(RQ_NEW(p->m, n * n));
    RQ_TRY(cuda_download(dev, p->m, q->m, bytes));
done:
    cuda_release(device_d);
    cuda_release(du);
    cuda_release(perm);
    return status;
}

rq_status cuda_move(void *own, float *out, const float *w, int64_t n_out, const rq_prep *p, double factor) {
    rq_status status = RQ_OK;
    cuda_device *dev = own;
    const cuda_prep *q = p->on_device;
    int64_t n = p->n, bytes = n_out * n * (int64_t)sizeof(float);
    float *from = NULL, *to = NULL;
    CUDA_TRY(cudaSetDevice(dev->index), "the moved target");
    RQ_TRY(CUDA_NEW(dev, from, n_out * n, "weights"));
    RQ_TRY(CUDA_NEW(dev, to, n_out * n, "the moved target"));
    RQ_TRY(cuda_upload(dev, from, w, bytes, dev->compute));
    CUDA_TRY(cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToDevice, dev->compute), "the moved target");
    RQ_TRY(cuda_sgemm(dev, RQ_N, n_out, n, n, (float)factor, from, n, q->m, n, 1, to, n, "the moved target"));
    RQ_TRY(cuda_download(dev, out, to, bytes));
done:
    cuda_release(from);
    cuda_release(to);
    return status;
}
