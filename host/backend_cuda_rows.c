/* SPDX-License-Identifier: Apache-2.0 */
/* Activations of all samples between two passes: on the device as long as there is room beside what the run needs, and otherwise in spill files, as on
 * the CPU, through pinned memory. Chunks are copied while others are computed: reading a chunk waits for the one that had its slot, and what is
 * written goes to the file when its slot is needed again, or at the end of the pass. */
#include "backend_cuda_forward.h"

struct rq_rows {
    int64_t width;
    float *there;  /* [n_tok][width], or NULL: in the file */
    rq_spill file; /* fd -1: none */
};

static rq_status slot_new(cuda_forward *f, cuda_slot *s) {
    rq_status status = RQ_OK;
    const int64_t count = f->job.chunk * f->widest;
    if (s->pinned) return RQ_OK;
    CUDA_TRY(cudaEventCreateWithFlags(&s->ready, cudaEventDisableTiming), "a chunk of activations");
    CUDA_TRY(cudaEventCreateWithFlags(&s->copied, cudaEventDisableTiming), "a chunk of activations");
    RQ_TRY(CUDA_NEW(f->dev, s->there, count, "a chunk of activations on its way"));
    CUDA_TRY(cudaMallocHost((void **)&s->pinned, (size_t)count * sizeof *s->pinned), "a chunk of activations");
done:
    return status;
}

static void slot_free(cuda_slot *s) {
    if (s->pinned) (void)cudaFreeHost(s->pinned);
    cuda_release(s->there);
    if (s->ready) (void)cudaEventDestroy(s->ready);
    if (s->copied) (void)cudaEventDestroy(s->copied);
    *s = (cuda_slot){0};
}

void cuda_slots_free(cuda_forward *f) {
    (void)cudaStreamSynchronize(f->dev->copy); /* after a failure chunks may be on their way */
    if (f->back) (void)cudaStreamSynchronize(f->back);
    for (int i = 0; i < RQ_CUDA_SLOTS; ++i) {
        slot_free(&f->in[i]);
        slot_free(&f->out[i]);
    }
    if (f->back) (void)cudaStreamDestroy(f->back);
    f->back = NULL;
}

rq_status cuda_rows_new(void *own, rq_rows **out, int64_t width, const char *what) {
    rq_status status = RQ_OK;
    cuda_forward *f = own;
    const double bytes = 4.0 * (double)f->job.n_tok * (double)width;
    rq_rows *r;
    RQ_TRY(RQ_NEW_ZERO(*out, 1));
    r = *out;
    r->width = width;
    r->file.fd = -1;
    if (bytes <= f->room) {
        RQ_TRY(CUDA_NEW(f->dev, r->there, f->job.n_tok * width, what));
        f->room -= bytes;
        goto done;
    }
    rq_log(RQ_LOG_INFO,
           "cuda:%d: %.1f MiB of activations %lld wide go through files: %.1f MiB of device memory are left",
           f->dev->index, bytes / 1048576, (long long)width, f->room > 0 ? f->room / 1048576 : 0.0);
    if (!f->back) CUDA_TRY(cudaStreamCreateWithFlags(&f->back, cudaStreamNonBlocking), "copies to the host");
    for (int i = 0; i < RQ_CUDA_SLOTS; ++i) {
        RQ_TRY(slot_new(f, &f->in[i]));
        RQ_TRY(slot_new(f, &f->out[i]));
    }
    RQ_TRY(rq_spill_new(&r->file, f->job.dir, width));
done:
    return status;
}

/* What is on its way to the rows' file is given up. */
void cuda_rows_free(void *own, rq_rows *r) {
    cuda_forward *f = own;
    if (!r) return;
    for (int i = 0; i < RQ_CUDA_SLOTS; ++i) {
        if (f->out[i].rows == r) f->out[i].rows = NULL;
    }
    cuda_release(r->there);
    rq_spill_free(&r->file);
    free(r);
}

