/* SPDX-License-Identifier: Apache-2.0 */
/* requite generate: continue a prompt, from the packed weights when the model is packed. */
#include "backend.h"
#include "cmd.h"
#include "device.h"
#include "eval.h"

static const cmd_flag flags[] = {
    {"prompt", 'p', "TEXT", "the text to continue; @FILE reads it from a file"},
    {"n-tokens", 'n', "N", "tokens to write (64)"},
    {"temp", 0, "T", "sampling temperature; 0 takes the likeliest token each time (0)"},
    {"seed", 0, "N", "of the sampling (0)"},
    {"ignore-eos", 0, NULL, "go on after the end-of-text token"},
    {"device", 0, "DEV", "cpu (default), cuda or cuda:N: where the model runs"},
};
static const cmd_spec spec = {
    "generate MODEL --prompt TEXT [options]",
    "Writes the continuation to stdout as it comes. Special tokens in the prompt (<|im_start|> and the like) are "
    "understood.",
    flags,
    sizeof flags / sizeof *flags,
    false,
    1,
    1,
};

static bool on_token(void *user, int32_t id, const char *piece, int64_t n_bytes) {
    (void)id;
    if (*(bool *)user) {
        (void)fwrite(piece, 1, (size_t)n_bytes, stdout); /* main looks at stdout before it ends */
        (void)fflush(stdout);
    }
    return !cmd_interrupted();
}

int cmd_generate(int argc, char **argv) {
    rq_status status = RQ_OK;
    cmd_args a;
    rq_model *m = NULL;
    rq_tokenizer *t = NULL;
    char *file = NULL, *text = NULL;
    int32_t *prompt_ids = NULL, *ids = NULL;
    int64_t n_prompt, n_bytes, n_tokens, seed;
    double temperature;
    rq_generate_result r;
    int code = cmd_parse(&a, argc, argv, &spec);
    if (code >= 0) return code;
    const char *prompt = cmd_value(&a, "prompt"), *device = cmd_value(&a, "device");
    bool print = !cmd_has(&a, "json");
    if (!cmd_int(&a, "n-tokens", 1, 1 << 20, 64, &n_tokens) || !cmd_int(&a, "seed", 0, INT64_MAX, 0, &seed) ||
        !cmd_number(&a, "temp", 0, 100, 0, &temperature)) {
        return EXIT_USAGE;
    }
    if (!prompt) RQ_FAIL(RQ_ERR_ARG, "generate needs --prompt TEXT");
    if (device) RQ_TRY(rq_device_check(device));
    RQ_TRY(rq_backend_init());
    status = rq_model_open(&m, a.arg[0]);
    if (status == RQ_OK) status = rq_tokenizer_open(&t, m->store);
    if (status == RQ_OK && prompt[0] == '@') {
        status = rq_read_file(prompt + 1, 1 << 26, &file, &n_bytes);
        prompt = file;
    } else {
        n_bytes = (int64_t)strlen(prompt);
    }
    if (status != RQ_OK) {
        code = cmd_fail_input(status);
        goto out;
    }
    RQ_TRY(rq_tokenizer_encode(t, prompt, n_bytes, true, &prompt_ids, &n_prompt));
    if (n_prompt == 0) RQ_FAIL(RQ_ERR_ARG, "the prompt has no token");
    RQ_TRY(RQ_NEW(ids, n_tokens));
    rq_generate_opt opt = {.max_tokens = n_tokens,
                           .temperature = temperature,
                           .seed = (uint64_t)seed,
                           .ignore_eos = cmd_has(&a, "ignore-eos"),
                           .device = device,
                           .tokenizer = t,
                           .on_token = on_token,
                           .user = &print};
    RQ_TRY(rq_generate(m, ids, prompt_ids, n_prompt, &opt, &r));
    if (!print) {
        RQ_TRY(rq_tokenizer_decode(t, ids, r.n_new, true, &text, &n_bytes));
        json_t *list = json_array();
        for (int64_t i = 0; i < r.n_new; ++i) json_array_append_new(list, json_integer(ids[i]));
        json_t *j =
            json_stringn(text, (size_t)n_bytes); /* a text cut inside a character has no JSON form: the ids do */
        cmd_print_json(json_pack("{s:o, s:o, s:I, s:I, s:b, s:f, s:f, s:f}", "text", j ? j : json_null(), "ids", list,
                                 "n_prompt", (json_int_t)r.n_prompt, "n_new", (json_int_t)r.n_new, "hit_eos", r.hit_eos,
                                 "prefill_tok_s", r.prefill_tok_s, "decode_tok_s", r.decode_tok_s, "bpw", m->bpw));
    } else {
        putchar('\n');
        fprintf(stderr, "%lld tokens of prompt at %.1f tokens/s, %lld new ones at %.1f tokens/s\n",
                (long long)r.n_prompt, r.prefill_tok_s, (long long)r.n_new, r.decode_tok_s);
    }
done:
    code = cmd_fail(status);
out:
    free(file);
    free(text);
    free(prompt_ids);
    free(ids);
    rq_tokenizer_close(t);
    rq_model_close(m);
    return code;
}
