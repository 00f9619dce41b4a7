/* SPDX-License-Identifier: Apache-2.0 */
/* PTX text: characters, words, numbers, and errors with their line. */
#include <ctype.h>
#include <stdlib.h>

#include "parse.h"

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
void gs_parse_skip_space(gs_parser *p) {
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
void gs_parse_word(gs_parser *p, char *out, size_t size) {
    gs_parse_skip_space(p);
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
bool gs_parse_accept(gs_parser *p, char c) {
    gs_parse_skip_space(p);
    if (*p->p != c) return false;
    p->p++;
    return true;
}
void gs_parse_expect(gs_parser *p, char c) {
    if (!gs_parse_accept(p, c)) gs_parse_die(p, "'%c' expected before \"%.20s\"", c, p->p);
}
int64_t gs_parse_integer(gs_parser *p) {
    gs_parse_skip_space(p);
    char *end;
    long long v = strtoll(p->p, &end, 0);
    if (end == p->p) gs_parse_die(p, "a number expected before \"%.20s\"", p->p);
    p->p = end;
    if (*p->p == 'U') p->p++;
    return v;
}
void gs_parse_to_line_end(gs_parser *p) {
    while (*p->p && *p->p != '\n') p->p++;
}
void gs_parse_past(gs_parser *p, char c) {
    while (*p->p && *p->p != c) p->line += *p->p++ == '\n';
    if (*p->p) p->p++;
}
/* Past the "}" that matches the "{" at p, over comments. */
void gs_parse_past_braces(gs_parser *p) {
    int depth = 0;
    do {
        gs_parse_skip_space(p);
        if (!*p->p) gs_parse_die(p, "the text ends inside braces");
        if (*p->p == '"') {
            p->p++;
            gs_parse_past(p, '"');
            continue;
        }
        depth += *p->p == '{' ? 1 : *p->p == '}' ? -1 : 0;
        p->p++;
    } while (depth);
}
