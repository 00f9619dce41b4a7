/* SPDX-License-Identifier: Apache-2.0 */
/* Tuning as a whole: steps lower the loss, the better epoch is kept, threads change nothing, a stopped run leaves no trace,
 * the folder written holds what it should. */
#include <dirent.h>
#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eval.h"
#include "quantize.h"
#include "tune_fixture.h"

typedef struct watch {
    double last;
    int calls, stop_at;
} watch;

static bool on_progress(void *user, double done_frac, const char *text, double loss) {
    watch *w = user;
    assert_true(done_frac >= w->last && done_frac <= 1.0);
    assert_non_null(text);
    assert_true(isnan(loss) || loss >= 0);
    w->last = done_frac;
    return ++w->calls == w->stop_at;
}

static rq_tune_opt small_options(watch *w) {
    rq_tune_opt o;
    rq_tune_default(&o);
    o.epochs = 3;
    o.batch = 2;
    o.lr_scale = 0.004;
    o.lr_gain = 0.004;
    o.n_holdout = 3;
    o.measure_train = true;
    o.seed = 1;
    o.progress = on_progress;
    o.user = w;
    return o;
}

enum { WINDOWS = 10, SEQ = 24 };

/* Rates that were not given go by what the weights are; those that were stay, 0 among them. */
static void check_rates(const rq_model *m, double scale_and_gain) {
    rq_tune_opt o;
    rq_tune_default(&o);
    rq_tune_rates(&o, m);
    assert_true(o.lr_scale == scale_and_gain && o.lr_gain == scale_and_gain && o.lr_book == 3e-3);
    o.lr_scale = 0;
    o.lr_gain = 0.5;
    o.lr_book = 0.25;
    rq_tune_rates(&o, m);
    assert_true(o.lr_scale == 0 && o.lr_gain == 0.5 && o.lr_book == 0.25);
}

static double eval_kl(const fixture *f, const int32_t *ids, int64_t n) {
    rq_eval_result e;
    assert_ok(rq_eval(f->m, f->ref, ids, n, SEQ, NULL, &e));
    return e.kl;
}

/* Everything that a run may change, for comparing. */
static float *snapshot_of(rq_model *m, const rq_model *ref, int64_t *n) {
    rq_tuner *t;
    int32_t ids[2] = {1, 2};
    assert_ok(rq_tuner_new(&t, m, ref, ids, 1, 2, 1, 0));
    float *v = malloc((size_t)t->n_param * sizeof *v);
    *n = t->n_param;
    memcpy(v, t->value, (size_t)t->n_param * sizeof *v);
    rq_tuner_free(t);
    return v;
}
static float *snapshot(const fixture *f, int64_t *n) { return snapshot_of(f->m, f->ref, n); }

/* Losses fall, and are those that evaluation measures on the model left behind. */
static void test_run(void **state) {
    (void)state;
    for (int rotated = 0; rotated < 2; ++rotated) {
        fixture f;
        rq_tune_result r;
        watch w = {0};
        int32_t ids[WINDOWS * SEQ];
        fixture_open(&f, "tied", rotated ? "hadamard" : NULL);
        fill_ids(ids, WINDOWS * SEQ, 8);
        rq_tune_opt o = small_options(&w);
        check_rates(f.m, 3e-4);
        double before = eval_kl(&f, ids, 7), held_before = eval_kl(&f, ids + 7 * SEQ, 3);
        assert_ok(rq_tune(f.m, f.ref, ids, WINDOWS, SEQ, &o, &r));
        assert_int_equal(r.n_train, 7);
        assert_int_equal(r.n_steps, 12);
        assert_int_equal(r.n_epochs, 3);
        assert_int_equal(r.n_gains, 5 * D);
        assert_true(w.last > 0.999);
        assert_true(fabs(r.train_before - before) <= 1e-5 * before);
        assert_true(fabs(r.holdout_before - held_before) <= 1e-5 * held_before);
        assert_true(fabs(r.train_after - eval_kl(&f, ids, 7)) <= 1e-5 * before);
        assert_true(fabs(r.holdout_after - eval_kl(&f, ids + 7 * SEQ, 3)) <= 1e-5 * before);
        assert_true(r.train_after < 0.97 * r.train_before);
        assert_true(r.holdout_after < r.holdout_before);
        assert_true(r.best_epoch >= 1);
        assert_true(r.holdout_after == r.epoch[r.best_epoch - 1].holdout);
        for (int i = 0; i < 3; ++i) assert_true(r.epoch[i].holdout >= r.holdout_after);
        fixture_close(&f);
    }
}

