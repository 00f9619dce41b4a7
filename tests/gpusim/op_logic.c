/* SPDX-License-Identifier: Apache-2.0 */
/* Logic, shifts and selection (PTX ISA, "Logic and Shift Instructions", prmt, selp, slct). */
#include "alu.h"

/* ------------------------------------------------------------------ and, or, xor, not, cnot */
BINARY(and16, uint16_t, a &b)
BINARY(and32, uint32_t, a &b)
BINARY(and64, uint64_t, a &b)
BINARY(or16, uint16_t, a | b)
BINARY(or32, uint32_t, a | b)
BINARY(or64, uint64_t, a | b)
BINARY(xor16, uint16_t, a ^ b)
BINARY(xor32, uint32_t, a ^ b)
BINARY(xor64, uint64_t, a ^ b)
UNARY(not16, uint16_t, ~a)
UNARY(not32, uint32_t, ~a)
UNARY(not64, uint64_t, ~a)
UNARY(cnot16, uint16_t, a == 0)
UNARY(cnot32, uint32_t, a == 0)
UNARY(cnot64, uint64_t, a == 0)

static void and_pred(gs_warp *w, const gs_ins *i, uint32_t m) {
    gs_pred_write(w, i, 0, gs_pred_read(w, i, 1) & gs_pred_read(w, i, 2), m);
}
static void or_pred(gs_warp *w, const gs_ins *i, uint32_t m) {
    gs_pred_write(w, i, 0, gs_pred_read(w, i, 1) | gs_pred_read(w, i, 2), m);
}
static void xor_pred(gs_warp *w, const gs_ins *i, uint32_t m) {
    gs_pred_write(w, i, 0, gs_pred_read(w, i, 1) ^ gs_pred_read(w, i, 2), m);
}
static void not_pred(gs_warp *w, const gs_ins *i, uint32_t m) { gs_pred_write(w, i, 0, ~gs_pred_read(w, i, 1), m); }

/* ------------------------------------------------------------------ lop3: any function of three bits, as a table of 8
 * bits */
static inline uint32_t choose(uint32_t which, uint32_t one, uint32_t zero) { return zero ^ (which & (one ^ zero)); }
static void lop3(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t *d = (uint32_t *)OPND(0);
    const uint32_t *A = (const uint32_t *)OPND(1), *B = (const uint32_t *)OPND(2), *C = (const uint32_t *)OPND(3);
    uint32_t t[8]; /* entry a * 4 + b * 2 + c, in all bits */
    for (int k = 0; k < 8; ++k) t[k] = 0u - (uint32_t)(i->imm >> k & 1);
    LANES({
        uint32_t a = A[l];
        uint32_t b = B[l];
        uint32_t c = C[l];
        uint32_t with_a = choose(b, choose(c, t[7], t[6]), choose(c, t[5], t[4]));
        uint32_t without = choose(b, choose(c, t[3], t[2]), choose(c, t[1], t[0]));
        d[l] = choose(a, with_a, without);
    });
}
/* d|p: p = (d != 0) op q. Operands d, a, b, c, p, q; sub: 0 or, 1 and */
static void lop3_pred(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t q = gs_pred_read(w, i, 5), nonzero = 0;
    const uint32_t *A = (const uint32_t *)OPND(1), *B = (const uint32_t *)OPND(2), *C = (const uint32_t *)OPND(3);
    uint32_t value[32];
    for (int l = 0; l < 32; ++l) {
        value[l] = 0;
        for (uint32_t k = 0; k < 8; ++k)
            if (i->imm >> k & 1) value[l] |= (k & 4 ? A[l] : ~A[l]) & (k & 2 ? B[l] : ~B[l]) & (k & 1 ? C[l] : ~C[l]);
        nonzero |= (uint32_t)(value[l] != 0) << l;
    }
    if (i->op[0].size) {
        uint32_t *d = (uint32_t *)OPND(0);
        LANES({ d[l] = value[l]; });
    }
    gs_pred_write(w, i, 4, i->sub ? nonzero & q : nonzero | q, m);
}

