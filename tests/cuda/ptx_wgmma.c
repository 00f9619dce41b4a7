/* SPDX-License-Identifier: Apache-2.0 */
/* wgmma.mma_async: types, N, A from registers and from shared memory, scale-d, negation, every swizzle, K-major and MN-major,
 * against a plain loop over matrices. Operands are laid out in shared memory as tiles are: rows of the swizzle's width,
 * 16-byte pieces exchanged by the row (of a tile that starts on a whole pattern); a matrix wider than the swizzle is several
 * such tiles. Numbers as in ptx_mma.c: small integers exactly, random ones within a bound, integers equal.
 * The second half is the simulator's: what is wrong is found, what is right is silent.
 * Targets: sm_90a */
#include "ptxtest.h"

enum elem { F16, BF16, TF32, E4M3, E5M2, S8, U8, F32, S32 };
static const char *const elem_name[] = {"f16", "bf16", "tf32", "e4m3", "e5m2", "s8", "u8", "f32", "s32"};
static const int elem_bytes[] = {2, 2, 4, 1, 1, 1, 1, 4, 4};

enum {
    HALF_SHARED = 16384,
    SHARED = 2 * HALF_SHARED,
    TILE_K = 128
}; /* A at 0, B at 16384; a tile is 128 bytes of K wide */

typedef struct form {
    int n;
    enum elem a, b, d;
    int a_swizzle, b_swizzle; /* 0, 32, 64, 128; a_swizzle -1: A in registers */
    bool a_mn, b_mn;
    int scale_d, negate_a, negate_b;
    bool saturate;
    int step; /* which 32 bytes of K of the tile, K-major with swizzle */
} form;

/* ------------------------------------------------------------------ elements */
static double fp8_value(unsigned v, int fraction_bits, int bias) {
    int e = (int)(v >> fraction_bits & ((1u << (7 - fraction_bits)) - 1)), f = (int)(v & ((1u << fraction_bits) - 1));
    double x = e ? ldexp(f + (1 << fraction_bits), e - bias - fraction_bits) : ldexp(f, 1 - bias - fraction_bits);
    return v & 0x80 ? -x : x;
}
static double value_of(enum elem t, uint32_t bits) {
    switch (t) {
    case F16: return (double)rq_half_value((uint16_t)bits);
    case BF16: return (double)rq_bf16_value((uint16_t)bits);
    case TF32:
    case F32: return (double)rq_float_of_bits(bits);
    case E4M3: return fp8_value(bits, 3, 7);
    case E5M2: return fp8_value(bits, 2, 15);
    case S8: return (double)(int8_t)bits;
    case S32: return (double)(int32_t)bits;
    default: return (double)bits;
    }
}
static uint32_t bits_of(enum elem t, int v) {
    switch (t) {
    case F16: return rq_half_bits((float)v);
    case BF16: return rq_bf16_bits((float)v);
    case TF32:
    case F32: return rq_bits_of_float((float)v);
    case E4M3:
    case E5M2:
        for (uint32_t u = 0; u < 256; ++u)
            if (value_of(t, u) == (double)v) return u;
        RQ_DIE("%d has no fp8", v);
    case S32: return (uint32_t)v;
    default: return (uint32_t)v & 0xff;
    }
}
static uint32_t random_bits(enum elem t, rq_rng *r) {
    uint32_t u = rq_rand_u32(r);
    float x = rq_rand_float(r);
    switch (t) {
    case F16: return rq_half_bits(x);
    case BF16: return rq_bf16_bits(x);
    case TF32: return rq_bits_of_float(x) & 0xffffe000u;
    case F32: return rq_bits_of_float(x);
    case E4M3: return (u & 0x7f) == 0x7f ? 0x33 : u & 0xff;
    case E5M2: return (u & 0x7c) == 0x7c ? 0x33 : u & 0xff;
    case S8:
    case U8: return u & 0xff;
    default: return u % 4 ? u : u % 8 ? 0x7ffffff0u : 0x80000010u;
    }
}

