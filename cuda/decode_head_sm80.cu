/* SPDX-License-Identifier: Apache-2.0 */
/* The end of a decoder's step: a plain matrix times one token (rq_cuda_decode_dense), and the likeliest token (rq_cuda_decode_pick).
 *
 * The matrix of a head is read once a step, past L1: a warp takes four rows at once and has 8 loads of 16 bytes a lane under way; x lies in shared
 * memory. fp32 products and sums, of a lane's columns in order, then of the lanes. Targets: sm_80 sm_90a. */
#include "decode.cuh"

enum { DENSE_THREADS = 256, DENSE_WARPS = DENSE_THREADS / 32, ROWS = 4, DEEP = 2, STRIDE = 32 * EIGHT };

struct dense_job {
    float *y;
    const uint16_t *w, *x;
    int n_out, n_in;
};

template <int ACT> __global__ void __launch_bounds__(DENSE_THREADS) rq_decode_dense(const dense_job job) {
    extern __shared__ __align__(16) uint4 x[];
    const int lane = threadIdx.x % 32, n_eight = job.n_in / EIGHT;
    /* The first KiB of a warp's first rows, while the kernel before ends. */
    const int soon = (blockIdx.x * DENSE_WARPS + threadIdx.x / 32) * ROWS + lane / 8;
    if (soon < job.n_out && lane % 8 * 64 < job.n_in) ptx_prefetch(job.w + (int64_t)soon * job.n_in + lane % 8 * 64);
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    for (int i = threadIdx.x; i < n_eight; i += DENSE_THREADS) x[i] = reinterpret_cast<const uint4 *>(job.x)[i];
    __syncthreads();
    for (int row0 = (blockIdx.x * DENSE_WARPS + threadIdx.x / 32) * ROWS; row0 < job.n_out;
         row0 += gridDim.x * DENSE_WARPS * ROWS) {
        float sum[ROWS] = {};
#pragma unroll 1
        for (int i0 = lane; i0 < n_eight; i0 += 32 * DEEP) {
            uint4 bits[DEEP][ROWS];
#pragma unroll
            for (int d = 0; d < DEEP; ++d)
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    const int64_t row = min(row0 + r, job.n_out - 1); /* what is past the end is the last one again */
                    bits[d][r] = make_uint4(0, 0, 0, 0);
                    if (i0 + d * 32 < n_eight)
                        bits[d][r] = ptx_load_once16(job.w + row * job.n_in + (int64_t)(i0 + d * 32) * EIGHT);
                }
#pragma unroll
            for (int d = 0; d < DEEP; ++d) {
                if (i0 + d * 32 >= n_eight) continue;
                float v[EIGHT];
                rq_eight_floats<ACT>(v, x[i0 + d * 32]);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    float w[EIGHT];
                    rq_eight_floats<ACT>(w, bits[d][r]);
#pragma unroll
                    for (int c = 0; c < EIGHT; ++c) sum[r] = fmaf(w[c], v[c], sum[r]);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            sum[r] = rq_warp_sum(sum[r]);
            if (lane == r && row0 + r < job.n_out) job.y[row0 + r] = sum[r];
        }
    }
}

rq_status rq_cuda_decode_dense(const rq_cuda_decode_dense_args *a, rq_cuda_stream stream) {
    if (!a || !a->y || !a->w || !a->x) return rq_gemv_fail(RQ_ERR_ARG, "y, w or x is NULL");
    if (!rq_is_act(a->act)) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "activations are fp16 or bf16");
    if (a->n_in < EIGHT || a->n_in > RQ_DECODE_MAX_WIDTH || a->n_in % EIGHT || a->n_out < 1 || a->n_out > 1 << 24)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "rows are multiples of 8 up to 16,384 columns, 1 to 2^24 of them");
    if (!rq_sixteen(a->w) || !rq_sixteen(a->x))
        return rq_gemv_fail(RQ_ERR_ARG, "w and x begin at multiples of 16 bytes");
    rq_gemv_device info = {};
    if (cudaError_t e = rq_gemv_look(&info)) return rq_gemv_fail_cuda("no CUDA device", e);
    dense_job job = {a->y, static_cast<const uint16_t *>(a->w), static_cast<const uint16_t *>(a->x), (int)a->n_out,
                     (int)a->n_in};
    const int64_t need = (a->n_out + DENSE_WARPS * ROWS - 1) / (DENSE_WARPS * ROWS), most = 4 * info.multiprocessors;
    return rq_decode_launch(
        a->act == RQ_ACT_F16 ? (const void *)rq_decode_dense<RQ_ACT_F16> : (const void *)rq_decode_dense<RQ_ACT_BF16>,
        &job, dim3((unsigned)(need < most ? need : most)), DENSE_THREADS, (size_t)a->n_in * 2, a->early_launch, stream);
}

