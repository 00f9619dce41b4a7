/* SPDX-License-Identifier: Apache-2.0 */
/* Counts of memory traffic. Shared memory: 32 banks of 4 bytes; a request of 8 or 16 bytes a lane is served in 2 or 4 passes
 * of 16 or 8 lanes; lanes that want the same word share it. Global memory: 32-byte sectors. The counts are exact for this
 * model and the same in every run; they are no model of time. */
#include "core.h"

const char *const gs_class_name[GS_N_CLASS] = {[GS_C_INT] = "int",
                                               [GS_C_LOGIC] = "logic",
                                               [GS_C_FLOAT] = "float",
                                               [GS_C_DOUBLE] = "double",
                                               [GS_C_HALF] = "half",
                                               [GS_C_CVT] = "cvt",
                                               [GS_C_MOVE] = "move",
                                               [GS_C_SFU] = "sfu",
                                               [GS_C_COMPARE] = "compare",
                                               [GS_C_LD_GLOBAL] = "ld_global",
                                               [GS_C_ST_GLOBAL] = "st_global",
                                               [GS_C_LD_SHARED] = "ld_shared",
                                               [GS_C_ST_SHARED] = "st_shared",
                                               [GS_C_LOCAL] = "local",
                                               [GS_C_PARAM] = "param",
                                               [GS_C_ATOMIC] = "atomic",
                                               [GS_C_MATRIX] = "matrix",
                                               [GS_C_ASYNC] = "async",
                                               [GS_C_MMA] = "mma",
                                               [GS_C_WGMMA] = "wgmma",
                                               [GS_C_SHUFFLE] = "shuffle",
                                               [GS_C_VOTE] = "vote",
                                               [GS_C_BARRIER] = "barrier",
                                               [GS_C_FENCE] = "fence",
                                               [GS_C_BRANCH] = "branch",
                                               [GS_C_OTHER] = "other"};

gs_counts *gs_counts_of(gs_warp *w) { return &w->block->worker->counts; }
bool gs_checking(const gs_warp *w, unsigned what) { return (w->block->worker->launch->check & what) == what; }

/* Wavefronts of one request: for each pass, the bank with the most different words. */
static unsigned waves(const uint64_t *addr, uint32_t mask, uint32_t n, unsigned *ideal) {
    int per = n <= 4 ? 32 : n == 8 ? 16 : 8;
    unsigned total = 0;
    *ideal = 0;
    for (int s = 0; s < 32; s += per) {
        uint32_t m = per == 32 ? mask : mask & (((1u << per) - 1) << s);
        if (!m) continue;
        uint32_t word[32][32]; /* distinct words of each bank */
        uint8_t count[32] = {0};
        unsigned most = 0;
        for (uint32_t rest = m; rest; rest &= rest - 1) {
            int l = __builtin_ctz(rest);
            uint32_t first = (uint32_t)addr[l] >> 2, last = (uint32_t)(addr[l] + n - 1) >> 2;
            for (uint32_t wd = first; wd <= last; ++wd) {
                unsigned bank = wd & 31, q = 0;
                while (q < count[bank] && word[bank][q] != wd) ++q;
                if (q < count[bank] || q == 32) continue;
                word[bank][q] = wd;
                if (++count[bank] > most) most = count[bank];
            }
        }
        total += most;
        *ideal += 1;
    }
    return total;
}
static unsigned sectors(const uint64_t *addr, uint32_t mask, uint32_t n) {
    uint64_t seen[64];
    unsigned count = 0, hint = 0;
    for (; mask; mask &= mask - 1) {
        int l = __builtin_ctz(mask);
        for (uint64_t s = addr[l] >> 5; s <= (addr[l] + n - 1) >> 5; ++s) {
            if (count && seen[hint] == s) continue;
            unsigned q = count;
            while (q > 0 && seen[q - 1] != s) --q;
            if (q)
                hint = q - 1;
            else if (count < 64)
                seen[hint = count++] = s;
        }
    }
    return count;
}
void gs_count_access(gs_warp *w, const gs_ins *i, gs_space space, const uint64_t addr[32], uint32_t mask, uint32_t n,
                     bool write) {
    gs_worker *wk = w->block->worker;
    if (!(wk->launch->check & GS_CHECK_TRAFFIC) || !mask) return;
    gs_pc_counts *pc = &wk->pc[w->pc];
    gs_counts *c = &wk->counts;
    if (space == SP_GENERIC) {
        uint64_t window = addr[__builtin_ctz(mask)] & GS_WINDOW_MASK;
        space = window == GS_SHARED_WINDOW ? SP_SHARED : window == GS_LOCAL_WINDOW ? SP_LOCAL : SP_GLOBAL;
    }
    (void)i;
    if (space == SP_SHARED) {
        unsigned ideal, v = waves(addr, mask, n, &ideal);
        pc->waves += v;
        pc->ideal += ideal;
        *(write ? &c->shared_st_waves : &c->shared_ld_waves) += v;
        *(write ? &c->shared_st_ideal : &c->shared_ld_ideal) += ideal;
    } else if (space == SP_GLOBAL || space == SP_CONST) {
        unsigned v = sectors(addr, mask, n);
        uint64_t bytes = (uint64_t)n * (unsigned)__builtin_popcount(mask);
        pc->waves += v;
        pc->ideal += (bytes + 31) / 32;
        *(write ? &c->st_requests : &c->ld_requests) += 1;
        *(write ? &c->st_bytes : &c->ld_bytes) += bytes;
        *(write ? &c->st_sectors : &c->ld_sectors) += v;
    }
}
