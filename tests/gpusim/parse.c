/* SPDX-License-Identifier: Apache-2.0 */
/* PTX text -> module: directives, variables, register declarations, scopes, labels (PTX ISA, chapters 4, 5 and 11).
 * Instructions go to decode.c. A call is expanded where it stands: the body of the callee is parsed again with the caller's
 * parameter storage under the callee's names, so that running code knows no call stack (recursion is refused). */
#include <ctype.h>
#include <stdlib.h>

#include "core.h"

typedef struct gs_label {
    char name[96];
    int pc, scope;
} gs_label;
typedef struct gs_fixup { /* a branch whose label is not placed yet; scope moves outwards as scopes close */
    char name[96];
    int pc, scope, entry; /* entry of a branch table, -1: the target */
} gs_fixup;

static _Thread_local char g_error[1024];
const char *gs_error(void) { return g_error; }
void gs_set_error(const char *format, ...) {
    va_list a;
    va_start(a, format);
    vsnprintf(g_error, sizeof g_error, format, a);
    va_end(a);
}
_Noreturn void gs_parse_die(gs_parser *p, const char *format, ...) {
    char text[800];
    va_list a;
    va_start(a, format);
    vsnprintf(text, sizeof text, format, a);
    va_end(a);
    gs_set_error("%s, PTX line %d: %s", p->m->name, p->line, text);
    longjmp(p->stop, 1);
}

void *gs_grow(void *array, int n, int *cap, size_t each) {
    if (n < *cap) return array;
    *cap = *cap ? 2 * *cap : 64;
    void *q = realloc(array, (size_t)*cap * each);
    if (!q) abort();
    return q;
}
char *gs_strdup_range(const char *a, const char *b) {
    char *s = malloc((size_t)(b - a) + 1);
    if (!s) abort();
    memcpy(s, a, (size_t)(b - a));
    s[b - a] = 0;
    return s;
}

/* ------------------------------------------------------------------ characters and words */
static void skip_space(gs_parser *p) {
    for (;;) {
        while (isspace((unsigned char)*p->p)) p->line += *p->p++ == '\n';
        if (p->p[0] == '/' && p->p[1] == '/') {
            while (*p->p && *p->p != '\n') p->p++;
        } else if (p->p[0] == '/' && p->p[1] == '*') {
            p->p += 2;
            while (*p->p && !(p->p[0] == '*' && p->p[1] == '/')) p->line += *p->p++ == '\n';
            if (*p->p) p->p += 2;
        } else
            return;
    }
}
static bool word_char(int c) { return isalnum(c) || c == '_' || c == '$' || c == '%' || c == '.'; }
/* The next word: a directive, an opcode or a name; "a::b" is one word. */
static void word(gs_parser *p, char *out, size_t size) {
    skip_space(p);
    size_t n = 0;
    for (;;) {
        size_t take = word_char((unsigned char)*p->p) ? 1 : p->p[0] == ':' && p->p[1] == ':' ? 2 : 0;
        if (!take) break;
        for (; take; --take, ++p->p)
            if (n + 1 < size)
                out[n++] = *p->p;
            else
                gs_parse_die(p, "a name of more than %zu characters", size - 1);
    }
    out[n] = 0;
}
static bool accept(gs_parser *p, char c) {
    skip_space(p);
    if (*p->p != c) return false;
    p->p++;
    return true;
}
static void expect(gs_parser *p, char c) {
    if (!accept(p, c)) gs_parse_die(p, "'%c' expected before \"%.20s\"", c, p->p);
}
static int64_t integer(gs_parser *p) {
    skip_space(p);
    char *end;
    long long v = strtoll(p->p, &end, 0);
    if (end == p->p) gs_parse_die(p, "a number expected before \"%.20s\"", p->p);
    p->p = end;
    if (*p->p == 'U') p->p++;
    return v;
}
static void to_line_end(gs_parser *p) {
    while (*p->p && *p->p != '\n') p->p++;
}
static void past(gs_parser *p, char c) {
    while (*p->p && *p->p != c) p->line += *p->p++ == '\n';
    if (*p->p) p->p++;
}
/* Past the "}" that matches the "{" at p, over comments. */
static void past_braces(gs_parser *p) {
    int depth = 0;
    do {
        skip_space(p);
        if (!*p->p) gs_parse_die(p, "the text ends inside braces");
        if (*p->p == '"') {
            p->p++;
            past(p, '"');
            continue;
        }
        depth += *p->p == '{' ? 1 : *p->p == '}' ? -1 : 0;
        p->p++;
    } while (depth);
}

