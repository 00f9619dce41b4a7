/* SPDX-License-Identifier: Apache-2.0 */
/* More inline PTX, as in ptx.cuh: copies that do not wait (sm_80), and what sm_90a has for them: mbarriers, bulk and tensor copies, warp groups and
 * their matrix instruction. */
#ifndef RQ_PTX_ASYNC_CUH
#define RQ_PTX_ASYNC_CUH
#include "ptx.cuh"

/* ---- copies that do not wait: up to 16 bytes from global to shared memory, and zeros up to the 16th */
__device__ __forceinline__ void ptx_copy_async16(uint32_t to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void ptx_commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Until no more than N groups of this thread are under way. */
template <int N> __device__ __forceinline__ void ptx_wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
/* Four 8x8 matrices of 16 bits, not transposed: lane 8 m + i says where the 16 bytes of row i of matrix m are. Of int8: register m of lane
 * 4 g + q is bytes 4 q .. 4 q + 3 of row g. */
__device__ __forceinline__ uint4 ptx_load_matrices(uint32_t at) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at));
    return v;
}

/* To the L2: a multiple of 16 bytes from a multiple of 16 on; before sm_90 by lines. */
__device__ __forceinline__ void ptx_prefetch_piece(const void *p, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes));
#else
    for (uint32_t i = 0; i < bytes; i += 128) ptx_prefetch(static_cast<const uint8_t *>(p) + i);
#endif
}

#if __CUDA_ARCH__ >= 900
/* ---- mbarriers: a phase ends when as many as it was initialised with have arrived, and all bytes that were expected are there */
__device__ __forceinline__ void ptx_barrier_start(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/* Initialised barriers, as the copies see them. */
__device__ __forceinline__ void ptx_fence_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void ptx_barrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void ptx_barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/* Until the phase of this parity has ended. */
__device__ __forceinline__ void ptx_barrier_wait(uint32_t barrier, int parity) {
    uint32_t done;
    do {
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!done);
}

/* ---- copies by the TMA: their bytes count at the barrier. */
__device__ __forceinline__ void ptx_copy_bulk(uint32_t to, const void *from, int bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}
/* The box of a 2-D tensor whose corner is at column x, row y; the map is in parameter memory. */
__device__ __forceinline__ void ptx_copy_box(uint32_t to, const void *map, int x, int y, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
                 "%3}], [%4];" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(barrier)
                 : "memory");
}
#endif

/* sm_90a, and not what is only like it */
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* ---- warp groups: four warps that begin at a multiple of four */
template <int REGISTERS> __device__ __forceinline__ void ptx_more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void ptx_fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
/* Registers that were written before are what the next wgmma reads. */
__device__ __forceinline__ void ptx_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void ptx_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void ptx_wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/* Rows of 128 bytes under the 128-byte swizzle, 1024 bytes from 8 rows to the next 8. */
__device__ __forceinline__ uint64_t ptx_wgmma_rows128(uint32_t at) {
    return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
#define PTX_4(i)  "+r"(d[i][0]), "+r"(d[i][1]), "+r"(d[i][2]), "+r"(d[i][3])
#define PTX_4F(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define PTX_D16   "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define PTX_D32   PTX_D16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define PTX_D64                                                                                                        \
    PTX_D32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                                        \
            "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
/* d (64x32, s32) += a (64x32, u8, registers as of four mma.m16n8k32) b (32x32, s8, by rows) */
__device__ __forceinline__ void ptx_wgmma_u8s8(int (&d)[4][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.eq.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k32.s32.u8.s8 {" PTX_D16 "}, {%16, %17, %18, %19}, %20, p;\n"
                 "}"
                 : PTX_4(0), PTX_4(1), PTX_4(2), PTX_4(3)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
/* d (64x64, s32) += a (64x32, u8, registers as of four mma.m16n8k32) b (64x32, s8, by rows) */
__device__ __forceinline__ void ptx_wgmma_u8s8(int (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.eq.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8 {" PTX_D32 "}, {%32, %33, %34, %35}, %36, p;\n"
                 "}"
                 : PTX_4(0), PTX_4(1), PTX_4(2), PTX_4(3), PTX_4(4), PTX_4(5), PTX_4(6), PTX_4(7)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
/* d (64x128, s32) += a (64x32, u8, registers as of four mma.m16n8k32) b (128x32, s8, by rows) */
__device__ __forceinline__ void ptx_wgmma_u8s8(int (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.eq.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k32.s32.u8.s8 {" PTX_D64 "}, {%64, %65, %66, %67}, %68, p;\n"
                 "}"
                 : PTX_4(0), PTX_4(1), PTX_4(2), PTX_4(3), PTX_4(4), PTX_4(5), PTX_4(6), PTX_4(7), PTX_4(8), PTX_4(9),
                   PTX_4(10), PTX_4(11), PTX_4(12), PTX_4(13), PTX_4(14), PTX_4(15)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
/* d (64x32, f32) = a b, or, where it is to be added, d + a b, of e4m3, as above */
__device__ __forceinline__ void ptx_wgmma_e4m3(float (&d)[4][4], const uint32_t (&a)[4], uint64_t b, bool add) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %21, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {" PTX_D16
                 "}, {%16, %17, %18, %19}, %20, p, 1, 1;\n"
                 "}"
                 : PTX_4F(0), PTX_4F(1), PTX_4F(2), PTX_4F(3)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}
/* d (64x64, f32) = a b, or, where it is to be added, d + a b, of e4m3, as above */
__device__ __forceinline__ void ptx_wgmma_e4m3(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, bool add) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {" PTX_D32
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1;\n"
                 "}"
                 : PTX_4F(0), PTX_4F(1), PTX_4F(2), PTX_4F(3), PTX_4F(4), PTX_4F(5), PTX_4F(6), PTX_4F(7)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}
/* d (64x128, f32) = a b, or, where it is to be added, d + a b, of e4m3, as above */
__device__ __forceinline__ void ptx_wgmma_e4m3(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b, bool add) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" PTX_D64
                 "}, {%64, %65, %66, %67}, %68, p, 1, 1;\n"
                 "}"
                 : PTX_4F(0), PTX_4F(1), PTX_4F(2), PTX_4F(3), PTX_4F(4), PTX_4F(5), PTX_4F(6), PTX_4F(7), PTX_4F(8),
                   PTX_4F(9), PTX_4F(10), PTX_4F(11), PTX_4F(12), PTX_4F(13), PTX_4F(14), PTX_4F(15)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}
#undef PTX_D64
#undef PTX_D32
#undef PTX_D16
#undef PTX_4F
#undef PTX_4
#endif
#endif
