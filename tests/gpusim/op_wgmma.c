/* SPDX-License-Identifier: Apache-2.0 */
/* wgmma.mma_async: D = A * B (+ D) by a warpgroup, A 64 x K in registers or shared memory, B K x N in shared memory (PTX ISA
 * 9.7.15.5). Each warp does its sixteen rows when it gets here; what is in flight until when: wgmma.c. The numbers:
 * tensor_core.h. Fragments of A and of eight columns of D are those of mma (op_mma.c); K is 32 bytes.
 *
 * A matrix descriptor: bits 0-13 start address / 16, 16-29 leading offset (L) / 16, 32-45 stride offset (S) / 16, 49-51 base
 * offset, 62-63 swizzle: 0 none, 1 128 bytes, 2 64, 3 32. With W the swizzle in bytes, P = W / 16, and rows of A or columns of
 * B numbered m, the sixteen bytes number j of K of row m, or the eight 16-bit elements m = 8 q ... of element k of K, lie at
 *   K-major, none:      16 (m % 8) + S (m / 8) + L j
 *   K-major, swizzle:   W (m % 8) + S (m / 8) + 16 j
 *   MN-major, none:     S q + 16 (k % 8) + L (k / 8)
 *   MN-major, swizzle:  16 (q % P) + L (q / P) + W (k % 8) + S (k / 8)
 * from the start address; then bits 4.. of the address are exclusive-ored with its bits 7.. less the base offset (three
 * bits of them for 128 bytes, two for 64, one for 32). That the base offset is subtracted is read from its definition and was
 * not seen on hardware. */
#include "wgmma.h"

#include <stdlib.h>

#include "tensor_core.h"

enum { WGMMA_MAX_D = 128, ADDRESS_MASK = 0x3ffff };

/* ------------------------------------------------------------------ decoding */
static int wgmma_elem(gs_decoder *d, gs_type t) {
    switch (t) {
    case T_F16: return TC_F16;
    case T_BF16: return TC_BF16;
    case T_TF32: return TC_TF32;
    case T_E4M3: return TC_E4M3;
    case T_E5M2: return TC_E5M2;
    case T_S8: return TC_S8;
    case T_U8: return TC_U8;
    default: gs_die(d, "wgmma: no matrices of this type");
    }
}

static void wgmma_shape(gs_decoder *d, wgmma_plan *p) {
    for (int j = 0; j < d->n_mod; ++j) {
        unsigned n, k;
        char rest;
        if (sscanf(d->mod[j], "m64n%uk%u%c", &n, &k, &rest) != 2) continue;
        d->used[j] = true;
        p->n = (uint16_t)n;
        p->k = (uint8_t)k;
        if (n < 8 || n > 256 || n % 8 || k > 32) gs_die(d, "wgmma: no such shape");
    }
    if (!p->n) gs_die(d, "wgmma: needs a shape m64nNkK");
}

static void wgmma_types(gs_decoder *d, wgmma_plan *p) {
    if (d->n_type != 3) gs_die(d, "wgmma: needs the types of D, A and B");
    gs_type dt = d->types[0];
    p->a_elem = (uint8_t)wgmma_elem(d, d->types[1]);
    p->b_elem = (uint8_t)wgmma_elem(d, d->types[2]);
    bool fp8 = p->a_elem == TC_E4M3 || p->a_elem == TC_E5M2;
    bool fp8_b = p->b_elem == TC_E4M3 || p->b_elem == TC_E5M2;
    p->integer = p->a_elem == TC_S8 || p->a_elem == TC_U8;
    bool int_b = p->b_elem == TC_S8 || p->b_elem == TC_U8;
    if (fp8 != fp8_b || p->integer != int_b || (!fp8 && !p->integer && p->a_elem != p->b_elem))
        gs_die(d, "wgmma: A and B of these types do not mix");
    if (p->k * tc_elem_bits[p->a_elem] != 256) gs_die(d, "wgmma: this type has another K");
    p->half = dt == T_F16;
    bool has_half = fp8 || p->a_elem == TC_F16;
    if (p->integer ? dt != T_S32 : dt != T_F32 && !(p->half && has_half)) gs_die(d, "wgmma: D cannot be of this type");
    if (p->integer && p->n > 24 && p->n % 16) gs_die(d, "wgmma: no such N with integers");
    p->saturate = gs_mod(d, "satfinite");
    if (p->saturate && !p->integer) gs_die(d, "wgmma: .satfinite is for integers");
    p->d_regs = p->half ? p->n / 4 : p->n / 2;
    p->shape = (uint32_t)p->n << 16 | (uint32_t)p->k << 8 | (uint32_t)dt;
}

