/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF version 2 and 3 (the same layout), little-endian:
 *   "GGUF" | u32 version | i64 n_tensors | i64 n_kv | key-values | tensor infos | padding | data
 * Tensor names and shapes are turned into those of the Hugging Face checkpoint. */
#include "model_parse.h"

#define MAX_ARRAY ((uint64_t)1 << 30) /* strings and arrays, the limit of ggml's own reader */

typedef struct cursor {
    const uint8_t *base, *p, *end;
    const char *label;
} cursor;

static int64_t left(const cursor *c) { return c->end - c->p; }

static rq_status take(cursor *c, void *dst, int64_t n, const char *what) {
    if (left(c) < n) {
        return rq_fail(RQ_ERR_INPUT, "%s: ends at byte %lld, inside %s", c->label, (long long)(c->end - c->base), what);
    }
    memcpy(dst, c->p, (size_t)n);
    c->p += n;
    return RQ_OK;
}

/* u64 length and bytes; they stay in the file. */
static rq_status take_string(cursor *c, const char **text, int64_t *n_bytes, const char *what) {
    uint64_t n = 0;
    rq_status status = take(c, &n, sizeof n, what);
    if (status != RQ_OK) return status;
    if (n > MAX_ARRAY || (int64_t)n > left(c)) {
        return rq_fail(RQ_ERR_INPUT, "%s: %s claims %llu bytes at byte %lld of %lld", c->label, what,
                       (unsigned long long)n, (long long)(c->p - c->base), (long long)(c->end - c->base));
    }
    *text = (const char *)c->p;
    *n_bytes = (int64_t)n;
    c->p += n;
    return RQ_OK;
}

/* A string that is used as a name: no NUL, valid UTF-8, of sane length. */
static rq_status take_name(cursor *c, const char **text, int64_t *n_bytes, const char *what) {
    rq_status status = take_string(c, text, n_bytes, what);
    if (status != RQ_OK) return status;
    if (*n_bytes > RQ_MAX_NAME_BYTES) {
        return rq_fail(RQ_ERR_INPUT, "%s: %s has %lld bytes, more than %lld", c->label, what, (long long)*n_bytes,
                       (long long)RQ_MAX_NAME_BYTES);
    }
    if (memchr(*text, 0, (size_t)*n_bytes) || !rq_utf8_valid(*text, *n_bytes)) {
        return rq_fail(RQ_ERR_INPUT, "%s: %s \"%s\" holds a zero byte or is not UTF-8", c->label, what,
                       rq_show(*text, *n_bytes).text);
    }
    return RQ_OK;
}

