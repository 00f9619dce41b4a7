/* SPDX-License-Identifier: Apache-2.0 */
/* cp.async.bulk: linear copies in both directions, reductions, multicast and copies between the blocks of a cluster, against
 * loops over bytes. Then the simulator's part: what is wrong is found, what is right is silent. Tensors: ptx_tensor.c.
 * Targets: sm_90a */
#include "bulk_case.h"

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

/* ------------------------------------------------------------------ reductions */
static const reduction reductions[] = {
    {ADD, "u32"}, {ADD, "s32"}, {ADD, "u64"}, {ADD, "f32"}, {ADD, "f64"},  {ADD, "f16"},  {ADD, "bf16"},
    {MIN, "u32"}, {MIN, "s32"}, {MIN, "u64"}, {MIN, "s64"}, {MIN, "f16"},  {MIN, "bf16"}, {MAX, "u32"},
    {MAX, "s32"}, {MAX, "u64"}, {MAX, "s64"}, {MAX, "f16"}, {MAX, "bf16"}, {INC, "u32"},  {DEC, "u32"},
    {AND, "b32"}, {OR, "b32"},  {XOR, "b32"}, {AND, "b64"}, {OR, "b64"},   {XOR, "b64"},
};
enum { REDUCTIONS = sizeof reductions / sizeof *reductions };

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
#ifdef RQ_TEST_SIM
static void checks(void) {
    load_case("right", NULL, EXPECT_TX LOAD WAIT USE, "");
    load_case("right, the copy first", NULL, LOAD EXPECT_TX WAIT USE, "");
    load_case(
        "right, filled again after a barrier", NULL,
        EXPECT_TX LOAD WAIT USE
        "bar.sync 0;\n" EXPECT_TX2
        "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%G], 512, [%B+8];\n" WAIT2 USE,
        "");
    load_case("not waited for", NULL, EXPECT_TX LOAD USE WAIT, "bulk copy not waited for");
    expect_word(0xcbcbcbcb); /* the bytes come only when somebody waits for them */
    load_case("waits on another", NULL, EXPECT_TX LOAD EXPECT_TX2 LOAD2 WAIT USE2 WAIT2, "bulk copy not waited for");
    expect_word(0xcbcbcbcb);
    load_case("nobody waits", NULL, EXPECT_TX LOAD, "bulk copy not waited for");
    load_case("filled again too early", NULL,
              EXPECT_TX LOAD WAIT USE EXPECT_TX2
              "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%G], 512, [%B+8];\n" WAIT2,
              "bulk copy not waited for|shared memory race");
    load_case("fewer bytes than expected", NULL,
              "@%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%B], 528;\n" LOAD WAIT USE, "wait never completes");
    load_case(
        "no mbarrier there", NULL,
        EXPECT_TX
        "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%G], 512, [%S+1024];\n" WAIT,
        "mbarrier");
    load_case(
        "global out of bounds", NULL,
        EXPECT_TX
        "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%G+7696], 512, [%B];\n" WAIT,
        "out of bounds");
    load_case(
        "shared out of bounds", NULL,
        EXPECT_TX
        "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S+230000], [%G], 512, [%B];\n" WAIT,
        "out of bounds");
    load_case("size", NULL,
              EXPECT_TX
              "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%G], 500, [%B];\n" WAIT,
              "misaligned bulk copy");
    load_case("destination", NULL,
              EXPECT_TX
              "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S+8], [%G], 512, [%B];\n" WAIT,
              "misaligned bulk copy");
    load_case("source", NULL,
              EXPECT_TX
              "@%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%S], [%G+4], 512, [%B];\n" WAIT,
              "misaligned bulk copy");
    load_case("store, right", NULL,
              PUT "fence.proxy.async;\nbar.sync 0;\n" STORE COMMIT "@%q cp.async.bulk.wait_group 0;\n", "");
    load_case("store, no proxy fence", NULL, PUT "bar.sync 0;\n" STORE COMMIT "@%q cp.async.bulk.wait_group 0;\n",
              "missing proxy fence");
    load_case("store, not waited for", NULL, PUT "fence.proxy.async;\nbar.sync 0;\n" STORE COMMIT,
              "bulk copy not waited for");
    load_case("store, not committed", NULL,
              PUT "fence.proxy.async;\nbar.sync 0;\n" STORE "@%q cp.async.bulk.wait_group 0;\n",
              "bulk copy not waited for");
    load_case("store, wait leaves it", NULL,
              PUT "fence.proxy.async;\nbar.sync 0;\n" STORE COMMIT "@%q cp.async.bulk.wait_group 1;\n",
              "bulk copy not waited for");
    load_case("store, source written too early", NULL,
              PUT "fence.proxy.async;\nbar.sync 0;\n" STORE COMMIT PUT "@%q cp.async.bulk.wait_group.read 0;\n",
              "bulk copy not waited for|shared memory race");
    /* .read waits for shared memory alone: global memory may have the old bytes */
    load_case("store, read back too early", NULL,
              PUT "fence.proxy.async;\nbar.sync 0;\n" STORE COMMIT "@%q cp.async.bulk.wait_group.read 0;\n"
                  "@%q ld.global.u32 %v, [%G];\n@%q st.global.u32 [%i], %v;\n",
              "");
    expect_word(0x33333333);
    load_case("store, source written after the wait and a barrier", NULL,
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
    for (int mask = 1; mask < 4; ++mask) multicast(NULL, mask, &rng);
#ifdef RQ_TEST_SIM
    checks();
#endif
    return rq_done(__FILE__);
}
