/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA GEMV on VQ (cuda/gemv_vq.cuh) against sums in double of its definition, over shapes chosen for their edges.
 * Libraries: requite. Targets: sm_80 sm_90a. In table.json. */
#include "gemv_case.h"
#include "rq_repack.h"

enum { MAX_MATRICES = 3 };

typedef struct kind { /* of vectors */
    int vec_len;
    bool vec_out;
    int n_codes[2]; /* the second 0: one stage */
    char tests;     /* A: all of them; S: some; B: some, but a larger layer; D: only what reads every weight back */
} kind;
typedef struct problem {
    const char *what;
    int rows[MAX_MATRICES]; /* of the stacked matrices; 0: no more */
    int n_in, book_cols, group /* 0: no scales */, n_outlier, n_tok;
    bool columns, bf16, perm, bias, residual, early;
} problem;

/* The matrices as the file has them, stacked, with the values of the definition. */
typedef struct stack {
    rq_vq q[MAX_MATRICES];
    int n, n_out, n_in;
    int stride; /* every so many rows are checked */
    double *w;  /* [n_out][n_in], of the rows that are */
    int32_t *perm;
    rq_tile_layout layout;
    uint8_t *packed;
    void *owned[64];
    int n_owned;
} stack;

static void *take(stack *m, int64_t count, size_t size) {
    void *p = rq_host_alloc((size_t)(count ? count : 1) * size);
    return m->owned[m->n_owned++] = p;
}
/* n halves from -1 to 1, multiples of 2^-9: sums of two are halves too, or nearly. */
static rq_f16 *take_halves(stack *m, rq_rng *rng, int64_t n) {
    rq_f16 *to = (rq_f16 *)take(m, n, 2);
    for (int64_t i = 0; i < n; ++i) to[i].bits = rq_half_bits((float)((int)(rq_rand_u32(rng) % 1025) - 512) / 512);
    return to;
}
static rq_f16 *take_powers(stack *m, rq_rng *rng, int64_t n) {
    rq_f16 *to = (rq_f16 *)take(m, n, 2);
    for (int64_t i = 0; i < n; ++i) to[i].bits = rq_half_bits(ldexpf(1.0f, (int)(rq_rand_u32(rng) % 4) - 3));
    return to;
}

static void fill_codes(stack *m, rq_vq *q, int s, rq_rng *rng) {
    while (1 << q->code_bits[s] < q->n_codes[s]) ++q->code_bits[s];
    q->code_words[s] = (q->n_code * q->code_bits[s] + 31) / 32;
    uint32_t *words = (uint32_t *)take(m, q->n_line * q->code_words[s], 4);
    for (int64_t line = 0; line < q->n_line; ++line)
        for (int64_t i = 0; i < q->n_code; ++i) {
            const int64_t at = i * q->code_bits[s];
            const uint64_t code = (uint64_t)(rq_rand_u32(rng) % (uint32_t)q->n_codes[s]) << (at % 32);
            words[line * q->code_words[s] + at / 32] |= (uint32_t)code;
            if (code >> 32) words[line * q->code_words[s] + at / 32 + 1] |= (uint32_t)(code >> 32);
        }
    q->codes[s] = words;
}
/* Scales of columns are powers of two when `exact`. */
static void fill_matrix(stack *m, rq_vq *q, const kind *k, const problem *p, int rows, const rq_vq *first, bool exact,
                        rq_rng *rng) {
    q->n_out = rows, q->n_in = p->n_in, q->vec_len = k->vec_len, q->vec_out = k->vec_out;
    q->n_stage = k->n_codes[1] ? 2 : 1;
    q->n_line = k->vec_out ? (rows + k->vec_len - 1) / k->vec_len : rows;
    q->n_code = k->vec_out ? p->n_in : (p->n_in + k->vec_len - 1) / k->vec_len;
    q->book_cols = p->book_cols, q->n_book = (p->n_in + p->book_cols - 1) / p->book_cols;
    q->group = p->group ? p->group : p->n_in, q->n_group = (p->n_in + q->group - 1) / q->group;
    for (int s = 0; s < q->n_stage; ++s) {
        q->n_codes[s] = k->n_codes[s], q->code_bits[s] = 4;
        fill_codes(m, q, s, rng);
        q->book[s] = first ? first->book[s] : take_halves(m, rng, q->n_book * q->n_codes[s] * q->vec_len);
    }
    if (p->group) q->scale = take_powers(m, rng, rows * q->n_group);
    if (p->columns) {
        q->col_scale = first ? first->col_scale : exact ? take_powers(m, rng, p->n_in) : take_halves(m, rng, p->n_in);
        q->col_bias = first ? first->col_bias : take_halves(m, rng, p->n_in);
    }
    q->n_outlier = p->n_outlier;
    int32_t *column = (int32_t *)take(m, p->n_outlier, 4);
    int8_t *outlier = (int8_t *)take(m, rows * p->n_outlier, 1);
    float *outlier_scale = (float *)take(m, p->n_outlier, 4);
    for (int o = 0; o < p->n_outlier; ++o) { /* the last column too */
        column[o] = (int32_t)((int64_t)(o + 1) * p->n_in / p->n_outlier) - 1;
        outlier_scale[o] = ldexpf(1.0f, -o % 4 - 5);
    }
    rq_rand_bytes(rng, outlier, (size_t)(rows * p->n_outlier));
    q->outlier_col = column, q->outlier = outlier, q->outlier_scale = outlier_scale;
}