static bool wgmma_flag(gs_decoder *d, int *arg, int64_t no, int64_t yes) {
    if (*arg >= d->n_arg) gs_die(d, "wgmma: operands are missing");
    int64_t v = (int64_t)gs_parse_immediate(d, d->arg[(*arg)++].text);
    if (v != no && v != yes) gs_die(d, "wgmma: an immediate operand is out of range");
    return v == yes;
}

static void decode_mma_async(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    wgmma_plan *p = calloc(1, sizeof *p);
    if (!p) gs_die(d, "out of memory");
    i->extra = p;
    wgmma_shape(d, p);
    wgmma_types(d, p);
    i->flow = FLOW_COLLECTIVE;
    i->members = -1;
    int arg = 0, per_group[4] = {0};
    for (int a = 0; a < d->n_arg; ++a)
        if (d->arg[a].group < 4) per_group[d->arg[a].group]++;
    p->a_regs = per_group[1] == 4 ? 4 : 0;
    if (per_group[0] != p->d_regs || (per_group[1] != 1 && per_group[1] != 4) || per_group[2] != 1 || per_group[3] != 1)
        gs_die(d, "wgmma: needs %d registers of D, A, a descriptor of B, and scale-d", p->d_regs);
    for (int r = 0; r < p->d_regs; ++r) {
        gs_add_arg(d, arg++, 4);
        if (d->op[r].base != BASE_REG || d->op[r].size != 4) gs_die(d, "wgmma: D must be registers of 32 bits");
    }
    for (int r = 0; r < p->a_regs; ++r) gs_add_arg(d, arg++, 4);
    if (!p->a_regs) gs_add_arg(d, arg++, 8);
    gs_add_arg(d, arg++, 8);
    gs_add_arg(d, arg++, 4);
    if (!p->integer) {
        bool minus_a = wgmma_flag(d, &arg, 1, -1), minus_b = wgmma_flag(d, &arg, 1, -1);
        p->negate = minus_a != minus_b;
        if (tc_elem_bits[p->a_elem] == 16) {
            if (!p->a_regs) p->a_mn = wgmma_flag(d, &arg, 0, 1);
            p->b_mn = wgmma_flag(d, &arg, 0, 1);
        }
    }
    gs_need_args(d, arg);
}

static void decode_plain(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    i->flow = FLOW_COLLECTIVE;
    i->members = -1;
    gs_need_args(d, 0);
}
static void decode_wait(gs_decoder *d, gs_ins *i, const gs_row *row) {
    (void)row;
    i->flow = FLOW_COLLECTIVE;
    i->members = -1;
    gs_need_args(d, 1);
    i->imm = gs_parse_immediate(d, d->arg[0].text);
    if (i->imm > 7) gs_die(d, "wgmma.wait_group: 0 to 7");
}

/* ------------------------------------------------------------------ matrices in shared memory */
typedef struct wgmma_desc {
    uint32_t start, leading, stride, base;
    int bits; /* of the swizzle: 0 none, 1 32 bytes, 2 64, 3 128 */
} wgmma_desc;

