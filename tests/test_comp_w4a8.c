/* SPDX-License-Identifier: Apache-2.0 */
/* The quantizer of format w4a8: what it hands over is what the format unpacks; steps and bases against all there are; refinement against
 * the loss that it lowers; layers of a real model against the 4-bit grid; threads; what is refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "comp.h"

static uint64_t seed = 1;

static double uniform(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 11) * 0x1p-53;
}

static void *must_alloc(int64_t n, size_t size) {
    void *p;
    assert_int_equal(rq_alloc(&p, n, size), RQ_OK);
    return p;
}

typedef struct layer {
    int64_t m, n;
    float *w;
    double *h, *d;
} layer;

/* Weights with a mean of their own for each 16 columns, inputs that hang together. */
static layer make(int64_t m, int64_t n) {
    layer l = {m, n, must_alloc(m * n, sizeof *l.w), must_alloc(n * n, sizeof *l.h), must_alloc(n * n, sizeof *l.d)};
    double *x = must_alloc(n, sizeof *x), *e = must_alloc(n, sizeof *e);
    for (int64_t i = 0; i < m; ++i) {
        double mean = 0;
        for (int64_t j = 0; j < n; ++j) {
            if (j % 16 == 0) mean = 0.02 * (uniform() - 0.5);
            l.w[i * n + j] = (float)(mean + 0.05 * (uniform() + uniform() + uniform() - 1.5));
        }
    }
    memset(l.h, 0, (size_t)(n * n) * sizeof *l.h);
    memset(l.d, 0, (size_t)(n * n) * sizeof *l.d);
    for (int64_t t = 0; t < 3 * n; ++t) {
        double common = uniform() - 0.5;
        for (int64_t j = 0; j < n; ++j) {
            x[j] = (uniform() - 0.5) * (1 + (double)(j % 7)) + common;
            e[j] = 0.1 * (uniform() - 0.5) + 0.05 * x[j];
        }
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t j = 0; j < n; ++j) l.h[i * n + j] += x[i] * x[j], l.d[i * n + j] += e[i] * x[j];
        }
    }
    free(x), free(e);
    return l;
}

static void drop(layer *l) { free(l->w), free(l->h), free(l->d); }

/* Quantizes, and checks that packed rows are the values handed over, bit for bit. */
static void quantize(rq_quant_result *r, const layer *l, const rq_quant_opt *o) {
    rq_prep prep;
    rq_packed p;
    float *row = must_alloc(l->n, sizeof *row);
    if (rq_prepare(&prep, l->h, l->d, l->n, o, "layer") != RQ_OK ||
        rq_quantize_matrix(r, l->w, l->m, &prep, o, "layer") != RQ_OK)
        fail_msg("%s", rq_last_error());
    assert_int_equal(r->format, RQ_FORMAT_W4A8);
    assert_int_equal(rq_result_pack(&p, r), RQ_OK);
    for (int64_t i = 0; i < l->m; ++i) {
        rq_unpack_row(&p, i, row);
        for (int64_t j = 0; j < l->n; ++j) assert_true(row[j] == r->q[i * l->n + j]);
    }
    free(row);
    rq_packed_free(&p);
    rq_prep_free(&prep);
}

static double loss(const layer *l, const rq_quant_opt *o, double *asym) {
    rq_quant_result r;
    double sym, other, whw;
    quantize(&r, l, o);
    assert_int_equal(rq_layer_loss(l->w, r.q, l->m, l->n, l->h, l->d, &sym, asym ? asym : &other, &whw), RQ_OK);
    rq_quant_result_free(&r);
    return sym;
}

static void every_option_packs(void **state) {
    (void)state;
    static const int64_t groups[] = {0, 32, 64, 96};
    layer l = make(37, 96 + 40);
    for (int comp = 0; comp < RQ_N_COMPS; ++comp) {
        for (int g = 0; g < 4; ++g) {
            for (int flags = 0; flags < 10; ++flags) {
                rq_quant_opt o;
                rq_quant_result r;
                rq_quant_default_round(&o, (rq_comp)comp, RQ_ROUND_W4A8);
                o.group = groups[g];
                o.sym = groups[g] == 0 && flags & 1;
                o.clip = flags & 8 ? RQ_CLIP_OUTPUT : flags & 2 ? RQ_CLIP_MSE : RQ_CLIP_NONE;
                o.act_order = flags & 4 && rq_comp_get((rq_comp)comp)->propagates;
                quantize(&r, &l, &o);
                rq_quant_result_free(&r);
            }
        }
    }
    drop(&l);
}

