/* SPDX-License-Identifier: Apache-2.0 */
/* The GEMM of W4A8 for sm_90a, int8 activations: wgmma.m64nNk32.u8.s8, weights from registers, x from shared memory, over the ring of
 * gemm_w4a8_ring.cuh. The warp groups read their codes as they are packed, 16 bytes a lane without a conflict, decode them in registers, and
 * keep a wgmma under way while they decode for the next. Targets: sm_80 sm_90a (nothing for sm_80). */
#include "gemm_w4a8_ring.cuh"

template <int SLABS, int TOK, int STEPS> using ring_of = rq_ring<SLABS, TOK, STEPS, false, int>;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* The sums of 64 rows of each slab. Register buffers of A by turns: while a wgmma reads one, the other is written. */
template <int SLABS, int TOK, int STEPS>
static __device__ __forceinline__ void consume(const rq_gemm_job &job, int (&acc)[SLABS][TOK / 8][4], uint32_t ring,
                                               uint32_t full, uint32_t empty, int kb0, int n, int warp_rb) {
    typedef ring_of<SLABS, TOK, STEPS> g;
    typedef typename g::stage stage;
    const int lane = threadIdx.x % 32;
    const uint32_t weights_at = stage::X + warp_rb * 1024 + lane * 16;
    const uint32_t levels_at = stage::LEVELS_AT + warp_rb * 32 + lane / 4 * 4;
    rq_ring_place at = {0, 0};
    int before = 0;
#pragma unroll 1
    for (int i = 0; i < n; ++i, at.template next<g::STAGES>()) {
        const uint32_t from = ring + at.stage * stage::BYTES;
        const int step0 = (kb0 + i) * 4, first = STEPS == 1 ? rq_gemm_group(job, step0) : 0;
        ptx_barrier_wait(full + at.stage * 8, at.parity);
        rq_w4a8_level level[SLABS][2];
        uint4 words[SLABS];
        uint32_t a[2][4];
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            const int group = STEPS == 1 ? min(rq_gemm_group(job, step0 + s), job.n_group - 1) - first : 0;
#pragma unroll
            for (int r = 0; r < SLABS; ++r) {
                if (s % 2 == 0) words[r] = ptx_load_shared16(from + weights_at + r * RQ_GEMM_SLAB_BYTES + s / 2 * 512);
                if (STEPS && s % (STEPS ? STEPS : 1) == 0) {
                    const uint32_t both =
                        ptx_load_shared4(from + levels_at + (r * stage::GROUPS + group) * RQ_GEMM_LEVEL_BYTES);
                    level[r][0].set(both, 0), level[r][1].set(both, 1);
                }
                uint32_t(&mine)[4] = a[(s * SLABS + r) % 2];
                rq_gemm_decode<STEPS>(mine, s % 2 ? words[r].z : words[r].x, s % 2 ? words[r].w : words[r].y, level[r]);
                ptx_wgmma_fence();
                ptx_wgmma_u8s8(acc[r], mine, ptx_wgmma_rows128(from + s * 32));
                ptx_wgmma_commit();
                ptx_wgmma_wait<1>();
                /* The last wgmma of the stage before is done: it may be filled again. */
                if (s == 0 && r == 0 && i > 0 && lane == 0) ptx_barrier_arrive(empty + before * 8);
            }
        }
        before = at.stage;
    }
    ptx_wgmma_wait<0>();
}
#endif

