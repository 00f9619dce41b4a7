/* SPDX-License-Identifier: Apache-2.0 */
/* requite tune. */
#include <math.h>

#include "backend.h"
#include "cmd.h"
#include "quantize.h"
#include "tune.h"

static const cmd_flag flags[] = {
    {"ref", 0, "MODEL0", "the original, whose predictions are the target"},
    {"calib", 0, "FILE", "text, .jsonl, or token ids (.safetensors I32/I64 [n_samples, seq_len])"},
    {"calib-field", 0, "NAME", "the string to take from each .jsonl line (text)"},
    {"n-samples", 'n', "N", "windows, held-out ones included (64)"},
    {"seq-len", 0, "N", "tokens in a window (512; an id file's own length)"},
    {"holdout", 0, "N", "last windows, kept out of training to pick the best epoch (an eighth of all)"},
    {"epochs", 0, "N", "passes over the windows (2)"},
    {"batch", 0, "N", "windows per step (2)"},
    {"lr-scale", 0, "X", "rate of the scales, relative to each (3e-4; codebooks: 0.002); 0 leaves them"},
    {"lr-gain", 0, "X", "rate of the norm gains, relative to their size (3e-4; 0.002); 0 leaves them"},
    {"lr-book", 0, "X", "rate of the codebooks' entries, relative to their size (0.003); 0 leaves them"},
    {"seed", 0, "N", "of the choice and order of the windows (0)"},
    {"device", 0, "DEV", "cpu, the only one"},
};
static const cmd_spec spec = {
    "tune MODEL OUT --ref MODEL0 --calib FILE [options]",
    "Train the group scales, norm gains and codebooks of a packed model together, so that it predicts what the "
    "original\n"
    "predicts (mean KL divergence over the windows). Codes, signs, zero points and bits per weight stay. OUT becomes a "
    "copy of the\n"
    "folder MODEL with those tensors changed. Nothing is written when it is interrupted.",
    flags,
    sizeof flags / sizeof *flags,
    false,
    2,
    2,
};

static bool on_progress(void *user, double done_frac, const char *text, double loss) {
    char line[160];
    if (isfinite(loss))
        snprintf(line, sizeof line, "%s, KL %.5f", text, loss);
    else
        snprintf(line, sizeof line, "%s", text);
    return cmd_progress_show(user, done_frac, line);
}

static json_t *number(double v) { return isfinite(v) ? json_real(v) : json_null(); }

static json_t *describe(const cmd_args *a, const rq_tune_opt *o, const rq_tune_result *r, const rq_samples *s) {
    json_t *epochs = json_array();
    for (int64_t i = 0; i < r->n_epochs; ++i) {
        json_array_append_new(epochs, json_pack("{s:o, s:o}", "train_kld", number(r->epoch[i].train), "holdout_kld",
                                                number(r->epoch[i].holdout)));
    }
    return json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:I, s:o, s:o, s:o, s:o, s:I, s:o, s:f}",
        "ref", cmd_value(a, "ref"), "calib", cmd_value(a, "calib"), "n_train", (json_int_t)r->n_train, "n_holdout",
        (json_int_t)r->n_holdout, "seq_len", (json_int_t)s->seq_len, "n_scales", (json_int_t)r->n_scales, "n_gains",
        (json_int_t)r->n_gains, "n_entries", (json_int_t)r->n_entries, "n_steps", (json_int_t)r->n_steps, "batch",
        (json_int_t)o->batch, "lr_scale", o->lr_scale, "lr_gain", o->lr_gain, "lr_book", o->lr_book, "seed",
        (json_int_t)o->seed, "train_kld_before", number(r->train_before), "train_kld_after", number(r->train_after),
        "holdout_kld_before", number(r->holdout_before), "holdout_kld_after", number(r->holdout_after), "best_epoch",
        (json_int_t)r->best_epoch, "epochs", epochs, "seconds", r->seconds);
}

static void print_result(const rq_tune_result *r, const char *out) {
    for (int64_t i = 0; i < r->n_epochs; ++i) {
        printf("epoch %lld: KL %.5f while training", (long long)i + 1, r->epoch[i].train);
        if (isfinite(r->epoch[i].holdout)) printf(", %.5f held out", r->epoch[i].holdout);
        printf("\n");
    }
    if (r->n_holdout > 0) {
        printf("held-out windows: KL %.5f before, %.5f after (epoch %lld kept)\n", r->holdout_before, r->holdout_after,
               (long long)r->best_epoch);
    }
    if (isfinite(r->train_after)) {
        printf("training windows: KL %.5f before, %.5f after\n", r->train_before, r->train_after);
    }
    printf("%s: %lld scales, %lld gains and %lld numbers of codebooks tuned in %lld steps, %.1f s\n", out,
           (long long)r->n_scales, (long long)r->n_gains, (long long)r->n_entries, (long long)r->n_steps, r->seconds);
}

