/* SPDX-License-Identifier: Apache-2.0 */
/* Attention of one query to sixteen over the cache of a decoder (rq_cuda_decode_attention_run), grouped heads:
 *
 *   out_h = sum_p softmax_p(q_h . k_p / sqrt(head_dim)) v_p          p <= position of the query; q, k rotated by their positions
 *
 * A block has a query, a key/value head with HEADS of its query heads, and a part of the keys; keys and values are read once for all of the heads,
 * 16 bytes a lane, LANES lanes a key. It goes through its part 64 keys at a time, in three steps between barriers: scores, to shared memory;
 * their largest and their exponentials, a warp a head; sums over the values, in registers, 8 columns a lane and head, scaled down when a
 * larger score came (Milakov and Gimelshein, arXiv:1805.02867). At the end the sums of the lanes and warps are added in their order, and those of
 * the parts by the block that comes last, in theirs (flash decoding).
 *
 * One token: the block of the last key rotates it and puts it into the cache itself. More: a kernel before does that for all. All keys of a part are
 * there then; fp32 throughout, and exponentials to the base 2. Targets: sm_80 sm_90a. */
#include "decode.cuh"

enum { THREADS = 128, WARPS = THREADS / 32, TILE = 64, MOST_PARTS = 256 };

struct attend_job {
    void *out;
    const uint16_t *q, *k, *v;
    int64_t q_pitch, k_pitch, v_pitch;
    uint16_t *k_cache, *v_cache;
    const float *rope;
    const rq_cuda_decode_state *state;
    unsigned *counters; /* [token][block of heads] */
    float *parts; /* [token][block of heads][part][HEADS][head_dim + 2]: sums, then largest and sum of exponentials */
    int n_head, head_dim, max_seq;
    int group, blocks_of_group; /* query heads of a key head; blocks that share them */
    float scale;                /* log2 e / sqrt(head_dim) */
    rq_ahead ahead;
};

template <int ACT> static __device__ __forceinline__ float one_of(const uint16_t *p) { return rq_gemv_get<ACT>(p, 0); }

/* Key and value of a token to the cache, by the whole block. */
template <int ACT>
static __device__ __forceinline__ void append(const attend_job &job, int kv_head, int token, int pos) {
    const int half = job.head_dim / 2;
    const int64_t at = ((int64_t)kv_head * job.max_seq + pos) * job.head_dim;
    const uint16_t *k = job.k + token * job.k_pitch + kv_head * job.head_dim;
    const uint16_t *v = job.v + token * job.v_pitch + kv_head * job.head_dim;
    const float *turn = job.rope + (int64_t)pos * job.head_dim;
    for (int i = threadIdx.x; i < half; i += THREADS) {
        const float c = turn[i], s = turn[half + i], x = one_of<ACT>(k + i), y = one_of<ACT>(k + half + i);
        rq_gemv_put<ACT>(job.k_cache, at + i, x * c - y * s);
        rq_gemv_put<ACT>(job.k_cache, at + half + i, y * c + x * s);
    }
    for (int i = threadIdx.x; i < job.head_dim; i += THREADS) job.v_cache[at + i] = v[i];
}

template <int ACT> __global__ void __launch_bounds__(THREADS) rq_decode_append(const attend_job job) {
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    const int pos = job.state->pos + (int)blockIdx.y;
    if ((unsigned)pos < (unsigned)job.max_seq) append<ACT>(job, (int)blockIdx.x, (int)blockIdx.y, pos);
}

/* Queries of the block's heads, rotated and scaled, to q[HEADS][LANES * 8]; zeros where there is no head or column. */
template <int ACT, int LANES, int HEADS>
static __device__ __forceinline__ void queries(float (*q)[LANES * EIGHT], const attend_job &job, int head0, int heads,
                                               int token, int pos) {
    const int half = job.head_dim / 2;
    const float *turn = job.rope + (int64_t)pos * job.head_dim;
    for (int i = threadIdx.x; i < HEADS * LANES * EIGHT; i += THREADS) {
        const int head = i / (LANES * EIGHT), column = i % (LANES * EIGHT);
        float value = 0.0f;
        if (head < heads && column < job.head_dim) {
            const uint16_t *from = job.q + token * job.q_pitch + (int64_t)(head0 + head) * job.head_dim;
            const int low = column < half ? column : column - half;
            const float c = turn[low], s = turn[half + low], x = one_of<ACT>(from + low),
                        y = one_of<ACT>(from + half + low);
            value = (column < half ? x * c - y * s : y * c + x * s) * job.scale;
        }
        q[head][column] = value;
    }
}

