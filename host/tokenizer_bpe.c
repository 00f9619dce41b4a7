/* SPDX-License-Identifier: Apache-2.0 */
/* The model: vocabulary, merges, and a word's bytes to ids by byte pair encoding (Sennrich et al., arXiv:1508.07909, over
 * bytes as in GPT-2).
 *
 * Of all neighbours that have a merge, the one with the lowest rank is joined first, the leftmost of equals; until none is
 * left. Short words scan for it; long ones keep the candidates in a heap, so a megabyte without a space takes
 * O(n log n). */
#include <xxhash.h>

#include "model_parse.h"
#include "tokenizer_impl.h"

#define SHORT_WORD  48 /* up to here a scan is cheaper than a heap */
#define CHUNK_BYTES ((int64_t)1 << 20)

struct rq_tok_chunk {
    struct rq_tok_chunk *next;
    int64_t n, cap;
    char data[];
};

rq_status rq_tok_keep(rq_tokenizer *t, rq_tok_str *out, const char *text, int64_t n) {
    struct rq_tok_chunk *c = t->chunks;
    if (!c || n + 1 > c->cap - c->n) {
        int64_t cap = rq_max_i64(CHUNK_BYTES, n + 1);
        c = malloc(sizeof *c + (size_t)cap);
        if (!c) return rq_fail(RQ_ERR_NOMEM, "%s: out of memory for %lld bytes of tokens", t->label, (long long)cap);
        c->next = t->chunks;
        c->n = 0;
        c->cap = cap;
        t->chunks = c;
    }
    char *copy = c->data + c->n;
    if (n > 0) memcpy(copy, text, (size_t)n);
    copy[n] = '\0';
    c->n += n + 1;
    *out = (rq_tok_str){copy, n};
    return RQ_OK;
}

void rq_tok_free_chunks(rq_tokenizer *t) {
    for (struct rq_tok_chunk *c = t->chunks, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    t->chunks = NULL;
}

/* ---- vocabulary ---- */

static int64_t slot_of(const rq_tokenizer *t, const char *text, int64_t n) {
    int64_t at = (int64_t)(XXH3_64bits(text, (size_t)n) & (uint64_t)(t->n_slots - 1));
    for (;; at = (at + 1) & (t->n_slots - 1)) {
        int32_t id = t->slots[at];
        if (id < 0 || (t->tokens[id].n == n && memcmp(t->tokens[id].text, text, (size_t)n) == 0)) return at;
    }
}

int32_t rq_tok_model_id(const rq_tokenizer *t, const char *text, int64_t n) { return t->slots[slot_of(t, text, n)]; }

static int64_t table_size(int64_t n) {
    int64_t size = 16;
    while (size < 2 * n) size *= 2;
    return size;
}

rq_status rq_tok_vocab_begin(rq_tokenizer *t, int64_t n_entries, int64_t max_id) {
    rq_status status = RQ_OK;
    if (max_id > RQ_TOK_MAX_ID) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: token id %lld is above the %lld supported", t->label, (long long)max_id,
                (long long)RQ_TOK_MAX_ID);
    }
    t->n_ids = max_id + 1;
    t->n_slots = table_size(n_entries);
    RQ_TRY(RQ_NEW_ZERO(t->tokens, t->n_ids));
    RQ_TRY(RQ_NEW_ZERO(t->in_model, t->n_ids));
    RQ_TRY(RQ_NEW(t->added_of_id, t->n_ids));
    RQ_TRY(RQ_NEW(t->slots, t->n_slots));
    memset(t->added_of_id, 0xff, (size_t)t->n_ids * sizeof *t->added_of_id);
    memset(t->slots, 0xff, (size_t)t->n_slots * sizeof *t->slots);
done:
    return status;
}

