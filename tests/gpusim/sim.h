/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the simulator: what the files of gpusim share. A register is a vector of 32 lanes in memory; an instruction is a
 * function over such vectors under a mask of active lanes. */
#ifndef RQ_GPUSIM_SIM_H
#define RQ_GPUSIM_SIM_H
#include <setjmp.h>
#include <string.h>

#include "gpusim.h"

/* ------------------------------------------------------------------ types of PTX */
typedef enum gs_type {
    T_NONE,
    T_PRED,
    T_B8,
    T_U8,
    T_S8,
    T_E4M3,
    T_E5M2,
    T_B16,
    T_U16,
    T_S16,
    T_F16,
    T_BF16,
    T_E4M3X2,
    T_E5M2X2,
    T_B32,
    T_U32,
    T_S32,
    T_F32,
    T_TF32,
    T_F16X2,
    T_BF16X2,
    T_U8X4,
    T_S8X4,
    T_U16X2,
    T_S16X2,
    T_B64,
    T_U64,
    T_S64,
    T_F64,
    T_B128,
    T_COUNT
} gs_type;
extern const char *const gs_type_name[T_COUNT];
extern const uint8_t gs_type_bytes[T_COUNT];
gs_type gs_type_parse(const char *name); /* "u32" -> T_U32; T_NONE when it is no type */

typedef enum gs_space { SP_GENERIC, SP_GLOBAL, SP_SHARED, SP_LOCAL, SP_PARAM, SP_CONST } gs_space;

/* Addresses. Global addresses are host addresses. A shared address is 32 bits: 0 in the top byte is the block's own
 * shared memory, r + 1 that of the block of rank r in the cluster (mapa). Generic addresses carry a window in the top byte. */
#define GS_SHARED_WINDOW 0x0100000000000000ull
#define GS_LOCAL_WINDOW  0x0200000000000000ull
#define GS_WINDOW_MASK   0xff00000000000000ull
enum {
    GS_SHARED_BASE = 1024 /* as on sm_90: the first KiB is the system's */,
    GS_SHARED_MAX = 233472 /* 228 KiB */,
    GS_SHARED_BLOCK_MAX = 232448 /* 227 KiB, opt-in */
};

/* ------------------------------------------------------------------ instructions */
typedef struct gs_warp gs_warp;
typedef struct gs_block gs_block;
typedef struct gs_ins gs_ins;
typedef struct gs_decoder gs_decoder;

/* Execute for the lanes of mask (never 0). Flow instructions are done by exec.c and have no function. */
typedef void (*gs_exec_fn)(gs_warp *w, const gs_ins *i, uint32_t mask);

enum { BASE_REG, BASE_CONST, BASE_SPECIAL }; /* gs_warp.base */
typedef struct gs_opnd {
    uint8_t base;
    uint8_t size; /* bytes a lane: 2, 4, 8 or 16 (8-bit types live in 2); 0: the sink "_" or an absent operand */
    bool pred;    /* a predicate: 32 bits at the offset, one a lane */
    bool negated; /* "!p" */
    bool minus;   /* "-%r": refused but by the few opcodes that take it */
    uint32_t off; /* of the vector of 32 lanes from base[] */
    int64_t imm;  /* address operands: the constant added */
} gs_opnd;

typedef enum gs_flow {
    FLOW_NEXT, /* straight on */
    FLOW_BRANCH,
    FLOW_EXIT,
    FLOW_BARRIER,
    FLOW_COLLECTIVE, /* waits until all lanes of its member mask are here */
    FLOW_TABLE       /* brx.idx */
} gs_flow;

struct gs_ins {
    gs_exec_fn exec;
    uint8_t flow, guard;        /* guard: 0 none, 1 @p, 2 @!p */
    uint8_t type, type2, type3; /* the opcode's types, in order; meaning is the family's */
    uint8_t space, vec;         /* state space; .v2/.v4/.x4 count, 1 if none */
    uint8_t sub, cmp, round;    /* the family's own */
    bool sat, ftz, flag;
    uint8_t class;  /* enum gs_class */
    int8_t members; /* FLOW_COLLECTIVE: index of the member mask operand, -1: all lanes (.aligned) */
    uint16_t n_op;
    uint32_t guard_off;
    gs_opnd *op;
    int32_t target;       /* FLOW_BRANCH */
    const int32_t *table; /* FLOW_TABLE */
    uint64_t imm;
    int line;    /* in the PTX text */
    int loc;     /* index into the kernel's source locations, 0 unknown */
    void *extra; /* the family's own, malloc'd by it, freed with the kernel */
};

#define OPND(k) (w->base[i->op[k].base] + i->op[k].off) /* the vector of operand k (w and i in scope) */

