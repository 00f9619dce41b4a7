/* SPDX-License-Identifier: Apache-2.0 */
/* cvt and cvt.pack of PTX: every pair of types, rounding and saturation of tests/gpusim/op_cvt.c, expected by exact.h.
 * */
#include "ptx_case.h"

#include "exact.h"

enum { U8, S8, U16, S16, U32, S32, U64, S64, F16, BF16, F32, F64, N_TYPES };
static const struct type {
    const char *name;
    int bits; /* of the value */
    bool sign, is_float;
    const exact_format *format;
    char letter; /* of its register */
    int out;
    const char *input;
} types[N_TYPES] = {
    {"u8", 8, false, false, NULL, 'h', OUT_BITS, "i"},      {"s8", 8, true, false, NULL, 'h', OUT_BITS, "i"},
    {"u16", 16, false, false, NULL, 'h', OUT_BITS, "i"},    {"s16", 16, true, false, NULL, 'h', OUT_BITS, "i"},
    {"u32", 32, false, false, NULL, 'r', OUT_BITS, "i"},    {"s32", 32, true, false, NULL, 'r', OUT_BITS, "i"},
    {"u64", 64, false, false, NULL, 'l', OUT_BITS, "i"},    {"s64", 64, true, false, NULL, 'l', OUT_BITS, "i"},
    {"f16", 16, true, true, &exact_f16, 'h', OUT_F16, "h"}, {"bf16", 16, true, true, &exact_bf16, 'h', OUT_BF16, "b"},
    {"f32", 32, true, true, &exact_f32, 'r', OUT_F32, "f"}, {"f64", 64, true, true, &exact_f64, 'l', OUT_F64, "d"}};

/* mode: from + 100 * to; flags: the rounding + 16 .relu + 32 .satfinite; bits: of d's register */
static const struct type *from_type(const ptx_case *t) { return &types[t->mode % 100]; }
static const struct type *to_type(const ptx_case *t) { return &types[t->mode / 100]; }
static int rounding(const ptx_case *t) { return t->flags & 15; }

/* ---- integers */
static uint64_t cut(const struct type *y, uint64_t v,
                    int register_bits) { /* to the type, then extended to its register */
    int up = 64 - y->bits;
    v = y->sign ? (uint64_t)((int64_t)(v << up) >> up) : v << up >> up;
    return register_bits == 64 ? v : v & ((1ull << register_bits) - 1);
}
/* sign and size, clamped to the type */
static uint64_t clamped(const struct type *y, bool negative, exact_uint size) {
    exact_uint most = ((exact_uint)1 << (y->bits - y->sign)) - 1, least = y->sign ? most + 1 : 0; /* sizes */
    if (negative) return 0 - (uint64_t)(size > least ? least : size);
    return (uint64_t)(size > most ? most : size);
}
static void split(const struct type *y, uint64_t v, bool *negative, uint64_t *size) {
    v = cut(y, v, 64);
    *negative = y->sign && v >> 63;
    *size = *negative ? 0 - v : v;
}
static void ref_int_int(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    bool negative;
    uint64_t size;
    split(from_type(t), in[0], &negative, &size);
    uint64_t v = t->sat ? clamped(to_type(t), negative, size) : negative ? 0 - size : size;
    out[0] = cut(to_type(t), v, t->bits);
}

/* ---- to floats */
static uint64_t finished(const ptx_case *t, exact_format f, uint64_t v, bool nan_input) {
    uint64_t sign = exact_sign(f), one = (uint64_t)f.most << (f.precision - 1), largest = exact_infinity(f) - 1;
    if ((t->flags & 32) && !nan_input && (v & (sign - 1)) > largest) v = (v & sign) | largest;
    if ((t->flags & 16) && (v & sign) && !exact_is_nan(f, v)) v = 0;
    if (t->ftz && f.precision == 24 && exact_is_subnormal(f, v)) v &= sign;
    if (t->sat) v = exact_is_nan(f, v) || (v & sign) ? 0 : v > one ? one : v;
    return v;
}
static void ref_int_float(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    bool negative;
    uint64_t size;
    exact_format f = *to_type(t)->format;
    split(from_type(t), in[0], &negative, &size);
    exact_number x = exact_of_integer(negative, size);
    if (x.is == EXACT_ZERO) x.negative = false;
    out[0] = finished(t, f, exact_round_number(x, f, rounding(t), NULL), false);
}
static exact_number source(const ptx_case *t, uint64_t v) {
    exact_format f = *from_type(t)->format;
    if (from_type(t)->bits < 64) v &= (1ull << from_type(t)->bits) - 1;
    if (t->ftz && f.precision == 24 && exact_is_subnormal(f, v)) v &= exact_sign(f);
    return exact_of_bits(f, v);
}
static void ref_float_float(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    exact_format f = *to_type(t)->format;
    exact_number x = source(t, in[0]);
    bool inexact;
    uint64_t v = exact_round_number(x, f, rounding(t), &inexact);
    if (t->ftz && inexact && f.precision == 24 && (v & 0x7fffffffu) == 0x00800000u)
        ptx_open = true; /* see ptx_float.c */
    out[0] = finished(t, f, v, x.is == EXACT_NAN);
}
/* cvt.rni.f32.f32 and the like */
static void ref_integral(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    exact_format f = *to_type(t)->format;
    exact_number x = source(t, in[0]);
    bool large = false;
    if (x.is == EXACT_FINITE) {
        exact_uint size = exact_integer(x, rounding(t), &large);
        if (!large) { /* a large one is integral as it is */
            x.is = size ? EXACT_FINITE : EXACT_ZERO;
            x.size = size, x.exponent = 0;
        }
    }
    out[0] = finished(t, f, exact_round_number(x, f, EXACT_RN, NULL), x.is == EXACT_NAN);
}