/* Steps far too long make every epoch worse: the start is kept, bit for bit. Scales alone, gains alone. */
static void test_choice(void **state) {
    fixture f;
    rq_tune_result r;
    watch w = {0};
    int64_t n, n_scale = 0;
    int32_t ids[WINDOWS * SEQ];
    (void)state;
    fixture_open(&f, "qwen2", NULL);
    fill_ids(ids, WINDOWS * SEQ, 9);
    float *start = snapshot(&f, &n), *now;
    rq_tune_opt o = small_options(&w);
    o.lr_scale = 1;
    o.epochs = 1;
    assert_ok(rq_tune(f.m, f.ref, ids, WINDOWS, SEQ, &o, &r));
    assert_int_equal(r.best_epoch, 0);
    assert_true(r.holdout_after == r.holdout_before);
    now = snapshot(&f, &n);
    assert_memory_equal(now, start, (size_t)n * sizeof *now);
    free(now);
    n_scale = n - 5 * D;
    for (int gains = 0; gains < 2; ++gains) {
        o.n_holdout = 0;
        o.lr_scale = gains ? 0 : 0.004;
        o.lr_gain = gains ? 0.004 : 0;
        w = (watch){0};
        assert_ok(rq_tune(f.m, f.ref, ids, WINDOWS, SEQ, &o, &r));
        assert_true(isnan(r.holdout_after) && r.train_after < r.train_before);
        now = snapshot(&f, &n);
        assert_true((memcmp(now, start, (size_t)n_scale * sizeof *now) == 0) == gains);
        assert_true((memcmp(now + n_scale, start + n_scale, 5 * D * sizeof *now) == 0) == !gains);
        free(start);
        start = now;
    }
    free(start);
    fixture_close(&f);
}

static void check_threads(bool inputs8) {
    int32_t ids[WINDOWS * SEQ];
    float *first = NULL;
    fill_ids(ids, WINDOWS * SEQ, 10);
    for (int threads = 1; threads <= 3; ++threads) {
        fixture f;
        rq_tune_result r;
        watch w = {0};
        int64_t n;
        rq_set_threads(threads);
        fixture_open(&f, "linear", "orthogonal");
        if (inputs8) fixture_w4a8(&f);
        rq_tune_opt o = small_options(&w);
        assert_ok(rq_tune(f.m, f.ref, ids, WINDOWS, SEQ, &o, &r));
        float *v = snapshot(&f, &n);
        if (first) assert_memory_equal(v, first, (size_t)n * sizeof *v);
        if (first)
            free(v);
        else
            first = v;
        fixture_close(&f);
    }
    free(first);
    rq_set_threads(0);
}

static void test_threads(void **state) {
    (void)state;
    check_threads(false);
    check_threads(true);
}

