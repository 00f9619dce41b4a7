/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of a table, one for each step of a process, added to rows of activations or written over them (rq_cuda_step_rows): what the projection of
 * a time embedding comes to when it was computed once for all steps. The step's index lies on the device, so that a captured graph serves all
 * of them. The definition is rq_steps_add of host/act_steps.c; here the sum is rounded to act, once.
 *
 * A thread has 8 columns of a row; a block 256 such pieces of the row. Reads and writes each byte once. Targets: sm_80 sm_90a. */
#include "quantize_rows.cuh"

struct step_job {
    row_job row; /* x, stream, n_in, x_pitch and act of it */
    const float *table;
    const int32_t *step;
    int64_t n_step, rows_per_step;
};

__global__ void __launch_bounds__(ROW_THREADS) rq_add_step_rows(const step_job job) {
    const int i = ((int)blockIdx.y * ROW_THREADS + (int)threadIdx.x) * CHUNK;
    ptx_wait_for_kernels_before();
    ptx_let_kernels_after_start();
    if (i >= job.row.n_in) return;
    const int64_t k = rq_act_step(job.step, job.n_step, job.rows_per_step, blockIdx.x);
    float v[CHUNK], x[CHUNK];
    const float *row = job.table + (k < 0 ? 0 : k) * job.row.n_in + i;
    if (job.row.x) load(x, job.row, row_of(job.row.x, job.row.x_pitch), i);
    if (job.row.whole) {
        const float4 low = *reinterpret_cast<const float4 *>(row), high = *reinterpret_cast<const float4 *>(row + 4);
        v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w, v[4] = high.x, v[5] = high.y, v[6] = high.z,
        v[7] = high.w;
    } else {
#pragma unroll
        for (int c = 0; c < CHUNK; ++c) v[c] = i + c < job.row.n_in ? row[c] : 0.0f;
    }
#pragma unroll
    for (int c = 0; c < CHUNK; ++c) {
        if (job.row.x) v[c] = x[c] + v[c];
        if (k < 0) v[c] = rq_act_nan();
    }
    store(job.row, const_cast<void *>(row_of(job.row.stream, job.row.n_in)), i, v);
}

static bool sixteen(const void *p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

rq_status rq_cuda_step_rows(const rq_cuda_step_rows_args *a, rq_cuda_stream stream) {
    if (!a || !a->y || !a->table || !a->step) return rq_gemv_fail(RQ_ERR_ARG, "y, table or step is NULL");
    if (a->n < 1 || a->n > 1 << 20) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "n is 1 to 2^20");
    if (a->n_tok < 1 || a->n_tok > 1 << 24) return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "n_tok is 1 to 2^24");
    if (a->n_step < 1 || a->rows_per_step < 0)
        return rq_gemv_fail(RQ_ERR_ARG, "a table has at least one step, and 0 or more rows a step");
    if (a->act != RQ_ACT_F16 && a->act != RQ_ACT_BF16)
        return rq_gemv_fail(RQ_ERR_UNSUPPORTED, "activations are fp16 or bf16");
    step_job job = {};
    job.row.x = a->x, job.row.stream = a->y, job.row.n_in = (int)a->n, job.row.x_pitch = a->n, job.row.act = a->act;
    job.row.whole = a->n % 8 == 0 && sixteen(a->x) && sixteen(a->y) && sixteen(a->table);
    job.table = a->table, job.step = a->step, job.n_step = a->n_step, job.rows_per_step = a->rows_per_step;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)a->n_tok, (unsigned)((a->n + ROW_THREADS * CHUNK - 1) / (ROW_THREADS * CHUNK)));
    config.blockDim = dim3(a->n >= ROW_THREADS * CHUNK ? (unsigned)ROW_THREADS : (unsigned)((a->n + 255) / 256 * 32));
    config.stream = stream;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &early;
    config.numAttrs = a->early_launch ? 1 : 0;
    void *params[] = {&job};
    if (cudaError_t e = cudaLaunchKernelExC(&config, (const void *)rq_add_step_rows, params))
        return rq_gemv_fail_cuda("launch", e);
    return RQ_OK;
}