/* ---- floats to integers */
static void ref_float_int(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    const struct type *y = to_type(t);
    exact_number x = source(t, in[0]);
    uint64_t v;
    if (x.is == EXACT_NAN) {
        v = from_type(t)->bits == 64 || y->bits == 64 ? 1ull << (y->bits - 1) : 0;
    } else {
        bool large = x.is == EXACT_INFINITE;
        exact_uint size = large ? 0 : exact_integer(x, rounding(t), &large);
        v = clamped(y, x.negative, large ? (exact_uint)1 << 100 : size);
    }
    out[0] = cut(y, v, t->bits);
}

/* ---- pairs and small floats. mode: the format of one part */
enum { P_F16, P_BF16, P_TF32, P_E4M3, P_E5M2 };
static uint64_t
e4m3(exact_number x) { /* to nearest, saturating: by search, as its largest is no power of two less a bit */
    static const exact_format wide = {4, -6, 20};
    if (x.is == EXACT_NAN) return 0x7f;
    uint64_t v = exact_round_number(x, wide, EXACT_RN, NULL), sign = v & exact_sign(wide);
    v &= exact_sign(wide) - 1;
    return (sign ? 0x80 : 0) | (v > 0x7e ? 0x7e : v);
}
static uint64_t one_part(const ptx_case *t, exact_number x) {
    bool relu = t->flags & 16;
    exact_format f = t->mode == P_F16    ? exact_f16
                     : t->mode == P_BF16 ? exact_bf16
                     : t->mode == P_TF32 ? exact_tf32
                                         : exact_e5m2;
    if (t->mode == P_E4M3) {
        uint64_t v = e4m3(x);
        return relu && (v & 0x80) && x.is != EXACT_NAN ? 0 : v;
    }
    uint64_t v = finished(t, f, exact_round_number(x, f, rounding(t), NULL), x.is == EXACT_NAN);
    return t->mode == P_TF32 ? v << 13 : v;
}
static int part_bits(const ptx_case *t) { return t->mode >= P_E4M3 ? 8 : 16; }
static void ref_pair(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    exact_number a = exact_of_bits(exact_f32, in[0]), b = exact_of_bits(exact_f32, in[1]);
    out[0] = one_part(t, a) << part_bits(t) | one_part(t, b);
}
static void ref_tf32(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    out[0] = one_part(t, exact_of_bits(exact_f32, in[0]));
    if (exact_is_nan(exact_f32, in[0])) out[0] = 0x7fffffff;
}
static void ref_half(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) { /* with .relu, .satfinite */
    out[0] = one_part(t, exact_of_bits(exact_f32, in[0]));
}
static void ref_f8_of_f16(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    exact_number a = exact_of_bits(exact_f16, in[0] >> 16 & 0xffff), b = exact_of_bits(exact_f16, in[0] & 0xffff);
    out[0] = one_part(t, a) << 8 | one_part(t, b);
}
static uint64_t f16_of_f8(const ptx_case *t, uint64_t v) {
    exact_number x;
    if (t->mode == P_E5M2) {
        x = exact_of_bits(exact_e5m2, v);
    } else {
        uint64_t field = v >> 3 & 15, fraction = v & 7;
        x = (exact_number){EXACT_FINITE, v >> 7, field ? fraction | 8 : fraction, field ? (int)field - 10 : -9};
        if (!x.size) x.is = EXACT_ZERO;
        if ((v & 0x7f) == 0x7f) x.is = EXACT_NAN;
    }
    uint64_t h = exact_round_number(x, exact_f16, EXACT_RN, NULL);
    return (t->flags & 16) && (h & 0x8000) && x.is != EXACT_NAN ? 0 : h;
}
static void ref_f16_of_f8(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    out[0] = f16_of_f8(t, in[0] >> 8 & 255) << 16 | f16_of_f8(t, in[0] & 255);
}
/* cvt.pack: bits, sign of a part; flags: with c */
static void ref_pack(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    struct type part = {.bits = t->bits, .sign = t->sign};
    uint64_t v[2], mask = (1ull << t->bits) - 1;
    for (int k = 0; k < 2; ++k) {
        int64_t x = (int32_t)(uint32_t)in[k];
        v[k] = clamped(&part, x < 0, (exact_uint)(uint64_t)(x < 0 ? -x : x)) & mask;
    }
    out[0] = v[0] << t->bits | v[1] | (t->flags ? in[2] << (2 * t->bits) : 0);
}

