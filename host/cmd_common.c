/* SPDX-License-Identifier: Apache-2.0 */
/* Flags, JSON, progress, signals and exit codes of the command. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <unistd.h>

#include "cmd.h"

/* ---- flags ---- */

static const cmd_flag common_flags[] = {
    {"json", 0, NULL, "one JSON object on stdout; messages and progress go to stderr"},
    {"threads", 0, "N", "worker threads (default: every core); results do not depend on it"},
    {"progress", 0, "HOW", "auto, tty, plain, json or none"},
    {"verbose", 'v', NULL, "more messages on stderr"},
    {"help", 'h', NULL, "this text"},
};
enum { N_COMMON = sizeof common_flags / sizeof *common_flags, MAX_OPTIONS = 160, FIRST_LONG = 1000 };

static bool verbose;

static void log_to_stderr(void *user, rq_log_level level, const char *text) {
    (void)user;
    if (level == RQ_LOG_DEBUG && !verbose) return;
    fprintf(stderr, "requite: %s%s\n", level == RQ_LOG_WARN ? "warning: " : "", text);
}

static char short_letter(const char *key) {
    return strcmp(key, "bits") == 0 ? 'b' : strcmp(key, "group") == 0 ? 'g' : 0;
}

static void print_flag(char letter, const char *name, const char *arg, const char *help) {
    char left[64];
    snprintf(left, sizeof left, "%c%c%s --%s%s%s", letter ? '-' : ' ', letter ? letter : ' ', letter ? "," : " ", name,
             arg ? " " : "", arg ? arg : "");
    if (strlen(left) > 32) {
        printf("  %s\n  %-32s %s\n", left, "", help);
    } else {
        printf("  %-32s %s\n", left, help);
    }
}

/* Whether an option is one of this rounder's: help texts of those that not all have begin with "ssvq, vq: " or the like. */
static bool is_of_round(const char *help, const char *round) {
    const size_t n = strlen(round);
    if (strncmp(help, "ssvq", 4) != 0 && strncmp(help, "vq", 2) != 0) return true;
    for (const char *at = help;; at += 2) { /* words with ", " between, up to the colon */
        const size_t word = strcspn(at, ",:");
        if (word == n && strncmp(at, round, n) == 0) return true;
        at += word;
        if (*at != ',') return false;
    }
}

/* The options of the quantizer, with the defaults that go with --comp and --round. */
static void print_quant_help(const cmd_args *a) {
    rq_comp comp = RQ_COMP_QEP;
    rq_round round = RQ_ROUND_GRID;
    rq_quant_opt o;
    const char *name = cmd_value(a, "comp");
    if (name) (void)rq_comp_by_name(name, &comp); /* of an unknown one the defaults stay */
    if ((name = cmd_value(a, "round"))) (void)rq_round_by_name(name, &round);
    rq_quant_default_round(&o, comp, round);
    printf("\nquantization (the defaults in brackets go with --comp %s --round %s; --help with others shows theirs):\n",
           rq_comp_get(comp)->name, rq_round_name(round));
    for (int i = 0; rq_quant_key_at(i); ++i) {
        const rq_quant_key *k = rq_quant_key_at(i);
        char arg[64], value[64], help[256];
        if (k->kind == 'b') {
            snprintf(arg, sizeof arg, "%s%s", strcmp(k->key, "sym") == 0 ? "| --asym" : "| --no-",
                     strcmp(k->key, "sym") == 0 ? "" : k->key);
        } else {
            snprintf(arg, sizeof arg, "%s", k->values);
        }
        rq_quant_get(&o, k->key, value, sizeof value);
        if (k->kind == 'b') snprintf(value, sizeof value, "%s", strcmp(value, "true") == 0 ? "yes" : "no");
        const bool shown = is_of_round(k->help, rq_round_name(round));
        snprintf(help, sizeof help, shown ? "%s (%s)" : "%s", k->help, value);
        print_flag(short_letter(k->key), k->key, arg, help);
    }
}