rq_status rq_tok_vocab_add(rq_tokenizer *t, int64_t id, const char *text, int64_t n) {
    if (id < 0 || id >= t->n_ids) {
        return rq_fail(RQ_ERR_INPUT, "%s: token '%s' has the impossible id %lld", t->label, rq_show(text, n).text,
                       (long long)id);
    }
    if (t->tokens[id].text) {
        return rq_fail(RQ_ERR_INPUT, "%s: tokens '%s' and '%s' have the same id %lld", t->label,
                       rq_show(t->tokens[id].text, t->tokens[id].n).text, rq_show(text, n).text, (long long)id);
    }
    int64_t slot = slot_of(t, text, n);
    if (t->slots[slot] >= 0) {
        return rq_fail(RQ_ERR_INPUT, "%s: token '%s' has two ids, %d and %lld", t->label, rq_show(text, n).text,
                       t->slots[slot], (long long)id);
    }
    rq_status status = rq_tok_keep(t, &t->tokens[id], text, n);
    if (status != RQ_OK) return status;
    t->slots[slot] = (int32_t)id;
    t->in_model[id] = true;
    ++t->n_model;
    t->max_token_bytes = rq_max_i64(t->max_token_bytes, n);
    return RQ_OK;
}

/* ---- merges ---- */

static rq_tok_merge_slot *merge_slot(const rq_tokenizer *t, int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t h = pair * 0x9e3779b97f4a7c15u; /* 2^64 / golden ratio: spreads over the high bits */
    int64_t at = (int64_t)((h ^ h >> 32) & (uint64_t)(t->n_merge_slots - 1));
    while (t->merge_slots[at].pair != pair && t->merge_slots[at].pair != UINT64_MAX) {
        at = (at + 1) & (t->n_merge_slots - 1);
    }
    return &t->merge_slots[at];
}

rq_status rq_tok_merges_begin(rq_tokenizer *t, int64_t n) {
    rq_status status = RQ_OK;
    if (n > INT32_MAX / 4) RQ_FAIL(RQ_ERR_INPUT, "%s: %lld merges are too many", t->label, (long long)n);
    t->n_merge_slots = table_size(n);
    RQ_TRY(RQ_NEW(t->merges, n));
    RQ_TRY(RQ_NEW(t->merge_slots, t->n_merge_slots));
    memset(t->merge_slots, 0xff, (size_t)t->n_merge_slots * sizeof *t->merge_slots);
done:
    return status;
}

rq_status rq_tok_merges_add(rq_tokenizer *t, rq_tok_str left, rq_tok_str right) {
    rq_status status = RQ_OK;
    rq_tok_buf both = {0};
    RQ_TRY(rq_tok_buf_add(&both, left.text, left.n));
    RQ_TRY(rq_tok_buf_add(&both, right.text, right.n));
    rq_tok_merge m = {rq_tok_model_id(t, left.text, left.n), rq_tok_model_id(t, right.text, right.n),
                      rq_tok_model_id(t, both.data, both.n)};
    if (m.left < 0 || m.right < 0 || m.made < 0 || left.n == 0 || right.n == 0) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: merge %lld ('%s' + '%s') uses a token that the vocabulary lacks", t->label,
                (long long)t->n_merges, rq_show(left.text, left.n).text, rq_show(right.text, right.n).text);
    }
    /* A pair listed twice keeps its last rank, as in the reference. */
    rq_tok_merge_slot *slot = merge_slot(t, m.left, m.right);
    slot->pair = (uint64_t)(uint32_t)m.left << 32 | (uint32_t)m.right;
    slot->rank = (int32_t)t->n_merges;
    slot->made = m.made;
    t->merges[t->n_merges++] = m;
done:
    free(both.data);
    return status;
}

rq_status rq_tok_merges_add_pair(rq_tokenizer *t, const char *pair, int64_t n) {
    const char *space = memchr(pair, ' ', (size_t)n);
    int64_t left = space ? space - pair : 0;
    if (!space || memchr(space + 1, ' ', (size_t)(n - left - 1))) {
        return rq_fail(RQ_ERR_INPUT, "%s: merge %lld ('%s') is not two tokens with one space", t->label,
                       (long long)t->n_merges, rq_show(pair, n).text);
    }
    return rq_tok_merges_add(t, (rq_tok_str){pair, left}, (rq_tok_str){space + 1, n - left - 1});
}

/* ---- encoding a word ---- */

