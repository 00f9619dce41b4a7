/* SPDX-License-Identifier: Apache-2.0 */
/* What the core files share and the families do not need: modules, the parser's tables, workers, shadow memory. */
#ifndef RQ_GPUSIM_CORE_H
#define RQ_GPUSIM_CORE_H
#include <pthread.h>
#include <stdarg.h>

#include "sim.h"

/* ------------------------------------------------------------------ modules */
typedef struct gs_symbol { /* a variable or parameter and where it lives */
    char *name;
    gs_space space;
    uint64_t addr; /* host address (global, const), shared address, offset in the local frame or the parameter block */
    size_t bytes;
    bool dynamic; /* extern __shared__: the address is known when the kernel is complete */
} gs_symbol;

typedef struct gs_loc { /* one .loc: where the source has it; parent: the place it was inlined into */
    int file, line, column, parent;
} gs_loc;

typedef struct gs_function { /* a .func, expanded at each call */
    char *name;
    const char *returns, *params; /* text of the parameter lists, NULL when empty */
    const char *body;             /* at its "{"; NULL: only declared */
    int line;                     /* of the parameter list (params) in the text */
    int body_line;
    bool open; /* being expanded: recursion is refused */
} gs_function;

typedef struct gs_constant_fix { /* constants that hold the address of dynamic shared memory */
    uint32_t off;
    uint8_t size;
    uint64_t add;
} gs_constant_fix;

struct gs_kernel {
    gs_module *module;
    char *name;
    gs_symbol *param;
    int n_param;
    uint32_t param_bytes;
    gs_ins *code;
    int n_code, cap_code;
    uint8_t *constant;
    size_t n_constant, cap_constant;
    gs_constant_fix *fix;
    int n_fix;
    gs_symbol *shared_static; /* __shared__ variables, one per name and function */
    int n_shared_static;
    uint32_t reg_bytes, shared_end, dynamic_align, local_bytes;
    gs_loc *loc;
    int n_loc;
    gs_kernel_info info;
    char *error;      /* why it cannot run: NULL, or the sentence of the parser */
    bool ordered;     /* blocks must run one after the other for the same results: see parse_*.c */
    bool grid_sync;   /* reads the grid workspace: needs all blocks resident */
    bool uses_shared; /* statically or dynamically */
};

struct gs_module {
    char *name, *text;
    gs_kernel **kernel;
    int n_kernel;
    gs_symbol *global;
    int n_global;
    gs_function *function;
    int n_function;
    char **file; /* .file: source names by number */
    int n_file;
    const gs_row *const *tables; /* the families for this processor */
    int ptx_version, target;
};

/* ------------------------------------------------------------------ the parser, as the decoder sees it */
typedef struct gs_regdecl {
    char name[64];
    uint8_t type;
    uint32_t off;
    int count; /* "%r<n>": n, else -1 */
} gs_regdecl;

typedef struct gs_parser {
    const char *p;
    int line, loc;
    gs_module *m;
    gs_kernel *k;
    gs_decoder d;
    gs_regdecl *reg; /* a stack: scopes cut it back */
    int n_reg, cap_reg;
    gs_symbol *sym; /* likewise */
    int n_sym, cap_sym;
    struct gs_label *label;
    int n_label, cap_label;
    struct gs_fixup *fixup;
    int n_fixup, cap_fixup;
    int scope; /* number of the innermost open scope */
    int n_scope;
    gs_function *in; /* being expanded, NULL in the kernel itself */
    jmp_buf stop;
    char *text; /* one statement */
    size_t cap_text;
} gs_parser;

