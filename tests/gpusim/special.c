/* SPDX-License-Identifier: Apache-2.0 */
/* Special registers (PTX ISA, chapter 10): vectors of 32 lanes, filled when a block starts. The clocks are read as they are
 * executed (op_memory.c, mov). */
#include "core.h"

static const char *const g_name[] = {"%tid.x",
                                     "%tid.y",
                                     "%tid.z",
                                     "%ntid.x",
                                     "%ntid.y",
                                     "%ntid.z",
                                     "%ctaid.x",
                                     "%ctaid.y",
                                     "%ctaid.z",
                                     "%nctaid.x",
                                     "%nctaid.y",
                                     "%nctaid.z",
                                     "%laneid",
                                     "%warpid",
                                     "%nwarpid",
                                     "%lanemask_eq",
                                     "%lanemask_lt",
                                     "%lanemask_le",
                                     "%lanemask_gt",
                                     "%lanemask_ge",
                                     "%smid",
                                     "%nsmid",
                                     "%gridid",
                                     "%dynamic_smem_size",
                                     "%total_smem_size",
                                     "%aggr_smem_size",
                                     "%clusterid.x",
                                     "%clusterid.y",
                                     "%clusterid.z",
                                     "%nclusterid.x",
                                     "%nclusterid.y",
                                     "%nclusterid.z",
                                     "%cluster_ctaid.x",
                                     "%cluster_ctaid.y",
                                     "%cluster_ctaid.z",
                                     "%cluster_nctaid.x",
                                     "%cluster_nctaid.y",
                                     "%cluster_nctaid.z",
                                     "%cluster_ctarank",
                                     "%cluster_nctarank",
                                     "%is_explicit_cluster",
                                     "%envreg1",
                                     "%envreg2",
                                     "%envreg0",
                                     "%reserved_smem_offset_begin",
                                     "%reserved_smem_offset_end"};
enum { N = sizeof g_name / sizeof *g_name };
_Static_assert((int)N <= (int)GS_SPECIALS, "the area of special registers is too small");

int gs_special_find(const char *name) {
    if (*name != '%') return -1;
    for (int k = 0; k < N; ++k)
        if (!strcmp(g_name[k], name)) return k;
    return -1;
}
void gs_special_fill(gs_warp *w, const gs_launch_opt *opt, uint64_t workspace) {
    const gs_block *b = w->block;
    const gs_dim3 s = opt->block, g = opt->grid, u = b->worker->launch->cluster;
    uint32_t *to = (uint32_t *)w->base[BASE_SPECIAL];
    uint32_t sm = (uint32_t)(b->linear % 132), rank = b->rank, total = b->shared_end;
    for (uint32_t l = 0; l < 32; ++l) {
        uint32_t t = (uint32_t)w->id * 32 + l, eq = 1u << l, lt = eq - 1;
        const uint32_t v[N] = {t % s.x,
                               t / s.x % s.y,
                               t / s.x / s.y,
                               s.x,
                               s.y,
                               s.z,
                               b->at.x,
                               b->at.y,
                               b->at.z,
                               g.x,
                               g.y,
                               g.z,
                               l,
                               (uint32_t)w->id,
                               (uint32_t)b->n_warp,
                               eq,
                               lt,
                               lt | eq,
                               ~(lt | eq),
                               ~lt,
                               sm,
                               132,
                               1,
                               (uint32_t)opt->dynamic_shared_bytes,
                               total,
                               total,
                               b->at.x / u.x,
                               b->at.y / u.y,
                               b->at.z / u.z,
                               g.x / u.x,
                               g.y / u.y,
                               g.z / u.z,
                               b->at.x % u.x,
                               b->at.y % u.y,
                               b->at.z % u.z,
                               u.x,
                               u.y,
                               u.z,
                               rank,
                               u.x * u.y * u.z,
                               u.x * u.y * u.z > 1,
                               (uint32_t)(workspace >> 32),
                               (uint32_t)workspace,
                               0,
                               0,
                               GS_SHARED_BASE};
        for (int k = 0; k < N; ++k) to[k * 32 + (int)l] = v[k];
    }
}