/* How a warp's lanes share 64 keys or values: LANES of them have one, 32 / LANES at once; DEEP loads of each are under way together. */
template <int LANES> struct sharing {
    enum { STEP = WARPS * (32 / LANES), N = TILE / STEP, DEEP = N < 4 ? N : 4 };
    /* Those of keys first + turn STEP ..; zeros beyond n and in lanes without columns. */
    static __device__ __forceinline__ void load(uint4 (&bits)[DEEP], const uint16_t *rows, int turn, int head_dim,
                                                int n) {
        const int column = threadIdx.x % LANES * EIGHT;
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            const int key = threadIdx.x / LANES + (turn + d) * STEP;
            bits[d] = make_uint4(0, 0, 0, 0);
            if (column < head_dim && key < n)
                bits[d] = *reinterpret_cast<const uint4 *>(rows + (int64_t)key * head_dim + column);
        }
    }
};

/* scores[head][key] of n keys from `keys` on; -infinity beyond them. */
template <int ACT, int LANES, int HEADS>
static __device__ __forceinline__ void score(float (*scores)[TILE], const float (*q)[LANES * EIGHT],
                                             const uint16_t *keys, int head_dim, int n) {
    typedef sharing<LANES> share;
    constexpr int STEP = share::STEP, DEEP = share::DEEP;
    const int lane = threadIdx.x % LANES, first = threadIdx.x / LANES;
    float mine[HEADS][EIGHT];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) rq_load_eight_floats(mine[h], &q[h][lane * EIGHT]);
#pragma unroll 1
    for (int turn = 0; turn < share::N; turn += DEEP) {
        uint4 bits[DEEP];
        share::load(bits, keys, turn, head_dim, n);
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            const int key = first + (turn + d) * STEP;
            float k[EIGHT];
            rq_eight_floats<ACT>(k, bits[d]);
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                float sum = 0.0f;
#pragma unroll
                for (int c = 0; c < EIGHT; ++c) sum = fmaf(k[c], mine[h][c], sum);
#pragma unroll
                for (int by = LANES / 2; by; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
                if (lane == h % LANES) scores[h][key] = key < n ? sum : -INFINITY;
            }
        }
    }
}

/* Scores become exponentials; most and sum go on, and shrink[head] is what the sums before are to be multiplied by. */
template <int HEADS>
static __device__ __forceinline__ void soften(float (*scores)[TILE], float *most, float *sum, float *shrink) {
    const int lane = threadIdx.x % 32;
    for (int h = threadIdx.x / 32; h < HEADS; h += WARPS) {
        const float before = most[h], a = scores[h][lane], b = scores[h][lane + 32];
        const float now = fmaxf(before, rq_warp_max(fmaxf(a, b)));
        const float ea = exp2f(a - now), eb = exp2f(b - now), down = exp2f(before - now);
        scores[h][lane] = ea, scores[h][lane + 32] = eb;
        const float all = rq_warp_sum(ea + eb);
        __syncwarp();
        if (lane == 0) most[h] = now, sum[h] = fmaf(sum[h], down, all), shrink[h] = down;
    }
}

template <int ACT, int LANES, int HEADS>
static __device__ __forceinline__ void gather(float (&acc)[HEADS][EIGHT], const float (*weights)[TILE],
                                              const float *shrink, const uint16_t *values, int head_dim, int n) {
    typedef sharing<LANES> share;
    constexpr int STEP = share::STEP, DEEP = share::DEEP;
    const int first = threadIdx.x / LANES;
#pragma unroll
    for (int h = 0; h < HEADS; ++h)
#pragma unroll
        for (int c = 0; c < EIGHT; ++c) acc[h][c] *= shrink[h];
#pragma unroll 1
    for (int turn = 0; turn < share::N; turn += DEEP) {
        uint4 bits[DEEP];
        share::load(bits, values, turn, head_dim, n);
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            float v[EIGHT];
            rq_eight_floats<ACT>(v, bits[d]);
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                const float w = weights[h][first + (turn + d) * STEP];
#pragma unroll
                for (int c = 0; c < EIGHT; ++c) acc[h][c] = fmaf(v[c], w, acc[h][c]);
            }
        }
    }
}

