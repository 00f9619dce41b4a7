/* SPDX-License-Identifier: Apache-2.0 */
/* Requite's public C interface. Nothing here exits or prints: errors are a status plus rq_last_error(), progress and log
 * go to callbacks. Process-wide settings (threads, log, progress) are to be set before work starts. */
#ifndef RQ_H
#define RQ_H

#include "rq_base.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define RQ_API      __attribute__((visibility("default")))
#define RQ_MUST_USE __attribute__((warn_unused_result))
#else
#define RQ_API
#define RQ_MUST_USE
#endif

#define RQ_VERSION "0.1.0"

/* ---- errors, log, progress, threads ---------------------------------------------------------------------------------- */

RQ_API const char *rq_version(void);
/* One sentence for a status: "malformed file or model". Never NULL. */
RQ_API const char *rq_status_text(rq_status status);
/* What went wrong last on this thread, with names and numbers. Valid until the next failing call on this thread. */
RQ_API const char *rq_last_error(void);

typedef enum rq_log_level { RQ_LOG_WARN = 0, RQ_LOG_INFO = 1, RQ_LOG_DEBUG = 2 } rq_log_level;
typedef void (*rq_log_fn)(void *user, rq_log_level level, const char *text);
RQ_API void rq_set_log(rq_log_fn fn, void *user);

/* Worker threads, 1 .. 1024; 0 means one per available core. Results do not depend on it. */
RQ_API void rq_set_threads(int n_threads);
RQ_API int rq_get_threads(void);

/* ---- one linear layer -------------------------------------------------------------------------------------------------- */

typedef struct rq_layer_info {
    size_t struct_size;         /* set to sizeof(rq_layer_info) before the call */
    double loss_sym, loss_asym; /* tr(E H E^T), and with 2 tr(W D E^T) added; E = W - Q */
    double rel_loss;            /* loss_sym / tr(W H W^T) */
    double bpw;                 /* bits per weight as packed, all side data counted */
    double damp_used;           /* what was added to the diagonal of H */
    int damp_retries;           /* times the damping had to be raised */
    int64_t n_dead;             /* inputs that never were anything but 0 */
} rq_layer_info;

/* Groups of a row of n_in inputs under these options, the second dimension of scale and zero; negative: an rq_status. */
RQ_API int64_t rq_layer_groups(int64_t n_in, const char *options);

/* Quantize one linear layer: compensate column by column, rounding as it goes. w[i][j] becomes
 * scale[i][g] * (codes[i][j] - zero[i][g]) with g = g_idx[j].
 *
 * q       [out] what the codes stand for, float[n_out][n_in], row-major; may not alias w
 * codes   [out] uint8[n_out][n_in], 0 .. 2^bits - 1
 * scale   [out] float[n_out][rq_layer_groups()]
 * zero    [out] uint8, the same shape; 2^(bits-1) everywhere on a symmetric grid
 * g_idx   [out] int32[n_in], the group of each input
 * w       [in]  original weights, float[n_out][n_in]
 * h       [in]  double[n_in][n_in], any multiple of the sum of x x^T over calibration inputs of the quantized stream; NULL only for
 *               "comp=rtn,clip-weights=none"
 * d       [in]  double[n_in][n_in], the same multiple of the sum of (x_fp - x) x^T; NULL for compensators that need none
 * options [in]  "comp=qep,bits=3,group=128,..." (the long options of `requite layer`); "preset=reference" or "preset=vptq" first takes the papers'
 *               settings; NULL is all defaults
 * info    [out] or NULL
 *
 * With another rounder (round=ssvq, vq or w4a8, docs/methods.md) only q is given here, and codes, scale, zero and g_idx must be NULL
 * (RQ_ERR_UNSUPPORTED): rq_layer_quantize has their tensors.
 *
 * Any output but q may be NULL. Work: O(n_out n_in^2) flops + 2/3 n_in^3 for the factor. Extra memory: about 5 n_in^2 floats.
 * Same inputs give the same bytes for any thread count. Returns RQ_OK; RQ_ERR_ARG (sizes, NULL, options); RQ_ERR_INPUT (NaN in w);
 * RQ_ERR_NUMERIC (NaN in h or d); RQ_ERR_NOMEM; RQ_ERR_DEVICE (OpenBLAS missing). A Gram matrix that is not positive definite
 * is handled by raising the damping and reported in info.
 * Source: GPTQ arXiv:2210.17323; GPTAQ arXiv:2504.02692; ResComp arXiv:2604.07955; QEP arXiv:2504.09629. docs/methods.md. */
RQ_API RQ_MUST_USE rq_status rq_quantize_layer(float *q, uint8_t *codes, float *scale, uint8_t *zero, int32_t *g_idx,
                                               const float *w, const double *h, const double *d, int64_t n_out,
                                               int64_t n_in, const char *options, rq_layer_info *info);

/* A quantized layer whatever its rounder: what its codes stand for, and its tensors as a file holds them (docs/formats.md). */
typedef struct rq_layer rq_layer;

typedef struct rq_layer_tensor {
    size_t struct_size; /* set to sizeof(rq_layer_tensor) before the call */
    /* "q"; of the grid also "codes", "scale", "zero", "g_idx", as above; and the file's, without the matrix's name:
     * "weight_packed", ... */
    const char *name;
    const char *dtype; /* of safetensors: "F32", "F16", "I64", "I32", "I8" or "U8" */
    int rank;
    int64_t shape[3];
    const void *data; /* rows, nothing between them; valid until rq_layer_free */
} rq_layer_tensor;

/* Quantize one linear layer with any rounder: arguments as above, the same bytes. *out is the caller's, to be freed; NULL on failure. */
RQ_API RQ_MUST_USE rq_status rq_layer_quantize(rq_layer **out, const float *w, const double *h, const double *d,
                                               int64_t n_out, int64_t n_in, const char *options, rq_layer_info *info);
RQ_API void rq_layer_free(rq_layer *l); /* NULL is fine */
/* The matrix's entry of a file's metadata, a JSON object: {"format":"grid","bits":3,...}. Valid until rq_layer_free. */
RQ_API const char *rq_layer_entry(const rq_layer *l);
/* Tensors that there are, and tensor i of them: RQ_ERR_ARG beyond. */
RQ_API int rq_layer_count(const rq_layer *l);
RQ_API RQ_MUST_USE rq_status rq_layer_at(const rq_layer *l, int i, rq_layer_tensor *t);

/* ---- models ------------------------------------------------------------------------------------------------------------- */

typedef struct rq_model rq_model;

/* Open a Hugging Face folder, a .gguf file or a folder that `requite quantize` wrote. Weights stay in the mapped file. */
RQ_API RQ_MUST_USE rq_status rq_model_open(rq_model **out, const char *path);
RQ_API void rq_model_close(rq_model *m); /* NULL is fine */
RQ_API int64_t rq_model_n_vocab(const rq_model *m);
RQ_API double rq_model_bpw(const rq_model *m); /* of the block matrices, all side data counted */

/* logits[n_tok][n_vocab] of one sequence of n_tok token ids from position 0, fp32. Ids out of range are RQ_ERR_INPUT. */
RQ_API RQ_MUST_USE rq_status rq_model_logits(const rq_model *m, float *logits, const int32_t *ids, int64_t n_tok);

#ifdef __cplusplus
}
#endif
#endif
