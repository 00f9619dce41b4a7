/* SPDX-License-Identifier: Apache-2.0 */
/* requite quantize. */
#include "cmd.h"
#include "convert.h"
#include "folder.h"
#include "quantize.h"

static const cmd_flag flags[] = {
    {"calib", 0, "FILE", "calibration text, .jsonl, or token ids (.safetensors I32/I64 [n_samples, seq_len])"},
    {"calib-field", 0, "NAME", "the string to take from each .jsonl line (text)"},
    {"n-samples", 'n', "N", "calibration windows (128)"},
    {"seq-len", 0, "N", "tokens in a window (2048; an id file's own length)"},
    {"skip-tokens", 0, "N", "leave the first N tokens of each window out of the statistics (0; codebooks: 1)"},
    {"bpw", 0, "X", "X bits a weight in all: each matrix gets the setting of the bank that suits the whole best"},
    {"bank", 0, "SETTING", "'key=value,...' to choose from; may be repeated (default: several sizes of the rounder)"},
    {"bpw-loss", 0, "HOW", "how --bpw compares matrices: residual (default), relative or absolute"},
    {"token-weights", 0, "HOW", "what tokens count by: none (default), attention or norm"},
    {"token-min", 0, "X", "the least a token counts, the most being 1 (0.005)"},
    {"seed", 0, "N", "of the rotation and of the choice of windows (0)"},
    {"preset", 0, "NAME", "best (default), reference: the settings of the papers' code, or vptq: VPTQ's"},
    {"rotate", 0, "HOW",
     "none, residual, or full: and Hadamard matrices at run time (default: the preset's; codebooks: none)"},
    {"hadamard", 0, "N", "order of those of full, N for o and down or N,M; 0: none (default: the largest)"},
    {"smooth", 0, "A", "w4a8: column factors max|x|^A / max|w|^B from inputs into weights; A or A,B (B: 1 - A)"},
    {"factors-at", 0, "LIST", "inputs that --smooth or --cross is for: qkv, o, gateup, down, with commas (all)"},
    {"cross", 0, "A", "w4a8: steps t^A c^(1-A) of inputs, t the largest of a token and c of a column"},
    {"skip", 0, "REGEX", "leave matching matrices as they are; may be repeated"},
    {"override", 0, "RULE", "'REGEX:key=value,...' for matching matrices; may be repeated, the first match counts"},
    {"config", 0, "FILE", "options from a JSON object of the same keys; flags win"},
    {"device", 0, "DEV", "cpu (default), cuda or cuda:N: where matrices are quantized"},
    {"activations", 0, "TYPE", "f32 (default) or bf16: what calibration on a GPU multiplies"},
    {"max-ram", 0, "SIZE", "refuse to start when more memory is needed, e.g. 16G"},
    {"resume", 0, NULL, "go on from OUT.partial of an interrupted run"},
    {"dry-run", 0, NULL, "say what it would write and need, and stop"},
    {"ranks", 0, "N", "--dry-run: as one of N processes (without it mpirun says how many there are)"},
    {"devices", 0, "LIST",
     "--dry-run: time and memory on e.g. 8xH100-80G; of MODEL config.json is enough, without --calib too"},
    {"rates", 0, "FILE", "--devices: rates that bench_quantize --rates measured (default: shares of a data sheet's)"},
    {"force", 0, NULL, "replace OUT when quantize wrote it"},
    {"to", 0, "FORMAT",
     "write OUT as gptq, gptq_v2, awq, compressed-tensors, vptq or aqlm (docs/peers.md); sets --rotate none"},
    {"fold", 0, "HOW",
     "--to, a rotated residual stream: turn embedding and head for good, as f16 or f32; sets --rotate residual"},
};
static const cmd_spec spec = {
    "quantize MODEL OUT [options]",
    "MODEL is a Hugging Face folder or one .gguf file. OUT becomes a folder with model.safetensors, config.json, the "
    "tokenizer,\n"
    "quantize_log.jsonl (a line per matrix) and report.json. Ctrl-C finishes the matrix at hand and exits with 75; "
    "--resume goes on.",
    flags,
    sizeof flags / sizeof *flags,
    true,
    2,
    2,
};

static bool parse_size(const char *text, int64_t *bytes) {
    char *end;
    double v = strtod(text, &end);
    double unit = 1;
    switch (*end) {
    case 'k':
    case 'K':
        unit = 1024;
        ++end;
        break;
    case 'm':
    case 'M':
        unit = 1048576;
        ++end;
        break;
    case 'g':
    case 'G':
        unit = 1073741824;
        ++end;
        break;
    case 't':
    case 'T':
        unit = 1099511627776.0;
        ++end;
        break;
    default: break;
    }
    if (*end == 'i') ++end;
    if (*end == 'B') ++end;
    if (end == text || *end || !(v > 0) || v * unit > 9e18) return false;
    *bytes = (int64_t)(v * unit);
    return true;
}

