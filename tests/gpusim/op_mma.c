/* SPDX-License-Identifier: Apache-2.0 */
/* mma.sync: D = A * B + C on fragments in the registers of a warp (PTX ISA 9.7.14.5).
 *
 * Fragments. With g = lane / 4 and t = lane % 4, and e elements in a 32-bit register (1 for f64):
 *   A register r: row g + 8 (r % 2), k = (r / 2) 4e + t e ...; m8 shapes have register 0 only
 *   B register r: column g, k = r 4e + t e ...
 *   C, D of 32 or 64 bits, register r: row g + 8 (r / 2), column 2t + r % 2
 *   C, D of f16, register r: row g + 8 r, columns 2t and 2t + 1
 * So the vector of 32 lanes of a register of A is eight rows of 16 bytes (32 for f64) one after the other, and that of B
 * eight columns: no shuffling is needed to read them.
 *
 * What the numbers are: tensor_core.h. f64 differs: there every step is one fused multiply-add, k rising, rounded to
 * nearest even. The m8n8k4 shape of f16 (Volta), .b1, sparse and scaled forms are refused. */
#include <stdlib.h>

#include "tensor_core.h"

typedef struct mma_plan {
    uint8_t m, k;
    uint8_t a_elem, b_elem; /* enum tc_elem */
    uint8_t a_regs, b_regs, d_regs;
    bool saturate;
} mma_plan;

static const char *const mma_shapes[] = {"m8n8k4",  "m8n8k16",  "m8n8k32",  "m16n8k4",
                                         "m16n8k8", "m16n8k16", "m16n8k32", "m16n8k64"};
static const uint8_t mma_m[] = {8, 8, 8, 16, 16, 16, 16, 16}, mma_k[] = {4, 16, 32, 4, 8, 16, 32, 64};
enum { MMA_SHAPES = 8 };

/* The K that an element type has: M = 8 and the two or three of M = 16. */
static bool mma_legal(int m, int k, enum tc_elem elem) {
    switch (elem) {
    case TC_F16:
    case TC_BF16: return m == 16 && (k == 8 || k == 16);
    case TC_TF32: return m == 16 && (k == 4 || k == 8);
    case TC_E4M3:
    case TC_E5M2: return m == 16 && (k == 16 || k == 32);
    case TC_S8:
    case TC_U8: return m == 8 ? k == 16 : k == 16 || k == 32;
    case TC_S4:
    case TC_U4: return m == 8 ? k == 32 : k == 32 || k == 64;
    default: return m == 8 ? k == 4 : k == 4 || k == 8 || k == 16;
    }
}

static enum tc_elem mma_elem(gs_decoder *d, gs_type type) {
    switch (type) {
    case T_F16: return TC_F16;
    case T_BF16: return TC_BF16;
    case T_TF32: return TC_TF32;
    case T_E4M3: return TC_E4M3;
    case T_E5M2: return TC_E5M2;
    case T_S8: return TC_S8;
    case T_U8: return TC_U8;
    case T_F64: return TC_F64;
    default: gs_die(d, "mma: no matrices of this type");
    }
}

/* Types of D, A, B, C. The 4-bit ones are no gs_type: they stand among the other modifiers, in order. */
static void mma_types(gs_decoder *d, mma_plan *p, gs_type *dtype) {
    int n4 = 0;
    enum tc_elem elem[2] = {TC_S4, TC_S4};
    for (int j = 0; j < d->n_mod; ++j) {
        bool s4 = strcmp(d->mod[j], "s4") == 0, u4 = strcmp(d->mod[j], "u4") == 0;
        if (!s4 && !u4) continue;
        if (n4 == 2) gs_die(d, "mma: too many types");
        elem[n4++] = s4 ? TC_S4 : TC_U4;
        d->used[j] = true;
    }
    if (n4 == 2 && d->n_type == 2) {
        *dtype = d->types[0];
        if (d->types[1] != *dtype) gs_die(d, "mma: C and D differ in type");
    } else if (n4 == 0 && d->n_type == 4) {
        *dtype = d->types[0];
        if (d->types[3] != *dtype) gs_die(d, "mma: C and D differ in type");
        elem[0] = mma_elem(d, d->types[1]);
        elem[1] = mma_elem(d, d->types[2]);
    } else {
        gs_die(d, "mma: needs the types of D, A, B and C");
    }
    p->a_elem = (uint8_t)elem[0];
    p->b_elem = (uint8_t)elem[1];
    bool mix = elem[0] == elem[1] || (elem[0] <= TC_E5M2 && elem[1] <= TC_E5M2 && tc_elem_bits[elem[0]] == 8) ||
               (elem[0] >= TC_S8 && elem[0] != TC_F64);
    if (!mix || tc_elem_bits[elem[0]] != tc_elem_bits[elem[1]]) gs_die(d, "mma: A and B of these types do not mix");
}

