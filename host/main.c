/* SPDX-License-Identifier: Apache-2.0 */
/* The command: a table of subcommands. */
#include "cmd.h"

typedef struct subcommand {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *about;
} subcommand;

static const subcommand subcommands[] = {
    {"quantize", cmd_quantize, "quantize a model: calibrate, compensate, round, pack, write"},
    {"tune", cmd_tune, "train the scales, norms and codebooks of a quantized model against the original"},
    {"convert", cmd_convert, "a packed model in another tool's layout, or another tool's in ours"},
    {"eval", cmd_eval, "perplexity on a text; KL divergence and agreement with a reference"},
    {"generate", cmd_generate, "continue a prompt"},
    {"tokenize", cmd_tokenize, "text to token ids and back"},
    {"inspect", cmd_inspect, "tensors, formats, bits per weight, use of codes"},
    {"verify", cmd_verify, "decode everything and check it; compare with the original"},
    {"layer", cmd_layer, "quantize one matrix from its weights and Gram matrices"},
};
enum { N_SUBCOMMANDS = sizeof subcommands / sizeof *subcommands };

static void help(FILE *to) {
    fprintf(
        to,
        "requite %s: quantize language models below four bits and run them.\n\nusage: requite COMMAND [options]\n\n",
        rq_version());
    for (int i = 0; i < N_SUBCOMMANDS; ++i) fprintf(to, "  %-10s %s\n", subcommands[i].name, subcommands[i].about);
    fprintf(to, "\n`requite COMMAND --help` lists a command's options.\n"
                "Exit codes: 0 done, 1 failed, 2 usage, 3 out of memory or over budget, 4 bad input, 75 interrupted "
                "and resumable.\n");
}

/* A full disk or a closed pipe behind stdout shows only when the buffer is written. */
static int check_output(int code) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    fprintf(stderr, "requite: the output could not be written\n");
    return code == EXIT_OK ? EXIT_FAILED : code;
}

static int run(int argc, char **argv) {
    if (argc < 2) {
        help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        help(stdout);
        return check_output(EXIT_OK);
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("requite %s\n", rq_version());
        return check_output(EXIT_OK);
    }
    for (int i = 0; i < N_SUBCOMMANDS; ++i) {
        if (strcmp(argv[1], subcommands[i].name) == 0) {
            cmd_catch_signals();
            return check_output(subcommands[i].run(argc - 1, argv + 1));
        }
    }
    fprintf(stderr, "requite: no command '%s'; `requite --help` lists them\n", argv[1]);
    return EXIT_USAGE;
}

int main(int argc, char **argv) {
    if (!cmd_ranks_start(&argc, &argv)) return EXIT_FAILED;
    int code = run(argc, argv);
    cmd_ranks_end(code);
    return code;
}
