/* SPDX-License-Identifier: Apache-2.0 */
/* What inputs of w4a8 matrices go through (quantize_inputs.c): without rounding the model is the same function; Gram matrices are those of the
 * inputs so changed; factors are their formulas; a folder that quantize writes runs as its unpacked weights do with inputs in 8
 * bits; what does not go together is refused. Models: the small golden ones, with and without biases. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "quantize.h"
#include "random.h"
#include "rotate_hadamard.h"

enum { N_SEQ = 3, SEQ = 24, N_TOK = N_SEQ * SEQ, D = 64, FF = 96, N_LAYER = 2, N_VOCAB = 512 };

#define assert_ok(expr)                                                                                                \
    do {                                                                                                               \
        rq_status status_ = (expr);                                                                                    \
        if (status_ != RQ_OK) fail_msg("%s: %s", rq_status_text(status_), rq_last_error());                            \
    } while (0)

static char folder[256];
static int32_t ids[N_TOK];

static void *must_alloc(int64_t n, size_t size) {
    void *p;
    assert_ok(rq_alloc(&p, n, size));
    return p;
}

static void remove_folder(const char *path) {
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char *child = rq_path_join(path, e->d_name);
        if (child && e->d_name[0] != '.') unlink(child);
        free(child);
    }
    if (dir) closedir(dir);
    rmdir(path);
}

static const char *golden(const char *name) {
    static char path[1024];
    snprintf(path, sizeof path, "%s/golden/llama/%s", RQ_TEST_DIR, name);
    return path;
}

/* ---- a quantizer with a plan, without a run ---------------------------------------------------------------------------- */

typedef struct fixture {
    rq_quantize_job job;
    rq_quantizer z;
} fixture;

/* All matrices w4a8 but the one that is skipped (none when below 0). */
static rq_status fixture_new(fixture *f, const char *model, const char *rotate, int order_o, int order_down, int skip) {
    memset(f, 0, sizeof *f);
    f->job = (rq_quantize_job){.model_path = golden(model),
                               .samples = {ids, N_SEQ, SEQ, N_SEQ},
                               .rotate = rotate,
                               .hadamard = {order_o, order_down},
                               .seed = 11};
    rq_quant_default_round(&f->job.opt, RQ_COMP_GPTQ, RQ_ROUND_W4A8);
    f->z.job = &f->job;
    f->z.work_dir = folder;
    assert_ok(rq_model_open(&f->z.model, f->job.model_path));
    const rq_config *c = &f->z.model->cfg;
    if (strcmp(rotate, "none") != 0) {
        assert_ok(rq_rotation_new(&f->z.rotation, c->d_model, f->job.seed, NULL));
        assert_ok(rq_rotation_new(&f->z.head_rotation, c->head_dim, f->job.seed + 1, NULL));
        f->z.model->rotation = f->z.rotation;
    }
    f->z.plan = must_alloc(c->n_layer * RQ_N_LINEARS, sizeof *f->z.plan);
    for (int64_t i = 0; i < c->n_layer * RQ_N_LINEARS; ++i) {
        const rq_linear *l = &f->z.model->block[i / RQ_N_LINEARS].lin[i % RQ_N_LINEARS];
        f->z.plan[i] = (rq_matrix_plan){
            .quantized = i % RQ_N_LINEARS != skip, .opt = f->job.opt, .n_out = l->n_out, .n_in = l->n_in};
        snprintf(f->z.plan[i].name, sizeof f->z.plan[i].name, "matrix %d", (int)i);
    }
    return rq_plan_inputs(&f->z);
}

/* After a change of the job. */
static rq_status plan_again(fixture *f) {
    rq_inputs_free(&f->z);
    f->z.online[0] = f->z.online[1] = NULL;
    f->z.act_online[0] = f->z.act_online[1] = NULL;
    f->z.factors = NULL;
    return rq_plan_inputs(&f->z);
}

