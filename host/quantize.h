/* SPDX-License-Identifier: Apache-2.0 */
/* Quantize a whole model: calibrate in two streams, block by block, and write the packed folder. docs/path.md walks through it. */
#ifndef RQ_QUANTIZE_H
#define RQ_QUANTIZE_H

#include "act_hadamard.h"
#include "calib_tokens.h"
#include "comp.h"
#include "forward.h"
#include "llama.h"
#include "ranks.h"

/* Called often; true asks to stop: the matrix at hand is finished and kept, and the call returns RQ_ERR_CANCELLED. */
typedef bool (*rq_progress_fn)(void *user, double done_frac, const char *text);

/* Calibration samples: n_samples windows of seq_len token ids, row-major. */
typedef struct rq_samples {
    int32_t *ids;
    int64_t n_samples, seq_len;
    int64_t n_found; /* windows that the text held */
} rq_samples;

/* From text, .jsonl (the string under `field` of each line) or .safetensors (an I32 or I64 tensor [n, len]). seq_len 0 means the
 * file's own length for ids and 2048 otherwise; n_samples 0 means all. More windows than wanted: they are taken at even steps
 * with an offset from the seed. The text is tokenized by the tokenizer of `model`. */
rq_status rq_samples_load(rq_samples *s, const char *path, const char *field, const rq_store *model, int64_t n_samples,
                          int64_t seq_len, uint64_t seed);
void rq_samples_free(rq_samples *s);

/* Fixed-width rows on disk, for activations: a temporary file in `dir` that vanishes with the process. Memory stays flat however
 * many samples there are; the page cache makes it quick when there is room. */
typedef struct rq_spill {
    int fd;
    int64_t width;
} rq_spill;
rq_status rq_spill_new(rq_spill *s, const char *dir, int64_t width);
rq_status rq_spill_write(const rq_spill *s, int64_t row0, int64_t n_rows, const float *rows);
rq_status rq_spill_read(const rq_spill *s, int64_t row0, int64_t n_rows, float *rows);
void rq_spill_free(rq_spill *s);

/* In what losses of different matrices are compared: as they are; over the size of the matrix's own output; or as the relative change of
 * the residual stream that they lead to (docs/methods.md, "Bit allocation"). */
typedef enum rq_bpw_loss { RQ_BPW_RESIDUAL, RQ_BPW_RELATIVE, RQ_BPW_ABSOLUTE } rq_bpw_loss;
bool rq_bpw_loss_by_name(const char *name, rq_bpw_loss *l);
const char *rq_bpw_loss_name(rq_bpw_loss l);

typedef enum rq_factors { RQ_FACTORS_NONE, RQ_FACTORS_SMOOTH, RQ_FACTORS_CROSS } rq_factors;

typedef struct rq_quantize_job {
    const char *model_path, *out_path;
    rq_quant_opt opt;
    const char *const *override_rules; /* "REGEX:key=value,key=value" on matrix names; the first that matches counts */
    int n_override_rules;
    const char *const *skip; /* REGEX: left as they are */
    int n_skip;
    rq_samples samples;
    int64_t skip_tokens; /* first tokens of each sample left out of the statistics */
    rq_token_weights token_weights;
    double token_min;   /* the least a token counts, in (0, 1] */
    const char *rotate; /* "none", "residual" or "full" */
    int hadamard[2];    /* full: order of the Hadamard matrix at the inputs of o and of down; 0: chosen, -1: none */
    rq_factors factors; /* of the columns of inputs (docs/methods.md, "Column factors") */
    double factor_a, factor_b;
    const char *device; /* "cpu" (as NULL), "cuda" or "cuda:N" */
    bool bf16; /* on a GPU: inputs and weights are rounded to bfloat16 for the forward pass and Gram matrices */
    unsigned factor_stages;  /* bit s: stage s has them; 0: all have */
    double bpw;              /* above 0: one of the bank's settings for each matrix, so many bits a weight in all */
    const char *const *bank; /* "key=value,key=value" each; without one: that of the rounder */
    int n_bank;
    rq_bpw_loss bpw_loss;
    uint64_t seed;
    int64_t max_ram_bytes; /* 0: no limit */
    bool resume, force, dry_run;
    int dry_ranks; /* dry_run: as if there were so many; 0: as many as there are */
    const char *devices,
        *rates; /* dry_run: what it takes on "8xH100-80G", a rank each, by the rates of a file (NULL: nominal). Of the model config.json
                                    is read alone; samples may have sizes without ids */
    const rq_ranks
        *ranks; /* NULL: one process does it all. Of several, each needs model_path; out_path is rank 0's to write */
    const char *options_json; /* the command's resolved options, for report.json and the fingerprint */
    rq_progress_fn progress;
    void *user;
} rq_quantize_job;

