/* SPDX-License-Identifier: Apache-2.0 */
/* Findings: recorded by the workers, merged after a launch in an order that does not depend on threads, printed once each.
 * And the settings, from the environment:
 *
 *   GPUSIM_CHECK     all (default), none, or a list: bounds,races,uninit,traffic,leaks,proxy; "-leaks" takes one away
 *   GPUSIM_THREADS   host threads for blocks (default: the processors)
 *   GPUSIM_REVERSE   1: warps, blocks and streams in the other order (results must be the same)
 *   GPUSIM_JSON      a file that gets one line of counts per launch
 *   GPUSIM_MAX_INS   warp instructions of one launch after which it counts as hung (default 4e9) */
#include <ctype.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <stdlib.h>
#include <unistd.h>

#include "core.h"

/* ------------------------------------------------------------------ settings */
static gs_settings g_settings;
static pthread_once_t g_once = PTHREAD_ONCE_INIT;
static unsigned parse_checks(const char *s) {
    static const struct {
        const char *name;
        unsigned bit;
    } names[] = {{"all", GS_CHECK_ALL},       {"none", 0},
                 {"bounds", GS_CHECK_BOUNDS}, {"races", GS_CHECK_RACES},
                 {"uninit", GS_CHECK_UNINIT}, {"traffic", GS_CHECK_TRAFFIC},
                 {"leaks", GS_CHECK_LEAKS},   {"proxy", GS_CHECK_PROXY}};
    unsigned v = *s == '-' ? GS_CHECK_ALL : 0;
    while (*s) {
        bool minus = *s == '-';
        if (minus) ++s;
        size_t n = strcspn(s, ",");
        bool known = false;
        for (size_t k = 0; k < sizeof names / sizeof *names; ++k)
            if (strlen(names[k].name) == n && !strncmp(names[k].name, s, n)) {
                v = minus ? v & ~names[k].bit : v | names[k].bit;
                known = true;
            }
        if (!known) {
            fprintf(stderr,
                    "gpusim: GPUSIM_CHECK: '%.*s' is none of all, none, bounds, races, uninit, traffic, leaks, proxy\n",
                    (int)n, s);
            exit(2);
        }
        s += n + (s[n] == ',');
    }
    return v;
}
static void read_settings(void) {
    const char *e;
#ifdef __GLIBC__
    /* Each launch takes and frees what its blocks need: kept, it is not given back to the system and asked for again. */
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_TOP_PAD, 64 << 20);
#endif
    gs_settings *s = &g_settings;
    s->check = (e = getenv("GPUSIM_CHECK")) && *e ? parse_checks(e) : GS_CHECK_ALL;
    s->threads = (e = getenv("GPUSIM_THREADS")) && *e ? atoi(e) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (s->threads < 1) s->threads = 1;
    s->reverse = (e = getenv("GPUSIM_REVERSE")) && *e && strcmp(e, "0");
    s->json = (e = getenv("GPUSIM_JSON")) && *e ? e : NULL;
    s->max_warp_ins = (e = getenv("GPUSIM_MAX_INS")) && *e ? (uint64_t)strtod(e, NULL) : 4000000000ull;
}
gs_settings *gs_settings_get(void) {
    pthread_once(&g_once, read_settings);
    return &g_settings;
}

/* ------------------------------------------------------------------ where */
void gs_describe(const gs_kernel *k, int pc, char *text, size_t size) {
    if (pc < 0 || pc >= k->n_code) {
        snprintf(text, size, "an unknown place");
        return;
    }
    const gs_ins *i = &k->code[pc];
    int n = snprintf(text, size, "PTX line %d", i->line);
    bool first = true;
    for (int at = i->loc; at > 0 && n > 0 && (size_t)n < size; at = k->loc[at].parent) {
        const gs_loc *l = &k->loc[at];
        const char *file =
            l->file >= 0 && l->file < k->module->n_file && k->module->file[l->file] ? k->module->file[l->file] : "?";
        n += snprintf(text + n, size - (size_t)n, "%s%s:%d", first ? " (" : ", inlined at ", file, l->line);
        first = false;
    }
    if (!first && n > 0 && (size_t)n < size) snprintf(text + n, size - (size_t)n, ")");
}

