/* SPDX-License-Identifier: Apache-2.0 */
/* Variables, their places and initial values, and registers (PTX ISA, chapter 5). */
#include <ctype.h>
#include <stdlib.h>

#include "parse.h"

/* ------------------------------------------------------------------ symbols */
uint32_t gs_parse_align_up(uint32_t v, uint32_t a) { return a ? (v + a - 1) / a * a : v; }
const gs_symbol *gs_parse_find_in(const gs_symbol *s, int n, const char *name) {
    for (int k = n - 1; k >= 0; --k)
        if (!strcmp(s[k].name, name)) return &s[k];
    return NULL;
}
gs_symbol *gs_parse_push_symbol(gs_parser *p) {
    p->sym = gs_grow(p->sym, p->n_sym, &p->cap_sym, sizeof *p->sym);
    memset(&p->sym[p->n_sym], 0, sizeof *p->sym);
    return &p->sym[p->n_sym++];
}
/* Static shared memory is one place per kernel and variable, however often its function is expanded. */
static const gs_symbol *place_shared(gs_parser *p, const char *name, size_t bytes, uint32_t align) {
    char full[2 * GS_ARG_TEXT];
    snprintf(full, sizeof full, "%s/%s", p->in ? p->in->name : "", name);
    gs_kernel *k = p->k;
    const gs_symbol *s = gs_parse_find_in(k->shared_static, k->n_shared_static, full);
    if (s) return s;
    k->shared_static = realloc(k->shared_static, sizeof *s * (size_t)(k->n_shared_static + 1));
    if (!k->shared_static) abort();
    k->shared_end = gs_parse_align_up(k->shared_end, align ? align : 1);
    gs_symbol *t = &k->shared_static[k->n_shared_static++];
    *t = (gs_symbol){strdup(full), SP_SHARED, k->shared_end, bytes, false};
    if (bytes > (1u << 20)) gs_parse_die(p, "shared variable %s of %zu bytes", name, bytes);
    k->shared_end += (uint32_t)bytes;
    k->uses_shared = true;
    return t;
}
const gs_symbol *gs_find_symbol(gs_parser *p, const char *name) {
    const gs_symbol *s = gs_parse_find_in(p->sym, p->n_sym, name);
    if (s) return s;
    if (p->k && !p->in && (s = gs_parse_find_in(p->k->param, p->k->n_param, name))) return s;
    if (!(s = gs_parse_find_in(p->m->global, p->m->n_global, name))) return NULL;
    if (s->space != SP_SHARED || !p->k) return s;
    if (!s->dynamic) { /* declared for the whole module, placed in each kernel that names it */
        gs_function *in = p->in;
        p->in = NULL;
        s = place_shared(p, name, s->bytes, (uint32_t)s->addr);
        p->in = in;
        return s;
    }
    if (p->k->dynamic_align < s->addr) p->k->dynamic_align = (uint32_t)s->addr;
    p->k->uses_shared = true;
    return s;
}