/* What a run on given devices will take (quantize_cost.h): seconds and operations, by stage; bytes. */
typedef enum rq_cost_stage {
    RQ_COST_FORWARD,
    RQ_COST_GRAM,
    RQ_COST_FACTOR,
    RQ_COST_TERMS,
    RQ_COST_SWEEP,
    RQ_COST_REFINE,
    RQ_COST_HOST, /* what the CPU does around the device's operations; its "operations" are entries of H and W */
    RQ_COST_NET,  /* bytes between ranks */
    RQ_COST_DISK, /* bytes of spilled activations, and of the weights once */
    RQ_COST_STAGES
} rq_cost_stage;
extern const char *const rq_cost_names[RQ_COST_STAGES];
typedef struct rq_cost {
    int n_devices; /* 0: no cost was asked for */
    char device[32];
    bool measured; /* the rates */
    double work[RQ_COST_STAGES], seconds[RQ_COST_STAGES], total;
    rq_cost_stage most;               /* of the stages, the one with the most seconds */
    double device_bytes, device_room; /* needed on each, there on each; room 0: not known */
    double bus_bytes;                 /* to and from all devices */
    double host_bytes;                /* of all ranks together */
} rq_cost;

typedef struct rq_quantize_report {
    int64_t n_matrices, n_weights;
    double bpw;
    int64_t out_bytes, ram_bytes, spill_bytes;
    double flops, seconds;
    int n_ranks;
    double flops_rank; /* of the rank that has most: a share of the tokens and of H, and whole sets of each stage */
    int64_t n_resumed; /* matrices taken from an interrupted run */
    rq_cost cost;      /* with job->devices */
} rq_quantize_report;

rq_status rq_quantize_model(const rq_quantize_job *job, rq_quantize_report *report);

/* ---- pieces of quantize.c, shared by its files ---- */

/* What is done with one matrix of the model. */
typedef struct rq_matrix_plan {
    char name[96]; /* "model.layers.0.self_attn.q_proj" */
    bool quantized;
    bool pinned; /* an override chose its options */
    rq_quant_opt opt;
    int64_t n_out, n_in;
    int lead, n_set;     /* matrices of a block that share codebooks, or on a GPU one sweep, form a set: the first one's
                        index, and how many they are */
    int hadamard;        /* format w4a8: what its input goes through when the model runs */
    bool wants_in_scale; /* it will have ... */
    const float *in_scale; /* ... these [n_in] (the quantizer's `factors`) once they are known */
} rq_matrix_plan;

/* The stages of a block: stage s has the matrices rq_stage_first[s] up to rq_stage_first[s + 1], with one input. */
enum { RQ_N_STAGES = 4 };
extern const int rq_stage_first[RQ_N_STAGES + 1];

typedef struct rq_quantizer {
    const rq_quantize_job *job;
    rq_device *device; /* NULL: the CPU */
    rq_model *model;
    rq_rotation *rotation, *head_rotation; /* NULL unless rotated; the model's own pointer is set to the first */
    rq_rotation *online[2];                /* Hadamard matrices at the inputs of o and down, or NULL; for weights ... */
    rq_hadamard *act_online[2];            /* ... and for activations */
    float *factors;                        /* column factors of all stages, see rq_stage_factors; NULL without them */
    rq_matrix_plan *plan;                  /* [n_layer][RQ_N_LINEARS] */
    char *work_dir;                        /* OUT.partial */
    char *allocation;                      /* JSON: what --bpw measured and chose; NULL without it */
    double flops_done, flops_total;
    int64_t n_resumed;
} rq_quantizer;

/* Weights of one matrix in the basis it is quantized in: norm gains folded and rotations applied when there is a rotation, and what its
 * input goes through undone. */
rq_status rq_rotated_matrix(const rq_quantizer *z, int64_t layer, int which, float *w);
rq_status rq_rotated_bias(const rq_quantizer *z, int64_t layer, int which, float *bias);
/* The gains of a block's norms in the basis that is quantized, with the column factors of the matrices behind them. Either may be NULL. */
void rq_block_gains(const rq_quantizer *z, int64_t layer, float *norm1, float *norm2);

/* Work for one matrix once its H is there. */
double rq_plan_flops(const rq_matrix_plan *p);

/* Whether anything in the plan needs calibration. */
bool rq_plan_needs_calibration(const rq_quantizer *z);

/* Forward work per token of what the pass of a stage applies (stage 4: the down projection), for one stream. */
double rq_stage_flops(const rq_config *cfg, int stage, int64_t seq_len);