static rq_status need_work(rq_tok_run *r, int64_t count, size_t elem_bytes) {
    int64_t bytes;
    if (!rq_mul_size(count, (int64_t)elem_bytes, &bytes)) return rq_fail(RQ_ERR_NOMEM, "a word is too long");
    if (bytes <= r->work_bytes) return RQ_OK;
    free(r->work);
    r->work_bytes = 0;
    rq_status status = rq_alloc(&r->work, bytes, 1);
    if (status == RQ_OK) r->work_bytes = bytes;
    return status;
}

rq_status rq_tok_run_put(rq_tok_run *r, int32_t id) {
    if (r->n == r->cap) {
        int64_t cap = 2 * r->cap + 64;
        int32_t *ids = realloc(r->ids, (size_t)cap * sizeof *ids);
        if (!ids) return rq_fail(RQ_ERR_NOMEM, "out of memory for %lld ids", (long long)cap);
        r->ids = ids;
        r->cap = cap;
    }
    r->ids[r->n++] = id;
    return RQ_OK;
}

/* First symbols: one per byte that has a token; others become the unknown token, or nothing where there is none. */
static int64_t first_symbols(rq_tok_run *r, const char *bytes, int64_t n, int32_t *id) {
    const rq_tokenizer *t = r->t;
    int64_t n_sym = 0;
    bool unk_before = false;
    for (int64_t i = 0; i < n; ++i) {
        int32_t k = t->byte_id[(uint8_t)bytes[i]];
        bool is_unk = k < 0;
        if (is_unk && t->unk_id < 0) {
            ++r->n_dropped;
            continue;
        }
        if (!(is_unk && unk_before && t->fuse_unk)) id[n_sym++] = is_unk ? t->unk_id : k;
        unk_before = is_unk;
    }
    return n_sym;
}

