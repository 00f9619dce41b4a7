/* SPDX-License-Identifier: Apache-2.0 */
/* Rows times a Hadamard matrix, or a rotation, alone (cuda/hadamard_rows.cu): bytes of plain C on the sums that host/fmt_act.h and host/rotate.c have;
 * small orders against the matrix itself, entry by entry, in fp64. The signs of the core are random here: the kernel takes any.
 * Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "act_case.h"
#include "random.h"
#include "rq_cuda_hadamard.h"

static rq_rng rng = {77};

/* Of fp32 or fp64 rows. */
static void *rows_of(rq_rows_type type, const double *v, size_t n) {
    const size_t size = type == RQ_ROWS_F64 ? 8 : type == RQ_ROWS_F32 ? 4 : 2;
    unsigned char *to = (unsigned char *)rq_host_alloc(n * size);
    for (size_t i = 0; i < n; ++i) {
        const float f = (float)v[i];
        const uint16_t bits = bits_of(type == RQ_ROWS_BF16, f);
        memcpy(to + i * size,
               size == 8   ? (const void *)&v[i]
               : size == 4 ? (const void *)&f
                           : (const void *)&bits,
               size);
    }
    return to;
}
static double value_at(rq_rows_type type, const void *rows, size_t i) {
    if (type == RQ_ROWS_F64) return ((const double *)rows)[i];
    if (type == RQ_ROWS_F32) return ((const float *)rows)[i];
    return value_of(type == RQ_ROWS_BF16, ((const uint16_t *)rows)[i]);
}
static size_t size_of(rq_rows_type type) { return type == RQ_ROWS_F64 ? 8 : type == RQ_ROWS_F32 ? 4 : 2; }
static bool same_number(double a, double b) { return (a != a && b != b) || memcmp(&a, &b, sizeof a) == 0; }

/* Entry (i, j) of the matrix that rows are multiplied with, not normalized: v H^T for inputs (H v), and v H for a rotation that takes H^T. */
static int entry(const rq_hadamard *h, int i, int j) {
    const int width = h->size / h->core;
    int odd = (int)(h->row[j / width] >> (i / width) & 1);
    for (int common = i % width & j % width; common; common &= common - 1) odd ^= 1;
    return odd ? -1 : 1;
}
/* One order in fp64, in the order of roundings of host/rotate.c. */
static void transform64(const rq_hadamard *h, double *v) {
    static double to[32768];
    const int width = h->size / h->core;
    for (int half = 1; half < width; half *= 2) {
        for (int i = 0; i < h->size; ++i) to[i] = i % width & half ? v[i - half] - v[i] : v[i] + v[i + half];
        memcpy(v, to, (size_t)h->size * sizeof *v);
    }
    for (int i = 0; h->core > 1 && i < h->size; ++i) {
        to[i] = 0;
        for (int c = 0; c < h->core; ++c) to[i] += (h->row[i / width] >> c & 1 ? -1.0 : 1.0) * v[c * width + i % width];
    }
    if (h->core > 1) memcpy(v, to, (size_t)h->size * sizeof *v);
}

typedef struct turn {
    int core, width, n, n_tok;
    rq_rows_type type;
    bool factor, in_place;
} turn;

static void test_hadamard(turn c) {
    const size_t n = (size_t)c.n_tok * c.n;
    const rq_hadamard h = act_hadamard_random(c.core, c.width, &rng);
    double *v = (double *)rq_host_alloc(n * sizeof *v);
    float *row = (float *)rq_host_alloc((size_t)c.n * 4), *factor = (float *)rq_host_alloc((size_t)c.n * 4);
    for (size_t i = 0; i < n; ++i) v[i] = 4 * rq_rand_float(&rng);
    if (c.n_tok > 1) memset(v + c.n, 0, (size_t)c.n * sizeof *v);
    if (c.n_tok > 2) v[2 * c.n + c.n / 2] = NAN;
    for (int j = 0; j < c.n; ++j) factor[j] = 1 + rq_rand_float(&rng);
    void *x = rows_of(c.type, v, n), *got = rq_host_alloc(n * size_of(c.type));
    void *d_x = rq_device_copy(x, n * size_of(c.type)), *d_y = c.in_place ? d_x : rq_device_buffer(n * size_of(c.type));
    rq_cuda_hadamard_args a = {};
    a.y = d_y, a.x = d_x, a.type = c.type, a.n_tok = c.n_tok, a.n = c.n, a.hadamard = &h;
    a.factor = c.factor ? (const float *)rq_device_copy(factor, (size_t)c.n * 4) : NULL;
    EXPECT_EQ(rq_cuda_hadamard_rows(&a, 0), RQ_OK);
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(got, d_y, n * size_of(c.type));
    const long before = rq_test.failures;
    for (int t = 0; t < c.n_tok; ++t) {
        for (int j = 0; j < c.n; ++j) row[j] = (float)value_at(c.type, x, (size_t)t * c.n + j);
        for (int j = 0; j < c.n; j += h.size) act_hadamard(&h, row + j);
        for (int j = 0; j < c.n; ++j) {
            const double y = c.factor ? (double)(row[j] * factor[j]) : (double)row[j];
            void *want = rows_of(c.type, &y, 1);
            EXPECT(same_number(value_at(c.type, got, (size_t)t * c.n + j), value_at(c.type, want, 0)));
            free(want);
        }
        double most = 0, error = 0;
        for (int j = 0; t == 0 && h.size <= 128 && !c.factor && j < c.n; ++j) {
            double y = 0;
            for (int i = 0; i < h.size; ++i)
                y += entry(&h, i, j % h.size) * value_at(c.type, x, (size_t)(j / h.size * h.size + i));
            error = fmax(error, fabs(y / sqrt((double)h.size) - value_at(c.type, got, (size_t)j)));
            most = fmax(most, fabs(y) / sqrt((double)h.size));
        }
        EXPECT(error <= most * (c.type == RQ_ROWS_F32 ? 1e-6 : c.type == RQ_ROWS_F16 ? 0x1p-11 : 0x1p-8));
    }
    if (rq_test.failures > before)
        fprintf(stderr, "  in order %d x %d, %d columns, type %d, factors %d\n", c.core, c.width, c.n, c.type,
                c.factor);
    free(v), free(row), free(factor), free(x), free(got);
    rq_device_free_all();
}

