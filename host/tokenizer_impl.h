/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the tokenizer. Text runs through these parts, one file each:
 *
 *   tokenizer_added.c    special and added tokens are cut out of the text first
 *   tokenizer_unicode.c  UTF-8, NFC, and the character classes as the reference has them
 *   tokenizer_split.c    pre-tokenizers: text to words (tokenizer_pattern.c translates their patterns for PCRE2)
 *   tokenizer_bpe.c      a word's bytes to ids
 *
 * and a tokenizer is built by tokenizer_json.c or tokenizer_gguf.c. The reference for every rule is the behaviour of the
 * `tokenizers` library (Apache-2.0), which defined tokenizer.json; docs/tokenizer.md has the list. */
#ifndef RQ_TOKENIZER_IMPL_H
#define RQ_TOKENIZER_IMPL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "tokenizer.h"

#define RQ_TOK_MAX_ID  ((int64_t)(1 << 24) - 1) /* far above any real vocabulary; bounds the id table */
#define RQ_TOK_MAX_PRE 16

/* A piece of text that someone else owns. */
typedef struct rq_tok_str {
    const char *text;
    int64_t n;
} rq_tok_str;

/* A growing buffer of bytes; free(data). */
typedef struct rq_tok_buf {
    char *data;
    int64_t n, cap;
} rq_tok_buf;
rq_status rq_tok_buf_add(rq_tok_buf *b, const char *text, int64_t n);
rq_status rq_tok_buf_add_str(rq_tok_buf *b, const char *text); /* NUL-terminated */

/* ---- characters ---- */

/* Code point at p (valid UTF-8, p < end); *n_bytes is its length. */
uint32_t rq_tok_char_at(const char *p, int *n_bytes);
int rq_tok_char_put(uint32_t c, char out[4]); /* its length */
/* Offset of the first byte that is no UTF-8 (surrogates and overlong forms count as such), or -1. */
int64_t rq_tok_utf8_bad_offset(const char *text, int64_t n);
bool rq_tok_is_space(uint32_t c); /* Unicode White_Space */
bool rq_tok_is_word(uint32_t c);  /* Alphabetic, mark, decimal digit, connector punctuation, join control */
/* NFC as the reference computes it. */
rq_status rq_tok_nfc(rq_tok_buf *out, const char *text, int64_t n);
/* The character that stands for a byte in token strings, and back (-1: stands for none). */
uint32_t rq_tok_byte_char(unsigned byte);
int rq_tok_char_byte(uint32_t c);
/* Ranges of category `name` ("L", "Nd") that were assigned after Unicode 14, added to a PCRE2 class. */
rq_status rq_tok_class_extra(rq_tok_buf *out, const char *name, size_t name_len);

/* ---- pre-tokenizers ---- */

typedef enum rq_tok_pre_kind { RQ_TOK_BYTE_LEVEL, RQ_TOK_SPLIT, RQ_TOK_DIGITS } rq_tok_pre_kind;

typedef struct rq_tok_pre {
    rq_tok_pre_kind kind;
    bool add_prefix_space, use_regex;  /* ByteLevel */
    bool is_regex, is_removed, invert; /* Split: pattern kind; matches dropped instead of kept apart */
    bool individual;                   /* Digits */
    char *pattern;                     /* Split: as given */
    pcre2_code *code;                  /* NULL: nothing to split */
} rq_tok_pre;

/* Compile what p describes. `where` starts the error sentence. */
rq_status rq_tok_pre_compile(rq_tok_pre *p, const char *where);
/* Oniguruma pattern (Ruby syntax, as the reference uses it) to PCRE2's, or a refusal that names the construct. */
rq_status rq_tok_pattern_translate(rq_tok_buf *out, const char *pattern, int64_t n, const char *where);

/* ---- added tokens ---- */

typedef struct rq_tok_added {
    int32_t id;
    bool special, lstrip, rstrip, single_word, normalized;
    rq_tok_str text;    /* as written */
    rq_tok_str matched; /* what is searched for: text, or its NFC when normalized */
} rq_tok_added;

/* Trie over bytes; a node's children are a linked list. node 0 is the root. */
typedef struct rq_tok_trie_node {
    int32_t child, sibling; /* 0: none */
    int32_t added;          /* index of the added token that ends here, or -1 */
    uint8_t byte;
} rq_tok_trie_node;
typedef struct rq_tok_trie {
    rq_tok_trie_node *nodes; /* NULL: nothing to find */
    int64_t n, cap;
    int32_t first[256]; /* children of the root by byte */
} rq_tok_trie;
/* Insert, unless the same text is there already; *found is the index that is there afterwards. */
rq_status rq_tok_trie_add(rq_tok_trie *t, rq_tok_str text, int32_t added, int32_t *found);