static stack make_stack(const kind *k, const problem *p, bool exact, rq_rng *rng) {
    stack m = {};
    m.n_in = p->n_in;
    for (; m.n < MAX_MATRICES && p->rows[m.n]; ++m.n) {
        fill_matrix(&m, &m.q[m.n], k, p, p->rows[m.n], m.n ? &m.q[0] : NULL, exact, rng);
        m.n_out += p->rows[m.n];
    }
    m.stride = m.n_out > 1000 ? 61 : 1;
    m.w = (double *)take(&m, (int64_t)m.n_out * p->n_in, 8);
    for (int i = 0, first = 0; i < m.n; first += (int)m.q[i++].n_out) {
        const rq_vq *q = &m.q[i];
        for (int64_t row = 0; row < q->n_out; ++row) {
            double *to = m.w + (size_t)(first + row) * p->n_in;
            if ((first + row) % m.stride) continue;
            for (int64_t j = 0; j < q->n_in; ++j) to[j] = rq_vq_weight(q, row, j);
            for (int o = 0; o < q->n_outlier; ++o)
                to[q->outlier_col[o]] = (double)q->outlier_scale[o] * q->outlier[row * q->n_outlier + o];
        }
    }
    if (p->perm) {
        m.perm = (int32_t *)take(&m, p->n_in, 4);
        for (int j = 0; j < p->n_in; ++j) m.perm[j] = j;
        for (int j = p->n_in - 1; j > 0; --j) {
            const int i = (int)(rq_rand_u32(rng) % (uint32_t)(j + 1)), was = m.perm[j];
            m.perm[j] = m.perm[i], m.perm[i] = was;
        }
    }
    const char *why = "";
    if (rq_repack_vq_plan(&m.layout, m.q, m.n, &why) != RQ_OK) RQ_DIE("%s: %s", p->what, why);
    m.packed = (uint8_t *)take(&m, m.layout.bytes, 1);
    rq_repack_vq(m.packed, &m.layout, m.q, m.n);
    return m;
}
static void free_stack(stack *m) {
    while (m->n_owned > 0) free(m->owned[--m->n_owned]);
}

static uint16_t bits_of(bool bf16, float v) { return bf16 ? rq_bf16_bits(v) : rq_half_bits(v); }
static float value_of(bool bf16, uint16_t b) { return bf16 ? rq_bf16_value(b) : rq_half_value(b); }
static void fill(rq_rng *rng, bool bf16, uint16_t *to, size_t n, float size) {
    for (size_t i = 0; i < n; ++i) to[i] = bits_of(bf16, size * rq_rand_float(rng));
}

static rq_cuda_gemv_desc describe(const problem *p, const rq_tile_layout *t) {
    rq_cuda_gemv_desc d = rq_cuda_gemv_desc_default();
    d.kind = RQ_TILE_VQ;
    d.n_out = t->n_out, d.n_in = t->n_in, d.n_tok = p->n_tok;
    d.act = p->bf16 ? RQ_ACT_BF16 : RQ_ACT_F16;
    d.vec_len = t->vec_len, d.vec_out = t->vec_out, d.n_stage = t->n_stage;
    d.n_codes[0] = t->n_codes[0], d.n_codes[1] = t->n_codes[1];
    d.group = t->group, d.no_scales = t->no_scales, d.columns = t->columns;
    d.n_book = t->n_book, d.book_cols = t->book_cols, d.n_outlier = t->n_outlier;
    d.bias = p->bias, d.residual = p->residual, d.early_launch = p->early;
    return d;
}