/* The line of quantize_log.jsonl for a matrix that became q. whw 0: losses were not measured. */
typedef struct rq_matrix_losses {
    double sym, asym, whw; /* as rq_layer_loss gives them, in the basis that is quantized */
    double bpw, seconds;
} rq_matrix_losses;
void rq_matrix_log(char *out, size_t size, const rq_matrix_plan *p, const rq_prep *prep, const rq_matrix_losses *l,
                   const float *w, const float *q);

/* Calibrate and quantize every block; each finished matrix is a file in work_dir. */
rq_status rq_quantize_blocks(rq_quantizer *z);

/* work_dir/<layer>.<lead>.safetensors: what became of the matrices of a set. */
char *rq_part_path(const rq_quantizer *z, int64_t layer, int lead);
/* r and log_line of the set's matrices in their order. */
rq_status rq_part_save(const rq_quantizer *z, int64_t layer, int lead, const rq_quant_result *r,
                       const char *const *log_line);
/* The reconstructed weights of one matrix of a saved part; *found is false when there is none. A damaged one is an error. */
rq_status rq_part_load(const rq_quantizer *z, int64_t layer, int which, float *w, bool *found);

/* Calibrate the full-precision model alone: fn is called once for every stage of every block with what was gathered of the stage's input and
 * the block's matrices in the basis they are quantized in. GRAM_PER_RESIDUAL: inputs of o and down are divided by the norm of the residual
 * stream with their output added, token by token, so that tr(W H W^T) sums relative changes of it. */
typedef enum rq_gather { RQ_GATHER_GRAM, RQ_GATHER_GRAM_PER_RESIDUAL, RQ_GATHER_MAX } rq_gather;
typedef struct rq_gathered {
    const double *h;           /* GRAM: H of the input */
    const float *max;          /* MAX: the largest size in each column */
    const rq_forward_ops *row; /* for row->loss(run, ...) */
    void *run;
} rq_gathered;
typedef rq_status (*rq_stage_fn)(void *arg, int64_t layer, int stage, const rq_gathered *of, float *const *w);
rq_status rq_calibrate_stages(rq_quantizer *z, rq_gather what, rq_stage_fn fn, void *arg);

/* What inputs go through before they are quantized (quantize_inputs.c). The plan gets the Hadamard matrices of --rotate full, or says which
 * of its matrices cannot have what was asked for; then rq_plan_factors measures the column factors. work_dir/factors.safetensors keeps
 * them for an interrupted run. */
rq_status rq_plan_inputs(rq_quantizer *z);
rq_status rq_plan_factors(rq_quantizer *z);
void rq_inputs_free(rq_quantizer *z);
/* [width of the stage's input], or NULL. Those of stages 0 and 2 are part of the gain before them; those of 1 and 3 are in_scale of o and down. */
const float *rq_stage_factors(const rq_quantizer *z, int64_t layer, int stage);
/* How the running model makes the inputs of a matrix from what its block computes, but for act8; and that, done to x[n_tok][width] in fp32. */
rq_input rq_input_of(const rq_quantizer *z, int64_t layer, int which);
void rq_input_apply(const rq_input *how, float *x, int64_t n_tok, int64_t width);
/* A random sign that goes before a Hadamard matrix and is folded into the weights: of row i of v or up, of column i of o or down. 1 for other
 * matrices, and where o or down has no Hadamard matrix. */
double rq_input_sign(const rq_quantizer *z, int64_t layer, int which, int64_t i);

/* Which matrices share codebooks, from their options. */
void rq_plan_make_sets(rq_quantizer *z);
/* Bits of a matrix, by the formats of docs/formats.md, when n_set of them share a codebook. */
double rq_plan_bits(const rq_matrix_plan *p, int n_set);
/* job->bpw: measure the bank's settings, choose (allocate.h), and put the choice into the plan. work_dir/allocation.json keeps it
 * for an interrupted run. */
rq_status rq_plan_allocate(rq_quantizer *z);
/* The settings of job->bank, or the rounder's own; i counts from 0, NULL past the end. */
const char *rq_bank_setting(const rq_quantize_job *job, int i);

/* config.json, the tokenizer and report.json into dir. plain: other readers of compressed-tensors could open all matrices, if the options allow it. */
rq_status rq_write_beside(const rq_quantizer *z, const char *dir, bool plain, const rq_quantize_report *r);
/* Put the parts and everything else together as OUT. */
rq_status rq_write_output(const rq_quantizer *z, rq_quantize_report *report);

/* True when stop was asked for. */
bool rq_quantizer_progress(rq_quantizer *z, double flops, const char *text);

#endif
