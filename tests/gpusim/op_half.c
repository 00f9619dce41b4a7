/* SPDX-License-Identifier: Apache-2.0 */
/* f16, bf16 and their pairs (PTX ISA, "Half Precision Floating-Point Instructions").
 *
 * Every sum and product is one fused multiply-add, rounded once: to a float whose last bit is sticky ("to odd"), which
 * has more bits than both types, then to nearest. ex2 and tanh are those of libm in double, rounded once. NaN results
 * are 0x7fff. .ftz is of f16 only (PTX has it for no bf16 arithmetic but ex2, where it is the rule). */
#include "alu.h"
#include "half.h"

enum { OP_ADD, OP_SUB, OP_MUL, OP_FMA };

/* ------------------------------------------------------------------ after the rounding, on the bits of a half */
static inline bool is_nan16(uint16_t h, uint16_t infinity) { return (h & 0x7fff) > infinity; }
/* .relu: below zero gives 0. .sat: [0, 1], NaN gives 0. .ftz */
static void modify(uint16_t *h, int n, const gs_ins *i) {
    uint16_t infinity = i->type2 == T_BF16 ? 0x7f80 : 0x7c00, one = i->type2 == T_BF16 ? 0x3f80 : 0x3c00;
    for (int k = 0; k < n; ++k) {
        uint16_t v = h[k];
        if (i->ftz && !(v & infinity)) v &= 0x8000;
        if (i->flag && v >> 15 && !is_nan16(v, infinity)) v = 0;
        if (i->sat) v = v >> 15 || is_nan16(v, infinity) ? 0 : v > one ? one : v;
        h[k] = v;
    }
}
/* Under a mask: i->vec halves a lane. */
static void put_halves(gs_warp *w, const gs_ins *i, const uint16_t *h, uint32_t m) {
    if (i->vec == 2) {
        uint32_t *d = (uint32_t *)OPND(0), v[32];
        memcpy(v, h, sizeof v);
        LANES({ d[l] = v[l]; });
    } else {
        uint16_t *d = (uint16_t *)OPND(0);
        LANES({ d[l] = h[l]; });
    }
}
/* Operand k as floats; subnormal halves become zero with .ftz. */
static void get_floats(const gs_warp *w, const gs_ins *i, int k, float *out) {
    const uint16_t *h = (const uint16_t *)OPND(k);
    int n = 32 * i->vec;
    uint16_t flushed[64];
    if (i->ftz) {
        for (int l = 0; l < n; ++l) flushed[l] = h[l] & 0x7c00 ? h[l] : h[l] & 0x8000;
        h = flushed;
    }
    half_widen(out, h, n, i->type2 == T_BF16);
}

/* ------------------------------------------------------------------ add, sub, mul, fma */
static void arithmetic(gs_warp *w, const gs_ins *i, uint32_t m) {
    float a[64], b[64], c[64];
    uint16_t h[64];
    int n = 32 * i->vec;
    get_floats(w, i, 1, a);
    if (i->sub == OP_FMA || i->sub == OP_MUL) {
        get_floats(w, i, 2, b);
        if (i->sub == OP_FMA)
            get_floats(w, i, 3, c);
        else
            for (int l = 0; l < n; ++l) c[l] = -0.0f; /* adding it changes nothing, not even a zero's sign */
    } else {
        get_floats(w, i, 2, c);
        for (int l = 0; l < n; ++l) b[l] = 1;
        if (i->sub == OP_SUB)
            for (int l = 0; l < n; ++l) c[l] = -c[l];
    }
    half_fma_odd(a, b, c, n, i->type2 == T_BF16);
    half_narrow(h, a, n, i->type2 == T_BF16);
    if (i->sat || i->flag || i->ftz) modify(h, n, i);
    put_halves(w, i, h, m);
}
#ifdef __AVX512F__
/* The common case: fma.rn of pairs of f16, on all lanes, without modifiers. */
static void fma_f16x2(gs_warp *w, const gs_ins *i, uint32_t m) {
    if (m != 0xffffffffu) {
        arithmetic(w, i, m);
        return;
    }
    const uint8_t *A = OPND(1), *B = OPND(2), *C = OPND(3);
    uint8_t *d = OPND(0);
    for (int k = 0; k < 128; k += 32) {
        __m512 a = half_load16(A + k), b = half_load16(B + k), c = half_load16(C + k);
        half_store16(d + k, half_fma_odd16(a, b, c));
    }
}
#endif