static const int8_t type_bytes[RQ_N_META_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static rq_status parse_array(cursor *c, rq_meta *m) {
    rq_status status;
    uint32_t type = 0;
    uint64_t n = 0;
    if ((status = take(c, &type, sizeof type, m->key)) != RQ_OK) return status;
    if ((status = take(c, &n, sizeof n, m->key)) != RQ_OK) return status;
    if (type >= RQ_N_META_TYPES || type == RQ_META_ARRAY) {
        return rq_fail(RQ_ERR_INPUT, "%s: key %s: an array of value type %u is not possible", c->label, RQ_SHOW(m->key),
                       type);
    }
    int64_t least = type == RQ_META_STR ? 8 : type_bytes[type];
    if (n > MAX_ARRAY || (int64_t)n > left(c) / least) {
        return rq_fail(RQ_ERR_INPUT, "%s: key %s claims %llu array elements, but %lld bytes are left", c->label,
                       RQ_SHOW(m->key), (unsigned long long)n, (long long)left(c));
    }
    m->array = (rq_meta_array){.type = (int)type, .n = (int64_t)n, .first = c->p, .base = c->base};
    if (type == RQ_META_STR) {
        if ((status = RQ_NEW(m->string_offset, (int64_t)n)) != RQ_OK) return status;
        for (uint64_t i = 0; i < n; ++i) {
            const char *text;
            int64_t n_bytes;
            m->string_offset[i] = (uint64_t)(c->p - c->base);
            if ((status = take_string(c, &text, &n_bytes, m->key)) != RQ_OK) return status;
        }
        m->array.string_offset = m->string_offset;
    } else {
        c->p += (int64_t)n * least;
    }
    m->array.end = c->p;
    return RQ_OK;
}

static rq_status parse_value(cursor *c, rq_meta *m) {
    rq_status status;
    uint32_t type = 0;
    if ((status = take(c, &type, sizeof type, m->key)) != RQ_OK) return status;
    if (type >= RQ_N_META_TYPES) {
        return rq_fail(RQ_ERR_INPUT, "%s: key %s has value type %u, which GGUF does not know", c->label,
                       RQ_SHOW(m->key), type);
    }
    m->type = (rq_meta_type)type;
    if (type == RQ_META_ARRAY) return parse_array(c, m);
    if (type == RQ_META_STR) {
        const char *text;
        if ((status = take_string(c, &text, &m->n_bytes, m->key)) != RQ_OK) return status;
        m->value = (const uint8_t *)text;
        return RQ_OK;
    }
    m->value = c->p;
    m->n_bytes = type_bytes[type];
    if (left(c) < m->n_bytes) {
        return rq_fail(RQ_ERR_INPUT, "%s: ends inside key %s", c->label, RQ_SHOW(m->key));
    }
    c->p += m->n_bytes;
    return RQ_OK;
}

static rq_status parse_keys(rq_store *s, cursor *c, int64_t n_kv) {
    for (int64_t i = 0; i < n_kv; ++i) {
        const char *key = "";
        int64_t n_key = 0;
        rq_meta *m;
        rq_status status = take_name(c, &key, &n_key, "a key");
        if (status != RQ_OK) return status;
        if ((status = rq_store_add_meta(s, key, n_key, &m)) != RQ_OK) return status;
        if ((status = parse_value(c, m)) != RQ_OK) return status;
    }
    rq_store_sort_meta(s);
    for (int64_t i = 1; i < s->n_meta; ++i) {
        if (strcmp(s->meta[i - 1].key, s->meta[i].key) == 0) {
            return rq_fail(RQ_ERR_INPUT, "%s: key %s is there twice", c->label, RQ_SHOW(s->meta[i].key));
        }
    }
    return RQ_OK;
}

/* ggml's type ids. dtype RQ_N_DTYPES: named in the message, but not read here. */
static const struct type_row {
    const char *name;
    uint32_t id;
    rq_dtype dtype;
} type_rows[] = {
    {"F32", 0, RQ_F32},
    {"F16", 1, RQ_F16},
    {"Q4_0", 2, RQ_Q4_0},
    {"Q4_1", 3, RQ_Q4_1},
    {"Q5_0", 6, RQ_N_DTYPES},
    {"Q5_1", 7, RQ_N_DTYPES},
    {"Q8_0", 8, RQ_Q8_0},
    {"Q8_1", 9, RQ_N_DTYPES},
    {"Q2_K", 10, RQ_N_DTYPES},
    {"Q3_K", 11, RQ_N_DTYPES},
    {"Q4_K", 12, RQ_Q4_K},
    {"Q5_K", 13, RQ_N_DTYPES},
    {"Q6_K", 14, RQ_Q6_K},
    {"Q8_K", 15, RQ_N_DTYPES},
    {"IQ2_XXS", 16, RQ_N_DTYPES},
    {"IQ2_XS", 17, RQ_N_DTYPES},
    {"IQ3_XXS", 18, RQ_N_DTYPES},
    {"IQ1_S", 19, RQ_N_DTYPES},
    {"IQ4_NL", 20, RQ_N_DTYPES},
    {"IQ3_S", 21, RQ_N_DTYPES},
    {"IQ2_S", 22, RQ_N_DTYPES},
    {"IQ4_XS", 23, RQ_N_DTYPES},
    {"I8", 24, RQ_I8},
    {"I16", 25, RQ_I16},
    {"I32", 26, RQ_I32},
    {"I64", 27, RQ_I64},
    {"F64", 28, RQ_F64},
    {"IQ1_M", 29, RQ_N_DTYPES},
    {"BF16", 30, RQ_BF16},
    {"TQ1_0", 34, RQ_N_DTYPES},
    {"TQ2_0", 35, RQ_N_DTYPES},
    {"MXFP4", 39, RQ_N_DTYPES},
};

static const struct type_row *find_type(uint32_t id) {
    for (size_t i = 0; i < sizeof type_rows / sizeof *type_rows; ++i) {
        if (type_rows[i].id == id) return &type_rows[i];
    }
    return NULL;
}

/* blk.N.X -> model.layers.N.Y. */
static const struct {
    const char *gguf, *hf;
} block_names[] = {
    {"attn_norm", "input_layernorm"}, {"ffn_norm", "post_attention_layernorm"},
    {"attn_q", "self_attn.q_proj"},   {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},   {"attn_output", "self_attn.o_proj"},
    {"ffn_gate", "mlp.gate_proj"},    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};

/* Hugging Face name of a GGUF tensor in out[], or false: the name is kept. interleaved: 1 for q, 2 for k, else 0. */
static bool map_name(const char *name, int64_t n, char *out, size_t out_size, int *interleaved) {
    static const char *const outer[][2] = {{"token_embd.weight", "model.embed_tokens.weight"},
                                           {"output_norm.weight", "model.norm.weight"},
                                           {"output.weight", "lm_head.weight"}};
    *interleaved = 0;
    for (size_t i = 0; i < sizeof outer / sizeof *outer; ++i) {
        if ((int64_t)strlen(outer[i][0]) == n && memcmp(outer[i][0], name, (size_t)n) == 0) {
            snprintf(out, out_size, "%s", outer[i][1]);
            return true;
        }
    }
    if (n < 6 || memcmp(name, "blk.", 4) != 0) return false;
    int64_t i = 4;
    while (i < n && name[i] >= '0' && name[i] <= '9') ++i;
    int64_t digits = i - 4;
    if (digits < 1 || digits > 9 || (digits > 1 && name[4] == '0') || i >= n || name[i] != '.') return false;
    const char *rest = name + i + 1;
    int64_t n_rest = n - i - 1;
    for (size_t k = 0; k < sizeof block_names / sizeof *block_names; ++k) {
        int64_t len = (int64_t)strlen(block_names[k].gguf);
        if (n_rest <= len || memcmp(rest, block_names[k].gguf, (size_t)len) != 0) continue;
        const char *kind = rest + len;
        int64_t n_kind = n_rest - len;
        bool weight = n_kind == 7 && memcmp(kind, ".weight", 7) == 0;
        bool bias = n_kind == 5 && memcmp(kind, ".bias", 5) == 0;
        if (!weight && !bias) return false;
        snprintf(out, out_size, "model.layers.%.*s.%s%s", (int)digits, name + 4, block_names[k].hf,
                 weight ? ".weight" : ".bias");
        *interleaved = strcmp(block_names[k].gguf, "attn_q") == 0   ? 1
                       : strcmp(block_names[k].gguf, "attn_k") == 0 ? 2
                                                                    : 0;
        return true;
    }
    return false;
}

typedef struct layout { /* what tensor infos are read against */
    bool mapped;        /* llama and qwen2: names are mapped */
    bool interleaves;   /* llama: rows of q and k */
    int64_t n_head, n_kv_head;
    int64_t alignment;
} layout;

static rq_status read_layout(layout *l, const rq_store *s, const char *label) {
    const char *arch;
    int64_t n = 0;
    memset(l, 0, sizeof *l);
    if (rq_meta_str(s, "general.architecture", &arch, &n)) {
        l->interleaves = n == 5 && memcmp(arch, "llama", 5) == 0;
        l->mapped = l->interleaves || (n == 5 && memcmp(arch, "qwen2", 5) == 0);
    }
    if (l->interleaves && rq_meta_i64(s, "llama.attention.head_count", &l->n_head)) {
        if (!rq_store_meta(s, "llama.attention.head_count_kv")) {
            l->n_kv_head = l->n_head;
        } else if (!rq_meta_i64(s, "llama.attention.head_count_kv", &l->n_kv_head)) {
            return rq_fail(RQ_ERR_UNSUPPORTED, "%s: llama.attention.head_count_kv is not one integer for all layers",
                           label);
        }
    }
    l->alignment = 32;
    if (rq_store_meta(s, "general.alignment") &&
        (!rq_meta_i64(s, "general.alignment", &l->alignment) || l->alignment < 1 || l->alignment > (1 << 20) ||
         (l->alignment & (l->alignment - 1)) != 0)) {
        return rq_fail(RQ_ERR_INPUT, "%s: general.alignment is not a power of two up to 2^20", label);
    }
    return RQ_OK;
}

/* Set n_interleaved_heads of q (which = 1) or k (which = 2) after checking that the rows divide. */
static rq_status set_interleave(rq_tensor *t, const layout *l, int which, const char *label) {
    int64_t heads = which == 1 ? l->n_head : l->n_kv_head;
    if (heads < 1 || t->rank > 2 || t->shape[0] % heads != 0 || t->shape[0] / heads % 2 != 0) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s has %lld rows in %lld heads; llama needs an even number per head",
                       label, RQ_SHOW(t->name), (long long)t->shape[0], (long long)heads);
    }
    if (t->rank == 1 && rq_dtype_block(t->dtype) != 1) { /* elements cannot be moved inside a block */
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s: tensor %s is a vector in %s; only plain types are read", label,
                       RQ_SHOW(t->name), rq_dtype_name(t->dtype));
    }
    t->n_interleaved_heads = heads;
    return RQ_OK;
}

