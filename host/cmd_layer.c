/* SPDX-License-Identifier: Apache-2.0 */
/* requite layer: one matrix from W, H and dXXT in a safetensors file to codes in another. */
#include "backend.h"
#include "cmd.h"

static const cmd_flag flags[] = {
    {"output", 'o', "OUT", "the file to write: Q (F32) and the packed tensors W.*"},
    {"config", 0, "FILE", "options from a JSON object of the same keys; flags win"},
    {"preset", 0, "NAME", "vptq, reference, default or best"},
};
static const cmd_spec spec = {
    "layer CASE.safetensors -o OUT.safetensors [options]",
    "Quantize one matrix. CASE holds W F32 [n_out, n_in]; H F32 or F64 [n_in, n_in], any multiple of the sum of x x^T "
    "over the\n"
    "quantized stream's inputs; and, for gptaq, rescomp and qep, dXXT [n_in, n_in], the same multiple of sum (x_fp - "
    "x) x^T.",
    flags,
    sizeof flags / sizeof *flags,
    true,
    1,
    1,
};

typedef struct layer_case {
    int64_t n_out, n_in;
    float *w;
    double *h, *d;
} layer_case;

static rq_status square_f64(double **out, const rq_store *s, const char *name, int64_t n, bool required) {
    rq_status status = RQ_OK;
    float *rows = NULL;
    const rq_tensor *t = rq_store_find(s, name);
    *out = NULL;
    if (!t && !required) return RQ_OK;
    if (!t) return rq_fail(RQ_ERR_INPUT, "%s has no tensor '%s'", rq_store_path(s), name);
    if (t->rank != 2 || t->shape[0] != n || t->shape[1] != n) {
        return rq_fail(RQ_ERR_INPUT, "%s: tensor '%s' must be [%lld, %lld], the inputs of W squared", rq_store_path(s),
                       name, (long long)n, (long long)n);
    }
    RQ_TRY(RQ_NEW(*out, n * n));
    if (t->dtype == RQ_F64) {
        memcpy(*out, t->data, (size_t)(n * n) * sizeof(double));
    } else {
        RQ_TRY(RQ_NEW(rows, n * n));
        RQ_TRY(rq_tensor_f32(t, rows));
        for (int64_t i = 0; i < n * n; ++i) (*out)[i] = rows[i];
    }
done:
    free(rows);
    return status;
}

static rq_status read_case(layer_case *c, const rq_store *s) {
    rq_status status = RQ_OK;
    const rq_tensor *w = rq_store_find(s, "W");
    if (!w || w->rank != 2 || w->shape[0] < 1 || w->shape[1] < 1) {
        RQ_FAIL(RQ_ERR_INPUT, "%s: a tensor 'W' of two dimensions is wanted", rq_store_path(s));
    }
    c->n_out = w->shape[0];
    c->n_in = w->shape[1];
    RQ_TRY(rq_tensor_check_finite(w));
    RQ_TRY(RQ_NEW(c->w, c->n_out * c->n_in));
    RQ_TRY(rq_tensor_f32(w, c->w));
    RQ_TRY(square_f64(&c->h, s, "H", c->n_in, true));
    RQ_TRY(square_f64(&c->d, s, "dXXT", c->n_in, false));
done:
    return status;
}

static rq_status write_result(const char *path, const layer_case *c, const rq_quant_result *r) {
    rq_status status = RQ_OK;
    rq_packed_file file = {0};
    rq_out_tensor out[sizeof file.tensor / sizeof *file.tensor + 1];
    char *entry = NULL, *text = NULL;
    RQ_TRY(rq_result_pack_file(&file, &entry, "W", r));
    memcpy(out, file.tensor, (size_t)file.n_tensors * sizeof *out);
    out[file.n_tensors] = (rq_out_tensor){"Q", RQ_F32, 2, {c->n_out, c->n_in}, rq_fill_from_memory, r->q};
    if (asprintf(&text, "{\"version\":1,\"linears\":{\"W\":%s}}", entry) < 0) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    const char *pairs[] = {"requite", text};
    RQ_TRY(rq_safetensors_write(path, out, file.n_tensors + 1, pairs, 1));
done:
    rq_packed_file_free(&file);
    free(entry);
    free(text);
    return status;
}

static void report(const cmd_args *a, const rq_quant_opt *o, const rq_prep *p, double sym, double asym, double whw,
                   double bpw, double seconds) {
    if (cmd_has(a, "json")) {
        json_t *j = json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:i, s:b, s:I}", "loss_sym", sym, "loss_asym", asym,
                              "rel_loss", whw > 0 ? sym / whw : 0.0, "bpw", bpw, "damp_used", p->damp_used, "seconds",
                              seconds, "damp_retries", p->n_retries, "diagonal_only", p->diagonal_only, "dead_columns",
                              (json_int_t)p->n_dead);
        json_object_set_new(j, "options", cmd_quant_json(o));
        cmd_print_json(j);
        return;
    }
    printf("%s %s: loss_sym %.6g (%.4g of the output), loss_asym %.6g, %.4f bits per weight, damping %.4g, %.2f s\n",
           rq_comp_get(o->comp)->name, rq_round_name(o->round), sym, whw > 0 ? sym / whw : 0.0, asym, bpw, p->damp_used,
           seconds);
}

int cmd_layer(int argc, char **argv) {
    rq_status status = RQ_OK;
    cmd_args a;
    rq_quant_opt opt;
    rq_store *store = NULL;
    layer_case c = {0};
    rq_prep prep = {0};
    rq_quant_result r = {0};
    rq_packed packed = {0};
    double sym, asym, whw;
    int code = cmd_parse(&a, argc, argv, &spec);
    if (code >= 0) return code;
    const char *out = cmd_value(&a, "output");
    if (!out) {
        fprintf(stderr, "requite: layer needs -o OUT.safetensors\n");
        return EXIT_USAGE;
    }
    RQ_TRY(cmd_quant_options(&opt, &a));
    status = rq_store_open(&store, a.arg[0]);
    if (status != RQ_OK) return cmd_fail_input(status);
    RQ_TRY(read_case(&c, store));
    double started = rq_seconds();
    RQ_TRY(rq_prepare(&prep, c.h, c.d, c.n_in, &opt, "W"));
    RQ_TRY(rq_quantize_matrix(&r, c.w, c.n_out, &prep, &opt, "W"));
    double seconds = rq_seconds() - started;
    RQ_TRY(rq_layer_loss(c.w, r.q, c.n_out, c.n_in, c.h, c.d, &sym, &asym, &whw));
    RQ_TRY(rq_result_pack(&packed, &r));
    RQ_TRY(write_result(out, &c, &r));
    report(&a, &opt, &prep, sym, asym, whw, (double)rq_packed_size_bits(&packed) / (double)(c.n_out * c.n_in), seconds);
done:
    code = cmd_fail(status);
    rq_packed_free(&packed);
    rq_quant_result_free(&r);
    rq_prep_free(&prep);
    free(c.w);
    free(c.h);
    free(c.d);
    rq_store_close(store);
    return code;
}
