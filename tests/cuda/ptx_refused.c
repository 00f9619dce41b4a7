/* SPDX-License-Identifier: Apache-2.0 */
/* What is no instruction must not load: a modifier that an opcode does not have, one that is missing, a type it has
 * none of, operands of the wrong size, forms of other targets. The compiler of a GPU's driver refuses all of these too.
 * */
#include "ptxtest.h"

#ifdef RQ_TEST_SIM
static void hear_nothing(void *user, const char *kind, const char *text) { (void)user, (void)kind, (void)text; }
#endif
static bool loads(const char *instruction) {
    char text[1200];
    snprintf(text, sizeof text,
             ".version 8.3\n.target sm_90\n.address_size 64\n.visible .entry k()\n{\n.reg .pred p, q, s;\n"
             ".reg .b16 hd, ha, hb, hc;\n.reg .b32 d, a, b, c;\n.reg .b64 ld, la, lb, lc;\n%s\nret;\n}\n",
             instruction);
#ifdef RQ_TEST_SIM /* a kernel that cannot be read stops its launch */
    rq_ptx *m = rq_ptx_load(text);
    void *args[1] = {NULL};
    gs_launch_opt opt = {{1, 1, 1}, {32, 1, 1}, {0, 0, 0}, 0, false, args, NULL};
    bool ok = gs_launch(gs_module_kernel(m, "k"), &opt, NULL) != GS_BAD_LAUNCH;
    rq_ptx_unload(m);
#else
    rq_ptx *m = rq_ptx_try_load(text);
    cudaKernel_t k = NULL;
    bool ok = m != NULL && cudaLibraryGetKernel(&k, m, "k") == cudaSuccess;
    if (m) cudaLibraryUnload(m);
    (void)cudaGetLastError();
#endif
    return ok;
}

static const char *const good[] = {
    "add.u32 d, a, b;",           "cvt.rn.f16.f32 hd, a;",
    "setp.eq.u32 p|q, a, 1;",     "shfl.sync.idx.b32 d|p, a, b, 31, -1;",
    "lop3.b32 d, a, b, c, 0x3f;", "{.reg.b16 x; mov.b16 x, ha; add.f16 hd, x, hb;}" /* no blank after .reg */};
