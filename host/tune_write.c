/* SPDX-License-Identifier: Apache-2.0 */
/* The folder of a tuned model: that of the model it came from, with other scales, norms and codebooks. It is put together as
 * OUT.tuning and renamed when complete. */
#include <errno.h>
#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

#include "folder.h"
#include "tune.h"

enum { NAME_BYTES = 128 };

/* ---- tensors ---- */

typedef struct change {
    const rq_tensor *t;
    rq_dtype dtype;
    const void *data;
} change;

typedef struct changes {
    change *at;
    int64_t n;
} changes;

static rq_status change_tensor(changes *c, const rq_model *m, const char *name, rq_dtype dtype, const void *now,
                               int64_t n) {
    const rq_tensor *t = rq_store_find(m->store, name);
    if (!t || t->dtype != dtype || rq_tensor_numel(t) != n) {
        return rq_fail(RQ_ERR_ARG, "%s: %s is not the tensor that the model was opened with", rq_store_path(m->store),
                       name);
    }
    c->at[c->n++] = (change){t, dtype, now};
    return RQ_OK;
}

static rq_status change_w4a8(changes *c, const rq_model *m, const rq_linear *l) {
    rq_status status = RQ_OK;
    char name[NAME_BYTES];
    const rq_w4a8 *w = &l->packed->u.w4a8;
    snprintf(name, sizeof name, "%s.weight_scale", l->name);
    RQ_TRY(change_tensor(c, m, name, RQ_F32, w->scale, w->n_out));
    if (!w->in_scale) return RQ_OK;
    snprintf(name, sizeof name, "%s.weight_in_scale", l->name);
    RQ_TRY(change_tensor(c, m, name, RQ_F32, w->in_scale, w->n_in));
done:
    return status;
}

static rq_status change_scales(changes *c, const rq_model *m, const rq_linear *l) {
    char name[NAME_BYTES];
    const rq_packed *p = l->packed;
    if (!p) return RQ_OK;
    if (p->format == RQ_FORMAT_W4A8) return change_w4a8(c, m, l);
    const rq_grid *g = p->format == RQ_FORMAT_GRID ? &p->u.grid : NULL;
    const void *now = g ? (g->scale_f16 ? (const void *)g->scale_f16 : (const void *)g->scale_f32)
                      : p->format == RQ_FORMAT_SSVQ ? p->u.ssvq.scale
                                                    : p->u.vq.scale;
    int64_t n = p->n_out * (g ? g->n_group : p->format == RQ_FORMAT_SSVQ ? p->u.ssvq.n_group : p->u.vq.n_group);
    if (!now) return RQ_OK; /* vq with scales of columns: they stay */
    snprintf(name, sizeof name, "%s.weight_scale", l->name);
    return change_tensor(c, m, name, g && !g->scale_f16 ? RQ_F32 : RQ_F16, now, n);
}

/* Codebooks that are stored under this matrix' name. */
static rq_status change_books(changes *c, const rq_model *m, const rq_linear *l) {
    static const char *const suffix[2] = {"weight_book", "weight_book2"};
    rq_status status = RQ_OK;
    char name[NAME_BYTES];
    const rq_packed *p = l->packed;
    bool ssvq = p && p->format == RQ_FORMAT_SSVQ;
    if (!ssvq && !(p && p->format == RQ_FORMAT_VQ)) return RQ_OK;
    const rq_ssvq *s = &p->u.ssvq;
    const rq_vq *v = &p->u.vq;
    for (int stage = 0; stage < (!ssvq && v->n_stage > 1 ? 2 : 1); ++stage) {
        snprintf(name, sizeof name, "%s.%s", l->name, suffix[stage]);
        if (!rq_store_find(m->store, name)) continue; /* another one's codebook */
        if (ssvq) {
            const void *data = s->book_u8 ? (const void *)s->book_u8 : (const void *)s->book_f16;
            RQ_TRY(change_tensor(c, m, name, s->book_u8 ? RQ_U8 : RQ_F16, data, s->n_book * s->n_codes * s->vec_len));
        } else {
            RQ_TRY(change_tensor(c, m, name, RQ_F16, v->book[stage], v->n_book * v->n_codes[stage] * v->vec_len));
        }
        if (!ssvq || !s->book_u8) continue;
        snprintf(name, sizeof name, "%s.weight_book_scale", l->name);
        RQ_TRY(change_tensor(c, m, name, RQ_F32, s->book_scale, s->n_book));
    }
done:
    return status;
}

