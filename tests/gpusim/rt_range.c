/* SPDX-License-Identifier: Apache-2.0 */
/* What addresses belong to: a sorted table of the ranges that the runtime handed out or was told of. Everything else is
 * ordinary host memory. Freed ranges leave a trace until their addresses are used again, so that late use has a name. */
#include <stdlib.h>
#include <string.h>

#include "rt.h"

static rt_range *table;
static size_t n_range, cap_range;

/* The first range that starts after p. */
static size_t after(uintptr_t p) {
    size_t low = 0, high = n_range;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (table[mid].start <= p) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

rt_range *rt_range_find(const void *p) {
    size_t k = after((uintptr_t)p);
    if (!k) return NULL;
    rt_range *r = &table[k - 1];
    /* Freed memory is kept for a while. Then it is anybody's, and the trace says nothing. */
    if (r->kind == RT_FREED && !gs_mem_is_freed((void *)r->start)) return NULL;
    /* One past the end still names the range, so that an empty copy there is in order. */
    return (uintptr_t)p - r->start <= r->size ? r : NULL;
}

static void erase(size_t k) {
    memmove(&table[k], &table[k + 1], (n_range - k - 1) * sizeof *table);
    n_range--;
}

/* A pointer into the table: valid until the next change. */
rt_range *rt_range_add(void *p, size_t size, rt_mem kind, int device) {
    uintptr_t start = (uintptr_t)p;
    size_t k = after(start);
    if (k && table[k - 1].start + table[k - 1].size > start) erase(--k); /* the trace of a freed one */
    while (k < n_range && table[k].start < start + size) erase(k);
    rt_grow(&table, n_range, &cap_range, sizeof *table);
    memmove(&table[k + 1], &table[k], (n_range - k) * sizeof *table);
    table[k] = (rt_range){.start = start, .size = size, .kind = kind, .device = device};
    n_range++;
    return &table[k];
}

void rt_range_remove(const void *p, bool leave_trace) {
    size_t k = after((uintptr_t)p);
    if (!k || table[k - 1].start != (uintptr_t)p) return;
    if (leave_trace) {
        table[k - 1].kind = RT_FREED;
    } else {
        erase(k - 1);
    }
}

rt_mem rt_mem_kind(const void *p) {
    const rt_range *r = rt_range_find(p);
    return r ? r->kind : RT_PAGEABLE;
}

cudaError_t rt_check_device(const char *call, const void *p, size_t n) {
    const rt_range *r = rt_range_find(p);
    if (!r) return cudaErrorInvalidValue;
    if (r->kind == RT_FREED) {
        gs_find_host("device memory", "%s: %p is in memory that was freed", call, p);
        return cudaErrorInvalidValue;
    }
    size_t left = r->start + r->size - (uintptr_t)p;
    if (n <= left) return cudaSuccess;
    gs_find_host("device memory", "%s: %zu bytes at %p reach %zu bytes past the end of their allocation of %zu bytes",
                 call, n, p, n - left, r->size);
    return cudaErrorInvalidValue;
}

void rt_memory_reset(int device) {
    for (size_t k = 0; k < n_range;) {
        rt_range *r = &table[k];
        if (r->device != device || r->symbol || r->kind == RT_FREED) {
            k++;
            continue;
        }
        void *p = (void *)r->start;
        if (r->kind == RT_PINNED) {
            gs_mem_unregister(p);
            if (!r->registered) free(p);
            erase(k);
        } else {
            gs_mem_free(p);
            r->kind = RT_FREED;
            k++;
        }
    }
    rt_devices[device].used = 0;
}
