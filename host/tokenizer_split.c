/* SPDX-License-Identifier: Apache-2.0 */
/* Pre-tokenizers: a piece of text is split, and each part split again by the next one, until words reach BPE. */
#include "model_parse.h"
#include "tokenizer_impl.h"

/* GPT-2's pattern, as published with its code. */
static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* What a match may cost without being charged; words of real text stay far below both. */
#ifndef FIRST_WINDOW
#define FIRST_WINDOW 512 /* bytes */
#endif
#define FIRST_STEPS 500

static rq_status compile(rq_tok_pre *p, const char *pattern, size_t n, uint32_t options, const char *where) {
    rq_status status = RQ_OK;
    int error = 0;
    PCRE2_SIZE offset = 0;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) return rq_fail(RQ_ERR_NOMEM, "%s: out of memory", where);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    p->code = pcre2_compile((PCRE2_SPTR)pattern, n, options | PCRE2_UTF | PCRE2_NO_UTF_CHECK | PCRE2_USE_OFFSET_LIMIT,
                            &error, &offset, context);
    if (!p->code) {
        PCRE2_UCHAR text[160];
        pcre2_get_error_message(error, text, sizeof text);
        RQ_FAIL(RQ_ERR_INPUT, "%s: a pattern does not compile: %s", where, (const char *)text);
    }
    /* Without JIT (not built in, or no memory may be executable) the interpreter gives the same matches. */
    (void)pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
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
        if (!p->pattern || p->pattern[0] == '\0') RQ_FAIL(RQ_ERR_INPUT, "%s: an empty split pattern", where);
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

static rq_status too_costly(const rq_tok_run *r, int64_t n, int rc) {
    PCRE2_UCHAR why[160];
    if (rc == PCRE2_ERROR_PARTIAL) rc = PCRE2_ERROR_MATCHLIMIT;
    pcre2_get_error_message(rc, why, sizeof why);
    return rq_fail(RQ_ERR_INPUT, "%s: a pre-tokenizer pattern is too costly on this text (%lld bytes): %s", r->t->label,
                   (long long)n, (const char *)why);
}

/* The first match that starts at `from` or later.
 *
 * A pattern from a file may be hostile, so the time is bounded by the length of the text. PCRE2 limits backtracking per
 * start position, but neither the number of starts nor how far each looks. Therefore the subject is first cut off
 * FIRST_WINDOW bytes ahead, where a hard partial match tells that more is needed, and a start gets FIRST_STEPS. One that
 * needs more is tried alone (offset limit), with a longer window or more steps, and that is charged to the call. */
static rq_status find(rq_tok_run *r, const rq_tok_pre *p, const char *text, int64_t n, int64_t from, bool *found,
                      int64_t *start, int64_t *end) {
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(r->match);
    int64_t at = from, window = FIRST_WINDOW;
    uint32_t limit = FIRST_STEPS;
    bool alone = false;
    for (;;) {
        int64_t stop = window < n - at ? at + window : n, cost = 0;
        while (stop < n && ((unsigned char)text[stop] & 0xc0) == 0x80) ++stop;
        pcre2_set_match_limit(r->context, limit);
        pcre2_set_offset_limit(r->context, alone ? (PCRE2_SIZE)at : PCRE2_UNSET);
        int rc = pcre2_match(p->code, (PCRE2_SPTR)text, (PCRE2_SIZE)stop, (PCRE2_SIZE)at,
                             PCRE2_NO_UTF_CHECK | (stop < n ? PCRE2_PARTIAL_HARD : 0), r->match, r->context);
        *found = rc >= 0;
        if (rc >= 0) {
            *start = (int64_t)range[0];
            *end = (int64_t)range[1];
            return RQ_OK;
        }
        if (rc == PCRE2_ERROR_NOMATCH) {
            if (alone ? at == n : stop == n) return RQ_OK;
            int len = 0;
            if (alone) (void)rq_tok_char_at(text + at, &len);
            at = alone ? at + len : stop;
            alone = false;
            window = FIRST_WINDOW;
            limit = FIRST_STEPS;
        } else if (rc == PCRE2_ERROR_PARTIAL && !alone && (int64_t)range[0] > at) {
            at = (int64_t)range[0]; /* earlier starts have failed; this one with a window of its own */
        } else if (rc == PCRE2_ERROR_PARTIAL) {
            alone = true;
            cost = window *= 2;
        } else if (rc == PCRE2_ERROR_MATCHLIMIT) {
            if (alone) cost = limit *= 8; /* not alone: it may have been any start, so each gets its turn */
            alone = true;
        } else {
            return too_costly(r, n, rc);
        }
        if (cost > r->steps_left || limit > UINT32_MAX / 8) return too_costly(r, n, rc);
        r->steps_left -= cost;
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
