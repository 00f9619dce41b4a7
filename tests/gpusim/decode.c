/* SPDX-License-Identifier: Apache-2.0 */
/* One PTX instruction -> gs_ins: guard, opcode, modifiers, operands; then the row of the families' tables that fits. */
#include <ctype.h>
#include <stdlib.h>

#include "core.h"

const char *const gs_type_name[T_COUNT] = {
    [T_NONE] = "",         [T_PRED] = "pred", [T_B8] = "b8",         [T_U8] = "u8",         [T_S8] = "s8",
    [T_E4M3] = "e4m3",     [T_E5M2] = "e5m2", [T_B16] = "b16",       [T_U16] = "u16",       [T_S16] = "s16",
    [T_F16] = "f16",       [T_BF16] = "bf16", [T_E4M3X2] = "e4m3x2", [T_E5M2X2] = "e5m2x2", [T_B32] = "b32",
    [T_U32] = "u32",       [T_S32] = "s32",   [T_F32] = "f32",       [T_TF32] = "tf32",     [T_F16X2] = "f16x2",
    [T_BF16X2] = "bf16x2", [T_U8X4] = "u8x4", [T_S8X4] = "s8x4",     [T_U16X2] = "u16x2",   [T_S16X2] = "s16x2",
    [T_B64] = "b64",       [T_U64] = "u64",   [T_S64] = "s64",       [T_F64] = "f64",       [T_B128] = "b128"};
const uint8_t gs_type_bytes[T_COUNT] = {
    [T_PRED] = 4,   [T_B8] = 1,     [T_U8] = 1,   [T_S8] = 1,   [T_E4M3] = 1,  [T_E5M2] = 1,
    [T_B16] = 2,    [T_U16] = 2,    [T_S16] = 2,  [T_F16] = 2,  [T_BF16] = 2,  [T_E4M3X2] = 2,
    [T_E5M2X2] = 2, [T_B32] = 4,    [T_U32] = 4,  [T_S32] = 4,  [T_F32] = 4,   [T_TF32] = 4,
    [T_F16X2] = 4,  [T_BF16X2] = 4, [T_U8X4] = 4, [T_S8X4] = 4, [T_U16X2] = 4, [T_S16X2] = 4,
    [T_B64] = 8,    [T_U64] = 8,    [T_S64] = 8,  [T_F64] = 8,  [T_B128] = 16};
const gs_opnd gs_no_operand = {0};

gs_type gs_type_parse(const char *name) {
    for (int t = 1; t < T_COUNT; ++t)
        if (!strcmp(gs_type_name[t], name)) return (gs_type)t;
    return T_NONE;
}