/* Parts in their order: the largest of all, then sums. parts[part][HEADS][head_dim + 2]. */
template <int ACT, int HEADS>
static __device__ __forceinline__ void combine(const attend_job &job, const float *parts, int n_part, int head0,
                                               int heads, int token) {
    const int pitch = job.head_dim + 2;
    for (int i = threadIdx.x; i < heads * job.head_dim; i += THREADS) {
        const int head = i / job.head_dim, column = i % job.head_dim;
        const float *from = parts + head * pitch;
        float most = -INFINITY, sum = 0.0f, value = 0.0f;
        for (int p = 0; p < n_part; ++p) most = fmaxf(most, __ldcg(from + p * HEADS * pitch + job.head_dim));
        for (int p = 0; p < n_part; ++p) {
            const float *part = from + p * HEADS * pitch, w = exp2f(__ldcg(part + job.head_dim) - most);
            sum = fmaf(__ldcg(part + job.head_dim + 1), w, sum);
            value = fmaf(__ldcg(part + column), w, value);
        }
        rq_gemv_put<ACT>(job.out, ((int64_t)token * job.n_head + head0 + head) * job.head_dim + column, value / sum);
    }
}

template <int ACT, int LANES, int HEADS>
__global__ void __launch_bounds__(THREADS) rq_decode_attend(const attend_job job) {
    constexpr int WIDTH = LANES * EIGHT;
    __shared__ __align__(16) float q[HEADS][WIDTH], scores[HEADS][TILE], sums[WARPS][HEADS][WIDTH];
    __shared__ float most[HEADS], sum[HEADS], shrink[HEADS];
    __shared__ int last;
    if (rq_asked_ahead(job.ahead, (int)(blockIdx.z * gridDim.y + blockIdx.y), (int)(gridDim.y * gridDim.z))) return;
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    const int token = blockIdx.z, pos = job.state->pos + token, part = blockIdx.x;
    if ((unsigned)pos >= (unsigned)job.max_seq) return;
    const int n_key = pos + 1;
    const int most_parts = job.ahead.first; /* other blocks have gone */
    const int of_part = ((n_key + most_parts - 1) / most_parts + TILE - 1) / TILE * TILE;
    const int n_part = (n_key + of_part - 1) / of_part;
    if (part >= n_part) return;
    const int kv_head = blockIdx.y / job.blocks_of_group, first = blockIdx.y % job.blocks_of_group * HEADS;
    const int head0 = kv_head * job.group + first, heads = min(HEADS, job.group - first);
    const int key0 = part * of_part, key1 = min(n_key, key0 + of_part);
    /* Blocks that share the key head all write the same bytes, and read their own. */
    if (gridDim.z == 1 && part == n_part - 1) append<ACT>(job, kv_head, token, pos);
    queries<ACT, LANES, HEADS>(q, job, head0, heads, token, pos);
    if (threadIdx.x < HEADS) most[threadIdx.x] = -INFINITY, sum[threadIdx.x] = 0.0f;
    float acc[HEADS][EIGHT];
#pragma unroll
    for (int h = 0; h < HEADS; ++h)
#pragma unroll
        for (int c = 0; c < EIGHT; ++c) acc[h][c] = 0.0f;
    const int64_t head_at = (int64_t)kv_head * job.max_seq * job.head_dim;
    for (int key = key0; key < key1; key += TILE) {
        const int64_t at = head_at + (int64_t)key * job.head_dim;
        __syncthreads();
        score<ACT, LANES, HEADS>(scores, q, job.k_cache + at, job.head_dim, min(TILE, key1 - key));
        __syncthreads();
        soften<HEADS>(scores, most, sum, shrink);
        __syncthreads();
        gather<ACT, LANES, HEADS>(acc, scores, shrink, job.v_cache + at, job.head_dim, min(TILE, key1 - key));
    }
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int h = 0; h < HEADS; ++h)
#pragma unroll
        for (int c = 0; c < EIGHT; ++c) {
#pragma unroll
            for (int by = 16; by >= LANES; by /= 2) acc[h][c] += __shfl_xor_sync(0xffffffffu, acc[h][c], by);
            if (lane < LANES) sums[warp][h][lane * EIGHT + c] = acc[h][c];
        }
    __syncthreads();
    const int pitch = job.head_dim + 2;
    const int64_t which = (int64_t)token * gridDim.y + blockIdx.y;
    float *parts = job.parts + which * most_parts * HEADS * pitch;
    for (int i = threadIdx.x; i < heads * job.head_dim; i += THREADS) {
        const int head = i / job.head_dim, column = i % job.head_dim;
        float value = sums[0][head][column];
        for (int w = 1; w < WARPS; ++w) value += sums[w][head][column];
        if (n_part == 1)
            rq_gemv_put<ACT>(job.out, ((int64_t)token * job.n_head + head0 + head) * job.head_dim + column,
                             value / sum[head]);
        else
            __stcg(parts + (part * HEADS + head) * pitch + column, value);
    }
    if (n_part == 1) return;
    if (threadIdx.x < heads) {
        float *end = parts + (part * HEADS + threadIdx.x) * pitch + job.head_dim;
        __stcg(end, most[threadIdx.x]);
        __stcg(end + 1, sum[threadIdx.x]);
    }
    if (rq_last_of(job.counters + which, (unsigned)n_part, &last))
        combine<ACT, HEADS>(job, parts, n_part, head0, heads, token);
}

