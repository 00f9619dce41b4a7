/* SPDX-License-Identifier: Apache-2.0 */
/* Packed matrices of a store (container.h). */
#include "container.h"

rq_status rq_container_metadata(const rq_store *s, json_t **meta) {
    const char *text;
    int64_t n;
    json_error_t where;
    *meta = NULL;
    if (!rq_meta_str(s, "requite", &text, &n)) return RQ_OK;
    *meta = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &where);
    if (!*meta) return rq_fail(RQ_ERR_INPUT, "%s: metadata \"requite\": %s", rq_store_path(s), where.text);
    json_int_t version = json_integer_value(json_object_get(*meta, "version"));
    if (version != 1 || !json_is_object(json_object_get(*meta, "linears"))) {
        json_decref(*meta);
        *meta = NULL;
        return rq_fail(RQ_ERR_INPUT, "%s: metadata \"requite\" is of version %lld; this build reads version 1",
                       rq_store_path(s), (long long)version);
    }
    rq_status status = rq_container_check(s, *meta);
    if (status != RQ_OK) {
        json_decref(*meta);
        *meta = NULL;
    }
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
    if (!rq_format_by_name(format, &f))
        return rq_fail(RQ_ERR_UNSUPPORTED, "%s: '%s' has the unknown format '%s'", rq_store_path(s), name, format);
    return rq_format_get(f)->load(p, s, name, entry);
}