static bool parse_number(const char *text, double *v) {
    char *end;
    *v = strtod(text, &end);
    return end != text && !*end;
}

static int collect(const cmd_args *a, const char *name, const char **list) {
    int n = 0;
    for (int i = 0; i < a->n_pairs; ++i) {
        if (strcmp(a->name[i], name) == 0) list[n++] = a->value[i];
    }
    return n;
}

static rq_status load_samples(rq_samples *s, const cmd_args *a, const rq_quantize_job *job) {
    rq_status status = RQ_OK;
    rq_store *store = NULL;
    int64_t n_samples, seq_len;
    const char *path = cmd_value(a, "calib");
    if (!path && !job->devices) return RQ_OK;
    if (!cmd_int(a, "n-samples", 1, 1 << 24, 128, &n_samples) || !cmd_int(a, "seq-len", 2, 1 << 20, 0, &seq_len)) {
        return rq_fail(RQ_ERR_ARG, "see `requite quantize --help`");
    }
    if (job->devices) { /* nothing is read: sizes alone */
        *s = (rq_samples){.n_samples = n_samples, .seq_len = seq_len ? seq_len : 2048};
        return RQ_OK;
    }
    RQ_TRY(rq_store_open(&store, job->model_path));
    RQ_TRY(rq_samples_load(s, path, cmd_value(a, "calib-field"), store, n_samples, seq_len, job->seed));
    if (s->n_found < n_samples && cmd_has(a, "n-samples")) {
        rq_log(RQ_LOG_WARN, "%s holds %lld windows of %lld tokens, %lld were asked for", path, (long long)s->n_found,
               (long long)s->seq_len, (long long)n_samples);
    }
done:
    rq_store_close(store);
    return status;
}

static double gib(double bytes) { return bytes / 1073741824; }

static json_t *cost_json(const rq_cost *c) {
    json_t *j = json_pack("{s:s, s:i, s:s, s:f, s:s, s:f, s:f, s:f, s:f}", "device", c->device, "n_devices",
                          c->n_devices, "rates", c->measured ? "measured" : "nominal", "seconds", c->total, "most",
                          rq_cost_names[c->most], "device_bytes", c->device_bytes, "device_room", c->device_room,
                          "bus_bytes", c->bus_bytes, "host_bytes", c->host_bytes);
    json_t *stages = json_array();
    for (int i = 0; i < RQ_COST_STAGES; ++i) {
        json_array_append_new(stages, json_pack("{s:s, s:f, s:f}", "stage", rq_cost_names[i], "work", c->work[i],
                                                "seconds", c->seconds[i]));
    }
    json_object_set_new(j, "stages", stages);
    return j;
}

static void print_cost(const rq_cost *c) {
    printf("on %d x %s, a rank each, by %s rates:\n", c->n_devices, c->device,
           c->measured ? "measured" : "nominal (not measured)");
    for (int i = 0; i < RQ_COST_STAGES; ++i) {
        const bool bytes = i == RQ_COST_NET || i == RQ_COST_DISK;
        const char *unit = bytes ? "bytes" : i == RQ_COST_HOST ? "entries" : "operations";
        if (c->work[i] > 0)
            printf("  %-14s %10.3g %-10s %12.1f s  %5.1f %%\n", rq_cost_names[i], c->work[i], unit, c->seconds[i],
                   100 * c->seconds[i] / c->total);
    }
    printf("  %-14s %21s %12.1f s, or %.1f hours; most of it: %s\n", "in all", "", c->total, c->total / 3600,
           rq_cost_names[c->most]);
    printf("memory of a device %.1f GiB", gib(c->device_bytes));
    if (c->device_room > 0)
        printf(" of %.0f GiB%s", gib(c->device_room), c->device_bytes > c->device_room ? ": it does not fit" : "");
    printf(", of the host %.1f GiB for all ranks, %.1f GiB over the bus\n", gib(c->host_bytes), gib(c->bus_bytes));
}