/* One tensor info; t->data is left NULL and *offset given, as the data section begins only after the last info. */
static rq_status parse_info(rq_store *s, cursor *c, const layout *l, int64_t *offset) {
    rq_status status;
    const char *name = "";
    char mapped[128];
    int64_t n_name = 0, numel = 0;
    uint32_t rank = 0, type = 0;
    uint64_t where = 0;
    int which = 0;
    rq_tensor t = {.name = NULL};
    if ((status = take_name(c, &name, &n_name, "a tensor name")) != RQ_OK) return status;
    if ((status = take(c, &rank, sizeof rank, "a tensor info")) != RQ_OK) return status;
    if (rank < 1 || rank > 4) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s has %u dimensions; GGUF allows 1 to 4", c->label,
                       rq_show(name, n_name).text, rank);
    }
    t.rank = (int)rank;
    for (int i = t.rank - 1; i >= 0; --i) { /* the file lists the contiguous dimension first */
        if ((status = take(c, &t.shape[i], sizeof t.shape[i], "a tensor info")) != RQ_OK) return status;
    }
    if (!rq_shape_numel(t.shape, t.rank, &numel)) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s: a dimension is negative, or their product is too large", c->label,
                       rq_show(name, n_name).text);
    }
    if ((status = take(c, &type, sizeof type, "a tensor info")) != RQ_OK) return status;
    if ((status = take(c, &where, sizeof where, "a tensor info")) != RQ_OK) return status;
    const struct type_row *row = find_type(type);
    if (!row) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s has type id %u, which is not known", c->label,
                       rq_show(name, n_name).text, type);
    }
    if (row->dtype == RQ_N_DTYPES) {
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s: tensor %s is %s; read are F32 F16 BF16 Q4_0 Q4_1 Q8_0 Q4_K Q6_K",
                       c->label, rq_show(name, n_name).text, row->name);
    }
    t.dtype = row->dtype;
    int64_t block = rq_dtype_block(t.dtype);
    if (t.shape[t.rank - 1] % block != 0) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s: rows of %lld elements are not whole %s blocks of %lld", c->label,
                       rq_show(name, n_name).text, (long long)t.shape[t.rank - 1], row->name, (long long)block);
    }
    if (!rq_mul_size(numel / block, rq_dtype_block_bytes(t.dtype), &t.n_bytes) || where > (uint64_t)INT64_MAX) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor %s: its size or place is beyond 2^63", c->label,
                       rq_show(name, n_name).text);
    }
    if ((status = rq_store_keep(s, name, n_name, &t.name)) != RQ_OK) return status;
    if (l->mapped && map_name(name, n_name, mapped, sizeof mapped, &which)) t.name = mapped;
    if (l->interleaves && which != 0 && (status = set_interleave(&t, l, which, c->label)) != RQ_OK) return status;
    *offset = (int64_t)where;
    return rq_store_add(s, &t, 0);
}