/* Stopped at any point, or refused: the model is as it was. */
static void test_stop(void **state) {
    static const int stops[] = {1, 6, 9, 12, 16};
    fixture f;
    rq_tune_result r;
    int64_t n;
    int32_t ids[WINDOWS * SEQ];
    (void)state;
    fixture_open(&f, "mistral", NULL);
    fill_ids(ids, WINDOWS * SEQ, 11);
    float *start = snapshot(&f, &n), *now;
    for (int i = 0; i < 5; ++i) {
        watch w = {.stop_at = stops[i]};
        rq_tune_opt o = small_options(&w);
        assert_int_equal(rq_tune(f.m, f.ref, ids, WINDOWS, SEQ, &o, &r), RQ_ERR_CANCELLED);
        assert_int_equal(w.calls, stops[i]);
        now = snapshot(&f, &n);
        assert_memory_equal(now, start, (size_t)n * sizeof *now);
        free(now);
    }
    watch w = {0};
    rq_tune_opt o = small_options(&w);
    ids[5] = 320;
    assert_int_equal(rq_tune(f.m, f.ref, ids, WINDOWS, SEQ, &o, &r), RQ_ERR_INPUT);
    ids[5] = 5;
    o.n_holdout = WINDOWS;
    assert_int_equal(rq_tune(f.m, f.ref, ids, WINDOWS, SEQ, &o, &r), RQ_ERR_ARG);
    o.n_holdout = 0;
    assert_int_equal(rq_tune(f.m, f.ref, ids, WINDOWS, 257, &o, &r), RQ_ERR_ARG); /* the context is 256 */
    o.epochs = RQ_TUNE_MAX_EPOCHS + 1;
    assert_int_equal(rq_tune(f.m, f.ref, ids, WINDOWS, SEQ, &o, &r), RQ_ERR_ARG);
    o.epochs = 1;
    o.lr_scale = NAN;
    assert_int_equal(rq_tune(f.m, f.ref, ids, WINDOWS, SEQ, &o, &r), RQ_ERR_ARG);
    o.lr_scale = 0.1;
    assert_int_equal(rq_tune((rq_model *)(uintptr_t)f.ref, f.m, ids, WINDOWS, SEQ, &o, &r), RQ_ERR_ARG); /* dense */
    assert_non_null(strstr(rq_last_error(), "no scales to tune"));
    free(start);
    fixture_close(&f);
}

/* ---- the folder ---- */

static void write_text(const char *dir, const char *name, const char *text) {
    char *path = rq_path_join(dir, name);
    assert_ok(rq_write_file(path, text, (int64_t)strlen(text)));
    free(path);
}

static bool same_text(const char *dir, const char *name, const char *text) {
    char *path = rq_path_join(dir, name), *now;
    int64_t n;
    assert_ok(rq_read_file(path, 1 << 20, &now, &n));
    bool same = strcmp(now, text) == 0;
    free(path);
    free(now);
    return same;
}

/* The tensors of matrix i, and its entry in the metadata; NULL when it is dense. */
static json_t *pack_matrix(const fixture *f, int i, rq_packed_file *file) {
    const quantized *q = &f->q[i];
    const rq_linear *l = &f->m->block[i / RQ_N_LINEARS].lin[i % RQ_N_LINEARS];
    memset(file, 0, sizeof *file);
    if (!l->packed) return NULL;
    if (l->packed->format == RQ_FORMAT_GRID) {
        const rq_grid *g = &l->packed->u.grid;
        rq_grid_codes codes = {q->n_out, q->n_in,  g->group, q->n_group, 3, g->scale_f16 ? RQ_F16 : RQ_F32,
                               q->code,  q->scale, q->zero,  q->g_idx};
        assert_ok(rq_grid_pack_file(file, l->name, &codes));
        return json_pack("{s:s, s:i, s:I, s:b}", "format", "grid", "bits", 3, "group", (json_int_t)g->group, "sym",
                         q->zero == NULL);
    }
    const rq_w4a8 *w = &l->packed->u.w4a8;
    char *entry;
    uint8_t *code = malloc((size_t)(w->n_out * w->n_in));
    for (int64_t k = 0; k < w->n_out * w->n_in; ++k) code[k] = (uint8_t)rq_w4a8_code(w, k / w->n_in, k % w->n_in);
    rq_w4a8_codes codes = {w->n_out, w->n_in, w->group, code,        w->scale,
                           w->zero,  w->step, w->base,  w->in_scale, w->hadamard};
    assert_ok(rq_w4a8_pack_file(file, &entry, l->name, &codes));
    json_t *e = json_loads(entry, 0, NULL);
    free(entry);
    free(code);
    return e;
}