static void fixture_free(fixture *f) {
    f->z.model->rotation = NULL;
    rq_rotation_free(f->z.rotation);
    rq_rotation_free(f->z.head_rotation);
    rq_inputs_free(&f->z);
    rq_model_close(f->z.model);
    free(f->z.plan);
}

static int64_t layer_width(void) { return 3 * D + FF; }

/* Factors of 0.2 to 5, as rq_plan_factors would put them in place. */
static void random_factors(fixture *f) {
    f->z.factors = must_alloc(N_LAYER * layer_width(), sizeof(float));
    for (int64_t i = 0; i < N_LAYER * layer_width(); ++i)
        f->z.factors[i] = (float)exp(log(5.0) * (2 * rq_random_unit(77, (uint64_t)i) - 1));
    for (int64_t i = 0; i < N_LAYER * RQ_N_LINEARS; ++i) {
        rq_matrix_plan *p = &f->z.plan[i];
        p->wants_in_scale = p->quantized && (i % RQ_N_LINEARS == RQ_O || i % RQ_N_LINEARS == RQ_DOWN);
        if (p->wants_in_scale)
            p->in_scale = rq_stage_factors(&f->z, i / RQ_N_LINEARS, i % RQ_N_LINEARS == RQ_O ? 1 : 3);
    }
}

/* M of the definition: what is quantized of an input x is M x; [n][n] in fp64. */
static double *input_matrix(const rq_matrix_plan *p) {
    const int64_t n = p->n_in, size = p->hadamard;
    double *m = must_alloc(n * n, sizeof *m);
    const int64_t core = size ? rq_hadamard_core(size) : 0, width = size ? size / core : 0;
    int8_t *entry = must_alloc(core * core + 1, 1);
    if (size) assert_ok(rq_hadamard_fill(entry, core));
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            double v = i == j;
            if (size) {
                const int64_t a = i % size, b = j % size;
                const int sign = entry[a / width * core + b / width];
                v = i / size != j / size ? 0 : sign / sqrt((double)size);
                if (__builtin_parityll((unsigned long long)(a % width & b % width))) v = -v;
            }
            m[i * n + j] = v * (p->in_scale ? (double)p->in_scale[i] : 1.0);
        }
    }
    free(entry);
    return m;
}

/* W M: the weights of the changed input, as weights of the input. */
static float *dense_weights(const float *w, const rq_matrix_plan *p) {
    double *m = input_matrix(p);
    float *out = must_alloc(p->n_out * p->n_in, sizeof *out);
    for (int64_t i = 0; i < p->n_out; ++i) {
        for (int64_t j = 0; j < p->n_in; ++j) {
            double sum = 0;
            for (int64_t k = 0; k < p->n_in; ++k) sum += (double)w[i * p->n_in + k] * m[k * p->n_in + j];
            out[i * p->n_in + j] = (float)sum;
        }
    }
    free(m);
    return out;
}

static void run_model(const rq_model *m, float *logits) {
    float *x = must_alloc(N_TOK * D, sizeof *x);
    assert_ok(rq_forward(m, x, ids, N_SEQ, SEQ));
    assert_ok(rq_logits(m, logits, x, N_TOK));
    free(x);
}

static double largest(const float *a, const float *b, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; ++i) {
        double d = fabs((double)a[i] - (b ? (double)b[i] : 0));
        if (!(d <= most)) most = d;
    }
    return most;
}

/* ---- the same function --------------------------------------------------------------------------------------------------- */

