/* SPDX-License-Identifier: Apache-2.0 */
/* ldmatrix, stmatrix, movmatrix: every count, plain and transposed, shared and generic addresses, rows scattered over shared
 * memory. Element (r, c) of matrix q is the number 256 q + 16 r + c, so the place of every element shows.
 * Targets: sm_90a */
#include "ptxtest.h"

enum { PITCH = 48, ROWS = 32, SHARED = ROWS * PITCH }; /* bytes from row to row */

static char text[8192];
static int at;
#define TEXT(...) (at += snprintf(text + at, sizeof text - (size_t)at, __VA_ARGS__))

static uint16_t element(int q, int r, int c) { return (uint16_t)(256 * q + 16 * r + c); }
/* Row r of matrix q lies in this row of shared memory: scattered, so that addresses of lanes matter. */
static int slot(int q, int r) { return (5 * (8 * q + r) + 3) % ROWS; }

/* Shared memory is filled from `in` word by word, or written out to `out`; the address of lane l's row is in rows[l]. */
static void head(void) {
    at = 0;
    TEXT(RQ_PTX_HEAD ".visible .entry k(.param .u64 pin, .param .u64 prow, .param .u64 pout)\n{\n"
                     ".shared .align 16 .b8 sm[%d];\n"
                     ".reg .b32 %%r<8>; .reg .b32 %%t; .reg .b32 %%s; .reg .b32 %%a; .reg .b32 %%v; .reg .b32 %%o;\n"
                     ".reg .b64 %%in; .reg .b64 %%row; .reg .b64 %%out; .reg .b64 %%q; .reg .b64 %%g; .reg .pred %%p;\n"
                     "mov.u32 %%t, %%tid.x;\nmov.u32 %%s, sm;\nmul.wide.u32 %%q, %%t, 4;\n",
         SHARED);
    TEXT("ld.param.u64 %%in, [pin];\ncvta.to.global.u64 %%in, %%in;\nadd.u64 %%in, %%in, %%q;\n"
         "ld.param.u64 %%row, [prow];\ncvta.to.global.u64 %%row, %%row;\nadd.u64 %%row, %%row, %%q;\n"
         "ld.param.u64 %%out, [pout];\ncvta.to.global.u64 %%out, %%out;\nadd.u64 %%out, %%out, %%q;\n"
         "shl.b32 %%o, %%t, 2;\nadd.u32 %%o, %%o, %%s;\n"
         "ld.global.u32 %%a, [%%row];\nadd.u32 %%a, %%a, %%s;\n"
         "cvt.u64.u32 %%g, %%a;\ncvta.shared.u64 %%g, %%g;\n");
}
static void list(int n) {
    for (int r = 0; r < n; ++r) TEXT("%s%%r%d", r ? "," : "{", r);
    TEXT("}");
}
static const char *address(bool generic) { return generic ? "[%g]" : "[%a]"; }

static void write_load(int n, bool trans, bool generic) {
    head();
    for (int k = 0; k < SHARED / 4; k += 32)
        TEXT("ld.global.u32 %%v, [%%in+%d];\nst.shared.u32 [%%o+%d], %%v;\n", 4 * k, 4 * k);
    TEXT("bar.sync 0;\nldmatrix.sync.aligned.m8n8.x%d%s%s.b16 ", n, trans ? ".trans" : "", generic ? "" : ".shared");
    list(n);
    TEXT(", %s;\n", address(generic));
    for (int r = 0; r < n; ++r) TEXT("st.global.u32 [%%out+%d], %%r%d;\n", 128 * r, r);
    TEXT("ret;\n}\n");
}
static void write_store(int n, bool trans, bool generic) {
    head();
    TEXT("mov.b32 %%v, 0;\n");
    for (int k = 0; k < SHARED / 4; k += 32) TEXT("st.shared.u32 [%%o+%d], %%v;\n", 4 * k);
    for (int r = 0; r < n; ++r) TEXT("ld.global.u32 %%r%d, [%%in+%d];\n", r, 128 * r);
    TEXT("bar.sync 0;\nstmatrix.sync.aligned.m8n8.x%d%s%s.b16 %s, ", n, trans ? ".trans" : "",
         generic ? "" : ".shared::cta", address(generic));
    list(n);
    TEXT(";\nbar.sync 0;\n");
    for (int k = 0; k < SHARED / 4; k += 32)
        TEXT("ld.shared.u32 %%v, [%%o+%d];\nst.global.u32 [%%out+%d], %%v;\n", 4 * k, 4 * k);
    TEXT("ret;\n}\n");
}