static void print_help(const cmd_spec *spec, const cmd_args *a) {
    printf("usage: requite %s\n\n%s\n%s", spec->usage, spec->about, spec->n_flags ? "\noptions:\n" : "");
    for (int i = 0; i < spec->n_flags; ++i) {
        print_flag(spec->flags[i].letter, spec->flags[i].name, spec->flags[i].arg, spec->flags[i].help);
    }
    if (spec->quant_options) print_quant_help(a);
    printf("\ncommon:\n");
    for (int i = 0; i < N_COMMON; ++i) {
        print_flag(common_flags[i].letter, common_flags[i].name, common_flags[i].arg, common_flags[i].help);
    }
}

typedef struct option_table {
    struct option option[MAX_OPTIONS];
    const char *name[MAX_OPTIONS], *fixed_value[MAX_OPTIONS]; /* the pair a flag stands for; NULL: its argument */
    char letters[64];
    char negated[MAX_OPTIONS][40];
    int n;
} option_table;

static void add_option(option_table *t, const char *flag, char letter, const char *pair, const char *fixed_value) {
    int i = t->n++;
    t->option[i] = (struct option){flag, fixed_value ? no_argument : required_argument, NULL, FIRST_LONG + i};
    t->name[i] = pair;
    t->fixed_value[i] = fixed_value;
    if (letter) {
        size_t n = strlen(t->letters);
        t->letters[n] = letter;
        t->letters[n + 1] = fixed_value ? 0 : ':';
        t->letters[n + 2] = 0;
        t->option[i].val = (unsigned char)letter;
    }
}

static void build_options(option_table *t, const cmd_spec *spec) {
    for (int i = 0; i < spec->n_flags; ++i) {
        const cmd_flag *f = &spec->flags[i];
        add_option(t, f->name, f->letter, f->name, f->arg ? NULL : "true");
    }
    for (int i = 0; i < N_COMMON; ++i) {
        const cmd_flag *f = &common_flags[i];
        add_option(t, f->name, f->letter, f->name, f->arg ? NULL : "true");
    }
    for (int i = 0; spec->quant_options && rq_quant_key_at(i); ++i) {
        const rq_quant_key *k = rq_quant_key_at(i);
        if (k->kind != 'b') {
            add_option(t, k->key, short_letter(k->key), k->key, NULL);
            continue;
        }
        add_option(t, k->key, 0, k->key, "true");
        int at = t->n;
        snprintf(t->negated[at], sizeof t->negated[at], strcmp(k->key, "sym") == 0 ? "asym" : "no-%s", k->key);
        add_option(t, t->negated[at], 0, k->key, "false");
    }
}

static bool push_pair(cmd_args *a, const char *name, const char *value) {
    if (a->n_pairs == CMD_MAX_PAIRS) {
        fprintf(stderr, "requite: more than %d options\n", CMD_MAX_PAIRS);
        return false;
    }
    a->name[a->n_pairs] = name;
    a->value[a->n_pairs++] = value;
    return true;
}

int cmd_parse(cmd_args *a, int argc, char **argv, const cmd_spec *spec) {
    static option_table t;
    memset(&t, 0, sizeof t);
    *a = (cmd_args){.spec = spec};
    build_options(&t, spec);
    optind = 1;
    for (;;) {
        int c = getopt_long(argc, argv, t.letters, t.option, NULL);
        if (c == -1) break;
        int i = 0;
        while (i < t.n && t.option[i].val != c) ++i;
        if (i == t.n) {
            fprintf(stderr, "usage: requite %s\n`requite %s --help` lists the options\n", spec->usage, argv[0]);
            return EXIT_USAGE;
        }
        if (!push_pair(a, t.name[i], t.fixed_value[i] ? t.fixed_value[i] : optarg)) return EXIT_USAGE;
    }
    if (cmd_has(a, "help")) {
        print_help(spec, a);
        return EXIT_OK;
    }
    for (; optind < argc; ++optind) {
        if (a->n_args < 8) a->arg[a->n_args] = argv[optind];
        ++a->n_args;
    }
    if (a->n_args < spec->min_args || a->n_args > spec->max_args) {
        fprintf(stderr, "usage: requite %s\n", spec->usage);
        return EXIT_USAGE;
    }
    int64_t n_threads;
    if (!cmd_int(a, "threads", 1, 1024, 0, &n_threads)) return EXIT_USAGE;
    rq_set_threads((int)n_threads);
    verbose = cmd_has(a, "verbose");
    rq_set_log(log_to_stderr, NULL);
    return -1;
}

