/* SPDX-License-Identifier: Apache-2.0 */
/* requite verify: decode everything and check it; with a reference, the signal-to-noise ratio of every matrix. */
#include <math.h>

#include "cmd.h"
#include "llama.h"

static const cmd_flag flags[] = {
    {"ref", 0, "MODEL", "the original: report the SQNR of every matrix against it"},
};
static const cmd_spec spec = {
    "verify MODEL [--ref MODEL0] [options]",
    "Opens MODEL (which checks headers, shapes, zero points, scales and permutations), decodes every row of every "
    "matrix and refuses\n"
    "NaN and infinity. With --ref it prints the signal-to-noise ratio of each against the original. The matrices of a "
    "rotated model\n"
    "are in another basis; of them it prints the change of the norm, the gains of the RMSNorm before them included.",
    flags,
    sizeof flags / sizeof *flags,
    false,
    1,
    1,
};

typedef struct matrix_check {
    double norm2, noise2, ref_norm2;
} matrix_check;

/* gain, ref_gain: NULL, or what the inputs of l and ref are multiplied with before, which counts as part of the matrix. */
static rq_status check_matrix(matrix_check *c, const rq_linear *l, const float *gain, const rq_linear *ref,
                              const float *ref_gain, const char *name) {
    rq_status status = RQ_OK;
    float *row = NULL, *ref_row = NULL;
    *c = (matrix_check){0};
    if (ref && (ref->n_out != l->n_out || ref->n_in != l->n_in)) {
        RQ_FAIL(RQ_ERR_INPUT, "%s is [%lld, %lld], in the reference [%lld, %lld]", name, (long long)l->n_out,
                (long long)l->n_in, (long long)ref->n_out, (long long)ref->n_in);
    }
    RQ_TRY(RQ_NEW(row, l->n_in));
    RQ_TRY(RQ_NEW(ref_row, l->n_in));
    for (int64_t i = 0; i < l->n_out; ++i) {
        RQ_TRY(rq_linear_rows(l, i, 1, row));
        if (ref) RQ_TRY(rq_linear_rows(ref, i, 1, ref_row));
        for (int64_t j = 0; j < l->n_in; ++j) {
            if (!isfinite(row[j]))
                RQ_FAIL(RQ_ERR_INPUT, "%s: weight [%lld][%lld] decodes to %g", name, (long long)i, (long long)j,
                        row[j]);
            if (gain) row[j] *= gain[j];
            if (ref_gain) ref_row[j] *= ref_gain[j];
            c->norm2 += (double)row[j] * row[j];
            if (!ref) continue;
            double e = (double)row[j] - ref_row[j];
            c->noise2 += e * e;
            c->ref_norm2 += (double)ref_row[j] * ref_row[j];
        }
    }
done:
    free(row);
    free(ref_row);
    return status;
}

static double decibel(const matrix_check *c, bool rotated) {
    if (rotated) return 10 * log10(c->norm2 / c->ref_norm2);
    return c->noise2 > 0 ? 10 * log10(c->ref_norm2 / c->noise2) : 999;
}

/* In a rotated model the gains of the norms are part of the matrices after them. */
static const float *gain_before(const rq_model *m, int64_t layer, int which) {
    const rq_block *b = &m->block[layer];
    return which <= RQ_V ? b->norm1 : which == RQ_GATE || which == RQ_UP ? b->norm2 : NULL;
}

static rq_status check_all(const rq_model *m, const rq_model *ref, json_t *list, bool print) {
    rq_status status = RQ_OK;
    bool rotated = ref && (m->rotation != NULL) != (ref->rotation != NULL);
    for (int64_t layer = 0; layer < m->cfg.n_layer; ++layer) {
        for (int which = 0; which < RQ_N_LINEARS; ++which) {
            char name[96];
            matrix_check c;
            snprintf(name, sizeof name, "model.layers.%lld.%s", (long long)layer, rq_linear_suffix[which]);
            RQ_TRY(check_matrix(&c, &m->block[layer].lin[which], rotated ? gain_before(m, layer, which) : NULL,
                                ref ? &ref->block[layer].lin[which] : NULL,
                                rotated ? gain_before(ref, layer, which) : NULL, name));
            json_t *j = json_pack("{s:s, s:f}", "name", name, "norm", sqrt(c.norm2));
            if (ref) json_object_set_new(j, rotated ? "gain_db" : "sqnr_db", json_real(decibel(&c, rotated)));
            json_array_append_new(list, j);
            if (print && ref) printf("%-44s %s %7.2f dB\n", name, rotated ? "gain" : "SQNR", decibel(&c, rotated));
            if (cmd_interrupted()) RQ_FAIL(RQ_ERR_CANCELLED, "interrupted");
        }
    }
    matrix_check c;
    RQ_TRY(check_matrix(&c, &m->embed, NULL, NULL, NULL, "model.embed_tokens"));
    RQ_TRY(check_matrix(&c, &m->head, NULL, NULL, NULL, "lm_head"));
done:
    return status;
}

int cmd_verify(int argc, char **argv) {
    rq_status status = RQ_OK;
    cmd_args a;
    rq_model *m = NULL, *ref = NULL;
    json_t *list = NULL;
    int code = cmd_parse(&a, argc, argv, &spec);
    if (code >= 0) return code;
    list = json_array();
    status = rq_model_open(&m, a.arg[0]);
    if (status == RQ_OK && cmd_has(&a, "ref")) status = rq_model_open(&ref, cmd_value(&a, "ref"));
    if (status != RQ_OK) {
        code = cmd_fail_input(status);
        goto out;
    }
    if (ref && (ref->cfg.n_layer != m->cfg.n_layer || ref->cfg.d_model != m->cfg.d_model)) {
        RQ_FAIL(RQ_ERR_INPUT, "the reference has %lld blocks of width %lld, the model %lld of %lld",
                (long long)ref->cfg.n_layer, (long long)ref->cfg.d_model, (long long)m->cfg.n_layer,
                (long long)m->cfg.d_model);
    }
    RQ_TRY(check_all(m, ref, list, !cmd_has(&a, "json")));
    if (cmd_has(&a, "json")) {
        cmd_print_json(json_pack("{s:b, s:f, s:O}", "ok", 1, "bpw", m->bpw, "matrices", list));
    } else {
        printf("%s: %lld matrices decode to finite numbers, %.4f bits per weight\n", a.arg[0],
               (long long)(m->cfg.n_layer * RQ_N_LINEARS), m->bpw);
    }
done:
    code = cmd_fail(status);
out:
    json_decref(list);
    rq_model_close(m);
    rq_model_close(ref);
    return code;
}