/* ------------------------------------------------------------------ shifts: counts past the width shift everything out
 * */
#define SHIFT(name, T, E)                                                                                              \
    static void name(gs_warp *w, const gs_ins *i, uint32_t m) {                                                        \
        T *d = (T *)OPND(0);                                                                                           \
        const T *A = (const T *)OPND(1);                                                                               \
        const uint32_t *B = (const uint32_t *)OPND(2);                                                                 \
        LANES({                                                                                                        \
            T a = A[l];                                                                                                \
            uint32_t n = B[l];                                                                                         \
            d[l] = (T)(E);                                                                                             \
        });                                                                                                            \
    }
SHIFT(shl16, uint16_t, n > 15 ? 0 : (uint32_t)a << n)
SHIFT(shl32, uint32_t, n > 31 ? 0 : a << n)
SHIFT(shl64, uint64_t, n > 63 ? 0 : a << n)
SHIFT(shr_u16, uint16_t, n > 15 ? 0 : a >> n)
SHIFT(shr_u32, uint32_t, n > 31 ? 0 : a >> n)
SHIFT(shr_u64, uint64_t, n > 63 ? 0 : a >> n)
SHIFT(shr_s16, int16_t, a >> (n > 15 ? 15 : n))
SHIFT(shr_s32, int32_t, a >> (n > 31 ? 31 : n))
SHIFT(shr_s64, int64_t, a >> (n > 63 ? 63 : n))

/* Funnel shifts of b:a. */
static inline uint64_t funnel(uint32_t a, uint32_t b) { return (uint64_t)b << 32 | a; }
TERNARY(shf_l_wrap, uint32_t, (funnel(a, b) << (c & 31)) >> 32)
TERNARY(shf_l_clamp, uint32_t, (funnel(a, b) << (c > 32 ? 32 : c)) >> 32)
TERNARY(shf_r_wrap, uint32_t, funnel(a, b) >> (c & 31))
TERNARY(shf_r_clamp, uint32_t, funnel(a, b) >> (c > 32 ? 32 : c))

/* ------------------------------------------------------------------ prmt: four bytes of b:a */
static inline uint32_t permuted_byte(uint64_t bytes, uint32_t which) /* bit 3: the byte's sign instead of the byte */
{
    uint32_t byte = (uint32_t)(bytes >> (8 * (which & 7))) & 255;
    return which & 8 ? (byte & 128 ? 255 : 0) : byte;
}
static inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t bytes = funnel(a, b);
    return permuted_byte(bytes, selector) | permuted_byte(bytes, selector >> 4) << 8 |
           permuted_byte(bytes, selector >> 8) << 16 | permuted_byte(bytes, selector >> 12) << 24;
}
TERNARY(prmt, uint32_t, permute(a, b, c & 0xffff))
/* The modes are selectors that depend on the low two bits of c. */
enum { PRMT_F4E, PRMT_B4E, PRMT_RC8, PRMT_ECL, PRMT_ECR, PRMT_RC16, PRMT_DEFAULT };
static const uint16_t prmt_selector[6][4] = {
    {0x3210, 0x4321, 0x5432, 0x6543}, /* f4e: forward from byte c */
    {0x5670, 0x6701, 0x7012, 0x0123}, /* b4e: backward from byte c */
    {0x0000, 0x1111, 0x2222, 0x3333}, /* rc8: one byte four times */
    {0x3210, 0x3211, 0x3222, 0x3333}, /* ecl: clamped from the left */
    {0x0000, 0x1110, 0x2210, 0x3210}, /* ecr: clamped from the right */
    {0x1010, 0x3232, 0x1010, 0x3232}, /* rc16: one half twice */
};
TERNARY(prmt_mode, uint32_t, permute(a, b, prmt_selector[i->sub][c & 3]))

