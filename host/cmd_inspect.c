/* SPDX-License-Identifier: Apache-2.0 */
/* requite inspect: what is in a model or any safetensors or GGUF file. */
#include "cmd.h"
#include "container.h"
#include "llama.h"

static const cmd_spec spec = {
    "inspect MODEL [options]",
    "Tensors, dtypes, shapes and sizes; for packed matrices the bits per weight with all side data, how the codes are "
    "used, codes\n"
    "that no weight has, and the range of the scales. MODEL: a folder, a .safetensors or a .gguf.",
    NULL,
    0,
    false,
    1,
    1,
};

static json_t *packed_entry(const char *name, const rq_packed *p) {
    double bpw = (double)rq_packed_size_bits(p) / (double)(p->n_out * p->n_in);
    json_t *entry = json_pack("{s:s, s:s, s:[I,I], s:f}", "name", name, "format", rq_format_get(p->format)->name,
                              "shape", (json_int_t)p->n_out, (json_int_t)p->n_in, "bpw", bpw);
    rq_format_get(p->format)->inspect(p, entry);
    return entry;
}

static json_t *dense_entry(const rq_tensor *t) {
    json_t *shape = json_array();
    for (int i = 0; i < t->rank; ++i) json_array_append_new(shape, json_integer(t->shape[i]));
    int64_t n = rq_tensor_numel(t);
    return json_pack("{s:s, s:s, s:o, s:I, s:f}", "name", t->name, "dtype", rq_dtype_name(t->dtype), "shape", shape,
                     "bytes", (json_int_t)t->n_bytes, "bpw", n ? 8.0 * (double)t->n_bytes / (double)n : 0.0);
}

static rq_status collect(json_t *tensors, const rq_store *s, const json_t *meta) {
    rq_status status = RQ_OK;
    const json_t *linears = json_object_get(meta, "linears");
    const char *name;
    char buffer[RQ_CONTAINER_NAME];
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)linears, name, value) {
        rq_packed p;
        RQ_TRY(rq_container_load(&p, s, meta, name));
        json_t *about = packed_entry(name, &p);
        json_object_set(about, "stored_as", json_object_get(value, "format"));
        json_array_append_new(tensors, about);
        rq_packed_free(&p);
    }
    for (int64_t i = 0; i < rq_store_count(s); ++i) {
        const rq_tensor *t = rq_store_at(s, i);
        /* Tensors of packed matrices are shown as one line each. */
        if (!rq_container_owns(meta, t->name, &name, buffer)) json_array_append_new(tensors, dense_entry(t));
    }
done:
    return status;
}

static void print_table(const json_t *tensors) {
    size_t i;
    json_t *t;
    printf("%-44s %-8s %-14s %8s  %s\n", "tensor", "kind", "shape", "bpw", "codes and scales");
    json_array_foreach((json_t *)(uintptr_t)tensors, i, t) {
        char shape[64] = "";
        size_t k, used = 0;
        json_t *v;
        json_array_foreach(json_object_get(t, "shape"), k, v) {
            used += (size_t)snprintf(shape + used, sizeof shape - used, "%s%lld", k ? "x" : "",
                                     (long long)json_integer_value(v));
            if (used >= sizeof shape) break;
        }
        const char *format = json_string_value(json_object_get(t, "format"));
        printf("%-44s %-8s %-14s %8.4f", json_string_value(json_object_get(t, "name")),
               format ? format : json_string_value(json_object_get(t, "dtype")), shape,
               json_real_value(json_object_get(t, "bpw")));
        if (format) printf("  %s", json_string_value(json_object_get(t, "summary")));
        putchar('\n');
    }
}

int cmd_inspect(int argc, char **argv) {
    rq_status status = RQ_OK;
    cmd_args a;
    rq_store *s = NULL;
    rq_model *m = NULL;
    json_t *meta = NULL, *tensors = NULL;
    int code = cmd_parse(&a, argc, argv, &spec);
    if (code >= 0) return code;
    tensors = json_array();
    status = rq_store_open(&s, a.arg[0]);
    if (status != RQ_OK) {
        json_decref(tensors);
        return cmd_fail_input(status);
    }
    RQ_TRY(rq_container_metadata(s, &meta));
    RQ_TRY(collect(tensors, s, meta));
    bool is_model = rq_model_open(&m, a.arg[0]) == RQ_OK; /* a lone tensor file is fine too */
    if (cmd_has(&a, "json")) {
        json_t *j = json_pack("{s:s, s:I, s:O}", "path", a.arg[0], "file_bytes", (json_int_t)rq_store_file_bytes(s),
                              "tensors", tensors);
        if (is_model) {
            json_object_set_new(j, "arch", json_string(m->cfg.arch));
            json_object_set_new(j, "bpw", json_real(m->bpw));
            json_object_set_new(j, "rotated", json_boolean(m->rotation != NULL));
            json_object_set_new(j, "n_layer", json_integer(m->cfg.n_layer));
            json_object_set_new(j, "d_model", json_integer(m->cfg.d_model));
        }
        cmd_print_json(j);
    } else {
        print_table(tensors);
        printf("%s: %.1f MiB", a.arg[0], (double)rq_store_file_bytes(s) / 1048576);
        if (is_model) {
            printf(", %s with %lld blocks of width %lld, %.4f bits per weight in the block matrices%s", m->cfg.arch,
                   (long long)m->cfg.n_layer, (long long)m->cfg.d_model, m->bpw,
                   m->rotation ? ", rotated residual stream" : "");
        }
        putchar('\n');
    }
done:
    code = cmd_fail(status);
    json_decref(meta);
    json_decref(tensors);
    rq_model_close(m);
    rq_store_close(s);
    return code;
}
