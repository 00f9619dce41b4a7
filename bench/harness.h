/* SPDX-License-Identifier: Apache-2.0 */
/* What the benchmarks share: the machine, timing with spread, records and their comparison with an earlier run. */
#ifndef BENCH_HARNESS_H
#define BENCH_HARNESS_H

#include <jansson.h>

#include "common.h"

enum { BENCH_SCHEMA_VERSION = 1 };

typedef struct bench_machine {
    char cpu[128];    /* model name */
    char kernel[128]; /* operating system release */
    char git[64];     /* commit of the working directory, or "" */
    char date[16];    /* 2026-01-31 */
    int n_cores, n_threads;
    int64_t llc_bytes;  /* last-level cache */
    double load_before; /* 1-minute load average when the run began */
    double read_gbs;    /* measured now, with n_threads; see bench_measure_read */
} bench_machine;

/* Everything but read_gbs. Call rq_set_threads first. */
void bench_machine_look(bench_machine *m);
/* Streaming read of memory well beyond the cache by all threads: the best of several passes, GB/s (1e9). */
rq_status bench_measure_read(bench_machine *m);

typedef struct bench_times {
    int n;
    double med_us, p20_us, p80_us;
} bench_times;

/* What timing reads. BENCH_CPU is the time that this process was given, for one thread on a machine that others use: waiting
 * for a core does not count, but their use of caches and memory still does. */
typedef enum bench_clock { BENCH_WALL, BENCH_CPU } bench_clock;
void bench_set_clock(bench_clock clock);
double bench_seconds(void);

/* Calls fn(arg, i) with i counting up from 0, first untimed for a tenth of `seconds`, then timed one by one until
 * `seconds` have passed (at least min_samples, at most 4000). */
typedef void (*bench_fn)(void *arg, int64_t i);
void bench_time(bench_times *t, bench_fn fn, void *arg, double seconds, int min_samples);

/* Records are flat JSON objects in an array. Each gets the machine's fields too. */
void bench_record_machine(json_t *record, const bench_machine *m, const char *flags);
rq_status bench_write_json(const char *path, const json_t *records);
rq_status bench_write_csv(const char *path, const json_t *records);
/* The record of an earlier run that has the same values under keys[], or NULL. */
const json_t *bench_find(const json_t *records, const json_t *like, const char *const *keys, int n_keys);

/* The arguments as one line, for the records. */
void bench_join_flags(char *out, size_t size, int argc, char **argv);

/* Comma-separated list of integers in [min, max]; the count, or -1 when malformed. */
int bench_parse_ints(const char *text, int64_t min, int64_t max, int64_t *out, int max_n);

/* With --device cuda or sim among the arguments: replaces this program by the PROGRAM_cuda that was built for a GPU (gpu/) or for the simulator (sim/),
 * in the folder of this one; cuda takes the simulator's where there is no other. Returns 0 where there is nothing to hand over, 2 (with a sentence
 * to stderr) where that program was not built. */
int bench_hand_over(const char *program, char **argv);

#endif