/* The largest change of a logit over the largest logit, of the model with all weights as they are before rounding. */
static double change_of_logits(fixture *f) {
    static float want[N_TOK * N_VOCAB], got[N_TOK * N_VOCAB];
    rq_model *m;
    float *memory[N_LAYER * RQ_N_LINEARS][2];
    assert_ok(rq_model_open(&m, f->job.model_path));
    const int64_t n = N_TOK * m->cfg.n_vocab;
    assert_true(m->cfg.n_vocab <= N_VOCAB && m->cfg.d_model == D && m->cfg.d_ff == FF && m->cfg.n_layer == N_LAYER);
    run_model(m, want);
    for (int i = 0; i < N_LAYER * RQ_N_LINEARS; ++i) {
        const int layer = i / RQ_N_LINEARS, which = i % RQ_N_LINEARS;
        rq_linear *l = &m->block[layer].lin[which];
        float *w = must_alloc(l->n_out * l->n_in, sizeof *w), *bias = must_alloc(l->n_out, sizeof *bias);
        assert_ok(rq_rotated_matrix(&f->z, layer, which, w));
        if (l->bias) assert_ok(rq_rotated_bias(&f->z, layer, which, bias));
        l->w = memory[i][0] = dense_weights(w, &f->z.plan[i]);
        l->tensor = NULL;
        if (l->bias) l->bias = bias;
        memory[i][1] = bias;
        free(w);
    }
    for (int layer = 0; layer < N_LAYER; ++layer)
        rq_block_gains(&f->z, layer, m->block[layer].norm1, m->block[layer].norm2);
    m->rotation = f->z.rotation;
    run_model(m, got);
    m->rotation = NULL;
    rq_model_close(m);
    for (int i = 0; i < N_LAYER * RQ_N_LINEARS; ++i) free(memory[i][0]), free(memory[i][1]);
    return largest(want, got, n) / largest(want, NULL, n);
}

static void the_function_stays(void **state) {
    (void)state;
    static const char *const models[] = {"tied", "linear", "qwen2"};
    static const struct {
        const char *rotate;
        int o, down, skip, want_o, want_down;
    } kinds[] = {{"none", 0, 0, -1, 0, 0},       {"residual", 0, 0, -1, 0, 0}, {"full", 0, 0, -1, 64, 96},
                 {"full", 32, 12, -1, 32, 12},   {"full", 16, 48, -1, 0, 48},  {"full", -1, 32, RQ_O, 0, 32},
                 {"full", 0, 0, RQ_DOWN, 64, 0}, {"full", 0, 0, RQ_V, 64, 96}, {"none", 0, 0, RQ_UP, 0, 0}};
    for (size_t i = 0; i < sizeof models / sizeof *models; ++i) {
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; ++k) {
            for (int factors = 0; factors < 2; ++factors) {
                fixture f;
                assert_ok(fixture_new(&f, models[i], kinds[k].rotate, kinds[k].o, kinds[k].down, kinds[k].skip));
                if (factors) random_factors(&f);
                assert_int_equal(f.z.plan[RQ_O].hadamard, kinds[k].want_o);
                assert_int_equal(f.z.plan[RQ_N_LINEARS + RQ_DOWN].hadamard, kinds[k].want_down);
                assert_int_equal(f.z.plan[RQ_UP].hadamard, 0);
                const double change = change_of_logits(&f);
                if (!(change < 1e-5))
                    fail_msg("%s, rotate %s %d,%d, factors %d: logits change by %g", models[i], kinds[k].rotate,
                             kinds[k].o, kinds[k].down, factors, change);
                fixture_free(&f);
            }
        }
    }
}

/* ---- inputs and their Gram matrices ------------------------------------------------------------------------------------- */

static void inputs_are_as_defined(void **state) {
    (void)state;
    fixture f;
    assert_ok(fixture_new(&f, "tied", "full", 0, 0, -1));
    random_factors(&f);
    for (int which = 0; which < RQ_N_LINEARS; ++which) {
        const rq_matrix_plan *p = &f.z.plan[RQ_N_LINEARS + which];
        const int64_t n = p->n_in;
        float *x = must_alloc(N_TOK * n, sizeof *x), *y = must_alloc(N_TOK * n, sizeof *y);
        double *m = input_matrix(p);
        for (int64_t i = 0; i < N_TOK * n; ++i) x[i] = y[i] = (float)(rq_random_unit(3, (uint64_t)i) - 0.5);
        const rq_input how = rq_input_of(&f.z, 1, which);
        rq_input_apply(&how, y, N_TOK, n);
        assert_true((p->hadamard != 0) == (which == RQ_O || which == RQ_DOWN));
        for (int64_t t = 0; t < N_TOK; ++t) {
            for (int64_t i = 0; i < n; ++i) {
                double want = 0;
                for (int64_t j = 0; j < n; ++j) want += m[i * n + j] * (double)x[t * n + j];
                assert_true(fabs(want - (double)y[t * n + i]) < 1e-5);
            }
        }
        free(x), free(y), free(m);
    }
    fixture_free(&f);
}

