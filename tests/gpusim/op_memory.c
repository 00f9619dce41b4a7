/* SPDX-License-Identifier: Apache-2.0 */
/* ld, st, atom, red, mov, cvta, isspacep, mapa, prefetch (PTX ISA, data movement instructions). Loads narrower than their
 * register are extended as their type says. Cache operators and hints have no effect. */
#include <stdlib.h>

#include "core.h"
#include "lanes.h"

#define CACHE                                                                                                          \
    "ca cg cs lu cv wb wt nc weak L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last "                \
    "L1::no_allocate L2::64B "                                                                                         \
    "L2::128B L2::256B L2::evict_first L2::evict_last L2::evict_normal L2::cache_hint cta cluster gpu sys unified"

enum { WEAK, VOLATILE, STRONG }; /* gs_ins.sub of ld and st */

static int strength(gs_decoder *d) {
    static const char *const names[] = {"volatile", "relaxed", "acquire", "release"};
    int k = gs_mod_of(d, names, 4, -1);
    return k < 0 ? WEAK : k == 0 ? VOLATILE : STRONG;
}
/* Kernels whose blocks can see each other's results run their blocks in order. */
static void orders(gs_decoder *d, const gs_ins *i) {
    if (i->space == SP_GENERIC || i->space == SP_GLOBAL) d->kernel->ordered = true;
}
static void classify(gs_ins *i, bool store) {
    i->class = i->space == SP_SHARED  ? (store ? GS_C_ST_SHARED : GS_C_LD_SHARED)
               : i->space == SP_LOCAL ? GS_C_LOCAL
               : i->space == SP_PARAM ? GS_C_PARAM
                                      : (store ? GS_C_ST_GLOBAL : GS_C_LD_GLOBAL);
}
/* .param of a call is a variable of the caller's frame. */
static void param_space(gs_decoder *d, gs_ins *i, int arg) {
    if (i->space != SP_PARAM) return;
    char name[GS_ARG_TEXT];
    const char *t = d->arg[arg].text + 1;
    size_t n = strcspn(t, "+]- ");
    memcpy(name, t, n);
    name[n] = 0;
    const gs_symbol *s = gs_find_symbol(d->parser, name);
    if (s && s->space == SP_LOCAL) i->space = SP_LOCAL;
}
static void vector_width(gs_decoder *d, gs_ins *i) {
    static const char *const names[] = {"v2", "v4"};
    int k = gs_mod_of(d, names, 2, -1);
    i->vec = k < 0 ? 1 : k ? 4 : 2;
    if (i->vec * gs_type_bytes[i->type] > 16) gs_die(d, "an access of more than 16 bytes");
}

