/* SPDX-License-Identifier: Apache-2.0 */
/* The store: opens a folder, a .safetensors or a .gguf as read-only mappings, and finds tensors by name.
 *
 * Everything a parser needs is checked against the size the file had when it was mapped. A file that another process
 * shrinks while it is mapped ends in SIGBUS; that is out of scope. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model_parse.h"

struct rq_arena_block {
    rq_arena_block *next;
    size_t used, size;
    char bytes[];
};

rq_status rq_store_keep(rq_store *s, const char *text, int64_t n_bytes, const char **out) {
    size_t need = (size_t)n_bytes + 1;
    rq_arena_block *b = s->arena;
    if (!b || b->size - b->used < need) {
        size_t size = need > 65536 ? need : 65536;
        b = malloc(sizeof *b + size);
        if (!b) return rq_fail(RQ_ERR_NOMEM, "out of memory: %zu bytes for names", size);
        b->next = s->arena;
        b->used = 0;
        b->size = size;
        s->arena = b;
    }
    char *p = b->bytes + b->used;
    memcpy(p, text, (size_t)n_bytes);
    p[n_bytes] = '\0';
    b->used += need;
    *out = p;
    return RQ_OK;
}

/* Room for one more element; capacity doubles. */
static rq_status grow(void **array, int64_t n, int64_t *cap, size_t elem_bytes) {
    if (n < *cap) return RQ_OK;
    int64_t wanted = *cap ? *cap * 2 : 64;
    void *p = realloc(*array, (size_t)wanted * elem_bytes);
    if (!p) return rq_fail(RQ_ERR_NOMEM, "out of memory: a table of %lld entries", (long long)wanted);
    *array = p;
    *cap = wanted;
    return RQ_OK;
}

rq_status rq_store_add(rq_store *s, const rq_tensor *t, int64_t file) {
    rq_status status = grow((void **)&s->slot, s->n_slot, &s->cap_slot, sizeof *s->slot);
    if (status != RQ_OK) return status;
    rq_slot *slot = &s->slot[s->n_slot];
    slot->t = *t;
    slot->file = file;
    status = rq_store_keep(s, t->name, (int64_t)strlen(t->name), &slot->t.name);
    if (status == RQ_OK) ++s->n_slot;
    return status;
}

rq_status rq_store_add_meta(rq_store *s, const char *key, int64_t key_bytes, rq_meta **out) {
    rq_status status = grow((void **)&s->meta, s->n_meta, &s->cap_meta, sizeof *s->meta);
    if (status != RQ_OK) return status;
    rq_meta *m = &s->meta[s->n_meta];
    memset(m, 0, sizeof *m);
    m->order = s->n_meta;
    status = rq_store_keep(s, key, key_bytes, &m->key);
    if (status != RQ_OK) return status;
    ++s->n_meta;
    *out = m;
    return RQ_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const rq_slot *)a)->t.name, ((const rq_slot *)b)->t.name);
}

static rq_status sort_tensors(rq_store *s) {
    if (s->n_slot > 1) qsort(s->slot, (size_t)s->n_slot, sizeof *s->slot, by_name);
    for (int64_t i = 1; i < s->n_slot; ++i) {
        if (strcmp(s->slot[i - 1].t.name, s->slot[i].t.name) == 0) {
            return rq_fail(RQ_ERR_INPUT, "%s: tensor %s is there twice", s->path, RQ_SHOW(s->slot[i].t.name));
        }
    }
    return RQ_OK;
}