/* ------------------------------------------------------------------ decoding: what a family's decode function gets */
typedef struct gs_row gs_row;
typedef void (*gs_decode_fn)(gs_decoder *d, gs_ins *i, const gs_row *row);
/* One row of a family's opcode table. The decoder takes the first row whose name and modifiers are in the instruction and
 * whose type is its last type (T_NONE: any). Every modifier must be used by the row or asked for by the decode function
 * (gs_mod): one that nobody asked for is refused, so that nothing is ignored by accident. */
struct gs_row {
    const char *name; /* "add", "mul.wide", "cp.async.bulk" : base, then modifiers that must be present */
    gs_type type;
    gs_decode_fn decode;
    gs_exec_fn exec;
    uint8_t class;
    const char *ignore; /* modifiers without effect here, blank-separated: "rn relu"... NULL none */
};

enum { GS_MAX_MODS = 24, GS_MAX_ARGS = 300, GS_ARG_TEXT = 2048 /* parameters of templates have long names */ };
typedef struct
    gs_arg { /* one operand as text; {a, b} is flattened, with the group number saying what belongs together */
    char text[GS_ARG_TEXT];
    int group;      /* counts the comma-separated operands: {a,b},c -> 0 0 1 */
    bool after_bar; /* came after '|': p|q */
} gs_arg;

struct gs_decoder {
    gs_module *module;
    gs_kernel *kernel;
    struct gs_parser *parser;
    int line;
    char opcode[160]; /* whole, for messages */
    char base[32];
    char mod[GS_MAX_MODS][32];
    bool used[GS_MAX_MODS];
    int n_mod;
    gs_type types[8]; /* modifiers that are types, in order */
    int n_type;
    gs_arg *arg;
    int n_arg;
    gs_opnd *op; /* built so far, at most GS_MAX_ARGS */
    int n_op;
};

