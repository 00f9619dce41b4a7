/* SPDX-License-Identifier: Apache-2.0 */
/* Operands for the tests of PTX instructions. Each kind of input has a list of edge values; the first half of the
 * elements are pairs of them, every one with every other, the rest is random. Kinds:
 *   i integer    s shift count or bit position    n divisor (never 0)    m mask of bits    o bytes
 *   f f32    d f64    h f16    H two f16    b bf16    B two bf16    F as f, often near minus the product of the first
 * two   g f32, moderate (|x| < 100)    G f16 pair, moderate */
#ifndef RQ_PTX_INPUT_H
#define RQ_PTX_INPUT_H
#include "cudatest.h"

enum { PTX_COUNT = 2048, PTX_EDGES = 32 };

static const uint64_t ptx_edge_integers[PTX_EDGES] = {0,
                                                      1,
                                                      2,
                                                      3,
                                                      7,
                                                      31,
                                                      32,
                                                      33,
                                                      63,
                                                      64,
                                                      100,
                                                      127,
                                                      128,
                                                      255,
                                                      256,
                                                      0x7fff,
                                                      0x8000,
                                                      0x8001,
                                                      0xffff,
                                                      0x10000,
                                                      0x7fffffff,
                                                      0x80000000,
                                                      0x80000001,
                                                      0xffffffff,
                                                      0x55555555,
                                                      0xaaaaaaaa,
                                                      0x123456789abcdef0,
                                                      0x7fffffffffffffff,
                                                      0x8000000000000000,
                                                      0x8000800080008000,
                                                      0xffffffffffffffff,
                                                      0xfedcba9876543210};
static const uint64_t ptx_edge_shifts[PTX_EDGES] = {0,  1,  2,  3,  4,   5,   7,   8,   9,       15,        16,
                                                    17, 23, 24, 30, 31,  32,  33,  40,  47,      48,        62,
                                                    63, 64, 65, 96, 127, 128, 255, 256, 0x10001, 0xffffffff};
static const uint32_t ptx_edge_f32[PTX_EDGES] = {
    0x00000000, 0x80000000, 0x3f800000, 0xbf800000, 0x00000001, 0x80000001, 0x007fffff, 0x807fffff,
    0x00800000, 0x80800000, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001,
    0xffc12345, 0x3f000000, 0x3fc00000, 0x40000000, 0xc0200000, 0x3eaaaaab, 0x4b800001, 0x4b000000,
    0x3f800001, 0x33800000, 0x4f000000, 0xcf000000, 0x5f000000, 0x477fefff, 0x477ff000, 0x34ffffff};
static const uint64_t ptx_edge_f64[PTX_EDGES] = {
    0x0000000000000000, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000, 0x0000000000000001,
    0x8000000000000001, 0x000fffffffffffff, 0x800fffffffffffff, 0x0010000000000000, 0x7fefffffffffffff,
    0xffefffffffffffff, 0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000000, 0x7ff0000000000001,
    0xfff8000000012345, 0x3fe0000000000000, 0x3ff8000000000000, 0xc004000000000000, 0x3fd5555555555555,
    0x4340000000000001, 0x3ca0000000000000, 0x41e0000000000000, 0xc1e0000000000000, 0x41dfffffffc00000,
    0x43e0000000000000, 0xc3e0000000000000, 0x43f0000000000000, 0x47efffffe0000000, 0x47effffff0000000,
    0x3690000000000000, 0x36a0000000000001};
static const uint16_t ptx_edge_f16[PTX_EDGES] = {0x0000, 0x8000, 0x3c00, 0xbc00, 0x0001, 0x8001, 0x03ff, 0x83ff,
                                                 0x0400, 0x8400, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0x7c01,
                                                 0xfe12, 0x3800, 0x3e00, 0x4000, 0xc100, 0x3555, 0x6400, 0x6401,
                                                 0x3c01, 0x1000, 0x0002, 0x7800, 0xf800, 0x5bff, 0x2e66, 0xb999};
static const uint16_t ptx_edge_bf16[PTX_EDGES] = {0x0000, 0x8000, 0x3f80, 0xbf80, 0x0001, 0x8001, 0x007f, 0x807f,
                                                  0x0080, 0x8080, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0, 0x7f81,
                                                  0xffc1, 0x3f00, 0x3fc0, 0x4000, 0xc020, 0x3eab, 0x4300, 0x4301,
                                                  0x3f81, 0x3b80, 0x4f00, 0xcf00, 0x477f, 0x4780, 0x5f00, 0x0101};

