/* SPDX-License-Identifier: Apache-2.0 */
/* requite convert. */
#include "cmd.h"
#include "convert.h"

static const cmd_flag flags[] = {
    {"to", 0, "FORMAT", "requite, gptq, gptq_v2, awq, compressed-tensors, vptq or aqlm"},
    {"fold", 0, "HOW",
     "a rotated model: turn embedding and head for good instead of the stream, as f16 or f32 tensors"},
    {"output", 'o', "OUT", "the new folder (or the second argument)"},
};
static const cmd_spec spec = {
    "convert MODEL [OUT] --to FORMAT [-o OUT] [options]",
    "The packed matrices of MODEL in another tool's tensors, with the configuration that it looks for, or another "
    "tool's in "
    "ours. Codes,\n"
    "scales, zero points and codebooks stay the same. What FORMAT has no place for is refused: docs/peers.md lists it.",
    flags,
    sizeof flags / sizeof *flags,
    false,
    1,
    2,
};

int cmd_convert(int argc, char **argv) {
    rq_status status = RQ_OK;
    cmd_args a;
    cmd_progress progress;
    rq_convert_job job = {0};
    rq_convert_report r;
    rq_store *s = NULL;
    int code = cmd_parse(&a, argc, argv, &spec);
    if (code >= 0) return code;
    job.in_path = a.arg[0];
    job.to = cmd_value(&a, "to");
    job.out_path = cmd_has(&a, "output") ? cmd_value(&a, "output") : a.n_args > 1 ? a.arg[1] : NULL;
    if (!job.to || !job.out_path || (cmd_has(&a, "output") && a.n_args > 1))
        RQ_FAIL(RQ_ERR_ARG, "convert needs --to FORMAT and one OUT: see `requite convert --help`");
    RQ_TRY(rq_convert_check_target(job.to));
    job.fold = cmd_value(&a, "fold");
    if (job.fold && strcmp(job.fold, "f16") != 0 && strcmp(job.fold, "f32") != 0)
        RQ_FAIL(RQ_ERR_ARG, "--fold %s: it is f16 or f32", job.fold);
    status = rq_store_open(&s, job.in_path);
    rq_store_close(s);
    if (status != RQ_OK) return cmd_fail_input(status);
    RQ_TRY(cmd_progress_new(&progress, &a, "convert"));
    job.progress = cmd_progress_show;
    job.user = &progress;
    status = rq_convert(&job, &r);
    cmd_progress_end(&progress);
    RQ_TRY(status);
    if (cmd_has(&a, "json")) {
        cmd_print_json(json_pack("{s:s, s:s, s:I, s:I, s:f}", "out", job.out_path, "to", job.to, "n_matrices",
                                 (json_int_t)r.n_matrices, "file_bytes", (json_int_t)r.out_bytes, "seconds",
                                 r.seconds));
    } else {
        printf("%s: %lld matrices as %s, model.safetensors %.1f MiB, %.1f s\n", job.out_path, (long long)r.n_matrices,
               job.to, (double)r.out_bytes / 1048576, r.seconds);
    }
done:
    return cmd_fail(status);
}
