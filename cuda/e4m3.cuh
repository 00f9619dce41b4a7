/* SPDX-License-Identifier: Apache-2.0 */
/* W4A8 with e4m3 activations where the tensor cores have no e4m3, or where there are few tokens: both operands become halves, which hold all
 * numbers of e4m3, and all q of fmt_w4a8.h, exactly. Products of halves are exact in fp32.
 *
 * In a register of an mma.m16n8k16 are two columns of four: 0 and 2, or 1 and 3. So both nibbles of bytes 0 and 2, and of bytes 1 and 3, of
 * a word of codes come out of it by a mask each; and a dot product does not care for the order of its terms. */
#ifndef RQ_E4M3_CUH
#define RQ_E4M3_CUH
#include "ptx.cuh"

/* Four e4m3 as halves, each times 2^-8: exponent and fraction only move. Bytes 0 and 2, then 1 and 3. */
__device__ __forceinline__ uint2 rq_e4m3_to_f16(uint32_t v) {
    return make_uint2((v << 7 & 0x3f803f80u) | (v << 8 & 0x80008000u), (v >> 1 & 0x3f803f80u) | (v & 0x80008000u));
}
constexpr float RQ_E4M3_F16_UNIT = 256.0f;

/* q of a row as pairs of halves. STEPS: 0: u - zero, otherwise u * step + base. */
template <int STEPS> struct rq_w4a8_halves {
    uint32_t low, high, step, base; /* what is added to 1024 + u, and to 64 + u */
    __device__ __forceinline__ void set_zero(uint32_t zero) {
        low = 0xe400e400u | zero * 0x00010001u, high = 0xd400d400u | zero * 0x00100010u;
    }
    /* Of a word of levels, as rq_w4a8_level: 1024 + step and 1024 + 128 + base, less 1024 and 1152. */
    __device__ __forceinline__ void set_level(uint32_t levels, int lower) {
        step = ptx_add_f16x2(ptx_prmt(levels, 0x64646464u, lower ? 0x4242 : 0x4040), 0xe400e400u);
        base = ptx_add_f16x2(ptx_prmt(levels, 0x64646464u, lower ? 0x4343 : 0x4141), 0xe480e480u);
        set_zero(0);
    }
    /* h[0], h[1]: columns (0, 2) and (1, 3) of the even nibbles, h[2], h[3] of the odd ones. */
    __device__ __forceinline__ void of(uint32_t (&h)[4], uint32_t word) const {
#pragma unroll
        for (int i = 0; i < 2; ++i, word >>= 8) {
            h[i] = ptx_add_f16x2(ptx_lop3<0xea>(word, 0x000f000fu, 0x64006400u), low);
            h[2 + i] = ptx_fma_f16x2(ptx_lop3<0xea>(word, 0x00f000f0u, 0x64006400u), 0x2c002c00u, high);
        }
        if (STEPS)
#pragma unroll
            for (int i = 0; i < 4; ++i) h[i] = ptx_fma_f16x2(h[i], step, base);
    }
};
#endif