/* Random numbers whose exponents are near enough to meet: a quarter any bits, the rest around 1. */
static inline uint64_t ptx_random_float(rq_rng *r, int fraction_bits, int exponent_bits, bool moderate) {
    uint64_t u = rq_rand_u64(r), fraction = (u >> 8) & ((1ull << fraction_bits) - 1);
    uint64_t sign = (u >> 7 & 1) << (fraction_bits + exponent_bits), all = (1ull << exponent_bits) - 1;
    int bias = (int)(all >> 1), spread = bias < 20 ? 5 : 15;
    if (u & 3 || moderate)
        return sign | (uint64_t)(bias + (int)(rq_rand_u32(r) % (2u * spread)) - spread) << fraction_bits | fraction;
    return sign | (rq_rand_u64(r) & all) << fraction_bits | fraction;
}
static inline uint64_t ptx_random(char kind, rq_rng *r) {
    switch (kind) {
    case 's': return rq_rand_u32(r) % 80;
    case 'f':
    case 'F': return ptx_random_float(r, 23, 8, false);
    case 'g': return rq_bits_of_float(rq_rand_float(r) * (rq_rand_u32(r) & 1 ? 100.0f : 3.2f));
    case 'd': return ptx_random_float(r, 52, 11, false);
    case 'h': return ptx_random_float(r, 10, 5, false);
    case 'H': return ptx_random_float(r, 10, 5, false) | ptx_random_float(r, 10, 5, false) << 16;
    case 'G': return ptx_random_float(r, 10, 5, true) | ptx_random_float(r, 10, 5, true) << 16;
    case 'b': return ptx_random_float(r, 7, 8, false);
    case 'B': return ptx_random_float(r, 7, 8, false) | ptx_random_float(r, 7, 8, false) << 16;
    default: { /* integers of all sizes */
        uint64_t v = rq_rand_u64(r) >> (rq_rand_u32(r) & 63);
        if (rq_rand_u32(r) & 1) v = 0 - v;
        return v ? v : 1;
    }
    }
}
static inline uint64_t ptx_edge(char kind, size_t at) {
    size_t other = (at * 7 + 3) % PTX_EDGES;
    switch (kind) {
    case 's': return ptx_edge_shifts[at];
    case 'n': return at ? ptx_edge_integers[at] : 0x5555;
    case 'f':
    case 'F': return ptx_edge_f32[at];
    case 'g': return rq_bits_of_float(((float)at - 15.5f) * 0.75f);
    case 'd': return ptx_edge_f64[at];
    case 'h': return ptx_edge_f16[at];
    case 'H': return ptx_edge_f16[at] | (uint64_t)ptx_edge_f16[other] << 16;
    case 'G': return 0x3c003c00u + at + (at << 20);
    case 'b': return ptx_edge_bf16[at];
    case 'B': return ptx_edge_bf16[at] | (uint64_t)ptx_edge_bf16[other] << 16;
    default: return ptx_edge_integers[at];
    }
}
static inline uint64_t ptx_one_input(const char *kinds, int k, size_t at, rq_rng *r, const uint64_t before[4]) {
    char kind = kinds[k];
    bool edges = at < PTX_EDGES * PTX_EDGES;
    if (kind == 'F' && k >= 2 && at % 3 == 0) { /* the sum nearly cancels */
        float a = rq_float_of_bits((uint32_t)before[0]), b = rq_float_of_bits((uint32_t)before[1]);
        return (rq_bits_of_float(-(a * b)) + rq_rand_u32(r) % 3 - 1) & 0xffffffffu;
    }
    uint64_t v;
    if (edges && k == 0)
        v = ptx_edge(kind, at / PTX_EDGES);
    else if (edges && k == 1)
        v = ptx_edge(kind, at % PTX_EDGES);
    else if (edges)
        v = ptx_edge(kind, rq_rand_u32(r) % PTX_EDGES);
    else
        v = ptx_random(kind, r);
    return v;
}
/* Fills n operands; sizes are letters (h, r, l). A divisor is never 0 in its own width. */
static inline void ptx_fill(const char *kinds, int n, uint8_t *const in[4], const char *sizes, int seed) {
    rq_rng r = {0x1234567u + (uint64_t)seed};
    for (size_t at = 0; at < PTX_COUNT; ++at) {
        uint64_t before[4] = {0};
        for (int k = 0; k < n; ++k) {
            size_t size = sizes[k] == 'h' ? 2 : sizes[k] == 'r' ? 4 : 8;
            uint64_t v = ptx_one_input(kinds, k, at, &r, before);
            if (kinds[k] == 'n' && (v & (size == 8 ? ~0ull : (1ull << (8 * size)) - 1)) == 0) v = 3;
            before[k] = v;
            memcpy(in[k] + at * size, &v, size);
        }
    }
}
#endif
