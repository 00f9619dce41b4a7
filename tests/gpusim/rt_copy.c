/* SPDX-License-Identifier: Apache-2.0 */
/* Copies and fills. Each is checked when it is called (kind against what the addresses are, ranges against allocations) and
 * runs with its stream. What returns when is what the CUDA Runtime API says under "API synchronization behavior":
 *
 *   synchronous calls  wait, but copies from device to device and fills of device memory do not
 *   ...Async           from pageable host memory: its bytes are read by the call; to pageable host memory: waits */
#include <stdlib.h>
#include <string.h>

#include "rt.h"
#include "rt_capture.h"
#include "rt_copy.h"

static size_t span_of(const rt_copy *c, size_t pitch, size_t slice) {
    if (!c->width || !c->height || !c->depth) return 0;
    return (c->depth - 1) * slice + (c->height - 1) * pitch + c->width;
}

static bool is_device(rt_mem m) { return m != RT_PAGEABLE && m != RT_PINNED; }

/* Which sides of the copy are the device's, by its kind; RT_FREED counts as device so that its use is found. */
static cudaError_t sides_of(const rt_copy *c, bool *dst_device, bool *src_device) {
    rt_mem dst = rt_mem_kind(c->dst), src = rt_mem_kind(c->src);
    *dst_device = is_device(dst);
    *src_device = is_device(src);
    bool dst_reachable = dst != RT_PAGEABLE, src_reachable = src != RT_PAGEABLE; /* by the device */
    bool dst_host = dst != RT_DEVICE, src_host = src != RT_DEVICE;               /* readable by the host */
    switch (c->kind) {
    case cudaMemcpyHostToHost: return dst_host && src_host ? cudaSuccess : cudaErrorInvalidValue;
    case cudaMemcpyHostToDevice: return dst_reachable && src_host ? cudaSuccess : cudaErrorInvalidValue;
    case cudaMemcpyDeviceToHost: return dst_host && src_reachable ? cudaSuccess : cudaErrorInvalidValue;
    case cudaMemcpyDeviceToDevice: return dst_reachable && src_reachable ? cudaSuccess : cudaErrorInvalidValue;
    case cudaMemcpyDefault: return cudaSuccess;
    }
    return cudaErrorInvalidMemcpyDirection;
}

cudaError_t rt_copy_check(const char *call, const rt_copy *c) {
    if (!span_of(c, c->dst_pitch, c->dst_slice)) return cudaSuccess;
    if (!c->dst || !c->src) return cudaErrorInvalidValue;
    if (c->height > 1 && (c->dst_pitch < c->width || c->src_pitch < c->width)) return cudaErrorInvalidPitchValue;
    bool dst_device, src_device;
    cudaError_t e = sides_of(c, &dst_device, &src_device);
    if (e != cudaSuccess) return e;
    /* Pinned memory has an end as well. */
    if (rt_mem_kind(c->dst) != RT_PAGEABLE) e = rt_check_device(call, c->dst, span_of(c, c->dst_pitch, c->dst_slice));
    if (e != cudaSuccess) return e;
    if (rt_mem_kind(c->src) != RT_PAGEABLE) e = rt_check_device(call, c->src, span_of(c, c->src_pitch, c->src_slice));
    return e;
}

static cudaError_t run_copy(rt_work *w, rt_stream *s) {
    (void)s;
    const rt_copy_work *cw = (rt_copy_work *)w;
    const rt_copy *c = &cw->copy;
    /* Freed since the call? A finding, and nothing is touched. */
    if (cw->dst_ranged && rt_check_device("a copy in a stream", c->dst, span_of(c, c->dst_pitch, c->dst_slice))) {
        return cudaSuccess;
    }
    if (cw->src_ranged && rt_check_device("a copy in a stream", c->src, span_of(c, c->src_pitch, c->src_slice))) {
        return cudaSuccess;
    }
    for (size_t z = 0; z < c->depth; ++z) {
        for (size_t y = 0; y < c->height; ++y) {
            memmove((char *)c->dst + z * c->dst_slice + y * c->dst_pitch,
                    (const char *)c->src + z * c->src_slice + y * c->src_pitch, c->width);
        }
    }
    return cudaSuccess;
}

static void drop_copy(rt_work *w) { free(((rt_copy_work *)w)->staged); }

rt_work *rt_copy_new(const rt_copy *c) {
    rt_copy_work *w = rt_work_new(RT_WORK_COPY, sizeof *w, run_copy);
    w->copy = *c;
    w->base.drop = drop_copy;
    bool empty = !span_of(c, c->dst_pitch, c->dst_slice);
    w->dst_ranged = !empty && rt_mem_kind(c->dst) != RT_PAGEABLE;
    w->src_ranged = !empty && rt_mem_kind(c->src) != RT_PAGEABLE;
    return &w->base;
}

/* The source's bytes as they are now. */
static void stage(rt_copy_work *w) {
    rt_copy *c = &w->copy;
    size_t n = span_of(c, c->src_pitch, c->src_slice);
    w->staged = rt_calloc(n, 1);
    memcpy(w->staged, c->src, n);
    c->src = w->staged;
}

static bool is_plain_device(const void *p) {
    rt_mem m = rt_mem_kind(p);
    return m == RT_DEVICE || m == RT_MANAGED;
}

static cudaError_t copy(const char *call, const rt_copy *c, cudaStream_t stream, bool wait) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(stream, &s);
    if (e == cudaSuccess) e = rt_copy_check(call, c);
    if (e != cudaSuccess) return e;
    if (wait) e = rt_capture_waits(s);
    if (wait && e == cudaSuccess) e = rt_capture_unsafe();
    if (e != cudaSuccess) return e;
    bool from_pageable = rt_mem_kind(c->src) == RT_PAGEABLE, to_pageable = rt_mem_kind(c->dst) == RT_PAGEABLE;
    rt_work *w = rt_copy_new(c);
    if (!wait && !s->capture && from_pageable && !to_pageable) stage((rt_copy_work *)w);
    e = rt_submit(s, w);
    if (e != cudaSuccess || s->capture) return e;
    if (wait) return is_plain_device(c->src) && is_plain_device(c->dst) ? cudaSuccess : rt_sync_stream(s);
    /* Copies within the host, and those to pageable memory, are over when the call returns. */
    bool within_host = !is_device(rt_mem_kind(c->src)) && !is_device(rt_mem_kind(c->dst));
    return to_pageable || within_host ? rt_sync_stream(s) : cudaSuccess;
}

static rt_copy flat(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind) {
    return (rt_copy){dst, src, n, 1, 1, 0, 0, 0, 0, kind};
}

static cudaError_t copy_flat(const char *call, void *dst, const void *src, size_t n, enum cudaMemcpyKind kind,
                             cudaStream_t stream, bool wait) {
    rt_copy c = flat(dst, src, n, kind);
    return copy(call, &c, stream, wait);
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind) {
    RT_CALL(copy_flat("cudaMemcpy", dst, src, n, kind, cudaStreamLegacy, true));
}
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind, cudaStream_t s) {
    RT_CALL(copy_flat("cudaMemcpyAsync", dst, src, n, kind, s, false));
}

static cudaError_t copy_peer(const char *call, void *dst, int to, const void *src, int from, size_t n, cudaStream_t s,
                             bool wait) {
    if (to < 0 || to >= rt_device_count() || from < 0 || from >= rt_device_count()) return cudaErrorInvalidDevice;
    const rt_range *d = rt_range_find(dst), *o = rt_range_find(src);
    if (n && (!d || d->device != to || !o || o->device != from)) return cudaErrorInvalidValue;
    return copy_flat(call, dst, src, n, cudaMemcpyDeviceToDevice, s, wait);
}

cudaError_t cudaMemcpyPeer(void *dst, int to, const void *src, int from, size_t n) {
    RT_CALL(copy_peer("cudaMemcpyPeer", dst, to, src, from, n, cudaStreamLegacy, true));
}
cudaError_t cudaMemcpyPeerAsync(void *dst, int to, const void *src, int from, size_t n, cudaStream_t s) {
    RT_CALL(copy_peer("cudaMemcpyPeerAsync", dst, to, src, from, n, s, false));
}

static cudaError_t copy_2d(const char *call, void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                           size_t width, size_t height, enum cudaMemcpyKind kind, cudaStream_t s, bool wait) {
    if (dst_pitch < width || src_pitch < width) return cudaErrorInvalidPitchValue;
    rt_copy c = {dst, src, width, height, 1, dst_pitch, src_pitch, 0, 0, kind};
    return copy(call, &c, s, wait);
}

cudaError_t cudaMemcpy2D(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t height,
                         enum cudaMemcpyKind kind) {
    RT_CALL(copy_2d("cudaMemcpy2D", dst, dst_pitch, src, src_pitch, width, height, kind, cudaStreamLegacy, true));
}
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t s) {
    RT_CALL(copy_2d("cudaMemcpy2DAsync", dst, dst_pitch, src, src_pitch, width, height, kind, s, false));
}

