/* SPDX-License-Identifier: Apache-2.0 */
/* Stream-ordered memory: cudaMallocAsync, cudaFreeAsync, and pools. A pool here keeps accounts and no memory: what the stream
 * frees is gone when the stream gets there, so that use after it is found. */
#include <string.h>

#include "rt.h"
#include "rt_capture.h"
#include "rt_graph.h"

enum { POOL_MAGIC = 0x504f4f31 };

struct CUmemPoolHandle_st {
    uint32_t magic; /* 0 once destroyed */
    int device;
    bool is_default;
    uint64_t threshold;
    int reuse[3]; /* follow event dependencies, opportunistic, internal dependencies */
    uint64_t used, used_high;
};
typedef struct CUmemPoolHandle_st rt_pool;

static rt_map pool_of; /* allocation -> its pool, while it lives */

static rt_pool *new_pool(int device) {
    rt_pool *p = rt_calloc(1, sizeof *p);
    p->magic = POOL_MAGIC;
    p->device = device;
    p->reuse[0] = p->reuse[1] = p->reuse[2] = 1;
    return p;
}

static bool is_pool(const rt_pool *p) { return p && p->magic == POOL_MAGIC; }

static rt_pool *default_pool(int device) {
    static rt_pool *pools[RT_MAX_DEVICES];
    if (!pools[device]) {
        pools[device] = new_pool(device);
        pools[device]->is_default = true;
    }
    return pools[device];
}

static rt_pool *current_pool(int device) {
    rt_device *d = &rt_devices[device];
    if (!is_pool(d->pool)) d->pool = default_pool(device);
    return d->pool;
}

/* ---- allocation */

static cudaError_t allocate(void **out, size_t bytes, rt_pool *pool, cudaStream_t stream) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(stream, &s);
    if (e != cudaSuccess) return e;
    if (!out || !bytes) return cudaErrorInvalidValue;
    if (s->capture) return rt_capture_waits(s); /* memory nodes are not simulated */
    if (!pool) pool = current_pool(s->device);
    if (!is_pool(pool)) return cudaErrorInvalidValue;
    e = rt_device_alloc(out, bytes, RT_DEVICE);
    if (e != cudaSuccess) return e;
    rt_map_put(&pool_of, *out, pool);
    pool->used += bytes;
    if (pool->used > pool->used_high) pool->used_high = pool->used;
    return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t s) { RT_CALL(allocate(p, bytes, NULL, s)); }

static cudaError_t allocate_from(void **p, size_t bytes, cudaMemPool_t pool, cudaStream_t s) {
    return is_pool(pool) ? allocate(p, bytes, pool, s) : cudaErrorInvalidValue;
}

cudaError_t cudaMallocFromPoolAsync(void **p, size_t bytes, cudaMemPool_t pool, cudaStream_t s) {
    RT_CALL(allocate_from(p, bytes, pool, s));
}

typedef struct free_work {
    rt_work base;
    void *p;
} free_work;

/* A second free is a finding; the stream goes on. */
static cudaError_t run_free(rt_work *w, rt_stream *s) {
    (void)s;
    void *p = ((free_work *)w)->p;
    const rt_range *r = rt_range_find(p);
    rt_pool *pool = rt_map_get(&pool_of, p);
    if (r && r->kind == RT_DEVICE && is_pool(pool)) {
        pool->used -= r->size;
        rt_map_put(&pool_of, p, NULL);
    }
    (void)rt_device_free(p);
    return cudaSuccess;
}

static cudaError_t free_async(void *p, cudaStream_t stream) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(stream, &s);
    if (e != cudaSuccess) return e;
    if (s->capture) return rt_capture_waits(s);
    if (!p) return cudaSuccess;
    const rt_range *r = rt_range_find(p);
    if (r && r->kind == RT_FREED && r->start == (uintptr_t)p) return rt_device_free(p); /* the finding */
    if (!r || r->start != (uintptr_t)p || r->kind != RT_DEVICE || r->symbol) return cudaErrorInvalidValue;
    free_work *w = rt_work_new(RT_WORK_FREE, sizeof *w, run_free);
    w->p = p;
    return rt_submit(s, &w->base);
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { RT_CALL(free_async(p, s)); }

/* ---- pools */

static cudaError_t create(cudaMemPool_t *out, const struct cudaMemPoolProps *props) {
    if (!out || !props) return cudaErrorInvalidValue;
    if (props->allocType != cudaMemAllocationTypePinned || props->location.type != cudaMemLocationTypeDevice) {
        return cudaErrorNotSupported;
    }
    if (props->handleTypes != cudaMemHandleTypeNone) return cudaErrorNotSupported; /* sharing between processes */
    int d = props->location.id;
    if (d < 0 || d >= rt_device_count()) return cudaErrorInvalidDevice;
    *out = new_pool(d);
    return cudaSuccess;
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t *out, const struct cudaMemPoolProps *props) { RT_CALL(create(out, props)); }

static cudaError_t destroy(cudaMemPool_t pool) {
    if (!is_pool(pool) || pool->is_default) return cudaErrorInvalidValue;
    pool->magic = 0;
    rt_bury(pool);
    return cudaSuccess;
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) { RT_CALL(destroy(pool)); }

static cudaError_t pool_of_device(cudaMemPool_t *out, int d, bool current) {
    if (!out) return cudaErrorInvalidValue;
    if (d < 0 || d >= rt_device_count()) return cudaErrorInvalidDevice;
    *out = current ? current_pool(d) : default_pool(d);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *out, int d) { RT_CALL(pool_of_device(out, d, false)); }
cudaError_t cudaDeviceGetMemPool(cudaMemPool_t *out, int d) { RT_CALL(pool_of_device(out, d, true)); }