/* Rows of zeros, of one value, with dead inputs, and weights very large and small. */
static void odd_rows(void **state) {
    (void)state;
    layer l = make(8, 64);
    for (int64_t j = 0; j < l.n; ++j) {
        l.w[j] = 0;
        l.w[l.n + j] = 0.25f;
        l.w[2 * l.n + j] *= 1e30f;
        l.w[3 * l.n + j] *= 1e-25f;
        l.w[4 * l.n + j] = j == 7 ? -3.0f : 0.0f;
        l.h[3 * l.n + j] = l.h[j * l.n + 3] = l.d[j * l.n + 3] = 0;
    }
    for (int comp = 0; comp < RQ_N_COMPS; ++comp) {
        for (int64_t group = 0; group <= 64; group += 32) {
            rq_quant_opt o;
            rq_quant_result r;
            rq_quant_default_round(&o, (rq_comp)comp, RQ_ROUND_W4A8);
            o.group = group;
            if (group == 64) o.group = 32, o.clip = RQ_CLIP_OUTPUT;
            quantize(&r, &l, &o);
            for (int64_t i = 0; i < l.m * l.n; ++i) assert_true(isfinite(r.q[i]));
            for (int64_t j = 0; j < l.n; ++j) {
                assert_true(r.q[j] == 0 || comp == RQ_COMP_QEP);
                if (comp != RQ_COMP_RTN || !group) continue;
                assert_true(fabsf(r.q[l.n + j] - 0.25f) < 0.002f);
                assert_true(fabsf(r.q[2 * l.n + j] - l.w[2 * l.n + j]) < 0.01e30f);
                assert_true(fabsf(r.q[3 * l.n + j] - l.w[3 * l.n + j]) < 0.01e-25f);
            }
            rq_quant_result_free(&r);
        }
    }
    drop(&l);
}

/* For the scale that a row got, no step and base of all there are is much better; and the rule without a search is worse. */
static void search_finds_the_best_grid(void **state) {
    (void)state;
    enum { N = 64, GROUP = 32 };
    float scale[2], zero[2], step[2], x[N], wt[N];
    double ours = 0, all = 0, ruled = 0;
    rq_quant_opt o;
    for (int trial = 0; trial < 60; ++trial) {
        rq_quant_default_round(&o, RQ_COMP_GPTQ, RQ_ROUND_W4A8);
        o.group = GROUP;
        for (int j = 0; j < N; ++j) {
            x[j] = (float)((uniform() + uniform() + uniform() - 1.5) * (j < GROUP ? 1 : 0.2) + 0.3 * (trial % 3));
            if (trial % 5 == 0 && j == 9) x[j] *= 6;
            wt[j] = (float)(0.1 + uniform());
        }
        for (int search = 0; search < 2; ++search) {
            o.clip = search ? RQ_CLIP_MSE : RQ_CLIP_NONE;
            rq_round_w4a8.find_row(&o, x, wt, N, GROUP, scale, zero, step);
            assert_true(scale[0] == scale[1]);
            for (int g = 0; g < 2; ++g) {
                double best = INFINITY, mine = 0;
                for (int s = 1; s <= RQ_W4A8_MAX_STEP; ++s) {
                    for (int b = -128; b + 15 * s <= 127; ++b) {
                        double sum = 0;
                        for (int j = g * GROUP; j < (g + 1) * GROUP; ++j) {
                            double least = INFINITY;
                            for (int u = 0; u < 16; ++u) {
                                double e = (double)scale[g] * (u * s + b) - (double)x[j];
                                least = e * e < least ? e * e : least;
                            }
                            sum += (double)wt[j] * least;
                        }
                        best = sum < best ? sum : best;
                        if (s == (int)step[g] && b == (int)-zero[g]) mine = sum;
                    }
                }
                assert_true(mine > 0);
                if (search)
                    ours += mine, all += best;
                else
                    ruled += mine;
            }
        }
    }
    print_message("error of the search %.5g, of all grids of its scales %.5g, of the rule without a search %.5g\n",
                  ours, all, ruled);
    assert_true(ours < 1.05 * all && ours < 0.8 * ruled);
}

