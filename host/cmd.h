/* SPDX-License-Identifier: Apache-2.0 */
/* The command `requite`: what its subcommands share. Each subcommand is one cmd_<name>.c; main.c holds their table. */
#ifndef RQ_CMD_H
#define RQ_CMD_H

#include <jansson.h>

#include "comp.h"
#include "ranks.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_MEMORY = 3, EXIT_INPUT = 4, EXIT_RESUMABLE = 75 };

typedef struct cmd_flag {
    const char *name; /* without dashes */
    char letter;      /* 0: none */
    const char *arg;  /* NULL: a switch */
    const char *help;
} cmd_flag;

typedef struct cmd_spec {
    const char *usage; /* "quantize MODEL OUT [options]" */
    const char *about; /* a paragraph */
    const cmd_flag *flags;
    int n_flags;
    bool quant_options; /* takes every option of rq_quant_key_at() too */
    int min_args, max_args;
} cmd_spec;

#define CMD_MAX_PAIRS 256

typedef struct cmd_args {
    const char *name[CMD_MAX_PAIRS], *value[CMD_MAX_PAIRS]; /* flags in the order given; a switch has value "true" */
    int n_pairs;
    const char *arg[8]; /* positional */
    int n_args;
    const cmd_spec *spec; /* what the flags were parsed by */
} cmd_args;

/* Fill args from the command line. Returns -1 to go on, or the exit code (help was printed, or usage was wrong). Handles the
 * flags every subcommand has: --help --json --threads --progress --verbose. */
int cmd_parse(cmd_args *a, int argc, char **argv, const cmd_spec *spec);
const char *cmd_value(const cmd_args *a, const char *name); /* the last one given, or NULL */
bool cmd_has(const cmd_args *a, const char *name);
/* A whole number or a number in [lo, hi]; fallback when the flag is absent. False after printing what is wrong. */
bool cmd_int(const cmd_args *a, const char *name, int64_t lo, int64_t hi, int64_t fallback, int64_t *v);
bool cmd_number(const cmd_args *a, const char *name, double lo, double hi, double fallback, double *v);

/* Preset, compensator, then everything else: from --config (a JSON object of the same keys) and then from flags. Other keys of
 * the file are appended to args as if they had been flags given first. RQ_ERR_ARG with a sentence. */
rq_status cmd_quant_options(rq_quant_opt *o, cmd_args *a);
/* All options as an object: {"comp": "gptaq", "bits": 3, ...}. */
json_t *cmd_quant_json(const rq_quant_opt *o);

/* Print "requite: sentence" to stderr and give the exit code for the status. */
int cmd_fail(rq_status status);
/* The same when opening an input failed: a file that cannot be read is bad input (4). */
int cmd_fail_input(rq_status status);
/* Print a JSON object on stdout and free it. */
void cmd_print_json(json_t *object);

/* Progress on stderr: a line that is rewritten on a terminal, plain lines otherwise, JSON lines, or nothing. */
typedef struct cmd_progress {
    int mode; /* 0 none, 1 tty, 2 plain, 3 json */
    double started, last_shown;
    const char *what;
} cmd_progress;
rq_status cmd_progress_new(cmd_progress *p, const cmd_args *a, const char *what);
/* rq_progress_fn: returns true when an interrupt was asked for. done_frac in 0..1. */
bool cmd_progress_show(void *progress, double done_frac, const char *text);
void cmd_progress_end(cmd_progress *p);

/* Ctrl-C and SIGTERM set a flag that progress callbacks hand on. */
void cmd_catch_signals(void);
bool cmd_interrupted(void);

/* Ranks that mpirun or Slurm started (cmd_ranks.c). start: false after printing why not. end: before the process ends with code. NULL from
 * cmd_ranks: this process is alone. threads: what each is to use unless --threads says so. */
bool cmd_ranks_start(int *argc, char ***argv);
void cmd_ranks_end(int code);
const rq_ranks *cmd_ranks(void);
int cmd_ranks_threads(void);

int cmd_layer(int argc, char **argv);
int cmd_quantize(int argc, char **argv);
int cmd_convert(int argc, char **argv);
int cmd_tune(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_verify(int argc, char **argv);

#endif
