/* SPDX-License-Identifier: Apache-2.0 */
/* A stand-in for cuBLASLt's matmul: descriptors, layouts (column- and row-major), preferences, a heuristic that offers one
 * algorithm, and products of fp16, bf16, fp32, fp64, int8 and fp8 with bias, ReLU and GELU. What the device refuses (fp8 and
 * int8 want both factors along k, and aligned rows) is refused here: cuBLAS documentation, "cublasLtMatmul()". */
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

#include "sim_cublas.h"

enum {
    LT_MAGIC = 0x434c5431,
    DESC_MAGIC = 0x4c544431,
    LAYOUT_MAGIC = 0x4c544c31,
    PREF_MAGIC = 0x4c545031,
    VERSION = 130000
};

struct cublasLtContext {
    uint32_t magic;
};

/* These lie in the opaque structs of the header, which a caller may hold by value. */
typedef struct lt_desc {
    uint32_t magic;
    int32_t compute, scale_type, pointer_mode, ta, tb, tc;
    uint32_t epilogue;
    int32_t bias_type, sm_count;
    int8_t fast_accum;
    const void *bias;
    const void *scale[4]; /* of A, B, C, D */
    float *amax;
} lt_desc;
typedef struct lt_layout {
    uint32_t magic, type;
    int32_t order, batch;
    uint64_t rows, cols;
    int64_t ld, stride;
} lt_layout;
typedef struct lt_pref {
    uint32_t magic, align[4];
    uint64_t workspace;
} lt_pref;
_Static_assert(sizeof(lt_desc) <= sizeof(cublasLtMatmulDescOpaque_t), "it must fit");
_Static_assert(sizeof(lt_layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "it must fit");
_Static_assert(sizeof(lt_pref) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "it must fit");

static lt_desc *desc_of(cublasLtMatmulDesc_t d) {
    lt_desc *p = (lt_desc *)(void *)d;
    return p && p->magic == DESC_MAGIC ? p : NULL;
}
static lt_layout *layout_of(cublasLtMatrixLayout_t l) {
    lt_layout *p = (lt_layout *)(void *)l;
    return p && p->magic == LAYOUT_MAGIC ? p : NULL;
}
static lt_pref *pref_of(cublasLtMatmulPreference_t f) {
    lt_pref *p = (lt_pref *)(void *)f;
    return p && p->magic == PREF_MAGIC ? p : NULL;
}

#define NEED(condition)                                                                                                \
    if (!(condition)) return CUBLAS_STATUS_INVALID_VALUE

/* ---- the handle: one of its own, or one of cuBLAS */

cublasStatus_t cublasLtCreate(cublasLtHandle_t *out) {
    NEED(out);
    *out = rt_calloc(1, sizeof **out);
    (*out)->magic = LT_MAGIC;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) {
    if (!h || h->magic != LT_MAGIC) return CUBLAS_STATUS_NOT_INITIALIZED;
    free(h);
    return CUBLAS_STATUS_SUCCESS;
}

static bool is_handle(cublasLtHandle_t h) {
    return h && (h->magic == LT_MAGIC || sim_cublas_ok((cublasHandle_t)(void *)h));
}

size_t cublasLtGetVersion(void) { return VERSION; }
const char *cublasLtGetStatusName(cublasStatus_t s) { return cublasGetStatusName(s); }
const char *cublasLtGetStatusString(cublasStatus_t s) { return cublasGetStatusString(s); }

/* ---- attributes */

typedef struct field {
    int attribute;
    size_t offset, bytes;
} field;
#define FIELD(attribute, type, member)                                                                                 \
    { attribute, offsetof(type, member), sizeof(((type *)0)->member) }

static const field desc_fields[] = {
    FIELD(CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, lt_desc, compute),
    FIELD(CUBLASLT_MATMUL_DESC_SCALE_TYPE, lt_desc, scale_type),
    FIELD(CUBLASLT_MATMUL_DESC_POINTER_MODE, lt_desc, pointer_mode),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSA, lt_desc, ta),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSB, lt_desc, tb),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSC, lt_desc, tc),
    FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE, lt_desc, epilogue),
    FIELD(CUBLASLT_MATMUL_DESC_BIAS_POINTER, lt_desc, bias),
    FIELD(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, lt_desc, bias_type),
    FIELD(CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, lt_desc, sm_count),
    FIELD(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, lt_desc, scale[0]),
    FIELD(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, lt_desc, scale[1]),
    FIELD(CUBLASLT_MATMUL_DESC_C_SCALE_POINTER, lt_desc, scale[2]),
    FIELD(CUBLASLT_MATMUL_DESC_D_SCALE_POINTER, lt_desc, scale[3]),
    FIELD(CUBLASLT_MATMUL_DESC_AMAX_D_POINTER, lt_desc, amax),
    FIELD(CUBLASLT_MATMUL_DESC_FAST_ACCUM, lt_desc, fast_accum),
    {-1, 0, 0},
};
static const field layout_fields[] = {
    FIELD(CUBLASLT_MATRIX_LAYOUT_TYPE, lt_layout, type),
    FIELD(CUBLASLT_MATRIX_LAYOUT_ORDER, lt_layout, order),
    FIELD(CUBLASLT_MATRIX_LAYOUT_ROWS, lt_layout, rows),
    FIELD(CUBLASLT_MATRIX_LAYOUT_COLS, lt_layout, cols),
    FIELD(CUBLASLT_MATRIX_LAYOUT_LD, lt_layout, ld),
    FIELD(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, lt_layout, batch),
    FIELD(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, lt_layout, stride),
    {-1, 0, 0},
};
static const field pref_fields[] = {
    FIELD(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, lt_pref, workspace),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, lt_pref, align[0]),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, lt_pref, align[1]),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, lt_pref, align[2]),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, lt_pref, align[3]),
    {-1, 0, 0},
};

