/* SPDX-License-Identifier: Apache-2.0 */
/* Memory: out of bounds, misaligned, after free, leaked. */
#include "bad.h"

template <bool BAD> __global__ void oob_read(const float *i, float *o, int n) {
    o[threadIdx.x] = i[threadIdx.x + (BAD ? n : 0)]; // finds oob_read: out of bounds
}
template <bool BAD> __global__ void oob_write(float *o) {
    o[(int)threadIdx.x - (BAD ? 1 : 0)] = 1; // finds oob_write: out of bounds
}
template <bool BAD> __global__ void oob_shared(float *o, int k) {
    __shared__ float s[64];
    s[threadIdx.x] = 0;
    __syncthreads();
    s[threadIdx.x + (BAD ? k : 0)] = 1; // finds oob_shared: out of bounds
    __syncthreads();
    o[threadIdx.x] = s[threadIdx.x];
}
template <bool BAD> __global__ void oob_dynamic(float *o) {
    extern __shared__ float d[];
    d[threadIdx.x + (BAD ? 1 : 0)] = 1; // finds oob_dynamic: out of bounds
    __syncthreads();
    if (!BAD) o[threadIdx.x] = d[threadIdx.x];
}
template <bool BAD> __global__ void oob_atomic(int *o) {
    atomicAdd(o + threadIdx.x * (BAD ? 2 : 1), 1); // finds oob_atomic: out of bounds
}
template <bool BAD> __global__ void misaligned(const float *i, float4 *o) {
    o[threadIdx.x] = *reinterpret_cast<const float4 *>(i + threadIdx.x * (BAD ? 1 : 4)); // finds misaligned: misaligned
}
template <bool BAD> __global__ void local_index(const float *i, float *o, int n) {
    float v[8];
    for (int k = 0; k < 8; ++k) v[k] = i[k];
    o[threadIdx.x] = v[(threadIdx.x & 7) + (BAD ? n : 0)]; // finds local_index: out of bounds
}
__global__ void after_free(float *o) {
    o[threadIdx.x] = 1; // finds after_free: use after free
}

static void run_oob_read(bool bad) {
    device_array<float> i(512), o(32);
    BAD_LAUNCH(oob_read, 1, 32, 0, i.p, o.p, 500);
}
static void run_oob_write(bool bad) {
    device_array<float> o(32);
    BAD_LAUNCH(oob_write, 1, 32, 0, o.p);
}
static void run_oob_shared(bool bad) {
    device_array<float> o(64);
    BAD_LAUNCH(oob_shared, 1, 64, 0, o.p, 40);
}
static void run_oob_dynamic(bool bad) {
    device_array<float> o(64);
    BAD_LAUNCH(oob_dynamic, 1, 64, 256, o.p);
}
static void run_oob_atomic(bool bad) {
    device_array<int> o(64);
    BAD_LAUNCH(oob_atomic, 1, 64, 0, o.p);
}
static void run_misaligned(bool bad) {
    device_array<float> i(128);
    device_array<float4> o(32);
    BAD_LAUNCH(misaligned, 1, 32, 0, i.p, o.p);
}
static void run_local_index(bool bad) {
    device_array<float> i(8), o(32);
    BAD_LAUNCH(local_index, 1, 32, 0, i.p, o.p, 100000);
}
static void run_after_free(bool bad) {
    float *o;
    cudaMalloc(&o, 256);
    if (bad) cudaFree(o);
    after_free<<<1, 32>>>(o);
    cudaDeviceSynchronize();
    if (!bad) cudaFree(o);
}
/* The host's own: no line of a kernel to name. */
static void run_leak(bool bad) // finds leak: device memory leak (host)
{
    float *o;
    cudaMalloc(&o, 1234);
    if (!bad) cudaFree(o);
}
static void run_double_free(bool bad) // finds double_free: device memory (host)
{
    float *o;
    cudaMalloc(&o, 1234);
    cudaFree(o);
    if (bad) cudaFree(o);
}
static void run_copy_past(bool bad) // finds copy_past: device memory (host)
{
    device_array<char> o(100);
    char h[128] = {0};
    cudaMemcpy(o, h, bad ? 128 : 100, cudaMemcpyHostToDevice);
}

int main(int argc, char **argv) {
    static const bad_case cases[] = {
        {"oob_read", run_oob_read},       {"oob_write", run_oob_write},   {"oob_shared", run_oob_shared},
        {"oob_dynamic", run_oob_dynamic}, {"oob_atomic", run_oob_atomic}, {"misaligned", run_misaligned},
        {"local_index", run_local_index}, {"after_free", run_after_free}, {"leak", run_leak},
        {"double_free", run_double_free}, {"copy_past", run_copy_past}};
    return bad_main(cases, sizeof cases / sizeof *cases, argc, argv);
}