static void mma_fragment(gs_decoder *d, int *arg, int group, int n, int bytes) {
    for (int r = 0; r < n; ++r, ++*arg) {
        if (*arg >= d->n_arg || d->arg[*arg].group != group) gs_die(d, "mma: operand %d needs %d registers", group, n);
        gs_add_arg(d, *arg, bytes);
    }
    if (*arg < d->n_arg && d->arg[*arg].group == group) gs_die(d, "mma: operand %d has too many registers", group);
}

static void mma_double(gs_warp *w, const gs_ins *i, uint32_t mask);
static void mma_int(gs_warp *w, const gs_ins *i, uint32_t mask);
static void mma_f64(gs_warp *w, const gs_ins *i, uint32_t mask);

static void decode_mma(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    mma_plan *p = calloc(1, sizeof *p);
    if (!p) gs_die(d, "out of memory");
    i->extra = p;
    int shape = gs_mod_of(d, mma_shapes, MMA_SHAPES, -1);
    if (shape < 0) gs_die(d, "mma: this shape is not implemented");
    if (!gs_mod(d, "row") || !gs_mod(d, "col")) gs_die(d, "mma: needs .row.col");
    p->m = mma_m[shape];
    p->k = mma_k[shape];
    gs_type dtype;
    mma_types(d, p, &dtype);
    enum tc_elem elem = (enum tc_elem)p->a_elem;
    if (!mma_legal(p->m, p->k, elem)) gs_die(d, "mma: %s has no such type", mma_shapes[shape]);
    p->saturate = gs_mod(d, "satfinite");

    bool integer = elem >= TC_S8 && elem <= TC_U4;
    if (integer ? dtype != T_S32 : elem == TC_F64 ? dtype != T_F64 : dtype != T_F32 && dtype != T_F16)
        gs_die(d, "mma: D cannot be of this type");
    if (dtype == T_F16 && (elem == TC_BF16 || elem == TC_TF32)) gs_die(d, "mma: D must be f32");
    if (p->saturate && !integer) gs_die(d, "mma: .satfinite is for integers");
    i->type = (uint8_t)dtype;
    i->exec = integer ? mma_int : elem == TC_F64 ? mma_f64 : mma_double;
    i->flow = FLOW_COLLECTIVE;
    i->members = -1;

    int per_reg = elem == TC_F64 ? 1 : 32 / tc_elem_bits[elem];
    int bytes = elem == TC_F64 ? 8 : 4, arg = 0;
    p->b_regs = (uint8_t)(p->k / (4 * per_reg));
    p->a_regs = (uint8_t)(p->b_regs * (p->m / 8));
    p->d_regs = (uint8_t)(p->m / 8 * (dtype == T_F16 ? 1 : 2));
    mma_fragment(d, &arg, 0, p->d_regs, bytes);
    mma_fragment(d, &arg, 1, p->a_regs, bytes);
    mma_fragment(d, &arg, 2, p->b_regs, bytes);
    mma_fragment(d, &arg, 3, p->d_regs, bytes);
    gs_need_args(d, arg);
}

/* What every mma does beside the numbers. */
static void mma_account(gs_warp *w, const mma_plan *p, uint32_t mask) {
    if (mask != 0xffffffffu)
        gs_find(w, GS_FINDING, "warp collective without all lanes", __builtin_ctz(~mask), -1,
                "mma is executed by lanes %08x only", mask);
    gs_counts *c = gs_counts_of(w);
    c->mma++;
    c->mma_macs += (uint64_t)p->m * 8 * p->k;
}

/* A as rows and B as columns of k elements, from the register vectors. */
static void mma_gather(const gs_warp *w, const gs_ins *i, const mma_plan *p, uint8_t a[TC_ROWS][TC_ROW_BYTES],
                       uint8_t b[TC_COLS][TC_ROW_BYTES]) {
    int halves = p->m / 8;
    for (int r = 0; r < p->a_regs; ++r) {
        const uint8_t *v = OPND(p->d_regs + r);
        int row = r % halves * 8, at = r / halves * 16;
        for (int g = 0; g < 8; ++g) memcpy(a[row + g] + at, v + 16 * g, 16);
    }
    for (int r = 0; r < p->b_regs; ++r) {
        const uint8_t *v = OPND(p->d_regs + p->a_regs + r);
        for (int g = 0; g < 8; ++g) memcpy(b[g] + 16 * r, v + 16 * g, 16);
    }
}

