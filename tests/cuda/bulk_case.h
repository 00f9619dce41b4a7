/* SPDX-License-Identifier: Apache-2.0 */
/* What ptx_bulk.c and ptx_tensor.c share: tensors and the maps of them, the kernel around a copy, reductions in plain C. */
#ifndef RQ_BULK_CASE_H
#define RQ_BULK_CASE_H
#include "ptxtest.h"
#ifdef RQ_TEST_SIM
#include "../gpusim/tmap.h"
#endif

enum { SHARED = 16384, MAP_BYTES = 128, FILL = 0x6e };

/* ------------------------------------------------------------------ tensor maps */
enum { U8, U16, U32, S32, U64, S64, F16, F32, F64, BF16, TYPES }; /* as the driver numbers them */
static const int type_bytes[TYPES] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};

typedef struct tensor {
    int rank, type;
    uint64_t dim[5];
    int pad[5]; /* bytes after each row, plane...: multiples of 16 */
    uint32_t box[5], step[5];
    int swizzle; /* 0 none, 1 32 bytes, 2 64, 3 128 */
    bool nan;
    int32_t coord[5];
} tensor;

static inline int encode(void *map, int type, uint32_t rank, void *address, const uint64_t *dim, const uint64_t *stride,
                         const uint32_t *box, const uint32_t *step, int interleave, int swizzle, int l2, int fill) {
#ifdef RQ_TEST_SIM
    return gs_tmap_encode_tiled(map, type, rank, address, dim, stride, box, step, interleave, swizzle, l2, fill);
#else
    typedef int (*encode_fn)(void *, int, uint32_t, void *, const uint64_t *, const uint64_t *, const uint32_t *,
                             const uint32_t *, int, int, int, int);
    static encode_fn fn;
    if (!fn) {
        void *entry = NULL;
        enum cudaDriverEntryPointQueryResult found;
        CHECK_CUDA(
            cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
        if (!entry) RQ_DIE("no cuTensorMapEncodeTiled");
        memcpy(&fn, &entry, sizeof fn);
    }
    return fn(map, type, rank, address, dim, stride, box, step, interleave, swizzle, l2, fill);
#endif
}
static inline void strides(const tensor *t, uint64_t stride[5]) {
    stride[0] = (uint64_t)type_bytes[t->type];
    for (int k = 1; k < t->rank; ++k) {
        stride[k] = stride[k - 1] * t->dim[k - 1] + (uint64_t)t->pad[k - 1];
        stride[k] = (stride[k] + 15) / 16 * 16;
    }
}
static inline size_t tensor_bytes(const tensor *t) {
    uint64_t stride[5];
    strides(t, stride);
    return t->rank == 1 ? stride[0] * t->dim[0] : stride[t->rank - 1] * t->dim[t->rank - 1];
}
static inline int make_map(const tensor *t, void *map, void *base) {
    uint64_t stride[5];
    strides(t, stride);
    return encode(map, t->type, (uint32_t)t->rank, base, t->dim, stride + 1, t->box, t->step, 0, t->swizzle, 0, t->nan);
}
/* The element stride of the first dimension is ignored. */
static inline int step_of(const tensor *t, int k) { return k ? (int)t->step[k] : 1; }
static inline int box_size(const tensor *t, int k) { return ((int)t->box[k] + step_of(t, k) - 1) / step_of(t, k); }
static inline int box_elements(const tensor *t) {
    int n = 1;
    for (int k = 0; k < t->rank; ++k) n *= box_size(t, k);
    return n;
}
/* Element number e of the box: where it lies in global memory, -1 outside the tensor; and in shared memory. */
static inline void place(const tensor *t, int e, int64_t *global, int *shared) {
    uint64_t stride[5];
    int bytes = type_bytes[t->type], byte = e * bytes;
    strides(t, stride);
    *global = 0;
    for (int k = 0; k < t->rank; ++k) {
        int64_t x = t->coord[k] + (int64_t)(e % box_size(t, k)) * step_of(t, k);
        e /= box_size(t, k);
        if (x < 0 || (uint64_t)x >= t->dim[k]) *global = -1;
        if (*global >= 0) *global += x * (int64_t)stride[k];
    }
    int width = t->swizzle ? 16 << t->swizzle : 16, row = byte / width, piece = byte % width / 16;
    if (t->swizzle == 3) piece ^= row % 8;
    if (t->swizzle == 2) piece ^= row / 2 % 4;
    if (t->swizzle == 1) piece ^= row / 4 % 2;
    *shared = row * width + piece * 16 + byte % 16;
}

/* ------------------------------------------------------------------ kernels */
static char text[16384];
static int at;
#define TEXT(...) (at += snprintf(text + at, sizeof text - (size_t)at, __VA_ARGS__))

/* Parameters: global memory g, the image of shared memory i or where it goes, a tensor map, its coordinates. 128 threads; shared
 * memory is `sm`, `bar` two mbarriers of one arrival. %g, %i: for this thread's word; %G, %M: addresses of g and map; %S, %B:
 * shared addresses; %q: first thread. Each block has an image of its own. */
static inline void head(const char *extra) {
    at = 0;
    TEXT(".version 8.6\n.target sm_90a\n.address_size 64\n"
         ".visible .entry k(.param .u64 pg, .param .u64 pi, .param .align 64 .b8 map[128], .param .align 4 .b8 "
         "pc[20])\n%s{\n",
         extra);
    TEXT(".shared .align 1024 .b8 sm[%d];\n.shared .align 8 .b64 bar[2];\n", SHARED);
    TEXT(
        ".reg .b64 %%G; .reg .b64 %%i; .reg .b64 %%j; .reg .b64 %%M; .reg .b64 %%x; .reg .b32 %%S; .reg .b32 %%B;\n"
        ".reg .b32 %%t; .reg .b32 %%s; .reg .b32 %%n; .reg .b32 %%v; .reg .b32 %%c<5>; .reg .b32 %%r; .reg .b32 "
        "%%y<4>;\n"
        ".reg .pred %%q; .reg .pred %%p; .reg .b16 %%h; .reg .b64 %%policy;\n"
        "mov.u32 %%t, %%tid.x;\nmov.u32 %%S, sm;\nmov.u32 %%B, bar;\nsetp.eq.u32 %%q, %%t, 0;\nmov.u32 %%r, "
        "%%ctaid.x;\n"
        "ld.param.u64 %%G, [pg];\ncvta.to.global.u64 %%G, %%G;\nld.param.u64 %%i, [pi];\ncvta.to.global.u64 %%i, %%i;\n"
        "mul.wide.u32 %%x, %%r, %d;\nadd.u64 %%i, %%i, %%x;\nmul.wide.u32 %%x, %%t, 4;\nadd.u64 %%i, %%i, %%x;\n"
        "mov.b64 %%M, map;\ncvta.param.u64 %%M, %%M;\n",
        SHARED);
    for (int k = 0; k < 5; ++k) TEXT("ld.param.u32 %%c%d, [pc+%d];\n", k, 4 * k);
    TEXT("createpolicy.fractional.L2::evict_first.b64 %%policy, 1.0;\n");
}
/* Shared memory from the image, by ordinary stores; or the constant FILL. */
static inline void fill(bool image) {
    TEXT("shl.b32 %%s, %%t, 2;\nadd.u32 %%s, %%s, %%S;\nmov.u32 %%n, 0;\nmov.u64 %%j, %%i;\nmov.u32 %%v, %u;\nfill:\n",
         FILL * 0x01010101u);
    if (image) TEXT("ld.global.u32 %%v, [%%j];\n");
    TEXT("st.shared.u32 [%%s], %%v;\nadd.u32 %%s, %%s, 512;\nadd.u64 %%j, %%j, 512;\nadd.u32 %%n, %%n, 512;\n"
         "setp.lt.u32 %%p, %%n, %d;\n@%%p bra fill;\n",
         SHARED);
}
static inline void dump(void) {
    TEXT("shl.b32 %%s, %%t, 2;\nadd.u32 %%s, %%s, %%S;\nmov.u32 %%n, 0;\nmov.u64 %%j, %%i;\ndump:\n"
         "ld.shared.u32 %%v, [%%s];\nst.global.u32 [%%j], %%v;\nadd.u32 %%s, %%s, 512;\nadd.u64 %%j, %%j, 512;\n"
         "add.u32 %%n, %%n, 512;\nsetp.lt.u32 %%p, %%n, %d;\n@%%p bra dump;\n",
         SHARED);
}
static inline void init_bar(void) {
    TEXT("@%%q mbarrier.init.shared::cta.b64 [%%B], 1;\n@%%q fence.mbarrier_init.release.cluster;\n");
}
static inline void fence_and_bar(void) { TEXT("fence.proxy.async;\nbar.sync 0;\n"); }
static inline void expect(int bytes) { TEXT("@%%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%%B], %d;\n", bytes); }
static inline void wait_bar(void) {
    TEXT("wait:\nmbarrier.try_wait.parity.shared::cta.b64 %%p, [%%B], 0;\n@!%%p bra wait;\n");
}
static inline void cluster_sync(void) { TEXT("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n"); }
static inline void end(void) { TEXT("ret;\n}\n"); }

typedef struct result {
    uint8_t shared[2 * SHARED];
    uint8_t *global;
    bool ok;
} result;
/* Runs `text`. global: uploaded, and read back. map NULL: made of the tensor over the uploaded global memory. */
static inline void run(unsigned blocks, uint8_t *global, size_t global_bytes, const tensor *t, result *r,
                       bool may_fail) {
    rq_ptx *m = rq_ptx_load(text);
    void *g = rq_device_copy(global, global_bytes), *i = rq_device_copy(r->shared, blocks * (size_t)SHARED);
    uint8_t room[MAP_BYTES + 64], *map = room + (64 - (uintptr_t)room % 64) % 64;
    int32_t coord[5] = {0};
    memset(map, 0, MAP_BYTES);
    if (t) {
        if (make_map(t, map, g) != 0) RQ_DIE("the tensor map was refused");
        memcpy(coord, t->coord, sizeof coord);
    }
    void *args[] = {&g, &i, map, coord};
    r->ok = rq_ptx_try_launch(m, "k", blocks, 128, 0, args);
    if (!r->ok && !may_fail) RQ_DIE("the kernel did not run rightly:\n%s", text);
#ifdef RQ_TEST_SIM
    may_fail = true; /* a finding is no fault: there is something to read */
#else
    may_fail = r->ok;
#endif
    if (may_fail) {
        rq_device_read(global, g, global_bytes);
        rq_device_read(r->shared, i, blocks * (size_t)SHARED);
    }
    rq_device_free_all();
    rq_ptx_unload(m);
}
static inline void compare(const char *name, const uint8_t *got, const uint8_t *want, size_t n) {
    long failures = rq_test.failures;
    for (size_t k = 0; k < n; ++k) EXPECT_EQ_AT(k, got[k], want[k]);
    if (failures != rq_test.failures) fprintf(stderr, "  these were of %s\n", name);
    rq_record(name, RQ_U8, got, n, 0);
}

static result r_;
static uint8_t global_[1 << 20], expected_[1 << 20];

/* ------------------------------------------------------------------ reductions, one element in plain C */
enum op { ADD, MIN, MAX, INC, DEC, AND, OR, XOR };
static const char *const op_name[] = {"add", "min", "max", "inc", "dec", "and", "or", "xor"};
typedef struct reduction {
    enum op op;
    const char *type;
} reduction;
static inline int bytes_of(const char *type) { return strstr(type, "64") ? 8 : strstr(type, "16") ? 2 : 4; }
static inline uint64_t reduce_integer(enum op op, char kind, int bits, uint64_t a, uint64_t b) {
    bool less = kind == 's' ? (bits == 64 ? (int64_t)b < (int64_t)a : (int32_t)b < (int32_t)a) : b < a;
    switch (op) {
    case ADD: return a + b;
    case MIN: return less ? b : a;
    case MAX: return less ? a : b;
    case INC: return a >= b ? 0 : a + 1;
    case DEC: return a == 0 || a > b ? b : a - 1;
    case AND: return a & b;
    case OR: return a | b;
    default: return a ^ b;
    }
}
static inline void reduce(enum op op, const char *type, uint8_t *to, const uint8_t *from) {
    int n = bytes_of(type);
    uint64_t a = 0, b = 0;
    memcpy(&a, to, (size_t)n);
    memcpy(&b, from, (size_t)n);
    if (type[0] == 'f' && n > 2) {
        double x, y;
        if (n == 8) {
            memcpy(&x, to, 8);
            memcpy(&y, from, 8);
            x += y;
            memcpy(to, &x, 8);
        } else {
            float s = rq_float_of_bits((uint32_t)a) + rq_float_of_bits((uint32_t)b);
            memcpy(to, &s, 4);
        }
        return;
    }
    if (n == 2) {
        bool bf = type[0] == 'b';
        float x = bf ? rq_bf16_value((uint16_t)a) : rq_half_value((uint16_t)a);
        float y = bf ? rq_bf16_value((uint16_t)b) : rq_half_value((uint16_t)b);
        /* sums of these fit a float */
        float r = op == ADD ? x + y : op == MIN ? (y < x ? y : x) : (y > x ? y : x);
        uint16_t h = bf ? rq_bf16_bits(r) : rq_half_bits(r);
        memcpy(to, &h, 2);
        return;
    }
    uint64_t r = reduce_integer(op, type[0], 8 * n, a, b);
    memcpy(to, &r, (size_t)n);
}
/* Numbers for a type: floats between -1 and 1 in steps that keep sums exact enough for one rounding. */
static inline void random_elements(uint8_t *p, size_t bytes, const char *type, rq_rng *rng) {
    int n = bytes_of(type);
    rq_rand_bytes(rng, p, bytes);
    for (size_t k = 0; k < bytes; k += (size_t)n) {
        float x = rq_rand_float(rng);
        double y = x;
        uint16_t h = type[0] == 'b' ? rq_bf16_bits(x) : rq_half_bits(x);
        if (n == 2)
            memcpy(p + k, &h, 2);
        else if (!strcmp(type, "f32"))
            memcpy(p + k, &x, 4);
        else if (!strcmp(type, "f64"))
            memcpy(p + k, &y, 8);
        else if (rq_rand_u32(rng) % 4 == 0)
            memset(p + k, rq_rand_u32(rng) % 2 ? 0xff : 0, (size_t)n);
    }
}
/* ------------------------------------------------------------------ one copy into both blocks of a cluster */
static inline void multicast(const tensor *t, int mask, rq_rng *rng) {
    size_t n = t ? tensor_bytes(t) : 4096;
    int bytes = t ? box_elements(t) * type_bytes[t->type] : 2048;
    rq_rand_bytes(rng, global_, n);
    memset(expected_, FILL, 2 * SHARED);
    for (int b = 0; b < 2; ++b)
        for (int e = 0; (mask >> b & 1) && t && e < box_elements(t); ++e) {
            int64_t from;
            int to;
            place(t, e, &from, &to);
            memset(expected_ + b * SHARED + to, 0, (size_t)type_bytes[t->type]);
            if (from >= 0) memcpy(expected_ + b * SHARED + to, global_ + from, (size_t)type_bytes[t->type]);
        }
    for (int b = 0; b < 2; ++b)
        if ((mask >> b & 1) && !t) memcpy(expected_ + b * SHARED, global_ + 64, (size_t)bytes);
    head(".reqnctapercluster 2\n");
    init_bar();
    fill(false);
    fence_and_bar();
    TEXT("shr.u32 %%y0, %d, %%r;\nand.b32 %%y0, %%y0, 1;\nmul.lo.u32 %%y0, %%y0, %d;\n", mask, bytes);
    TEXT("@%%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%%B], %%y0;\n");
    cluster_sync();
    TEXT("setp.eq.and.u32 %%p, %%r, 1, %%q;\nmov.u16 %%h, %d;\n@%%p cp.async.bulk.", mask); /* block 1 sends */
    if (t) TEXT("tensor.%dd.", t->rank);
    TEXT("shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster ");
    if (t)
        TEXT("[%%S], [%%M, {%%c0, %%c1}], [%%B], %%h;\n");
    else
        TEXT("[%%S], [%%G+64], %d, [%%B], %%h;\n", bytes);
    wait_bar();
    cluster_sync();
    dump();
    end();
    run(2, global_, n, t, &r_, false);
    compare("multicast", r_.shared, expected_, 2 * SHARED);
}

#ifdef RQ_TEST_SIM
static char seen[4000];
static inline void sink(void *user, const char *kind, const char *finding) {
    (void)user;
    size_t n = strlen(seen);
    snprintf(seen + n, sizeof seen - n, "%s: %s\n", kind, finding);
}
/* kind: what must be found; "a|b": either, as the order of the warps has it; "": nothing. */
static inline void judge(const char *what, const tensor *t, const char *kind) {
    seen[0] = 0;
    gs_findings_reset();
    gs_findings_sink(sink, NULL);
    memset(r_.shared, 1, sizeof r_.shared);
    memset(global_, 0x33, 8192);
    run(1, global_, 8192, t, &r_, true);
    gs_findings_sink(NULL, NULL);
    bool found = !kind[0] && !seen[0];
    char kinds[100];
    snprintf(kinds, sizeof kinds, "%s", kind);
    for (char *one = strtok(kinds, "|"); one; one = strtok(NULL, "|")) found |= strstr(seen, one) != NULL;
    EXPECT(found && r_.ok == !kind[0]);
    if (!found) fprintf(stderr, "  %s: found '%s', expected '%s'\n%s", what, seen, kind, text);
}
/* The usual kernel around `body`; what it must find. */
static inline void load_case(const char *what, const tensor *t, const char *body, const char *kind) {
    head("");
    init_bar();
    TEXT("@%%q mbarrier.init.shared::cta.b64 [%%B+8], 1;\n");
    TEXT("fence.proxy.async;\nbar.sync 0;\n%s", body);
    end();
    judge(what, t, kind);
}
#define LOAD       "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%G], 512, [%B];\n"
#define LOAD2      "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S+512], [%G], 512, [%B+8];\n"
#define EXPECT_TX  "@%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%B], 512;\n"
#define EXPECT_TX2 "@%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%B+8], 512;\n"
#define WAIT       "w:\nmbarrier.try_wait.parity.shared::cta.b64 %p, [%B], 0;\n@!%p bra w;\n"
#define WAIT2      "w2:\nmbarrier.try_wait.parity.shared::cta.b64 %p, [%B+8], 0;\n@!%p bra w2;\n"
#define USE        "shl.b32 %s, %t, 2;\nadd.u32 %s, %s, %S;\nld.shared.u32 %v, [%s];\nst.global.u32 [%i], %v;\n"
#define USE2       "shl.b32 %s, %t, 2;\nadd.u32 %s, %s, %S;\nld.shared.u32 %v, [%s+512];\nst.global.u32 [%i], %v;\n"
#define PUT        "shl.b32 %s, %t, 2;\nadd.u32 %s, %s, %S;\nst.shared.u32 [%s], %t;\n"
#define PUT_OTHER  "not.b32 %v, %t;\nshl.b32 %s, %t, 2;\nadd.u32 %s, %s, %S;\nst.shared.u32 [%s], %v;\n"
#define STORE      "@%q cp.async.bulk.global.shared::cta.bulk_group [%G], [%S], 512;\n"
#define COMMIT     "@%q cp.async.bulk.commit_group;\n"
#define TENSOR     "@%q cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "

static inline void expect_word(uint32_t want) {
    uint32_t got;
    memcpy(&got, r_.shared, 4);
    EXPECT_EQ(got, want);
}
#endif

#endif
