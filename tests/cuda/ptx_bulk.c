/* SPDX-License-Identifier: Apache-2.0 */
/* cp.async.bulk: linear and tensor copies in both directions, reductions, multicast and copies between the blocks of a
 * cluster, against loops over bytes. Tensors of one to five dimensions with padded strides, boxes that hang over every edge,
 * element strides, every swizzle. Also which tensor maps cuTensorMapEncodeTiled takes.
 * Then the simulator's part: what is wrong is found, what is right is silent.
 * Targets: sm_90a */
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

static int encode(void *map, int type, uint32_t rank, void *address, const uint64_t *dim, const uint64_t *stride,
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
static void strides(const tensor *t, uint64_t stride[5]) {
    stride[0] = (uint64_t)type_bytes[t->type];
    for (int k = 1; k < t->rank; ++k) {
        stride[k] = stride[k - 1] * t->dim[k - 1] + (uint64_t)t->pad[k - 1];
        stride[k] = (stride[k] + 15) / 16 * 16;
    }
}
static size_t tensor_bytes(const tensor *t) {
    uint64_t stride[5];
    strides(t, stride);
    return t->rank == 1 ? stride[0] * t->dim[0] : stride[t->rank - 1] * t->dim[t->rank - 1];
}
static int make_map(const tensor *t, void *map, void *base) {
    uint64_t stride[5];
    strides(t, stride);
    return encode(map, t->type, (uint32_t)t->rank, base, t->dim, stride + 1, t->box, t->step, 0, t->swizzle, 0, t->nan);
}
/* The element stride of the first dimension is ignored. */
static int step_of(const tensor *t, int k) { return k ? (int)t->step[k] : 1; }
static int box_size(const tensor *t, int k) { return ((int)t->box[k] + step_of(t, k) - 1) / step_of(t, k); }
static int box_elements(const tensor *t) {
    int n = 1;
    for (int k = 0; k < t->rank; ++k) n *= box_size(t, k);
    return n;
}
/* Element number e of the box: where it lies in global memory, -1 outside the tensor; and in shared memory. */
static void place(const tensor *t, int e, int64_t *global, int *shared) {
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
static void head(const char *extra) {
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
static void fill(bool image) {
    TEXT("shl.b32 %%s, %%t, 2;\nadd.u32 %%s, %%s, %%S;\nmov.u32 %%n, 0;\nmov.u64 %%j, %%i;\nmov.u32 %%v, %u;\nfill:\n",
         FILL * 0x01010101u);
    if (image) TEXT("ld.global.u32 %%v, [%%j];\n");
    TEXT("st.shared.u32 [%%s], %%v;\nadd.u32 %%s, %%s, 512;\nadd.u64 %%j, %%j, 512;\nadd.u32 %%n, %%n, 512;\n"
         "setp.lt.u32 %%p, %%n, %d;\n@%%p bra fill;\n",
         SHARED);
}
static void dump(void) {
    TEXT("shl.b32 %%s, %%t, 2;\nadd.u32 %%s, %%s, %%S;\nmov.u32 %%n, 0;\nmov.u64 %%j, %%i;\ndump:\n"
         "ld.shared.u32 %%v, [%%s];\nst.global.u32 [%%j], %%v;\nadd.u32 %%s, %%s, 512;\nadd.u64 %%j, %%j, 512;\n"
         "add.u32 %%n, %%n, 512;\nsetp.lt.u32 %%p, %%n, %d;\n@%%p bra dump;\n",
         SHARED);
}
static void init_bar(void) {
    TEXT("@%%q mbarrier.init.shared::cta.b64 [%%B], 1;\n@%%q fence.mbarrier_init.release.cluster;\n");
}
static void fence_and_bar(void) { TEXT("fence.proxy.async;\nbar.sync 0;\n"); }
static void expect(int bytes) { TEXT("@%%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%%B], %d;\n", bytes); }
static void wait_bar(void) {
    TEXT("wait:\nmbarrier.try_wait.parity.shared::cta.b64 %%p, [%%B], 0;\n@!%%p bra wait;\n");
}
static void cluster_sync(void) { TEXT("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n"); }
static void end(void) { TEXT("ret;\n}\n"); }

typedef struct result {
    uint8_t shared[2 * SHARED];
    uint8_t *global;
    bool ok;
} result;
/* Runs `text`. global: uploaded, and read back. map NULL: made of the tensor over the uploaded global memory. */
static void run(unsigned blocks, uint8_t *global, size_t global_bytes, const tensor *t, result *r, bool may_fail) {
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
static void compare(const char *name, const uint8_t *got, const uint8_t *want, size_t n) {
    long failures = rq_test.failures;
    for (size_t k = 0; k < n; ++k) EXPECT_EQ_AT(k, got[k], want[k]);
    if (failures != rq_test.failures) fprintf(stderr, "  these were of %s\n", name);
    rq_record(name, RQ_U8, got, n, 0);
}

static result r_;
static uint8_t global_[1 << 20], expected_[1 << 20];

/* ------------------------------------------------------------------ linear copies */
static void linear_load(const char *form, const char *tail, int bytes, int from, int to, rq_rng *rng) {
    rq_rand_bytes(rng, global_, 8192);
    head("");
    init_bar();
    fill(false);
    fence_and_bar();
    expect(bytes);
    TEXT("mov.u32 %%y0, %d;\n@%%q cp.async.bulk.%s [%%S+%d], [%%G+%d], %%y0, [%%B]%s;\n", bytes, form, to, from, tail);
    wait_bar();
    dump();
    end();
    run(1, global_, 8192, NULL, &r_, false);
    memset(expected_, FILL, SHARED);
    memcpy(expected_ + to, global_ + from, (size_t)bytes);
    compare(form, r_.shared, expected_, SHARED);
}
static void linear_store(const char *wait, int bytes, int from, int to, rq_rng *rng) {
    rq_rand_bytes(rng, r_.shared, SHARED);
    memset(global_, FILL, 8192);
    memcpy(expected_, global_, 8192);
    memcpy(expected_ + to, r_.shared + from, (size_t)bytes);
    head("");
    fill(true);
    fence_and_bar();
    TEXT("@%%q cp.async.bulk.global.shared::cta.bulk_group [%%G+%d], [%%S+%d], %d;\n", to, from, bytes / 2);
    TEXT("@%%q cp.async.bulk.commit_group;\n");
    TEXT("@%%q cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%%G+%d], [%%S+%d], %d, %%policy;\n",
         to + bytes / 2, from + bytes / 2, bytes / 2);
    TEXT("@%%q cp.async.bulk.commit_group;\n@%%q cp.async.bulk.wait_group%s 1;\n@%%q cp.async.bulk.wait_group%s 0;\n",
         wait, wait);
    end();
    run(1, global_, 8192, NULL, &r_, false);
    compare("store", global_, expected_, 8192);
}

/* ------------------------------------------------------------------ reductions, one element in plain C */
enum op { ADD, MIN, MAX, INC, DEC, AND, OR, XOR };
static const char *const op_name[] = {"add", "min", "max", "inc", "dec", "and", "or", "xor"};
typedef struct reduction {
    enum op op;
    const char *type;
} reduction;
static const reduction reductions[] = {
    {ADD, "u32"}, {ADD, "s32"}, {ADD, "u64"}, {ADD, "f32"}, {ADD, "f64"},  {ADD, "f16"},  {ADD, "bf16"},
    {MIN, "u32"}, {MIN, "s32"}, {MIN, "u64"}, {MIN, "s64"}, {MIN, "f16"},  {MIN, "bf16"}, {MAX, "u32"},
    {MAX, "s32"}, {MAX, "u64"}, {MAX, "s64"}, {MAX, "f16"}, {MAX, "bf16"}, {INC, "u32"},  {DEC, "u32"},
    {AND, "b32"}, {OR, "b32"},  {XOR, "b32"}, {AND, "b64"}, {OR, "b64"},   {XOR, "b64"},
};
enum { REDUCTIONS = sizeof reductions / sizeof *reductions };

static int bytes_of(const char *type) { return strstr(type, "64") ? 8 : strstr(type, "16") ? 2 : 4; }
static uint64_t reduce_integer(enum op op, char kind, int bits, uint64_t a, uint64_t b) {
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
static void reduce(enum op op, const char *type, uint8_t *to, const uint8_t *from) {
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
static void random_elements(uint8_t *p, size_t bytes, const char *type, rq_rng *rng) {
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
static void reduce_store(const reduction *d, rq_rng *rng) {
    const int n = 512;
    bool half = bytes_of(d->type) == 2;
    random_elements(global_, (size_t)n, d->type, rng);
    random_elements(r_.shared, SHARED, d->type, rng);
    memcpy(expected_, global_, (size_t)n);
    for (int k = 0; k < n; k += bytes_of(d->type)) reduce(d->op, d->type, expected_ + k, r_.shared + k);
    head("");
    fill(true);
    fence_and_bar();
    TEXT("@%%q cp.reduce.async.bulk.global.shared::cta.bulk_group.%s%s.%s [%%G], [%%S], %d;\n", op_name[d->op],
         half && d->op == ADD ? ".noftz" : "", d->type, n);
    TEXT("@%%q cp.async.bulk.commit_group;\n@%%q cp.async.bulk.wait_group 0;\n");
    end();
    run(1, global_, (size_t)n, NULL, &r_, false);
    char name[60];
    snprintf(name, sizeof name, "reduce %s %s", op_name[d->op], d->type);
    compare(name, global_, expected_, (size_t)n);
}

/* ------------------------------------------------------------------ clusters: block 0 copies into block 1 */
static void remote(const reduction *d, rq_rng *rng) {
    const int n = 256, to = 4096;
    const char *type = d ? d->type : "b32";
    random_elements(r_.shared, 2 * SHARED, type, rng);
    memcpy(expected_, r_.shared, 2 * SHARED);
    for (int k = 0; k < n; k += bytes_of(type))
        if (d)
            reduce(d->op, type, expected_ + SHARED + to + k, r_.shared + k);
        else
            memcpy(expected_ + SHARED + to + k, r_.shared + k, 4);
    head(".reqnctapercluster 2\n");
    init_bar();
    fill(true);
    fence_and_bar();
    TEXT("setp.eq.and.u32 %%p, %%r, 1, %%q;\n@%%p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%%B], %d;\n", n);
    cluster_sync();
    TEXT("setp.eq.u32 %%p, %%r, 0;\n@!%%p bra other;\nmapa.shared::cluster.u32 %%y0, %%S, 1;\n"
         "mapa.shared::cluster.u32 %%y1, %%B, 1;\n@%%q "
         "cp.%sasync.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes",
         d ? "reduce." : "");
    if (d) TEXT(".%s.%s", op_name[d->op], type);
    TEXT(" [%%y0+%d], [%%S], %d, [%%y1];\nbra done;\nother:\n", to, n);
    wait_bar();
    TEXT("done:\n");
    cluster_sync();
    dump();
    end();
    run(2, global_, 16, NULL, &r_, false);
    compare(d ? "remote reduction" : "remote copy", r_.shared, expected_, 2 * SHARED);
}
static void multicast(const tensor *t, int mask, rq_rng *rng) {
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

/* ------------------------------------------------------------------ tensors */
static const tensor tensors[] = {
    {1, U8, {1000}, {0}, {256}, {1}, 0, false, {100}},
    {1, F32, {100}, {0}, {64}, {1}, 0, false, {80}},
    {1, U16, {77}, {0}, {64}, {1}, 0, false, {-20}},
    {2, U8, {200, 50}, {24}, {128, 64}, {1, 1}, 3, false, {0, 0}},
    {2, U8, {200, 50}, {24}, {128, 20}, {1, 1}, 3, false, {90, 41}},
    {2, F16, {100, 40}, {0}, {32, 16}, {1, 1}, 2, false, {-5, -3}},
    {2, BF16, {64, 40}, {0}, {16, 24}, {1, 1}, 1, false, {56, 20}},
    {2, F32, {33, 17}, {12}, {32, 8}, {1, 1}, 3, false, {8, 12}},
    {2, U64, {20, 9}, {0}, {6, 5}, {1, 1}, 0, false, {16, 6}},
    {2, F64, {20, 9}, {0}, {16, 5}, {1, 1}, 3, false, {16, 6}},
    {2, S32, {64, 64}, {0}, {8, 40}, {1, 3}, 1, false, {4, 2}},
    {2, S64, {16, 64}, {0}, {4, 33}, {1, 8}, 1, false, {-1, -8}},
    {2, U32, {16, 8}, {0}, {16, 4}, {5, 1}, 2, false, {0, 6}},
    {3, U8, {64, 10, 6}, {0, 32}, {32, 5, 4}, {1, 1, 1}, 1, false, {40, 7, -1}},
    {3, F16, {24, 12, 8}, {16, 0}, {8, 6, 5}, {1, 2, 2}, 0, false, {20, 5, 1}},
    {4, U16, {32, 5, 4, 3}, {0, 0, 16}, {32, 2, 3, 4}, {1, 1, 1, 1}, 2, false, {0, 4, 2, -1}},
    {5, U8, {48, 3, 4, 3, 5}, {0, 16, 0, 32}, {48, 2, 2, 3, 2}, {1, 1, 1, 1, 1}, 0, false, {-16, 2, 3, -1, 4}},
    {5, F32, {8, 3, 4, 3, 5}, {0, 16, 0, 32}, {8, 2, 4, 3, 4}, {1, 1, 2, 1, 3}, 1, false, {0, 1, 1, 0, 0}},
    {2, U8, {64, 8}, {0}, {64, 4}, {1, 1}, 0, false, {64, 8}}, /* all of it outside */
    {2, F32, {16, 8}, {0}, {16, 4}, {1, 1}, 0, true, {5, 6}},  /* NaN outside */
    {2, F16, {64, 8}, {0}, {32, 4}, {1, 1}, 2, true, {-9, -1}},
};
enum { TENSORS = sizeof tensors / sizeof *tensors };

static void coordinates(const tensor *t) {
    TEXT("[%%M, {");
    for (int k = 0; k < t->rank; ++k) TEXT("%s%%c%d", k ? ", " : "", k);
    TEXT("}]");
}
static void tensor_load(const tensor *t, rq_rng *rng) {
    size_t n = tensor_bytes(t);
    int bytes = type_bytes[t->type];
    rq_rand_bytes(rng, global_, n);
    head("");
    init_bar();
    fill(false);
    fence_and_bar();
    TEXT("@%%q cp.async.bulk.prefetch.tensor.%dd.L2.global ", t->rank);
    coordinates(t);
    TEXT(";\n");
    expect(box_elements(t) * bytes);
    TEXT("@%%q cp.async.bulk.tensor.%dd.shared::%s.global.tile.mbarrier::complete_tx::bytes%s [%%S], ", t->rank,
         t->rank == 2 ? "cta" : "cluster", t->rank == 3 ? ".L2::cache_hint" : "");
    coordinates(t);
    TEXT(", [%%B]%s;\n", t->rank == 3 ? ", %policy" : "");
    wait_bar();
    dump();
    end();
    run(1, global_, n, t, &r_, false);
    memset(expected_, FILL, SHARED);
    for (int e = 0; e < box_elements(t); ++e) {
        int64_t from;
        int to;
        place(t, e, &from, &to);
        if (from >= 0)
            memcpy(expected_ + to, global_ + from, (size_t)bytes);
        else if (!t->nan)
            memset(expected_ + to, 0, (size_t)bytes);
        else { /* some NaN */
            uint32_t v = 0;
            memcpy(&v, r_.shared + to, (size_t)bytes);
            float x = bytes == 2 ? rq_half_value((uint16_t)v) : rq_float_of_bits(v);
            EXPECT(x != x);
            memset(r_.shared + to, 0x77, (size_t)bytes);
            memset(expected_ + to, 0x77, (size_t)bytes);
        }
    }
    char name[60];
    snprintf(name, sizeof name, "tensor load %d", (int)(t - tensors));
    compare(name, r_.shared, expected_, SHARED);
}
static void tensor_store(const tensor *t, const reduction *d, rq_rng *rng) {
    size_t n = tensor_bytes(t);
    int bytes = type_bytes[t->type];
    const char *type = d ? d->type : "b32";
    random_elements(r_.shared, SHARED, type, rng);
    random_elements(global_, (n + 7) / 8 * 8, type, rng);
    memcpy(expected_, global_, n);
    for (int e = 0; e < box_elements(t); ++e) {
        int64_t to;
        int from;
        place(t, e, &to, &from);
        if (to < 0) continue;
        if (d)
            reduce(d->op, type, expected_ + to, r_.shared + from);
        else
            memcpy(expected_ + to, r_.shared + from, (size_t)bytes);
    }
    head("");
    fill(true);
    fence_and_bar();
    if (d)
        TEXT("@%%q cp.reduce.async.bulk.tensor.%dd.global.shared::cta.%s.tile.bulk_group ", t->rank, op_name[d->op]);
    else
        TEXT("@%%q cp.async.bulk.tensor.%dd.global.shared::cta.bulk_group ", t->rank);
    coordinates(t);
    TEXT(", [%%S];\n@%%q cp.async.bulk.commit_group;\n@%%q cp.async.bulk.wait_group%s 0;\n", d ? "" : ".read");
    end();
    run(1, global_, n, t, &r_, false);
    char name[60];
    if (d) snprintf(name, sizeof name, "tensor reduction %s %s", op_name[d->op], type);
    else snprintf(name, sizeof name, "tensor store %d", (int)(t - tensors));
    compare(name, global_, expected_, n);
}
static void tensor_reductions(rq_rng *rng) {
    static const struct {
        int type;
        const char *name;
    } types[] = {{U32, "u32"}, {S32, "s32"}, {U64, "u64"}, {F32, "f32"}, {F64, "f64"}, {F16, "f16"}, {BF16, "bf16"}};
    for (size_t k = 0; k < sizeof types / sizeof *types; ++k)
        for (enum op op = ADD; op <= XOR; ++op) {
            bool integer = types[k].name[0] == 'u' || types[k].name[0] == 's', half = type_bytes[types[k].type] == 2;
            if (op >= AND ? !integer : op >= INC ? types[k].type != U32 : op != ADD && !integer && !half) continue;
            tensor t = {2, types[k].type, {48, 20}, {0}, {(uint32_t)(64 / type_bytes[types[k].type]), 8}, {1, 1},
                        2, false,         {44, -3}};
            reduction d = {op, types[k].name};
            tensor_store(&t, &d, rng);
        }
}

/* ------------------------------------------------------------------ which maps are taken */
static void maps(void) {
    static uint8_t room[MAP_BYTES + 64];
    uint8_t *map = room + (64 - (uintptr_t)room % 64) % 64, *base = rq_device_buffer(1 << 16);
    enum { OK = 0, INVALID = 1 };
    static const struct {
        int type;
        uint32_t rank;
        int address, map_at; /* added */
        uint64_t dim[2], stride;
        uint32_t box[2], step[2];
        int interleave, swizzle, l2, fill, want;
    } tries[] = {
        {U8, 2, 0, 0, {64, 8}, 64, {64, 8}, {1, 1}, 0, 0, 0, 0, OK},
        {U8, 2, 0, 16, {64, 8}, 64, {64, 8}, {1, 1}, 0, 0, 0, 0, INVALID}, /* the map's own address */
        {U8, 0, 0, 0, {64, 8}, 64, {64, 8}, {1, 1}, 0, 0, 0, 0, INVALID},
        {U8, 6, 0, 0, {64, 8}, 64, {64, 8}, {1, 1}, 0, 0, 0, 0, INVALID},
        {99, 2, 0, 0, {64, 8}, 64, {64, 8}, {1, 1}, 0, 0, 0, 0, INVALID},
        {U8, 2, 8, 0, {64, 8}, 64, {64, 8}, {1, 1}, 0, 0, 0, 0, INVALID}, /* address */
        {U8, 2, 16, 0, {64, 8}, 64, {64, 8}, {1, 1}, 0, 0, 0, 0, OK},
        {U8, 2, 0, 0, {0, 8}, 64, {64, 8}, {1, 1}, 0, 0, 0, 0, INVALID}, /* sizes */
        {U8, 2, 0, 0, {64, 1ull << 32}, 64, {64, 8}, {1, 1}, 0, 0, 0, 0, OK},
        {U8, 2, 0, 0, {64, (1ull << 32) + 1}, 64, {64, 8}, {1, 1}, 0, 0, 0, 0, INVALID},
        {U8, 2, 0, 0, {60, 8}, 60, {64, 8}, {1, 1}, 0, 0, 0, 0, INVALID}, /* stride */
        {U8, 2, 0, 0, {60, 8}, 64, {64, 8}, {1, 1}, 0, 0, 0, 0, OK},
        {U8, 2, 0, 0, {64, 8}, 1ull << 40, {64, 8}, {1, 1}, 0, 0, 0, 0, INVALID},
        {U8, 2, 0, 0, {512, 8}, 512, {256, 256}, {1, 1}, 0, 0, 0, 0, OK}, /* box */
        {U8, 2, 0, 0, {512, 8}, 512, {272, 8}, {1, 1}, 0, 0, 0, 0, INVALID},
        {U8, 2, 0, 0, {512, 8}, 512, {64, 257}, {1, 1}, 0, 0, 0, 0, INVALID},
        {U8, 2, 0, 0, {512, 8}, 512, {64, 0}, {1, 1}, 0, 0, 0, 0, INVALID},
        {U8, 2, 0, 0, {512, 8}, 512, {40, 8}, {1, 1}, 0, 0, 0, 0, INVALID}, /* 40 bytes in a row */
        {F32, 2, 0, 0, {512, 8}, 2048, {4, 8}, {1, 1}, 0, 0, 0, 0, OK},
        {U8, 2, 0, 0, {512, 8}, 512, {64, 8}, {1, 8}, 0, 0, 0, 0, OK}, /* element strides */
        {U8, 2, 0, 0, {512, 8}, 512, {64, 8}, {1, 9}, 0, 0, 0, 0, INVALID},
        {U8, 2, 0, 0, {512, 8}, 512, {64, 8}, {1, 0}, 0, 0, 0, 0, INVALID},
        {U8, 2, 0, 0, {512, 8}, 512, {32, 8}, {1, 1}, 0, 1, 0, 0, OK}, /* swizzles */
        {U8, 2, 0, 0, {512, 8}, 512, {48, 8}, {1, 1}, 0, 1, 0, 0, INVALID},
        {U8, 2, 0, 0, {512, 8}, 512, {64, 8}, {1, 1}, 0, 2, 0, 0, OK},
        {U8, 2, 0, 0, {512, 8}, 512, {80, 8}, {1, 1}, 0, 2, 0, 0, INVALID},
        {U8, 2, 0, 0, {512, 8}, 512, {128, 8}, {1, 1}, 0, 3, 0, 0, OK},
        {U8, 2, 0, 0, {512, 8}, 512, {144, 8}, {1, 1}, 0, 3, 0, 0, INVALID},
        {U8, 2, 0, 0, {64, 8}, 64, {64, 8}, {1, 1}, 0, 9, 0, 0, INVALID},
        {U8, 2, 0, 0, {64, 8}, 64, {64, 8}, {1, 1}, 1, 0, 0, 0, INVALID}, /* interleaved: rank 3 */
        {U8, 2, 0, 0, {64, 8}, 64, {64, 8}, {1, 1}, 5, 0, 0, 0, INVALID},
        {U8, 2, 0, 0, {64, 8}, 64, {64, 8}, {1, 1}, 0, 0, 3, 0, OK}, /* promotion to L2 */
        {U8, 2, 0, 0, {64, 8}, 64, {64, 8}, {1, 1}, 0, 0, 4, 0, INVALID},
        {U8, 2, 0, 0, {64, 8}, 64, {64, 8}, {1, 1}, 0, 0, 0, 1, INVALID}, /* NaN: floats only */
        {F16, 2, 0, 0, {64, 8}, 128, {64, 8}, {1, 1}, 0, 0, 0, 1, OK},
        {F16, 2, 0, 0, {64, 8}, 128, {64, 8}, {1, 1}, 0, 0, 0, 2, INVALID},
    };
    for (size_t k = 0; k < sizeof tries / sizeof *tries; ++k)
        EXPECT_EQ_AT(k,
                     encode(map + tries[k].map_at, tries[k].type, tries[k].rank, base + tries[k].address, tries[k].dim,
                            &tries[k].stride, tries[k].box, tries[k].step, tries[k].interleave, tries[k].swizzle,
                            tries[k].l2, tries[k].fill),
                     tries[k].want);
    rq_device_free_all();
}

#ifdef RQ_TEST_SIM
static char seen[4000];
static void sink(void *user, const char *kind, const char *finding) {
    (void)user;
    size_t n = strlen(seen);
    snprintf(seen + n, sizeof seen - n, "%s: %s\n", kind, finding);
}
/* kind: what must be found; "a|b": either, as the order of the warps has it; "": nothing. */
static void judge(const char *what, const tensor *t, const char *kind) {
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
static tensor t_ = {2, U8, {128, 64}, {0}, {128, 8}, {1, 1}, 3, false, {0, 0}}; /* all of global memory */
/* The usual kernel around `body`; what it must find. */
static void load_case(const char *what, const char *body, const char *kind) {
    head("");
    init_bar();
    TEXT("@%%q mbarrier.init.shared::cta.b64 [%%B+8], 1;\n");
    TEXT("fence.proxy.async;\nbar.sync 0;\n%s", body);
    end();
    judge(what, &t_, kind);
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

static void expect_word(uint32_t want) {
    uint32_t got;
    memcpy(&got, r_.shared, 4);
    EXPECT_EQ(got, want);
}
static void checks(void) {
    load_case("right", EXPECT_TX LOAD WAIT USE, "");
    load_case("right, the copy first", LOAD EXPECT_TX WAIT USE, "");
    load_case(
        "right, filled again after a barrier",
        EXPECT_TX LOAD WAIT USE
        "bar.sync 0;\n" EXPECT_TX2
        "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%G], 512, [%B+8];\n" WAIT2 USE,
        "");
    load_case("not waited for", EXPECT_TX LOAD USE WAIT, "bulk copy not waited for");
    expect_word(0xcbcbcbcb); /* the bytes come only when somebody waits for them */
    load_case("waits on another", EXPECT_TX LOAD EXPECT_TX2 LOAD2 WAIT USE2 WAIT2, "bulk copy not waited for");
    expect_word(0xcbcbcbcb);
    load_case("nobody waits", EXPECT_TX LOAD, "bulk copy not waited for");
    load_case("filled again too early",
              EXPECT_TX LOAD WAIT USE EXPECT_TX2
              "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%G], 512, [%B+8];\n" WAIT2,
              "bulk copy not waited for|shared memory race");
    load_case("fewer bytes than expected",
              "@%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%B], 528;\n" LOAD WAIT USE, "wait never completes");
    load_case(
        "no mbarrier there",
        EXPECT_TX
        "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%G], 512, [%S+1024];\n" WAIT,
        "mbarrier");
    load_case(
        "global out of bounds",
        EXPECT_TX
        "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%G+7696], 512, [%B];\n" WAIT,
        "out of bounds");
    load_case(
        "shared out of bounds",
        EXPECT_TX
        "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S+230000], [%G], 512, [%B];\n" WAIT,
        "out of bounds");
    load_case("size",
              EXPECT_TX
              "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%G], 500, [%B];\n" WAIT,
              "misaligned bulk copy");
    load_case("destination",
              EXPECT_TX
              "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S+8], [%G], 512, [%B];\n" WAIT,
              "misaligned bulk copy");
    load_case("source",
              EXPECT_TX
              "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%G+4], 512, [%B];\n" WAIT,
              "misaligned bulk copy");
    load_case("tensor destination", EXPECT_TX TENSOR "[%S+64], [%M, {%c0, %c1}], [%B];\n" WAIT, "misaligned bulk copy");
    load_case("tensor at 128 bytes",
              "@%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%B], 1024;\n" TENSOR
              "[%S+128], [%M, {%c0, %c1}], [%B];\n" WAIT,
              "");
    load_case("no tensor map", EXPECT_TX TENSOR "[%S], [%G, {%c0, %c1}], [%B];\n" WAIT, "there is no tensor map");
    t_ = (tensor){2, U8, {128, 80}, {0}, {128, 8}, {1, 1}, 3, false, {0, 55}}; /* 16 rows more than there are */
    load_case("tensor, the last rows that are there",
              "@%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%B], 1024;\n" TENSOR
              "[%S], [%M, {%c0, %c1}], [%B];\n" WAIT,
              "");
    t_.coord[1] = 57;
    load_case("tensor out of bounds", EXPECT_TX TENSOR "[%S], [%M, {%c0, %c1}], [%B];\n" WAIT, "out of bounds");
    t_ = (tensor){2, U8, {128, 64}, {0}, {64, 8}, {1, 1}, 3, false, {0, 0}};
    load_case("rows narrower than the swizzle", EXPECT_TX TENSOR "[%S], [%M, {%c0, %c1}], [%B];\n" WAIT,
              "not implemented");
    t_.box[0] = 128;
    load_case("rank",
              EXPECT_TX "@%q cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%M, "
                        "{%c0}], [%B];\n" WAIT,
              "tensor map");
    load_case("store, right", PUT "fence.proxy.async;\nbar.sync 0;\n" STORE COMMIT "@%q cp.async.bulk.wait_group 0;\n",
              "");
    load_case("store, no proxy fence", PUT "bar.sync 0;\n" STORE COMMIT "@%q cp.async.bulk.wait_group 0;\n",
              "missing proxy fence");
    load_case("store, not waited for", PUT "fence.proxy.async;\nbar.sync 0;\n" STORE COMMIT,
              "bulk copy not waited for");
    load_case("store, not committed", PUT "fence.proxy.async;\nbar.sync 0;\n" STORE "@%q cp.async.bulk.wait_group 0;\n",
              "bulk copy not waited for");
    load_case("store, wait leaves it",
              PUT "fence.proxy.async;\nbar.sync 0;\n" STORE COMMIT "@%q cp.async.bulk.wait_group 1;\n",
              "bulk copy not waited for");
    load_case("store, source written too early",
              PUT "fence.proxy.async;\nbar.sync 0;\n" STORE COMMIT PUT "@%q cp.async.bulk.wait_group.read 0;\n",
              "bulk copy not waited for|shared memory race");
    /* .read waits for shared memory alone: global memory may have the old bytes */
    load_case("store, read back too early",
              PUT "fence.proxy.async;\nbar.sync 0;\n" STORE COMMIT "@%q cp.async.bulk.wait_group.read 0;\n"
                  "@%q ld.global.u32 %v, [%G];\n@%q st.global.u32 [%i], %v;\n",
              "");
    expect_word(0x33333333);
    load_case("store, source written after the wait and a barrier",
              PUT "fence.proxy.async;\nbar.sync 0;\n" STORE COMMIT
                  "@%q cp.async.bulk.wait_group.read 0;\nbar.sync 0;\n" PUT_OTHER,
              "");
}
#endif

int main(void) {
    rq_need_device(90);
    rq_rng rng = {5};
    linear_load("shared::cluster.global.mbarrier::complete_tx::bytes", "", 4096, 0, 0, &rng);
    linear_load("shared::cluster.global.mbarrier::complete_tx::bytes", "", 16, 1024, 48, &rng);
    linear_load("shared::cta.global.mbarrier::complete_tx::bytes", "", 48, 16, 1008, &rng);
    linear_load("shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint", ", %policy", 2048, 160, 64, &rng);
    linear_store("", 4096, 64, 128, &rng);
    linear_store(".read", 32, 1008, 4096, &rng);
    for (int k = 0; k < REDUCTIONS; ++k) reduce_store(&reductions[k], &rng);
    remote(NULL, &rng);
    for (int k = 0; k < REDUCTIONS; ++k) { /* those of shared memory */
        const char *type = reductions[k].type;
        bool wide = bytes_of(type) == 8, add64 = reductions[k].op == ADD && !strcmp(type, "u64");
        if (type[0] == 'f' || bytes_of(type) == 2 || (wide && !add64)) continue;
        remote(&reductions[k], &rng);
    }
    for (int mask = 1; mask < 4; ++mask) {
        multicast(NULL, mask, &rng);
        multicast(&tensors[4], mask, &rng);
    }
    for (int k = 0; k < TENSORS; ++k) {
        tensor_load(&tensors[k], &rng);
        tensor_store(&tensors[k], NULL, &rng);
    }
    tensor_reductions(&rng);
    maps();
#ifdef RQ_TEST_SIM
    checks();
#endif
    return rq_done(__FILE__);
}