_Noreturn void gs_die(gs_decoder *d, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool gs_mod(gs_decoder *d, const char *name); /* is this modifier there? marks it used */
gs_space gs_mod_space(gs_decoder *d);         /* .global, .shared::cta ...; generic when none is there */
int gs_mod_of(gs_decoder *d, const char *const *names, int n, int otherwise); /* which of names is there */
gs_opnd gs_parse_operand(gs_decoder *d, const char *text, int bytes);         /* register, constant, symbol, "_" */
gs_opnd gs_parse_address(gs_decoder *d, const char *text);                    /* "[a+4]" */
uint64_t gs_parse_immediate(gs_decoder *d, const char *text);                 /* must be a number */
void gs_add(gs_decoder *d, gs_opnd o);                                        /* append to the instruction's operands */
void gs_add_arg(gs_decoder *d, int arg, int bytes);                           /* parse d->arg[arg] and append */
void gs_add_address(gs_decoder *d, int arg);
void gs_need_args(gs_decoder *d, int n); /* refuse any other number of operands */
extern const gs_opnd gs_no_operand;

/* Ready decode functions: all operands of the instruction's type size. */
void gs_decode_same(gs_decoder *d, gs_ins *i, const gs_row *row);  /* every operand has the size of i->type */
void gs_decode_shift(gs_decoder *d, gs_ins *i, const gs_row *row); /* d, a of the type; the shift count is 32 bits */
void gs_decode_wide(gs_decoder *d, gs_ins *i, const gs_row *row);  /* d (and c of mad) twice as wide as a, b */

/* The families, each compiled twice: plain, and with AVX-512 (lanes.h). Ended by a row with a NULL name. */
#define GS_FAMILIES(X)                                                                                                 \
    X(int)                                                                                                             \
    X(logic) X(float) X(half) X(cvt) X(compare) X(warp) X(mma) X(matrix) X(wgmma) X(bulk) X(async) X(memory) X(sync)
#define X(f) extern const gs_row gs_rows_##f##_base[], gs_rows_##f##_avx512[];
GS_FAMILIES(X)
#undef X

/* ------------------------------------------------------------------ a running block */
typedef struct gs_group { /* lanes of a warp that are at one instruction */
    uint32_t pc, mask;
    uint8_t state;  /* 0 ready, 1 waits at a collective, 2 waits at a barrier */
    bool divergent; /* came to a barrier while others of the warp were doing something else */
} gs_group;

/* Agents: what can touch memory on its own. Each has a component in the vector clocks (check_race.c). The asynchronous
 * ones of a warp become known to the warp itself only by the matching wait. */
enum { AGENT_SELF, AGENT_CPASYNC, AGENT_BULK, AGENT_WGMMA, AGENTS };

typedef struct gs_copy { /* a cp.async in flight */
    uint32_t dst;
    uint16_t bytes, src_bytes;
    uint8_t lane;
    uint32_t group;  /* 0: not committed; else its number */
    uint32_t serial; /* in the order of the warp */
    uint64_t src;
    int pc;
} gs_copy;

struct gs_warp {
    uint8_t *base[3]; /* registers, constants, special registers */
    gs_block *block;
    int id;                 /* in the block */
    int agent;              /* index of AGENT_SELF in the vector clocks (over the cluster) */
    uint32_t live, started; /* lanes still running; lanes that ever were */
    gs_group group[32];
    int n_group;
    int pc; /* of the instruction in progress, for findings */
    bool done, blocked;
    bool yield; /* set by an instruction that waits in a loop: others get a turn */
    bool retry; /* set by an instruction that is not done: it is executed again, after others had a turn */
    uint32_t cluster_arrived; /* lanes that arrived at barrier.cluster in this phase */
    uint32_t cluster_phase;   /* and the phase that was */
    int barrier;              /* blocked at this one */
    uint32_t sub;             /* epoch inside the warp: __syncwarp counts it */
    uint32_t *vc;             /* vector clock */
    uint32_t *pvc;            /* what of it a proxy fence has covered */
    uint32_t tick[AGENTS];    /* operations begun by each asynchronous agent */
    uint8_t *local;           /* [32][local_bytes] */
    uint64_t ins;             /* executed by this warp: %clock */
    uint32_t carry;           /* CC.CF of each lane: add.cc, addc... */
    gs_copy *copy;            /* cp.async in flight */
    int n_copy, cap_copy;
    uint32_t copy_group[32]; /* committed groups a lane */
    uint32_t copy_serial;
    struct gs_bulk_group *bulk;   /* op_bulk.c: bulk groups of each lane */
    struct gs_wgmma_state *wgmma; /* op_wgmma.c: in flight; NULL when nothing is */
};

typedef struct gs_barrier {
    uint32_t generation, arrived, expected; /* expected 0: all threads of the block */
    uint32_t votes[2], voters[2];           /* bar.red: by parity of the generation */
} gs_barrier;

struct gs_block {
    struct gs_worker *worker;
    gs_kernel *kernel;
    struct gs_cluster *cluster;
    uint32_t rank; /* in the cluster */
    gs_dim3 at;    /* %ctaid */
    uint64_t linear;
    gs_warp *warp;
    int n_warp, n_thread;
    uint8_t *shared;     /* indexed by shared address, GS_SHARED_BASE.. */
    uint32_t shared_end; /* first address past it */
    uint32_t dynamic_base;
    struct gs_shadow *shadow;    /* one per 4 bytes; NULL when nothing is checked */
    struct gs_race_pools *pools; /* check_race.c */
    uint32_t *barrier_clock;     /* [16][2 n_agent]: what bar.arrive left behind */
    uint32_t epoch;              /* shadow entries of another epoch are of an earlier block */
    gs_barrier barrier[16];
    struct gs_mbarriers *mbarriers; /* mbarrier.c: those in use */
    bool busy, finished;
};

/* ------------------------------------------------------------------ memory, for the families */
typedef enum gs_access { GS_READ, GS_WRITE, GS_ATOMIC } gs_access;
/* The host address of [addr, addr + n) for a lane, n a power of two up to 16 and addr aligned to it; checks bounds and,
 * for shared memory, races and initialisation. NULL after a finding. */
uint8_t *gs_address(gs_warp *w, gs_space space, uint64_t addr, uint32_t n, int lane, gs_access access);
/* Any span of shared memory, by an asynchronous agent (AGENT_*) of warp w: bounds, races, and the proxy fence. */
uint8_t *gs_shared_span(gs_warp *w, uint32_t addr, uint32_t n, int agent, gs_access access);
/* Any span of global memory. */
uint8_t *gs_global_span(gs_warp *w, uint64_t addr, uint64_t n, int lane, gs_access access);
/* The 32 lane addresses of address operand k. */
void gs_lane_addresses(const gs_warp *w, const gs_ins *i, int k, uint64_t addr[32]);
gs_counts *gs_counts_of(gs_warp *w);
bool gs_checking(const gs_warp *w, unsigned what); /* GS_CHECK_* */
/* Counts a warp's access in wavefronts or sectors (no effect unless GS_CHECK_TRAFFIC). */
void gs_count_access(gs_warp *w, const gs_ins *i, gs_space space, const uint64_t addr[32], uint32_t mask, uint32_t n,
                     bool write);

/* An asynchronous agent's clock: ticks at each new operation; joined into the warp's own at its wait. */
void gs_clock_tick(gs_warp *w, int agent);
void gs_clock_join_agent(gs_warp *w, int agent);                /* everything it did so far */
void gs_clock_join_upto(gs_warp *w, int agent, uint32_t clock); /* what it did up to that tick */

/* ------------------------------------------------------------------ findings and stops */
/* One finding of lane `lane` at the instruction in progress; other_pc >= 0 names a second place. Repeats of the same
 * pair of places are counted, not printed. fault: what the launch returns for it (GS_FINDING: the run goes on). */
void gs_find(gs_warp *w, gs_result fault, const char *kind, int lane, int other_pc, const char *format, ...)
    __attribute__((format(printf, 6, 7)));
/* Ends the launch: nothing sensible can follow. */
_Noreturn void gs_stop(gs_warp *w, gs_result fault, const char *kind, int lane, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

#endif