typedef struct gathered {
    double *h[N_LAYER * RQ_N_STAGES];
    float *most[N_LAYER * RQ_N_STAGES];
} gathered;

static rq_status keep(void *arg, int64_t layer, int stage, const rq_gathered *of, float *const *w) {
    gathered *g = arg;
    const int64_t n = stage == 3 ? FF : D;
    (void)w;
    if (of->h) {
        g->h[layer * RQ_N_STAGES + stage] = must_alloc(n * n, sizeof(double));
        memcpy(g->h[layer * RQ_N_STAGES + stage], of->h, (size_t)(n * n) * sizeof(double));
    } else {
        g->most[layer * RQ_N_STAGES + stage] = must_alloc(n, sizeof(float));
        memcpy(g->most[layer * RQ_N_STAGES + stage], of->max, (size_t)n * sizeof(float));
    }
    return RQ_OK;
}

static void gathered_free(gathered *g) {
    for (int i = 0; i < N_LAYER * RQ_N_STAGES; ++i) free(g->h[i]), free(g->most[i]);
}

/* H of the changed inputs is M S H S M^T, with H that of the model as it is and S the signs that v and up put on the inputs of o and down; in
 * the residual stream, which is rotated, tr(H) is compared, with the factors undone. */
static void gram_matrices_are_of_the_changed_inputs(void **state) {
    (void)state;
    fixture plain, f;
    gathered before = {0}, after = {0};
    assert_ok(fixture_new(&plain, "linear", "none", 0, 0, -1));
    assert_ok(rq_calibrate_stages(&plain.z, RQ_GATHER_GRAM, keep, &before));
    assert_ok(fixture_new(&f, "linear", "full", 0, 0, -1));
    random_factors(&f);
    assert_ok(rq_calibrate_stages(&f.z, RQ_GATHER_GRAM, keep, &after));
    for (int layer = 0; layer < N_LAYER; ++layer) {
        for (int stage = 1; stage < RQ_N_STAGES; stage += 2) {
            const int which = stage == 1 ? RQ_O : RQ_DOWN;
            const rq_matrix_plan *p = &f.z.plan[layer * RQ_N_LINEARS + which];
            const int64_t n = p->n_in;
            double *m = input_matrix(p), *half = must_alloc(n * n, sizeof *half), off = 0, size = 0;
            const double *h = before.h[layer * RQ_N_STAGES + stage];
            int n_minus = 0;
            for (int64_t j = 0; j < n; ++j) {
                const double sign = rq_input_sign(&f.z, layer, which, j);
                n_minus += sign < 0;
                for (int64_t i = 0; i < n; ++i) m[i * n + j] *= sign;
            }
            assert_true(n_minus > n / 5 && n_minus < n - n / 5);
            for (int64_t i = 0; i < n * n; ++i) {
                half[i] = 0;
                for (int64_t k = 0; k < n; ++k) half[i] += m[i / n * n + k] * h[k * n + i % n];
            }
            for (int64_t i = 0; i < n * n; ++i) {
                double want = 0;
                for (int64_t k = 0; k < n; ++k) want += half[i / n * n + k] * m[i % n * n + k];
                off = fmax(off, fabs(want - after.h[layer * RQ_N_STAGES + stage][i]));
                size = fmax(size, fabs(want));
            }
            assert_true(off < 1e-5 * size);
            free(m), free(half);
        }
    }
    gathered_free(&before);
    gathered_free(&after);
    fixture_free(&plain);
    fixture_free(&f);
}

