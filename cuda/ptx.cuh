/* SPDX-License-Identifier: Apache-2.0 */
/* The inline PTX of the kernels: one function an instruction (PTX ISA 8.0), so that each is written, and read, once.
 * Those that only compute are not volatile: the compiler may move and share them. */
#ifndef RQ_PTX_CUH
#define RQ_PTX_CUH
#include <stdint.h>

/* ---- loads of what is read once and was not written by a kernel that may still run: weights and their side data */

/* No L1 line is kept: a weight is never read twice, and L1 is where x and the tables of shared memory live. Volatile, so that a load
 * stays ahead of the arithmetic that it was put ahead of. */
__device__ __forceinline__ uint4 ptx_load_once16(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
__device__ __forceinline__ uint2 ptx_load_once8(const void *p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
__device__ __forceinline__ uint32_t ptx_load_once4(const void *p) {
    uint32_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
__device__ __forceinline__ uint32_t ptx_load_once2(const void *p) {
    uint16_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
}
/* Through L1, for side data of which a warp takes less than a line at a time. */
__device__ __forceinline__ uint32_t ptx_load_side4(const void *p) {
    uint32_t v;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

/* The line of an address, to L2. */
__device__ __forceinline__ void ptx_prefetch(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

/* ---- shared memory by its 32-bit address. Volatile: in order, so that the look-ups of a tile do not pile up in registers. */
__device__ __forceinline__ uint32_t ptx_shared(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ uint4 ptx_load_shared16(uint32_t at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
    return v;
}
/* Lanes that are not `there` load nothing, and get anything: quarters of a warp that have nothing to load take no time. */
__device__ __forceinline__ uint4 ptx_load_shared16_where(bool there, uint32_t at) {
    uint4 v;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.u32 p, %5, 0;\n"
                 "@p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 "}"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at), "r"((uint32_t)there));
    return v;
}
/* Likewise into a value that is kept: the other lanes' stay as they were. A result that a lane may not get is a register from the start of
 * the program on; this one is so once, and not for each load. */
__device__ __forceinline__ void ptx_load_shared16_where(bool there, uint32_t at, uint4 &v) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.u32 p, %5, 0;\n"
                 "@p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 "}"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                 : "r"(at), "r"((uint32_t)there));
}
__device__ __forceinline__ uint2 ptx_load_shared8(uint32_t at) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
    return v;
}
__device__ __forceinline__ uint32_t ptx_load_shared4(uint32_t at) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
}

/* Both at once: the compiler at times makes two stores of a float2. */
__device__ __forceinline__ void ptx_store_shared8(uint32_t at, float x, float y) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(x), "f"(y) : "memory");
}
/* Four 8x8 matrices of halves, transposed: lane 8 m + i says where the 16 bytes of row i of matrix m are; register m of lane 4 g + q is
 * elements (2 q, g) and (2 q + 1, g) of it. */
__device__ __forceinline__ uint4 ptx_load_matrices_transposed(uint32_t at) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at));
    return v;
}
__device__ __forceinline__ uint2 ptx_load_shared8_where(bool there, uint32_t at) {
    uint2 v;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.u32 p, %3, 0;\n"
                 "@p ld.shared.v2.u32 {%0, %1}, [%2];\n"
                 "}"
                 : "=r"(v.x), "=r"(v.y)
                 : "r"(at), "r"((uint32_t)there));
    return v;
}

/* ---- integer */

/* threadIdx.x, read again where it stands: one instruction instead of a register that is held. */
__device__ __forceinline__ int ptx_thread() {
    int v;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(v));
    return v;
}

/* Bit i of the result is bit (a_i b_i c_i) of the table. 0xea: (a & b) | c. 0x6a: (a & b) ^ c. 0xca: a ? b : c. */
template <int TABLE> __device__ __forceinline__ uint32_t ptx_lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
    return d;
}
/* Bits n .. n + 31 of the 64 of high and low. */
__device__ __forceinline__ uint32_t ptx_funnel_right(uint32_t low, uint32_t high, uint32_t n) {
    uint32_t d;
    asm("shf.r.wrap.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(low), "r"(high), "r"(n));
    return d;
}
/* c + the sum of the products of the bytes of a and b, all unsigned. */
__device__ __forceinline__ uint32_t ptx_dot_bytes(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
/* c + the 16-bit halves of a times bytes 0 and 1 of b, all unsigned. */
__device__ __forceinline__ uint32_t ptx_dot_halves(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
/* Byte i of the result is the byte that nibble i of the selector names: 0..3 of a, 4..7 of b. */
__device__ __forceinline__ uint32_t ptx_prmt(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}

/* ---- pairs of halves, as bits */
__device__ __forceinline__ uint32_t ptx_add_f16x2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
__device__ __forceinline__ uint32_t ptx_fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
/* sm_80 has no other bf16x2 arithmetic: sums are products with 1. */
__device__ __forceinline__ uint32_t ptx_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
__device__ __forceinline__ float ptx_float_of_f16(uint32_t low_half) {
    float f;
    asm("{\n.reg .b16 h;\ncvt.u16.u32 h, %1;\ncvt.f32.f16 %0, h;\n}" : "=f"(f) : "r"(low_half));
    return f;
}

/* ---- tensor cores: c (16x8, f32) += a (16x16) b (16x8), fragments as the PTX manual has them */
__device__ __forceinline__ void ptx_mma_f16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                            uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void ptx_mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                             uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
/* c (16x8, s32) += a (16x32, u8) b (32x8, s8) */
__device__ __forceinline__ void ptx_mma_u8s8(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                             uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* ---- programmatic dependent launch (sm_90; nothing before) */

/* Until the kernels before have ended and their stores can be seen. Does nothing when this one was launched ordinarily. */
__device__ __forceinline__ void ptx_wait_for_kernels_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* The kernel after, if it was launched so, may start its blocks when all blocks of this one came here (or ended). */
__device__ __forceinline__ void ptx_let_kernels_after_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif
