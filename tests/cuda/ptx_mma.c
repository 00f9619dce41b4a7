/* SPDX-License-Identifier: Apache-2.0 */
/* mma.sync: every shape and type, against a plain loop over matrices. The fragments are filled element by element from the
 * lists of rows and columns in PTX ISA 9.7.14.5, so that a wrong layout shows. Two sets of numbers: small integers, for
 * which every order and width of summation gives the same floats, and random ones within a bound (fp8 sums of sm_90 keep
 * about 13 bits). Integers are random and must be equal.
 * Targets: sm_90a */
#include "ptxtest.h"

enum elem { F16, BF16, TF32, E4M3, E5M2, S8, U8, S4, U4, F64, F32, S32 };
static const char *const elem_name[] = {"f16", "bf16", "tf32", "e4m3", "e5m2", "s8",
                                        "u8",  "s4",   "u4",   "f64",  "f32",  "s32"};
static const int elem_bits[] = {16, 16, 32, 8, 8, 8, 8, 4, 4, 64, 32, 32};

typedef struct form {
    int m, k;
    enum elem a, b, d;
    const char *modifier; /* between .col and the types */
    const char *version;
} form;

static const form forms[] = {
    {16, 16, F16, F16, F32, "", "8.0"},
    {16, 16, F16, F16, F16, "", "8.0"},
    {16, 16, BF16, BF16, F32, "", "8.0"},
    {16, 8, F16, F16, F32, "", "8.0"},
    {16, 8, F16, F16, F16, "", "8.0"},
    {16, 8, BF16, BF16, F32, "", "8.0"},
    {16, 8, TF32, TF32, F32, "", "8.0"},
    {16, 4, TF32, TF32, F32, "", "8.0"},
    {16, 32, E4M3, E4M3, F32, "", "8.4"},
    {16, 32, E4M3, E5M2, F32, "", "8.4"},
    {16, 32, E5M2, E4M3, F32, "", "8.4"},
    {16, 32, E5M2, E5M2, F32, "", "8.4"},
    {16, 32, E4M3, E4M3, F16, "", "8.7"},
    {16, 16, E4M3, E5M2, F32, "", "8.7"},
    {16, 16, E5M2, E4M3, F16, "", "8.7"},
    {8, 16, S8, S8, S32, "", "8.0"},
    {8, 16, U8, S8, S32, ".satfinite", "8.0"},
    {16, 16, S8, S8, S32, "", "8.0"},
    {16, 16, S8, U8, S32, ".satfinite", "8.0"},
    {16, 16, U8, U8, S32, "", "8.0"},
    {16, 32, S8, S8, S32, "", "8.0"},
    {16, 32, S8, U8, S32, "", "8.0"},
    {16, 32, U8, S8, S32, "", "8.0"},
    {16, 32, U8, U8, S32, "", "8.0"},
    {16, 32, S8, S8, S32, ".satfinite", "8.0"},
    {16, 32, U8, U8, S32, ".satfinite", "8.0"},
    {8, 32, S4, S4, S32, "", "8.0"},
    {16, 32, U4, S4, S32, "", "8.0"},
    {16, 64, S4, U4, S32, "", "8.0"},
    {16, 64, S4, S4, S32, ".satfinite", "8.0"},
    {8, 4, F64, F64, F64, "", "8.0"},
    {16, 4, F64, F64, F64, "", "8.0"},
    {16, 8, F64, F64, F64, "", "8.0"},
    {16, 16, F64, F64, F64, "", "8.0"},
};
enum { FORMS = sizeof forms / sizeof forms[0] };

/* ------------------------------------------------------------------ elements */
static double fp8_value(unsigned v, int fraction_bits, int bias) {
    int e = (int)(v >> fraction_bits & ((1u << (7 - fraction_bits)) - 1)), f = (int)(v & ((1u << fraction_bits) - 1));
    double x = e ? ldexp(f + (1 << fraction_bits), e - bias - fraction_bits) : ldexp(f, 1 - bias - fraction_bits);
    return v & 0x80 ? -x : x;
}
static double value_of(enum elem t, uint64_t bits) {
    double x;
    switch (t) {
    case F16: return (double)rq_half_value((uint16_t)bits);
    case BF16: return (double)rq_bf16_value((uint16_t)bits);
    case TF32: return (double)rq_float_of_bits((uint32_t)bits & 0xffffe000u);
    case F32: return (double)rq_float_of_bits((uint32_t)bits);
    case E4M3: return fp8_value((unsigned)bits, 3, 7);
    case E5M2: return fp8_value((unsigned)bits, 2, 15);
    case S8: return (double)(int8_t)bits;
    case S4: return (double)((int)(bits & 7) - (int)(bits & 8));
    case S32: return (double)(int32_t)bits;
    case F64: memcpy(&x, &bits, 8); return x;
    default: return (double)bits;
    }
}
/* The bits of a small integer. */
static uint64_t bits_of(enum elem t, int v) {
    uint64_t u;
    double x = v;
    switch (t) {
    case F16: return rq_half_bits((float)v);
    case BF16: return rq_bf16_bits((float)v);
    case TF32:
    case F32: return rq_bits_of_float((float)v);
    case F64: memcpy(&u, &x, 8); return u;
    case E4M3:
    case E5M2: /* found by trying */
        for (u = 0; u < 256; ++u)
            if (value_of(t, u) == (double)v) return u;
        RQ_DIE("%d has no fp8", v);
    default: return (uint64_t)(int64_t)v;
    }
}
static uint64_t random_bits(enum elem t, rq_rng *r) {
    uint32_t u = rq_rand_u32(r);
    double x = (double)rq_rand_float(r);
    uint64_t v;
    switch (t) {
    case F16: return rq_half_bits((float)x);
    case BF16: return rq_bf16_bits((float)x);
#ifdef RQ_TEST_SIM /* what the low bits do is not documented: a GPU gets none */
    case TF32: return rq_bits_of_float((float)x);
#else
    case TF32: return rq_bits_of_float((float)x) & 0xffffe000u;
#endif
    case F32: return rq_bits_of_float((float)x);
    case F64: memcpy(&v, &x, 8); return v;
    case E4M3: return (u & 0x7f) == 0x7f ? 0x33 : u & 0xff;
    case E5M2: return (u & 0x7c) == 0x7c ? 0x33 : u & 0xff;
    default: return elem_bits[t] == 32 ? u : u & ((1u << elem_bits[t]) - 1);
    }
}

/* ------------------------------------------------------------------ fragments: element i of lane l */
static void a_place(const form *f, int l, int i, int *row, int *col) {
    int g = l >> 2, t = l & 3;
    switch (elem_bits[f->a] * 1000 + f->m * 16 + f->k) {
    case 16000 + 16 * 16 + 8: *row = i < 2 ? g : g + 8, *col = t * 2 + (i & 1); break;
    case 16000 + 16 * 16 + 16:
        *row = i < 2 || (i >= 4 && i < 6) ? g : g + 8;
        *col = i < 4 ? t * 2 + (i & 1) : t * 2 + (i & 1) + 8;
        break;
    case 32000 + 16 * 16 + 4: *row = i == 0 ? g : g + 8, *col = t; break;
    case 32000 + 16 * 16 + 8: *row = i == 0 || i == 2 ? g : g + 8, *col = i < 2 ? t : t + 4; break;
    case 8000 + 8 * 16 + 16: *row = g, *col = t * 4 + i; break;
    case 8000 + 16 * 16 + 16: *row = i < 4 ? g : g + 8, *col = t * 4 + (i & 3); break;
    case 8000 + 16 * 16 + 32:
        *row = i < 4 || (i >= 8 && i < 12) ? g : g + 8;
        *col = i < 8 ? t * 4 + (i & 3) : t * 4 + (i & 3) + 16;
        break;
    case 4000 + 8 * 16 + 32: *row = g, *col = t * 8 + i; break;
    case 4000 + 16 * 16 + 32: *row = i < 8 ? g : g + 8, *col = t * 8 + (i & 7); break;
    case 4000 + 16 * 16 + 64:
        *row = i < 8 || (i >= 16 && i < 24) ? g : g + 8;
        *col = i < 16 ? t * 8 + (i & 7) : t * 8 + (i & 7) + 32;
        break;
    case 64000 + 8 * 16 + 4: *row = g, *col = t; break;
    default: *row = i % 2 == 0 ? g : g + 8, *col = i * 2 - (i % 2) * 2 + t; break; /* f64 */
    }
}
static void b_place(const form *f, int l, int i, int *k, int *col) {
    int t = l & 3;
    *col = l >> 2;
    switch (elem_bits[f->b]) {
    case 16: *k = i < 2 ? t * 2 + (i & 1) : t * 2 + (i & 1) + 8; break;
    case 8: *k = i < 4 ? t * 4 + i : t * 4 + (i & 3) + 16; break;
    case 4: *k = i < 8 ? t * 8 + i : t * 8 + (i & 7) + 32; break;
    default: *k = t + i * 4; break;
    }
}

typedef struct fragment { /* per lane: registers of 32 bits, or 64 for f64; as bytes, register by register */
    uint8_t bytes[32][64];
    int per_lane; /* bytes */
} fragment;
static void put(fragment *f, int lane, int i, int bits, uint64_t v) {
    if (bits == 4) {
        f->bytes[lane][i / 2] = (uint8_t)(f->bytes[lane][i / 2] | (v & 15) << (4 * (i & 1)));
        return;
    }
    memcpy(&f->bytes[lane][i * bits / 8], &v, (size_t)bits / 8);
}

/* ------------------------------------------------------------------ the kernel */
static char text[8192];
static int at;
#define TEXT(...) (at += snprintf(text + at, sizeof text - (size_t)at, __VA_ARGS__))

/* Lane l finds register r of an operand at 32 r + l. */
static void registers(const char *op, const char *reg, const char *type, int n, int bytes, const char *pointer) {
    for (int r = 0; r < n; ++r) {
        if (op[0] == 'l')
            TEXT("ld.global.%s %s%d, [%s+%d];\n", type, reg, r, pointer, r * 32 * bytes);
        else
            TEXT("st.global.%s [%s+%d], %s%d;\n", type, pointer, r * 32 * bytes, reg, r);
    }
}
static void list(const char *reg, int n) {
    for (int r = 0; r < n; ++r) TEXT("%s%s%d", r ? "," : "{", reg, r);
    TEXT("}");
}
static const char *register_type(enum elem t) { return t == F64 ? "f64" : t == F32 ? "f32" : "b32"; }

static void write_kernel(const form *f, int na, int nb, int nd) {
    int bytes = f->a == F64 ? 8 : 4;
    const char *ta = register_type(f->a), *td = register_type(f->d);
    at = 0;
    TEXT(".version %s\n.target sm_90a\n.address_size 64\n", f->version);
    TEXT(".visible .entry k(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u64 pd)\n{\n");
    TEXT(".reg .%s %%a<8>; .reg .%s %%b<4>; .reg .%s %%c<4>; .reg .%s %%d<4>; .reg .b64 %%p<5>; .reg .b32 %%t;\n", ta,
         ta, td, td);
    TEXT("mov.u32 %%t, %%tid.x;\nmul.wide.u32 %%p4, %%t, %d;\n", bytes);
    for (int k = 0; k < 4; ++k)
        TEXT("ld.param.u64 %%p%d, [p%c];\ncvta.to.global.u64 %%p%d, %%p%d;\nadd.u64 %%p%d, %%p%d, %%p4;\n", k, 'a' + k,
             k, k, k, k);
    registers("ld", "%a", ta, na, bytes, "%p0");
    registers("ld", "%b", ta, nb, bytes, "%p1");
    registers("ld", "%c", td, nd, bytes, "%p2");
    TEXT("mma.sync.aligned.m%dn8k%d.row.col%s.%s.%s.%s.%s ", f->m, f->k, f->modifier, elem_name[f->d], elem_name[f->a],
         elem_name[f->b], elem_name[f->d]);
    list("%d", nd);
    TEXT(", ");
    list("%a", na);
    TEXT(", ");
    list("%b", nb);
    TEXT(", ");
    list("%c", nd);
    TEXT(";\n");
    registers("st", "%d", td, nd, bytes, "%p3");
    TEXT("ret;\n}\n");
}

/* Lane-major bytes -> register-major words, as the kernel wants them. */
static void *upload(const fragment *f, int regs, int bytes) {
    uint8_t image[8 * 32 * 8];
    for (int r = 0; r < regs; ++r)
        for (int l = 0; l < 32; ++l) memcpy(image + (r * 32 + l) * bytes, &f->bytes[l][r * bytes], (size_t)bytes);
    return rq_device_copy(image, (size_t)regs * 32 * (size_t)bytes);
}

