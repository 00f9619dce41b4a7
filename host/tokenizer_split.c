/* SPDX-License-Identifier: Apache-2.0 */
/* Pre-tokenizers: a piece of text is split, and each part split again by the next one, until words reach BPE. */
#include "model_parse.h"
#include "tokenizer_impl.h"

/* GPT-2's pattern, as published with its code. */
static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

#define FIRST_STEPS 1000 /* match limit of a plain try; harmless patterns stay far below it on a word */

static rq_status compile(rq_tok_pre *p, const char *pattern, size_t n, uint32_t options, const char *where) {
    rq_status status = RQ_OK;
    int error = 0;
    PCRE2_SIZE offset = 0;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) return rq_fail(RQ_ERR_NOMEM, "%s: out of memory", where);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    p->code = pcre2_compile((PCRE2_SPTR)pattern, n, options | PCRE2_UTF | PCRE2_NO_UTF_CHECK, &error, &offset, context);
    if (!p->code) {
        PCRE2_UCHAR text[160];
        pcre2_get_error_message(error, text, sizeof text);
        RQ_FAIL(RQ_ERR_INPUT, "%s: a pattern does not compile: %s", where, (const char *)text);
    }
    /* Without JIT (not built in, or no memory may be executable) the interpreter gives the same matches. */
    (void)pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE);
done:
    pcre2_compile_context_free(context);
    return status;
}

rq_status rq_tok_pre_compile(rq_tok_pre *p, const char *where) {
    rq_status status = RQ_OK;
    rq_tok_buf buf = {0};
    const char *pattern = NULL;
    if (p->kind == RQ_TOK_DIGITS) {
        RQ_TRY(rq_tok_buf_add_str(&buf, "[\\p{N}"));
        RQ_TRY(rq_tok_class_extra(&buf, "Digits", 6));
        RQ_TRY(rq_tok_buf_add_str(&buf, p->individual ? "]" : "]+"));
    } else if (p->kind == RQ_TOK_SPLIT) {
        if (p->pattern[0] == '\0') RQ_FAIL(RQ_ERR_INPUT, "%s: an empty split pattern", where);
        if (p->is_regex) {
            pattern = p->pattern;
        } else {
            RQ_TRY(rq_tok_buf_add_str(&buf, p->pattern));
        }
    } else if (p->use_regex) {
        pattern = gpt2_pattern;
    } else {
        goto done;
    }
    if (pattern) RQ_TRY(rq_tok_pattern_translate(&buf, pattern, (int64_t)strlen(pattern), where));
    bool literal = p->kind == RQ_TOK_SPLIT && !p->is_regex;
    RQ_TRY(compile(p, buf.data, (size_t)buf.n, literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE, where));
done:
    free(buf.data);
    return status;
}

rq_status rq_tok_pre_add(rq_tokenizer *t, rq_tok_pre p, const char *pattern, int64_t n) {
    if (t->n_pre == RQ_TOK_MAX_PRE) {
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s: more than %d pre-tokenizers", t->label, RQ_TOK_MAX_PRE);
    }
    rq_tok_pre *slot = &t->pre[t->n_pre];
    *slot = p;
    slot->code = NULL;
    slot->pattern = NULL;
    if (pattern) {
        if (memchr(pattern, '\0', (size_t)n)) return rq_fail(RQ_ERR_INPUT, "%s: a pattern holds a NUL", t->label);
        slot->pattern = strndup(pattern, (size_t)n);
        if (!slot->pattern) return rq_fail(RQ_ERR_NOMEM, "%s: out of memory", t->label);
    }
    ++t->n_pre; /* from here on the tokenizer frees it */
    return rq_tok_pre_compile(slot, t->label);
}

/* ---- running ---- */

/* PCRE2 counts steps and stops at a limit, but does not tell how many it took: so a match gets a small allowance first
 * and larger ones, charged to the call's budget, when that was too little. A hostile pattern thus ends after a time
 * proportional to the text. */
static rq_status find(rq_tok_run *r, const rq_tok_pre *p, const char *text, int64_t n, int64_t from, bool *found,
                      int64_t *start, int64_t *end) {
    uint32_t limit = FIRST_STEPS;
    for (;;) {
        pcre2_set_match_limit(r->context, limit);
        int rc = pcre2_match(p->code, (PCRE2_SPTR)text, (PCRE2_SIZE)n, (PCRE2_SIZE)from, PCRE2_NO_UTF_CHECK, r->match,
                             r->context);
        *found = rc >= 0;
        if (rc >= 0) {
            const PCRE2_SIZE *at = pcre2_get_ovector_pointer(r->match);
            *start = (int64_t)at[0];
            *end = (int64_t)at[1];
            return RQ_OK;
        }
        if (rc == PCRE2_ERROR_NOMATCH) return RQ_OK;
        if (rc != PCRE2_ERROR_MATCHLIMIT || limit > r->steps_left || limit > UINT32_MAX / 8) {
            PCRE2_UCHAR why[160];
            pcre2_get_error_message(rc, why, sizeof why);
            return rq_fail(RQ_ERR_INPUT, "%s: a pre-tokenizer pattern is too costly on this text (%lld bytes): %s",
                           r->t->label, (long long)n, (const char *)why);
        }
        limit *= 8;
        r->steps_left -= limit;
    }
}

static rq_status split(rq_tok_run *r, int stage, const rq_tok_pre *p, const char *text, int64_t n) {
    rq_status status = RQ_OK;
    int64_t done_to = 0, from = 0, empty_at = -1; /* empty_at: end of the last match */
    bool keep_matches = !p->is_removed || p->invert, keep_rest = !p->is_removed || !p->invert;
    while (from <= n) {
        bool found;
        int64_t start, end;
        RQ_TRY(find(r, p, text, n, from, &found, &start, &end));
        if (!found) break;
        if (end < start || start < done_to) {
            /* A lookbehind-like construct moved the start: nothing that the translation lets through does. */
            RQ_FAIL(RQ_ERR_INPUT, "%s: a pre-tokenizer pattern matches backwards", r->t->label);
        }
        if (start == end && end == empty_at) { /* an empty match right behind the last one: move on */
            if (from == n) break;
            int len;
            (void)rq_tok_char_at(text + from, &len);
            from += len;
            continue;
        }
        if (keep_rest) RQ_TRY(rq_tok_run_text(r, stage + 1, text + done_to, start - done_to));
        if (keep_matches) RQ_TRY(rq_tok_run_text(r, stage + 1, text + start, end - start));
        done_to = from = empty_at = end;
    }
    if (keep_rest) RQ_TRY(rq_tok_run_text(r, stage + 1, text + done_to, n - done_to));
done:
    return status;
}

rq_status rq_tok_run_text(rq_tok_run *r, int stage, const char *text, int64_t n) {
    rq_status status = RQ_OK;
    char *with_space = NULL;
    if (n == 0) return RQ_OK;
    if (stage == r->t->n_pre) return rq_tok_run_word(r, text, n);
    const rq_tok_pre *p = &r->t->pre[stage];
    if (p->kind == RQ_TOK_BYTE_LEVEL && p->add_prefix_space && text[0] != ' ') {
        RQ_TRY(RQ_NEW(with_space, n + 1));
        with_space[0] = ' ';
        memcpy(with_space + 1, text, (size_t)n);
        text = with_space;
        ++n;
    }
    if (p->code) {
        RQ_TRY(split(r, stage, p, text, n));
    } else {
        RQ_TRY(rq_tok_run_text(r, stage + 1, text, n));
    }
done:
    free(with_space);
    return status;
}