static wgmma_desc unpack_desc(gs_warp *w, uint64_t v) {
    if (v & 0x3ff1c000c000c000ull)
        gs_find(w, GS_FINDING, "wgmma descriptor", 0, -1, "bits that mean nothing are set in 0x%llx",
                (unsigned long long)v);
    wgmma_desc d = {(uint32_t)(v & 0x3fff) << 4, (uint32_t)(v >> 16 & 0x3fff) << 4, (uint32_t)(v >> 32 & 0x3fff) << 4,
                    (uint32_t)(v >> 49 & 7), 0};
    int mode = (int)(v >> 62);
    d.bits = mode ? 4 - mode : 0;
    return d;
}
static uint32_t place(const wgmma_desc *d, uint32_t offset) {
    uint32_t a = (d->start + offset) & ADDRESS_MASK;
    return a ^ ((((a >> 7) - d->base) & ((1u << d->bits) - 1)) << 4);
}
/* Sixteen bytes number `piece` of K of row m. */
static uint32_t place_k(const wgmma_desc *d, uint32_t m, uint32_t piece) {
    uint32_t pitch = 16u << d->bits;
    return place(d, m % 8 * pitch + m / 8 * d->stride + piece * (d->bits ? 16 : d->leading));
}
/* Elements 8 q ... 8 q + 7 along M or N, at k. */
static uint32_t place_mn(const wgmma_desc *d, uint32_t q, uint32_t k) {
    if (!d->bits) return place(d, q * d->stride + k % 8 * 16 + k / 8 * d->leading);
    uint32_t pieces = 1u << d->bits;
    return place(d, q % pieces * 16 + q / pieces * d->leading + k % 8 * 16 * pieces + k / 8 * d->stride);
}

static void read_piece(gs_warp *w, uint32_t address, uint8_t out[16]) {
    const uint8_t *p = gs_shared_span(w, address, 16, AGENT_WGMMA, GS_READ);
    if (p)
        memcpy(out, p, 16);
    else
        memset(out, 0, 16);
}
/* The 32 bytes of K of one row: mostly they lie together. */
static void read_row(gs_warp *w, const wgmma_desc *d, uint32_t m, uint8_t out[TC_ROW_BYTES]) {
    uint32_t a = place_k(d, m, 0), b = place_k(d, m, 1);
    if ((a ^ b) == 16) {
        const uint8_t *p = gs_shared_span(w, a & ~31u, 32, AGENT_WGMMA, GS_READ);
        if (!p) {
            memset(out, 0, 32);
            return;
        }
        memcpy(out, p + (a & 16), 16);
        memcpy(out + 16, p + (b & 16), 16);
        return;
    }
    read_piece(w, a, out);
    read_piece(w, b, out + 16);
}
/* `rows` rows from row m on, a multiple of eight, as bytes along K. */
static void read_matrix(gs_warp *w, const wgmma_desc *d, bool mn, uint32_t m, uint32_t rows,
                        uint8_t out[][TC_ROW_BYTES]) {
    if (!mn) {
        for (uint32_t r = 0; r < rows; ++r) read_row(w, d, m + r, out[r]);
        return;
    }
    for (uint32_t q = 0; q < rows / 8; ++q)
        for (uint32_t k = 0; k < 16; ++k) {
            uint8_t piece[16];
            read_piece(w, place_mn(d, m / 8 + q, k), piece);
            for (int e = 0; e < 8; ++e) memcpy(&out[8 * q + e][2 * k], piece + 2 * e, 2);
        }
}

/* ------------------------------------------------------------------ execution */
static uint64_t first_lane(const gs_warp *w, const gs_ins *i, int k) {
    uint64_t v;
    memcpy(&v, OPND(k), 8);
    return v;
}
static bool scale_of(const gs_warp *w, const gs_ins *i, int k) {
    uint32_t v;
    memcpy(&v, OPND(k), 4); /* a predicate, all lanes alike, or a constant */
    return ((v & 1) != 0) != i->op[k].negated;
}

static void columns_double(const wgmma_plan *p, const double a[TC_ROWS][TC_MAX_K],
                           const uint8_t bb[TC_COLS][TC_ROW_BYTES], uint8_t *const d[4], bool scale_d) {
    double b[TC_MAX_K][TC_COLS], acc[TC_ROWS][TC_COLS];
    int regs = p->half ? 2 : 4;
    for (int c = 0; c < TC_COLS; ++c) tc_to_double(&b[0][c], TC_COLS, bb[c], (enum tc_elem)p->b_elem, p->k);
    if (scale_d)
        tc_load_acc(acc, (const uint8_t *const *)d, regs, p->half);
    else
        memset(acc, 0, sizeof acc);
    tc_multiply_double(TC_ROWS, p->k, a, (const double(*)[TC_COLS])b, acc);
    tc_store_acc((const double(*)[TC_COLS])acc, d, regs, p->half);
}
static void columns_int(const wgmma_plan *p, const float a[TC_ROWS][TC_MAX_K], const uint8_t bb[TC_COLS][TC_ROW_BYTES],
                        uint8_t *const d[4], bool scale_d) {
    float b[TC_MAX_K][TC_COLS];
    int32_t sum[TC_ROWS][TC_COLS];
    for (int c = 0; c < TC_COLS; ++c) tc_to_float(&b[0][c], TC_COLS, bb[c], (enum tc_elem)p->b_elem, p->k);
    tc_multiply_int(TC_ROWS, p->k, a, (const float(*)[TC_COLS])b, sum);
    if (!scale_d)
        for (int r = 0; r < 4; ++r) memset(d[r], 0, 128);
    tc_store_int((const int32_t(*)[TC_COLS])sum, (const uint8_t *const *)d, d, 4, p->saturate);
}