/* ------------------------------------------------------------------ shared memory: where element (mn, k) of an operand lies */
/* A tile: rows of `width` bytes one after the other, its 16-byte pieces exchanged by the number of the row. */
static int in_tile(int row, int byte, int width) {
    int piece = byte / 16;
    if (width == 128) piece ^= row % 8;
    if (width == 64) piece ^= row / 2 % 4;
    if (width == 32) piece ^= row / 4 % 2;
    return row * width + piece * 16 + byte % 16;
}
/* K-major: a row is one m. Without a swizzle, matrices of 8 rows of 16 bytes lie one after the other: along m first. */
static int place_k(int m, int byte, int rows, int swizzle) {
    if (swizzle) return byte / swizzle * rows * swizzle + in_tile(m, byte % swizzle, swizzle);
    return (byte / 16 * (rows / 8) + m / 8) * 128 + m % 8 * 16 + byte % 16;
}
/* MN-major: a row is one k of 16. Without a swizzle, matrices of 8 k by 8 m: those of one m, then the next. */
static int place_mn(int m, int k, int swizzle) {
    if (swizzle) return m * 2 / swizzle * 16 * swizzle + in_tile(k, m * 2 % swizzle, swizzle);
    return (m / 8 * 2 + k / 8) * 128 + k % 8 * 16 + m % 8 * 2;
}
/* The descriptor of an operand at `start`: leading and stride offsets follow from the layouts above. */
static uint64_t descriptor(int start, int rows, bool mn, int swizzle) {
    int leading, stride;
    uint64_t mode = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
    if (mn && swizzle)
        leading = 16 * swizzle, stride = 8 * swizzle;
    else if (mn)
        leading = 128, stride = 256;
    else if (swizzle)
        leading = 16, stride = 8 * swizzle;
    else
        leading = rows / 8 * 128, stride = 128;
    return (uint64_t)start >> 4 | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 | mode << 62;
}

/* ------------------------------------------------------------------ the kernel */
static char text[1 << 16];
static int at;
#define TEXT(...) (at += snprintf(text + at, sizeof text - (size_t)at, __VA_ARGS__))

static const char *c_type(enum elem t) { return t == F32 ? "f32" : "b32"; }
static void list(const char *reg, int n) {
    for (int r = 0; r < n; ++r) TEXT("%s%s%d", r ? "," : "{", reg, r);
    TEXT("}");
}
/* Parameters: the image of shared memory, descriptors of A and B (to be added to the address of shared memory), A's fragments,
 * C, D, scale-d. Register r of thread t of a fragment is word 128 r + t. Loads it all; what is in shared memory is written by
 * ordinary stores. */