static rq_status slot_write(cuda_slot *s) {
    rq_status status = RQ_OK;
    if (!s->rows) return RQ_OK;
    CUDA_TRY(cudaEventSynchronize(s->copied), "activations for a file");
    RQ_TRY(rq_spill_write(&s->rows->file, s->row0, s->n_rows, s->pinned));
done:
    s->rows = NULL;
    return status;
}

rq_status cuda_rows_flush(cuda_forward *f) {
    rq_status status = RQ_OK;
    for (int i = 0; i < RQ_CUDA_SLOTS; ++i) RQ_TRY(slot_write(&f->out[i]));
done:
    return status;
}

rq_status cuda_rows_read(void *own, rq_rows *r, int64_t row0, int64_t n_rows, float *to) {
    rq_status status = RQ_OK;
    cuda_forward *f = own;
    cuda_device *dev = f->dev;
    const size_t bytes = (size_t)(n_rows * r->width) * sizeof *to;
    if (r->there) {
        CUDA_TRY(cudaMemcpyAsync(to, r->there + row0 * r->width, bytes, cudaMemcpyDeviceToDevice, dev->compute),
                 "activations");
        goto done;
    }
    for (int i = 0; i < RQ_CUDA_SLOTS; ++i) {
        const cuda_slot *w = &f->out[i];
        if (w->rows == r && row0 < w->row0 + w->n_rows && w->row0 < row0 + n_rows) RQ_TRY(slot_write(&f->out[i]));
    }
    cuda_slot *s = &f->in[f->next_in];
    f->next_in = (f->next_in + 1) % RQ_CUDA_SLOTS;
    CUDA_TRY(cudaEventSynchronize(s->copied), "activations of a file");
    RQ_TRY(rq_spill_read(&r->file, row0, n_rows, s->pinned));
    CUDA_TRY(cudaStreamWaitEvent(dev->copy, s->ready, 0), "activations of a file");
    CUDA_TRY(cudaMemcpyAsync(s->there, s->pinned, bytes, cudaMemcpyHostToDevice, dev->copy), "activations of a file");
    CUDA_TRY(cudaEventRecord(s->copied, dev->copy), "activations of a file");
    CUDA_TRY(cudaStreamWaitEvent(dev->compute, s->copied, 0), "activations of a file");
    CUDA_TRY(cudaMemcpyAsync(to, s->there, bytes, cudaMemcpyDeviceToDevice, dev->compute), "activations of a file");
    CUDA_TRY(cudaEventRecord(s->ready, dev->compute), "activations of a file");
    dev->done.upload += (double)bytes;
done:
    return status;
}

rq_status cuda_rows_write(void *own, rq_rows *r, int64_t row0, int64_t n_rows, const float *from) {
    rq_status status = RQ_OK;
    cuda_forward *f = own;
    cuda_device *dev = f->dev;
    const size_t bytes = (size_t)(n_rows * r->width) * sizeof *from;
    if (r->there) {
        CUDA_TRY(cudaMemcpyAsync(r->there + row0 * r->width, from, bytes, cudaMemcpyDeviceToDevice, dev->compute),
                 "activations");
        goto done;
    }
    cuda_slot *s = &f->out[f->next_out];
    f->next_out = (f->next_out + 1) % RQ_CUDA_SLOTS;
    RQ_TRY(slot_write(s)); /* its copy has ended then, so `there` is free as well */
    CUDA_TRY(cudaMemcpyAsync(s->there, from, bytes, cudaMemcpyDeviceToDevice, dev->compute), "activations for a file");
    CUDA_TRY(cudaEventRecord(s->ready, dev->compute), "activations for a file");
    CUDA_TRY(cudaStreamWaitEvent(f->back, s->ready, 0), "activations for a file");
    CUDA_TRY(cudaMemcpyAsync(s->pinned, s->there, bytes, cudaMemcpyDeviceToHost, f->back), "activations for a file");
    CUDA_TRY(cudaEventRecord(s->copied, f->back), "activations for a file");
    s->rows = r, s->row0 = row0, s->n_rows = n_rows;
    dev->done.download += (double)bytes;
done:
    return status;
}