const char *cmd_value(const cmd_args *a, const char *name) {
    for (int i = a->n_pairs - 1; i >= 0; --i) {
        if (strcmp(a->name[i], name) == 0) return a->value[i];
    }
    return NULL;
}

bool cmd_has(const cmd_args *a, const char *name) { return cmd_value(a, name) != NULL; }

bool cmd_int(const cmd_args *a, const char *name, int64_t lo, int64_t hi, int64_t fallback, int64_t *v) {
    const char *text = cmd_value(a, name);
    char *end;
    *v = fallback;
    if (!text) return true;
    errno = 0;
    long long x = strtoll(text, &end, 10);
    if (end == text || *end || errno || x < lo || x > hi) {
        fprintf(stderr, "requite: --%s %s: a whole number from %lld to %lld is wanted\n", name, text, (long long)lo,
                (long long)hi);
        return false;
    }
    *v = x;
    return true;
}

bool cmd_number(const cmd_args *a, const char *name, double lo, double hi, double fallback, double *v) {
    const char *text = cmd_value(a, name);
    char *end;
    *v = fallback;
    if (!text) return true;
    errno = 0;
    double x = strtod(text, &end);
    if (end == text || *end || errno || !(x >= lo && x <= hi)) {
        fprintf(stderr, "requite: --%s %s: a number from %g to %g is wanted\n", name, text, lo, hi);
        return false;
    }
    *v = x;
    return true;
}

/* ---- quantization options ---- */

static bool is_quant_key(const char *name) {
    for (int i = 0; rq_quant_key_at(i); ++i) {
        if (strcmp(rq_quant_key_at(i)->key, name) == 0) return true;
    }
    return false;
}

/* Texts from a config file: args point to them until the process ends. */
static char *config_text[2 * CMD_MAX_PAIRS];
static int n_config_text;

static const char *keep_text(char *text) {
    if (text && n_config_text < 2 * CMD_MAX_PAIRS) {
        config_text[n_config_text++] = text;
        return text;
    }
    free(text);
    return NULL;
}

static bool is_flag(const char *name, const cmd_flag *flags, int n) {
    for (int i = 0; i < n; ++i) {
        if (strcmp(flags[i].name, name) == 0) return true;
    }
    return false;
}

/* Put the pairs of a config file in front of the flags, so that flags win. */
static rq_status read_config(cmd_args *a, const char *path) {
    json_error_t where;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &where);
    if (!root && where.line < 1) return rq_fail(RQ_ERR_ARG, "--config: %s", where.text); /* it has the path */
    if (!root) return rq_fail(RQ_ERR_ARG, "--config %s: line %d: %s", path, where.line, where.text);
    rq_status status = RQ_OK;
    cmd_args flags = *a;
    const char *key;
    json_t *value;
    if (!json_is_object(root)) RQ_FAIL(RQ_ERR_ARG, "--config %s: a JSON object of option names is wanted", path);
    a->n_pairs = 0;
    json_object_foreach(root, key, value) {
        char *text = NULL;
        if (strcmp(key, "config") == 0 || !(is_quant_key(key) || is_flag(key, common_flags, N_COMMON) ||
                                            is_flag(key, a->spec->flags, a->spec->n_flags))) {
            RQ_FAIL(RQ_ERR_ARG, "--config %s: there is no option '%s' to set", path, key);
        }
        if (json_is_string(value)) {
            text = strdup(json_string_value(value));
        } else if (json_is_boolean(value)) {
            text = strdup(json_is_true(value) ? "true" : "false");
        } else if (json_is_number(value)) {
            text = json_dumps(value, JSON_ENCODE_ANY);
        }
        const char *kept = keep_text(text), *name = keep_text(strdup(key));
        if (!kept || !name) {
            RQ_FAIL(RQ_ERR_ARG, "--config %s: '%s' is neither a string, a number nor true/false", path, key);
        }
        if (strcmp(kept, "false") == 0 && !is_quant_key(key)) continue; /* a switch that is off */
        if (!push_pair(a, name, kept)) RQ_FAIL(RQ_ERR_ARG, "--config %s: too many options", path);
    }
    for (int i = 0; i < flags.n_pairs; ++i) {
        if (!push_pair(a, flags.name[i], flags.value[i])) RQ_FAIL(RQ_ERR_ARG, "too many options");
    }
