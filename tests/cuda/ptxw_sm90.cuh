/* SPDX-License-Identifier: Apache-2.0 */
/* More inline PTX, in the manner of ptxw.cuh: clusters, multicast, tensor stores, stmatrix, warp specialisation. */
#ifndef RQ_PTXW_SM90_CUH
#define RQ_PTXW_SM90_CUH
#include <cuda_bf16.h>

#include "ptxw.cuh"

/* ---- clusters */

/* the shared-memory address `address` of this block, in the block of that rank */
__device__ __forceinline__ uint32_t ptx_map_shared(uint32_t address, int rank) {
    uint32_t a;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(a) : "r"(address), "r"(rank));
    return a;
}
__device__ __forceinline__ int ptx_cluster_rank() {
    uint32_t r;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return (int)r;
}
__device__ __forceinline__ void ptx_cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/* arrives at an mbarrier of any block of the cluster */
__device__ __forceinline__ void ptx_mbarrier_arrive_remote(uint32_t barrier) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* ---- tensor copies */

/* as ptx_tensor_load_2d, to the same place in every block of the mask */
__device__ __forceinline__ void ptx_tensor_multicast_2d(uint32_t to, const void *map, int x, int y, uint32_t barrier,
                                                        uint16_t mask) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(mask)
                 : "memory");
}
__device__ __forceinline__ void ptx_tensor_store_2d(const void *map, int x, int y, uint32_t from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(x),
                 "r"(y), "r"(from)
                 : "memory");
}
__device__ __forceinline__ void ptx_bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/* until at most N groups of this thread still read shared memory */
template <int N> __device__ __forceinline__ void ptx_bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
/* what was stored to shared memory before may be read by the asynchronous proxy */
__device__ __forceinline__ void ptx_fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* ---- warp groups */

__device__ __forceinline__ void ptx_named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
template <int REGISTERS> __device__ __forceinline__ void ptx_registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void ptx_registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/* stmatrix: as ptx_ldmatrix4, the other way */
__device__ __forceinline__ void ptx_stmatrix4(uint32_t address, const uint32_t r[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}
/* d (64x128, f32; 64 registers a thread) = a (64x16, bf16) b (128x16, bf16, by rows), plus d where accumulate */
__device__ __forceinline__ void ptx_wgmma_bf16_n128(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
#define PTX_4(i)  "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define PTX_16(i) PTX_4(i), PTX_4((i) + 4), PTX_4((i) + 8), PTX_4((i) + 12)
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, p, 1, 1, 0, 0;\n"
                 "}"
                 : PTX_16(0), PTX_16(16), PTX_16(32), PTX_16(48)
                 : "l"(a), "l"(b), "r"((int)accumulate));
#undef PTX_16
#undef PTX_4
}
#endif