/* ------------------------------------------------------------------ ld */
/* All lanes in one allocation and aligned? Then no lane needs a look of its own. */
static bool all_inside(gs_warp *w, const uint64_t a[32], uint32_t n) {
    const gs_worker *wk = w->block->worker;
    uint64_t lo = a[0], hi = a[0], low_bits = 0;
    for (int l = 0; l < 32; ++l) {
        lo = a[l] < lo ? a[l] : lo;
        hi = a[l] > hi ? a[l] : hi;
        low_bits |= a[l];
    }
    return !(low_bits & (n - 1)) && lo >= wk->range_start && hi < wk->range_end && hi + n <= wk->range_end;
}
static void put_int(uint8_t *d, uint32_t size, int l, int64_t v) {
    switch (size) {
    case 2: ((uint16_t *)d)[l] = (uint16_t)v; break;
    case 4: ((uint32_t *)d)[l] = (uint32_t)v; break;
    default: ((uint64_t *)d)[l] = (uint64_t)v; break;
    }
}
static int64_t widen(const uint8_t *p, uint8_t type) {
    int64_t v = 0;
    memcpy(&v, p, gs_type_bytes[type]);
    switch (type) {
    case T_S8: return (int8_t)v;
    case T_S16: return (int16_t)v;
    case T_S32: return (int32_t)v;
    default: return v;
    }
}
static void put_loaded(gs_warp *w, const gs_ins *i, int l, const uint8_t *p) {
    uint32_t es = gs_type_bytes[i->type];
    for (int v = 0; v < i->vec; ++v) {
        uint32_t ds = i->op[v].size;
        if (!ds) continue;
        uint8_t *d = OPND(v);
        if (!p)
            memset(d + (uint32_t)l * ds, 0xBD, ds);
        else if (ds == es)
            memcpy(d + (uint32_t)l * ds, p + (uint32_t)v * es, es);
        else
            put_int(d, ds, l, widen(p + (uint32_t)v * es, i->type));
    }
}
/* What the lanes of m loaded, from p[lane]; the common sizes apart. */
static void put_all(gs_warp *w, const gs_ins *i, uint32_t m, const uint8_t *const p[32]) {
    uint32_t es = gs_type_bytes[i->type];
    bool plain = es == 2 || es == 4 || es == 8;
    for (int v = 0; v < i->vec; ++v) plain &= i->op[v].size == es;
    for (uint32_t rest = m; rest && plain; rest &= rest - 1) plain &= p[__builtin_ctz(rest)] != NULL;
    if (!plain) {
        for (uint32_t rest = m; rest; rest &= rest - 1) put_loaded(w, i, __builtin_ctz(rest), p[__builtin_ctz(rest)]);
        return;
    }
    for (int v = 0; v < i->vec; ++v) {
        uint8_t *d = OPND(v);
        if (es == 4)
            LANES({ memcpy(d + 4 * l, p[l] + 4 * v, 4); });
        else if (es == 8)
            LANES({ memcpy(d + 8 * l, p[l] + 8 * v, 8); });
        else
            LANES({ memcpy(d + 2 * l, p[l] + 2 * v, 2); });
    }
}
static void ld(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint64_t a[32];
    const uint8_t *from[32];
    uint32_t n = (uint32_t)gs_type_bytes[i->type] * i->vec;
    gs_lane_addresses(w, i, i->vec, a);
    gs_space space = (gs_space)i->space;
    gs_count_access(w, i, space, a, m, n, false);
    bool quick =
        m == 0xffffffffu && (space == SP_GLOBAL || space == SP_GENERIC || space == SP_CONST) && all_inside(w, a, n);
    bool strong = i->sub == STRONG;
    uint64_t progress = w->block->worker->progress; /* a load ends nobody's wait */
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        const uint8_t *p =
            quick ? (const uint8_t *)(uintptr_t)a[l] : gs_address(w, space, a[l], n, l, strong ? GS_ATOMIC : GS_READ);
        if (strong && p) {
            bool shared = space == SP_SHARED || (space == SP_GENERIC && (a[l] & GS_WINDOW_MASK) == GS_SHARED_WINDOW);
            uint32_t inside;
            gs_block *b = shared ? gs_shared_owner(w, (uint32_t)a[l], &inside, l) : NULL;
            if (b) gs_clock_sync_word(w, b, inside);
        }
        from[l] = p;
    }
    put_all(w, i, m, from);
    w->block->worker->progress = progress;
}
/* Parameters are the same for all lanes, when the address is. */
static void ld_param(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint64_t a[32];
    const uint8_t *from[32];
    gs_lane_addresses(w, i, i->vec, a);
    uint32_t n = (uint32_t)gs_type_bytes[i->type] * i->vec;
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        if (a[l] + n > w->block->kernel->param_bytes)
            gs_stop(w, GS_FAULT_ADDRESS, "out of bounds", l, "parameter offset %llu of %u bytes",
                    (unsigned long long)a[l], w->block->kernel->param_bytes);
        from[l] = w->block->worker->launch->param + a[l];
    }
    put_all(w, i, m, from);
}
static void decode_ld(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    i->space = (uint8_t)gs_mod_space(d);
    i->sub = (uint8_t)strength(d);
    vector_width(d, i);
    int address = i->vec; /* a cache policy may follow it */
    if (d->n_arg != i->vec + 1 && !(d->n_arg == i->vec + 2 && gs_mod(d, "L2::cache_hint")))
        gs_die(d, "%d operands", d->n_arg);
    param_space(d, i, address);
    for (int k = 0; k < i->vec; ++k) gs_add_arg(d, k, gs_type_bytes[i->type]);
    gs_add_address(d, address);
    if (i->space == SP_PARAM) i->exec = ld_param;
    if (i->sub != WEAK) orders(d, i);
    classify(i, false);
}

