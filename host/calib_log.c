/* SPDX-License-Identifier: Apache-2.0 */
/* What became of a matrix, as a line of quantize_log.jsonl: losses, bits, damping, seconds, and its options. */
#include <math.h>

#include "quantize.h"

static double sqnr_db(const float *w, const float *q, int64_t n) {
    double signal = 0, noise = 0;
    for (int64_t i = 0; i < n; ++i) {
        signal += (double)w[i] * w[i];
        noise += ((double)w[i] - q[i]) * ((double)w[i] - q[i]);
    }
    return noise > 0 ? 10 * log10(signal > 0 ? signal / noise : 1) : 999;
}

void rq_matrix_log(char *out, size_t size, const rq_matrix_plan *p, const rq_prep *prep, const rq_matrix_losses *l,
                   const float *w, const float *q) {
    char options[1024] = "", inputs[80] = "";
    size_t used = 0;
    for (int i = 0; rq_quant_key_at(i) && used < sizeof options; ++i) {
        const rq_quant_key *k = rq_quant_key_at(i);
        char value[64];
        rq_quant_get(&p->opt, k->key, value, sizeof value);
        used += (size_t)snprintf(options + used, sizeof options - used, "%s\"%s\":%s%s%s", i ? "," : "", k->key,
                                 k->kind == 'e' ? "\"" : "", value, k->kind == 'e' ? "\"" : "");
    }
    if (p->opt.round == RQ_ROUND_W4A8)
        snprintf(inputs, sizeof inputs, "\"hadamard\":%d,\"in_scale\":%s,", p->hadamard,
                 p->in_scale ? "true" : "false");
    snprintf(out, size,
             "{\"name\":\"%s\",\"n_out\":%lld,\"n_in\":%lld,\"loss_sym\":%.9g,\"loss_asym\":%.9g,\"rel_loss\":%.6g,"
             "\"sqnr_db\":%.4f,"
             "\"bpw\":%.6f,\"damp_used\":%.6g,\"damp_retries\":%d,\"diagonal_only\":%s,\"dead_columns\":%lld,"
             "\"seconds\":%.3f,%s%s}",
             p->name, (long long)p->n_out, (long long)p->n_in, l->sym, l->asym, l->whw > 0 ? l->sym / l->whw : 0.0,
             sqnr_db(w, q, p->n_out * p->n_in), l->bpw, prep->damp_used, prep->n_retries,
             prep->diagonal_only ? "true" : "false", (long long)prep->n_dead, l->seconds, inputs, options);
}
