/* SPDX-License-Identifier: Apache-2.0 */
/* The one place of these tests where inline PTX is written: one function an instruction (PTX ISA 8.0 and later), named after
 * it. Shared memory is addressed by its 32-bit address, as the instructions want it. */
#ifndef RQ_PTXW_CUH
#define RQ_PTXW_CUH
#include <cuda_fp16.h>
#include <stdint.h>

/* cvta: the shared-memory address of a generic pointer */
__device__ __forceinline__ uint32_t ptx_shared(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* ---- plain loads and logic */

/* ld.global.nc with no L1 line kept: weights, which are read once */
__device__ __forceinline__ uint4 ptx_load_once(const uint4 *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
/* lop3.b32: bit i of the result is bit (a_i b_i c_i) of the table */
template <int TABLE> __device__ __forceinline__ uint32_t ptx_lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
    return d;
}

/* ---- cp.async (sm_80): 16 bytes from global to shared memory, zeros where !ok */
__device__ __forceinline__ void ptx_cp_async16(uint32_t to, const void *from, bool ok) {
    int n = ok ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(n) : "memory");
}
/* closes a group of copies */
__device__ __forceinline__ void ptx_cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* waits until at most N groups of this thread are under way */
template <int N> __device__ __forceinline__ void ptx_cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* ---- tensor cores by fragments (sm_80) */

/* ldmatrix: four 8x8 tiles of 16-bit elements; lane l gives the address of row l % 8 of tile l / 8 */
__device__ __forceinline__ void ptx_ldmatrix4(uint32_t r[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
/* mma: c (16x8, s32) += a (16x32, s8) b (32x8, s8) */
__device__ __forceinline__ void ptx_mma_s8(int32_t c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* mma: c (16x8, f32) += a (16x16, f16) b (16x8, f16) */
__device__ __forceinline__ void ptx_mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* ---- mbarrier (sm_90 for transaction counts) */

/* one phase ends when `arrivals` arrived and all expected bytes are there */
__device__ __forceinline__ void ptx_mbarrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/* makes initialised barriers known to the asynchronous proxy and to other blocks of the cluster */
__device__ __forceinline__ void ptx_fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/* arrives once and expects `bytes` more of this phase */
__device__ __forceinline__ void ptx_mbarrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/* waits a while for the end of the phase of this parity; says whether it has ended */
__device__ __forceinline__ bool ptx_mbarrier_try_wait(uint32_t barrier, int parity) {
    uint32_t done;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return done != 0;
}
/* the wait of which the above is one turn */
__device__ __forceinline__ void ptx_mbarrier_wait(uint32_t barrier, int parity) {
    while (!ptx_mbarrier_try_wait(barrier, parity)) {}
}

/* ---- tensor copies (sm_90); the map is a CUtensorMap in parameter or constant memory */

/* one box of a 2-D tensor, column x and row y first, to shared memory; its bytes count at the barrier */
__device__ __forceinline__ void ptx_tensor_load_2d(uint32_t to, const void *map, int x, int y, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
                 "%3}], [%4];" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(barrier)
                 : "memory");
}

/* ---- wgmma (sm_90a): four warps, operands in shared memory */

/* registers and shared memory written before are what the next wgmma reads */
__device__ __forceinline__ void ptx_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void ptx_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void ptx_wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/* Descriptor of a tile with rows of 128 bytes under the 128-byte swizzle: address, 1024 bytes from 8 rows to the next 8. */
__device__ __forceinline__ uint64_t ptx_wgmma_tile128(uint32_t address) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
/* d (64x64, s32; 32 registers a thread) += a (64x32, s8) b (64x32, s8, by rows) */
__device__ __forceinline__ void ptx_wgmma_s8_n64(int32_t (&d)[32], uint64_t a, uint64_t b) {
#define PTX_4(i) "+r"(d[i]), "+r"(d[(i) + 1]), "+r"(d[(i) + 2]), "+r"(d[(i) + 3])
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.eq.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, p;\n"
                 "}"
                 : PTX_4(0), PTX_4(4), PTX_4(8), PTX_4(12), PTX_4(16), PTX_4(20), PTX_4(24), PTX_4(28)
                 : "l"(a), "l"(b));
#undef PTX_4
}
#endif