static const rq_slot *find_slot(const rq_store *s, const char *name) {
    int64_t lo = 0, hi = s->n_slot;
    while (lo < hi) {
        int64_t mid = lo + (hi - lo) / 2;
        int order = strcmp(s->slot[mid].t.name, name);
        if (order == 0) return &s->slot[mid];
        if (order < 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return NULL;
}

/* Map a file and append it to s->file. */
static rq_status map_file(rq_store *s, const char *path) {
    rq_status status = RQ_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: a pipe must not hang us */
    if (fd < 0) return rq_fail(RQ_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) != 0) RQ_FAIL(RQ_ERR_IO, "cannot stat %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) RQ_FAIL(RQ_ERR_IO, "%s is not a regular file", path);
    if (st.st_size == 0) RQ_FAIL(RQ_ERR_INPUT, "%s is empty", path);
    void *base = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (base == MAP_FAILED) {
        RQ_FAIL(RQ_ERR_IO, "cannot map %lld bytes of %s: %s", (long long)st.st_size, path, strerror(errno));
    }
    s->file[s->n_file++] = (rq_file){.base = base, .n_bytes = st.st_size, .mapped = true};
done:
    close(fd);
    return status;
}

static bool has_gguf_magic(const rq_file *f) { return f->n_bytes >= 4 && memcmp(f->base, "GGUF", 4) == 0; }

static rq_status parse_single(rq_store *s, const char *label) {
    s->is_gguf = has_gguf_magic(&s->file[0]);
    rq_status status = s->is_gguf ? rq_parse_gguf(s, 0, label) : rq_parse_safetensors(s, 0, label);
    if (status != RQ_OK) return status;
    rq_store_sort_meta(s);
    return sort_tensors(s);
}

rq_status rq_store_open_memory(rq_store **out, const void *bytes, int64_t n_bytes, const char *label) {
    rq_status status = RQ_OK;
    rq_store *s = NULL;
    *out = NULL;
    RQ_TRY(RQ_NEW_ZERO(s, 1));
    RQ_TRY(RQ_NEW_ZERO(s->file, 1));
    s->path = strdup(label);
    if (!s->path) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    s->file[s->n_file++] = (rq_file){.base = bytes, .n_bytes = n_bytes};
    if (n_bytes <= 0) RQ_FAIL(RQ_ERR_INPUT, "%s is empty", label);
    RQ_TRY(parse_single(s, label));
    *out = s;
    s = NULL;
done:
    rq_store_close(s);
    return status;
}

/* A shard's name must stay inside the folder. */
static bool plain_file_name(const char *name) {
    return name[0] != '\0' && strchr(name, '/') == NULL && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
           strlen(name) <= 255;
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* Distinct shard names of a weight map, sorted: *names is malloc'ed, its strings belong to the JSON. */
static rq_status list_shards(json_t *weight_map, const char *label, const char ***names, int64_t *n_names) {
    rq_status status = RQ_OK;
    const char **all = NULL, *key;
    json_t *value;
    int64_t n = 0;
    *names = NULL;
    if (json_object_size(weight_map) > (size_t)RQ_MAX_TENSORS) {
        return rq_fail(RQ_ERR_INPUT, "%s: lists %zu tensors, more than %lld", label, json_object_size(weight_map),
                       (long long)RQ_MAX_TENSORS);
    }
    RQ_TRY(RQ_NEW(all, (int64_t)json_object_size(weight_map)));
    json_object_foreach(weight_map, key, value) {
        const char *file = json_string_value(value);
        if (!file || !plain_file_name(file)) {
            RQ_FAIL(RQ_ERR_INPUT, "%s: tensor %s names %s, which is not a plain file name", label, RQ_SHOW(key),
                    file ? RQ_SHOW(file) : "no string");
        }
        all[n++] = file;
    }
    if (n == 0) RQ_FAIL(RQ_ERR_INPUT, "%s: its weight_map is empty", label);
    qsort(all, (size_t)n, sizeof *all, by_text);
    int64_t distinct = 1;
    for (int64_t i = 1; i < n; ++i) {
        if (strcmp(all[distinct - 1], all[i]) != 0) all[distinct++] = all[i];
    }
    if (distinct > RQ_MAX_SHARDS) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: names %lld shards, more than %lld", label, (long long)distinct,
                (long long)RQ_MAX_SHARDS);
    }
    *names = all;
    *n_names = distinct;
    all = NULL;
done:
    free(all);
    return status;
}

/* Every tensor of the index must lie in the shard that the index names. */
static rq_status check_weight_map(const rq_store *s, json_t *weight_map, const char *const *shards, int64_t n_shards,
                                  const char *label) {
    const char *key;
    json_t *value;
    json_object_foreach(weight_map, key, value) {
        const rq_slot *slot = find_slot(s, key);
        const char *file = json_string_value(value);
        if (!slot || slot->file >= n_shards || strcmp(shards[slot->file], file) != 0) {
            return rq_fail(RQ_ERR_INPUT, "%s: says that tensor %s is in %s, but %s%s", label, RQ_SHOW(key),
                           RQ_SHOW(file), slot ? "it is in " : "no shard has it",
                           slot && slot->file < n_shards ? shards[slot->file] : "");
        }
    }
    return RQ_OK;
}

/* Shards repeat metadata: after sorting, the first shard's value of a key stays. */
static void keep_first_meta(rq_store *s) {
    int64_t kept = 0;
    rq_store_sort_meta(s);
    for (int64_t i = 0; i < s->n_meta; ++i) {
        if (kept == 0 || strcmp(s->meta[kept - 1].key, s->meta[i].key) != 0) s->meta[kept++] = s->meta[i];
    }
    s->n_meta = kept;
}

static rq_status open_sharded(rq_store *s, const char *index_path) {
    rq_status status = RQ_OK;
    char *text = NULL, *path = NULL;
    const char **shards = NULL;
    json_t *root = NULL;
    int64_t n_bytes, n_shards = 0;
    json_error_t err;
    RQ_TRY(rq_read_file(index_path, RQ_MAX_JSON_BYTES, &text, &n_bytes));
    root = json_loadb(text, (size_t)n_bytes, JSON_REJECT_DUPLICATES, &err);
    if (!root) RQ_FAIL(RQ_ERR_INPUT, "%s: line %d: %s", index_path, err.line, RQ_SHOW(err.text));
    json_t *weight_map = json_object_get(root, "weight_map");
    if (!json_is_object(weight_map)) RQ_FAIL(RQ_ERR_INPUT, "%s: has no weight_map object", index_path);
    RQ_TRY(list_shards(weight_map, index_path, &shards, &n_shards));
    RQ_TRY(RQ_NEW_ZERO(s->file, n_shards));
    for (int64_t i = 0; i < n_shards; ++i) {
        free(path);
        path = rq_path_join(s->folder, shards[i]);
        if (!path) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
        RQ_TRY(map_file(s, path));
        RQ_TRY(rq_parse_safetensors(s, i, path));
    }
    keep_first_meta(s);
    RQ_TRY(sort_tensors(s));
    RQ_TRY(check_weight_map(s, weight_map, shards, n_shards, index_path));
done:
    free(shards);
    free(path);
    free(text);
    json_decref(root);
    return status;
}

static rq_status open_folder(rq_store *s) {
    rq_status status = RQ_OK;
    char *one = rq_path_join(s->folder, "model.safetensors");
    char *index = rq_path_join(s->folder, "model.safetensors.index.json");
    if (!one || !index) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (access(one, F_OK) == 0) { /* the order in which transformers looks */
        RQ_TRY(RQ_NEW_ZERO(s->file, 1));
        RQ_TRY(map_file(s, one));
        RQ_TRY(parse_single(s, one));
    } else if (access(index, F_OK) == 0) {
        RQ_TRY(open_sharded(s, index));
    } else {
        RQ_FAIL(
            RQ_ERR_IO,
            "%s has neither model.safetensors nor model.safetensors.index.json (a .gguf is opened by naming the file)",
            s->folder);
    }
done:
    free(one);
    free(index);
    return status;
}

rq_status rq_store_open(rq_store **out, const char *path) {
    rq_status status = RQ_OK;
    rq_store *s = NULL;
    struct stat st;
    *out = NULL;
    if (!path || !*path) return rq_fail(RQ_ERR_ARG, "rq_store_open: no path");
    if (stat(path, &st) != 0) return rq_fail(RQ_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    RQ_TRY(RQ_NEW_ZERO(s, 1));
    s->path = strdup(path);
    s->folder = strdup(path);
    if (!s->path || !s->folder) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (S_ISDIR(st.st_mode)) {
        RQ_TRY(open_folder(s));
    } else {
        char *slash = strrchr(s->folder, '/');
        if (slash) {
            slash[slash == s->folder ? 1 : 0] = '\0';
        } else {
            free(s->folder);
            s->folder = strdup(".");
            if (!s->folder) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
        }
        RQ_TRY(RQ_NEW_ZERO(s->file, 1));
        RQ_TRY(map_file(s, path));
        RQ_TRY(parse_single(s, path));
    }
    *out = s;
    s = NULL;
done:
    rq_store_close(s);
    return status;
}

void rq_store_close(rq_store *s) {
    if (!s) return;
    for (int64_t i = 0; i < s->n_file; ++i) {
        if (s->file[i].mapped) munmap((void *)(uintptr_t)s->file[i].base, (size_t)s->file[i].n_bytes);
    }
    for (int64_t i = 0; i < s->n_meta; ++i) free(s->meta[i].string_offset);
    while (s->arena) {
        rq_arena_block *next = s->arena->next;
        free(s->arena);
        s->arena = next;
    }
    free(s->file);
    free(s->slot);
    free(s->meta);
    free(s->path);
    free(s->folder);
    free(s);
}

const char *rq_store_path(const rq_store *s) { return s->path; }

bool rq_store_is_gguf(const rq_store *s) { return s->is_gguf; }

int64_t rq_store_count(const rq_store *s) { return s->n_slot; }

const rq_tensor *rq_store_at(const rq_store *s, int64_t i) { return i >= 0 && i < s->n_slot ? &s->slot[i].t : NULL; }

const rq_tensor *rq_store_find(const rq_store *s, const char *name) {
    const rq_slot *slot = find_slot(s, name);
    return slot ? &slot->t : NULL;
}

int64_t rq_store_file_bytes(const rq_store *s) {
    int64_t n = 0;
    for (int64_t i = 0; i < s->n_file; ++i) n += s->file[i].n_bytes;
    return n;
}