static cublasStatus_t set_field(const field *f, void *object, int attribute, const void *from, size_t bytes) {
    NEED(object && from);
    while (f->attribute != attribute && f->attribute >= 0) f++;
    if (f->attribute < 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    NEED(bytes == f->bytes);
    memcpy((char *)object + f->offset, from, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t get_field(const field *f, const void *object, int attribute, void *to, size_t bytes,
                                size_t *written) {
    NEED(object && (to || !bytes) && (bytes || written));
    while (f->attribute != attribute && f->attribute >= 0) f++;
    if (f->attribute < 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (written) *written = f->bytes;
    if (!bytes) return CUBLAS_STATUS_SUCCESS;
    NEED(bytes >= f->bytes);
    memcpy(to, (const char *)object + f->offset, f->bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a,
                                              const void *from, size_t bytes) {
    return set_field(desc_fields, desc_of(d), (int)a, from, bytes);
}
cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, void *to,
                                              size_t bytes, size_t *written) {
    return get_field(desc_fields, desc_of(d), (int)a, to, bytes, written);
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t a,
                                                const void *from, size_t bytes) {
    return set_field(layout_fields, layout_of(l), (int)a, from, bytes);
}
cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t a, void *to,
                                                size_t bytes, size_t *written) {
    return get_field(layout_fields, layout_of(l), (int)a, to, bytes, written);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t a, const void *from,
                                                    size_t bytes) {
    return set_field(pref_fields, pref_of(p), (int)a, from, bytes);
}
cublasStatus_t cublasLtMatmulPreferenceGetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t a, void *to, size_t bytes,
                                                    size_t *written) {
    return get_field(pref_fields, pref_of(p), (int)a, to, bytes, written);
}

/* ---- creating them */

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t d, size_t size, cublasComputeType_t compute,
                                               cudaDataType_t scale) {
    NEED(d && size >= sizeof *d);
    memset(d, 0, sizeof *d);
    lt_desc *p = (lt_desc *)(void *)d;
    p->magic = DESC_MAGIC;
    p->compute = (int32_t)compute;
    p->scale_type = (int32_t)scale;
    p->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    p->bias_type = -1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t scale) {
    NEED(out);
    *out = rt_calloc(1, sizeof **out);
    return cublasLtMatmulDescInit_internal(*out, sizeof **out, compute, scale);
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    NEED(desc_of(d));
    free(d);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t l, size_t size, cudaDataType type,
                                                 uint64_t rows, uint64_t cols, int64_t ld) {
    NEED(l && size >= sizeof *l);
    memset(l, 0, sizeof *l);
    *(lt_layout *)(void *)l = (lt_layout){.magic = LAYOUT_MAGIC,
                                          .type = (uint32_t)type,
                                          .order = CUBLASLT_ORDER_COL,
                                          .batch = 1,
                                          .rows = rows,
                                          .cols = cols,
                                          .ld = ld};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows, uint64_t cols,
                                          int64_t ld) {
    NEED(out);
    *out = rt_calloc(1, sizeof **out);
    return cublasLtMatrixLayoutInit_internal(*out, sizeof **out, type, rows, cols, ld);
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    NEED(layout_of(l));
    free(l);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t p, size_t size) {
    NEED(p && size >= sizeof *p);
    memset(p, 0, sizeof *p);
    *(lt_pref *)(void *)p = (lt_pref){.magic = PREF_MAGIC, .align = {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out) {
    NEED(out);
    *out = rt_calloc(1, sizeof **out);
    return cublasLtMatmulPreferenceInit_internal(*out, sizeof **out);
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    NEED(pref_of(p));
    free(p);
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- what can be multiplied */

static bool is_fp8(uint32_t t) { return t == CUDA_R_8F_E4M3 || t == CUDA_R_8F_E5M2; }
static bool is_16(uint32_t t) { return t == CUDA_R_16F || t == CUDA_R_16BF; }

static bool types_fit(const lt_desc *d, uint32_t a, uint32_t b, uint32_t c, uint32_t out) {
    switch (d->compute) {
    case CUBLAS_COMPUTE_64F: return d->scale_type == CUDA_R_64F && a == CUDA_R_64F && b == a && c == a && out == a;
    case CUBLAS_COMPUTE_32I:
        if (a != CUDA_R_8I || b != a || c != out) return false;
        return out == (d->scale_type == CUDA_R_32I ? CUDA_R_32I : CUDA_R_8I) &&
               (d->scale_type == CUDA_R_32I || d->scale_type == CUDA_R_32F);
    case CUBLAS_COMPUTE_32F_FAST_16F:
    case CUBLAS_COMPUTE_32F_FAST_16BF:
    case CUBLAS_COMPUTE_32F_FAST_TF32:
        return d->scale_type == CUDA_R_32F && a == CUDA_R_32F && b == a && c == a && out == a;
    case CUBLAS_COMPUTE_32F: break;
    default: return false;
    }
    if (d->scale_type != CUDA_R_32F) return false;
    if (is_fp8(a) && is_fp8(b)) {
        if (a == CUDA_R_8F_E5M2 && b == a) return false;
        return (is_16(c) || c == CUDA_R_32F) && (out == c || (is_fp8(out) && is_16(c)));
    }
    if (a != b || c != out) return false;
    if (is_16(a)) return c == a || c == CUDA_R_32F;
    return a == CUDA_R_32F && c == CUDA_R_32F;
}

/* Rows (columns, where row-major) must start at multiples of this many bytes; 1: anywhere. */
static int64_t needed_alignment(uint32_t a) { return is_fp8(a) ? 16 : a == CUDA_R_8I ? 4 : 1; }

static bool layout_aligned(const lt_layout *l, const void *p, int64_t bytes) {
    int64_t element = (int64_t)sim_type_bytes((cudaDataType)l->type);
    int64_t inner = (int64_t)(l->order == CUBLASLT_ORDER_ROW ? l->cols : l->rows);
    return l->ld * element % bytes == 0 && inner * element % bytes == 0 && (uintptr_t)p % (uintptr_t)bytes == 0;
}

static bool layout_sound(const lt_layout *l) {
    if (l->order != CUBLASLT_ORDER_COL && l->order != CUBLASLT_ORDER_ROW) return false;
    uint64_t inner = l->order == CUBLASLT_ORDER_ROW ? l->cols : l->rows;
    return l->ld >= 1 && (uint64_t)l->ld >= inner && l->batch >= 1 && l->rows <= INT32_MAX && l->cols <= INT32_MAX;
}

static sim_matrix matrix_of(const lt_layout *l, const void *p) {
    return (sim_matrix){p, (cudaDataType)l->type, l->ld, l->stride, l->order == CUBLASLT_ORDER_ROW};
}

static cublasStatus_t set_epilogue(const lt_desc *d, const lt_layout *out, const lt_layout *c, sim_gemm *g) {
    uint32_t e = d->epilogue;
    const uint32_t known =
        CUBLASLT_EPILOGUE_DEFAULT | CUBLASLT_EPILOGUE_RELU | CUBLASLT_EPILOGUE_BIAS | CUBLASLT_EPILOGUE_GELU;
    if (e & ~known) return CUBLAS_STATUS_NOT_SUPPORTED; /* those of training */
    g->relu = e & CUBLASLT_EPILOGUE_RELU;
    g->gelu = e & CUBLASLT_EPILOGUE_GELU;
    if (e & CUBLASLT_EPILOGUE_BIAS) {
        NEED(d->bias);
        cudaDataType type = (cudaDataType)out->type;
        if (is_fp8(out->type)) type = c->type == CUDA_R_16F ? CUDA_R_16F : CUDA_R_16BF;
        if (out->type == CUDA_R_8I) type = CUDA_R_32F;
        if (is_fp8((uint32_t)g->a.type) && out->type == CUDA_R_32F) type = CUDA_R_16BF;
        if (d->bias_type >= 0) type = (cudaDataType)d->bias_type;
        if (!sim_type_bytes(type)) return CUBLAS_STATUS_NOT_SUPPORTED;
        g->bias = (sim_matrix){.p = d->bias, .type = type};
    }
    bool fp8_in = is_fp8((uint32_t)g->a.type);
    if ((d->scale[0] || d->scale[1]) && !fp8_in) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (d->scale[2] && !is_fp8(c->type)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if ((d->scale[3] || d->amax) && !is_fp8(out->type)) return CUBLAS_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < 4; ++i) g->scale[i] = d->scale[i];
    g->amax = d->amax;
    return CUBLAS_STATUS_SUCCESS;
}

/* The whole product but for alpha and beta; pointers may be NULL when only its possibility is asked about. */
static cublasStatus_t plan(const lt_desc *d, const lt_layout *a, const lt_layout *b, const lt_layout *c,
                           const lt_layout *out, const void *pa, const void *pb, const void *pc, void *pd,
                           sim_gemm *g) {
    NEED(d && a && b && c && out);
    NEED(layout_sound(a) && layout_sound(b) && layout_sound(c) && layout_sound(out));
    *g = (sim_gemm){.m = (int64_t)out->rows, .n = (int64_t)out->cols, .batch = out->batch};
    NEED(sim_cublas_op((cublasOperation_t)d->ta, &g->ta) && sim_cublas_op((cublasOperation_t)d->tb, &g->tb));
    if (d->tc != CUBLAS_OP_N) return CUBLAS_STATUS_NOT_SUPPORTED;
    g->k = (int64_t)(g->ta ? a->rows : a->cols);
    NEED((int64_t)(g->ta ? a->cols : a->rows) == g->m && (int64_t)(g->tb ? b->cols : b->rows) == g->k);
    NEED((int64_t)(g->tb ? b->rows : b->cols) == g->n && c->rows == out->rows && c->cols == out->cols);
    NEED(a->batch == out->batch && b->batch == out->batch && c->batch == out->batch);
    if (!types_fit(d, a->type, b->type, c->type, out->type)) return CUBLAS_STATUS_NOT_SUPPORTED;
    int64_t align = needed_alignment(a->type);
    if (align > 1) {
        bool along_k = (g->ta != (a->order == CUBLASLT_ORDER_ROW)) && (g->tb == (b->order == CUBLASLT_ORDER_ROW));
        if (!along_k || !layout_aligned(a, pa, align) || !layout_aligned(b, pb, align))
            return CUBLAS_STATUS_NOT_SUPPORTED;
        if (!layout_aligned(c, pc, align) || !layout_aligned(out, pd, align)) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    g->a = matrix_of(a, pa);
    g->b = matrix_of(b, pb);
    g->c = matrix_of(c, pc);
    g->d = matrix_of(out, pd);
    g->integer = a->type == CUDA_R_8I;
    return set_epilogue(d, out, c, g);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t pref, int wanted,
                                              cublasLtMatmulHeuristicResult_t result[], int *n) {
    if (!is_handle(h)) return CUBLAS_STATUS_NOT_INITIALIZED;
    NEED(pref_of(pref) && wanted > 0 && result && n);
    *n = 0;
    sim_gemm g;
    lt_desc quiet = {0};
    if (desc_of(desc)) quiet = *desc_of(desc);
    if (!quiet.bias) quiet.epilogue &= ~(uint32_t)CUBLASLT_EPILOGUE_BIAS; /* may come later */
    cublasStatus_t s = plan(desc_of(desc) ? &quiet : NULL, layout_of(a), layout_of(b), layout_of(c), layout_of(d), NULL,
                            NULL, NULL, NULL, &g);
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    memset(&result[0], 0, sizeof result[0]);
    result[0].algo.data[0] = LT_MAGIC;
    result[0].state = CUBLAS_STATUS_SUCCESS;
    result[0].wavesCount = 1;
    *n = 1;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- the product */

static bool scalar_of(const lt_desc *d, const void *p, sim_scalar *out) {
    if (!p) return false;
    cudaDataType type = (cudaDataType)d->scale_type;
    bool device = d->pointer_mode == CUBLASLT_POINTER_MODE_DEVICE;
    *out = (sim_scalar){device ? 0 : sim_load(type, p, 0), device ? p : NULL, type};
    return true;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    if (!is_handle(h)) return CUBLAS_STATUS_NOT_INITIALIZED;
    NEED(!algo || algo->data[0] == LT_MAGIC);
    const lt_desc *ld = desc_of(desc);
    sim_gemm g;
    cublasStatus_t s = plan(ld, layout_of(a_layout), layout_of(b_layout), layout_of(c_layout), layout_of(d_layout), a,
                            b, c ? c : d, d, &g);
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    if (ld->pointer_mode != CUBLASLT_POINTER_MODE_HOST && ld->pointer_mode != CUBLASLT_POINTER_MODE_DEVICE) {
        return CUBLAS_STATUS_NOT_SUPPORTED; /* vectors of alphas */
    }
    NEED(scalar_of(ld, alpha, &g.alpha) && scalar_of(ld, beta, &g.beta));
    NEED(!workspace_bytes || workspace);
    if (!g.m || !g.n) return CUBLAS_STATUS_SUCCESS;
    sim_span span[SIM_SPANS];
    size_t n = sim_gemm_spans(&g, span);
    if (workspace_bytes) span[n++] = (sim_span){"the workspace", workspace, workspace_bytes};
    return sim_cublas_status(sim_submit("cublasLtMatmul", stream, span, n, sim_gemm_run, &g, sizeof g));
}