static void head(int nd, enum elem d, const char *extra) {
    at = 0;
    TEXT(".version 8.4\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 sm[];\n"
         ".visible .entry k(.param .u64 pi, .param .u64 qa, .param .u64 qb, .param .u64 pa, .param .u64 pc, .param "
         ".u64 pd, "
         ".param .u32 ps)\n{\n");
    TEXT(".reg .%s %%d<%d>; .reg .b32 %%a<4>; .reg .b64 %%p<6>; .reg .b64 %%x<4>; .reg .b32 %%t<8>; .reg .pred "
         "%%q<2>;\n%s",
         c_type(d), nd, extra);
    TEXT("mov.u32 %%t0, %%tid.x;\nmov.u32 %%t1, sm;\nmul.wide.u32 %%x0, %%t0, 4;\nshl.b32 %%t2, %%t0, 2;\n"
         "add.u32 %%t2, %%t2, %%t1;\nld.param.u32 %%t3, [ps];\nsetp.ne.u32 %%q0, %%t3, 0;\n"
         "ld.param.u64 %%p0, [pi];\nld.param.u64 %%p1, [qa];\nld.param.u64 %%p2, [qb];\nld.param.u64 %%p3, [pa];\n"
         "ld.param.u64 %%p4, [pc];\nld.param.u64 %%p5, [pd];\n"
         "add.u64 %%p0, %%p0, %%x0;\nadd.u64 %%p3, %%p3, %%x0;\nadd.u64 %%p4, %%p4, %%x0;\nadd.u64 %%p5, %%p5, %%x0;\n"
         "cvt.u64.u32 %%x1, %%t1;\nshr.u64 %%x1, %%x1, 4;\nadd.u64 %%p1, %%p1, %%x1;\nadd.u64 %%p2, %%p2, %%x1;\n"
         "mov.u32 %%t4, 0;\nfill:\nld.global.u32 %%t5, [%%p0];\nst.shared.u32 [%%t2], %%t5;\nadd.u64 %%p0, %%p0, 512;\n"
         "add.u32 %%t2, %%t2, 512;\nadd.u32 %%t4, %%t4, 512;\nsetp.lt.u32 %%q1, %%t4, %d;\n@%%q1 bra fill;\n",
         SHARED);
    for (int r = 0; r < 4; ++r) TEXT("ld.global.b32 %%a%d, [%%p3+%d];\n", r, 512 * r);
    for (int r = 0; r < nd; ++r) TEXT("ld.global.%s %%d%d, [%%p4+%d];\n", c_type(d), r, 512 * r);
}
static void proxy_fence(void) { TEXT("fence.proxy.async;\n"); }
static void tail(int nd, enum elem d) {
    for (int r = 0; r < nd; ++r) TEXT("st.global.%s [%%p5+%d], %%d%d;\n", c_type(d), 512 * r, r);
    TEXT("ret;\n}\n");
}
static int elements_k(const form *f) { return 32 / elem_bytes[f->a]; }
static int registers_d(const form *f) { return f->d == F16 ? f->n / 4 : f->n / 2; }
static void write_wgmma(const form *f) {
    bool integer = f->d == S32;
    TEXT("wgmma.mma_async.sync.aligned.m64n%dk%d%s.%s.%s.%s ", f->n, elements_k(f), f->saturate ? ".satfinite" : "",
         elem_name[f->d], elem_name[f->a], elem_name[f->b]);
    list("%d", registers_d(f));
    TEXT(", ");
    if (f->a_swizzle < 0)
        list("%a", 4);
    else
        TEXT("%%p1");
    TEXT(", %%p2, %%q0");
    if (!integer) TEXT(", %d, %d", f->negate_a ? -1 : 1, f->negate_b ? -1 : 1);
    if (!integer && elem_bytes[f->a] == 2) {
        if (f->a_swizzle >= 0) TEXT(", %d", f->a_mn);
        TEXT(", %d", f->b_mn);
    }
    TEXT(";\n");
}

/* ------------------------------------------------------------------ one form */
typedef struct problem {
    uint32_t A[64][32], B[256][32], C[64][256]; /* bits; B[n][k] */
    uint8_t image[SHARED];
    uint32_t a_regs[4 * 128], c_regs[128 * 128];
    uint64_t a_desc, b_desc;
} problem;

