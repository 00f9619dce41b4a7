/* SPDX-License-Identifier: Apache-2.0 */
/* ldmatrix, stmatrix, movmatrix: 8x8 matrices of 16-bit elements between shared memory and fragments (PTX ISA 9.7.14.5.15
 * to .17). Lane l of the first 8, 16 or 32 names row l % 8 of matrix l / 8, sixteen bytes; the fragment of lane l is
 * elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4. So the vector of 32 lanes of a register is the matrix row by row.
 *
 * The shapes of 8-bit and smaller elements (sm_100) are refused. */
#include "lanes.h"

static const char *const matrix_counts[] = {"x1", "x2", "x4"};

static void decode_matrix(gs_decoder *d, gs_ins *i, bool store) {
    int count = gs_mod_of(d, matrix_counts, 3, -1);
    if (count < 0) gs_die(d, "needs .x1, .x2 or .x4");
    i->vec = (uint8_t)(1 << count);
    i->flag = gs_mod(d, "trans");
    i->space = SP_GENERIC;
    if (gs_mod(d, "shared") || gs_mod(d, "shared::cta")) i->space = SP_SHARED;
    i->flow = FLOW_COLLECTIVE;
    i->members = -1;
    gs_need_args(d, i->vec + 1);
    if (store) gs_add_address(d, 0);
    for (int r = 0; r < i->vec; ++r) gs_add_arg(d, r + store, 4);
    if (!store) gs_add_address(d, i->vec);
}
static void decode_load(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    decode_matrix(d, i, false);
}
static void decode_store(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    decode_matrix(d, i, true);
}
static void decode_move(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    i->flow = FLOW_COLLECTIVE;
    i->members = -1;
    gs_need_args(d, 2);
    gs_add_arg(d, 0, 4);
    gs_add_arg(d, 1, 4);
}

static void matrix_collective(gs_warp *w, const char *name, uint32_t mask) {
    if (mask != 0xffffffffu)
        gs_find(w, GS_FINDING, "warp collective without all lanes", __builtin_ctz(~mask), -1,
                "%s is executed by lanes %08x only", name, mask);
}

static void transpose(const uint16_t in[8][8], uint16_t out[8][8]) {
    for (int r = 0; r < 8; ++r)
        for (int c = 0; c < 8; ++c) out[r][c] = in[c][r];
}

/* The lanes that name a row. */
static uint32_t row_lanes(const gs_ins *i) { return i->vec == 4 ? 0xffffffffu : (1u << (8 * i->vec)) - 1; }

static void exec_load(gs_warp *w, const gs_ins *i, uint32_t mask) {
    uint64_t addr[32];
    matrix_collective(w, "ldmatrix", mask);
    gs_lane_addresses(w, i, i->vec, addr);
    gs_count_access(w, i, SP_SHARED, addr, row_lanes(i), 16, false);
    for (int r = 0; r < i->vec; ++r) {
        uint16_t m[8][8], t[8][8];
        for (int g = 0; g < 8; ++g) {
            const uint8_t *p = gs_address(w, (gs_space)i->space, addr[8 * r + g], 16, 8 * r + g, GS_READ);
            if (p)
                memcpy(m[g], p, 16);
            else
                memset(m[g], 0, 16);
        }
        if (i->flag) transpose((const uint16_t(*)[8])m, t);
        memcpy(OPND(r), i->flag ? t : m, 128);
    }
}

static void exec_store(gs_warp *w, const gs_ins *i, uint32_t mask) {
    uint64_t addr[32];
    matrix_collective(w, "stmatrix", mask);
    gs_lane_addresses(w, i, 0, addr);
    gs_count_access(w, i, SP_SHARED, addr, row_lanes(i), 16, true);
    for (int r = 0; r < i->vec; ++r) {
        uint16_t m[8][8], t[8][8];
        memcpy(m, OPND(1 + r), 128);
        if (i->flag) transpose((const uint16_t(*)[8])m, t);
        for (int g = 0; g < 8; ++g) {
            uint8_t *p = gs_address(w, (gs_space)i->space, addr[8 * r + g], 16, 8 * r + g, GS_WRITE);
            if (p) memcpy(p, i->flag ? t[g] : m[g], 16);
        }
    }
}

static void exec_move(gs_warp *w, const gs_ins *i, uint32_t mask) {
    uint16_t m[8][8], t[8][8];
    matrix_collective(w, "movmatrix", mask);
    memcpy(m, OPND(1), 128);
    transpose((const uint16_t(*)[8])m, t);
    memcpy(OPND(0), t, 128);
}

GS_TABLE(matrix) = {
    {"ldmatrix.sync.aligned.m8n8", T_B16, decode_load, exec_load, GS_C_MATRIX, NULL},
    {"stmatrix.sync.aligned.m8n8", T_B16, decode_store, exec_store, GS_C_MATRIX, NULL},
    {"movmatrix.sync.aligned.m8n8.trans", T_B16, decode_move, exec_move, GS_C_MATRIX, NULL},
    {NULL, T_NONE, NULL, NULL, 0, NULL},
};