/* ------------------------------------------------------------------ st */
static void st(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint64_t a[32];
    uint32_t es = gs_type_bytes[i->type], n = es * i->vec;
    gs_lane_addresses(w, i, 0, a);
    gs_space space = (gs_space)i->space;
    gs_count_access(w, i, space, a, m, n, true);
    bool quick = m == 0xffffffffu && (space == SP_GLOBAL || space == SP_GENERIC) && all_inside(w, a, n);
    if (quick) w->block->worker->progress++;
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        uint8_t value[16];
        for (int v = 0; v < i->vec; ++v)
            memcpy(value + (uint32_t)v * es, OPND(1 + v) + (uint32_t)l * i->op[1 + v].size, es);
        uint8_t *p = quick              ? (uint8_t *)(uintptr_t)a[l]
                     : i->sub == STRONG ? gs_address(w, space, a[l], n, l, GS_ATOMIC)
                                        : gs_address_store(w, space, a[l], n, l, value);
        if (!p) continue;
        if (i->sub == STRONG) {
            bool shared = space == SP_SHARED || (space == SP_GENERIC && (a[l] & GS_WINDOW_MASK) == GS_SHARED_WINDOW);
            uint32_t inside;
            gs_block *b = shared ? gs_shared_owner(w, (uint32_t)a[l], &inside, l) : NULL;
            if (b) gs_clock_sync_word(w, b, inside);
        }
        memcpy(p, value, n);
    }
}
static void decode_st(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    i->space = (uint8_t)gs_mod_space(d);
    i->sub = (uint8_t)strength(d);
    vector_width(d, i);
    if (d->n_arg != i->vec + 1 && !(d->n_arg == i->vec + 2 && gs_mod(d, "L2::cache_hint")))
        gs_die(d, "%d operands", d->n_arg);
    param_space(d, i, 0);
    if (i->space == SP_PARAM) gs_die(d, "a store to a kernel parameter");
    gs_add_address(d, 0);
    for (int k = 0; k < i->vec; ++k) gs_add_arg(d, 1 + k, gs_type_bytes[i->type]);
    if (i->sub != WEAK) orders(d, i);
    classify(i, true);
}

/* ------------------------------------------------------------------ atom, red */
enum { A_ADD, A_MIN, A_MAX, A_INC, A_DEC, A_EXCH, A_CAS, A_AND, A_OR, A_XOR, A_OPS };
static const char *const atom_name[A_OPS] = {"add", "min", "max", "inc", "dec", "exch", "cas", "and", "or", "xor"};