static rq_status pad_to(int64_t at, int64_t alignment, int64_t *padded) {
    if (at > INT64_MAX - alignment) return rq_fail(RQ_ERR_INPUT, "a tensor ends beyond 2^63");
    *padded = (at + alignment - 1) & ~(alignment - 1);
    return RQ_OK;
}

/* Tensors lie in the order of their infos, each at the next multiple of the alignment (ggml's reader demands the same);
 * after the last one only its padding may follow. */
static rq_status place_tensors(rq_store *s, const cursor *c, const int64_t *offset, int64_t alignment) {
    rq_status status;
    int64_t start = 0, at = 0, data_bytes, size = c->end - c->base;
    if ((status = pad_to(c->p - c->base, alignment, &start)) != RQ_OK) return status;
    if (start > size && s->n_slot == 0) start = size; /* no tensors: the padding before them may be left out */
    if (start > size) return rq_fail(RQ_ERR_INPUT, "%s: ends before its data section", c->label);
    data_bytes = size - start;
    int64_t last_end = 0;
    for (int64_t i = 0; i < s->n_slot; ++i) {
        rq_tensor *t = &s->slot[i].t;
        if (offset[i] != at) {
            return rq_fail(RQ_ERR_INPUT, "%s: tensor %s lies at offset %lld, but the one before makes it %lld",
                           c->label, RQ_SHOW(t->name), (long long)offset[i], (long long)at);
        }
        if (at > data_bytes || t->n_bytes > data_bytes - at) {
            return rq_fail(RQ_ERR_INPUT, "%s: tensor %s needs %lld bytes at offset %lld, but the data section has %lld",
                           c->label, RQ_SHOW(t->name), (long long)t->n_bytes, (long long)at, (long long)data_bytes);
        }
        t->data = c->base + start + at;
        last_end = at + t->n_bytes;
        if ((status = pad_to(last_end, alignment, &at)) != RQ_OK) return status;
    }
    if (data_bytes > at) {
        return rq_fail(RQ_ERR_INPUT, "%s: %lld bytes follow the last tensor", c->label,
                       (long long)(data_bytes - last_end));
    }
    return RQ_OK;
}

