/* SPDX-License-Identifier: Apache-2.0 */
/* Barriers and warp collectives that cannot complete or name the wrong lanes; trap and assert. */
#include "bad.h"
#include <cassert>

template <bool BAD> __global__ void divbar(float *o) {
    __shared__ float s[32];
    s[threadIdx.x] = 1;
    if (BAD && threadIdx.x < 16) {
        __syncthreads(); // finds divbar: divergent barrier
        o[threadIdx.x] = s[31 - threadIdx.x];
    } else
        o[threadIdx.x] = 2;
}
template <bool BAD> __global__ void barmissing(float *o) {
    if (!BAD || threadIdx.x < 32) asm volatile("barrier.sync 1, 64;"); // finds barmissing: barrier never completes
    o[threadIdx.x] = 1;
}
template <bool BAD> __global__ void shflmask(float *o) {
    float v = threadIdx.x;
    if (!BAD || threadIdx.x < 16)
        v = __shfl_xor_sync(0xffffffffu, v, 1); // finds shflmask: warp collective
    else
        for (int i = 0; i < (int)threadIdx.x; ++i) o[32 + i] = v;
    o[threadIdx.x] = v;
}
template <bool BAD> __global__ void shflsource(float *o) {
    float v = threadIdx.x;
    if (threadIdx.x < 16)
        v = __shfl_sync(0xffffu, v, (threadIdx.x + (BAD ? 8 : 0)) & (BAD ? 31 : 15)); // finds shflsource: shuffle
    o[threadIdx.x] = v;
}
template <bool BAD> __global__ void trapped(float *o) {
    if (BAD && threadIdx.x == 40) asm volatile("trap;"); // finds trapped: trap
    o[threadIdx.x] = 1;
}
template <bool BAD> __global__ void asserted(float *o) {
    assert(!BAD || threadIdx.x < 40); // finds asserted: assertion
    o[threadIdx.x] = 1;
}

static void run_divbar(bool bad) {
    device_array<float> o(32);
    BAD_LAUNCH(divbar, 1, 32, 0, o.p);
}
static void run_barmissing(bool bad) {
    device_array<float> o(64);
    BAD_LAUNCH(barmissing, 1, 64, 0, o.p);
}
static void run_shflmask(bool bad) {
    device_array<float> o(64);
    BAD_LAUNCH(shflmask, 1, 32, 0, o.p);
}
static void run_shflsource(bool bad) {
    device_array<float> o(32);
    BAD_LAUNCH(shflsource, 1, 32, 0, o.p);
}
static void run_trapped(bool bad) {
    device_array<float> o(64);
    BAD_LAUNCH(trapped, 1, 64, 0, o.p);
}
static void run_asserted(bool bad) {
    device_array<float> o(64);
    BAD_LAUNCH(asserted, 1, 64, 0, o.p);
}

int main(int argc, char **argv) {
    static const bad_case cases[] = {{"divbar", run_divbar},     {"barmissing", run_barmissing},
                                     {"shflmask", run_shflmask}, {"shflsource", run_shflsource},
                                     {"trapped", run_trapped},   {"asserted", run_asserted}};
    return bad_main(cases, sizeof cases / sizeof *cases, argc, argv);
}
