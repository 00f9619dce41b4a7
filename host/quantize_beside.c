/* SPDX-License-Identifier: Apache-2.0 */
/* What lies beside the weights in the output folder: config.json with quantization_config, the tokenizer and report.json (docs/formats.md). */
#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

#include "folder.h"
#include "quantize.h"
#include "tokenizer.h"

/* What other tools look at. Only a file they could decode is called compressed-tensors. */
static json_t *quantization_config(const rq_quantizer *z, bool plain) {
    const rq_quant_opt *q = &z->job->opt;
    bool dynamic = q->act_order && !q->static_groups && rq_comp_get(q->comp)->propagates;
    bool readable =
        plain && !z->rotation && (q->bits == 2 || q->bits == 4 || q->bits == 8) && z->job->n_skip == 0 && !dynamic;
    if (!readable) return json_pack("{s:s, s:i}", "quant_method", "requite", "version", 1);
    json_t *weights = json_pack("{s:i, s:s, s:b, s:s, s:o, s:b}", "num_bits", q->bits, "type", "int", "symmetric",
                                q->sym, "strategy", q->group ? "group" : "channel", "group_size",
                                q->group ? json_integer(q->group) : json_null(), "dynamic", 0);
    return json_pack("{s:s, s:s, s:s, s:n, s:n, s:[s], s:{s:{s:[s], s:o, s:n, s:n, s:s}}}", "quant_method",
                     "compressed-tensors", "format", "pack-quantized", "quantization_status", "compressed",
                     "global_compression_ratio", "kv_cache_scheme", "ignore", "lm_head", "config_groups", "group_0",
                     "targets", "Linear", "weights", weights, "input_activations", "output_activations", "format",
                     "pack-quantized");
}

/* The folder that config.json and the tokenizer are in: the model's own, or that of a lone .safetensors. malloc'ed. */
static char *model_folder(const rq_store *s) {
    const char *path = rq_store_path(s), *slash = strrchr(path, '/');
    struct stat st;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return strdup(path);
    return slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
}

static rq_status write_config(const rq_quantizer *z, const char *dir, bool plain) {
    rq_status status = RQ_OK;
    const rq_store *s = z->model->store;
    char *text = NULL, *from = NULL, *to = rq_path_join(dir, "config.json"), *out = NULL, *folder = model_folder(s);
    json_t *config = NULL;
    int64_t n;
    if (rq_store_is_gguf(s)) {
        RQ_TRY(rq_config_to_json(&z->model->cfg, &text));
    } else {
        from = folder ? rq_path_join(folder, "config.json") : NULL;
        if (!from) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
        RQ_TRY(rq_read_file(from, 16 << 20, &text, &n));
    }
    json_error_t where;
    config = json_loads(text, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(config)) RQ_FAIL(RQ_ERR_INPUT, "config.json: %s", where.text);
    json_object_set_new(config, "quantization_config", quantization_config(z, plain));
    out = json_dumps(config, JSON_INDENT(2));
    if (!out || !to) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(rq_write_file(to, out, (int64_t)strlen(out)));
done:
    json_decref(config);
    free(folder);
    free(text);
    free(from);
    free(to);
    free(out);
    return status;
}

static rq_status copy_file(const char *from_dir, const char *to_dir, const char *name) {
    char *from = rq_path_join(from_dir, name);
    if (!from) return rq_fail(RQ_ERR_NOMEM, "out of memory");
    const bool there = access(from, F_OK) == 0;
    free(from);
    return there ? rq_folder_copy_file(from_dir, to_dir, name) : RQ_OK;
}

static rq_status write_tokenizer(const rq_quantizer *z, const char *dir) {
    rq_status status = RQ_OK;
    const rq_store *s = z->model->store;
    rq_tokenizer *t = NULL;
    char *text = NULL, *to = rq_path_join(dir, "tokenizer.json"), *folder = model_folder(s);
    static const char *const names[] = {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "vocab.json",
        "merges.txt"};
    if (!to || !folder) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    if (!rq_store_is_gguf(s)) {
        for (size_t i = 0; i < sizeof names / sizeof *names; ++i) RQ_TRY(copy_file(folder, dir, names[i]));
        goto done;
    }
    RQ_TRY(rq_tokenizer_open(&t, s));
    RQ_TRY(rq_tokenizer_to_json(t, &text));
    RQ_TRY(rq_write_file(to, text, (int64_t)strlen(text)));
done:
    rq_tokenizer_close(t);
    free(folder);
    free(text);
    free(to);
    return status;
}

static rq_status write_report(const rq_quantizer *z, const char *dir, const rq_quantize_report *r) {
    rq_status status = RQ_OK;
    const rq_quantize_job *job = z->job;
    json_error_t where;
    json_t *options = job->options_json ? json_loads(job->options_json, 0, &where) : NULL;
    char *to = rq_path_join(dir, "report.json");
    json_t *j = json_pack("{s:i, s:s, s:s, s:I, s:I, s:f, s:I, s:I, s:I, s:s, s:o}", "schema_version", 1, "requite",
                          rq_version(), "model", job->model_path, "n_matrices", (json_int_t)r->n_matrices, "n_weights",
                          (json_int_t)r->n_weights, "bpw", r->bpw, "n_samples", (json_int_t)job->samples.n_samples,
                          "seq_len", (json_int_t)job->samples.seq_len, "seed", (json_int_t)job->seed, "rotate",
                          job->rotate ? job->rotate : "none", "options", options ? options : json_object());
    if (j && z->allocation) json_object_set_new(j, "allocation", json_loads(z->allocation, 0, &where));
    char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    if (!to || !text) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(rq_write_file(to, text, (int64_t)strlen(text)));
done:
    json_decref(j);
    free(to);
    free(text);
    return status;
}

rq_status rq_write_beside(const rq_quantizer *z, const char *dir, bool plain, const rq_quantize_report *r) {
    rq_status status = RQ_OK;
    RQ_TRY(write_config(z, dir, plain));
    RQ_TRY(write_tokenizer(z, dir));
    RQ_TRY(write_report(z, dir, r));
done:
    return status;
}