static uint64_t atom_int(uint8_t op, uint8_t type, uint64_t old, uint64_t b, uint64_t c) {
    bool is_signed = type == T_S32 || type == T_S64;
    int64_t so = type == T_S32 ? (int32_t)old : (int64_t)old, sb = type == T_S32 ? (int32_t)b : (int64_t)b;
    switch (op) {
    case A_ADD: return old + b;
    case A_MIN: return (is_signed ? so < sb : old < b) ? old : b;
    case A_MAX: return (is_signed ? so > sb : old > b) ? old : b;
    case A_INC: return old >= b ? 0 : old + 1;
    case A_DEC: return old == 0 || old > b ? b : old - 1;
    case A_EXCH: return b;
    case A_CAS: return old == b ? c : old;
    case A_AND: return old & b;
    case A_OR: return old | b;
    default: return old ^ b;
    }
}
static uint16_t atom_half(uint8_t op, bool bf, uint16_t a, uint16_t b) {
    float x = bf ? gs_b2f(a) : gs_h2f(a), y = bf ? gs_b2f(b) : gs_h2f(b);
    if (op == A_ADD) return bf ? gs_d2b((double)x + y) : gs_d2h((double)x + y);
    float r = op == A_MIN ? fminf(x, y) : fmaxf(x, y);
    return bf ? gs_f2b(r) : gs_f2h(r);
}
static uint64_t atom_value(const gs_ins *i, uint64_t old, uint64_t b, uint64_t c) {
    uint64_t r = 0;
    if (i->sub == A_EXCH || i->sub == A_CAS) return atom_int(i->sub, i->type, old, b, c);
    switch (i->type) {
    case T_F32: {
        float x = gs_float((uint32_t)old), y = gs_float((uint32_t)b);
        return gs_bits(x + y);
    }
    case T_F64: {
        double x, y;
        memcpy(&x, &old, 8);
        memcpy(&y, &b, 8);
        x += y;
        memcpy(&r, &x, 8);
        return r;
    }
    case T_F16:
    case T_BF16: return atom_half(i->sub, i->type == T_BF16, (uint16_t)old, (uint16_t)b);
    case T_F16X2:
    case T_BF16X2:
        for (int k = 0; k < 32; k += 16)
            r |= (uint64_t)atom_half(i->sub, i->type == T_BF16X2, (uint16_t)(old >> k), (uint16_t)(b >> k)) << k;
        return r;
    default: return atom_int(i->sub, i->type, old, b, c);
    }
}
/* operands: vec destinations (size 0 for red), address, vec values, and c of cas */
static void atom(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint64_t a[32];
    uint32_t es = gs_type_bytes[i->type], n = es * i->vec;
    gs_lane_addresses(w, i, i->vec, a);
    gs_count_access(w, i, (gs_space)i->space, a, m, n, true);
    uint64_t progress = w->block->worker->progress; /* an exchange that changes nothing ends nobody's wait */
    bool changed = false;
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        uint8_t *p = gs_address(w, (gs_space)i->space, a[l], n, l, GS_ATOMIC);
        if (!p) continue;
        bool shared = i->space == SP_SHARED || (i->space == SP_GENERIC && (a[l] & GS_WINDOW_MASK) == GS_SHARED_WINDOW);
        uint32_t inside;
        gs_block *b = shared ? gs_shared_owner(w, (uint32_t)a[l], &inside, l) : NULL;
        if (b) gs_clock_sync_word(w, b, inside);
        for (int v = 0; v < i->vec; ++v) {
            uint64_t old = 0, x = 0, c = 0;
            memcpy(&old, p + (uint32_t)v * es, es);
            memcpy(&x, OPND(i->vec + 1 + v) + (uint32_t)l * i->op[i->vec + 1 + v].size, es);
            if (i->sub == A_CAS) memcpy(&c, OPND(i->vec + 2) + (uint32_t)l * i->op[i->vec + 2].size, es);
            uint64_t r = atom_value(i, old, x, c);
            changed |= memcmp(p + (uint32_t)v * es, &r, es) != 0;
            memcpy(p + (uint32_t)v * es, &r, es);
            if (i->op[v].size) put_int(OPND(v), i->op[v].size, l, (int64_t)old);
        }
    }
    w->block->worker->progress = progress + changed;
}
static void decode_atom(gs_decoder *d, gs_ins *i, const gs_row *row) {
    bool red = !strcmp(row->name, "red");
    static const char *const order[] = {"relaxed", "acquire", "release", "acq_rel"};
    gs_mod_of(d, order, 4, 0);
    i->space = (uint8_t)gs_mod_space(d);
    int op = gs_mod_of(d, atom_name, A_OPS, -1);
    if (op < 0) gs_die(d, "no operation");
    i->sub = (uint8_t)op;
    i->vec = gs_mod(d, "v2") ? 2 : gs_mod(d, "v4") ? 4 : gs_mod(d, "v8") ? 8 : 1;
    uint8_t t = i->type;
    bool real = t == T_F32 || t == T_F64 || t == T_F16 || t == T_BF16 || t == T_F16X2 || t == T_BF16X2;
    bool half = real && t != T_F32 && t != T_F64;
    if (gs_type_bytes[t] < 2 || gs_type_bytes[t] > 8 ||
        (real && op != A_ADD && op != A_EXCH && !(half && (op == A_MIN || op == A_MAX))))
        gs_die(d, "type");
    if (i->vec * gs_type_bytes[t] > 16) gs_die(d, "more than 16 bytes");
    if (half) gs_mod(d, "noftz");
    bool used = false;
    int at = 0;
    for (int v = 0; v < i->vec; ++v) {
        if (red)
            gs_add(d, gs_no_operand);
        else
            gs_add_arg(d, at++, gs_type_bytes[t]);
        used |= d->op[d->n_op - 1].size != 0;
    }
    gs_add_address(d, at++);
    for (int v = 0; v < i->vec + (op == A_CAS); ++v) gs_add_arg(d, at++, gs_type_bytes[t]);
    if (at < d->n_arg && gs_mod(d, "L2::cache_hint")) ++at;
    gs_need_args(d, at);
    bool commutes = !real && op != A_EXCH && op != A_CAS && op != A_INC && op != A_DEC;
    if (used || !commutes) orders(d, i);
    i->class = GS_C_ATOMIC;
}