static void try_form(const form *f, bool small, rq_rng *rng) {
    uint64_t A[16][64], B[64][8], C[16][8];
    bool integer = f->d == S32;
    for (int r = 0; r < f->m; ++r)
        for (int k = 0; k < f->k; ++k)
            A[r][k] = small ? bits_of(f->a, (int)(rq_rand_u32(rng) % 9) - (f->a == U8 || f->a == U4 ? 0 : 4))
                            : random_bits(f->a, rng);
    for (int k = 0; k < f->k; ++k)
        for (int c = 0; c < 8; ++c)
            B[k][c] = small ? bits_of(f->b, (int)(rq_rand_u32(rng) % 9) - (f->b == U8 || f->b == U4 ? 0 : 4))
                            : random_bits(f->b, rng);
    for (int r = 0; r < f->m; ++r)
        for (int c = 0; c < 8; ++c) {
            C[r][c] = small ? bits_of(f->d, (int)(rq_rand_u32(rng) % 201) - 100) : random_bits(f->d, rng);
            if (integer && !small && rq_rand_u32(rng) % 2) /* near the ends: wraps around, or is clamped */
                C[r][c] = rq_rand_u32(rng) % 2 ? 0x7ffffff0u : 0x80000010u;
        }

    fragment fa = {{{0}}, 0}, fb = {{{0}}, 0}, fc = {{{0}}, 0};
    int bits = elem_bits[f->a], dbits = elem_bits[f->d], word = f->a == F64 ? 8 : 4;
    int a_each = f->m * f->k / 32, b_each = 8 * f->k / 32, c_each = f->m * 8 / 32, x, y;
    for (int l = 0; l < 32; ++l) {
        for (int i = 0; i < a_each; ++i) a_place(f, l, i, &x, &y), put(&fa, l, i, bits, A[x][y]);
        for (int i = 0; i < b_each; ++i) b_place(f, l, i, &x, &y), put(&fb, l, i, bits, B[x][y]);
        for (int i = 0; i < c_each; ++i) put(&fc, l, i, dbits, C[(l >> 2) + (i < 2 ? 0 : 8)][(l & 3) * 2 + (i & 1)]);
    }
    int na = a_each * bits / 8 / word, nb = b_each * bits / 8 / word, nd = c_each * dbits / 8 / word;
    write_kernel(f, na, nb, nd);
    rq_ptx *m = rq_ptx_load(text);
    void *da = upload(&fa, na, word), *db = upload(&fb, nb, word), *dc = upload(&fc, nd, word);
    size_t out_bytes = (size_t)nd * 32 * (size_t)word;
    void *dd = rq_device_buffer(out_bytes), *args[] = {&da, &db, &dc, &dd};
    rq_ptx_launch(m, "k", 1, 32, 0, args);
    uint8_t out[4 * 32 * 8];
    rq_device_read(out, dd, out_bytes);

    long failures = rq_test.failures;
    double values[16 * 8], worst = 0;
    int32_t words[16 * 8];
    for (int l = 0; l < 32; ++l)
        for (int i = 0; i < c_each; ++i) {
            int r = (l >> 2) + (i < 2 ? 0 : 8), c = (l & 3) * 2 + (i & 1), byte = i * dbits / 8;
            uint64_t got = 0;
            memcpy(&got, out + (byte / word * 32 + l) * word + byte % word, (size_t)dbits / 8);
            if (integer) {
                int64_t s = 0;
                for (int k = 0; k < f->k; ++k) s += (int64_t)value_of(f->a, A[r][k]) * (int64_t)value_of(f->b, B[k][c]);
                s += (int32_t)C[r][c];
                if (f->modifier[0]) s = s > INT32_MAX ? INT32_MAX : s < INT32_MIN ? INT32_MIN : s;
                EXPECT_EQ_AT(r * 8 + c, (int32_t)got, (int32_t)(uint32_t)s);
                words[r * 8 + c] = (int32_t)got;
                continue;
            }
            long double s = (long double)value_of(f->d, C[r][c]), size = fabsl(s);
            for (int k = 0; k < f->k; ++k) {
                long double p = (long double)value_of(f->a, A[r][k]) * (long double)value_of(f->b, B[k][c]);
                s += p;
                size += fabsl(p);
            }
            double bound = bits == 8 ? 0x1p-11 : f->d == F64 ? 0x1p-51 : f->d == F16 ? 0x1p-10 : 0x1p-20;
            bound = small ? 0 : (double)size * bound;
            double v = value_of(f->d, got), want = (double)s;
            if (f->d == F16 && fabs(want) + bound >= 65504) continue; /* out of range: infinite or not */
            EXPECT_NEAR_AT(r * 8 + c, v, want, bound);
            values[r * 8 + c] = v;
            if (bound > worst) worst = bound;
        }
    char name[120];
    snprintf(name, sizeof name, "m%dn8k%d%s.%s.%s.%s%s", f->m, f->k, f->modifier, elem_name[f->d], elem_name[f->a],
             elem_name[f->b], small ? " small" : "");
    if (rq_test.failures != failures) fprintf(stderr, "  these were of %s\n", name);
    if (integer)
        rq_record(name, RQ_I32, words, (size_t)f->m * 8, 0);
    else if (small || f->d != F16)
        rq_record(name, RQ_F64, values, (size_t)f->m * 8, 2 * worst);
    rq_device_free(da), rq_device_free(db), rq_device_free(dc), rq_device_free(dd);
    rq_ptx_unload(m);
}