/* plain: without signs. */
static void test_rotation(turn c, bool plain, bool inverse) {
    const size_t n = (size_t)c.n_tok * c.n;
    const uint64_t seed = 1000 + (uint64_t)c.n;
    rq_hadamard h[2] = {act_hadamard_random(c.core, c.width, &rng)};
    h[1] = h[0];
    for (int r = 0; r < c.core; ++r) {
        h[1].row[r] = 0;
        for (int k = 0; k < c.core; ++k) h[1].row[r] |= (h[0].row[k] >> r & 1) << k;
    }
    double *v = (double *)rq_host_alloc(n * sizeof *v), *row = (double *)rq_host_alloc((size_t)c.n * sizeof *row);
    for (size_t i = 0; i < n; ++i) v[i] = 4 * rq_rand_float(&rng);
    void *x = rows_of(c.type, v, n), *got = rq_host_alloc(n * size_of(c.type));
    void *d_x = rq_device_copy(x, n * size_of(c.type)), *d_y = c.in_place ? d_x : rq_device_buffer(n * size_of(c.type));
    rq_cuda_rotate_args a = {};
    a.y = d_y, a.x = d_x, a.type = c.type, a.n_tok = c.n_tok, a.n = c.n, a.hadamard = h, a.seed = seed;
    a.plain = plain, a.inverse = inverse;
    EXPECT_EQ(rq_cuda_rotate_rows(&a, 0), RQ_OK);
    CHECK_CUDA(cudaDeviceSynchronize());
    rq_device_read(got, d_y, n * size_of(c.type));
    const double scale = 1.0 / sqrt((double)h->size);
    const long before = rq_test.failures;
    for (int t = 0; t < c.n_tok; ++t) {
        for (int j = 0; j < c.n; ++j) {
            const double sign = plain || rq_random_u64(seed, (uint64_t)(j % h->size)) >> 63 ? scale : -scale;
            row[j] = value_at(c.type, x, (size_t)t * c.n + j) * (inverse ? 1 : sign);
        }
        for (int j = 0; j < c.n; j += h->size) transform64(&h[!inverse], row + j);
        for (int j = 0; j < c.n; ++j) {
            const double sign = plain || rq_random_u64(seed, (uint64_t)(j % h->size)) >> 63 ? scale : -scale;
            const double y = row[j] * (inverse ? sign : 1);
            void *want = rows_of(c.type, &y, 1);
            EXPECT(same_number(value_at(c.type, got, (size_t)t * c.n + j), value_at(c.type, want, 0)));
            free(want);
        }
        double error = 0; /* against the matrix: diag(sign) H, and H^T diag(sign) */
        for (int j = 0; t == 0 && h->size <= 128 && c.type == RQ_ROWS_F64 && j < c.n; ++j) {
            double y = 0;
            for (int i = 0; i < h->size; ++i) {
                const uint64_t k = (uint64_t)(inverse ? j % h->size : i);
                const double sign = plain || rq_random_u64(seed, k) >> 63 ? scale : -scale;
                y += sign * entry(&h[!inverse], i, j % h->size) *
                     value_at(c.type, x, (size_t)(j / h->size * h->size + i));
            }
            error = fmax(error, fabs(y - value_at(c.type, got, (size_t)j)));
        }
        EXPECT(error < 1e-13);
    }
    if (rq_test.failures > before)
        fprintf(stderr, "  in rotation %d x %d, %d columns, type %d, plain %d, inverse %d\n", c.core, c.width, c.n,
                c.type, plain, inverse);
    free(v), free(row), free(x), free(got);
    rq_device_free_all();
}