static cudaError_t set_pool(int d, cudaMemPool_t pool) {
    if (d < 0 || d >= rt_device_count()) return cudaErrorInvalidDevice;
    if (!is_pool(pool) || pool->device != d) return cudaErrorInvalidValue;
    rt_devices[d].pool = pool;
    return cudaSuccess;
}

cudaError_t cudaDeviceSetMemPool(int d, cudaMemPool_t pool) { RT_CALL(set_pool(d, pool)); }

static cudaError_t trim(cudaMemPool_t pool) { return is_pool(pool) ? cudaSuccess : cudaErrorInvalidValue; }

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep) {
    (void)keep;
    RT_CALL(trim(pool));
}

static cudaError_t set_attribute(cudaMemPool_t pool, enum cudaMemPoolAttr a, const void *value) {
    if (!is_pool(pool) || !value) return cudaErrorInvalidValue;
    switch ((int)a) {
    case cudaMemPoolReuseFollowEventDependencies:
    case cudaMemPoolReuseAllowOpportunistic:
    case cudaMemPoolReuseAllowInternalDependencies:
        memcpy(&pool->reuse[a - cudaMemPoolReuseFollowEventDependencies], value, sizeof(int));
        return cudaSuccess;
    case cudaMemPoolAttrReleaseThreshold: memcpy(&pool->threshold, value, sizeof pool->threshold); return cudaSuccess;
    case cudaMemPoolAttrReservedMemHigh:
    case cudaMemPoolAttrUsedMemHigh: {
        uint64_t v;
        memcpy(&v, value, sizeof v);
        if (v) return cudaErrorInvalidValue; /* it can only be put back */
        pool->used_high = pool->used;
        return cudaSuccess;
    }
    default: return cudaErrorInvalidValue;
    }
}

static cudaError_t get_attribute(const rt_pool *pool, enum cudaMemPoolAttr a, void *value) {
    if (!is_pool(pool) || !value) return cudaErrorInvalidValue;
    switch ((int)a) {
    case cudaMemPoolReuseFollowEventDependencies:
    case cudaMemPoolReuseAllowOpportunistic:
    case cudaMemPoolReuseAllowInternalDependencies:
        memcpy(value, &pool->reuse[a - cudaMemPoolReuseFollowEventDependencies], sizeof(int));
        return cudaSuccess;
    case cudaMemPoolAttrReleaseThreshold: memcpy(value, &pool->threshold, sizeof pool->threshold); return cudaSuccess;
    case cudaMemPoolAttrReservedMemCurrent:
    case cudaMemPoolAttrUsedMemCurrent: memcpy(value, &pool->used, sizeof pool->used); return cudaSuccess;
    case cudaMemPoolAttrReservedMemHigh:
    case cudaMemPoolAttrUsedMemHigh: memcpy(value, &pool->used_high, sizeof pool->used_high); return cudaSuccess;
    default: return cudaErrorInvalidValue;
    }
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr a, void *value) {
    RT_CALL(set_attribute(pool, a, value));
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr a, void *value) {
    RT_CALL(get_attribute(pool, a, value));
}

/* Every device reaches every memory here. */
static cudaError_t set_access(const rt_pool *pool, const struct cudaMemAccessDesc *list, size_t n) {
    if (!is_pool(pool) || (n && !list)) return cudaErrorInvalidValue;
    for (size_t k = 0; k < n; ++k) {
        if (list[k].location.type != cudaMemLocationTypeDevice) return cudaErrorInvalidValue;
        if (list[k].location.id < 0 || list[k].location.id >= rt_device_count()) return cudaErrorInvalidDevice;
    }
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAccess(cudaMemPool_t pool, const struct cudaMemAccessDesc *list, size_t n) {
    RT_CALL(set_access(pool, list, n));
}

/* ---- managed memory: where it lies is no matter here */

static cudaError_t check_managed(const char *call, const void *p, size_t n) {
    rt_mem kind = rt_mem_kind(p);
    if (!n || (kind != RT_MANAGED && kind != RT_PAGEABLE)) return cudaErrorInvalidValue;
    return kind == RT_MANAGED ? rt_check_device(call, p, n) : cudaErrorInvalidValue;
}

static cudaError_t prefetch(const void *p, size_t n, unsigned flags, cudaStream_t stream) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(stream, &s);
    if (e != cudaSuccess) return e;
    return flags ? cudaErrorInvalidValue : check_managed("cudaMemPrefetchAsync", p, n);
}

cudaError_t cudaMemPrefetchAsync(const void *p, size_t n, struct cudaMemLocation where, unsigned flags,
                                 cudaStream_t s) {
    (void)where;
    RT_CALL(prefetch(p, n, flags, s));
}

cudaError_t cudaMemAdvise(const void *p, size_t n, enum cudaMemoryAdvise advice, struct cudaMemLocation where) {
    (void)advice, (void)where;
    RT_CALL(check_managed("cudaMemAdvise", p, n));
}

static cudaError_t attach(cudaStream_t stream, const void *p, unsigned flags) {
    rt_stream *s;
    cudaError_t e = rt_stream_of(stream, &s);
    if (e != cudaSuccess) return e;
    const unsigned known = cudaMemAttachGlobal | cudaMemAttachHost | cudaMemAttachSingle;
    return !flags || flags & ~known || rt_mem_kind(p) != RT_MANAGED ? cudaErrorInvalidValue : cudaSuccess;
}

cudaError_t cudaStreamAttachMemAsync(cudaStream_t s, void *p, size_t n, unsigned flags) {
    (void)n;
    RT_CALL(attach(s, p, flags));
}