static void place_operand(uint8_t *base, const uint32_t bits[][32], int rows, int k, int bytes, bool mn, int swizzle,
                          int step) {
    for (int m = 0; m < rows; ++m)
        for (int e = 0; e < k; ++e) {
            int to = mn ? place_mn(m, e, swizzle) : place_k(m, e * bytes + step * 32, rows, swizzle);
            memcpy(base + to, &bits[m][e], (size_t)bytes);
        }
}
/* Register and bits of element (row, col) of D in a thread: PTX ISA, fragments of wgmma. */
static void d_place(int row, int col, bool half, int *thread, int *reg, int *shift) {
    *thread = row / 16 * 32 + row % 8 * 4 + col % 8 / 2;
    int i = col / 8 * 4 + row % 16 / 8 * 2 + col % 2; /* element of the thread */
    *reg = half ? i / 2 : i;
    *shift = half ? 16 * (i % 2) : 0;
}
static void make_problem(const form *f, problem *p, bool small, rq_rng *rng) {
    int k = elements_k(f), bytes = elem_bytes[f->a];
    memset(p, 0, sizeof *p);
    for (int m = 0; m < 64; ++m)
        for (int e = 0; e < k; ++e)
            p->A[m][e] =
                small ? bits_of(f->a, (int)(rq_rand_u32(rng) % 9) - (f->a == U8 ? 0 : 4)) : random_bits(f->a, rng);
    for (int n = 0; n < f->n; ++n)
        for (int e = 0; e < k; ++e)
            p->B[n][e] =
                small ? bits_of(f->b, (int)(rq_rand_u32(rng) % 9) - (f->b == U8 ? 0 : 4)) : random_bits(f->b, rng);
    for (int m = 0; m < 64; ++m)
        for (int n = 0; n < f->n; ++n) {
            int t, r, s;
            p->C[m][n] = small ? bits_of(f->d, (int)(rq_rand_u32(rng) % 201) - 100) : random_bits(f->d, rng);
            d_place(m, n, f->d == F16, &t, &r, &s);
            p->c_regs[r * 128 + t] |= p->C[m][n] << s;
        }
    for (int i = 0; i < SHARED; ++i) p->image[i] = (uint8_t)(i * 37 + 11);
    if (f->a_swizzle >= 0)
        place_operand(p->image, (const uint32_t(*)[32])p->A, 64, k, bytes, f->a_mn, f->a_swizzle, f->step);
    place_operand(p->image + HALF_SHARED, (const uint32_t(*)[32])p->B, f->n, k, bytes, f->b_mn, f->b_swizzle, f->step);
    for (int w = 0; w < 4; ++w) /* A in registers: as for mma m16n8k16 */
        for (int l = 0; l < 32; ++l)
            for (int r = 0; r < 4; ++r)
                for (int j = 0; j < 4 / bytes; ++j)
                    p->a_regs[r * 128 + w * 32 + l] |=
                        p->A[w * 16 + l / 4 + 8 * (r & 1)][(l % 4 + 4 * (r >> 1)) * (4 / bytes) + j] << (8 * bytes * j);
    int start = f->step * 32; /* a step along K inside the swizzled row; with rows of `swizzle` bytes, whole tiles */
    int a_start =
        f->a_swizzle > 0 ? start / f->a_swizzle * 64 * f->a_swizzle + start % f->a_swizzle : f->step * 2 * 64 * 16;
    int b_start =
        f->b_swizzle > 0 ? start / f->b_swizzle * f->n * f->b_swizzle + start % f->b_swizzle : f->step * 2 * f->n * 16;
    p->a_desc = descriptor(f->a_mn ? 0 : a_start, 64, f->a_mn, f->a_swizzle);
    p->b_desc = descriptor(HALF_SHARED + (f->b_mn ? 0 : b_start), f->n, f->b_mn, f->b_swizzle);
}

static void compare(const form *f, const problem *p, const uint32_t *out, bool small, const char *name) {
    static double values[64 * 256];
    static int32_t words[64 * 256];
    double worst = 0;
    long failures = rq_test.failures;
    for (int m = 0; m < 64; ++m)
        for (int n = 0; n < f->n; ++n) {
            int t, r, shift, at_ = m * f->n + n;
            d_place(m, n, f->d == F16, &t, &r, &shift);
            uint32_t got = out[r * 128 + t] >> shift & (f->d == F16 ? 0xffffu : 0xffffffffu);
            double s = f->scale_d ? value_of(f->d, p->C[m][n]) : 0, size = fabs(s);
            for (int k = 0; k < elements_k(f); ++k) { /* integers fit a double */
                double x = value_of(f->a, p->A[m][k]) * value_of(f->b, p->B[n][k]);
                s += f->negate_a != f->negate_b ? -x : x;
                size += fabs(x);
            }
            if (f->d == S32) {
                if (f->saturate) s = s > INT32_MAX ? INT32_MAX : s < INT32_MIN ? INT32_MIN : s;
                EXPECT_EQ_AT(at_, (int32_t)got, (int32_t)(uint32_t)(int64_t)s);
                words[at_] = (int32_t)got;
                continue;
            }
            double v = value_of(f->d, got);
            double bound = small ? 0 : size * (elem_bytes[f->a] == 1 ? 0x1p-11 : f->d == F16 ? 0x1p-10 : 0x1p-20);
            values[at_] = v;
            if (f->d == F16 && fabs(s) + bound >= 65504) {
                values[at_] = 0;
                continue;
            }
            EXPECT_NEAR_AT(at_, v, s, bound);
            if (bound > worst) worst = bound;
        }
    if (rq_test.failures != failures) fprintf(stderr, "  these were of %s\n", name);
    if (f->d == S32)
        rq_record(name, RQ_I32, words, (size_t)f->n * 64, 0);
    else
        rq_record(name, RQ_F64, values, (size_t)f->n * 64, 2 * worst);
}

