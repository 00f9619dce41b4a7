/* SPDX-License-Identifier: Apache-2.0 */
/* Finished matrices as files of the work folder, and the output folder made of them: model.safetensors, quantize_log.jsonl and what
 * quantize_beside.c writes. docs/formats.md lists the names and the metadata. */
#include <errno.h>
#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

#include "folder.h"
#include "quantize.h"

/* ---- parts ---- */

char *rq_part_path(const rq_quantizer *z, int64_t layer, int lead) {
    char *path = NULL;
    return asprintf(&path, "%s/%05lld.%d.safetensors", z->work_dir, (long long)layer, lead) < 0 ? NULL : path;
}

static json_t *linear_entry(int bits, int64_t group, bool sym) {
    return json_pack("{s:s, s:i, s:I, s:b}", "format", "grid", "bits", bits, "group", (json_int_t)group, "sym", sym);
}

/* The matrices of the set whose first is `lead`; returns how many. */
static int set_of(const rq_quantizer *z, int64_t layer, int lead, int which[RQ_N_LINEARS]) {
    int n = 0;
    for (int m = lead; m < RQ_N_LINEARS; ++m) {
        const rq_matrix_plan *p = &z->plan[layer * RQ_N_LINEARS + m];
        if (p->quantized && p->lead == lead) which[n++] = m;
    }
    return n;
}

/* One file a set: its tensors, "entries" (what the metadata will say of each matrix) and "log" (their lines). */
rq_status rq_part_save(const rq_quantizer *z, int64_t layer, int lead, const rq_quant_result *r,
                       const char *const *log_line) {
    rq_status status = RQ_OK;
    rq_packed_file file[RQ_N_LINEARS] = {0};
    rq_out_tensor *tensor = NULL;
    int which[RQ_N_LINEARS], n_tensors = 0, n = set_of(z, layer, lead, which);
    json_t *entries = json_object(), *log = json_array();
    char *path = rq_part_path(z, layer, lead), *text = NULL, *lines = NULL, *entry = NULL;
    RQ_TRY(RQ_NEW(tensor, n * (int64_t)(sizeof file->tensor / sizeof *file->tensor)));
    for (int i = 0; i < n; ++i) {
        const char *name = z->plan[layer * RQ_N_LINEARS + which[i]].name;
        RQ_TRY(rq_result_pack_file(&file[i], &entry, name, &r[i]));
        json_object_set_new(entries, name, json_loads(entry, 0, NULL));
        json_array_append_new(log, json_string(log_line[i]));
        free(entry);
        entry = NULL;
        for (int k = 0; k < file[i].n_tensors; ++k) tensor[n_tensors++] = file[i].tensor[k];
    }
    text = json_dumps(entries, JSON_COMPACT);
    lines = json_dumps(log, JSON_COMPACT);
    if (!path || !text || !lines) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    const char *pairs[] = {"entries", text, "log", lines};
    RQ_TRY(rq_safetensors_write(path, tensor, n_tensors, pairs, 2));
done:
    for (int i = 0; i < n; ++i) rq_packed_file_free(&file[i]);
    json_decref(entries);
    json_decref(log);
    free(tensor);
    free(path);
    free(text);
    free(lines);
    free(entry);
    return status;
}

/* The part's matrices and its metadata; *s stays open with it. */
static rq_status part_open(const rq_quantizer *z, int64_t layer, int lead, rq_store **s, json_t **entries,
                           json_t **log) {
    rq_status status = RQ_OK;
    const char *text;
    int64_t n;
    char *path = rq_part_path(z, layer, lead);
    *s = NULL;
    *entries = *log = NULL;
    if (!path) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(rq_store_open(s, path));
    if (rq_meta_str(*s, "entries", &text, &n)) *entries = json_loadb(text, (size_t)n, 0, NULL);
    if (rq_meta_str(*s, "log", &text, &n)) *log = json_loadb(text, (size_t)n, 0, NULL);
    if (!json_is_object(*entries) || !json_is_array(*log))
        RQ_FAIL(RQ_ERR_INPUT, "%s: no description of its matrices; run without --resume", path);
done:
    free(path);
    return status;
}