/* Norms become F32 unless their values are still those of the file. */
static rq_status change_norm(changes *c, const rq_model *m, const char *name, const float *gain) {
    rq_status status = RQ_OK;
    int64_t d = m->cfg.d_model;
    float *old = NULL;
    const rq_tensor *t = rq_store_find(m->store, name);
    if (!t || rq_tensor_numel(t) != d) {
        RQ_FAIL(RQ_ERR_ARG, "%s: %s is not the tensor that the model was opened with", rq_store_path(m->store), name);
    }
    RQ_TRY(RQ_NEW(old, d));
    RQ_TRY(rq_tensor_f32(t, old));
    if (memcmp(old, gain, (size_t)d * sizeof *old) != 0) c->at[c->n++] = (change){t, RQ_F32, gain};
done:
    free(old);
    return status;
}

static rq_status find_changes(changes *c, const rq_model *m) {
    rq_status status = RQ_OK;
    char name[NAME_BYTES];
    RQ_TRY(RQ_NEW(c->at, m->cfg.n_layer * (4 * RQ_N_LINEARS + 2) + 1));
    for (int64_t i = 0; i < m->cfg.n_layer; ++i) {
        for (int k = 0; k < RQ_N_LINEARS; ++k) {
            RQ_TRY(change_scales(c, m, &m->block[i].lin[k]));
            RQ_TRY(change_books(c, m, &m->block[i].lin[k]));
        }
        snprintf(name, sizeof name, "model.layers.%lld.input_layernorm.weight", (long long)i);
        RQ_TRY(change_norm(c, m, name, m->block[i].norm1));
        snprintf(name, sizeof name, "model.layers.%lld.post_attention_layernorm.weight", (long long)i);
        RQ_TRY(change_norm(c, m, name, m->block[i].norm2));
    }
    RQ_TRY(change_norm(c, m, "model.norm.weight", m->norm_f));
done:
    return status;
}

static int by_address(const void *a, const void *b) {
    const rq_tensor *x = *(const rq_tensor *const *)a, *y = *(const rq_tensor *const *)b;
    return ((uintptr_t)x->data > (uintptr_t)y->data) - ((uintptr_t)x->data < (uintptr_t)y->data);
}

/* A NUL-terminated copy of a metadata value, or NULL with RQ_OK when there is none. */
static rq_status meta_copy(char **out, const rq_store *s, const char *key) {
    const char *text;
    int64_t n;
    *out = NULL;
    if (!rq_meta_str(s, key, &text, &n)) return RQ_OK;
    *out = strndup(text, (size_t)n);
    return *out ? RQ_OK : rq_fail(RQ_ERR_NOMEM, "out of memory");
}

static rq_status write_weights(const rq_model *m, const char *path) {
    rq_status status = RQ_OK;
    int64_t n = rq_store_count(m->store);
    changes c = {0};
    const rq_tensor **order = NULL;
    rq_out_tensor *out = NULL;
    static const char *const keys[] = {"requite", "format"};
    char *value[2] = {NULL, NULL};
    const char *pairs[4];
    int n_pairs = 0;
    RQ_TRY(find_changes(&c, m));
    RQ_TRY(RQ_NEW(order, n));
    RQ_TRY(RQ_NEW_ZERO(out, n));
    for (int64_t i = 0; i < n; ++i) order[i] = rq_store_at(m->store, i);
    qsort(order, (size_t)n, sizeof *order, by_address); /* as they lie in the file */
    for (int64_t i = 0; i < n; ++i) {
        const rq_tensor *t = order[i];
        out[i] = (rq_out_tensor){.name = t->name, .dtype = t->dtype, .rank = t->rank, .fill = rq_fill_from_memory};
        memcpy(out[i].shape, t->shape, sizeof out[i].shape);
        const void *data = t->data;
        for (int64_t k = 0; k < c.n; ++k) {
            if (c.at[k].t != t) continue;
            data = c.at[k].data;
            out[i].dtype = c.at[k].dtype;
        }
        out[i].arg = (void *)(uintptr_t)data;
    }
    for (int i = 0; i < 2; ++i) {
        RQ_TRY(meta_copy(&value[i], m->store, keys[i]));
        if (!value[i]) continue;
        pairs[2 * n_pairs] = keys[i];
        pairs[2 * n_pairs++ + 1] = value[i];
    }
    RQ_TRY(rq_safetensors_write(path, out, n, pairs, n_pairs));
done:
    free(value[0]);
    free(value[1]);
    free(c.at);
    free(order);
    free(out);
    return status;
}