/* The fragment: lane l has elements 2 (l % 4) and the next of row l / 4; transposed, of column l / 4. */
static uint32_t fragment(int q, int l, bool trans) {
    int i = l >> 2, j = 2 * (l & 3);
    uint32_t lo = trans ? element(q, j, i) : element(q, i, j), hi = trans ? element(q, j + 1, i) : element(q, i, j + 1);
    return lo | hi << 16;
}
static void image(uint8_t *shared, int n) {
    memset(shared, 0, SHARED);
    for (int q = 0; q < n; ++q)
        for (int r = 0; r < 8; ++r)
            for (int c = 0; c < 8; ++c) {
                uint16_t e = element(q, r, c);
                memcpy(shared + slot(q, r) * PITCH + 2 * c, &e, 2);
            }
}
static void *row_addresses(int n) {
    uint32_t rows[32];
    for (int l = 0; l < 32; ++l)
        rows[l] = l < 8 * n ? (uint32_t)(slot(l / 8, l % 8) * PITCH) : 0x7ffffff1u; /* not looked at */
    return rq_device_copy(rows, sizeof rows);
}

static void try_load(int n, bool trans, bool generic) {
    uint8_t shared[SHARED];
    uint32_t got[4 * 32];
    image(shared, 4);
    write_load(n, trans, generic);
    rq_ptx *m = rq_ptx_load(text);
    void *in = rq_device_copy(shared, SHARED), *rows = row_addresses(n), *out = rq_device_buffer((size_t)n * 128);
    void *args[] = {&in, &rows, &out};
    rq_ptx_launch(m, "k", 1, 32, 0, args);
    rq_device_read(got, out, (size_t)n * 128);
    for (int q = 0; q < n; ++q)
        for (int l = 0; l < 32; ++l) EXPECT_EQ_AT(q * 32 + l, got[q * 32 + l], fragment(q, l, trans));
    char name[60];
    snprintf(name, sizeof name, "ldmatrix x%d%s%s", n, trans ? " trans" : "", generic ? " generic" : "");
    rq_record(name, RQ_U32, got, (size_t)n * 32, 0);
    rq_device_free_all();
    rq_ptx_unload(m);
}

static void try_store(int n, bool trans, bool generic) {
    uint8_t want[SHARED], got[SHARED];
    uint32_t regs[4 * 32];
    for (int q = 0; q < n; ++q)
        for (int l = 0; l < 32; ++l) regs[q * 32 + l] = fragment(q, l, trans);
    image(want, n);
    write_store(n, trans, generic);
    rq_ptx *m = rq_ptx_load(text);
    void *in = rq_device_copy(regs, (size_t)n * 128), *rows = row_addresses(n), *out = rq_device_buffer(SHARED);
    void *args[] = {&in, &rows, &out};
    rq_ptx_launch(m, "k", 1, 32, 0, args);
    rq_device_read(got, out, SHARED);
    for (int k = 0; k < SHARED; ++k) EXPECT_EQ_AT(k, got[k], want[k]);
    char name[60];
    snprintf(name, sizeof name, "stmatrix x%d%s%s", n, trans ? " trans" : "", generic ? " generic" : "");
    rq_record(name, RQ_U8, got, SHARED, 0);
    rq_device_free_all();
    rq_ptx_unload(m);
}

static void try_move(void) {
    uint32_t regs[32], got[32];
    for (int l = 0; l < 32; ++l) regs[l] = fragment(1, l, false);
    head();
    TEXT(
        "ld.global.u32 %%r0, [%%in];\nmovmatrix.sync.aligned.m8n8.trans.b16 %%r1, %%r0;\nst.global.u32 [%%out], %%r1;\n"
        "ret;\n}\n");
    rq_ptx *m = rq_ptx_load(text);
    void *in = rq_device_copy(regs, sizeof regs), *rows = row_addresses(1), *out = rq_device_buffer(sizeof got);
    void *args[] = {&in, &rows, &out};
    rq_ptx_launch(m, "k", 1, 32, 0, args);
    rq_device_read(got, out, sizeof got);
    for (int l = 0; l < 32; ++l) EXPECT_EQ_AT(l, got[l], fragment(1, l, true));
    rq_record("movmatrix", RQ_U32, got, 32, 0);
    rq_device_free_all();
    rq_ptx_unload(m);
}