static void run(const problem *p, int nd, int scale_d, uint32_t *out, bool *ok) {
    rq_ptx *m = rq_ptx_load(text);
    void *image = rq_device_copy(p->image, SHARED), *pa = rq_device_copy(p->a_regs, sizeof p->a_regs);
    void *pc = rq_device_copy(p->c_regs, (size_t)nd * 512), *pd = rq_device_buffer((size_t)nd * 512);
    uint64_t qa = p->a_desc, qb = p->b_desc;
    uint32_t scale = (uint32_t)scale_d;
    void *args[] = {&image, &qa, &qb, &pa, &pc, &pd, &scale};
    bool good = rq_ptx_try_launch(m, "k", 1, 128, SHARED, args);
    if (ok)
        *ok = good;
    else if (!good)
        RQ_DIE("the kernel did not run rightly");
#ifdef RQ_TEST_SIM
    good = true; /* a finding is no fault */
#endif
    if (good) rq_device_read(out, pd, (size_t)nd * 512);
    rq_device_free_all();
    rq_ptx_unload(m);
}

static problem problem_;
static uint32_t out[128 * 128];

static void try_form(const form *f, rq_rng *rng) {
    for (int small = 1; small >= 0; --small) {
        int nd = registers_d(f);
        make_problem(f, &problem_, small, rng);
        head(nd, f->d, "");
        proxy_fence();
        TEXT("bar.sync 0;\nwgmma.fence.sync.aligned;\n");
        write_wgmma(f);
        TEXT("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n");
        tail(nd, f->d);
        run(&problem_, nd, f->scale_d, out, NULL);
        char name[200];
        snprintf(name, sizeof name, "m64n%dk%d%s.%s.%s.%s A %d%s B %d%s scale %d %d %d step %d%s", f->n, elements_k(f),
                 f->saturate ? ".satfinite" : "", elem_name[f->d], elem_name[f->a], elem_name[f->b], f->a_swizzle,
                 f->a_mn ? " MN" : "", f->b_swizzle, f->b_mn ? " MN" : "", f->scale_d, f->negate_a, f->negate_b,
                 f->step, small ? " small" : "");
        compare(f, &problem_, out, small, name);
    }
}

