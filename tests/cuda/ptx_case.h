/* SPDX-License-Identifier: Apache-2.0 */
/* A test of PTX instructions, one kernel a case: the case is a few instructions with operands a, b, c, e and results d,
 * d2; every thread loads its operands, runs them, and stores the results; a C function says for each what they must be.
 *
 *   ptx_add((ptx_case){.shape = "r=rr", .inputs = "ii", .ref = sum}, "add.s32 d, a, b;");
 *   ...
 *   return ptx_run_all(__FILE__);
 *
 * Each kernel runs its instructions twice: in all lanes, and in the lanes of PTX_LANES only (the others keep PTX_KEPT).
 * Shape: one letter for each result, "=", one for each operand: h 16 bits, r 32, l 64. The instructions may also use
 * the predicates p, q, s, the scratch registers h0 h1 (16 bits), t0 t1 t2 (32), u0 u1 (64), and members (32), the mask
 * of the lanes that take part. Input kinds: ptx_input.h. RQ_PTX_DUMP names a file that gets the PTX text (for ptxas).
 * */
#ifndef RQ_PTX_CASE_H
#define RQ_PTX_CASE_H
#include <stdarg.h>

#include "ptxtest.h"

#include "ptx_input.h"

enum { PTX_THREADS = 128, PTX_BLOCKS = PTX_COUNT / PTX_THREADS, PTX_MAX_CASES = 1200 };
#define PTX_LANES 0x9669a55cu
#define PTX_KEPT  0x5a5a5a5a5a5a5a5aull

typedef struct ptx_case ptx_case;
typedef void (*ptx_ref)(const ptx_case *t, const uint64_t in[4], uint64_t out[2]);
typedef void (*ptx_warp_ref)(const ptx_case *t, uint32_t lanes, uint64_t in[32][4], uint64_t out[32][2]);

/* How the first result is compared and recorded; the second is always bits. */
enum { OUT_BITS, OUT_F16, OUT_F16X2, OUT_BF16, OUT_BF16X2, OUT_F32, OUT_F64 };
struct ptx_case {
    const char *shape, *inputs;
    ptx_ref ref;
    ptx_warp_ref warp_ref; /* or this: lanes depend on each other */
    int out;
    double relative, absolute; /* floats: allowed error; 0 and 0: the same bits. Any NaN equals any other. */
    int bits;                  /* the rest is the reference's own */
    bool sign, ftz, sat;
    int mode, flags;
    const char *name; /* ptx_add sets it: the instructions */
};
static ptx_case ptx_cases[PTX_MAX_CASES];
static int ptx_n_cases;
static bool ptx_open; /* a reference sets it: the result is not defined for these operands */

static inline void ptx_add(ptx_case t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline void ptx_add(ptx_case t, const char *format, ...) {
    char text[600];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n >= (int)sizeof text || ptx_n_cases == PTX_MAX_CASES) RQ_DIE("too many or too long cases");
    char *name = (char *)rq_host_alloc((size_t)n + 1);
    memcpy(name, text, (size_t)n + 1);
    t.name = name;
    ptx_cases[ptx_n_cases++] = t;
}

/* ---- shapes */
static inline int ptx_n_out(const ptx_case *t) { return (int)(strchr(t->shape, '=') - t->shape); }
static inline int ptx_n_in(const ptx_case *t) { return (int)strlen(strchr(t->shape, '=') + 1); }
static inline int ptx_size(char letter) { return letter == 'h' ? 2 : letter == 'r' ? 4 : 8; }
static inline int ptx_out_size(const ptx_case *t, int k) { return ptx_size(t->shape[k]); }
static inline int ptx_in_size(const ptx_case *t, int k) { return ptx_size(strchr(t->shape, '=')[1 + k]); }
static inline uint64_t ptx_cut(uint64_t v, int size) { return size == 8 ? v : v & ((1ull << (8 * size)) - 1); }
static inline uint64_t ptx_get(const uint8_t *from, int size, size_t at) {
    uint64_t v = 0;
    memcpy(&v, from + at * (size_t)size, (size_t)size);
    return v;
}
static inline void ptx_put(uint8_t *to, int size, size_t at, uint64_t v) {
    memcpy(to + at * (size_t)size, &v, (size_t)size);
}