static void print_report(const cmd_args *a, const rq_quantize_job *job, const rq_quantize_report *r) {
    if (cmd_has(a, "json")) {
        json_t *j = json_pack(
            "{s:s, s:I, s:I, s:f, s:I, s:I, s:I, s:f, s:f, s:I, s:I, s:I, s:b, s:s, s:i, s:f}", "out", job->out_path,
            "n_matrices", (json_int_t)r->n_matrices, "n_weights", (json_int_t)r->n_weights, "bpw", r->bpw, "file_bytes",
            (json_int_t)r->out_bytes, "ram_bytes_estimate", (json_int_t)r->ram_bytes, "spill_bytes",
            (json_int_t)r->spill_bytes, "flops", r->flops, "seconds", r->seconds, "n_resumed", (json_int_t)r->n_resumed,
            "n_samples", (json_int_t)job->samples.n_samples, "seq_len", (json_int_t)job->samples.seq_len, "dry_run",
            job->dry_run, "rotate", job->rotate, "ranks", r->n_ranks, "flops_rank", r->flops_rank);
        json_object_set_new(j, "options", cmd_quant_json(&job->opt));
        if (job->devices) json_object_set_new(j, "cost", cost_json(&r->cost));
        cmd_print_json(j);
        return;
    }
    const char *comp = rq_comp_get(job->opt.comp)->name;
    if (job->dry_run) {
        printf("would quantize %lld matrices (%.1f M weights) by %s to %.4f bits per weight: %.1f MiB of codes\n"
               "memory about %.0f MiB, temporary activations %.0f MiB on disk beside OUT, %.3g floating-point "
               "operations\n",
               (long long)r->n_matrices, (double)r->n_weights / 1e6, comp, r->bpw,
               r->bpw * (double)r->n_weights / 8 / 1048576, (double)r->ram_bytes / 1048576,
               (double)r->spill_bytes / 1048576, r->flops);
        if (job->devices) {
            print_cost(&r->cost);
            return;
        }
        if (r->n_ranks > 1) printf("on %d ranks: %.3g operations each at most\n", r->n_ranks, r->flops_rank);
        return;
    }
    printf("%s: %lld matrices by %s, %.4f bits per weight, model.safetensors %.1f MiB, %.1f s\n", job->out_path,
           (long long)r->n_matrices, comp, r->bpw, (double)r->out_bytes / 1048576, r->seconds);
}

/* "A" or "A,B"; *n says how many there were. */
static bool parse_numbers(const char *text, double v[2], int *n) {
    char *end;
    v[0] = strtod(text, &end);
    *n = 1;
    if (end != text && *end == ',') {
        text = end + 1;
        v[1] = strtod(text, &end);
        *n = 2;
    }
    return end != text && !*end;
}

/* --factors-at: names of stages with commas. */
static rq_status parse_stages(rq_quantize_job *job, const char *list) {
    static const char *const name[RQ_N_STAGES] = {"qkv", "o", "gateup", "down"};
    for (const char *at = list; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        const size_t n = strcspn(at, ",");
        int stage = 0;
        while (stage < RQ_N_STAGES && (strlen(name[stage]) != n || strncmp(at, name[stage], n) != 0)) ++stage;
        if (stage == RQ_N_STAGES)
            return rq_fail(RQ_ERR_ARG, "--factors-at %s: qkv, o, gateup and down with commas are wanted", list);
        job->factor_stages |= 1u << stage;
    }
    if (list && job->factors == RQ_FACTORS_NONE)
        return rq_fail(RQ_ERR_ARG, "--factors-at says where --smooth or --cross is for: give one of them");
    return RQ_OK;
}

/* What inputs go through: --rotate, --hadamard, --smooth, --cross. */
static rq_status parse_inputs(rq_quantize_job *job, const cmd_args *a) {
    const char *order = cmd_value(a, "hadamard"), *smooth = cmd_value(a, "smooth"), *cross = cmd_value(a, "cross");
    double v[2];
    int n;
    job->rotate = cmd_value(a, "rotate");
    if (order) {
        bool good = parse_numbers(order, v, &n);
        for (int i = 0; i < 2 && good; ++i) {
            const double size = v[n == 1 ? 0 : i];
            good = size >= 0 && size <= 1 << 20 && size == (double)(int)size;
            job->hadamard[i] = !good ? 0 : size == 0 ? -1 : (int)size;
        }
        if (!good) return rq_fail(RQ_ERR_ARG, "--hadamard %s: an order, or two with a comma, are wanted", order);
    }
    if (smooth && cross)
        return rq_fail(RQ_ERR_ARG, "--smooth and --cross both choose the factors of columns: give one of them");
    if (smooth || cross) {
        const char *text = smooth ? smooth : cross;
        if (!parse_numbers(text, v, &n) || (cross && n != 1)) {
            return rq_fail(RQ_ERR_ARG, smooth ? "--smooth %s: A or A,B is wanted" : "--cross %s: a number is wanted",
                           text);
        }
        job->factors = smooth ? RQ_FACTORS_SMOOTH : RQ_FACTORS_CROSS;
        job->factor_a = v[0];
        job->factor_b = n == 2 ? v[1] : 1 - v[0];
    }
    return parse_stages(job, cmd_value(a, "factors-at"));
}