/* ---- the cases */
static const char *const modes[] = {".rn", ".rz", ".rm", ".rp"}, *const integer_modes[] = {".rni", ".rzi", ".rmi",
                                                                                           ".rpi"};
static const char *flag(bool on, const char *name) { return on ? name : ""; }
static const char *shape(char d, char a) {
    static const char all[9][4] = {"h=h", "h=r", "h=l", "r=h", "r=r", "r=l", "l=h", "l=r", "l=l"};
    for (int k = 0; k < 9; ++k)
        if (all[k][0] == d && all[k][2] == a) return all[k];
    RQ_DIE("no shape");
}
static int letter_bits(char letter) { return letter == 'h' ? 16 : letter == 'r' ? 32 : 64; }
static ptx_case pair_case(int to, int from, ptx_ref ref) {
    const struct type *y = &types[to], *x = &types[from];
    return (ptx_case){.shape = shape(y->letter, x->letter),
                      .inputs = x->input,
                      .ref = ref,
                      .out = y->out,
                      .mode = from + 100 * to,
                      .bits = letter_bits(y->letter)};
}
static void add_integers(int to, int from) {
    const struct type *y = &types[to], *x = &types[from];
    ptx_case t = pair_case(to, from, ref_int_int);
    ptx_add(t, "cvt.%s.%s d, a;", y->name, x->name);
    if (to == from) return;
    /* .sat where the destination cannot hold every source */
    bool holds = y->sign == x->sign ? y->bits >= x->bits : y->sign && y->bits > x->bits;
    t.sat = true;
    if (!holds) ptx_add(t, "cvt.sat.%s.%s d, a;", y->name, x->name);
    t.sat = false;
    /* registers wider than the types */
    if (y->bits < 32) {
        t.shape = shape('r', x->letter), t.bits = 32;
        ptx_add(t, "cvt.%s.%s d, a;", y->name, x->name);
    }
    if (x->bits < 32) {
        t.shape = shape(y->letter, 'r'), t.bits = letter_bits(y->letter);
        ptx_add(t, "cvt.%s.%s d, a;", y->name, x->name);
        t.shape = shape('l', 'l'), t.bits = 64;
        ptx_add(t, "cvt.%s.%s d, a;", y->name, x->name);
    }
}
static void add_to_float(int to, int from) {
    for (int mode = 0; mode < 4; ++mode) {
        ptx_case t = pair_case(to, from, ref_int_float);
        t.flags = mode;
        ptx_add(t, "cvt%s.%s.%s d, a;", modes[mode], types[to].name, types[from].name);
        t.sat = true;
        if (to != BF16 && mode == 0) ptx_add(t, "cvt%s.sat.%s.%s d, a;", modes[mode], types[to].name, types[from].name);
    }
}
static void add_to_integer(int to, int from) {
    for (int mode = 0; mode < 4; ++mode) {
        ptx_case t = pair_case(to, from, ref_float_int);
        t.flags = mode;
        ptx_add(t, "cvt%s.%s.%s d, a;", integer_modes[mode], types[to].name, types[from].name);
        t.ftz = true;
        if (from == F32) ptx_add(t, "cvt%s.ftz.%s.f32 d, a;", integer_modes[mode], types[to].name);
    }
}
static void add_floats(int to, int from) {
    const struct type *y = &types[to], *x = &types[from];
    bool narrows = y->bits < x->bits || (y->bits == 16 && x->bits == 16 && to != from);
    bool has_ftz = (to == F32 || from == F32) && to != BF16;
    for (int how = 0; how < 4; ++how)
        for (int mode = 0; mode < (narrows ? 4 : 1); ++mode) {
            ptx_case t = pair_case(to, from, ref_float_float);
            t.flags = mode, t.ftz = how & 1, t.sat = how & 2;
            if ((t.ftz && !has_ftz) || (t.sat && (to == BF16 || from == BF16)) || (to == from && !how && to != F32))
                continue;
            if (to == from && to == BF16) continue;
            ptx_add(t, "cvt%s%s%s.%s.%s d, a;", narrows ? modes[mode] : "", flag(t.ftz, ".ftz"), flag(t.sat, ".sat"),
                    y->name, x->name);
        }
    if (to != from) return;
    for (int mode = 0; mode < 4; ++mode) {
        ptx_case t = pair_case(to, from, ref_integral);
        t.flags = mode;
        ptx_add(t, "cvt%s.%s.%s d, a;", integer_modes[mode], y->name, y->name);
        t.ftz = to == F32, t.sat = to != BF16;
        if (t.sat) ptx_add(t, "cvt%s%s.sat.%s.%s d, a;", integer_modes[mode], flag(t.ftz, ".ftz"), y->name, y->name);
    }
}
static void add_halves_of_f32(void) {
    static const struct {
        const char *name;
        int part, out, out_pair;
    } halves[] = {{"f16", P_F16, OUT_F16, OUT_F16X2}, {"bf16", P_BF16, OUT_BF16, OUT_BF16X2}};
    for (int k = 0; k < 2; ++k)
        for (int how = 0; how < 8; ++how) {
            int mode = how & 1;
            bool relu = how & 2, finite = how & 4;
            ptx_case t = {.inputs = "ff", .mode = halves[k].part, .flags = mode + (relu ? 16 : 0) + (finite ? 32 : 0)};
            t.shape = "h=r", t.ref = ref_half, t.out = halves[k].out;
            ptx_add(t, "cvt%s%s%s.%s.f32 d, a;", modes[mode], flag(relu, ".relu"), flag(finite, ".satfinite"),
                    halves[k].name);
            t.shape = "r=rr", t.ref = ref_pair, t.out = halves[k].out_pair;
            ptx_add(t, "cvt%s%s%s.%sx2.f32 d, a, b;", modes[mode], flag(relu, ".relu"), flag(finite, ".satfinite"),
                    halves[k].name);
        }
    ptx_case t = {.shape = "r=r", .inputs = "f", .ref = ref_tf32, .out = OUT_F32, .mode = P_TF32, .flags = EXACT_RNA};
    ptx_add(t, "cvt.rna.tf32.f32 d, a;");
    t.flags = EXACT_RNA + 32;
    ptx_add(t, "cvt.rna.satfinite.tf32.f32 d, a;");
    for (int how = 0; how < 4; ++how) {
        t.flags = (how & 1) + (how & 2 ? 16 : 0);
        ptx_add(t, "cvt%s%s.tf32.f32 d, a;", modes[how & 1], flag(how & 2, ".relu"));
    }
}
static void add_f8(void) {
    static const char *const names[] = {"e4m3x2", "e5m2x2"};
    for (int k = 0; k < 2; ++k)
        for (int relu = 0; relu < 2; ++relu) {
            ptx_case t = {
                .inputs = "ff", .mode = k ? P_E5M2 : P_E4M3, .flags = 32 + 16 * relu, .shape = "h=rr", .ref = ref_pair};
            ptx_add(t, "cvt.rn.satfinite%s.%s.f32 d, a, b;", flag(relu, ".relu"), names[k]);
            t.inputs = "H", t.shape = "h=r", t.ref = ref_f8_of_f16;
            ptx_add(t, "cvt.rn.satfinite%s.%s.f16x2 d, a;", flag(relu, ".relu"), names[k]);
            t.inputs = "i", t.shape = "r=h", t.ref = ref_f16_of_f8, t.out = OUT_F16X2, t.flags = 16 * relu;
            ptx_add(t, "cvt.rn%s.f16x2.%s d, a;", flag(relu, ".relu"), names[k]);
        }
}
static void add_pack(void) {
    static const char *const names[] = {"u16", "s16", "u8", "s8"};
    for (int k = 0; k < 4; ++k) {
        ptx_case t = {.shape = "r=rr", .inputs = "ii", .ref = ref_pack, .bits = k < 2 ? 16 : 8, .sign = k & 1};
        if (k < 2) {
            ptx_add(t, "cvt.pack.sat.%s.s32 d, a, b;", names[k]);
        } else {
            t.shape = "r=rrr", t.inputs = "iii", t.flags = 1;
            ptx_add(t, "cvt.pack.sat.%s.s32.b32 d, a, b, c;", names[k]);
        }
    }
}

int main(void) {
    for (int to = 0; to < N_TYPES; ++to)
        for (int from = 0; from < N_TYPES; ++from) {
            /* bf16 and 8 bits: only in .b8 registers, which no other instruction takes */
            if ((to == BF16 && from <= S8) || (from == BF16 && to <= S8)) continue;
            if (to < F16 && from < F16) add_integers(to, from);
            if (to >= F16 && from < F16) add_to_float(to, from);
            if (to < F16 && from >= F16) add_to_integer(to, from);
            if (to >= F16 && from >= F16) add_floats(to, from);
        }
    add_halves_of_f32();
    add_f8();
    add_pack();
    return ptx_run_all(__FILE__);
}