/* ------------------------------------------------------------------ selp, slct */
#define SELECT(bits, T)                                                                                                \
    static void selp##bits(gs_warp *w, const gs_ins *i, uint32_t m) {                                                  \
        T *d = (T *)OPND(0);                                                                                           \
        const T *A = (const T *)OPND(1), *B = (const T *)OPND(2);                                                      \
        uint32_t p = gs_pred_read(w, i, 3);                                                                            \
        LANES({                                                                                                        \
            T a = A[l];                                                                                                \
            T b = B[l];                                                                                                \
            d[l] = p >> l & 1 ? a : b;                                                                                 \
        });                                                                                                            \
    }                                                                                                                  \
    static void slct_s32_##bits(gs_warp *w, const gs_ins *i, uint32_t m) {                                             \
        T *d = (T *)OPND(0);                                                                                           \
        const T *A = (const T *)OPND(1), *B = (const T *)OPND(2);                                                      \
        const int32_t *C = (const int32_t *)OPND(3);                                                                   \
        LANES({                                                                                                        \
            T a = A[l];                                                                                                \
            T b = B[l];                                                                                                \
            d[l] = C[l] >= 0 ? a : b;                                                                                  \
        });                                                                                                            \
    }                                                                                                                  \
    /* NaN takes b; with .ftz a negative subnormal is -0, which takes a */                                             \
    static void slct_f32_##bits(gs_warp *w, const gs_ins *i, uint32_t m) {                                             \
        T *d = (T *)OPND(0);                                                                                           \
        const T *A = (const T *)OPND(1), *B = (const T *)OPND(2);                                                      \
        const float *C = (const float *)OPND(3);                                                                       \
        float least = i->ftz ? -0x1.fffffcp-127f : 0; /* the subnormal farthest from 0 */                              \
        LANES({                                                                                                        \
            T a = A[l];                                                                                                \
            T b = B[l];                                                                                                \
            d[l] = C[l] >= least ? a : b;                                                                              \
        });                                                                                                            \
    }
SELECT(16, uint16_t)
SELECT(32, uint32_t)
SELECT(64, uint64_t)