static const char *text_of(char text[96], const kind *k, const problem *p, const stack *m) {
    snprintf(text, 96, "%s %dx%d v%d%s k%d+%d g%d o%d t%d%s%s", p->what, m->n_out, p->n_in, k->vec_len,
             k->vec_out ? " out" : "", k->n_codes[0], k->n_codes[1], p->group, p->n_outlier, p->n_tok,
             p->columns ? " columns" : "", p->bf16 ? " bf16" : "");
    return text;
}

static void test_problem(const kind *k, const problem *p) {
    rq_rng rng = {(uint64_t)p->rows[0] * 1000003u + (uint64_t)p->n_in * 1009u + (uint64_t)k->vec_len * 101u +
                  (uint64_t)k->n_codes[0] * 13u + (uint64_t)p->group * 7u + (uint64_t)p->n_tok};
    stack m = make_stack(k, p, false, &rng);
    const device v = set_up(p, &m);
    const size_t n_y = (size_t)p->n_tok * m.n_out, n_x = (size_t)p->n_tok * p->n_in;
    uint16_t *x = (uint16_t *)take(&m, (int64_t)n_x, 2), *y = (uint16_t *)take(&m, (int64_t)n_y, 2);
    uint16_t *residual = (uint16_t *)take(&m, (int64_t)n_y, 2), *bias = (uint16_t *)take(&m, m.n_out, 2);
    for (int t = 0; t < p->n_tok; ++t) /* bfloat16: of any size */
        fill(&rng, p->bf16, x + (size_t)t * p->n_in, (size_t)p->n_in, p->bf16 ? ldexpf(1.0f, t * 14 - 60) : 1.0f);
    fill(&rng, p->bf16, residual, n_y, 1.0f), fill(&rng, p->bf16, bias, (size_t)m.n_out, 1.0f);
    CHECK_CUDA(cudaMemcpy(v.x, x, n_x * 2, cudaMemcpyHostToDevice));
    if (p->bias) CHECK_CUDA(cudaMemcpy(v.bias, bias, (size_t)m.n_out * 2, cudaMemcpyHostToDevice));
    if (p->residual) CHECK_CUDA(cudaMemcpy(v.residual, residual, n_y * 2, cudaMemcpyHostToDevice));
    cudaStream_t stream;
    CHECK_CUDA(cudaStreamCreate(&stream));
    run(p, &v, stream);
    CHECK_CUDA(cudaStreamSynchronize(stream));
    rq_device_read(y, v.a.y, n_y * 2);
    expect_clean_workspace(&v);

    double worst = 0;
    for (int t = 0; t < p->n_tok; ++t)
        for (int i = 0; i < m.n_out; i += m.stride) {
            double want = 0, size = 0;
            for (int j = 0; j < p->n_in; ++j) {
                const double term = m.w[(size_t)i * p->n_in + j] *
                                    value_of(p->bf16, x[(size_t)t * p->n_in + (p->perm ? m.perm[j] : j)]);
                want += term, size += fabs(term);
            }
            const size_t at = (size_t)t * m.n_out + i;
            if (p->bias) want += value_of(p->bf16, bias[i]), size += 1;
            if (p->residual) want += value_of(p->bf16, residual[at]), size += 1;
            /* fp32 sums of at most n_in / 8 mma (two stages) and 16 warps' partial sums, the rounding of y, and that of x times a
             * scale of its column. Two stages, or a column's scale and bias, may cancel: 2 is for terms that do not show in size. */
            const double bound = 2 * size * (p->n_in / 8 + 64) * 0x1p-23 + (p->columns ? 2 * size * 0x1p-11 : 0) +
                                 fabs(want) * (p->bf16 ? 0x1p-8 : 0x1p-11) * 1.001 + (p->bf16 ? 0x1p-134 : 0x1p-24);
            const double got = value_of(p->bf16, y[at]);
            EXPECT_NEAR_AT(at, got, want, bound);
            worst = fmax(worst, fabs(got - want) / bound);
        }
    if (m.n_out < 1024) test_graph(p, &v, stream, y, n_y);
    expect_clean_workspace(&v);
    CHECK_CUDA(cudaStreamDestroy(stream));

    char name[100] = "y ";
    text_of(name + 2, k, p, &m);
    printf("%-60s %s: %d blocks, split %d, 2^%d warps a row block, error %.2f of the bound\n", name + 2, v.plan.kernel,
           v.plan.blocks, v.plan.split, v.plan.log_warps, worst);
    /* The tensor cores of a GPU may truncate where the simulator rounds. */
    rq_record(name, p->bf16 ? RQ_BF16 : RQ_F16, y, n_y, 0x1p-6 * p->n_in / 64);
    rq_device_free_all();
    free_stack(&m);
}

