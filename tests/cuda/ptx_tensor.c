/* SPDX-License-Identifier: Apache-2.0 */
/* cp.async.bulk.tensor: tensors of one to five dimensions with padded strides, boxes that hang over every edge, element
 * strides, every swizzle, reductions, multicast, against loops over bytes. Which tensor maps cuTensorMapEncodeTiled takes.
 * Then the simulator's part, as in ptx_bulk.c.
 * Targets: sm_90a */
#include "bulk_case.h"

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
    if (d)
        snprintf(name, sizeof name, "tensor reduction %s %s", op_name[d->op], type);
    else
        snprintf(name, sizeof name, "tensor store %d", (int)(t - tensors));
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
static void checks(void) {
    tensor t = {2, U8, {128, 64}, {0}, {128, 8}, {1, 1}, 3, false, {0, 0}}; /* all of global memory */
    load_case("tensor destination", &t, EXPECT_TX TENSOR "[%S+64], [%M, {%c0, %c1}], [%B];\n" WAIT,
              "misaligned bulk copy");
    load_case("tensor at 128 bytes", &t,
              "@%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%B], 1024;\n" TENSOR
              "[%S+128], [%M, {%c0, %c1}], [%B];\n" WAIT,
              "");
    load_case("no tensor map", &t, EXPECT_TX TENSOR "[%S], [%G, {%c0, %c1}], [%B];\n" WAIT, "there is no tensor map");
    t = (tensor){2, U8, {128, 80}, {0}, {128, 8}, {1, 1}, 3, false, {0, 55}}; /* 16 rows more than there are */
    load_case("tensor, the last rows that are there", &t,
              "@%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%B], 1024;\n" TENSOR
              "[%S], [%M, {%c0, %c1}], [%B];\n" WAIT,
              "");
    t.coord[1] = 57;
    load_case("tensor out of bounds", &t, EXPECT_TX TENSOR "[%S], [%M, {%c0, %c1}], [%B];\n" WAIT, "out of bounds");
    t = (tensor){2, U8, {128, 64}, {0}, {64, 8}, {1, 1}, 3, false, {0, 0}};
    load_case("rows narrower than the swizzle", &t, EXPECT_TX TENSOR "[%S], [%M, {%c0, %c1}], [%B];\n" WAIT,
              "not implemented");
    t.box[0] = 128;
    load_case("rank", &t,
              EXPECT_TX "@%q cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%M, "
                        "{%c0}], [%B];\n" WAIT,
              "tensor map");
}
#endif

int main(void) {
    rq_need_device(90);
    rq_rng rng = {55};
    for (int k = 0; k < TENSORS; ++k) {
        tensor_load(&tensors[k], &rng);
        tensor_store(&tensors[k], NULL, &rng);
    }
    for (int mask = 1; mask < 4; ++mask) multicast(&tensors[4], mask, &rng);
    tensor_reductions(&rng);
    maps();
#ifdef RQ_TEST_SIM
    checks();
#endif
    return rq_done(__FILE__);
}