static void refinement_lowers_the_loss(void **state) {
    (void)state;
    layer l = make(96, 160);
    for (int64_t group = 0; group <= 64; group += 32) {
        rq_quant_opt o;
        rq_quant_default_round(&o, RQ_COMP_GPTQ, RQ_ROUND_W4A8);
        o.group = group;
        o.refit = 0;
        o.cd_sweeps = 0;
        double swept = loss(&l, &o, NULL);
        o.cd_sweeps = 3;
        double descended = loss(&l, &o, NULL);
        o.refit = 2;
        double refitted = loss(&l, &o, NULL);
        rq_quant_default_round(&o, RQ_COMP_RTN, RQ_ROUND_W4A8);
        o.group = group;
        double none = loss(&l, &o, NULL);
        print_message("group %d: rtn %.5g, sweep %.5g, descent %.5g, refit %.5g\n", (int)group, none, swept, descended,
                      refitted);
        assert_true(swept < 0.9 * none && descended < swept && refitted < descended);
    }
    drop(&l);
}

static void load_layer(layer *l, const char *name) {
    char path[512];
    rq_store *s;
    snprintf(path, sizeof path, "%s/golden/layers/%s.safetensors", RQ_TEST_DIR, name);
    assert_int_equal(rq_store_open(&s, path), RQ_OK);
    const rq_tensor *w = rq_store_find(s, "W"), *h = rq_store_find(s, "H"), *d = rq_store_find(s, "dXXT");
    l->m = w->shape[0], l->n = w->shape[1];
    float *wide = must_alloc(l->n * l->n, sizeof *wide);
    l->w = must_alloc(l->m * l->n, sizeof *l->w);
    l->h = must_alloc(l->n * l->n, sizeof *l->h), l->d = must_alloc(l->n * l->n, sizeof *l->d);
    assert_int_equal(rq_tensor_f32(w, l->w), RQ_OK);
    assert_int_equal(rq_tensor_f32(h, wide), RQ_OK);
    for (int64_t i = 0; i < l->n * l->n; ++i) l->h[i] = (double)wide[i];
    assert_int_equal(rq_tensor_f32(d, wide), RQ_OK);
    for (int64_t i = 0; i < l->n * l->n; ++i) l->d[i] = (double)wide[i];
    free(wide);
    rq_store_close(s);
}

static double grid_loss(const layer *l, rq_comp comp) {
    rq_quant_opt o;
    rq_prep prep;
    rq_quant_result r;
    double sym, asym, whw;
    rq_quant_default(&o, comp);
    o.bits = 4;
    assert_int_equal(rq_prepare(&prep, l->h, l->d, l->n, &o, "layer"), RQ_OK);
    assert_int_equal(rq_quantize_matrix(&r, l->w, l->m, &prep, &o, "layer"), RQ_OK);
    assert_int_equal(rq_layer_loss(l->w, r.q, l->m, l->n, l->h, l->d, &sym, &asym, &whw), RQ_OK);
    rq_quant_result_free(&r);
    rq_prep_free(&prep);
    return sym;
}

/* Two levels lose no more than the 4-bit grid with as many groups: bases need not be multiples of the step. Compensators compensate. */
static void golden_layers(void **state) {
    (void)state;
    static const char *const layers[] = {"L5_q", "L5_gate", "L9_down", "L11_down"};
    for (size_t i = 0; i < sizeof layers / sizeof *layers; ++i) {
        layer l;
        rq_quant_opt o;
        double asym, none;
        load_layer(&l, layers[i]);
        rq_quant_default_round(&o, RQ_COMP_RTN, RQ_ROUND_W4A8);
        double rtn = loss(&l, &o, &none);
        print_message("%-9s rtn %.5g %.5g", layers[i], rtn, none);
        for (int comp = RQ_COMP_GPTQ; comp < RQ_N_COMPS; ++comp) {
            rq_quant_default_round(&o, (rq_comp)comp, RQ_ROUND_W4A8);
            double sym = loss(&l, &o, &asym);
            print_message(", %s %.5g %.5g", rq_comp_get((rq_comp)comp)->name, sym, asym);
            assert_true(asym < 0.7 * none);
            if (comp == RQ_COMP_GPTQ) {
                double grid = grid_loss(&l, RQ_COMP_GPTQ);
                print_message(" (grid %.5g)", grid);
                assert_true(sym < 1.02 * grid && sym < 0.6 * rtn);
            }
        }
        print_message("\n");
        drop(&l);
    }
}