/* ------------------------------------------------------------------ min, max, abs, neg: on the bits */
static inline int16_t order16(uint16_t h) { return (int16_t)(h ^ ((uint16_t)((int16_t)h >> 15) & 0x7fff)); }
/* flag: .NaN; round: .xorsign.abs; sub: 1 for max. Masks of all ones or none instead of conditions: so it vectorises. */
static void min_max(gs_warp *w, const gs_ins *i, uint32_t m) {
    const uint16_t *A = (const uint16_t *)OPND(1), *B = (const uint16_t *)OPND(2);
    int16_t infinity = i->type2 == T_BF16 ? 0x7f80 : 0x7c00;
    uint16_t keep = i->round ? 0x7fff : 0xffff, signs = i->round ? 0x8000 : 0, flush = i->ftz ? 0xffff : 0, h[64];
    uint16_t swap = i->sub ? 0xffff : 0, either = i->flag ? 0xffff : 0;
    int n = 32 * i->vec;
    GS_INDEPENDENT for (int l = 0; l < n; ++l) {
        uint16_t a = A[l], b = B[l], sign = (a ^ b) & signs;
        uint16_t tiny_a = flush & (uint16_t) - (uint16_t) !(a & infinity),
                 tiny_b = flush & (uint16_t) - (uint16_t) !(b & infinity);
        a &= keep & (uint16_t) ~(tiny_a & 0x7fff);
        b &= keep & (uint16_t) ~(tiny_b & 0x7fff);
        uint16_t nan_a = (uint16_t) - (uint16_t)((int16_t)(a & 0x7fff) > infinity);
        uint16_t nan_b = (uint16_t) - (uint16_t)((int16_t)(b & 0x7fff) > infinity);
        uint16_t take_a = (uint16_t) - (uint16_t)(order16(a) < order16(b)) ^ swap;
        take_a = (take_a & (uint16_t)~nan_a) | nan_b;
        uint16_t nan = (nan_a & nan_b) | (either & (nan_a | nan_b));
        uint16_t r = (uint16_t)((a & take_a) | (b & (uint16_t)~take_a) | sign);
        h[l] = (uint16_t)((r & (uint16_t)~nan) | (nan & 0x7fff));
    }
    put_halves(w, i, h, m);
}
/* sub: 1 for neg, 0 for abs */
static void set_sign(gs_warp *w, const gs_ins *i, uint32_t m) {
    const uint16_t *A = (const uint16_t *)OPND(1);
    uint16_t h[64];
    bool ftz = i->ftz, neg = i->sub;
    for (int l = 0; l < 32 * i->vec; ++l) {
        uint16_t a = A[l];
        if (ftz && !(a & 0x7c00)) a &= 0x8000;
        h[l] = neg ? a ^ 0x8000 : a & 0x7fff;
    }
    put_halves(w, i, h, m);
}

/* ------------------------------------------------------------------ ex2, tanh */
static void special(gs_warp *w, const gs_ins *i, uint32_t m) {
    float a[64];
    uint16_t h[64];
    int n = 32 * i->vec;
    get_floats(w, i, 1, a);
    bool bf16 = i->type2 == T_BF16, flush = i->sub && bf16; /* sub: 1 for ex2, 0 for tanh; ex2.ftz.bf16 */
    for (int l = 0; l < n; ++l) {
        float x = flush && fabsf(a[l]) < 0x1p-126f ? 0 : a[l];
        double v = i->sub ? exp2((double)x) : tanh((double)x);
        if (flush && v < 0x1p-126) v = 0;
        h[l] = v != v ? 0x7fff : bf16 ? gs_d2b(v) : gs_d2h(v);
    }
    if (i->ftz) modify(h, n, i);
    put_halves(w, i, h, m);
}