static void mma_accumulators(gs_warp *w, const gs_ins *i, const mma_plan *p, const uint8_t *c[4], uint8_t *d[4]) {
    int first_c = p->d_regs + p->a_regs + p->b_regs;
    for (int r = 0; r < p->d_regs; ++r) {
        c[r] = OPND(first_c + r);
        d[r] = OPND(r);
    }
}

static void mma_int(gs_warp *w, const gs_ins *i, uint32_t mask) {
    const mma_plan *p = i->extra;
    uint8_t ab[TC_ROWS][TC_ROW_BYTES], bb[TC_COLS][TC_ROW_BYTES], *d[4];
    const uint8_t *c[4];
    float a[TC_ROWS][TC_MAX_K], b[TC_MAX_K][TC_COLS];
    int32_t sum[TC_ROWS][TC_COLS];
    mma_account(w, p, mask);
    mma_gather(w, i, p, ab, bb);
    mma_accumulators(w, i, p, c, d);
    for (int r = 0; r < p->m; ++r) tc_to_float(a[r], 1, ab[r], (enum tc_elem)p->a_elem, p->k);
    for (int n = 0; n < TC_COLS; ++n) tc_to_float(&b[0][n], TC_COLS, bb[n], (enum tc_elem)p->b_elem, p->k);
    tc_multiply_int(p->m, p->k, (const float(*)[TC_MAX_K])a, (const float(*)[TC_COLS])b, sum);
    tc_store_int((const int32_t(*)[TC_COLS])sum, c, d, p->d_regs, p->saturate);
}

static void mma_double(gs_warp *w, const gs_ins *i, uint32_t mask) {
    const mma_plan *p = i->extra;
    uint8_t ab[TC_ROWS][TC_ROW_BYTES], bb[TC_COLS][TC_ROW_BYTES], *d[4];
    const uint8_t *c[4];
    double a[TC_ROWS][TC_MAX_K], b[TC_MAX_K][TC_COLS], acc[TC_ROWS][TC_COLS];
    mma_account(w, p, mask);
    mma_gather(w, i, p, ab, bb);
    mma_accumulators(w, i, p, c, d);
    for (int r = 0; r < p->m; ++r) tc_to_double(a[r], 1, ab[r], (enum tc_elem)p->a_elem, p->k);
    for (int n = 0; n < TC_COLS; ++n) tc_to_double(&b[0][n], TC_COLS, bb[n], (enum tc_elem)p->b_elem, p->k);
    tc_load_acc(acc, c, p->d_regs, i->type == T_F16);
    tc_multiply_double(p->m, p->k, (const double(*)[TC_MAX_K])a, (const double(*)[TC_COLS])b, acc);
    tc_store_acc((const double(*)[TC_COLS])acc, d, p->d_regs, i->type == T_F16);
}

static void mma_f64(gs_warp *w, const gs_ins *i, uint32_t mask) {
    const mma_plan *p = i->extra;
    double out[4][32];
    mma_account(w, p, mask);
    int halves = p->m / 8, first_b = p->d_regs + p->a_regs, first_c = first_b + p->b_regs;
    for (int r = 0; r < p->d_regs; ++r) {
        const double *c = (const double *)OPND(first_c + r);
        for (int l = 0; l < 32; ++l) {
            int col = (l & 3) * 2 + (r & 1);
            double s = c[l];
            for (int k = 0; k < p->k; ++k) {
                const double *a = (const double *)OPND(p->d_regs + k / 4 * halves + r / 2);
                const double *b = (const double *)OPND(first_b + k / 4);
                s = fma(a[(l & ~3) + k % 4], b[col * 4 + k % 4], s);
            }
            out[r][l] = s;
        }
    }
    for (int r = 0; r < p->d_regs; ++r) memcpy(OPND(r), out[r], sizeof out[r]);
}

GS_TABLE(mma) = {
    {"mma.sync.aligned", T_NONE, decode_mma, NULL, GS_C_MMA, NULL},
    {NULL, T_NONE, NULL, NULL, 0, NULL},
};