bool gs_find_register(gs_parser *p, const char *name, gs_opnd *o, gs_type *type);
const gs_symbol *gs_find_symbol(gs_parser *p, const char *name);
uint32_t gs_constant_vector(gs_kernel *k, uint64_t lo, uint64_t hi, uint8_t bytes);
void gs_decode(gs_parser *p, char *statement); /* appends one instruction (or what a call expands to) */
void gs_parse_call(gs_parser *p, gs_ins *i);
void gs_branch_to(gs_parser *p, int pc, const char *label);
void gs_branch_table(gs_parser *p, int pc, const char *table);
gs_ins *gs_new_ins(gs_parser *p);
_Noreturn void gs_parse_die(gs_parser *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
void gs_set_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
const gs_row *const *gs_tables(void);
void *gs_grow(void *array, int n, int *cap, size_t each); /* room for one more */
char *gs_strdup_range(const char *a, const char *b);

/* Special registers: vectors of 32 lanes behind gs_warp.base[BASE_SPECIAL]. */
int gs_special_find(const char *name); /* -1: none; the vector lies at 128 * index */
enum { GS_SPECIALS = 64 };
void gs_special_fill(gs_warp *w, const gs_launch_opt *opt, uint64_t grid_workspace);

/* calls that the runtime provides: vprintf, __assertfail */
gs_exec_fn gs_builtin_call(const char *name);

/* ------------------------------------------------------------------ running */
typedef struct gs_pc_counts { /* of one instruction, by one worker */
    uint64_t exec, lanes, waves, ideal;
} gs_pc_counts;

typedef struct gs_finding {
    char kind[48];
    gs_result fault;
    int pc, other_pc;
    uint64_t block; /* the first block that has it */
    int thread;
    uint64_t order; /* place of its cluster in the run's order */
    uint64_t times;
    char text[400];
} gs_finding;

typedef struct gs_launch_state {
    gs_kernel *k;
    const gs_launch_opt *opt;
    gs_dim3 cluster;
    uint64_t n_cluster, next; /* clusters, and the first in order that is not yet begun */
    pthread_mutex_t lock;
    unsigned check;
    bool reverse, stop;
    uint64_t max_ins;
    uint8_t *param;
    uint64_t *workspace; /* of cooperative groups' grid barrier */
    gs_finding *finding;
    int n_finding, cap_finding;
    gs_result worst;
    uint64_t stop_order; /* the place in order of the cluster whose stop counts: the first */
    gs_pc_counts *pc;
    gs_counts counts;
} gs_launch_state;

typedef struct gs_worker {
    gs_launch_state *launch;
    gs_counts counts;
    gs_pc_counts *pc;
    gs_finding *finding;
    int n_finding, cap_finding;
    jmp_buf stop;
    uint64_t ins;                     /* executed so far */
    uint64_t progress;                /* counts what can end somebody's wait: stores, arrivals, exits */
    uint64_t seen_progress, seen_ins; /* progress last seen, and when */
    uint64_t order;                   /* of the cluster being run */
    bool together;                    /* several clusters resident at once, on this one thread */
    uint64_t range_start, range_end;  /* the last global allocation hit */
    struct gs_cluster **gang;
    int n_gang, cap_gang;
    uint32_t epoch; /* of shared memory's shadow */
} gs_worker;

typedef struct gs_cluster { /* the blocks of one cluster: run together by one worker */
    gs_block *block;
    int n_block, n_agent;
    uint32_t generation;    /* of barrier.cluster */
    uint32_t *join, *pjoin; /* clocks that arrived */
    uint32_t *join_done, *pjoin_done;
    bool busy;
    uint64_t number;
} gs_cluster;

/* ------------------------------------------------------------------ shadow of shared memory (check_race.c) */
typedef struct gs_shadow {
    uint32_t epoch;      /* of the block in this slot; another value: nothing is known */
    uint32_t wclk, rclk; /* clock of the last write and read, 0: none */
    uint32_t wsub, rsub, wins;
    uint16_t wagent, ragent;
    uint8_t wlane, rlane; /* 255: several lanes */
    uint8_t init, wkind;  /* init: one bit a byte; wkind: 1 atomic */
    int32_t wpc, rpc;
    uint32_t readers, split, sync; /* 1 + index into the block's pools, 0: none */
} gs_shadow;

void gs_race_block(gs_block *b, int n_agent); /* (re)start a block */
void gs_race_free(gs_block *b);
typedef struct gs_touch { /* one access */
    int agent, lane;
    gs_access access;
    bool same_value; /* a write that changes nothing */
} gs_touch;
void gs_race_touch(gs_warp *w, gs_block *owner, uint32_t addr, uint32_t n, gs_touch t);
void gs_clock_barrier(gs_block *b, int barrier);
void gs_clock_arrive(gs_warp *w, int barrier); /* bar.arrive: leaves its clock behind and goes on */
void gs_clock_sync_word(gs_warp *w, gs_block *owner, uint32_t addr); /* an atomic: acquire and release */
void gs_clock_release(gs_warp *w, uint32_t *vc, uint32_t *pvc);      /* join the warp's clock into these, and tick */
void gs_clock_acquire(gs_warp *w, const uint32_t *vc, const uint32_t *pvc);
void gs_proxy_fence(gs_warp *w);

/* The block that owns a shared address, and the address inside it; NULL after a finding. */
gs_block *gs_shared_owner(gs_warp *w, uint32_t addr, uint32_t *inside, int lane);
/* As gs_address, for a store whose value is known. */
uint8_t *gs_address_store(gs_warp *w, gs_space space, uint64_t addr, uint32_t n, int lane, const void *value);
bool gs_mem_check(gs_worker *wk, uint64_t addr, uint64_t n); /* quick bounds check of device memory */
void gs_mem_explain(uint64_t addr, uint64_t n, char *text, size_t size);

void gs_barrier_leave(gs_block *b);                                    /* a warp ended: barriers may now be complete */
void gs_describe(const gs_kernel *k, int pc, char *text, size_t size); /* "PTX line 12 (a.cu:34)" */
gs_result gs_report_launch(gs_launch_state *l, gs_worker *wk,
                           int n); /* merge, print the findings, write the JSON line */

/* hooks of families */
void gs_wgmma_guard(gs_warp *w, const gs_ins *i);
void gs_wgmma_exit(gs_warp *w); /* of every warp that ends */
void gs_wgmma_free(gs_warp *w);
void gs_bulk_settle(gs_block *b, uint32_t mbarrier);
void gs_bulk_free(gs_warp *w);
void gs_bulk_exit(gs_warp *w); /* of every warp that ends */
void gs_mbarrier_complete_tx(gs_block *b, uint32_t addr, uint32_t bytes, gs_warp *issuer);
void gs_async_block_start(gs_block *b);
void gs_async_block_free(gs_block *b);
void gs_cpasync_exit(gs_warp *w);
void gs_cluster_barrier_check(gs_cluster *c);                       /* op_sync.c: complete it if nobody is missing */
bool gs_barrier_arrive(gs_warp *w, const gs_ins *i, uint32_t mask); /* the warp as a whole; true: it goes on at once */
uint32_t gs_lane_value(const gs_warp *w, const gs_opnd *o, uint32_t mask); /* of the first lane */
void gs_make_cluster(gs_worker *wk, gs_cluster *c);
void gs_free_cluster(gs_cluster *c);
void *gs_work(void *worker);
void gs_barrier_vote(gs_warp *w, const gs_ins *i, uint32_t mask, gs_barrier *at);

#endif
