/* SPDX-License-Identifier: Apache-2.0 */
/* Device, pinned and managed memory. In the simulator all of it is memory of this process; which is which is a matter of
 * rt_range.c, and of the device that it counts against. */
#include <stdlib.h>
#include <string.h>

#include "rt.h"
#include "rt_capture.h"

bool rt_device_memory_used;

cudaError_t rt_device_alloc(void **p, size_t bytes, rt_mem kind) {
    rt_device *d = rt_current();
    if (!p) return cudaErrorInvalidValue;
    *p = NULL;
    if (!bytes) return cudaSuccess;
    if (bytes > d->total - d->used) return cudaErrorMemoryAllocation;
    void *got = gs_mem_alloc(bytes);
    if (!got) return cudaErrorMemoryAllocation;
    rt_device_memory_used = true;
    d->used += bytes;
    rt_range_add(got, bytes, kind, rt_self.device);
    *p = got;
    return cudaSuccess;
}

cudaError_t rt_device_free(void *p) {
    rt_range *r = rt_range_find(p);
    if (r && r->kind == RT_FREED && r->start == (uintptr_t)p) {
        gs_find_host("device memory", "%p is freed a second time", p);
        return cudaErrorInvalidValue;
    }
    if (!r || r->start != (uintptr_t)p || r->symbol || (r->kind != RT_DEVICE && r->kind != RT_MANAGED)) {
        return cudaErrorInvalidValue;
    }
    rt_devices[r->device].used -= r->size;
    rt_range_remove(p, true);
    return gs_mem_free(p) ? cudaSuccess : cudaErrorInvalidValue;
}

static cudaError_t malloc_device(void **p, size_t bytes, rt_mem kind) {
    cudaError_t e = rt_capture_unsafe();
    return e == cudaSuccess ? rt_device_alloc(p, bytes, kind) : e;
}

cudaError_t cudaMalloc(void **p, size_t bytes) { RT_CALL(malloc_device(p, bytes, RT_DEVICE)); }

static cudaError_t malloc_managed(void **p, size_t bytes, unsigned flags) {
    if (flags != cudaMemAttachGlobal && flags != cudaMemAttachHost) return cudaErrorInvalidValue;
    if (!bytes) return cudaErrorInvalidValue;
    return malloc_device(p, bytes, RT_MANAGED);
}

cudaError_t cudaMallocManaged(void **p, size_t bytes, unsigned flags) { RT_CALL(malloc_managed(p, bytes, flags)); }

static size_t pitch_of(size_t width) { return (width + 511) & ~(size_t)511; }

static cudaError_t malloc_pitch(void **p, size_t *pitch, size_t width, size_t height) {
    if (!pitch) return cudaErrorInvalidValue;
    *pitch = pitch_of(width);
    return malloc_device(p, *pitch * height, RT_DEVICE);
}

cudaError_t cudaMallocPitch(void **p, size_t *pitch, size_t width, size_t height) {
    RT_CALL(malloc_pitch(p, pitch, width, height));
}

static cudaError_t malloc_3d(struct cudaPitchedPtr *out, struct cudaExtent extent) {
    if (!out) return cudaErrorInvalidValue;
    *out = (struct cudaPitchedPtr){NULL, pitch_of(extent.width), extent.width, extent.height};
    return malloc_device(&out->ptr, out->pitch * extent.height * extent.depth, RT_DEVICE);
}

cudaError_t cudaMalloc3D(struct cudaPitchedPtr *out, struct cudaExtent extent) { RT_CALL(malloc_3d(out, extent)); }

/* Freeing waits for the device, as the real one does. Memory of a pool may be freed with cudaFree too. */
static cudaError_t free_device(void *p) {
    if (!p) return cudaSuccess;
    cudaError_t e = rt_capture_unsafe();
    if (e == cudaSuccess) e = rt_run_device(rt_self.device);
    return e == cudaSuccess ? rt_device_free(p) : e;
}

cudaError_t cudaFree(void *p) { RT_CALL(free_device(p)); }

/* ---- pinned host memory */

enum { HOST_ALLOC_FLAGS = cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined };

static cudaError_t host_alloc(void **p, size_t bytes, unsigned flags) {
    if (!p || flags & ~(unsigned)HOST_ALLOC_FLAGS) return cudaErrorInvalidValue;
    cudaError_t e = rt_capture_unsafe();
    if (e != cudaSuccess) return e;
    *p = NULL;
    if (!bytes) return cudaSuccess;
    const size_t align = 4096;
    if (bytes > SIZE_MAX - align) return cudaErrorMemoryAllocation;
    void *got = aligned_alloc(align, (bytes + align - 1) & ~(align - 1));
    if (!got) return cudaErrorMemoryAllocation;
    memset(got, 0xA5, bytes);
    gs_mem_register(got, bytes);
    rt_range_add(got, bytes, RT_PINNED, rt_self.device)->flags = flags;
    *p = got;
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags) { RT_CALL(host_alloc(p, bytes, flags)); }
cudaError_t cudaMallocHost(void **p, size_t bytes) { RT_CALL(host_alloc(p, bytes, 0)); }