/* ------------------------------------------------------------------ recording */
static void record(gs_warp *w, gs_result fault, const char *kind, int lane, int other_pc, const char *format,
                   va_list args) {
    gs_worker *wk = w->block->worker;
    wk->counts.findings++;
    for (int q = 0; q < wk->n_finding; ++q) {
        gs_finding *f = &wk->finding[q];
        if (f->pc != w->pc || f->other_pc != other_pc || strncmp(f->kind, kind, sizeof f->kind - 1)) continue;
        f->times++;
        return;
    }
    if (wk->n_finding >= 1000) return;
    wk->finding = gs_grow(wk->finding, wk->n_finding, &wk->cap_finding, sizeof *wk->finding);
    gs_finding *f = &wk->finding[wk->n_finding++];
    memset(f, 0, sizeof *f);
    snprintf(f->kind, sizeof f->kind, "%s", kind);
    f->fault = fault;
    f->pc = w->pc;
    f->other_pc = other_pc;
    f->block = w->block->linear;
    f->order = wk->order;
    f->thread = w->id * 32 + lane;
    f->times = 1;
    vsnprintf(f->text, sizeof f->text, format, args);
}
void gs_find(gs_warp *w, gs_result fault, const char *kind, int lane, int other_pc, const char *format, ...) {
    va_list a;
    va_start(a, format);
    record(w, fault, kind, lane, other_pc, format, a);
    va_end(a);
}
_Noreturn void gs_stop(gs_warp *w, gs_result fault, const char *kind, int lane, const char *format, ...) {
    va_list a;
    va_start(a, format);
    record(w, fault, kind, lane, -1, format, a);
    va_end(a);
    longjmp(w->block->worker->stop, 1);
}

/* ------------------------------------------------------------------ printing */
static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static int g_found;
static void (*g_sink)(void *, const char *, const char *);
static void *g_sink_user;
static char **g_seen; /* texts already printed: a kernel launched a hundred times reports a finding once */
static int g_n_seen, g_cap_seen;

int gs_findings(void) { return g_found; }
void gs_findings_reset(void) {
    pthread_mutex_lock(&g_lock);
    g_found = 0;
    for (int k = 0; k < g_n_seen; ++k) free(g_seen[k]);
    g_n_seen = 0;
    pthread_mutex_unlock(&g_lock);
}
void gs_findings_sink(void (*sink)(void *user, const char *kind, const char *text), void *user) {
    g_sink = sink;
    g_sink_user = user;
}
static void emit(const char *kind, const char *key, const char *text) {
    pthread_mutex_lock(&g_lock);
    bool seen = false;
    for (int k = 0; k < g_n_seen && !seen; ++k) seen = !strcmp(g_seen[k], key);
    if (!seen && g_n_seen < 10000) {
        g_seen = gs_grow(g_seen, g_n_seen, &g_cap_seen, sizeof *g_seen);
        g_seen[g_n_seen++] = strdup(key);
        g_found++;
        if (!g_sink) fprintf(stderr, "gpusim: %s: %s\n", kind, text);
    }
    pthread_mutex_unlock(&g_lock);
    if (!seen && g_sink) g_sink(g_sink_user, kind, text);
}
void gs_find_host(const char *kind, const char *format, ...) {
    char text[600];
    va_list a;
    va_start(a, format);
    vsnprintf(text, sizeof text, format, a);
    va_end(a);
    emit(kind, text, text);
}
/* "sum" of _Z3sumPKfPfi, "a::b<..>" of _ZN1a1bILi3EEEvPf: names, without types. Anything else is left as it is. */
static void short_name(const char *mangled, char *out, size_t size) {
    snprintf(out, size, "%s", mangled);
    if (strncmp(mangled, "_Z", 2)) return;
    const char *p = mangled + 2;
    bool nested = *p == 'N';
    size_t n = 0;
    for (p += nested; isdigit((unsigned char)*p);) {
        char *end;
        unsigned long length = strtoul(p, &end, 10);
        if (!length || strlen(end) < length || n + length + 6 > size) return;
        if (!strncmp(end, "_GLOBAL__N_", 11)) { /* no name */
            p = end + length;
            continue;
        }
        n += (size_t)snprintf(out + n, size - n, "%s%.*s", n ? "::" : "", (int)length, end);
        p = end + length;
        if (!nested) break;
    }
    if (*p == 'I' && n) snprintf(out + n, size - n, "<..>");
}
static void print_finding(const gs_launch_state *l, const gs_finding *f) {
    char here[400], there[440] = "", key[1300], text[2200], name[300];
    const gs_kernel *k = l->k;
    short_name(k->name, name, sizeof name);
    gs_dim3 g = l->opt->grid, b = l->opt->block;
    gs_describe(k, f->pc, here, sizeof here);
    if (f->other_pc >= 0) {
        char at[380];
        gs_describe(k, f->other_pc, at, sizeof at);
        snprintf(there, sizeof there, "; the other access: %s", at);
    }
    unsigned t = (unsigned)f->thread;
    uint64_t n = f->block;
    snprintf(key, sizeof key, "%s|%s|%d|%d", k->name, f->kind, f->pc, f->other_pc);
    snprintf(text, sizeof text, "%s, kernel %s, block (%u,%u,%u) thread (%u,%u,%u): %s%s", here, name,
             (unsigned)(n % g.x), (unsigned)(n / g.x % g.y), (unsigned)(n / g.x / g.y), t % b.x, t / b.x % b.y,
             t / b.x / b.y, f->text, there);
    if (f->times > 1) {
        size_t at = strlen(text);
        snprintf(text + at, sizeof text - at, " (%llu times)", (unsigned long long)f->times);
    }
    emit(f->kind, key, text);
}