/* ---- column factors ------------------------------------------------------------------------------------------------------ */

/* With one token a window that counts, of one window, the largest of a column is the root of H's diagonal. */
static void maxima_are_of_the_columns(void **state) {
    (void)state;
    fixture f;
    gathered gram = {0}, most = {0};
    assert_ok(fixture_new(&f, "tied", "full", 0, 0, -1));
    f.job.samples.n_samples = 1;
    f.job.skip_tokens = SEQ - 1;
    assert_ok(rq_calibrate_stages(&f.z, RQ_GATHER_GRAM, keep, &gram));
    assert_ok(rq_calibrate_stages(&f.z, RQ_GATHER_MAX, keep, &most));
    for (int layer = 0; layer < N_LAYER; ++layer) {
        for (int stage = 0; stage < RQ_N_STAGES; ++stage) {
            const int64_t n = stage == 3 ? FF : D;
            for (int64_t j = 0; j < n; ++j) {
                const double want = sqrt(gram.h[layer * RQ_N_STAGES + stage][j * n + j]);
                assert_true(fabs(want - (double)most.most[layer * RQ_N_STAGES + stage][j]) < 1e-5 * (1e-3 + want));
            }
        }
    }
    gathered_free(&gram);
    gathered_free(&most);
    memset(&most, 0, sizeof most);
    f.job.samples.n_samples = N_SEQ; /* and over tokens and windows it only grows */
    f.job.skip_tokens = 0;
    assert_ok(rq_calibrate_stages(&f.z, RQ_GATHER_MAX, keep, &most));
    assert_true(most.most[RQ_N_STAGES + 3][5] > 0);
    gathered_free(&most);
    fixture_free(&f);
}

/* Against the formula on maxima of inputs and weights in the basis that is quantized. */
static void factors_are_their_formulas(void **state) {
    (void)state;
    for (int kind = RQ_FACTORS_SMOOTH; kind <= RQ_FACTORS_CROSS; ++kind) {
        for (int skip = -1; skip <= RQ_K; skip += 2) {
            fixture f;
            gathered most = {0};
            char path[300];
            assert_ok(fixture_new(&f, "linear", kind == RQ_FACTORS_CROSS ? "none" : "full", 0, 0, skip));
            f.job.factors = (rq_factors)kind;
            f.job.factor_a = 0.4;
            f.job.factor_b = 0.7;
            f.job.factor_stages = skip < 0 ? 0 : 1u << 0 | 1u << 3;
            assert_ok(plan_again(&f));
            assert_ok(rq_calibrate_stages(&f.z, RQ_GATHER_MAX, keep, &most));
            float *w[N_LAYER * RQ_N_LINEARS];
            for (int i = 0; i < N_LAYER * RQ_N_LINEARS; ++i) {
                w[i] = must_alloc(f.z.plan[i].n_out * f.z.plan[i].n_in, sizeof(float));
                assert_ok(rq_rotated_matrix(&f.z, i / RQ_N_LINEARS, i % RQ_N_LINEARS, w[i]));
            }
            snprintf(path, sizeof path, "%s/factors.safetensors", folder);
            unlink(path);
            assert_ok(rq_plan_factors(&f.z));
            assert_int_equal(access(path, F_OK), 0);
            for (int layer = 0; layer < N_LAYER; ++layer) {
                for (int stage = 0; stage < RQ_N_STAGES; ++stage) {
                    const int64_t n = stage == 3 ? FF : D;
                    const float *got = rq_stage_factors(&f.z, layer, stage);
                    double want[FF], mean = 0;
                    for (int64_t j = 0; j < n; ++j) {
                        const double c = (double)most.most[layer * RQ_N_STAGES + stage][j];
                        double top = 0;
                        for (int m = rq_stage_first[stage]; m < rq_stage_first[stage + 1]; ++m) {
                            for (int64_t i = 0; m != skip && i < f.z.plan[m].n_out; ++i)
                                top = fmax(top, fabs((double)w[layer * RQ_N_LINEARS + m][i * n + j]));
                        }
                        want[j] = kind == RQ_FACTORS_SMOOTH ? log(pow(top, 0.7) / pow(c, 0.4)) : log(pow(c, -0.6));
                        mean += want[j] / (double)n;
                    }
                    const bool has = skip < 0 || stage == 0 || stage == 3;
                    for (int64_t j = 0; j < n; ++j)
                        assert_true(fabs(log((double)got[j]) - (has ? want[j] - mean : 0)) < 1e-5);
                }
            }
            free(f.z.factors); /* once more, from the file: an interrupted run has the same bytes */
            f.z.factors = NULL;
            assert_ok(rq_plan_factors(&f.z));
            assert_true(change_of_logits(&f) < 1e-5);
            assert_true(f.z.plan[RQ_DOWN].in_scale && (f.z.plan[RQ_O].in_scale != NULL) == (skip < 0));
            for (int i = 0; i < N_LAYER * RQ_N_LINEARS; ++i) free(w[i]);
            gathered_free(&most);
            fixture_free(&f);
            unlink(path);
        }
    }
}

