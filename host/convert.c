/* SPDX-License-Identifier: Apache-2.0 */
/* Conversion of a checkpoint (convert.h). Each matrix becomes a small file of OUT.converting; then all of them and the dense tensors are
 * streamed into one model.safetensors, beside them config.json with the right quantization_config and the other files of the folder. */
#include "convert.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "convert_fold.h"
#include "folder.h"
#include "model_parse.h"
#include "pack_common.h"

typedef struct conversion {
    const rq_convert_job *job;
    const rq_peer_ops *peer; /* NULL: our own layout */
    rq_store *in;
    json_t *meta;         /* of the input */
    json_t *settings;     /* by matrix: what the peer's config is made of, or our entries */
    json_t *dense;        /* names of linear layers that are not packed */
    char *folder, *parts; /* OUT.converting and a folder in it */
    rq_store **part;
    int64_t n_part;
    rq_out_tensor *tensor;
    int64_t n_tensor, n_matrices;
    rq_fold fold;  /* the rotation's, where there is one to fold */
    void **memory; /* dense copies of matrices that the target has no packed form for */
    int64_t n_memory;
} conversion;

rq_status rq_convert_check_target(const char *to) {
    char list[256] = "requite";
    if (strcmp(to, "requite") == 0) return RQ_OK;
    const rq_peer_ops *peer = rq_peer_by_name(to);
    if (peer && peer->pack) return RQ_OK;
    for (int i = 0; i < RQ_N_PEERS; ++i) {
        const size_t n = strlen(list);
        if (rq_peer_at(i)->pack) snprintf(list + n, sizeof list - n, ", %s", rq_peer_at(i)->name);
    }
    return rq_fail(RQ_ERR_ARG, "--to %s: it is one of %s", to, list);
}

/* ---- matrices ---- */

/* What no Linear layer of other tools is: there the values themselves are written. */
static bool is_vocabulary(const char *name) {
    return strcmp(name, "model.embed_tokens") == 0 || strcmp(name, "lm_head") == 0;
}

static rq_status add_tensor(conversion *c, rq_out_tensor t) {
    c->tensor[c->n_tensor++] = t;
    return RQ_OK;
}

/* A packed embedding or head as fp16 where that is exact, else as fp32. */
static rq_status add_unpacked(conversion *c, const char *name, const rq_packed *p) {
    rq_status status = RQ_OK;
    float *w = NULL;
    char *full = NULL;
    const int64_t n = p->n_out * p->n_in;
    bool exact = true;
    RQ_TRY(RQ_NEW(w, n));
    c->memory[c->n_memory++] = w;
    for (int64_t i = 0; i < p->n_out; ++i) rq_unpack_row(p, i, w + i * p->n_in);
    for (int64_t i = 0; i < n && exact; ++i) exact = rq_f32_of_f16(rq_f16_of_f32(w[i])) == w[i];
    for (int64_t i = 0; i < n && exact; ++i) { /* in place: what is read lies at or behind what is written */
        const rq_f16 h = rq_f16_of_f32(w[i]);
        memcpy((rq_f16 *)w + i, &h, sizeof h);
    }
    if (asprintf(&full, "%s.weight", name) < 0) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    c->memory[c->n_memory++] = full;
    RQ_TRY(add_tensor(c, (rq_out_tensor){.name = full,
                                         .dtype = exact ? RQ_F16 : RQ_F32,
                                         .rank = 2,
                                         .shape = {p->n_out, p->n_in},
                                         .fill = rq_fill_from_memory,
                                         .arg = w}));
done:
    return status;
}

/* The target's tensors of a matrix as a file of their own, opened again: memory holds one matrix at a time. */
static rq_status add_part(conversion *c, const char *name, const rq_packed *p) {
    rq_status status = RQ_OK;
    rq_packed_file f = {0};
    json_t *settings = NULL;
    char *entry = NULL, *path = NULL;
    if (c->peer) {
        RQ_TRY(c->peer->pack(&f, &settings, name, p));
    } else {
        RQ_TRY(rq_packed_file_of(&f, &entry, name, p));
        settings = json_loads(entry, 0, NULL);
    }
    if (settings && json_object_get(settings, "bias"))
        json_object_set_new(settings, "bias", json_boolean(rq_pack_has(c->in, name, ".bias")));
    if (!settings || json_object_set(c->settings, name, settings) != 0) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (asprintf(&path, "%s/%06lld.safetensors", c->parts, (long long)c->n_part) < 0) {
        path = NULL;
        RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    }
    RQ_TRY(rq_safetensors_write(path, f.tensor, f.n_tensors, NULL, 0));
    RQ_TRY(rq_store_open(&c->part[c->n_part], path));
    ++c->n_part;
    ++c->n_matrices;
done:
    rq_packed_file_free(&f);
    json_decref(settings);
    free(entry);
    free(path);
    return status;
}