#ifdef RQ_TEST_SIM
static char seen[64];
static void sink(void *user, const char *kind, const char *finding) {
    (void)user;
    (void)finding;
    snprintf(seen, sizeof seen, "%s", kind);
}

/* x4 with these row addresses: the finding, and the wavefronts when there is none. */
static void try_rows(bool store, const uint32_t rows[32], const char *kind, int waves) {
    uint8_t shared[SHARED] = {0};
    if (store)
        write_store(4, false, false);
    else
        write_load(4, false, false);
    rq_ptx *m = rq_ptx_load(text);
    void *in = rq_device_copy(shared, SHARED), *row = rq_device_copy(rows, 128), *out = rq_device_buffer(SHARED);
    void *args[] = {&in, &row, &out};
    gs_launch_opt opt = {{1, 1, 1}, {32, 1, 1}, {0, 0, 0}, 0, false, args, NULL};
    gs_counts counts;
    seen[0] = 0;
    gs_findings_sink(sink, NULL);
    gs_result r = gs_launch(gs_module_kernel(m, "k"), &opt, &counts);
    gs_findings_sink(NULL, NULL);
    EXPECT(!strcmp(seen, kind));
    if (strcmp(seen, kind)) fprintf(stderr, "  found '%s', expected '%s'\n", seen, kind);
    EXPECT((r == GS_OK) == !kind[0]);
    if (waves) {
        int others = SHARED / 4 / 32; /* the word loops: one wavefront each */
        EXPECT_EQ(store ? counts.shared_st_waves : counts.shared_ld_waves, waves + (store ? others : 0));
        EXPECT_EQ(store ? counts.shared_st_ideal : counts.shared_ld_ideal, 4 + (store ? others : 0));
        EXPECT_EQ(counts.by_class[GS_C_MATRIX], 1);
    }
    rq_device_free_all();
    rq_ptx_unload(m);
}
static void checks(void) {
    uint32_t rows[32];
    for (int store = 0; store < 2; ++store) {
        for (int l = 0; l < 32; ++l) rows[l] = (uint32_t)l * 16;
        try_rows(store, rows, "", 4); /* eight rows side by side: all banks once */
        for (int l = 0; l < 32; ++l) rows[l] = (uint32_t)l * PITCH;
        try_rows(store, rows, "", 4); /* 48 bytes: 8 rows hit 8 different groups of four banks */
        for (int l = 0; l < 32; ++l) rows[l] = (uint32_t)(l % 8 * 128 + l / 8 * 16);
        try_rows(store, rows, "", 32); /* 128 bytes: eight rows on the same four banks */
        for (int l = 0; l < 32; ++l) rows[l] = (uint32_t)l * 16 + 8 * (l == 9);
        try_rows(store, rows, "misaligned", 0);
        for (int l = 0; l < 32; ++l) rows[l] = l == 21 ? SHARED : (uint32_t)l * 16;
        try_rows(store, rows, "out of bounds", 0);
    }
    at = 0;
    TEXT(RQ_PTX_HEAD
         ".visible .entry k()\n{\n.reg .b32 %%r<4>;\nldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%%r0,%%r1}, "
         "[%%r2];\nret;\n}\n");
    rq_ptx *m = rq_ptx_load(text);
    gs_findings_sink(sink, NULL);
    EXPECT(!rq_ptx_try_launch(m, "k", 1, 32, 0, NULL));
    gs_findings_sink(NULL, NULL);
    EXPECT(strstr(gs_error(), "m16n16") != NULL);
    rq_ptx_unload(m);
}
#endif

int main(void) {
    rq_need_device(90);
    for (int n = 1; n <= 4; n *= 2)
        for (int trans = 0; trans < 2; ++trans)
            for (int generic = 0; generic < 2; ++generic) {
                try_load(n, trans, generic);
                try_store(n, trans, generic);
            }
    try_move();
#ifdef RQ_TEST_SIM
    checks();
#endif
    return rq_done(__FILE__);
}
