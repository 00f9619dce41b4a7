/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of a function: scopes, labels, branch tables, source locations, statements. Instructions go to decode.c. */
#include <ctype.h>
#include <stdlib.h>

#include "parse.h"

typedef struct gs_label {
    char name[96];
    int pc, scope;
} gs_label;
typedef struct gs_fixup { /* a branch whose label is not placed yet; scope moves outwards as scopes close */
    char name[96];
    int pc, scope, entry; /* entry of a branch table, -1: the target */
} gs_fixup;

/* ------------------------------------------------------------------ scopes, labels, statements */
void gs_parse_place_label(gs_parser *p, const char *name) {
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
void gs_parse_close_labels(gs_parser *p, int scope, int outer) {
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
    gs_parse_skip_space(p);
    const char *from = p->p;
    gs_parse_past(p, ';');
    gs_symbol *s = gs_parse_push_symbol(p);
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
    l.file = (int)gs_parse_integer(p);
    l.line = (int)gs_parse_integer(p);
    l.column = (int)gs_parse_integer(p);
    const char *eol =
        strchrnul(p->p, '\n'); /* nothing here may look at the whole text: there is one of these per line */
    const char *in = memmem(p->p, (size_t)(eol - p->p), "inlined_at", 10);
    gs_kernel *k = p->k;
    if (in) {
        gs_loc at = {0};
        char *end;
        at.file = (int)strtol(in + 10, &end, 10);
        at.line = (int)strtol(end, &end, 10);
        at.column = (int)strtol(end, &end, 10);
        if (at.line) {
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
    gs_parse_to_line_end(p);
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
        gs_parse_registers(p);
    else if (!strcmp(name, ".shared"))
        gs_parse_variable(p, SP_SHARED, false);
    else if (!strcmp(name, ".local"))
        gs_parse_variable(p, SP_LOCAL, false);
    else if (!strcmp(name, ".param"))
        gs_parse_variable(p, SP_PARAM, false);
    else if (!strcmp(name, ".loc"))
        location(p);
    else if (!strcmp(name, ".pragma"))
        gs_parse_past(p, ';');
    else
        gs_parse_die(p, "directive '%s' is not supported inside a function", name);
}
/* One statement up to ";", without comments. */
static void statement(gs_parser *p) {
    size_t n = 0;
    int line = p->line;
    for (; *p->p && *p->p != ';'; gs_parse_skip_space(p)) {
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
void gs_parse_body(gs_parser *p) {
    int outer = p->scope, n_reg = p->n_reg, n_sym = p->n_sym;
    p->scope = ++p->n_scope;
    for (;;) {
        gs_parse_skip_space(p);
        if (!*p->p) gs_parse_die(p, "the text ends inside a function");
        if (*p->p == '}') break;
        if (*p->p == '{') {
            p->p++;
            gs_parse_body(p);
            continue;
        }
        if (*p->p == ';') {
            p->p++;
            continue;
        }
        char name[GS_ARG_TEXT];
        const char *start = p->p;
        int line = p->line;
        if (*p->p != '@') {
            gs_parse_word(p, name, sizeof name);
            if (name[0] == '.') {
                char *next = strchr(name + 1, '.'); /* ".reg.b16": two words */
                if (next) {
                    p->p -= strlen(next);
                    *next = 0;
                }
                directive(p, name);
                continue;
            }
            gs_parse_skip_space(p);
            if (*p->p == ':' && name[0]) {
                p->p++;
                gs_parse_skip_space(p);
                if (!strncmp(p->p, ".branchtargets", 14)) {
                    p->p += 14;
                    branch_targets(p, name);
                } else
                    gs_parse_place_label(p, name);
                continue;
            }
        }
        p->p = start;
        p->line = line;
        statement(p);
    }
    p->p++;
    gs_parse_close_labels(p, p->scope, outer);
    for (int k = n_sym; k < p->n_sym; ++k) free(p->sym[k].name);
    p->n_sym = n_sym;
    p->n_reg = n_reg;
    p->scope = outer;
}
/* At the end of a kernel. */
void gs_parse_no_label_missing(gs_parser *p) {
    if (p->n_fixup) gs_parse_die(p, "label '%s' does not exist", p->fixup[0].name);
}
