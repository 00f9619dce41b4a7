/* SPDX-License-Identifier: Apache-2.0 */
/* cudaMemset and its kin. */
#include <string.h>

#include "rt.h"
#include "rt_capture.h"
#include "rt_copy.h"

cudaError_t rt_fill_check(const char *call, const rt_fill *f) {
    if (f->element != 1 && f->element != 2 && f->element != 4) return cudaErrorInvalidValue;
    size_t row = f->width * f->element;
    if (!row || !f->height || !f->depth) return cudaSuccess;
    size_t rows = f->height * f->depth;
    if (rows > 1 && f->pitch < row) return cudaErrorInvalidPitchValue;
    if ((uintptr_t)f->dst % f->element) return cudaErrorInvalidValue;
    return rt_check_device(call, f->dst, (rows - 1) * f->pitch + row);
}

static cudaError_t run_fill(rt_work *w, rt_stream *s) {
    (void)s;
    const rt_fill *f = &((rt_fill_work *)w)->fill;
    if (rt_fill_check("a fill in a stream", f) != cudaSuccess) return cudaSuccess; /* freed since: a finding */
    for (size_t y = 0; y < f->height * f->depth; ++y) {
        char *row = (char *)f->dst + y * f->pitch;
        if (f->element == 1) {
            memset(row, (int)(f->value & 0xff), f->width);
            continue;
        }
        for (size_t x = 0; x < f->width; ++x) memcpy(row + x * f->element, &f->value, f->element);
    }
    return cudaSuccess;
}

rt_work *rt_fill_new(const rt_fill *f) {
    rt_fill_work *w = rt_work_new(RT_WORK_SET, sizeof *w, run_fill);
    w->fill = *f;
    return &w->base;
}

/* Fills do not wait, but those of pinned memory called without a stream do. */
static cudaError_t fill(const char *call, const rt_fill *f, cudaStream_t stream, bool may_wait) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(stream, &s);
    if (e == cudaSuccess) e = rt_fill_check(call, f);
    if (e != cudaSuccess) return e;
    if (may_wait) e = rt_capture_waits(s);
    if (may_wait && e == cudaSuccess) e = rt_capture_unsafe();
    if (e != cudaSuccess) return e;
    e = rt_submit(s, rt_fill_new(f));
    if (e == cudaSuccess && may_wait && rt_mem_kind(f->dst) == RT_PINNED) return rt_sync_stream(s);
    return e;
}

static cudaError_t fill_flat(const char *call, void *p, int value, size_t n, cudaStream_t s, bool may_wait) {
    rt_fill f = {p, 0, n, 1, 1, (unsigned)value & 0xff, 1};
    return fill(call, &f, s, may_wait);
}

cudaError_t cudaMemset(void *p, int value, size_t n) {
    RT_CALL(fill_flat("cudaMemset", p, value, n, cudaStreamLegacy, true));
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s) {
    RT_CALL(fill_flat("cudaMemsetAsync", p, value, n, s, false));
}

static cudaError_t fill_2d(const char *call, void *p, size_t pitch, int value, size_t width, size_t height,
                           cudaStream_t s, bool may_wait) {
    rt_fill f = {p, pitch, width, height, 1, (unsigned)value & 0xff, 1};
    return fill(call, &f, s, may_wait);
}

cudaError_t cudaMemset2D(void *p, size_t pitch, int value, size_t width, size_t height) {
    RT_CALL(fill_2d("cudaMemset2D", p, pitch, value, width, height, cudaStreamLegacy, true));
}
cudaError_t cudaMemset2DAsync(void *p, size_t pitch, int value, size_t width, size_t height, cudaStream_t s) {
    RT_CALL(fill_2d("cudaMemset2DAsync", p, pitch, value, width, height, s, false));
}

static cudaError_t fill_3d(const char *call, struct cudaPitchedPtr p, int value, struct cudaExtent extent,
                           cudaStream_t s, bool may_wait) {
    if (extent.depth > 1 && p.ysize != extent.height) return cudaErrorNotSupported; /* slices with rows left out */
    rt_fill f = {p.ptr, p.pitch, extent.width, extent.height, extent.depth, (unsigned)value & 0xff, 1};
    return fill(call, &f, s, may_wait);
}

cudaError_t cudaMemset3D(struct cudaPitchedPtr p, int value, struct cudaExtent extent) {
    RT_CALL(fill_3d("cudaMemset3D", p, value, extent, cudaStreamLegacy, true));
}
cudaError_t cudaMemset3DAsync(struct cudaPitchedPtr p, int value, struct cudaExtent extent, cudaStream_t s) {
    RT_CALL(fill_3d("cudaMemset3DAsync", p, value, extent, s, false));
}