rq_status rq_part_load(const rq_quantizer *z, int64_t layer, int which, float *w, bool *found) {
    rq_status status = RQ_OK;
    const rq_matrix_plan *p = &z->plan[layer * RQ_N_LINEARS + which];
    rq_store *s = NULL;
    json_t *entries = NULL, *log = NULL;
    rq_packed packed = {0};
    rq_format format;
    char *path = rq_part_path(z, layer, p->lead);
    *found = false;
    if (!path) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (access(path, F_OK) != 0) goto done;
    RQ_TRY(part_open(z, layer, p->lead, &s, &entries, &log));
    const json_t *entry = json_object_get(entries, p->name);
    const char *name = json_string_value(json_object_get(entry, "format"));
    if (!name || !rq_format_by_name(name, &format)) RQ_FAIL(RQ_ERR_INPUT, "%s does not hold %s", path, p->name);
    RQ_TRY(rq_format_get(format)->load(&packed, s, p->name, entry));
    if (packed.n_out != p->n_out || packed.n_in != p->n_in)
        RQ_FAIL(RQ_ERR_INPUT, "%s holds a matrix of another size", path);
    if (format == RQ_FORMAT_W4A8) { /* values are wanted in the basis that was quantized */
        packed.u.w4a8.in_scale = NULL;
        packed.u.w4a8.hadamard = 0;
    }
    for (int64_t i = 0; i < p->n_out; ++i) rq_unpack_row(&packed, i, w + i * p->n_in);
    *found = true;
done:
    rq_packed_free(&packed);
    json_decref(entries);
    json_decref(log);
    rq_store_close(s);
    free(path);
    return status;
}

/* ---- the tensors of the output ---- */

typedef struct output {
    const rq_quantizer *z;
    rq_out_tensor *tensor;
    int64_t n, capacity;
    void **memory; /* what tensors point into */
    int64_t n_memory;
    rq_packed_file *files; /* embeddings packed losslessly */
    int64_t n_files;
    rq_store **parts;
    int64_t n_parts;
    json_t *linears;
    FILE *log;
    double bits, weights; /* of the block matrices */
    bool plain_groups;    /* every matrix could be read as compressed-tensors: one setting, whole groups */
} output;

static rq_status add_tensor(output *o, rq_out_tensor t) {
    if (o->n == o->capacity) {
        int64_t capacity = o->capacity ? 2 * o->capacity : 1024;
        rq_out_tensor *p = realloc(o->tensor, (size_t)capacity * sizeof *p);
        if (!p) return rq_fail(RQ_ERR_NOMEM, "out of memory");
        o->tensor = p;
        o->capacity = capacity;
    }
    o->tensor[o->n++] = t;
    return RQ_OK;
}

static rq_status add_raw(output *o, const rq_tensor *t) { return add_tensor(o, rq_out_stored(t)); }

static rq_status keep(output *o, void *memory) {
    void **p = realloc(o->memory, (size_t)(o->n_memory + 1) * sizeof *p);
    if (!p) {
        free(memory);
        return rq_fail(RQ_ERR_NOMEM, "out of memory");
    }
    o->memory = p;
    o->memory[o->n_memory++] = memory;
    return RQ_OK;
}

/* fp32 values as F16 when every one is exact in it, as F32 otherwise. Takes w over. */
static rq_status add_dense(output *o, const char *name, int rank, const int64_t *shape, float *w, int64_t n) {
    rq_status status = keep(o, w);
    if (status != RQ_OK) return status;
    rq_out_tensor out = {.name = name, .dtype = RQ_F32, .rank = rank, .fill = rq_fill_from_memory, .arg = w};
    memcpy(out.shape, shape, (size_t)rank * sizeof *shape);
    bool exact = true;
    for (int64_t i = 0; i < n && exact; ++i) exact = rq_f32_of_f16(rq_f16_of_f32(w[i])) == w[i];
    if (exact) {
        rq_f16 *half = (rq_f16 *)w; /* in place: element i is read before anything at or after its 4 bytes is written */
        for (int64_t i = 0; i < n; ++i) {
            rq_f16 h = rq_f16_of_f32(w[i]);
            memcpy(&half[i], &h, sizeof h);
        }
        out.dtype = RQ_F16;
    }
    return add_tensor(o, out);
}