done:
    json_decref(root);
    return status;
}

rq_status cmd_quant_options(rq_quant_opt *o, cmd_args *a) {
    rq_status status = RQ_OK;
    if (cmd_has(a, "config")) RQ_TRY(read_config(a, cmd_value(a, "config")));
    const char *name = cmd_value(a, "comp"), *preset = cmd_value(a, "preset");
    bool vptq = preset && strcmp(preset, "vptq") == 0;
    rq_comp comp = vptq ? RQ_COMP_GPTQ : RQ_COMP_QEP;
    if (name && !rq_comp_by_name(name, &comp)) {
        rq_quant_opt any;
        rq_quant_default(&any, comp);
        RQ_TRY(rq_quant_set(&any, "comp", name)); /* gives the sentence with the list */
    }
    rq_round round = RQ_ROUND_GRID;
    const char *round_name = cmd_value(a, "round");
    if (round_name && !rq_round_by_name(round_name, &round)) {
        rq_quant_default(o, comp);
        RQ_TRY(rq_quant_set(o, "round", round_name));
    }
    if (!preset || strcmp(preset, "best") == 0 || strcmp(preset, "default") == 0) {
        rq_quant_default_round(o, comp, round);
    } else if (strcmp(preset, "reference") == 0) {
        if (rq_round_is_book(round))
            RQ_FAIL(RQ_ERR_ARG, "--preset reference is of the grid; --round %s has none", round_name);
        rq_quant_reference(o, comp);
    } else if (vptq) {
        if (round_name && round != RQ_ROUND_VQ)
            RQ_FAIL(RQ_ERR_ARG, "--preset vptq is of --round vq, not of --round %s", round_name);
        rq_quant_vptq(o, comp);
    } else {
        RQ_FAIL(RQ_ERR_ARG, "--preset %s: it is vptq, reference, default or best", preset);
    }
    for (int i = 0; i < a->n_pairs; ++i) {
        if (is_quant_key(a->name[i]) && strcmp(a->name[i], "comp") != 0)
            RQ_TRY(rq_quant_set(o, a->name[i], a->value[i]));
    }
    RQ_TRY(rq_quant_check(o, 0));
done:
    return status;
}

json_t *cmd_quant_json(const rq_quant_opt *o) {
    json_t *j = json_object();
    for (int i = 0; rq_quant_key_at(i); ++i) {
        const rq_quant_key *k = rq_quant_key_at(i);
        char text[64];
        rq_quant_get(o, k->key, text, sizeof text);
        json_t *v = k->kind == 'e'   ? json_string(text)
                    : k->kind == 'b' ? json_boolean(strcmp(text, "true") == 0)
                    : k->kind == 'd' ? json_real(strtod(text, NULL))
                                     : json_integer(strtoll(text, NULL, 10));
        json_object_set_new(j, k->key, v);
    }
    return j;
}

/* ---- exit codes and output ---- */