/* ------------------------------------------------------------------ mov */
UNARY(mov16, uint16_t, a)
UNARY(mov32, uint32_t, a)
UNARY(mov64, uint64_t, a)
static void mov128(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint8_t *d = OPND(0);
    const uint8_t *s = OPND(1);
    LANES({ memcpy(d + 16 * l, s + 16 * l, 16); });
}
static void mov_pred(gs_warp *w, const gs_ins *i, uint32_t m) { gs_pred_write(w, i, 0, gs_pred_read(w, i, 1), m); }
/* {a, b} -> d and d -> {a, b}; parts are their size, whatever their registers' */
static void pack(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint32_t part = i->op[0].size / i->vec;
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        uint32_t l = (uint32_t)__builtin_ctz(rest);
        uint8_t v[16];
        for (uint32_t k = 0; k < i->vec; ++k) memcpy(v + k * part, OPND(1 + k) + l * i->op[1 + k].size, part);
        memcpy(OPND(0) + l * i->op[0].size, v, i->op[0].size);
    }
}
static void unpack(gs_warp *w, const gs_ins *i, uint32_t m) {
    const gs_opnd *from = &i->op[i->vec];
    uint32_t part = from->size / i->vec;
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        uint32_t l = (uint32_t)__builtin_ctz(rest);
        uint8_t v[16];
        memcpy(v, OPND(i->vec) + l * from->size, from->size);
        for (uint32_t k = 0; k < i->vec; ++k) {
            if (!i->op[k].size) continue;
            int64_t x = 0;
            memcpy(&x, v + k * part, part);
            put_int(OPND(k), i->op[k].size, (int)l, x);
        }
    }
}
/* A clock: warp instructions executed, so that it advances and is the same in every run. */
static void mov_clock(gs_warp *w, const gs_ins *i, uint32_t m) {
    LANES({ put_int(OPND(0), i->op[0].size, l, (int64_t)(w->ins >> i->imm)); });
}
static void decode_mov(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    int bytes = gs_type_bytes[i->type];
    if (d->n_arg < 2) gs_die(d, "%d operands", d->n_arg);
    if (i->type == T_PRED) {
        gs_need_args(d, 2);
        i->exec = mov_pred;
        gs_add_arg(d, 0, 4);
        gs_add_arg(d, 1, 4);
        return;
    }
    if (d->n_arg > 2) {
        bool to_parts = d->arg[1].group == d->arg[0].group;
        i->vec = (uint8_t)(d->n_arg - 1);
        if (i->vec != 2 && i->vec != 4) gs_die(d, "%d operands", d->n_arg);
        for (int k = 0; k < d->n_arg; ++k) gs_add_arg(d, k, k == (to_parts ? i->vec : 0) ? bytes : bytes / i->vec);
        i->exec = to_parts ? unpack : pack;
        if (d->op[to_parts ? i->vec : 0].size != bytes) gs_die(d, "a register of other size");
        return;
    }
    gs_add_arg(d, 0, bytes);
    const char *from = d->arg[1].text;
    if (!strncmp(from, "%clock", 6) || !strncmp(from, "%globaltimer", 12)) {
        i->imm = strstr(from, "_hi") ? 32 : 0;
        i->exec = mov_clock;
        return;
    }
    gs_add_arg(d, 1, bytes);
    if (d->op[1].base == BASE_SPECIAL && bytes == 8) gs_die(d, "special register %s has 32 bits", from);
    i->exec = d->op[0].size == 2 ? mov16 : d->op[0].size == 4 ? mov32 : d->op[0].size == 8 ? mov64 : mov128;
    if (d->op[0].size != d->op[1].size) gs_die(d, "registers of different size");
}

