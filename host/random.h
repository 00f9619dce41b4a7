/* SPDX-License-Identifier: Apache-2.0 */
/* Leaf header: random numbers by counter: the value at (seed, index) needs no state, so any thread can ask for any of them and the
 * result never depends on who asked first. The mixer is SplitMix64's finalizer (Steele, Lea, Flood 2014), applied twice. */
#ifndef RQ_RANDOM_H
#define RQ_RANDOM_H

#include "rq_base.h"

#ifdef __CUDACC__
#define RQ_RANDOM_FUNCTION static __host__ __device__ __forceinline__
#else
#define RQ_RANDOM_FUNCTION static inline
#endif

RQ_RANDOM_FUNCTION uint64_t rq_mix_u64(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

RQ_RANDOM_FUNCTION uint64_t rq_random_u64(uint64_t seed, uint64_t index) {
    return rq_mix_u64(rq_mix_u64(seed + 0x9e3779b97f4a7c15u) + index * 0x9e3779b97f4a7c15u);
}

/* Uniform in [0, 1), 53 bits. */
RQ_RANDOM_FUNCTION double rq_random_unit(uint64_t seed, uint64_t index) {
    return (double)(rq_random_u64(seed, index) >> 11) * 0x1p-53;
}

#endif