static rq_status convert_matrices(conversion *c) {
    rq_status status = RQ_OK;
    json_t *linears = json_object_get(c->meta, "linears"), *entry;
    const char *name;
    size_t done = 0;
    const size_t n = json_object_size(linears);
    rq_packed p = {0};
    json_object_foreach(linears, name, entry) {
        if (c->job->progress && c->job->progress(c->job->user, (double)done / (double)n, name))
            RQ_FAIL(RQ_ERR_CANCELLED, "interrupted: nothing was written");
        RQ_TRY(rq_container_load(&p, c->in, c->meta, name));
        if (c->peer && is_vocabulary(name)) {
            if (!c->fold.rotation) RQ_TRY(add_unpacked(c, name, &p));
        } else {
            RQ_TRY(add_part(c, name, &p));
        }
        rq_packed_free(&p);
        ++done;
    }
done:
    rq_packed_free(&p);
    return status;
}

/* ---- the other tensors ---- */

static rq_status add_stored(conversion *c, const rq_tensor *t) { return add_tensor(c, rq_out_stored(t)); }

/* Matrices are passed on as linear layers unless they are the embedding. */
static rq_status add_others(conversion *c) {
    rq_status status = RQ_OK;
    char buffer[RQ_CONTAINER_NAME], name[RQ_PEER_NAME];
    const char *owner;
    for (int64_t i = 0; i < rq_store_count(c->in); ++i) {
        const rq_tensor *t = rq_store_at(c->in, i);
        if (rq_container_owns(c->meta, t->name, &owner, buffer)) continue;
        if (c->fold.rotation && rq_fold_replaces(t->name)) continue;
        RQ_TRY(add_stored(c, t));
        if (t->rank == 2 && rq_peer_module(name, t->name, ".weight") && !is_vocabulary(name))
            json_array_append_new(c->dense, json_string(name));
    }
    for (int i = 0; c->fold.rotation && i < 3; ++i) RQ_TRY(add_tensor(c, c->fold.tensor[i]));
    for (int64_t i = 0; i < c->n_part; ++i) {
        for (int64_t k = 0; k < rq_store_count(c->part[i]); ++k) RQ_TRY(add_stored(c, rq_store_at(c->part[i], k)));
    }
done:
    return status;
}

/* ---- files ---- */

static rq_status write_json(const char *dir, const char *name, const json_t *value) {
    rq_status status = RQ_OK;
    char *path = rq_path_join(dir, name), *text = json_dumps(value, JSON_INDENT(2));
    if (!path || !text) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(rq_write_file(path, text, (int64_t)strlen(text)));
done:
    free(path);
    free(text);
    return status;
}

static rq_status write_configs(const conversion *c) {
    rq_status status = RQ_OK;
    char *path = rq_path_join(c->in->folder, "config.json"), *text = NULL;
    json_t *config = NULL, *quant = NULL;
    json_error_t where;
    int64_t n;
    if (!path) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(rq_read_file(path, RQ_MAX_JSON_BYTES, &text, &n));
    config = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(config)) RQ_FAIL(RQ_ERR_INPUT, "%s: is not a JSON object: %s", path, where.text);
    if (c->peer) {
        RQ_TRY(c->peer->config(&quant, c->settings, c->dense));
    } else if (!(quant = json_pack("{s:s, s:i}", "quant_method", "requite", "version", 1))) {
        RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    }
    json_object_set(config, "quantization_config", quant);
    if (c->fold.rotation) json_object_set_new(config, "tie_word_embeddings", json_false());
    RQ_TRY(write_json(c->folder, "config.json", config));
    if (c->peer && c->peer->config_file) RQ_TRY(write_json(c->folder, c->peer->config_file, quant));
done:
    json_decref(config);
    json_decref(quant);
    free(path);
    free(text);
    return status;
}

/* Weights and what describes them; .bin and .pt are the weights of other programs. */
static bool is_written_anew(const char *name) {
    static const char *const endings[] = {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt",
                                          ".gguf"};
    static const char *const names[] = {"config.json", "quantize_config.json", "quant_config.json"};
    const size_t n = strlen(name);
    for (size_t i = 0; i < sizeof endings / sizeof *endings; ++i) {
        const size_t m = strlen(endings[i]);
        if (n >= m && strcmp(name + n - m, endings[i]) == 0) return true;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i) {
        if (strcmp(name, names[i]) == 0) return true;
    }
    return name[0] == '.';
}