static void test_refusals(void) {
    float x = 0;
    rq_hadamard h[2] = {act_hadamard_random(1, 64, &rng)};
    h[1] = h[0];
    rq_cuda_hadamard_args a = {};
    a.y = &x, a.x = &x, a.type = RQ_ROWS_F32, a.n_tok = 1, a.n = 96, a.hadamard = h;
    EXPECT_EQ(rq_cuda_hadamard_rows(&a, 0), RQ_ERR_ARG);
    EXPECT(strstr(rq_cuda_last_error(), "96") && strstr(rq_cuda_last_error(), "64"));
    a.n = 128, a.type = RQ_ROWS_F64;
    EXPECT_EQ(rq_cuda_hadamard_rows(&a, 0), RQ_ERR_UNSUPPORTED);
    a.type = RQ_ROWS_F32, a.x = NULL;
    EXPECT_EQ(rq_cuda_hadamard_rows(&a, 0), RQ_ERR_ARG);
    a.x = &x, a.n_tok = 0;
    EXPECT_EQ(rq_cuda_hadamard_rows(&a, 0), RQ_ERR_UNSUPPORTED);
    a.n_tok = 1, a.hadamard = NULL;
    EXPECT_EQ(rq_cuda_hadamard_rows(&a, 0), RQ_ERR_ARG);
    EXPECT_EQ(rq_cuda_hadamard_rows(NULL, 0), RQ_ERR_ARG);
    rq_cuda_rotate_args r = {};
    r.y = &x, r.x = &x, r.type = RQ_ROWS_F32, r.n_tok = 1, r.n = 1 << 20, r.hadamard = h;
    h[0].size = h[1].size = 1 << 20;
    EXPECT_EQ(rq_cuda_rotate_rows(&r, 0), RQ_ERR_UNSUPPORTED);
    EXPECT(strstr(rq_cuda_last_error(), "1048576") && strstr(rq_cuda_last_error(), "8388608"));
    h[1].core = 3;
    EXPECT_EQ(rq_cuda_rotate_rows(&r, 0), RQ_ERR_ARG);
    EXPECT_EQ(rq_cuda_rotate_rows(NULL, 0), RQ_ERR_ARG);
}

int main(void) {
    rq_need_device(80);
    static const turn hadamards[] = {
        /* powers of two: less than a unit, than a chunk, with none, one and two stages of shuffles, with and without passes; several spans */
        {1, 2, 6, 5, RQ_ROWS_F32, false, false},
        {1, 4, 20, 3, RQ_ROWS_BF16, true, true},
        {1, 8, 24, 1, RQ_ROWS_F16, true, false},
        {1, 16, 48, 4, RQ_ROWS_F32, false, true},
        {1, 32, 32, 3, RQ_ROWS_F16, false, false},
        {1, 64, 8256, 2, RQ_ROWS_F32, true, false},
        {1, 128, 384, 3, RQ_ROWS_BF16, false, true},
        {1, 2048, 6144, 1, RQ_ROWS_F32, true, true},
        {1, 8192, 8192, 1, RQ_ROWS_F16, false, false},
        /* cores alone, of one column and of few, and blocks of them */
        {12, 1, 12, 5, RQ_ROWS_F32, false, false},
        {12, 1, 84, 2, RQ_ROWS_F16, true, true},
        {20, 2, 40, 4, RQ_ROWS_F32, true, false},
        {28, 4, 336, 5, RQ_ROWS_BF16, false, true},
        {36, 16, 5184, 3, RQ_ROWS_F32, true, true},
        {60, 8, 960, 2, RQ_ROWS_F16, false, false},
        {64, 16, 1024, 1, RQ_ROWS_F32, false, false},
        {28, 512, 14336, 1, RQ_ROWS_BF16, true, false},
    };
    for (size_t i = 0; i < sizeof hadamards / sizeof *hadamards; ++i) test_hadamard(hadamards[i]);
    static const turn rotations[] = {
        {1, 2, 6, 5, RQ_ROWS_F64, false, false},       {1, 4, 20, 2, RQ_ROWS_F64, false, true},
        {1, 64, 192, 2, RQ_ROWS_F64, false, true},     {1, 128, 8320, 2, RQ_ROWS_F32, false, false},
        {1, 2048, 2048, 1, RQ_ROWS_F16, false, false}, {12, 1, 12, 5, RQ_ROWS_F64, false, false},
        {12, 2, 72, 3, RQ_ROWS_BF16, false, true},     {20, 4, 80, 2, RQ_ROWS_F64, false, false},
        {36, 16, 1152, 2, RQ_ROWS_F32, false, true},   {60, 8, 480, 1, RQ_ROWS_F64, false, true},
        {12, 128, 1536, 2, RQ_ROWS_F64, false, false},
    };
    for (size_t i = 0; i < sizeof rotations / sizeof *rotations; ++i) {
        test_rotation(rotations[i], i % 5 == 1, false);
        test_rotation(rotations[i], i % 5 == 2, true);
    }
    static const turn large[] = {{28, 1024, 28672, 1, RQ_ROWS_F32, true, true},
                                 {1, 16384, 16384, 1, RQ_ROWS_F64, false, true}};
    if (!rq_small()) test_hadamard(large[0]);
    for (int i = 0; !rq_small() && i < 2; ++i) test_rotation(large[i], false, i == 0);
    test_refusals();
    return rq_done(__FILE__);
}
