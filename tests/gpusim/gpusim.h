/* SPDX-License-Identifier: Apache-2.0 */
/* gpusim: runs the PTX that nvcc emits on the CPU, one warp (32 lanes) per step, and checks every access.
 *
 *   gs_load    PTX text -> module              parse_*.c, decode.c
 *   gs_launch  kernel, grid, arguments -> run  exec.c, op_*.c (one family of opcodes a file)
 *   findings   what was wrong, and where       check_*.c, report.c
 *   counts     per launch                      count.c
 *
 * The stand-in for libcudart (rt_*.c) is built on these calls; docs/testing_cuda.md says what all of it proves. */
#ifndef RQ_GPUSIM_H
#define RQ_GPUSIM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct gs_module gs_module;
typedef struct gs_kernel gs_kernel;
typedef struct gs_dim3 {
    uint32_t x, y, z;
} gs_dim3;

/* ---- modules. gs_load copies the text. NULL on an error: gs_error() has the sentence, with the PTX line. */
gs_module *gs_load(const char *ptx, const char *name);
void gs_unload(gs_module *m);
const char *gs_error(void); /* of this thread */
gs_kernel *gs_module_kernel(gs_module *m, const char *name);
/* A module variable (.global, .const): its address (device memory) and size. NULL when there is none. */
void *gs_module_symbol(gs_module *m, const char *name, size_t *bytes);
const char *gs_kernel_name(const gs_kernel *k);

typedef struct gs_kernel_info {
    size_t static_shared_bytes, param_bytes, local_bytes; /* local: per thread */
    uint32_t n_param;
    uint32_t max_threads;            /* .maxntid product, or 1024 */
    uint32_t required[3];            /* .reqntid, 0 where absent */
    uint32_t cluster[3];             /* .reqnctapercluster, 0 where absent */
    uint32_t min_blocks;             /* .minnctapersm */
    int ptx_version, binary_version; /* 90 */
} gs_kernel_info;
void gs_kernel_describe(const gs_kernel *k, gs_kernel_info *info);
void gs_kernel_param(const gs_kernel *k, uint32_t index, size_t *offset, size_t *bytes);

/* ---- device memory. Freed memory is kept aside for a while, so that its late use is seen. */
void *gs_mem_alloc(size_t bytes);            /* 256-byte aligned, filled with 0xA5; NULL when there is none */
bool gs_mem_free(void *p);                   /* false: not the start of a live allocation (a finding is reported) */
bool gs_mem_register(void *p, size_t bytes); /* host memory that the device may touch: pinned, symbols */
void gs_mem_unregister(void *p);
/* The live allocation holding [p, p + n): its start and size; false when there is none. */
bool gs_mem_find(const void *p, size_t n, void **start, size_t *bytes);
bool gs_mem_is_freed(const void *p); /* freed, and still kept */
size_t gs_mem_in_use(void);
int gs_mem_report_leaks(void); /* a finding for each allocation still live; returns how many */

/* ---- launch */
typedef struct gs_launch_opt {
    gs_dim3 grid, block, cluster; /* cluster {0,0,0}: the kernel's own, or 1 */
    size_t dynamic_shared_bytes;
    bool cooperative;       /* all blocks resident together */
    void **args;            /* one pointer per parameter */
    const void *arg_buffer; /* or the packed parameter block */
} gs_launch_opt;

/* Counts of one launch. Warp instructions by class, memory traffic, tensor core work. */
enum gs_class {
    GS_C_INT,
    GS_C_LOGIC,
    GS_C_FLOAT,
    GS_C_DOUBLE,
    GS_C_HALF,
    GS_C_CVT,
    GS_C_MOVE,
    GS_C_SFU,
    GS_C_COMPARE,
    GS_C_LD_GLOBAL,
    GS_C_ST_GLOBAL,
    GS_C_LD_SHARED,
    GS_C_ST_SHARED,
    GS_C_LOCAL,
    GS_C_PARAM,
    GS_C_ATOMIC,
    GS_C_MATRIX, /* ldmatrix, stmatrix */
    GS_C_ASYNC,  /* cp.async, bulk copies, mbarrier */
    GS_C_MMA,
    GS_C_WGMMA,
    GS_C_SHUFFLE,
    GS_C_VOTE,
    GS_C_BARRIER,
    GS_C_FENCE,
    GS_C_BRANCH,
    GS_C_OTHER,
    GS_N_CLASS
};
extern const char *const gs_class_name[GS_N_CLASS];

typedef struct gs_counts {
    uint64_t warp_ins, lane_ins, by_class[GS_N_CLASS];
    uint64_t ld_requests, ld_bytes, ld_sectors; /* global: warp requests, bytes asked for, 32-byte sectors touched */
    uint64_t st_requests, st_bytes, st_sectors;
    uint64_t bulk_bytes;                       /* moved by bulk and tensor copies, both ways */
    uint64_t shared_ld_waves, shared_ld_ideal; /* wavefronts, and how many without a bank conflict */
    uint64_t shared_st_waves, shared_st_ideal;
    uint64_t mma, wgmma;          /* warp instructions; wgmma counts once a warp */
    uint64_t mma_macs;            /* multiply-adds of both */
    uint64_t barriers, divergent; /* block barriers completed; branches that split a warp */
    uint64_t blocks, findings;
} gs_counts;

typedef enum gs_result {
    GS_OK = 0,
    GS_FINDING, /* ran to the end or was stopped, with findings that a GPU would not report */
    GS_FAULT_ADDRESS,
    GS_FAULT_MISALIGNED,
    GS_FAULT_TRAP,
    GS_FAULT_ASSERT,
    GS_FAULT_ILLEGAL,
    GS_FAULT_DEADLOCK,
    GS_BAD_LAUNCH /* sizes, limits: gs_error() says which */
} gs_result;

gs_result gs_launch(gs_kernel *k, const gs_launch_opt *opt, gs_counts *counts);

/* ---- what is checked and reported. From the environment at first use (report.c): GPUSIM_CHECK, GPUSIM_THREADS,
 * GPUSIM_JSON, GPUSIM_REVERSE. */
enum {
    GS_CHECK_BOUNDS = 1,
    GS_CHECK_RACES = 2,
    GS_CHECK_UNINIT = 4,
    GS_CHECK_TRAFFIC = 8,
    GS_CHECK_LEAKS = 16,
    GS_CHECK_PROXY = 32,
    GS_CHECK_ALL = 63
};
typedef struct gs_settings {
    unsigned check;
    int threads;           /* of the host, blocks are shared out over them */
    bool reverse;          /* run the warps of a block, and the blocks, last first: other order, same results */
    const char *json;      /* a file that gets one JSON line per launch, or NULL */
    uint64_t max_warp_ins; /* of one launch, after which it counts as hung */
} gs_settings;
gs_settings *gs_settings_get(void);

int gs_findings(void);        /* distinct findings so far in this process */
void gs_findings_reset(void); /* forget them (tests) */
/* A test takes the findings as text instead of letting them go to stderr. */
void gs_findings_sink(void (*sink)(void *user, const char *kind, const char *text), void *user);
/* A finding of the host side: "device memory", "stream"... */
void gs_find_host(const char *kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