cudaError_t rt_copy_of_3d(const struct cudaMemcpy3DParms *p, rt_copy *c) {
    if (!p || p->srcArray || p->dstArray) return p ? cudaErrorNotSupported : cudaErrorInvalidValue; /* CUDA arrays */
    const struct cudaPitchedPtr *d = &p->dstPtr, *s = &p->srcPtr;
    size_t rows_d = d->ysize ? d->ysize : p->extent.height, rows_s = s->ysize ? s->ysize : p->extent.height;
    *c = (rt_copy){.width = p->extent.width,
                   .height = p->extent.height,
                   .depth = p->extent.depth,
                   .dst_pitch = d->pitch,
                   .src_pitch = s->pitch,
                   .dst_slice = d->pitch * rows_d,
                   .src_slice = s->pitch * rows_s,
                   .kind = p->kind};
    c->dst = (char *)d->ptr + p->dstPos.z * c->dst_slice + p->dstPos.y * d->pitch + p->dstPos.x;
    c->src = (const char *)s->ptr + p->srcPos.z * c->src_slice + p->srcPos.y * s->pitch + p->srcPos.x;
    return cudaSuccess;
}

static cudaError_t copy_3d(const char *call, const struct cudaMemcpy3DParms *p, cudaStream_t s, bool wait) {
    rt_copy c;
    cudaError_t e = rt_copy_of_3d(p, &c);
    return e == cudaSuccess ? copy(call, &c, s, wait) : e;
}

cudaError_t cudaMemcpy3D(const struct cudaMemcpy3DParms *p) {
    RT_CALL(copy_3d("cudaMemcpy3D", p, cudaStreamLegacy, true));
}
cudaError_t cudaMemcpy3DAsync(const struct cudaMemcpy3DParms *p, cudaStream_t s) {
    RT_CALL(copy_3d("cudaMemcpy3DAsync", p, s, false));
}

/* ---- variables of modules */

static cudaError_t to_symbol(const char *call, const void *symbol, const void *src, size_t n, size_t offset,
                             enum cudaMemcpyKind kind, cudaStream_t s, bool wait) {
    void *at;
    size_t bytes;
    cudaError_t e = rt_symbol(symbol, &at, &bytes);
    if (e != cudaSuccess) return e;
    if (offset > bytes || n > bytes - offset) return cudaErrorInvalidValue;
    if (kind != cudaMemcpyHostToDevice && kind != cudaMemcpyDeviceToDevice && kind != cudaMemcpyDefault) {
        return cudaErrorInvalidMemcpyDirection;
    }
    return copy_flat(call, (char *)at + offset, src, n, kind, s, wait);
}

static cudaError_t from_symbol(const char *call, void *dst, const void *symbol, size_t n, size_t offset,
                               enum cudaMemcpyKind kind, cudaStream_t s, bool wait) {
    void *at;
    size_t bytes;
    cudaError_t e = rt_symbol(symbol, &at, &bytes);
    if (e != cudaSuccess) return e;
    if (offset > bytes || n > bytes - offset) return cudaErrorInvalidValue;
    if (kind != cudaMemcpyDeviceToHost && kind != cudaMemcpyDeviceToDevice && kind != cudaMemcpyDefault) {
        return cudaErrorInvalidMemcpyDirection;
    }
    return copy_flat(call, dst, (char *)at + offset, n, kind, s, wait);
}

cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *src, size_t n, size_t offset, enum cudaMemcpyKind kind) {
    RT_CALL(to_symbol("cudaMemcpyToSymbol", symbol, src, n, offset, kind, cudaStreamLegacy, true));
}
cudaError_t cudaMemcpyToSymbolAsync(const void *symbol, const void *src, size_t n, size_t offset,
                                    enum cudaMemcpyKind kind, cudaStream_t s) {
    RT_CALL(to_symbol("cudaMemcpyToSymbolAsync", symbol, src, n, offset, kind, s, false));
}
cudaError_t cudaMemcpyFromSymbol(void *dst, const void *symbol, size_t n, size_t offset, enum cudaMemcpyKind kind) {
    RT_CALL(from_symbol("cudaMemcpyFromSymbol", dst, symbol, n, offset, kind, cudaStreamLegacy, true));
}
cudaError_t cudaMemcpyFromSymbolAsync(void *dst, const void *symbol, size_t n, size_t offset, enum cudaMemcpyKind kind,
                                      cudaStream_t s) {
    RT_CALL(from_symbol("cudaMemcpyFromSymbolAsync", dst, symbol, n, offset, kind, s, false));
}
cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) { RT_CALL(rt_symbol(symbol, address, NULL)); }
cudaError_t cudaGetSymbolSize(size_t *bytes, const void *symbol) { RT_CALL(rt_symbol(symbol, NULL, bytes)); }