/* ---- a folder ------------------------------------------------------------------------------------------------------------- */

/* x[n_tok][n] becomes what the codes of its changed values stand for, by the definition, changed back: M^-1 Q(M x). */
static void eight_bits(const rq_matrix_plan *p, float *x) {
    const int64_t n = p->n_in;
    double *m = input_matrix(p), *back = must_alloc(n, sizeof *back);
    float *changed = must_alloc(n, sizeof *changed);
    for (int64_t t = 0; t < N_TOK; ++t, x += n) {
        for (int64_t i = 0; i < n; ++i) {
            double sum = 0;
            for (int64_t j = 0; j < n; ++j) sum += m[i * n + j] * (double)x[j];
            changed[i] = (float)sum;
        }
        assert_ok(rq_act8_round_trip(changed, 1, n));
        for (int64_t j = 0; j < n; ++j) back[j] = 0;
        for (int64_t i = 0; i < n; ++i) { /* H is orthogonal: M^-1 = H^T diag(1 / f) = (diag(1 / f^2) M)^T */
            const double f = p->in_scale ? (double)p->in_scale[i] : 1.0;
            for (int64_t j = 0; j < n; ++j) back[j] += m[i * n + j] * (double)changed[i] / (f * f);
        }
        for (int64_t j = 0; j < n; ++j) x[j] = (float)back[j];
    }
    free(m), free(back), free(changed);
}

/* y = Q(x) W^T for a packed matrix of the model, from its rows as the format unpacks them. */
static void reference_product(const rq_linear *l, float *y, const float *x) {
    const rq_w4a8 *w = &l->packed->u.w4a8;
    const rq_matrix_plan p = {.n_in = l->n_in, .hadamard = w->hadamard, .in_scale = w->in_scale};
    float *in = must_alloc(N_TOK * l->n_in, sizeof *in), *row = must_alloc(l->n_in, sizeof *row);
    memcpy(in, x, (size_t)(N_TOK * l->n_in) * sizeof *in);
    eight_bits(&p, in);
    for (int64_t r = 0; r < l->n_out; ++r) {
        rq_unpack_row(l->packed, r, row);
        for (int64_t t = 0; t < N_TOK; ++t) {
            double sum = l->bias ? (double)l->bias[r] : 0;
            for (int64_t j = 0; j < l->n_in; ++j) sum += (double)row[j] * (double)in[t * l->n_in + j];
            y[t * l->n_out + r] = (float)sum;
        }
    }
    free(in), free(row);
}

