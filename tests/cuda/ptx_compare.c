/* SPDX-License-Identifier: Apache-2.0 */
/* setp and set of PTX: every comparison in every type, alone and combined with a predicate, with both results, on
 * integers, floats and pairs of halves (tests/gpusim/op_compare.c). */
#include "ptx_case.h"

#include "exact.h"

enum { K_BITS, K_UNSIGNED, K_SIGNED, K_FLOAT };
static const struct type {
    const char *name;
    int kind, bits, parts;
    const exact_format *format;
    const char *letter, *inputs;
    bool has_ftz;
} types[] = {
    {"b16", K_BITS, 16, 1, NULL, "h", "ii", false},           {"u16", K_UNSIGNED, 16, 1, NULL, "h", "ii", false},
    {"s16", K_SIGNED, 16, 1, NULL, "h", "ii", false},         {"b32", K_BITS, 32, 1, NULL, "r", "ii", false},
    {"u32", K_UNSIGNED, 32, 1, NULL, "r", "ii", false},       {"s32", K_SIGNED, 32, 1, NULL, "r", "ii", false},
    {"b64", K_BITS, 64, 1, NULL, "l", "ii", false},           {"u64", K_UNSIGNED, 64, 1, NULL, "l", "ii", false},
    {"s64", K_SIGNED, 64, 1, NULL, "l", "ii", false},         {"f32", K_FLOAT, 32, 1, &exact_f32, "r", "ff", true},
    {"f64", K_FLOAT, 64, 1, &exact_f64, "l", "dd", false},    {"f16", K_FLOAT, 16, 1, &exact_f16, "h", "hh", true},
    {"bf16", K_FLOAT, 16, 1, &exact_bf16, "h", "bb", false},  {"f16x2", K_FLOAT, 16, 2, &exact_f16, "r", "HH", true},
    {"bf16x2", K_FLOAT, 16, 2, &exact_bf16, "r", "BB", false}};
enum { N_TYPES = sizeof types / sizeof *types };
/* bit 0: true when less, 1: equal, 2: greater, 3: a NaN among them */
static const struct comparison {
    const char *name;
    int when;
    bool of_bits, of_signed, of_unsigned;
} comparisons[] = {{"eq", 2, true, true, true},      {"ne", 5, true, true, true},      {"lt", 1, false, true, true},
                   {"le", 3, false, true, true},     {"gt", 4, false, true, true},     {"ge", 6, false, true, true},
                   {"lo", 1, false, false, true},    {"ls", 3, false, false, true},    {"hi", 4, false, false, true},
                   {"hs", 6, false, false, true},    {"equ", 10, false, false, false}, {"neu", 13, false, false, false},
                   {"ltu", 9, false, false, false},  {"leu", 11, false, false, false}, {"gtu", 12, false, false, false},
                   {"geu", 14, false, false, false}, {"num", 7, false, false, false},  {"nan", 8, false, false, false}};
static bool applies(const struct type *y, const struct comparison *c) {
    if (y->kind == K_FLOAT) return c->name[0] != 'h' && strcmp(c->name, "lo") && strcmp(c->name, "ls");
    return y->kind == K_BITS ? c->of_bits : y->kind == K_SIGNED ? c->of_signed : c->of_unsigned;
}

/* ---- mode: type + 100 * comparison; flags: 0 none, 1 and, 2 or, 3 xor (with bit 0 of c), + 4: c negated */
static bool holds(const ptx_case *t, uint64_t a, uint64_t b, int part) {
    const struct type *y = &types[t->mode % 100];
    int order;
    a >>= y->bits * part, b >>= y->bits * part;
    if (y->bits < 64) a &= (1ull << y->bits) - 1, b &= (1ull << y->bits) - 1;
    if (y->kind == K_FLOAT) {
        exact_format f = *y->format;
        if (t->ftz && exact_is_subnormal(f, a)) a &= exact_sign(f);
        if (t->ftz && exact_is_subnormal(f, b)) b &= exact_sign(f);
        order = exact_is_nan(f, a) || exact_is_nan(f, b) ? 2 : exact_order(exact_of_bits(f, a), exact_of_bits(f, b));
    } else {
        uint64_t top = y->kind == K_SIGNED ? 1ull << (y->bits - 1) : 0; /* moves the smallest to 0 */
        order = (a ^ top) < (b ^ top) ? -1 : a != b;
    }
    return comparisons[t->mode / 100].when >> (order + 1) & 1;
}
static bool combined(const ptx_case *t, bool v, uint64_t c) {
    bool other = ((c & 1) != 0) != ((t->flags & 4) != 0);
    switch (t->flags & 3) {
    case 1: return v && other;
    case 2: return v || other;
    case 3: return v != other;
    default: return v;
    }
}
static void ref_setp(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    bool v = holds(t, in[0], in[1], 0), w = types[t->mode % 100].parts == 2 ? holds(t, in[0], in[1], 1) : !v;
    out[0] = combined(t, v, in[2]);
    out[1] = combined(t, w, in[2]);
}
/* bits: of a result; sign: it is a number 1.0 (of the format by out), else all ones */
static void ref_set(const ptx_case *t, const uint64_t in[4], uint64_t out[2]) {
    const struct type *y = &types[t->mode % 100];
    uint64_t yes = t->out == OUT_F32                            ? 0x3f800000
                   : t->out == OUT_F16 || t->out == OUT_F16X2   ? 0x3c00
                   : t->out == OUT_BF16 || t->out == OUT_BF16X2 ? 0x3f80
                   : y->parts == 2                              ? 0xffff
                                                                : 0xffffffff;
    out[0] = 0;
    for (int part = 0; part < y->parts; ++part)
        if (combined(t, holds(t, in[0], in[1], part), in[2])) out[0] |= yes << (16 * part);
}