static rq_status encode_short(rq_tok_run *r, const char *bytes, int64_t n) {
    const rq_tokenizer *t = r->t;
    int32_t id[SHORT_WORD], rank[SHORT_WORD], made[SHORT_WORD]; /* rank[i], made[i]: of the pair (i, i + 1) */
    int64_t m = first_symbols(r, bytes, n, id);
    for (int64_t i = 0; i + 1 < m; ++i) {
        const rq_tok_merge_slot *s = merge_slot(t, id[i], id[i + 1]);
        rank[i] = s->pair == UINT64_MAX ? INT32_MAX : s->rank;
        made[i] = s->made;
    }
    while (m > 1) {
        int64_t best = 0;
        for (int64_t i = 1; i + 1 < m; ++i) {
            if (rank[i] < rank[best]) best = i;
        }
        if (rank[best] == INT32_MAX) break;
        id[best] = made[best];
        --m;
        for (int64_t i = best + 1; i < m; ++i) id[i] = id[i + 1];
        for (int64_t i = best + 1; i + 1 < m; ++i) {
            rank[i] = rank[i + 1];
            made[i] = made[i + 1];
        }
        for (int64_t i = best > 0 ? best - 1 : 0; i <= best && i + 1 < m; ++i) {
            const rq_tok_merge_slot *s = merge_slot(t, id[i], id[i + 1]);
            rank[i] = s->pair == UINT64_MAX ? INT32_MAX : s->rank;
            made[i] = s->made;
        }
    }
    for (int64_t i = 0; i < m; ++i) {
        rq_status status = rq_tok_run_put(r, id[i]);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}

typedef struct candidate {
    uint64_t key; /* rank << 32 | position: the order of joining */
    int32_t made;
} candidate;

typedef struct symbol {
    int32_t id, prev, next; /* id -1: joined into an earlier one; prev, next -1: none */
} symbol;

static void sift_up(candidate *h, int64_t i) {
    candidate c = h[i];
    for (; i > 0 && h[(i - 1) / 2].key > c.key; i = (i - 1) / 2) h[i] = h[(i - 1) / 2];
    h[i] = c;
}

static void sift_down(candidate *h, int64_t n, int64_t i) {
    candidate c = h[i];
    for (;;) {
        int64_t k = 2 * i + 1;
        if (k >= n) break;
        if (k + 1 < n && h[k + 1].key < h[k].key) ++k;
        if (h[k].key >= c.key) break;
        h[i] = h[k];
        i = k;
    }
    h[i] = c;
}

static void push_pair(const rq_tokenizer *t, candidate *heap, int64_t *n_heap, const symbol *sym, int32_t at) {
    const rq_tok_merge_slot *s = merge_slot(t, sym[at].id, sym[sym[at].next].id);
    if (s->pair == UINT64_MAX) return;
    heap[*n_heap] = (candidate){(uint64_t)(uint32_t)s->rank << 32 | (uint32_t)at, s->made};
    sift_up(heap, (*n_heap)++);
}

static rq_status encode_long(rq_tok_run *r, const char *bytes, int64_t n) {
    rq_status status = RQ_OK;
    const rq_tokenizer *t = r->t;
    if (n > INT32_MAX / 4) RQ_FAIL(RQ_ERR_INPUT, "a word of %lld bytes is too long", (long long)n);
    /* Each join removes a symbol and adds two candidates at most: 3 n in all. */
    RQ_TRY(need_work(r, n, sizeof(symbol) + 3 * sizeof(candidate) + sizeof(int32_t)));
    candidate *heap = r->work;
    symbol *sym = (symbol *)(void *)(heap + 3 * n);
    int32_t *id = (int32_t *)(void *)(sym + n);
    int32_t m = (int32_t)first_symbols(r, bytes, n, id);
    for (int32_t i = 0; i < m; ++i) sym[i] = (symbol){id[i], i - 1, i + 1 < m ? i + 1 : -1};
    int64_t n_heap = 0;
    for (int32_t i = 0; i + 1 < m; ++i) push_pair(t, heap, &n_heap, sym, i);
    while (n_heap > 0) {
        candidate top = heap[0];
        heap[0] = heap[--n_heap];
        if (n_heap > 0) sift_down(heap, n_heap, 0);
        int32_t at = (int32_t)(top.key & 0xffffffffu);
        if (sym[at].id < 0 || sym[at].next < 0) continue;
        int32_t right = sym[at].next;
        const rq_tok_merge_slot *s = merge_slot(t, sym[at].id, sym[right].id);
        if (s->pair == UINT64_MAX || s->made != top.made) continue; /* the pair has changed since */
        sym[at].id = top.made;
        sym[at].next = sym[right].next;
        sym[right].id = -1;
        if (sym[at].next >= 0) sym[sym[at].next].prev = at;
        if (sym[at].prev >= 0) push_pair(t, heap, &n_heap, sym, sym[at].prev);
        if (sym[at].next >= 0) push_pair(t, heap, &n_heap, sym, at);
    }
    for (int32_t i = m > 0 ? 0 : -1; i >= 0; i = sym[i].next) RQ_TRY(rq_tok_run_put(r, sym[i].id));
done:
    return status;
}

/* The whole word as one token, where the model says that merges do not matter then; -1 when it is none. */
static rq_status whole_word(rq_tok_run *r, const char *bytes, int64_t n, int32_t *id) {
    *id = -1;
    if (n > r->t->max_token_bytes) return RQ_OK;
    rq_status status = need_work(r, 2 * n, 1); /* every byte letter is below U+0800 */
    if (status != RQ_OK) return status;
    char *letters = r->work;
    int64_t len = 0;
    for (int64_t i = 0; i < n; ++i) len += rq_tok_char_put(rq_tok_byte_char((uint8_t)bytes[i]), letters + len);
    *id = rq_tok_model_id(r->t, letters, len);
    return RQ_OK;
}

rq_status rq_tok_run_word(rq_tok_run *r, const char *bytes, int64_t n) {
    if (r->t->ignore_merges) {
        int32_t id;
        rq_status status = whole_word(r, bytes, n, &id);
        if (status != RQ_OK) return status;
        if (id >= 0) return rq_tok_run_put(r, id);
    }
    return n <= SHORT_WORD ? encode_short(r, bytes, n) : encode_long(r, bytes, n);
}
