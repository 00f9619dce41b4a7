/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA dequantize kernels (cuda/unpack_*.cu): every weight is the number of the format's definition, rounded once, bit for bit, and nothing
 * else is written. Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "weights_case.h"

/* ld and offset (elements) of the dense matrix: rows of 16 aligned bytes, or not. */
static void test_dense(const weights_case *c, const weights *m, const void *packed, int64_t ld, int offset) {
    const size_t n = (size_t)(c->n_out * ld) + offset;
    uint16_t *got = (uint16_t *)rq_host_alloc(n * 2);
    uint16_t *to = (uint16_t *)rq_device_buffer(n * 2);
    CHECK_CUDA(cudaMemset(to, 0x5a, n * 2));
    if (rq_cuda_unpack_run(&m->d, to + offset, ld, packed, 0) != RQ_OK) RQ_DIE("%s: %s", c->what, rq_cuda_last_error());
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(got, to, n * 2);
    for (size_t i = 0; i < (size_t)offset; ++i) EXPECT_EQ_AT(i, got[i], 0x5a5a);
    for (int64_t i = 0; i < c->n_out; ++i)
        for (int64_t j = 0; j < ld; ++j) {
            const size_t at = (size_t)(offset + i * ld + j);
            EXPECT_EQ_AT(at, got[at], j < c->n_in ? weights_bits(m, m->w[i * c->n_in + j]) : 0x5a5a);
        }
    char name[96];
    snprintf(name, sizeof name, "%s %dx%d b%d ld%lld%s", c->what, c->n_out, c->n_in, c->bits, (long long)ld,
             c->bf16 ? " bf16" : "");
    printf("%s\n", name);
    rq_record(name, c->bf16 ? RQ_BF16 : RQ_F16, got, n, 0);
    rq_device_free(to);
    free(got);
}

static void test_case(const weights_case *c) {
    weights m = weights_make(c);
    const char *why = "";
    m.d.n_tok = 1000; /* does not count */
    if (rq_cuda_unpack_supports(&m.d, &why) != RQ_OK) RQ_DIE("%s: %s", c->what, why);
    const void *packed = rq_device_copy(m.packed, (size_t)m.layout.bytes);
    const int64_t rounded = (c->n_in + 7) / 8 * 8;
    test_dense(c, &m, packed, rounded, 0);
    test_dense(c, &m, packed, c->n_in + 3, 1);
    if (rounded != c->n_in) test_dense(c, &m, packed, c->n_in, 0);
    rq_device_free_all();
    weights_free(&m);
}

static void test_refused(void) {
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default();
    d.n_out = 16, d.n_in = 128;
    const char *why = "";
    EXPECT_EQ(rq_cuda_unpack_supports(&d, &why), RQ_OK);
    EXPECT_EQ(rq_cuda_unpack_run(&d, NULL, 128, (const void *)256, 0), RQ_ERR_ARG);
    EXPECT_EQ(rq_cuda_unpack_run(&d, (void *)256, 127, (const void *)256, 0), RQ_ERR_ARG);
    EXPECT_EQ(rq_cuda_unpack_run(&d, (void *)256, 128, (const void *)128, 0), RQ_ERR_ARG);
    EXPECT(strstr(rq_cuda_last_error(), "256 bytes"));
    EXPECT_EQ(rq_cuda_unpack_run(NULL, (void *)256, 128, (const void *)256, 0), RQ_ERR_UNSUPPORTED);
    d.bits = 5;
    EXPECT(rq_cuda_unpack_supports(&d, &why) == RQ_ERR_UNSUPPORTED && strstr(why, "2, 3, 4 or 8"));
}

int main(void) {
    rq_need_device(80);
    test_refused();
    for (int bf16 = 0; bf16 < 2; ++bf16) {
        const bool b = bf16 != 0;
        const int widths[] = {2, 3, 4, 8};
        for (int bits : widths) {
            const weights_case grid[] = {
                /* what     kind     n_out n_in  bits group zeros  u8  bf16 book_cols n_outlier code_bits vec_len log_codes log_codes_2 */
                {"least", RQ_TILE_GRID, 1, 1, bits, 1, true, false, b, 0, 0},
                {"groups", RQ_TILE_GRID, 33, 330, bits, 32, true, false, b, 0, 0},
                {"sym", RQ_TILE_GRID, 48, 512, bits, 128, false, false, b, 0, 0},
                {"row", RQ_TILE_GRID, 17, 1001, bits, 1001, true, false, b, 0, 0},
            };
            for (const weights_case &c : grid) test_case(&c);
        }
        for (int bits = 2; bits < 4; ++bits) {
            const weights_case ssvq[] = {
                {"ssvq row", RQ_TILE_SSVQ, 40, 392, bits, 392, false, true, b, 392, 3},
                {"ssvq books", RQ_TILE_SSVQ, 17, 600, bits, 32, false, true, b, 256, 16},
                {"ssvq f16", RQ_TILE_SSVQ, 16, 264, bits, 128, false, false, false, 128, 0},
                {"ssvq 10 bits", RQ_TILE_SSVQ, 18, 264, bits, 264, false, true, b, 264, 1, 10},
                {"ssvq 12 bits", RQ_TILE_SSVQ, 18, 264, bits, 64, false, false, false, 128, 2, 12},
            };
            for (const weights_case &c : ssvq)
                if (c.bf16 == b) test_case(&c);
        }
        const weights_case vq[] = {
            {"vq 8", RQ_TILE_VQ, 40, 392, 0, 392, false, false, b, 392, 3, 8, 8, 8, 0},
            {"vq 8 + 8", RQ_TILE_VQ, 17, 600, 0, 32, false, false, b, 256, 16, 8, 8, 8, 6},
            {"vq 12", RQ_TILE_VQ, 33, 264, 0, 264, false, false, b, 128, 0, 8, 8, 12, 0},
            {"vq 4", RQ_TILE_VQ, 16, 330, 0, 64, false, false, b, 330, 1, 8, 4, 10, 8},
            {"vq out", RQ_TILE_VQ, 45, 270, 0, 270, true, true, b, 270, 5, 8, 8, 12, 8},
        };
        for (const weights_case &c : vq) test_case(&c);
    }
    return rq_done(__FILE__);
}
