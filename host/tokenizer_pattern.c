/* SPDX-License-Identifier: Apache-2.0 */
/* Patterns of tokenizer.json, written for Oniguruma (Ruby syntax), to PCRE2 patterns with the same meaning.
 *
 * Only constructs whose meaning was compared are let through; anything else is refused by name, since a pattern that
 * compiles in both engines can still split differently (\h, \w, {n}?, nested classes, ...). Classes are written out anew:
 * \s becomes its code points and \p{..} gets the ranges that PCRE2's Unicode tables may lack. */
#include "model_parse.h"
#include "tokenizer_impl.h"

#define MAX_GROUPS  64
#define MAX_PATTERN 65536

/* White_Space, and the rest, inside [ ]. */
static const char spaces[] = "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
                             "\\x{205f}\\x{3000}";
static const char non_spaces[] = "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}"
                                 "\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}"
                                 "\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";

typedef struct translation {
    rq_tok_buf *out;
    const char *p, *end, *start;
    const char *where;
    bool caseless[MAX_GROUPS]; /* by depth of groups */
    int depth;
    uint32_t letter_before; /* caseless: the ASCII letter just before, else 0 */
} translation;

/* What one escape or character of a class stands for. */
typedef struct class_item {
    bool is_set;
    uint32_t c;
} class_item;

static rq_status refuse(const translation *t, const char *what) {
    return rq_fail(RQ_ERR_UNSUPPORTED, "%s: a pattern uses %s (byte %lld), which is not supported", t->where, what,
                   (long long)(t->p - t->start));
}

static rq_status put_char(translation *t, uint32_t c) {
    char text[16];
    if (c < 0x80 && c > 0x20 && !strchr("\\^$.[]|()?*+{}-#", (int)c)) {
        text[0] = (char)c;
        return rq_tok_buf_add(t->out, text, 1);
    }
    (void)snprintf(text, sizeof text, "\\x{%x}", (unsigned)c);
    return rq_tok_buf_add_str(t->out, text);
}