/* ------------------------------------------------------------------ tables */
const gs_row *const *gs_tables(void) {
#define X(f) gs_rows_##f##_base,
    static const gs_row *const base[] = {GS_FAMILIES(X) NULL};
#undef X
#ifdef __x86_64__
#define X(f) gs_rows_##f##_avx512,
    static const gs_row *const avx512[] = {GS_FAMILIES(X) NULL};
#undef X
    const char *isa = getenv("GPUSIM_ISA");
    if (!(isa && !strcmp(isa, "base")) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return avx512;
#endif
    return base;
}
/* Does the row's name fit: the base, and every modifier after it present? */
static bool row_fits(gs_decoder *d, const gs_row *r) {
    size_t n = strlen(d->base);
    if (strncmp(r->name, d->base, n) || (r->name[n] && r->name[n] != '.')) return false;
    if (r->type && (!d->n_type || d->types[d->n_type - 1] != r->type)) return false;
    int want[GS_MAX_MODS], n_want = 0;
    for (const char *m = r->name + n; *m;) {
        const char *end = strchr(++m, '.');
        size_t length = end ? (size_t)(end - m) : strlen(m);
        int k = 0;
        while (k < d->n_mod && (strlen(d->mod[k]) != length || strncmp(d->mod[k], m, length))) ++k;
        if (k == d->n_mod) return false;
        want[n_want++] = k;
        m += length;
    }
    for (int k = 0; k < n_want; ++k) d->used[want[k]] = true;
    return true;
}

/* ------------------------------------------------------------------ help for the families */
_Noreturn void gs_die(gs_decoder *d, const char *format, ...) {
    char text[600];
    va_list a;
    va_start(a, format);
    vsnprintf(text, sizeof text, format, a);
    va_end(a);
    gs_parse_die(d->parser, "%s: %s", d->opcode, text);
}
bool gs_mod(gs_decoder *d, const char *name) {
    bool found = false;
    for (int k = 0; k < d->n_mod; ++k)
        if (!strcmp(d->mod[k], name)) found = d->used[k] = true;
    return found;
}
int gs_mod_of(gs_decoder *d, const char *const *names, int n, int otherwise) {
    for (int k = 0; k < n; ++k)
        if (gs_mod(d, names[k])) return k;
    return otherwise;
}
gs_space gs_mod_space(gs_decoder *d) {
    static const char *const name[] = {"global", "shared", "shared::cta",  "shared::cluster", "local",
                                       "const",  "param",  "param::entry", "param::func"};
    static const gs_space space[] = {SP_GLOBAL, SP_SHARED, SP_SHARED, SP_SHARED, SP_LOCAL,
                                     SP_CONST,  SP_PARAM,  SP_PARAM,  SP_PARAM};
    int k = gs_mod_of(d, name, 9, -1);
    return k < 0 ? SP_GENERIC : space[k];
}
void gs_add(gs_decoder *d, gs_opnd o) {
    if (d->n_op == GS_MAX_ARGS) gs_die(d, "too many operands");
    d->op[d->n_op++] = o;
}
void gs_add_arg(gs_decoder *d, int arg, int bytes) {
    if (arg >= d->n_arg) gs_die(d, "operand %d is missing", arg + 1);
    gs_add(d, gs_parse_operand(d, d->arg[arg].text, bytes));
}
void gs_add_address(gs_decoder *d, int arg) {
    if (arg >= d->n_arg) gs_die(d, "operand %d is missing", arg + 1);
    gs_add(d, gs_parse_address(d, d->arg[arg].text));
}
void gs_need_args(gs_decoder *d, int n) {
    if (d->n_arg != n) gs_die(d, "%d operands, expected %d", d->n_arg, n);
}
void gs_decode_same(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    for (int k = 0; k < d->n_arg; ++k) gs_add_arg(d, k, gs_type_bytes[i->type]);
}
void gs_decode_shift(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    gs_need_args(d, 3);
    gs_add_arg(d, 0, gs_type_bytes[i->type]);
    gs_add_arg(d, 1, gs_type_bytes[i->type]);
    gs_add_arg(d, 2, 4);
}
void gs_decode_wide(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    int n = gs_type_bytes[i->type];
    gs_add_arg(d, 0, 2 * n);
    gs_add_arg(d, 1, n);
    gs_add_arg(d, 2, n);
    if (d->n_arg > 3) gs_add_arg(d, 3, 2 * n);
    if (d->n_arg > 4) gs_die(d, "%d operands", d->n_arg);
}

/* ------------------------------------------------------------------ operands */
/* 32 copies of a constant; equal ones are shared. */
uint32_t gs_constant_vector(gs_kernel *k, uint64_t lo, uint64_t hi, uint8_t bytes) {
    size_t n = 32u * bytes;
    uint8_t v[16];
    memcpy(v, &lo, 8);
    memcpy(v + 8, &hi, 8);
    for (size_t o = 0; o + n <= k->n_constant;
         o += 64) { /* every vector begins on a multiple of 64 and repeats its value */
        bool same = true;
        for (size_t l = 0; l < 32 && same; ++l) same = !memcmp(k->constant + o + l * bytes, v, bytes);
        for (int f = 0; f < k->n_fix && same; ++f)
            same = o + n <= k->fix[f].off || o >= k->fix[f].off + 32u * k->fix[f].size;
        if (same) return (uint32_t)o;
    }
    size_t at = (k->n_constant + 63) & ~(size_t)63;
    if (at + n > k->cap_constant) {
        size_t cap = (k->cap_constant ? 2 * k->cap_constant : 16384) + n;
        cap = (cap + 63) & ~(size_t)63;
        uint8_t *q = aligned_alloc(64, cap);
        if (!q) abort();
        if (k->constant) memcpy(q, k->constant, k->n_constant);
        free(k->constant);
        k->constant = q;
        k->cap_constant = cap;
    }
    for (size_t l = 0; l < 32; ++l) memcpy(k->constant + at + l * bytes, v, bytes);
    k->n_constant = at + n;
    return (uint32_t)at;
}
static gs_opnd constant(gs_decoder *d, uint64_t v, int bytes) {
    uint8_t n = (uint8_t)(bytes < 2 ? 2 : bytes);
    uint64_t hi = n == 16 && (v >> 63) ? ~0ull : 0;
    return (gs_opnd){.base = BASE_CONST, .size = n, .off = gs_constant_vector(d->kernel, v, hi, n)};
}
static bool number(const char *t, int bytes, uint64_t *v) {
    bool minus = *t == '-';
    if (minus) ++t;
    char *end;
    if (t[0] == '0' && (t[1] == 'f' || t[1] == 'F') && strlen(t) == 10) {
        uint32_t u = (uint32_t)strtoul(t + 2, &end, 16);
        if (minus) u ^= 0x80000000u;
        *v = u;
        if (bytes == 8) {
            float f;
            memcpy(&f, &u, 4);
            double x = f;
            memcpy(v, &x, 8);
        }
        return *end == 0;
    }
    if (t[0] == '0' && (t[1] == 'd' || t[1] == 'D') && strlen(t) == 18) {
        *v = strtoull(t + 2, &end, 16);
        if (minus) *v ^= 1ull << 63;
        if (bytes == 4) {
            double x;
            memcpy(&x, v, 8);
            float f = (float)x;
            uint32_t u;
            memcpy(&u, &f, 4);
            *v = u;
        }
        return *end == 0;
    }
    if (!isdigit((unsigned char)*t)) return false;
    if (t[0] == '0' && (t[1] == 'b' || t[1] == 'B'))
        *v = strtoull(t + 2, &end, 2);
    else
        *v = strtoull(t, &end, 0);
    if (*end == 'U') ++end;
    if (minus) *v = 0 - *v;
    return *end == 0;
}
uint64_t gs_parse_immediate(gs_decoder *d, const char *text) {
    uint64_t v;
    while (isspace((unsigned char)*text)) ++text;
    if (!number(text, 8, &v)) gs_die(d, "'%s' where a constant number belongs", text);
    return v;
}
gs_opnd gs_parse_operand(gs_decoder *d, const char *text, int bytes) {
    gs_opnd o = {0};
    if (!strcmp(text, "_")) return o;
    bool negated = *text == '!', minus = *text == '-' && text[1] == '%';
    if (negated || minus) ++text;
    gs_type type;
    if (gs_find_register(d->parser, text, &o, &type)) {
        if (negated && !o.pred) gs_die(d, "'!%s' is no predicate", text);
        o.negated = negated;
        o.minus = minus;
        if (!o.pred && bytes && o.size < bytes && !(bytes == 16))
            gs_die(d, "register %s has %d bytes, the type %d", text, o.size, bytes);
        return o;
    }
    int special = gs_special_find(text);
    if (special >= 0) return (gs_opnd){.base = BASE_SPECIAL, .size = 4, .off = (uint32_t)special * 128};
    uint64_t v;
    if (number(text, bytes, &v)) return constant(d, v, bytes);
    if (!strcmp(text, "WARP_SZ")) return constant(d, 32, bytes);
    char name[GS_ARG_TEXT];
    snprintf(name, sizeof name, "%s", text);
    int64_t add = 0;
    char *sign = strpbrk(name, "+");
    if (sign) {
        add = strtoll(sign + 1, NULL, 0);
        *sign = 0;
    }
    const gs_symbol *s = gs_find_symbol(d->parser, name);
    if (!s) gs_die(d, "unknown operand '%s'", text);
    if (!s->dynamic) return constant(d, s->addr + (uint64_t)add, bytes);
    /* its value is filled in when the kernel is complete; the marker keeps it apart from every other constant */
    gs_kernel *k = d->kernel;
    for (int f = 0; f < k->n_fix; ++f)
        if (k->fix[f].size == bytes && k->fix[f].add == (uint64_t)add)
            return (gs_opnd){.base = BASE_CONST, .size = (uint8_t)bytes, .off = k->fix[f].off};
    k->fix = realloc(k->fix, sizeof *k->fix * (size_t)(k->n_fix + 1));
    if (!k->fix) abort();
    uint64_t marker = 0xD15A51000000ull + (uint64_t)k->n_fix;
    o = constant(d, bytes == 4 ? marker & 0xffffffffu : marker, bytes);
    k->fix[k->n_fix++] = (gs_constant_fix){o.off, (uint8_t)bytes, (uint64_t)add};
    return o;
}
gs_opnd gs_parse_address(gs_decoder *d, const char *text) {
    char t[GS_ARG_TEXT + 8];
    size_t n = 0;
    if (*text != '[') gs_die(d, "'%s' where an address in brackets belongs", text);
    for (++text; *text && *text != ']'; ++text)
        if (!isspace((unsigned char)*text) && n + 1 < sizeof t) t[n++] = *text;
    t[n] = 0;
    int64_t add = 0;
    char *sign = strpbrk(t + (n > 0), "+-");
    if (sign) {
        char *from = *sign == '+' ? sign + 1 : sign, *end;
        add = strtoll(from, &end, 0);
        if (*end || end == from) gs_die(d, "address [%s]", t);
        *sign = 0;
    }
    gs_opnd o;
    if (!gs_find_register(d->parser, t, &o, NULL)) o = gs_parse_operand(d, t, 8);
    if (o.size < 4 || o.negated || o.minus) gs_die(d, "address [%s]", t);
    o.imm = add;
    return o;
}

/* "a, {b, c}, [d+4], p|q" -> flat list. */
static void split_args(gs_decoder *d, const char *s) {
    int group = 0, braces = 0, brackets = 0, parens = 0;
    bool bar = false;
    char t[GS_ARG_TEXT];
    size_t n = 0;
    d->n_arg = 0;
    for (;; ++s) {
        char c = *s;
        brackets += (c == '[') - (c == ']');
        parens += (c == '(') - (c == ')');
        bool stop = !c || (!brackets && (c == ',' || c == '|'));
        if (!brackets && (c == '{' || c == '}')) {
            braces += c == '{' ? 1 : -1;
            continue;
        }
        if (!stop) {
            if (n + 1 < sizeof t) {
                if (n || !isspace((unsigned char)c)) t[n++] = c;
            } else
                gs_die(d, "an operand of more than %zu characters", sizeof t - 1);
            continue;
        }
        while (n && isspace((unsigned char)t[n - 1])) --n;
        t[n] = 0;
        if (n) {
            if (d->n_arg == GS_MAX_ARGS) gs_die(d, "more than %d operands", GS_MAX_ARGS);
            gs_arg *a = &d->arg[d->n_arg++];
            memcpy(a->text, t, n + 1);
            a->group = group;
            a->after_bar = bar;
        }
        if (!c) break;
        bar = c == '|';
        if (!braces && !parens && !bar) ++group;
        n = 0;
    }
}
static void split_opcode(gs_decoder *d) {
    d->n_mod = d->n_type = 0;
    const char *s = d->opcode;
    for (bool first = true; *s; first = false) {
        const char *end = strchr(s, '.');
        size_t n = end ? (size_t)(end - s) : strlen(s);
        char *to = first ? d->base : d->mod[d->n_mod];
        if (n >= 32 || d->n_mod == GS_MAX_MODS) gs_die(d, "an opcode that long is not known");
        memcpy(to, s, n);
        to[n] = 0;
        if (!first) {
            gs_type t = gs_type_parse(to);
            d->used[d->n_mod++] = t != T_NONE;
            if (t && d->n_type < 8) d->types[d->n_type++] = t;
        }
        s += n + (end != NULL);
    }
}

static void guard(gs_parser *p, gs_ins *i, char **s) {
    char *q = *s + 1, name[64];
    while (isspace((unsigned char)*q)) ++q;
    i->guard = 1;
    if (*q == '!') {
        i->guard = 2;
        ++q;
    }
    size_t n = 0;
    while (*q && !isspace((unsigned char)*q) && n + 1 < sizeof name) name[n++] = *q++;
    name[n] = 0;
    gs_opnd o;
    gs_type type;
    if (!gs_find_register(p, name, &o, &type) || type != T_PRED) gs_parse_die(p, "guard '%s' is no predicate", name);
    i->guard_off = o.off;
    *s = q;
}
static void flow(gs_decoder *d, gs_ins *i, int pc) {
    gs_parser *p = d->parser;
    i->class = GS_C_BRANCH;
    if (!strcmp(d->base, "bra")) {
        gs_mod(d, "uni");
        gs_need_args(d, 1);
        i->flow = FLOW_BRANCH;
        gs_branch_to(p, pc, d->arg[0].text);
    } else if (!strcmp(d->base, "brx")) {
        gs_mod(d, "uni");
        if (!gs_mod(d, "idx")) gs_die(d, "not known");
        gs_need_args(d, 2);
        i->flow = FLOW_TABLE;
        gs_add_arg(d, 0, 4);
        gs_branch_table(p, pc, d->arg[1].text);
    } else if (!strcmp(d->base, "ret") && p->in) {
        gs_mod(d, "uni");
        i->flow = FLOW_BRANCH;
        gs_branch_to(p, pc, "$return");
    } else {
        gs_mod(d, "uni");
        i->flow = FLOW_EXIT;
    }
}

void gs_decode(gs_parser *p, char *s) {
    gs_decoder *d = &p->d;
    gs_ins *i = gs_new_ins(p);
    int pc = p->k->n_code - 1;
    d->module = p->m;
    d->kernel = p->k;
    d->parser = p;
    d->line = p->line;
    d->n_op = 0;
    while (isspace((unsigned char)*s)) ++s;
    if (*s == '@') guard(p, i, &s);
    while (isspace((unsigned char)*s)) ++s;
    size_t n = 0;
    while (*s && !isspace((unsigned char)*s) && n + 1 < sizeof d->opcode) d->opcode[n++] = *s++;
    d->opcode[n] = 0;
    split_opcode(d);
    split_args(d, s);
    i->type = d->n_type > 0 ? (uint8_t)d->types[0] : T_NONE;
    i->type2 = d->n_type > 1 ? (uint8_t)d->types[1] : T_NONE;
    i->type3 = d->n_type > 2 ? (uint8_t)d->types[2] : T_NONE;
    static const char *const flows[] = {"bra", "brx", "ret", "exit"};
    bool is_flow = false;
    for (size_t k = 0; k < sizeof flows / sizeof *flows; ++k) is_flow |= !strcmp(d->base, flows[k]);
    if (!strcmp(d->base, "call")) {
        gs_mod(d, "uni");
        gs_parse_call(p, i);
        return;
    }
    if (is_flow)
        flow(d, i, pc);
    else {
        const gs_row *row = NULL;
        for (const gs_row *const *t = p->m->tables; *t && !row; ++t)
            for (const gs_row *r = *t; r->name && !row; ++r)
                if (row_fits(d, r)) row = r;
        if (!row) gs_parse_die(p, "instruction '%s' is not implemented", d->opcode);
        i->exec = row->exec;
        i->class = row->class;
        for (const char *g = row->ignore; g && *g;) {
            char name[32];
            size_t length = strcspn(g, " ");
            if (length < sizeof name) {
                memcpy(name, g, length);
                name[length] = 0;
                gs_mod(d, name);
            }
            g += length;
            g += strspn(g, " ");
        }
        row->decode(d, i, row);
    }
    for (int k = 0; k < d->n_mod; ++k)
        if (!d->used[k]) gs_parse_die(p, "instruction '%s': modifier .%s is not implemented", d->opcode, d->mod[k]);
    i = &p->k->code[pc];
    for (int k = 0; k < d->n_op; ++k)
        if (d->op[k].minus) gs_die(d, "a negated register operand is not supported");
    i->n_op = (uint16_t)d->n_op;
    if (d->n_op) {
        i->op = malloc(sizeof *i->op * (size_t)d->n_op);
        if (!i->op) abort();
        memcpy(i->op, d->op, sizeof *i->op * (size_t)d->n_op);
    }
}
