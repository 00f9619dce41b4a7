/* SPDX-License-Identifier: Apache-2.0 */
/* A hash table from pointers to pointers, and memory that is there or the process ends. */
#include <stdlib.h>
#include <string.h>

#include "rt.h"

void *rt_calloc(size_t n, size_t bytes) {
    void *p = calloc(n ? n : 1, bytes ? bytes : 1);
    if (p) return p;
    fputs("gpusim: out of memory\n", stderr);
    abort();
}

void rt_grow(void *p, size_t n, size_t *cap, size_t bytes) {
    if (n < *cap) return;
    size_t wanted = *cap ? *cap * 2 : 8;
    void *old;
    memcpy(&old, p, sizeof old);
    void *grown = realloc(old, wanted * bytes);
    if (!grown) {
        fputs("gpusim: out of memory\n", stderr);
        abort();
    }
    memcpy(p, &grown, sizeof grown);
    *cap = wanted;
}

static size_t slot_of(const rt_map *m, const void *key) {
    uint64_t h = (uint64_t)(uintptr_t)key * 0x9e3779b97f4a7c15ull;
    size_t at = (size_t)(h >> 32) & (m->cap - 1);
    while (m->key[at] && m->key[at] != key) at = (at + 1) & (m->cap - 1);
    return at;
}

void *rt_map_get(const rt_map *m, const void *key) {
    if (!m->cap || !key) return NULL;
    size_t at = slot_of(m, key);
    return m->key[at] ? m->value[at] : NULL;
}

void rt_map_put(rt_map *m, const void *key, void *value) {
    if (2 * (m->n + 1) > m->cap) {
        rt_map old = *m;
        m->cap = old.cap ? old.cap * 2 : 64;
        m->key = rt_calloc(m->cap, sizeof *m->key);
        m->value = rt_calloc(m->cap, sizeof *m->value);
        for (size_t i = 0; i < old.cap; ++i) {
            if (!old.key[i]) continue;
            size_t at = slot_of(m, old.key[i]);
            m->key[at] = old.key[i];
            m->value[at] = old.value[i];
        }
        free(old.key);
        free(old.value);
    }
    size_t at = slot_of(m, key);
    if (!m->key[at]) m->n++;
    m->key[at] = key;
    m->value[at] = value;
}