/* ------------------------------------------------------------------ symbols */
static uint32_t align_up(uint32_t v, uint32_t a) { return a ? (v + a - 1) / a * a : v; }
static const gs_symbol *find_in(const gs_symbol *s, int n, const char *name) {
    for (int k = n - 1; k >= 0; --k)
        if (!strcmp(s[k].name, name)) return &s[k];
    return NULL;
}
static gs_symbol *push_symbol(gs_parser *p) {
    p->sym = gs_grow(p->sym, p->n_sym, &p->cap_sym, sizeof *p->sym);
    memset(&p->sym[p->n_sym], 0, sizeof *p->sym);
    return &p->sym[p->n_sym++];
}
/* Static shared memory is one place per kernel and variable, however often its function is expanded. */
static const gs_symbol *place_shared(gs_parser *p, const char *name, size_t bytes, uint32_t align) {
    char full[256];
    snprintf(full, sizeof full, "%s/%s", p->in ? p->in->name : "", name);
    gs_kernel *k = p->k;
    const gs_symbol *s = find_in(k->shared_static, k->n_shared_static, full);
    if (s) return s;
    k->shared_static = realloc(k->shared_static, sizeof *s * (size_t)(k->n_shared_static + 1));
    if (!k->shared_static) abort();
    k->shared_end = align_up(k->shared_end, align ? align : 1);
    gs_symbol *t = &k->shared_static[k->n_shared_static++];
    *t = (gs_symbol){strdup(full), SP_SHARED, k->shared_end, bytes, false};
    if (bytes > (1u << 20)) gs_parse_die(p, "shared variable %s of %zu bytes", name, bytes);
    k->shared_end += (uint32_t)bytes;
    k->uses_shared = true;
    return t;
}
const gs_symbol *gs_find_symbol(gs_parser *p, const char *name) {
    const gs_symbol *s = find_in(p->sym, p->n_sym, name);
    if (s) return s;
    if (p->k && !p->in && (s = find_in(p->k->param, p->k->n_param, name))) return s;
    if (!(s = find_in(p->m->global, p->m->n_global, name))) return NULL;
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
    char name[200];
    snprintf(name, sizeof name, "%s", text);
    int64_t add = 0;
    char *plus = strchr(name, '+');
    if (plus) {
        add = strtoll(plus + 1, NULL, 0);
        *plus = 0;
    }
    const gs_symbol *s = find_in(p->m->global, p->m->n_global, name);
    if (!s || s->space == SP_SHARED || bytes != 8)
        gs_parse_die(p, "initial value '%s' of %d bytes is not supported", text, bytes);
    return s->addr + (uint64_t)add;
}
static void initialise(gs_parser *p, uint8_t *to, size_t count, uint8_t each) {
    size_t n = 0;
    for (skip_space(p); *p->p && *p->p != ';'; skip_space(p)) {
        if (strchr("{},)", *p->p)) {
            p->p++;
            continue;
        }
        char text[200];
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
static gs_type variable_head(gs_parser *p, uint32_t *align, char *name, size_t size) {
    gs_type type = T_NONE;
    *align = 0;
    for (;;) {
        word(p, name, size);
        if (!strcmp(name, ".align"))
            *align = (uint32_t)integer(p);
        else if (!strcmp(name, ".attribute"))
            past(p, ')');
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
static size_t array_size(gs_parser *p, bool *open) {
    size_t n = 1;
    *open = false;
    while (accept(p, '[')) {
        skip_space(p);
        if (*p->p == ']')
            *open = true;
        else {
            int64_t v = integer(p);
            if (v < 0 || (v && n > (size_t)1 << 34) || v > (int64_t)1 << 34)
                gs_parse_die(p, "array of %lld", (long long)v);
            n *= (size_t)v;
        }
        expect(p, ']');
    }
    return n;
}
/* After ".shared", ".global", ".const", ".local" or a ".param" inside a body. */
static void variable(gs_parser *p, gs_space space, bool external) {
    char name[160];
    uint32_t align;
    bool open;
    gs_type type = variable_head(p, &align, name, sizeof name);
    size_t count = array_size(p, &open), bytes = count * gs_type_bytes[type];
    if (p->k && space == SP_SHARED) {
        gs_symbol s = *place_shared(p, name, bytes, align);
        s.name = strdup(name);
        *push_symbol(p) = s;
    } else if (space == SP_LOCAL || space == SP_PARAM) {
        if (!p->k) gs_parse_die(p, "%s outside a function", name);
        if (bytes > (1u << 24)) gs_parse_die(p, "local variable %s of %zu bytes", name, bytes);
        p->k->local_bytes = align_up(p->k->local_bytes, align);
        *push_symbol(p) = (gs_symbol){strdup(name), SP_LOCAL, p->k->local_bytes, bytes, false};
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
            if (accept(p, '=')) initialise(p, at, count, gs_type_bytes[type]);
        }
    }
    expect(p, ';');
}

/* ------------------------------------------------------------------ registers */
static void registers(gs_parser *p) {
    char type_name[32];
    word(p, type_name, sizeof type_name);
    gs_type type = type_name[0] == '.' ? gs_type_parse(type_name + 1) : T_NONE;
    if (!type) gs_parse_die(p, "registers of type '%s'", type_name);
    uint32_t each = type == T_PRED ? 4 : 32u * (gs_type_bytes[type] < 2 ? 2 : gs_type_bytes[type]);
    do {
        p->reg = gs_grow(p->reg, p->n_reg, &p->cap_reg, sizeof *p->reg);
        gs_regdecl *r = &p->reg[p->n_reg];
        word(p, r->name, sizeof r->name);
        r->type = type;
        r->count = -1;
        if (accept(p, '<')) {
            int64_t n = integer(p);
            if (n < 0 || n > 1000000) gs_parse_die(p, "%lld registers", (long long)n);
            r->count = (int)n;
            expect(p, '>');
        }
        p->k->reg_bytes = align_up(p->k->reg_bytes, 64);
        r->off = p->k->reg_bytes;
        p->k->reg_bytes += each * (uint32_t)(r->count < 0 ? 1 : r->count);
        if (p->k->reg_bytes > 1u << 28) gs_parse_die(p, "too many registers");
        p->n_reg++;
    } while (accept(p, ','));
    expect(p, ';');
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

/* ------------------------------------------------------------------ scopes, labels, statements */
static void place_label(gs_parser *p, const char *name) {
    p->label = gs_grow(p->label, p->n_label, &p->cap_label, sizeof *p->label);
    gs_label *l = &p->label[p->n_label++];
    snprintf(l->name, sizeof l->name, "%s", name);
    l->pc = p->k->n_code;
    l->scope = p->scope;
}
static void add_fixup(gs_parser *p, int pc, const char *label, int entry) {
    p->fixup = gs_grow(p->fixup, p->n_fixup, &p->cap_fixup, sizeof *p->fixup);
    gs_fixup *f = &p->fixup[p->n_fixup++];
    if (strlen(label) >= sizeof f->name) gs_parse_die(p, "label '%s' is too long", label);
    snprintf(f->name, sizeof f->name, "%s", label);
    f->pc = pc;
    f->scope = p->scope;
    f->entry = entry;
}
void gs_branch_to(gs_parser *p, int pc, const char *label) { add_fixup(p, pc, label, -1); }

/* The branches that wait for a label of this scope; what is not found may lie in the scope around it. */
static void close_labels(gs_parser *p, int scope, int outer) {
    int kept = 0;
    for (int k = 0; k < p->n_fixup; ++k) {
        gs_fixup *f = &p->fixup[k];
        int at = -1;
        if (f->scope == scope)
            for (int q = 0; q < p->n_label; ++q)
                if (p->label[q].scope == scope && !strcmp(p->label[q].name, f->name)) at = p->label[q].pc;
        if (at >= 0) {
            gs_ins *i = &p->k->code[f->pc];
            if (f->entry < 0)
                i->target = at;
            else
                ((int32_t *)i->extra)[f->entry] = at;
            continue;
        }
        if (f->scope == scope) f->scope = outer;
        p->fixup[kept++] = *f;
    }
    p->n_fixup = kept;
    kept = 0;
    for (int q = 0; q < p->n_label; ++q)
        if (p->label[q].scope != scope) p->label[kept++] = p->label[q];
    p->n_label = kept;
}

/* "name: .branchtargets A, B;" : kept as a symbol whose name is the list. */
static void branch_targets(gs_parser *p, const char *name) {
    skip_space(p);
    const char *from = p->p;
    past(p, ';');
    gs_symbol *s = push_symbol(p);
    char *list = gs_strdup_range(from, p->p - 1);
    size_t size = strlen(name) + strlen(list) + 3;
    s->name = malloc(size);
    if (!s->name) abort();
    snprintf(s->name, size, "%s\n%s", name, list);
    free(list);
}
void gs_branch_table(gs_parser *p, int pc, const char *table) {
    size_t n = strlen(table);
    const char *list = NULL;
    for (int k = p->n_sym - 1; k >= 0 && !list; --k)
        if (!strncmp(p->sym[k].name, table, n) && p->sym[k].name[n] == '\n') list = p->sym[k].name + n + 1;
    if (!list) gs_parse_die(p, "no .branchtargets %s", table);
    int count = 1;
    for (const char *c = list; *c; ++c) count += *c == ',';
    gs_ins *i = &p->k->code[pc];
    int32_t *target = calloc((size_t)count, sizeof *target);
    if (!target) abort();
    i->extra = target;
    i->table = target;
    i->imm = (uint64_t)count;
    char label[96];
    for (int e = 0; e < count; ++e) {
        while (isspace((unsigned char)*list)) ++list;
        size_t k = 0;
        while (*list && *list != ',' && !isspace((unsigned char)*list) && k + 1 < sizeof label) label[k++] = *list++;
        label[k] = 0;
        while (*list && *list != ',') ++list;
        if (*list) ++list;
        add_fixup(p, pc, label, e);
    }
}

static void location(gs_parser *p) {
    gs_loc l = {.parent = 0};
    l.file = (int)integer(p);
    l.line = (int)integer(p);
    l.column = (int)integer(p);
    const char *eol = strchr(p->p, '\n'), *in = strstr(p->p, "inlined_at");
    gs_kernel *k = p->k;
    if (in && eol && in < eol) {
        gs_loc at = {0};
        if (sscanf(in + 10, "%d %d %d", &at.file, &at.line, &at.column) == 3) {
            for (int q = k->n_loc - 1; q > 0 && !l.parent; --q)
                if (k->loc[q].file == at.file && k->loc[q].line == at.line && k->loc[q].column == at.column)
                    l.parent = q;
            if (!l.parent) {
                k->loc = realloc(k->loc, sizeof l * (size_t)(k->n_loc + 2));
                if (!k->loc) abort();
                k->loc[k->n_loc] = at;
                l.parent = k->n_loc++;
            }
        }
    }
    to_line_end(p);
    k->loc = realloc(k->loc, sizeof l * (size_t)(k->n_loc + 2));
    if (!k->loc) abort();
    k->loc[k->n_loc] = l;
    p->loc = k->n_loc++;
}

gs_ins *gs_new_ins(gs_parser *p) {
    gs_kernel *k = p->k;
    k->code = gs_grow(k->code, k->n_code, &k->cap_code, sizeof *k->code);
    gs_ins *i = &k->code[k->n_code++];
    memset(i, 0, sizeof *i);
    i->line = p->line;
    i->loc = p->loc;
    i->vec = 1;
    i->target = -1;
    i->members = -1;
    i->class = GS_C_OTHER;
    return i;
}

static void directive(gs_parser *p, const char *name) {
    if (!strcmp(name, ".reg"))
        registers(p);
    else if (!strcmp(name, ".shared"))
        variable(p, SP_SHARED, false);
    else if (!strcmp(name, ".local"))
        variable(p, SP_LOCAL, false);
    else if (!strcmp(name, ".param"))
        variable(p, SP_PARAM, false);
    else if (!strcmp(name, ".loc"))
        location(p);
    else if (!strcmp(name, ".pragma"))
        past(p, ';');
    else
        gs_parse_die(p, "directive '%s' is not supported inside a function", name);
}
/* One statement up to ";", without comments. */
static void statement(gs_parser *p) {
    size_t n = 0;
    int line = p->line;
    for (; *p->p && *p->p != ';'; skip_space(p)) {
        while (*p->p && *p->p != ';' && !isspace((unsigned char)*p->p) &&
               !(p->p[0] == '/' && (p->p[1] == '/' || p->p[1] == '*'))) {
            if (n + 3 > p->cap_text && !(p->text = realloc(p->text, p->cap_text = 2 * p->cap_text + 4096))) abort();
            p->text[n++] = *p->p++;
        }
        p->text[n++] = ' ';
    }
    if (!*p->p) gs_parse_die(p, "the text ends inside an instruction");
    p->p++;
    p->text[n] = 0;
    int after = p->line;
    p->line = line;
    gs_decode(p, p->text);
    p->line = after;
}
/* From after "{" to its "}". */
static void body(gs_parser *p) {
    int outer = p->scope, n_reg = p->n_reg, n_sym = p->n_sym;
    p->scope = ++p->n_scope;
    for (;;) {
        skip_space(p);
        if (!*p->p) gs_parse_die(p, "the text ends inside a function");
        if (*p->p == '}') break;
        if (*p->p == '{') {
            p->p++;
            body(p);
            continue;
        }
        if (*p->p == ';') {
            p->p++;
            continue;
        }
        char name[160];
        const char *start = p->p;
        int line = p->line;
        if (*p->p != '@') {
            word(p, name, sizeof name);
            if (name[0] == '.') {
                directive(p, name);
                continue;
            }
            skip_space(p);
            if (*p->p == ':' && name[0]) {
                p->p++;
                skip_space(p);
                if (!strncmp(p->p, ".branchtargets", 14)) {
                    p->p += 14;
                    branch_targets(p, name);
                } else
                    place_label(p, name);
                continue;
            }
        }
        p->p = start;
        p->line = line;
        statement(p);
    }
    p->p++;
    close_labels(p, p->scope, outer);
    for (int k = n_sym; k < p->n_sym; ++k) free(p->sym[k].name);
    p->n_sym = n_sym;
    p->n_reg = n_reg;
    p->scope = outer;
}

/* ------------------------------------------------------------------ calls */
/* The names in "(.param .b32 a, .param .align 8 .b8 b[16])". */
static int formal_names(gs_parser *p, const char *list, char names[][160], int max) {
    if (!list) return 0;
    const char *save = p->p;
    int line = p->line, n = 0;
    p->p = list;
    expect(p, '(');
    while (!accept(p, ')')) {
        char kind[32];
        uint32_t align;
        bool open;
        word(p, kind, sizeof kind);
        if (strcmp(kind, ".param")) gs_parse_die(p, "parameters in %s are not supported", kind);
        if (n == max) gs_parse_die(p, "more than %d parameters", max);
        variable_head(p, &align, names[n], 160);
        array_size(p, &open);
        n++;
        accept(p, ',');
    }
    p->p = save;
    p->line = line;
    return n;
}
/* call (retval), name, (a, b): i is the call instruction just begun, with its guard; it becomes a branch around the body when
 * it is guarded, or nothing. */
void gs_parse_call(gs_parser *p, gs_ins *i) {
    gs_decoder *d = &p->d;
    enum { MAX = 64 };
    const char *returned = NULL, *name = NULL, *given[MAX];
    int n_given = 0, q = 0;
    /* the operands come as groups: "(retval0)", "name", "(a, b)" with the parentheses still on */
    char text[MAX][GS_ARG_TEXT];
    for (; q < d->n_arg && q < MAX; ++q) {
        char *o = text[q];
        int n = 0;
        for (const char *c = d->arg[q].text; *c; ++c)
            if (*c != '(' && *c != ')' && !isspace((unsigned char)*c)) o[n++] = *c;
        o[n] = 0;
        if (q == 0 && d->arg[0].text[0] == '(')
            returned = o;
        else if (!name)
            name = o;
        else if (*o && n_given < MAX)
            given[n_given++] = o;
    }
    if (!name) gs_die(d, "a call without a name");
    gs_exec_fn builtin = gs_builtin_call(name);
    if (builtin) {            /* the addresses of its parameters in the local frame */
        p->k->ordered = true; /* so that output comes in the order of the blocks */
        i->exec = builtin;
        i->n_op = (uint16_t)n_given;
        i->op = calloc((size_t)n_given + 1, sizeof *i->op);
        if (!i->op) abort();
        for (q = 0; q < n_given; ++q) {
            const gs_symbol *s = gs_find_symbol(p, given[q]);
            if (!s) gs_die(d, "no parameter '%s'", given[q]);
            i->op[q].imm = (int64_t)s->addr;
        }
        const gs_symbol *r = returned ? gs_find_symbol(p, returned) : NULL;
        i->imm = r ? r->addr : ~0ull;
        return;
    }
    gs_function *f = NULL;
    for (q = 0; q < p->m->n_function; ++q)
        if (!strcmp(p->m->function[q].name, name) && p->m->function[q].body) f = &p->m->function[q];
    if (!f)
        gs_die(d,
               "call of '%s': no such function in this module (indirect calls, separate compilation and device-side "
               "malloc are not supported)",
               name);
    if (f->open) gs_die(d, "'%s' calls itself: recursion is not supported", name);
    static _Thread_local char formal[MAX][160], formal_return[4][160];
    int n_formal = formal_names(p, f->params, formal, MAX), n_return = formal_names(p, f->returns, formal_return, 4);
    if (n_formal != n_given || n_return != (returned != NULL))
        gs_die(d, "call of '%s' with %d parameters, it has %d", name, n_given, n_formal);
    int n_sym = p->n_sym;
    for (q = 0; q < n_formal + n_return; ++q) {
        const char *from = q < n_formal ? given[q] : returned;
        const gs_symbol *s = gs_find_symbol(p, from);
        if (!s) gs_die(d, "no parameter '%s'", from);
        gs_symbol copy = *s;
        copy.name = strdup(q < n_formal ? formal[q] : formal_return[0]);
        *push_symbol(p) = copy;
    }
    int guard_pc = -1;
    if (i->guard) {
        i->guard = (uint8_t)(3 - i->guard);
        i->flow = FLOW_BRANCH;
        i->class = GS_C_BRANCH;
        guard_pc = (int)(i - p->k->code);
    } else
        p->k->n_code--; /* the call itself costs nothing here */
    gs_function *in = p->in;
    const char *after = p->p;
    int line = p->line, loc = p->loc;
    p->in = f;
    f->open = true;
    p->p = f->body + 1;
    p->line = f->body_line;
    int around = p->scope;
    p->scope = ++p->n_scope; /* labels of the callee end here */
    int callee = p->scope;
    body(p);
    place_label(p, "$return");
    close_labels(p, callee, -1);
    p->scope = around;
    f->open = false;
    p->in = in;
    p->p = after;
    p->line = line;
    p->loc = loc;
    for (q = n_sym; q < p->n_sym; ++q) free(p->sym[q].name);
    p->n_sym = n_sym;
    if (guard_pc >= 0) p->k->code[guard_pc].target = p->k->n_code;
}

/* ------------------------------------------------------------------ entries and modules */
static void entry_params(gs_parser *p, gs_kernel *k) {
    if (!accept(p, '(')) return;
    while (!accept(p, ')')) {
        char name[160];
        uint32_t align;
        bool open;
        word(p, name, sizeof name);
        if (strcmp(name, ".param")) gs_parse_die(p, "parameter '%s'", name);
        gs_type type = variable_head(p, &align, name, sizeof name);
        size_t bytes = array_size(p, &open) * gs_type_bytes[type];
        if (bytes > 32764) gs_parse_die(p, "parameter %s of %zu bytes", name, bytes);
        k->param = realloc(k->param, sizeof *k->param * (size_t)(k->n_param + 1));
        if (!k->param) abort();
        k->param_bytes = align_up(k->param_bytes, align);
        k->param[k->n_param++] = (gs_symbol){strdup(name), SP_PARAM, k->param_bytes, bytes, false};
        k->param_bytes += (uint32_t)bytes;
        accept(p, ',');
    }
}
static void triple(gs_parser *p, uint32_t v[3]) {
    v[0] = v[1] = v[2] = 1;
    for (int k = 0; k < 3; ++k) {
        v[k] = (uint32_t)integer(p);
        if (!accept(p, ',')) break;
    }
}
static void entry(gs_parser *p) {
    gs_kernel *k = calloc(1, sizeof *k);
    if (!k) abort();
    k->module = p->m;
    p->m->kernel = realloc(p->m->kernel, sizeof *p->m->kernel * (size_t)(p->m->n_kernel + 1));
    if (!p->m->kernel) abort();
    p->m->kernel[p->m->n_kernel++] = k;
    char name[1024];
    word(p, name, sizeof name);
    k->name = strdup(name);
    k->shared_end = GS_SHARED_BASE;
    k->info.max_threads = 1024;
    k->loc = calloc(2, sizeof *k->loc);
    k->n_loc = 1;
    p->k = k;
    p->loc = 0;
    p->n_label = p->n_fixup = 0;
    entry_params(p, k);
    while (!accept(p, '{')) {
        uint32_t v[3];
        word(p, name, sizeof name);
        if (!strcmp(name, ".maxntid")) {
            triple(p, v);
            k->info.max_threads = v[0] * v[1] * v[2];
        } else if (!strcmp(name, ".reqntid")) {
            triple(p, k->info.required);
            k->info.max_threads = k->info.required[0] * k->info.required[1] * k->info.required[2];
        } else if (!strcmp(name, ".reqnctapercluster"))
            triple(p, k->info.cluster);
        else if (!strcmp(name, ".minnctapersm"))
            k->info.min_blocks = (uint32_t)integer(p);
        else if (!strcmp(name, ".maxnreg") || !strcmp(name, ".maxclusterrank"))
            integer(p);
        else if (strcmp(name, ".explicitcluster") && strcmp(name, ".noreturn") && strcmp(name, ".blocksareclusters"))
            gs_parse_die(p, "directive '%s' of a kernel is not supported", name);
    }
    body(p);
    if (p->n_fixup) gs_parse_die(p, "label '%s' does not exist", p->fixup[0].name);
    gs_ins *end = gs_new_ins(p);
    end->flow = FLOW_EXIT;
    end->class = GS_C_BRANCH;
    /* Dynamic shared memory follows the static. Its address is as little aligned as declared, unless it comes first. */
    uint32_t align = k->dynamic_align ? k->dynamic_align : 16, base = align_up(k->shared_end, align);
    k->info.static_shared_bytes = k->shared_end - GS_SHARED_BASE;
    if (k->shared_end > GS_SHARED_BASE && align < 1024 && base % (2 * align) == 0) base += align;
    k->shared_end = base;
    for (int q = 0; q < k->n_fix; ++q) {
        uint64_t v = base + k->fix[q].add;
        for (int l = 0; l < 32; ++l)
            memcpy(k->constant + k->fix[q].off + (size_t)l * k->fix[q].size, &v, k->fix[q].size);
    }
    k->info.param_bytes = k->param_bytes;
    k->info.local_bytes = k->local_bytes;
    k->info.n_param = (uint32_t)k->n_param;
    k->info.ptx_version = k->info.binary_version = p->m->target;
    p->k = NULL;
}
/* What one kernel contains that is not known here does not keep the others from running: the sentence waits for its launch. */
static void entry_apart(gs_parser *p) {
    const char *start = p->p;
    int line = p->line, n_sym = p->n_sym, n_reg = p->n_reg;
    jmp_buf outer;
    memcpy(&outer, &p->stop, sizeof outer);
    if (!setjmp(p->stop))
        entry(p);
    else {
        if (p->k) p->k->error = strdup(gs_error());
        for (int f = 0; f < p->m->n_function; ++f) p->m->function[f].open = false;
        for (int k = n_sym; k < p->n_sym; ++k) free(p->sym[k].name);
        p->n_sym = n_sym;
        p->n_reg = n_reg;
        p->scope = 0;
        p->in = NULL;
        p->k = NULL;
        p->p = start;
        p->line = line;
        memcpy(&p->stop, &outer, sizeof outer);
        while (*p->p && *p->p != '{') p->line += *p->p++ == '\n';
        past_braces(p);
    }
    memcpy(&p->stop, &outer, sizeof outer);
}
static void function(gs_parser *p) {
    gs_function f = {0};
    skip_space(p);
    if (*p->p == '(') {
        f.returns = p->p;
        past(p, ')');
    }
    char name[1024];
    word(p, name, sizeof name);
    skip_space(p);
    f.line = p->line;
    if (*p->p == '(') {
        f.params = p->p;
        past(p, ')');
    }
    skip_space(p);
    while (*p->p && *p->p != '{' && *p->p != ';') {
        p->line += *p->p == '\n';
        p->p++;
    }
    if (*p->p == '{') {
        f.body = p->p;
        f.body_line = p->line;
        past_braces(p);
    } else
        expect(p, ';');
    f.name = strdup(name);
    p->m->function = realloc(p->m->function, sizeof f * (size_t)(p->m->n_function + 1));
    if (!p->m->function) abort();
    p->m->function[p->m->n_function++] = f;
}
static void file_name(gs_parser *p) {
    int64_t n = integer(p);
    skip_space(p);
    if (*p->p != '"' || n < 0 || n > 100000) gs_parse_die(p, ".file");
    const char *from = ++p->p;
    past(p, '"');
    gs_module *m = p->m;
    if (n >= m->n_file) {
        m->file = realloc(m->file, sizeof *m->file * (size_t)(n + 1));
        if (!m->file) abort();
        while (m->n_file <= n) m->file[m->n_file++] = NULL;
    }
    free(m->file[n]);
    const char *last = p->p - 1, *slash = last;
    while (slash > from && slash[-1] != '/') --slash;
    m->file[n] = gs_strdup_range(slash, last);
    to_line_end(p);
}
/* The module's declarations; the bodies of kernels are skipped in the first pass and parsed in the second, when every
 * function is known. */
static void module_pass(gs_parser *p, bool second) {
    char name[160];
    for (skip_space(p); *p->p; skip_space(p)) {
        bool external = false;
        word(p, name, sizeof name);
        while (!strcmp(name, ".visible") || !strcmp(name, ".extern") || !strcmp(name, ".weak") ||
               !strcmp(name, ".common")) {
            external |= !strcmp(name, ".extern");
            word(p, name, sizeof name);
        }
        if (!strcmp(name, ".entry")) {
            if (second)
                entry_apart(p);
            else {
                while (*p->p && *p->p != '{') p->line += *p->p++ == '\n';
                past_braces(p);
            }
        } else if (second) { /* known already */
            if (!strcmp(name, ".func")) {
                while (*p->p && *p->p != '{' && *p->p != ';') p->line += *p->p++ == '\n';
                if (*p->p == '{') past_braces(p);
            } else if (!strcmp(name, ".section")) {
                while (*p->p && *p->p != '{') p->line += *p->p++ == '\n';
                past_braces(p);
            } else if (!strcmp(name, ".shared") || !strcmp(name, ".global") || !strcmp(name, ".const"))
                past(p, ';');
            else
                to_line_end(p);
        } else if (!strcmp(name, ".version")) {
            p->m->ptx_version = (int)(strtod(p->p, NULL) * 10 + 0.5);
            to_line_end(p);
        } else if (!strcmp(name, ".target")) {
            word(p, name, sizeof name);
            p->m->target = !strncmp(name, "sm_", 3) ? atoi(name + 3) : 0;
            to_line_end(p);
        } else if (!strcmp(name, ".address_size")) {
            if (integer(p) != 64) gs_parse_die(p, "only 64-bit addresses are supported");
        } else if (!strcmp(name, ".file"))
            file_name(p);
        else if (!strcmp(name, ".loc") || !strcmp(name, ".pragma"))
            to_line_end(p);
        else if (!strcmp(name, ".section")) {
            while (*p->p && *p->p != '{') p->line += *p->p++ == '\n';
            past_braces(p);
        } else if (!strcmp(name, ".func"))
            function(p);
        else if (!strcmp(name, ".shared"))
            variable(p, SP_SHARED, external);
        else if (!strcmp(name, ".global"))
            variable(p, SP_GLOBAL, external);
        else if (!strcmp(name, ".const"))
            variable(p, SP_CONST, external);
        else
            gs_parse_die(p, "'%s' is not supported here", *name ? name : p->p);
    }
}

gs_module *gs_load(const char *ptx, const char *name) {
    gs_module *m = calloc(1, sizeof *m);
    gs_parser *p = calloc(1, sizeof *p);
    if (!m || !p) abort();
    m->name = strdup(name ? name : "module");
    m->text = strdup(ptx);
    m->tables = gs_tables();
    p->m = m;
    p->d.arg = calloc(GS_MAX_ARGS, sizeof *p->d.arg);
    p->d.op = calloc(GS_MAX_ARGS, sizeof *p->d.op);
    if (!p->d.arg || !p->d.op) abort();
    gs_module *volatile result = m;
    if (!setjmp(p->stop)) {
        for (int pass = 0; pass < 2; ++pass) {
            p->p = m->text;
            p->line = 1;
            module_pass(p, pass);
        }
    } else {
        p->k = NULL;
        result = NULL;
    }
    for (int k = 0; k < p->n_sym; ++k) free(p->sym[k].name);
    free(p->sym);
    free(p->reg);
    free(p->label);
    free(p->fixup);
    free(p->text);
    free(p->d.arg);
    free(p->d.op);
    free(p);
    if (!result) gs_unload(m);
    return result;
}

static void free_kernel(gs_kernel *k) {
    for (int c = 0; c < k->n_code; ++c) {
        free(k->code[c].op);
        free(k->code[c].extra);
    }
    for (int q = 0; q < k->n_param; ++q) free(k->param[q].name);
    for (int q = 0; q < k->n_shared_static; ++q) free(k->shared_static[q].name);
    free(k->code);
    free(k->param);
    free(k->shared_static);
    free(k->constant);
    free(k->fix);
    free(k->loc);
    free(k->name);
    free(k->error);
    free(k);
}
void gs_unload(gs_module *m) {
    if (!m) return;
    for (int k = 0; k < m->n_kernel; ++k) free_kernel(m->kernel[k]);
    for (int k = 0; k < m->n_global; ++k) {
        if (m->global[k].space != SP_SHARED && m->global[k].addr) {
            gs_mem_unregister((void *)(uintptr_t)m->global[k].addr);
            free((void *)(uintptr_t)m->global[k].addr);
        }
        free(m->global[k].name);
    }
    for (int k = 0; k < m->n_function; ++k) free(m->function[k].name);
    for (int k = 0; k < m->n_file; ++k) free(m->file[k]);
    free(m->kernel);
    free(m->global);
    free(m->function);
    free(m->file);
    free(m->text);
    free(m->name);
    free(m);
}

gs_kernel *gs_module_kernel(gs_module *m, const char *name) {
    for (int k = 0; k < m->n_kernel; ++k)
        if (!strcmp(m->kernel[k]->name, name)) return m->kernel[k];
    return NULL;
}
void *gs_module_symbol(gs_module *m, const char *name, size_t *bytes) {
    const gs_symbol *s = find_in(m->global, m->n_global, name);
    if (!s || s->space == SP_SHARED) return NULL;
    if (bytes) *bytes = s->bytes;
    return (void *)(uintptr_t)s->addr;
}
const char *gs_kernel_name(const gs_kernel *k) { return k->name; }
void gs_kernel_describe(const gs_kernel *k, gs_kernel_info *info) { *info = k->info; }
void gs_kernel_param(const gs_kernel *k, uint32_t index, size_t *offset, size_t *bytes) {
    *offset = index < (uint32_t)k->n_param ? k->param[index].addr : 0;
    *bytes = index < (uint32_t)k->n_param ? k->param[index].bytes : 0;
}
