/* SPDX-License-Identifier: Apache-2.0 */
/* One launch: sizes checked, arguments laid out, workers started (exec.c has their work), findings and counts merged. */
#include <stdlib.h>

#include "core.h"

static gs_result bad(const char *format, ...) __attribute__((format(printf, 1, 2)));
static gs_result bad(const char *format, ...) {
    char text[400];
    va_list a;
    va_start(a, format);
    vsnprintf(text, sizeof text, format, a);
    va_end(a);
    gs_set_error("%s", text);
    return GS_BAD_LAUNCH;
}
static gs_result check_sizes(const gs_kernel *k, const gs_launch_opt *o, gs_dim3 *cluster) {
    uint64_t threads = (uint64_t)o->block.x * o->block.y * o->block.z;
    if (!o->block.x || !o->block.y || !o->block.z || o->block.x > 1024 || o->block.y > 1024 || o->block.z > 64 ||
        threads > 1024)
        return bad("%s: a block of %u x %u x %u threads", k->name, o->block.x, o->block.y, o->block.z);
    if (threads > k->info.max_threads)
        return bad("%s: a block of %llu threads, the kernel is compiled for at most %u", k->name,
                   (unsigned long long)threads, k->info.max_threads);
    const uint32_t *req = k->info.required;
    if (req[0] && (req[0] != o->block.x || req[1] != o->block.y || req[2] != o->block.z))
        return bad("%s: the kernel requires blocks of %u x %u x %u", k->name, req[0], req[1], req[2]);
    if (!o->grid.x || !o->grid.y || !o->grid.z || o->grid.x > 0x7fffffffu || o->grid.y > 65535 || o->grid.z > 65535)
        return bad("%s: a grid of %u x %u x %u blocks", k->name, o->grid.x, o->grid.y, o->grid.z);
    uint64_t shared = k->shared_end - GS_SHARED_BASE + o->dynamic_shared_bytes;
    if (shared > GS_SHARED_BLOCK_MAX)
        return bad("%s: %llu bytes of shared memory, a block has at most %d", k->name, (unsigned long long)shared,
                   GS_SHARED_BLOCK_MAX);
    *cluster = o->cluster.x         ? o->cluster
               : k->info.cluster[0] ? (gs_dim3){k->info.cluster[0], k->info.cluster[1], k->info.cluster[2]}
                                    : (gs_dim3){1, 1, 1};
    if (!cluster->y || !cluster->z || (uint64_t)cluster->x * cluster->y * cluster->z > 16)
        return bad("%s: a cluster of %u x %u x %u blocks", k->name, cluster->x, cluster->y, cluster->z);
    if (o->grid.x % cluster->x || o->grid.y % cluster->y || o->grid.z % cluster->z)
        return bad("%s: the grid is no multiple of the cluster", k->name);
    return GS_OK;
}
gs_result gs_launch(gs_kernel *k, const gs_launch_opt *opt, gs_counts *counts) {
    gs_settings *set = gs_settings_get();
    if (k->error) {
        gs_find_host("not supported", "%s", k->error);
        gs_set_error("%s", k->error);
        return GS_BAD_LAUNCH;
    }
    gs_launch_state l = {
        .k = k, .opt = opt, .check = set->check, .reverse = set->reverse, .max_ins = set->max_warp_ins};
    gs_result rc = check_sizes(k, opt, &l.cluster);
    if (rc) return rc;
    pthread_mutex_init(&l.lock, NULL);
    l.n_cluster =
        (uint64_t)opt->grid.x * opt->grid.y * opt->grid.z / ((uint64_t)l.cluster.x * l.cluster.y * l.cluster.z);
    /* Parameters keep their alignment in memory: a tensor map wants 64. */
    size_t param_room = (k->param_bytes / 256 + 1) * 256;
    l.param = aligned_alloc(256, param_room);
    l.workspace = calloc(8, sizeof *l.workspace);
    if (!l.param || !l.workspace) abort();
    memset(l.param, 0, param_room);
    if (opt->arg_buffer)
        memcpy(l.param, opt->arg_buffer, k->param_bytes);
    else
        for (int q = 0; q < k->n_param; ++q) memcpy(l.param + k->param[q].addr, opt->args[q], k->param[q].bytes);
    gs_mem_register(l.workspace, 64);
    if (k->param_bytes) gs_mem_register(l.param, k->param_bytes);
    bool together = k->ordered || k->grid_sync || opt->cooperative;
    int n = together ? 1 : set->threads < 1 ? 1 : set->threads;
    if ((uint64_t)n > l.n_cluster) n = (int)l.n_cluster;
    gs_worker *wk = calloc((size_t)n, sizeof *wk);
    pthread_t *thread = calloc((size_t)n, sizeof *thread);
    if (!wk || !thread) abort();
    for (int t = 0; t < n; ++t) {
        wk[t].launch = &l;
        wk[t].together = together;
        wk[t].pc = calloc((size_t)k->n_code, sizeof *wk[t].pc);
        if (!wk[t].pc) abort();
        if (!together) {
            wk[t].gang = gs_grow(NULL, 0, &wk[t].cap_gang, sizeof *wk[t].gang);
            wk[t].gang[0] = malloc(sizeof **wk[t].gang);
            if (!wk[t].gang[0]) abort();
            gs_make_cluster(&wk[t], wk[t].gang[0]);
            wk[t].n_gang = 1;
        }
    }
    for (int t = 1; t < n; ++t)
        if (pthread_create(&thread[t], NULL, gs_work, &wk[t])) abort();
    gs_work(&wk[0]);
    for (int t = 1; t < n; ++t) pthread_join(thread[t], NULL);
    gs_mem_unregister(l.workspace);
    if (k->param_bytes) gs_mem_unregister(l.param);
    rc = gs_report_launch(&l, wk, n);
    if (counts) *counts = l.counts;
    for (int t = 0; t < n; ++t) {
        for (int r = 0; r < wk[t].n_gang; ++r) {
            gs_free_cluster(wk[t].gang[r]);
            free(wk[t].gang[r]);
        }
        free(wk[t].gang);
        free(wk[t].pc);
        free(wk[t].finding);
    }
    free(wk);
    free(thread);
    free(l.pc);
    free(l.finding);
    free(l.param);
    free(l.workspace);
    pthread_mutex_destroy(&l.lock);
    return rc;
}