/* x with a single 1: y is a column of W. The scales are powers of two and values of codebooks have few bits, so that there is one
 * rounding, that of y, and the result is exact. All columns, 16 at a time. */
static void test_decode(const kind *k, const problem *p) {
    rq_rng rng = {(uint64_t)k->vec_len * 31u + (uint64_t)p->group + (uint64_t)k->n_codes[0]};
    stack m = make_stack(k, p, true, &rng);
    const device v = set_up(p, &m);
    const size_t n_x = (size_t)16 * p->n_in, n_y = (size_t)16 * m.n_out;
    uint16_t *x = (uint16_t *)take(&m, (int64_t)n_x, 2), *y = (uint16_t *)take(&m, (int64_t)n_y, 2);
    for (int j0 = 0; j0 < p->n_in; j0 += 16) {
        memset(x, 0, n_x * 2);
        for (int t = 0; t < 16; ++t) x[(size_t)t * p->n_in + (j0 + t) % p->n_in] = bits_of(p->bf16, 1.0f);
        CHECK_CUDA(cudaMemcpy(v.x, x, n_x * 2, cudaMemcpyHostToDevice));
        run(p, &v, 0);
        CHECK_CUDA(cudaDeviceSynchronize());
        rq_device_read(y, v.a.y, n_y * 2);
        for (int i = 0; i < m.n_out; ++i)
            for (int t = 0; t < 16; ++t) {
                const float want = (float)m.w[(size_t)i * p->n_in + (j0 + t) % p->n_in];
                const uint16_t got = y[(size_t)t * m.n_out + i];
                EXPECT_EQ_AT((j0 + t) % p->n_in, want == 0.0f ? got & 0x7fff : got,
                             want == 0.0f ? 0 : bits_of(p->bf16, want));
            }
    }
    expect_clean_workspace(&v);
    char text[96];
    printf("decode %s\n", text_of(text, k, p, &m));
    rq_device_free_all();
    free_stack(&m);
}

static void expect_refused(rq_cuda_gemv_desc d, const char *word) {
    const char *why = "";
    EXPECT_EQ(rq_cuda_gemv_supports(&d, &why), RQ_ERR_UNSUPPORTED);
    if (rq_failed(strstr(why, word) != NULL)) fprintf(stderr, "\"%s\" does not say \"%s\"\n", why, word);
}
static void test_refusals(void) {
    rq_cuda_gemv_desc good = rq_cuda_gemv_desc_default(), d;
    good.kind = RQ_TILE_VQ, good.n_out = 64, good.n_in = 512, good.vec_len = 8, good.n_stage = 1;
    good.n_codes[0] = 256, good.group = 512, good.n_book = 1, good.book_cols = 512;
    EXPECT_EQ(rq_cuda_gemv_supports(&good, NULL), RQ_OK);
    d = good, d.vec_len = 2, expect_refused(d, "4 or 8");
    d = good, d.n_stage = 3, expect_refused(d, "stages");
    d = good, d.n_codes[0] = 65537, expect_refused(d, "65536");
    d = good, d.vec_len = 4, d.vec_out = 1, expect_refused(d, "down the rows");
    d = good, d.group = 40, expect_refused(d, "multiples of 32");
    d = good, d.group = 64, d.no_scales = 1, expect_refused(d, "multiples of 32");
    d = good, d.n_book = 3, expect_refused(d, "codebook");
    d = good, d.n_book = 8, d.book_cols = 64, expect_refused(d, "128");
    d = good, d.n_outlier = 17, expect_refused(d, "outlier");
    d = good, d.zeros = 1, expect_refused(d, "zero points");
    d = good, d.n_tok = 17, expect_refused(d, "n_tok");
    d = good, d.n_codes[0] = 5000, d.group = 64, expect_refused(d, "4096");
    d = good, d.n_stage = 2, d.n_codes[1] = 5000, expect_refused(d, "no kernel");
    d = good, d.vec_len = 4, d.n_codes[0] = 5000, expect_refused(d, "no kernel");
}