/* ------------------------------------------------------------------ address spaces */
UNARY(to_space, uint64_t, a & ~GS_WINDOW_MASK)
UNARY(from_shared, uint64_t, a | GS_SHARED_WINDOW)
UNARY(from_local, uint64_t, a | GS_LOCAL_WINDOW)
static void from_param(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint64_t *d = (uint64_t *)OPND(0), base = (uint64_t)(uintptr_t)w->block->worker->launch->param;
    const uint64_t *A = (const uint64_t *)OPND(1);
    LANES({ d[l] = A[l] + base; });
}
static void to_param(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint64_t *d = (uint64_t *)OPND(0), base = (uint64_t)(uintptr_t)w->block->worker->launch->param;
    const uint64_t *A = (const uint64_t *)OPND(1);
    LANES({ d[l] = A[l] - base; });
}
static void decode_cvta(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    bool to = gs_mod(d, "to");
    gs_space space = gs_mod_space(d);
    gs_need_args(d, 2);
    gs_add_arg(d, 0, 8);
    const gs_symbol *s = gs_find_symbol(d->parser, d->arg[1].text);
    if (s && space == SP_PARAM && s->space == SP_LOCAL) space = SP_LOCAL;
    gs_add_arg(d, 1, 8);
    switch (space) {
    case SP_SHARED: i->exec = to ? to_space : from_shared; break;
    case SP_LOCAL: i->exec = to ? to_space : from_local; break;
    case SP_PARAM: i->exec = to ? to_param : from_param; break;
    default: i->exec = mov64; break;
    }
}
static void isspacep(gs_warp *w, const gs_ins *i, uint32_t m) {
    const uint64_t *A = (const uint64_t *)OPND(1);
    uint32_t r = 0;
    for (int l = 0; l < 32; ++l) {
        uint64_t window = A[l] & GS_WINDOW_MASK;
        uint32_t rank = (uint32_t)(A[l] >> 24) & 255;
        bool own = rank == 0 || rank == w->block->rank + 1;
        bool is = i->space == SP_SHARED  ? window == GS_SHARED_WINDOW && (i->flag || own)
                  : i->space == SP_LOCAL ? window == GS_LOCAL_WINDOW
                                         : window == 0;
        r |= (uint32_t)is << l;
    }
    gs_pred_write(w, i, 0, r, m);
}
static void decode_isspacep(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    i->flag = gs_mod(d, "shared::cluster");
    i->space = (uint8_t)gs_mod_space(d);
    if (i->space == SP_CONST || i->space == SP_PARAM) gs_die(d, "this space");
    gs_need_args(d, 2);
    gs_add_arg(d, 0, 4);
    gs_add_arg(d, 1, 8);
}
static void mapa(gs_warp *w, const gs_ins *i, uint32_t m) {
    const uint32_t *rank = (const uint32_t *)OPND(2);
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        uint64_t a = 0;
        memcpy(&a, OPND(1) + (uint32_t)l * i->op[1].size, i->op[1].size);
        if (rank[l] >= (uint32_t)w->block->cluster->n_block)
            gs_find(w, GS_FAULT_ADDRESS, "distributed shared memory", l, -1, "mapa to block %u of a cluster of %d",
                    rank[l], w->block->cluster->n_block);
        a = (a & ~0xff000000ull) | (uint64_t)(rank[l] + 1) << 24;
        put_int(OPND(0), i->op[0].size, l, (int64_t)a);
    }
}
static void getctarank(gs_warp *w, const gs_ins *i, uint32_t m) {
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        uint64_t a = 0;
        memcpy(&a, OPND(1) + (uint32_t)l * i->op[1].size, i->op[1].size);
        uint32_t rank = (uint32_t)(a >> 24) & 255;
        put_int(OPND(0), i->op[0].size, l, rank ? rank - 1 : w->block->rank);
    }
}
static void decode_mapa(gs_decoder *d, gs_ins *i, const gs_row *row) {
    gs_mod_space(d);
    bool rank = !strcmp(row->name, "getctarank");
    gs_need_args(d, rank ? 2 : 3);
    gs_add_arg(d, 0, rank ? 4 : gs_type_bytes[i->type]);
    gs_add_arg(d, 1, gs_type_bytes[i->type]);
    if (!rank) gs_add_arg(d, 2, 4);
}
static void decode_nothing(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)i;
    (void)row;
    gs_mod_space(d);
}
/* createpolicy: a number that only hints read */
static void policy(gs_warp *w, const gs_ins *i, uint32_t m) {
    uint64_t *d = (uint64_t *)OPND(0);
    LANES({ d[l] = 0; });
}
static void decode_policy(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    for (int k = 0; k < d->n_mod; ++k) d->used[k] = true; /* all of it is about caching */
    gs_add_arg(d, 0, 8);
    i->class = GS_C_OTHER;
}

