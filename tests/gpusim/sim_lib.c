/* SPDX-License-Identifier: Apache-2.0 */
/* Library calls in streams, and number formats. */
#include "sim_lib.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lanes.h"

/* ---- calls */

typedef struct call_work {
    rt_work base;
    const char *function;
    sim_span span[SIM_SPANS];
    size_t n_span;
    bool (*ready)(void *arg);
    void (*run)(void *arg);
    void *arg;
} call_work;

static bool spans_good(const char *function, const sim_span *span, size_t n) {
    for (size_t k = 0; k < n; ++k) {
        if (!span[k].bytes) continue;
        char what[96];
        snprintf(what, sizeof what, "%s, %s", function, span[k].name);
        if (rt_mem_kind(span[k].p) == RT_PAGEABLE) {
            gs_find_host("device memory", "%s: %p is not device memory", what, span[k].p);
            return false;
        }
        if (rt_check_device(what, span[k].p, span[k].bytes) != cudaSuccess) return false;
    }
    return true;
}

static cudaError_t run_call(rt_work *w, rt_stream *s) {
    call_work *c = (call_work *)w;
    (void)s;
    if (spans_good(c->function, c->span, c->n_span)) c->run(c->arg); /* else it was freed since: a finding */
    return cudaSuccess;
}

static bool call_ready(rt_work *w) {
    call_work *c = (call_work *)w;
    return c->ready(c->arg);
}

static void drop_call(rt_work *w) { free(((call_work *)w)->arg); }

static sim_status submit(call_work *c, cudaStream_t stream, rt_dep *order) {
    rt_stream *s;
    if (rt_stream_of(stream, &s) != cudaSuccess) {
        rt_work_drop(&c->base);
        return SIM_BAD_STREAM;
    }
    if (!spans_good(c->function, c->span, c->n_span)) {
        rt_work_drop(&c->base);
        return SIM_BAD_MEMORY;
    }
    bool after = order && order->stream && !s->capture;
    if (rt_submit_after(s, &c->base, order, after) != cudaSuccess) return SIM_BAD_STREAM;
    if (order && !s->capture) *order = (rt_dep){s, s->issued};
    return SIM_OK;
}

sim_status sim_submit_waiting(const char *function, int device, cudaStream_t stream, rt_dep *order,
                              const sim_span *span, size_t n_span, bool (*ready)(void *), void (*run)(void *),
                              const void *arg, size_t arg_bytes) {
    cudaError_t last = rt_self.last;
    sim_status status = SIM_BAD_STREAM;
    int current = rt_self.device;
    rt_self.device = device;
    if (rt_enter() == cudaSuccess) {
        call_work *c = rt_work_new(RT_WORK_CALL, sizeof *c, run_call);
        c->base.drop = drop_call;
        c->base.ready = ready ? call_ready : NULL;
        c->function = function;
        c->n_span = n_span;
        for (size_t k = 0; k < n_span; ++k) c->span[k] = span[k];
        c->ready = ready;
        c->run = run;
        c->arg = rt_calloc(1, arg_bytes);
        memcpy(c->arg, arg, arg_bytes);
        status = submit(c, stream, order);
    }
    rt_leave(cudaSuccess);
    rt_self.device = current;
    rt_self.last = last;
    return status;
}

sim_status sim_submit(const char *function, cudaStream_t stream, const sim_span *span, size_t n_span,
                      void (*run)(void *), const void *arg, size_t arg_bytes) {
    return sim_submit_waiting(function, rt_self.device, stream, NULL, span, n_span, NULL, run, arg, arg_bytes);
}

size_t sim_matrix_bytes(int64_t rows, int64_t cols, int64_t ld, size_t element) {
    if (rows <= 0 || cols <= 0) return 0;
    return ((size_t)(cols - 1) * (size_t)ld + (size_t)rows) * element;
}

/* ---- number formats */

size_t sim_type_bytes(cudaDataType type) {
    switch ((int)type) {
    case CUDA_R_8I:
    case CUDA_R_8U:
    case CUDA_R_8F_E4M3:
    case CUDA_R_8F_E5M2: return 1;
    case CUDA_R_16F:
    case CUDA_R_16BF: return 2;
    case CUDA_R_32F:
    case CUDA_R_32I: return 4;
    case CUDA_R_64F: return 8;
    default: return 0;
    }
}

double sim_load(cudaDataType type, const void *p, size_t index) {
    const uint8_t *at = (const uint8_t *)p + index * sim_type_bytes(type);
    uint16_t h;
    int32_t i;
    float f;
    double d;
    switch ((int)type) {
    case CUDA_R_8I: return (int8_t)*at;
    case CUDA_R_8U: return *at;
    case CUDA_R_8F_E4M3: return (double)gs_e4m3_f(*at);
    case CUDA_R_8F_E5M2: return (double)gs_e5m2_f(*at);
    case CUDA_R_16F: memcpy(&h, at, 2); return (double)gs_h2f(h);
    case CUDA_R_16BF: memcpy(&h, at, 2); return (double)gs_b2f(h);
    case CUDA_R_32I: memcpy(&i, at, 4); return i;
    case CUDA_R_32F: memcpy(&f, at, 4); return (double)f;
    default: memcpy(&d, at, 8); return d;
    }
}

/* An fp8 number: `fraction` bits, exponents from `least` (that of the subnormals' unit plus fraction), largest `most`. */
static uint8_t to_fp8(double v, int fraction, int least, double most, uint8_t largest, uint8_t nan) {
    uint8_t sign = signbit(v) ? 0x80 : 0;
    double a = fabs(v);
    if (v != v) return nan;
    if (a >= most) return sign | largest; /* also what would round to more: there is no infinity to go to */
    int exponent = a > 0 ? ilogb(a) : least;
    if (exponent < least) exponent = least;
    int units = (int)nearbyint(ldexp(a, fraction - exponent));
    int bits = units + ((exponent - least) << fraction); /* units of the next binade carry by themselves */
    return (uint8_t)(sign | (bits > largest ? largest : bits));
}

static double clamp_round(double v, double low, double high) {
    if (v != v) return 0;
    double r = nearbyint(v);
    return r < low ? low : r > high ? high : r;
}

void sim_store(cudaDataType type, void *p, size_t index, double v) {
    uint8_t *at = (uint8_t *)p + index * sim_type_bytes(type);
    uint16_t h;
    int32_t i;
    float f = (float)v;
    switch ((int)type) {
    case CUDA_R_8I: *at = (uint8_t)(int8_t)clamp_round(v, -128, 127); break;
    case CUDA_R_8U: *at = (uint8_t)clamp_round(v, 0, 255); break;
    case CUDA_R_8F_E4M3: *at = to_fp8(v, 3, -6, 448, 0x7e, 0x7f); break;
    case CUDA_R_8F_E5M2: *at = to_fp8(v, 2, -14, 57344, 0x7b, 0x7f); break;
    case CUDA_R_16F:
        h = gs_d2h(v);
        memcpy(at, &h, 2);
        break;
    case CUDA_R_16BF:
        h = gs_d2b(v);
        memcpy(at, &h, 2);
        break;
    case CUDA_R_32I:
        i = (int32_t)clamp_round(v, INT32_MIN, INT32_MAX);
        memcpy(at, &i, 4);
        break;
    case CUDA_R_32F: memcpy(at, &f, 4); break;
    default: memcpy(at, &v, 8); break;
    }
}