static void inputs_json(json_t *j, const rq_quantize_job *job, const char *stages) {
    if (stages) json_object_set_new(j, "factors-at", json_string(stages));
    for (int i = 0; i < 2 && (job->hadamard[0] || job->hadamard[1]); ++i) {
        json_object_set_new(j, i ? "hadamard-down" : "hadamard-o",
                            json_integer(job->hadamard[i] < 0 ? 0 : job->hadamard[i]));
    }
    if (job->factors == RQ_FACTORS_SMOOTH)
        json_object_set_new(j, "smooth", json_pack("[f, f]", job->factor_a, job->factor_b));
    if (job->factors == RQ_FACTORS_CROSS) json_object_set_new(j, "cross", json_real(job->factor_a));
}

/* --token-weights, --bpw and what belongs to them. */
static rq_status parse_weighing(rq_quantize_job *job, const cmd_args *a, const char **bank) {
    const char *tokens = cmd_value(a, "token-weights"), *least = cmd_value(a, "token-min");
    if (tokens && !rq_token_weights_by_name(tokens, &job->token_weights)) {
        return rq_fail(RQ_ERR_ARG, "--token-weights %s: it is none, attention or norm", tokens);
    }
    job->token_min = 0.005;
    if (least && !parse_number(least, &job->token_min))
        return rq_fail(RQ_ERR_ARG, "--token-min %s is not a number", least);
    const char *bpw = cmd_value(a, "bpw"), *compare = cmd_value(a, "bpw-loss");
    if (bpw && !(parse_number(bpw, &job->bpw) && job->bpw > 0 && job->bpw <= 64)) {
        return rq_fail(RQ_ERR_ARG, "--bpw %s: bits a weight, above 0 and at most 64, are wanted", bpw);
    }
    if (compare && !rq_bpw_loss_by_name(compare, &job->bpw_loss)) {
        return rq_fail(RQ_ERR_ARG, "--bpw-loss %s: it is residual, relative or absolute", compare);
    }
    job->bank = bank;
    job->n_bank = collect(a, "bank", bank);
    if (job->n_bank && !bpw) return rq_fail(RQ_ERR_ARG, "--bank is what --bpw chooses from: give --bpw too");
    return RQ_OK;
}

/* --to FORMAT: quantize writes OUT.requite, which is then converted to OUT and removed. What FORMAT turns out to have no place for leaves it
 * there. */
static rq_status plan_conversion(rq_quantize_job *job, const char *to, const char *fold, char **own) {
    rq_status status = RQ_OK;
    *own = NULL;
    if (!job->rotate) job->rotate = fold ? "residual" : "none";
    RQ_TRY(rq_convert_check_options(to, &job->opt, job->rotate, fold));
    if (strcmp(to, "requite") == 0) return RQ_OK;
    if (job->force) RQ_FAIL(RQ_ERR_ARG, "--force and --to do not go together: remove %s first", job->out_path);
    if (!job->dry_run && rq_folder_is_used(job->out_path, NULL))
        RQ_FAIL(RQ_ERR_ARG, "%s exists and is not empty", job->out_path);
    if (asprintf(own, "%s.requite", job->out_path) < 0) {
        *own = NULL;
        RQ_FAIL(RQ_ERR_NOMEM, "out of memory");
    }
    job->out_path = *own;
done:
    return status;
}

static rq_status convert_output(rq_quantize_job *job, rq_quantize_report *report, const char *to, const char *fold,
                                const char *out) {
    rq_convert_report r;
    const char *own = job->out_path;
    rq_status status = rq_convert(&(rq_convert_job){.in_path = own, .out_path = out, .to = to, .fold = fold}, &r);
    if (status != RQ_OK) return rq_fail_context(status, "%s holds the quantized model, but not as %s", own, to);
    rq_folder_remove(own);
    job->out_path = out;
    report->out_bytes = r.out_bytes;
    return RQ_OK;
}