static void exec_mma_async(gs_warp *w, const gs_ins *i, uint32_t mask) {
    const wgmma_plan *p = i->extra;
    int first_a = p->d_regs, at_b = first_a + (p->a_regs ? p->a_regs : 1);
    uint64_t da = p->a_regs ? 0 : first_lane(w, i, first_a), db = first_lane(w, i, at_b);
    bool scale_d = scale_of(w, i, at_b + 1);
    uint8_t ab[TC_ROWS][TC_ROW_BYTES], bb[TC_COLS][TC_ROW_BYTES], *d[WGMMA_MAX_D];
    gs_wgmma_begin(w, i, mask, da, db, scale_d);

    wgmma_desc a_desc = unpack_desc(w, da), b_desc = unpack_desc(w, db);
    for (int r = 0; r < p->a_regs; ++r) { /* as for mma: rows of 16 bytes */
        const uint8_t *v = gs_wgmma_input(w, i, first_a + r);
        for (int g = 0; g < 8; ++g) memcpy(ab[r % 2 * 8 + g] + r / 2 * 16, v + 16 * g, 16);
    }
    if (!p->a_regs) read_matrix(w, &a_desc, p->a_mn, (uint32_t)(w->id & 3) * 16, 16, ab);
    for (int r = 0; r < p->d_regs; ++r) d[r] = gs_wgmma_accumulator(w, i, r);

    double fa[TC_ROWS][TC_MAX_K];
    float ia[TC_ROWS][TC_MAX_K];
    for (int r = 0; r < TC_ROWS; ++r)
        if (p->integer)
            tc_to_float(ia[r], 1, ab[r], (enum tc_elem)p->a_elem, p->k);
        else
            tc_to_double(fa[r], 1, ab[r], (enum tc_elem)p->a_elem, p->k);
    for (int r = 0; r < TC_ROWS && p->negate; ++r)
        for (int k = 0; k < p->k; ++k) fa[r][k] = -fa[r][k];
    for (uint32_t n = 0; n < p->n; n += TC_COLS) {
        read_matrix(w, &b_desc, p->b_mn, n, TC_COLS, bb);
        uint8_t *const *dn = d + n / TC_COLS * (p->half ? 2 : 4);
        if (p->integer)
            columns_int(p, (const float(*)[TC_MAX_K])ia, (const uint8_t(*)[TC_ROW_BYTES])bb, dn, scale_d);
        else
            columns_double(p, (const double(*)[TC_MAX_K])fa, (const uint8_t(*)[TC_ROW_BYTES])bb, dn, scale_d);
    }
    gs_counts *c = gs_counts_of(w);
    c->wgmma++;
    c->mma_macs += (uint64_t)TC_ROWS * p->n * p->k;
}

GS_TABLE(wgmma) = {
    {"wgmma.mma_async.sync.aligned", T_NONE, decode_mma_async, exec_mma_async, GS_C_WGMMA, NULL},
    {"wgmma.fence.sync.aligned", T_NONE, decode_plain, gs_wgmma_fence, GS_C_FENCE, NULL},
    {"wgmma.commit_group.sync.aligned", T_NONE, decode_plain, gs_wgmma_commit, GS_C_FENCE, NULL},
    {"wgmma.wait_group.sync.aligned", T_NONE, decode_wait, gs_wgmma_wait, GS_C_FENCE, NULL},
    {NULL, T_NONE, NULL, NULL, 0, NULL},
};