/* ---- the likeliest token */

enum { PICK_THREADS = 256, PICK_WARPS = PICK_THREADS / 32, PICK_BLOCKS = 128 };

struct best {
    float value;
    int token; /* the first of equals */
    int bad;   /* the first that is not finite; INT_MAX: none */
};
struct pick_job {
    float *logits;
    const void *from;
    rq_cuda_decode_state *state;
    unsigned *counter;
    best *of_block;
    int n, act;
};
static_assert(256 + PICK_BLOCKS * sizeof(best) <= RQ_DECODE_PICK_BYTES, "counter and blocks");

static __device__ __forceinline__ void better(best &mine, const best &other) {
    if (other.value > mine.value || (other.value == mine.value && other.token < mine.token))
        mine.value = other.value, mine.token = other.token;
    mine.bad = min(mine.bad, other.bad);
}
/* Of all threads, in thread 0. */
static __device__ __forceinline__ void best_of_block(best &mine, best *warps) {
#pragma unroll
    for (int by = 16; by; by /= 2)
        better(mine, {__shfl_xor_sync(0xffffffffu, mine.value, by), __shfl_xor_sync(0xffffffffu, mine.token, by),
                      __shfl_xor_sync(0xffffffffu, mine.bad, by)});
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < PICK_WARPS; ++w) better(mine, warps[w]);
}

__global__ void __launch_bounds__(PICK_THREADS) rq_decode_pick(const pick_job job) {
    __shared__ best warps[2][PICK_WARPS];
    __shared__ int last;
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    best mine = {-INFINITY, INT32_MAX, INT32_MAX};
    for (int i = blockIdx.x * PICK_THREADS + threadIdx.x; i < job.n; i += gridDim.x * PICK_THREADS) {
        float v;
        if (job.from) {
            v = job.act == RQ_ACT_F16 ? rq_gemv_get<RQ_ACT_F16>(job.from, i) : rq_gemv_get<RQ_ACT_BF16>(job.from, i);
            job.logits[i] = v;
        } else {
            v = job.logits[i];
        }
        better(mine, {v, i, fabsf(v) < INFINITY ? INT32_MAX : i});
    }
    best_of_block(mine, warps[0]);
    if (threadIdx.x == 0) {
        __stcg(&job.of_block[blockIdx.x].value, mine.value);
        __stcg(&job.of_block[blockIdx.x].token, mine.token);
        __stcg(&job.of_block[blockIdx.x].bad, mine.bad);
    }
    if (!rq_last_of(job.counter, gridDim.x, &last)) return;
    mine = {-INFINITY, INT32_MAX, INT32_MAX};
    if (threadIdx.x < gridDim.x) {
        const best *from = job.of_block + threadIdx.x;
        mine = {__ldcg(&from->value), __ldcg(&from->token), __ldcg(&from->bad)};
    }
    best_of_block(mine, warps[1]);
    if (threadIdx.x != 0) return;
    rq_cuda_decode_state *s = job.state;
    s->pos += s->n;
    s->n = 1;
    s->token[0] = mine.token < job.n ? mine.token : 0; /* no number at all: bad says so */
    s->bad = mine.bad < job.n ? mine.bad : -1;
}

rq_status rq_cuda_decode_pick(const rq_cuda_decode_pick_args *a, rq_cuda_stream stream) {
    if (!a || !a->logits || !a->state || !a->workspace)
        return rq_gemv_fail(RQ_ERR_ARG, "logits, state or workspace is NULL");
    if (a->n < 1 || a->n > 1 << 24) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "there are 1 to 2^24 logits");
    if (!rq_is_act(a->act)) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "activations are fp16 or bf16");
    pick_job job = {a->logits,
                    a->from,
                    a->state,
                    static_cast<unsigned *>(a->workspace),
                    reinterpret_cast<best *>(static_cast<uint8_t *>(a->workspace) + 256),
                    (int)a->n,
                    a->act};
    const int64_t need = (a->n + PICK_THREADS * 4 - 1) / (PICK_THREADS * 4);
    return rq_decode_launch((const void *)rq_decode_pick, &job,
                            dim3((unsigned)(need < PICK_BLOCKS ? need : (int64_t)PICK_BLOCKS)), PICK_THREADS, 0,
                            a->early_launch, stream);
}