/* A Q8_0 matrix is a symmetric 8-bit grid with groups of 32: packed as one, bit for bit. */
static rq_status add_q8(output *o, const rq_tensor *t, const char *name) {
    rq_status status = RQ_OK;
    int64_t n_out = t->shape[0], n_in = t->shape[1], n_group = n_in / 32;
    uint8_t *codes = NULL;
    float *scale = NULL;
    RQ_TRY(RQ_NEW(codes, n_out * n_in));
    RQ_TRY(RQ_NEW(scale, n_out * n_group));
    for (int64_t b = 0; b < n_out * n_group; ++b) {
        const uint8_t *block = (const uint8_t *)t->data + 34 * b;
        rq_f16 d;
        memcpy(&d, block, sizeof d);
        scale[b] = rq_f32_of_f16(d);
        for (int k = 0; k < 32; ++k)
            codes[32 * b + k] = (uint8_t)(block[2 + k] ^ 0x80u); /* two's complement plus 128 */
    }
    rq_grid_codes q = {n_out, n_in, 32, n_group, 8, RQ_F16, codes, scale, NULL, NULL};
    rq_packed_file *f = &o->files[o->n_files];
    RQ_TRY(rq_grid_pack_file(f, name, &q));
    ++o->n_files;
    for (int i = 0; i < f->n_tensors; ++i) RQ_TRY(add_tensor(o, f->tensor[i]));
    json_object_set_new(o->linears, name, linear_entry(8, 32, true));
done:
    free(codes);
    free(scale);
    return status;
}

/* Everything that is not a quantized matrix. */
static rq_status add_other(output *o, const rq_tensor *t) {
    rq_status status = RQ_OK;
    float *w = NULL;
    size_t len = strlen(t->name);
    bool weight = len > 7 && strcmp(t->name + len - 7, ".weight") == 0;
    if (rq_dtype_block(t->dtype) == 1 && t->n_interleaved_heads == 0) return add_raw(o, t);
    if (t->dtype == RQ_Q8_0 && t->rank == 2 && weight && t->n_interleaved_heads == 0 && o->n_files < 2) {
        char *name = strndup(t->name, len - 7);
        if (!name) return rq_fail(RQ_ERR_NOMEM, "out of memory");
        RQ_TRY(keep(o, name));
        return add_q8(o, t, name);
    }
    int64_t n = rq_tensor_numel(t);
    RQ_TRY(RQ_NEW(w, n));
    status = rq_tensor_f32(t, w);
    if (status != RQ_OK) {
        free(w);
        return status;
    }
    return add_dense(o, t->name, t->rank, t->shape, w, n);
done:
    return status;
}

/* The matrices of one set. */
static rq_status add_part(output *o, int64_t layer, int lead) {
    rq_status status = RQ_OK;
    int which[RQ_N_LINEARS], n = set_of(o->z, layer, lead, which);
    rq_store *s;
    json_t *entries, *log;
    status = part_open(o->z, layer, lead, &s, &entries, &log);
    if (s) o->parts[o->n_parts++] = s;
    if (status != RQ_OK) goto done;
    for (int64_t i = 0; i < rq_store_count(s); ++i) {
        const rq_tensor *t = rq_store_at(s, i);
        o->bits += 8.0 * (double)t->n_bytes;
        RQ_TRY(add_raw(o, t));
    }
    for (int i = 0; i < n; ++i) {
        const rq_matrix_plan *p = &o->z->plan[layer * RQ_N_LINEARS + which[i]];
        const rq_quant_opt *a = &p->opt, *b = &o->z->job->opt;
        const char *line = json_string_value(json_array_get(log, (size_t)i));
        o->weights += (double)(p->n_out * p->n_in);
        o->plain_groups &= a->round == RQ_ROUND_GRID && a->bits == b->bits && a->group == b->group &&
                           a->sym == b->sym && (a->group == 0 || p->n_in % a->group == 0);
        json_object_set(o->linears, p->name, json_object_get(entries, p->name));
        if (line && fprintf(o->log, "%s\n", line) < 0) RQ_FAIL(RQ_ERR_IO, "cannot write the log: %s", strerror(errno));
    }
done:
    json_decref(entries);
    json_decref(log);
    return status;
}