/* ------------------------------------------------------------------ decoding */
static void decode_pred(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)i;
    (void)row;
    int n = strcmp(d->base, "not") ? 3 : 2;
    alu_types(d, 1);
    gs_need_args(d, n);
    for (int k = 0; k < n; ++k) alu_pred(d, k);
    if (d->op[0].negated) gs_die(d, "the destination is negated");
    for (int k = 1; k < n; ++k)
        if (!d->op[k].size) gs_die(d, "a source is missing");
}
static void decode_lop3(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    alu_types(d, 1);
    bool is_and = gs_mod(d, "and"), is_or = gs_mod(d, "or"), with_pred = d->n_arg > 1 && d->arg[1].after_bar;
    if (with_pred != (is_and || is_or)) gs_die(d, "d|p goes with .and or .or");
    gs_need_args(d, with_pred ? 7 : 5);
    int a = with_pred ? 2 : 1; /* the first source */
    if (with_pred)
        alu_dest(d, 0, 4);
    else
        alu_result(d, 4);
    for (int k = 0; k < 3; ++k) alu_arg(d, a + k, 4);
    i->imm = gs_parse_immediate(d, d->arg[a + 3].text);
    if (i->imm > 255) gs_die(d, "a table of more than 8 bits");
    if (with_pred) {
        i->sub = is_and;
        i->exec = lop3_pred;
        alu_pred(d, 1);
        alu_pred(d, 6);
        if (!d->op[4].size || !d->op[5].size) gs_die(d, "a predicate is missing");
    }
}
static void decode_shift(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    int n = gs_type_bytes[i->type];
    alu_types(d, 1);
    gs_need_args(d, 3);
    alu_result(d, n);
    alu_arg(d, 1, n);
    alu_arg(d, 2, 4);
}
static void decode_prmt(gs_decoder *d, gs_ins *i, const gs_row *row) {
    static const char *const modes[] = {"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
    i->sub = (uint8_t)gs_mod_of(d, modes, 6, PRMT_DEFAULT);
    if (i->sub != PRMT_DEFAULT) i->exec = prmt_mode;
    alu_ternary(d, i, row);
}
static void decode_selp(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    int n = gs_type_bytes[i->type];
    alu_types(d, 1);
    gs_need_args(d, 4);
    alu_result(d, n);
    alu_arg(d, 1, n);
    alu_arg(d, 2, n);
    alu_pred(d, 3);
    if (!d->op[3].size) gs_die(d, "the predicate is missing");
}
static void decode_slct(gs_decoder *d, gs_ins *i, const gs_row *row) {
    alu_types(d, 2);
    gs_need_args(d, 4);
    int n = gs_type_bytes[i->type];
    bool is_float = row->type == T_F32;
    if (is_float) i->ftz = gs_mod(d, "ftz");
    switch (n) {
    case 2: i->exec = is_float ? slct_f32_16 : slct_s32_16; break;
    case 4: i->exec = is_float ? slct_f32_32 : slct_s32_32; break;
    case 8: i->exec = is_float ? slct_f32_64 : slct_s32_64; break;
    default: gs_die(d, "type .%s", gs_type_name[i->type]);
    }
    alu_result(d, n);
    alu_arg(d, 1, n);
    alu_arg(d, 2, n);
    alu_arg(d, 3, 4);
}

// clang-format off
#define ROW(name, type, decode, exec) {name, type, decode, exec, GS_C_LOGIC, NULL}
#define BITS(name, decode, f) \
    ROW(name, T_B16, decode, f##16), ROW(name, T_B32, decode, f##32), ROW(name, T_B64, decode, f##64)
#define SIGNED(name, decode, f, s) \
    ROW(name, T_##s##16, decode, f##16), ROW(name, T_##s##32, decode, f##32), ROW(name, T_##s##64, decode, f##64)

GS_TABLE(logic) = {
    BITS("and", alu_binary, and), BITS("or", alu_binary, or), BITS("xor", alu_binary, xor),
    BITS("not", alu_unary, not), BITS("cnot", alu_unary, cnot),
    ROW("and", T_PRED, decode_pred, and_pred), ROW("or", T_PRED, decode_pred, or_pred),
    ROW("xor", T_PRED, decode_pred, xor_pred), ROW("not", T_PRED, decode_pred, not_pred),
    ROW("lop3", T_B32, decode_lop3, lop3),
    BITS("shl", decode_shift, shl),
    SIGNED("shr", decode_shift, shr_u, B), SIGNED("shr", decode_shift, shr_u, U), SIGNED("shr", decode_shift, shr_s, S),
    ROW("shf.l.wrap", T_B32, alu_ternary, shf_l_wrap), ROW("shf.l.clamp", T_B32, alu_ternary, shf_l_clamp),
    ROW("shf.r.wrap", T_B32, alu_ternary, shf_r_wrap), ROW("shf.r.clamp", T_B32, alu_ternary, shf_r_clamp),
    ROW("prmt", T_B32, decode_prmt, prmt),
    BITS("selp", decode_selp, selp),
    SIGNED("selp", decode_selp, selp, U), SIGNED("selp", decode_selp, selp, S),
    ROW("selp", T_F16, decode_selp, selp16), ROW("selp", T_BF16, decode_selp, selp16),
    ROW("selp", T_F16X2, decode_selp, selp32), ROW("selp", T_BF16X2, decode_selp, selp32),
    ROW("selp", T_F32, decode_selp, selp32), ROW("selp", T_F64, decode_selp, selp64),
    ROW("slct", T_S32, decode_slct, slct_s32_32), ROW("slct", T_F32, decode_slct, slct_f32_32),
    {0}
};
// clang-format on