/* The fixture as a packed folder. */
static void write_folder(const fixture *f, const char *name, const char *dir) {
    rq_packed_file file[N_MATRICES];
    rq_out_tensor out[160];
    char path[1024], *config;
    int64_t n = 0, length;
    json_t *meta = json_pack("{s:i, s:{}}", "version", 1, "linears");
    for (int i = 0; i < N_MATRICES; ++i) {
        json_t *entry = pack_matrix(f, i, &file[i]);
        for (int k = 0; k < file[i].n_tensors; ++k) out[n++] = file[i].tensor[k];
        if (entry)
            json_object_set_new(json_object_get(meta, "linears"),
                                f->m->block[i / RQ_N_LINEARS].lin[i % RQ_N_LINEARS].name, entry);
    }
    for (int64_t i = 0; i < rq_store_count(f->m->store); ++i) {
        const rq_tensor *t = rq_store_at(f->m->store, i);
        bool packed = false;
        for (int k = 0; k < N_MATRICES; ++k) {
            const rq_linear *l = &f->m->block[k / RQ_N_LINEARS].lin[k % RQ_N_LINEARS];
            size_t len = strlen(l->name);
            packed |= l->packed && strncmp(t->name, l->name, len) == 0 && strcmp(t->name + len, ".weight") == 0;
        }
        if (packed) continue;
        out[n] = (rq_out_tensor){.name = t->name, .dtype = t->dtype, .rank = t->rank, .fill = rq_fill_from_memory};
        memcpy(out[n].shape, t->shape, sizeof t->shape);
        out[n++].arg = (void *)(uintptr_t)t->data;
    }
    assert_true(n <= 160);
    char *text = json_dumps(meta, JSON_COMPACT), *weights = rq_path_join(dir, "model.safetensors");
    const char *pairs[] = {"requite", text};
    assert_ok(rq_safetensors_write(weights, out, n, pairs, 1));
    for (int i = 0; i < N_MATRICES; ++i) {
        rq_packed_file_free(&file[i]);
    }
    snprintf(path, sizeof path, "%s/golden/llama/%s/config.json", RQ_TEST_DIR, name);
    assert_ok(rq_read_file(path, 1 << 20, &config, &length));
    write_text(dir, "config.json", config);
    write_text(dir, "quantize_log.jsonl", "{\"a\": 1}\n");
    write_text(dir, "report.json", "{\"bpw\": 3.5}");
    json_decref(meta);
    free(config);
    free(text);
    free(weights);
}

static void remove_folder(const char *path) {
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char *child = rq_path_join(path, e->d_name);
        if (e->d_name[0] != '.') unlink(child);
        free(child);
    }
    if (dir) closedir(dir);
    rmdir(path);
}

static bool ends_with(const char *s, const char *suffix) {
    size_t n = strlen(s), k = strlen(suffix);
    return n >= k && strcmp(s + n - k, suffix) == 0;
}

static void compare_folders(const rq_store *a, const rq_store *b, int changed) {
    int n_changed = 0;
    const char *text[2];
    int64_t length[2];
    assert_int_equal(rq_store_count(a), rq_store_count(b));
    assert_true(rq_meta_str(a, "requite", &text[0], &length[0]) && rq_meta_str(b, "requite", &text[1], &length[1]));
    assert_true(length[0] == length[1] && memcmp(text[0], text[1], (size_t)length[0]) == 0);
    for (int64_t i = 0; i < rq_store_count(a); ++i) {
        const rq_tensor *x = rq_store_at(a, i), *y = rq_store_at(b, i);
        assert_string_equal(x->name, y->name);
        if (strstr(x->name, "norm.weight")) {
            assert_int_equal(y->dtype, RQ_F32);
            ++n_changed;
            continue;
        }
        assert_true(x->dtype == y->dtype && x->n_bytes == y->n_bytes);
        bool same = memcmp(x->data, y->data, (size_t)x->n_bytes) == 0;
        assert_true(same == !(ends_with(x->name, ".weight_scale") || ends_with(x->name, ".weight_in_scale")));
        n_changed += !same;
    }
    assert_int_equal(n_changed, changed);
}