/* The first block of the packed model, both ways. Rounding an input to 8 bits is not continuous, so a few codes may differ by one. */
static void check_block(const rq_model *m) {
    const rq_block *b = &m->block[0];
    const int64_t kd = m->cfg.n_kv_head * m->cfg.head_dim;
    float *x = must_alloc(N_TOK * D, 4), *h = must_alloc(N_TOK * D, 4), *ao = must_alloc(N_TOK * D, 4);
    float *q = must_alloc(N_TOK * D, 4), *k = must_alloc(N_TOK * kd, 4), *v = must_alloc(N_TOK * kd, 4);
    float *g = must_alloc(N_TOK * FF, 4), *u = must_alloc(N_TOK * FF, 4), *o[2], *down[2];
    assert_ok(rq_embed(m, x, ids, N_TOK));
    rq_rmsnorm(h, x, b->norm1, N_TOK, D, m->cfg.rms_eps);
    reference_product(&b->lin[RQ_Q], q, h);
    reference_product(&b->lin[RQ_K], k, h);
    reference_product(&b->lin[RQ_V], v, h);
    assert_ok(rq_attention(m, ao, q, k, v, N_SEQ, SEQ));
    reference_product(&b->lin[RQ_GATE], g, h);
    reference_product(&b->lin[RQ_UP], u, h);
    rq_swiglu(g, g, u, N_TOK * FF);
    for (int i = 0; i < 2; ++i) o[i] = must_alloc(N_TOK * D, 4), down[i] = must_alloc(N_TOK * D, 4);
    reference_product(&b->lin[RQ_O], o[0], ao);
    reference_product(&b->lin[RQ_DOWN], down[0], g);
    assert_ok(rq_linear_apply(&b->lin[RQ_O], o[1], ao, N_TOK));
    assert_ok(rq_linear_apply(&b->lin[RQ_DOWN], down[1], g, N_TOK));
    assert_true(largest(o[0], o[1], N_TOK * D) < 3e-3 * largest(o[0], NULL, N_TOK * D));
    assert_true(largest(down[0], down[1], N_TOK * D) < 3e-3 * largest(down[0], NULL, N_TOK * D));
    float *all[] = {x, h, ao, q, k, v, g, u, o[0], o[1], down[0], down[1]};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) free(all[i]);
}

/* Unpacked rows are the weights before rounding, up to 4 bits' error, in the basis without Hadamard matrix and factors. */
static double sqnr(fixture *f, const rq_model *m, int layer, int which) {
    const rq_linear *l = &m->block[layer].lin[which];
    const rq_matrix_plan *p = &f->z.plan[layer * RQ_N_LINEARS + which];
    float *w = must_alloc(l->n_out * l->n_in, sizeof *w), *row = must_alloc(l->n_in, sizeof *row);
    double signal = 0, noise = 0;
    assert_ok(rq_rotated_matrix(&f->z, layer, which, w));
    float *dense = dense_weights(w, p);
    for (int64_t i = 0; i < l->n_out; ++i) {
        rq_unpack_row(l->packed, i, row);
        for (int64_t j = 0; j < l->n_in; ++j) {
            const double want = (double)dense[i * l->n_in + j];
            signal += want * want;
            noise += (want - (double)row[j]) * (want - (double)row[j]);
        }
    }
    free(w), free(row), free(dense);
    return 10 * log10(signal / noise);
}