typedef struct rq_tok_span {
    int64_t start, end;
    int32_t added; /* index, or -1 for text between */
} rq_tok_span;
typedef struct rq_tok_spans {
    rq_tok_span *items;
    int64_t n, cap;
} rq_tok_spans;
rq_status rq_tok_added_find(rq_tok_spans *out, const rq_tok_trie *trie, const rq_tok_added *added, const char *text,
                            int64_t n);

/* ---- the tokenizer ---- */

typedef struct rq_tok_merge {
    int32_t left, right, made;
} rq_tok_merge;
typedef struct rq_tok_merge_slot {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: free */
    int32_t rank, made;
} rq_tok_merge_slot;

struct rq_tokenizer {
    char *label; /* starts error sentences: "tokenizer.json" */
    struct rq_tok_chunk *chunks;

    rq_tok_str *tokens; /* [n_ids] by id, in byte-level letters; text NULL where an id has no token */
    int64_t n_ids;
    int64_t n_model; /* entries of the model's vocabulary; ids of new added tokens count from here */
    int32_t *slots;  /* hash of the model's vocabulary: ids, -1 free */
    int64_t n_slots; /* power of two */
    int64_t max_token_bytes;
    bool *in_model;       /* [n_ids] */
    int32_t byte_id[256]; /* -1: the vocabulary lacks it */
    int32_t unk_id;       /* -1: none */
    bool fuse_unk, ignore_merges;

    rq_tok_merge *merges; /* in rank order */
    int64_t n_merges;
    rq_tok_merge_slot *merge_slots;
    int64_t n_merge_slots; /* power of two */

    bool nfc;
    rq_tok_pre pre[RQ_TOK_MAX_PRE];
    int n_pre;

    rq_tok_added *added; /* sorted by nothing: in the order given */
    int64_t n_added;
    int32_t *added_of_id; /* [n_ids] index or -1 */
    int64_t next_added_id;
    rq_tok_trie by_text;     /* every added token, to see one listed twice */
    rq_tok_trie raw, normal; /* searched before and after normalization */

    int32_t *prefix, *suffix; /* the template around the text */
    int64_t n_prefix, n_suffix;
};

/* Building, in this order: new, vocabulary, merges, pre-tokenizers (t->pre), added tokens, template, finish. */
rq_status rq_tok_new(rq_tokenizer **out, const char *label);
rq_status rq_tok_keep(rq_tokenizer *t, rq_tok_str *out, const char *text, int64_t n); /* a copy that lives with t */
void rq_tok_free_chunks(rq_tokenizer *t);
rq_status rq_tok_vocab_begin(rq_tokenizer *t, int64_t n_entries, int64_t max_id);
rq_status rq_tok_vocab_add(rq_tokenizer *t, int64_t id, const char *text, int64_t n);
rq_status rq_tok_merges_begin(rq_tokenizer *t, int64_t n);
rq_status rq_tok_merges_add(rq_tokenizer *t, rq_tok_str left, rq_tok_str right);
rq_status rq_tok_merges_add_pair(rq_tokenizer *t, const char *pair, int64_t n); /* "left right" */
rq_status rq_tok_added_begin(rq_tokenizer *t, int64_t n);
rq_status rq_tok_added_add(rq_tokenizer *t, const rq_tok_added *a, int64_t declared_id);
rq_status rq_tok_finish(rq_tokenizer *t);
/* Add a pre-tokenizer; the pattern (may be NULL) is copied. */
rq_status rq_tok_pre_add(rq_tokenizer *t, rq_tok_pre p, const char *pattern, int64_t n);
/* Id of a token of the model's vocabulary, or -1. */
int32_t rq_tok_model_id(const rq_tokenizer *t, const char *text, int64_t n);

/* One call of encode. */
typedef struct rq_tok_run {
    const rq_tokenizer *t;
    int32_t *ids;
    int64_t n, cap;
    int64_t n_dropped; /* bytes without a token */
    void *work;        /* scratch of the merge loop */
    int64_t work_bytes;
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *jit_stack;
    int64_t steps_left; /* what matching may still cost beyond the plain allowance */
} rq_tok_run;
rq_status rq_tok_run_put(rq_tok_run *r, int32_t id);
/* A piece of text between added tokens: through the pre-tokenizers from `stage` on, then BPE. */
rq_status rq_tok_run_text(rq_tok_run *r, int stage, const char *text, int64_t n);
rq_status rq_tok_run_word(rq_tok_run *r, const char *bytes, int64_t n);

rq_status rq_tokenizer_open_gguf(rq_tokenizer **out, const rq_store *s);

#endif