/* ---- host */

template <int ACT, int LANES> static const void *of_heads(int heads) {
    if (heads == 1) return (const void *)rq_decode_attend<ACT, LANES, 1>;
    if (heads == 2) return (const void *)rq_decode_attend<ACT, LANES, 2>;
    return heads == 4 ? (const void *)rq_decode_attend<ACT, LANES, 4> : (const void *)rq_decode_attend<ACT, LANES, 8>;
}
template <int ACT> static const void *of_lanes(int64_t head_dim, int heads) {
    if (head_dim <= 8 * EIGHT) return of_heads<ACT, 8>(heads);
    return head_dim <= 16 * EIGHT ? of_heads<ACT, 16>(heads) : of_heads<ACT, 32>(heads);
}

static const char *refuse(const rq_cuda_decode_attention_desc *d) {
    if (!d || !rq_is_act(d->act)) return "activations are fp16 or bf16";
    if (d->head_dim < EIGHT || d->head_dim > RQ_DECODE_MAX_HEAD || d->head_dim % EIGHT)
        return "heads are multiples of 8 up to 256 wide";
    if (d->n_kv_head < 1 || d->n_kv_head > 1024 || d->n_head < d->n_kv_head || d->n_head % d->n_kv_head ||
        d->n_head / d->n_kv_head > 64)
        return "a key head has 1 to 64 query heads, and there are up to 1,024 of them";
    if (d->max_seq < 1 || d->max_seq > 1 << 24) return "a cache has 1 to 2^24 places";
    return d->n_tok < 1 || d->n_tok > RQ_DECODE_MAX_TOK ? "n_tok is 1 to 16" : NULL;
}

static int heads_of(int64_t group) { return group > 4 ? 8 : group > 2 ? 4 : (int)group; }
static size_t counter_bytes(int64_t blocks) { return (size_t)(blocks * 4 + 255) / 256 * 256; }