rq_status rq_parse_gguf(rq_store *s, int64_t file, const char *label) {
    rq_status status = RQ_OK;
    const rq_file *f = &s->file[file];
    cursor c = {.base = f->base, .p = f->base + 4, .end = f->base + f->n_bytes, .label = label};
    uint32_t version = 0;
    int64_t n_tensors = 0, n_kv = 0, *offset = NULL;
    layout l;
    RQ_TRY(take(&c, &version, sizeof version, "its header"));
    if (version == 1 || (version & 0xffffu) == 0) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: is GGUF %s; versions 2 and 3, little-endian, are read", label,
                version == 1 ? "version 1" : "in big-endian order");
    }
    if (version != 2 && version != 3) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: is GGUF version %u; versions 2 and 3 are read", label, version);
    }
    RQ_TRY(take(&c, &n_tensors, sizeof n_tensors, "its header"));
    RQ_TRY(take(&c, &n_kv, sizeof n_kv, "its header"));
    /* The smallest key-value is 8 + 4 + 1 bytes, the smallest tensor info 8 + 4 + 8 + 4 + 8. */
    if (n_tensors < 0 || n_kv < 0 || n_tensors > RQ_MAX_TENSORS || n_kv > left(&c) / 13 || n_tensors > left(&c) / 32) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: claims %lld tensors and %lld keys in %lld bytes", label, (long long)n_tensors,
                (long long)n_kv, (long long)f->n_bytes);
    }
    RQ_TRY(parse_keys(s, &c, n_kv));
    RQ_TRY(read_layout(&l, s, label));
    RQ_TRY(RQ_NEW(offset, n_tensors));
    for (int64_t i = 0; i < n_tensors; ++i) RQ_TRY(parse_info(s, &c, &l, &offset[i]));
    RQ_TRY(place_tensors(s, &c, offset, l.alignment));
done:
    free(offset);
    return status;
}