#ifdef RQ_TEST_SIM
static char seen[64];
static void sink(void *user, const char *kind, const char *finding) {
    (void)user;
    (void)finding;
    snprintf(seen, sizeof seen, "%s", kind);
}
/* An instruction that is not implemented stops the launch, and the reason names it. */
static void refused(const char *instruction, const char *why) {
    at = 0;
    TEXT(RQ_PTX_HEAD ".visible .entry k()\n{\n.reg .b32 %%r<20>; .reg .f32 %%f<20>;\n%s\nret;\n}\n", instruction);
    rq_ptx *m = rq_ptx_load(text);
    gs_findings_sink(sink, NULL);
    bool ran = rq_ptx_try_launch(m, "k", 1, 32, 0, NULL);
    gs_findings_sink(NULL, NULL);
    EXPECT(!ran && strstr(gs_error(), why) != NULL);
    if (!strstr(gs_error(), why)) fprintf(stderr, "  %s: %s\n", instruction, gs_error());
    rq_ptx_unload(m);
}
/* What the simulator must not take, and a warp that is not whole. */
static void refusals(void) {
    refused("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3,%f4,%f5,%f6,%f7}, {%r0,%r1}, {%r2,%r3}, "
            "{%f0,%f1,%f2,%f3,%f4,%f5,%f6,%f7};",
            "m8n8k4");
    refused("mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32 {%f0,%f1,%f2,%f3}, {%r0,%r1,%r2,%r3}, {%r4,%r5}, "
            "{%f0,%f1,%f2,%f3};",
            ".row.col");
    refused("mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32 {%f0,%f1,%f2,%f3}, {%r0,%r1,%r2,%r3}, {%r4,%r5}, "
            "{%f0,%f1,%f2,%f3};",
            "mix");
    refused(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3}, {%r0,%r1}, {%r4,%r5}, {%f0,%f1,%f2,%f3};",
        "needs 4 registers");
    refused(
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.xor.popc {%r0,%r1,%r2,%r3}, {%r0,%r1,%r2,%r3}, {%r4,%r5}, "
        "{%r0,%r1,%r2,%r3};",
        "shape");
    refused("mma.sync.aligned.m16n8k8.row.col.s32.s8.s8.s32 {%r0,%r1,%r2,%r3}, {%r4,%r5}, {%r6}, {%r0,%r1,%r2,%r3};",
            "no such type");
    write_kernel(&forms[0], 4, 2, 4);
    rq_ptx *m = rq_ptx_load(text);
    void *buffer = rq_device_buffer(4096), *args[] = {&buffer, &buffer, &buffer, &buffer};
    gs_findings_sink(sink, NULL);
    EXPECT(!rq_ptx_try_launch(m, "k", 1, 16, 0, args));
    EXPECT(!strcmp(seen, "warp collective without all lanes"));
    gs_findings_sink(NULL, NULL);
    rq_ptx_unload(m);
}
#endif

int main(void) {
    rq_need_device(90);
    rq_rng rng = {20};
    for (int k = 0; k < FORMS; ++k) {
        try_form(&forms[k], true, &rng);
        for (int n = 0; n < 4; ++n) try_form(&forms[k], false, &rng);
    }
#ifdef RQ_TEST_SIM
    refusals();
#endif
    return rq_done(__FILE__);
}