static void check_folder(bool inputs8) {
    const char *tmp = getenv("TMPDIR");
    char dir[256], in[300], out[300];
    fixture f;
    rq_model *m, *again;
    rq_tune_result r;
    rq_eval_result e;
    watch w = {0};
    int32_t ids[WINDOWS * SEQ];
    snprintf(dir, sizeof dir, "%.200s/rq_tune_XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
    snprintf(in, sizeof in, "%s/in", dir);
    snprintf(out, sizeof out, "%s/out", dir);
    assert_int_equal(mkdir(in, 0777), 0);
    fixture_open(&f, "linear", NULL);
    if (inputs8) fixture_w4a8(&f);
    write_folder(&f, "linear", in);
    fill_ids(ids, WINDOWS * SEQ, 12);
    assert_ok(rq_model_open(&m, in));
    rq_tune_opt o = small_options(&w);
    check_rates(m, 3e-4);
    assert_ok(rq_tune_check_out(m, out));
    assert_ok(rq_tune(m, f.ref, ids, WINDOWS, SEQ, &o, &r));
    assert_true(r.holdout_after < r.holdout_before);
    assert_int_equal(rq_tune_write(m, out, "[1]"), RQ_ERR_ARG); /* not an object, and nothing is left behind */
    assert_ok(rq_tune_write(m, out, "{\"epochs\": 3}"));
    assert_ok(rq_model_open(&again, out));
    compare_folders(m->store, again->store, 13 + (inputs8 ? 5 : 0) + 5); /* scales, factors of inputs, gains */
    assert_ok(rq_eval(again, f.ref, ids + 7 * SEQ, 3, SEQ, NULL, &e));
    assert_true(fabs(e.kl - r.holdout_after) <= 1e-5 * e.kl);
    assert_true(again->bpw == m->bpw);
    assert_true(same_text(out, "quantize_log.jsonl", "{\"a\": 1}\n"));
    char *path = rq_path_join(out, "report.json");
    json_t *report = json_load_file(path, 0, NULL);
    free(path);
    assert_true(json_real_value(json_object_get(report, "bpw")) == 3.5);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(report, "tune"), "epochs")), 3);
    json_decref(report);
    assert_int_equal(rq_tune_check_out(m, out), RQ_ERR_ARG); /* in use now */
    assert_int_equal(rq_tune_write(m, in, "{}"), RQ_ERR_ARG);
    rq_model_close(m);
    rq_model_close(again);
    fixture_close(&f);
    remove_folder(in);
    remove_folder(out);
    assert_int_equal(rmdir(dir), 0);
}

static void test_folder(void **state) {
    (void)state;
    check_folder(false);
    check_folder(true);
}

/* A tensor of the other file that is the same, byte for byte. */
static bool same_tensor(const rq_store *a, const rq_store *b, const char *name) {
    const rq_tensor *x = rq_store_find(a, name), *y = rq_store_find(b, name);
    assert_true(x && y && x->dtype == y->dtype && x->n_bytes == y->n_bytes);
    return memcmp(x->data, y->data, (size_t)x->n_bytes) == 0;
}

/* Codebooks, which q k v and gate up share: trained, rounded, written once and read by all. Codes, signs and outlier columns stay; a
 * stopped run leaves every byte as it was. */
