/* SPDX-License-Identifier: Apache-2.0 */
/* y[r] = scale[r] sum_k W[r][k] x[k], where W[r][8v..8v+7] is one of 256 codewords of eight halves: a vector-quantized GEMV,
 * written as a demonstration of the test harness; the product's is cuda/gemv_vq.cuh. One warp a row; codebook and x in shared memory; sums of eight in half, then in float.
 * Targets: sm_80 sm_90a. In table.json. */
#include "cudatest.h"
#include "ptxw.cuh"

enum { VEC = 8, CODES = 256, WARPS = 8, RUN = 16 /* vectors a lane takes at once */, SPAN = 32 * RUN, PITCH = 33 };

/* Lane l takes vectors 16 l .. 16 l + 15 of a span, since it loads 16 indices at once. x is laid out so that the 32 lanes'
 * j-th vectors lie side by side: read in order, it would cost eight times the wavefronts. The pitch of 33 makes the stores of
 * neighbouring vectors, which is how x is loaded, free of bank conflicts too. */
__device__ __forceinline__ int place_of(int vector) {
    int in_span = vector % SPAN;
    return vector / SPAN * (RUN * PITCH) + in_span % RUN * PITCH + in_span / RUN;
}

__global__ void __launch_bounds__(WARPS * 32)
    gemv_demo(const uint8_t *__restrict__ index, const uint4 *__restrict__ codebook, const __half *__restrict__ scale,
              const uint4 *__restrict__ x, __half *__restrict__ y, int rows, int cols) {
    __shared__ uint4 s_codebook[CODES];
    extern __shared__ uint4 s_x[];
    const int tid = threadIdx.x, lane = tid & 31, n_vec = cols / VEC;
    for (int i = tid; i < CODES; i += blockDim.x) s_codebook[i] = __ldg(codebook + i);
    for (int i = tid; i < n_vec; i += blockDim.x) s_x[place_of(i)] = __ldg(x + i);
    __syncthreads();

    const int row = blockIdx.x * WARPS + (tid >> 5);
    if (row >= rows) return;
    const uint8_t *row_index = index + (size_t)row * n_vec;
    float sum = 0.0f;
    for (int v = lane * RUN; v < n_vec; v += SPAN) {
        const uint4 q = ptx_load_once(reinterpret_cast<const uint4 *>(row_index + v));
        const uint32_t word[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (int j = 0; j < RUN; ++j) {
            const uint32_t code = (word[j / 4] >> (j % 4 * 8)) & 255u;
            const uint4 c = s_codebook[code], xv = s_x[place_of(v) + j * PITCH];
            const __half2 *ch = reinterpret_cast<const __half2 *>(&c), *xh = reinterpret_cast<const __half2 *>(&xv);
            __half2 p = __hmul2(ch[0], xh[0]);
            p = __hfma2(ch[1], xh[1], p);
            p = __hfma2(ch[2], xh[2], p);
            p = __hfma2(ch[3], xh[3], p);
            const float2 f = __half22float2(p);
            sum += f.x + f.y;
        }
    }
#pragma unroll
    for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) y[row] = __float2half_rn(sum * __half2float(scale[row]));
}

static void fill_halves(rq_rng *r, uint16_t *bits, float *value, int n) {
    for (int i = 0; i < n; ++i) {
        bits[i] = rq_half_bits(rq_rand_float(r));
        value[i] = rq_half_value(bits[i]);
    }
}

/* Each sum of eight in half is off by at most 4 roundings of 2^-11 of its terms; the result is rounded once more. */
static void test_shape(int rows, int cols) {
    const int n_vec = cols / VEC;
    rq_rng rng = {(uint64_t)rows * 100003 + cols};
    const size_t index_bytes = (size_t)rows * n_vec, half_y = (size_t)rows * 2;
    uint8_t *index = (uint8_t *)rq_host_alloc(index_bytes);
    uint16_t *codebook = (uint16_t *)rq_host_alloc(CODES * VEC * 2), *x = (uint16_t *)rq_host_alloc(cols * 2);
    uint16_t *scale = (uint16_t *)rq_host_alloc(half_y), *y = (uint16_t *)rq_host_alloc(half_y);
    float *codebook_f = (float *)rq_host_alloc(CODES * VEC * 4), *x_f = (float *)rq_host_alloc(cols * 4);
    float *scale_f = (float *)rq_host_alloc(rows * 4);
    rq_rand_bytes(&rng, index, index_bytes);
    fill_halves(&rng, codebook, codebook_f, CODES * VEC);
    fill_halves(&rng, x, x_f, cols);
    fill_halves(&rng, scale, scale_f, rows);

    const uint8_t *d_index = (const uint8_t *)rq_device_copy(index, index_bytes);
    const uint4 *d_codebook = (const uint4 *)rq_device_copy(codebook, CODES * VEC * 2);
    const uint4 *d_x = (const uint4 *)rq_device_copy(x, cols * 2);
    const __half *d_scale = (const __half *)rq_device_copy(scale, half_y);
    __half *d_y = (__half *)rq_device_buffer(half_y);
    const size_t shared = (size_t)(n_vec + SPAN - 1) / SPAN * (RUN * PITCH) * sizeof(uint4);
    gemv_demo<<<(rows + WARPS - 1) / WARPS, WARPS * 32, shared>>>(d_index, d_codebook, d_scale, d_x, d_y, rows, cols);
    CHECK_CUDA(cudaGetLastError());
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(y, d_y, half_y);

    double largest = 0;
    for (int r = 0; r < rows; ++r) {
        double sum = 0, size = 0;
        for (int k = 0; k < cols; ++k) {
            double term = (double)codebook_f[index[(size_t)r * n_vec + k / VEC] * VEC + k % VEC] * x_f[k];
            sum += term;
            size += fabs(term);
        }
        double want = sum * scale_f[r];
        EXPECT_NEAR_AT(r, rq_half_value(y[r]), want, size * fabs(scale_f[r]) * 4 / 2048 + fabs(want) / 2048 + 0x1p-24);
        largest = fmax(largest, fabs(want));
    }
    char name[64];
    snprintf(name, sizeof name, "y %dx%d", rows, cols);
    /* Every operation here is correctly rounded and in a fixed order. */
    rq_record(name, RQ_F16, y, rows, 0);
    printf("gemv_demo %dx%d: largest %.3g\n", rows, cols, largest);
    rq_device_free_all();
    free(index), free(codebook), free(x), free(scale), free(y), free(codebook_f), free(x_f), free(scale_f);
}

int main(void) {
    rq_need_device(80);
    test_shape(16, 128);
    test_shape(37, 4096 + 3 * 128);
    if (!rq_small()) {
        test_shape(1024, 1024);
        test_shape(4096, 4096);
    }
    return rq_done(__FILE__);
}