/* ------------------------------------------------------------------ after a launch */
static int by_place(const void *a, const void *b) {
    const gs_finding *x = a, *y = b;
    if (x->order != y->order) return x->order < y->order ? -1 : 1;
    if (x->block != y->block) return x->block < y->block ? -1 : 1;
    if (x->pc != y->pc) return x->pc < y->pc ? -1 : 1;
    return x->other_pc < y->other_pc ? -1 : x->other_pc > y->other_pc;
}
static void merge_findings(gs_launch_state *l, const gs_worker *wk, int n) {
    for (int t = 0; t < n; ++t)
        for (int q = 0; q < wk[t].n_finding; ++q) {
            const gs_finding *f = &wk[t].finding[q];
            if (l->stop && f->order > l->stop_order) continue;
            gs_finding *same = NULL;
            for (int z = 0; z < l->n_finding && !same; ++z)
                if (l->finding[z].pc == f->pc && l->finding[z].other_pc == f->other_pc &&
                    !strcmp(l->finding[z].kind, f->kind))
                    same = &l->finding[z];
            if (same) {
                uint64_t times = same->times + f->times;
                if (by_place(f, same) < 0) *same = *f;
                same->times = times;
                continue;
            }
            l->finding = gs_grow(l->finding, l->n_finding, &l->cap_finding, sizeof *l->finding);
            l->finding[l->n_finding++] = *f;
        }
    if (l->n_finding) qsort(l->finding, (size_t)l->n_finding, sizeof *l->finding, by_place);
}
static void merge_counts(gs_launch_state *l, const gs_worker *wk, int n) {
    gs_kernel *k = l->k;
    l->pc = calloc((size_t)k->n_code, sizeof *l->pc);
    if (!l->pc) abort();
    for (int t = 0; t < n; ++t) {
        const uint64_t *from = (const uint64_t *)&wk[t].counts;
        uint64_t *to = (uint64_t *)&l->counts;
        for (size_t q = 0; q < sizeof l->counts / sizeof *to; ++q) to[q] += from[q];
        for (int q = 0; q < k->n_code; ++q) {
            l->pc[q].exec += wk[t].pc[q].exec;
            l->pc[q].lanes += wk[t].pc[q].lanes;
            l->pc[q].waves += wk[t].pc[q].waves;
            l->pc[q].ideal += wk[t].pc[q].ideal;
        }
    }
    for (int q = 0; q < k->n_code; ++q) {
        l->counts.warp_ins += l->pc[q].exec;
        l->counts.lane_ins += l->pc[q].lanes;
        l->counts.by_class[k->code[q].class] += l->pc[q].exec;
    }
}
static void json_line(const gs_launch_state *l) {
    pthread_mutex_lock(&g_lock);
    FILE *f = fopen(g_settings.json, "a");
    if (f) {
        const gs_counts *c = &l->counts;
        gs_dim3 g = l->opt->grid, b = l->opt->block;
        fprintf(f,
                "{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"cluster\": [%u, %u, %u], "
                "\"dynamic_shared\": %zu",
                l->k->name, g.x, g.y, g.z, b.x, b.y, b.z, l->cluster.x, l->cluster.y, l->cluster.z,
                l->opt->dynamic_shared_bytes);
        fprintf(f, ", \"warp_ins\": %llu, \"lane_ins\": %llu, \"by_class\": {", (unsigned long long)c->warp_ins,
                (unsigned long long)c->lane_ins);
        const char *comma = "";
        for (int q = 0; q < GS_N_CLASS; ++q)
            if (c->by_class[q]) {
                fprintf(f, "%s\"%s\": %llu", comma, gs_class_name[q], (unsigned long long)c->by_class[q]);
                comma = ", ";
            }
        fprintf(f, "}");
#define FIELD(name)                                                                                                    \
    { #name, c->name }
        const struct {
            const char *name;
            uint64_t value;
        } fields[] = {FIELD(ld_requests),     FIELD(ld_bytes),        FIELD(ld_sectors),      FIELD(st_requests),
                      FIELD(st_bytes),        FIELD(st_sectors),      FIELD(bulk_bytes),      FIELD(shared_ld_waves),
                      FIELD(shared_ld_ideal), FIELD(shared_st_waves), FIELD(shared_st_ideal), FIELD(mma),
                      FIELD(wgmma),           FIELD(mma_macs),        FIELD(barriers),        FIELD(divergent),
                      FIELD(blocks),          FIELD(findings)};
#undef FIELD
        for (size_t q = 0; q < sizeof fields / sizeof *fields; ++q)
            fprintf(f, ", \"%s\": %llu", fields[q].name, (unsigned long long)fields[q].value);
        fprintf(f, ", \"hot\": ["); /* the places that waste most: wavefronts or sectors beyond what would do */
        uint64_t below = ~0ull;
        comma = "";
        for (int top = 0; top < 3; ++top) {
            int best = -1;
            for (int q = 0; q < l->k->n_code; ++q) {
                uint64_t waste = l->pc[q].waves - (l->pc[q].waves < l->pc[q].ideal ? l->pc[q].waves : l->pc[q].ideal);
                if (waste && waste < below && (best < 0 || waste > l->pc[best].waves - l->pc[best].ideal)) best = q;
            }
            if (best < 0) break;
            below = l->pc[best].waves - l->pc[best].ideal;
            char at[300];
            gs_describe(l->k, best, at, sizeof at);
            fprintf(f, "%s{\"at\": \"%s\", \"units\": %llu, \"enough\": %llu}", comma, at,
                    (unsigned long long)l->pc[best].waves, (unsigned long long)l->pc[best].ideal);
            comma = ", ";
        }
        fprintf(f, "]}\n");
        fclose(f);
    }
    pthread_mutex_unlock(&g_lock);
}
gs_result gs_report_launch(gs_launch_state *l, gs_worker *wk, int n) {
    merge_findings(l, wk, n);
    merge_counts(l, wk, n);
    gs_result worst = GS_OK;
    for (int q = 0; q < l->n_finding; ++q) {
        print_finding(l, &l->finding[q]);
        /* the first fault is what a GPU would report */
        if (worst <= GS_FINDING && l->finding[q].fault > worst) worst = l->finding[q].fault;
    }
    if (g_settings.json) json_line(l);
    return worst;
}