/* ---- the cases */
static const char *text(char *to, const char *format, const char *a) {
    snprintf(to, 16, format, a);
    return to;
}
#define P_OF_C "and.b32 t0, c, 1; setp.ne.u32 s, t0, 0; "
static const char *const bools[] = {"", ".and", ".or", ".xor"};

static const char *inputs_with_c(const struct type *y) {
    static const char *const all[] = {"iii", "ffi", "ddi", "hhi", "bbi", "HHi", "BBi"};
    for (int k = 1; k < 7; ++k)
        if (all[k][0] == y->inputs[0]) return all[k];
    return all[0];
}
static void add_setp(int type, int comparison) {
    static char shapes[N_TYPES][4][16];
    const struct type *y = &types[type];
    const char *c = comparisons[comparison].name, *plain = text(shapes[type][0], "r=%1$s%1$s", y->letter);
    const char *both = text(shapes[type][1], "rr=%1$s%1$s", y->letter),
               *with_c = text(shapes[type][2], "rr=%1$s%1$sr", y->letter);
    const char *one_with_c = text(shapes[type][3], "r=%1$s%1$sr", y->letter);
    ptx_case t = {.inputs = y->inputs, .ref = ref_setp, .mode = type + 100 * comparison};
    bool single_half = y->kind == K_FLOAT && y->bits == 16 && y->parts == 1; /* has no p|q */
    const char *to_d = "selp.u32 d, 1, 0, p;", *to_both = "selp.u32 d, 1, 0, p; selp.u32 d2, 1, 0, q;";
    for (int ftz = 0; ftz <= y->has_ftz; ++ftz) {
        const char *f = ftz ? ".ftz" : "";
        t.ftz = ftz, t.flags = 0;
        t.shape = plain;
        if (y->parts == 1) ptx_add(t, "setp.%s%s.%s p, a, b; %s", c, f, y->name, to_d);
        t.shape = both;
        if (!single_half) ptx_add(t, "setp.%s%s.%s p|q, a, b; %s", c, f, y->name, to_both);
        /* one boolean operation each, all of them over the comparisons and types */
        int op = 1 + (type + comparison) % 3;
        t.flags = op | (comparison & 1 ? 4 : 0);
        const char *not_c = t.flags & 4 ? "!" : "";
        t.inputs = inputs_with_c(y);
        t.shape = with_c;
        if (single_half) {
            t.shape = one_with_c;
            ptx_add(t, P_OF_C "setp.%s%s%s.%s p, a, b, %ss; %s", c, bools[op], f, y->name, not_c, to_d);
        } else
            ptx_add(t, P_OF_C "setp.%s%s%s.%s p|q, a, b, %ss; %s", c, bools[op], f, y->name, not_c, to_both);
        t.inputs = y->inputs;
    }
}
static void add_set(int type, int comparison) {
    static const struct {
        const char *name;
        int out, bits;
    } results[] = {{"u32", OUT_BITS, 32},  {"s32", OUT_BITS, 32},    {"f32", OUT_F32, 32},
                   {"u16", OUT_BITS, 16},  {"s16", OUT_BITS, 16},    {"f16", OUT_F16, 16},
                   {"bf16", OUT_BF16, 16}, {"f16x2", OUT_F16X2, 32}, {"bf16x2", OUT_BF16X2, 32}};
    static char shapes[N_TYPES][4][16];
    const struct type *y = &types[type];
    bool half = y->kind == K_FLOAT && y->bits == 16;
    for (int k = 0; k < 9; ++k) {
        bool of_pair = results[k].out == OUT_F16X2 || results[k].out == OUT_BF16X2;
        bool to_half = results[k].out == OUT_F16 || results[k].out == OUT_BF16;
        bool ok = k < 2;
        if (y->parts == 2)
            ok |= of_pair && !strcmp(results[k].name, y->name);
        else
            ok |= to_half || (half ? k == 3 || k == 4 : k == 2);
        if (!strcmp(y->name, "bf16") && results[k].out == OUT_F16) ok = false; /* there is none */
        if (!ok || (k + comparison) % 2) continue; /* every other one: all of them over the comparisons */
        ptx_case t = {.inputs = y->inputs, .ref = ref_set, .out = results[k].out, .mode = type + 100 * comparison};
        const char *d = results[k].bits == 16 ? "h" : "r";
        char form[16];
        snprintf(form, sizeof form, "%s=%%1$s%%1$s", d);
        t.shape = text(shapes[type][results[k].bits == 16], form, y->letter);
        ptx_add(t, "set.%s.%s.%s d, a, b;", comparisons[comparison].name, results[k].name, y->name);
        t.inputs = inputs_with_c(y);
        snprintf(form, sizeof form, "%s=%%1$s%%1$sr", d);
        t.shape = text(shapes[type][2 + (results[k].bits == 16)], form, y->letter);
        t.flags = 1 + comparison % 3, t.ftz = y->has_ftz && t.out != OUT_BF16;
        ptx_add(t, P_OF_C "set.%s%s%s.%s.%s d, a, b, s;", comparisons[comparison].name, bools[t.flags],
                t.ftz ? ".ftz" : "", results[k].name, y->name);
    }
}

int main(void) {
    for (int type = 0; type < N_TYPES; ++type)
        for (int c = 0; c < (int)(sizeof comparisons / sizeof *comparisons); ++c) {
            if (!applies(&types[type], &comparisons[c])) continue;
            add_setp(type, c);
            add_set(type, c);
        }
    return ptx_run_all(__FILE__);
}