int main(void) {
    rq_need_device(80);
    test_refusals();
    static const kind kinds[] = {
        {8, false, {256, 0}, 'A'},   {8, false, {256, 256}, 'A'},   {4, false, {256, 0}, 'A'},
        {4, false, {256, 256}, 'A'}, {8, false, {200, 1}, 'D'},     {4, false, {255, 33}, 'D'},
        {8, false, {4096, 0}, 'S'},  {8, false, {700, 0}, 'S'},     {4, false, {4096, 0}, 'B'},
        {4, false, {1024, 0}, 'D'},  {8, false, {4000, 3000}, 'B'}, {8, false, {65536, 0}, 'S'},
        {8, true, {256, 0}, 'S'},    {8, true, {256, 200}, 'S'},    {8, true, {4096, 0}, 'S'},
        {8, true, {1000, 0}, 'D'},   {8, true, {60000, 0}, 'S'},    {8, true, {65536, 256}, 'S'},
    };
    for (size_t n = 0; n < sizeof kinds / sizeof kinds[0]; ++n) {
        const kind *k = &kinds[n];
        const bool wide = k->n_codes[0] > 4096; /* they have no scales of groups */
        const problem decodes[] = {
            /* rows            n_in book group out n_tok columns bf16 perm   bias   residual early */
            {"decode", {19}, 160, 160, 160, 0, 16, false, false, false, false, false, false},
            {"decode", {16}, 300, 128, wide ? 300 : 32, 3, 16, false, true, false, false, false, false},
            {"decode", {32, 17}, 384, 256, 0, 16, 16, true, false, false, false, false, false},
        };
        for (size_t i = k->tests == 'A' ? 0 : k->tests == 'D' ? 1 : 2; i < sizeof decodes / sizeof decodes[0]; ++i)
            test_decode(k, &decodes[i]);
        if (k->tests == 'D') continue;
        const problem problems[] = {
            {"least", {1}, 4, 4, 0, 0, 1, false, false, false, false, false, false},
            {"rows", {17}, 160, 160, 160, 2, 8, true, true, true, true, true, true},
            {"odd", {33}, 1000, 1000, 1000, 16, 9, false, false, true, false, true, true},
            {"books", {40}, 900, 256, 900, 4, 7, false, true, false, true, false, false},
            {"qkv", {64, 32, 25}, 640, 640, 640, 16, 1, false, false, false, false, false, true},
            {"long", {40}, 4096 + 36, 4096 + 36, 4096 + 36, 16, 1, true, false, false, false, false, false},
            /* The rest with 'A'. */
            {"rows", {15}, 128, 128, 128, 1, 2, false, false, false, true, false, false},
            {"rows", {16}, 160, 160, 32, 16, 3, false, true, false, false, true, false},
            {"odd", {51}, 333, 333, 96, 5, 5, false, false, false, true, true, false},
            {"books", {21}, 1000, 128, 0, 0, 16, true, false, true, false, true, false},
            {"qkv", {32, 16, 16}, 640, 256, 128, 3, 12, true, true, false, true, false, true},
            {"long", {40}, 4096 + 36, 2048, 64, 7, 16, false, true, false, true, true, true},
        };
        const size_t n_problems = k->tests == 'A' ? sizeof problems / sizeof problems[0] : 6;
        for (size_t i = 0; i < n_problems; ++i)
            if (!rq_small() || problems[i].n_in <= 1000) test_problem(k, &problems[i]);
        /* Shapes whose counts docs/kernels.md has. */
        const int rows = k->tests == 'S' ? 1024 : 4096;
        const problem layer = {"layer", {rows}, 4096, 4096, 4096, 0, 1, false, false, false, false, false, true};
        test_problem(k, &layer);
    }
    return rq_done(__FILE__);
}
