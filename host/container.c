/* SPDX-License-Identifier: Apache-2.0 */
/* Packed matrices of a store (container.h). */
#include "container.h"

#include "model_parse.h"
#include "peer.h"

enum { FILE_VERSION = 1 };

/* A checkpoint of another tool is described by its configuration. One that cannot be read describes nothing; who opens the model says so. */
static rq_status describe_peer(const rq_store *s, json_t **meta) {
    rq_status status = RQ_OK;
    char *path = NULL, *text = NULL;
    json_t *config = NULL, *more = NULL;
    int64_t n;
    if (!s->folder || s->is_gguf) return RQ_OK;
    if (!(path = rq_path_join(s->folder, "config.json"))) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (rq_read_file(path, RQ_MAX_JSON_BYTES, &text, &n) != RQ_OK) goto done;
    config = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, NULL);
    for (int i = 0; i < RQ_N_PEERS && json_is_object(config) && !json_object_get(config, "quantization_config"); ++i) {
        const rq_peer_ops *peer = rq_peer_at(i); /* older tools had a file of their own for it */
        if (!peer->method || !peer->config_file) continue;
        free(path);
        free(text);
        text = NULL;
        if (!(path = rq_path_join(s->folder, peer->config_file))) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
        if (rq_read_file(path, RQ_MAX_JSON_BYTES, &text, &n) != RQ_OK) continue;
        json_decref(more);
        more = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, NULL);
        if (!json_is_object(more)) continue;
        json_object_set_new(more, "quant_method", json_string(peer->method));
        json_object_set(config, "quantization_config", more);
    }
    RQ_TRY(rq_peer_metadata(meta, config, s));
done:
    json_decref(config);
    json_decref(more);
    free(path);
    free(text);
    return status;
}

rq_status rq_container_metadata(const rq_store *s, json_t **meta) {
    rq_status status = RQ_OK;
    const char *text, *path = rq_store_path(s);
    int64_t n;
    json_error_t where;
    *meta = NULL;
    if (!rq_meta_str(s, "requite", &text, &n)) return describe_peer(s, meta);
    json_t *m = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &where);
    if (!m) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: metadata \"requite\" is not JSON: %s (at byte %d)", path, where.text,
                where.position);
    }
    const json_t *version = json_object_get(m, "version");
    if (!json_is_integer(version)) RQ_FAIL(RQ_ERR_INPUT, "%s: metadata \"requite\" has no version", path);
    if (json_integer_value(version) != FILE_VERSION) {
        RQ_FAIL(RQ_ERR_UNSUPPORTED, "%s: written with file version %lld; this program reads version %d", path,
                (long long)json_integer_value(version), FILE_VERSION);
    }
    if (!json_is_object(json_object_get(m, "linears")))
        RQ_FAIL(RQ_ERR_INPUT, "%s: metadata \"requite\" has no object \"linears\"", path);
    RQ_TRY(rq_container_check(s, m));
    *meta = m;
    m = NULL;
done:
    json_decref(m);
    return status;
}

rq_status rq_container_check(const rq_store *s, const json_t *meta) {
    rq_status status = RQ_OK;
    json_t *linears = json_object_get(meta, "linears"), *users = json_object(), *entry;
    const char *name;
    json_object_foreach(linears, name, entry) { /* every matrix names the codebook it takes, its own by default */
        const char *book = json_string_value(json_object_get(entry, "book"));
        if (!book) book = name;
        json_object_set_new(users, book, json_integer(json_integer_value(json_object_get(users, book)) + 1));
    }
    json_object_foreach(linears, name, entry) {
        const json_t *says = json_object_get(entry, "book_users");
        const char *book = json_string_value(json_object_get(entry, "book"));
        if (!book) book = name;
        const json_t *owner = json_object_get(linears, book), *other = json_object_get(owner, "book");
        json_int_t n = json_integer_value(json_object_get(users, book)), said = says ? json_integer_value(says) : 1;
        if (!owner || (other && strcmp(json_string_value(other) ? json_string_value(other) : "", book) != 0)) {
            RQ_FAIL(RQ_ERR_INPUT, "%s: '%s' takes the codebook of '%s', which has none of its own", rq_store_path(s),
                    name, book);
        }
        if (said != n) {
            RQ_FAIL(RQ_ERR_INPUT, "%s: '%s' says that %lld matrices use its codebook, but %lld do", rq_store_path(s),
                    name, (long long)said, (long long)n);
        }
    }
done:
    json_decref(users);
    return status;
}

rq_status rq_container_load(rq_packed *p, const rq_store *s, const json_t *meta, const char *name) {
    const json_t *entry = json_object_get(json_object_get(meta, "linears"), name);
    const char *format = json_string_value(json_object_get(entry, "format"));
    rq_format f;
    *p = (rq_packed){0};
    if (!entry || !format)
        return rq_fail(RQ_ERR_INPUT, "%s: the metadata does not describe '%s'", rq_store_path(s), name);
    if (rq_format_by_name(format, &f)) return rq_format_get(f)->load(p, s, name, entry);
    const rq_peer_ops *peer = rq_peer_by_name(format);
    if (peer) return peer->load(p, s, name, entry);
    return rq_fail(RQ_ERR_UNSUPPORTED, "%s: '%s' is packed in an unknown format, '%s'", rq_store_path(s), name, format);
}

bool rq_container_owns(const json_t *meta, const char *tensor, const char **name, char buffer[RQ_CONTAINER_NAME]) {
    const json_t *linears = json_object_get(meta, "linears");
    for (const char *dot = strchr(tensor, '.'); dot; dot = strchr(dot + 1, '.')) {
        const size_t n = (size_t)(dot - tensor);
        if (n >= RQ_CONTAINER_NAME) return false;
        memcpy(buffer, tensor, n);
        buffer[n] = '\0';
        const json_t *entry = json_object_get(linears, buffer);
        const char *format = json_string_value(json_object_get(entry, "format"));
        if (!format) continue;
        *name = buffer;
        const rq_peer_ops *peer = rq_peer_by_name(format);
        if (!peer) return strncmp(dot, ".weight_", 8) == 0;
        for (const char *const *suffix = peer->suffixes; *suffix; ++suffix) {
            if (strcmp(dot, *suffix) == 0) return true;
        }
        return false;
    }
    return false;
}