static const char *const refused[] = {
    /* integers */
    "add.sat.u32 d, a, b;", "add.u8 hd, ha, hb;", "add.b32 d, a, b;", "add.rn.u32 d, a, b;", "add.cc.sat.s32 d, a, b;",
    "mul.u32 d, a, b;", "mul.wide.u64 ld, la, lb;", "mul24.u32 d, a, b;", "mad.lo.sat.s32 d, a, b, c;",
    "mad.lo.u32 d, a, b;", "abs.u32 d, a;", "popc.u32 d, a;", "popc.b64 ld, la;", "bfind.b32 d, a;",
    "bfe.b32 d, a, b, c;", "bfi.u32 d, a, b, c, c;", "min.b32 d, a, b;", "min.u32.relu d, a, b;", "szext.s32 d, a, b;",
    "dp4a.u32 d, a, b, c;", "dp2a.u32.u32 d, a, b, c;", "add.u32 ld, a, b;", "add.u32 d, la, b;", "add.u32 d, a, hb;",
    "add.u32 1, a, b;", "add.u32 d, a, p;", "add.u32 d, a;", "add.u32 d, a, b, c;",
    /* logic */
    "and.u32 d, a, b;", "and.pred p, q, a;", "shl.u32 d, a, b;", "shr.b32 d, a, lb;", "shf.l.b32 d, a, b, c;",
    "lop3.and.b32 d, a, b, c, 3;", "lop3.b32 d, a, b, c, c;", "prmt.u32 d, a, b, c;", "prmt.b32.f8e d, a, b, c;",
    "selp.b32 d, a, b, c;", "slct.b32 d, a, b, c;", "slct.u32.u32 d, a, b, c;",
    /* floats */
    "div.f32 d, a, b;", "div.rn.sat.f32 d, a, b;", "sqrt.f32 d, a;", "rcp.f64 ld, la;", "fma.f32 d, a, b, c;",
    "add.ftz.f64 ld, la, lb;", "add.sat.f64 ld, la, lb;", "add.approx.f32 d, a, b;", "min.abs.f32 d, a, b;",
    "min.xorsign.f32 d, a, b;", "min.NaN.f64 ld, la, lb;", "ex2.f32 d, a;", "sin.approx.f64 ld, la;",
    "tanh.approx.ftz.f32 d, a;", "lg2.rn.f32 d, a;", "copysign.ftz.f32 d, a, b;", "rsqrt.rn.f32 d, a;",
    /* halves */
    "add.rz.f16 hd, ha, hb;", "add.sat.bf16 hd, ha, hb;", "fma.f16 hd, ha, hb, hc;",
    "fma.rn.sat.relu.f16 hd, ha, hb, hc;", "fma.rn.ftz.bf16 hd, ha, hb, hc;", "ex2.approx.bf16 hd, ha;",
    "min.ftz.bf16 hd, ha, hb;", "add.f16x2 hd, ha, hb;", "mul.relu.f16 hd, ha, hb;", "fma.rn.f32.f16 d, ha, hb, c;",
    /* conversions */
    "cvt.f32.f64 d, la;", "cvt.rn.f64.f32 ld, a;", "cvt.s32.f32 d, a;", "cvt.rn.s32.f32 d, a;", "cvt.rni.f32.s32 d, a;",
    "cvt.f32.s32 d, a;", "cvt.rna.f16.f32 hd, a;", "cvt.rn.e4m3x2.f32 hd, a, b;", "cvt.rn.satfinite.e4m3x2.f32 hd, a;",
    "cvt.sat.f32.bf16 d, ha;", "cvt.ftz.f64.s32 ld, a;", "cvt.rn.f16x2.f32 d, a;", "cvt.rn.u16.u32 hd, a;",
    "cvt.u64.u32 d, a;", "cvt.u32.u64 d, a;", "cvt.rn.relu.f32.f64 d, la;", "cvt.pack.s16.s32 d, a, b;",
    "cvt.pack.sat.u8.s32 d, a, b;",
    /* comparisons */
    "setp.u32 p, a, b;", "setp.lo.s32 p, a, b;", "setp.lt.b32 p, a, b;", "setp.ltu.u32 p, a, b;",
    "setp.lt.ftz.f64 p, la, lb;", "setp.eq.f16 p|q, ha, hb;", "setp.eq.and.u32 p, a, b;", "setp.eq.u32 p, a, b, q;",
    "setp.eq.u32 d, a, b;", "set.eq.f16.bf16 hd, ha, hb;", "set.eq.u16.u32 hd, a, b;", "set.eq.f64.u32 ld, a, b;",
    "setp.eq.ftz.u32 p, a, b;",
    /* warps */
    "shfl.down.b32 d, a, b, 31;", "shfl.sync.b32 d, a, b, 31, -1;", "shfl.sync.down.b64 ld, la, b, 31, -1;",
    "vote.ballot.b32 d, p;", "vote.sync.ballot.b32 d, a, -1;", "vote.sync.pred p, q, -1;", "match.sync.b32 d, a, -1;",
    "match.any.sync.b32 d|p, a, -1;", "redux.sync.add.b32 d, a, -1;", "redux.sync.and.u32 d, a, -1;",
    "redux.sync.min.f32 d, a, -1;", "elect.sync d, -1;"};

int main(void) {
#ifdef RQ_TEST_SIM
    gs_findings_sink(hear_nothing, NULL); /* each refusal is one */
#else
    setenv("CUDA_MODULE_LOADING", "EAGER", 1); /* compile when loading, not at the first launch */
#endif
    rq_need_device(90);
    for (size_t k = 0; k < sizeof good / sizeof *good; ++k)
        if (rq_failed(loads(good[k]))) fprintf(stderr, "'%s' does not load\n", good[k]);
    for (size_t k = 0; k < sizeof refused / sizeof *refused; ++k)
        if (rq_failed(!loads(refused[k]))) fprintf(stderr, "'%s' loads\n", refused[k]);
#ifdef RQ_TEST_SIM
    gs_findings_sink(NULL, NULL);
    gs_findings_reset();
#endif
    return rq_done(__FILE__);
}
