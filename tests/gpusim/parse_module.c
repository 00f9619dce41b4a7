/* SPDX-License-Identifier: Apache-2.0 */
/* Modules: kernels, device functions, calls. A call is expanded where it stands: the body of the callee is parsed again with the
 * caller's parameter storage under the callee's names, so that running code knows no call stack (recursion is refused). */
#include <ctype.h>
#include <stdlib.h>

#include "parse.h"

/* ------------------------------------------------------------------ calls */
/* The names in "(.param .b32 a, .param .align 8 .b8 b[16])". */
static int formal_names(gs_parser *p, const char *list, char names[][GS_ARG_TEXT], int max) {
    if (!list) return 0;
    const char *save = p->p;
    int line = p->line, n = 0;
    p->p = list;
    gs_parse_expect(p, '(');
    while (!gs_parse_accept(p, ')')) {
        char kind[32];
        uint32_t align;
        bool open;
        gs_parse_word(p, kind, sizeof kind);
        if (strcmp(kind, ".param")) gs_parse_die(p, "parameters in %s are not supported", kind);
        if (n == max) gs_parse_die(p, "more than %d parameters", max);
        gs_parse_variable_head(p, &align, names[n], GS_ARG_TEXT);
        gs_parse_array_size(p, &open);
        n++;
        gs_parse_accept(p, ',');
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
    static _Thread_local char formal[MAX][GS_ARG_TEXT], formal_return[4][GS_ARG_TEXT];
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
        *gs_parse_push_symbol(p) = copy;
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
    gs_parse_body(p);
    gs_parse_place_label(p, "$return");
    gs_parse_close_labels(p, callee, -1);
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
    if (!gs_parse_accept(p, '(')) return;
    while (!gs_parse_accept(p, ')')) {
        char name[GS_ARG_TEXT];
        uint32_t align;
        bool open;
        gs_parse_word(p, name, sizeof name);
        if (strcmp(name, ".param")) gs_parse_die(p, "parameter '%s'", name);
        gs_type type = gs_parse_variable_head(p, &align, name, sizeof name);
        size_t bytes = gs_parse_array_size(p, &open) * gs_type_bytes[type];
        if (bytes > 32764) gs_parse_die(p, "parameter %s of %zu bytes", name, bytes);
        k->param = realloc(k->param, sizeof *k->param * (size_t)(k->n_param + 1));
        if (!k->param) abort();
        k->param_bytes = gs_parse_align_up(k->param_bytes, align);
        k->param[k->n_param++] = (gs_symbol){strdup(name), SP_PARAM, k->param_bytes, bytes, false};
        k->param_bytes += (uint32_t)bytes;
        gs_parse_accept(p, ',');
    }
}
static void triple(gs_parser *p, uint32_t v[3]) {
    v[0] = v[1] = v[2] = 1;
    for (int k = 0; k < 3; ++k) {
        v[k] = (uint32_t)gs_parse_integer(p);
        if (!gs_parse_accept(p, ',')) break;
    }
}
static void entry(gs_parser *p) {
    gs_kernel *k = calloc(1, sizeof *k);
    if (!k) abort();
    k->module = p->m;
    p->m->kernel = realloc(p->m->kernel, sizeof *p->m->kernel * (size_t)(p->m->n_kernel + 1));
    if (!p->m->kernel) abort();
    p->m->kernel[p->m->n_kernel++] = k;
    char name[GS_ARG_TEXT];
    gs_parse_word(p, name, sizeof name);
    k->name = strdup(name);
    k->shared_end = GS_SHARED_BASE;
    k->info.max_threads = 1024;
    k->loc = calloc(2, sizeof *k->loc);
    k->n_loc = 1;
    p->k = k;
    p->loc = 0;
    p->n_label = p->n_fixup = 0;
    entry_params(p, k);
    while (!gs_parse_accept(p, '{')) {
        uint32_t v[3];
        gs_parse_word(p, name, sizeof name);
        if (!strcmp(name, ".maxntid")) {
            triple(p, v);
            k->info.max_threads = v[0] * v[1] * v[2];
        } else if (!strcmp(name, ".reqntid")) {
            triple(p, k->info.required);
            k->info.max_threads = k->info.required[0] * k->info.required[1] * k->info.required[2];
        } else if (!strcmp(name, ".reqnctapercluster"))
            triple(p, k->info.cluster);
        else if (!strcmp(name, ".minnctapersm"))
            k->info.min_blocks = (uint32_t)gs_parse_integer(p);
        else if (!strcmp(name, ".maxnreg") || !strcmp(name, ".maxclusterrank"))
            gs_parse_integer(p);
        else if (strcmp(name, ".explicitcluster") && strcmp(name, ".noreturn") && strcmp(name, ".blocksareclusters"))
            gs_parse_die(p, "directive '%s' of a kernel is not supported", name);
    }
    gs_parse_body(p);
    gs_parse_no_label_missing(p);
    gs_ins *end = gs_new_ins(p);
    end->flow = FLOW_EXIT;
    end->class = GS_C_BRANCH;
    /* Dynamic shared memory follows the static. Its address is as little aligned as declared, unless it comes first. */
    uint32_t align = k->dynamic_align ? k->dynamic_align : 16, base = gs_parse_align_up(k->shared_end, align);
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
        gs_parse_past_braces(p);
    }
    memcpy(&p->stop, &outer, sizeof outer);
}
static void function(gs_parser *p) {
    gs_function f = {0};
    gs_parse_skip_space(p);
    if (*p->p == '(') {
        f.returns = p->p;
        gs_parse_past(p, ')');
    }
    char name[GS_ARG_TEXT];
    gs_parse_word(p, name, sizeof name);
    gs_parse_skip_space(p);
    f.line = p->line;
    if (*p->p == '(') {
        f.params = p->p;
        gs_parse_past(p, ')');
    }
    gs_parse_skip_space(p);
    while (*p->p && *p->p != '{' && *p->p != ';') {
        p->line += *p->p == '\n';
        p->p++;
    }
    if (*p->p == '{') {
        f.body = p->p;
        f.body_line = p->line;
        gs_parse_past_braces(p);
    } else
        gs_parse_expect(p, ';');
    f.name = strdup(name);
    p->m->function = realloc(p->m->function, sizeof f * (size_t)(p->m->n_function + 1));
    if (!p->m->function) abort();
    p->m->function[p->m->n_function++] = f;
}
static void file_name(gs_parser *p) {
    int64_t n = gs_parse_integer(p);
    gs_parse_skip_space(p);
    if (*p->p != '"' || n < 0 || n > 100000) gs_parse_die(p, ".file");
    const char *from = ++p->p;
    gs_parse_past(p, '"');
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
    gs_parse_to_line_end(p);
}
/* The module's declarations; the bodies of kernels are skipped in the first pass and parsed in the second, when every
 * function is known. */