static uint64_t initial_value(gs_parser *p, const char *text, uint8_t bytes) {
    char *end;
    if (text[0] == '0' && (text[1] == 'f' || text[1] == 'F')) return strtoul(text + 2, NULL, 16);
    if (text[0] == '0' && (text[1] == 'd' || text[1] == 'D')) return strtoull(text + 2, NULL, 16);
    if (isdigit((unsigned char)*text) || *text == '-') {
        uint64_t v = *text == '-' ? 0 - strtoull(text + 1, &end, 0) : strtoull(text, &end, 0);
        if (*end == 0 || *end == 'U') return v;
    }
    char name[GS_ARG_TEXT];
    snprintf(name, sizeof name, "%s", text);
    int64_t add = 0;
    char *plus = strchr(name, '+');
    if (plus) {
        add = strtoll(plus + 1, NULL, 0);
        *plus = 0;
    }
    const gs_symbol *s = gs_parse_find_in(p->m->global, p->m->n_global, name);
    if (!s || s->space == SP_SHARED || bytes != 8)
        gs_parse_die(p, "initial value '%s' of %d bytes is not supported", text, bytes);
    return s->addr + (uint64_t)add;
}
static void initialise(gs_parser *p, uint8_t *to, size_t count, uint8_t each) {
    size_t n = 0;
    for (gs_parse_skip_space(p); *p->p && *p->p != ';'; gs_parse_skip_space(p)) {
        if (strchr("{},)", *p->p)) {
            p->p++;
            continue;
        }
        char text[GS_ARG_TEXT];
        size_t k = 0;
        while (*p->p && !strchr("{},;)", *p->p) && !isspace((unsigned char)*p->p) && k + 1 < sizeof text)
            text[k++] = *p->p++;
        text[k] = 0;
        char *name = text;
        if (!strncmp(text, "generic(", 8)) name += 8;
        if (n == count) gs_parse_die(p, "more initial values than the %zu of the variable", count);
        uint64_t v = initial_value(p, name, each);
        memcpy(to + n++ * each, &v, each);
    }
}

/* What stands between a space and a name: .align 8 .b8; returns the type. */
gs_type gs_parse_variable_head(gs_parser *p, uint32_t *align, char *name, size_t size) {
    gs_type type = T_NONE;
    *align = 0;
    for (;;) {
        gs_parse_word(p, name, size);
        if (!strcmp(name, ".align"))
            *align = (uint32_t)gs_parse_integer(p);
        else if (!strcmp(name, ".attribute"))
            gs_parse_past(p, ')');
        else if (name[0] == '.') {
            gs_type t = gs_type_parse(name + 1);
            if (t)
                type = t;
            else if (strcmp(name, ".ptr") && strcmp(name, ".global") && strcmp(name, ".shared") &&
                     strcmp(name, ".const") && strcmp(name, ".local") && strcmp(name, ".v2") && strcmp(name, ".v4"))
                gs_parse_die(p, "directive '%s' of a variable is not supported", name);
        } else
            break;
    }
    if (!type || !*name) gs_parse_die(p, "a variable without a %s", type ? "name" : "type");
    if (*align & (*align - 1) || *align > 4096) gs_parse_die(p, "alignment %u", *align);
    if (*align < gs_type_bytes[type]) *align = gs_type_bytes[type];
    return type;
}
size_t gs_parse_array_size(gs_parser *p, bool *open) {
    size_t n = 1;
    *open = false;
    while (gs_parse_accept(p, '[')) {
        gs_parse_skip_space(p);
        if (*p->p == ']')
            *open = true;
        else {
            int64_t v = gs_parse_integer(p);
            if (v < 0 || (v && n > (size_t)1 << 34) || v > (int64_t)1 << 34)
                gs_parse_die(p, "array of %lld", (long long)v);
            n *= (size_t)v;
        }
        gs_parse_expect(p, ']');
    }
    return n;
}
/* After ".shared", ".global", ".const", ".local" or a ".param" inside a body. */
void gs_parse_variable(gs_parser *p, gs_space space, bool external) {
    char name[GS_ARG_TEXT];
    uint32_t align;
    bool open;
    gs_type type = gs_parse_variable_head(p, &align, name, sizeof name);
    size_t count = gs_parse_array_size(p, &open), bytes = count * gs_type_bytes[type];
    if (p->k && space == SP_SHARED) {
        gs_symbol s = *place_shared(p, name, bytes, align);
        s.name = strdup(name);
        *gs_parse_push_symbol(p) = s;
    } else if (space == SP_LOCAL || space == SP_PARAM) {
        if (!p->k) gs_parse_die(p, "%s outside a function", name);
        if (bytes > (1u << 24)) gs_parse_die(p, "local variable %s of %zu bytes", name, bytes);
        p->k->local_bytes = gs_parse_align_up(p->k->local_bytes, align);
        *gs_parse_push_symbol(p) = (gs_symbol){strdup(name), SP_LOCAL, p->k->local_bytes, bytes, false};
        p->k->local_bytes += (uint32_t)bytes;
    } else {
        gs_module *m = p->m;
        m->global = realloc(m->global, sizeof *m->global * (size_t)(m->n_global + 1));
        if (!m->global) abort();
        gs_symbol *s = &m->global[m->n_global];
        *s = (gs_symbol){strdup(name), space, 0, open ? 0 : bytes, open && external};
        m->n_global++;
        if (space == SP_SHARED) {
            s->addr = align; /* placed by each kernel */
        } else if (external) {
            gs_parse_die(p, "extern variable %s: separate compilation (-rdc) is not supported", name);
        } else {
            uint8_t *at = aligned_alloc(256, (bytes + 511) & ~(size_t)255);
            if (!at) gs_parse_die(p, "no memory for variable %s of %zu bytes", name, bytes);
            memset(at, 0, bytes);
            s->addr = (uint64_t)(uintptr_t)at;
            gs_mem_register(at, bytes ? bytes : 1);
            if (gs_parse_accept(p, '=')) initialise(p, at, count, gs_type_bytes[type]);
        }
    }
    gs_parse_expect(p, ';');
}