static void test_books(void **state) {
    const char *tmp = getenv("TMPDIR");
    (void)state;
    for (int round = 0; round < 2; ++round) {
        char dir[256], in[300], out[300], model[1024];
        rq_model *m, *ref, *again;
        rq_quantize_report report;
        rq_tune_result r;
        rq_eval_result e;
        watch w = {0};
        int32_t ids[WINDOWS * SEQ];
        fill_ids(ids, WINDOWS * SEQ, 21);
        snprintf(dir, sizeof dir, "%.200s/rq_tune_XXXXXX", tmp ? tmp : "/tmp");
        assert_non_null(mkdtemp(dir));
        snprintf(in, sizeof in, "%s/in", dir);
        snprintf(out, sizeof out, "%s/out", dir);
        snprintf(model, sizeof model, "%s/golden/llama/tied", RQ_TEST_DIR);
        rq_quantize_job job = {.model_path = model,
                               .out_path = in,
                               .samples = {ids, WINDOWS, SEQ, WINDOWS},
                               .rotate = "none",
                               .options_json = "{}"};
        rq_quant_default_round(&job.opt, RQ_COMP_RTN, round ? RQ_ROUND_VQ : RQ_ROUND_SSVQ);
        assert_ok(rq_quant_set_all(&job.opt, round ? "codes=32,codes2=16" : "codes=32"));
        assert_ok(rq_quantize_model(&job, &report));
        assert_ok(rq_model_open(&ref, model));
        assert_ok(rq_model_open(&m, in));
        rq_tune_opt o = small_options(&w);
        check_rates(m, 2e-3);
        o.lr_scale = o.lr_gain = 0;
        o.lr_book = 0.01;
        w.stop_at = 14;
        assert_int_equal(rq_tune(m, ref, ids, WINDOWS, SEQ, &o, &r), RQ_ERR_CANCELLED);
        assert_ok(rq_tune_write(m, out, "{}"));
        assert_ok(rq_model_open(&again, out));
        for (int64_t i = 0; i < rq_store_count(m->store); ++i)
            assert_true(same_tensor(m->store, again->store, rq_store_at(m->store, i)->name));
        rq_model_close(again);
        remove_folder(out);
        w = (watch){0};
        assert_ok(rq_tune(m, ref, ids, WINDOWS, SEQ, &o, &r));
        assert_true(r.n_scales == 0 && r.n_gains == 0);
        assert_int_equal(r.n_entries, N_LAYER * 4 * (round ? (32 + 16) * 4 : 32 * 8)); /* q k v share, and gate up */
        assert_true(r.holdout_after < r.holdout_before && r.train_after < 0.99 * r.train_before);
        assert_ok(rq_tune_write(m, out, "{}"));
        assert_ok(rq_model_open(&again, out));
        int n_book = 0;
        for (int64_t i = 0; i < rq_store_count(m->store); ++i) {
            const char *name = rq_store_at(m->store, i)->name;
            bool book = strstr(name, ".weight_book") != NULL;
            if (!strstr(name, "_scale")) assert_true(same_tensor(m->store, again->store, name) == !book);
            n_book += book;
        }
        assert_int_equal(n_book, N_LAYER * 4 * 2); /* two stages, or bytes and their scale */
        assert_ok(rq_eval(again, ref, ids + 7 * SEQ, 3, SEQ, NULL, &e));
        assert_true(fabs(e.kl - r.holdout_after) <= 1e-5 * e.kl);
        int64_t n;
        float *now = snapshot_of(m, ref, &n), *single;
        rq_model_close(m);
        assert_ok(rq_model_open(&m, in));
        rq_set_threads(1);
        w = (watch){0};
        assert_ok(rq_tune(m, ref, ids, WINDOWS, SEQ, &o, &r));
        rq_set_threads(0);
        single = snapshot_of(m, ref, &n);
        assert_memory_equal(single, now, (size_t)n * sizeof *now);
        free(single);
        free(now);
        rq_model_close(m);
        rq_model_close(again);
        rq_model_close(ref);
        remove_folder(in);
        remove_folder(out);
        assert_int_equal(rmdir(dir), 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run),  cmocka_unit_test(test_choice), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_stop), cmocka_unit_test(test_folder), cmocka_unit_test(test_books),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