static cudaError_t free_host(void *p) {
    if (!p) return cudaSuccess;
    cudaError_t e = rt_capture_unsafe();
    if (e == cudaSuccess) e = rt_run_device(rt_self.device);
    if (e != cudaSuccess) return e;
    const rt_range *r = rt_range_find(p);
    if (!r || r->kind != RT_PINNED || r->registered || r->start != (uintptr_t)p) return cudaErrorInvalidValue;
    gs_mem_unregister(p);
    rt_range_remove(p, false);
    free(p);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p) { RT_CALL(free_host(p)); }

static cudaError_t host_register(void *p, size_t bytes, unsigned flags) {
    const unsigned known =
        cudaHostRegisterPortable | cudaHostRegisterMapped | cudaHostRegisterIoMemory | cudaHostRegisterReadOnly;
    if (!p || !bytes || flags & ~known) return cudaErrorInvalidValue;
    if (flags & cudaHostRegisterIoMemory) return cudaErrorNotSupported;
    rt_mem kind = rt_mem_kind(p);
    if (kind == RT_PINNED) return cudaErrorHostMemoryAlreadyRegistered;
    if (kind == RT_DEVICE || kind == RT_MANAGED) return cudaErrorInvalidValue;
    if (!gs_mem_register(p, bytes)) return cudaErrorInvalidValue;
    rt_range *r = rt_range_add(p, bytes, RT_PINNED, rt_self.device);
    r->registered = true;
    r->flags = flags;
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags) { RT_CALL(host_register(p, bytes, flags)); }

static cudaError_t host_unregister(void *p) {
    const rt_range *r = rt_range_find(p);
    if (!r || r->kind != RT_PINNED || !r->registered || r->start != (uintptr_t)p) {
        return cudaErrorHostMemoryNotRegistered;
    }
    cudaError_t e = rt_run_device(rt_self.device);
    gs_mem_unregister(p);
    rt_range_remove(p, false);
    return e;
}

cudaError_t cudaHostUnregister(void *p) { RT_CALL(host_unregister(p)); }

static cudaError_t host_device_pointer(void **device, void *host, unsigned flags) {
    if (!device || flags) return cudaErrorInvalidValue;
    if (rt_mem_kind(host) != RT_PINNED) return cudaErrorInvalidValue;
    *device = host; /* one address space */
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned flags) {
    RT_CALL(host_device_pointer(device, host, flags));
}

static cudaError_t host_flags(unsigned *flags, const void *host) {
    const rt_range *r = rt_range_find(host);
    if (!flags || !r || r->kind != RT_PINNED) return cudaErrorInvalidValue;
    *flags = r->flags | cudaHostAllocMapped;
    return cudaSuccess;
}

cudaError_t cudaHostGetFlags(unsigned *flags, void *host) { RT_CALL(host_flags(flags, host)); }

/* ---- questions */

static cudaError_t mem_info(size_t *available, size_t *total) {
    const rt_device *d = rt_current();
    if (available) *available = d->total - d->used;
    if (total) *total = d->total;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) { RT_CALL(mem_info(available, total)); }

static cudaError_t pointer_attributes(struct cudaPointerAttributes *a, const void *p) {
    if (!a) return cudaErrorInvalidValue;
    memset(a, 0, sizeof *a);
    const rt_range *r = rt_range_find(p);
    a->device = r ? r->device : rt_self.device;
    void *address = (void *)(uintptr_t)p;
    switch (r ? r->kind : RT_PAGEABLE) {
    case RT_PAGEABLE:
    case RT_FREED: a->type = cudaMemoryTypeUnregistered; break;
    case RT_PINNED:
        a->type = cudaMemoryTypeHost;
        a->hostPointer = a->devicePointer = address;
        break;
    case RT_DEVICE:
        a->type = cudaMemoryTypeDevice;
        a->devicePointer = address;
        break;
    case RT_MANAGED:
        a->type = cudaMemoryTypeManaged;
        a->hostPointer = a->devicePointer = address;
        break;
    }
    if (a->type == cudaMemoryTypeUnregistered) {
        a->device = -2; /* what the real one says: cudaInvalidDeviceId */
        a->hostPointer = address;
    }
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    RT_CALL(pointer_attributes(a, p));
}