int cmd_quantize(int argc, char **argv) {
    rq_status status = RQ_OK;
    cmd_args a;
    rq_quantize_job job = {0};
    rq_quantize_report report;
    cmd_progress progress;
    const char *skip[CMD_MAX_PAIRS], *rules[CMD_MAX_PAIRS], *bank[CMD_MAX_PAIRS];
    char *options = NULL, *own = NULL;
    int code = cmd_parse(&a, argc, argv, &spec);
    if (code >= 0) return code;
    RQ_TRY(cmd_quant_options(&job.opt, &a));
    int64_t seed;
    const char *preset = cmd_value(&a, "preset"), *to = cmd_value(&a, "to"), *fold = cmd_value(&a, "fold");
    bool vptq = preset && strcmp(preset, "vptq") == 0;
    bool book = rq_round_is_book(job.opt.round); /* docs/methods.md, "Codebooks", has their own defaults */
    if (!cmd_int(&a, "seed", 0, INT64_MAX, 0, &seed) ||
        !cmd_int(&a, "skip-tokens", 0, 1 << 20, book && !vptq ? 1 : 0, &job.skip_tokens)) {
        return EXIT_USAGE;
    }
    RQ_TRY(parse_weighing(&job, &a, bank));
    const char *ram = cmd_value(&a, "max-ram");
    job.device = cmd_value(&a, "device");
    const char *type = cmd_value(&a, "activations");
    job.bf16 = type && strcmp(type, "bf16") == 0;
    if (type && !job.bf16 && strcmp(type, "f32") != 0) RQ_FAIL(RQ_ERR_ARG, "--activations %s: it is f32 or bf16", type);
    if (ram && !parse_size(ram, &job.max_ram_bytes))
        RQ_FAIL(RQ_ERR_ARG, "--max-ram %s: a size like 800M or 16G is wanted", ram);
    job.model_path = a.arg[0];
    job.out_path = a.arg[1];
    job.seed = (uint64_t)seed;
    RQ_TRY(parse_inputs(&job, &a));
    job.force = cmd_has(&a, "force");
    job.dry_run = cmd_has(&a, "dry-run");
    if (fold && !to) RQ_FAIL(RQ_ERR_ARG, "--fold is for --to FORMAT: our own files keep the rotation");
    if (to) RQ_TRY(plan_conversion(&job, to, fold, &own));
    if (!job.rotate) job.rotate = book || (preset && strcmp(preset, "reference") == 0) ? "none" : "residual";
    job.skip = skip;
    job.n_skip = collect(&a, "skip", skip);
    job.override_rules = rules;
    job.n_override_rules = collect(&a, "override", rules);
    job.resume = cmd_has(&a, "resume");
    int64_t ranks;
    if (!cmd_int(&a, "ranks", 1, 1 << 20, 0, &ranks)) return EXIT_USAGE;
    if (ranks && !job.dry_run)
        RQ_FAIL(RQ_ERR_ARG, "--ranks is for --dry-run: mpirun -n %lld starts so many", (long long)ranks);
    job.dry_ranks = (int)ranks;
    job.devices = cmd_value(&a, "devices");
    job.rates = cmd_value(&a, "rates");
    if (job.rates && !job.devices) RQ_FAIL(RQ_ERR_ARG, "--rates %s: of which devices? --devices says it", job.rates);
    json_t *j = cmd_quant_json(&job.opt);
    if (job.token_weights != RQ_TOKENS_EVEN) {
        json_object_set_new(j, "token-weights", json_string(rq_token_weights_name(job.token_weights)));
        json_object_set_new(j, "token-min", json_real(job.token_min));
    }
    if (job.bf16) json_object_set_new(j, "activations", json_string("bf16"));
    if (job.bpw > 0) json_object_set_new(j, "bpw", json_real(job.bpw));
    inputs_json(j, &job, cmd_value(&a, "factors-at"));
    options = json_dumps(j, JSON_COMPACT);
    json_decref(j);
    job.options_json = options;
    job.ranks = cmd_ranks();
    if (job.ranks && !cmd_has(&a, "threads")) rq_set_threads(cmd_ranks_threads());
    RQ_TRY(cmd_progress_new(&progress, &a, "quantize"));
    if (rq_rank(job.ranks) > 0) progress.mode = 0;
    job.progress = cmd_progress_show;
    job.user = &progress;
    status = load_samples(&job.samples, &a, &job);
    if (status == RQ_ERR_IO) {
        code = cmd_fail_input(status);
        goto out;
    }
    RQ_TRY(status);
    status = rq_quantize_model(&job, &report);
    cmd_progress_end(&progress);
    RQ_TRY(status);
    if (own && !job.dry_run && rq_rank(job.ranks) == 0) RQ_TRY(convert_output(&job, &report, to, fold, a.arg[1]));
    if (rq_rank(job.ranks) == 0) print_report(&a, &job, &report);
done:
    code = cmd_fail(status);
out:
    rq_samples_free(&job.samples);
    free(options);
    free(own);
    return code;
}
