/* SPDX-License-Identifier: Apache-2.0 */
/* Shared memory: races between warps and inside a warp, and reads of what nobody wrote. */
#include "bad.h"

template <bool BAD> __global__ void nosync(float *o) {
    __shared__ float s[128];
    s[threadIdx.x] = threadIdx.x;
    if (!BAD) __syncthreads();
    o[threadIdx.x] = s[threadIdx.x ^ 64]; // finds nosync: shared memory race
}

/* Two tiles in turn need a barrier after the read as well. */
template <bool BAD> __global__ void overwrite(float *o) {
    __shared__ float s[64];
    float sum = 0;
    for (int k = 0; k < 3; ++k) {
        s[threadIdx.x] = k + threadIdx.x; // finds overwrite: shared memory race
        __syncthreads();
        sum += s[63 - threadIdx.x];
        if (!BAD) __syncthreads();
    }
    o[threadIdx.x] = sum;
}

template <bool BAD> __global__ void nosyncwarp(float *o) {
    __shared__ volatile float s[32];
    s[threadIdx.x] = threadIdx.x;
    if (!BAD) __syncwarp();
    o[threadIdx.x] = s[threadIdx.x ^ 1]; // finds nosyncwarp: shared memory race
}

template <bool BAD> __global__ void samewrite(float *o) {
    __shared__ float s[32];
    s[BAD ? threadIdx.x & 3 : threadIdx.x] = threadIdx.x; // finds samewrite: shared memory race
    __syncthreads();
    o[threadIdx.x] = s[threadIdx.x & 3];
}

/* Halves of one word by different threads are no race; the same half is. */
template <bool BAD> __global__ void halves(uint16_t *o) {
    __shared__ uint16_t s[128];
    unsigned t = threadIdx.x;
    s[BAD ? t / 2 : t] = (uint16_t)(t / 2 + (t & 1)); // finds halves: shared memory race
    __syncthreads();
    o[threadIdx.x] = s[threadIdx.x / 2];
}

/* All threads read, then one writes: every reader counts, not only the last. */
template <bool BAD> __global__ void readers(float *o) {
    __shared__ float s;
    if (threadIdx.x == 0) s = 1;
    __syncthreads();
    float v = s;
    if (!BAD)
        __syncthreads();
    else if (threadIdx.x >= 64)
        v += 1;
    if (threadIdx.x == 96) s = 2; // finds readers: shared memory race
    o[threadIdx.x] = v;
}

/* A barrier of half the block orders that half alone. */
template <bool BAD> __global__ void namedbarrier(float *o) {
    __shared__ float s[128];
    s[threadIdx.x] = threadIdx.x;
    if (BAD)
        asm volatile("bar.sync %0, 64;" ::"r"(1 + (int)threadIdx.x / 64) : "memory");
    else
        asm volatile("bar.sync 1, 128;" ::: "memory");
    o[threadIdx.x] = s[127 - threadIdx.x]; // finds namedbarrier: shared memory race
}

template <bool BAD> __global__ void uninit(float *o) {
    __shared__ float s[64];
    if (!BAD || threadIdx.x < 31) s[threadIdx.x] = 0;
    __syncthreads();
    o[threadIdx.x] = s[threadIdx.x]; // finds uninit: uninitialised shared memory
}

static void run_nosync(bool bad) {
    device_array<float> o(128);
    BAD_LAUNCH(nosync, 1, 128, 0, o.p);
}
static void run_overwrite(bool bad) {
    device_array<float> o(64);
    BAD_LAUNCH(overwrite, 1, 64, 0, o.p);
}
static void run_nosyncwarp(bool bad) {
    device_array<float> o(32);
    BAD_LAUNCH(nosyncwarp, 1, 32, 0, o.p);
}
static void run_samewrite(bool bad) {
    device_array<float> o(32);
    BAD_LAUNCH(samewrite, 1, 32, 0, o.p);
}
static void run_halves(bool bad) {
    device_array<uint16_t> o(128);
    BAD_LAUNCH(halves, 1, 128, 0, o.p);
}
static void run_readers(bool bad) {
    device_array<float> o(128);
    BAD_LAUNCH(readers, 1, 128, 0, o.p);
}
static void run_namedbarrier(bool bad) {
    device_array<float> o(128);
    BAD_LAUNCH(namedbarrier, 1, 128, 0, o.p);
}
static void run_uninit(bool bad) {
    device_array<float> o(64);
    BAD_LAUNCH(uninit, 1, 64, 0, o.p);
}

int main(int argc, char **argv) {
    static const bad_case cases[] = {{"nosync", run_nosync},
                                     {"overwrite", run_overwrite},
                                     {"nosyncwarp", run_nosyncwarp},
                                     {"samewrite", run_samewrite},
                                     {"halves", run_halves},
                                     {"readers", run_readers},
                                     {"namedbarrier", run_namedbarrier},
                                     {"uninit", run_uninit}};
    return bad_main(cases, sizeof cases / sizeof *cases, argc, argv);
}