/* False after printing what is wrong. */
static bool read_options(rq_tune_opt *o, const cmd_args *a, int64_t *n_samples, int64_t *seq_len, int64_t *holdout) {
    int64_t seed;
    rq_tune_default(o);
    if (!cmd_int(a, "n-samples", 1, 1 << 20, 64, n_samples) || !cmd_int(a, "seq-len", 2, 1 << 20, 0, seq_len) ||
        !cmd_int(a, "holdout", 0, 1 << 20, -1, holdout) ||
        !cmd_int(a, "epochs", 1, RQ_TUNE_MAX_EPOCHS, o->epochs, &o->epochs) ||
        !cmd_int(a, "batch", 1, 1 << 16, o->batch, &o->batch) ||
        !cmd_number(a, "lr-scale", 0, 1, o->lr_scale, &o->lr_scale) ||
        !cmd_number(a, "lr-gain", 0, 1, o->lr_gain, &o->lr_gain) ||
        !cmd_number(a, "lr-book", 0, 1, o->lr_book, &o->lr_book) || !cmd_int(a, "seed", 0, INT64_MAX, 0, &seed)) {
        return false;
    }
    o->seed = (uint64_t)seed;
    const char *path = cmd_value(a, "calib");
    size_t n = path ? strlen(path) : 0;
    bool ids = n >= 12 && strcmp(path + n - 12, ".safetensors") == 0;
    if (*seq_len == 0 && !ids) *seq_len = 512;
    return true;
}

int cmd_tune(int argc, char **argv) {
    rq_status status = RQ_OK;
    cmd_args a;
    cmd_progress progress;
    rq_tune_opt opt;
    rq_tune_result result;
    rq_model *m = NULL, *ref = NULL;
    rq_samples s = {0};
    json_t *j = NULL;
    char *text = NULL;
    int64_t n_samples, seq_len, holdout;
    int code = cmd_parse(&a, argc, argv, &spec);
    if (code >= 0) return code;
    if (!read_options(&opt, &a, &n_samples, &seq_len, &holdout)) return EXIT_USAGE;
    const char *ref_path = cmd_value(&a, "ref"), *calib = cmd_value(&a, "calib"), *device = cmd_value(&a, "device");
    if (!ref_path || !calib) RQ_FAIL(RQ_ERR_ARG, "tune needs --ref MODEL0 and --calib FILE");
    if (device && strcmp(device, "cpu") != 0) RQ_FAIL(RQ_ERR_ARG, "--device %s: tune runs on the cpu only", device);
    RQ_TRY(rq_backend_init());
    status = rq_model_open(&m, a.arg[0]);
    if (status == RQ_OK) status = rq_model_open(&ref, ref_path);
    if (status == RQ_OK) {
        status = rq_samples_load(&s, calib, cmd_value(&a, "calib-field"), ref->store, n_samples, seq_len, opt.seed);
    }
    if (status != RQ_OK) {
        code = cmd_fail_input(status);
        goto out;
    }
    RQ_TRY(rq_tune_check_out(m, a.arg[1]));
    if (s.n_found < n_samples && cmd_has(&a, "n-samples")) {
        rq_log(RQ_LOG_WARN, "%s holds %lld windows of %lld tokens, %lld were asked for", calib, (long long)s.n_found,
               (long long)s.seq_len, (long long)n_samples);
    }
    opt.n_holdout = holdout >= 0 ? holdout : s.n_samples / 8;
    opt.measure_train = opt.n_holdout == 0;
    RQ_TRY(cmd_progress_new(&progress, &a, "tune"));
    opt.progress = on_progress;
    opt.user = &progress;
    rq_tune_rates(&opt, m);
    status = rq_tune(m, ref, s.ids, s.n_samples, s.seq_len, &opt, &result);
    cmd_progress_end(&progress);
    RQ_TRY(status);
    j = describe(&a, &opt, &result, &s);
    text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    if (!text) RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    RQ_TRY(rq_tune_write(m, a.arg[1], text));
    if (cmd_has(&a, "json"))
        cmd_print_json(json_incref(j));
    else
        print_result(&result, a.arg[1]);
done:
    code = cmd_fail(status);
out:
    json_decref(j);
    free(text);
    rq_samples_free(&s);
    rq_model_close(m);
    rq_model_close(ref);
    return code;
}