static void module_pass(gs_parser *p, bool second) {
    char name[GS_ARG_TEXT];
    for (gs_parse_skip_space(p); *p->p; gs_parse_skip_space(p)) {
        bool external = false;
        gs_parse_word(p, name, sizeof name);
        while (!strcmp(name, ".visible") || !strcmp(name, ".extern") || !strcmp(name, ".weak") ||
               !strcmp(name, ".common")) {
            external |= !strcmp(name, ".extern");
            gs_parse_word(p, name, sizeof name);
        }
        if (!strcmp(name, ".entry")) {
            if (second)
                entry_apart(p);
            else {
                while (*p->p && *p->p != '{') p->line += *p->p++ == '\n';
                gs_parse_past_braces(p);
            }
        } else if (second) { /* known already */
            if (!strcmp(name, ".func")) {
                while (*p->p && *p->p != '{' && *p->p != ';') p->line += *p->p++ == '\n';
                if (*p->p == '{') gs_parse_past_braces(p);
            } else if (!strcmp(name, ".section")) {
                while (*p->p && *p->p != '{') p->line += *p->p++ == '\n';
                gs_parse_past_braces(p);
            } else if (!strcmp(name, ".shared") || !strcmp(name, ".global") || !strcmp(name, ".const"))
                gs_parse_past(p, ';');
            else
                gs_parse_to_line_end(p);
        } else if (!strcmp(name, ".version")) {
            p->m->ptx_version = (int)(strtod(p->p, NULL) * 10 + 0.5);
            gs_parse_to_line_end(p);
        } else if (!strcmp(name, ".target")) {
            gs_parse_word(p, name, sizeof name);
            p->m->target = !strncmp(name, "sm_", 3) ? atoi(name + 3) : 0;
            gs_parse_to_line_end(p);
        } else if (!strcmp(name, ".address_size")) {
            if (gs_parse_integer(p) != 64) gs_parse_die(p, "only 64-bit addresses are supported");
        } else if (!strcmp(name, ".file"))
            file_name(p);
        else if (!strcmp(name, ".loc") || !strcmp(name, ".pragma"))
            gs_parse_to_line_end(p);
        else if (!strcmp(name, ".section")) {
            while (*p->p && *p->p != '{') p->line += *p->p++ == '\n';
            gs_parse_past_braces(p);
        } else if (!strcmp(name, ".func"))
            function(p);
        else if (!strcmp(name, ".shared"))
            gs_parse_variable(p, SP_SHARED, external);
        else if (!strcmp(name, ".global"))
            gs_parse_variable(p, SP_GLOBAL, external);
        else if (!strcmp(name, ".const"))
            gs_parse_variable(p, SP_CONST, external);
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
    const gs_symbol *s = gs_parse_find_in(m->global, m->n_global, name);
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