/* Which block matrix a tensor is: layer * RQ_N_LINEARS + which, or -1. is_bias tells weight from bias. */
static int64_t block_matrix(const rq_quantizer *z, const char *name, bool *is_bias) {
    const char *prefix = "model.layers.";
    if (strncmp(name, prefix, strlen(prefix)) != 0) return -1;
    char *end;
    long long layer = strtoll(name + strlen(prefix), &end, 10);
    if (layer < 0 || layer >= z->model->cfg.n_layer || *end != '.') return -1;
    for (int m = 0; m < RQ_N_LINEARS; ++m) {
        size_t n = strlen(rq_linear_suffix[m]);
        if (strncmp(end + 1, rq_linear_suffix[m], n) != 0) continue;
        *is_bias = strcmp(end + 1 + n, ".bias") == 0;
        if (*is_bias || strcmp(end + 1 + n, ".weight") == 0) return layer * RQ_N_LINEARS + m;
    }
    return -1;
}

static bool is_folded_norm(const char *name) {
    const char *dot = strstr(name, "_layernorm.weight");
    return strncmp(name, "model.layers.", 13) == 0 && dot && dot[17] == 0;
}

/* Whether rotation or column factors change a tensor that is not quantized. */
static bool is_changed(const rq_quantizer *z, const rq_tensor *t, int64_t matrix, bool is_bias) {
    if (z->rotation) return matrix >= 0 || is_folded_norm(t->name);
    if (!z->factors) return false;
    const int64_t which = matrix % RQ_N_LINEARS;
    return matrix >= 0 ? !is_bias && which != RQ_O && which != RQ_DOWN : is_folded_norm(t->name);
}

/* In a rotated model: matrices left dense are written as they were used, gains are ones, biases are rotated; factors are in the gains. */
static rq_status add_changed(output *o, const rq_tensor *t, int64_t matrix, bool is_bias) {
    rq_status status = RQ_OK;
    int64_t n = rq_tensor_numel(t);
    float *w = NULL;
    RQ_TRY(RQ_NEW(w, n));
    if (matrix < 0) {
        const int64_t layer = strtoll(t->name + strlen("model.layers."), NULL, 10);
        const bool first = strstr(t->name, "input_layernorm") != NULL;
        rq_block_gains(o->z, layer, first ? w : NULL, first ? NULL : w);
    } else if (is_bias) {
        status = rq_rotated_bias(o->z, matrix / RQ_N_LINEARS, (int)(matrix % RQ_N_LINEARS), w);
    } else {
        status = rq_rotated_matrix(o->z, matrix / RQ_N_LINEARS, (int)(matrix % RQ_N_LINEARS), w);
    }
    if (status != RQ_OK) {
        free(w);
        goto done;
    }
    RQ_TRY(add_dense(o, t->name, t->rank, t->shape, w, n));
done:
    return status;
}

static rq_status collect(output *o) {
    rq_status status = RQ_OK;
    const rq_quantizer *z = o->z;
    const rq_store *s = z->model->store;
    int64_t n_matrices = z->model->cfg.n_layer * RQ_N_LINEARS;
    RQ_TRY(RQ_NEW_ZERO(o->parts, n_matrices));
    RQ_TRY(RQ_NEW_ZERO(o->files, 2));
    for (int64_t i = 0; i < n_matrices; ++i) {
        if (z->plan[i].quantized && z->plan[i].lead == i % RQ_N_LINEARS)
            RQ_TRY(add_part(o, i / RQ_N_LINEARS, (int)(i % RQ_N_LINEARS)));
    }
    for (int64_t i = 0; i < rq_store_count(s); ++i) {
        const rq_tensor *t = rq_store_at(s, i);
        bool is_bias = false;
        int64_t matrix = block_matrix(z, t->name, &is_bias);
        if (matrix >= 0 && !is_bias && z->plan[matrix].quantized) continue;
        if (is_changed(z, t, matrix, is_bias)) {
            RQ_TRY(add_changed(o, t, matrix, is_bias));
        } else {
            RQ_TRY(add_other(o, t));
        }
        if (matrix >= 0 && !is_bias) {
            o->bits += 32.0 * (double)rq_tensor_numel(t);
            o->weights += (double)rq_tensor_numel(t);
        }
    }
done:
    return status;
}