rq_status rq_cuda_decode_attention_make_plan(rq_cuda_decode_attention_plan *plan,
                                             const rq_cuda_decode_attention_desc *d) {
    const char *text = plan ? refuse(d) : "there is no plan to fill";
    if (text) return rq_gemv_fail(plan ? RQ_ERR_UNSUPPORTED : RQ_ERR_ARG, text);
    rq_gemv_device info = {};
    if (cudaError_t e = rq_gemv_look(&info)) return rq_gemv_fail_cuda("no CUDA device", e);
    memset(plan, 0, sizeof *plan);
    const int64_t group = d->n_head / d->n_kv_head;
    plan->heads = heads_of(group);
    const int64_t blocks = d->n_kv_head * ((group + plan->heads - 1) / plan->heads) * d->n_tok;
    /* Twice the multiprocessors' number of blocks, and no part below a tile. */
    int64_t parts = (2 * info.multiprocessors + blocks - 1) / blocks, most = (d->max_seq + TILE - 1) / TILE;
    if (parts > most) parts = most;
    plan->parts = (int)(parts < MOST_PARTS ? parts : (int64_t)MOST_PARTS);
    plan->blocks = (int)blocks * plan->parts;
    plan->launches = d->n_tok > 1 ? 2 : 1;
    plan->workspace_bytes =
        counter_bytes(blocks) + (size_t)(plan->blocks * plan->heads * (d->head_dim + 2)) * sizeof(float);
    return RQ_OK;
}

rq_status rq_cuda_decode_attention_run(const rq_cuda_decode_attention_plan *plan,
                                       const rq_cuda_decode_attention_desc *d, const rq_cuda_decode_attention_args *a,
                                       rq_cuda_stream stream) {
    const char *text = refuse(d);
    if (text) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, text);
    if (!plan || plan->parts < 1 || !a || !a->out || !a->q || !a->k || !a->v || !a->rope || !a->state)
        return rq_gemv_fail(RQ_ERR_ARG, "attention needs a plan, q, k, v, out, rope and a state");
    if (!a->k_cache || !a->v_cache || !a->workspace || !rq_sixteen(a->k_cache) || !rq_sixteen(a->v_cache) ||
        reinterpret_cast<uintptr_t>(a->workspace) % RQ_TILE_ALIGN)
        return rq_gemv_fail(RQ_ERR_ARG, "caches begin at multiples of 16 bytes, the workspace at one of 256");
    const int64_t group = d->n_head / d->n_kv_head, of_group = (group + plan->heads - 1) / plan->heads;
    attend_job job = {};
    job.out = a->out;
    job.q = static_cast<const uint16_t *>(a->q), job.k = static_cast<const uint16_t *>(a->k),
    job.v = static_cast<const uint16_t *>(a->v);
    job.q_pitch = a->q_pitch, job.k_pitch = a->k_pitch, job.v_pitch = a->v_pitch;
    job.k_cache = static_cast<uint16_t *>(a->k_cache), job.v_cache = static_cast<uint16_t *>(a->v_cache);
    job.rope = a->rope, job.state = a->state;
    job.counters = static_cast<unsigned *>(a->workspace);
    job.parts = reinterpret_cast<float *>(static_cast<uint8_t *>(a->workspace) +
                                          counter_bytes(d->n_kv_head * of_group * d->n_tok));
    job.n_head = (int)d->n_head, job.head_dim = (int)d->head_dim, job.max_seq = (int)d->max_seq;
    job.group = (int)group, job.blocks_of_group = (int)of_group;
    job.scale = (float)(1.4426950408889634 / sqrt((double)d->head_dim));
    int early = d->early_launch;
    if (d->n_tok > 1) {
        const rq_status s =
            rq_decode_launch(d->act == RQ_ACT_F16 ? (const void *)rq_decode_append<RQ_ACT_F16>
                                                  : (const void *)rq_decode_append<RQ_ACT_BF16>,
                             &job, dim3((unsigned)d->n_kv_head, (unsigned)d->n_tok), THREADS, 0, early, stream);
        if (s != RQ_OK) return s;
    }
    dim3 grid((unsigned)plan->parts, (unsigned)(d->n_kv_head * of_group), (unsigned)d->n_tok);
    job.ahead = rq_ahead_of(&grid.x, a->ahead, a->ahead_bytes, THREADS, (int64_t)grid.y * grid.z);
    return rq_decode_launch(d->act == RQ_ACT_F16 ? of_lanes<RQ_ACT_F16>(d->head_dim, plan->heads)
                                                 : of_lanes<RQ_ACT_BF16>(d->head_dim, plan->heads),
                            &job, grid, THREADS, 0, early, stream);
}
