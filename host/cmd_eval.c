/* SPDX-License-Identifier: Apache-2.0 */
/* requite eval: perplexity over non-overlapping windows; with a reference, KL divergence and top-1 agreement. */
#include "backend.h"
#include "cmd.h"
#include "eval.h"
#include "quantize.h"

static const cmd_flag flags[] = {
    {"text", 0, "FILE", "text, .jsonl or token ids (.safetensors I32/I64 [n_samples, seq_len])"},
    {"text-field", 0, "NAME", "the string to take from each .jsonl line (text)"},
    {"ctx", 0, "N", "tokens in a window (2048; an id file's own length)"},
    {"n-windows", 'n', "N", "use only the first N windows"},
    {"ref", 0, "MODEL0", "the original: report KL(MODEL0 || MODEL) and top-1 agreement"},
    {"device", 0, "DEV", "cpu, the only one"},
};
static const cmd_spec spec = {
    "eval MODEL --text FILE [options]",
    "Perplexity: windows do not overlap, the tail is dropped, no BOS is added; the mean over windows of the mean "
    "negative log\n"
    "likelihood of the ctx - 1 predictions in each, exponentiated.",
    flags,
    sizeof flags / sizeof *flags,
    false,
    1,
    1,
};

typedef struct show {
    cmd_progress progress;
} show;

static bool on_window(void *user, int64_t done, int64_t total, double nll) {
    show *s = user;
    char text[96];
    snprintf(text, sizeof text, "window %lld of %lld, nll %.4f so far", (long long)done, (long long)total, nll);
    return !cmd_progress_show(&s->progress, (double)done / (double)total, text);
}

static void report(const cmd_args *a, const rq_model *m, const rq_eval_result *r) {
    int64_t bytes = rq_store_file_bytes(m->store);
    if (cmd_has(a, "json")) {
        json_t *j = json_pack("{s:f, s:f, s:f, s:I, s:I, s:I, s:f, s:I, s:f}", "ppl", r->ppl, "nll_mean", r->nll,
                              "nll_stderr", r->nll_stderr, "n_windows", (json_int_t)r->n_windows, "ctx",
                              (json_int_t)r->ctx, "n_tokens", (json_int_t)(r->n_windows * r->ctx), "bpw", m->bpw,
                              "file_bytes", (json_int_t)bytes, "seconds", r->seconds);
        if (r->has_ref) {
            json_object_set_new(j, "kld_mean", json_real(r->kl));
            json_object_set_new(j, "kld_stderr", json_real(r->kl_stderr));
            json_object_set_new(j, "top1_agree_frac", json_real(r->top1_frac));
            json_object_set_new(j, "ref_ppl", json_real(r->ref_ppl));
        }
        cmd_print_json(j);
        return;
    }
    printf("perplexity %.4f (nll %.5f +- %.5f over %lld windows of %lld), %.4f bits per weight, %.1f MiB, %.1f s\n",
           r->ppl, r->nll, r->nll_stderr, (long long)r->n_windows, (long long)r->ctx, m->bpw, (double)bytes / 1048576,
           r->seconds);
    if (r->has_ref) {
        printf("against the reference (perplexity %.4f): KL divergence %.5f +- %.5f, top-1 agreement %.2f %%\n",
               r->ref_ppl, r->kl, r->kl_stderr, 100 * r->top1_frac);
    }
}

int cmd_eval(int argc, char **argv) {
    rq_status status = RQ_OK;
    cmd_args a;
    rq_model *m = NULL, *ref = NULL;
    rq_samples text = {0};
    rq_eval_result result;
    show s;
    int64_t ctx, n_windows;
    int code = cmd_parse(&a, argc, argv, &spec);
    if (code >= 0) return code;
    const char *path = cmd_value(&a, "text"), *device = cmd_value(&a, "device"), *ref_path = cmd_value(&a, "ref");
    if (!cmd_int(&a, "ctx", 2, 1 << 20, 0, &ctx) || !cmd_int(&a, "n-windows", 1, 1 << 24, 0, &n_windows))
        return EXIT_USAGE;
    if (!path) RQ_FAIL(RQ_ERR_ARG, "eval needs --text FILE");
    if (device && strcmp(device, "cpu") != 0) RQ_FAIL(RQ_ERR_ARG, "--device %s: eval runs on the cpu only", device);
    RQ_TRY(rq_backend_init());
    status = rq_model_open(&m, a.arg[0]);
    if (status == RQ_OK && ref_path) status = rq_model_open(&ref, ref_path);
    if (status == RQ_OK) status = rq_samples_load(&text, path, cmd_value(&a, "text-field"), m->store, 0, ctx, 0);
    if (status != RQ_OK) {
        code = cmd_fail_input(status);
        goto out;
    }
    if (n_windows == 0 || n_windows > text.n_samples) n_windows = text.n_samples;
    RQ_TRY(cmd_progress_new(&s.progress, &a, "eval"));
    rq_eval_opt opt = {.progress = on_window, .user = &s};
    status = rq_eval(m, ref, text.ids, n_windows, text.seq_len, &opt, &result);
    cmd_progress_end(&s.progress);
    RQ_TRY(status);
    report(&a, m, &result);
done:
    code = cmd_fail(status);
out:
    rq_samples_free(&text);
    rq_model_close(m);
    rq_model_close(ref);
    return code;
}