/* ---- files ---- */

static bool is_written_anew(const char *name) {
    return strcmp(name, "model.safetensors") == 0 || strcmp(name, "report.json") == 0;
}

/* The report of the model, or a new one, with "tune". */
static rq_status write_report(const char *from_dir, const char *to_dir, const char *tune_json) {
    rq_status status = RQ_OK;
    char *from = rq_path_join(from_dir, "report.json"), *to = rq_path_join(to_dir, "report.json"), *text = NULL;
    json_t *report = NULL;
    json_error_t where;
    int64_t n;
    json_t *tune = json_loads(tune_json, JSON_REJECT_DUPLICATES, &where);
    if (!from || !to) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (!json_is_object(tune)) RQ_FAIL(RQ_ERR_ARG, "the description of the tuning is not a JSON object");
    if (access(from, F_OK) == 0) {
        RQ_TRY(rq_read_file(from, 16 << 20, &text, &n));
        report = json_loads(text, JSON_REJECT_DUPLICATES, &where);
        if (!json_is_object(report)) RQ_FAIL(RQ_ERR_INPUT, "%s is not a JSON object: %s", from, where.text);
        free(text);
        text = NULL;
    } else {
        report = json_object();
    }
    json_object_set(report, "tune", tune);
    text = json_dumps(report, JSON_INDENT(2));
    if (!text) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(rq_write_file(to, text, (int64_t)strlen(text)));
done:
    json_decref(report);
    json_decref(tune);
    free(from);
    free(to);
    free(text);
    return status;
}

rq_status rq_tune_check_out(const rq_model *m, const char *out) {
    rq_status status = RQ_OK;
    const char *from = rq_store_path(m->store);
    char *weights = rq_path_join(from, "model.safetensors"), *partial = NULL;
    if (!weights || asprintf(&partial, "%s.tuning", out) < 0) {
        partial = NULL; /* asprintf leaves it undefined */
        RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    }
    if (!rq_folder_is(from) || access(weights, F_OK) != 0) {
        RQ_FAIL(RQ_ERR_ARG, "%s is not a folder with a model.safetensors", from);
    }
    if (rq_folder_is_used(out, NULL)) RQ_FAIL(RQ_ERR_ARG, "%s exists and is not empty", out);
    if (access(partial, F_OK) == 0) RQ_FAIL(RQ_ERR_ARG, "%s is in the way: remove it", partial);
done:
    free(weights);
    free(partial);
    return status;
}

rq_status rq_tune_write(const rq_model *m, const char *out, const char *tune_json) {
    rq_status status = RQ_OK;
    char *dir = NULL, *weights = NULL;
    bool made = false;
    RQ_TRY(rq_tune_check_out(m, out));
    if (asprintf(&dir, "%s.tuning", out) < 0) {
        dir = NULL;
        RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    }
    if (mkdir(dir, 0777) != 0) RQ_FAIL(RQ_ERR_IO, "cannot make the folder %s: %s", dir, strerror(errno));
    made = true;
    weights = rq_path_join(dir, "model.safetensors");
    if (!weights) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(write_weights(m, weights));
    RQ_TRY(rq_folder_copy(rq_store_path(m->store), dir, is_written_anew));
    RQ_TRY(write_report(rq_store_path(m->store), dir, tune_json));
    if (access(out, F_OK) == 0 && rmdir(out) != 0) RQ_FAIL(RQ_ERR_IO, "cannot replace %s: %s", out, strerror(errno));
    if (rename(dir, out) != 0) RQ_FAIL(RQ_ERR_IO, "cannot put %s in place: %s", out, strerror(errno));
    made = false;
done:
    if (made) rq_folder_remove(dir);
    free(dir);
    free(weights);
    return status;
}