/* ---- --clip output ---- */

static double row_loss(const layer *l, int64_t row, const float *q) {
    double sum = 0;
    for (int64_t i = 0; i < l->n; ++i) {
        double eh = 0;
        for (int64_t j = 0; j < l->n; ++j) eh += ((double)l->w[row * l->n + j] - (double)q[j]) * l->h[j * l->n + i];
        sum += eh * ((double)l->w[row * l->n + i] - (double)q[i]);
    }
    return sum;
}

/* e H e^T of one row on the 4-bit grid whose range is shrunk, from the definition of the grid. */
static double shrunk_loss(const layer *l, int64_t row, bool sym, double shrink) {
    const float *w = l->w + row * l->n;
    float lo = 0, hi = 0, *q = must_alloc(l->n, sizeof *q);
    for (int64_t j = 0; j < l->n; ++j) lo = fminf(lo, w[j]), hi = fmaxf(hi, w[j]);
    lo *= (float)shrink, hi *= (float)shrink;
    const float scale = sym ? fmaxf(-lo, hi) / 7 : (hi - lo) / 15, zero = sym ? 8 : rintf(-lo / scale);
    for (int64_t j = 0; j < l->n; ++j) q[j] = scale * (fminf(15, fmaxf(0, rintf(w[j] / scale) + zero)) - zero);
    double loss = row_loss(l, row, q);
    free(q);
    return loss;
}

static void output_clip_is_the_best_range(void **state) {
    (void)state;
    layer l = make(110, 64);
    int differs = 0;
    for (int64_t j = 0; j < l.n; ++j) l.w[j * l.n + j] *= 4; /* something to clip */
    for (int kind = 0; kind < 4; ++kind) {
        rq_quant_opt o;
        rq_quant_result r;
        rq_prep prep;
        rq_quant_default_round(&o, RQ_COMP_RTN, kind & 2 ? RQ_ROUND_GRID : RQ_ROUND_W4A8);
        o.group = 0, o.bits = 4, o.scale_dtype = RQ_F32;
        o.sym = kind & 1;
        o.clip = RQ_CLIP_OUTPUT;
        assert_int_equal(rq_prepare(&prep, l.h, NULL, l.n, &o, "layer"), RQ_OK);
        assert_int_equal(rq_quantize_matrix(&r, l.w, l.m, &prep, &o, "layer"), RQ_OK);
        for (int64_t i = 0; i < l.m; ++i) {
            double best = INFINITY, mine = row_loss(&l, i, r.q + i * l.n);
            for (int k = 0; k < o.clip_steps; ++k) {
                double loss = shrunk_loss(&l, i, o.sym, 1 - 0.8 * k / o.clip_steps);
                best = loss < best ? loss : best;
            }
            assert_true(mine < 1.0001 * best);
            differs += shrunk_loss(&l, i, o.sym, 1) > 1.01 * mine;
        }
        rq_quant_result_free(&r);
        rq_prep_free(&prep);
    }
    assert_true(differs > l.m);
    drop(&l);
}