int cmd_fail(rq_status status) {
    if (status == RQ_OK) return EXIT_OK;
    const char *text = rq_last_error()[0] ? rq_last_error() : rq_status_text(status);
    if (rq_rank(cmd_ranks()) > 0) { /* what all ranks run into is said by the first, which then ends them */
        sleep(1);
        fprintf(stderr, "requite: rank %d: %s\n", rq_rank(cmd_ranks()), text);
    } else {
        fprintf(stderr, "requite: %s\n", text);
    }
    switch (status) {
    case RQ_ERR_ARG: return EXIT_USAGE;
    case RQ_ERR_NOMEM: return EXIT_MEMORY;
    case RQ_ERR_INPUT:
    case RQ_ERR_UNSUPPORTED: return EXIT_INPUT;
    case RQ_ERR_CANCELLED: return EXIT_RESUMABLE;
    default: return EXIT_FAILED;
    }
}

int cmd_fail_input(rq_status status) {
    int code = cmd_fail(status);
    return status == RQ_ERR_IO ? EXIT_INPUT : code;
}

void cmd_print_json(json_t *object) {
    json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
    fputc('\n', stdout);
    json_decref(object);
}

/* ---- signals and progress ---- */

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}

void cmd_catch_signals(void) {
    struct sigaction action = {.sa_handler = on_signal,
                               .sa_flags = (int)SA_RESETHAND}; /* a second Ctrl-C ends at once */
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file-size limit becomes an error of write(), which has a sentence */
}

bool cmd_interrupted(void) { return interrupted != 0; }

rq_status cmd_progress_new(cmd_progress *p, const cmd_args *a, const char *what) {
    const char *how = cmd_value(a, "progress");
    *p = (cmd_progress){.started = rq_seconds(), .last_shown = -1e9, .what = what};
    if (!how || strcmp(how, "auto") == 0) {
        p->mode = isatty(STDERR_FILENO) ? 1 : 2;
    } else if (strcmp(how, "none") == 0) {
        p->mode = 0;
    } else if (strcmp(how, "tty") == 0) {
        p->mode = 1;
    } else if (strcmp(how, "plain") == 0) {
        p->mode = 2;
    } else if (strcmp(how, "json") == 0) {
        p->mode = 3;
    } else {
        return rq_fail(RQ_ERR_ARG, "--progress %s: it is auto, tty, plain, json or none", how);
    }
    return RQ_OK;
}

static void clock_text(char *out, size_t size, double seconds) {
    long s = (long)(seconds + 0.5);
    if (s >= 3600) {
        snprintf(out, size, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    } else {
        snprintf(out, size, "%ld:%02ld", s / 60, s % 60);
    }
}

bool cmd_progress_show(void *progress, double done_frac, const char *text) {
    cmd_progress *p = progress;
    double now = rq_seconds(), elapsed = now - p->started;
    static const double interval[] = {0, 0.2, 10, 1};
    if (p->mode != 0 && (now - p->last_shown >= interval[p->mode] || done_frac >= 1)) {
        p->last_shown = now;
        char spent[32], left[32] = "?";
        clock_text(spent, sizeof spent, elapsed);
        if (done_frac > 0.005) clock_text(left, sizeof left, elapsed * (1 - done_frac) / done_frac);
        if (p->mode == 3) {
            json_t *j = json_pack("{s:s, s:f, s:f, s:s}", "what", p->what, "done_frac", done_frac, "seconds", elapsed,
                                  "text", text);
            json_dumpf(j, stderr, JSON_COMPACT);
            fputc('\n', stderr);
            json_decref(j);
        } else if (p->mode == 1) {
            fprintf(stderr, "\r\033[K%s %3.0f%%  %s, %s left  %s", p->what, 100 * done_frac, spent, left, text);
        } else {
            fprintf(stderr, "%s %3.0f%%  %s, %s left  %s\n", p->what, 100 * done_frac, spent, left, text);
        }
    }
    return cmd_interrupted();
}

void cmd_progress_end(cmd_progress *p) {
    if (p->mode == 1) fprintf(stderr, "\r\033[K");
}