/* ------------------------------------------------------------------ registers */
void gs_parse_registers(gs_parser *p) {
    char type_name[32];
    gs_parse_word(p, type_name, sizeof type_name);
    gs_type type = type_name[0] == '.' ? gs_type_parse(type_name + 1) : T_NONE;
    if (!type) gs_parse_die(p, "registers of type '%s'", type_name);
    uint32_t each = type == T_PRED ? 4 : 32u * (gs_type_bytes[type] < 2 ? 2 : gs_type_bytes[type]);
    do {
        p->reg = gs_grow(p->reg, p->n_reg, &p->cap_reg, sizeof *p->reg);
        gs_regdecl *r = &p->reg[p->n_reg];
        gs_parse_word(p, r->name, sizeof r->name);
        r->type = (uint8_t)type;
        r->count = -1;
        if (gs_parse_accept(p, '<')) {
            int64_t n = gs_parse_integer(p);
            if (n < 0 || n > 1000000) gs_parse_die(p, "%lld registers", (long long)n);
            r->count = (int)n;
            gs_parse_expect(p, '>');
        }
        p->k->reg_bytes = gs_parse_align_up(p->k->reg_bytes, 64);
        r->off = p->k->reg_bytes;
        p->k->reg_bytes += each * (uint32_t)(r->count < 0 ? 1 : r->count);
        if (p->k->reg_bytes > 1u << 28) gs_parse_die(p, "too many registers");
        p->n_reg++;
    } while (gs_parse_accept(p, ','));
    gs_parse_expect(p, ';');
}
bool gs_find_register(gs_parser *p, const char *name, gs_opnd *o, gs_type *type) {
    size_t length = strlen(name);
    for (int k = p->n_reg - 1; k >= 0; --k) {
        const gs_regdecl *r = &p->reg[k];
        int index = 0;
        if (r->count < 0) {
            if (strcmp(r->name, name)) continue;
        } else {
            size_t n = strlen(r->name);
            if (length <= n || strncmp(r->name, name, n) || !isdigit((unsigned char)name[n])) continue;
            char *end;
            long v = strtol(name + n, &end, 10);
            if (*end || v >= r->count) continue;
            index = (int)v;
        }
        bool pred = r->type == T_PRED;
        uint8_t size = pred ? 4 : gs_type_bytes[r->type] < 2 ? 2 : gs_type_bytes[r->type];
        *o = (gs_opnd){
            .base = BASE_REG, .size = size, .pred = pred, .off = r->off + (uint32_t)index * (pred ? 4u : 32u * size)};
        if (type) *type = (gs_type)r->type;
        return true;
    }
    return false;
}