static void forms(rq_rng *rng) {
    static const form types[] = {
        {.n = 64, .a = F16, .b = F16, .d = F32},
        {.n = 64, .a = F16, .b = F16, .d = F16},
        {.n = 64, .a = BF16, .b = BF16, .d = F32},
        {.n = 64, .a = TF32, .b = TF32, .d = F32},
        {.n = 64, .a = E4M3, .b = E4M3, .d = F32},
        {.n = 64, .a = E4M3, .b = E5M2, .d = F16},
        {.n = 64, .a = E5M2, .b = E4M3, .d = F32},
        {.n = 64, .a = E5M2, .b = E5M2, .d = F16},
        {.n = 64, .a = S8, .b = S8, .d = S32},
        {.n = 64, .a = S8, .b = U8, .d = S32},
        {.n = 64, .a = U8, .b = S8, .d = S32},
        {.n = 64, .a = U8, .b = U8, .d = S32},
        {.n = 64, .a = S8, .b = S8, .d = S32, .saturate = true},
    };
    static const int swizzles[] = {0, 32, 64, 128};
    for (size_t t = 0; t < sizeof types / sizeof *types; ++t) {
        form f = types[t];
        for (int s = 0; s < 4; ++s) { /* the swizzles; A in registers now and then; the four steps of K */
            f.a_swizzle = (s + (int)t) % 5 == 4 ? -1 : swizzles[s];
            f.b_swizzle = swizzles[s];
            f.step = (s + (int)t) % 4;
            f.scale_d = s % 2;
            f.negate_a = f.d != S32 && s == 1;
            f.negate_b = f.d != S32 && s >= 1 && t % 2;
            try_form(&f, rng);
        }
        f.a_swizzle = -1;
        f.scale_d = 1;
        try_form(&f, rng);
    }
    for (int n = 8; n <= 128; n += n < 32 ? 8 : 16) { /* every row of B in reach: 16 KiB hold 128 of them */
        form f = {.n = n, .a = S8, .b = S8, .d = S32, .a_swizzle = 128, .b_swizzle = 128, .scale_d = 1};
        try_form(&f, rng);
        form h = {.n = n, .a = BF16, .b = BF16, .d = F32, .a_swizzle = 64, .b_swizzle = 64, .scale_d = 1, .step = 1};
        try_form(&h, rng);
    }
    static const int wide[] = {40, 136, 200, 248, 256};
    for (int k = 0; k < 5; ++k) {
        form f = {
            .n = wide[k], .a = F16, .b = F16, .d = k % 2 ? F16 : F32, .a_swizzle = 32, .b_swizzle = 32, .scale_d = 1};
        try_form(&f, rng);
    }
    form widest = {.n = 256, .a = U8, .b = S8, .d = S32, .a_swizzle = 128, .b_swizzle = 64, .scale_d = 0};
    try_form(&widest, rng);
    for (int s = 0; s < 4; ++s) /* MN-major: A, B, both; several tiles along N and M */
        for (int which = 1; which < 4; ++which) {
            form f = {.n = s == 3 ? 128 : 96, .a = which == 2 ? BF16 : F16, .d = F32, .scale_d = 1};
            if (s == 0 && which == 1) f.n = 8;
            f.b = f.a;
            f.a_mn = which & 1;
            f.b_mn = which >> 1;
            f.a_swizzle = swizzles[s];
            f.b_swizzle = f.b_mn && s == 2 ? 32 : swizzles[s];
            try_form(&f, rng);
        }
    form mixed = {.n = 64, .a = F16, .b = F16, .d = F16, .a_swizzle = -1, .b_swizzle = 128, .b_mn = true, .scale_d = 1};
    try_form(&mixed, rng);
}

/* Several wgmma in order on the same accumulators: K steps of one tile without a fence between them, two groups, a wait that
 * leaves one in flight. D = C + A (B0 + B1 + B2 + B3) with the four steps of a 128-byte tile holding the same A. */
static void chain(rq_rng *rng) {
    form f = {.n = 64, .a = S8, .b = S8, .d = S32, .a_swizzle = 128, .b_swizzle = 128, .scale_d = 1};
    make_problem(&f, &problem_, false, rng);
    static uint8_t A[64][TILE_K], B[64][TILE_K];
    rq_rand_bytes(rng, A, sizeof A);
    rq_rand_bytes(rng, B, sizeof B);
    for (int m = 0; m < 64; ++m)
        for (int k = 0; k < TILE_K; ++k) {
            problem_.image[in_tile(m, k, 128)] = A[m][k];
            problem_.image[HALF_SHARED + in_tile(m, k, 128)] = B[m][k];
        }
    head(32, S32, "");
    proxy_fence();
    TEXT("bar.sync 0;\nwgmma.fence.sync.aligned;\n");
    for (int step = 0; step < 4; ++step) {
        write_wgmma(&f);
        TEXT("add.u64 %%p1, %%p1, 2;\nadd.u64 %%p2, %%p2, 2;\n");
        if (step == 1) TEXT("wgmma.commit_group.sync.aligned;\n");
        if (step == 2) TEXT("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;\n");
    }
    TEXT("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n");
    tail(32, S32);
    run(&problem_, 32, 1, out, NULL);
    for (int m = 0; m < 64; ++m)
        for (int n = 0; n < 64; ++n) {
            int t, r, shift;
            d_place(m, n, false, &t, &r, &shift);
            uint32_t s = problem_.C[m][n];
            for (int k = 0; k < TILE_K; ++k) s += (uint32_t)((int8_t)A[m][k] * (int8_t)B[n][k]);
            EXPECT_EQ_AT(m * 64 + n, (int32_t)out[r * 128 + t], (int32_t)s);
        }
}