static rq_status write_weights(const conversion *c, int64_t *n_bytes) {
    rq_status status = RQ_OK;
    struct stat st;
    char *path = rq_path_join(c->folder, "model.safetensors"), *text = NULL;
    json_t *meta = NULL;
    if (!path) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (!c->peer) {
        meta = json_pack("{s:i, s:O}", "version", 1, "linears", c->settings);
        text = meta ? json_dumps(meta, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
        if (!text) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    }
    const char *pairs[] = {"requite", text};
    RQ_TRY(rq_safetensors_write(path, c->tensor, c->n_tensor, pairs, text ? 1 : 0));
    *n_bytes = stat(path, &st) == 0 ? st.st_size : 0;
done:
    json_decref(meta);
    free(path);
    free(text);
    return status;
}

/* ---- the whole ---- */

static bool is_rotated(const conversion *c) {
    const json_t *rotation = json_object_get(c->meta, "rotation");
    return c->peer && rotation && !json_is_null(rotation);
}

static rq_status check_input(const conversion *c) {
    const char *name, *path = rq_store_path(c->in), *format;
    json_t *linears = json_object_get(c->meta, "linears"), *entry, *rotation = json_object_get(c->meta, "rotation");
    if (rq_store_is_gguf(c->in) || json_object_size(linears) == 0) {
        return rq_fail(RQ_ERR_INPUT, "%s: holds no packed matrices to convert (`requite quantize` makes some)", path);
    }
    if (is_rotated(c) && !c->job->fold) {
        return rq_fail(
            RQ_ERR_UNSUPPORTED,
            "%s: its residual stream is rotated (%s of %lld) between the embedding and the head, which %s has "
            "no place for; --fold f16 puts that into embedding and head, or quantize with --rotate none",
            path, json_string_value(json_object_get(rotation, "kind")),
            (long long)json_integer_value(json_object_get(rotation, "size")), c->job->to);
    }
    json_object_foreach(linears, name, entry) {
        format = json_string_value(json_object_get(entry, "format"));
        if (!format || rq_peer_by_name(format)) continue;
        if (!c->peer) return rq_fail(RQ_ERR_ARG, "%s: is in our own layout already", path);
    }
    return RQ_OK;
}

static rq_status open_all(conversion *c) {
    rq_status status = RQ_OK;
    RQ_TRY(rq_convert_check_target(c->job->to));
    c->peer = rq_peer_by_name(c->job->to);
    RQ_TRY(rq_store_open(&c->in, c->job->in_path));
    RQ_TRY(rq_container_metadata(c->in, &c->meta));
    RQ_TRY(check_input(c));
    if (is_rotated(c)) RQ_TRY(rq_fold_new(&c->fold, c->in, c->meta, strcmp(c->job->fold, "f16") ? RQ_F32 : RQ_F16));
    if (rq_folder_is_used(c->job->out_path, NULL)) RQ_FAIL(RQ_ERR_ARG, "%s exists and is not empty", c->job->out_path);
    const int64_t n = (int64_t)json_object_size(json_object_get(c->meta, "linears"));
    c->settings = json_object();
    c->dense = json_pack("[s]", "lm_head"); /* a layer of theirs even where it is the embedding */
    if (!c->settings || !c->dense) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(RQ_NEW_ZERO(c->part, n));
    RQ_TRY(RQ_NEW_ZERO(c->memory, 2 * n));
    RQ_TRY(RQ_NEW(c->tensor, rq_store_count(c->in) + 12 * n + 3));
done:
    return status;
}

/* The folder is ours only when this made it. */
static rq_status make_folders(conversion *c) {
    rq_status status = RQ_OK;
    char *folder = NULL;
    if (asprintf(&folder, "%s.converting", c->job->out_path) < 0) return rq_fail(RQ_ERR_NOMEM, "out of memory");
    if (mkdir(folder, 0777) != 0) {
        RQ_FAIL(errno == EEXIST ? RQ_ERR_ARG : RQ_ERR_IO, "cannot make the folder %s: %s", folder, strerror(errno));
    }
    c->folder = folder;
    folder = NULL;
    if (!(c->parts = rq_path_join(c->folder, "parts"))) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (mkdir(c->parts, 0777) != 0) RQ_FAIL(RQ_ERR_IO, "cannot make the folder %s: %s", c->parts, strerror(errno));
done:
    free(folder);
    return status;
}

static void close_all(conversion *c) {
    for (int64_t i = 0; i < c->n_part; ++i) rq_store_close(c->part[i]);
    for (int64_t i = 0; i < c->n_memory; ++i) free(c->memory[i]);
    rq_fold_free(&c->fold);
    if (c->folder) rq_folder_remove(c->folder);
    free(c->part);
    free(c->memory);
    free(c->tensor);
    free(c->folder);
    free(c->parts);
    json_decref(c->settings);
    json_decref(c->dense);
    json_decref(c->meta);
    rq_store_close(c->in);
}

rq_status rq_convert(const rq_convert_job *job, rq_convert_report *report) {
    rq_status status = RQ_OK;
    conversion c = {.job = job};
    const double start = rq_seconds();
    *report = (rq_convert_report){0};
    RQ_TRY(open_all(&c));
    RQ_TRY(make_folders(&c));
    RQ_TRY(convert_matrices(&c));
    RQ_TRY(add_others(&c));
    RQ_TRY(write_weights(&c, &report->out_bytes));
    RQ_TRY(write_configs(&c));
    RQ_TRY(rq_folder_copy(c.in->folder, c.folder, is_written_anew));
    rq_folder_remove(c.parts);
    if (access(job->out_path, F_OK) == 0 && rmdir(job->out_path) != 0)
        RQ_FAIL(RQ_ERR_IO, "cannot replace %s: %s", job->out_path, strerror(errno));
    if (rename(c.folder, job->out_path) != 0)
        RQ_FAIL(RQ_ERR_IO, "cannot put %s in place: %s", job->out_path, strerror(errno));
    free(c.folder);
    c.folder = NULL;
    report->n_matrices = c.n_matrices;
    report->seconds = rq_seconds() - start;
done:
    close_all(&c);
    return status;
}
