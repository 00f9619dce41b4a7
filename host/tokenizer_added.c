/* SPDX-License-Identifier: Apache-2.0 */
/* Added tokens are found in the text before any pre-tokenizer sees it: leftmost, and of those the longest. */
#include "tokenizer_impl.h"

static rq_status new_node(rq_tok_trie *t, uint8_t byte, int32_t *index) {
    if (t->n == t->cap) {
        int64_t cap = 2 * t->cap + 64;
        if (cap > INT32_MAX) return rq_fail(RQ_ERR_INPUT, "the added tokens are too long together");
        rq_tok_trie_node *nodes = realloc(t->nodes, (size_t)cap * sizeof *nodes);
        if (!nodes) return rq_fail(RQ_ERR_NOMEM, "out of memory for the added tokens");
        t->nodes = nodes;
        t->cap = cap;
    }
    *index = (int32_t)t->n++;
    t->nodes[*index] = (rq_tok_trie_node){.added = -1, .byte = byte};
    return RQ_OK;
}

rq_status rq_tok_trie_add(rq_tok_trie *t, rq_tok_str text, int32_t added, int32_t *found) {
    rq_status status = RQ_OK;
    int32_t at = 0, next;
    if (t->n == 0) RQ_TRY(new_node(t, 0, &next)); /* index 0 is the root, so 0 can mean "none" */
    for (int64_t i = 0; i < text.n; ++i) {
        uint8_t byte = (uint8_t)text.text[i];
        next = i == 0 ? t->first[byte] : t->nodes[at].child;
        while (next && t->nodes[next].byte != byte) next = t->nodes[next].sibling;
        if (!next) {
            RQ_TRY(new_node(t, byte, &next));
            if (i == 0) {
                t->first[byte] = next;
            } else {
                t->nodes[next].sibling = t->nodes[at].child;
                t->nodes[at].child = next;
            }
        }
        at = next;
    }
    if (t->nodes[at].added < 0) t->nodes[at].added = added;
    *found = t->nodes[at].added;
done:
    return status;
}

/* The longest token that starts at p, or -1. */
static int32_t longest_at(const rq_tok_trie *t, const char *p, int64_t n, int64_t *len) {
    int32_t best = -1, at = t->first[(uint8_t)p[0]];
    for (int64_t i = 1; at; ++i) {
        if (t->nodes[at].added >= 0) {
            best = t->nodes[at].added;
            *len = i;
        }
        if (i == n) break;
        int32_t next = t->nodes[at].child;
        while (next && t->nodes[next].byte != (uint8_t)p[i]) next = t->nodes[next].sibling;
        at = next;
    }
    return best;
}

static uint32_t char_before(const char *text, int64_t at, int64_t *start) {
    int len;
    *start = at - 1;
    while (*start > 0 && ((unsigned char)text[*start] & 0xc0) == 0x80) --*start;
    return rq_tok_char_at(text + *start, &len);
}

static bool stands_alone(const char *text, int64_t n, int64_t start, int64_t end) {
    int64_t before;
    int len;
    if (start > 0 && rq_tok_is_word(char_before(text, start, &before))) return false;
    return end == n || !rq_tok_is_word(rq_tok_char_at(text + end, &len));
}

static rq_status put_span(rq_tok_spans *out, int64_t start, int64_t end, int32_t added) {
    if (out->n == out->cap) {
        int64_t cap = 2 * out->cap + 16;
        rq_tok_span *items = realloc(out->items, (size_t)cap * sizeof *items);
        if (!items) return rq_fail(RQ_ERR_NOMEM, "out of memory for %lld added tokens in a text", (long long)cap);
        out->items = items;
        out->cap = cap;
    }
    out->items[out->n++] = (rq_tok_span){start, end, added};
    return RQ_OK;
}

/* The search goes on behind the token itself, also when rstrip took the space after it: this is how the reference does
 * it, and shows only where a token consists of space. */
rq_status rq_tok_added_find(rq_tok_spans *out, const rq_tok_trie *trie, const rq_tok_added *added, const char *text,
                            int64_t n) {
    rq_status status = RQ_OK;
    int64_t covered = 0;
    out->n = 0;
    if (!trie->nodes) return n > 0 ? put_span(out, 0, n, -1) : RQ_OK;
    for (int64_t i = 0; i < n;) {
        int64_t len = 0;
        int32_t k = longest_at(trie, text + i, n - i, &len);
        if (k < 0) {
            ++i;
            continue;
        }
        int64_t start = i, end = i + len;
        const rq_tok_added *a = &added[k];
        i = end;
        if (a->single_word && !stands_alone(text, n, start, end)) continue;
        if (a->lstrip) {
            for (int64_t at; start > covered && rq_tok_is_space(char_before(text, start, &at));) start = at;
            if (start < covered) start = covered;
        }
        if (a->rstrip) {
            for (int used; end < n && rq_tok_is_space(rq_tok_char_at(text + end, &used));) end += used;
        }
        if (covered < start) RQ_TRY(put_span(out, covered, start, -1));
        RQ_TRY(put_span(out, start, end, k));
        covered = end;
    }
    if (covered < n) RQ_TRY(put_span(out, covered, n, -1));
done:
    return status;
}