#ifdef RQ_TEST_SIM
static char seen[400];
static void sink(void *user, const char *kind, const char *finding) {
    (void)user;
    (void)finding;
    if (!strstr(seen, kind)) snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "%s;", kind);
}
static const form small_form = {.n = 8, .a = F16, .b = F16, .d = F32, .a_swizzle = 128, .b_swizzle = 128, .scale_d = 1};
static const form register_form = {
    .n = 8, .a = F16, .b = F16, .d = F32, .a_swizzle = -1, .b_swizzle = 128, .scale_d = 1};

/* A kernel made of the usual head, `body` and the usual tail: this kind must be found, or nothing. */
static void wrong(const char *what, const form *f, const char *body, const char *kinds) {
    bool ok;
    rq_rng rng = {3};
    make_problem(f, &problem_, true, &rng);
    head(4, F32, ".reg .f32 %e<4>; .reg .b64 %y<4>;\n");
    for (const char *s = body; *s; ++s) {
        switch (*s) {
        case 'P': proxy_fence(); break;
        case 'B': TEXT("bar.sync 0;\n"); break;
        case 'F': TEXT("wgmma.fence.sync.aligned;\n"); break;
        case 'M': write_wgmma(f); break;
        case 'C': TEXT("wgmma.commit_group.sync.aligned;\n"); break;
        case '0': TEXT("wgmma.wait_group.sync.aligned 0;\n"); break;
        case '1': TEXT("wgmma.wait_group.sync.aligned 1;\n"); break;
        case 'r': TEXT("add.f32 %%e0, %%d1, 0f3f800000;\n"); break;          /* reads an accumulator */
        case 'w': TEXT("add.f32 %%d0, %%e0, 0f3f800000;\n"); break;          /* writes one */
        case 'a': TEXT("add.u32 %%a1, %%a1, 1;\n"); break;                   /* writes a part of A */
        case 'u': TEXT("add.u32 %%t6, %%a1, 1;\n"); break;                   /* reads it */
        case 'm': TEXT("mov.f32 %%e0, %%d0;\nmov.f32 %%e1, %%d1;\n"); break; /* copies accumulators */
        case 'b': TEXT("mov.f32 %%d0, %%e0;\nmov.f32 %%d1, %%e1;\n"); break; /* and back */
        case 'z': TEXT("mov.f32 %%d0, 0f00000000;\n"); break;
        case 'x': TEXT("ret;\n"); break;
        case 'S':
            TEXT("setp.eq.u32 %%q1, %%t0, 0;\n@%%q1 st.shared.u32 [%%t1+%d], %%t0;\n", HALF_SHARED);
            break; /* B */
        case 'h':
            TEXT("wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%%d0,%%d1,%%d2,%%d3}, %%p1, %%p2, %%q0, 1, 1;\n");
            break;
        case 'd': TEXT("and.b32 %%t6, %%t0, 32;\ncvt.u64.u32 %%y0, %%t6;\nadd.u64 %%p2, %%p2, %%y0;\n"); break;
        case 'l': TEXT("setp.lt.u32 %%q1, %%t0, 64;\n@%%q1 bra skip;\n"); break; /* two warps leave */
        case 'k': TEXT("skip:\n"); break;
        default: RQ_DIE("body '%c'", *s);
        }
    }
    tail(4, F32);
    seen[0] = 0;
    gs_findings_reset();
    gs_findings_sink(sink, NULL);
    run(&problem_, 4, 1, out, &ok);
    gs_findings_sink(NULL, NULL);
    bool found = kinds[0] ? strstr(seen, kinds) != NULL : !seen[0]; /* one mistake can have several consequences */
    EXPECT(found && ok == !kinds[0]);
    if (!found) fprintf(stderr, "  %s (%s): found '%s', expected '%s'\n", what, body, seen, kinds);
}
static void checks(void) {
    wrong("right", &small_form, "PBFMC0", "");
    wrong("right, A in registers", &register_form, "PBFMC0", "");
    wrong("two, one fence", &small_form, "PBFMMC0", "");
    wrong("a group stays, accumulators go on", &small_form, "PBFMCFMC1FMC0", "");
    wrong("no fence", &small_form, "PBMC0", "missing wgmma.fence");
    wrong("no wait", &small_form, "PBFMC", "wgmma not waited for");
    EXPECT_EQ(out[5], 0x7fc0dead); /* no result to be had */
    wrong("no commit", &small_form, "PBFM0", "wgmma not waited for");
    wrong("wait leaves it", &small_form, "PBFMC1", "wgmma not waited for");
    wrong("the second is not committed", &small_form, "PBFMCM0", "wgmma not waited for");
    wrong("read when the wait has left it", &small_form, "PBFMCFMC1r0", "wgmma not waited for");
    wrong("ends with one in flight", &small_form, "PBFMCx", "wgmma not waited for");
    wrong("read too early", &small_form, "PBFMrC0", "wgmma not waited for");
    wrong("written too early", &small_form, "PBFMCw0", "wgmma not waited for");
    wrong("written between fence and wgmma", &small_form, "PBFwMC0", "missing wgmma.fence");
    wrong("zeroed by a mov between fence and wgmma", &small_form, "PBFzMC0", "");
    wrong("read after the wait, then again without a fence", &small_form, "PBFMC0rMC0", "missing wgmma.fence");
    wrong("read after the wait, fence", &small_form, "PBFMC0rFMC0", "");
    wrong("copied by mov and back in flight", &small_form, "PBFMmbMC0", "");
    wrong("the copy is read too early", &small_form, "PBFMmC0", "");
    wrong("A changed in flight", &register_form, "PBFMaC0", "wgmma not waited for");
    wrong("A read in flight", &register_form, "PBFMuC0", "");
    wrong("A changed after the wait, no fence", &register_form, "PBFMC0aMC0", "missing wgmma.fence");
    wrong("A changed between fence and wgmma", &register_form, "PBFaMC0", "");
    wrong("A changed after the wait", &register_form, "PBFMC0aFMC0", "");
    wrong("other shape in flight", &small_form, "PBFMhC0", "wgmma not waited for");
    wrong("other shape after the wait", &small_form, "PBFMC0FhC0", "");
    wrong("no proxy fence", &small_form, "BFMC0", "missing proxy fence");
    wrong("the tile is overwritten in flight", &small_form, "PBFMCS0", "wgmma not waited for");
    wrong("the tile is overwritten after the wait of its own warp", &small_form, "PBFMC0S", "shared memory race");
    wrong("the tile is overwritten after all have waited", &small_form, "PBFMC0BS", "");
    wrong("no barrier before wgmma", &small_form, "PFMC0", "shared memory race");
    wrong("descriptors differ", &small_form, "PBdFMC0", "warps of a warpgroup differ");
    wrong("two warps only", &small_form, "PBlFMC0k", "warps of a warpgroup differ");
}
#endif

int main(void) {
    rq_need_device(90);
    rq_rng rng = {64};
    forms(&rng);
    chain(&rng);
#ifdef RQ_TEST_SIM
    checks();
#endif
    return rq_done(__FILE__);
}
