/* SPDX-License-Identifier: Apache-2.0 */
/* What the arithmetic families (op_int.c ... op_warp.c) share: strict decoding of operands, and loops over the lanes of
 * operands whose size is known only at decoding. Names of PTX: "mod" is a modifier (.rn), "type" a type (.u32). */
#ifndef RQ_GPUSIM_ALU_H
#define RQ_GPUSIM_ALU_H
#include "lanes.h"

/* ------------------------------------------------------------------ decoding */
/* Rows are found by the last type; an instruction with a type too many (mixed precision, of later targets) is refused.
 * */
static inline void alu_types(gs_decoder *d, int n) {
    if (d->n_type != n) gs_die(d, "%d types where %d are expected", d->n_type, n);
}

/* A source operand of exactly `bytes` a lane: PTX lets only cvt, ld and st take wider registers. */
static inline void alu_arg(gs_decoder *d, int arg, int bytes) {
    if (arg >= d->n_arg) gs_die(d, "operand %d is missing", arg + 1);
    gs_opnd o = gs_parse_operand(d, d->arg[arg].text, bytes);
    if (o.pred || o.size != bytes) gs_die(d, "operand '%s' does not have %d bytes", d->arg[arg].text, bytes);
    gs_add(d, o);
}
/* A destination register, or the sink "_". */
static inline void alu_dest(gs_decoder *d, int arg, int bytes) {
    if (arg >= d->n_arg) gs_die(d, "operand %d is missing", arg + 1);
    gs_opnd o = gs_parse_operand(d, d->arg[arg].text, bytes);
    if (o.size && (o.pred || o.base != BASE_REG || o.size != bytes))
        gs_die(d, "'%s' is no register of %d bytes", d->arg[arg].text, bytes);
    gs_add(d, o);
}
/* The destination of an instruction that has only one. */
static inline void alu_result(gs_decoder *d, int bytes) {
    alu_dest(d, 0, bytes);
    if (!d->op[d->n_op - 1].size) gs_die(d, "no destination");
}

/* n operands of `bytes` a lane each, the destination included. */
static inline void alu_operands(gs_decoder *d, int n, int bytes) {
    gs_need_args(d, n);
    alu_result(d, bytes);
    for (int k = 1; k < n; ++k) alu_arg(d, k, bytes);
}
static inline void alu_same(gs_decoder *d, gs_ins *i, int n) {
    alu_types(d, 1);
    alu_operands(d, n, gs_type_bytes[i->type]);
}
static inline void alu_unary(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    alu_same(d, i, 2);
}
static inline void alu_binary(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    alu_same(d, i, 3);
}
static inline void alu_ternary(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    alu_same(d, i, 4);
}

/* A predicate operand; absent (size 0) when arg is negative or the sink. */
static inline void alu_pred(gs_decoder *d, int arg) {
    gs_opnd o = gs_no_operand;
    if (arg >= 0) {
        o = gs_parse_operand(d, d->arg[arg].text, 4);
        if (o.size && !o.pred) gs_die(d, "'%s' is no predicate", d->arg[arg].text);
    }
    gs_add(d, o);
}

enum { ROUND_RN, ROUND_RZ, ROUND_RM, ROUND_RP, ROUND_RNA };
static inline uint8_t alu_round(gs_decoder *d) {
    static const char *const names[] = {"rn", "rz", "rm", "rp"};
    return (uint8_t)gs_mod_of(d, names, 4, ROUND_RN);
}

/* ------------------------------------------------------------------ lanes of operands of any size, as 64-bit integers
 * */
/* Reads the low `bits` of each lane of operand k, zero- or sign-extended. */
static inline void alu_load(const gs_warp *w, const gs_ins *i, int k, unsigned bits, bool is_signed, int64_t out[32]) {
    const uint8_t *at = OPND(k);
    uint64_t raw[32];
    switch (i->op[k].size) {
    case 2:
        for (int l = 0; l < 32; ++l) raw[l] = ((const uint16_t *)at)[l];
        break;
    case 4:
        for (int l = 0; l < 32; ++l) raw[l] = ((const uint32_t *)at)[l];
        break;
    default:
        for (int l = 0; l < 32; ++l) raw[l] = ((const uint64_t *)at)[l];
        break;
    }
    unsigned up = 64 - bits;
    if (is_signed)
        for (int l = 0; l < 32; ++l) out[l] = (int64_t)(raw[l] << up) >> up;
    else
        for (int l = 0; l < 32; ++l) out[l] = (int64_t)((raw[l] << up) >> up);
}
/* Writes values to operand k under mask m, cut to the operand's size. */
static inline void alu_store(gs_warp *w, const gs_ins *i, int k, const int64_t v[32], uint32_t m) {
    uint8_t *at = OPND(k);
    switch (i->op[k].size) {
    case 0: break;
    case 2: {
        uint16_t *d = (uint16_t *)at;
        LANES({ d[l] = (uint16_t)v[l]; });
        break;
    }
    case 4: {
        uint32_t *d = (uint32_t *)at;
        LANES({ d[l] = (uint32_t)v[l]; });
        break;
    }
    default: {
        uint64_t *d = (uint64_t *)at;
        LANES({ d[l] = (uint64_t)v[l]; });
        break;
    }
    }
}

#endif