/* Rounding to nearest loses in no row more than with the search by squares, and less in all; with a compensator it is compared. */
static void output_clip_on_golden_layers(void **state) {
    (void)state;
    static const char *const layers[] = {"L5_q", "L11_down"};
    for (size_t i = 0; i < 2; ++i) {
        layer l;
        load_layer(&l, layers[i]);
        for (int64_t group = 0; group <= 128; group += 128) {
            rq_quant_result r[2];
            double total[2] = {0};
            for (int output = 0; output < 2; ++output) {
                rq_quant_opt o;
                rq_quant_default_round(&o, RQ_COMP_RTN, RQ_ROUND_W4A8);
                o.group = group;
                o.clip_steps = 16;
                if (output) assert_int_equal(rq_quant_set(&o, "clip", "output"), RQ_OK);
                quantize(&r[output], &l, &o);
            }
            for (int64_t row = 0; row < l.m; ++row) {
                double squares = row_loss(&l, row, r[0].q + row * l.n), ours = row_loss(&l, row, r[1].q + row * l.n);
                assert_true(ours < 1.0001 * squares);
                total[0] += squares, total[1] += ours;
            }
            print_message("%-8s group %-3d rtn, squares %.5g, output %.5g", layers[i], (int)group, total[0], total[1]);
            assert_true(total[1] < 0.95 * total[0]);
            for (int output = 0; output < 2; ++output) {
                rq_quant_opt o;
                rq_quant_default_round(&o, RQ_COMP_GPTQ, RQ_ROUND_W4A8);
                o.group = group;
                o.clip = output ? RQ_CLIP_OUTPUT : RQ_CLIP_MSE;
                o.clip_steps = 16;
                print_message("%s %.5g", output ? "," : "; gptq", loss(&l, &o, NULL));
                rq_quant_result_free(&r[output]);
            }
            print_message("\n");
        }
        drop(&l);
    }
}

static void same_bytes_for_any_thread_count(void **state) {
    (void)state;
    layer l = make(200, 128);
    rq_quant_opt o;
    rq_quant_result a, b;
    rq_quant_default_round(&o, RQ_COMP_RESCOMP, RQ_ROUND_W4A8);
    o.group = 32;
    o.clip = RQ_CLIP_OUTPUT;
    rq_set_threads(1);
    quantize(&a, &l, &o);
    rq_set_threads(3);
    quantize(&b, &l, &o);
    assert_memory_equal(a.q, b.q, (size_t)(l.m * l.n) * sizeof *a.q);
    assert_memory_equal(a.codes, b.codes, (size_t)(l.m * l.n));
    rq_quant_result_free(&a);
    rq_quant_result_free(&b);
    drop(&l);
}

static void bad_options_are_refused(void **state) {
    (void)state;
    static const char *const bad[] = {
        "bits=3", "group=48", "group=8192", "sym=true", "static-groups=false", "clip-power=2.4", "scale-dtype=f16"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) {
        rq_quant_opt o;
        rq_quant_default_round(&o, RQ_COMP_GPTQ, RQ_ROUND_W4A8);
        assert_int_equal(rq_quant_check(&o, 0), RQ_OK);
        assert_int_equal(rq_quant_set_all(&o, bad[i]), RQ_OK);
        assert_int_equal(rq_quant_check(&o, 0), RQ_ERR_ARG);
        assert_true(strlen(rq_last_error()) > 20);
    }
    rq_quant_opt o;
    rq_quant_default(&o, RQ_COMP_GPTQ);
    assert_int_equal(rq_quant_set_all(&o, "group=0,sym=true,round=w4a8"), RQ_OK);
    assert_int_equal(rq_quant_check(&o, 576), RQ_OK);
    assert_int_equal(rq_quant_check(&o, 131073), RQ_ERR_UNSUPPORTED);

    rq_quant_default(&o, RQ_COMP_GPTQ); /* groups of 128 on a grid have no range of the row */
    o.clip = RQ_CLIP_OUTPUT;
    assert_int_equal(rq_quant_check(&o, 128), RQ_OK);
    assert_int_equal(rq_quant_check(&o, 576), RQ_ERR_ARG);
    assert_non_null(strstr(rq_last_error(), "576"));
    rq_quant_default_round(&o, RQ_COMP_GPTQ, RQ_ROUND_VQ);
    o.clip = RQ_CLIP_OUTPUT;
    assert_int_equal(rq_quant_check(&o, 0), RQ_ERR_ARG);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_option_packs),
        cmocka_unit_test(odd_rows),
        cmocka_unit_test(search_finds_the_best_grid),
        cmocka_unit_test(refinement_lowers_the_loss),
        cmocka_unit_test(golden_layers),
        cmocka_unit_test(output_clip_is_the_best_range),
        cmocka_unit_test(output_clip_on_golden_layers),
        cmocka_unit_test(same_bytes_for_any_thread_count),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