/* ---- the PTX text of all cases */
typedef struct ptx_text {
    char *s;
    size_t n, room;
} ptx_text;
static inline void ptx_put_text(ptx_text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline void ptx_put_text(ptx_text *t, const char *format, ...) {
    if (t->room - t->n < 4096) {
        t->room = t->room * 2 + 65536;
        t->s = (char *)realloc(t->s, t->room);
        if (!t->s) RQ_DIE("no memory");
    }
    va_list args;
    va_start(args, format);
    t->n += (size_t)vsnprintf(t->s + t->n, t->room - t->n, format, args);
    va_end(args);
}
/* The address of element x_i + first of parameter `name`, into x_p. */
static inline void ptx_put_address(ptx_text *o, const char *name, int size, int first) {
    ptx_put_text(o, "ld.param.u64 x_p, [%s];\nmad.wide.u32 x_p, x_i, %d, x_p;\n", name, size);
    if (first) ptx_put_text(o, "add.s64 x_p, x_p, %d;\n", first * size);
}
static inline void ptx_put_results(ptx_text *o, const ptx_case *t, int first) {
    static const char *const names[] = {"d", "d2"};
    for (int k = 0; k < ptx_n_out(t); ++k) {
        ptx_put_address(o, k ? "p_d2" : "p_d", ptx_out_size(t, k), first);
        ptx_put_text(o, "st.global.b%d [x_p], %s;\n", 8 * ptx_out_size(t, k), names[k]);
    }
}
static inline void ptx_put_kept(ptx_text *o, const ptx_case *t) {
    for (int k = 0; k < ptx_n_out(t); ++k) {
        int size = ptx_out_size(t, k);
        ptx_put_text(o, "mov.b%d d%s, 0x%llx;\n", 8 * size, k ? "2" : "", (unsigned long long)ptx_cut(PTX_KEPT, size));
    }
}
static inline void ptx_put_kernel(ptx_text *o, const ptx_case *t, int number) {
    static const char *const operands[] = {"a", "b", "c", "e"};
    ptx_put_text(o, "// %s\n.visible .entry k%d(.param .u64 p_d, .param .u64 p_d2", t->name, number);
    for (int k = 0; k < 4; ++k) ptx_put_text(o, ", .param .u64 p_%s", operands[k]);
    ptx_put_text(o, ")\n{\n.reg .pred p, q, s, x_away;\n.reg .b16 h0, h1;\n.reg .b32 t0, t1, t2, members, x_i, x_t;\n"
                    ".reg .b64 u0, u1, x_p;\n");
    for (int k = 0; k < ptx_n_out(t); ++k) ptx_put_text(o, ".reg .b%d d%s;\n", 8 * ptx_out_size(t, k), k ? "2" : "");
    for (int k = 0; k < ptx_n_in(t); ++k) ptx_put_text(o, ".reg .b%d %s;\n", 8 * ptx_in_size(t, k), operands[k]);
    ptx_put_text(o, "mov.u32 x_i, %%tid.x;\nmov.u32 x_t, %%ctaid.x;\nmad.lo.u32 x_i, x_t, %d, x_i;\n", PTX_THREADS);
    for (int k = 0; k < ptx_n_in(t); ++k) {
        char name[8];
        snprintf(name, sizeof name, "p_%s", operands[k]);
        ptx_put_address(o, name, ptx_in_size(t, k), 0);
        ptx_put_text(o, "ld.global.b%d %s, [x_p];\n", 8 * ptx_in_size(t, k), operands[k]);
    }
    ptx_put_kept(o, t);
    ptx_put_text(o, "mov.u32 members, 0xffffffff;\n{\n%s\n}\n", t->name);
    ptx_put_results(o, t, 0);
    ptx_put_kept(o, t);
    ptx_put_text(o,
                 "mov.u32 members, 0x%x;\nmov.u32 x_t, %%laneid;\nshr.u32 x_t, members, x_t;\nand.b32 x_t, x_t, 1;\n"
                 "setp.eq.u32 x_away, x_t, 0;\n@x_away bra x_skip;\n{\n%s\n}\nx_skip:\n",
                 PTX_LANES, t->name);
    ptx_put_results(o, t, PTX_COUNT);
    ptx_put_text(o, "ret;\n}\n");
}
/* RQ_SMALL: one case in 16. */
static inline int ptx_step(void) { return rq_small() ? 16 : 1; }
static inline rq_ptx *ptx_load_all(void) {
    ptx_text o = {NULL, 0, 0};
    ptx_put_text(&o, ".version 8.3\n.target sm_90\n.address_size 64\n");
    for (int k = 0; k < ptx_n_cases; k += ptx_step()) ptx_put_kernel(&o, &ptx_cases[k], k);
    const char *path = getenv("RQ_PTX_DUMP");
    if (path) {
        FILE *f = fopen(path, "w");
        if (!f || fputs(o.s, f) < 0 || fclose(f) != 0) RQ_DIE("cannot write %s", path);
    }
    rq_ptx *m = rq_ptx_load(o.s);
    free(o.s);
    return m;
}

/* ---- floats: their value, and NaN made one */
static inline double ptx_value(int out, uint64_t bits) {
    double v;
    switch (out) {
    case OUT_F16:
    case OUT_F16X2: return (double)rq_half_value((uint16_t)bits);
    case OUT_BF16:
    case OUT_BF16X2: return (double)rq_bf16_value((uint16_t)bits);
    case OUT_F32: return (double)rq_float_of_bits((uint32_t)bits);
    default: memcpy(&v, &bits, 8); return v;
    }
}
static inline uint64_t ptx_one_nan(int out, uint64_t bits) {
    switch (out) {
    case OUT_F16: return (bits & 0x7fff) > 0x7c00 ? 0x7fff : bits;
    case OUT_BF16: return (bits & 0x7fff) > 0x7f80 ? 0x7fff : bits;
    case OUT_F16X2: return ptx_one_nan(OUT_F16, bits >> 16) << 16 | ptx_one_nan(OUT_F16, bits & 0xffff);
    case OUT_BF16X2: return ptx_one_nan(OUT_BF16, bits >> 16) << 16 | ptx_one_nan(OUT_BF16, bits & 0xffff);
    case OUT_F32: return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffffffu : bits;
    case OUT_F64: return (bits & 0x7fffffffffffffffu) > 0x7ff0000000000000u ? 0x7ff8000000000000u : bits;
    default: return bits;
    }
}
/* The error of one value, in units of what is allowed; infinite where one is NaN or infinite and the other is not the
 * same. */
static inline double ptx_error(const ptx_case *t, uint64_t got, uint64_t want) {
    double g = ptx_value(t->out, got), w = ptx_value(t->out, want);
    if ((g != g && w != w) || !(g < w || g > w || g != g || w != w)) return 0;
    double d = fabs(g - w), allowed = fabs(w) * t->relative;
    if (d != d || isinf(d)) return INFINITY;
    if (allowed < t->absolute) allowed = t->absolute;
    return (g < w ? -1 : 1) * (allowed > 0 ? d / allowed : INFINITY);
}
static inline int ptx_parts(int out) { return out == OUT_F16X2 || out == OUT_BF16X2 ? 2 : 1; }
static inline uint64_t ptx_part(int out, uint64_t v, int part) {
    return ptx_parts(out) == 2 ? (v >> (16 * part)) & 0xffff : v;
}

/* ---- one case */
typedef struct ptx_run { /* its arrays: operands, and for both passes what is wanted and what came */
    uint8_t *in[4], *out[2];
    uint64_t (*want)[2];
    bool *open;
    float *error; /* of approximate results */
} ptx_run;

static inline void ptx_expect(const ptx_case *t, ptx_run *r) {
    for (size_t first = 0; first < 2 * PTX_COUNT; first += 32) {
        uint32_t lanes = first < PTX_COUNT ? 0xffffffffu : PTX_LANES;
        uint64_t in[32][4] = {{0}}, out[32][2];
        bool open[32] = {false};
        for (size_t l = 0; l < 32; ++l) {
            out[l][0] = out[l][1] = PTX_KEPT;
            for (int k = 0; k < ptx_n_in(t); ++k)
                in[l][k] = ptx_get(r->in[k], ptx_in_size(t, k), first % PTX_COUNT + l);
        }
        if (t->warp_ref)
            t->warp_ref(t, lanes, in, out);
        else
            for (size_t l = 0; l < 32; ++l)
                if (lanes >> l & 1) {
                    ptx_open = false;
                    t->ref(t, in[l], out[l]);
                    open[l] = ptx_open;
                }
        for (size_t l = 0; l < 32; ++l) {
            r->open[first + l] = open[l];
            for (int k = 0; k < ptx_n_out(t); ++k) r->want[first + l][k] = ptx_cut(out[l][k], ptx_out_size(t, k));
        }
    }
}
static inline void ptx_print(const ptx_case *t, const ptx_run *r, size_t at, int k, uint64_t got) {
    fprintf(stderr, "%s  (%s", t->name, at < PTX_COUNT ? "all lanes" : "some lanes");
    for (int q = 0; q < ptx_n_in(t); ++q)
        fprintf(stderr, ", %c = 0x%0*llx", "abce"[q], 2 * ptx_in_size(t, q),
                (unsigned long long)ptx_get(r->in[q], ptx_in_size(t, q), at % PTX_COUNT));
    uint64_t want = r->want[at][k];
    fprintf(stderr, "): d%s = 0x%llx, expected 0x%llx", k ? "2" : "", (unsigned long long)got,
            (unsigned long long)want);
    if (t->out != OUT_BITS && k == 0)
        for (int part = ptx_parts(t->out); part-- > 0;)
            fprintf(stderr, " (%.9g, expected %.9g)", ptx_value(t->out, ptx_part(t->out, got, part)),
                    ptx_value(t->out, ptx_part(t->out, want, part)));
    fprintf(stderr, "\n");
}
/* Compares element `at` of result k; what is recorded is left in the arrays. */
static inline bool ptx_check(const ptx_case *t, ptx_run *r, size_t at, int k) {
    int size = ptx_out_size(t, k), out = k == 0 ? t->out : OUT_BITS;
    uint64_t got = ptx_get(r->out[k], size, at), want = r->want[at][k];
    bool approximate = out != OUT_BITS && (t->relative > 0 || t->absolute > 0), ok = true;
    if (r->open[at]) {
        ptx_put(r->out[k], size, at, 0);
        return true;
    }
    ptx_put(r->out[k], size, at, ptx_one_nan(out, got));
    if (!approximate) {
        ok = ptx_one_nan(out, got) == ptx_one_nan(out, want);
    } else if (at < PTX_COUNT || (PTX_LANES >> (at % 32) & 1)) {
        for (int part = 0; part < ptx_parts(out); ++part) {
            double error = ptx_error(t, ptx_part(out, got, part), ptx_part(out, want, part));
            r->error[2 * at + (size_t)part] = (float)error;
            ok = ok && fabs(error) <= 1;
        }
    } else
        ok = got == want;
    if (rq_failed(ok)) ptx_print(t, r, at, k, got);
    return ok;
}
/* Keeps one element in 8, of every lane now and then: records of all would be tens of MB. Returns how many. */
static inline size_t ptx_thin(void *data, size_t bytes) {
    size_t n = 2 * PTX_COUNT / 8;
    for (size_t k = 0; k < n; ++k)
        memmove((uint8_t *)data + k * bytes, (uint8_t *)data + (8 * k + k % 8) * bytes, bytes);
    return n;
}
static inline void ptx_record(const ptx_case *t, ptx_run *r) {
    static const enum rq_record_type bits[] = {RQ_U8, RQ_U16, RQ_U32, RQ_U32, RQ_U64};
    static const enum rq_record_type types[] = {RQ_U8, RQ_F16, RQ_F16, RQ_BF16, RQ_BF16, RQ_F32, RQ_F64};
    for (int k = 0; k < ptx_n_out(t); ++k) {
        char name[640];
        snprintf(name, sizeof name, "%s%s", t->name, k ? " (d2)" : "");
        size_t n = ptx_thin(r->out[k], (size_t)ptx_out_size(t, k));
        bool approximate = k == 0 && t->out != OUT_BITS && (t->relative > 0 || t->absolute > 0);
        if (approximate) /* errors, in units of what is allowed: two runs may lie at either end */
            rq_record(name, RQ_F32, r->error, 2 * ptx_thin(r->error, 2 * sizeof *r->error), 2);
        else if (k == 0 && t->out != OUT_BITS)
            rq_record(name, types[t->out], r->out[k], n * (size_t)ptx_parts(t->out), 0);
        else
            rq_record(name, bits[ptx_out_size(t, k) / 2], r->out[k], n, 0);
    }
}
static inline void ptx_run_case(rq_ptx *m, const ptx_case *t, int number) {
    ptx_run r = {{NULL}, {NULL}, NULL, NULL, NULL};
    void *device[6] = {NULL}, *args[6];
    for (int k = 0; k < ptx_n_in(t); ++k) r.in[k] = (uint8_t *)rq_host_alloc(8 * PTX_COUNT);
    r.want = (uint64_t(*)[2])rq_host_alloc(2 * PTX_COUNT * sizeof *r.want);
    r.open = (bool *)rq_host_alloc(2 * PTX_COUNT * sizeof *r.open);
    r.error = (float *)rq_host_alloc(4 * PTX_COUNT * sizeof *r.error);
    ptx_fill(t->inputs, ptx_n_in(t), r.in, strchr(t->shape, '=') + 1, number);
    for (int k = 0; k < ptx_n_in(t); ++k)
        device[2 + k] = rq_device_copy(r.in[k], (size_t)ptx_in_size(t, k) * PTX_COUNT);
    for (int k = 0; k < ptx_n_out(t); ++k) device[k] = rq_device_buffer((size_t)ptx_out_size(t, k) * 2 * PTX_COUNT);
    for (int k = 0; k < 6; ++k) args[k] = &device[k];
    char kernel[16];
    snprintf(kernel, sizeof kernel, "k%d", number);
    if (!rq_ptx_try_launch(m, kernel, PTX_BLOCKS, PTX_THREADS, 0, args)) RQ_DIE("%s did not run rightly", t->name);
    for (int k = 0; k < ptx_n_out(t); ++k) {
        size_t bytes = (size_t)ptx_out_size(t, k) * 2 * PTX_COUNT;
        r.out[k] = (uint8_t *)rq_host_alloc(bytes);
        rq_device_read(r.out[k], device[k], bytes);
    }
    ptx_expect(t, &r);
    for (int k = 0; k < ptx_n_out(t); ++k) {
        int wrong = 0;
        for (size_t at = 0; at < 2 * PTX_COUNT && wrong < 3; ++at) wrong += !ptx_check(t, &r, at, k);
    }
    ptx_record(t, &r);
    for (int k = 0; k < 6; ++k)
        if (device[k]) rq_device_free(device[k]);
    for (int k = 0; k < 4; ++k) free(r.in[k]);
    free(r.out[0]), free(r.out[1]);
    free(r.want), free(r.open), free(r.error);
}

static inline void ptx_run_cases(void) {
    rq_ptx *m = ptx_load_all();
    for (int k = 0; k < ptx_n_cases; k += ptx_step()) ptx_run_case(m, &ptx_cases[k], k);
    rq_ptx_unload(m);
}
static inline int ptx_run_all(const char *file) {
    rq_need_device(90);
    ptx_run_cases();
#ifdef RQ_TEST_SIM
    /* The simulator has each opcode twice, plain and for AVX-512: the plain one too. */
    if (!getenv("GPUSIM_ISA")) {
        setenv("GPUSIM_ISA", "base", 1);
        unsetenv("RQ_RECORD");
        ptx_run_cases();
    }
#endif
    printf("%d cases\n", ptx_n_cases);
    return rq_done(file);
}
#endif