static int hex_value(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* \x{H..}, \xHH or \uHHHH; p is behind the letter. */
static rq_status read_hex(translation *t, char letter, uint32_t *c) {
    bool braces = letter == 'x' && t->p < t->end && *t->p == '{';
    int max = braces ? 8 : letter == 'x' ? 2 : 4, n = 0;
    if (braces) ++t->p;
    *c = 0;
    for (; n < max && t->p < t->end && hex_value(*t->p) >= 0; ++n, ++t->p) *c = *c << 4 | (uint32_t)hex_value(*t->p);
    if (n == 0 || (!braces && n < max) || *c > 0x10ffff || (*c >= 0xd800 && *c < 0xe000) ||
        (!braces && letter == 'x' && *c > 127)) {
        return refuse(t, "an odd code point escape");
    }
    if (braces && (t->p == t->end || *t->p++ != '}')) return refuse(t, "an odd code point escape");
    return RQ_OK;
}

static bool is_category(const char *name, size_t n) {
    static const char all[] =
        " L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp Cc Cf Co ";
    char padded[5] = " ";
    if (n < 1 || n > 2) return false;
    memcpy(padded + 1, name, n);
    padded[n + 1] = ' ';
    return strstr(all, padded) != NULL;
}

static rq_status put_category(translation *t, const char *name, size_t n) {
    char text[16];
    (void)snprintf(text, sizeof text, "\\p{%.*s}", (int)n, name);
    rq_status status = rq_tok_buf_add_str(t->out, text);
    return status == RQ_OK ? rq_tok_class_extra(t->out, name, n) : status;
}

/* An escape (p is at the backslash) inside a class, or outside as a class of its own. Sets are written out; a single
 * character is only returned. Negated sets are possible only where `own` says that we open the brackets. */
static rq_status escape(translation *t, bool own, class_item *item) {
    rq_status status = RQ_OK;
    const char *at = t->p;
    item->is_set = false;
    item->c = 0;
    if (++t->p == t->end) RQ_FAIL(RQ_ERR_INPUT, "%s: a pattern ends in a backslash", t->where);
    char letter = *t->p++;
    switch (letter) {
    case 'n': item->c = '\n'; return RQ_OK;
    case 'r': item->c = '\r'; return RQ_OK;
    case 't': item->c = '\t'; return RQ_OK;
    case 'f': item->c = '\f'; return RQ_OK;
    case 'v': item->c = '\v'; return RQ_OK;
    case 'x':
    case 'u': return read_hex(t, letter, &item->c);
    case 's':
    case 'S':
    case 'd':
    case 'D':
    case 'p':
    case 'P': break;
    default:
        if ((unsigned char)letter > 0x20 && (unsigned char)letter < 0x7f &&
            !((letter | 0x20) >= 'a' && (letter | 0x20) <= 'z') && !(letter >= '0' && letter <= '9')) {
            item->c = (unsigned char)letter;
            return RQ_OK;
        }
        char what[16];
        (void)snprintf(what, sizeof what, "'\\%c'",
                       (unsigned char)letter > 0x20 && (unsigned char)letter < 0x7f ? letter : '?');
        t->p = at;
        return refuse(t, what);
    }
    item->is_set = true;
    bool negated = letter == 'D' || letter == 'P';
    if (letter != 's' && letter != 'd' && t->caseless[t->depth]) return refuse(t, "a large set under (?i:");
    const char *name = "Nd";
    size_t n = 2;
    if (letter == 'p' || letter == 'P') {
        const char *close = t->p < t->end && *t->p == '{' ? memchr(t->p, '}', (size_t)(t->end - t->p)) : NULL;
        if (!close) return refuse(t, "a property without braces");
        name = t->p + 1;
        n = (size_t)(close - name);
        if (!is_category(name, n)) {
            return rq_fail(RQ_ERR_UNSUPPORTED, "%s: a pattern uses property '%s', which is not supported", t->where,
                           rq_show(name, (int64_t)n).text);
        }
        t->p = close + 1;
    }
    if (negated && !own) return refuse(t, "a negated property inside a class");
    if (own) RQ_TRY(rq_tok_buf_add_str(t->out, negated ? "[^" : "["));
    if (letter == 's' || letter == 'S') {
        RQ_TRY(rq_tok_buf_add_str(t->out, letter == 's' ? spaces : non_spaces));
    } else {
        RQ_TRY(put_category(t, name, n));
    }
    if (own) RQ_TRY(rq_tok_buf_add_str(t->out, "]"));
done:
    return status;
}

/* One character or escape of a class. */
static rq_status class_part(translation *t, class_item *item) {
    if (t->p == t->end) return rq_fail(RQ_ERR_INPUT, "%s: a pattern ends inside [ ]", t->where);
    if (*t->p == '[') return refuse(t, "a class inside a class");
    if (*t->p == '&' && t->end - t->p > 1 && t->p[1] == '&') return refuse(t, "'&&' inside a class");
    if (*t->p == '\\') return escape(t, false, item);
    int len;
    item->is_set = false;
    item->c = rq_tok_char_at(t->p, &len);
    t->p += len;
    return RQ_OK;
}

static rq_status translate_class(translation *t) {
    rq_status status = RQ_OK;
    ++t->p;
    RQ_TRY(rq_tok_buf_add_str(t->out, "["));
    if (t->p < t->end && *t->p == '^') {
        if (t->caseless[t->depth]) return refuse(t, "a large set under (?i:");
        ++t->p;
        RQ_TRY(rq_tok_buf_add_str(t->out, "^"));
    }
    if (t->p < t->end && *t->p == ']') return refuse(t, "']' as the first character of a class");
    for (;;) {
        class_item item = {0}, last = {0};
        if (t->p < t->end && *t->p == ']') break;
        RQ_TRY(class_part(t, &item));
        bool range = t->end - t->p > 1 && t->p[0] == '-' && t->p[1] != ']';
        if (!item.is_set) {
            if (item.c > 127 && t->caseless[t->depth]) return refuse(t, "a letter outside ASCII under (?i:");
            RQ_TRY(put_char(t, item.c));
        }
        if (!range) continue;
        if (item.is_set || item.c == '-') return refuse(t, "a range with an odd end");
        ++t->p;
        RQ_TRY(class_part(t, &last));
        if (last.is_set || last.c < item.c) return refuse(t, "a range with an odd end");
        if (last.c > 127 && t->caseless[t->depth]) return refuse(t, "a letter outside ASCII under (?i:");
        RQ_TRY(rq_tok_buf_add_str(t->out, "-"));
        RQ_TRY(put_char(t, last.c));
        if (t->end - t->p > 1 && t->p[0] == '-' && t->p[1] != ']') return refuse(t, "a range with an odd end");
    }
    ++t->p;
    RQ_TRY(rq_tok_buf_add_str(t->out, "]"));
done:
    return status;
}

static rq_status open_group(translation *t) {
    static const char *const kinds[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
    bool caseless = t->caseless[t->depth];
    const char *text = "(";
    if (t->end - t->p > 1 && t->p[1] == '*') return refuse(t, "'(*'");
    if (t->end - t->p > 1 && t->p[1] == '?') {
        text = NULL;
        for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; ++i) {
            size_t n = strlen(kinds[i]);
            if ((size_t)(t->end - t->p) >= n && memcmp(t->p, kinds[i], n) == 0) text = kinds[i];
        }
        if (!text) return refuse(t, "a special group");
        caseless = caseless || strcmp(text, "(?i:") == 0;
    }
    if (++t->depth == MAX_GROUPS) return refuse(t, "too many nested groups");
    t->caseless[t->depth] = caseless;
    t->p += strlen(text);
    return rq_tok_buf_add_str(t->out, text);
}

static bool read_number(translation *t, long *v) {
    const char *from = t->p;
    *v = 0;
    for (; t->p < t->end && *t->p >= '0' && *t->p <= '9' && t->p - from < 6; ++t->p) *v = *v * 10 + (*t->p - '0');
    return t->p > from && *v <= 10000;
}

/* After an atom: * + ? {n} {n,} {n,m} with what may follow them. */
static rq_status quantifier(translation *t) {
    const char *from = t->p;
    if (*t->p != '{') {
        ++t->p;
        if (t->p < t->end && (*t->p == '?' || *t->p == '+')) ++t->p;
    } else {
        long lo, hi = 0;
        bool exact = true;
        ++t->p;
        bool good = read_number(t, &lo);
        if (good && t->p < t->end && *t->p == ',') {
            exact = false;
            ++t->p;
            if (t->p < t->end && *t->p != '}') good = read_number(t, &hi) && hi >= lo;
        }
        if (!good || t->p == t->end || *t->p != '}') {
            t->p = from;
            return refuse(t, "an odd repeat");
        }
        ++t->p;
        if (!exact && t->p < t->end && *t->p == '?') ++t->p;
    }
    if (t->p < t->end && strchr("*+?{", *t->p)) return refuse(t, "a repeat of a repeat");
    return rq_tok_buf_add(t->out, from, t->p - from);
}

/* Oniguruma lets two letters match a ligature, (?i:ss) is also U+00DF, and the reverse for a set that holds U+00DF. */
static bool folds_together(uint32_t a, uint32_t b) {
    return (a == 's' && (b == 's' || b == 't')) || (a == 'f' && (b == 'f' || b == 'i' || b == 'l'));
}

static rq_status literal(translation *t, uint32_t c) {
    uint32_t letter = 0;
    if (t->caseless[t->depth]) {
        if (c > 127) return refuse(t, "a letter outside ASCII under (?i:");
        letter = c >= 'A' && c <= 'Z' ? c + 32 : c;
        if (folds_together(t->letter_before, letter)) return refuse(t, "letters that form a ligature under (?i:");
    }
    t->letter_before = letter;
    return put_char(t, c);
}

static rq_status translate_one(translation *t) {
    class_item item;
    int len;
    uint32_t before = t->letter_before;
    t->letter_before = 0;
    switch (*t->p) {
    case '[': return translate_class(t);
    case '(': return open_group(t);
    case ')':
        if (t->depth == 0) return rq_fail(RQ_ERR_INPUT, "%s: a pattern closes a group that is not open", t->where);
        --t->depth;
        ++t->p;
        return rq_tok_buf_add_str(t->out, ")");
    case '|':
    case '.':
    case '^':
    case '$': return rq_tok_buf_add(t->out, t->p++, 1);
    case '*':
    case '+':
    case '?':
    case '{': return quantifier(t);
    case '\\': {
        rq_status status = escape(t, true, &item);
        if (status != RQ_OK || item.is_set) return status;
        t->letter_before = before;
        return literal(t, item.c);
    }
    default:
        t->letter_before = before;
        item.c = rq_tok_char_at(t->p, &len);
        t->p += len;
        return literal(t, item.c);
    }
}

rq_status rq_tok_pattern_translate(rq_tok_buf *out, const char *pattern, int64_t n, const char *where) {
    translation t = {.out = out, .p = pattern, .start = pattern, .end = pattern + n, .where = where};
    if (n > MAX_PATTERN) {
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s: a pattern of %lld bytes is longer than the %d supported", where,
                       (long long)n, MAX_PATTERN);
    }
    while (t.p < t.end) {
        rq_status status = translate_one(&t);
        if (status != RQ_OK) return status;
    }
    if (t.depth != 0) return rq_fail(RQ_ERR_INPUT, "%s: a pattern leaves a group open", where);
    return RQ_OK;
}