/* ------------------------------------------------------------------ decoding */
/* vec: halves a lane; type2: T_F16 or T_BF16 */
static void decode_half(gs_decoder *d, gs_ins *i, int n) {
    alu_types(d, 1);
    i->vec = i->type == T_F16X2 || i->type == T_BF16X2 ? 2 : 1;
    i->type2 = i->type == T_BF16 || i->type == T_BF16X2 ? T_BF16 : T_F16;
    alu_operands(d, n, gs_type_bytes[i->type]);
}
static void decode_arithmetic(gs_decoder *d, gs_ins *i, const gs_row *row) {
    static const char *const names[] = {"add", "sub", "mul", "fma"};
    (void)row;
    i->sub = OP_FMA;
    for (uint8_t k = 0; k < 4; ++k)
        if (!strcmp(d->base, names[k])) i->sub = k;
    bool rounded = gs_mod(d, "rn");
    if (i->sub == OP_FMA && !rounded) gs_die(d, ".rn is required");
    decode_half(d, i, i->sub == OP_FMA ? 4 : 3);
    if (i->type2 == T_F16) {
        i->ftz = gs_mod(d, "ftz");
        i->sat = gs_mod(d, "sat");
    }
    if (i->sub == OP_FMA) i->flag = gs_mod(d, "relu");
    if (i->sat && i->flag) gs_die(d, ".sat with .relu");
#ifdef __AVX512F__
    if (i->sub == OP_FMA && i->type == T_F16X2 && !i->ftz && !i->sat && !i->flag) i->exec = fma_f16x2;
#endif
}
static void decode_min_max(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    decode_half(d, i, 3);
    i->sub = !strcmp(d->base, "max");
    i->flag = gs_mod(d, "NaN");
    i->round = gs_mod(d, "xorsign");
    if (gs_mod(d, "abs") != (bool)i->round) gs_die(d, ".xorsign and .abs go together");
    if (i->type2 == T_F16) i->ftz = gs_mod(d, "ftz");
}
static void decode_sign(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    decode_half(d, i, 2);
    i->sub = !strcmp(d->base, "neg");
    if (i->type2 == T_F16) i->ftz = gs_mod(d, "ftz");
}
static void decode_special(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    decode_half(d, i, 2);
    i->sub = !strcmp(d->base, "ex2");
    if (i->sub) {
        bool ftz = gs_mod(d, "ftz");
        if (i->type2 == T_BF16 && !ftz) gs_die(d, ".ftz is required");
        i->ftz = ftz && i->type2 == T_F16;
    }
}

// clang-format off
#define ROWS(name, decode, exec, class) \
    {name, T_F16, decode, exec, class, NULL}, {name, T_F16X2, decode, exec, class, NULL}, \
    {name, T_BF16, decode, exec, class, NULL}, {name, T_BF16X2, decode, exec, class, NULL}

GS_TABLE(half) = {
    ROWS("add", decode_arithmetic, arithmetic, GS_C_HALF), ROWS("sub", decode_arithmetic, arithmetic, GS_C_HALF),
    ROWS("mul", decode_arithmetic, arithmetic, GS_C_HALF), ROWS("fma", decode_arithmetic, arithmetic, GS_C_HALF),
    ROWS("min", decode_min_max, min_max, GS_C_HALF), ROWS("max", decode_min_max, min_max, GS_C_HALF),
    ROWS("abs", decode_sign, set_sign, GS_C_HALF), ROWS("neg", decode_sign, set_sign, GS_C_HALF),
    ROWS("ex2.approx", decode_special, special, GS_C_SFU), ROWS("tanh.approx", decode_special, special, GS_C_SFU),
    {0}
};
// clang-format on