template <int SLABS, int TOK, int STEPS>
__global__ void __launch_bounds__(RQ_RING_THREADS, 1)
    rq_gemm_w4a8_wgmma(const rq_gemm_job job, const __grid_constant__ CUtensorMap map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    typedef ring_of<SLABS, TOK, STEPS> g;
    extern __shared__ __align__(1024) uint8_t ring_memory[];
    __shared__ uint64_t barriers[2 * g::STAGES];
    const uint32_t ring = ptx_shared(ring_memory), full = ptx_shared(barriers), empty = full + g::STAGES * 8;
    const int kb0 = (int)blockIdx.z * job.part_kb, n = min(job.n_kb - kb0, job.part_kb);
    if (threadIdx.x == 0) rq_ring_start<g>(full, empty);
    __syncthreads();
    ptx_let_kernels_after_start();
    if (threadIdx.x < RQ_RING_OTHERS) {
        ptx_fewer_registers<40>();
        if (threadIdx.x == 0) rq_ring_fill<g>(job, &map, ring, full, empty, kb0, n);
    } else {
        ptx_more_registers<232>();
        const int tid = (int)threadIdx.x - RQ_RING_OTHERS;
        ptx_wait_for_kernels_before();
        int acc[SLABS][TOK / 8][4];
#pragma unroll
        for (int r = 0; r < SLABS; ++r)
#pragma unroll
            for (int t = 0; t < TOK / 8; ++t)
#pragma unroll
                for (int k = 0; k < 4; ++k) acc[r][t][k] = 0;
        consume<SLABS, TOK, STEPS>(job, acc, ring, full, empty, kb0, n, tid / 32);
        rq_ring_finish<g>(job, rq_gemm_end_s8(), ring_memory, acc, tid);
    }
#endif
}

/* ---- for the launch */

template <int SLABS, int TOK> static rq_gemm_kernel of(int steps) {
    rq_gemm_kernel k = {};
    k.slabs = SLABS, k.tok = TOK, k.threads = RQ_RING_THREADS, k.name = "gemm_w4a8_wgmma";
    if (steps == 0)
        k.function = (const void *)rq_gemm_w4a8_wgmma<SLABS, TOK, 0>, k.shared_bytes = ring_of<SLABS, TOK, 0>::SHARED;
    else if (steps == 1)
        k.function = (const void *)rq_gemm_w4a8_wgmma<SLABS, TOK, 1>, k.shared_bytes = ring_of<SLABS, TOK, 1>::SHARED;
    else
        k.function = (const void *)rq_gemm_w4a8_wgmma<SLABS, TOK, 4>, k.shared_bytes = ring_of<SLABS, TOK, 4>::SHARED;
    return k;
}
rq_gemm_kernel rq_gemm_wgmma_kernel(int slabs, int tok, int steps) {
    if (slabs == 2) return of<2, 128>(steps);
    return tok == 32 ? of<1, 32>(steps) : tok == 64 ? of<1, 64>(steps) : of<1, 128>(steps);
}

typedef CUresult (*encode_tiled)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                 const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
/* The driver's function, through the runtime, so that nothing links with libcuda; NULL: there is none. */
static encode_tiled find_encode() {
    void *f = NULL;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t e =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found);
    return e == cudaSuccess && found == cudaDriverEntryPointSuccess ? (encode_tiled)f : NULL;
}
static encode_tiled encode() {
    static const encode_tiled f = find_encode();
    return f;
}
rq_status rq_gemm_wgmma_prepare(void) {
    return encode() ? RQ_OK : rq_gemv_fail(RQ_ERR_DEVICE, "the driver has no cuTensorMapEncodeTiled");
}

static_assert(sizeof(CUtensorMap) == sizeof(rq_gemm_map) && alignof(CUtensorMap) <= alignof(rq_gemm_map), "the map");
rq_status rq_gemm_wgmma_map(rq_gemm_map *to, const rq_gemm_job *job, int tok) {
    CUtensorMap *map = reinterpret_cast<CUtensorMap *>(to);
    const cuuint64_t size[2] = {(cuuint64_t)job->n_in, (cuuint64_t)job->n_tok}, pitch[1] = {(cuuint64_t)job->x_pitch};
    const cuuint32_t box[2] = {RQ_GEMM_COLS, (cuuint32_t)tok}, step[2] = {1, 1};
    const CUresult e = encode()(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void *>(job->x), size, pitch, box,
                                step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return e == CUDA_SUCCESS ? RQ_OK : rq_gemv_fail(RQ_ERR_DEVICE, "cuTensorMapEncodeTiled refuses x");
}