static void written_models_run(void **state) {
    (void)state;
    static const struct {
        const char *rotate;
        rq_factors factors;
        int order_down;
    } kinds[] = {{"full", RQ_FACTORS_NONE, 0},
                 {"full", RQ_FACTORS_SMOOTH, 0},
                 {"full", RQ_FACTORS_CROSS, 48},
                 {"none", RQ_FACTORS_SMOOTH, 0}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; ++i) {
        char out[300];
        fixture f;
        rq_quantize_report report;
        rq_model *m;
        snprintf(out, sizeof out, "%s/out", folder);
        assert_ok(fixture_new(&f, "linear", kinds[i].rotate, 0, kinds[i].order_down, -1));
        f.job.factors = kinds[i].factors;
        f.job.factor_a = 0.5;
        f.job.factor_b = 0.5;
        f.job.out_path = out;
        f.job.options_json = "{}";
        rq_quant_default_round(&f.job.opt, RQ_COMP_RTN, RQ_ROUND_W4A8);
        f.job.opt.group = 32;
        assert_ok(rq_quantize_model(&f.job, &report));
        assert_ok(plan_again(&f));
        assert_ok(rq_plan_factors(&f.z)); /* as the run has measured them */
        char path[300];
        snprintf(path, sizeof path, "%s/factors.safetensors", folder);
        unlink(path);
        assert_ok(rq_model_open(&m, out));
        for (int k = 0; k < N_LAYER * RQ_N_LINEARS; ++k) {
            const int layer = k / RQ_N_LINEARS, which = k % RQ_N_LINEARS;
            const rq_w4a8 *w = &m->block[layer].lin[which].packed->u.w4a8;
            const rq_matrix_plan *p = &f.z.plan[k];
            assert_int_equal(w->hadamard, p->hadamard);
            assert_true((w->in_scale != NULL) == (p->in_scale != NULL));
            if (p->in_scale) assert_memory_equal(w->in_scale, p->in_scale, (size_t)p->n_in * sizeof(float));
            assert_true(sqnr(&f, m, layer, which) > 15);
        }
        float gain[2][D];
        rq_block_gains(&f.z, 1, gain[0], gain[1]);
        assert_memory_equal(m->block[1].norm1, gain[0], sizeof gain[0]);
        assert_memory_equal(m->block[1].norm2, gain[1], sizeof gain[1]);
        check_block(m);
        rq_model_close(m);
        fixture_free(&f);
        remove_folder(out);
    }
}

/* ---- refusals ------------------------------------------------------------------------------------------------------------- */

static void refuse(fixture *f, const char *word) {
    assert_int_equal(rq_plan_inputs(&f->z), RQ_ERR_ARG);
    if (!strstr(rq_last_error(), word)) fail_msg("no '%s' in: %s", word, rq_last_error());
    fixture_free(f);
}

static void what_cannot_be_is_refused(void **state) {
    (void)state;
    fixture f;
    assert_int_equal(fixture_new(&f, "tied", "full", 24, 0, -1), RQ_ERR_ARG); /* 64 inputs */
    assert_non_null(strstr(rq_last_error(), "64"));
    fixture_free(&f);
    assert_int_equal(fixture_new(&f, "tied", "full", 0, 3, -1), RQ_ERR_ARG); /* divides, and there is none */
    fixture_free(&f);
    assert_int_equal(fixture_new(&f, "tied", "residual", 0, 32, -1), RQ_ERR_ARG);
    fixture_free(&f);

    static const char *const word[] = {"down_proj", "matrix 13", "--bpw", "--calib", "exponents", "--smooth"};
    for (int i = 1; i < 6; ++i) {
        assert_ok(fixture_new(&f, "tied", "residual", 0, 0, -1));
        f.job.factors = RQ_FACTORS_SMOOTH;
        f.job.factor_a = f.job.factor_b = 0.5;
        if (i == 1) f.job.rotate = "full", f.job.factors = RQ_FACTORS_NONE, f.z.plan[13].opt.round = RQ_ROUND_GRID;
        if (i == 2) f.job.bpw = 4;
        if (i == 3) f.job.samples.n_samples = 0;
        if (i == 4) f.job.factor_a = NAN;
        if (i == 5) f.z.plan[3].opt.round = RQ_ROUND_GRID;
        refuse(&f, word[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_function_stays),
        cmocka_unit_test(inputs_are_as_defined),
        cmocka_unit_test(gram_matrices_are_of_the_changed_inputs),
        cmocka_unit_test(maxima_are_of_the_columns),
        cmocka_unit_test(factors_are_their_formulas),
        cmocka_unit_test(written_models_run),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.200s/rq_inputs_XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(folder)) return 1;
    for (int i = 0; i < N_TOK; ++i) ids[i] = (int32_t)(rq_random_u64(5, (uint64_t)i) % 300);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    remove_folder(folder);
    return failed;
}