GS_TABLE(memory) = {
    {"ld", T_NONE, decode_ld, ld, GS_C_LD_GLOBAL, CACHE},
    {"ldu", T_NONE, decode_ld, ld, GS_C_LD_GLOBAL, NULL},
    {"st", T_NONE, decode_st, st, GS_C_ST_GLOBAL, CACHE},
    {"atom", T_NONE, decode_atom, atom, GS_C_ATOMIC, "cta cluster gpu sys L2::cache_hint"},
    {"red", T_NONE, decode_atom, atom, GS_C_ATOMIC, "cta cluster gpu sys L2::cache_hint"},
    {"mov", T_NONE, decode_mov, NULL, GS_C_MOVE, NULL},
    {"cvta", T_NONE, decode_cvta, NULL, GS_C_MOVE, NULL},
    {"isspacep", T_NONE, decode_isspacep, isspacep, GS_C_COMPARE, NULL},
    {"mapa", T_U32, decode_mapa, mapa, GS_C_INT, NULL},
    {"mapa", T_U64, decode_mapa, mapa, GS_C_INT, NULL},
    {"getctarank", T_U32, decode_mapa, getctarank, GS_C_INT, NULL},
    {"getctarank", T_U64, decode_mapa, getctarank, GS_C_INT, NULL},
    {"prefetch", T_NONE, decode_nothing, NULL, GS_C_OTHER, "L1 L2 L2::evict_last L2::evict_normal tensormap"},
    {"prefetchu", T_NONE, decode_nothing, NULL, GS_C_OTHER, "L1"},
    {"applypriority", T_NONE, decode_nothing, NULL, GS_C_OTHER, "L2::evict_normal"},
    {"createpolicy", T_NONE, decode_policy, policy, GS_C_OTHER, NULL},
    {NULL, T_NONE, NULL, NULL, 0, NULL}};