static void output_free(output *o) {
    for (int64_t i = 0; i < o->n_memory; ++i) free(o->memory[i]);
    for (int64_t i = 0; i < o->n_files; ++i) rq_packed_file_free(&o->files[i]);
    for (int64_t i = 0; i < o->n_parts; ++i) rq_store_close(o->parts[i]);
    free(o->memory);
    free(o->files);
    free(o->parts);
    free(o->tensor);
    json_decref(o->linears);
    if (o->log) (void)fclose(o->log); /* after a failure; a whole log was closed and checked before */
}

/* ---- the folder ---- */

static json_t *metadata(const output *o) {
    const rq_quantizer *z = o->z;
    json_t *j = json_pack("{s:i, s:O}", "version", 1, "linears", o->linears);
    if (j && z->rotation) {
        json_object_set_new(j, "rotation",
                            json_pack("{s:s, s:I, s:I}", "kind", rq_rotation_kind(z->rotation), "seed",
                                      (json_int_t)rq_rotation_seed(z->rotation), "size",
                                      (json_int_t)rq_rotation_size(z->rotation)));
    }
    return j;
}

/* Put the finished folder in OUT's place; a folder that --force replaces moves into the work folder and goes with it. */
static rq_status publish(const rq_quantizer *z, const char *dir) {
    rq_status status = RQ_OK;
    const char *out = z->job->out_path;
    char *old = rq_path_join(z->work_dir, "replaced");
    if (!old) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (access(out, F_OK) == 0 && rmdir(out) != 0 && rename(out, old) != 0) {
        RQ_FAIL(RQ_ERR_IO, "cannot replace %s: %s", out, strerror(errno));
    }
    if (rename(dir, out) != 0) RQ_FAIL(RQ_ERR_IO, "cannot put %s in place: %s", out, strerror(errno));
done:
    free(old);
    return status;
}

rq_status rq_write_output(const rq_quantizer *z, rq_quantize_report *report) {
    rq_status status = RQ_OK;
    output o = {.z = z, .linears = json_object(), .plain_groups = true};
    char *dir = rq_path_join(z->work_dir, "out"), *model = NULL, *log_path = NULL, *text = NULL;
    json_t *meta = NULL;
    if (!dir || !o.linears) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        RQ_FAIL(RQ_ERR_IO, "cannot make the folder %s: %s", dir, strerror(errno));
    model = rq_path_join(dir, "model.safetensors");
    log_path = rq_path_join(dir, "quantize_log.jsonl");
    if (!model || !log_path) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (!(o.log = fopen(log_path, "w"))) RQ_FAIL(RQ_ERR_IO, "cannot write %s: %s", log_path, strerror(errno));
    RQ_TRY(collect(&o));
    int failed = fclose(o.log);
    o.log = NULL;
    if (failed) RQ_FAIL(RQ_ERR_IO, "cannot write %s: %s", log_path, strerror(errno));
    meta = metadata(&o);
    text = meta ? json_dumps(meta, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    if (!text) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    const char *pairs[] = {"requite", text};
    RQ_TRY(rq_safetensors_write(model, o.tensor, o.n, pairs, 1));
    report->bpw = o.weights > 0 ? o.bits / o.weights : 0;
    RQ_TRY(rq_write_beside(z, dir, o.plain_groups && o.n_files == 0, report));
    struct stat st;
    if (stat(model, &st) == 0) report->out_bytes = st.st_size;
    RQ_TRY(publish(z, dir));
done:
    output_free(&o);
    json_decref(meta);
    free(dir);
    free(model);
    free(log_path);
    free(text);
    return status;
}
